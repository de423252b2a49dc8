//! `ktcw-vm start`: the machines of a cluster that was stopped, cut off or left by a reboot of the host, all together, then verify.
//! It goes the way of `up` from the plan that is stored: no flag is read, no image is looked for, nothing is planned anew.
//! What is missing is made by the same steps; a cluster that runs is left as it is.

use super::args::{Global, Start};
use super::drill::bench::Bench;
use super::error::CliError;
use super::opened::{known, whole_moment};
use super::resolve;
use super::session::{self, Session};
use super::up::{Outcome, refuse, shown};
use super::way::{Settled, carry_out};
use crate::event::Events;
use crate::host::{Host, blocking};
use crate::image;
use crate::preflight;
use crate::store::ClusterDir;
use std::sync::Arc;

pub async fn run(global: &Global, args: &Start) -> Result<u8, CliError> {
    let name = session::cluster_name(global)?;
    shown(global, &name, args.timings, |events| async move { start(global, args, &events).await }).await
}

async fn start(global: &Global, args: &Start, events: &Events) -> Result<Outcome, CliError> {
    let wrong = |session: &Session| known(session, args.node.as_ref()).and_then(|()| whole_moment(session));
    let (opened, lock) = Session::open(global)?.lock("start", wrong)?;
    let (dir, plan): (ClusterDir, _) = (opened.dir.clone(), opened.plan.clone());
    let host = session::connect_to(global, &dir)?;
    let (asked, mark) = (host.clone(), session::mark(&dir));
    let (facts, seen) = blocking(move || Ok((asked.facts()?, asked.observe()?))).await?;
    // Disks are there already; a pool that a reboot left inactive only does not show them.
    let refusals = preflight::judge(&plan, &facts, &seen, Some(&mark), 0, host.free_disk_mib());
    refuse(&refusals.into_iter().filter(|refusal| refusal.about != "disk").collect::<Vec<_>>())?;
    Bench::heal_after_a_crash(&session::parent(global)?, &dir, &lock, host.clone(), "start").await?;
    // The image's files matter only where libvirt has lost its copies.
    let files = image::find_key(&image::cache_dir(), &plan.resolved.image.key)
        .ok()
        .flatten()
        .map(|image| resolve::files(&plan.spec, Some(&image)));
    let settled = Settled {
        dir,
        lock,
        way: vec![Arc::clone(&plan)],
        host,
        files,
        verb: "start",
        only: args.node.clone(),
        verify: !args.no_verify,
        golden: false,
    };
    carry_out(settled, events).await
}
