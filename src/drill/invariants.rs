//! The invariants that hold in every drill (I1–I10), each a pure judge of a record.
//! `judge` runs them and adds the drill's own gates; tests feed them records that break one at a time.
//! They know no bound: an invariant holds or it does not, or it could not be found out.

use super::catalogue::{Fault, NoAcks};
use super::checker::{Checked, Shown, Violation, monotonic};
use super::clock::At;
use super::history::{Change, Member, Op};
use super::kube::PodSeen;
use super::quorum::without_quorum;
use super::record::{LogSource, Record};
use super::target::Id;
use super::windows::{Gap, covered, leaderships};
use crate::event::Verdict;
use crate::spec::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

/// One thing that was judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// `I1` … `I11`, `V1`, `V2`, or the name of a gate.
    pub id: String,
    pub title: String,
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What was demanded, for gates.
    pub expected: Option<String>,
    /// A drill may break an invariant by its nature; it is then shown and not counted.
    pub waived: bool,
}

impl Check {
    pub fn new(id: &str, title: &str, verdict: Verdict, seen: impl Display) -> Check {
        Check { id: id.to_owned(), title: title.to_owned(), verdict, seen: seen.to_string(), expected: None, waived: false }
    }
}

/// At most so many examples are told of what is wrong.
const EXAMPLES: usize = 3;

pub fn examples<T: Display>(all: &[T]) -> String {
    let shown: Vec<String> = all.iter().take(EXAMPLES).map(|one| one.to_string()).collect();
    let more = if all.len() > EXAMPLES { format!(" and {} more", all.len() - EXAMPLES) } else { String::new() };
    format!("{}{more}", shown.join("; "))
}

/// What the log covers: without it, nothing is known to have been kept. What answers or deliveries contradict by themselves is
/// broken all the same.
fn with_log(record: &Record, check: Check) -> Check {
    match &record.after.log_source {
        LogSource::Missing(why) if check.verdict == Verdict::Pass => {
            Check { verdict: Verdict::Unknown, seen: format!("no final log: {why}"), ..check }
        }
        _ => check,
    }
}

pub fn i1_nothing_lost(record: &Record, checked: &Checked) -> Check {
    let broken: Vec<&Violation> = checked.violations.iter().filter(|v| v.invariant() == "I1").collect();
    let beyond = match checked.beyond_snapshot {
        0 => String::new(),
        n => format!(", {n} after the snapshot and lost with it"),
    };
    let (verdict, seen) = if broken.is_empty() {
        (Verdict::Pass, format!("{} acknowledged writes, all there{beyond}", checked.acked_writes))
    } else {
        (Verdict::Fail, examples(&broken))
    };
    with_log(record, Check::new("I1", "every acknowledged write is kept, once, at its revision", verdict, seen))
}

pub fn i2_one_leader_per_term(record: &Record, silence: Duration) -> Check {
    // A restored cluster is another one, with terms of its own.
    let mut leaders: BTreeMap<(Id, u64), BTreeSet<Member>> = BTreeMap::new();
    let all = leaderships(&record.samples, silence);
    for led in all.iter().filter(|led| !led.term_behind) {
        leaders.entry((led.cluster, led.term)).or_default().insert(led.member);
    }
    let title = "at most one leader per term";
    let clusters: BTreeSet<Id> = leaders.keys().map(|(cluster, _)| *cluster).collect();
    let place = |(cluster, term): &(Id, u64)| {
        if clusters.len() > 1 { format!("term {term} of cluster {cluster}") } else { format!("term {term}") }
    };
    let double = leaders.iter().find(|(_, members)| members.len() > 1);
    match double {
        Some((term, members)) => {
            let names: Vec<String> = members.iter().map(|m| record.member_name(*m)).collect();
            Check::new("I2", title, Verdict::Fail, format!("in {}: {}", place(term), names.join(" and ")))
        }
        None if leaders.is_empty() => Check::new("I2", title, Verdict::Unknown, "nobody was seen to lead"),
        None => {
            let shown: Vec<String> = leaders
                .iter()
                .flat_map(|(term, members)| members.iter().map(move |m| format!("{}: {}", place(term), record.member_name(*m))))
                .collect();
            Check::new("I2", title, Verdict::Pass, shown.join(", "))
        }
    }
}

