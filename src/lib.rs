//! Kubernetes the container way, on real machines.
//!
//! ```text
//!  args, file ─► ClusterSpec ─► Plan ───────────┐           Inventory (observed: libvirt, SSH, API)
//!                (validated)    (pure value,    ▼                │
//!                                no secrets)  steps(plan, inventory)      pure
//!                                               │
//!                                             apply ─► verify ─► report
//!                                               └── events ──► progress · JSON lines · journal
//! ```
//!
//! Absences worth knowing: `spec` and `plan` know no clock, RNG, environment, file system, tokio or libvirt;
//! `apply` makes no choice; nothing below `cli` prints but `progress`; `virt`, `russh`, `rcgen`, `reqwest` and
//! `indicatif` each appear in one module.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests start processes, sleep and read the clock"))]

// Fixtures that the tests of the program share with unit tests name the library from outside.
#[cfg(test)]
extern crate self as ktcw_vm;

pub mod spec;

pub mod plan;

pub mod digest;
pub mod event;
pub mod near;
pub mod said;
pub mod secret;
pub mod timings;
pub mod wait;

pub mod accel;
pub mod api;
pub mod distro;
pub mod given;
pub mod guest;
pub mod host;
pub mod image;
pub mod netns;
pub mod pki;
pub mod seed;
pub mod store;

pub mod apply;
pub mod life;
pub mod preflight;
pub mod snapshot;
pub mod verify;

pub mod drill;
pub mod inject;
pub mod lab;
pub mod top;
pub mod tour;

pub mod cli;
pub mod progress;
