//! What the user asked for: raw words in, one valid `ClusterSpec` out, or every problem at once.
//! Called by `cli` (flags and `--config`) and by tests; `plan` takes its result as given.
//! It knows nothing of hosts, clocks, files or libvirt, and never looks at the machine it runs on.

mod lineage;
mod names;
mod raw;
mod schema;
mod validate;

pub use lineage::{Leaving, Lineage};
pub use names::{ClusterName, NodeName, Role};
pub use raw::{ConfigError, RawSpec, parse_config};
pub use schema::schema;
pub use validate::{Problem, validate, validate_kept};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Most controllers a cluster may have: etcd's own advice stops at seven members.
pub const MAX_ETCD: u8 = 7;
/// Most workers: the address plan reserves this many slots.
pub const MAX_WORKERS: u8 = 50;
/// Size of the guest image's own disk: a root disk can be no smaller.
pub const BASE_DISK_GIB: u64 = 10;

/// A valid description of a cluster. Every field is within its range; nobody checks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    pub name: ClusterName,
    /// Number of etcd members, 1–7; each is a controller machine. Even only while the cluster grows or shrinks.
    pub etcd: u8,
    /// Controllers (the first ones) that also run the control plane, 1–`etcd`.
    pub control_planes: u8,
    /// Worker machines, 0–50.
    pub workers: u8,
    pub network: NetworkSpec,
    pub machines: MachineSpec,
    pub accel: AccelChoice,
    /// Another guest kernel than the image's own.
    pub kernel: Option<KernelSpec>,
    /// Nodes that came and went since.
    #[serde(default, skip_serializing_if = "Lineage::is_empty")]
    pub lineage: Lineage,
}

/// Addresses the cluster uses. The three ranges never overlap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Machine network, a /24; `None` lets the host choose a free one.
    pub subnet: Option<Ipv4Net>,
    /// No way out of the network, not even NAT.
    pub isolated: bool,
    /// Pod addresses, a /16; every worker gets a /24 of it.
    pub pod_cidr: Ipv4Net,
    /// Service (ClusterIP) addresses, /12 to /24.
    pub service_cidr: Ipv4Net,
}

/// Size of the machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    pub controller_mem_mib: u32,
    pub worker_mem_mib: u32,
    /// Virtual CPUs of every machine, 1–16.
    pub cpus: u8,
    /// Virtual size of the etcd data disk.
    pub etcd_disk_gib: u16,
    /// Virtual size of the root disk (an overlay: only what is written takes room).
    pub root_disk_gib: u16,
}

/// How guests are to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM when a guest has been seen to boot under it, else TCG.
    Auto,
    Kvm,
    Tcg,
}

/// A guest kernel named by the user, as given (the digest is taken when the plan is made).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSpec {
    pub path: PathBuf,
    pub initrd: Option<PathBuf>,
    /// Appended to the command line.
    pub args: Option<String>,
}
