//! Other sizes and accelerations: `make e2e-full`.

use crate::rig::{Remove, Rig, step};

fn comes_up(rig: &Rig, flags: &[&str]) {
    let _guard = Remove(rig);
    let up = rig.up(&[flags, &["--timings"]].concat()).exits(0);
    step(&up.out);
    step(&format!("{flags:?}: up took {:.1} s", up.took.as_secs_f64()));
    rig.verifies();
    rig.run(&["down", "--yes"]).exits(0);
}

#[test]
fn five_controllers_and_three_workers() {
    comes_up(&Rig::native("ha5"), &["--etcd", "5", "--workers", "3", "--controller-mem", "1152"]);
}

#[test]
fn one_control_plane_on_three_etcd_members() {
    comes_up(&Rig::native("cp1"), &["--etcd", "3", "--control-planes", "1", "--workers", "1"]);
}

#[test]
fn three_and_two_under_emulation_start_one_after_the_other() {
    comes_up(&Rig::emulated("ha3-tcg"), &["--etcd", "3", "--workers", "2"]);
}
