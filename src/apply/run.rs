//! Carries steps out: each as soon as what it needs is done, all that can run together together.
//! `cli up` calls it; every step is journalled before its effect, and every beginning and end is an event.
//! It chooses nothing: the order is in the steps, the effects are in `perform`.

use super::perform::{StepError, World, perform};
use super::step::Step;
use crate::event::{Event, Events, Stage};
use crate::plan::Plan;
use crate::said::bounded;
use crate::spec::NodeName;
use crate::store::journal::{Entry, History, Journal, JournalError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A run that went through.
#[derive(Debug, Default)]
pub struct Applied {
    pub changed: usize,
}

/// One step that failed.
#[derive(Debug)]
pub struct Failure {
    pub step: String,
    pub node: Option<NodeName>,
    pub error: StepError,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Steps failed; those after them were not begun.
    #[error("{}", describe(.failures))]
    Failed { failures: Vec<Failure>, done: usize, left: usize },
    #[error("the journal could not be written")]
    Journal(#[from] JournalError),
    #[error("interrupted")]
    Interrupted { done: usize, left: usize },
}

fn describe(failures: &[Failure]) -> String {
    let lines = failures.iter().map(|failure| format!("{}: {}", failure.step, told(&failure.error)));
    lines.collect::<Vec<_>>().join("\n")
}

/// An error as it leaves here, for a terminal, an event or the journal: much of it may be a node's own words.
fn told(error: &StepError) -> String {
    bounded(&error.to_string())
}

/// Runs all steps. On a failure no new step begins; those under way are let finish, so that nothing is cut in half.
pub async fn run(
    plan: Arc<Plan>,
    steps: Vec<Step>,
    world: Arc<World>,
    journal: Arc<Mutex<Journal>>,
    events: Events,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<Applied, ApplyError> {
    let mut waiting: BTreeMap<String, Step> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    for step in steps {
        order.push(step.id.clone());
        waiting.insert(step.id.clone(), step);
    }
    let all: BTreeSet<String> = waiting.keys().cloned().collect();
    let mut done: BTreeSet<String> = BTreeSet::new();
    let mut stages = Stages::new(&waiting, events.clone());
    let mut running: JoinSet<(Step, Duration, Result<bool, StepError>)> = JoinSet::new();
    let mut failures = Vec::new();
    let mut applied = Applied::default();
    let mut interrupted = false;
    loop {
        if failures.is_empty() && !interrupted {
            let ready: Vec<String> = order
                .iter()
                .filter(|id| waiting.get(*id).is_some_and(|s| s.after.iter().all(|a| done.contains(a) || !all.contains(a))))
                .cloned()
                .collect();
            for id in ready {
                let Some(step) = waiting.remove(&id) else { continue };
                note_begun(&journal, &step)?;
                stages.started(&step);
                events.send(Event::StepStarted {
                    stage: step.stage,
                    step: step.id.clone(),
                    node: step.node.clone(),
                    what: step.action.what().to_owned(),
                });
                let (plan, world, events) = (plan.clone(), world.clone(), events.clone());
                running.spawn(async move {
                    let start = Instant::now();
                    let result = perform(&plan, &step, &world, &events).await;
                    (step, start.elapsed(), result)
                });
            }
        }
        let ended = tokio::select! {
            ended = running.join_next() => ended,
            changed = stop.changed(), if !interrupted => {
                if changed.is_ok() && *stop.borrow() {
                    // Waits are cut off; an effect under way in libvirt ends by itself and is observed by the next run.
                    interrupted = true;
                    running.abort_all();
                }
                continue;
            }
        };
        let Some(ended) = ended else { break };
        let (step, took, result) = match ended {
            Ok(ended) => ended,
            // A step that panics is a mistake of this program, not one that can be passed over.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => continue,
        };
        match result {
            Ok(changed) => {
                note_done(&journal, &step)?;
                applied.changed += usize::from(changed);
                done.insert(step.id.clone());
                stages.finished(&step, changed);
                let Step { id, stage, node, .. } = step;
                events.send(Event::StepFinished { stage, step: id, node, elapsed: took, changed });
            }
            Err(error) => {
                note_failed(&journal, &step, &error)?;
                let Step { id, stage, node, .. } = step;
                let text = told(&error);
                events.send(Event::StepFailed { stage, step: id.clone(), node: node.clone(), elapsed: took, error: text });
                failures.push(Failure { step: id, node, error });
            }
        }
    }
    let (done, left) = (done.len(), all.len() - done.len());
    if interrupted {
        return Err(ApplyError::Interrupted { done, left });
    }
    if failures.is_empty() { Ok(applied) } else { Err(ApplyError::Failed { failures, done, left }) }
}

/// Verbs whose steps an observation shows to be done or not. A restore is none of them: whether all machines are back in the same
/// moment cannot be seen. A `down` that was cut off is over once `up` turns it round.
const SETTLED: [&str; 8] = ["up", "down", "start", "stop", "pause", "resume", "node", "certs"];

/// Says in the journal what an observation has shown: a step that an earlier run began, and that is not among `steps`, is done.
/// Otherwise what a crash left open would look open for ever, because nobody has to do it again.
pub fn settle(journal: &Journal, history: &History, steps: &[Step]) -> Result<(), JournalError> {
    for record in history.pending().into_iter().chain(history.failed()).filter(|record| SETTLED.contains(&record.verb.as_str())) {
        if let Entry::Step { step, node, .. } = &record.entry
            && !steps.iter().any(|left| &left.id == step)
            && !step.starts_with(ADD)
            && step != RENEW
        {
            journal.done(step, node.as_ref())?;
        }
    }
    Ok(())
}

/// Records of nodes that come begin with it: open until the node is whole.
const ADD: &str = "add ";

/// Open from before the first certificate is replaced until every node has its own and uses it.
pub const RENEW: &str = "renew certificates";

/// Whether certificates were renewed that may not be on every node yet.
pub fn renewing(history: &History) -> bool {
    history.pending().iter().any(|record| matches!(&record.entry, Entry::Step { step, .. } if step == RENEW))
}

/// Nodes whose coming was announced, and that were not seen whole since.
pub fn announced(history: &History) -> Vec<NodeName> {
    let open = history.pending().into_iter().filter_map(|record| match &record.entry {
        Entry::Step { step, node, .. } if step.starts_with(ADD) => node.clone(),
        _ => None,
    });
    open.collect()
}

/// Says who comes, before anything of it is there: asked again after a crash, the verb finishes these and adds no more.
pub fn announce(journal: &Journal, history: &History, old: &Plan, new: &Plan) -> Result<(), JournalError> {
    let open = announced(history);
    for node in new.nodes.iter().filter(|node| old.node(&node.name).is_none() && !open.contains(&node.name)) {
        journal.begin(&format!("{ADD}{}", node.name), Some(&node.name))?;
    }
    Ok(())
}

/// All of them are there, or gone again.
pub fn arrived(journal: &Journal, history: &History) -> Result<(), JournalError> {
    for node in announced(history) {
        journal.done(&format!("{ADD}{node}"), Some(&node))?;
    }
    Ok(())
}

fn note_begun(journal: &Mutex<Journal>, step: &Step) -> Result<(), ApplyError> {
    with(journal, |journal| journal.begin(&step.id, step.node.as_ref()))
}

fn note_done(journal: &Mutex<Journal>, step: &Step) -> Result<(), ApplyError> {
    with(journal, |journal| journal.done(&step.id, step.node.as_ref()))
}

fn note_failed(journal: &Mutex<Journal>, step: &Step, error: &StepError) -> Result<(), ApplyError> {
    with(journal, |journal| journal.failed(&step.id, step.node.as_ref(), &told(error)))
}

fn with(journal: &Mutex<Journal>, note: impl FnOnce(&mut Journal) -> Result<(), JournalError>) -> Result<(), ApplyError> {
    let mut journal = journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(note(&mut journal)?)
}

/// Turns the beginnings and ends of steps into those of stages.
struct Stages {
    left: BTreeMap<Stage, usize>,
    begun: BTreeMap<Stage, Instant>,
    changed: BTreeSet<Stage>,
    events: Events,
}

impl Stages {
    fn new(steps: &BTreeMap<String, Step>, events: Events) -> Self {
        let mut left = BTreeMap::new();
        for step in steps.values() {
            *left.entry(step.stage).or_insert(0) += 1;
        }
        Self { left, begun: BTreeMap::new(), changed: BTreeSet::new(), events }
    }

    fn started(&mut self, step: &Step) {
        self.begun.entry(step.stage).or_insert_with(|| {
            self.events.send(Event::StageStarted { stage: step.stage });
            Instant::now()
        });
    }

    fn finished(&mut self, step: &Step, changed: bool) {
        if changed {
            self.changed.insert(step.stage);
        }
        if let Some(left) = self.left.get_mut(&step.stage) {
            *left -= 1;
            if *left == 0 {
                let elapsed = self.begun.get(&step.stage).map(Instant::elapsed).unwrap_or_default();
                let changed = self.changed.contains(&step.stage);
                self.events.send(Event::StageFinished { stage: step.stage, elapsed, changed });
            }
        }
    }
}
