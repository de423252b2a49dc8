//! The effects of `verify`: sends the probes to every node at once and gathers what came back, frames parsed and nothing judged.
//! `verify` calls `observe`; a node that does not answer costs its own deadline and delays no one else's answers.
//! It knows what depends on what (a hash needs a common revision, an exec needs a pod's name) and nothing of right or wrong.

use super::script::{self, Deadlines};
use super::sections::Sections;
use super::{etcd, workers};
use crate::guest::clock::{self, Clock, ClockSeen};
use crate::guest::{Cmd, Guest, GuestError};
use crate::plan::{NodePlan, Plan};
use crate::said::one_line;
use crate::spec::NodeName;
use futures::future::join_all;
use futures::stream::{self, FuturesUnordered, StreamExt as _};
use std::collections::BTreeMap;
use std::time::Duration;

/// A script's answer, or why there is none.
pub type Answer = Result<Sections, String>;

/// Bytes kept of one answer.
const MOST_BYTES: usize = 4 << 20;
/// `kubectl` takes some 60 MiB: no more than this many at once on a control plane.
const EXECS_AT_ONCE: usize = 3;
/// Hashes are asked for again when members were caught between two revisions or two terms.
const ROUNDS: usize = 3;

/// Whether a node could be spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    Up,
    /// Another key than the pinned one was shown.
    HostKey {
        addr: String,
        seen: String,
        pinned: String,
    },
    Down(String),
}

/// What one node said.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSeen {
    pub link: Link,
    pub clock: Result<ClockSeen, String>,
    pub probe: Answer,
    /// Control planes: what the API says.
    pub api: Option<Answer>,
}

/// A witness pod, as asked through a control plane.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSeen {
    pub via: NodeName,
    pub pod: String,
    pub answer: Answer,
}

/// Everything one run of `verify` has to go by.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Marks this run's frames, and the value it writes to etcd.
    pub token: String,
    pub nodes: BTreeMap<NodeName, NodeSeen>,
    /// The hash probes, round by round: the revision asked for and each member's answer.
    pub rounds: Vec<(i64, BTreeMap<NodeName, Answer>)>,
    /// By worker.
    pub pods: BTreeMap<NodeName, PodSeen>,
}

impl Observed {
    /// A node's probe, or why there is none.
    pub fn probe(&self, node: &NodeName) -> Result<&Sections, String> {
        match self.nodes.get(node) {
            Some(seen) => seen.probe.as_ref().map_err(Clone::clone),
            None => Err("it was not asked".to_owned()),
        }
    }
}

/// Asks everything. Takes no longer than the plan's probe deadline for each of three dependent questions.
pub async fn observe(plan: &Plan, guest: &dyn Guest, clock: Clock<'_>) -> Observed {
    let token = format!("{:x}", clock().as_nanosecond());
    // The API's answers are wanted before the rest: the pods can be asked while the probes still run.
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let nodes = join_all(plan.nodes.iter().map(|node| node_seen(plan, node, guest, clock, &token, sender.clone())));
    drop(sender);
    let pods = async {
        let api = early(plan, receiver).await;
        pods_seen(plan, guest, &api, &token).await
    };
    let members = async {
        let nodes: BTreeMap<_, _> = nodes.await.into_iter().collect();
        let rounds = rounds(plan, guest, &nodes, &token).await;
        (nodes, rounds)
    };
    let ((nodes, rounds), pods) = futures::join!(members, pods);
    Observed { token, nodes, rounds, pods }
}

async fn node_seen(
    plan: &Plan,
    node: &NodePlan,
    guest: &dyn Guest,
    clock: Clock<'_>,
    token: &str,
    early: tokio::sync::mpsc::UnboundedSender<(NodeName, Answer)>,
) -> (NodeName, NodeSeen) {
    let (link, clock) = clock_seen(plan, node, guest, clock).await;
    let reason = match &link {
        Link::Up => {
            let probe = ask(plan, guest, &node.name, script::probe(plan, node, token), token);
            let api = async {
                let answer = ask(plan, guest, &node.name, script::api(plan, node, token)?, token).await;
                let _ = early.send((node.name.clone(), answer.clone()));
                Some(answer)
            };
            let (probe, api) = futures::join!(probe, api);
            return (node.name.clone(), NodeSeen { link, clock, probe, api });
        }
        Link::HostKey { .. } => "the machine that answers is not the one we made",
        Link::Down(_) => "no SSH",
    };
    let none = || Err(reason.to_owned());
    let api = node.control_plane.then(none);
    (node.name.clone(), NodeSeen { link, clock, probe: none(), api })
}

