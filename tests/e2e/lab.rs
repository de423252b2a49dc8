//! A lab that lives: power cut and back, saved and rewound, frozen and woken, stopped and started; nothing acknowledged is lost.

use crate::drills::healthy;
use crate::labs::{looked_at_live, solved};
use crate::rig::{Remove, Rig, command, eventually, libvirt_names, slow, step, virsh};
use crate::writer::{all_kept, written_while};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NODES: [&str; 3] = ["controller-0", "controller-1", "controller-2"];

#[test]
fn a_lab_is_cut_off_rewound_frozen_and_always_comes_back() {
    let before = libvirt_names();
    let rig = Rig::native("lab");
    let _guard = Remove(&rig);
    let up = rig.up_with_golden(&["--etcd", "3", "--workers", "0", "--format", "json"]).exits(0);
    let summary: Value = serde_json::from_str(up.out.lines().last().expect("a summary")).expect("JSON");
    let kept = Duration::from_millis(summary["golden"]["kept_ms"].as_u64().expect("a golden snapshot was kept"));
    let cold = up.took.saturating_sub(kept);
    step(&format!("up took {:.1} s, and {:.1} s for a golden snapshot", cold.as_secs_f64(), kept.as_secs_f64()));

    let slow = slow(&up, Duration::from_secs(35) + kept / 2);

    down_to_golden_and_back(&rig, cold);
    saved_and_rewound(&rig);
    if slow {
        step("six machines at once and three labs are left to make e2e-full");
    } else {
        forked_beside(&rig);
    }
    etcd_alone(&rig);
    a_save_that_was_killed_leaves_no_half(&rig);
    frozen_for_a_minute(&rig);
    looked_at_live(&rig);
    let labs = ["lost-quorum", "scheduler-kubeconfig", "partitioned-leader", "corrupt-member"];
    for name in &labs[..if slow { 1 } else { labs.len() }] {
        step(&solved(&rig, name));
    }
    power_cut_everywhere(&rig);
    stopped_and_started(&rig);

    step("down leaves nothing, snapshots or not");
    rig.run(&["down", "--yes"]).exits(0);
    assert_eq!(libvirt_names(), before);
    assert!(!rig.dir().exists());
}

fn get(rig: &Rig, key: &str) -> String {
    rig.run(&["etcdctl", "get", key, "--print-value-only"]).exits(0).out.trim().to_owned()
}

fn put(rig: &Rig, key: &str, value: &str) {
    rig.run(&["etcdctl", "put", key, value]).exits(0);
}

/// `down --keep-golden` and `up`: the cluster as the first `up` left it, and how much faster that is than making it.
fn down_to_golden_and_back(rig: &Rig, cold: Duration) {
    put(rig, "lab", "given up");
    rig.run(&["snapshot", "save", "later"]).exits(0);
    rig.run(&["down", "--keep-golden"]).exits(2).says("with the snapshot later?");
    rig.run(&["down", "--yes", "--keep-golden"]).exits(0).says("with the snapshot later").says("its golden snapshot is kept");
    assert!(!virsh(&["list", "--name"]).exits(0).out.contains("lab-"), "nothing runs");
    assert!(!virsh(&["net-list", "--all", "--name"]).exits(0).out.contains("ktcw-lab"), "no network is left");
    for verb in [&["start"][..], &["node", "add", "--yes"]] {
        rig.run(verb).exits(1).says("only its golden snapshot is kept");
    }
    rig.run(&["status"]).exits(0).says("ktcw-vm up -c lab lets it run");
    let giant = ["up", "--etcd", "7", "--workers", "0", "--controller-mem", "65536", "--yes"];
    rig.run(&giant).exits(69).says("its golden snapshot as it was");
    rig.run(&["up", "--etcd", "1", "--workers", "0"]).exits(2).says("--yes answers yes");
    let up = rig.up_with_golden(&["--etcd", "3", "--workers", "0"]).exits(0).says("back from its golden snapshot");
    let ratio = cold.as_secs_f64() / up.took.as_secs_f64();
    step(&format!("back from memory and verified in {:.1} s: {ratio:.1} times faster", up.took.as_secs_f64()));
    // What took its time, when it was not fast: a look of verify that was not green yet names its checks.
    [&up.out, &up.err].into_iter().flat_map(|text| text.lines()).filter(|line| line.contains("not yet")).for_each(step);
    assert_eq!(get(rig, "lab"), "", "written after the golden snapshot");
    rig.run(&["snapshot", "list"]).exits(0).says("golden (current)");
    let listed = rig.run(&["snapshot", "list", "--format", "json"]).exits(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "all others are gone: {listed}");
    // A control loop that found its lease gone when the clock was put right starts anew a little later: rightly, and `up` waits.
    let said = || {
        let ran = rig.up_with_golden(&["--etcd", "3", "--workers", "0"]).exits(0);
        format!("{}{}", ran.out, ran.err)
    };
    assert!((0..3).any(|_| said().contains("nothing to do")), "something is left to do every time");
}

