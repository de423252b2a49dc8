//! The whole cluster in one moment: saved (memory and disks of all machines), gone back to, listed as a tree, removed.
//! The verb `snapshot` calls it; `up`, `start` and `verify` ask it whether something was cut off.
//! It works on machines through `life`, and leaves how the members are to `verify` and what is printed to `cli`.

pub mod compare;
mod parts;
mod record;
mod room;
mod work;

pub use parts::{Parts, complete, listed, parts};
pub use record::{Fits, Name, Record, State, chosen, stop_fitting, tree};
pub use room::{Room, at_most, room};
pub use work::{Desk, OpenRestore, RESTORE, open_restore, remove, restore, save, tidy, unfinished};

use crate::host::HostError;
use crate::life::LifeError;
use crate::spec::{ClusterName, NodeName};
use crate::store::StoreError;
use crate::store::journal::JournalError;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Life(#[from] LifeError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the journal could not be written: {0}")]
    Journal(#[from] JournalError),
    #[error(
        "snapshot {name} cannot be gone back to: {} has no part in it, as its machine was made anew since or is gone",
        listed(nodes)
    )]
    Lacking { cluster: ClusterName, name: Name, nodes: Vec<NodeName> },
}

impl SnapshotError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            SnapshotError::Life(error) => error.hint(),
            SnapshotError::Host(error) => error.hint(),
            SnapshotError::Store(error) => error.hint(),
            SnapshotError::Journal(error) => error.hint(),
            SnapshotError::Lacking { cluster, name, .. } => Some(format!(
                "ktcw-vm snapshot list -c {cluster} says which can be gone back to; ktcw-vm snapshot delete {name} -c {cluster} removes \
                 what is left of it; where a restore was cut off another snapshot ends it, or ktcw-vm down"
            )),
        }
    }
}

#[cfg(test)]
mod tests;
