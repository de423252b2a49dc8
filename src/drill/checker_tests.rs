//! Both judges of histories, the checker and the search, on histories made valid and then broken in known ways.

use super::checker::{Checked, Lives, Restored, Violation};
use super::clock::At;
use super::history::{Answer, Change, Kind, Op, Outcome, Session};
use super::wgl::linearizable;
use proptest::prelude::*;

fn check(ops: &[Op], log: &[Change], restored: Option<Restored>) -> Checked {
    super::checker::check(ops, log, restored, &Lives::default())
}

fn write(value: u64, inv: u64, ret: u64, revision: Option<i64>) -> Op {
    Op {
        session: Session::Pinned(0),
        kind: Kind::Write,
        key: "k".to_owned(),
        value: Some(value),
        member: 0,
        inv: At(inv),
        ret: At(ret),
        outcome: if revision.is_some() { Outcome::Ok } else { Outcome::Unknown },
        answer: revision.map(|revision| Answer { revision, mod_revision: revision, term: 2 }),
        error: None,
    }
}

fn read(value: Option<u64>, inv: u64, ret: u64, revision: i64, mod_revision: i64) -> Op {
    Op {
        session: Session::Reader(0),
        kind: Kind::Read,
        value,
        answer: Some(Answer { revision, mod_revision, term: 2 }),
        ..write(0, inv, ret, Some(revision))
    }
}

fn change(revision: i64, value: u64) -> Change {
    Change { revision, key: "k".to_owned(), value }
}

/// A server that really is linearizable: every request takes effect at one moment between its start and its end.
/// `steps`: (kind, gap before the start, time to the effect, time to the answer); every eleventh write is left unanswered.
fn served(steps: &[(bool, u64, u64, u64)]) -> (Vec<Op>, Vec<Change>) {
    let mut begun = 0;
    let mut requests = Vec::new();
    for (i, (is_write, gap, effect, answer)) in steps.iter().enumerate() {
        begun += gap;
        // Distinct moments: the low digits are the request's number.
        let moment = |t: u64| t * 1000 + i as u64;
        requests.push((moment(begun), moment(begun + 1 + effect), moment(begun + 2 + effect + answer), *is_write, i));
    }
    let mut order = requests.clone();
    order.sort_by_key(|(_, effect, ..)| *effect);
    let (mut revision, mut held, mut log) = (10, (0, None), Vec::new());
    let mut ops = Vec::new();
    for (inv, _, ret, is_write, i) in order {
        let value = i as u64 + 100;
        if is_write {
            revision += 1;
            held = (revision, Some(value));
            log.push(change(revision, value));
            ops.push(write(value, inv, ret, (i % 11 != 7).then_some(revision)));
        } else {
            ops.push(read(held.1, inv, ret, revision, held.0));
        }
    }
    ops.sort_by_key(|op| op.inv);
    (ops, log)
}

