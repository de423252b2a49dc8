//! Other sizes and accelerations: `make e2e-full`.

use crate::rig::{Remove, Rig, eventually, step, virsh};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Brings it up, verifies it, and returns `--timings`.
fn comes_up(rig: &Rig, flags: &[&str]) -> Value {
    let up = rig.up(&[flags, &["--timings", "--format", "json"]].concat()).exits(0);
    let summary: Value = serde_json::from_str(up.out.lines().last().expect("a summary")).expect("JSON");
    step(&format!("{flags:?}: up took {:.1} s", up.took.as_secs_f64()));
    // `up` has ended with all green; eight machines on two cores may have a slow moment after that.
    eventually("verify is green", Duration::from_secs(180), || rig.not_passing().0 == 0);
    summary["timings"].clone()
}

/// Starts `up` and kills it with no word of warning when a line says `moment`.
fn killed_in_the_middle(rig: &Rig, flags: &[&str], moment: &str) {
    let words = [&["up", "-c", rig.cluster], flags].concat();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
        .args(words)
        .args(rig.accel())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let seen = lines.any(|line| line.expect("text").contains(moment));
    child.kill().expect("kill it");
    child.wait().expect("it ends");
    assert!(seen, "up has never said {moment:?}");
}

/// When a step began and when it had ended, seconds from the beginning of the run.
fn span(timings: &Value, step: &str) -> (f64, f64) {
    let seconds = |value: &Value| value["secs"].as_f64().expect("secs") + value["nanos"].as_f64().expect("nanos") / 1e9;
    let row = timings.as_array().expect("rows").iter().find(|row| row["step"] == step);
    let row = row.unwrap_or_else(|| panic!("{step} is not in {timings}"));
    (seconds(&row["began"]), seconds(&row["began"]) + seconds(&row["took"]))
}

#[test]
fn five_controllers_and_three_workers_the_third_later() {
    let rig = Rig::native("ha5");
    let _guard = Remove(&rig);
    let size = ["--etcd", "5", "--controller-mem", "1152", "--workers"];
    comes_up(&rig, &[&size[..], &["2"]].concat());
    let boots = |rig: &Rig| ["controller-0", "worker-1"].map(|node| rig.on(node, "cat /proc/sys/kernel/random/boot_id"));
    let before = boots(&rig);
    comes_up(&rig, &[&size[..], &["3"]].concat());
    assert_eq!(boots(&rig), before, "a worker more, and nothing else was touched");
    let nodes = rig.run(&["kubectl", "get", "nodes", "-o", "name"]).exits(0).out;
    assert_eq!(nodes.lines().count(), 3, "{nodes}");
    rig.up(&[&size[..], &["2"]].concat()).exits(2).says("worker-2 would be removed");
    rig.run(&["down", "--yes"]).exits(0);
}

#[test]
fn one_control_plane_on_three_etcd_members_isolated_and_interrupted() {
    let rig = Rig::native("cp1");
    let _guard = Remove(&rig);
    let size = ["--etcd", "3", "--control-planes", "1", "--workers", "1", "--isolated"];
    step("killed as the first machine answers, and again as etcd is started");
    killed_in_the_middle(&rig, &size, "✓ ssh ");
    killed_in_the_middle(&rig, &size, "✓ etcd ");
    comes_up(&rig, &size);
    let xml = virsh(&["net-dumpxml", "ktcw-cp1"]).exits(0).out;
    assert!(!xml.contains("<forward"), "{xml}");
    rig.run(&["down", "--yes"]).exits(0);
}

#[test]
fn three_and_two_under_emulation_start_one_after_the_other() {
    let rig = Rig::emulated("ha3-tcg");
    let _guard = Remove(&rig);
    let timings = comes_up(&rig, &["--etcd", "3", "--workers", "2"]);
    for (first, second) in [("controller-0", "controller-1"), ("controller-1", "controller-2")] {
        let (_, ready) = span(&timings, &format!("apiserver ready {first}"));
        let (began, _) = span(&timings, &format!("apiserver {second}"));
        assert!(began >= ready, "{second} began at {began:.1} s, {first} was ready at {ready:.1} s");
    }
    rig.run(&["down", "--yes"]).exits(0);
}
