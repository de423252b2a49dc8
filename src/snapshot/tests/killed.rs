//! The program killed at any place of a save, a restore, a removal and a tidying: a real process, ended by an abort before or after
//! every journal record, file and effect, over machines that outlive it. Then one moment or the other is whole and can be gone back
//! to, machines of two moments never run together, and `down` leaves nothing. Of what is saved and restored of etcd alone, which `cli`
//! does member by member, the order of its files, records and the journal's two words is gone through here.

use super::*;
use crate::plan::DiskKind;
use crate::store::Class;
use crate::store::crash::{self, copy, each, place, told};
use serde_json::json;
use std::path::PathBuf;

/// A computer with two machines on it, as a directory.
struct Computer(PathBuf);

const CHILD: &str = "snapshot::tests::killed::child_works";

impl Computer {
    /// New; `prepare` is done to it undisturbed.
    fn new(at: &Path, prepare: impl FnOnce(&Lab)) -> Computer {
        std::fs::create_dir_all(at).expect("a directory");
        let computer = Computer(at.to_owned());
        let lab = Lab::made(at, crash::kept_host(&computer.host()));
        prepare(&lab);
        computer.keep(&lab);
        computer
    }

    fn host(&self) -> PathBuf {
        self.0.join("host.json")
    }

    fn lab(&self) -> Lab {
        let dir = ClusterDir::open(&self.0.join("clusters"), &sample(1).cluster).expect("there");
        Lab::of(dir, crash::kept_host(&self.host()))
    }

    /// What a test did to the machines itself.
    fn keep(&self, lab: &Lab) {
        std::fs::write(self.host(), lab.host.saved()).expect("written");
    }

    fn copied(&self, to: &Path) -> Computer {
        copy(&self.0, to);
        Computer(to.to_owned())
    }

    /// In a process of its own; it must be killed on its way.
    fn killed(&self, verb: &str, at: &str) {
        let env: [(&str, &dyn AsRef<std::ffi::OsStr>); 3] =
            [("KTCW_TEST_DIR", &self.0), ("KTCW_TEST_VERB", &verb), ("KTCW_FAIL_AT", &at)];
        assert!(crash::aborts(CHILD, &env), "{at} is on the way of {verb}");
    }

    /// Kills `verb` at each of its points: `down` leaves nothing, and `after` is shown the rest.
    fn each(&self, verb: &str, at_least: usize, after: impl Fn(&Computer, &Lab, &str) + Sync) {
        let place = place();
        let counted = self.copied(&place.path().join("counted"));
        let points =
            crash::points(CHILD, &[("KTCW_TEST_DIR", &counted.0), ("KTCW_TEST_VERB", &verb)], &place.path().join("count"));
        assert!(points.len() >= at_least, "{verb}: {points:?}");
        each(&points, |point, at| {
            let about = format!("{verb} killed at {point}");
            let cut = self.copied(&at.join("cut"));
            cut.killed(verb, point);
            cut.copied(&at.join("down")).lab().goes_away(&about);
            let lab = cut.lab();
            lab.runs_in_one_moment(&about);
            after(&cut, &lab, &about);
        });
        println!("{}", told(verb, &points));
    }
}

impl Lab {
    /// What `down` does, as far as libvirt is concerned.
    fn goes_away(&self, about: &str) {
        let removed = block_on(crate::apply::remove(self.host.clone(), &self.machines.mark, |_| ()));
        removed.unwrap_or_else(|error| panic!("{about}, down: {error}"));
        let seen = self.host.observe().expect("observed");
        assert_eq!((seen.domains, seen.networks, seen.pools), (vec![], vec![], vec![]), "{about}, down");
    }

    /// Machines that run are of one moment: members of two would speak to each other.
    fn runs_in_one_moment(&self, about: &str) {
        let seen = self.host.observe().expect("observed");
        let runs = |node: &&crate::plan::NodePlan| {
            seen.domains.iter().any(|domain| domain.name == node.domain.name && domain.state == DomainState::Running)
        };
        let running = self.machines.plan.nodes.iter().filter(runs);
        let moments: BTreeSet<Option<u64>> = running.map(|node| self.host.content_of(&node.domain.name)).collect();
        assert!(moments.len() <= 1, "{about}: {moments:?} run together");
    }

