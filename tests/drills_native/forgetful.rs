//! A store that acknowledges writes and drops some of them: a proxy in front of an etcd member.
//! It speaks just enough HTTP/2 to pass everything on, and writes every so many-th probe under another name.

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{Request, Response};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::{TcpListener, TcpStream};

/// Drops one write of so many.
const EVERY: u32 = 40;

/// Serves at a port of its own choice, and passes on to `upstream`.
pub async fn serve(upstream: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(connection(socket, upstream, count.clone()));
        }
    });
    address
}

async fn connection(socket: TcpStream, upstream: SocketAddr, count: Arc<AtomicU32>) -> Option<()> {
    let mut server = server::handshake(socket).await.ok()?;
    let (client, driver) = client::handshake(TcpStream::connect(upstream).await.ok()?).await.ok()?;
    tokio::spawn(driver);
    while let Some(Ok((request, respond))) = server.accept().await {
        tokio::spawn(exchange(client.clone(), request, respond, count.clone()));
    }
    Some(())
}

async fn exchange(
    client: client::SendRequest<Bytes>,
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    count: Arc<AtomicU32>,
) -> Option<()> {
    let (parts, body) = request.into_parts();
    let put = parts.uri.path() == "/etcdserverpb.KV/Put";
    let forget = put && count.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1;
    let mut outgoing = Request::new(());
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = parts.uri;
    *outgoing.headers_mut() = parts.headers;
    let (response, up) = client.ready().await.ok()?.send_request(outgoing, false).ok()?;
    tokio::spawn(pump(body, up, forget));
    let (parts, body) = response.await.ok()?.into_parts();
    let mut answer = Response::new(());
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = parts.headers;
    let ended = body.is_end_stream();
    let down = respond.send_response(answer, ended).ok()?;
    if ended { Some(()) } else { pump(body, down, false).await }
}

async fn pump(mut from: RecvStream, mut to: SendStream<Bytes>, forget: bool) -> Option<()> {
    while let Some(data) = from.data().await {
        let data = data.ok()?;
        let _ = from.flow_control().release_capacity(data.len());
        to.send_data(if forget { elsewhere(&data) } else { data }, false).ok()?;
    }
    match from.trailers().await.ok()? {
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
