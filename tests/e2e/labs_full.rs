//! `make e2e-full`: every lab is started, solved and taken back, and a start and a reset that are killed are finished by the next.

use crate::drills::healthy;
use crate::labs::solved;
use crate::rig::{Remove, Rig, eventually, keep, step};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn every_lab_is_solved_by_its_solution() {
    let rig = Rig::native("labs");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "3", "--workers", "1"]).exits(0);
    let listed = rig.run(&["lab", "list", "--format", "json"]).exits(0).json();
    let names: Vec<&str> = listed.as_array().expect("labs").iter().map(|lab| lab["name"].as_str().expect("a name")).collect();
    // One of them, or some, for who works on a lab.
    let wanted = std::env::var("KTCW_E2E_LABS").unwrap_or_default();
    let chosen: Vec<&&str> =
        names.iter().filter(|name| wanted.is_empty() || wanted.split(',').any(|one| one == **name)).collect();
    assert!(!chosen.is_empty(), "KTCW_E2E_LABS names none of {names:?}");
    let mut rows = Vec::new();
    for name in chosen {
        let row = solved(&rig, name);
        step(&row);
        rows.push(row);
    }
    keep("labs.txt", &rows.join("\n"));
}

/// Runs a verb until it says something on standard error, and kills it there.
fn killed_at(rig: &Rig, words: &[&str], said: &str) {
    let mut run = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
        .args(words)
        .args(["-c", rig.cluster])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(run.stderr.take().expect("piped")).lines();
    let mut all = Vec::new();
    let came = lines.map_while(Result::ok).any(|line| {
        all.push(line.clone());
        line.contains(said)
    });
    run.kill().expect("killed");
    run.wait().expect("ended");
    assert!(came, "it came as far as {said:?}: {all:?}");
}

#[test]
fn a_start_and_a_reset_that_are_killed_are_finished_by_the_next() {
    let rig = Rig::native("labs-killed");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "1", "--workers", "0"]).exits(0);
    let lab = "scheduler-kubeconfig";
    eventually("the cluster is well", Duration::from_secs(120), || rig.not_passing().0 == 0);

    step("killed while it saves: nothing is broken, and a reset says so");
    killed_at(&rig, &["lab", "start", lab], "saving memory");
    rig.run(&["lab", "check"]).exits(1).says("was cut off");
    rig.run(&["lab", "reset"]).exits(0).says("nothing of it was in the cluster");
    eventually("all goes on", Duration::from_secs(120), || rig.not_passing().0 == 0);

    step("killed while it saves, and begun again");
    killed_at(&rig, &["lab", "start", lab], "saving memory");
    eventually("it begins", Duration::from_secs(180), || rig.run(&["lab", "start", lab]).code == 0);
    rig.run(&["lab", "reset"]).exits(0);

    step("killed while it breaks things, then on its way back to a new beginning, and begun again");
    killed_at(&rig, &["lab", "start", lab], "setting up, 1");
    rig.run(&["lab", "start", "nospace"]).exits(1).says("is open");
    killed_at(&rig, &["lab", "start", lab], "taking all machines back");
    rig.run(&["lab", "start", "nospace"]).exits(1);
    rig.run(&["lab", "start", lab]).exits(0);
    rig.run(&["lab", "check"]).exits(3);

    step("killed while it goes back, and finished");
    killed_at(&rig, &["lab", "reset"], "taking all machines back");
    rig.run(&["lab", "check"]).exits(1).says("was cut off");
    rig.run(&["lab", "reset"]).exits(0).says("as it was before");
    healthy(&rig);
    rig.run(&["snapshot", "list"]).exits(0).says("no snapshots");
}
