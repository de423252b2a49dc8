//! What is known of a cluster at one moment, and the difference between two moments in words.
//! `cli top` fills it as answers come, each in its own time; `frame` shows it.
//! Pure: it has no clock, times are told.

use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Events that are kept.
const EVENTS: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    pub cluster: String,
    /// The API's virtual address.
    pub vip: String,
    pub at: Timestamp,
    pub nodes: Vec<Node>,
    /// Lease name → holder; `None`: nobody was named by an API that answers, or none did.
    pub leases: BTreeMap<String, Option<String>>,
    /// Faults of drills and the lab that are in force, as the cluster's directory has them.
    pub open: Vec<String>,
    pub events: VecDeque<(Timestamp, String)>,
}

/// An answer, silence, or no question.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heard<T> {
    /// Not asked yet, or of a machine that does not run.
    #[default]
    Unasked,
    Said(T),
    Silent,
}

impl<T> Heard<T> {
    pub fn said(&self) -> Option<&T> {
        match self {
            Heard::Said(answer) => Some(answer),
            _ => None,
        }
    }
}

/// How well a node is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Unwell,
    /// Something was not asked yet, or libvirt does not say whether its machine runs.
    Unknown,
    Well,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    pub name: String,
    pub member: bool,
    pub control_plane: bool,
    /// libvirt's word for the machine; empty: not known.
    pub machine: String,
    /// Units and systemd's states of them.
    pub units: Heard<BTreeMap<String, String>>,
    pub holds_vip: bool,
    pub etcd: Heard<Etcd>,
    /// API server: ready after so many milliseconds, or what it said instead.
    pub api: Heard<Result<u64, String>>,
    /// Workers: Ready, says the API.
    pub ready: Heard<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Etcd {
    pub leads: bool,
    pub learner: bool,
    /// It follows somebody, or leads.
    pub follows: bool,
    pub term: u64,
    pub index: u64,
    pub db_bytes: i64,
    pub errors: Vec<String>,
}

impl Node {
    pub fn runs(&self) -> bool {
        self.machine == "running"
    }

    /// Of a machine that does not run nothing is known any more.
    pub fn stands_still(&mut self) {
        self.units = Heard::Unasked;
        self.holds_vip = false;
        self.etcd = Heard::Unasked;
        self.api = Heard::Unasked;
        self.ready = Heard::Unasked;
    }

    /// All that is known of it, in one.
    pub fn standing(&self) -> Standing {
        let graded = |unwell: bool, unknown: bool| match (unwell, unknown) {
            (true, _) => Standing::Unwell,
            (_, true) => Standing::Unknown,
            _ => Standing::Well,
        };
        let machine = match self.machine.as_str() {
            "running" => Standing::Well,
            "" | "?" => Standing::Unknown,
            _ => return Standing::Unwell,
        };
        let etcd = match &self.etcd {
            Heard::Said(etcd) => graded(!(etcd.errors.is_empty() && (etcd.learner || etcd.leads || etcd.follows)), false),
            etcd => graded(*etcd == Heard::Silent, self.member),
        };
        let api = match &self.api {
            Heard::Said(answer) => graded(answer.is_err(), false),
            api => graded(*api == Heard::Silent, self.control_plane),
        };
        // What it is to the API stands where it is asked: of workers.
        let ready = match &self.ready {
            Heard::Said(ready) => graded(!ready, false),
            ready => graded(false, *ready == Heard::Silent || !self.member),
        };
        let units = match &self.units {
            Heard::Said(units) => graded(units.values().any(|state| state != "active"), false),
            units => graded(*units == Heard::Silent, true),
        };
        [machine, etcd, api, ready, units].into_iter().min().unwrap_or(Standing::Unknown)
    }

    /// What etcd is on it, in a word.
    pub fn role(&self) -> &'static str {
        match (&self.etcd, self.member) {
            (_, false) => "",
            (Heard::Unasked, _) => "-",
            (Heard::Silent, _) => "silent",
            (Heard::Said(etcd), _) if etcd.learner => "learner",
            (Heard::Said(etcd), _) if etcd.leads => "LEADER",
            (Heard::Said(etcd), _) if etcd.follows => "follower",
            (Heard::Said(_), _) => "no leader",
        }
    }
}

impl State {
    /// Entries that a member has not applied which the furthest has.
    pub fn lag(&self, node: &Node) -> Option<u64> {
        let furthest = self.nodes.iter().filter_map(|node| node.etcd.said()).map(|etcd| etcd.index).max()?;
        Some(furthest.saturating_sub(node.etcd.said()?.index))
    }

