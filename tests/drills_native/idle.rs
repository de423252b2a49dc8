//! Injectors that do not do their work: one that leaves the fault out, one that lies about it, and one whose faults do not last.
//! `caught` hands them to the engine, which must find them out.
//! In everything else they are the honest injector.

use crate::injector::Native;
use futures::FutureExt;
use futures::future::BoxFuture;
use ktcw_vm::drill::act::{Act, Claim};
use ktcw_vm::drill::injector::{InjectError, Injector, Leftover, Proof};
use ktcw_vm::spec::NodeName;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Leaves the fault out, be it done to a process or asked of etcd itself, and does all the rest.
    LeavesOut,
    /// Does nothing at all, and swears that every fault is there: telemetry alone can find it out.
    Lies,
    /// Does what it is told, and undoes a cut or a pause as soon as it was looked at.
    DoesNotLast,
}

pub struct Flawed {
    pub native: Native,
    pub flaw: Flaw,
    looks: AtomicUsize,
}

impl Flawed {
    pub fn new(native: Native, flaw: Flaw) -> Flawed {
        Flawed { native, flaw, looks: AtomicUsize::new(0) }
    }

    /// The opposite of what a claim says.
    fn undoing(claim: &Claim) -> Option<Act> {
        match claim {
            Claim::Dropping { node } => Some(Act::Uncut { node: node.clone() }),
            Claim::Paused { node, process } => Some(Act::Continue { node: node.clone(), process: *process }),
            Claim::Down { node, process } => Some(Act::Start { node: node.clone(), process: *process }),
            _ => None,
        }
    }
}

impl Injector for Flawed {
    fn perform<'a>(&'a self, act: &'a Act) -> BoxFuture<'a, Result<(), InjectError>> {
        match self.flaw {
            Flaw::LeavesOut | Flaw::DoesNotLast => self.native.perform(act),
            Flaw::Lies => async { Ok(()) }.boxed(),
        }
    }
    fn leaves_out_the_fault(&self) -> bool {
        self.flaw == Flaw::LeavesOut
    }
    fn prove<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Proof, InjectError>> {
        async move {
            match self.flaw {
                Flaw::LeavesOut => self.native.prove(claim).await,
                Flaw::Lies => Ok(Proof { held: true, evidence: "believe me".to_owned() }),
                Flaw::DoesNotLast => {
                    let proof = self.native.prove(claim).await?;
                    if proof.held
                        && self.looks.fetch_add(1, Ordering::Relaxed) == 0
                        && let Some(undo) = Flawed::undoing(claim)
                    {
                        self.native.perform(&undo).await?;
                    }
                    Ok(proof)
                }
            }
        }
        .boxed()
    }
    fn arm<'a>(&'a self, undo: &'a [Act], after: Duration) -> BoxFuture<'a, Result<(), InjectError>> {
        self.native.arm(undo, after)
    }
    fn disarm(&self) -> BoxFuture<'_, Result<(), InjectError>> {
        self.native.disarm()
    }
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<Leftover>, InjectError>> {
        self.native.leftovers()
    }
    fn alarming_logs(&self) -> BoxFuture<'_, Result<Vec<String>, InjectError>> {
        self.native.alarming_logs()
    }
    fn incarnation<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<String, InjectError>> {
        self.native.incarnation(node)
    }
}
