//! What probes of the Kubernetes API come down to: windows without an answer by each door, and the gates that are about the API.
//! `judge` calls it; reports show the windows.
//! It is pure, and what nobody looked at is unknown, never green.

use super::catalogue::PodFate;
use super::clock::{At, human};
use super::gates::Limit;
use super::invariants::{Check, examples, pods_changed};
use super::kube::{ApiProbe, Door};
use super::record::{Marks, Record};
use super::windows::{Gap, longest, percentile};
use crate::event::Verdict;
use crate::plan::lease_holder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// How the API was to be had by one door, with one kind of probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiWindow {
    pub door: Door,
    /// On a new connection each time, or on one that is kept.
    pub fresh: bool,
    /// Writes of a ConfigMap, or readings of `/readyz`.
    pub write: bool,
    /// The longest time without an answer, from the fault on.
    pub gap: Gap,
    pub answered: usize,
    pub failed: usize,
    /// Whether there was an answer to a question asked after the heal: without one the gap is still open.
    pub back: bool,
    /// Median of the answers before the fault, in microseconds.
    pub median_us: u64,
}

/// One for each door and kind of probe that there was.
pub fn windows(probes: &[ApiProbe], marks: Marks) -> Vec<ApiWindow> {
    let kinds: BTreeSet<(Door, bool, bool)> = probes.iter().map(|p| (p.door.clone(), !p.fresh, p.write)).collect();
    let window = |(door, kept, write): (Door, bool, bool)| {
        let own = || probes.iter().filter(|p| p.door == door && p.fresh != kept && p.write == write);
        let mut answers: Vec<At> = own().filter(|p| p.error.is_none()).map(|p| p.at).collect();
        answers.sort();
        let before = own().filter(|p| p.error.is_none() && p.at < marks.inject);
        let mut taken: Vec<Duration> = before.map(|p| p.at.since(p.sent)).collect();
        ApiWindow {
            fresh: !kept,
            write,
            gap: longest(&answers, marks.inject, marks.end),
            answered: answers.len(),
            failed: own().filter(|p| p.error.is_some()).count(),
            back: own().any(|p| p.error.is_none() && p.sent >= marks.heal),
            median_us: u64::try_from(percentile(&mut taken, 50.0).as_micros()).unwrap_or(u64::MAX),
            door,
        }
    };
    kinds.into_iter().map(window).collect()
}

/// The gates that are about the API, nodes and pods.
pub fn gates(record: &Record) -> Vec<Check> {
    let expect = &record.drill.expect;
    let timing = &record.environment.timing;
    let mut checks = Vec::new();
    if let Some(bound) = &expect.api_gap {
        let limit = Limit::of(bound, record);
        checks.push(Check { expected: limit.expected(), ..api_gap(record, &limit) });
    }
    if let Some(bound) = &expect.takeover {
        let limit = Limit::of(bound, record);
        checks.push(Check { expected: limit.expected(), ..takeover(record, &limit) });
    }
    if let Some((from, to)) = &expect.not_ready {
        let (from, to) = (from.of(timing), to.of(timing));
        checks.push(Check { expected: Some(format!("{} … {}", human(from), human(to))), ..not_ready(record, from, to) });
    }
    if let Some(fate) = expect.pods {
        checks.push(pods(record, fate));
    }
    checks
}

fn api_gap(record: &Record, limit: &Limit) -> Check {
    let title = "longest time without an answer of the API";
    let all = record.kube.as_ref().map(|kube| windows(&kube.probes, record.marks)).unwrap_or_default();
    let window = all.iter().find(|window| window.door == Door::Vip && window.fresh && !window.write);
    match window {
        None => Check::new("api-gap", title, Verdict::Unknown, "nobody asked it"),
        Some(window) if window.answered == 0 => Check::new("api-gap", title, Verdict::Fail, "it never answered"),
        Some(window) if !window.back => Check::new("api-gap", title, Verdict::Fail, "no answer after the heal"),
        Some(window) => {
            let (verdict, seen) = limit.judge(window.gap.length());
            Check::new("api-gap", title, verdict, seen)
        }
    }
}

