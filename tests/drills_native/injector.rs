//! The injector for etcd processes in network namespaces: signals, nft in the member's namespace, files.
//! The suite hands it to the engine, in its own process and in those that it kills.
//! It remembers nothing of what it did: another process's injector finds and undoes the same.

use crate::cluster::Cluster;
use futures::FutureExt;
use futures::future::BoxFuture;
use ktcw_vm::drill::act::{Act, Claim};
use ktcw_vm::drill::catalogue::Process;
use ktcw_vm::drill::injector::{InjectError, Injector, Leftover, Proof};
use ktcw_vm::drill::packets::{TABLE, dropped, ruleset};
use ktcw_vm::spec::NodeName;
use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

pub struct Native {
    pub cluster: Arc<Cluster>,
    /// Where each log stood when the injector was made.
    offsets: Vec<u64>,
}

impl Native {
    pub fn new(cluster: Arc<Cluster>) -> Native {
        let length = |i| fs::metadata(cluster.log(i)).map_or(0, |log| log.len());
        let offsets = (0..cluster.members.len()).map(length).collect();
        Native { cluster, offsets }
    }

    fn nft(&self, node: &NodeName, args: &[&str], text: &str) -> Result<String, String> {
        let namespace = &self.cluster.members[self.cluster.index(node)].namespace;
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace, "nft"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        if let Some(stdin) = &mut child.stdin {
            stdin.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
        }
        let out = child.wait_with_output().map_err(|error| error.to_string())?;
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    fn address(&self, node: &NodeName) -> std::net::Ipv4Addr {
        self.cluster.members[self.cluster.index(node)].address
    }

    /// The drill's table of a member, if there is one.
    fn table(&self, node: &NodeName) -> Option<String> {
        self.nft(node, &["list", "table", "inet", "ktcw_drill"], "").ok()
    }

    fn act(&self, act: &Act) -> Result<(), String> {
        let cluster = &self.cluster;
        let etcd_only = |process: &Process| match process {
            Process::Etcd => Ok(()),
            other => Err(format!("{other} does not run here")),
        };
        match act {
            Act::Down { node, process, graceful } => {
                etcd_only(process)?;
                cluster.end(cluster.index(node), if *graceful { Signal::SIGTERM } else { Signal::SIGKILL })
            }
            Act::Start { node, process } => {
                etcd_only(process)?;
                let i = cluster.index(node);
                // As on machines: without its data it would start as a new and empty member.
                if !cluster.data(i).join("member").exists() {
                    return Err("etcd has no data here".to_owned());
                }
                cluster.spawn(i);
                Ok(())
            }
            Act::Pause { node, .. } => {
                cluster.signal(cluster.index(node), Signal::SIGSTOP);
                Ok(())
            }
            Act::Continue { node, .. } => {
                cluster.signal(cluster.index(node), Signal::SIGCONT);
                Ok(())
            }
            Act::Cut { node, rules } => {
                let text = ruleset(rules, &|node| Some(self.address(node)))?;
                self.nft(node, &["-f", "-"], &text).map(|_| ())
            }
            Act::Uncut { node } => self.nft(node, &["-f", "-"], &format!("table {TABLE}\ndelete table {TABLE}\n")).map(|_| ()),
            Act::Wipe { node } => {
                let i = cluster.index(node);
                if cluster.process(i).is_some() {
                    return Err("etcd is running".to_owned());
                }
                // Whole or gone: half a store would be started as an empty one.
                let gone = cluster.data(i).with_extension(format!("gone-{}", std::process::id()));
                match fs::rename(cluster.data(i), &gone) {
                    Ok(()) => fs::remove_dir_all(gone).map_err(|error| error.to_string()),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            }
            Act::StartJoining { node } => {
                cluster.spawn_as(cluster.index(node), "existing");
                Ok(())
            }
            Act::Quota { node, mib } => {
                let i = cluster.index(node);
                cluster.set_quota(i, *mib).map_err(|error| error.to_string())?;
                cluster.end(i, Signal::SIGTERM)?;
                cluster.spawn(i);
                Ok(())
            }
            Act::RestoreData { nodes, snapshot } => {
                if nodes.iter().all(|node| cluster.data(cluster.index(node)).join("member").exists()) {
                    return Ok(());
                }
                // All are empty before one is restored: killed in between, the next heal must not take old data for restored.
                for node in nodes {
                    self.act(&Act::Down { node: node.clone(), process: Process::Etcd, graceful: false })?;
                    self.act(&Act::Wipe { node: node.clone() })?;
                }
                // One for all of them and for no other restore: ids of cluster and members are made of it.
                let token = format!("restored-{}", ktcw_vm::store::draw_id());
                nodes.iter().try_for_each(|node| self.restore(node, snapshot, &token))
            }
            other => Err(format!("{other}: not on bare processes")),
        }
    }

    fn restore(&self, node: &NodeName, snapshot: &str, token: &str) -> Result<(), String> {
        let cluster = &self.cluster;
        let i = cluster.index(node);
        // Whole or absent, also when this process ends in the middle.
        let whole = cluster.data(i);
        let partial = whole.with_extension(std::process::id().to_string());
        let out = Command::new(cluster.tool("etcdutl"))
            .args(["snapshot", "restore", snapshot, "--bump-revision=1000000000", "--mark-compacted"])
            .arg(format!("--data-dir={}", partial.display()))
            .arg(format!("--name={node}"))
            .arg(format!("--initial-cluster={}", cluster.initial_cluster()))
            .arg(format!("--initial-cluster-token={token}"))
            .arg(format!("--initial-advertise-peer-urls=http://{}:2380", self.address(node)))
            .output()
            .map_err(|error| error.to_string())?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        fs::rename(partial, whole).map_err(|error| error.to_string())
    }

    fn look(&self, claim: &Claim) -> Result<Proof, String> {
        let cluster = &self.cluster;
        let process = |node: &NodeName| cluster.process(cluster.index(node));
        Ok(match claim {
            Claim::Down { node, .. } => match process(node) {
                None => Proof { held: true, evidence: "no process".to_owned() },
                Some(seen) => Proof { held: false, evidence: format!("process {} is there, state {}", seen.who(), seen.state) },
            },
            Claim::Paused { node, .. } => match process(node) {
                Some(seen) => {
                    Proof { held: seen.state == 'T', evidence: format!("process {} is in state {}", seen.who(), seen.state) }
                }
                None => Proof { held: false, evidence: "no process".to_owned() },
            },
            Claim::Dropping { node } => {
                let packets = self.table(node).map_or(0, |listing| dropped(&listing));
                Proof { held: packets > 0, evidence: format!("{packets} packets dropped") }
            }
            Claim::Wiped { node } => {
                let there = cluster.data(cluster.index(node)).exists();
                Proof { held: !there, evidence: if there { "data is there" } else { "no data" }.to_owned() }
            }
            other => return Err(format!("{other}: cannot be seen on bare processes")),
        })
    }
}

impl Injector for Native {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        async move {
            tokio::task::block_in_place(|| self.act(act)).map_err(|reason| InjectError::Act { act: act.to_string(), reason })
        }
        .boxed()
    }

    fn prove<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        async move {
            tokio::task::block_in_place(|| self.look(claim))
                .map_err(|reason| InjectError::Look { what: claim.to_string(), reason })
        }
        .boxed()
    }

