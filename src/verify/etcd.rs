//! Judges etcd: one membership, one leader, one term, one history, reads and writes through every member.
//! `verify` calls `judge` with what the members said through their own ports; `status` can use the parsed answers too.
//! It compares with the plan and asks nobody anything.

use super::curl::{self, Reply};
use super::observe::{Answer, Observed};
use super::report::{Check, Finding, Group, list};
use super::sections::Sections;
use super::{hint, script};
use crate::event::Verdict;
use crate::plan::{NodePlan, Plan};
use crate::spec::NodeName;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};

/// The gateway prints 64-bit numbers as text, 32-bit ones as numbers, and leaves zeroes out.
fn number<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + std::str::FromStr<Err: std::fmt::Display>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Number(T),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Header {
    #[serde(deserialize_with = "number")]
    pub cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub member_id: u64,
    #[serde(default, deserialize_with = "number")]
    pub revision: i64,
    #[serde(default, deserialize_with = "number")]
    pub raft_term: u64,
}

/// `/v3/maintenance/status`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    pub header: Header,
    pub version: String,
    /// Member id, 0 without a leader.
    #[serde(default, deserialize_with = "number")]
    pub leader: u64,
    #[serde(default, rename = "raftTerm", deserialize_with = "number")]
    pub raft_term: u64,
    #[serde(default, rename = "dbSize", deserialize_with = "number")]
    pub db_size: u64,
    #[serde(default)]
    pub errors: Vec<String>,
    #[serde(default, rename = "isLearner")]
    pub is_learner: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    #[serde(rename = "ID", deserialize_with = "number")]
    pub id: u64,
    /// Empty until the member has started once.
    #[serde(default)]
    pub name: String,
    #[serde(default, rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    #[serde(default, rename = "isLearner")]
    pub is_learner: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Members {
    pub header: Header,
    #[serde(default)]
    pub members: Vec<Member>,
}

/// `/v3/maintenance/hashkv`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Hash {
    #[serde(deserialize_with = "number")]
    pub hash: u64,
    /// -1 when nothing was ever compacted.
    #[serde(default, deserialize_with = "number")]
    pub compact_revision: i64,
    #[serde(default, deserialize_with = "number")]
    pub hash_revision: i64,
}

#[derive(Deserialize)]
struct Put {
    header: Header,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<Kv>,
}

#[derive(Deserialize)]
struct Kv {
    value: String,
    #[serde(deserialize_with = "number")]
    mod_revision: i64,
}

#[derive(Deserialize)]
struct Alarms {
    // Not optional without a header: `{}` is no answer.
    #[serde(rename = "header")]
    _header: Header,
    #[serde(default)]
    alarms: Vec<Alarm>,
}

#[derive(Deserialize)]
struct Alarm {
    #[serde(default, rename = "memberID", deserialize_with = "number")]
    member: u64,
    #[serde(default)]
    alarm: String,
}

fn parse<'de, T: Deserialize<'de>>(replies: &'de BTreeMap<String, Reply>, name: &str) -> Result<T, String> {
    let body = curl::body(replies, name)?;
    serde_json::from_str(body).map_err(|error| format!("{name} cannot be read: {error}"))
}

/// Every reply of a section; curl's own exit status says nothing that the replies do not.
fn replies(answer: &Sections, section: &str, token: &str) -> Result<BTreeMap<String, Reply>, String> {
    Ok(curl::replies(&answer.get(section)?.body, token))
}

pub(super) fn from_probe<T: for<'de> Deserialize<'de>>(
    answer: &Sections,
    section: &str,
    name: &str,
    token: &str,
) -> Result<T, String> {
    parse(&replies(answer, section, token)?, name)
}

/// The revision a member has reached, from its probe.
pub(super) fn revision(probe: &Sections, token: &str) -> Option<i64> {
    from_probe::<Status>(probe, "etcd", "status", token).ok().map(|status| status.header.revision)
}

/// The same, from a round of hashes.
pub(super) fn round_revision(answer: &Answer, token: &str) -> Option<i64> {
    from_probe::<Status>(answer.as_ref().ok()?, "hash", "status", token).ok().map(|status| status.header.revision)
}

