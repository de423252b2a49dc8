//! `ktcw-vm up`: from words to a verified cluster, or to exactly what is missing.
//! Reads aloud: words → spec → directory and lock → preflight → plan → keys → steps → verify → what to type next.
//! It decides only what to say; the plan decides the rest.

use super::args::{Format, Global, Up};
use super::drill::bench::Bench;
use super::error::CliError;
use super::golden::{self, Golden};
use super::opened::no_open_restore;
use super::{exit, render, resolve, session, signals, spec_of};
use crate::apply::{self, ApplyError, World};
use crate::event::{Event, Events, Stage, Verdict};
use crate::guest::Guest;
use crate::guest::ssh::keys;
use crate::host::libvirt::LibvirtHost;
use crate::host::{Host, blocking};
use crate::life::Machines;
use crate::life::power::Whole;
use crate::pki::{Keyring, Lifetimes};
use crate::plan::{Plan, plan};
use crate::preflight;
use crate::progress;
use crate::snapshot;
use crate::spec::{ClusterName, ClusterSpec, NodeName};
use crate::store::journal::Journal;
use crate::store::{ClusterDir, Lock, SshKey, SshKeys, StoreError};
use crate::verify;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub async fn run(global: &Global, up: &Up) -> Result<u8, CliError> {
    let spec = spec_of(global, &up.spec)?;
    let parent = session::parent(global)?;
    let (spec, parent) = (&spec, &parent);
    shown(global, &spec.name, up.timings, |events| async move { raise(global, up, spec, parent, &events).await }).await
}

/// Shows what happens while `work` raises or starts a cluster, then what came of it, as text or JSON.
pub(super) async fn shown<F: Future<Output = Result<Outcome, CliError>>>(
    global: &Global,
    name: &ClusterName,
    timings: bool,
    work: impl FnOnce(Events) -> F,
) -> Result<u8, CliError> {
    let begin = Instant::now();
    let (events, receiver) = Events::channel();
    let shown = progress::show(progress::Mode::choose(global.format == Format::Json), receiver);
    let result = work(events).await;
    let _ = shown.await;
    let outcome = result?;
    if let (true, Format::Text) = (timings, global.format) {
        render::print(&render::timings(&outcome.timings));
    }
    if global.format == Format::Json {
        let mut summary = serde_json::json!({
            "event": "summary", "cluster": name, "changed": outcome.changed, "elapsed_ms": begin.elapsed().as_millis() as u64,
        });
        if let Some(report) = &outcome.report {
            summary["verify"] = serde_json::to_value(report).unwrap_or_default();
        }
        match &outcome.golden {
            Some(Golden::Used) => summary["golden"] = "used".into(),
            Some(Golden::Kept { took, bytes }) => {
                summary["golden"] = serde_json::json!({ "kept_ms": took.as_millis() as u64, "bytes": bytes });
            }
            None => {}
        }
        if timings {
            summary["timings"] = serde_json::to_value(&outcome.timings).unwrap_or_default();
        }
        render::print_line(&summary.to_string());
    } else {
        if let Some(report) = &outcome.report {
            render::print(&verify::render::table(report));
        }
        render::print(&summary(&outcome, begin.elapsed()));
    }
    Ok(match &outcome.report {
        Some(report) if report.verdict() != Verdict::Pass => exit::CHECK_FAILED,
        _ => exit::OK,
    })
}

pub(super) struct Outcome {
    pub plan: Arc<Plan>,
    pub changed: usize,
    pub timings: Vec<apply::Timing>,
    pub report: Option<verify::Report>,
    /// What became of the golden snapshot; `None`: it was not touched.
    pub golden: Option<Golden>,
}

