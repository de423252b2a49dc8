//! A file of the user's that other programs change too, such as `~/.kube/config`: edited as kubectl edits it.
//! `kubeconfig --merge` and `down` call it with a function from text to text.
//! It follows links, keeps owner and place, and knows nothing of what is in the file.

use super::StoreError;
use super::files::{FileError, if_there};
use crate::secret::Secret;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Reads the file (nothing there: an empty text), asks `change` for its new text and puts that in its place, atomically.
/// `Ok(None)` from `change`, or the same text, leaves it alone; an `Err` says why it must be. Returns whether it was written.
///
/// What is written holds a key, so group and others lose their access to it. While it is open `<path>.lock` exists, which is
/// how kubectl keeps two of itself apart.
pub fn edit(path: &Path, change: impl FnOnce(&str) -> Result<Option<Secret>, String>) -> Result<bool, StoreError> {
    let path = resolve(path)?;
    let _held = Held::take(&path)?;
    let seen = if_there(fs::metadata(&path).map_err(io("look at", &path)))?;
    if seen.as_ref().is_some_and(|seen| !seen.is_file()) {
        return Err(FileError::Kind { path, found: "not a regular file", want: "a regular file" }.into());
    }
    let old = match &seen {
        Some(_) => Secret::from(fs::read_to_string(&path).map_err(io("read", &path))?),
        None => Secret::new(""),
    };
    let new = change(old.expose()).map_err(|why| StoreError::Refused { path: path.clone(), why })?;
    let Some(new) = new.filter(|new| *new != old) else { return Ok(false) };
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".ktcw-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(io("create a file in", dir))?;
    file.write_all(new.expose().as_bytes()).map_err(io("write", &path))?;
    if let Some(seen) = &seen {
        // Through sudo: the file stays its owner's.
        std::os::unix::fs::fchown(&file, Some(seen.uid()), Some(seen.gid())).map_err(io("keep the owner of", &path))?;
        file.as_file().set_permissions(Permissions::from_mode(seen.mode() & 0o700)).map_err(io("set the mode of", &path))?;
    }
    file.as_file().sync_all().map_err(io("flush", &path))?;
    file.persist(&path).map_err(|error| io("rename into place", &path)(error.error))?;
    super::files::sync_dir(dir)?;
    Ok(true)
}

/// The real place of the file, its directory made when there is none.
fn resolve(path: &Path) -> Result<PathBuf, FileError> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create directory", dir))?;
            let dir = fs::canonicalize(dir).map_err(io("look at", dir))?;
            Ok(dir.join(path.file_name().unwrap_or_default()))
        }
        Err(error) => Err(io("look at", path)(error)),
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// `<path>.lock`, removed when done. Unlike our own lock a crash leaves it; the message says what to do.
struct Held(PathBuf);

impl Held {
    fn take(path: &Path) -> Result<Held, StoreError> {
        let lock = path.with_added_extension("lock");
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock) {
            Ok(_) => Ok(Held(lock)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StoreError::Shared { path: path.to_owned(), lock }),
            Err(error) => Err(io("create", &lock)(error).into()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    fn put(text: &'static str) -> impl FnOnce(&str) -> Result<Option<Secret>, String> {
        move |old| Ok(Some(Secret::new(format!("{old}{text}"))))
    }
    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).expect("listed").count()
    }

    #[test]
    fn made_when_missing_changed_in_place_and_private_afterwards() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("new/.kube/config");
        assert!(edit(&path, put("a")).expect("made"));
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!((fs::read_to_string(&path).expect("read").as_str(), mode(&path)), ("a", 0o600));
        assert_eq!(mode(path.parent().expect("one")), 0o700);
        fs::set_permissions(&path, Permissions::from_mode(0o664)).expect("chmod");
        assert!(!edit(&path, |_| Ok(None)).expect("left alone") && !edit(&path, put("")).expect("the same"));
        assert_eq!(mode(&path), 0o664, "not even its mode");
        assert!(edit(&path, put("b")).expect("changed"));
        assert_eq!((fs::read_to_string(&path).expect("read").as_str(), mode(&path)), ("ab", 0o600));
        assert_eq!(entries(path.parent().expect("one")), 1, "no lock, no temporary file");
    }

    #[test]
    fn a_link_stays_a_link_and_an_owner_stays_the_owner() {
        let dir = tempfile::tempdir().expect("dir");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "x").expect("written");
        if nix::unistd::geteuid().is_root() {
            chown(&real, Some(12345), Some(12345)).expect("chown");
        }
        let owner = |path: &Path| fs::metadata(path).expect("there").uid();
        let before = owner(&real);
        symlink(&real, &link).expect("link");
        assert!(edit(&link, put("y")).expect("changed"));
        assert!(link.symlink_metadata().expect("there").is_symlink());
        assert_eq!((fs::read_to_string(&real).expect("read").as_str(), owner(&real)), ("xy", before));
        symlink(dir.path().join("nowhere"), dir.path().join("dangling")).expect("link");
        assert!(edit(&dir.path().join("dangling"), put("y")).is_err(), "where would it go?");
    }

    #[test]
    fn refused_locked_and_odd_files_are_left_as_they_are() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("config");
        fs::write(&path, "theirs").expect("written");
        let error = edit(&path, |_| Err("not a kubeconfig".to_owned())).expect_err("refused");
        assert!(error.to_string().contains("not a kubeconfig"), "{error}");
        fs::write(dir.path().join("config.lock"), "").expect("written");
        let error = edit(&path, put("x")).expect_err("locked");
        assert!(matches!(error, StoreError::Shared { .. }) && error.hint().expect("hint").contains("config.lock"));
        assert!(dir.path().join("config.lock").exists(), "somebody else's lock is not removed");
        fs::remove_file(dir.path().join("config.lock")).expect("removed");
        assert_eq!((fs::read_to_string(&path).expect("read").as_str(), entries(dir.path())), ("theirs", 1));
        fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(edit(&path, put("x")).is_err(), "not text");
        assert!(edit(dir.path(), put("x")).is_err(), "a directory");
    }
}
