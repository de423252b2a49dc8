//! The way of a cluster from what is there to what is planned: keys → what is there → steps, plan by plan → verify.
//! `up`, `start`, `node` and `certs renew` decide a way and have it carried out here, each plan written down before it is begun.
//! Which plans there are on it is theirs; what is to be done for one is `apply`'s.

use super::error::CliError;
use super::golden::{self, Golden, Keeping};
use super::opened::no_open_restore_of;
use super::up::{Outcome, explain};
use super::{resolve, session, signals};
use crate::apply::{self, ApplyError, World};
use crate::event::{Event, Events, Stage, Verdict};
use crate::guest::Guest;
use crate::guest::ssh::keys;
use crate::host::libvirt::LibvirtHost;
use crate::host::{DomainState, Host, blocking};
use crate::life::power::{Power, Whole};
use crate::life::{self, Machines};
use crate::pki::{Keyring, Lifetimes};
use crate::plan::Plan;
use crate::snapshot;
use crate::spec::NodeName;
use crate::store::journal::{History, Journal};
use crate::store::{ClusterDir, Lock, SshKey, SshKeys};
use crate::verify;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A cluster whose way is decided, under its lock.
pub(super) struct Settled {
    pub dir: ClusterDir,
    pub lock: Lock,
    /// The plans to go through, the last one being where to: each is written down before it is begun. Never empty.
    pub way: Vec<Arc<Plan>>,
    pub host: Arc<LibvirtHost>,
    /// Behind the plan's image volumes; `None`: not on this computer, and not needed while the volumes are there.
    pub files: Option<resolve::Files>,
    pub verb: &'static str,
    /// The steps of one node only.
    pub only: Option<NodeName>,
    pub verify: bool,
    /// Keep a golden snapshot of what was verified.
    pub golden: bool,
}

/// Keys → what is there → steps → verify: the way of `up` and of `start`.
pub(super) async fn carry_out(settled: Settled, events: &Events) -> Result<Outcome, CliError> {
    let Settled { mut dir, lock, way, host, files, verb, only, verify, golden } = settled;
    let (journal, history) = dir.journal(&lock, crate::store::draw_id(), verb)?;
    no_open_restore_of(&dir, &history)?;
    let first = way.first().cloned();
    let untidy = snapshot::unfinished(&history) || !dir.load_snapshots::<snapshot::Record>()?.is_empty();
    if let (Some(plan), true) = (first, untidy) {
        let machines = Machines { plan, host: host.clone(), mark: session::mark(&dir) };
        let told = |text: &str| events.send(Event::Note { text: text.to_owned() });
        let desk = snapshot::Desk { machines: &machines, dir: &dir, lock: &lock, journal: &journal, told: &told };
        snapshot::tidy(&desk).await?;
    }
    let mut run = Run {
        journal: Arc::new(Mutex::new(journal)),
        history,
        host,
        files,
        only,
        stop: signals::interrupted(),
        applied: apply::Applied::default(),
    };
    if let (Some(old), Some(new)) = (dir.load_plan()?, way.last()) {
        with_journal(&run.journal, |journal| apply::announce(journal, &run.history, &old, new))?;
    }
    let mut last = None;
    for plan in way {
        dir.begin(&lock, &plan)?;
        let world = run.through(&dir, &lock, &plan, events).await?;
        last = Some(match plan.spec.lineage.in_motion() && run.only.is_none() {
            true => (Arc::new(dir.arrived(&lock, &plan)?), None),
            false => (plan, Some(world)),
        });
    }
    let Some((plan, world)) = last else { return Err(CliError::failed("there was nothing to carry out")) };
    let world = match world {
        Some(world) => world,
        None => run.world(&dir, &lock, &plan)?.0,
    };
    if run.only.is_none() {
        let open = dir.history()?;
        if apply::renewing(&open) {
            super::certs::in_use(&plan, &world.keyring).await?;
            with_journal(&run.journal, |journal| journal.done(apply::RENEW, None))?;
        }
        with_journal(&run.journal, |journal| apply::arrived(journal, &open))?;
        // Each was looked at, and set where it was off.
        with_journal(&run.journal, |journal| life::in_time(journal, &open))?;
    }
    let Run { host, only, stop, applied, journal, .. } = run;
    let machines = Machines { plan: plan.clone(), host: host.clone(), mark: session::mark(&dir) };
    // One node of a cluster whose other machines are off is not yet a cluster to be verified.
    let power = machines.power().await?;
    let partial = only.is_some() && power.whole() != Whole::Running;
    if partial {
        events.send(Event::Note { text: format!("not verified: the machines are {}", power.whole()) });
    }
    let mut report = if !verify || partial {
        None
    } else {
        let stage = Stage1::begin(events, Stage::Verify);
        // Also where nothing was to do: a control loop may just be beginning anew, and to judge the moment is what `verify` is for.
        let looking = super::verify::settled(&plan, &world.keyring, &*world.guest, events);
        let report = or_stop(&plan, stop.clone(), looking).await??;
        stage.done(false);
        Some(report)
    };
    let good = report.as_ref().is_some_and(|report| report.verdict() == Verdict::Pass);
    let mut kept = None;
    if golden && good {
        let began = Instant::now();
        let stage = Stage1::begin(events, Stage::Golden);
        let journal = Arc::into_inner(journal).ok_or_else(|| CliError::failed("a step still holds the journal"))?;
        let journal = journal.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let told = |text: &str| events.send(Event::Note { text: text.to_owned() });
        let desk = snapshot::Desk { machines: &machines, dir: &dir, lock: &lock, journal: &journal, told: &told };
        let keeping = golden::keep(&desk, &*world.guest, &host, events).await?;
        stage.done(matches!(keeping, Keeping::Stood { kept: Some(_), .. }));
        if let Keeping::Stood { kept: record, well } = keeping {
            kept = record.map(|record| Golden::Kept { took: began.elapsed(), bytes: record.bytes });
            if !well {
                // What was verified is not what is there now.
                let stage = Stage1::begin(events, Stage::Verify);
                let looking = super::verify::settled(&plan, &world.keyring, &*world.guest, events);
                report = Some(or_stop(&plan, stop, looking).await??);
                stage.done(false);
            }
        }
    }
    drop(lock);
    Ok(Outcome { plan, changed: applied.changed, report, golden: kept, well: true })
}

