//! Everything `up` would make, decided: machines, addresses, disks, certificates, files, units.
//! `plan(spec, resolved)` is a pure function; `cli` prints its value, `apply` carries it out, `verify` compares with it.
//! No secret is in it, and it knows no clock, RNG, environment, file system or libvirt.

mod addresses;
pub mod certs;
mod files;
pub mod identity;
pub mod render;
#[cfg(test)]
pub(crate) mod samples;
mod storage;
mod units;
pub mod user_data;

pub use addresses::AddressPlan;
pub use certs::{Ca, CertPlan, KubeconfigPlan, Usage};
pub use files::QUADLETS;
pub use storage::{IMAGE_POOL, POOL_PREFIX, StoragePlan, is_disk, is_image};
pub use units::{ELECTIONS, lease_holder};

use crate::spec::{ClusterName, ClusterSpec, Leaving, NodeName, Role};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use uuid::Uuid;

/// What the host settled before the plan could be made. All of it is recorded with the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The machine network, chosen free of host routes and other libvirt networks.
    pub subnet: ipnet::Ipv4Net,
    pub accel: Accel,
    pub image: ImageRef,
    /// Set when `--kernel` was given.
    pub kernel: Option<KernelRef>,
    /// The cluster that this one was forked from: what its machines know of themselves, names and addresses, is that cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork_of: Option<ClusterName>,
}

/// How guests run, as proved by a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Accel {
    Kvm { cpu: CpuModel },
    Tcg,
}

/// The CPU configurations the probe tries under KVM, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    HostPassthrough,
    /// host-passthrough without `arch-capabilities` (some hosts' MSR lists upset QEMU).
    HostPassthroughNoArchCapabilities,
    /// A named model that every x86-64 host of the last decade can give.
    Nehalem,
}

impl CpuModel {
    /// As people, and libvirt, say it.
    pub fn as_str(self) -> &'static str {
        match self {
            CpuModel::HostPassthrough => "host-passthrough",
            CpuModel::HostPassthroughNoArchCapabilities => "host-passthrough without arch-capabilities",
            CpuModel::Nehalem => "Nehalem",
        }
    }
}

/// The guest image a plan was made for: digests, not paths, so that plans compare across machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Digest of the image's inputs, hex.
    pub key: String,
    /// sha256 of the disk, hex.
    pub disk_sha256: String,
    pub kernel_sha256: String,
    pub initrd_sha256: String,
    pub versions: Versions,
}

/// What the image carries; container tags are derived from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// `v1.36.3`
    pub kubernetes: String,
    /// `v3.6.16`
    pub etcd: String,
    pub containerd: String,
    pub coredns: String,
    pub pause: String,
    pub debian: String,
}

/// A kernel named by the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRef {
    pub sha256: String,
    pub initrd_sha256: Option<String>,
    pub args: Option<String>,
}

/// The plan: a value that can be printed, compared and attached to a bug report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub cluster: ClusterName,
    pub spec: ClusterSpec,
    pub resolved: Resolved,
    pub timers: Timers,
    pub network: NetworkPlan,
    pub storage: StoragePlan,
    pub nodes: Vec<NodePlan>,
    /// The node on its way out: what there is of it to be removed. It has no files and no units any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<NodePlan>,
    /// Every certificate, in the order of the table in `certs/`.
    pub certs: Vec<CertPlan>,
    pub kubeconfigs: Vec<KubeconfigPlan>,
    /// Manifests applied to the API once it answers: (file name, text).
    pub addons: Vec<(String, String)>,
}

/// Timers and deadlines in force; TCG runs an order of magnitude slower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    pub etcd_heartbeat_ms: u32,
    pub etcd_election_ms: u32,
    pub lease_duration_s: u32,
    pub renew_deadline_s: u32,
    pub retry_period_s: u32,
    /// API server: seconds that etcd may take to answer before `/livez` and `/readyz` fail. 2 is Kubernetes' default.
    pub etcd_check_s: u32,
    /// keepalived: seconds between advertisements; a silent holder is replaced after three.
    pub vip_interval_s: u32,
    /// keepalived: seconds between looks at the node's own API server; two failed ones give the address away.
    pub vip_check_s: u32,
    /// keepalived: seconds after which a look without an answer counts as failed; a dead server refuses at once.
    pub vip_timeout_s: u32,
    /// Deadlines of the waits of `up`, whole seconds.
    pub boot_deadline_s: u32,
    pub etcd_deadline_s: u32,
    pub apiserver_deadline_s: u32,
    pub node_ready_deadline_s: u32,
    /// Deadline of one verify probe.
    pub probe_deadline_s: u32,
    /// Start control planes one after the other (TCG) instead of all at once.
    pub staged: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// libvirt network name: `ktcw-<cluster>`.
    pub name: String,
    pub uuid: Uuid,
    /// Linux bridge name, at most 15 characters, derived from the cluster's name.
    pub bridge: String,
    pub subnet: ipnet::Ipv4Net,
    pub gateway: Ipv4Addr,
    /// The API's virtual address, moved by keepalived.
    pub vip: Ipv4Addr,
    pub isolated: bool,
    /// The host is not on it: it reaches the machines from a network namespace of the network's name. For forks.
    #[serde(default)]
    pub namespace: bool,
    pub pod_cidr: ipnet::Ipv4Net,
    pub service_cidr: ipnet::Ipv4Net,
    /// First service address: the API inside the cluster.
    pub kubernetes_service: Ipv4Addr,
    pub dns_service: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    pub name: NodeName,
    pub role: Role,
    /// Runs apiserver, controller-manager and scheduler.
    pub control_plane: bool,
    pub uuid: Uuid,
    pub mac: String,
    pub ip: Ipv4Addr,
    /// Workers: the /24 its pods get.
    pub pod_subnet: Option<ipnet::Ipv4Net>,
    pub domain: DomainPlan,
    /// Files cloud-init writes, in order.
    pub files: Vec<FilePlan>,
    /// systemd units the orchestrator starts, in order; after a reboot systemd starts them itself.
    pub units: Vec<String>,
}

