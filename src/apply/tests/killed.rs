//! The program killed at any place: a real process, ended by an abort before or after every journal record, file and effect
//! of `up` and of `down`, over a lab that outlives it. Then `up` ends where an undisturbed one ends and `down` leaves nothing;
//! and fifty of them at once on one cluster are one that works and forty-nine that say who.

use super::lab::{Lab, sample};
use crate::apply::{self, observe, run, settle, steps};
use crate::cli;
use crate::event::Events;
use crate::guest::keys;
use crate::host::{HostSeen, Mark};
use crate::pki::kubeconfig::{self, Credentials};
use crate::pki::{Keyring, Lifetimes};
use crate::plan::{Ca, Plan, plan};
use crate::spec::{ClusterSpec, NodeName};
use crate::store::crash::{self, copy, each, entries, place, told};
use crate::store::journal::{History, Journal};
use crate::store::{self, ClusterDir, Lock, SshKey, StoreError, shared};
use jiff::Timestamp;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(super) fn planned() -> Arc<Plan> {
    sample("lab", 1, 1)
}

/// Why a verb did not go through.
pub(super) type Failed = Box<dyn std::error::Error>;

/// A computer with a lab in it, as a directory: `clusters` is where the program keeps its state, `lab` is the machines.
pub(super) struct Computer(pub(super) PathBuf);

impl Computer {
    pub(super) fn clusters(&self) -> PathBuf {
        self.0.join("clusters")
    }

    /// Its plan is the one that is written down.
    pub(super) fn lab(&self) -> Arc<Lab> {
        let kept = ClusterDir::open(&self.clusters(), &planned().cluster).ok().and_then(|dir| dir.load_plan().expect("readable"));
        Lab::kept(&kept.map_or_else(planned, Arc::new), &self.0.join("lab"))
    }

    /// The cluster's directory.
    pub(super) fn dir(&self) -> ClusterDir {
        ClusterDir::open(&self.clusters(), &planned().cluster).expect("there")
    }

    /// New, with strangers' things on it only.
    pub(super) fn fresh(at: &Path) -> Computer {
        std::fs::create_dir_all(at.join("lab")).expect("a directory");
        let computer = Computer(at.to_owned());
        drop(computer.lab());
        computer
    }

    pub(super) fn copied(&self, to: &Path) -> Computer {
        copy(&self.0, to);
        Computer(to.to_owned())
    }

    /// What `ktcw-vm up` does after its preflight, with the lab for libvirt, machines and API. Returns how many steps there were.
    pub(super) fn up(&self) -> Result<usize, Failed> {
        self.walk("up", |kept, _| kept.clone())
    }

    /// The same with another specification to go to; `wanted` is told the kept one and the journal.
    pub(super) fn walk(&self, verb: &str, wanted: impl FnOnce(&ClusterSpec, &History) -> ClusterSpec) -> Result<usize, Failed> {
        let first = planned();
        let (parent, now) = (self.clusters(), Timestamp::now());
        let existing =
            if ClusterDir::exists(&parent, &first.cluster) { Some(ClusterDir::open(&parent, &first.cluster)?) } else { None };
        let (mut dir, lock) = match existing {
            Some(dir) => {
                let lock = locked(&dir, verb)?;
                (dir, lock)
            }
            None => ClusterDir::create(&parent, &first.spec, verb, now)?,
        };
        dir.save_libvirt(&lock, "fake:///system")?;
        let (journal, history) = dir.journal(&lock, store::draw_id(), verb)?;
        let target = wanted(dir.spec(), &history);
        let anew = apply::begins_anew(&plan(&target, &first.resolved), &self.lab().host_seen());
        let (kept, target) = if anew { (dir.spec().founded(), target.founded()) } else { (dir.spec().clone(), target) };
        let way: Vec<Arc<Plan>> = kept.path(&target).iter().map(|spec| Arc::new(plan(spec, &first.resolved))).collect();
        if let (Some(old), Some(new)) = (dir.load_plan()?, way.last()) {
            apply::announce(&journal, &history, &old, new)?;
        }
        let journal = Arc::new(Mutex::new(journal));
        let mut count = 0;
        for plan in way {
            dir.begin(&lock, &plan)?;
            count += self.through(&dir, &lock, &plan, (&journal, &history))?;
            if plan.spec.lineage.in_motion() {
                dir.arrived(&lock, &plan)?;
            }
        }
        let open = dir.history()?;
        if apply::renewing(&open) {
            journal.lock().expect("free").done(apply::RENEW, None)?;
        }
        apply::arrived(&journal.lock().expect("free"), &open)?;
        Ok(count)
    }

