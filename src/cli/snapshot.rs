//! `snapshot save`, `list`, `restore` and `delete`: what stands in the way is said first, then `snapshot` works, then what came of it.
//! After a save and after a restore clocks are set, members are compared with the record, and a restore ends with `verify`.
//! It decides what is refused; how a cluster is saved whole, `snapshot` knows.

use super::args::{Format, Global, Output, SnapshotSave, SnapshotWhat};
use super::error::CliError;
use super::life::{clocks_lines, micros};
use super::opened::{Opened, or_interrupted, whole_moment};
use super::{etcd_only, exit, lab, render, session, status, up};
use crate::event::{Events, Verdict};
use crate::guest::Guest;
use crate::host::libvirt::LibvirtHost;
use crate::host::{Host, HostFacts, blocking};
use crate::life::power::Whole;
use crate::life::{self, Machines, Shift};
use crate::plan::Plan;
use crate::preflight;
use crate::snapshot::compare::{Compared, compare};
use crate::snapshot::{self, Desk, Fits, Name, Record, SnapshotError, State, chosen, tree};
use crate::spec::NodeName;
use crate::store::ClusterDir;
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
        SnapshotWhat::List(output) => list(global, output),
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
    etcd_only::named(&ClusterDir::open(&session::parent(global)?, &session::cluster_name(global)?)?, name)
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
    let after = after(&plan, &*guests, &record.members).await;
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

/// How clocks and members are once machines go on again.
pub(super) struct After {
    clocks: Vec<(NodeName, Result<Shift, String>)>,
    compared: Vec<Compared>,
}

/// Sets the clocks of all nodes, then asks the members until they have a leader again, or their deadline.
pub(super) async fn after(plan: &Plan, guests: &dyn Guest, then: &BTreeMap<NodeName, MemberSeen>) -> After {
    let now: fn() -> Timestamp = Timestamp::now;
    let nodes: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    let clocks = life::repair(plan, guests, now, &nodes).await;
    let at = then.values().map(|member| member.hashed).next();
    let patience = Duration::from_secs(u64::from(plan.timers.etcd_deadline_s));
    let last = std::cell::RefCell::new(Vec::new());
    let asked = crate::wait::until(
        "every member answering",
        patience,
        Duration::from_millis(500),
        |_| (),
        || async {
            let compared = compare(then, &verify::members(plan, guests, &now, at).await);
            let open =
                compared.iter().find(|one| one.verdict == Verdict::Unknown).map(|one| format!("{}: {}", one.node, one.said));
            last.replace(compared);
            open.map_or(crate::wait::Seen::Ready(()), crate::wait::Seen::NotYet)
        },
    );
    // What is unknown at the end is in the last comparison.
    let _ = asked.await;
    After { clocks, compared: last.into_inner() }
}

impl After {
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = clocks_lines(&self.clocks);
        lines.extend(self.compared.iter().map(|one| format!("  {}  etcd {}: {}", one.node, one.verdict, one.said)));
        lines
    }
    fn shifts(&self) -> Vec<&Shift> {
        self.clocks.iter().filter_map(|(_, shift)| shift.as_ref().ok()).collect()
    }
    /// All clocks are set, and all members are as they were.
    pub(super) fn is_well(&self) -> bool {
        self.clocks.iter().all(|(_, shift)| shift.is_ok()) && self.compared.iter().all(|one| one.verdict == Verdict::Pass)
    }
    fn code(&self) -> u8 {
        if self.is_well() { exit::OK } else { exit::CHECK_FAILED }
    }
}

