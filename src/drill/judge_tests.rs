//! The judge on a record that is fine, and on the same record with one thing wrong at a time: each is found, by its name.

use super::catalogue::Where;
use super::clock::At;
use super::history::{Change, Outcome};
use super::judge::{Judgement, Result, judge};
use super::judge_kube_tests::expect_all_of_the_api;
use super::record::{LogSource, Record};
use super::sample::leader_kill;
use super::target::Id;
use super::windows::Gap;
use crate::event::Verdict;
use std::time::Duration;

pub(super) fn judged(change: impl FnOnce(&mut Record)) -> Judgement {
    let mut record = leader_kill();
    change(&mut record);
    judge(&record)
}

/// Which checks did not pass.
pub(super) fn odd(judgement: &Judgement) -> Vec<(String, Verdict)> {
    let odd = judgement.checks.iter().filter(|check| check.verdict != Verdict::Pass);
    odd.map(|check| (check.id.clone(), check.verdict)).collect()
}

#[track_caller]
pub(super) fn comes_out(result: Result, check: &str, verdict: Verdict, change: impl FnOnce(&mut Record)) {
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
    // It began before the fault, and is the one that counts.
    assert_eq!(figures.gaps, 1);
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
    // Two writes of three were not even tried while the fault was in force: gaps would be the load's own.
    comes_out(Invalid, "V2", Unknown, |r| {
        let marks = r.marks;
        let mut n = 0;
        r.ops.retain(|op| {
            n += 1;
            op.acked() || op.inv < marks.inject || op.inv > marks.heal || n % 3 == 0
        });
        r.ops.retain(|op| op.member == 0 || op.inv < At(3_500_000) || op.inv > marks.heal || !op.acked());
        let written: Vec<u64> = r.ops.iter().filter_map(|op| op.value).collect();
        for log in std::iter::once(&mut r.after.log).chain(r.watches.iter_mut().map(|watch| &mut watch.changes)) {
            log.retain(|change| written.contains(&change.value));
        }
    });
    // Nobody asked whether it takes writes afterwards.
    comes_out(Invalid, "V2", Unknown, |r| {
        let heal = r.marks.heal;
        r.ops.retain(|op| op.inv < heal);
        let written: Vec<u64> = r.ops.iter().filter_map(|op| op.value).collect();
        for log in std::iter::once(&mut r.after.log).chain(r.watches.iter_mut().map(|watch| &mut watch.changes)) {
            log.retain(|change| written.contains(&change.value));
        }
        r.drill.expect.waive = ["I8", "membership", "first-write"].map(str::to_owned).to_vec();
    });
    // So slow before the fault that elections would come of themselves; the same is right for slower timers.
    comes_out(Invalid, "V2", Unknown, |r| r.baseline.p99 = Duration::from_millis(501));
    let emulated = judged(|r| {
        r.baseline.p99 = Duration::from_millis(1700);
        r.environment.timing.election_ms = 5000;
    });
    assert!(!odd(&emulated).iter().any(|(id, _)| id == "V2"), "{:?}", odd(&emulated));
    comes_out(Invalid, "V2", Unknown, |r| r.stalls.push(Gap { from: At(2_500_000), to: At(4_000_000) }));
    assert_eq!(judged(|r| r.aborted = Some("the SSH connection was lost".to_owned())).result, Invalid);
}

