//! Effects on a cluster that changes while it runs: files and what is owed to them, a node emptied, a machine taken away.
//! `perform` calls them, a step each.
//! What is written, restarted or removed is in the step; nothing is chosen here.

use super::perform::{StepError, World, patience, seconds, seen, wait};
use super::{Step, roll as files};
use crate::event::{Event, Events};
use crate::guest::{Cmd, put, run_ok};
use crate::host::xml::console_volume;
use crate::host::{Done, HostError};
use crate::plan::{NodePlan, Plan};
use crate::wait::Seen;
use std::time::Duration;

/// In the order in which they are stopped: who asks before who answers.
pub(super) const CONTROL_PLANE: [&str; 3] =
    ["kube-scheduler.service", "kube-controller-manager.service", "kube-apiserver.service"];

pub(super) fn seen_by(result: Result<(), String>) -> Seen<()> {
    match result {
        Ok(()) => Seen::Ready(()),
        Err(why) => Seen::NotYet(why),
    }
}

pub(super) async fn put_files(
    plan: &Plan,
    node: &NodePlan,
    paths: &[String],
    owed: &[String],
    world: &World,
) -> Result<bool, StepError> {
    let deadline = seconds(plan.timers.probe_deadline_s);
    let owed = owed.iter().cloned().collect();
    run_ok(&*world.guest, &node.name, Cmd::script(files::note(&owed), deadline)).await?;
    for file in node.files.iter().filter(|file| paths.contains(&file.path)) {
        let missing = || StepError::Seed { node: node.name.clone(), reason: format!("{} is not in the key store", file.path) };
        let text = files::text(file, &world.keyring).ok_or_else(missing)?;
        put(&*world.guest, &node.name, &file.path, text.expose().as_bytes(), file.mode, deadline).await?;
    }
    Ok(true)
}

pub(super) async fn roll(
    plan: &Plan,
    node: &NodePlan,
    owed: &[String],
    step: &Step,
    world: &World,
    events: &Events,
) -> Result<bool, StepError> {
    let owed: files::Owed = owed.iter().cloned().collect();
    let deadline = seconds(plan.timers.etcd_deadline_s) + Duration::from_secs(30);
    let others = plan.control_planes().count() > 1;
    if let Some(script) = files::first(&owed, others) {
        run_ok(&*world.guest, &node.name, Cmd::script(script, deadline)).await?;
        let (ip, ready) = (node.ip, seconds(plan.timers.apiserver_deadline_s));
        wait(step, events, format!("{}'s API server ready", node.name), ready, || async move {
            seen(world.api.ready(ip, patience(plan)).await)
        })
        .await?;
    }
    run_ok(&*world.guest, &node.name, Cmd::script(files::rest(&owed, node.control_plane), deadline)).await?;
    if node.control_plane {
        // The next one is not touched before this one's components lead or follow.
        let (vip, ready) = (plan.network.vip, seconds(plan.timers.apiserver_deadline_s));
        wait(step, events, "control loops with leaders", ready, || async move {
            seen(world.api.leaders_elected(vip, patience(plan)).await)
        })
        .await?;
    }
    Ok(true)
}

/// The machine first: a disk is not taken away from under it.
pub(super) fn remove_machine(world: &World, plan: &Plan, node: &NodePlan) -> Result<Done, HostError> {
    let mut done = world.host.remove_domain(&node.domain.name, node.domain.uuid, &world.mark)?;
    // The console's log lies beside the disks, and beside it what virtlogd has put aside of it.
    let console = console_volume(&node.domain.name);
    let logs = ["", ".0", ".1", ".2"].map(|end| format!("{console}{end}"));
    for volume in node.domain.disks.iter().map(|disk| &disk.volume).chain(&logs) {
        if world.host.remove_volume(&plan.storage, volume, &world.mark)? == Done::Changed {
            done = Done::Changed;
        }
    }
    Ok(done)
}

pub(super) async fn drain(
    plan: &Plan,
    node: &NodePlan,
    (awaited, force): (bool, bool),
    step: &Step,
    world: &World,
    events: &Events,
) -> Result<bool, StepError> {
    let (vip, patience) = (plan.network.vip, patience(plan));
    world.api.cordon(vip, &node.name, patience).await?;
    if !awaited {
        // Its pods are made anew elsewhere when the node is gone from the API.
        return Ok(true);
    }
    let deadline = seconds(plan.timers.node_ready_deadline_s);
    let emptied = wait(step, events, format!("{} without pods", node.name), deadline, || async {
        match world.api.evict(vip, &node.name, patience).await {
            Ok(left) if left.is_empty() => Seen::Ready(()),
            Ok(left) => Seen::NotYet(left.join("; ")),
            Err(error) => Seen::NotYet(error.to_string()),
        }
    });
    match emptied.await {
        Err(StepError::TimedOut(late)) if force => {
            let (stage, id, node) = (step.stage, step.id.clone(), step.node.clone());
            events.send(Event::StepStatus { stage, step: id, node, status: format!("{late}; it goes all the same") });
            Ok(true)
        }
        Err(StepError::TimedOut(late)) => Err(StepError::Drain { late }),
        other => other,
    }
}
