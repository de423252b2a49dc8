//! What has to be done, in which order: the difference between a plan and what was observed.
//! `run` carries the list out; tests check that a plan applied leaves no step and that TCG starts one control plane at a time.
//! Pure: no step is taken here and nothing is asked.

use super::{Inventory, grow};
use crate::event::Stage;
use crate::host::DomainState;
use crate::plan::{NodePlan, Plan};
use crate::spec::{NodeName, Role};
use serde::{Deserialize, Serialize};

/// One idempotent effect and the steps that must be done before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Unique within a run, readable in the journal: `start controller-0`.
    pub id: String,
    pub stage: Stage,
    pub node: Option<NodeName>,
    pub action: Action,
    /// Ids that must have finished. Ids that are not in the list count as done.
    pub after: Vec<String>,
}

/// Every effect of `up` on a host or a guest. Waits are actions too: they end when a condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    Network,
    Pools,
    BaseVolume,
    KernelVolumes,
    /// Root overlay, etcd disk (controllers) and seed of one node.
    Disks,
    Define,
    Start,
    /// Until sshd answers with the pinned key: every file of the seed is in place then.
    AwaitSsh,
    /// The node's clock as this computer's, before anything that reads it is started.
    SetClock,
    /// Until cloud-init has finished, without errors.
    AwaitBoot,
    StartUnits {
        units: Vec<String>,
    },
    AwaitApiserver,
    /// Until the virtual address answers.
    AwaitVip,
    /// Until controller manager and scheduler have a leader each.
    AwaitLeaders,
    Addons,
    AwaitNodeReady,
    /// Until DNS and the witness pods are ready.
    AwaitWorkloads,
    /// No new pods on the node, and those there moved away. `awaited`: until they are gone, or, with `force`, as long as it takes.
    Drain {
        awaited: bool,
        force: bool,
    },
    /// A learner of that node among etcd's members.
    AddMember,
    /// Until it has everything and votes.
    PromoteMember,
    /// Its leadership handed over and its membership gone.
    RemoveMember,
    /// These files as planned, on a running node; `owed` is what they need to count.
    PutFiles {
        paths: Vec<String>,
        owed: Vec<String>,
    },
    /// What is owed to changed files, the API server before the rest.
    Roll {
        owed: Vec<String>,
    },
    /// The seed as planned: what the node would be told if it began anew.
    Seed,
    /// Machine, disks and seed of a node that leaves.
    RemoveMachine,
    /// The object of a node that has left.
    Unregister,
}

impl Action {
    /// What it is doing, for people.
    pub fn what(&self) -> &'static str {
        match self {
            Action::Network => "making the network",
            Action::Pools => "making the storage pools",
            Action::BaseVolume => "uploading the base image",
            Action::KernelVolumes => "uploading the kernel",
            Action::Disks => "making disks",
            Action::Define => "defining the machine",
            Action::Start => "starting the machine",
            Action::AwaitSsh => "booting, until SSH answers",
            Action::SetClock => "setting the clock",
            Action::AwaitBoot => "until cloud-init has finished",
            Action::StartUnits { .. } => "starting units",
            Action::AwaitApiserver => "until the API server is ready",
            Action::AwaitVip => "until the virtual address answers",
            Action::AwaitLeaders => "until the control loops have leaders",
            Action::Addons => "applying CoreDNS and the witness",
            Action::AwaitNodeReady => "until the node is Ready",
            Action::AwaitWorkloads => "until DNS and witness pods are ready",
            Action::Drain { .. } => "moving its pods away",
            Action::AddMember => "adding it to etcd as a learner",
            Action::PromoteMember => "until it has everything and votes",
            Action::RemoveMember => "handing over and leaving etcd",
            Action::PutFiles { .. } => "writing changed files",
            Action::Roll { .. } => "restarting what reads them",
            Action::Seed => "writing the seed",
            Action::RemoveMachine => "removing the machine and its disks",
            Action::Unregister => "removing it from the API",
        }
    }
}

