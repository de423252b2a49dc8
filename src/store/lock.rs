//! One writer at a time: an exclusive `flock` on a file in the cluster's directory.
//! Verbs that change something take it through `ClusterDir::lock`; reading verbs take none.
//! The kernel releases it when the process ends, however it ends, so there is no stale lock to break.

use super::StoreError;
use super::failpoint::room;
use super::files::FileError;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "lock";
/// Most characters of a command kept for the message.
const COMMAND_LIMIT: usize = 200;

/// Held as long as it lives. Dropping it, or the end of the process, gives the directory free.
#[derive(Debug)]
pub struct Lock {
    file: File,
    dir: PathBuf,
}

impl Lock {
    /// The directory it guards.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its directory has another name now; the kernel's lock is on the file, and goes with it.
    pub(super) fn renamed(mut self, dir: PathBuf) -> Lock {
        self.dir = dir;
        self
    }
}

impl Drop for Lock {
    /// Closing the file would not do: a child that another thread has just forked shares the open file until its `exec`
    /// closes it, and keeps the lock that long (flock(2)).
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// Who holds it, as far as they said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
    pub since: Timestamp,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) since {}", self.pid, self.command, self.since.strftime("%Y-%m-%d %H:%M:%S UTC"))
    }
}

/// Takes the lock or says at once who has it. `command` is what the user typed, for the others' message.
pub(super) fn take(dir: &Path, command: &str, now: Timestamp) -> Result<Lock, StoreError> {
    let path = dir.join(NAME);
    let io = |action, source| StoreError::File(FileError::Io { action, path: path.clone(), source });
    // A removed cluster takes its lock file along: whoever locked the old file holds nothing. Look again, a few times.
    for _ in 0..8 {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => StoreError::Vanished { path: dir.to_owned() },
                _ => io("open", error),
            })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { dir: dir.to_owned(), holder: named(&mut file) }),
            Err(TryLockError::Error(error)) => return Err(io("lock", error)),
        }
        let locked = file.metadata().map_err(|error| io("look at", error))?;
        match std::fs::symlink_metadata(&path) {
            Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => {}
            _ => continue,
        }
        let command = command.chars().filter(|c| !c.is_control()).take(COMMAND_LIMIT).collect();
        match sign(&mut file, &Holder { pid: std::process::id(), command, since: now }) {
            // A full disk costs the name that others would be told, not the lock: `down` may be about to make room.
            Err(error) if error.kind() != std::io::ErrorKind::StorageFull => return Err(io("write", error)),
            _ => return Ok(Lock { file, dir: dir.to_owned() }),
        }
    }
    Err(StoreError::Vanished { path: dir.to_owned() })
}

/// Writes who holds it into the locked file. Not atomic: a reader that sees half of it says "somebody".
fn sign(file: &mut File, holder: &Holder) -> std::io::Result<()> {
    let text = serde_json::to_vec(holder)?;
    file.set_len(0)?;
    file.rewind()?;
    room()?;
    file.write_all(&text)
}

/// How long, and how often, a holder is waited for who has the lock and has not written who it is.
const UNNAMED: (u32, Duration) = (50, Duration::from_millis(20));

/// Who holds it; `None`: it did not say so in a second, as on a full disk.
#[expect(clippy::disallowed_methods, reason = "a moment between two writes of another process; there may be no runtime here")]
fn named(file: &mut File) -> Option<Holder> {
    let (times, pause) = UNNAMED;
    holder(file).or_else(|| {
        (0..times).find_map(|_| {
            std::thread::sleep(pause);
            holder(file)
        })
    })
}

