//! The largest cluster there can be, spoken to over and over: one connection a node, and what a command needs is given back.
//! Server and client are processes of their own, so that only ours is looked at.

use super::*;
use crate::store::crash;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const ROUNDS: usize = 200;
/// Seven controllers and fifty workers.
const NODES: usize = 57;
const DIR: &str = "KTCW_TEST_DIR";

/// Where the server is, and whom it lets in.
#[derive(Serialize, Deserialize)]
struct Door {
    addr: SocketAddr,
    host_key: String,
    client_key: String,
}

/// Ends with the test.
struct Serving(std::process::Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn door(dir: &Path) -> PathBuf {
    dir.join("door.json")
}

#[test]
fn the_largest_cluster_needs_a_connection_a_node_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let _serving = Serving(crash::child("guest::ssh::tests::many::child_serves", &[(DIR, &dir.path())]));
    let begin = std::time::Instant::now();
    while !door(dir.path()).exists() {
        assert!(begin.elapsed() < Duration::from_secs(30), "nobody serves");
        std::thread::sleep(Duration::from_millis(20));
    }
    print!("{}", crash::passes("guest::ssh::tests::many::child_speaks_to_all", &[(DIR, &dir.path())]));
}

fn dir() -> PathBuf {
    PathBuf::from(std::env::var_os(DIR).expect("set by the parent"))
}

/// Until it is killed.
#[tokio::test]
#[ignore = "only as a child of the test above"]
async fn child_serves() {
    let server = Server::start().await;
    let (addr, host_key, client_key) = (server.addr, server.host_key.clone(), server.client_key.expose().to_owned());
    let text = serde_json::to_string(&Door { addr, host_key, client_key }).expect("JSON");
    crate::store::files::write_atomic(&door(&dir()), text.as_bytes(), 0o600).expect("written");
    tokio::time::sleep(Duration::from_secs(600)).await;
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// Open files, tasks and KiB resident, once what the last command needed has had the time to end.
async fn held() -> (usize, usize, usize) {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut last = tasks();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = tasks();
        if std::mem::replace(&mut last, now) == now {
            break;
        }
    }
    (open_files(), last, resident_kib())
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_speaks_to_all() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let text = std::fs::read_to_string(door(&dir())).expect("read");
        let Door { addr, host_key, client_key } = serde_json::from_str(&text).expect("JSON");
        let nodes: Vec<NodeName> = (0..7).map(NodeName::controller).chain((0..50).map(NodeName::worker)).collect();
        assert_eq!(nodes.len(), NODES);
        let targets = nodes.iter().map(|node| Target { node: node.clone(), addr, host_key: host_key.clone() }).collect();
        let guests = SshGuests::with_timing(targets, "root", &Secret::new(client_key), Timing::default()).expect("keys");
        let empty = held().await;
        let round = async || {
            let told = join_all(nodes.iter().map(|node| guests.run(node, cmd("echo hi")))).await;
            assert!(told.into_iter().all(|output| output.expect("ran").stdout_text() == "hi"));
        };
        // Allocators take their time until they have what they need.
        for _ in 0..40 {
            round().await;
        }
        let before = held().await;
        for _ in 0..ROUNDS {
            round().await;
        }
        let after = held().await;
        println!(
            "{ROUNDS} commands on each of {NODES} nodes: {} → {} open files ({} without nodes), {} → {} tasks, {} → {} KiB resident",
            before.0, after.0, empty.0, before.1, after.1, before.2, after.2
        );
        assert!(before.0 <= empty.0 + NODES, "{} files for {NODES} nodes: one connection each", before.0 - empty.0);
        assert!(before.1 <= empty.1 + 3 * NODES, "{} tasks for {NODES} nodes", before.1 - empty.1);
        assert_eq!((after.0, after.1), (before.0, before.1), "open files, tasks");
        assert!(after.2 < before.2 + (4 << 10), "{} KiB more", after.2.saturating_sub(before.2));
    });
}
