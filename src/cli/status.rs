//! `status` and `list`: what is there now, at a glance.
//! One short script a node over SSH, two leases from the API, libvirt's states; a missing answer is shown as such.
//! It judges nothing: that is `verify`.

use super::args::{Format, Global, Output};
use super::error::CliError;
use super::session::{self, Session};
use super::{exit, golden, render};
use crate::api::ApiError;
use crate::guest::{Cmd, Guest};
use crate::host::libvirt::LibvirtHost;
use crate::host::{DomainState, Host, HostSeen, blocking};
use crate::life::power::{Power, Whole, word};
use crate::plan::{ELECTIONS, NodePlan, Plan, lease_holder};
use crate::said::one_line;
use crate::spec::Role;
use crate::store::{self, ClusterDir};
use comfy_table::{Table, presets};
use futures::future::join_all;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Serialize)]
struct Status {
    cluster: String,
    api: String,
    /// `running`, `paused`, `off`, or so many of each.
    machines: Whole,
    /// Taken down, with only its golden snapshot left.
    golden_only: bool,
    /// Node that holds the virtual address; empty: nobody; `None`: nobody was found, and a controller gave no answer.
    vip_holder: Option<String>,
    nodes: Vec<NodeStatus>,
    /// Lease name → holder, for the control loops that elect a leader; empty: nobody; `None`: no answer from the API.
    leases: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Serialize)]
struct NodeStatus {
    name: String,
    role: String,
    address: String,
    machine: Option<DomainState>,
    ssh: bool,
    /// Unit → systemd's state.
    units: BTreeMap<String, String>,
    etcd: Option<EtcdStatus>,
    /// Of a worker, when the API answers.
    kubernetes_ready: Option<bool>,
}

impl NodeStatus {
    /// A node that was not asked, or has not answered.
    fn of(node: &NodePlan) -> NodeStatus {
        NodeStatus {
            name: node.name.to_string(),
            role: match (node.role, node.control_plane) {
                (Role::Controller, true) => "etcd, control plane".to_owned(),
                (Role::Controller, false) => "etcd".to_owned(),
                (Role::Worker, _) => WORKER.to_owned(),
            },
            address: node.ip.to_string(),
            machine: None,
            ssh: false,
            units: BTreeMap::new(),
            etcd: None,
            kubernetes_ready: None,
        }
    }

    fn runs(&self) -> bool {
        self.machine == Some(DomainState::Running)
    }
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct EtcdStatus {
    leader: bool,
    term: u64,
    revision: u64,
    db_bytes: u64,
}

const PATIENCE: Duration = Duration::from_secs(5);
const WORKER: &str = "worker";

pub async fn status(global: &Global, output: &Output) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let plan = &session.plan;
    let host = session::connect_to(global, &session.dir)?;
    let seen = blocking(move || host.observe()).await?;
    let power = Power::of(plan, &seen);
    let guests = session.guests()?;
    let api = session.api()?;
    let patience = PATIENCE * if plan.timers.staged { 6 } else { 1 };

