//! What may change on a cluster that exists: nodes may be added at the end of the workers; machines are not rebuilt behind one's back.
//! `up` asks before it touches anything; the answer names every difference.
//! Pure.

use super::error::CliError;
use crate::plan::Plan;
use crate::spec::{KernelSpec, Role};

/// Accepts a new plan for an existing cluster, or says what cannot change in place.
pub fn allowed(old: &Plan, new: &Plan) -> Result<(), CliError> {
    let mut problems = settings(old, new);
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
