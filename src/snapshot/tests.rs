//! Saves, restores and removals on fake machines: whole or not at all, wherever they are cut off.

mod found;
mod full;
mod killed;
mod records;

use super::*;
use crate::host::fake::{FakeHost, Strike};
use crate::host::{DomainState, Host, Mark};
use crate::life::{self, Machines};
use crate::plan::{Plan, samples};
use crate::store::{ClusterDir, Lock, failpoint, journal};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

struct Lab {
    host: Arc<FakeHost>,
    machines: Machines,
    dir: ClusterDir,
    _parent: Option<tempfile::TempDir>,
}

fn sample(workers: u64) -> Arc<Plan> {
    Arc::new(samples::plan("lab", 1, workers, samples::kvm()))
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// The snapshot of the restore that is open.
fn open_name(history: &journal::History) -> Option<String> {
    open_restore(history).map(|open| open.snapshot)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + second).expect("a time")
}

fn record(text: &str, parent: Option<&str>) -> Record {
    let fits = Fits::of(&sample(1), &FakeHost::new().facts().expect("facts"));
    Record {
        name: name(text),
        state: State::Making,
        note: None,
        taken: at(0),
        parent: parent.map(name),
        fits,
        members: BTreeMap::new(),
        accepted: Vec::new(),
        skew_at_most_us: 0,
        stood_ms: 0,
        bytes: 0,
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

impl Lab {
    /// Two machines that run and hold 1.
    fn new() -> Lab {
        let parent = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("dir");
        let lab = Lab::made(parent.path(), FakeHost::new());
        Lab { _parent: Some(parent), ..lab }
    }

    fn made(place: &Path, host: FakeHost) -> Lab {
        let (dir, _) = ClusterDir::create(&place.join("clusters"), &sample(1).spec, "up", at(0)).expect("made");
        let lab = Lab::of(dir, host);
        let (plan, host, mark) = (&lab.machines.plan, &lab.host, &lab.machines.mark);
        host.ensure_pools(&plan.storage, mark).expect("pools");
        host.ensure_network(&plan.network, mark).expect("network");
        let file = Path::new("Cargo.toml");
        let storage = &plan.storage;
        for volume in
            [Some(&storage.base_volume), Some(&storage.kernel_volume), storage.initrd_volume.as_ref()].into_iter().flatten()
        {
            let format = crate::host::VolumeFormat::Raw;
            host.ensure_image_volume(storage, volume, format, file, &mut |_, _| ()).expect("image");
        }
        for node in &plan.nodes {
            for disk in &node.domain.disks {
                host.ensure_content(storage, &disk.volume, b"disk", mark).expect("disk");
            }
            host.ensure_domain(&node.domain, storage, &node.name, mark).expect("defined");
            host.set_state(&node.domain.name, DomainState::Running).expect("running");
        }
        lab.write(1);
        lab
    }

    fn of(dir: ClusterDir, host: FakeHost) -> Lab {
        let (plan, host) = (sample(1), Arc::new(host));
        let mark = Mark { cluster: plan.cluster.clone(), instance: Uuid::from_u128(7), state_dir: "/state/lab".into() };
        Lab { machines: Machines { plan, host: host.clone(), mark }, host, dir, _parent: None }
    }

    fn write(&self, content: u64) {
        self.machines.plan.nodes.iter().for_each(|node| self.host.set_content_of(&node.domain.name, content).expect("there"));
    }

    /// What the machines hold; all the same, or the moment is not one.
    fn content(&self) -> BTreeSet<u64> {
        self.machines.plan.nodes.iter().filter_map(|node| self.host.content_of(&node.domain.name)).collect()
    }

    fn states(&self) -> BTreeSet<&'static str> {
        let seen = self.host.observe().expect("observed");
        let power = crate::life::power::Power::of(&self.machines.plan, &seen);
        power.0.iter().map(|(_, state)| crate::life::power::word(*state)).collect()
    }

    /// One run of the program: the lock, the journal, the work.
    fn run<T>(&self, work: impl AsyncFnOnce(&Desk<'_>) -> Result<T, SnapshotError>) -> Result<T, SnapshotError> {
        let lock: Lock = self.dir.lock("snapshot").expect("free");
        let (journal, _) = self.dir.journal(&lock, Uuid::from_u128(2), "snapshot").expect("opens");
        let desk = Desk { machines: &self.machines, dir: &self.dir, lock: &lock, journal: &journal, told: &|_| () };
        block_on(work(&desk))
    }

    fn save(&self, text: &str, parent: Option<&str>) -> Result<Record, SnapshotError> {
        let record = record(text, parent);
        self.run(async |desk| save(desk, record).await)
    }

    fn restore(&self, text: &str) -> Result<(), SnapshotError> {
        let record = self.records().into_iter().find(|record| record.name.as_str() == text).expect("known");
        self.run(async |desk| restore(desk, &record).await.map(drop))
    }

    fn remove(&self, text: &str) -> Result<(), SnapshotError> {
        self.run(async |desk| remove(desk, &name(text)).await)
    }

    fn tidy(&self) -> Result<Vec<Name>, SnapshotError> {
        self.run(async |desk| tidy(desk).await)
    }

    fn records(&self) -> Vec<Record> {
        self.dir.load_snapshots::<Record>().expect("listed").into_iter().map(|(_, record)| record.expect("readable")).collect()
    }

    /// Names of whole records, and what each machine keeps: the same, always.
    fn kept(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let whole =
            self.records().into_iter().filter(|record| record.state == State::Whole).map(|record| record.name.to_string());
        let machine = |node: &crate::plan::NodePlan| self.host.snapshots(&node.domain, &self.machines.mark).expect("listed");
        (whole.collect(), self.machines.plan.nodes.iter().map(machine).collect())
    }

    fn keeps(&self, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(self.kept(), (names.clone(), vec![names.clone(); self.machines.plan.nodes.len()]));
        assert_eq!(self.records().len(), names.len());
    }

    fn history(&self) -> journal::History {
        self.dir.history().expect("readable")
    }

    /// No step is left in the journal that a run began and nobody ended.
    fn nothing_is_open(&self, about: &str) {
        let history = self.history();
        assert!(history.pending().is_empty() && !unfinished(&history), "{about}: {:?}", history.pending());
    }

    /// What the next commands make of it: nobody is left frozen, halves are gone, both moments can be had, nothing is open.
    fn recovers(&self, about: &str) {
        let there = |node: &crate::plan::NodePlan| self.host.content_of(&node.domain.name).is_some();
        // As `resume` does it, which sets the clocks as well; these machines have none.
        let resumed = self.run(async |desk| {
            desk.machines.resume(desk.machines.nodes(None).into_iter().filter(there).collect()).await?;
            Ok(life::in_time(desk.journal, &desk.dir.history()?)?)
        });
        resumed.unwrap_or_else(|error| panic!("{about}: {error}"));
        self.tidy().unwrap_or_else(|error| panic!("{about}: {error}"));
        self.nothing_is_open(about);
        assert_eq!(self.states(), BTreeSet::from(["running"]), "{about}");
        let (whole, machines) = self.kept();
        assert_eq!(self.records().len(), whole.len(), "{about}");
        assert!(machines.iter().all(|kept| *kept == whole), "{about}: {whole:?} {machines:?}");
    }
}

#[test]
fn what_was_written_after_a_save_is_gone_after_its_restore() {
    let lab = Lab::new();
    let saved = lab.save("one", None).expect("saved");
    assert_eq!((saved.state, lab.states()), (State::Whole, BTreeSet::from(["running"])));
    lab.write(2);
    lab.save("two", Some("one")).expect("saved");
    lab.keeps(&["one", "two"]);
    assert_eq!(lab.dir.current_snapshot().expect("read").as_deref(), Some("two"));
    lab.write(3);
    lab.restore("one").expect("restored");
    assert_eq!((lab.content(), lab.states()), (BTreeSet::from([1]), BTreeSet::from(["running"])));
    assert_eq!(lab.dir.current_snapshot().expect("read").as_deref(), Some("one"));
    lab.restore("two").expect("restored");
    assert_eq!(lab.content(), BTreeSet::from([2]));
    lab.remove("one").expect("removed");
    lab.keeps(&["two"]);
    assert_eq!(lab.records()[0].parent, None, "its parent is gone");
    lab.remove("two").expect("removed");
    lab.remove("two").expect("twice is once");
    lab.keeps(&[]);
    assert_eq!(lab.dir.current_snapshot().expect("read"), None);
    assert!(lab.history().pending().is_empty(), "{:?}", lab.history().pending());
}

/// Off, or after a reboot of the host: the machines are started for it, on a network that is made active.
#[test]
fn machines_that_are_off_go_back_too() {
    let lab = Lab::new();
    lab.save("one", None).expect("saved");
    lab.write(2);
    lab.host.reboot();
    assert_eq!(lab.states(), BTreeSet::from(["off"]));
    lab.restore("one").expect("restored");
    assert_eq!((lab.content(), lab.states()), (BTreeSet::from([1]), BTreeSet::from(["running"])));
}

/// What finishes a restore of etcd alone needs every machine, whatever has become of it since.
#[test]
fn machines_that_are_off_or_paused_are_brought_up_on_their_network() {
    let lab = Lab::new();
    assert_eq!(block_on(lab.machines.ensure_running()).expect("asked"), []);
    let controller = lab.machines.plan.controllers().next().expect("planned").clone();
    lab.host.suspend(&controller.domain, &lab.machines.mark).expect("paused");
    assert_eq!(block_on(lab.machines.ensure_running()).expect("woken"), [controller.name]);
    lab.host.reboot();
    assert_eq!(lab.states(), BTreeSet::from(["off"]));
    assert_eq!(block_on(lab.machines.ensure_running()).expect("switched on").len(), lab.machines.plan.nodes.len());
    assert_eq!(lab.states(), BTreeSet::from(["running"]));
}

#[test]
fn a_save_that_fails_anywhere_leaves_nothing_but_running_machines() {
    for strike in [Strike::Before, Strike::After] {
        // Two machines are suspended and two saved.
        for k in 1..=4 {
            let lab = Lab::new();
            lab.host.fail_at(k, strike);
            let error = lab.save("one", None).expect_err("told to fail");
            assert!(error.to_string().contains("lab-"), "{error}");
            assert_eq!(lab.states(), BTreeSet::from(["running"]), "{strike:?} {k}");
            lab.keeps(&[]);
            lab.save("one", None).expect("saved");
            lab.keeps(&["one"]);
        }
        for k in 5..=6 {
            let lab = Lab::new();
            lab.host.fail_at(k, strike);
            lab.save("one", None).expect_err("told to fail");
            lab.keeps(&["one"]);
            lab.recovers(&format!("{strike:?} {k}: it was the waking that failed"));
        }
    }
}

#[test]
fn a_restore_that_fails_anywhere_is_open_until_one_goes_through() {
    for strike in [Strike::Before, Strike::After] {
        // Pools, network, two suspended, two taken back, two woken.
        for k in 1..=8 {
            let lab = Lab::new();
            lab.save("one", None).expect("saved");
            lab.write(2);
            lab.host.fail_at(k, strike);
            lab.restore("one").expect_err("told to fail");
            assert_eq!(open_name(&lab.history()).as_deref(), Some("one"), "{strike:?} {k}");
            let running =
                lab.host.observe().expect("observed").domains.iter().filter(|d| d.state == DomainState::Running).count();
            assert!(lab.content().len() == 1 || running == 0, "{strike:?} {k}: machines of two moments run together");
            lab.restore("one").expect("restored");
            assert_eq!((lab.content(), lab.states()), (BTreeSet::from([1]), BTreeSet::from(["running"])), "{strike:?} {k}");
            assert_eq!(open_restore(&lab.history()), None);
        }
    }
}

#[test]
fn a_removal_that_fails_anywhere_is_finished_by_the_next_save() {
    for strike in [Strike::Before, Strike::After] {
        for k in 1..=2 {
            let lab = Lab::new();
            lab.save("one", None).expect("saved");
            lab.save("two", Some("one")).expect("saved");
            lab.host.fail_at(k, strike);
            lab.remove("one").expect_err("told to fail");
            assert_eq!(lab.kept().0, ["two"], "{strike:?} {k}: a half does not count");
            lab.tidy().expect("tidied");
            lab.keeps(&["two"]);
        }
    }
}

/// Killed before or after any record of the journal: the old state or the new one is whole, and the next commands lead out.
#[test]
fn killed_at_any_record_of_a_save_either_moment_is_whole() {
    let points = {
        let lab = Lab::new();
        failpoint::unwind_at(0);
        lab.save("one", None).expect("saved");
        failpoint::unwind_at(0)
    };
    assert_eq!(points, 16, "before and after two records of a save and of each of its three steps");
    for number in 1..=points {
        let lab = Lab::new();
        failpoint::unwind_at(number);
        let killed = catch_unwind(AssertUnwindSafe(|| lab.save("one", None)));
        failpoint::unwind_at(0);
        assert!(killed.is_err(), "point {number}");
        lab.recovers(&format!("point {number}"));
        assert_eq!(lab.content(), BTreeSet::from([1]));
        let current = lab.dir.current_snapshot().expect("read");
        assert_eq!(current.as_slice(), lab.kept().0, "point {number}: the cluster goes on from the one that is whole");
        assert_eq!(unended(&lab), None, "point {number}: it was told to its end");
        if lab.kept().0.is_empty() {
            lab.save("one", None).expect("saved");
        }
        lab.write(2);
        lab.restore("one").expect("restored");
        assert_eq!(lab.content(), BTreeSet::from([1]), "point {number}");
    }
}

/// A save that the journal says was begun and does not say how it ended.
fn unended(lab: &Lab) -> Option<String> {
    let history = lab.history();
    let steps = history.pending().into_iter().chain(history.failed());
    steps.into_iter().find_map(|record| match &record.entry {
        journal::Entry::Step { step, .. } if step.starts_with("save ") => Some(step.clone()),
        _ => None,
    })
}

#[test]
fn killed_at_any_record_of_a_restore_it_is_finished_by_another() {
    let saved = || {
        let lab = Lab::new();
        lab.save("one", None).expect("saved");
        lab.write(2);
        lab
    };
    let points = {
        let lab = saved();
        failpoint::unwind_at(0);
        lab.restore("one").expect("restored");
        failpoint::unwind_at(0)
    };
    assert_eq!(points, 20);
    for number in 1..=points {
        let lab = saved();
        failpoint::unwind_at(number);
        let killed = catch_unwind(AssertUnwindSafe(|| lab.restore("one")));
        failpoint::unwind_at(0);
        assert!(killed.is_err(), "point {number}");
        let open = open_name(&lab.history());
        match number {
            // Not announced: nothing was touched.
            1 => assert_eq!(
                (open.as_deref(), lab.content(), lab.states()),
                (None, BTreeSet::from([2]), BTreeSet::from(["running"]))
            ),
            // Its last word is on the disk.
            20 => assert_eq!((open.as_deref(), lab.content()), (None, BTreeSet::from([1]))),
            _ => assert_eq!(open.as_deref(), Some("one"), "point {number}"),
        }
        lab.restore("one").expect("restored");
        assert_eq!((lab.content(), lab.states()), (BTreeSet::from([1]), BTreeSet::from(["running"])), "point {number}");
        assert_eq!(open_restore(&lab.history()), None, "point {number}");
    }
}

#[test]
fn killed_at_any_record_of_a_removal_the_rest_goes_with_the_next() {
    for number in 1..=4 {
        let lab = Lab::new();
        lab.save("one", None).expect("saved");
        failpoint::unwind_at(number);
        let killed = catch_unwind(AssertUnwindSafe(|| lab.remove("one")));
        failpoint::unwind_at(0);
        assert!(killed.is_err(), "point {number}");
        lab.recovers(&format!("point {number}"));
        lab.remove("one").expect("removed");
        lab.keeps(&[]);
    }
}

#[test]
fn what_machines_keep_that_no_record_knows_is_removed_and_what_cannot_be_read_is_not() {
    let lab = Lab::new();
    lab.save("one", None).expect("saved");
    lab.save("two", None).expect("saved");
    let file = |name: &str| lab.dir.path().join(format!("snapshots/{name}.json"));
    std::fs::remove_file(file("one")).expect("removed behind our back");
    std::fs::write(file("two"), "{").expect("damaged behind our back");
    assert_eq!(lab.tidy().expect("tidied"), [name("one")]);
    let kept: BTreeSet<Vec<String>> = lab.kept_by_machines();
    assert_eq!(kept, BTreeSet::from([vec!["two".to_owned()]]));
}

impl Lab {
    fn kept_by_machines(&self) -> BTreeSet<Vec<String>> {
        let machine = |node: &crate::plan::NodePlan| self.host.snapshots(&node.domain, &self.machines.mark).expect("listed");
        self.machines.plan.nodes.iter().map(machine).collect()
    }
}
