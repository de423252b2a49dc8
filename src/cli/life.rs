//! `stop`, `pause` and `resume`: a whole cluster, or one machine of it, switched off, frozen and let go on.
//! Each takes the lock, writes down what it is about to do, does it through `life`, and says per node what came of it.
//! `start` is beside it: it goes the way of `up`.

use super::args::{Format, Global, Pause, Resume, Stop};
use super::drill::bench::Bench;
use super::error::CliError;
use super::opened::{Opened, known, or_interrupted, whole_moment};
use super::snapshot::{members, sets_clocks};
use super::{exit, render, session};
use crate::event::{Events, Verdict};
use crate::guest::Guest;
use crate::host::DomainState;
use crate::life::power::{Whole, word};
use crate::life::{self, How, Shift, Stopped};
use crate::plan::Plan;
use crate::spec::NodeName;
use crate::verify;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub async fn stop(global: &Global, args: &Stop) -> Result<u8, CliError> {
    let begin = Instant::now();
    let node = args.node.as_ref();
    let opened = Opened::new(global, "stop", |session| known(session, node).and_then(|()| whole_moment(session)))?;
    let plan = opened.session.plan.clone();
    let guests: Arc<dyn Guest> = opened.session.guests()?;
    let power = opened.machines.power().await?;
    if let (Some(node), false) = (node, args.force) {
        keeps_quorum(&opened, &*guests, Leaving::Stop, node).await?;
    }
    let off = |state: Option<DomainState>| matches!(state, None | Some(DomainState::ShutOff | DomainState::Crashed));
    if !power.0.iter().all(|(name, state)| off(*state) || node.is_some_and(|node| node != name)) {
        // A fault would be found again at the next start, on machines that do not remember it.
        let parent = session::parent(global)?;
        Bench::heal_after_a_crash(&parent, &opened.session.dir, &opened.lock, opened.host.clone(), "stop").await?;
    }
    let (journal, history) = opened.journal("stop")?;
    let told = |text: &str| render::status(text);
    let stopping = life::stop(&opened.machines, &*guests, (&journal, &history), node, &told);
    let left = "machines that are still running, some of them on their way down";
    let stopped = or_interrupted(&opened.stop, left, stopping).await.map_err(|error| {
        error.hint(format!("ktcw-vm stop -c {0} goes on; ktcw-vm start -c {0} brings them back", plan.cluster))
    })??;
    match global.format {
        Format::Json => {
            let summary = json!({ "cluster": plan.cluster, "nodes": stopped, "elapsed_ms": millis(begin.elapsed()) });
            render::print_line(&summary.to_string());
        }
        Format::Text => {
            stopped.iter().for_each(|one| render::print_line(&stopped_line(one)));
            render::print_line(&format!(
                "cluster {}: {} off after {:.1} s; ktcw-vm start -c {0} brings it back",
                plan.cluster,
                node.map_or_else(|| "all machines".to_owned(), ToString::to_string),
                begin.elapsed().as_secs_f64()
            ));
        }
    }
    // Off is what was asked for; that it was not in order is not passed over.
    Ok(if stopped.iter().any(|one| one.how == How::PowerCut) { exit::FAILED } else { exit::OK })
}

fn stopped_line(one: &Stopped) -> String {
    let seconds = f64::from(u32::try_from(one.took_ms).unwrap_or(u32::MAX)) / 1000.0;
    let how = match one.how {
        How::WasOff => "was off".to_owned(),
        How::Clean => format!("off in {seconds:.1} s"),
        How::Acpi => format!("off in {seconds:.1} s by its power button"),
        How::PowerCut => format!("NOT clean: its power was cut after {seconds:.1} s"),
    };
    match &one.why {
        Some(why) => format!("  {}  {how} ({why})", one.node),
        None => format!("  {}  {how}", one.node),
    }
}

/// How a single machine is about to leave the others.
#[derive(Clone, Copy)]
enum Leaving {
    Stop,
    Pause,
}

/// Asks the members, not the machines: one whose etcd does not answer has no vote to give.
async fn keeps_quorum(opened: &Opened, guests: &dyn Guest, how: Leaving, node: &NodeName) -> Result<(), CliError> {
    let plan = &opened.session.plan;
    if plan.controllers().all(|member| member.name != *node) {
        return Ok(());
    }
    let (_, silent) = or_interrupted(&opened.stop, "everything as it was", members(plan, guests)).await?;
    quorum_kept(plan, &silent, how, node)
}

