//! The lab's API servers: what they know of its workers, and whether they answer, which follows from what runs.
//! `apply` asks them as it asks real ones, each by its address.
//! They answer nothing while etcd has no quorum, and a change may be cut off before the asker learns of it.

use super::Lab;
use crate::api::{ApiError, ApiServers};
use crate::plan::{NodePlan, Plan};
use crate::spec::NodeName;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// A node's object at the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    pub cordoned: bool,
    pub pods: u8,
}

pub(super) struct Servers(pub(super) Arc<Lab>);

impl Servers {
    fn when(&self, holds: bool, what: &str) -> BoxFuture<'_, Result<(), ApiError>> {
        ready(if holds { Ok(()) } else { Err(ApiError::NotYet { what: format!("not yet: {what}") }) }).boxed()
    }

    /// A controller by its address; every other address is the virtual one.
    fn answers(&self, address: Ipv4Addr) -> bool {
        match self.0.plan.control_planes().find(|node| node.ip == address) {
            Some(node) => self.0.serves(node),
            None => address == self.0.plan.network.vip && self.0.vip_answers(),
        }
    }

    fn present(&self) -> bool {
        let inside = self.0.lock();
        self.0.plan.addons.iter().all(|(_, manifest)| inside.manifests.contains(manifest))
    }

    fn joined(&self, node: &NodePlan) -> bool {
        self.0.active(node, "kubelet.service") && !self.0.broken(&format!("ready {}", node.name))
    }
}

impl ApiServers for Servers {
    fn ready(&self, address: Ipv4Addr, _: Duration) -> BoxFuture<'_, Result<(), ApiError>> {
        self.when(self.answers(address), "an API server")
    }
    fn node_ready<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, _: Duration) -> BoxFuture<'a, Result<(), ApiError>> {
        let joined = self.0.plan.node(node).is_some_and(|node| self.joined(node));
        self.when(self.answers(address) && joined, "the node")
    }
    fn leaders_elected(&self, address: Ipv4Addr, _: Duration) -> BoxFuture<'_, Result<(), ApiError>> {
        let somewhere = |unit: &str| self.0.plan.control_planes().any(|node| self.0.active(node, unit));
        let elected = somewhere("kube-controller-manager.service") && somewhere("kube-scheduler.service");
        self.when(self.answers(address) && elected && !self.0.broken("leaders"), "leaders")
    }
    fn workloads_ready(&self, address: Ipv4Addr, workers: u32, _: Duration) -> BoxFuture<'_, Result<(), ApiError>> {
        let all = self.0.plan.workers().filter(|node| self.joined(node)).count() == workers as usize;
        self.when(self.answers(address) && self.present() && all && !self.0.broken("workloads"), "workloads")
    }
    fn addons_present<'a>(&'a self, address: Ipv4Addr, _: &'a Plan, _: Duration) -> BoxFuture<'a, bool> {
        ready(self.answers(address) && self.present()).boxed()
    }
    fn apply<'a>(&'a self, address: Ipv4Addr, manifest: &'a str, _: Duration) -> BoxFuture<'a, Result<(), ApiError>> {
        if !self.answers(address) || self.0.broken("addons") {
            return self.when(false, "the namespace");
        }
        let told = self.0.change("manifest".to_owned(), |inside| {
            inside.manifests.insert(manifest.to_owned());
        });
        self.when(told, "an answer")
    }
    fn registered<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, _: Duration) -> BoxFuture<'a, Result<bool, ApiError>> {
        let known = self.0.lock().registered.contains_key(node);
        ready(if self.answers(address) { Ok(known) } else { Err(ApiError::NotYet { what: "no API".to_owned() }) }).boxed()
    }
    fn cordon<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, _: Duration) -> BoxFuture<'a, Result<(), ApiError>> {
        let told = self.answers(address)
            && self.0.change(format!("cordon {node}"), |inside| {
                if let Some(known) = inside.registered.get_mut(node) {
                    known.cordoned = true;
                }
            });
        self.when(told, "an answer")
    }
    /// Pods take one more look to be gone; those of a budget (more than two) do not go at all.
    fn evict<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, _: Duration) -> BoxFuture<'a, Result<Vec<String>, ApiError>> {
        let Some(known) = self.0.lock().registered.get(node).copied() else { return ready(Ok(Vec::new())).boxed() };
        let refused = ApiError::NotYet { what: "no API".to_owned() };
        if !self.answers(address) {
            return ready(Err(refused)).boxed();
        }
        assert!(known.cordoned, "{node} would be given the next pod while it is emptied");
        if known.pods > 2 {
            return ready(Ok(vec!["default/web may not go yet: its budget".to_owned()])).boxed();
        }
        if known.pods == 0 {
            return ready(Ok(Vec::new())).boxed();
        }
        let told = self.0.change(format!("evict {node}"), |inside| {
            if let Some(known) = inside.registered.get_mut(node) {
                known.pods -= 1;
            }
        });
        ready(if told { Ok(vec!["default/web is ending".to_owned()]) } else { Err(refused) }).boxed()
    }
    /// A kubelet that runs registers its node again.
    fn unregister<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, _: Duration) -> BoxFuture<'a, Result<(), ApiError>> {
        let still = self.0.runs(node);
        let told = self.answers(address)
            && self.0.change(format!("unregister {node}"), |inside| {
                if !still {
                    inside.registered.remove(node);
                }
            });
        self.when(told, "an answer")
    }
}

impl Lab {
    /// What the API knows of its workers.
    pub fn registered(&self) -> BTreeMap<NodeName, Registered> {
        self.lock().registered.clone()
    }

    /// How many pods stand on a worker; more than two do not let themselves be moved.
    pub fn set_pods(&self, node: &NodeName, pods: u8) {
        let mut inside = self.lock();
        inside.registered.get_mut(node).expect("known").pods = pods;
        self.keep(&inside);
    }
}
