//! Who is hit: a pure choice from what was observed, drawn with a seed that is printed and can be given again.
//! `run` calls it after observing the cluster; the refusals here are what a user sees when a drill cannot be run.
//! It looks at nothing itself and knows no fault.

use super::catalogue::{Drill, Process, Target};
use super::quorum::spare;
use super::restorable::NoRoom;
use crate::spec::NodeName;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// An etcd id, written as etcd writes it: 16 hexadecimal digits (numbers this large do not survive JSON readers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Id(pub u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Id, Self::Error> {
        u64::from_str_radix(&text, 16).map(Id)
    }
}

/// A cluster as observed before the fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterView {
    pub members: Vec<MemberView>,
    /// Controllers with an API server; empty where there is no Kubernetes.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub control_planes: Vec<NodeName>,
    pub workers: Vec<WorkerView>,
    /// Holder of each leader-election lease, by the lease's name.
    #[schemars(with = "BTreeMap<String, String>")]
    pub lease_holders: BTreeMap<String, NodeName>,
    #[schemars(with = "Option<String>")]
    pub vip_holder: Option<NodeName>,
}

impl ClusterView {
    /// What the store of the members takes on disk, where it takes most.
    pub fn held(&self) -> i64 {
        self.members.iter().map(|member| member.db_bytes).max().unwrap_or(0)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemberView {
    #[schemars(with = "String")]
    pub node: NodeName,
    pub id: Id,
    pub leader: bool,
    pub term: u64,
    pub reachable: bool,
    /// What its store takes on disk; quotas are about it.
    #[serde(default)]
    pub db_bytes: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerView {
    #[schemars(with = "String")]
    pub node: NodeName,
    pub ready: bool,
    pub pods: u32,
}

/// The choice, and why it fell so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Chosen {
    #[schemars(with = "Vec<String>")]
    pub nodes: Vec<NodeName>,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NoTarget {
    #[error("{drill} needs {needs} etcd members, the cluster has {has}")]
    Members { drill: String, needs: u8, has: usize },
    #[error("{drill} needs {needs} control planes, the cluster has {has}: nobody would take over")]
    ControlPlanes { drill: String, needs: u8, has: usize },
    #[error("{drill} needs {needs} worker{}, the cluster has {has}", if *needs == 1 { "" } else { "s" })]
    Workers { drill: String, needs: u8, has: usize },
    #[error("{drill} hits {wanted}, and {seen}")]
    Nobody { drill: String, wanted: &'static str, seen: String },
    #[error("{drill} hits {process} on {node}, where none runs; it runs on {there}")]
    NotThere { drill: String, process: Process, node: NodeName, there: String },
    #[error("{drill} fills {room} MiB into a store of {held} MiB, which is more than the members' disks bear; {}", accepted(*most))]
    NoRoom {
        drill: String,
        room: u32,
        held: u32,
        /// Most that could be filled now.
        most: u32,
    },
    #[error("{drill}: {why}")]
    NoWayBack { drill: String, why: NoRoom },
}

fn accepted(most: u32) -> String {
    if most == 0 { "there is no room for any".to_owned() } else { format!("accepted: 1 to {most}") }
}

/// Chooses. The same view and seed give the same choice.
pub fn choose(drill: &Drill, view: &ClusterView, seed: u64) -> Result<Chosen, NoTarget> {
    let (members, workers) = (view.members.len(), view.workers.len());
    let needs = drill.min_members.max(drill.fault.min_members());
    if members < usize::from(needs) {
        return Err(NoTarget::Members { drill: drill.name.clone(), needs, has: members });
    }
    if workers < usize::from(drill.min_workers) {
        return Err(NoTarget::Workers { drill: drill.name.clone(), needs: drill.min_workers, has: workers });
    }
    if view.control_planes.len() < usize::from(drill.min_control_planes) {
        let (needs, has) = (drill.min_control_planes, view.control_planes.len());
        return Err(NoTarget::ControlPlanes { drill: drill.name.clone(), needs, has });
    }
    let nobody = |wanted, seen: &str| NoTarget::Nobody { drill: drill.name.clone(), wanted, seen: seen.to_owned() };
    let mut rng = StdRng::seed_from_u64(seed);
    let leader = view.members.iter().find(|m| m.leader).map(|m| m.node.clone());
    let leader = || leader.clone().ok_or_else(|| nobody("the etcd leader", "no member leads"));
    // A process that only control planes run is looked for among those that do.
    let process = drill.fault.process().filter(|process| process.of_control_plane());
    let runs_there = |node: &NodeName| process.is_none() || view.control_planes.contains(node);
    let followers = view.members.iter().filter(|m| !m.leader).map(|m| m.node.clone());
    let mut followers: Vec<NodeName> = followers.filter(runs_there).collect();
    let holder = |lease: &str, wanted| {
        view.lease_holders.get(lease).cloned().ok_or_else(|| nobody(wanted, "no holder of the lease is known"))
    };
    let drawn = format!("drawn with seed {seed}");
    let (nodes, why) = match drill.target {
        Target::Leader => (vec![leader()?], "leads".to_owned()),
        Target::Follower => {
            if followers.is_empty() {
                return Err(nobody("a follower", "there is none"));
            }
            let one = followers.swap_remove(rng.random_range(0..followers.len()));
            (vec![one], format!("follows, {drawn}"))
        }
        Target::LeaderAndFollower => {
            followers.shuffle(&mut rng);
            let one = followers.into_iter().next().ok_or_else(|| nobody("a follower", "there is none"))?;
            (vec![leader()?, one], format!("the leader and a follower {drawn}"))
        }
        Target::TwoFollowers => {
            followers.shuffle(&mut rng);
            followers.truncate(2);
            if followers.len() < 2 {
                return Err(nobody("two followers", "there are fewer"));
            }
            (followers, drawn)
        }
        Target::Minority | Target::Majority => {
            // Of an even number, as there is while a member has joined and the next has not, half is as many as it takes.
            let spare = spare(members);
            let count = if drill.target == Target::Majority { spare + 1 } else { spare };
            if count == 0 {
                return Err(nobody("a minority", &format!("of {members} members none can go without losing quorum")));
            }
            let mut all: Vec<NodeName> = view.members.iter().map(|m| m.node.clone()).collect();
            all.shuffle(&mut rng);
            all.truncate(count);
            all.sort();
            (all, format!("{count} of {members} members, {drawn}"))
        }
        Target::AllMembers => (view.members.iter().map(|m| m.node.clone()).collect(), "all members".to_owned()),
        Target::ControllerManagerHolder => {
            (vec![holder("kube-controller-manager", "the active controller-manager")?], "holds the lease".to_owned())
        }
        Target::SchedulerHolder => (vec![holder("kube-scheduler", "the active scheduler")?], "holds the lease".to_owned()),
        Target::VipHolder => {
            let seen = "no controller carries it, or it could not be found out";
            let node = view.vip_holder.clone().ok_or_else(|| nobody("the holder of the virtual address", seen))?;
            (vec![node], "carries the virtual address".to_owned())
        }
        Target::Worker | Target::BusiestWorker => {
            let mut ready: Vec<&WorkerView> = view.workers.iter().filter(|w| w.ready).collect();
            ready.shuffle(&mut rng);
            let one = if drill.target == Target::BusiestWorker {
                ready.iter().copied().max_by_key(|w| w.pods)
            } else {
                ready.first().copied()
            };
            let one = one.ok_or_else(|| nobody("a worker that is Ready", "there is none"))?;
            let why = if drill.target == Target::BusiestWorker { format!("has most pods ({})", one.pods) } else { drawn };
            (vec![one.node.clone()], why)
        }
        Target::Everything => {
            let members = view.members.iter().map(|m| m.node.clone());
            (members.chain(view.workers.iter().map(|w| w.node.clone())).collect(), "every machine".to_owned())
        }
    };
    // It would be refused by systemd in the middle, and the heal, which starts it, by the same word for ever.
    if let (Some(process), Some(node)) = (process, nodes.iter().find(|node| !runs_there(node))) {
        let there = match view.control_planes.as_slice() {
            [] => "no node of this cluster".to_owned(),
            all => all.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(", "),
        };
        return Err(NoTarget::NotThere { drill: drill.name.clone(), process, node: node.clone(), there });
    }
    Ok(Chosen { nodes, why })
}

/// Why a cluster cannot be drilled now: a sick cluster would make every figure meaningless.
pub fn unfit(view: &ClusterView) -> Option<String> {
    let silent: Vec<String> = view.members.iter().filter(|m| !m.reachable).map(|m| m.node.to_string()).collect();
    if !silent.is_empty() {
        return Some(format!("{} does not answer", silent.join(", ")));
    }
    match view.members.iter().filter(|m| m.leader).count() {
        1 => None,
        0 => Some("no etcd member leads".to_owned()),
        n => Some(format!("{n} etcd members say that they lead")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::find;
    use super::*;

    fn view(members: u8) -> ClusterView {
        let member = |i| MemberView {
            node: NodeName::controller(i),
            id: Id(u64::from(i) + 1),
            leader: i == 1,
            term: 2,
            reachable: true,
            db_bytes: 0,
        };
        let worker = |i, pods| WorkerView { node: NodeName::worker(i), ready: true, pods };
        ClusterView {
            members: (0..members).map(member).collect(),
            control_planes: (0..members.min(3)).map(NodeName::controller).collect(),
            workers: vec![worker(0, 3), worker(1, 9)],
            vip_holder: Some(NodeName::controller(2)),
            ..ClusterView::default()
        }
    }

    fn chosen(drill: &str, view: &ClusterView, seed: u64) -> Result<Vec<String>, String> {
        let drill = find(drill).expect("there");
        let names = |c: Chosen| c.nodes.iter().map(|n| n.to_string()).collect();
        choose(&drill, view, seed).map(names).map_err(|e| e.to_string())
    }

    #[test]
    fn rules_pick_what_they_say() {
        let view = view(3);
        assert_eq!(chosen("leader-kill", &view, 1).expect("one"), ["controller-1"]);
        assert_eq!(chosen("apiserver-kill", &view, 1).expect("one"), ["controller-2"]);
        assert_eq!(chosen("kubelet-stop", &view, 1).expect("one"), ["worker-1"]);
        assert_eq!(chosen("split-all", &view, 1).expect("all").len(), 3);
        assert_eq!(chosen("blackout", &view, 1).expect("all").len(), 5);
        for seed in 0..20 {
            assert_ne!(chosen("follower-kill", &view, seed).expect("one"), ["controller-1"]);
            assert_eq!(chosen("quorum-loss", &view, seed).expect("two").len(), 2);
            let pair = chosen("bridge", &view, seed).expect("two");
            assert!(pair[0] == "controller-1" && pair[1] != "controller-1", "{pair:?}");
            assert!(!chosen("bridge-followers", &view, seed).expect("two").contains(&"controller-1".to_owned()));
        }
    }

    #[test]
    fn a_seed_repeats_its_choice_and_seeds_differ() {
        let view = view(5);
        let picks: Vec<_> = (0..40).map(|seed| chosen("quorum-loss", &view, seed).expect("three")).collect();
        let again: Vec<_> = (0..40).map(|seed| chosen("quorum-loss", &view, seed).expect("three")).collect();
        assert_eq!(picks, again);
        assert!(picks.iter().any(|pick| pick != &picks[0]));
    }

    /// One more of them than can go without losing quorum, and no more: the least that loses it.
    #[test]
    fn a_majority_is_as_many_as_it_takes_to_lose_quorum() {
        let mut drill = find("quorum-loss").expect("there");
        drill.min_members = 1;
        for (members, gone) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)] {
            let chosen = choose(&drill, &view(members), 7).expect("some");
            assert_eq!(chosen.nodes.len(), gone, "of {members}");
            assert_eq!(chosen.why, format!("{gone} of {members} members, drawn with seed 7"));
        }
    }

    /// Of an odd number it is everybody together with the majority; the seed alone says who is in it.
    #[test]
    fn a_minority_is_what_can_go_and_the_seed_draws_it() {
        let mut drill = find("follower-kill").expect("there");
        (drill.target, drill.min_members) = (Target::Minority, 1);
        let of = |members, seed| choose(&drill, &view(members), seed).map(|chosen| chosen.nodes);
        for (members, gone) in [(3, 1), (4, 1), (5, 2), (7, 3)] {
            let picks: Vec<_> = (0..40).map(|seed| of(members, seed).expect("some")).collect();
            assert!(picks.iter().all(|pick| pick.len() == gone), "{members}: {picks:?}");
            assert_eq!(picks, (0..40).map(|seed| of(members, seed).expect("some")).collect::<Vec<_>>());
            assert!(picks.iter().any(|pick| pick != &picks[0]));
            let leader = NodeName::controller(1);
            assert!(picks.iter().any(|pick| pick.contains(&leader)) && picks.iter().any(|pick| !pick.contains(&leader)));
        }
        for members in [1, 2] {
            let error = of(members, 1).expect_err("none can go").to_string();
            assert!(error.contains(&format!("a minority, and of {members} members none can go")), "{error}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let error = chosen("leader-kill", &view(1), 1).expect_err("one member");
        assert_eq!(error, "leader-kill needs 3 etcd members, the cluster has 1");
        let none = ClusterView { workers: vec![], ..view(3) };
        assert_eq!(chosen("kubelet-stop", &none, 1).expect_err("none"), "kubelet-stop needs 1 worker, the cluster has 0");
        let headless = ClusterView { vip_holder: None, ..view(3) };
        assert!(chosen("apiserver-kill", &headless, 1).expect_err("no holder").contains("virtual address"));
    }

    /// With three members and one API server, two of three controllers have none to kill.
    #[test]
    fn a_process_is_hit_where_it_runs_or_the_drill_is_refused() {
        let one = ClusterView { control_planes: vec![NodeName::controller(0)], ..view(3) };
        for drill in ["apiserver-kill", "lease-holder-kill", "control-plane-power-off"] {
            let error = chosen(drill, &one, 1).expect_err("one control plane");
            assert!(error.contains("needs 2 control planes, the cluster has 1"), "{error}");
        }
        let mut kill = find("apiserver-kill").expect("there");
        (kill.min_control_planes, kill.target) = (1, Target::Follower);
        for seed in 0..10 {
            let chosen = choose(&kill, &one, seed).expect("the follower that has one");
            assert_eq!(chosen.nodes, [NodeName::controller(0)]);
        }
        kill.target = Target::Leader;
        let error = choose(&kill, &one, 1).expect_err("the leader has none").to_string();
        assert_eq!(error, "apiserver-kill hits kube-apiserver on controller-1, where none runs; it runs on controller-0");
        kill.target = Target::AllMembers;
        assert!(matches!(choose(&kill, &one, 1), Err(NoTarget::NotThere { .. })));
        let bare = ClusterView { control_planes: vec![], ..view(3) };
        kill.min_control_planes = 0;
        assert!(choose(&kill, &bare, 1).expect_err("no Kubernetes").to_string().contains("no node of this cluster"));
    }

    /// A user's drill that says nothing of members is still not run where its fault cannot be.
    #[test]
    fn a_fault_needs_its_members_whatever_the_drill_says() {
        for (name, needs) in [("isolate-leader", 2), ("move-leader", 2), ("leader-flap", 3), ("replace-member", 3)] {
            let mut drill = find(name).expect("there");
            drill.min_members = 1;
            let error = choose(&drill, &view(needs - 1), 1).expect_err("too few").to_string();
            assert_eq!(error, format!("{name} needs {needs} etcd members, the cluster has {}", needs - 1));
            if needs == 3 {
                assert!(choose(&drill, &view(3), 1).is_ok());
            }
        }
    }

    #[test]
    fn a_sick_cluster_is_unfit() {
        let mut sick = view(3);
        assert_eq!(unfit(&sick), None);
        sick.members[0].reachable = false;
        assert_eq!(unfit(&sick).expect("unfit"), "controller-0 does not answer");
        sick.members[0].reachable = true;
        sick.members[1].leader = false;
        assert!(unfit(&sick).expect("unfit").contains("no etcd member leads"));
    }
}
