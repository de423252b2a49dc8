//! From a record to a verdict: proofs first, invariants next, the drill's own gates last.
//! `run`'s caller, `drill report` and tests call `judge`; the same record always gives the same report.
//! It is pure, and it never turns a missing answer into a pass: a run that proves nothing is invalid.

use super::act::Claim;
use super::aim::{at_the_fault, strayed};
use super::api::{ApiWindow, windows};
use super::checker::{Checked, Violation, check};
use super::clock::{At, human};
use super::gates::{self, TOO_SLOW};
use super::history::Session;
use super::invariants::{self, Check, examples};
use super::record::{BASELINE_BEATS, LogSource, Looked, Record};
use super::target::Id;
use super::windows::{
    Gap, Lane, Leader, Leadership, count_longer, full_membership, lanes, leaderships, lives, longest, new_leader, percentile,
};
use crate::event::Verdict;
use crate::spec::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// How a drill came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Result {
    Pass,
    Fail,
    /// It proved nothing: the fault or the load was not shown to have happened.
    Invalid,
}

/// The five figures, and what they are made of. Lengths in microseconds; `None`: it did not happen, or could not be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    pub longest_write_gap: Gap,
    /// Of the fail-over writer alone.
    pub client_gap: Gap,
    /// Gaps longer than five times the 99th percentile before the fault.
    pub gaps: usize,
    pub new_leader: Option<At>,
    pub new_leader_is: Option<String>,
    pub time_to_new_leader_us: Option<u64>,
    pub time_to_full_membership_us: Option<u64>,
    /// `None`: there is no final log to tell.
    pub lost_acknowledged_writes: Option<usize>,
    /// Acknowledged after the snapshot that a drill restores, and lost with all data: counted, and no breach.
    #[serde(default)]
    pub lost_after_snapshot: usize,
    pub checker: Verdict,
    pub acked_writes: usize,
    pub failed_writes: usize,
    pub unknown_writes: usize,
    pub client_failures: usize,
    /// 99th percentile of acknowledged writes after the heal.
    pub p99_after_us: u64,
    /// The API, by each door and kind of probe; empty where nobody asked it.
    pub api: Vec<ApiWindow>,
}

/// The verdict and everything it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Judgement {
    pub result: Result,
    /// Why, one line each: what failed, or what makes it invalid.
    pub reasons: Vec<String>,
    pub figures: Figures,
    pub checks: Vec<Check>,
    pub checked: Checked,
    /// Each member's life, for drawing.
    pub lanes: Vec<Vec<Lane>>,
    pub etcd_version: String,
}

/// Judges a run.
pub fn judge(record: &Record) -> Judgement {
    let silence = silence(record);
    let mut lives = lives(&record.samples, record.members.len(), silence);
    for (member, starts) in &mut lives.0 {
        // One that was silent and is the same process, paused or cut off, has forgotten nothing.
        let is = |all: &[Option<String>]| all.get(*member).cloned().flatten();
        if is(&record.incarnations).is_some_and(|before| is(&record.after.incarnations) == Some(before)) {
            starts.clear();
        }
    }
    let mut checked = check(&record.ops, &record.after.log, record.restored, &lives);
    if matches!(record.after.log_source, LogSource::Missing(_)) {
        // Without a log only answers can contradict each other.
        checked.violations.retain(Violation::needs_no_log);
    }
    let figures = figures(record, &checked);
    let proofs = [v1_fault_proven(record), v2_load_ran(record)];
    let mut checks: Vec<Check> = vec![
        invariants::i1_nothing_lost(record, &checked),
        invariants::i2_one_leader_per_term(record, silence),
        invariants::i3_nothing_goes_back(record, &checked, &lives),
        invariants::i4_in_order(record, &checked),
        invariants::i5_equal_hashes(record),
        invariants::i6_same_members(record),
        invariants::i7_no_alarm(record),
        invariants::i8_alive(record),
    ];
    checks.extend(invariants::i9_no_acks(record));
    checks.push(invariants::i10_watches(record));
    checks.extend(invariants::i11_bystanders(record));
    checks.push(healed(record));
    checks.extend(kube_back(record));
    checks.extend(restored(record));
    checks.extend(gates::gates(record, &figures, silence));
    for check in &mut checks {
        check.waived = record.drill.expect.waive.contains(&check.id);
    }
    let (result, reasons) = verdict(record, &proofs, &checks);
    let end = record.marks.end;
    Judgement {
        result,
        reasons,
        figures,
        lanes: (0..record.members.len()).map(|m| lanes(&record.samples, m, record.marks.baseline, end, silence)).collect(),
        checks: proofs.into_iter().chain(checks).collect(),
        checked,
        etcd_version: version(record),
    }
}