/// Steps that take `seen` to `plan`. Nothing missing: an empty list.
pub fn steps(plan: &Plan, seen: &Inventory) -> Vec<Step> {
    let mut list = Vec::new();
    host_steps(plan, seen, &mut list);
    for node in &plan.nodes {
        machine_steps(node, seen, &mut list);
    }
    etcd_steps(plan, seen, &mut list);
    control_plane_steps(plan, seen, &mut list);
    worker_steps(plan, seen, &mut list);
    let rolled = grow::roll_steps(plan, seen, &mut list);
    grow::leaving_steps(plan, seen, &rolled, &mut list);
    list
}

/// Of `steps` those that bring back `node`: its own, and what any machine needs of the host. Where too few other members run
/// for a quorum, its machine is started and awaited, and its units wait for the others.
pub fn only(plan: &Plan, seen: &Inventory, steps: Vec<Step>, node: &NodeName) -> Vec<Step> {
    let running = |name: &NodeName| name == node || seen.node(name).domain == Some(DomainState::Running);
    let members = plan.controllers().count();
    let quorum = plan.controllers().filter(|member| running(&member.name)).count() > members / 2;
    let wanted = |step: &Step| match &step.node {
        Some(of) => of == node && (quorum || matches!(step.stage, Stage::Network | Stage::Machines)),
        None => step.stage == Stage::Network,
    };
    steps.into_iter().filter(wanted).collect()
}

fn host_steps(plan: &Plan, seen: &Inventory, list: &mut Vec<Step>) {
    let mut add = |id: &str, action, after: &[&str]| {
        let after = after.iter().map(|&id| id.to_owned()).collect();
        list.push(Step { id: id.to_owned(), stage: Stage::Network, node: None, action, after });
    };
    if !seen.network_active {
        add("network", Action::Network, &[]);
    }
    if !seen.pools_active {
        add("pools", Action::Pools, &[]);
    }
    let missing = |volume: &String| !seen.image_volumes.contains(volume);
    let storage = &plan.storage;
    if missing(&storage.base_volume) {
        add("base image", Action::BaseVolume, &["pools"]);
    }
    if missing(&storage.kernel_volume) || storage.initrd_volume.as_ref().is_some_and(missing) {
        add("kernel", Action::KernelVolumes, &["pools"]);
    }
}

fn machine_steps(node: &NodePlan, seen: &Inventory, list: &mut Vec<Step>) {
    let name = &node.name;
    let mut add = |verb: &str, action, stage, after: Vec<String>| {
        list.push(Step { id: format!("{verb} {name}"), stage, node: Some(name.clone()), action, after });
    };
    let observed = seen.node(name);
    if node.domain.disks.iter().any(|disk| !seen.volumes.contains(&disk.volume)) {
        add("disks", Action::Disks, Stage::Network, vec!["pools".into(), "base image".into()]);
    }
    if observed.domain.is_none() {
        let after = vec!["network".into(), "kernel".into(), format!("disks {name}")];
        add("define", Action::Define, Stage::Machines, after);
    }
    if observed.domain != Some(DomainState::Running) {
        add("start", Action::Start, Stage::Machines, vec!["network".into(), format!("define {name}")]);
    }
    if !observed.ssh {
        add("ssh", Action::AwaitSsh, Stage::Machines, vec![format!("start {name}")]);
    }
    if observed.clock_off || node.units.iter().any(|unit| !observed.active_units.contains(unit)) {
        add("clock", Action::SetClock, Stage::Machines, vec![format!("ssh {name}")]);
    }
    if !observed.booted {
        add("boot", Action::AwaitBoot, Stage::Machines, vec![format!("ssh {name}")]);
    }
}

