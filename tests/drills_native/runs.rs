//! One drill run and told in a line; and again, where the host did not let it look.
//! Every test of the suite runs its drills through it.
//! It judges nothing itself.

use crate::cluster::Cluster;
use ktcw_vm::drill::admin::await_healthy;
use ktcw_vm::drill::catalogue::{Drill, find};
use ktcw_vm::drill::clock::human;
use ktcw_vm::drill::etcd::Site;
use ktcw_vm::drill::injector::{FaultLog, Injector, MemoryLog};
use ktcw_vm::drill::judge::{Judgement, Result as Came, judge};
use ktcw_vm::drill::record::Record;
use ktcw_vm::drill::run::{Options, run};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

static RUNS: AtomicU64 = AtomicU64::new(1);
/// A host that stands still says nothing about the engine: so many runs are made again.
const STALLS: usize = 2;
/// What proved nothing for another reason is made again once: a busy host has more ways than one to be in the way.
const DOUBTS: usize = 1;

pub fn drill(name: &str) -> Drill {
    let mut drill = find(name).expect("in the catalogue");
    // Bare processes are fast: a shorter baseline says as much.
    drill.load.baseline = "1.2 s".parse().expect("a bound");
    drill
}

pub fn options(cluster: &Cluster) -> Options {
    let n = RUNS.fetch_add(1, Ordering::Relaxed);
    Options {
        run: format!("run-{}-{n}", std::process::id()),
        seed: n,
        started: jiff::Timestamp::now(),
        directory: cluster.path(""),
        cancel: CancellationToken::new(),
        kube: None,
        progress: Arc::new(|text| {
            if std::env::var_os("KTCW_DRILL").is_some() {
                eprintln!("· {text}");
            }
        }),
    }
}

/// Runs one drill, prints its figures, and returns record and judgement.
pub async fn drilled(drill: &Drill, site: &Site, injector: &dyn Injector, cluster: &Cluster) -> (Record, Judgement) {
    let log = MemoryLog::default();
    await_healthy(site, Duration::from_secs(30)).await.expect("healthy before");
    let record =
        run(drill, site, injector, &log, &options(cluster)).await.unwrap_or_else(|error| panic!("{}: {error}", drill.name));
    assert!(log.pending().expect("a list").is_empty(), "{}: the fault is still recorded", drill.name);
    let judgement = judge(&record);
    eprintln!("{}", line(&record, &judgement));
    (record, judgement)
}

/// A run that proved something, unless the host would not have it.
pub struct Steady {
    pub record: Record,
    pub judgement: Judgement,
    /// Why each run before it was made again.
    pub discarded: Vec<Vec<String>>,
}

/// As `drilled`; an invalid run, which says nothing about the cluster, is made again.
pub async fn steadily(drill: &Drill, site: &Site, injector: &dyn Injector, cluster: &Cluster) -> Steady {
    let (mut stalls, mut doubts) = (0, 0);
    let mut discarded = Vec::new();
    loop {
        let (record, judgement) = drilled(drill, site, injector, cluster).await;
        if judgement.result == Came::Invalid && stalled(&judgement) && stalls < STALLS {
            stalls += 1;
        } else if judgement.result == Came::Invalid && doubts < DOUBTS {
            doubts += 1;
        } else {
            return Steady { record, judgement, discarded };
        }
        discarded.push(judgement.reasons);
    }
}

/// Whether the run itself says that the host stood still, and nothing else.
fn stalled(judgement: &Judgement) -> bool {
    judgement.reasons.iter().all(|reason| reason.contains("stood still"))
}

fn line(record: &Record, judgement: &Judgement) -> String {
    let us = |us: Option<u64>| us.map_or("–".to_owned(), |us| human(Duration::from_micros(us)));
    let figures = &judgement.figures;
    format!(
        "{:18} {:7} {} gap {} (client {}), new leader {}, full after {}, lost {}, {} acked {} failed {} unknown, {} ops, {:.1} s {}",
        record.drill.name,
        format!("{:?}", judgement.result),
        record.chosen.nodes.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("+"),
        human(figures.longest_write_gap.length()),
        human(figures.client_gap.length()),
        us(figures.time_to_new_leader_us),
        us(figures.time_to_full_membership_us),
        figures.lost_acknowledged_writes.map_or("?".to_owned(), |lost| lost.to_string()),
        figures.acked_writes,
        figures.failed_writes,
        figures.unknown_writes,
        record.ops.len(),
        record.marks.end.seconds(),
        judgement.reasons.join(" | "),
    )
}

/// Where figures and pages are kept, beyond the next run: `setup/native.sh` says, else below the target directory.
pub fn kept() -> PathBuf {
    let below = || Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory").join("bench");
    let kept = std::env::var_os("KTCW_DRILL_OUT").map_or_else(below, PathBuf::from);
    std::fs::create_dir_all(&kept).expect("a directory");
    kept
}

/// Of now, to the second, as it may stand in a file's name.
pub fn stamp() -> String {
    jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string()
}
