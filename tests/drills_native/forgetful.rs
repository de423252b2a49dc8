//! A store that lies, made of an honest one: a proxy in front of an etcd member that speaks just enough HTTP/2 to pass everything on.
//! The suite puts one before every member and drills them; the checker must find the lie out.
//! It knows what etcd's requests are called, and of their contents only the probe's prefix.

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};

/// What the store does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapse {
    /// Acknowledges one write of so many, and keeps it under another name.
    Drops { every: u32 },
    /// The same, once only.
    DropsOne { nth: u32 },
    /// Answers one read of so many with what it answered first.
    Stale { every: u32 },
}

/// All members' proxies share one: the lapse is the store's, not a connection's.
pub struct Forgetful {
    lapse: Lapse,
    count: AtomicU32,
    first: Mutex<HashMap<Bytes, Bytes>>,
}

impl Forgetful {
    pub fn new(lapse: Lapse) -> Arc<Forgetful> {
        Arc::new(Forgetful { lapse, count: AtomicU32::new(0), first: Mutex::default() })
    }

    /// Serves at a port of its own choice, and passes on to `upstream`.
    pub async fn serve(self: &Arc<Forgetful>, upstream: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, store) = (listener.local_addr().expect("an address"), self.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(connection(socket, upstream, store.clone()));
            }
        });
        address
    }

    fn drops_now(&self) -> bool {
        match self.lapse {
            Lapse::Drops { every } => self.due(every),
            Lapse::DropsOne { nth } => self.count.fetch_add(1, Ordering::Relaxed) + 1 == nth,
            Lapse::Stale { .. } => false,
        }
    }

    fn due(&self, every: u32) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) % every == every - 1
    }
}

async fn connection(socket: TcpStream, upstream: SocketAddr, store: Arc<Forgetful>) -> Option<()> {
    let mut server = server::handshake(socket).await.ok()?;
    let (client, driver) = client::handshake(TcpStream::connect(upstream).await.ok()?).await.ok()?;
    // The member is gone: so is its proxy, as far as clients can tell.
    let mut driver = tokio::spawn(driver);
    loop {
        let accepted = tokio::select! {
            accepted = server.accept() => accepted,
            _ = &mut driver => return None,
        };
        let Some(Ok((request, respond))) = accepted else { return Some(()) };
        tokio::spawn(exchange(client.clone(), request, respond, store.clone()));
    }
}

async fn exchange(
    client: client::SendRequest<Bytes>,
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    store: Arc<Forgetful>,
) -> Option<()> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let forget = path == "/etcdserverpb.KV/Put" && store.drops_now();
    let mut outgoing = Request::new(());
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = parts.uri;
    *outgoing.headers_mut() = parts.headers;
    let (response, mut up) = client.ready().await.ok()?.send_request(outgoing, false).ok()?;
    if let (Lapse::Stale { every }, "/etcdserverpb.KV/Range") = (store.lapse, path.as_str()) {
        return reread(body, up, response, respond, &store, every).await;
    }
    // Watches send when they like: request and answer flow beside each other.
    tokio::spawn(async move { pump(body, &mut up, forget).await });
    let (parts, body) = response.await.ok()?.into_parts();
    let mut answer = Response::new(());
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = parts.headers;
    let ended = body.is_end_stream();
    let mut down = respond.send_response(answer, ended).ok()?;
    if ended { Some(()) } else { pump(body, &mut down, false).await }
}

async fn pump(mut from: RecvStream, to: &mut SendStream<Bytes>, forget: bool) -> Option<()> {
    while let Some(data) = from.data().await {
        let data = data.ok()?;
        let _ = from.flow_control().release_capacity(data.len());
        to.send_data(if forget { elsewhere(&data) } else { data }, false).ok()?;
    }
    end(to, from.trailers().await.ok()?)
}

fn end(to: &mut SendStream<Bytes>, trailers: Option<HeaderMap>) -> Option<()> {
    match trailers {
        Some(trailers) => to.send_trailers(trailers).ok(),
        None => to.send_data(Bytes::new(), true).ok(),
    }
}

/// The same write, to a key that nobody reads: acknowledged, with a revision, and not there.
fn elsewhere(data: &Bytes) -> Bytes {
    let (from, to) = (b"/probe/", b"/drops/");
    let mut data = data.to_vec();
    if let Some(at) = data.windows(from.len()).position(|window| window == from) {
        data[at..at + to.len()].copy_from_slice(to);
    }
    data.into()
}

async fn whole(mut from: RecvStream) -> Option<(Bytes, Option<HeaderMap>)> {
    let mut all = Vec::new();
    while let Some(data) = from.data().await {
        let data = data.ok()?;
        let _ = from.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    Some((all.into(), from.trailers().await.ok()?))
}

/// Passes a read on, and now and then gives the answer that the same question had before.
async fn reread(
    body: RecvStream,
    mut up: SendStream<Bytes>,
    response: client::ResponseFuture,
    mut respond: server::SendResponse<Bytes>,
    store: &Forgetful,
    every: u32,
) -> Option<()> {
    let (question, trailers) = whole(body).await?;
    up.send_data(question.clone(), trailers.is_none()).ok()?;
    if let Some(trailers) = trailers {
        up.send_trailers(trailers).ok()?;
    }
    let (parts, body) = response.await.ok()?.into_parts();
    let (mut data, trailers) = whole(body).await?;
    // Of one key: what is read as a whole is the evidence, and stays honest. Only an answer that was one is given again.
    let single = question.windows(7).filter(|window| *window == b"/probe/").count() == 1;
    if single && !data.is_empty() {
        let first = store.first.lock().expect("first").entry(question).or_insert_with(|| data.clone()).clone();
        if store.due(every) {
            data = first;
        }
    }
    let mut answer = Response::new(());
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = parts.headers;
    let mut down = respond.send_response(answer, false).ok()?;
    down.send_data(data, false).ok()?;
    end(&mut down, trailers)
}
