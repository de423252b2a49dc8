//! `up` and `down` against a cluster that can fail anywhere: at every host call, every command, every wait, every journal record.
//! After each failure the report names the step, nothing was begun after it, `up` again ends where a run without failure
//! ends, and `down` leaves what was there before `up`.

mod full;
mod grown;
mod killed;
mod lab;
mod secrets;
mod strangers;

use super::{Applied, ApplyError, World, observe, remove, run, settle, steps};
use crate::event::{Event, Events};
use crate::guest::fake::{FakeGuests, Reply};
use crate::host::fake::Strike;
use crate::plan::Plan;
use crate::spec::NodeName;
use crate::store::failpoint;
use crate::store::journal::{self, Entry, History, Journal, Phase};
use lab::{Lab, Snapshot, sample};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

/// One `up` after the other in one directory.
struct Runs {
    lab: Arc<Lab>,
    dir: tempfile::TempDir,
}

/// What one `up` did.
struct Ran {
    steps: usize,
    result: Result<Applied, ApplyError>,
    events: Vec<Event>,
    guests: Arc<FakeGuests>,
}

/// A run's own runtime, which is gone only when the last call into libvirt has come back. Time passes by itself.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime").block_on(work)
}

impl Runs {
    fn new(plan: &Arc<Plan>) -> Runs {
        // In memory where there is such a place: thousands of records are flushed one by one.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Runs { lab: Lab::new(plan), dir: dir.expect("a directory") }
    }

    fn up(&self) -> Ran {
        self.up_with(None, usize::MAX)
    }

    /// `lost`: the command of that number loses its connection. `stop_after`: Ctrl-C once so many steps have begun.
    fn up_with(&self, lost: Option<usize>, stop_after: usize) -> Ran {
        let (world, guests) = self.lab.world(lost);
        self.up_in(world, guests, stop_after)
    }

    fn up_in(&self, world: Arc<World>, guests: Arc<FakeGuests>, stop_after: usize) -> Ran {
        let plan = self.lab.plan.clone();
        block_on(async {
            let seen = observe(&plan, &world).await.expect("observed");
            let steps = steps(&plan, &seen);
            let count = steps.len();
            let (journal, history) = Journal::open(&self.journal(), Uuid::from_u128(1), "up").expect("a readable journal");
            settle(&journal, &history, &steps).expect("written");
            let (events, mut receiver) = Events::channel();
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let told = tokio::spawn(async move {
                let mut all = Vec::new();
                while let Some(event) = receiver.recv().await {
                    all.push(event);
                    if all.iter().filter(|event| matches!(event, Event::StepStarted { .. })).count() >= stop_after {
                        stop.send_replace(true);
                    }
                }
                all
            });
            let result = run(plan, steps, world, Arc::new(Mutex::new(journal)), events, stopped).await;
            Ran { steps: count, result, events: told.await.expect("heard"), guests }
        })
    }

    fn journal(&self) -> std::path::PathBuf {
        self.dir.path().join("journal.jsonl")
    }

    fn history(&self) -> History {
        journal::read(&self.journal()).expect("a readable journal")
    }

    /// What was cut off is finished by the next run, and then there is nothing more to do.
    fn resumes_to(&self, end: &Snapshot, about: &str) {
        let again = self.up();
        assert!(again.result.is_ok(), "{about}: {:?}", again.result.err().map(|e| e.to_string()));
        assert_eq!(&self.lab.snapshot(), end, "{about}");
        let history = self.history();
        assert!(history.pending().is_empty() && history.failed().is_empty(), "{about}: {:?}", history.pending());
        assert_eq!(self.up().steps, 0, "{about}");
    }

    /// Whatever is there of ours goes, whatever is not stays.
    fn goes_away(&self, about: &str) {
        let before = Lab::new(&self.lab.plan).host_seen();
        block_on(remove(self.lab.host.clone(), &self.lab.mark, |_| ())).expect("removed");
        assert_eq!(self.lab.host_seen(), before, "{about}");
        let again = block_on(remove(self.lab.host.clone(), &self.lab.mark, |_| ())).expect("removed twice");
        assert!(again.is_empty(), "{about}: {again:?}");
    }
}

impl Ran {
    fn error(&self, about: &str) -> &ApplyError {
        self.result.as_ref().err().unwrap_or_else(|| panic!("{about}: it went through"))
    }

