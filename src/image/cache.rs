//! The image cache: directories named by keys, each whole or absent. `build` makes
//! stages and images through [`Cache::ensure`]; `find`, `list` and `prune` read and
//! remove them. It knows what a finished directory looks like, not how it is made.
//!
//! ```text
//! CACHE/lock               held by whoever builds or prunes
//!       tmp/…              being made; anything in it while the lock is free is a leftover
//!       stages/NAME-KEY/   files, and stage.json written last
//!       images/KEY/        files, and image.json written last
//!       logs/NAME.log      what the tools of the last build said
//! ```

use serde::Serialize;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::command::Namespaces;
use super::{FileRecord, Image, ImageError, ImageEvent, Inputs, Suite, toolchain};
use crate::digest;

/// How long a build waits for another one in the same cache.
const LOCK_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// The name of the file that makes an image directory an image.
const IMAGE_FILE: &str = "image.json";

/// Where images are kept: `$KTCW_CACHE_DIR`, else `$XDG_CACHE_HOME/ktcw-vm`, else
/// `~/.cache/ktcw-vm`. Never fails: without a home it is below the temporary directory.
pub fn cache_dir() -> PathBuf {
    cache_dir_from(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
}

fn cache_dir_from(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    variable("KTCW_CACHE_DIR")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("ktcw-vm")))
        .or_else(|| Some(variable("HOME")?.join(".cache/ktcw-vm")))
        .unwrap_or_else(|| std::env::temp_dir().join("ktcw-vm-cache"))
}

/// The image for the sources embedded in this program, when it has been built: the newest, whichever Go built it. A newer
/// toolchain makes nobody wait for another image; `build` makes one when it is asked to.
///
/// # Errors
/// [`ImageError::Damaged`] when it is there but its files are missing, truncated or
/// unreadable; digests are not computed, see [`verify_image`].
pub fn find(cache: &Path) -> Result<Option<Image>, ImageError> {
    let sources = Inputs::embedded("", Suite::default()).keys().sources;
    let mut same_sources = Vec::new();
    let mut broken = false;
    for dir in directories(&cache.join("images"))? {
        match load(&dir) {
            Ok(image) => same_sources.extend(image.filter(|image| image.sources_key == sources)),
            Err(_) => broken = true,
        }
    }
    let newest = same_sources.into_iter().max_by_key(|image| image.built_at);
    if newest.is_some() || !broken {
        return Ok(newest);
    }
    // A damaged image does not say what it was made of; its key does, and asking Go for its version takes a while.
    let keys = Inputs::embedded(toolchain::version().unwrap_or_default(), Suite::default()).keys();
    load(&cache.join("images").join(&keys.image))
}

/// The key of the image that [`find`] speaks of: the one `up` would take, or the damaged one it would name. Where there is
/// neither, the one that `build` would make.
fn wanted(cache: &Path) -> Result<String, ImageError> {
    match find(cache) {
        Ok(Some(image)) => Ok(image.key),
        Err(ImageError::Damaged { key, .. }) => Ok(key),
        Ok(None) => Ok(Inputs::embedded(toolchain::version().unwrap_or_default(), Suite::default()).keys().image),
        Err(error) => Err(error),
    }
}

/// The image of this key, whichever program built it. Errors as [`find`].
pub fn find_key(cache: &Path, key: &str) -> Result<Option<Image>, ImageError> {
    let plain = key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { load(&cache.join("images").join(key)) } else { Ok(None) }
}

/// Whether a file of an image was written after the image's description was, or cannot be looked at: then its bytes are worth
/// reading. Bytes that a disk has lost by itself are found by whoever reads them.
pub fn written_since(image: &Image) -> bool {
    let modified = |name: &str| fs::metadata(image.dir.join(name)).and_then(|found| found.modified()).ok();
    let described = modified(IMAGE_FILE);
    described.is_none() || image.files.keys().any(|name| modified(name).is_none_or(|at| Some(at) > described))
}

/// Reads every file of an image and compares it with what was built.
///
/// # Errors
/// [`ImageError::Damaged`] naming the first file that differs.
pub fn verify_image(image: &Image) -> Result<(), ImageError> {
    for (name, record) in &image.files {
        let found = digest(&image.dir.join(name))?;
        if found != record.sha256 {
            return Err(ImageError::Damaged {
                key: image.key.clone(),
                dir: image.dir.clone(),
                what: format!("{name} has digest {}…, not {}…", &found[..12], super::short(&record.sha256)),
            });
        }
    }
    Ok(())
}

/// One directory below `images/`.
#[derive(Debug)]
pub struct CachedImage {
    pub key: String,
    pub dir: PathBuf,
    /// Bytes of disk it takes.
    pub disk_bytes: u64,
    /// What [`find`] answers with, whole or damaged.
    pub current: bool,
    /// What it holds, or why it cannot be used.
    pub image: Result<Image, ImageError>,
}

