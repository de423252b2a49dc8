//! Steps of a cluster that changes while it runs: files taken to nodes one after the other, a node on its way out, seeds.
//! `steps` adds them to its list; verbs that change files ask besides whom to bring up first.
//! Pure, like all choices of steps; what is stale was observed.

use super::step::etcd_of_members;
use super::{Action, Inventory, Step, roll};
use crate::event::Stage;
use crate::host::{DomainState, HostSeen};
use crate::plan::{DiskKind, DiskPlan, NodePlan, Plan};
use crate::spec::{NodeName, Role};

/// Nodes whose files changed, one after the other, controllers first; a member that joins or leaves is known to etcd before the
/// others are told. Returns the id of the last step.
///
/// Where the API does not answer new certificates go to all nodes at once and first: those that are there may have run out, and then
/// nothing that is else waited for comes. Keys stay, so a mixture of old and new is good.
pub(super) fn roll_steps(plan: &Plan, seen: &Inventory, list: &mut Vec<Step>) -> Vec<String> {
    let dark = !plan.spec.lineage.in_motion() && !seen.vip_ready;
    let mut after = if dark {
        let told = |node: &&NodePlan| !seen.node(&node.name).stale.is_empty();
        plan.nodes.iter().filter(told).map(|node| format!("files {}", node.name)).collect()
    } else {
        all_is_up(plan)
    };
    for node in &plan.nodes {
        let observed = seen.node(&node.name);
        let mut owed = roll::owed(node, &observed.stale);
        owed.extend(observed.owed.iter().cloned());
        let stage = if node.role == Role::Worker { Stage::Workers } else { Stage::ControlPlane };
        let owed: Vec<String> = owed.into_iter().collect();
        let mut add = |verb: &str, action| {
            let id = format!("{verb} {}", node.name);
            let before = match verb {
                "files" if dark => vec![format!("ssh {}", node.name)],
                _ => std::mem::replace(&mut after, vec![id.clone()]),
            };
            list.push(Step { id, stage, node: Some(node.name.clone()), action, after: before });
        };
        if !observed.stale.is_empty() {
            add("files", Action::PutFiles { paths: observed.stale.iter().cloned().collect(), owed: owed.clone() });
        }
        if !owed.is_empty() {
            add("roll", Action::Roll { owed });
        }
    }
    after
}

/// What is waited for before a node of a running cluster is told anything new.
fn all_is_up(plan: &Plan) -> Vec<String> {
    let mut after = vec!["virtual address".to_owned(), "leaders".to_owned()];
    if plan.spec.lineage.joining.is_none() {
        after.extend(plan.control_planes().map(|node| format!("control plane {}", node.name)));
    }
    after.extend(plan.spec.lineage.joining.iter().map(|node| format!("promote {node}")));
    after
}

/// Whether nothing of the cluster's etcd is left: all of its disks are gone, as after a removal that was cut off. What an
/// inactive pool holds is not known, and not taken for gone.
pub fn begins_anew(plan: &Plan, seen: &HostSeen) -> bool {
    let etcd = |disk: &&DiskPlan| matches!(disk.kind, DiskKind::Etcd { .. });
    match seen.pools.iter().find(|pool| pool.name == plan.storage.pool) {
        None => true,
        Some(pool) if !pool.active => false,
        Some(pool) => {
            let mut disks = plan.controllers().flat_map(|node| &node.domain.disks).filter(etcd);
            !disks.any(|disk| pool.volumes.iter().any(|volume| volume.name == disk.volume))
        }
    }
}

/// Every node's seed as it is planned now: what was changed on running nodes is there when one begins anew.
pub fn seeds(plan: &Plan) -> Vec<Step> {
    let seed = |node: &NodePlan| Step {
        id: format!("seed {}", node.name),
        stage: Stage::Network,
        node: Some(node.name.clone()),
        action: Action::Seed,
        after: Vec::new(),
    };
    plan.nodes.iter().map(seed).collect()
}

/// Of `steps` those that bring up who stays, where one of them is not up: before they are, nobody joins or leaves, and whose
/// files are stale is not known. Where nobody moves and only certificates are new, the machines: what they run may need those.
/// `None`: all are up.
pub fn settled_first(plan: &Plan, seen: &Inventory, steps: &[Step]) -> Option<Vec<Step>> {
    let moves = |name: &NodeName| {
        let lineage = &plan.spec.lineage;
        lineage.joining.as_ref() == Some(name) || lineage.leaving.as_ref().is_some_and(|leaving| leaving.node == *name)
    };
    let down = plan.nodes.iter().any(|node| !moves(&node.name) && !seen.node(&node.name).ssh);
    if !down {
        return None;
    }
    let machines = |step: &Step| matches!(step.stage, Stage::Network | Stage::Machines);
    let in_motion = plan.spec.lineage.in_motion();
    let stays = |step: &&Step| step.node.as_ref().is_none_or(|node| !moves(node)) && (in_motion || machines(step));
    Some(steps.iter().filter(stays).cloned().collect())
}

