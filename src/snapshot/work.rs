//! Saving, restoring and removing, each step written down before it is done, so that after a crash either state is whole.
//! A save counts from its record's last word; a restore is open from its first record in the journal until its last.
//! Whether the cluster is fit to be saved, or a record fits the host, its callers have asked; that every machine has its part, it asks.

use super::SnapshotError;
use super::parts::{complete, parts};
use super::record::{Name, Record, State};
use crate::host::{DomainState, Host, Mark, blocking};
use crate::life::{LifeError, Machines, WAKE};
use crate::store::journal::{Entry, History, Journal, Phase, Record as JournalRecord};
use crate::store::{ClusterDir, Lock};
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

/// Journal step of a whole restore.
pub const RESTORE: &str = "restore";
/// Steps of a save, of which a restore has the first as well.
const SUSPEND: &str = "snapshot suspend";
const CAPTURE: &str = "snapshot capture";
/// What the steps of a removal and of a save begin with.
const REMOVE: &str = "remove snapshot ";
const SAVE: &str = "save ";

/// What every piece of work needs.
pub struct Desk<'a> {
    pub machines: &'a Machines,
    pub dir: &'a ClusterDir,
    pub lock: &'a Lock,
    pub journal: &'a Journal,
    pub told: &'a (dyn Fn(&str) + Sync),
}

impl Desk<'_> {
    fn records(&self) -> Result<Vec<Record>, SnapshotError> {
        Ok(self.dir.load_snapshots::<Record>()?.into_iter().filter_map(|(_, record)| record.ok()).collect())
    }

    fn save_record(&self, record: &Record) -> Result<(), SnapshotError> {
        Ok(self.dir.save_snapshot(self.lock, record.name.as_str(), record)?)
    }

    /// One effect on the machines, between its two records.
    async fn step<T>(&self, name: &str, work: impl Future<Output = Result<T, LifeError>>) -> Result<T, SnapshotError> {
        self.journal.begin(name, None)?;
        match work.await {
            Ok(done) => {
                self.journal.done(name, None)?;
                Ok(done)
            }
            Err(error) => {
                self.journal.failed(name, None, &error.to_string())?;
                Err(error.into())
            }
        }
    }

    /// Lets go on whoever is paused, also where it cannot be written down: on a disk that is full nobody is left frozen.
    async fn wake(&self) -> Result<Duration, SnapshotError> {
        let begun = self.journal.begin(WAKE, None);
        match wake(self.machines).await {
            Ok(window) => {
                begun.and_then(|_| self.journal.done(WAKE, None))?;
                Ok(window)
            }
            Err(error) => {
                begun.and_then(|_| self.journal.failed(WAKE, None, &error.to_string()))?;
                Err(error.into())
            }
        }
    }

    async fn pool_bytes(&self) -> Result<u64, SnapshotError> {
        let (host, pool) = (self.machines.host.clone(), self.machines.plan.storage.pool.clone());
        let seen = blocking(move || host.observe()).await?;
        let pool = seen.pools.iter().find(|found| found.name == pool);
        Ok(pool.map_or(0, |pool| pool.volumes.iter().map(|volume| volume.allocation).sum()))
    }
}

/// Suspends all, saves all, lets all go on. All machines must run. `record` comes with all that is known before; it is
/// returned, and kept, with the rest. A save that fails leaves nothing but running machines.
pub async fn save(desk: &Desk<'_>, record: Record) -> Result<Record, SnapshotError> {
    let step = save_step(&record.name);
    let before = desk.pool_bytes().await?;
    desk.journal.begin_with(&step, None, json!({ "snapshot": record.name, "pool_bytes": before }))?;
    let mut record = Record { state: State::Making, ..record };
    desk.save_record(&record)?;
    let captured = capture(desk, &mut record).await;
    // Whatever happened: nobody is left frozen.
    (desk.told)("letting the machines go on");
    let woken = desk.wake().await;
    match captured.and(woken) {
        Ok(_) => {
            ended(desk, &mut record, Some(before)).await?;
            Ok(record)
        }
        Err(error) => {
            // What cannot be written down or cleared away now the next save finds: why this one failed is what has to be told.
            if let Err(also) = desk.journal.failed(&step, None, &error.to_string()) {
                (desk.told)(&also.to_string());
            } else if let Err(also) = tidy(desk).await {
                // One that was captured whole is kept: it was the waking that failed.
                (desk.told)(&also.to_string());
            }
            Err(error)
        }
    }
}

/// The last words of a save whose record says whole: what it takes, and that the cluster goes on from it.
async fn ended(desk: &Desk<'_>, record: &mut Record, before: Option<u64>) -> Result<(), SnapshotError> {
    if let Some(before) = before {
        record.bytes = desk.pool_bytes().await?.saturating_sub(before);
        desk.save_record(record)?;
    }
    desk.dir.set_current_snapshot(desk.lock, Some(record.name.as_str()))?;
    Ok(desk.journal.done(&save_step(&record.name), None)?)
}