/// A libvirt domain: all that its XML says, except the mark of ownership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainPlan {
    /// `<cluster>-<node>`
    pub name: String,
    pub uuid: Uuid,
    pub memory_mib: u32,
    pub cpus: u8,
    pub accel: Accel,
    pub cmdline: String,
    pub disks: Vec<DiskPlan>,
    pub mac: String,
    pub network: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// `vda`, `vdb`, …: virtio-blk, in this order.
    pub target: String,
    /// Volume in the cluster's pool.
    pub volume: String,
    pub kind: DiskKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum DiskKind {
    /// qcow2 overlay on the base volume.
    Root { size_gib: u16 },
    /// The cloud-init ISO, raw, read-only.
    Seed,
    /// Blank qcow2 for etcd; flushes are honoured (never `cache=unsafe`).
    Etcd { size_gib: u16 },
}

/// A file of a node. `Content` keeps secrets out of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePlan {
    pub path: String,
    /// Octal, as in `0600`.
    pub mode: u32,
    pub content: Content,
}

/// Text that can be shown, or the name of something that meets it at apply time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Content {
    Text {
        text: String,
    },
    /// Made by `pki`, looked up by `apply`, never in the plan.
    Pki {
        item: PkiItem,
    },
}

/// One thing the key store can render.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum PkiItem {
    /// A CA's certificate (its key never leaves the host).
    CaCert {
        ca: Ca,
    },
    /// Certificate of a `CertPlan`, by its id.
    Cert {
        id: String,
    },
    Key {
        id: String,
    },
    /// A kubeconfig with its client certificate embedded, by its id.
    Kubeconfig {
        id: String,
    },
    ServiceAccountKey,
    ServiceAccountPublicKey,
    /// The API's EncryptionConfiguration for Secrets at rest.
    EncryptionConfig,
}

impl PkiItem {
    /// Whether it must be readable by its owner alone.
    pub fn is_secret(&self) -> bool {
        matches!(self, PkiItem::Key { .. } | PkiItem::Kubeconfig { .. } | PkiItem::ServiceAccountKey | PkiItem::EncryptionConfig)
    }
}

impl fmt::Display for PkiItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PkiItem::CaCert { ca } => write!(f, "{ca} certificate"),
            PkiItem::Cert { id } => write!(f, "certificate {id}"),
            PkiItem::Key { id } => write!(f, "private key {id}"),
            PkiItem::Kubeconfig { id } => write!(f, "kubeconfig {id}"),
            PkiItem::ServiceAccountKey => f.write_str("service-account signing key"),
            PkiItem::ServiceAccountPublicKey => f.write_str("service-account public key"),
            PkiItem::EncryptionConfig => f.write_str("encryption configuration"),
        }
    }
}

impl Plan {
    pub fn node(&self, name: &NodeName) -> Option<&NodePlan> {
        self.nodes.iter().find(|node| &node.name == name)
    }
    pub fn controllers(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().filter(|node| node.role == Role::Controller)
    }
    pub fn control_planes(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().filter(|node| node.control_plane)
    }
    pub fn workers(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().filter(|node| node.role == Role::Worker)
    }
    /// The quota of every etcd member's store, whole MiB.
    pub fn etcd_quota_mib(&self) -> u32 {
        u32::try_from(files::etcd_quota_bytes(&self.spec.machines) >> 20).unwrap_or(u32::MAX)
    }
    /// Every worker slot's pod network and its next hop, the same for all nodes.
    pub fn pod_routes(&self) -> Vec<(ipnet::Ipv4Net, Ipv4Addr)> {
        AddressPlan::new(self.network.subnet, &self.spec.network).pod_routes()
    }
    /// `https://<ip>:2379` of every member, in order.
    pub fn etcd_endpoints(&self) -> Vec<String> {
        self.controllers().map(|node| format!("https://{}:2379", node.ip)).collect()
    }
}

