//! `ktcw-vm up`: from words to a verified cluster, or to exactly what is missing.
//! Reads aloud: words → spec → directory and lock → preflight → plan → keys → steps → verify → what to type next.
//! It decides only what to say; the plan decides the rest.

mod anew;

use super::args::{Format, Global, Up};
use super::drill::bench::Bench;
use super::error::CliError;
use super::golden::{self, Golden};
use super::opened::no_open_restore_of;
use super::way::{Settled, Stage1, carry_out};
use super::{exit, render, resolve, session, spec_of};
use crate::apply::{self, ApplyError};
use crate::event::{Event, Events, Stage, Verdict};
use crate::host::{Host, blocking};
use crate::image;
use crate::life::Machines;
use crate::plan::{Plan, plan};
use crate::preflight;
use crate::progress;
use crate::snapshot;
use crate::spec::{ClusterName, ClusterSpec};
use crate::store::{ClusterDir, Lock, StoreError};
use crate::verify;
use anew::Anew;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub async fn run(global: &Global, up: &Up) -> Result<u8, CliError> {
    let (spec, kept) = spec_of(global, &up.spec)?;
    let parent = session::parent(global)?;
    // What is asked was made from what is kept, and has to be locked as that, before libvirt is waited for.
    let there = match kept {
        Some(dir) => {
            let lock = dir.lock("up")?;
            Some((dir, lock))
        }
        None => None,
    };
    let (spec, parent) = (&spec, &parent);
    let asked = Asked { spec, verb: "up", verify: !up.no_verify, golden: !up.no_golden, kernel_given: up.spec.kernel.is_some() };
    shown(global, &spec.name, up.timings, |events| async move { raise(global, &asked, parent, there, &events).await }).await
}

/// What a cluster is to become, by which verb.
pub(super) struct Asked<'a> {
    pub spec: &'a ClusterSpec,
    pub verb: &'static str,
    pub verify: bool,
    /// A golden snapshot of what was verified is to be kept.
    pub golden: bool,
    /// `--kernel` was given again: it must be the same file.
    pub kernel_given: bool,
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
    let measured = shown.await.unwrap_or_default();
    if let (true, Format::Text) = (timings, global.format) {
        render::print(&measured.text());
    }
    let outcome = result?;
    if global.format == Format::Json {
        let mut summary = serde_json::json!({
            "event": "summary", "cluster": name, "changed": outcome.changed, "elapsed_ms": begin.elapsed().as_millis() as u64,
        });
        if let Some(report) = &outcome.report {
            summary["verify"] = serde_json::to_value(report).unwrap_or_default();
        }
        match &outcome.golden {
            Some(Golden::Used) => {
                summary["golden"] = "used".into();
                summary["as_recorded"] = outcome.well.into();
            }
            Some(Golden::Kept { took, bytes }) => {
                summary["golden"] = serde_json::json!({ "kept_ms": took.as_millis() as u64, "bytes": bytes });
            }
            None => {}
        }
        if timings {
            summary["timings"] = serde_json::to_value(measured.steps()).unwrap_or_default();
            summary["stages"] = serde_json::to_value(measured.stages()).unwrap_or_default();
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
        _ if !outcome.well => exit::CHECK_FAILED,
        _ => exit::OK,
    })
}

pub(super) struct Outcome {
    pub plan: Arc<Plan>,
    pub changed: usize,
    pub report: Option<verify::Report>,
    /// What became of the golden snapshot; `None`: it was not touched.
    pub golden: Option<Golden>,
    /// Members and clocks are as the golden snapshot that it came back from has them.
    pub well: bool,
}

