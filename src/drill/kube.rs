//! What drills want of Kubernetes: who holds what, probes of the API from outside, and what became of nodes and pods.
//! `run` asks through the `Kube` trait and keeps a `KubeRecord`; judges read that. Clusters of bare etcd have none.
//! It knows no HTTP: the virtual-machine side implements the trait over the host's API client.

use super::clock::{At, Clock};
use super::target::WorkerView;
use crate::spec::NodeName;
use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Which way the API is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// The virtual address.
    Vip,
    /// One controller's own address.
    Direct(#[schemars(with = "String")] NodeName),
}

/// One probe of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiProbe {
    pub door: Door,
    /// On a connection of its own, or on one that is kept.
    pub fresh: bool,
    /// Writes a ConfigMap, or only reads `/readyz`.
    pub write: bool,
    pub sent: At,
    pub at: At,
    /// `None`: it succeeded.
    pub error: Option<String>,
}

/// Cluster state as the API tells it, once a second or so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KubeSample {
    pub at: At,
    /// Holder identity and number of transitions of each lease, by the lease's name; the renewal time as the API writes it.
    pub leases: BTreeMap<String, Lease>,
    /// `Ready` condition of each node: `True`, `False` or `Unknown`.
    pub nodes: BTreeMap<String, String>,
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    pub holder: String,
    pub transitions: u64,
    pub renewed: String,
}

/// A pod, as far as invariant I11 looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PodSeen {
    pub uid: String,
    pub name: String,
    pub node: String,
    pub restarts: u64,
}

/// What drills see of Kubernetes before the fault.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KubeView {
    /// Controllers with an API server, a controller-manager and a scheduler of their own.
    pub control_planes: Vec<NodeName>,
    pub workers: Vec<WorkerView>,
    pub lease_holders: BTreeMap<String, NodeName>,
    pub vip_holder: Option<NodeName>,
    /// Servers that are not ready, nodes that are not Ready, leases that nobody holds; one line each.
    pub unready: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KubeRecord {
    /// Empty where the drill's load leaves the API alone.
    pub probes: Vec<ApiProbe>,
    pub samples: Vec<KubeSample>,
    /// `Err`: they could not be listed. `None`: nobody tried.
    pub pods_before: Option<Result<Vec<PodSeen>, String>>,
    pub pods_after: Option<Result<Vec<PodSeen>, String>>,
    /// Between two probes of one kind by the virtual address, microseconds; 0: there were none.
    #[serde(default)]
    pub every_us: u64,
}

/// Kubernetes as seen from the host.
pub trait Kube: Send + Sync {
    fn view(&self) -> BoxFuture<'_, Result<KubeView, String>>;
    /// Ways to ask.
    fn doors(&self) -> Vec<Door>;
    /// One probe; the implementation bounds its time.
    fn probe<'a>(&'a self, door: &'a Door, fresh: bool, write: bool) -> BoxFuture<'a, Result<(), String>>;
    fn sample(&self) -> BoxFuture<'_, Result<KubeSample, String>>;
    /// Those that are to run until somebody removes them, and have not ended.
    fn pods(&self) -> BoxFuture<'_, Result<Vec<PodSeen>, String>>;
    /// Removes what write probes have written, of this run or another; nothing is there afterwards, or the reason is told.
    fn forget(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// Between two probes of one kind by the virtual address, where the API is quick enough.
const EVERY: Duration = Duration::from_millis(50);
/// The pace leaves so many answers' time between two probes of a kind: readiness costs a server several questions to etcd, and
/// a busy one would measure its own probes.
const ANSWERS: u32 = 4;
/// One probe of a server itself, and one write, for so many readings by the virtual address.
const SELDOM: u32 = 4;
/// Probes of one kind that may be open at once; one that reaches it skips a beat.
const OPEN_MOST: usize = 64;

/// The pace of probes that take so long: as wished on a quick cluster, slower on one that answers slowly.
pub fn pace(wished: Duration, median: Duration) -> Duration {
    wished.max(median * ANSWERS)
}

/// Median time of a few probes by a door; a long one when it does not answer.
async fn measure(kube: &dyn Kube, door: &Door, write: bool) -> Duration {
    let mut taken = Vec::new();
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let answered = kube.probe(door, true, write).await.is_ok();
        taken.push(if answered { start.elapsed() } else { Duration::from_millis(500) });
    }
    taken.sort_unstable();
    taken.get(taken.len() / 2).copied().unwrap_or_default()
}

/// Probes that run beside the load.
pub struct KubeLoad {
    record: Arc<Mutex<KubeRecord>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    doors: Vec<Door>,
}

impl std::fmt::Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Door::Vip => f.pad("virtual address"),
            Door::Direct(node) => f.pad(&node.to_string()),
        }
    }
}

