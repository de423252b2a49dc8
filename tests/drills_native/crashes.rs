//! `kill -9` in the middle of every fault that bare processes can have, and of its preparation and its heal.
//! Each row kills a real process at a step that it says, and lets another undo it: by healing, by healing twice, by drilling on.
//! Afterwards it looks for itself: rules, queues, timers, quotas, states, processes, the journal, and what had been written.

use crate::cluster::Cluster;
use crate::driver::{Driver, journal};
use crate::injector::Native;
use crate::runs::{drill, options};
use ktcw_vm::drill::admin::await_healthy;
use ktcw_vm::drill::catalogue::{Fault, Process, built_in};
use ktcw_vm::drill::injector::{FaultLog, Injector};
use ktcw_vm::drill::run::{RunError, run};
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Who comes after the dead.
#[derive(Debug, Clone, Copy)]
enum Next {
    Heal,
    /// A heal that is killed as well, after so many milliseconds; then another.
    KilledHeal(u64),
    /// The next drill heals first.
    Drill(&'static str),
}
use Next::{Drill, Heal, KilledHeal};

/// A drill, the step at which it is killed (the so many-th of that name, so many milliseconds into it), and who comes next.
type Row = (&'static str, &'static str, usize, u64, Next);

const PROCESSES: [Row; 10] = [
    ("leader-kill", "baseline", 1, 0, Heal),
    ("leader-kill", "kill etcd", 1, 0, Heal),
    ("leader-stop", "stop etcd", 1, 0, Drill("move-leader")),
    ("leader-pause", "holding for", 1, 0, Heal),
    ("leader-pause", "continue etcd", 1, 0, Heal),
    ("move-leader", "move leadership", 1, 0, Heal),
    ("quorum-loss", "kill etcd", 2, 0, KilledHeal(150)),
    ("rolling-restart", "await one leader", 1, 0, Drill("follower-kill")),
    ("rolling-restart", "stop etcd", 2, 2, Heal),
    ("leader-flap", "kill the leader", 1, 2500, Heal),
];

const NETWORKS: [Row; 7] = [
    ("isolate-leader", "holding for", 1, 0, Drill("move-leader")),
    ("split-all", "drop packets", 2, 0, Heal),
    ("split-all", "holding for", 1, 500, KilledHeal(60)),
    ("split-all", "remove packet rules", 2, 0, Heal),
    ("deaf-leader", "holding for", 1, 1000, Heal),
    ("mute-leader", "drop packets", 1, 0, Heal),
    ("bridge", "holding for", 1, 0, Drill("leader-kill")),
];

const DATA: [Row; 7] = [
    ("full-quota", "with a quota of", 2, 10, Heal),
    ("full-quota", "fill the store", 1, 300, KilledHeal(300)),
    ("full-quota", "compact", 1, 20, Drill("move-leader")),
    ("full-quota", "with its own quota", 2, 10, Heal),
    ("replace-member", "remove member", 1, 0, Heal),
    ("replace-member", "remove etcd's data", 1, 0, KilledHeal(400)),
    ("replace-member", "join again", 1, 400, Heal),
];

const LOSSES: [Row; 5] = [
    ("disaster-restore", "save a snapshot", 1, 0, Heal),
    ("disaster-restore", "kill etcd", 2, 0, Heal),
    ("disaster-restore", "remove etcd's data", 2, 0, KilledHeal(300)),
    ("disaster-restore", "restore the snapshot", 1, 40, Heal),
    ("disaster-restore", "start etcd", 2, 0, Drill("follower-kill")),
];

#[test]
fn of_processes_leave_nothing() {
    all(&PROCESSES);
}

#[test]
fn of_networks_leave_nothing() {
    all(&NETWORKS);
}

#[test]
fn of_data_leave_nothing() {
    all(&DATA);
}

#[test]
fn of_losses_leave_nothing() {
    all(&LOSSES);
}

/// The kinds of faults that only machines can have: `tests/e2e` kills those.
fn of_machines(fault: &Fault) -> bool {
    match fault {
        Fault::Kill { process } | Fault::Stop { process } | Fault::Pause { process } => *process != Process::Etcd,
        Fault::Freeze {}
        | Fault::PowerOff {}
        | Fault::Slow { .. }
        | Fault::StallDisk {}
        | Fault::SkewClock { .. }
        | Fault::ExpireCert { .. } => true,
        _ => false,
    }
}

#[test]
fn every_kind_of_fault_of_processes_has_a_row() {
    let kind = |fault: &Fault| serde_json::to_value(fault).expect("json")["type"].to_string();
    let killed: BTreeSet<&str> = [&PROCESSES[..], &NETWORKS, &DATA, &LOSSES].concat().iter().map(|row| row.0).collect();
    let drills = built_in().expect("the catalogue");
    let covered: BTreeSet<String> = drills.iter().filter(|d| killed.contains(d.name.as_str())).map(|d| kind(&d.fault)).collect();
    let missing: Vec<String> =
        drills.iter().map(|d| &d.fault).filter(|f| !of_machines(f)).map(kind).filter(|kind| !covered.contains(kind)).collect();
    assert!(missing.is_empty(), "no row kills {missing:?}");
}

fn all(rows: &[Row]) {
    let cluster = Arc::new(Cluster::start(3));
    for (i, row) in rows.iter().enumerate() {
        let (name, step, nth, delay, next) = *row;
        let healthy = || cluster.block_on(async { await_healthy(&cluster.site(), Duration::from_secs(30)).await });
        healthy().unwrap_or_else(|error| panic!("before {row:?}: {error}"));
        let witness = (format!("/witness/{i}"), name);
        etcdctl(&cluster, 0, &["put", &witness.0, witness.1]);

        let began = std::time::Instant::now();
        let mut dying = Driver::start(&cluster, name);
        dying.says(step, nth);
        dying.kill_after(Duration::from_millis(delay));
        assert_eq!(journal(&cluster).pending().expect("a list").len(), 1, "{row:?}: recorded before anything was done");
        refused(&cluster, name);
        match next {
            Heal => (),
            KilledHeal(after) => Driver::start(&cluster, "heal").kill_after(Duration::from_millis(after)),
            Drill(_) => (),
        }
        let steps = match next {
            Drill(name) => Driver::start(&cluster, name).ends_well(),
            Heal | KilledHeal(_) => Driver::start(&cluster, "heal").ends_well(),
        };
        let told = steps.iter().any(|step| step.starts_with("healed: ") && step.contains(name));
        // A heal that was killed may have got so far that nothing was open.
        assert!(told || matches!(next, KilledHeal(_)), "{row:?}: {steps:?}");

        healthy().unwrap_or_else(|error| panic!("after {row:?}: {error}"));
        let left = residue(&cluster);
        assert!(left.is_empty(), "{row:?} left {left:?}");
        for member in 0..cluster.members.len() {
            let found = etcdctl(&cluster, member, &["get", &witness.0, "--print-value-only"]);
            assert_eq!(found.trim(), witness.1, "{row:?}: what was written before");
        }
        eprintln!(
            "{name:17} killed at {step:?} ×{nth} + {delay} ms, then {next:?}: nothing left, {:.1} s",
            began.elapsed().as_secs_f64()
        );
    }
}

/// Another run is refused as long as the fault is open, by the name of the one that died.
fn refused(cluster: &Arc<Cluster>, dead: &str) {
    let (native, log) = (Native::new(cluster.clone()), journal(cluster));
    let refused = cluster.block_on(async { run(&drill("leader-kill"), &cluster.site(), &native, &log, &options(cluster)).await });
    match refused {
        Err(RunError::Active { drill, .. }) => assert_eq!(drill, dead),
        other => panic!("{dead} is open, and a run came to {:?}", other.map(|_| ())),
    }
}

/// Whatever a fault might have left, from looking at the kernel, at files and at the journal; nothing of it from the engine.
fn residue(cluster: &Arc<Cluster>) -> Vec<String> {
    let mut left = Vec::new();
    let mut is = |what: String, so: bool| left.extend(so.then_some(what));
    for (i, member) in cluster.members.iter().enumerate() {
        let node = &member.node;
        is(format!("rules on {node}"), !inside(&member.namespace, &["nft", "list", "tables"]).trim().is_empty());
        is(format!("a queue on {node}"), inside(&member.namespace, &["tc", "qdisc", "show", "dev", "eth0"]).contains("netem"));
        is(format!("a quota on {node}"), cluster.quota(i).is_some());
        let processes = cluster.processes(i);
        is(format!("{} processes of {node}", processes.len()), processes.len() != 1);
        is(format!("a process of {node} that stands still"), processes.iter().any(|process| process.state == 'T'));
    }
    is("timers".to_owned(), !cluster.dead_men().is_empty());
    let keys = etcdctl(cluster, 0, &["get", "/ktcw/", "--prefix", "--keys-only"]);
    is(format!("{} keys", keys.split_whitespace().count()), !keys.trim().is_empty());
    is("an open fault in the journal".to_owned(), !journal(cluster).pending().expect("a list").is_empty());
    let native = Native::new(cluster.clone());
    let engine = cluster.block_on(async { native.leftovers().await.expect("a look") });
    is(format!("what the engine sees: {engine:?}"), !engine.is_empty());
    left
}

/// What a command says in a namespace, where it must succeed.
fn inside(namespace: &str, words: &[&str]) -> String {
    let out = Command::new("ip").args(["netns", "exec", namespace]).args(words).output().expect("ip netns exec");
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn etcdctl(cluster: &Cluster, member: usize, words: &[&str]) -> String {
    let (tool, endpoint) = (cluster.tool("etcdctl").display().to_string(), &cluster.site().members[member].client_url);
    let mut line = vec![tool.as_str(), "--endpoints", endpoint, "--command-timeout=20s"];
    line.extend(words);
    inside(&cluster.hub, &line)
}
