//! The host edge: machines, networks, pools and volumes, observed and ensured.
//! `apply`, `down` and drills call the `Host` trait; `libvirt.rs` is the only user of `virt`, `fake.rs` keeps state for tests.
//! It makes no choice: names, sizes and addresses come from the plan, and it touches nothing without our mark.

mod errors;
pub mod fake;
pub mod libvirt;
mod owner;
#[cfg(test)]
pub(crate) mod samples;
pub mod subnet;
mod watch;
pub mod xml;

pub use errors::HostError;
pub use owner::{MARK_VOLUME, guard, is_ours, whose};
pub use subnet::{HostRoute, SubnetError, choose_subnet, host_routes};
pub use watch::{CALL, blocking};

use crate::plan::{DomainPlan, NetworkPlan, StoragePlan};
use crate::spec::{ClusterName, NodeName};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Whose a thing is: written into the metadata of every domain and network (and beside every pool), checked before any change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub cluster: ClusterName,
    /// Drawn once per cluster by `store`; tells two clusters of the same name apart.
    pub instance: Uuid,
    /// State directory that owns it, for the message when another one asks.
    pub state_dir: String,
}

/// libvirt's domain states, as far as we tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    Running,
    Paused,
    /// Paused by QEMU because the host could not write (disk full): not an etcd failure.
    PausedIoError,
    ShuttingDown,
    ShutOff,
    Crashed,
}

/// A domain as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainSeen {
    pub name: String,
    pub uuid: Uuid,
    pub state: DomainState,
    /// `None`: not ours.
    pub mark: Option<Mark>,
    /// Node named in our mark.
    pub node: Option<NodeName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSeen {
    pub name: String,
    pub uuid: Uuid,
    pub active: bool,
    pub bridge: Option<String>,
    /// Address ranges it uses.
    pub subnets: Vec<ipnet::Ipv4Net>,
    pub mark: Option<Mark>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSeen {
    pub name: String,
    pub uuid: Uuid,
    pub active: bool,
    /// Listed for active pools of ours (any cluster's, and the image pool); others' are none of our business.
    pub volumes: Vec<VolumeSeen>,
    /// Bytes free on its file system, as of the pool's last refresh; `None` when the pool is not active.
    pub available: Option<u64>,
    pub mark: Option<Mark>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSeen {
    pub name: String,
    /// Bytes as the guest sees it.
    pub capacity: u64,
    /// Bytes taken on the host.
    pub allocation: u64,
    pub path: String,
}

/// Everything libvirt shows, ours and others', at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSeen {
    pub domains: Vec<DomainSeen>,
    pub networks: Vec<NetworkSeen>,
    pub pools: Vec<PoolSeen>,
}

/// Facts about the host behind the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub uri: String,
    pub libvirt_version: String,
    pub qemu_version: String,
    /// Emulator binary libvirt would run for x86_64 q35.
    pub emulator: String,
    /// libvirt lists KVM for x86_64. Not a proof: see `accel`.
    pub kvm_listed: bool,
    pub memory_mib: u64,
    /// What guests could take now: free, buffers and page cache.
    pub free_memory_mib: u64,
    pub cpus: u32,
}

/// An ensured thing was there already, or had to be made or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Unchanged,
    Changed,
}

/// The host, blocking (libvirt is a C library): callers use `spawn_blocking`. Every call is idempotent;
/// every change first checks the mark and refuses with `NotOurs`.
pub trait Host: Send + Sync {
    fn facts(&self) -> Result<HostFacts, HostError>;
    fn observe(&self) -> Result<HostSeen, HostError>;

    /// Defined with our UUID and mark, active, autostarted not (the host's reboot must not start half a cluster).
    fn ensure_network(&self, plan: &NetworkPlan, mark: &Mark) -> Result<Done, HostError>;
    fn remove_network(&self, name: &str, mark: &Mark) -> Result<Done, HostError>;

    /// Both pools built and active; the cluster's own carries the mark.
    fn ensure_pools(&self, plan: &StoragePlan, mark: &Mark) -> Result<Done, HostError>;
    /// A cluster's pool with its volumes and its directory; where somebody has put other volumes into it (`is_ours`), those stay, and
    /// with them the pool and its mark. The shared image pool stays.
    fn remove_pool(&self, name: &str, mark: &Mark) -> Result<Done, HostError>;

