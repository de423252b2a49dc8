//! One boot: the emulator started, its console read until the guest speaks, and the emulator ended in every case.
//! `probe` calls it once for each CPU configuration.
//! It does not decide what the outcome means for the cluster.

use super::init::SAID;
use crate::plan::CpuModel;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Enough for any kernel and initrd; only what is touched is taken from the host.
const MEMORY_MIB: u32 = 1024;

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Reached {
        after: Duration,
    },
    /// This configuration does not boot; another may.
    Failed {
        why: String,
    },
    /// There is no KVM, whatever the CPU.
    NoKvm {
        why: String,
    },
    /// There may be, but we may not use it.
    Forbidden {
        why: String,
    },
}

pub struct Attempt<'a> {
    pub emulator: &'a Path,
    pub firmware: Option<&'a Path>,
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    /// The cluster's own words on the kernel's command line.
    pub args: &'a str,
    pub deadline: Duration,
}

/// Ends the emulator, whatever happens to us on the way.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

enum Line {
    Console(String),
    Emulator(String),
}

impl Attempt<'_> {
    pub fn run(&self, cpu: CpuModel) -> Outcome {
        let start = Instant::now();
        let mut emulator = match self.command(cpu).spawn() {
            Ok(child) => Emulator(child),
            Err(error) => return Outcome::NoKvm { why: format!("{} cannot be run: {error}", self.emulator.display()) },
        };
        let (sender, lines) = channel();
        if let Some(stdout) = emulator.0.stdout.take() {
            read_lines(stdout, sender.clone(), Line::Console);
        }
        if let Some(stderr) = emulator.0.stderr.take() {
            read_lines(stderr, sender, Line::Emulator);
        }
        watch(&lines, start, self.deadline)
    }

    /// As libvirt would run the cluster's machines, as far as booting goes.
    fn command(&self, cpu: CpuModel) -> Command {
        let model = match cpu {
            CpuModel::HostPassthrough => "host,migratable=on",
            CpuModel::HostPassthroughNoArchCapabilities => "host,migratable=on,arch-capabilities=off",
            CpuModel::Nehalem => "Nehalem",
        };
        let mut command = Command::new(self.emulator);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.args(["-machine", "q35,accel=kvm,hpet=off", "-cpu", model, "-m", &MEMORY_MIB.to_string()]);
        if let Some(firmware) = self.firmware {
            command.arg("-bios").arg(firmware);
        }
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initrd);
        command.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet {}", self.args).trim_end());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_us(&mut command);
        command
    }
}

/// Should this program be killed, the kernel ends the emulator too. (The thread that starts it waits for it, so the
/// signal cannot come early.)
#[expect(unsafe_code, reason = "the only way to say it to the kernel between fork and exec")]
fn end_with_us(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and the closure allocates nothing.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(std::io::Error::from));
    }
}

/// Lines as they come; bytes that are no text are shown as such. The thread ends with the emulator.
fn read_lines(from: impl Read + Send + 'static, to: Sender<Line>, of: fn(String) -> Line) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if to.send(of(line)).is_err() {
                return;
            }
        }
    });
}

fn watch(lines: &Receiver<Line>, start: Instant, deadline: Duration) -> Outcome {
    let mut last_console = None;
    let mut last_emulator = None;
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok(Line::Console(line)) if line.contains(SAID) => return Outcome::Reached { after: start.elapsed() },
            Ok(Line::Console(line)) if line.contains("Kernel panic") => return Outcome::Failed { why: shortened(&line) },
            Ok(Line::Console(line)) => last_console = Some(line).filter(|line| !line.is_empty()).or(last_console),
            Ok(Line::Emulator(line)) => {
                if let Some(outcome) = judge_complaint(&line) {
                    return outcome;
                }
                if !line.contains("warning:") && !line.is_empty() {
                    last_emulator = Some(line);
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                let said = last_emulator.or(last_console).unwrap_or_else(|| "it said nothing".to_owned());
                return Outcome::Failed { why: format!("the emulator ended: {}", shortened(&said)) };
            }
            Err(RecvTimeoutError::Timeout) => {
                let said = last_console.map_or("nothing on its console".to_owned(), |line| shortened(&line));
                return Outcome::Failed { why: format!("not booted after {} s; last seen: {said}", deadline.as_secs()) };
            }
        }
    }
}

