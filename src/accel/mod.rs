//! How guests can run here, proved rather than believed: a guest is booted under KVM and must be seen to reach its first program.
//! `cli` calls `probe` before a plan is made and `cached` when it only looks; `judge_qemu` refuses pairs known to corrupt guests.
//! It knows nothing of clusters or libvirt domains: it runs the emulator itself, on this machine, for seconds, and always ends it.

mod attempt;
mod cache;
mod init;
mod qemu;

pub use qemu::{Refusal, judge_qemu};

use crate::host::libvirt::{fast_firmware, is_local};
use crate::host::{HostError, HostFacts};
use crate::plan::CpuModel;
use attempt::{Attempt, Outcome};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// CPU configurations in the order they are tried.
const MODELS: [CpuModel; 3] = [CpuModel::HostPassthrough, CpuModel::HostPassthroughNoArchCapabilities, CpuModel::Nehalem];

/// One boot of a kernel to its first program takes 1 s with ordinary KVM, 5 to 30 s where KVM is itself emulated and the
/// machine is busy.
const DEADLINE: Duration = Duration::from_secs(45);

/// What is known about KVM here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "detail", rename_all = "kebab-case")]
pub enum Verdict {
    /// The kernel was seen to reach its first program with this CPU.
    Boots(CpuModel),
    /// It was tried and did not, or there is no KVM to try.
    Not(String),
    /// It cannot be tried from here (another machine): the user must say which.
    Unproved(String),
    /// It is there, and this user may not open it. libvirt's machines run as another one; what they may is not seen from here.
    Forbidden(String),
}

/// What a cluster's machines boot.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub initrd: Option<&'a Path>,
    /// Words for the kernel's command line besides ours.
    pub args: &'a str,
}

/// Boots it under KVM, one CPU configuration after the other, until one
/// reaches its first program: at most `DEADLINE` each. Takes seconds, blocks, and remembers the answer in `cache_dir`
/// until the machine is booted again or anything it depends on changes. `status` hears what is being tried.
pub fn probe(facts: &HostFacts, boot: &Boot, cache_dir: &Path, status: &dyn Fn(&str)) -> Result<Verdict, HostError> {
    if let Some(verdict) = known(facts) {
        return Ok(verdict);
    }
    let firmware = fast_firmware();
    let key = cache::Key::new(facts, boot, firmware.as_deref())?;
    if let Some(verdict) = key.load(cache_dir) {
        return Ok(verdict);
    }
    let scratch = tempfile::tempdir().map_err(|source| HostError::File { path: "temporary directory".to_owned(), source })?;
    let initrd = init::write(scratch.path(), boot.initrd)?;
    let attempt = Attempt {
        emulator: Path::new(&facts.emulator),
        firmware: firmware.as_deref().map(Path::new),
        kernel: boot.kernel,
        initrd: &initrd,
        args: boot.args,
        deadline: DEADLINE,
    };
    let mut failures = Vec::new();
    let mut found = None;
    for cpu in MODELS {
        let name = cpu.as_str();
        status(&format!("booting a guest under KVM with CPU {name}"));
        match attempt.run(cpu) {
            Outcome::Reached { .. } => {
                found = Some(Verdict::Boots(cpu));
                break;
            }
            Outcome::Forbidden { why } => return Ok(Verdict::Forbidden(why)),
            Outcome::NoKvm { why } => {
                failures.push(("any CPU", why));
                break;
            }
            Outcome::Failed { why } => {
                status(&format!("no guest boots with CPU {name}: {why}"));
                failures.push((name, why));
            }
        }
    }
    let verdict = found.unwrap_or_else(|| Verdict::Not(told(&failures)));
    key.store(cache_dir, &verdict)?;
    Ok(verdict)
}

/// Each reason once, with the configurations it was seen with.
fn told(failures: &[(&str, String)]) -> String {
    let mut reasons: Vec<(Vec<&str>, &str)> = Vec::new();
    for (name, why) in failures {
        match reasons.iter_mut().find(|(_, known)| known == why) {
            Some((names, _)) => names.push(name),
            None => reasons.push((vec![name], why)),
        }
    }
    reasons.iter().map(|(names, why)| format!("{why} (with {})", names.join(", "))).collect::<Vec<_>>().join("; ")
}

/// What an earlier `probe` found, if it still holds. Tries nothing.
pub fn cached(facts: &HostFacts, boot: &Boot, cache_dir: &Path) -> Option<Verdict> {
    known(facts).or_else(|| cache::Key::new(facts, boot, fast_firmware().as_deref()).ok()?.load(cache_dir))
}

/// What needs no trying, and no guest to try it with. `None`: only a boot will show.
pub fn known(facts: &HostFacts) -> Option<Verdict> {
    let not = |why: &str| Some(Verdict::Not(why.to_owned()));
    if !facts.kvm_listed {
        not("libvirt lists no KVM for x86_64 (no /dev/kvm, or virtualization is off in the firmware)")
    } else if !is_local(&facts.uri) {
        Some(Verdict::Unproved(format!("{} is another machine, where no guest can be booted to see", facts.uri)))
    } else if facts.emulator.is_empty() {
        not("libvirt knows no emulator for x86_64 q35 machines")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