async fn restore(global: &Global, name: &Name, no_verify: bool) -> Result<u8, CliError> {
    let fits = |session: &session::Session| {
        named(&session.dir, name)?;
        // Another moment than the lab's would leave it open on machines that it does not know.
        lab::none_open(&session.dir)
    };
    let opened = Opened::new(global, &format!("snapshot restore {name}"), fits)?;
    let restored = restore_opened(&opened, name, no_verify).await?;
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

/// Takes an opened cluster back, once nothing stands in the way.
pub async fn restore_opened(opened: &Opened, name: &Name, no_verify: bool) -> Result<Restored, CliError> {
    let begin = Instant::now();
    let plan = opened.session.plan.clone();
    let cluster = &plan.cluster;
    opened.without_fault()?;
    let record = named(&opened.session.dir, name)?;
    let host = opened.host.clone();
    let (facts, seen) = blocking(move || Ok((host.facts()?, host.observe()?))).await?;
    let differs = record.fits.differs(&Fits::of(&plan, &facts));
    if !differs.is_empty() {
        return Err(CliError::host(format!("snapshot {name} does not fit any more: {}", differs.join("; ")))
            .left("everything as it was")
            .hint("a machine's memory goes on only under the kernel, image and QEMU that it was saved under"));
    }
    let refusals = preflight::judge(&plan, &facts, &seen, Some(&opened.session.mark()), 0, opened.host.free_disk_mib());
    up::refuse(&refusals.into_iter().filter(|refusal| refusal.about == "memory").collect::<Vec<_>>())?;
    let (journal, _) = opened.journal("snapshot")?;
    let window = snapshot::restore(&desk(opened, &journal), &record).await.map_err(|error| {
        CliError::from(error)
            .left("machines of different moments, all of them paused")
            .hint(format!("ktcw-vm snapshot restore {name} -c {cluster} again; ktcw-vm down -c {cluster} removes everything"))
    })?;
    let back = begin.elapsed();
    let guests = opened.session.guests()?;
    let looking = async {
        let after = after(&plan, &*guests, &record.members).await;
        let report = match no_verify {
            true => None,
            false => Some(super::verify::steady(&plan, &opened.session.keyring, &*guests, &Events::nowhere()).await?),
        };
        Ok::<_, CliError>((after, report))
    };
    let left = format!("cluster {cluster} as it was in snapshot {name}, not verified");
    let (after, report) = or_interrupted(&opened.stop, &left, looking).await??;
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
        let session = session::Session::open(global)?;
        let lock = session.dir.lock(&format!("snapshot delete {name}"))?;
        return etcd_only::delete(&session.dir, &lock, &session.plan, name);
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
    render::print_line(&format!("snapshot {name} of cluster {cluster} removed"));
    Ok(exit::OK)
}

fn list(global: &Global, output: &Output) -> Result<u8, CliError> {
    let dir = ClusterDir::open(&session::parent(global)?, &session::cluster_name(global)?)?;
    let current = dir.current_snapshot()?;
    let is_current = |record: &Record| current.as_deref() == Some(record.name.as_str());
    let (mut records, mut unreadable) = (Vec::new(), Vec::new());
    for (name, record) in dir.load_snapshots::<Record>()? {
        match record {
            Ok(record) => records.push(record),
            Err(error) => unreadable.push((name, error.to_string())),
        }
    }
    unreadable.extend(etcd_only::unreadable(&dir)?);
    let now = Timestamp::now();
    let age = |record: &Record| seconds_since(now, record.taken);
    let stores = etcd_only::all(&dir)?;
    if output.output.unwrap_or(global.format) == Format::Json {
        let rows: Vec<_> = tree(&records)
            .iter()
            .map(|(depth, record)| {
                json!({ "snapshot": record, "depth": depth, "current": is_current(record), "age_s": age(record) })
            })
            .chain(stores.iter().map(|one| json!({ "etcd_snapshot": one, "age_s": seconds_since(now, one.taken) })))
            .chain(unreadable.iter().map(|(name, problem)| json!({ "name": name, "problem": problem })))
            .collect();
        render::print_line(&serde_json::to_string_pretty(&rows).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    if records.is_empty() && unreadable.is_empty() && stores.is_empty() {
        render::print_line(&format!("no snapshots of cluster {}", dir.name()));
        return Ok(exit::OK);
    }
    let mut table = status::table(["snapshot", "age", "MiB", "note"]);
    for (depth, record) in tree(&records) {
        let branch = if depth == 0 { String::new() } else { format!("{}└ ", "  ".repeat(depth - 1)) };
        let mark = if is_current(record) { " (current)" } else { "" };
        let note = match record.state {
            State::Whole => record.note.clone().unwrap_or_default(),
            _ => "never finished; the next save or delete removes it".to_owned(),
        };
        table.add_row([format!("{branch}{}{mark}", record.name), shown_age(age(record)), (record.bytes >> 20).to_string(), note]);
    }
    for one in &stores {
        let note = format!("etcd only, revision {}; {}", one.revision, one.note.as_deref().unwrap_or_default());
        let note = note.trim_end_matches("; ").to_owned();
        let age = shown_age(seconds_since(now, one.taken));
        table.add_row([one.name.to_string(), age, (one.bytes >> 20).to_string(), note]);
    }
    for (name, problem) in unreadable {
        table.add_row([name, "?".to_owned(), "?".to_owned(), problem]);
    }
    render::print_line(&table.to_string());
    Ok(exit::OK)
}

pub fn desk<'a>(opened: &'a Opened, journal: &'a crate::store::journal::Journal) -> Desk<'a> {
    let told: &(dyn Fn(&str) + Sync) = &|text| render::status(text);
    Desk { machines: &opened.machines, dir: &opened.session.dir, lock: &opened.lock, journal, told }
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
        }
    }
}

fn seconds_since(now: Timestamp, then: Timestamp) -> i64 {
    now.as_second().saturating_sub(then.as_second()).max(0)
}

pub(super) fn shown_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `40 s`, `12 min`, `5 h`, `3 days`
fn shown_age(seconds: i64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
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
    fn ages_are_said_in_the_unit_that_people_would_use() {
        let shown = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(shown_age);
        assert_eq!(shown, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }
}
