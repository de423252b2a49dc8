//! One writer at a time: an exclusive `flock` on a file in the cluster's directory.
//! Verbs that change something take it through `ClusterDir::lock`; reading verbs take none.
//! The kernel releases it when the process ends, however it ends, so there is no stale lock to break.

use super::StoreError;
use super::failpoint::room;
use super::files::{FileError, is_full};
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
        // Whoever comes between the next one's lock and its signature must not be told of this one.
        let _ = self.file.set_len(0);
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

/// How often, and how long each time, somebody is waited for who has the lock and has not said who it is, or in whose file there is still
/// the word of one before it, who was killed. It may also have given it free by then.
const UNNAMED: (u32, Duration) = (50, Duration::from_millis(20));

/// Takes the lock or says who has it; `None`: who has it did not say so in a second, as on a full disk. `command` is what the user typed, for the others' message.
pub(super) fn take(dir: &Path, command: &str, now: Timestamp) -> Result<Lock, StoreError> {
    let path = dir.join(NAME);
    let io = |action, source| StoreError::File(FileError::Io { action, path: path.clone(), source });
    let (mut unnamed, mut gone) = (0, 0);
    // A removed cluster takes its lock file along: whoever locked the old file holds nothing. Look again, a few times.
    while gone < 8 {
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
            Err(TryLockError::WouldBlock) => match holder(&mut file) {
                None if unnamed < UNNAMED.0 => {
                    unnamed += 1;
                    pause();
                    continue;
                }
                holder => return Err(StoreError::Busy { dir: dir.to_owned(), holder }),
            },
            Err(TryLockError::Error(error)) => return Err(io("lock", error)),
        }
        let locked = file.metadata().map_err(|error| io("look at", error))?;
        match std::fs::symlink_metadata(&path) {
            Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => {}
            _ => {
                gone += 1;
                continue;
            }
        }
        let command = command.chars().filter(|c| !c.is_control()).take(COMMAND_LIMIT).collect();
        match sign(&mut file, &Holder { pid: std::process::id(), command, since: now }) {
            // A full disk costs the name that others would be told, not the lock: `down` may be about to make room.
            Err(error) if !is_full(&error) => return Err(io("write", error)),
            _ => return Ok(Lock { file, dir: dir.to_owned() }),
        }
    }
    Err(StoreError::Vanished { path: dir.to_owned() })
}

/// Writes who holds it into the locked file. Not atomic: a reader that sees half of it says "somebody".
pub(super) fn sign(file: &mut File, holder: &Holder) -> std::io::Result<()> {
    let text = serde_json::to_vec(holder)?;
    file.set_len(0)?;
    file.rewind()?;
    room()?;
    file.write_all(&text)
}

/// A moment between two writes of another process.
#[expect(clippy::disallowed_methods, reason = "there may be no runtime here")]
fn pause() {
    std::thread::sleep(UNNAMED.1);
}

fn holder(file: &mut File) -> Option<Holder> {
    written(file).filter(lives)
}

/// Whether the word in this file is one of ours, and whoever wrote it is no more. No word says nothing of anybody.
pub(super) fn is_left_behind(file: &mut File) -> bool {
    written(file).is_some_and(|holder| !lives(&holder))
}

