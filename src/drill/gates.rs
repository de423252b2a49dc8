//! What a drill expects of its run: bounds of time, the leader's fate, readers, an alarm.
//! `judge` calls it with the figures; `api` has the gates that are about Kubernetes and judges their bounds by the same [`Limit`].
//! It is pure. Where this computer was too slow to tell a slow cluster from a slow host, the answer is unknown, never green.

use super::act::Claim;
use super::api;
use super::bound::{Bound, Timing};
use super::catalogue::{LeaderFate, Where};
use super::clock::{At, human};
use super::history::{Member, Session};
use super::invariants::{Check, examples};
use super::judge::{Figures, acks, end, observed, old_leader, silence};
use super::record::Record;
use super::windows::{Gap, covered, leaderships, longest_awake};
use crate::event::Verdict;
use std::time::Duration;

/// Gates that are a length of time and nothing else: who misses one was late, and not wrong.
pub const TIMED: [&str; 6] = ["write-gap", "new-leader", "membership", "first-write", "api-gap", "takeover"];

/// A bound as it holds in one run.
pub struct Limit {
    text: String,
    /// With the latency that counts: a tenth of an election at most, so that a slow cluster does not widen its own gates.
    counted: Duration,
    /// With the latency that writes really had before the fault.
    measured: Duration,
    p99: Duration,
}

/// What is said of a figure between the two.
pub const TOO_SLOW: &str = "this host is too slow to tell";

impl Limit {
    pub fn of(bound: &Bound, record: &Record) -> Limit {
        let timing = &record.environment.timing;
        let p99 = record.baseline.p99;
        let really = timing.latency_ms.max(u64::try_from(p99.as_millis()).unwrap_or(u64::MAX));
        Limit {
            text: bound.to_string(),
            counted: bound.of(timing),
            measured: bound.of(&Timing { latency_ms: really, ..timing.clone() }),
            p99,
        }
    }

    /// Whether a length keeps it. One that is too long, and would not be with the latency that was there before the fault, may be the
    /// host's as well as the cluster's.
    pub fn judge(&self, seen: Duration) -> (Verdict, String) {
        if seen <= self.counted {
            (Verdict::Pass, human(seen))
        } else if seen > self.measured {
            (Verdict::Fail, human(seen))
        } else {
            let (measured, p99) = (human(self.measured), human(self.p99));
            (
                Verdict::Unknown,
                format!("{}; with writes that took {p99} before the fault up to {measured}: {TOO_SLOW}", human(seen)),
            )
        }
    }

    /// The demand in words.
    pub fn expected(&self) -> Option<String> {
        Some(format!("≤ {} ({})", human(self.counted), self.text))
    }
}

/// The drill's own expectations.
pub fn gates(record: &Record, figures: &Figures, silence: Duration) -> Vec<Check> {
    let expect = &record.drill.expect;
    let marks = record.marks;
    let mut checks: Vec<Check> =
        expect.write_gap.iter().map(|bound| write_gap(record, figures.longest_write_gap, bound)).collect();
    let mut within = |id: &str, title: &str, bound: &Option<Bound>, seen: Option<Duration>| {
        let Some(bound) = bound else { return };
        let limit = Limit::of(bound, record);
        let (verdict, shown) = seen.map_or_else(|| (Verdict::Fail, "never".to_owned()), |seen| limit.judge(seen));
        checks.push(Check { expected: limit.expected(), ..Check::new(id, title, verdict, shown) });
    };
    let us = Duration::from_micros;
    within("new-leader", "time to a new leader", &expect.new_leader, figures.time_to_new_leader_us.map(us));
    within(
        "membership",
        "time to full membership after the heal",
        &expect.full_membership,
        figures.time_to_full_membership_us.map(us),
    );
    let first =
        record.acked_writes().iter().find(|op| op.ret > marks.heal && op.inv > marks.injected).map(|op| op.ret.since(marks.heal));
    within("first-write", "time to the first write after the heal", &expect.first_write, first);
    checks.extend(api::gates(record));
    if let Some(most) = expect.failed_writes {
        let seen = figures.client_failures;
        let verdict = if seen <= most as usize { Verdict::Pass } else { Verdict::Fail };
        let check = Check::new("failed-writes", "failed writes of the fail-over client", verdict, seen);
        checks.push(Check { expected: Some(format!("≤ {most}")), ..check });
    }
    if let Some(fate) = expect.leader {
        checks.push(leader_fate(record, fate, silence));
    }
    if let Some(scope) = expect.serial_reads {
        checks.push(serial_reads(record, scope));
    }
    if let Some(alarm) = &expect.alarm {
        let (raised, seen) = observed(record, &Claim::Alarm { name: alarm.clone() });
        let verdict = if raised { Verdict::Pass } else { Verdict::Fail };
        checks.push(Check { expected: Some(alarm.clone()), ..Check::new("alarm", "the alarm is raised", verdict, seen) });
    }
    checks
}

/// A gap that is too long fails, but for the time in which the observer itself stood still: where the rest is within the bound,
/// nobody can say whose gap it was.
fn write_gap(record: &Record, gap: Gap, bound: &Bound) -> Check {
    let limit = Limit::of(bound, record);
    let awake = longest_awake(&acks(record), record.marks.inject, end(record), &record.stalls);
    let (verdict, seen) = match (limit.judge(gap.length()), limit.judge(awake).0) {
        ((Verdict::Fail, seen), still) if still != Verdict::Fail => {
            let stood = human(covered(gap, &record.stalls));
            (Verdict::Unknown, format!("{seen}, of which the observer itself stood still for {stood}"))
        }
        (judged, _) => judged,
    };
    let check = Check::new("write-gap", "longest time without an acknowledged write", verdict, seen);
    Check { expected: limit.expected(), ..check }
}

