//! What comes after machines go on that stood still: clocks are set, and members are compared with how they were.
//! `snapshot save`, `snapshot restore` and the golden snapshot end with it; that it was begun is in the journal until it is done.
//! It judges clocks and members only: whether the cluster is well, `verify` says.

use crate::cli::life::clocks_lines;
use crate::cli::{exit, render};
use crate::event::Verdict;
use crate::guest::Guest;
use crate::life::{self, Shift};
use crate::plan::Plan;
use crate::snapshot::compare::{Compared, compare};
use crate::spec::{ClusterName, NodeName};
use crate::store::journal::Journal;
use crate::verify::{self, MemberSeen};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// How clocks and members are once machines go on again.
pub(in crate::cli) struct After {
    clocks: Vec<(NodeName, Result<Shift, String>)>,
    pub(super) compared: Vec<Compared>,
}

/// Sets the clocks of all nodes, then asks the members until they have a leader again, or their deadline.
async fn after(plan: &Plan, guests: &dyn Guest, then: &BTreeMap<NodeName, MemberSeen>) -> After {
    let now: fn() -> Timestamp = Timestamp::now;
    let nodes: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    let clocks = life::repair(plan, guests, now, &nodes).await;
    let at = then.values().map(|member| member.hashed).next();
    let patience = Duration::from_secs(u64::from(plan.timers.etcd_deadline_s));
    let last = std::cell::RefCell::new(Vec::new());
    let asked = crate::wait::until(
        "every member answering",
        patience,
        Duration::from_millis(500),
        |_| (),
        || async {
            let compared = compare(then, &verify::members(plan, guests, &now, at).await);
            let open =
                compared.iter().find(|one| one.verdict == Verdict::Unknown).map(|one| format!("{}: {}", one.node, one.said));
            last.replace(compared);
            open.map_or(crate::wait::Seen::Ready(()), crate::wait::Seen::NotYet)
        },
    );
    // What is unknown at the end is in the last comparison.
    let _ = asked.await;
    After { clocks, compared: last.into_inner() }
}

/// The same, open in the journal until every clock is set: whoever is cut off meanwhile leaves word that they may be late.
pub(in crate::cli) async fn noted(
    journal: &Journal,
    plan: &Plan,
    guests: &dyn Guest,
    then: &BTreeMap<NodeName, MemberSeen>,
) -> After {
    let begun = journal.begin(life::CLOCKS, None);
    let after = after(plan, guests, then).await;
    let all_set = after.clocks.iter().all(|(_, shift)| shift.is_ok());
    // What cannot be written down has kept no clock from being set.
    if let Err(error) = begun.and_then(|()| if all_set { journal.done(life::CLOCKS, None) } else { Ok(()) }) {
        render::status(&error.to_string());
    }
    after
}

/// What to type where a run was cut off before they were set.
pub(in crate::cli) fn sets_clocks(cluster: &ClusterName) -> String {
    format!("ktcw-vm up -c {cluster} sets them")
}

impl After {
    pub(in crate::cli) fn lines(&self) -> Vec<String> {
        let mut lines = clocks_lines(&self.clocks);
        if self.compared.is_empty() {
            lines.push("  etcd: no member answered when it was saved, so there is nothing to compare with".to_owned());
        }
        lines.extend(self.compared.iter().map(|one| format!("  {}  etcd {}: {}", one.node, one.verdict, one.said)));
        lines
    }
    pub(super) fn shifts(&self) -> Vec<&Shift> {
        self.clocks.iter().filter_map(|(_, shift)| shift.as_ref().ok()).collect()
    }
    /// All clocks are set, and all members are as they were; of none nothing is known.
    pub(in crate::cli) fn is_well(&self) -> bool {
        !self.compared.is_empty()
            && self.clocks.iter().all(|(_, shift)| shift.is_ok())
            && self.compared.iter().all(|one| one.verdict == Verdict::Pass)
    }
    pub(super) fn code(&self) -> u8 {
        if self.is_well() { exit::OK } else { exit::CHECK_FAILED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_member_can_be_compared_nothing_is_called_well() {
        let of = |compared| After { clocks: Vec::new(), compared };
        let one = |verdict| Compared { node: NodeName::controller(0), verdict, said: String::new() };
        assert!(of(vec![one(Verdict::Pass)]).is_well());
        assert!(!of(vec![one(Verdict::Pass), one(Verdict::Unknown)]).is_well());
        assert!(!of(vec![]).is_well() && of(vec![]).lines()[0].contains("nothing to compare"));
    }
}
