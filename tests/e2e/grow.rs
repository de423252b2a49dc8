//! A cluster that grows and shrinks while it runs: workers, members one after the other, new certificates under a writer.
//!
//! What is `pub` works on any running cluster of enough nodes and leaves it as it was, so that it can ride on another test's.

use crate::rig::{Remove, Rig, eventually, libvirt_names, step};
use crate::writer::{all_kept, written_while};
use std::collections::BTreeMap;
use std::time::Duration;

/// Boot ids of the nodes: who has been restarted has another.
fn boots(rig: &Rig, nodes: &[String]) -> BTreeMap<String, String> {
    nodes.iter().map(|node| (node.clone(), rig.on(node, "cat /proc/sys/kernel/random/boot_id"))).collect()
}

fn nodes(rig: &Rig) -> Vec<String> {
    let plan = rig.plan();
    let all = plan["nodes"].as_array().expect("nodes").iter();
    all.map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
}

/// Names below the cluster's directory that speak of a node.
fn traces(rig: &Rig, node: &str) -> Vec<String> {
    let of = |dir: &str| std::fs::read_dir(rig.dir().join(dir)).expect("a directory");
    let names = ["pki", "ssh"].iter().flat_map(|dir| of(dir)).map(|entry| entry.expect("an entry").file_name());
    let mut found: Vec<String> =
        names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.contains(node)).collect();
    found.extend(libvirt_names().into_iter().filter(|name| name.contains(&format!("{}-{node}", rig.cluster))));
    found
}

/// One more worker than `workers`, and that one gone again; nobody else is restarted.
pub fn a_worker_comes_and_goes(rig: &Rig, workers: u8) {
    let name = format!("worker-{workers}");
    let others = nodes(rig);
    let before = boots(rig, &others);
    let added = rig.run(&["node", "add"]).exits(0).says("cluster");
    step(&format!("{name} added and verified in {:.1} s", added.took.as_secs_f64()));
    rig.run(&["kubectl", "get", "node", &name]).exits(0).says("Ready");
    let asked = format!("{workers}");
    let mut words = vec!["--workers", &asked];
    rig.up(&words).exits(2).says(&format!("{name} would be removed")).says(&format!("ktcw-vm node remove {name}"));
    words.clear();
    let removed = rig.run(&["node", "remove", &name, "--yes"]).exits(0);
    step(&format!("{name} drained, removed, the rest verified in {:.1} s", removed.took.as_secs_f64()));
    let known = rig.run(&["kubectl", "get", "nodes", "-o", "name"]).exits(0).out;
    assert!(!known.contains(&name), "{known}");
    assert_eq!(traces(rig, &name), Vec::<String>::new());
    assert_eq!(nodes(rig), others);
    assert_eq!(boots(rig, &others), before, "nobody else was touched");
    rig.up(&[]).exits(0).says("nothing to do");
}

/// Serial numbers as `certs list` says them.
fn serials(rig: &Rig) -> BTreeMap<String, String> {
    let rows = rig.run(&["certs", "list", "--format", "json"]).exits(0).json();
    let rows = rows.as_array().expect("rows").iter();
    rows.map(|row| (row["id"].as_str().expect("id").to_owned(), row["serial"].as_str().expect("serial").to_owned())).collect()
}

/// What was acknowledged while `work` ran, written through etcd as fast as the program starts.
fn under_a_writer(rig: &Rig, prefix: &str, work: impl FnOnce()) {
    let ((), acknowledged) = written_while(rig, prefix, 0, work);
    all_kept(rig, prefix, &acknowledged);
}

pub fn certificates_are_renewed_under_a_writer(rig: &Rig) {
    let before = serials(rig);
    let others = nodes(rig);
    let machines = boots(rig, &others);
    rig.run(&["certs", "renew", "--within", "30"]).exits(0).says("nothing to do");
    under_a_writer(rig, "renewed-", || {
        let renewed = rig.run(&["certs", "renew"]).exits(0);
        step(&format!("certificates renewed, in use and verified in {:.1} s", renewed.took.as_secs_f64()));
    });
    let after = serials(rig);
    for (id, serial) in &before {
        let authority = id.ends_with("-ca");
        assert_eq!(after.get(id) == Some(serial), authority, "{id}: leaves are new, authorities are not");
    }
    rig.run(&["certs", "check"]).exits(0);
    rig.run(&["kubectl", "get", "--raw", "/readyz"]).exits(0);
    assert_eq!(boots(rig, &others), machines, "no machine was restarted");
    let ran = rig.run(&["doctor", "--running", "--format", "json"]);
    let lines = ran.json();
    let failed = lines.as_array().expect("lines").iter().filter(|line| line["state"] == "fail").count();
    assert_eq!((ran.code, failed), (0, 0), "{lines}");
}

/// `make e2e-full`: workers, certificates, members.
mod full {
    use super::*;

    #[test]
    fn a_worker_comes_and_goes_and_certificates_are_renewed() {
        let before = libvirt_names();
        let rig = Rig::native("grow");
        let _guard = Remove(&rig);
        let up = rig.up(&["--etcd", "1", "--workers", "1"]).exits(0);
        step(&format!("up took {:.1} s", up.took.as_secs_f64()));
        a_worker_comes_and_goes(&rig, 1);
        rig.run(&["snapshot", "list"]).exits(0).says("no snapshots");
        made_anew_it_has_no_part(&rig);
        certificates_are_renewed_under_a_writer(&rig);
        step("the last of a kind stays");
        rig.run(&["node", "remove", "controller-0", "--yes"]).exits(2).says("the only etcd member");
        rig.run(&["node", "remove", "worker-7", "--yes"]).exits(2).says("no node worker-7; it has controller-0, worker-0");
        rig.run(&["down", "--yes"]).exits(0);
        assert_eq!(libvirt_names(), before);
    }