fn steps() -> impl Strategy<Value = Vec<(bool, u64, u64, u64)>> {
    prop::collection::vec((any::<bool>(), 0..6u64, 0..8u64, 0..8u64), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn valid_histories_are_accepted_by_both(steps in steps()) {
        let (ops, log) = served(&steps);
        let checked = check(&ops, &log, None);
        prop_assert_eq!(&checked.violations, &vec![]);
        prop_assert!(linearizable(&ops));
    }

    #[test]
    fn a_lost_acknowledged_write_is_caught(steps in steps(), which in any::<prop::sample::Index>()) {
        let (ops, mut log) = served(&steps);
        let acked: Vec<u64> = ops.iter().filter(|op| op.is_write() && op.acked()).filter_map(|op| op.value).collect();
        prop_assume!(!acked.is_empty());
        let lost = acked[which.index(acked.len())];
        log.retain(|change| change.value != lost);
        let checked = check(&ops, &log, None);
        prop_assert_eq!(checked.lost(), 1);
    }

    #[test]
    fn a_duplicated_write_is_caught(steps in steps(), which in any::<prop::sample::Index>()) {
        let (ops, mut log) = served(&steps);
        prop_assume!(!log.is_empty());
        let again = log[which.index(log.len())].value;
        log.push(change(1_000_000, again));
        let caught = check(&ops, &log, None).violations.iter().any(|v| matches!(v, Violation::Duplicate { value, .. } if *value == again));
        prop_assert!(caught);
    }

    /// A write is told another revision than the log has it at, be it above or below.
    #[test]
    fn a_wrong_revision_is_caught(steps in steps(), which in any::<prop::sample::Index>(), off in prop_oneof![-20..0i64, 1..20i64]) {
        let (mut ops, log) = served(&steps);
        let acked: Vec<usize> = (0..ops.len()).filter(|&i| ops[i].is_write() && ops[i].acked()).collect();
        prop_assume!(!acked.is_empty());
        let op = &mut ops[acked[which.index(acked.len())]];
        let wrong = op.value.unwrap_or_default();
        if let Some(answer) = &mut op.answer {
            answer.revision += off;
        }
        let caught = check(&ops, &log, None).violations.iter().any(|v| matches!(v, Violation::WrongRevision { value, .. } if *value == wrong));
        prop_assert!(caught);
    }

    /// Two changes stand at one revision, of one key or of two; every value was written, once.
    #[test]
    fn a_revision_that_is_taken_twice_is_caught(
        steps in steps(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(), elsewhere in any::<bool>()
    ) {
        let (mut ops, mut log) = served(&steps);
        prop_assume!(log.len() > 1);
        let (a, b) = (a.index(log.len()), b.index(log.len()));
        prop_assume!(a != b);
        let (taken, late) = (log[a].revision, log[b].value);
        log[b].revision = taken;
        if elsewhere {
            log[b].key = "other".to_owned();
        }
        // Who wrote it was told the same, so that nothing else is wrong with it.
        for op in ops.iter_mut().filter(|op| op.is_write() && op.value == Some(late)) {
            op.key.clone_from(&log[b].key);
            if let Some(answer) = &mut op.answer {
                (answer.revision, answer.mod_revision) = (taken, taken);
            }
        }
        let caught = check(&ops, &log, None).violations.iter().any(|v| matches!(v, Violation::Phantom { revision, .. } if *revision == taken));
        prop_assert!(caught);
    }

    #[test]
    fn a_phantom_is_caught(steps in steps()) {
        let (ops, mut log) = served(&steps);
        log.push(change(1_000_000, 999_999));
        let caught = check(&ops, &log, None).violations.iter().any(|v| matches!(v, Violation::Phantom { .. }));
        prop_assert!(caught);
    }

    /// Two writes that did not overlap, told each other's revisions: the log agrees with them, time does not.
    #[test]
    fn a_swapped_order_is_caught(steps in steps()) {
        let (mut ops, mut log) = served(&steps);
        let pair = (0..ops.len()).flat_map(|a| (0..ops.len()).map(move |b| (a, b))).find(|&(a, b)| {
            let both = [a, b].iter().all(|&i| ops[i].is_write() && ops[i].acked());
            both && ops[a].ret < ops[b].inv
        });
        prop_assume!(pair.is_some());
        let (a, b) = pair.unwrap_or_default();
        let (va, vb) = (ops[a].value.unwrap_or(0), ops[b].value.unwrap_or(0));
        for change in &mut log {
            change.value = if change.value == va { vb } else if change.value == vb { va } else { change.value };
        }
        let answer = ops[a].answer;
        ops[a].answer = ops[b].answer;
        ops[b].answer = answer;
        let caught = check(&ops, &log, None).violations.iter().any(|v| matches!(v, Violation::OutOfOrder { .. }));
        prop_assert!(caught);
    }

    /// A read moved to after everything keeps its old answer.
    #[test]
    fn a_stale_read_is_caught(steps in steps()) {
        let (mut ops, log) = served(&steps);
        let end = ops.iter().map(|op| op.ret.0).max().unwrap_or(0);
        let newest = ops.iter().filter(|op| op.acked()).filter_map(|op| op.answer).map(|a| a.revision).max().unwrap_or(0);
        let Some(read) = ops.iter_mut().find(|op| op.kind == Kind::Read && op.answer.is_some_and(|a| a.revision < newest)) else {
            return Ok(());
        };
        (read.inv, read.ret) = (At(end + 10), At(end + 20));
        let caught = check(&ops, &log, None).violations.iter().any(|v| matches!(v, Violation::StaleRead { .. }));
        prop_assert!(caught);
    }

    /// Whatever the search refuses, the checker refuses: here with answers of reads exchanged at random.
    #[test]
    fn the_checker_is_never_laxer_than_the_search(steps in steps(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let (mut ops, log) = served(&steps);
        let reads: Vec<usize> = (0..ops.len()).filter(|&i| ops[i].kind == Kind::Read).collect();
        prop_assume!(reads.len() > 1);
        let (a, b) = (reads[a.index(reads.len())], reads[b.index(reads.len())]);
        let other = (ops[a].value, ops[a].answer);
        (ops[a].value, ops[a].answer) = (ops[b].value, ops[b].answer);
        (ops[b].value, ops[b].answer) = other;
        if !linearizable(&ops) {
            prop_assert!(!check(&ops, &log, None).violations.is_empty());
        }
    }
}

/// A history that ended, and the values of its writes that were acknowledged, in the order in which they took effect.
fn ended(steps: &[(bool, u64, u64, u64)]) -> (Vec<Op>, Vec<Change>, u64) {
    let (ops, log) = served(steps);
    let end = ops.iter().map(|op| op.ret.0).max().unwrap_or(0);
    (ops, log, end)
}

/// A reader that comes when everything has ended, and is told a value.
fn told(value: u64, at: u64, log: &[Change]) -> Op {
    let (newest, held) = (log.last().map_or(10, |change| change.revision), log.iter().find(|change| change.value == value));
    read(Some(value), at, at + 5, newest, held.map_or(0, |change| change.revision))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing is lost, and who reads when everything has ended is told the last write but one.
    #[test]
    fn both_refuse_a_read_that_misses_the_newest_write(steps in steps()) {
        let (mut ops, log, end) = ended(&steps);
        prop_assume!(log.len() >= 2);
        // The search must not be able to explain it by a write that is still under way.
        prop_assume!(ops.iter().all(|op| op.acked()));
        let before = log[log.len() - 2].value;
        ops.push(told(before, end + 10, &log));
        let last_two_apart = {
            let of = |value: u64| ops.iter().find(|op| op.is_write() && op.value == Some(value)).map(|op| (op.inv, op.ret));
            of(before).zip(of(log[log.len() - 1].value)).is_some_and(|((_, ret), (inv, _))| ret < inv)
        };
        prop_assert!(!check(&ops, &log, None).violations.is_empty());
        // Writes that overlapped may have taken effect the other way round, as far as a register alone can tell.
        if last_two_apart {
            prop_assert!(!linearizable(&ops));
        }
    }

    /// A write is applied a second time after others: it is read, then another, then it again.
    #[test]
    fn both_refuse_a_write_that_takes_effect_twice(steps in steps(), which in any::<prop::sample::Index>()) {
        let (mut ops, mut log, end) = ended(&steps);
        prop_assume!(log.len() >= 2);
        let newest = log[log.len() - 1].value;
        let twice = log[which.index(log.len() - 1)].value;
        ops.push(told(newest, end + 10, &log));
        log.push(change(log[log.len() - 1].revision + 1, twice));
        ops.push(told(twice, end + 20, &log));
        // `newest` was read when every write was over but those never answered; the second reading of another cannot follow…
        let unanswered = ops.iter().any(|op| op.is_write() && op.value == Some(twice) && !op.acked());
        prop_assert!(!check(&ops, &log, None).violations.is_empty());
        if !unanswered {
            prop_assert!(!linearizable(&ops));
        }
    }

    /// Two readings one after the other that saw two writes in one order, and again in the other.
    #[test]
    fn both_refuse_two_orders_of_the_same_writes(steps in steps()) {
        let (mut ops, log, end) = ended(&steps);
        prop_assume!(log.len() >= 2);
        let (a, b) = (log[log.len() - 2].value, log[log.len() - 1].value);
        for (i, value) in [a, b, a].into_iter().enumerate() {
            ops.push(told(value, end + 10 * (i as u64 + 1), &log));
        }
        prop_assert!(!check(&ops, &log, None).violations.is_empty());
        prop_assert!(!linearizable(&ops));
    }

    /// A reader is told a value that was never written, at any moment.
    #[test]
    fn both_refuse_a_value_out_of_nowhere(steps in steps(), which in any::<prop::sample::Index>()) {
        let (mut ops, log, _) = ended(&steps);
        let reads: Vec<usize> = (0..ops.len()).filter(|&i| ops[i].kind == Kind::Read).collect();
        prop_assume!(!reads.is_empty());
        ops[reads[which.index(reads.len())]].value = Some(999_999);
        prop_assert!(!check(&ops, &log, None).violations.is_empty());
        prop_assert!(!linearizable(&ops));
    }

    /// A reading moved to after everything keeps its old answer: the search refuses it as the checker does, where the value is
    /// not the newest.
    #[test]
    fn both_refuse_a_stale_read(steps in steps()) {
        let (mut ops, log, end) = ended(&steps);
        prop_assume!(ops.iter().all(|op| op.acked()));
        let newest = log.last().map(|change| change.value);
        let apart = |op: &Op| {
            let write = |value: Option<u64>| ops.iter().find(|w| w.is_write() && w.value == value && value.is_some());
            // The newest write began after the one that was read had ended: no order of effects explains the reading.
            write(newest).is_some_and(|new| write(op.value).is_none_or(|old| old.ret < new.inv))
        };
        let stale = ops.iter().position(|op| op.kind == Kind::Read && op.value != newest && apart(op));
        prop_assume!(stale.is_some());
        let stale = stale.unwrap_or_default();
        (ops[stale].inv, ops[stale].ret) = (At(end + 10), At(end + 20));
        prop_assert!(!check(&ops, &log, None).violations.is_empty());
        prop_assert!(!linearizable(&ops));
    }
}

/// The classical five, where the register alone shows them: both judges refuse.
#[test]
fn both_refuse_what_a_register_can_show() {
    let log = [change(11, 1), change(12, 2)];
    let base = [write(1, 0, 10, Some(11)), write(2, 20, 30, Some(12))];
    let with = |extra: Op| [base.to_vec(), vec![extra]].concat();
    let cases: [(&str, Vec<Op>, Vec<Change>); 4] = [
        ("lost ack", with(read(Some(1), 40, 50, 11, 11)), log[..1].to_vec()),
        ("stale read", with(read(Some(1), 40, 50, 11, 11)), log.to_vec()),
        ("phantom", with(read(Some(77), 40, 50, 13, 13)), log.to_vec()),
        // Read 2, then 1 again: one of the two happened twice, or the order is not the log's.
        (
            "swapped order",
            vec![base[0].clone(), base[1].clone(), read(Some(2), 31, 35, 12, 12), read(Some(1), 40, 50, 13, 13)],
            vec![change(12, 2), change(13, 1)],
        ),
    ];
    for (name, ops, log) in cases {
        assert!(!linearizable(&ops), "the search accepts {name}");
        assert_ne!(check(&ops, &log, None).violations, [], "the checker accepts {name}");
    }
    let fine = with(read(Some(2), 40, 50, 12, 12));
    assert!(linearizable(&fine));
    assert_eq!(check(&fine, &log, None).violations, []);
}

#[test]
fn unknown_writes_may_happen_or_not_but_not_before_they_began() {
    let unknown = write(2, 20, 30, None);
    let after = |r: Op| vec![write(1, 0, 10, Some(11)), unknown.clone(), r];
    let (one, two) = ([change(11, 1)], [change(11, 1), change(12, 2)]);
    for (ops, log) in [(after(read(Some(1), 40, 50, 11, 11)), &one[..]), (after(read(Some(2), 40, 50, 12, 12)), &two[..])] {
        assert!(linearizable(&ops));
        assert_eq!(check(&ops, log, None).violations, []);
    }
    // Seen before it began.
    let early = vec![read(Some(2), 0, 5, 11, 11), write(2, 20, 30, None)];
    assert!(!linearizable(&early));
    assert_ne!(check(&early, &[change(11, 2)], None).violations, []);
}

#[test]
fn a_refused_write_must_not_be_there() {
    let mut refused = write(5, 0, 10, None);
    refused.outcome = Outcome::Fail;
    let found = check(&[refused], &[change(11, 5)], None).violations;
    assert_eq!(found, [Violation::RefusedYetApplied { value: 5, revision: 11 }]);
}

#[test]
fn a_member_must_not_go_back_even_for_serializable_reads() {
    let serial = |inv, ret, revision| Op { kind: Kind::SerialRead, ..read(None, inv, ret, revision, 0) };
    let back = check(&[serial(0, 10, 9), serial(20, 30, 8)], &[], None).violations;
    assert!(matches!(back[..], [Violation::Backwards { from: 9, to: 8, .. }]), "{back:?}");
    // A member that was started in between may know less for a while.
    let lives = Lives([(0, vec![At(15)])].into());
    assert_eq!(super::checker::check(&[serial(0, 10, 9), serial(20, 30, 8)], &[], None, &lives).violations, []);
    // Another member may be behind: that is what serializable means.
    let other = Op { member: 1, ..serial(20, 30, 8) };
    assert_eq!(check(&[serial(0, 10, 9), other], &[], None).violations, []);
}

#[test]
fn a_restore_may_lose_what_came_after_its_snapshot_and_nothing_else() {
    let ops = [write(1, 0, 10, Some(11)), write(2, 20, 30, Some(12)), write(3, 40, 50, Some(13)), write(4, 200, 210, Some(1000))];
    let restored = Some(Restored { at: At(100), snapshot_revision: 12 });
    let kept = [change(11, 1), change(12, 2), change(1000, 4)];
    let Checked { violations, beyond_snapshot, .. } = check(&ops, &kept, restored);
    assert_eq!((violations, beyond_snapshot), (vec![], 1));
    let holed = [change(11, 1), change(1000, 4)];
    assert_eq!(check(&ops, &holed, restored).lost(), 1);
    // What is written after the restore lives by the usual rule.
    assert_eq!(check(&ops, &kept[..2], restored).lost(), 1);
}
