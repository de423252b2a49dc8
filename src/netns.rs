//! A network namespace of a cluster's own, joined to its bridge by two ends of virtual Ethernet: how this computer reaches a fork,
//! whose machines have the addresses of the cluster that it was forked from.
//! `cli` enters it before anything else of a verb runs, `host` joins it to the bridge, `down` removes it; `ip` does the work.
//! It knows nothing of clusters but the network's plan and the mark: the outer end has an address that follows from the cluster's
//! instance, and a namespace of our name without such an end is somebody else's.

use crate::plan::{NetworkPlan, identity};
use crate::spec::ClusterName;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use uuid::Uuid;

/// Where the process came from, once it has entered a namespace.
static OUTSIDE: OnceLock<File> = OnceLock::new();
/// The namespace that a thread is in.
const OWN: &str = "/proc/thread-self/ns/net";
/// Environment variable: the network that the user types in, where a script has entered another one before it started the program
/// (bin/ktcw-vm). A file descriptor's number, or a path where sudo stands between, which hands no descriptors on (setup/libvirt.sh).
const CALLER: &str = "KTCW_CALLER_NETNS";
/// Name of the end inside.
const INNER: &str = "eth0";

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("network namespace {name}: {reason}")]
    Refused { name: String, reason: String },
    #[error("network namespace {name}: ip {command}: {said}")]
    Ip { name: String, command: String, said: String },
    #[error("network namespace {name} is not of this cluster: {why}")]
    NotOurs { name: String, outer: String, why: &'static str },
}

impl NetnsError {
    /// What to do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            NetnsError::NotOurs { name, outer, .. } => {
                Some(format!("it will not be touched; if nobody needs it: ip netns delete {name}; ip link delete {outer}"))
            }
            NetnsError::Refused { .. } | NetnsError::Ip { .. } => None,
        }
    }
}

/// What a cluster's namespace and the outer end are called, and the outer end's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    name: String,
    /// Within IFNAMSIZ: as the bridge, with another beginning.
    outer: String,
    /// The inner end, as long as it is outside.
    waiting: String,
    mac: String,
}

impl Ends {
    /// Derived, so that they are known where no plan can be read.
    pub fn of(cluster: &ClusterName, instance: Uuid) -> Ends {
        let bridge = identity::bridge(cluster);
        let rest = bridge.trim_start_matches("kt");
        let [a, b, c, d, e, ..] = *instance.as_bytes();
        Ends {
            name: identity::network(cluster),
            outer: format!("kv{rest}"),
            waiting: format!("kw{rest}"),
            // One that is administered locally.
            mac: format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}"),
        }
    }

    /// Twice is once. What is not ours stays: `NotOurs`. Processes that are in it keep it until they end, without a way out.
    pub fn remove(&self) -> Result<(), NetnsError> {
        if !self.ours()? {
            return Ok(());
        }
        // The end is what says whose the namespace is: it goes last, if the kernel has not taken it along.
        if self.exists() {
            self.ip(&["netns", "delete", &self.name])?;
        }
        match self.ip(&["link", "delete", &self.outer]) {
            Err(error) if self.link().is_some() => Err(error),
            _ => Ok(()),
        }
    }

    /// `false`: there is nothing. The end is made before the namespace.
    fn ours(&self) -> Result<bool, NetnsError> {
        judge(self.exists(), self.link().as_deref(), &self.mac).map_err(|why| NetnsError::NotOurs {
            name: self.name.clone(),
            outer: self.outer.clone(),
            why,
        })
    }

    /// What `ip` says of the outer end.
    fn link(&self) -> Option<String> {
        self.ip(&["-o", "link", "show", "dev", &self.outer]).ok()
    }

    fn exists(&self) -> bool {
        self.path().exists()
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `ip`, where the bridge is; returns what it prints.
    fn ip(&self, words: &[&str]) -> Result<String, NetnsError> {
        let run = || Command::new("ip").args(words).stdin(Stdio::null()).output();
        let done = outside(run).and_then(|done| done).map_err(|error| self.refused(format!("ip cannot be run: {error}")))?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        Err(NetnsError::Ip { name: self.name.clone(), command: words.join(" "), said })
    }

    fn refused(&self, reason: String) -> NetnsError {
        NetnsError::Refused { name: self.name.clone(), reason }
    }
}

