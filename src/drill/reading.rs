//! What is read when the load has ended: the final log, hashes, lists of members, alarms; and what a run wrote is removed.
//! `run` calls it once per run and puts the result into the record.
//! It judges nothing: what could not be read is recorded as that.

use super::admin::list_alarms;
use super::catalogue::Keys;
use super::clock::pass;
use super::etcd::{self, EtcdError, Link, Replay, Site, read_prefix, statuses};
use super::history::Change;
use super::injector::Injector;
use super::record::{After, Hashed, LogSource, Record, WatchLog};
use super::telemetry::Telemetry;
use crate::wait::{self, Seen};
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;

/// Rounds of hashes, a second apart, before a difference counts.
const HASH_ROUNDS: u32 = 7;

/// The final log, or, where history is gone and watches have it, what the store holds of it now.
pub struct Reading {
    pub log: Vec<Change>,
    pub source: LogSource,
    /// Of the store, when it was read.
    pub revision: i64,
}

/// A linearizable reading says how far the log must reach, then history is replayed up to there.
pub async fn log(site: &Site, prefix: &str, record: &Record, telemetry: &Telemetry) -> Reading {
    match try_log(site, prefix, record, telemetry).await {
        Ok(reading) => reading,
        Err(why) => Reading { log: vec![], source: LogSource::Missing(why), revision: 0 },
    }
}

async fn try_log(site: &Site, prefix: &str, record: &Record, telemetry: &Telemetry) -> Result<Reading, String> {
    let deadline = site.ask_timeout() * 5;
    let (revision, held) = first_answer(site, |link| async move { read_prefix(&link, prefix, deadline).await }).await?;
    let last = held.iter().map(|change| change.revision).max().unwrap_or(0);
    // Watches may be a moment behind; what they miss after this counts against them.
    let caught_up = || async {
        let behind = telemetry.watched_to().into_iter().filter(|to| *to < last).count();
        if behind == 0 { Seen::Ready(()) } else { Seen::NotYet(format!("{behind} behind")) }
    };
    if !record.drill.expect.waive.iter().any(|id| id == "I10") {
        let _ = wait::until("watches", site.ask_timeout() * 2, Duration::from_millis(50), |_| (), caught_up).await;
    }
    if record.drill.load.keys == Keys::Append {
        return Ok(Reading { log: held, source: LogSource::Keys, revision });
    }
    let shown = record.ops.iter().filter_map(|op| op.answer).map(|answer| answer.revision).min();
    let Some(from) = replayed_from(shown, last) else {
        return Ok(Reading { log: vec![], source: LogSource::Replay, revision });
    };
    let replay = |link: Arc<Link>| async move { etcd::replay(&link, prefix, from, last, deadline).await };
    match first_answer(site, replay).await? {
        Replay::Whole(log) => {
            let log = log.into_iter().filter(|change| change.revision <= last).collect();
            Ok(Reading { log, source: LogSource::Replay, revision })
        }
        // A watch that was there from the first to the last change has seen them all.
        Replay::Compacted if telemetry.watched_to().into_iter().any(|to| to >= last) => {
            Ok(Reading { log: held, source: LogSource::Watches, revision })
        }
        Replay::Compacted => Err("history was compacted, and no watch saw the end".to_owned()),
    }
}

/// Revision from which history is replayed up to the last change that the store holds: the lowest that any answer showed, or that
/// change itself in a store that has gone back below. `None`: it holds nothing of the run, and no change would ever come.
fn replayed_from(shown: Option<i64>, last: i64) -> Option<i64> {
    (last > 0).then(|| shown.unwrap_or(1).clamp(1, last))
}

/// What the first of the members says that answers, one asked after the other: a single silent one must not leave a run without
/// its log. `Err`: none did, and what each said instead.
async fn first_answer<T, Asked>(site: &Site, ask: impl Fn(Arc<Link>) -> Asked) -> Result<T, String>
where
    Asked: Future<Output = Result<T, EtcdError>>,
{
    let mut refused = Vec::new();
    for (i, member) in site.members.iter().enumerate() {
        let Some(link) = site.link(i) else { continue };
        match ask(link).await {
            Ok(answer) => return Ok(answer),
            Err(error) => refused.push(format!("{}: {error}", member.node)),
        }
    }
    Err(if refused.is_empty() { "there is no member".to_owned() } else { refused.join("; ") })
}

/// All changes that any watch delivered, once each.
pub fn union(watches: &[WatchLog]) -> Vec<Change> {
    let mut all: Vec<Change> = watches.iter().flat_map(|watch| watch.changes.iter().cloned()).collect();
    all.sort();
    all.dedup();
    all
}

/// What is left of the changes that watches delivered in a store that holds these keys, as read at a revision: one that is newer
/// than what its key holds was delivered and is gone. Older values of a key tell nothing, and neither does what came later.
pub fn kept(delivered: Vec<Change>, held: &[Change], revision: i64) -> Vec<Change> {
    let newest = |key: &str| held.iter().find(|change| change.key == key).map_or(0, |change| change.revision);
    delivered.into_iter().filter(|change| change.revision > revision || change.revision <= newest(&change.key)).collect()
}

