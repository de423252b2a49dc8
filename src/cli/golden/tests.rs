//! Golden snapshots: when a cluster is down to one, when one is good, and leaving everything else killed at any record.

use super::*;
use crate::host::fake::FakeHost;
use crate::plan::{Accel, samples};
use crate::spec::{RawSpec, validate};
use crate::store::failpoint;
use crate::store::journal::Journal;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn sample() -> Plan {
    samples::plan("ktcw", 1, 1, Accel::Tcg)
}

fn history(steps: &[(&str, bool)]) -> History {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("journal.jsonl");
    {
        let (journal, _) = Journal::open(&path, crate::store::draw_id(), "test").expect("opens");
        for (step, done) in steps {
            journal.begin(step, None).expect("written");
            if *done {
                journal.done(step, None).expect("written");
            }
        }
    }
    crate::store::journal::read(&path).expect("readable")
}

/// Of the same plan, and not of the same machines: a node that was removed and added again is as it was planned.
#[test]
fn a_golden_snapshot_is_good_only_while_every_machine_has_its_part() {
    let plan = sample();
    let facts = FakeHost::new().facts().expect("facts");
    let name = Name::parse(NAME).expect("a name");
    let record = Record::begun(name, Fits::of(&plan, &facts), BTreeMap::new(), Timestamp::now());
    let kept = |worker: &str| -> Parts {
        let one = |node, name: &str| (node, BTreeSet::from([name.to_owned()]));
        [one(NodeName::controller(0), NAME), one(NodeName::worker(0), worker)].into_iter().collect()
    };
    let judged = |record: Option<&Record>, facts: &HostFacts, worker: &str| misfit(record, &plan, &plan, facts, &kept(worker));
    assert_eq!(judged(Some(&record), &facts, NAME), None);
    let why = judged(Some(&record), &facts, "another").expect("a part is missing");
    assert!(why.starts_with("worker-0 has no part in it"), "{why}");
    let newer = HostFacts { qemu_version: "99.0.0".to_owned(), ..facts.clone() };
    assert!(judged(Some(&record), &newer, NAME).is_some_and(|why| why.contains("QEMU was")));
    assert!(judged(None, &facts, NAME).is_some());
}

#[test]
fn a_record_that_cannot_be_read_does_not_pass_for_one_that_is_gone() {
    let place = tempfile::tempdir().expect("a directory");
    let spec = validate(&RawSpec::default()).expect("valid");
    let (dir, _lock) = ClusterDir::create(place.path(), &spec, "up", Timestamp::now()).expect("made");
    assert!(record(&dir).expect("there is none").is_none());
    let kept = dir.path().join("snapshots");
    std::fs::create_dir_all(&kept).expect("made");
    std::fs::write(kept.join("golden.json"), "{\"format\":").expect("written");
    assert!(!is_kept(&dir), "nor is it kept anew");
    let error = record(&dir).expect_err("somebody must look at it");
    assert!(error.message.contains("golden.json"), "{}", error.message);
    assert_eq!(crate::cli::etcd_only::among(&dir), "");
    let stores = dir.path().join("etcd-snapshots");
    std::fs::create_dir_all(&stores).expect("made");
    std::fs::write(stores.join("one.json"), "{}").expect("written");
    assert_eq!(crate::cli::etcd_only::among(&dir), ", 1 snapshot of etcd", "readable or not, it goes with the directory");
}

/// Of a cluster that was made without one, or of a save that was cut off, none is kept anew by `node add` and `node remove`.
#[test]
fn only_a_whole_golden_snapshot_is_kept_anew_when_nodes_come_and_go() {
    let kept = Kept::new();
    assert!(is_kept(&kept.dir));
    let whole = record(&kept.dir).expect("readable").expect("kept");
    let lock = kept.dir.lock("snapshot save").expect("free");
    kept.dir.save_snapshot(&lock, NAME, &Record { state: State::Making, ..whole }).expect("saved");
    assert!(!is_kept(&kept.dir), "half of one");
    kept.dir.remove_snapshot(&lock, NAME).expect("removed");
    assert!(!is_kept(&kept.dir), "another snapshot is none");
}