/// Whether the namespace is ours; `false`: there is none. `link`: what `ip` says of the outer end.
fn judge(exists: bool, link: Option<&str>, mac: &str) -> Result<bool, &'static str> {
    match link {
        Some(link) if link.contains(&format!("link/ether {mac} ")) => Ok(true),
        Some(_) => Err("the interface on its bridge was made for another one"),
        None if exists => Err("it has no interface on this cluster's bridge"),
        None => Ok(false),
    }
}

/// Name of the namespace that a network is to have, if one of that name is there, whoever made it.
pub fn taken(plan: &NetworkPlan) -> Option<&str> {
    (plan.namespace && Path::new("/run/netns").join(&plan.name).exists()).then_some(&plan.name)
}

/// The namespace of one cluster's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    ends: Ends,
    bridge: String,
    gateway: Ipv4Addr,
    prefix: u8,
}

impl Namespace {
    /// `None`: this computer is on the cluster's network itself.
    pub fn of(plan: &NetworkPlan, cluster: &ClusterName, instance: Uuid) -> Option<Namespace> {
        plan.namespace.then(|| Namespace {
            ends: Ends::of(cluster, instance),
            bridge: plan.bridge.clone(),
            gateway: plan.gateway,
            prefix: plan.subnet.prefix_len(),
        })
    }

    pub fn name(&self) -> &str {
        &self.ends.name
    }

    /// Enters it with this thread and all that it starts from now on; what is missing of it is made first.
    pub fn enter(&self) -> Result<(), NetnsError> {
        if self.is_here() {
            return Ok(());
        }
        self.ensure()?;
        let refused = |reason| self.ends.refused(reason);
        let open = |path: &Path| File::open(path).map_err(|error| refused(format!("{}: {error}", path.display())));
        let (own, theirs) = (open(Path::new(OWN))?, open(&self.ends.path())?);
        // The first one counts: whoever enters twice has come from there.
        let _ = OUTSIDE.set(own);
        setns(theirs, CloneFlags::CLONE_NEWNET).map_err(|errno| refused(format!("cannot be entered: {errno}")))
    }

    /// The namespace, both ends, the gateway's address on the inner one, the outer one on the bridge when there is one.
    fn ensure(&self) -> Result<(), NetnsError> {
        let ends = &self.ends;
        let (name, waiting) = (ends.name.as_str(), ends.waiting.as_str());
        if !ends.ours()? {
            ends.ip(&["link", "add", &ends.outer, "address", &ends.mac, "type", "veth", "peer", "name", waiting])?;
        }
        if !ends.exists() {
            ends.ip(&["netns", "add", name])?;
        }
        ends.ip(&["-n", name, "link", "set", "lo", "up"])?;
        if ends.ip(&["-n", name, "link", "show", "dev", INNER]).is_err() {
            ends.ip(&["link", "set", "dev", waiting, "netns", name, "name", INNER])?;
        }
        let address = format!("{}/{}", self.gateway, self.prefix);
        ends.ip(&["-n", name, "address", "replace", &address, "dev", INNER])?;
        ends.ip(&["-n", name, "link", "set", INNER, "up"])?;
        self.plug()
    }

    /// Joins it to the bridge. A bridge that is not there is made by libvirt, with the network, and joined then.
    pub fn plug(&self) -> Result<(), NetnsError> {
        let ends = &self.ends;
        if ends.ip(&["link", "show", "dev", &self.bridge]).is_err() || !ends.ours()? {
            return Ok(());
        }
        ends.ip(&["link", "set", &ends.outer, "master", &self.bridge, "up"]).map(drop)
    }

    fn is_here(&self) -> bool {
        same(Path::new(OWN), &self.ends.path())
    }
}

/// Whether both are there and one file.
fn same(one: &Path, other: &Path) -> bool {
    let of = |path: &Path| std::fs::metadata(path).map(|seen| (seen.dev(), seen.ino())).ok();
    of(one).is_some_and(|one| of(other) == Some(one))
}

