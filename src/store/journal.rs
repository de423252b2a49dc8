//! The journal of a cluster: what is about to be done, written down and flushed before it is done.
//! `apply` and drills write through `Journal`; `up`, `down` and `doctor` read a `History` to see what a crash left open.
//! It knows steps and undo records by name and has no idea how to carry them out.

use super::failpoint::{self, Class};
use super::files::{self, FileError};
use crate::said::bounded;
use crate::spec::NodeName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use uuid::Uuid;

/// Version of the records this program writes and the newest it reads.
pub const VERSION: u32 = 1;

/// One line of `journal.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    /// 1, 2, 3, … without a gap.
    pub seq: u64,
    pub at: Timestamp,
    /// The run of the program that wrote it.
    pub run: Uuid,
    /// `up`, `down`, `drill`, …
    pub verb: String,
    #[serde(flatten)]
    pub entry: Entry,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Entry {
    /// A step begins, or has ended one way or the other.
    Step {
        step: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
        phase: Phase,
        /// What to know about it later; never a secret.
        #[serde(default, skip_serializing_if = "Value::is_null")]
        detail: Value,
    },
    /// How a fault about to be injected is undone.
    Undo {
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
        undo: Value,
    },
    /// It has been undone.
    Undone { key: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Begin,
    Done,
    Failed,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Phase::Begin => "begin",
            Phase::Done => "done",
            Phase::Failed => "failed",
        }
    }
}

/// A line that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Counted from 1.
    pub line: usize,
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}, line {}: {}", .path.display(), .damage.line, .damage.what)]
    Damaged { path: PathBuf, damage: Damage },
    #[error("{} was written by a newer version of this program (record version {found}, known up to {VERSION})", .path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("failed to write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    /// An earlier write failed and could not be taken back.
    #[error("{} is closed after a failed write", .path.display())]
    Closed { path: PathBuf },
}

impl JournalError {
    /// There was no room for it.
    pub fn is_full(&self) -> bool {
        match self {
            JournalError::File(error) => error.is_full(),
            JournalError::Write { source, .. } => files::is_full(source),
            _ => false,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            JournalError::File(FileError::Big { .. }) => {
                Some("`ktcw-vm down` works from what libvirt shows and keeps the journal aside, unread".to_owned())
            }
            JournalError::File(error) => error.hint(),
            JournalError::Damaged { .. } => {
                Some("`ktcw-vm down` works from what libvirt shows and keeps the damaged journal aside".to_owned())
            }
            JournalError::Newer { .. } => Some("use the newer ktcw-vm for this cluster".to_owned()),
            _ if self.is_full() => Some("free space on that file system, then run the same command again".to_owned()),
            JournalError::Write { .. } | JournalError::Closed { .. } => None,
        }
    }
}

/// What the journal says happened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    pub records: Vec<Record>,
    /// The last line was cut off by a crash and is left out: what it announced was not begun.
    pub torn: bool,
}

impl History {
    /// Steps begun and not ended, in the order they were begun. A later run that did the same step closes it.
    pub fn pending(&self) -> Vec<&Record> {
        self.ended_in(Phase::Begin)
    }

    /// Steps whose last word is a failure.
    pub fn failed(&self) -> Vec<&Record> {
        self.ended_in(Phase::Failed)
    }

    /// Undo records of faults still in force, oldest first.
    pub fn undos(&self) -> Vec<&Record> {
        let mut open: BTreeMap<&str, &Record> = BTreeMap::new();
        for record in &self.records {
            match &record.entry {
                Entry::Undo { key, .. } => drop(open.insert(key, record)),
                Entry::Undone { key } => drop(open.remove(key.as_str())),
                Entry::Step { .. } => {}
            }
        }
        in_order(open.into_values())
    }

    fn ended_in(&self, wanted: Phase) -> Vec<&Record> {
        let mut last: BTreeMap<(&str, Option<&NodeName>), (Phase, &Record)> = BTreeMap::new();
        for record in &self.records {
            if let Entry::Step { step, node, phase, .. } = &record.entry {
                last.insert((step, node.as_ref()), (*phase, record));
            }
        }
        in_order(last.into_values().filter(|(phase, _)| *phase == wanted).map(|(_, record)| record))
    }
}

fn in_order<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<&'a Record> {
    let mut records: Vec<_> = records.collect();
    records.sort_by_key(|record| record.seq);
    records
}

