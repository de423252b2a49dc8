//! Switching machines off: workers, then the control plane on all controllers, then all controllers together.
//! The verb `stop` calls it; each machine is asked over SSH, then through ACPI, and at a deadline its plug is pulled and that is said.
//! Order is decided in `waves`, purely; it heals nothing and starts nothing.

use super::{LifeError, Machines};
use crate::guest::{Cmd, Guest, GuestError};
use crate::host::DomainState;
use crate::plan::Plan;
use crate::said::one_line;
use crate::spec::{NodeName, Role};
use crate::store::journal::{Entry, History, Journal};
use crate::wait::{Seen, until};
use futures::future::join_all;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One part of the order; the next begins when it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wave {
    /// Control-plane units, so that nobody writes to etcd while its members leave.
    StopUnits(Vec<NodeName>),
    PowerOff(Vec<NodeName>),
}

/// Units that `StopUnits` stops: clients of etcd, and what points at them.
pub const CONTROL_PLANE: &str =
    "keepalived.service kube-scheduler.service kube-controller-manager.service kube-apiserver.service";

/// How a machine came to be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    WasOff,
    /// `systemctl poweroff`.
    Clean,
    /// It did not answer SSH and obeyed its power button.
    Acpi,
    /// It did neither in time, and its power was cut.
    PowerCut,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stopped {
    pub node: NodeName,
    pub how: How,
    /// Milliseconds until it was off.
    pub took_ms: u64,
    /// Why it was not clean.
    pub why: Option<String>,
}

/// Journal step of a machine's end.
pub(super) fn stopping(node: &NodeName) -> String {
    format!("stop {node}")
}

/// The order for a whole cluster, or for one node of it. Members leave together: one after the other, the last ones would
/// be without a quorum and could not end in order.
pub fn waves(plan: &Plan, only: Option<&NodeName>) -> Vec<Wave> {
    if let Some(node) = only {
        return vec![Wave::PowerOff(vec![node.clone()])];
    }
    let names = |role: Role| plan.nodes.iter().filter(|node| node.role == role).map(|node| node.name.clone()).collect::<Vec<_>>();
    let mut waves = Vec::new();
    let workers = names(Role::Worker);
    if !workers.is_empty() {
        waves.push(Wave::PowerOff(workers));
    }
    waves.push(Wave::StopUnits(plan.control_planes().map(|node| node.name.clone()).collect()));
    waves.push(Wave::PowerOff(names(Role::Controller)));
    waves
}

/// Whether the members that answer still have a quorum without `node`: `Err` holds (how many are left, how many are needed).
/// Without a quorum now, there is none to be kept.
pub fn quorum_left(plan: &Plan, answers: impl Fn(&NodeName) -> bool, node: &NodeName) -> Result<(), (usize, usize)> {
    let members: Vec<&NodeName> = plan.controllers().map(|member| &member.name).collect();
    let needed = members.len() / 2 + 1;
    let now = members.iter().filter(|member| answers(member)).count();
    let left = members.iter().filter(|member| **member != node && answers(member)).count();
    if now >= needed && left < needed && left > 0 { Err((left, needed)) } else { Ok(()) }
}

