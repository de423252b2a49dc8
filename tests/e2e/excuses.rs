//! When a drill that did not pass says nothing about the program: the host was too busy, or a guest's test kernel crashed in that
//! very run. `drills` and `full` ask before they make a drill again, and what it has shown all the same.
//! It excuses no broken promise, and knows no drill.

use crate::rig::{Rig, mode, virsh};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ktcw_vm::drill::gates::{TIMED, TOO_SLOW};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// Nothing that a host or a guest may suffer breaks these: writes kept, one leader a term, nothing going back, one order, equal
/// stores, equal lists, no panic, no acknowledgement without a majority, whole watches.
const PROMISES: [&str; 9] = ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I9", "I10"];
/// What every run can show, however slow the host: the fault, what it may break, the healed cluster taking writes, nothing left.
const SHOWN: [&str; 11] = ["V1", "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I10", "healed"];
/// And these, where a run was judged by them.
const SHOWN_WHERE_JUDGED: [&str; 2] = ["I9", "I11"];
/// A crash may be seen so much later than it was.
const LATE: Duration = Duration::from_secs(2);

/// Why a run that did not pass is made again, if so: a judgement, or what a series has of it. One that never began has neither.
pub fn excuse(run: &Value, crashed: bool) -> Option<String> {
    let reasons = reasons(run);
    let lost = run["figures"]["lost_acknowledged_writes"].as_u64().is_some_and(|lost| lost > 0);
    // What could not be looked at, be it for a machine that crashed, makes a run invalid; only what was seen to be broken fails it.
    let broken = run["result"] == "fail" && reasons.iter().any(|reason| PROMISES.iter().any(|id| about(reason, id)));
    if lost || broken {
        return None;
    }
    if of_the_host(&reasons) {
        return Some(reasons.join("; "));
    }
    crashed.then(|| "a guest's test kernel crashed".to_owned())
}

