//! One step, performed: a single match from action to effect.
//! `run` calls it for every step; effects are the edges' `ensure_*` and waits with a deadline and a last status.
//! It has no opinion on order and keeps nothing between steps.

use super::inventory::{INSPECT, cloud_init_errors};
use super::step::{Action, Step};
use super::{change, member};
use crate::api::{ApiError, ApiServers};
use crate::event::{Event, Events};
use crate::guest::{Cmd, Guest, GuestError, clock};
use crate::host::{Done, Host, HostError, Mark, Progress, VolumeFormat, blocking};
use crate::pki::Keyring;
use crate::plan::user_data::{self, SshKeys as SeedKeys};
use crate::plan::{DiskKind, NodePlan, PkiItem, Plan};
use crate::said::one_line;
use crate::seed;
use crate::spec::NodeName;
use crate::store::SshKeys;
use crate::wait::{Seen, TimedOut, until};
use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The edges a run works with.
pub struct World {
    pub host: Arc<dyn Host>,
    pub guest: Arc<dyn Guest>,
    pub api: Arc<dyn ApiServers>,
    pub keyring: Keyring,
    pub ssh: SshKeys,
    pub mark: Mark,
    /// This computer's clock.
    pub clock: fn() -> jiff::Timestamp,
    /// Files on this computer behind the plan's image volumes.
    pub base: PathBuf,
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
}