    /// One step failed, its report names it, and nothing was begun after it.
    fn failed_once(&self, history: &History, about: &str) -> (String, Option<NodeName>) {
        let error = self.error(about);
        let ApplyError::Failed { failures, done, left } = error else { panic!("{about}: {error}") };
        assert_eq!(failures.len(), 1, "{about}: {error}");
        let failure = &failures[0];
        assert!(error.to_string().starts_with(&format!("{}: ", failure.step)), "{about}: {error}");
        if let Some(node) = &failure.node {
            assert!(failure.step.ends_with(&node.to_string()), "{about}: {}", failure.step);
        }
        assert_eq!(done + left, self.steps, "{about}");
        let at = self.events.iter().position(|event| matches!(event, Event::StepFailed { .. })).expect("an event");
        let later = self.events[at..].iter().find(|event| matches!(event, Event::StepStarted { .. }));
        assert_eq!(later, None, "{about}");
        let phases: Vec<Phase> = history.records.iter().filter_map(phase).collect();
        let at = phases.iter().position(|phase| *phase == Phase::Failed).expect("a record");
        assert!(!phases[at..].contains(&Phase::Begin), "{about}");
        assert_eq!(phases.iter().filter(|phase| **phase == Phase::Done).count(), *done, "{about}");
        assert!(history.pending().is_empty(), "{about}: what was under way is let finish");
        (failure.step.clone(), failure.node.clone())
    }
}

fn phase(record: &journal::Record) -> Option<Phase> {
    match &record.entry {
        Entry::Step { phase, .. } => Some(*phase),
        _ => None,
    }
}

/// A run without failure: where every other must end.
fn end_state(plan: &Arc<Plan>) -> (Runs, Ran, Snapshot) {
    let runs = Runs::new(plan);
    let ran = runs.up();
    assert!(ran.result.is_ok(), "{:?}", ran.result.err().map(|e| e.to_string()));
    let end = runs.lab.snapshot();
    (runs, ran, end)
}

#[test]
fn a_run_without_failure_leaves_nothing_to_do_and_goes_away_whole() {
    let (runs, ran, end) = end_state(&sample("lab", 3, 2));
    let applied = ran.result.as_ref().expect("went through");
    assert_eq!(applied.changed, ran.steps);
    let ended = |event: &&Event| matches!(event, Event::StepFinished { .. });
    assert_eq!(ran.events.iter().filter(ended).count(), ran.steps, "each says how long it took");
    runs.resumes_to(&end, "at once again");
    let started = |event: &&Event| matches!(event, Event::StageStarted { .. });
    let finished = |event: &&Event| matches!(event, Event::StageFinished { .. });
    assert_eq!(ran.events.iter().filter(started).count(), ran.events.iter().filter(finished).count());
    runs.goes_away("a whole cluster");
}

/// Every intermediate state twice: once `up` goes on from it, once `down` takes it away.
fn both_ways(plan: &Arc<Plan>, end: &Snapshot, about: &str, reach: impl Fn(&Runs)) {
    let runs = Runs::new(plan);
    reach(&runs);
    runs.resumes_to(end, about);
    let runs = Runs::new(plan);
    reach(&runs);
    runs.goes_away(about);
}

#[test]
fn a_host_call_that_fails_anywhere_is_reported_resumed_and_cleaned_up() {
    let plan = sample("lab", 3, 1);
    let (whole, _, end) = end_state(&plan);
    let before = Lab::new(&plan).host.calls().len();
    let calls = whole.lab.host.calls().len() - before;
    assert!(calls > 20, "{calls}");
    for strike in [Strike::Before, Strike::After] {
        for k in 1..=calls {
            both_ways(&plan, &end, &format!("{strike:?} call {k}"), |runs| {
                runs.lab.host.fail_at(k, strike);
                let ran = runs.up();
                let call = runs.lab.host.calls()[before + k - 1].clone();
                let about = format!("{strike:?} {call}");
                let (step, node) = ran.failed_once(&runs.history(), &about);
                let concerned = plan.nodes.iter().map(|node| &node.name).find(|name| call.contains(&name.to_string()));
                assert_eq!(node.as_ref(), concerned, "{about}: {step}");
                assert!(ran.error(&about).to_string().contains(call.split(' ').nth(1).expect("a name")), "{about}");
            });
        }
    }
}

