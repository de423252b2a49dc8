//! A shell on a node in the user's own terminal: raw mode, window size, exit code.
//! The `ssh` verb calls it; without a terminal on both ends it is a plain command with its streams connected.
//! The terminal is given back as it was found, whatever happens in between.

use super::SshGuests;
use super::stream::{Stopped, converse, stopped};
use crate::guest::{Exit, GuestError};
use crate::spec::NodeName;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, IsTerminal, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Pair;
use terminal_size::{Height, Width, terminal_size_of};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

impl SshGuests {
    /// Runs `command`, or a login shell, on the process' own standard streams, and gives its exit. With a terminal on
    /// standard input and output it gets a PTY of the same size. Must be called from a tokio runtime; from then on
    /// SIGTERM, SIGHUP and SIGINT end this call (the terminal restored, `Local` returned) and not the process.
    pub async fn interactive(&self, node: &NodeName, command: Option<&str>) -> Result<Exit, GuestError> {
        let line = command.unwrap_or("a login shell");
        let local = |error: io::Error| stopped(node, line, Stopped::Local(error));
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let (mut open, mut read) = self.open_session(node).await?;
        let ended = |open: &super::command::Open| stopped(node, line, Stopped::Lost(open.why_ended()));
        let Some(write) = open.write() else { return Err(ended(&open)) };
        if terminal {
            let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            let (columns, rows) = window();
            let asked = write.request_pty(false, &term, u32::from(columns), u32::from(rows), 0, 0, &[]).await;
            asked.map_err(|_| ended(&open))?;
        }
        let started = match command {
            Some(command) => write.exec(true, command).await,
            None => write.request_shell(true).await,
        };
        started.map_err(|_| ended(&open))?;

        let mut ends = Ends::new().map_err(local)?;
        let (resized, resize) = mpsc::channel(1);
        let mut winch = signal(SignalKind::window_change()).map_err(local)?;
        let (typed, _reader) = typed().map_err(local)?;
        let _raw = if terminal { Some(Raw::enter().map_err(local)?) } else { None };
        let (stdout, stderr) = (own(io::stdout()).map_err(local)?, own(io::stderr()).map_err(local)?);
        let talk = converse(&mut open, &mut read, typed, stdout, stderr, resize);
        let mut talk = std::pin::pin!(talk);
        loop {
            tokio::select! {
                end = &mut talk => return end.map_err(|why| stopped(node, line, why)),
                Some(()) = winch.recv(), if terminal => {
                    let _ = resized.try_send(window());
                }
                name = ends.next() => return Err(local(io::Error::new(io::ErrorKind::Interrupted, format!("ended by {name}")))),
            }
        }
    }
}

/// One of our own streams, to be written without blocking the runtime.
fn own(stream: impl AsFd) -> io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(File::from(stream.as_fd().try_clone_to_owned()?)))
}

/// Columns and rows of the terminal on standard output; 80×24 where it does not say.
fn window() -> (u16, u16) {
    terminal_size_of(io::stdout()).map_or((80, 24), |(Width(columns), Height(rows))| (columns, rows))
}

/// The signals that would otherwise end the process with the terminal still raw.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::hangup())?, signal(SignalKind::interrupt())?]))
    }

    async fn next(&mut self) -> &'static str {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
            _ = interrupt.recv() => "SIGINT",
        }
    }
}

/// Raw mode for as long as it lives.
struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    fn enter() -> io::Result<Self> {
        let terminal = io::stdin().as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// Standard input as an async reader. Tokio's own cannot be given up: its thread would hold the process, and take the
/// next key typed. This one's thread waits on the input and on `Reading`, and goes when that is dropped.
fn typed() -> io::Result<(UnixStream, Reading)> {
    let (ours, theirs) = Pair::pair()?;
    let (stop, stopped) = Pair::pair()?;
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    ours.set_nonblocking(true)?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        // Whatever ends it ends the remote's input, too.
        let _ = copy_until(input, theirs, &stopped);
    })?;
    Ok((UnixStream::from_std(ours)?, Reading { _stop: stop }))
}

struct Reading {
    _stop: Pair,
}

fn copy_until(mut from: File, mut to: Pair, stopped: &Pair) -> io::Result<()> {
    let mut buffer = [0; 8 << 10];
    loop {
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let [input, stop] = fds.map(|fd| fd.any().unwrap_or(false));
        if stop {
            return Ok(());
        }
        if input {
            let read = from.read(&mut buffer)?;
            match buffer.get(..read) {
                None | Some([]) => return Ok(()),
                Some(bytes) => to.write_all(bytes)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_thread_passes_bytes_on_and_ends_when_told_to() {
        let (mut keyboard, input) = Pair::pair().expect("pair");
        let (out, mut taken) = Pair::pair().expect("pair");
        let (stop, stopped) = Pair::pair().expect("pair");
        let thread = std::thread::spawn(move || copy_until(File::from(OwnedFd::from(input)), out, &stopped));
        keyboard.write_all(b"ls\n").expect("typed");
        let mut got = [0; 3];
        taken.read_exact(&mut got).expect("passed on");
        assert_eq!(&got, b"ls\n");
        drop(stop);
        thread.join().expect("ended").expect("in order");
        assert!(keyboard.write_all(b"x").is_err(), "nobody takes the next key");
        assert_eq!(taken.read(&mut got).expect("end of file"), 0);
    }
}