/// Whether those that answered a round agree on hash, leader and term: if not, they may have been caught in motion.
pub(super) fn settled(round: &BTreeMap<NodeName, Answer>, token: &str) -> bool {
    let one = |answer: &Answer| {
        let answer = answer.as_ref().ok()?;
        let hash: Hash = from_probe(answer, "hash", "hashkv", token).ok()?;
        let status: Status = from_probe(answer, "hash", "status", token).ok()?;
        Some((hash, status.leader, status.raft_term))
    };
    let seen: Vec<_> = round.values().map(one).collect();
    seen.iter().all(|one| one.is_some() && one == &seen[0]) && seen.iter().flatten().all(|(_, leader, _)| *leader != 0)
}

/// What the member on one node said.
struct Seen<'a> {
    node: &'a NodePlan,
    status: Result<Status, String>,
    /// From the last round of hashes, younger than the probe's.
    late: Result<Status, String>,
    members: Result<Members, String>,
    hash: Result<Hash, String>,
    /// Why nothing at all is known: the node gave no probe.
    silent: Option<String>,
}

impl Seen<'_> {
    fn name(&self) -> &NodeName {
        &self.node.name
    }
    fn youngest(&self) -> Result<&Status, String> {
        self.late.as_ref().or(self.status.as_ref()).map_err(Clone::clone)
    }
}

pub fn judge(plan: &Plan, seen: &Observed) -> Vec<Check> {
    let all: Vec<Seen> = plan.controllers().map(|node| gather(node, seen)).collect();
    let names = member_names(&all);
    let mut checks = Vec::new();
    for one in &all {
        checks.push(status(plan, one).file(Group::Etcd, "etcd.status", Some(one.name())));
    }
    checks.push(members(plan, &all).file(Group::Etcd, "etcd.members", None));
    checks.push(learners(plan, &all).file(Group::Etcd, "etcd.learners", None));
    checks.push(leader(plan, &all, &names).file(Group::Etcd, "etcd.leader", None));
    for one in &all {
        let (write, read) = quorum(plan, one, seen);
        checks.push(write.file(Group::Etcd, "etcd.write", Some(one.name())));
        checks.push(read.file(Group::Etcd, "etcd.read", Some(one.name())));
    }
    checks.push(hashes(plan, &all, seen.rounds.last().map(|(revision, _)| *revision)).file(Group::Etcd, "etcd.hash", None));
    checks.push(alarms(plan, &all, &names, seen).file(Group::Etcd, "etcd.alarms", None));
    checks
}

fn gather<'a>(node: &'a NodePlan, seen: &Observed) -> Seen<'a> {
    let probe = seen.probe(&node.name);
    let late = match seen.rounds.last().and_then(|(_, round)| round.get(&node.name)) {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(why)) => Err(why.clone()),
        None => Err("no revision to ask for".to_owned()),
    };
    let facts = probe.and_then(|probe| replies(probe, "etcd", &seen.token));
    let asked = facts.clone().and_then(|facts| curl_said(&facts, "status"));
    Seen {
        node,
        status: facts.clone().and_then(|facts| parse(&facts, "status")),
        members: facts.and_then(|facts| parse(&facts, "members")),
        late: late.clone().and_then(|answer| from_probe(answer, "hash", "status", &seen.token)),
        hash: late.and_then(|answer| from_probe(answer, "hash", "hashkv", &seen.token)),
        silent: asked.err(),
    }
}

/// Whether a request was made and came to an end, good or bad.
fn curl_said(replies: &BTreeMap<String, Reply>, name: &str) -> Result<(), String> {
    replies.get(name).map(|_| ()).ok_or_else(|| format!("no reply to {name}"))
}

/// Member names by id, from any list.
fn member_names(all: &[Seen]) -> BTreeMap<u64, String> {
    let lists = all.iter().filter_map(|one| one.members.as_ref().ok());
    lists.flat_map(|list| &list.members).filter(|member| !member.name.is_empty()).map(|m| (m.id, m.name.clone())).collect()
}

fn called(names: &BTreeMap<u64, String>, id: u64) -> String {
    names.get(&id).cloned().unwrap_or_else(|| format!("{id:x}"))
}

