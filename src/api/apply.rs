//! Manifests as API requests: which path an object has, and how a file splits into documents.
//! `Api::apply` calls it for the addons of a plan.
//! It knows the few kinds those use; another kind is an error, not a guess.

use super::ApiError;
use serde_json::Value;

/// The documents of a YAML manifest as JSON values (which the API takes as well).
pub(super) fn documents(manifest: &str) -> Result<Vec<Value>, ApiError> {
    let parts = manifest.split("\n---\n").filter(|part| part.lines().any(|l| !l.trim().is_empty() && !l.starts_with('#')));
    parts
        .map(|part| {
            serde_saphyr::from_str::<Value>(part)
                .map_err(|error| ApiError::Invalid { what: "manifest".to_owned(), reason: error.to_string() })
        })
        .collect()
}

/// The REST path of an object, from its apiVersion, kind, namespace and name.
pub fn resource_path(object: &Value) -> Result<String, ApiError> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (Some(version), Some(kind), Some(name)) = (text("/apiVersion"), text("/kind"), text("/metadata/name")) else {
        let reason = "apiVersion, kind and metadata.name are needed".to_owned();
        return Err(ApiError::Invalid { what: "manifest".to_owned(), reason });
    };
    let (plural, namespaced) = match kind {
        "Namespace" => ("namespaces", false),
        "ServiceAccount" => ("serviceaccounts", true),
        "ConfigMap" => ("configmaps", true),
        "Service" => ("services", true),
        "Deployment" => ("deployments", true),
        "DaemonSet" => ("daemonsets", true),
        "ClusterRole" => ("clusterroles", false),
        "ClusterRoleBinding" => ("clusterrolebindings", false),
        other => {
            return Err(ApiError::Invalid { what: format!("kind {other}"), reason: "not one that is applied here".to_owned() });
        }
    };
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let namespace = text("/metadata/namespace").unwrap_or("default");
    Ok(if namespaced { format!("{root}/namespaces/{namespace}/{plural}/{name}") } else { format!("{root}/{plural}/{name}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_follow_group_scope_and_namespace() {
        let path = |v| resource_path(&v).expect("known kind");
        let role =
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:coredns"}});
        assert_eq!(path(role), "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:coredns");
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}});
        assert_eq!(path(service), "/api/v1/namespaces/kube-system/services/kube-dns");
        assert!(resource_path(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})).is_err());
        assert!(resource_path(&json!({"kind": "Service"})).is_err());
    }

    #[test]
    fn a_manifest_splits_into_its_documents() {
        let text = "# words\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\n";
        let all = documents(text).expect("parses");
        assert_eq!(all.iter().map(|d| d["kind"].as_str()).collect::<Vec<_>>(), [Some("Namespace"), Some("Service")]);
    }
}
