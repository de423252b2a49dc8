//! A cluster as a whole, switched: what state its machines are in, stopped in an order that keeps quorum, paused, woken, clocks put right.
//! The verbs `stop`, `start`, `pause`, `resume` and `snapshot` call it; `status`, `verify` and `list` use its words for states.
//! It makes and removes no machine, and asks no component how it is: that is `verify`.

mod clocks;
mod machines;
pub mod power;
mod rest;
mod stop;

pub use clocks::{CLOCKS, PAUSE, RESUME, Shift, WAKE, awaited, in_time, late, repair, to_be_set};
pub use machines::{Machines, Span, window};
pub use rest::put_to_rest;
pub use stop::{How, Stopped, Wave, quorum_left, stop, waves};

use crate::host::HostError;
use crate::store::journal::JournalError;

#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the journal could not be written: {0}")]
    Journal(#[from] JournalError),
}

impl LifeError {
    /// What libvirt's or the journal's refusal most likely means.
    pub fn hint(&self) -> Option<String> {
        match self {
            LifeError::Host(error) => error.hint(),
            LifeError::Journal(error) => error.hint(),
        }
    }
}

#[cfg(test)]
mod tests;
