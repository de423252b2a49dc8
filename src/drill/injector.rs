//! The edge at which faults are done: one trait, implemented for processes in network namespaces and for virtual machines.
//! `run` and `heal` call it; what it reports about a fault must come from looking at reality, never from remembering what it did.
//! It decides nothing: acts and claims come from the script.

use super::act::{Act, Claim};
use super::bound::Timing;
use crate::spec::NodeName;
use futures::FutureExt;
use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    #[error("failed to {act}: {reason}")]
    Act { act: String, reason: String },
    #[error("cannot see whether {what}: {reason}")]
    Look { what: String, reason: String },
    #[error("{act} cannot be done here: {reason}")]
    Unsupported { act: String, reason: String },
}

/// Evidence for or against a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    pub held: bool,
    /// What was seen.
    pub evidence: String,
}

/// Something that a fault has left, as found in reality, and the act that undoes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leftover {
    #[schemars(with = "String")]
    pub node: NodeName,
    /// What it is, as shown to the user.
    pub what: String,
    pub undo: Act,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.what, self.node)
    }
}

/// A process that is to outlive a drill, and which one it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessSeen {
    #[schemars(with = "String")]
    pub node: NodeName,
    pub name: String,
    /// Of this boot and this start; of a machine's process the boot is the first word.
    pub incarnation: String,
}

/// Who can break things, and look.
pub trait Injector: Send + Sync {
    /// Carries out one act on a machine or process (never one of those asked of etcd itself).
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>>;
    /// Looks whether a claim holds now.
    fn prove<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>>;
    /// Whether the acts of an injection are left out, and all else is done: a run without its fault, which must come out invalid.
    /// True of none but those that tests make.
    fn leaves_out_the_fault(&self) -> bool {
        false
    }
    /// Sets timers inside the targets that carry out what they can of `undo` after a while, should nobody else.
    fn arm<'a>(&'a self, undo: &'a [Act], after: Duration) -> BoxFuture<'a, Result<(), InjectError>>;
    /// Removes those timers.
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>>;
    /// Everything that any drill has left, from looking.
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>>;
    /// A run begins: logs are read from here on.
    fn begin(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        async { Ok(()) }.boxed()
    }
    /// Long-lived processes beside etcd that no drill restarts unless it hits their node, each with an identity that a restart
    /// changes.
    fn processes(&self) -> BoxFuture<'_, Result<Vec<ProcessSeen>, InjectError>> {
        async { Ok(vec![]) }.boxed()
    }
    /// Bytes that a store and its restore may take on the disk of the one of `nodes` that has least: what is free there, and what its
    /// own data takes now. `None`: that is not known.
    fn store_room<'a>(&'a self, _nodes: &'a [NodeName]) -> BoxFuture<'a, Result<Option<u64>, InjectError>> {
        async { Ok(None) }.boxed()
    }
    /// Lines of etcd's logs since the run began that no healthy member writes: panics, fatal errors, data loss.
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>>;
    /// Identity of the process of each member, to tell a restarted one: of a machine its boot id, then the start of the unit.
    fn incarnation<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>>;
}

/// Where a fault is recorded before it is injected, and struck out when it is healed.
pub trait FaultLog: Send + Sync {
    /// Durable on return. What the log had of the same run is replaced: others are hit than were to be.
    fn record(&self, fault: &Pending) -> Result<(), FaultLogError>;
    fn clear(&self, run: &str) -> Result<(), FaultLogError>;
    /// Recorded and not struck out: of this process or of one that died.
    fn pending(&self) -> Result<Vec<Pending>, FaultLogError>;
}

#[derive(Debug, thiserror::Error)]
#[error("the record of faults at {path} failed: {reason}")]
pub struct FaultLogError {
    pub path: String,
    pub reason: String,
}

/// A fault that is, or may be, in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub run: String,
    pub drill: String,
    /// What finishes or undoes it, from wherever it was left.
    pub heal: Vec<Act>,
    /// Undoes the preparation.
    pub tidy: Vec<Act>,
}

/// What the cluster under drill is, as the report records it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    pub cluster: String,
    /// `processes`, `kvm` or `tcg`.
    pub acceleration: String,
    pub kubernetes: String,
    pub timing: Timing,
    /// One-minute load of the host at the start, and its number of processors.
    pub host_load: f64,
    pub host_cpus: usize,
}

/// A fault log in memory, for tests and for clusters that die with their process.
#[derive(Default)]
pub struct MemoryLog(std::sync::Mutex<Vec<Pending>>);

impl MemoryLog {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Pending>) -> T) -> T {
        // A panic while the list was held leaves it whole: each change is one call.
        f(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl FaultLog for MemoryLog {
    fn record(&self, fault: &Pending) -> Result<(), FaultLogError> {
        self.with(|all| {
            all.retain(|earlier| earlier.run != fault.run);
            all.push(fault.clone());
        });
        Ok(())
    }
    fn clear(&self, run: &str) -> Result<(), FaultLogError> {
        self.with(|all| all.retain(|fault| fault.run != run));
        Ok(())
    }
    fn pending(&self) -> Result<Vec<Pending>, FaultLogError> {
        Ok(self.with(|all| all.clone()))
    }
}