/// What is wrong whether or not the fault or the load was shown. I9 is not among them: it presupposes that the fault was there; I8
/// and I11 are about a run that went its way.
pub(super) const SAFETY: [&str; 8] = ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I10"];

/// Broken promises are a failure whatever else happened; without proof nothing else counts; then the rest.
fn verdict(record: &Record, proofs: &[Check], checks: &[Check]) -> (Result, Vec<String>) {
    let told = |check: &Check| format!("{} {}: {}", check.id, check.title, check.seen);
    let counted = || checks.iter().filter(|check| !check.waived);
    let broken: Vec<String> =
        counted().filter(|c| c.verdict == Verdict::Fail && SAFETY.contains(&c.id.as_str())).map(told).collect();
    if !broken.is_empty() {
        return (Result::Fail, broken);
    }
    let mut unproven: Vec<String> = record.aborted.iter().map(|why| format!("the run was cut short: {why}")).collect();
    unproven.extend(proofs.iter().filter(|check| check.verdict != Verdict::Pass).map(told));
    if !unproven.is_empty() {
        return (Result::Invalid, unproven);
    }
    let failed: Vec<String> = counted().filter(|check| check.verdict == Verdict::Fail).map(told).collect();
    if !failed.is_empty() {
        return (Result::Fail, failed);
    }
    let unknown: Vec<String> = counted().filter(|check| check.verdict == Verdict::Unknown).map(told).collect();
    if !unknown.is_empty() {
        return (Result::Invalid, unknown);
    }
    (Result::Pass, vec![])
}

/// A member counts as away when it has been silent for so long: a few samples, or what a slow cluster needs for an answer.
pub fn silence(record: &Record) -> Duration {
    Duration::from_millis(400).max(record.baseline.p99 * 3).max(record.baseline.sampling * 4)
}

fn version(record: &Record) -> String {
    let versions = record.samples.iter().filter_map(|sample| sample.status.as_ref()).map(|status| status.version.clone());
    let all: BTreeSet<String> = versions.collect();
    if all.is_empty() { "unknown".to_owned() } else { all.into_iter().collect::<Vec<_>>().join(", ") }
}

/// Who led just before the fault.
pub(super) fn old_leader(record: &Record) -> Option<Leader> {
    let before = |sample: &&super::record::Sample| sample.at <= record.marks.inject;
    record.samples.iter().filter(before).filter_map(Leader::of).next_back()
}

/// Moments of acknowledgement, in order.
pub(super) fn acks(record: &Record) -> Vec<At> {
    record.acked_writes().iter().map(|op| op.ret).collect()
}

/// The load's end, or, of a run that was cut short, the last that was seen.
pub(super) fn end(record: &Record) -> At {
    if record.marks.end == At::ZERO { record.samples.last().map_or(At::ZERO, |s| s.at) } else { record.marks.end }
}

fn figures(record: &Record, checked: &Checked) -> Figures {
    let marks = record.marks;
    let (end, acks) = (end(record), acks(record));
    let own = |session| -> Vec<At> { record.acked_writes().iter().filter(|op| op.session == session).map(|op| op.ret).collect() };
    let client = own(Session::Failover);
    let count = |outcome| record.ops.iter().filter(|op| op.is_write() && op.outcome == outcome).count();
    let during = |op: &&super::history::Op| op.inv >= marks.inject;
    let leader = new_leader(&record.samples, old_leader(record), marks.inject);
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let mut after: Vec<Duration> = record
        .acked_writes()
        .iter()
        .filter(|op| marks.settled != At::ZERO && op.inv >= marks.settled)
        .map(|op| op.latency())
        .collect();
    let sound = checked.violations.is_empty();
    let known = !matches!(record.after.log_source, LogSource::Missing(_));
    Figures {
        longest_write_gap: longest(&acks, marks.inject, end),
        client_gap: longest(&client, marks.inject, end),
        gaps: count_longer(&acks, marks.inject, end, record.baseline.p99 * 5),
        new_leader: leader.map(|(at, _)| at),
        new_leader_is: leader.map(|(_, member)| record.member_name(member)),
        time_to_new_leader_us: leader.map(|(at, _)| us(at.since(marks.inject))),
        time_to_full_membership_us: back(record).map(|at| us(at.since(marks.heal))),
        lost_acknowledged_writes: known.then(|| checked.lost()),
        lost_after_snapshot: checked.beyond_snapshot,
        checker: match (sound, known) {
            (false, _) => Verdict::Fail,
            (true, true) => Verdict::Pass,
            (true, false) => Verdict::Unknown,
        },
        acked_writes: acks.len(),
        failed_writes: count(super::history::Outcome::Fail),
        unknown_writes: count(super::history::Outcome::Unknown),
        client_failures: record.ops.iter().filter(during).filter(|op| op.session == Session::Failover && !op.acked()).count(),
        p99_after_us: us(percentile(&mut after, 99.0)),
        api: record.kube.as_ref().map(|kube| windows(&kube.probes, marks)).unwrap_or_default(),
    }
}

