//! `ktcw-vm doctor --running`: what a cluster that is kept for days will need soon, each with the command that gives it.
//! Room for etcd and on disks, days of certificates, clocks, faults, labs and work cut off, snapshots, the host's memory and disk.
//! It changes nothing; everyone is asked at once here, `judge` beside it is pure, and what could not be found out is never a pass.

mod judge;

use super::super::args::{Format, Global};
use super::super::error::CliError;
use super::super::session::{self, Session};
use super::super::{exit, lab, render};
use crate::apply;
use crate::guest::{Cmd, Guest, clock};
use crate::host::{DomainState, Host, HostFacts, PoolSeen, blocking};
use crate::lab::Book;
use crate::pki::check::Row;
use crate::plan::{Content, NodePlan};
use crate::snapshot::Record;
use crate::spec::{NodeName, Role};
use crate::store::journal::History;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State3 {
    Pass,
    Warn,
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    state: State3,
    said: String,
    /// The next thing to type, when it is no pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What one node said.
#[derive(Debug, Clone, Default, PartialEq)]
struct NodeFacts {
    /// Why it was not asked, or did not answer.
    silent: Option<String>,
    /// Seconds that its clock is ahead, and how uncertain that is.
    clock: Option<(f64, f64)>,
    /// (mount point, bytes in all, bytes used)
    disks: Vec<(String, u64, u64)>,
    /// (size of the store in bytes, members' alarms), of a controller.
    etcd: Option<Result<(u64, String), String>>,
    /// Certificates that are others than those kept here; `None`: not compared.
    others: Option<BTreeSet<String>>,
}

struct Facts {
    nodes: BTreeMap<NodeName, NodeFacts>,
    certs: Vec<Row>,
    history: History,
    labs: Book,
    host: HostFacts,
    /// MiB free where the pools are; `None`: a remote host that does not say.
    free_disk_mib: Option<u64>,
    pool: Option<PoolSeen>,
    snapshots: Vec<Record>,
}

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let facts = facts(global, &session).await?;
    let lines = judge::judge(&session.plan, &facts)?;
    let worst = lines.iter().map(|line| line.state).max().unwrap_or(State3::Fail);
    if global.format == Format::Json {
        render::print_line(&serde_json::to_string_pretty(&lines).map_err(CliError::failed)?);
    } else {
        for line in &lines {
            let sign = match line.state {
                State3::Pass => "pass",
                State3::Warn => "warn",
                State3::Fail => "fail",
            };
            let node = line.node.as_ref().map_or_else(|| "cluster".to_owned(), ToString::to_string);
            render::print_line(&format!("{sign}  {:<12} {node:<13} {}", line.what, line.said));
            if let Some(next) = &line.next {
                render::print_line(&format!("      {:<12} {:<13} → {next}", "", ""));
            }
        }
    }
    Ok(if worst == State3::Fail { exit::CHECK_FAILED } else { exit::OK })
}

async fn facts(global: &Global, session: &Session) -> Result<Facts, CliError> {
    let plan = &session.plan;
    let host = session::connect_to(global, &session.dir)?;
    let asked = host.clone();
    let (about, seen) = blocking(move || Ok((asked.facts()?, asked.observe()?))).await?;
    let guests = session.guests()?;
    let state = |node: &NodePlan| seen.domains.iter().find(|seen| seen.name == node.domain.name).map(|seen| seen.state);
    let nodes = join_all(plan.nodes.iter().map(|node| {
        let (state, guests) = (state(node), guests.clone());
        async move { (node.name.clone(), of_node(session, node, state, &*guests).await) }
    }));
    let mut nodes: BTreeMap<NodeName, NodeFacts> = nodes.await.into_iter().collect();
    let mut inventory = apply::Inventory::default();
    for (name, _) in nodes.iter().filter(|(_, node)| node.silent.is_none()) {
        inventory.nodes.entry(name.clone()).or_default().ssh = true;
    }
    let compared = apply::observe_files(plan, &*guests, &session.keyring, &mut inventory).await;
    for node in &plan.nodes {
        let certificates =
            |path: &String| node.files.iter().any(|file| file.path == *path && matches!(file.content, Content::Pki { .. }));
        if let (Some(facts), true) = (nodes.get_mut(&node.name), compared.contains(&node.name)) {
            facts.others = Some(inventory.node(&node.name).stale.into_iter().filter(certificates).collect());
        }
    }
    Ok(Facts {
        nodes,
        certs: session.keyring.list(&plan.certs, jiff::Timestamp::now()),
        history: session.dir.history()?,
        labs: lab::book(&session.dir)?,
        host: about,
        free_disk_mib: host.free_disk_mib(),
        pool: seen.pools.into_iter().find(|pool| pool.name == plan.storage.pool),
        snapshots: session.dir.load_snapshots::<Record>()?.into_iter().filter_map(|(_, record)| record.ok()).collect(),
    })
}

