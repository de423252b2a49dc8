//! Before anything is made: can this host carry this cluster, and is every name and range free?
//! `cli up` observes and calls `judge`; all problems come at once, with the numbers.
//! Pure: it looks at values that others observed.

use crate::host::libvirt::is_local;
use crate::host::xml::translations_mib;
use crate::host::{DomainSeen, DomainState, HostFacts, HostSeen, Mark, PoolSeen};
use crate::plan::{Accel, DiskKind, NodePlan, Plan};
use crate::snapshot::{Room, at_most};
use std::fmt;

/// One reason not to begin, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub about: &'static str,
    pub message: String,
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  {}", self.about, self.message, self.hint)
    }
}

/// What one machine takes on the host beyond its memory: QEMU's own pages, per machine.
const QEMU_OVERHEAD_MIB: u64 = 96;
/// Written to a root overlay in a first day: journals, container layers, seeds.
const ROOT_GROWTH_MIB: u64 = 1024;
/// Kept free on the host, so that a full disk does not pause every machine.
const DISK_RESERVE_MIB: u64 = 1024;

/// What a machine that runs like this takes beyond its memory; emulation keeps the code it has translated.
pub fn overhead_mib(accel: &Accel) -> u64 {
    QEMU_OVERHEAD_MIB + translations_mib(accel).map_or(0, u64::from)
}

/// All refusals. Machines that already run are not counted twice; `base_mib` is what the base image will take if not uploaded yet.
pub fn judge(
    plan: &Plan,
    facts: &HostFacts,
    seen: &HostSeen,
    mark: Option<&Mark>,
    base_mib: u64,
    free_disk_mib: Option<u64>,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    refusals.extend(elsewhere(facts));
    refusals.extend(memory(plan, facts, seen, mark));
    refusals.extend(disk(plan, seen, mark, base_mib, free_disk_mib));
    refusals.extend(names(plan, seen, mark));
    refusals.extend(ranges(plan, seen));
    refusals
}

/// Machines on another computer are behind its NAT: no SSH from here ends there, and `up` would wait for it in vain.
fn elsewhere(facts: &HostFacts) -> Option<Refusal> {
    (!is_local(&facts.uri)).then(|| Refusal {
        about: "libvirt",
        message: format!("{} is on another computer, whose machines cannot be reached from here", facts.uri),
        hint: "run ktcw-vm on that computer, without --connect".to_owned(),
    })
}

fn memory(plan: &Plan, facts: &HostFacts, seen: &HostSeen, mark: Option<&Mark>) -> Option<Refusal> {
    let ours = |domain: &DomainSeen| owned(mark, domain.mark.as_ref());
    // A paused machine has its memory already.
    let takes = |state| !matches!(state, DomainState::ShutOff | DomainState::Crashed);
    let runs = |name: &str| seen.domains.iter().any(|d| d.name == name && takes(d.state) && ours(d));
    let new: Vec<_> = plan.nodes.iter().filter(|node| !runs(&node.domain.name)).collect();
    let need: u64 = new.iter().map(|node| u64::from(node.domain.memory_mib) + overhead_mib(&node.domain.accel)).sum();
    (need > facts.free_memory_mib).then(|| Refusal {
        about: "memory",
        message: format!(
            "{} machines to start need {need} MiB, the host has {} MiB free of {}",
            new.len(),
            facts.free_memory_mib,
            facts.memory_mib
        ),
        hint: "fewer machines (--etcd, --workers), smaller ones (--controller-mem, --worker-mem), or free memory".to_owned(),
    })
}

fn owned(mark: Option<&Mark>, theirs: Option<&Mark>) -> bool {
    mark.is_some_and(|mark| theirs.is_some_and(|theirs| mark.owns(theirs)))
}

/// Why there may be no room for the golden snapshot that `up` keeps of a cluster whose own disks have room. No refusal: `up` looks
/// again when the machines run, and by then knows how much of their memory they use.
pub fn golden(plan: &Plan, seen: &HostSeen, mark: Option<&Mark>, base_mib: u64, free_disk_mib: Option<u64>) -> Option<String> {
    let Disks { need, free, .. } = disks(plan, seen, mark, base_mib, free_disk_mib)?;
    let Room { memory_mib, growth_mib } = at_most(plan);
    let all = need + memory_mib + growth_mib;
    (need <= free && all > free).then(|| {
        format!(
            "with a golden snapshot the disks may take {all} MiB (memory {memory_mib}, writes after it {growth_mib}), \
             {free} MiB are free: it is kept if there is room then"
        )
    })
}

/// What the disks of a cluster that are to be made will take at most, in MiB.
struct Disks {
    base: u64,
    machines: u64,
    /// Both, and what is kept free beside them: nothing where nothing is to be made.
    need: u64,
    free: u64,
}

