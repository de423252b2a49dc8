//! The judge on a record that is fine, and on the same record with one thing wrong at a time: each is found, by its name.

use super::clock::At;
use super::history::Outcome;
use super::judge::{Judgement, Result, judge};
use super::record::{LogSource, Record};
use super::sample::leader_kill;
use super::target::Id;
use super::windows::Gap;
use crate::event::Verdict;
use std::time::Duration;

fn judged(change: impl FnOnce(&mut Record)) -> Judgement {
    let mut record = leader_kill();
    change(&mut record);
    judge(&record)
}

/// Which checks did not pass.
fn odd(judgement: &Judgement) -> Vec<(String, Verdict)> {
    let odd = judgement.checks.iter().filter(|check| check.verdict != Verdict::Pass);
    odd.map(|check| (check.id.clone(), check.verdict)).collect()
}

#[track_caller]
fn comes_out(result: Result, check: &str, verdict: Verdict, change: impl FnOnce(&mut Record)) {
    let judgement = judged(change);
    assert!(odd(&judgement).contains(&(check.to_owned(), verdict)), "{check}: {:?}", odd(&judgement));
    assert_eq!(judgement.result, result, "{check}: {:?}", judgement.reasons);
    assert!(judgement.reasons.iter().any(|reason| reason.starts_with(check)), "{check}: {:?}", judgement.reasons);
}

#[test]
fn a_good_run_passes_with_the_figures_it_was_made_with() {
    let judgement = judged(|_| ());
    assert_eq!((odd(&judgement), judgement.result), (vec![], Result::Pass), "{:?}", judgement.reasons);
    let figures = &judgement.figures;
    // From the last acknowledgement at 1.955 s to the first at 3.205 s.
    assert_eq!(figures.longest_write_gap.length(), Duration::from_millis(1250) - Duration::from_micros(30));
    assert_eq!(figures.time_to_new_leader_us, Some(1_200_500));
    assert_eq!(figures.time_to_full_membership_us, Some(305_010));
    assert_eq!((figures.lost_acknowledged_writes, figures.new_leader_is.as_deref()), (Some(0), Some("controller-1")));
    assert_eq!(judgement.etcd_version, "3.6.16");
}

#[test]
fn what_is_not_proven_is_invalid() {
    use Result::Invalid;
    use Verdict::Unknown;
    comes_out(Invalid, "V1", Unknown, |r| r.looked.clear());
    comes_out(Invalid, "V1", Unknown, |r| r.looked.retain(|look| !look.still));
    comes_out(Invalid, "V1", Unknown, |r| r.looked.iter_mut().for_each(|look| look.proof.held = false));
    // The injector swears, and the member goes on answering.
    comes_out(Invalid, "V1", Unknown, |r| {
        let alive = r.samples[0].clone();
        for sample in r.samples.iter_mut().filter(|s| s.status.is_none()) {
            sample.status.clone_from(&alive.status);
            let status = sample.status.as_mut().expect("just set");
            (status.leader, status.revision) = (Id(2), (sample.sent.0 / 1000) as i64);
        }
    });
    comes_out(Invalid, "V2", Unknown, |r| r.baseline.acked = 9);
    comes_out(Invalid, "V2", Unknown, |r| {
        let marks = r.marks;
        r.ops.retain(|op| op.inv < marks.inject || op.inv > marks.heal);
        let written: Vec<u64> = r.ops.iter().filter_map(|op| op.value).collect();
        for log in std::iter::once(&mut r.after.log).chain(r.watches.iter_mut().map(|watch| &mut watch.changes)) {
            log.retain(|change| written.contains(&change.value));
        }
    });
    comes_out(Invalid, "V2", Unknown, |r| r.stalls.push(Gap { from: At(2_500_000), to: At(4_000_000) }));
    assert_eq!(judged(|r| r.aborted = Some("the SSH connection was lost".to_owned())).result, Invalid);
}

