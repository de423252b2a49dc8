//! `make soak`: one cluster for an hour, broken, saved, taken back, frozen, cut off, stopped and started in an order that a seed draws.
//! After each thing etcd must have all that was ever acknowledged, `verify` must be green and nothing of a fault may be left.
//! Totals and what was leaked are kept in `target/bench/soak.json`.

use crate::drills::{drilled, healthy};
use crate::dying::{CONTROLLERS, residue};
use crate::rig::{Remove, Rig, command, keep, libvirt_names, slow, step, virsh};
use crate::writer::{Acknowledged, lost, there, written_while};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const DRILLS: [&str; 14] = [
    "leader-kill",
    "leader-stop",
    "leader-pause",
    "leader-freeze",
    "leader-power-off",
    "follower-kill",
    "quorum-loss",
    "isolate-leader",
    "isolate-follower",
    "bridge",
    "stalled-disk",
    "apiserver-kill",
    "kubelet-stop",
    "clock-skew",
];
const PREFIX: &str = "soak-";
/// Writes on a cluster that nothing is done to.
const QUIET: Duration = Duration::from_secs(2);
/// Snapshots that are kept at a time, besides the golden one.
const KEPT: usize = 3;

#[derive(Debug, Clone, Copy)]
enum Act {
    Drill,
    Save,
    Restore,
    StopAndStart,
    PauseAndResume,
    PowerCut,
}

/// Half of it drills, the rest in equal parts.
const ACTS: [Act; 10] = [
    Act::Drill,
    Act::Drill,
    Act::Drill,
    Act::Drill,
    Act::Drill,
    Act::Save,
    Act::Restore,
    Act::StopAndStart,
    Act::PauseAndResume,
    Act::PowerCut,
];

/// What etcd must have, now and in each snapshot.
#[derive(Default)]
struct Model {
    now: Acknowledged,
    saved: BTreeMap<String, Acknowledged>,
    /// The number of the next write, which is never written twice.
    next: usize,
    saves: usize,
}

impl Model {
    /// Takes over what was acknowledged; numbers that were tried and not acknowledged are used up as well.
    fn wrote(&mut self, acknowledged: Acknowledged) {
        let last = acknowledged.values().filter_map(|value| value.parse::<usize>().ok()).max();
        // Tries end after two seconds each: there were fewer of them than this after the last one that came through.
        self.next = last.unwrap_or(self.next) + 10_000;
        self.now.extend(acknowledged);
    }
}

#[test]
fn an_hour_of_everything_loses_and_leaks_nothing() {
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}: {text:?} is not a number")))
    };
    let time = Duration::from_secs(number("KTCW_SOAK_SECONDS").unwrap_or(3600));
    let seed = number("KTCW_SOAK_SEED").unwrap_or_else(|| jiff::Timestamp::now().as_second().unsigned_abs() % 1_000_000);
    step(&format!("for {} s, seed {seed} (KTCW_SOAK_SECONDS, KTCW_SOAK_SEED)", time.as_secs()));
    let mut draw = StdRng::seed_from_u64(seed);

    let before = libvirt_names();
    let rig = Rig::native("soak");
    let _guard = Remove(&rig);
    let up = rig.up(&["--etcd", "3", "--workers", "1"]).exits(0);
    slow(&up, Duration::from_secs(50));
    healthy(&rig);
    let sizes = || json!({ "machines_mib": resident_mib(), "state_kib": state_kib(&rig) });
    let first = sizes();

    let (mut model, mut done, begun) = (Model::default(), BTreeMap::<String, u32>::new(), Instant::now());
    while begun.elapsed() < time {
        let act = *ACTS.choose(&mut draw).expect("some");
        let what = once(&rig, act, &mut model, &mut draw);
        *done.entry(what.clone()).or_default() += 1;
        healthy(&rig);
        assert_eq!(lost(&model.now, &there(&rig, PREFIX)), Vec::<String>::new(), "acknowledged, and lost after {what}");
        assert_eq!(residue(&rig), Vec::<String>::new(), "left by {what}");
        step(&format!("{:5.0} s  {what}: well, {} writes are there", begun.elapsed().as_secs_f64(), model.now.len()));
        let report = json!({
            "seed": seed, "seconds": begun.elapsed().as_secs(), "done": done, "acknowledged": model.now.len(), "lost": 0,
            "first": first, "last": sizes(), "mode": crate::rig::mode(),
        });
        // What ran is worth keeping also when the next one fails.
        keep("soak.json", &serde_json::to_string_pretty(&report).expect("JSON"));
    }
    rig.run(&["down", "--yes"]).exits(0);
    assert_eq!(libvirt_names(), before, "leaked");
    assert!(!rig.dir().exists());
    step(&format!("{done:?}, {} writes kept; at first {first}", model.now.len()));
}

