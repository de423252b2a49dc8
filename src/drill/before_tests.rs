//! What is refused before anything is changed: members that are not well in etcd's own words, and machines that never answer.
//! The members are servers of this process that know two questions; the machines note whatever is done to them.

use super::act::{Act, Claim};
use super::bound::Timing;
use super::catalogue::find;
use super::etcd::{Endpoint, Site};
use super::injector::{Environment, FaultLog as _, InjectError, Injector, Leftover, MemoryLog, Proof};
use super::run::{Options, RunError, run};
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

/// What a member says of itself.
#[derive(Clone, Copy)]
struct Says {
    id: u64,
    leader: u64,
    held: u64,
    /// Number of the kind, as etcd has it; 0: there is none.
    alarm: u64,
}

const WELL: Says = Says { id: 1, leader: 1, held: 20 << 20, alarm: 0 };

/// Protobuf: a number in a field.
fn number(field: u8, mut value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// Protobuf: a message in a field, shorter than 128 bytes.
fn message(field: u8, inner: &[u8]) -> Vec<u8> {
    [vec![(field << 3) | 2, inner.len() as u8], inner.to_vec()].concat()
}

/// The answer to a question by its path, as `rpc.proto` numbers what is in it.
fn said(path: &str, says: Says) -> Vec<u8> {
    let header = [number(1, 7), number(2, says.id), number(3, 5), number(4, 2)].concat();
    match path {
        "/etcdserverpb.Maintenance/Status" => {
            [message(1, &header), number(3, says.held), number(4, says.leader), number(5, 9), number(6, 2)].concat()
        }
        "/etcdserverpb.Maintenance/Alarm" if says.alarm == 0 => message(1, &header),
        "/etcdserverpb.Maintenance/Alarm" => {
            [message(1, &header), message(2, &[number(1, says.id), number(2, says.alarm)].concat())].concat()
        }
        other => panic!("{other} is not asked before a drill"),
    }
}

/// Serves until the test ends.
async fn member(says: Says) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = server::handshake(socket).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond, says));
                }
            });
        }
    });
    address
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, says: Says) {
    let message = said(request.uri().path(), says);
    let mut question = request.into_body();
    while let Some(data) = question.data().await {
        data.expect("a question");
    }
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let mut out = respond.send_response(head, false).expect("sent");
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    out.send_data(Bytes::from([vec![0], length.to_vec(), message].concat()), false).expect("sent");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    out.send_trailers(trailers).expect("sent");
}

/// An address at which nobody is.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address")
}

fn site(members: &[SocketAddr]) -> Site {
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

fn options(progress: impl Fn(&str) + Send + Sync + 'static) -> Options {
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

/// Machines on which nothing is left, or that never say so.
#[derive(Default)]
struct Machines {
    silent: bool,
    done: Mutex<Vec<String>>,
}

impl Machines {
    fn note(&self, what: String) {
        self.done.lock().expect("what was done").push(what);
    }
    fn done(&self) -> Vec<String> {
        self.done.lock().expect("what was done").clone()
    }
}

impl Injector for Machines {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        self.note(act.to_string());
        async { Ok(()) }.boxed()
    }
    fn prove<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        async { Ok(Proof { held: false, evidence: String::new() }) }.boxed()
    }
    fn arm<'a>(&'a self, _: &'a [Act], _: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        self.note("arm".to_owned());
        async { Ok(()) }.boxed()
    }
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        self.note("disarm".to_owned());
        async { Ok(()) }.boxed()
    }
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        if self.silent { futures::future::pending().boxed() } else { async { Ok(vec![]) }.boxed() }
    }
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        async { Ok(vec![]) }.boxed()
    }
    fn incarnation<'a>(&'a self, _: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        async { Ok(String::new()) }.boxed()
    }
}

/// Why a drill was refused; nothing was done to a machine, and nothing is open in the log.
async fn refused(drill: &str, members: &[SocketAddr]) -> String {
    let (machines, log) = (Machines::default(), MemoryLog::default());
    let drill = find(drill).expect("there");
    let error = run(&drill, &site(members), &machines, &log, &options(|_| ())).await.expect_err("refused").to_string();
    assert!(error.starts_with("nothing was injected: "), "{error}");
    assert_eq!(machines.done(), Vec::<String>::new(), "{error}");
    assert!(log.pending().expect("a list").is_empty(), "{error}");
    error
}

#[tokio::test]
async fn a_cluster_with_an_alarm_on_is_not_drilled() {
    for (alarm, name) in [(1, "NOSPACE"), (2, "CORRUPT")] {
        let told = refused("leader-kill", &[member(Says { alarm, ..WELL }).await]).await;
        assert!(told.contains(&format!("the alarm {name} is on (member 0000000000000001)")), "{told}");
    }
    // The alarm it was: without one the look goes on to who could be hit.
    let told = refused("leader-kill", &[member(WELL).await]).await;
    assert!(told.contains("leader-kill needs 3 etcd members, the cluster has 1"), "{told}");
}

/// Nothing of it is a leftover of a drill: no fault was made, and a heal would find nothing.
#[tokio::test]
async fn a_cluster_that_is_not_well_is_not_drilled() {
    for (leaders, why) in [
        ([0, 0, 0], "no etcd member leads"),
        ([1, 2, 1], "2 etcd members say that they lead"),
        ([1, 1, 0], "controller-2 knows no leader"),
        ([1, 1, 9], "members follow 2 leaders"),
    ] {
        let mut members = Vec::new();
        for (id, leader) in (1..).zip(leaders) {
            members.push(member(Says { id, leader, ..WELL }).await);
        }
        let told = refused("leader-kill", &members).await;
        assert!(told.contains(&format!("not fit to be drilled: {why}")), "{told}");
    }
    let members = [member(WELL).await, member(Says { id: 2, ..WELL }).await, nobody().await];
    let told = refused("leader-kill", &members).await;
    assert!(told.contains("not fit to be drilled: controller-2 does not answer"), "{told}");
}

#[tokio::test]
async fn a_store_that_has_grown_is_not_filled_beyond_its_disk() {
    let told = refused("full-quota", &[member(Says { held: 700 << 20, ..WELL }).await]).await;
    assert!(told.contains("full-quota fills 16 MiB into a store of 700 MiB"), "{told}");
}

/// A machine without SSH is waited for as long as one may take to boot: that somebody looks is said, and Ctrl-C is heard.
#[tokio::test]
async fn ctrl_c_is_heard_while_machines_do_not_answer() {
    let (machines, log) = (Machines { silent: true, ..Machines::default() }, MemoryLog::default());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let lines = heard.clone();
    let options = options(move |line| lines.lock().expect("lines").push(line.to_owned()));
    let (drill, site) = (find("leader-kill").expect("there"), site(&[]));
    let interrupter = async {
        while heard.lock().expect("lines").is_empty() {
            tokio::task::yield_now().await;
        }
        options.cancel.cancel();
    };
    let both = async { tokio::join!(run(&drill, &site, &machines, &log, &options), interrupter).0 };
    let ended = tokio::time::timeout(Duration::from_secs(10), both).await.expect("heard in time");
    assert!(matches!(ended, Err(RunError::NotBegun)), "{:?}", ended.map(|_| ()));
    assert_eq!(*heard.lock().expect("lines"), ["looking for what earlier drills have left"]);
    assert_eq!(machines.done(), Vec::<String>::new());
    assert!(log.pending().expect("a list").is_empty());
}
