//! Files on this computer: written whole or not at all, private from the first byte, refused when looser than they should be.
//! The rest of `store` and `pki` go through it; nothing else in the program writes into a state directory.
//! It knows bytes, modes and owners, and nothing of what the files mean.

use super::failpoint::{self, Class};
use crate::secret::Secret;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Mode of what only its owner may read.
pub const SECRET: u32 = 0o600;
/// Mode of what anybody may read (who gets past the directory's 0700).
pub const PUBLIC: u32 = 0o644;

/// Prefix of files under way; `sweep` removes what a crash left of them.
const TEMPORARY: &str = ".tmp-";
/// Most bytes read from one file: far above anything we write, far below what a wrong path could hold.
pub(super) const LIMIT: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("failed to {action} {}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is {found}, not {want}", .path.display())]
    Kind { path: PathBuf, found: &'static str, want: &'static str },
    #[error("{} belongs to user {owner}, not to user {us} who runs this", .path.display())]
    Owner { path: PathBuf, owner: u32, us: u32 },
    /// `allowed`: the bits it may have.
    #[error("{} has mode {mode:04o}, accessible to others than its owner; at most {allowed:04o} is accepted", .path.display())]
    Loose { path: PathBuf, mode: u32, allowed: u32 },
    #[error("{} has {bytes} bytes, more than any file of ours", .path.display())]
    Big { path: PathBuf, bytes: u64 },
    #[error("{} is not UTF-8 text", .path.display())]
    NotText { path: PathBuf },
}

impl FileError {
    /// Nothing is there by that name.
    pub fn is_missing(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// There was no room for it.
    pub fn is_full(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if is_full(source))
    }

    /// The command or action that helps.
    pub fn hint(&self) -> Option<String> {
        match self {
            FileError::Loose { path, allowed, .. } => {
                Some(format!("look who could have read it, then: chmod {allowed:04o} {}", quoted(path)))
            }
            FileError::Owner { path, us, .. } => Some(format!("run as its owner, or: chown -R {us} {}", quoted(path))),
            FileError::Big { path, .. } => {
                Some(format!("look what has filled it, then move {} away or bring it back from a backup", path.display()))
            }
            FileError::Kind { path, .. } => Some(format!("move {} away; it was not made by this program", path.display())),
            _ if self.is_full() => Some("free space on that file system, then run the same command again".to_owned()),
            _ => None,
        }
    }
}

/// There is no room: on the disk, or in what its user may have of it.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// For messages only: a path as a shell takes it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// `Ok(None)` for what is not there.
pub fn if_there<T>(result: Result<T, FileError>) -> Result<Option<T>, FileError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Writes all of `bytes` under a temporary name in the same directory and renames it. A reader, or a crash at any
/// moment, sees the old file or the new one. The temporary file is 0600 from its creation; `mode` is set before the rename.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let point = |when: &str| failpoint::at(Class::File, &format!("{name}/{when}"));
    let mut file = tempfile::Builder::new()
        .prefix(&format!("{TEMPORARY}{name}-"))
        .permissions(Permissions::from_mode(SECRET))
        .tempfile_in(dir)
        .map_err(io_error("create a file in", dir))?;
    failpoint::room().and_then(|()| file.write_all(bytes)).map_err(io_error("write", path))?;
    if mode != SECRET {
        file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))?;
    }
    file.as_file().sync_all().map_err(io_error("flush", path))?;
    point("written");
    file.persist(path).map_err(|error| io_error("rename into place", path)(error.error))?;
    sync_dir(dir)?;
    point("renamed");
    Ok(())
}

/// Makes names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("flush", dir))
}

/// A directory only we can enter: made 0700, or found to be one. `true`: it was made.
pub fn ensure_dir(path: &Path) -> Result<bool, FileError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            if let Some(parent) = path.parent() {
                sync_dir(parent)?;
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_dir(path).map(|()| false),
        Err(error) => Err(io_error("create directory", path)(error)),
    }
}

/// Is a real directory, ours, and closed to others.
pub fn check_dir(path: &Path) -> Result<(), FileError> {
    let seen = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    if !seen.is_dir() {
        return Err(FileError::Kind { path: path.to_owned(), found: kind(&seen), want: "a directory" });
    }
    owned(path, &seen)?;
    closed(path, &seen, 0o700)
}

/// A secret's content: a regular file of ours that nobody else may read.
pub fn read_secret(path: &Path) -> Result<Secret, FileError> {
    text(path, read(path, 0o600)?).map(Secret::from)
}

/// The same without asking for text: the journal's reader reports garbage by line.
pub(super) fn read_secret_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    read(path, 0o600)
}

/// A public file's content: a regular file of ours that nobody else may write.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    text(path, read(path, 0o644)?)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, FileError> {
    String::from_utf8(bytes).map_err(|_| FileError::NotText { path: path.to_owned() })
}