/// Does something in the network that the process was started in: sockets, and processes that it starts, belong there.
pub fn outside<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    match OUTSIDE.get() {
        Some(outside) => there(outside, work),
        None => Ok(work()),
    }
}

/// Does something in the network that the user types in, which a script may have left before it started the process.
///
/// # Errors
/// The script's word is no namespace, or not one that this user may enter.
pub fn at_the_user<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    match std::env::var(CALLER).ok().as_deref().and_then(named) {
        Some(path) => at(&path, work),
        None => outside(work),
    }
}

/// The network that the script's word stands for. `None`: for none.
fn named(word: &str) -> Option<PathBuf> {
    match word.parse::<u32>() {
        Ok(number) => Some(format!("/proc/self/fd/{number}").into()),
        Err(_) => word.starts_with('/').then(|| word.into()),
    }
}

fn at<T: Send>(network: &Path, work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    // To stay where one is no rights are needed.
    if OUTSIDE.get().is_none() && same(Path::new(OWN), network) {
        return Ok(work());
    }
    let said = |error: std::io::Error| std::io::Error::new(error.kind(), format!("network {}: {error}", network.display()));
    there(&File::open(network).map_err(said)?, work)
}

/// A namespace is a thread's: the one that enters it ends with its work.
fn there<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        done.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread has panicked")))
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
        let (mut plan, cluster) = (samples::network(true), ClusterName::parse("lab").expect("valid"));
        assert_eq!(Namespace::of(&plan, &cluster, Uuid::nil()), None);
        plan.namespace = true;
        let own = Namespace::of(&plan, &cluster, Uuid::nil()).expect("a namespace");
        assert_eq!(own.name(), "ktcw-lab");
        for name in [&own.ends.outer, &own.ends.waiting] {
            assert!(name.len() <= 15 && *name != plan.bridge, "{name}");
        }
        assert!(!own.is_here());
    }

    #[test]
    fn the_users_network_is_a_descriptors_or_where_a_process_is() {
        assert_eq!(named("10"), Some("/proc/self/fd/10".into()));
        let own = format!("/proc/{}/ns/net", std::process::id());
        assert_eq!(named(&own), Some(PathBuf::from(&own)));
        assert_eq!(["", "-1", "net"].map(named), [None, None, None]);
        assert_eq!(at(Path::new(&own), || "here").expect("it is there already"), "here");
        let error = at(Path::new("/proc/0/ns/net"), || "nowhere").expect_err("no such process");
        assert!(error.to_string().contains("/proc/0/ns/net"), "{error}");
    }

    /// As `ip -o link show` prints it.
    #[test]
    fn a_namespace_is_ours_by_its_end_on_the_bridge() {
        let ends = Ends::of(&ClusterName::parse("lab2").expect("valid"), Uuid::from_u128(0x0123_4567_89ab_cdef << 64));
        assert_eq!(ends.mac, "02:01:23:45:67:89");
        let link = |mac: &str| {
            format!(
                "5: kv0123456789@if2: <BROADCAST> mtu 1500 qdisc noop state DOWN group default\\    link/ether {mac} brd ff:ff:ff:ff:ff:ff"
            )
        };
        let (own, other) = (link(&ends.mac), link("7e:63:3f:c5:3e:d0"));
        for (exists, seen, whose) in [
            (true, Some(&own), Ok(true)),
            // Cut off between the end and the namespace.
            (false, Some(&own), Ok(true)),
            (false, None, Ok(false)),
            // After the host was rebooted somebody has made one of this name.
            (true, None, Err(())),
            (true, Some(&other), Err(())),
            (false, Some(&other), Err(())),
        ] {
            assert_eq!(judge(exists, seen.map(String::as_str), &ends.mac).map_err(drop), whose, "{exists} {seen:?}");
        }
        let error = NetnsError::NotOurs { name: ends.name.clone(), outer: ends.outer.clone(), why: "x" };
        assert!(error.hint().is_some_and(|hint| hint.contains("ip netns delete ktcw-lab2")), "{error}");
    }
}