fn holder(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(4096).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    #[test]
    fn the_second_one_is_told_who_has_it_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().expect("dir");
        let held = take(dir.path(), "ktcw-vm up --etcd 3\n", now()).expect("free");
        let refused = take(dir.path(), "ktcw-vm down", now()).expect_err("busy");
        let StoreError::Busy { holder: Some(holder), .. } = &refused else { panic!("{refused}") };
        assert_eq!((holder.pid, holder.command.as_str(), holder.since), (std::process::id(), "ktcw-vm up --etcd 3", now()));
        assert!(refused.to_string().contains("ktcw-vm up --etcd 3"), "{refused}");
        drop(held);
        drop(take(dir.path(), "ktcw-vm down", now()).expect("free again"));
    }

    #[test]
    fn it_is_free_once_dropped_though_a_forked_child_still_has_the_file() {
        let dir = tempfile::tempdir().expect("dir");
        let held = take(dir.path(), "up", now()).expect("free");
        let of_the_child = held.file.try_clone().expect("shares the open file, as a fork does");
        drop(held);
        drop(take(dir.path(), "down", now()).expect("free at once"));
        drop(of_the_child);
    }

    #[test]
    fn garbage_in_the_lock_file_only_costs_the_name() {
        let dir = tempfile::tempdir().expect("dir");
        let held = take(dir.path(), "up", now()).expect("free");
        std::fs::write(dir.path().join(NAME), [0xff; 100]).expect("written");
        assert!(matches!(take(dir.path(), "down", now()), Err(StoreError::Busy { holder: None, .. })));
        drop(held);
        assert!(take(dir.path(), "down", now()).is_ok());
    }

    /// Never two inside, and everybody gets in: 8 threads, 50 turns each.
    #[test]
    fn many_contenders_are_served_one_at_a_time() {
        let dir = tempfile::tempdir().expect("dir");
        let (inside, turns) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = loop {
                            match take(dir.path(), "thread", now()) {
                                Ok(lock) => break lock,
                                Err(StoreError::Busy { .. }) => std::thread::yield_now(),
                                Err(other) => panic!("{other}"),
                            }
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                        turns.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 400);
    }

    /// Everybody takes the file away while holding it, as a removal does: still never two inside.
    #[test]
    fn a_lock_on_a_file_taken_away_is_not_a_lock() {
        let dir = tempfile::tempdir().expect("dir");
        let inside = AtomicU32::new(0);
        let end = std::time::Instant::now() + std::time::Duration::from_millis(500);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while std::time::Instant::now() < end {
                        if let Ok(lock) = take(dir.path(), "thread", now()) {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                            std::thread::yield_now();
                            // Whoever comes after the removal makes a file of its own and is right to be inside.
                            inside.fetch_sub(1, Ordering::SeqCst);
                            std::fs::remove_file(dir.path().join(NAME)).expect("it is the one we hold");
                            drop(lock);
                        }
                    }
                });
            }
        });
    }

    /// The process that held it was killed: the lock is free, and its file says so by being lockable.
    #[test]
    fn a_killed_holder_leaves_no_stale_lock() {
        let dir = tempfile::tempdir().expect("dir");
        let mut child = crate::store::crash::child("store::lock::tests::child_holds_the_lock", &[("KTCW_TEST_DIR", &dir.path())]);
        let patience = std::time::Instant::now();
        while !matches!(take(dir.path(), "parent", now()), Err(StoreError::Busy { holder: Some(h), .. }) if h.pid == child.id()) {
            assert!(patience.elapsed().as_secs() < 30, "the child never took the lock");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        take(dir.path(), "parent", now()).expect("free at once");
    }

    #[test]
    #[ignore = "only as a child of the test above"]
    fn child_holds_the_lock() {
        let dir = std::env::var_os("KTCW_TEST_DIR").expect("set by the parent");
        let _lock = loop {
            match take(Path::new(&dir), "child", now()) {
                Ok(lock) => break lock,
                Err(StoreError::Busy { .. }) => std::thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        };
        // Ends when the parent kills it, or by itself should the parent be gone.
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    #[test]
    fn a_lock_on_a_removed_directory_is_not_a_lock() {
        let parent = tempfile::tempdir().expect("dir");
        let dir = parent.path().join("gone");
        assert!(matches!(take(&dir, "up", now()), Err(StoreError::Vanished { .. })));
    }
}
