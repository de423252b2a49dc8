//! The store edge: a cluster's directory on this computer, and the journal, lock and keys in it.
//! `cli`, `apply` and drills open a `ClusterDir`; `pki` keeps its files through `files`.
//! It holds no opinion on clusters: it keeps what it is given, whole, private and found again.

mod above;
mod adopt;
mod cluster;
#[cfg(test)]
pub(crate) mod crash;
mod etcd_snapshots;
pub mod failpoint;
pub mod files;
pub mod journal;
mod labs;
mod lock;
mod passing;
mod sealed;
pub mod shared;
mod snapshots;
mod ssh;

pub use cluster::{ClusterDir, Listed, default_parent, list, parse_plan, parse_spec};
pub use failpoint::{Class, at as failpoint};
pub use labs::parse_kept;
pub use lock::{Holder, Lock};
pub use passing::finish_removals;
pub use snapshots::parse_snapshot;
pub use ssh::{SshKey, SshKeys};

use files::FileError;
use journal::JournalError;
use std::path::PathBuf;

/// An id nobody has: of a cluster at its making, or of one run in the journal. Everything else is derived from names.
#[expect(clippy::disallowed_methods, reason = "the one place that draws")]
pub fn draw_id() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another process changes the cluster. Exit code 75.
    #[error("{} is in use by {}", .dir.display(), .holder.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string))]
    Busy { dir: PathBuf, holder: Option<Holder> },
    /// What was read of it before its lock was had is not what is there now. Exit code 75.
    #[error("{} was changed by another process meanwhile", .path.display())]
    Changed { path: PathBuf },
    #[error("there is no cluster {name} in {}", .parent.display())]
    NoCluster { name: String, parent: PathBuf },
    #[error("cluster {name} exists already in {}", .parent.display())]
    Exists { name: String, parent: PathBuf },
    /// It was removed while we waited for it.
    #[error("{} was removed meanwhile", .path.display())]
    Vanished { path: PathBuf },
    #[error("{} is not a cluster's directory: {why}", .path.display())]
    NotOurs { path: PathBuf, why: String },
    #[error("{} was written by a newer version of this program (format {found}, known up to {known})", .path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{} is damaged: {what}", .path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("failed to make {what}: {reason}")]
    Generate { what: String, reason: String },
    /// A file of the user's that we would have changed, and did not.
    #[error("left {} alone: {why}", .path.display())]
    Refused { path: PathBuf, why: String },
    #[error("{} is being changed by another program ({} exists)", .path.display(), .lock.display())]
    Shared { path: PathBuf, lock: PathBuf },
    /// Neither `XDG_STATE_HOME` nor `HOME` says where to keep state.
    #[error("no place to keep state: neither XDG_STATE_HOME nor HOME is an absolute path")]
    NoHome,
}

impl StoreError {
    /// There was no room for what should have been written.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::File(error) => error.is_full(),
            StoreError::Journal(error) => error.is_full(),
            _ => false,
        }
    }

    /// What to do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            StoreError::File(error) => error.hint(),
            StoreError::Journal(error) => error.hint(),
            StoreError::Busy { holder, .. } => Some(match holder {
                Some(holder) => {
                    format!("wait until process {} has finished, or stop it with: kill -INT {}", holder.pid, holder.pid)
                }
                None => "wait until it has finished; commands that only read are not held up".to_owned(),
            }),
            StoreError::NoCluster { .. } => {
                Some("`ktcw-vm list` shows the clusters there; `ktcw-vm up` makes one; --state-dir looks elsewhere".to_owned())
            }
            StoreError::Exists { .. } => Some("`ktcw-vm up` goes on with it; --cluster takes another name".to_owned()),
            StoreError::Changed { .. } => Some("nothing was done; run the command again".to_owned()),
            StoreError::Vanished { .. } => Some("run the command again".to_owned()),
            StoreError::NotOurs { path, .. } => Some(format!("look at {} and remove or rename it yourself", path.display())),
            StoreError::Newer { .. } => Some("use the newer ktcw-vm for this cluster".to_owned()),
            // Who the cluster is stands there alone: `down` cannot say any more what carries its mark.
            StoreError::Damaged { path, .. } if path.ends_with(cluster::ABOUT) => Some(format!(
                "restore {} from a backup; without one move {} away: ktcw-vm down then finds what is in libvirt by its mark",
                path.display(),
                path.parent().unwrap_or(path).display()
            )),
            StoreError::Damaged { path, .. } => {
                Some(format!("restore {} from a backup, or take the cluster down", path.display()))
            }
            StoreError::Shared { lock, .. } => {
                Some(format!("run it again; if no kubectl is running, a crash left it: remove {}", lock.display()))
            }
            StoreError::Generate { .. } | StoreError::Refused { .. } => None,
            StoreError::NoHome => Some("give --state-dir DIRECTORY, or set KTCW_STATE_DIR".to_owned()),
        }
    }
}