    fn through(
        &self,
        dir: &ClusterDir,
        lock: &Lock,
        plan: &Arc<Plan>,
        (journal, history): (&Arc<Mutex<Journal>>, &History),
    ) -> Result<usize, Failed> {
        // Only who holds the lock looks at the machines: the lab has no daemon that keeps two apart.
        let (lab, now) = (self.lab(), Timestamp::now());
        let names: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();
        let pair = |comment: &str| {
            let (private, public) = keys::generate(comment).map_err(|error| error.to_string())?;
            Ok(SshKey { private, public })
        };
        let (ssh, _) = dir.ensure_ssh(lock, &names, pair)?;
        let keyring = Keyring::ensure(&dir.pki(), &plan.certs, &plan.kubeconfigs, now, Lifetimes::default())?.0;
        let findings = keyring.check(&plan.certs, now);
        assert!(findings.iter().all(|finding| finding.problem.is_warning()), "{findings:?}");
        let (world, _) = lab.world_with(None, mark(dir), keyring, ssh);
        super::block_on(async {
            let (_stop, stopped) = tokio::sync::watch::channel(false);
            let events = self.events();
            let take = |steps| run(plan.clone(), steps, world.clone(), journal.clone(), events.clone(), stopped.clone());
            let mut seen = observe(plan, &world).await.expect("observed");
            let mut left = steps(plan, &seen);
            settle(&journal.lock().expect("free"), history, &left)?;
            let changes_files = plan.spec.lineage.in_motion() || apply::renewing(&dir.history()?);
            if changes_files {
                if let Some(first) = apply::settled_first(plan, &seen, &left) {
                    take(first).await?;
                    seen = observe(plan, &world).await.expect("observed");
                }
                apply::observe_files(plan, &*world.guest, &world.keyring, &mut seen).await;
                left = steps(plan, &seen);
            }
            let count = left.len();
            take(left).await?;
            if changes_files {
                take(apply::seeds(plan)).await?;
            }
            Ok(count)
        })
    }

    /// A line each in a file, where a test has made it.
    fn events(&self) -> Events {
        let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(self.0.join(EVENTS)) else { return Events::nowhere() };
        let (events, mut receiver) = Events::channel();
        tokio::spawn(async move {
            while let Some(event) = receiver.recv().await {
                writeln!(file, "{}\n{event:?}", serde_json::to_string(&event).expect("JSON")).expect("written");
            }
        });
        events
    }

    /// What `ktcw-vm down --yes` does.
    pub(super) fn down(&self) -> Result<(), Failed> {
        let (parent, name) = (self.clusters(), planned().cluster.clone());
        store::finish_removals(&parent)?;
        if !ClusterDir::exists(&parent, &name) {
            return Ok(());
        }
        let dir = ClusterDir::open(&parent, &name)?;
        let lock = locked(&dir, "down")?;
        let (host, kubeconfig) = (self.lab().host.clone(), self.kubeconfig());
        super::block_on(cli::remove_cluster(dir, lock, host, Some(&kubeconfig), |_| ())).map_err(|error| error.text())?;
        Ok(())
    }

    /// The user's own, where a test has put one.
    fn kubeconfig(&self) -> PathBuf {
        self.0.join("kube/config")
    }

    /// What `ktcw-vm kubeconfig --merge` does, beside somebody else's.
    fn merge(&self) {
        let (dir, path) = (self.dir(), self.kubeconfig());
        let plan = dir.load_plan().expect("readable").expect("a plan");
        let keyring = Keyring::load(&dir.pki(), &plan.certs, &plan.kubeconfigs).expect("keys");
        let admin = plan.kubeconfigs.iter().find(|one| one.id == "admin").expect("planned");
        let pair = keyring.identity(&admin.cert).expect("there");
        let ca = keyring.ca_pem(Ca::Kubernetes).expect("there");
        std::fs::create_dir(path.parent().expect("a directory")).expect("made");
        std::fs::write(&path, THEIRS).expect("written");
        let credentials = Credentials { ca, cert: &pair.cert, key: &pair.key };
        let merged = |there: &str| kubeconfig::merge(there, admin, credentials, true).map(Some).map_err(|e| e.to_string());
        assert!(shared::edit(&path, merged).expect("merged"));
        assert!(std::fs::read_to_string(&path).expect("there").contains("ktcw-lab"));
    }

    /// Nothing of the cluster is in the user's kubeconfig, nor beside it; what others have there is.
    fn is_forgotten_by_kubectl(&self, about: &str) {
        let path = self.kubeconfig();
        let Ok(text) = std::fs::read_to_string(&path) else { return };
        assert!(!text.contains("ktcw-lab") && text.contains("https://theirs:6443"), "{about}: {text}");
        assert_eq!(entries(path.parent().expect("a directory")), [path], "{about}");
    }

