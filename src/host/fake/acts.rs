//! What the fake host does when called: libvirt's rules, written down once more.
//! `FakeHost` counts the calls and injects the failures; this file is the `Host` it shows.
//! It holds no state of its own.

use super::{Echo, FakeDomain, FakeHost, FakeNetwork, FakePool, FakeVolume, RESIDENT_BYTES, ensure_disk, missing, refused};
use crate::host::{
    Console, DomainSeen, DomainState, Done, Host, HostError, HostFacts, HostSeen, MARK_VOLUME, Mark, NetworkSeen, PoolSeen,
    Progress, VolumeFormat, VolumeSeen, guard, is_ours,
};
use crate::plan::{DomainPlan, NetworkPlan, StoragePlan};
use crate::spec::NodeName;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

impl Host for FakeHost {
    fn facts(&self) -> Result<HostFacts, HostError> {
        self.read(|_| Ok(self.facts.clone()))
    }

    fn observe(&self) -> Result<HostSeen, HostError> {
        self.read(|world| {
            let domain = |(name, domain): (&String, &FakeDomain)| DomainSeen {
                name: name.clone(),
                uuid: domain.uuid,
                state: domain.state,
                mark: domain.mark.clone(),
                node: domain.node.clone(),
            };
            let volume = |(name, volume): (&String, &FakeVolume)| VolumeSeen {
                name: name.clone(),
                capacity: volume.capacity(),
                allocation: volume.capacity(),
                path: format!("/fake/{name}"),
            };
            let pool = |(name, pool): (&String, &FakePool)| PoolSeen {
                name: name.clone(),
                uuid: pool.uuid,
                active: pool.active,
                volumes: if pool.active { pool.volumes.iter().map(volume).collect() } else { Vec::new() },
                available: pool.active.then_some(100 << 30),
                mark: pool.mark.clone(),
            };
            Ok(HostSeen {
                domains: world.domains.iter().map(domain).collect(),
                networks: world.networks.values().map(|network| network.seen.clone()).collect(),
                pools: world.pools.iter().map(pool).collect(),
            })
        })
    }

    fn ensure_network(&self, plan: &NetworkPlan, mark: &Mark) -> Result<Done, HostError> {
        self.change("ensure_network", &plan.name, |world| {
            if let Some(other) =
                world.networks.values().find(|other| other.seen.uuid == plan.uuid && other.seen.name != plan.name)
            {
                guard("network", &other.seen.name, other.seen.mark.as_ref(), mark)?;
            }
            if let Some(found) = world.networks.get_mut(&plan.name) {
                guard("network", &plan.name, found.seen.mark.as_ref(), mark)?;
                if found.plan.as_ref() == Some(plan) {
                    return Ok(if std::mem::replace(&mut found.seen.active, true) { Done::Unchanged } else { Done::Changed });
                }
                if found.seen.active && found.seen.subnets != [plan.subnet] {
                    let what = format!("it is active with {:?}", found.seen.subnets);
                    return Err(HostError::Differs { kind: "network", name: plan.name.clone(), what });
                }
            }
            let seen = NetworkSeen {
                name: plan.name.clone(),
                uuid: plan.uuid,
                active: true,
                bridge: Some(plan.bridge.clone()),
                subnets: vec![plan.subnet],
                mark: Some(mark.clone()),
            };
            world.networks.insert(plan.name.clone(), FakeNetwork { seen, plan: Some(plan.clone()) });
            Ok(Done::Changed)
        })
    }

    fn remove_network(&self, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.change("remove_network", name, |world| {
            let Some(found) = world.networks.get(name) else { return Ok(Done::Unchanged) };
            guard("network", name, found.seen.mark.as_ref(), mark)?;
            world.networks.remove(name);
            Ok(Done::Changed)
        })
    }

    fn ensure_pools(&self, plan: &StoragePlan, mark: &Mark) -> Result<Done, HostError> {
        self.change("ensure_pools", &plan.pool, |world| {
            let images = world.ensure_pool(&plan.image_pool, plan.image_pool_uuid, None)?;
            let own = world.ensure_pool(&plan.pool, plan.pool_uuid, Some(mark))?;
            Ok(if [images, own].contains(&Done::Changed) { Done::Changed } else { Done::Unchanged })
        })
    }

