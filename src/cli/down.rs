//! `ktcw-vm down`: removes the cluster, whole or half-made, and only what carries its mark.
//! Machines, network and disks first, the directory with its keys last: after a crash in the middle, `down` again.
//! Twice is once.

use super::args::Global;
use super::error::CliError;
use super::{exit, render, session};
use crate::apply;
use crate::host::Host;
use crate::store::ClusterDir;
use std::sync::Arc;

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let name = session::cluster_name(global)?;
    let parent = session::parent(global)?;
    // A removal that was cut off may still hold keys.
    crate::store::finish_removals(&parent)?;
    if !ClusterDir::exists(&parent, &name) {
        render::print_line(&format!("there is no cluster {name} in {}; nothing to do", parent.display()));
        return Ok(exit::OK);
    }
    let dir = ClusterDir::open(&parent, &name)?;
    let lock = dir.lock("down")?;
    if !global.yes && !render::confirm(&format!("remove cluster {name} with all its machines, disks and keys?"))? {
        return Err(CliError::failed("not removed").hint(format!("ktcw-vm down -c {name} --yes")));
    }
    let host: Arc<dyn Host> = session::connect_to(global, &dir)?;
    let mark = session::mark(&dir);
    dir.set_journal_aside(&lock)?;
    let (journal, _) = dir.journal(&lock, crate::store::draw_id(), "down")?;
    journal.begin("remove", None).map_err(CliError::failed)?;
    let removed = apply::remove(host, &mark, render::status).await.map_err(|error| {
        CliError::from(error).left("what was not removed yet; nothing of others").hint(format!("ktcw-vm down -c {name}"))
    })?;
    journal.done("remove", None).map_err(CliError::failed)?;
    dir.remove(lock)?;
    render::print_line(&format!(
        "cluster {name} removed: {} machines, {} volumes, {} network",
        removed.domains.len(),
        removed.volumes,
        removed.networks.len()
    ));
    Ok(exit::OK)
}
