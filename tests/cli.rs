//! What a user types and what comes back, word for word: `tests/cli/**/*.trycmd`, run by the real program.
//! No machine, network or libvirt daemon is needed: directories that are not there, a cache with an image of a few bytes, and
//! libvirt's own test driver stand in. After a wanted change: `TRYCMD=overwrite cargo test --test cli`, then read the diff.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]

use ktcw_vm::image::{FileRecord, Image, Inputs, Suite, Versions};
use ktcw_vm::lab::{Book, Open, Phase};
use ktcw_vm::snapshot::{Fits, Name, Record, State};
use ktcw_vm::store::ClusterDir;
use ktcw_vm::store::journal::Journal;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use trycmd::TestCases;

#[path = "fixtures/kept_cluster.rs"]
mod kept;
use kept::kept_cluster;

/// Transcripts that see nothing of this machine: neither its tools nor its images, clusters and libvirt, nor who runs them.
fn cases(glob: &str, connect: &str, cache: &Path) -> TestCases {
    // A glob that finds nothing would pass.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(glob).with_file_name("");
    let mut entries = dir.read_dir().expect("a directory of transcripts").map(|entry| entry.expect("an entry").path());
    assert!(entries.any(|path| path.extension().is_some_and(|ext| ext == "trycmd")), "no transcript in {}", dir.display());
    let cases = TestCases::new();
    cases.case(glob);
    for (name, value) in [
        ("HOME", "/nonexistent"),
        ("XDG_STATE_HOME", "/nonexistent/state"),
        ("XDG_CACHE_HOME", "/nonexistent/cache"),
        ("KTCW_STATE_DIR", "/nonexistent/clusters"),
        ("KTCW_CLUSTER", "ktcw"),
        ("KTCW_LOG", "warn"),
        ("KTCW_CACHE_DIR", &cache.display().to_string()),
        ("KTCW_CONNECT", connect),
        ("PATH", "/nonexistent/bin"),
        ("KTCW_OS_RELEASE", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/os-release/debian")),
        // A directory that is there: systemd runs.
        ("KTCW_SYSTEMD_DIR", env!("CARGO_MANIFEST_DIR")),
        ("KTCW_AS_ROOT", "1"),
        // A file that is there.
        ("KTCW_KEYRING", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")),
        ("COLUMNS", "100"),
        ("NO_COLOR", "1"),
    ] {
        cases.env(name, value);
    }
    cases.insert_var("[CACHE]", cache.display().to_string()).expect("a variable");
    cases
}

/// A cache with an image of this program's sources, as far as the program can tell without reading gigabytes.
fn cache_with_image(disk: &str) -> TempDir {
    let cache = tempfile::tempdir().expect("a directory");
    // Without a toolchain on PATH, its version is not part of the key.
    let keys = Inputs::embedded("", Suite::default()).keys();
    let dir = cache.path().join("images").join(&keys.image);
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut files = BTreeMap::new();
    for name in ["base.qcow2", "vmlinuz", "initrd.img"] {
        std::fs::write(dir.join(name), name).expect("written");
        let sha256 = ktcw_vm::digest::of(name.as_bytes()).expect("read");
        files.insert(name.to_owned(), FileRecord { bytes: name.len() as u64, sha256 });
    }
    let text = |text: &str| text.to_owned();
    let image = Image {
        key: keys.image,
        sources_key: keys.sources,
        dir: PathBuf::new(),
        disk: "base.qcow2".into(),
        disk_sha256: "0".repeat(64),
        kernel: "vmlinuz".into(),
        initrd: "initrd.img".into(),
        bin: "bin".into(),
        virtual_size: 10 << 30,
        size_bytes: 700 << 20,
        versions: Versions { kubernetes: text("v1.36.0"), etcd: text("v3.6.0"), debian: text("13.1"), ..Versions::default() },
        containers: Vec::new(),
        files,
        built_at: "2026-01-02T03:04:05Z".parse().expect("a time"),
    };
    std::fs::write(dir.join("image.json"), serde_json::to_string(&image).expect("JSON")).expect("written");
    std::fs::write(dir.join("base.qcow2"), disk).expect("written");
    cache
}

/// Where the one image of a cache is.
fn image_in(cache: &TempDir) -> PathBuf {
    let images = cache.path().join("images").read_dir().expect("a directory");
    images.map(|entry| entry.expect("an entry").path()).next().expect("an image")
}

/// Neither libvirt nor an image: what can be said without, is; what cannot says what is missing.
#[test]
fn on_a_machine_with_nothing() {
    cases("tests/cli/*.trycmd", "qemu+unix:///system?socket=/nonexistent/libvirt-sock", Path::new("/nonexistent/cache"));
}

/// In a container nobody is told to have a daemon started by what is not there.
#[test]
fn on_a_machine_without_systemd() {
    let (nowhere, cache) = ("qemu+unix:///system?socket=/nonexistent/libvirt-sock", Path::new("/nonexistent/cache"));
    let cases = cases("tests/cli/no-systemd/*.trycmd", nowhere, cache);
    cases.env("KTCW_SYSTEMD_DIR", "/nonexistent/systemd");
    cases.run();
}

/// Who is not root needs a program more; and the keyring is looked for like one.
#[test]
fn as_an_ordinary_user_without_a_keyring() {
    let (nowhere, cache) = ("qemu+unix:///system?socket=/nonexistent/libvirt-sock", Path::new("/nonexistent/cache"));
    let cases = cases("tests/cli/ordinary-user/*.trycmd", nowhere, cache);
    cases.env("KTCW_AS_ROOT", "0");
    cases.env("KTCW_KEYRING", "/nonexistent/keyring.gpg");
    cases.run();
}

/// What is missing, in the words of each distribution: a transcript of its name for each os-release file.
#[test]
fn on_other_distributions_with_nothing_installed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["fedora", "rocky", "arch", "opensuse", "unknown"] {
        let (nowhere, cache) = ("qemu+unix:///system?socket=/nonexistent/libvirt-sock", Path::new("/nonexistent/cache"));
        let cases = cases(&format!("tests/cli/distributions/{name}.trycmd"), nowhere, cache);
        cases.env("KTCW_OS_RELEASE", root.join("tests/fixtures/os-release").join(name).display().to_string());
        cases.run();
    }
}

/// An image whose disk was cut short is called that by every verb that wants it, with the command that makes it good.
#[test]
fn with_a_broken_image() {
    let cache = cache_with_image("base");
    cases("tests/cli/broken-image/*.trycmd", "test:///default", cache.path()).run();
}

/// Of one whose disk has other bytes nothing is made, not even a directory.
#[test]
fn with_an_altered_image() {
    let cache = cache_with_image("base.qcow2");
    let disk = image_in(&cache).join("base.qcow2");
    let bytes = vec![7; std::fs::read(&disk).expect("there").len()];
    std::fs::write(&disk, bytes).expect("written");
    cases("tests/cli/altered-image/*.trycmd", "test:///default", cache.path()).run();
}

/// What is in an image is told as its build wrote it down.
#[test]
fn with_a_whole_image() {
    let cache = cache_with_image("base.qcow2");
    let image = image_in(&cache);
    let bill = r#"{"suite":"trixie","guest_packages":{"libc6":"2.41-12"},"go_modules":{"etcd":{"go.etcd.io/bbolt":"v1.4.0"}}}"#;
    std::fs::write(image.join("sbom.json"), bill).expect("written");
    cases("tests/cli/whole-image/*.trycmd", "test:///default", cache.path()).run();
}

/// A libvirt where a stranger has a machine of our name, another state directory the network, and a range is taken.
#[test]
fn on_a_host_that_is_taken() {
    let cache = cache_with_image("base.qcow2");
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/taken-host/host.xml");
    cases("tests/cli/taken-host/*.trycmd", &format!("test://{}", host.display()), cache.path()).run();
}

fn cases_with_cluster(glob: &str, parent: &Path) -> TestCases {
    let cases = cases(glob, "qemu+unix:///system?socket=/nonexistent/libvirt-sock", Path::new("/nonexistent/cache"));
    cases.env("KTCW_STATE_DIR", parent.display().to_string());
    cases.insert_var("[STATE]", parent.display().to_string()).expect("a variable");
    cases
}

/// What can be asked of a cluster and refused without its machines; what cannot be done leaves its directory as it was.
#[test]
fn with_a_cluster_whose_libvirt_is_away() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    let plan = dir.load_plan().expect("readable");
    cases_with_cluster("tests/cli/cluster/*.trycmd", parent.path()).run();
    assert_eq!(dir.load_plan().expect("readable"), plan);
    assert_eq!(ClusterDir::open(parent.path(), dir.name()).expect("there"), dir);
}

