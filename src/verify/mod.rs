//! Proves from inside the nodes that the cluster is what the plan says: `Pass`, `Fail` or `Unknown`, each with its evidence.
//! `ktcw-vm verify`, the last stage of `up` and drills call `verify`; probes (`script`, `observe`) read, judges decide, purely.
//! It changes nothing but one small etcd key per member (`/ktcw/verify/<node>`), and prints nothing.

mod apiserver;
pub mod certs;
mod curl;
pub mod election;
pub mod etcd;
pub mod machines;
mod members;
pub mod observe;
pub mod render;
pub mod report;
mod script;
pub mod sections;
#[cfg(test)]
mod tests;
mod workers;

pub use crate::guest::clock::Clock;
pub use members::{MemberSeen, members};
pub use observe::{Observed, observe};
pub use report::{Check, Group, Report};

use crate::event::{Event, Events, Verdict};
use crate::guest::Guest;
use crate::plan::Plan;

/// Asks every node at once and judges. Never fails: what cannot be found out is `Unknown`.
/// Takes at most three times the plan's probe deadline, a second or two when all is well.
pub async fn verify(plan: &Plan, guest: &dyn Guest, clock: Clock<'_>, trust: certs::Trust<'_>, on: &Events) -> Report {
    let start = tokio::time::Instant::now();
    let seen = observe(plan, guest, clock).await;
    let report = Report { cluster: plan.cluster.to_string(), checks: judge(plan, &seen, trust), elapsed: start.elapsed() };
    for check in &report.checks {
        let evidence = match check.verdict {
            Verdict::Pass => check.summary.clone(),
            _ if check.evidence.is_empty() => check.summary.clone(),
            _ => format!("{}\n{}", check.summary, check.evidence),
        };
        on.send(Event::Checked { check: check.id.clone(), node: check.node.clone(), verdict: check.verdict, evidence });
    }
    report
}

/// Every check of every group, from what was observed.
pub fn judge(plan: &Plan, seen: &Observed, trust: certs::Trust<'_>) -> Vec<Check> {
    let mut checks = machines::judge(plan, seen);
    checks.extend(etcd::judge(plan, seen));
    checks.extend(apiserver::judge(plan, seen));
    checks.extend(election::judge(plan, seen));
    checks.extend(workers::judge(plan, seen));
    checks.extend(certs::judge(plan, seen, trust));
    checks
}

/// A command of ours to type, for this cluster.
fn hint(plan: &Plan, rest: &str) -> String {
    match plan.cluster.as_str() {
        "ktcw" => format!("ktcw-vm {rest}"),
        other => format!("ktcw-vm -c {other} {rest}"),
    }
}
