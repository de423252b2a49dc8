//! An SSH server on loopback that does what a command line says: floods, hangs, dies of a signal, drops the connection.
//! The tests of our client start one each, and ask it afterwards what it saw.
//! It runs no command, and forgives nobody: it lets in the one key that it was made with.

use super::node;
use crate::guest::ssh::{SshGuests, Target, Timing, keys};
use crate::secret::Secret;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelWriteHalf, Disconnect, Sig};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

/// What the server saw.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) connections: AtomicUsize,
    commands: Mutex<Vec<String>>,
    pub(super) closed: AtomicUsize,
    /// Commands that wait for each other.
    met: AtomicUsize,
    open: Mutex<Vec<std::net::TcpStream>>,
}

pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) host_key: String,
    pub(super) client_key: Secret,
    pub(super) seen: Arc<Seen>,
}

#[derive(Clone)]
struct Handler {
    client: PublicKey,
    seen: Arc<Seen>,
    stdin: Arc<Mutex<HashMap<ChannelId, Vec<u8>>>>,
    command: Arc<Mutex<HashMap<ChannelId, String>>>,
    /// Respects the client's window, which `session.handle()` does not.
    write: Arc<Mutex<HashMap<ChannelId, Arc<ChannelWriteHalf<Msg>>>>>,
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let known = user == "root" && key.public_key.key_data() == self.client.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let (_, write) = channel.split();
        self.write.lock().expect("lock").insert(write.id(), Arc::new(write));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        match tokio::net::TcpStream::connect((host, port as u16)).await {
            Ok(mut socket) => {
                reply.accept().await;
                tokio::spawn(async move {
                    let mut stream = channel.into_stream();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut socket).await;
                });
            }
            Err(_) => reply.reject(russh::ChannelOpenFailure::ConnectFailed).await,
        }
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, line: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        let line = String::from_utf8_lossy(line);
        let line = line.split_once(" bash -c ").map_or(&*line, |(_, quoted)| quoted.trim_matches('\'')).to_owned();
        self.seen.commands.lock().expect("lock").push(line.clone());
        self.command.lock().expect("lock").insert(id, line.clone());
        let handle = session.handle();
        if line == "refuse" {
            return session.channel_failure(id);
        }
        session.channel_success(id)?;
        let write = self.write.lock().expect("lock").get(&id).cloned().expect("open");
        let seen = Arc::clone(&self.seen);
        tokio::spawn(async move {
            let exit = async |code| {
                let _ = handle.exit_status_request(id, code).await;
                let _ = handle.eof(id).await;
                let _ = handle.close(id).await;
            };
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match verb {
                "echo" => {
                    let _ = handle.data(id, rest.as_bytes().to_vec()).await;
                    exit(0).await;
                }
                "sleep" => {
                    tokio::time::sleep(Duration::from_millis(rest.parse().expect("number"))).await;
                    exit(0).await;
                }
                "meet" => {
                    let all: usize = rest.parse().expect("number");
                    seen.met.fetch_add(1, Ordering::SeqCst);
                    while seen.met.load(Ordering::SeqCst) < all {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    exit(0).await;
                }
                "fail" => {
                    let _ = handle.data(id, b"some".to_vec()).await;
                    let _ = handle.extended_data(id, 1, b"first line\nno such thing\n".to_vec()).await;
                    exit(7).await;
                }
                "flood" => {
                    let chunk = bytes::Bytes::from(vec![b'x'; 32 << 10]);
                    for _ in 0..rest.parse::<usize>().expect("number") * 32 {
                        if write.data_bytes(chunk.clone()).await.is_err() {
                            return;
                        }
                    }
                    exit(0).await;
                }
                "half" => {
                    let _ = handle.data(id, b"half of i".to_vec()).await;
                    let _ = handle.close(id).await;
                }
                "drop" => {
                    let _ = handle.data(id, b"half of i".to_vec()).await;
                    let _ = handle.disconnect(Disconnect::ByApplication, "going down".to_owned(), String::new()).await;
                }
                "late" => {
                    let _ = handle.data(id, b"early ".to_vec()).await;
                    let _ = handle.exit_status_request(id, 5).await;
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    let _ = handle.data(id, b"late".to_vec()).await;
                    let _ = handle.eof(id).await;
                    let _ = handle.extended_data(id, 1, b"after eof".to_vec()).await;
                    let _ = handle.close(id).await;
                }
                "killed" => {
                    let _ = handle.exit_signal_request(id, Sig::KILL, false, String::new(), String::new()).await;
                    let _ = handle.close(id).await;
                }
                // "hang", "cat": answered elsewhere or never.
                _ => {}
            }
        });
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), russh::Error> {
        self.stdin.lock().expect("lock").entry(id).or_default().extend_from_slice(data);
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        if self.command.lock().expect("lock").get(&id).is_some_and(|line| line == "cat") {
            let typed = self.stdin.lock().expect("lock").remove(&id).unwrap_or_default();
            let handle = session.handle();
            let write = self.write.lock().expect("lock").get(&id).cloned().expect("open");
            tokio::spawn(async move {
                let _ = write.data_bytes(typed).await;
                let _ = handle.exit_status_request(id, 0).await;
                let _ = handle.close(id).await;
            });
        }
        Ok(())
    }

    async fn channel_close(&mut self, _: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        self.seen.closed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Server {
    pub(super) async fn start() -> Self {
        let (host_private, host_key) = keys::generate("host").expect("made");
        let (client_key, client) = keys::generate("client").expect("made");
        let config = Arc::new(server::Config {
            keys: vec![PrivateKey::from_openssh(host_private.expose()).expect("readable")],
            auth_rejection_time: Duration::from_millis(10),
            ..server::Config::default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addr = listener.local_addr().expect("bound");
        let seen = Arc::new(Seen::default());
        let client = PublicKey::from_openssh(&client).expect("readable");
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let handler = Handler {
                    client: client.clone(),
                    seen: Arc::clone(&shared),
                    stdin: Arc::default(),
                    command: Arc::default(),
                    write: Arc::default(),
                };
                let config = Arc::clone(&config);
                let plug = socket.as_fd().try_clone_to_owned().expect("dup");
                shared.open.lock().expect("lock").push(plug.into());
                tokio::spawn(async move {
                    if let Ok(session) = server::run_stream(config, socket, handler).await {
                        let _ = session.await;
                    }
                });
            }
        });
        Self { addr, host_key, client_key, seen }
    }

    pub(super) fn guests(&self) -> SshGuests {
        let target = Target { node: node(), addr: self.addr, host_key: self.host_key.clone() };
        SshGuests::with_timing(vec![target], "root", &self.client_key, Timing::default()).expect("keys")
    }

    /// Ends every connection as a machine does whose plug is pulled and put back: without a word.
    pub(super) fn reset(&self) {
        for plug in self.seen.open.lock().expect("lock").drain(..) {
            let _ = plug.shutdown(std::net::Shutdown::Both);
        }
    }

    pub(super) fn commands(&self) -> Vec<String> {
        self.seen.commands.lock().expect("lock").clone()
    }
}
