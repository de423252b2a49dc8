//! Other sizes and accelerations: `make e2e-full`.

use crate::rig::{Remove, Rig, step};
use serde_json::Value;

fn comes_up(rig: &Rig, flags: &[&str]) -> Value {
    let _guard = Remove(rig);
    let up = rig.up(&[flags, &["--timings", "--format", "json"]].concat()).exits(0);
    let summary: Value = serde_json::from_str(up.out.lines().last().expect("a summary")).expect("JSON");
    step(&format!("{flags:?}: up took {:.1} s", up.took.as_secs_f64()));
    rig.verifies();
    rig.run(&["down", "--yes"]).exits(0);
    summary["timings"].clone()
}

/// When a step began and when it had ended, seconds from the beginning of the run.
fn span(timings: &Value, step: &str) -> (f64, f64) {
    let seconds = |value: &Value| value["secs"].as_f64().expect("secs") + value["nanos"].as_f64().expect("nanos") / 1e9;
    let row = timings.as_array().expect("rows").iter().find(|row| row["step"] == step);
    let row = row.unwrap_or_else(|| panic!("{step} is not in {timings}"));
    (seconds(&row["began"]), seconds(&row["began"]) + seconds(&row["took"]))
}

#[test]
fn five_controllers_and_three_workers() {
    comes_up(&Rig::native("ha5"), &["--etcd", "5", "--workers", "3", "--controller-mem", "1152"]);
}

#[test]
fn one_control_plane_on_three_etcd_members() {
    comes_up(&Rig::native("cp1"), &["--etcd", "3", "--control-planes", "1", "--workers", "1"]);
}

#[test]
fn three_and_two_under_emulation_start_one_after_the_other() {
    let timings = comes_up(&Rig::emulated("ha3-tcg"), &["--etcd", "3", "--workers", "2"]);
    for (first, second) in [("controller-0", "controller-1"), ("controller-1", "controller-2")] {
        let (_, ready) = span(&timings, &format!("apiserver ready {first}"));
        let (began, _) = span(&timings, &format!("apiserver {second}"));
        assert!(began >= ready, "{second} began at {began:.1} s, {first} was ready at {ready:.1} s");
    }
}
