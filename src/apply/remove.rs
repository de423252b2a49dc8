//! Takes a cluster away: whatever libvirt shows with our mark, and after the last cluster the images that all shared.
//! `cli down` calls it, also for half-made clusters and ones whose plan is gone.
//! It believes what it observes, not what was planned, and touches nothing without the mark.

use crate::host::{Host, HostError, HostSeen, Mark, blocking, is_ours};
use crate::plan::{IMAGE_POOL, POOL_PREFIX, StoragePlan, is_image};
use std::sync::Arc;

/// What was removed, by kind and name.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    pub domains: Vec<String>,
    pub networks: Vec<String>,
    pub pools: Vec<String>,
    pub volumes: usize,
    /// Pools that stay, because of what somebody has put into them.
    pub kept: Vec<Kept>,
}

/// A pool of the cluster's with other people's volumes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Kept {
    pub pool: String,
    /// Where the volumes are.
    pub paths: Vec<String>,
}

impl Removed {
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty() && self.networks.is_empty() && self.pools.is_empty()
    }
}

/// Removes all that carries `mark`. Twice is once.
pub async fn remove(host: Arc<dyn Host>, mark: &Mark, mut told: impl FnMut(&str)) -> Result<Removed, HostError> {
    let observer = host.clone();
    let seen: HostSeen = blocking(move || observer.observe()).await?;
    let ours = |other: &Option<Mark>| other.as_ref().is_some_and(|m| m.instance == mark.instance && m.cluster == mark.cluster);
    let mut removed = Removed::default();
    for domain in seen.domains.iter().filter(|domain| ours(&domain.mark)) {
        told(&format!("removing machine {}", domain.name));
        let (host, name, uuid, mark) = (host.clone(), domain.name.clone(), domain.uuid, mark.clone());
        blocking(move || host.remove_domain(&name, uuid, &mark)).await?;
        removed.domains.push(domain.name.clone());
    }
    for network in seen.networks.iter().filter(|network| ours(&network.mark)) {
        told(&format!("removing network {}", network.name));
        let (host, name, mark) = (host.clone(), network.name.clone(), mark.clone());
        blocking(move || host.remove_network(&name, &mark)).await?;
        removed.networks.push(network.name.clone());
    }
    for pool in seen.pools.iter().filter(|pool| ours(&pool.mark)) {
        let volumes = pool.volumes.iter().filter(|volume| is_ours(&volume.name, mark)).count();
        told(&format!("removing pool {} with {volumes} volumes", pool.name));
        let (host, name, mark) = (host.clone(), pool.name.clone(), mark.clone());
        blocking(move || host.remove_pool(&name, &mark)).await?;
        removed.volumes += volumes;
        removed.pools.push(pool.name.clone());
    }
    let observer = host.clone();
    let left = blocking(move || observer.observe()).await?;
    for pool in left.pools.iter().filter(|pool| ours(&pool.mark)) {
        let theirs = pool.volumes.iter().filter(|volume| !is_ours(&volume.name, mark));
        removed.kept.push(Kept { pool: pool.name.clone(), paths: theirs.map(|volume| volume.path.clone()).collect() });
        removed.pools.retain(|name| *name != pool.name);
    }
    // A pool of that name with another UUID is somebody else's.
    let shared = StoragePlan::shared();
    let images = left.pools.iter().find(|pool| pool.name == IMAGE_POOL && pool.uuid == shared.image_pool_uuid);
    if let Some(images) = images.filter(|_| !in_use(&left)) {
        told("removing the images, which no cluster uses any more");
        for volume in images.volumes.iter().filter(|volume| is_image(&volume.name)) {
            let (host, name) = (host.clone(), volume.name.clone());
            blocking(move || host.remove_image_volume(&StoragePlan::shared(), &name)).await?;
        }
        blocking(move || host.remove_empty_image_pool(&shared)).await?;
    }
    Ok(removed)
}

/// Whether a cluster is left on this libvirt. Its pool is made before its images are, so one that is just being made counts.
fn in_use(seen: &HostSeen) -> bool {
    seen.pools.iter().any(|pool| pool.name != IMAGE_POOL && (pool.mark.is_some() || pool.name.starts_with(POOL_PREFIX)))
        || seen.domains.iter().any(|domain| domain.mark.is_some())
}
