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
    pub workers: Vec<WorkerView>,
    pub lease_holders: BTreeMap<String, NodeName>,
    pub vip_holder: Option<NodeName>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KubeRecord {
    pub probes: Vec<ApiProbe>,
    pub samples: Vec<KubeSample>,
    pub pods_before: Vec<PodSeen>,
    /// `Err`: they could not be listed.
    pub pods_after: Option<Result<Vec<PodSeen>, String>>,
}

/// Kubernetes as seen from the host.
pub trait Kube: Send + Sync {
    fn view(&self) -> BoxFuture<'_, Result<KubeView, String>>;
    /// Ways to ask.
    fn doors(&self) -> Vec<Door>;
    /// One probe; the implementation bounds its time.
    fn probe<'a>(&'a self, door: &'a Door, fresh: bool, write: bool) -> BoxFuture<'a, Result<(), String>>;
    fn sample(&self) -> BoxFuture<'_, Result<KubeSample, String>>;
    fn pods(&self) -> BoxFuture<'_, Result<Vec<PodSeen>, String>>;
}

/// One probe of a server itself for so many by the virtual address.
const DIRECTLY: u32 = 5;

/// Probes that run beside the load.
pub struct KubeLoad {
    record: Arc<Mutex<KubeRecord>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl KubeLoad {
    /// Starts a probe for every door, connection and kind, each request a task of its own.
    pub async fn start(kube: Arc<dyn Kube>, clock: Clock, every: Duration) -> KubeLoad {
        let record = KubeRecord { pods_before: kube.pods().await.unwrap_or_default(), ..KubeRecord::default() };
        let record = Arc::new(Mutex::new(record));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for door in kube.doors() {
            // The virtual address is what clients use. A look at each server now and then tells which one was at fault:
            // readiness costs a server several questions to etcd, and a busy one would measure its own probes.
            let every = if door == Door::Vip { every } else { every * DIRECTLY };
            for (fresh, write) in [(true, false), (false, false), (false, true)] {
                tasks.spawn(probes(kube.clone(), clock, every, door.clone(), fresh, write, record.clone(), stopped.clone()));
            }
        }
        tasks.spawn(samples(kube, clock, record.clone(), stopped));
        KubeLoad { record, stop, tasks }
    }

    /// Ends the probes and returns what they saw.
    pub async fn finish(mut self, kube: &dyn Kube) -> KubeRecord {
        let _ = self.stop.send(true);
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let mut record = std::mem::take(&mut *self.record.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        record.pods_after = Some(kube.pods().await);
        record
    }
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
    let mut requests = JoinSet::new();
    while !*stopped.borrow() {
        tick.tick().await;
        while requests.try_join_next().is_some() {}
        let (kube, door, record) = (kube.clone(), door.clone(), record.clone());
        requests.spawn(async move {
            let sent = clock.now();
            let error = kube.probe(&door, fresh, write).await.err();
            let probe = ApiProbe { door, fresh, write, sent, at: clock.now(), error };
            record.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).probes.push(probe);
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
        record.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).samples.push(sample);
    }
}
