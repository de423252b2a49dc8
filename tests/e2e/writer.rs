//! Somebody who writes to etcd, as fast as the program starts, while something else is done to the cluster.
//! `lab`, `grow` and `soak` do it; what was acknowledged must be there afterwards, whatever was done.
//! It writes through `ktcw-vm etcdctl`, as a user would, and counts only what ended with 0.

use crate::rig::{Rig, step};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What has been acknowledged: key → value.
pub type Acknowledged = BTreeMap<String, String>;

/// Writes `prefix` with a running number, from `first` on, until `work` is done, and returns what that gave and what was acknowledged.
/// A panic in `work` goes on once the writer has ended.
pub fn written_while<T>(rig: &Rig, prefix: &str, first: usize, work: impl FnOnce() -> T) -> (T, Acknowledged) {
    written_every(rig, prefix, first, Duration::ZERO, work)
}

/// The same with a rest after each write.
pub fn written_every<T>(rig: &Rig, prefix: &str, first: usize, rest: Duration, work: impl FnOnce() -> T) -> (T, Acknowledged) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut acknowledged = Acknowledged::new();
            for n in first..first + 1_000_000 {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let (key, value) = (format!("{prefix}{n}"), n.to_string());
                if rig.run(&["etcdctl", "put", &key, &value, "--command-timeout=2s"]).code == 0 {
                    acknowledged.insert(key, value);
                }
                std::thread::sleep(rest);
            }
            acknowledged
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::SeqCst);
        let acknowledged = writer.join().expect("the writer ends");
        match worked {
            Ok(done) => (done, acknowledged),
            Err(why) => std::panic::resume_unwind(why),
        }
    })
}

/// What etcd has below a prefix.
#[track_caller]
pub fn there(rig: &Rig, prefix: &str) -> Acknowledged {
    let told = rig.run(&["etcdctl", "get", prefix, "--prefix"]).exits(0).out;
    let lines: Vec<&str> = told.lines().collect();
    lines.chunks(2).map(|pair| (pair[0].to_owned(), pair.get(1).copied().unwrap_or_default().to_owned())).collect()
}

/// What was acknowledged and is not there, or not as it was written; empty: nothing is lost.
pub fn lost(acknowledged: &Acknowledged, there: &Acknowledged) -> Vec<String> {
    acknowledged.iter().filter(|(key, value)| there.get(*key) != Some(value)).map(|(key, _)| key.clone()).collect()
}

/// Of what was acknowledged while a snapshot was saved: what is in it, given what is there after its restore. One after the other was
/// written, so it holds all up to its moment. `Err`: written after one that is not in it, and there.
pub fn up_to_a_moment(acknowledged: &Acknowledged, there: &Acknowledged) -> Result<Acknowledged, Vec<String>> {
    let mut in_order: Vec<(&String, &String)> = acknowledged.iter().collect();
    in_order.sort_by_key(|(_, number)| number.parse::<usize>().ok());
    let moment = in_order.iter().position(|(key, _)| !there.contains_key(*key)).unwrap_or(in_order.len());
    let (before, after) = in_order.split_at(moment);
    let strange: Vec<String> = after.iter().filter(|(key, _)| there.contains_key(*key)).map(|(key, _)| (*key).clone()).collect();
    let before = before.iter().map(|(key, number)| ((*key).clone(), (*number).clone())).collect();
    if strange.is_empty() { Ok(before) } else { Err(strange) }
}

/// The writer wrote, and all of it is there.
#[track_caller]
pub fn all_kept(rig: &Rig, prefix: &str, acknowledged: &Acknowledged) {
    assert!(acknowledged.len() > 5, "the writer wrote");
    assert_eq!(lost(acknowledged, &there(rig, prefix)), Vec::<String>::new(), "acknowledged and lost");
    step(&format!("{} writes were acknowledged meanwhile, none is lost", acknowledged.len()));
}

fn of(pairs: &[(&str, &str)]) -> Acknowledged {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn a_snapshot_holds_what_was_written_up_to_its_moment() {
    // In the order of their numbers, not of their names.
    let all = of(&[("a9", "9"), ("a10", "10"), ("a11", "11")]);
    assert_eq!(up_to_a_moment(&all, &of(&[("a9", "9"), ("a10", "10")])), Ok(of(&[("a9", "9"), ("a10", "10")])));
    assert_eq!(up_to_a_moment(&all, &all), Ok(all.clone()));
    assert_eq!(up_to_a_moment(&all, &of(&[("a9", "9"), ("a11", "11")])), Err(vec!["a11".to_owned()]));
}

#[test]
fn what_is_missing_or_different_is_lost() {
    let acknowledged = of(&[("a", "1"), ("b", "2"), ("c", "3")]);
    assert_eq!(lost(&acknowledged, &acknowledged), Vec::<String>::new());
    assert_eq!(lost(&acknowledged, &of(&[("a", "1"), ("b", "1"), ("d", "4")])), ["b", "c"]);
}
