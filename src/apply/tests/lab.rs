//! A cluster without machines: `FakeHost` for libvirt, and nodes and API servers that follow from what runs on it.
//! The tests of `apply` bring it up, break it and take it away; state outlives a run, as real machines do.
//! It knows the rules that `up` relies on (who needs whom), so steps in a wrong order fail here as they would there.

mod members;
mod servers;

use crate::apply::World;
use crate::guest::fake::{FakeGuests, Reply};
use crate::guest::{Cmd, Guest, GuestError, keys};
use crate::host::fake::{FakeHost, Strike};
use crate::host::{DomainState, Host, HostSeen, Mark};
use crate::pki::{Keyring, Lifetimes};
use crate::plan::{NodePlan, Plan, Resolved, plan, samples};
use crate::spec::NodeName;
use crate::store::{Class, SshKey, SshKeys, crash, failpoint};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use servers::{Registered, Servers};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use uuid::Uuid;

/// Stands for every file that is uploaded.
const FILE: &str = "Cargo.toml";

pub fn sample(name: &str, etcd: u64, workers: u64) -> Arc<Plan> {
    Arc::new(samples::plan(name, etcd, workers, samples::kvm()))
}

/// Of the same host, on a network of its own.
fn another_cluster() -> Plan {
    let other = samples::plan("other", 1, 0, samples::kvm());
    let subnet = "192.168.78.0/24".parse().expect("net");
    plan(&other.spec, &Resolved { subnet, ..other.resolved })
}

fn mark(plan: &Plan) -> Mark {
    Mark { cluster: plan.cluster.clone(), instance: Uuid::from_u128(7), state_dir: format!("/state/{}", plan.cluster) }
}

fn noon() -> Timestamp {
    Timestamp::from_second(1_795_000_000).expect("a time")
}

/// What a machine remembers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Machine {
    asked: bool,
    booted: bool,
    ahead_s: f64,
    units: BTreeSet<String>,
    /// Digests of its files, by path: the seed's when it first booted.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// What it was told is owed to changed files.
    #[serde(default)]
    owed: BTreeSet<String>,
    /// What really is: units that run with files as they were.
    #[serde(default)]
    behind: BTreeSet<String>,
}

/// A member as etcd lists it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Member {
    learner: bool,
    started: bool,
}

/// All that can be compared about a cluster after a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    host: HostSeen,
    machines: BTreeMap<NodeName, Machine>,
    manifests: BTreeSet<String>,
    registered: BTreeMap<NodeName, Registered>,
}