    // Who sleeps is not asked: the answer would be its deadline.
    let awake = power.0.iter().any(|(_, state)| *state == Some(DomainState::Running));
    let nodes = join_all(plan.nodes.iter().map(|node| {
        let asked = power.is_running(&node.name);
        let guests = &guests;
        async move { if asked { ask(node, &**guests, patience).await } else { (NodeStatus::of(node), Some(false)) } }
    }));
    let lease = |name: &'static str| {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}");
        let api = &api;
        async move {
            if !awake {
                return (name.to_owned(), None);
            }
            (name.to_owned(), holder(api.get_json(plan.network.vip, &path, patience).await))
        }
    };
    let readiness = join_all(plan.nodes.iter().map(|node| {
        let api = &api;
        async move {
            match node.role {
                Role::Worker if awake => ready(api.node_ready(plan.network.vip, &node.name, patience).await),
                _ => None,
            }
        }
    }));
    let leases = join_all(ELECTIONS.map(lease));
    let (mut nodes, leases, readiness) = tokio::join!(nodes, leases, readiness);
    let mut holders = Vec::new();
    for ((node, (status, holds_vip)), ready) in plan.nodes.iter().zip(&mut nodes).zip(readiness) {
        status.machine = power.get(&node.name);
        status.kubernetes_ready = ready;
        if node.control_plane {
            holders.push((status.name.as_str(), *holds_vip));
        }
    }
    let vip_holder = holder_of(&holders);
    let status = Status {
        cluster: plan.cluster.to_string(),
        api: format!("https://{}:6443", plan.network.vip),
        machines: power.whole(),
        golden_only: golden::is_down(&session.dir.history()?),
        vip_holder,
        nodes: nodes.into_iter().map(|(status, _)| status).collect(),
        leases: leases.into_iter().collect(),
    };
    match output.output.unwrap_or(global.format) {
        Format::Json => render::print_line(&serde_json::to_string_pretty(&status).map_err(CliError::failed)?),
        Format::Text => render::print(&text(&status)),
    }
    Ok(exit::OK)
}

/// Whether a node is Ready: a node that the API does not know is not, and without an answer that is about it nothing is known.
fn ready(answer: Result<(), ApiError>) -> Option<bool> {
    match answer {
        Ok(()) => Some(true),
        Err(ApiError::NotYet { .. } | ApiError::Status { status: 404, .. }) => Some(false),
        Err(_) => None,
    }
}

/// Who holds a lease; empty: nobody does, or there is none.
fn holder(lease: Result<serde_json::Value, ApiError>) -> Option<String> {
    match lease {
        Ok(lease) => {
            let holder = lease.pointer("/spec/holderIdentity").and_then(|holder| holder.as_str());
            Some(one_line(lease_holder(holder.unwrap_or_default())))
        }
        Err(ApiError::Status { status: 404, .. }) => Some(String::new()),
        Err(_) => None,
    }
}

/// Which of those that can hold the virtual address does; `None` as its answer: it gave none. Empty: nobody does.
fn holder_of(nodes: &[(&str, Option<bool>)]) -> Option<String> {
    match nodes.iter().rev().find(|(_, holds)| *holds == Some(true)) {
        Some((name, _)) => Some((*name).to_owned()),
        None => nodes.iter().all(|(_, holds)| holds.is_some()).then(String::new),
    }
}

/// Units, on controllers the member's own status, and whether it holds the virtual address; `None`: no answer to that.
async fn ask(node: &NodePlan, guests: &dyn Guest, patience: Duration) -> (NodeStatus, Option<bool>) {
    let mut script = format!("systemctl is-active {} | paste -sd' '\nip -4 -br addr show dev eth0\n", node.units.join(" "));
    if node.role == Role::Controller {
        script.push_str(&format!("ETCDCTL_ENDPOINTS=https://{}:2379 etcdctl endpoint status -w json\n", node.ip));
    }
    let output = guests.run(&node.name, Cmd::script(script, patience)).await.ok();
    let text = output.map(|output| output.stdout_text()).unwrap_or_default();
    let mut lines = text.lines();
    let states = lines.next().unwrap_or_default().split_whitespace();
    let units = node.units.iter().cloned().zip(states.map(one_line)).collect();
    let addresses = lines.next().filter(|line| line.starts_with("eth0"));
    let holds_vip = addresses.map(|line| line.split_whitespace().any(|address| address.ends_with("/32")));
    let etcd = lines.next().and_then(etcd_status);
    let status = NodeStatus { ssh: !text.is_empty(), units, etcd, ..NodeStatus::of(node) };
    (status, holds_vip)
}