pub fn i3_nothing_goes_back(record: &Record, checked: &Checked, lives: &super::checker::Lives) -> Check {
    let shown = record.samples.iter().filter_map(|sample| {
        let status = sample.status.as_ref()?;
        let (revision, term) = (status.revision, status.term);
        Some(Shown { member: sample.member, asked: sample.sent, answered: sample.at, revision, term })
    });
    let mut broken = monotonic(shown.collect(), lives);
    broken.extend(checked.violations.iter().filter(|v| v.invariant() == "I3").cloned());
    let title = "no member's revision or term goes back";
    let unseen: Vec<String> = (0..record.members.len())
        .filter(|member| !record.samples.iter().any(|sample| sample.member == *member && sample.status.is_some()))
        .map(|member| record.member_name(member))
        .collect();
    if !broken.is_empty() {
        Check::new("I3", title, Verdict::Fail, examples(&broken))
    } else if !unseen.is_empty() || record.members.is_empty() {
        Check::new("I3", title, Verdict::Unknown, format!("no sample of {}", unseen.join(", ")))
    } else {
        Check::new(
            "I3",
            title,
            Verdict::Pass,
            format!("{} samples, {} answers", record.samples.len(), checked.reads + checked.acked_writes),
        )
    }
}

pub fn i4_in_order(record: &Record, checked: &Checked) -> Check {
    let broken: Vec<&Violation> = checked.violations.iter().filter(|v| v.invariant() == "I4").collect();
    let (verdict, seen) = if broken.is_empty() {
        let unknown = checked.unknown_applied + checked.unknown_not_applied;
        let shown = format!(
            "{} writes and {} reads; of {unknown} writes of unknown outcome {} were applied",
            checked.acked_writes, checked.reads, checked.unknown_applied
        );
        (Verdict::Pass, shown)
    } else {
        (Verdict::Fail, examples(&broken))
    };
    with_log(record, Check::new("I4", "reads and writes are in one order that agrees with real time", verdict, seen))
}

pub fn i5_equal_hashes(record: &Record) -> Check {
    let title = "all members hold the same history";
    let hashes: Result<BTreeSet<(u32, i64)>, String> = record.after.hashes.iter().map(|hashed| hashed.hash.clone()).collect();
    match hashes {
        Err(error) => Check::new("I5", title, Verdict::Unknown, error),
        Ok(hashes) if hashes.is_empty() => Check::new("I5", title, Verdict::Unknown, "no hash was taken"),
        Ok(hashes) => {
            let revision = record.after.hash_revision;
            match hashes.into_iter().collect::<Vec<_>>().as_slice() {
                [(hash, _)] => Check::new("I5", title, Verdict::Pass, format!("hash {hash:08x} at revision {revision} on all")),
                different => {
                    let shown: Vec<String> =
                        different.iter().map(|(hash, from)| format!("{hash:08x} (compacted at {from})")).collect();
                    let compactions: BTreeSet<i64> = different.iter().map(|(_, from)| *from).collect();
                    // Hashes cover history from the compaction on, so they can be compared only where that is the same.
                    let verdict = if compactions.len() == different.len() { Verdict::Unknown } else { Verdict::Fail };
                    Check::new("I5", title, verdict, format!("at revision {revision}: {}", shown.join(", ")))
                }
            }
        }
    }
}

