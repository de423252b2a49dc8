//! Everything that was seen and done during a run, as one value: requests, samples, watches, marks, proofs, readings afterwards.
//! `run` makes it, `judge` turns it into a verdict, reports draw it; it can be saved and judged again.
//! It holds no opinion: nothing in it says pass or fail.

use super::act::Claim;
use super::catalogue::Drill;
use super::checker::Restored;
use super::clock::At;
use super::etcd::{Endpoint, Listed, Status};
use super::history::{Change, Member, Op};
use super::injector::{Environment, Leftover, ProcessSeen, Proof};
use super::kube::KubeRecord;
use super::script::Script;
use super::target::{Chosen, ClusterView, Id};
use super::windows::Gap;
use crate::spec::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// A member's answer to "how are you", or its silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    pub member: Member,
    pub sent: At,
    pub at: At,
    pub status: Option<Status>,
    pub error: Option<String>,
}

/// What one watch on one member delivered, in the order of arrival. A new connection goes on where the last one ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WatchLog {
    pub member: Member,
    /// First revision that was asked for.
    pub from: i64,
    pub changes: Vec<Change>,
    pub connections: u32,
    /// Why it could not go on: history compacted under it.
    pub broken: Option<String>,
}

/// The moments that divide a run. Later ones stay at zero in a run that was cut short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Marks {
    /// Load began.
    pub baseline: At,
    /// The first act of the fault began, and the last ended.
    pub inject: At,
    pub injected: At,
    /// All claims that could be looked at had been seen.
    pub proven: At,
    /// The first act of the heal began, and the last ended.
    pub heal: At,
    pub healed: At,
    /// Every member follows one leader again.
    pub settled: At,
    /// Load ended.
    pub end: At,
}

/// Something that was done, for the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Note {
    pub at: At,
    pub text: String,
}

/// A claim, looked at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Looked {
    pub at: At,
    pub claim: Claim,
    /// Just after the injection, or just before the heal.
    pub still: bool,
    pub proof: Proof,
}

/// A baseline is so many writes of each writer long, where those take longer than the drill wishes.
pub const BASELINE_BEATS: u32 = 20;

/// How fast the cluster was before the fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Baseline {
    pub writes: usize,
    pub acked: usize,
    #[schemars(with = "u64")]
    #[serde(with = "micros")]
    pub p50: Duration,
    #[schemars(with = "u64")]
    #[serde(with = "micros")]
    pub p99: Duration,
    /// Between two writes of one writer, as paced.
    #[schemars(with = "u64")]
    #[serde(with = "micros")]
    pub interval: Duration,
    /// Between two questions to one member for its status, as paced.
    #[schemars(with = "u64")]
    #[serde(with = "micros")]
    pub sampling: Duration,
}

/// Durations as whole microseconds.
pub mod micros {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;
    pub fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_micros)
    }
}

/// Where the final log of changes came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogSource {
    /// History replayed after the run.
    Replay,
    /// A reading of all keys, each written once.
    Keys,
    /// The watches of the run: history was compacted meanwhile.
    Watches,
    /// None could be had.
    Missing(String),
}

/// One member's hash of its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hashed {
    pub member: Member,
    pub hash: Result<(u32, i64), String>,
}

/// Readings after the load has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct After {
    /// Revision at which hashes were taken, and the last round of them.
    pub hash_revision: i64,
    pub hashes: Vec<Hashed>,
    /// Each member's list of members.
    pub lists: Vec<Result<Vec<Listed>, String>>,
    pub alarms: Result<Vec<(Id, String)>, String>,
    pub alarming_logs: Result<Vec<String>, String>,
    /// What the heal left behind.
    pub leftovers: Result<Vec<Leftover>, String>,
    pub log: Vec<Change>,
    pub log_source: LogSource,
    /// Of the store, when the log was read: up to here the log is whole. 0: nobody noted it, and its last change has to do.
    #[serde(default)]
    pub log_revision: i64,
    /// Ids and processes of the members afterwards (empty: it could not be found out).
    pub ids: Vec<Option<Id>>,
    pub incarnations: Vec<Option<String>>,
    pub processes: Result<Vec<ProcessSeen>, String>,
}

