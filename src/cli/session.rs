//! What most verbs begin with: the cluster's directory, its plan and keys, and connections made from them.
//! Every file of `cli` uses it; it turns the edges' errors into messages with an exit code and a hint.
//! It changes nothing: `up` makes, `down` removes.

use super::args::Global;
use super::error::CliError;
use super::exit;
use crate::api::{Api, ApiError};
use crate::distro::{self, Init};
use crate::guest::ssh::{SshGuests, Target};
use crate::host::libvirt::{LibvirtHost, is_local};
use crate::host::{HostError, Mark};
use crate::pki::{Keyring, PkiError};
use crate::plan::{Ca, PkiItem, Plan};
use crate::secret::Secret;
use crate::spec::{ClusterName, NodeName};
use crate::store::journal::JournalError;
use crate::store::{ClusterDir, Lock, SshKeys, StoreError, default_parent};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An existing cluster, opened.
pub struct Session {
    pub dir: ClusterDir,
    pub plan: Arc<Plan>,
    pub ssh: SshKeys,
    pub keyring: Keyring,
}

impl Session {
    /// Opens the cluster that the global flags name; without a plan there is nothing to work on.
    pub fn open(global: &Global) -> Result<Session, CliError> {
        Session::at(&parent(global)?, &cluster_name(global)?)
    }

    pub fn at(parent: &Path, name: &ClusterName) -> Result<Session, CliError> {
        let dir = ClusterDir::open(parent, name)?;
        let Some(plan) = dir.load_plan()? else {
            let message = format!("cluster {name} was begun, but has no plan yet");
            return Err(CliError::failed(message).hint(format!("ktcw-vm up -c {name}")));
        };
        let names: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();
        let ssh = dir.ssh(&names)?;
        let keyring = Keyring::load(&dir.pki(), &plan.certs, &plan.kubeconfigs)?;
        Ok(Session { dir, plan: Arc::new(plan), ssh, keyring })
    }

    /// Takes the cluster's lock, unless something is `wrong`, and looks again under it: whoever had it until now may have left
    /// another plan, new keys or an open record. With another plan the words that were typed may mean something else.
    pub fn lock(self, verb: &str, mut wrong: impl FnMut(&Session) -> Result<(), CliError>) -> Result<(Session, Lock), CliError> {
        wrong(&self)?;
        let lock = self.dir.lock(verb)?;
        if self.dir.load_plan()?.as_ref() != Some(&*self.plan) {
            return Err(StoreError::Changed { path: self.dir.path().to_owned() }.into());
        }
        let session = Session::at(self.dir.path().parent().unwrap_or(Path::new("/")), self.dir.name())?;
        wrong(&session)?;
        Ok((session, lock))
    }

    pub fn mark(&self) -> Mark {
        mark(&self.dir)
    }

    pub fn guests(&self) -> Result<Arc<SshGuests>, CliError> {
        guests(&self.plan, &self.ssh)
    }

    pub fn api(&self) -> Result<Api, CliError> {
        api(&self.keyring)
    }

    /// The node, or an error that lists those there are.
    pub fn node(&self, name: &NodeName) -> Result<&crate::plan::NodePlan, CliError> {
        self.plan.node(name).ok_or_else(|| {
            let all: Vec<String> = self.plan.nodes.iter().map(|node| node.name.to_string()).collect();
            CliError::usage(format!("cluster {} has no node {name}; it has {}", self.plan.cluster, all.join(", ")))
        })
    }
}

/// Our mark: what is on everything that `up` makes.
pub fn mark(dir: &ClusterDir) -> Mark {
    Mark { cluster: dir.name().clone(), instance: dir.instance(), state_dir: dir.path().display().to_string() }
}

pub fn guests(plan: &Plan, ssh: &SshKeys) -> Result<Arc<SshGuests>, CliError> {
    let targets = plan.nodes.iter().chain(&plan.leaving).filter_map(|node| {
        let host_key = ssh.hosts.get(&node.name)?.public.clone();
        Some(Target { node: node.name.clone(), addr: SocketAddr::from((node.ip, 22)), host_key })
    });
    let guests = SshGuests::new(targets.collect(), "root", &ssh.client.private);
    Ok(Arc::new(guests.map_err(CliError::failed)?))
}

