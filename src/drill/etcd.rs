//! Connections to etcd members, one member each, and what is read through them.
//! Load, telemetry and `admin` use it; it is where this crate's etcd client is told endpoints and certificates.
//! It never fails over and never retries: whoever measures must know which member was asked, and how often.

use super::history::{Change, Code};
use super::injector::Environment;
use super::target::{Id, MemberView};
use crate::secret::Secret;
use crate::spec::NodeName;
use etcd_client::{Certificate, Client, ConnectOptions, EventType, GetOptions, Identity, TlsOptions, WatchOptions};
use futures::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Where a member is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    #[schemars(with = "String")]
    pub node: NodeName,
    /// `https://192.168.122.10:2379`
    pub client_url: String,
    /// `https://192.168.122.10:2380`
    pub peer_url: String,
}

/// Client certificate and CA, PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    pub ca: String,
    pub cert: String,
    pub key: Secret,
}

/// The cluster under drill, seen from the host.
#[derive(Clone)]
pub struct Site {
    pub members: Vec<Endpoint>,
    pub tls: Option<Tls>,
    /// The quota that members have of their own, which their disks were made for.
    pub quota_mib: u32,
    pub environment: Environment,
}

impl Site {
    pub fn nodes(&self) -> Vec<NodeName> {
        self.members.iter().map(|member| member.node.clone()).collect()
    }
    /// How long a connection may take before it counts as refused.
    pub fn connect_timeout(&self) -> Duration {
        (self.environment.timing.election() / 2).max(Duration::from_millis(300))
    }
    /// How long a quick question to one member may take.
    pub fn ask_timeout(&self) -> Duration {
        self.environment.timing.election().max(Duration::from_secs(1)) * 2
    }
    pub fn link(&self, member: usize) -> Option<Arc<Link>> {
        let endpoint = self.members.get(member)?;
        Some(Arc::new(Link {
            url: endpoint.client_url.clone(),
            tls: self.tls.clone(),
            connect_timeout: self.connect_timeout(),
            patience: self.environment.timing.election(),
            state: Mutex::new(None),
            heard: std::sync::Mutex::new(Instant::now()),
        }))
    }
}

/// What went wrong with a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    #[error("{0}")]
    Status(String, Code),
    #[error("{0}")]
    Other(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
}

impl EtcdError {
    pub fn code(&self) -> Option<Code> {
        match self {
            EtcdError::Status(_, code) => Some(*code),
            _ => None,
        }
    }
}

impl From<etcd_client::Error> for EtcdError {
    fn from(error: etcd_client::Error) -> EtcdError {
        match error {
            etcd_client::Error::GRpcStatus(status) => {
                EtcdError::Status(status.message().to_owned(), Code(i32::from(status.code())))
            }
            other => EtcdError::Other(other.to_string()),
        }
    }
}

/// A connection to one member. It is replaced when the member has been silent for an election timeout: packets dropped in
/// the middle of a connection leave it to TCP's backoff, and the member's return would be seen seconds too late.
pub struct Link {
    url: String,
    tls: Option<Tls>,
    connect_timeout: Duration,
    patience: Duration,
    state: Mutex<Option<(Client, Instant)>>,
    heard: std::sync::Mutex<Instant>,
}

impl Link {
    pub async fn client(&self) -> Result<Client, EtcdError> {
        let heard = *self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut state = self.state.lock().await;
        if let Some((client, made)) = &*state
            && heard.max(*made).elapsed() < self.patience
        {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        *state = Some((client.clone(), Instant::now()));
        Ok(client)
    }

    /// The member has answered, be it with an error of its own.
    pub fn heard(&self) {
        *self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Instant::now();
    }

    /// Prepares a connection; it is made with the first request.
    async fn connect(&self) -> Result<Client, EtcdError> {
        let mut options = ConnectOptions::new().with_connect_timeout(self.connect_timeout);
        if let Some(tls) = &self.tls {
            // One TLS stack in the program: rustls on ring. A second install is harmless.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let identity = Identity::from_pem(&tls.cert, tls.key.expose());
            options = options.with_tls(TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca)).identity(identity));
        }
        Ok(Client::connect([&self.url], Some(options)).await?)
    }

    /// Asks with a deadline and notes that the member was heard.
    pub async fn ask<T, F, Fut>(&self, deadline: Duration, question: F) -> Result<T, EtcdError>
    where
        F: FnOnce(Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let asked = async {
            let client = self.client().await?;
            let answer = question(client).await;
            if answer.is_ok() {
                self.heard();
            }
            Ok(answer?)
        };
        tokio::time::timeout(deadline, asked).await.unwrap_or(Err(EtcdError::Silent(deadline)))
    }
}

/// A member's own account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub id: Id,
    pub cluster: Id,
    /// Whom it follows; 0: nobody.
    pub leader: Id,
    /// Term of the last entry that it applied. It may lag behind the term in which it leads, never ahead.
    pub term: u64,
    pub index: u64,
    pub revision: i64,
    pub learner: bool,
    pub db_bytes: i64,
    pub version: String,
    /// What etcd itself complains of, alarms included.
    pub errors: Vec<String>,
}

impl Status {
    pub fn leads(&self) -> bool {
        self.leader == self.id
    }
}

pub async fn status(link: &Link, deadline: Duration) -> Result<Status, EtcdError> {
    let answer = link.ask(deadline, |mut client| async move { client.status().await }).await?;
    let (id, cluster, revision) =
        answer.header().map_or((0, 0, 0), |header| (header.member_id(), header.cluster_id(), header.revision()));
    Ok(Status {
        id: Id(id),
        cluster: Id(cluster),
        leader: Id(answer.leader()),
        term: answer.raft_term(),
        index: answer.raft_index(),
        revision,
        learner: answer.is_learner(),
        db_bytes: answer.db_size(),
        version: answer.version().to_owned(),
        errors: answer.errors().to_vec(),
    })
}

