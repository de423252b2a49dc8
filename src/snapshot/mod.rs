//! The whole cluster in one moment: saved (memory and disks of all machines), gone back to, listed as a tree, removed.
//! The verb `snapshot` calls it; `up`, `start` and `verify` ask it whether something was cut off.
//! It works on machines through `life`, and leaves how the members are to `verify` and what is printed to `cli`.

pub mod compare;
mod record;
mod room;
mod work;

pub use record::{Fits, Name, Record, State, chosen, tree};
pub use room::{Room, at_most, room};
pub use work::{Desk, RESTORE, open_restore, remove, restore, save, tidy};

use crate::host::HostError;
use crate::life::LifeError;
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
}

impl SnapshotError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            SnapshotError::Life(error) => error.hint(),
            SnapshotError::Host(error) => error.hint(),
            SnapshotError::Store(error) => error.hint(),
            SnapshotError::Journal(error) => error.hint(),
        }
    }
}

#[cfg(test)]
mod tests;
