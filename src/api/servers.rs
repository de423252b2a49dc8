//! What `apply` asks of API servers, as a trait: `Api` asks the real ones, tests answer in their place.
//! `apply` holds it in its `World`, beside the host and the guests.
//! It has no question that `apply` does not ask; `status` and drills talk to `Api` itself.

use super::{Api, ApiError};
use crate::plan::Plan;
use crate::spec::NodeName;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::Ipv4Addr;
use std::time::Duration;

/// An answer that `Err` says is not there (yet), with the reason.
pub type Answer<'a, T = Result<(), ApiError>> = BoxFuture<'a, T>;

/// API servers by address, each question with its deadline.
pub trait ApiServers: Send + Sync {
    /// `/readyz` says ok.
    fn ready(&self, address: Ipv4Addr, deadline: Duration) -> Answer<'_>;
    fn node_ready<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a>;
    /// Controller manager and scheduler have each elected a leader.
    fn leaders_elected(&self, address: Ipv4Addr, deadline: Duration) -> Answer<'_>;
    /// CoreDNS has a ready replica and the witness runs on `workers` nodes.
    fn workloads_ready(&self, address: Ipv4Addr, workers: u32, deadline: Duration) -> Answer<'_>;
    /// Whether all objects of the plan's manifests exist.
    fn addons_present<'a>(&'a self, address: Ipv4Addr, plan: &'a Plan, deadline: Duration) -> Answer<'a, bool>;
    /// Server-side apply of every document of a manifest, in order.
    fn apply<'a>(&'a self, address: Ipv4Addr, manifest: &'a str, deadline: Duration) -> Answer<'a>;
    /// Whether the API knows a node of that name.
    fn registered<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a, Result<bool, ApiError>>;
    /// No new pods for the node.
    fn cordon<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a>;
    /// Asks the node's pods to go; those that are still there, each with why.
    fn evict<'a>(
        &'a self,
        address: Ipv4Addr,
        node: &'a NodeName,
        deadline: Duration,
    ) -> Answer<'a, Result<Vec<String>, ApiError>>;
    /// Removes the node's object.
    fn unregister<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a>;
}

impl ApiServers for Api {
    fn ready(&self, address: Ipv4Addr, deadline: Duration) -> Answer<'_> {
        Api::ready(self, address, deadline).boxed()
    }
    fn node_ready<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a> {
        Api::node_ready(self, address, node, deadline).boxed()
    }
    fn leaders_elected(&self, address: Ipv4Addr, deadline: Duration) -> Answer<'_> {
        Api::leaders_elected(self, address, deadline).boxed()
    }
    fn workloads_ready(&self, address: Ipv4Addr, workers: u32, deadline: Duration) -> Answer<'_> {
        Api::workloads_ready(self, address, workers, deadline).boxed()
    }
    fn addons_present<'a>(&'a self, address: Ipv4Addr, plan: &'a Plan, deadline: Duration) -> Answer<'a, bool> {
        Api::addons_present(self, address, plan, deadline).boxed()
    }
    fn apply<'a>(&'a self, address: Ipv4Addr, manifest: &'a str, deadline: Duration) -> Answer<'a> {
        Api::apply(self, address, manifest, deadline).boxed()
    }
    fn registered<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a, Result<bool, ApiError>> {
        Api::registered(self, address, node, deadline).boxed()
    }
    fn cordon<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a> {
        Api::cordon(self, address, node, deadline).boxed()
    }
    fn evict<'a>(
        &'a self,
        address: Ipv4Addr,
        node: &'a NodeName,
        deadline: Duration,
    ) -> Answer<'a, Result<Vec<String>, ApiError>> {
        Api::evict(self, address, node, deadline).boxed()
    }
    fn unregister<'a>(&'a self, address: Ipv4Addr, node: &'a NodeName, deadline: Duration) -> Answer<'a> {
        Api::unregister(self, address, node, deadline).boxed()
    }
}