/// `None`: nobody knows what is free.
fn disks(plan: &Plan, seen: &HostSeen, mark: Option<&Mark>, base_mib: u64, free_disk_mib: Option<u64>) -> Option<Disks> {
    let pool = |name: &str| seen.pools.iter().find(|pool| pool.name == name);
    let (own, images) = (pool(&plan.storage.pool), pool(&plan.storage.image_pool));
    let has = |pool: Option<&PoolSeen>, volume: &str| pool.is_some_and(|p| p.volumes.iter().any(|v| v.name == volume));
    // A reboot of the host leaves pools inactive, and libvirt shows nothing of what such a one has. A machine is defined after its
    // disks were made, and those stand on the base image.
    let hides = |pool: Option<&PoolSeen>| pool.is_some_and(|pool| !pool.active);
    let defined = |node: &NodePlan| {
        let mut domains = seen.domains.iter().filter(|domain| owned(mark, domain.mark.as_ref()));
        domains.any(|domain| domain.name == node.domain.name)
    };
    let free = own.or(images).and_then(|p| p.available).map(|bytes| bytes >> 20).or(free_disk_mib)?;
    let based = has(images, &plan.storage.base_volume) || (hides(images) && plan.nodes.iter().any(defined));
    let base = if based { 0 } else { base_mib };
    let hidden = hides(own) && own.is_some_and(|own| owned(mark, own.mark.as_ref()));
    let new = plan.nodes.iter().filter(|node| !(hidden && defined(node))).flat_map(|node| &node.domain.disks);
    let machines: u64 = new
        .filter(|disk| !has(own, &disk.volume))
        .map(|disk| match disk.kind {
            DiskKind::Root { .. } => ROOT_GROWTH_MIB,
            DiskKind::Etcd { size_gib } => u64::from(size_gib) << 10,
            DiskKind::Seed => 1,
        })
        .sum();
    let made = base + machines;
    Some(Disks { base, machines, need: if made == 0 { 0 } else { made + DISK_RESERVE_MIB }, free })
}

fn disk(plan: &Plan, seen: &HostSeen, mark: Option<&Mark>, base_mib: u64, free_disk_mib: Option<u64>) -> Option<Refusal> {
    let Disks { base, machines, need, free } = disks(plan, seen, mark, base_mib, free_disk_mib)?;
    (need > free).then(|| Refusal {
        about: "disk",
        message: format!("the disks will take up to {need} MiB (image {base}, machines {machines}, reserve {DISK_RESERVE_MIB}), the pool has {free} MiB free"),
        hint: "free disk space, `ktcw-vm image prune`, or a smaller --etcd-disk".to_owned(),
    })
}

/// A domain, network or pool of our name that is not ours: another state directory's, or a stranger's.
fn names(plan: &Plan, seen: &HostSeen, mark: Option<&Mark>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut check = |kind: &'static str, name: &str, theirs: &Option<Mark>| {
        let ours = theirs.as_ref().is_some_and(|theirs| mark.is_some_and(|m| m.instance == theirs.instance));
        if ours {
            return;
        }
        let (message, hint) = match theirs {
            Some(theirs) => (
                format!(
                    "{kind} {name} belongs to the cluster {} of another state directory, {}",
                    theirs.cluster, theirs.state_dir
                ),
                format!(
                    "use that one (--state-dir {1}), or another name: -c {0}-2; if that directory is gone: ktcw-vm down -c {0} --state-dir {1}",
                    plan.cluster,
                    std::path::Path::new(&theirs.state_dir).parent().unwrap_or(std::path::Path::new("/")).display()
                ),
            ),
            None => (
                format!("{kind} {name} exists and is not of this program"),
                format!("it will not be touched; use another name: -c {}-2", plan.cluster),
            ),
        };
        refusals.push(Refusal { about: "name", message, hint });
    };
    for domain in &seen.domains {
        if plan.nodes.iter().any(|node| node.domain.name == domain.name || node.uuid == domain.uuid) {
            check("machine", &domain.name, &domain.mark);
        }
    }
    for network in seen.networks.iter().filter(|n| n.name == plan.network.name || n.uuid == plan.network.uuid) {
        check("network", &network.name, &network.mark);
    }
    for pool in seen.pools.iter().filter(|p| p.name == plan.storage.pool || p.uuid == plan.storage.pool_uuid) {
        check("pool", &pool.name, &pool.mark);
    }
    // The images' pool is every cluster's and carries no mark: its name and UUID together say that it is this program's.
    let (name, uuid) = (&plan.storage.image_pool, plan.storage.image_pool_uuid);
    for pool in seen.pools.iter().filter(|pool| (pool.name == *name) != (pool.uuid == uuid)) {
        refusals.push(Refusal {
            about: "name",
            message: format!("pool {} exists and is not of this program, which keeps its images in a pool {name}", pool.name),
            hint: format!("it will not be touched; rename it, or remove it yourself: virsh pool-undefine {}", pool.name),
        });
    }
    refusals
}

fn ranges(plan: &Plan, seen: &HostSeen) -> Vec<Refusal> {
    let overlaps = |a: &ipnet::Ipv4Net, b: &ipnet::Ipv4Net| a.contains(b) || b.contains(a);
    // A fork's network is apart from all others: it may have their addresses.
    let others = seen.networks.iter().filter(|network| network.name != plan.network.name && !plan.network.namespace);
    others
        .filter(|network| network.subnets.iter().any(|subnet| overlaps(subnet, &plan.network.subnet)))
        .map(|network| Refusal {
            about: "subnet",
            message: format!("{} is used by libvirt network {}", plan.network.subnet, network.name),
            hint: "another --subnet, or none to have a free one chosen".to_owned(),
        })
        .collect()
}

/// Emulation on an old QEMU corrupts modern guests (double faults after cmpxchg16b): refused, with the way out.
pub fn judge_accel(accel: &Accel, qemu_refusal: Option<String>) -> Option<Refusal> {
    match (accel, qemu_refusal) {
        (Accel::Tcg, Some(message)) => Some(Refusal {
            about: "qemu",
            message,
            hint: "install QEMU 8.2 or later (Debian 12: from bookworm-backports), or run on a host with KVM".to_owned(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
