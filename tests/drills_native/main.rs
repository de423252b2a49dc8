//! The drill engine against real etcd processes at native speed. Needs root (network namespaces) and an etcd binary.
//!
//! `setup/native.sh` runs the suite: first what is timed, then the rest side by side. What is ignored is started by the suite
//! itself (`driver`) or by whoever writes a drill: `KTCW_DRILL=leader-kill cargo test --test drills_native -- --ignored one`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test may fail loudly, tells its figures, and waits for real processes"
)]

mod caught;
mod cluster;
mod crashes;
mod distribution;
mod driver;
mod forgetful;
mod healed;
mod idle;
mod injector;
mod page;
mod passes;
mod process;
mod refused;
mod runs;
