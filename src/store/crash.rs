//! Tests that need a process of their own to kill: the test binary runs one of its `#[ignore]`d tests again.
//! Crash tests of `store` and `pki` call it with `KTCW_FAIL_AT` and look at what is left on the disk.
//! It knows nothing of what the child does.

use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};

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
