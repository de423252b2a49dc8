//! The real host: machines, networks and volumes through libvirt's C library, local or remote.
//! `cli` connects it and hands it on as `dyn Host`; this module and the files below it are the only users of `virt`.
//! It makes no choice and keeps no state: every call looks at what libvirt shows, checks the mark, and does what is missing.

mod connection;
mod console;
mod copies;
mod domains;
mod facts;
mod networks;
mod pools;
mod snapshots;
mod transfer;
mod volumes;

use super::{
    Console, Done, Host, HostError, HostFacts, HostSeen, Mark, Progress, VolumeFormat,
    watch::{self, under_way},
    xml::{self, Layout},
};
use crate::netns::{Namespace, NetnsError};
use crate::plan::{DomainPlan, NetworkPlan, StoragePlan};
use crate::spec::NodeName;
use connection::Connection;
pub use connection::is_local;
pub use facts::fast_firmware;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use virt::connect::Connect;

/// A connection to one libvirt. Blocking and thread-safe; a connection lost in between is made again.
pub struct LibvirtHost {
    connection: Connection,
    /// Directory under which pools are made; `None`: libvirt's own place for images.
    pool_root: Option<PathBuf>,
    /// How long an unfinished image may stand still before somebody else's upload of it is given up.
    abandoned: Duration,
}

/// The libvirt of the whole computer.
const SYSTEM: &str = "qemu:///system";

impl LibvirtHost {
    /// Connects to `uri`, else to `LIBVIRT_DEFAULT_URI`, else to the local system's: libvirt itself would take an ordinary user's
    /// session, where there are no networks. `Unreachable` says why not, its hint what to do.
    pub fn connect(uri: Option<&str>) -> Result<LibvirtHost, HostError> {
        let pool_root = std::env::var_os("KTCW_POOL_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let named = std::env::var_os("LIBVIRT_DEFAULT_URI").is_some_and(|uri| !uri.is_empty());
        let uri = uri.or((!named).then_some(SYSTEM));
        Ok(LibvirtHost { connection: Connection::open(uri)?, pool_root, abandoned: volumes::ABANDONED })
    }

    /// Makes new pools under this directory of libvirt's machine, instead of `KTCW_POOL_DIR` or libvirt's own directory
    /// for images. Pools that exist stay where they are.
    pub fn with_pool_root(mut self, root: Option<PathBuf>) -> LibvirtHost {
        self.pool_root = root;
        self
    }

    /// Gives up another one's upload of an image that has stood still for this long, and not for a minute: for tests.
    pub fn with_abandoned_after(mut self, abandoned: Duration) -> LibvirtHost {
        self.abandoned = abandoned;
        self
    }

    /// The URI as libvirt resolved it.
    pub fn uri(&self) -> &str {
        self.connection.uri()
    }

    /// libvirt runs on this machine: its paths, routes and emulator are ours to look at.
    pub fn is_local(&self) -> bool {
        is_local(self.uri())
    }

    /// MiB free where pools are made, before there is a pool to ask. `None` when libvirt is on another machine.
    pub fn free_disk_mib(&self) -> Option<u64> {
        self.is_local().then(|| pools::free_mib_at(&self.pool_root())).flatten()
    }

    /// A call by its name, in the time that most may take.
    fn call<T>(&self, what: &'static str, effect: impl FnMut(&Connect) -> Result<T, HostError>) -> Result<T, HostError> {
        under_way(what, self.uri(), watch::CALL, || self.connection.run(effect))
    }

    /// One that moves data.
    fn long_call<T>(&self, what: &'static str, effect: impl FnMut(&Connect) -> Result<T, HostError>) -> Result<T, HostError> {
        under_way(what, self.uri(), watch::LONG_CALL, || self.connection.run(effect))
    }

    fn pool_root(&self) -> PathBuf {
        self.pool_root.clone().unwrap_or_else(|| pools::default_root(self.uri()))
    }
}

impl Host for LibvirtHost {
    fn facts(&self) -> Result<HostFacts, HostError> {
        self.call("facts", |conn| facts::facts(conn, self.uri()))
    }

    fn observe(&self) -> Result<HostSeen, HostError> {
        self.call("observe", |conn| {
            Ok(HostSeen { domains: domains::observe(conn)?, networks: networks::observe(conn)?, pools: pools::observe(conn)? })
        })
    }

    fn ensure_network(&self, plan: &NetworkPlan, mark: &Mark) -> Result<Done, HostError> {
        let done = self.call("ensure network", |conn| networks::ensure(conn, plan, mark))?;
        if let Some(own) = Namespace::of(plan, &mark.cluster, mark.instance) {
            let refused = |error: NetnsError| HostError::Libvirt {
                action: "join a namespace to",
                kind: "network",
                name: plan.name.clone(),
                reason: error.to_string(),
            };
            own.plug().map_err(refused)?;
        }
        Ok(done)
    }

    fn remove_network(&self, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.call("remove network", |conn| networks::remove(conn, name, mark))
    }

    fn ensure_pools(&self, plan: &StoragePlan, mark: &Mark) -> Result<Done, HostError> {
        self.call("ensure pools", |conn| pools::ensure(conn, plan, mark, &self.pool_root()))
    }