fn leader_fate(record: &Record, fate: LeaderFate, silence: Duration) -> Check {
    let marks = record.marks;
    let old = old_leader(record);
    let led = leaderships(&record.samples, silence);
    let another = |to: At| {
        let differs = |led: &super::windows::Leadership| old.is_none_or(|old| led.leader().is_after(&old));
        led.iter().find(|l| l.to > marks.inject && l.from < to && differs(l))
    };
    let shown = |led: Option<&super::windows::Leadership>| match led {
        Some(led) => format!("{} in term {} at {}", record.member_name(led.member), led.term, led.from),
        None => "no other leader".to_owned(),
    };
    let (title, expected, verdict, seen) = match fate {
        LeaderFate::Changes => {
            let found = another(marks.heal.plus(silence));
            let verdict = if found.is_some() { Verdict::Pass } else { Verdict::Fail };
            ("the leader changes before the heal", "another leader", verdict, shown(found))
        }
        LeaderFate::Stays => {
            let found = another(marks.end);
            let (verdict, seen) = match (old, found) {
                (None, _) => (Verdict::Unknown, "who led before the fault was not seen".to_owned()),
                (Some(_), None) => (Verdict::Pass, shown(found)),
                (Some(_), Some(_)) => (Verdict::Fail, shown(found)),
            };
            ("the leader stays", "same leader, same term", verdict, seen)
        }
        LeaderFate::Lost => {
            // What each member said last before the heal; those that said nothing lately cannot lead.
            let late = marks.heal.minus(silence);
            let leads = |sample: &&super::record::Sample| {
                sample.at > late && sample.at <= marks.heal && sample.status.as_ref().is_some_and(|s| s.leader.0 != 0)
            };
            let found = record.samples.iter().find(leads);
            let asked = record.samples.iter().filter(|sample| sample.at > late && sample.at <= marks.heal).count();
            let (verdict, seen) = match found {
                Some(s) => (Verdict::Fail, format!("{} followed a leader at {}", record.member_name(s.member), s.at)),
                None if asked == 0 => (Verdict::Unknown, "nobody was asked".to_owned()),
                None => (Verdict::Pass, "nobody leads".to_owned()),
            };
            ("nobody leads before the heal", "no leader", verdict, seen)
        }
    };
    Check { expected: Some(expected.to_owned()), ..Check::new("leader", title, verdict, seen) }
}

/// Serializable reads that were begun and due while the fault was in force, by the members that are to answer them.
fn serial_reads(record: &Record, scope: Where) -> Check {
    let title = "serializable reads are answered, from the past";
    let marks = record.marks;
    let hit = record.target_members();
    let members: Vec<Member> =
        (0..record.members.len()).filter(|member| scope == Where::Everywhere || !hit.contains(member)).collect();
    // A connection that the fault broke is made anew within an election timeout.
    let settling = record.environment.timing.election().max(silence(record));
    let from = marks.injected.plus(settling);
    let mut poor = Vec::new();
    let (mut answered, mut tried) = (0, 0);
    for member in &members {
        let own = record.ops.iter().filter(|op| op.session == Session::Serial(*member) && op.inv >= from && op.inv < marks.heal);
        let (mut of_member, mut all) = (0usize, 0usize);
        for op in own {
            all += 1;
            of_member += usize::from(op.acked() && op.ret < marks.heal.plus(settling));
        }
        // One that the heal itself disturbed is no sign of a member that does not answer.
        if of_member * 10 < all * 9 || all == 0 {
            poor.push(format!("{} answered {of_member} of {all}", record.member_name(*member)));
        }
        (answered, tried) = (answered + of_member, tried + all);
    }
    let check = match (members.is_empty() || tried == 0, poor.is_empty()) {
        (true, _) => Check::new("serial-reads", title, Verdict::Unknown, "none was tried"),
        (false, false) => Check::new("serial-reads", title, Verdict::Fail, examples(&poor)),
        (false, true) => Check::new("serial-reads", title, Verdict::Pass, format!("{answered} of {tried}")),
    };
    Check { expected: Some("9 of 10 by each member".to_owned()), ..check }
}

#[cfg(test)]
mod tests {
    use super::super::judge::{Result, judge};
    use super::super::sample::leader_kill;
    use super::*;

    /// The good run has a gap of 1.25 s; a bound in elections and latencies, with the 99th percentile of its writes before the fault.
    fn gated(bound: &str, p99_ms: u64) -> (Result, Vec<String>) {
        let mut record = leader_kill();
        record.drill.expect.write_gap = bound.parse().ok();
        record.baseline.p99 = Duration::from_millis(p99_ms);
        record.environment.timing.latency_ms = p99_ms.min(100);
        let judgement = judge(&record);
        (judgement.result, judgement.reasons)
    }

    #[test]
    fn a_bound_that_holds_only_for_the_latency_that_does_not_count_is_not_judged() {
        let bound = "0.4 election + 5 latency";
        assert_eq!(gated(bound, 160).0, Result::Fail, "with all of it, 1.20 s are still too short");
        let (result, reasons) = gated(bound, 200);
        assert_eq!(result, Result::Invalid, "{reasons:?}");
        assert!(reasons[0].starts_with("write-gap ") && reasons[0].ends_with(TOO_SLOW), "{reasons:?}");
        assert!(reasons[0].contains("with writes that took 200 ms before the fault up to 1.40 s"), "{reasons:?}");
        assert_eq!(gated(bound, 90).0, Result::Fail, "all of its latency counts: it is the cluster's");
        assert_eq!(gated("1 election", 400).0, Result::Fail, "no bound without latency is stretched");
        assert_eq!(gated("3 election + 10 latency", 400).0, Result::Pass);
    }
}