fn status(plan: &Plan, one: &Seen) -> Finding {
    let logs = hint(plan, &format!("logs {} etcd", one.name()));
    match (&one.silent, &one.status) {
        (Some(why), _) => Finding::unknown(why.clone()).hint(hint(plan, &format!("ssh {}", one.name()))),
        (None, Err(why)) => Finding::fail(format!("etcd does not answer: {why}")).hint(logs),
        (None, Ok(status)) => {
            let db = status.db_size >> 10;
            let what = format!("etcd {} at revision {}, {db} KiB", status.version, status.header.revision);
            let fact = format!("{}: member {:x}, {what}, term {}", one.name(), status.header.member_id, status.raft_term);
            let planned = plan.resolved.image.versions.etcd.trim_start_matches('v');
            if status.version == planned {
                Finding::pass(what).seen([fact])
            } else {
                Finding::fail(format!("etcd is {}, planned is {planned}", status.version)).seen([fact]).hint(logs)
            }
        }
    }
}

/// Members that gave no answer to `of`, each with the reason.
fn missing<'a, T>(all: &'a [Seen<'a>], of: impl Fn(&'a Seen<'a>) -> Result<T, String>) -> Vec<(&'a NodeName, String)> {
    all.iter().filter_map(|one| Some((one.name(), of(one).err()?))).collect()
}

/// `Fail` when anything was found wrong, `Unknown` when someone did not answer, else `Pass`.
fn weigh(all: &[Seen], wrong: &[String], missing: &[(&NodeName, String)], pass: impl FnOnce() -> String) -> Finding {
    let silent = || list(missing.iter().map(|(name, _)| name));
    let finding = match (wrong, missing) {
        ([], []) => Finding::pass(pass()),
        ([], missing) if missing.len() == all.len() => Finding::unknown(format!("no answer from {}", silent())),
        ([], _) => Finding::unknown(format!("no answer from {}; the others agree", silent())),
        ([only], _) => Finding::fail(only.clone()),
        ([first, rest @ ..], _) => Finding::fail(format!("{first} (and {} more)", rest.len())),
    };
    let more = if wrong.len() > 1 { wrong } else { &[] };
    finding.seen(more.iter().cloned()).seen(missing.iter().map(|(name, why)| format!("{name}: {why}")))
}

/// The same list from everyone, and it is the planned one.
fn members(plan: &Plan, all: &[Seen]) -> Finding {
    let mut wrong: BTreeMap<String, BTreeSet<&NodeName>> = BTreeMap::new();
    let mut facts = Vec::new();
    let mut ids: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    let mut clusters = BTreeSet::new();
    for one in all {
        let Ok(seen) = &one.members else { continue };
        clusters.insert(seen.header.cluster_id);
        let shown = seen.members.iter().map(|m| format!("{}={:x}@{}", m.name, m.id, m.peer_urls.join("+")));
        facts.push(format!("{} lists {}", one.name(), shown.collect::<Vec<_>>().join(" ")));
        let mut say = |what: String| {
            wrong.entry(what).or_default().insert(one.name());
        };
        for planned in plan.controllers() {
            let url = format!("https://{}:2380", planned.ip);
            let named: Vec<&Member> = seen.members.iter().filter(|member| member.name == planned.name.to_string()).collect();
            match named.as_slice() {
                [] => say(format!("{} is not a member", planned.name)),
                // What else could make the list longer than the plan: a stranger is told below.
                [_, _, ..] => {
                    let each = named.iter().map(|member| format!("{:x} at {}", member.id, list(&member.peer_urls)));
                    say(format!("{} members are called {}: {}", named.len(), planned.name, list(each)));
                }
                [member] if member.peer_urls != [url.clone()] => {
                    say(format!("{} is a member at {} and not at {url}", planned.name, list(&member.peer_urls)));
                }
                [member] => {
                    ids.entry(&member.name).or_default().insert(member.id);
                    if planned.name == *one.name() && member.id != seen.header.member_id {
                        say(format!(
                            "{} calls itself {:x} and is {:x} in its list",
                            planned.name, seen.header.member_id, member.id
                        ));
                    }
                }
            }
        }
        let ours = |member: &&Member| plan.controllers().any(|planned| planned.name.to_string() == member.name);
        for member in seen.members.iter().filter(|member| !ours(member)) {
            let called = if member.name.is_empty() { "without a name (never started)" } else { &member.name };
            say(format!("member {:x} {called} at {} is not in the plan", member.id, list(&member.peer_urls)));
        }
    }
    let mut wrong: Vec<String> = wrong.into_iter().map(|(what, by)| format!("{what}, says {}", list(by))).collect();
    if clusters.len() > 1 {
        wrong.push(format!("the members are of {} different clusters", clusters.len()));
    }
    for (name, ids) in ids.iter().filter(|(_, ids)| ids.len() > 1) {
        wrong.push(format!("{name} has different ids: {}", list(ids.iter().map(|id| format!("{id:x}")))));
    }
    let missing = missing(all, |one| one.members.as_ref().map_err(Clone::clone));
    weigh(all, &wrong, &missing, || format!("all {} list the same {} members, as planned", all.len(), all.len()))
        .seen(facts)
        .hint(hint(plan, "etcdctl member list -w table"))
}