/// A node on its way out: what it does is moved away, then what it is made of goes, then the API forgets it. In that order:
/// a kubelet that still ran would register its node again.
pub(super) fn leaving_steps(plan: &Plan, seen: &Inventory, rolled: &[String], list: &mut Vec<Step>) {
    let (Some(node), Some(observed), Some(leaving)) = (&plan.leaving, &seen.leaving, &plan.spec.lineage.leaving) else { return };
    let name = &node.name;
    let mut add = |verb: &str, action, after: Vec<String>| {
        list.push(Step { id: format!("{verb} {name}"), stage: Stage::Workers, node: Some(name.clone()), action, after });
    };
    if node.role == Role::Worker && observed.registered && observed.domain.is_some() {
        // A machine that is off cannot say that a pod has ended.
        let action = Action::Drain { awaited: observed.domain == Some(DomainState::Running), force: leaving.force };
        add("drain", action, vec!["virtual address".to_owned(), "leaders".to_owned(), "workloads".to_owned()]);
    }
    if node.role == Role::Controller {
        add("leave", Action::RemoveMember, [etcd_of_members(plan), rolled.to_vec()].concat());
    }
    if observed.domain.is_some() || !observed.volumes.is_empty() {
        add("remove", Action::RemoveMachine, vec![format!("drain {name}"), format!("leave {name}")]);
    }
    if node.role == Role::Worker && observed.registered {
        add("unregister", Action::Unregister, vec![format!("remove {name}"), "virtual address".to_owned()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::step::applied;
    use crate::apply::{LeavingObserved, steps};
    use crate::host::{PoolSeen, VolumeSeen};
    use crate::plan::plan;
    use crate::plan::samples::{self, kvm};

    /// Everything that has to be done before a step, near and far.
    fn before(list: &[Step], id: &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut todo = vec![id.to_owned()];
        while let Some(next) = todo.pop() {
            for after in list.iter().filter(|step| step.id == next).flat_map(|step| &step.after) {
                if list.iter().any(|step| step.id == *after) && !found.contains(after) {
                    found.push(after.clone());
                    todo.push(after.clone());
                }
            }
        }
        found
    }

    fn comes_before(list: &[Step], first: &str, then: &str) {
        assert!(
            list.iter().any(|step| step.id == first),
            "{first} is not in {:?}",
            list.iter().map(|s| &s.id).collect::<Vec<_>>()
        );
        assert!(before(list, then).contains(&first.to_owned()), "{first} before {then}: {:?}", before(list, then));
    }

    /// Three become four: seen whole with three, their files being those of three.
    fn joining() -> (Plan, Inventory) {
        let three = samples::plan("ktcw", 3, 1, kvm());
        let mut spec = three.spec.with_one_more(Role::Controller).expect("room");
        spec.lineage.joining = Some(NodeName::controller(3));
        let mut seen = applied(&three);
        for node in seen.nodes.values_mut() {
            node.stale.insert("/etc/hosts".to_owned());
        }
        for i in 0..3 {
            let node = seen.nodes.get_mut(&NodeName::controller(i)).expect("there");
            node.stale.insert("/etc/containers/systemd/kube-apiserver.container".to_owned());
            node.stale.insert("/etc/keepalived/keepalived.conf".to_owned());
        }
        (plan(&spec, &three.resolved), seen)
    }

    #[test]
    fn who_joins_is_a_learner_first_and_takes_no_address_before_its_peers_know_it() {
        let (plan, seen) = joining();
        let list = steps(&plan, &seen);
        comes_before(&list, "add controller-3", "etcd controller-3");
        comes_before(&list, "etcd controller-3", "promote controller-3");
        comes_before(&list, "promote controller-3", "apiserver controller-3");
        comes_before(&list, "promote controller-3", "files controller-0");
        for pair in [("roll controller-0", "files controller-1"), ("roll controller-1", "files controller-2")] {
            comes_before(&list, pair.0, pair.1);
        }
        comes_before(&list, "roll controller-2", "control plane controller-3");
        comes_before(&list, "roll controller-2", "files worker-0");
        assert!(!list.iter().any(|step| step.id == "roll worker-0"), "a list of hosts needs no restart");
        assert_eq!(settled_first(&plan, &seen, &list), None);
    }

    #[test]
    fn before_anybody_joins_those_who_stay_are_up() {
        let (plan, mut seen) = joining();
        seen.nodes.get_mut(&NodeName::controller(1)).expect("there").ssh = false;
        let list = steps(&plan, &seen);
        let first = settled_first(&plan, &seen, &list).expect("one is down");
        assert!(first.iter().any(|step| step.id == "ssh controller-1"));
        assert!(!first.iter().any(|step| step.id.ends_with("controller-3")), "{first:?}");
    }

    #[test]
    fn certificates_that_have_run_out_are_replaced_everywhere_before_anything_is_waited_for() {
        let plan = samples::plan("ktcw", 3, 1, kvm());
        let mut seen = applied(&plan);
        seen.vip_ready = false;
        seen.leaders_elected = false;
        for node in ["controller-0", "controller-2", "worker-0"] {
            let name = NodeName::parse(node).expect("a name");
            let path = if name.role() == Role::Worker { "kubelet-server.pem" } else { "apiserver.pem" };
            seen.nodes.get_mut(&name).expect("there").stale.insert(format!("/etc/kubernetes/pki/{path}"));
        }
        let list = steps(&plan, &seen);
        assert!(list.iter().any(|step| step.id == "virtual address"), "the API is waited for in this run");
        for node in ["controller-0", "controller-2", "worker-0"] {
            assert_eq!(before(&list, &format!("files {node}")), Vec::<String>::new(), "{node}");
            comes_before(&list, &format!("files {node}"), "roll controller-0");
        }
        comes_before(&list, "roll controller-0", "roll controller-2");
        comes_before(&list, "roll controller-2", "roll worker-0");

        seen.nodes.get_mut(&NodeName::controller(1)).expect("there").ssh = false;
        let first = settled_first(&plan, &seen, &steps(&plan, &seen)).expect("one is down");
        assert!(first.iter().any(|step| step.id == "ssh controller-1"), "{first:?}");
        assert!(first.iter().all(|step| matches!(step.stage, Stage::Network | Stage::Machines)), "{first:?}");
    }

    #[test]
    fn who_leaves_is_unknown_to_the_others_before_it_is_gone() {
        let four = samples::plan("ktcw", 3, 2, kvm());
        let spec = four.spec.without(&NodeName::controller(2), false).expect("it can");
        let plan = plan(&spec, &four.resolved);
        let mut seen = applied(&four);
        seen.nodes.get_mut(&NodeName::controller(0)).expect("there").stale.insert("/etc/keepalived/keepalived.conf".to_owned());
        let volumes = vec!["controller-2-root.qcow2".to_owned()];
        seen.leaving = Some(LeavingObserved { domain: Some(DomainState::Running), volumes, registered: false });
        let list = steps(&plan, &seen);
        comes_before(&list, "roll controller-0", "leave controller-2");
        comes_before(&list, "leave controller-2", "remove controller-2");
        let worker = plan_without_worker(&four);
        seen.leaving = Some(LeavingObserved { domain: Some(DomainState::ShutOff), volumes: Vec::new(), registered: true });
        let list = steps(&worker, &seen);
        comes_before(&list, "drain worker-0", "remove worker-0");
        comes_before(&list, "remove worker-0", "unregister worker-0");
        let drain = list.iter().find(|step| step.id == "drain worker-0").expect("there");
        assert_eq!(drain.action, Action::Drain { awaited: false, force: false }, "a machine that is off says nothing");
        seen.leaving = Some(LeavingObserved::default());
        assert_eq!(steps(&worker, &seen).iter().filter(|step| step.id.ends_with("worker-0")).count(), 0, "gone is gone");
    }

    #[test]
    fn only_an_etcd_of_which_nothing_is_left_begins_anew() {
        let plan = samples::plan("ktcw", 3, 0, kvm());
        let volume = |name: &str| VolumeSeen { name: name.to_owned(), capacity: 1, allocation: 1, path: String::new() };
        let pool = |active: bool, volumes: Vec<VolumeSeen>| HostSeen {
            pools: vec![PoolSeen {
                name: plan.storage.pool.clone(),
                uuid: plan.storage.pool_uuid,
                active,
                volumes,
                available: None,
                mark: None,
            }],
            ..HostSeen::default()
        };
        assert!(
            begins_anew(&plan, &HostSeen::default()) && begins_anew(&plan, &pool(true, vec![volume("controller-0-root.qcow2")]))
        );
        assert!(!begins_anew(&plan, &pool(true, vec![volume("controller-2-etcd.qcow2")])));
        assert!(!begins_anew(&plan, &pool(false, Vec::new())), "after the host was rebooted its pools are not active");
    }

    fn plan_without_worker(of: &Plan) -> Plan {
        plan(&of.spec.without(&NodeName::worker(0), false).expect("it can"), &of.resolved)
    }
}
