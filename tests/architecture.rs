//! The import table of ARCHITECTURE.md, kept true: who may name whom, and which crate appears where.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]

use std::collections::{BTreeMap, BTreeSet};
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
                let of_tests = |part: &str| ["tests", "tests.rs"].contains(&part) || part.ends_with("_tests.rs");
                if inner.components().any(|part| of_tests(&part.as_os_str().to_string_lossy())) {
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

const ARCHITECTURE: &str = include_str!("../ARCHITECTURE.md");

/// The rows of a table below a heading: module, and whom it names. `None`: everything.
fn table() -> BTreeMap<&'static str, Option<BTreeSet<&'static str>>> {
    let (_, section) = ARCHITECTURE.split_once("\n## Who may name whom\n").expect("the table");
    let section = section.split("\n## ").next().expect("a section");
    let quoted = |text: &'static str| text.split('`').skip(1).step_by(2);
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let (module, names) = line.trim_matches(['|', ' ']).split_once(" | ").expect("two columns");
        let names = match names {
            "everything" => None,
            "nothing" => Some(BTreeSet::new()),
            names => Some(quoted(names).collect()),
        };
        (quoted(module).next().expect("a module"), names)
    });
    rows.collect()
}

/// Whom a module's code names, and a place of each.
fn named() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (module, path, text) in sources() {
        let own = found.entry(module.clone()).or_default();
        for line in code(&text).lines() {
            for part in line.split("crate::").skip(1) {
                let other: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // `crate::{a, b}` would hide whom it names.
                assert!(!other.is_empty(), "{}: {line}", path.display());
                if other != module {
                    own.entry(other).or_insert_with(|| format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    found
}

#[test]
fn modules_name_whom_the_table_lets_them_and_the_table_is_not_stale() {
    let (table, named) = (table(), named());
    for (module, names) in &named {
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        assert!(table.contains_key(module.as_str()), "{module} has no row in ARCHITECTURE.md");
        let Some(row) = &table[module.as_str()] else { continue };
        for (other, place) in names {
            assert!(row.contains(other.as_str()), "{module} may not name {other}: {place}");
        }
        for allowed in row {
            assert!(names.contains_key(*allowed), "{module} does not name {allowed} any more: take it out of ARCHITECTURE.md");
        }
    }
    for module in table.keys() {
        assert!(named.contains_key(*module), "there is no module {module}");
    }
}

/// What a module is for stands in the first table, for every one there is.
#[test]
fn every_module_is_described() {
    let (described, _) = ARCHITECTURE.split_once("\n## Who may name whom\n").expect("the table");
    for module in named().keys().filter(|module| !["lib", "main"].contains(&module.as_str())) {
        let row = described.lines().any(|line| {
            line.starts_with("| `") && line.split(" | ").next().is_some_and(|first| first.contains(&format!("`{module}`")))
        });
        assert!(row, "{module} is not described in ARCHITECTURE.md");
    }
}

/// What decides knows nothing of what acts: these name only each other, `Plan` included.
#[test]
fn pure_modules_name_pure_modules_only() {
    let table = table();
    let pure = ["spec", "near", "event", "timings", "secret", "wait", "plan", "drill"];
    for module in pure {
        let names = table[module].as_ref().expect("a list");
        // A plan's stages are those of `apply`, whose steps are a pure function of it; the catalogue of drills takes a user's file.
        let also = [("plan", "apply"), ("drill", "given")];
        let strange: Vec<_> = names.iter().filter(|name| !(pure.contains(name) || also.contains(&(module, **name)))).collect();
        assert!(strange.is_empty(), "{module} names {strange:?}");
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
        ("strsim::", "near"),
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
