//! What a verdict means for the cluster, and what to type next: one line below a report.
//! `drill run` prints it; a run that passed needs none.
//! It is pure: all of it is in the report, but for the path of the file that the report was saved to.

use super::Report;
use crate::drill::catalogue::find;
use crate::drill::gates::TIMED;
use crate::drill::invariants::Check;
use crate::drill::judge::{Result, SAFETY};
use crate::event::Verdict;

/// `saved`: where the report is. `None`: it passed.
pub fn hint(report: &Report, saved: &str) -> Option<String> {
    match report.judgement.result {
        Result::Pass => None,
        Result::Invalid => Some(invalid(report)),
        Result::Fail => Some(failed(report, saved)),
    }
}

fn failed(report: &Report, saved: &str) -> String {
    let cluster = &report.record.environment.cluster;
    let counted = |check: &&Check| check.verdict == Verdict::Fail && !check.waived;
    let failures: Vec<&Check> = report.judgement.checks.iter().filter(counted).collect();
    if failures.iter().any(|check| SAFETY.contains(&check.id.as_str())) {
        return format!(
            "a promise was broken, which no slow computer explains. All of the run is in {saved}; \
             ktcw-vm support bundle -c {cluster} collects what goes with it"
        );
    }
    let page = format!("ktcw-vm drill report {} -c {cluster} --html", report.record.run);
    let ids: Vec<&str> = failures.iter().map(|check| check.id.as_str()).collect();
    let ids = ids.join(", ");
    match (nothing_lost(report), failures.as_slice()) {
        (Some(kept), [first, ..]) if failures.iter().all(|check| late(check)) => format!(
            "{kept}; the cluster did what it must, but slower than the limit ({ids}){}. {} when this computer is idle, or with \
             --gate {}=TIME for another limit; {page} shows where the time went",
            busy(report),
            again(report),
            first.id
        ),
        (kept, _) => format!(
            "{}the cluster did not come through it as it should ({ids}). ktcw-vm verify -c {cluster} says how it is now, \
             {page} shows the run",
            kept.map(|kept| format!("{kept}, but ")).unwrap_or_default()
        ),
    }
}

/// A length of time was measured, and it was too long. What never came, or was not seen to, is another thing than late.
fn late(check: &Check) -> bool {
    TIMED.contains(&check.id.as_str()) && check.seen.starts_with(|first: char| first.is_ascii_digit())
}

fn invalid(report: &Report) -> String {
    let cluster = &report.record.environment.cluster;
    format!(
        "the run says nothing about the cluster, good or bad{}. {} when this computer is idle and ktcw-vm verify -c {cluster} \
         passes every check",
        busy(report),
        again(report)
    )
}

/// `None`: something was lost, or it could not be found out.
fn nothing_lost(report: &Report) -> Option<String> {
    let figures = &report.judgement.figures;
    match (figures.lost_acknowledged_writes, figures.lost_after_snapshot) {
        (Some(0), 0) => Some("nothing acknowledged was lost".to_owned()),
        (Some(0), _) => Some("nothing was lost that the snapshot had".to_owned()),
        _ => None,
    }
}

/// More to do than processors: the likeliest reason why something took long.
fn busy(report: &Report) -> String {
    let environment = &report.record.environment;
    if environment.host_cpus == 0 || environment.host_load <= environment.host_cpus as f64 {
        return String::new();
    }
    format!("; this computer had a load of {:.1} on {} CPUs", environment.host_load, environment.host_cpus)
}

/// The command that runs it again; a drill of a file is one whose path is not in the record.
fn again(report: &Report) -> String {
    let (drill, cluster) = (&report.record.drill, &report.record.environment.cluster);
    let built_in = find(&drill.name).is_ok_and(|known| known.id == drill.id && known.fault == drill.fault);
    if built_in { format!("ktcw-vm drill run {} -c {cluster}", drill.name) } else { "Run it again".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::record::Record;
    use crate::drill::sample::leader_kill;

    fn hinted(change: impl FnOnce(&mut Record)) -> (Result, Option<String>) {
        let mut record = leader_kill();
        change(&mut record);
        let report = Report::new(record);
        (report.judgement.result, hint(&report, "/state/lab/reports/sample.json"))
    }

    #[test]
    fn a_run_that_passed_needs_no_hint() {
        assert_eq!(hinted(|_| ()), (Result::Pass, None));
    }

    /// What a learner reads as "etcd is broken" and a busy computer is.
    #[test]
    fn what_was_only_late_has_lost_nothing_and_may_be_run_again() {
        let (result, hint) = hinted(|record| {
            record.drill.expect.full_membership = "100ms".parse().ok();
            record.environment.host_load = 9.3;
        });
        let expected = "nothing acknowledged was lost; the cluster did what it must, but slower than the limit (membership); \
                        this computer had a load of 9.3 on 2 CPUs. ktcw-vm drill run leader-kill -c lab when this computer is idle, \
                        or with --gate membership=TIME for another limit; ktcw-vm drill report sample -c lab --html shows where the \
                        time went";
        assert_eq!((result, hint.as_deref()), (Result::Fail, Some(expected)));
        // An idle computer is no reason, and the path of a file is not known.
        let (_, hint) = hinted(|record| {
            record.drill.expect.full_membership = "100ms".parse().ok();
            record.drill.id = String::new();
        });
        let hint = hint.expect("a hint");
        assert!(hint.contains("(membership). Run it again when") && !hint.contains("load"), "{hint}");
    }

    #[test]
    fn a_broken_promise_is_no_question_of_time() {
        let (result, hint) = hinted(|record| {
            record.after.log.remove(20);
            record.environment.host_load = 99.0;
            record.drill.expect.full_membership = "100ms".parse().ok();
        });
        let hint = hint.expect("a hint");
        assert_eq!(result, Result::Fail);
        assert!(hint.starts_with("a promise was broken") && !hint.contains("load of"), "{hint}");
        assert!(hint.contains("/state/lab/reports/sample.json; ktcw-vm support bundle -c lab"), "{hint}");
    }

    #[test]
    fn what_never_came_back_was_not_late() {
        let (result, hint) = hinted(|record| {
            let heal = record.marks.heal;
            let own = record.samples.iter_mut().filter(|sample| sample.member == 0 && sample.sent >= heal);
            own.for_each(|sample| sample.status = None);
        });
        let hint = hint.expect("a hint");
        assert_eq!(result, Result::Fail, "{hint}");
        assert!(hint.contains("did not come through it") && hint.contains("ktcw-vm verify -c lab"), "{hint}");
    }

    #[test]
    fn an_invalid_run_is_told_when_it_would_count() {
        let (result, hint) = hinted(|record| {
            record.looked.clear();
            record.environment.host_load = 4.0;
        });
        let expected = "the run says nothing about the cluster, good or bad; this computer had a load of 4.0 on 2 CPUs. \
                        ktcw-vm drill run leader-kill -c lab when this computer is idle and ktcw-vm verify -c lab passes every check";
        assert_eq!((result, hint.as_deref()), (Result::Invalid, Some(expected)));
    }
}