    fn remove_pool(&self, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.change("remove_pool", name, |world| {
            let Some(found) = world.pools.get_mut(name) else { return Ok(Done::Unchanged) };
            guard("storage pool", name, found.mark.as_ref(), mark)?;
            if found.volumes.keys().all(|volume| is_ours(volume, mark)) {
                world.pools.remove(name);
                return Ok(Done::Changed);
            }
            let before = found.volumes.len();
            found.volumes.retain(|volume, _| volume == MARK_VOLUME || !is_ours(volume, mark));
            Ok(if found.volumes.len() == before { Done::Unchanged } else { Done::Changed })
        })
    }

    fn ensure_image_volume(
        &self,
        plan: &StoragePlan,
        volume: &str,
        _format: VolumeFormat,
        file: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Done, HostError> {
        let unread = |source| HostError::File { path: file.display().to_string(), source };
        let bytes = std::fs::metadata(file).map_err(unread)?.len();
        self.change("ensure_image_volume", volume, |world| {
            let pool = world.image_pool(plan)?;
            if pool.volumes.contains_key(volume) {
                return Ok(Done::Unchanged);
            }
            progress(0, bytes);
            pool.volumes.insert(volume.to_owned(), FakeVolume::Image { bytes });
            progress(bytes, bytes);
            Ok(Done::Changed)
        })
    }

    fn remove_image_volume(&self, plan: &StoragePlan, volume: &str) -> Result<Done, HostError> {
        self.change("remove_image_volume", volume, |world| match world.image_pool(plan) {
            Err(HostError::Missing { .. }) => Ok(Done::Unchanged),
            pool => Ok(if pool?.volumes.remove(volume).is_some() { Done::Changed } else { Done::Unchanged }),
        })
    }

    fn remove_empty_image_pool(&self, plan: &StoragePlan) -> Result<Done, HostError> {
        self.change("remove_empty_image_pool", &plan.image_pool, |world| {
            let empty = match world.image_pool(plan) {
                Err(HostError::Missing { .. }) => false,
                pool => pool?.volumes.is_empty(),
            };
            if empty {
                world.pools.remove(&plan.image_pool);
            }
            Ok(if empty { Done::Changed } else { Done::Unchanged })
        })
    }

    fn ensure_overlay(
        &self,
        plan: &StoragePlan,
        volume: &str,
        base: &str,
        size_bytes: u64,
        mark: &Mark,
    ) -> Result<Done, HostError> {
        self.change("ensure_overlay", volume, |world| {
            if !world.image_pool(plan)?.volumes.contains_key(base) {
                return Err(missing("volume", base));
            }
            ensure_disk(world.own_pool(plan, mark)?, volume, FakeVolume::Overlay { base: base.to_owned(), bytes: size_bytes })
        })
    }

    fn ensure_blank(&self, plan: &StoragePlan, volume: &str, size_bytes: u64, mark: &Mark) -> Result<Done, HostError> {
        self.change("ensure_blank", volume, |world| {
            ensure_disk(world.own_pool(plan, mark)?, volume, FakeVolume::Blank { bytes: size_bytes })
        })
    }

    fn ensure_content(&self, plan: &StoragePlan, volume: &str, bytes: &[u8], mark: &Mark) -> Result<Done, HostError> {
        self.change("ensure_content", volume, |world| {
            let wanted = FakeVolume::Content { bytes: bytes.to_vec() };
            let before = world.own_pool(plan, mark)?.volumes.insert(volume.to_owned(), wanted.clone());
            Ok(if before == Some(wanted) { Done::Unchanged } else { Done::Changed })
        })
    }

    fn ensure_copy(
        &self,
        from: &StoragePlan,
        to: &StoragePlan,
        volume: &str,
        snapshot: &str,
        base: Option<&str>,
        mark: &Mark,
    ) -> Result<Done, HostError> {
        self.change("ensure_copy", volume, |world| {
            let source = world.pools.get(&from.pool).and_then(|pool| pool.volumes.get(volume)).cloned();
            let source = source.ok_or_else(|| missing("volume", volume))?;
            let overlay = matches!(source, FakeVolume::Overlay { .. });
            if overlay != base.is_some() {
                return Err(refused("copy", "volume", volume, &format!("snapshot {snapshot} has another backing")));
            }
            ensure_disk(world.own_pool(to, mark)?, volume, source)
        })
    }

    fn remove_volume(&self, plan: &StoragePlan, volume: &str, mark: &Mark) -> Result<Done, HostError> {
        self.change("remove_volume", volume, |world| match world.own_pool(plan, mark)?.volumes.remove(volume) {
            Some(_) => Ok(Done::Changed),
            None => Ok(Done::Unchanged),
        })
    }

    fn ensure_domain(&self, plan: &DomainPlan, storage: &StoragePlan, node: &NodeName, mark: &Mark) -> Result<Done, HostError> {
        self.change("ensure_domain", &plan.name, |world| {
            world.own_pool(storage, mark)?;
            world.image_pool(storage)?;
            if let Some((name, other)) = world.domains.iter().find(|(name, other)| other.uuid == plan.uuid && **name != plan.name)
            {
                guard("domain", name, other.mark.as_ref(), mark)?;
            }
            let defined = Some((plan.clone(), storage.clone()));
            let (mut content, mut snapshots) = (0, std::collections::BTreeMap::new());
            let state = match world.domains.get(&plan.name) {
                Some(found) => {
                    (content, snapshots) = (found.content, found.snapshots.clone());
                    guard("domain", &plan.name, found.mark.as_ref(), mark)?;
                    if found.plan == defined {
                        return Ok(Done::Unchanged);
                    }
                    found.state
                }
                None => DomainState::ShutOff,
            };
            let (uuid, mark, node) = (plan.uuid, Some(mark.clone()), Some(node.clone()));
            let domain = FakeDomain { uuid, state, mark, node, plan: defined, content, snapshots };
            world.domains.insert(plan.name.clone(), domain);
            Ok(Done::Changed)
        })
    }

    fn ensure_running(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.change("ensure_running", &domain.name, |world| {
            let (state, defined) = {
                let found = world.domain(domain, mark)?;
                (found.state, found.plan.clone())
            };
            if state == DomainState::Running {
                return Ok(Done::Unchanged);
            }
            if let (DomainState::ShutOff | DomainState::Crashed | DomainState::ShuttingDown, Some((plan, storage))) =
                (state, &defined)
            {
                world.startable(plan, storage)?;
            }
            world.domain(domain, mark)?.state = DomainState::Running;
            Ok(Done::Changed)
        })
    }

    fn power_off(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.change("power_off", &domain.name, |world| {
            let found = world.domain(domain, mark)?;
            let before = std::mem::replace(&mut found.state, DomainState::ShutOff);
            Ok(if matches!(before, DomainState::ShutOff | DomainState::Crashed) { Done::Unchanged } else { Done::Changed })
        })
    }

    /// A fake guest always obeys, at once.
    fn shutdown(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.change("shutdown", &domain.name, |world| {
            let found = world.domain(domain, mark)?;
            match found.state {
                DomainState::ShutOff | DomainState::Crashed => Ok(Done::Unchanged),
                // A paused guest hears nothing.
                DomainState::Paused | DomainState::PausedIoError => Ok(Done::Changed),
                DomainState::Running | DomainState::ShuttingDown => {
                    found.state = DomainState::ShutOff;
                    Ok(Done::Changed)
                }
            }
        })
    }

    fn suspend(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.change("suspend", &domain.name, |world| {
            let found = world.domain(domain, mark)?;
            match found.state {
                DomainState::Running => {
                    found.state = DomainState::Paused;
                    Ok(Done::Changed)
                }
                DomainState::Paused | DomainState::PausedIoError => Ok(Done::Unchanged),
                _ => Err(refused("suspend", "domain", &domain.name, "Requested operation is not valid: domain is not running")),
            }
        })
    }

    fn resume(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.change("resume", &domain.name, |world| {
            let found = world.domain(domain, mark)?;
            match found.state {
                DomainState::Running => Ok(Done::Unchanged),
                DomainState::Paused | DomainState::PausedIoError => {
                    found.state = DomainState::Running;
                    Ok(Done::Changed)
                }
                _ => Err(refused("resume", "domain", &domain.name, "Requested operation is not valid: domain is not running")),
            }
        })
    }

    fn snapshots(&self, domain: &DomainPlan, mark: &Mark) -> Result<Vec<String>, HostError> {
        let mut world = self.lock();
        world.reachable()?;
        Ok(world.domain(domain, mark)?.snapshots.keys().cloned().collect())
    }

    fn ensure_snapshot(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.change("ensure_snapshot", &domain.name, |world| {
            let found = world.domain(domain, mark)?;
            if found.snapshots.contains_key(name) {
                return Ok(Done::Unchanged);
            }
            if found.state != DomainState::Paused {
                return Err(refused("snapshot", "domain", &domain.name, "it is not paused"));
            }
            found.snapshots.insert(name.to_owned(), found.content);
            Ok(Done::Changed)
        })
    }

    fn revert(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.change("revert", &domain.name, |world| {
            let found = world.domain(domain, mark)?;
            let off = matches!(found.state, DomainState::ShutOff | DomainState::Crashed);
            let (defined, content) = (found.plan.clone(), found.snapshots.get(name).copied());
            let content = content.ok_or_else(|| missing("snapshot", &format!("{name} of {}", domain.name)))?;
            if let (true, Some((plan, storage))) = (off, &defined) {
                world.startable(plan, storage)?;
            }
            let found = world.domain(domain, mark)?;
            (found.content, found.state) = (content, DomainState::Paused);
            Ok(Done::Changed)
        })
    }

    fn remove_snapshot(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.change("remove_snapshot", &domain.name, |world| match world.domain(domain, mark) {
            Err(HostError::Missing { .. }) => Ok(Done::Unchanged),
            found => Ok(if found?.snapshots.remove(name).is_some() { Done::Changed } else { Done::Unchanged }),
        })
    }

    fn remove_domain(&self, name: &str, uuid: Uuid, mark: &Mark) -> Result<Done, HostError> {
        self.change("remove_domain", name, |world| {
            let Some(found) = world.domains.get(name) else { return Ok(Done::Unchanged) };
            guard("domain", name, found.mark.as_ref(), mark)?;
            if found.uuid != uuid {
                let what = format!("its UUID is {}, not {uuid}", found.uuid);
                return Err(HostError::Differs { kind: "domain", name: name.to_owned(), what });
            }
            world.domains.remove(name);
            Ok(Done::Changed)
        })
    }

    fn resident_bytes(&self, domain: &DomainPlan) -> Result<u64, HostError> {
        self.read(|world| {
            let found = world.domains.get(&domain.name).ok_or_else(|| missing("domain", &domain.name))?;
            Ok(if matches!(found.state, DomainState::ShutOff | DomainState::Crashed) { 0 } else { RESIDENT_BYTES })
        })
    }

    fn console_tail(&self, storage: &StoragePlan, domain: &DomainPlan, lines: usize) -> Result<String, HostError> {
        self.read(|world| {
            world.pools.get(&storage.pool).ok_or_else(|| missing("storage pool", &storage.pool))?;
            let text = format!("fake console of {}\nlogin:", domain.name);
            Ok(text.lines().rev().take(lines).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"))
        })
    }

    fn definitions(&self, mark: &Mark) -> Result<Vec<(String, String)>, HostError> {
        self.read(|world| {
            let ours = |found: &Option<Mark>| found.as_ref().is_some_and(|found| mark.owns(found));
            let domains = world.domains.iter().filter(|(_, domain)| ours(&domain.mark));
            Ok(domains
                .map(|(name, domain)| (format!("domain {name}"), format!("<domain><uuid>{}</uuid></domain>", domain.uuid)))
                .collect())
        })
    }

    fn open_console(&self, domain: &DomainPlan, mark: &Mark) -> Result<Arc<dyn Console>, HostError> {
        let mut world = self.lock();
        world.reachable()?;
        match world.domain(domain, mark)?.state {
            DomainState::Running => Ok(Arc::new(Echo::default())),
            _ => Err(refused("open the console of", "domain", &domain.name, "it is not running")),
        }
    }
}
