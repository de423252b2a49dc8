//! Changes of what the nodes make together: etcd, leases, API servers and their address, workers and their pods.

use super::{MEMBER_2, Row, down, not_ready};

pub(super) const CHANGES: &[Row] = &[
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
];

const SCHEDULER_RENEWED: &str = "2026-11-22T22:33:24";

fn refused(names: &[&str]) -> String {
    let line = |name: &&str| {
        format!(
            "\n=18ea7ec934afbcae= {name} 0 7 0.000 Failed to connect to 192.168.77.13 port 2379 after 0 ms: Could not connect to server\n"
        )
    };
    names.iter().map(line).collect()
}
