//! Copies of disks as they were in a snapshot, for another cluster: made aside by `qemu-img` and given their name when they are whole.
//! `LibvirtHost` calls it on a libvirt of this computer; what a running machine writes meanwhile does not touch its snapshots.
//! It knows nothing of clusters: whose the pools are, `pools` has checked.

use super::connection::{present, refused};
use super::{pools, volumes};
use crate::host::{Done, HostError, Mark};
use crate::plan::StoragePlan;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use virt::connect::Connect;

/// One disk: from which cluster's pool, at which snapshot, into which pool.
pub struct Copy<'a> {
    pub from: &'a StoragePlan,
    pub to: &'a StoragePlan,
    pub volume: &'a str,
    pub snapshot: &'a str,
    /// Volume of the image pool that it is an overlay of.
    pub base: Option<&'a str>,
}

/// `Unchanged` when there is a volume of that name.
pub fn ensure(conn: &Connect, copy: &Copy<'_>, mark: &Mark) -> Result<Done, HostError> {
    let target = pools::own(conn, copy.to, mark)?;
    if present(target.lookup_storage_vol_by_name(copy.volume), volumes::KIND, copy.volume)?.is_some() {
        return Ok(Done::Unchanged);
    }
    let source = conn
        .lookup_storage_pool_by_name(&copy.from.pool)
        .and_then(|pool| pool.lookup_storage_vol_by_name(copy.volume))
        .and_then(|volume| volume.path())
        .map_err(|error| refused("find", volumes::KIND, copy.volume, &error))?;
    let (pool_dir, image_dir) = pools::directories(conn, copy.to)?;
    let (part, whole) = (format!("{pool_dir}/.{}.part", copy.volume), format!("{pool_dir}/{}", copy.volume));
    let failed =
        |reason: String| HostError::Libvirt { action: "copy", kind: volumes::KIND, name: copy.volume.to_owned(), reason };
    // A disk carries keys: nobody else's from its first byte on. qemu-img writes into the file that is there.
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .and_then(|file| file.sync_all())
        .map_err(|error| failed(format!("{part}: {error}")))?;
    let mut convert = Command::new("qemu-img");
    // The source may be in use (-U); its snapshots do not change.
    convert.args(["convert", "-U", "-l", &format!("snapshot.name={}", copy.snapshot), "-O", "qcow2"]);
    if let Some(base) = copy.base {
        convert.args(["-F", "qcow2", "-B", &format!("{image_dir}/{base}")]);
    }
    let done = convert.args([source.as_str(), part.as_str()]).stdin(Stdio::null()).output();
    let done = done.map_err(|error| failed(format!("qemu-img: {error}")))?;
    if !done.status.success() {
        let _ = std::fs::remove_file(&part);
        return Err(failed(format!("qemu-img: {}", String::from_utf8_lossy(&done.stderr).trim())));
    }
    let named = || -> std::io::Result<()> {
        std::fs::File::open(&part)?.sync_all()?;
        std::fs::rename(&part, &whole)?;
        std::fs::File::open(Path::new(&pool_dir))?.sync_all()
    };
    named().map_err(|error| failed(format!("{whole}: {error}")))?;
    pools::when_idle(|| target.refresh(0)).map_err(|error| refused("refresh", pools::KIND, &copy.to.pool, &error))?;
    Ok(Done::Changed)
}