/// Another process works on the cluster: who changes things is told whom to wait for, who reads is not held up.
#[test]
fn with_a_cluster_that_is_busy() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    let lock = dir.lock("up --workers 2").expect("free");
    cases_with_cluster("tests/cli/busy/*.trycmd", parent.path()).run();
    drop(lock);
}

/// A restore was cut off: what would let machines of two moments run together is refused, with the command that finishes it.
#[test]
fn with_a_cluster_that_is_half_restored() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    noted(&dir, "snapshot", |journal| journal.begin_with("restore", None, serde_json::json!({ "snapshot": "one" })));
    let records = dir.path().join("snapshots");
    ktcw_vm::store::files::ensure_dir(&records).expect("made");
    with_snapshots(&dir);
    let of_etcd = dir.path().join("etcd-snapshots");
    ktcw_vm::store::files::ensure_dir(&of_etcd).expect("made");
    for path in [records.join("broken.json"), of_etcd.join("odd.json")] {
        ktcw_vm::store::files::write_atomic(&path, b"{", ktcw_vm::store::files::SECRET).expect("written");
    }
    cases_with_cluster("tests/cli/half-restored/*.trycmd", parent.path()).run();
}

/// Only the golden snapshot is left of it: `start` would run past that, and nothing can be saved of machines that are off.
#[test]
fn with_a_cluster_that_is_down_to_its_golden_snapshot() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    with_snapshots(&dir);
    begun(&dir, "down", "down to golden");
    cases_with_cluster("tests/cli/golden-only/*.trycmd", parent.path()).run();
}

