//! A healthy cluster's answers, captured, and what each single change of them does to the verdicts: exactly the right ones flip.

mod changes;
mod hostile;

use super::certs::{Problem, Trust};
use super::render::{self, Show};
use super::{Report, verify};
use crate::event::{Event, Events, Verdict};
use crate::guest::{Cmd, Exit, Guest, GuestError, Output};
use crate::plan::{CertPlan, Content, PkiItem, Plan, plan, samples};
use crate::spec::{NodeName, RawSpec, Role, validate};
use changes::{MEMBER_2, down, not_ready, unit};
use futures::future::BoxFuture;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Answers captured from three etcd members and three API servers; see `machine` for what is made up to the plan.
const HA3: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/verify/ha3");

/// What the nodes will answer: sections by script (`controller-0 probe`, `worker-1 pod`) and name.
struct Cluster {
    plan: Plan,
    now: Timestamp,
    token: String,
    answers: BTreeMap<String, BTreeMap<String, (String, u32)>>,
    /// Instead of sections: raw bytes, or no answer at all.
    instead: BTreeMap<String, Result<Vec<u8>, GuestError>>,
    /// How far a node's clock is ahead, in milliseconds.
    ahead_ms: BTreeMap<NodeName, i64>,
    asked: std::sync::Mutex<Vec<String>>,
}

fn node(name: &str) -> NodeName {
    NodeName::parse(name).expect("a node")
}

fn planned(etcd: u64, control_planes: u64, workers: u64) -> Plan {
    let raw = RawSpec { etcd: Some(etcd), control_planes: Some(control_planes), workers: Some(workers), ..RawSpec::default() };
    plan(&validate(&raw).expect("valid"), &samples::resolved(samples::kvm()))
}

impl Cluster {
    /// The captured cluster.
    fn healthy() -> Cluster {
        Cluster::of(planned(3, 3, 2))
    }

    /// The captured answers of those nodes that are in the plan.
    fn of(plan: Plan) -> Cluster {
        let read = |path: String| std::fs::read_to_string(format!("{HA3}/{path}")).ok();
        let now: Timestamp = read("now".to_owned()).expect("fixture").trim().parse().expect("a time");
        let mut answers: BTreeMap<String, BTreeMap<String, (String, u32)>> = BTreeMap::new();
        for planned in &plan.nodes {
            let name = planned.name.to_string();
            for (script, sections) in [
                ("probe", &["matrix", "etcd", "etcd-write", "addresses"][..]),
                ("api", &["time", "api"]),
                ("hash", &["hash"]),
                ("pod", &["exec", "log"]),
            ] {
                for section in sections {
                    if let Some(body) = read(format!("{name}/{section}")) {
                        answers.entry(format!("{name} {script}")).or_default().insert((*section).to_owned(), (body, 0));
                    }
                }
            }
            let probe = answers.entry(format!("{name} probe")).or_default();
            probe.extend(machine(&plan, planned).map(|(section, body)| (section.to_owned(), (body, 0))));
        }
        let token = format!("{:x}", now.as_nanosecond());
        Cluster {
            plan,
            now,
            token,
            answers,
            instead: BTreeMap::new(),
            ahead_ms: BTreeMap::new(),
            asked: std::sync::Mutex::default(),
        }
    }

    /// Replaces text in one section; the text must be there.
    fn edit(&mut self, script: &str, section: &str, from: &str, to: &str) {
        let body = &mut self.answers.get_mut(script).expect(script).get_mut(section).expect(section).0;
        assert!(body.contains(from), "{script} {section} has no {from:?}:\n{body}");
        *body = body.replace(from, to);
    }

    /// The same on every control plane.
    fn edit_api(&mut self, from: &str, to: &str) {
        for i in 0..3 {
            self.edit(&format!("controller-{i} api"), "api", from, to);
        }
    }

    fn drop_section(&mut self, script: &str, section: &str) {
        self.answers.get_mut(script).expect(script).remove(section).expect(section);
    }

    fn exit(&mut self, script: &str, section: &str, exit: u32, body: &str) {
        self.answers.get_mut(script).expect(script).insert(section.to_owned(), (body.to_owned(), exit));
    }

    fn instead(&mut self, script: &str, bytes: impl Into<Vec<u8>>) {
        self.instead.insert(script.to_owned(), Ok(bytes.into()));
    }

