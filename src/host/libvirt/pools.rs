//! Storage pools: the cluster's own, whose path says whose it is, and the one for images that all clusters share.
//! `LibvirtHost` and `volumes` call it with a live connection.
//! It knows directories of libvirt's machine by name only, and looks at them itself only when that is this machine.

use super::connection::{checked, is_absent, pause, present, refused, unreadable};
use super::{transfer, volumes};
use crate::host::{Done, HostError, MARK_VOLUME, Mark, PoolSeen, guard, is_ours, whose, xml};
use crate::plan::{IMAGE_POOL, POOL_PREFIX, StoragePlan};
use crate::spec::ClusterName;
use nix::sys::statfs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;
use virt::storage_pool::StoragePool;
use virt::sys;

pub const KIND: &str = "storage pool";

/// A pool refuses to be refreshed or stopped while volumes are made in it; that is waited for.
const BUSY: Duration = Duration::from_secs(120);

/// The directory of all pools, which libvirt made on the way to the first; what somebody has put there keeps it.
pub fn remove_root(root: &Path) {
    let _ = std::fs::remove_dir(root);
}

/// Below libvirt's own directory for images, where its security drivers expect them.
pub fn default_root(uri: &str) -> PathBuf {
    let session = uri.split(['?', '#']).next().is_some_and(|uri| uri.ends_with("/session"));
    let data = || std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let base = if session { data().or_else(home) } else { None };
    base.unwrap_or_else(|| PathBuf::from("/var/lib")).join("libvirt/images/ktcw")
}

/// MiB free at the nearest directory that exists.
pub fn free_mib_at(path: &Path) -> Option<u64> {
    let stat = path.ancestors().find_map(|dir| nix::sys::statvfs::statvfs(dir).ok())?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()) >> 20)
}

/// tmpfs and ramfs have no direct I/O; whatever else cannot be asked is taken to have it.
pub fn takes_direct_io(dir: &str) -> bool {
    const RAMFS_MAGIC: statfs::FsType = statfs::FsType(0x8584_58f6);
    statfs::statfs(dir)
        .map_or(true, |stat| stat.filesystem_type() != statfs::TMPFS_MAGIC && stat.filesystem_type() != RAMFS_MAGIC)
}

