//! Changes of one machine: its clock, files, units and certificates, answers that are none, and that it is gone.

use super::{Row, down, unit};
use crate::guest::GuestError;
use crate::verify::tests::{Cluster, node};
use std::time::Duration;

pub(super) const CHANGES: &[Row] = &[
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

/// systemd's word of the time daemon, which no plan has among its units.
fn time_daemon(c: &mut Cluster, on: &str, state: &str, since: &str) {
    let body = &mut c.answers.get_mut(&format!("{on} probe")).expect(on).get_mut("units").expect("units").0;
    *body += &format!(
        "\n\nId=systemd-timesyncd.service\nLoadState=loaded\nActiveState={state}\nActiveEnterTimestampMonotonic={since}\n"
    );
}
