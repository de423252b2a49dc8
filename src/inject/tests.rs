//! `Machines` over a fake host and fake guests: what is found is undone, in an order that works, and nothing is left.

use super::Machines;
use crate::drill::act::Act;
use crate::drill::bound::Timing;
use crate::drill::catalogue::Process;
use crate::drill::etcd::Site;
use crate::drill::heal::heal;
use crate::drill::injector::{Environment, Injector, MemoryLog};
use crate::guest::fake::{FakeGuests, Reply};
use crate::host::fake::FakeHost;
use crate::host::{DomainState, Host, Mark, VolumeFormat};
use crate::pki::{Keyring, Lifetimes};
use crate::plan::{Accel, CpuModel, Plan, Resolved, plan, samples};
use crate::spec::{NodeName, RawSpec, validate};
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn ha3() -> Plan {
    let spec = validate(&RawSpec { etcd: Some(3), workers: Some(2), ..RawSpec::default() }).expect("valid");
    let accel = Accel::Kvm { cpu: CpuModel::HostPassthrough };
    plan(&spec, &Resolved { subnet: "192.168.77.0/24".parse().expect("subnet"), accel, image: samples::image(), kernel: None })
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

/// All machines run; guests answer as `guests` says, and their clocks are right.
fn machines(guests: FakeGuests) -> (Machines, Arc<FakeHost>) {
    let plan = Arc::new(ha3());
    let mark = Mark { cluster: plan.cluster.clone(), instance: uuid::Uuid::from_u128(7), state_dir: "/state".to_owned() };
    let host = Arc::new(FakeHost::new());
    host.ensure_pools(&plan.storage, &mark).expect("pools");
    host.ensure_network(&plan.network, &mark).expect("network");
    let file = tempfile::NamedTempFile::new().expect("file");
    for image in std::iter::once(&plan.storage.kernel_volume).chain(&plan.storage.initrd_volume) {
        host.ensure_image_volume(&plan.storage, image, VolumeFormat::Raw, file.path(), &mut |_, _| ()).expect("uploaded");
    }
    for node in &plan.nodes {
        for disk in &node.domain.disks {
            host.ensure_blank(&plan.storage, &disk.volume, 1 << 20, &mark).expect("disk");
        }
        host.ensure_domain(&node.domain, &plan.storage, &node.name, &mark).expect("defined");
        host.set_state(&node.domain.name, DomainState::Running).expect("running");
    }
    let dir = tempfile::tempdir().expect("dir");
    let (keyring, _) =
        Keyring::ensure(&dir.path().join("pki"), &plan.certs, &plan.kubeconfigs, now(), Lifetimes::default()).expect("keys");
    let guests = guests.on("date +%s.%N", "1800000000.000000000\n");
    let machines = Machines {
        plan,
        host: host.clone(),
        guest: Arc::new(guests),
        mark,
        keyring: Arc::new(keyring),
        clock: now,
        logs_from: Mutex::default(),
        switched_on: Mutex::default(),
    };
    (machines, host)
}

fn site(plan: &Plan) -> Site {
    let environment = Environment {
        cluster: plan.cluster.to_string(),
        acceleration: "kvm".to_owned(),
        kubernetes: "v1".to_owned(),
        timing: Timing::native(),
        host_load: 0.0,
        host_cpus: 1,
    };
    Site { members: vec![], tls: None, environment }
}

/// A guest in which rules are until they are deleted, and a scheduler is down until it is started.
fn broken_guests(node: NodeName) -> (FakeGuests, Arc<Mutex<Vec<String>>>) {
    let left = Arc::new(Mutex::new(vec!["rules".to_owned(), "unit kube-scheduler inactive -".to_owned()]));
    let (looked, undone) = (left.clone(), left.clone());
    let guests = FakeGuests::new()
        .with("echo end", move |of, _| {
            let found = if *of == node { looked.lock().expect("left").join("\n") } else { String::new() };
            Reply::ok(format!("{found}\nend\n"))
        })
        .with("", move |_, cmd| {
            let script = String::from_utf8_lossy(cmd.stdin.as_deref().unwrap_or_default()).into_owned();
            let mut left = undone.lock().expect("left");
            left.retain(|what| match what.as_str() {
                "rules" => !script.contains("delete table inet ktcw_drill"),
                _ => !script.contains("systemctl start --no-block kube-scheduler.service"),
            });
            if cmd.line.starts_with("date") { Reply::ok("1800000000.000000000\n") } else { Reply::ok("") }
        });
    (guests, left)
}

#[tokio::test]
async fn whatever_is_left_is_undone_machines_first_and_twice_is_once() {
    let broken = NodeName::controller(1);
    let (guests, left) = broken_guests(broken.clone());
    let (machines, host) = machines(guests);
    let domain = |name: &NodeName| machines.plan.node(name).expect("planned").domain.name.clone();
    host.set_state(&domain(&NodeName::controller(0)), DomainState::Paused).expect("paused");
    let found: Vec<String> = machines.leftovers().await.expect("a look").iter().map(ToString::to_string).collect();
    let expected =
        ["a suspended machine on controller-0", "packet rules on controller-1", "a stopped kube-scheduler on controller-1"];
    assert_eq!(found, expected);

    let done = heal(&site(&machines.plan), &machines, &MemoryLog::default()).await.expect("healed");
    assert_eq!(done, expected);
    assert!(left.lock().expect("left").is_empty());
    let seen = host.observe().expect("seen");
    assert!(seen.domains.iter().all(|domain| domain.state == DomainState::Running));
    assert_eq!(heal(&site(&machines.plan), &machines, &MemoryLog::default()).await.expect("healed again"), Vec::<String>::new());
}

/// Whole seconds are what its hardware clock gives it, and the next look must not be the one that finds it.
#[tokio::test]
async fn a_machine_without_power_comes_back_with_its_clock_set() {
    let ahead_ms = Arc::new(Mutex::new(400));
    let (told, set) = (ahead_ms.clone(), ahead_ms.clone());
    let guests = FakeGuests::new()
        .on("echo end", "end\n")
        .with("clock_settime", move |_, _| {
            *set.lock().expect("clock") = 0;
            Reply::ok("")
        })
        .with("date +%s.%N", move |node, _| {
            let ahead = if node.to_string() == "worker-1" { *told.lock().expect("clock") } else { 400 };
            Reply::ok(format!("1800000000.{ahead:03}000000\n"))
        })
        .on("", "");
    let (machines, host) = machines(guests);
    let domain = &machines.plan.node(&NodeName::worker(1)).expect("planned").domain.name;
    host.set_state(domain, DomainState::ShutOff).expect("off");
    let done = heal(&site(&machines.plan), &machines, &MemoryLog::default()).await.expect("healed");
    // The others are 0.4 s ahead as well: that is no drill's doing.
    assert_eq!(done, ["a machine without power on worker-1", "a clock that is +0.4 s off on worker-1"]);
    assert_eq!(*ahead_ms.lock().expect("clock"), 0);
}

#[tokio::test]
async fn what_cannot_be_undone_is_an_error_that_names_it() {
    let stubborn = FakeGuests::new().on("echo end", "rules\nend\n").on("nft", "").on("systemctl", "");
    let (machines, _) = machines(stubborn);
    let error = heal(&site(&machines.plan), &machines, &MemoryLog::default()).await.expect_err("still there").to_string();
    assert!(error.contains("packet rules on controller-0 is still there"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_never_answers_is_named_and_nothing_is_taken_for_well() {
    let silent = NodeName::worker(1);
    let guests = FakeGuests::new().on_node(&silent, "", Reply::unreachable(&silent)).on("echo end", "end\n");
    let (machines, _) = machines(guests);
    let error = machines.leftovers().await.expect_err("cannot be told").to_string();
    assert!(error.contains("worker-1") && error.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn timers_are_set_in_the_nodes_that_are_hit_before_anything_else() {
    let armed = Arc::new(Mutex::new(Vec::new()));
    let noted = armed.clone();
    let guests = FakeGuests::new().with("systemd-run", move |node, _| {
        noted.lock().expect("armed").push(node.clone());
        Reply::ok("")
    });
    let (machines, _) = machines(guests);
    let undo = [
        Act::Uncut { node: NodeName::controller(2) },
        Act::Start { node: NodeName::worker(0), process: Process::Kubelet },
        Act::PowerOn { node: NodeName::controller(1) },
    ];
    machines.arm(&undo, Duration::from_secs(40)).await.expect("armed");
    assert_eq!(*armed.lock().expect("armed"), [NodeName::controller(2), NodeName::worker(0)]);
    // One that cannot be armed must keep the fault from being injected.
    let node = NodeName::controller(2);
    let (machines, _) = self::machines(FakeGuests::new().on("", Reply::unreachable(&node)));
    assert!(machines.arm(&undo, Duration::from_secs(40)).await.is_err());
}
