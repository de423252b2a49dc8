//! Places where a test may kill the program: before and after every journal record, every file and every effect of a fake.
//! `journal`, `files` and fakes name them; crash tests choose one through the environment and look at what is left.
//! Where something is written a test may also have the disk full, or its quota used up (`room`).
//! In a release build there is nothing here: `at` and `room` are empty functions.
//!
//! `KTCW_FAIL_AT=17` aborts at the 17th journal point, `file:17` at the 17th file point, `effect:17` at the 17th of a fake,
//! `journal:NAME` or `file:NAME` at the first of that name. `KTCW_FAIL_COUNT=PATH` appends a line `class:name` for every point passed, so that a loop knows how many there are.

/// What the point stands beside. Numbers count within a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Journal,
    File,
    /// Of a fake that stands for machines: in a release there is none.
    Effect,
}

impl Class {
    #[cfg(any(test, feature = "failpoints"))]
    fn word(self) -> &'static str {
        match self {
            Class::Journal => "journal",
            Class::File => "file",
            Class::Effect => "effect",
        }
    }
}

/// Passes a point, or ends the process there.
#[cfg(not(any(test, feature = "failpoints")))]
pub fn at(_: Class, _: &str) {}

#[cfg(any(test, feature = "failpoints"))]
pub use armed::at;

/// Whether there is room for a write; always, but where a test has said otherwise.
#[cfg(not(test))]
pub(super) fn room() -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) fn room() -> std::io::Result<()> {
    let (from, passed) = armed::ROOM.with(std::cell::Cell::get);
    armed::ROOM.with(|cell| cell.set((from, passed + 1)));
    // What the kernel says, word for word.
    if from != 0 && passed + 1 >= from { Err(armed::REFUSAL.with(std::cell::Cell::get).into()) } else { Ok(()) }
}

/// In a test: the `number`th write of this thread, and all after it, find the disk full. 0 makes room again. Returns how many
/// writes there have been since the last call.
#[cfg(test)]
pub(crate) fn full_from(number: u64) -> u64 {
    armed::REFUSAL.with(|cell| cell.set(nix::errno::Errno::ENOSPC));
    armed::ROOM.with(|cell| cell.replace((number, 0)).1)
}

/// The same with room on the disk, and none in the quota of its user.
#[cfg(test)]
pub(crate) fn over_quota_from(number: u64) -> u64 {
    let passed = full_from(number);
    armed::REFUSAL.with(|cell| cell.set(nix::errno::Errno::EDQUOT));
    passed
}

/// In a test: the `number`th journal point that this thread passes unwinds instead of ending the process, so that fakes in
/// memory outlive the run that was cut off. 0 takes it back. Returns how many points the thread has passed since the last call.
#[cfg(test)]
pub(crate) fn unwind_at(number: u64) -> u64 {
    armed::UNWIND.with(|cell| cell.replace((number, 0)).1)
}

/// In a test: what is written by `work` is on another disk.
#[cfg(test)]
pub(crate) fn elsewhere<T>(work: impl FnOnce() -> T) -> T {
    let here = armed::ROOM.with(|cell| cell.replace((0, 0)));
    let done = work();
    armed::ROOM.with(|cell| cell.set(here));
    done
}

#[cfg(any(test, feature = "failpoints"))]
mod armed {
    use super::Class;
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug, PartialEq, Eq)]
    pub(super) enum Target {
        Number(Class, u64),
        Name(Class, String),
    }

    struct Armed {
        target: Option<Target>,
        count: Option<std::path::PathBuf>,
        passed: [AtomicU64; 3],
    }

    pub(super) fn parse(text: &str) -> Option<Target> {
        let named = [Class::Journal, Class::File, Class::Effect].into_iter().find_map(|class| {
            let rest = text.strip_prefix(class.word())?.strip_prefix(':')?;
            Some((class, rest))
        });
        let (class, rest) = named.unwrap_or((Class::Journal, text));
        match rest.parse() {
            Ok(number) => Some(Target::Number(class, number)),
            Err(_) if rest.is_empty() => None,
            Err(_) => Some(Target::Name(class, rest.to_owned())),
        }
    }

    #[cfg(test)]
    thread_local! {
        /// Where this thread unwinds, and the journal points it has passed.
        pub(super) static UNWIND: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) };
        /// From which of its writes on this thread's disk is full, and the writes it has made.
        pub(super) static ROOM: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) };
        /// What the kernel says to those writes.
        pub(super) static REFUSAL: std::cell::Cell<nix::errno::Errno> =
            const { std::cell::Cell::new(nix::errno::Errno::ENOSPC) };
    }

    /// Passes a point, or ends the process there.
    pub fn at(class: Class, name: &str) {
        #[cfg(test)]
        if class == Class::Journal {
            let (target, passed) = UNWIND.with(std::cell::Cell::get);
            UNWIND.with(|cell| cell.set((target, passed + 1)));
            if target == passed + 1 {
                // Without the panic hook: nobody wants to read about it.
                std::panic::resume_unwind(Box::new(format!("killed at {name}")));
            }
        }
        static ARMED: OnceLock<Armed> = OnceLock::new();
        let armed = ARMED.get_or_init(|| Armed {
            target: std::env::var("KTCW_FAIL_AT").ok().as_deref().and_then(parse),
            count: std::env::var_os("KTCW_FAIL_COUNT").map(Into::into),
            passed: [const { AtomicU64::new(0) }; 3],
        });
        let number = armed.passed[class as usize].fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(path) = &armed.count {
            let class = class.word();
            if let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
                let _ = file.write_all(format!("{class}:{name}\n").as_bytes());
            }
        }
        let hit = match &armed.target {
            Some(Target::Number(of, at)) => *of == class && *at == number,
            Some(Target::Name(of, at)) => *of == class && at == name,
            None => false,
        };
        if hit {
            // No destructor runs and no buffer is flushed: as near to `kill -9` as a process comes by itself.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::armed::{Target, parse};
    use super::*;

    #[test]
    fn targets_are_numbers_or_names_within_a_class() {
        assert_eq!(parse("17"), Some(Target::Number(Class::Journal, 17)));
        assert_eq!(parse("file:3"), Some(Target::Number(Class::File, 3)));
        assert_eq!(
            parse("journal:begin start controller-0"),
            Some(Target::Name(Class::Journal, "begin start controller-0".into()))
        );
        assert_eq!(parse("effect:2"), Some(Target::Number(Class::Effect, 2)));
        assert_eq!(parse("file:a:b"), Some(Target::Name(Class::File, "a:b".into())));
        assert_eq!(parse(""), None);
    }
}
