//! A file of the user's that other programs change too, such as `~/.kube/config`: edited as kubectl edits it.
//! `kubeconfig --merge` and `down` call it with a function from text to text.
//! It follows links, keeps owner and place, gives what is new to whose directory it is in, and knows nothing of what is in the file.

use super::above::{above, ensure_dir, give};
use super::files::{FileError, if_there};
use super::lock::{Holder, is_left_behind, sign};
use super::{Class, StoreError, failpoint};
use crate::secret::Secret;
use jiff::Timestamp;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Reads the file (nothing there: an empty text), asks `change` for its new text and puts that in its place, atomically.
/// `Ok(None)` from `change`, or the same text, leaves it alone; an `Err` says why it must be. Returns whether it was written.
///
/// What is written holds a key, so group and others lose their access to it. While it is open `<path>.lock` exists, which is
/// how kubectl keeps two of itself apart. What a run that was killed in here has left goes first, whatever `change` says.
pub fn edit(path: &Path, change: impl FnOnce(&str) -> Result<Option<Secret>, String>) -> Result<bool, StoreError> {
    let path = resolve(path)?;
    let held = Held::take(&path)?;
    sweep(&path, &held.lock)?;
    let seen = if_there(fs::metadata(&path).map_err(io("look at", &path)))?;
    if seen.as_ref().is_some_and(|seen| !seen.is_file()) {
        return Err(FileError::Kind { path, found: "not a regular file", want: "a regular file" }.into());
    }
    let old = match &seen {
        Some(_) => Secret::from(fs::read_to_string(&path).map_err(io("read", &path))?),
        None => Secret::new(""),
    };
    let new = change(old.expose()).map_err(|why| StoreError::Refused { path: path.clone(), why })?;
    let Some(new) = new.filter(|new| *new != old) else { return Ok(false) };
    let mut file = begun(&path)?;
    failpoint::room().and_then(|()| file.write_all(new.expose().as_bytes())).map_err(io("write", &path))?;
    match &seen {
        Some(seen) => {
            // Through sudo: the file stays its owner's.
            fchown(&file, Some(seen.uid()), Some(seen.gid())).map_err(io("keep the owner of", &path))?;
            file.as_file().set_permissions(Permissions::from_mode(seen.mode() & 0o700)).map_err(io("set the mode of", &path))?;
        }
        None => give(file.as_file(), parent(&path))?,
    }
    file.as_file().sync_all().map_err(io("flush", &path))?;
    failpoint(Class::File, "shared/written");
    file.persist(&path).map_err(|error| io("rename into place", &path)(error.error))?;
    super::files::sync_dir(parent(&path))?;
    failpoint(Class::File, "shared/renamed");
    Ok(true)
}

/// The real place of the file, its directory made when there is none.
fn resolve(path: &Path) -> Result<PathBuf, FileError> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            let dir = ensure_dir(above(path))?;
            Ok(dir.join(path.file_name().unwrap_or_default()))
        }
        Err(error) => Err(io("look at", path)(error)),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Letters and digits drawn for a file under way.
const DRAWN: usize = 6;

/// What the name of a file under way to this place begins with. It says to which one: the lock is one file's, and beside it others may
/// be changed at the same time.
fn beginning(path: &Path) -> String {
    format!(".ktcw-{}-", path.file_name().unwrap_or_default().to_string_lossy())
}

/// A file on its way to this place, its owner's alone from the first byte.
fn begun(path: &Path) -> Result<NamedTempFile, FileError> {
    let dir = parent(path);
    tempfile::Builder::new()
        .prefix(&beginning(path))
        .rand_bytes(DRAWN)
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(io("create a file in", dir))
}