/// Writes that were never begun have no latency: limits would rest on the few that were. It is the host that did not let them begin.
#[test]
fn a_load_that_did_not_keep_half_its_pace_says_nothing() {
    // Four writers, a write each every 50 ms from 0.1 s on; the fault is at 2.0 s, the heal at 5.0 s.
    let with = |keep: &dyn Fn(u64) -> bool, baseline: &str| {
        let judgement = judged(|r| {
            r.drill.load.baseline = baseline.parse().expect("a bound");
            r.ops.retain(|op| keep(op.inv.0 / 1000));
            let written: Vec<u64> = r.ops.iter().filter_map(|op| op.value).collect();
            for log in std::iter::once(&mut r.after.log).chain(r.watches.iter_mut().map(|watch| &mut watch.changes)) {
                log.retain(|change| written.contains(&change.value));
            }
        });
        let v2 = judgement.checks.iter().find(|check| check.id == "V2").expect("always judged");
        (v2.verdict, judgement.result, v2.seen.clone())
    };
    let (half, ..) = with(&|ms| ms >= 2000 || (ms / 50).is_multiple_of(2), "2 s");
    assert_eq!(half, Verdict::Pass, "a busy host manages half");
    let slow = |keep: &dyn Fn(u64) -> bool, baseline: &str, told: &str| {
        let (verdict, result, seen) = with(keep, baseline);
        assert_eq!((verdict, result), (Verdict::Unknown, Result::Invalid), "{seen}");
        assert!(seen.contains(told) && seen.ends_with(super::gates::TOO_SLOW), "{seen}");
    };
    slow(&|ms| ms >= 2000 || (ms / 50).is_multiple_of(3), "2 s", "of some 152 writes that were due before, 52 were tried");
    slow(
        &|ms| !(2000..5000).contains(&ms) || (ms / 50).is_multiple_of(3),
        "2 s",
        "of some 240 writes that were due during, 80 were tried",
    );
    // One that recovered between its baseline, which is a second long, and the fault.
    slow(&|ms| ms >= 700, "0.5 s", "of some 80 writes that were due before, 32 were tried");
}

