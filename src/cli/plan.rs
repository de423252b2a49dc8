//! `ktcw-vm plan`: everything `up` would make, printed; nothing is touched.
//! An existing cluster keeps what is recorded with it, as in `up`; for a new one, guesses are marked as such.
//! `--show NODE:PATH` prints one file as the node would get it, `NODE:user-data` what cloud-init reads; secrets by name only.

use super::args::{Format, Global, PlanArgs};
use super::error::CliError;
use super::{change, exit, render, resolve, session, spec_of};
use crate::apply::{Inventory, Step, steps};
use crate::host::Host;
use crate::plan::{Content, NodePlan, Plan, plan, render as plan_render, user_data};
use crate::spec::NodeName;
use crate::store::ClusterDir;

pub fn run(global: &Global, args: &PlanArgs) -> Result<u8, CliError> {
    if args.config_schema {
        let schema = serde_json::to_string_pretty(&crate::spec::schema()).map_err(CliError::failed)?;
        render::print_line(&schema);
        return Ok(exit::OK);
    }
    let (spec, dir) = spec_of(global, &args.spec)?;
    let old = dir.as_ref().map(ClusterDir::load_plan).transpose()?.flatten();
    let (resolved, notes) = match &old {
        Some(old) => (resolve::kept(old), Vec::new()),
        None => {
            let host = session::connect(global).ok().and_then(|host| Some((host.facts().ok()?, host.observe().ok()?)));
            resolve::guessed(&spec, host.as_ref().map(|(facts, seen)| (facts, seen)))?
        }
    };
    // Where its way would end: who joins a running etcd is told so.
    let end = dir.as_ref().and_then(|dir| dir.spec().path(&spec).pop()).map(|last| last.settled());
    let plan = plan(end.as_ref().unwrap_or(&spec), &resolved);
    if let (Some(old), Some(dir)) = (&old, &dir) {
        change::allowed(old, dir.spec(), &plan)?;
    }
    if let Some(what) = &args.show {
        render::print(&show(&plan, what)?);
        return Ok(exit::OK);
    }
    let steps = steps(&plan, &Inventory::default());
    match global.format {
        Format::Text => {
            render::print(&plan_render::text(&plan, &steps));
            for note in notes {
                render::print_line(&format!("\nnote: {note}"));
            }
        }
        Format::Json => {
            let planned = Planned { plan: &plan, steps: &steps, notes: &notes };
            render::print_line(&serde_json::to_string_pretty(&planned).map_err(CliError::failed)?);
        }
    }
    Ok(exit::OK)
}

/// What `--format json` prints.
#[derive(serde::Serialize)]
struct Planned<'a> {
    plan: &'a Plan,
    steps: &'a [Step],
    notes: &'a [String],
}

/// One file of one node; a wrong node or path lists what there is.
fn show(plan: &Plan, what: &str) -> Result<String, CliError> {
    let Some((node, path)) = what.split_once(':') else {
        return Err(CliError::usage(format!("--show {what}: accepted: NODE:PATH, as in controller-0:/etc/hosts")));
    };
    let name = NodeName::parse(node).map_err(|said| CliError::usage(format!("--show: {said}")))?;
    let Some(node) = plan.node(&name) else {
        let all: Vec<String> = plan.nodes.iter().map(|node| node.name.to_string()).collect();
        return Err(CliError::usage(format!("--show: no node {name}; accepted: {}", all.join(", "))));
    };
    if let Some(text) = document(plan, node, path)? {
        return Ok(text);
    }
    match node.files.iter().find(|file| file.path == path).map(|file| &file.content) {
        Some(Content::Text { text }) => Ok(text.clone()),
        Some(Content::Pki { item }) => Ok(format!("<{item}: made by `up`, kept in the cluster's pki directory>\n")),
        None => {
            let all: Vec<&str> = node.files.iter().map(|file| file.path.as_str()).collect();
            let all = [&DOCUMENTS[..], &all].concat().join("\n  ");
            Err(CliError::usage(format!("--show: {name} has no file {path}; it has\n  {all}")))
        }
    }
}

/// What cloud-init reads, beside the files that it writes.
const DOCUMENTS: [&str; 3] = ["meta-data", "user-data", "network-config"];

/// One of `DOCUMENTS`, with names where secrets would be; `None` for any other word.
fn document(plan: &Plan, node: &NodePlan, name: &str) -> Result<Option<String>, CliError> {
    if !DOCUMENTS.contains(&name) {
        return Ok(None);
    }
    let seed = user_data::preview(node, &plan.network, &plan.pod_routes()).map_err(CliError::failed)?;
    Ok(Some(match name {
        "meta-data" => seed.meta_data,
        "network-config" => seed.network_config,
        _ => seed.user_data.expose().to_owned(),
    }))
}
