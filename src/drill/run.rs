//! One run: refuse, baseline, arm, inject, prove, hold, heal, prove the heal, settle, read.
//! `drill run` and tests call `run`; it returns a record, which `judge` turns into a verdict.
//! It chooses nothing (`before` does) and judges nothing; whatever happens after the journal entry, it heals.

mod last_look;
mod settle;

use super::act::Act;
use super::admin::perform;
use super::before::{self, Before};
use super::bound::Timing;
use super::catalogue::Drill;
use super::checker::Restored;
use super::clock::{At, Clock, human, pass};
use super::etcd::{self, Site, read_prefix};
use super::heal::{disarm_if, leftovers, perform_each, undo};
use super::history::Op;
use super::injector::{FaultLog, FaultLogError, InjectError, Injector, Pending, Proof};
use super::kube::{Kube, KubeLoad};
use super::load::{self, Load};
use super::reading::{self, PROBE_KEYS, WARM_KEYS};
use super::record::{After, BASELINE_BEATS, Baseline, LogSource, Looked, Marks, Note, Record};
use super::script::Script;
use super::target::{Chosen, NoTarget};
use super::telemetry::{self, Telemetry};
use super::windows::percentile;
use futures::FutureExt;
use futures::future::join_all;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a run is given besides the drill and the cluster.
pub struct Options {
    /// Names the run in the journal, in keys and in file names.
    pub run: String,
    pub seed: u64,
    /// Wall-clock time, for the report.
    pub started: jiff::Timestamp,
    /// Directory for what the drill keeps on the host (a snapshot).
    pub directory: std::path::PathBuf,
    /// Ctrl-C.
    pub cancel: CancellationToken,
    pub kube: Option<Arc<dyn Kube>>,
    /// Hears what is being done, as it is done.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

/// Why there is no record. In all cases but the last two nothing was injected.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("nothing was injected: {0}")]
    NoTarget(#[from] NoTarget),
    #[error("nothing was injected: the cluster is not fit to be drilled: {0}")]
    Unfit(String),
    #[error("nothing was injected: {drill} (run {run}) is still in force or was not healed\nhint: ktcw-vm drill heal")]
    Active { drill: String, run: String },
    #[error("nothing was injected: a drill, or somebody else, has left {0}\nhint: ktcw-vm drill heal")]
    Leftovers(String),
    #[error("nothing was injected: {0}")]
    Blind(#[from] InjectError),
    #[error(transparent)]
    Log(#[from] FaultLogError),
    #[error("interrupted; nothing was injected")]
    NotBegun,
    #[error("interrupted; the fault was healed")]
    Interrupted,
    /// It stays in the log. What was seen of the run until then is kept: it tells why.
    #[error("the fault could not be healed: {why}\nhint: ktcw-vm drill heal")]
    NotHealed { why: String, record: Option<Box<Record>> },
}

/// File in the drill's directory that a snapshot is kept in while it may be needed.
pub const SNAPSHOT: &str = "snapshot.db";
/// A claim is looked at again and again for so long before it counts as not shown.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);
/// Of an election: more than this does not count as latency in bounds.
const LATENCY_MOST: f64 = 0.1;
/// The timers inside the targets go off so long after the heal was due, and so many elections where those are longer: an emulated
/// machine takes as much longer for every look that comes before the heal.
const DEAD_MAN_MARGIN: Duration = Duration::from_secs(30);
const DEAD_MAN_ELECTIONS: u32 = 30;

/// Runs one drill. The error says when nothing was injected; otherwise there is a record, be it of a run cut short.
pub async fn run(
    drill: &Drill,
    site: &Site,
    injector: &dyn Injector,
    log: &dyn FaultLog,
    options: &Options,
) -> Result<Record, RunError> {
    if let Some(pending) = log.pending()?.first() {
        return Err(RunError::Active { drill: pending.drill.clone(), run: pending.run.clone() });
    }
    // Whoever asked for Ctrl-C to be heard has taken its old meaning away: it has to be heard from the first question on.
    let found = tokio::select! {
        found = before::look(drill, site, injector, options) => found?,
        () = options.cancel.cancelled() => return Err(RunError::NotBegun),
    };
    let mut phases = Phases::new(drill, site, injector, log, options, found);
    let chosen = &phases.record.chosen;
    (options.progress)(&format!("{}: {} ({})", drill.name, names(chosen), chosen.why));
    // The undoing is on disk before anything is changed.
    log.record(&phases.pending())?;
    let ended = {
        let work = AssertUnwindSafe(phases.break_it()).catch_unwind();
        tokio::select! {
            ended = work => Some(ended),
            () = options.cancel.cancelled() => None,
        }
    };
    let interrupted = ended.is_none();
    phases.record.aborted = match ended {
        Some(Ok(Ok(()))) => None,
        Some(Ok(Err(why))) => Some(why),
        Some(Err(_)) => Some("a fault of the program itself".to_owned()),
        None => Some("interrupted".to_owned()),
    };
    // From here on Ctrl-C is not listened to: healing comes first.
    let healed = phases.heal().await;
    phases.settle(interrupted || healed.is_err()).await;
    let (record, tidied) = phases.finish().await;
    match healed.and(tidied) {
        Ok(()) => log.clear(&options.run)?,
        // A preparation that could not be undone is as much a fault in force as the fault.
        Err(why) => return Err(RunError::NotHealed { why, record: Some(Box::new(record)) }),
    }
    if interrupted { Err(RunError::Interrupted) } else { Ok(record) }
}

/// How long after its start a fault is healed at the latest when the program that injects it lives.
pub fn dead_man(drill: &Drill, script: &Script, timing: &Timing) -> Duration {
    let margin = DEAD_MAN_MARGIN.max(timing.election() * DEAD_MAN_ELECTIONS);
    drill.hold.of(timing) + margin + PROOF_PATIENCE * 2 + script.allowance(timing)
}

fn names(chosen: &Chosen) -> String {
    let names: Vec<String> = chosen.nodes.iter().map(|node| node.to_string()).collect();
    names.join(", ")
}

/// What is running beside the phases.
struct Running {
    load: Load,
    telemetry: Telemetry,
    kube: Option<KubeLoad>,
}

struct Phases<'a> {
    site: Site,
    injector: &'a dyn Injector,
    log: &'a dyn FaultLog,
    options: &'a Options,
    clock: Clock,
    prefix: String,
    warm: String,
    record: Record,
    running: Option<Running>,
    /// Something may have been changed.
    prepared: bool,
    /// Latency of single writes, before the load.
    median: Duration,
    notes: Arc<Mutex<Vec<Note>>>,
}

impl<'a> Phases<'a> {
    fn new(
        drill: &Drill,
        site: &Site,
        injector: &'a dyn Injector,
        log: &'a dyn FaultLog,
        options: &'a Options,
        found: Before,
    ) -> Phases<'a> {
        let Before { view, chosen, script } = found;
        let record = Record {
            run: options.run.clone(),
            started: options.started.to_string(),
            drill: drill.clone(),
            seed: options.seed,
            chosen,
            script,
            environment: site.environment.clone(),
            members: site.members.clone(),
            before: view,
            incarnations: vec![],
            processes: Err("not looked at".to_owned()),
            baseline: Baseline::default(),
            marks: Marks::default(),
            notes: vec![],
            looked: vec![],
            ops: vec![],
            samples: vec![],
            watches: vec![],
            restored: None,
            kube: None,
            kube_back: None,
            after: After::default(),
            stalls: vec![],
            aborted: None,
        };
        Phases {
            site: site.clone(),
            injector,
            log,
            options,
            clock: Clock::start(),
            prefix: format!("{PROBE_KEYS}{}/", options.run),
            warm: format!("{WARM_KEYS}{}", options.run),
            record,
            running: None,
            prepared: false,
            median: Duration::ZERO,
            notes: Arc::default(),
        }
    }

    fn say(&self, text: &str) {
        (self.options.progress)(text);
        let note = Note { at: self.clock.now(), text: text.to_owned() };
        self.notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(note);
    }

    /// What the journal has to know.
    fn pending(&self) -> Pending {
        let script = &self.record.script;
        Pending {
            run: self.record.run.clone(),
            drill: self.record.drill.name.clone(),
            heal: script.heal.clone(),
            tidy: script.tidy.clone(),
        }
    }

    /// Everything up to the moment at which the heal is due.
    async fn break_it(&mut self) -> Result<(), String> {
        let text = |error: InjectError| error.to_string();
        self.prepared = true;
        for act in &self.record.script.prepare.clone() {
            self.say(&act.to_string());
            perform(&self.site, self.injector, act).await.map_err(text)?;
        }
        self.record.incarnations = reading::incarnations(&self.site, self.injector).await;
        self.record.processes = self.injector.processes().await.map_err(text);
        self.start_load().await?;
        self.take_aim().await?;

        let script = self.record.script.clone();
        // With the latency that was just measured, which gates are judged by: a shorter fault would end before their limits.
        let timing = &self.record.environment.timing;
        let hold = self.record.drill.hold.of(timing);
        let after = dead_man(&self.record.drill, &script, timing);
        self.injector.arm(&script.heal, after).await.map_err(text)?;
        self.record.marks.inject = self.clock.now();
        let fault = if self.injector.leaves_out_the_fault() { &[][..] } else { &script.inject };
        for act in fault {
            self.say(&act.to_string());
            if matches!(act, Act::RestoreData { .. } | Act::SaveSnapshot { .. }) {
                self.note_snapshot().await?;
            }
            perform(&self.site, self.injector, act).await.map_err(text)?;
        }
        self.record.marks.injected = self.clock.now();
        self.look(&script, false).await;
        self.record.marks.proven = self.clock.now();
        self.say(&format!("holding for {}", human(hold)));
        pass(hold).await;
        self.look(&script, true).await;
        Ok(())
    }

    /// Revision that a snapshot taken from now on is sure to hold.
    async fn note_snapshot(&mut self) -> Result<(), String> {
        let link = self.site.link(0).ok_or("there is no member")?;
        let (revision, _) = read_prefix(&link, &self.prefix, self.site.ask_timeout()).await.map_err(|error| error.to_string())?;
        // The moment is set when the old store has ended for good; until then nothing is after it.
        self.record.restored = Some(Restored { at: At(u64::MAX), snapshot_revision: revision });
        Ok(())
    }

    async fn start_load(&mut self) -> Result<(), String> {
        let ask = |error: etcd::EtcdError| error.to_string();
        let median = load::measure(&self.site, &self.warm).await.map_err(ask)?;
        self.median = median;
        let link = self.site.link(0).ok_or("there is no member")?;
        let (revision, _) = read_prefix(&link, &self.prefix, self.site.ask_timeout()).await.map_err(ask)?;
        let drill = &self.record.drill;
        let interval = load::pace(Duration::from_millis(u64::from(drill.load.interval_ms)), median);
        let election = self.site.environment.timing.election();
        let plan = load::Plan {
            prefix: self.prefix.clone(),
            interval,
            keys: drill.load.keys,
            timeout: Duration::from_secs(6) + election * 2,
            impatience: Duration::from_millis(200).max(median * 5),
            // A client of a member that is hit fails over, rightly; what is measured is one that has no need to.
            first: self.off_target(),
        };
        let sampling = telemetry::pace(median);
        self.record.baseline.interval = interval;
        self.record.baseline.sampling = sampling;
        self.running = Some(Running {
            telemetry: Telemetry::start(&self.site, &self.prefix, revision + 1, sampling, self.clock),
            load: Load::start(&self.site, plan, self.clock),
            kube: None,
        });
        // The pace of its probes is what the API bears beside the load, so the load is there first.
        let api = self.record.drill.load.api;
        if let (Some(kube), Some(running)) = (&self.options.kube, &mut self.running) {
            pass(interval * 8).await;
            running.kube = Some(KubeLoad::start(kube.clone(), self.clock, api).await);
        }
        Ok(())
    }

    /// A member that is not hit, if there is one.
    fn off_target(&self) -> usize {
        let hit = self.record.target_members();
        (0..self.site.members.len()).find(|member| !hit.contains(member)).unwrap_or(0)
    }

    /// The cluster under load before the fault, at a pace that it bears.
    async fn baseline(&mut self) -> Result<(), String> {
        let election = self.site.environment.timing.election();
        loop {
            // The first moments pay for connections, or for what the pace before has left in queues.
            pass((self.record.baseline.interval * 4).max(self.record.baseline.p99 * 2)).await;
            self.take_baseline().await?;
            let baseline = self.record.baseline;
            let Some(slower) = load::eased(baseline.interval, baseline.p99, election) else { return Ok(()) };
            self.say(&format!(
                "the load is more than it bears: a write every {} instead of {}",
                human(slower),
                human(baseline.interval)
            ));
            self.running.as_ref().ok_or("there is no load")?.load.ease(slower);
            self.record.baseline.interval = slower;
        }
    }

    async fn take_baseline(&mut self) -> Result<(), String> {
        self.record.marks.baseline = self.clock.now();
        let wished = self.record.drill.load.baseline.of(&self.site.environment.timing);
        pass(wished.max(self.record.baseline.interval * BASELINE_BEATS)).await;
        let now = self.clock.now();
        let running = self.running.as_ref().ok_or("there is no load")?;
        let from = self.record.marks.baseline;
        // What was begun a moment ago may rightly be open.
        let moment = (self.median * 20).max(Duration::from_millis(100)).min(wished / 2);
        let settled = |op: &&Op| op.is_write() && op.inv >= from && op.inv < now.minus(moment);
        let ops = running.load.recorder.so_far(now);
        let writes: Vec<&Op> = ops.iter().filter(settled).collect();
        let mut taken: Vec<Duration> = writes.iter().filter(|op| op.acked()).map(|op| op.latency()).collect();
        let baseline = &mut self.record.baseline;
        baseline.writes = writes.len();
        baseline.acked = taken.len();
        baseline.p99 = percentile(&mut taken, 99.0);
        baseline.p50 = percentile(&mut taken, 50.0);
        let timing = &mut self.record.environment.timing;
        // A slow cluster may not widen its own gates without end.
        let counted = baseline.p99.min(timing.election().mul_f64(LATENCY_MOST));
        timing.latency_ms = u64::try_from(counted.as_millis()).unwrap_or(u64::MAX).max(1);
        let line = format!(
            "baseline: {} of {} writes acknowledged, median {}, 99 % within {}",
            baseline.acked,
            baseline.writes,
            human(baseline.p50),
            human(baseline.p99)
        );
        self.say(&line);
        Ok(())
    }

    /// Looks at every claim that can be looked at, again and again for a while.
    async fn look(&mut self, script: &Script, still: bool) {
        let patience = if still { Duration::from_millis(300) } else { PROOF_PATIENCE };
        let claims: Vec<_> = script.claims.iter().filter(|claim| !claim.observed()).collect();
        let looks = claims.iter().map(|claim| async {
            let start = tokio::time::Instant::now();
            loop {
                let proof = self.injector.prove(claim).await;
                let proof = proof.unwrap_or_else(|error| Proof { held: false, evidence: error.to_string() });
                if proof.held || start.elapsed() >= patience {
                    return Looked { at: self.clock.now(), claim: (*claim).clone(), still, proof };
                }
                pass(Duration::from_millis(50)).await;
            }
        });
        let looked = join_all(looks).await;
        self.record.looked.extend(looked);
    }

    /// Undoes the fault, from wherever it is; then looks that nothing is left.
    async fn heal(&mut self) -> Result<(), String> {
        if !self.prepared {
            return Ok(());
        }
        let text = |error: InjectError| error.to_string();
        let script = self.record.script.clone();
        if self.record.marks.inject != At::ZERO {
            self.record.marks.heal = self.clock.now();
            self.say("heal");
            if let Some(restored) = &mut self.record.restored {
                restored.at = self.record.marks.heal;
            }
        }
        let say = |act: &Act| self.say(&act.to_string());
        let undone = undo(&self.site, self.injector, &script.heal, &script.tidy, &mut vec![], &say).await;
        if self.record.marks.heal != At::ZERO {
            self.record.marks.healed = self.clock.now();
        }
        let healed = disarm_if(self.injector, undone).await;
        self.record.after.leftovers = leftovers(self.injector, &script.tidy).await.map_err(text);
        healed
    }

    /// Ends the load, reads what is to be read, tidies up. The second says why that could not be done.
    async fn finish(mut self) -> (Record, Result<(), String>) {
        if let Some(running) = self.running.take() {
            self.record.ops = running.load.finish(self.clock, Duration::from_secs(2)).await;
            let read = reading::log(&self.site, &self.prefix, &self.record, &running.telemetry).await;
            let (samples, watches, stalls) = running.telemetry.finish().await;
            self.record.samples = samples;
            self.record.stalls = stalls;
            self.record.watches = watches;
            self.record.after.log = match read.source {
                LogSource::Watches => reading::kept(reading::union(&self.record.watches), &read.log, read.revision),
                _ => read.log,
            };
            self.record.after.log_source = read.source;
            self.record.after.log_revision = read.revision;
            if let (Some(load), Some(kube)) = (running.kube, &self.options.kube) {
                self.record.kube = Some(load.finish(kube.as_ref()).await);
            }
            reading::members(&self.site, self.injector, &mut self.record.after).await;
            // Before the journal is closed, as the keys: whoever is killed in between leaves it to the heal.
            if let Some(kube) = self.options.kube.as_ref().filter(|_| self.record.drill.load.api)
                && let Err(why) = kube.forget().await
            {
                self.say(&format!("what the API's probes wrote was left behind: {why}"));
            }
        }
        // Writes that measure the pace come before there is a load: a run that ended among them has left those.
        if self.prepared {
            reading::forget_keys(&self.site, &[self.prefix.clone(), self.warm.clone()]).await;
        }
        let tidy = self.record.script.tidy.clone();
        let tidied = if self.prepared {
            perform_each(&self.site, self.injector, &tidy, &|act| self.say(&act.to_string()))
                .await
                .map_err(|(_, error)| error.to_string())
        } else {
            Ok(())
        };
        self.record.notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        (self.record, tidied)
    }
}

#[cfg(test)]
mod tests;