/// Journal step of a save.
fn save_step(name: &Name) -> String {
    format!("{SAVE}{name}")
}

/// From the first suspend to the record that says whole.
async fn capture(desk: &Desk<'_>, record: &mut Record) -> Result<(), SnapshotError> {
    let machines = desk.machines;
    (desk.told)("suspending all machines");
    let began = Instant::now();
    let skew = desk.step(SUSPEND, machines.suspend(machines.nodes(None))).await?;
    record.skew_at_most_us = u64::try_from(skew.as_micros()).unwrap_or(u64::MAX);
    (desk.told)("saving memory and disks of all machines");
    let name = record.name.to_string();
    let saving = machines.each(machines.nodes(None), move |host, domain, mark| host.ensure_snapshot(domain, &name, mark));
    desk.step(CAPTURE, saving).await?;
    record.state = State::Whole;
    record.stood_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    desk.save_record(record)
}

/// Lets go on whoever is paused.
async fn wake(machines: &Machines) -> Result<Duration, LifeError> {
    let power = machines.power().await?;
    let asleep = |state| matches!(state, Some(DomainState::Paused | DomainState::PausedIoError));
    let nodes = machines.nodes(None).into_iter().filter(|node| asleep(power.get(&node.name))).collect();
    Ok(machines.resume(nodes).await?.1)
}

/// All machines as they were, then let go on together. Until the last has gone back none runs, so that no two of different
/// moments ever speak to each other. Returns within which time all were let go on.
pub async fn restore(desk: &Desk<'_>, record: &Record) -> Result<Duration, SnapshotError> {
    let machines = desk.machines;
    // Before the first word: a restore that cannot come to its end would hold up every other verb.
    complete(machines, &record.name).await?;
    desk.journal.begin_with(RESTORE, None, json!({ "snapshot": record.name }))?;
    let done = async {
        let (storage, network) = (machines.plan.storage.clone(), machines.plan.network.clone());
        let there = host_call(machines, move |host, mark| {
            host.ensure_pools(&storage, mark)?;
            host.ensure_network(&network, mark)
        });
        desk.step("snapshot network and pools", there).await?;
        (desk.told)("suspending what runs");
        let power = machines.power().await?;
        let running = machines.nodes(None).into_iter().filter(|node| power.is_running(&node.name)).collect();
        desk.step(SUSPEND, machines.suspend(running)).await?;
        (desk.told)("taking all machines back");
        let name = record.name.to_string();
        let reverting = machines.each(machines.nodes(None), move |host, domain, mark| host.revert(domain, &name, mark));
        desk.step("snapshot revert", reverting).await?;
        (desk.told)("letting the machines go on");
        let window = desk.wake().await?;
        desk.dir.set_current_snapshot(desk.lock, Some(record.name.as_str()))?;
        Ok(window)
    };
    match done.await {
        Ok(window) => {
            desk.journal.done(RESTORE, None)?;
            Ok(window)
        }
        Err(error) => {
            let error: SnapshotError = error;
            desk.journal.failed(RESTORE, None, &error.to_string())?;
            Err(error)
        }
    }
}

async fn host_call<T: Send + 'static>(
    machines: &Machines,
    call: impl FnOnce(&dyn Host, &Mark) -> Result<T, crate::host::HostError> + Send + 'static,
) -> Result<T, LifeError> {
    let (host, mark) = (machines.host.clone(), machines.mark.clone());
    Ok(blocking(move || call(&*host, &mark)).await?)
}

/// Removes one: its children become its parent's. Works on whole ones and on halves.
pub async fn remove(desk: &Desk<'_>, name: &Name) -> Result<(), SnapshotError> {
    let step = format!("{REMOVE}{name}");
    let records = desk.records()?;
    let own = records.iter().find(|record| record.name == *name);
    desk.journal.begin(&step, None)?;
    if let Some(record) = own.filter(|record| record.state != State::Removing) {
        desk.save_record(&Record { state: State::Removing, ..record.clone() })?;
    }
    let gone = name.to_string();
    desk.machines.each(desk.machines.nodes(None), move |host, domain, mark| host.remove_snapshot(domain, &gone, mark)).await?;
    let parent = own.and_then(|record| record.parent.clone());
    for child in records.iter().filter(|record| record.parent.as_ref() == Some(name)) {
        desk.save_record(&Record { parent: parent.clone(), ..child.clone() })?;
    }
    if desk.dir.current_snapshot()?.as_deref() == Some(name.as_str()) {
        desk.dir.set_current_snapshot(desk.lock, parent.as_ref().map(Name::as_str))?;
    }
    desk.dir.remove_snapshot(desk.lock, name.as_str())?;
    desk.journal.done(&step, None)?;
    Ok(())
}