    /// The snapshot can be gone back to, and is what it was.
    fn goes_back(&self, name: &str, content: u64, about: &str) {
        self.restore(name).unwrap_or_else(|error| panic!("{about}: {error}"));
        assert_eq!((self.content(), self.states()), (BTreeSet::from([content]), BTreeSet::from(["running"])), "{about}");
        assert_eq!((open_name(&self.history()), self.current().as_deref()), (None, Some(name)), "{about}");
        self.nothing_is_open(about);
    }

    fn current(&self) -> Option<String> {
        self.dir.current_snapshot().expect("readable")
    }

    /// Volume of the one member's data.
    fn etcd_disk(&self) -> &str {
        let mut disks = self.machines.plan.controllers().flat_map(|node| &node.domain.disks);
        &disks.find(|disk| matches!(disk.kind, DiskKind::Etcd { .. })).expect("a disk").volume
    }

    fn give(&self, data: &[u8]) {
        let (storage, mark) = (&self.machines.plan.storage, &self.machines.mark);
        self.host.ensure_content(storage, self.etcd_disk(), data, mark).expect("given");
    }

    fn data(&self) -> Vec<u8> {
        self.host.content(&self.machines.plan.storage.pool, self.etcd_disk()).expect("there")
    }

    /// What was cut off goes, the file comes, and last its record.
    fn save_etcd(&self, name: &str) {
        let lock = self.dir.lock("snapshot save").expect("free");
        self.dir.tidy_etcd_snapshots(&lock).expect("tidied");
        let file = self.dir.etcd_snapshot_file(&lock, name).expect("a path");
        let partial = file.with_extension("db.partial");
        std::fs::write(&partial, STORE).expect("written");
        failpoint(Class::Effect, "received");
        std::fs::rename(&partial, &file).expect("renamed");
        failpoint(Class::Effect, "whole");
        self.dir.save_etcd_snapshot(&lock, name, &STORE.len()).expect("recorded");
    }

    /// Open from before the member's data is taken away until it has the snapshot's.
    fn restore_etcd(&self, name: &str) -> Result<(), SnapshotError> {
        self.run(async |desk| {
            desk.journal.begin_with(RESTORE, None, json!({ "snapshot": name, "etcd_only": true }))?;
            self.give(b"");
            self.give(STORE);
            Ok(desk.journal.done(RESTORE, None)?)
        })
    }
}

/// What etcd's snapshot holds.
const STORE: &[u8] = b"the store";

#[test]
fn a_save_killed_anywhere_is_whole_or_gone() {
    let place = place();
    let computer = Computer::new(&place.path().join("computer"), |lab| {
        lab.save("one", None).expect("saved");
        lab.write(2);
    });
    computer.each("save two", 36, |cut, lab, about| {
        lab.recovers(about);
        assert_eq!(lab.content(), BTreeSet::from([2]), "{about}: the machines go on as they were");
        match lab.kept().0.as_slice() {
            [_] => drop(lab.save("two", Some("one")).unwrap_or_else(|error| panic!("{about}: {error}"))),
            [_, two] => assert_eq!(two, "two", "{about}"),
            other => panic!("{about}: {other:?}"),
        }
        lab.keeps(&["one", "two"]);
        lab.write(3);
        cut.keep(lab);
        lab.goes_back("two", 2, about);
        lab.goes_back("one", 1, about);
        lab.goes_away(&format!("{about}, and all after it"));
    });
}

#[test]
fn a_restore_killed_anywhere_is_finished_by_another() {
    let place = place();
    let computer = Computer::new(&place.path().join("computer"), |lab| {
        lab.save("one", None).expect("saved");
        lab.write(2);
        lab.save("two", Some("one")).expect("saved");
        lab.write(3);
    });
    computer.each("restore one", 32, |_, lab, about| {
        match open_name(&lab.history()) {
            // Either nothing was announced and nothing touched, or its last word is on the disk.
            None => assert!([3, 1].map(|content| BTreeSet::from([content])).contains(&lab.content()), "{about}"),
            Some(name) => assert_eq!(name, "one", "{about}"),
        }
        // Another moment than the one that was on its way will do as well.
        lab.goes_back("two", 2, about);
        lab.goes_back("one", 1, about);
        lab.keeps(&["one", "two"]);
    });
}

