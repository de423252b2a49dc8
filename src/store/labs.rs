//! What a cluster's directory keeps of labs and of the tour: one file each, whole or not at all.
//! `cli lab` and `cli tour` keep their records through these methods of `ClusterDir`; what is in a record is its own.
//! It knows nothing of phases or steps.

use super::cluster::ClusterDir;
use super::sealed::{FORMAT, parse_json, read_json, write_json};
use super::{Lock, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct KeptFile<T> {
    format: u32,
    kept: T,
}

/// What is kept in `labs.json` or `tour.json`, from its text.
pub fn parse_kept<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    Ok(parse_json::<KeptFile<T>>(Path::new("labs.json"), text)?.kept)
}

impl ClusterDir {
    /// The book of labs; `None`: there never was one.
    pub fn load_labs<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        Ok(read_json::<KeptFile<T>>(&self.path().join("labs.json"))?.map(|file| file.kept))
    }

    pub fn save_labs<T: Serialize>(&self, lock: &Lock, book: &T) -> Result<(), StoreError> {
        self.guarded(lock)?;
        write_json(&self.path().join("labs.json"), &KeptFile { format: FORMAT, kept: book })
    }

    /// How far the tour was taken; `None`: it was not begun.
    pub fn load_tour<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        Ok(read_json::<KeptFile<T>>(&self.path().join("tour.json"))?.map(|file| file.kept))
    }

    /// Needs no lock: it is written whole, and of two who take the tour at once the last one's place is kept.
    pub fn save_tour<T: Serialize>(&self, place: &T) -> Result<(), StoreError> {
        write_json(&self.path().join("tour.json"), &KeptFile { format: FORMAT, kept: place })
    }
}
