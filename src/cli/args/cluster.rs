//! What a cluster is to be, and the verbs that change it as a whole or node by node.
//! A config file says the same as `SpecArgs`, with the same words; `spec` judges both together.
//! Nothing is decided here but what is optional.

use super::values::{number, within};
use crate::spec::{AccelChoice, NodeName, RawSpec};
use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Args)]
pub struct Up {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
    /// Keep no golden snapshot: `down --keep-golden` will have nothing to keep
    #[arg(long)]
    pub no_golden: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Down {
    /// Keep the golden snapshot that `up` took: the next `up` of the same cluster is a restore. What was written since, all other
    /// snapshots of the machines and an open lab are given up
    #[arg(long)]
    pub keep_golden: bool,
}

#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Print one file of one node: controller-0:/etc/containers/systemd/etcd.container
    #[arg(long, value_name = "NODE:PATH")]
    pub show: Option<String>,
    /// Print the JSON schema of the config file
    #[arg(long)]
    pub config_schema: bool,
}

/// What a cluster is to be. A config file says the same with the same words.
#[derive(Debug, Clone, Default, Args)]
pub struct SpecArgs {
    /// A file with these settings (TOML; flags win)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// etcd members, each a controller machine: 1, 3, 5 or 7 [default: 3]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub etcd: Option<u64>,
    /// How many of them run the control plane [default: all]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub control_planes: Option<u64>,
    /// Worker machines, 0 to 50 [default: 2]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub workers: Option<u64>,
    /// Machine network, a /24 [default: a free one]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<String>,
    /// No way out of the network, not even NAT
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub isolated: Option<bool>,
    /// Pod addresses, a /16 [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// Service addresses [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// Memory of a controller [default: 1280]
    #[arg(long, value_name = "MIB", value_parser = number, allow_negative_numbers = true)]
    pub controller_mem: Option<u64>,
    /// Memory of a worker [default: 1024]
    #[arg(long, value_name = "MIB", value_parser = number, allow_negative_numbers = true)]
    pub worker_mem: Option<u64>,
    /// Virtual CPUs of each machine [default: 1]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub cpus: Option<u64>,
    /// Size of the etcd disk [default: 2]
    #[arg(long, value_name = "GIB", value_parser = number, allow_negative_numbers = true)]
    pub etcd_disk: Option<u64>,
    /// Size of the root disk [default: 10]
    #[arg(long, value_name = "GIB", value_parser = number, allow_negative_numbers = true)]
    pub root_disk: Option<u64>,
    /// auto: KVM if a guest has been seen to boot under it [default: auto]
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot this kernel instead of the image's (ELF vmlinux or bzImage)
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk for --kernel [default: none]
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub kernel_args: Option<String>,
}

/// A path as it is from anywhere: it is recorded with the cluster.
fn from_here(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl SpecArgs {
    pub fn raw(&self, cluster: Option<String>) -> RawSpec {
        RawSpec {
            cluster,
            etcd: self.etcd,
            control_planes: self.control_planes,
            workers: self.workers,
            subnet: self.subnet.clone(),
            isolated: self.isolated,
            pod_cidr: self.pod_cidr.clone(),
            service_cidr: self.service_cidr.clone(),
            controller_mem: self.controller_mem,
            worker_mem: self.worker_mem,
            cpus: self.cpus,
            etcd_disk: self.etcd_disk,
            root_disk: self.root_disk,
            accel: self.accel,
            kernel: self.kernel.as_deref().map(from_here),
            initrd: self.initrd.as_deref().map(from_here),
            kernel_args: self.kernel_args.clone(),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Not this host, but the cluster that is kept on it: what it will need soon
    #[arg(long)]
    pub running: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Stop {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
    /// Also where --node takes the quorum away
    #[arg(long, requires = "node")]
    pub force: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Start {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Pause {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
    /// Also where --node takes the quorum away
    #[arg(long, requires = "node")]
    pub force: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Resume {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub what: NodeWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum NodeWhat {
    /// One more, or several; those that are there keep names and addresses. Etcd members join one after the other, as learners first.
    /// Snapshots of before no longer fit
    Add(NodeAdd),
    /// Take one away: its pods moved, or its member removed, then its machine, disks and keys. Snapshots of before no longer fit
    Remove(NodeRemove),
}

#[derive(Debug, Clone, Args)]
pub struct NodeAdd {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = |text: &str| within::<u8>(text, 1..=50))]
    pub count: u8,
    /// What they are for; an etcd member is a controller
    #[arg(long, value_enum, default_value_t = NodeRole::Worker)]
    pub role: NodeRole,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeRole {
    Worker,
    Etcd,
}

#[derive(Debug, Clone, Args)]
pub struct NodeRemove {
    /// A node of the cluster
    #[arg(value_parser = NodeName::parse)]
    pub node: NodeName,
    /// Also where its pods cannot be moved in time, or nobody would make them anew
    #[arg(long)]
    pub force: bool,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}