#[test]
fn a_removal_killed_anywhere_is_finished_by_the_next_and_keeps_all_others() {
    let place = place();
    let computer = Computer::new(&place.path().join("computer"), |lab| {
        for (content, name, parent) in [(1, "one", None), (2, "two", Some("one")), (3, "three", Some("two"))] {
            lab.write(content);
            lab.save(name, parent).expect("saved");
        }
        lab.restore("two").expect("restored");
    });
    computer.each("remove two", 16, |_, lab, about| {
        lab.recovers(about);
        lab.remove("two").unwrap_or_else(|error| panic!("{about}: {error}"));
        lab.keeps(&["one", "three"]);
        let records = lab.records();
        let three = records.iter().find(|record| record.name.as_str() == "three").expect("kept");
        assert_eq!(three.parent.as_ref().map(Name::as_str), Some("one"), "{about}: its parent is its parent's");
        assert_eq!(lab.current().as_deref(), Some("one"), "{about}: where the cluster goes on from");
        lab.goes_back("three", 3, about);
        lab.goes_back("one", 1, about);
    });
}

/// What a killed save has left is cleared away by the next, which is killed as well.
#[test]
fn a_tidying_killed_anywhere_is_finished_by_the_next() {
    let place = place();
    let computer = Computer::new(&place.path().join("computer"), |lab| {
        lab.save("one", None).expect("saved");
        lab.write(2);
    });
    // One machine has kept it, the other perhaps: nobody is woken, nothing is written down.
    computer.killed("save two", "effect:after ensure_snapshot lab-worker-0");
    computer.each("tidy", 12, |_, lab, about| {
        lab.recovers(about);
        lab.keeps(&["one"]);
        lab.goes_back("one", 1, about);
    });
}

#[test]
fn a_save_of_etcd_alone_killed_anywhere_is_whole_or_leaves_no_copy_of_its_secrets() {
    let place = place();
    let computer = Computer::new(&place.path().join("computer"), |_| ());
    computer.each("etcd-save store", 4, |_, lab, about| {
        let lock = lab.dir.lock("snapshot").expect("free");
        lab.dir.tidy_etcd_snapshots(&lock).expect("tidied");
        drop(lock);
        let file = lab.dir.path().join("etcd-snapshots/store.db");
        let recorded = lab.dir.load_etcd_snapshots::<usize>().expect("listed");
        assert_eq!(file.exists(), !recorded.is_empty(), "{about}");
        assert!(!file.with_extension("db.partial").exists(), "{about}");
        lab.save_etcd("store");
        assert_eq!(std::fs::read(&file).expect("there"), STORE, "{about}");
        lab.nothing_is_open(about);
    });
}

#[test]
fn a_restore_of_etcd_alone_killed_anywhere_is_finished_by_itself_or_by_a_whole_one() {
    let place = place();
    let computer = Computer::new(&place.path().join("computer"), |lab| {
        lab.save("one", None).expect("saved");
        lab.save_etcd("store");
        lab.give(b"before");
    });
    computer.each("etcd-restore store", 8, |cut, lab, about| {
        match open_restore(&lab.history()) {
            None => assert!([b"before".as_slice(), STORE].contains(&lab.data().as_slice()), "{about}"),
            Some(open) => {
                assert_eq!(open, OpenRestore { snapshot: "store".to_owned(), etcd_only: true }, "{about}");
                // What clears up after saves does not take it for over.
                lab.tidy().unwrap_or_else(|error| panic!("{about}: {error}"));
                assert_eq!(open_name(&lab.history()).as_deref(), Some("store"), "{about}");
            }
        }
        cut.copied(&cut.0.with_file_name("whole")).lab().goes_back("one", 1, about);
        lab.restore_etcd("store").unwrap_or_else(|error| panic!("{about}: {error}"));
        assert_eq!((lab.data().as_slice(), open_restore(&lab.history())), (STORE, None), "{about}");
        lab.nothing_is_open(about);
    });
}

#[test]
#[ignore = "only as a child of the tests above"]
fn child_works() {
    let lab = Computer(PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"))).lab();
    let verb = std::env::var("KTCW_TEST_VERB").expect("set by the parent");
    match verb.split_once(' ').unwrap_or((&verb, "")) {
        ("save", name) => drop(lab.save(name, Some("one")).expect("saved")),
        ("restore", name) => lab.restore(name).expect("restored"),
        ("remove", name) => lab.remove(name).expect("removed"),
        ("tidy", _) => drop(lab.tidy().expect("tidied")),
        ("etcd-save", name) => lab.save_etcd(name),
        ("etcd-restore", name) => lab.restore_etcd(name).expect("restored"),
        other => panic!("no verb {other:?}"),
    }
}
