//! `make audit` says what it found out: nothing known, something known, or that it could not ask. The tools stand in as scripts that
//! answer as the real ones do; what those say of our dependencies is theirs.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]
#![expect(clippy::disallowed_methods, reason = "it makes programs of its own")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const CHECKED: i32 = 0;
const KNOWN: i32 = 1;
const NOT_CHECKED: i32 = 69;

/// cargo-deny: whether the database can be fetched, whether it knows of anything.
fn deny(reachable: bool, clean: bool) -> String {
    let (fetch, check) = (i32::from(!reachable), i32::from(!clean));
    format!(
        "for word in \"$@\"; do case $word in\n\
         fetch) [ {fetch} = 0 ] || echo 'failed to fetch advisory database' >&2; exit {fetch};;\n\
         check) [ {check} = 0 ] || echo 'error[vulnerability]: a hole'; exit {check};;\n\
         esac; done; exit 9\n"
    )
}

/// govulncheck: exit 3 is its word for something known.
fn vulncheck(reachable: bool, clean: bool) -> String {
    match (reachable, clean) {
        (false, _) => "echo 'govulncheck: fetching vulnerabilities: no such host' >&2; exit 1\n".to_owned(),
        (true, true) => "echo 'No vulnerabilities found.'\n".to_owned(),
        (true, false) => "echo 'Vulnerability #1: GO-1'; exit 3\n".to_owned(),
    }
}

fn audit(deny: &str, vulncheck: &str) -> (i32, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = tempfile::tempdir().expect("a directory");
    // Where setup/tool.sh keeps what it has built once.
    let versions = std::fs::read_to_string(root.join("setup/tool.sh")).expect("read");
    for (name, body) in [("cargo-deny", deny), ("govulncheck", vulncheck)] {
        let line = versions.lines().find(|line| line.trim_start().starts_with(&format!("{name}) version="))).expect("pinned");
        let version = line.split("version=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a version");
        let bin = cache.path().join(format!("tools/{name}-{version}/bin"));
        std::fs::create_dir_all(&bin).expect("made");
        std::fs::write(bin.join(name), format!("#!/bin/sh\n{body}")).expect("written");
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).expect("a program");
    }
    let ran = Command::new(root.join("setup/audit.sh")).env("KTCW_CACHE_DIR", cache.path()).output().expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    (ran.status.code().expect("it ends"), said)
}

#[test]
fn what_could_not_be_asked_is_not_checked_and_never_clean() {
    let (code, said) = audit(&deny(false, true), &vulncheck(false, true));
    assert_eq!(code, NOT_CHECKED, "{said}");
    assert!(!said.contains("nothing known") && said.matches("not checked").count() == 2, "{said}");
    // Half an answer is none for the other half.
    for (rust, go) in [((true, true), (false, true)), ((false, true), (true, true))] {
        let (code, said) = audit(&deny(rust.0, rust.1), &vulncheck(go.0, go.1));
        assert_eq!(code, NOT_CHECKED, "{said}");
        assert!(said.contains("not checked") && said.contains("nothing known"), "{said}");
    }
}

#[test]
fn what_is_known_outweighs_what_could_not_be_asked() {
    for (rust, go) in [((true, false), (false, true)), ((false, true), (true, false)), ((true, false), (true, false))] {
        let (code, said) = audit(&deny(rust.0, rust.1), &vulncheck(go.0, go.1));
        assert_eq!(code, KNOWN, "{said}");
        assert!(said.contains("VULNERABLE"), "{said}");
    }
    let (code, said) = audit(&deny(true, true), &vulncheck(true, true));
    assert_eq!(code, CHECKED, "{said}");
    assert!(!said.contains("not checked") && !said.contains("VULNERABLE"), "{said}");
}
