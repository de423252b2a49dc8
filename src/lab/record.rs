//! What is written down about labs: the one that is open, how far its beginning or its end has come, and what was done before.
//! `cli lab` saves the book before each thing that it does, so that whoever comes after a crash knows what is on the machines.
//! Pure: every transition is a method, and what cannot be is refused in words.

use super::catalogue::Lab;
use super::grade::Score;
use crate::spec::NodeName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far the open lab is. Each is written before what it names is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The snapshot is being saved; nothing is broken.
    Saving,
    /// The faults are being made: some may be there.
    Breaking,
    /// It is to be solved.
    Open,
    /// The machines are going back to the snapshot.
    Rewinding,
    /// They are back; the snapshot and this record are to go.
    Closing,
}

/// The lab that is open, with all that it was when it was begun: its file may change meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    pub lab: Lab,
    pub phase: Phase,
    /// What drew who is hit.
    pub seed: u64,
    /// Empty until the faults begin.
    pub hit: Vec<NodeName>,
    pub begun: Timestamp,
    /// Hints that were shown.
    pub hints: usize,
    /// How often it was checked.
    pub looks: u32,
    pub best: u32,
    pub solved: Option<Timestamp>,
}

/// What came of a lab when it was last closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub best: u32,
    pub of: u32,
    pub hints: usize,
    pub looks: u32,
    pub solved: bool,
    pub closed: Timestamp,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Book {
    pub open: Option<Open>,
    #[serde(default)]
    pub done: BTreeMap<String, Done>,
}

/// What a start has to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nothing of it is there.
    Fresh,
    /// It was cut off while it saved: machines may be paused, the snapshot may be whole or not.
    Saving,
    /// It was cut off while it broke things: back to the snapshot first.
    Breaking,
}

/// How a lab is brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewind {
    /// Nothing was broken, or all is back already: only the snapshot goes.
    Nothing { may_be_paused: bool },
    /// To the snapshot.
    Restore,
    /// The cluster is kept as it is.
    Keep,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no lab is open")]
    None,
    #[error("lab {0} is open")]
    Open(String),
    #[error("lab {0} was being closed, and that was cut off or did not end well")]
    Closing(String),
    #[error("the start of lab {0} was cut off")]
    NotBegun(String),
    #[error("the snapshot of lab {0} is gone: there is nothing to go back to")]
    Gone(String),
}

impl Refused {
    /// The next thing to type.
    pub fn hint(&self, cluster: &str) -> String {
        match self {
            Refused::None => format!("ktcw-vm lab list -c {cluster}; ktcw-vm lab start NAME -c {cluster}"),
            Refused::Open(_) => format!("ktcw-vm lab status -c {cluster}; ktcw-vm lab reset -c {cluster} takes the cluster back"),
            Refused::Closing(_) => format!("ktcw-vm lab reset -c {cluster} finishes it"),
            Refused::NotBegun(name) => {
                format!(
                    "ktcw-vm lab start {name} -c {cluster} begins again; ktcw-vm lab reset -c {cluster} takes the cluster back"
                )
            }
            Refused::Gone(_) => format!("ktcw-vm lab reset --keep -c {cluster} closes the lab and leaves the cluster as it is"),
        }
    }
}

impl Book {
    /// Whether a lab of that name can be begun, and from where.
    pub fn may_start(&self, name: &str) -> Result<Again, Refused> {
        match &self.open {
            None => Ok(Again::Fresh),
            Some(open) if matches!(open.phase, Phase::Rewinding | Phase::Closing) => Err(Refused::Closing(open.lab.name.clone())),
            Some(open) if open.lab.name != name || open.phase == Phase::Open => Err(Refused::Open(open.lab.name.clone())),
            Some(open) if open.phase == Phase::Saving => Ok(Again::Saving),
            Some(_) => Ok(Again::Breaking),
        }
    }

    /// The lab that is open, as what keeps other verbs from their work.
    pub fn in_the_way(&self) -> Option<Refused> {
        match self.running() {
            Err(Refused::None) => None,
            Ok(open) => Some(Refused::Open(open.lab.name.clone())),
            Err(cut_off) => Some(cut_off),
        }
    }

    /// The lab to be solved now.
    pub fn running(&self) -> Result<&Open, Refused> {
        match &self.open {
            None => Err(Refused::None),
            Some(open) => match open.phase {
                Phase::Open => Ok(open),
                Phase::Saving | Phase::Breaking => Err(Refused::NotBegun(open.lab.name.clone())),
                Phase::Rewinding | Phase::Closing => Err(Refused::Closing(open.lab.name.clone())),
            },
        }
    }

    pub fn running_mut(&mut self) -> Result<&mut Open, Refused> {
        self.running()?;
        self.open.as_mut().ok_or(Refused::None)
    }

    /// How the open lab ends. `whole`: its snapshot is there. `mixed`: a restore of it was cut off, and machines may be of two
    /// moments.
    pub fn may_reset(&self, whole: bool, keep: bool, mixed: bool) -> Result<Rewind, Refused> {
        let open = self.open.as_ref().ok_or(Refused::None)?;
        match open.phase {
            Phase::Saving => Ok(Rewind::Nothing { may_be_paused: true }),
            Phase::Closing => Ok(Rewind::Nothing { may_be_paused: false }),
            // Machines of two moments cannot be kept: such a rewind is finished, as long as there is something to go back to.
            Phase::Breaking | Phase::Open | Phase::Rewinding if whole && (mixed || !keep) => Ok(Rewind::Restore),
            Phase::Breaking | Phase::Open | Phase::Rewinding if keep => Ok(Rewind::Keep),
            _ => Err(Refused::Gone(open.lab.name.clone())),
        }
    }

    /// Whether a snapshot is the one that the open lab goes back to.
    pub fn goes_back_to(&self, snapshot: &str) -> bool {
        self.open.as_ref().is_some_and(|open| open.lab.snapshot() == snapshot)
    }

    /// Takes the open lab out, and keeps what came of it if it had begun at all.
    pub fn close(&mut self, now: Timestamp) {
        let Some(open) = self.open.take() else { return };
        if open.looks == 0 && open.hints == 0 {
            return;
        }
        let of = open.lab.checks.iter().map(|check| u32::from(check.points)).sum();
        let Open { lab, best, hints, looks, solved, .. } = open;
        self.done.insert(lab.name, Done { best, of, hints, looks, solved: solved.is_some(), closed: now });
    }
}

impl Open {
    /// After the machines went back. Where not all is well with them the snapshot is still needed, and the next reset goes back again.
    pub fn rewound(&mut self, well: bool) {
        self.phase = if well { Phase::Closing } else { Phase::Rewinding };
    }

    /// Counts a look.
    pub fn looked(&mut self, score: &Score, now: Timestamp) {
        self.looks = self.looks.saturating_add(1);
        self.best = self.best.max(score.got);
        if score.done {
            self.solved = self.solved.or(Some(now));
        }
    }

    /// The next hint with its number, counted as shown; after the last, nothing.
    pub fn next_hint(&mut self) -> Option<(usize, &str)> {
        let hint = self.lab.hints.get(self.hints)?;
        self.hints += 1;
        Some((self.hints, hint))
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