impl KubeLoad {
    /// Looks at the pods; with `probing`, on a cluster that already bears the load of etcd, also starts a probe for every door, connection and kind, each request a task of its own.
    pub async fn start(kube: Arc<dyn Kube>, clock: Clock, probing: bool) -> KubeLoad {
        let record = KubeRecord { pods_before: Some(kube.pods().await), ..KubeRecord::default() };
        let record = Arc::new(Mutex::new(record));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let doors = if probing { kube.doors() } else { vec![] };
        if let Some(first) = doors.first() {
            // Beside the load, and the two kinds beside each other: that is how they will be.
            let (reads, writes) = tokio::join!(measure(kube.as_ref(), first, false), measure(kube.as_ref(), first, true));
            let (reads, writes) = (pace(EVERY, reads), pace(EVERY * SELDOM, writes));
            lock(&record).every_us = u64::try_from(reads.as_micros()).unwrap_or(u64::MAX);
            for door in &doors {
                // The virtual address is what clients use. A look at each server now and then tells which one was at fault.
                let seldom = if *door == Door::Vip { 1 } else { SELDOM };
                for (fresh, write) in [(true, false), (false, false), (false, true)] {
                    let every = if write { writes } else { reads } * seldom;
                    let (kube, door, record, stopped) = (kube.clone(), door.clone(), record.clone(), stopped.clone());
                    tasks.spawn(probes(kube, clock, every, door, fresh, write, record, stopped));
                }
            }
            tasks.spawn(samples(kube, clock, record.clone(), stopped));
        }
        KubeLoad { record, stop, tasks, doors }
    }

    /// Doors by which no new connection that was tried after a moment has been answered.
    pub fn silent(&self, after: At) -> Vec<Door> {
        let record = lock(&self.record);
        let heard = |door: &Door| {
            let late = record.probes.iter().rev().take_while(|probe| probe.at >= after);
            late.into_iter().any(|probe| probe.fresh && probe.door == *door && probe.sent >= after && probe.error.is_none())
        };
        self.doors.iter().filter(|door| !heard(door)).cloned().collect()
    }

    /// Pods as they were before.
    pub fn pods_before(&self) -> Vec<PodSeen> {
        lock(&self.record).pods_before.clone().and_then(Result::ok).unwrap_or_default()
    }

    /// Ends the probes and returns what they saw.
    pub async fn finish(mut self, kube: &dyn Kube) -> KubeRecord {
        let _ = self.stop.send(true);
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let mut record = std::mem::take(&mut *lock(&self.record));
        record.pods_after = Some(kube.pods().await);
        record
    }
}

fn lock(record: &Mutex<KubeRecord>) -> std::sync::MutexGuard<'_, KubeRecord> {
    record.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[expect(clippy::too_many_arguments, reason = "the parts of one probe, passed once")]
async fn probes(
    kube: Arc<dyn Kube>,
    clock: Clock,
    every: Duration,
    door: Door,
    fresh: bool,
    write: bool,
    record: Arc<Mutex<KubeRecord>>,
    stopped: watch::Receiver<bool>,
) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut requests = JoinSet::new();
    while !*stopped.borrow() {
        tick.tick().await;
        while requests.try_join_next().is_some() {}
        if requests.len() >= OPEN_MOST {
            continue;
        }
        let (kube, door, record) = (kube.clone(), door.clone(), record.clone());
        requests.spawn(async move {
            let sent = clock.now();
            let error = kube.probe(&door, fresh, write).await.err();
            let probe = ApiProbe { door, fresh, write, sent, at: clock.now(), error };
            lock(&record).probes.push(probe);
        });
    }
}

async fn samples(kube: Arc<dyn Kube>, clock: Clock, record: Arc<Mutex<KubeRecord>>, stopped: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*stopped.borrow() {
        tick.tick().await;
        let sample = match kube.sample().await {
            Ok(sample) => KubeSample { at: clock.now(), ..sample },
            Err(error) => KubeSample { at: clock.now(), error: Some(error), ..KubeSample::default() },
        };
        lock(&record).samples.push(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_api_slows_its_probes_and_a_quick_one_is_asked_as_often_as_wished() {
        let ms = Duration::from_millis;
        assert_eq!(pace(EVERY, ms(5)), ms(50));
        assert_eq!(pace(EVERY, ms(40)), ms(160));
        assert_eq!(pace(EVERY * SELDOM, ms(300)), ms(1200));
    }
}