/// When, after the heal, every member followed one leader and had taken a write.
fn back(record: &Record) -> Option<At> {
    let heal = record.marks.heal;
    if heal == At::ZERO {
        return None;
    }
    let followed = full_membership(&record.samples, record.members.len(), heal)?;
    let wrote = (0..record.members.len()).map(|member| {
        let own = record.ops.iter().filter(|op| op.session == Session::Pinned(member) && op.inv >= heal && op.acked());
        own.map(|op| op.ret).min()
    });
    Some(wrote.collect::<Option<Vec<At>>>()?.into_iter().fold(followed, At::max))
}

/// V1: everything the fault claims was seen, when it was injected and still before the heal, and whoever was hit was then what the
/// drill says of its target.
fn v1_fault_proven(record: &Record) -> Check {
    let title = "the fault is proven";
    let mut held = Vec::new();
    let mut missing = Vec::new();
    if record.marks.inject != At::ZERO {
        let then = at_the_fault(record, silence(record).max(STALL_MOST));
        let why = strayed(record.drill.target, &record.chosen.nodes, &then);
        missing.extend(why.map(|why| format!("not shown: just before the fault {why}")));
    }
    for claim in &record.script.claims {
        let (ok, evidence) = if claim.observed() { observed(record, claim) } else { looked(&record.looked, claim) };
        let line = format!("{claim} ({evidence})");
        if ok { held.push(line) } else { missing.push(format!("not shown: {line}")) }
    }
    if missing.is_empty() && !held.is_empty() {
        Check::new("V1", title, Verdict::Pass, held.join("; "))
    } else {
        Check::new("V1", title, Verdict::Unknown, examples(&missing))
    }
}

fn looked(all: &[Looked], claim: &Claim) -> (bool, String) {
    let last = |still: bool| all.iter().rev().find(|looked| looked.claim == *claim && looked.still == still);
    match (last(false), last(true)) {
        (Some(first), Some(still)) => {
            let shown = if first.proof.held { &still.proof } else { &first.proof };
            (first.proof.held && still.proof.held, shown.evidence.clone())
        }
        (Some(first), None) => (false, format!("{}, and not looked at again", first.proof.evidence)),
        _ => (false, "not looked at".to_owned()),
    }
}