pub fn api(keyring: &Keyring) -> Result<Api, CliError> {
    let (ca, identity) = admin(keyring)?;
    Ok(Api::new(ca.expose(), &identity)?)
}

/// As `api`, with a connection of its own for every request.
pub fn unpooled_api(keyring: &Keyring) -> Result<Api, CliError> {
    let (ca, identity) = admin(keyring)?;
    Ok(Api::unpooled(ca.expose(), &identity)?)
}

/// The CA, and the admin's certificate and key.
fn admin(keyring: &Keyring) -> Result<(Secret, Secret), CliError> {
    let ca = item(keyring, &PkiItem::CaCert { ca: Ca::Kubernetes })?;
    let certificate = item(keyring, &PkiItem::Cert { id: "admin".to_owned() })?;
    let key = item(keyring, &PkiItem::Key { id: "admin".to_owned() })?;
    let identity = Secret::new(format!("{}\n{}", certificate.expose(), key.expose()));
    Ok((ca, identity))
}

pub fn item(keyring: &Keyring, what: &PkiItem) -> Result<Secret, CliError> {
    keyring
        .item(what)
        .cloned()
        .ok_or_else(|| CliError::failed(format!("{what} is not in the key store")).hint("ktcw-vm up makes what is missing"))
}

/// The name the flags give, or `ktcw`.
pub fn cluster_name(global: &Global) -> Result<ClusterName, CliError> {
    ClusterName::parse(global.cluster.as_deref().unwrap_or("ktcw")).map_err(|said| CliError::usage(format!("--cluster: {said}")))
}

/// Directory of all clusters.
pub fn parent(global: &Global) -> Result<PathBuf, CliError> {
    match &global.state_dir {
        Some(dir) => {
            std::path::absolute(dir).map_err(|error| CliError::usage(format!("--state-dir: {}: {error}", dir.display())))
        }
        None => Ok(default_parent(std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME"))?),
    }
}

pub fn connect(global: &Global) -> Result<Arc<LibvirtHost>, CliError> {
    Ok(Arc::new(LibvirtHost::connect(global.connect.as_deref())?))
}

/// The libvirt that the cluster lives in. Another one would show nothing of it, and `down` there would find nothing to remove.
pub fn connect_to(global: &Global, dir: &ClusterDir) -> Result<Arc<LibvirtHost>, CliError> {
    let recorded = dir.libvirt();
    let host = Arc::new(LibvirtHost::connect(global.connect.as_deref().or(recorded))?);
    match recorded {
        Some(recorded) if recorded != host.uri() => Err(CliError::usage(format!(
            "--connect: cluster {} lives in the libvirt at {recorded}, not in that at {}",
            dir.name(),
            host.uri()
        ))
        .hint(format!("--connect '{recorded}', or none"))),
        _ => Ok(host),
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Busy { .. } | StoreError::Changed { .. } => exit::BUSY,
            StoreError::NoCluster { .. } | StoreError::NoHome => exit::USAGE,
            _ => exit::FAILED,
        };
        let hint = error.hint();
        CliError { code, hint, ..CliError::because(&error) }
    }
}

impl From<JournalError> for CliError {
    fn from(error: JournalError) -> Self {
        StoreError::from(error).into()
    }
}

/// Where no daemon of this computer answers and nobody would start one: the way to a libvirt that is ours.
fn without_a_daemon(uri: &str, reason: &str, init: Init) -> Option<&'static str> {
    let reason = reason.to_lowercase();
    let absent = reason.contains("no such file") || reason.contains("connection refused");
    (init == Init::Nobody && absent && is_local(uri)).then_some(
        "there is no systemd here to start libvirtd: `make setup` starts a libvirt in a network namespace of its own (so does `make up`), \
         and bin/ktcw-vm is this program run there; `ktcw-vm doctor` looks closer",
    )
}

