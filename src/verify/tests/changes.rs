//! What can be different on a cluster, one change at a time, and every verdict that each of them flips.

use super::{Cluster, node};
use crate::guest::GuestError;
use std::time::Duration;

pub(super) type Change = fn(&mut Cluster);

/// Each change, and all that it makes of the verdicts.
pub(super) const CHANGES: &[(&str, Change, &[&str])] = &[
    // etcd
    (
        "a member was removed",
        |c| {
            for i in [0, 1] {
                c.edit(&format!("controller-{i} probe"), "etcd", MEMBER_2, "");
            }
            down(c, "controller-2", "etcd");
            c.exit("controller-2 probe", "etcd", 7, &refused(&["status"]));
            c.exit("controller-2 probe", "etcd-write", 7, &refused(&["put", "range", "alarms"]));
        },
        &[
            "fail unit.etcd controller-2",
            "fail etcd.status controller-2",
            "fail etcd.members",
            "unknown etcd.learners",
            "unknown etcd.leader",
            "fail etcd.write controller-2",
            "fail etcd.read controller-2",
            "unknown etcd.hash",
            "unknown etcd.alarms",
        ],
    ),
    ("one member's list lacks another", |c| c.edit("controller-0 probe", "etcd", MEMBER_2, ""), &["fail etcd.members"]),
    (
        "a member has another peer URL",
        |c| c.edit("controller-1 probe", "etcd", "https://192.168.77.13:2380", "https://192.168.77.99:2380"),
        &["fail etcd.members"],
    ),
    (
        "a stranger is a member",
        |c| {
            c.edit(
                "controller-1 probe",
                "etcd",
                MEMBER_2,
                r#",{"ID":"7","name":"mallory","peerURLs":["https://192.0.2.9:2380"]}"#,
            )
        },
        &["fail etcd.members"],
    ),
    (
        "a second member bears a planned name, say all",
        |c| {
            let second = r#",{"ID":"7","name":"controller-2","peerURLs":["https://192.0.2.9:2380"]}"#;
            (0..3).for_each(|i| c.edit(&format!("controller-{i} probe"), "etcd", MEMBER_2, &format!("{MEMBER_2}{second}")));
        },
        &["fail etcd.members"],
    ),
    ("a member is listed twice", |c| c.edit("controller-1 probe", "etcd", MEMBER_2, &MEMBER_2.repeat(2)), &["fail etcd.members"]),
    (
        "a member has different ids in two lists",
        |c| c.edit("controller-1 probe", "etcd", r#""ID":"10238857303342113634""#, r#""ID":"42""#),
        &["fail etcd.members"],
    ),
    (
        "a member is of another cluster",
        |c| c.edit("controller-2 probe", "etcd", "\"cluster_id\":\"17109410851830738414\"", "\"cluster_id\":\"9\""),
        &["fail etcd.members"],
    ),
    (
        "a learner is among them",
        |c| c.edit("controller-0 probe", "etcd", r#""name":"controller-2","#, r#""name":"controller-2","isLearner":true,"#),
        &["fail etcd.learners"],
    ),
    (
        "two leaders",
        |c| c.edit("controller-2 hash", "hash", "\"leader\":\"7872708925295583049\"", "\"leader\":\"10238857303342113634\""),
        &["fail etcd.leader"],
    ),
    ("two terms", |c| c.edit("controller-0 hash", "hash", "\"raftTerm\":\"2\"", "\"raftTerm\":\"3\""), &["fail etcd.leader"]),
    (
        "no leader for one",
        |c| c.edit("controller-0 hash", "hash", "\"leader\":\"7872708925295583049\",", ""),
        &["fail etcd.leader"],
    ),
    (
        "a leader nobody knows",
        |c| {
            for i in 0..3 {
                c.edit(&format!("controller-{i} hash"), "hash", "\"leader\":\"7872708925295583049\"", "\"leader\":\"5\"");
            }
        },
        &["fail etcd.leader"],
    ),
    ("a hash differs", |c| c.edit("controller-1 hash", "hash", "\"hash\":", "\"hash\":1"), &["fail etcd.hash"]),
    (
        "compacted apart",
        |c| c.edit("controller-1 hash", "hash", "\"compact_revision\":\"-1\"", "\"compact_revision\":\"5\""),
        &["unknown etcd.hash"],
    ),
    ("no hash from one", |c| c.instead("controller-1 hash", ""), &["unknown etcd.hash"]),
    (
        "an alarm in the list",
        |c| {
            let from = "\"raft_term\":\"2\"}}\n=18ea7ec934afbcae= alarms";
            let to = "\"raft_term\":\"2\"},\"alarms\":[{\"memberID\":\"9918885553558706259\",\"alarm\":\"NOSPACE\"}]}\n=18ea7ec934afbcae= alarms";
            c.edit("controller-0 probe", "etcd-write", from, to);
        },
        &["fail etcd.alarms"],
    ),
    (
        "an alarm in a status",
        |c| {
            let errors = r#""version":"3.6.16","errors":["memberID:9918885553558706259 alarm:NOSPACE "]"#;
            c.edit("controller-2 probe", "etcd", r#""version":"3.6.16""#, errors);
        },
        &["fail etcd.alarms"],
    ),
    (
        "another etcd version runs",
        |c| c.edit("controller-2 probe", "etcd", r#""version":"3.6.16""#, r#""version":"3.5.1""#),
        &["fail etcd.status controller-2"],
    ),
    (
        "no quorum for writes through one",
        |c| {
            let timed_out =
                "{\"error\":\"etcdserver: request timed out\",\"code\":14,\"message\":\"etcdserver: request timed out\"}";
            let put = format!(
                "{timed_out}\n=18ea7ec934afbcae= put 503 0 7.001 \n\n=18ea7ec934afbcae= range 0 28 5.001 Operation timed out\n\n=18ea7ec934afbcae= alarms 0 28 5.001 Operation timed out\n"
            );
            c.exit("controller-1 probe", "etcd-write", 28, &put);
        },
        &["fail etcd.write controller-1", "fail etcd.read controller-1", "unknown etcd.alarms"],
    ),
    (
        "a stale read",
        |c| c.edit("controller-1 probe", "etcd-write", "\"mod_revision\":\"", "\"mod_revision\":\"-"),
        &["fail etcd.read controller-1"],
    ),
    (
        "a read of someone else's bytes",
        |c| c.edit("controller-1 probe", "etcd-write", "\"value\":\"", "\"value\":\"AAAA"),
        &["fail etcd.read controller-1"],
    ),
    (
        "a read finds nothing",
        |c| c.edit("controller-1 probe", "etcd-write", "\"kvs\":[", "\"none\":["),
        &["fail etcd.read controller-1"],
    ),
    // leader election
    ("a stale lease", |c| c.edit_api(SCHEDULER_RENEWED, "2026-11-22T22:33:04"), &["fail lease.kube-scheduler"]),
    ("a lease of the future", |c| c.edit_api(SCHEDULER_RENEWED, "2026-11-22T22:34:24"), &["unknown lease.kube-scheduler"]),
    (
        "a holder we do not know",
        |c| c.edit_api("controller-1_b9363084", "controller-9_b9363084"),
        &["fail lease.kube-controller-manager"],
    ),
    (
        "a worker's name as holder",
        |c| c.edit_api("controller-1_b9363084", "worker-0_b9363084"),
        &["fail lease.kube-controller-manager"],
    ),
    (
        "nobody holds it",
        |c| c.edit_api("controller-1_b9363084-bc62-4a05-8d7e-c889bdb608ac", ""),
        &["fail lease.kube-controller-manager"],
    ),
    (
        "no lease at all",
        |c| {
            for i in 0..3 {
                c.edit(&format!("controller-{i} api"), "api", "= lease/kube-scheduler 200 ", "= lease/kube-scheduler 404 ");
            }
        },
        &["fail lease.kube-scheduler"],
    ),
    // apiserver
    (
        "an API server is down",
        |c| {
            for (name, error) in
                [("controller-0", 7), ("controller-1", 7), ("controller-2", 7), ("worker-0", 7), ("worker-1", 28)]
            {
                not_ready(c, name, "controller-1", error);
            }
            down(c, "controller-1", "kube-apiserver");
            c.exit("controller-1 api", "api", 7, &refused(&["lease/kube-controller-manager"]));
        },
        &["fail unit.kube-apiserver controller-1", "fail apiserver.ready controller-1"],
    ),
    (
        "one worker cannot reach one API server",
        |c| not_ready(c, "worker-1", "controller-1", 28),
        &["fail apiserver.reach worker-1"],
    ),
    (
        "one worker reaches nothing",
        |c| {
            for target in ["controller-0", "controller-1", "controller-2", "vip"] {
                not_ready(c, "worker-1", target, 28);
            }
        },
        &["fail apiserver.reach worker-1"],
    ),
    (
        "the virtual address answers nobody",
        |c| {
            for name in ["controller-0", "controller-1", "controller-2", "worker-0", "worker-1"] {
                not_ready(c, name, "vip", 28);
            }
        },
        &["fail apiserver.vip"],
    ),
    (
        "an API server is not ready, and says so to one",
        |c| c.edit("worker-1 probe", "matrix", "= controller-2 200 ", "= controller-2 500 "),
        &["fail apiserver.ready controller-2"],
    ),
    ("a certificate of another CA", |c| not_ready(c, "worker-0", "controller-2", 60), &["fail apiserver.reach worker-0"]),
    ("no matrix from one", |c| c.drop_section("worker-0 probe", "matrix"), &["unknown apiserver.reach worker-0"]),
    (
        "the virtual address is on two",
        |c| c.edit("controller-1 probe", "addresses", "192.168.77.12/24", "192.168.77.12/24 x\n2: eth0 inet 192.168.77.10/32"),
        &["fail vip.holder"],
    ),
    (
        "the virtual address is on none",
        |c| c.edit("controller-0 probe", "addresses", "192.168.77.10/32", "192.0.2.1/32"),
        &["fail vip.holder"],
    ),
    (
        "the virtual address is on a worker",
        |c| c.edit("worker-0 probe", "addresses", "192.168.77.101/24", "192.168.77.101/24 x\n2: eth0 inet 192.168.77.10/32"),
        &["fail vip.holder"],
    ),
    ("no addresses from one", |c| c.exit("controller-2 probe", "addresses", 1, "ip: not found"), &["unknown vip.holder"]),
    // workers
    (
        "a node is not Ready",
        |c| {
            c.edit_api(
                r#""type":"Ready","status":"True","lastHeartbeatTime""#,
                r#""type":"Ready","status":"Unknown","lastHeartbeatTime""#,
            )
        },
        &["fail workers.ready worker-0", "fail workers.ready worker-1"],
    ),
    (
        "a node is not registered",
        |c| c.edit_api(r#"{"metadata":{"name":"worker-1""#, r#"{"metadata":{"name":"worker-7""#),
        &["fail workers.ready worker-1", "fail workers.expected"],
    ),
    (
        "a node is known at another address",
        |c| c.edit_api(r#""address":"192.168.77.102""#, r#""address":"192.168.77.202""#),
        &["fail workers.ready worker-1"],
    ),
    (
        "a pod is missing",
        |c| c.edit_api(r#""nodeName":"worker-1""#, r#""nodeName":"worker-5""#),
        &[
            "fail pods.witness worker-1",
            "unknown pods.logs worker-1",
            "unknown pods.exec worker-1",
            "unknown pods.network worker-1",
            "unknown pods.service worker-1",
            "unknown pods.dns worker-1",
        ],
    ),
    ("a pod has an address of another node", |c| c.edit_api("10.244.102.3", "10.244.101.9"), &["fail pods.witness worker-1"]),
    (
        "the name does not resolve",
        |c| {
            c.edit(
                "worker-0 pod",
                "exec",
                "@ name 0 worker-1",
                "@ name 1 wget: bad address 'witness.ktcw-system.svc.cluster.local'",
            )
        },
        &["fail pods.dns worker-0"],
    ),
    (
        "the name lookup hangs",
        |c| {
            c.edit("worker-0 pod", "exec", "@ name 0 worker-1\n", "");
            let body = c.answers["worker-0 pod"]["exec"].0.clone();
            c.exit("worker-0 pod", "exec", 124, &body);
        },
        &["fail pods.dns worker-0"],
    ),
    (
        "a pod does not reach another",
        |c| c.edit("worker-1 pod", "exec", "@ worker-0 0 worker-0", "@ worker-0 1 wget: download timed out"),
        &["fail pods.network worker-1"],
    ),
    (
        "the wrong pod answers",
        |c| c.edit("worker-1 pod", "exec", "@ worker-0 0 worker-0", "@ worker-0 0 worker-1"),
        &["fail pods.network worker-1"],
    ),
    (
        "the Service does not answer",
        |c| {
            c.edit(
                "worker-1 pod",
                "exec",
                "@ service 0 worker-0",
                "@ service 1 wget: can't connect to remote host: Connection refused",
            )
        },
        &["fail pods.service worker-1"],
    ),
    (
        "something else answers for the Service",
        |c| c.edit("worker-1 pod", "exec", "@ service 0 worker-0", "@ service 0 <html>hello</html>"),
        &["fail pods.service worker-1"],
    ),
    (
        "exec is refused",
        |c| {
            c.exit(
                "worker-1 pod",
                "exec",
                1,
                "error: Internal error occurred: error sending request: dial tcp: connection refused",
            )
        },
        &[
            "fail pods.exec worker-1",
            "unknown pods.network worker-1",
            "unknown pods.service worker-1",
            "unknown pods.dns worker-1",
        ],
    ),
    ("logs cannot be read", |c| c.edit("worker-1 pod", "log", "= log 200 ", "= log 502 "), &["fail pods.logs worker-1"]),
    (
        "the log is of another pod",
        |c| c.edit("worker-1 pod", "log", "witness on worker-1", "witness on worker-0"),
        &["fail pods.logs worker-1"],
    ),
    // machines
    ("a clock is ahead", |c| c.ahead_ms.extend([(node("worker-1"), 1001)]), &["fail clock.offset worker-1"]),
    ("a clock is behind", |c| c.ahead_ms.extend([(node("controller-0"), -5000)]), &["fail clock.offset controller-0"]),
    ("a time daemon that was stopped", |c| time_daemon(c, "worker-1", "inactive", "40000000"), &["fail clock.offset worker-1"]),
    ("a time daemon that runs", |c| time_daemon(c, "worker-1", "active", "40000000"), &[]),
    ("a time daemon that has never run", |c| time_daemon(c, "worker-1", "inactive", "0"), &[]),
    ("no clock", |c| c.instead("worker-0 clock", "date: not found\n"), &["unknown clock.offset worker-0"]),
    (
        "a key is readable by others",
        |c| {
            c.edit(
                "controller-1 probe",
                "files",
                "8180 0 0 42 /etc/etcd/pki/peer-key.pem",
                "81a4 0 0 42 /etc/etcd/pki/peer-key.pem",
            )
        },
        &["fail files.secret controller-1"],
    ),
    (
        "a kubeconfig is someone else's",
        |c| {
            c.edit(
                "worker-1 probe",
                "files",
                "8180 0 0 42 /etc/kubernetes/kubelet.kubeconfig",
                "8180 1000 0 42 /etc/kubernetes/kubelet.kubeconfig",
            )
        },
        &["fail files.secret worker-1"],
    ),
    (
        "an unplanned key lies about",
        |c| {
            c.edit(
                "controller-1 probe",
                "files",
                "81a4 0 0 42 /etc/hosts",
                "81a4 0 0 42 /etc/hosts\n81a4 0 0 9 /etc/etcd/pki/old-key.pem",
            )
        },
        &["fail files.secret controller-1"],
    ),
    (
        "a file is missing",
        |c| {
            c.edit(
                "worker-0 probe",
                "files",
                "81a4 0 0 42 /etc/hosts\n",
                "stat: cannot statx '/etc/hosts': No such file or directory\n",
            )
        },
        &["fail files.seed worker-0"],
    ),
    (
        "a key is missing",
        |c| c.edit("controller-1 probe", "files", "8180 0 0 42 /etc/etcd/pki/peer-key.pem\n", ""),
        &["fail files.seed controller-1", "unknown files.secret controller-1"],
    ),
    (
        "a file is empty",
        |c| c.edit("worker-0 probe", "files", "81a4 0 0 42 /etc/hosts", "81a4 0 0 0 /etc/hosts"),
        &["fail files.seed worker-0"],
    ),
    ("a unit was stopped", |c| down(c, "controller-1", "kube-scheduler"), &["fail unit.kube-scheduler controller-1"]),
    (
        "a unit keeps restarting",
        |c| unit(c, "worker-0", "kubelet", "NRestarts=0", "NRestarts=7", "=40000000", "=298000000"),
        &["fail unit.kubelet worker-0"],
    ),
    (
        "a unit restarted just now",
        |c| unit(c, "worker-0", "kubelet", "NRestarts=0", "NRestarts=1", "=40000000", "=298000000"),
        &["unknown unit.kubelet worker-0"],
    ),
    (
        "a unit restarts every minute, and is up",
        |c| unit(c, "worker-0", "kubelet", "NRestarts=0", "NRestarts=7", "=40000000", "=263000000"),
        &[],
    ),
    ("a unit restarted long ago", |c| unit(c, "worker-0", "kubelet", "NRestarts=0", "NRestarts=7", "", ""), &[]),
    (
        "a unit is unknown to systemd",
        |c| {
            unit(
                c,
                "worker-0",
                "kube-proxy",
                "LoadState=loaded",
                "LoadState=not-found",
                "ActiveState=active",
                "ActiveState=inactive",
            )
        },
        &["fail unit.kube-proxy worker-0"],
    ),
    (
        "some other unit failed",
        |c| c.exit("worker-0 probe", "failed", 0, "x.service loaded failed failed Something\n"),
        &["fail units.failed worker-0"],
    ),
    (
        "cloud-init had errors",
        |c| c.edit("worker-0 probe", "state", r#""errors":[]"#, r#""errors":["('write_files', ValueError())"]"#),
        &["fail boot.finished worker-0"],
    ),
    (
        "cloud-init is not through",
        |c| c.edit("worker-0 probe", "state", "/run/cloud-init/result.json:", "grep: /run/cloud-init/result.json: No such file"),
        &["fail boot.finished worker-0"],
    ),
    ("still booting", |c| c.edit("worker-0 probe", "system", "running", "starting"), &["fail boot.finished worker-0"]),
    (
        "the wrong machine",
        |c| c.edit("worker-0 probe", "state", "hostname:worker-0", "hostname:worker-1"),
        &["fail boot.finished worker-0"],
    ),
    // certificates
    (
        "a certificate expired",
        |c| c.edit("controller-2 probe", "certs", ":etcd-peer@controller-2", ":etcd-peer@controller-2 EXPIRED"),
        &["fail certs.node controller-2"],
    ),
    (
        "a certificate is missing",
        |c| c.edit("controller-2 probe", "certs", "/etc/etcd/pki/peer.pem:", "grep: /etc/etcd/pki/peer.pem:"),
        &["fail certs.node controller-2"],
    ),
    (
        "one node trusts another CA",
        |c| c.edit("worker-1 probe", "certs", ":kubernetes-ca", ":mallory-ca"),
        &["fail certs.node worker-1", "fail certs.ca"],
    ),
    (
        "no certificates from one",
        |c| c.drop_section("worker-1 probe", "certs"),
        &["unknown certs.node worker-1", "unknown certs.ca"],
    ),
    // answers that are none
    (
        "something else answers at etcd's port",
        |c| {
            c.edit("controller-0 probe", "etcd", "{\"header\"", "<html>");
            c.edit("controller-0 probe", "etcd-write", "{\"header\"", "<html>");
        },
        &[
            "fail etcd.status controller-0",
            "unknown etcd.members",
            "unknown etcd.learners",
            "unknown etcd.leader",
            "fail etcd.write controller-0",
            "fail etcd.read controller-0",
            "unknown etcd.hash",
            "unknown etcd.alarms",
        ],
    ),
    (
        "a garbled etcd section",
        |c| c.exit("controller-0 probe", "etcd", 0, "{\"header\":\u{fffd}"),
        &[
            "unknown etcd.status controller-0",
            "unknown etcd.members",
            "unknown etcd.learners",
            "unknown etcd.leader",
            "unknown etcd.hash",
            "unknown etcd.alarms",
        ],
    ),
    ("an unwritten section", |c| c.drop_section("worker-0 probe", "units"), WORKER_0_UNITS),
    ("a section that failed", |c| c.exit("worker-0 probe", "units", 124, ""), WORKER_0_UNITS),
    ("a garbage section", |c| c.exit("worker-0 probe", "units", 0, "\u{fffd}\u{fffd} no units here\n=\n\n\n="), WORKER_0_UNITS),
    ("a flooded section", |c| c.exit("worker-0 probe", "units", 0, &"Id=kubelet.service\n".repeat(100_000)), WORKER_0_UNITS),
    ("an empty probe", |c| c.instead("worker-0 probe", ""), WORKER_0_ALL),
    ("a probe of garbage", |c| c.instead("worker-0 probe", [0xff; 5000]), WORKER_0_ALL),
    ("a probe that floods", |c| c.instead("worker-0 probe", vec![b'x'; 6 << 20]), WORKER_0_ALL),
    (
        "a probe that hangs",
        |c| {
            let error =
                GuestError::Deadline { node: node("worker-0"), command: "bash -s".to_owned(), after: Duration::from_secs(30) };
            c.instead.insert("worker-0 probe".to_owned(), Err(error));
        },
        WORKER_0_ALL,
    ),
    (
        "one API server gives no answer",
        |c| c.instead("controller-0 api", ""),
        // The others know as much.
        &[],
    ),
    (
        "no API server gives an answer",
        |c| (0..3).for_each(|i| c.instead(&format!("controller-{i} api"), "")),
        &[
            "unknown lease.kube-controller-manager",
            "unknown lease.kube-scheduler",
            "unknown workers.ready worker-0",
            "unknown pods.witness worker-0",
            "unknown pods.logs worker-0",
            "unknown pods.exec worker-0",
            "unknown pods.network worker-0",
            "unknown pods.service worker-0",
            "unknown pods.dns worker-0",
            "unknown workers.ready worker-1",
            "unknown pods.witness worker-1",
            "unknown pods.logs worker-1",
            "unknown pods.exec worker-1",
            "unknown pods.network worker-1",
            "unknown pods.service worker-1",
            "unknown pods.dns worker-1",
            "unknown workers.expected",
        ],
    ),
    // machines that are gone
    (
        "another machine answers at a worker's address",
        |c| {
            let error = GuestError::HostKey {
                node: node("worker-0"),
                addr: "192.168.77.101:22".to_owned(),
                seen: "SHA256:seen".to_owned(),
                pinned: "SHA256:pinned".to_owned(),
            };
            c.instead.insert("worker-0 clock".to_owned(), Err(error));
        },
        &worker_0_gone("fail ssh.host-key worker-0"),
    ),
    ("a worker is off", |c| c.dead("worker-0"), &worker_0_gone("fail ssh.reachable worker-0")),
];

/// A worker that cannot be reached: its own line fails, everything asked of it is unknown. (Its pod is asked through the
/// control planes, and still answers here.)
const fn worker_0_gone(first: &'static str) -> [&'static str; 13] {
    let mut all = [""; 13];
    all[0] = first;
    let mut i = 0;
    while i < WORKER_0_ALL.len() {
        // The clock comes between units and files.
        let at = if i < 6 { i + 1 } else { i + 2 };
        all[at] = WORKER_0_ALL[i];
        i += 1;
    }
    all[7] = "unknown clock.offset worker-0";
    all
}

const WORKER_0_UNITS: &[&str] = &[
    "unknown unit.containerd worker-0",
    "unknown unit.ktcw-pod-egress worker-0",
    "unknown unit.kubelet worker-0",
    "unknown unit.kube-proxy worker-0",
];

const WORKER_0_ALL: &[&str] = &[
    "unknown boot.finished worker-0",
    "unknown units.failed worker-0",
    "unknown unit.containerd worker-0",
    "unknown unit.ktcw-pod-egress worker-0",
    "unknown unit.kubelet worker-0",
    "unknown unit.kube-proxy worker-0",
    "unknown files.seed worker-0",
    "unknown files.secret worker-0",
    "unknown apiserver.reach worker-0",
    "unknown certs.node worker-0",
    "unknown certs.ca",
];

pub(super) const MEMBER_2: &str = r#",{"ID":"10238857303342113634","name":"controller-2","peerURLs":["https://192.168.77.13:2380"],"clientURLs":["https://192.168.77.13:2379"]}"#;
const SCHEDULER_RENEWED: &str = "2026-11-22T22:33:24";

fn refused(names: &[&str]) -> String {
    let line = |name: &&str| {
        format!(
            "\n=18ea7ec934afbcae= {name} 0 7 0.000 Failed to connect to 192.168.77.13 port 2379 after 0 ms: Could not connect to server\n"
        )
    };
    names.iter().map(line).collect()
}

/// systemd's word of the time daemon, which no plan has among its units.
fn time_daemon(c: &mut Cluster, on: &str, state: &str, since: &str) {
    let body = &mut c.answers.get_mut(&format!("{on} probe")).expect(on).get_mut("units").expect("units").0;
    *body += &format!(
        "\n\nId=systemd-timesyncd.service\nLoadState=loaded\nActiveState={state}\nActiveEnterTimestampMonotonic={since}\n"
    );
}

/// Edits one unit's block.
pub(super) fn unit(c: &mut Cluster, on: &str, name: &str, from: &str, to: &str, from2: &str, to2: &str) {
    let body = &mut c.answers.get_mut(&format!("{on} probe")).expect(on).get_mut("units").expect("units").0;
    let blocks = body.split("\n\n").map(|block| match block.contains(&format!("Id={name}.service")) {
        true => {
            assert!(block.contains(from) && block.contains(from2), "{block}");
            block.replace(from, to).replace(from2, to2)
        }
        false => block.to_owned(),
    });
    *body = blocks.collect::<Vec<_>>().join("\n\n");
}

pub(super) fn down(c: &mut Cluster, on: &str, name: &str) {
    unit(c, on, name, "ActiveState=active", "ActiveState=inactive", "SubState=running", "SubState=dead");
}

/// `from` gets no answer from `target`.
pub(super) fn not_ready(c: &mut Cluster, from: &str, target: &str, exit: u32) {
    let body = &mut c.answers.get_mut(&format!("{from} probe")).expect(from).get_mut("matrix").expect("matrix").0;
    let mark = format!("= {target} 200 0 ");
    let line = body.lines().find(|line| line.contains(&mark)).expect("a row").to_owned();
    *body = body.replace(&line, &format!("=18ea7ec934afbcae= {target} 0 {exit} 2.002 Failed to connect"));
}
