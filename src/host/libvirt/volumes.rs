//! Volumes: images uploaded whole or not at all, disks that are never made anew over data, and small content compared byte by byte.
//! `LibvirtHost` and `pools` call it with a live connection; whose the pool is was checked by `pools`.
//! It does not know what the volumes are for, nor when they are in use.

use super::connection::{is_absent, pause, present, refused, unreadable};
use super::pools;
use super::transfer::{self, Broken};
use crate::host::errors::TAKEN_OVER;
use crate::host::xml::{self, NewVolume};
use crate::host::{Done, HostError, Mark, Progress, VolumeFormat, VolumeSeen};
use crate::plan::{StoragePlan, is_image};
use sha2::{Digest, Sha256};
use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};
use virt::connect::Connect;
use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::sys;

pub const KIND: &str = "volume";

/// How long somebody else's upload of the same image is waited for.
const OTHERS_UPLOAD: Duration = Duration::from_secs(900);
/// An unfinished image that has not grown for this long has nobody uploading it. A living upload stands still for many seconds where
/// a disk writes back, or the way to another computer is cut for a moment; to wait once after a crash costs less than to take it over.
pub const ABANDONED: Duration = Duration::from_secs(20);

/// An empty volume of this name says that the upload of the one before it was finished: without it, an image is a
/// torso left by a crash, whatever its size.
fn complete_mark(volume: &str) -> String {
    format!("{volume}.complete")
}

/// A pool that another program stops or removes meanwhile has none any more.
pub fn observe(pool: &StoragePool) -> Result<Vec<VolumeSeen>, HostError> {
    let all = match pool.list_all_volumes(0) {
        Ok(all) => all,
        Err(error) if is_absent(&error) || error.message().contains("is not active") => return Ok(Vec::new()),
        Err(error) => return Err(refused("list", KIND, "(all)", &error)),
    };
    let mut seen = Vec::with_capacity(all.len());
    for volume in all {
        // Any of these fails when the volume vanished meanwhile.
        if let (Ok(name), Ok(info), Ok(path)) = (volume.name(), volume.info(), volume.path()) {
            seen.push(VolumeSeen { name, capacity: info.capacity, allocation: info.allocation, path });
        }
    }
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

/// Of an image pool's volumes those whose upload was finished, without the marks that say so.
pub fn complete(all: Vec<VolumeSeen>) -> Vec<VolumeSeen> {
    let names: std::collections::BTreeSet<String> = all.iter().map(|volume| volume.name.clone()).collect();
    all.into_iter().filter(|volume| names.contains(&complete_mark(&volume.name))).collect()
}

/// An image that is to be in the image pool.
pub struct Image<'a> {
    pub name: &'a str,
    pub format: VolumeFormat,
    /// Its bytes, on this computer.
    pub file: &'a Path,
    /// `ABANDONED`, but in tests.
    pub abandoned: Duration,
}

