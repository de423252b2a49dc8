//! The revision-order checker: is what clients were told consistent with the order of changes etcd kept?
//! Judges call it after a run, property tests feed it mutated histories; it costs O(n log n) because every answer carries a revision.
//! It is stricter than linearizability of a register (it takes etcd at its word that revisions are the order) and knows no fault.

use super::clock::At;
use super::history::{Answer, Change, Kind, Member, Op, Outcome};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// A restore makes a new store: what came before it is judged only up to the snapshot, and apart from what comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restored {
    /// Requests started before this moment saw the old store.
    pub at: At,
    /// Last revision that the snapshot holds.
    pub snapshot_revision: i64,
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Violation {
    /// Acknowledged, and not in the final log.
    LostWrite { key: String, value: u64, revision: i64 },
    /// Acknowledged with one revision, logged with another.
    WrongRevision { value: u64, told: i64, logged: i64 },
    /// One write, logged more than once.
    Duplicate { value: u64, revisions: Vec<i64> },
    /// Logged, and never written by us; or two changes at one revision.
    Phantom { key: String, value: u64, revision: i64 },
    /// Refused for certain, and logged all the same.
    RefusedYetApplied { value: u64, revision: i64 },
    /// Took effect before something that had ended when it began.
    OutOfOrder { value: u64, revision: i64, floor: i64 },
    /// A linearizable read older than something that had ended when it began.
    StaleRead { key: String, member: Member, revision: i64, floor: i64, at: At },
    /// Not what the log says the key held at the read's revision.
    WrongRead { key: String, member: Member, revision: i64, read: Option<u64>, logged: Option<u64> },
    /// A member's revision or term went back.
    Backwards { member: Member, what: String, from: i64, to: i64, at: At },
}

impl Violation {
    /// Whether answers alone show it.
    pub fn needs_no_log(&self) -> bool {
        matches!(self, Violation::OutOfOrder { .. } | Violation::StaleRead { .. } | Violation::Backwards { .. })
    }
    /// Invariant that it breaks.
    pub fn invariant(&self) -> &'static str {
        match self {
            Violation::LostWrite { .. } | Violation::WrongRevision { .. } | Violation::Duplicate { .. } => "I1",
            Violation::Backwards { .. } => "I3",
            _ => "I4",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<u64>| value.map_or("nothing".to_owned(), |v| v.to_string());
        match self {
            Violation::LostWrite { key, value, revision } => {
                write!(f, "write {value} to {key} was acknowledged at revision {revision} and is gone")
            }
            Violation::WrongRevision { value, told, logged } => {
                write!(f, "write {value} was acknowledged at revision {told} and stands at {logged}")
            }
            Violation::Duplicate { value, revisions } => write!(f, "write {value} was applied more than once: {revisions:?}"),
            Violation::Phantom { key, value, revision } => {
                write!(f, "{key} = {value} at revision {revision} was written by nobody, or its revision is taken")
            }
            Violation::RefusedYetApplied { value, revision } => {
                write!(f, "write {value} was refused and applied all the same at revision {revision}")
            }
            Violation::OutOfOrder { value, revision, floor } => {
                write!(f, "write {value} took revision {revision}, though {floor} had been seen before it began")
            }
            Violation::StaleRead { key, revision, floor, at, .. } => {
                write!(
                    f,
                    "linearizable read of {key} at {at} saw revision {revision}, though {floor} had been seen before it began"
                )
            }
            Violation::WrongRead { key, revision, read, logged, .. } => {
                write!(f, "read of {key} at revision {revision} gave {}, the log has {}", shown(read), shown(logged))
            }
            Violation::Backwards { what, from, to, at, .. } => write!(f, "{what} went back from {from} to {to} at {at}"),
        }
    }
}

/// What was checked and what was broken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checked {
    pub acked_writes: usize,
    pub reads: usize,
    /// Writes of unknown outcome that the log shows were applied, and those that it shows were not.
    pub unknown_applied: usize,
    pub unknown_not_applied: usize,
    /// Acknowledged writes that a restore was entitled to lose.
    pub beyond_snapshot: usize,
    pub violations: Vec<Violation>,
}

impl Checked {
    pub fn lost(&self) -> usize {
        self.violations.iter().filter(|v| matches!(v, Violation::LostWrite { .. })).count()
    }
}

