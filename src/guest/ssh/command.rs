//! One command on one channel: standard input fed while output is read, limits, exit, and a clean end when given up.
//! `ssh` runs `Guest` commands through it.
//! It knows nothing of connecting: it is handed an open channel and says whether the command can have started.

use super::link::Link;
use crate::guest::{Cmd, Exit, Output, quote};
use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Read and dropped beyond the limit before the channel is closed on a command that does not stop talking, bytes.
const FLOOD: usize = 64 << 20;

/// What came instead of an `Output`.
#[derive(Debug)]
pub(super) enum Broken {
    /// The request was never taken: it is safe to send it again on another connection.
    NotSent(String),
    /// It may have run.
    Lost(String),
}

/// A channel in use. Dropped before the other side closed it (deadline, cancellation), it closes the channel.
pub(super) struct Open {
    write: Option<ChannelWriteHalf<Msg>>,
    held: Option<(Arc<Link>, Option<OwnedSemaphorePermit>)>,
    closed: bool,
}

impl Open {
    pub fn new(channel: Channel<Msg>, link: Arc<Link>, permit: Option<OwnedSemaphorePermit>) -> (Open, ChannelReadHalf) {
        let (read, write) = channel.split();
        (Open { write: Some(write), held: Some((link, permit)), closed: false }, read)
    }

    /// `None` only while being dropped.
    pub fn write(&self) -> Option<&ChannelWriteHalf<Msg>> {
        self.write.as_ref()
    }

    /// The other side closed it; nothing is left to tidy.
    pub fn closed(&mut self) {
        self.closed = true;
    }

    pub fn why_ended(&self) -> String {
        self.held.as_ref().map_or_else(String::new, |(link, _)| link.ended())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let (false, Some(write), Ok(runtime)) = (self.closed, self.write.take(), tokio::runtime::Handle::try_current()) {
            let held = self.held.take();
            runtime.spawn(async move {
                let _ = write.close().await;
                drop(held);
            });
        }
    }
}

/// Runs the command to its end. The caller cuts it off at the deadline by dropping the future.
pub(super) async fn run(
    channel: Channel<Msg>,
    link: Arc<Link>,
    permit: Option<OwnedSemaphorePermit>,
    cmd: Cmd,
) -> Result<Output, Broken> {
    let (mut open, mut read) = Open::new(channel, link, permit);
    let mut got = Collected::new(cmd.limit);
    {
        let Some(write) = open.write() else { return Err(Broken::NotSent("no channel".to_owned())) };
        write.exec(true, guarded(&cmd)).await.map_err(|_| Broken::NotSent(open.why_ended()))?;
        let mut feeding = pin!(feed(write, cmd.stdin.map(Bytes::from)));
        let mut fed = false;
        while got.end.is_none() {
            tokio::select! {
                () = &mut feeding, if !fed => fed = true,
                message = read.wait() => got.take(message),
            }
        }
    }
    match got.end {
        Some(End::Closed) => open.closed(),
        // Left open: dropping it stops the command.
        Some(End::Flood) | None => {}
        Some(End::Refused) => return Err(Broken::Lost("the SSH server would not run it".to_owned())),
        // All output and the exit were there; only the goodbye is missing.
        Some(End::Link) if got.eof && got.exit.is_some() => open.closed(),
        Some(End::Link) => {
            open.closed();
            return Err(Broken::Lost(open.why_ended()));
        }
    }
    let exit = got.exit.unwrap_or(Exit::Lost);
    Ok(Output { exit, stdout: got.stdout, stderr: got.stderr, truncated: got.truncated })
}

/// The command under its deadline in the guest, too. Closing a channel ends nothing there, sshd refuses to pass signals
/// on for root, and it counts a session until its process is gone: stuck probes would use them up and burn CPU.
fn guarded(cmd: &Cmd) -> String {
    let seconds = cmd.deadline.as_secs().saturating_add(2);
    format!("exec timeout -k 5 {seconds} bash -c {}", quote(&cmd.line))
}

/// Sends standard input and its end. Errors are left to the reader, which learns why.
async fn feed(write: &ChannelWriteHalf<Msg>, stdin: Option<Bytes>) {
    if let Some(bytes) = stdin
        && write.data_bytes(bytes).await.is_err()
    {
        return;
    }
    let _ = write.eof().await;
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The channel was closed in order.
    Closed,
    /// The connection under it ended.
    Link,
    Refused,
    Flood,
}

