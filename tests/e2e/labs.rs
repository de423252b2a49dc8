//! Labs as somebody does them: started, looked at, solved by typing what the solution says, looked at again, taken back.
//! Functions on a cluster that is there; `lab` has four of them on its own, `labs_full` all.

use crate::drills::healthy;
use crate::rig::{Ran, Rig, command, eventually, step};
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long a cluster may take to be well again once all was typed.
const PATIENCE: Duration = Duration::from_secs(300);

fn score(ran: &Ran) -> (u64, u64) {
    let said = ran.json();
    let number = |pointer: &str| said.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{said}"));
    (number("/score/got"), number("/score/of"))
}

/// Checks that did not pass, for whoever reads why.
fn missing(ran: &Ran) -> String {
    let said = ran.json();
    let open = said["score"]["checks"].as_array().into_iter().flatten().filter(|check| check["got"] != check["of"]);
    open.map(|check| format!("{}: {}", check["what"], check["outcomes"])).collect::<Vec<_>>().join("\n")
}

/// Checks that pass already, but for those that are there to stay so.
fn always_green(ran: &Ran) -> Vec<String> {
    let said = ran.json();
    let checks = said["score"]["checks"].as_array().into_iter().flatten();
    let green = checks.filter(|check| check["got"] == check["of"] && check["stays"] == false);
    green.map(|check| format!("{}: {}", check["what"], check["outcomes"])).collect()
}

/// Types the commands of the open lab's solution into one shell, which ends at the first that fails.
fn typed(rig: &Rig) -> Ran {
    let commands = rig.run(&["lab", "solution", "--commands"]).exits(0).out;
    let place = tempfile::tempdir().expect("a directory");
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_ktcw-vm")).parent().expect("a directory").display().to_string();
    let script = format!("set -ex\nexport PATH={bin}:$PATH\ncd {}\n{commands}", place.path().display());
    let ran = command("timeout", &["300", "bash", "-c", &script]).exits(0);
    let left = std::fs::read_dir(place.path()).expect("the place").count();
    assert_eq!(left, 0, "a solution leaves no file behind");
    ran
}

/// From the start to the reset, with the times and points as one line.
pub fn solved(rig: &Rig, name: &str) -> String {
    step(&format!("lab {name}"));
    eventually("the cluster is well before it", PATIENCE, || rig.not_passing().0 == 0);
    let started = rig.run(&["lab", "start", name, "--format", "json"]).exits(0);
    assert_eq!(started.json()["snapshot"], format!("lab-{name}"));
    rig.run(&["lab", "start", name]).exits(1).says("is open").says("lab reset");
    rig.run(&["lab", "hint"]).exits(0).says("hint 1 of");
    rig.run(&["lab", "status"]).exits(0).says("hint 1: ").says("not looked at yet");
    let before = rig.run(&["lab", "check", "--format", "json"]).exits(3);
    let (got, of) = score(&before);
    assert!(got < of, "{got} of {of} before anything is done");
    assert_eq!(always_green(&before), Vec::<String>::new(), "checks of lab {name} that pass with nothing done");
    step(&format!("   broken: {got} of {of} points\n{}", missing(&before)));
    let begun = Instant::now();
    typed(rig);
    let mut last = String::new();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("all points", PATIENCE, || {
            let ran = rig.run(&["lab", "check", "--format", "json"]);
            last = missing(&ran);
            ran.code == 0
        })
    }));
    assert!(done.is_ok(), "lab {name} was solved and is not:\n{last}");
    let took = begun.elapsed();
    rig.run(&["lab", "check"]).exits(0).says("solved with one hint");
    let reset = rig.run(&["lab", "reset"]).exits(0).says("the cluster is as it was before");
    rig.run(&["snapshot", "list"]).exits(0);
    let kept = rig.run(&["snapshot", "list", "-o", "json"]).exits(0).out;
    assert!(!kept.contains(&format!("lab-{name}")), "{kept}");
    rig.run(&["lab", "check"]).exits(2).says("no lab is open");
    rig.run(&["lab", "list"]).exits(0).says("solved with one hint");
    // Time has jumped for the machines: a control loop that lost its lease by that is beginning anew, ten seconds later.
    healthy(rig);
    let seconds = |time: Duration| time.as_secs_f64();
    format!(
        "lab {name:22} start {:5.1} s · {got:2} of {of:2} points broken · solved and passing after {:5.1} s · reset and verified {:5.1} s",
        seconds(started.took),
        seconds(took),
        seconds(reset.took)
    )
}

/// One picture, which shows a machine that is paused as such and is not held up by it; then the tour, all of it.
pub fn looked_at_live(rig: &Rig) {
    step("top shows the cluster, and a paused machine as paused");
    let ran = rig.run(&["top", "--once"]).exits(0).says("LEADER").says("3 of 3 machines run").says("etcd");
    assert!(ran.out.lines().all(|line| line.chars().count() <= 80), "{}", ran.out);
    step(&ran.out);
    rig.run(&["top"]).exits(2).says("--once");
    rig.run(&["pause", "--node", "controller-2"]).exits(0);
    let paused = rig.run(&["top", "--once"]).exits(0).says("2 of 3 machines run").says("paused");
    assert!(paused.took < Duration::from_secs(20), "{:?}", paused.took);
    rig.run(&["resume", "--node", "controller-2", "--no-verify"]).exits(0);
    eventually("all is well after the pause", Duration::from_secs(90), || rig.not_passing().0 == 0);
    step("the tour, without waiting");
    rig.run(&["tour"]).exits(2).says("--yes");
    let tour = rig.run(&["tour", "--yes"]).exits(0).says("Leadership transferred").says("not on this cluster: it needs 1 worker");
    step(&format!("the tour took {:.1} s", tour.took.as_secs_f64()));
    eventually("all is well after the tour", Duration::from_secs(90), || rig.not_passing().0 == 0);
}