/// All pools. Volumes are listed for those of ktcw-vm only.
pub fn observe(conn: &Connect) -> Result<Vec<PoolSeen>, HostError> {
    let all = conn.list_all_storage_pools(0).map_err(|error| refused("list", KIND, "(all)", &error))?;
    let mut seen = Vec::with_capacity(all.len());
    for pool in all {
        let Some(found) = describe(&pool)? else { continue };
        let active = present(pool.is_active(), KIND, &found.name)?.unwrap_or(false);
        let images = found.name == IMAGE_POOL;
        let of_ours = images || found.name.starts_with(POOL_PREFIX);
        let mut one = PoolSeen {
            name: found.name.clone(),
            uuid: found.uuid,
            active,
            volumes: Vec::new(),
            available: None,
            mark: owner(&found),
        };
        if active {
            if of_ours {
                // Sizes are those of the last refresh. A pool that is busy keeps its old ones.
                let _ = pool.refresh(0);
                one.volumes = volumes::observe(&pool)?;
                if images {
                    one.volumes = volumes::complete(one.volumes);
                }
                one.mark = one.mark.map(|mark| full_mark(&pool, mark));
            }
            one.available = present(pool.info(), KIND, &found.name)?.map(|info| info.available);
        }
        seen.push(one);
    }
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

/// The XML of ours, and of the images'.
pub fn definitions(conn: &Connect, mark: &Mark) -> Result<Vec<(String, String)>, HostError> {
    let all = conn.list_all_storage_pools(0).map_err(|error| refused("list", KIND, "(all)", &error))?;
    let mut found = Vec::new();
    for pool in all {
        let Some(described) = describe(&pool)? else { continue };
        let ours = owner(&described).is_some_and(|theirs| mark.owns(&theirs)) || described.name == IMAGE_POOL;
        if ours && let Some(text) = present(pool.xml_desc(0), KIND, &described.name)? {
            found.push((format!("{KIND} {}", described.name), text));
        }
    }
    Ok(found)
}

/// Both pools defined, built and active; the mark lies in the cluster's own.
pub fn ensure(conn: &Connect, plan: &StoragePlan, mark: &Mark, root: &Path) -> Result<Done, HostError> {
    let images = ensure_one(conn, &plan.image_pool, plan.image_pool_uuid, &root.join("images"), |_| Ok(()))?;
    let own_dir = root.join(format!("{}.{}", mark.cluster, mark.instance));
    let own =
        ensure_one(conn, &plan.pool, plan.pool_uuid, &own_dir, |found| guard(KIND, &found.name, owner(found).as_ref(), mark))?;
    let marked = write_mark(conn, plan, mark)?;
    Ok(if [images, own, marked].contains(&Done::Changed) { Done::Changed } else { Done::Unchanged })
}

/// Volumes, directory and definition; of a pool into which somebody has put something only the volumes that are ours.
pub fn remove(conn: &Connect, name: &str, mark: &Mark) -> Result<Done, HostError> {
    let Some(pool) = present(conn.lookup_storage_pool_by_name(name), KIND, name)? else { return Ok(Done::Unchanged) };
    let Some(found) = describe(&pool)? else { return Ok(Done::Unchanged) };
    guard(KIND, name, owner(&found).as_ref(), mark)?;
    // An inactive pool shows no volumes. One that cannot be started has lost its directory, and with it the volumes.
    if active(&pool, name)? || pool.create(0).is_ok() {
        when_idle(|| pool.refresh(0)).map_err(|error| refused("refresh", KIND, name, &error))?;
        let (ours, theirs): (Vec<_>, Vec<_>) =
            volumes::observe(&pool)?.into_iter().partition(|volume| is_ours(&volume.name, mark));
        if !theirs.is_empty() {
            // The mark says whose the pool is as long as it is there.
            let ours: Vec<_> = ours.into_iter().filter(|volume| volume.name != MARK_VOLUME).collect();
            let done = if ours.is_empty() { Done::Unchanged } else { Done::Changed };
            return volumes::remove_these(&pool, ours, "").map(|()| done);
        }
        volumes::remove_these(&pool, ours, MARK_VOLUME)?;
    }
    dismantle(&pool, name)
}

/// The image pool, when nothing is in it.
pub fn remove_empty_images(conn: &Connect, plan: &StoragePlan) -> Result<Done, HostError> {
    let name = &plan.image_pool;
    let pool = match images(conn, plan) {
        Err(HostError::Missing { .. }) => return Ok(Done::Unchanged),
        found => found?,
    };
    if active(&pool, name)? || pool.create(0).is_ok() {
        when_idle(|| pool.refresh(0)).map_err(|error| refused("refresh", KIND, name, &error))?;
        let all = volumes::observe(&pool)?;
        if !volumes::complete(all.clone()).is_empty() {
            return Ok(Done::Unchanged);
        }
        // What an upload that broke off left behind goes; what somebody else put there keeps the pool.
        let (ours, theirs) = volumes::ours_in_images(all);
        volumes::remove_these(&pool, ours, "")?;
        if !theirs.is_empty() {
            return Ok(Done::Unchanged);
        }
    }
    dismantle(&pool, name)
}

/// Stops a pool without volumes, deletes its directory and its definition.
fn dismantle(pool: &StoragePool, name: &str) -> Result<Done, HostError> {
    if active(pool, name)? {
        when_idle(|| pool.destroy()).map_err(|error| refused("stop", KIND, name, &error))?;
    }
    match pool.delete(0) {
        Ok(()) => {}
        Err(error) if error.message().contains("No such file") => {}
        Err(error) => return Err(refused("delete the directory of", KIND, name, &error)),
    }
    match pool.undefine() {
        Ok(()) => Ok(Done::Changed),
        Err(error) if is_absent(&error) => Ok(Done::Changed),
        Err(error) => Err(refused("undefine", KIND, name, &error)),
    }
}

/// Directories of the cluster's pool and of the image pool, as libvirt has them.
pub fn directories(conn: &Connect, plan: &StoragePlan) -> Result<(String, String), HostError> {
    let path = |name: &str, uuid| {
        let found = describe(&by_plan(conn, name, uuid)?)?.ok_or_else(|| missing(name))?;
        found.path.ok_or_else(|| unreadable(KIND, name, "the pool has no directory".to_owned()))
    };
    Ok((path(&plan.pool, plan.pool_uuid)?, path(&plan.image_pool, plan.image_pool_uuid)?))
}

/// The cluster's pool, for a change of its volumes.
pub fn own(conn: &Connect, plan: &StoragePlan, mark: &Mark) -> Result<StoragePool, HostError> {
    let pool = by_plan(conn, &plan.pool, plan.pool_uuid)?;
    let found = describe(&pool)?.ok_or_else(|| missing(&plan.pool))?;
    guard(KIND, &plan.pool, owner(&found).as_ref(), mark)?;
    Ok(pool)
}

/// The image pool, recognised by its name and UUID.
pub fn images(conn: &Connect, plan: &StoragePlan) -> Result<StoragePool, HostError> {
    by_plan(conn, &plan.image_pool, plan.image_pool_uuid)
}

/// The pool of that name and UUID, for reading.
pub fn by_plan(conn: &Connect, name: &str, uuid: Uuid) -> Result<StoragePool, HostError> {
    let pool = present(conn.lookup_storage_pool_by_name(name), KIND, name)?.ok_or_else(|| missing(name))?;
    match describe(&pool)? {
        Some(found) if found.uuid == uuid => Ok(pool),
        Some(found) => Err(HostError::NotOurs { kind: KIND, name: name.to_owned(), whose: whose(owner(&found).as_ref()) }),
        None => Err(missing(name)),
    }
}

/// Repeats what a pool refuses while volumes are made in it, until `BUSY` has passed.
pub fn when_idle(effect: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    let deadline = Instant::now() + BUSY;
    loop {
        match effect() {
            Err(error) if error.message().contains("asynchronous jobs") && Instant::now() < deadline => {
                pause(Duration::from_millis(50))
            }
            done => return done,
        }
    }
}

fn ensure_one(
    conn: &Connect,
    name: &str,
    uuid: Uuid,
    path: &Path,
    may_change: impl Fn(&xml::PoolXml) -> Result<(), HostError>,
) -> Result<Done, HostError> {
    if let Some(other) = present(conn.lookup_storage_pool_by_uuid(uuid), KIND, name)?
        && let Some(found) = describe(&other)?
        && found.name != name
    {
        return Err(HostError::NotOurs { kind: KIND, name: found.name.clone(), whose: whose(owner(&found).as_ref()) });
    }
    let (pool, defined) = match present(conn.lookup_storage_pool_by_name(name), KIND, name)? {
        Some(_) => {
            let pool = by_plan(conn, name, uuid)?;
            may_change(&describe(&pool)?.ok_or_else(|| missing(name))?)?;
            (pool, false)
        }
        None => {
            let text = xml::pool_xml(name, uuid, &path.to_string_lossy())?;
            let pool = checked(|| conn.define_storage_pool_xml(&text, sys::VIR_STORAGE_POOL_DEFINE_VALIDATE))
                .map_err(|error| refused("define", KIND, name, &error))?;
            (pool, true)
        }
    };
    if active(&pool, name)? {
        return Ok(if defined { Done::Changed } else { Done::Unchanged });
    }
    // Building makes the directory, on libvirt's machine; one that is there is left as it is.
    let built = pool.build(sys::VIR_STORAGE_POOL_BUILD_NEW).map_err(|error| refused("make the directory of", KIND, name, &error));
    match built.and_then(|_| pool.create(0).map_err(|error| refused("start", KIND, name, &error))) {
        Ok(_) => Ok(Done::Changed),
        // Another cluster's `up` was faster with the image pool.
        Err(_) if active(&pool, name)? => Ok(Done::Changed),
        Err(error) => Err(error),
    }
}

/// Whose a pool is, from the moment it is defined, and also while it is inactive: its directory is `<cluster>.<instance>` and its name follows from that.
fn owner(found: &xml::PoolXml) -> Option<Mark> {
    let (cluster, instance) = Path::new(found.path.as_deref()?).file_name()?.to_str()?.split_once('.')?;
    let cluster = ClusterName::parse(cluster).ok()?;
    let instance = Uuid::parse_str(instance).ok()?;
    (found.name == format!("{POOL_PREFIX}{cluster}")).then_some(Mark { cluster, instance, state_dir: String::new() })
}

/// The mark with its state directory, when the volume that holds it can be read and agrees.
fn full_mark(pool: &StoragePool, mark: Mark) -> Mark {
    let read = || {
        let volume = pool.lookup_storage_vol_by_name(MARK_VOLUME).ok()?;
        let bytes = transfer::download(pool, &volume, 0, transfer::SMALL).ok()?;
        serde_json::from_slice::<Mark>(&bytes).ok()
    };
    read().filter(|written| mark.owns(written)).unwrap_or(mark)
}

/// Drivers without transfers (libvirt's `test:`) go without the volume: it decides nothing.
fn write_mark(conn: &Connect, plan: &StoragePlan, mark: &Mark) -> Result<Done, HostError> {
    let json = serde_json::to_vec(mark).map_err(|error| unreadable(KIND, &plan.pool, error.to_string()))?;
    match volumes::ensure_content(conn, plan, MARK_VOLUME, &json, mark) {
        Err(HostError::Libvirt { reason, .. }) if reason.contains("not supported by the connection driver") => {
            Ok(Done::Unchanged)
        }
        done => done,
    }
}

fn describe(pool: &StoragePool) -> Result<Option<xml::PoolXml>, HostError> {
    let name = pool.name().unwrap_or_default();
    match present(pool.xml_desc(0), KIND, &name)? {
        Some(text) => xml::pool(&text).map(Some).map_err(|reason| unreadable(KIND, &name, reason)),
        None => Ok(None),
    }
}

fn active(pool: &StoragePool, name: &str) -> Result<bool, HostError> {
    Ok(present(pool.is_active(), KIND, name)?.unwrap_or(false))
}

fn missing(name: &str) -> HostError {
    HostError::Missing { kind: KIND, name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_ours_by_path_and_name_together() {
        let instance = Uuid::from_u128(7);
        let pool = |name: &str, path: &str| xml::PoolXml { name: name.into(), uuid: Uuid::nil(), path: Some(path.to_owned()) };
        let mark = owner(&pool("ktcw-lab-2", &format!("/x/lab-2.{instance}"))).expect("ours");
        assert_eq!((mark.cluster.as_str(), mark.instance), ("lab-2", instance));
        for (name, path) in [
            ("ktcw-lab", format!("/x/other.{instance}")),
            ("lab", format!("/x/lab.{instance}")),
            ("ktcw-lab", "/x/lab".to_owned()),
            ("ktcw.images", "/x/images".to_owned()),
            ("ktcw-lab", "/x/lab.not-a-uuid".to_owned()),
        ] {
            assert_eq!(owner(&pool(name, &path)), None, "{name} {path}");
        }
    }

    #[test]
    fn a_session_keeps_its_pools_in_the_users_home() {
        assert_eq!(default_root("qemu:///system"), Path::new("/var/lib/libvirt/images/ktcw"));
        assert!(!default_root("qemu:///session").starts_with("/var/lib"));
    }

    #[test]
    fn free_space_is_asked_of_the_nearest_directory_there_is() {
        let here = free_mib_at(Path::new("/")).expect("a root directory");
        assert!(here > 0);
        assert!(free_mib_at(Path::new("/nonexistent/a/b")).is_some());
    }
}
