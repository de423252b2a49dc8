//! `snapshot save --etcd-only` and what goes with it: etcd's own way, a copy of the store without the machines.
//! It outlives the machines: after their disks are lost, `up` makes new ones from the same directory and `restore` gives them the data.
//! Which members are told what, drills know; this file says in which order, and what is refused.

use super::args::{Format, Global};
use super::drill::bench::Bench;
use super::error::CliError;
use super::opened::{all_are, no_open_fault, no_open_restore, no_open_restore_of};
use super::session::{self, Session};
use super::snapshot::{members, shown_time};
use super::{exit, golden, render};
use crate::drill::act::Act;
use crate::drill::admin;
use crate::drill::catalogue::Process;
use crate::drill::etcd::statuses;
use crate::drill::injector::Injector as _;
use crate::drill::restorable::restorable;
use crate::event::{Events, Verdict};
use crate::life::power::Whole;
use crate::life::{self, Machines};
use crate::snapshot::{Name, RESTORE, Record, open_restore};
use crate::spec::NodeName;
use crate::store::journal::History;
use crate::store::{ClusterDir, Lock, StoreError};
use crate::verify;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::{Duration, Instant};

/// Kept free beside the store where it is saved: the journal and records of all that follows are written there.
const RESERVE_MIB: u64 = 64;

/// What is written down of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdSnapshot {
    pub name: Name,
    pub note: Option<String>,
    pub taken: Timestamp,
    /// Revision that every member had before it was taken: all up to it is in there.
    pub revision: i64,
    pub bytes: u64,
    pub sha256: String,
}

/// All that can be read, by name.
pub fn all(dir: &ClusterDir) -> Result<Vec<EtcdSnapshot>, CliError> {
    Ok(dir.load_etcd_snapshots::<EtcdSnapshot>()?.into_iter().filter_map(|(_, record)| record.ok()).collect())
}

/// `, 2 snapshots of etcd`, for a question before the directory goes; nothing where there are none. What cannot be counted does not
/// keep anybody from removing it.
pub fn among(dir: &ClusterDir) -> String {
    match dir.load_etcd_snapshots::<EtcdSnapshot>().map_or(0, |all| all.len()) {
        0 => String::new(),
        1 => ", 1 snapshot of etcd".to_owned(),
        n => format!(", {n} snapshots of etcd"),
    }
}

/// Those that are there and cannot be read, each with the reason.
pub fn unreadable(dir: &ClusterDir) -> Result<Vec<(String, String)>, CliError> {
    let broken = |(name, record): (String, Result<EtcdSnapshot, _>)| record.err().map(|why: StoreError| (name, why.to_string()));
    Ok(dir.load_etcd_snapshots::<EtcdSnapshot>()?.into_iter().filter_map(broken).collect())
}

/// The one of that name.
pub fn named(dir: &ClusterDir, name: &Name) -> Result<Option<EtcdSnapshot>, CliError> {
    Ok(all(dir)?.into_iter().find(|one| one.name == *name))
}

/// Whether there is one of that name, readable or not.
pub fn is_there(dir: &ClusterDir, name: &str) -> Result<bool, CliError> {
    Ok(dir.load_etcd_snapshots::<EtcdSnapshot>()?.iter().any(|(known, _)| known == name))
}