    /// The node cannot be reached, and what others get from its ports.
    fn dead(&mut self, name: &str) {
        let addr = "192.0.2.1:22".to_owned();
        let error = GuestError::Connect { node: node(name), addr, reason: "no route to host".to_owned() };
        for script in ["clock", "probe", "api", "hash"] {
            self.instead.insert(format!("{name} {script}"), Err(error.clone()));
        }
    }

    /// What a script prints.
    fn framed(&self, script: &str) -> String {
        let mut text = String::new();
        for (name, (body, exit)) in self.answers.get(script).into_iter().flatten() {
            let token = &self.token;
            let _ = write!(text, "@@{token} begin {name}\n{body}\n@@{token} end {name} {exit}\n");
        }
        let _ = writeln!(text, "@@{} done", self.token);
        text
    }

    fn answer(&self, on: &NodeName, cmd: &Cmd) -> Result<Vec<u8>, GuestError> {
        let script = String::from_utf8(cmd.stdin.clone().unwrap_or_default()).expect("text");
        let title = script.lines().next().and_then(|line| line.strip_prefix("# ktcw-vm verify: "));
        let kind = match title.map(|title| title.split(' ').collect::<Vec<_>>()).as_deref() {
            None => format!("{on} clock"),
            Some(["probe", ..]) => format!("{on} probe"),
            Some(["the", ..]) => format!("{on} api"),
            Some(["etcd's", ..]) => format!("{on} hash"),
            Some(["pod", pod, ..]) => {
                format!("{} pod", if *pod == "witness-22c5m" { "worker-0" } else { "worker-1" })
            }
            Some(other) => panic!("unknown script {other:?}"),
        };
        self.asked.lock().expect("lock").push(format!("{kind} on {on}"));
        match (self.instead.get(&kind), title) {
            (Some(instead), _) => instead.clone(),
            (None, None) => {
                let ahead = self.ahead_ms.get(on).copied().unwrap_or(3);
                let ns = self.now.as_nanosecond() + i128::from(ahead) * 1_000_000;
                Ok(format!("{}.{:09}\n", ns / 1_000_000_000, ns % 1_000_000_000).into_bytes())
            }
            (None, Some(_)) => Ok(self.framed(&kind).into_bytes()),
        }
    }

    async fn report(&self) -> Report {
        let now = self.now;
        let good = |_: &CertPlan, pem: &str, ca: &str| match pem.contains("EXPIRED") {
            true => vec![Problem { what: "expired".to_owned(), warning: false }],
            false => {
                assert!(pem.contains("BEGIN CERTIFICATE") && ca.contains("BEGIN CERTIFICATE"), "{pem}{ca}");
                vec![]
            }
        };
        let trust = Trust { judge: &good, ca: &|ca| Some(pem(ca.common_name())) };
        verify(&self.plan, self, &move || now, trust, &Events::nowhere()).await
    }

    /// What did not pass: `fail etcd.members`, `unknown clock.offset worker-0`, …
    async fn problems(&self) -> Vec<String> {
        let report = self.report().await;
        let shown = |check: &super::Check| {
            let node = check.node.as_ref().map(|node| format!(" {node}")).unwrap_or_default();
            assert!(check.hint.as_ref().is_some_and(|hint| hint.starts_with("ktcw-vm ")), "no hint: {check:?}");
            format!("{} {}{node}", check.verdict, check.id)
        };
        report.problems().map(shown).collect()
    }
}

