//! A Kubernetes node taken out of service: no new pods, those that run moved away, its object removed.
//! `apply` asks for it, through `ApiServers`, before the node's machine goes.
//! What may not be lost is the user's to say (PodDisruptionBudgets, controllers); nothing here waits.

use super::{Api, ApiError};
use crate::spec::NodeName;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Duration;

/// A pod that stands on a node, as far as moving it away goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    pub namespace: String,
    pub name: String,
    /// Nobody makes it anew elsewhere.
    pub bare: bool,
}

impl PodSeen {
    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }
}

impl std::fmt::Display for PodSeen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Api {
    /// Whether the API knows a node of that name.
    pub async fn registered(&self, address: Ipv4Addr, node: &NodeName, deadline: Duration) -> Result<bool, ApiError> {
        match self.get(address, &format!("/api/v1/nodes/{node}"), deadline).await {
            Ok(_) => Ok(true),
            Err(ApiError::Status { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// No new pods for the node. One that is not known is not given any.
    pub async fn cordon(&self, address: Ipv4Addr, node: &NodeName, deadline: Duration) -> Result<(), ApiError> {
        let request = self
            .client
            .patch(format!("https://{address}:6443/api/v1/nodes/{node}"))
            .header("content-type", "application/merge-patch+json")
            .body(json!({ "spec": { "unschedulable": true } }).to_string());
        match self.request(request, address, deadline).await {
            Err(ApiError::Status { status: 404, .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// The pods that would have to move: without those of DaemonSets, static ones and those that have ended.
    pub async fn pods_on(&self, address: Ipv4Addr, node: &NodeName, deadline: Duration) -> Result<Vec<PodSeen>, ApiError> {
        let list = self.get_json(address, &format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"), deadline).await?;
        movable(&list).map_err(|reason| ApiError::Invalid { what: format!("the list of pods on {node}"), reason })
    }

    /// Asks every pod that would have to move to go, as its PodDisruptionBudget allows. Those that are still there, each with
    /// why; none: the node is empty.
    pub async fn evict(&self, address: Ipv4Addr, node: &NodeName, deadline: Duration) -> Result<Vec<String>, ApiError> {
        let mut left = Vec::new();
        for pod in self.pods_on(address, node, deadline).await? {
            let eviction = json!({
                "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "namespace": pod.namespace, "name": pod.name },
            });
            let request = self
                .client
                .post(format!("https://{address}:6443{}/eviction", pod.path()))
                .header("content-type", "application/json")
                .body(eviction.to_string());
            match self.request(request, address, deadline).await {
                Ok(_) => left.push(format!("{pod} is ending")),
                Err(ApiError::Status { status: 404, .. }) => {}
                // 429: its budget does not allow it now.
                Err(ApiError::Status { status: 429, body, .. }) => left.push(format!("{pod} may not go yet: {body}")),
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    /// Removes the node's object, and those of the pods that have stayed on it (DaemonSets'): until the API collects them by itself,
    /// Services would send requests there. That nothing is there is fine.
    pub async fn unregister(&self, address: Ipv4Addr, node: &NodeName, deadline: Duration) -> Result<(), ApiError> {
        self.delete(address, &format!("/api/v1/nodes/{node}"), deadline).await?;
        let list = self.get_json(address, &format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"), deadline).await?;
        for item in list.get("items").and_then(Value::as_array).into_iter().flatten() {
            let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
            if let (Some(namespace), Some(name)) = (text("/metadata/namespace"), text("/metadata/name")) {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0");
                self.delete(address, &path, deadline).await?;
            }
        }
        Ok(())
    }
}

/// A list without items is no list; a pod without a name is not passed over.
fn movable(list: &Value) -> Result<Vec<PodSeen>, String> {
    let items = list.get("items").and_then(Value::as_array).ok_or("it has no items")?;
    let mut pods = Vec::new();
    for item in items {
        let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
        let (Some(namespace), Some(name)) = (text("/metadata/namespace"), text("/metadata/name")) else {
            return Err("a pod has no name".to_owned());
        };
        let ended = matches!(text("/status/phase"), Some("Succeeded" | "Failed"));
        let fixed = item.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some();
        let owners = item.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let of = |kind: &str| owners.is_some_and(|all| all.iter().any(|o| o.get("kind").and_then(Value::as_str) == Some(kind)));
        if ended || fixed || of("DaemonSet") {
            continue;
        }
        let bare = owners.is_none_or(|all| all.is_empty());
        pods.push(PodSeen { namespace: namespace.to_owned(), name: name.to_owned(), bare });
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, owner: Option<&str>, phase: &str) -> Value {
        let owners: Vec<Value> = owner.iter().map(|kind| json!({ "kind": kind, "name": "x" })).collect();
        json!({ "metadata": { "namespace": "default", "name": name, "ownerReferences": owners }, "status": { "phase": phase } })
    }

    #[test]
    fn what_has_to_move_is_what_would_be_missed() {
        let mut mirror = pod("static", None, "Running");
        mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x" });
        let list = json!({ "items": [
            pod("web", Some("ReplicaSet"), "Running"), pod("alone", None, "Pending"), pod("done", Some("Job"), "Succeeded"),
            pod("witness", Some("DaemonSet"), "Running"), mirror,
        ]});
        let found: Vec<(String, bool)> = movable(&list).expect("a list").into_iter().map(|p| (p.to_string(), p.bare)).collect();
        assert_eq!(found, [("default/web".to_owned(), false), ("default/alone".to_owned(), true)]);
        assert!(movable(&json!({})).is_err() && movable(&json!({ "items": [{}] })).is_err());
        assert_eq!(movable(&json!({ "items": [] })), Ok(Vec::new()));
    }
}
