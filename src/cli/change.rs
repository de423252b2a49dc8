//! What may change on a cluster that exists: nodes may be added; machines are not rebuilt behind one's back.
//! `up` asks before it touches anything; the answer names every difference.
//! Pure.

use super::error::CliError;
use crate::plan::Plan;
use crate::spec::{ClusterSpec, KernelSpec, NodeName};

const FILES: &str = "its files would change";

/// Accepts a new plan for an existing cluster, or says what cannot change in place.
///
/// `kept` is the specification as last written down: whom it does not count any more is on the way out already.
pub fn allowed(old: &Plan, kept: &ClusterSpec, new: &Plan) -> Result<(), CliError> {
    let mut problems = settings(old, new);
    let leaves = |node: &NodeName| !kept.nodes_of(node.role()).contains(node);
    let members = |plan: &Plan| plan.controllers().map(|node| node.name.clone()).collect::<Vec<_>>();
    // Who the other members are stands in files of many nodes: those are taken to them when one comes or goes.
    let moved = members(old) != members(new) || old.spec.lineage.joined != new.spec.lineage.joined;
    let mut removed = Vec::new();
    for node in &old.nodes {
        match new.node(&node.name) {
            None if leaves(&node.name) => {}
            None => removed.push(node.name.clone()),
            Some(same) if same == node => {}
            Some(changed) if changed.domain != node.domain => problems.push(format!("{}: its machine would change", node.name)),
            Some(changed) if changed.control_plane != node.control_plane => {
                problems.push(format!("{}: what it runs would change", node.name));
            }
            Some(_) if moved => {}
            Some(_) => problems.push(format!("{}: {FILES}", node.name)),
        }
    }
    problems.extend(removed.iter().map(|node| format!("{node} would be removed")));
    if problems.is_empty() {
        return Ok(());
    }
    let name = &old.cluster;
    let text = format!("cluster {name} exists and cannot be changed in place:\n  {}", problems.join("\n  "));
    let hint = match removed.as_slice() {
        [] if problems.iter().all(|problem| problem.ends_with(FILES)) => {
            format!(
                "they are those of another ktcw-vm than the one that made it: ktcw-vm start -c {name} keeps it as it was made"
            )
        }
        [] => "the same flags as before keep it".to_owned(),
        gone => {
            let each: Vec<String> = gone.iter().rev().map(|node| format!("ktcw-vm node remove {node} -c {name}")).collect();
            format!("{} takes nodes away", each.join(", then "))
        }
    };
    Err(CliError::usage(text).hint(format!("{hint}; ktcw-vm down -c {name} removes it")))
}

/// Settings that shape every machine and the network under them, each with its flag and what it is now.
fn settings(old: &Plan, new: &Plan) -> Vec<String> {
    let (was, wanted) = (&old.spec, &new.spec);
    let mut problems = Vec::new();
    let mut kept = |same: bool, flag: &str, now: String| {
        if !same {
            problems.push(format!("--{flag}: it is {now}"));
        }
    };
    let subnet = old.resolved.subnet;
    kept(wanted.network.subnet.is_none_or(|wanted| wanted == subnet), "subnet", subnet.to_string());
    kept(wanted.network.isolated == was.network.isolated, "isolated", was.network.isolated.to_string());
    kept(wanted.accel == was.accel, "accel", format!("{:?}", was.accel).to_lowercase());
    let image = || "the image's own".to_owned();
    let (old, new) = (was.kernel.as_ref(), wanted.kernel.as_ref());
    let files = |kernel: &KernelSpec| (kernel.path.clone(), kernel.initrd.clone());
    let args = |kernel: &KernelSpec| kernel.args.clone();
    let shown = old.map_or_else(image, |kernel| kernel.path.display().to_string());
    kept(new.map(files) == old.map(files), "kernel, --initrd", shown);
    kept(new.and_then(args) == old.and_then(args), "kernel-args", old.and_then(args).unwrap_or_else(|| "empty".to_owned()));
    problems
}
