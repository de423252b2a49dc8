//! `ktcw-vm verify`: all checks, from inside every node, as a table or JSON.
//! `up` ends with the same checks, asked again while some of them do not pass yet.
//! It only reads; exit code 3 when a check fails or could not be answered.

use super::args::{Format, Global};
use super::error::CliError;
use super::{exit, render, session::Session};
use crate::event::{Event, Events, Verdict};
use crate::guest::Guest;
use crate::host::{DomainState, Host, blocking};
use crate::pki::check;
use crate::plan::{CertPlan, Plan};
use crate::spec::NodeName;
use crate::verify::certs::Problem;
use crate::verify::{self, Report};
use crate::wait::{Seen, until};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let guests = session.guests()?;
    let mut report = checked(&session.plan, &*guests, &Events::nowhere()).await?;
    if report.problems().any(|check| check.id == "ssh.reachable") {
        verify::machines::explain(&mut report, &session.plan, &states(global, &session).await);
    }
    match global.format {
        Format::Text => render::print(&verify::render::table(&report)),
        Format::Json => render::print_line(&serde_json::to_string_pretty(&report).map_err(CliError::failed)?),
    }
    Ok(if report.verdict() == Verdict::Pass { exit::OK } else { exit::CHECK_FAILED })
}

/// What libvirt says of the machines; nothing when it cannot be asked, which is not this verb's finding.
async fn states(global: &Global, session: &Session) -> BTreeMap<NodeName, DomainState> {
    let Ok(host) = super::session::connect_to(global, &session.dir) else { return BTreeMap::new() };
    let seen = blocking(move || host.observe()).await.unwrap_or_default();
    let mark = session.mark();
    let ours = seen.domains.into_iter().filter(|domain| domain.mark.as_ref().is_some_and(|found| mark.owns(found)));
    ours.filter_map(|domain| Some((domain.node?, domain.state))).collect()
}

/// Runs the checks with this host's clock.
pub async fn checked(plan: &Plan, guests: &dyn Guest, events: &Events) -> Result<Report, CliError> {
    let now = jiff::Timestamp::now;
    // The CA as the node holds it is compared with ours by its own check; chains are judged with what the node trusts.
    let certs = |cert: &CertPlan, pem: &str, ca: &str| -> Vec<Problem> {
        let findings = check::judge(pem, ca, cert, now());
        let told =
            findings.iter().map(|finding| Problem { what: finding.problem.to_string(), warning: finding.problem.is_warning() });
        told.collect()
    };
    Ok(verify::verify(plan, guests, &now, &certs, events).await)
}

/// The same after a change, asked again until all passes: Services and their rules, DNS and leases settle a little after the
/// pods that need them are ready. After two of the plan's probe deadlines the last report stands as it is.
pub async fn settled(plan: &Plan, guests: &dyn Guest, events: &Events) -> Result<Report, CliError> {
    let patience = Duration::from_secs(u64::from(plan.timers.probe_deadline_s)) * 2;
    let last = RefCell::new(None);
    let told = |status: &str| {
        events.send(Event::Note { text: format!("not yet: {status}; looking again for up to {} s", patience.as_secs()) });
    };
    let asked = until("every check passed", patience, Duration::from_secs(2), told, || async {
        match checked(plan, guests, events).await {
            Ok(report) if report.verdict() != Verdict::Pass => {
                let open = open_checks(&report);
                last.replace(Some(report));
                Seen::NotYet(open)
            }
            done => Seen::Ready(done),
        }
    });
    match asked.await {
        Ok(done) => done,
        Err(timed_out) => last.into_inner().ok_or_else(|| CliError::failed(timed_out)),
    }
}

/// `pods.dns worker-0, pods.dns worker-1 and 3 more`
fn open_checks(report: &Report) -> String {
    const SHOWN: usize = 4;
    let open: Vec<String> = report
        .checks
        .iter()
        .filter(|check| check.verdict != Verdict::Pass)
        .map(|check| check.node.as_ref().map_or_else(|| check.id.clone(), |node| format!("{} {node}", check.id)))
        .collect();
    match open.get(SHOWN..).map_or(0, <[String]>::len) {
        0 => open.join(", "),
        more => format!("{} and {more} more", open[..SHOWN].join(", ")),
    }
}
