//! Claims that are seen from outside, on records made by hand: each is proven by what it says, and by nothing less.
//! Faults that only machines can have are proven by the same claims, so this is where those are shown to be able to fail.

use super::act::Claim;
use super::catalogue::Target;
use super::clock::At;
use super::injector::ProcessSeen;
use super::judge::{Result, judge};
use super::record::Record;
use super::sample::leader_kill;
use super::target::Id;
use crate::event::Verdict;
use crate::spec::NodeName;

/// The sample, in which member 0 was killed and member 1 led afterwards, with one claim alone.
#[track_caller]
fn proven(claim: Claim, change: impl FnOnce(&mut Record)) {
    let (v1, came) = came(claim.clone(), change);
    assert_eq!((v1, came), (Verdict::Pass, Result::Pass), "{claim}");
}

/// All else is as good as ever: without its proof it must be invalid, and neither green nor a failure of the cluster.
#[track_caller]
fn not_proven(claim: Claim, change: impl FnOnce(&mut Record)) {
    let (v1, came) = came(claim.clone(), change);
    assert_eq!((v1, came), (Verdict::Unknown, Result::Invalid), "{claim}");
}

fn came(claim: Claim, change: impl FnOnce(&mut Record)) -> (Verdict, Result) {
    let mut record = leader_kill();
    record.script.claims = vec![claim];
    change(&mut record);
    let judgement = judge(&record);
    let v1 = judgement.checks.iter().find(|check| check.id == "V1").expect("it is always judged");
    (v1.verdict, judgement.result)
}

fn node(i: u8) -> NodeName {
    NodeName::controller(i)
}

#[test]
fn a_leader_has_moved_when_another_led_after_the_fault() {
    proven(Claim::LeaderMoved { from: node(0) }, |_| ());
    // The one that leads is the one that was asked to hand over.
    not_proven(Claim::LeaderMoved { from: node(1) }, |_| ());
    // Another led, and before anybody was asked.
    not_proven(Claim::LeaderMoved { from: node(0) }, |r| {
        let (inject, heal) = (r.marks.inject, r.marks.heal);
        for sample in r.samples.iter_mut().filter(|sample| sample.at < inject) {
            sample.status.as_mut().expect("it answers").leader = Id(2);
        }
        // Seen without a break, it is the same leadership.
        for sample in r.samples.iter_mut().filter(|sample| sample.at >= inject && sample.at < heal) {
            sample.status.iter_mut().for_each(|status| status.leader = Id(2));
        }
        r.drill.expect = super::catalogue::Expect::default();
    });
}

#[test]
fn elections_are_counted_by_their_terms_from_the_fault_on() {
    proven(Claim::Elections { times: 1 }, |_| ());
    not_proven(Claim::Elections { times: 2 }, |_| ());
    // Twice the same term is one election.
    not_proven(Claim::Elections { times: 2 }, |r| {
        let marks = r.marks;
        r.samples.retain(|sample| sample.member != 1 || sample.at < marks.settled || sample.at > marks.settled.plus(SECOND));
    });
}

/// The sample, in which nobody leads any more until the heal.
fn leaderless(r: &mut Record) {
    let marks = r.marks;
    for sample in r.samples.iter_mut().filter(|sample| sample.at > marks.inject && sample.sent <= marks.heal) {
        sample.status.iter_mut().for_each(|status| status.leader = Id(0));
    }
    r.drill.expect = super::catalogue::Expect::default();
}

/// What the heal brings about is no sign of the fault.
#[test]
fn an_election_after_the_heal_proves_nothing() {
    not_proven(Claim::LeaderMoved { from: node(0) }, leaderless);
    not_proven(Claim::Elections { times: 1 }, leaderless);
}

/// Member 1 followed in term 2: for a moment it says that it leads in it, and commits nothing.
#[test]
fn a_leadership_in_a_term_of_another_proves_nothing() {
    let brief = |r: &mut Record| {
        leaderless(r);
        let within = At(3_200_000)..At(3_400_000);
        for sample in r.samples.iter_mut().filter(|sample| sample.member == 1 && within.contains(&sample.sent)) {
            let status = sample.status.as_mut().expect("it answers");
            (status.leader, status.term, status.index) = (Id(2), 2, 3100);
        }
    };
    not_proven(Claim::LeaderMoved { from: node(0) }, brief);
    not_proven(Claim::Elections { times: 1 }, brief);
}

const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

#[test]
fn an_alarm_is_raised_when_a_member_lists_it_while_the_fault_is_in_force() {
    let claim = || Claim::Alarm { name: "NOSPACE".to_owned() };
    let complains = |r: &mut Record, complaint: &str, during: bool| {
        let marks = r.marks;
        let within = |sample: &super::record::Sample| sample.at > marks.inject && sample.at < marks.heal;
        for sample in r.samples.iter_mut().filter(|sample| sample.member == 2 && within(sample) == during) {
            sample.status.as_mut().expect("it answers").errors = vec![complaint.to_owned()];
        }
    };
    proven(claim(), |r| complains(r, "memberID:3 alarm:NOSPACE ", true));
    not_proven(claim(), |_| ());
    not_proven(claim(), |r| complains(r, "memberID:3 alarm:CORRUPT ", true));
    not_proven(claim(), |r| complains(r, "memberID:3 alarm:NOSPACE ", false));
}