/// Claims that are seen from outside.
pub(super) fn observed(record: &Record, claim: &Claim) -> (bool, String) {
    let marks = record.marks;
    let member = |node: &NodeName| record.members.iter().position(|member| member.node == *node);
    match claim {
        Claim::Silent { node } => {
            let Some(member) = member(node) else { return (false, "not a member".to_owned()) };
            // An answer may have been on its way when the fault began.
            let from = marks.injected.plus(Duration::from_millis(200));
            let own = record.samples.iter().filter(|s| s.member == member && s.sent >= from && s.at < marks.heal);
            let answers = own.clone().filter(|sample| sample.status.is_some()).count();
            let asked = record.samples.iter().filter(|s| s.member == member && s.sent >= from && s.sent < marks.heal).count();
            (answers == 0 && asked > 0, format!("{answers} of {asked} questions answered"))
        }
        Claim::LeaderMoved { from } => {
            let (led, old) = (led_under_the_fault(record), member(from));
            match led.iter().find(|led| Some(led.member) != old) {
                Some(led) => (true, format!("{} led at {}", record.member_name(led.member), led.from)),
                None => (false, "nobody else led".to_owned()),
            }
        }
        Claim::Alarm { name } => {
            let raised = record
                .samples
                .iter()
                .filter(|sample| sample.at > marks.inject && sample.at < marks.heal)
                .any(|sample| sample.status.as_ref().is_some_and(|status| super::admin::has_alarm(&status.errors, name)));
            (raised, if raised { "listed by members".to_owned() } else { "no member listed it".to_owned() })
        }
        Claim::NewIdentity { node } => {
            let before = record.before.members.iter().find(|member| member.node == *node).map(|member| member.id);
            let after = member(node).and_then(|member| record.after.ids.get(member).copied().flatten());
            match (before, after) {
                (Some(before), Some(after)) => (before != after, format!("{before} before, {after} after")),
                _ => (false, "an id is not known".to_owned()),
            }
        }
        Claim::Booted { node } => match record.boots(node) {
            [Some(before), Some(after)] => (before != after, format!("boot {before}, and then {after}")),
            _ => (false, "which boot it was in is not known".to_owned()),
        },
        Claim::Restarted { nodes } => {
            let same: Vec<String> = nodes
                .iter()
                .filter(|node| {
                    let at = |all: &[Option<String>]| member(node).and_then(|member| all.get(member).cloned().flatten());
                    match (at(&record.incarnations), at(&record.after.incarnations)) {
                        (Some(before), Some(after)) => before == after,
                        _ => true,
                    }
                })
                .map(|node| node.to_string())
                .collect();
            let shown =
                if same.is_empty() { format!("{} new processes", nodes.len()) } else { format!("{} as before", same.join(", ")) };
            (same.is_empty() && !nodes.is_empty(), shown)
        }
        Claim::Elections { times } => {
            let terms: BTreeSet<(Id, u64)> = led_under_the_fault(record).iter().map(|led| (led.cluster, led.term)).collect();
            (terms.len() >= usize::from(*times), format!("{} terms with a leader", terms.len()))
        }
        _ => (false, "this claim is the injector's to prove".to_owned()),
    }
}

/// Who came to lead between the fault and the heal. An election after it is the heal's, and a term that is behind was another's.
fn led_under_the_fault(record: &Record) -> Vec<Leadership> {
    let (inject, heal) = (record.marks.inject, record.marks.heal);
    let mut led = leaderships(&record.samples, silence(record));
    led.retain(|led| led.from > inject && led.from < heal && !led.term_behind);
    led
}

/// A longer stall of the observer makes its figures worthless.
const STALL_MOST: Duration = Duration::from_millis(500);

/// Elections that a write may take before the fault: emulated clusters need a third of one, and a half tells of a sick one.
const SLOWEST: f64 = 0.5;

/// Of the writes that are due: what a busy host still manages. Much less would leave gaps that are ours and not the cluster's, and
/// limits that rest on a handful of latencies.
const PACE_LEAST: f64 = 0.5;