/// Two of one name, of which `restore` and `delete` would reach etcd's alone.
#[test]
fn beside_one_of_etcd_alone_of_its_name_no_golden_snapshot_is_kept() {
    let kept = Kept::new();
    assert_eq!(hidden(&kept.dir).expect("readable"), None);
    let lock = kept.dir.lock("snapshot save").expect("free");
    for name in ["later", NAME] {
        std::fs::write(kept.dir.etcd_snapshot_file(&lock, name).expect("a path"), "store").expect("written");
        assert_eq!(hidden(&kept.dir).expect("readable"), None, "one that is called otherwise is in nobody's way");
        kept.dir.save_etcd_snapshot(&lock, name, &"whatever is in it").expect("saved");
    }
    let said = hidden(&kept.dir).expect("readable").expect("it is in the way");
    assert!(said.contains("is hidden from restore and delete"), "{said}");
    kept.dir.remove_snapshot(&lock, NAME).expect("removed");
    let said = hidden(&kept.dir).expect("readable").expect("it is in the way");
    assert!(said.starts_with("no golden snapshot is kept: there is one of etcd alone of its name"), "{said}");
    assert!(said.contains("ktcw-vm snapshot delete golden -c"), "{said}");
}

#[test]
fn who_is_asked_is_told_everything_that_is_given_up() {
    let said = |snapshots: &[&str], lab: Option<&str>| {
        let snapshots = snapshots.iter().map(|name| (*name).to_owned()).collect();
        GivenUp { snapshots, lab: lab.map(str::to_owned) }.to_string()
    };
    assert_eq!(said(&[], None), "");
    assert_eq!(said(&["one"], None), ", with the snapshot one");
    assert_eq!(said(&["one", "two"], None), ", with the snapshots one, two");
    assert_eq!(said(&["one", "two"], Some("nospace")), ", with the snapshots one, two and the open lab nospace");
    assert_eq!(said(&[], Some("nospace")), ", with the open lab nospace");
}

/// Whatever is named goes, and nothing goes that was not named: also a record that nobody can read.
#[test]
fn what_leaving_gives_up_is_what_was_said() {
    let kept = Kept::new();
    std::fs::write(kept.dir.path().join("snapshots/earlier.json"), "{").expect("written");
    let lock = kept.dir.lock("lab start").expect("free");
    let lab = crate::lab::catalogue::labs(None).expect("labs").into_iter().find(|lab| lab.name == "full-disk").expect("there");
    let (phase, begun) = (crate::lab::Phase::Open, Timestamp::now());
    let open = crate::lab::Open { lab, phase, seed: 1, hit: vec![], begun, hints: 0, looks: 0, best: 0, solved: None };
    kept.dir.save_labs(&lock, &Book { open: Some(open), ..Book::default() }).expect("saved");
    let store = kept.dir.etcd_snapshot_file(&lock, "store").expect("a path");
    std::fs::write(&store, "store").expect("written");
    drop(lock);
    let said = GivenUp::of(&kept.dir).expect("readable");
    assert_eq!(said.to_string(), ", with the snapshots earlier, later and the open lab full-disk");
    kept.run(async |desk| leave(desk).await).expect("left");
    assert_eq!(GivenUp::of(&kept.dir).expect("readable"), GivenUp::default());
    assert!(is_kept(&kept.dir) && store.exists(), "nothing else has gone");
}

