//! What libvirt says of a cluster's machines, in one word where one word is enough: running, paused, off, or so many of each.
//! `status`, `list`, `verify` and the verbs that need all machines running ask it.
//! Pure: it reads an observation and asks nobody.

use crate::host::{DomainState, HostSeen};
use crate::plan::Plan;
use crate::spec::NodeName;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// State of every planned machine, in the plan's order; `None`: libvirt has no such domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Power(pub Vec<(NodeName, Option<DomainState>)>);

/// All machines taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whole {
    Running,
    Paused,
    Off,
    /// No machine is defined.
    Absent,
    /// Not all alike: `2 running, 1 paused`.
    Mixed(String),
}

impl Power {
    pub fn of(plan: &Plan, seen: &HostSeen) -> Power {
        let state = |name: &str| seen.domains.iter().find(|domain| domain.name == name).map(|domain| domain.state);
        Power(plan.nodes.iter().map(|node| (node.name.clone(), state(&node.domain.name))).collect())
    }

    pub fn get(&self, node: &NodeName) -> Option<DomainState> {
        self.0.iter().find(|(name, _)| name == node).and_then(|(_, state)| *state)
    }

    /// Whether any machine runs.
    pub fn runs(&self) -> bool {
        self.0.iter().any(|(_, state)| *state == Some(DomainState::Running))
    }

    /// By node; those that libvirt does not have are left out.
    pub fn states(&self) -> BTreeMap<NodeName, DomainState> {
        self.0.iter().filter_map(|(node, state)| Some((node.clone(), (*state)?))).collect()
    }

    pub fn is_running(&self, node: &NodeName) -> bool {
        self.get(node) == Some(DomainState::Running)
    }

    /// Nodes whose machines are not running, each with the word for it.
    pub fn not_running(&self) -> impl Iterator<Item = (&NodeName, &'static str)> {
        self.0.iter().filter(|(_, state)| *state != Some(DomainState::Running)).map(|(node, state)| (node, word(*state)))
    }

    pub fn whole(&self) -> Whole {
        let mut words: Vec<(&'static str, usize)> = Vec::new();
        for (_, state) in &self.0 {
            let word = word(*state);
            match words.iter_mut().find(|(known, _)| *known == word) {
                Some((_, count)) => *count += 1,
                None => words.push((word, 1)),
            }
        }
        match words.as_slice() {
            [] => Whole::Absent,
            [("running", _)] => Whole::Running,
            [("paused", _)] => Whole::Paused,
            [("off", _)] => Whole::Off,
            [("not there", _)] => Whole::Absent,
            several => Whole::Mixed(several.iter().map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// A machine's state as people say it.
pub fn word(state: Option<DomainState>) -> &'static str {
    match state {
        Some(DomainState::Running) => "running",
        Some(DomainState::Paused) => "paused",
        Some(DomainState::PausedIoError) => "paused (the host could not write its disk)",
        Some(DomainState::ShuttingDown) => "shutting down",
        Some(DomainState::ShutOff) => "off",
        Some(DomainState::Crashed) => "crashed",
        None => "not there",
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Whole::Running => "running",
            Whole::Paused => "paused",
            Whole::Off => "off",
            Whole::Absent => "not there",
            Whole::Mixed(words) => words,
        })
    }
}

impl Serialize for Whole {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Whole {
    /// The verb that makes it run again; `None` when it runs.
    pub fn way_back(&self) -> Option<&'static str> {
        match self {
            Whole::Running => None,
            Whole::Paused => Some("resume"),
            Whole::Off | Whole::Mixed(_) => Some("start"),
            Whole::Absent => Some("up"),
        }
    }
}