/// A second cluster from the snapshot: the same addresses, no packet between the two, both well at once.
fn forked_beside(rig: &Rig) {
    step("forked: a second cluster beside the first");
    let fork = Rig::native("lab2");
    let _guard = Remove(&fork);
    let made = rig.run(&["snapshot", "fork", "one", "--as", "lab2"]).exits(0);
    step(&format!("forked, started and verified in {:.1} s", made.took.as_secs_f64()));
    assert_eq!(get(&fork, "lab"), "before", "as the snapshot has it");
    put(&fork, "lab", "of the fork");
    put(rig, "lab", "of the first");
    assert_eq!((get(rig, "lab"), get(&fork, "lab")), ("of the first".into(), "of the fork".into()));
    let ids = |rig: &Rig| NODES.map(|node| rig.on(node, "cat /proc/sys/kernel/random/boot_id"));
    let (first, second) = (ids(rig), ids(&fork));
    assert!(first.iter().all(|id| !second.contains(id)), "six machines: {first:?} {second:?}");
    let both = std::thread::scope(|scope| {
        let well =
            |rig| scope.spawn(move || eventually("verify is green", Duration::from_secs(120), || Rig::not_passing(rig).0 == 0));
        [well(rig), well(&fork)].map(|thread| thread.join().expect("it becomes well"))
    });
    step(&format!("both verify green, after {:.1} and {:.1} s", both[0].as_secs_f64(), both[1].as_secs_f64()));
    let xml = virsh(&["net-dumpxml", "ktcw-lab2"]).exits(0).out;
    assert!(!xml.contains("<ip ") && !xml.contains("<forward"), "the host has no address on it: {xml}");
    rig.run(&["snapshot", "fork", "one", "--as", "lab2"]).exits(2).says("there is a cluster lab2 already");
    rig.run(&["snapshot", "fork", "two", "--as", "lab3"]).exits(2).says("there is no snapshot two");
    fork.run(&["kubeconfig", "--merge"]).exits(1).says("is a fork");
    examined_each_for_itself(rig, &fork);
    fork.run(&["stop"]).exits(0);
    fork.run(&["start"]).exits(0);
    assert_eq!(get(&fork, "lab"), "of the fork");
    fork.run(&["down", "--yes"]).exits(0);
    assert!(!command("ip", &["netns", "list"]).exits(0).out.contains("ktcw-lab2"));
    assert_eq!(get(rig, "lab"), "of the first", "the first one is none the worse for it");
}

/// The first one's machines have the fork's addresses and keys, and are asked nothing when the fork is examined.
fn examined_each_for_itself(rig: &Rig, fork: &Rig) {
    fork.on("controller-1", "systemctl stop etcd");
    let sick = |rig: &Rig| {
        let ran = rig.run(&["doctor", "--running", "--format", "json"]);
        let lines = ran.json();
        let of_etcd = |line: &&Value| line["node"] == "controller-1" && line["state"] == "fail";
        (ran.code, lines.as_array().expect("lines").iter().filter(of_etcd).count())
    };
    let (code, failed) = sick(fork);
    assert!(code == 3 && failed > 0, "a member of the fork is down: {code}, {failed} lines");
    assert_eq!(sick(rig).1, 0, "none of the first one's is");
    fork.on("controller-1", "systemctl start etcd");
}

/// etcd's own way: the store comes back, also into members that have lost theirs.
fn etcd_alone(rig: &Rig) {
    step("etcd's store alone: saved, lost, restored");
    put(rig, "store", "kept");
    rig.run(&["snapshot", "save", "store", "--etcd-only", "-m", "by etcd"]).exits(0).says("revision");
    rig.run(&["snapshot", "list"]).exits(0).says("etcd only, revision").says("by etcd");
    rig.run(&["snapshot", "save", "store"]).exits(2).says("there is a snapshot store of etcd already");
    rig.run(&["snapshot", "fork", "store", "--as", "lab3"]).exits(2).says("is of etcd alone");
    put(rig, "store", "written after");
    // One member's disk is lost on top.
    rig.on("controller-1", "systemctl stop etcd && rm -rf /var/lib/etcd/data");
    let file = rig.dir().join("etcd-snapshots/store.db");
    let whole = std::fs::read(&file).expect("the store");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&file.metadata().expect("there")) & 0o777, 0o600);
    let mut broken = whole.clone();
    broken[700] ^= 1;
    std::fs::write(&file, broken).expect("written");
    rig.run(&["snapshot", "restore", "store"]).exits(1).says("its sum differs").says("everything as it was");
    std::fs::write(&file, whole).expect("put back");
    let restored = rig.run(&["snapshot", "restore", "store"]).exits(0);
    step(&format!("etcd restored and verified in {:.1} s", restored.took.as_secs_f64()));
    assert_eq!(get(rig, "store"), "kept");
    rig.run(&["snapshot", "delete", "store"]).exits(0);
    assert!(!file.exists());
    rig.run(&["snapshot", "restore", "one"]).exits(0);
}

