//! A drill's report: the record and its judgement together, and the forms they are shown in.
//! `cli` prints the text, writes the JSON and the HTML page, and compares two reports.
//! It only shows: every number in it is the record's or the judge's.

mod compare;
mod hint;
mod html;
mod series;
mod svg;
mod text;
mod thin;

pub use compare::compare;
pub use hint::hint;
pub use html::html;
pub use series::{Ran, Runs, SERIES_FORM, Series, Spread};
pub use text::{text, timeline};
pub use thin::{Fitted, LONGEST, fitted};

use super::judge::{Judgement, judge};
use super::record::Record;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Says which form the file has; it changes when readers would misunderstand.
pub const FORM: &str = "ktcw-vm/drill/1";

/// Everything about one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    pub form: String,
    pub judgement: Judgement,
    pub record: Record,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{what} is not a drill's report: {reason}")]
    Malformed { what: String, reason: String },
    #[error("the page could not be made: {0}")]
    Page(String),
    #[error("the report of {run} is longer than {mib} MiB, also with almost all that was seen left out")]
    TooLong { run: String, mib: u64 },
}

impl Report {
    pub fn new(record: Record) -> Report {
        Report { form: FORM.to_owned(), judgement: judge(&record), record }
    }

    pub fn to_json(&self) -> Result<String, ReportError> {
        serde_json::to_string(self).map_err(|error| ReportError::Page(error.to_string()))
    }

    /// Reads a saved report; `what` names it in the error.
    pub fn from_json(what: &str, text: &str) -> Result<Report, ReportError> {
        let malformed = |reason: String| ReportError::Malformed { what: what.to_owned(), reason };
        let report: Report = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if report.form == FORM {
            Ok(report)
        } else {
            Err(malformed(format!("its form is {:?}, this program reads {FORM:?}", report.form)))
        }
    }
}

/// JSON schema of a saved report.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Report)
}

/// JSON schema of several runs.
pub fn series_schema() -> schemars::Schema {
    schemars::schema_for!(Runs)
}

#[cfg(test)]
mod tests;
