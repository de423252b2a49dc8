//! A node's clock: read against this computer's, and put right.
//! `up` sets it before the first unit starts, because a machine takes its time from a clock that counts whole seconds, some
//! of them before it could look; `verify` reads it. Neither chooses a limit here: that is the judge's.

use super::{Cmd, Guest, GuestError, run_ok};
use crate::spec::NodeName;
use jiff::Timestamp;
use std::time::Duration;

/// This computer's clock, passed in.
pub type Clock<'a> = &'a (dyn Fn() -> Timestamp + Send + Sync);

/// Prints the node's clock: seconds and nanoseconds since the epoch.
pub const DATE: &str = "date +%s.%N";

/// A clock this near, in seconds, is right: the way there and back takes longer.
pub const RIGHT_S: f64 = 0.05;
/// Trips shorter than this, in seconds, are believed and not repeated.
pub const SHORT_TRIP_S: f64 = 0.25;

/// A guest's clock against the host's, in seconds: positive when the guest is ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClockSeen {
    pub ahead_s: f64,
    /// Half the round trip: the truth is within `ahead_s ± uncertain_s`.
    pub uncertain_s: f64,
}

/// Reads a node's clock, again when the trip was long; the shortest of at most three trips counts.
/// The inner error is an answer that is no time.
pub async fn read(
    guest: &dyn Guest,
    node: &NodeName,
    clock: Clock<'_>,
    deadline: Duration,
) -> Result<Result<ClockSeen, String>, GuestError> {
    let mut best: Result<ClockSeen, String> = Err("it was not read".to_owned());
    for _ in 0..3 {
        let before = clock();
        let cmd = Cmd { limit: 4096, ..Cmd::new(DATE, deadline) };
        let output = match guest.run(node, cmd).await {
            Ok(output) => output,
            Err(_) if best.is_ok() => break,
            Err(error) => return Err(error),
        };
        let seen = compare(before, &output.stdout_text(), clock());
        let better = match (&best, &seen) {
            (Ok(best), Ok(seen)) => seen.uncertain_s < best.uncertain_s,
            (Ok(_), Err(_)) => false,
            (Err(_), _) => true,
        };
        if better {
            best = seen;
        }
        if best.as_ref().is_ok_and(|best| best.uncertain_s < SHORT_TRIP_S) {
            break;
        }
    }
    Ok(best)
}

/// Moves a node's clock by so many seconds, relative to itself: the way there takes as long as it likes.
pub async fn shift(guest: &dyn Guest, node: &NodeName, by_s: f64, deadline: Duration) -> Result<(), GuestError> {
    run_ok(guest, node, Cmd::new(shift_line(by_s), deadline)).await.map(|_| ())
}

/// Python is there because cloud-init is written in it; `date` could only set a time that has passed by then.
pub fn shift_line(by_s: f64) -> String {
    format!("python3 -S -c 'import time as t; c = t.CLOCK_REALTIME; t.clock_settime(c, t.clock_gettime(c) + ({by_s:.6}))'")
}

/// A guest's time, read between two looks at the host's clock.
pub fn compare(before: Timestamp, said: &str, after: Timestamp) -> Result<ClockSeen, String> {
    let wrong = || format!("date said {:?}", said.trim().chars().take(120).collect::<String>());
    let (seconds, nanos) = said.trim().split_once('.').ok_or_else(wrong)?;
    let digits = |nanos: &&str| nanos.len() == 9 && nanos.bytes().all(|byte| byte.is_ascii_digit());
    // Whatever fits 64 bits of seconds leaves room for its nanoseconds in 128: a node may say any number.
    let seconds: i128 = seconds.parse::<i64>().map_err(|_| wrong())?.into();
    let nanos: i128 = Some(nanos).filter(digits).and_then(|nanos| nanos.parse().ok()).ok_or_else(wrong)?;
    let guest = seconds * 1_000_000_000 + nanos;
    let (before, after) = (before.as_nanosecond(), after.as_nanosecond());
    #[expect(clippy::cast_precision_loss, reason = "a difference of two clocks, shown with milliseconds")]
    let seconds = |nanos: i128| nanos as f64 / 1e9;
    Ok(ClockSeen { ahead_s: seconds(2 * guest - before - after) / 2.0, uncertain_s: seconds(after - before).max(0.0) / 2.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_compared_with_half_the_round_trip_as_uncertainty() {
        let at = |ms: i64| Timestamp::from_millisecond(1_795_386_804_000 + ms).expect("a time");
        let seen = compare(at(0), "1795386804.700000000\n", at(400)).expect("a time");
        assert!((seen.ahead_s - 0.5).abs() < 1e-6 && (seen.uncertain_s - 0.2).abs() < 1e-6, "{seen:?}");
        let seen = compare(at(0), "1795386803.000000000", at(0)).expect("a time");
        assert!((seen.ahead_s + 1.0).abs() < 1e-6, "{seen:?}");
        let (least, most) = (format!("{}.000000000", i64::MIN), format!("{}.999999999", i64::MAX));
        for far in [least, most] {
            let seen = compare(at(0), &far, at(400)).expect("a time, however far");
            assert!(seen.ahead_s.abs() > 9.2e18, "{seen:?}");
        }
        let beyond = format!("{}.000000000", i128::MAX);
        for bad in [
            "",
            "1795386804",
            "1795386804.7",
            "x.000000000",
            "1795386804.00000000x",
            "1795386804.-00000001",
            &beyond,
            "-bash: date: command not found",
        ] {
            assert!(compare(at(0), bad, at(0)).is_err(), "{bad:?}");
        }
    }

    /// The line is real Python, and adds what it is told to.
    #[test]
    fn a_shift_is_a_line_of_python() {
        let line = shift_line(-0.25);
        assert!(line.contains("+ (-0.250000))"), "{line}");
        let dry = line.replace("t.clock_settime(c, ", "print(");
        let output = std::process::Command::new("sh").args(["-c", &dry]).output().expect("sh");
        let printed: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
        assert!(printed > 1.0e9, "{printed}");
    }
}
