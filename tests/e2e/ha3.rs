//! The main job: `up --etcd 3 --workers 2` on real machines, looked at from all sides, broken, and taken away.

use crate::rig::{NODES, Remove, Rig, artefacts, command, command_with, eventually, libvirt_names, mode, program, step, virsh};
use crate::{audit, refused};
use ktcw_vm::guest::quote;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[test]
fn three_controllers_and_two_workers() {
    let before = libvirt_names();
    let rig = Rig::native("ha3");
    let _guard = Remove(&rig);

    step("up --etcd 3 --workers 2");
    let (up, arguments) = audit::arguments_while(|| rig.up(&["--etcd", "3", "--workers", "2", "--timings"]));
    let up = up.exits(0).says("ktcw-vm");
    audit::no_key_was_an_argument(&rig, &arguments);
    step(&up.out);
    step(&format!("up took {:.1} s", up.took.as_secs_f64()));
    // Ten seconds are promised under KVM, on a slow host too.
    let patience = Duration::from_secs(if mode() == "tcg" { 120 } else { 10 });
    verify_is_green(&rig);
    what_runs_is_what_the_bill_says(&rig);
    a_second_up_changes_nothing(&rig);
    the_tools_work(&rig);
    a_console_is_a_way_in(&rig);
    the_readme_tells_the_truth(&rig);
    audit::secrets_are_where_they_belong(&rig);
    refused::whoever_has_no_certificate(&rig);
    a_stopped_unit_is_named(&rig);
    a_proxy_that_begins_anew_keeps_the_services(&rig);
    a_wrong_host_key_is_named(&rig);
    a_dead_apiserver_gives_the_address_away(&rig, patience);
    any_controller_may_lose_power(&rig, patience);
    a_removed_member_is_named(&rig);
    audit::nothing_that_was_written_tells_a_secret(&rig);

    step("down leaves nothing, killed in the middle and typed again");
    rig.killed_at(&["down", "--yes"], "removing machine ha3-controller-1");
    rig.run(&["down", "--yes"]).exits(0);
    assert_eq!(libvirt_names(), before);
    assert!(!rig.dir().exists());
    rig.run(&["down", "--yes"]).exits(0).says("nothing to do");
}

/// Services of all roles.
const UNITS: &str = "etcd kube-apiserver kube-controller-manager kube-scheduler keepalived containerd kubelet kube-proxy ssh";

fn verify_is_green(rig: &Rig) {
    let ran = rig.run(&["verify", "--format", "json"]).exits(0);
    step(&format!("verify took {:.1} s: {} checks", ran.took.as_secs_f64(), ran.json()["checks"].as_array().map_or(0, Vec::len)));
    rig.verifies();
    rig.run(&["verify"]).exits(0).says("controller-0…2");
}

/// Debian's own list on a node, and etcd's own word, against `image list --sbom`.
fn what_runs_is_what_the_bill_says(rig: &Rig) {
    let bill = program(&["image", "list", "--sbom"]).exits(0).json();
    let written: BTreeMap<String, String> = serde_json::from_value(bill["guest_packages"].clone()).expect("packages");
    let there = rig.on("worker-0", "dpkg-query -W -f '${Package} ${Version}\n'");
    let there: BTreeMap<String, String> =
        there.lines().filter_map(|line| line.split_once(' ')).map(|(name, version)| (name.into(), version.into())).collect();
    assert!(there.len() > 50, "{there:?}");
    assert_eq!(written, there, "the bill of materials, and what dpkg says on a node");
    assert!(bill["go_modules"]["etcd"]["go.etcd.io/raft/v3"].as_str().is_some_and(|version| version.starts_with('v')), "{bill}");
}

