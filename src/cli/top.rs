//! `ktcw-vm top`: a live view of the cluster on the whole terminal, or one picture of it as plain text.
//! Every source is asked by a task of its own, at most once a second and one question at a time, so that a dead machine delays nobody.
//! What is shown and what counts as an event, `top` knows.

use super::args::{Format, Global, Top};
use super::error::CliError;
use super::session::{self, Session};
use super::{exit, render, signals};
use crate::api::{Api, ApiError};
use crate::drill::etcd::{Link, Site, Status, status};
use crate::drill::target::Id;
use crate::guest::{Cmd, Guest};
use crate::host::libvirt::LibvirtHost;
use crate::host::{Host, blocking};
use crate::inject::{log, site::site};
use crate::lab::Book;
use crate::life::power::{Power, word};
use crate::plan::{ELECTIONS, NodePlan, Plan, lease_holder};
use crate::spec::Role;
use crate::store::ClusterDir;
use crate::top::screen::{Screen, Touch};
use crate::top::{Etcd, Heard, Node, State, frame, height_of_all, plain};
use futures::future::join_all;
use jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// What is asked of a machine itself costs it processes: once in so many rounds.
const SELDOM: u64 = 4;
/// `--once` without a terminal.
const WIDTH: u16 = 80;
const HEIGHT: u16 = 24;

pub async fn run(global: &Global, args: &Top) -> Result<u8, CliError> {
    let once = args.once || global.format == Format::Json;
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if !once && !terminal {
        return Err(CliError::usage("standard input and output are not a terminal").hint("ktcw-vm top --once prints one picture"));
    }
    let session = Session::open(global)?;
    let host = session::connect_to(global, &session.dir)?;
    let eyes = Arc::new(Eyes::new(&session, host)?);
    if once {
        eyes.all_once().await;
        let state = eyes.state();
        match global.format {
            Format::Json => render::print_line(&serde_json::to_string_pretty(&state).map_err(CliError::failed)?),
            Format::Text => {
                let (width, height) =
                    terminal_size::terminal_size().map_or((WIDTH, HEIGHT), |(width, height)| (width.0, height.0));
                render::print(&plain(&frame(&state, width.max(WIDTH), height.max(height_of_all(&state)))));
            }
        }
        return Ok(exit::OK);
    }
    let tasks = watch(&eyes);
    let shown = shown(&eyes).await;
    drop(tasks);
    shown
}

/// Paints once a second until somebody has seen enough.
async fn shown(eyes: &Eyes) -> Result<u8, CliError> {
    let mut stop = signals::interrupted();
    let mut screen = Screen::take().map_err(CliError::failed)?;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = eyes.state();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                last = State { at: Timestamp::now(), ..eyes.state() }.after(&last);
                screen.show(&last).map_err(CliError::failed)?;
            }
            touch = screen.touches.recv() => match touch {
                Some(Touch::Repaint) => screen.show(&last).map_err(CliError::failed)?,
                Some(Touch::Quit) | None => return Ok(exit::OK),
            },
            _ = stop.wait_for(|stop| *stop) => return Ok(exit::INTERRUPTED),
        }
    }
}

/// What is needed to look, and what was seen.
struct Eyes {
    plan: Arc<Plan>,
    host: Arc<LibvirtHost>,
    guests: Arc<dyn Guest>,
    api: Api,
    links: BTreeMap<String, Arc<Link>>,
    dir: ClusterDir,
    patience: Duration,
    seen: Mutex<State>,
}

/// A task for every source; all end with the set.
fn watch(eyes: &Arc<Eyes>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for index in 0..eyes.plan.nodes.len() {
        let eyes = eyes.clone();
        tasks.spawn(async move {
            let Some(node) = eyes.plan.nodes.get(index) else { return };
            let mut tick = pace(eyes.every());
            for round in 0_u64.. {
                tick.tick().await;
                eyes.node(node, round % SELDOM == 0).await;
            }
        });
    }
    let (machines, leases) = (eyes.clone(), eyes.clone());
    tasks.spawn(async move {
        let mut tick = pace(Duration::from_secs(1));
        loop {
            tick.tick().await;
            machines.machines().await;
            machines.open();
        }
    });
    tasks.spawn(async move {
        let mut tick = pace(leases.every() * 2);
        loop {
            tick.tick().await;
            leases.leases().await;
        }
    });
    tasks
}

