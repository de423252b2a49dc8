//! What may change on a cluster that exists: nodes may be added at the end of the workers; machines are not rebuilt behind one's back.
//! `up` asks before it touches anything; the answer names every difference.
//! Pure.

use super::error::CliError;
use crate::plan::Plan;
use crate::spec::Role;

/// Accepts a new plan for an existing cluster, or says what cannot change in place.
pub fn allowed(old: &Plan, new: &Plan) -> Result<(), CliError> {
    let mut problems = Vec::new();
    for node in &old.nodes {
        match new.node(&node.name) {
            None => problems.push(format!("{} would be removed", node.name)),
            Some(same) if same == node => {}
            Some(changed) => {
                let what = if changed.domain != node.domain { "its machine" } else { "its files" };
                problems.push(format!("{}: {what} would change", node.name));
            }
        }
    }
    for node in new.nodes.iter().filter(|node| old.node(&node.name).is_none() && node.role == Role::Controller) {
        problems.push(format!("{} would join a running etcd cluster", node.name));
    }
    if problems.is_empty() {
        return Ok(());
    }
    let name = &old.cluster;
    let text = format!("cluster {name} exists and cannot be changed in place:\n  {}", problems.join("\n  "));
    Err(CliError::usage(text).hint(format!("the same flags as before keep it; ktcw-vm down -c {name} removes it")))
}