/// All members at once; a member that does not answer is unreachable, not an error.
pub async fn statuses(site: &Site) -> Vec<Result<Status, EtcdError>> {
    join_all((0..site.members.len()).map(|i| async move {
        let link = site.link(i).ok_or_else(|| EtcdError::Other("no such member".to_owned()))?;
        status(&link, site.ask_timeout()).await
    }))
    .await
}

/// The members as `target` wants to see them.
pub fn views(site: &Site, statuses: &[Result<Status, EtcdError>]) -> Vec<MemberView> {
    let view = |(endpoint, status): (&Endpoint, &Result<Status, EtcdError>)| match status {
        Ok(status) => MemberView {
            node: endpoint.node.clone(),
            id: status.id,
            leader: status.leads(),
            term: status.term,
            reachable: true,
            db_bytes: status.db_bytes,
        },
        Err(_) => MemberView { node: endpoint.node.clone(), id: Id(0), leader: false, term: 0, reachable: false, db_bytes: 0 },
    };
    site.members.iter().zip(statuses).map(view).collect()
}

/// Why the members do not yet form one cluster behind one leader; `None` when they do.
pub fn disunity(site: &Site, statuses: &[Result<Status, EtcdError>]) -> Option<String> {
    let mut leaders = Vec::new();
    for (endpoint, status) in site.members.iter().zip(statuses) {
        match status {
            Err(error) => return Some(format!("{}: {error}", endpoint.node)),
            Ok(status) if status.learner => return Some(format!("{} is a learner", endpoint.node)),
            Ok(status) if status.leader == Id(0) => return Some(format!("{} knows no leader", endpoint.node)),
            Ok(status) => leaders.push(status.leader),
        }
    }
    leaders.dedup();
    // Nobody is at odds with nobody.
    (leaders.len() > 1 || (leaders.is_empty() && !site.members.is_empty()))
        .then(|| format!("members follow {} leaders", leaders.len()))
}

/// A linearizable reading of everything below a prefix: revision of the store, and the last change of each key.
pub async fn read_prefix(link: &Link, prefix: &str, deadline: Duration) -> Result<(i64, Vec<Change>), EtcdError> {
    let answer =
        link.ask(deadline, |mut client| async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }).await?;
    let revision = answer.header().map_or(0, |header| header.revision());
    let changes = answer.kvs().iter().filter_map(|kv| change(prefix, kv.key(), kv.value(), kv.mod_revision()));
    Ok((revision, changes.collect()))
}

/// Reads one change below a prefix; what is not ours there is left out.
pub fn change(prefix: &str, key: &[u8], value: &[u8], revision: i64) -> Option<Change> {
    let key = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    let value = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(Change { revision, key: key.to_owned(), value })
}

/// What came of replaying history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    Whole(Vec<Change>),
    /// History was compacted meanwhile.
    Compacted,
}

/// Replays every change below a prefix, from a revision up to (at least) another, from one member's history.
pub async fn replay(link: &Link, prefix: &str, from: i64, to: i64, deadline: Duration) -> Result<Replay, EtcdError> {
    let mut changes = Vec::new();
    let work = async {
        let mut client = link.client().await?;
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        let mut stream = client.watch(prefix, Some(options)).await?;
        while changes.iter().all(|change: &Change| change.revision < to) {
            let Some(message) = stream.message().await? else {
                return Err(EtcdError::Other("the watch ended early".to_owned()));
            };
            if message.canceled() {
                if message.compact_revision() > 0 {
                    return Ok(false);
                }
                return Err(EtcdError::Other(format!("the watch was cancelled: {}", message.cancel_reason())));
            }
            changes.extend(puts(prefix, message.events()));
        }
        Ok(true)
    };
    let whole = tokio::time::timeout(deadline, work).await.unwrap_or(Err(EtcdError::Silent(deadline)))?;
    Ok(if whole { Replay::Whole(changes) } else { Replay::Compacted })
}

/// The puts of a watch's message.
pub fn puts(prefix: &str, events: &[etcd_client::Event]) -> Vec<Change> {
    let put = |event: &&etcd_client::Event| event.event_type() == EventType::Put;
    let read = |event: &etcd_client::Event| event.kv().and_then(|kv| change(prefix, kv.key(), kv.value(), kv.mod_revision()));
    events.iter().filter(put).filter_map(read).collect()
}

/// Hash of a member's whole history up to a revision, and the revision up to which it is compacted.
pub async fn hash(link: &Link, revision: i64, deadline: Duration) -> Result<(u32, i64), EtcdError> {
    let answer = link.ask(deadline, |mut client| async move { client.hash_kv(revision).await }).await?;
    Ok((answer.hash(), answer.compact_version()))
}

/// One row of a member's list of members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Listed {
    pub id: Id,
    /// Empty until the member has started for the first time.
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub learner: bool,
}

/// The list of members as one member has it, sorted by id.
pub async fn member_list(link: &Link, deadline: Duration) -> Result<Vec<Listed>, EtcdError> {
    let answer = link.ask(deadline, |mut client| async move { client.member_list().await }).await?;
    let listed = |member: &etcd_client::Member| Listed {
        id: Id(member.id()),
        name: member.name().to_owned(),
        peer_urls: member.peer_urls().to_vec(),
        client_urls: member.client_urls().to_vec(),
        learner: member.is_learner(),
    };
    let mut all: Vec<Listed> = answer.members().iter().map(listed).collect();
    all.sort();
    Ok(all)
}