#[test]
fn a_member_is_another_when_its_id_is() {
    let claim = || Claim::NewIdentity { node: node(0) };
    proven(claim(), |r| r.after.ids[0] = Some(Id(77)));
    not_proven(claim(), |_| ());
    not_proven(claim(), |r| r.after.ids[1] = Some(Id(77)));
    not_proven(claim(), |r| r.after.ids[0] = None);
    not_proven(claim(), |r| r.after.ids.clear());
}

#[test]
fn members_were_restarted_when_each_process_is_a_new_one() {
    let claim = |nodes: &[NodeName]| Claim::Restarted { nodes: nodes.to_vec() };
    proven(claim(&[node(0)]), |_| ());
    // The others live on, as bystanders do.
    not_proven(claim(&[node(0), node(1)]), |_| ());
    not_proven(claim(&[]), |_| ());
    not_proven(claim(&[node(3)]), |_| ());
}

/// A fault is that of the drill when it hits whom the drill says: the leader that was chosen may have been another by then.
#[test]
fn whoever_is_hit_is_what_the_rule_says_when_the_fault_comes() {
    let claim = || Claim::Elections { times: 1 };
    // Elected without a fault, a moment before it.
    let moved = |r: &mut Record| {
        let inject = r.marks.inject;
        for sample in r.samples.iter_mut().filter(|sample| sample.sent >= At(1_500_000) && sample.sent < inject) {
            sample.status.as_mut().expect("it answers").leader = Id(2);
        }
    };
    not_proven(claim(), moved);
    let mut record = leader_kill();
    moved(&mut record);
    let reasons = judge(&record).reasons;
    let told = "not shown: just before the fault controller-0 no longer leads, controller-1 does";
    assert!(reasons.iter().any(|reason| reason.starts_with("V1") && reason.contains(told)), "{reasons:?}");
    // Nothing was heard from it when the fault came: nobody knows what it was.
    not_proven(claim(), |r| r.samples.retain(|sample| sample.member != 0 || sample.sent < At(1_400_000)));

    let hit = |target, i| move |r: &mut Record| (r.drill.target, r.chosen.nodes) = (target, vec![node(i)]);
    proven(claim(), hit(Target::Follower, 2));
    not_proven(claim(), hit(Target::Follower, 0));
    not_proven(claim(), hit(Target::Leader, 2));
    proven(claim(), hit(Target::AllMembers, 2));
    for holder in [Some(node(2)), Some(node(1)), None] {
        let is_it = holder == Some(node(2));
        let carries = |r: &mut Record| {
            hit(Target::VipHolder, 2)(r);
            r.before.vip_holder = holder;
        };
        if is_it { proven(claim(), carries) } else { not_proven(claim(), carries) }
    }
}

/// What is not known to have been restarted has not been.
#[test]
fn a_process_that_was_not_seen_is_no_new_one() {
    for blind in [0, 1] {
        not_proven(Claim::Restarted { nodes: vec![node(0)] }, |r| {
            let seen = if blind == 0 { &mut r.incarnations } else { &mut r.after.incarnations };
            seen[0] = None;
        });
    }
}

#[test]
fn a_machine_has_booted_when_its_boot_is_another() {
    let claim = || Claim::Booted { node: node(0) };
    let starts = |r: &mut Record, before: Option<&str>, after: Option<&str>| {
        r.incarnations[0] = before.map(str::to_owned);
        r.after.incarnations[0] = after.map(str::to_owned);
    };
    proven(claim(), |r| starts(r, Some("boot-1 start-1"), Some("boot-2 start-2")));
    // The process is a new one, and the machine was never without power.
    not_proven(claim(), |r| starts(r, Some("boot-1 start-1"), Some("boot-1 start-2")));
    for (before, after) in [(None, Some("boot-2 start-2")), (Some("boot-1 start-1"), None), (Some(""), Some("boot-2 start-2"))] {
        not_proven(claim(), |r| starts(r, before, after));
    }
    not_proven(Claim::Booted { node: node(3) }, |_| ());
}

/// A worker has no member: its kubelet tells.
#[test]
fn a_worker_has_booted_when_its_kubelet_is_of_another_boot() {
    let worker = NodeName::worker(0);
    let kubelet =
        |incarnation: &str| ProcessSeen { node: worker.clone(), name: "kubelet".to_owned(), incarnation: incarnation.to_owned() };
    let lived = |r: &mut Record, before: &str, after: &str| {
        // What is hit may restart; a leader is nobody's worker.
        r.chosen.nodes.push(worker.clone());
        r.drill.target = Target::Worker;
        r.processes.as_mut().expect("seen").push(kubelet(before));
        r.after.processes.as_mut().expect("seen").push(kubelet(after));
    };
    let claim = || Claim::Booted { node: worker.clone() };
    proven(claim(), |r| lived(r, "boot-1 start-1", "boot-2 start-2"));
    not_proven(claim(), |r| lived(r, "boot-1 start-1", "boot-1 start-2"));
    not_proven(claim(), |_| ());
}
