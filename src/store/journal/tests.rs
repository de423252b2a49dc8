use super::*;
use crate::store::crash;
use proptest::prelude::*;

fn journal(dir: &Path) -> (Journal, History) {
    Journal::open(&dir.join("journal.jsonl"), Uuid::from_u128(7), "up").expect("opened")
}
fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}
fn steps(records: &[&Record]) -> Vec<String> {
    let name = |record: &&Record| match &record.entry {
        Entry::Step { step, .. } => step.clone(),
        Entry::Undo { key, .. } | Entry::Undone { key } => key.clone(),
    };
    records.iter().map(name).collect()
}
/// Three steps: one done, one failed, one begun; one fault healed, one in force.
fn eventful(dir: &Path) -> Vec<u8> {
    let (journal, _) = journal(dir);
    let node = NodeName::controller(1);
    journal.begin("define", Some(&node)).expect("written");
    journal.begin_with("network", None, serde_json::json!({"bridge": "kt0"})).expect("written");
    journal.done("define", Some(&node)).expect("written");
    journal.failed("network", None, "libvirt said \"no\"\n").expect("written");
    journal.begin("start", Some(&node)).expect("written");
    journal.undo("pause controller-1", Some(&node), serde_json::json!({"resume": "controller-1"})).expect("written");
    journal.undo("drop 2380", None, serde_json::json!({"table": "ktcw"})).expect("written");
    journal.undone("pause controller-1").expect("written");
    std::fs::read(dir.join("journal.jsonl")).expect("read")
}

#[test]
fn what_was_written_is_read_and_says_what_is_open() {
    let dir = dir();
    eventful(dir.path());
    let history = read(&dir.path().join("journal.jsonl")).expect("whole");
    assert_eq!(history.records.iter().map(|r| r.seq).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert!(history.records.iter().all(|r| r.verb == "up" && r.run == Uuid::from_u128(7) && r.version == VERSION));
    assert_eq!(steps(&history.pending()), ["start"]);
    assert_eq!(steps(&history.failed()), ["network"]);
    assert_eq!(steps(&history.undos()), ["drop 2380"]);
    assert!(!history.torn);
}

#[test]
fn a_later_run_that_finishes_a_step_closes_it_and_numbers_go_on() {
    let dir = dir();
    eventful(dir.path());
    let (second, history) = Journal::open(&dir.path().join("journal.jsonl"), Uuid::from_u128(8), "up").expect("opened");
    assert_eq!(steps(&history.pending()), ["start"]);
    let node = NodeName::controller(1);
    // The same step on another node is another step.
    second.begin("start", Some(&NodeName::controller(2))).expect("written");
    second.begin("start", Some(&node)).expect("written");
    second.done("start", Some(&node)).expect("written");
    second.begin("network", None).expect("written");
    let history = read(&dir.path().join("journal.jsonl")).expect("whole");
    let open: Vec<_> = history.pending().iter().map(|r| (r.seq, r.run)).collect();
    assert_eq!(open, [(9, Uuid::from_u128(8)), (12, Uuid::from_u128(8))]);
    assert_eq!(steps(&history.failed()), [""; 0], "the retry is under way");
}

#[test]
fn no_file_is_an_empty_history_and_lines_are_plain_json() {
    let dir = dir();
    assert_eq!(read(&dir.path().join("journal.jsonl")).expect("nothing yet"), History::default());
    let text = String::from_utf8(eventful(dir.path())).expect("text");
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).expect("JSON");
        assert!(value["sum"].as_str().is_some_and(|sum| sum.len() == 8) && value["version"] == 1 && value["at"].is_string());
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.path().join("journal.jsonl")).expect("there"));
    assert_eq!(mode & 0o777, 0o600);
}

/// A crash in the middle of a write: at every length the whole lines are read, the rest is left out, and the next
/// run cuts it off and goes on.
#[test]
fn a_torn_last_line_is_left_out_at_every_length() {
    let source = dir();
    let bytes = eventful(source.path());
    let (dir, path) = {
        let dir = dir();
        let path = dir.path().join("journal.jsonl");
        (dir, path)
    };
    for length in 0..bytes.len() {
        files::write_atomic(&path, &bytes[..length], files::SECRET).expect("written");
        let lines = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
        let history = read(&path).expect("tolerated");
        assert_eq!((history.records.len(), history.torn), (lines, length > 0 && bytes[length - 1] != b'\n'), "at {length}");
        if length % 37 == 0 {
            let (journal, _) = journal(dir.path());
            journal.begin("again", None).expect("written");
            let history = read(&path).expect("whole again");
            assert_eq!((history.records.len(), history.torn), (lines + 1, false), "at {length}");
        }
    }
}