/// All images in the cache, the newest first.
///
/// # Errors
/// When the cache directory is there but cannot be read.
pub fn list(cache: &Path) -> Result<Vec<CachedImage>, ImageError> {
    let current = wanted(cache)?;
    let mut found = Vec::new();
    for dir in directories(&cache.join("images"))? {
        let Some(image) = load(&dir).transpose() else { continue };
        let key = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let current = key == current;
        found.push(CachedImage { key, disk_bytes: disk_bytes(&dir), dir, current, image });
    }
    let built_at = |cached: &CachedImage| cached.image.as_ref().ok().map(|image| image.built_at);
    found.sort_by_key(|cached| std::cmp::Reverse(built_at(cached)));
    Ok(found)
}

/// What [`prune`] removed.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub directories: Vec<PathBuf>,
    /// Bytes of disk given back.
    pub bytes: u64,
}

/// Removes images, and the stages they were made of; those of the keys `in_use` stay, and with `keep_current` also the
/// image that [`find`] answers with and the stages that the next build would begin with. Disks already copied
/// to a libvirt volume are not touched.
///
/// # Errors
/// [`ImageError::Io`] for what could not be removed.
pub fn prune(cache: &Path, keep_current: bool, in_use: &[String]) -> Result<Pruned, ImageError> {
    if !cache.exists() {
        return Ok(Pruned::default());
    }
    let cache = Cache::open(cache, &mut |_| {})?;
    let mut keep = in_use.to_vec();
    if keep_current {
        let keys = Inputs::embedded(toolchain::version().unwrap_or_default(), Suite::default()).keys();
        keep.push(wanted(&cache.root)?);
        keep.extend([keys.container_os, keys.guest_os]);
        keep.extend(keys.modules.into_iter().map(|(_, key)| key));
    }
    let mut pruned = Pruned::default();
    for below in ["images", "stages"] {
        for dir in directories(&cache.root.join(below))? {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if keep.iter().any(|key| name == *key || name.ends_with(&format!("-{key}"))) {
                continue;
            }
            let bytes = disk_bytes(&dir);
            cache.discard(&dir)?;
            pruned.directories.push(dir);
            pruned.bytes += bytes;
        }
    }
    Ok(pruned)
}

/// An image directory: `None` when it is not there.
pub(super) fn load(dir: &Path) -> Result<Option<Image>, ImageError> {
    let key = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let damaged = |what: String| ImageError::Damaged { key: key.clone(), dir: dir.to_owned(), what };
    let text = match fs::read_to_string(dir.join(IMAGE_FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(None),
        Err(error) => return Err(damaged(format!("{IMAGE_FILE}: {error}"))),
    };
    let mut image: Image = serde_json::from_str(&text).map_err(|error| damaged(format!("{IMAGE_FILE}: {error}")))?;
    if image.key != key {
        return Err(damaged(format!("{IMAGE_FILE} is of image {}", super::short(&image.key))));
    }
    for (name, record) in &image.files {
        let bytes = fs::metadata(dir.join(name)).map_err(|error| damaged(format!("{name}: {error}")))?.len();
        if bytes != record.bytes {
            return Err(damaged(format!("{name} has {bytes} bytes, not {}", record.bytes)));
        }
    }
    image.dir = dir.to_owned();
    for path in [&mut image.disk, &mut image.kernel, &mut image.initrd, &mut image.bin] {
        *path = dir.join(&*path);
    }
    Ok(Some(image))
}

/// The cache, locked for us as long as this value lives.
pub(super) struct Cache {
    root: PathBuf,
    _lock: Flock<File>,
}

impl Cache {
    /// Waits for the lock, then sweeps what an interrupted build left behind.
    pub fn open(root: &Path, on: &mut dyn FnMut(ImageEvent)) -> Result<Self, ImageError> {
        Self::open_until(root, LOCK_DEADLINE, on)
    }

    fn open_until(root: &Path, deadline: Duration, on: &mut dyn FnMut(ImageEvent)) -> Result<Self, ImageError> {
        for below in ["tmp", "stages", "images", "logs"] {
            let path = root.join(below);
            fs::create_dir_all(&path).map_err(ImageError::io("creating", &path))?;
        }
        let path = root.join("lock");
        let mut file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(ImageError::io("opening", &path))?;
        let started = Instant::now();
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((_, error)) if error != nix::errno::Errno::EWOULDBLOCK => {
                    return Err(ImageError::io("locking", &path)(error.into()));
                }
                Err((unlocked, _)) => file = unlocked,
            }
            if started.elapsed() >= deadline {
                return Err(ImageError::Busy { path: root.to_owned(), minutes: deadline.as_secs() / 60 });
            }
            if started.elapsed() < Duration::from_millis(1) {
                on(ImageEvent::Waiting { cache: root.to_owned() });
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a file lock cannot be polled together with a deadline; called off the runtime"
            )]
            std::thread::sleep(Duration::from_millis(500).min(deadline));
        };
        let cache = Self { root: root.to_owned(), _lock: lock };
        for leftover in directories(&cache.root.join("tmp"))? {
            remove(&leftover)?;
        }
        Ok(cache)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Where the image of that key is, or will be.
    pub fn image_dir(&self, key: &str) -> PathBuf {
        self.root.join("images").join(key)
    }

    /// Where the stage of that name and key is, or will be.
    pub fn stage_dir(&self, name: &str, key: &str) -> PathBuf {
        self.root.join("stages").join(format!("{name}-{key}"))
    }

    /// A stage as it was finished before, unless a file of it is gone or truncated.
    pub fn stage(&self, name: &str, key: &str) -> Option<PathBuf> {
        let dir = self.stage_dir(name, key);
        let text = fs::read_to_string(dir.join("stage.json")).ok()?;
        let files: std::collections::BTreeMap<String, FileRecord> = serde_json::from_str(&text).ok()?;
        let whole =
            files.iter().all(|(name, record)| fs::metadata(dir.join(name)).is_ok_and(|metadata| metadata.len() == record.bytes));
        whole.then_some(dir)
    }

    /// Makes a stage: `work` fills a fresh directory, which becomes the stage only
    /// when it is complete and on disk.
    pub fn make_stage(
        &self,
        name: &str,
        key: &str,
        work: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        self.make(&self.stage_dir(name, key), |fresh| {
            work(fresh)?;
            let text = serde_json::to_string_pretty(&records(fresh)?).unwrap_or_default();
            let path = fresh.join("stage.json");
            fs::write(&path, text).map_err(ImageError::io("writing", &path))
        })
    }

    /// Makes a directory that exists whole or not at all, replacing one that is there.
    pub fn make(&self, dir: &Path, work: impl FnOnce(&Path) -> Result<(), ImageError>) -> Result<PathBuf, ImageError> {
        let name = dir.file_name().unwrap_or_default();
        let fresh = self.root.join("tmp").join(name);
        fs::create_dir_all(&fresh).map_err(ImageError::io("creating", &fresh))?;
        work(&fresh)?;
        sync(&fresh)?;
        if dir.exists() {
            self.discard(dir)?;
        }
        fs::rename(&fresh, dir).map_err(ImageError::io("moving into place", dir))?;
        let parent = dir.parent().unwrap_or(dir);
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(ImageError::io("writing to disk", parent))?;
        Ok(dir.to_owned())
    }

    /// A directory for work that nobody will want afterwards.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, ImageError> {
        let path = self.root.join("tmp").join(format!("{name}.work"));
        fs::create_dir_all(&path).map_err(ImageError::io("creating", &path))?;
        Ok(path)
    }

    /// Moves a directory out of sight in one step, then removes it: whoever reads the
    /// cache never sees half of it.
    pub fn discard(&self, dir: &Path) -> Result<(), ImageError> {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(".gone");
        let aside = self.root.join("tmp").join(name);
        if aside.exists() {
            remove(&aside)?;
        }
        fs::rename(dir, &aside).map_err(ImageError::io("moving aside", dir))?;
        remove(&aside)
    }
}

