//! The disk under the state directory full: at every write of `up`, and on a real file system of a few pages and names. Each time it
//! is said with its reason and the way out, what runs goes on, `down` needs no room, and with room again `up` goes on.

use super::killed::{Computer, Failed};
use crate::host::HostSeen;
use crate::store::crash::{each, place};
use crate::store::failpoint;
use std::path::Path;
use std::process::Command;

/// What a person is told: every cause, once.
fn said(error: &Failed) -> String {
    let all = std::iter::successors(Some(&**error as &dyn std::error::Error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn a_disk_full_from_any_write_of_up_on_is_told_and_up_goes_on_once_there_is_room() {
    let place = place();
    let fresh = Computer::fresh(&place.path().join("fresh"));
    let before = fresh.lab().host_seen();
    let whole = fresh.copied(&place.path().join("counted"));
    failpoint::full_from(0);
    whole.up().expect("undisturbed");
    let writes = failpoint::full_from(0);
    assert!(writes > 80, "{writes}");
    let all: Vec<String> = (1..=writes).map(|number| number.to_string()).collect();
    each(&all, |number, at| {
        let about = format!("full from write {number} of {writes}");
        let cut = fresh.copied(&at.join("cut"));
        failpoint::full_from(number.parse().expect("a number"));
        let ended = cut.up();
        // The lock's own line is the one write that it goes without.
        let told = ended.as_ref().err().map(said);
        assert!(told.as_ref().is_some_and(|told| told.contains("No space left on device")), "{about}: {told:?}");
        let down = cut.copied(&at.join("down"));
        down.down().unwrap_or_else(|error| panic!("{about}, down: {error}"));
        failpoint::full_from(0);
        down.goes_down(&before, &format!("{about}, down"));
        cut.comes_up(&format!("{about}, up"));
    });
    println!("up: the disk full from each of {writes} writes on");
}

/// Who is over quota has to be able to make room: `down` writes what it can and does all the rest.
#[test]
fn over_quota_down_removes_everything() {
    let place = place();
    let whole = Computer::fresh(&place.path().join("computer"));
    let before = whole.lab().host_seen();
    whole.comes_up("undisturbed");
    failpoint::over_quota_from(1);
    let ended = whole.down();
    assert!(failpoint::full_from(0) > 0, "it tried to write");
    ended.unwrap_or_else(|error| panic!("over quota: {}", said(&error)));
    whole.goes_down(&before, "over quota");
}

const CHILD: &str = "apply::tests::full::child_on_a_small_file_system";

/// What there is too little of.
#[derive(Debug, Clone, Copy)]
enum Little {
    Pages(u64),
    Names(u64),
}

impl Little {
    fn options(self) -> String {
        match self {
            Little::Pages(pages) => format!("size={},nr_inodes=4096", pages << 12),
            Little::Names(names) => format!("size=64m,nr_inodes={names}"),
        }
    }
}

/// What is started with this may mount, where nobody else sees it: nothing is left mounted, however it ends.
fn in_namespaces() -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--propagation", "private", "--"]);
    command
}

/// Where nobody may mount it is said, and passes, except under CI.
#[test]
fn a_file_system_too_small_for_up_is_told_and_up_goes_on_once_it_is_larger() {
    let tried = in_namespaces().args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output().expect("unshare");
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr);
        assert!(std::env::var_os("CI").is_none(), "CI needs root, or namespaces of a user's own: {why}");
        eprintln!("not run: it mounts a file system, for which root or namespaces of a user's own are needed: {why}");
        return;
    }
    let mut command = in_namespaces();
    command.arg(std::env::current_exe().expect("this test binary"));
    let ran = command.args(["--exact", CHILD, "--ignored", "--test-threads=1", "--nocapture"]).output().expect("unshare");
    let (out, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}\n{error}");
    let figures = out.lines().find_map(|line| line.find("up on a file system").map(|at| &line[at..])).expect("it ran");
    println!("{figures}");
}

fn mount(at: &Path, options: &str) {
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status().expect("mount");
    assert!(status.success(), "mount -o {options}");
}

/// Pages and names in use.
fn used(at: &Path) -> (u64, u64) {
    let seen = nix::sys::statvfs::statvfs(at).expect("mounted");
    (seen.blocks() - seen.blocks_free(), seen.files() - seen.files_free())
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_on_a_small_file_system() {
    let place = place();
    let computer = |name: &str, options: &str| {
        let computer = Computer::fresh(&place.path().join(name));
        std::fs::create_dir(computer.clusters()).expect("made");
        mount(&computer.clusters(), options);
        computer
    };
    let whole = computer("whole", "size=64m,nr_inodes=4096");
    let before: HostSeen = whole.lab().host_seen();
    whole.up().expect("there is room");
    let (pages, names) = used(&whole.clusters());
    let littles: Vec<Little> = (1..pages).step_by(2).map(Little::Pages).chain((3..names).step_by(2).map(Little::Names)).collect();
    assert!(littles.len() > 40, "{pages} pages, {names} names");
    for (i, little) in littles.iter().enumerate() {
        let about = format!("{little:?}");
        let cut = computer(&format!("cut-{i}"), &little.options());
        let told = said(&cut.up().expect_err(&about));
        assert!(told.contains("No space left on device"), "{about}: {told}");
        if i % 2 == 0 {
            cut.down().unwrap_or_else(|error| panic!("{about}, down: {error}"));
            cut.goes_down(&before, &format!("{about}, down"));
        }
        mount(&cut.clusters(), "remount,size=64m,nr_inodes=4096");
        cut.comes_up(&format!("{about}, up"));
        cut.goes_down(&before, &format!("{about}, up, down"));
        let status = Command::new("umount").arg(cut.clusters()).status().expect("umount");
        assert!(status.success(), "{about}");
    }
    println!("up on a file system of {pages} pages and {names} names: too small in {} ways", littles.len());
}