fn pace(every: Duration) -> tokio::time::Interval {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

impl Eyes {
    fn new(session: &Session, host: Arc<LibvirtHost>) -> Result<Eyes, CliError> {
        let plan = session.plan.clone();
        let site: Site = site(&plan, &session.keyring, 0.0, 1).ok_or_else(|| {
            CliError::failed("etcd's CA or the host's client certificate is not in the key store")
                .hint(format!("ktcw-vm up -c {} makes what is missing", plan.cluster))
        })?;
        let links = site.members.iter().enumerate().filter_map(|(i, member)| Some((member.node.to_string(), site.link(i)?)));
        let node = |node: &NodePlan| Node {
            name: node.name.to_string(),
            member: node.role == Role::Controller,
            control_plane: node.control_plane,
            machine: String::new(),
            units: Heard::Unasked,
            holds_vip: false,
            etcd: Heard::Unasked,
            api: Heard::Unasked,
            ready: Heard::Unasked,
        };
        let seen = State {
            cluster: plan.cluster.to_string(),
            vip: plan.network.vip.to_string(),
            at: Timestamp::now(),
            nodes: plan.nodes.iter().map(node).collect(),
            leases: ELECTIONS.iter().map(|name| ((*name).to_owned(), None)).collect(),
            open: vec![],
            events: VecDeque::new(),
        };
        let patience = Duration::from_secs(if plan.timers.staged { 15 } else { 3 });
        let (links, guests, api, dir) = (links.collect(), session.guests()?, session.api()?, session.dir.clone());
        Ok(Eyes { plan, host, guests, api, links, dir, patience, seen: Mutex::new(seen) })
    }

    fn state(&self) -> State {
        self.seen().clone()
    }

    /// Each change is one short call: a panic while it was held leaves it whole.
    fn seen(&self) -> MutexGuard<'_, State> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Emulated machines are asked less often.
    fn every(&self) -> Duration {
        Duration::from_secs(if self.plan.timers.staged { 4 } else { 1 })
    }

    fn change(&self, node: &NodePlan, change: impl FnOnce(&mut Node)) {
        let name = node.name.to_string();
        let mut seen = self.seen();
        if let Some(seen) = seen.nodes.iter_mut().find(|seen| seen.name == name) {
            // It was asked while it ran: an answer that comes late is of no use.
            if asked(seen) {
                change(seen);
            }
        }
    }

    async fn all_once(&self) {
        self.machines().await;
        self.open();
        let nodes = join_all(self.plan.nodes.iter().map(|node| self.node(node, true)));
        tokio::join!(nodes, self.leases());
    }

    async fn machines(&self) {
        let host = self.host.clone();
        // A libvirt that hangs hangs this task alone, and machines are then not known.
        let asked = tokio::time::timeout(self.patience * 2, blocking(move || host.observe())).await;
        let power = asked.ok().and_then(Result::ok).map(|seen| Power::of(&self.plan, &seen));
        let mut seen = self.seen();
        for (node, shown) in self.plan.nodes.iter().zip(&mut seen.nodes) {
            shown.machine = power.as_ref().map_or_else(|| "?".to_owned(), |power| word(power.get(&node.name)).to_owned());
            if power.is_some() && !shown.runs() {
                shown.stands_still();
            }
        }
    }

    /// One round with a machine: its member, its API server, and now and then itself.
    async fn node(&self, node: &NodePlan, itself: bool) {
        let name = node.name.to_string();
        if !self.seen().nodes.iter().any(|seen| seen.name == name && asked(seen)) {
            return;
        }
        let etcd = async {
            let Some(link) = self.links.get(&name) else { return };
            let heard = status(link, self.patience).await.map_or(Heard::Silent, |status| Heard::Said(member(&status)));
            self.change(node, |seen| seen.etcd = heard);
        };
        let api = async {
            if !node.control_plane {
                return;
            }
            let asked = Instant::now();
            let heard = match self.api.ready(node.ip, self.patience).await {
                Ok(()) => Heard::Said(Ok(u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX))),
                Err(ApiError::NoAnswer { .. }) => Heard::Silent,
                Err(error) => Heard::Said(Err(error.to_string())),
            };
            self.change(node, |seen| seen.api = heard);
        };
        let ready = async {
            if node.role != Role::Worker || !itself {
                return;
            }
            let path = format!("/api/v1/nodes/{}", node.name);
            let answer = self.api.get_json(self.plan.network.vip, &path, self.patience).await;
            let heard = answer.map_or(Heard::Silent, |node| Heard::Said(is_ready(&node)));
            self.change(node, |seen| seen.ready = heard);
        };
        let ssh = async {
            if !itself {
                return;
            }
            let script = format!("systemctl is-active {} | paste -sd' '\nip -4 -br addr show dev eth0\n", node.units.join(" "));
            let output = self.guests.run(&node.name, Cmd::script(script, self.patience)).await;
            let text = output.map(|output| output.stdout_text()).unwrap_or_default();
            let mut lines = text.lines();
            let states: Vec<String> = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
            let vip = lines.next().unwrap_or_default().split_whitespace().any(|address| address.ends_with("/32"));
            self.change(node, |seen| {
                let said = states.len() == node.units.len();
                seen.units = if said { Heard::Said(node.units.iter().cloned().zip(states).collect()) } else { Heard::Silent };
                seen.holds_vip = vip;
            });
        };
        tokio::join!(etcd, api, ready, ssh);
    }

    async fn leases(&self) {
        let vip = self.plan.network.vip;
        let asked = ELECTIONS.map(|name| async move {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}");
            let lease = self.api.get_json(vip, &path, self.patience).await.ok();
            let holder = lease.and_then(|lease| lease.pointer("/spec/holderIdentity")?.as_str().map(str::to_owned));
            (name.to_owned(), holder.map(|holder| lease_holder(&holder).to_owned()))
        });
        let leases: BTreeMap<String, Option<String>> = join_all(asked).await.into_iter().collect();
        self.seen().leases = leases;
    }

    /// What the cluster's directory has open. A file that cannot be read now is read the next time.
    fn open(&self) {
        let faults = self.dir.history().ok().and_then(|history| log::open(&history).ok()).unwrap_or_default();
        let mut open: Vec<String> = faults.iter().map(|fault| format!("drill {}", fault.drill)).collect();
        let book: Option<Book> = self.dir.load_labs().ok().flatten();
        open.extend(book.and_then(|book| book.open).map(|open| format!("lab {}", open.lab.name)));
        self.seen().open = open;
    }
}

/// Who sleeps is not asked: the answer would be its deadline. Where libvirt does not say, the machine may be asked.
fn asked(node: &Node) -> bool {
    node.runs() || node.machine == "?"
}

fn member(status: &Status) -> Etcd {
    Etcd {
        leads: status.leads(),
        learner: status.learner,
        follows: status.leader != Id(0),
        term: status.term,
        index: status.index,
        db_bytes: status.db_bytes,
        errors: status.errors.clone(),
    }
}

fn is_ready(node: &serde_json::Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(|conditions| conditions.as_array());
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_its_condition_says_so() {
        let node = |status: &str| serde_json::json!({ "status": { "conditions": [{ "type": "DiskPressure", "status": "True" }, { "type": "Ready", "status": status }] } });
        assert!(is_ready(&node("True")));
        assert!(!is_ready(&node("Unknown")));
        assert!(!is_ready(&serde_json::json!({})));
    }
}
