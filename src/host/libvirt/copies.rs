//! Copies of disks as they were in a snapshot, for another cluster: made aside by `qemu-img` and given their name when they are whole.
//! `LibvirtHost` calls it on a libvirt of this computer; what a running machine writes meanwhile does not touch its snapshots.
//! It knows nothing of clusters: whose the pools are, `pools` has checked.

use super::connection::{pause, present, refused};
use super::{pools, volumes};
use crate::host::{Done, HostError, Mark};
use crate::plan::StoragePlan;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use virt::connect::Connect;

/// How long a disk may take, which is a few GiB of data at most: less than the call that it is made by.
const COPY: Duration = Duration::from_secs(1800);

/// One disk: from which cluster's pool, at which snapshot, into which pool.
pub struct Copy<'a> {
    pub from: &'a StoragePlan,
    pub to: &'a StoragePlan,
    pub volume: &'a str,
    pub snapshot: &'a str,
    /// Volume of the image pool that it is an overlay of.
    pub base: Option<&'a str>,
}

/// `Unchanged` when there is a volume of that name.
pub fn ensure(conn: &Connect, copy: &Copy<'_>, mark: &Mark) -> Result<Done, HostError> {
    let target = pools::own(conn, copy.to, mark)?;
    if present(target.lookup_storage_vol_by_name(copy.volume), volumes::KIND, copy.volume)?.is_some() {
        return Ok(Done::Unchanged);
    }
    let source = conn
        .lookup_storage_pool_by_name(&copy.from.pool)
        .and_then(|pool| pool.lookup_storage_vol_by_name(copy.volume))
        .and_then(|volume| volume.path())
        .map_err(|error| refused("find", volumes::KIND, copy.volume, &error))?;
    let (pool_dir, image_dir) = pools::directories(conn, copy.to)?;
    let (part, whole) = (format!("{pool_dir}/.{}.part", copy.volume), format!("{pool_dir}/{}", copy.volume));
    let failed =
        |reason: String| HostError::Libvirt { action: "copy", kind: volumes::KIND, name: copy.volume.to_owned(), reason };
    // A disk carries keys: nobody else's from its first byte on. qemu-img writes into the file that is there.
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .and_then(|file| file.sync_all())
        .map_err(|error| failed(format!("{part}: {error}")))?;
    let mut convert = Command::new("qemu-img");
    // The source may be in use (-U); its snapshots do not change.
    convert.args(["convert", "-U", "-l", &format!("snapshot.name={}", copy.snapshot), "-O", "qcow2"]);
    if let Some(base) = copy.base {
        convert.args(["-F", "qcow2", "-B", &format!("{image_dir}/{base}")]);
    }
    if let Err(reason) = in_time(convert.args([source.as_str(), part.as_str()]), COPY) {
        let _ = std::fs::remove_file(&part);
        return Err(failed(format!("qemu-img: {reason}")));
    }
    let named = || -> std::io::Result<()> {
        std::fs::File::open(&part)?.sync_all()?;
        std::fs::rename(&part, &whole)?;
        std::fs::File::open(Path::new(&pool_dir))?.sync_all()
    };
    named().map_err(|error| failed(format!("{whole}: {error}")))?;
    pools::when_idle(|| target.refresh(0)).map_err(|error| refused("refresh", pools::KIND, &copy.to.pool, &error))?;
    Ok(Done::Changed)
}

/// Runs a program to a good end, or says why not; one that does not end is killed. It says too little to fill a pipe.
fn in_time(command: &mut Command, most: Duration) -> Result<(), String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let begin = Instant::now();
    let ended = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if begin.elapsed() > most => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it has not ended within {} s", most.as_secs()));
            }
            None => pause(Duration::from_millis(100)),
        }
    };
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    if ended.success() { Ok(()) } else { Err(said.trim().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed_and_one_that_fails_is_quoted() {
        let shell = |line: &str, most| in_time(Command::new("sh").args(["-c", line]), most);
        assert_eq!(shell("exit 0", COPY), Ok(()));
        assert_eq!(shell("echo broken >&2; exit 1", COPY), Err("broken".to_owned()));
        let begin = Instant::now();
        assert_eq!(shell("exec sleep 600", Duration::from_secs(1)), Err("it has not ended within 1 s".to_owned()));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
}
