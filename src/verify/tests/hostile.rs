//! Nodes that answer anything at all: cut off, with bits turned over, garbage, nothing, without end. Nothing of it becomes a pass
//! that the whole answer would not have been, nothing panics, and two hundred runs leave neither memory nor files behind.

use super::*;
use crate::guest::ssh::{SshGuests, Target};
use crate::host::DomainState;
use crate::secret::Secret;
use crate::store::crash;
use crate::verify::machines::explain;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const SCRIPTS: [&str; 12] = [
    "controller-0 probe",
    "controller-0 api",
    "controller-0 hash",
    "controller-0 clock",
    "controller-1 probe",
    "controller-1 api",
    "controller-2 hash",
    "worker-0 probe",
    "worker-0 clock",
    "worker-0 pod",
    "worker-1 probe",
    "worker-1 pod",
];

/// Nothing is answered but the door opened, with the right key, on five nodes.
const SSH_ONLY: usize = 5;

fn report(cluster: &Cluster) -> Report {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    let now = cluster.now;
    // Certificates that are not whole are the judge's own matter (`pki::check`): here they only have to come through.
    let judge = |_: &CertPlan, _: &str, _: &str| Vec::new();
    let trust = Trust { judge: &judge, ca: &|ca| Some(super::pem(ca.common_name())) };
    runtime.block_on(verify(&cluster.plan, cluster, &move || now, trust, &Events::nowhere()))
}

fn whole(cluster: &Cluster, script: &str) -> Vec<u8> {
    if script.ends_with("clock") { b"1795000000.000000000\n".to_vec() } else { cluster.framed(script).into_bytes() }
}

/// An answer without its end is never as good as the whole one: at every length of every kind of answer.
#[test]
fn an_answer_cut_off_anywhere_is_not_a_pass() {
    let cluster = Cluster::healthy();
    let mut cuts = 0;
    for script in SCRIPTS.iter().filter(|script| !script.ends_with("clock")) {
        let whole = whole(&cluster, script);
        // The last line only says that there is no more.
        let last = whole.len() - format!("@@{} done\n", cluster.token).len();
        let stride = last / 25 + 1;
        for length in (0..last).filter(|at| at % stride == 0 || at + 3 > last) {
            let mut cut = Cluster::healthy();
            if script.ends_with("api") {
                // The API's answer is taken from any control plane: it is missing when it is missing everywhere.
                (0..3).for_each(|i| cut.instead(&format!("controller-{i} api"), &whole[..length]));
            } else {
                cut.instead(script, &whole[..length]);
            }
            assert_ne!(report(&cut).verdict(), Verdict::Pass, "{script} cut at {length} of {}", whole.len());
            cuts += 1;
        }
    }
    println!("{cuts} answers cut off, none passed");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_from_any_node_are_judged_without_a_panic(
        script in proptest::sample::select(&SCRIPTS[..]),
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..40),
        garbage in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..3000)),
    ) {
        let mut cluster = Cluster::healthy();
        let mut bytes = whole(&cluster, script);
        match garbage {
            Some(garbage) => bytes = garbage,
            None => {
                for (at, byte) in flips {
                    let at = at % bytes.len();
                    bytes[at] = byte;
                }
            }
        }
        cluster.instead(script, bytes);
        for check in report(&cluster).checks {
            prop_assert!(!check.summary.chars().any(char::is_control), "{:?}", check);
            prop_assert!(check.verdict == Verdict::Pass || check.hint.is_some(), "{:?}", check);
        }
    }
}

/// A machine that QEMU paused because the host's disk is full says nothing over SSH: libvirt's word makes that the finding.
#[test]
fn a_machine_paused_by_a_full_disk_is_called_that_and_not_a_dead_network() {
    let mut cluster = Cluster::healthy();
    cluster.dead("controller-0");
    cluster.dead("worker-1");
    let mut report = report(&cluster);
    let states =
        [("controller-0", DomainState::PausedIoError), ("worker-1", DomainState::ShutOff), ("worker-0", DomainState::Running)];
    explain(&mut report, &cluster.plan, &states.map(|(name, state)| (node(name), state)).into());
    let said = |name: &str| {
        report.checks.iter().find(|check| check.id == "ssh.reachable" && check.node == Some(node(name))).expect("a check")
    };
    let full = said("controller-0");
    assert_eq!(full.verdict, Verdict::Fail);
    assert!(
        full.summary.contains("paused") && full.summary.contains("could not write") && full.evidence.contains("no route to host"),
        "{full:?}"
    );
    assert!(full.hint.as_ref().is_some_and(|hint| hint.contains("ktcw-vm up")), "{full:?}");
    assert!(said("worker-1").summary.contains("is off"), "{:?}", said("worker-1"));
    assert_eq!(said("worker-0").verdict, Verdict::Pass);
    let failed = report.checks.iter().filter(|check| check.verdict == Verdict::Fail).map(|check| check.id.as_str());
    assert_eq!(failed.collect::<Vec<_>>(), ["ssh.reachable"; 2], "nothing is said to be broken that was only not asked");
    let text = render::text(&report, Show::default());
    assert!(text.contains("the host could not write to its disk"), "{text}");
}