/// Opens without following a link, looks at what was opened (not at the name again), and reads it.
/// `O_NONBLOCK` keeps a FIFO of that name from blocking the open; regular files ignore it.
fn read(path: &Path, allowed: u32) -> Result<Vec<u8>, FileError> {
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        if error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) {
            return FileError::Kind { path: path.to_owned(), found: "a symbolic link", want: "a regular file" };
        }
        io_error("open", path)(error)
    })?;
    let seen = file.metadata().map_err(io_error("look at", path))?;
    if !seen.is_file() {
        return Err(FileError::Kind { path: path.to_owned(), found: kind(&seen), want: "a regular file" });
    }
    owned(path, &seen)?;
    closed(path, &seen, allowed)?;
    if seen.len() > LIMIT {
        return Err(FileError::Big { path: path.to_owned(), bytes: seen.len() });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(seen.len()).unwrap_or_default());
    file.take(LIMIT).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(bytes)
}

fn owned(path: &Path, seen: &fs::Metadata) -> Result<(), FileError> {
    let us = nix::unistd::geteuid().as_raw();
    if seen.uid() == us { Ok(()) } else { Err(FileError::Owner { path: path.to_owned(), owner: seen.uid(), us }) }
}

/// No bit for group or others beyond `allowed`.
fn closed(path: &Path, seen: &fs::Metadata, allowed: u32) -> Result<(), FileError> {
    let mode = seen.mode() & 0o7777;
    if mode & 0o077 & !allowed == 0 {
        Ok(())
    } else {
        // The owner's own bits were never in question: keep them in what is advised.
        Err(FileError::Loose { path: path.to_owned(), mode, allowed: allowed | (mode & 0o700) })
    }
}

fn kind(seen: &fs::Metadata) -> &'static str {
    let kind = seen.file_type();
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a regular file"
    } else {
        "a device, pipe or socket"
    }
}

