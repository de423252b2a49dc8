//! The golden snapshot: a cluster as its first good `up` left it, so that after `down --keep-golden` an `up` is a restore and no boot.
//! `up` keeps it and comes back from it, `down` leaves nothing else running; it is a snapshot like any other, called `golden`.
//! It decides when one is kept and when it fits; how a cluster is saved and taken back, `snapshot` knows.

use super::error::CliError;
use super::opened::or_interrupted;
use super::snapshot::{After, has_room, members, noted, shown_time};
use super::up::Outcome;
use super::{etcd_only, session};
use crate::event::{Event, Events, Stage};
use crate::guest::Guest;
use crate::host::libvirt::LibvirtHost;
use crate::host::{Host, HostFacts, blocking};
use crate::lab::Book;
use crate::life::Machines;
use crate::life::power::Whole;
use crate::plan::Plan;
use crate::snapshot::{self, Desk, Fits, Name, Parts, Record, SnapshotError, State};
use crate::spec::NodeName;
use crate::store::journal::{Entry, History, Phase};
use crate::store::{ClusterDir, Lock};
use jiff::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the snapshot is called.
pub const NAME: &str = "golden";
/// Journal step of `down --keep-golden`.
const LEAVE: &str = "down to golden";

/// Whether the cluster was taken down to its golden snapshot, wholly or in part, and has not come back since.
pub fn is_down(history: &History) -> bool {
    let mut down = false;
    for record in &history.records {
        match &record.entry {
            Entry::Step { step, phase: Phase::Begin, .. } if step == LEAVE => down = true,
            Entry::Step { step, phase: Phase::Done, .. } if step == snapshot::RESTORE => down = false,
            _ => {}
        }
    }
    down
}

/// For verbs that would run past it.
pub fn refuse_down(history: &History, cluster: &str) -> Result<(), CliError> {
    if !is_down(history) {
        return Ok(());
    }
    Err(CliError::failed(format!("cluster {cluster} was taken down, and only its golden snapshot is kept"))
        .left("everything as it was")
        .hint(format!("ktcw-vm up -c {cluster} brings it back from memory; ktcw-vm down -c {cluster} removes all of it")))
}

/// The golden snapshot if there is a whole one.
///
/// # Errors
/// Its record cannot be read: nobody can say then that it is gone.
pub fn record(dir: &ClusterDir) -> Result<Option<Record>, CliError> {
    let own = dir.load_snapshots::<Record>()?.into_iter().find(|(name, _)| name == NAME).map(|(_, record)| record);
    let own = own.transpose().map_err(|error| {
        let cluster = dir.name();
        CliError::from(error)
            .left("everything as it was")
            .hint(format!("ktcw-vm snapshot list -c {cluster} shows what can be read"))
    })?;
    Ok(own.filter(|record| record.state == State::Whole))
}

/// Whether one is kept. Who never kept one, or has removed it, is not given one because nodes come or go.
pub fn is_kept(dir: &ClusterDir) -> bool {
    record(dir).is_ok_and(|record| record.is_some())
}

/// When it was taken, for people.
pub fn taken(record: &Record) -> String {
    shown_time(record.taken)
}

/// What came of the wish to keep one.
#[derive(Debug)]
pub enum Keeping {
    /// No machine stood still: one that fits is there, or none can be kept, which was said.
    Untouched,
    /// All machines stood still for it, and run again.
    Stood {
        /// `None`: it was not finished, which was said; nothing is left of it.
        kept: Option<Box<Record>>,
        /// Clocks are set and members are as they were.
        well: bool,
    },
}

/// Keeps one of a cluster that was just verified. One of the same plan, image and QEMU that is there stays; where there is no room
/// for one, its name is taken, or it does not come to its end, that is said and nothing is kept: a cluster that runs has not failed for
/// want of it.
///
/// # Errors
/// Machines stand still and could not be let go on, or libvirt does not answer.
pub async fn keep(desk: &Desk<'_>, guests: &dyn Guest, host: &Arc<LibvirtHost>, events: &Events) -> Result<Keeping, CliError> {
    let plan = &desk.machines.plan;
    let note = |text: String| events.send(Event::Note { text });
    if let Some(text) = hidden(desk.dir).unwrap_or_default() {
        note(text);
        return Ok(Keeping::Untouched);
    }
    let asked = host.clone();
    let facts = blocking(move || asked.facts()).await?;
    let fits = Fits::of(plan, &facts);
    let parts = snapshot::parts(desk.machines).await?;
    let there = record(desk.dir).unwrap_or_default();
    if let Some(record) = &there
        && against(record, &fits, &parts).is_none()
    {
        return Ok(Keeping::Untouched);
    }
    if let Err(error) = has_room(desk.machines, host).await {
        note(format!("no golden snapshot is kept: {}", error.message));
        return Ok(Keeping::Untouched);
    }
    let (then, silent) = members(plan, guests).await;
    if let Some((node, why)) = silent.first() {
        note(format!("no golden snapshot is kept: {node}: etcd does not answer: {why}"));
        return Ok(Keeping::Untouched);
    }
    let name = Name::parse(NAME).map_err(CliError::failed)?;
    // Also what machines keep under a record that cannot be read: a new record would call it a part of this moment.
    if there.is_some() || parts.names().contains(NAME) {
        snapshot::remove(desk, &name).await?;
    }
    let begun = Record::begun(name, fits, then.clone(), Timestamp::now());
    let record = Record { note: Some("as up left it".to_owned()), ..begun };
    let kept = match snapshot::save(desk, record).await {
        Ok(record) => Some(Box::new(record)),
        Err(error) if desk.machines.power().await?.whole() == Whole::Running => {
            note(format!("no golden snapshot is kept: {error}"));
            None
        }
        Err(error) => {
            let cluster = &plan.cluster;
            return Err(CliError::from(error)
                .left("the cluster without a golden snapshot; machines may be paused")
                .hint(format!("ktcw-vm resume -c {cluster}; ktcw-vm up -c {cluster} --no-golden leaves the snapshot out")));
        }
    };
    let after = noted(desk.journal, plan, guests, &then).await;
    if !after.is_well() {
        after.lines().into_iter().for_each(note);
    }
    Ok(Keeping::Stood { kept, well: after.is_well() })
}

