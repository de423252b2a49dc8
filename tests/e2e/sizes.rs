//! Other sizes: `make e2e-full`.

use crate::rig::{Remove, Rig, eventually, step, virsh};
use std::time::Duration;

/// Brings it up and verifies it.
fn comes_up(rig: &Rig, flags: &[&str]) {
    let up = rig.up(flags).exits(0);
    step(&format!("{flags:?}: up took {:.1} s", up.took.as_secs_f64()));
    // `up` has ended with all green; eight machines on two cores may have a slow moment after that.
    eventually("verify is green", Duration::from_secs(180), || rig.not_passing().0 == 0);
}

#[test]
fn five_controllers_and_three_workers_the_third_later() {
    let rig = Rig::native("ha5");
    let _guard = Remove(&rig);
    let size = ["--etcd", "5", "--controller-mem", "1152", "--workers"];
    comes_up(&rig, &[&size[..], &["2"]].concat());
    let boots = |rig: &Rig| ["controller-0", "worker-1"].map(|node| rig.on(node, "cat /proc/sys/kernel/random/boot_id"));
    let before = boots(&rig);
    comes_up(&rig, &[&size[..], &["3"]].concat());
    assert_eq!(boots(&rig), before, "a worker more, and nothing else was touched");
    let nodes = rig.run(&["kubectl", "get", "nodes", "-o", "name"]).exits(0).out;
    assert_eq!(nodes.lines().count(), 3, "{nodes}");
    rig.up(&[&size[..], &["2"]].concat()).exits(2).says("worker-2 would be removed");
    rig.run(&["down", "--yes"]).exits(0);
}

#[test]
fn one_control_plane_on_three_etcd_members_isolated_and_interrupted() {
    let rig = Rig::native("cp1");
    let _guard = Remove(&rig);
    let size = ["--etcd", "3", "--control-planes", "1", "--workers", "1", "--isolated"];
    step("killed as the first machine answers, and again as etcd is started");
    let up: Vec<&str> = [&["up"], &size[..], &rig.accel().iter().map(String::as_str).collect::<Vec<_>>()].concat();
    rig.killed_at(&up, "✓ ssh ");
    rig.killed_at(&up, "✓ etcd ");
    comes_up(&rig, &size);
    let xml = virsh(&["net-dumpxml", "ktcw-cp1"]).exits(0).out;
    assert!(!xml.contains("<forward"), "{xml}");
    rig.run(&["down", "--yes"]).exits(0);
}
