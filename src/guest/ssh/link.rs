//! One SSH connection: TCP, the pinned host key, our client key, keepalives, and why it ended.
//! `ssh` keeps one per node for commands; streams, terminals and tunnels make their own.
//! It knows nothing of commands or of reconnecting: a link that has ended stays ended.

use crate::guest::GuestError;
use crate::spec::NodeName;
use russh::client::{self, AuthResult, DisconnectReason};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, Preferred, compression};
use std::borrow::Cow;
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The part of `Timing::connect` that TCP may take. A machine answers its SYN at once or is not there yet; the kernel's
/// growing pauses between repeated SYNs would notice its return up to half a minute late.
const TCP: Duration = Duration::from_secs(5);

/// How patient a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From the first SYN to being let in. A port that takes connections before sshd is there answers nothing:
    /// without this limit the handshake would wait for ever.
    pub connect: Duration,
    /// Quiet time after which a keepalive is sent.
    pub keepalive: Duration,
    /// Unanswered keepalives after which the link has ended.
    pub keepalive_max: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), keepalive: Duration::from_secs(5), keepalive_max: 3 }
    }
}

/// Where a node is and who it must be.
pub(super) struct Endpoint {
    pub node: NodeName,
    pub addr: SocketAddr,
    pub host_key: PublicKey,
    pub user: String,
    pub client_key: Arc<PrivateKey>,
    pub timing: Timing,
}

/// A connection that let us in. It ends when it and every channel of it are dropped, or when the other side is gone.
pub(super) struct Link {
    handle: client::Handle<Pinned>,
    ended: Arc<OnceLock<String>>,
}

impl Link {
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Why it ended, as far as it was said.
    pub fn ended(&self) -> String {
        self.ended.get().cloned().unwrap_or_else(|| "the connection was closed".to_owned())
    }

    pub async fn session(&self) -> Result<Channel<client::Msg>, russh::Error> {
        self.handle.channel_open_session().await
    }

    pub async fn tcpip(&self, host: &str, port: u16) -> Result<Channel<client::Msg>, russh::Error> {
        self.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await
    }
}

/// Decides whether the other side is who it must be, and notes why the connection ended.
struct Pinned {
    key: PublicKey,
    ended: Arc<OnceLock<String>>,
}

enum Refusal {
    /// What was shown instead of the pinned key.
    HostKey(String),
    Ssh(russh::Error),
}

impl std::fmt::Debug for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::HostKey(seen) => write!(f, "host key {seen}"),
            Refusal::Ssh(error) => write!(f, "{error}"),
        }
    }
}

impl From<russh::Error> for Refusal {
    fn from(error: russh::Error) -> Self {
        Refusal::Ssh(error)
    }
}

impl client::Handler for Pinned {
    type Error = Refusal;

    /// Key data only: the comment is not part of who it is. A certificate would move the trust to whoever signed it.
    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Refusal> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } if key.key_data() == self.key.key_data() => Ok(true),
            PublicKeyOrCertificate::PublicKey { key, .. } => Err(Refusal::HostKey(fingerprint(key))),
            PublicKeyOrCertificate::Certificate(certificate) => {
                let key = PublicKey::from(certificate.public_key().clone());
                Err(Refusal::HostKey(format!("a certificate for {}", fingerprint(&key))))
            }
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Refusal>) -> Result<(), Refusal> {
        let why = match reason {
            DisconnectReason::ReceivedDisconnect(info) => format!("the other side hung up: {}", info.message),
            DisconnectReason::Error(Refusal::Ssh(russh::Error::IO(io))) if io.kind() == ErrorKind::UnexpectedEof => {
                "the other side closed the connection".to_owned()
            }
            DisconnectReason::Error(error) => format!("{error:?}"),
        };
        let _ = self.ended.set(why);
        Ok(())
    }
}

/// `SHA256:…`, as `ssh-keygen -l` prints it.
pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Ends the TCP connection when dropped armed: the task that `russh` spawned for a handshake would wait on the socket
/// for as long as the other side stays silent.
struct Cutoff(Option<std::net::TcpStream>);

impl Drop for Cutoff {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Endpoint {
    /// Connects, checks the host key and logs in, all within the time given (and `Timing::connect`).
    pub async fn connect(&self, within: Duration) -> Result<Link, GuestError> {
        let within = within.min(self.timing.connect);
        let mut waiting_for = "TCP connection";
        match timeout(within, self.attempt(&mut waiting_for)).await {
            Ok(result) => result,
            Err(_) => Err(self.unreachable(format!("no {waiting_for} within {:.1} s", within.as_secs_f32()))),
        }
    }

