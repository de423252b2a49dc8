//! Drills on machines: acts and claims carried out over SSH and libvirt, Kubernetes as drills see it, faults in the journal.
//! `cli` makes a `Machines`, a `Site`, an `ApiProbes` and a `JournalLog` and hands them to `drill`.
//! It chooses nothing and judges nothing: what to do comes from the script, what is seen goes into the record.

mod data;
mod guest;
pub mod kube;
pub mod log;
mod machine;
mod probe;
pub mod shell;
pub mod site;

use crate::drill::act::{Act, Claim};
use crate::drill::catalogue::Process;
use crate::drill::injector::{InjectError, Injector, Leftover, ProcessSeen, Proof};
use crate::guest::{Cmd, Guest, Output, run_ok};
use crate::host::{Host, Mark};
use crate::pki::Keyring;
use crate::plan::{NodePlan, Plan};
use crate::spec::{NodeName, Role};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The cluster's machines, as drills break them.
pub struct Machines {
    pub plan: Arc<Plan>,
    pub host: Arc<dyn Host>,
    pub guest: Arc<dyn Guest>,
    pub mark: Mark,
    pub keyring: Arc<Keyring>,
    /// This computer's clock: guests' clocks are put back to it.
    pub clock: fn() -> Timestamp,
    /// Where each member's log stood when the run began: it is read from there on.
    pub logs_from: Mutex<BTreeMap<NodeName, String>>,
    /// Machines that were switched on, until their clocks are set: they come up with whole seconds.
    pub switched_on: Mutex<BTreeSet<NodeName>>,
    /// Held by the one call to libvirt about a machine that is under way.
    pub turns: Mutex<BTreeMap<NodeName, Arc<tokio::sync::Mutex<()>>>>,
}

impl Machines {
    fn node(&self, name: &NodeName) -> Result<&NodePlan, String> {
        self.plan.node(name).ok_or_else(|| format!("the cluster has no node {name}"))
    }

    fn switched_on(&self) -> MutexGuard<'_, BTreeSet<NodeName>> {
        // Each change is one call: a panic while it was held leaves it whole.
        self.switched_on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logs_from(&self) -> MutexGuard<'_, BTreeMap<NodeName, String>> {
        self.logs_from.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One script on a node may take so long.
    fn deadline(&self) -> Duration {
        Duration::from_secs(u64::from(self.plan.timers.probe_deadline_s))
    }

    /// A script that must succeed.
    async fn on(&self, node: &NodeName, script: String) -> Result<Output, String> {
        self.within(self.deadline(), node, script).await
    }

    /// The same with a deadline of its own.
    async fn within(&self, deadline: Duration, node: &NodeName, script: String) -> Result<Output, String> {
        run_ok(&*self.guest, node, Cmd::script(script, deadline)).await.map_err(|error| error.to_string())
    }

    async fn act(&self, act: &Act) -> Result<(), String> {
        match act {
            Act::Suspend { .. } | Act::Resume { .. } | Act::PowerOff { .. } | Act::PowerOn { .. } => self.machine(act).await,
            Act::SkewClock { .. } | Act::SetClock { .. } => self.set_clock(act).await,
            Act::ExpireCert { node, seconds } => self.expire_cert(node, *seconds).await,
            Act::RenewCert { node } => self.renew_cert(node).await,
            Act::RestoreData { nodes, snapshot } => self.restore(nodes, snapshot).await,
            other => self.in_guest(other).await,
        }
    }
}