/// A whole snapshot `one`, and one of etcd alone, `store`, beside it.
fn with_snapshots(dir: &ClusterDir) {
    let lock = dir.lock("snapshot save").expect("free");
    let text = |text: &str| text.to_owned();
    let (image_key, qemu_version) = (text("2"), text("10.0.0"));
    let fits = Fits { plan_sha256: text("1"), image_key, kernel_sha256: text("3"), qemu_version, nodes: BTreeSet::new() };
    let name = Name::parse("one").expect("a name");
    let begun = Record::begun(name, fits, BTreeMap::new(), jiff::Timestamp::now());
    dir.save_snapshot(&lock, "one", &Record { state: State::Whole, ..begun }).expect("saved");
    let file = dir.etcd_snapshot_file(&lock, "store").expect("a path");
    ktcw_vm::store::files::write_atomic(&file, b"store", ktcw_vm::store::files::SECRET).expect("written");
    let store = serde_json::json!({
        "name": "store", "note": null, "taken": "2026-01-02T03:04:05Z", "revision": 7, "bytes": 5, "sha256": "0",
    });
    dir.save_etcd_snapshot(&lock, "store", &store).expect("saved");
}

/// What one kind of snapshot is asked that only the other can do is refused in its own words.
#[test]
fn with_a_snapshot_of_each_kind() {
    let parent = tempfile::tempdir().expect("a directory");
    with_snapshots(&kept_cluster(parent.path()));
    cases_with_cluster("tests/cli/snapshots/*.trycmd", parent.path()).run();
}

/// A restore of etcd alone was cut off: it is called what it is, keeps its snapshot, and no other kind is begun over it.
#[test]
fn with_an_etcd_that_is_half_restored() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    with_snapshots(&dir);
    let of = serde_json::json!({ "snapshot": "store", "etcd_only": true });
    noted(&dir, "snapshot", |journal| journal.begin_with("restore", None, of));
    cases_with_cluster("tests/cli/half-restored-etcd/*.trycmd", parent.path()).run();
}

/// A drill's fault is in force: neither kind of restore is begun, as it would hold the fault or be held up by it.
#[test]
fn with_a_fault_in_force() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    with_snapshots(&dir);
    let fault = serde_json::json!({ "run": "isolate-leader-1", "drill": "isolate-leader", "heal": [], "tidy": [] });
    noted(&dir, "drill", |journal| journal.undo("drill isolate-leader-1", None, fault));
    let before = dir.history().expect("readable").records.len();
    cases_with_cluster("tests/cli/fault-in-force/*.trycmd", parent.path()).run();
    assert_eq!(dir.history().expect("readable").records.len(), before, "nothing was begun");
}

/// Machines that somebody has stopped or paused are no drill's doing: neither a heal nor a drill lets them go on.
#[test]
fn with_machines_that_were_put_to_rest() {
    for name in ["off", "paused", "one-off"] {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = kept_cluster(parent.path());
        let worker = ktcw_vm::spec::NodeName::worker(0);
        noted(&dir, "stop", |journal| journal.begin("stop worker-0", Some(&worker)));
        let host = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/at-rest/{name}.xml"));
        let glob = format!("tests/cli/at-rest/{name}.trycmd");
        let cases = cases(&glob, &format!("test://{}", host.display()), Path::new("/nonexistent/cache"));
        cases.env("KTCW_STATE_DIR", parent.path().display().to_string());
        cases.run();
    }
}

