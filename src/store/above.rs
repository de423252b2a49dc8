//! Directories above what we keep: made when there are none, closed to others, and whose the nearest is that was there.
//! `ClusterDir::create` calls it for the directory of all clusters, `shared` for that of a user's file.
//! It knows who owns a directory and nothing of what is kept in one.

use super::files::{FileError, io_error};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// Makes the directory of all clusters when there is none: it is of who runs this, as they are, and those above it (`~/.local`) are
/// not, for other programs of the user's keep things there too. An existing one may be looser (it holds no secret itself), but not
/// one where others could replace our directory by theirs.
pub(super) fn ensure_parent(parent: &Path) -> Result<(), FileError> {
    ensure_dir(above(parent))?;
    if let Err(error) = DirBuilder::new().mode(0o700).create(parent)
        && !(error.kind() == io::ErrorKind::AlreadyExists && parent.is_dir())
    {
        return Err(io_error("create directory", parent)(error));
    }
    let seen = fs::metadata(parent).map_err(io_error("look at", parent))?;
    let sticky = seen.mode() & 0o1000 != 0;
    if seen.mode() & 0o002 != 0 && !sticky {
        return Err(FileError::Loose { path: parent.to_owned(), mode: seen.mode() & 0o7777, allowed: 0o775 });
    }
    Ok(())
}

/// The real place of a directory. Made with those above it when there is none: closed to others, and whose the nearest is that was
/// there.
pub(super) fn ensure_dir(dir: &Path) -> Result<PathBuf, FileError> {
    let real = fs::canonicalize(dir);
    let missing = real.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) && dir.symlink_metadata().is_err();
    if !missing {
        return real.map_err(io_error("look at", dir));
    }
    let within = ensure_dir(above(dir))?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {
            let flags = (nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_NOFOLLOW).bits();
            let made = OpenOptions::new().read(true).custom_flags(flags).open(dir).map_err(io_error("open", dir))?;
            give(&made, &within)?;
        }
        // Another one was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("create directory", dir)(error)),
    }
    fs::canonicalize(dir).map_err(io_error("look at", dir))
}

/// What was just made in a directory becomes its owner's. Through sudo we are root in a user's home, and what stayed root's would be
/// closed to them; whoever else makes something has it.
pub(super) fn give(made: &File, within: &Path) -> Result<(), FileError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(within).map_err(io_error("look at", within))?;
    fchown(made, Some(owner.uid()), Some(owner.gid())).map_err(io_error("give to its owner what was made in", within))
}

/// The directory that a path as it was typed is in.
pub(super) fn above(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::chown;

    /// As root in somebody's home, through sudo. What an ordinary user makes is their own anyway.
    #[test]
    fn what_is_made_above_the_clusters_is_the_users_and_their_own_directory_is_not() {
        let dir = tempfile::tempdir().expect("dir");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("made");
        if nix::unistd::geteuid().is_root() {
            chown(&home, Some(12345), Some(12346)).expect("chown");
        }
        let seen = |path: &Path| fs::metadata(path).expect("there");
        let owner = |path: &Path| (seen(path).uid(), seen(path).gid());
        let theirs = owner(&home);
        for state in ["nothing/.local/state/ktcw-vm", "nothing/.local/share/../state/twice/ktcw-vm", "one"] {
            let state = home.join(state);
            ensure_parent(&state).expect("made");
            ensure_parent(&state).expect("twice is once");
            assert_eq!(seen(&state).uid(), nix::unistd::geteuid().as_raw(), "{}", state.display());
            for made in state.ancestors().skip(1).take_while(|made| *made != home) {
                assert_eq!((owner(made), seen(made).mode() & 0o777), (theirs, 0o700), "{}", made.display());
            }
        }
        fs::write(home.join("file"), "").expect("written");
        for not_one in ["file", "file/below", "file/below/it"] {
            assert!(ensure_parent(&home.join(not_one)).is_err(), "{not_one}");
        }
    }
}