impl Guest for Cluster {
    fn run<'a>(&'a self, node: &'a NodeName, cmd: Cmd) -> BoxFuture<'a, Result<Output, GuestError>> {
        Box::pin(async move {
            let stdout = self.answer(node, &cmd)?;
            let truncated = stdout.len() > cmd.limit;
            let stdout = stdout.into_iter().take(cmd.limit).collect();
            Ok(Output { exit: Exit::Code(0), stdout, stderr: Vec::new(), truncated })
        })
    }
    fn forget<'a>(&'a self, _: &'a NodeName) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

/// A table without what changes when a file is added to the plan, or from run to run.
fn steady(report: &Report, text: &str) -> String {
    let files = |line: &str| {
        line.split(' ').map(|word| if word.parse::<u32>().is_ok() { "N" } else { word }).collect::<Vec<_>>().join(" ")
    };
    let line = |line: &str| if line.contains(" files.") || line.contains(" certs.") { files(line) } else { line.to_owned() };
    let text: Vec<String> = text.lines().map(line).collect();
    text.join("\n").replace(&format!("{:.1} s", report.elapsed.as_secs_f64()), "N s")
}

/// The sections that say that a machine is as planned; they follow the plan, so that a new file or unit does not make
/// the captures old.
fn machine(plan: &Plan, node: &crate::plan::NodePlan) -> impl Iterator<Item = (&'static str, String)> {
    let result = r#"{"v1":{"datasource":"DataSourceNoCloud [seed=/dev/vdb]","errors":[]}}"#;
    let state =
        format!("/proc/uptime:300.25 210.00\n/proc/sys/kernel/hostname:{}\n/run/cloud-init/result.json:{result}\n", node.name);
    let unit = |unit: &String| {
        let (kind, sub) = if unit == "ktcw-pod-egress.service" { ("oneshot", "exited") } else { ("notify", "running") };
        format!(
            "Type={kind}\nResult=success\nNRestarts=0\nId={unit}\nLoadState=loaded\nActiveState=active\nSubState={sub}\n\
             ActiveEnterTimestampMonotonic=40000000\n"
        )
    };
    let units = node.units.iter().map(unit).collect::<Vec<_>>().join("\n");
    let files = node.files.iter().map(|file| format!("{:x} 0 0 42 {}\n", 0o100_000 | file.mode, file.path)).collect();
    let mut certs = String::new();
    for file in &node.files {
        let name = match &file.content {
            Content::Pki { item: PkiItem::CaCert { ca } } => ca.to_string(),
            Content::Pki { item: PkiItem::Cert { id } } => id.clone(),
            _ => continue,
        };
        for line in pem(&name).lines() {
            let _ = writeln!(certs, "{}:{line}", file.path);
        }
    }
    let mut kubeconfigs = String::new();
    for kubeconfig in plan.kubeconfigs.iter().filter(|kubeconfig| kubeconfig.node.as_ref() == Some(&node.name)) {
        let at = kubeconfig.at.as_ref().expect("on the node");
        for (key, name) in [("certificate-authority", "kubernetes-ca"), ("client-certificate", kubeconfig.cert.as_str())] {
            let _ = writeln!(kubeconfigs, "{at}:    {key}-data: {}", super::script::base64(&pem(name)));
        }
    }
    let system = "SystemState=running\n".to_owned();
    [
        ("state", state),
        ("system", system),
        ("failed", String::new()),
        ("units", units),
        ("files", files),
        ("certs", certs),
        ("kubeconfigs", kubeconfigs),
    ]
    .into_iter()
}

#[tokio::test(start_paused = true)]
async fn a_healthy_cluster_passes_everywhere_and_every_line_has_a_summary() {
    let cluster = Cluster::healthy();
    let report = cluster.report().await;
    let problems: Vec<_> = report.problems().collect();
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(report.verdict(), Verdict::Pass);
    assert!(report.checks.iter().all(|check| !check.summary.is_empty() && check.hint.is_none()));
    // Pods are asked through different control planes.
    let asked = cluster.asked.lock().expect("lock").clone();
    assert!(
        asked.contains(&"worker-0 pod on controller-0".to_owned()) && asked.contains(&"worker-1 pod on controller-1".to_owned())
    );
    insta::assert_snapshot!("healthy", steady(&report, &render::text(&report, Show::default())));
}

#[tokio::test(start_paused = true)]
async fn every_check_is_an_event_too() {
    let cluster = Cluster::healthy();
    let (events, mut receiver) = Events::channel();
    let now = cluster.now;
    let trust = Trust { judge: &|_, _, _| vec![], ca: &|ca| Some(pem(ca.common_name())) };
    let report = verify(&cluster.plan, &cluster, &move || now, trust, &events).await;
    drop(events);
    let mut seen = 0;
    while let Some(event) = receiver.recv().await {
        assert!(matches!(event, Event::Checked { verdict: Verdict::Pass, .. }), "{event:?}");
        seen += 1;
    }
    assert_eq!(seen, report.checks.len());
}

#[tokio::test(start_paused = true)]
async fn each_change_flips_exactly_its_own_verdicts() {
    let mut wrong = String::new();
    for (what, change, expected) in changes::all() {
        let mut cluster = Cluster::healthy();
        change(&mut cluster);
        let mut seen = cluster.problems().await;
        let mut expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
        seen.sort();
        expected.sort();
        if seen != expected {
            let _ = writeln!(wrong, "{what}:\n  expected {expected:#?}\n  seen {seen:#?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Whatever a cut does, it never turns a check green that had no answer, and no check disappears.
#[tokio::test(start_paused = true)]
async fn a_probe_cut_anywhere_never_adds_a_pass() {
    let whole = Cluster::healthy();
    let ids = |report: &Report| report.checks.iter().map(|check| (check.id.clone(), check.node.clone())).collect::<Vec<_>>();
    let all = ids(&whole.report().await);
    let text = whole.framed("controller-1 probe");
    for end in (0..text.len()).step_by(401) {
        let mut cluster = Cluster::healthy();
        cluster.instead("controller-1 probe", &text.as_bytes()[..end]);
        let report = cluster.report().await;
        assert_eq!(ids(&report), all, "cut at {end}");
        assert!(
            report.problems().all(|check| check.verdict == Verdict::Unknown),
            "cut at {end}: {:?}",
            report.problems().collect::<Vec<_>>()
        );
        assert_eq!(report.verdict(), Verdict::Unknown, "cut at {end}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_control_plane_fails_its_own_lines_and_what_it_alone_knows_is_unknown() {
    let mut cluster = Cluster::healthy();
    cluster.dead("controller-1");
    for name in ["controller-0", "controller-2", "worker-0", "worker-1"] {
        not_ready(&mut cluster, name, "controller-1", 28);
    }
    let report = cluster.report().await;
    let failed: Vec<_> = report.problems().filter(|check| check.verdict == Verdict::Fail).collect();
    let failed: Vec<_> = failed.iter().map(|check| (check.id.as_str(), check.node.clone())).collect();
    assert_eq!(failed, [("ssh.reachable", Some(node("controller-1"))), ("apiserver.ready", Some(node("controller-1")))]);
    // The leases were judged through the others, the pods asked through them.
    for id in ["lease.kube-scheduler", "workers.ready", "pods.exec", "pods.dns", "apiserver.vip"] {
        let verdicts: Vec<_> = report.checks.iter().filter(|check| check.id == id).map(|check| check.verdict).collect();
        assert!(!verdicts.is_empty() && verdicts.iter().all(|verdict| *verdict == Verdict::Pass), "{id}: {verdicts:?}");
    }
    let asked = cluster.asked.lock().expect("lock").clone();
    assert!(asked.contains(&"worker-1 pod on controller-2".to_owned()), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn without_workers_nothing_is_said_about_them() {
    let cluster = Cluster::of(planned(1, 1, 0));
    let report = cluster.report().await;
    assert!(report.checks.iter().all(|check| check.group != super::Group::Workers));
    assert!(report.checks.iter().all(|check| check.node.as_ref().is_none_or(|node| node.role() == Role::Controller)));
    // The captures are of three controllers, and the second one leads; all else about the first one is right.
    let expected = ["fail etcd.members", "fail lease.kube-controller-manager", "fail lease.kube-scheduler"];
    assert_eq!(cluster.problems().await, expected);
    let asked = cluster.asked.lock().expect("lock").clone();
    assert!(asked.iter().all(|line| line.contains("controller-0") && !line.contains("pod")), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_controller_without_control_plane_is_asked_for_what_it_has() {
    let cluster = Cluster::of(planned(3, 1, 1));
    let scripts: Vec<_> = cluster.plan.nodes.iter().map(|node| super::script::probe(&cluster.plan, node, "t")).collect();
    assert!(scripts[1].contains("s etcd ") && !scripts[1].contains("kubelet-client"));
    assert!(super::script::api(&cluster.plan, &cluster.plan.nodes[1], "t").is_none());
    let report = cluster.report().await;
    assert!(!report.checks.iter().any(|check| check.id == "unit.kube-apiserver" && check.node == Some(node("controller-1"))));
}

#[test]
fn scripts_hold_no_secret_and_parse_as_bash() {
    let plan = planned(3, 2, 3);
    let pods = [("worker-1".to_owned(), "http://10.244.102.2:8080/".to_owned()), ("name".to_owned(), "http://x/".to_owned())];
    let mut scripts: Vec<String> = plan.nodes.iter().map(|node| super::script::probe(&plan, node, "t")).collect();
    scripts.extend(plan.nodes.iter().filter_map(|node| super::script::api(&plan, node, "t")));
    scripts.extend(plan.nodes.iter().filter_map(|node| super::script::hash(&plan, node, 7, "t")));
    scripts.extend(plan.nodes.iter().filter_map(|node| super::script::pod(&plan, node, "witness-x", &pods, "t")));
    assert_eq!(scripts.len(), 6 + 2 + 3 + 2);
    for script in scripts {
        assert!(!script.contains("client-key-data") && !script.contains("encryption.yaml:"));
        let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).output().expect("bash");
        assert!(checked.status.success(), "{script}\n{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_shown_with_evidence_and_a_command_to_type() {
    let mut cluster = Cluster::healthy();
    down(&mut cluster, "controller-1", "kube-scheduler");
    cluster.edit("controller-0 probe", "etcd", MEMBER_2, "");
    cluster.drop_section("worker-1 probe", "failed");
    cluster.dead("worker-0");
    let report = cluster.report().await;
    insta::assert_snapshot!("failures", steady(&report, &render::text(&report, Show::default())));
    assert!(render::text(&report, Show { all: true, colour: true }).contains("\u{1b}[31mfail"));
    let json: Report = serde_json::from_str(&render::json(&report)).expect("parses back");
    assert_eq!(json.checks, report.checks);
    let schema = serde_json::to_string(&schemars::schema_for!(Report)).expect("a schema");
    assert!(schema.contains("elapsed_ms") && schema.contains("unknown"), "{schema}");
}

/// Between two crashes that are a minute apart a unit runs, and so does one that drills have killed.
#[tokio::test(start_paused = true)]
async fn a_unit_that_may_fall_again_passes_and_has_a_line_of_its_own() {
    let mut cluster = Cluster::healthy();
    unit(&mut cluster, "worker-0", "kubelet", "NRestarts=0", "NRestarts=7", "=40000000", "=263000000");
    let report = cluster.report().await;
    assert_eq!(report.verdict(), Verdict::Pass);
    let text = render::text(&report, Show::default());
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let at = lines.iter().position(|line| line.starts_with(&["pass", "unit.kubelet"])).expect("a line");
    let said: Vec<String> = lines[at..at + 3].iter().map(|line| line.join(" ")).collect();
    let expected = [
        "pass unit.kubelet worker-1 active (running) for 260 s",
        "pass unit.kubelet worker-0 active (running) for 37 s, 7 restarts: by drills, or in a slow crash loop",
        "hint: ktcw-vm logs worker-0 kubelet",
    ];
    assert_eq!(said, expected);
}

#[test]
fn a_loop_is_what_is_not_up_for_longer_than_before() {
    use super::machines::may_fall_again;
    for (restarts, up_s, uptime_s, may) in [
        (7, 37.0, 300.0, true),
        (600, 59.0, 36_000.0, true),
        // It came up while the others booted.
        (7, 260.0, 300.0, false),
        (5, 100.0, 220.0, false),
        // Whatever has killed it once or twice.
        (2, 40.0, 3600.0, false),
        (0, 40.0, 80.0, false),
        // It began late, or drills did; and a while later.
        (5, 500.0, 36_000.0, true),
        (5, 700.0, 36_000.0, false),
    ] {
        assert_eq!(may_fall_again(restarts, up_s, uptime_s), may, "{restarts} {up_s} {uptime_s}");
    }
}

/// A slow way there and back hides a clock that is off and one that is not: neither is said.
#[tokio::test(start_paused = true)]
async fn a_clock_read_over_a_slow_way_is_unknown() {
    let cluster = Cluster::healthy();
    let reads = std::sync::atomic::AtomicI64::new(0);
    let clock = || {
        let n = reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        cluster.now + jiff::SignedDuration::from_secs(3 * n)
    };
    let (link, seen) = super::observe::clock_seen(&cluster.plan, &cluster.plan.nodes[0], &cluster, &clock).await;
    assert_eq!((link, reads.into_inner()), (super::observe::Link::Up, 6), "read three times, twice each");
    let seen = seen.expect("a clock");
    assert!((seen.uncertain_s - 1.5).abs() < 1e-6 && seen.ahead_s < 0.0, "{seen:?}");
    let finding = super::machines::clock(&cluster.plan, &cluster.plan.nodes[0], &Ok(seen), false);
    assert_eq!(finding.verdict, Verdict::Unknown, "{finding:?}");
}

/// A certificate as far as these tests care.
fn pem(name: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
}