async fn raise(
    global: &Global,
    up: &Up,
    spec: &ClusterSpec,
    parent: &std::path::Path,
    events: &Events,
) -> Result<Outcome, CliError> {
    let existing = if ClusterDir::exists(parent, &spec.name) { Some(ClusterDir::open(parent, &spec.name)?) } else { None };
    let host = match &existing {
        Some(dir) => session::connect_to(global, dir)?,
        None => session::connect(global)?,
    };
    // Before anything is made, even a directory: what is asked must be possible here.
    let lock = existing.as_ref().map(|dir| dir.lock("up")).transpose()?;
    let old = match &existing {
        Some(dir) => dir.load_plan()?,
        None => None,
    };
    let stage = Stage1::begin(events, Stage::Preflight);
    let asked = host.clone();
    let (facts, seen) = blocking(move || Ok((asked.facts()?, asked.observe()?))).await?;
    let mark = existing.as_ref().map(session::mark);
    // What can be known before there is an image is said before its minutes are spent.
    let (draft, mut refusals) = match &old {
        Some(old) => (resolve::kept(old), Vec::new()),
        None => resolve::draft(spec, &facts, &seen),
    };
    let draft = plan(spec, &draft);
    if let (Some(dir), Some(held), Some(old)) = (&existing, &lock, &old)
        && golden::is_down(&dir.history()?)
    {
        let record = golden::record(dir)?;
        let kernel = resolve::same_kernel(old, spec).err().map(|error| error.message);
        return match (kernel.or_else(|| golden::misfit(record.as_ref(), old, &draft, &facts)), record) {
            (None, Some(record)) => {
                let all = preflight::judge(&draft, &facts, &seen, mark.as_ref(), 0, host.free_disk_mib());
                // The disks are there.
                refuse(&all.into_iter().filter(|refusal| refusal.about != "disk").collect::<Vec<_>>())?;
                stage.done(false);
                let scene = golden::Scene { dir, lock: held, plan: Arc::new(draft), host, verify: !up.no_verify };
                golden::come_back(scene, &record, events).await
            }
            (why, _) => {
                let why = why.unwrap_or_else(|| "it is gone".to_owned());
                events.send(Event::Note { text: format!("the golden snapshot is given up, everything is made anew: {why}") });
                if let (Some(dir), Some(lock)) = (existing, lock) {
                    super::down::remove(dir, lock, host).await?;
                }
                stage.done(false);
                Box::pin(raise(global, up, spec, parent, events)).await
            }
        };
    }
    if let Some(old) = &old {
        super::change::allowed(old, &draft)?;
        if up.spec.kernel.is_some() {
            resolve::same_kernel(old, spec)?;
        }
    }
    refusals.extend(preflight::judge(&draft, &facts, &seen, mark.as_ref(), 0, host.free_disk_mib()));
    refuse(&refusals)?;
    stage.done(false);

    let stage = Stage1::begin(events, Stage::Image);
    let (image, resolved) = {
        let (spec, facts, seen, old, events) = (spec.clone(), facts.clone(), seen.clone(), old.clone(), events.clone());
        let settle = move || match old {
            Some(old) => Ok((resolve::kept_image(&old, &seen, &events)?, resolve::kept(&old))),
            None => {
                let image = resolve::ensure_image(&events)?;
                let resolved = resolve::fresh(&spec, &facts, &seen, &image, &events)?;
                Ok::<_, CliError>((Some(image), resolved))
            }
        };
        tokio::task::spawn_blocking(settle).await.map_err(CliError::failed)??
    };
    let files = resolve::files(spec, image.as_ref());
    let plan = Arc::new(plan(spec, &resolved));
    stage.done(false);
    let base_mib = image.map_or(0, |image| image.size_bytes >> 20);
    refuse(&preflight::judge(&plan, &facts, &seen, mark.as_ref(), base_mib, host.free_disk_mib()))?;

    // From here on things are made, each written down first.
    let (mut dir, lock) = match (existing, lock) {
        (Some(dir), Some(lock)) => (dir, lock),
        _ => {
            let dir = match ClusterDir::create(parent, spec, jiff::Timestamp::now()) {
                // Another `up` was faster, and holds the lock.
                Err(StoreError::Exists { .. }) => {
                    let dir = ClusterDir::open(parent, &spec.name)?;
                    drop(dir.lock("up")?);
                    return Err(CliError::busy(format!("cluster {} was made meanwhile", spec.name))
                        .hint(format!("ktcw-vm up -c {}", spec.name)));
                }
                made => made?,
            };
            let lock = dir.lock("up")?;
            (dir, lock)
        }
    };
    dir.save_libvirt(&lock, host.uri())?;
    let mut healed = false;
    if old.is_some() {
        no_open_restore(&dir.history()?, spec.name.as_str())?;
        // A drill that died has left a fault, and steps would be made on top of it.
        healed = Bench::heal_after_a_crash(parent, &dir, &lock, host.clone(), "up").await?;
    }
    dir.save_spec(&lock, spec)?;
    dir.save_plan(&lock, &plan)?;
    let (files, verify, golden) = (Some(files), !up.no_verify, !up.no_golden);
    carry_out(Settled { dir, lock, plan, host, files, verb: "up", only: None, verify, healed, golden }, events).await
}