fn units(stage: Stage, verb: &str, node: &NodePlan, seen: &Inventory, wanted: &[&str], after: Vec<String>, list: &mut Vec<Step>) {
    let observed = seen.node(&node.name);
    let missing = |unit: &&str| node.units.iter().any(|u| u == unit) && !observed.active_units.contains(*unit);
    if wanted.iter().any(missing) {
        let units = wanted.iter().filter(|unit| node.units.iter().any(|u| u == **unit)).map(|&u| u.to_owned()).collect();
        let id = format!("{verb} {}", node.name);
        list.push(Step { id, stage, node: Some(node.name.clone()), action: Action::StartUnits { units }, after });
    }
}

/// The controller that is on its way in.
fn joins(plan: &Plan, node: &NodePlan) -> bool {
    plan.spec.lineage.joining.as_ref() == Some(&node.name)
}

/// Ids of the steps that start those who are members already.
pub(super) fn etcd_of_members(plan: &Plan) -> Vec<String> {
    plan.controllers().filter(|node| !joins(plan, node)).map(|node| format!("etcd {}", node.name)).collect()
}

/// All members at once: a member is up only when a quorum is, so one after the other would wait for ever. Who joins comes when
/// they are there: a learner first, which has no vote and so cannot cost the quorum.
fn etcd_steps(plan: &Plan, seen: &Inventory, list: &mut Vec<Step>) {
    for node in plan.controllers() {
        let name = &node.name;
        let clock = format!("clock {name}");
        if !joins(plan, node) {
            units(Stage::Etcd, "etcd", node, seen, &["etcd.service"], vec![clock], list);
            continue;
        }
        let mut add = |verb: &str, action, after| {
            list.push(Step { id: format!("{verb} {name}"), stage: Stage::Etcd, node: Some(name.clone()), action, after });
        };
        add("add", Action::AddMember, [etcd_of_members(plan), vec![clock, format!("ssh {name}")]].concat());
        add("promote", Action::PromoteMember, vec![format!("add {name}"), format!("etcd {name}")]);
        units(Stage::Etcd, "etcd", node, seen, &["etcd.service"], vec![format!("add {name}")], list);
    }
}

fn control_plane_steps(plan: &Plan, seen: &Inventory, list: &mut Vec<Step>) {
    let members = etcd_of_members(plan);
    let mut before: Option<NodeName> = None;
    for node in plan.control_planes() {
        let name = &node.name;
        let observed = seen.node(name);
        let etcd = if joins(plan, node) { vec![format!("promote {name}")] } else { members.clone() };
        let mut after = etcd.clone();
        if let (true, Some(before), false) = (plan.timers.staged, &before, joins(plan, node)) {
            after.extend([format!("apiserver ready {before}"), format!("control plane {before}")]);
        }
        // keepalived with it, but on one who joins: the address is where the first API server answers, in the moment in which it does.
        let (apiserver, address) = ("kube-apiserver.service", "keepalived.service");
        let loops = ["kube-controller-manager.service", "kube-scheduler.service"];
        let (first, rest) = match joins(plan, node) {
            false => (vec![apiserver, address], loops.to_vec()),
            true => (vec![apiserver], [&[address][..], &loops].concat()),
        };
        units(Stage::ControlPlane, "apiserver", node, seen, &first, after, list);
        if !observed.apiserver_ready {
            list.push(Step {
                id: format!("apiserver ready {name}"),
                stage: Stage::ControlPlane,
                node: Some(name.clone()),
                action: Action::AwaitApiserver,
                after: [etcd.clone(), vec![format!("apiserver {name}")]].concat(),
            });
        }
        let mut after = vec![format!("apiserver ready {name}")];
        if joins(plan, node) {
            // Until the others know it as a peer, two would hold the address.
            after.extend(plan.nodes.iter().flat_map(|other| [format!("files {}", other.name), format!("roll {}", other.name)]));
        }
        units(Stage::ControlPlane, "control plane", node, seen, &rest, after, list);
        if !joins(plan, node) {
            before = Some(name.clone());
        }
    }
    // Who joins comes when the others are complete: nothing of theirs waits for it.
    let there: Vec<&NodePlan> = plan.control_planes().filter(|node| !joins(plan, node)).collect();
    if !seen.vip_ready {
        // The address comes up with the first API server that is ready; with staged starts the workers are not to disturb the others.
        let first = if plan.timers.staged { there.last() } else { there.first() };
        let verb = if plan.timers.staged { "control plane" } else { "apiserver ready" };
        let after = first.map(|node| format!("{verb} {}", node.name)).into_iter().collect();
        let (id, action) = ("virtual address".to_owned(), Action::AwaitVip);
        list.push(Step { id, stage: Stage::ControlPlane, node: None, action, after });
    }
    if !seen.leaders_elected {
        let mut after: Vec<String> = there.iter().map(|node| format!("control plane {}", node.name)).collect();
        after.push("virtual address".to_owned());
        let (id, action) = ("leaders".to_owned(), Action::AwaitLeaders);
        list.push(Step { id, stage: Stage::ControlPlane, node: None, action, after });
    }
    // What is there may have been changed since: applying it again is how it is put right.
    if plan.spec.workers > 0 && !(seen.addons_applied && seen.workloads_ready) {
        let (id, action, after) = ("addons".to_owned(), Action::Addons, vec!["virtual address".to_owned()]);
        list.push(Step { id, stage: Stage::Workers, node: None, action, after });
    }
}

