//! What cannot be: each a clear error, its documented exit code, and nothing made.

use crate::rig::{libvirt_names, program, step, virsh};

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let before = libvirt_names();
    let state = std::env::temp_dir().join(format!("ktcw-bad-{}", std::process::id()));
    let long = "a".repeat(300);
    let state_text = state.display().to_string();
    let ran = |words: &[&str]| program(&[words, &["--state-dir", &state_text]].concat());

    for (words, code, says) in [
        (vec!["up", "--etcd", "2"], 2, "--etcd"),
        (vec!["up", "--etcd", "0"], 2, "accepted: 1, 3, 5 or 7"),
        (vec!["up", "--etcd", "3", "--control-planes", "5"], 2, "--control-planes"),
        (vec!["up", "-c", "a/b"], 2, "--cluster"),
        (vec!["up", "-c", "ünïcode"], 2, "--cluster"),
        (vec!["up", "-c", &long], 2, "--cluster"),
        (vec!["up", "--subnet", "10.96.0.0/24"], 2, "overlaps"),
        (vec!["up", "--kernel", "/nonexistent"], 2, "--kernel"),
        (vec!["up", "--config", "/nonexistent.toml"], 2, "--config"),
        (vec!["up", "--connect", "qemu+unix:///system?socket=/nonexistent"], 69, "cannot be reached"),
        (vec!["up", "--workers", "50", "--worker-mem", "65536"], 69, "memory: "),
        (vec!["up", "--etcd-disk", "64", "--etcd", "7", "--workers", "50", "--worker-mem", "512"], 69, "disk: "),
        (vec!["status", "-c", "nobody"], 2, "no cluster nobody"),
    ] {
        step(&words.join(" ").chars().take(80).collect::<String>());
        ran(&words).exits(code).says(says);
    }

    step("an unknown key in the config file names its line");
    let config = std::env::temp_dir().join(format!("ktcw-bad-{}.toml", std::process::id()));
    std::fs::write(&config, "etcd = 3\nworkerz = 2\n").expect("write");
    ran(&["up", "--config", &config.display().to_string()]).exits(2).says("line 2").says("workerz");
    std::fs::remove_file(&config).expect("remove");

    step("a network that is taken is refused with its holder's name");
    let network = "<network><name>somebody-elses</name><ip address='192.168.55.1' netmask='255.255.255.0'/></network>";
    let path = std::env::temp_dir().join(format!("ktcw-net-{}.xml", std::process::id()));
    std::fs::write(&path, network).expect("write");
    virsh(&["net-define", &path.display().to_string()]).exits(0);
    let taken = ran(&["up", "--subnet", "192.168.55.0/24"]);
    let foreign = virsh(&["net-define", &path.display().to_string()]);
    virsh(&["net-undefine", "somebody-elses"]).exits(0);
    std::fs::remove_file(&path).expect("remove");
    taken.exits(69).says("somebody-elses");
    assert_ne!(foreign.code, 0, "the other network was still there, untouched");

    step("a stranger's machine of our name, and a cluster of that name in another state directory, stay as they are");
    for (name, says, metadata) in [
        ("taken-controller-0", "not of this program", String::new()),
        (
            "shared-controller-0",
            "/home/ann/clusters/shared",
            "<metadata><ktcw:cluster xmlns:ktcw='https://ktcw-vm.invalid/ns/1' name='shared' node='controller-0' \
             instance='00000000-0000-0000-0000-000000000007' state-dir='/home/ann/clusters/shared' plan='0'/></metadata>"
                .to_owned(),
        ),
    ] {
        let path = std::env::temp_dir().join(format!("ktcw-domain-{}.xml", std::process::id()));
        let xml = format!(
            "<domain type='qemu'><name>{name}</name>{metadata}<memory unit='MiB'>64</memory>\
             <os><type arch='x86_64'>hvm</type></os></domain>"
        );
        std::fs::write(&path, xml).expect("write");
        virsh(&["define", &path.display().to_string()]).exits(0);
        let defined = virsh(&["dumpxml", name]).out;
        let cluster = name.trim_end_matches("-controller-0");
        let refused = ran(&["up", "-c", cluster, "--etcd", "1", "--workers", "0"]);
        let after = virsh(&["dumpxml", name]).out;
        virsh(&["undefine", name]).exits(0);
        std::fs::remove_file(&path).expect("remove");
        refused.exits(69).says(name).says(says);
        assert_eq!(after, defined, "{name} was not touched");
    }

    assert!(!state.exists(), "a refusal makes no directory");
    assert_eq!(libvirt_names(), before);
}