/// Uploads the image's file into the image pool. One program at a time does it: they take turns on the file itself, with a lock
/// that the kernel releases when its holder dies.
pub fn ensure_image(
    conn: &Connect,
    plan: &StoragePlan,
    image: &Image<'_>,
    progress: &mut Progress<'_>,
) -> Result<Done, HostError> {
    let Image { name, file, .. } = *image;
    let unread = |source| HostError::File { path: file.display().to_string(), source };
    let source = File::open(file).map_err(unread)?;
    let length = source.metadata().map_err(unread)?.len();
    let pool = pools::images(conn, plan)?;
    if is_complete(&pool, name, length)? {
        return Ok(Done::Unchanged);
    }
    take_turn(&source, name)?;
    // Whoever had the turn before us may have done it.
    if is_complete(&pool, name, length)? {
        return Ok(Done::Unchanged);
    }
    delete(&pool, &complete_mark(name))?;
    if finished_meanwhile(&pool, name, length, image.abandoned)? {
        return Ok(Done::Unchanged);
    }
    // Bytes go in as they are. libvirt finds out the format by itself when it looks at the pool again.
    let raw = NewVolume { name, capacity: length, format: VolumeFormat::Raw, backing: None, public: true };
    let volume = create_anew(&pool, &raw)?;
    let mut source = Watched::new(source);
    let failed = |why| without_torso(&pool, &plan.image_pool, name, why);
    transfer::upload(&pool, &volume, &mut source, length, progress).map_err(|broken| failed(unsent(name, file, broken)))?;
    let judged = judge(&pool, plan, image, &source);
    if !has_end(&pool, name, length, &source.end).map_err(failed)? {
        // What lies there, and was judged, is another's, who is at it: neither marked nor deleted.
        let reason = format!("{TAKEN_OVER} while this one stood still");
        return Err(HostError::Libvirt { action: "upload", kind: KIND, name: name.to_owned(), reason });
    }
    judged.map_err(failed)?;
    let mark = complete_mark(name);
    match create(&pool, &NewVolume { name: &mark, capacity: 0, format: VolumeFormat::Raw, backing: None, public: true }) {
        Ok(_) => Ok(Done::Changed),
        // Whoever took over has come to its end as well.
        Err(_) if is_complete(&pool, name, length)? => Ok(Done::Changed),
        Err(why) => Err(failed(why)),
    }
}

/// Whether what was uploaded is what its name says it is.
fn judge(pool: &StoragePool, plan: &StoragePlan, image: &Image<'_>, sent: &Watched) -> Result<(), HostError> {
    let Image { name, format, file, .. } = *image;
    if let Some(wanted) = digest_in(name)
        && !sent.hex().starts_with(wanted)
    {
        return Err(HostError::Damaged { path: file.display().to_string(), volume: name.to_owned() });
    }
    if format == VolumeFormat::Qcow2 {
        // Overlays need its virtual size, which libvirt reads at a refresh.
        pools::when_idle(|| pool.refresh(0)).map_err(|error| refused("refresh", pools::KIND, &plan.image_pool, &error))?;
        let seen = describe(pool, name)?.ok_or_else(|| missing(name))?;
        if seen.format.as_deref() != Some("qcow2") {
            let reason = format!("{} is not a qcow2 disk", file.display());
            return Err(HostError::Libvirt { action: "upload", kind: KIND, name: name.to_owned(), reason });
        }
    }
    Ok(())
}

/// Why an upload failed, once what it has written is gone: on a full disk that is what is in the way, and nothing shows it. What
/// cannot be deleted is said. Should the name be another's by now, who took it over from us, that one finds its volume gone.
fn without_torso(pool: &StoragePool, pool_name: &str, name: &str, why: HostError) -> HostError {
    match delete(pool, name) {
        Ok(_) => why,
        Err(stuck) => {
            HostError::Torso { why: Box::new(why), pool: pool_name.to_owned(), volume: name.to_owned(), stuck: stuck.to_string() }
        }
    }
}

/// Whether the volume of that name ends with the bytes that were sent last. Whoever took ours for abandoned deleted it under our
/// upload and began another, as long as ours from the start and full of zeros: its end comes last, and is the same once it is whole.
/// libvirt shows nothing else by which the two could be told apart from afar.
fn has_end(pool: &StoragePool, name: &str, length: u64, end: &[u8]) -> Result<bool, HostError> {
    let Some(volume) = present(pool.lookup_storage_vol_by_name(name), KIND, name)? else { return Ok(false) };
    let bytes = end.len() as u64;
    match transfer::download(pool, &volume, length.saturating_sub(bytes), bytes) {
        Ok(there) => Ok(there == end),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(refused("read back", KIND, name, &error)),
    }
}

/// The digest that is part of an image volume's name (`StoragePlan`): `base-<16 hex digits>.qcow2`.
fn digest_in(name: &str) -> Option<&str> {
    let digest = name.rsplit_once('-')?.1.split('.').next()?;
    (digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digest)
}