fn quorum_kept(plan: &Plan, silent: &[(NodeName, String)], how: Leaving, node: &NodeName) -> Result<(), CliError> {
    let answers = |member: &NodeName| !silent.iter().any(|(other, _)| other == member);
    life::quorum_left(plan, answers, node).map_err(|(left, needed)| {
        let why: Vec<String> = silent.iter().map(|(node, why)| format!("{node}: {why}")).collect();
        let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
        let (all, one) = match how {
            Leaving::Stop => ("stop", "stops all in order; --force stops"),
            Leaving::Pause => ("pause", "freezes all in one moment; --force pauses"),
        };
        CliError::failed(format!("{}{why}", too_few(node, left, needed)))
            .left("everything as it was")
            .hint(format!("ktcw-vm {all} -c {} {one} {node} all the same", plan.cluster))
    })
}

fn too_few(node: &NodeName, left: usize, needed: usize) -> String {
    let there = if left == 1 { "there is 1 etcd member".to_owned() } else { format!("there are {left} etcd members") };
    format!("without {node} {there} running, and a quorum needs {needed}")
}

pub async fn pause(global: &Global, args: &Pause) -> Result<u8, CliError> {
    let node = args.node.as_ref();
    let opened = Opened::new(global, "pause", |session| known(session, node))?;
    opened.without_fault()?;
    let power = opened.machines.power().await?;
    let name = &opened.session.plan.cluster;
    let nodes = opened.machines.nodes(node);
    let asleep = |state| matches!(state, Some(DomainState::Paused | DomainState::PausedIoError));
    if let Some(other) = nodes.iter().find(|node| !power.is_running(&node.name) && !asleep(power.get(&node.name))) {
        let state = word(power.get(&other.name));
        return Err(CliError::failed(format!("{} is {state}: only what runs can be paused", other.name))
            .left("nothing was paused")
            .hint(format!("ktcw-vm start -c {name}")));
    }
    if let (Some(node), false) = (node, args.force)
        && power.is_running(node)
    {
        keeps_quorum(&opened, &*opened.session.guests()?, Leaving::Pause, node).await?;
    }
    let (journal, _) = opened.journal("pause")?;
    journal.begin(life::PAUSE, node)?;
    let skew =
        opened.machines.suspend(nodes.clone()).await.map_err(|error| {
            CliError::from(error).left("some machines may be paused").hint(format!("ktcw-vm resume -c {name}"))
        })?;
    journal.done(life::PAUSE, node)?;
    match global.format {
        Format::Json => {
            let names: Vec<&NodeName> = nodes.iter().map(|node| &node.name).collect();
            render::print_line(&json!({ "cluster": name, "paused": names, "skew_at_most_ms": micros(skew) }).to_string());
        }
        Format::Text => render::print_line(&format!(
            "cluster {name}: {} paused, at most {:.1} ms apart; ktcw-vm resume -c {name} lets go on",
            count(nodes.len()),
            micros(skew)
        )),
    }
    Ok(exit::OK)
}