fn learners(plan: &Plan, all: &[Seen]) -> Finding {
    let mut learners: BTreeMap<String, BTreeSet<&NodeName>> = BTreeMap::new();
    for one in all {
        for member in one.members.iter().flat_map(|list| &list.members).filter(|member| member.is_learner) {
            let called = if member.name.is_empty() { format!("{:x}", member.id) } else { member.name.clone() };
            learners.entry(called).or_default().insert(one.name());
        }
        if one.status.as_ref().is_ok_and(|status| status.is_learner) {
            learners.entry(one.name().to_string()).or_default().insert(one.name());
        }
    }
    let wrong: Vec<_> = learners.iter().map(|(who, by)| format!("{who} is a learner, says {}", list(by))).collect();
    let missing = missing(all, |one| one.members.as_ref().map_err(Clone::clone));
    weigh(all, &wrong, &missing, || "every member votes".to_owned()).hint(hint(plan, "etcdctl member list -w table"))
}

/// One leader and one term, agreed by all.
fn leader(plan: &Plan, all: &[Seen], names: &BTreeMap<u64, String>) -> Finding {
    let mut facts = Vec::new();
    let mut said = BTreeSet::new();
    let mut without = Vec::new();
    for one in all {
        let Ok(status) = one.youngest() else { continue };
        facts.push(format!("{}: leader {}, term {}", one.name(), called(names, status.leader), status.raft_term));
        if status.leader == 0 {
            without.push(one.name());
        } else {
            said.insert((status.leader, status.raft_term));
        }
    }
    let mut wrong = Vec::new();
    if !without.is_empty() {
        wrong.push(format!("{} without a leader", list(&without)));
    }
    if said.len() > 1 {
        let views = said.iter().map(|(leader, term)| format!("{} (term {term})", called(names, *leader)));
        wrong.push(format!("the members follow different leaders or terms: {}", list(views)));
    }
    for (leader, _) in said.iter().filter(|(leader, _)| !names.is_empty() && !names.contains_key(leader)) {
        wrong.push(format!("leader {leader:x} is in no member list"));
    }
    let missing = missing(all, |one| one.youngest().map(|_| ()));
    let agreed = || match said.first() {
        Some((leader, term)) => format!("{} leads in term {term}, say all {}", called(names, *leader), all.len()),
        None => "nobody answered".to_owned(),
    };
    weigh(all, &wrong, &missing, agreed).seen(facts).hint(hint(plan, "etcdctl endpoint status -w table"))
}

/// A put and a linearizable read through this member.
fn quorum(plan: &Plan, one: &Seen, seen: &Observed) -> (Finding, Finding) {
    let logs = hint(plan, &format!("logs {} etcd", one.name()));
    let probe = seen.probe(one.name()).and_then(|probe| replies(probe, "etcd-write", &seen.token));
    let all = match probe {
        Ok(all) => all,
        Err(why) => return (Finding::unknown(why.clone()).hint(logs.clone()), Finding::unknown(why).hint(logs)),
    };
    let took = |name: &str| all.get(name).map_or(0.0, |reply| reply.seconds * 1000.0);
    let put = parse::<Put>(&all, "put");
    let write = match &put {
        Ok(put) => Finding::pass(format!("a put took {:.0} ms (revision {})", took("put"), put.header.revision)),
        Err(why) => failed(&all, "put", format!("a put failed: {why}")),
    };
    let key = format!("/ktcw/verify/{}", one.name());
    let read = match (parse::<Range>(&all, "range"), &put) {
        (Err(why), _) => failed(&all, "range", format!("a linearizable read failed: {why}")),
        (Ok(range), Ok(put)) => match range.kvs.first() {
            Some(kv) if kv.mod_revision == put.header.revision && kv.value == script::base64(&seen.token) => {
                Finding::pass(format!("a linearizable read took {:.0} ms and returned what was put", took("range")))
            }
            // Another verify put a newer value in between.
            Some(kv) if kv.mod_revision > put.header.revision => {
                Finding::pass(format!("a linearizable read took {:.0} ms and returned a newer value", took("range")))
            }
            Some(kv) => Finding::fail(format!(
                "a read after the put at revision {} returned {key} of revision {}",
                put.header.revision, kv.mod_revision
            )),
            None => Finding::fail(format!("a read after the put at revision {} did not find {key}", put.header.revision)),
        },
        (Ok(_), Err(_)) => Finding::pass(format!("a linearizable read took {:.0} ms (nothing was put)", took("range"))),
    };
    (write.hint(logs.clone()), read.hint(logs))
}

