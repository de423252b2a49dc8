//! `snapshot save`, `list`, `restore` and `delete`: what stands in the way is said first, then `snapshot` works, then what came of it.
//! After a save and after a restore clocks are set, members are compared with the record, and a restore ends with `verify`.
//! It decides what is refused; how a cluster is saved whole, `snapshot` knows.

mod awake;
mod list;

pub(super) use awake::{After, noted, sets_clocks};

use super::args::{Format, Global, SnapshotSave, SnapshotWhat};
use super::error::CliError;
use super::life::micros;
use super::opened::{Opened, no_open_fault, no_open_restore_of, or_interrupted, whole_moment};
use super::{etcd_only, exit, lab, render, session, up};
use crate::event::{Events, Verdict};
use crate::guest::Guest;
use crate::host::libvirt::LibvirtHost;
use crate::host::{Host, HostFacts, blocking};
use crate::life::Machines;
use crate::life::power::Whole;
use crate::plan::Plan;
use crate::preflight;
use crate::snapshot::{self, Desk, Fits, Name, Record, SnapshotError, chosen, stop_fitting};
use crate::spec::{NodeName, Role};
use crate::store::ClusterDir;
use crate::store::journal::Journal;
use crate::verify::{self, MemberSeen};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub async fn run(global: &Global, what: &SnapshotWhat) -> Result<u8, CliError> {
    match what {
        SnapshotWhat::Save(args) if args.etcd_only => etcd_only::save(global, &args.name, args.note.as_ref()).await,
        SnapshotWhat::Save(args) => save(global, args).await,
        SnapshotWhat::List(output) => list::list(global, output).await,
        SnapshotWhat::Restore { name, no_verify } => match of_etcd(global, name)? {
            Some(snapshot) => etcd_only::restore(global, &snapshot, !no_verify).await,
            None => restore(global, name, *no_verify).await,
        },
        SnapshotWhat::Fork(args) => super::fork::run(global, args).await,
        SnapshotWhat::Delete { name } => delete(global, name).await,
    }
}

/// The snapshot of that name, where it is one of etcd alone.
fn of_etcd(global: &Global, name: &Name) -> Result<Option<etcd_only::EtcdSnapshot>, CliError> {
    let dir = ClusterDir::open(&session::parent(global)?, &session::cluster_name(global)?)?;
    let found = etcd_only::named(&dir, name)?;
    let history = dir.history()?;
    if found.is_some() && snapshot::open_restore(&history).is_some_and(|open| !open.etcd_only) {
        // Said before the lock, and here, where it is known what finishes a lab's.
        no_open_restore_of(&dir, &history)?;
    }
    Ok(found)
}

async fn save(global: &Global, args: &SnapshotSave) -> Result<u8, CliError> {
    let opened = Opened::new(global, &format!("snapshot save {}", args.name), whole_moment)?;
    let saved = save_opened(&opened, args).await?;
    saved.print(global, &opened.session.plan);
    Ok(saved.after.code())
}

/// A snapshot, and how all was after it.
pub struct Saved {
    pub record: Record,
    after: After,
    took: Duration,
}