/// A cluster whose plan is written down, under its lock.
pub(super) struct Settled {
    pub dir: ClusterDir,
    pub lock: Lock,
    pub plan: Arc<Plan>,
    pub host: Arc<LibvirtHost>,
    /// Behind the plan's image volumes; `None`: not on this computer, and not needed while the volumes are there.
    pub files: Option<resolve::Files>,
    pub verb: &'static str,
    /// The steps of one node only.
    pub only: Option<NodeName>,
    pub verify: bool,
    /// A drill's fault was healed just now: what it hit may need a moment.
    pub healed: bool,
    /// Keep a golden snapshot of what was verified.
    pub golden: bool,
}

/// Keys → what is there → steps → verify: the way of `up` and of `start`.
pub(super) async fn carry_out(settled: Settled, events: &Events) -> Result<Outcome, CliError> {
    let Settled { dir, lock, plan, host, files, verb, only, verify, healed, golden } = settled;
    let (journal, history) = dir.journal(&lock, crate::store::draw_id(), verb)?;
    no_open_restore(&history, plan.cluster.as_str())?;
    let machines = Machines { plan: plan.clone(), host: host.clone(), mark: session::mark(&dir) };
    if !dir.load_snapshots::<snapshot::Record>()?.is_empty() {
        let told = |text: &str| events.send(Event::Note { text: text.to_owned() });
        let desk = snapshot::Desk { machines: &machines, dir: &dir, lock: &lock, journal: &journal, told: &told };
        snapshot::tidy(&desk).await?;
    }

    let stage = Stage1::begin(events, Stage::Keys);
    let (ssh, made_ssh) = ensure_ssh(&dir, &lock, &plan)?;
    let (keyring, made) = ensure_keys(&dir, &plan)?;
    stage.done(made_ssh + made > 0);

    let guests = session::guests(&plan, &ssh)?;
    let (base, kernel, initrd) = files.clone().map_or_else(Default::default, |files| (files.base, files.kernel, files.initrd));
    let world = Arc::new(World {
        host: host.clone() as Arc<dyn Host>,
        guest: guests.clone() as Arc<dyn Guest>,
        api: Arc::new(session::api(&keyring)?),
        keyring,
        ssh,
        mark: session::mark(&dir),
        clock: jiff::Timestamp::now,
        base,
        kernel,
        initrd,
    });
    let stop = signals::interrupted();
    events.send(Event::Note { text: "looking at what is there".to_owned() });
    let mut inventory = or_stop(&plan, stop.clone(), apply::observe(&plan, &world)).await??;
    let journal = Arc::new(Mutex::new(journal));
    let mut applied = apply::Applied::default();
    // A new cluster has no disks to be seen.
    if !inventory.pools_active && !history.records.is_empty() {
        // What an inactive pool holds is not seen: after the host was rebooted it would look as if no disk were there.
        let pools = apply::steps(&plan, &inventory).into_iter().filter(|step| step.action == apply::Action::Pools).collect();
        applied = run_steps(&plan, pools, &world, &journal, events, &stop).await?;
        inventory = or_stop(&plan, stop.clone(), apply::observe(&plan, &world)).await??;
    }
    let mut steps = apply::steps(&plan, &inventory);
    with_journal(&journal, |journal| apply::settle(journal, &history, &steps)).map_err(CliError::failed)?;
    if let Some(node) = &only {
        steps = apply::only(&plan, &inventory, steps, node);
    }
    if files.is_none() && steps.iter().any(|step| matches!(step.action, apply::Action::BaseVolume | apply::Action::KernelVolumes))
    {
        return Err(CliError::failed("the image that this cluster runs is neither in libvirt nor on this computer")
            .hint(format!("ktcw-vm up -c {} builds it", plan.cluster)));
    }
    if steps.is_empty() {
        events.send(Event::Note { text: format!("cluster {} is as planned; nothing to do", plan.cluster) });
    }
    let more = run_steps(&plan, steps, &world, &journal, events, &stop).await?;
    applied.changed += more.changed;
    applied.timings.extend(more.timings);
    // One node of a cluster whose other machines are off is not yet a cluster to be verified.
    let power = machines.power().await?;
    let partial = only.is_some() && power.whole() != Whole::Running;
    if partial {
        events.send(Event::Note { text: format!("not verified: the machines are {}", power.whole()) });
    }
    let report = if !verify || partial {
        None
    } else {
        let stage = Stage1::begin(events, Stage::Verify);
        let looking = async {
            match applied.changed {
                0 if !healed => Ok(super::verify::checked(&plan, &world.keyring, &*guests, events).await),
                _ => super::verify::settled(&plan, &world.keyring, &*guests, events).await,
            }
        };
        let report = or_stop(&plan, stop, looking).await??;
        stage.done(false);
        Some(report)
    };
    let good = report.as_ref().is_some_and(|report| report.verdict() == Verdict::Pass);
    let mut kept = None;
    if golden && good && applied.changed > 0 {
        let began = Instant::now();
        events.send(Event::Note { text: "keeping a golden snapshot".to_owned() });
        let journal = Arc::into_inner(journal).ok_or_else(|| CliError::failed("a step still holds the journal"))?;
        let journal = journal.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let told = |text: &str| events.send(Event::Note { text: text.to_owned() });
        let desk = snapshot::Desk { machines: &machines, dir: &dir, lock: &lock, journal: &journal, told: &told };
        let record = golden::keep(&desk, &*guests, &host, events).await?;
        kept = record.map(|record| Golden::Kept { took: began.elapsed(), bytes: record.bytes });
    }
    drop(lock);
    Ok(Outcome { plan, changed: applied.changed, timings: applied.timings, report, golden: kept })
}

