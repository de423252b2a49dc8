//! `make e2e-full`: the whole catalogue, a crash in every kind of fault, and timers that heal when nobody does.
//! The tables are kept in `target/bench`.

use crate::crashes::{ALL, killed_and_healed, kinds_without_a_row};
use crate::drills::{drilled, healthy, in_figures};
use crate::dying::{CONTROLLERS, Dying, on, residue};
use crate::excuses::{crashed_in, crashes_during, excuse, only_late};
use crate::rig::{Remove, Rig, eventually, keep, libvirt_names, step, virsh};
use std::time::Duration;

/// Each leaves something that a timer in the guest takes away: a stopped and a paused unit, rules, a queue, a frozen disk, a
/// clock, a certificate.
const TIMED: [&str; 7] =
    ["leader-stop", "leader-pause", "isolate-leader", "slow-link", "stalled-disk", "clock-skew", "cert-expiry"];
/// What only this computer can undo: a suspended machine, one without power.
const WATCHED: [&str; 2] = ["leader-freeze", "leader-power-off"];
/// What `down` meets: a suspended machine, one without power, a frozen disk, rules.
const TAKEN_DOWN: [&str; 4] = ["leader-freeze", "leader-power-off", "stalled-disk", "isolate-leader"];

/// What `up` of 3 + 2 takes where machines run at native speed.
const NATIVELY: Duration = Duration::from_secs(60);

#[test]
fn every_drill_of_the_catalogue_passes() {
    let rig = Rig::native("catalogue");
    let _guard = Remove(&rig);
    let slow_host = rig.up(&["--etcd", "3", "--workers", "2"]).exits(0).took > NATIVELY * 3 / 2;
    healthy(&rig);
    let (ran, crashes) = crashes_during(&rig, || rig.run(&["drill", "run", "all", "--seed", "11", "--format", "json"]));
    keep("drill-run-all.json", &ran.out);
    let series = ran.json();
    let runs = series["runs"].as_array().expect("runs");
    let mut table = String::new();
    let (mut again, mut failed) = (Vec::new(), Vec::new());
    for (i, run) in runs.iter().enumerate() {
        let name = run["drill"].as_str().expect("a name");
        let row = format!(
            "{:8} {} {}",
            run["result"].as_str().unwrap_or("not here"),
            in_figures(name, &run["figures"]),
            run["reasons"]
        );
        step(&row);
        table.push_str(&format!("{row}\n"));
        if run["result"] == "pass" {
            continue;
        }
        // A crash excuses the run that it befell, and no other.
        match excuse(run, crashed_in(run, &runs[i + 1..], &crashes)) {
            Some(_) => again.push(name),
            None if slow_host && only_late(run) => again.push(name),
            None => failed.push(name),
        }
    }
    keep("drill-run-all.txt", &table);
    assert_eq!(failed, Vec::<&str>::new(), "{table}\n{}", ran.err);
    let catalogue = ktcw_vm::drill::catalogue::built_in().expect("the catalogue");
    assert_eq!(runs.len(), catalogue.len(), "all of them ran: {table}");
    again.iter().for_each(|name| step(&format!("once more, {}", drilled(&rig, name, &[]))));
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
    let first = std::env::var("KTCW_E2E_ROW").map_or(1, |row| row.parse::<usize>().expect("KTCW_E2E_ROW is a row's number"));
    step(&format!("rows {first} to {} (KTCW_E2E_ROW begins at another)", ALL.len()));
    ALL.iter().skip(first - 1).for_each(|row| killed_and_healed(&rig, *row));
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

/// The same where no guest can: the watch that the run has set over itself outlives it, and heals.
#[test]
fn nobody_heals_and_the_watch_does() {
    let rig = Rig::native("watched");
    let _guard = Remove(&rig);
    rig.up(&["--etcd", "3", "--workers", "0"]).exits(0);
    for name in WATCHED {
        healthy(&rig);
        Dying::at(&rig, name, "holding for", 1).end("KILL");
        let running = || virsh(&["list", "--state-running", "--name"]).exits(0).out.split_whitespace().count();
        assert_eq!(running(), 2, "{name} is in force");
        let took = eventually("all machines run again", Duration::from_secs(240), || running() == 3);
        step(&format!("{name}: healed by the watch after {:.0} s", took.as_secs_f64()));
        healthy(&rig);
        rig.run(&["drill", "heal"]).exits(0).says("nothing to heal");
        assert_eq!(residue(&rig), Vec::<String>::new(), "{name}");
    }
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