/// etcd ends a snapshot with the digest of what comes before it.
fn is_whole(bytes: &[u8]) -> bool {
    let Some((data, sum)) = bytes.len().checked_sub(32).map(|at| bytes.split_at(at)) else { return false };
    // The store is made of pages; a sum lies behind the last.
    data.len() % 512 == 0 && Sha256::digest(data).as_slice() == sum
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bench(global: &Global, verb: &str) -> Result<(Bench, Lock), CliError> {
    let is_down = |session: &Session| golden::refuse_down(&session.dir.history()?, session.plan.cluster.as_str());
    let (session, lock) = Session::open(global)?.lock(verb, is_down)?;
    tidy(&session.dir, &lock)?;
    let host = session::connect_to(global, &session.dir)?;
    let bench = Bench::new(session, &lock, host, verb)?;
    no_open_fault(&bench.dir.history()?, bench.plan.cluster.as_str())?;
    Ok((bench, lock))
}

/// What saves that were cut off have left.
fn tidy(dir: &ClusterDir, lock: &Lock) -> Result<(), CliError> {
    for file in dir.tidy_etcd_snapshots(lock)? {
        render::status(&format!("{file}, of a save that was cut off, is removed"));
    }
    Ok(())
}

pub async fn save(global: &Global, name: &Name, note: Option<&String>) -> Result<u8, CliError> {
    let begin = Instant::now();
    not_golden(name)?;
    let (bench, lock) = bench(global, &format!("snapshot save {name} --etcd-only"))?;
    let (dir, plan) = (&bench.dir, &bench.plan);
    let cluster = &plan.cluster;
    let taken = dir.load_snapshots::<Record>()?.iter().any(|(known, _)| known == name.as_str());
    if taken || named(dir, name)?.is_some() {
        return Err(CliError::usage(format!("there is a snapshot {name} already"))
            .hint(format!("another name, or ktcw-vm snapshot delete {name} -c {cluster}")));
    }
    let (there, silent) = members(plan, &*bench.machines.guest).await;
    if let Some((node, why)) = silent.first() {
        return Err(CliError::new(exit::CHECK_FAILED, format!("{node}: etcd does not answer: {why}"))
            .left("nothing")
            .hint(format!("ktcw-vm verify -c {cluster}")));
    }
    let sizes = statuses(&bench.site).await.into_iter().flatten().map(|member| u64::try_from(member.db_bytes).unwrap_or(0));
    room(sizes.max().unwrap_or(0), dir.free_bytes()?).map_err(|said| {
        CliError::host(format!("{}: {said}", dir.path().display()))
            .left("nothing")
            .hint(format!("free disk space there, or ktcw-vm snapshot delete NAME -c {cluster}"))
    })?;
    let revision = there.values().map(|member| member.revision).min().unwrap_or(0);
    let path = dir.etcd_snapshot_file(&lock, name.as_str())?;
    admin::save_snapshot(&bench.site, &path.display().to_string()).await.map_err(not_saved)?;
    let record = recorded(dir, &lock, &path, name, note, revision).await;
    let record = record.map_err(|error| forgotten(dir, &lock, name, error))?;
    match global.format {
        Format::Json => render::print_line(&json!({ "cluster": cluster, "etcd_snapshot": record }).to_string()),
        Format::Text => render::print_line(&format!(
            "snapshot {name} of cluster {cluster}'s etcd: revision {revision}, {} KiB; {:.1} s",
            record.bytes >> 10,
            begin.elapsed().as_secs_f64()
        )),
    }
    Ok(exit::OK)
}

/// The name of what `up` keeps of all machines: where etcd had it too, `restore` and `delete` would reach etcd's alone.
fn not_golden(name: &Name) -> Result<(), CliError> {
    if name.as_str() != golden::NAME {
        return Ok(());
    }
    Err(CliError::usage(format!("{name} is the snapshot of all machines that up keeps; one of etcd alone needs another name"))
        .hint("ktcw-vm snapshot save NAME --etcd-only; nothing was touched"))
}

fn not_saved(said: String) -> CliError {
    CliError::failed(said).left("no snapshot of that name")
}

/// Refuses a store of so many bytes where so many are free.
fn room(store: u64, free: u64) -> Result<(), String> {
    let (need, free) = (store.div_ceil(1 << 20) + RESERVE_MIB, free >> 20);
    if need <= free {
        return Ok(());
    }
    Err(format!("etcd's store takes {} MiB, {need} with a reserve, and {free} MiB are free", need - RESERVE_MIB))
}

/// Judges a file that etcd has sent and writes its record, the last word of a save.
async fn recorded(
    dir: &ClusterDir,
    lock: &Lock,
    path: &Path,
    name: &Name,
    note: Option<&String>,
    revision: i64,
) -> Result<EtcdSnapshot, CliError> {
    let bytes = tokio::fs::read(path).await.map_err(|error| not_saved(format!("{}: {error}", path.display())))?;
    if !is_whole(&bytes) {
        return Err(not_saved("what etcd has sent does not agree with its own sum".to_owned()));
    }
    let record = EtcdSnapshot {
        name: name.clone(),
        note: note.cloned(),
        taken: Timestamp::now(),
        revision,
        bytes: bytes.len() as u64,
        sha256: hex(&bytes),
    };
    dir.save_etcd_snapshot(lock, name.as_str(), &record)
        .map_err(|error| CliError::from(error).left("no snapshot of that name"))?;
    Ok(record)
}

/// Removes what a save has left that failed at its end: it holds every secret of the cluster. Where it cannot be, the error says so.
fn forgotten(dir: &ClusterDir, lock: &Lock, name: &Name, error: CliError) -> CliError {
    match dir.remove_etcd_snapshot(lock, name.as_str()) {
        Ok(_) => error,
        Err(why) => error.left(format!("a copy of etcd's store, with every secret in it: {}", render::chain(&why))),
    }
}

pub async fn restore(global: &Global, snapshot: &EtcdSnapshot, verify: bool) -> Result<u8, CliError> {
    let begin = Instant::now();
    let name = &snapshot.name;
    let (session, lock) = Session::open(global)?.lock(&format!("snapshot restore {name}"), |_| Ok(()))?;
    let cluster = session.plan.cluster.clone();
    let begun = begun_before(&session.dir.history()?, cluster.as_str())?;
    tidy(&session.dir, &lock)?;
    let path = session.dir.etcd_snapshot_file(&lock, name.as_str())?;
    let bytes = tokio::fs::read(&path).await.map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
    if hex(&bytes) != snapshot.sha256 || !is_whole(&bytes) {
        return Err(CliError::failed(format!("{} is not what was saved: its sum differs", path.display()))
            .left("everything as it was")
            .hint(format!("ktcw-vm snapshot list -c {cluster}: another one will do")));
    }
    drop(bytes);
    let host = session::connect_to(global, &session.dir)?;
    let machines = Machines { plan: session.plan.clone(), host: host.clone(), mark: session.mark() };
    // Not through the door that others take: a restore that was cut off is what this one finishes.
    let bench = Bench::for_restore(session, &lock, host)?;
    let plan = bench.plan.clone();
    match begun {
        false => all_are(&machines.power().await?, &Whole::Running, cluster.as_str())
            .map_err(|error| error.left("everything as it was"))?,
        true => awake(&bench, &machines, name).await?,
    }
    let (members, planes) = (names(plan.controllers()), names(plan.control_planes()));
    // Members lose their data before they are given the snapshot's. One that was cut off is past that, and has nothing to lose.
    if !begun && let Some(room) = bench.machines.store_room(&members).await.map_err(CliError::failed)? {
        restorable(snapshot.bytes, room).map_err(|why| CliError::failed(why).left("everything as it was"))?;
    }
    let stage = |text: &str| render::status(text);
    let failed = |said: String| {
        CliError::failed(said)
            .left("API servers stopped, and members that may have no data")
            .hint(format!("ktcw-vm snapshot restore {name} -c {cluster} again finishes it"))
    };
    bench.log.journal.begin_with(RESTORE, None, json!({ "snapshot": name, "etcd_only": true }))?;
    let perform = |act: Act| {
        let machines = &bench.machines;
        async move { machines.perform(&act).await.map_err(|error| failed(error.to_string())) }
    };
    stage("stopping the API servers");
    for node in &planes {
        perform(Act::Down { node: node.clone(), process: Process::KubeApiserver, graceful: true }).await?;
    }
    stage("stopping etcd and taking its data away");
    for node in &members {
        perform(Act::Down { node: node.clone(), process: Process::Etcd, graceful: true }).await?;
        perform(Act::Wipe { node: node.clone() }).await?;
    }
    stage("giving every member the snapshot's data");
    perform(Act::RestoreData { nodes: members.clone(), snapshot: path.display().to_string() }).await?;
    stage("starting etcd, then the API servers");
    for node in &members {
        perform(Act::Start { node: node.clone(), process: Process::Etcd }).await?;
    }
    let patience = Duration::from_secs(u64::from(plan.timers.etcd_deadline_s));
    admin::await_healthy(&bench.site, patience).await.map_err(failed)?;
    for node in &planes {
        perform(Act::Start { node: node.clone(), process: Process::KubeApiserver }).await?;
    }
    bench.log.journal.done(RESTORE, None)?;
    stage("waiting for the API servers, the nodes and the control loops' leaders");
    bench.settle().await?;
    let report = match verify {
        false => None,
        true => {
            let (keyring, guests, nowhere) = (&bench.machines.keyring, &*bench.machines.guest, Events::nowhere());
            Some(super::verify::steady(&plan, keyring, guests, &nowhere).await?)
        }
    };
    let took = begin.elapsed().as_secs_f64();
    match global.format {
        Format::Json => {
            let mut value =
                json!({ "cluster": cluster, "etcd_snapshot": snapshot, "elapsed_ms": begin.elapsed().as_millis() as u64 });
            if let Some(report) = &report {
                value["verify"] = serde_json::to_value(report).unwrap_or_default();
            }
            render::print_line(&value.to_string());
        }
        Format::Text => {
            if let Some(report) = &report {
                render::print(&verify::render::table(report));
            }
            render::print_line(&format!(
                "etcd of cluster {cluster} is as it was in snapshot {name} of {}: {took:.1} s",
                shown_time(snapshot.taken)
            ));
        }
    }
    Ok(match &report {
        Some(report) if report.verdict() != Verdict::Pass => exit::CHECK_FAILED,
        _ => exit::OK,
    })
}

fn names<'a>(nodes: impl Iterator<Item = &'a crate::plan::NodePlan>) -> Vec<NodeName> {
    nodes.map(|node| node.name.clone()).collect()
}

