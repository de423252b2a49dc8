//! Commands, streams, terminals and tunnels over SSH: the only user of `russh`.
//! `apply`, `verify` and drills use it as a `Guest`; the `ssh`, `logs` and `proxy` verbs use the inherent methods.
//! It never runs a command twice: what may have started and was lost is reported as lost.

mod command;
pub mod keys;
mod link;
mod stream;
mod terminal;
#[cfg(test)]
mod tests;

pub use link::Timing;
pub use stream::Tunnel;

use super::{Cmd, Guest, GuestError, Output};
use crate::secret::Secret;
use crate::spec::NodeName;
use command::Broken;
use futures::FutureExt;
use futures::future::BoxFuture;
use link::{Endpoint, Link};
use russh::keys::{PrivateKey, PublicKey};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Commands at a time on a node's connection. sshd's `MaxSessions` on our nodes is 64; this leaves room for people.
const CHANNELS: usize = 16;

/// One machine: where it answers and the host key it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub node: NodeName,
    pub addr: SocketAddr,
    /// One line of OpenSSH public key text, as in `ssh_host_ed25519_key.pub`.
    pub host_key: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("{whose} cannot be read: {reason}")]
    Unreadable { whose: String, reason: String },
    #[error("cannot make an SSH key: {reason}")]
    Generate { reason: String },
}

/// The nodes of a cluster over SSH: one connection each for commands, made when first needed and again when it was
/// lost; many commands at a time on it. Streams, terminals and tunnels get connections of their own, because a reader
/// that is slow (a pager, a paused terminal) holds up everything on its connection.
pub struct SshGuests {
    slots: BTreeMap<NodeName, Slot>,
}

struct Slot {
    endpoint: Endpoint,
    permits: Arc<Semaphore>,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    link: Option<Arc<Link>>,
    /// The last full attempt that failed: shared with those who queued behind it.
    failed: Option<(Instant, GuestError)>,
}

impl SshGuests {
    /// Reads the keys; connects to nothing yet. `client_key` is OpenSSH private key text.
    pub fn new(targets: Vec<Target>, user: &str, client_key: &Secret) -> Result<Self, KeyError> {
        Self::with_timing(targets, user, client_key, Timing::default())
    }

    pub fn with_timing(targets: Vec<Target>, user: &str, client_key: &Secret, timing: Timing) -> Result<Self, KeyError> {
        let unreadable =
            |whose: String| move |error: russh::keys::ssh_key::Error| KeyError::Unreadable { whose, reason: error.to_string() };
        let client_key = PrivateKey::from_openssh(client_key.expose()).map_err(unreadable("our SSH client key".to_owned()))?;
        let client_key = Arc::new(client_key);
        let mut slots = BTreeMap::new();
        for Target { node, addr, host_key } in targets {
            let host_key = PublicKey::from_openssh(&host_key).map_err(unreadable(format!("the SSH host key of {node}")))?;
            let client_key = Arc::clone(&client_key);
            let endpoint = Endpoint { node: node.clone(), addr, host_key, user: user.to_owned(), client_key, timing };
            let slot = Slot { endpoint, permits: Arc::new(Semaphore::new(CHANNELS)), current: Mutex::new(Current::default()) };
            slots.insert(node, slot);
        }
        Ok(Self { slots })
    }

    fn slot(&self, node: &NodeName) -> Result<&Slot, GuestError> {
        self.slots.get(node).ok_or_else(|| GuestError::Connect {
            node: node.clone(),
            addr: "?".to_owned(),
            reason: "the cluster has no such node".to_owned(),
        })
    }
}

impl Slot {
    /// The node's connection, made if there is none that lives. Callers who queue behind an attempt share its outcome.
    async fn link(&self, end: Instant) -> Result<Arc<Link>, GuestError> {
        let asked = Instant::now();
        let Ok(mut current) = timeout_at(end, self.current.lock()).await else {
            return Err(self.endpoint.unreachable("still connecting"));
        };
        if let Some(link) = current.link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        current.link = None;
        if let Some((_, error)) = current.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(error.clone());
        }
        let within = end.saturating_duration_since(Instant::now());
        match self.endpoint.connect(within).await {
            Ok(link) => {
                let link = Arc::new(link);
                *current = Current { link: Some(Arc::clone(&link)), failed: None };
                Ok(link)
            }
            Err(error) => {
                // An attempt cut short by its caller's own deadline says nothing to the others.
                let full = within >= self.endpoint.timing.connect || !matches!(error, GuestError::Connect { .. });
                current.failed = full.then(|| (Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Lets go of this connection, unless another has taken its place already. Commands on it go on.
    async fn leave(&self, link: &Arc<Link>) {
        let mut current = self.current.lock().await;
        if current.link.as_ref().is_some_and(|now| Arc::ptr_eq(now, link)) {
            current.link = None;
        }
    }

    async fn run(&self, cmd: Cmd) -> Result<Output, GuestError> {
        let end = Instant::now() + cmd.deadline;
        let node = self.endpoint.node.clone();
        let (command, after) = (shown(&cmd.line), cmd.deadline);
        let late = || GuestError::Deadline { node: node.clone(), command: command.clone(), after };
        let lost = |reason| GuestError::Lost { node: node.clone(), command: command.clone(), reason };
        let permit = match timeout_at(end, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(self.endpoint.unreachable("shut down")),
            Err(_) => return Err(late()),
        };
        match timeout_at(end, self.attempt(&cmd, end, permit)).await {
            Ok(Ok(Ok(output))) => Ok(output),
            Ok(Ok(Err(Broken::Lost(reason) | Broken::NotSent(reason)))) => Err(lost(reason)),
            Ok(Err(connect)) => Err(connect),
            Err(_) => Err(late()),
        }
    }

    /// Runs on the connection there is. When that proves dead before the command was taken, once more on a new one.
    async fn attempt(&self, cmd: &Cmd, end: Instant, permit: OwnedSemaphorePermit) -> Result<Result<Output, Broken>, GuestError> {
        let mut permit = Some(permit);
        let mut again = true;
        loop {
            let link = self.link(end).await?;
            let broken = match link.session().await {
                Ok(channel) => match command::run(channel, Arc::clone(&link), permit.take(), cmd.clone()).await {
                    Err(Broken::NotSent(reason)) => reason,
                    other => return Ok(other),
                },
                // A server may refuse a channel on a connection whose sessions are used up by processes that do not end.
                Err(error) if link.is_closed() => format!("{} ({error})", link.ended()),
                Err(error) => error.to_string(),
            };
            self.leave(&link).await;
            if !again {
                return Ok(Err(Broken::NotSent(broken)));
            }
            again = false;
        }
    }
}

/// A command as errors show it: a line, not a page.
fn shown(line: &str) -> String {
    let mut shown: String = line.chars().take(160).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    shown
}

impl Guest for SshGuests {
    fn run<'a>(&'a self, node: &'a NodeName, cmd: Cmd) -> BoxFuture<'a, Result<Output, GuestError>> {
        async move { self.slot(node)?.run(cmd).await }.boxed()
    }

    fn forget<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, ()> {
        async move {
            if let Some(slot) = self.slots.get(node) {
                *slot.current.lock().await = Current::default();
            }
        }
        .boxed()
    }
}

/// The longest wait for a channel of a connection that was just made.
const OPEN: Duration = Duration::from_secs(15);