/// Each step that happens in a node or waits for one, made impossible: it alone fails, by its name, and can be made good.
#[test]
fn a_step_inside_that_cannot_succeed_fails_alone_and_by_name() {
    let plan = sample("lab", 3, 2);
    let (_, ran, end) = end_state(&plan);
    let on_host = ["network", "pools", "base image", "kernel"];
    let begun = ran.events.iter().filter_map(|event| match event {
        Event::StepStarted { step, .. } => Some(step.clone()),
        _ => None,
    });
    let inside: Vec<String> = begun
        .filter(|step| !on_host.contains(&step.as_str()))
        .filter(|step| !["disks ", "define ", "start "].iter().any(|verb| step.starts_with(verb)))
        .collect();
    assert!(inside.len() > 25, "{inside:?}");
    for step in &inside {
        both_ways(&plan, &end, step, |runs| {
            runs.lab.break_step(Some(step));
            let ran = runs.up();
            let (failed, node) = ran.failed_once(&runs.history(), step);
            assert_eq!(&failed, step);
            if let Some(node) = node {
                // The report's line says the node in the step and, for those who read only the reason, there again.
                let text = ran.error(step).to_string();
                assert!(text.matches(&node.to_string()).count() >= 2, "{text}");
            }
            // Not made good, it is not passed over the next time either.
            assert!(matches!(runs.up().error(step), ApplyError::Failed { failures, .. } if &failures[0].step == step), "{step}");
            runs.lab.break_step(None);
        });
    }
}

/// The connection is lost under any one command: what waits asks again, what acts fails by its node's name.
#[test]
fn a_connection_lost_under_any_command_is_survived() {
    let plan = sample("lab", 1, 1);
    let (_, ran, end) = end_state(&plan);
    let commands = ran.guests.seen().len();
    assert!(commands > 10, "{commands}");
    let mut failed = BTreeSet::new();
    for at in 0..commands {
        let runs = Runs::new(&plan);
        let ran = runs.up_with(Some(at), usize::MAX);
        if ran.result.is_err() {
            failed.insert(ran.failed_once(&runs.history(), &format!("command {at}")).0);
        }
        runs.resumes_to(&end, &format!("command {at}"));
    }
    // Nodes act side by side, so which command is the k-th differs from run to run; that acts are among them does not.
    let acts = ["clock ", "etcd ", "apiserver ", "control plane ", "runtime ", "kubelet "];
    assert!(failed.iter().any(|step| acts.iter().any(|act| step.starts_with(act))), "{failed:?}");
    assert!(!failed.iter().any(|step| step.starts_with("ssh ")), "a wait asks again: {failed:?}");
}

/// A change inside a node or at the API that happened, or did not, and whose answer was lost.
#[test]
fn a_change_inside_whose_answer_is_lost_is_done_once() {
    let plan = sample("lab", 3, 1);
    let (whole, _, end) = end_state(&plan);
    let effects = whole.lab.effects().len();
    assert!(effects > 10, "{effects}");
    for strike in [Strike::Before, Strike::After] {
        for k in 1..=effects {
            let about = format!("{strike:?} effect {k}");
            both_ways(&plan, &end, &about, |runs| {
                runs.lab.fail_inside(k, strike);
                let ran = runs.up();
                let effect = runs.lab.effects()[k - 1].clone();
                // The API is asked again until it takes the addons; on a node it is a failure of that node.
                if effect == "manifest" {
                    assert!(ran.result.is_ok(), "{about}");
                } else {
                    let (step, node) = ran.failed_once(&runs.history(), &about);
                    assert!(effect.contains(&node.expect("a node").to_string()), "{effect}: {step}");
                }
            });
        }
    }
}

/// Killed before or after any record: the journal has announced what was begun, and both ways lead out.
#[test]
fn killed_between_any_two_journal_records_up_goes_on_and_down_cleans_up() {
    let plan = sample("lab", 1, 1);
    failpoint::unwind_at(0);
    let (_, ran, end) = end_state(&plan);
    let points = failpoint::unwind_at(0);
    assert_eq!(points, 4 * ran.steps as u64, "before and after two records a step");
    for number in 1..=points {
        both_ways(&plan, &end, &format!("point {number}"), |runs| {
            failpoint::unwind_at(number);
            let killed = catch_unwind(AssertUnwindSafe(|| runs.up()));
            failpoint::unwind_at(0);
            assert!(killed.is_err(), "point {number}");
            let history = runs.history();
            assert_eq!(history.records.len() as u64, number / 2, "point {number}");
            let begun = history.records.iter().filter(|record| phase(record) == Some(Phase::Begin)).count();
            let done = history.records.len() - begun;
            assert_eq!(history.pending().len(), begun - done, "point {number}");
        });
    }
}

