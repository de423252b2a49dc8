//! What of a cluster's directory is handed on. It is a list of what may go: beside it a drill or a lab puts copies of etcd's store, which
//! hold all of the cluster's secrets and which no redactor knows.
//! `support` packs what is returned and takes secrets out of it. No file is read further than it goes into the bundle.

use super::Entries;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Most bytes of one file.
const MOST_BYTES: u64 = 4 << 20;
/// The entry that says what is not there.
const LEFT_OUT: &str = "left-out.txt";

/// Said first in there.
const ABOUT: &str = "\
Of the cluster's directory there is in this bundle: cluster.json, plan.json, labs.json, tour.json, lock, the journal, what the watch
over a drill has said, and reports. Events of a run are kept nowhere but as the records of the journal (cluster/journal.jsonl).
Keys (pki, ssh), records of snapshots and copies of etcd's store stay where they are, as does whatever else is there:
";

/// How a file goes that is longer than what may go of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Long {
    /// Not at all: half of it says nothing.
    Stays,
    /// With its end, which is the latest.
    ItsEnd,
}

/// `None`: it stays. `sub` is empty for the directory itself.
fn may_go(sub: &str, name: &str) -> Option<Long> {
    let end = |end: &str| name.ends_with(end) && !name.starts_with('.');
    match (sub, name) {
        ("", "cluster.json" | "plan.json" | "labs.json" | "tour.json" | "lock") => Some(Long::Stays),
        ("", "journal.jsonl" | "drill-watch.log") => Some(Long::ItsEnd),
        // Those that `down` has set aside.
        ("", _) if name.starts_with("journal.damaged") && end(".jsonl") => Some(Long::ItsEnd),
        ("reports", _) if end(".json") || end(".html") => Some(Long::Stays),
        _ => None,
    }
}

/// What the directory holds of that: as text, also where it is damaged.
pub(super) fn of_directory(dir: &Path) -> Entries {
    let mut entries = Entries::new();
    let mut left_out = ABOUT.to_owned();
    for (sub, into) in [("", "cluster"), ("reports", "reports")] {
        let listed = std::fs::read_dir(dir.join(sub)).into_iter().flatten().filter_map(Result::ok);
        for path in listed.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let entry = format!("{into}/{name}");
            // A link leads out of the directory.
            let Ok(seen) = path.symlink_metadata() else { continue };
            if !seen.is_file() {
                continue;
            }
            let Some(long) = may_go(sub, &name) else {
                let _ = writeln!(left_out, "{entry}: {} bytes", seen.len());
                continue;
            };
            let text = match read(&path, long) {
                Ok(Part { text: None, of }) => {
                    let _ = writeln!(left_out, "{entry}: {of} bytes, more than go of one file");
                    format!("left out: {of} bytes\n")
                }
                Ok(Part { text: Some(text), of }) => {
                    if of > MOST_BYTES {
                        let _ = writeln!(left_out, "{entry}: all of its {of} bytes but the last {}", text.len());
                    }
                    text
                }
                Err(error) => format!("cannot be read: {error}\n"),
            };
            entries.insert(entry, text);
        }
    }
    entries.insert(LEFT_OUT.to_owned(), left_out);
    entries
}

struct Part {
    text: Option<String>,
    /// Bytes that the whole file has.
    of: u64,
}

fn read(path: &Path, long: Long) -> io::Result<Part> {
    // By the time that it is opened it may be another one.
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let of = file.metadata()?.len();
    let from = of.saturating_sub(MOST_BYTES);
    if from > 0 && long == Long::Stays {
        return Ok(Part { text: None, of });
    }
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    // It may be growing.
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    let whole_lines = match from {
        0 => 0,
        // Half a line could be half a secret, which nobody would know for one.
        _ => bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1),
    };
    Ok(Part { text: Some(String::from_utf8_lossy(&bytes[whole_lines..]).into_owned()), of })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_the_list_stays() {
        for (sub, name, goes) in [
            ("", "cluster.json", Some(Long::Stays)),
            ("", "journal.jsonl", Some(Long::ItsEnd)),
            ("", "journal.damaged-1.jsonl", Some(Long::ItsEnd)),
            ("", "drill-watch.log", Some(Long::ItsEnd)),
            ("", "snapshot.db", None),
            ("", "snapshot.db.partial", None),
            ("", ".tmp-cluster.json-aB3dE6", None),
            ("", "notes.txt", None),
            ("reports", "leader-kill-20261124-220000.json", Some(Long::Stays)),
            ("reports", "leader-kill-20261124-220000.html", Some(Long::Stays)),
            ("reports", "snapshot.db", None),
            ("reports", ".hidden.json", None),
            ("reports", "cluster.yaml", None),
        ] {
            assert_eq!(may_go(sub, name), goes, "{sub}/{name}");
        }
    }

    /// A gigabyte of a report is not read to be left out, and of a journal the end is what happened last.
    #[test]
    fn of_a_long_journal_the_end_goes_and_of_a_long_report_its_size() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("reports")).expect("made");
        let line = |number: usize| format!("{{\"seq\":{number},\"padding\":\"{}\"}}\n", "x".repeat(1000));
        let journal: String = (1..=5000).map(line).collect();
        std::fs::write(dir.path().join("journal.jsonl"), &journal).expect("written");
        std::fs::write(dir.path().join("drill-watch.log"), "y".repeat(5 << 20)).expect("written");
        let report = std::fs::File::create(dir.path().join("reports/long.json")).expect("made");
        report.set_len(1 << 36).expect("as if it were long");

        let entries = of_directory(dir.path());
        let kept = &entries["cluster/journal.jsonl"];
        assert!(kept.len() as u64 <= MOST_BYTES && kept.len() as u64 + 2000 > MOST_BYTES, "{}", kept.len());
        assert!(kept.starts_with("{\"seq\":") && journal.ends_with(kept.as_str()), "whole lines, the last ones");
        assert_eq!(entries["cluster/drill-watch.log"], "", "one line that would have to be cut");
        assert_eq!(entries["reports/long.json"], format!("left out: {} bytes\n", 1_u64 << 36));
        let left_out = &entries[LEFT_OUT];
        for said in [
            format!("cluster/journal.jsonl: all of its {} bytes but the last {}\n", journal.len(), kept.len()),
            format!("cluster/drill-watch.log: all of its {} bytes but the last 0\n", 5 << 20),
            format!("reports/long.json: {} bytes, more than go of one file\n", 1_u64 << 36),
        ] {
            assert!(left_out.contains(&said), "{said} of {left_out}");
        }
    }
}