impl From<HostError> for CliError {
    fn from(error: HostError) -> Self {
        match &error {
            HostError::Unreachable { uri, reason } => {
                let way_out = without_a_daemon(uri, reason, distro::init()).map(str::to_owned).or_else(|| error.hint());
                let way_out = way_out.unwrap_or_else(|| "`ktcw-vm doctor` says what is missing".to_owned());
                CliError::host(&error).hint(format!("{way_out}; another libvirt: --connect URI"))
            }
            HostError::NotOurs { .. } => CliError::host(&error).hint("it will not be touched; another name: -c NAME"),
            _ => {
                let said = CliError::failed(&error);
                match error.hint() {
                    Some(hint) => said.hint(hint),
                    None => said,
                }
            }
        }
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        CliError::failed(&error).hint("ktcw-vm verify")
    }
}

impl From<PkiError> for CliError {
    fn from(error: PkiError) -> Self {
        let said = CliError::because(&error);
        match error.hint() {
            Some(hint) => said.hint(hint),
            None => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Accel, Resolved, plan, samples};
    use crate::store::SshKey;

    fn planned(subnet: &str) -> Plan {
        let usual = samples::plan("ktcw", 1, 1, Accel::Tcg);
        let subnet = subnet.parse().expect("a net");
        plan(&usual.spec, &Resolved { subnet, ..usual.resolved })
    }

    #[test]
    fn what_was_read_without_the_lock_is_looked_at_again_under_it() {
        let parent = tempfile::tempdir().expect("a directory");
        let plan = planned("192.168.77.0/24");
        crate::cli::kept::kept(parent.path(), &plan);
        let open = || Session::at(parent.path(), &plan.cluster).expect("opened");

        let mut asked = 0;
        let second_time = |_: &Session| {
            asked += 1;
            if asked == 2 { Err(CliError::failed("a restore is half-done by now")) } else { Ok(()) }
        };
        let refused = open().lock("stop", second_time).err().expect("refused");
        assert!(refused.message.contains("by now"), "{}", refused.message);

        // The lock is free again. Who takes it meanwhile makes keys, then another plan for the same specification.
        let (early, late) = (open(), open());
        let nodes = [NodeName::controller(0), NodeName::worker(0)];
        let lock = early.dir.lock("up").expect("free");
        std::fs::remove_dir_all(early.dir.path().join("ssh")).expect("removed");
        crate::store::files::ensure_dir(&early.dir.path().join("ssh")).expect("made");
        let pair = |comment: &str| {
            let (private, public) = crate::guest::ssh::keys::generate(comment).map_err(|error| error.to_string())?;
            Ok(SshKey { private, public })
        };
        early.dir.ensure_ssh(&lock, &nodes, pair).expect("made");
        drop(lock);
        let (fresh, lock) = early.lock("stop", |_| Ok(())).expect("the same plan");
        assert!(fresh.ssh.client.public != late.ssh.client.public, "the keys are those that are there now");
        fresh.dir.save_plan(&lock, &planned("192.168.78.0/24")).expect("saved");
        drop(lock);
        let error = late.lock("stop", |_| Ok(())).err().expect("another plan");
        assert!(error.code == exit::BUSY && error.hint.is_some_and(|hint| hint.contains("again")), "{}", error.message);
    }

    #[test]
    fn where_nobody_starts_daemons_nobody_is_told_to_have_one_started() {
        let missing = "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory";
        let dead = "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Connection refused";
        let said = |uri, reason, init| without_a_daemon(uri, reason, init);
        for reason in [missing, dead] {
            let way_out = said("qemu:///system", reason, Init::Nobody).expect("a way of its own");
            assert!(way_out.contains("`make setup`") && way_out.contains("bin/ktcw-vm") && !way_out.contains("systemctl"));
            assert_eq!(said("qemu:///system", reason, Init::Systemd), None);
            assert_eq!(said("qemu+ssh://root@lab/system", reason, Init::Nobody), None);
        }
        assert_eq!(said("qemu:///system", "Permission denied", Init::Nobody), None);
    }
}