/// Boot ids, starts of units, serials and the term say whether anything was touched.
fn identity(rig: &Rig) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for node in NODES {
        all.insert(format!("{node} boot"), rig.on(node, "cat /proc/sys/kernel/random/boot_id"));
        // Of a unit that a node does not have nothing is said but its name.
        let starts = rig.on(node, &format!("systemctl show --property=Id,NRestarts,ExecMainStartTimestampMonotonic {UNITS}"));
        assert!(starts.contains("containerd.service"), "{node}: {starts}");
        all.insert(format!("{node} units"), starts);
    }
    let certs = rig.run(&["certs", "list", "--format", "json"]).exits(0).json();
    for row in certs.as_array().expect("rows") {
        all.insert(format!("{} serial", row["id"]), row["serial"].to_string());
    }
    all.insert("term".into(), leader(rig).1.to_string());
    all
}

/// (name of the leader, term)
fn leader(rig: &Rig) -> (String, u64) {
    let status = rig.run(&["status", "-o", "json"]).exits(0).json();
    let nodes = status["nodes"].as_array().expect("nodes").clone();
    let leaders: Vec<&Value> = nodes.iter().filter(|node| node["etcd"]["leader"] == true).collect();
    assert_eq!(leaders.len(), 1, "{status}");
    (leaders[0]["name"].as_str().expect("name").to_owned(), leaders[0]["etcd"]["term"].as_u64().expect("term"))
}

fn a_second_up_changes_nothing(rig: &Rig) {
    step("a second up changes nothing");
    let first = identity(rig);
    let again = rig.up(&["--etcd", "3", "--workers", "2"]).exits(0).says("nothing to do");
    step(&format!("second up took {:.1} s", again.took.as_secs_f64()));
    assert_eq!(identity(rig), first);
    step("another shape is refused, and nothing happens");
    rig.up(&["--etcd", "1", "--workers", "2"]).exits(2).says("controller-1 would be removed");
    rig.run(&["up", "--isolated", "--subnet", "10.99.9.0/24"]).exits(2).says("--isolated").says("--subnet");
    step("another libvirt has nothing of it, and is not asked to remove it");
    rig.run(&["down", "--yes", "--connect", "test:///default"]).exits(2).says("lives in the libvirt at");
    step("without flags it is what it was made as");
    rig.run(&["up", "--no-verify"]).exits(0).says("nothing to do");
    assert_eq!(identity(rig), first);
}

