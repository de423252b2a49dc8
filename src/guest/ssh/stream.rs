//! Long-lived channels: a command's output as it comes, and TCP tunnels into the guest's network.
//! `logs -f`, `ssh` and `proxy` use them; each has a connection of its own, so a slow reader slows nobody else.
//! It knows nothing of terminals and keeps no output.

use super::command::Open;
use super::{OPEN, SshGuests, shown};
use crate::guest::{Exit, GuestError};
use crate::spec::NodeName;
use bytes::BytesMut;
use futures::FutureExt;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// How long what was written to a dropped tunnel may take to leave.
const LINGER: Duration = Duration::from_secs(5);

impl SshGuests {
    /// Runs a command with its streams connected, for as long as it takes; `stdout` and `stderr` are shut down (flushed,
    /// for a process' own) when the command has said its last. Dropping the future ends the command.
    ///
    /// Errors: `Connect`, `HostKey`; `Lost` when the connection ended first; `Unread` when nobody reads any more; `Local` when
    /// our side of a stream failed otherwise.
    pub async fn exec_stream(
        &self,
        node: &NodeName,
        line: &str,
        stdin: impl AsyncRead + Send,
        stdout: impl AsyncWrite + Send,
        stderr: impl AsyncWrite + Send,
    ) -> Result<Exit, GuestError> {
        let (mut open, mut read) = self.open_session(node).await?;
        let failure = |ended| stopped(node, line, ended);
        if let Some(write) = open.write() {
            write.exec(true, line).await.map_err(|_| failure(Stopped::Lost(open.why_ended())))?;
        }
        let (_, never) = mpsc::channel(1);
        converse(&mut open, &mut read, stdin, stdout, stderr, never).await.map_err(failure)
    }

    /// A TCP connection from the node to `host:port`, as sshd's `direct-tcpip` makes it.
    ///
    /// Errors: `Connect` also when the node could not reach that address.
    pub async fn direct_tcpip(&self, node: &NodeName, host: &str, port: u16) -> Result<Tunnel, GuestError> {
        let slot = self.slot(node)?;
        let link = Arc::new(slot.endpoint.connect(slot.endpoint.timing.connect).await?);
        let refused =
            |reason: String| GuestError::Connect { node: node.clone(), addr: format!("{host}:{port} from {node}"), reason };
        let channel = match timeout(OPEN, link.tcpip(host, port)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(refused(error.to_string())),
            Err(_) => return Err(refused(format!("no answer within {} s", OPEN.as_secs()))),
        };
        let (open, read) = Open::new(channel, link, None);
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (dropped, gone) = oneshot::channel();
        tokio::spawn(tunnel(open, read, theirs, gone));
        Ok(Tunnel { io: ours, _dropped: dropped })
    }

    /// A session channel on a connection of its own.
    pub(super) async fn open_session(&self, node: &NodeName) -> Result<(Open, ChannelReadHalf), GuestError> {
        let slot = self.slot(node)?;
        let link = Arc::new(slot.endpoint.connect(slot.endpoint.timing.connect).await?);
        match timeout(OPEN, link.session()).await {
            Ok(Ok(channel)) => Ok(Open::new(channel, link, None)),
            Ok(Err(error)) => Err(slot.endpoint.unreachable(format!("session: {error}"))),
            Err(_) => Err(slot.endpoint.unreachable(format!("no session within {} s", OPEN.as_secs()))),
        }
    }
}

/// Why a conversation ended without an exit.
pub(super) enum Stopped {
    Lost(String),
    Refused,
    Local(std::io::Error),
}

pub(super) fn stopped(node: &NodeName, line: &str, why: Stopped) -> GuestError {
    let lost = |reason| GuestError::Lost { node: node.clone(), command: shown(line), reason };
    match why {
        Stopped::Lost(reason) => lost(reason),
        Stopped::Refused => lost("the SSH server would not run it".to_owned()),
        Stopped::Local(error) if error.kind() == std::io::ErrorKind::BrokenPipe => GuestError::Unread { node: node.clone() },
        Stopped::Local(error) => GuestError::Local { node: node.clone(), reason: error.to_string() },
    }
}

