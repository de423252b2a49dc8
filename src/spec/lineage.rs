//! What has become of a cluster's nodes since it was made: empty slots, members that joined later, who is on the way in or out.
//! `ClusterSpec` carries it; `plan` takes its lists of nodes from here, and verbs that add or remove ask for the next spec.
//! A cluster that is as it was begun has an empty one; no machine, address or clock is known here.

use super::{ClusterSpec, MAX_ETCD, MAX_WORKERS, NodeName, Role};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lineage {
    /// Slots below the highest node in use that hold no node: theirs were removed. Those that stay keep name and address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<NodeName>,
    /// Controllers that joined an etcd that was there. The others founded it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<NodeName>,
    /// The controller that is on its way in, a learner at most. One at a time: each changes what a quorum is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joining: Option<NodeName>,
    /// The node that is on its way out, and no longer counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
}

/// A node being removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    pub node: NodeName,
    /// Whether it ran the control plane.
    #[serde(default)]
    pub control_plane: bool,
    /// Go on where pods cannot be moved away in time.
    #[serde(default)]
    pub force: bool,
}

impl Lineage {
    pub fn is_empty(&self) -> bool {
        *self == Lineage::default()
    }

    /// Whether somebody is on the way in or out.
    pub fn in_motion(&self) -> bool {
        self.joining.is_some() || self.leaving.is_some()
    }
}

/// Slots of a role: addresses are reserved for as many.
fn slots(role: Role) -> u8 {
    match role {
        Role::Controller => MAX_ETCD,
        Role::Worker => MAX_WORKERS,
    }
}

impl ClusterSpec {
    /// The nodes of a role that are there, in order.
    pub fn nodes_of(&self, role: Role) -> Vec<NodeName> {
        let count = match role {
            Role::Controller => self.etcd,
            Role::Worker => self.workers,
        };
        let there = |name: &NodeName| !self.lineage.gaps.contains(name);
        (0..slots(role)).map(|index| NodeName::new(role, index)).filter(there).take(count.into()).collect()
    }

    pub fn controllers(&self) -> Vec<NodeName> {
        self.nodes_of(Role::Controller)
    }

    /// The first controllers, which run the control plane too.
    pub fn control_plane_nodes(&self) -> Vec<NodeName> {
        let mut nodes = self.controllers();
        nodes.truncate(self.control_planes.into());
        nodes
    }

    /// This many of a role: empty slots are filled first, then those after the last. Fewer than there are: the last ones go.
    /// A controller that comes to a running etcd is not yet one of it: `path` brings them in one by one.
    fn sized(&self, role: Role, count: u8) -> Result<ClusterSpec, String> {
        let mut spec = self.clone();
        let now = match role {
            Role::Controller => std::mem::replace(&mut spec.etcd, count),
            Role::Worker => std::mem::replace(&mut spec.workers, count),
        };
        // The control plane runs on the first controllers: one that comes before them would move it.
        let fills = role == Role::Worker || self.control_planes == self.etcd;
        if fills {
            for _ in now..count {
                let first = spec.lineage.gaps.iter().position(|gap| gap.role() == role);
                first.map(|at| spec.lineage.gaps.remove(at));
            }
        }
        if role == Role::Controller && self.control_planes == self.etcd {
            spec.control_planes = count;
        }
        if spec.nodes_of(role).len() < count.into() {
            return Err(format!("there are {} slots for a {role}, and none is free", slots(role)));
        }
        Ok(spec)
    }

    /// The same cluster with `etcd` and `workers` nodes and this many control planes, keeping the names of those that stay.
    pub(super) fn resized(&self, wanted: &ClusterSpec) -> Result<ClusterSpec, String> {
        let sized = self.sized(Role::Controller, wanted.etcd)?.sized(Role::Worker, wanted.workers)?;
        Ok(ClusterSpec { lineage: sized.lineage, ..wanted.clone() })
    }

    /// One more of a role.
    pub fn with_one_more(&self, role: Role) -> Result<ClusterSpec, String> {
        let now = self.nodes_of(role).len();
        let full = || format!("a cluster has at most {} {role}s", slots(role));
        let count = u8::try_from(now + 1).ok().filter(|count| *count <= slots(role)).ok_or_else(full)?;
        self.sized(role, count)
    }