fn the_tools_work(rig: &Rig) {
    step("kubectl, etcdctl, logs, status, list, certs, kubeconfig, ssh, plan, proxy, cloud-init schema");
    let nodes = rig.run(&["kubectl", "get", "nodes", "-o", "json"]).exits(0).json();
    let names: Vec<&str> =
        nodes["items"].as_array().expect("items").iter().filter_map(|n| n["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["worker-0", "worker-1"]);
    let members = rig.run(&["etcdctl", "member", "list", "-w", "json"]).exits(0).json();
    assert_eq!(members["members"].as_array().map(Vec::len), Some(3));
    rig.run(&["etcdctl", "endpoint", "health"]).exits(0);

    let logs = rig.run(&["logs", "etcd", "-n", "20"]).exits(0).out;
    for node in &NODES[..3] {
        assert!(logs.contains(node), "{node} is missing in\n{logs}");
    }
    let mut sorted: Vec<&str> = logs.lines().map(|line| &line[..12]).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, logs.lines().map(|line| &line[..12]).collect::<Vec<_>>(), "merged by time");
    rig.run(&["logs", "worker-0", "kubelet", "-n", "5"]).exits(0).says("worker-0");
    rig.run(&["logs", "nothing"]).exits(2).says("kube-scheduler");
    rig.run(&["logs", "etcd", "-f", "--since", "nonsense"]).exits(1).says("controller-2: journalctl: ");

    let status = rig.run(&["status", "-o", "json"]).exits(0).json();
    assert!(status["vip_holder"].as_str().is_some_and(|holder| holder.starts_with("controller-")), "{status}");
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        assert!(status["leases"][lease].as_str().is_some_and(|holder| holder.starts_with("controller-")), "{status}");
    }
    rig.run(&["status"]).exits(0).says("leader, term");
    rig.run(&["list"]).exits(0).says("ha3");
    rig.run(&["certs", "check"]).exits(0).says("etcd-peer@controller-2: good").says("etcd-admin: good");
    rig.run(&["certs"]).exits(0).says("kube-apiserver@controller-0");
    rig.run(&["kubeconfig"]).exits(0).says("current-context");
    let mine = tempfile::tempdir().expect("a directory");
    let mine = mine.path().join("config");
    let merge = [("KUBECONFIG", mine.display().to_string())];
    let merged = command_with("ktcw-vm", &["kubeconfig", "-c", rig.cluster, "--merge"], &merge).exits(0);
    assert!(merged.out.contains("ktcw-ha3"), "{}", merged.out);
    assert_eq!(std::fs::metadata(&mine).expect("written").permissions().mode() & 0o777, 0o600);

    let mut follow = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
        .args(["logs", "-c", rig.cluster, "controller-0", "-f", "-n", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("logs starts");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    lines.next().expect("a line of what was").expect("text");
    rig.on("controller-0", "logger ktcw-is-followed");
    assert!(lines.take(500).any(|line| line.expect("text").contains("ktcw-is-followed")), "a line that came later");
    follow.kill().expect("end logs");
    follow.wait().expect("it ends");
    assert_eq!(rig.on("worker-1", "hostname"), "worker-1");
    rig.run(&["ssh", "controller-0", "--", "exit 7"]).exits(7);
    rig.run(&["ssh", "controller-9", "--", "true"]).exits(2).says("controller-0");
    rig.run(&["plan", "--show", "controller-0:/etc/containers/systemd/etcd.container"]).exits(0).says("--initial-cluster=");
    let planned = rig.run(&["plan", "--show", "worker-0:/etc/kubernetes/kubelet.yaml"]).exits(0).out;
    assert_eq!(rig.on("worker-0", "cat /etc/kubernetes/kubelet.yaml").trim(), planned.trim());
    for node in NODES {
        let schema = rig.on(node, "cloud-init schema --system 2>&1");
        assert!(schema.contains("Valid"), "{node}: {schema}");
    }

    let mut proxy = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
        .args(["proxy", "-c", rig.cluster])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("proxy starts");
    let mut said = String::new();
    BufReader::new(proxy.stdout.take().expect("piped")).read_line(&mut said).expect("a line");
    let ca = rig.dir().join("ca.pem").display().to_string();
    let answer = command("curl", &["--silent", "--show-error", "--cacert", &ca, "https://127.0.0.1:6443/"]);
    proxy.kill().expect("end the proxy");
    proxy.wait().expect("it ends");
    let answer = answer.exits(0).json();
    assert_eq!((&answer["code"], &answer["reason"]), (&403.into(), &"Forbidden".into()), "{said}");
}

/// The serial console, with no network between: Enter brings root's prompt, what is typed is done, Ctrl-] ends it.
fn a_console_is_a_way_in(rig: &Rig) {
    step("console");
    let mut console = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
        .args(["console", "-c", rig.cluster, "worker-0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("console starts");
    let mut typing = console.stdin.take().expect("piped");
    let mut shown = console.stdout.take().expect("piped");
    let said = Arc::new(Mutex::new(String::new()));
    let heard = said.clone();
    let reading = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = shown.read(&mut buffer) {
            heard.lock().expect("whole").push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
    let has = |what: &str| said.lock().expect("whole").contains(what);
    eventually("a prompt", Duration::from_secs(60), || {
        typing.write_all(b"\r").and_then(|()| typing.flush()).expect("typed");
        has("root@worker-0")
    });
    // The answer is not among the words of the question, which the console repeats.
    typing.write_all(b"echo $((6 * 7))-ktcw\r").and_then(|()| typing.flush()).expect("typed");
    eventually("an answer", Duration::from_secs(30), || has("42-ktcw"));
    typing.write_all(&[0x1d]).and_then(|()| typing.flush()).expect("typed");
    assert!(console.wait().expect("it ends").success());
    reading.join().expect("it reads to the end");
}

/// What is in the hyperkube image, one name a component, as in the guide's.
const LISTING: &str = "kube-apiserver\nkube-controller-manager\nkube-proxy\nkube-scheduler\nkubectl\nkubelet\n";

/// The README's tour, typed line by line into one shell: every line exits 0, and the request without a name is refused.
fn the_readme_tells_the_truth(rig: &Rig) {
    let readme = include_str!("../../README.md");
    let tour = readme.split("<!-- tour -->").nth(1).expect("README.md has a part between two <!-- tour --> marks");
    let commands: Vec<&str> = tour.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(commands.len() >= 15, "the tour is a tour: {commands:?}");
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_ktcw-vm")).parent().expect("a directory").display().to_string();
    let place = tempfile::tempdir().expect("a directory");
    let mut script = format!("set -em\nexport KTCW_CLUSTER={} PATH={bin}:$PATH\ncd {}\n", rig.cluster, place.path().display());
    for line in &commands {
        script.push_str(&format!("echo {}\n{line}\n", quote(&format!("### {line}"))));
    }
    let ran = command("timeout", &["300", "bash", "-c", &script]).exits(0);
    step(&format!("the README's tour: {} commands in {:.1} s", commands.len(), ran.took.as_secs_f64()));
    for part in [
        "| controller-2 |",
        "/registry/",
        "\"kind\":\"APIService\"",
        "\"code\": 403",
        "\"APIVersions\"",
        "--leader-elect",
        LISTING,
    ] {
        assert!(ran.out.contains(part), "{part} is not in\n{}", ran.out);
    }
    // The table of `endpoint status`: one row says that its member leads.
    let leads = |line: &&str| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).nth(8) == Some("true");
    assert_eq!(ran.out.lines().filter(|line| line.contains(":2379")).filter(leads).count(), 1, "{}", ran.out);
    std::fs::write(artefacts().join("tour.txt"), &ran.out).expect("kept");
}

fn a_stopped_unit_is_named(rig: &Rig) {
    step("a stopped unit makes its line of verify fail");
    rig.on("controller-1", "systemctl stop kube-scheduler");
    let (code, bad) = rig.not_passing();
    assert_eq!(code, 3);
    assert!(bad.contains(&"unit.kube-scheduler controller-1 fail".to_owned()), "{bad:?}");
    assert!(!bad.iter().any(|line| line.contains("etcd")), "{bad:?}");
    step("and up starts it again");
    rig.up(&["--etcd", "3", "--workers", "2"]).exits(0);
    rig.verifies();
}

/// It finds the rules of the one before it, whose elements it must know again; the second start is not the first one's.
fn a_proxy_that_begins_anew_keeps_the_services(rig: &Rig) {
    step("kube-proxy begins anew, twice");
    for _ in 0..2 {
        rig.on("worker-0", "systemctl restart kube-proxy");
        let written = "curl -s http://127.0.0.1:10249/metrics | grep -c '^kubeproxy_sync_proxy_rules_last_timestamp_seconds.* [1-9]' || true";
        eventually("rules are written", Duration::from_secs(60), || rig.on("worker-0", written) != "0");
        let rules = rig.on("worker-0", "nft list map ip kube-proxy service-ips");
        assert!(rules.matches("goto").count() >= 4, "{rules}");
        rig.verifies();
    }
}

fn a_wrong_host_key_is_named(rig: &Rig) {
    step("a wrong host key makes verify fail");
    let pinned = rig.dir().join("ssh/host-controller-1.pub");
    let right = std::fs::read(&pinned).expect("pinned key");
    let other = std::fs::read(rig.dir().join("ssh/host-controller-2.pub")).expect("another key");
    std::fs::write(&pinned, other).expect("swap");
    let (code, bad) = rig.not_passing();
    std::fs::write(&pinned, right).expect("put back");
    assert_eq!(code, 3);
    assert!(bad.iter().any(|line| line == "ssh.host-key controller-1 fail"), "{bad:?}");
    rig.verifies();
}

/// Asks for the API through the virtual address, as a client would, until it answers three times in a row on new connections:
/// one answer may come from the last breath of the dead. Asked until what breaks it, since `begin`, is `done`; the time at which it
/// was back for good is counted from `begin`, so that a slow end counts as well.
fn answers_again(rig: &Rig, begin: Instant, patience: Duration, done: impl Fn() -> bool) -> Duration {
    // systemd gives a unit so long to end.
    const STOPPING: Duration = Duration::from_secs(20);
    let ca = rig.dir().join("ca.pem").display().to_string();
    let url = format!("https://{}:6443/readyz", rig.vip());
    let (mut row, mut back) = (0, Duration::ZERO);
    eventually("the API answers through the virtual address", patience + STOPPING, || {
        let done = done();
        let answer = command("curl", &["--silent", "--max-time", "1", "--cacert", &ca, &url]);
        row = if answer.out == "ok" { row + 1 } else { 0 };
        if row == 3 {
            back = begin.elapsed();
        }
        row >= 3 && done
    });
    assert!(back < patience, "the API answers after {back:?} only");
    back
}

fn vip_holder(rig: &Rig) -> String {
    let mut holder = None;
    eventually("somebody holds the address", Duration::from_secs(30), || {
        // Empty: nobody; null: not all have answered.
        let status = rig.run(&["status", "-o", "json"]).exits(0).json();
        holder = status["vip_holder"].as_str().filter(|holder| !holder.is_empty()).map(str::to_owned);
        holder.is_some()
    });
    holder.expect("eventually")
}

fn a_dead_apiserver_gives_the_address_away(rig: &Rig, patience: Duration) {
    step("the API server on the holder of the virtual address stops");
    let holder = vip_holder(rig);
    let begin = Instant::now();
    let outage = std::thread::scope(|scope| {
        let stop = scope.spawn(|| rig.on(&holder, "systemctl stop kube-apiserver"));
        answers_again(rig, begin, patience, || stop.is_finished())
    });
    let now = vip_holder(rig);
    step(&format!("the address went from {holder} to {now}, the API answers after {:.1} s", outage.as_secs_f64()));
    assert_ne!(now, holder);
    rig.up(&["--etcd", "3", "--workers", "2"]).exits(0);
}

/// Pulls each controller's plug in turn.
fn any_controller_may_lose_power(rig: &Rig, patience: Duration) {
    let mut outages = BTreeMap::new();
    for node in &NODES[..3] {
        let holder = vip_holder(rig);
        let begin = Instant::now();
        virsh(&["destroy", &format!("ha3-{node}")]).exits(0);
        let outage = answers_again(rig, begin, patience, || true);
        step(&format!("{node} off (the address was on {holder}): the API answers after {:.1} s", outage.as_secs_f64()));
        outages.insert((*node).to_owned(), outage.as_millis() as u64);
        let back = rig.up(&["--etcd", "3", "--workers", "2", "--timings"]).exits(0);
        step(back.out.split("machines\n  pass").next().unwrap_or_default());
        let cycles = rig.on(node, "journalctl -b -q --grep 'ordering cycle' || true");
        assert_eq!(cycles, "", "{node}: systemd drops jobs of such a boot");
        step(&format!("{node} is back and verified after {:.1} s", back.took.as_secs_f64()));
    }
    let json = serde_json::to_string_pretty(&outages).expect("JSON");
    std::fs::write(artefacts().join("power-off.json"), json).expect("kept");
}

fn a_removed_member_is_named(rig: &Rig) {
    step("a removed etcd member makes its line of verify fail");
    let members = rig.run(&["etcdctl", "member", "list", "-w", "simple"]).exits(0).out;
    let line = members.lines().find(|line| line.contains("controller-2")).expect("controller-2 is a member");
    let id = line.split(',').next().expect("an id");
    rig.run(&["etcdctl", "member", "remove", id]).exits(0);
    let (code, bad) = rig.not_passing();
    assert_eq!(code, 3);
    assert!(bad.contains(&"etcd.members - fail".to_owned()), "{bad:?}");
}