    /// Runs it in a process of its own; `true`: it was killed on its way.
    pub(super) fn killed(&self, verb: &str, at: &str) -> bool {
        crash::aborts(CHILD, &[("KTCW_TEST_DIR", &self.0), ("KTCW_TEST_VERB", &verb), ("KTCW_FAIL_AT", &at)])
    }

    /// The points that it passes.
    pub(super) fn points(&self, verb: &str) -> Vec<String> {
        crash::points(CHILD, &[("KTCW_TEST_DIR", &self.0), ("KTCW_TEST_VERB", &verb)], &self.0.join("count"))
    }

    /// `up` goes to its end, there is nothing to do after it, and no record is left open.
    pub(super) fn comes_up(&self, about: &str) {
        self.up().unwrap_or_else(|error| panic!("{about}: {error}"));
        assert_eq!(self.up().expect("again"), 0, "{about}: a second up finds nothing to do");
        let dir = ClusterDir::open(&self.clusters(), &planned().cluster).expect("there");
        let history = dir.history().expect("readable");
        assert!(history.pending().is_empty() && history.failed().is_empty(), "{about}: {:?}", history.pending());
        let seen = self.lab().host_seen();
        let ours = seen.domains.iter().filter(|domain| domain.mark.as_ref().is_some_and(|found| mark(&dir).owns(found))).count();
        assert_eq!(self.lab().behind(), Vec::<String>::new(), "{about}: everything runs with the files that are there");
        self.files_are_as_planned(about);
        assert_eq!(ours, dir.load_plan().expect("readable").expect("a plan").nodes.len(), "{about}");
    }

    /// No file of any node is another than plan and key store say, and nobody is half a member.
    fn files_are_as_planned(&self, about: &str) {
        let (dir, lab) = (self.dir(), self.lab());
        let plan = dir.load_plan().expect("readable").expect("a plan");
        let keyring = Keyring::load(&dir.pki(), &plan.certs, &plan.kubeconfigs).expect("keys");
        let ssh = dir.ssh(&plan.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>()).expect("keys");
        let (world, _) = lab.world_with(None, mark(&dir), keyring, ssh);
        super::block_on(async {
            let mut seen = observe(&plan, &world).await.expect("observed");
            apply::observe_files(&plan, &*world.guest, &world.keyring, &mut seen).await;
            for node in &plan.nodes {
                let node = seen.node(&node.name);
                assert!(node.ssh && node.stale.is_empty() && node.owed.is_empty(), "{about}: {:?} {:?}", node.stale, node.owed);
            }
        });
        let controllers: Vec<NodeName> = plan.controllers().map(|node| node.name.clone()).collect();
        assert_eq!(lab.members(), (controllers, Vec::new()), "{about}: who is planned votes");
    }

    /// `ktcw-vm certs renew`, without its look at what servers show.
    pub(super) fn renew(&self) -> Result<usize, Failed> {
        let dir = self.dir();
        let plan = dir.load_plan()?.expect("a plan");
        {
            let lock = locked(&dir, "certs")?;
            let (journal, _) = dir.journal(&lock, store::draw_id(), "certs")?;
            journal.begin(apply::RENEW, None)?;
            let mut keyring = Keyring::load(&dir.pki(), &plan.certs, &plan.kubeconfigs).expect("keys");
            keyring.renew(&plan.certs, Timestamp::now(), Lifetimes::default().leaf).expect("signed");
        }
        self.walk("certs", |kept, _| kept.clone())
    }

    /// `down` leaves the computer as it was before the first `up`, and again does nothing.
    pub(super) fn goes_down(&self, before: &HostSeen, about: &str) {
        self.down().unwrap_or_else(|error| panic!("{about}: {error}"));
        assert_eq!(&self.lab().host_seen(), before, "{about}");
        self.is_forgotten_by_kubectl(about);
        self.down().expect("twice");
        let age = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        for entry in entries(&self.clusters()) {
            // A creation that was cut off is cleared away once it cannot be one that is under way.
            assert!(entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".creating-")), "{about}: {entry:?}");
            assert!(entries(&entry).iter().all(|inner| !inner.is_dir() || entries(inner).is_empty()), "{about}: no key in it");
            std::fs::File::open(&entry).and_then(|dir| dir.set_modified(age)).expect("aged");
        }
        self.down().expect("later");
        assert_eq!(entries(&self.clusters()), Vec::<PathBuf>::new(), "{about}");
    }
}

const CHILD: &str = "apply::tests::killed::child_runs";
const THEIRS: &str = "apiVersion: v1
kind: Config
clusters:
- name: theirs
  cluster:
    server: https://theirs:6443
";
pub(super) const EVENTS: &str = "events";

pub(super) fn mark(dir: &ClusterDir) -> Mark {
    Mark { cluster: dir.name().clone(), instance: dir.instance(), state_dir: dir.path().display().to_string() }
}

