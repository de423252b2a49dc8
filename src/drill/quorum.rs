//! What a quorum is, and which members a fault leaves without one.
//! `invariants` asks who may acknowledge nothing (I9), `target` how many members are to be hit.
//! It is pure and takes a script at its word, as V1 has looked whether it came true; in doubt a member still reaches the others.

use super::act::{Act, Claim, Direction};
use super::catalogue::{Ports, Process};
use super::history::Member;
use super::script::Script;
use crate::spec::NodeName;
use std::collections::BTreeSet;

/// So many of the members make a quorum.
pub fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// So many can go, and those that stay are still one.
pub fn spare(members: usize) -> usize {
    members.saturating_sub(quorum(members))
}

/// Members by which nothing can be acknowledged from the end of the injection to the heal, whatever the drill expects: all where
/// none of them reaches a quorum, and else those that run and reach neither one nor anybody who does.
///
/// Only what is claimed to last counts: members that go one after the other and come back, as they are restarted or killed again and
/// again, are never said to be away. One that is away beside a quorum is left out: that it is silent is for V1 to see.
pub fn without_quorum(script: &Script, members: &[NodeName]) -> BTreeSet<Member> {
    let at = |node: &NodeName| members.iter().position(|member| member == node);
    let away: BTreeSet<Member> = script.claims.iter().filter_map(kept_away).filter_map(at).collect();
    let dropped: BTreeSet<(Member, Member)> =
        script.inject.iter().flat_map(drops).filter_map(|(from, to)| Some((at(from)?, at(to)?))).collect();
    let runs = |member: &Member| !away.contains(member);
    // What is cut in one direction may still carry an answer in the other.
    let linked = |a: Member, b: Member| !(dropped.contains(&(a, b)) && dropped.contains(&(b, a)));
    let running: Vec<Member> = (0..members.len()).filter(runs).collect();
    let reached = |member: Member| running.iter().filter(|other| linked(member, **other)).count();
    let leaders: Vec<Member> = running.iter().copied().filter(|member| reached(*member) >= quorum(members.len())).collect();
    if leaders.is_empty() {
        return (0..members.len()).collect();
    }
    // Followers hand what they are asked on to the leader.
    running.into_iter().filter(|member| !leaders.iter().any(|leader| linked(*member, *leader))).collect()
}

/// The member that a claim says is not there, or stands still, for as long as the fault lasts.
fn kept_away(claim: &Claim) -> Option<&NodeName> {
    match claim {
        Claim::Down { node, process: Process::Etcd } | Claim::Paused { node, process: Process::Etcd } => Some(node),
        Claim::Suspended { node } | Claim::PoweredOff { node } => Some(node),
        _ => None,
    }
}

