//! The guest edge: commands on nodes over SSH, with pinned host keys.
//! `apply`, `verify`, drills and the `ssh`/`logs` verbs call the `Guest` trait; `ssh` is the only user of `russh`, `fake` follows a script.
//! It knows nothing of Kubernetes or etcd: it runs text and returns what came back.

pub mod clock;
pub mod fake;
mod put;
pub mod ssh;

pub use put::put;
pub use ssh::keys;

use crate::said::one_line;
use crate::spec::NodeName;
use futures::future::BoxFuture;
use std::time::Duration;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(u32),
    /// Killed by a signal; no exit status was sent.
    Signal,
    /// The channel closed without saying.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// More came than the limit; the rest was dropped.
    pub truncated: bool,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.exit == Exit::Code(0)
    }
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum GuestError {
    #[error("{node}: no SSH connection to {addr}: {reason}")]
    Connect { node: NodeName, addr: String, reason: String },
    #[error("{node}: host key is {seen}, pinned is {pinned}; another machine answers at {addr}")]
    HostKey { node: NodeName, addr: String, seen: String, pinned: String },
    #[error("{node}: {command:?} did not end within {} s", .after.as_secs())]
    Deadline { node: NodeName, command: String, after: Duration },
    #[error("{node}: connection lost during {command:?}: {reason}")]
    Lost { node: NodeName, command: String, reason: String },
    /// Asked to run something that must succeed, and it did not.
    #[error("{node}: {command:?} failed ({exit:?}): {stderr}")]
    Failed { node: NodeName, command: String, exit: Exit, stderr: String },
    /// Our own terminal, pipe or file broke, not the guest.
    #[error("{node}: local input or output: {reason}")]
    Local { node: NodeName, reason: String },
    /// Whoever read what the command says has closed the pipe, as `head` does: no fault of anybody's.
    #[error("{node}: nobody reads its output any more")]
    Unread { node: NodeName },
}

impl GuestError {
    pub fn node(&self) -> &NodeName {
        match self {
            GuestError::Connect { node, .. }
            | GuestError::HostKey { node, .. }
            | GuestError::Deadline { node, .. }
            | GuestError::Lost { node, .. }
            | GuestError::Failed { node, .. }
            | GuestError::Local { node, .. }
            | GuestError::Unread { node } => node,
        }
    }

    /// The same without the node's name, for who says that already.
    pub fn of_its_node(&self) -> String {
        let text = self.to_string();
        text.strip_prefix(&format!("{}: ", self.node())).map_or_else(|| text.clone(), str::to_owned)
    }
}

/// One command: a shell line (already quoted by the caller, see `quote`), optional standard input, a deadline.
#[derive(Debug, Clone)]
pub struct Cmd {
    pub line: String,
    pub stdin: Option<Vec<u8>>,
    pub deadline: Duration,
    /// Bytes of output kept per stream; the rest is dropped and `truncated` set.
    pub limit: usize,
}

impl Cmd {
    /// A command with a deadline and a 4 MiB output limit.
    pub fn new(line: impl Into<String>, deadline: Duration) -> Self {
        Self { line: line.into(), stdin: None, deadline, limit: 4 << 20 }
    }
    /// A script for `bash -s`, sent on standard input: nothing of it is on a command line.
    pub fn script(text: impl Into<Vec<u8>>, deadline: Duration) -> Self {
        Self { line: "bash -s".to_owned(), stdin: Some(text.into()), deadline, limit: 4 << 20 }
    }
}

/// A set of nodes that commands can be run on, one connection each.
pub trait Guest: Send + Sync {
    /// Runs and returns whatever happened; `Err` means we could not find out.
    fn run<'a>(&'a self, node: &'a NodeName, cmd: Cmd) -> BoxFuture<'a, Result<Output, GuestError>>;
    /// Drops the connection, so that the next call makes a new one.
    fn forget<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, ()>;
}

/// Runs what must succeed: any other exit than 0 is `GuestError::Failed`, with the end of what it said.
pub async fn run_ok(guest: &dyn Guest, node: &NodeName, cmd: Cmd) -> Result<Output, GuestError> {
    let command = cmd.line.clone();
    let output = guest.run(node, cmd).await?;
    if output.ok() {
        return Ok(output);
    }
    let said = if output.stderr.is_empty() { output.stdout_text() } else { output.stderr_text() };
    Err(GuestError::Failed { node: node.clone(), command, exit: output.exit, stderr: last_lines(&said) })
}

/// The last three lines, on one. It goes into messages and records: a line may be as long as all that was kept of the output.
fn last_lines(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().rev().map(one_line).filter(|line| !line.is_empty()).take(3).collect();
    lines.reverse();
    lines.join(" / ")
}

/// Quotes one word for a POSIX shell.
pub fn quote(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_once() {
        let node = NodeName::controller(0);
        let (addr, reason) = ("192.168.77.11:22".to_owned(), "no route to host".to_owned());
        let error = GuestError::Connect { node: node.clone(), addr, reason };
        assert_eq!(error.of_its_node(), "no SSH connection to 192.168.77.11:22: no route to host");
        assert_eq!(format!("{node}: {}", error.of_its_node()), error.to_string());
        assert_eq!(GuestError::Unread { node }.of_its_node(), "nobody reads its output any more");
    }
}