    pub fn leader(&self) -> Option<&Node> {
        let leading = self.nodes.iter().filter(|node| node.etcd.said().is_some_and(|etcd| etcd.leads));
        leading.max_by_key(|node| node.etcd.said().map(|etcd| etcd.term))
    }

    pub fn vip_holder(&self) -> Option<&str> {
        self.nodes.iter().find(|node| node.holds_vip).map(|node| node.name.as_str())
    }

    /// Takes the place of `before`: its events, and what has changed since, are this one's events.
    pub fn after(mut self, before: &State) -> State {
        self.events = before.events.clone();
        for change in changes(before, &self) {
            self.events.push_back((self.at, change));
        }
        while self.events.len() > EVENTS {
            self.events.pop_front();
        }
        self
    }
}

/// What is different, in words. What was not known before has not changed.
pub fn changes(before: &State, now: &State) -> Vec<String> {
    let mut said = Vec::new();
    let (old, new) = (before.leader(), now.leader());
    let term = |node: &Node| node.etcd.said().map_or(0, |etcd| etcd.term);
    match (old, new) {
        (Some(old), Some(new)) if old.name != new.name => {
            said.push(format!("etcd: {} leads in term {}, before it {}", new.name, term(new), old.name))
        }
        (Some(old), Some(new)) if term(old) != term(new) => {
            said.push(format!("etcd: {} leads again, in term {}", new.name, term(new)))
        }
        (Some(old), None) => said.push(format!("etcd: nobody leads ({} did)", old.name)),
        (None, Some(new)) if before.nodes.iter().any(|node| node.etcd != Heard::Unasked) => {
            said.push(format!("etcd: {} leads in term {}", new.name, term(new)));
        }
        _ => {}
    }
    for now in &now.nodes {
        let Some(before) = before.nodes.iter().find(|node| node.name == now.name) else { continue };
        said.extend(node_changes(before, now));
    }
    let (old, new) = (before.vip_holder(), now.vip_holder());
    if let (Some(new), true) = (new, old != new && old.is_some()) {
        said.push(format!("the API's address is on {new}, before on {}", old.unwrap_or("nobody")));
    }
    for (lease, holder) in &now.leases {
        if let (Some(Some(old)), Some(new)) = (before.leases.get(lease), holder)
            && old != new
        {
            said.push(format!("{lease}: {new} leads, before it {old}"));
        }
    }
    said.extend(now.open.iter().filter(|open| !before.open.contains(open)).map(|open| format!("in force: {open}")));
    said.extend(before.open.iter().filter(|open| !now.open.contains(open)).map(|open| format!("over: {open}")));
    said
}

fn node_changes(before: &Node, now: &Node) -> Vec<String> {
    let mut said = Vec::new();
    let name = &now.name;
    if before.machine != now.machine && !before.machine.is_empty() {
        said.push(format!("{name}: the machine is {}, it was {}", now.machine, before.machine));
    }
    match (&before.etcd, &now.etcd) {
        (Heard::Said(_), Heard::Silent) => said.push(format!("{name}: etcd is silent")),
        (Heard::Silent, Heard::Said(_)) => said.push(format!("{name}: etcd answers again")),
        (Heard::Said(before), Heard::Said(now)) => {
            said.extend(
                now.errors.iter().filter(|error| !before.errors.contains(error)).map(|error| format!("{name}: etcd: {error}")),
            );
        }
        _ => {}
    }
    let up = |api: &Heard<Result<u64, String>>| match api {
        Heard::Unasked => None,
        Heard::Silent => Some(false),
        Heard::Said(answer) => Some(answer.is_ok()),
    };
    match (up(&before.api), up(&now.api)) {
        (Some(true), Some(false)) => said.push(format!("{name}: the API server is not ready")),
        (Some(false), Some(true)) => said.push(format!("{name}: the API server is ready")),
        _ => {}
    }
    if let (Some(was), Some(is)) = (before.ready.said(), now.ready.said())
        && was != is
    {
        said.push(format!("{name}: the node is {}Ready", if *is { "" } else { "not " }));
    }
    if let (Some(before), Some(now)) = (before.units.said(), now.units.said()) {
        for (unit, state) in now {
            if let Some(old) = before.get(unit)
                && old != state
            {
                said.push(format!("{name}: {unit} is {state}, it was {old}"));
            }
        }
    }
    said
}
