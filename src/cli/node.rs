//! `ktcw-vm node add` and `node remove`: a cluster that grows and shrinks while it runs.
//! Adding is `up` with one more; removing writes down who leaves, then lets `apply` take it away, so that `up` finishes what was cut off.
//! It refuses what would lose the quorum, the only control plane or pods that nobody makes anew, and says why.

use super::args::{Global, NodeAdd, NodeRemove, NodeRole, NodeWhat};
use super::drill::bench::Bench;
use super::error::CliError;
use super::opened::{no_open_restore_of, whole_moment};
use super::session::{self, Session};
use super::up::{Asked, Outcome, raise, shown};
use super::way::{Settled, carry_out};
use super::{golden, lab, render, resolve, snapshot};
use crate::apply;
use crate::drill::quorum::quorum;
use crate::event::Events;
use crate::image;
use crate::plan::{Plan, plan};
use crate::spec::{ClusterSpec, NodeName, Role};
use crate::store::{ClusterDir, Lock};
use std::sync::Arc;
use std::time::Duration;

pub async fn run(global: &Global, what: &NodeWhat) -> Result<u8, CliError> {
    match what {
        NodeWhat::Add(args) => add(global, args).await,
        NodeWhat::Remove(args) => remove(global, args).await,
    }
}

async fn add(global: &Global, args: &NodeAdd) -> Result<u8, CliError> {
    let (name, parent) = (session::cluster_name(global)?, session::parent(global)?);
    let (dir, lock) = ClusterDir::open_locked(&parent, &name, "node add")?;
    may_grow(&dir)?;
    let role = match args.role {
        NodeRole::Worker => Role::Worker,
        NodeRole::Etcd => Role::Controller,
    };
    let spec = with_more(&dir, &lock, role, args.count)?;
    let asked = asked(&dir, &spec, args);
    let there = Some((dir, lock));
    shown(global, &name, args.timings, |events| async move { raise(global, &asked, &parent, there, &events).await }).await
}

fn asked<'a>(dir: &ClusterDir, spec: &'a ClusterSpec, args: &NodeAdd) -> Asked<'a> {
    Asked { spec, verb: "node add", verify: !args.no_verify, golden: golden::is_kept(dir), kernel_given: false }
}

/// What `up`, which adds them, would not stop at: for one node more it makes a cluster anew that is down to its golden snapshot, and
/// gives that one up.
fn may_grow(dir: &ClusterDir) -> Result<(), CliError> {
    let (history, cluster) = (dir.history()?, dir.name().as_str());
    golden::refuse_down(&history, cluster)?;
    no_open_restore_of(dir, &history)?;
    lab::none_open_of_these_nodes(dir)
}

/// The spec with so many more. Who was on the way when a run was cut off is one of them already; it wants the lock, for without it
/// that could be somebody who is just being added by another run.
fn with_more(dir: &ClusterDir, _held: &Lock, role: Role, count: u8) -> Result<ClusterSpec, CliError> {
    let mut spec = dir.spec().clone();
    let open = apply::announced(&dir.history()?);
    let there = spec.nodes_of(role);
    let begun = open.iter().filter(|node| there.contains(node)).count();
    for _ in begun..count.into() {
        spec = spec.with_one_more(role).map_err(CliError::usage)?;
    }
    Ok(spec)
}

async fn remove(global: &Global, args: &NodeRemove) -> Result<u8, CliError> {
    let (name, parent) = (session::cluster_name(global)?, session::parent(global)?);
    // What is decided here must still be so when the question has been answered.
    let (_, lock) = ClusterDir::open_locked(&parent, &name, "node remove")?;
    let session = Session::open(global)?;
    whole_moment(&session)?;
    lab::none_open_of_these_nodes(&session.dir)?;
    let next = without(&session, args)?;
    if let Some(cost) = snapshot::cost_of_other_nodes(&session.dir, !args.no_verify)? {
        render::status(&cost);
    }
    if !global.yes && !render::confirm(&format!("remove {} of cluster {name} with its machine and disks?", args.node))? {
        return Err(CliError::failed("not removed").hint(format!("ktcw-vm node remove {} -c {name} --yes", args.node)));
    }
    shown(global, &name, args.timings, |events| async move { leave(global, args, session, lock, next, &events).await }).await
}

