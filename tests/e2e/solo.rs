//! The path of every user without KVM: emulation, the image's own kernel, staged starts.

use crate::rig::{Remove, Rig, step};

#[test]
fn a_small_cluster_comes_up_under_emulation_with_the_images_own_kernel() {
    let rig = Rig::emulated("solo-tcg");
    let _guard = Remove(&rig);
    let up = rig.up(&["--etcd", "1", "--workers", "0", "--timings"]).exits(0);
    step(&up.out);
    step(&format!("up took {:.1} s", up.took.as_secs_f64()));
    let plan = rig.plan();
    assert_eq!(plan["resolved"]["accel"]["type"], "tcg");
    assert!(plan["resolved"]["kernel"].is_null(), "the image's own kernel");
    assert_eq!(plan["timers"]["staged"], true);
    let verify = rig.run(&["verify", "--format", "json"]).exits(0);
    step(&format!("verify under TCG took {:.1} s", verify.took.as_secs_f64()));
    step("a drill whose target is not there is refused");
    rig.run(&["drill", "run", "leader-kill"]).exits(2).says("nothing was injected").says("needs 3 etcd members");
    rig.run(&["drill", "run", "kubelet-stop"]).exits(2).says("nothing was injected").says("needs 1 worker");
    rig.run(&["down", "--yes"]).exits(0);
}
