//! Whole runs on members that are servers of this process: whom the fault hits when leadership goes elsewhere before it, what is
//! done when it does not stay anywhere, how long the fault is held, and what a run leaves that ended early.

use super::catalogue::{Drill, find};
use super::clock::{At, human};
use super::etcd::Site;
use super::fake::{Machines, Said, Says, first_field, member, message, number, options, site};
use super::injector::{FaultLog as _, MemoryLog};
use super::judge::judge;
use super::run::{RunError, dead_man, run};
use crate::spec::NodeName;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Three members that are of one mind about who leads, and take every write.
struct Cluster {
    /// Id of the leader of the moment, and its term.
    leader: AtomicU64,
    term: AtomicU64,
    revision: AtomicU64,
    /// How long a put takes; `None`: for ever.
    put: Option<Duration>,
    /// Keys that were written or removed, each with the word for it.
    asked: Mutex<Vec<String>>,
}

impl Cluster {
    fn new(put: Option<Duration>) -> Arc<Cluster> {
        let (leader, term, revision) = (AtomicU64::new(1), AtomicU64::new(2), AtomicU64::new(5));
        Arc::new(Cluster { leader, term, revision, put, asked: Mutex::default() })
    }

    /// The next member leads, in the next term.
    fn elect(&self) {
        self.leader.store(self.leader.load(Ordering::SeqCst) % 3 + 1, Ordering::SeqCst);
        self.term.fetch_add(1, Ordering::SeqCst);
    }

    fn note(&self, what: &str, question: &[u8]) {
        self.asked.lock().expect("free").push(format!("{what} {}", first_field(question)));
    }

    /// Numbered as `rpc.proto` does.
    fn said(&self, id: u64, path: &str, question: &[u8]) -> Said {
        if path == "/etcdserverpb.KV/Put" {
            self.note("put", question);
            self.revision.fetch_add(1, Ordering::SeqCst);
        }
        let (leader, term) = (self.leader.load(Ordering::SeqCst), self.term.load(Ordering::SeqCst));
        let header = [number(1, 7), number(2, id), number(3, self.revision.load(Ordering::SeqCst)), number(4, term)].concat();
        let header = message(1, &header);
        match path {
            "/etcdserverpb.KV/Put" => self.put.map_or(Said::Silence, |after| Said::Late(after, header)),
            "/etcdserverpb.KV/DeleteRange" => {
                self.note("delete", question);
                Said::Answer(header)
            }
            "/etcdserverpb.KV/Range" | "/etcdserverpb.Maintenance/Alarm" => Said::Answer(header),
            "/etcdserverpb.Maintenance/HashKV" => Said::Answer([header, number(2, 77)].concat()),
            "/etcdserverpb.Maintenance/Status" => {
                Said::Answer([header, number(3, 4096), number(4, leader), number(5, 9), number(6, term)].concat())
            }
            _ => Said::Refusal,
        }
    }

    async fn site(self: &Arc<Cluster>) -> Site {
        let mut members = Vec::new();
        for id in 1..=3 {
            let cluster = self.clone();
            let says: Says = Arc::new(move |path: &str, question: &[u8]| cluster.said(id, path, question));
            members.push(member(says).await);
        }
        site(&members)
    }
}

const PUT: Duration = Duration::from_millis(2);

/// As short as it can be.
fn leader_kill() -> Drill {
    let mut drill = find("leader-kill").expect("there");
    drill.hold = "10 latency".parse().expect("a bound");
    drill.load.baseline = "0.2 s".parse().expect("a bound");
    drill
}

