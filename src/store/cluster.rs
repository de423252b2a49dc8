//! A cluster's directory: who it is, what was asked, what was planned, and the places of its keys, journal and reports.
//! Every verb of `cli` opens one; only `up` creates and only `down` removes it.
//! Methods that write want the `Lock`, so that a verb which forgot to take it does not compile.

use super::above::ensure_parent;
use super::files::{self, FileError, SECRET, if_there};
use super::journal::{self, History, Journal};
use super::lock::{self, Lock};
use super::passing::{Passing, finish_removals, inspect, remove_tree};
use super::sealed::{FORMAT, parse_json, read_json, write_json};
use super::ssh::{self, SshKey, SshKeys};
use super::{Class, StoreError, failpoint};
use crate::plan::Plan;
use crate::secret::Secret;
use crate::spec::{ClusterName, ClusterSpec, NodeName, RawSpec, validate_kept};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

pub(super) const ABOUT: &str = "cluster.json";
const PLAN: &str = "plan.json";
const JOURNAL: &str = "journal.jsonl";

/// Content of `cluster.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct About {
    format: u32,
    name: ClusterName,
    instance: Uuid,
    created: Timestamp,
    spec: ClusterSpec,
    /// URI of the libvirt that it lives in, as libvirt resolved it.
    #[serde(default)]
    libvirt: Option<String>,
}

impl About {
    /// It is of this cluster, and asks for what could be asked for: nothing behind this door checks a specification again.
    fn check(&self, file: &Path, name: &ClusterName) -> Result<(), StoreError> {
        let damaged = |what: String| StoreError::Damaged { path: file.to_owned(), what };
        if self.name != *name || self.spec.name != *name {
            return Err(damaged(format!("it describes cluster {}", self.name)));
        }
        validate_kept(&RawSpec::from(&self.spec), Some(&self.spec)).map(drop).map_err(|problems| {
            let problems: Vec<String> =
                problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
            damaged(format!("spec: {}", problems.join("; ")))
        })
    }
}

/// The specification in a `cluster.json`, from its text.
pub fn parse_spec(text: &str, name: &ClusterName) -> Result<ClusterSpec, StoreError> {
    let file = Path::new(ABOUT);
    let about = parse_json::<About>(file, text)?;
    about.check(file, name)?;
    Ok(about.spec)
}

/// The plan in a `plan.json`, from its text.
pub fn parse_plan(text: &str) -> Result<Plan, StoreError> {
    Ok(parse_json::<PlanFile<Plan>>(Path::new(PLAN), text)?.plan)
}

#[derive(Serialize, Deserialize)]
struct PlanFile<P> {
    format: u32,
    plan: P,
}

/// An opened cluster directory. Cheap; it holds no file open.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterDir {
    path: PathBuf,
    about: About,
}

/// A cluster found under a parent directory; one that cannot be opened is listed with the reason.
#[derive(Debug)]
pub struct Listed {
    pub name: ClusterName,
    pub opened: Result<ClusterDir, StoreError>,
}

/// `$XDG_STATE_HOME/ktcw-vm`, else `$HOME/.local/state/ktcw-vm`. The caller reads the environment; relative values do not count.
pub fn default_parent(xdg_state_home: Option<OsString>, home: Option<OsString>) -> Result<PathBuf, StoreError> {
    let absolute = |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute(xdg_state_home).or_else(|| absolute(home).map(|home| home.join(".local/state")));
    state.map(|state| state.join("ktcw-vm")).ok_or(StoreError::NoHome)
}

