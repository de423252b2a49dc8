//! `make e2e-full`: the whole catalogue, a crash in every kind of fault, timers that heal when nobody does, and drills under TCG.
//! One 3 + 2 cluster serves what runs natively; the emulated one has three controllers.
//! The tables are kept in `target/bench`.

use crate::crashes::{ALL, killed_and_healed, kinds_without_a_row};
use crate::drills::{drilled, healthy, in_figures, of_the_host};
use crate::dying::{CONTROLLERS, Dying, on, residue};
use crate::rig::{Remove, Rig, eventually, keep, libvirt_names, step};
use serde_json::Value;
use std::time::Duration;

/// Each leaves something that a timer in the guest takes away: a stopped and a paused unit, rules, a queue, a frozen disk, a
/// clock, a certificate.
const TIMED: [&str; 7] =
    ["leader-stop", "leader-pause", "isolate-leader", "slow-link", "stalled-disk", "clock-skew", "cert-expiry"];
/// What `down` meets: a suspended machine, one without power, a frozen disk, rules.
const TAKEN_DOWN: [&str; 4] = ["leader-freeze", "leader-power-off", "stalled-disk", "isolate-leader"];

#[test]
fn every_drill_of_the_catalogue_passes() {
    let rig = Rig::native("catalogue");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "3", "--workers", "2"]).exits(0);
    healthy(&rig);
    let ran = rig.run(&["drill", "run", "all", "--seed", "11", "--format", "json"]);
    keep("drill-run-all.json", &ran.out);
    let series = ran.json();
    let runs = series["runs"].as_array().expect("runs");
    let mut table = String::new();
    let mut again = Vec::new();
    for run in runs {
        let name = run["drill"].as_str().expect("a name");
        let row = format!(
            "{:8} {} {}",
            run["result"].as_str().unwrap_or("not here"),
            in_figures(name, &run["figures"]),
            run["reasons"]
        );
        step(&row);
        table.push_str(&format!("{row}\n"));
        match run["result"].as_str() {
            Some("pass") => (),
            Some("invalid") if of_the_host(run["reasons"].as_array().expect("reasons")) => again.push(name.to_owned()),
            _ => again.insert(0, format!("not {name}")),
        }
    }
    keep("drill-run-all.txt", &table);
    assert!(again.iter().all(|name| !name.starts_with("not ")), "{again:?}\n{table}\n{}", ran.err);
    let catalogue = ktcw_vm::drill::catalogue::built_in().expect("the catalogue");
    assert_eq!(runs.len(), catalogue.len(), "all of them ran: {table}");
    again.iter().for_each(|name| step(&format!("once more, {}", drilled(&rig, name))));
    rig.run(&["drill", "heal"]).exits(0).says("nothing to heal");
    assert_eq!(residue(&rig), Vec::<String>::new());
    rig.verifies();
}

#[test]
fn killed_in_the_middle_of_any_fault_nothing_is_left() {
    assert_eq!(kinds_without_a_row().into_iter().collect::<Vec<_>>(), Vec::<String>::new(), "every kind of fault is killed");
    let rig = Rig::native("crashes");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "3", "--workers", "2"]).exits(0);
    ALL.iter().for_each(|row| killed_and_healed(&rig, *row));
    rig.verifies();
}

/// The program is gone and nobody comes: the timer in the guest does what the heal would have done.
#[test]
fn nobody_heals_and_the_guests_do() {
    let rig = Rig::native("timers");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "3", "--workers", "0"]).exits(0);
    for name in TIMED {
        healthy(&rig);
        Dying::at(&rig, name, "holding for", 1).end("KILL");
        // The timers themselves, and what they keep, are there until they have gone off.
        let left = || CONTROLLERS.iter().flat_map(|node| on(&rig, node)).collect::<Vec<String>>();
        assert!(!left().is_empty(), "{name} is in force");
        let took = eventually("the guests have healed themselves", Duration::from_secs(240), || left().is_empty());
        step(&format!("{name}: healed by timers after {:.0} s", took.as_secs_f64()));
        rig.run(&["drill", "heal"]).exits(0).says(name);
    }
    healthy(&rig);
}

#[test]
fn down_takes_whatever_a_killed_drill_has_left() {
    let before = libvirt_names();
    for name in TAKEN_DOWN {
        let rig = Rig::native("downed");
        let _guard = Remove(&rig);
        rig.up(&["--etcd", "3", "--workers", "0"]).exits(0);
        healthy(&rig);
        Dying::at(&rig, name, "holding for", 1).end("KILL");
        let down = rig.run(&["down", "--yes"]).exits(0);
        assert!(!rig.dir().exists(), "{name}");
        assert_eq!(libvirt_names(), before, "{name}");
        step(&format!("{name} killed, then down: {:.0} s", down.took.as_secs_f64()));
    }
}

#[test]
fn elections_and_the_loss_of_a_majority_under_emulation() {
    let rig = Rig::emulated("drills-tcg");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "3", "--workers", "0"]).exits(0);
    let rows: Vec<String> = ["leader-kill", "quorum-loss"].iter().map(|name| drilled(&rig, name)).collect();
    rows.iter().for_each(|row| step(row));
    keep("drills-tcg.txt", &rows.join("\n"));
    let report: Value = rig.run(&["drill", "report", "last", "--format", "json"]).exits(0).json();
    assert_eq!(report["record"]["environment"]["acceleration"], "tcg");
}