#[test]
fn damage_before_the_end_is_reported_with_its_line_and_salvage_keeps_the_rest() {
    let dir = dir();
    let path = dir.path().join("journal.jsonl");
    let whole = eventful(dir.path());
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let without =
        |skip: usize| lines.iter().enumerate().filter(|(i, _)| *i != skip).flat_map(|(_, l)| l.to_vec()).collect::<Vec<_>>();
    let replaced = |at: usize, by: &[u8]| {
        lines.iter().enumerate().flat_map(|(i, l)| if i == at { by.to_vec() } else { l.to_vec() }).collect::<Vec<_>>()
    };
    for (bytes, line, says, kept) in [
        (replaced(2, b"garbage\n"), 3, "no checksum", 7),
        (replaced(4, b"\n"), 5, "no checksum", 7),
        (replaced(0, &[0xff, 0, b'\n']), 1, "no checksum", 7),
        (replaced(3, lines[4]), 4, "record 4 should be here, and it is 5", 8),
        (without(5), 6, "record 6 should be here, and it is 7", 7),
        (replaced(1, &[lines[1], b"}\n"].concat()), 3, "no checksum", 8),
    ] {
        files::write_atomic(&path, &bytes, files::SECRET).expect("written");
        let error = read(&path).expect_err(says);
        assert!(
            matches!(&error, JournalError::Damaged { damage, .. } if damage.line == line && damage.what.contains(says)),
            "{error}"
        );
        assert!(error.to_string().contains(&format!("line {line}")) && error.hint().is_some(), "{error}");
        assert!(Journal::open(&path, Uuid::nil(), "up").is_err(), "not written to");
        assert_eq!(salvage(&path).expect("readable").0.records.len(), kept);

        let aside = set_aside(&path).expect("set aside").expect("it was damaged");
        assert_eq!(std::fs::read(&aside).expect("kept"), bytes, "byte for byte");
        let history = read(&path).expect("whole");
        assert_eq!(history.records.len(), kept);
        assert_eq!(set_aside(&path).expect("fine"), None, "nothing wrong any more");
    }
}

/// Who takes a cluster down needs no word of it, and nobody is left with a cluster that no verb opens.
#[test]
fn a_journal_too_long_to_be_read_is_set_aside_unread() {
    let dir = dir();
    let path = dir.path().join("journal.jsonl");
    eventful(dir.path());
    OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(files::LIMIT + 1)).expect("most of it a hole");
    let error = read(&path).expect_err("too long");
    assert!(error.hint().is_some_and(|hint| hint.contains("ktcw-vm down")), "{error}");
    let aside = set_aside(&path).expect("set aside").expect("it was not read");
    assert_eq!(std::fs::metadata(aside).expect("kept").len(), files::LIMIT + 1);
    assert_eq!(read(&path).expect("whole"), History::default());
    journal(dir.path()).0.begin("remove", None).expect("written");
}

#[test]
fn what_failed_is_kept_short_however_long_a_node_says_why() {
    let dir = dir();
    let (journal, _) = journal(dir.path());
    for word in ["\u{1b}", "x", "\u{1}\n"] {
        journal.failed("start", None, &format!("controller-0: {} refused", word.repeat(2 << 20))).expect("written");
    }
    let text = std::fs::read_to_string(dir.path().join("journal.jsonl")).expect("text");
    assert!(text.lines().all(|line| line.len() < 8 << 10), "{} bytes", text.len());
    let Entry::Step { detail, .. } = &read(&dir.path().join("journal.jsonl")).expect("whole").records[1].entry else {
        panic!("a step")
    };
    assert!(detail.as_str().is_some_and(|why| why.starts_with("controller-0: x") && why.ends_with("x refused")), "{detail}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever bit flips: reported as damage, or (the last line's end) a torn line. Never read as if it had been written so.
    #[test]
    fn no_flipped_bit_goes_unnoticed(at in 0usize..1 << 20, bit in 0u8..8) {
        let dir = dir();
        let whole = eventful(dir.path());
        let (original, _) = parse(&whole).expect("ours");
        let mut bytes = whole.clone();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let (history, damage) = parse(&bytes).expect("never taken for a newer version");
        prop_assert!(!damage.is_empty() || (at == bytes.len() - 1 && history.torn));
        for record in &history.records {
            prop_assert!(original.records.contains(record), "a record that was never written");
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes);
    }
}

/// Nobody writes so many records, but a line can say so: what comes after it is damage, and no end of the program.
#[test]
fn after_the_last_number_there_is_nothing_to_count() {
    let dir = dir();
    let path = dir.path().join("journal.jsonl");
    let whole = eventful(dir.path());
    let first = whole.split_inclusive(|byte| *byte == b'\n').next().expect("a line");
    let record = unseal(first).expect("sealed").1.expect("a record");
    let last = seal(&Record { seq: u64::MAX, ..record }).expect("sealed");
    for after in [b"garbage\n".to_vec(), sealed(b"{\"version\":1}")] {
        let bytes = [&last[..], &after, &after].concat();
        files::write_atomic(&path, &bytes, files::SECRET).expect("written");
        let (history, damage) = salvage(&path).expect("readable");
        assert_eq!((history.records.len(), damage.len()), (1, 3), "{damage:?}");
        set_aside(&path).expect("set aside").expect("it was damaged");
        assert_eq!(read(&path).expect("whole").records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1]);
    }
}

