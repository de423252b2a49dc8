//! Drills on one cluster, as it was first made or healed between them: ten of the catalogue by name, refusals, and runs that are
//! killed in the middle. Three controllers, brought back from their golden snapshot, then two workers besides.
//! `make e2e` runs it, less of it where machines are slow (`a_small_round`); `full` has the rest of the catalogue and of the crashes.
//! The table of results is kept in `target/bench`.

use crate::crashes::{Next, SOME, killed_and_healed};
use crate::dying::{Dying, residue};
use crate::excuses::{Consoles, excuse, not_shown, of_the_host, reasons};
use crate::rig::{Ran, Remove, Rig, eventually, keep, mode, slow, step};
use ktcw_vm::drill::catalogue::Drill;
use serde_json::Value;
use std::time::{Duration, Instant};

/// By name in `make e2e`, besides leader-kill.
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

const SIZE: [&str; 4] = ["--etcd", "3", "--workers", "0"];

#[test]
fn what_is_broken_on_purpose_heals_and_loses_nothing() {
    let rig = Rig::native("drills");
    let _guard = Remove(&rig);
    let up = rig.up_with_golden(&SIZE).exits(0).says("golden snapshot kept");
    if slow(&up, Duration::from_secs(45)) {
        return a_small_round(&rig);
    }
    let mut last = Instant::now();
    let mut took = |what: &str| {
        step(&format!("== {what}: {:.0} s", last.elapsed().as_secs_f64()));
        last = Instant::now();
    };
    refusals_inject_nothing(&rig);
    a_second_run_waits_outside(&rig);
    took("refusals");
    as_first_made(&rig);
    leader_kill_five_times(&rig);
    took("leader-kill ×5");
    as_first_made(&rig);
    for _ in 0..2 {
        rig.run(&["node", "add"]).exits(0).says("cluster");
    }
    took("two workers added");

    let mut table = String::new();
    for name in DRILLS {
        let row = drilled(&rig, name, &[]);
        step(&row);
        table.push_str(&format!("{row}\n"));
        // What ran is worth keeping also when the next one fails.
        keep("drills.txt", &table);
        took(name);
    }
    a_file_of_ones_own(&rig);
    took("a file");
    for row in SOME {
        killed_and_healed(&rig, row);
    }
    assert_eq!(residue(&rig), Vec::<String>::new());
    took("killed runs");
    rig.verifies();

    step("down takes a suspended machine away as well");
    Dying::at(&rig, "leader-freeze", "holding for", 1).end("KILL");
    rig.run(&["down", "--yes"]).exits(0);
    assert!(!rig.dir().exists());
    took("down");
}

/// All of it would take hours: an election, the loss of a majority, and one killed run say the most a minute.
fn a_small_round(rig: &Rig) {
    step("three controllers and two drills; the others are left to make e2e-full");
    // Bounds of time hold on hosts that start a process in less than seconds. That the fault was there, and that nothing is lost or
    // wrong, is demanded all the same.
    let killed = tried(rig, "leader-kill", &["full_membership=90 s", "write_gap=20 s", "new_leader=20 s"]);
    as_first_made(rig);
    let rows = [killed, tried(rig, "quorum-loss", &["full_membership=90 s", "first_write=60 s"])];
    rows.iter().for_each(|row| step(row));
    keep("drills.txt", &rows.join("\n"));
    killed_and_healed(rig, ("isolate-leader", "holding for", 1, 0, Next::Heal));
    rig.run(&["down", "--yes"]).exits(0);
}

/// Back to the moment in which `up` had just verified it: no drill meets what another has left.
fn as_first_made(rig: &Rig) {
    let down = rig.run(&["down", "--yes", "--keep-golden"]).exits(0);
    let up = rig.up_with_golden(&SIZE).exits(0).says("back from its golden snapshot");
    step(&format!("as it was first made: down in {:.0} s, up in {:.0} s", down.took.as_secs_f64(), up.took.as_secs_f64()));
}

/// So many runs that prove nothing by the host's fault are made again.
const BUSY: usize = 2;