/// `etcdctl endpoint status -w json`: a list with one entry.
fn etcd_status(text: &str) -> Option<EtcdStatus> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let status = value.pointer("/0/Status")?;
    let number = |pointer: &str| status.pointer(pointer).and_then(serde_json::Value::as_u64);
    let (leader, own) = (number("/leader")?, number("/header/member_id")?);
    Some(EtcdStatus {
        leader: leader == own,
        term: number("/raftTerm")?,
        revision: number("/header/revision")?,
        db_bytes: number("/dbSize").unwrap_or(0),
    })
}

fn text(status: &Status) -> String {
    let mut table = table(["node", "role", "address", "machine", "etcd", "units"]);
    for node in &status.nodes {
        let machine = word(node.machine).to_owned();
        let etcd = match &node.etcd {
            Some(etcd) if etcd.leader => format!("leader, term {}", etcd.term),
            Some(etcd) => format!("follower, term {}", etcd.term),
            None if node.role.starts_with("etcd") && node.runs() => "no answer".to_owned(),
            None => String::new(),
        };
        let off: Vec<String> = node.units.iter().filter(|(_, s)| *s != "active").map(|(u, s)| format!("{u} {s}")).collect();
        let units = match (node.ssh, off.is_empty()) {
            (false, _) if !node.runs() => String::new(),
            (false, _) => "no answer".to_owned(),
            (true, true) => format!("{} active", node.units.len()),
            (true, false) => off.join(", "),
        };
        let ready = match node.kubernetes_ready {
            Some(true) => ", Ready",
            Some(false) if node.runs() => ", not Ready",
            None if node.role == WORKER && node.runs() => ", no answer from the API",
            _ => "",
        };
        table.add_row([&node.name, &node.role, &node.address, &machine, &etcd, &format!("{units}{ready}")]);
    }
    let holder = or_nobody(status.vip_holder.as_deref(), "nobody that answers");
    let mut out = format!("cluster {}  {}  (held by {holder})\n", status.cluster, status.api);
    let way_back = if status.golden_only { Some("up") } else { status.machines.way_back() };
    if let Some(verb) = way_back {
        out.push_str(&format!("machines: {}; ktcw-vm {verb} -c {} lets it run\n", status.machines, status.cluster));
    }
    out.push_str(&format!("{table}\n"));
    for (lease, holder) in &status.leases {
        out.push_str(&format!("{lease}: {}\n", or_nobody(holder.as_deref(), "no answer")));
    }
    out
}

fn or_nobody<'a>(holder: Option<&'a str>, unknown: &'a str) -> &'a str {
    match holder {
        None => unknown,
        Some("") => "nobody",
        Some(holder) => holder,
    }
}

pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

#[derive(Debug, Serialize)]
struct ListedCluster {
    name: String,
    etcd: u8,
    workers: u8,
    api: Option<String>,
    /// Running machines, when libvirt answers.
    running: Option<usize>,
    /// All machines in one word, when libvirt answers.
    machines: Option<Whole>,
    created: Option<String>,
    problem: Option<String>,
}

