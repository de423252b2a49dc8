//! `ktcw-vm verify`: all checks, from inside every node, as a table or JSON.
//! `up` ends with the same call.
//! It only reads; exit code 3 when a check fails or could not be answered.

use super::args::{Format, Global};
use super::error::CliError;
use super::{exit, render, session::Session};
use crate::event::{Events, Verdict};
use crate::guest::Guest;
use crate::pki::Keyring;
use crate::plan::Plan;
use crate::verify::{self, Report};

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let guests = session.guests()?;
    let report = checked(&session.plan, &*guests, &session.keyring, &Events::nowhere()).await?;
    match global.format {
        Format::Text => render::print(&verify::render::table(&report)),
        Format::Json => render::print_line(&serde_json::to_string_pretty(&report).map_err(CliError::failed)?),
    }
    Ok(if report.verdict() == Verdict::Pass { exit::OK } else { exit::CHECK_FAILED })
}

/// Runs the checks with this host's clock and the plan's PKI.
pub async fn checked(plan: &Plan, guests: &dyn Guest, keyring: &Keyring, events: &Events) -> Result<Report, CliError> {
    let _ = keyring;
    Ok(verify::verify(plan, guests, events).await)
}