/// What is uploaded is digested on its way, so that a file that went bad on this disk does not become every node's; and its last
/// bytes are kept, to be compared with what then lies there.
struct Watched {
    source: File,
    sha256: Sha256,
    end: Vec<u8>,
}

/// So many bytes that some of them are not zero in any image.
const END: usize = 256 << 10;

impl Watched {
    fn new(source: File) -> Watched {
        Watched { source, sha256: Sha256::new(), end: Vec::new() }
    }

    fn hex(&self) -> String {
        self.sha256.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.source.read(buffer)?;
        let got_bytes = buffer.get(..got).unwrap_or_default();
        self.sha256.update(got_bytes);
        self.end.extend_from_slice(got_bytes);
        self.end.drain(..self.end.len().saturating_sub(END));
        Ok(got)
    }
}

/// The mark of completeness goes first: an image that is half removed is no image.
pub fn remove_image(conn: &Connect, plan: &StoragePlan, name: &str) -> Result<Done, HostError> {
    let pool = match pools::images(conn, plan) {
        Err(HostError::Missing { .. }) => return Ok(Done::Unchanged),
        found => found?,
    };
    delete(&pool, &complete_mark(name))?;
    delete(&pool, name)
}

pub fn ensure_overlay(
    conn: &Connect,
    plan: &StoragePlan,
    name: &str,
    base: &str,
    size_bytes: u64,
    mark: &Mark,
) -> Result<Done, HostError> {
    let pool = pools::own(conn, plan, mark)?;
    let images = pools::images(conn, plan)?;
    let found = describe(&images, base)?.ok_or_else(|| missing(base))?;
    if present(images.lookup_storage_vol_by_name(&complete_mark(base)), KIND, base)?.is_none() {
        return Err(missing(base));
    }
    let path = found.path.ok_or_else(|| unreadable(KIND, base, "it has no path".to_owned()))?;
    if size_bytes < found.capacity {
        let reason = format!("{size_bytes} bytes are less than its base has ({})", found.capacity);
        return Err(HostError::Libvirt { action: "create", kind: KIND, name: name.to_owned(), reason });
    }
    ensure_disk(
        &pool,
        &NewVolume { name, capacity: size_bytes, format: VolumeFormat::Qcow2, backing: Some(&path), public: false },
    )
}

pub fn ensure_blank(conn: &Connect, plan: &StoragePlan, name: &str, size_bytes: u64, mark: &Mark) -> Result<Done, HostError> {
    let pool = pools::own(conn, plan, mark)?;
    ensure_disk(&pool, &NewVolume { name, capacity: size_bytes, format: VolumeFormat::Qcow2, backing: None, public: false })
}

pub fn ensure_content(conn: &Connect, plan: &StoragePlan, name: &str, bytes: &[u8], mark: &Mark) -> Result<Done, HostError> {
    let pool = pools::own(conn, plan, mark)?;
    let length = bytes.len() as u64;
    if let Some(volume) = present(pool.lookup_storage_vol_by_name(name), KIND, name)? {
        let same_size = volume.info().is_ok_and(|info| info.capacity == length);
        if same_size && transfer::download(&pool, &volume, 0, length).is_ok_and(|there| there == bytes) {
            return Ok(Done::Unchanged);
        }
    }
    let volume =
        create_anew(&pool, &NewVolume { name, capacity: length, format: VolumeFormat::Raw, backing: None, public: false })?;
    match transfer::upload(&pool, &volume, &mut &*bytes, length, &mut |_, _| ()) {
        Ok(()) => Ok(Done::Changed),
        Err(broken) => Err(without_torso(&pool, &plan.pool, name, unsent(name, Path::new("(memory)"), broken))),
    }
}

