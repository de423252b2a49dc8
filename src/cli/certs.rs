//! `ktcw-vm certs [list|check|ca]`: every certificate with its names and days left; what the nodes really hold; a CA as PEM.
//! The list is the key store's; the check is `verify`'s, which reads the files over SSH and compares keys, plan, CA and clock.
//! Public parts only: no private key is read for either.

use super::args::{CaName, CertsWhat, Format, Global};
use super::error::CliError;
use super::session::{self, Session};
use super::{exit, render};
use crate::event::Events;
use crate::plan::{Ca, PkiItem};
use crate::verify::{self, Group, render::Show};
use comfy_table::{Table, presets};

pub async fn run(global: &Global, what: Option<CertsWhat>) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    match what.unwrap_or(CertsWhat::List) {
        CertsWhat::List => show(global, &session),
        CertsWhat::Check => compare(global, &session).await,
        CertsWhat::Ca { which } => {
            let ca = match which {
                CaName::Kubernetes => Ca::Kubernetes,
                CaName::Etcd => Ca::Etcd,
                CaName::FrontProxy => Ca::FrontProxy,
            };
            render::print(session::item(&session.keyring, &PkiItem::CaCert { ca })?.expose());
            Ok(exit::OK)
        }
    }
}

fn show(global: &Global, session: &Session) -> Result<u8, CliError> {
    let rows = session.keyring.list(&session.plan.certs, jiff::Timestamp::now());
    if global.format == Format::Json {
        render::print_line(&serde_json::to_string_pretty(&rows).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header([
        "certificate",
        "CA",
        "subject",
        "usage",
        "valid for",
        "expires",
    ]);
    for row in rows {
        let usages: Vec<String> = row.usages.iter().map(|usage| format!("{usage:?}").to_lowercase()).collect();
        table.add_row([
            row.id,
            row.ca.to_string(),
            row.subject,
            usages.join("+"),
            row.sans.join(" "),
            format!("{} ({} days)", row.not_after.strftime("%Y-%m-%d"), row.days_left),
        ]);
    }
    render::print_line(&table.to_string());
    Ok(exit::OK)
}

/// What `verify` finds out about certificates, with all its evidence: each one on its node, and the authorities there.
async fn compare(global: &Global, session: &Session) -> Result<u8, CliError> {
    let guests = session.guests()?;
    let mut report = super::verify::checked(&session.plan, &session.keyring, &*guests, &Events::nowhere()).await;
    report.checks.retain(|check| check.group == Group::Certificates);
    match global.format {
        Format::Json => render::print(&verify::render::json(&report)),
        Format::Text => render::print(&verify::render::text(&report, Show { all: true, colour: true })),
    }
    Ok(super::verify::exit_code(&report))
}
