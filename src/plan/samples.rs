//! Plans for unit tests of every module: a cluster of a name, so many members and workers, on KVM or emulated.
//! The fixture that makes them is also the golden plans' and the hostile tests'; only what runs the machines of most is here.
//! It knows no module but the plan's.

#[path = "../../tests/fixtures/sample_plan.rs"]
mod fixture;

use super::{Accel, CpuModel};

pub use fixture::{image, plan, resolved};

/// As on a computer that gives its guests all it has.
pub fn kvm() -> Accel {
    Accel::Kvm { cpu: CpuModel::HostPassthrough }
}