pub fn remove(conn: &Connect, plan: &StoragePlan, name: &str, mark: &Mark) -> Result<Done, HostError> {
    let pool = pools::own(conn, plan, mark)?;
    // Consoles' logs and what a crash left may be there without libvirt knowing.
    pools::when_idle(|| pool.refresh(0)).map_err(|error| refused("refresh", pools::KIND, &plan.pool, &error))?;
    delete(&pool, name)
}

/// Of an image pool's volumes those that are ours to remove: images, whole or torsos, and the marks of whole ones.
pub fn ours_in_images(all: Vec<VolumeSeen>) -> (Vec<VolumeSeen>, Vec<VolumeSeen>) {
    let image = |name: &str| is_image(name.strip_suffix(&complete_mark("")).unwrap_or(name));
    all.into_iter().partition(|volume| image(&volume.name))
}

/// These volumes of the pool, `last` last.
pub fn remove_these(pool: &StoragePool, volumes: Vec<VolumeSeen>, last: &str) -> Result<(), HostError> {
    let mut names: Vec<String> = volumes.into_iter().map(|volume| volume.name).collect();
    names.sort_by_key(|name| name == last);
    for name in names {
        delete(pool, &name)?;
    }
    Ok(())
}

/// A disk that may hold data: made when it is not there, refused when it is there and different.
fn ensure_disk(pool: &StoragePool, wanted: &NewVolume<'_>) -> Result<Done, HostError> {
    let check = |found: &xml::VolumeXml| {
        let differs = |what: String| Err(HostError::Differs { kind: KIND, name: wanted.name.to_owned(), what });
        if found.capacity != wanted.capacity {
            differs(format!("it has {} bytes, not {}", found.capacity, wanted.capacity))
        } else if found.backing.as_deref() != wanted.backing {
            let name = |path: Option<&str>| path.map_or("nothing".to_owned(), str::to_owned);
            differs(format!("it is an overlay of {}, not of {}", name(found.backing.as_deref()), name(wanted.backing)))
        } else {
            Ok(Done::Unchanged)
        }
    };
    match describe(pool, wanted.name)? {
        Some(found) => check(&found),
        None => match create(pool, wanted) {
            Ok(_) => Ok(Done::Changed),
            // Somebody was faster, or libvirt had not seen it yet.
            Err(error) => match describe(pool, wanted.name)? {
                Some(found) => check(&found),
                None => Err(error),
            },
        },
    }
}

/// One whose bytes come from us: whatever is there goes first.
fn create_anew(pool: &StoragePool, wanted: &NewVolume<'_>) -> Result<StorageVol, HostError> {
    delete(pool, wanted.name)?;
    create(pool, wanted).or_else(|error| match delete(pool, wanted.name)? {
        Done::Changed => create(pool, wanted),
        Done::Unchanged => Err(error),
    })
}

fn create(pool: &StoragePool, wanted: &NewVolume<'_>) -> Result<StorageVol, HostError> {
    let text = xml::volume_xml(wanted)?;
    match StorageVol::create_xml(pool, &text, 0) {
        Ok(volume) => Ok(volume),
        // A file that libvirt had not seen yet, from before a crash: seen now, it is the caller's to judge.
        Err(error) if error.code().is(ErrorNumber::StorageVolExist) || error.message().contains("File exists") => {
            pools::when_idle(|| pool.refresh(0)).map_err(|error| refused("refresh", pools::KIND, wanted.name, &error))?;
            Err(refused("create", KIND, wanted.name, &error))
        }
        Err(error) => Err(refused("create", KIND, wanted.name, &error)),
    }
}

fn delete(pool: &StoragePool, name: &str) -> Result<Done, HostError> {
    let Some(volume) = present(pool.lookup_storage_vol_by_name(name), KIND, name)? else { return Ok(Done::Unchanged) };
    match volume.delete(sys::VIR_STORAGE_VOL_DELETE_NORMAL) {
        Ok(()) => Ok(Done::Changed),
        Err(error) if is_absent(&error) => Ok(Done::Unchanged),
        Err(error) => Err(refused("delete", KIND, name, &error)),
    }
}

