//! Drills on a 3+2 cluster, healed between them: ten of the catalogue by name, refusals, and runs that are killed in the middle.

use crate::rig::{Ran, Remove, Rig, artefacts, eventually, step};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// By name in `make e2e`; the rest of the catalogue is `drill run all`'s.
const DRILLS: [&str; 9] = [
    "leader-freeze",
    "isolate-leader",
    "bridge",
    "quorum-loss",
    "stalled-disk",
    "leader-power-off",
    "apiserver-kill",
    "kubelet-stop",
    "clock-skew",
];

/// Each leaves something else behind when nobody heals: rules, a suspended machine, a frozen disk, a stopped unit, a machine
/// without power, a clock.
const CRASHES: [(&str, &[&str]); 6] = [
    ("isolate-leader", &["up"]),
    ("leader-freeze", &["drill", "heal"]),
    ("stalled-disk", &["drill", "heal"]),
    ("quorum-loss", &["drill", "run", "move-leader"]),
    ("leader-power-off", &["drill", "heal"]),
    ("clock-skew", &["up"]),
];

#[test]
fn what_is_broken_on_purpose_heals_and_loses_nothing() {
    let rig = Rig::native("drills");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "3", "--workers", "2"]).exits(0);

    refusals_inject_nothing(&rig);
    a_second_run_waits_outside(&rig);
    for (name, next) in CRASHES {
        a_killed_run_is_healed(&rig, name, next);
    }
    nobody_heals_and_the_guest_does(&rig);
    leader_kill_five_times(&rig);
    let mut table = String::new();
    for name in DRILLS {
        let row = drilled(&rig, name);
        step(&row);
        table.push_str(&format!("{row}\n"));
    }
    std::fs::write(artefacts().join("drills.txt"), table).expect("kept");
    rig.run(&["drill", "heal"]).exits(0).says("nothing to heal");
    rig.verifies();

    step("down takes a suspended machine away as well");
    let mut dying = Dying::in_the_middle_of(&rig, "leader-freeze");
    dying.end("KILL");
    rig.run(&["down", "--yes"]).exits(0);
    assert!(!rig.dir().exists());
}

/// One drill that must pass; its line in the table. A host that did not let us look makes a run invalid, by its own words:
/// it is made again, once.
fn drilled(rig: &Rig, name: &str) -> String {
    let mut ran = drill(rig, name);
    let stalled = |ran: &Ran| ran.code == 4 && ran.out.contains("stood still");
    if stalled(&ran) {
        step(&format!("{name}: the host stood still; once more"));
        ran = drill(rig, name);
    }
    let report = ran.exits(0).json();
    let figures = &report["judgement"]["figures"];
    assert_eq!(figures["lost_acknowledged_writes"], 0, "{name}");
    assert_eq!(report["record"]["environment"]["cluster"], "drills");
    let ms = |value: &Value| value.as_u64().map_or("–".to_owned(), |us| format!("{} ms", us / 1000));
    let gap = &figures["longest_write_gap"];
    let length = gap["to"].as_u64().zip(gap["from"].as_u64()).map(|(to, from)| to - from);
    format!(
        "{name:18} gap {}, new leader {}, all back {}",
        ms(&serde_json::json!(length)),
        ms(&figures["time_to_new_leader_us"]),
        ms(&figures["time_to_full_membership_us"])
    )
}

fn drill(rig: &Rig, name: &str) -> Ran {
    healthy(rig);
    rig.run(&["drill", "run", name, "--format", "json"])
}

/// As `verify` sees it; a machine that has just come back may take a moment.
fn healthy(rig: &Rig) {
    eventually("verify is green", Duration::from_secs(300), || rig.not_passing().0 == 0);
}

