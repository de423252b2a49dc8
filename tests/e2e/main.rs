//! The VM suite: the real program, real machines. `setup/e2e.sh` starts it in a namespace with a libvirt of its own.
//!
//! `smoke` runs in `make test`; the rest in `make e2e`; tests that take hours belong to `make e2e-full` and say so
//! when they are passed over. One cluster serves many checks, because booting it is what costs.

mod bad_input;
mod ha3;
mod rig;
mod sizes;
mod smoke;
mod solo;