#[test]
fn broken_promises_are_failures() {
    use Result::Fail;
    comes_out(Fail, "I1", Verdict::Fail, |r| {
        r.after.log.remove(20);
    });
    comes_out(Fail, "I2", Verdict::Fail, |r| {
        // Member 2 says for half a second that it leads in term 3, too.
        for sample in r.samples.iter_mut().filter(|s| s.member == 2 && (At(3_300_000)..At(3_800_000)).contains(&s.sent)) {
            sample.status.as_mut().expect("it answers").leader = Id(3);
        }
        r.samples.retain(|s| s.member != 2 || s.sent < At(3_200_000) || s.sent >= At(3_300_000));
    });
    comes_out(Fail, "I3", Verdict::Fail, |r| {
        let last = r.samples.iter_mut().rfind(|s| s.member == 1).expect("it is sampled");
        last.status.as_mut().expect("it answers").term = 2;
    });
    comes_out(Fail, "I4", Verdict::Fail, |r| {
        // The first write after the outage claims a revision from before it.
        let early = r.ops[0].clone();
        let late = r.ops.iter_mut().find(|op| op.inv > At(3_500_000) && op.acked()).expect("there is one");
        let (value, answer) = (late.value, early.answer);
        late.answer = answer;
        for log in std::iter::once(&mut r.after.log).chain(r.watches.iter_mut().map(|w| &mut w.changes)) {
            log.retain(|change| Some(change.value) != value && Some(change.value) != early.value);
            log.insert(
                0,
                super::history::Change {
                    revision: answer.map_or(0, |a| a.revision),
                    key: "failover".to_owned(),
                    value: value.unwrap_or(0),
                },
            );
        }
        r.ops.remove(0);
    });
    comes_out(Fail, "I5", Verdict::Fail, |r| r.after.hashes[1].hash = Ok((0xbad, 1)));
    comes_out(Fail, "I6", Verdict::Fail, |r| r.after.lists[2].as_mut().expect("a list")[0].learner = true);
    comes_out(Fail, "I7", Verdict::Fail, |r| r.after.alarming_logs = Ok(vec!["panic: tocommit is out of range".to_owned()]));
    comes_out(Fail, "I8", Verdict::Fail, |r| {
        let settled = r.marks.settled;
        for op in r.ops.iter_mut().filter(|op| op.member == 2 && op.inv >= settled) {
            op.outcome = Outcome::Unknown;
            op.answer = None;
        }
    });
    comes_out(Fail, "I9", Verdict::Fail, |r| r.drill.expect.no_acks = Some(super::catalogue::NoAcks::Anywhere));
    comes_out(Fail, "I10", Verdict::Fail, |r| {
        r.watches[1].changes.remove(40);
    });
    comes_out(Fail, "I10", Verdict::Fail, |r| r.watches[1].changes.swap(40, 41));
    comes_out(Fail, "healed", Verdict::Fail, |r| {
        let node = r.members[0].node.clone();
        let undo = super::act::Act::Uncut { node: node.clone() };
        r.after.leftovers = Ok(vec![super::injector::Leftover { node, what: "packet rules".to_owned(), undo }]);
    });
}

#[test]
fn a_missing_answer_is_never_a_pass() {
    use Result::Invalid;
    comes_out(Invalid, "I1", Verdict::Unknown, |r| r.after.log_source = LogSource::Missing("no member answered".to_owned()));
    comes_out(Invalid, "I5", Verdict::Unknown, |r| r.after.hashes[0].hash = Err("timed out".to_owned()));
    comes_out(Invalid, "I6", Verdict::Unknown, |r| r.after.lists[0] = Err("timed out".to_owned()));
    comes_out(Invalid, "I7", Verdict::Unknown, |r| r.after.alarms = Err("timed out".to_owned()));
    comes_out(Invalid, "healed", Verdict::Unknown, |r| r.after.leftovers = Err("SSH is down".to_owned()));
    // A watch that never caught up has not been seen to be complete.
    comes_out(Invalid, "I10", Verdict::Unknown, |r| r.watches[0].changes.truncate(50));
}

#[test]
fn gates_are_judged_and_waived_invariants_are_not() {
    use Result::Fail;
    comes_out(Fail, "write-gap", Verdict::Fail, |r| r.drill.expect.write_gap = "1 election".parse().ok());
    comes_out(Fail, "new-leader", Verdict::Fail, |r| r.drill.expect.new_leader = "1.1 s".parse().ok());
    comes_out(Fail, "membership", Verdict::Fail, |r| r.drill.expect.full_membership = "200 ms".parse().ok());
    comes_out(Fail, "leader", Verdict::Fail, |r| r.drill.expect.leader = Some(super::catalogue::LeaderFate::Stays));
    comes_out(Fail, "alarm", Verdict::Fail, |r| r.drill.expect.alarm = Some("NOSPACE".to_owned()));
    comes_out(Fail, "failed-writes", Verdict::Fail, |r| r.drill.expect.failed_writes = Some(0));
    let waived = judged(|r| {
        r.after.alarming_logs = Ok(vec!["panic: expected".to_owned()]);
        r.drill.expect.waive = vec!["I7".to_owned()];
    });
    assert_eq!(waived.result, Result::Pass, "{:?}", waived.reasons);
    // With five times the election timeout the same gap is well within the gate.
    let slow = judged(|r| {
        r.drill.expect.write_gap = "1 election".parse().ok();
        r.environment.timing.election_ms = 5000;
    });
    assert_eq!(slow.result, Result::Pass, "{:?}", slow.reasons);
}

#[test]
fn a_broken_promise_is_a_failure_even_when_the_fault_is_not_proven() {
    let judgement = judged(|r| {
        r.looked.clear();
        r.after.log.remove(20);
    });
    assert_eq!(judgement.result, Result::Fail, "{:?}", judgement.reasons);
}