/// What the emulator's own words mean, when they settle it.
fn judge_complaint(line: &str) -> Option<Outcome> {
    if line.contains("Could not access KVM kernel module") || line.contains("failed to initialize kvm") {
        let why = shortened(line);
        if line.contains("Permission denied") {
            return Some(Outcome::Forbidden { why: format!("this user may not open /dev/kvm ({why}); join the group kvm") });
        }
        return Some(Outcome::NoKvm { why });
    }
    // The emulator stops the guest and waits for a debugger.
    line.contains("KVM internal error").then(|| Outcome::Failed { why: shortened(line) })
}

fn shortened(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: Vec<Line>, keep_open: bool) -> Outcome {
        let (sender, receiver) = channel();
        for line in lines {
            sender.send(line).expect("open");
        }
        let open = keep_open.then_some(sender);
        let outcome = watch(&receiver, Instant::now(), Duration::from_millis(50));
        drop(open);
        outcome
    }
    fn console(text: &str) -> Line {
        Line::Console(text.to_owned())
    }
    fn emulator(text: &str) -> Line {
        Line::Emulator(text.to_owned())
    }

    #[test]
    fn only_the_first_programs_own_line_counts() {
        let reached = outcome(vec![console("[    0.1] fail to initialize ptp_kvm"), console("\u{1b}[?7lktcw-init-ok")], true);
        assert!(matches!(reached, Outcome::Reached { .. }), "{reached:?}");
        let hung = outcome(vec![console("[    3.2] Loading modules")], true);
        assert!(
            matches!(&hung, Outcome::Failed { why } if why.contains("Loading modules") && why.contains("not booted")),
            "{hung:?}"
        );
        let silent = outcome(vec![emulator("qemu: warning: host doesn't support")], true);
        assert!(matches!(&silent, Outcome::Failed { why } if why.contains("nothing on its console")), "{silent:?}");
    }

    #[test]
    fn complaints_of_the_emulator_are_understood() {
        let crashed = outcome(vec![emulator("KVM internal error. Suberror: 1")], true);
        assert!(matches!(&crashed, Outcome::Failed { why } if why.contains("KVM internal error")), "{crashed:?}");
        let aborted = outcome(
            vec![emulator("error: failed to set MSR 0x10a to 0x0"), emulator("kvm_buf_set_msrs: Assertion failed.")],
            false,
        );
        assert!(matches!(&aborted, Outcome::Failed { why } if why.contains("Assertion failed")), "{aborted:?}");
        let denied = outcome(vec![emulator("Could not access KVM kernel module: Permission denied")], false);
        assert!(matches!(&denied, Outcome::Forbidden { why } if why.contains("group kvm")), "{denied:?}");
        let none = outcome(vec![emulator("Could not access KVM kernel module: No such file or directory")], false);
        assert!(matches!(none, Outcome::NoKvm { .. }), "{none:?}");
        let panicked = outcome(vec![console("[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs")], true);
        assert!(matches!(&panicked, Outcome::Failed { why } if why.contains("Unable to mount root")), "{panicked:?}");
    }

    #[test]
    fn an_emulator_that_is_not_there_or_never_ends_is_no_trouble() {
        let here = Path::new("/dev/null");
        let attempt = |emulator, deadline| Attempt { emulator, firmware: None, kernel: here, initrd: here, args: "", deadline };
        let gone = attempt(Path::new("/nonexistent/qemu"), Duration::from_secs(1)).run(CpuModel::Nehalem);
        assert!(matches!(gone, Outcome::NoKvm { .. }), "{gone:?}");
        // Something that takes any argument, says nothing and stays: it must be gone after the deadline.
        let dir = tempfile::tempdir().expect("dir");
        let script = format!("#!/bin/sh\necho $$ > {}/pid\nexec sleep 300\n", dir.path().display());
        let script = crate::accel::tests::executable(dir.path(), script.as_bytes());
        let stuck = attempt(&script, Duration::from_millis(500)).run(CpuModel::HostPassthrough);
        assert!(matches!(stuck, Outcome::Failed { .. }), "{stuck:?}");
        let pid = std::fs::read_to_string(dir.path().join("pid")).expect("it ran");
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "process {pid} is still there");
    }
}
