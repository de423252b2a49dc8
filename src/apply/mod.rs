//! From a plan to running machines: what is missing (`steps`, pure), doing it (`run`), and taking it all away (`remove`).
//! `cli up` and `cli down` call it; it journals before each side effect and sends events.
//! It makes no choice: order and dependencies are in the steps, names and sizes in the plan.

mod change;
mod grow;
mod inventory;
mod member;
mod perform;
mod remove;
mod roll;
mod run;
mod step;
#[cfg(test)]
mod tests;

pub use grow::{begins_anew, seeds, settled_first};
pub use inventory::{Inventory, LeavingObserved, NodeObserved, observe};
pub use perform::World;
pub use remove::{Kept, Removed, remove};
pub use roll::observe_files;
pub use run::{Applied, ApplyError, Failure, RENEW, announce, announced, arrived, renewing, run, settle};
pub use step::{Action, Step, only, steps};
