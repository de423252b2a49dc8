//! Tests that need a process of their own to kill: the test binary runs one of its `#[ignore]`d tests again.
//! Crash tests of `store`, `pki`, `apply` and `snapshot` call it with `KTCW_FAIL_AT` and look at what is left; what must outlive
//! the killed one lives in directories. It knows nothing of what the child does.

use super::{Class, failpoint};
use crate::host::fake::FakeHost;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Starts the ignored test of that full path in a process of its own.
pub(crate) fn child(test: &str, env: &[(&str, &dyn AsRef<OsStr>)]) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test binary"));
    command.args(["--exact", test, "--ignored", "--test-threads=1"]).stdout(Stdio::null()).stderr(Stdio::null());
    for (name, value) in env {
        command.env(name, value);
    }
    command.spawn().expect("a second copy of this binary")
}

/// Runs it to its end; `true`: it was aborted at a failpoint, `false`: it passed. Panics when the child's test failed.
pub(crate) fn aborts(test: &str, env: &[(&str, &dyn AsRef<OsStr>)]) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let status = child(test, env).wait().expect("ended");
    match (status.signal(), status.code()) {
        (Some(signal), _) if signal == nix::sys::signal::Signal::SIGABRT as i32 => true,
        (None, Some(0)) => false,
        other => panic!("the child's test failed: {other:?}"),
    }
}

/// Runs it to its end, which must be a good one; returns the lines that it printed, without the harness's own.
pub(crate) fn passes(test: &str, env: &[(&str, &dyn AsRef<OsStr>)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this test binary"));
    for (name, value) in env {
        command.env(name, value);
    }
    let ran = command.args(["--exact", test, "--ignored", "--test-threads=1", "--nocapture"]).output().expect("a second copy");
    let (out, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && out.contains("1 passed"), "the child's test failed:\n{out}\n{error}");
    // The harness begins the line of a test before it runs.
    let begun = format!("test {test} ... ");
    let of_the_harness =
        |line: &&str| line.is_empty() || *line == "ok" || ["running ", "test "].iter().any(|begins| line.starts_with(begins));
    let lines = out.lines().map(|line| line.strip_prefix(&begun).unwrap_or(line)).filter(|line| !of_the_harness(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The points that it passes undisturbed, as `KTCW_FAIL_AT` takes them: `journal:1`, `journal:2`, … `effect:40`.
pub(crate) fn points(test: &str, env: &[(&str, &dyn AsRef<OsStr>)], counted: &Path) -> Vec<String> {
    let env: Vec<(&str, &dyn AsRef<OsStr>)> = [env, &[("KTCW_FAIL_COUNT", &counted as &dyn AsRef<OsStr>)]].concat();
    assert!(!aborts(test, &env), "nothing kills it");
    let text = std::fs::read_to_string(counted).expect("counted");
    std::fs::remove_file(counted).expect("removed");
    let number = |class: &'static str| {
        let passed = text.lines().filter(|line| line.starts_with(class)).count();
        (1..=passed).map(move |number| format!("{class}{number}"))
    };
    number("journal:").chain(number("file:")).chain(number("effect:")).collect()
}

/// The line that a loop over them ends with.
pub(crate) fn told(verb: &str, points: &[String]) -> String {
    let of = |class: &str| points.iter().filter(|point| point.starts_with(class)).count();
    format!(
        "{verb}: killed at {} points: {} journal, {} file, {} effect",
        points.len(),
        of("journal:"),
        of("file:"),
        of("effect:")
    )
}

/// In memory where there is such a place: every record is flushed.
pub(crate) fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Does `work` for every point, as many at a time as there are processors; a panic in one is the test's.
pub(crate) fn each(points: &[String], work: impl Fn(&str, &Path) + Sync) {
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let place = place();
                    work(point, place.path());
                }
            });
        }
    });
}

pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).map(|all| all.map(|entry| entry.expect("an entry").path()).collect()).unwrap_or_default()
}

/// All below it, with modes.
pub(crate) fn copy(from: &Path, to: &Path) {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let mode = std::fs::metadata(from).expect("there").mode();
    std::fs::DirBuilder::new().mode(mode & 0o777).create(to).expect("made");
    for path in entries(from) {
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}

/// A libvirt that outlives the program, in a file: every change is on the disk when it is over, and before and after it is a place to
/// be killed at. Without the file it is empty.
pub(crate) fn kept_host(file: &Path) -> FakeHost {
    let (path, turn) = (file.to_owned(), Mutex::new(()));
    let witness = move |call: &str, over: bool, host: &FakeHost| {
        if over {
            // An older state must not be written over a newer one.
            let _turn = turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            super::failpoint::elsewhere(|| super::files::write_atomic(&path, host.saved().as_bytes(), 0o600)).expect("written");
        }
        failpoint(Class::Effect, &format!("{} {call}", if over { "after" } else { "before" }));
    };
    let saved = std::fs::read_to_string(file).ok();
    FakeHost::restored(saved.as_deref(), Box::new(witness)).expect("as it was saved")
}