impl Injector for Machines {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        let failed = |reason: String| InjectError::Act { act: act.to_string(), reason };
        async move { self.act(act).await.map_err(failed) }.boxed()
    }

    fn prove<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        let blind = |reason: String| InjectError::Look { what: claim.to_string(), reason };
        async move { self.look(claim).await.map_err(blind) }.boxed()
    }

    fn arm<'a>(&'a self, undo: &'a [Act], after: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        async move {
            let armed = join_all(self.plan.nodes.iter().map(|node| async {
                let Some(script) = shell::arm(undo, &node.name, after) else { return Ok(()) };
                self.on(&node.name, script).await.map(|_| ())
            }));
            let failed = |reason: String| InjectError::Act { act: "arm the timers that heal".to_owned(), reason };
            armed.await.into_iter().collect::<Result<Vec<()>, String>>().map(|_| ()).map_err(failed)
        }
        .boxed()
    }

    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        async move {
            let all = self.plan.nodes.iter().map(|node| self.on(&node.name, shell::disarm()));
            let failed = |reason: String| InjectError::Act { act: "remove the timers that heal".to_owned(), reason };
            join_all(all).await.into_iter().collect::<Result<Vec<Output>, String>>().map(|_| ()).map_err(failed)
        }
        .boxed()
    }

    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        let blind = |reason: String| InjectError::Look { what: "an earlier fault has left anything".to_owned(), reason };
        async move { self.all_leftovers().await.map_err(blind) }.boxed()
    }

    fn begin(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        async move {
            let all = join_all(self.plan.controllers().map(|node| self.on(&node.name, shell::log_cursor()))).await;
            let blind = |reason: String| InjectError::Look { what: "etcd's logs can be read".to_owned(), reason };
            let mut from = BTreeMap::new();
            for (node, output) in self.plan.controllers().zip(all) {
                from.insert(node.name.clone(), output.map_err(blind)?.stdout_text().trim().to_owned());
            }
            *self.logs_from() = from;
            Ok(())
        }
        .boxed()
    }

    /// Servers of the API and kubelets. Controller-manager and scheduler are not among them: they end themselves, rightly, when
    /// they cannot renew their leases.
    fn processes(&self) -> BoxFuture<'_, Result<Vec<ProcessSeen>, InjectError>> {
        async move {
            let process = |node: &NodePlan| match node.role {
                Role::Worker => Some(Process::Kubelet),
                Role::Controller => node.control_plane.then_some(Process::KubeApiserver),
            };
            let asked = self.plan.nodes.iter().filter_map(|node| Some((&node.name, process(node)?)));
            let seen = join_all(asked.map(|(node, process)| async move {
                let text = self.on(node, shell::incarnation_of(process.as_str())).await?.stdout_text();
                let incarnation = text.split_whitespace().collect::<Vec<_>>().join(" ");
                Ok(ProcessSeen { node: node.clone(), name: process.to_string(), incarnation })
            }));
            let blind = |reason: String| InjectError::Look { what: "other processes are the same".to_owned(), reason };
            seen.await.into_iter().collect::<Result<Vec<ProcessSeen>, String>>().map_err(blind)
        }
        .boxed()
    }

    fn store_room<'a>(&'a self, nodes: &'a [NodeName]) -> BoxFuture<'a, Result<Option<u64>, InjectError>> {
        let blind = |reason: String| InjectError::Look { what: "etcd's disks have room for a restore".to_owned(), reason };
        async move {
            let asked = join_all(nodes.iter().map(|node| self.room_on(node))).await;
            let all = asked.into_iter().collect::<Result<Vec<u64>, String>>().map_err(blind)?;
            Ok(all.into_iter().min())
        }
        .boxed()
    }

    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        async move {
            let from = self.logs_from().clone();
            let asked = self.plan.controllers().map(|node| {
                let cursor = from.get(&node.name).cloned();
                async move {
                    let cursor = cursor.ok_or_else(|| format!("{}: where its log stood is not known", node.name))?;
                    let text = self.on(&node.name, shell::alarming_logs(&cursor)).await?.stdout_text();
                    logged(&node.name, &text)
                }
            });
            let blind = |reason: String| InjectError::Look { what: "etcd's logs are quiet".to_owned(), reason };
            let all = join_all(asked).await.into_iter().collect::<Result<Vec<Vec<String>>, String>>();
            Ok(all.map_err(blind)?.concat())
        }
        .boxed()
    }

    fn incarnation<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        async move {
            let blind = |reason: String| InjectError::Look { what: format!("which etcd runs on {node}"), reason };
            let text = self.on(node, shell::incarnation_of("etcd")).await.map_err(blind)?.stdout_text();
            Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        .boxed()
    }
}

/// What the sifted log says, by its node; an answer without its last line was cut off, and tells nothing.
fn logged(node: &NodeName, text: &str) -> Result<Vec<String>, String> {
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.pop() {
        Some(last) if last.strip_prefix("read ").is_some_and(|count| count.parse::<u64>().is_ok()) => {
            Ok(lines.into_iter().map(|line| format!("{node}: {line}")).collect())
        }
        other => Err(format!("{node}: its log was cut off after {:?}", other.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests;