/// The first question is the clock, alone: it needs a short round trip, and tells whether there is a way in.
pub(super) async fn clock_seen(
    plan: &Plan,
    node: &NodePlan,
    guest: &dyn Guest,
    now: Clock<'_>,
) -> (Link, Result<ClockSeen, String>) {
    match clock::read(guest, &node.name, now, Deadlines::of(plan).script).await {
        Ok(seen) => (Link::Up, seen),
        Err(GuestError::HostKey { addr, seen, pinned, .. }) => (Link::HostKey { addr, seen, pinned }, Err("no SSH".to_owned())),
        Err(error) => (Link::Down(error.to_string()), Err("no SSH".to_owned())),
    }
}

/// A script that takes too long is ended on the node, a little before we would give up: what it printed until then still counts.
pub(super) async fn ask(plan: &Plan, guest: &dyn Guest, node: &NodeName, script: String, token: &str) -> Answer {
    let deadline = Deadlines::of(plan).script;
    let line = format!("timeout -k 1 {} bash -s", deadline.as_secs() - deadline.as_secs() / 10);
    let cmd = Cmd { line, stdin: Some(script.into_bytes()), deadline, limit: MOST_BYTES };
    match guest.run(node, cmd).await {
        Ok(output) => Ok(Sections::parse(&output.stdout, token, output.truncated)),
        // Whose answer it is, everybody knows who is given it.
        Err(error) => Err(one_line(&error.of_its_node())),
    }
}

/// The API's answers as far as they are needed to go on: all of them, or after the first good one those that are not late.
async fn early(plan: &Plan, mut from: tokio::sync::mpsc::UnboundedReceiver<(NodeName, Answer)>) -> BTreeMap<NodeName, Answer> {
    let grace = Duration::from_secs(u64::from(Deadlines::of(plan).curl.connect_s));
    let mut all = BTreeMap::new();
    let mut until = None;
    loop {
        let next = match until {
            None => from.recv().await,
            Some(until) => tokio::time::timeout_at(until, from.recv()).await.ok().flatten(),
        };
        let Some((node, answer)) = next else { return all };
        if until.is_none() && workers::usable(&answer) {
            until = Some(tokio::time::Instant::now() + grace);
        }
        all.insert(node, answer);
    }
}

/// Asks each witness pod, spread over the control planes that answered.
async fn pods_seen(plan: &Plan, guest: &dyn Guest, api: &BTreeMap<NodeName, Answer>, token: &str) -> BTreeMap<NodeName, PodSeen> {
    let Some(targets) = workers::targets(plan, api, token) else { return BTreeMap::new() };
    let through: Vec<&NodePlan> = plan.control_planes().filter(|node| api.get(&node.name).is_some_and(workers::usable)).collect();
    let mut queues: Vec<Vec<_>> = through.iter().map(|_| Vec::new()).collect();
    for (i, (worker, pod)) in targets.pods.iter().enumerate() {
        let urls = targets.urls_for(worker);
        let Some(slot) = i.checked_rem(through.len()) else { break };
        let via = through[slot];
        let Some(script) = script::pod(plan, via, &pod.name, &urls, token) else { continue };
        queues[slot].push(async move {
            let answer = ask(plan, guest, &via.name, script, token).await;
            (worker.clone(), PodSeen { via: via.name.clone(), pod: pod.name.clone(), answer })
        });
    }
    let queues = queues.into_iter().map(|queue| stream::iter(queue).buffer_unordered(EXECS_AT_ONCE).collect::<Vec<_>>());
    queues.collect::<FuturesUnordered<_>>().collect::<Vec<_>>().await.into_iter().flatten().collect()
}

/// Asks all members for the hash at the lowest revision among them, again while they are caught in motion.
async fn rounds(
    plan: &Plan,
    guest: &dyn Guest,
    nodes: &BTreeMap<NodeName, NodeSeen>,
    token: &str,
) -> Vec<(i64, BTreeMap<NodeName, Answer>)> {
    let pause = Duration::from_millis(100) * Deadlines::of(plan).curl.connect_s;
    let mut rounds = Vec::new();
    let first = nodes.iter().filter_map(|(name, seen)| Some((name, etcd::revision(seen.probe.as_ref().ok()?, token)?)));
    let mut revisions: BTreeMap<NodeName, i64> = first.map(|(name, revision)| (name.clone(), revision)).collect();
    while let Some(revision) = revisions.values().copied().min() {
        let asked = plan.controllers().filter(|node| revisions.contains_key(&node.name));
        let answers = join_all(asked.filter_map(|node| {
            let script = script::hash(plan, node, revision, token)?;
            Some(async move { (node.name.clone(), ask(plan, guest, &node.name, script, token).await) })
        }));
        let answers: BTreeMap<_, _> = answers.await.into_iter().collect();
        let settled = etcd::settled(&answers, token);
        let now = answers.iter().filter_map(|(name, answer)| Some((name.clone(), etcd::round_revision(answer, token)?)));
        revisions = now.collect();
        rounds.push((revision, answers));
        if settled || rounds.len() == ROUNDS {
            break;
        }
        #[expect(clippy::disallowed_methods, reason = "the space between two rounds of one measurement, not a wait")]
        tokio::time::sleep(pause).await;
    }
    rounds
}
