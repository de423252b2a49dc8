//! `snapshot fork NAME --as OTHER`: a second cluster from the disks of a snapshot, beside the first and apart from it.
//! Its machines keep names, addresses and certificates, on a bridge that this computer reaches from a network namespace only.
//! It makes a cluster's directory and disks, whole or marked as cut off; `start` of the new cluster does the rest.

use super::args::{Global, SnapshotFork};
use super::error::CliError;
use super::opened::{Opened, whole_moment};
use super::{etcd_only, exit, render, session, up};
use crate::host::{Host, HostFacts, HostSeen, Mark, blocking};
use crate::netns::{self, Ends, Namespace, NetnsError};
use crate::plan::{DiskKind, Plan, Resolved, plan};
use crate::preflight;
use crate::snapshot::{self, Fits, Name, Record};
use crate::spec::{ClusterName, ClusterSpec};
use crate::store::ClusterDir;
use crate::store::journal::{Entry, History};
use jiff::Timestamp;
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Journal step of a new cluster's directory and disks.
const FORK: &str = "fork";
/// Room that is left free beside what the disks take, MiB.
const RESERVE_MIB: u64 = 512;

/// Whether the making of the disks was cut off: then there may be a blank one where data should be.
fn is_cut_off(history: &History) -> bool {
    let not_done = history.pending().into_iter().chain(history.failed());
    not_done.into_iter().any(|record| matches!(&record.entry, Entry::Step { step, .. } if step == FORK))
}

/// For verbs that would make what is missing of it.
pub fn refuse_cut_off(history: &History, cluster: &str) -> Result<(), CliError> {
    if !is_cut_off(history) {
        return Ok(());
    }
    Err(CliError::failed(format!("the fork that was to become cluster {cluster} was cut off: its disks are not whole"))
        .left("everything as it was")
        .hint(format!("ktcw-vm down -c {cluster}, then fork again")))
}

/// The same machines under another name, on a network of their own.
fn forked(of: &Plan, name: &ClusterName) -> Plan {
    let spec = ClusterSpec { name: name.clone(), ..of.spec.clone() };
    let origin = of.resolved.fork_of.clone().unwrap_or_else(|| of.cluster.clone());
    plan(&spec, &Resolved { fork_of: Some(origin), ..of.resolved.clone() })
}

pub async fn run(global: &Global, args: &SnapshotFork) -> Result<u8, CliError> {
    let (name, new) = (&args.name, &args.new);
    let parent = session::parent(global)?;
    let opened = Opened::new(global, &format!("snapshot fork {name}"), |session| {
        whole_moment(session)?;
        has_machines(&session.dir, name)
    })?;
    let record = super::snapshot::named(&opened.session.dir, name)?;
    let old = opened.session.plan.clone();
    let plan = forked(&old, new);
    refuse(&opened, &record, &plan, &parent).await?;

    let origin = Origin { host: opened.host.clone(), uri: opened.host.uri(), dir: &opened.session.dir, plan: &old };
    make(&origin, &record, &plan, &parent, &|text| render::status(text)).await?;
    drop(opened);
    start(global, &parent, new)
}

/// There is a snapshot of that name, and not one of etcd alone.
fn has_machines(dir: &ClusterDir, name: &Name) -> Result<(), CliError> {
    let of_machines = dir.load_snapshots::<Record>()?.iter().any(|(known, _)| known == name.as_str());
    if !of_machines && etcd_only::is_there(dir, name.as_str())? {
        return Err(CliError::usage(format!("snapshot {name} is of etcd alone, and a fork is made of machines' disks"))
            .hint(format!("ktcw-vm snapshot list -c {}; nothing was touched", dir.name())));
    }
    super::snapshot::named(dir, name).map(drop)
}

/// What a fork is made of.
struct Origin<'a> {
    host: Arc<dyn Host>,
    uri: &'a str,
    dir: &'a ClusterDir,
    plan: &'a Plan,
}