/// Moments at which a member may have been started anew. It may then know less than it had shown before: it remembers what it
/// was sure to have been committed, not what it had heard of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lives(pub BTreeMap<Member, Vec<At>>);

impl Lives {
    /// Which of a member's lives a moment lies in.
    pub fn of(&self, member: Member, at: At) -> usize {
        self.0.get(&member).map_or(0, |starts| starts.iter().filter(|start| **start <= at).count())
    }
}

/// `log` must hold every change below the run's prefix up to a linearizable read made after the last request ended
/// (in a restored store: every change that the snapshot held, and all since).
///
/// An unknown write that is absent counts as not applied *so far*: should it be applied later, its revision would be
/// above all that is checked here, so nothing checked here could contradict it.
pub fn check(ops: &[Op], log: &[Change], restored: Option<Restored>, lives: &Lives) -> Checked {
    let mut checked = Checked::default();
    let index = Index::new(log, &mut checked.violations);
    let complete_to = |op: &Op| match restored {
        Some(r) if op.inv < r.at => r.snapshot_revision,
        _ => i64::MAX,
    };
    let written: HashSet<u64> = ops.iter().filter(|op| op.is_write()).filter_map(|op| op.value).collect();
    for change in log.iter().filter(|change| !written.contains(&change.value)) {
        let Change { key, value, revision } = change.clone();
        checked.violations.push(Violation::Phantom { key, value, revision });
    }
    for op in ops {
        if op.is_write() {
            check_write(op, &index, complete_to(op), &mut checked);
        } else if let Some(answer) = op.answer {
            checked.reads += 1;
            if answer.revision <= complete_to(op) {
                checked.violations.extend(check_read(op, &index));
            }
        }
    }
    let (before, after): (Vec<&Op>, Vec<&Op>) = ops.iter().partition(|op| restored.is_some_and(|r| op.inv < r.at));
    for epoch in [before, after] {
        check_order(&epoch, &index, &mut checked.violations);
    }
    checked.violations.extend(check_members(ops, lives));
    checked.violations.sort();
    checked.violations.dedup();
    checked
}

/// The log by value, and by key in order of revision.
struct Index<'a> {
    by_value: HashMap<u64, &'a Change>,
    by_key: HashMap<&'a str, Vec<(i64, u64)>>,
}