    /// Uploads a file into the image pool under a name that contains its digest. An interrupted upload leaves no
    /// volume that looks whole; two programs uploading the same one wait for each other. The pool is everybody's, so no mark.
    fn ensure_image_volume(
        &self,
        plan: &StoragePlan,
        volume: &str,
        format: VolumeFormat,
        file: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Done, HostError>;
    /// Takes an image out of the image pool, for pruning. Overlays that still stand on it break: the caller has looked
    /// whether any cluster uses it.
    fn remove_image_volume(&self, plan: &StoragePlan, volume: &str) -> Result<Done, HostError>;
    /// The image pool itself, when it is empty; `Unchanged` when it is not, or not there.
    fn remove_empty_image_pool(&self, plan: &StoragePlan) -> Result<Done, HostError>;
    /// qcow2 overlay on the image pool's `base` volume. One that is there with another size or base is `Differs`: disks with
    /// data are never made anew behind the user's back.
    fn ensure_overlay(
        &self,
        plan: &StoragePlan,
        volume: &str,
        base: &str,
        size_bytes: u64,
        mark: &Mark,
    ) -> Result<Done, HostError>;
    /// Blank qcow2; `Differs` as for overlays.
    fn ensure_blank(&self, plan: &StoragePlan, volume: &str, size_bytes: u64, mark: &Mark) -> Result<Done, HostError>;
    /// Raw volume with exactly these bytes. What is there is read back and compared, so a half-written one is made anew.
    fn ensure_content(&self, plan: &StoragePlan, volume: &str, bytes: &[u8], mark: &Mark) -> Result<Done, HostError>;
    /// A disk as it was in that snapshot of another cluster's machine, made anew beside it: whole or not at all, without memory and
    /// snapshots. `base` is what it is an overlay of. Only on a libvirt of this computer.
    fn ensure_copy(
        &self,
        from: &StoragePlan,
        to: &StoragePlan,
        volume: &str,
        snapshot: &str,
        base: Option<&str>,
        mark: &Mark,
    ) -> Result<Done, HostError>;
    /// A volume of the cluster's pool.
    fn remove_volume(&self, plan: &StoragePlan, volume: &str, mark: &Mark) -> Result<Done, HostError>;

    /// Defines (validated against libvirt's schema) or re-defines the domain; never restarts a running one.
    fn ensure_domain(&self, plan: &DomainPlan, storage: &StoragePlan, node: &NodeName, mark: &Mark) -> Result<Done, HostError>;
    fn ensure_running(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError>;
    /// Pulls the plug. `Unchanged` when it was off.
    fn power_off(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError>;
    /// ACPI shutdown request; the caller waits for the state.
    fn shutdown(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError>;
    fn suspend(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError>;
    fn resume(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError>;
    /// Names of our snapshots of this machine.
    fn snapshots(&self, domain: &DomainPlan, mark: &Mark) -> Result<Vec<String>, HostError>;
    /// Memory and all writable disks of a paused machine under that name; it stays paused. One that is there is `Unchanged`,
    /// whenever it was made.
    fn ensure_snapshot(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError>;
    /// The machine as it was in that snapshot, paused; also one that is off. What it was doing until now is given up.
    fn revert(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError>;
    /// Removes one snapshot and keeps those made after it. `Unchanged` when it, or the machine, is not there.
    fn remove_snapshot(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError>;
    /// Powers off and undefines with snapshots, managed save and metadata. By name and UUID as observed: `down` must work
    /// when no plan is left. Its disks stay; they go with the pool.
    fn remove_domain(&self, name: &str, uuid: Uuid, mark: &Mark) -> Result<Done, HostError>;

    /// Resident memory of the domain's QEMU, bytes (0 when it is off).
    fn resident_bytes(&self, domain: &DomainPlan) -> Result<u64, HostError>;
    /// The last lines of the serial console's log; empty when the machine never ran. Works on a remote libvirt too.
    fn console_tail(&self, storage: &StoragePlan, domain: &DomainPlan, lines: usize) -> Result<String, HostError>;
    /// libvirt's own XML of everything that carries the mark, by kind and name (`domain lab-worker-0`), without what libvirt itself
    /// calls secret. For people to read.
    fn definitions(&self, mark: &Mark) -> Result<Vec<(String, String)>, HostError>;
    /// The serial console itself, both ways. The machine must be running.
    fn open_console(&self, domain: &DomainPlan, mark: &Mark) -> Result<Arc<dyn Console>, HostError>;
}

/// Hears how far an upload is: bytes done, bytes in all.
pub type Progress<'a> = dyn FnMut(u64, u64) + 'a;

/// An open serial console, blocking: one thread reads while another writes.
pub trait Console: Send + Sync {
    /// Bytes read into `buffer`; 0 when the machine or the connection ended.
    fn read(&self, buffer: &mut [u8]) -> Result<usize, HostError>;
    /// Writes all of `bytes`.
    fn write(&self, bytes: &[u8]) -> Result<(), HostError>;
    /// Ends it; a `read` that waits in another thread returns.
    fn close(&self);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeFormat {
    Qcow2,
    Raw,
}
