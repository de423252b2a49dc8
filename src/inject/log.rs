//! The fault log of drills, kept in the cluster's journal: on the disk before anything breaks, struck out when it is healed.
//! `cli` makes one from the journal that it holds under the cluster's lock.
//! It reads the file again each time: what an earlier process left open counts as much as our own.

use crate::drill::injector::{FaultLog, FaultLogError, Pending};
use crate::store::journal::{self, Entry, Journal};
use std::path::PathBuf;
use std::sync::Arc;

/// Undo records of drills have keys that begin with it.
const KEY: &str = "drill ";

pub struct JournalLog {
    pub journal: Arc<Journal>,
    pub path: PathBuf,
}

impl JournalLog {
    /// With its causes: that it could not be written is half of it.
    fn error(&self, error: impl std::error::Error + 'static) -> FaultLogError {
        let all = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let reason = all.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        FaultLogError { path: self.path.display().to_string(), reason }
    }
}

impl FaultLog for JournalLog {
    fn record(&self, fault: &Pending) -> Result<(), FaultLogError> {
        let undo = serde_json::to_value(fault).map_err(|error| self.error(error))?;
        self.journal.undo(&format!("{KEY}{}", fault.run), None, undo).map_err(|error| self.error(error))
    }

    fn clear(&self, run: &str) -> Result<(), FaultLogError> {
        self.journal.undone(&format!("{KEY}{run}")).map_err(|error| self.error(error))
    }

    fn pending(&self) -> Result<Vec<Pending>, FaultLogError> {
        let history = journal::read(&self.path).map_err(|error| self.error(error))?;
        open(&history).map_err(|error| self.error(error))
    }
}

/// Faults that the journal has open, oldest first.
pub fn open(history: &journal::History) -> Result<Vec<Pending>, serde_json::Error> {
    let undo = |record: &journal::Record| match &record.entry {
        Entry::Undo { key, undo, .. } if key.starts_with(KEY) => Some(serde_json::from_value(undo.clone())),
        _ => None,
    };
    history.undos().into_iter().filter_map(undo).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::act::Act;
    use crate::spec::NodeName;

    #[test]
    fn what_one_process_recorded_another_finds_until_it_is_struck_out() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("journal.jsonl");
        let opened = || {
            let (journal, _) = Journal::open(&path, crate::store::draw_id(), "drill").expect("opens");
            JournalLog { journal: Arc::new(journal), path: path.clone() }
        };
        let fault = |run: &str| Pending {
            run: run.to_owned(),
            drill: "isolate-leader".to_owned(),
            heal: vec![
                Act::Uncut { node: NodeName::controller(1) },
                Act::Start { node: NodeName::controller(1), process: crate::drill::catalogue::Process::Etcd },
            ],
            tidy: vec![Act::AwaitHealthy],
        };
        let first = opened();
        first.journal.undo("something else", None, serde_json::json!({})).expect("written");
        first.record(&fault("a")).expect("recorded");
        first.record(&fault("b")).expect("recorded");
        drop(first);
        let second = opened();
        assert_eq!(second.pending().expect("reads"), [fault("a"), fault("b")]);
        second.clear("a").expect("cleared");
        assert_eq!(opened().pending().expect("reads"), [fault("b")]);
        // Others are hit than were to be.
        let instead = Pending { heal: vec![Act::Uncut { node: NodeName::controller(2) }], ..fault("b") };
        second.record(&instead).expect("recorded");
        assert_eq!(opened().pending().expect("reads"), [instead]);
        second.clear("b").expect("cleared");
        assert_eq!(opened().pending().expect("reads"), []);
    }
}