pub fn i6_same_members(record: &Record) -> Check {
    let title = "all members have the same, expected list of members";
    let lists: Result<BTreeSet<_>, String> = record.after.lists.iter().cloned().collect();
    let lists = match lists {
        Err(error) => return Check::new("I6", title, Verdict::Unknown, error),
        Ok(lists) => lists,
    };
    let [list] = lists.iter().collect::<Vec<_>>()[..] else {
        let verdict = if lists.is_empty() { Verdict::Unknown } else { Verdict::Fail };
        return Check::new("I6", title, verdict, format!("{} different lists", lists.len()));
    };
    // A member that is replaced, and all that are restored, come back as others; nobody else may.
    let renewed = |node: &NodeName| match record.drill.fault {
        Fault::Restore {} => true,
        Fault::ReplaceMember {} => record.chosen.nodes.contains(node),
        _ => false,
    };
    let mut wrong = Vec::new();
    let mut blind = Vec::new();
    for member in &record.members {
        match list.iter().filter(|row| row.peer_urls.contains(&member.peer_url)).collect::<Vec<_>>()[..] {
            [row] if row.learner => wrong.push(format!("{} is a learner", member.node)),
            [row] if row.name != member.node.to_string() => wrong.push(format!("{} is called {:?}", member.peer_url, row.name)),
            [row] if !row.client_urls.contains(&member.client_url) => {
                wrong.push(format!("{} tells clients {:?}", member.node, row.client_urls));
            }
            [row] if !renewed(&member.node) => match record.before.members.iter().find(|seen| seen.node == member.node) {
                Some(before) if before.id == row.id => (),
                Some(before) => wrong.push(format!("{} is {}, and was {}", member.node, row.id, before.id)),
                None => blind.push(format!("which member {} was is not known", member.node)),
            },
            [_] => (),
            ref rows => wrong.push(format!("{} is listed {} times", member.node, rows.len())),
        }
    }
    if list.len() != record.members.len() {
        wrong.push(format!("{} rows for {} members", list.len(), record.members.len()));
    }
    match (wrong.is_empty(), blind.is_empty()) {
        (false, _) => Check::new("I6", title, Verdict::Fail, wrong.join("; ")),
        (true, false) => Check::new("I6", title, Verdict::Unknown, blind.join("; ")),
        (true, true) => Check::new("I6", title, Verdict::Pass, format!("{} members, no learner", list.len())),
    }
}

pub fn i7_no_alarm(record: &Record) -> Check {
    let title = "no alarm, no panic, no fatal error in the logs";
    match (&record.after.alarms, &record.after.alarming_logs) {
        (Ok(alarms), Ok(lines)) if alarms.is_empty() && lines.is_empty() => Check::new("I7", title, Verdict::Pass, "none"),
        (Ok(alarms), Ok(lines)) => {
            let mut seen: Vec<String> = alarms.iter().map(|(id, alarm)| format!("{alarm} on {id}")).collect();
            seen.extend(lines.iter().map(|line| line.chars().take(200).collect()));
            Check::new("I7", title, Verdict::Fail, examples(&seen))
        }
        (Err(error), _) | (_, Err(error)) => Check::new("I7", title, Verdict::Unknown, error),
    }
}

/// Liveness at the end: the healed cluster takes writes, through every member.
pub fn i8_alive(record: &Record) -> Check {
    let title = "the healed cluster takes writes through every member";
    let settled = record.marks.settled;
    if settled == At::ZERO {
        return Check::new("I8", title, Verdict::Fail, "the members did not come together again");
    }
    let dead: Vec<String> = (0..record.members.len())
        .filter(|member| !record.ops.iter().any(|op| op.is_write() && op.acked() && op.member == *member && op.inv >= settled))
        .map(|member| record.member_name(member))
        .collect();
    if dead.is_empty() {
        Check::new("I8", title, Verdict::Pass, format!("{} members", record.members.len()))
    } else {
        Check::new("I8", title, Verdict::Fail, format!("no write was acknowledged by {}", dead.join(", ")))
    }
}