#[test]
fn a_newer_record_is_refused_as_newer_and_not_called_damaged() {
    let dir = dir();
    let path = dir.path().join("journal.jsonl");
    let mut bytes = eventful(dir.path());
    let body = br#"{"version":2,"seq":9,"shape":"unknown"}"#;
    bytes.extend_from_slice(&sealed(body));
    files::write_atomic(&path, &bytes, files::SECRET).expect("written");
    assert!(matches!(read(&path), Err(JournalError::Newer { found: 2, .. })));
    assert!(matches!(Journal::open(&path, Uuid::nil(), "up"), Err(JournalError::Newer { .. })));
    assert!(matches!(set_aside(&path), Err(JournalError::Newer { .. })), "not ours to cut");
}

/// The record is on the disk before the effect: killed at any point, the child has announced everything it did.
#[test]
fn killed_at_every_point_the_journal_is_whole_and_ahead_of_the_effects() {
    let count = dir();
    let counted = count.path().join("count");
    let calm = dir();
    let child = "store::journal::tests::child_works";
    assert!(!crash::aborts(child, &[("KTCW_TEST_DIR", &calm.path()), ("KTCW_FAIL_COUNT", &counted)]));
    let points: Vec<String> = std::fs::read_to_string(&counted).expect("counted").lines().map(str::to_owned).collect();
    assert_eq!(points.len(), 12, "{points:?}");
    assert_eq!(points[..2], ["journal:before begin step 0", "journal:begin step 0"]);
    for number in 1..=points.len() {
        let dir = dir();
        assert!(crash::aborts(child, &[("KTCW_TEST_DIR", &dir.path()), ("KTCW_FAIL_AT", &number.to_string())]), "point {number}");
        let history = read(&dir.path().join("journal.jsonl")).expect("whole");
        assert_eq!(history.records.len(), number / 2, "point {number}");
        let announced = history.records.iter().filter(|r| matches!(r.entry, Entry::Step { phase: Phase::Begin, .. })).count();
        let done = history.records.len() - announced;
        let effects = (0..3).filter(|i| dir.path().join(format!("effect {i}")).exists()).count();
        assert!(effects <= announced && done <= effects, "point {number}: {announced} announced, {effects} there, {done} done");
        assert_eq!(history.pending().len(), announced - done);
    }
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_works() {
    let dir = PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"));
    let (journal, _) = journal(&dir);
    for i in 0..3 {
        let step = format!("step {i}");
        journal.begin(&step, None).expect("written");
        std::fs::write(dir.join(format!("effect {i}")), "x").expect("done");
        journal.done(&step, None).expect("written");
    }
}

/// A full disk, as a file size limit: the record that does not fit is an error and is taken back whole.
#[test]
fn a_record_that_does_not_fit_is_taken_back() {
    let dir = dir();
    let path = dir.path().join("journal.jsonl");
    let mut shell = std::process::Command::new("bash")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 4; exec \"$0\" --exact store::journal::tests::child_fills --ignored --test-threads=1")
        .arg(std::env::current_exe().expect("this binary"))
        .env("KTCW_TEST_DIR", dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("bash");
    assert!(shell.wait().expect("ended").success(), "the child's own assertions");
    let history = read(&path).expect("whole lines only");
    assert!(!history.torn && history.records.len() > 5);
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_fills() {
    let dir = PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"));
    let (journal, _) = journal(&dir);
    let written = (0..1000).take_while(|i| journal.begin(&format!("step {i}"), None).is_ok()).count();
    assert!(written < 1000, "the limit is 4 KiB");
    let length = || std::fs::metadata(dir.join("journal.jsonl")).expect("there").len();
    let before = length();
    let error = journal.begin_with("big", None, Value::from("x".repeat(5000))).expect_err("does not fit");
    assert!(matches!(error, JournalError::Write { .. }), "{error}");
    assert_eq!(length(), before, "taken back");
}
