//! Whether a snapshot has room: what the machines' memory will take in the pool, against what is free there.
//! `cli` asks before anything is suspended: a disk that fills up stops every machine on it.
//! Pure; sizes come from libvirt, asked by the caller.

use crate::host::HostSeen;
use crate::plan::Plan;
use crate::spec::NodeName;
use std::collections::BTreeMap;

/// Kept free beside the memory, per machine: what it writes from then on is written anew, its old content stays for the snapshot.
const GROWTH_MIB: u64 = 192;
/// Kept free in any case.
const RESERVE_MIB: u64 = 512;

/// What a snapshot may take: the machines' memory, and what they write from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub memory_mib: u64,
    pub growth_mib: u64,
}

/// Of machines of which it is not known how much of their memory they have touched: of all of it.
pub fn at_most(plan: &Plan) -> Room {
    taken(plan, &BTreeMap::new())
}

fn taken(plan: &Plan, resident_bytes: &BTreeMap<NodeName, u64>) -> Room {
    let memory_mib = plan
        .nodes
        .iter()
        .map(|node| {
            // What a machine never touched is not written; QEMU's own memory is not either.
            let all = u64::from(node.domain.memory_mib);
            resident_bytes.get(&node.name).map_or(all, |bytes| (bytes >> 20).min(all))
        })
        .sum();
    Room { memory_mib, growth_mib: GROWTH_MIB * plan.nodes.len() as u64 }
}

/// `Err` says what is needed and what is there. A pool that does not say what is free stands in nobody's way.
pub fn room(plan: &Plan, seen: &HostSeen, resident_bytes: &BTreeMap<NodeName, u64>) -> Result<(), String> {
    let pool = seen.pools.iter().find(|pool| pool.name == plan.storage.pool);
    let Some(free) = pool.and_then(|pool| pool.available).map(|bytes| bytes >> 20) else { return Ok(()) };
    let Room { memory_mib: memory, growth_mib: growth } = taken(plan, resident_bytes);
    let need = memory + growth + RESERVE_MIB;
    if need <= free {
        return Ok(());
    }
    Err(format!(
        "the snapshot may take {need} MiB (memory {memory}, writes after it {growth}, reserve {RESERVE_MIB}), pool {} has {free} MiB free",
        plan.storage.pool
    ))
}