    /// Without this node, which is on its way out from now on. `Err`: why it cannot go.
    pub fn without(&self, node: &NodeName, force: bool) -> Result<ClusterSpec, String> {
        let role = node.role();
        let nodes = self.nodes_of(role);
        if !nodes.contains(node) {
            return Err(format!("there is no {node}"));
        }
        if self.lineage.in_motion() {
            return Err("another node is on its way".to_owned());
        }
        let control_plane = self.control_plane_nodes().contains(node);
        if role == Role::Controller && nodes.len() == 1 {
            return Err(format!("{node} is the only etcd member: everything the cluster knows is there"));
        }
        if control_plane && self.control_planes == 1 {
            return Err(format!("{node} runs the only control plane"));
        }
        let mut spec = self.clone();
        match role {
            Role::Controller => spec.etcd -= 1,
            Role::Worker => spec.workers -= 1,
        }
        if control_plane {
            spec.control_planes -= 1;
        }
        let lineage = &mut spec.lineage;
        lineage.gaps.push(node.clone());
        lineage.gaps.sort();
        lineage.joined.retain(|other| other != node);
        lineage.leaving = Some(Leaving { node: node.clone(), control_plane, force });
        // Slots after the last node are free without being gaps.
        let last = nodes.iter().rev().find(|other| *other != node).cloned();
        lineage.gaps.retain(|gap| gap.role() != role || last.as_ref().is_some_and(|last| gap < last));
        Ok(spec)
    }

    /// The same with every controller among the founders: for an etcd that begins anew, because nothing of it is left.
    pub fn founded(&self) -> ClusterSpec {
        let mut spec = self.clone();
        spec.lineage.joined.clear();
        spec.lineage.joining = None;
        spec
    }

    /// When whoever was on the way has arrived or is gone.
    pub fn settled(&self) -> ClusterSpec {
        let mut spec = self.clone();
        spec.lineage.leaving = None;
        if let Some(node) = spec.lineage.joining.take() {
            spec.lineage.joined.push(node);
            spec.lineage.joined.sort();
        }
        spec
    }

    /// The specs to go through from this one to `target`, which is one that was asked of it: whoever is on the way first, then
    /// one who leaves, or one controller after the other, each having joined before the next comes. Never empty.
    pub fn path(&self, target: &ClusterSpec) -> Vec<ClusterSpec> {
        let mut path = Vec::new();
        let mut now = self.clone();
        let node = |spec: &ClusterSpec| spec.lineage.leaving.as_ref().map(|leaving| leaving.node.clone());
        let begun = node(self).is_some() && node(self) == node(target);
        if begun {
            // It may have been given more force.
            now.lineage.leaving.clone_from(&target.lineage.leaving);
        }
        if now.lineage.in_motion() {
            path.push(now.clone());
            now = now.settled();
        }
        if !begun && node(target).is_some() {
            path.push(target.clone());
            return path;
        }
        let there = now.controllers();
        let new: Vec<NodeName> = target.controllers().into_iter().filter(|node| !there.contains(node)).collect();
        for (i, node) in new.iter().enumerate() {
            let Ok(mut next) = now.with_one_more(Role::Controller) else { break };
            next.lineage.joining = Some(node.clone());
            next.control_planes = target.control_planes.min(next.etcd);
            if i + 1 == new.len() {
                // Workers come with the last of them.
                next = ClusterSpec { lineage: Lineage { gaps: target.lineage.gaps.clone(), ..next.lineage }, ..target.clone() };
            }
            path.push(next.clone());
            now = next.settled();
        }
        if new.is_empty() {
            let lineage = Lineage { gaps: target.lineage.gaps.clone(), ..now.lineage.clone() };
            let last = ClusterSpec { lineage, ..target.clone() };
            if path.is_empty() || last != now {
                path.push(last);
            }
        }
        path
    }

