//! What the facts of a running cluster come to: a line each, pass, warn or fail, and the next command to type.
//! `running` prints them.
//! Pure: thresholds are here, and nothing is asked.

use super::{Facts, Line, NodeFacts, State3};
use crate::cli::error::CliError;
use crate::cli::{fork, opened};
use crate::drill::quorum::spare;
use crate::inject;
use crate::lab::Refused;
use crate::life;
use crate::plan::{Content, Plan};
use crate::snapshot::{self, State};
use crate::spec::NodeName;
use crate::store::journal::Entry;
use std::collections::BTreeSet;

/// The flag's value in etcd's planned definition.
fn quota_bytes(plan: &Plan) -> Option<u64> {
    let files = plan.controllers().flat_map(|node| &node.files);
    let texts = files.filter_map(|file| match &file.content {
        Content::Text { text } if file.path.ends_with("/etcd.container") => Some(text),
        _ => None,
    });
    let flag = |text: &String| {
        let rest = text.split("--quota-backend-bytes=").nth(1)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    texts.into_iter().find_map(flag)
}

/// Percent of a whole, rounded down; of nothing everything is used.
fn percent(used: u64, all: u64) -> u64 {
    used.saturating_mul(100).checked_div(all).unwrap_or(100)
}

const SOON_DAYS: i64 = 30;
/// Where a controller has its disk for etcd.
const ETCD_DISK: &str = "/var/lib/etcd";

pub(super) fn judge(plan: &Plan, facts: &Facts) -> Result<Vec<Line>, CliError> {
    let typed = |rest: &str| format!("ktcw-vm {rest} -c {}", plan.cluster);
    // What comes after these verbs is handed on, also a flag of ours.
    let inside = |rest: &str| format!("ktcw-vm -c {} {rest}", plan.cluster);
    let line = |what, node: Option<&NodeName>, state, said: String, next: String| Line {
        what,
        node: node.cloned(),
        state,
        said,
        next: (state != State3::Pass).then_some(next),
    };
    let grade = |warn: bool, fail: bool| match (warn, fail) {
        (_, true) => State3::Fail,
        (true, _) => State3::Warn,
        _ => State3::Pass,
    };
    let mut lines = Vec::new();
    for node in &plan.nodes {
        let silent = NodeFacts { silent: Some("it was not asked".to_owned()), ..NodeFacts::default() };
        let seen = facts.nodes.get(&node.name).unwrap_or(&silent);
        let name = Some(&node.name);
        if let Some(why) = &seen.silent {
            lines.push(line("answer", name, State3::Fail, why.clone(), typed("start")));
            continue;
        }
        match seen.clock {
            None => lines.push(line(
                "clock",
                name,
                State3::Fail,
                "it gave no time".to_owned(),
                inside(&format!("ssh {} -- date", node.name)),
            )),
            Some((ahead, uncertain)) => {
                let off = (ahead.abs() - uncertain).max(0.0);
                let said = format!("{:.2} s {} this computer's", ahead.abs(), if ahead < 0.0 { "behind" } else { "ahead of" });
                lines.push(line("clock", name, grade(off > 0.5, off > 1.0), said, typed("up")));
            }
        }
        if seen.disks.is_empty() {
            lines.push(line(
                "disk",
                name,
                State3::Fail,
                "df said nothing".to_owned(),
                inside(&format!("ssh {} -- df", node.name)),
            ));
        }
        for (at, all, used) in &seen.disks {
            let full = percent(*used, *all);
            let said = format!("{at}: {full} % of {} MiB used", all >> 20);
            let store = seen.etcd.as_ref().and_then(|etcd| etcd.as_ref().ok()).map_or(0, |(size, _)| *size);
            let next = match at.as_str() {
                ETCD_DISK => {
                    let look = inside(&format!("ssh {} -- du -ah {ETCD_DISK}", node.name));
                    // Old revisions go by themselves; their room in the file does not.
                    let defrag = format!("{look}; {}", inside("etcdctl defrag --cluster"));
                    if store > used / 2 { defrag } else { look }
                }
                _ => inside(&format!("ssh {} -- journalctl --vacuum-size=100M", node.name)),
            };
            lines.push(line("disk", name, grade(full >= 80, full >= 95), said, next));
        }
        match (&seen.etcd, quota_bytes(plan)) {
            (None, _) => {}
            (Some(Err(why)), _) => {
                lines.push(line(
                    "etcd",
                    name,
                    State3::Fail,
                    format!("no status: {why}"),
                    typed(&format!("logs {} etcd", node.name)),
                ));
            }
            (Some(Ok((size, _))), quota) => {
                let quota = quota.unwrap_or(2 << 30);
                let full = percent(*size, quota);
                let said = format!("{} MiB of a quota of {}: {full} %", size >> 20, quota >> 20);
                lines.push(line("etcd quota", name, grade(full >= 70, full >= 95), said, inside("etcdctl defrag --cluster")));
            }
        }
        match &seen.others {
            None => lines.push(line(
                "certificates",
                name,
                State3::Fail,
                "its files could not be compared".to_owned(),
                typed("certs check"),
            )),
            Some(others) if others.is_empty() => {}
            Some(others) => {
                let said = format!("{} are not those kept here", others.iter().cloned().collect::<Vec<_>>().join(", "));
                lines.push(line("certificates", name, State3::Warn, said, typed("certs renew")));
            }
        }
    }
    let alarms: BTreeSet<&str> = facts
        .nodes
        .values()
        .filter_map(|node| node.etcd.as_ref()?.as_ref().ok())
        .map(|(_, alarms)| alarms.as_str())
        .filter(|alarms| !alarms.is_empty())
        .collect();
    let raised: Vec<&str> = alarms.into_iter().collect();
    let said = if raised.is_empty() { "none raised".to_owned() } else { raised.join(" ") };
    let next = inside("etcdctl alarm list");
    lines.push(line("alarms", None, grade(false, !raised.is_empty()), said, next));
    lines.push(match facts.certs.iter().min_by_key(|row| row.days_left) {
        None => line("certificates", None, State3::Fail, "none can be read here".to_owned(), typed("certs list")),
        Some(first) => {
            let said = format!("{} is the first to end, in {} days", first.id, first.days_left);
            let next = typed(&format!("certs renew --within {SOON_DAYS}"));
            line("certificates", None, grade(first.days_left < SOON_DAYS, first.days_left < 1), said, next)
        }
    });
    let members = plan.controllers().count();
    let moving = plan.spec.lineage.in_motion();
    let said = match (moving, members % 2) {
        (true, _) => "a node is on its way in or out".to_owned(),
        (_, 0) => format!("{}, no more than {} would", tolerated(members), counted(members - 1, "member")),
        _ => tolerated(members),
    };
    let next = if moving { typed("up") } else { typed("node add --role etcd") };
    lines.push(line("members", None, grade(moving || members.is_multiple_of(2), false), said, next));
    let faults = inject::log::open(&facts.history).map_err(CliError::failed)?;
    let said = match faults.first() {
        None => "no drill has left one".to_owned(),
        Some(fault) => format!("that of drill {} (run {}) is in force", fault.drill, fault.run),
    };
    lines.push(line("faults", None, grade(false, !faults.is_empty()), said, typed("drill heal")));
    lines.push(match facts.labs.in_the_way() {
        None => line("lab", None, State3::Pass, "none is open".to_owned(), String::new()),
        Some(why) => {
            let held = if matches!(why, Refused::Open(_)) { ": its faults are in force until they are mended" } else { "" };
            line("lab", None, State3::Warn, format!("{why}{held}"), why.hint(plan.cluster.as_str()))
        }
    });
    lines.push(cut_off(facts, plan.cluster.as_str(), &line));
    let bytes: u64 = facts.snapshots.iter().map(|record| record.bytes).sum();
    let free = facts.pool.as_ref().and_then(|pool| pool.available).map(|bytes| bytes >> 20).or(facts.free_disk_mib);
    let halves = facts.snapshots.iter().any(|record| record.state != State::Whole);
    let said = format!("{} take {} MiB{}", facts.snapshots.len(), bytes >> 20, if halves { ", some never finished" } else { "" });
    let large = free.is_some_and(|free| bytes >> 20 > free);
    lines.push(line("snapshots", None, grade(halves || large, false), said, typed("snapshot list")));
    let (free_memory, memory) = (facts.host.free_memory_mib, facts.host.memory_mib);
    let said = format!("{free_memory} MiB free of {memory}");
    let left = percent(free_memory, memory);
    lines.push(line(
        "host memory",
        None,
        grade(left < 10, left < 3),
        said,
        "end what is not needed, or fewer machines".to_owned(),
    ));
    // Disks grow up to their size: what they may still take is not free.
    let growth: u64 =
        facts.pool.iter().flat_map(|pool| &pool.volumes).map(|v| v.capacity.saturating_sub(v.allocation) >> 20).sum();
    lines.push(match free {
        None => line(
            "host disk",
            None,
            State3::Warn,
            "how much is free is not known".to_owned(),
            "df on the host of the machines".to_owned(),
        ),
        Some(free) => {
            let said = format!("{free} MiB free; the machines' disks may grow by {growth}");
            line(
                "host disk",
                None,
                grade(free < 4096, free < 1024),
                said,
                "ktcw-vm image prune; ktcw-vm snapshot delete".to_owned(),
            )
        }
    });
    Ok(lines)
}

/// Makes a line of what was looked at, the node, the state, what is said, and what to type.
type Liner = dyn Fn(&'static str, Option<&NodeName>, State3, String, String) -> Line;

/// `3 etcd members tolerate 1 failure`
fn tolerated(members: usize) -> String {
    let verb = if members == 1 { "tolerates" } else { "tolerate" };
    let failures = match spare(members) {
        0 => "no failure".to_owned(),
        some => counted(some, "failure"),
    };
    format!("{} {verb} {failures}", counted(members, "etcd member"))
}

/// `1 failure`, `2 failures`
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Work that a crash has left open.
fn cut_off(facts: &Facts, cluster: &str, line: &Liner) -> Line {
    if let Some(open) = snapshot::open_restore(&facts.history) {
        let next = opened::finishing(&open, &facts.labs, cluster);
        return line("cut off", None, State3::Fail, open.to_string(), next);
    }
    if let Err(refused) = fork::refuse_cut_off(&facts.history, cluster) {
        return line("cut off", None, State3::Fail, refused.message, refused.hint.unwrap_or_default());
    }
    let of_lab = facts.labs.open.as_ref().map(|open| open.lab.step());
    let open: Vec<&str> = facts
        .history
        .pending()
        .into_iter()
        .filter_map(|record| match &record.entry {
            // What is left of the faults of a lab that is over, an older version did not close.
            Entry::Step { step, .. } if step.starts_with("lab ") && of_lab.as_ref() != Some(step) => None,
            Entry::Step { step, .. } => Some(step.as_str()),
            _ => None,
        })
        .collect();
    match open.as_slice() {
        [] => line("cut off", None, State3::Pass, "nothing was".to_owned(), String::new()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            line("cut off", None, State3::Warn, format!("{first}{more}"), format!("ktcw-vm {} -c {cluster}", finished_by(first)))
        }
    }
}

/// The verb that ends a step which a run has left open.
fn finished_by(step: &str) -> &'static str {
    match step {
        life::PAUSE | life::RESUME | life::WAKE | life::CLOCKS => "resume",
        "remove" => "down",
        _ if step.starts_with("lab ") => "lab reset",
        _ => "up",
    }
}

#[cfg(test)]
mod tests;
