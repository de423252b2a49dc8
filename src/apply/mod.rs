//! From a plan to running machines: what is missing (`steps`, pure), doing it (`run`), and taking it all away (`remove`).
//! `cli up` and `cli down` call it; it journals before each side effect and sends events.
//! It makes no choice: order and dependencies are in the steps, names and sizes in the plan.

mod inventory;
mod perform;
mod remove;
mod run;
mod step;
#[cfg(test)]
mod tests;

pub use inventory::{Inventory, NodeObserved, observe};
pub use perform::World;
pub use remove::{Removed, remove};
pub use run::{Applied, ApplyError, Failure, Timing, run, settle};
pub use step::{Action, Step, only, steps};
