//! The one clock of a run: microseconds since its start, read from the host's monotonic clock and no other.
//! Load, telemetry and the phases stamp with it; judges and reports subtract its values.
//! It deliberately knows no wall clock: guests' clocks are suspects, and the host's may be set during a drill.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, Instant};

/// A moment of a run: microseconds after its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct At(pub u64);

impl At {
    pub const ZERO: At = At(0);
    /// From a duration after the start.
    pub fn after(duration: Duration) -> At {
        At(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
    /// Seconds after the start.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }
    /// Time from `earlier` to this moment; zero when it is not earlier.
    pub fn since(self, earlier: At) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
    pub fn plus(self, duration: Duration) -> At {
        At(self.0.saturating_add(At::after(duration).0))
    }
    pub fn minus(self, duration: Duration) -> At {
        At(self.0.saturating_sub(At::after(duration).0))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.seconds())
    }
}

/// Starts at its making; copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }
    pub fn now(&self) -> At {
        At::after(self.0.elapsed())
    }
}

/// Lets time pass: the pace of a load, the length of a fault. Not for waiting until something is so; that is `wait::until`.
#[expect(clippy::disallowed_methods, reason = "a drill's faults and loads have lengths of their own")]
pub async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A duration as people read it: `12 ms`, `1.24 s`, `2 min 05 s`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 60.0 {
        format!("{seconds:.2} s")
    } else {
        let whole = duration.as_secs();
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let shown = |ms| human(Duration::from_millis(ms));
        assert_eq!([shown(0), shown(12), shown(1240), shown(125_000)], ["0 ms", "12 ms", "1.24 s", "2 min 05 s"]);
    }

    #[test]
    fn subtraction_does_not_wrap() {
        assert_eq!(At(5).since(At(9)), Duration::ZERO);
        assert_eq!(At(5).minus(Duration::from_secs(1)), At::ZERO);
    }
}
