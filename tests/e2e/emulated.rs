//! The same cluster for who has no KVM: controllers start one after the other, `up` and `verify` in their time, an election, the
//! loss of a majority, and back from memory. `make e2e-full` and `make bench`; one cluster serves all of it.
//! The figures and the drills' table are kept in `target/bench`.

use crate::bench::{back_from_memory, judged, measured_up, median, seconds};
use crate::drills::{drilled, healthy};
use crate::rig::{Remove, Rig, keep, step};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn three_and_two_without_kvm() {
    let rig = Rig::emulated("slow");
    let _guard = Remove(&rig);
    // An hour: the target is a tenth of that, and what a slow host needs is worth knowing too.
    let up = measured_up(&rig, Duration::from_secs(3600));
    step(&format!("up took {:.0} s, Ready after {:.0} s", up.whole_s, up.ready_s));
    keep("emulation-timings.json", &up.timings.to_string());
    one_after_the_other(&up.timings);

    healthy(&rig);
    let verify: Vec<f64> = (0..3).map(|_| rig.run(&["verify"]).exits(0).took.as_secs_f64()).collect();
    step(&format!("verify took {verify:.1?} s"));
    let back = back_from_memory(&rig);
    step(&format!("back from its golden snapshot in {back:.0} s"));

    let rows: Vec<String> = ["leader-kill", "quorum-loss"].iter().map(|name| drilled(&rig, name, &[])).collect();
    rows.iter().for_each(|row| step(row));
    keep("drills-tcg.txt", &rows.join("\n"));
    let report: Value = rig.run(&["drill", "report", "last", "--format", "json"]).exits(0).json();
    assert_eq!(report["record"]["environment"]["acceleration"], "tcg");

    rig.run(&["down", "--yes"]).exits(0);
    judged(
        "emulation",
        json!({ "up_s": up.whole_s, "timings": up.timings, "verify_s": verify, "golden_up_s": back }),
        &[
            ("3 + 2 Ready under TCG", up.ready_s, 600.0, " s"),
            ("verify of a healthy 3 + 2 under TCG", median(&verify), 15.0, " s"),
            ("up from the golden snapshot / cold up, under TCG", back / up.whole_s, 0.05, ""),
        ],
    );
}

/// A controller's API server begins when that of the one before it is ready: together they would starve each other.
fn one_after_the_other(timings: &Value) {
    for (first, second) in [("controller-0", "controller-1"), ("controller-1", "controller-2")] {
        let (_, ready) = span(timings, &format!("apiserver ready {first}"));
        let (began, _) = span(timings, &format!("apiserver {second}"));
        assert!(began >= ready, "{second} began at {began:.1} s, {first} was ready at {ready:.1} s");
    }
}

/// When a step began and when it had ended, seconds from the beginning of the run.
fn span(timings: &Value, step: &str) -> (f64, f64) {
    let row = timings.as_array().expect("rows").iter().find(|row| row["step"] == step);
    let row = row.unwrap_or_else(|| panic!("{step} is not in {timings}"));
    (seconds(&row["began"]), seconds(&row["began"]) + seconds(&row["took"]))
}