impl<'a> Index<'a> {
    fn new(log: &'a [Change], violations: &mut Vec<Violation>) -> Index<'a> {
        let mut revisions: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
        let mut taken: BTreeSet<i64> = BTreeSet::new();
        let mut by_value = HashMap::new();
        let mut by_key: HashMap<&str, Vec<(i64, u64)>> = HashMap::new();
        for change in log {
            revisions.entry(change.value).or_default().push(change.revision);
            // Every put is its own transaction, so two changes cannot share a revision.
            if !taken.insert(change.revision) {
                let Change { key, value, revision } = change.clone();
                violations.push(Violation::Phantom { key, value, revision });
            }
            by_value.entry(change.value).or_insert(change);
            by_key.entry(&change.key).or_default().push((change.revision, change.value));
        }
        for (value, revisions) in revisions {
            if revisions.len() > 1 {
                violations.push(Violation::Duplicate { value, revisions });
            }
        }
        for changes in by_key.values_mut() {
            changes.sort_unstable();
        }
        Index { by_value, by_key }
    }

    /// Last change of a key at or before a revision.
    fn at(&self, key: &str, revision: i64) -> Option<(i64, u64)> {
        let changes = self.by_key.get(key)?;
        let after = changes.partition_point(|(r, _)| *r <= revision);
        after.checked_sub(1).and_then(|i| changes.get(i)).copied()
    }

    /// Revision at which a write took effect: what it was told, else what the log says.
    fn effect(&self, op: &Op) -> Option<i64> {
        let told = op.answer.map(|answer| answer.revision);
        told.or_else(|| op.value.and_then(|value| self.by_value.get(&value)).map(|change| change.revision))
    }
}

fn check_write(op: &Op, index: &Index, complete_to: i64, checked: &mut Checked) {
    let Some(value) = op.value else { return };
    let logged = index.by_value.get(&value).map(|change| change.revision);
    match (op.answer, logged) {
        (Some(answer), logged) => {
            checked.acked_writes += 1;
            match logged {
                None if answer.revision > complete_to => checked.beyond_snapshot += 1,
                None => {
                    checked.violations.push(Violation::LostWrite { key: op.key.clone(), value, revision: answer.revision });
                }
                Some(logged) if logged != answer.revision => {
                    checked.violations.push(Violation::WrongRevision { value, told: answer.revision, logged });
                }
                Some(_) => (),
            }
        }
        (None, Some(revision)) if op.outcome == Outcome::Fail => {
            checked.violations.push(Violation::RefusedYetApplied { value, revision });
        }
        (None, Some(_)) => checked.unknown_applied += 1,
        (None, None) if op.outcome == Outcome::Unknown => checked.unknown_not_applied += 1,
        (None, None) => (),
    }
}

fn check_read(op: &Op, index: &Index) -> Option<Violation> {
    let answer = op.answer?;
    let logged = index.at(&op.key, answer.revision);
    let read = op.value.map(|value| (answer.mod_revision, value));
    (read != logged).then(|| Violation::WrongRead {
        key: op.key.clone(),
        member: op.member,
        revision: answer.revision,
        read: op.value,
        logged: logged.map(|(_, value)| value),
    })
}

/// Real time: what ended before a request began is a floor under its revision. Writes lie above it, reads not below.
fn check_order(ops: &[&Op], index: &Index, violations: &mut Vec<Violation>) {
    let acked = |op: &&&Op| op.acked() && op.kind != Kind::SerialRead;
    let mut ended: Vec<(At, i64)> = ops.iter().filter(acked).filter_map(|op| Some((op.ret, op.answer?.revision))).collect();
    ended.sort_unstable();
    let mut begun: Vec<(&Op, i64)> = ops
        .iter()
        .filter(|op| op.kind != Kind::SerialRead)
        .filter_map(|op| {
            let revision = if op.is_write() { index.effect(op) } else { op.answer.map(|a| a.revision) };
            Some((*op, revision?))
        })
        .collect();
    begun.sort_by_key(|(op, _)| op.inv);
    let mut ended = ended.into_iter().peekable();
    let mut floor = 0;
    for (op, revision) in begun {
        while let Some((_, seen)) = ended.next_if(|(ret, _)| *ret < op.inv) {
            floor = floor.max(seen);
        }
        if op.is_write() && revision <= floor {
            violations.push(Violation::OutOfOrder { value: op.value.unwrap_or_default(), revision, floor });
        } else if !op.is_write() && revision < floor {
            violations.push(Violation::StaleRead { key: op.key.clone(), member: op.member, revision, floor, at: op.inv });
        }
    }
}

/// What one member showed of itself, and when.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    pub member: Member,
    pub asked: At,
    pub answered: At,
    pub revision: i64,
    pub term: u64,
}

fn check_members(ops: &[Op], lives: &Lives) -> Vec<Violation> {
    let shown = |op: &Op| {
        let Answer { revision, term, .. } = op.answer?;
        Some(Shown { member: op.member, asked: op.inv, answered: op.ret, revision, term })
    };
    monotonic(ops.iter().filter_map(shown).collect(), lives)
}

/// Neither revision nor term of one member goes back within one of its lives, whoever asks it.
pub fn monotonic(shown: Vec<Shown>, lives: &Lives) -> Vec<Violation> {
    let mut by_life: BTreeMap<(Member, usize), Vec<Shown>> = BTreeMap::new();
    for one in shown {
        let life = lives.of(one.member, one.asked);
        // What straddles a start belongs to neither life for sure.
        if life == lives.of(one.member, one.answered) {
            by_life.entry((one.member, life)).or_default().push(one);
        }
    }
    let mut violations = Vec::new();
    for ((member, _), mut asked) in by_life {
        let mut answered = asked.clone();
        answered.sort_by_key(|one| one.answered);
        asked.sort_by_key(|one| one.asked);
        let mut answered = answered.into_iter().peekable();
        let (mut revision, mut term) = (0, 0);
        for one in asked {
            while let Some(earlier) = answered.next_if(|earlier| earlier.answered < one.asked) {
                revision = revision.max(earlier.revision);
                term = term.max(earlier.term);
            }
            let at = one.asked;
            if one.revision < revision {
                violations.push(Violation::Backwards {
                    member,
                    what: "revision".to_owned(),
                    from: revision,
                    to: one.revision,
                    at,
                });
            }
            if one.term < term {
                let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                violations.push(Violation::Backwards {
                    member,
                    what: "term".to_owned(),
                    from: whole(term),
                    to: whole(one.term),
                    at,
                });
            }
        }
    }
    violations
}
