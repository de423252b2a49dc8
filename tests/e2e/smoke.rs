//! One machine that boots: the smallest whole path, for `make test`.

use crate::rig::{Remove, Rig, libvirt_names, mode, step};

#[test]
fn one_controller_comes_up_is_verified_and_leaves_nothing() {
    let before = libvirt_names();
    let rig = Rig::native("smoke");
    let _guard = Remove(&rig);
    step(&format!("up --etcd 1 --workers 0 ({})", mode()));
    let up = rig.up(&["--etcd", "1", "--workers", "0", "--timings"]).exits(0);
    step(&up.out);
    step(&format!("up took {:.1} s", up.took.as_secs_f64()));
    rig.verifies();
    rig.run(&["down", "--yes"]).exits(0);
    let after: Vec<String> = libvirt_names().into_iter().filter(|name| name != "pool ktcw.images").collect();
    assert_eq!(after, before);
    assert!(!rig.dir().exists());
}