/// Removes what was on its way here when a run was killed: whole kubeconfigs, with everybody's keys. Only for who holds the lock.
fn sweep(path: &Path, lock: &Path) -> Result<(), FileError> {
    let dir = parent(path);
    let ours = |name: &str, to: &Path| {
        let drawn = name.strip_prefix(&beginning(to)).unwrap_or_default();
        drawn.len() == DRAWN && drawn.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    for entry in fs::read_dir(dir).map_err(io("list", dir))? {
        let entry = entry.map_err(io("list", dir))?;
        let (name, at) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        if ours(&name, path) {
            if_there(fs::remove_file(&at).map_err(io("remove", &at)))?;
        } else if ours(&name, lock) {
            // One of somebody who is about to be told that we have it may be there too, and stays.
            broken(&at)?;
        }
    }
    Ok(())
}

/// `<path>.lock`, removed when done. A crash leaves it, with a word in it of who it was.
struct Held {
    lock: PathBuf,
    /// Under the kernel's lock, which ends with the process: whoever lives where we see no processes of is not taken for dead.
    file: File,
}

impl Held {
    fn take(path: &Path) -> Result<Held, StoreError> {
        let lock = path.with_added_extension("lock");
        // Between two looks it may be given free, and taken by another one.
        for _ in 0..8 {
            if let Some(held) = Held::make(&lock)? {
                return Ok(held);
            }
            if !broken(&lock)? {
                break;
            }
        }
        Err(StoreError::Shared { path: path.to_owned(), lock })
    }

    /// With its word in it from the first moment that it is there: one without is kubectl's, and nobody could say whose this was.
    /// `None`: somebody has it.
    fn make(lock: &Path) -> Result<Option<Held>, FileError> {
        let mut file = begun(lock)?;
        give(file.as_file(), parent(lock))?;
        let holder = Holder { pid: std::process::id(), command: "ktcw-vm".to_owned(), since: Timestamp::now() };
        sign(file.as_file_mut(), &holder).map_err(io("write", lock))?;
        // Where there are no such locks the word has to do.
        let _ = file.as_file().try_lock();
        failpoint(Class::File, "shared/signed");
        match file.persist_noclobber(lock) {
            Ok(file) => {
                failpoint(Class::File, "shared/locked");
                Ok(Some(Held { lock: lock.to_owned(), file }))
            }
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(io("create", lock)(error.error)),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if is_named(&self.file, &self.lock) {
            let _ = fs::remove_file(&self.lock);
        }
        // As of our own locks: a child that was just forked may still have the file.
        let _ = self.file.unlock();
    }
}

/// Takes away a lock whose holder was killed; `true`: the way may be free now. It has to be one of ours by its word. kubectl's are
/// empty, and whether kubectl lives nobody can tell: those stay.
fn broken(lock: &Path) -> Result<bool, FileError> {
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let mut file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(lock) {
        Ok(file) => file,
        Err(error) => return Ok(error.kind() == io::ErrorKind::NotFound),
    };
    // Of two who find it at once one gets the kernel's lock, and only that one may take it away.
    if !is_left_behind(&mut file) || file.try_lock().is_err() {
        return Ok(false);
    }
    // Another one was quicker, and what has the name now is somebody's.
    if is_named(&file, lock) {
        fs::remove_file(lock).map_err(io("remove", lock))?;
    }
    Ok(true)
}

/// Whether the open file is still the one of that name.
fn is_named(file: &File, path: &Path) -> bool {
    let id = |seen: fs::Metadata| (seen.dev(), seen.ino());
    let (open, named) = (file.metadata().map(id), fs::symlink_metadata(path).map(id));
    matches!((open, named), (Ok(open), Ok(named)) if open == named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::crash;
    use std::os::unix::fs::{chown, symlink};

    fn put(text: &'static str) -> impl FnOnce(&str) -> Result<Option<Secret>, String> {
        move |old| Ok(Some(Secret::new(format!("{old}{text}"))))
    }
    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).expect("listed").count()
    }

    #[test]
    fn made_when_missing_changed_in_place_and_private_afterwards() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("new/.kube/config");
        assert!(edit(&path, put("a")).expect("made"));
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!((fs::read_to_string(&path).expect("read").as_str(), mode(&path)), ("a", 0o600));
        assert_eq!(mode(path.parent().expect("one")), 0o700);
        fs::set_permissions(&path, Permissions::from_mode(0o664)).expect("chmod");
        assert!(!edit(&path, |_| Ok(None)).expect("left alone") && !edit(&path, put("")).expect("the same"));
        assert_eq!(mode(&path), 0o664, "not even its mode");
        assert!(edit(&path, put("b")).expect("changed"));
        assert_eq!((fs::read_to_string(&path).expect("read").as_str(), mode(&path)), ("ab", 0o600));
        assert_eq!(entries(path.parent().expect("one")), 1, "no lock, no temporary file");
    }

    #[test]
    fn a_link_stays_a_link_and_an_owner_stays_the_owner() {
        let dir = tempfile::tempdir().expect("dir");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "x").expect("written");
        if nix::unistd::geteuid().is_root() {
            chown(&real, Some(12345), Some(12345)).expect("chown");
        }
        let owner = |path: &Path| fs::metadata(path).expect("there").uid();
        let before = owner(&real);
        symlink(&real, &link).expect("link");
        assert!(edit(&link, put("y")).expect("changed"));
        assert!(link.symlink_metadata().expect("there").is_symlink());
        assert_eq!((fs::read_to_string(&real).expect("read").as_str(), owner(&real)), ("xy", before));
        symlink(dir.path().join("nowhere"), dir.path().join("dangling")).expect("link");
        assert!(edit(&dir.path().join("dangling"), put("y")).is_err(), "where would it go?");
    }

    /// As root in somebody's home, through sudo. What an ordinary user makes is their own anyway.
    #[test]
    fn what_is_new_belongs_to_whose_directory_was_there() {
        let dir = tempfile::tempdir().expect("dir");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("made");
        let root = nix::unistd::geteuid().is_root();
        if root {
            chown(&home, Some(12345), Some(12346)).expect("chown");
        }
        let owner = |path: &Path| fs::metadata(path).map(|seen| (seen.uid(), seen.gid())).expect("there");
        let (theirs, path) = (owner(&home), home.join("new/.kube/config"));
        assert!(edit(&path, put("a")).expect("made"));
        for made in path.ancestors().take(3) {
            assert_eq!(owner(made), theirs, "{}", made.display());
        }
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let held = Held::take(&path).expect("free");
        assert_eq!(owner(&held.lock), theirs, "also what a crash would leave");
        drop(held);
        if root {
            chown(&path, Some(1), Some(1)).expect("chown");
            assert!(edit(&path, put("b")).expect("changed"));
            assert_eq!(owner(&path), (1, 1), "one that was there stays whose it was");
        }
        assert!(edit(&home.join("gone/../here/config"), put("a")).expect("made"));
        assert_eq!((owner(&home.join("here/config")), owner(&home.join("gone"))), (theirs, theirs));
    }

    #[test]
    fn refused_locked_and_odd_files_are_left_as_they_are() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("config");
        fs::write(&path, "theirs").expect("written");
        let error = edit(&path, |_| Err("not a kubeconfig".to_owned())).expect_err("refused");
        assert!(error.to_string().contains("not a kubeconfig"), "{error}");
        fs::write(dir.path().join("config.lock"), "").expect("written");
        let error = edit(&path, put("x")).expect_err("locked");
        assert!(matches!(error, StoreError::Shared { .. }) && error.hint().expect("hint").contains("config.lock"));
        assert!(dir.path().join("config.lock").exists(), "somebody else's lock is not removed");
        fs::remove_file(dir.path().join("config.lock")).expect("removed");
        assert_eq!((fs::read_to_string(&path).expect("read").as_str(), entries(dir.path())), ("theirs", 1));
        fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(edit(&path, put("x")).is_err(), "not text");
        assert!(edit(dir.path(), put("x")).is_err(), "a directory");
    }

    /// A word as `Held` writes it.
    fn word(pid: u32, since: Timestamp) -> Vec<u8> {
        serde_json::to_vec(&Holder { pid, command: "ktcw-vm".to_owned(), since }).expect("JSON")
    }

    /// Who is certainly no more.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().expect("started");
        child.wait().expect("ended");
        child.id()
    }

    #[test]
    fn a_lock_is_broken_when_it_is_ours_and_its_holder_is_dead_and_never_else() {
        let dir = tempfile::tempdir().expect("dir");
        let (path, lock) = (dir.path().join("config"), dir.path().join("config.lock"));
        let (long_ago, own) = (Timestamp::from_second(1_000_000_000).expect("a time"), std::process::id());
        for (content, breaks) in [
            (word(dead(), Timestamp::now()), true),
            // The number was given to another one since.
            (word(own, long_ago), true),
            (word(own, Timestamp::now()), false),
            (Vec::new(), false),
            (b"1234".to_vec(), false),
            (b"{}".to_vec(), false),
        ] {
            fs::write(&lock, &content).expect("written");
            let edited = edit(&path, put("x"));
            let said = String::from_utf8_lossy(&content).into_owned();
            assert_eq!((edited.is_ok(), lock.exists()), (breaks, !breaks), "{said}: {edited:?}");
            let _ = fs::remove_file(&lock);
        }
        // Its holder lives, though we see no process of that number: the kernel says so.
        fs::write(&lock, word(dead(), Timestamp::now())).expect("written");
        let elsewhere = File::open(&lock).expect("there");
        elsewhere.try_lock().expect("free");
        assert!(matches!(edit(&path, put("x")), Err(StoreError::Shared { .. })) && lock.exists());
        drop(elsewhere);
        fs::remove_file(&lock).expect("removed");
        assert_eq!((fs::read_to_string(&path).expect("read").as_str(), entries(dir.path())), ("xx", 1));
    }

    #[test]
    fn what_was_under_way_to_this_file_goes_and_everything_else_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("config");
        let at = |name: &str| dir.path().join(name);
        fs::write(at(".ktcw-config-aB3dE6"), "everybody's keys").expect("written");
        fs::write(at(".ktcw-config.lock-aB3dE6"), word(dead(), Timestamp::now())).expect("written");
        let others = [
            ".ktcw-config.lock-aaaaaa",
            ".ktcw-other-aB3dE6",
            ".ktcw-config-notes",
            ".ktcw-config-aB3d.6",
            ".ktcw-support-aB3dE6",
            "ktcw-config-aB3dE6",
        ];
        for name in others {
            // One who waits for the lock is about to put such a word in its place.
            fs::write(at(name), word(std::process::id(), Timestamp::now())).expect("written");
        }
        symlink(at("ktcw-config-aB3dE6"), at(".ktcw-config-linked")).expect("linked");
        assert!(!edit(&path, |_| Ok(None)).expect("nothing to write"), "also where there is nothing to change");
        assert!(!at(".ktcw-config-aB3dE6").exists() && !at(".ktcw-config.lock-aB3dE6").exists());
        for name in others {
            assert!(at(name).exists(), "{name}");
        }
        assert_eq!(entries(dir.path()), others.len() + 1);
    }

    /// Nobody's change is lost, and nobody takes a lock for a dead one's while its holder lives.
    #[test]
    fn many_at_once_change_it_one_after_the_other() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("config");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        while let Err(error) = edit(&path, put("x")) {
                            assert!(matches!(error, StoreError::Shared { .. }), "{error}");
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        assert_eq!((fs::read_to_string(&path).expect("read"), entries(dir.path())), ("x".repeat(40), 1));
    }

    /// Killed anywhere: the file is the old one or the new one, and the next edit finds its way and leaves no key beside it.
    #[test]
    fn killed_at_every_point_of_an_edit() {
        let place = crash::place();
        let child = "store::shared::tests::child_edits";
        let calm = place.path().join("calm");
        fs::create_dir(&calm).expect("made");
        let points = crash::points(child, &[("KTCW_TEST_DIR", &calm)], &place.path().join("count"));
        assert!(points.len() >= 4, "{points:?}");
        for point in &points {
            let dir = place.path().join(point.replace(':', "-"));
            fs::create_dir(&dir).expect("made");
            let path = dir.join("config");
            fs::write(&path, "old").expect("written");
            assert!(crash::aborts(child, &[("KTCW_TEST_DIR", &dir), ("KTCW_FAIL_AT", point)]), "{point}");
            let left = fs::read_to_string(&path).expect("there");
            assert!(["old", "old and new"].contains(&left.as_str()), "{point}: {left}");
            assert!(edit(&path, put("!")).unwrap_or_else(|error| panic!("{point}: {error}")));
            assert_eq!(fs::read_to_string(&path).expect("there"), format!("{left}!"), "{point}");
            assert_eq!(crash::entries(&dir), [path], "{point}");
        }
        println!("{}", crash::told("an edit", &points));
    }

    #[test]
    #[ignore = "only as a child of the test above"]
    fn child_edits() {
        let dir = PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"));
        edit(&dir.join("config"), put(" and new")).expect("changed");
    }
}