/// What `leave` takes beside what was written since: every other snapshot of the machines, whole or not, and the open lab.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GivenUp {
    snapshots: Vec<String>,
    lab: Option<String>,
}

impl GivenUp {
    pub fn of(dir: &ClusterDir) -> Result<GivenUp, CliError> {
        let book: Option<Book> = dir.load_labs()?;
        Ok(GivenUp { snapshots: others(dir)?, lab: book.and_then(|book| book.open).map(|open| open.lab.name) })
    }
}

impl fmt::Display for GivenUp {
    /// `, with the snapshots one, two and the open lab nospace`; nothing where there is nothing
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshots = match self.snapshots.as_slice() {
            [] => None,
            [one] => Some(format!("the snapshot {one}")),
            all => Some(format!("the snapshots {}", all.join(", "))),
        };
        let lab = self.lab.as_ref().map(|lab| format!("the open lab {lab}"));
        let all: Vec<String> = snapshots.into_iter().chain(lab).collect();
        if all.is_empty() { Ok(()) } else { write!(f, ", with {}", all.join(" and ")) }
    }
}

/// Names of all snapshots but the golden one, as their files have them.
fn others(dir: &ClusterDir) -> Result<Vec<String>, CliError> {
    Ok(dir.load_snapshots::<Record>()?.into_iter().map(|(name, _)| name).filter(|name| name != NAME).collect())
}

/// Why none is kept beside a snapshot of etcd alone that has its name, from before that was refused: `restore` and `delete` would reach
/// only that one.
fn hidden(dir: &ClusterDir) -> Result<Option<String>, CliError> {
    if !etcd_only::is_there(dir, NAME)? {
        return Ok(None);
    }
    let what = match is_kept(dir) {
        true => "the golden snapshot is hidden from restore and delete, and is not kept anew",
        false => "no golden snapshot is kept",
    };
    Ok(Some(format!(
        "{what}: there is one of etcd alone of its name; ktcw-vm snapshot delete {NAME} -c {} removes it",
        dir.name()
    )))
}

/// Takes a cluster down and keeps its golden snapshot: machines off, all other snapshots and the network gone, an open lab closed.
/// Returns how many bytes the pool keeps.
pub async fn leave(desk: &Desk<'_>) -> Result<u64, CliError> {
    let machines = desk.machines;
    desk.journal.begin(LEAVE, None)?;
    (desk.told)("switching all machines off");
    let there = machines.power().await?;
    let defined = machines.nodes(None).into_iter().filter(|node| there.get(&node.name).is_some()).collect();
    machines.each(defined, |host, domain, mark| host.power_off(domain, mark)).await?;
    for name in others(desk.dir)? {
        let Ok(name) = Name::parse(&name) else { continue };
        (desk.told)(&format!("removing snapshot {name}"));
        snapshot::remove(desk, &name).await?;
    }
    super::lab::close_with_its_cluster(desk.dir, desk.lock)?;
    let (host, mark, plan) = (machines.host.clone(), machines.mark.clone(), machines.plan.clone());
    let seen = blocking(move || {
        host.remove_network(&plan.network.name, &mark)?;
        host.observe()
    });
    let pool = &machines.plan.storage.pool;
    let bytes =
        seen.await?.pools.iter().filter(|found| found.name == *pool).flat_map(|found| &found.volumes).map(|v| v.allocation).sum();
    desk.journal.done(LEAVE, None)?;
    Ok(bytes)
}

/// Why the golden snapshot cannot stand for an `up` of `wanted`; `None`: it can.
pub fn misfit(record: Option<&Record>, old: &Plan, wanted: &Plan, facts: &HostFacts, parts: &Parts) -> Option<String> {
    if old != wanted {
        return Some("another cluster is asked for than the one it was kept of".to_owned());
    }
    let Some(record) = record else { return Some("it is gone".to_owned()) };
    against(record, &Fits::of(wanted, facts), parts)
}

