//! Files that the user has named: a configuration, a drill, a lab, a report, a kernel.
//! `cli`, `drill` and `lab` open them here, so that none of them can hang or be without end: a pipe that nobody writes into, a device.
//! It follows links, minds no owner and no mode, and knows nothing of what is in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A regular file, opened for reading. Nothing is waited for: `O_NONBLOCK` keeps a pipe from blocking, and says nothing to a file.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)?;
    let seen = file.metadata()?;
    if seen.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if seen.is_file() { Ok(file) } else { Err(io::Error::other("it is a device, pipe or socket, not a regular file")) }
}

/// All of its text, up to `limit` bytes: what goes on longer is no such file.
pub fn text(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    if open(path)?.take(limit + 1).read_to_string(&mut text)? as u64 > limit {
        return Err(io::Error::other(format!("it is longer than {} KiB", limit >> 10)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_at_once_and_a_long_one_is_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("whole"), "x".repeat(2048)).expect("written");
        std::fs::write(at("longer"), "x".repeat(2049)).expect("written");
        std::os::unix::fs::symlink(at("whole"), at("link")).expect("linked");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        for name in ["whole", "link"] {
            assert_eq!(text(&at(name), 2048).expect(name).len(), 2048);
        }
        let begin = std::time::Instant::now();
        for (path, says) in [
            (at("longer"), "longer than 2 KiB"),
            (at("pipe"), "not a regular file"),
            (at("socket"), "No such device"),
            ("/dev/zero".into(), "not a regular file"),
            (at(""), "is a directory"),
            (at("nowhere"), "No such file"),
        ] {
            let error = text(&path, 2048).expect_err(says);
            assert!(error.to_string().contains(says), "{}: {error}", path.display());
        }
        assert!(begin.elapsed().as_secs() < 5);
    }
}