/// Saves an opened cluster, once nothing stands in the way.
pub async fn save_opened(opened: &Opened, args: &SnapshotSave) -> Result<Saved, CliError> {
    let begin = Instant::now();
    let name = &args.name;
    let plan = opened.session.plan.clone();
    let cluster = &plan.cluster;
    opened.without_fault()?;
    let (journal, _) = opened.journal("snapshot")?;
    let desk = desk(opened, &journal);
    snapshot::tidy(&desk).await?;
    if let Some((_, there)) = opened.session.dir.load_snapshots::<Record>()?.into_iter().find(|(known, _)| known == name.as_str())
    {
        let taken = there.map_or_else(|error| error.to_string(), |record| format!("taken {}", shown_time(record.taken)));
        return Err(CliError::usage(format!("there is a snapshot {name} already, {taken}"))
            .hint(format!("another name, or ktcw-vm snapshot delete {name} -c {cluster}")));
    }
    if etcd_only::named(&opened.session.dir, name)?.is_some() {
        return Err(CliError::usage(format!("there is a snapshot {name} of etcd already"))
            .hint(format!("another name, or ktcw-vm snapshot delete {name} -c {cluster}")));
    }
    opened.all(&opened.machines.power().await?, &Whole::Running)?;
    let fits = Fits::of(&plan, &has_room(&opened.machines, &opened.host).await?);
    let guests = opened.session.guests()?;
    let nowhere = Events::nowhere();
    let (keyring, stop) = (&opened.session.keyring, &opened.stop);
    let report = match args.force {
        true => or_interrupted(stop, "nothing", super::verify::checked(&plan, keyring, &*guests, &nowhere)).await?,
        // What was just taken back or mended may need a moment.
        false => or_interrupted(stop, "nothing", super::verify::settled(&plan, keyring, &*guests, &nowhere)).await??,
    };
    let accepted: Vec<String> = report
        .problems()
        .map(|check| check.node.as_ref().map_or_else(|| check.id.clone(), |node| format!("{} {node}", check.id)))
        .collect();
    let unfit = |what: String| {
        CliError::new(exit::CHECK_FAILED, format!("cluster {cluster} is not well enough to be saved: {what}"))
            .hint(format!("ktcw-vm verify -c {cluster} says more; --force saves it as it is, and says so in the record"))
    };
    if !args.force && !accepted.is_empty() {
        return Err(unfit(accepted.join(", ")));
    }
    let parent = opened.session.dir.current_snapshot()?.and_then(|name| Name::parse(&name).ok());
    let (then, silent) = members(&plan, &*guests).await;
    match silent.first() {
        Some((node, why)) if !args.force => return Err(unfit(format!("{node}: etcd does not answer: {why}"))),
        _ => silent.iter().for_each(|(node, why)| render::status(&format!("{node}: etcd does not answer: {why}"))),
    }
    let begun = Record::begun(name.clone(), fits, then, Timestamp::now());
    let record = Record { note: args.note.clone(), parent, accepted, ..begun };
    let record = snapshot::save(&desk, record).await.map_err(|error| {
        CliError::from(error)
            .left("no snapshot of that name; machines may be paused")
            .hint(format!("ktcw-vm resume -c {cluster}"))
    })?;
    // They stood still, and so did their clocks.
    let after = noted(&journal, &plan, &*guests, &record.members).await;
    Ok(Saved { record, after, took: begin.elapsed() })
}

impl Saved {
    fn print(&self, global: &Global, plan: &Plan) {
        let (Saved { record, after, took }, cluster) = (self, &plan.cluster);
        match global.format {
            Format::Json => {
                let value = json!({ "cluster": cluster, "snapshot": record, "clocks": after.shifts(), "members": after.compared, "elapsed_ms": millis(*took) });
                render::print_line(&value.to_string());
            }
            Format::Text => {
                after.lines().iter().for_each(|line| render::print_line(line));
                if !record.accepted.is_empty() {
                    render::print_line(&format!("  accepted as it is: {}", record.accepted.join(", ")));
                }
                render::print_line(&self.line(plan));
            }
        }
    }

    /// All of it in one line.
    pub fn line(&self, plan: &Plan) -> String {
        let Saved { record, took, .. } = self;
        format!(
            "snapshot {} of cluster {}: {} machines suspended at most {:.1} ms apart, stood {:.1} s, {} MiB more on disk; {:.1} s in all",
            record.name,
            plan.cluster,
            plan.nodes.len(),
            micros(Duration::from_micros(record.skew_at_most_us)),
            seconds(record.stood_ms),
            record.bytes >> 20,
            took.as_secs_f64()
        )
    }
}

