//! Undoing what drills have left: what the journal knows to finish, and what is seen in reality.
//! `drill heal` calls `heal`, and so do `up`, `down` and the next run; `run` uses the same steps for its own fault.
//! It needs no memory of the run that broke things: it is idempotent, and says what it undid.

use super::act::Act;
use super::admin::{await_healthy, patience, perform, perform_all};
use super::etcd::Site;
use super::injector::{FaultLog, InjectError, Injector, Leftover};
use super::run::RunError;

/// Looks and undoings before what is still there counts as not to be undone.
const ROUNDS: usize = 3;

/// Undoes whatever drills have left: first what the journal knows to finish, then what is seen in reality. Idempotent.
/// Returns what it undid.
pub async fn heal(site: &Site, injector: &dyn Injector, log: &dyn FaultLog) -> Result<Vec<String>, RunError> {
    let not_healed = |error: InjectError| RunError::NotHealed(error.to_string());
    let mut done = Vec::new();
    for pending in log.pending()? {
        perform_all(site, injector, &pending.heal).await.map_err(not_healed)?;
        undo_leftovers(site, injector, &pending.tidy, &mut done).await.map_err(not_healed)?;
        await_healthy(site, patience(site)).await.map_err(RunError::NotHealed)?;
        perform_all(site, injector, &pending.tidy).await.map_err(not_healed)?;
        log.clear(&pending.run)?;
        done.push(format!("{} (run {})", pending.drill, pending.run));
    }
    undo_leftovers(site, injector, &[], &mut done).await.map_err(not_healed)?;
    injector.disarm().await.map_err(not_healed)?;
    Ok(done)
}

/// What faults have left; what the preparation changed is undone later, by `tidy`.
pub async fn leftovers(injector: &dyn Injector, tidy: &[Act]) -> Result<Vec<Leftover>, InjectError> {
    let mut all = injector.leftovers().await?;
    all.retain(|left| !tidy.contains(&left.undo));
    Ok(all)
}

pub async fn undo_leftovers(
    site: &Site,
    injector: &dyn Injector,
    tidy: &[Act],
    done: &mut Vec<String>,
) -> Result<(), InjectError> {
    // One thing undone may show another: a machine that is on again has a clock.
    for _ in 0..ROUNDS {
        let found = leftovers(injector, tidy).await?;
        if found.is_empty() {
            return Ok(());
        }
        for left in found {
            perform(site, injector, &left.undo).await?;
            let told = left.to_string();
            if !done.contains(&told) {
                done.push(told);
            }
        }
    }
    match leftovers(injector, tidy).await?.first() {
        None => Ok(()),
        Some(left) => Err(InjectError::Act { act: left.undo.to_string(), reason: format!("{left} is still there") }),
    }
}