/// Why a cluster that is so now cannot go back to it.
fn against(record: &Record, now: &Fits, parts: &Parts) -> Option<String> {
    let mut all = record.fits.differs(now);
    let lacking = parts.lacking(&record.name);
    if all.is_empty() && !lacking.is_empty() {
        all.push(format!("{} has no part in it, as its machine was made anew since or is gone", snapshot::listed(&lacking)));
    }
    (!all.is_empty()).then(|| all.join("; "))
}

/// Refuses to leave a golden snapshot behind that `up` could not come back from: all that is given up for it would be lost.
pub async fn will_come_back(machines: &Machines, host: &Arc<LibvirtHost>, record: &Record) -> Result<(), CliError> {
    let asked = host.clone();
    let facts = blocking(move || asked.facts()).await?;
    let (plan, parts) = (&machines.plan, snapshot::parts(machines).await?);
    let Some(why) = misfit(Some(record), plan, plan, &facts, &parts) else { return Ok(()) };
    let cluster = &plan.cluster;
    Err(CliError::host(format!("cluster {cluster} could not come back from its golden snapshot: {why}"))
        .left("everything as it was")
        .hint(format!("ktcw-vm stop -c {cluster} switches it off and keeps all of it; ktcw-vm down -c {cluster} removes it")))
}

/// What coming back works with.
pub struct Scene<'a> {
    pub dir: &'a ClusterDir,
    pub lock: &'a Lock,
    pub plan: Arc<Plan>,
    pub host: Arc<LibvirtHost>,
    pub verify: bool,
}

/// The way of `up` from memory: machines, clocks, members, verify.
pub async fn come_back(scene: Scene<'_>, record: &Record, events: &Events) -> Result<Outcome, CliError> {
    let Scene { dir, lock, plan, host, verify } = scene;
    let cluster = plan.cluster.clone();
    let stop = super::signals::interrupted();
    let (journal, _) = dir.journal(lock, crate::store::draw_id(), "up")?;
    let names: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    let (ssh, keyring) = (dir.ssh(&names)?, crate::pki::Keyring::load(&dir.pki(), &plan.certs, &plan.kubeconfigs)?);
    let guests = session::guests(&plan, &ssh)?;
    let machines = Machines { plan: plan.clone(), host, mark: session::mark(dir) };
    let stage = |stage| {
        events.send(Event::StageStarted { stage });
        Instant::now()
    };
    let over = |stage, step: &str, since: Instant| {
        let (step, elapsed) = (step.to_owned(), since.elapsed());
        events.send(Event::StepFinished { stage, step, node: None, elapsed, changed: true });
        events.send(Event::StageFinished { stage, elapsed, changed: true });
    };
    events.send(Event::Note { text: format!("coming back from the golden snapshot of {}", shown_time(record.taken)) });
    let began = stage(Stage::Machines);
    let told = |text: &str| events.send(Event::Note { text: text.to_owned() });
    let desk = Desk { machines: &machines, dir, lock, journal: &journal, told: &told };
    snapshot::restore(&desk, record).await.map_err(|error| match error {
        SnapshotError::Lacking { .. } => error.into(),
        error => CliError::from(error)
            .left("machines of different moments, all of them paused or off")
            .hint(format!("ktcw-vm up -c {cluster} again; ktcw-vm down -c {cluster} removes everything")),
    })?;
    over(Stage::Machines, "golden restore", began);
    let began = stage(Stage::Etcd);
    let left = format!("cluster {cluster} as its golden snapshot has it, not verified; its clocks may be late");
    let setting = noted(&journal, &plan, &*guests, &record.members);
    let late = |error: CliError| error.hint(super::snapshot::sets_clocks(&cluster));
    let after: After = or_interrupted(&stop, &left, setting).await.map_err(late)?;
    let left = format!("cluster {cluster} as its golden snapshot has it, not verified");
    over(Stage::Etcd, "clocks and members", began);
    let report = match verify {
        false => None,
        true => {
            let began = stage(Stage::Verify);
            let looking = super::verify::steady(&plan, &keyring, &*guests, events);
            let report = or_interrupted(&stop, &left, looking).await??;
            events.send(Event::StageFinished { stage: Stage::Verify, elapsed: began.elapsed(), changed: false });
            Some(report)
        }
    };
    if !after.is_well() {
        after.lines().into_iter().for_each(|text| events.send(Event::Note { text }));
    }
    Ok(Outcome { changed: plan.nodes.len(), plan, report, golden: Some(Golden::Used), well: after.is_well() })
}

/// What became of the golden snapshot, for the last lines of `up`.
#[derive(Debug, Clone)]
pub enum Golden {
    Used,
    Kept { took: Duration, bytes: u64 },
}

#[cfg(test)]
mod tests;
