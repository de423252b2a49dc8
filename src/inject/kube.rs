//! Kubernetes as drills want to see it: probes through the virtual address and to each server, leases, nodes, pods.
//! `drill` asks through the `Kube` trait; the answers are the API's own, over mTLS from this computer.
//! It keeps no state but connections; who carries the virtual address is asked of the controllers themselves.

use crate::api::{Api, ApiError};
use crate::drill::kube::{Door, Kube, KubeSample, KubeView, Lease, PodSeen};
use crate::drill::target::WorkerView;
use crate::guest::{Cmd, Guest};
use crate::plan::{ELECTIONS, Plan, lease_holder};
use crate::spec::NodeName;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// What write probes write, each door its own: writers of one object wait for each other. They go with `forget`.
const PROBES: &str = "/api/v1/namespaces/default/configmaps/";

fn probe_name(door: &Door) -> String {
    match door {
        Door::Vip => "ktcw-drill-probe".to_owned(),
        Door::Direct(node) => format!("ktcw-drill-probe-{node}"),
    }
}

pub struct ApiProbes {
    pub plan: Arc<Plan>,
    /// Keeps its connections.
    pub kept: Api,
    /// Makes a new one for every request.
    pub fresh: Api,
    pub guest: Arc<dyn Guest>,
    /// This computer's clock.
    pub clock: fn() -> Timestamp,
}

impl ApiProbes {
    /// A probe that has not been answered by then counts as failed.
    fn patience(&self) -> Duration {
        Duration::from_millis(u64::from(self.plan.timers.etcd_election_ms)) * 2
    }

    fn address(&self, door: &Door) -> Option<Ipv4Addr> {
        match door {
            Door::Vip => Some(self.plan.network.vip),
            Door::Direct(node) => self.plan.node(node).map(|node| node.ip),
        }
    }

    /// The first answer: by the virtual address, then of each server.
    async fn get(&self, path: &str, patience: Duration) -> Result<Value, String> {
        let mut last = "there is no API server".to_owned();
        let servers = self.plan.control_planes().map(|node| node.ip);
        for address in std::iter::once(self.plan.network.vip).chain(servers) {
            match self.fresh.get_json(address, path, patience).await {
                Ok(value) => return Ok(value),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    async fn leases(&self, patience: Duration) -> Result<BTreeMap<String, Lease>, String> {
        let value = self.get("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", patience).await?;
        Ok(leases(&value))
    }

    async fn vip_holder(&self) -> Option<NodeName> {
        let vip = self.plan.network.vip;
        let patience = Duration::from_secs(u64::from(self.plan.timers.probe_deadline_s));
        let looks = self.plan.control_planes().map(|node| async move {
            let cmd = Cmd::new("ip -4 -o addr show dev eth0", patience);
            let seen = self.guest.run(&node.name, cmd).await.ok()?.stdout_text();
            seen.contains(&format!(" {vip}/32 ")).then(|| node.name.clone())
        });
        join_all(looks).await.into_iter().flatten().next()
    }
}

impl Kube for ApiProbes {
    fn view(&self) -> BoxFuture<'_, Result<KubeView, String>> {
        async move {
            let patience = self.patience() * 2;
            let nodes = ready(&self.get("/api/v1/nodes", patience).await?);
            let pods = pods(&self.get("/api/v1/pods", patience).await?);
            let worker = |node: &crate::plan::NodePlan| {
                let name = node.name.to_string();
                WorkerView {
                    ready: nodes.get(&name).is_some_and(|ready| ready == "True"),
                    pods: pods.iter().filter(|pod| pod.node == name).count().try_into().unwrap_or(u32::MAX),
                    node: node.name.clone(),
                }
            };
            let leases = self.leases(patience).await?;
            let servers: Vec<_> = self.plan.control_planes().collect();
            let asked = join_all(servers.iter().map(|node| self.fresh.ready(node.ip, patience))).await;
            let servers: Vec<(NodeName, Result<(), String>)> =
                servers.iter().zip(asked).map(|(node, asked)| (node.name.clone(), asked.map_err(|e| e.to_string()))).collect();
            let workers: Vec<NodeName> = self.plan.workers().map(|node| node.name.clone()).collect();
            let unready = unready(&servers, &workers, &nodes, &leases);
            let holder = |(name, lease): (String, Lease)| Some((name, NodeName::parse(lease_holder(&lease.holder)).ok()?));
            Ok(KubeView {
                control_planes: self.plan.control_planes().map(|node| node.name.clone()).collect(),
                workers: self.plan.workers().map(worker).collect(),
                lease_holders: leases.into_iter().filter_map(holder).collect(),
                vip_holder: self.vip_holder().await,
                unready,
            })
        }
        .boxed()
    }

    fn doors(&self) -> Vec<Door> {
        let direct = self.plan.control_planes().map(|node| Door::Direct(node.name.clone()));
        std::iter::once(Door::Vip).chain(direct).collect()
    }

    fn probe<'a>(&'a self, door: &'a Door, fresh: bool, write: bool) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let address = self.address(door).ok_or("the cluster has no such node")?;
            let api = if fresh { &self.fresh } else { &self.kept };
            let asked = if write {
                api.apply(address, &config_map(door, (self.clock)()), self.patience()).await
            } else {
                api.ready(address, self.patience()).await
            };
            asked.map_err(|error: ApiError| error.to_string())
        }
        .boxed()
    }