/// From whom to whom nothing comes any more of what members say to each other.
fn drops(act: &Act) -> Vec<(&NodeName, &NodeName)> {
    let Act::Cut { node, rules } = act else { return vec![] };
    let of_peers = rules.iter().filter(|rule| rule.ports == Ports::Peer);
    of_peers
        .filter_map(|rule| {
            let peer = rule.peer.as_ref()?;
            Some(match rule.direction {
                Direction::In => (peer, node),
                Direction::Out => (node, peer),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::bound::Timing;
    use super::super::catalogue::{Fault, NoAcks, Shape, Target, built_in};
    use super::super::clock::At;
    use super::super::history::Outcome;
    use super::super::invariants::i9_no_acks;
    use super::super::record::Record;
    use super::super::sample::leader_kill;
    use super::super::script::script;
    use super::super::windows::Gap;
    use super::*;
    use crate::event::Verdict;
    use std::time::Duration;

    const NOBODY: [Member; 0] = [];

    fn nodes(count: usize) -> Vec<NodeName> {
        (0..).take(count).map(NodeName::controller).collect()
    }

    fn compiled(fault: &Fault, hit: &[usize], members: usize) -> Script {
        let all = nodes(members);
        let targets: Vec<NodeName> = hit.iter().map(|member| all[*member].clone()).collect();
        script(fault, &targets, &all, &Timing::native(), "")
    }

    /// Who is without a quorum of so many members when these are hit.
    fn without(fault: &Fault, hit: &[usize], members: usize) -> Vec<Member> {
        without_quorum(&compiled(fault, hit, members), &nodes(members)).into_iter().collect()
    }

    #[test]
    fn a_quorum_is_more_than_half_and_the_others_are_spare() {
        for (members, needed, can_go) in [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 3, 2), (7, 4, 3)] {
            assert_eq!((quorum(members), spare(members)), (needed, can_go), "{members}");
        }
        assert_eq!(spare(0), 0);
    }

    #[test]
    fn a_quorum_that_is_kept_away_leaves_nobody() {
        let process = Process::Etcd;
        for fault in
            [Fault::Kill { process }, Fault::Stop { process }, Fault::Pause { process }, Fault::Freeze {}, Fault::PowerOff {}]
        {
            let without = |hit: &[usize], members| without(&fault, hit, members);
            assert_eq!(without(&[0, 2], 3), [0, 1, 2], "{fault:?}");
            assert_eq!(without(&[1, 2], 4), [0, 1, 2, 3], "{fault:?}: half of an even number is enough");
            assert_eq!(without(&[0, 1, 2], 5), [0, 1, 2, 3, 4], "{fault:?}");
            assert_eq!((without(&[0], 1), without(&[1], 2)), (vec![0], vec![0, 1]), "{fault:?}");
            for (hit, members) in [(&[1][..], 3), (&[3][..], 4), (&[0, 4][..], 5)] {
                assert_eq!(without(hit, members), NOBODY, "{fault:?} on {hit:?} of {members}");
            }
        }
        let servers = Fault::Kill { process: Process::KubeApiserver };
        assert_eq!(without(&servers, &[0, 1, 2], 3), NOBODY, "etcd runs on");
        let worker = script(&Fault::PowerOff {}, &[NodeName::worker(0)], &nodes(1), &Timing::native(), "");
        assert!(without_quorum(&worker, &nodes(1)).is_empty());
    }

    #[test]
    fn who_is_cut_off_is_without_and_who_is_heard_may_not_be() {
        let cut = |shape| Fault::Cut { shape, ports: Ports::Peer };
        assert_eq!(without(&cut(Shape::Isolate), &[1], 3), [1], "the others elect");
        assert_eq!(without(&cut(Shape::Isolate), &[1, 3], 5), [1, 3]);
        assert_eq!(without(&cut(Shape::Isolate), &[0, 1], 3), [0, 1, 2], "each of them is alone");
        assert_eq!(without(&cut(Shape::SplitAll), &[0, 1, 2], 3), [0, 1, 2]);
        for shape in [Shape::Deaf, Shape::Mute, Shape::Bridge] {
            assert_eq!(without(&cut(shape), &[0, 1], 3), NOBODY, "{shape:?}");
        }
        assert_eq!(without(&cut(Shape::Bridge), &[0, 1], 2), [0, 1], "nobody hears both");
        let clients = Fault::Cut { shape: Shape::Isolate, ports: Ports::Client };
        assert_eq!(without(&clients, &[0, 1, 2], 3), NOBODY, "the members hear each other");
    }

    /// They come back one by one while the fault goes on, or answer in some other way.
    #[test]
    fn what_does_not_keep_members_away_leaves_them_a_quorum() {
        let all = [0, 1, 2];
        for (fault, hit) in [
            (Fault::RollingRestart {}, &all[..]),
            (Fault::Flap { times: 20 }, &all[..1]),
            (Fault::MoveLeader {}, &all[..1]),
            (Fault::StallDisk {}, &all[..]),
            (Fault::FillQuota { room_mib: 16 }, &all[..]),
            (Fault::ReplaceMember {}, &all[..1]),
            (Fault::SkewClock { seconds: 600 }, &all[..]),
            (Fault::ExpireCert { seconds: 5 }, &all[..]),
            (Fault::Slow { delay_ms: 200, jitter_ms: 0, loss_percent: 0 }, &all[..]),
        ] {
            assert_eq!(without(&fault, hit, 3), NOBODY, "{fault:?}");
        }
        assert_eq!(without(&Fault::Restore {}, &all, 3), all);
    }

    /// Nothing is judged of the catalogue's drills that they did not demand themselves.
    #[test]
    fn the_catalogue_demands_of_its_own_what_is_demanded_of_all() {
        for drill in built_in().expect("parses") {
            for members in 3..=5 {
                let hit = match drill.target {
                    Target::Majority => spare(members) + 1,
                    Target::AllMembers | Target::Everything => members,
                    Target::LeaderAndFollower | Target::TwoFollowers => 2,
                    _ => 1,
                };
                let hit: Vec<Member> = (0..hit).collect();
                let demanded: Vec<Member> = match drill.expect.no_acks {
                    Some(NoAcks::Anywhere) => (0..members).collect(),
                    Some(NoAcks::Targets) => hit.clone(),
                    None => vec![],
                };
                let without = without(&drill.fault, &hit, members);
                assert!(without.iter().all(|member| demanded.contains(member)), "{} of {members}: {without:?}", drill.name);
                if ["quorum-loss", "blackout", "split-all", "disaster-restore"].contains(&drill.name.as_str()) {
                    assert_eq!(without.len(), members, "{}", drill.name);
                }
            }
        }
    }

    /// The sample, in which members 1 and 2 acknowledge from 3.2 s on and the heal is at 5.0 s, as one of another fault. Its drill
    /// demands nothing.
    fn i9(fault: &Fault, hit: &[usize], change: impl FnOnce(&mut Record)) -> Option<(Verdict, String)> {
        let mut record = leader_kill();
        assert_eq!(record.drill.expect.no_acks, None);
        record.script = compiled(fault, hit, 3);
        record.chosen.nodes = hit.iter().map(|member| record.members[*member].node.clone()).collect();
        change(&mut record);
        i9_no_acks(&record).map(|check| (check.verdict, check.title))
    }

    fn verdict(judged: &Option<(Verdict, String)>) -> Option<Verdict> {
        judged.as_ref().map(|(verdict, _)| *verdict)
    }

    #[test]
    fn nothing_may_be_acknowledged_without_a_quorum_though_no_drill_demands_it() {
        let kill = Fault::Kill { process: Process::Etcd };
        let found = i9(&kill, &[0, 1], |_| ());
        let title = "no write is acknowledged without a majority";
        assert_eq!(found, Some((Verdict::Fail, title.to_owned())));
        // What the drill demands comes to it, and takes nothing away.
        let asked = i9(&kill, &[0, 1], |r| r.drill.expect.no_acks = Some(NoAcks::Targets));
        assert_eq!(asked, Some((Verdict::Fail, title.to_owned())));
        let quiet = |r: &mut Record| {
            let (from, to) = (r.marks.injected, r.marks.heal);
            r.ops.iter_mut().filter(|op| op.inv > from && op.inv < to).for_each(|op| op.outcome = Outcome::Unknown);
        };
        assert_eq!(verdict(&i9(&kill, &[0, 1], quiet)), Some(Verdict::Pass));
        assert_eq!(verdict(&i9(&kill, &[0, 1], |r| r.ops.clear())), Some(Verdict::Unknown), "nobody tried");
        assert_eq!(i9(&kill, &[0], |_| ()), None, "two of three are a quorum");
        let whole = Fault::Cut { shape: Shape::SplitAll, ports: Ports::Peer };
        assert_eq!(verdict(&i9(&whole, &[0, 1, 2], |_| ())), Some(Verdict::Fail));
    }

    #[test]
    fn a_member_that_is_cut_off_may_acknowledge_nothing_and_the_others_may() {
        let cut = Fault::Cut { shape: Shape::Isolate, ports: Ports::Peer };
        let fine = i9(&cut, &[0], |_| ()).expect("judged");
        assert_eq!(fine, (Verdict::Pass, "no write is acknowledged by a member that cannot reach a majority".to_owned()));
        let acked = i9(&cut, &[0], |r| {
            let tried = r.ops.iter_mut().find(|op| op.member == 0 && op.inv > At(3_000_000)).expect("there is one");
            tried.outcome = Outcome::Ok;
        });
        assert_eq!(verdict(&acked), Some(Verdict::Fail));
    }

    /// One that was under way when the fault began comes late also because this computer did not run.
    #[test]
    fn an_acknowledgement_that_waited_for_the_observer_was_in_time() {
        let quorum = Fault::Pause { process: Process::Etcd };
        let late = |stalled_ms: u64| {
            let judged = i9(&quorum, &[0, 1], |r| {
                let (injected, heal) = (r.marks.injected, r.marks.heal);
                r.ops.retain(|op| op.inv < injected || op.inv > heal || !op.acked());
                let under_way = r.ops.iter_mut().rfind(|op| op.acked() && op.inv < injected).expect("there is one");
                under_way.ret = injected.plus(Duration::from_millis(600));
                let from = injected.plus(Duration::from_millis(50));
                r.stalls.push(Gap { from, to: from.plus(Duration::from_millis(stalled_ms)) });
            });
            verdict(&judged)
        };
        assert_eq!(late(0), Some(Verdict::Fail));
        assert_eq!(late(300), Some(Verdict::Fail), "half of it was the cluster's");
        assert_eq!(late(450), Some(Verdict::Pass));
    }
}