    /// What is wrong with a lineage that was read from a file.
    pub(super) fn lineage_problem(&self) -> Option<String> {
        let Lineage { gaps, joined, joining, leaving } = &self.lineage;
        let controllers = self.controllers();
        let ordered = |names: &[NodeName]| names.windows(2).all(|pair| pair[0] < pair[1]);
        for role in [Role::Controller, Role::Worker] {
            let count = if role == Role::Controller { self.etcd } else { self.workers };
            let nodes = self.nodes_of(role);
            if nodes.len() != usize::from(count) {
                return Some(format!("{count} {role}s do not fit beside the empty slots"));
            }
            if gaps.iter().any(|gap| gap.role() == role && nodes.last().is_none_or(|last| gap > last)) {
                return Some(format!("an empty slot after the last {role}"));
            }
        }
        if !ordered(gaps) || !ordered(joined) {
            return Some("lists of nodes that are not in order".to_owned());
        }
        if joined.iter().chain(joining).any(|node| !controllers.contains(node)) {
            return Some("a member that joined is not one of the controllers".to_owned());
        }
        if joining.as_ref().is_some_and(|node| joined.contains(node)) {
            return Some("a member is on its way in and has joined".to_owned());
        }
        match leaving {
            Some(leaving) if self.nodes_of(leaving.node.role()).contains(&leaving.node) => {
                Some(format!("{} is on its way out and counted", leaving.node))
            }
            Some(leaving) if leaving.node.index() >= slots(leaving.node.role()) => {
                Some(format!("{} was never one of the cluster's nodes", leaving.node))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{RawSpec, validate, validate_kept};
    use proptest::prelude::*;

    fn spec(etcd: u64, workers: u64) -> ClusterSpec {
        validate(&RawSpec { etcd: Some(etcd), workers: Some(workers), ..RawSpec::default() }).expect("valid")
    }

    fn names(spec: &ClusterSpec, role: Role) -> Vec<u8> {
        spec.nodes_of(role).iter().map(NodeName::index).collect()
    }

    #[test]
    fn who_stays_keeps_its_name_and_the_next_fills_the_gap() {
        let two = spec(3, 3).without(&NodeName::worker(1), false).expect("gone");
        assert_eq!(names(&two, Role::Worker), [0, 2]);
        assert_eq!(two.lineage.leaving.as_ref().map(|l| l.node.clone()), Some(NodeName::worker(1)));
        let two = two.settled();
        let three = two.with_one_more(Role::Worker).expect("room");
        assert_eq!((names(&three, Role::Worker), three.lineage.is_empty()), (vec![0, 1, 2], true));
        let last = spec(3, 3).without(&NodeName::worker(2), false).expect("gone").settled();
        assert!(last.lineage.is_empty(), "a slot after the last one is no gap");
        let none = spec(1, 1).without(&NodeName::worker(0), false).expect("gone").settled();
        assert_eq!((none.workers, none.lineage.is_empty()), (0, true));
    }

    #[test]
    fn controllers_come_one_at_a_time_and_are_learners_first() {
        let (three, five) = (spec(3, 1), spec(5, 2));
        let target = validate_kept(&RawSpec::from(&five), Some(&three)).expect("valid");
        let path = three.path(&target);
        let joining: Vec<_> = path.iter().map(|spec| (spec.etcd, spec.workers, spec.lineage.joining.clone())).collect();
        assert_eq!(joining, [(4, 1, Some(NodeName::controller(3))), (5, 2, Some(NodeName::controller(4)))]);
        assert_eq!(path[1].lineage.joined, [NodeName::controller(3)]);
        assert_eq!(path[1].control_planes, 5, "all of them run the control plane, as before");
        // Cut off in the middle: whoever was on the way arrives first.
        let again = path[0].path(&validate_kept(&RawSpec::from(&five), Some(&path[0])).expect("valid"));
        assert_eq!(again, path);
        // One becomes three by way of two.
        let one = spec(1, 0);
        let sizes: Vec<u8> = one
            .path(&validate_kept(&RawSpec { etcd: Some(3), ..RawSpec::from(&one) }, Some(&one)).expect("valid"))
            .iter()
            .map(|s| s.etcd)
            .collect();
        assert_eq!(sizes, [2, 3]);
        assert_eq!(three.path(&three), std::slice::from_ref(&three), "nothing to do is one step");
    }

    #[test]
    fn the_last_of_a_kind_cannot_go() {
        assert!(spec(1, 1).without(&NodeName::controller(0), true).expect_err("refused").contains("only etcd member"));
        let raw = RawSpec { etcd: Some(3), control_planes: Some(1), ..RawSpec::default() };
        let one_plane = validate(&raw).expect("valid");
        assert!(one_plane.without(&NodeName::controller(0), true).expect_err("refused").contains("only control plane"));
        let less = one_plane.without(&NodeName::controller(1), false).expect("a member without one");
        assert_eq!(less.control_plane_nodes(), [NodeName::controller(0)]);
        let settled = less.settled();
        // The control plane would move to a controller that comes before it: it goes behind.
        assert_eq!(names(&settled.with_one_more(Role::Controller).expect("room"), Role::Controller), [0, 2, 3]);
        assert!(spec(3, 1).without(&NodeName::worker(4), false).is_err());
    }

    #[test]
    fn an_even_size_is_kept_and_not_chosen() {
        let four = spec(3, 0).with_one_more(Role::Controller).expect("room").settled();
        let raw = RawSpec::from(&four);
        assert!(validate(&raw).is_err());
        assert_eq!(validate_kept(&raw, Some(&four)).expect("it is what it is"), four);
        let two = RawSpec { etcd: Some(2), ..raw };
        assert!(validate_kept(&two, Some(&four)).is_err());
    }

    proptest! {
        /// Whatever was added and removed: what stays keeps its name, and the spec can be read back.
        #[test]
        fn any_history_of_nodes_is_a_valid_spec(moves in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u8..9), 0..40)) {
            let mut now = spec(3, 2);
            for (add, worker, index) in moves {
                let role = if worker { Role::Worker } else { Role::Controller };
                let before = now.nodes_of(role);
                let next = if add { now.with_one_more(role) } else { now.without(&NodeName::new(role, index), false) };
                let Ok(next) = next else { continue };
                let after = next.nodes_of(role);
                let same = before.iter().filter(|name| after.contains(name)).count();
                prop_assert_eq!(same, before.len().min(after.len()));
                prop_assert_eq!(next.lineage_problem(), None);
                prop_assert_eq!(validate_kept(&RawSpec::from(&next), Some(&next)).expect("valid"), next.clone());
                now = next.settled();
                prop_assert_eq!(now.lineage_problem(), None);
            }
        }
    }
}
