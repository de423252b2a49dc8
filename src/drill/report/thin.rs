//! What a report leaves out when it would be longer than this program reads again: an hour of load is hundreds of megabytes.
//! `drill run` saves and prints what comes out of `fitted`; `drill report` reads files up to the same length.
//! The judgement was made of all that was seen and stays whole; what is left out is said among the notes.

use super::{Report, ReportError};
use crate::drill::record::{Note, Record};

/// Bytes of the longest report that is written or read.
pub const LONGEST: u64 = 256 << 20;
/// One in a million is as good as nothing.
const HALVINGS: u32 = 20;

/// A report that can be read again.
pub struct Fitted {
    pub report: Report,
    pub json: String,
    /// What is not in it; `None`: all is.
    pub left_out: Option<String>,
}

/// The report as it is, or as much of it as fits into so many bytes.
pub fn fitted(mut report: Report, longest: u64) -> Result<Fitted, ReportError> {
    let fits = |json: &str| json.len() as u64 <= longest;
    let json = report.to_json()?;
    if fits(&json) {
        return Ok(Fitted { report, json, left_out: None });
    }
    drop(json);
    // What watches delivered has been compared with the final log, which has the same changes.
    report.record.watches.iter_mut().for_each(|watch| watch.changes.clear());
    let notes = report.record.notes.len();
    for halvings in 0..=HALVINGS {
        if halvings > 0 {
            halve(&mut report.record);
        }
        let left_out = said(halvings, longest);
        report.record.notes.truncate(notes);
        report.record.notes.push(Note { at: report.record.marks.end, text: left_out.clone() });
        let json = report.to_json()?;
        if fits(&json) {
            return Ok(Fitted { report, json, left_out: Some(left_out) });
        }
    }
    Err(ReportError::TooLong { run: report.record.run, mib: longest >> 20 })
}

fn said(halvings: u32, longest: u64) -> String {
    let kept = match halvings {
        0 => String::new(),
        n => format!("; of requests, samples, probes and the log one in {} is kept", 1u64 << n),
    };
    format!(
        "a report longer than {} MiB is not read again: what watches delivered is left out of it{kept}; all was judged",
        longest >> 20
    )
}

/// Evenly, so that what is drawn keeps its shape.
fn halve(record: &mut Record) {
    every_other(&mut record.ops);
    every_other(&mut record.samples);
    every_other(&mut record.after.log);
    if let Some(kube) = &mut record.kube {
        every_other(&mut kube.probes);
        every_other(&mut kube.samples);
    }
}

fn every_other<T>(all: &mut Vec<T>) {
    let mut keep = false;
    all.retain(|_| {
        keep = !keep;
        keep
    });
}
