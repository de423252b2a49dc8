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
use crate::store::files;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `kubectl` of the image, with the admin kubeconfig.
pub fn kubectl(global: &Global, passed: &Passed) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    super::save_kubeconfig(&session.dir, &session.keyring)?;
    let mut command = Command::new(program("kubectl")?);
    command.env("KUBECONFIG", session.dir.path().join("kubeconfig")).args(&passed.args);
    become_it(command)
}

/// `etcdctl` of the image, with every member's endpoint and the host's own client certificate.
pub fn etcdctl(global: &Global, passed: &Passed) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let dir = session.dir.path().join("etcd-admin");
    files::ensure_dir(&dir).map_err(CliError::failed)?;
    let mut command = Command::new(program("etcdctl")?);
    command.env("ETCDCTL_ENDPOINTS", session.plan.etcd_endpoints().join(","));
    let admin = || "etcd-admin".to_owned();
    for (variable, name, item) in [
        ("ETCDCTL_CACERT", "ca.pem", PkiItem::CaCert { ca: Ca::Etcd }),
        ("ETCDCTL_CERT", "client.pem", PkiItem::Cert { id: admin() }),
        ("ETCDCTL_KEY", "client-key.pem", PkiItem::Key { id: admin() }),
    ] {
        let path = dir.join(name);
        let text = session::item(&session.keyring, &item)?;
        if !files::read_secret(&path).is_ok_and(|there| there.expose() == text.expose()) {
            files::write_atomic(&path, text.expose().as_bytes(), 0o600).map_err(CliError::failed)?;
        }
        command.env(variable, path);
    }
    command.args(&passed.args);
    become_it(command)
}

/// Prints the admin kubeconfig, or merges it into the user's.
pub fn show_kubeconfig(global: &Global, args: &Kubeconfig) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let ours = session::item(&session.keyring, &PkiItem::Kubeconfig { id: "admin".to_owned() })?;
    if !args.merge {
        render::print(ours.expose());
        return Ok(exit::OK);
    }
    let path = users_kubeconfig()?;
    let there = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(CliError::failed(format!("{}: {error}", path.display()))),
    };
    let plan = session.plan.kubeconfigs.iter().find(|kubeconfig| kubeconfig.id == "admin");
    let (Some(plan), Some(ca)) = (plan, session.keyring.ca_pem(Ca::Kubernetes)) else {
        return Err(CliError::failed("the plan has no admin kubeconfig"));
    };
    let cert = session::item(&session.keyring, &PkiItem::Cert { id: plan.cert.clone() })?;
    let key = session::item(&session.keyring, &PkiItem::Key { id: plan.cert.clone() })?;
    let credentials = Credentials { ca, cert: cert.expose(), key: &key };
    let merged = kubeconfig::merge(&there, plan, credentials, true).map_err(|error| {
        CliError::failed(format!("{}: {error}; it was not changed", path.display())).hint("KUBECONFIG=… ktcw-vm kubeconfig --merge")
    })?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| CliError::failed(format!("{}: {error}", parent.display())))?;
    }
    files::write_atomic(&path, merged.expose().as_bytes(), 0o600).map_err(CliError::failed)?;
    render::print_line(&format!("context ktcw-{} is in {} and current", session.plan.cluster, path.display()));
    Ok(exit::OK)
}

/// The first file of $KUBECONFIG, as kubectl writes, else ~/.kube/config.
fn users_kubeconfig() -> Result<PathBuf, CliError> {
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty())
        && let Some(first) = std::env::split_paths(&list).next()
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").ok_or_else(|| CliError::failed("neither KUBECONFIG nor HOME is set"))?;
    Ok(Path::new(&home).join(".kube/config"))
}

/// A program of the image, runnable here.
fn program(name: &str) -> Result<PathBuf, CliError> {
    let found = image::find(&image::cache_dir())?.map(|image| image.bin.join(name));
    found.filter(|path| path.exists()).ok_or_else(|| {
        CliError::failed(format!("{name} is not there: the guest image has not been built here")).hint("ktcw-vm image build")
    })
}

/// Replaces this process, so that signals, terminals and exit codes are the program's own.
fn become_it(mut command: Command) -> Result<u8, CliError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let error = command.exec();
    Err(CliError::failed(format!("{name}: {error}")))
}
