//! A network namespace of a cluster's own, joined to its bridge by two ends of virtual Ethernet: how this computer reaches a fork,
//! whose machines have the addresses of the cluster that it was forked from.
//! `cli` enters it before anything else of a verb runs, `host` joins it to the bridge, `down` removes it; `ip` does the work.
//! It knows nothing of clusters but the network's plan.

use crate::plan::NetworkPlan;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where the process came from, once it has entered a namespace.
static OUTSIDE: OnceLock<File> = OnceLock::new();
/// The namespace that a thread is in.
const OWN: &str = "/proc/thread-self/ns/net";
/// Name of the end inside.
const INNER: &str = "eth0";

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("network namespace {name}: {reason}")]
    Refused { name: String, reason: String },
    #[error("network namespace {name}: ip {command}: {said}")]
    Ip { name: String, command: String, said: String },
}

/// The namespace of one cluster's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
    bridge: String,
    gateway: Ipv4Addr,
    prefix: u8,
}

impl Namespace {
    /// `None`: this computer is on the cluster's network itself.
    pub fn of(plan: &NetworkPlan) -> Option<Namespace> {
        plan.namespace.then(|| Namespace {
            name: plan.name.clone(),
            bridge: plan.bridge.clone(),
            gateway: plan.gateway,
            prefix: plan.subnet.prefix_len(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether one of that name is there, whoever made it.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Enters it with this thread and all that it starts from now on; what is missing of it is made first.
    pub fn enter(&self) -> Result<(), NetnsError> {
        if self.is_here() {
            return Ok(());
        }
        self.ensure()?;
        let open = |path: &Path| File::open(path).map_err(|error| self.refused(format!("{}: {error}", path.display())));
        let (own, theirs) = (open(Path::new(OWN))?, open(&self.path())?);
        // The first one counts: whoever enters twice has come from there.
        let _ = OUTSIDE.set(own);
        setns(theirs, CloneFlags::CLONE_NEWNET).map_err(|errno| self.refused(format!("cannot be entered: {errno}")))
    }

    /// The namespace, both ends, the gateway's address on the inner one, the outer one on the bridge when there is one.
    fn ensure(&self) -> Result<(), NetnsError> {
        let (name, outer) = (self.name.as_str(), self.outer());
        if !self.exists() {
            self.ip(&["netns", "add", name])?;
        }
        self.ip(&["-n", name, "link", "set", "lo", "up"])?;
        if self.ip(&["link", "show", "dev", &outer]).is_err() {
            self.ip(&["link", "add", &outer, "type", "veth", "peer", "name", INNER, "netns", name])?;
        }
        let address = format!("{}/{}", self.gateway, self.prefix);
        self.ip(&["-n", name, "address", "replace", &address, "dev", INNER])?;
        self.ip(&["-n", name, "link", "set", INNER, "up"])?;
        self.plug()
    }

    /// Joins it to the bridge. A bridge that is not there is made by libvirt, with the network, and joined then.
    pub fn plug(&self) -> Result<(), NetnsError> {
        if self.ip(&["link", "show", "dev", &self.bridge]).is_err() {
            return Ok(());
        }
        self.ip(&["link", "set", &self.outer(), "master", &self.bridge, "up"])
    }

    /// Twice is once. Processes that are in it keep it until they end, without a way out.
    pub fn remove(&self) -> Result<(), NetnsError> {
        if self.ip(&["link", "show", "dev", &self.outer()]).is_ok() {
            self.ip(&["link", "delete", &self.outer()])?;
        }
        if self.exists() { self.ip(&["netns", "delete", &self.name]) } else { Ok(()) }
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// The outer end, within IFNAMSIZ: as the bridge, with another beginning.
    fn outer(&self) -> String {
        format!("kv{}", self.bridge.trim_start_matches("kt"))
    }

    fn is_here(&self) -> bool {
        let of = |path: &Path| std::fs::metadata(path).map(|seen| (seen.dev(), seen.ino())).ok();
        of(Path::new(OWN)).is_some_and(|own| of(&self.path()) == Some(own))
    }

    /// `ip`, where the bridge is.
    fn ip(&self, words: &[&str]) -> Result<(), NetnsError> {
        let run = || Command::new("ip").args(words).stdin(Stdio::null()).output();
        let done = outside(run).and_then(|done| done).map_err(|error| self.refused(format!("ip cannot be run: {error}")))?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        Err(NetnsError::Ip { name: self.name.clone(), command: words.join(" "), said })
    }

    fn refused(&self, reason: String) -> NetnsError {
        NetnsError::Refused { name: self.name.clone(), reason }
    }
}

/// Does something in the network that the process was started in: sockets, and processes that it starts, belong there.
pub fn outside<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    let Some(outside) = OUTSIDE.get() else { return Ok(work()) };
    // A namespace is a thread's: this one ends with its work.
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            setns(outside, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        there.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread has panicked")))
    })
}

/// What this computer lacks to reach a cluster by a namespace, in words; empty: nothing.
pub fn lacks() -> Vec<String> {
    let mut lacks = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        lacks.push("root: only it may make and enter a network namespace".to_owned());
    }
    let runs = Command::new("ip").arg("-Version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !runs.is_ok_and(|status| status.success()) {
        lacks.push("the program ip (package iproute2)".to_owned());
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::samples;

    #[test]
    fn only_a_fork_has_one_and_its_names_fit_an_interface() {
        let mut plan = samples::network(true);
        assert_eq!(Namespace::of(&plan), None);
        plan.namespace = true;
        let own = Namespace::of(&plan).expect("a namespace");
        assert_eq!(own.name(), plan.name);
        assert!(own.outer().len() <= 15 && own.outer() != plan.bridge, "{}", own.outer());
        assert!(!own.is_here());
    }
}
