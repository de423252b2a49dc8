//! Undoing what drills have left: what is seen in reality, and what the journal knows to finish.
//! `drill heal` calls `heal`, and so do `up`, `start`, `stop`, `node remove` and the next run; `run` uses the same steps for its own fault.
//! It needs no memory of the run that broke things: it is idempotent, and says what it undid.

use super::act::Act;
use super::admin::{FILL, await_healthy, patience, perform};
use super::clock::pass;
use super::etcd::Site;
use super::injector::{FaultLog, InjectError, Injector, Leftover, Pending};
use super::reading::{PROBE_KEYS, WARM_KEYS, forget_keys};
use super::run::RunError;
use std::time::Duration;

/// Looks and undoings before what is still there counts as not to be undone.
const ROUNDS: usize = 3;

/// Writes of a run that was killed may still be under way between members: etcd keeps a silent stream for five seconds, and TCP, which
/// doubles its patience, sends what was lost on it again within three and a half. So long no more may have come, by so many looks.
const QUIET: Duration = Duration::from_millis(3500);
const QUIET_LOOKS: u32 = 7;
const LOOKS_MOST: u32 = QUIET_LOOKS * 4;

/// Hears of each act as it begins.
pub type Begin<'a> = &'a (dyn Fn(&Act) + Send + Sync);

/// Undoes whatever drills have left: first what is seen and the journal says nothing of (a machine that went off since must be
/// on before anything can be undone in it), then what the journal knows to finish, then what is still seen. Idempotent.
/// Returns what it undid; the error names what is left.
pub async fn heal(site: &Site, injector: &dyn Injector, log: &dyn FaultLog) -> Result<Vec<String>, RunError> {
    let pending = log.pending()?;
    // In the order of their scripts, not before: of a member without data, "stopped" is the least that is to be said.
    let known: Vec<Act> = pending.iter().flat_map(|fault| fault.heal.iter().chain(&fault.tidy)).cloned().collect();
    let mut done = Vec::new();
    let mut failed = undo_leftovers(site, injector, &known, &mut done).await.err().map(|error| error.to_string());
    if pending.is_empty() {
        finish(injector, failed).await?;
        forget(site, &mut done).await;
        return Ok(done);
    }
    // What could not be undone may have been for want of what comes now; the last look decides.
    failed = None;
    for fault in &pending {
        match finish_one(site, injector, fault, &mut done).await {
            Ok(()) => {
                log.clear(&fault.run)?;
                done.push(format!("{} (run {})", fault.drill, fault.run));
            }
            // One fault that cannot be healed is no reason to leave another in force.
            Err(why) => {
                failed.get_or_insert(why);
            }
        }
    }
    if let Err(error) = undo_leftovers(site, injector, &[], &mut done).await {
        failed.get_or_insert(error.to_string());
    }
    finish(injector, failed).await?;
    Ok(done)
}

/// Removes what runs that ended early have written, where the cluster answers; it is no fault, and keeps nothing from being healed.
async fn forget(site: &Site, done: &mut Vec<String>) {
    let prefixes = [PROBE_KEYS.to_owned(), WARM_KEYS.to_owned(), FILL.to_owned()];
    let mut keys = forget_keys(site, &prefixes).await;
    let mut quiet = 0;
    for _ in 0..LOOKS_MOST {
        if keys == 0 || quiet == QUIET_LOOKS {
            break;
        }
        pass(QUIET / QUIET_LOOKS).await;
        let late = forget_keys(site, &prefixes).await;
        quiet = if late == 0 { quiet + 1 } else { 0 };
        keys += late;
    }
    if keys > 0 {
        done.push(format!("{keys} keys that probes had written"));
    }
}

async fn finish(injector: &dyn Injector, failed: Option<String>) -> Result<(), RunError> {
    let ended = disarm_if(injector, failed.map_or(Ok(()), Err)).await;
    ended.map_err(|why| RunError::NotHealed { why, record: None })
}

/// Timers go when there is nothing left for them to do. What could not be undone from here may still be undone by them: a node
/// that answers nobody has its own.
pub async fn disarm_if(injector: &dyn Injector, undone: Result<(), String>) -> Result<(), String> {
    undone?;
    injector.disarm().await.map_err(|error| error.to_string())
}

/// Finishes one fault of the journal, from wherever it was left.
async fn finish_one(site: &Site, injector: &dyn Injector, fault: &Pending, done: &mut Vec<String>) -> Result<(), String> {
    undo(site, injector, &fault.heal, &fault.tidy, done, &|_| ()).await?;
    await_healthy(site, patience(site)).await?;
    perform_each(site, injector, &fault.tidy, &|_| ()).await.map_err(|(_, error)| error.to_string())?;
    forget(site, done).await;
    Ok(())
}

/// The acts of a heal, then whatever is still seen; an act that failed has a second chance after that. What `tidy` undoes later
/// may stay.
pub async fn undo(
    site: &Site,
    injector: &dyn Injector,
    acts: &[Act],
    tidy: &[Act],
    done: &mut Vec<String>,
    begin: Begin<'_>,
) -> Result<(), String> {
    let first = perform_each(site, injector, acts, begin).await;
    let seen = undo_leftovers(site, injector, tidy, done).await;
    let Err((again, _)) = first else { return seen.map_err(|error| error.to_string()) };
    perform_each(site, injector, &again, begin).await.map_err(|(_, error)| error.to_string())?;
    undo_leftovers(site, injector, tidy, done).await.map_err(|error| error.to_string())
}

/// All acts in order, whatever becomes of each; those that failed, and the first error.
pub async fn perform_each(
    site: &Site,
    injector: &dyn Injector,
    acts: &[Act],
    begin: Begin<'_>,
) -> Result<(), (Vec<Act>, InjectError)> {
    let mut failed: Option<(Vec<Act>, InjectError)> = None;
    for act in acts {
        begin(act);
        if let Err(error) = perform(site, injector, act).await {
            failed.get_or_insert_with(|| (vec![], error)).0.push(act.clone());
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What faults have left, but for what is undone later.
pub async fn leftovers(injector: &dyn Injector, later: &[Act]) -> Result<Vec<Leftover>, InjectError> {
    let mut all = injector.leftovers().await?;
    all.retain(|left| !later.contains(&left.undo));
    Ok(all)
}

/// Undoes what is seen, round after round. One thing that cannot be undone keeps no other from being tried.
pub async fn undo_leftovers(
    site: &Site,
    injector: &dyn Injector,
    later: &[Act],
    done: &mut Vec<String>,
) -> Result<(), InjectError> {
    let mut last: Option<InjectError> = None;
    // One thing undone may show another: a machine that is on again has a clock.
    for _ in 0..ROUNDS {
        let found = leftovers(injector, later).await?;
        if found.is_empty() {
            return Ok(());
        }
        for left in found {
            match perform(site, injector, &left.undo).await {
                Ok(()) => {
                    let told = left.to_string();
                    if !done.contains(&told) {
                        done.push(told);
                    }
                }
                Err(error) => last = Some(error),
            }
        }
    }
    match leftovers(injector, later).await?.first() {
        None => Ok(()),
        Some(left) => {
            Err(last.unwrap_or_else(|| InjectError::Act { act: left.undo.to_string(), reason: format!("{left} is still there") }))
        }
    }
}
