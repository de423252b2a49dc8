//! Many processes of the program at once on one computer, and libvirts that hang: who works, who is told whom to wait for,
//! what a killed holder leaves. A socket that takes connections and never greets stands for the libvirt, so that whoever holds a
//! cluster's lock holds it until the test lets go; no machine is needed.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails where it finds a fault, and says its figures"
)]
#![expect(clippy::disallowed_methods, reason = "it starts processes and waits in its own thread")]

use ktcw_vm::spec::{ClusterName, RawSpec, validate};
use ktcw_vm::store::{ClusterDir, StoreError};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "fixtures/kept_cluster.rs"]
mod kept;

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
            let spec = validate(&raw).expect("valid");
            ClusterDir::create(&computer.state(), &spec, "up", jiff::Timestamp::now()).expect("made");
        }
        computer
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("clusters")
    }

    /// One with all that is written down of it.
    fn with_a_planned_cluster() -> Computer {
        let computer = Computer::with(&[]);
        kept::kept_cluster(&computer.state());
        computer
    }

    fn down(&self, cluster: &str) -> Child {
        self.start(&["down"], cluster)
    }

    fn start(&self, verb: &[&str], cluster: &str) -> Child {
        let connect = format!("qemu+unix:///system?socket={}", self.dir.path().join("sock").display());
        Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
            .args(verb)
            .args(["--yes", "-c", cluster, "--connect", &connect])
            .env("KTCW_STATE_DIR", self.state())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started")
    }

    /// It has written its name into the lock, as seen without touching that.
    fn signed(&self, cluster: &str, child: &Child) -> bool {
        let text = std::fs::read_to_string(self.state().join(cluster).join("lock")).unwrap_or_default();
        text.contains(&format!("\"pid\":{},", child.id()))
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

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry").path()).collect();
    all.sort();
    all
}

/// The pid that a refused one was told of.
fn told_of(text: &str) -> Option<u32> {
    text.split("in use by process ").nth(1)?.split(' ').next()?.parse().ok()
}

/// One works at a time: it waits for its libvirt's greeting and gives up after 20 s. On a computer so busy that not all fifty have
/// begun by then a next one may work after it; everybody else is told of one that did.
#[test]
fn of_fifty_at_once_one_works_and_the_others_name_it() {
    let computer = Computer::with(&["lab"]);
    race(&computer, "lab", |_| &["down"]);
}

/// Whatever changes a cluster, against everything else that does: drills against removals, removals against snapshots.
const VERBS: [&[&str]; 10] = [
    &["down"],
    &["drill", "run", "leader-kill"],
    &["drill", "heal"],
    &["snapshot", "save", "one"],
    &["stop"],
    &["start"],
    &["pause"],
    &["resume"],
    &["node", "remove", "worker-0"],
    &["lab", "start", "nospace"],
];

#[test]
fn of_fifty_of_all_kinds_at_once_one_works_and_the_others_name_it() {
    let computer = Computer::with_a_planned_cluster();
    race(&computer, "ktcw", |i| VERBS[i % VERBS.len()]);
}

fn race(computer: &Computer, cluster: &str, verb: impl Fn(usize) -> &'static [&'static str]) {
    // All but the file of the lock.
    let kept = || -> Vec<PathBuf> {
        files(&computer.state().join(cluster)).into_iter().filter(|path| !path.ends_with("lock")).collect()
    };
    let before = kept();
    let begin = Instant::now();
    let children: Vec<Child> = (0..50).map(|i| computer.start(verb(i), cluster)).collect();
    let (mut worked, mut told) = (Vec::new(), Vec::new());
    for (i, child) in children.into_iter().enumerate() {
        let pid = child.id();
        let Output { status, stderr, .. } = child.wait_with_output().expect("ended");
        let text = String::from_utf8_lossy(&stderr).into_owned();
        match status.code() {
            Some(HOST) => worked.push(pid),
            Some(BUSY) => {
                assert!(text.contains("kill -INT "), "{text}");
                told.push(told_of(&text).unwrap_or_else(|| panic!("it names nobody: {text}")));
            }
            other => panic!("{:?}: {other:?}: {text}", verb(i)),
        }
    }
    println!("50 processes: {} worked, {} exit {BUSY} and name it, {} ms", worked.len(), told.len(), begin.elapsed().as_millis());
    assert!(told.iter().all(|pid| worked.contains(pid)), "{told:?} of {worked:?}");
    assert!(!worked.is_empty() && worked.len() as u64 <= 1 + begin.elapsed().as_secs() / 20, "never two at a time: {worked:?}");
    assert_eq!(kept(), before, "nothing was changed by all these");
}

#[test]
fn a_killed_holder_holds_nothing() {
    let computer = Computer::with(&["lab"]);
    let mut holder = computer.down("lab");
    eventually("it signed for the cluster", || computer.signed("lab", &holder).then_some(()));
    assert_eq!(computer.holder("lab"), Some(holder.id()));
    holder.kill().expect("killed");
    holder.wait().expect("ended");
    assert_eq!(computer.holder("lab"), None, "its lock went with it");
}

#[test]
fn different_clusters_do_not_wait_for_each_other_and_a_libvirt_that_hangs_is_given_up() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let computer = Computer::with(&names);
    let begin = Instant::now();
    let children: Vec<Child> = names.iter().map(|name| computer.down(name)).collect();
    // Looking with the lock in hand would be in their way: first their signature, then, when all have signed, the lock.
    let all = || names.iter().zip(&children).all(|(name, child)| computer.signed(name, child)).then_some(());
    eventually("all eight clusters signed for", all);
    println!("8 clusters in the hands of 8 processes after {} ms", begin.elapsed().as_millis());
    for child in children {
        let Output { status, stderr, .. } = child.wait_with_output().expect("ended");
        let text = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(HOST), "{text}");
        assert!(text.contains("cannot be reached: it has not answered for 20 s") && text.contains("hint: "), "{text}");
    }
    assert!(begin.elapsed() < Duration::from_secs(90), "{} s", begin.elapsed().as_secs());
}
