//! Records of a cluster's snapshots as files: one each, and which of them the cluster goes on from.
//! `snapshot` keeps its records through these methods of `ClusterDir`; what is in a record is its own.
//! It knows nothing of machines: a record is as whole as its content says.

use super::cluster::ClusterDir;
use super::files::{self, FileError, if_there};
use super::sealed::{FORMAT, parse_json, read_json, write_json};
use super::{Lock, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// No snapshot's name begins with a dot.
const CURRENT: &str = ".current.json";

#[derive(Serialize, Deserialize)]
struct RecordFile<T> {
    format: u32,
    snapshot: T,
}

#[derive(Serialize, Deserialize)]
struct CurrentFile {
    format: u32,
    current: Option<String>,
}

/// The record in a snapshot's file, from its text.
pub fn parse_snapshot<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    Ok(parse_json::<RecordFile<T>>(Path::new("snapshot"), text)?.snapshot)
}

/// A record by its file's name, or why it cannot be read.
pub type Read<T> = (String, Result<T, StoreError>);

/// Every `NAME.json` of a directory by its name, without those whose name begins with a dot; a directory that is not there has none.
/// `open` takes the record out of its file.
pub(super) fn records<F: DeserializeOwned, T>(dir: &Path, open: impl Fn(F) -> T) -> Result<Vec<Read<T>>, StoreError> {
    let failed = |source| FileError::Io { action: "list", path: dir.to_owned(), source };
    let Some(entries) = if_there(fs::read_dir(dir).map_err(failed))? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in entries {
        let file = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let Some(name) = file.strip_suffix(".json").filter(|name| !name.starts_with('.')) else { continue };
        match read_json::<F>(&dir.join(&file)) {
            Ok(Some(record)) => all.push((name.to_owned(), Ok(open(record)))),
            Ok(None) => {}
            Err(error) => all.push((name.to_owned(), Err(error))),
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

impl ClusterDir {
    /// Every record by its file's name; one that cannot be read is told with the reason.
    pub fn load_snapshots<T: DeserializeOwned>(&self) -> Result<Vec<Read<T>>, StoreError> {
        records(&self.snapshots(), |file: RecordFile<T>| file.snapshot)
    }

    /// Writes a record, whole or not at all. `name` is a file's name: the caller has checked it.
    pub fn save_snapshot<T: Serialize>(&self, lock: &Lock, name: &str, record: &T) -> Result<(), StoreError> {
        let path = self.record(lock, name)?;
        files::ensure_dir(&self.snapshots())?;
        write_json(&path, &RecordFile { format: FORMAT, snapshot: record })
    }

    /// Twice is once.
    pub fn remove_snapshot(&self, lock: &Lock, name: &str) -> Result<(), StoreError> {
        let path = self.record(lock, name)?;
        let io = |source| FileError::Io { action: "remove", path: path.clone(), source };
        if if_there(fs::remove_file(&path).map_err(io))?.is_some() {
            files::sync_dir(&self.snapshots())?;
        }
        Ok(())
    }

    /// The snapshot that the cluster was saved as or restored to last.
    pub fn current_snapshot(&self) -> Result<Option<String>, StoreError> {
        Ok(read_json::<CurrentFile>(&self.snapshots().join(CURRENT))?.and_then(|file| file.current))
    }

    pub fn set_current_snapshot(&self, lock: &Lock, current: Option<&str>) -> Result<(), StoreError> {
        self.guarded(lock)?;
        files::ensure_dir(&self.snapshots())?;
        write_json(&self.snapshots().join(CURRENT), &CurrentFile { format: FORMAT, current: current.map(str::to_owned) })
    }

    fn record(&self, lock: &Lock, name: &str) -> Result<PathBuf, StoreError> {
        self.guarded(lock)?;
        let path = self.snapshots().join(format!("{name}.json"));
        let inside = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if inside { Ok(path) } else { Err(StoreError::NotOurs { path, why: "not a snapshot's name".to_owned() }) }
    }
}