/// From the fault to the first sample in which another node holds the lease that the target held. The target's own process, started
/// again, has another identity and is nobody else.
fn takeover(record: &Record, limit: &Limit) -> Check {
    let title = "time until another holder renews the lease";
    let unknown = |why: String| Check::new("takeover", title, Verdict::Unknown, why);
    let Some(lease) = record.drill.target.lease() else { return unknown("the target holds no lease by rule".to_owned()) };
    let samples = record.kube.as_ref().map(|kube| kube.samples.as_slice()).unwrap_or_default();
    let inject = record.marks.inject;
    let before = samples.iter().rev().filter(|sample| sample.at <= inject).find_map(|sample| sample.leases.get(lease));
    let Some(before) = before else { return unknown(format!("who held {lease} before the fault was not seen")) };
    let elsewhere = |holder: &str| lease_holder(holder) != lease_holder(&before.holder);
    let taken = samples
        .iter()
        .filter(|sample| sample.at > inject)
        .find(|sample| sample.leases.get(lease).is_some_and(|now| !now.holder.is_empty() && elsewhere(&now.holder)));
    match taken.map(|sample| sample.at.since(inject)) {
        None => Check::new("takeover", title, Verdict::Fail, "never"),
        Some(took) => {
            let (verdict, seen) = limit.judge(took);
            Check::new("takeover", title, verdict, seen)
        }
    }
}

fn not_ready(record: &Record, from: Duration, to: Duration) -> Check {
    let title = "time until the node is not Ready";
    let node = record.chosen.nodes.first().map(|node| node.to_string()).unwrap_or_default();
    let samples = record.kube.as_ref().map(|kube| kube.samples.as_slice()).unwrap_or_default();
    let inject = record.marks.inject;
    let was_ready = samples.iter().any(|s| s.at <= inject && s.nodes.get(&node).is_some_and(|ready| ready == "True"));
    if !was_ready {
        return Check::new("not-ready", title, Verdict::Unknown, format!("{node} was not seen to be Ready before the fault"));
    }
    let lost = samples
        .iter()
        .filter(|sample| sample.at > inject)
        .find(|sample| sample.nodes.get(&node).is_some_and(|ready| ready != "True"))
        .map(|sample| sample.at.since(inject));
    let verdict = if lost.is_some_and(|lost| lost >= from && lost <= to) { Verdict::Pass } else { Verdict::Fail };
    Check::new("not-ready", title, verdict, lost.map_or("never".to_owned(), human))
}

fn pods(record: &Record, fate: PodFate) -> Check {
    let hit: BTreeSet<String> = record.chosen.nodes.iter().map(|node| node.to_string()).collect();
    let (title, expected) = match fate {
        PodFate::Stay => ("pods on the targets run on", "the same, not restarted"),
        PodFate::Restart => ("pods on the targets are started again", "the same, each restarted"),
    };
    let lists = record.kube.as_ref().map(|kube| (kube.pods_before.clone(), kube.pods_after.clone()));
    let check = match lists {
        Some((Some(Ok(before)), Some(Ok(after)))) => {
            let before: Vec<_> = before.into_iter().filter(|pod| hit.contains(&pod.node)).collect();
            let wrong = match fate {
                PodFate::Stay => pods_changed(&before, &after),
                PodFate::Restart => {
                    let again = |uid: &str, restarts| after.iter().any(|now| now.uid == uid && now.restarts > restarts);
                    let dead = before.iter().filter(|pod| !again(&pod.uid, pod.restarts));
                    dead.map(|pod| format!("{} was not started again", pod.name)).collect()
                }
            };
            if before.is_empty() {
                Check::new("pods", title, Verdict::Unknown, "there was none")
            } else if wrong.is_empty() {
                Check::new("pods", title, Verdict::Pass, format!("{} pods", before.len()))
            } else {
                Check::new("pods", title, Verdict::Fail, examples(&wrong))
            }
        }
        Some((Some(Err(error)), _) | (_, Some(Err(error)))) => Check::new("pods", title, Verdict::Unknown, error),
        _ => Check::new("pods", title, Verdict::Unknown, "nobody looked at them"),
    };
    Check { expected: Some(expected.to_owned()), ..check }
}