/// The new cluster's directory and disks, whole or marked as cut off.
async fn make(
    origin: &Origin<'_>,
    record: &Record,
    plan: &Plan,
    parent: &Path,
    told: &(dyn Fn(&str) + Sync),
) -> Result<(), CliError> {
    let (new, old, name) = (&plan.cluster, &origin.plan.cluster, &record.name);
    told(&format!("making cluster {new}"));
    let (mut dir, lock) = ClusterDir::create(parent, &plan.spec, &format!("snapshot fork {name}"), Timestamp::now())?;
    let (journal, _) = dir.journal(&lock, crate::store::draw_id(), "fork")?;
    journal.begin_with(FORK, None, json!({ "of": old, "snapshot": name }))?;
    let made = async {
        dir.save_libvirt(&lock, origin.uri)?;
        dir.save_plan(&lock, plan)?;
        dir.adopt_keys(&lock, origin.dir)?;
        disks(origin, plan, session::mark(&dir), name.as_str(), told).await
    };
    let made = made.await.and_then(|()| Ok(journal.done(FORK, None)?));
    made.map_err(|error| {
        error.left(format!("a part of cluster {new}; cluster {old} as it was")).hint(format!("ktcw-vm down -c {new}"))
    })
}

/// Everything that stands against it, before anything is made.
async fn refuse(opened: &Opened, record: &Record, plan: &Plan, parent: &Path) -> Result<(), CliError> {
    let (new, old) = (&plan.cluster, &opened.session.plan);
    if ClusterDir::exists(parent, new) {
        return Err(CliError::usage(format!("--as: there is a cluster {new} already; accepted: a name that is free"))
            .hint(format!("ktcw-vm down -c {new} removes that one")));
    }
    if !opened.host.is_local() {
        return Err(CliError::host(format!("a fork needs libvirt on this computer, and {} is not", opened.host.uri())));
    }
    let mut lacks = netns::lacks();
    let runs =
        Command::new("qemu-img").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !runs.is_ok_and(|status| status.success()) {
        lacks.push("the program qemu-img (package qemu-utils)".to_owned());
    }
    if !lacks.is_empty() {
        return Err(CliError::host(format!("a fork is reached by a network namespace; this needs\n  {}", lacks.join("\n  ")))
            .left("nothing"));
    }
    if let Some(taken) = netns::taken(&plan.network) {
        return Err(CliError::host(format!("there is a network namespace {taken} already"))
            .hint(format!("another name: --as OTHER; if nobody needs it: ip netns delete {taken}")));
    }
    let host = opened.host.clone();
    let (facts, seen) = blocking(move || Ok((host.facts()?, host.observe()?))).await?;
    // A fork boots: its machines' memory is not used, and so another QEMU may run them.
    let now = Fits { qemu_version: record.fits.qemu_version.clone(), ..Fits::of(old, &facts) };
    let differs = record.fits.differs(&now);
    if !differs.is_empty() {
        return Err(
            CliError::host(format!("snapshot {} does not fit any more: {}", record.name, differs.join("; "))).left("nothing")
        );
    }
    snapshot::complete(&opened.machines, &record.name).await.map_err(|error| CliError::from(error).left("nothing"))?;
    room(plan, old, &facts, &seen, opened.host.free_disk_mib())
}

/// Memory and names for a second cluster, and room for its disks where pools are made.
fn room(plan: &Plan, old: &Plan, facts: &HostFacts, seen: &HostSeen, free_disk_mib: Option<u64>) -> Result<(), CliError> {
    let all = preflight::judge(plan, facts, seen, None, 0, free_disk_mib);
    up::refuse(&all.into_iter().filter(|refusal| refusal.about != "disk").collect::<Vec<_>>())?;
    let pool = seen.pools.iter().find(|pool| pool.name == old.storage.pool);
    let taken: u64 = pool.map_or(0, |pool| pool.volumes.iter().map(|volume| volume.allocation).sum());
    let (need, free) = ((taken >> 20) + RESERVE_MIB, pool.and_then(|pool| pool.available).map(|bytes| bytes >> 20));
    match free {
        Some(free) if free < need => {
            Err(CliError::host(format!("the fork's disks may take {need} MiB, where pools are made {free} MiB are free"))
                .left("nothing")
                .hint(format!("free disk space, or ktcw-vm snapshot delete NAME -c {}", old.cluster)))
        }
        _ => Ok(()),
    }
}