fn saved_and_rewound(rig: &Rig) {
    step("what is written after a save is gone after its restore");
    put(rig, "lab", "before");
    let saved = rig.run(&["snapshot", "save", "one", "-m", "before the lab", "--format", "json"]).exits(0);
    let said = saved.json();
    step(&format!(
        "saved in {:.1} s: suspended at most {} µs apart, stood {} ms, {} MiB",
        saved.took.as_secs_f64(),
        said["snapshot"]["skew_at_most_us"],
        said["snapshot"]["stood_ms"],
        said["snapshot"]["bytes"].as_u64().expect("bytes") >> 20
    ));
    assert!(said["snapshot"]["skew_at_most_us"].as_u64().expect("a skew") > 0, "it was measured");
    assert_eq!(said["snapshot"]["members"].as_object().map(serde_json::Map::len), Some(3), "{said}");
    put(rig, "lab", "after");
    let restored = rig.run(&["snapshot", "restore", "one", "--format", "json"]).exits(0);
    let said = restored.json();
    step(&format!(
        "restored and verified in {:.1} s, machines back after {} ms",
        restored.took.as_secs_f64(),
        said["machines_back_ms"]
    ));
    step(&format!("members: {}", said["members"]));
    assert_eq!(get(rig, "lab"), "before");
    eventually("all is well after the restore", Duration::from_secs(120), || rig.not_passing().0 == 0);
    clocks_are_right(rig);

    step("and what cannot be is refused");
    rig.run(&["snapshot", "save", "one"]).exits(2).says("there is a snapshot one already");
    rig.run(&["snapshot", "restore", "two"]).exits(2).says("there is no snapshot two; there are golden, one");
    rig.run(&["snapshot", "delete", "two"]).exits(2).says("there is no snapshot two; there are golden, one");
    rig.on("controller-2", "systemctl stop kube-scheduler");
    rig.run(&["snapshot", "save", "two"]).exits(3).says("unit.kube-scheduler controller-2").says("--force");
    rig.on("controller-2", "systemctl start kube-scheduler");
    rig.run(&["snapshot", "list"]).exits(0).says("one (current)").says("before the lab").says("as up left it");
    let path = rig.dir().join("snapshots/one.json");
    let record = std::fs::read_to_string(&path).expect("the record");
    let older = record.replace("\"qemu_version\": \"", "\"qemu_version\": \"0.");
    // A file that carries a sum is taken as edited by hand only without it.
    let older = older.split_once(",\n  \"sum\": \"").map_or_else(|| older.clone(), |(body, _)| format!("{body}\n}}\n"));
    std::fs::write(&path, older).expect("written");
    rig.run(&["snapshot", "restore", "one"]).exits(69).says("QEMU was 0.");
    std::fs::write(&path, record).expect("put back");
    assert_eq!(get(rig, "lab"), "before");
}

/// The program dies while machines are being saved: they are found paused, go on, and the half is gone with the next save.
fn a_save_that_was_killed_leaves_no_half(rig: &Rig) {
    step("a save is killed while it saves");
    eventually("the scheduler counts as running again", Duration::from_secs(120), || rig.not_passing().0 == 0);
    let mut save = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
        .args(["snapshot", "save", "half", "-c", rig.cluster])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(save.stderr.take().expect("piped")).lines();
    let saving = lines.map_while(Result::ok).any(|line| line.contains("saving memory"));
    save.kill().expect("killed");
    save.wait().expect("ended");
    assert!(saving, "it came as far as saving");
    // What libvirt was told to do it does to its end.
    eventually("no machine is busy", Duration::from_secs(60), || {
        NODES.iter().all(|node| virsh(&["domjobinfo", &format!("lab-{node}")]).out.contains("None"))
    });
    rig.run(&["status"]).exits(0).says("machines: paused").says("ktcw-vm resume");
    rig.run(&["snapshot", "save", "more"]).exits(1).says("are paused").says("ktcw-vm resume");
    rig.run(&["snapshot", "list"]).exits(0).says("one (current)");
    rig.run(&["resume"]).exits(0).says("all machines running");
    for node in NODES {
        let kept = virsh(&["snapshot-list", "--name", &format!("lab-{node}")]).exits(0).out;
        assert_eq!(kept.split_whitespace().collect::<Vec<_>>(), ["ktcw.golden", "ktcw.one"], "{node}");
    }
    assert_eq!(get(rig, "lab"), "before");
}