/// Removes a directory of ours, also when an unprivileged build left files in it that
/// belong to ids lent to us.
pub(super) fn remove(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Namespaces::of_this_user().remove(dir).map_err(|_| ImageError::io("removing", dir)(error)),
    }
}

/// Size and digest of every regular file below a directory, by relative path.
pub(super) fn records(dir: &Path) -> Result<std::collections::BTreeMap<String, FileRecord>, ImageError> {
    let mut found = std::collections::BTreeMap::new();
    for path in files(dir)? {
        let bytes = fs::metadata(&path).map_err(ImageError::io("reading", &path))?.len();
        let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
        found.insert(name, FileRecord { bytes, sha256: digest(&path)? });
    }
    Ok(found)
}

/// SHA-256 of a file, in hex. By the tool: it uses the processor's instructions
/// whatever this program was compiled with, and these files are large.
pub(super) fn digest(path: &Path) -> Result<String, ImageError> {
    File::open(path).and_then(digest::of).map_err(ImageError::io("computing the digest of", path))
}

/// The regular files below a directory. Links are not followed, nor listed.
fn files(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(ImageError::io("reading", dir))? {
        let entry = entry.map_err(ImageError::io("reading", dir))?;
        let kind = entry.file_type().map_err(ImageError::io("reading", dir))?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes of disk the files below a directory take; files with several names count once.
pub(super) fn disk_bytes(dir: &Path) -> u64 {
    let mut seen = std::collections::BTreeSet::new();
    let metadata = files(dir).unwrap_or_default().into_iter().filter_map(|path| fs::metadata(path).ok());
    metadata.filter(|metadata| seen.insert(metadata.ino())).map(|metadata| metadata.blocks() * 512).sum()
}

/// Writes a directory's files and names to disk.
fn sync(dir: &Path) -> Result<(), ImageError> {
    for path in files(dir)?.iter().map(PathBuf::as_path).chain([dir]) {
        File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::io("writing to disk", path))?;
    }
    Ok(())
}

/// The directories directly below one that may not exist.
fn directories(below: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = match fs::read_dir(below) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ImageError::io("reading", below)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(ImageError::io("reading", below))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