/// `there` is the cluster that what is asked was made from, under its lock.
pub(super) async fn raise(
    global: &Global,
    asked: &Asked<'_>,
    parent: &Path,
    there: Option<(ClusterDir, Lock)>,
    events: &Events,
) -> Result<Outcome, CliError> {
    let (spec, verb) = (asked.spec, asked.verb);
    let (existing, lock) = there.unzip();
    let host = match &existing {
        Some(dir) => session::connect_to(global, dir)?,
        // What is asked was made from nothing, and would be taken for a change of this one.
        None if ClusterDir::exists(parent, &spec.name) => return Err(made_meanwhile(parent, spec)),
        None => session::connect(global)?,
    };
    // Before anything is made, even a directory: what is asked must be possible here.
    let old = match &existing {
        Some(dir) => dir.load_plan()?,
        None => None,
    };
    let stage = Stage1::begin(events, Stage::Preflight);
    let looked = host.clone();
    let (facts, seen) = blocking(move || Ok((looked.facts()?, looked.observe()?))).await?;
    let mark = existing.as_ref().map(session::mark);
    // What can be known before there is an image is said before its minutes are spent.
    let cache = image::cache_dir();
    let found = match &old {
        Some(old) => image::find_key(&cache, &old.resolved.image.key),
        None => image::find(&cache),
    };
    let there = found.as_ref().ok().and_then(Option::as_ref);
    let (draft, mut refusals) = match &old {
        Some(old) => (resolve::kept(old), Vec::new()),
        None => resolve::draft(spec, &facts, &seen, there),
    };
    let base_mib = resolve::base_mib(there);
    let draft = plan(spec, &draft);
    if let (Some(dir), Some(held), Some(old)) = (&existing, &lock, &old)
        && golden::is_down(&dir.history()?)
    {
        // Another ktcw-vm would write other files into the same cluster: what is in its memory is not planned anew.
        let draft = if old.spec == *spec { old.clone() } else { draft };
        let record = golden::record(dir)?;
        let kernel = resolve::same_kernel(old, spec).err().map(|error| error.message);
        let machines = Machines { plan: Arc::new(old.clone()), host: host.clone(), mark: session::mark(dir) };
        let parts = snapshot::parts(&machines).await?;
        return match (kernel.or_else(|| golden::misfit(record.as_ref(), old, &draft, &facts, &parts)), record) {
            (None, Some(record)) => {
                let all = preflight::judge(&draft, &facts, &seen, mark.as_ref(), 0, host.free_disk_mib());
                // The disks are there.
                refuse(&all.into_iter().filter(|refusal| refusal.about != "disk").collect::<Vec<_>>())?;
                stage.done(false);
                let scene = golden::Scene { dir, lock: held, plan: Arc::new(draft), host, verify: asked.verify };
                golden::come_back(scene, &record, events).await
            }
            (why, _) => {
                let why = why.unwrap_or_else(|| "it is gone".to_owned());
                let (mark, free_disk_mib) = (session::mark(dir), host.free_disk_mib());
                let stores = super::etcd_only::among(dir);
                let anew = Anew { spec: spec.clone(), stores, facts, seen: anew::once_gone(seen, &mark), mark, free_disk_mib };
                anew.allowed(&why, global.yes, events).await?;
                if let (Some(dir), Some(lock)) = (existing, lock) {
                    let name = dir.name().clone();
                    let kubeconfig = super::tools::users_kubeconfig().ok();
                    let removed = super::down::remove(dir, lock, host, kubeconfig.as_deref(), render::status).await?;
                    super::down::said(global, &name, &removed);
                }
                stage.done(false);
                Box::pin(raise(global, asked, parent, None, events)).await
            }
        };
    }
    // Nothing of an etcd that somebody joined is left: it is founded again, by all.
    let anew = apply::begins_anew(&draft, &seen);
    let founded = spec.founded();
    let (spec, draft) = if anew { (&founded, plan(&founded, &draft.resolved)) } else { (spec, draft) };
    if let (Some(old), Some(dir)) = (&old, &existing) {
        super::change::allowed(old, dir.spec(), &draft)?;
        if asked.kernel_given {
            resolve::same_kernel(old, spec)?;
        }
        if *old != draft {
            super::lab::none_open_of_these_nodes(dir)?;
            if let Some(text) = super::snapshot::cost_of_other_nodes(dir, asked.golden && asked.verify)? {
                events.send(Event::Note { text });
            }
        }
    }
    refusals.extend(preflight::judge(&draft, &facts, &seen, mark.as_ref(), base_mib, host.free_disk_mib()));
    // Of a cluster that is there, a damaged one is said by the stage that may need it.
    if old.is_none() {
        let (storage, seen) = (draft.storage.clone(), seen.clone());
        let looking = move || resolve::damaged(&found, &storage, &seen);
        refusals.extend(tokio::task::spawn_blocking(looking).await.map_err(CliError::failed)?);
    }
    refuse(&refusals)?;
    if asked.golden
        && old.is_none()
        && let Some(text) = preflight::golden(&draft, &seen, mark.as_ref(), base_mib, host.free_disk_mib())
    {
        events.send(Event::Note { text: format!("{text}; --no-golden leaves it out") });
    }
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
    let files = image.as_ref().map(|image| resolve::files(spec, Some(image)));
    let plan = Arc::new(plan(spec, &resolved));
    stage.done(false);
    let base_mib = image.map_or(0, |image| image.size_bytes >> 20);
    refuse(&preflight::judge(&plan, &facts, &seen, mark.as_ref(), base_mib, host.free_disk_mib()))?;

    // From here on things are made, each written down first.
    let (mut dir, lock) = match (existing, lock) {
        (Some(dir), Some(lock)) => (dir, lock),
        _ => begun(parent, spec)?,
    };
    dir.save_libvirt(&lock, host.uri())?;
    if old.is_some() {
        no_open_restore_of(&dir, &dir.history()?)?;
        // A drill that died has left a fault, and steps would be made on top of it.
        Bench::heal_after_a_crash(parent, &dir, &lock, host.clone(), verb).await?;
    }
    let way = match &old {
        // One member after the other, each of them in before the next comes.
        Some(_) if anew => vec![plan],
        Some(_) => dir.spec().path(spec).iter().map(|spec| Arc::new(self::plan(spec, &plan.resolved))).collect(),
        None => vec![plan],
    };
    let (verify, golden) = (asked.verify, asked.golden);
    carry_out(Settled { dir, lock, way, host, files, verb, only: None, verify, golden }, events).await
}