#[test]
fn interrupted_at_any_time_it_says_what_is_left_and_goes_on_later() {
    let plan = sample("lab", 1, 1);
    let (_, ran, end) = end_state(&plan);
    for after in 1..=ran.steps {
        both_ways(&plan, &end, &format!("stopped after {after}"), |runs| {
            let ran = runs.up_with(None, after);
            match ran.error("stopped") {
                ApplyError::Interrupted { done, left } => assert_eq!(done + left, ran.steps),
                other => panic!("stopped after {after}: {other}"),
            }
            assert!(runs.history().failed().is_empty(), "a step that was cut off has not failed");
        });
    }
}

/// The host was rebooted: the same machines are started again, and nothing is made anew.
#[test]
fn after_the_host_was_rebooted_up_starts_what_is_there() {
    let plan = sample("lab", 3, 2);
    let (runs, _, end) = end_state(&plan);
    let calls = runs.lab.host.calls().len();
    runs.lab.host.reboot();
    let ran = runs.up();
    assert!(ran.result.is_ok(), "{:?}", ran.result.err().map(|e| e.to_string()));
    let made: Vec<String> =
        runs.lab.host.calls()[calls..].iter().filter(|call| call.starts_with("ensure_domain")).cloned().collect();
    assert_eq!(made, Vec::<String>::new());
    assert_eq!(runs.lab.snapshot().of(&runs.lab.mark), end.of(&runs.lab.mark));
    assert_eq!(runs.up().steps, 0);
}

#[test]
fn a_removal_that_fails_anywhere_is_finished_by_the_next() {
    let plan = sample("lab", 3, 2);
    let calls = {
        let (runs, _, _) = end_state(&plan);
        let before = runs.lab.host.calls().len();
        runs.goes_away("counted");
        runs.lab.host.calls().len() - before
    };
    assert_eq!(calls, plan.nodes.len() + 2, "machines, network, pool");
    for strike in [Strike::Before, Strike::After] {
        for k in 1..=calls {
            let (runs, _, _) = end_state(&plan);
            runs.lab.host.fail_at(k, strike);
            let error = block_on(remove(runs.lab.host.clone(), &runs.lab.mark, |_| ())).expect_err("told to fail");
            assert!(error.to_string().contains("lab"), "{error}");
            runs.goes_away(&format!("{strike:?} {k}"));
        }
    }
}

/// Nodes that answer a failed start with megabytes of what moves cursors: nothing of it reaches an event or the report, and the
/// journal is read again, by this `up` and by every verb after it.
#[test]
fn what_a_node_shouts_is_kept_short_and_moves_no_cursor() {
    let runs = Runs::new(&sample("lab", 3, 2));
    let (world, _) = runs.lab.world(None);
    let mut world = Arc::into_inner(world).expect("nobody else has it");
    let lab = runs.lab.clone();
    let mut flood = b"Job for ".to_vec();
    flood.resize(4 << 20, 0x1b);
    let shouts = FakeGuests::new()
        .then("true", [Reply::exit(1, "", flood.clone())])
        .on("systemctl daemon-reload", Reply::exit(1, "", flood))
        .with("", move |node, cmd| lab.answer(node, cmd));
    let shouts = Arc::new(shouts);
    world.guest = shouts.clone();
    let ran = runs.up_in(Arc::new(world), shouts, usize::MAX);
    let error = ran.error("shouted at").to_string();
    assert!(error.contains("did not start: Job for"), "{error}");
    let clean = |text: &str| text.len() <= 4096 && !text.chars().any(|c| c.is_control() && c != '\n');
    assert!(clean(&error), "{} bytes", error.len());
    for event in &ran.events {
        let text = match event {
            Event::StepFailed { error, .. } => error,
            Event::StepStatus { status, .. } => status,
            _ => continue,
        };
        assert!(clean(text), "{} bytes", text.len());
    }
    let journal = std::fs::read_to_string(runs.journal()).expect("text");
    assert!(journal.lines().all(|line| clean(line) && !line.contains("\\u001b")), "{} bytes", journal.len());
    assert_eq!(runs.history().failed().len(), ran.events.iter().filter(|e| matches!(e, Event::StepFailed { .. })).count());
}
