//! `ssh`, `console`: a person on a machine.
//! SSH goes over our own connection with the pinned host key; the console is the serial line through libvirt.
//! Neither needs a local ssh or virsh.

use super::args::{Global, Ssh};
use super::error::CliError;
use super::{exit, session};
use crate::guest::{Exit, GuestError, quote};
use crate::spec::NodeName;
use session::Session;

/// A login shell, or one command with our streams. The exit code is the command's.
pub async fn ssh(global: &Global, args: &Ssh) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    session.node(&args.node)?;
    let guests = session.guests()?;
    let line = match args.command.as_slice() {
        [] => None,
        // One word is a line for the node's shell, as with ssh; several are the words of one command.
        [line] => Some(line.clone()),
        words => Some(words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")),
    };
    ended(guests.interactive(&args.node, line.as_deref()).await)
}

/// A pipe that was closed on us, as by `head`, is an end like any other: whoever closed it has all they wanted.
fn ended(exit: Result<Exit, GuestError>) -> Result<u8, CliError> {
    match exit {
        Err(GuestError::Unread { .. }) => Ok(exit::OK),
        exit => code(exit?),
    }
}

/// An exit as ours: the command's code, 128 + signal unknown → 255 as ssh says it.
pub fn code(exit: Exit) -> Result<u8, CliError> {
    Ok(match exit {
        Exit::Code(code) => u8::try_from(code).unwrap_or(exit::FAILED),
        Exit::Signal | Exit::Lost => 255,
    })
}

/// The node's serial console until Ctrl-].
pub async fn console(global: &Global, node: &NodeName) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let domain = session.node(node)?.domain.clone();
    let host = session::connect_to(global, &session.dir)?;
    super::terminal::attach(host, domain, session.mark()).await?;
    Ok(exit::OK)
}

impl From<GuestError> for CliError {
    fn from(error: GuestError) -> Self {
        let hint = match &error {
            GuestError::HostKey { .. } => "the machine that answers is not the one that was made: ktcw-vm down, then up",
            GuestError::Connect { .. } => "ktcw-vm status; ktcw-vm console NODE shows the machine's own words",
            _ => "ktcw-vm verify",
        };
        CliError::failed(&error).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_no_further_has_seen_enough() {
        let node = NodeName::controller(0);
        assert_eq!(ended(Err(GuestError::Unread { node: node.clone() })).expect("no fault"), exit::OK);
        assert_eq!(ended(Ok(Exit::Code(7))).expect("the command's"), 7);
        assert_eq!(ended(Ok(Exit::Signal)).expect("as ssh says it"), 255);
        let full = GuestError::Local { node, reason: "No space left on device".to_owned() };
        assert!(ended(Err(full)).expect_err("a fault of ours").message.contains("No space left"));
    }
}
