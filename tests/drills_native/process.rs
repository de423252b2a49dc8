//! Processes as the kernel tells of them: found by an argument, known by id and start time.
//! `cluster` asks it; another process may have started what is looked for.
//! It keeps nothing but a guess where to look first.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: Pid,
    /// `S`, `R`, `T` (stopped) …
    pub state: char,
    /// In ticks since the host's boot: an id may be given again, not with the same start.
    started: String,
}

impl Process {
    /// One that is there and has not ended; what has ended and is our child is laid to rest.
    pub fn of(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let (state, pid) = (fields.first()?.chars().next()?, Pid::from_raw(pid as i32));
        if ['Z', 'X'].contains(&state) {
            // Somebody else's child is refused, and is somebody else's to bury.
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            return None;
        }
        Some(Process { pid, state, started: (*fields.get(19)?).to_owned() })
    }

    /// Tells this process from every other.
    pub fn who(&self) -> String {
        format!("{}@{}", self.pid, self.started)
    }
}

/// What is there now, looked for where it was last and then everywhere.
pub fn refreshed(seen: &mut Option<Process>, argument: &str) -> Option<Process> {
    let still = seen.as_ref().and_then(|old| Process::of(old.pid.as_raw() as u32).filter(|new| new.started == old.started));
    *seen = still.or_else(|| with_argument(argument).into_iter().next());
    seen.clone()
}

/// Every process that was given exactly this argument.
pub fn with_argument(argument: &str) -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let given = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|one| one == argument.as_bytes())
    };
    pids.filter(given).filter_map(Process::of).collect()
}