/// What stays the same from plan to plan on the way, and what was done so far.
struct Run {
    journal: Arc<Mutex<Journal>>,
    history: History,
    host: Arc<LibvirtHost>,
    files: Option<resolve::Files>,
    only: Option<NodeName>,
    stop: tokio::sync::watch::Receiver<bool>,
    applied: apply::Applied,
}

impl Run {
    /// Keys made where they are missing, and the edges for this plan; `true`: something was made.
    fn world(&self, dir: &ClusterDir, lock: &Lock, plan: &Plan) -> Result<(Arc<World>, bool), CliError> {
        let (ssh, made_ssh) = ensure_ssh(dir, lock, plan)?;
        let (keyring, made) = ensure_keys(dir, plan)?;
        let (base, kernel, initrd) =
            self.files.clone().map_or_else(Default::default, |files| (files.base, files.kernel, files.initrd));
        let world = World {
            host: self.host.clone() as Arc<dyn Host>,
            guest: session::guests(plan, &ssh)? as Arc<dyn Guest>,
            api: Arc::new(session::api(&keyring)?),
            keyring,
            ssh,
            mark: session::mark(dir),
            clock: jiff::Timestamp::now,
            base,
            kernel,
            initrd,
        };
        Ok((Arc::new(world), made_ssh + made > 0))
    }

    /// Keys → what is there → steps, until all is as this plan says.
    async fn through(
        &mut self,
        dir: &ClusterDir,
        lock: &Lock,
        plan: &Arc<Plan>,
        events: &Events,
    ) -> Result<Arc<World>, CliError> {
        let stage = Stage1::begin(events, Stage::Keys);
        let (world, made) = self.world(dir, lock, plan)?;
        stage.done(made);
        events.send(Event::Note { text: "looking at what is there".to_owned() });
        let mut inventory = self.look(plan, &world).await?;
        // A new cluster has no disks to be seen.
        if !inventory.pools_active && !self.history.records.is_empty() {
            // What an inactive pool holds is not seen: after the host was rebooted it would look as if no disk were there.
            let pools = apply::steps(plan, &inventory).into_iter().filter(|step| step.action == apply::Action::Pools).collect();
            self.take(plan, pools, &world, events).await?;
            inventory = self.look(plan, &world).await?;
        }
        let mut steps = apply::steps(plan, &inventory);
        with_journal(&self.journal, |journal| apply::settle(journal, &self.history, &steps))?;
        if let Some(node) = &self.only {
            steps = apply::only(plan, &inventory, steps, node);
        }
        let uploads = |step: &apply::Step| matches!(step.action, apply::Action::BaseVolume | apply::Action::KernelVolumes);
        if self.files.is_none() && steps.iter().any(uploads) {
            return Err(CliError::failed("the image that this cluster runs is neither in libvirt nor on this computer")
                .hint(format!("ktcw-vm up -c {} builds it", plan.cluster)));
        }
        if self.changes_files(plan) {
            if let Some(first) = apply::settled_first(plan, &inventory, &steps) {
                self.take(plan, first, &world, events).await?;
                inventory = self.look(plan, &world).await?;
            }
            let looking = apply::observe_files(plan, &*world.guest, &world.keyring, &mut inventory);
            let told = or_stop(plan, self.stop.clone(), looking).await?;
            // Whose files are not known cannot be said to have the new ones.
            let silent: Vec<String> = plan
                .nodes
                .iter()
                .filter(|node| inventory.node(&node.name).ssh && !told.contains(&node.name))
                .map(|node| node.name.to_string())
                .collect();
            if !silent.is_empty() {
                return Err(CliError::failed(format!("{}: what is in its files is not known", silent.join(", ")))
                    .left("everything as it was so far")
                    .hint(format!("ktcw-vm up -c {} goes on", plan.cluster)));
            }
            steps = apply::steps(plan, &inventory);
        }
        if steps.is_empty() {
            events.send(Event::Note { text: format!("cluster {} is as planned; nothing to do", plan.cluster) });
        }
        self.take(plan, steps, &world, events).await?;
        if self.changes_files(plan) {
            self.take(plan, apply::seeds(plan), &world, events).await?;
        }
        Ok(world)
    }