/// All clusters under `parent`, by name. A missing parent has none.
pub fn list(parent: &Path) -> Result<Vec<Listed>, StoreError> {
    let failed = |source| FileError::Io { action: "list", path: parent.to_owned(), source };
    let Some(entries) = if_there(fs::read_dir(parent).map_err(failed))? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Ok(name) = ClusterName::parse(&entry.file_name().to_string_lossy()) else { continue };
        if ClusterDir::exists(parent, &name) {
            found.push(Listed { opened: ClusterDir::open(parent, &name), name });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl ClusterDir {
    /// There is a directory of that name with a `cluster.json` in it, readable or not.
    pub fn exists(parent: &Path, name: &ClusterName) -> bool {
        parent.join(name.as_str()).join(ABOUT).symlink_metadata().is_ok()
    }

    /// Makes the directory whole or not at all, under a name drawn at random until it is renamed.
    /// Of two who try at the same time one gets `Exists`. Whoever made it has its lock before anybody else can see it: else one
    /// of the others could have it for a moment, and both would go away. `command` is what the user typed.
    pub fn create(parent: &Path, spec: &ClusterSpec, command: &str, now: Timestamp) -> Result<(ClusterDir, Lock), StoreError> {
        ensure_parent(parent)?;
        let path = parent.join(spec.name.as_str());
        let exists = || StoreError::Exists { name: spec.name.to_string(), parent: parent.to_owned() };
        if path.symlink_metadata().is_ok_and(|seen| !seen.is_dir()) {
            return Err(StoreError::NotOurs { path, why: "not a directory".to_owned() });
        }
        if ClusterDir::exists(parent, &spec.name) {
            return Err(exists());
        }
        finish_removals(parent)?;
        let about = About {
            format: FORMAT,
            name: spec.name.clone(),
            instance: super::draw_id(),
            created: now,
            spec: spec.clone(),
            libvirt: None,
        };
        let staged = parent.join(Passing::Creating.name(&about.name, about.instance));
        files::ensure_dir(&staged)?;
        for dir in ["pki", "ssh", "reports"] {
            files::ensure_dir(&staged.join(dir))?;
        }
        write_json(&staged.join(ABOUT), &about)?;
        let lock = lock::take(&staged, command, Timestamp::now())?;
        failpoint(Class::File, "cluster/staged");
        // Renaming a directory replaces an empty one and fails on any other.
        if let Err(source) = fs::rename(&staged, &path) {
            fs::remove_dir_all(&staged).map_err(|source| FileError::Io { action: "remove", path: staged.clone(), source })?;
            return Err(match source.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists if ClusterDir::exists(parent, &spec.name) => {
                    exists()
                }
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    StoreError::NotOurs { path, why: format!("it is not empty and has no {ABOUT}") }
                }
                _ => FileError::Io { action: "create", path, source }.into(),
            });
        }
        files::sync_dir(parent)?;
        Ok((ClusterDir { path: path.clone(), about }, lock.renamed(path)))
    }

    /// Opens an existing one: a private directory of ours whose `cluster.json` names this cluster.
    pub fn open(parent: &Path, name: &ClusterName) -> Result<ClusterDir, StoreError> {
        let path = parent.join(name.as_str());
        match files::check_dir(&path) {
            Err(error) if error.is_missing() => {
                return Err(StoreError::NoCluster { name: name.to_string(), parent: parent.to_owned() });
            }
            other => other?,
        }
        let file = path.join(ABOUT);
        let Some(about) = read_json::<About>(&file)? else {
            return Err(StoreError::NotOurs { path, why: format!("it has no {ABOUT}") });
        };
        about.check(&file, name)?;
        Ok(ClusterDir { path, about })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn name(&self) -> &ClusterName {
        &self.about.name
    }
    /// Drawn once at creation; tells this cluster from an earlier one of the same name.
    pub fn instance(&self) -> Uuid {
        self.about.instance
    }
    pub fn created(&self) -> Timestamp {
        self.about.created
    }
    /// The libvirt that it was made in; `None` before anything was.
    pub fn libvirt(&self) -> Option<&str> {
        self.about.libvirt.as_deref()
    }
    /// What was asked for, as last saved.
    pub fn spec(&self) -> &ClusterSpec {
        &self.about.spec
    }
    /// The content of every file below `pki` and `ssh` but the public halves: what must be in nothing that is handed on. Modes say
    /// nothing here, for a key that others may read by mistake is one.
    /// Looked up by the directory, so that it works where `cluster.json` does not.
    pub fn secrets_in(path: &Path) -> Result<Vec<Secret>, StoreError> {
        let mut found = Vec::new();
        let mut todo = vec![path.join("pki"), path.join("ssh")];
        while let Some(dir) = todo.pop() {
            let failed = |source| FileError::Io { action: "list", path: dir.clone(), source };
            for entry in if_there(fs::read_dir(&dir).map_err(failed))?.into_iter().flatten() {
                let path = entry.map_err(failed)?.path();
                let seen = fs::symlink_metadata(&path).map_err(|source| io_error("look at", &path, source))?;
                if seen.is_dir() {
                    todo.push(path);
                } else if seen.is_file() && path.extension().is_none_or(|end| end != "pub") {
                    // Whatever is in it: a damaged key is half a key.
                    let bytes = fs::read(&path).map_err(|source| io_error("read", &path, source))?;
                    let text = Secret::from(String::from_utf8_lossy(&bytes).into_owned());
                    found.extend((!is_certificates(text.expose())).then_some(text));
                }
            }
        }
        Ok(found)
    }

    /// Where `pki::Keyring` keeps its files.
    pub fn pki(&self) -> PathBuf {
        self.path.join("pki")
    }
    /// Records of snapshots, see `snapshots.rs` beside this file.
    pub(super) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }
    pub fn reports(&self) -> PathBuf {
        self.path.join("reports")
    }
    /// The private key's file, for a system `ssh`.
    pub fn ssh_identity(&self) -> PathBuf {
        self.path.join("ssh").join("id_ed25519")
    }

    /// Takes the lock or says who has it; then clears away what a crash left half-written.
    /// `command` is what the user typed.
    pub fn lock(&self, command: &str) -> Result<Lock, StoreError> {
        let lock = lock::take(&self.path, command, Timestamp::now())?;
        match read_json::<About>(&self.path.join(ABOUT))? {
            Some(about) if about == self.about => {}
            // What was decided since `open` was decided of another specification.
            Some(about) if about.instance == self.about.instance => {
                return Err(StoreError::Changed { path: self.path.clone() });
            }
            // The cluster may also have been removed and made again: then this is another one.
            _ => return Err(StoreError::Vanished { path: self.path.clone() }),
        }
        self.clear_away()?;
        Ok(lock)
    }

    /// `open` with the lock in hand, for who has decided nothing yet: whatever others do until then is what it finds.
    pub fn open_locked(parent: &Path, name: &ClusterName, command: &str) -> Result<(ClusterDir, Lock), StoreError> {
        let path = ClusterDir::open(parent, name)?.path;
        let lock = lock::take(&path, command, Timestamp::now())?;
        let dir = ClusterDir::open(parent, name)?;
        dir.clear_away()?;
        Ok((dir, lock))
    }

    /// What a crash left half-written. Only for who holds the lock.
    fn clear_away(&self) -> Result<(), StoreError> {
        let (keys, records) =
            ([self.pki(), self.path.join("pki/ca"), self.path.join("ssh")], [self.snapshots(), self.etcd_snapshots()]);
        for dir in [self.path.clone(), self.reports()].into_iter().chain(keys).chain(records) {
            files::sweep(&dir)?;
        }
        self.path.parent().map_or(Ok(()), finish_removals)
    }

    /// Where what `up` makes will be, so that `down` looks there.
    pub fn save_libvirt(&mut self, lock: &Lock, uri: &str) -> Result<(), StoreError> {
        self.guarded(lock)?;
        self.save_about(About { libvirt: Some(uri.to_owned()), ..self.about.clone() })
    }

    fn save_about(&mut self, about: About) -> Result<(), StoreError> {
        if about != self.about {
            write_json(&self.path.join(ABOUT), &about)?;
            self.about = about;
        }
        Ok(())
    }

    /// Writes a changed specification (the name stays).
    pub fn save_spec(&mut self, lock: &Lock, spec: &ClusterSpec) -> Result<(), StoreError> {
        self.guarded(lock)?;
        if spec.name != self.about.name {
            let what = format!("it is of {} and not of {}", self.about.name, spec.name);
            return Err(StoreError::Damaged { path: self.path.join(ABOUT), what });
        }
        self.save_about(About { spec: spec.clone(), ..self.about.clone() })
    }

    pub fn save_plan(&self, lock: &Lock, plan: &Plan) -> Result<(), StoreError> {
        self.guarded(lock)?;
        write_json(&self.path.join(PLAN), &PlanFile { format: FORMAT, plan })
    }

    /// Writes down where to, before it is begun: the specification first, from which `up` plans again.
    pub fn begin(&mut self, lock: &Lock, plan: &Plan) -> Result<(), StoreError> {
        self.save_spec(lock, &plan.spec)?;
        if self.load_plan()?.as_ref() == Some(plan) { Ok(()) } else { self.save_plan(lock, plan) }
    }

    /// Whoever was on the way has arrived, or is gone with its keys. The plan that is left is written down and returned.
    pub fn arrived(&mut self, lock: &Lock, plan: &Plan) -> Result<Plan, StoreError> {
        if let Some(leaving) = &plan.spec.lineage.leaving {
            self.forget_node(lock, &leaving.node)?;
        }
        let settled = crate::plan::plan(&plan.spec.settled(), &plan.resolved);
        self.save_spec(lock, &settled.spec)?;
        self.save_plan(lock, &settled)?;
        Ok(settled)
    }

    /// The plan as last saved; `None` when none was.
    pub fn load_plan(&self) -> Result<Option<Plan>, StoreError> {
        Ok(read_json::<PlanFile<Plan>>(&self.path.join(PLAN))?.map(|file| file.plan))
    }

    /// Where the journal is, for who reads it while it is open.
    pub fn journal_path(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// Opens the journal for a run of `verb`; the history is what it said before.
    pub fn journal(&self, lock: &Lock, run: Uuid, verb: &str) -> Result<(Journal, History), StoreError> {
        self.guarded(lock)?;
        Ok(Journal::open(&self.path.join(JOURNAL), run, verb)?)
    }

    /// The journal as it is, without a lock.
    pub fn history(&self) -> Result<History, StoreError> {
        Ok(journal::read(&self.path.join(JOURNAL))?)
    }

    /// For `down`: what can be read of a damaged journal, and which lines cannot.
    pub fn salvage_history(&self) -> Result<(History, Vec<journal::Damage>), StoreError> {
        Ok(journal::salvage(&self.path.join(JOURNAL))?)
    }

    /// For `down`: keeps a damaged journal aside and goes on with its whole lines. Returns where it went.
    pub fn set_journal_aside(&self, lock: &Lock) -> Result<Option<PathBuf>, StoreError> {
        self.guarded(lock)?;
        Ok(journal::set_aside(&self.path.join(JOURNAL))?)
    }

    /// SSH keys of the nodes: loaded when there, else made by `generate(comment)`. Returns how many pairs were made.
    pub fn ensure_ssh(
        &self,
        lock: &Lock,
        nodes: &[NodeName],
        generate: impl FnMut(&str) -> Result<SshKey, String>,
    ) -> Result<(SshKeys, usize), StoreError> {
        self.guarded(lock)?;
        ssh::ensure(&self.path.join("ssh"), nodes, generate)
    }

    /// SSH keys of the nodes; a missing one is an error.
    pub fn ssh(&self, nodes: &[NodeName]) -> Result<SshKeys, StoreError> {
        ssh::load(&self.path.join("ssh"), nodes)
    }

    /// Removes every key and certificate of a node that is gone, also the pinned host key: one of that name that comes later
    /// is another machine. Twice is once.
    pub fn forget_node(&self, lock: &Lock, node: &NodeName) -> Result<(), StoreError> {
        self.guarded(lock)?;
        let of_ssh = |name: &str| name == format!("host-{node}") || name == format!("host-{node}.pub");
        let ends = [format!("{node}.pem"), format!("{node}-key.pem"), format!("{node}.kubeconfig")];
        let of_pki = |name: &str| name.split_once('@').is_some_and(|(_, end)| ends.iter().any(|own| own == end));
        for (dir, own) in [(self.pki(), &of_pki as &dyn Fn(&str) -> bool), (self.path.join("ssh"), &of_ssh)] {
            let failed = |source| FileError::Io { action: "list", path: dir.clone(), source };
            let mut paths = Vec::new();
            for entry in if_there(fs::read_dir(&dir).map_err(failed))?.into_iter().flatten() {
                let entry = entry.map_err(failed)?;
                if own(&entry.file_name().to_string_lossy()) {
                    paths.push(entry.path());
                }
            }
            // A certificate without its key would count as a loss: the key goes last.
            paths.sort_by_key(|path| path.to_string_lossy().ends_with("-key.pem"));
            for path in &paths {
                fs::remove_file(path).map_err(|source| io_error("remove", path, source))?;
                failpoint(Class::File, "node/forgotten");
            }
            if !paths.is_empty() {
                files::sync_dir(&dir)?;
            }
        }
        Ok(())
    }

    /// A report into `reports/`, readable by its owner alone. Returns its path.
    pub fn save_report(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let fits =
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !name.starts_with('.');
        if !fits {
            return Err(StoreError::NotOurs { path: self.reports().join(name), why: "not a report's name".to_owned() });
        }
        files::ensure_dir(&self.reports())?;
        let path = self.reports().join(name);
        files::write_atomic(&path, bytes, SECRET)?;
        Ok(path)
    }

    /// Removes the whole directory. First it is looked through: anything of another owner or on another file system
    /// stops the removal before it begins. It disappears at once under its name, then file by file.
    pub fn remove(self, lock: Lock) -> Result<(), StoreError> {
        self.guarded(&lock)?;
        let fresh = read_json::<About>(&self.path.join(ABOUT))?;
        if fresh.is_none_or(|about| about.instance != self.about.instance) {
            return Err(StoreError::NotOurs { path: self.path, why: "it is of another cluster by now".to_owned() });
        }
        let top = fs::symlink_metadata(&self.path).map_err(|source| io_error("look at", &self.path, source))?;
        inspect(&self.path, &top)?;
        let parent = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let leaving = parent.join(Passing::Removing.name(&self.about.name, self.about.instance));
        fs::rename(&self.path, &leaving).map_err(|source| io_error("rename", &self.path, source))?;
        files::sync_dir(&parent)?;
        failpoint(Class::File, "cluster/renamed away");
        remove_tree(&leaving)?;
        files::sync_dir(&parent)?;
        drop(lock);
        Ok(())
    }

    pub(super) fn guarded(&self, lock: &Lock) -> Result<(), StoreError> {
        if lock.dir() == self.path {
            Ok(())
        } else {
            Err(StoreError::NotOurs { path: self.path.clone(), why: format!("the lock held is on {}", lock.dir().display()) })
        }
    }
}

pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    FileError::Io { action, path: path.to_owned(), source }.into()
}

/// Certificates and nothing else.
fn is_certificates(text: &str) -> bool {
    const FRAMES: [&str; 2] = ["-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"];
    let mut inside = false;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
    let any = lines.peek().is_some();
    let only = lines.all(|line| {
        let fits = if inside { line == FRAMES[1] || !line.contains('-') } else { line == FRAMES[0] };
        inside = if inside { line != FRAMES[1] } else { true };
        fits
    });
    any && only && !inside
}

#[cfg(test)]
mod tests;
