//! Saves, restores and removals on fake machines: whole or not at all, wherever they are cut off.

mod found;
mod full;
mod killed;

use super::compare::compare;
use super::*;
use crate::event::Verdict;
use crate::host::fake::{FakeHost, Strike};
use crate::host::{DomainState, Host, Mark};
use crate::life::{self, Machines};
use crate::plan::{Plan, samples};
use crate::spec::NodeName;
use crate::store::{ClusterDir, Lock, failpoint, journal};
use crate::verify::MemberSeen;
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

#[test]
fn records_are_private_and_say_their_format() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new();
    lab.save("one", None).expect("saved");
    let path = lab.dir.path().join("snapshots/one.json");
    assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
    let text = std::fs::read_to_string(&path).expect("text");
    assert!(text.contains("\"format\": 1") && text.contains("\"qemu_version\": \"10.0.2\""), "{text}");
    // As by a newer program, whose own sum, if it keeps one, this one cannot know.
    let body = text.split_once(",\n  \"sum\": \"").map_or_else(|| text.clone(), |(body, _)| format!("{body}\n}}\n"));
    std::fs::write(&path, body.replace("\"format\": 1", "\"format\": 2")).expect("written");
    let listed = lab.dir.load_snapshots::<Record>().expect("listed");
    let error = listed[0].1.as_ref().expect_err("newer").to_string();
    assert!(error.contains("newer version"), "{error}");
}

#[test]
fn names_fit_files_and_unknown_ones_are_answered_with_the_known() {
    for good in ["a", "before-upgrade", "v1.36_2", "0"] {
        assert_eq!(name(good).to_string(), good);
    }
    for bad in ["", ".hidden", "-x", "A", "a/b", "a b", "ü", &"a".repeat(41), "a\n"] {
        let said = Name::parse(bad).expect_err(bad);
        assert!(said.contains("accepted"), "{said}");
    }
    let whole = |text: &str| Record { state: State::Whole, ..record(text, None) };
    let records = [whole("one"), record("half", None), whole("two")];
    assert_eq!(chosen(&records, &name("two")).expect("known").name, name("two"));
    assert_eq!(chosen(&records, &name("half")).expect_err("a half is none"), "there is no snapshot half; there are one, two");
    let slip = chosen(&[whole("golden"), whole("one")], &name("goldn")).expect_err("mistyped");
    assert_eq!(slip, "there is no snapshot goldn; there are golden, one; did you mean golden?");
    assert!(chosen(&[], &name("x")).expect_err("none").contains("none at all"));
}

#[test]
fn the_golden_one_is_among_the_costs_where_nobody_keeps_it_anew() {
    let whole = |text: &str| Record { state: State::Whole, ..record(text, None) };
    let (golden, both) = ([whole("golden")], [whole("golden"), whole("one"), record("half", None)]);
    assert_eq!(stop_fitting(&golden, Some("golden")), None);
    assert!(stop_fitting(&golden, None).expect("a cost").ends_with("there are now: golden"));
    assert!(stop_fitting(&both, Some("golden")).expect("a cost").starts_with("1 snapshot stops fitting"));
    assert!(stop_fitting(&both, None).expect("a cost").ends_with("there are now: golden, one"));
}

#[test]
fn a_tree_shows_children_after_parents_and_orphans_at_the_root() {
    let aged = |text: &str, parent: Option<&str>, second: i64| Record { taken: at(second), ..record(text, parent) };
    let records = [
        aged("late", Some("root"), 9),
        aged("early", Some("root"), 3),
        aged("leaf", Some("early"), 5),
        aged("orphan", Some("gone"), 1),
        aged("root", None, 0),
    ];
    let shown: Vec<(usize, String)> = tree(&records).iter().map(|(depth, record)| (*depth, record.name.to_string())).collect();
    let expected = [(0, "root"), (1, "early"), (2, "leaf"), (1, "late"), (0, "orphan")];
    assert_eq!(shown, expected.map(|(depth, name)| (depth, name.to_owned())));
}