fn written(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(4096).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn lives(holder: &Holder) -> bool {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    // Where the kernel shows no processes the word is all there is.
    read("/proc/stat").is_none_or(|kernel| may_hold(holder, read(&format!("/proc/{}/stat", holder.pid)).as_deref(), &kernel))
}

/// Whether it can be who has the lock, by what the kernel says of the process of its number. A dead one holds nothing; one that began
/// after the word was written is another, to which the number was given again.
fn may_hold(holder: &Holder, process: Option<&str>, kernel: &str) -> bool {
    /// Of the kernel's count of time in there, on every architecture.
    const TICKS_PER_S: i64 = 100;
    let began = || {
        let booted: i64 = kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        // What the process is called stands in brackets, and may itself be anything.
        let mut fields = process?.rsplit_once(')')?.1.split_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X");
        let ticks: i64 = fields.nth(18)?.parse().ok()?;
        (!dead).then_some(booted.saturating_add(ticks / TICKS_PER_S))
    };
    // Both clocks count whole seconds.
    began().is_some_and(|began| began <= holder.since.as_second().saturating_add(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn now() -> Timestamp {
        Timestamp::now()
    }

    #[test]
    fn the_second_one_is_told_who_has_it_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().expect("dir");
        let since = now();
        let held = take(dir.path(), "ktcw-vm up --etcd 3\n", since).expect("free");
        let refused = take(dir.path(), "ktcw-vm down", now()).expect_err("busy");
        let StoreError::Busy { holder: Some(holder), .. } = &refused else { panic!("{refused}") };
        assert_eq!((holder.pid, holder.command.as_str(), holder.since), (std::process::id(), "ktcw-vm up --etcd 3", since));
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

    #[test]
    fn without_room_for_its_word_it_is_a_lock_all_the_same() {
        use crate::store::failpoint::{full_from, over_quota_from};
        for no_room in [full_from as fn(u64) -> u64, over_quota_from] {
            let dir = tempfile::tempdir().expect("dir");
            no_room(1);
            let taken = take(dir.path(), "down", now());
            full_from(0);
            let _held = taken.expect("held");
            assert!(matches!(take(dir.path(), "up", now()), Err(StoreError::Busy { holder: None, .. })));
        }
    }

    #[test]
    fn who_gave_it_free_is_not_named_any_more() {
        let dir = tempfile::tempdir().expect("dir");
        drop(take(dir.path(), "up", now()).expect("free"));
        assert_eq!(std::fs::read(dir.path().join(NAME)).expect("there"), b"");
    }

    /// The one before was killed, and its word is still in the file when the next one has the lock: nobody is told to stop a dead
    /// process, or another one that has its number by now.
    #[test]
    fn the_word_of_a_dead_holder_is_not_believed() {
        let dir = tempfile::tempdir().expect("dir");
        let mut dead = std::process::Command::new("true").spawn().expect("started");
        let signed = |pid, since| serde_json::to_vec(&Holder { pid, command: "killed".to_owned(), since }).expect("JSON");
        let (long_ago, own) = (Timestamp::from_second(1_000_000_000).expect("a time"), std::process::id());
        let gone = dead.id();
        // A zombie first: nobody has asked how it ended.
        std::thread::sleep(Duration::from_millis(200));
        let held = take(dir.path(), "next", now()).expect("free");
        for (word, believed) in [
            (signed(gone, now()), false),
            (signed(own, long_ago), false),
            (signed(own, now()), true),
            (signed(gone, now()), false),
        ] {
            std::fs::write(dir.path().join(NAME), &word).expect("written");
            let refused = take(dir.path(), "down", now()).expect_err("busy");
            let StoreError::Busy { holder, .. } = &refused else { panic!("{refused}") };
            assert_eq!(holder.is_some(), believed, "{refused}");
            let _ = dead.wait();
        }
        drop(held);
    }

    #[test]
    fn a_process_is_known_by_its_beginning() {
        let kernel = "cpu  1 2 3\nbtime 1000000\nprocesses 7\n";
        let holder = Holder { pid: 7, command: "up".to_owned(), since: Timestamp::from_second(1_000_500).expect("a time") };
        let stat = |name: &str, state: &str, ticks: u64| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 {ticks} 31 38")
        };
        for (process, may) in [
            (Some(stat("ktcw-vm", "S", 49_900)), true),
            (Some(stat("a) Z (b", "R", 50_000)), true),
            (Some(stat("ktcw-vm", "S", 60_000)), false),
            (Some(stat("ktcw-vm", "Z", 49_900)), false),
            (Some("7 (x".to_owned()), false),
            (None, false),
        ] {
            assert_eq!(may_hold(&holder, process.as_deref(), kernel), may, "{process:?}");
        }
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