impl World {
    /// The cloud-init ISO of a node: where the plan's files meet their secrets, in memory only.
    fn seed(&self, plan: &Plan, node: &NodePlan) -> Result<Vec<u8>, StepError> {
        let failed = |reason: String| StepError::Seed { node: node.name.clone(), reason };
        let host = self.ssh.hosts.get(&node.name).ok_or_else(|| failed("it has no SSH host key".to_owned()))?;
        let keys = SeedKeys {
            authorized: self.ssh.client.public.clone(),
            host_private: host.private.clone(),
            host_public: host.public.clone(),
        };
        let secrets = |item: &PkiItem| self.keyring.item(item).cloned();
        let seed = user_data::seed(node, &plan.network, &plan.pod_routes(), &secrets, &keys)
            .map_err(|error| failed(error.to_string()))?;
        seed::iso(&seed).map_err(|error| failed(error.to_string()))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    #[error("etcd's members: {said}")]
    Members { said: String },
    /// Pods that did not go.
    #[error("{late}")]
    Drain { late: TimedOut },
    #[error("{node}: {reason}")]
    Seed { node: NodeName, reason: String },
    #[error("{node}: cloud-init reported errors: {errors}")]
    CloudInit { node: NodeName, errors: String },
    #[error("{node}: its {what} cannot be read: {said}")]
    Unreadable { node: NodeName, what: &'static str, said: String },
    #[error("{node}: {unit} did not start: {said}")]
    Unit { node: NodeName, unit: String, said: String },
}

impl StepError {
    /// What libvirt's refusal most likely means; the others say it themselves.
    pub fn hint(&self) -> Option<String> {
        match self {
            StepError::Host(error) => error.hint(),
            StepError::Drain { .. } => {
                Some("its pods are bound by a PodDisruptionBudget or do not end: --force removes it all the same".to_owned())
            }
            _ => None,
        }
    }
}

/// How often a condition is looked at from here, where asking costs the guest next to nothing.
const OFTEN: Duration = Duration::from_millis(250);
/// How often a guest is made to start processes to answer.
const SELDOM: Duration = Duration::from_secs(1);

/// Performs one step. `Ok(true)`: something was made or changed.
pub(super) async fn perform(plan: &Arc<Plan>, step: &Step, world: &Arc<World>, events: &Events) -> Result<bool, StepError> {
    let leaving = plan.leaving.as_ref().filter(|leaving| step.node.as_ref() == Some(&leaving.name));
    let node = leaving.or(step.node.as_ref().and_then(|name| plan.node(name)));
    match (&step.action, node) {
        (Action::Network, _) => on_host(world, plan, |world, plan| world.host.ensure_network(&plan.network, &world.mark)).await,
        (Action::Pools, _) => on_host(world, plan, |world, plan| world.host.ensure_pools(&plan.storage, &world.mark)).await,
        (Action::BaseVolume, _) => {
            let mut told = uploaded(step, events);
            on_host(world, plan, move |world, plan| {
                let storage = &plan.storage;
                world.host.ensure_image_volume(storage, &storage.base_volume, VolumeFormat::Qcow2, &world.base, &mut told)
            })
            .await
        }
        (Action::KernelVolumes, _) => {
            let mut told = uploaded(step, events);
            on_host(world, plan, move |world, plan| kernel_volumes(world, plan, &mut told)).await
        }
        (Action::AwaitVip, _) => {
            let vip = plan.network.vip;
            let deadline = seconds(plan.timers.apiserver_deadline_s);
            wait(step, events, "the virtual address answering", deadline, || async move {
                seen(world.api.ready(vip, patience(plan)).await)
            })
            .await
        }
        (Action::AwaitLeaders, _) => {
            let vip = plan.network.vip;
            let deadline = seconds(plan.timers.apiserver_deadline_s);
            wait(step, events, "control loops with leaders", deadline, || async move {
                seen(world.api.leaders_elected(vip, patience(plan)).await)
            })
            .await
        }
        (Action::Addons, _) => addons(plan, world, step, events).await,
        (Action::AwaitWorkloads, _) => {
            let (vip, workers) = (plan.network.vip, u32::from(plan.spec.workers));
            let deadline = seconds(plan.timers.node_ready_deadline_s);
            wait(step, events, "DNS and witness pods ready", deadline, || async move {
                seen(world.api.workloads_ready(vip, workers, patience(plan)).await)
            })
            .await
        }
        (action, Some(node)) => on_node(plan, node, action, step, world, events).await,
        (_, None) => Ok(false),
    }
}

async fn on_node(
    plan: &Arc<Plan>,
    node: &NodePlan,
    action: &Action,
    step: &Step,
    world: &Arc<World>,
    events: &Events,
) -> Result<bool, StepError> {
    let timers = &plan.timers;
    match action {
        Action::Disks => disks(plan, node, world).await,
        Action::Define => {
            let node = node.clone();
            on_host(world, plan, move |world, plan| {
                world.host.ensure_domain(&node.domain, &plan.storage, &node.name, &world.mark)
            })
            .await
        }
        Action::Start => {
            let node = node.clone();
            on_host(world, plan, move |world, _| world.host.ensure_running(&node.domain, &world.mark)).await
        }
        Action::AwaitSsh => {
            let deadline = seconds(timers.boot_deadline_s);
            let stranger = Stranger::default();
            let answered = wait(step, events, format!("{} answering SSH", node.name), deadline, || async {
                match world.guest.run(&node.name, Cmd::new("true", seconds(timers.probe_deadline_s))).await {
                    Ok(output) if output.ok() => Seen::Ready(()),
                    Ok(output) => Seen::NotYet(output.stderr_text()),
                    Err(error) => stranger.meets(error),
                }
            })
            .await?;
            stranger.nobody().map(|()| answered)
        }
        Action::SetClock => set_clock(plan, node, world).await,
        Action::AwaitBoot => boot(plan, node, step, world, events).await,
        Action::StartUnits { units } => start_units(plan, node, units, world).await,
        Action::AwaitApiserver => {
            let deadline = seconds(timers.apiserver_deadline_s);
            let ip = node.ip;
            wait(step, events, format!("{}'s API server ready", node.name), deadline, || async move {
                seen(world.api.ready(ip, patience(plan)).await)
            })
            .await
        }
        Action::AwaitNodeReady => {
            let deadline = seconds(timers.node_ready_deadline_s);
            let vip = plan.network.vip;
            wait(step, events, format!("{} Ready", node.name), deadline, || async {
                seen(world.api.node_ready(vip, &node.name, patience(plan)).await)
            })
            .await
        }
        Action::Drain { awaited, force } => change::drain(plan, node, (*awaited, *force), step, world, events).await,
        Action::RemoveMachine => {
            let node = node.clone();
            on_host(world, plan, move |world, plan| change::remove_machine(world, plan, &node)).await
        }
        Action::AddMember => member::add(plan, node, world).await,
        Action::PromoteMember => {
            let deadline = seconds(timers.etcd_deadline_s);
            wait(step, events, format!("{} a voting member", node.name), deadline, || async {
                change::seen_by(member::promote(plan, node, world).await)
            })
            .await
        }
        Action::RemoveMember => {
            // It hands the API's address over; one that does not answer has lost it.
            let stop = format!("systemctl stop keepalived.service {}\n", change::CONTROL_PLANE.join(" "));
            if node.control_plane {
                let _ = world.guest.run(&node.name, Cmd::script(stop, seconds(timers.probe_deadline_s))).await;
            }
            let deadline = seconds(timers.etcd_deadline_s);
            wait(step, events, format!("etcd without {}", node.name), deadline, || async {
                change::seen_by(member::remove(plan, node, world).await)
            })
            .await
        }
        Action::PutFiles { paths, owed } => change::put_files(plan, node, paths, owed, world).await,
        Action::Roll { owed } => change::roll(plan, node, owed, step, world, events).await,
        Action::Seed => {
            let (seed, node) = (world.seed(plan, node)?, node.clone());
            on_host(world, plan, move |world, plan| {
                let volume = node.domain.disks.iter().find(|disk| disk.kind == DiskKind::Seed);
                volume.map_or(Ok(Done::Unchanged), |disk| {
                    world.host.ensure_content(&plan.storage, &disk.volume, &seed, &world.mark)
                })
            })
            .await
        }
        Action::Unregister => {
            world.api.unregister(plan.network.vip, &node.name, patience(plan)).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

async fn on_host(
    world: &Arc<World>,
    plan: &Arc<Plan>,
    effect: impl FnOnce(&World, &Plan) -> Result<Done, HostError> + Send + 'static,
) -> Result<bool, StepError> {
    let (world, plan) = (world.clone(), plan.clone());
    Ok(blocking(move || effect(&world, &plan)).await? == Done::Changed)
}

/// Says how far an upload is, in whole tenths; what is done in a moment is not worth a word.
fn uploaded(step: &Step, events: &Events) -> impl FnMut(u64, u64) + Send + 'static {
    let (step, events) = (step.clone(), events.clone());
    let mut tenth = 0;
    move |done, all| {
        let now = done * 10 / all.max(1);
        if now > tenth && all > 128 << 20 {
            tenth = now;
            let status = format!("{} of {} MiB", done >> 20, all >> 20);
            let Step { id, stage, node, .. } = step.clone();
            events.send(Event::StepStatus { stage, step: id, node, status });
        }
    }
}

fn kernel_volumes(world: &World, plan: &Plan, told: &mut Progress<'_>) -> Result<Done, HostError> {
    let storage = &plan.storage;
    let mut done = world.host.ensure_image_volume(storage, &storage.kernel_volume, VolumeFormat::Raw, &world.kernel, told)?;
    if let (Some(volume), Some(initrd)) = (&storage.initrd_volume, &world.initrd)
        && world.host.ensure_image_volume(storage, volume, VolumeFormat::Raw, initrd, told)? == Done::Changed
    {
        done = Done::Changed;
    }
    Ok(done)
}

async fn disks(plan: &Arc<Plan>, node: &NodePlan, world: &Arc<World>) -> Result<bool, StepError> {
    let seed = world.seed(plan, node)?;
    let node = node.clone();
    on_host(world, plan, move |world, plan| {
        let mut done = Done::Unchanged;
        // Whether the step is done is told by names, and of all disks the seed alone has content that a crash can cut short: it is
        // the first, so that where all are there it is whole.
        let (seeds, others): (Vec<_>, Vec<_>) = node.domain.disks.iter().partition(|disk| disk.kind == DiskKind::Seed);
        for disk in seeds.into_iter().chain(others) {
            let (storage, volume) = (&plan.storage, &disk.volume);
            let one = match &disk.kind {
                DiskKind::Root { size_gib } => {
                    world.host.ensure_overlay(storage, volume, &storage.base_volume, u64::from(*size_gib) << 30, &world.mark)?
                }
                DiskKind::Etcd { size_gib } => {
                    world.host.ensure_blank(storage, volume, u64::from(*size_gib) << 30, &world.mark)?
                }
                DiskKind::Seed => world.host.ensure_content(storage, volume, &seed, &world.mark)?,
            };
            if one == Done::Changed {
                done = Done::Changed;
            }
        }
        Ok(done)
    })
    .await
}

/// Whoever answers at a machine's address with another key than ours. A machine that is still being told its keys may do so for a
/// moment; one that goes on is another machine, and no waiting helps.
#[derive(Default)]
struct Stranger(Mutex<Option<(tokio::time::Instant, Option<GuestError>)>>);

/// A machine's first keys last no longer.
const STRANGE: Duration = Duration::from_secs(30);

impl Stranger {
    fn meets(&self, error: GuestError) -> Seen<()> {
        let mut since = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !matches!(error, GuestError::HostKey { .. }) {
            *since = None;
            return Seen::NotYet(short(&error));
        }
        let begun = since.get_or_insert_with(|| (tokio::time::Instant::now(), None));
        if begun.0.elapsed() < STRANGE {
            return Seen::NotYet(short(&error));
        }
        begun.1 = Some(error);
        Seen::Ready(())
    }

    fn nobody(self) -> Result<(), StepError> {
        let met = self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        met.and_then(|(_, error)| error).map_or(Ok(()), |error| Err(error.into()))
    }
}

/// Moved only when it is off by more than can be told from the length of the way.
async fn set_clock(plan: &Plan, node: &NodePlan, world: &World) -> Result<bool, StepError> {
    let deadline = seconds(plan.timers.probe_deadline_s);
    let unreadable = |said| StepError::Unreadable { node: node.name.clone(), what: "clock", said };
    let seen = clock::read(&*world.guest, &node.name, &world.clock, deadline).await?.map_err(unreadable)?;
    if seen.ahead_s.abs() <= seen.uncertain_s + clock::RIGHT_S {
        return Ok(false);
    }
    clock::shift(&*world.guest, &node.name, -seen.ahead_s, deadline).await?;
    Ok(true)
}

async fn boot(plan: &Plan, node: &NodePlan, step: &Step, world: &World, events: &Events) -> Result<bool, StepError> {
    let probe = seconds(plan.timers.probe_deadline_s);
    wait(step, events, format!("{} booted", node.name), seconds(plan.timers.boot_deadline_s), || async {
        match world.guest.run(&node.name, Cmd::script(INSPECT, probe)).await {
            Ok(output) if output.stdout_text().lines().nth(1) == Some("finished") => Seen::Ready(()),
            Ok(_) => Seen::NotYet("cloud-init is running".to_owned()),
            Err(error) => Seen::NotYet(short(&error)),
        }
    })
    .await?;
    let result = world.guest.run(&node.name, Cmd::new("cat /run/cloud-init/result.json", probe)).await?;
    let failed = |errors: String| StepError::CloudInit { node: node.name.clone(), errors: one_line(&errors) };
    cloud_init_errors(&result.stdout).map(|()| true).map_err(failed)
}

/// Units made from container definitions are generated at boot and started by then; the others are enabled.
async fn start_units(plan: &Plan, node: &NodePlan, units: &[String], world: &World) -> Result<bool, StepError> {
    let (generated, own): (Vec<&String>, Vec<&String>) = units.iter().partition(|unit| is_generated(node, unit));
    let line = |units: &[&String]| units.iter().map(|unit| unit.as_str()).collect::<Vec<_>>().join(" ");
    let mut script = "set -e\nsystemctl daemon-reload\n".to_owned();
    if !own.is_empty() {
        script.push_str(&format!("systemctl enable --quiet --now {}\n", line(&own)));
    }
    if !generated.is_empty() {
        script.push_str(&format!("systemctl start {}\n", line(&generated)));
    }
    // The unit's own start timeout ends first; this deadline only catches a guest that hangs.
    let deadline = seconds(plan.timers.etcd_deadline_s) + Duration::from_secs(30);
    let output = world.guest.run(&node.name, Cmd::script(script, deadline)).await?;
    if output.ok() {
        return Ok(true);
    }
    let said = output.stderr_text();
    let unit = failed_unit(&said).map(one_line).filter(|unit| !unit.is_empty()).unwrap_or_else(|| units.join(", "));
    Err(StepError::Unit { node: node.name.clone(), unit, said: one_line(&said) })
}

/// The unit that systemctl complains of: `Job for etcd.service failed because …`.
fn failed_unit(said: &str) -> Option<&str> {
    said.split("Job for ").nth(1)?.split_whitespace().next()
}

fn is_generated(node: &NodePlan, unit: &str) -> bool {
    let stem = unit.trim_end_matches(".service");
    let definition = format!("{}/{stem}.container", crate::plan::QUADLETS);
    node.files.iter().any(|file| file.path == definition)
}

async fn addons(plan: &Plan, world: &World, step: &Step, events: &Events) -> Result<bool, StepError> {
    let vip = plan.network.vip;
    let deadline = seconds(plan.timers.apiserver_deadline_s);
    // A fresh API refuses objects until its own defaults (namespaces, roles) are there: ask again until it takes them.
    wait(step, events, "addons accepted by the API", deadline, || async {
        for (_, manifest) in &plan.addons {
            if let Err(error) = world.api.apply(vip, manifest, patience(plan) * 2).await {
                return Seen::NotYet(error.to_string());
            }
        }
        Seen::Ready(())
    })
    .await
}

/// A wait whose last statuses are events. What was waited for was not there before: it counts as a change.
/// Why it is not there yet is often told in a node's own words: they go on one line, whoever's they are.
pub(super) async fn wait<F, Fut>(
    step: &Step,
    events: &Events,
    what: impl Display,
    deadline: Duration,
    mut probe: F,
) -> Result<bool, StepError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Seen<()>>,
{
    let told = |status: &str| {
        events.send(Event::StepStatus {
            stage: step.stage,
            step: step.id.clone(),
            node: step.node.clone(),
            status: status.to_owned(),
        });
    };
    let seldom = matches!(step.action, Action::AwaitBoot | Action::PromoteMember | Action::RemoveMember | Action::Drain { .. });
    let every = if seldom { SELDOM } else { OFTEN };
    let probe = || {
        let asked = probe();
        async move {
            match asked.await {
                Seen::NotYet(said) => Seen::NotYet(one_line(&said)),
                ready @ Seen::Ready(()) => ready,
            }
        }
    };
    until(what, deadline, every, told, probe).await?;
    Ok(true)
}

pub(super) fn seen(result: Result<(), ApiError>) -> Seen<()> {
    match result {
        Ok(()) => Seen::Ready(()),
        Err(error) => Seen::NotYet(error.to_string()),
    }
}

/// A guest's error without its name, which the line it is shown on has already.
fn short(error: &GuestError) -> String {
    match error {
        GuestError::Connect { reason, .. } => format!("no SSH yet: {reason}"),
        other => other.of_its_node(),
    }
}

pub(super) fn patience(plan: &Plan) -> Duration {
    Duration::from_secs(if plan.timers.staged { 30 } else { 10 })
}

pub(super) fn seconds(value: u32) -> Duration {
    Duration::from_secs(u64::from(value))
}