/// Leadership goes on between the choice and the fault, as it does where a host is too busy for heartbeats.
#[tokio::test]
async fn whoever_leads_when_the_fault_comes_is_hit() {
    let (cluster, machines, log) = (Cluster::new(Some(PUT)), Machines::default(), Arc::new(MemoryLog::default()));
    let site = cluster.site().await;
    let written = Arc::new(Mutex::new(Vec::new()));
    let (moved, journal, seen) = (cluster.clone(), log.clone(), written.clone());
    let options = options(move |line| {
        if line == "leader-kill: controller-0 (leads)" {
            moved.elect();
        }
        if line.starts_with("kill etcd") {
            let open = journal.pending().expect("a list");
            seen.lock().expect("free").extend(open.iter().flat_map(|fault| &fault.heal).map(ToString::to_string));
        }
    });
    let record = run(&leader_kill(), &site, &machines, &*log, &options).await.expect("a record");
    assert_eq!((record.aborted.as_deref(), &record.chosen.nodes[..]), (None, &[NodeName::controller(1)][..]));
    assert_eq!(machines.done(), ["arm", "kill etcd on controller-1", "start etcd on controller-1", "disarm"]);
    assert_eq!(*written.lock().expect("free"), ["start etcd on controller-1"], "what undoes it is on the disk before it is done");
    assert!(log.pending().expect("a list").is_empty());
    let told = record
        .notes
        .iter()
        .any(|note| note.text == "controller-0 no longer leads, controller-1 does; leader-kill: controller-1 (leads)");
    assert!(told, "{:?}", record.notes);
    // The members go on answering, which is another matter: that the leader was hit is not in doubt.
    let v1 = judge(&record).checks.into_iter().find(|check| check.id == "V1").expect("always judged");
    assert!(v1.seen.contains("controller-1 answers nothing") && !v1.seen.contains("no longer leads"), "{}", v1.seen);
}

#[tokio::test]
async fn a_leader_that_changes_before_every_fault_is_not_hit_at_all() {
    let (cluster, machines, log) = (Cluster::new(Some(PUT)), Machines::default(), MemoryLog::default());
    let site = cluster.site().await;
    let moved = cluster.clone();
    let options = options(move |line| {
        if line.contains("leader-kill: ") {
            moved.elect();
        }
    });
    let record = run(&leader_kill(), &site, &machines, &log, &options).await.expect("a record");
    let why = "nothing was injected: controller-2 no longer leads, controller-0 does";
    assert_eq!((record.aborted.as_deref(), record.marks.inject), (Some(why), At::ZERO));
    assert_eq!(machines.done(), ["start etcd on controller-2", "disarm"], "no timer was armed and nobody killed");
    assert!(log.pending().expect("a list").is_empty());
}

/// A leader elected within its limit is one that was elected before the heal, also where writes are slow.
#[tokio::test]
async fn a_fault_is_held_for_as_long_as_its_gates_allow() {
    let (cluster, machines, log) = (Cluster::new(Some(Duration::from_millis(30))), Machines::default(), MemoryLog::default());
    let (site, options) = (cluster.site().await, options(|_| ()));
    let record = run(&leader_kill(), &site, &machines, &log, &options).await.expect("a record");
    let timing = &record.environment.timing;
    assert!(timing.latency_ms >= 30 && timing.latency_ms > site.environment.timing.latency_ms, "{timing:?}");
    let hold = record.drill.hold.of(timing);
    let told: Vec<&str> = record.notes.iter().map(|note| note.text.as_str()).filter(|text| text.contains("holding")).collect();
    assert_eq!(told, [format!("holding for {}", human(hold))]);
    assert!(record.marks.heal.since(record.marks.proven) >= hold);
    // Whoever dies leaves the undoing to timers; whoever lives is not to be overtaken by them.
    let armed = machines.armed().expect("armed");
    assert_eq!(armed, dead_man(&record.drill, &record.script, timing));
    assert!(armed > record.marks.heal.since(record.marks.inject) && armed >= hold + Duration::from_secs(30), "{armed:?}");
}

/// There is no load yet, and all the same something has been written.
#[tokio::test]
async fn a_run_that_ends_while_it_measures_the_pace_leaves_no_key() {
    let (cluster, machines, log) = (Cluster::new(None), Machines::default(), MemoryLog::default());
    let (site, options) = (cluster.site().await, options(|_| ()));
    let asked = || cluster.asked.lock().expect("free").clone();
    let interrupter = async {
        while !asked().contains(&"put /ktcw/warm/a-run".to_owned()) {
            tokio::task::yield_now().await;
        }
        options.cancel.cancel();
    };
    let drill = leader_kill();
    let (ended, ()) = tokio::join!(run(&drill, &site, &machines, &log, &options), interrupter);
    assert!(matches!(ended, Err(RunError::Interrupted)), "{:?}", ended.map(|_| ()));
    assert_eq!(asked(), ["put /ktcw/warm/a-run", "delete /ktcw/probe/a-run/", "delete /ktcw/warm/a-run"]);
    assert!(log.pending().expect("a list").is_empty());
}