/// Removes what a crash left half-made or half-removed, and what machines keep that no record knows. Returns the names.
pub async fn tidy(desk: &Desk<'_>) -> Result<Vec<Name>, SnapshotError> {
    let listed = desk.dir.load_snapshots::<Record>()?;
    let mut halves: BTreeSet<Name> = BTreeSet::new();
    for (_, record) in &listed {
        if let Ok(record) = record
            && record.state != State::Whole
        {
            halves.insert(record.name.clone());
        }
    }
    for name in parts(desk.machines).await?.names() {
        // A record that cannot be read may be a whole one: its machines' part stays.
        if !listed.iter().any(|(file, _)| file == name)
            && let Ok(name) = Name::parse(name)
        {
            halves.insert(name);
        }
    }
    for name in &halves {
        (desk.told)(&format!("removing snapshot {name}, which was never finished"));
        remove(desk, name).await?;
        desk.journal.done(&save_step(name), None)?;
    }
    for unended in unended_saves(&desk.dir.history()?) {
        match desk.records()?.into_iter().find(|record| record.name.as_str() == unended.name) {
            Some(mut record) if unended.last => ended(desk, &mut record, unended.before).await?,
            Some(record) => desk.journal.done(&save_step(&record.name), None)?,
            // Its record was never written, or cannot be read.
            None => desk.journal.done(&format!("{SAVE}{}", unended.name), None)?,
        }
    }
    close(desk)?;
    Ok(halves.into_iter().collect())
}

/// The step of a record, if it is one that `tidy` finishes.
fn of_tidy(record: &JournalRecord) -> Option<&str> {
    let Entry::Step { step, .. } = &record.entry else { return None };
    let ours = [SUSPEND, CAPTURE].contains(&step.as_str()) || [SAVE, REMOVE].iter().any(|begin| step.starts_with(begin));
    ours.then_some(step.as_str())
}

/// Whether a save or a removal was cut off: also where no record of it is left, its steps are open until the next `tidy`.
pub fn unfinished(history: &History) -> bool {
    history.pending().into_iter().any(|record| of_tidy(record).is_some())
}

/// Steps that a run has begun and not ended, once nothing of what they did is left. That machines were let go on stays open: whether
/// their clocks are set nobody here knows.
fn close(desk: &Desk<'_>) -> Result<(), SnapshotError> {
    let history = desk.dir.history()?;
    if open_restore(&history).is_some() {
        return Ok(());
    }
    let listed = desk.dir.load_snapshots::<Record>()?;
    for step in history.pending().into_iter().filter_map(of_tidy) {
        let kept = step.strip_prefix(REMOVE).is_some_and(|name| listed.iter().any(|(file, _)| file == name));
        match kept {
            true => desk.journal.failed(step, None, "cut off before anything of it was removed")?,
            false => desk.journal.done(step, None)?,
        }
    }
    Ok(())
}

/// A save that was not told to its end.
#[derive(Debug, PartialEq, Eq)]
struct Unended {
    name: String,
    /// Nothing was saved or gone back to since: the cluster goes on from it.
    last: bool,
    /// What the pool held before it.
    before: Option<u64>,
}

fn unended_saves(history: &History) -> Vec<Unended> {
    let mut open: Vec<Unended> = Vec::new();
    for record in &history.records {
        let Entry::Step { step, phase, detail, .. } = &record.entry else { continue };
        let save = step.strip_prefix(SAVE);
        let (begins, ends) = (*phase == Phase::Begin, *phase == Phase::Done);
        open.retain(|unended| save != Some(&unended.name) || !(begins || ends));
        if (begins && save.is_some()) || (ends && (save.is_some() || step == RESTORE)) {
            open.iter_mut().for_each(|unended| unended.last = false);
        }
        if let (true, Some(name)) = (begins, save) {
            let before = detail.get("pool_bytes").and_then(|bytes| bytes.as_u64());
            open.push(Unended { name: name.to_owned(), last: true, before });
        }
    }
    open
}

/// A restore that was begun and did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRestore {
    pub snapshot: String,
    /// Of etcd's data alone: the machines are of one moment.
    pub etcd_only: bool,
}

impl fmt::Display for OpenRestore {
    /// What it may have left.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = match self.etcd_only {
            true => "API servers may be stopped, and members without data",
            false => "machines may be of different moments",
        };
        write!(f, "the restore of snapshot {} was cut off: {left}", self.snapshot)
    }
}

/// The restore that was begun last and did not come to its end.
pub fn open_restore(history: &History) -> Option<OpenRestore> {
    let mut open = None;
    for record in &history.records {
        match &record.entry {
            Entry::Step { step, phase: Phase::Begin, detail, .. } if step == RESTORE => {
                let snapshot = detail.get("snapshot").and_then(|name| name.as_str()).unwrap_or("?").to_owned();
                let etcd_only = detail.get("etcd_only").and_then(|only| only.as_bool()).unwrap_or(false);
                open = Some(OpenRestore { snapshot, etcd_only });
            }
            Entry::Step { step, phase: Phase::Done, .. } if step == RESTORE => open = None,
            _ => {}
        }
    }
    open
}