    /// A worker that was removed and added again is planned as before and has none of the memory of before: that is said while
    /// nothing is touched, and the cluster goes on.
    fn made_anew_it_has_no_part(rig: &Rig) {
        step("a machine that was made anew has no part in a snapshot of before");
        rig.run(&["node", "add"]).exits(0);
        rig.run(&["snapshot", "save", "before"]).exits(0);
        rig.run(&["node", "remove", "worker-1", "--yes"]).exits(0).says("1 snapshot stops fitting").says("before");
        rig.run(&["snapshot", "restore", "before"]).exits(69).says("worker-1 is not in the cluster any more");
        rig.run(&["node", "add"]).exits(0);
        rig.run(&["snapshot", "restore", "before"]).exits(69).says("worker-1 has no part in it").says("everything as it was");
        rig.run(&["snapshot", "list", "-o", "json"]).exits(0).says("worker-1 has no part in it");
        rig.run(&["snapshot", "delete", "before"]).exits(0);
        step("a removal that is killed is over when it is typed again");
        rig.killed_at(&["node", "remove", "worker-1", "--yes"], "✓ drain worker-1");
        rig.run(&["node", "remove", "worker-1", "--yes"]).exits(0);
        assert_eq!(traces(rig, "worker-1"), Vec::<String>::new());
        rig.verifies();
    }

    fn members(rig: &Rig) -> Vec<String> {
        let list = rig.run(&["etcdctl", "member", "list"]).exits(0).out;
        assert!(!list.contains(", true"), "no learner is left: {list}");
        let mut names: Vec<String> = list.lines().filter_map(|line| line.split(", ").nth(2)).map(str::to_owned).collect();
        names.sort();
        names
    }

    fn controllers(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("controller-{i}")).collect()
    }

    fn leader(rig: &Rig) -> String {
        let status = rig.run(&["status", "--format", "json"]).exits(0).json();
        let all = status["nodes"].as_array().expect("nodes").iter();
        let leads = all.filter(|node| node["etcd"]["leader"] == true || node["etcd"]["role"] == "leader");
        leads.map(|node| node["name"].as_str().expect("a name").to_owned()).next().unwrap_or_else(|| panic!("{status}"))
    }

    /// 3 → 4 → 5 under a writer, then back to 3, the leader going first; what would lose the quorum is refused.
    #[test]
    fn etcd_grows_to_five_and_shrinks_again() {
        let before = libvirt_names();
        let rig = Rig::native("members");
        let _guard = Remove(&rig);
        let size = ["--workers", "0", "--controller-mem", "1152"];
        rig.up(&[&["--etcd", "3"], &size[..]].concat()).exits(0);
        let machines = boots(&rig, &controllers(3));
        under_a_writer(&rig, "grown-", || {
            let four = rig.run(&["node", "add", "--role", "etcd"]).exits(0);
            step(&format!("the fourth member joined, all verified in {:.1} s", four.took.as_secs_f64()));
            assert_eq!(members(&rig), controllers(4));
            let five = rig.up(&["--etcd", "5"]).exits(0);
            step(&format!("the fifth, by up --etcd 5, in {:.1} s", five.took.as_secs_f64()));
        });
        assert_eq!(members(&rig), controllers(5));
        assert_eq!(boots(&rig, &controllers(3)), machines, "no machine was restarted");
        rig.up(&[]).exits(0).says("nothing to do");
        step("all cut off and back");
        rig.run(&["stop"]).exits(0);
        rig.run(&["start"]).exits(0);
        eventually("all is well", Duration::from_secs(120), || rig.not_passing().0 == 0);
        under_a_writer(&rig, "shrunk-", || {
            for _ in 0..2 {
                let leader = leader(&rig);
                let gone = rig.run(&["node", "remove", &leader, "--yes"]).exits(0);
                step(&format!("{leader}, which led, removed, the rest verified in {:.1} s", gone.took.as_secs_f64()));
                assert_eq!(traces(&rig, &leader), Vec::<String>::new());
            }
        });
        assert_eq!(members(&rig).len(), 3);
        let left = nodes(&rig);
        rig.run(&["stop", "--node", &left[1]]).exits(0);
        rig.run(&["node", "remove", &left[2], "--yes"]).exits(1).says("their quorum is 2");
        rig.run(&["start", "--node", &left[1]]).exits(0);
        rig.run(&["down", "--yes"]).exits(0);
        assert_eq!(libvirt_names(), before);
    }

    /// A lab that began with one member becomes one that bears a failure.
    #[test]
    fn one_member_becomes_three() {
        let rig = Rig::native("single");
        let _guard = Remove(&rig);
        rig.up(&["--etcd", "1", "--workers", "0", "--controller-mem", "1152"]).exits(0);
        under_a_writer(&rig, "single-", || {
            let three = rig.up(&["--etcd", "3"]).exits(0);
            step(&format!("one became three, all verified in {:.1} s", three.took.as_secs_f64()));
        });
        assert_eq!(members(&rig), controllers(3));
        rig.run(&["down", "--yes"]).exits(0);
    }
}