impl Snapshot {
    /// Leaves only what carries this mark, and the images.
    pub fn of(mut self, mark: &Mark) -> Snapshot {
        let ours = |other: &Option<Mark>| other.as_ref() == Some(mark);
        self.host.domains.retain(|domain| ours(&domain.mark));
        self.host.networks.retain(|network| ours(&network.mark));
        self.host.pools.retain(|pool| ours(&pool.mark));
        self
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Inside {
    machines: BTreeMap<NodeName, Machine>,
    manifests: BTreeSet<String>,
    /// What the API knows of workers: whether it gives them no more pods, and how many of theirs would have to move.
    #[serde(default)]
    registered: BTreeMap<NodeName, Registered>,
    /// etcd's members, once it was begun, and who leads.
    #[serde(default)]
    members: BTreeMap<NodeName, Member>,
    #[serde(default)]
    leader: Option<NodeName>,
    /// Changes inside nodes and at the API so far.
    #[serde(skip)]
    effects: Vec<String>,
    #[serde(skip)]
    strike: Option<(usize, Strike)>,
    /// Id of a step that cannot succeed.
    #[serde(skip)]
    broken: Option<String>,
}

pub struct Lab {
    pub host: Arc<FakeHost>,
    pub plan: Arc<Plan>,
    pub mark: Mark,
    inside: Mutex<Inside>,
    /// What its machines' seeds were made with.
    keyring: Mutex<Option<Keyring>>,
    /// Where it is written down after every change, for the next process.
    kept: Option<PathBuf>,
}

/// File names of a lab that outlives its process: what libvirt has, what the machines have.
const HOST: &str = "host.json";
const INSIDE: &str = "inside.json";

fn write(path: &Path, text: &str) {
    // The machines' disk is not the program's.
    crate::store::failpoint::elsewhere(|| crate::store::files::write_atomic(path, text.as_bytes(), 0o600)).expect("written");
}

impl Lab {
    /// Nothing of ours on the host, but strangers' things and a cluster of another state directory.
    pub fn new(plan: &Arc<Plan>) -> Arc<Lab> {
        Lab::on(plan, FakeHost::new(), None)
    }

    /// One that lives in a directory, as machines do that outlive the program: every change is on the disk when it is over,
    /// and before and after it is a place to be killed at.
    pub fn kept(plan: &Arc<Plan>, dir: &Path) -> Arc<Lab> {
        let file = dir.join(HOST);
        let (saved, host) = (file.exists(), crash::kept_host(&file));
        if !saved {
            return Lab::on(plan, host, Some(dir.to_owned()));
        }
        let inside = std::fs::read_to_string(dir.join(INSIDE)).expect("saved beside it");
        let inside = Mutex::new(serde_json::from_str(&inside).expect("as it was saved"));
        let kept = Some(dir.to_owned());
        let lab = Lab { host: Arc::new(host), plan: plan.clone(), mark: mark(plan), inside, keyring: Mutex::default(), kept };
        lab.forget_the_removed();
        Arc::new(lab)
    }

    /// A machine that was removed has nothing in it when it is made anew.
    fn forget_the_removed(&self) {
        let seen = self.host.observe().expect("observed");
        let gone = |node: &&NodePlan| !seen.domains.iter().any(|domain| domain.name == node.domain.name);
        let mut inside = self.lock();
        let new = || Machine { ahead_s: -0.7, ..Machine::default() };
        for node in self.plan.nodes.iter().filter(gone) {
            inside.machines.insert(node.name.clone(), new());
        }
        // One that was made and never spoken to has not been written down.
        for node in self.plan.nodes.iter().chain(&self.plan.leaving) {
            inside.machines.entry(node.name.clone()).or_insert_with(new);
        }
        if self.plan.controllers().all(|node| gone(&node)) {
            inside.manifests.clear();
            inside.registered.clear();
            inside.members.clear();
            inside.leader = None;
        }
    }

    fn on(plan: &Arc<Plan>, host: FakeHost, kept: Option<PathBuf>) -> Arc<Lab> {
        host.add_foreign_domain("somebody-elses", Uuid::from_u128(99));
        host.add_foreign_network("default", Uuid::from_u128(98), "192.168.122.0/24".parse().expect("net"));
        host.add_foreign_pool("default", Uuid::from_u128(97));
        let other = another_cluster();
        let theirs = Mark { instance: Uuid::from_u128(8), ..mark(&other) };
        host.ensure_network(&other.network, &theirs).expect("made");
        host.ensure_pools(&other.storage, &theirs).expect("made");
        host.ensure_domain(&other.nodes[0].domain, &other.storage, &other.nodes[0].name, &theirs).expect("made");
        let machines = plan.nodes.iter().map(|node| (node.name.clone(), Machine { ahead_s: -0.7, ..Machine::default() }));
        let inside = Inside { machines: machines.collect(), ..Inside::default() };
        let (host, keyring) = (Arc::new(host), Mutex::default());
        let lab = Lab { host, plan: plan.clone(), mark: mark(plan), inside: Mutex::new(inside), keyring, kept };
        lab.keep(&lab.lock());
        if let Some(dir) = &lab.kept {
            write(&dir.join(HOST), &lab.host.saved());
        }
        Arc::new(lab)
    }

    fn keep(&self, inside: &Inside) {
        if let Some(dir) = &self.kept {
            write(&dir.join(INSIDE), &serde_json::to_string(inside).expect("JSON"));
        }
    }

    /// The edges of one run over this lab; `lost`: the command of that number, counted from 0, loses its connection.
    pub fn world(self: &Arc<Self>, lost: Option<usize>) -> (Arc<World>, Arc<FakeGuests>) {
        let (keyring, ssh) = credentials(&self.plan);
        self.world_with(lost, self.mark.clone(), keyring, ssh)
    }

    /// The same with a cluster directory's own mark and keys.
    pub fn world_with(
        self: &Arc<Self>,
        lost: Option<usize>,
        mark: Mark,
        keyring: Keyring,
        ssh: SshKeys,
    ) -> (Arc<World>, Arc<FakeGuests>) {
        *self.keyring.lock().expect("free") = Some(keyring.clone());
        let lab = self.clone();
        let mut guests = FakeGuests::new().with("", move |node, cmd| lab.answer(node, cmd));
        if let Some(at) = lost {
            let (node, reason) = (NodeName::controller(0), "Keepalive timeout".to_owned());
            guests = guests.fail_at(at, GuestError::Lost { node, command: "any".to_owned(), reason });
        }
        let guests = Arc::new(guests);
        let world = World {
            host: self.host.clone(),
            guest: guests.clone() as Arc<dyn Guest>,
            api: Arc::new(Servers(self.clone())),
            keyring,
            ssh,
            mark,
            clock: noon,
            base: FILE.into(),
            kernel: FILE.into(),
            initrd: Some(FILE.into()),
        };
        (Arc::new(world), guests)
    }

    pub fn snapshot(&self) -> Snapshot {
        let inside = self.lock();
        Snapshot {
            host: self.host.observe().expect("observed"),
            machines: inside.machines.clone(),
            manifests: inside.manifests.clone(),
            registered: inside.registered.clone(),
        }
    }

    /// What libvirt shows but the images that all clusters share.
    pub fn host_seen(&self) -> HostSeen {
        let mut seen = self.host.observe().expect("observed");
        seen.pools.retain(|pool| pool.name != self.plan.storage.image_pool);
        seen
    }

    /// The step of that id cannot succeed until it is `None` again.
    pub fn break_step(&self, id: Option<&str>) {
        self.lock().broken = id.map(str::to_owned);
    }

    /// The `k`-th change inside a node or at the API from now on is cut off.
    pub fn fail_inside(&self, k: usize, strike: Strike) {
        let mut inside = self.lock();
        inside.strike = Some((inside.effects.len() + k, strike));
    }

    pub fn effects(&self) -> Vec<String> {
        self.lock().effects.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn broken(&self, id: &str) -> bool {
        self.lock().broken.as_deref() == Some(id)
    }

    fn running(&self, node: &NodePlan) -> bool {
        let seen = self.host.observe().expect("observed");
        seen.domains.iter().any(|domain| domain.name == node.domain.name && domain.state == DomainState::Running)
    }

    /// Whether the machine of a node runs, also of one that is on its way out.
    fn runs(&self, name: &NodeName) -> bool {
        let domain = format!("{}-{name}", self.plan.cluster);
        let seen = self.host.observe().expect("observed");
        seen.domains.iter().any(|seen| seen.name == domain && seen.state == DomainState::Running)
    }

    fn active(&self, node: &NodePlan, unit: &str) -> bool {
        self.running(node) && self.lock().machines[&node.name].units.contains(unit)
    }

    fn quorum(&self) -> bool {
        let voters: Vec<NodeName> =
            self.lock().members.iter().filter(|(_, member)| !member.learner).map(|(name, _)| name.clone()).collect();
        !voters.is_empty() && voters.iter().filter(|name| self.serving(name)).count() > voters.len() / 2
    }

    /// Whether etcd runs on a node, also on one that is on its way out.
    fn serving(&self, name: &NodeName) -> bool {
        self.runs(name) && self.lock().machines.get(name).is_some_and(|machine| machine.units.contains("etcd.service"))
    }

    fn serves(&self, node: &NodePlan) -> bool {
        self.quorum() && self.active(node, "kube-apiserver.service") && !self.broken(&format!("apiserver ready {}", node.name))
    }

    fn vip_answers(&self) -> bool {
        let mut holders = self.plan.control_planes().filter(|node| self.active(node, "keepalived.service"));
        holders.any(|node| self.serves(node)) && !self.broken("virtual address")
    }

    /// Makes a change inside, or cuts it off when its turn has come. `false`: the caller does not learn how it went.
    fn change(&self, what: String, effect: impl FnOnce(&mut Inside)) -> bool {
        if self.kept.is_some() {
            failpoint(Class::Effect, &format!("before {what}"));
        }
        let told = self.changed(what.clone(), effect);
        if self.kept.is_some() {
            self.keep(&self.lock());
            failpoint(Class::Effect, &format!("after {what}"));
        }
        told
    }

    fn changed(&self, what: String, effect: impl FnOnce(&mut Inside)) -> bool {
        let mut inside = self.lock();
        inside.effects.push(what);
        let turn = inside.effects.len();
        let strike = inside.strike.filter(|(at, _)| *at == turn).map(|(_, strike)| strike);
        if strike != Some(Strike::Before) {
            effect(&mut inside);
        }
        strike.is_none()
    }

    /// What a node of this lab does with a command.
    pub fn answer(&self, name: &NodeName, cmd: &Cmd) -> Reply {
        let leaving = self.plan.leaving.as_ref().filter(|leaving| leaving.name == *name);
        let Some(node) = leaving.or(self.plan.node(name)).filter(|node| self.running(node)) else {
            return Reply::unreachable(name);
        };
        let script = cmd.stdin.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        if self.broken(&format!("ssh {name}")) || !self.machine(name, |machine| std::mem::replace(&mut machine.asked, true)) {
            return Reply::unreachable(name);
        }
        self.written_by_cloud_init(node);
        match cmd.line.as_str() {
            "true" => Reply::ok(""),
            crate::guest::clock::DATE => self.date(name),
            "cat /run/cloud-init/result.json" => Reply::ok(self.report(name)),
            line if line.starts_with("python3 ") => self.shift(name, cmd),
            _ if script.contains("boot_id") => self.inspection(node, &script),
            line if line.starts_with("umask 077; t=$(mktemp") => self.put(name, cmd),
            _ if script.contains("rm -rf /var/lib/etcd/data") => Reply::ok(""),
            _ if script.contains("exec etcdctl ") => self.etcdctl(node, cmd, &script),
            _ if script.contains("sha256sum -- ") => self.files(name),
            _ if script.contains("/etc/ktcw/owed") || script.contains("systemctl restart ") => self.roll(node, cmd, &script),
            _ if script.contains("systemctl stop keepalived.service kube-scheduler") => Reply::ok(""),
            "bash -s" if script == "true\n" => Reply::ok(""),
            _ if script.contains("systemctl daemon-reload") => self.start(node, cmd, &script),
            line => Reply::exit(127, "", format!("{name}: no rule for {line:?} {script}")),
        }
    }

    fn machine<T>(&self, name: &NodeName, look: impl FnOnce(&mut Machine) -> T) -> T {
        let mut inside = self.lock();
        let before = inside.machines[name].clone();
        let seen = look(inside.machines.get_mut(name).expect("a node"));
        if inside.machines[name] != before {
            self.keep(&inside);
        }
        seen
    }

    fn date(&self, name: &NodeName) -> Reply {
        if self.broken(&format!("clock {name}")) {
            return Reply::ok("no idea\n");
        }
        #[expect(clippy::cast_possible_truncation, reason = "a second")]
        let ahead = (self.machine(name, |machine| machine.ahead_s) * 1e9) as i128;
        let now = noon().as_nanosecond() + ahead;
        Reply::ok(format!("{}.{:09}\n", now / 1_000_000_000, now % 1_000_000_000))
    }

    fn shift(&self, name: &NodeName, cmd: &Cmd) -> Reply {
        let by: f64 =
            cmd.line.rsplit("+ (").next().and_then(|t| t.split(')').next()).and_then(|t| t.parse().ok()).expect("a shift");
        let told = self.change(format!("clock {name}"), |inside| {
            let machine = inside.machines.get_mut(name).expect("a node");
            machine.ahead_s = ((machine.ahead_s + by) * 1000.0).round() / 1000.0;
        });
        if told { Reply::ok("") } else { Reply::lost(name, cmd) }
    }

    fn report(&self, name: &NodeName) -> &'static str {
        if self.broken(&format!("boot {name}")) {
            r#"{"v1": {"errors": ["write_files failed"]}}"#
        } else {
            r#"{"v1": {"errors": []}}"#
        }
    }

    /// cloud-init is still running when it is looked at first.
    fn inspection(&self, node: &NodePlan, script: &str) -> Reply {
        let booted = self.machine(&node.name, |machine| std::mem::replace(&mut machine.booted, true));
        let mut text = format!("boot-of-{}\n{}\n", node.name, if booted { "finished" } else { "running" });
        if let Some(units) = script.split("systemctl is-active ").nth(1).and_then(|rest| rest.split(" |").next()) {
            let active = self.machine(&node.name, |machine| machine.units.clone());
            let state = |unit| if active.contains(unit) { "active" } else { "inactive" };
            text.push_str(&units.split_whitespace().map(state).collect::<Vec<_>>().join(" "));
            text.push_str(&format!("\n{}", if booted { self.report(&node.name) } else { "" }));
        }
        Reply::ok(text)
    }

    /// What systemd would say when something that a unit needs is not there.
    fn refusal(&self, node: &NodePlan, unit: &str) -> Option<&'static str> {
        match unit {
            _ if !node.units.iter().any(|known| known == unit) => Some("Unit not found"),
            _ if self.machine(&node.name, |machine| machine.ahead_s.abs() > 0.05) => Some("certificate is not yet valid"),
            "etcd.service" => self.no_member(&node.name),
            "keepalived.service" if self.two_would_hold_the_address(node) => Some("its peers do not know it"),
            "kube-apiserver.service" if !self.quorum() => Some("etcd has no leader"),
            "kube-controller-manager.service" | "kube-scheduler.service" if !self.serves(node) => Some("no API server here"),
            "kubelet.service" if !self.active(node, "containerd.service") => Some("no container runtime"),
            "kubelet.service" | "kube-proxy.service" if !self.vip_answers() => Some("no API"),
            _ => None,
        }
    }

    fn start(&self, node: &NodePlan, cmd: &Cmd, script: &str) -> Reply {
        let starts = |line: &&str| line.starts_with("systemctl enable") || line.starts_with("systemctl start");
        let words = script.lines().filter(starts).flat_map(str::split_whitespace);
        let units: Vec<String> = words.filter(|word| word.ends_with(".service")).map(str::to_owned).collect();
        let what = format!("units {}: {}", node.name, units.join(" "));
        let verb = self.lock().broken.clone().unwrap_or_default();
        let broken = units.iter().any(|unit| match verb.strip_suffix(&format!(" {}", node.name)).unwrap_or_default() {
            "etcd" => unit.contains("etcd"),
            "apiserver" => unit.contains("apiserver"),
            "control plane" => unit.contains("controller-manager"),
            "runtime" => unit.contains("containerd"),
            "kubelet" => unit.contains("kubelet"),
            _ => false,
        });
        if broken {
            return Reply::exit(1, "", format!("Job for {} failed", units[0]));
        }
        if let Some(why) = units.iter().find_map(|unit| self.refusal(node, unit)) {
            return Reply::exit(1, "", format!("{what}: {why}"));
        }
        let told = self.change(what, |inside| {
            if units.iter().any(|unit| unit == "kubelet.service") {
                inside.registered.entry(node.name.clone()).or_insert(Registered { cordoned: false, pods: 2 });
            }
            if units.iter().any(|unit| unit == "etcd.service") {
                if inside.members.is_empty() {
                    let founders = self.plan.controllers().filter(|node| !members::joined(&self.plan, &node.name));
                    inside.members = founders.map(|node| (node.name.clone(), Member { learner: false, started: true })).collect();
                    // The last one: who is removed first must hand over.
                    inside.leader = inside.members.keys().next_back().cloned();
                }
                inside.members.get_mut(&node.name).expect("one of them").started = true;
            }
            let machine = inside.machines.get_mut(&node.name).expect("a node");
            for unit in units {
                // One that begins does so with the files that are there.
                if machine.units.insert(unit.clone()) {
                    machine.behind.retain(|behind| !behind.ends_with(&unit));
                }
            }
        });
        if told { Reply::ok("") } else { Reply::lost(&node.name, cmd) }
    }
}

/// Keys are made once for all tests: they are not what is tested here.
fn credentials(plan: &Plan) -> (Keyring, SshKeys) {
    static MADE: OnceLock<Mutex<BTreeMap<String, (Keyring, SshKeys)>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let make = || {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pki");
        let keyring = Keyring::ensure(&path, &plan.certs, &plan.kubeconfigs, noon(), Lifetimes::default()).expect("keys").0;
        let pair = |comment: &str| {
            let (private, public) = keys::generate(comment).expect("a pair");
            SshKey { private, public }
        };
        let hosts = plan.nodes.iter().map(|node| (node.name.clone(), pair(&node.name.to_string()))).collect();
        (keyring, SshKeys { client: pair("client"), hosts })
    };
    made.entry(format!("{:?} + {}", plan.spec.controllers(), plan.spec.workers)).or_insert_with(make).clone()
}
