//! The VM suite: the real program, real machines. `setup/e2e.sh` starts it in a namespace with a libvirt of its own.
//!
//! `smoke` runs in `make test`, `bench` in `make bench`, `soak` in `make soak`, `emulated` there and in `make e2e-full`, `sizes`, `full` and `labs_full` in
//! `make e2e-full`, the rest in `make e2e` too: `setup/e2e.sh` chooses by name. One cluster serves many checks, because booting it is what costs.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test may fail loudly, says what it does, and waits for real machines"
)]

mod audit;
mod bad_input;
mod bench;
mod crashes;
mod drills;
mod dying;
mod emulated;
mod excuses;
mod full;
mod grow;
mod ha3;
mod lab;
mod labs;
mod labs_full;
mod refused;
mod rig;
mod sizes;
mod smoke;
mod soak;
mod solo;
mod writer;