/// V2: there was load before, during and after the fault, and the cluster was quick enough to be measured.
fn v2_load_ran(record: &Record) -> Check {
    let title = "load ran before, during and after the fault";
    let marks = record.marks;
    let baseline = record.baseline;
    let writes = |from: At, to: At| record.ops.iter().filter(|op| op.is_write() && op.inv >= from && op.inv < to).count();
    // Writers wait for no answer: whoever begins too few was not let run.
    let due = |from: At, to: At| {
        let beats = to.since(from).as_secs_f64() / baseline.interval.as_secs_f64().max(0.001);
        beats * (record.members.len() + 1) as f64
    };
    // As long as it was to be: what came until the fault, timers for one, is not what its figures are from.
    let wished = record.drill.load.baseline.of(&record.environment.timing).max(baseline.interval * BASELINE_BEATS);
    let measured = marks.baseline.plus(wished).min(marks.inject);
    let before = writes(marks.baseline, measured);
    let during = writes(marks.inject, marks.heal);
    // Whether they were acknowledged is I8's question: a cluster that takes none has failed, and the run has shown it.
    let after = writes(marks.heal, At(u64::MAX));
    let stall = record
        .stalls
        .iter()
        .filter(|stall| stall.to > marks.baseline && stall.from < marks.end)
        .max_by_key(|stall| stall.length());
    if let Some(stall) = stall.filter(|stall| stall.length() > STALL_MOST.max(baseline.p99 * 2)) {
        let seen = format!(
            "the observer itself stood still for {} at {}: the host is too busy, or was suspended",
            human(stall.length()),
            stall.from
        );
        return Check::new("V2", title, Verdict::Unknown, seen);
    }
    let seen = format!(
        "{} of {} writes acknowledged before, {during} tried during, {after} tried after",
        baseline.acked, baseline.writes
    );
    let slowest = record.environment.timing.election().mul_f64(SLOWEST);
    if baseline.p99 > slowest {
        let seen = format!(
            "before the fault 99 % of writes took up to {}: with more than {} elections happen without a fault",
            human(baseline.p99),
            human(slowest)
        );
        return Check::new("V2", title, Verdict::Unknown, seen);
    }
    let slow = |tried: usize, due: f64| (tried as f64) < due * PACE_LEAST;
    let paced = |when: &str, tried: usize, due: f64| {
        format!("{seen}; of some {due:.0} writes that were due {when}, {tried} were tried, less than half the pace: {TOO_SLOW}")
    };
    let (due_before, due_during) = (due(marks.baseline, measured), due(marks.inject, marks.heal));
    let lacking = if baseline.acked < 10 || baseline.acked * 10 < baseline.writes * 9 {
        format!("too few were acknowledged before: {seen}")
    } else if slow(before, due_before) {
        paced("before", before, due_before)
    } else if slow(during, due_during) {
        paced("during", during, due_during)
    } else if after == 0 {
        format!("none was tried after: {seen}")
    } else {
        return Check::new("V2", title, Verdict::Pass, seen);
    };
    Check::new("V2", title, Verdict::Unknown, lacking)
}

/// The heal left nothing behind.
fn healed(record: &Record) -> Check {
    let title = "the heal leaves nothing behind";
    match &record.after.leftovers {
        Ok(all) if all.is_empty() => Check::new("healed", title, Verdict::Pass, "nothing"),
        Ok(all) => Check::new("healed", title, Verdict::Fail, examples(all)),
        Err(error) => Check::new("healed", title, Verdict::Unknown, error),
    }
}

/// A restored cluster is another one, whose revisions go on above all that the old one had shown: clients that cache by revision
/// would otherwise take old for new.
fn restored(record: &Record) -> Option<Check> {
    let at = record.restored?.at;
    let title = "the restored cluster is a new one, and its revisions go on above the old";
    let answers = |after: bool| {
        record.ops.iter().filter(move |op| op.acked() && (op.inv >= at) == after).filter_map(|op| op.answer).map(|a| a.revision)
    };
    let clusters = |after: bool| -> BTreeSet<Id> {
        let own = record.samples.iter().filter(|sample| if after { sample.sent >= record.marks.settled } else { sample.at < at });
        own.filter_map(|sample| sample.status.as_ref()).map(|status| status.cluster).collect()
    };
    let shown = |all: &BTreeSet<Id>| all.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    let (old, new) = (clusters(false), clusters(true));
    let (Some(highest), Some(lowest)) = (answers(false).max(), answers(true).min()) else {
        return Some(Check::new("restored", title, Verdict::Unknown, "no answer before or none after"));
    };
    if old.is_empty() || new.is_empty() || record.marks.settled == At::ZERO {
        return Some(Check::new("restored", title, Verdict::Unknown, "no sample before or none after"));
    }
    let right = lowest > highest && old.is_disjoint(&new);
    let seen = format!("revision {highest} and then {lowest}, cluster {} and then {}", shown(&old), shown(&new));
    Some(Check::new("restored", title, if right { Verdict::Pass } else { Verdict::Fail }, seen))
}

/// Kubernetes is as it was: nodes Ready, every server answering, dead pods started again. That the unit of a kubelet or an API
/// server runs, which is what the heal looks at, is not that.
fn kube_back(record: &Record) -> Option<Check> {
    if !record.drill.load.api {
        return None;
    }
    let title = "Kubernetes is as it was after the heal";
    Some(match &record.kube_back {
        Some(Ok(())) => Check::new("kubernetes", title, Verdict::Pass, "every server answers, every node is Ready"),
        Some(Err(why)) => Check::new("kubernetes", title, Verdict::Fail, why),
        None => Check::new("kubernetes", title, Verdict::Unknown, "it was not awaited"),
    })
}
