//! `ktcw-vm verify`: all checks, from inside every node, as a table or JSON.
//! `up` ends with the same call.
//! It only reads; exit code 3 when a check fails or could not be answered.

use super::args::{Format, Global};
use super::error::CliError;
use super::{exit, render, session::Session};
use crate::event::{Events, Verdict};
use crate::guest::Guest;
use crate::pki::check;
use crate::plan::{CertPlan, Plan};
use crate::verify::certs::Problem;
use crate::verify::{self, Report};

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let guests = session.guests()?;
    let report = checked(&session.plan, &*guests, &Events::nowhere()).await?;
    match global.format {
        Format::Text => render::print(&verify::render::table(&report)),
        Format::Json => render::print_line(&serde_json::to_string_pretty(&report).map_err(CliError::failed)?),
    }
    Ok(if report.verdict() == Verdict::Pass { exit::OK } else { exit::CHECK_FAILED })
}

/// Runs the checks with this host's clock.
pub async fn checked(plan: &Plan, guests: &dyn Guest, events: &Events) -> Result<Report, CliError> {
    let now = jiff::Timestamp::now;
    // The CA as the node holds it is compared with ours by its own check; chains are judged with what the node trusts.
    let certs = |cert: &CertPlan, pem: &str, ca: &str| -> Vec<Problem> {
        let findings = check::judge(pem, ca, cert, now());
        let told = findings.iter().map(|finding| Problem { what: finding.problem.to_string(), warning: finding.problem.is_warning() });
        told.collect()
    };
    Ok(verify::verify(plan, guests, &now, &certs, events).await)
}
