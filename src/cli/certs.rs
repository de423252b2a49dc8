//! `ktcw-vm certs [list|check|ca]`: every certificate with its names and days left; what the nodes really hold; a CA as PEM.
//! The list is the key store's; the check reads the files over SSH and compares plan, CA and clock.
//! Public parts only: no private key is read for either.

use super::args::{CaName, CertsWhat, Format, Global};
use super::error::CliError;
use super::session::{self, Session};
use super::{exit, render};
use crate::guest::{Cmd, Guest, quote};
use crate::plan::{Ca, CertPlan, PkiItem};
use comfy_table::{Table, presets};
use futures::future::join_all;
use std::time::Duration;

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
        "days left",
    ]);
    for row in rows {
        let usages: Vec<String> = row.usages.iter().map(|usage| format!("{usage:?}").to_lowercase()).collect();
        table.add_row([row.id, row.ca.to_string(), row.subject, usages.join("+"), row.sans.join(" "), row.days_left.to_string()]);
    }
    render::print_line(&table.to_string());
    Ok(exit::OK)
}

/// Reads every delivered certificate from its node and judges it against the plan.
async fn compare(global: &Global, session: &Session) -> Result<u8, CliError> {
    let guests = session.guests()?;
    let now = jiff::Timestamp::now();
    let delivered: Vec<(&CertPlan, String)> =
        session.plan.certs.iter().filter_map(|cert| Some((cert, format!("{}.pem", cert.at.as_ref()?)))).collect();
    let asked = delivered.iter().filter_map(|(cert, path)| {
        let node = cert.node.as_ref()?;
        let guests = &guests;
        Some(async move {
            let line = format!("cat {}", quote(path));
            (cert, node, path, guests.run(node, Cmd::new(line, Duration::from_secs(60))).await)
        })
    });
    let mut rows = Vec::new();
    for (cert, node, path, output) in join_all(asked).await {
        let findings: Vec<String> = match output {
            Ok(output) if output.ok() => {
                session.keyring.judge(cert, &output.stdout_text(), now).iter().map(ToString::to_string).collect()
            }
            Ok(output) => vec![output.stderr_text().trim().to_owned()],
            Err(error) => vec![error.to_string()],
        };
        rows.push(serde_json::json!({ "node": node, "path": path, "certificate": cert.id, "findings": findings }));
    }
    let bad = rows.iter().filter(|row| row["findings"].as_array().is_some_and(|f| !f.is_empty())).count();
    if global.format == Format::Json {
        render::print_line(&serde_json::to_string_pretty(&rows).map_err(CliError::failed)?);
    } else {
        for row in rows.iter().filter(|row| row["findings"].as_array().is_some_and(|f| !f.is_empty())) {
            let findings: Vec<&str> = row["findings"].as_array().into_iter().flatten().filter_map(|f| f.as_str()).collect();
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            render::print_line(&format!("{}:{}  {}", text("node"), text("path"), findings.join("; ")));
        }
        render::print_line(&format!("{} certificates on the nodes, {bad} not as they should be", rows.len()));
    }
    Ok(if bad == 0 { exit::OK } else { exit::CHECK_FAILED })
}
