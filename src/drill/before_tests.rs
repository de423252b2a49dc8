//! What is refused before anything is changed: members that are not well in etcd's own words, and machines that never answer.
//! The members are servers of this process that know two questions; the machines note whatever is done to them.

use super::catalogue::find;
use super::fake::{Machines, Said, member, message, nobody, number, options, site};
use super::injector::{FaultLog as _, MemoryLog};
use super::run::{RunError, run};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a member says of itself.
#[derive(Clone, Copy)]
struct Says {
    id: u64,
    leader: u64,
    held: u64,
    /// Number of the kind, as etcd has it; 0: there is none.
    alarm: u64,
}

const WELL: Says = Says { id: 1, leader: 1, held: 20 << 20, alarm: 0 };

/// The answer to a question by its path, as `rpc.proto` numbers what is in it.
fn said(path: &str, says: Says) -> Vec<u8> {
    let header = [number(1, 7), number(2, says.id), number(3, 5), number(4, 2)].concat();
    match path {
        "/etcdserverpb.Maintenance/Status" => {
            [message(1, &header), number(3, says.held), number(4, says.leader), number(5, 9), number(6, 2)].concat()
        }
        "/etcdserverpb.Maintenance/Alarm" if says.alarm == 0 => message(1, &header),
        "/etcdserverpb.Maintenance/Alarm" => {
            [message(1, &header), message(2, &[number(1, says.id), number(2, says.alarm)].concat())].concat()
        }
        other => panic!("{other} is not asked before a drill"),
    }
}

/// One that says so of itself.
async fn one(says: Says) -> SocketAddr {
    member(Arc::new(move |path: &str, _: &[u8]| Said::Answer(said(path, says)))).await
}

/// Why a drill was refused; nothing was done to a machine, and nothing is open in the log.
async fn refused(drill: &str, members: &[SocketAddr]) -> String {
    refused_on(Machines::default(), drill, members).await
}

async fn refused_on(machines: Machines, drill: &str, members: &[SocketAddr]) -> String {
    let log = MemoryLog::default();
    let drill = find(drill).expect("there");
    let error = run(&drill, &site(members), &machines, &log, &options(|_| ())).await.expect_err("refused").to_string();
    assert!(error.starts_with("nothing was injected: "), "{error}");
    assert_eq!(machines.done(), Vec::<String>::new(), "{error}");
    assert!(log.pending().expect("a list").is_empty(), "{error}");
    error
}

#[tokio::test]
async fn a_cluster_with_an_alarm_on_is_not_drilled() {
    for (alarm, name) in [(1, "NOSPACE"), (2, "CORRUPT")] {
        let told = refused("leader-kill", &[one(Says { alarm, ..WELL }).await]).await;
        assert!(told.contains(&format!("the alarm {name} is on (member 0000000000000001)")), "{told}");
    }
    // The alarm it was: without one the look goes on to who could be hit.
    let told = refused("leader-kill", &[one(WELL).await]).await;
    assert!(told.contains("leader-kill needs 3 etcd members, the cluster has 1"), "{told}");
}

/// Nothing of it is a leftover of a drill: no fault was made, and a heal would find nothing.
#[tokio::test]
async fn a_cluster_that_is_not_well_is_not_drilled() {
    for (leaders, why) in [
        ([0, 0, 0], "no etcd member leads"),
        ([1, 2, 1], "2 etcd members say that they lead"),
        ([1, 1, 0], "controller-2 knows no leader"),
        ([1, 1, 9], "members follow 2 leaders"),
    ] {
        let mut members = Vec::new();
        for (id, leader) in (1..).zip(leaders) {
            members.push(one(Says { id, leader, ..WELL }).await);
        }
        let told = refused("leader-kill", &members).await;
        assert!(told.contains(&format!("not fit to be drilled: {why}")), "{told}");
    }
    let members = [one(WELL).await, one(Says { id: 2, ..WELL }).await, nobody().await];
    let told = refused("leader-kill", &members).await;
    assert!(told.contains("not fit to be drilled: controller-2 does not answer"), "{told}");
}

#[tokio::test]
async fn a_store_that_has_grown_is_not_filled_beyond_its_disk() {
    let told = refused("full-quota", &[one(Says { held: 700 << 20, ..WELL }).await]).await;
    assert!(told.contains("full-quota fills 16 MiB into a store of 700 MiB"), "{told}");
}

/// It would lie on no disk but this computer's, and no heal could put it back.
#[tokio::test]
async fn a_store_that_its_disk_could_not_take_back_is_not_taken_away() {
    let machines = Machines::with_room(1850 << 20);
    let told = refused_on(machines, "disaster-restore", &[one(Says { held: 950 << 20, ..WELL }).await]).await;
    assert!(told.contains("disaster-restore: to restore a store of 950 MiB takes 2092 MiB"), "{told}");
    assert!(told.ends_with("accepted: a store of up to 829 MiB"), "{told}");
}

/// A machine without SSH is waited for as long as one may take to boot: that somebody looks is said, and Ctrl-C is heard.
#[tokio::test]
async fn ctrl_c_is_heard_while_machines_do_not_answer() {
    let (machines, log) = (Machines::silent(), MemoryLog::default());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let lines = heard.clone();
    let options = options(move |line| lines.lock().expect("lines").push(line.to_owned()));
    let (drill, site) = (find("leader-kill").expect("there"), site(&[]));
    let interrupter = async {
        while heard.lock().expect("lines").is_empty() {
            tokio::task::yield_now().await;
        }
        options.cancel.cancel();
    };
    let both = async { tokio::join!(run(&drill, &site, &machines, &log, &options), interrupter).0 };
    let ended = tokio::time::timeout(Duration::from_secs(10), both).await.expect("heard in time");
    assert!(matches!(ended, Err(RunError::NotBegun)), "{:?}", ended.map(|_| ()));
    assert_eq!(*heard.lock().expect("lines"), ["looking for what earlier drills have left"]);
    assert_eq!(machines.done(), Vec::<String>::new());
    assert!(log.pending().expect("a list").is_empty());
}
