//! What is there now, as far as `up` cares: libvirt's view, each node's own word, the API's.
//! `observe` asks (effects, in parallel, bounded); `steps` compares the value with the plan.
//! A question without an answer counts as "not there": the ensure-step behind it is idempotent.

use super::perform::World;
use crate::guest::{Cmd, clock};
use crate::host::{DomainState, HostError, HostSeen, blocking};
use crate::plan::Plan;
use crate::spec::{NodeName, Role};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub network_active: bool,
    pub pools_active: bool,
    pub image_volumes: BTreeSet<String>,
    /// Volumes of the cluster's own pool.
    pub volumes: BTreeSet<String>,
    pub nodes: BTreeMap<NodeName, NodeObserved>,
    pub vip_ready: bool,
    /// Controller manager and scheduler have a leader each.
    pub leaders_elected: bool,
    pub addons_applied: bool,
    pub workloads_ready: bool,
    /// What is there of the node that is on its way out.
    pub leaving: Option<LeavingObserved>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeavingObserved {
    pub domain: Option<DomainState>,
    /// Those of its disks that are there.
    pub volumes: Vec<String>,
    /// The API knows it, or could not be asked.
    pub registered: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeObserved {
    /// `None`: not defined.
    pub domain: Option<DomainState>,
    pub ssh: bool,
    /// cloud-init has finished, without errors.
    pub booted: bool,
    pub boot_id: Option<String>,
    /// Its clock is further from this computer's than a running node's may drift before it is set right.
    pub clock_off: bool,
    pub active_units: BTreeSet<String>,
    pub apiserver_ready: bool,
    /// The Kubernetes node is Ready.
    pub ready: bool,
    /// Planned files whose content is another on the node; only where files were looked at.
    pub stale: BTreeSet<String>,
    /// What files that were changed earlier still need to count: `restart kubelet.service`.
    pub owed: BTreeSet<String>,
}

impl Inventory {
    pub fn node(&self, name: &NodeName) -> NodeObserved {
        self.nodes.get(name).cloned().unwrap_or_default()
    }

    /// libvirt's part of the picture.
    pub fn of_host(plan: &Plan, seen: &HostSeen) -> Inventory {
        let pool = |name: &str| seen.pools.iter().find(|pool| pool.name == name && pool.active);
        let names = |name: &str| pool(name).map(|p| p.volumes.iter().map(|v| v.name.clone()).collect()).unwrap_or_default();
        let volumes: BTreeSet<String> = names(&plan.storage.pool);
        let domain = |name: &str| seen.domains.iter().find(|domain| domain.name == name).map(|domain| domain.state);
        Inventory {
            network_active: seen.networks.iter().any(|network| network.name == plan.network.name && network.active),
            pools_active: pool(&plan.storage.pool).is_some() && pool(&plan.storage.image_pool).is_some(),
            image_volumes: names(&plan.storage.image_pool),
            nodes: plan
                .nodes
                .iter()
                .map(|node| (node.name.clone(), NodeObserved { domain: domain(&node.domain.name), ..NodeObserved::default() }))
                .collect(),
            leaving: plan.leaving.as_ref().map(|node| LeavingObserved {
                domain: domain(&node.domain.name),
                volumes: node.domain.disks.iter().map(|disk| disk.volume.clone()).filter(|name| volumes.contains(name)).collect(),
                registered: node.role == Role::Worker,
            }),
            volumes,
            ..Inventory::default()
        }
    }
}

/// Asks libvirt, then every running node and the API, each with a short deadline.
pub async fn observe(plan: &Plan, world: &World) -> Result<Inventory, HostError> {
    let host = world.host.clone();
    let seen = blocking(move || host.observe()).await?;
    let mut inventory = Inventory::of_host(plan, &seen);
    let guest = &world.guest;
    let running: Vec<_> =
        plan.nodes.iter().filter(|node| inventory.node(&node.name).domain == Some(DomainState::Running)).collect();
    let any_running = !running.is_empty();
    // Slow guests (TCG) answer late; a dead one costs one deadline, all in parallel.
    let patience = Duration::from_secs(if plan.timers.staged { 60 } else { 15 });
    let asked = running.into_iter().map(|node| async move {
        let script = format!("{INSPECT}\nsystemctl is-active {} | paste -sd' '\n{RESULT}\n", node.units.join(" "));
        let text = guest.run(&node.name, Cmd::script(script, patience)).await.ok().map(|output| output.stdout_text());
        let clock = match &text {
            Some(_) => clock::read(&**guest, &node.name, &world.clock, patience).await.ok().and_then(Result::ok),
            None => None,
        };
        (node, text, clock.is_some_and(|clock| clock.ahead_s.abs() > clock.uncertain_s + CLOCK_DRIFT_S))
    });
    for (node, text, clock_off) in join_all(asked).await {
        let entry = inventory.nodes.entry(node.name.clone()).or_default();
        entry.clock_off = clock_off;
        if let Some(text) = text {
            read_inspection(&text, &node.units, entry);
        }
    }
    if !any_running {
        return Ok(inventory);
    }
    let checks = plan.control_planes().map(|node| async move { (node, world.api.ready(node.ip, patience).await.is_ok()) });
    for (node, ready) in join_all(checks).await {
        inventory.nodes.entry(node.name.clone()).or_default().apiserver_ready = ready;
    }
    inventory.vip_ready = world.api.ready(plan.network.vip, patience).await.is_ok();
    inventory.leaders_elected = inventory.vip_ready && world.api.leaders_elected(plan.network.vip, patience).await.is_ok();
    if let (Some(node), Some(leaving), true) = (&plan.leaving, &mut inventory.leaving, inventory.vip_ready)
        && leaving.registered
    {
        leaving.registered = world.api.registered(plan.network.vip, &node.name, patience).await.unwrap_or(true);
    }
    if inventory.vip_ready && plan.spec.workers > 0 {
        let vip = plan.network.vip;
        inventory.workloads_ready = world.api.workloads_ready(vip, u32::from(plan.spec.workers), patience).await.is_ok();
        inventory.addons_applied = inventory.workloads_ready || world.api.addons_present(vip, plan, patience).await;
        for node in plan.workers() {
            let ready = world.api.node_ready(vip, &node.name, patience).await.is_ok();
            inventory.nodes.entry(node.name.clone()).or_default().ready = ready;
        }
    }
    Ok(inventory)
}

/// A running node's clock is left alone up to here, in seconds: half of what `verify` accepts.
const CLOCK_DRIFT_S: f64 = 0.5;

/// First line: boot id; second: whether cloud-init has finished.
pub(super) const INSPECT: &str = "cat /proc/sys/kernel/random/boot_id
test -e /run/cloud-init/result.json && echo finished || echo running";

/// cloud-init's own report, on one line.
const RESULT: &str = "tr -d '\\n' < /run/cloud-init/result.json";

/// What cloud-init's report says went wrong; a report that cannot be read has not said that nothing did.
pub(super) fn cloud_init_errors(report: &[u8]) -> Result<(), String> {
    let report: serde_json::Value = serde_json::from_slice(report).map_err(|_| "no result.json".to_owned())?;
    match report.pointer("/v1/errors") {
        Some(serde_json::Value::Array(list)) if list.is_empty() => Ok(()),
        Some(errors) => Err(errors.to_string()),
        None => Err("none are listed in result.json".to_owned()),
    }
}

fn read_inspection(text: &str, units: &[String], into: &mut NodeObserved) {
    let mut lines = text.lines();
    let Some(boot_id) = lines.next() else { return };
    into.ssh = true;
    into.boot_id = Some(boot_id.trim().to_owned());
    let finished = lines.next() == Some("finished");
    let states = lines.next().unwrap_or_default().split_whitespace();
    into.active_units = units.iter().zip(states).filter(|(_, state)| *state == "active").map(|(unit, _)| unit.clone()).collect();
    into.booted = finished && cloud_init_errors(lines.next().unwrap_or_default().as_bytes()).is_ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inspection_is_read_line_by_line_and_a_cut_one_claims_nothing() {
        let units = ["etcd.service".to_owned(), "keepalived.service".to_owned()];
        let mut node = NodeObserved::default();
        read_inspection("4b3c\nfinished\nactive inactive\n{ \"v1\": { \"errors\": [] } }", &units, &mut node);
        assert!(node.ssh && node.booted && node.active_units.contains("etcd.service"));
        assert_eq!(node.active_units.len(), 1);
        let mut cut = NodeObserved::default();
        read_inspection("4b3c\n", &units, &mut cut);
        assert!(cut.ssh && !cut.booted && cut.active_units.is_empty());
        for report in ["", "{}", r#"{"v1": {"errors": ["write_files"]}}"#] {
            let mut failed = NodeObserved::default();
            read_inspection(&format!("4b3c\nfinished\nactive active\n{report}"), &units, &mut failed);
            assert!(failed.ssh && !failed.booted && failed.active_units.len() == 2, "{report}");
        }
        let mut empty = NodeObserved::default();
        read_inspection("", &units, &mut empty);
        assert_eq!(empty, NodeObserved::default());
    }
}
