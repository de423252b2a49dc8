//! Verdicts remembered: a file for each combination of boot, emulator, kernel and firmware.
//! `probe` and `cached` are the callers.
//! A file that cannot be read or understood is no verdict; it never makes one up.

use super::{Boot, Verdict};
use crate::digest::{self, hex};
use crate::host::{HostError, HostFacts};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Raised when the probe itself changes, so that old verdicts are not believed.
const PROBE: &str = "1";

/// All that a verdict depends on, digested.
pub struct Key(Option<String>);

impl Key {
    /// Reads the kernel and the initrd whole. On a machine without a boot id nothing is remembered.
    pub fn new(facts: &HostFacts, boot: &Boot, firmware: Option<&str>) -> Result<Key, HostError> {
        let Ok(boot_id) = std::fs::read_to_string("/proc/sys/kernel/random/boot_id") else { return Ok(Key(None)) };
        let initrd = boot.initrd.map(digest).transpose()?.unwrap_or_default();
        let parts = [
            PROBE,
            boot_id.trim(),
            &facts.qemu_version,
            &facts.emulator,
            firmware.unwrap_or_default(),
            &digest(boot.kernel)?,
            &initrd,
            boot.args,
        ];
        Ok(Key(Some(hex(&Sha256::digest(parts.join("\n"))))))
    }

    pub fn load(&self, cache_dir: &Path) -> Option<Verdict> {
        let path = self.path(cache_dir)?;
        let verdict = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        Some(match verdict {
            Verdict::Not(why) => Verdict::Not(format!("{why} (found earlier; to try again, delete {})", path.display())),
            verdict => verdict,
        })
    }

    /// Whole or not at all: written beside it and renamed.
    pub fn store(&self, cache_dir: &Path, verdict: &Verdict) -> Result<(), HostError> {
        let Some(path) = self.path(cache_dir) else { return Ok(()) };
        let dir = path.parent().unwrap_or(cache_dir);
        let failed = |source| HostError::File { path: path.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let json = serde_json::to_vec(verdict).map_err(|error| failed(error.into()))?;
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        file.write_all(&json).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn path(&self, cache_dir: &Path) -> Option<PathBuf> {
        self.0.as_ref().map(|key| cache_dir.join("accel").join(format!("{}.json", key.get(..32).unwrap_or(key))))
    }
}

fn digest(path: &Path) -> Result<String, HostError> {
    let failed = |source| HostError::File { path: path.display().to_string(), source };
    File::open(path).and_then(digest::of).map_err(failed)
}
