//! What a later command finds and makes good, or refuses: a save without its last words, a machine that was made anew.

use super::*;

/// Killed when the record said whole and not yet what it takes: both are made good, and a later moment is not given up for it.
#[test]
fn a_save_that_was_killed_before_its_last_words_is_told_to_its_end_by_the_next() {
    for later in [false, true] {
        let lab = Lab::new();
        // After the record of the wake's begin: all is captured.
        failpoint::unwind_at(12);
        let killed = catch_unwind(AssertUnwindSafe(|| lab.save("one", None)));
        failpoint::unwind_at(0);
        assert!(killed.is_err() && lab.kept().0 == ["one"], "{:?}", lab.kept());
        assert_eq!((lab.records()[0].bytes, lab.dir.current_snapshot().expect("read")), (0, None));
        lab.run(async |desk| Ok(desk.machines.resume(desk.machines.nodes(None)).await.map(drop)?)).expect("resumed");
        if later {
            lab.save("two", None).expect("saved");
        } else {
            // What its disks took, in one of them.
            let (storage, mark) = (&lab.machines.plan.storage, &lab.machines.mark);
            lab.host.ensure_content(storage, "memory", &[7; 4096], mark).expect("written");
        }
        lab.tidy().expect("tidied");
        let current = lab.dir.current_snapshot().expect("read");
        assert_eq!(current.as_deref(), Some(if later { "two" } else { "one" }));
        let one = lab.records().into_iter().find(|record| record.name.as_str() == "one").expect("kept");
        assert_eq!(one.bytes, if later { 0 } else { 4096 });
        assert_eq!(unended(&lab), None);
    }
}

/// Killed before the first part was removed, it has removed nothing; with its record gone, all. Either is said in the journal, also
/// where no record is left that an `up` would be led here by.
#[test]
fn a_removal_that_was_cut_off_is_open_until_it_is_told_how_it_ended() {
    for (number, kept) in [(2, true), (3, false)] {
        let lab = Lab::new();
        lab.save("one", None).expect("saved");
        failpoint::unwind_at(number);
        let killed = catch_unwind(AssertUnwindSafe(|| lab.remove("one")));
        failpoint::unwind_at(0);
        assert!(killed.is_err() && unfinished(&lab.history()), "point {number}");
        lab.tidy().expect("tidied");
        lab.keeps(if kept { &["one"] } else { &[] });
        let history = lab.history();
        assert_eq!((history.pending().len(), history.failed().len()), (0, usize::from(kept)), "point {number}");
    }
}

/// Removed and added again it has the name, UUID and plan that it had, so that the record fits, and no part in the snapshot.
#[test]
fn a_machine_that_was_made_anew_is_said_before_anything_is_touched() {
    let lab = Lab::new();
    lab.save("one", None).expect("saved");
    lab.write(2);
    let worker = lab.machines.plan.workers().next().expect("planned").clone();
    let (storage, mark) = (&lab.machines.plan.storage, &lab.machines.mark);
    lab.host.remove_domain(&worker.domain.name, worker.domain.uuid, mark).expect("removed");
    let lacking = |lab: &Lab| block_on(parts(&lab.machines)).expect("asked").lacking(&name("one"));
    assert_eq!(lacking(&lab), std::slice::from_ref(&worker.name), "a machine that is gone has no part");
    lab.host.ensure_domain(&worker.domain, storage, &worker.name, mark).expect("defined");
    lab.host.set_state(&worker.domain.name, DomainState::Running).expect("running");
    lab.host.set_content_of(&worker.domain.name, 2).expect("there");
    assert_eq!(lacking(&lab), std::slice::from_ref(&worker.name));
    let error = lab.restore("one").expect_err("it cannot come to its end");
    assert!(matches!(&error, SnapshotError::Lacking { nodes, .. } if *nodes == [worker.name.clone()]), "{error}");
    assert!(
        error.to_string().contains("worker-0") && error.hint().is_some_and(|hint| hint.contains("snapshot delete one -c lab"))
    );
    assert_eq!((open_restore(&lab.history()), lab.states()), (None, BTreeSet::from(["running"])));
    assert_eq!(lab.content(), BTreeSet::from([2]));
    // The next one is whole again, and the half of the first goes by its name.
    lab.save("two", Some("one")).expect("saved");
    lab.restore("two").expect("restored");
    lab.remove("one").expect("removed");
    lab.keeps(&["two"]);
}
