//! `ktcw-vm certs [list|check|ca|renew]`: every certificate with its names and days left; what the nodes hold; a CA; new ones.
//! The list is the key store's; the check is `verify`'s, and of what stays on this computer its own; `renew` replaces them here and has them taken to the nodes like any changed file.
//! Keys stay as they are: of what is printed nothing is secret.

use super::args::{CaName, CertsWhat, Format, Global};
use super::error::CliError;
use super::opened::{Opened, whole_moment};
use super::session::{self, Session};
use super::up::{Outcome, shown};
use super::way::{Settled, carry_out};
use super::{exit, render, resolve};
use crate::api;
use crate::apply;
use crate::event::{Events, Verdict};
use crate::image;
use crate::life::power::Whole;
use crate::pki::check::{Finding, Problem};
use crate::pki::{Keyring, Lifetimes};
use crate::plan::{Ca, CertPlan, PkiItem, Plan};
use crate::secret::Secret;
use crate::verify::{self, Check, Group, render::Show};
use crate::wait::{self, Seen};
use comfy_table::{Table, presets};
use std::time::Duration;

pub async fn run(global: &Global, what: Option<CertsWhat>) -> Result<u8, CliError> {
    if let Some(CertsWhat::Renew { within, timings, no_verify }) = what {
        return renew(global, within, timings, !no_verify).await;
    }
    let session = Session::open(global)?;
    match what.unwrap_or(CertsWhat::List) {
        CertsWhat::List => show(global, &session),
        CertsWhat::Check => compare(global, &session).await,
        CertsWhat::Renew { .. } => Ok(exit::OK),
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

/// What `verify` finds out about certificates, with all its evidence: each one on its node, and the authorities there. Before it
/// what no node can be asked for.
async fn compare(global: &Global, session: &Session) -> Result<u8, CliError> {
    let guests = session.guests()?;
    let mut report = super::verify::checked(&session.plan, &session.keyring, &*guests, &Events::nowhere()).await;
    report.checks.retain(|check| check.group == Group::Certificates);
    report.checks.insert(0, kept_here(&session.keyring, &session.plan, jiff::Timestamp::now()));
    match global.format {
        Format::Json => render::print(&verify::render::json(&report)),
        Format::Text => render::print(&verify::render::text(&report, Show { all: true, colour: true })),
    }
    Ok(super::verify::exit_code(&report))
}

/// The authorities, and the certificates that stay on this computer, each with its key: what `kubectl` and `etcdctl` come with.
fn kept_here(keyring: &Keyring, plan: &Plan, now: jiff::Timestamp) -> Check {
    let own: Vec<CertPlan> = plan.certs.iter().filter(|cert| cert.node.is_none()).cloned().collect();
    let (soon, wrong): (Vec<Finding>, Vec<Finding>) =
        keyring.check(&own, now).into_iter().partition(|finding| finding.problem.is_warning());
    let names: Vec<&str> = Ca::ALL.iter().map(|ca| ca.common_name()).chain(own.iter().map(|cert| cert.id.as_str())).collect();
    let of = |finding: &Finding, name: &str| finding.cert.strip_prefix("private key ").unwrap_or(&finding.cert) == name;
    let good = names.iter().filter(|name| !wrong.iter().any(|finding| of(finding, name))).map(|name| format!("{name}: good"));
    let evidence: Vec<String> = wrong.iter().chain(&soon).map(ToString::to_string).chain(good).collect();
    let summary = match (wrong.as_slice(), soon.as_slice()) {
        ([], []) => format!("{} certificates kept on this computer are there and good", names.len()),
        ([], [first, ..]) => format!("{} certificates kept on this computer are there and good; {first}", names.len()),
        ([only], _) => only.to_string(),
        ([first, rest @ ..], _) => format!("{first} (and {} more)", rest.len()),
    };
    // `up` refuses what is wrong with the file's name and the way out, and makes what is missing.
    let old =
        |finding: &Finding| matches!(finding.problem, Problem::Expired { .. }) && own.iter().any(|cert| cert.id == finding.cert);
    let verb = if wrong.iter().all(old) { "certs renew" } else { "up" };
    Check {
        id: "certs.here".to_owned(),
        group: Group::Certificates,
        node: None,
        verdict: if wrong.is_empty() { Verdict::Pass } else { Verdict::Fail },
        summary,
        evidence: evidence.join("\n"),
        hint: (!wrong.is_empty()).then(|| format!("ktcw-vm {verb} -c {}", plan.cluster)),
    }
}

/// New leaves for the keys there are, here first and then on every node. What a crash cut off is finished by this verb or by `up`.
async fn renew(global: &Global, within: Option<u16>, timings: bool, verify: bool) -> Result<u8, CliError> {
    let opened = Opened::new(global, "certs renew", whole_moment)?;
    opened.without_fault()?;
    let (plan, now) = (opened.session.plan.clone(), jiff::Timestamp::now());
    let rows = opened.session.keyring.list(&plan.certs, now);
    // With certificates that have run out no cluster comes up to be renewed: its machines are switched on on the way.
    if rows.iter().all(|row| row.not_after > now) {
        opened.all(&opened.machines.power().await?, &Whole::Running)?;
    }
    let soon = |cert: &&CertPlan| match within {
        None => true,
        Some(days) => rows.iter().any(|row| row.id == cert.id && row.days_left <= i64::from(days)),
    };
    let chosen: Vec<CertPlan> = plan.certs.iter().filter(soon).cloned().collect();
    let open = apply::renewing(&opened.session.dir.history()?);
    if chosen.is_empty() && !open {
        let days = within.unwrap_or_default();
        render::print_line(&format!("no certificate of cluster {} ends within {days} days; nothing to do", plan.cluster));
        return Ok(exit::OK);
    }
    let name = plan.cluster.clone();
    shown(global, &name, timings, |events| async move { replace(opened, chosen, now, verify, &events).await }).await
}

async fn replace(
    opened: Opened,
    chosen: Vec<CertPlan>,
    now: jiff::Timestamp,
    verify: bool,
    events: &Events,
) -> Result<Outcome, CliError> {
    let (journal, _) = opened.journal("certs")?;
    let Opened { session: Session { dir, plan, mut keyring, .. }, lock, host, .. } = opened;
    if !chosen.is_empty() {
        let ids: Vec<&String> = chosen.iter().map(|cert| &cert.id).collect();
        journal.begin_with(apply::RENEW, None, serde_json::json!({ "certificates": ids })).map_err(CliError::failed)?;
        keyring.renew(&chosen, now, Lifetimes::default().leaf).map_err(|error| {
            CliError::from(error)
                .left("certificates that are good, some of them new")
                .hint(format!("ktcw-vm certs renew -c {}", plan.cluster))
        })?;
        events.send(crate::event::Event::Note { text: format!("{} certificates are made anew", chosen.len()) });
    }
    drop(journal);
    let files = image::find_key(&image::cache_dir(), &plan.resolved.image.key)
        .ok()
        .flatten()
        .map(|image| resolve::files(&plan.spec, Some(&image)));
    carry_out(Settled { dir, lock, way: vec![plan], host, files, verb: "certs", only: None, verify, golden: false }, events).await
}

/// Servers that show a certificate to who asks: which one, at which port.
const SHOWN: [(&str, u16, Ca); 3] =
    [("etcd-server", 2379, Ca::Etcd), ("kube-apiserver", 6443, Ca::Kubernetes), ("kubelet-server", 10250, Ca::Kubernetes)];

/// Every server shows the certificate that is kept here, in a handshake of its own: what lies in a file may not be in use.
/// One that has just been restarted is given time to listen.
pub(super) async fn in_use(plan: &Plan, keyring: &Keyring) -> Result<(), CliError> {
    let deadline = Duration::from_secs(u64::from(plan.timers.probe_deadline_s)) * 4;
    let looked = wait::until(
        "every renewed certificate in use",
        deadline,
        Duration::from_secs(1),
        |_| (),
        || async {
            match not_shown(plan, keyring).await {
                Ok(wrong) if wrong.is_empty() => Seen::Ready(Ok(())),
                Ok(wrong) => Seen::NotYet(wrong.join("; ")),
                Err(error) => Seen::Ready(Err(error)),
            }
        },
    );
    match looked.await {
        Ok(answer) => answer,
        Err(late) => Err(CliError::failed(late)
            .left("certificates that are good, here and on the nodes")
            .hint(format!("ktcw-vm up -c {0} looks again; ktcw-vm certs check -c {0}", plan.cluster))),
    }
}

async fn not_shown(plan: &Plan, keyring: &Keyring) -> Result<Vec<String>, CliError> {
    let patience = Duration::from_secs(u64::from(plan.timers.probe_deadline_s));
    let mut wrong = Vec::new();
    for cert in &plan.certs {
        let row = cert.id.split('@').next().unwrap_or_default();
        let Some((_, port, ca)) = SHOWN.iter().find(|(of, ..)| *of == row) else { continue };
        let Some(ip) = cert.node.as_ref().and_then(|node| plan.node(node)).map(|node| node.ip) else { continue };
        let kept = session::item(keyring, &PkiItem::Cert { id: cert.id.clone() })?;
        let trusted = session::item(keyring, &PkiItem::CaCert { ca: *ca })?;
        let client = if *ca == Ca::Etcd { "etcd-admin" } else { "admin" };
        let (own, key) = (PkiItem::Cert { id: client.to_owned() }, PkiItem::Key { id: client.to_owned() });
        let (own, key) = (session::item(keyring, &own)?, session::item(keyring, &key)?);
        let identity = Secret::new(format!("{}\n{}", own.expose(), key.expose()));
        match api::presented(trusted.expose(), &identity, ip, *port, patience).await {
            Ok(shown) if api::is_certificate(kept.expose(), &shown) => {}
            Ok(_) => wrong.push(format!("{}: another one is in use", cert.id)),
            Err(error) => wrong.push(format!("{}: {error}", cert.id)),
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Accel, Usage, samples};
    use std::path::Path;

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_795_000_000).expect("a time")
    }

    fn later(days: i64) -> jiff::Timestamp {
        now().checked_add(jiff::SignedDuration::from_hours(24 * days)).expect("a time")
    }

    /// As `certs check` finds it, loaded anew.
    fn looked(dir: &Path, plan: &Plan, now: jiff::Timestamp) -> Check {
        kept_here(&Keyring::load(dir, &plan.certs, &plan.kubeconfigs).expect("loaded"), plan, now)
    }

    #[test]
    fn what_stays_on_this_computer_is_judged_here() {
        let place = tempfile::tempdir().expect("a directory");
        let dir = place.path().join("pki");
        let plan = samples::plan("lab", 1, 0, Accel::Tcg);
        Keyring::ensure(&dir, &plan.certs, &plan.kubeconfigs, now(), Lifetimes::default()).expect("keys");

        let check = looked(&dir, &plan, now());
        assert_eq!((check.verdict, check.hint.as_deref()), (Verdict::Pass, None), "{check:?}");
        assert_eq!(check.summary, "5 certificates kept on this computer are there and good");
        assert!(check.evidence.contains("admin: good\netcd-admin: good"), "{check:?}");

        let check = looked(&dir, &plan, later(360));
        assert_eq!(check.verdict, Verdict::Pass, "{check:?}");
        assert!(check.summary.contains("good; admin: expires at "), "{check:?}");

        let check = looked(&dir, &plan, later(366));
        assert_eq!((check.verdict, check.hint.as_deref()), (Verdict::Fail, Some("ktcw-vm certs renew -c lab")), "{check:?}");
        assert!(check.summary.starts_with("admin: expired at ") && check.summary.ends_with(" (and 1 more)"), "{check:?}");
        assert!(check.evidence.contains("etcd-admin: expired at ") && check.evidence.contains("etcd-ca: good"), "{check:?}");
        assert!(!check.evidence.contains("admin: good"), "{check:?}");

        // Good for something else than is planned.
        let mut other = plan.clone();
        other.certs.iter_mut().filter(|cert| cert.id == "admin").for_each(|cert| cert.usages = vec![Usage::Server]);
        let check = looked(&dir, &other, now());
        assert_eq!(check.summary, "admin: good for client, planned is server");
        assert_eq!((check.verdict, check.hint.as_deref()), (Verdict::Fail, Some("ktcw-vm up -c lab")));

        // Signed by another authority, for another key.
        let (admin, etcd) = (dir.join("admin.pem"), dir.join("etcd-admin.pem"));
        let kept = std::fs::read(&admin).expect("read");
        std::fs::copy(&etcd, &admin).expect("copied");
        let check = looked(&dir, &plan, now());
        assert!(check.verdict == Verdict::Fail && check.summary.starts_with("admin: not signed by kubernetes-ca"), "{check:?}");
        assert!(check.evidence.contains("\netcd-admin: good"), "{check:?}");
        std::fs::write(&admin, kept).expect("put back");

        std::fs::remove_file(dir.join("etcd-admin-key.pem")).expect("removed");
        let check = looked(&dir, &plan, now());
        assert_eq!((check.verdict, check.summary.as_str()), (Verdict::Fail, "private key etcd-admin: not there"));
        assert!(!check.evidence.contains("etcd-admin: good"), "{check:?}");
    }
}