async fn of_node(session: &Session, node: &NodePlan, state: Option<DomainState>, guest: &dyn Guest) -> NodeFacts {
    let silent = |why: String| NodeFacts { silent: Some(why), ..NodeFacts::default() };
    if state != Some(DomainState::Running) {
        return silent(format!("its machine is {}", crate::life::power::word(state)));
    }
    let patience = Duration::from_secs(u64::from(session.plan.timers.probe_deadline_s));
    let now = jiff::Timestamp::now;
    let clock = match clock::read(guest, &node.name, &now, patience).await {
        Ok(seen) => seen.ok().map(|seen| (seen.ahead_s, seen.uncertain_s)),
        Err(error) => return silent(error.to_string()),
    };
    match guest.run(&node.name, Cmd::script(question(node), patience)).await {
        Ok(output) => {
            let mut facts = read(&output.stdout_text(), node);
            facts.clock = clock;
            facts
        }
        Err(error) => silent(error.to_string()),
    }
}

fn question(node: &NodePlan) -> String {
    let etcd = match node.role {
        Role::Worker => String::new(),
        Role::Controller => format!(
            "export ETCDCTL_ENDPOINTS=https://{}:2379 ETCDCTL_CACERT=/etc/etcd/pki/ca.pem \
             ETCDCTL_CERT=/etc/etcd/pki/client.pem ETCDCTL_KEY=/etc/etcd/pki/client-key.pem\n\
             echo \"status $(etcdctl endpoint status -w json 2>&1 | tr -d '\\n')\"\n\
             echo \"alarms $(etcdctl alarm list 2>&1 | tr '\\n' ' ')\"\n",
            node.ip
        ),
    };
    format!("df -P -B1 / /var/lib/etcd 2>/dev/null | sed -n '2,$s/^/df /p' | sort -u\n{etcd}echo end\n")
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(rename = "Status")]
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(rename = "dbSize")]
    db_size: u64,
}

/// An answer without its last line was cut off.
fn read(text: &str, node: &NodePlan) -> NodeFacts {
    let mut facts = NodeFacts::default();
    if text.lines().last() != Some("end") {
        facts.silent = Some("its answer was cut off".to_owned());
        return facts;
    }
    let mut alarms = None;
    let mut size = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("df ") {
            let words: Vec<&str> = rest.split_whitespace().collect();
            // file system, size, used, available, capacity, mount point
            if let [_, all, used, .., at] = words.as_slice()
                && let (Ok(all), Ok(used)) = (all.parse(), used.parse())
            {
                facts.disks.push(((*at).to_owned(), all, used));
            }
        } else if let Some(rest) = line.strip_prefix("status ") {
            let parsed: Result<Vec<Endpoint>, _> = serde_json::from_str(rest);
            size = Some(match parsed.ok().and_then(|all| all.into_iter().next()) {
                Some(endpoint) => Ok(endpoint.status.db_size),
                None => Err(rest.chars().take(160).collect::<String>()),
            });
        } else if let Some(rest) = line.strip_prefix("alarms ") {
            alarms = Some(rest.trim().to_owned());
        }
    }
    if node.role == Role::Controller {
        let none = || Err("etcd said nothing".to_owned());
        facts.etcd = Some(size.unwrap_or_else(none).map(|size| (size, alarms.unwrap_or_default())));
    }
    facts
}
