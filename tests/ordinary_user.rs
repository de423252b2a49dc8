//! The way of a user who is not root: what the scripts do for them by sudo, and what `make setup` installs for them. A script stands
//! for sudo, which takes the environment away as the real one does; ours run in a copy, as a user of no name where root runs the tests.
//! Nothing is installed, built or started.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]
#![expect(clippy::disallowed_methods, reason = "it makes programs of its own")]

use ktcw_vm::image::ImageError;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of nobody, when root runs the tests.
const SOMEBODY: u32 = 12345;

/// Says what it was asked for, and takes the environment away.
const SUDO: &str = r#"#!/bin/sh
[ "$1" = -- ] || exit 9
shift
echo sudo >>"$HOME/asked"
exec env -i PATH=/usr/bin:/bin HOME=/root SUDO_UID=1 "$@"
"#;

const GO: &str = r#"#!/bin/sh
[ "$1" = env ] || exit 9
shift
for name; do [ "$name" = GOTELEMETRYDIR ] && echo || echo "$HOME/go/$name"; done
"#;

/// The scripts, programs beside them, and a home.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().expect("a directory") };
        open(place.dir.path());
        for name in ["tree", "tree/setup", "tree/bin", "programs", "a home"] {
            std::fs::create_dir(place.at(name)).expect("made");
            open(&place.at(name));
        }
        place.owned_by_the_user("a home");
        for script in ["setup/env.sh", "setup/libvirt.sh", "setup/images.sh", "bin/ktcw-vm"] {
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).expect("read");
            place.written(&format!("tree/{script}"), &text);
        }
        place.program("sudo", SUDO);
        place.program("go", GO);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn home(&self) -> PathBuf {
        self.at("a home")
    }

    fn written(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::write(&path, text).expect("written");
        open(&path);
        path
    }

    fn program(&self, name: &str, text: &str) -> PathBuf {
        self.written(&format!("programs/{name}"), text)
    }

    fn owned_by_the_user(&self, name: &str) {
        if root() {
            chown(self.at(name), Some(SOMEBODY), Some(SOMEBODY)).expect("given");
        }
    }

    /// A script of the copy, with nothing in its environment but a home and the path.
    fn script(&self, name: &str, by_root: bool) -> Command {
        let mut command = Command::new("setpriv");
        if root() && !by_root {
            let id = SOMEBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        }
        command.arg("--").arg(self.at("tree").join(name));
        let programs = self.at("programs");
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", programs.display())).env("HOME", self.home());
        command.current_dir(self.home());
        command
    }

    /// What the programs were asked for, in order.
    fn asked(&self) -> Vec<String> {
        let asked = std::fs::read_to_string(self.home().join("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }
}

/// To the user of no name, whatever the umask of who runs the tests.
fn open(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("open to all");
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Its exit code, what it printed and what it said.
fn ran(command: &mut Command) -> (Option<i32>, String, String) {
    let ran = command.output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ran.status.code(), text(&ran.stdout), text(&ran.stderr))
}

/// Where libvirt is in a namespace of its own, whose are the files and the network that the program works with.
#[test]
fn through_sudo_the_program_has_the_users_files_and_network() {
    let place = Place::new();
    let text = std::fs::read_to_string(place.at("tree/setup/libvirt.sh")).expect("read");
    let there = text.replace(r#"private_is_there() { [ -e "/run/netns/$namespace" ]; }"#, "private_is_there() { true; }");
    assert_ne!(there, text, "setup/libvirt.sh asks in other words now");
    place.written("tree/setup/libvirt.sh", &there);
    place.written("tree/setup/libvirt-private.sh", "#!/bin/sh\nshift 3\nexec \"$@\"\n");
    let program = place.program(
        "ktcw-vm",
        "#!/bin/sh\necho \"words $*\"\nenv\necho \"caller $(readlink \"$KTCW_CALLER_NETNS\")\"\n\
         echo \"own $(readlink /proc/self/ns/net)\"\n",
    );
    let set = [
        ("XDG_STATE_HOME", "/elsewhere/with a space"),
        ("XDG_CACHE_HOME", "/elsewhere/it's a cache"),
        ("KUBECONFIG", "here"),
        ("KTCW_CLUSTER", "lab"),
        ("https_proxy", "a-proxy:3128"),
        ("KTCW_PROGRAM", &program.display().to_string()),
    ];
    let mut script = place.script("bin/ktcw-vm", false);
    let (code, out, said) = ran(script.args(["proxy", "two words"]).envs(set));
    assert_eq!((code, place.asked()), (Some(0), vec!["sudo".to_owned()]), "{out}{said}");
    let line = |line: String| assert!(out.lines().any(|had| had == line), "{line:?} is not in\n{out}{said}");
    line("words proxy two words".to_owned());
    for (name, value) in set {
        line(format!("{name}={value}"));
    }
    line(format!("HOME={}", place.home().display()));
    let after = |name: &str| out.lines().find_map(|line| line.strip_prefix(name)).expect("said").to_owned();
    // A path, as sudo hands no descriptors on, and one that is there as long as the program runs.
    assert!(after("KTCW_CALLER_NETNS=").ends_with("/ns/net"), "{out}");
    assert!(after("own ").starts_with("net:[") && after("caller ") == after("own "), "{out}{said}");
}

/// As the program tells an ordinary user that they may not.
fn refused() -> String {
    let (said, by_sudo) = ("unshare failed: Operation not permitted".to_owned(), "sudo env …".to_owned());
    let error = ImageError::Namespaces { root: false, said, by_sudo };
    format!("error: {error}\nhint: {}\n", error.hint().expect("a hint"))
}

/// A program that may not build an image, but through sudo.
fn only_root_builds(place: &Place, says: &str) -> PathBuf {
    let says = place.written("says", says).display().to_string();
    place.program(
        "builder",
        &format!(
            "#!/bin/sh\necho \"$* for ${{KTCW_BUILD_FOR:-nobody}}\" >>\"$HOME/asked\"\n\
             [ -n \"$SUDO_UID\" ] && {{ echo built; exit 7; }}\necho first >&2; cat '{says}' >&2; exit 69\n"
        ),
    )
}

#[test]
fn root_builds_the_image_where_an_ordinary_user_may_not() {
    let place = Place::new();
    let program = only_root_builds(&place, &refused());
    let (code, out, said) = ran(place.script("setup/images.sh", false).arg(program).args(["--mirror", "M N"]));
    assert_eq!((code, out.as_str()), (Some(7), "built\n"), "{said}");
    let home = std::fs::metadata(place.home()).expect("there");
    let owner = format!("{}:{}", home.uid(), home.gid());
    let asked = ["image build --mirror M N for nobody", "sudo", &format!("image build --mirror M N for {owner}")];
    assert_eq!(place.asked(), asked, "{said}");
    // It is no error yet, and the hint would be for one.
    assert!(said.starts_with("first\n") && said.contains("sudo may ask") && !said.contains("error:"), "{said}");
    assert!(!said.contains("hint:"), "{said}");
    // Or root would have made them, and what is above them.
    for made in [".cache", ".cache/ktcw-vm", "go", "go/GOCACHE", "go/GOMODCACHE"] {
        assert_eq!(std::fs::metadata(place.home().join(made)).expect(made).uid(), home.uid(), "{made}");
    }
}

#[test]
fn what_an_ordinary_user_lacks_besides_is_nothing_for_root_to_mend() {
    let place = Place::new();
    let program = only_root_builds(&place, "error: a tool needed to build the image is missing: tar\nhint: install it\n");
    let (code, _, said) = ran(place.script("setup/images.sh", false).arg(program));
    assert_eq!((code, place.asked().len()), (Some(69), 1), "{said}");
    assert!(said.ends_with("is missing: tar\nhint: install it\n"), "{said}");
}

/// Files have owners for root only; for whoever else there is nothing to give back.
#[test]
fn what_root_made_for_a_user_is_theirs_also_when_it_failed() {
    if !root() {
        return;
    }
    let place = Place::new();
    for dir in ["a home/.cache", "a home/.cache/ktcw-vm", "a home/go"] {
        std::fs::create_dir_all(place.at(dir)).expect("made");
        place.owned_by_the_user(dir);
    }
    // Go's cache is not this user's here.
    std::fs::create_dir_all(place.at("a home/go/GOCACHE")).expect("made");
    let program = place.program(
        "builder",
        "#!/bin/sh\nmkdir -p \"$HOME/.cache/ktcw-vm/images/one\"\necho x >\"$HOME/.cache/ktcw-vm/images/one/disk\"\n\
         ln -s /etc/hostname \"$HOME/.cache/ktcw-vm/link\"\necho x >\"$HOME/go/GOCACHE/one\"\nexit 3\n",
    );
    let owner = |path: PathBuf| std::fs::symlink_metadata(path).expect("there").uid();
    let owned =
        || ["images", "images/one", "images/one/disk", "link"].map(|name| owner(place.at("a home/.cache/ktcw-vm").join(name)));
    let (code, _, said) = ran(place.script("setup/images.sh", true).arg(&program).env("KTCW_BUILD_FOR", format!("{SOMEBODY}:1")));
    assert_eq!((code, owned()), (Some(3), [SOMEBODY; 4]), "{said}");
    assert_eq!((owner(place.at("a home/go/GOCACHE/one")), owner("/etc".into())), (0, 0));
    // Root's own build is root's.
    std::fs::remove_dir_all(place.at("a home/.cache/ktcw-vm/images")).expect("removed");
    std::fs::remove_file(place.at("a home/.cache/ktcw-vm/link")).expect("removed");
    let (code, _, said) = ran(place.script("setup/images.sh", true).arg(&program));
    assert_eq!((code, owned()), (Some(3), [0; 4]), "{said}");
}

/// `make setup` installs what the tour types: whoever follows it has not typed `make test`.
#[test]
fn programs_that_the_readme_types_are_installed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("read");
    let (readme, installer) = (read("README.md"), read("setup/install.sh"));
    let tour = readme.split("<!-- tour -->").nth(1).expect("a tour");
    let words = tour.lines().filter_map(|line| line.strip_prefix("$ ")?.split(' ').next());
    let mut programs: Vec<&str> = words.filter(|word| !word.contains('=') && !["ktcw-vm", "kill"].contains(word)).collect();
    programs.sort_unstable();
    programs.dedup();
    assert_eq!(programs, ["curl"], "a word of the shell, or a program to install?");
    for program in programs {
        let needed = installer.lines().any(|line| line.starts_with(&format!("run   cmd:{program} ")));
        assert!(needed, "{program} is not among what setup/install.sh installs to run");
    }
}