/// One drill that must pass; its line in the table.
pub fn drilled(rig: &Rig, name: &str, gates: &[&str]) -> String {
    let report = repeated(rig, name, gates).pop().expect("it ran").exits(0).json();
    row_of(rig, name, &report)
}

/// One drill on a host that may be too slow to measure anything: then each run says so itself, and one of them at least has shown the
/// fault, its heal, and every promise kept.
fn tried(rig: &Rig, name: &str, gates: &[&str]) -> String {
    let mut runs = repeated(rig, name, gates);
    let lacking: Vec<Vec<String>> = runs.iter().map(|ran| not_shown(&report_of(ran)["judgement"])).collect();
    let ran = runs.pop().expect("it ran");
    // Kernels that users have are not slow without a reason that should be found.
    if ran.code == 0 || mode() == "kvm" {
        return row_of(rig, name, &ran.exits(0).json());
    }
    let report = ran.exits(4).json();
    let judgement = &report["judgement"];
    let reasons = reasons(judgement);
    assert!(of_the_host(&reasons), "{reasons:?}");
    assert_eq!(judgement["figures"]["checker"], "pass", "{judgement}");
    assert!(lacking.iter().any(Vec::is_empty), "what the runs of {name} have not shown, a run each: {lacking:#?}");
    format!("{} (its times prove nothing on this host: {})", row_of(rig, name, &report), reasons.join("; "))
}

fn row_of(rig: &Rig, name: &str, report: &Value) -> String {
    let figures = &report["judgement"]["figures"];
    assert_eq!(figures["lost_acknowledged_writes"], 0, "{name}");
    assert_eq!(report["record"]["environment"]["cluster"], rig.cluster);
    in_figures(name, figures)
}

/// One drill, and again where its run proved nothing by the host's fault. All of its runs: the last one counts.
fn repeated(rig: &Rig, name: &str, gates: &[&str]) -> Vec<Ran> {
    let consoles = Consoles::of(rig);
    let mut crashes = consoles.crashes();
    let mut runs = vec![drill(rig, name, gates)];
    for _ in 0..BUSY {
        let (last, now) = (runs.last().expect("it ran"), consoles.crashes());
        if last.code == 0 {
            break;
        }
        let Some(why) = excuse(&report_of(last)["judgement"], now > crashes) else { break };
        step(&format!("{name}: {why}; once more"));
        crashes = now;
        runs.push(drill(rig, name, gates));
    }
    runs
}

/// What a run printed; one that ended before it began has no report.
fn report_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_default()
}

/// A run's line in a table.
pub fn in_figures(name: &str, figures: &Value) -> String {
    let ms = |value: Option<u64>| value.map_or("–".to_owned(), |us| format!("{} ms", us / 1000));
    let gap = &figures["longest_write_gap"];
    let length = gap["to"].as_u64().zip(gap["from"].as_u64()).map(|(to, from)| to - from);
    format!(
        "{name:24} gap {:>9}, new leader {:>9}, all back {:>9}, lost {}",
        ms(length),
        ms(figures["time_to_new_leader_us"].as_u64()),
        ms(figures["time_to_full_membership_us"].as_u64()),
        figures["lost_acknowledged_writes"]
    )
}

fn drill(rig: &Rig, name: &str, gates: &[&str]) -> Ran {
    healthy(rig);
    let gates = gates.iter().flat_map(|gate| ["--gate", gate]);
    rig.run(&["drill", "run", name, "--format", "json"].into_iter().chain(gates).collect::<Vec<_>>())
}

/// As `verify` sees it; a machine that has just come back may take a moment.
pub fn healthy(rig: &Rig) {
    eventually("verify is green", Duration::from_secs(300), || rig.not_passing().0 == 0);
}

