//! etcd's own snapshots in the cluster's directory: the file, and a record beside it that comes last and so says that it is whole.
//! `cli` keeps them through these methods of `ClusterDir`; what is in a record is its own.
//! They hold all of the cluster's secrets: private from their first byte, gone with the directory.

use super::cluster::{ClusterDir, io_error};
use super::files::{self, FileError, if_there};
use super::sealed::{FORMAT, write_json};
use super::snapshots::{Read, records};
use super::{Lock, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;

#[derive(Serialize, Deserialize)]
struct RecordFile<T> {
    format: u32,
    etcd_snapshot: T,
}

impl ClusterDir {
    pub(super) fn etcd_snapshots(&self) -> PathBuf {
        self.path().join("etcd-snapshots")
    }

    /// Where the file of that name is, or is to be; its directory is made. `name` is a file's name: the caller has checked it.
    pub fn etcd_snapshot_file(&self, lock: &Lock, name: &str) -> Result<PathBuf, StoreError> {
        self.guarded(lock)?;
        files::ensure_dir(&self.etcd_snapshots())?;
        Ok(self.etcd_snapshots().join(format!("{name}.db")))
    }

    /// Bytes that can still be written to the file system that the directory is on.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let seen = nix::sys::statvfs::statvfs(self.path())
            .map_err(|error| io_error("read the free space of", self.path(), error.into()))?;
        Ok((seen.blocks_available() as u64).saturating_mul(seen.fragment_size() as u64))
    }

    /// Every record by its name; one that cannot be read is told with the reason.
    pub fn load_etcd_snapshots<T: DeserializeOwned>(&self) -> Result<Vec<Read<T>>, StoreError> {
        records(&self.etcd_snapshots(), |file: RecordFile<T>| file.etcd_snapshot)
    }

    /// The last word of a save: its file is on the disk.
    pub fn save_etcd_snapshot<T: Serialize>(&self, lock: &Lock, name: &str, record: &T) -> Result<(), StoreError> {
        self.guarded(lock)?;
        write_json(&self.etcd_snapshots().join(format!("{name}.json")), &RecordFile { format: FORMAT, etcd_snapshot: record })
    }

    /// Removes files, whole or in part, that no record speaks of: a save was cut off, and they hold all of the cluster's secrets.
    /// Returns their names.
    pub fn tidy_etcd_snapshots(&self, lock: &Lock) -> Result<Vec<String>, StoreError> {
        self.guarded(lock)?;
        let dir = self.etcd_snapshots();
        let failed = |action, path: &PathBuf| {
            let path = path.clone();
            move |source| FileError::Io { action, path, source }
        };
        let Some(entries) = if_there(fs::read_dir(&dir).map_err(failed("list", &dir)))? else { return Ok(Vec::new()) };
        let mut gone = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed("list", &dir))?.file_name().to_string_lossy().into_owned();
            let Some(name) = file.strip_suffix(".db").or_else(|| file.strip_suffix(".db.partial")) else { continue };
            // A record that cannot be read may be one of a whole file.
            let spoken_of = dir.join(format!("{name}.json")).symlink_metadata().is_ok() && file.ends_with(".db");
            if !spoken_of {
                let path = dir.join(&file);
                if_there(fs::remove_file(&path).map_err(failed("remove", &path)))?;
                gone.push(file);
            }
        }
        if !gone.is_empty() {
            files::sync_dir(&dir)?;
        }
        gone.sort();
        Ok(gone)
    }

    /// The record first. Returns whether anything was there; twice is once.
    pub fn remove_etcd_snapshot(&self, lock: &Lock, name: &str) -> Result<bool, StoreError> {
        self.guarded(lock)?;
        let mut there = false;
        for end in ["json", "db", "db.partial"] {
            let path = self.etcd_snapshots().join(format!("{name}.{end}"));
            let io = |source| FileError::Io { action: "remove", path: path.clone(), source };
            there |= if_there(fs::remove_file(&path).map_err(io))?.is_some();
        }
        if there {
            files::sync_dir(&self.etcd_snapshots())?;
        }
        Ok(there)
    }
}
