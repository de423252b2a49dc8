//! Whether those who are hit are what the drill's rule says of them when the fault comes, and not only when they were chosen.
//! `run` asks before it injects, of the latest samples; `judge` asks of those that the record has from just before the fault.
//! It is pure. Rules that draw from all members or from workers say nothing that changes by itself, and demand nothing here.

use super::catalogue::Target;
use super::clock::At;
use super::etcd::Status;
use super::record::{Record, Sample};
use super::target::{ClusterView, MemberView};
use crate::plan::lease_holder;
use crate::spec::NodeName;
use std::time::Duration;

/// What a rule says of its targets that may be otherwise a moment later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Who leads among etcd's members, and who follows.
    Leadership,
    /// Who holds the lease of this name.
    Lease(&'static str),
    /// Who carries the API's virtual address.
    VirtualAddress,
    Nothing,
}

pub fn about(target: Target) -> About {
    match target {
        Target::Leader | Target::Follower | Target::LeaderAndFollower | Target::TwoFollowers => About::Leadership,
        Target::ControllerManagerHolder | Target::SchedulerHolder => target.lease().map_or(About::Nothing, About::Lease),
        Target::VipHolder => About::VirtualAddress,
        Target::Minority
        | Target::Majority
        | Target::AllMembers
        | Target::Worker
        | Target::BusiestWorker
        | Target::Everything => About::Nothing,
    }
}

/// What is no longer so, and who it is instead; `None`: the targets are what the rule says.
pub fn strayed(target: Target, nodes: &[NodeName], view: &ClusterView) -> Option<String> {
    match about(target) {
        About::Nothing => None,
        About::Leadership => leadership(target, nodes, &view.members),
        About::Lease(lease) => elsewhere(nodes, view.lease_holders.get(lease), &format!("holds the lease {lease}")),
        About::VirtualAddress => elsewhere(nodes, view.vip_holder.as_ref(), "carries the virtual address"),
    }
}

fn leadership(target: Target, nodes: &[NodeName], members: &[MemberView]) -> Option<String> {
    let count = match target {
        Target::Leader => nodes.len(),
        Target::LeaderAndFollower => 1,
        _ => 0,
    };
    let (leading, following) = nodes.split_at(count.min(nodes.len()));
    let leader = match members.iter().filter(|member| member.leader).collect::<Vec<_>>()[..] {
        [one] => &one.node,
        [] => return Some("no etcd member leads".to_owned()),
        ref several => return Some(format!("{} etcd members say that they lead", several.len())),
    };
    if let Some(node) = leading.iter().find(|node| *node != leader) {
        return Some(format!("{node} no longer leads, {leader} does"));
    }
    if following.contains(leader) {
        return Some(format!("{leader} no longer follows, it leads"));
    }
    let silent = |node: &&NodeName| !members.iter().any(|member| member.node == **node && member.reachable);
    following.iter().find(silent).map(|node| format!("{node} no longer answers"))
}

fn elsewhere(nodes: &[NodeName], holder: Option<&NodeName>, does: &str) -> Option<String> {
    let chosen = nodes.first()?;
    match holder {
        Some(holder) if holder == chosen => None,
        Some(holder) => Some(format!("{chosen} no longer {does}, {holder} does")),
        None => Some(format!("{chosen} no longer {does}, and nobody is known to")),
    }
}

/// The members by what each said last from one moment to another; whoever said nothing then does not answer. Their ids and
/// stores stay as they were seen.
pub fn lately(members: &[MemberView], samples: &[Sample], from: At, to: At) -> Vec<MemberView> {
    let now = |(i, member): (usize, &MemberView)| {
        let own = samples.iter().filter(|sample| sample.member == i && sample.at >= from && sample.at <= to);
        let said = own.filter_map(|sample| sample.status.as_ref()).next_back();
        MemberView {
            leader: said.is_some_and(Status::leads),
            term: said.map_or(member.term, |status| status.term),
            reachable: said.is_some(),
            ..member.clone()
        }
    };
    members.iter().enumerate().map(now).collect()
}