fn describe(pool: &StoragePool, name: &str) -> Result<Option<xml::VolumeXml>, HostError> {
    let Some(volume) = present(pool.lookup_storage_vol_by_name(name), KIND, name)? else { return Ok(None) };
    match present(volume.xml_desc(0), KIND, name)? {
        Some(text) => xml::volume(&text).map(Some).map_err(|reason| unreadable(KIND, name, reason)),
        None => Ok(None),
    }
}

/// There, marked as finished, and as long as the file.
fn is_complete(pool: &StoragePool, name: &str, length: u64) -> Result<bool, HostError> {
    let marked = present(pool.lookup_storage_vol_by_name(&complete_mark(name)), KIND, name)?.is_some();
    let found = describe(pool, name)?;
    Ok(marked && found.is_some_and(|found| found.physical.is_none_or(|physical| physical == length)))
}

/// Waits for the lock on the file that is to be uploaded.
fn take_turn(file: &File, name: &str) -> Result<(), HostError> {
    let deadline = Instant::now() + OTHERS_UPLOAD;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => pause(Duration::from_millis(200)),
            Err(TryLockError::WouldBlock) => return Err(still_uploading(name)),
            // A file system without locks: go on without turns.
            Err(TryLockError::Error(_)) => return Ok(()),
        }
    }
}

/// Somebody whose copy of the file is another one (another user, another machine) takes no turns with us: as long as
/// the volume grows, somebody is at it. `true`: and has finished it. `false`: there is none, or nobody is at it any more.
fn finished_meanwhile(pool: &StoragePool, name: &str, length: u64, abandoned: Duration) -> Result<bool, HostError> {
    let deadline = Instant::now() + OTHERS_UPLOAD;
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let Some(volume) = present(pool.lookup_storage_vol_by_name(name), KIND, name)? else { return Ok(false) };
        // A whole one grows no more either, and machines may stand on it.
        if is_complete(pool, name, length)? {
            return Ok(true);
        }
        let now = volume.info().ok().map(|info| info.allocation);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() >= abandoned {
            return Ok(false);
        }
        if Instant::now() >= deadline {
            return Err(still_uploading(name));
        }
        pause(Duration::from_millis(200));
    }
}

fn still_uploading(name: &str) -> HostError {
    let reason = format!("another program has been uploading it for more than {} s", OTHERS_UPLOAD.as_secs());
    HostError::Libvirt { action: "upload", kind: KIND, name: name.to_owned(), reason }
}

fn unsent(name: &str, file: &Path, broken: Broken) -> HostError {
    let short = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it became shorter during the upload");
    match broken {
        Broken::Libvirt(error) => refused("upload", KIND, name, &error),
        Broken::Source(source) => HostError::File { path: file.display().to_string(), source },
        Broken::Short => HostError::File { path: file.display().to_string(), source: short() },
    }
}

fn missing(name: &str) -> HostError {
    HostError::Missing { kind: KIND, name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_passes_is_digested_and_its_last_bytes_are_kept() {
        for length in [0, 5, END, END + 1, 3 * END + 77] {
            let bytes: Vec<u8> = (0..=250_u8).cycle().take(length).collect();
            let mut file = tempfile::NamedTempFile::new().expect("a file");
            file.write_all(&bytes).expect("written");
            let mut watched = Watched::new(file.reopen().expect("there"));
            let mut buffer = vec![0; 100_000];
            let mut read = 0;
            loop {
                match watched.read(&mut buffer).expect("read") {
                    0 => break,
                    got => read += got,
                }
            }
            assert_eq!(read, length);
            assert!(watched.end == bytes[length.saturating_sub(END)..], "{length}");
            let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(watched.hex(), hex);
        }
    }
}
