//! `make soak`: one cluster for an hour, broken, saved, taken back, frozen, cut off, stopped and started in an order that a seed draws.
//! Under a writer wherever the API is meant to stay up or to come back by itself: after each thing etcd must have all that was ever
//! acknowledged, `verify` must be green, nothing of a fault may be left, and nothing may have grown beyond what it is made for.
//! Totals and sizes are kept in `target/bench/soak.json`.

use crate::drills::{drilled, healthy};
use crate::dying::{CONTROLLERS, residue};
use crate::rig::{Remove, Rig, command, keep, libvirt_names, mode, slow, step, virsh};
use crate::writer::{Acknowledged, lost, there, up_to_a_moment, written_every};
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
/// Between two writes: a put is a start of the program, and without a rest a busy host would be what drills measure.
const REST: Duration = Duration::from_millis(200);
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

/// What was acknowledged before a snapshot was saved, and while it was: that may be in it, up to one moment.
struct Saved {
    before: Acknowledged,
    meanwhile: Acknowledged,
}

/// What etcd must have, now and in each snapshot.
#[derive(Default)]
struct Model {
    now: Acknowledged,
    saved: BTreeMap<String, Saved>,
    /// The number of the next write, which is never written twice.
    next: usize,
    saves: usize,
    /// Of all time, also what a restore has taken back since.
    acknowledged: usize,
    lost: usize,
}

impl Model {
    /// Writes while something is done; returns what was acknowledged, which is expected to be there from now on. What was tried and
    /// not acknowledged may be there or not, and is asked of nobody; its numbers are used up.
    fn write(&mut self, rig: &Rig, work: impl FnOnce()) -> Acknowledged {
        let ((), acknowledged) = written_every(rig, PREFIX, self.next, REST, work);
        let last = acknowledged.values().filter_map(|value| value.parse::<usize>().ok()).max();
        // A try takes a rest at least: after the last one that came through there were fewer than this within half an hour.
        self.next = last.unwrap_or(self.next) + 10_000;
        self.acknowledged += acknowledged.len();
        self.now.extend(acknowledged.clone());
        acknowledged
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
    let first = Sizes::now(&rig);

    let (mut model, mut done, begun) = (Model::default(), BTreeMap::<String, u32>::new(), Instant::now());
    while begun.elapsed() < time {
        let act = *ACTS.choose(&mut draw).expect("some");
        let what = once(&rig, act, &mut model, &mut draw);
        *done.entry(what.clone()).or_default() += 1;
        healthy(&rig);
        let gone = lost(&model.now, &there(&rig, PREFIX));
        model.lost += gone.len();
        let (last, acts) = (Sizes::now(&rig), done.values().sum());
        let report = json!({
            "seed": seed, "seconds": begun.elapsed().as_secs(), "done": done, "acknowledged": model.acknowledged,
            "there": model.now.len() - gone.len(), "lost": model.lost, "first": first.json(), "last": last.json(), "mode": mode(),
        });
        // What ran is worth keeping also when this one, or the next, fails.
        keep("soak.json", &serde_json::to_string_pretty(&report).expect("JSON"));
        assert_eq!(gone, Vec::<String>::new(), "acknowledged, and lost after {what}");
        assert_eq!(residue(&rig), Vec::<String>::new(), "left by {what}");
        assert_eq!(last.beyond(&first, acts, &bounds(&rig)), Vec::<String>::new(), "after {what}");
        step(&format!("{:5.0} s  {what}: well, {} writes are there", begun.elapsed().as_secs_f64(), model.now.len()));
    }
    rig.run(&["down", "--yes"]).exits(0);
    assert_eq!(libvirt_names(), before, "leaked");
    assert!(!rig.dir().exists());
    step(&format!("{done:?}, {} writes acknowledged, {} lost; at first {}", model.acknowledged, model.lost, first.json()));
}

/// One thing, done and judged by itself; its name for the totals.
fn once(rig: &Rig, act: Act, model: &mut Model, draw: &mut StdRng) -> String {
    model.write(rig, || std::thread::sleep(QUIET));
    match act {
        Act::Drill => {
            let name = DRILLS.choose(draw).expect("some");
            // Times are judged where nothing else is done; what must not happen at all is judged everywhere.
            model.write(rig, || step(&drilled(rig, name, &["full_membership=180 s"])));
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
            let before = model.now.clone();
            let meanwhile = model.write(rig, || {
                rig.run(&["snapshot", "save", &name]).exits(0);
            });
            model.saved.insert(name, Saved { before, meanwhile });
            "snapshot save".to_owned()
        }
        Act::Restore => {
            let names: Vec<&String> = model.saved.keys().collect();
            let Some(name) = names.choose(draw).map(|name| (*name).clone()) else {
                return "nothing to restore".to_owned();
            };
            // Without the writer: what is acknowledged before the machines go back is taken back with them, and that is as it should be.
            rig.run(&["snapshot", "restore", &name]).exits(0);
            let (now, Saved { before, meanwhile }) = (there(rig, PREFIX), &model.saved[&name]);
            let within =
                up_to_a_moment(meanwhile, &now).unwrap_or_else(|strange| panic!("{name} is of two moments: {strange:?}"));
            let mut then = before.clone();
            then.extend(within);
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
            let asleep = Duration::from_secs(draw.random_range(1..20));
            // What was on its way when all stood still may be there afterwards, or not.
            model.write(rig, || {
                rig.run(&["pause"]).exits(0);
                std::thread::sleep(asleep);
                rig.run(&["resume"]).exits(0);
            });
            "pause and resume".to_owned()
        }
        Act::PowerCut => {
            model.write(rig, || {
                std::thread::sleep(QUIET);
                for domain in CONTROLLERS.iter().chain(&["worker-0"]).map(|node| format!("{}-{node}", rig.cluster)) {
                    virsh(&["destroy", &domain]).exits(0);
                }
                rig.run(&["start"]).exits(0);
            });
            "power cut and start".to_owned()
        }
    }
}

/// What might grow: of QEMU and of libvirt's daemon, and what the cluster's directory takes.
struct Sizes {
    machines_mib: u64,
    daemon_mib: u64,
    /// Open files of both.
    files: u64,
    state_kib: u64,
}

/// Most that sizes may be, or may have grown by.
struct Bounds {
    /// A guest touches its memory bit by bit, and all of it is its own to take. On top comes what QEMU needs for itself, for which
    /// a quarter of a GiB a machine is plenty, and emulated the code that it has translated, up to 1 GiB.
    machines_mib: u64,
    /// Its heap settles once each of its twenty workers has had an arena of a few MiB. What a leak of an hour adds to that is
    /// buffers, which are megabytes, or thousands of definitions, which are a few KiB of text.
    daemon_mib: u64,
    /// Each machine has as many as before. Who leaves one open leaves one with every act, and an hour has more acts than this; some
    /// are just being closed at the moment of the look.
    files: u64,
    /// A drill keeps a record of 10 to 220 KiB, and every act some lines of the journal, of 300 bytes each. A copy of the store that
    /// is left every time, or a log that nobody cuts, is larger.
    state_kib_an_act: u64,
}

fn bounds(rig: &Rig) -> Bounds {
    let nodes = rig.plan()["nodes"].as_array().expect("nodes").clone();
    let memory: u64 = nodes.iter().map(|node| node["domain"]["memory_mib"].as_u64().expect("MiB")).sum();
    let own = if mode() == "tcg" { 256 + 1024 } else { 256 };
    Bounds { machines_mib: memory + own * nodes.len() as u64, daemon_mib: 128, files: 24, state_kib_an_act: 384 }
}

impl Sizes {
    fn now(rig: &Rig) -> Sizes {
        let (machines, daemon) = (processes("qemu-system-x86"), processes("libvirtd"));
        let mib = |all: &[Process]| all.iter().map(|one| one.rss_kib).sum::<u64>() >> 10;
        let files = machines.iter().chain(&daemon).map(|one| one.files).sum();
        let told = command("du", &["-sk", &rig.dir().display().to_string()]).exits(0).out;
        let state_kib = told.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("KiB");
        assert!(!machines.is_empty() && !daemon.is_empty(), "nothing is measured");
        Sizes { machines_mib: mib(&machines), daemon_mib: mib(&daemon), files, state_kib }
    }