/// Reads it all or says which line is wrong. No file: nothing happened yet.
pub fn read(path: &Path) -> Result<History, JournalError> {
    let (history, damage) = salvage(path)?;
    match damage.into_iter().next() {
        None => Ok(history),
        Some(damage) => Err(JournalError::Damaged { path: path.to_owned(), damage }),
    }
}

/// Reads every line that is as it was written, and reports the others. For `down`, which must not be stopped by a bad line.
pub fn salvage(path: &Path) -> Result<(History, Vec<Damage>), JournalError> {
    let bytes = files::if_there(files::read_secret_bytes(path))?.unwrap_or_default();
    parse(&bytes).map_err(|found| JournalError::Newer { path: path.to_owned(), found })
}

/// The pure reader. `Err`: the version of a whole line that is newer than ours.
pub fn parse(bytes: &[u8]) -> Result<(History, Vec<Damage>), u32> {
    let mut history = History::default();
    let mut damage = Vec::new();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    history.torn = whole < bytes.len();
    let mut expected: u64 = 1;
    for (index, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
        match unseal(line) {
            Ok((version, _)) if version > VERSION => return Err(version),
            Ok((_, Some(record))) => {
                if record.seq != expected {
                    let what = format!("record {expected} should be here, and it is {}", record.seq);
                    damage.push(Damage { line: index + 1, what });
                }
                expected = record.seq.saturating_add(1);
                history.records.push(record);
            }
            Ok((_, None)) => {
                damage.push(Damage { line: index + 1, what: "not a record that this program writes".to_owned() });
                expected = expected.saturating_add(1);
            }
            Err(what) => {
                damage.push(Damage { line: index + 1, what: what.to_owned() });
                expected = expected.saturating_add(1);
            }
        }
    }
    Ok((history, damage))
}

fn seal(record: &Record) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(record).map(|json| sealed(&json))
}

/// `{…,"sum":"0123abcd"}`: the seal is over the record as JSON without it, so the line stays plain JSON for other tools.
/// It looks at nothing: who tries the reader seals what is no record, for behind a broken seal nothing is read.
pub fn sealed(json: &[u8]) -> Vec<u8> {
    let mut line = json.strip_suffix(b"}").unwrap_or(json).to_vec();
    line.extend_from_slice(format!("{SEAL}{}\"}}\n", sum(json)).as_bytes());
    line
}

const SEAL: &str = ",\"sum\":\"";
/// Characters of the sum: the first four bytes of a SHA-256, in hex.
const SUM: usize = 8;

/// Every version seals its lines in this way, so a flipped bit is never taken for a newer version.
fn unseal(line: &[u8]) -> Result<(u32, Option<Record>), &'static str> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let tail = SEAL.len() + SUM + 3;
    let Some(cut) = line.len().checked_sub(tail).filter(|cut| line[*cut..].starts_with(SEAL.as_bytes())) else {
        return Err("the line has no checksum");
    };
    let mut body = line[..cut].to_vec();
    body.push(b'}');
    let end = &line[cut + SEAL.len()..];
    if end[..SUM] != *sum(&body).as_bytes() || end[SUM..] != *b"\"}\n" {
        return Err("the checksum does not match the line");
    }
    let version = serde_json::from_slice::<Versioned>(&body).map_err(|_| "the record has no version")?.version;
    Ok((version, serde_json::from_slice(&body).ok()))
}

fn sum(body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    digest[..SUM / 2].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The open journal of a run. Every method returns after the record is on the disk.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    run: Uuid,
    verb: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    next: u64,
    /// Bytes known to be whole lines.
    length: u64,
    closed: bool,
}

impl Journal {
    /// Opens for appending after reading it strictly; a torn last line is cut off. Only for who holds the lock.
    pub fn open(path: &Path, run: Uuid, verb: &str) -> Result<(Journal, History), JournalError> {
        let history = read(path)?;
        let write = |source| JournalError::Write { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(files::SECRET)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(path)
            .map_err(write)?;
        let mut length = file.metadata().map_err(write)?.len();
        if history.torn {
            let bytes = files::read_secret_bytes(path)?;
            length = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last as u64 + 1);
            file.set_len(length).map_err(write)?;
            file.sync_all().map_err(write)?;
        }
        if length == 0 {
            files::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        }
        let next = history.records.last().map_or(1, |record| record.seq.saturating_add(1));
        let inner = Mutex::new(Inner { file, next, length, closed: false });
        Ok((Journal { path: path.to_owned(), run, verb: verb.to_owned(), inner }, history))
    }