    fn sample(&self) -> BoxFuture<'_, Result<KubeSample, String>> {
        async move {
            let patience = self.patience();
            let (leases, nodes) = tokio::join!(self.leases(patience), self.get("/api/v1/nodes", patience));
            Ok(KubeSample { leases: leases?, nodes: ready(&nodes?), ..KubeSample::default() })
        }
        .boxed()
    }

    fn pods(&self) -> BoxFuture<'_, Result<Vec<PodSeen>, String>> {
        async move { Ok(pods(&self.get("/api/v1/pods", self.patience() * 2).await?)) }.boxed()
    }

    /// By whichever server takes it.
    fn forget(&self) -> BoxFuture<'_, Result<(), String>> {
        async move {
            for door in self.doors() {
                let path = format!("{PROBES}{}", probe_name(&door));
                let mut last = Ok(());
                for node in self.plan.control_planes() {
                    last = self.fresh.delete(node.ip, &path, self.patience() * 2).await.map_err(|error| error.to_string());
                    if last.is_ok() {
                        break;
                    }
                }
                last?;
            }
            Ok(())
        }
        .boxed()
    }
}

/// What is amiss in Kubernetes before a drill, a line each.
fn unready(
    servers: &[(NodeName, Result<(), String>)],
    workers: &[NodeName],
    nodes: &BTreeMap<String, String>,
    leases: &BTreeMap<String, Lease>,
) -> Vec<String> {
    let server = |(node, asked): &(NodeName, Result<(), String>)| {
        asked.as_ref().err().map(|error| format!("kube-apiserver on {node} is not ready: {error}"))
    };
    let node = |node: &NodeName| match nodes.get(&node.to_string()).map(String::as_str) {
        Some("True") => None,
        Some(_) => Some(format!("{node} is not Ready")),
        None => Some(format!("{node} is not registered")),
    };
    let lease = |name: &&str| {
        let held = leases.get(*name).is_some_and(|lease| !lease.holder.is_empty());
        (!held).then(|| format!("nobody holds the lease {name}"))
    };
    servers.iter().filter_map(server).chain(workers.iter().filter_map(node)).chain(ELECTIONS.iter().filter_map(lease)).collect()
}

/// A ConfigMap of one door's last write.
fn config_map(door: &Door, now: Timestamp) -> String {
    let name = probe_name(door);
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: default\ndata:\n  written: \"{now}\"\n")
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("items").and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn leases(list: &Value) -> BTreeMap<String, Lease> {
    let lease = |item: &Value| {
        let name = text(item, "/metadata/name");
        let lease = Lease {
            holder: text(item, "/spec/holderIdentity"),
            transitions: item.pointer("/spec/leaseTransitions").and_then(Value::as_u64).unwrap_or(0),
            renewed: text(item, "/spec/renewTime"),
        };
        ELECTIONS.contains(&name.as_str()).then_some((name, lease))
    };
    items(list).filter_map(lease).collect()
}

