//! A host in memory, for tests of `apply`, `down` and drills: the same rules as libvirt, without machines.
//! It keeps marks, refuses what is not ours, wants pools before volumes and a network before a machine runs on it, and fails when told.
//! It knows nothing of guests: a fake machine that runs answers no SSH.

mod acts;

use super::{Console, DomainState, Done, HostError, HostFacts, Mark, NetworkSeen, guard};
use crate::plan::{DomainPlan, NetworkPlan, StoragePlan};
use crate::spec::NodeName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Resident memory of every running fake machine.
pub const RESIDENT_BYTES: u64 = 512 << 20;

/// When, within a changing call, an injected failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// Nothing was done.
    Before,
    /// It was done, and the caller does not learn it: a crash or a lost connection.
    After,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FakeDomain {
    uuid: Uuid,
    state: DomainState,
    mark: Option<Mark>,
    node: Option<NodeName>,
    /// `None`: foreign.
    plan: Option<(DomainPlan, StoragePlan)>,
    /// Content of memory and disks, as a number that a test sets; each snapshot keeps the one of its moment.
    content: u64,
    snapshots: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FakeNetwork {
    seen: NetworkSeen,
    plan: Option<NetworkPlan>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FakePool {
    uuid: Uuid,
    active: bool,
    mark: Option<Mark>,
    volumes: BTreeMap<String, FakeVolume>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum FakeVolume {
    Image {
        bytes: u64,
    },
    Overlay {
        base: String,
        bytes: u64,
    },
    Blank {
        bytes: u64,
    },
    Content {
        #[serde(with = "packed")]
        bytes: Vec<u8>,
    },
}

impl FakeVolume {
    fn capacity(&self) -> u64 {
        match self {
            FakeVolume::Image { bytes } | FakeVolume::Overlay { bytes, .. } | FakeVolume::Blank { bytes } => *bytes,
            FakeVolume::Content { bytes } => bytes.len() as u64,
        }
    }
}

/// Bytes as base64: a list of numbers would be ten times as long.
mod packed {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Hears of every changing call: its name as in `calls`, whether it is over, and the host.
pub type Witness = dyn Fn(&str, bool, &FakeHost) + Send + Sync;

#[derive(Debug, Default, Serialize, Deserialize)]
struct World {
    domains: BTreeMap<String, FakeDomain>,
    networks: BTreeMap<String, FakeNetwork>,
    pools: BTreeMap<String, FakePool>,
    /// Changing calls so far, by name, in order.
    #[serde(skip)]
    calls: Vec<String>,
    #[serde(skip)]
    strike: Option<(usize, Strike)>,
    #[serde(skip)]
    unreachable: bool,
}

/// The fake. Starts empty; all methods take `&self`, as libvirt's do.
pub struct FakeHost {
    world: Mutex<World>,
    facts: HostFacts,
    witness: Option<Box<Witness>>,
}

impl std::fmt::Debug for FakeHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeHost").field("world", &self.world).field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Default for FakeHost {
    fn default() -> Self {
        FakeHost::new()
    }
}

impl FakeHost {
    /// An empty host with 16 GiB of memory and 8 processors.
    pub fn new() -> FakeHost {
        let facts = HostFacts {
            uri: "fake:///system".to_owned(),
            libvirt_version: "10.0.0".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            emulator: "/usr/bin/qemu-system-x86_64".to_owned(),
            kvm_listed: true,
            memory_mib: 16 << 10,
            free_memory_mib: 12 << 10,
            cpus: 8,
        };
        FakeHost { world: Mutex::default(), facts, witness: None }
    }

    pub fn with_facts(facts: HostFacts) -> FakeHost {
        FakeHost { facts, ..FakeHost::new() }
    }

    /// A host as `saved` left it, that tells `witness` before and after every changing call: one that outlives the process.
    pub fn restored(saved: Option<&str>, witness: Box<Witness>) -> Result<FakeHost, String> {
        let world = saved.map_or_else(|| Ok(World::default()), serde_json::from_str).map_err(|error| error.to_string())?;
        Ok(FakeHost { world: Mutex::new(world), witness: Some(witness), ..FakeHost::new() })
    }

    /// All that is on it, as text for `restored`.
    pub fn saved(&self) -> String {
        serde_json::to_string(&*self.lock()).unwrap_or_default()
    }

    /// The `k`-th changing call from now on (1 is the next) fails; those after it work again.
    pub fn fail_at(&self, k: usize, strike: Strike) {
        let mut world = self.lock();
        world.strike = Some((world.calls.len() + k, strike));
    }

    /// Every call fails as when the daemon is gone, until set back.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.lock().unreachable = unreachable;
    }

    /// Names of all changing calls so far, in order, as in `ensure_domain lab-worker-0`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// A running machine that is not ours.
    pub fn add_foreign_domain(&self, name: &str, uuid: Uuid) {
        let domain = FakeDomain {
            uuid,
            state: DomainState::Running,
            mark: None,
            node: None,
            plan: None,
            content: 0,
            snapshots: BTreeMap::new(),
        };
        self.lock().domains.insert(name.to_owned(), domain);
    }

    pub fn add_foreign_network(&self, name: &str, uuid: Uuid, subnet: ipnet::Ipv4Net) {
        let seen = NetworkSeen {
            name: name.to_owned(),
            uuid,
            active: true,
            bridge: Some("virbr9".to_owned()),
            subnets: vec![subnet],
            mark: None,
        };
        self.lock().networks.insert(name.to_owned(), FakeNetwork { seen, plan: None });
    }

    pub fn add_foreign_pool(&self, name: &str, uuid: Uuid) {
        let pool = FakePool { uuid, active: true, mark: None, volumes: BTreeMap::new() };
        self.lock().pools.insert(name.to_owned(), pool);
    }

    /// Somebody puts a file into a pool that is there.
    pub fn add_foreign_volume(&self, pool: &str, name: &str) {
        if let Some(pool) = self.lock().pools.get_mut(pool) {
            pool.volumes.insert(name.to_owned(), FakeVolume::Blank { bytes: 1 << 20 });
        }
    }

    /// A machine goes into a state by itself: a guest that powered off or crashed, a full disk.
    pub fn set_state(&self, domain: &str, state: DomainState) -> Result<(), HostError> {
        match self.lock().domains.get_mut(domain) {
            Some(found) => {
                found.state = state;
                Ok(())
            }
            None => Err(missing("domain", domain)),
        }
    }

    /// What a machine's memory and disks hold, as one number.
    pub fn set_content_of(&self, domain: &str, content: u64) -> Result<(), HostError> {
        let mut world = self.lock();
        world.domains.get_mut(domain).map(|found| found.content = content).ok_or_else(|| missing("domain", domain))
    }

    pub fn content_of(&self, domain: &str) -> Option<u64> {
        self.lock().domains.get(domain).map(|found| found.content)
    }

    /// The host was rebooted: nothing is started by itself.
    pub fn reboot(&self) {
        let mut world = self.lock();
        world.domains.values_mut().for_each(|domain| domain.state = DomainState::ShutOff);
        world.networks.values_mut().for_each(|network| network.seen.active = false);
        world.pools.values_mut().for_each(|pool| pool.active = false);
    }

    /// Content of a volume made by `ensure_content`.
    pub fn content(&self, pool: &str, volume: &str) -> Option<Vec<u8>> {
        match self.lock().pools.get(pool)?.volumes.get(volume)? {
            FakeVolume::Content { bytes } => Some(bytes.clone()),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&World) -> Result<T, HostError>) -> Result<T, HostError> {
        let world = self.lock();
        world.reachable()?;
        look(&world)
    }

    /// Counts the call, fails it when its turn has come, and changes the world only if the effect succeeds.
    fn change(
        &self,
        call: &'static str,
        name: &str,
        effect: impl FnOnce(&mut World) -> Result<Done, HostError>,
    ) -> Result<Done, HostError> {
        let said = format!("{call} {name}");
        self.tell(&said, false);
        let done = self.changed(call, name, effect);
        self.tell(&said, true);
        done
    }

    fn tell(&self, said: &str, over: bool) {
        if let Some(witness) = &self.witness {
            witness(said, over, self);
        }
    }

    fn changed(
        &self,
        call: &'static str,
        name: &str,
        effect: impl FnOnce(&mut World) -> Result<Done, HostError>,
    ) -> Result<Done, HostError> {
        let mut world = self.lock();
        world.reachable()?;
        world.calls.push(format!("{call} {name}"));
        let turn = world.calls.len();
        let strike = world.strike.filter(|(at, _)| *at == turn).map(|(_, strike)| strike);
        let failure = || HostError::Libvirt {
            action: call,
            kind: "(fake)",
            name: name.to_owned(),
            reason: format!("told to fail at changing call {turn}"),
        };
        match strike {
            Some(Strike::Before) => Err(failure()),
            Some(Strike::After) => effect(&mut world).and(Err(failure())),
            None => effect(&mut world),
        }
    }
}

impl World {
    fn reachable(&self) -> Result<(), HostError> {
        if self.unreachable {
            Err(HostError::Unreachable { uri: "fake:///system".to_owned(), reason: "Connection refused".to_owned() })
        } else {
            Ok(())
        }
    }

    fn domain(&mut self, plan: &DomainPlan, mark: &Mark) -> Result<&mut FakeDomain, HostError> {
        let domain = self.domains.get_mut(&plan.name).ok_or_else(|| missing("domain", &plan.name))?;
        guard("domain", &plan.name, domain.mark.as_ref(), mark)?;
        Ok(domain)
    }

    fn own_pool(&mut self, plan: &StoragePlan, mark: &Mark) -> Result<&mut FakePool, HostError> {
        let pool = self.pools.get_mut(&plan.pool).ok_or_else(|| missing("storage pool", &plan.pool))?;
        guard("storage pool", &plan.pool, pool.mark.as_ref(), mark)?;
        pool.active.then_some(pool).ok_or_else(|| refused("use", "storage pool", &plan.pool, "it is not active"))
    }

    fn image_pool(&mut self, plan: &StoragePlan) -> Result<&mut FakePool, HostError> {
        let pool = self.pools.get_mut(&plan.image_pool).ok_or_else(|| missing("storage pool", &plan.image_pool))?;
        if pool.uuid != plan.image_pool_uuid {
            guard_none("storage pool", &plan.image_pool)?;
        }
        pool.active.then_some(pool).ok_or_else(|| refused("use", "storage pool", &plan.image_pool, "it is not active"))
    }

    fn ensure_pool(&mut self, name: &str, uuid: Uuid, mark: Option<&Mark>) -> Result<Done, HostError> {
        match self.pools.get_mut(name) {
            Some(pool) => {
                match mark {
                    Some(mark) => guard("storage pool", name, pool.mark.as_ref(), mark)?,
                    None if pool.uuid != uuid => guard_none("storage pool", name)?,
                    None => {}
                }
                Ok(if std::mem::replace(&mut pool.active, true) { Done::Unchanged } else { Done::Changed })
            }
            None => {
                self.pools
                    .insert(name.to_owned(), FakePool { uuid, active: true, mark: mark.cloned(), volumes: BTreeMap::new() });
                Ok(Done::Changed)
            }
        }
    }

    /// What libvirt and QEMU would miss when they start it.
    fn startable(&self, plan: &DomainPlan, storage: &StoragePlan) -> Result<(), HostError> {
        let refuse = |reason: String| refused("start", "domain", &plan.name, &reason);
        if !self.networks.get(&plan.network).is_some_and(|network| network.seen.active) {
            return Err(refuse(format!("network '{}' is not active", plan.network)));
        }
        let has = |pool: &str, volume: &str| self.pools.get(pool).is_some_and(|pool| pool.volumes.contains_key(volume));
        let images = [Some(&storage.kernel_volume), storage.initrd_volume.as_ref()];
        let missing_image = images.into_iter().flatten().find(|volume| !has(&storage.image_pool, volume));
        let missing_disk = plan.disks.iter().map(|disk| &disk.volume).find(|volume| !has(&storage.pool, volume));
        match missing_image.or(missing_disk) {
            Some(volume) => Err(refuse(format!("Cannot access storage file '{volume}': No such file or directory"))),
            None => Ok(()),
        }
    }
}

fn missing(kind: &'static str, name: &str) -> HostError {
    HostError::Missing { kind, name: name.to_owned() }
}

fn refused(action: &'static str, kind: &'static str, name: &str, reason: &str) -> HostError {
    HostError::Libvirt { action, kind, name: name.to_owned(), reason: reason.to_owned() }
}

fn guard_none(kind: &'static str, name: &str) -> Result<(), HostError> {
    Err(HostError::NotOurs { kind, name: name.to_owned(), whose: super::whose(None) })
}

fn ensure_disk(pool: &mut FakePool, name: &str, wanted: FakeVolume) -> Result<Done, HostError> {
    match pool.volumes.get(name) {
        Some(found) if *found == wanted => Ok(Done::Unchanged),
        Some(found) => {
            let what = format!("it is {found:?}, not {wanted:?}");
            Err(HostError::Differs { kind: "volume", name: name.to_owned(), what })
        }
        None => {
            pool.volumes.insert(name.to_owned(), wanted);
            Ok(Done::Changed)
        }
    }
}

/// A console that says what was typed.
#[derive(Debug, Default)]
struct Echo(Mutex<Vec<u8>>);

impl Console for Echo {
    fn read(&self, buffer: &mut [u8]) -> Result<usize, HostError> {
        let mut typed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = typed.len().min(buffer.len());
        for (space, byte) in buffer.iter_mut().zip(typed.drain(..count)) {
            *space = byte;
        }
        Ok(count)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), HostError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(())
    }

    fn close(&self) {}
}

#[cfg(test)]
mod tests;
