//! `kill -9` in the middle of every kind of fault, of its preparation and of its heal: rows of a table.
//! `drills` kills a few of them on its cluster, `full` all; after each, somebody heals, and nothing may be left anywhere.
//! What bare processes can show, `tests/drills_native` shows a hundred times faster.

use crate::drills::healthy;
use crate::dying::{Dying, residue};
use crate::rig::{Rig, step};
use ktcw_vm::drill::catalogue::built_in;
use std::collections::BTreeSet;
use std::time::Duration;

/// Who comes after the dead.
#[derive(Debug, Clone, Copy)]
pub enum Next {
    Heal,
    /// A heal that is killed as well, after so many seconds; then another.
    KilledHeal(u64),
    Up,
    /// The next drill heals first.
    Drill(&'static str),
}
use Next::{Drill, Heal, KilledHeal, Up};

/// A drill, the step at which it is killed (the so many-th of that name, so many seconds into it), and who comes next.
pub type Row = (&'static str, &'static str, usize, u64, Next);

/// In `make e2e`: rules, a suspended machine, processes, and a member half replaced.
pub const SOME: [Row; 4] = [
    ("isolate-leader", "holding for", 1, 0, Up),
    ("leader-freeze", "holding for", 1, 0, Heal),
    ("quorum-loss", "kill etcd", 2, 0, Drill("move-leader")),
    ("replace-member", "remove etcd's data", 1, 0, Heal),
];

pub const ALL: [Row; 30] = [
    ("leader-kill", "kill etcd", 1, 0, Heal),
    ("quorum-loss", "kill etcd", 2, 0, Drill("move-leader")),
    ("apiserver-kill", "holding for", 1, 0, Heal),
    ("lease-holder-kill", "holding for", 1, 0, Up),
    ("leader-stop", "stop etcd", 1, 0, Up),
    ("kubelet-stop", "holding for", 1, 0, Drill("move-leader")),
    ("leader-pause", "holding for", 1, 0, Drill("follower-kill")),
    ("leader-freeze", "holding for", 1, 0, Heal),
    ("leader-freeze", "resume", 1, 0, Up),
    ("leader-power-off", "holding for", 1, 0, Heal),
    ("blackout", "power off", 2, 0, Up),
    ("worker-power-off", "power on", 1, 0, Heal),
    ("move-leader", "move leadership", 1, 0, Heal),
    ("rolling-restart", "await one leader", 2, 0, Drill("move-leader")),
    ("leader-flap", "kill the leader", 1, 10, Heal),
    ("isolate-leader", "holding for", 1, 0, Up),
    ("split-all", "drop packets", 2, 0, KilledHeal(1)),
    ("slow-link", "holding for", 1, 0, Heal),
    ("stalled-disk", "holding for", 1, 0, Up),
    ("full-quota", "with a quota of", 2, 0, Heal),
    ("full-quota", "fill the store", 1, 2, Up),
    ("full-quota", "compact", 1, 0, KilledHeal(4)),
    ("replace-member", "remove member", 1, 1, Up),
    ("replace-member", "join again", 1, 2, KilledHeal(3)),
    ("disaster-restore", "save a snapshot", 1, 0, Heal),
    ("disaster-restore", "remove etcd's data", 2, 0, KilledHeal(6)),
    ("disaster-restore", "restore the snapshot", 1, 3, Heal),
    ("clock-skew", "holding for", 1, 0, Up),
    ("cert-expiry", "give", 1, 3, Heal),
    ("cert-expiry", "holding for", 1, 0, Drill("move-leader")),
];

/// Kinds of faults, as the catalogue names them, that no row has.
pub fn kinds_without_a_row() -> BTreeSet<String> {
    let drills = built_in().expect("the catalogue");
    let kind = |drill: &ktcw_vm::drill::catalogue::Drill| {
        serde_json::to_value(&drill.fault).expect("json")["type"].as_str().expect("a type").to_owned()
    };
    let killed: BTreeSet<String> = drills.iter().filter(|drill| ALL.iter().any(|row| row.0 == drill.name)).map(kind).collect();
    drills.iter().map(kind).filter(|kind| !killed.contains(kind)).collect()
}

pub fn killed_and_healed(rig: &Rig, row: Row) {
    let (name, at, nth, seconds, next) = row;
    healthy(rig);
    let began = std::time::Instant::now();
    Dying::at(rig, name, at, nth).kill_after(Duration::from_secs(seconds));
    if let KilledHeal(seconds) = next {
        Dying::healing(rig).kill_after(Duration::from_secs(seconds));
    }
    let ran = match next {
        Heal | KilledHeal(_) => rig.run(&["drill", "heal"]),
        Up => rig.up(&["--etcd", "3", "--workers", "2"]),
        Drill(name) => rig.run(&["drill", "run", name]),
    };
    // A drill on a busy host may prove nothing; that it healed is what counts here.
    let ran = if let (Drill(_), 4) = (next, ran.code) { ran } else { ran.exits(0) };
    // A heal that was killed may have been done already.
    if !matches!(next, KilledHeal(_)) {
        ran.says(name);
    }
    rig.run(&["drill", "heal"]).exits(0).says("nothing to heal");
    healthy(rig);
    assert_eq!(residue(rig), Vec::<String>::new(), "{row:?}");
    step(&format!(
        "{name} killed at {at:?} ×{nth} + {seconds} s, then {next:?}: nothing left, {:.0} s",
        began.elapsed().as_secs_f64()
    ));
}
