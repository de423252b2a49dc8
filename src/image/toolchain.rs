//! The Go toolchain of a build: one for all modules, the same that the keys and the image's own list name.
//! `build` and `cache` ask for its version; `build` hands it on to every call of Go.
//! Go itself would take another one for each module whose `go.mod` asks for more than is installed, and for the directory that the
//! program was started in.

use super::command::Tool;
use super::inputs::SOURCES;

/// The version that compiles (`go1.26.8`): the installed one, or the one that Go fetches because a module asks for more.
///
/// # Errors
/// What `go` said, or why it could not be started.
pub fn version() -> Result<String, String> {
    // In no module: one that happens to be around the caller may ask for yet another toolchain.
    let installed = Tool::new("go").args(["env", "GOVERSION"]).directory("/").answer()?;
    if installed.is_empty() { Err("it does not know its own version".to_owned()) } else { Ok(chosen(&installed, &asked_for())) }
}

/// What makes Go compile with exactly this version: `GOTOOLCHAIN`. One that was built from a working copy has no name to be asked
/// for, and is the installed one.
pub fn variable(version: &str) -> &str {
    if numbers(version).is_some() { version } else { "local" }
}

/// The highest `go` line of our modules (`1.26.6`).
fn asked_for() -> String {
    let lines = SOURCES.iter().filter(|source| source.path.ends_with("/go.mod")).flat_map(|source| source.text.lines());
    let asked = lines.filter_map(|line| line.strip_prefix("go "));
    asked.max_by_key(|version| numbers(version)).unwrap_or_default().trim().to_owned()
}

fn chosen(installed: &str, asked_for: &str) -> String {
    match (numbers(installed), numbers(asked_for)) {
        (Some(have), Some(want)) if have < want => format!("go{asked_for}"),
        _ => installed.to_owned(),
    }
}

/// Of a released version; `None` for release candidates and working copies, which nobody has without wanting them.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.strip_prefix("go").unwrap_or(version).trim().split('.').map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_go_is_named_as_the_one_it_fetches() {
        let table = [
            ("go1.26.8", "1.26.6", "go1.26.8"),
            ("go1.26.6", "1.26.6", "go1.26.6"),
            ("go1.26.0", "1.26.6", "go1.26.6"),
            ("go1.9.7", "1.26.6", "go1.26.6"),
            ("go1.27", "1.26.6", "go1.27"),
            ("go1.26rc1", "1.26.6", "go1.26rc1"),
            ("devel go1.28-5f3a Mon", "1.26.6", "devel go1.28-5f3a Mon"),
        ];
        for (installed, asked_for, expected) in table {
            assert_eq!(chosen(installed, asked_for), expected, "{installed}");
        }
    }

    #[test]
    fn only_a_release_can_be_asked_for_by_name() {
        assert_eq!(variable("go1.26.8"), "go1.26.8");
        assert_eq!(variable("devel go1.28-5f3a Mon"), "local");
        assert_eq!(variable("go1.26.8 X:nodwarf5"), "local");
    }

    #[test]
    fn no_module_asks_for_more_than_what_is_chosen() {
        let asked = numbers(&asked_for()).expect("a version");
        for source in SOURCES.iter().filter(|source| source.path.ends_with("/go.mod")) {
            let line = source.text.lines().find_map(|line| line.strip_prefix("go ")).expect("a go line");
            assert!(numbers(line).expect("a version") <= asked, "{}", source.path);
            assert!(!source.text.contains("\ntoolchain "), "{} asks for a toolchain that is not counted here", source.path);
        }
    }
}