/// Moves everything both ways until the other side closes the channel. `resize` gives window sizes (columns, rows).
pub(super) async fn converse(
    open: &mut Open,
    read: &mut ChannelReadHalf,
    stdin: impl AsyncRead + Send,
    stdout: impl AsyncWrite + Send,
    stderr: impl AsyncWrite + Send,
    mut resize: mpsc::Receiver<(u16, u16)>,
) -> Result<Exit, Stopped> {
    let heard = {
        let Some(write) = open.write() else { return Err(Stopped::Refused) };
        // Two futures, not one loop: a reader that does not read must not keep what it writes from leaving.
        let (mut feeding, mut listening) = (pin!(feed(write, stdin)), pin!(listen(read, stdout, stderr)));
        let mut fed = false;
        loop {
            tokio::select! {
                result = &mut feeding, if !fed => {
                    fed = true;
                    result.map_err(Stopped::Local)?;
                }
                Some((columns, rows)) = resize.recv() => {
                    let _ = write.window_change(u32::from(columns), u32::from(rows), 0, 0).await;
                }
                heard = &mut listening => break heard?,
            }
        }
    };
    open.closed();
    match heard {
        Heard::Closed(exit) => Ok(exit.unwrap_or(Exit::Lost)),
        Heard::Ended => Err(Stopped::Lost(open.why_ended())),
    }
}

enum Heard {
    Closed(Option<Exit>),
    /// The connection ended under the channel.
    Ended,
}

/// Passes on what the other side says until it closes the channel.
async fn listen(
    read: &mut ChannelReadHalf,
    stdout: impl AsyncWrite + Send,
    stderr: impl AsyncWrite + Send,
) -> Result<Heard, Stopped> {
    let (mut stdout, mut stderr) = (pin!(stdout), pin!(stderr));
    let mut exit = None;
    let mut eof = false;
    let heard = loop {
        match read.wait().await {
            Some(ChannelMsg::Data { data }) => say(&mut stdout, &data).await?,
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => say(&mut stderr, &data).await?,
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                exit.get_or_insert(Exit::Code(exit_status));
            }
            Some(ChannelMsg::ExitSignal { .. }) => {
                exit.get_or_insert(Exit::Signal);
            }
            Some(ChannelMsg::Eof) => {
                eof = true;
                let _ = stdout.shutdown().await;
            }
            Some(ChannelMsg::Failure) => return Err(Stopped::Refused),
            Some(ChannelMsg::Close) => break Heard::Closed(exit),
            Some(_) => {}
            None if eof && exit.is_some() => break Heard::Closed(exit),
            None => break Heard::Ended,
        }
    };
    let _ = stdout.shutdown().await;
    let _ = stderr.shutdown().await;
    Ok(heard)
}

async fn say(to: &mut Pin<&mut (impl AsyncWrite + Send)>, data: &[u8]) -> Result<(), Stopped> {
    to.write_all(data).await.map_err(Stopped::Local)?;
    to.flush().await.map_err(Stopped::Local)
}

/// Sends standard input and its end. When the channel no longer takes it, the reader learns why.
async fn feed(write: &ChannelWriteHalf<Msg>, stdin: impl AsyncRead + Send) -> std::io::Result<()> {
    let mut stdin = pin!(stdin);
    let mut buffer = BytesMut::with_capacity(32 << 10);
    loop {
        buffer.reserve(32 << 10);
        if stdin.read_buf(&mut buffer).await? == 0 {
            let _ = write.eof().await;
            return Ok(());
        }
        if write.data_bytes(buffer.split().freeze()).await.is_err() {
            return Ok(());
        }
    }
}

/// A TCP connection through a node. Half-closing works; dropping it closes the far end once what was written has left
/// (or cannot).
pub struct Tunnel {
    io: DuplexStream,
    /// Tells the pump apart "no more to send" from "nobody there".
    _dropped: oneshot::Sender<()>,
}

async fn tunnel(mut open: Open, mut read: ChannelReadHalf, local: DuplexStream, gone: oneshot::Receiver<()>) {
    let (reader, writer) = tokio::io::split(local);
    let (_, never) = mpsc::channel(1);
    let moving = converse(&mut open, &mut read, reader, writer, tokio::io::sink(), never).fuse();
    let mut moving = pin!(moving);
    tokio::select! {
        _ = &mut moving => return,
        _ = gone => {}
    }
    let _ = tokio::time::timeout_at(Instant::now() + LINGER, moving).await;
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
