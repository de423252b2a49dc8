//! Two reports side by side: the figures, and every check that came out differently.
//! `drill report --compare` prints it.
//! It warns where the two are not of a kind; it does not forbid the comparison.

use super::Report;
use super::text::{five, verdict};
use crate::drill::invariants::Check;
use std::fmt::Write as _;

pub fn compare(a: &Report, b: &Report) -> String {
    let mut out = String::new();
    let title = |report: &Report| format!("{} {}", report.record.drill.name, report.record.started);
    let _ = writeln!(out, "A  {}\nB  {}\n", title(a), title(b));
    for difference in differences(a, b) {
        let _ = writeln!(out, "  not of a kind: {difference}");
    }
    let _ = writeln!(out, "  {:26} {:>14} {:>14}", "", "A", "B");
    let _ = writeln!(out, "  {:26} {:>14} {:>14}", "verdict", short(a), short(b));
    for ((name, left, _), (_, right, _)) in five(a).into_iter().zip(five(b)) {
        let _ = writeln!(out, "  {name:26} {left:>14} {right:>14}");
    }
    let count = |name: &str, of: &dyn Fn(&Report) -> usize| format!("  {name:26} {:>14} {:>14}\n", of(a), of(b));
    out.push_str(&count("acknowledged writes", &|r| r.judgement.figures.acked_writes));
    out.push_str(&count("writes of unknown outcome", &|r| r.judgement.figures.unknown_writes));
    // Checks of both in A's order, then those that only B has.
    let in_of = |report: &Report, id: &str| report.judgement.checks.iter().find(|check| check.id == id).cloned();
    let only_b = b.judgement.checks.iter().filter(|check| in_of(a, &check.id).is_none());
    let told =
        |check: Option<&Check>| check.map_or(" was not judged by it".to_owned(), |c| format!(" {}: {}", c.verdict, c.seen));
    for check in a.judgement.checks.iter().chain(only_b) {
        let (left, right) = (in_of(a, &check.id), in_of(b, &check.id));
        if left.as_ref().map(|check| check.verdict) != right.as_ref().map(|check| check.verdict) {
            let (left, right) = (told(left.as_ref()), told(right.as_ref()));
            let _ = writeln!(out, "\n  {} {}\n    A{left}\n    B{right}", check.id, check.title);
        }
    }
    out
}

fn short(report: &Report) -> &'static str {
    verdict(report.judgement.result).split(':').next().unwrap_or_default()
}

fn differences(a: &Report, b: &Report) -> Vec<String> {
    let (left, right) = (&a.record, &b.record);
    let pairs = [
        ("drill", left.drill.name.clone(), right.drill.name.clone()),
        ("etcd", a.judgement.etcd_version.clone(), b.judgement.etcd_version.clone()),
        ("acceleration", left.environment.acceleration.clone(), right.environment.acceleration.clone()),
        (
            "election timeout, ms",
            left.environment.timing.election_ms.to_string(),
            right.environment.timing.election_ms.to_string(),
        ),
        ("members", left.members.len().to_string(), right.members.len().to_string()),
    ];
    pairs.into_iter().filter(|(_, a, b)| a != b).map(|(what, a, b)| format!("{what}: {a} and {b}")).collect()
}