/// Everything that came, bounded. Output may follow the exit status and even the end-of-file mark of the other stream:
/// only the close of the channel is the end.
struct Collected {
    limit: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    dropped: usize,
    eof: bool,
    exit: Option<Exit>,
    end: Option<End>,
}

impl Collected {
    fn new(limit: usize) -> Self {
        Self { limit, stdout: Vec::new(), stderr: Vec::new(), truncated: false, dropped: 0, eof: false, exit: None, end: None }
    }

    fn take(&mut self, message: Option<ChannelMsg>) {
        match message {
            None => self.end = Some(End::Link),
            Some(ChannelMsg::Close) => self.end = Some(End::Closed),
            Some(ChannelMsg::Failure) => self.end = Some(End::Refused),
            Some(ChannelMsg::Eof) => self.eof = true,
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                self.exit.get_or_insert(Exit::Code(exit_status));
            }
            Some(ChannelMsg::ExitSignal { .. }) => {
                self.exit.get_or_insert(Exit::Signal);
            }
            Some(ChannelMsg::Data { data }) => self.keep(&data, false),
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => self.keep(&data, true),
            Some(_) => {}
        }
    }

    fn keep(&mut self, data: &[u8], error: bool) {
        let kept = if error { &mut self.stderr } else { &mut self.stdout };
        let room = self.limit.saturating_sub(kept.len()).min(data.len());
        let (keep, rest) = data.split_at(room);
        kept.extend_from_slice(keep);
        if !rest.is_empty() {
            self.truncated = true;
            self.dropped = self.dropped.saturating_add(rest.len());
            if self.dropped > FLOOD {
                self.end = Some(End::Flood);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_keeps_its_first_bytes_and_the_flag_says_that_more_came() {
        let mut got = Collected::new(4);
        let data = |text: &'static str| Some(ChannelMsg::Data { data: Bytes::from_static(text.as_bytes()) });
        got.take(data("abc"));
        got.take(Some(ChannelMsg::ExtendedData { data: Bytes::from_static(b"xyz"), ext: 1 }));
        assert!(!got.truncated);
        got.take(data("def"));
        assert_eq!((&got.stdout[..], &got.stderr[..], got.truncated), (&b"abcd"[..], &b"xyz"[..], true));
        got.take(Some(ChannelMsg::Eof));
        got.take(Some(ChannelMsg::ExitStatus { exit_status: 3 }));
        got.take(Some(ChannelMsg::ExtendedData { data: Bytes::from_static(b"!"), ext: 1 }));
        assert_eq!((&got.stderr[..], got.exit, &got.end), (&b"xyz!"[..], Some(Exit::Code(3)), &None));
        got.take(Some(ChannelMsg::Close));
        assert_eq!(got.end, Some(End::Closed));
    }

    proptest::proptest! {
        /// However the server cuts it up and mixes it: each stream's first bytes in order, the first exit, nothing more.
        #[test]
        fn any_mixture_keeps_the_beginning_of_each_stream(
            limit in 0_usize..40,
            parts in proptest::collection::vec((0_u8..6, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..12)), 0..30),
        ) {
            let mut got = Collected::new(limit);
            let (mut out, mut err, mut exit) = (Vec::new(), Vec::new(), None);
            for (kind, bytes) in parts {
                let status = bytes.len() as u32;
                let data = Bytes::from(bytes.clone());
                got.take(Some(match kind {
                    0 | 1 => { out.extend(bytes); ChannelMsg::Data { data } }
                    2 => { err.extend(bytes); ChannelMsg::ExtendedData { data, ext: 1 } }
                    3 => ChannelMsg::ExtendedData { data, ext: 2 },
                    4 => { exit.get_or_insert(Exit::Code(status)); ChannelMsg::ExitStatus { exit_status: status } }
                    _ => ChannelMsg::Eof,
                }));
            }
            proptest::prop_assert_eq!(got.truncated, out.len() > limit || err.len() > limit);
            out.truncate(limit);
            err.truncate(limit);
            proptest::prop_assert_eq!((got.stdout, got.stderr, got.exit, got.end), (out, err, exit, None));
        }
    }

    #[test]
    fn a_flood_ends_the_command() {
        let mut got = Collected::new(10);
        let chunk = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..=64 {
            assert_eq!(got.end, None);
            got.take(Some(ChannelMsg::Data { data: chunk.clone() }));
        }
        assert_eq!((got.end, got.stdout.len()), (Some(End::Flood), 10));
    }
}