#[test]
fn broken_promises_are_failures() {
    use Result::Fail;
    comes_out(Fail, "I1", Verdict::Fail, |r| {
        r.after.log.remove(20);
    });
    // Everything is gone.
    comes_out(Fail, "I1", Verdict::Fail, |r| r.after.log.clear());
    comes_out(Fail, "I2", Verdict::Fail, |r| {
        // Member 2 followed in term 3, and then says for a second, committing, that it leads in it, too.
        for sample in r.samples.iter_mut().filter(|s| s.member == 2 && (At(3_300_000)..At(4_300_000)).contains(&s.sent)) {
            sample.status.as_mut().expect("it answers").leader = Id(3);
        }
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
    // Silently replaced: same name and address, another member; or one whose clients are sent elsewhere.
    let renamed = |r: &mut Record| r.after.lists.iter_mut().flatten().for_each(|list| list[2].id = Id(77));
    comes_out(Fail, "I6", Verdict::Fail, renamed);
    comes_out(Fail, "I6", Verdict::Fail, |r| {
        r.after.lists.iter_mut().flatten().for_each(|list| list[2].client_urls = vec!["https://10.0.0.99:2379".to_owned()]);
    });
    comes_out(Fail, "I6", Verdict::Fail, |r| {
        // The one that is replaced may be another afterwards, and nobody else.
        r.drill.fault = super::catalogue::Fault::ReplaceMember {};
        renamed(r);
    });
    for fault in [super::catalogue::Fault::ReplaceMember {}, super::catalogue::Fault::Restore {}] {
        let hit = judged(|r| {
            r.chosen.nodes = vec![r.members[2].node.clone()];
            r.drill.fault = fault.clone();
            renamed(r);
        });
        assert!(!odd(&hit).iter().any(|(id, _)| id == "I6"), "{fault:?}: {:?}", odd(&hit));
    }
    comes_out(Fail, "I7", Verdict::Fail, |r| r.after.alarming_logs = Ok(vec!["panic: tocommit is out of range".to_owned()]));
    comes_out(Fail, "I8", Verdict::Fail, |r| {
        let settled = r.marks.settled;
        for op in r.ops.iter_mut().filter(|op| op.member == 2 && op.inv >= settled) {
            op.outcome = Outcome::Unknown;
            op.answer = None;
        }
    });
    // The members never came together again, and nothing was acknowledged any more: that is what the run has shown.
    comes_out(Fail, "I8", Verdict::Fail, |r| {
        let heal = r.marks.heal;
        r.marks.settled = At::ZERO;
        let mut lost = Vec::new();
        for op in r.ops.iter_mut().filter(|op| op.inv >= heal) {
            lost.extend(op.value);
            op.outcome = Outcome::Unknown;
            op.answer = None;
        }
        for log in std::iter::once(&mut r.after.log).chain(r.watches.iter_mut().map(|watch| &mut watch.changes)) {
            log.retain(|change| !lost.contains(&change.value));
        }
    });
    comes_out(Fail, "I9", Verdict::Fail, |r| r.drill.expect.no_acks = Some(super::catalogue::NoAcks::Anywhere));
    comes_out(Fail, "I10", Verdict::Fail, |r| {
        r.watches[1].changes.remove(40);
    });
    comes_out(Fail, "I10", Verdict::Fail, |r| r.watches[1].changes.swap(40, 41));
    comes_out(Fail, "I10", Verdict::Fail, |r| r.watches[1].changes[40].value += 1_000_000);
    // Delivered, and gone from the end when the store was read.
    comes_out(Fail, "I10", Verdict::Fail, |r| {
        let late = late(r, 3);
        r.after.log_revision = late.revision;
        r.watches[1].changes.push(late);
    });
    comes_out(Fail, "healed", Verdict::Fail, |r| {
        let node = r.members[0].node.clone();
        let undo = super::act::Act::Uncut { node: node.clone() };
        r.after.leftovers = Ok(vec![super::injector::Leftover { node, what: "packet rules".to_owned(), undo }]);
    });
}

/// A change so many revisions after the last of the log.
fn late(r: &Record, after: i64) -> Change {
    let last = r.after.log.last().expect("there is one");
    Change { revision: last.revision + after, key: last.key.clone(), value: 999_999 }
}

/// Watches go on while the log is read: a write that the load gave up on may take effect in between.
#[test]
fn what_is_delivered_after_the_log_was_read_is_not_missing_in_it() {
    let fine = judged(|r| {
        let late = late(r, 1);
        r.watches[1].changes.push(late);
    });
    assert_eq!((odd(&fine), fine.result), (vec![], Result::Pass), "{:?}", fine.reasons);
    // A record of before the store's revision was noted: the last change has to do.
    let old = judged(|r| {
        let late = late(r, 1);
        r.after.log_revision = 0;
        r.watches[1].changes.push(late);
    });
    assert_eq!((odd(&old), old.result), (vec![], Result::Pass), "{:?}", old.reasons);
}

fn verdict_of(judgement: &Judgement, id: &str) -> Option<Verdict> {
    judgement.checks.iter().find(|check| check.id == id).map(|check| check.verdict)
}

/// The sample as one whose heal, at 5 s, restores a snapshot: from then on another cluster answers, which member 2 leads in the
/// very term in which member 1 led the old one, and whose revisions are far above.
fn with_restore(r: &mut Record) {
    let at = r.marks.heal;
    r.restored = Some(super::checker::Restored { at, snapshot_revision: i64::MAX });
    for sample in r.samples.iter_mut().filter(|sample| sample.at >= at) {
        if let Some(status) = &mut sample.status {
            (status.cluster, status.leader) = (Id(10), Id(3));
        }
    }
    for answer in r.ops.iter_mut().filter(|op| op.inv >= at).filter_map(|op| op.answer.as_mut()) {
        answer.revision += 1_000_000_000;
    }
}

fn after_restore(change: impl FnOnce(&mut Record)) -> Judgement {
    judged(|r| {
        with_restore(r);
        change(r);
    })
}

#[test]
fn a_restored_cluster_is_another_one_with_higher_revisions_or_it_is_not_restored() {
    let verdict = |change: &dyn Fn(&mut Record)| verdict_of(&after_restore(|r| change(r)), "restored");
    assert_eq!(verdict(&|_| ()), Some(Verdict::Pass));
    // The same token as before makes the same cluster, whose lost members would be taken for its own.
    let same = |r: &mut Record| {
        r.samples.iter_mut().filter_map(|sample| sample.status.as_mut()).for_each(|status| status.cluster = Id(9));
    };
    assert_eq!(verdict(&same), Some(Verdict::Fail));
    let low = |r: &mut Record| {
        let at = r.marks.heal;
        for answer in r.ops.iter_mut().filter(|op| op.inv >= at).filter_map(|op| op.answer.as_mut()) {
            answer.revision -= 1_000_000_000 - 1;
        }
        let first = r.ops.iter_mut().find(|op| op.acked()).and_then(|op| op.answer.as_mut()).expect("answered");
        first.revision = 1_000_000;
    };
    assert_eq!(verdict(&low), Some(Verdict::Fail));
    let unseen = |r: &mut Record| {
        let settled = r.marks.settled;
        r.samples.retain(|sample| sample.sent < settled);
    };
    assert_eq!(verdict(&unseen), Some(Verdict::Unknown));
}

#[test]
fn terms_and_leaders_are_counted_by_cluster() {
    let fine = after_restore(|_| ());
    assert_eq!(verdict_of(&fine, "I2"), Some(Verdict::Pass));
    let seen = fine.checks.iter().find(|check| check.id == "I2").map(|check| check.seen.clone()).unwrap_or_default();
    assert!(seen.contains("term 3 of cluster 000000000000000a: controller-2"), "{seen}");
    // Two who lead in one term of the new cluster are two.
    let double = after_restore(|r| {
        for sample in r.samples.iter_mut().filter(|s| s.member == 0 && s.at >= At(6_000_000)) {
            sample.status.iter_mut().for_each(|status| status.leader = Id(1));
        }
    });
    assert_eq!(verdict_of(&double, "I2"), Some(Verdict::Fail));
    // Member 0 led the old cluster in term 7 and leads the new one in term 2: it is a new leader all the same.
    let again = after_restore(|r| {
        let inject = r.marks.inject;
        for sample in &mut r.samples {
            let Some(status) = &mut sample.status else { continue };
            let restored = status.cluster == Id(10);
            status.term = if restored { 2 } else { 7 };
            status.leader = if restored || sample.at <= inject { Id(1) } else { Id(0) };
        }
    });
    // It answers from 5.3 s on.
    assert_eq!(again.figures.time_to_new_leader_us, Some(3_300_500));
}

/// A host that did not let us run for a moment is told apart from a cluster that did not acknowledge.
#[test]
fn a_gap_that_is_the_observers_own_is_no_failure() {
    use Verdict::{Fail, Unknown};
    // 1.25 s without an acknowledgement, around 2.0 to 3.2 s.
    let gated = |stalls: &[(u64, u64)]| {
        judged(|r| {
            r.drill.expect.write_gap = "1 election".parse().ok();
            r.stalls = stalls.iter().map(|(from, to)| Gap { from: At(from * 1000), to: At(to * 1000) }).collect();
        })
    };
    let still = gated(&[(2500, 2900)]);
    assert_eq!((verdict_of(&still, "write-gap"), still.result), (Some(Unknown), Result::Invalid), "{:?}", still.reasons);
    assert!(
        still.reasons.iter().any(|reason| reason.contains("the observer itself stood still for 400 ms")),
        "{:?}",
        still.reasons
    );
    // Elsewhere, or too short to explain it.
    for stalls in [&[(5500, 5900)][..], &[(2500, 2700)], &[]] {
        let cluster = gated(stalls);
        assert_eq!((verdict_of(&cluster, "write-gap"), cluster.result), (Some(Fail), Result::Fail), "{stalls:?}");
    }
    let within = judged(|r| r.stalls.push(Gap { from: At(2_500_000), to: At(2_900_000) }));
    assert_eq!((odd(&within), within.result), (vec![], Result::Pass), "{:?}", within.reasons);
}

/// A write on its way when the fault begins may be acknowledged a moment later, and not a second later.
#[test]
fn a_late_acknowledgement_without_a_majority_is_found() {
    let with = |took_ms: u64| {
        judged(|r| {
            r.drill.expect.no_acks = Some(super::catalogue::NoAcks::Targets);
            let injected = r.marks.injected;
            let op = r.ops.iter_mut().rfind(|op| op.member == 0 && op.acked() && op.inv < injected).expect("there is one");
            op.ret = injected.plus(Duration::from_millis(took_ms));
        })
    };
    let i9 = |judgement: &Judgement| judgement.checks.iter().find(|check| check.id == "I9").map(|check| check.verdict);
    assert_eq!(i9(&with(100)), Some(Verdict::Pass));
    let late = with(1500);
    assert_eq!(i9(&late), Some(Verdict::Fail));
    assert_eq!(late.result, Result::Fail, "{:?}", late.reasons);
}

#[test]
fn a_missing_answer_is_never_a_pass() {
    use Result::Invalid;
    use Verdict::Unknown;
    comes_out(Invalid, "I1", Verdict::Unknown, |r| r.after.log_source = LogSource::Missing("no member answered".to_owned()));
    comes_out(Invalid, "I5", Verdict::Unknown, |r| r.after.hashes[0].hash = Err("timed out".to_owned()));
    comes_out(Invalid, "I6", Verdict::Unknown, |r| r.after.lists[0] = Err("timed out".to_owned()));
    comes_out(Invalid, "I7", Verdict::Unknown, |r| r.after.alarms = Err("timed out".to_owned()));
    comes_out(Invalid, "healed", Verdict::Unknown, |r| r.after.leftovers = Err("SSH is down".to_owned()));
    comes_out(Invalid, "I6", Verdict::Unknown, |r| r.before.members.truncate(2));
    // Whoever was never looked at has shown nothing.
    comes_out(Invalid, "I3", Verdict::Unknown, |r| {
        r.samples.retain(|sample| sample.member != 2);
        r.drill.expect.full_membership = None;
    });
    comes_out(Invalid, "I10", Verdict::Unknown, |r| r.watches.clear());
    comes_out(Invalid, "I10", Verdict::Unknown, |r| r.watches.truncate(2));
    comes_out(Invalid, "I10", Verdict::Unknown, |r| r.watches[2].member = 1);
    // Without a log nothing is known to have been kept, in whatever order the rest came.
    for id in ["I1", "I4", "I10"] {
        comes_out(Invalid, id, Unknown, without_log);
    }
    let blind = judged(|r| r.samples.clear());
    assert!(blind.result == Result::Invalid && odd(&blind).contains(&("I3".to_owned(), Unknown)), "{:?}", odd(&blind));
    // A watch that never caught up has not been seen to be complete.
    comes_out(Invalid, "I10", Verdict::Unknown, |r| r.watches[0].changes.truncate(50));
}

/// As when no member could be read after the run.
fn without_log(r: &mut Record) {
    r.after.log.clear();
    (r.after.log_source, r.after.log_revision) = (LogSource::Missing("no member answered".to_owned()), 0);
}

/// A log that is missing makes no question of what was contradicted without it.
#[test]
fn what_answers_and_deliveries_show_by_themselves_needs_no_log() {
    use Result::Fail;
    let backwards = |r: &mut Record| {
        without_log(r);
        // Acknowledged at the end, with the revision of the first.
        let early = r.ops[0].answer;
        r.ops.iter_mut().rfind(|op| op.acked()).expect("there is one").answer = early;
    };
    comes_out(Fail, "I4", Verdict::Fail, backwards);
    assert_eq!(judged(backwards).figures.checker, Verdict::Fail);
    comes_out(Fail, "I10", Verdict::Fail, |r| {
        without_log(r);
        r.watches[1].changes.swap(40, 41);
    });
    comes_out(Fail, "I10", Verdict::Fail, |r| {
        without_log(r);
        let twice = r.watches[1].changes[40].clone();
        r.watches[1].changes.insert(40, twice);
    });
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
    for gate in ["api-gap", "takeover", "not-ready", "pods"] {
        // Nobody asked the API.
        comes_out(Result::Invalid, gate, Verdict::Unknown, expect_all_of_the_api);
    }
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

/// Serializable reads by the members that are not hit, twice a second while the fault is in force.
fn with_serial_reads(r: &mut Record) {
    r.drill.expect.serial_reads = Some(Where::Others);
    let model = r.ops[0].clone();
    for at in (100..7000u64).step_by(100) {
        for member in 1..3 {
            r.ops.push(super::history::Op {
                session: super::history::Session::Serial(member),
                kind: super::history::Kind::SerialRead,
                member,
                inv: At(at * 1000),
                ret: At(at * 1000 + 2000),
                // What the model's write left: true at its time, and labelled with its revision for ever.
                ..model.clone()
            });
        }
    }
}

#[test]
fn serializable_reads_that_are_not_answered_are_found() {
    let verdict = |change: &dyn Fn(&mut Record)| {
        let judgement = judged(|r| {
            with_serial_reads(r);
            change(r);
        });
        judgement.checks.iter().find(|check| check.id == "serial-reads").map(|check| check.verdict)
    };
    assert_eq!(verdict(&|_| ()), Some(Verdict::Pass));
    assert_eq!(verdict(&|r| r.drill.expect.serial_reads = Some(Where::Everywhere)), Some(Verdict::Fail), "nobody asked member 0");
    let unanswered = |r: &mut Record| {
        for op in r.ops.iter_mut().filter(|op| op.kind == super::history::Kind::SerialRead && op.member == 2) {
            op.outcome = Outcome::Unknown;
        }
    };
    assert_eq!(verdict(&unanswered), Some(Verdict::Fail));
    let none = |r: &mut Record| r.ops.retain(|op| op.kind != super::history::Kind::SerialRead);
    assert_eq!(verdict(&none), Some(Verdict::Unknown));
}