/// Removes what a crash left of writes in `dir` (not below it). Only for who holds the lock.
pub fn sweep(dir: &Path) -> Result<usize, FileError> {
    let mut swept = 0;
    let Some(entries) = if_there(fs::read_dir(dir).map_err(io_error("list", dir)))? else { return Ok(0) };
    for entry in entries {
        let entry = entry.map_err(io_error("list", dir))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            swept += 1;
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn private() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }
    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
    }
    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o7777
    }

    #[test]
    fn what_is_written_is_read_back_with_its_mode_and_nothing_else_is_left() {
        let dir = private();
        for (name, bits) in [("key", SECRET), ("cert", PUBLIC)] {
            let path = dir.path().join(name);
            for text in ["first", "second, longer"] {
                write_atomic(&path, text.as_bytes(), bits).expect("written");
                assert_eq!((read_text(&path).expect("read"), mode(&path)), (text.to_owned(), bits));
            }
        }
        assert_eq!(read_secret(&dir.path().join("key")).expect("read").expose(), "second, longer");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2);
    }

    #[test]
    fn a_secret_readable_by_others_is_refused_with_the_command_that_closes_it() {
        let dir = private();
        let path = dir.path().join("it's key");
        write_atomic(&path, b"x", SECRET).expect("written");
        for loose in [0o640, 0o604, 0o610, 0o622] {
            chmod(&path, loose);
            let error = read_secret(&path).expect_err("too loose");
            assert!(matches!(error, FileError::Loose { mode, .. } if mode == loose), "{error}");
            assert!(error.hint().expect("a hint").contains(r"chmod 0600 '") && error.to_string().contains("0600"), "{error}");
        }
        chmod(&path, 0o400);
        assert!(read_secret(&path).is_ok(), "tighter is fine");
        chmod(&path, 0o644);
        assert!(read_text(&path).is_ok(), "a certificate may be read by all");
        chmod(&path, 0o664);
        assert!(read_text(&path).is_err(), "but written only by its owner");
    }

    #[test]
    fn links_directories_pipes_and_binary_are_refused_by_kind() {
        let dir = private();
        let at = |name: &str| dir.path().join(name);
        write_atomic(&at("real"), b"x", SECRET).expect("written");
        symlink(at("real"), at("link")).expect("link");
        symlink(at("nowhere"), at("dangling")).expect("link");
        fs::create_dir(at("dir")).expect("dir");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("fifo");
        write_atomic(&at("binary"), &[0xff, 0xfe, 0], SECRET).expect("written");
        for (name, says) in [
            ("link", "a symbolic link"),
            ("dangling", "a symbolic link"),
            ("dir", "a directory"),
            ("pipe", "a device, pipe or socket"),
            ("binary", "not UTF-8"),
        ] {
            let error = read_secret(&at(name)).expect_err(name);
            assert!(error.to_string().contains(says), "{name}: {error}");
        }
        let missing = read_secret(&at("missing"));
        assert!(missing.as_ref().is_err_and(FileError::is_missing));
        assert!(if_there(missing).expect("not an error").is_none());
    }

    #[test]
    fn what_is_longer_than_any_file_of_ours_is_not_read_and_the_hint_names_it() {
        let dir = private();
        let path = dir.path().join("plan");
        write_atomic(&path, b"x", SECRET).expect("written");
        OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(LIMIT + 1)).expect("all of it a hole");
        let error = read_text(&path).expect_err("too long");
        assert!(matches!(error, FileError::Big { .. }) && error.hint().is_some_and(|hint| hint.contains("plan")), "{error}");
    }

    #[test]
    fn directories_are_private_or_refused() {
        let dir = private();
        let at = |name: &str| dir.path().join(name);
        assert!(ensure_dir(&at("new")).expect("made"));
        assert_eq!(mode(&at("new")), 0o700);
        assert!(!ensure_dir(&at("new")).expect("kept"));
        chmod(&at("new"), 0o755);
        assert!(
            ensure_dir(&at("new"))
                .expect_err("loose")
                .hint()
                .expect("hint")
                .starts_with("look who could have read it, then: chmod 0700")
        );
        chmod(&at("new"), 0o700);
        symlink(at("new"), at("link")).expect("link");
        assert!(matches!(ensure_dir(&at("link")), Err(FileError::Kind { found: "a symbolic link", .. })));
        write_atomic(&at("file"), b"", SECRET).expect("written");
        assert!(matches!(ensure_dir(&at("file")), Err(FileError::Kind { found: "a regular file", .. })));
    }

    /// Root gives a file away; others look at one of root's, which everybody has.
    #[test]
    fn another_users_file_is_refused() {
        let dir = private();
        let us = nix::unistd::geteuid().as_raw();
        let (path, theirs) = if us == 0 {
            let path = dir.path().join("key");
            write_atomic(&path, b"x", SECRET).expect("written");
            std::os::unix::fs::chown(&path, Some(12345), None).expect("chown");
            (path, 12345)
        } else {
            (PathBuf::from("/proc/version"), fs::metadata("/proc/version").expect("there").uid())
        };
        assert_ne!(theirs, us);
        let error = read_text(&path).expect_err("not ours");
        assert!(matches!(error, FileError::Owner { owner, us: we, .. } if owner == theirs && we == us), "{error}");
        assert!(error.hint().expect("hint").contains(&format!("chown -R {us}")));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = private();
        let target = dir.path().join("taken");
        fs::create_dir(&target).expect("dir");
        assert!(write_atomic(&target, b"x", SECRET).is_err(), "a directory cannot be renamed over");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_full_disk_and_a_quota_used_up_are_both_no_room() {
        use nix::errno::Errno;
        for (errno, full) in [(Errno::ENOSPC, true), (Errno::EDQUOT, true), (Errno::EIO, false), (Errno::EROFS, false)] {
            let error = || io::Error::from(errno);
            assert_eq!(is_full(&error()), full, "{errno}");
            let file = FileError::Io { action: "write", path: PathBuf::from("plan.json"), source: error() };
            let record = super::super::JournalError::Write { path: PathBuf::from("journal.jsonl"), source: error() };
            assert_eq!((file.is_full(), file.hint().is_some()), (full, full), "{errno}");
            assert_eq!((record.is_full(), record.hint().is_some()), (full, full), "{errno}");
        }
    }

    #[test]
    fn sweep_takes_what_a_crash_left_and_nothing_else() {
        let dir = private();
        for name in [".tmp-key-abc", "key", ".hidden"] {
            write_atomic(&dir.path().join(name), b"x", SECRET).expect("written");
        }
        assert_eq!(sweep(dir.path()).expect("swept"), 1);
        assert!(dir.path().join("key").exists() && dir.path().join(".hidden").exists());
        assert_eq!(sweep(&dir.path().join("missing")).expect("nothing there"), 0);
    }

    /// Readers racing with a writer never see a mixture or a part.
    #[test]
    fn concurrent_readers_see_one_version_or_the_other() {
        let dir = private();
        let path = dir.path().join("plan");
        let versions = ["a".repeat(70_000), "b".repeat(50_000)];
        write_atomic(&path, versions[0].as_bytes(), SECRET).expect("written");
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| (0..200).filter(|_| versions.contains(&read_text(&path).expect("always there"))).count()))
                .collect();
            for i in 1..60 {
                write_atomic(&path, versions[i % 2].as_bytes(), SECRET).expect("written");
            }
            for reader in readers {
                assert_eq!(reader.join().expect("no panic"), 200);
            }
        });
    }
}