#[test]
fn a_cluster_is_down_from_the_first_word_of_leaving_to_the_last_of_a_restore() {
    for (steps, down) in [
        (&[][..], false),
        (&[(LEAVE, false)], true),
        (&[(LEAVE, true)], true),
        (&[(LEAVE, true), (snapshot::RESTORE, false)], true),
        (&[(LEAVE, true), (snapshot::RESTORE, true)], false),
        (&[(snapshot::RESTORE, true), (LEAVE, true)], true),
        (&[(LEAVE, true), (snapshot::RESTORE, true), (LEAVE, false)], true),
    ] {
        assert_eq!(is_down(&history(steps)), down, "{steps:?}");
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// Two machines that run on a fake host, their directory, and a golden and a later snapshot.
struct Kept {
    host: Arc<FakeHost>,
    machines: Machines,
    dir: ClusterDir,
    _parent: tempfile::TempDir,
}

impl Kept {
    fn new() -> Kept {
        let parent = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let plan = Arc::new(sample());
        let (dir, _) = ClusterDir::create(&parent.path().join("clusters"), &plan.spec, "up", Timestamp::now()).expect("made");
        let (host, mark) = (Arc::new(FakeHost::new()), session::mark(&dir));
        host.ensure_pools(&plan.storage, &mark).expect("pools");
        host.ensure_network(&plan.network, &mark).expect("network");
        let (storage, file) = (&plan.storage, std::path::Path::new("Cargo.toml"));
        let images = [Some(&storage.base_volume), Some(&storage.kernel_volume), storage.initrd_volume.as_ref()];
        for volume in images.into_iter().flatten() {
            let raw = crate::host::VolumeFormat::Raw;
            host.ensure_image_volume(storage, volume, raw, file, &mut |_, _| ()).expect("image");
        }
        for node in &plan.nodes {
            for disk in &node.domain.disks {
                host.ensure_content(storage, &disk.volume, b"disk", &mark).expect("disk");
            }
            host.ensure_domain(&node.domain, storage, &node.name, &mark).expect("defined");
            host.ensure_running(&node.domain, &mark).expect("running");
        }
        let machines = Machines { plan, host: host.clone(), mark };
        let kept = Kept { host, machines, dir, _parent: parent };
        for name in [NAME, "later"] {
            let facts = kept.host.facts().expect("facts");
            let name = Name::parse(name).expect("a name");
            let record = Record::begun(name, Fits::of(&kept.machines.plan, &facts), BTreeMap::new(), Timestamp::now());
            kept.run(async |desk| snapshot::save(desk, record).await).expect("saved");
        }
        kept
    }

    /// One run of the program.
    fn run<T, E>(&self, work: impl AsyncFnOnce(&Desk<'_>) -> Result<T, E>) -> Result<T, E> {
        let lock = self.dir.lock("down").expect("free");
        let (journal, _) = self.dir.journal(&lock, crate::store::draw_id(), "down").expect("opens");
        block_on(work(&Desk { machines: &self.machines, dir: &self.dir, lock: &lock, journal: &journal, told: &|_| () }))
    }

    fn whole(&self) -> Whole {
        block_on(self.machines.power()).expect("asked").whole()
    }

    fn is_down(&self) -> bool {
        is_down(&self.dir.history().expect("readable"))
    }
}

#[test]
fn leaving_that_is_killed_at_any_record_is_finished_by_the_next_and_come_back_from() {
    let points = {
        let kept = Kept::new();
        failpoint::unwind_at(0);
        kept.run(async |desk| leave(desk).await).expect("left");
        failpoint::unwind_at(0)
    };
    assert!(points >= 8, "before and after two records of leaving and two of a removal: {points}");
    for number in 1..=points {
        let kept = Kept::new();
        failpoint::unwind_at(number);
        let killed = catch_unwind(AssertUnwindSafe(|| kept.run(async |desk| leave(desk).await)));
        failpoint::unwind_at(0);
        assert!(killed.is_err(), "point {number}");
        // Not announced: nothing was touched.
        assert_eq!((kept.is_down(), kept.whole() == Whole::Running), (number != 1, number <= 2), "point {number}");
        kept.run(async |desk| leave(desk).await).unwrap_or_else(|error| panic!("point {number}: {}", error.text()));
        assert_eq!((kept.is_down(), kept.whole()), (true, Whole::Off), "point {number}");
        let golden = record(&kept.dir).expect("readable").expect("kept");
        assert_eq!(kept.dir.load_snapshots::<Record>().expect("listed").len(), 1, "point {number}");
        kept.run(async |desk| snapshot::restore(desk, &golden).await).unwrap_or_else(|error| panic!("point {number}: {error}"));
        assert_eq!((kept.is_down(), kept.whole()), (false, Whole::Running), "point {number}");
    }
}