/// The spec without the node, or why that cannot be. One that is on its way out already is finished.
fn without(session: &Session, args: &NodeRemove) -> Result<ClusterSpec, CliError> {
    let (kept, node) = (session.dir.spec(), &args.node);
    if let Some(leaving) = kept.lineage.leaving.as_ref().filter(|leaving| leaving.node == *node) {
        let mut again = kept.clone();
        again.lineage.leaving = Some(crate::spec::Leaving { force: leaving.force || args.force, ..leaving.clone() });
        return Ok(again);
    }
    let settled = kept.settled();
    if !settled.nodes_of(node.role()).contains(node) {
        session.node(node)?;
    }
    settled.without(node, args.force).map_err(|why| {
        CliError::usage(format!("{node} cannot be removed: {why}"))
            .hint(format!("ktcw-vm down -c {} removes the whole cluster", kept.name))
    })
}

async fn leave(
    global: &Global,
    args: &NodeRemove,
    session: Session,
    lock: Lock,
    next: ClusterSpec,
    events: &Events,
) -> Result<Outcome, CliError> {
    let dir = session.dir.clone();
    let host = session::connect_to(global, &dir)?;
    Bench::heal_after_a_crash(&session::parent(global)?, &dir, &lock, host.clone(), "node remove").await?;
    let begun = dir.spec().lineage.leaving.as_ref().is_some_and(|leaving| leaving.node == args.node);
    if !begun {
        if args.node.role() == Role::Worker && !args.force {
            nothing_bare(&session, args).await?;
        }
        if args.node.role() == Role::Controller {
            // Not the machines: one whose etcd does not answer has no vote to give.
            let (_, silent) = snapshot::members(&session.plan, &*session.guests()?).await;
            keeps_quorum(&session.plan, &args.node, &silent)?;
        }
    }
    let resolved = &session.plan.resolved;
    let way = dir.spec().path(&next).iter().map(|spec| Arc::new(plan(spec, resolved))).collect();
    let files = image::find_key(&image::cache_dir(), &resolved.image.key)
        .ok()
        .flatten()
        .map(|image| resolve::files(&session.plan.spec, Some(&image)));
    let golden = golden::is_kept(&dir);
    let settled = Settled { dir, lock, way, host, files, verb: "node", only: None, verify: !args.no_verify, golden };
    carry_out(settled, events).await
}

/// Pods that would be lost with the node: nobody makes them anew.
async fn nothing_bare(session: &Session, args: &NodeRemove) -> Result<(), CliError> {
    let plan = &session.plan;
    let deadline = Duration::from_secs(u64::from(plan.timers.probe_deadline_s));
    let again = format!("ktcw-vm node remove {} -c {} --force", args.node, plan.cluster);
    let pods = session.api()?.pods_on(plan.network.vip, &args.node, deadline).await.map_err(|error| {
        CliError::failed(format!("{}: which pods it runs is not known: {error}", args.node))
            .left("everything as it was")
            .hint(format!("ktcw-vm up -c {} brings the API back; {again} removes it all the same", plan.cluster))
    })?;
    let bare: Vec<String> = pods.iter().filter(|pod| pod.bare).map(ToString::to_string).collect();
    if bare.is_empty() {
        return Ok(());
    }
    let said = format!("{}: nobody would make these pods anew: {}", args.node, bare.join(", "));
    Err(CliError::failed(said).left("everything as it was").hint(format!("{again} removes them with it")))
}

