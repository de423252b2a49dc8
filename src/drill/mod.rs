//! Failure drills: break a running cluster on purpose, prove that it broke, measure it from outside, judge it.
//! `cli` and labs call `run`, `heal` and `judge`; injectors for machines and for processes implement one trait.
//! It deliberately knows no libvirt, no SSH and no terminal: those are behind `Injector`, `Kube` and the caller's progress.
//!
//! ```text
//! catalogue ─► target ─► script ─► run (load · telemetry · injector · fault log) ─► record ─► judge ─► report
//!   data        pure      pure      effects                                          value     pure
//! ```

pub mod act;
pub mod admin;
mod aim;
pub mod api;
mod before;
pub mod bound;
pub mod catalogue;
pub mod checker;
pub mod clock;
pub mod etcd;
pub mod gates;
pub mod heal;
pub mod history;
pub mod injector;
pub mod invariants;
pub mod judge;
pub mod kube;
pub mod load;
pub mod packets;
pub mod quorum;
pub mod reading;
pub mod record;
pub mod refusal;
pub mod report;
pub mod restorable;
pub mod run;
pub mod script;
pub mod target;
pub mod telemetry;
pub mod windows;

#[cfg(test)]
mod before_tests;
#[cfg(test)]
mod checker_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod files_tests;
#[cfg(test)]
mod judge_kube_tests;
#[cfg(test)]
mod judge_tests;
#[cfg(test)]
mod proof_tests;
#[cfg(test)]
mod run_tests;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod wgl;
