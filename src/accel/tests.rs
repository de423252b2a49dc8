//! What the probe answers without a guest, and that its answers are remembered. Real boots are in `tests/libvirt_real.rs`.

use super::*;

fn facts(uri: &str, kvm_listed: bool, emulator: &Path) -> HostFacts {
    HostFacts {
        uri: uri.to_owned(),
        libvirt_version: "9.0.0".to_owned(),
        qemu_version: "10.0.2".to_owned(),
        emulator: emulator.display().to_string(),
        kvm_listed,
        memory_mib: 1,
        free_memory_mib: 1,
        cpus: 1,
    }
}

/// A kernel and nothing else.
fn plain(kernel: &Path) -> Boot<'_> {
    Boot { kernel, initrd: None, args: "" }
}

/// Stands for an emulator: counts its runs in `runs` and does what the script says.
fn emulator(dir: &Path, script: &str) -> std::path::PathBuf {
    executable(dir, format!("#!/bin/sh\necho run >> {0}/runs\necho \"$*\" >> {0}/said\n{script}\n", dir.display()).as_bytes())
}

/// A program with these bytes. Another process writes it: a file that this one has open for writing, in any thread at the
/// moment of a fork, cannot be run ("text file busy").
pub fn executable(dir: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let (source, path) = (dir.join("program.source"), dir.join("program"));
    std::fs::write(&source, bytes).expect("write");
    let status = std::process::Command::new("install").args(["-m", "0700"]).args([&source, &path]).status();
    assert!(status.expect("install runs").success());
    path
}

fn runs(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("runs")).map_or(0, |text| text.lines().count())
}

#[test]
fn some_hosts_need_no_trying() {
    let dir = tempfile::tempdir().expect("dir");
    let emulator = emulator(dir.path(), "exit 1");
    let ask = |facts: &HostFacts| probe(facts, &plain(Path::new("/k")), dir.path(), &|_| ()).expect("no effect needed");
    assert!(matches!(ask(&facts("qemu:///system", false, &emulator)), Verdict::Not(_)));
    assert!(matches!(ask(&facts("test:///default", true, Path::new(""))), Verdict::Not(_)));
    let remote = ask(&facts("qemu+ssh://lab/system", true, &emulator));
    assert!(matches!(&remote, Verdict::Unproved(why) if why.contains("another machine")), "{remote:?}");
    assert_eq!(runs(dir.path()), 0);
    assert_eq!(known(&facts("qemu:///system", true, &emulator)), None, "this one does");
}

#[test]
fn the_first_configuration_that_boots_is_taken_and_remembered() {
    let dir = tempfile::tempdir().expect("dir");
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, b"one kernel").expect("write");
    let script =
        "case \"$*\" in *arch-capabilities=off*) echo ktcw-init-ok; sleep 60;; *) echo 'assertion failed' >&2; exit 134;; esac";
    let facts = facts("qemu:///system", true, &emulator(dir.path(), script));
    let said = std::cell::RefCell::new(Vec::new());
    let ask = |kernel: &Path| {
        probe(&facts, &plain(kernel), dir.path(), &|text| said.borrow_mut().push(text.to_owned())).expect("tried")
    };
    let boots = Verdict::Boots(CpuModel::HostPassthroughNoArchCapabilities);
    assert_eq!(cached(&facts, &plain(&kernel), dir.path()), None);
    assert_eq!((ask(&kernel), runs(dir.path())), (boots.clone(), 2));
    assert_eq!((ask(&kernel), runs(dir.path())), (boots.clone(), 2), "the second answer is remembered");
    assert_eq!(cached(&facts, &plain(&kernel), dir.path()), Some(boots.clone()));
    assert!(said.borrow().iter().any(|text| text.contains("assertion failed")), "{said:?}");
    std::fs::write(&kernel, b"another kernel").expect("write");
    assert_eq!((ask(&kernel), runs(dir.path())), (boots, 4), "another kernel is another question");
    let other = Boot { args: "nokaslr", ..plain(&kernel) };
    assert_eq!(cached(&facts, &other, dir.path()), None, "and so are other words on its command line");
    assert!(probe(&facts, &other, dir.path(), &|_| ()).is_ok());
    let said = std::fs::read_to_string(dir.path().join("said")).expect("written");
    assert!(said.lines().last().is_some_and(|words| words.contains("console=ttyS0 panic=-1 quiet nokaslr")), "{said}");
}

#[test]
fn a_host_where_nothing_boots_is_remembered_with_the_way_to_try_again() {
    let dir = tempfile::tempdir().expect("dir");
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, b"kernel").expect("write");
    let facts = facts("qemu:///system", true, &emulator(dir.path(), "echo 'KVM internal error. Suberror: 1' >&2; sleep 60"));
    let ask = || probe(&facts, &plain(&kernel), dir.path(), &|_| ()).expect("tried");
    let first = ask();
    assert!(
        matches!(&first, Verdict::Not(why) if why.matches("KVM internal error").count() == 1 && why.contains("Nehalem)")),
        "{first:?}"
    );
    let again = ask();
    assert!(matches!(&again, Verdict::Not(why) if why.contains("delete") && why.contains("accel")), "{again:?}");
    assert_eq!(runs(dir.path()), 3);
}

/// Who joins the group is not answered from what was found before.
#[test]
fn kvm_that_this_user_may_not_open_is_called_that_and_asked_again() {
    let dir = tempfile::tempdir().expect("dir");
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, b"kernel").expect("write");
    let denied = "echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1";
    let facts = facts("qemu:///system", true, &emulator(dir.path(), denied));
    for runs_so_far in [1, 2] {
        let verdict = probe(&facts, &plain(&kernel), dir.path(), &|_| ()).expect("tried");
        assert!(matches!(&verdict, Verdict::Forbidden(why) if why.contains("join the group kvm")), "{verdict:?}");
        assert_eq!(runs(dir.path()), runs_so_far, "no other CPU would help");
        assert_eq!(cached(&facts, &plain(&kernel), dir.path()), None);
    }
}

#[test]
fn a_missing_kernel_is_an_error_and_no_verdict() {
    let dir = tempfile::tempdir().expect("dir");
    let facts = facts("qemu:///system", true, &emulator(dir.path(), "exit 1"));
    let error = probe(&facts, &plain(Path::new("/nonexistent/vmlinux")), dir.path(), &|_| ()).expect_err("no kernel");
    assert!(matches!(&error, HostError::File { path, .. } if path.contains("vmlinux")), "{error}");
}
