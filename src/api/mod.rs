//! The API edge: the host's own mTLS questions to API servers, by address, with the cluster's CA and no other.
//! `apply` waits with it and applies manifests; `status` and drills read with it.
//! It is the only user of `reqwest`; it keeps no state but its connections and knows no plan beyond names.

mod apply;
mod drain;
mod presented;
mod servers;

pub use apply::resource_path;
pub use drain::PodSeen;
pub use presented::{is_certificate, presented};
pub use servers::ApiServers;

use crate::plan::{ELECTIONS, Plan};
use crate::said::one_line;
use crate::secret::Secret;
use crate::spec::NodeName;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ApiError {
    #[error("the API at {address} did not answer: {reason}")]
    NoAnswer { address: Ipv4Addr, reason: String },
    #[error("the API at {address} answered {status}: {body}")]
    Status { address: Ipv4Addr, status: u16, body: String },
    #[error("{what}")]
    NotYet { what: String },
    #[error("{what} cannot be used: {reason}")]
    Invalid { what: String, reason: String },
}

/// A client with the host's admin certificate.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
}

impl Api {
    /// `ca`: PEM of the cluster's CA; `identity`: PEM of certificate and key together.
    pub fn new(ca: &str, identity: &Secret) -> Result<Api, ApiError> {
        Api::with_idle(ca, identity, usize::MAX)
    }

    /// The same, with a new connection for every request: what a client sees that was not there before.
    pub fn unpooled(ca: &str, identity: &Secret) -> Result<Api, ApiError> {
        Api::with_idle(ca, identity, 0)
    }

    fn with_idle(ca: &str, identity: &Secret, idle_connections: usize) -> Result<Api, ApiError> {
        let invalid = |what: &str| {
            let what = what.to_owned();
            move |error: reqwest::Error| ApiError::Invalid { what, reason: error.to_string() }
        };
        // One TLS stack in the program: rustls on ring. A second install is harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = reqwest::Certificate::from_pem(ca.as_bytes()).map_err(invalid("the cluster's CA"))?;
        let identity = reqwest::Identity::from_pem(identity.expose().as_bytes()).map_err(invalid("the admin certificate"))?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_built_in_root_certs(false)
            .add_root_certificate(ca)
            .identity(identity)
            .tls_info(true)
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(idle_connections)
            .build()
            .map_err(invalid("the TLS configuration"))?;
        Ok(Api { client })
    }

    async fn request(&self, request: reqwest::RequestBuilder, address: Ipv4Addr, deadline: Duration) -> Result<String, ApiError> {
        let no_answer = |error: reqwest::Error| ApiError::NoAnswer { address, reason: chain(&error) };
        let response = request.timeout(deadline).send().await.map_err(no_answer)?;
        let status = response.status();
        let body = read(response, address).await?;
        if status.is_success() { Ok(body) } else { Err(ApiError::Status { address, status: status.as_u16(), body: gist(&body) }) }
    }

    /// GET of `path` (which starts with `/`) as text.
    pub async fn get(&self, address: Ipv4Addr, path: &str, deadline: Duration) -> Result<String, ApiError> {
        self.request(self.client.get(format!("https://{address}:6443{path}")), address, deadline).await
    }

    pub async fn get_json(&self, address: Ipv4Addr, path: &str, deadline: Duration) -> Result<Value, ApiError> {
        let text = self.get(address, path, deadline).await?;
        serde_json::from_str(&text).map_err(|error| ApiError::Invalid { what: path.to_owned(), reason: error.to_string() })
    }

    /// `/readyz` says ok.
    pub async fn ready(&self, address: Ipv4Addr, deadline: Duration) -> Result<(), ApiError> {
        self.get(address, "/readyz", deadline).await.map(|_| ())
    }

    pub async fn node_ready(&self, address: Ipv4Addr, node: &NodeName, deadline: Duration) -> Result<(), ApiError> {
        let object = self.get_json(address, &format!("/api/v1/nodes/{node}"), deadline).await?;
        judge_node(&object).map_err(|what| ApiError::NotYet { what })
    }