    /// Whether running nodes have files that are to change: members come or go, or certificates were renewed.
    fn changes_files(&self, plan: &Plan) -> bool {
        self.only.is_none() && (plan.spec.lineage.in_motion() || apply::renewing(&self.history))
    }

    async fn look(&self, plan: &Arc<Plan>, world: &World) -> Result<apply::Inventory, CliError> {
        Ok(or_stop(plan, self.stop.clone(), apply::observe(plan, world)).await??)
    }

    async fn take(
        &mut self,
        plan: &Arc<Plan>,
        steps: Vec<apply::Step>,
        world: &Arc<World>,
        events: &Events,
    ) -> Result<(), CliError> {
        let (journal, stop) = (self.journal.clone(), self.stop.clone());
        let ran = apply::run(plan.clone(), steps, world.clone(), journal, events.clone(), stop).await;
        match ran {
            Ok(more) => self.applied.changed += more.changed,
            Err(error) => return Err(explain_seen(plan, world.host.clone(), error).await),
        }
        Ok(())
    }
}

/// What failed, after one look at the host. A step that waits for a machine only hears its silence: that QEMU has paused it, because
/// the host could not write its disk, is known to libvirt alone. The next `up` would let it go on, to be paused again.
async fn explain_seen(plan: &Plan, host: Arc<dyn Host>, error: ApplyError) -> CliError {
    let steps_failed = matches!(error, ApplyError::Failed { .. });
    let said = explain(plan, error);
    if !steps_failed {
        return said;
    }
    match blocking(move || host.observe()).await {
        Ok(seen) => paused_first(plan, &Power::of(plan, &seen), said),
        // It has nothing to add to what failed.
        Err(_) => said,
    }
}

/// Puts the machines that stand because of the host's disk in front, in the words of `verify`.
fn paused_first(plan: &Plan, power: &Power, mut said: CliError) -> CliError {
    let full = DomainState::PausedIoError;
    let Some((why, next)) = verify::machines::silent(plan, full) else { return said };
    let stuck: Vec<String> =
        power.0.iter().filter(|(_, state)| *state == Some(full)).map(|(node, _)| format!("{node}: {why}\n")).collect();
    if !stuck.is_empty() {
        said.message = format!("{}{}", stuck.concat(), said.message);
        said.hint = Some(said.hint.map_or_else(|| next.clone(), |hint| format!("{next}; {hint}")));
    }
    said
}

fn with_journal<T>(journal: &Mutex<Journal>, act: impl FnOnce(&Journal) -> T) -> T {
    act(&journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn ensure_ssh(dir: &ClusterDir, lock: &Lock, plan: &Plan) -> Result<(SshKeys, usize), CliError> {
    // Who leaves is still spoken to.
    let names: Vec<NodeName> = plan.nodes.iter().chain(&plan.leaving).map(|node| node.name.clone()).collect();
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

/// A stage that is not a list of steps.
pub(super) struct Stage1 {
    events: Events,
    stage: Stage,
    begin: Instant,
}

impl Stage1 {
    pub(super) fn begin(events: &Events, stage: Stage) -> Self {
        events.send(Event::StageStarted { stage });
        Self { events: events.clone(), stage, begin: Instant::now() }
    }
    pub(super) fn done(self, changed: bool) {
        self.events.send(Event::StageFinished { stage: self.stage, elapsed: self.begin.elapsed(), changed });
    }
}

#[cfg(test)]
mod tests;
