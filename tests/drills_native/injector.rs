//! The injector for etcd processes in network namespaces: signals, nft in the member's namespace, files.
//! Injectors that do not do their work are here too: the engine must find them out.

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
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Native {
    pub cluster: Arc<Cluster>,
    /// Where each log stood when the injector was made.
    offsets: Vec<u64>,
    dead_men: Mutex<Vec<Child>>,
}

impl Native {
    pub fn new(cluster: Arc<Cluster>) -> Native {
        let length = |i| fs::metadata(cluster.log(i)).map_or(0, |log| log.len());
        let offsets = (0..cluster.members.len()).map(length).collect();
        Native { cluster, offsets, dead_men: Mutex::default() }
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
                cluster.process(i);
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
            Act::Wipe { node } => match fs::remove_dir_all(cluster.data(cluster.index(node))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
                _ => Ok(()),
            },
            Act::StartJoining { node } => {
                let i = cluster.index(node);
                cluster.members[i].state.lock().expect("state").joining = true;
                cluster.spawn(i);
                Ok(())
            }
            Act::Quota { node, mib } => {
                let i = cluster.index(node);
                cluster.end(i, Signal::SIGTERM)?;
                cluster.members[i].state.lock().expect("state").quota_mib = *mib;
                cluster.spawn(i);
                Ok(())
            }
            Act::RestoreData { nodes, snapshot } => {
                if nodes.iter().all(|node| cluster.data(cluster.index(node)).exists()) {
                    return Ok(());
                }
                nodes.iter().try_for_each(|node| self.restore(node, snapshot))
            }
            other => Err(format!("{other}: not on bare processes")),
        }
    }

    fn restore(&self, node: &NodeName, snapshot: &str) -> Result<(), String> {
        let cluster = &self.cluster;
        let i = cluster.index(node);
        self.act(&Act::Wipe { node: node.clone() })?;
        let out = Command::new(cluster.tool("etcdutl"))
            .args(["snapshot", "restore", snapshot, "--bump-revision=1000000000", "--mark-compacted"])
            .arg(format!("--data-dir={}", cluster.data(i).display()))
            .arg(format!("--name={node}"))
            .arg(format!("--initial-cluster={}", cluster.initial_cluster()))
            .arg("--initial-cluster-token=restored")
            .arg(format!("--initial-advertise-peer-urls=http://{}:2380", self.address(node)))
            .output()
            .map_err(|error| error.to_string())?;
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    }

    fn look(&self, claim: &Claim) -> Result<Proof, String> {
        let cluster = &self.cluster;
        let process = |node: &NodeName| cluster.process(cluster.index(node));
        Ok(match claim {
            Claim::Down { node, .. } => match process(node) {
                None => Proof { held: true, evidence: "no process".to_owned() },
                Some((state, who)) => Proof { held: false, evidence: format!("process {who} is there, state {state}") },
            },
            Claim::Paused { node, .. } => match process(node) {
                Some((state, who)) => Proof { held: state == 'T', evidence: format!("process {who} is in state {state}") },
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
            let mut dead_men = self.dead_men.lock().expect("dead men");
            for act in undo {
                let line = match act {
                    Act::Uncut { node } => {
                        let namespace = &self.cluster.members[self.cluster.index(node)].namespace;
                        format!("ip netns exec {namespace} nft delete table {TABLE}")
                    }
                    Act::Continue { node, .. } => match self.cluster.pid(self.cluster.index(node)) {
                        Some(pid) => format!("kill -CONT {pid}"),
                        None => continue,
                    },
                    _ => continue,
                };
                let sleeper = Command::new("sh")
                    .args(["-c", &format!("sleep {}; {line}", after.as_secs_f64())])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn();
                let reason = |error: std::io::Error| InjectError::Act { act: format!("arm {act}"), reason: error.to_string() };
                dead_men.push(sleeper.map_err(reason)?);
            }
            Ok(())
        }
        .boxed()
    }

    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        async move {
            for mut sleeper in self.dead_men.lock().expect("dead men").drain(..) {
                let _ = sleeper.kill();
                let _ = sleeper.wait();
            }
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
                match tokio::task::block_in_place(|| self.cluster.process(i)) {
                    None => push("a stopped etcd", Act::Start { node: node.clone(), process: Process::Etcd }),
                    Some(('T', _)) => push("a paused etcd", Act::Continue { node: node.clone(), process: Process::Etcd }),
                    Some(_) => (),
                }
                if tokio::task::block_in_place(|| self.table(&node)).is_some() {
                    push("packet rules", Act::Uncut { node: node.clone() });
                }
                if member.state.lock().expect("state").quota_mib.is_some() {
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
            self.cluster.process(i).map(|(_, who)| who).ok_or_else(gone)
        }
        .boxed()
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if let Ok(mut sleepers) = self.dead_men.lock() {
            for mut sleeper in sleepers.drain(..) {
                let _ = sleeper.kill();
                let _ = sleeper.wait();
            }
        }
    }
}

/// Does nothing when it is told to break something, and says that it did. Everything else is honest.
pub struct DoesNothing(pub Native);

impl Injector for DoesNothing {
    fn perform<'a>(&'a self, _: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        async { Ok(()) }.boxed()
    }
    fn prove<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        self.0.prove(claim)
    }
    fn arm<'a>(&'a self, undo: &'a [Act], after: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        self.0.arm(undo, after)
    }
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        self.0.disarm()
    }
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        self.0.leftovers()
    }
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        self.0.alarming_logs()
    }
    fn incarnation<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        self.0.incarnation(node)
    }
}

/// As above, and swears that every fault is there: telemetry alone can find it out.
pub struct Liar(pub DoesNothing);

impl Injector for Liar {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        self.0.perform(act)
    }
    fn prove<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        async { Ok(Proof { held: true, evidence: "believe me".to_owned() }) }.boxed()
    }
    fn arm<'a>(&'a self, undo: &'a [Act], after: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        self.0.arm(undo, after)
    }
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        self.0.disarm()
    }
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        self.0.leftovers()
    }
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        self.0.alarming_logs()
    }
    fn incarnation<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        self.0.incarnation(node)
    }
}
