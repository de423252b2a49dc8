//! The JSON files of a cluster's directory: each says its format first and ends with the sum of what it says.
//! `ClusterDir` reads and writes them through it, and so do the records beside it.
//! It knows the frame of a file and nothing of what is in one.

use super::StoreError;
use super::files::{self, SECRET, if_there};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Format that this program writes and the newest it reads.
pub(super) const FORMAT: u32 = 1;

/// Writes it whole or not at all, its owner's alone.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| StoreError::Generate { what: path.display().to_string(), reason: error.to_string() })?;
    Ok(files::write_atomic(path, seal(&text).as_bytes(), SECRET)?)
}

const SEAL: &str = ",\n  \"sum\": \"";

/// The last line of an object holds the sum of all before it: a bit that flipped in a number is no other number then.
fn seal(text: &str) -> String {
    let body = text.strip_suffix("\n}").unwrap_or(text);
    format!("{body}{SEAL}{}\"\n}}\n", sum(body))
}

/// `false`: it carries a sum, and another one. Without one it is taken as it is, so that a person may edit it.
fn unbroken(text: &str) -> bool {
    let sealed = text.rsplit_once(SEAL).and_then(|(body, rest)| Some((body, rest.strip_suffix("\"\n}\n")?)));
    sealed.is_none_or(|(body, found)| found == sum(body))
}

fn sum(body: &str) -> String {
    Sha256::digest(body).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    if_there(files::read_secret(path))?.map(|text| parse_json(path, text.expose())).transpose()
}

/// Looks at the format first, so that a newer file is called newer and not damaged. The path is for the message.
pub(super) fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, StoreError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = |error: serde_json::Error| StoreError::Damaged { path: path.to_owned(), what: error.to_string() };
    if !unbroken(text) {
        let what = "its content is not that of its sum (if you changed it by hand, take out the line \"sum\")".to_owned();
        return Err(StoreError::Damaged { path: path.to_owned(), what });
    }
    let Format { format } = serde_json::from_str(text).map_err(damaged)?;
    if format > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found: format, known: FORMAT });
    }
    serde_json::from_str(text).map_err(damaged)
}
