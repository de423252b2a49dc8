//! A file onto a node, whole or not at all.
//! `apply` and verbs call it with any `Guest`; the content travels on standard input, never on a command line.
//! It knows no paths of its own and makes no directories.

use super::{Cmd, Guest, GuestError, quote, run_ok};
use crate::spec::NodeName;
use std::time::Duration;

/// Writes `bytes` to `path` (absolute) with these mode bits: private from its creation, on disk before it gets its name,
/// and given its name only when every byte has come. Doing it twice is the same as doing it once.
///
/// Errors: those of `Guest::run`; `Failed` when the directory is not there or the disk is full.
pub async fn put(
    guest: &dyn Guest,
    node: &NodeName,
    path: &str,
    bytes: &[u8],
    mode: u32,
    deadline: Duration,
) -> Result<(), GuestError> {
    let mut cmd = Cmd::new(script(path, bytes.len(), mode), deadline);
    cmd.stdin = Some(bytes.to_vec());
    run_ok(guest, node, cmd).await.map(|_| ())
}

/// A lost connection looks like the end of the input to `cat`, hence the count.
fn script(path: &str, length: usize, mode: u32) -> String {
    let (path, template) = (quote(path), quote(&format!("{path}.XXXXXX")));
    format!(
        "umask 077; t=$(mktemp -- {template}) || exit 1; \
         if cat >\"$t\" && [ \"$(wc -c <\"$t\")\" -eq {length} ] && chmod {mode:04o} \"$t\" && sync \"$t\" && mv -fT -- \"$t\" {path}; \
         then :; else rm -f -- \"$t\"; echo \"{length} bytes were not written\" >&2; exit 1; fi"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    fn shell(line: &str, stdin: &[u8]) -> (bool, String) {
        let mut child =
            Command::new("sh").args(["-c", line]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sh runs");
        let _ = child.stdin.take().expect("stdin").write_all(stdin);
        let out = child.wait_with_output().expect("ended");
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    fn names(dir: &std::path::Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).expect("dir").map(|e| e.expect("entry").file_name().into_string().expect("utf-8")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_with_its_mode_under_any_name_and_replaces_the_old_one() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["plain.key", "it's a file $(rm -rf x) XXX", "-dash"] {
            let path = dir.path().join(name);
            let path = path.to_str().expect("utf-8");
            for content in [&b"first\0\xff"[..], b"", b"second"] {
                let (ok, stderr) = shell(&script(path, content.len(), 0o640), content);
                assert!(ok, "{stderr}");
                assert_eq!(std::fs::read(path).expect("written"), content);
                assert_eq!(std::fs::metadata(path).expect("there").permissions().mode() & 0o7777, 0o640);
            }
        }
        assert_eq!(names(dir.path()).len(), 3);
    }

    #[test]
    fn an_input_cut_short_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, "old").expect("written");
        let (ok, stderr) = shell(&script(path.to_str().expect("utf-8"), 10, 0o600), b"only 9 by");
        assert!(!ok && stderr.contains("10 bytes were not written"), "{stderr}");
        assert_eq!((std::fs::read_to_string(&path).expect("there").as_str(), names(dir.path()).len()), ("old", 1));
        let (ok, _) = shell(&script("/nowhere/at/all", 1, 0o600), b"x");
        assert!(!ok);
    }
}
