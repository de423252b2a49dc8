//! Emulators that must not be used, judged from their version.
//! `cli` asks before a plan is made, `doctor` when it looks around.
//! It judges what was measured and nothing else.

use crate::plan::Accel;

/// QEMU's emulation of `cmpxchg16b` before 8.2 corrupts current kernels: 7.2 with Linux 6.12 ends in a double fault in
/// `__kmalloc` within seconds of every boot.
const SAFE_UNDER_TCG: (u32, u32) = (8, 2);

/// Why an emulator is refused, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("QEMU {version} emulates x86 wrongly: guests crash within seconds of their boot (fixed in 8.2)")]
pub struct Refusal {
    pub version: String,
}

impl Refusal {
    pub fn hint(&self) -> &'static str {
        "use a newer QEMU (on Debian 12: `apt-get install -t bookworm-backports qemu-system-x86 qemu-utils`), or a host with working KVM"
    }
}

/// Only emulation is judged: under KVM the processor itself runs the guest. A version that does not parse is let pass.
pub fn judge_qemu(version: &str, accel: &Accel) -> Result<(), Refusal> {
    match (accel, parse(version)) {
        (Accel::Tcg, Some(found)) if found < SAFE_UNDER_TCG => Err(Refusal { version: version.to_owned() }),
        _ => Ok(()),
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::CpuModel;

    /// What set-up installs is what `up` and `doctor` accept.
    #[test]
    fn set_up_has_the_same_bound() {
        let script = include_str!("../../setup/install.sh");
        let bound = script.lines().find_map(|line| line.strip_prefix("safe_qemu=")).expect("a bound");
        assert_eq!(parse(bound), Some(SAFE_UNDER_TCG));
        assert_eq!(script.matches(bound).count(), 1, "said once");
        let refusal = judge_qemu("7.2.22", &Accel::Tcg).expect_err("old");
        assert!(refusal.to_string().contains(&format!("fixed in {bound}")), "{refusal}");
    }

    #[test]
    fn only_old_emulation_is_refused() {
        for bad in ["7.2.22", "6.2.0", "8.1.5", "8.0"] {
            let refusal = judge_qemu(bad, &Accel::Tcg).expect_err(bad);
            assert!(refusal.to_string().contains(bad) && refusal.hint().contains("bookworm-backports"), "{refusal}");
            assert_eq!(judge_qemu(bad, &Accel::Kvm { cpu: CpuModel::HostPassthrough }), Ok(()));
        }
        for good in ["8.2.0", "10.0.2", "11.1.0", "unknown"] {
            assert_eq!(judge_qemu(good, &Accel::Tcg), Ok(()), "{good}");
        }
    }
}
