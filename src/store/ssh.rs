//! SSH keys of a cluster as files: one pair to log in with, one pair per node that we are its host key of.
//! `ClusterDir::ensure_ssh` calls it; how a pair is made is the caller's function, because only `guest` knows SSH.
//! It never writes over a key: a node's identity is pinned by its file.

use super::StoreError;
use super::files::{self, FileError, PUBLIC, SECRET, if_there};
use crate::secret::Secret;
use crate::spec::NodeName;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A key pair in OpenSSH's formats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey {
    pub private: Secret,
    /// One line: algorithm, base64, comment.
    pub public: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKeys {
    /// What we log in with.
    pub client: SshKey,
    /// Host keys, made by us and pinned.
    pub hosts: BTreeMap<NodeName, SshKey>,
}

/// `id_ed25519` and `host-<node>` in `dir`.
fn client_path(dir: &Path) -> PathBuf {
    dir.join("id_ed25519")
}
fn host_path(dir: &Path, node: &NodeName) -> PathBuf {
    dir.join(format!("host-{node}"))
}
fn public_path(private: &Path) -> PathBuf {
    private.with_added_extension("pub")
}

/// Loads what is there and makes what is missing. Returns how many pairs were made.
pub(super) fn ensure(
    dir: &Path,
    nodes: &[NodeName],
    mut generate: impl FnMut(&str) -> Result<SshKey, String>,
) -> Result<(SshKeys, usize), StoreError> {
    files::ensure_dir(dir)?;
    let mut made = 0;
    let mut one = |path: PathBuf, comment: String| -> Result<SshKey, StoreError> {
        if let Some(key) = load_pair(&path)? {
            return Ok(key);
        }
        let key = generate(&comment).map_err(|reason| StoreError::Generate { what: format!("SSH key {comment}"), reason })?;
        // The private key last: where it is, the pair is complete.
        files::write_atomic(&public_path(&path), line(&key.public).as_bytes(), PUBLIC)?;
        files::write_atomic(&path, key.private.expose().as_bytes(), SECRET)?;
        made += 1;
        Ok(SshKey { public: line(&key.public), ..key })
    };
    let client = one(client_path(dir), "ktcw-vm".to_owned())?;
    let hosts = nodes.iter().map(|node| Ok((node.clone(), one(host_path(dir, node), node.to_string())?)));
    let hosts = hosts.collect::<Result<_, StoreError>>()?;
    Ok((SshKeys { client, hosts }, made))
}

/// Loads all keys of `nodes`; a missing one is an error.
pub(super) fn load(dir: &Path, nodes: &[NodeName]) -> Result<SshKeys, StoreError> {
    files::check_dir(dir)?;
    let one = |path: PathBuf| -> Result<SshKey, StoreError> {
        let missing = || FileError::Io { action: "open", path: path.clone(), source: std::io::ErrorKind::NotFound.into() };
        Ok(load_pair(&path)?.ok_or_else(missing)?)
    };
    let client = one(client_path(dir))?;
    let hosts = nodes.iter().map(|node| Ok((node.clone(), one(host_path(dir, node))?)));
    Ok(SshKeys { client, hosts: hosts.collect::<Result<_, StoreError>>()? })
}

fn load_pair(path: &Path) -> Result<Option<SshKey>, StoreError> {
    let damaged = |path: &Path, what: &str| StoreError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let Some(private) = if_there(files::read_secret(path))? else { return Ok(None) };
    if !private.expose().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        || !private.expose().trim_end().ends_with("-----END OPENSSH PRIVATE KEY-----")
    {
        return Err(damaged(path, "not an OpenSSH private key"));
    }
    let public_path = public_path(path);
    let Some(public) = if_there(files::read_text(&public_path))? else {
        return Err(damaged(&public_path, "the private key is there and its public half is not"));
    };
    let words: Vec<_> = public.split_whitespace().collect();
    if public.trim_end().lines().count() != 1 || words.len() < 2 || !words[0].starts_with("ssh-") {
        return Err(damaged(&public_path, "not one line of an OpenSSH public key"));
    }
    Ok(Some(SshKey { private, public: line(&public) }))
}

/// With exactly one line end.
fn line(public: &str) -> String {
    format!("{}\n", public.trim_end())
}