/// Pools, and every disk with data, one after the other.
async fn disks(
    origin: &Origin<'_>,
    plan: &Plan,
    mark: Mark,
    snapshot: &str,
    told: &(dyn Fn(&str) + Sync),
) -> Result<(), CliError> {
    let (host, from) = (origin.host.clone(), origin.plan.storage.clone());
    let (own, pools, marked) = (host.clone(), plan.storage.clone(), mark.clone());
    blocking(move || own.ensure_pools(&pools, &marked)).await?;
    for node in &plan.nodes {
        told(&format!("copying the disks of {}", node.name));
        for disk in &node.domain.disks {
            let base = match disk.kind {
                DiskKind::Seed => continue,
                DiskKind::Root { .. } => Some(plan.storage.base_volume.clone()),
                DiskKind::Etcd { .. } => None,
            };
            let (host, from, to, mark) = (host.clone(), from.clone(), plan.storage.clone(), mark.clone());
            let (volume, snapshot) = (disk.volume.clone(), snapshot.to_owned());
            blocking(move || host.ensure_copy(&from, &to, &volume, &snapshot, base.as_deref(), &mark)).await?;
        }
    }
    Ok(())
}

/// The program once more, for the new cluster: it has to enter that cluster's namespace, and this process has another network.
fn start(global: &Global, parent: &Path, new: &ClusterName) -> Result<u8, CliError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ktcw-vm").args(["start", "--cluster", new.as_str()]).arg("--state-dir").arg(parent);
    if let Some(uri) = &global.connect {
        command.args(["--connect", uri]);
    }
    if global.format == super::args::Format::Json {
        command.args(["--format", "json"]);
    }
    let spawned = netns::outside(|| command.spawn()).and_then(|child| child);
    let ended = spawned.and_then(|mut child| child.wait()).map_err(|error| {
        CliError::failed(format!("ktcw-vm start could not be run: {error}"))
            .left(format!("cluster {new}, whole and off"))
            .hint(format!("ktcw-vm start -c {new}"))
    })?;
    Ok(ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED))
}

/// Enters the network namespace of a fork, for verbs that speak to its machines. Other clusters, and those that cannot be opened,
/// are left to their verbs.
pub fn enter(global: &Global) -> Result<(), CliError> {
    let (Ok(parent), Ok(name)) = (session::parent(global), session::cluster_name(global)) else { return Ok(()) };
    let Ok(dir) = ClusterDir::open(&parent, &name) else { return Ok(()) };
    let plan = dir.load_plan().ok().flatten();
    let own = plan.as_ref().and_then(|plan| Namespace::of(&plan.network, &name, dir.instance()));
    let Some(own) = own else { return Ok(()) };
    own.enter().map_err(|error| {
        let lacks = netns::lacks();
        let said = CliError::host(format!("cluster {name} is a fork, reached by network namespace {}: {error}", own.name()));
        match error.hint() {
            Some(hint) => said.hint(hint),
            None if lacks.is_empty() => said,
            None => said.hint(format!("this needs {}", lacks.join("; "))),
        }
    })
}

/// Its namespace, once the rest of a fork is gone; looked for by name where no plan says whether it had one. Somebody else's stays.
pub fn remove_namespace(plan: Option<&Plan>, mark: &Mark) -> Result<(), CliError> {
    if plan.is_some_and(|plan| !plan.network.namespace) {
        return Ok(());
    }
    match Ends::of(&mark.cluster, mark.instance).remove() {
        Err(error @ NetnsError::NotOurs { .. }) => {
            render::status(&format!("{error}: it stays"));
            Ok(())
        }
        removed => removed.map_err(|error| CliError::failed(error).left("an empty network namespace")),
    }
}

#[cfg(test)]
mod tests;