/// Whether a restore of etcd's data is to be finished, or else what stands in the way of one.
fn begun_before(history: &History, cluster: &str) -> Result<bool, CliError> {
    golden::refuse_down(history, cluster)?;
    no_open_fault(history, cluster).map_err(|error| error.left("everything as it was"))?;
    match open_restore(history) {
        Some(open) if open.etcd_only => Ok(true),
        // Machines of two moments are not mended by giving their members the same data.
        _ => no_open_restore(history, cluster).map(|()| false),
    }
}

/// After a restore that was cut off every other verb refuses: whatever is off or paused since, this one brings back.
async fn awake(bench: &Bench, machines: &Machines, name: &Name) -> Result<(), CliError> {
    let cluster = &bench.plan.cluster;
    let failed = |error: CliError| {
        error
            .left("what the restore that was cut off has left: API servers stopped, and members that may have no data")
            .hint(format!("ktcw-vm snapshot restore {name} -c {cluster} again; ktcw-vm down -c {cluster} removes everything"))
    };
    let woken = machines.ensure_running().await.map_err(|error| failed(error.into()))?;
    if woken.is_empty() {
        return Ok(());
    }
    render::status(&format!("{} were off or paused; waiting until they answer", crate::snapshot::listed(&woken)));
    let clocks = life::awaited(&bench.plan, &*bench.machines.guest, Timestamp::now, &woken).await;
    match clocks.into_iter().find_map(|(node, shift)| shift.err().map(|why| (node, why))) {
        None => Ok(()),
        Some((node, why)) => Err(failed(CliError::failed(format!("{node}: {why}")))),
    }
}

