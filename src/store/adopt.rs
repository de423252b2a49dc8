//! The keys of one cluster for another: a fork's machines are known by those of the cluster that it was forked from.
//! `ClusterDir::adopt_keys` is called once, before anything is made of the new cluster.
//! It copies files as they are, with their modes, and knows nothing of what the keys are for.

use super::cluster::ClusterDir;
use super::files::{self, FileError};
use super::{Lock, StoreError};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

impl ClusterDir {
    /// Everything below `pki` and `ssh`; what is there of the same name is written over.
    pub fn adopt_keys(&self, lock: &Lock, from: &ClusterDir) -> Result<(), StoreError> {
        self.guarded(lock)?;
        for part in ["pki", "ssh"] {
            copy(&from.path().join(part), &self.path().join(part))?;
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    files::check_dir(from)?;
    files::ensure_dir(to)?;
    let failed = |path: &Path, source| FileError::Io { action: "copy", path: path.to_owned(), source };
    for entry in fs::read_dir(from).map_err(|source| failed(from, source))? {
        let entry = entry.map_err(|source| failed(from, source))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let seen = fs::symlink_metadata(&path).map_err(|source| failed(&path, source))?;
        if seen.is_dir() {
            copy(&path, &target)?;
        } else if seen.mode() & 0o077 == 0 {
            files::write_atomic(&target, files::read_secret(&path)?.expose().as_bytes(), files::SECRET)?;
        } else {
            files::write_atomic(&target, files::read_text(&path)?.as_bytes(), files::PUBLIC)?;
        }
    }
    Ok(())
}
