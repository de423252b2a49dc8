//! A user whom groups keep from libvirt and from KVM: `setup/libvirt.sh` gives the groups, and runs what is to run with both. `sg`,
//! `sudo` and `id` stand in as scripts; a file and a socket that this user may not open are the doors.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]
#![expect(clippy::disallowed_methods, reason = "it makes programs of its own")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

/// The script in a directory that anybody may enter, beside doors that nobody may open and programs that write down what they are asked.
struct Place {
    dir: tempfile::TempDir,
    _socket: UnixListener,
}

impl Place {
    /// Where Ann is a member of these groups, as far as `id` knows, and /dev/kvm is open to that group of its own.
    fn new(member_of: &str, opens_kvm: &str) -> Place {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let may = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for sub in ["setup", "bin"] {
            std::fs::create_dir(at(sub)).expect("made");
            may(&at(sub), 0o755);
        }
        for name in ["setup/env.sh", "setup/libvirt.sh"] {
            std::fs::copy(root.join(name), at(name)).expect("copied");
            may(&at(name), 0o755);
        }
        let said = at("said").display().to_string();
        for (name, body) in [
            ("id", format!("[ \"$1\" = -un ] && echo ann || echo 'ann {member_of}'")),
            ("stat", format!("echo '{opens_kvm}'")),
            ("sg", format!("echo \"sg $1\" >>{said}; [ \"$2\" = -c ] && exec sh -c \"$3\"")),
            ("sudo", format!("echo \"$*\" | sed 's/.* usermod/usermod/' >>{said}")),
            ("virsh", "exit 0".to_owned()),
        ] {
            let path = at("bin").join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("written");
            may(&path, 0o755);
        }
        for name in ["said", "kvm"] {
            std::fs::write(at(name), "").expect("written");
        }
        let socket = UnixListener::bind(at("socket")).expect("a socket");
        for (name, mode) in [("said", 0o666), ("kvm", 0), ("socket", 0), (".", 0o755)] {
            may(&at(name), mode);
        }
        Place { dir, _socket: socket }
    }

    /// Root may open every door: where the suite runs as root, nobody types it.
    fn typed(&self, words: &[&str]) -> Output {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = match nix::unistd::geteuid().is_root() {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(at("setup/libvirt.sh"));
                command
            }
            false => Command::new(at("setup/libvirt.sh")),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(words).current_dir(self.dir.path());
        command.env("PATH", format!("{}:{path}", at("bin").display()));
        command.env("KTCW_NETNS", "ktcw-no-such").env("KTCW_LIBVIRT_SOCKET", at("socket")).env("KTCW_KVM", at("kvm"));
        command.output().expect("it runs")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("said")).expect("read")
    }
}

const DEBIAN: &str = "kvm crw-rw----";

#[test]
fn what_runs_with_groups_given_today_has_all_of_them_and_its_words_as_they_were() {
    let place = Place::new("sudo libvirt kvm", DEBIAN);
    let ran = place.typed(&["exec", "printf", "%s|", "a  b", "it's", "\"$HOME\"", ""]);
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "a  b|it's|\"$HOME\"||", "{ran:?}");
    assert_eq!(place.said(), "sg kvm\nsg libvirt\n");
    for (member_of, said) in [("libvirt", "sg libvirt\n"), ("kvm", "sg kvm\n"), ("sudo kvm-users", "")] {
        let place = Place::new(member_of, DEBIAN);
        let ran = place.typed(&["exec", "echo", "ran"]);
        assert_eq!((&*String::from_utf8_lossy(&ran.stdout), &*place.said()), ("ran\n", said), "{member_of}: {ran:?}");
    }
}

#[test]
fn set_up_lets_the_user_to_kvm_where_a_group_is_all_that_is_lacking() {
    for (member_of, opens_kvm, said) in [
        ("libvirt", DEBIAN, "usermod --append --groups kvm ann\n"),
        ("libvirt kvm", DEBIAN, ""),
        // Nobody is made a member of root's group, or of one that may not open it either.
        ("libvirt", "root crw-rw----", ""),
        ("libvirt", "kvm crw-------", ""),
    ] {
        let place = Place::new(member_of, opens_kvm);
        let ran = place.typed(&["ensure"]);
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(place.said(), said, "{member_of}, {opens_kvm}: {ran:?}");
    }
}
