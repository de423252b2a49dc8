//! `Machines` over a fake host and fake guests: what is found is undone, in an order that works, and nothing is left.

mod killed;
mod overtaken;
mod restored;

use super::Machines;
use crate::drill::act::Act;
use crate::drill::act::Claim;
use crate::drill::bound::Timing;
use crate::drill::catalogue::Process;
use crate::drill::etcd::Site;
use crate::drill::heal::heal;
use crate::drill::injector::{Environment, FaultLog, Injector, MemoryLog, Pending};
use crate::guest::fake::{FakeGuests, Reply};
use crate::host::fake::FakeHost;
use crate::host::{DomainState, Host, Mark, VolumeFormat};
use crate::pki::{Keyring, Lifetimes};
use crate::plan::{Plan, samples};
use crate::spec::NodeName;
use jiff::Timestamp;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

fn ha3() -> Plan {
    samples::plan("ktcw", 3, 2, samples::kvm())
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
    static KEYS: OnceLock<Arc<Keyring>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let made = Keyring::ensure(&dir.path().join("pki"), &plan.certs, &plan.kubeconfigs, now(), Lifetimes::default());
        Arc::new(made.expect("keys").0)
    });
    let guests = guests.on("date +%s.%N", "1800000000.000000000\n");
    let machines = Machines {
        plan,
        host: host.clone(),
        guest: Arc::new(guests),
        mark,
        keyring: keys.clone(),
        clock: now,
        logs_from: Mutex::default(),
        switched_on: Mutex::default(),
        turns: Mutex::default(),
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
    Site { members: vec![], tls: None, quota_mib: plan.etcd_quota_mib(), environment }
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

/// QEMU pauses a machine whose disk the host cannot write. Nobody has suspended it, and who reads the report looks at the disk.
#[tokio::test]
async fn a_machine_paused_by_a_full_disk_is_not_called_a_suspended_one() {
    let guests = FakeGuests::new().on("echo end", "end\n").on("date +%s.%N", "1800000000.000000000\n").on("", "");
    let (machines, host) = machines(guests);
    let full = &machines.plan.node(&NodeName::controller(0)).expect("planned").domain.name;
    host.set_state(full, DomainState::PausedIoError).expect("paused");
    let found: Vec<String> = machines.leftovers().await.expect("a look").iter().map(ToString::to_string).collect();
    assert_eq!(found, ["a machine paused by a disk that the host could not write on controller-0"]);
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

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_cut_off_is_asked_for_again() {
    let cut = [Reply::ok(""), Reply::exit(143, "unit kubelet act", "Terminated")];
    let (machines, _) = machines(FakeGuests::new().then("echo end", cut).on("echo end", "end\n"));
    assert_eq!(machines.leftovers().await.expect("a look"), []);
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

/// Members have their ids from the token: one for all of a restore, and another for the next, be it of the same snapshot.
#[tokio::test]
async fn every_restore_makes_a_cluster_of_its_own() {
    let scripts = Arc::new(Mutex::new(Vec::new()));
    let noted = scripts.clone();
    let guests = FakeGuests::new().with("", move |node, cmd| {
        let script = String::from_utf8_lossy(cmd.stdin.as_deref().unwrap_or_default()).into_owned();
        noted.lock().expect("scripts").push((node.clone(), script));
        Reply::ok("")
    });
    let (machines, _) = machines(guests);
    let dir = tempfile::tempdir().expect("dir");
    let snapshot = dir.path().join("snapshot.db");
    std::fs::write(&snapshot, "a store").expect("written");
    let nodes: Vec<NodeName> = machines.plan.controllers().map(|node| node.name.clone()).collect();
    let act = Act::RestoreData { nodes: nodes.clone(), snapshot: snapshot.display().to_string() };
    let mut tokens = Vec::new();
    for _ in 0..2 {
        machines.perform(&act).await.expect("restored");
        let done = std::mem::take(&mut *scripts.lock().expect("scripts"));
        let wiped = done.iter().rposition(|(_, script)| script.contains("rm -rf /var/lib/etcd/data\n")).expect("wiped");
        let restored: Vec<usize> = (0..done.len()).filter(|i| done[*i].1.contains("snapshot restore")).collect();
        assert!(restored.iter().all(|i| *i > wiped), "all are empty before one is restored");
        assert_eq!(restored.iter().map(|i| done[*i].0.clone()).collect::<Vec<_>>(), nodes);
        // Whoever of an earlier restore is still at work on the node is ended before its data is taken away.
        let (_, wipe) = &done[wiped];
        let place = |what: &str| wipe.find(what).unwrap_or_else(|| panic!("{what:?} is not in {wipe}"));
        assert!(place("podman rm --force") < place("flock") && place("flock") < place("rm -rf /var/lib/etcd/data\n"));
        let token = |i: &usize| {
            let (_, rest) = done[*i].1.split_once("--initial-cluster-token=").expect("a token");
            rest.split_whitespace().next().expect("a word").to_owned()
        };
        let mut own: Vec<String> = restored.iter().map(token).collect();
        own.dedup();
        assert_eq!(own.len(), 1, "{own:?}");
        assert!(own[0].starts_with("ktcw-restored-"), "{own:?}");
        tokens.extend(own);
    }
    assert_ne!(tokens[0], tokens[1]);
}

/// Guests of machines that answer only while they are on; `rules` are in force on one of them until it loses power or they are
/// deleted.
fn guests_of(states: Arc<Mutex<Option<Arc<FakeHost>>>>, plan: Plan, rules: NodeName) -> FakeGuests {
    let cut = Arc::new(Mutex::new(true));
    FakeGuests::new().with("", move |node, cmd| {
        let host = states.lock().expect("host").clone().expect("set");
        let domain = &plan.node(node).expect("planned").domain.name;
        let on = host.observe().expect("seen").domains.iter().any(|d| d.name == *domain && d.state == DomainState::Running);
        let mut cut = cut.lock().expect("cut");
        if !on {
            if *node == rules {
                *cut = false;
            }
            return Reply::unreachable(node);
        }
        let script = String::from_utf8_lossy(cmd.stdin.as_deref().unwrap_or_default()).into_owned();
        if script.contains("echo end") {
            return Reply::ok(if *cut && *node == rules { "rules\nend\n" } else { "end\n" });
        }
        if script.contains("delete table inet ktcw_drill") && *node == rules {
            *cut = false;
        }
        if cmd.line.starts_with("date") { Reply::ok("1800000000.000000000\n") } else { Reply::ok("") }
    })
}

fn pending(run: &str, heal: Vec<Act>) -> Pending {
    Pending { run: run.to_owned(), drill: "isolate-leader".to_owned(), heal, tidy: vec![] }
}

/// Killed in the middle of a cut, and then the machines went off: what the journal has to undo needs SSH, and nobody answers
/// before what is seen has been undone.
#[tokio::test(start_paused = true)]
async fn a_journal_that_asks_for_ssh_is_healed_on_machines_that_went_off() {
    let hit = NodeName::controller(1);
    let (states, log) = (Arc::new(Mutex::new(None)), MemoryLog::default());
    let (machines, host) = machines(guests_of(states.clone(), ha3(), hit.clone()));
    *states.lock().expect("host") = Some(host.clone());
    for node in &machines.plan.nodes {
        host.set_state(&node.domain.name, DomainState::ShutOff).expect("off");
    }
    log.record(&pending("r", vec![Act::Uncut { node: hit.clone() }])).expect("recorded");
    let done = heal(&site(&machines.plan), &machines, &log).await.expect("healed");
    assert!(done.contains(&"a machine without power on controller-1".to_owned()), "{done:?}");
    assert_eq!(done.last().map(String::as_str), Some("isolate-leader (run r)"));
    assert!(log.pending().expect("a list").is_empty());
    assert_eq!(machines.leftovers().await.expect("a look"), []);
    // A machine that was suspended and is off by now cannot be resumed, and need not be.
    host.set_state(&machines.plan.node(&hit).expect("planned").domain.name, DomainState::ShutOff).expect("off");
    log.record(&pending("s", vec![Act::Resume { node: hit.clone() }, Act::SetClock { node: hit }])).expect("recorded");
    heal(&site(&machines.plan), &machines, &log).await.expect("healed");
    assert!(log.pending().expect("a list").is_empty());
}

/// One fault that cannot be undone stays in the log and is named; the other is healed all the same.
#[tokio::test(start_paused = true)]
async fn one_fault_that_stays_keeps_no_other_from_being_healed() {
    let (stubborn, easy) = (NodeName::controller(0), NodeName::controller(2));
    let there = Arc::new(Mutex::new(true));
    let (seen, undone) = (there.clone(), there.clone());
    let (bad, good, of) = (stubborn.clone(), easy.clone(), easy.clone());
    let guests = FakeGuests::new()
        .with("echo end", move |node, _| {
            let left = *node == bad || (*node == good && *seen.lock().expect("there"));
            Reply::ok(if left { "rules\nend\n" } else { "end\n" })
        })
        .with("delete table inet ktcw_drill", move |node, _| {
            if *node == of {
                *undone.lock().expect("there") = false;
            }
            if *node == NodeName::controller(0) { Reply::exit(1, "", "Operation not permitted") } else { Reply::ok("") }
        })
        .on("date +%s.%N", "1800000000.000000000\n")
        .on("", "");
    let (machines, _) = machines(guests);
    let log = MemoryLog::default();
    log.record(&pending("bad", vec![Act::Uncut { node: stubborn }])).expect("recorded");
    log.record(&pending("good", vec![Act::Uncut { node: easy.clone() }])).expect("recorded");
    let error = heal(&site(&machines.plan), &machines, &log).await.expect_err("one is left").to_string();
    assert!(error.contains("controller-0") && error.contains("not permitted"), "{error}");
    assert!(!*there.lock().expect("there"), "the rules on {easy} are gone");
    assert!(log.pending().expect("a list").iter().any(|fault| fault.run == "bad"));
}

/// Every claim that is asked of machines, on a machine that shows it and on one that does not.
#[tokio::test(start_paused = true)]
async fn claims_hold_when_they_are_seen_and_not_otherwise() {
    let node = || NodeName::controller(1);
    let process = Process::Etcd;
    let down = Claim::Down { node: node(), process };
    let paused = Claim::Paused { node: node(), process };
    let dropping = Claim::Dropping { node: node() };
    let slowed = Claim::Slowed { node: node(), delay_ms: 200, jitter_ms: 20, loss_percent: 0 };
    let stalled = Claim::DiskStalled { node: node() };
    let wiped = Claim::Wiped { node: node() };
    let rule = |n: u32| format!("tcp dport 2380 counter packets {n} bytes {n} drop\n");
    let netem = |delay: &str, n: u32| format!("qdisc netem 1: root limit 20000 delay {delay}\n Sent 9 bytes {n} pkt\n");
    let cases: Vec<(&Claim, String, bool)> = vec![
        (&down, "inactive\n".into(), true),
        (&down, "failed\n".into(), true),
        (&down, "active\n812 S etcd\n".into(), false),
        // The unit says so, and the process runs on.
        (&down, "inactive\n812 S etcd\n".into(), false),
        (&down, "activating\n".into(), false),
        (&paused, "812 T etcd\n".into(), true),
        (&paused, "812 S etcd\n".into(), false),
        (&paused, "812 T etcd\n813 R etcd\n".into(), false),
        (&paused, String::new(), false),
        (&dropping, rule(3), true),
        // Rules that have dropped nothing prove nothing.
        (&dropping, rule(0), false),
        (&dropping, String::new(), false),
        (&slowed, netem("200ms  20ms", 7), true),
        (&slowed, netem("2ms", 7), false),
        (&slowed, netem("200ms", 7), false),
        (&slowed, netem("200ms  20ms", 0), false),
        (&slowed, "qdisc pfifo_fast 0: root\n".into(), false),
        (&stalled, "frozen\n".into(), true),
        (&stalled, String::new(), false),
        (&wiped, "none\n".into(), true),
        (&wiped, "data\n".into(), false),
    ];
    for (claim, answer, held) in cases {
        let (machines, _) = machines(FakeGuests::new().on("", answer.as_str()));
        let proof = machines.prove(claim).await.expect("a look");
        assert_eq!(proof.held, held, "{claim}: {answer:?} → {}", proof.evidence);
    }
    let (dead, _) = machines(FakeGuests::new().on("", Reply::unreachable(&node())));
    assert!(dead.prove(&down).await.is_err(), "who does not answer has not shown anything");
}

#[tokio::test(start_paused = true)]
async fn claims_about_machines_clocks_and_certificates_hold_when_they_are_seen() {
    let node = NodeName::controller(1);
    let (machines, host) = machines(FakeGuests::new().on("", ""));
    let domain = machines.plan.node(&node).expect("planned").domain.name.clone();
    let (suspended, off) = (Claim::Suspended { node: node.clone() }, Claim::PoweredOff { node: node.clone() });
    for (state, expected) in
        [(DomainState::Running, (false, false)), (DomainState::Paused, (true, false)), (DomainState::ShutOff, (false, true))]
    {
        host.set_state(&domain, state).expect("set");
        let held = async |claim| machines.prove(claim).await.expect("a look").held;
        assert_eq!((held(&suspended).await, held(&off).await), expected, "{state:?}");
    }

    for (told, seconds, held) in [("1800000600.0", 600, true), ("1800000000.0", 600, false), ("1799999700.0", -300, true)] {
        let (machines, _) = self::machines(FakeGuests::new().on("date +%s.%N", format!("{told}00000000\n").as_str()).on("", ""));
        let proof = machines.prove(&Claim::ClockOff { node: node.clone(), seconds }).await.expect("a look");
        assert_eq!(proof.held, held, "{told}: {}", proof.evidence);
    }

    let (plan, _) = machines.server_cert(&node).expect("planned");
    let pem = machines.keyring.identity(&plan.id).expect("made").cert;
    let in_years: fn() -> Timestamp = || Timestamp::from_second(1_800_000_000 + 3 * 366 * 86_400).expect("a time");
    for (clock, held) in [(now as fn() -> Timestamp, false), (in_years, true)] {
        // The same key store: another one would judge by another authority.
        let (other, _) = self::machines(FakeGuests::new().on("cat ", pem.as_str()));
        let other = Machines { keyring: machines.keyring.clone(), clock, ..other };
        let proof = other.prove(&Claim::CertExpired { node: node.clone() }).await.expect("a look");
        assert_eq!(proof.held, held, "{}", proof.evidence);
    }
}

/// Logs are read from where they stood when the run began, and what cannot be read whole is not taken for quiet.
#[tokio::test(start_paused = true)]
async fn logs_that_cannot_be_read_are_not_quiet() {
    let logs = |answer: Reply| {
        let (machines, _) = machines(FakeGuests::new().on("--show-cursor", "s=1;i=2\n").on("--after-cursor='s=1;i=2'", answer));
        machines
    };
    let quiet = logs(Reply::ok("read 12\n"));
    assert!(quiet.alarming_logs().await.is_err(), "nobody said where to begin");
    quiet.begin().await.expect("a place in the log");
    assert_eq!(quiet.alarming_logs().await.expect("read"), Vec::<String>::new());

    let loud = logs(Reply::ok("panic: tocommit is out of range\nread 12\n"));
    loud.begin().await.expect("a place in the log");
    let lines = loud.alarming_logs().await.expect("read");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], "controller-0: panic: tocommit is out of range");

    for broken in [Reply::ok(""), Reply::ok("panic: tocommit\n"), Reply::exit(1, "read 0\n", "no journal files")] {
        let machines = logs(broken);
        machines.begin().await.expect("a place in the log");
        assert!(machines.alarming_logs().await.is_err());
    }
    let (empty, _) = machines(FakeGuests::new().on("--show-cursor", Reply::exit(1, "", "")));
    assert!(empty.begin().await.is_err(), "a journal without a line of etcd");
}