/// A new cluster's directory, locked. Of all who begin it at once one has it, and the others are told of that one.
fn begun(parent: &Path, spec: &ClusterSpec) -> Result<(ClusterDir, Lock), CliError> {
    match ClusterDir::create(parent, spec, "up", jiff::Timestamp::now()) {
        Err(StoreError::Exists { .. }) => Err(made_meanwhile(parent, spec)),
        made => Ok(made?),
    }
}

/// By somebody else, who is named as long as it works: the lock says who it is.
fn made_meanwhile(parent: &Path, spec: &ClusterSpec) -> CliError {
    match ClusterDir::open_locked(parent, &spec.name, "up") {
        Err(error) => error.into(),
        Ok(_) => CliError::busy(format!("cluster {} was made meanwhile", spec.name)).hint(format!("ktcw-vm up -c {}", spec.name)),
    }
}

/// All reasons at once; an empty list is none.
pub(super) fn refuse(refusals: &[preflight::Refusal]) -> Result<(), CliError> {
    if refusals.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    Err(CliError::host(format!("this host cannot take the cluster; nothing was made\n{}", all.join("\n"))))
}

/// What failed, what is there now, what to type.
pub(super) fn explain(plan: &Plan, error: ApplyError) -> CliError {
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
        ApplyError::Journal(why) => {
            let why = why.hint().map_or_else(String::new, |hint| format!("{hint}; "));
            CliError::because(&error).hint(format!("{why}{again}"))
        }
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
         ktcw-vm{flag} ssh {}\n",
        plan.spec.etcd,
        plan.spec.workers,
        elapsed.as_secs_f64(),
        plan.network.vip,
        plan.controllers().next().map_or_else(String::new, |node| node.name.to_string()),
    )
}

#[cfg(test)]
mod tests;
