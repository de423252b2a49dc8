//! `kubectl`, `etcdctl`, `kubeconfig`: other people's programs with this cluster's addresses and keys.
//! They run on this computer, from the image's own binaries, so versions match and answers come at native speed.
//! Keys are passed as files of the cluster's directory, never on a command line.

use super::args::{Global, Kubeconfig, Passed};
use super::error::CliError;
use super::session::{self, Session};
use super::{exit, render};
use crate::image;
use crate::pki::kubeconfig::{self, Credentials};
use crate::plan::{Ca, PkiItem};
use crate::store::shared;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `kubectl` of the image, with the admin kubeconfig.
pub fn kubectl(global: &Global, passed: &Passed) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let kubeconfig = kept(&session, &PkiItem::Kubeconfig { id: "admin".to_owned() })?;
    let mut command = Command::new(program(&session, "kubectl")?);
    command.env("KUBECONFIG", kubeconfig).args(&passed.args);
    become_it(command)
}

/// `etcdctl` of the image, with every member's endpoint and the host's own client certificate.
pub fn etcdctl(global: &Global, passed: &Passed) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let mut command = Command::new(program(&session, "etcdctl")?);
    // etcdctl refuses a flag and its variable together.
    let given = |flag: &str| {
        let value_follows = format!("{flag}=");
        passed.args.iter().any(|arg| arg == flag || arg.starts_with(&value_follows))
    };
    if !given("--endpoints") {
        command.env("ETCDCTL_ENDPOINTS", session.plan.etcd_endpoints().join(","));
    }
    let admin = || "etcd-admin".to_owned();
    for (flag, variable, item) in [
        ("--cacert", "ETCDCTL_CACERT", PkiItem::CaCert { ca: Ca::Etcd }),
        ("--cert", "ETCDCTL_CERT", PkiItem::Cert { id: admin() }),
        ("--key", "ETCDCTL_KEY", PkiItem::Key { id: admin() }),
    ] {
        if !given(flag) {
            command.env(variable, kept(&session, &item)?);
        }
    }
    command.args(&passed.args);
    become_it(command)
}

/// What scripts of this computer need to use the cluster's own `kubectl` and `etcdctl` as they are, and `ktcw-vm` beside them.
pub fn environment(global: &Global, session: &Session) -> Result<Vec<(OsString, OsString)>, CliError> {
    let bin = program(session, "kubectl")?;
    let mut path: Vec<PathBuf> = bin.parent().map(Path::to_owned).into_iter().collect();
    path.extend(std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned)));
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let admin = || "etcd-admin".to_owned();
    let mut all: Vec<(OsString, OsString)> = vec![
        ("PATH".into(), std::env::join_paths(path).map_err(CliError::failed)?),
        ("KUBECONFIG".into(), kept(session, &PkiItem::Kubeconfig { id: "admin".to_owned() })?.into()),
        ("ETCDCTL_ENDPOINTS".into(), session.plan.etcd_endpoints().join(",").into()),
        ("ETCDCTL_CACERT".into(), kept(session, &PkiItem::CaCert { ca: Ca::Etcd })?.into()),
        ("ETCDCTL_CERT".into(), kept(session, &PkiItem::Cert { id: admin() })?.into()),
        ("ETCDCTL_KEY".into(), kept(session, &PkiItem::Key { id: admin() })?.into()),
        ("KTCW_CLUSTER".into(), session.plan.cluster.as_str().into()),
        ("KTCW_STATE_DIR".into(), session::parent(global)?.into()),
    ];
    all.extend(global.connect.as_ref().map(|uri| ("KTCW_CONNECT".into(), uri.into())));
    Ok(all)
}

/// Prints the admin kubeconfig, or merges it into the user's.
pub fn show_kubeconfig(global: &Global, args: &Kubeconfig) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let ours = session::item(&session.keyring, &PkiItem::Kubeconfig { id: "admin".to_owned() })?;
    if !args.merge {
        render::print(ours.expose());
        return Ok(exit::OK);
    }
    if session.plan.network.namespace {
        let cluster = &session.plan.cluster;
        return Err(CliError::failed(format!(
            "cluster {cluster} is a fork: nothing outside its network namespace reaches its API"
        ))
        .left("your kubeconfig as it was")
        .hint(format!("ktcw-vm kubectl -c {cluster} …, or ktcw-vm proxy -c {cluster}")));
    }
    let path = users_kubeconfig()?;
    let plan = session.plan.kubeconfigs.iter().find(|kubeconfig| kubeconfig.id == "admin");
    let (Some(plan), Some(ca)) = (plan, session.keyring.ca_pem(Ca::Kubernetes)) else {
        return Err(CliError::failed("the plan has no admin kubeconfig"));
    };
    let cert = session::item(&session.keyring, &PkiItem::Cert { id: plan.cert.clone() })?;
    let key = session::item(&session.keyring, &PkiItem::Key { id: plan.cert.clone() })?;
    let credentials = Credentials { ca, cert: cert.expose(), key: &key };
    let merged = |there: &str| kubeconfig::merge(there, plan, credentials, true).map(Some).map_err(|error| error.to_string());
    shared::edit(&path, merged).map_err(|error| {
        CliError::failed(format!("{}: {error}; it was not changed", path.display()))
            .hint("KUBECONFIG=… ktcw-vm kubeconfig --merge")
    })?;
    render::print_line(&format!("context ktcw-{} is in {} and current", session.plan.cluster, path.display()));
    Ok(exit::OK)
}

/// Where the key store keeps a thing.
fn kept(session: &Session, item: &PkiItem) -> Result<PathBuf, CliError> {
    let missing = || CliError::failed(format!("{item} is not in the key store")).hint("ktcw-vm up makes what is missing");
    session.keyring.path(item).ok_or_else(missing)
}

/// The first file of $KUBECONFIG, as kubectl writes, else ~/.kube/config.
pub(super) fn users_kubeconfig() -> Result<PathBuf, CliError> {
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty())
        && let Some(first) = std::env::split_paths(&list).next()
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").ok_or_else(|| CliError::failed("neither KUBECONFIG nor HOME is set"))?;
    Ok(Path::new(&home).join(".kube/config"))
}

/// A program of the cluster's own image, runnable here; one of this program's image where that is gone.
fn program(session: &Session, name: &str) -> Result<PathBuf, CliError> {
    let cache = image::cache_dir();
    // Its own is the best; where that is gone or broken, this program's speaks to the same API.
    let found = match image::find_key(&cache, &session.plan.resolved.image.key) {
        Ok(Some(image)) => Some(image),
        Ok(None) => image::find(&cache)?,
        Err(broken) => Some(image::find(&cache).ok().flatten().ok_or(broken)?),
    };
    found.map(|image| image.bin.join(name)).filter(|path| path.exists()).ok_or_else(|| {
        CliError::failed(format!("{name} is not there: the guest image has not been built here")).hint("ktcw-vm image build")
    })
}

/// Replaces this process, so that signals, terminals and exit codes are the program's own.
fn become_it(mut command: Command) -> Result<u8, CliError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let error = command.exec();
    Err(CliError::failed(format!("{name}: {error}")))
}
