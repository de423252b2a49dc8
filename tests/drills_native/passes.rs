//! The catalogue, as far as bare processes can be drilled: every drill must pass, and leave the cluster as it found it.
//! `make test` runs it alone on the machine, because its gates are about time.
//! Of what makes a drill pass it knows nothing.

use crate::cluster::Cluster;
use crate::injector::Native;
use crate::runs::{Steady, drill, drilled, kept, steadily};
use ktcw_vm::drill::catalogue::{Drill, find};
use ktcw_vm::drill::judge::Result as Came;
use std::sync::Arc;

/// All that bare processes can be drilled with in reasonable time; `caught` leaves the fault of each out.
pub const PROCESSES: [&str; 6] = ["leader-kill", "leader-stop", "move-leader", "leader-pause", "follower-kill", "quorum-loss"];
pub const NETWORKS: [&str; 7] =
    ["isolate-leader", "isolate-follower", "bridge", "bridge-followers", "split-all", "deaf-leader", "mute-leader"];
pub const DATA: [&str; 4] = ["full-quota", "replace-member", "disaster-restore", "rolling-restart"];

/// All of these must pass, one after the other on one cluster.
fn all_pass(names: &[&str]) {
    let cluster = Arc::new(Cluster::start(3));
    let native = Native::new(cluster.clone());
    let site = cluster.site();
    let failures: Vec<String> = cluster.block_on(async {
        let mut failures = Vec::new();
        for name in names {
            let Steady { record, judgement, .. } = steadily(&drill(name), &site, &native, &cluster).await;
            if judgement.result != Came::Pass {
                let file = kept().join(format!("{}-{}.json", record.run, record.drill.name));
                let _ = std::fs::write(&file, serde_json::to_vec(&record).expect("json"));
                failures.push(format!(
                    "{name}: {:?}: {} (record in {})",
                    judgement.result,
                    judgement.reasons.join("; "),
                    file.display()
                ));
            }
        }
        failures
    });
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn processes() {
    all_pass(&PROCESSES);
}

#[test]
fn networks() {
    all_pass(&NETWORKS);
}

#[test]
fn data_and_restarts() {
    // Restored again, it is a third cluster, and not once more the second.
    all_pass(&[&DATA[..], &["disaster-restore"]].concat());
}

/// A file of one's own, begun from the catalogue's row as it is printed.
#[test]
fn a_file() {
    let own = Drill { name: "my-handover".to_owned(), id: String::new(), ..find("move-leader").expect("in the catalogue") };
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), toml::to_string(&own).expect("prints")).expect("written");
    let path = file.path().to_str().expect("a path");
    assert_eq!(drill(path).name, "my-handover");
    all_pass(&[path]);
}

/// For whoever writes a drill: the one that KTCW_DRILL names (or the file that it points to), with its record kept.
#[test]
#[ignore = "runs what KTCW_DRILL names"]
fn one() {
    let name = std::env::var("KTCW_DRILL").expect("KTCW_DRILL names a drill");
    let cluster = Arc::new(Cluster::start(3));
    let native = Native::new(cluster.clone());
    cluster.block_on(async {
        let (record, judgement) = drilled(&drill(&name), &cluster.site(), &native, &cluster).await;
        for note in &record.notes {
            eprintln!("{:>9} {}", note.at.to_string(), note.text);
        }
        for check in &judgement.checks {
            eprintln!("{:7} {:13} {} {}", check.verdict, check.id, check.seen, check.expected.as_deref().unwrap_or(""));
        }
        let kept = kept().join(&record.run);
        std::fs::create_dir_all(&kept).expect("a directory");
        std::fs::write(kept.join("record.json"), serde_json::to_vec(&record).expect("json")).expect("written");
        for i in 0..cluster.members.len() {
            std::fs::copy(cluster.log(i), kept.join(format!("log-{i}"))).expect("copied");
        }
        eprintln!("kept in {}", kept.display());
    });
}
