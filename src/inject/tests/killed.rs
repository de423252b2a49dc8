//! A drill cut off before and after each of its acts and journal records, for every drill of the catalogue that is done to machines:
//! another process, with the journal for all it knows, undoes the rest; and one that is cut off while it heals is followed by a
//! third. What asks etcd itself (members replaced, quotas filled, data restored) is cut off on real etcd, in `tests/drills_native`.

use super::*;
use crate::drill::catalogue::built_in;
use crate::drill::heal::{perform_each, undo};
use crate::drill::injector::{InjectError, Leftover, Proof};
use crate::drill::script::{Script, script};
use crate::inject::log::JournalLog;
use crate::store::failpoint;
use crate::store::journal::Journal;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

/// What is wrong with machines, and what undoes it. It outlives the programs that cause and undo it.
type Wrong = Arc<Mutex<BTreeMap<(NodeName, String), Act>>>;

/// One program's hands on them. It dies at the so many-th of its points: there are two an act.
struct Hands {
    wrong: Wrong,
    points: Mutex<usize>,
    dies_at: usize,
    died: tokio::sync::Notify,
}

impl Hands {
    fn new(wrong: &Wrong, dies_at: usize) -> Hands {
        Hands { wrong: wrong.clone(), points: Mutex::new(0), dies_at, died: tokio::sync::Notify::new() }
    }

    /// Passes a point, or is never heard of again.
    async fn point(&self) {
        let passed = {
            let mut points = self.points.lock().expect("free");
            *points += 1;
            *points
        };
        if passed == self.dies_at {
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
    }

    fn passed(&self) -> usize {
        *self.points.lock().expect("free")
    }

    fn apply(&self, act: &Act) -> Result<(), String> {
        let mut wrong = self.wrong.lock().expect("free");
        let node = (*act.nodes().first().expect("an act on a machine")).clone();
        let host = matches!(act, Act::Suspend { .. } | Act::Resume { .. } | Act::PowerOff { .. } | Act::PowerOn { .. });
        if !host && ["suspended", "off"].iter().any(|state| wrong.contains_key(&(node.clone(), (*state).to_owned()))) {
            return Err(format!("{node}: no route to host"));
        }
        let mut set = |what: String, undo: Act| drop(wrong.insert((node.clone(), what), undo));
        let own = node.clone();
        match act.clone() {
            Act::Down { process, .. } => set(format!("down {process}"), Act::Start { node: own, process }),
            Act::Pause { process, .. } => set(format!("paused {process}"), Act::Continue { node: own, process }),
            Act::Cut { .. } => set("cut".to_owned(), Act::Uncut { node: own }),
            Act::Slow { .. } => set("slow".to_owned(), Act::Unslow { node: own }),
            Act::StallDisk { .. } => set("stalled".to_owned(), Act::UnstallDisk { node: own }),
            Act::Suspend { .. } => set("suspended".to_owned(), Act::Resume { node: own }),
            Act::SkewClock { .. } => set("clock".to_owned(), Act::SetClock { node: own }),
            Act::ExpireCert { .. } => set("certificate".to_owned(), Act::RenewCert { node: own }),
            Act::PowerOff { .. } => {
                // What is in its memory goes with it.
                wrong.retain(|(of, what), _| *of != own || ["clock", "certificate"].contains(&what.as_str()));
                wrong.insert((own.clone(), "off".to_owned()), Act::PowerOn { node: own });
            }
            undone => wrong.retain(|_, undo| *undo != undone),
        }
        Ok(())
    }
}

impl Injector for Hands {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        async move {
            self.point().await;
            let done = self.apply(act).map_err(|reason| InjectError::Act { act: act.to_string(), reason });
            self.point().await;
            done
        }
        .boxed()
    }
    fn prove<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        let reason = "nobody looks".to_owned();
        async move { Err(InjectError::Look { what: claim.to_string(), reason }) }.boxed()
    }
    fn arm<'a>(&'a self, _: &'a [Act], _: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        async { Ok(()) }.boxed()
    }
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        async { Ok(()) }.boxed()
    }
    /// A machine that does not answer shows nothing but that.
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        let wrong = self.wrong.lock().expect("free").clone();
        let silent = |node: &NodeName| ["suspended", "off"].map(|state| (node.clone(), state.to_owned()));
        let seen = |((node, what), undo): (&(NodeName, String), &Act)| {
            let hidden = silent(node).iter().any(|state| wrong.contains_key(state) && state.1 != *what);
            (!hidden).then(|| Leftover { node: node.clone(), what: what.clone(), undo: undo.clone() })
        };
        let all: Vec<Leftover> = wrong.iter().filter_map(seen).collect();
        async move { Ok(all) }.boxed()
    }
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        async { Ok(vec![]) }.boxed()
    }
    fn incarnation<'a>(&'a self, _: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        async { Ok("one".to_owned()) }.boxed()
    }
}