    /// A shell per act, asleep until then, that needs nothing of this process.
    fn arm<'a>(&'a self, undo: &'a [Act], after: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        async move {
            for act in undo {
                let line = match act {
                    Act::Uncut { node } => {
                        let namespace = &self.cluster.members[self.cluster.index(node)].namespace;
                        format!("ip netns exec {namespace} nft delete table {TABLE}")
                    }
                    Act::Continue { node, .. } => match self.cluster.process(self.cluster.index(node)) {
                        Some(process) => format!("kill -CONT {}", process.pid),
                        None => continue,
                    },
                    _ => continue,
                };
                let reason = |error: std::io::Error| InjectError::Act { act: format!("arm {act}"), reason: error.to_string() };
                self.cluster.dead_man(after, &line).map_err(reason)?;
            }
            Ok(())
        }
        .boxed()
    }

    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        async move {
            self.cluster.end_dead_men();
            Ok(())
        }
        .boxed()
    }

    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        async move {
            let mut all = Vec::new();
            for (i, member) in self.cluster.members.iter().enumerate() {
                let node = member.node.clone();
                let mut push = |what: &str, undo| all.push(Leftover { node: node.clone(), what: what.to_owned(), undo });
                let process = tokio::task::block_in_place(|| self.cluster.process(i).filter(|_| !self.cluster.stopping(i)));
                match process.map(|process| process.state) {
                    None => push("a stopped etcd", Act::Start { node: node.clone(), process: Process::Etcd }),
                    Some('T') => push("a paused etcd", Act::Continue { node: node.clone(), process: Process::Etcd }),
                    Some(_) => (),
                }
                if tokio::task::block_in_place(|| self.table(&node)).is_some() {
                    push("packet rules", Act::Uncut { node: node.clone() });
                }
                if self.cluster.quota(i).is_some() {
                    push("a small quota", Act::Quota { node: node.clone(), mib: None });
                }
            }
            Ok(all)
        }
        .boxed()
    }

    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        async move {
            let mut lines = Vec::new();
            for (i, offset) in self.offsets.iter().enumerate() {
                let text = fs::read(self.cluster.log(i)).unwrap_or_default();
                let new = String::from_utf8_lossy(text.get(*offset as usize..).unwrap_or_default()).into_owned();
                let alarming = |line: &&str| {
                    ["\"level\":\"panic\"", "\"level\":\"fatal\"", "panic: "].iter().any(|sign| line.contains(sign))
                };
                lines.extend(new.lines().filter(alarming).map(str::to_owned));
            }
            Ok(lines)
        }
        .boxed()
    }

    fn incarnation<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        async move {
            let i = self.cluster.index(node);
            let gone = || InjectError::Look { what: format!("which etcd runs on {node}"), reason: "none".to_owned() };
            self.cluster.process(i).map(|process| process.who()).ok_or_else(gone)
        }
        .boxed()
    }
}