/// A request that was made and got no good answer failed; one that was not seen at all is unknown.
fn failed(all: &BTreeMap<String, Reply>, name: &str, what: String) -> Finding {
    Finding::new(if all.contains_key(name) { Verdict::Fail } else { Verdict::Unknown }, what)
}

/// The same bytes under the same revision.
fn hashes(plan: &Plan, all: &[Seen], revision: Option<i64>) -> Finding {
    let mut facts = Vec::new();
    let mut by_compaction: BTreeMap<i64, BTreeMap<u64, Vec<&NodeName>>> = BTreeMap::new();
    for one in all {
        let Ok(hash) = &one.hash else { continue };
        facts.push(format!(
            "{}: hash {:08x} of revisions {} to {}",
            one.name(),
            hash.hash,
            hash.compact_revision,
            revision.unwrap_or_default()
        ));
        by_compaction.entry(hash.compact_revision).or_default().entry(hash.hash).or_default().push(one.name());
    }
    // Hashes that start at different compactions are of different bytes and say nothing about each other.
    let mut wrong = Vec::new();
    for hashes in by_compaction.values().filter(|hashes| hashes.len() > 1) {
        let groups = hashes.iter().map(|(hash, by)| format!("{hash:08x} on {}", list(by)));
        wrong.push(format!("the members hold different data at revision {}: {}", revision.unwrap_or_default(), list(groups)));
    }
    let missing = missing(all, |one| one.hash.as_ref().map_err(Clone::clone));
    let look = hint(plan, "etcdctl endpoint hashkv -w table");
    if wrong.is_empty() && missing.is_empty() && by_compaction.len() > 1 {
        return Finding::unknown("the members were compacted at different revisions: no common hash").seen(facts).hint(look);
    }
    weigh(all, &wrong, &missing, || match by_compaction.values().flatten().next() {
        Some((hash, _)) => {
            format!("all {} hold the same data at revision {}: {hash:08x}", all.len(), revision.unwrap_or_default())
        }
        None => "nobody answered".to_owned(),
    })
    .seen(facts)
    .hint(look)
}

fn alarms(plan: &Plan, all: &[Seen], names: &BTreeMap<u64, String>, seen: &Observed) -> Finding {
    let mut wrong: BTreeMap<String, BTreeSet<&NodeName>> = BTreeMap::new();
    let mut missing = Vec::new();
    for one in all {
        // What the member remembers, and what a quorum says.
        for error in one.status.iter().flat_map(|status| &status.errors).filter(|error| error.contains("alarm:")) {
            let id = error.split_once("memberID:").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
            let what = error.split_once("alarm:").map_or(error.as_str(), |(_, what)| what).trim();
            wrong.entry(alarm(names, id.unwrap_or_default(), what)).or_default().insert(one.name());
        }
        let probe = seen.probe(one.name());
        match probe.and_then(|probe| from_probe::<Alarms>(probe, "etcd-write", "alarms", &seen.token)) {
            Ok(list) => {
                for raised in list.alarms {
                    wrong.entry(alarm(names, raised.member, &raised.alarm)).or_default().insert(one.name());
                }
            }
            Err(why) => missing.push((one.name(), why)),
        }
        if let Err(why) = &one.status
            && missing.last().is_none_or(|(name, _)| *name != one.name())
        {
            missing.push((one.name(), why.clone()));
        }
    }
    let wrong: Vec<_> = wrong.into_iter().map(|(what, by)| format!("{what}, says {}", list(by))).collect();
    weigh(all, &wrong, &missing, || "none raised".to_owned()).hint(hint(plan, "etcdctl alarm list"))
}

fn alarm(names: &BTreeMap<u64, String>, member: u64, what: &str) -> String {
    format!("alarm {} on {}", if what.is_empty() { "of no kind" } else { what }, called(names, member))
}