/// `Ready` of each node; one that says nothing is unknown.
fn ready(list: &Value) -> BTreeMap<String, String> {
    let condition = |item: &Value| {
        let conditions = item.pointer("/status/conditions").and_then(Value::as_array)?;
        conditions.iter().find(|c| text(c, "/type") == "Ready").map(|c| text(c, "/status"))
    };
    items(list).map(|item| (text(item, "/metadata/name"), condition(item).unwrap_or_else(|| "Unknown".to_owned()))).collect()
}

/// Pods that are there to stay. Users have others: what has ended is started by nobody, and what is meant to end comes, ends and
/// goes by itself, drill or no drill. Neither tells anything of a fault.
fn pods(list: &Value) -> Vec<PodSeen> {
    let restarts = |item: &Value| {
        let statuses = item.pointer("/status/containerStatuses").and_then(Value::as_array);
        statuses.into_iter().flatten().filter_map(|s| s.get("restartCount")?.as_u64()).sum()
    };
    let pod = |item: &Value| PodSeen {
        uid: text(item, "/metadata/uid"),
        name: format!("{}/{}", text(item, "/metadata/namespace"), text(item, "/metadata/name")),
        node: text(item, "/spec/nodeName"),
        restarts: restarts(item),
    };
    items(list).filter(|item| stays(item)).map(pod).collect()
}

