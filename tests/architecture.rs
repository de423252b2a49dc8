//! The import table of ARCHITECTURE.md, kept true: who may name whom, and which crate appears where.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, PathBuf, String)> {
    let mut found = Vec::new();
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of sources").map(|e| e.expect("an entry").path()) {
            if entry.is_dir() {
                todo.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let inner = entry.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("inside src");
                // Unit tests may use what they like, also those in files of their own.
                if inner.components().any(|part| ["tests", "tests.rs"].iter().any(|tests| part.as_os_str() == *tests)) {
                    continue;
                }
                let first = inner.components().next().expect("a name").as_os_str().to_string_lossy();
                let module = first.trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&entry).expect("text");
                found.push((module, entry, text));
            }
        }
    }
    assert!(found.len() > 40, "the sources are where they are looked for");
    found
}

/// Code without its unit tests, which may use what they like.
fn code(text: &str) -> String {
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

#[test]
fn pure_modules_import_pure_modules_only() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("spec", &[][..]),
        ("plan", &["spec", "secret", "apply", "event"][..]),
        ("event", &["spec"][..]),
        ("secret", &[][..]),
        ("wait", &[][..]),
        ("preflight", &["host", "plan", "snapshot"][..]),
        // Machines and processes are behind its traits: `inject` has the machines.
        ("drill", &["spec", "secret", "event", "wait"][..]),
    ]);
    for (module, path, text) in sources() {
        let Some(allowed) = allowed.get(module.as_str()) else { continue };
        for line in code(&text).lines().filter(|line| line.contains("crate::")) {
            for part in line.split("crate::").skip(1) {
                let other: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(other == module || allowed.contains(&other.as_str()), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn each_edge_library_has_one_home() {
    for (library, home) in [
        ("virt::", "host"),
        ("russh::", "guest"),
        ("rcgen::", "pki"),
        ("reqwest::", "api"),
        ("indicatif::", "progress"),
        ("hadris_iso::", "seed"),
        ("clap::", "cli"),
        ("ratatui::", "top"),
    ] {
        for (module, path, text) in sources() {
            // `AccelChoice` is a value enum of the command line and of the spec.
            if module == home || (library == "clap::" && module == "spec") {
                continue;
            }
            let text = code(&text);
            // `libvirt::` is not `virt::`.
            let mut hits = text.match_indices(library).map(|(at, _)| text[..at].chars().next_back());
            let used = hits.any(|before| !before.is_some_and(|c| c.is_alphanumeric() || c == '_'));
            assert!(!used, "{} uses {library} outside {home}", path.display());
        }
    }
}

#[test]
fn pure_modules_know_no_clock_chance_environment_or_files() {
    for (module, path, text) in sources() {
        if !["spec", "plan"].contains(&module.as_str()) {
            continue;
        }
        for word in ["std::fs", "std::env", "SystemTime", "Timestamp::now", "tokio::", "new_v4", "rand::", "std::process"] {
            assert!(!code(&text).contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn nothing_below_cli_prints() {
    for (module, path, text) in sources() {
        if module == "cli" || module == "progress" {
            continue;
        }
        for word in ["println!(", "eprintln!(", "print!(", "process::exit("] {
            let hits = code(&text).lines().filter(|l| !l.trim_start().starts_with("//") && l.contains(word)).count();
            assert_eq!(hits, 0, "{} uses {word}", path.display());
        }
    }
}