/// What the host is, once it has room for the machines' memory.
pub(super) async fn has_room(machines: &Machines, host: &Arc<LibvirtHost>) -> Result<HostFacts, CliError> {
    let sizes = machines.each(machines.nodes(None), |host, domain, _| host.resident_bytes(domain)).await?;
    let resident: BTreeMap<NodeName, u64> = sizes.into_iter().map(|(node, (bytes, _))| (node, bytes)).collect();
    let host = host.clone();
    let (facts, seen) = blocking(move || Ok((host.facts()?, host.observe()?))).await?;
    let cluster = &machines.plan.cluster;
    snapshot::room(&machines.plan, &seen, &resident).map_err(|said| {
        CliError::host(said)
            .left("nothing")
            .hint(format!("free disk space, ktcw-vm snapshot delete NAME -c {cluster}, or ktcw-vm image prune"))
    })?;
    Ok(facts)
}

/// etcd's members as they are now, and of those that do not answer, why.
pub(super) async fn members(plan: &Plan, guests: &dyn Guest) -> (BTreeMap<NodeName, MemberSeen>, Vec<(NodeName, String)>) {
    let now: fn() -> Timestamp = Timestamp::now;
    let (mut answered, mut silent) = (BTreeMap::new(), Vec::new());
    for (node, seen) in verify::members(plan, guests, &now, None).await {
        match seen {
            Ok(seen) => drop(answered.insert(node, seen)),
            Err(why) => silent.push((node, why)),
        }
    }
    (answered, silent)
}

async fn restore(global: &Global, name: &Name, no_verify: bool) -> Result<u8, CliError> {
    let fits = |session: &session::Session| {
        named(&session.dir, name)?;
        no_open_fault(&session.dir.history()?, session.plan.cluster.as_str())
            .map_err(|error| error.left("everything as it was"))?;
        // Another moment than the lab's would leave it open on machines that it does not know.
        lab::none_open(&session.dir)
    };
    let opened = Opened::new(global, &format!("snapshot restore {name}"), fits)?;
    let record = may_restore(&opened, name).await?;
    let restored = go_back(&opened, record, no_verify).await?;
    restored.print(global, &opened.session.plan);
    Ok(restored.code())
}

/// The machines back in a snapshot, and how all was after it.
pub struct Restored {
    record: Record,
    window: Duration,
    back: Duration,
    after: After,
    report: Option<verify::Report>,
    took: Duration,
}

/// The record, or what stands in the way of going back to it. Nothing is touched.
pub async fn may_restore(opened: &Opened, name: &Name) -> Result<Record, CliError> {
    let plan = opened.session.plan.clone();
    opened.without_fault()?;
    let record = named(&opened.session.dir, name)?;
    let host = opened.host.clone();
    let (facts, seen) = blocking(move || Ok((host.facts()?, host.observe()?))).await?;
    fits(&record, &Fits::of(&plan, &facts), plan.cluster.as_str())?;
    snapshot::complete(&opened.machines, name).await?;
    let refusals = preflight::judge(&plan, &facts, &seen, Some(&opened.session.mark()), 0, opened.host.free_disk_mib());
    up::refuse(&refusals.into_iter().filter(|refusal| refusal.about == "memory").collect::<Vec<_>>())?;
    Ok(record)
}

/// Refuses a record of another cluster than there is now, with the reason and the way back where there is one.
fn fits(record: &Record, now: &Fits, cluster: &str) -> Result<(), CliError> {
    let (name, differs) = (&record.name, record.fits.differs(now));
    if differs.is_empty() {
        return Ok(());
    }
    let (came, went) = record.fits.moved(now);
    let delete = format!("ktcw-vm snapshot delete {name} -c {cluster} removes it");
    let hint = match (came.as_slice(), went.as_slice()) {
        ([], []) => {
            format!("a machine's memory goes on only under the plan, kernel, image and QEMU that it was saved under; {delete}")
        }
        // A worker that goes leaves no trace in the plan, an etcd member may.
        ([one], []) if one.role() == Role::Worker => {
            format!("ktcw-vm node remove {one} -c {cluster} makes it fit again; {delete}")
        }
        _ => format!("a snapshot is one of all machines, and a machine that is made again has no part in it; {delete}"),
    };
    Err(CliError::host(format!("snapshot {name} does not fit any more: {}", differs.join("; ")))
        .left("everything as it was")
        .hint(hint))
}