/// Hashes, ids, lists, alarms, logs and processes of all members.
pub async fn members(site: &Site, injector: &dyn Injector, after: &mut After) {
    let deadline = site.ask_timeout();
    for round in 0..HASH_ROUNDS {
        if round > 0 {
            pass(Duration::from_secs(1)).await;
        }
        let statuses = statuses(site).await;
        let revision = statuses.iter().filter_map(|s| s.as_ref().ok()).map(|s| s.revision).min().unwrap_or(0);
        let hashes = (0..site.members.len()).map(|member| async move {
            let hash = match site.link(member) {
                Some(link) => etcd::hash(&link, revision, deadline * 2).await.map_err(|error| error.to_string()),
                None => Err("no such member".to_owned()),
            };
            Hashed { member, hash }
        });
        let hashes = join_all(hashes).await;
        let first = hashes.first().map(|hashed| hashed.hash.clone());
        let equal = hashes.iter().all(|hashed| hashed.hash.is_ok() && Some(&hashed.hash) == first.as_ref());
        after.hash_revision = revision;
        after.hashes = hashes;
        after.ids = statuses.iter().map(|s| s.as_ref().ok().map(|s| s.id)).collect();
        if equal {
            break;
        }
    }
    let lists = (0..site.members.len()).map(|member| async move {
        let link = site.link(member).ok_or("no such member")?;
        etcd::member_list(&link, deadline).await.map_err(|error| error.to_string())
    });
    after.lists = join_all(lists).await;
    after.alarms = list_alarms(site).await;
    after.alarming_logs = injector.alarming_logs().await.map_err(|error| error.to_string());
    after.incarnations = incarnations(site, injector).await;
    after.processes = injector.processes().await.map_err(|error| error.to_string());
}

pub async fn incarnations(site: &Site, injector: &dyn Injector) -> Vec<Option<String>> {
    join_all(site.members.iter().map(|member| async { injector.incarnation(&member.node).await.ok() })).await
}

/// What every run writes lies below these, in a directory of its own.
pub const PROBE_KEYS: &str = "/ktcw/probe/";
/// Single writes that measure the pace; apart from the probe's, whose history is judged.
pub const WARM_KEYS: &str = "/ktcw/warm/";

/// Removes everything below these prefixes, through whichever member takes it; how many keys there were. Should all refuse, what
/// stays are a few hundred kilobytes under names of their own, which the next heal removes.
pub async fn forget_keys(site: &Site, prefixes: &[String]) -> i64 {
    let mut removed = 0;
    for prefix in prefixes {
        let mut answered = false;
        for link in (0..site.members.len()).filter_map(|member| site.link(member)) {
            let options = etcd_client::DeleteOptions::new().with_prefix();
            let asked =
                link.ask(site.ask_timeout(), |mut client| async move { client.delete(prefix.as_str(), Some(options)).await });
            if let Ok(answer) = asked.await {
                removed += answer.deleted();
                answered = true;
                break;
            }
        }
        // A cluster that takes no deletion takes no other either.
        if !answered {
            break;
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::super::sample::leader_kill;
    use super::*;
    use std::cell::Cell;

    /// What is said of the log when so many members are silent, and how many were asked.
    async fn asked(silent: usize) -> (Result<usize, String>, usize) {
        let record = leader_kill();
        let site = Site { members: record.members, tls: None, quota_mib: 0, environment: record.environment };
        let asked = Cell::new(0);
        let answer = first_answer(&site, |_| {
            let turn = asked.replace(asked.get() + 1);
            async move { if turn < silent { Err(EtcdError::Silent(Duration::from_secs(2))) } else { Ok(turn) } }
        });
        (answer.await, asked.get())
    }

    #[tokio::test]
    async fn a_member_that_does_not_answer_is_passed_over() {
        assert_eq!(asked(0).await, (Ok(0), 1), "nobody else is asked without need");
        assert_eq!(asked(1).await, (Ok(1), 2));
        let (none, asked) = asked(3).await;
        let why = none.expect_err("nobody answers");
        assert!(why.starts_with("controller-0: no answer within 2000 ms; controller-1: ") && asked == 3, "{why}");
    }

    /// A store that has lost everything has a log, and it is empty: to wait for a change in it would leave the loss untold.
    #[test]
    fn a_store_that_holds_nothing_is_not_waited_for() {
        assert_eq!(replayed_from(Some(11), 0), None);
        assert_eq!(replayed_from(Some(11), 90), Some(11));
        assert_eq!(replayed_from(None, 90), Some(1));
        assert_eq!(replayed_from(Some(0), 90), Some(1));
        assert_eq!(replayed_from(Some(11), 7), Some(7), "gone back to before the run");
    }

    #[test]
    fn what_was_delivered_and_is_not_held_is_not_kept() {
        let change = |revision, key: &str, value| Change { revision, key: key.to_owned(), value };
        let delivered = vec![change(10, "a", 1), change(11, "b", 2), change(12, "a", 3), change(13, "c", 4), change(21, "a", 5)];
        let held = [change(12, "a", 3), change(11, "b", 2), change(13, "c", 4)];
        assert_eq!(kept(delivered.clone(), &held, 20), delivered);
        // The last write of a key has gone back to an earlier one, and a key is gone.
        let back = [change(10, "a", 1), change(11, "b", 2)];
        assert_eq!(kept(delivered.clone(), &back, 20), [change(10, "a", 1), change(11, "b", 2), change(21, "a", 5)]);
    }
}