/// Switches off what `waves` says. Machines that are paused are let go on first: a paused guest hears nothing.
/// Ends with every machine off or an error of libvirt's; each machine's end is journalled before it is begun.
pub async fn stop(
    machines: &Machines,
    guest: &dyn Guest,
    (journal, history): (&Journal, &History),
    only: Option<&NodeName>,
    told: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Stopped>, LifeError> {
    let mut all = Vec::new();
    let open: Vec<_> = history.pending().into_iter().cloned().collect();
    for wave in waves(&machines.plan, only) {
        match wave {
            Wave::StopUnits(nodes) => stop_units(machines, guest, &nodes, told).await?,
            Wave::PowerOff(nodes) => {
                let stopped = power_off(machines, guest, journal, &nodes, told).await?;
                for one in stopped.iter().filter(|one| one.how == How::WasOff) {
                    // An earlier stop that was cut off did not see it go.
                    let step = stopping(&one.node);
                    if open.iter().any(|record| matches!(&record.entry, Entry::Step { step: begun, .. } if *begun == step)) {
                        journal.done(&step, Some(&one.node))?;
                    }
                }
                all.extend(stopped);
            }
        }
    }
    Ok(all)
}

async fn stop_units(
    machines: &Machines,
    guest: &dyn Guest,
    nodes: &[NodeName],
    told: &(dyn Fn(&str) + Sync),
) -> Result<(), LifeError> {
    let power = machines.power().await?;
    let running: Vec<&NodeName> = nodes.iter().filter(|node| power.is_running(node)).collect();
    if running.is_empty() {
        return Ok(());
    }
    told("stopping the control plane");
    let deadline = patience(&machines.plan);
    let asked = running.iter().map(|node| async move {
        let cmd = Cmd::new(format!("systemctl stop {CONTROL_PLANE}"), deadline);
        (*node, guest.run(node, cmd).await)
    });
    // The machines go off either way: what does not stop now is stopped by their own shutdown.
    for (node, ran) in join_all(asked).await {
        match ran {
            Ok(output) if output.ok() => {}
            Ok(output) => told(&format!("{node}: {}", one_line(&output.stderr_text()))),
            Err(error) => told(&error.to_string()),
        }
    }
    Ok(())
}

async fn power_off(
    machines: &Machines,
    guest: &dyn Guest,
    journal: &Journal,
    names: &[NodeName],
    told: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Stopped>, LifeError> {
    let power = machines.power().await?;
    let up = |node: &NodeName| !matches!(power.get(node), None | Some(DomainState::ShutOff | DomainState::Crashed));
    let (on, off): (Vec<NodeName>, Vec<NodeName>) = names.iter().cloned().partition(up);
    let mut all: Vec<Stopped> = off.into_iter().map(|node| Stopped { node, how: How::WasOff, took_ms: 0, why: None }).collect();
    if on.is_empty() {
        return Ok(all);
    }
    let paused = machines.plan.nodes.iter().filter(|node| {
        on.contains(&node.name) && matches!(power.get(&node.name), Some(DomainState::Paused | DomainState::PausedIoError))
    });
    machines.resume(paused.cloned().collect()).await?;
    told(&format!("switching off {}", on.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")));
    for node in &on {
        journal.begin(&stopping(node), Some(node))?;
    }
    let begin = Instant::now();
    let mut asked: BTreeMap<NodeName, (How, Option<String>)> = BTreeMap::new();
    for (node, refused) in join_all(on.iter().map(|node| async move { (node, ask(guest, node).await) })).await {
        let how = match refused {
            None => (How::Clean, None),
            Some(why) => {
                told(&format!("{node}: {why}; pressing its power button"));
                machines.each(machines.nodes(Some(node)), |host, domain, mark| host.shutdown(domain, mark)).await?;
                (How::Acpi, Some(why))
            }
        };
        asked.insert(node.clone(), how);
    }
    for node in &on {
        let (mut how, mut why) = asked.remove(node).unwrap_or((How::Acpi, None));
        // One that was slow must not cost the others their last look.
        let left = patience(&machines.plan).saturating_sub(begin.elapsed()).max(Duration::from_secs(2));
        let ended = until(
            format!("{node} off"),
            left,
            Duration::from_millis(200),
            |_| (),
            || async {
                match machines.power().await {
                    Ok(power) if matches!(power.get(node), None | Some(DomainState::ShutOff | DomainState::Crashed)) => {
                        Seen::Ready(())
                    }
                    Ok(power) => Seen::NotYet(super::power::word(power.get(node)).to_owned()),
                    Err(error) => Seen::NotYet(error.to_string()),
                }
            },
        );
        if let Err(late) = ended.await {
            told(&format!("{late}; cutting its power"));
            machines.each(machines.nodes(Some(node)), |host, domain, mark| host.power_off(domain, mark)).await?;
            why = Some(late.to_string());
            how = How::PowerCut;
        }
        // Nothing says that the connection is dead but silence.
        guest.forget(node).await;
        journal.done(&stopping(node), Some(node))?;
        let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        all.push(Stopped { node: node.clone(), how, took_ms, why });
    }
    Ok(all)
}

/// Asks a node to switch itself off; `Some`: why it could not be asked. A connection that ends under the command is what
/// switching off looks like.
async fn ask(guest: &dyn Guest, node: &NodeName) -> Option<String> {
    match guest.run(node, Cmd::new("systemctl poweroff", ASKED)).await {
        Ok(output) if output.ok() => None,
        Ok(output) => Some(format!("systemctl poweroff: {}", one_line(&output.stderr_text()))),
        Err(GuestError::Lost { .. }) => None,
        Err(error) => Some(error.of_its_node()),
    }
}

/// For the order to switch off to be taken.
const ASKED: Duration = Duration::from_secs(10);

/// How long a machine may take to shut down before its power is cut.
fn patience(plan: &Plan) -> Duration {
    Duration::from_secs(if plan.timers.staged { 300 } else { 90 })
}