/// `snapshot delete` of one.
pub fn delete(global: &Global, name: &Name) -> Result<u8, CliError> {
    let needed = |session: &Session| match session.dir.history()? {
        // It is what the restore needs that was cut off.
        history if open_restore(&history).is_some_and(|open| open.snapshot == name.as_str()) => {
            no_open_restore_of(&session.dir, &history)
        }
        _ => Ok(()),
    };
    let (session, lock) = Session::open(global)?.lock(&format!("snapshot delete {name}"), needed)?;
    let cluster = session.plan.cluster.as_str();
    tidy(&session.dir, &lock)?;
    session.dir.remove_etcd_snapshot(&lock, name.as_str())?;
    render::print_line(&format!("snapshot {name} of cluster {cluster}'s etcd removed"));
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(steps: impl FnOnce(&crate::store::journal::Journal)) -> History {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.jsonl");
        let (journal, _) = crate::store::journal::Journal::open(&path, crate::store::draw_id(), "test").expect("opens");
        steps(&journal);
        drop(journal);
        crate::store::journal::read(&path).expect("readable")
    }

    #[test]
    fn a_restore_finishes_its_own_kind_and_nothing_else() {
        let begun = |etcd_only: bool| {
            history(|journal| {
                journal.begin_with(RESTORE, None, json!({ "snapshot": "one", "etcd_only": etcd_only })).expect("written");
            })
        };
        assert!(!begun_before(&History::default(), "lab").expect("nothing stands in the way"));
        assert!(begun_before(&begun(true), "lab").expect("it is finished"));
        let said = begun_before(&begun(false), "lab").expect_err("machines of two moments").text();
        assert!(said.contains("machines may be of different moments") && said.contains("snapshot restore one -c lab"), "{said}");
        let down = history(|journal| journal.begin("down to golden", None).expect("written"));
        assert!(begun_before(&down, "lab").is_err());
    }

    #[test]
    fn a_store_is_not_saved_where_it_would_fill_the_disk() {
        assert_eq!(room(20 << 20, 84 << 20), Ok(()));
        let said = |store, free| room(store, free).expect_err("no room");
        assert_eq!(said(20 << 20, (84 << 20) - 1), "etcd's store takes 20 MiB, 84 with a reserve, and 83 MiB are free");
        assert!(said((20 << 20) + 1, 84 << 20).starts_with("etcd's store takes 21 MiB"));
        let place = tempfile::tempdir().expect("a directory");
        let spec = crate::spec::validate(&crate::spec::RawSpec::default()).expect("valid");
        let (dir, _lock) = ClusterDir::create(place.path(), &spec, "up", Timestamp::now()).expect("made");
        assert!(dir.free_bytes().expect("read") > 0, "there was room for the directory");
    }

    #[tokio::test]
    async fn of_a_save_that_fails_at_its_end_no_file_is_left() {
        let place = tempfile::tempdir().expect("a directory");
        let spec = crate::spec::validate(&crate::spec::RawSpec::default()).expect("valid");
        let (dir, lock) = ClusterDir::create(place.path(), &spec, "up", Timestamp::now()).expect("made");
        let name = Name::parse("store").expect("a name");
        let path = dir.etcd_snapshot_file(&lock, name.as_str()).expect("a path");
        let mut whole = vec![7u8; 1024];
        whole.extend(Sha256::digest(&whole));
        std::fs::write(&path, &whole[..1000]).expect("written");
        let error = recorded(&dir, &lock, &path, &name, None, 7).await.expect_err("cut short");
        let error = forgotten(&dir, &lock, &name, error);
        assert!(error.text().contains("its own sum\nleft behind: no snapshot of that name"), "{}", error.text());
        assert!(!path.exists(), "it holds every secret");
        std::fs::write(&path, &whole).expect("written");
        let record = recorded(&dir, &lock, &path, &name, None, 7).await.expect("whole");
        assert_eq!(named(&dir, &name).expect("readable"), Some(record));
        assert!(path.exists());
    }

    #[test]
    fn a_snapshot_is_whole_by_etcds_own_sum() {
        let data = vec![7u8; 1024];
        let mut whole = data.clone();
        whole.extend(Sha256::digest(&data));
        assert!(is_whole(&whole));
        for cut in [0, 31, 512, whole.len() - 1] {
            assert!(!is_whole(&whole[..cut]), "{cut}");
        }
        whole[3] ^= 1;
        assert!(!is_whole(&whole));
    }
}