/// While the fault is in force no write may be acknowledged by members that it leaves without a quorum, and by whomever the drill names
/// besides: neither one begun during it, nor one begun before and answered when nothing can be under way any more.
pub fn i9_no_acks(record: &Record) -> Option<Check> {
    let nodes: Vec<NodeName> = record.members.iter().map(|member| member.node.clone()).collect();
    let mut concerned = without_quorum(&record.script, &nodes);
    match record.drill.expect.no_acks {
        Some(NoAcks::Anywhere) => concerned.extend(0..nodes.len()),
        Some(NoAcks::Targets) => concerned.extend(record.target_members()),
        None if concerned.is_empty() => return None,
        None => (),
    }
    let (from, to) = (record.marks.injected, record.marks.heal);
    let writes: Vec<&Op> = record.ops.iter().filter(|op| op.is_write() && concerned.contains(&op.member)).collect();
    let tried = writes.iter().filter(|op| op.inv > from && op.inv < to).count();
    // An acknowledgement may have been under way when the fault began, but not for longer than a slow write takes; and it may have
    // waited for an observer that stood still.
    let patience = Duration::from_millis(200).max(record.baseline.p99 * 3);
    let late = |op: &Op| {
        let waited = covered(Gap { from, to: op.ret }, &record.stalls);
        op.ret.since(from).saturating_sub(waited) > patience
    };
    let acked: Vec<String> = writes
        .iter()
        .filter(|op| op.acked() && op.ret < to && (op.inv > from || late(op)))
        .map(|op| format!("write {} by {} at {}", op.value.unwrap_or(0), record.member_name(op.member), op.ret))
        .collect();
    let title = if concerned.len() == nodes.len() {
        "no write is acknowledged without a majority"
    } else {
        "no write is acknowledged by a member that cannot reach a majority"
    };
    Some(match (acked.is_empty(), tried) {
        (false, _) => Check::new("I9", title, Verdict::Fail, examples(&acked)),
        (true, 0) => Check::new("I9", title, Verdict::Unknown, "no write was tried"),
        (true, tried) => Check::new("I9", title, Verdict::Pass, format!("{tried} writes tried, none acknowledged")),
    })
}

pub fn i10_watches(record: &Record) -> Check {
    let title = "watches deliver every change once and in order";
    // Watches go on for a while after the log was read: what came later cannot be in it. Up to there all that was delivered must be.
    let newest = record.after.log.iter().map(|change| change.revision).max().unwrap_or(0);
    let read = match &record.after.log_source {
        // Only the order of what was delivered can be wrong then.
        LogSource::Missing(_) => 0,
        _ if record.after.log_revision > 0 => record.after.log_revision,
        _ => newest,
    };
    let log: BTreeMap<i64, &Change> =
        record.after.log.iter().filter(|change| change.revision <= read).map(|change| (change.revision, change)).collect();
    let last = log.keys().next_back().copied().unwrap_or(0);
    let mut wrong = Vec::new();
    // A member that nobody watched has shown nothing, and neither has a cluster of none.
    let mut behind: Vec<String> = (0..record.members.len())
        .filter(|member| !record.watches.iter().any(|watch| watch.member == *member))
        .map(|member| format!("{}: no watch", record.member_name(member)))
        .collect();
    if record.members.is_empty() {
        behind.push("no member to watch".to_owned());
    }
    for watch in &record.watches {
        let name = record.member_name(watch.member);
        if let Some([a, b]) = watch.changes.windows(2).find(|pair| matches!(pair, [a, b] if a.revision >= b.revision)) {
            wrong.push(format!("{name}: revision {} after {}", b.revision, a.revision));
        }
        let mut known = watch.changes.iter().filter(|change| change.revision <= read);
        if let Some(odd) = known.find(|change| log.get(&change.revision) != Some(change)) {
            wrong.push(format!("{name}: {} = {} at revision {} is not in the log", odd.key, odd.value, odd.revision));
        }
        let seen: BTreeSet<i64> = watch.changes.iter().map(|change| change.revision).collect();
        let to = seen.iter().next_back().copied().unwrap_or(0);
        let missing =
            log.range(watch.from..=to.max(watch.from)).find(|(revision, _)| **revision <= to && !seen.contains(*revision));
        if let Some((revision, _)) = missing {
            wrong.push(format!("{name}: revision {revision} is missing"));
        }
        if to < last {
            let why = watch.broken.clone().unwrap_or_else(|| format!("ended at revision {to} of {last}"));
            behind.push(format!("{name}: {why}"));
        }
    }
    let delivered: usize = record.watches.iter().map(|watch| watch.changes.len()).sum();
    let check = match (wrong.is_empty(), behind.is_empty()) {
        (false, _) => Check::new("I10", title, Verdict::Fail, examples(&wrong)),
        (true, false) => Check::new("I10", title, Verdict::Unknown, examples(&behind)),
        (true, true) => {
            let shown = format!("{delivered} deliveries on {} watches", record.watches.len());
            Check::new("I10", title, Verdict::Pass, shown)
        }
    };
    with_log(record, check)
}

