//! `ktcw-vm verify`: all checks, from inside every node, as a table or JSON.
//! `up` ends with the same checks, asked again while some of them do not pass yet.
//! It only reads; exit code 3 when a check fails or could not be answered.

use super::args::{Format, Global};
use super::error::CliError;
use super::opened::finishing;
use super::session::{self, Session};
use super::{exit, golden, lab, render};
use crate::event::{Event, Events, Verdict};
use crate::guest::Guest;
use crate::host::{DomainState, Host, blocking};
use crate::life::power::Power;
use crate::pki::Keyring;
use crate::plan::{Ca, CertPlan, Plan};
use crate::snapshot;
use crate::spec::{ClusterName, NodeName};
use crate::verify::certs::{Problem, Trust};
use crate::verify::machines::MAKE_ROOM;
use crate::verify::{self, Check, Group, Report};
use crate::wait::{Seen, until};
use futures::future::{Either, select};
use std::cell::RefCell;
use std::pin::pin;
use std::time::{Duration, Instant};

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let begin = Instant::now();
    let cluster = &session.plan.cluster;
    let mut checks: Vec<Check> = half_restored(&session)?.into_iter().collect();
    match asked(global, &session).await? {
        Answers::Machines(mut report, power) => {
            if let Some(power) = power {
                verify::machines::explain(&mut report, &session.plan, &power.states());
            }
            checks.append(&mut report.checks);
        }
        Answers::Asleep(power) => checks.extend(asleep(&power, golden::is_down(&session.dir.history()?), cluster)),
    }
    let report = Report { cluster: cluster.to_string(), checks, elapsed: begin.elapsed() };
    match global.format {
        Format::Text => render::print(&verify::render::table(&report)),
        Format::Json => render::print(&verify::render::json(&report)),
    }
    Ok(exit_code(&report))
}

pub fn exit_code(report: &Report) -> u8 {
    if report.verdict() == Verdict::Pass { exit::OK } else { exit::CHECK_FAILED }
}

/// Who had something to say: the machines, or libvirt alone when none of them runs.
enum Answers {
    Machines(Report, Option<Power>),
    Asleep(Power),
}

/// Asks both at once. Machines of which none runs are not waited for: that would only add a deadline and its unknowns.
async fn asked(global: &Global, session: &Session) -> Result<Answers, CliError> {
    let (guests, nowhere) = (session.guests()?, Events::nowhere());
    let machines = pin!(checked(&session.plan, &session.keyring, &*guests, &nowhere));
    let libvirt = pin!(power(global, session));
    let (power, rest) = match select(libvirt, machines).await {
        Either::Left((power, machines)) => (power, Either::Left(machines)),
        Either::Right((report, libvirt)) => (libvirt.await, Either::Right(report)),
    };
    Ok(match (power, rest) {
        (Some(power), _) if !power.runs() => Answers::Asleep(power),
        (power, Either::Left(machines)) => Answers::Machines(machines.await, power),
        (power, Either::Right(report)) => Answers::Machines(report, power),
    })
}

/// What libvirt says of the machines. Without an answer what a node says over SSH counts alone.
async fn power(global: &Global, session: &Session) -> Option<Power> {
    let host = session::connect_to(global, &session.dir).ok()?;
    let seen = blocking(move || host.observe()).await.ok()?;
    Some(Power::of(&session.plan, &seen))
}

/// A failed check for each machine, none of which is running.
pub(super) fn asleep(power: &Power, golden_only: bool, cluster: &ClusterName) -> Vec<Check> {
    let way_back = if golden_only { Some("up") } else { power.whole().way_back() };
    let way_back = way_back.map(|verb| format!("ktcw-vm {verb} -c {cluster}"));
    let check = |(node, word): (&NodeName, &'static str)| Check {
        id: "machine.running".to_owned(),
        group: Group::Machines,
        node: Some(node.clone()),
        verdict: Verdict::Fail,
        summary: format!("the machine is {word}"),
        evidence: String::new(),
        hint: way_back.as_ref().map(|way_back| match power.get(node) {
            Some(DomainState::PausedIoError) => format!("{MAKE_ROOM}, then: {way_back}"),
            _ => way_back.clone(),
        }),
    };
    power.not_running().map(check).collect()
}

/// A failed check while a restore is cut off in the middle.
fn half_restored(session: &Session) -> Result<Option<Check>, CliError> {
    let Some(open) = snapshot::open_restore(&session.dir.history()?) else { return Ok(None) };
    Ok(Some(Check {
        id: "snapshot.restore".to_owned(),
        group: Group::Machines,
        node: None,
        verdict: Verdict::Fail,
        summary: open.to_string(),
        evidence: String::new(),
        hint: Some(finishing(&open, &lab::book(&session.dir)?, session.plan.cluster.as_str())),
    }))
}

/// Runs the checks with this computer's clock and keys.
pub async fn checked(plan: &Plan, keyring: &Keyring, guests: &dyn Guest, events: &Events) -> Report {
    let now = jiff::Timestamp::now;
    let judge = |cert: &CertPlan, pem: &str, _: &str| -> Vec<Problem> {
        let findings = keyring.judge(cert, pem, now());
        let told =
            findings.iter().map(|finding| Problem { what: finding.problem.to_string(), warning: finding.problem.is_warning() });
        told.collect()
    };
    let ca = |ca: Ca| keyring.ca_pem(ca).map(str::to_owned);
    verify::verify(plan, guests, &now, Trust { judge: &judge, ca: &ca }, events).await
}

/// The same after a change, asked again until all passes: Services and their rules, DNS and leases settle a little after the
/// pods that need them are ready. After two of the plan's probe deadlines the last report stands as it is.
pub async fn settled(plan: &Plan, keyring: &Keyring, guests: &dyn Guest, events: &Events) -> Result<Report, CliError> {
    let patience = Duration::from_secs(u64::from(plan.timers.probe_deadline_s)) * 2;
    let last = RefCell::new(None);
    let told = |status: &str| {
        events.send(Event::Note { text: format!("not yet: {status}; looking again for up to {} s", patience.as_secs()) });
    };
    let asked = until("every check passed", patience, Duration::from_secs(2), told, || async {
        let report = checked(plan, keyring, guests, events).await;
        if report.verdict() == Verdict::Pass {
            return Seen::Ready(report);
        }
        let open = open_checks(&report);
        last.replace(Some(report));
        Seen::NotYet(open)
    });
    match asked.await {
        Ok(report) => Ok(report),
        Err(timed_out) => last.into_inner().ok_or_else(|| CliError::failed(timed_out)),
    }
}

/// The same after machines were woken: to them time has jumped, and a control loop that finds its lease run out ends and begins
/// again a moment after all looked well. So green counts when the next look is green too; three times at most it is waited for.
pub async fn steady(plan: &Plan, keyring: &Keyring, guests: &dyn Guest, events: &Events) -> Result<Report, CliError> {
    let mut report = settled(plan, keyring, guests, events).await?;
    for _ in 0..3 {
        if report.verdict() != Verdict::Pass {
            break;
        }
        report = checked(plan, keyring, guests, events).await;
        if report.verdict() == Verdict::Pass {
            break;
        }
        report = settled(plan, keyring, guests, events).await?;
    }
    Ok(report)
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