/// Whether a pod is to run until somebody removes it, and does. A policy is always there: the API fills in what was left out.
fn stays(item: &Value) -> bool {
    let ended = ["Succeeded", "Failed"].contains(&text(item, "/status/phase").as_str());
    let owners = item.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let of_a_job = owners.into_iter().flatten().any(|owner| text(owner, "/kind") == "Job");
    let meant_to_end = of_a_job || ["Never", "OnFailure"].contains(&text(item, "/spec/restartPolicy").as_str());
    !ended && !meant_to_end
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_read_as_the_api_writes_them() {
        let list = json!({"items": [
            {"metadata": {"name": "kube-scheduler"}, "spec": {"holderIdentity": "controller-2_af31", "leaseTransitions": 4, "renewTime": "t"}},
            {"metadata": {"name": "apiserver-x"}, "spec": {"holderIdentity": "x"}},
        ]});
        let seen = leases(&list);
        assert_eq!(seen.len(), 1);
        assert_eq!((lease_holder(&seen["kube-scheduler"].holder), seen["kube-scheduler"].transitions), ("controller-2", 4));

        let nodes = json!({"items": [
            {"metadata": {"name": "worker-0"}, "status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}]}},
            {"metadata": {"name": "worker-1"}},
        ]});
        assert_eq!(ready(&nodes).into_values().collect::<Vec<_>>(), ["True", "Unknown"]);

        let list = json!({"items": [{"metadata": {"uid": "u", "namespace": "n", "name": "p"}, "spec": {"nodeName": "worker-0"},
            "status": {"containerStatuses": [{"restartCount": 1}, {"restartCount": 2}]}}]});
        let expected = PodSeen { uid: "u".into(), name: "n/p".into(), node: "worker-0".into(), restarts: 3 };
        assert_eq!(pods(&list), [expected]);
    }

    /// A pod as the API lists it.
    fn listed(name: &str, owner: &str, policy: &str, phase: &str, restarts: u64) -> Value {
        json!({
            "metadata": {"uid": format!("uid-{name}"), "namespace": "shop", "name": name,
                "ownerReferences": [{"apiVersion": "v1", "kind": owner, "name": "x", "uid": "o", "controller": true}]},
            "spec": {"nodeName": "worker-0", "restartPolicy": policy},
            "status": {"phase": phase, "containerStatuses": [{"name": "c", "restartCount": restarts}]},
        })
    }

    #[test]
    fn pods_that_have_ended_or_are_meant_to_are_no_matter_of_a_drill() {
        let names = |items: &[Value]| pods(&json!({"items": items})).into_iter().map(|pod| pod.name).collect::<Vec<_>>();
        let stay = [
            listed("web", "ReplicaSet", "Always", "Running", 0),
            listed("agent", "DaemonSet", "Always", "Pending", 0),
            json!({"metadata": {"uid": "u", "namespace": "shop", "name": "alone"}, "spec": {"nodeName": "worker-0"}}),
        ];
        assert_eq!(names(&stay), ["shop/web", "shop/agent", "shop/alone"]);
        let others = [
            listed("backup-1", "Job", "Never", "Succeeded", 0),
            listed("backup-2", "Job", "OnFailure", "Running", 3),
            listed("backup-3", "Job", "", "Pending", 0),
            listed("build", "Workflow", "Never", "Running", 0),
            listed("evicted", "ReplicaSet", "Always", "Failed", 0),
            listed("done", "ReplicaSet", "Always", "Succeeded", 0),
        ];
        assert_eq!(names(&others), Vec::<String>::new());
    }

    /// Between two looks one run of a CronJob ended and another began: nothing is gone, nothing is new, and the worker that was off
    /// has all its pods started again.
    #[test]
    fn a_cron_job_that_runs_beside_a_drill_changes_nothing() {
        let web = |restarts| listed("web", "ReplicaSet", "Always", "Running", restarts);
        let before = pods(&json!({"items": [web(0), listed("tick-1", "Job", "OnFailure", "Running", 0)]}));
        let (ended, begun) =
            (listed("tick-1", "Job", "OnFailure", "Succeeded", 0), listed("tick-2", "Job", "Never", "Running", 0));
        let after = pods(&json!({"items": [web(1), ended, begun]}));
        let uids = |pods: &[PodSeen]| pods.iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>();
        assert_eq!(uids(&before), ["uid-web"]);
        assert_eq!(uids(&after), uids(&before));
        assert!(before.iter().zip(&after).all(|(old, new)| new.restarts > old.restarts));
    }

    #[test]
    fn whatever_is_amiss_before_a_drill_is_told() {
        let servers = |second: Result<(), String>| [(NodeName::controller(0), Ok(())), (NodeName::controller(1), second)];
        let workers = [NodeName::worker(0)];
        let nodes = |ready: &str| BTreeMap::from([("worker-0".to_owned(), ready.to_owned())]);
        let held = |holder: &str| {
            let lease = |name: &&str| ((*name).to_owned(), Lease { holder: holder.to_owned(), ..Lease::default() });
            ELECTIONS.iter().map(lease).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(unready(&servers(Ok(())), &workers, &nodes("True"), &held("x")), Vec::<String>::new());
        let told = unready(&servers(Err("refused".to_owned())), &workers, &nodes("Unknown"), &held(""));
        let expected = ["kube-apiserver on controller-1 is not ready: refused", "worker-0 is not Ready"];
        assert_eq!(told[..2], expected);
        assert_eq!(told.len(), 2 + ELECTIONS.len(), "{told:?}");
        let bare = unready(&servers(Ok(())), &workers, &BTreeMap::new(), &BTreeMap::new());
        assert_eq!(bare[0], "worker-0 is not registered");
        assert_eq!(bare.len(), 1 + ELECTIONS.len(), "{bare:?}");
    }

    #[test]
    fn a_write_is_an_object_that_the_api_takes_and_forget_removes() {
        let text = config_map(&Door::Direct(NodeName::controller(1)), Timestamp::UNIX_EPOCH);
        let object: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(crate::api::resource_path(&object).expect("known"), format!("{PROBES}ktcw-drill-probe-controller-1"));
        assert!(object.pointer("/data/written").is_some());
        let names = [Door::Vip, Door::Direct(NodeName::controller(0))].map(|door| probe_name(&door));
        assert_ne!(names[0], names[1]);
    }
}