    fn remove_pool(&self, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.long_call("remove pool", |conn| pools::remove(conn, name, mark))
    }

    fn ensure_image_volume(
        &self,
        plan: &StoragePlan,
        volume: &str,
        format: VolumeFormat,
        file: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Done, HostError> {
        let image = volumes::Image { name: volume, format, file, abandoned: self.abandoned };
        self.long_call("ensure image volume", |conn| volumes::ensure_image(conn, plan, &image, progress))
    }

    fn remove_image_volume(&self, plan: &StoragePlan, volume: &str) -> Result<Done, HostError> {
        self.call("remove image volume", |conn| volumes::remove_image(conn, plan, volume))
    }

    fn remove_empty_image_pool(&self, plan: &StoragePlan) -> Result<Done, HostError> {
        let done = self.call("remove empty image pool", |conn| pools::remove_empty_images(conn, plan))?;
        if done == Done::Changed && self.is_local() {
            pools::remove_root(&self.pool_root());
        }
        Ok(done)
    }

    fn ensure_overlay(
        &self,
        plan: &StoragePlan,
        volume: &str,
        base: &str,
        size_bytes: u64,
        mark: &Mark,
    ) -> Result<Done, HostError> {
        self.call("ensure overlay", |conn| volumes::ensure_overlay(conn, plan, volume, base, size_bytes, mark))
    }

    fn ensure_blank(&self, plan: &StoragePlan, volume: &str, size_bytes: u64, mark: &Mark) -> Result<Done, HostError> {
        self.call("ensure blank", |conn| volumes::ensure_blank(conn, plan, volume, size_bytes, mark))
    }

    fn ensure_content(&self, plan: &StoragePlan, volume: &str, bytes: &[u8], mark: &Mark) -> Result<Done, HostError> {
        self.call("ensure content", |conn| volumes::ensure_content(conn, plan, volume, bytes, mark))
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
        let copy = copies::Copy { from, to, volume, snapshot: &snapshots::full_name(snapshot), base };
        self.long_call("ensure copy", |conn| copies::ensure(conn, &copy, mark))
    }

    fn remove_volume(&self, plan: &StoragePlan, volume: &str, mark: &Mark) -> Result<Done, HostError> {
        self.call("remove volume", |conn| volumes::remove(conn, plan, volume, mark))
    }

    fn ensure_domain(&self, plan: &DomainPlan, storage: &StoragePlan, node: &NodeName, mark: &Mark) -> Result<Done, HostError> {
        self.call("ensure domain", |conn| {
            let (pool_dir, image_dir) = pools::directories(conn, storage)?;
            let local = self.is_local();
            let layout = Layout {
                direct_io: !local || pools::takes_direct_io(&pool_dir),
                firmware: local.then(fast_firmware).flatten(),
                pool_dir,
                image_dir,
            };
            let text = xml::domain_xml(plan, storage, &layout, node, mark)?;
            domains::ensure(conn, plan, &text, mark)
        })
    }

    fn ensure_running(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.call("ensure running", |conn| domains::ensure_running(conn, domain, mark))
    }

    fn power_off(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.call("power off", |conn| domains::power_off(conn, domain, mark))
    }

    fn shutdown(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.call("shutdown", |conn| domains::shutdown(conn, domain, mark))
    }

    fn suspend(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.call("suspend", |conn| domains::suspend(conn, domain, mark))
    }

    fn resume(&self, domain: &DomainPlan, mark: &Mark) -> Result<Done, HostError> {
        self.call("resume", |conn| domains::resume(conn, domain, mark))
    }

    fn snapshots(&self, domain: &DomainPlan, mark: &Mark) -> Result<Vec<String>, HostError> {
        self.call("snapshots", |conn| snapshots::list(conn, domain, mark))
    }

    fn ensure_snapshot(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.long_call("ensure snapshot", |conn| snapshots::ensure(conn, domain, name, mark))
    }

    fn revert(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.long_call("revert", |conn| snapshots::revert(conn, domain, name, mark))
    }

    fn remove_snapshot(&self, domain: &DomainPlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
        self.long_call("remove snapshot", |conn| snapshots::remove(conn, domain, name, mark))
    }

    fn remove_domain(&self, name: &str, uuid: Uuid, mark: &Mark) -> Result<Done, HostError> {
        self.call("remove domain", |conn| domains::remove(conn, name, uuid, mark))
    }

    fn resident_bytes(&self, domain: &DomainPlan) -> Result<u64, HostError> {
        self.call("resident bytes", |conn| domains::resident_bytes(conn, domain))
    }

    fn console_tail(&self, storage: &StoragePlan, domain: &DomainPlan, lines: usize) -> Result<String, HostError> {
        self.call("console tail", |conn| console::tail(conn, storage, &domain.name, lines))
    }

    fn definitions(&self, mark: &Mark) -> Result<Vec<(String, String)>, HostError> {
        self.call("definitions", |conn| {
            let mut all = domains::definitions(conn, mark)?;
            all.extend(networks::definitions(conn, mark)?);
            all.extend(pools::definitions(conn, mark)?);
            Ok(all)
        })
    }

    fn open_console(&self, domain: &DomainPlan, mark: &Mark) -> Result<Arc<dyn Console>, HostError> {
        self.call("open console", |conn| console::open(conn, domain, mark))
    }
}
