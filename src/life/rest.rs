//! Machines that a verb has put to rest: `stop` or `pause`, and none has let them go on since.
//! `drill run` and `drill heal` ask it, before they take for a fault what somebody wanted.
//! It reads the journal and nothing else: how the machines are by now, libvirt says.

use super::clocks::{PAUSE, RESUME, WAKE};
use super::stop::stopping;
use crate::plan::Plan;
use crate::spec::NodeName;
use crate::store::journal::{Entry, History, Phase};
use std::collections::BTreeSet;

/// Nodes whose machines were last stopped or paused, and not started or resumed. What was begun counts: it had been asked for.
pub fn put_to_rest(history: &History, plan: &Plan) -> BTreeSet<NodeName> {
    let mut resting = BTreeSet::new();
    for record in &history.records {
        let Entry::Step { step, node, phase: Phase::Begin, .. } = &record.entry else { continue };
        // Without a node it was all of them.
        let meant = |name: &NodeName| node.as_ref().is_none_or(|node| node == name);
        let is = |of_a_node: fn(&NodeName) -> String| node.as_ref().is_some_and(|node| *step == of_a_node(node));
        if step == PAUSE || is(stopping) {
            resting.extend(plan.nodes.iter().map(|node| &node.name).filter(|name| meant(name)).cloned());
        } else if step == RESUME || step == WAKE || is(starting) {
            resting.retain(|name| !meant(name));
        }
    }
    resting
}

/// As `apply` calls the step that switches a machine on.
fn starting(node: &NodeName) -> String {
    format!("start {node}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Accel, samples};
    use crate::store::journal::{self, Journal};

    #[test]
    fn what_was_stopped_or_paused_rests_until_it_is_let_go_on() {
        let plan = samples::plan("lab", 3, 1, Accel::Tcg);
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("journal.jsonl");
        let (journal, _) = Journal::open(&path, uuid::Uuid::from_u128(1), "stop").expect("opens");
        let (one, worker) = (NodeName::controller(1), NodeName::worker(0));
        let resting = || -> Vec<String> {
            let history = journal::read(&path).expect("reads");
            put_to_rest(&history, &plan).iter().map(ToString::to_string).collect()
        };
        let done = |step: &str, node: Option<&NodeName>| {
            journal.begin(step, node).and_then(|()| journal.done(step, node)).expect("written");
        };
        assert_eq!(resting(), Vec::<String>::new());
        // Cut off, and asked for all the same.
        journal.begin("stop controller-1", Some(&one)).expect("written");
        done("stop worker-0", Some(&worker));
        assert_eq!(resting(), ["controller-1", "worker-0"]);
        done("ssh worker-0", Some(&worker));
        done("start worker-0", Some(&worker));
        assert_eq!(resting(), ["controller-1"]);
        done(PAUSE, None);
        done(RESUME, Some(&one));
        assert_eq!(resting(), ["controller-0", "controller-2", "worker-0"]);
        done(WAKE, None);
        assert_eq!(resting(), Vec::<String>::new());
    }

    /// A name that only `apply` knows, and that is read here.
    #[test]
    fn a_machine_that_is_off_is_started_by_the_step_that_is_looked_for() {
        let plan = samples::plan("lab", 1, 0, Accel::Tcg);
        let steps = crate::apply::steps(&plan, &crate::apply::Inventory::default());
        let node = NodeName::controller(0);
        assert!(steps.iter().any(|step| step.id == starting(&node) && step.node.as_ref() == Some(&node)));
    }
}
