//! Bounds as formulas of the timers in force: `3 election + 10 latency`, `200ms + 5 latency`.
//! The catalogue and `--gate` write them, judges evaluate them against the `Timing` of the run.
//! It knows no drill: only units, coefficients and a parser that says what it would accept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The timers in force in a cluster, and how fast it was before the fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// etcd's heartbeat interval, ms.
    pub heartbeat_ms: u64,
    /// etcd's election timeout, ms.
    pub election_ms: u64,
    /// Lease of controller-manager and scheduler, ms.
    pub lease_ms: u64,
    /// How often a standby tries for the lease, ms.
    pub retry_ms: u64,
    /// keepalived's advertisement interval, ms.
    pub vip_ms: u64,
    /// Node monitor grace period of the controller-manager, ms.
    pub grace_ms: u64,
    /// How long a machine may take from power-on to etcd answering, ms.
    pub boot_ms: u64,
    /// 99th percentile of acknowledged writes before the fault, ms, from 1 to a tenth of the election timeout.
    pub latency_ms: u64,
}

impl Timing {
    /// etcd's and Kubernetes' defaults, as native machines run them.
    pub fn native() -> Timing {
        Timing {
            heartbeat_ms: 100,
            election_ms: 1000,
            lease_ms: 15_000,
            retry_ms: 2000,
            vip_ms: 1000,
            grace_ms: 50_000,
            boot_ms: 120_000,
            latency_ms: 10,
        }
    }
    pub fn election(&self) -> Duration {
        Duration::from_millis(self.election_ms)
    }
    fn unit(&self, unit: Unit) -> f64 {
        let ms = match unit {
            Unit::Millisecond => 1,
            Unit::Second => 1000,
            Unit::Heartbeat => self.heartbeat_ms,
            Unit::Election => self.election_ms,
            Unit::Lease => self.lease_ms,
            Unit::Retry => self.retry_ms,
            Unit::Vip => self.vip_ms,
            Unit::Grace => self.grace_ms,
            Unit::Boot => self.boot_ms,
            Unit::Latency => self.latency_ms,
        };
        ms as f64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Millisecond,
    Second,
    Heartbeat,
    Election,
    Lease,
    Retry,
    Vip,
    Grace,
    Boot,
    Latency,
}

const UNITS: [(&str, Unit); 10] = [
    ("ms", Unit::Millisecond),
    ("s", Unit::Second),
    ("heartbeat", Unit::Heartbeat),
    ("election", Unit::Election),
    ("lease", Unit::Lease),
    ("retry", Unit::Retry),
    ("vip", Unit::Vip),
    ("grace", Unit::Grace),
    ("boot", Unit::Boot),
    ("latency", Unit::Latency),
];

/// A length of time as a sum of multiples of timers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bound(Vec<(f64, Unit)>);

impl Bound {
    pub fn of(&self, timing: &Timing) -> Duration {
        let ms: f64 = self.0.iter().map(|(n, unit)| n * timing.unit(*unit)).sum();
        Duration::from_secs_f64(ms.clamp(0.0, 1e12) / 1e3)
    }
    pub fn seconds(seconds: f64) -> Bound {
        Bound(vec![(seconds, Unit::Second)])
    }
}

impl FromStr for Bound {
    type Err = String;
    fn from_str(text: &str) -> Result<Bound, String> {
        let terms: Result<Vec<_>, String> = text.split('+').map(term).collect();
        terms.map(Bound)
    }
}

fn term(text: &str) -> Result<(f64, Unit), String> {
    let wrong = || {
        let units: Vec<&str> = UNITS.iter().map(|(name, _)| *name).collect();
        format!(
            "{:?} is not a length of time; accepted: a number and a unit, summed with '+' (for example \"3 election + 200ms\"); units: {}",
            text.trim(),
            units.join(", ")
        )
    };
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().trim_start_matches(['*', '×']).trim();
    // "election" alone means one of them.
    let number: f64 = if number.is_empty() { 1.0 } else { number.parse().map_err(|_| wrong())? };
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    Ok((number, *unit))
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (number, unit)) in self.0.iter().enumerate() {
            let name = UNITS.iter().find(|(_, u)| u == unit).map_or("?", |(name, _)| name);
            let plus = if i == 0 { "" } else { " + " };
            write!(f, "{plus}{number} {name}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Bound {
    type Error = String;
    fn try_from(text: String) -> Result<Bound, String> {
        text.parse()
    }
}

impl From<Bound> for String {
    fn from(bound: Bound) -> String {
        bound.to_string()
    }
}

impl JsonSchema for Bound {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bound".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A length of time as a sum of multiples of timers in force, for example \"3 election + 200 ms\". \
                            Units: ms, s, heartbeat, election, lease, retry, vip, grace, boot, latency (p99 of writes before the fault, at most 0.1 election).",
            "pattern": r"^\s*[0-9.]*\s*[*×]?\s*(ms|s|heartbeat|election|lease|retry|vip|grace|boot|latency)(\s*\+\s*[0-9.]*\s*[*×]?\s*(ms|s|heartbeat|election|lease|retry|vip|grace|boot|latency))*\s*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_follow_the_timers() {
        let bound: Bound = "3 election + 10 latency".parse().expect("parses");
        let native = Timing::native();
        let emulated = Timing { election_ms: 5000, latency_ms: 1700, ..native.clone() };
        assert_eq!(bound.of(&native), Duration::from_millis(3100));
        assert_eq!(bound.of(&emulated), Duration::from_millis(32_000));
    }

    #[test]
    fn spellings_and_refusals() {
        for good in ["200ms", "0.2 s", "election", "2×lease", "1.5*election+ 3 retry"] {
            let bound: Bound = good.parse().expect(good);
            let again: Bound = bound.to_string().parse().expect("round trip");
            assert_eq!(bound, again, "{good}");
        }
        for bad in ["", "3", "three s", "3 fortnights", "1 s +", "-1 s", "1..2 s"] {
            let error = bad.parse::<Bound>().expect_err(bad);
            assert!(error.contains("accepted:"), "{error}");
        }
    }
}
