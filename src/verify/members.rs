//! What each etcd member says of itself at one moment: id, leader, term, revision, and the hash of all keys at one revision.
//! `snapshot` takes it right before a save and again after a restore; two such pictures are compared there.
//! It asks every member through its own node, and judges nothing.

use super::etcd::{Hash, Status, from_probe};
use super::observe::{Answer, ask};
use super::script;
use crate::guest::Guest;
use crate::guest::clock::Clock;
use crate::plan::Plan;
use crate::spec::NodeName;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One member. Ids are hexadecimal, as etcdctl shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSeen {
    pub id: String,
    pub leader: String,
    pub term: u64,
    pub revision: i64,
    /// The revision that the hash is of.
    pub hashed: i64,
    pub hash: u64,
    /// Below it nothing is kept any more; hashes compare only where it is the same.
    pub compacted: i64,
}

/// Asks all members. `at`: the revision to hash; `None`: the newest that all of those have that answer.
pub async fn members(
    plan: &Plan,
    guest: &dyn Guest,
    now: Clock<'_>,
    at: Option<i64>,
) -> BTreeMap<NodeName, Result<MemberSeen, String>> {
    let token = format!("{:x}", now().as_nanosecond());
    let at = match at {
        Some(at) => at,
        // Revision 0 is etcd's word for the newest.
        None => {
            let all = round(plan, guest, 0, &token).await;
            all.values().filter_map(|seen| seen.as_ref().ok()).map(|seen| seen.revision).min().unwrap_or(0)
        }
    };
    round(plan, guest, at, &token).await
}

async fn round(plan: &Plan, guest: &dyn Guest, at: i64, token: &str) -> BTreeMap<NodeName, Result<MemberSeen, String>> {
    let asked = plan.controllers().map(|node| async move {
        let seen = match script::hash(plan, node, at, token) {
            Some(script) => read(&ask(plan, guest, &node.name, script, token).await, at, token),
            None => Err("it has no client certificate for etcd".to_owned()),
        };
        (node.name.clone(), seen)
    });
    join_all(asked).await.into_iter().collect()
}

fn read(answer: &Answer, at: i64, token: &str) -> Result<MemberSeen, String> {
    let answer = answer.as_ref().map_err(Clone::clone)?;
    let status: Status = from_probe(answer, "hash", "status", token)?;
    let hash: Hash = from_probe(answer, "hash", "hashkv", token)?;
    Ok(MemberSeen {
        id: format!("{:x}", status.header.member_id),
        leader: format!("{:x}", status.leader),
        term: status.raft_term,
        revision: status.header.revision,
        hashed: at,
        hash: hash.hash,
        compacted: hash.compact_revision,
    })
}