/// What a run does to machines and to its journal, in its order.
async fn run(site: &Site, hands: &Hands, log: &JournalLog, script: &Script) {
    let (heal, tidy) = (script.heal.clone(), script.tidy.clone());
    log.record(&Pending { run: "r".to_owned(), drill: "d".to_owned(), heal, tidy }).expect("recorded");
    for act in script.prepare.iter().chain(&script.inject) {
        crate::drill::admin::perform(site, hands, act).await.expect("done");
    }
    undo(site, hands, &script.heal, &script.tidy, &mut Vec::new(), &|_| ()).await.expect("healed");
    perform_each(site, hands, &script.tidy, &|_| ()).await.map_err(|(_, error)| error).expect("tidied");
    log.clear("r").expect("struck out");
}

/// Its acts are done by hands: none is asked of etcd.
fn of_machines(script: &Script) -> bool {
    let mut acts = script.prepare.iter().chain(&script.inject).chain(&script.heal).chain(&script.tidy);
    acts.all(|act| {
        let etcds = matches!(
            act,
            Act::MoveLeader { .. }
                | Act::RemoveMember { .. }
                | Act::Rejoin { .. }
                | Act::Fill
                | Act::FreeSpace
                | Act::Flap { .. }
        );
        let data = matches!(act, Act::SaveSnapshot { .. } | Act::RestoreData { .. } | Act::Wipe { .. } | Act::Quota { .. });
        !etcds && !data
    })
}

struct Bench {
    site: Site,
    dir: tempfile::TempDir,
    wrong: Wrong,
}

impl Bench {
    fn new(site: &Site) -> Bench {
        Bench { site: site.clone(), dir: crate::store::crash::place(), wrong: Wrong::default() }
    }

    /// As another process opens it.
    fn log(&self) -> JournalLog {
        let path = self.dir.path().join("journal.jsonl");
        let (journal, _) = Journal::open(&path, crate::store::draw_id(), "drill").expect("readable");
        JournalLog { journal: Arc::new(journal), path }
    }

    /// A run that dies at a point of its hands (0: at none); returns how many those were.
    async fn dies(&self, script: &Script, at: usize) -> usize {
        let (hands, log) = (Hands::new(&self.wrong, at), self.log());
        tokio::select! {
            () = run(&self.site, &hands, &log, script) => assert_eq!(at, 0, "it is on its way"),
            () = hands.died.notified() => assert_ne!(at, 0),
        }
        hands.passed()
    }

    /// Whoever comes next heals; again there is nothing to do.
    async fn heals(&self, about: &str) {
        let hands = Hands::new(&self.wrong, 0);
        heal(&self.site, &hands, &self.log()).await.unwrap_or_else(|error| panic!("{about}: {error}"));
        assert_eq!(*self.wrong.lock().expect("free"), BTreeMap::new(), "{about}");
        assert_eq!(self.log().pending().expect("readable"), [], "{about}");
        assert_eq!(heal(&self.site, &hands, &self.log()).await.expect("twice"), Vec::<String>::new(), "{about}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drill_cut_off_anywhere_is_healed_by_another_process() {
    let plan = ha3();
    let site = site(&plan);
    let members: Vec<NodeName> = plan.controllers().map(|node| node.name.clone()).collect();
    let (mut drills, mut acts, mut records, mut heals) = (0, 0, 0, 0);
    for drill in built_in().expect("the catalogue") {
        let script = script(&drill.fault, &members[..2], &members, &site.environment.timing, "/snapshot");
        if !of_machines(&script) {
            continue;
        }
        drills += 1;
        let whole = Bench::new(&site);
        let points = whole.dies(&script, 0).await;
        assert!(points >= 4, "{}: {points}", drill.name);
        whole.heals(&drill.name).await;
        for at in 1..=points {
            let about = format!("{} cut off at point {at} of {points}", drill.name);
            let bench = Bench::new(&site);
            bench.dies(&script, at).await;
            assert_eq!(bench.log().pending().expect("readable").len(), 1, "{about}: it is in the journal before it is done");
            bench.heals(&about).await;
            acts += 1;
        }
        // Before and after the two records: announced, and struck out.
        for number in 1..=4 {
            let about = format!("{} cut off at record {number}", drill.name);
            let bench = Bench::new(&site);
            let (hands, log) = (Hands::new(&bench.wrong, 0), bench.log());
            failpoint::unwind_at(number);
            let ended = AssertUnwindSafe(run(&bench.site, &hands, &log, &script)).catch_unwind().await;
            failpoint::unwind_at(0);
            assert!(ended.is_err(), "{about}");
            drop(log);
            bench.heals(&about).await;
            records += 1;
        }
        // In force, and whoever heals is cut off as well: wherever that is.
        let in_force = 2 * script.prepare.iter().chain(&script.inject).filter(|act| !act.nodes().is_empty()).count();
        for at in 1.. {
            let bench = Bench::new(&site);
            bench.dies(&script, in_force).await;
            let (hands, log) = (Hands::new(&bench.wrong, at), bench.log());
            let cut = tokio::select! {
                healed = heal(&bench.site, &hands, &log) => healed.is_err(),
                () = hands.died.notified() => true,
            };
            drop(log);
            bench.heals(&format!("{}, its heal cut off at point {at}", drill.name)).await;
            if !cut {
                break;
            }
            heals += 1;
        }
    }
    assert!(drills >= 10, "{drills}");
    println!(
        "{drills} drills cut off at {acts} points of their acts and {records} of their records, {heals} heals cut off as well"
    );
}