impl Default for After {
    fn default() -> After {
        let not = || "not looked at".to_owned();
        After {
            hash_revision: 0,
            hashes: vec![],
            lists: vec![],
            alarms: Err(not()),
            alarming_logs: Err(not()),
            leftovers: Err(not()),
            log: vec![],
            log_source: LogSource::Missing(not()),
            log_revision: 0,
            ids: vec![],
            incarnations: vec![],
            processes: Err(not()),
        }
    }
}

/// One run of one drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    pub run: String,
    /// Wall-clock time of the start, for people; nothing is computed with it.
    pub started: String,
    pub drill: Drill,
    pub seed: u64,
    pub chosen: Chosen,
    pub script: Script,
    pub environment: Environment,
    pub members: Vec<Endpoint>,
    pub before: ClusterView,
    pub incarnations: Vec<Option<String>>,
    /// Processes beside etcd; `Err`: they could not be looked at.
    pub processes: Result<Vec<ProcessSeen>, String>,
    pub baseline: Baseline,
    pub marks: Marks,
    pub notes: Vec<Note>,
    pub looked: Vec<Looked>,
    pub ops: Vec<Op>,
    pub samples: Vec<Sample>,
    pub watches: Vec<WatchLog>,
    pub restored: Option<Restored>,
    pub kube: Option<KubeRecord>,
    /// Whether Kubernetes was as before within its time after the heal; `None`: the load leaves the API alone, or it was not awaited.
    #[serde(default)]
    pub kube_back: Option<Result<(), String>>,
    pub after: After,
    /// When the observer itself did not run: a busy or suspended host. A gap that touches one is not the cluster's.
    pub stalls: Vec<Gap>,
    /// Why the run did not go through all phases.
    pub aborted: Option<String>,
}

impl Record {
    /// Indices of the targets among the members.
    pub fn target_members(&self) -> Vec<Member> {
        let of = |node: &NodeName| self.members.iter().position(|member| member.node == *node);
        self.chosen.nodes.iter().filter_map(of).collect()
    }
    /// Nodes on which anything may have happened: the targets, and whatever the script touches, be it to heal.
    pub fn touched(&self) -> BTreeSet<NodeName> {
        let mut all = self.script.touches();
        all.extend(self.chosen.nodes.iter().cloned());
        all
    }
    /// Which boot a machine was in before the fault, and which at the end, as its member's process or another of its processes told.
    pub fn boots(&self, node: &NodeName) -> [Option<&str>; 2] {
        let member = self.members.iter().position(|member| member.node == *node);
        let before = boot(node, member, &self.incarnations, &self.processes);
        [before, boot(node, member, &self.after.incarnations, &self.after.processes)]
    }
    pub fn member_name(&self, member: Member) -> String {
        self.members.get(member).map_or_else(|| format!("member {member}"), |m| m.node.to_string())
    }
    /// Acknowledged writes in order of their acknowledgement.
    pub fn acked_writes(&self) -> Vec<&Op> {
        let mut acked: Vec<&Op> = self.ops.iter().filter(|op| op.is_write() && op.acked()).collect();
        acked.sort_by_key(|op| op.ret);
        acked
    }
}

fn boot<'a>(
    node: &NodeName,
    member: Option<Member>,
    members: &'a [Option<String>],
    processes: &'a Result<Vec<ProcessSeen>, String>,
) -> Option<&'a str> {
    let seen = match member {
        Some(member) => members.get(member)?.as_ref()?,
        None => &processes.as_ref().ok()?.iter().find(|process| process.node == *node)?.incarnation,
    };
    seen.split_whitespace().next()
}