    /// The run its records carry.
    pub fn run(&self) -> Uuid {
        self.run
    }

    /// Before a side effect.
    pub fn begin(&self, step: &str, node: Option<&NodeName>) -> Result<(), JournalError> {
        self.begin_with(step, node, Value::Null)
    }

    /// Before a side effect, with what is to be known about it should it never end.
    pub fn begin_with(&self, step: &str, node: Option<&NodeName>, detail: Value) -> Result<(), JournalError> {
        self.step(step, node, Phase::Begin, detail)
    }

    pub fn done(&self, step: &str, node: Option<&NodeName>) -> Result<(), JournalError> {
        self.step(step, node, Phase::Done, Value::Null)
    }

    /// Of a long `why` both ends are kept: it may be a node's own words, and a journal that grows with them is too long to be read
    /// one day.
    pub fn failed(&self, step: &str, node: Option<&NodeName>, why: &str) -> Result<(), JournalError> {
        self.step(step, node, Phase::Failed, Value::from(bounded(why)))
    }

    /// Before a fault: `key` names it until `undone`, `undo` is what the healer needs.
    pub fn undo(&self, key: &str, node: Option<&NodeName>, undo: Value) -> Result<(), JournalError> {
        self.append(Entry::Undo { key: key.to_owned(), node: node.cloned(), undo }).map(drop)
    }

    /// After it was healed.
    pub fn undone(&self, key: &str) -> Result<(), JournalError> {
        self.append(Entry::Undone { key: key.to_owned() }).map(drop)
    }

    fn step(&self, step: &str, node: Option<&NodeName>, phase: Phase, detail: Value) -> Result<(), JournalError> {
        self.append(Entry::Step { step: step.to_owned(), node: node.cloned(), phase, detail }).map(drop)
    }

    /// Writes one record and flushes it; returns its number. A write that fails is taken back, so the file stays whole.
    pub fn append(&self, entry: Entry) -> Result<u64, JournalError> {
        let name = match &entry {
            Entry::Step { step, phase, .. } => format!("{} {step}", phase.as_str()),
            Entry::Undo { key, .. } => format!("undo {key}"),
            Entry::Undone { key } => format!("undone {key}"),
        };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.closed {
            return Err(JournalError::Closed { path: self.path.clone() });
        }
        let record =
            Record { version: VERSION, seq: inner.next, at: Timestamp::now(), run: self.run, verb: self.verb.clone(), entry };
        let line = seal(&record).map_err(|error| JournalError::Write { path: self.path.clone(), source: error.into() })?;
        failpoint::at(Class::Journal, &format!("before {name}"));
        let inner = &mut *inner;
        let written = failpoint::room().and_then(|()| inner.file.write_all(&line)).and_then(|()| inner.file.sync_data());
        if let Err(source) = written {
            inner.closed = inner.file.set_len(inner.length).and_then(|()| inner.file.sync_all()).is_err();
            return Err(JournalError::Write { path: self.path.clone(), source });
        }
        inner.next = inner.next.saturating_add(1);
        inner.length += line.len() as u64;
        failpoint::at(Class::Journal, &name);
        Ok(record.seq)
    }
}

/// Puts a damaged journal aside, beside itself, and begins a new one with the lines that are whole, numbered anew; of one that is too
/// long to be read, with none.
/// Returns where the damaged one went, or `None` when nothing was wrong with it. Only for who holds the lock.
pub fn set_aside(path: &Path) -> Result<Option<PathBuf>, JournalError> {
    let history = match salvage(path) {
        Ok((_, damage)) if damage.is_empty() => return Ok(None),
        Ok((history, _)) => history,
        Err(JournalError::File(FileError::Big { .. })) => History::default(),
        Err(error) => return Err(error),
    };
    let write = |source| JournalError::Write { path: path.to_owned(), source };
    let aside = (1..)
        .map(|n: u32| path.with_extension(format!("damaged-{n}.jsonl")))
        .find(|aside| aside.symlink_metadata().is_err())
        .unwrap_or_else(|| path.with_extension("damaged.jsonl"));
    // A second name first, then the atomic replacement: at no moment is there no journal.
    std::fs::hard_link(path, &aside).map_err(write)?;
    let mut text = Vec::new();
    for (seq, record) in (1..).zip(history.records) {
        text.extend(seal(&Record { seq, ..record }).map_err(|error| write(error.into()))?);
    }
    files::write_atomic(path, &text, files::SECRET)?;
    Ok(Some(aside))
}

#[cfg(test)]
mod tests;