/// Nothing abnormal befell what the fault did not hit: processes elsewhere were not restarted, pods elsewhere live on, without
/// new restarts, and there are no others. `None`: there was nobody to look at.
pub fn i11_bystanders(record: &Record) -> Option<Check> {
    let title = "whatever was not hit is the same and has not restarted";
    let touched = record.touched();
    let mut wrong = Vec::new();
    let mut blind = Vec::new();
    let mut seen = Vec::new();

    let mut members = 0;
    for (i, member) in record.members.iter().enumerate().filter(|(_, member)| !touched.contains(&member.node)) {
        let at = |all: &[Option<String>]| all.get(i).cloned().flatten();
        match (at(&record.incarnations), at(&record.after.incarnations)) {
            (Some(before), Some(after)) if before == after => members += 1,
            (Some(_), Some(_)) => wrong.push(format!("etcd on {} was restarted", member.node)),
            _ => blind.push(format!("which etcd runs on {} is not known", member.node)),
        }
    }
    if members > 0 {
        seen.push(format!("{members} members"));
    }
    match (&record.processes, &record.after.processes) {
        (Err(error), _) | (_, Err(error)) => blind.push(error.clone()),
        (Ok(before), Ok(after)) => {
            let bystanders: Vec<_> = before.iter().filter(|process| !touched.contains(&process.node)).collect();
            for process in &bystanders {
                let now = after.iter().find(|now| now.node == process.node && now.name == process.name);
                if now.is_none_or(|now| now.incarnation != process.incarnation) {
                    wrong.push(format!("{} on {} was restarted", process.name, process.node));
                }
            }
            if !bystanders.is_empty() {
                seen.push(format!("{} other processes", bystanders.len()));
            }
        }
    }
    if let Some(kube) = &record.kube {
        let hit: BTreeSet<String> = touched.iter().map(|node| node.to_string()).collect();
        match (&kube.pods_before, &kube.pods_after) {
            (Some(Ok(before)), Some(Ok(after))) => {
                let elsewhere =
                    |pods: &[PodSeen]| -> Vec<PodSeen> { pods.iter().filter(|pod| !hit.contains(&pod.node)).cloned().collect() };
                wrong.extend(pods_changed(&elsewhere(before), after));
                for new in elsewhere(after).iter().filter(|pod| !before.iter().any(|old| old.uid == pod.uid)) {
                    wrong.push(format!("{} is new", new.name));
                }
                // Nodes without a single pod are not a cluster that was looked at.
                if before.is_empty() && !record.before.workers.is_empty() {
                    blind.push("no pod was seen before the fault".to_owned());
                }
                seen.push(format!("{} pods", elsewhere(before).len()));
            }
            (Some(Err(error)), _) | (_, Some(Err(error))) => blind.push(error.clone()),
            _ => blind.push("nobody looked at the pods".to_owned()),
        }
    }
    match (wrong.is_empty(), blind.is_empty()) {
        (false, _) => Some(Check::new("I11", title, Verdict::Fail, examples(&wrong))),
        (true, false) => Some(Check::new("I11", title, Verdict::Unknown, examples(&blind))),
        (true, true) if seen.is_empty() => None,
        (true, true) => Some(Check::new("I11", title, Verdict::Pass, seen.join(", "))),
    }
}

/// What became of these pods that should not have: gone, or restarted.
pub fn pods_changed(before: &[PodSeen], after: &[PodSeen]) -> Vec<String> {
    let changed = |pod: &PodSeen| match after.iter().find(|now| now.uid == pod.uid) {
        None => Some(format!("{} is gone", pod.name)),
        Some(now) if now.restarts > pod.restarts => Some(format!("{} restarted {} times", pod.name, now.restarts - pod.restarts)),
        Some(_) => None,
    };
    before.iter().filter_map(changed).collect()
}