/// A process that another thread starts holds what this one has open until it becomes another program: for that moment what we
/// gave free is still locked, in our own name.
fn locked(dir: &ClusterDir, command: &str) -> Result<Lock, StoreError> {
    let patience = std::time::Instant::now();
    loop {
        match dir.lock(command) {
            Err(StoreError::Busy { holder: Some(holder), .. })
                if holder.pid == std::process::id() && patience.elapsed().as_secs() < 30 =>
            {
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

#[test]
fn up_killed_anywhere_is_finished_by_up_and_cleaned_up_by_down() {
    let place = place();
    let fresh = Computer::fresh(&place.path().join("fresh"));
    let before = fresh.lab().host_seen();
    let points = fresh.copied(&place.path().join("counted")).points("up");
    assert!(points.len() > 150, "{}", points.len());
    each(&points, |point, at| {
        let cut = fresh.copied(&at.join("cut"));
        assert!(cut.killed("up", point), "{point} is on the way of up");
        cut.copied(&at.join("down")).goes_down(&before, &format!("up killed at {point}, down"));
        cut.comes_up(&format!("up killed at {point}, up"));
        cut.goes_down(&before, &format!("up killed at {point}, up, down"));
    });
    println!("{}", told("up", &points));
}

#[test]
fn down_killed_anywhere_is_finished_by_down_and_turned_round_by_up() {
    let place = place();
    let whole = Computer::fresh(&place.path().join("whole"));
    let before = whole.lab().host_seen();
    whole.comes_up("undisturbed");
    whole.merge();
    let points = whole.copied(&place.path().join("counted")).points("down");
    assert!(points.len() > 14, "{points:?}");
    each(&points, |point, at| {
        let cut = whole.copied(&at.join("cut"));
        assert!(cut.killed("down", point), "{point} is on the way of down");
        cut.copied(&at.join("down")).goes_down(&before, &format!("down killed at {point}, down"));
        // What is half removed is a half-made cluster.
        cut.comes_up(&format!("down killed at {point}, up"));
        cut.goes_down(&before, &format!("down killed at {point}, up, down"));
    });
    println!("{}", told("down", &points));
}

/// Fifty at once, on a cluster that is not there yet: one makes it, the others change nothing and name who does.
#[test]
fn fifty_processes_on_one_cluster_are_one_that_works() {
    let place = place();
    let computer = Computer::fresh(&place.path().join("computer"));
    let outcomes = place.path().join("outcomes");
    std::fs::create_dir(&outcomes).expect("a directory");
    let env: [(&str, &dyn AsRef<OsStr>); 3] =
        [("KTCW_TEST_DIR", &computer.0), ("KTCW_TEST_VERB", &"race"), ("KTCW_TEST_OUTCOMES", &outcomes)];
    let mut children: Vec<_> = (0..50).map(|_| crash::child(CHILD, &env)).collect();
    for child in &mut children {
        assert!(child.wait().expect("ended").success());
    }
    let said: Vec<String> = entries(&outcomes).iter().map(|path| std::fs::read_to_string(path).expect("text")).collect();
    let of = |word: &str| said.iter().filter(|text| text.starts_with(word)).count();
    // One that the computer let run late finds it made and whole.
    let (done, busy, late) = (of("done"), of("busy process"), of("exists") + of("nothing to do"));
    println!("50 processes: {done} worked, {busy} were told who does, {late} found it made");
    assert_eq!((said.len(), done, busy + late), (50, 1, 49), "{said:?}");
    assert!(busy > 0, "{said:?}");
    assert_eq!(computer.up().expect("whole"), 0, "what one of them made is whole");
}

#[test]
#[ignore = "only as a child of the tests above"]
fn child_runs() {
    let computer = Computer(PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent")));
    match std::env::var("KTCW_TEST_VERB").expect("set by the parent").as_str() {
        "up" => drop(computer.up().expect("up")),
        "down" => computer.down().expect("down"),
        other if super::grown::VERBS.contains(&other) => super::grown::go(&computer, other),
        "race" => {
            let outcomes = PathBuf::from(std::env::var_os("KTCW_TEST_OUTCOMES").expect("set by the parent"));
            let said = match computer.up() {
                Ok(0) => "nothing to do".to_owned(),
                Ok(_) => "done".to_owned(),
                Err(error) => match error.downcast_ref::<StoreError>() {
                    Some(StoreError::Busy { holder: Some(holder), .. }) => format!("busy {holder}"),
                    Some(StoreError::Exists { .. } | StoreError::Changed { .. }) => "exists".to_owned(),
                    _ => format!("failed: {error}"),
                },
            };
            std::fs::write(outcomes.join(std::process::id().to_string()), said).expect("written");
        }
        other => panic!("no verb {other}"),
    }
}
