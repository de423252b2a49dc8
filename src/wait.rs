//! The one way to wait: probe a condition until it holds or a deadline passes.
//! `apply`, `verify` and drills call it; the error carries the last status, so a timeout explains itself.
//! It never sleeps for "long enough" and knows nothing of what is probed.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    Ready(T),
    /// Not yet, and what it looks like now.
    NotYet(String),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not {what} after {} s; last seen: {last}", .after.as_secs())]
pub struct TimedOut {
    pub what: String,
    pub after: Duration,
    pub last: String,
}

/// Probes at once and then `every` until ready or `deadline` (from now) has passed.
/// A probe that hangs is cut off at the deadline. `status` hears each new last status once.
pub async fn until<T, F, Fut>(
    what: impl Display,
    deadline: Duration,
    every: Duration,
    mut status: impl FnMut(&str),
    mut probe: F,
) -> Result<T, TimedOut>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Seen<T>>,
{
    let start = Instant::now();
    let end = start + deadline;
    let mut last = "nothing yet".to_owned();
    loop {
        match tokio::time::timeout_at(end, probe()).await {
            Ok(Seen::Ready(value)) => return Ok(value),
            Ok(Seen::NotYet(now)) => {
                if now != last {
                    status(&now);
                    last = now;
                }
            }
            Err(_) => last = format!("{last} (the last probe did not answer)"),
        }
        let next = Instant::now() + every;
        if next >= end {
            return Err(TimedOut { what: what.to_string(), after: start.elapsed(), last });
        }
        tokio::time::sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timeout_carries_the_last_status_and_a_hanging_probe_is_cut_off() {
        let mut statuses = Vec::new();
        let mut n = 0;
        let error = until(
            "ready",
            Duration::from_secs(10),
            Duration::from_secs(1),
            |s| statuses.push(s.to_owned()),
            || {
                n += 1;
                let hang = n > 3;
                async move {
                    if hang {
                        std::future::pending::<()>().await;
                    }
                    Seen::<()>::NotYet("no leader".to_owned())
                }
            },
        )
        .await
        .expect_err("must time out");
        assert_eq!(error.after, Duration::from_secs(10));
        assert_eq!(error.to_string(), "not ready after 10 s; last seen: no leader (the last probe did not answer)");
        assert_eq!(statuses, ["no leader"]);
    }

    #[tokio::test(start_paused = true)]
    async fn ready_returns_at_once() {
        let start = Instant::now();
        let value = until("ready", Duration::from_secs(5), Duration::from_secs(1), |_| (), || async { Seen::Ready(7) }).await;
        assert_eq!((value, start.elapsed()), (Ok(7), Duration::ZERO));
    }
}