fn leader_kill_five_times(rig: &Rig) {
    step("leader-kill, five times");
    healthy(rig);
    let ran = rig.run(&["drill", "run", "leader-kill", "--repeat", "5", "--seed", "7", "--format", "json"]);
    keep("leader-kill-vm.json", &ran.out);
    let series = ran.json();
    let runs = series["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 5);
    step(&format!("write gap, µs: {}", series["series"][0]["write_gap"]));
    for run in runs.iter().filter(|run| run["result"] != "pass") {
        let reasons = reasons(run);
        assert!(run["result"] == "invalid" && of_the_host(&reasons), "{run}");
        step(&format!("{reasons:?}: once more"));
        step(&drilled(rig, "leader-kill", &[]));
    }
    assert_eq!(ran.code, if series["series"][0]["passed"] == 5 { 0 } else { 4 });

    let name = series["runs"][4]["run"].as_str().expect("a name").to_owned();
    rig.run(&["drill", "report", &name]).exits(0).says("PASS").says("longest write gap");
    let page = rig.run(&["drill", "report", &name, "--html"]).exits(0).out;
    let html = std::fs::read_to_string(page.trim()).expect("the page");
    assert!(html.contains("<svg") && !html.contains("http://"), "one page that needs nothing else");
    keep("leader-kill-vm.html", &html);
    let other = series["runs"][0]["run"].as_str().expect("a name").to_owned();
    rig.run(&["drill", "report", "--compare", &other, &name]).exits(0).says("longest write gap");
    rig.run(&["drill", "report", "nothing"]).exits(2).says(&name);

    step("its JSON is what the schema says");
    let schema = rig.run(&["drill", "report", "--schema"]).exits(0).json();
    let report = rig.run(&["drill", "report", &name, "--format", "json"]).exits(0).json();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let wrong: Vec<String> = validator.iter_errors(&report).take(5).map(|error| error.to_string()).collect();
    assert_eq!(wrong, Vec::<String>::new());

    step("a gate that nobody meets makes it fail, and nothing else does");
    let gated = || rig.run(&["drill", "run", "leader-kill", "--gate", "write_gap=1 ms"]);
    let told = (0..=BUSY).map(|_| gated()).find(|ran| ran.code != 4).expect("a run that proves something");
    told.exits(3).says("FAIL");
}

/// As a user begins: a row of the catalogue as it is printed, under another name.
fn a_file_of_ones_own(rig: &Rig) {
    step("a drill out of a file");
    let listed = rig.run(&["drill", "list", "move-leader", "--format", "json"]).exits(0).out;
    let mut drills: Vec<Drill> = serde_json::from_str(&listed).expect("drills");
    let own = Drill { name: "my-handover".to_owned(), id: String::new(), ..drills.remove(0) };
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), toml::to_string(&own).expect("prints")).expect("written");
    step(&drilled(rig, file.path().to_str().expect("a path"), &[]));
    rig.run(&["drill", "report", "my-handover"]).exits(0).says("PASS").says("my-handover");
}

fn refusals_inject_nothing(rig: &Rig) {
    step("refusals");
    rig.run(&["drill", "run", "leader-kil"]).exits(2).says("leader-kill");
    rig.run(&["drill", "run", "./nowhere.toml"]).exits(2).says("nowhere.toml");
    rig.run(&["drill", "run", "leader-kill", "--target", "worker"]).exits(2).says("--target worker");
    rig.on("controller-1", "systemctl stop etcd");
    rig.run(&["drill", "run", "leader-kill"]).exits(1).says("nothing was injected").says("drill heal");
    rig.run(&["drill", "heal"]).exits(0).says("a stopped etcd on controller-1");
    healthy(rig);
}

fn a_second_run_waits_outside(rig: &Rig) {
    step("while one drill runs, others are refused; Ctrl-C heals");
    let mut running = Dying::at(rig, "isolate-leader", "holding for", 1);
    rig.run(&["drill", "run", "leader-kill"]).exits(75).says("drill run isolate-leader");
    rig.run(&["drill", "heal"]).exits(75);
    assert_eq!(running.end("INT"), Some(130));
    rig.run(&["drill", "heal"]).exits(0).says("nothing to heal");
    assert_eq!(residue(rig), Vec::<String>::new());
}