    fn json(&self) -> Value {
        let Sizes { machines_mib, daemon_mib, files, state_kib } = self;
        json!({ "machines_mib": machines_mib, "daemon_mib": daemon_mib, "files": files, "state_kib": state_kib })
    }

    /// What is larger than it may be after so many acts, in words.
    fn beyond(&self, first: &Sizes, acts: u32, most: &Bounds) -> Vec<String> {
        let state_kib = first.state_kib + most.state_kib_an_act * u64::from(acts);
        let all = [
            ("QEMU's memory, MiB", self.machines_mib, most.machines_mib),
            ("the daemon's memory, MiB", self.daemon_mib, first.daemon_mib + most.daemon_mib),
            ("open files", self.files, first.files + most.files),
            ("the cluster's directory, KiB", self.state_kib, state_kib),
        ];
        let beyond = all.into_iter().filter(|(_, is, most)| is > most);
        beyond.map(|(what, is, most)| format!("{what}: {is}, at most {most} were expected")).collect()
    }
}

struct Process {
    rss_kib: u64,
    files: u64,
}

/// Processes of that name in our network namespace, which is the suite's: machines of others on this computer are in another.
fn processes(name: &str) -> Vec<Process> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = namespace("self");
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of = |pid: String| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        if read("comm")?.trim() != name || namespace(&pid) != own {
            return None;
        }
        let rss = read("status")?.lines().find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned))?;
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Process { rss_kib: rss.split_whitespace().next()?.parse().ok()?, files })
    };
    pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter_map(of).collect()
}

#[test]
fn what_grows_with_every_act_is_told_from_what_does_not() {
    let most = Bounds { machines_mib: 5000, daemon_mib: 128, files: 24, state_kib_an_act: 384 };
    let of = |machines_mib, daemon_mib, files, state_kib| Sizes { machines_mib, daemon_mib, files, state_kib };
    let first = of(2000, 40, 200, 500);
    assert_eq!(of(4900, 90, 210, 500 + 100 * 200).beyond(&first, 100, &most), Vec::<String>::new());
    assert_eq!(of(5001, 169, 225, 500 + 100 * 385).beyond(&first, 100, &most).len(), 4);
}