/// All clusters of the state directory.
pub async fn list(global: &Global, output: &Output) -> Result<u8, CliError> {
    let parent = session::parent(global)?;
    let found = store::list(&parent)?;
    // A libvirt that several clusters live in is asked once.
    let mut asked: BTreeMap<Option<String>, Option<HostSeen>> = BTreeMap::new();
    let mut seen = |dir: &ClusterDir| {
        let uri = global.connect.as_deref().or(dir.libvirt()).map(str::to_owned);
        let ask = || LibvirtHost::connect(uri.as_deref()).ok().and_then(|host| host.observe().ok());
        asked.entry(uri.clone()).or_insert_with(ask).clone()
    };
    let rows: Vec<ListedCluster> = found
        .into_iter()
        .map(|listed| match listed.opened {
            Ok(dir) => {
                let plan: Option<Plan> = dir.load_plan().ok().flatten();
                let power = plan.as_ref().zip(seen(&dir)).map(|(plan, seen)| Power::of(plan, &seen));
                let running = |power: &Power| power.0.iter().filter(|(_, state)| *state == Some(DomainState::Running)).count();
                ListedCluster {
                    name: listed.name.to_string(),
                    etcd: dir.spec().etcd,
                    workers: dir.spec().workers,
                    api: plan.as_ref().map(|p| format!("https://{}:6443", p.network.vip)),
                    running: power.as_ref().map(running),
                    machines: power.map(|power| power.whole()),
                    created: Some(dir.created().strftime("%Y-%m-%d %H:%M").to_string()),
                    problem: None,
                }
            }
            Err(error) => ListedCluster {
                name: listed.name.to_string(),
                etcd: 0,
                workers: 0,
                api: None,
                running: None,
                machines: None,
                created: None,
                problem: Some(error.to_string()),
            },
        })
        .collect();
    if output.output.unwrap_or(global.format) == Format::Json {
        render::print_line(&serde_json::to_string_pretty(&rows).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    if rows.is_empty() {
        render::print_line(&format!("no clusters in {}", parent.display()));
        return Ok(exit::OK);
    }
    let mut table = table(["cluster", "machines", "state", "API", "created"]);
    for row in rows {
        let running = row.machines.map_or_else(|| "?".to_owned(), |whole| whole.to_string());
        let note = row.problem.or(row.api).unwrap_or_else(|| "not planned yet".to_owned());
        table.add_row([row.name, format!("{} + {}", row.etcd, row.workers), running, note, row.created.unwrap_or_default()]);
    }
    render::print_line(&table.to_string());
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Accel, samples};

    #[test]
    fn the_leader_is_the_member_that_names_itself() {
        let text = |leader| {
            format!(
                r#"[{{"Endpoint":"https://x:2379","Status":{{"header":{{"cluster_id":1,"member_id":7,"revision":42,"raft_term":3}},"version":"3.6.16","dbSize":4096,"leader":{leader},"raftIndex":9,"raftTerm":3}}}}]"#
            )
        };
        assert_eq!(etcd_status(&text(7)), Some(EtcdStatus { leader: true, term: 3, revision: 42, db_bytes: 4096 }));
        assert_eq!(etcd_status(&text(8)).map(|s| s.leader), Some(false));
        assert_eq!(etcd_status("[]"), None);
        assert_eq!(etcd_status("Error: context deadline exceeded"), None);
    }

    fn planned() -> Plan {
        samples::plan("ktcw", 3, 1, Accel::Tcg)
    }

    #[test]
    fn an_api_that_does_not_answer_denies_nothing() {
        let address = std::net::Ipv4Addr::new(192, 168, 77, 10);
        let silent = || ApiError::NoAnswer { address, reason: "timed out".to_owned() };
        let refused = |status| ApiError::Status { address, status, body: "no".to_owned() };
        assert_eq!(ready(Ok(())), Some(true));
        assert_eq!(ready(Err(ApiError::NotYet { what: "not Ready: m".to_owned() })), Some(false));
        assert_eq!(ready(Err(refused(404))), Some(false), "it is not registered");
        assert_eq!((ready(Err(silent())), ready(Err(refused(503)))), (None, None));

        let lease = |identity: &str| Ok(serde_json::json!({ "spec": { "holderIdentity": identity } }));
        assert_eq!(holder(lease("controller-1_0a1b")).as_deref(), Some("controller-1"));
        assert_eq!(holder(lease("")).as_deref(), Some(""));
        assert_eq!(holder(Ok(serde_json::json!({ "spec": {} }))).as_deref(), Some(""));
        assert_eq!(holder(Err(refused(404))).as_deref(), Some(""));
        assert_eq!((holder(Err(silent())), holder(Err(refused(500)))), (None, None));
    }

    #[tokio::test]
    async fn nobody_holds_the_address_only_when_all_have_answered() {
        let plan = planned();
        let [first, second, ..] = plan.nodes.as_slice() else { panic!("{:?}", plan.nodes) };
        let line = |address: &str| crate::guest::fake::Reply::ok(format!("active\neth0 UP {address}\n"));
        let silent = second.name.clone();
        let guests = crate::guest::fake::FakeGuests::new().with("is-active", move |node, _| match *node == silent {
            true => crate::guest::fake::Reply::unreachable(node),
            false => line("192.168.77.11/24 192.168.77.10/32"),
        });
        let (status, holds) = ask(first, &guests, PATIENCE).await;
        assert_eq!((status.ssh, holds), (true, Some(true)));
        let (status, holds) = ask(second, &guests, PATIENCE).await;
        assert_eq!((status.ssh, holds), (false, None));
        for cut in ["active\n", "active\n[{\"Endpoint\":\"https://x:2379\"}]\n"] {
            let guests = crate::guest::fake::FakeGuests::new().on("is-active", crate::guest::fake::Reply::ok(cut));
            assert_eq!(ask(first, &guests, PATIENCE).await.1, None, "{cut}");
        }
        assert_eq!(holder_of(&[("a", Some(false)), ("b", Some(true)), ("c", None)]).as_deref(), Some("b"));
        assert_eq!(holder_of(&[("a", Some(false)), ("b", Some(false))]).as_deref(), Some(""));
        assert_eq!(holder_of(&[("a", Some(false)), ("b", None)]), None);
    }

    #[test]
    fn a_missing_answer_is_shown_as_such() {
        let plan = planned();
        let running = |node| NodeStatus { machine: Some(DomainState::Running), ..NodeStatus::of(node) };
        let mut status = Status {
            cluster: "ktcw".to_owned(),
            api: "https://192.168.77.10:6443".to_owned(),
            machines: Whole::Running,
            golden_only: false,
            vip_holder: None,
            nodes: plan.nodes.iter().map(running).collect(),
            leases: ELECTIONS.map(|name| (name.to_owned(), None)).into(),
        };
        let said = text(&status);
        assert!(said.contains("(held by nobody that answers)\n") && said.contains("kube-scheduler: no answer\n"), "{said}");
        assert_eq!(said.matches("no answer, no answer from the API").count(), 1, "{said}");
        assert!(!said.contains("nobody\n") && !said.contains("not Ready"), "{said}");
        let json = serde_json::to_value(&status).expect("JSON");
        let missing = ["/vip_holder", "/leases/kube-scheduler", "/nodes/3/kubernetes_ready"].map(|at| json.pointer(at).cloned());
        assert_eq!(missing, [const { Some(serde_json::Value::Null) }; 3]);

        status.vip_holder = Some(String::new());
        status.leases = ELECTIONS.map(|name| (name.to_owned(), Some(String::new()))).into();
        status.nodes.iter_mut().filter(|node| node.role == WORKER).for_each(|node| node.kubernetes_ready = Some(false));
        let said = text(&status);
        assert!(said.contains("(held by nobody)\n") && said.contains("kube-scheduler: nobody\n"), "{said}");
        assert!(said.contains(", not Ready") && !said.contains("from the API"), "{said}");
    }

    #[tokio::test]
    async fn a_state_that_a_node_makes_up_moves_no_cursor() {
        let plan = samples::plan("ktcw", 3, 2, Accel::Tcg);
        let node = plan.nodes.iter().find(|node| node.units.len() > 1).expect("a node with units");
        let said = format!("active \u{1b}]0;mine\u{7}{}\neth0 UP\n", "x".repeat(1 << 20));
        let guests = crate::guest::fake::FakeGuests::new().on("is-active", crate::guest::fake::Reply::ok(said));
        let (status, _) = ask(node, &guests, PATIENCE).await;
        let [first, second, ..] = node.units.as_slice() else { panic!("{:?}", node.units) };
        assert_eq!(status.units[first], "active");
        assert!(status.units[second].starts_with("]0;minexx") && status.units[second].len() < 400, "{:?}", status.units);
    }
}
