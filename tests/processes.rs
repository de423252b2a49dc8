//! Many processes of the program at once on one computer, and libvirts that hang: who works, who is told whom to wait for,
//! what a killed holder leaves. A socket that takes connections and never greets stands for the libvirt, so that whoever holds a
//! cluster's lock holds it until the test lets go; no machine is needed.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails where it finds a fault")]
#![expect(clippy::disallowed_methods, reason = "it starts processes and waits in its own thread")]

use ktcw_vm::spec::{ClusterName, RawSpec, validate};
use ktcw_vm::store::{ClusterDir, StoreError};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BUSY: i32 = 75;
const HOST: i32 = 69;

/// Clusters' directories beside a libvirt that never greets.
struct Computer {
    dir: tempfile::TempDir,
    _silent: UnixListener,
}

impl Computer {
    fn with(clusters: &[&str]) -> Computer {
        let dir = tempfile::tempdir().expect("a directory");
        let silent = UnixListener::bind(dir.path().join("sock")).expect("a socket");
        let computer = Computer { dir, _silent: silent };
        for name in clusters {
            let raw = RawSpec { cluster: Some((*name).to_owned()), ..RawSpec::default() };
            ClusterDir::create(&computer.state(), &validate(&raw).expect("valid"), jiff::Timestamp::now()).expect("made");
        }
        computer
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("clusters")
    }

    fn down(&self, cluster: &str) -> Child {
        let connect = format!("qemu+unix:///system?socket={}", self.dir.path().join("sock").display());
        Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
            .args(["down", "--yes", "-c", cluster, "--connect", &connect])
            .env("KTCW_STATE_DIR", self.state())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started")
    }

    /// Who has the cluster's lock, by its own word.
    fn holder(&self, cluster: &str) -> Option<u32> {
        let dir = ClusterDir::open(&self.state(), &ClusterName::parse(cluster).expect("a name")).expect("there");
        match dir.lock("a look") {
            Err(StoreError::Busy { holder, .. }) => holder.map(|holder| holder.pid),
            _ => None,
        }
    }
}

fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        match probe() {
            Some(found) => return found,
            None if begin.elapsed() > Duration::from_secs(100) => panic!("waited in vain: {what}"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn said(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    text
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry").path()).collect();
    all.sort();
    all
}

#[test]
fn of_fifty_at_once_one_works_and_the_others_name_it_and_a_killed_one_holds_nothing() {
    let computer = Computer::with(&["lab"]);
    let before = files(&computer.state().join("lab"));
    let mut children: Vec<Child> = (0..50).map(|_| computer.down("lab")).collect();
    // The holder waits for a greeting for 20 s; all others are through long before.
    let mut told = 0;
    let mut working = Vec::new();
    let begin = Instant::now();
    while told + working.len() < 50 {
        let mut left = Vec::new();
        for mut child in children {
            match child.try_wait().expect("asked") {
                Some(status) => {
                    let text = said(&mut child);
                    assert_eq!(status.code(), Some(BUSY), "{text}");
                    assert!(text.contains("in use by process ") && text.contains("kill -INT "), "{text}");
                    told += 1;
                }
                None => left.push(child),
            }
        }
        children = left;
        if told == 49 {
            working.append(&mut children);
        }
        assert!(begin.elapsed() < Duration::from_secs(100), "{told} were told");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut holder = working.pop().expect("one works");
    println!("50 processes: one works, {told} exit {BUSY} and name it, after {} ms", begin.elapsed().as_millis());
    assert_eq!(computer.holder("lab"), Some(holder.id()), "the one that works is the one they were told of");
    assert_eq!(holder.try_wait().expect("asked"), None);
    holder.kill().expect("killed");
    holder.wait().expect("ended");
    assert_eq!(computer.holder("lab"), None, "its lock went with it");
    // Nothing was changed by all these but the file of the lock.
    let after: Vec<PathBuf> = files(&computer.state().join("lab")).into_iter().filter(|path| !path.ends_with("lock")).collect();
    assert_eq!(after, before);
}

#[test]
fn different_clusters_do_not_wait_for_each_other_and_a_libvirt_that_hangs_is_given_up() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let computer = Computer::with(&names);
    let begin = Instant::now();
    let children: Vec<Child> = names.iter().map(|name| computer.down(name)).collect();
    // Looking with the lock in hand would be in their way: first their signature, then, when all have signed, the lock.
    let signed = |name: &str, child: &Child| {
        let text = std::fs::read_to_string(computer.state().join(name).join("lock")).unwrap_or_default();
        text.contains(&format!("\"pid\":{},", child.id()))
    };
    let all = || names.iter().zip(&children).all(|(name, child)| signed(name, child)).then_some(());
    eventually("all eight clusters signed for", all);
    for (name, child) in names.iter().zip(&children) {
        assert_eq!(computer.holder(name), Some(child.id()), "{name}");
    }
    println!("8 clusters in the hands of 8 processes after {} ms", begin.elapsed().as_millis());
    for child in children {
        let Output { status, stderr, .. } = child.wait_with_output().expect("ended");
        let text = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(HOST), "{text}");
        assert!(text.contains("cannot be reached: it has not answered for 20 s") && text.contains("hint: "), "{text}");
    }
    assert!(begin.elapsed() < Duration::from_secs(90), "{} s", begin.elapsed().as_secs());
}