/// The members that stay must be able to agree, before and after.
fn keeps_quorum(plan: &Plan, node: &NodeName, silent: &[(NodeName, String)]) -> Result<(), CliError> {
    let members: Vec<&NodeName> = plan.controllers().map(|member| &member.name).collect();
    let refused = |why: String| {
        CliError::failed(format!("{node} cannot be removed: {why}")).left("everything as it was").hint(format!(
            "ktcw-vm verify -c {0} says more; ktcw-vm up -c {0} brings members back whose machines are off",
            plan.cluster
        ))
    };
    let answers = |member: &NodeName| !silent.iter().any(|(other, _)| other == member);
    let why = || silent.iter().map(|(node, why)| format!("{node}: {why}")).collect::<Vec<_>>().join("; ");
    let up: Vec<&&NodeName> = members.iter().filter(|member| answers(member)).collect();
    let needed_now = quorum(members.len());
    if up.len() < needed_now {
        let count = format!("{} of {} members answer, and {needed_now} have to agree to it", up.len(), members.len());
        return Err(refused(format!("{count} ({})", why())));
    }
    let (left, stay) = (up.iter().filter(|member| ***member != node).count(), members.len() - 1);
    let needed = quorum(stay);
    if left < needed {
        let count = format!("of the {stay} members that stay {left} answer, and their quorum is {needed}");
        return Err(refused(format!("{count} ({})", why())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Accel, samples};
    use crate::store::StoreError;

    /// The second one of two adds, which used to read that the first one's node is on its way and took it for its own.
    #[test]
    fn one_more_is_one_more_than_another_add_has_left() {
        let parent = tempfile::tempdir().expect("a directory");
        let old = samples::plan("ktcw", 1, 1, Accel::Tcg);
        let (made, lock) = ClusterDir::create(parent.path(), &old.spec, "up", jiff::Timestamp::now()).expect("made");
        made.save_plan(&lock, &old).expect("saved");
        drop(lock);
        let early = ClusterDir::open(parent.path(), &old.cluster).expect("opened");
        let add = || ClusterDir::open_locked(parent.path(), &old.cluster, "node add");
        let workers = |spec: &ClusterSpec| spec.nodes_of(Role::Worker).len();

        let (mut first, lock) = add().expect("free");
        let next = plan(&with_more(&first, &lock, Role::Worker, 1).expect("room for it"), &old.resolved);
        let (journal, history) = first.journal(&lock, crate::store::draw_id(), "node add").expect("opened");
        apply::announce(&journal, &history, &old, &next).expect("written");
        first.begin(&lock, &next).expect("written");
        assert!(matches!(add(), Err(StoreError::Busy { .. })), "as long as it works");
        drop(lock);

        // Cut off here, the same words finish it.
        let (again, lock) = add().expect("free");
        assert_eq!(workers(&with_more(&again, &lock, Role::Worker, 1).expect("room")), 2);
        assert_eq!(workers(&with_more(&again, &lock, Role::Worker, 2).expect("room")), 3);
        apply::arrived(&journal, &again.history().expect("readable")).expect("written");
        drop((journal, lock));

        let (second, lock) = add().expect("free");
        assert_eq!(workers(&with_more(&second, &lock, Role::Worker, 1).expect("room")), 3, "nobody is on the way");
        drop(lock);
        assert!(matches!(early.lock("up"), Err(StoreError::Changed { .. })), "one worker was all that it knew of");
    }

    #[test]
    fn a_cluster_without_a_golden_snapshot_is_not_given_one_by_one_more_worker() {
        let parent = tempfile::tempdir().expect("a directory");
        let spec = samples::plan("ktcw", 1, 1, Accel::Tcg).spec;
        let (dir, _lock) = ClusterDir::create(parent.path(), &spec, "up --no-golden", jiff::Timestamp::now()).expect("made");
        let args = NodeAdd { count: 1, role: NodeRole::Worker, timings: false, no_verify: false };
        let asked = asked(&dir, &spec, &args);
        assert!(asked.verify && !asked.golden);
    }

    #[test]
    fn a_member_that_does_not_answer_gives_no_vote_although_its_machine_runs() {
        let plan = samples::plan("ktcw", 3, 0, Accel::Tcg);
        let silent = |members: &[u8]| -> Vec<(NodeName, String)> {
            members.iter().map(|n| (NodeName::controller(*n), "connection refused".to_owned())).collect()
        };
        let judged = |node, members: &[u8]| keeps_quorum(&plan, &NodeName::controller(node), &silent(members));
        assert!(judged(2, &[]).is_ok());
        assert!(judged(1, &[1]).is_ok(), "who is away can be taken out");
        let said = judged(2, &[1]).expect_err("the two that stay could not agree").text();
        assert!(
            said.contains("of the 2 members that stay 1 answer, and their quorum is 2 (controller-1: connection refused)"),
            "{said}"
        );
        let said = judged(1, &[1, 2]).expect_err("nobody could agree to it").text();
        assert!(said.contains("1 of 3 members answer, and 2 have to agree to it"), "{said}");
    }
}