#[test]
fn with_a_fork_that_was_cut_off() {
    let parent = tempfile::tempdir().expect("a directory");
    begun(&kept_cluster(parent.path()), "fork", "fork");
    cases_with_cluster("tests/cli/half-forked/*.trycmd", parent.path()).run();
}

/// A lab is open: what would break more, mend it or take its snapshot away is refused, with the command that takes all back.
#[test]
fn with_a_lab_that_is_open() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    let lock = dir.lock("lab start").expect("free");
    let text = |text: &str| text.to_owned();
    let fits = Fits {
        plan_sha256: text("1"),
        image_key: text("2"),
        kernel_sha256: text("3"),
        qemu_version: text("10.0.0"),
        nodes: BTreeSet::new(),
    };
    for name in ["lab-full-disk", "other"] {
        let name = Name::parse(name).expect("a name");
        let begun = Record::begun(name.clone(), fits.clone(), BTreeMap::new(), jiff::Timestamp::now());
        dir.save_snapshot(&lock, name.as_str(), &Record { state: State::Whole, ..begun }).expect("saved");
    }
    let lab = ktcw_vm::lab::catalogue::labs(None).expect("labs").into_iter().find(|lab| lab.name == "full-disk").expect("there");
    let (phase, begun) = (Phase::Open, jiff::Timestamp::now());
    let open = Open { lab, phase, seed: 1, hit: vec![], begun, hints: 0, looks: 0, best: 0, solved: None };
    let book = Book { open: Some(open), ..Book::default() };
    dir.save_labs(&lock, &book).expect("saved");
    drop(lock);
    cases_with_cluster("tests/cli/lab-open/*.trycmd", parent.path()).run();
    assert_eq!(dir.load_labs().expect("readable"), Some(book));
}

/// The start of somebody's own lab was cut off: it is begun again without its file, and only what finishes it is named.
#[test]
fn with_a_lab_of_ones_own_whose_start_was_cut_off() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    let lock = dir.lock("lab start").expect("free");
    let labs = ktcw_vm::lab::catalogue::labs(None).expect("labs");
    let lab = labs.into_iter().find(|lab| lab.name == "full-disk").expect("there");
    let lab = ktcw_vm::lab::catalogue::Lab { name: "mine".to_owned(), ..lab };
    let (phase, begun) = (Phase::Breaking, jiff::Timestamp::now());
    let open = Open { lab, phase, seed: 1, hit: vec![], begun, hints: 0, looks: 0, best: 0, solved: None };
    dir.save_labs(&lock, &Book { open: Some(open), ..Book::default() }).expect("saved");
    drop(lock);
    cases_with_cluster("tests/cli/lab-cut-off/*.trycmd", parent.path()).run();
}

/// The reset of a lab was cut off among its machines: every verb names the one that is let through.
#[test]
fn with_a_lab_whose_reset_was_cut_off() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = kept_cluster(parent.path());
    with_snapshots(&dir);
    let lock = dir.lock("lab reset").expect("free");
    let labs = ktcw_vm::lab::catalogue::labs(None).expect("labs");
    let lab = labs.into_iter().find(|lab| lab.name == "nospace").expect("there");
    let snapshot = lab.snapshot();
    let (phase, begun) = (Phase::Rewinding, jiff::Timestamp::now());
    let open = Open { lab, phase, seed: 1, hit: vec![], begun, hints: 0, looks: 0, best: 0, solved: None };
    dir.save_labs(&lock, &Book { open: Some(open), ..Book::default() }).expect("saved");
    drop(lock);
    noted(&dir, "snapshot", |journal| journal.begin_with("restore", None, serde_json::json!({ "snapshot": snapshot })));
    cases_with_cluster("tests/cli/lab-reset-cut-off/*.trycmd", parent.path()).run();
}

/// A run that has begun `step` and was never heard of again.
fn begun(dir: &ClusterDir, verb: &str, step: &str) {
    noted(dir, verb, |journal| journal.begin(step, None));
}

/// The last word of a run in the journal.
fn noted<E: std::fmt::Debug>(dir: &ClusterDir, verb: &str, write: impl FnOnce(&Journal) -> Result<(), E>) {
    let lock = dir.lock(verb).expect("free");
    let (journal, _) = dir.journal(&lock, ktcw_vm::store::draw_id(), verb).expect("opens");
    write(&journal).expect("written");
}
