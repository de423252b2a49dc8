//! The dead man on this computer: a small process that heals when the run it watches could not, where no timer in a guest can.
//! `drill run` starts one with every fault that only libvirt, other members or a file here can undo, and dismisses it when it has
//! healed. It knows that the run has died, or has failed to heal, by one thing: its standard input ended without a word.

use super::bench::Bench;
use crate::cli::args::{DrillWatch, Global};
use crate::cli::error::CliError;
use crate::cli::session::{Session, cluster_name, connect_to, parent};
use crate::cli::{exit, render};
use crate::drill::act::Act;
use crate::drill::injector::{FaultLog, FaultLogError, Pending};
use crate::inject::log::{JournalLog, open};
use crate::store::{ClusterDir, Lock, StoreError};
use crate::wait::{self, Seen};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// What is said to a watch that is no longer needed.
const DISMISSED: &[u8] = b"healed";
/// Whoever killed the run may be about to heal by another verb; guests' timers allow for as much.
const AFTER_S: u64 = 45;
/// Another verb may hold the cluster for so long.
const BUSY: Duration = Duration::from_secs(1800);
/// What a watch has said, in the cluster's directory.
const LOG: &str = "drill-watch.log";

/// The journal as a fault log, with a watch for each fault that needs one: whoever is to carry out the undoing is there before
/// anything breaks.
pub struct Watched<'a> {
    pub log: &'a JournalLog,
    pub dir: &'a ClusterDir,
    pub connect: Option<&'a str>,
    pub child: Mutex<Option<Child>>,
}

impl Watched<'_> {
    fn error(&self, reason: impl ToString) -> FaultLogError {
        FaultLogError { path: self.dir.path().display().to_string(), reason: reason.to_string() }
    }

    fn start(&self, run: &str) -> std::io::Result<Child> {
        let said =
            std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(self.dir.path().join(LOG))?;
        // By this name it is the program that runs, even when the file has been replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("ktcw-vm").args([
            "drill",
            "watch",
            run,
            "--after",
            &AFTER_S.to_string(),
            "--cluster",
            self.dir.name().as_str(),
        ]);
        if let Some(parent) = self.dir.path().parent() {
            command.arg("--state-dir").arg(parent);
        }
        if let Some(uri) = self.connect {
            command.args(["--connect", uri]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(said).spawn()
    }

    /// The run has ended with nothing in force: nobody needs to watch any more.
    pub fn dismiss(&self) {
        let child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(mut child) = child else { return };
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(DISMISSED);
        }
        // It ends at the word; should it not, it is of no use any more.
        let _ = child.kill();
        let _ = child.wait();
        // It has had nothing to say.
        let _ = std::fs::remove_file(self.dir.path().join(LOG));
    }
}

impl FaultLog for Watched<'_> {
    fn record(&self, fault: &Pending) -> Result<(), FaultLogError> {
        self.log.record(fault)?;
        // One that watches already heals whatever the journal has of the run by then.
        let watched = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_some();
        if watched || !fault.heal.iter().chain(&fault.tidy).any(Act::needs_the_host) {
            return Ok(());
        }
        match self.start(&fault.run) {
            Ok(child) => {
                *self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(child);
                Ok(())
            }
            Err(error) => {
                self.log.clear(&fault.run)?;
                Err(self.error(format!("the watch over the run could not be started: {error}")))
            }
        }
    }

    fn clear(&self, run: &str) -> Result<(), FaultLogError> {
        self.log.clear(run)
    }

    fn pending(&self) -> Result<Vec<Pending>, FaultLogError> {
        self.log.pending()
    }
}

/// Whether whoever held the other end has gone without a word.
fn abandoned(mut words: impl Read) -> bool {
    let mut said = Vec::new();
    match words.by_ref().take(64).read_to_end(&mut said) {
        Ok(_) => said != DISMISSED,
        Err(_) => true,
    }
}

/// `drill watch`: waits for the end of the run that started it, and heals if that was a death.
pub async fn watch(global: &Global, args: &DrillWatch) -> Result<u8, CliError> {
    // A terminal that ends takes its session along, and Ctrl-C is for whoever is in front of it: this one must outlive both.
    let _ = nix::unistd::setsid();
    let died = tokio::task::spawn_blocking(|| abandoned(std::io::stdin().lock())).await.map_err(CliError::failed)?;
    if !died {
        return Ok(exit::OK);
    }
    render::status(&format!("the run {} has ended without its heal", args.run));
    crate::drill::clock::pass(Duration::from_secs(args.after)).await;
    let (parent, name) = (parent(global)?, cluster_name(global)?);
    let Some((dir, lock)) = locked(&parent, &name).await? else {
        render::status("the cluster is gone");
        return Ok(exit::OK);
    };
    // Somebody else may have healed it meanwhile.
    let pending = open(&dir.history()?).map_err(CliError::failed)?;
    if !pending.iter().any(|fault| fault.run == args.run) {
        render::status("it has been healed already");
        return Ok(exit::OK);
    }
    let host = connect_to(global, &dir)?;
    let bench = Bench::new(Session::at(&parent, &name)?, &lock, host, "drill watch")?;
    bench.heal().await?.iter().for_each(|what| render::status(&format!("healed: {what}")));
    Ok(exit::OK)
}

/// The cluster's directory and its lock, once nobody else has it; `None`: there is no such cluster any more.
async fn locked(parent: &Path, name: &crate::spec::ClusterName) -> Result<Option<(ClusterDir, Lock)>, CliError> {
    let take = || async {
        match ClusterDir::open_locked(parent, name, "drill watch") {
            Ok(both) => Seen::Ready(Ok(Some(both))),
            Err(error @ StoreError::Busy { .. }) => Seen::NotYet(error.to_string()),
            Err(StoreError::NoCluster { .. } | StoreError::Vanished { .. }) => Seen::Ready(Ok(None)),
            Err(error) => Seen::Ready(Err(error)),
        }
    };
    let waited = wait::until("the cluster free", BUSY, Duration::from_secs(2), |_| (), take).await;
    Ok(waited.map_err(CliError::failed)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_death_and_the_word_is_not() {
        assert!(abandoned(&b""[..]));
        assert!(abandoned(&b"heal"[..]));
        assert!(!abandoned(DISMISSED));
    }
}
