//! `image build` where nothing answers: the module proxy, then the Debian archive, at a port of this computer that nobody listens on.
//! It ends, says which step could not be done and why, and leaves nothing that another build or `up` would take for finished.
//! It wants the tools that an image is built with: `make setup` installs them. Where this user may make no namespaces these tests say
//! so and pass, except under CI.

#![expect(clippy::expect_used, clippy::print_stderr, reason = "a test fails where it finds a fault, and says what it leaves out")]
#![expect(clippy::disallowed_methods, reason = "it makes a program of its own")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Port 1 of the loopback is reserved, and refuses.
const NOWHERE: &str = "http://127.0.0.1:1";

struct Build {
    place: tempfile::TempDir,
}

impl Build {
    fn new() -> Build {
        Build { place: tempfile::tempdir().expect("a directory") }
    }

    fn cache(&self) -> PathBuf {
        self.place.path().join("cache")
    }

    /// `first` is looked through for programs before the others.
    fn run(&self, words: &[&str], first: Option<&Path>) -> Output {
        let path = std::env::var_os("PATH").expect("a path");
        // A plain user's lacks mke2fs.
        let others = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let path = std::env::join_paths(first.map(Path::to_owned).into_iter().chain(others)).expect("a path");
        Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
            .args(words)
            .env("PATH", path)
            .env("KTCW_CACHE_DIR", self.cache())
            .env("KTCW_STATE_DIR", self.place.path().join("clusters"))
            .env("GOPROXY", NOWHERE)
            .env("GOSUMDB", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOMODCACHE", self.place.path().join("modules"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .expect("the program starts")
    }

    /// Builds, and returns what is said about why it could not. `None` where it may not even begin, and nobody insists.
    fn fails(&self, first: Option<&Path>) -> Option<String> {
        let begin = Instant::now();
        let ran = self.run(&["image", "build", "--mirror", &format!("{NOWHERE}/debian")], first);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        if ran.status.code() == Some(69) && said.contains("make the namespaces") {
            assert!(std::env::var_os("CI").is_none(), "CI needs root, or namespaces of a user's own: {said}");
            eprintln!("not run: {said}");
            return None;
        }
        assert_eq!(ran.status.code(), Some(1), "{said}");
        assert!(begin.elapsed() < Duration::from_secs(120), "{} s", begin.elapsed().as_secs());
        Some(said)
    }

    /// Finished stages and images.
    fn finished(&self) -> Vec<String> {
        let below = |name: &str| std::fs::read_dir(self.cache().join(name)).into_iter().flatten();
        let names = below("stages").chain(below("images")).map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn lists_nothing(&self) {
        let listed = self.run(&["image", "list"], None);
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "no images here; make one: ktcw-vm image build\n");
    }
}

fn tells(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
}

#[test]
fn a_module_proxy_that_does_not_answer_is_named_and_nothing_is_left() {
    let build = Build::new();
    let Some(said) = build.fails(None) else { return };
    // The module's step, Go's own reason, the way out.
    tells(&said, &["hyperkube", "go build", "127.0.0.1:1", "connection refused", "log in ", "hint: ", "GOPROXY"]);
    assert_eq!(build.finished(), Vec::<String>::new());
    build.lists_nothing();
    // And once more: what the first has left is in nobody's way.
    tells(&build.fails(None).expect("as before"), &["hyperkube", "connection refused"]);
}

/// Go's work is done by one who does it at once, so that the archive is asked at all.
#[test]
fn a_debian_archive_that_does_not_answer_is_named_and_what_was_finished_is_kept() {
    let build = Build::new();
    let quick = build.place.path().join("quick");
    std::fs::create_dir(&quick).expect("made");
    let go = "#!/bin/sh\n[ \"$1\" = env ] && { echo go1.99.9; exit; }\n[ \"$1\" = build ] || exit 0\n\
              while [ $# -gt 1 ]; do [ \"$1\" = -o ] && echo program >\"$2\"; shift; done\n";
    std::fs::write(quick.join("go"), go).expect("written");
    std::fs::set_permissions(quick.join("go"), std::fs::Permissions::from_mode(0o755)).expect("a program");
    let Some(said) = build.fails(Some(&quick)) else { return };
    tells(&said, &["container base", "127.0.0.1:1", "log in ", "hint: ", "--mirror"]);
    let finished = build.finished();
    assert!(finished.iter().any(|stage| stage.starts_with("etcd-")), "{finished:?}");
    assert!(!finished.iter().any(|stage| stage.starts_with("container-os") || stage.starts_with("guest-os")), "{finished:?}");
    assert!(std::fs::read_dir(build.cache().join("images")).is_ok_and(|mut all| all.next().is_none()), "no image");
    build.lists_nothing();
    // The next one begins where it stopped.
    let again = build.fails(Some(&quick)).expect("as before");
    tells(&again, &["there already", "container base"]);
}
