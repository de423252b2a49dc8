//! Clocks of machines that slept: read once they answer again, set as this computer's, and how far each was off.
//! `resume` and `snapshot restore` call it: a machine wakes in the moment in which it was suspended.
//! It takes any node it is given; that clocks may be late at all, after a run that was cut off, it reads in the journal.

use super::power::Power;
use crate::guest::clock::{self, RIGHT_S};
use crate::guest::{Guest, GuestError};
use crate::plan::Plan;
use crate::spec::NodeName;
use crate::store::journal::{Entry, History, Journal, JournalError};
use crate::wait::{Seen, until};
use futures::future::join_all;
use serde::Serialize;
use std::time::Duration;

/// Journal step of `pause`: from then on machines stand still.
pub const PAUSE: &str = "pause";
/// Journal step of `resume`: open until the clocks are set.
pub const RESUME: &str = "resume";
/// Journal step of a save's and a restore's letting go; the clocks are set after it.
pub const WAKE: &str = "snapshot wake";
/// Journal step of the setting itself, where machines run already that may be late.
pub const CLOCKS: &str = "clocks";

/// What was begun of that and did not come to its end: machines that run may be late by as long as they stood.
pub fn late(history: &History) -> Vec<(String, Option<NodeName>)> {
    let not_done = history.pending().into_iter().chain(history.failed());
    let steps = not_done.filter_map(|record| match &record.entry {
        Entry::Step { step, node, .. } if [PAUSE, RESUME, WAKE, CLOCKS].contains(&step.as_str()) => {
            Some((step.clone(), node.clone()))
        }
        _ => None,
    });
    steps.collect()
}

/// Says in the journal that the clocks of all that run are set.
pub fn in_time(journal: &Journal, history: &History) -> Result<(), JournalError> {
    late(history).iter().try_for_each(|(step, node)| journal.done(step, node.as_ref()))
}

/// Whose clocks are to be set: of those that were woken, and after a run that was cut off (`late`) of all that run.
pub fn to_be_set(late: bool, woken: &[NodeName], power: &Power) -> Vec<NodeName> {
    match late {
        false => woken.to_vec(),
        true => power.0.iter().map(|(node, _)| node).filter(|node| power.is_running(node)).cloned().collect(),
    }
}

/// How a node's clock was moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shift {
    pub node: NodeName,
    /// Milliseconds that it was moved by; positive: it was behind.
    pub by_ms: i64,
    /// Milliseconds that it is ahead of this computer's now, as read afterwards.
    pub left_ms: i64,
}

/// This computer's clock, as `guest::clock` takes it.
pub type Now = fn() -> jiff::Timestamp;

/// Waits until each of `nodes` answers, be it that it boots, and sets its clock.
pub async fn awaited(plan: &Plan, guest: &dyn Guest, now: Now, nodes: &[NodeName]) -> Vec<(NodeName, Result<Shift, String>)> {
    let deadline = Duration::from_secs(u64::from(plan.timers.probe_deadline_s));
    let patience = Duration::from_secs(u64::from(plan.timers.boot_deadline_s));
    join_all(nodes.iter().map(|node| async move { (node.clone(), one(guest, now, node, deadline, patience).await) })).await
}

/// Sets the clocks of `nodes`, all at the same time. A node that does not answer in time, or cannot be set, is told by name
/// and does not keep the others from being set.
pub async fn repair(plan: &Plan, guest: &dyn Guest, now: Now, nodes: &[NodeName]) -> Vec<(NodeName, Result<Shift, String>)> {
    let deadline = Duration::from_secs(u64::from(plan.timers.probe_deadline_s));
    join_all(nodes.iter().map(|node| async move { (node.clone(), one(guest, now, node, deadline, deadline * 2).await) })).await
}

async fn one(guest: &dyn Guest, now: Now, node: &NodeName, deadline: Duration, patience: Duration) -> Result<Shift, String> {
    // What was connected before it slept is dead on one side or on both.
    guest.forget(node).await;
    let answers = until(
        format!("{node} answering SSH"),
        patience,
        Duration::from_millis(250),
        |_| (),
        || async {
            match clock::read(guest, node, &now, deadline).await {
                Ok(Ok(seen)) => Seen::Ready(Ok(seen)),
                Ok(Err(said)) => Seen::Ready(Err(said)),
                Err(error @ GuestError::HostKey { .. }) => Seen::Ready(Err(error.to_string())),
                Err(error) => Seen::NotYet(error.to_string()),
            }
        },
    );
    let before = answers.await.map_err(|late| late.to_string())??;
    let by_s = if before.ahead_s.abs() <= before.uncertain_s + RIGHT_S { 0.0 } else { -before.ahead_s };
    if by_s != 0.0 {
        clock::shift(guest, node, by_s, deadline).await.map_err(|error| error.to_string())?;
    }
    let after = clock::read(guest, node, &now, deadline).await.map_err(|error| error.to_string())??;
    Ok(Shift { node: node.clone(), by_ms: millis(by_s), left_ms: millis(after.ahead_s) })
}

#[expect(clippy::cast_possible_truncation, reason = "clocks are not off by millions of years")]
fn millis(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}
