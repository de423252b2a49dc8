//! Domains: observed, defined, started, stopped, removed; each change only after the mark was checked.
//! `LibvirtHost` calls it with a live connection; every function looks first and does what is missing.
//! It does not render XML and knows nothing of disks beyond what libvirt says when they are not there.

use super::connection::{checked, is_absent, pause, present, refused, unreadable};
use crate::host::{DomainSeen, DomainState, Done, HostError, Mark, guard, xml};
use crate::plan::DomainPlan;
use std::time::{Duration, Instant};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{self, Domain, DomainPausedReason, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use virt::sys;

pub const KIND: &str = "domain";

/// A machine that is shutting down is given this long to be off before it is started again.
const SHUTTING_DOWN: Duration = Duration::from_secs(30);

/// All domains, ours and others'. One that vanishes meanwhile is left out.
pub fn observe(conn: &Connect) -> Result<Vec<DomainSeen>, HostError> {
    let all = conn.list_all_domains(0).map_err(|error| refused("list", KIND, "(all)", &error))?;
    let mut seen = Vec::with_capacity(all.len());
    for domain in all {
        if let (Some(described), Some(state)) = (describe(&domain)?, state(&domain)?) {
            seen.push(DomainSeen {
                name: described.name,
                uuid: described.uuid,
                state,
                mark: described.mark,
                node: described.node,
            });
        }
    }
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

/// The XML of ours, as it is now; without `VIR_DOMAIN_XML_SECURE` libvirt leaves passwords out.
pub fn definitions(conn: &Connect, mark: &Mark) -> Result<Vec<(String, String)>, HostError> {
    let all = conn.list_all_domains(0).map_err(|error| refused("list", KIND, "(all)", &error))?;
    let mut found = Vec::new();
    for domain in all {
        let Some(described) = describe(&domain)? else { continue };
        if described.mark.is_some_and(|theirs| mark.owns(&theirs))
            && let Some(text) = present(domain.xml_desc(0), KIND, &described.name)?
        {
            found.push((format!("{KIND} {}", described.name), text));
        }
    }
    Ok(found)
}

/// Defines it unless what is defined came from the same XML.
pub fn ensure(conn: &Connect, plan: &DomainPlan, text: &str, mark: &Mark) -> Result<Done, HostError> {
    refuse_foreign_uuid(conn, plan, mark)?;
    if let Some((_, found)) = ours(conn, &plan.name, mark)? {
        let wanted = xml::domain(text).map_err(|reason| unreadable(KIND, &plan.name, reason))?;
        if found.digest == wanted.digest && found.uuid == plan.uuid {
            return Ok(Done::Unchanged);
        }
    }
    checked(|| conn.define_domain_xml_flags(text, sys::VIR_DOMAIN_DEFINE_VALIDATE))
        .map_err(|error| refused("define", KIND, &plan.name, &error))?;
    Ok(Done::Changed)
}

/// Starts it, or lets it go on when it was paused.
pub fn ensure_running(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
    let domain = required(conn, plan, mark)?;
    match settled(&domain, plan)? {
        DomainState::Running => Ok(Done::Unchanged),
        DomainState::Paused | DomainState::PausedIoError => {
            domain.resume().map_err(|error| refused("resume", KIND, &plan.name, &error))?;
            Ok(Done::Changed)
        }
        DomainState::ShutOff | DomainState::Crashed | DomainState::ShuttingDown => match domain.create() {
            Ok(()) => Ok(Done::Changed),
            // Somebody was faster.
            Err(_) if state(&domain)? == Some(DomainState::Running) => Ok(Done::Unchanged),
            Err(error) => Err(refused("start", KIND, &plan.name, &error)),
        },
    }
}

pub fn power_off(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
    let domain = required(conn, plan, mark)?;
    destroy(&domain, &plan.name)
}

pub fn shutdown(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
    let domain = required(conn, plan, mark)?;
    if is_off(&domain, &plan.name)? {
        return Ok(Done::Unchanged);
    }
    match domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) {
        Ok(()) => Ok(Done::Changed),
        Err(error) if not_running(&error) => Ok(Done::Unchanged),
        Err(error) => Err(refused("shut down", KIND, &plan.name, &error)),
    }
}

pub fn suspend(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
    let domain = required(conn, plan, mark)?;
    match present_state(&domain, &plan.name)? {
        DomainState::Paused | DomainState::PausedIoError => Ok(Done::Unchanged),
        _ => domain.suspend().map(|()| Done::Changed).map_err(|error| refused("suspend", KIND, &plan.name, &error)),
    }
}

pub fn resume(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
    let domain = required(conn, plan, mark)?;
    match present_state(&domain, &plan.name)? {
        DomainState::Running => Ok(Done::Unchanged),
        _ => domain.resume().map(|()| Done::Changed).map_err(|error| refused("resume", KIND, &plan.name, &error)),
    }
}

/// Off, then undefined with all that libvirt keeps about it.
pub fn remove(conn: &Connect, name: &str, uuid: Uuid, mark: &Mark) -> Result<Done, HostError> {
    let Some((domain, found)) = ours(conn, name, mark)? else { return Ok(Done::Unchanged) };
    if found.uuid != uuid {
        // Ours, but not the one that was observed: somebody is making it anew.
        return Err(HostError::Differs {
            kind: KIND,
            name: name.to_owned(),
            what: format!("its UUID is {}, not {uuid}", found.uuid),
        });
    }
    destroy(&domain, name)?;
    let flags = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
    match domain.undefine_flags(flags) {
        Ok(()) => Ok(Done::Changed),
        // A transient one went with its power, or somebody was faster.
        Err(error) if is_absent(&error) => Ok(Done::Changed),
        Err(error) => Err(refused("undefine", KIND, name, &error)),
    }
}

/// Resident memory of its QEMU in bytes; 0 when it is off.
pub fn resident_bytes(conn: &Connect, plan: &DomainPlan) -> Result<u64, HostError> {
    let Some(domain) = present(conn.lookup_domain_by_name(&plan.name), KIND, &plan.name)? else {
        return Err(HostError::Missing { kind: KIND, name: plan.name.clone() });
    };
    match domain.memory_stats(0) {
        Ok(stats) => {
            let kib = stats.iter().find(|stat| stat.tag == sys::VIR_DOMAIN_MEMORY_STAT_RSS).map_or(0, |stat| stat.val);
            Ok(kib.saturating_mul(1024))
        }
        Err(error) if not_running(&error) => Ok(0),
        Err(error) => Err(refused("measure", KIND, &plan.name, &error)),
    }
}

/// Ours, for a change; `Missing` when it is not there.
pub fn required(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Domain, HostError> {
    match ours(conn, &plan.name, mark)? {
        Some((domain, _)) => Ok(domain),
        None => Err(HostError::Missing { kind: KIND, name: plan.name.clone() }),
    }
}

/// The domain of that name if it is there, and `NotOurs` if it is somebody else's.
fn ours(conn: &Connect, name: &str, mark: &Mark) -> Result<Option<(Domain, xml::DomainXml)>, HostError> {
    let Some(domain) = present(conn.lookup_domain_by_name(name), KIND, name)? else { return Ok(None) };
    let Some(found) = describe(&domain)? else { return Ok(None) };
    guard(KIND, name, found.mark.as_ref(), mark)?;
    Ok(Some((domain, found)))
}

/// Defining under a UUID that is in use replaces that domain when its name is the same and fails when it is not:
/// either way the owner is asked first.
fn refuse_foreign_uuid(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<(), HostError> {
    let Some(domain) = present(conn.lookup_domain_by_uuid(plan.uuid), KIND, &plan.name)? else { return Ok(()) };
    match describe(&domain)? {
        Some(found) if found.name != plan.name => guard(KIND, &found.name, found.mark.as_ref(), mark),
        _ => Ok(()),
    }
}

/// The persistent definition; `None` when it vanished.
fn describe(domain: &Domain) -> Result<Option<xml::DomainXml>, HostError> {
    let name = domain.name().unwrap_or_default();
    match present(domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE), KIND, &name)? {
        Some(text) => xml::domain(&text).map(Some).map_err(|reason| unreadable(KIND, &name, reason)),
        None => Ok(None),
    }
}

/// `None` when it vanished: the crate reports that as a state it does not know, not as an error.
fn state(domain: &Domain) -> Result<Option<DomainState>, HostError> {
    let name = domain.name().unwrap_or_default();
    let (state, reason) = domain.state().map_err(|error| refused("query", KIND, &name, &error))?;
    let io_error =
        matches!(reason, Enum::Known(DomainStateReason::Paused(paused)) if paused == Enum::Known(DomainPausedReason::IOError));
    Ok(state.known().map(|state| match state {
        domain::DomainState::Running | domain::DomainState::Blocked => DomainState::Running,
        domain::DomainState::Paused if io_error => DomainState::PausedIoError,
        domain::DomainState::Paused | domain::DomainState::PMSuspended => DomainState::Paused,
        domain::DomainState::Shutdown => DomainState::ShuttingDown,
        domain::DomainState::Shutoff | domain::DomainState::NoState => DomainState::ShutOff,
        domain::DomainState::Crashed => DomainState::Crashed,
    }))
}

pub fn present_state(domain: &Domain, name: &str) -> Result<DomainState, HostError> {
    state(domain)?.ok_or_else(|| HostError::Missing { kind: KIND, name: name.to_owned() })
}

fn is_off(domain: &Domain, name: &str) -> Result<bool, HostError> {
    Ok(matches!(present_state(domain, name)?, DomainState::ShutOff | DomainState::Crashed))
}

/// Its state, once it is not on its way down any more (or the wait for that is over).
fn settled(domain: &Domain, plan: &DomainPlan) -> Result<DomainState, HostError> {
    let deadline = Instant::now() + SHUTTING_DOWN;
    loop {
        let now = present_state(domain, &plan.name)?;
        if now != DomainState::ShuttingDown || Instant::now() >= deadline {
            return Ok(now);
        }
        pause(Duration::from_millis(100));
    }
}

fn destroy(domain: &Domain, name: &str) -> Result<Done, HostError> {
    match state(domain)? {
        None | Some(DomainState::ShutOff | DomainState::Crashed) => Ok(Done::Unchanged),
        Some(_) => match domain.destroy() {
            Ok(()) => Ok(Done::Changed),
            Err(error) if not_running(&error) || is_absent(&error) => Ok(Done::Unchanged),
            Err(error) => Err(refused("power off", KIND, name, &error)),
        },
    }
}

/// libvirt's one code for "not in a state for that"; for these calls it means the machine is off.
fn not_running(error: &Error) -> bool {
    error.code().is(ErrorNumber::OperationInvalid)
}
