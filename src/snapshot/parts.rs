//! Which machine keeps a part of which snapshot, as libvirt says it now.
//! A machine that was made anew has the same name, UUID and plan as the one before it, and none of its snapshots: records do not show it.
//! `work` and `cli` ask before they touch anything; what is done about it they know.

use super::SnapshotError;
use super::record::Name;
use crate::life::Machines;
use crate::spec::NodeName;
use std::collections::{BTreeMap, BTreeSet};

/// What each machine of a cluster keeps; one that is not there keeps nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts(BTreeMap<NodeName, BTreeSet<String>>);

impl Parts {
    /// Nodes whose machines have no part in that snapshot: without them it is no moment of the cluster.
    pub fn lacking(&self, name: &Name) -> Vec<NodeName> {
        self.0.iter().filter(|(_, kept)| !kept.contains(name.as_str())).map(|(node, _)| node.clone()).collect()
    }

    /// All names, each once.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.values().flatten().map(String::as_str).collect()
    }
}

impl FromIterator<(NodeName, BTreeSet<String>)> for Parts {
    fn from_iter<I: IntoIterator<Item = (NodeName, BTreeSet<String>)>>(all: I) -> Parts {
        Parts(all.into_iter().collect())
    }
}

/// Asks all machines.
pub async fn parts(machines: &Machines) -> Result<Parts, SnapshotError> {
    let there = machines.power().await?;
    let (defined, absent): (Vec<_>, Vec<_>) = machines.nodes(None).into_iter().partition(|node| there.get(&node.name).is_some());
    let kept = machines.each(defined, |host, domain, mark| host.snapshots(domain, mark)).await?;
    let kept = kept.into_iter().map(|(node, (names, _))| (node, names.into_iter().collect()));
    Ok(kept.chain(absent.into_iter().map(|node| (node.name, BTreeSet::new()))).collect())
}

/// Refuses a snapshot that not every machine has a part in.
pub async fn complete(machines: &Machines, name: &Name) -> Result<(), SnapshotError> {
    let nodes = parts(machines).await?.lacking(name);
    if nodes.is_empty() {
        return Ok(());
    }
    Err(SnapshotError::Lacking { cluster: machines.plan.cluster.clone(), name: name.clone(), nodes })
}

/// `worker-1, worker-2`
pub fn listed(nodes: &[NodeName]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
