//! `ktcw-vm up`: from words to a verified cluster, or to exactly what is missing.
//! Reads aloud: words → spec → directory and lock → preflight → plan → keys → steps → verify → what to type next.
//! It decides only what to say; the plan decides the rest.

use super::args::{Format, Global, Up};
use super::drill::bench::Bench;
use super::error::CliError;
use super::{exit, render, resolve, session, signals, spec_of};
use crate::apply::{self, ApplyError, World};
use crate::event::{Event, Events, Stage};
use crate::guest::Guest;
use crate::guest::ssh::keys;
use crate::host::{Host, blocking};
use crate::pki::{Keyring, Lifetimes};
use crate::plan::{Plan, plan};
use crate::preflight;
use crate::progress;
use crate::spec::{ClusterSpec, NodeName};
use crate::store::{ClusterDir, Lock, SshKey, SshKeys, StoreError};
use crate::verify;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub async fn run(global: &Global, up: &Up) -> Result<u8, CliError> {
    let begin = Instant::now();
    let spec = spec_of(global, &up.spec)?;
    let parent = session::parent(global)?;
    let (events, receiver) = Events::channel();
    let shown = progress::show(progress::Mode::choose(global.format == Format::Json), receiver);
    let result = raise(global, up, &spec, &parent, &events).await;
    drop(events);
    let _ = shown.await;
    let outcome = result?;
    if let (true, Format::Text) = (up.timings, global.format) {
        render::print(&render::timings(&outcome.timings));
    }
    if global.format == Format::Json {
        let mut summary = serde_json::json!({
            "event": "summary", "cluster": spec.name, "changed": outcome.changed, "elapsed_ms": begin.elapsed().as_millis() as u64,
        });
        if let Some(report) = &outcome.report {
            summary["verify"] = serde_json::to_value(report).unwrap_or_default();
        }
        if up.timings {
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
        Some(report) if report.verdict() != crate::event::Verdict::Pass => exit::CHECK_FAILED,
        _ => exit::OK,
    })
}

struct Outcome {
    plan: Arc<Plan>,
    changed: usize,
    timings: Vec<apply::Timing>,
    report: Option<verify::Report>,
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
    if old.is_some() {
        // A drill that died has left a fault, and steps would be made on top of it.
        Bench::heal_after_a_crash(parent, &dir, &lock, host.clone(), "up").await?;
    }
    dir.save_spec(&lock, spec)?;
    dir.save_plan(&lock, &plan)?;
    let (journal, history) = dir.journal(&lock, crate::store::draw_id(), "up")?;

    let stage = Stage1::begin(events, Stage::Keys);
    let (ssh, made_ssh) = ensure_ssh(&dir, &lock, &plan)?;
    let (keyring, made) = ensure_keys(&dir, &plan)?;
    stage.done(made_ssh + made > 0);

    let guests = session::guests(&plan, &ssh)?;
    let world = Arc::new(World {
        host: host.clone() as Arc<dyn Host>,
        guest: guests.clone() as Arc<dyn Guest>,
        api: Arc::new(session::api(&keyring)?),
        keyring,
        ssh,
        mark: session::mark(&dir),
        clock: jiff::Timestamp::now,
        base: files.base,
        kernel: files.kernel,
        initrd: files.initrd,
    });
    let stop = signals::interrupted();
    events.send(Event::Note { text: "looking at what is there".to_owned() });
    let inventory = or_stop(&plan, stop.clone(), apply::observe(&plan, &world)).await??;
    let steps = apply::steps(&plan, &inventory);
    apply::settle(&journal, &history, &steps).map_err(CliError::failed)?;
    let journal = Arc::new(Mutex::new(journal));
    if steps.is_empty() {
        events.send(Event::Note { text: format!("cluster {} is as planned; nothing to do", plan.cluster) });
    }
    let applied = apply::run(plan.clone(), steps, world.clone(), journal, events.clone(), stop.clone())
        .await
        .map_err(|error| explain(&plan, error))?;
    let report = if up.no_verify {
        None
    } else {
        let stage = Stage1::begin(events, Stage::Verify);
        let looking = async {
            match applied.changed {
                0 => Ok(super::verify::checked(&plan, &world.keyring, &*guests, events).await),
                _ => super::verify::settled(&plan, &world.keyring, &*guests, events).await,
            }
        };
        let report = or_stop(&plan, stop, looking).await??;
        stage.done(false);
        Some(report)
    };
    drop(lock);
    Ok(Outcome { plan, changed: applied.changed, timings: applied.timings, report })
}

/// All reasons at once; an empty list is none.
fn refuse(refusals: &[preflight::Refusal]) -> Result<(), CliError> {
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
    let did = if outcome.changed == 0 { "nothing to do".to_owned() } else { format!("{} steps", outcome.changed) };
    format!(
        "\ncluster {name}: {} controllers, {} workers; {did}, {:.1} s\n\
         API https://{}:6443\n\n  \
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
