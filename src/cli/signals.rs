//! Ctrl-C, SIGTERM and the end of the terminal as a value that long verbs watch.
//! The first one asks them to stop cleanly; the second, or one that nobody watches, ends the process.
//! Nothing else in the program installs signal handlers.

use super::exit;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Becomes true at the first SIGINT, SIGTERM or SIGHUP. The last is what a lost SSH connection sends; under `nohup`, which has
/// it ignored, it stays ignored.
pub fn interrupted() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    // At once, not when the task is first run: a signal may come before.
    let installed = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut hangup = if ignored(&status, HANGUP) { None } else { signal(SignalKind::hangup()).ok() };
    tokio::spawn(async move {
        let (Ok(mut int), Ok(mut term)) = installed else { return };
        for _ in 0..2 {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, () = heard(&mut hangup) => {} }
            if sender.send(true).is_err() {
                break;
            }
        }
        #[expect(clippy::exit, clippy::disallowed_methods, reason = "the second Ctrl-C means now")]
        std::process::exit(i32::from(exit::INTERRUPTED));
    });
    receiver
}

async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Number of SIGHUP.
const HANGUP: u32 = 1;

/// Whether a process ignores a signal, by its `/proc/PID/status`.
fn ignored(status: &str, signal: u32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_seen_in_the_status() {
        let status =
            |mask: &str| format!("Name:\tktcw-vm\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\nSigCgt:\t0000000000000001\n");
        assert!(ignored(&status("0000000000000001"), HANGUP));
        assert!(ignored(&status("0000000000001001"), HANGUP));
        assert!(!ignored(&status("0000000000001000"), HANGUP));
        assert!(!ignored("", HANGUP));
    }

    /// A terminal that ends, as a lost SSH connection ends it, is heard like Ctrl-C.
    #[tokio::test]
    async fn a_hangup_interrupts() {
        let mut receiver = interrupted();
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        if ignored(&status, HANGUP) {
            return;
        }
        nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGHUP).expect("sent");
        let heard = tokio::time::timeout(std::time::Duration::from_secs(10), receiver.wait_for(|yes| *yes)).await;
        assert!(heard.expect("heard in time").is_ok());
    }
}