/// Why a judgement is what it is; none where there is no judgement.
pub fn reasons(run: &Value) -> Vec<&str> {
    run["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn about(reason: &str, id: &str) -> bool {
    reason.split(' ').next() == Some(id)
}

/// Whether a run is invalid for nothing but its load (V2), or a bound that nobody could judge: the host stood still or was too
/// busy, by the run's own words. A run that failed has other reasons, and that the fault was not shown is never the host's fault.
pub fn of_the_host(reasons: &[&str]) -> bool {
    !reasons.is_empty() && reasons.iter().all(|reason| about(reason, "V2") || reason.ends_with(TOO_SLOW))
}

/// What a judgement lacks for a run that shows everything but its times, a line each: the load's pace (V2) and the drill's own gates
/// may be the host's, and a run that is invalid by the one has nothing said of the rest in its reasons.
pub fn not_shown(judgement: &Value) -> Vec<String> {
    let checks: Vec<&Value> = judgement["checks"].as_array().into_iter().flatten().collect();
    let of = |id: &str| checks.iter().find(|check| check["id"] == *id);
    let lacks = |id: &&str| match of(id) {
        None => SHOWN.contains(id).then(|| format!("{id}: not judged")),
        Some(check) if check["waived"] == true || check["verdict"] == "pass" => None,
        Some(check) => Some(format!("{id} {}: {}", check["verdict"], check["seen"])),
    };
    SHOWN.iter().chain(&SHOWN_WHERE_JUDGED).filter_map(lacks).collect()
}

/// Whether a run failed for nothing but lengths of time: on a host where `up` itself takes half as long again as natively, that is
/// worth another look before it is held against the program.
pub fn only_late(run: &Value) -> bool {
    let reasons = reasons(run);
    run["result"] == "fail" && !reasons.is_empty() && reasons.iter().all(|reason| TIMED.iter().any(|id| about(reason, id)))
}

/// The consoles of a cluster's machines, as long as it has these.
pub struct Consoles(Vec<PathBuf>);

impl Consoles {
    pub fn of(rig: &Rig) -> Consoles {
        // A kernel that users have is never excused.
        if mode() != "kvm-test-kernel" {
            return Consoles(vec![]);
        }
        let prefix = format!("{}-", rig.cluster);
        let listed = virsh(&["list", "--all", "--name"]).exits(0).out;
        let consoles = listed.lines().filter(|domain| domain.starts_with(&prefix)).map(|domain| {
            let xml = virsh(&["dumpxml", domain]).exits(0).out;
            let (_, rest) = xml.split_once("<log file='").expect("a console that is kept");
            PathBuf::from(rest.split_once('\'').expect("quoted").0)
        });
        Consoles(consoles.collect())
    }

    /// How often the test kernel has crashed in them: it runs on a hypervisor that it was made for, and now and then ends in a
    /// page fault.
    pub fn crashes(&self) -> usize {
        let texts = self.0.iter().map(|path| std::fs::read(path).expect("the console's log"));
        texts.map(|text| String::from_utf8_lossy(&text).matches("Kernel panic - not syncing").count()).sum()
    }
}

/// Moments at which machines were seen to have crashed while something ran, and what came of that.
pub fn crashes_during<T: Send>(rig: &Rig, work: impl FnOnce() -> T + Send) -> (T, Vec<Timestamp>) {
    let consoles = Consoles::of(rig);
    let (mut seen, mut at) = (consoles.crashes(), Vec::new());
    let mut look = || {
        let now = consoles.crashes();
        at.extend((seen..now).map(|_| Timestamp::now()));
        seen = seen.max(now);
    };
    let came = std::thread::scope(|scope| {
        let working = scope.spawn(work);
        while !working.is_finished() {
            look();
            std::thread::sleep(LATE / 2);
        }
        look();
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    (came, at)
}

/// Whether one of the crashes befell this run of a series, which lasted until the next of them began.
pub fn crashed_in(run: &Value, later: &[Value], crashes: &[Timestamp]) -> bool {
    let Some(from) = began(run) else { return false };
    let until = later.iter().find_map(began).map_or(Timestamp::MAX, |next| next + LATE);
    crashes.iter().any(|crash| (from..until).contains(crash))
}

/// When a run began, by its name; one that could not be run here has none.
fn began(run: &Value) -> Option<Timestamp> {
    let name = run["run"].as_str()?;
    let moment = name.get(name.len().checked_sub("20260102-030405".len())?..)?;
    let moment = DateTime::strptime("%Y%m%d-%H%M%S", moment).expect("a run's name ends with its moment");
    Some(moment.to_zoned(TimeZone::UTC).expect("a moment").timestamp())
}

#[test]
fn no_crash_excuses_a_broken_promise_nor_the_run_before_or_after() {
    use serde_json::json;
    let run = |result: &str, reasons: &[&str], lost: u64| json!({ "result": result, "reasons": reasons, "figures": { "lost_acknowledged_writes": lost } });
    for id in PROMISES {
        let reason = format!("{id} some title: broken");
        assert_eq!(excuse(&run("fail", &["write-gap longest: 9 s", &reason], 0), true), None, "{id}");
        assert!(excuse(&run("invalid", &[&reason], 0), true).is_some(), "{id} could not be looked at");
        assert_eq!(excuse(&run("invalid", &[&reason], 0), false), None, "{id}");
    }
    assert!(excuse(&run("fail", &["I11 others: etcd on controller-1 was restarted"], 0), true).is_some());
    assert_eq!(excuse(&run("fail", &["I11 others: restarted"], 0), false), None);
    assert_eq!(excuse(&run("fail", &["write-gap longest: 9 s"], 1), true), None, "a lost write");
    assert!(excuse(&run("invalid", &["V2 load: the host is too busy"], 0), false).is_some());
    assert_eq!(excuse(&run("invalid", &["V2 load: busy", "V1 the fault: not shown"], 0), false), None);
    assert!(excuse(&Value::Null, true).is_some(), "it ended before it began");

    let runs = [
        json!({ "run": "bridge-20260102-030405" }),
        json!({ "drill": "kubelet-stop", "not_here": "no workers" }),
        json!({ "run": "leader-kill-20260102-030505" }),
    ];
    let in_each = |moment: &str| {
        let crash: Timestamp = moment.parse().expect("a moment");
        (0..3).map(|i| crashed_in(&runs[i], &runs[i + 1..], &[crash])).collect::<Vec<_>>()
    };
    assert_eq!(in_each("2026-01-02T03:04:04Z"), [false, false, false]);
    assert_eq!(in_each("2026-01-02T03:04:30Z"), [true, false, false]);
    assert_eq!(in_each("2026-01-02T03:05:06Z"), [true, false, true], "seen late, it may have been of either");
    assert_eq!(in_each("2026-01-02T03:09:00Z"), [false, false, true]);
}

#[test]
fn a_slow_host_excuses_times_and_nothing_else() {
    use serde_json::json;
    // As a run on a slow host is judged, but for what a test makes of one check.
    let judged = |id: &str, verdict: Value| {
        let all = ["V1", "V2", "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "healed", "write-gap"];
        let usual = |own: &str| if ["V2", "write-gap"].contains(&own) { "unknown" } else { "pass" };
        let check = |own: &&str| {
            let verdict = if *own == id { verdict.clone() } else { json!(usual(own)) };
            (!verdict.is_null()).then(|| json!({ "id": own, "verdict": verdict, "seen": "so", "waived": false }))
        };
        json!({ "result": "invalid", "checks": all.iter().filter_map(check).collect::<Vec<Value>>() })
    };
    assert_eq!(not_shown(&judged("", Value::Null)), Vec::<String>::new());
    for times in ["V2", "write-gap"] {
        assert_eq!(not_shown(&judged(times, json!("fail"))), Vec::<String>::new(), "{times}");
    }
    for id in SHOWN.iter().chain(&SHOWN_WHERE_JUDGED) {
        for verdict in ["unknown", "fail"] {
            assert_eq!(not_shown(&judged(id, json!(verdict))), [format!("{id} \"{verdict}\": \"so\"")]);
        }
        let absent = not_shown(&judged(id, Value::Null));
        assert_eq!(absent.len(), usize::from(SHOWN.contains(id)), "{absent:?}");
    }
    let mut waived = judged("I10", json!("fail"));
    let at = waived["checks"].as_array().expect("checks").iter().position(|check| check["id"] == "I10").expect("there");
    waived["checks"][at]["waived"] = json!(true);
    assert_eq!(not_shown(&waived), Vec::<String>::new());
    assert_eq!(not_shown(&Value::Null).len(), SHOWN.len(), "it ended before it began");
}