/// Each node's clock against this computer's, to the nearest of the way there and back.
fn clocks_are_right(rig: &Rig) {
    for node in NODES {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let before = now();
        let there: f64 = rig.on(node, "date +%s.%N").parse().expect("a time");
        assert!(before - 1.0 < there && there < now() + 1.0, "{node}: {there} is not within 1 s of {before}");
    }
}

fn frozen_for_a_minute(rig: &Rig) {
    step("paused for a minute");
    rig.run(&["pause"]).exits(0).says("3 machines paused");
    let asleep = Instant::now();
    rig.run(&["status"]).exits(0).says("machines: paused");
    rig.run(&["list"]).exits(0).says("paused");
    rig.run(&["verify"]).exits(3).says("the machine is paused").says("ktcw-vm resume");
    eventually("a minute", Duration::from_secs(90), || asleep.elapsed() >= Duration::from_secs(60));
    let woken = rig.run(&["resume", "--format", "json"]).exits(0);
    let said = woken.json();
    step(&format!("resumed and verified in {:.1} s; clocks: {}", woken.took.as_secs_f64(), said["clocks"]));
    // Whether a clock stood still while its machine did depends on the hypervisor; that each was looked at does not.
    for clock in said["clocks"].as_array().expect("clocks") {
        let by = clock["by_ms"].as_i64().expect("milliseconds");
        assert!(by.abs() < 1000 || (55_000..90_000).contains(&by), "{clock}");
        assert!(clock["left_ms"].as_i64().is_some_and(|left| left.abs() < 1000), "{clock}");
    }
    assert_eq!(said["clocks"].as_array().map(Vec::len), Some(3), "{said}");
    clocks_are_right(rig);
    eventually("all is well after the minute", Duration::from_secs(120), || rig.not_passing().0 == 0);
}

/// Writes until the plug of every machine is pulled in the middle; every write that was acknowledged is there afterwards.
fn power_cut_everywhere(rig: &Rig) {
    step("every plug is pulled under a writer");
    let ((), acknowledged) = written_while(rig, "acked-", 0, || {
        std::thread::sleep(Duration::from_secs(4));
        for node in NODES {
            virsh(&["destroy", &format!("lab-{node}")]).exits(0);
        }
    });
    step("the host's network and pools are off too, as after its reboot");
    virsh(&["net-destroy", "ktcw-lab"]).exits(0);
    for pool in virsh(&["pool-list", "--name"]).exits(0).out.split_whitespace() {
        virsh(&["pool-destroy", pool]).exits(0);
    }
    let started = rig.run(&["start"]).exits(0);
    step(&format!("started and verified in {:.1} s", started.took.as_secs_f64()));
    all_kept(rig, "acked-", &acknowledged);
}

fn stopped_and_started(rig: &Rig) {
    step("stopped in order, one machine first");
    rig.run(&["stop", "--node", "controller-1"]).exits(0).says("controller-1  off in");
    rig.run(&["stop", "--node", "controller-2"]).exits(1).says("a quorum needs 2");
    rig.run(&["snapshot", "save", "two"]).exits(1).says("1 off");
    let stopped = rig.run(&["stop"]).exits(0).says("controller-1  was off").says("controller-0  off in");
    step(&format!("stopped in {:.1} s", stopped.took.as_secs_f64()));
    rig.run(&["stop"]).exits(0).says("controller-0  was off");
    rig.run(&["status"]).exits(0).says("machines: off").says("ktcw-vm start");
    let state = virsh(&["list", "--name"]).exits(0).out;
    assert!(!state.contains("lab-"), "{state}");
    step("a snapshot is restored from off");
    let restored = rig.run(&["snapshot", "restore", "one"]).exits(0);
    step(&format!("from off, restored and verified in {:.1} s", restored.took.as_secs_f64()));
    assert_eq!(get(rig, "lab"), "before");
    assert_eq!(rig.run(&["etcdctl", "get", "acked-", "--prefix"]).exits(0).out, "", "written after the snapshot");
    rig.run(&["snapshot", "delete", "one"]).exits(0);
    rig.run(&["snapshot", "delete", "golden"]).exits(0);
    rig.run(&["snapshot", "list"]).exits(0).says("no snapshots");
    let disk = command("find", &[&pool_directory(), "-name", "*.qcow2"]).exits(0).out;
    for file in disk.split_whitespace() {
        let kept = command("qemu-img", &["snapshot", "-l", "-U", file]).exits(0).out;
        assert!(!kept.contains("ktcw."), "{file}: {kept}");
    }
    healthy(rig);
}

fn pool_directory() -> String {
    let xml = virsh(&["pool-dumpxml", "ktcw-lab"]).exits(0).out;
    xml.split("<path>").nth(1).and_then(|rest| rest.split("</path>").next()).expect("a path").to_owned()
}
