//! Members now against members as a snapshot recorded them: the same ids, no step back, and the same content at the same revision.
//! `cli` shows the lines after a save and after a restore.
//! Pure: it asks nobody, and a member without an answer is unknown, never equal.

use crate::event::Verdict;
use crate::spec::NodeName;
use crate::verify::MemberSeen;
use serde::Serialize;
use std::collections::BTreeMap;

/// One member then and now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    pub node: NodeName,
    pub verdict: Verdict,
    pub said: String,
}

/// `now` was asked for the hash at the revision that `then` has.
pub fn compare(then: &BTreeMap<NodeName, MemberSeen>, now: &BTreeMap<NodeName, Result<MemberSeen, String>>) -> Vec<Compared> {
    let one = |(node, then): (&NodeName, &MemberSeen)| {
        let (verdict, said) = match now.get(node) {
            None => (Verdict::Unknown, "it was not asked".to_owned()),
            Some(Err(why)) => (Verdict::Unknown, why.clone()),
            Some(Ok(now)) => judge(then, now),
        };
        Compared { node: node.clone(), verdict, said }
    };
    then.iter().map(one).collect()
}

fn judge(then: &MemberSeen, now: &MemberSeen) -> (Verdict, String) {
    let mut wrong = Vec::new();
    if now.id != then.id {
        wrong.push(format!("its id was {}, now it is {}", then.id, now.id));
    }
    if now.term < then.term {
        wrong.push(format!("its term was {}, now it is {}", then.term, now.term));
    }
    if now.revision < then.revision {
        wrong.push(format!("its revision was {}, now it is {}", then.revision, now.revision));
    }
    let comparable = now.hashed == then.hashed && now.compacted == then.compacted;
    if comparable && now.hash != then.hash {
        wrong.push(format!("its hash at revision {} was {:x}, now it is {:x}", then.hashed, then.hash, now.hash));
    }
    if !wrong.is_empty() {
        return (Verdict::Fail, wrong.join("; "));
    }
    let term = match now.term - then.term {
        0 => format!("term {}", now.term),
        more => format!("term {} → {} ({more} elections since)", then.term, now.term),
    };
    let leader = if now.leader == then.leader { "same leader" } else { "another leader" };
    let hash = if comparable {
        format!("hash at revision {} the same", then.hashed)
    } else {
        format!("hash at revision {} not comparable: compacted since", then.hashed)
    };
    (Verdict::Pass, format!("member {}, {term}, {leader}, revision {} → {}, {hash}", now.id, then.revision, now.revision))
}
