//! Etcd members that are servers of this process, and machines that do nothing but note what is done to them.
//! Tests of whole runs drill them: each test says what a member answers to a question, by the question's path.
//! They know no Raft and keep no store.

use super::act::{Act, Claim};
use super::bound::Timing;
use super::clock::pass;
use super::etcd::{Endpoint, Site};
use super::injector::{Environment, InjectError, Injector, Leftover, Proof};
use super::run::Options;
use crate::spec::NodeName;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use h2::RecvStream;
use h2::server::{self, SendResponse};
use http::{HeaderMap, Request, Response};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What comes of a question.
pub enum Said {
    Answer(Vec<u8>),
    /// The same, a while later.
    Late(Duration, Vec<u8>),
    /// The member knows no such question.
    Refusal,
    /// Nothing, ever.
    Silence,
}

/// What a member says to a question's path and message.
pub type Says = Arc<dyn Fn(&str, &[u8]) -> Said + Send + Sync>;

/// Protobuf: a number in a field.
pub fn number(field: u8, mut value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// Protobuf: a message in a field, shorter than 128 bytes.
pub fn message(field: u8, inner: &[u8]) -> Vec<u8> {
    [vec![(field << 3) | 2, inner.len() as u8], inner.to_vec()].concat()
}

/// Protobuf: what stands in the first field, which is the key in questions about keys; shorter than 128 bytes.
pub fn first_field(message: &[u8]) -> String {
    match message {
        [10, length, rest @ ..] => String::from_utf8_lossy(&rest[..usize::from(*length)]).into_owned(),
        other => panic!("no key in {other:?}"),
    }
}

/// Serves until the test ends.
pub async fn member(says: Says) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let says = says.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = server::handshake(socket).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond, says.clone()));
                }
            });
        }
    });
    address
}

/// Whoever asks may have gone before the answer: that is no fault of a test.
async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, says: Says) {
    let path = request.uri().path().to_owned();
    let mut question = request.into_body();
    let mut asked = Vec::new();
    // A stream of questions does not end: the first is enough.
    while !whole(&asked) {
        match question.data().await {
            Some(Ok(data)) => asked.extend_from_slice(&data),
            Some(Err(_)) => return,
            None => break,
        }
    }
    let head = Response::builder().header("content-type", "application/grpc");
    let message = match says(&path, asked.get(5..).unwrap_or_default()) {
        Said::Answer(message) => message,
        Said::Late(after, message) => {
            pass(after).await;
            message
        }
        Said::Refusal => {
            let refusal = head.header("grpc-status", "12").body(()).expect("a head");
            let _ = respond.send_response(refusal, true);
            return;
        }
        Said::Silence => return std::future::pending().await,
    };
    let Ok(mut out) = respond.send_response(head.body(()).expect("a head"), false) else { return };
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    if out.send_data(Bytes::from([vec![0], length.to_vec(), message].concat()), false).is_ok() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        let _ = out.send_trailers(trailers);
    }
}

/// Whether the question is there to its end: a byte, its length in four, and so many bytes.
fn whole(asked: &[u8]) -> bool {
    match asked {
        [_, a, b, c, d, message @ ..] => message.len() >= u32::from_be_bytes([*a, *b, *c, *d]) as usize,
        _ => false,
    }
}

/// An address at which nobody is.
pub async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address")
}

pub fn site(members: &[SocketAddr]) -> Site {
    let endpoint = |(node, address): (NodeName, &SocketAddr)| Endpoint {
        node,
        client_url: format!("http://{address}"),
        peer_url: format!("http://{address}"),
    };
    Site {
        members: (0..).map(NodeName::controller).zip(members).map(endpoint).collect(),
        tls: None,
        quota_mib: 1638,
        environment: Environment {
            cluster: "lab".to_owned(),
            acceleration: "processes".to_owned(),
            kubernetes: String::new(),
            timing: Timing::native(),
            host_load: 0.0,
            host_cpus: 1,
        },
    }
}

pub fn options(progress: impl Fn(&str) + Send + Sync + 'static) -> Options {
    Options {
        run: "a-run".to_owned(),
        seed: 1,
        started: jiff::Timestamp::UNIX_EPOCH,
        directory: "/nonexistent".into(),
        cancel: CancellationToken::new(),
        kube: None,
        progress: Arc::new(progress),
    }
}

/// Machines on which nothing is left, or that never say so. All that is claimed of them is so.
#[derive(Default)]
pub struct Machines {
    silent: bool,
    /// Of every member's disk, in bytes.
    room: Option<u64>,
    done: Mutex<Vec<String>>,
    /// When the timers in them would have gone off.
    armed: Mutex<Option<Duration>>,
}

impl Machines {
    /// None of them answers.
    pub fn silent() -> Machines {
        Machines { silent: true, ..Machines::default() }
    }
    /// Each has so many bytes for etcd's data.
    pub fn with_room(bytes: u64) -> Machines {
        Machines { room: Some(bytes), ..Machines::default() }
    }
    fn note(&self, what: String) {
        self.done.lock().expect("what was done").push(what);
    }
    pub fn done(&self) -> Vec<String> {
        self.done.lock().expect("what was done").clone()
    }
    pub fn armed(&self) -> Option<Duration> {
        *self.armed.lock().expect("free")
    }
}

impl Injector for Machines {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        self.note(act.to_string());
        async { Ok(()) }.boxed()
    }
    fn prove<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        async { Ok(Proof { held: true, evidence: String::new() }) }.boxed()
    }
    fn arm<'a>(&'a self, _: &'a [Act], after: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        self.note("arm".to_owned());
        *self.armed.lock().expect("free") = Some(after);
        async { Ok(()) }.boxed()
    }
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        self.note("disarm".to_owned());
        async { Ok(()) }.boxed()
    }
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        if self.silent { futures::future::pending().boxed() } else { async { Ok(vec![]) }.boxed() }
    }
    fn store_room<'a>(&'a self, _: &'a [NodeName]) -> BoxFuture<'a, Result<Option<u64>, InjectError>> {
        async { Ok(self.room) }.boxed()
    }
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        async { Ok(vec![]) }.boxed()
    }
    fn incarnation<'a>(&'a self, _: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        async { Ok(String::new()) }.boxed()
    }
}
