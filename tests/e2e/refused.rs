//! What every port of every node says to those who have no certificate, or another authority's, or only plain text: asked from this
//! computer and from other nodes. Ports are those that nodes listen on, not those that we think they do.

use crate::rig::{Rig, command, step};
use std::collections::BTreeSet;

/// Who asks.
#[derive(Clone, Copy, PartialEq)]
enum From<'a> {
    Here,
    Node(&'a str),
}

/// What must come back.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// Somebody listens, and ends the conversation when no certificate that it takes is shown.
    NoHandshake,
    /// HTTP says who may not.
    Status(&'static [&'static str]),
    /// Nobody listens.
    Closed,
}
use Answer::{Closed, NoHandshake, Status};

/// curl: could not connect, or not in time.
const NOBODY: [&str; 2] = ["7", "28"];

/// What may be listened on beyond a node itself.
const OF_CONTROLLERS: [u16; 4] = [22, 2379, 2380, 6443];
const OF_WORKERS: [u16; 2] = [22, 10250];
/// What elsewhere is served in plain text, or to everybody.
const ELSEWHERE: [u16; 7] = [2381, 8080, 10248, 10249, 10255, 10256, 10257];

pub fn whoever_has_no_certificate(rig: &Rig) {
    step("ports: only those that are planned, and nothing of them without a certificate of the right authority");
    let nodes = nodes(rig);
    for (name, _) in &nodes {
        let planned: &[u16] = if controller(name) { &OF_CONTROLLERS } else { &OF_WORKERS };
        assert_eq!(listening(rig, name), planned.iter().copied().collect(), "{name} listens on");
    }
    for from in [From::Here, From::Node("worker-0"), From::Node("controller-0")] {
        let mut wanted = Vec::new();
        for (name, ip) in nodes.iter().filter(|(name, _)| from != From::Node(name)) {
            wanted.extend(ELSEWHERE.map(|port| (format!("http://{ip}:{port}/metrics"), Closed)));
            if controller(name) {
                for port in [2379, 2380] {
                    wanted.push((format!("https://{ip}:{port}/version"), NoHandshake));
                    wanted.push((format!("http://{ip}:{port}/version"), Status(&["000", "400"])));
                }
                wanted.push((format!("https://{ip}:6443/api/v1/secrets"), Status(&["401", "403"])));
                wanted.push((format!("http://{ip}:6443/api/v1/secrets"), Status(&["000", "400"])));
            } else {
                for path in ["pods", "metrics", "configz", "containerLogs/kube-system/coredns/coredns"] {
                    wanted.push((format!("https://{ip}:10250/{path}"), Status(&["401"])));
                }
                wanted.push((format!("http://{ip}:10250/pods"), Status(&["000", "400"])));
            }
        }
        let urls: Vec<&str> = wanted.iter().map(|(url, _)| url.as_str()).collect();
        let said = ask(rig, from, &urls, "");
        for ((url, answer), (status, exit)) in wanted.iter().zip(&said) {
            let about = format!("{url}: HTTP {status}, curl's exit {exit}, wanted {answer:?}");
            let heard = !NOBODY.contains(&exit.as_str());
            match answer {
                Closed => assert!(!heard, "{about}"),
                NoHandshake => assert!(heard && status == "000" && exit != "0", "{about}"),
                Status(accepted) => assert!(heard && accepted.contains(&status.as_str()), "{about}"),
            }
        }
        step(&format!("{} requests refused", said.len()));
    }
    the_wrong_authority(rig, &nodes);
    passwords(&nodes);
}

/// A certificate of Kubernetes' authority is none to etcd, and the right one opens the same port: it was not just shut.
fn the_wrong_authority(rig: &Rig, nodes: &[(String, String)]) {
    let identity = |id: &str| {
        let file = |end: &str| rig.dir().join("pki").join(format!("{id}{end}")).display().to_string();
        let (cert, key) = (file(".pem"), file("-key.pem"));
        assert!(std::path::Path::new(&key).exists(), "{key}");
        format!("--cert '{cert}' --key '{key}'")
    };
    let ip = &nodes[0].1;
    let (etcd, kubelet) = (format!("https://{ip}:2379/version"), format!("https://{}:10250/healthz", nodes[4].1));
    let status = |url: &str, id: &str| ask(rig, From::Here, &[url], &identity(id)).remove(0);
    let (other, exit) = status(&etcd, "admin");
    assert!(other == "000" && exit != "0" && !NOBODY.contains(&exit.as_str()), "etcd to Kubernetes' admin: {other} {exit}");
    assert_eq!(status(&etcd, "etcd-admin"), ("200".to_owned(), "0".to_owned()), "etcd to its own");
    let (other, _) = status(&kubelet, "etcd-admin");
    assert_ne!(other, "200", "a kubelet to etcd's admin");
    assert_eq!(status(&kubelet, "admin").0, "200", "a kubelet to Kubernetes' admin");
}

/// sshd names what it would take: keys, and nothing else.
fn passwords(nodes: &[(String, String)]) {
    for (name, ip) in nodes {
        let root = format!("root@{ip}");
        let options = ["BatchMode=no", "NumberOfPasswordPrompts=0", "PubkeyAuthentication=no", "StrictHostKeyChecking=no"];
        let mut words: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
        words.extend(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10", "-F", "/dev/null", &root, "true"]);
        let ran = command("ssh", &words);
        assert!(ran.code == 255 && ran.err.contains("Permission denied (publickey)."), "{name}: {} {}", ran.code, ran.err);
    }
}

fn controller(name: &str) -> bool {
    name.starts_with("controller")
}

/// Names and addresses, in the plan's order: controllers first.
fn nodes(rig: &Rig) -> Vec<(String, String)> {
    let plan = rig.plan();
    let nodes = plan["nodes"].as_array().expect("nodes");
    let text = |node: &serde_json::Value, key: &str| node[key].as_str().expect("text").to_owned();
    nodes.iter().map(|node| (text(node, "name"), text(node, "ip"))).collect()
}

/// TCP ports on which a node listens for others than itself. Pods listen in their own namespaces.
fn listening(rig: &Rig, node: &str) -> BTreeSet<u16> {
    let told = rig.on(node, "ss -Hltn | awk '{ print $4 }'");
    let sockets = told.lines().filter(|socket| !socket.starts_with("127.") && !socket.starts_with("[::1]"));
    sockets.map(|socket| socket.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")).collect()
}

/// HTTP's status (`000`: none) and curl's exit for each, in order.
fn ask(rig: &Rig, from: From<'_>, urls: &[&str], identity: &str) -> Vec<(String, String)> {
    let one = |url: &&str| {
        format!("curl -sk --http1.1 --max-time 10 {identity} -o /dev/null -w '%{{http_code}}' '{url}'; echo \" $?\"")
    };
    let script = urls.iter().map(one).collect::<Vec<_>>().join("\n");
    let told = match from {
        From::Here => command("bash", &["-c", &script]).exits(0).out,
        From::Node(node) => rig.on(node, &script),
    };
    let answers: Vec<(String, String)> = told
        .lines()
        .map(|line| line.split_once(' ').expect("two words"))
        .map(|(status, exit)| (status.to_owned(), exit.to_owned()))
        .collect();
    assert_eq!(answers.len(), urls.len(), "{told}");
    answers
}
