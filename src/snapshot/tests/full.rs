//! The disk under the state directory full from any write of a save, a restore or a removal on: it is said, nobody is left frozen
//! by a save, and with room again the next commands find one moment or the other whole.

use super::*;

/// Writes of `work`, undisturbed; the lab it is done to is made by `lab`.
fn writes(lab: impl Fn() -> Lab, work: impl Fn(&Lab) -> Result<(), SnapshotError>) -> u64 {
    let lab = lab();
    failpoint::full_from(0);
    work(&lab).expect("undisturbed");
    failpoint::full_from(0)
}

/// Fills the disk from each write on, and shows `after` what is there once there is room again.
fn each(verb: &str, lab: impl Fn() -> Lab, work: impl Fn(&Lab) -> Result<(), SnapshotError>, after: impl Fn(&Lab, &str)) {
    let writes = writes(&lab, &work);
    assert!(writes >= 5, "{verb}: {writes}");
    // The first is the lock's own line, which it goes without.
    for number in 1..=writes {
        let about = format!("{verb}, full from write {number} of {writes}");
        let lab = lab();
        failpoint::full_from(number);
        let error = work(&lab).expect_err(&about);
        failpoint::full_from(0);
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let told = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        assert!(told.contains("No space left on device"), "{about}: {told}");
        assert!(error.hint().is_some_and(|hint| hint.contains("free space")), "{about}: {error:?}");
        after(&lab, &about);
    }
    println!("{verb}: the disk full from each of {writes} writes on");
}

#[test]
fn a_save_on_a_full_disk_freezes_nobody() {
    let save = |lab: &Lab| lab.save("one", None).map(drop);
    each("save", Lab::new, save, |lab, about| {
        assert_eq!((lab.states(), lab.content()), (BTreeSet::from(["running"]), BTreeSet::from([1])), "{about}");
        lab.recovers(about);
        if lab.kept().0.is_empty() {
            lab.save("one", None).expect("saved");
        }
        lab.write(2);
        lab.restore("one").expect("restored");
        assert_eq!(lab.content(), BTreeSet::from([1]), "{about}");
    });
}

#[test]
fn a_restore_on_a_full_disk_mixes_no_moments_and_is_finished_by_another() {
    let saved = || {
        let lab = Lab::new();
        lab.save("one", None).expect("saved");
        lab.write(2);
        lab
    };
    each(
        "restore",
        saved,
        |lab| lab.restore("one"),
        |lab, about| {
            let running = lab.states().contains("running");
            assert!(lab.content().len() == 1 || !running, "{about}: machines of two moments run together");
            lab.restore("one").unwrap_or_else(|error| panic!("{about}: {error}"));
            assert_eq!((lab.content(), lab.states()), (BTreeSet::from([1]), BTreeSet::from(["running"])), "{about}");
            assert_eq!(open_restore(&lab.history()), None, "{about}");
        },
    );
}

#[test]
fn a_removal_on_a_full_disk_is_finished_by_the_next() {
    let saved = || {
        let lab = Lab::new();
        lab.save("one", None).expect("saved");
        lab.save("two", Some("one")).expect("saved");
        lab
    };
    each(
        "remove",
        saved,
        |lab| lab.remove("one"),
        |lab, about| {
            lab.recovers(about);
            lab.remove("one").unwrap_or_else(|error| panic!("{about}: {error}"));
            lab.keeps(&["two"]);
        },
    );
}
