//! `lab reset`: the machines back to the lab's snapshot, then the snapshot and the record go.
//! Killed at any point it is finished by the next one; what phase it is in stands in the book before it is done.
//! With `--keep` the cluster stays as it is and only the lab is closed.

use super::start::{whole, woken};
use super::{book, refused, snapshot_of};
use crate::cli::args::{Format, Global, LabReset};
use crate::cli::error::CliError;
use crate::cli::opened::{Opened, no_open_restore};
use crate::cli::session::Session;
use crate::cli::{exit, render, snapshot};
use crate::lab::{Book, Lab, Open, Phase, Rewind};
use crate::snapshot::{self as snapshots, Name, open_restore};
use crate::store::ClusterDir;
use crate::store::journal::{Entry, History, Journal, JournalError, Record};
use jiff::Timestamp;
use serde_json::json;

pub async fn reset(global: &Global, args: &LabReset) -> Result<u8, CliError> {
    // A restore that was cut off is in the way, unless it is our own.
    let mut mixed = false;
    let ours = |session: &Session| {
        mixed = false;
        let book = book(&session.dir)?;
        let open =
            book.running().map(|open| open.lab.clone()).or_else(|error| book.open.clone().map(|open| open.lab).ok_or(error));
        let own = snapshot_of(&open.map_err(refused(&session.dir))?)?;
        let history = session.dir.history()?;
        match open_restore(&history) {
            Some(open) if open.snapshot == own.as_str() => {
                mixed = true;
                Ok(())
            }
            _ => no_open_restore(&history, session.plan.cluster.as_str()),
        }
    };
    let opened = Opened::new(global, "lab reset", ours)?;
    opened.without_fault()?;
    let dir = &opened.session.dir;
    let mut book: Book = book(dir)?;
    let Some(lab) = book.open.as_ref().map(|open| open.lab.clone()) else {
        return Err(refused(dir)(crate::lab::Refused::None));
    };
    let mut there = whole(&opened, &lab)?;
    let rewind = book.may_reset(there, args.keep, mixed).map_err(refused(dir))?;
    let name = snapshot_of(&lab)?;
    let mut code = exit::OK;
    let enter = |book: &mut Book, change: &dyn Fn(&mut Open)| {
        book.open.as_mut().map(change);
        dir.save_labs(&opened.lock, book)
    };
    match rewind {
        Rewind::Nothing { may_be_paused: true } => there = woken(&opened, &lab).await?,
        Rewind::Nothing { may_be_paused: false } | Rewind::Keep => {}
        Rewind::Restore => {
            // What is refused leaves the lab as it is, to be solved or kept.
            let record = snapshot::may_restore(&opened, &name).await.map_err(|error| keep_named(error, dir, mixed))?;
            enter(&mut book, &|open| open.phase = Phase::Rewinding)?;
            let restored = snapshot::go_back(&opened, record, args.no_verify).await.map_err(|error| {
                error.hint(format!("ktcw-vm lab reset -c {} again; ktcw-vm down -c {0} removes everything", dir.name()))
            })?;
            code = restored.code();
            if global.format == Format::Text {
                restored.lines(&opened.session.plan).iter().for_each(|line| render::print_line(line));
            }
            enter(&mut book, &|open| open.rewound(code == exit::OK))?;
            if code != exit::OK {
                return Err(not_well(code, &lab.name, &name, dir));
            }
        }
    }
    enter(&mut book, &|open| open.phase = Phase::Closing)?;
    let (journal, history) = opened.journal("lab")?;
    if there {
        let removed = snapshots::remove(&snapshot::desk(&opened, &journal), &name).await;
        removed.map_err(|error| {
            CliError::from(error).left("a part of the lab's snapshot").hint(format!("ktcw-vm lab reset -c {}", dir.name()))
        })?;
    }
    faults_are_over(&journal, &history, &lab)?;
    book.close(Timestamp::now());
    dir.save_labs(&opened.lock, &book)?;
    let how = match rewind {
        Rewind::Restore => "the cluster is as it was before",
        Rewind::Nothing { .. } => "nothing of it was in the cluster",
        Rewind::Keep => "the cluster stays as it is, with what is left of the lab's faults, some of it until the next boot",
    };
    match global.format {
        Format::Json => render::print_line(
            &json!({ "cluster": dir.name(), "lab": lab.name, "restored": rewind == Rewind::Restore }).to_string(),
        ),
        Format::Text => render::print_line(&format!("lab {} is closed: {how}", lab.name)),
    }
    Ok(code)
}

/// A start that was killed among its faults has left their step open, and nobody else ends it.
fn faults_are_over(journal: &Journal, history: &History, lab: &Lab) -> Result<(), JournalError> {
    let own = lab.step();
    let not_done = history.pending().into_iter().chain(history.failed());
    let open = |record: &Record| matches!(&record.entry, Entry::Step { step, .. } if *step == own);
    if not_done.into_iter().any(open) { journal.done(&own, None) } else { Ok(()) }
}

/// A refusal to go back, with the way out that it leaves.
fn keep_named(error: CliError, dir: &ClusterDir, mixed: bool) -> CliError {
    let cluster = dir.name();
    let way_out = match mixed {
        true => format!("ktcw-vm down -c {cluster} removes everything"),
        false => format!("ktcw-vm lab reset --keep -c {cluster} closes the lab and leaves the cluster as it is"),
    };
    let hint = error.hint.as_ref().map_or_else(String::new, |hint| format!("{hint}; "));
    error.hint(format!("{hint}{way_out}"))
}

/// The machines are back, and something about them is not as it was.
fn not_well(code: u8, lab: &str, name: &Name, dir: &ClusterDir) -> CliError {
    let cluster = dir.name();
    CliError::new(
        code,
        format!("the machines are back in snapshot {name}, and not all is well with them: lab {lab} is not closed"),
    )
    .left(format!("snapshot {name}"))
    .hint(format!(
        "ktcw-vm verify -c {cluster} says more; ktcw-vm lab reset -c {cluster} goes back again; \
             ktcw-vm lab reset --keep -c {cluster} closes the lab as it is"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::journal::read;

    #[test]
    fn faults_that_a_killed_start_has_left_open_are_over_with_the_reset() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.jsonl");
        let lab = crate::lab::catalogue::labs(None).expect("built in").swap_remove(0);
        let (journal, history) = Journal::open(&path, crate::store::draw_id(), "lab").expect("opens");
        faults_are_over(&journal, &history, &lab).expect("nothing to say");
        assert_eq!(read(&path).expect("reads").records, []);
        journal.begin(&lab.step(), None).expect("written");
        journal.begin("lab another", None).expect("written");
        faults_are_over(&journal, &read(&path).expect("reads"), &lab).expect("written");
        assert_eq!(read(&path).expect("reads").pending().len(), 1, "another's is none of its business");
    }
}
