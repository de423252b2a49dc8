//! Directories on their way to or from being a cluster's: what they are called, and what a crash left of them cleared away.
//! `ClusterDir` makes and removes through it; `down` calls it where it finds no cluster, because a removal cut off may still hold keys.
//! What is not called exactly as ours are is somebody else's, however it begins: it stays and is in nobody's way.

use super::StoreError;
use super::cluster::io_error;
use super::files::{FileError, if_there};
use crate::spec::ClusterName;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// A creation takes milliseconds; one this old was cut off.
pub(super) const CREATION_LIMIT: Duration = Duration::from_secs(600);

/// Which way a directory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    Creating,
    Removing,
}

impl Passing {
    /// No cluster's name begins with a dot.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Passing::Creating => ".creating-",
            Passing::Removing => ".removing-",
        }
    }

    /// `.removing-lab-2-0123456789abcdef0123456789abcdef`
    pub(super) fn name(self, cluster: &ClusterName, instance: Uuid) -> String {
        format!("{}{cluster}-{}", self.prefix(), instance.simple())
    }

    /// `None`: no name that `name` gives.
    fn parse(name: &str) -> Option<Passing> {
        [Passing::Creating, Passing::Removing].into_iter().find(|passing| {
            let whole = name.strip_prefix(passing.prefix()).and_then(|rest| rest.rsplit_once('-'));
            whole.is_some_and(|(cluster, instance)| {
                let of_ours = instance.len() == 32 && instance.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                of_ours && ClusterName::parse(cluster).is_ok()
            })
        })
    }
}

/// Finishes removals and clears creations that a crash cut off. `create` and `lock` do it too.
pub fn finish_removals(parent: &Path) -> Result<(), StoreError> {
    let failed = |source| FileError::Io { action: "list", path: parent.to_owned(), source };
    let Some(entries) = if_there(fs::read_dir(parent).map_err(failed))? else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(|source| io_error("list", parent, source))?;
        let Some(passing) = Passing::parse(&entry.file_name().to_string_lossy()) else { continue };
        let Ok(seen) = entry.metadata() else { continue };
        let old = seen.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > CREATION_LIMIT);
        let cut_off = passing == Passing::Removing || old;
        if seen.is_dir() && cut_off && inspect(&entry.path(), &seen).is_ok() {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Everything in the tree is ours and on the same file system.
pub(super) fn inspect(path: &Path, top: &fs::Metadata) -> Result<(), StoreError> {
    let seen = match fs::symlink_metadata(path) {
        Ok(seen) => seen,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("look at", path, error)),
    };
    let us = nix::unistd::geteuid().as_raw();
    if seen.uid() != us {
        return Err(FileError::Owner { path: path.to_owned(), owner: seen.uid(), us }.into());
    }
    if seen.dev() != top.dev() {
        return Err(StoreError::NotOurs { path: path.to_owned(), why: "something is mounted there".to_owned() });
    }
    if seen.is_dir() {
        for entry in fs::read_dir(path).map_err(|source| io_error("list", path, source))? {
            inspect(&entry.map_err(|source| io_error("list", path, source))?.path(), top)?;
        }
    }
    Ok(())
}

/// Two may remove the same leftover at the same time; what is gone is gone.
pub(super) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{DirBuilderExt as _, symlink};

    #[test]
    fn only_names_that_we_give_are_ours() {
        let (cluster, instance) = (ClusterName::parse("lab-2").expect("valid"), Uuid::from_u128(0xabc));
        for passing in [Passing::Creating, Passing::Removing] {
            assert_eq!(Passing::parse(&passing.name(&cluster, instance)), Some(passing));
        }
        let hex = "0".repeat(32);
        for foreign in [
            ".removing-old-photos".to_owned(),
            ".removing-notes.txt".to_owned(),
            ".removing-".to_owned(),
            format!(".removing-{hex}"),
            format!(".removing-../x-{hex}"),
            format!(".removing-lab-{}", "A".repeat(32)),
            format!(".removing-lab-{hex}0"),
            format!("removing-lab-{hex}"),
        ] {
            assert_eq!(Passing::parse(&foreign), None, "{foreign}");
        }
    }

    /// Other people's things that begin as ours do stay, and stop no verb; also those that are called exactly like ours and are
    /// no directory.
    #[test]
    fn what_others_keep_beside_the_clusters_stays() {
        let parent = tempfile::tempdir().expect("a directory");
        let at = |name: &str| parent.path().join(name);
        let ours =
            |passing: Passing, number| at(&passing.name(&ClusterName::parse("lab").expect("valid"), Uuid::from_u128(number)));
        for dir in [at(".removing-old-photos"), at(".creating-a-song"), at("elsewhere")] {
            fs::create_dir(&dir).expect("made");
            fs::write(dir.join("a.jpg"), "x").expect("written");
            let long_ago = std::time::SystemTime::now() - 2 * CREATION_LIMIT;
            fs::File::open(dir).and_then(|dir| dir.set_modified(long_ago)).expect("aged");
        }
        fs::write(at(".removing-notes.txt"), "x").expect("written");
        fs::write(ours(Passing::Removing, 1), "x").expect("written");
        symlink(at("elsewhere"), ours(Passing::Removing, 2)).expect("linked");
        let left = ours(Passing::Removing, 3);
        fs::DirBuilder::new().mode(0o700).create(&left).expect("made");
        for _ in 0..2 {
            finish_removals(parent.path()).expect("nothing is in the way");
        }
        assert!(!left.exists(), "a removal that was cut off");
        for name in [".removing-old-photos/a.jpg", ".creating-a-song/a.jpg", "elsewhere/a.jpg", ".removing-notes.txt"] {
            assert!(at(name).exists(), "{name}");
        }
        assert_eq!(fs::read_dir(parent.path()).expect("listed").count(), 6);
    }
}