/// Back to a record that nothing stands against.
pub async fn go_back(opened: &Opened, record: Record, no_verify: bool) -> Result<Restored, CliError> {
    let begin = Instant::now();
    let plan = opened.session.plan.clone();
    let (cluster, name) = (&plan.cluster, &record.name);
    let (journal, _) = opened.journal("snapshot")?;
    let window = snapshot::restore(&desk(opened, &journal), &record).await.map_err(|error| match error {
        SnapshotError::Lacking { .. } => error.into(),
        error => CliError::from(error)
            .left("machines of different moments, all of them paused")
            .hint(format!("ktcw-vm snapshot restore {name} -c {cluster} again; ktcw-vm down -c {cluster} removes everything")),
    })?;
    let back = begin.elapsed();
    let guests = opened.session.guests()?;
    let looking = async {
        let after = noted(&journal, &plan, &*guests, &record.members).await;
        let report = match no_verify {
            true => None,
            false => Some(super::verify::steady(&plan, &opened.session.keyring, &*guests, &Events::nowhere()).await?),
        };
        Ok::<_, CliError>((after, report))
    };
    let left = format!("cluster {cluster} as it was in snapshot {name}, not verified; its clocks may be late");
    let looked = or_interrupted(&opened.stop, &left, looking).await;
    let (after, report) = looked.map_err(|error| error.hint(sets_clocks(cluster)))??;
    Ok(Restored { record, window, back, after, report, took: begin.elapsed() })
}

impl Restored {
    /// Whether the members are as they were, and all checks pass that were asked for.
    pub fn code(&self) -> u8 {
        match &self.report {
            Some(report) if report.verdict() != Verdict::Pass => exit::CHECK_FAILED,
            _ => self.after.code(),
        }
    }

    fn print(&self, global: &Global, plan: &Plan) {
        let Restored { record, window, back, after, report, took } = self;
        let cluster = &plan.cluster;
        match global.format {
            Format::Json => {
                let mut value = json!({
                    "cluster": cluster, "snapshot": record.name, "machines_back_ms": millis(*back), "woken_within_ms": micros(*window),
                    "clocks": after.shifts(), "members": after.compared, "elapsed_ms": millis(*took),
                });
                if let Some(report) = report {
                    value["verify"] = serde_json::to_value(report).unwrap_or_default();
                }
                render::print_line(&value.to_string());
            }
            Format::Text => self.lines(plan).iter().for_each(|line| render::print_line(line)),
        }
    }

    /// What came of it: the checks, clocks and members, and the time it took.
    pub fn lines(&self, plan: &Plan) -> Vec<String> {
        let mut lines: Vec<String> =
            self.report.iter().map(|report| verify::render::table(report).trim_end().to_owned()).collect();
        lines.extend(self.after.lines());
        lines.push(self.line(plan));
        lines
    }

    /// All of it in one line.
    pub fn line(&self, plan: &Plan) -> String {
        format!(
            "cluster {} is as it was in snapshot {} of {}: machines back after {:.1} s, {:.1} s in all",
            plan.cluster,
            self.record.name,
            shown_time(self.record.taken),
            self.back.as_secs_f64(),
            self.took.as_secs_f64()
        )
    }
}