pub async fn resume(global: &Global, args: &Resume) -> Result<u8, CliError> {
    let node = args.node.as_ref();
    let opened = Opened::new(global, "resume", |session| known(session, node).and_then(|()| whole_moment(session)))?;
    let plan = opened.session.plan.clone();
    let name = &plan.cluster;
    let power = opened.machines.power().await?;
    let asleep = |state| matches!(state, Some(DomainState::Paused | DomainState::PausedIoError));
    let nodes: Vec<_> = opened.machines.nodes(node).into_iter().filter(|node| asleep(power.get(&node.name))).collect();
    let (journal, history) = opened.journal("resume")?;
    // Who was woken by a run that was cut off is late by as long as it had stood, and looks as if there was nothing to do.
    let late = !life::late(&history).is_empty();
    if nodes.is_empty() {
        let whole = node.map_or_else(|| power.whole().to_string(), |node| word(power.get(node)).to_owned());
        let what = node.map_or_else(|| format!("the machines of cluster {name} are"), |node| format!("{node} is"));
        match whole.as_str() {
            "running" if late => {
                render::status(&format!("{what} {whole}, woken by a run that was cut off; setting their clocks"))
            }
            "running" => {
                render::print_line(&format!("{what} {whole}; nothing to do"));
                return Ok(exit::OK);
            }
            _ => {
                return Err(CliError::failed(format!("{what} {whole}, not paused")).hint(format!("ktcw-vm start -c {name}")));
            }
        }
    }
    journal.begin(life::RESUME, node)?;
    let (woken, skew) = opened.machines.resume(nodes).await.map_err(|error| {
        CliError::from(error).left("some machines may still be paused").hint(format!("ktcw-vm resume -c {name}"))
    })?;
    let guests = opened.session.guests()?;
    let left = "clocks that may be late";
    let set = life::to_be_set(late, &woken, &opened.machines.power().await?);
    let clocks = or_interrupted(&opened.stop, left, life::repair(&plan, &*guests, jiff::Timestamp::now, &set))
        .await
        .map_err(|error| error.hint(sets_clocks(name)))?;
    let unset: Vec<&String> = clocks.iter().filter_map(|(_, shift)| shift.as_ref().err()).collect();
    if unset.is_empty() {
        journal.done(life::RESUME, node)?;
        life::in_time(&journal, &history)?;
    }
    let whole = opened.machines.power().await?.whole();
    let report = if args.no_verify || whole != Whole::Running {
        None
    } else {
        let nowhere = Events::nowhere();
        let looking = super::verify::steady(&plan, &opened.session.keyring, &*guests, &nowhere);
        Some(or_interrupted(&opened.stop, "nothing that was not there before", looking).await??)
    };
    match global.format {
        Format::Json => {
            let shifts: Vec<&Shift> = clocks.iter().filter_map(|(_, shift)| shift.as_ref().ok()).collect();
            let mut summary = json!({
                "cluster": name, "resumed": woken, "skew_at_most_ms": micros(skew), "clocks": shifts, "clocks_not_set": unset,
            });
            if let Some(report) = &report {
                summary["verify"] = serde_json::to_value(report).unwrap_or_default();
            }
            render::print_line(&summary.to_string());
        }
        Format::Text => {
            if let Some(report) = &report {
                render::print(&verify::render::table(report));
            }
            clocks_lines(&clocks).iter().for_each(|line| render::print_line(line));
            let resumed = match woken.len() {
                0 => "clocks looked at".to_owned(),
                woken => format!("{} resumed, at most {:.1} ms apart", count(woken), micros(skew)),
            };
            render::print_line(&format!("cluster {name}: {resumed}; all machines {whole}"));
        }
    }
    if !unset.is_empty() {
        return Err(CliError::failed("not every clock could be set").hint(sets_clocks(name)));
    }
    Ok(match &report {
        Some(report) if report.verdict() != Verdict::Pass => exit::CHECK_FAILED,
        _ => exit::OK,
    })
}

/// A line a node: by how much its clock was moved, and what is left.
pub fn clocks_lines(clocks: &[(NodeName, Result<Shift, String>)]) -> Vec<String> {
    let line = |(node, shift): &(NodeName, Result<Shift, String>)| match shift {
        Ok(shift) => format!("  {node}  clock moved by {:+} ms, now {:+} ms off", shift.by_ms, shift.left_ms),
        Err(why) => format!("  {node}  clock not set: {why}"),
    };
    clocks.iter().map(line).collect()
}

fn count(machines: usize) -> String {
    if machines == 1 { "1 machine".to_owned() } else { format!("{machines} machines") }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds with three digits behind the point.
pub fn micros(time: Duration) -> f64 {
    f64::from(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_does_not_answer_has_no_vote_although_its_machine_runs() {
        use crate::plan::{Accel, samples};
        let plan = samples::plan("ktcw", 3, 0, Accel::Tcg);
        let judged = |node, silent: &[u8], how| {
            let silent: Vec<_> = silent.iter().map(|n| (NodeName::controller(*n), "connection refused".to_owned())).collect();
            quorum_kept(&plan, &silent, how, &NodeName::controller(node)).map_err(|error| error.text())
        };
        assert_eq!(judged(1, &[], Leaving::Stop), Ok(()));
        assert_eq!(judged(2, &[2], Leaving::Stop), Ok(()), "it gives none as it is");
        assert_eq!(judged(1, &[0, 2], Leaving::Pause), Ok(()), "there is no quorum to be kept");
        let said = judged(1, &[2], Leaving::Stop).expect_err("one of three is left");
        let expected = "error: without controller-1 there is 1 etcd member running, and a quorum needs 2 (controller-2: connection \
                        refused)\nleft behind: everything as it was\nhint: ktcw-vm stop -c ktcw stops all in order; --force stops \
                        controller-1 all the same";
        assert_eq!(said, expected);
        let said = judged(1, &[2], Leaving::Pause).expect_err("one of three is left");
        assert!(
            said.ends_with("ktcw-vm pause -c ktcw freezes all in one moment; --force pauses controller-1 all the same"),
            "{said}"
        );
    }

    #[test]
    fn one_member_is_no_members() {
        let said = |left| too_few(&NodeName::controller(1), left, 2);
        assert_eq!(said(1), "without controller-1 there is 1 etcd member running, and a quorum needs 2");
        assert_eq!(said(2), "without controller-1 there are 2 etcd members running, and a quorum needs 2");
    }
}