    /// Controller manager and scheduler have each elected a leader.
    pub async fn leaders_elected(&self, address: Ipv4Addr, deadline: Duration) -> Result<(), ApiError> {
        for name in ELECTIONS {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}");
            let lease = self.get_json(address, &path, deadline).await?;
            let holder = lease.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default();
            if holder.is_empty() {
                return Err(ApiError::NotYet { what: format!("{name} has no leader yet") });
            }
        }
        Ok(())
    }

    /// CoreDNS has a ready replica and the witness runs on `workers` nodes.
    pub async fn workloads_ready(&self, address: Ipv4Addr, workers: u32, deadline: Duration) -> Result<(), ApiError> {
        let dns = "/apis/apps/v1/namespaces/kube-system/deployments/coredns";
        let witness = "/apis/apps/v1/namespaces/ktcw-system/daemonsets/witness";
        let (dns, witness) =
            futures::future::try_join(self.get_json(address, dns, deadline), self.get_json(address, witness, deadline)).await?;
        judge_workloads(&dns, &witness, u64::from(workers)).map_err(|what| ApiError::NotYet { what })
    }

    /// Whether all objects of the plan's manifests exist.
    pub async fn addons_present(&self, address: Ipv4Addr, plan: &Plan, deadline: Duration) -> bool {
        for (_, text) in &plan.addons {
            let Ok(documents) = apply::documents(text) else { return false };
            for document in documents {
                let Ok(path) = resource_path(&document) else { return false };
                if self.get(address, &path, deadline).await.is_err() {
                    return false;
                }
            }
        }
        true
    }

    /// Removes what is at `path`; that it is not there is fine.
    pub async fn delete(&self, address: Ipv4Addr, path: &str, deadline: Duration) -> Result<(), ApiError> {
        match self.request(self.client.delete(format!("https://{address}:6443{path}")), address, deadline).await {
            Err(ApiError::Status { status: 404, .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Server-side apply of every document of a manifest, in order.
    pub async fn apply(&self, address: Ipv4Addr, manifest: &str, deadline: Duration) -> Result<(), ApiError> {
        for document in apply::documents(manifest)? {
            let path = resource_path(&document)?;
            let request = self
                .client
                .patch(format!("https://{address}:6443{path}?fieldManager=ktcw-vm&force=true"))
                .header("content-type", "application/apply-patch+yaml")
                .body(document.to_string());
            self.request(request, address, deadline).await?;
        }
        Ok(())
    }
}

/// Most bytes of an answer: far above any list that is asked for here, far below what would take the memory of this computer.
const LIMIT: usize = 8 << 20;

/// The body of an answer as text, as long as it may be. A server that has been taken over ends when it likes.
async fn read(mut response: reqwest::Response, address: Ipv4Addr) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| ApiError::NoAnswer { address, reason: chain(&error) })? {
        if bytes.len() + chunk.len() > LIMIT {
            let reason = format!("it is longer than {} MiB", LIMIT >> 20);
            return Err(ApiError::Invalid { what: format!("the answer of the API at {address}"), reason });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The whole chain of causes in one line: reqwest's own message says only "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// What a refusal comes down to, on one line: a Status object's message, or the failed checks of `/readyz`.
fn gist(body: &str) -> String {
    let message = serde_json::from_str::<Value>(body).ok().and_then(|v| v.get("message")?.as_str().map(str::to_owned));
    let failed: Vec<&str> = body
        .lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .map(|line| line.split(" failed").next().unwrap_or(line))
        .collect();
    let text = match message {
        Some(message) => message,
        None if failed.is_empty() => body.to_owned(),
        None => format!("not passed: {}", failed.join(", ")),
    };
    one_line(&text)
}

fn judge_node(object: &Value) -> Result<(), String> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.and_then(|all| all.iter().find(|c| c.get("type").and_then(Value::as_str) == Some("Ready")));
    match ready {
        None => Err("registered, without a Ready condition yet".to_owned()),
        Some(c) if c.get("status").and_then(Value::as_str) == Some("True") => Ok(()),
        Some(c) => {
            let message = c.get("message").and_then(Value::as_str).unwrap_or("no message");
            Err(format!("not Ready: {}", one_line(message)))
        }
    }
}

fn judge_workloads(dns: &Value, witness: &Value, workers: u64) -> Result<(), String> {
    let number = |object: &Value, field: &str| object.pointer(&format!("/status/{field}")).and_then(Value::as_u64).unwrap_or(0);
    let (dns_ready, up) = (number(dns, "readyReplicas"), number(witness, "numberReady"));
    if dns_ready >= 1 && up >= workers { Ok(()) } else { Err(format!("CoreDNS {dns_ready} ready, witness on {up} of {workers}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_ready_only_when_it_says_so() {
        let node = |status| json!({"status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": status, "message": "m"}]}});
        assert_eq!(judge_node(&node("True")), Ok(()));
        for status in ["False", "Unknown"] {
            assert_eq!(judge_node(&node(status)), Err("not Ready: m".to_owned()));
        }
        assert!(judge_node(&json!({})).is_err());
    }

    #[test]
    fn a_refusal_is_one_line() {
        let status = r#"{"kind":"Status","message":"nodes \"worker-0\" not found","code":404}"#;
        assert_eq!(gist(status), "nodes \"worker-0\" not found");
        let readyz = "[+]ping ok\n[-]etcd-readiness failed: reason withheld\n[-]informer-sync failed: reason withheld\nreadyz check failed";
        assert_eq!(gist(readyz), "not passed: etcd-readiness, informer-sync");
        assert_eq!(gist("502 Bad\n Gateway\n"), "502 Bad Gateway");
        assert_eq!(gist(r#"{"message":"no \u001b[2J room\n"}"#), "no [2J room");
    }

    /// Answers one request with `head` and then `block` as often as it is read.
    async fn server(head: &'static str, block: Vec<u8>, times: usize) -> std::net::SocketAddr {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback");
        let bound = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("asked");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|got| got > 0) {}
            let mut told = stream.write_all(head.as_bytes()).await;
            for _ in 0..times {
                told = told.and(stream.write_all(&block).await);
                if told.is_err() {
                    break;
                }
            }
        });
        bound
    }

    /// A server that has been taken over: its answers go into messages, and who asks has only so much memory.
    #[tokio::test]
    async fn an_answer_without_end_is_given_up_and_names_who_gave_it() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api = Api { client: reqwest::Client::builder().no_proxy().build().expect("a client") };
        let ask = async |head: &'static str, block: Vec<u8>, times: usize| {
            let url = format!("http://{}/", server(head, block, times).await);
            api.request(api.client.get(url), Ipv4Addr::LOCALHOST, Duration::from_secs(60)).await
        };
        let (ok, refused) = ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "HTTP/1.1 500 No\r\nConnection: close\r\n\r\n");
        assert_eq!(ask(ok, b"ok".to_vec(), 1).await.as_deref(), Ok("ok"));
        assert_eq!(ask(ok, vec![b'x'; 1 << 20], 8).await.map(|body| body.len()), Ok(LIMIT), "as long as it may be");
        for head in [ok, refused] {
            let error = ask(head, vec![b'x'; 1 << 20], 64).await.expect_err("too long");
            assert!(matches!(&error, ApiError::Invalid { what, .. } if what.contains("127.0.0.1")), "{error}");
            assert!(error.to_string().contains("longer than 8 MiB"), "{error}");
        }
    }

    #[test]
    fn workloads_count_what_is_ready_and_a_missing_number_is_none() {
        let (dns, witness) = (json!({"status": {"readyReplicas": 1}}), json!({"status": {"numberReady": 2}}));
        assert_eq!(judge_workloads(&dns, &witness, 2), Ok(()));
        assert!(judge_workloads(&dns, &witness, 3).is_err());
        assert!(judge_workloads(&json!({}), &witness, 2).is_err());
    }
}