/// Decides everything. The same spec and the same `resolved` give the same plan, byte for byte.
pub fn plan(spec: &ClusterSpec, resolved: &Resolved) -> Plan {
    let addresses = AddressPlan::new(resolved.subnet, &spec.network);
    let timers = units::timers(&resolved.accel);
    let inside = ClusterSpec { name: resolved.fork_of.as_ref().unwrap_or(&spec.name).clone(), ..spec.clone() };
    let (certs, kubeconfigs) = certs::expand(&inside, &addresses);
    let facts = files::Facts {
        spec: &inside,
        addresses: &addresses,
        timers: &timers,
        versions: &resolved.image.versions,
        certs: &certs,
        kubeconfigs: &kubeconfigs,
    };
    let names = spec.controllers().into_iter().chain(spec.nodes_of(Role::Worker));
    let nodes = names.map(|name| node(&facts, resolved, &spec.name, name)).collect();
    let leaving = spec.lineage.leaving.as_ref().map(|leaving| gone(&facts, resolved, &spec.name, leaving));
    let addons = files::addons(&facts);
    Plan {
        cluster: spec.name.clone(),
        spec: spec.clone(),
        resolved: resolved.clone(),
        network: network(spec, resolved, &addresses),
        storage: storage::of_cluster(spec, resolved),
        nodes,
        leaving,
        addons,
        timers,
        certs,
        kubeconfigs,
    }
}

fn network(spec: &ClusterSpec, resolved: &Resolved, addresses: &AddressPlan) -> NetworkPlan {
    NetworkPlan {
        name: identity::network(&spec.name),
        uuid: identity::uuid(&spec.name, "network"),
        bridge: identity::bridge(&spec.name),
        subnet: addresses.subnet(),
        gateway: addresses.gateway(),
        vip: addresses.vip(),
        isolated: spec.network.isolated,
        namespace: resolved.fork_of.is_some(),
        pod_cidr: spec.network.pod_cidr,
        service_cidr: spec.network.service_cidr,
        kubernetes_service: addresses.kubernetes_service(),
        dns_service: addresses.dns_service(),
    }
}

/// `cluster` is what libvirt knows the machine by; inside it the name of `facts.spec` counts.
fn node(facts: &files::Facts, resolved: &Resolved, cluster: &ClusterName, name: NodeName) -> NodePlan {
    let spec = facts.spec;
    let role = name.role();
    let control_plane = spec.control_plane_nodes().contains(&name);
    let mut disks = vec![
        DiskPlan {
            target: "vda".to_owned(),
            volume: format!("{name}-root.qcow2"),
            kind: DiskKind::Root { size_gib: spec.machines.root_disk_gib },
        },
        DiskPlan { target: "vdb".to_owned(), volume: format!("{name}-seed.iso"), kind: DiskKind::Seed },
    ];
    if role == Role::Controller {
        disks.push(DiskPlan {
            target: "vdc".to_owned(),
            volume: format!("{name}-etcd.qcow2"),
            kind: DiskKind::Etcd { size_gib: spec.machines.etcd_disk_gib },
        });
    }
    let uuid = identity::uuid(cluster, &name.to_string());
    let mac = identity::mac(&spec.name, &name);
    NodePlan {
        role,
        control_plane,
        uuid,
        ip: facts.addresses.node(&name),
        pod_subnet: (role == Role::Worker).then(|| facts.addresses.pods(name.index())),
        domain: DomainPlan {
            name: format!("{cluster}-{name}"),
            uuid,
            memory_mib: match role {
                Role::Controller => spec.machines.controller_mem_mib,
                Role::Worker => spec.machines.worker_mem_mib,
            },
            cpus: spec.machines.cpus,
            accel: resolved.accel.clone(),
            cmdline: cmdline(resolved),
            disks,
            mac: mac.clone(),
            network: format!("ktcw-{cluster}"),
        },
        files: files::of_node(facts, &name, control_plane),
        units: units::of_role(role, control_plane),
        mac,
        name,
    }
}

/// A node that is being removed: its machine and disks, as they were planned.
fn gone(facts: &files::Facts, resolved: &Resolved, cluster: &ClusterName, leaving: &Leaving) -> NodePlan {
    let was = node(facts, resolved, cluster, leaving.node.clone());
    NodePlan { files: Vec::new(), units: Vec::new(), control_plane: leaving.control_plane, ..was }
}

/// `rw` because a minimal image has no fstab to remount the root with.
fn cmdline(resolved: &Resolved) -> String {
    let mut line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet".to_owned();
    if let Some(args) = resolved.kernel.as_ref().and_then(|kernel| kernel.args.as_ref()) {
        line.push(' ');
        line.push_str(args);
    }
    line
}