/// A hundred megabytes on every channel are no answer, and no hundred megabytes of ours.
#[test]
fn a_flood_from_every_node_is_no_answer() {
    let mut cluster = Cluster::healthy();
    let flood = vec![b'x'; 8 << 20];
    let nodes: Vec<String> = cluster.plan.nodes.iter().map(|node| node.name.to_string()).collect();
    for script in nodes.iter().flat_map(|node| ["clock", "probe", "api", "hash", "pod"].map(|kind| format!("{node} {kind}"))) {
        cluster.instead(&script, flood.clone());
    }
    let report = report(&cluster);
    assert_eq!(report.count(Verdict::Pass), SSH_ONLY, "{:?}", report.checks.iter().find(|check| check.verdict == Verdict::Pass));
    let longest = report.checks.iter().map(|check| check.summary.len() + check.evidence.len()).max().expect("checks");
    assert!(longest < 10_000, "{longest} bytes of one check");
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// The cluster's answers, each carried to its node and back by SSH: the server of `guest`'s own tests, a connection a node.
struct OverSsh {
    cluster: Cluster,
    ssh: SshGuests,
}

impl Guest for OverSsh {
    fn run<'a>(&'a self, node: &'a NodeName, cmd: Cmd) -> BoxFuture<'a, Result<Output, GuestError>> {
        Box::pin(async move {
            let answer = self.cluster.answer(node, &cmd)?;
            self.ssh.run(node, Cmd { line: "cat".to_owned(), stdin: Some(answer), ..cmd }).await
        })
    }
    fn forget<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, ()> {
        self.ssh.forget(node)
    }
}

impl OverSsh {
    /// Where and with which keys the server says in a file.
    fn at(door: &Path) -> OverSsh {
        let text = std::fs::read_to_string(door).expect("read");
        let door: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let word = |key: &str| door[key].as_str().expect("text").to_owned();
        let cluster = Cluster::healthy();
        let addr = word("addr").parse().expect("an address");
        let targets = cluster.plan.nodes.iter().map(|node| Target { node: node.name.clone(), addr, host_key: word("host_key") });
        let ssh = SshGuests::new(targets.collect(), "root", &Secret::new(word("client_key"))).expect("keys");
        OverSsh { cluster, ssh }
    }

    async fn verifies(&self) {
        let now = self.cluster.now;
        let judge = |_: &CertPlan, _: &str, _: &str| Vec::new();
        let trust = Trust { judge: &judge, ca: &|ca| Some(super::pem(ca.common_name())) };
        let report = verify(&self.cluster.plan, self, &move || now, trust, &Events::nowhere()).await;
        assert_eq!(report.verdict(), Verdict::Pass, "{:?}", report.problems().next());
        self.cluster.asked.lock().expect("lock").clear();
    }
}

/// Ends with the test.
struct Serving(std::process::Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In processes of their own, for server and client: what else the suite does, and what the other end holds, must not be seen.
#[test]
fn two_hundred_runs_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let place: &Path = dir.path();
    let _serving = Serving(crash::child("guest::ssh::tests::many::child_serves", &[("KTCW_TEST_DIR", &place)]));
    let begin = std::time::Instant::now();
    while !place.join("door.json").exists() {
        assert!(begin.elapsed().as_secs() < 60, "nobody serves");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    print!("{}", crash::passes("verify::tests::hostile::child_verifies_two_hundred_times", &[("KTCW_TEST_DIR", &place)]));
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_verifies_two_hundred_times() {
    let dir = PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let without = open_files();
        let cluster = OverSsh::at(&dir.join("door.json"));
        let held = async || {
            // What the last run needed has the time to end.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            (resident_kib(), open_files(), tokio::runtime::Handle::current().metrics().num_alive_tasks())
        };
        // Allocators take their time until they have what they need.
        for _ in 0..40 {
            cluster.verifies().await;
        }
        let before = held().await;
        for _ in 0..200 {
            cluster.verifies().await;
        }
        let after = held().await;
        println!(
            "200 runs of verify over SSH: {} → {} KiB resident, {} → {} open files ({without} without nodes), {} → {} tasks",
            before.0, after.0, before.1, after.1, before.2, after.2
        );
        let nodes = cluster.cluster.plan.nodes.len();
        assert!(before.1 >= without + nodes, "a connection to each of {nodes} nodes is among the files");
        assert_eq!((after.1, after.2), (before.1, before.2), "open files, tasks");
        assert!(after.0 < before.0 + 2048, "{} KiB more", after.0.saturating_sub(before.0));
    });
}
