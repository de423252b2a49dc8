//! The end of a run on a node that answers nobody for a while: what cannot be undone keeps every other way of undoing it.

use super::super::catalogue::find;
use super::super::heal::heal;
use super::super::injector::{Environment, Leftover, MemoryLog};
use super::super::script::script;
use super::super::target::ClusterView;
use super::*;
use crate::spec::NodeName;
use futures::future::BoxFuture;
use std::sync::atomic::{AtomicBool, Ordering};

/// One node with packet rules on it, and a timer that would remove them; while it is silent, nobody else can.
#[derive(Default)]
struct Node {
    cut: AtomicBool,
    armed: AtomicBool,
    silent: AtomicBool,
}

fn is(what: &AtomicBool) -> bool {
    what.load(Ordering::SeqCst)
}

fn node() -> NodeName {
    NodeName::controller(0)
}

impl Injector for Node {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        async move {
            if is(&self.silent) {
                return Err(InjectError::Act { act: act.to_string(), reason: "it did not end within 30 s".to_owned() });
            }
            self.cut.store(false, Ordering::SeqCst);
            Ok(())
        }
        .boxed()
    }
    fn prove<'a>(&'a self, claim: &'a super::super::act::Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        let reason = "nobody looks".to_owned();
        async move { Err(InjectError::Look { what: claim.to_string(), reason }) }.boxed()
    }
    fn arm<'a>(&'a self, _: &'a [Act], _: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        async { Ok(()) }.boxed()
    }
    /// It answers again by then: that is when timers were lost.
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        async move {
            self.armed.store(false, Ordering::SeqCst);
            Ok(())
        }
        .boxed()
    }
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        let rules = Leftover { node: node(), what: "packet rules".to_owned(), undo: Act::Uncut { node: node() } };
        async move { Ok(if is(&self.cut) { vec![rules] } else { vec![] }) }.boxed()
    }
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        async { Ok(vec![]) }.boxed()
    }
    fn incarnation<'a>(&'a self, _: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        async { Ok("one".to_owned()) }.boxed()
    }
}

/// Nobody to ask: what is done to a node is all there is.
fn site() -> Site {
    let environment = Environment {
        cluster: "lab".to_owned(),
        acceleration: "kvm".to_owned(),
        kubernetes: "v1".to_owned(),
        timing: Timing::native(),
        host_load: 0.0,
        host_cpus: 1,
    };
    Site { members: vec![], tls: None, environment, quota_mib: 1024 }
}

fn options() -> Options {
    Options {
        run: "r".to_owned(),
        seed: 1,
        started: jiff::Timestamp::UNIX_EPOCH,
        directory: std::path::PathBuf::new(),
        cancel: CancellationToken::new(),
        kube: None,
        progress: Arc::new(|_| ()),
    }
}

fn cut() -> (Drill, Chosen, Script) {
    let drill = find("isolate-leader").expect("in the catalogue");
    let members: Vec<NodeName> = (0..3).map(NodeName::controller).collect();
    let script = script(&drill.fault, &members[..1], &members, &Timing::native(), "");
    (drill, Chosen { nodes: vec![node()], why: "leads".to_owned() }, script)
}

fn before(chosen: Chosen, script: Script) -> Before {
    Before { view: ClusterView::default(), chosen, script }
}

#[tokio::test]
async fn what_could_not_be_undone_is_left_to_the_timers_until_it_is() {
    let injector = Node { cut: true.into(), armed: true.into(), silent: true.into() };
    let (site, options, log) = (site(), options(), MemoryLog::default());
    let (drill, chosen, script) = cut();
    let pending =
        Pending { run: options.run.clone(), drill: drill.name.clone(), heal: script.heal.clone(), tidy: script.tidy.clone() };
    log.record(&pending).expect("recorded");

    let mut phases = Phases::new(&drill, &site, &injector, &log, &options, before(chosen, script));
    phases.prepared = true;
    phases.record.marks.inject = At(1);
    let why = phases.heal().await.expect_err("the node is silent");
    assert!(why.contains("30 s"), "{why}");
    assert!(is(&injector.armed), "the node's own timer is the last that can undo it");
    assert_eq!(phases.record.after.leftovers.as_ref().map(Vec::len), Ok(1));

    let error = heal(&site, &injector, &log).await.expect_err("still silent").to_string();
    assert!(error.contains("could not be healed"), "{error}");
    assert!(is(&injector.armed));
    assert_eq!(log.pending().expect("a list").len(), 1);

    injector.silent.store(false, Ordering::SeqCst);
    heal(&site, &injector, &log).await.expect("healed");
    assert!(!is(&injector.cut) && !is(&injector.armed), "nothing is left, and nothing for a timer to do");
    assert!(log.pending().expect("a list").is_empty());
}

#[tokio::test]
async fn a_run_that_has_healed_takes_its_timers_along() {
    let injector = Node { cut: true.into(), armed: true.into(), silent: false.into() };
    let (site, options, log) = (site(), options(), MemoryLog::default());
    let (drill, chosen, script) = cut();
    let mut phases = Phases::new(&drill, &site, &injector, &log, &options, before(chosen, script));
    phases.prepared = true;
    phases.heal().await.expect("healed");
    assert!(!is(&injector.cut) && !is(&injector.armed));
}

/// Emulated machines take five times as long for every look that comes before the heal.
#[test]
fn timers_wait_longer_where_everything_takes_longer() {
    let (drill, _, script) = cut();
    let margin = |timing: &Timing| dead_man(&drill, &script, timing) - drill.hold.of(timing) - script.allowance(timing);
    let native = Timing::native();
    let emulated = Timing { election_ms: 5000, ..native.clone() };
    assert_eq!(margin(&native), Duration::from_secs(40));
    assert_eq!(margin(&emulated), Duration::from_secs(160));
}