async fn delete(global: &Global, name: &Name) -> Result<u8, CliError> {
    // Also one that cannot be read, or was never finished, is removed by its name.
    let there = |dir: &ClusterDir| -> Result<bool, CliError> {
        Ok(dir.load_snapshots::<Record>()?.iter().any(|(known, _)| known == name.as_str()))
    };
    let dir = ClusterDir::open(&session::parent(global)?, &session::cluster_name(global)?)?;
    let broken = etcd_only::unreadable(&dir)?.iter().any(|(known, _)| known == name.as_str());
    if broken || etcd_only::named(&dir, name)?.is_some() {
        return etcd_only::delete(global, name);
    }
    let wrong = |session: &session::Session| match whole_moment(session).and_then(|()| there(&session.dir))? {
        true if lab::needs(&session.dir, name)? => lab::none_open(&session.dir),
        true => Ok(()),
        false => named(&session.dir, name).map(|_| ()),
    };
    let opened = Opened::new(global, &format!("snapshot delete {name}"), wrong)?;
    let cluster = &opened.session.plan.cluster;
    let (journal, _) = opened.journal("snapshot")?;
    let desk = desk(&opened, &journal);
    snapshot::tidy(&desk).await?;
    snapshot::remove(&desk, name).await.map_err(|error| {
        CliError::from(error)
            .left(format!("a part of snapshot {name}, which does not count any more"))
            .hint(format!("ktcw-vm snapshot delete {name} -c {cluster} removes the rest"))
    })?;
    render::print_line(&removed(name, cluster.as_str()));
    Ok(exit::OK)
}

/// What came of a removal, and what does not work any more without it.
fn removed(name: &Name, cluster: &str) -> String {
    let said = format!("snapshot {name} of cluster {cluster} removed");
    if name.as_str() != super::golden::NAME {
        return said;
    }
    format!(
        "{said}; ktcw-vm down --keep-golden -c {cluster} is refused without it, until the next ktcw-vm up -c {cluster} has verified the \
         cluster and keeps a new one"
    )
}

pub fn desk<'a>(opened: &'a Opened, journal: &'a Journal) -> Desk<'a> {
    let told: &(dyn Fn(&str) + Sync) = &|text| render::status(text);
    Desk { machines: &opened.machines, dir: &opened.session.dir, lock: &opened.lock, journal, told }
}

/// What adding or removing a node costs. `renewed`: the golden snapshot is kept anew when all is done and verified.
pub(super) fn cost_of_other_nodes(dir: &ClusterDir, renewed: bool) -> Result<Option<String>, CliError> {
    let records: Vec<Record> = dir.load_snapshots()?.into_iter().filter_map(|(_, record)| record.ok()).collect();
    Ok(stop_fitting(&records, renewed.then_some(super::golden::NAME)))
}

/// The whole snapshot of that name, or an error that lists those there are; one that cannot be read says why.
pub(super) fn named(dir: &ClusterDir, name: &Name) -> Result<Record, CliError> {
    let mut records = Vec::new();
    for (file, record) in dir.load_snapshots::<Record>()? {
        match record {
            Ok(record) => records.push(record),
            Err(error) if file == name.as_str() => {
                let way_out = format!("ktcw-vm snapshot delete {name} -c {} removes it; nothing was touched", dir.name());
                return Err(CliError::from(error).hint(way_out));
            }
            Err(_) => {}
        }
    }
    let hint = format!("ktcw-vm snapshot list -c {}; nothing was touched", dir.name());
    chosen(&records, name).cloned().map_err(|said| CliError::usage(said).hint(hint))
}

impl From<SnapshotError> for CliError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Life(error) => error.into(),
            SnapshotError::Host(error) => error.into(),
            SnapshotError::Store(error) => error.into(),
            SnapshotError::Journal(error) => error.into(),
            SnapshotError::Lacking { .. } => {
                let said = CliError::host(&error).left("everything as it was");
                match error.hint() {
                    Some(hint) => said.hint(hint),
                    None => said,
                }
            }
        }
    }
}

pub(super) fn shown_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn seconds(millis: u64) -> f64 {
    f64::from(u32::try_from(millis).unwrap_or(u32::MAX)) / 1000.0
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_removes_the_golden_one_is_told_what_does_not_work_any_more() {
        let said = |name| removed(&Name::parse(name).expect("a name"), "lab");
        assert_eq!(said("one"), "snapshot one of cluster lab removed");
        let golden = said("golden");
        assert!(
            golden.starts_with("snapshot golden of cluster lab removed; ktcw-vm down --keep-golden -c lab is refused"),
            "{golden}"
        );
        assert!(golden.contains("the next ktcw-vm up -c lab has verified the cluster and keeps a new one"), "{golden}");
    }
}
