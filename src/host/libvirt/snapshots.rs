//! Snapshots of one machine, memory and disks: made, gone back to, removed; only those whose name says that they are ours.
//! `LibvirtHost` calls it with a live connection; every function looks first and does what is missing.
//! That a cluster is more than one machine, and what a snapshot is good for, it does not know.

use super::connection::{checked, present, refused};
use super::domains::{self, KIND};
use crate::host::{DomainState, Done, HostError, Mark, xml};
use crate::plan::DomainPlan;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::error::ErrorNumber;
use virt::sys;

/// Before every name: a snapshot without it was made by somebody else, with virsh perhaps.
const PREFIX: &str = "ktcw.";

/// What a snapshot of ours is called in libvirt and in the disks.
pub fn full_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

pub fn list(conn: &Connect, plan: &DomainPlan, mark: &Mark) -> Result<Vec<String>, HostError> {
    let domain = domains::required(conn, plan, mark)?;
    let all = domain.list_all_snapshots(0).map_err(|error| refused("list the snapshots of", KIND, &plan.name, &error))?;
    let mut names: Vec<String> =
        all.iter().filter_map(|snapshot| Some(snapshot.name().ok()?.strip_prefix(PREFIX)?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Memory and every writable disk, inside the disks themselves. The machine stays paused.
pub fn ensure(conn: &Connect, plan: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
    let domain = domains::required(conn, plan, mark)?;
    if find(&domain, plan, name)?.is_some() {
        return Ok(Done::Unchanged);
    }
    let state = domains::present_state(&domain, &plan.name)?;
    if state != DomainState::Paused {
        return Err(not_paused("snapshot", &plan.name, state));
    }
    let text = xml::snapshot_xml(plan, &full_name(name), mark)?;
    let made = checked(|| domain.create_snapshot_xml(&text, sys::VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE));
    made.map(|_| Done::Changed).map_err(|error| refused("snapshot", KIND, &plan.name, &error))
}

/// As it was in that moment, paused; a machine that is off is started for it.
pub fn revert(conn: &Connect, plan: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
    let domain = domains::required(conn, plan, mark)?;
    let Some(snapshot) = find(&domain, plan, name)? else {
        return Err(HostError::Missing { kind: "snapshot", name: format!("{name} of {}", plan.name) });
    };
    // Memory that somebody has saved beside it (`virsh managedsave`, a host that suspends its guests) would be loaded over these
    // disks at the next start.
    if domain.has_managed_save(0).map_err(|error| refused("look for saved memory of", KIND, &plan.name, &error))? {
        domain.managed_save_remove(0).map_err(|error| refused("drop the saved memory of", KIND, &plan.name, &error))?;
    }
    let paused = sys::VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED;
    let reverted = match snapshot.revert(paused) {
        // Its running process cannot take the state in: what runs in it is given up anyway.
        Err(error) if error.code().is(ErrorNumber::SnapshotRevertRisky) => {
            snapshot.revert(paused | sys::VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)
        }
        other => other,
    };
    reverted.map_err(|error| refused("revert", KIND, &plan.name, &error))?;
    match domains::present_state(&domain, &plan.name)? {
        DomainState::Paused => Ok(Done::Changed),
        other => Err(not_paused("revert", &plan.name, other)),
    }
}

/// Those made after it stay.
pub fn remove(conn: &Connect, plan: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
    let domain = match domains::required(conn, plan, mark) {
        Err(HostError::Missing { .. }) => return Ok(Done::Unchanged),
        found => found?,
    };
    let Some(snapshot) = find(&domain, plan, name)? else { return Ok(Done::Unchanged) };
    match snapshot.delete(0) {
        Ok(()) => Ok(Done::Changed),
        // Somebody was faster.
        Err(_) if find(&domain, plan, name)?.is_none() => Ok(Done::Changed),
        Err(error) => Err(refused("remove a snapshot of", KIND, &plan.name, &error)),
    }
}

fn find(domain: &Domain, plan: &DomainPlan, name: &str) -> Result<Option<DomainSnapshot>, HostError> {
    present(Domain::lookup_snapshot_by_name(domain, &full_name(name), 0), KIND, &plan.name)
}

fn not_paused(action: &'static str, name: &str, state: DomainState) -> HostError {
    let reason = format!("it is not paused but {}", format!("{state:?}").to_lowercase());
    HostError::Libvirt { action, kind: KIND, name: name.to_owned(), reason }
}