/// The cluster when the fault came, by what was heard from it for so long before. Who carries the virtual address is asked once,
/// shortly before the fault, and who holds a lease as well where the load leaves the API alone.
pub fn at_the_fault(record: &Record, heard: Duration) -> ClusterView {
    let inject = record.marks.inject;
    let members = lately(&record.before.members, &record.samples, inject.minus(heard), inject);
    let mut view = ClusterView { members, ..record.before.clone() };
    if let About::Lease(lease) = about(record.drill.target) {
        let samples = record.kube.as_ref().map(|kube| kube.samples.as_slice()).unwrap_or_default();
        let held = samples.iter().rev().filter(|sample| sample.at <= inject).find_map(|sample| sample.leases.get(lease));
        match held.map(|held| NodeName::parse(lease_holder(&held.holder))) {
            Some(Ok(node)) => drop(view.lease_holders.insert(lease.to_owned(), node)),
            Some(Err(_)) => drop(view.lease_holders.remove(lease)),
            None => (),
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::super::sample::leader_kill;
    use super::*;

    fn node(i: u8) -> NodeName {
        NodeName::controller(i)
    }

    /// Three members, of which these lead, on controllers of which the last holds everything of Kubernetes.
    fn view(leading: &[usize]) -> ClusterView {
        let mut view = leader_kill().before;
        for (i, member) in view.members.iter_mut().enumerate() {
            member.leader = leading.contains(&i);
        }
        view.vip_holder = Some(node(2));
        view.lease_holders = [("kube-controller-manager".to_owned(), node(2))].into();
        view
    }

    #[test]
    fn a_rule_demands_what_it_says_and_no_more() {
        use Target::*;
        let strays = |target, nodes: &[u8], view: &ClusterView| {
            let nodes: Vec<NodeName> = nodes.iter().map(|i| node(*i)).collect();
            strayed(target, &nodes, view)
        };
        let led = view(&[1]);
        let rows: [(Target, &[u8], Option<&str>); 11] = [
            (Leader, &[1], None),
            (Leader, &[0], Some("controller-0 no longer leads, controller-1 does")),
            (Follower, &[0], None),
            (Follower, &[1], Some("controller-1 no longer follows, it leads")),
            (TwoFollowers, &[0, 2], None),
            (TwoFollowers, &[0, 1], Some("controller-1 no longer follows, it leads")),
            (LeaderAndFollower, &[1, 0], None),
            (LeaderAndFollower, &[0, 1], Some("controller-0 no longer leads, controller-1 does")),
            (VipHolder, &[2], None),
            (VipHolder, &[0], Some("controller-0 no longer carries the virtual address, controller-2 does")),
            (
                ControllerManagerHolder,
                &[1],
                Some("controller-1 no longer holds the lease kube-controller-manager, controller-2 does"),
            ),
        ];
        for (target, nodes, expected) in rows {
            assert_eq!(strays(target, nodes, &led).as_deref(), expected, "{target:?} {nodes:?}");
        }
        let scheduler = strays(SchedulerHolder, &[1], &led);
        assert_eq!(scheduler.as_deref(), Some("controller-1 no longer holds the lease kube-scheduler, and nobody is known to"));
        // Whoever leads, and whether anybody does.
        for target in [Minority, Majority, AllMembers, Worker, BusiestWorker, Everything] {
            assert_eq!(strays(target, &[0], &view(&[])), None, "{target:?}");
        }
        assert_eq!(strays(Follower, &[0], &view(&[])).as_deref(), Some("no etcd member leads"));
        assert_eq!(strays(Leader, &[0], &view(&[0, 1])).as_deref(), Some("2 etcd members say that they lead"));
        let mut silent = view(&[1]);
        silent.members[0].reachable = false;
        assert_eq!(strays(Follower, &[0], &silent).as_deref(), Some("controller-0 no longer answers"));
        assert_eq!(strays(Follower, &[2], &silent), None, "another's silence is not the rule's matter");
    }

    #[test]
    fn a_member_is_what_it_said_last_and_not_what_it_said_long_ago() {
        let record = leader_kill();
        let seen = |from: u64, to: u64| {
            let members = lately(&record.before.members, &record.samples, At(from * 1000), At(to * 1000));
            assert!(members.iter().zip(&record.before.members).all(|(now, before)| now.id == before.id));
            members.iter().map(|member| (member.leader, member.reachable)).collect::<Vec<_>>()
        };
        assert_eq!(seen(1600, 2000), [(true, true), (false, true), (false, true)]);
        // It is killed at 2.0 s, and another leads from 3.2 s on.
        assert_eq!(seen(2400, 2800), [(false, false), (false, true), (false, true)]);
        assert_eq!(seen(1600, 4000), [(true, true), (true, true), (false, true)], "what is old is to be left out by the caller");
        assert_eq!(seen(3600, 4000), [(false, false), (true, true), (false, true)]);
    }
}