fn worker_steps(plan: &Plan, seen: &Inventory, list: &mut Vec<Step>) {
    let mut ready = vec!["addons".to_owned()];
    for node in plan.nodes.iter().filter(|node| node.role == Role::Worker) {
        let name = &node.name;
        // containerd needs nobody and starts while the control plane does; the kubelet would only wait for the API.
        let runtime = ["containerd.service", "ktcw-pod-egress.service"];
        units(Stage::Workers, "runtime", node, seen, &runtime, vec![format!("clock {name}")], list);
        let after = vec![format!("runtime {name}"), format!("clock {name}"), "virtual address".into()];
        units(Stage::Workers, "kubelet", node, seen, &["kubelet.service", "kube-proxy.service"], after, list);
        if !seen.node(name).ready {
            let (id, after) = (format!("ready {name}"), vec![format!("kubelet {name}")]);
            list.push(Step {
                id: id.clone(),
                stage: Stage::Workers,
                node: Some(name.clone()),
                action: Action::AwaitNodeReady,
                after,
            });
        }
        ready.push(format!("ready {name}"));
    }
    if plan.spec.workers > 0 && !seen.workloads_ready {
        let (id, action) = ("workloads".to_owned(), Action::AwaitWorkloads);
        list.push(Step { id, stage: Stage::Workers, node: None, action, after: ready });
    }
}

