//! Names that are safe in every place they end up: XML, YAML, units, file names, DNS.
//! Parsed once at the door; the rest of the program holds the types.
//! The allow-list is the point: nothing outside `[a-z0-9-]` ever enters.

use crate::near::nearest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A cluster's name: `[a-z][a-z0-9-]{0,30}`, not ending in `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// Accepts a name or says what would be accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut chars = text.chars();
        let first = chars.next().is_some_and(|c| c.is_ascii_lowercase());
        let rest = chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if first && rest && text.len() <= 31 && !text.ends_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            let shown: String = text.chars().take(40).collect();
            let dots = if text.chars().count() > 40 { "…" } else { "" };
            Err(format!(
                "{shown:?}{dots} is not a cluster name; accepted: a lower-case letter, then up to 30 of a-z, 0-9 and '-', \
                 not ending in '-' (for example \"lab-2\")"
            ))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> String {
        name.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An etcd member; the first `control_planes` of them run the control plane too.
    Controller,
    Worker,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Controller => "controller",
            Role::Worker => "worker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node's name: `controller-<i>` or `worker-<i>`; its role and index are part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName {
    role: Role,
    index: u8,
}

impl NodeName {
    pub fn new(role: Role, index: u8) -> Self {
        Self { role, index }
    }
    pub fn controller(index: u8) -> Self {
        Self::new(Role::Controller, index)
    }
    pub fn worker(index: u8) -> Self {
        Self::new(Role::Worker, index)
    }
    pub fn role(&self) -> Role {
        self.role
    }
    pub fn index(&self) -> u8 {
        self.index
    }
    /// Accepts `controller-0`, `worker-12`, … without leading zeros.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown: String = text.chars().take(40).collect();
            let meant = Self::meant(text).map_or_else(String::new, |name| format!("; did you mean {name}?"));
            format!("{shown:?} is not a node name; accepted: controller-<n> or worker-<n>{meant}")
        };
        let (role, index) = text.split_once('-').ok_or_else(wrong)?;
        let role = match role {
            "controller" => Role::Controller,
            "worker" => Role::Worker,
            _ => return Err(wrong()),
        };
        let number: u8 = index.parse().map_err(|_| wrong())?;
        if number.to_string() != index {
            return Err(wrong());
        }
        Ok(Self::new(role, number))
    }

    /// Whose name is written so: a role that is mistyped, or a dash that is missing, before a good number.
    fn meant(text: &str) -> Option<Self> {
        let word = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let index: u8 = text.strip_prefix(word)?.parse().ok()?;
        let role = nearest(word.trim_end_matches('-'), [Role::Controller, Role::Worker].map(Role::as_str))?;
        let role = if role == Role::Worker.as_str() { Role::Worker } else { Role::Controller };
        // A number with a zero before it may be another one by mistake.
        (text == format!("{word}{index}")).then(|| Self::new(role, index))
    }
}

impl TryFrom<String> for NodeName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.to_string()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_an_allow_list() {
        for good in ["k", "ktcw", "lab-2", "a23456789012345678901234567890b"] {
            assert!(ClusterName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(300);
        for bad in ["", "2lab", "Lab", "a/b", "../x", "é", "a_b", "a b", "a-", "$(x)", &long, "a234567890123456789012345678901b"]
        {
            let said = ClusterName::parse(bad).expect_err(bad);
            assert!(said.contains("accepted"), "{said}");
            assert!(said.len() < 300, "a message never repeats 300 characters of input");
        }
    }

    #[test]
    fn node_names_parse_back_and_nothing_else_does() {
        for name in [NodeName::controller(0), NodeName::worker(49)] {
            assert_eq!(NodeName::parse(&name.to_string()), Ok(name));
        }
        for bad in ["controller", "controller-", "controller-01", "worker--1", "node-0", "worker-256", "worker-1/../x"] {
            assert!(NodeName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mistyped_node_is_told_whose_name_is_near() {
        let said = |text: &str| NodeName::parse(text).expect_err(text);
        for (text, meant) in [("controler-0", "controller-0"), ("wroker-12", "worker-12"), ("controller1", "controller-1")] {
            assert!(said(text).ends_with(&format!("; did you mean {meant}?")), "{}", said(text));
        }
        for text in ["node-1", "master-0", "controller-01", "worker-256", "controller-0;reboot", "controller-", "é-1", "7", ""] {
            assert!(said(text).ends_with("accepted: controller-<n> or worker-<n>"), "{}", said(text));
        }
    }
}
