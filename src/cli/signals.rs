//! Ctrl-C and SIGTERM as a value that long verbs watch.
//! The first one asks them to stop cleanly; the second, or one that nobody watches, ends the process.
//! Nothing else in the program installs signal handlers.

use super::exit;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Becomes true at the first SIGINT or SIGTERM.
pub fn interrupted() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
        for _ in 0..2 {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            if sender.send(true).is_err() {
                break;
            }
        }
        #[expect(clippy::exit, clippy::disallowed_methods, reason = "the second Ctrl-C means now")]
        std::process::exit(i32::from(exit::INTERRUPTED));
    });
    receiver
}