#[cfg(test)]
pub(super) use tests::applied;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::NodeObserved;
    use crate::plan::Accel;
    use crate::plan::samples::{self, kvm};

    /// What `observe` would say after a whole run.
    pub fn applied(plan: &Plan) -> Inventory {
        let storage = &plan.storage;
        Inventory {
            network_active: true,
            pools_active: true,
            image_volumes: [Some(&storage.base_volume), Some(&storage.kernel_volume), storage.initrd_volume.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            volumes: plan.nodes.iter().flat_map(|n| &n.domain.disks).map(|d| d.volume.clone()).collect(),
            nodes: plan
                .nodes
                .iter()
                .map(|node| {
                    let observed = NodeObserved {
                        domain: Some(DomainState::Running),
                        ssh: true,
                        booted: true,
                        clock_off: false,
                        boot_id: Some("x".into()),
                        active_units: node.units.iter().cloned().collect(),
                        apiserver_ready: node.control_plane,
                        ready: node.role == Role::Worker,
                        ..NodeObserved::default()
                    };
                    (node.name.clone(), observed)
                })
                .collect(),
            vip_ready: true,
            leaders_elected: true,
            addons_applied: true,
            workloads_ready: true,
            leaving: None,
        }
    }

    #[test]
    fn a_plan_applied_leaves_nothing_to_do() {
        for (etcd, workers) in [(1, 0), (3, 2), (5, 3)] {
            let plan = samples::plan("ktcw", etcd, workers, kvm());
            assert_eq!(steps(&plan, &applied(&plan)), []);
        }
    }

    #[test]
    fn from_nothing_every_step_can_be_reached_and_ids_are_unique() {
        for accel in [kvm(), Accel::Tcg] {
            let plan = samples::plan("ktcw", 3, 2, accel);
            let list = steps(&plan, &Inventory::default());
            let mut done: Vec<&str> = Vec::new();
            let mut left: Vec<&Step> = list.iter().collect();
            while !left.is_empty() {
                let (ready, later): (Vec<&Step>, Vec<&Step>) = left
                    .iter()
                    .partition(|s| s.after.iter().all(|a| done.contains(&a.as_str()) || !list.iter().any(|s| &s.id == a)));
                assert!(!ready.is_empty(), "a cycle among {:?}", later.iter().map(|s| &s.id).collect::<Vec<_>>());
                done.extend(ready.iter().map(|s| s.id.as_str()));
                left = later;
            }
            done.sort_unstable();
            let count = done.len();
            done.dedup();
            assert_eq!(done.len(), count);
        }
    }

    #[test]
    fn emulated_control_planes_start_one_after_the_other_and_native_ones_together() {
        let waits_for_previous = |accel| {
            let list = steps(&samples::plan("ktcw", 3, 0, accel), &Inventory::default());
            let step = list.iter().find(|s| s.id == "apiserver controller-1").expect("planned").clone();
            step.after.contains(&"apiserver ready controller-0".to_owned())
        };
        assert!(waits_for_previous(Accel::Tcg));
        assert!(!waits_for_previous(kvm()));
    }

    #[test]
    fn only_what_is_missing_is_done() {
        let plan = samples::plan("ktcw", 3, 2, kvm());
        let mut seen = applied(&plan);
        let worker = seen.nodes.get_mut(&NodeName::worker(1)).expect("there");
        worker.active_units.remove("kubelet.service");
        let ids: Vec<String> = steps(&plan, &seen).into_iter().map(|s| s.id).collect();
        assert_eq!(ids, ["clock worker-1", "kubelet worker-1"]);
    }

    #[test]
    fn a_machine_that_is_off_is_started_and_awaited_but_keeps_its_disks() {
        let plan = samples::plan("ktcw", 3, 2, kvm());
        let mut seen = applied(&plan);
        let off = NodeObserved { domain: Some(DomainState::ShutOff), ..NodeObserved::default() };
        seen.nodes.insert(NodeName::controller(2), off);
        let ids: Vec<String> = steps(&plan, &seen).into_iter().map(|s| s.id).collect();
        let expected = ["start", "ssh", "clock", "boot", "etcd", "apiserver", "apiserver ready", "control plane"];
        assert_eq!(ids, expected.map(|verb| format!("{verb} controller-2")));
    }

    #[test]
    fn one_node_alone_is_started_with_its_units_only_where_there_is_a_quorum() {
        let plan = samples::plan("ktcw", 3, 2, kvm());
        let off = || NodeObserved { domain: Some(DomainState::ShutOff), ..NodeObserved::default() };
        let ids = |seen: &Inventory, node: NodeName| -> Vec<String> {
            only(&plan, seen, steps(&plan, seen), &node).into_iter().map(|step| step.id).collect()
        };
        let mut seen = applied(&plan);
        seen.nodes.insert(NodeName::controller(2), off());
        seen.nodes.insert(NodeName::worker(0), off());
        let started = ids(&seen, NodeName::controller(2));
        assert!(
            started.contains(&"etcd controller-2".to_owned()) && !started.iter().any(|id| id.ends_with("worker-0")),
            "{started:?}"
        );
        seen.network_active = false;
        seen.nodes.insert(NodeName::controller(1), off());
        seen.nodes.insert(NodeName::controller(0), off());
        let alone = ["network", "start controller-2", "ssh controller-2", "clock controller-2", "boot controller-2"];
        assert_eq!(ids(&seen, NodeName::controller(2)), alone);
    }
}