    pub fn unreachable(&self, reason: impl Into<String>) -> GuestError {
        GuestError::Connect { node: self.node.clone(), addr: self.addr.to_string(), reason: reason.into() }
    }

    async fn attempt(&self, waiting_for: &mut &'static str) -> Result<Link, GuestError> {
        let io = |error: std::io::Error| self.unreachable(error.to_string());
        let Ok(socket) = timeout(TCP, TcpStream::connect(self.addr)).await else {
            return Err(self.unreachable(format!("no TCP connection within {} s", TCP.as_secs())));
        };
        let socket = socket.map_err(io)?;
        socket.set_nodelay(true).map_err(io)?;
        let mut cutoff = Cutoff(Some(std::net::TcpStream::from(socket.as_fd().try_clone_to_owned().map_err(io)?)));
        *waiting_for = "answer from an SSH server (the port took the connection)";
        let ended = Arc::new(OnceLock::new());
        let pinned = Pinned { key: self.host_key.clone(), ended: Arc::clone(&ended) };
        let mut handle =
            client::connect_stream(Arc::new(self.config()), socket, pinned).await.map_err(|refusal| match refusal {
                Refusal::HostKey(seen) => GuestError::HostKey {
                    node: self.node.clone(),
                    addr: self.addr.to_string(),
                    seen,
                    pinned: fingerprint(&self.host_key),
                },
                Refusal::Ssh(error) => self.unreachable(error.to_string()),
            })?;
        *waiting_for = "answer to the login";
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&self.client_key), None);
        match handle.authenticate_publickey(self.user.as_str(), key).await {
            Ok(AuthResult::Success) => {}
            Ok(AuthResult::Failure { .. }) => {
                let ours = fingerprint(self.client_key.public_key());
                return Err(self.unreachable(format!("{} may not log in with our key {ours}", self.user)));
            }
            Err(error) => return Err(self.unreachable(format!("login: {error}"))),
        }
        cutoff.0 = None;
        Ok(Link { handle, ended })
    }

    fn config(&self) -> client::Config {
        client::Config {
            keepalive_interval: Some(self.timing.keepalive),
            keepalive_max: self.timing.keepalive_max,
            // A backstop behind the keepalives, whose answers reset it.
            inactivity_timeout: Some(self.timing.keepalive * (self.timing.keepalive_max as u32 + 4)),
            nodelay: true,
            preferred: Preferred {
                // The pinned key's kind first; the others only so that a wrong machine is named by its fingerprint
                // and not by "no common algorithm".
                key: Cow::Owned(preferred_kinds(self.host_key.algorithm())),
                // Emulated CPUs are slower than the bridge.
                compression: Cow::Borrowed(&[compression::NONE]),
                ..Preferred::DEFAULT
            },
            ..client::Config::default()
        }
    }
}

fn preferred_kinds(pinned: Algorithm) -> Vec<Algorithm> {
    let others = [Algorithm::Ed25519, Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }];
    let mut kinds = vec![pinned.clone()];
    kinds.extend(others.into_iter().filter(|kind| *kind != pinned));
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::client::Handler as _;
    use russh::keys::ssh_key::certificate::{Builder, CertType};

    #[tokio::test]
    async fn the_pinned_key_passes_under_any_comment_and_nothing_else_does() {
        let mut rng = russh::keys::key::safe_rng();
        let mut key = || PrivateKey::random(&mut rng, Algorithm::Ed25519).expect("made");
        let (ours, other, authority) = (key(), key(), key());
        let mut pinned = Pinned { key: ours.public_key().clone(), ended: Arc::default() };
        let mut same = ours.public_key().clone();
        same.set_comment("root@controller-0");
        assert!(matches!(pinned.check_server_key(&same.into()).await, Ok(true)));
        let shown = fingerprint(other.public_key());
        let refused = pinned.check_server_key(&other.public_key().clone().into()).await;
        assert!(matches!(&refused, Err(Refusal::HostKey(seen)) if *seen == shown), "{refused:?}");

        // Even one that certifies the very key we pinned: who signed it is nobody we know.
        let mut builder = Builder::new(vec![7; 16], ours.public_key().key_data().clone(), 0, u64::MAX - 1).expect("builder");
        builder.cert_type(CertType::Host).expect("type");
        builder.all_principals_valid().expect("principals");
        let certificate = builder.sign(&authority).expect("signed");
        let refused = pinned.check_server_key(&certificate.into()).await;
        assert!(matches!(&refused, Err(Refusal::HostKey(seen)) if seen.starts_with("a certificate for SHA256:")), "{refused:?}");
    }
}