#[test]
fn another_image_kernel_qemu_or_plan_is_named() {
    let facts = FakeHost::new().facts().expect("facts");
    let then = Fits::of(&sample(1), &facts);
    assert_eq!(then.differs(&then.clone()), Vec::<String>::new());
    let mut newer = facts.clone();
    newer.qemu_version = "11.0.0".into();
    assert_eq!(then.differs(&Fits::of(&sample(1), &newer)), ["QEMU was 10.0.2, now it is 11.0.0"]);
    let plan = then.differs(&Fits::of(&sample(2), &facts));
    assert_eq!(plan, ["worker-1 has come since"]);
    assert_eq!(Fits::of(&sample(2), &facts).differs(&then), ["worker-1 is not in the cluster any more"]);
    // A record of before nodes were written down.
    let text = serde_json::to_string(&then).expect("prints");
    let mut old: serde_json::Value = serde_json::from_str(&text).expect("reads");
    old.as_object_mut().expect("an object").remove("nodes");
    let old: Fits = serde_json::from_value(old).expect("still read");
    assert_eq!(old.differs(&then), Vec::<String>::new());
    let plan = old.differs(&Fits::of(&sample(2), &facts));
    assert!(plan.len() == 1 && plan[0].starts_with("the plan is another: a node was added, removed"), "{plan:?}");
    let image = Fits { image_key: "f".repeat(64), kernel_sha256: "e".repeat(64), ..then.clone() };
    assert_eq!(then.differs(&image).len(), 2);
}

#[test]
fn room_is_counted_in_memory_that_was_touched() {
    let plan = sample(1);
    let lab = Lab::new();
    let mut seen = lab.host.observe().expect("observed");
    let resident: BTreeMap<NodeName, u64> = plan.nodes.iter().map(|node| (node.name.clone(), 400 << 20)).collect();
    let mut free = |mib: u64| {
        seen.pools.iter_mut().for_each(|pool| pool.available = Some(mib << 20));
        room(&plan, &seen, &resident)
    };
    // 2 × 400 touched, 2 × 192 to be written anew, 512 in reserve.
    assert_eq!(free(1696), Ok(()));
    let said = free(1695).expect_err("one MiB short");
    assert!(said.contains("1696 MiB") && said.contains("1695 MiB free"), "{said}");
    let untold = room(&plan, &seen, &BTreeMap::new()).expect_err("all of the memory counts");
    assert!(untold.contains(&format!("memory {}", plan.nodes.iter().map(|n| n.domain.memory_mib).sum::<u32>())), "{untold}");
}

#[test]
fn members_are_the_same_only_with_the_same_id_content_and_no_step_back() {
    let then = MemberSeen { id: "a1".into(), leader: "a1".into(), term: 3, revision: 50, hashed: 50, hash: 7, compacted: 10 };
    let node = NodeName::controller(0);
    let judged = |now: Result<MemberSeen, String>| {
        let all = compare(&BTreeMap::from([(node.clone(), then.clone())]), &BTreeMap::from([(node.clone(), now)]));
        (all[0].verdict, all[0].said.clone())
    };
    assert_eq!(judged(Ok(then.clone())).0, Verdict::Pass);
    let later = MemberSeen { term: 5, leader: "b2".into(), revision: 60, ..then.clone() };
    let (verdict, said) = judged(Ok(later));
    assert!(verdict == Verdict::Pass && said.contains("2 elections since") && said.contains("another leader"), "{said}");
    let compacted = judged(Ok(MemberSeen { compacted: 40, hash: 8, ..then.clone() }));
    assert!(compacted.0 == Verdict::Pass && compacted.1.contains("not comparable"), "{}", compacted.1);
    for (wrong, word) in [
        (MemberSeen { id: "c3".into(), ..then.clone() }, "id was a1"),
        (MemberSeen { term: 2, ..then.clone() }, "term was 3"),
        (MemberSeen { revision: 49, ..then.clone() }, "revision was 50"),
        (MemberSeen { hash: 8, ..then.clone() }, "hash at revision 50"),
    ] {
        let (verdict, said) = judged(Ok(wrong));
        assert!(verdict == Verdict::Fail && said.contains(word), "{said}");
    }
    assert_eq!(judged(Err("no SSH".into())).0, Verdict::Unknown);
    assert_eq!(compare(&BTreeMap::from([(node.clone(), then.clone())]), &BTreeMap::new())[0].verdict, Verdict::Unknown);
}