async fn run_steps(
    plan: &Arc<Plan>,
    steps: Vec<apply::Step>,
    world: &Arc<World>,
    journal: &Arc<Mutex<Journal>>,
    events: &Events,
    stop: &tokio::sync::watch::Receiver<bool>,
) -> Result<apply::Applied, CliError> {
    let ran = apply::run(plan.clone(), steps, world.clone(), journal.clone(), events.clone(), stop.clone());
    ran.await.map_err(|error| explain(plan, error))
}

fn with_journal<T>(journal: &Mutex<Journal>, act: impl FnOnce(&Journal) -> T) -> T {
    act(&journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// All reasons at once; an empty list is none.
pub(super) fn refuse(refusals: &[preflight::Refusal]) -> Result<(), CliError> {
    if refusals.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    Err(CliError::host(format!("this host cannot take the cluster; nothing was made\n{}", all.join("\n"))))
}

fn ensure_ssh(dir: &ClusterDir, lock: &Lock, plan: &Plan) -> Result<(SshKeys, usize), CliError> {
    let names: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    Ok(dir.ensure_ssh(lock, &names, |comment| {
        let (private, public) = keys::generate(comment).map_err(|error| error.to_string())?;
        Ok(SshKey { private, public })
    })?)
}

/// Makes what is missing and checks every certificate before a machine boots with it.
fn ensure_keys(dir: &ClusterDir, plan: &Plan) -> Result<(Keyring, usize), CliError> {
    let now = jiff::Timestamp::now();
    let (keyring, ensured) = Keyring::ensure(&dir.pki(), &plan.certs, &plan.kubeconfigs, now, Lifetimes::default())?;
    let findings: Vec<String> =
        keyring.check(&plan.certs, now).iter().filter(|f| !f.problem.is_warning()).map(ToString::to_string).collect();
    if !findings.is_empty() {
        return Err(
            CliError::failed(format!("certificates are not as planned:\n{}", findings.join("\n"))).hint("ktcw-vm certs list")
        );
    }
    Ok((keyring, ensured.made.len()))
}

/// What only looks is cut off by Ctrl-C; the steps, which change things, have their own way to stop.
async fn or_stop<T>(
    plan: &Plan,
    mut stop: tokio::sync::watch::Receiver<bool>,
    looking: impl Future<Output = T>,
) -> Result<T, CliError> {
    tokio::select! {
        seen = looking => Ok(seen),
        _ = stop.wait_for(|stop| *stop) => Err(explain(plan, ApplyError::Interrupted { done: 0, left: 0 })),
    }
}

/// What failed, what is there now, what to type.
fn explain(plan: &Plan, error: ApplyError) -> CliError {
    let name = &plan.cluster;
    let again = format!("ktcw-vm up -c {name} goes on where it stopped; ktcw-vm down -c {name} removes everything");
    match &error {
        ApplyError::Failed { failures, done, left } => {
            let node = failures.iter().find_map(|failure| failure.node.clone());
            let why =
                failures.iter().find_map(|failure| failure.error.hint()).map_or_else(String::new, |hint| format!("{hint}; "));
            let look =
                node.map_or_else(String::new, |node| format!("ktcw-vm logs {node} -c {name} (or: console {node}) shows why; "));
            CliError::failed(&error).left(format!("{done} steps done, {left} not")).hint(format!("{why}{look}{again}"))
        }
        ApplyError::Interrupted { done, left } => {
            let mut said = CliError::new(exit::INTERRUPTED, "interrupted").left(format!("{done} steps done, {left} not"));
            said.hint = Some(again);
            said
        }
        ApplyError::Journal(_) => CliError::failed(&error).hint(again),
    }
}

fn summary(outcome: &Outcome, elapsed: std::time::Duration) -> String {
    let plan = &outcome.plan;
    let name = &plan.cluster;
    let flag = if name.as_str() == "ktcw" { String::new() } else { format!(" -c {name}") };
    let did = match (&outcome.golden, outcome.changed) {
        (Some(Golden::Used), _) => "back from its golden snapshot".to_owned(),
        (_, 0) => "nothing to do".to_owned(),
        (_, steps) => format!("{steps} steps"),
    };
    let kept = match &outcome.golden {
        Some(Golden::Kept { took, bytes }) => format!(
            "golden snapshot kept in {:.1} s, {} MiB: after down --keep-golden the next up is a restore\n",
            took.as_secs_f64(),
            bytes >> 20
        ),
        _ => String::new(),
    };
    format!(
        "\ncluster {name}: {} controllers, {} workers; {did}, {:.1} s\n\
         {kept}API https://{}:6443\n\n  \
         ktcw-vm{flag} status\n  \
         ktcw-vm{flag} kubectl get nodes -o wide\n  \
         ktcw-vm{flag} etcdctl member list\n  \
         ktcw-vm{flag} ssh controller-0\n",
        plan.spec.etcd,
        plan.spec.workers,
        elapsed.as_secs_f64(),
        plan.network.vip,
    )
}

/// A stage that is not a list of steps.
struct Stage1 {
    events: Events,
    stage: Stage,
    begin: Instant,
}

impl Stage1 {
    fn begin(events: &Events, stage: Stage) -> Self {
        events.send(Event::StageStarted { stage });
        Self { events: events.clone(), stage, begin: Instant::now() }
    }
    fn done(self, changed: bool) {
        self.events.send(Event::StageFinished { stage: self.stage, elapsed: self.begin.elapsed(), changed });
    }
}
