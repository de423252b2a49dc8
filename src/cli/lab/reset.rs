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
use crate::lab::{Book, Phase, Rewind};
use crate::snapshot::{self as snapshots, open_restore};
use jiff::Timestamp;
use serde_json::json;

pub async fn reset(global: &Global, args: &LabReset) -> Result<u8, CliError> {
    // A restore that was cut off is in the way, unless it is our own.
    let ours = |session: &Session| {
        let book = book(&session.dir)?;
        let open =
            book.running().map(|open| open.lab.clone()).or_else(|error| book.open.clone().map(|open| open.lab).ok_or(error));
        let own = snapshot_of(&open.map_err(refused(&session.dir))?)?;
        let history = session.dir.history()?;
        match open_restore(&history) {
            Some(name) if name == own.as_str() => Ok(()),
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
    let rewind = book.may_reset(there, args.keep).map_err(refused(dir))?;
    let name = snapshot_of(&lab)?;
    let mut code = exit::OK;
    let mut enter = |phase: Phase| {
        if let Some(open) = &mut book.open {
            open.phase = phase;
        }
        dir.save_labs(&opened.lock, &book)
    };
    match rewind {
        Rewind::Nothing { may_be_paused: true } => there = woken(&opened, &lab).await?,
        Rewind::Nothing { may_be_paused: false } | Rewind::Keep => {}
        Rewind::Restore => {
            enter(Phase::Rewinding)?;
            let restored = snapshot::restore_opened(&opened, &name, args.no_verify).await.map_err(|error| {
                error.hint(format!("ktcw-vm lab reset -c {} again; ktcw-vm down -c {0} removes everything", dir.name()))
            })?;
            code = restored.code();
            if global.format == Format::Text {
                restored.lines(&opened.session.plan).iter().for_each(|line| render::print_line(line));
            }
        }
    }
    enter(Phase::Closing)?;
    if there {
        let (journal, _) = opened.journal("lab")?;
        let removed = snapshots::remove(&snapshot::desk(&opened, &journal), &name).await;
        removed.map_err(|error| {
            CliError::from(error).left("a part of the lab's snapshot").hint(format!("ktcw-vm lab reset -c {}", dir.name()))
        })?;
    }
    book.close(Timestamp::now());
    dir.save_labs(&opened.lock, &book)?;
    let how = match rewind {
        Rewind::Restore => "the cluster is as it was before",
        Rewind::Nothing { .. } => "nothing of it was in the cluster",
        Rewind::Keep => "the cluster stays as it is",
    };
    match global.format {
        Format::Json => render::print_line(
            &json!({ "cluster": dir.name(), "lab": lab.name, "restored": rewind == Rewind::Restore }).to_string(),
        ),
        Format::Text => render::print_line(&format!("lab {} is closed: {how}", lab.name)),
    }
    Ok(code)
}
