use super::*;
use crate::spec::{RawSpec, validate};
use crate::store::crash;
use std::path::PathBuf;

/// How many begin at once, and how often.
const RACERS: usize = 8;
const ROUNDS: usize = 12;

fn eventually(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed().as_secs() < 100, "waited in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Eight processes at the same moment, again and again: each time one has the new cluster, and every other one is told which.
#[test]
fn of_many_that_begin_a_cluster_at_once_one_has_it_and_the_others_name_it() {
    // Not in memory: a flush of the parent directory takes its time, as it does where clusters are kept.
    let place = tempfile::tempdir().expect("a directory");
    let child = "cli::up::tests::child_begins_clusters";
    let children: Vec<_> = (0..RACERS).map(|_| crash::child(child, &[("KTCW_TEST_DIR", &place.path())])).collect();
    let pids: Vec<String> = children.iter().map(|child| child.id().to_string()).collect();
    for round in 0..ROUNDS {
        let said = |pid: &String| std::fs::read_to_string(place.path().join(format!("{round}-{pid}"))).unwrap_or_default();
        let at = |what: &str| place.path().join(format!("{round}-{what}"));
        eventually("everybody is ready", || pids.iter().all(|pid| at(&format!("ready-{pid}")).exists()));
        std::fs::write(at("go"), "").expect("written");
        eventually("everybody has tried", || pids.iter().all(|pid| said(pid).ends_with('\n')));
        let all: Vec<String> = pids.iter().map(said).collect();
        let has: Vec<&String> = pids.iter().zip(&all).filter(|(_, said)| *said == "has it\n").map(|(pid, _)| pid).collect();
        let [has] = has.as_slice() else { panic!("round {round}: {} have it: {all:?}", has.len()) };
        let names_it =
            |said: &&String| said.starts_with(&format!("{} ", exit::BUSY)) && said.contains(&format!("in use by process {has} "));
        assert_eq!(all.iter().filter(names_it).count(), RACERS - 1, "round {round}: {all:?}");
        std::fs::write(at("over"), "").expect("written");
    }
    for mut child in children {
        assert!(child.wait().expect("ended").success());
    }
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_begins_clusters() {
    let place = PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"));
    let pid = std::process::id();
    for round in 0..ROUNDS {
        let at = |what: &str| place.join(format!("{round}-{what}"));
        let spec = validate(&RawSpec { cluster: Some(format!("c{round}")), ..RawSpec::default() }).expect("valid");
        std::fs::write(at(&format!("ready-{pid}")), "").expect("written");
        // No pause: they are to begin within microseconds.
        while !at("go").exists() {
            std::hint::spin_loop();
        }
        let begun = begun(&place.join("clusters"), &spec);
        let said = match &begun {
            Ok(_) => "has it\n".to_owned(),
            Err(error) => format!("{} {}\n", error.code, error.message),
        };
        std::fs::write(at(&pid.to_string()), said).expect("written");
        eventually("the round is over", || at("over").exists());
        drop(begun);
    }
}
