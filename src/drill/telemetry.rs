//! Telemetry: every member's status up to ten times a second, and a watch of the probe's keys on every member.
//! `run` starts it with the load; windows, lanes and invariants are computed from what it returns.
//! It asks each question on connections of its own, and notes silence as what it is.

use super::clock::{Clock, pass};
use super::etcd::{EtcdError, Link, Site, puts, status};
use super::history::Member;
use super::record::{Sample, WatchLog};
use super::windows::Gap;
use etcd_client::WatchOptions;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Between two questions to one member, where answers are quick.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// The observer's own heartbeat, and how late it may be before it counts as a stall.
const STALL_BEAT: Duration = Duration::from_millis(20);
const STALL: Duration = Duration::from_millis(100);
/// A watch that has been silent for so long is made anew: silence may be a dead connection.
const WATCH_SILENCE: Duration = Duration::from_secs(2);

/// The pace of questions for the status: slower where a write takes long, as an emulated member would be kept busy by them.
pub fn pace(median: Duration) -> Duration {
    SAMPLE_EVERY.max(median / 4).min(Duration::from_secs(1))
}

pub struct Telemetry {
    samples: Arc<Mutex<Vec<Sample>>>,
    logs: Vec<Arc<Mutex<WatchLog>>>,
    stalls: Arc<Mutex<Vec<Gap>>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Telemetry {
    /// `from`: first revision that the watches deliver; `every`: between two questions to one member.
    pub fn start(site: &Site, prefix: &str, from: i64, every: Duration, clock: Clock) -> Telemetry {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut logs = Vec::new();
        for member in 0..site.members.len() {
            let (Some(asked), Some(watched)) = (site.link(member), site.link(member)) else { continue };
            tasks.spawn(sample_loop(asked, member, every, site.ask_timeout(), clock, samples.clone(), stopped.clone()));
            let log = Arc::new(Mutex::new(WatchLog { member, from, ..WatchLog::default() }));
            tasks.spawn(watch_loop(watched, prefix.to_owned(), from, log.clone(), stopped.clone()));
            logs.push(log);
        }
        let stalls = Arc::new(Mutex::new(Vec::new()));
        tasks.spawn(stall_loop(clock, stalls.clone()));
        Telemetry { samples, logs, stalls, stop, tasks }
    }

    /// A copy of the samples that there are, in the order of their answers.
    pub fn so_far(&self) -> Vec<Sample> {
        lock(&self.samples).clone()
    }

    /// Highest revision that each watch has delivered.
    pub fn watched_to(&self) -> Vec<i64> {
        self.logs.iter().map(|log| lock(log).changes.last().map_or(0, |change| change.revision)).collect()
    }

    pub async fn finish(mut self) -> (Vec<Sample>, Vec<WatchLog>, Vec<Gap>) {
        let _ = self.stop.send(true);
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let mut samples = std::mem::take(&mut *lock(&self.samples));
        samples.sort_by_key(|sample| sample.at);
        let stalls = std::mem::take(&mut *lock(&self.stalls));
        (samples, self.logs.iter().map(|log| lock(log).clone()).collect(), stalls)
    }
}

/// Watches the watcher: what looks like an outage may be a host that did not let us run.
async fn stall_loop(clock: Clock, stalls: Arc<Mutex<Vec<Gap>>>) {
    let mut last = clock.now();
    loop {
        pass(STALL_BEAT).await;
        let now = clock.now();
        if now.since(last) > STALL {
            lock(&stalls).push(Gap { from: last, to: now });
        }
        last = now;
    }
}

async fn sample_loop(
    link: Arc<Link>,
    member: Member,
    every: Duration,
    deadline: Duration,
    clock: Clock,
    samples: Arc<Mutex<Vec<Sample>>>,
    stopped: watch::Receiver<bool>,
) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut questions = JoinSet::new();
    while !*stopped.borrow() {
        tick.tick().await;
        while questions.try_join_next().is_some() {}
        let (link, samples) = (link.clone(), samples.clone());
        questions.spawn(async move {
            let sent = clock.now();
            let (status, error) = match status(&link, deadline).await {
                Ok(status) => (Some(status), None),
                Err(error) => (None, Some(error.to_string())),
            };
            lock(&samples).push(Sample { member, sent, at: clock.now(), status, error });
        });
    }
}

/// Follows one member's changes, connection after connection, until it is stopped or history is compacted under it.
async fn watch_loop(link: Arc<Link>, prefix: String, from: i64, log: Arc<Mutex<WatchLog>>, stopped: watch::Receiver<bool>) {
    let mut next = from;
    while !*stopped.borrow() {
        match follow(&link, &prefix, &mut next, &log).await {
            Ok(()) | Err(EtcdError::Silent(_)) => (),
            // A member that is down refuses at once.
            Err(_) => pass(Duration::from_millis(200)).await,
        }
        if lock(&log).broken.is_some() {
            return;
        }
    }
}

async fn follow(link: &Link, prefix: &str, next: &mut i64, log: &Mutex<WatchLog>) -> Result<(), EtcdError> {
    let options = WatchOptions::new().with_prefix().with_start_revision(*next);
    let opening = async { Ok::<_, EtcdError>(link.client().await?.watch(prefix, Some(options)).await?) };
    let opened = tokio::time::timeout(WATCH_SILENCE, opening).await;
    let mut stream = opened.unwrap_or(Err(EtcdError::Silent(WATCH_SILENCE)))?;
    lock(log).connections += 1;
    loop {
        let message = tokio::time::timeout(WATCH_SILENCE, stream.message()).await;
        let Ok(message) = message else { return Err(EtcdError::Silent(WATCH_SILENCE)) };
        let Some(message) = message? else { return Ok(()) };
        link.heard();
        if message.canceled() {
            if message.compact_revision() > 0 {
                let broken = format!("history before revision {} was compacted", message.compact_revision());
                lock(log).broken = Some(broken);
            }
            return Ok(());
        }
        let changes = puts(prefix, message.events());
        if let Some(last) = changes.last() {
            *next = last.revision + 1;
        }
        lock(log).changes.extend(changes);
    }
}
