//! What is written down of a snapshot: its name and place among the others, what it fits, how the members were.
//! `work` keeps records beside the machines' own snapshots; `cli` shows them.
//! Pure: whether the machines still have what a record says, it does not know.

use crate::host::HostFacts;
use crate::near::meant;
use crate::plan::Plan;
use crate::spec::NodeName;
use crate::verify::MemberSeen;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// `[a-z0-9][a-z0-9._-]{0,39}`: also a file's name and a part of one of libvirt's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub fn parse(text: &str) -> Result<Name, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let first = text.chars().next().is_some_and(fits);
        if first && text.len() <= 40 && text.chars().all(|c| fits(c) || "._-".contains(c)) {
            return Ok(Name(text.to_owned()));
        }
        let shown: String = text.chars().take(40).collect();
        Err(format!(
            "{shown:?} is not a snapshot's name; accepted: up to 40 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Name::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How far it is. Only a whole one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Making,
    Whole,
    Removing,
}

/// What a machine's memory belongs to: restored into anything else it would not run, or not be what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fits {
    pub plan_sha256: String,
    pub image_key: String,
    pub kernel_sha256: String,
    pub qemu_version: String,
    /// Whose machines it is made of; empty in records of before this was written down.
    #[serde(default)]
    pub nodes: BTreeSet<NodeName>,
}

impl Fits {
    pub fn of(plan: &Plan, facts: &HostFacts) -> Fits {
        // A plan is made of text, numbers and lists: there is nothing in it that JSON refuses.
        let text = serde_json::to_vec(plan).unwrap_or_default();
        let image = &plan.resolved.image;
        let kernel = plan.resolved.kernel.as_ref().map_or(&image.kernel_sha256, |kernel| &kernel.sha256);
        Fits {
            plan_sha256: Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect(),
            image_key: image.key.clone(),
            kernel_sha256: kernel.clone(),
            qemu_version: facts.qemu_version.clone(),
            nodes: plan.nodes.iter().map(|node| node.name.clone()).collect(),
        }
    }

    /// What stands against restoring into `now`, in words; empty: nothing.
    pub fn differs(&self, now: &Fits) -> Vec<String> {
        let short = |text: &str| text.chars().take(12).collect::<String>();
        let compare = |what: &str, then: &str, now: &str| {
            (then != now).then(|| format!("{what} was {}, now it is {}", short(then), short(now)))
        };
        let parts = [
            compare("the image", &self.image_key, &now.image_key),
            compare("the kernel", &self.kernel_sha256, &now.kernel_sha256),
            compare("QEMU", &self.qemu_version, &now.qemu_version),
        ];
        let mut all: Vec<String> = parts.into_iter().flatten().collect();
        let (came, went) = self.moved(now);
        all.extend(went.iter().map(|node| format!("{node} is not in the cluster any more")));
        all.extend(came.iter().map(|node| format!("{node} has come since")));
        // The plan holds image, kernel and nodes: said once is enough.
        if all.is_empty() && self.plan_sha256 != now.plan_sha256 {
            all.push("the plan is another: a node was added, removed or replaced since, or its files have changed".to_owned());
        }
        all
    }

    /// Nodes that came since, and those that went.
    pub fn moved(&self, now: &Fits) -> (Vec<NodeName>, Vec<NodeName>) {
        if self.nodes.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let only = |there: &BTreeSet<NodeName>, here: &BTreeSet<NodeName>| there.difference(here).cloned().collect();
        (only(&now.nodes, &self.nodes), only(&self.nodes, &now.nodes))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: Name,
    pub state: State,
    pub note: Option<String>,
    pub taken: Timestamp,
    /// The snapshot that the cluster had come from.
    pub parent: Option<Name>,
    pub fits: Fits,
    /// etcd as it was right before; a member that did not answer is missing.
    pub members: BTreeMap<NodeName, MemberSeen>,
    /// Checks that did not pass and were accepted with --force.
    pub accepted: Vec<String>,
    /// No two machines were suspended further apart than this, in microseconds.
    pub skew_at_most_us: u64,
    /// How long the machines stood still, in milliseconds.
    pub stood_ms: u64,
    /// By how much the disks grew, in bytes.
    pub bytes: u64,
}

impl Record {
    /// One that is being made now, of machines that do not stand still yet.
    pub fn begun(name: Name, fits: Fits, members: BTreeMap<NodeName, MemberSeen>, taken: Timestamp) -> Record {
        Record {
            name,
            state: State::Making,
            note: None,
            taken,
            parent: None,
            fits,
            members,
            accepted: Vec::new(),
            skew_at_most_us: 0,
            stood_ms: 0,
            bytes: 0,
        }
    }
}

/// What another set of nodes costs, for who is about to add or remove one; `None`: nothing. `but`: one that is made anew by itself.
pub fn stop_fitting(records: &[Record], but: Option<&str>) -> Option<String> {
    let whole = records.iter().filter(|record| record.state == State::Whole && Some(record.name.as_str()) != but);
    let names: Vec<&str> = whole.map(|record| record.name.as_str()).collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("1 snapshot stops fitting, being of the nodes that there are now: {one}")),
        all => Some(format!("{} snapshots stop fitting, being of the nodes that there are now: {}", all.len(), all.join(", "))),
    }
}

/// The record of that name, or a message that names those there are.
pub fn chosen<'a>(records: &'a [Record], name: &Name) -> Result<&'a Record, String> {
    let whole = || records.iter().filter(|record| record.state == State::Whole);
    whole().find(|record| record.name == *name).ok_or_else(|| {
        let known: Vec<&str> = whole().map(|record| record.name.as_str()).collect();
        match known.as_slice() {
            [] => format!("there is no snapshot {name}; there is none at all"),
            [one] => format!("there is no snapshot {name}; there is {one}"),
            known => {
                let meant = meant(name.as_str(), known.iter().copied());
                format!("there is no snapshot {name}; there are {}{meant}", known.join(", "))
            }
        }
    })
}

/// Records in the order of a tree, each with its depth: children after their parents, siblings by age. One whose parent is
/// gone stands at the root.
pub fn tree(records: &[Record]) -> Vec<(usize, &Record)> {
    let names: BTreeSet<&Name> = records.iter().map(|record| &record.name).collect();
    let mut children: BTreeMap<Option<&Name>, Vec<&Record>> = BTreeMap::new();
    for record in records {
        let parent = record.parent.as_ref().filter(|parent| names.contains(parent) && **parent != record.name);
        children.entry(parent).or_default().push(record);
    }
    children.values_mut().for_each(|list| list.sort_by_key(|record| record.taken));
    let mut order = Vec::new();
    let mut stack: Vec<(usize, &Record)> = children.remove(&None).into_iter().flatten().rev().map(|root| (0, root)).collect();
    while let Some((depth, record)) = stack.pop() {
        order.push((depth, record));
        stack.extend(children.remove(&Some(&record.name)).into_iter().flatten().rev().map(|child| (depth + 1, child)));
    }
    order
}