fn leader_kill_five_times(rig: &Rig) {
    step("leader-kill, five times");
    let ran = rig.run(&["drill", "run", "leader-kill", "--repeat", "5", "--seed", "7", "--format", "json"]).exits(0);
    let series = ran.json();
    assert_eq!(series["series"][0]["passed"], 5, "{series}");
    assert_eq!(series["runs"].as_array().map(Vec::len), Some(5));
    step(&format!("write gap, µs: {}", series["series"][0]["write_gap"]));
    std::fs::write(artefacts().join("leader-kill.json"), &ran.out).expect("kept");

    let name = series["runs"][4]["run"].as_str().expect("a name").to_owned();
    rig.run(&["drill", "report", &name]).exits(0).says("PASS").says("longest write gap");
    let page = rig.run(&["drill", "report", &name, "--html"]).exits(0).out;
    let html = std::fs::read_to_string(page.trim()).expect("the page");
    assert!(html.contains("<svg") && !html.contains("http://"), "one page that needs nothing else");
    let other = series["runs"][0]["run"].as_str().expect("a name").to_owned();
    rig.run(&["drill", "report", "--compare", &other, &name]).exits(0).says("longest write gap");
    rig.run(&["drill", "report", "nothing"]).exits(2).says(&name);

    step("a gate that nobody meets makes it fail, and nothing else does");
    rig.run(&["drill", "run", "leader-kill", "--gate", "write_gap=1 ms"]).exits(3).says("FAIL");
}

fn refusals_inject_nothing(rig: &Rig) {
    step("refusals");
    rig.run(&["drill", "run", "leader-kil"]).exits(2).says("leader-kill");
    rig.run(&["drill", "run", "./nowhere.toml"]).exits(2).says("nowhere.toml");
    rig.run(&["drill", "run", "leader-kill", "--target", "worker"]).exits(2).says("etcd members");
    rig.on("controller-1", "systemctl stop etcd");
    rig.run(&["drill", "run", "leader-kill"]).exits(1).says("nothing was injected").says("drill heal");
    rig.run(&["drill", "heal"]).exits(0).says("a stopped etcd on controller-1");
    healthy(rig);
}

/// A run that has got to the middle of its fault.
struct Dying(Child);

impl Dying {
    fn in_the_middle_of(rig: &Rig, name: &str) -> Dying {
        healthy(rig);
        let mut child = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
            .args(["drill", "run", name, "-c", rig.cluster])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut all = Vec::new();
        while let Some(Ok(line)) = said.next() {
            if line.contains("holding for") {
                // What it says from now on has a reader, or it would end of that.
                std::thread::spawn(move || said.for_each(drop));
                return Dying(child);
            }
            all.push(line);
        }
        let code = child.wait().expect("it ends").code();
        panic!("{name} never held its fault and ended with {code:?}:\n{}", all.join("\n"));
    }

    fn end(&mut self, signal: &str) -> Option<i32> {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.0.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        self.0.wait().expect("it ends").code()
    }
}

fn a_second_run_waits_outside(rig: &Rig) {
    step("while one drill runs, others are refused; Ctrl-C heals");
    let mut running = Dying::in_the_middle_of(rig, "isolate-leader");
    rig.run(&["drill", "run", "leader-kill"]).exits(75).says("drill run isolate-leader");
    rig.run(&["drill", "heal"]).exits(75);
    assert_eq!(running.end("INT"), Some(130));
    rig.run(&["drill", "heal"]).exits(0).says("nothing to heal");
}

fn a_killed_run_is_healed(rig: &Rig, name: &str, next: &[&str]) {
    step(&format!("{name}, killed in the middle, then {}", next.join(" ")));
    Dying::in_the_middle_of(rig, name).end("KILL");
    let ran = match next {
        ["up"] => rig.up(&["--etcd", "3", "--workers", "2"]),
        words => rig.run(words),
    };
    ran.exits(0).says(name).says("healed");
    rig.run(&["drill", "heal"]).exits(0).says("nothing to heal");
    for node in ["controller-0", "controller-1", "controller-2"] {
        let left = rig.on(node, "nft list tables | grep ktcw_drill; systemctl list-timers --all | grep ktcw-drill; find /run/ktcw-drill /run/containers/systemd -type f 2>/dev/null; true");
        assert_eq!(left, "", "{node}");
    }
    healthy(rig);
}

/// The program is gone and nobody comes: the timer in the guest takes the rules away.
fn nobody_heals_and_the_guest_does(rig: &Rig) {
    step("isolate-leader, killed in the middle, and nobody heals");
    Dying::in_the_middle_of(rig, "isolate-leader").end("KILL");
    let cut = || {
        ["controller-0", "controller-1", "controller-2"].iter().any(|node| rig.on(node, "nft list tables").contains("ktcw_drill"))
    };
    assert!(cut(), "the fault is in force");
    let took = eventually("the rules are gone", Duration::from_secs(120), || !cut());
    step(&format!("the guest healed itself after {:.0} s", took.as_secs_f64()));
    rig.run(&["drill", "heal"]).exits(0).says("isolate-leader");
}