/// One thing, done and judged by itself; its name for the totals.
fn once(rig: &Rig, act: Act, model: &mut Model, draw: &mut StdRng) -> String {
    let write = |model: &mut Model, work: &dyn Fn()| {
        let ((), acknowledged) = written_while(rig, PREFIX, model.next, work);
        model.wrote(acknowledged);
    };
    write(model, &|| std::thread::sleep(QUIET));
    match act {
        Act::Drill => {
            let name = DRILLS.choose(draw).expect("some");
            // Times are judged where nothing else is done; what must not happen at all is judged everywhere.
            step(&drilled(rig, name, &["full_membership=180 s"]));
            format!("drill {name}")
        }
        Act::Save => {
            if model.saved.len() >= KEPT {
                let oldest = model.saved.keys().next().expect("some").clone();
                rig.run(&["snapshot", "delete", &oldest]).exits(0);
                model.saved.remove(&oldest);
            }
            model.saves += 1;
            let name = format!("s{:04}", model.saves);
            rig.run(&["snapshot", "save", &name]).exits(0);
            model.saved.insert(name, model.now.clone());
            "snapshot save".to_owned()
        }
        Act::Restore => {
            let names: Vec<&String> = model.saved.keys().collect();
            let Some(name) = names.choose(draw).map(|name| (*name).clone()) else {
                return "nothing to restore".to_owned();
            };
            rig.run(&["snapshot", "restore", &name]).exits(0);
            let then = model.saved[&name].clone();
            let now = there(rig, PREFIX);
            let later: Vec<&String> = model.now.keys().filter(|key| !then.contains_key(*key) && now.contains_key(*key)).collect();
            assert_eq!(later, Vec::<&String>::new(), "acknowledged after {name} was saved, and there after its restore");
            model.now = then;
            "snapshot restore".to_owned()
        }
        Act::StopAndStart => {
            rig.run(&["stop"]).exits(0);
            rig.run(&["start"]).exits(0);
            "stop and start".to_owned()
        }
        Act::PauseAndResume => {
            rig.run(&["pause"]).exits(0);
            std::thread::sleep(Duration::from_secs(draw.random_range(1..20)));
            rig.run(&["resume"]).exits(0);
            "pause and resume".to_owned()
        }
        Act::PowerCut => {
            write(model, &|| {
                std::thread::sleep(QUIET);
                for domain in CONTROLLERS.iter().chain(&["worker-0"]).map(|node| format!("{}-{node}", rig.cluster)) {
                    virsh(&["destroy", &domain]).exits(0);
                }
            });
            rig.run(&["start"]).exits(0);
            "power cut and start".to_owned()
        }
    }
}

/// Of all QEMU processes here: there are no others than this cluster's in the suite's namespace.
fn resident_mib() -> u64 {
    let told = command("ps", &["-C", "qemu-system-x86_64", "-o", "rss="]).out;
    told.split_whitespace().filter_map(|kib| kib.parse::<u64>().ok()).sum::<u64>() >> 10
}

fn state_kib(rig: &Rig) -> Value {
    let told = command("du", &["-sk", &rig.dir().display().to_string()]).exits(0).out;
    told.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).into()
}
