//! Every refusal before anything is made, with its numbers and its way out, against a fake host.

use super::*;
use crate::host::Host;
use crate::host::fake::FakeHost;
use crate::plan::samples;
use crate::spec::ClusterName;
use uuid::Uuid;

const PLENTY: Option<u64> = Some(1 << 20);

/// Network, pools and machines, without their disks.
fn define(host: &FakeHost, plan: &Plan, mark: &Mark) {
    host.ensure_network(&plan.network, mark).expect("made");
    host.ensure_pools(&plan.storage, mark).expect("made");
    for node in &plan.nodes {
        host.ensure_domain(&node.domain, &plan.storage, &node.name, mark).expect("made");
    }
}

fn sample(etcd: u64, workers: u64) -> Plan {
    samples::plan("ktcw", etcd, workers, samples::kvm())
}

fn mark(instance: u128, state_dir: &str) -> Mark {
    let cluster = ClusterName::parse("ktcw").expect("name");
    Mark { cluster, instance: Uuid::from_u128(instance), state_dir: state_dir.to_owned() }
}

fn facts(host: &FakeHost, free_memory_mib: u64) -> HostFacts {
    HostFacts { free_memory_mib, memory_mib: 8192, ..host.facts().expect("facts") }
}

fn about(refusals: &[Refusal]) -> Vec<&str> {
    refusals.iter().map(|refusal| refusal.about).collect()
}

#[test]
fn a_roomy_host_with_nothing_on_it_takes_the_cluster() {
    let host = FakeHost::new();
    let seen = host.observe().expect("observed");
    assert_eq!(judge(&sample(3, 2), &facts(&host, 6368), &seen, None, 700, PLENTY), []);
}

#[test]
fn a_libvirt_of_another_computer_is_refused_because_its_machines_are_behind_it() {
    let host = FakeHost::new();
    let seen = host.observe().expect("observed");
    let asked = |uri: &str| {
        let facts = HostFacts { uri: uri.to_owned(), ..facts(&host, 6368) };
        judge(&sample(3, 2), &facts, &seen, None, 700, PLENTY)
    };
    let refusals = asked("qemu+ssh://lab/system");
    assert_eq!(about(&refusals), ["libvirt"]);
    assert!(refusals[0].to_string().contains("run ktcw-vm on that computer"), "{refusals:?}");
    assert_eq!(asked("qemu:///session"), []);
}

#[test]
fn one_mebibyte_of_memory_too_few_is_refused_with_the_numbers() {
    let (host, plan) = (FakeHost::new(), sample(3, 2));
    let refusals = judge(&plan, &facts(&host, 6367), &host.observe().expect("observed"), None, 0, PLENTY);
    assert_eq!(about(&refusals), ["memory"]);
    let text = refusals[0].to_string();
    assert!(text.contains("5 machines to start need 6368 MiB, the host has 6367 MiB free of 8192"), "{text}");
    assert!(text.contains("--workers") && text.contains("--worker-mem"), "{text}");
}

#[test]
fn machines_that_run_already_are_not_counted_again_and_those_that_are_off_are() {
    let (host, plan, mark) = (FakeHost::new(), sample(3, 2), mark(1, "/state/ktcw"));
    define(&host, &plan, &mark);
    for node in &plan.nodes {
        host.set_state(&node.domain.name, DomainState::Running).expect("there");
    }
    let judged = |free| judge(&plan, &facts(&host, free), &host.observe().expect("observed"), Some(&mark), 0, PLENTY);
    assert_eq!(judged(0), []);
    host.set_state("ktcw-worker-1", DomainState::ShutOff).expect("there");
    let refusals = judged(1119);
    assert!(refusals[0].message.starts_with("1 machines to start need 1120 MiB"), "{refusals:?}");
    let strangers = judge(&plan, &facts(&host, 6367), &host.observe().expect("observed"), None, 0, PLENTY);
    assert!(strangers[0].message.starts_with("5 machines to start"), "others' machines of our names are no help: {strangers:?}");
    assert_eq!(judged(1120), []);
}

#[test]
fn a_disk_too_small_is_refused_with_what_takes_how_much() {
    let (host, plan) = (FakeHost::new(), sample(3, 2));
    // Overlays grow by 1024 each, etcd disks count whole, seeds 1, the reserve 1024.
    let machines = 5 * 1024 + 3 * 2048 + 5;
    let judged = |free| judge(&plan, &facts(&host, 8192), &host.observe().expect("observed"), None, 700, free);
    let refusals = judged(Some(700 + machines + 1024 - 1));
    assert_eq!(about(&refusals), ["disk"]);
    let text = refusals[0].to_string();
    assert!(
        text.contains(&format!("up to {} MiB (image 700, machines {machines}, reserve 1024)", 700 + machines + 1024)),
        "{text}"
    );
    assert!(text.contains("MiB free") && text.contains("image prune") && text.contains("--etcd-disk"), "{text}");
    assert_eq!(judged(Some(700 + machines + 1024)), []);
    assert_eq!(judged(None), [], "nobody knows: libvirt will say");
}

#[test]
fn a_golden_snapshot_that_may_have_no_room_is_a_word_and_no_refusal() {
    let (host, plan) = (FakeHost::new(), sample(3, 2));
    let seen = host.observe().expect("observed");
    let disks = 700 + 5 * 1024 + 3 * 2048 + 5 + 1024;
    let (memory, growth) = (3 * 1280 + 2 * 1024, 5 * 192);
    let said = |free| golden(&plan, &seen, None, 700, Some(free));
    assert_eq!(said(disks + memory + growth), None);
    let text = said(disks + memory + growth - 1).expect("too little");
    let all = disks + memory + growth;
    assert!(text.contains(&format!("may take {all} MiB (memory {memory}, writes after it {growth}), {} MiB are free", all - 1)));
    assert!(said(disks).is_some());
    assert_eq!(said(disks - 1), None, "the disks themselves have no room: that is said by the refusal");
    assert_eq!(golden(&plan, &seen, None, 700, None), None, "nobody knows");
}

#[test]
fn what_is_on_the_disk_already_is_not_counted_again() {
    let (host, plan, mark) = (FakeHost::new(), sample(1, 0), mark(1, "/state/ktcw"));
    host.ensure_pools(&plan.storage, &mark).expect("made");
    let storage = &plan.storage;
    let file = std::path::Path::new("Cargo.toml");
    host.ensure_image_volume(storage, &storage.base_volume, crate::host::VolumeFormat::Qcow2, file, &mut |_, _| ())
        .expect("made");
    for disk in &plan.nodes[0].domain.disks {
        host.ensure_blank(storage, &disk.volume, 1, &mark).expect("made");
    }
    let mut seen = host.observe().expect("observed");
    let judged = |seen: &HostSeen| judge(&plan, &facts(&host, 8192), seen, Some(&mark), 700, None);
    seen.pools.iter_mut().for_each(|pool| pool.available = Some(0));
    assert_eq!(judged(&seen), [], "nothing is to be made, so nothing has to be free");
    // What is missing counts, and what is kept free beside it. The pool's own figure counts before any other.
    seen.pools.iter_mut().for_each(|pool| pool.volumes.retain(|volume| volume.name != plan.nodes[0].domain.disks[0].volume));
    seen.pools.iter_mut().for_each(|pool| pool.available = Some(2048 << 20));
    assert_eq!(judged(&seen), []);
    seen.pools.iter_mut().for_each(|pool| pool.available = Some((2048 << 20) - 1));
    assert!(judged(&seen)[0].message.contains("(image 0, machines 1024, reserve 1024), the pool has 2047 MiB free"));
}

/// Pools are not started with the host, and one that is not active does not show its volumes.
#[test]
fn disks_that_a_reboot_hides_are_not_counted_as_new() {
    let (host, plan, mark) = (FakeHost::new(), sample(3, 1), mark(1, "/state/ktcw"));
    define(&host, &plan, &mark);
    host.reboot();
    let seen = host.observe().expect("observed");
    let judged = |plan: &Plan, mark: Option<&Mark>, seen: &HostSeen| judge(plan, &facts(&host, 16384), seen, mark, 700, Some(1));
    assert_eq!(judged(&plan, Some(&mark), &seen), []);
    let grown = judged(&sample(3, 2), Some(&mark), &seen);
    assert!(
        grown[0].message.contains("(image 0, machines 1025, reserve 1024)"),
        "a node that comes has disks to come: {grown:?}"
    );
    assert_eq!(about(&judged(&plan, None, &seen))[0], "disk", "others' machines have others' disks");
    // One that shows what it has is believed, whatever is defined.
    let mut empty = seen.clone();
    empty.pools.iter_mut().for_each(|pool| pool.active = true);
    assert!(judged(&plan, Some(&mark), &empty)[0].message.contains("(image 700, machines 10244, reserve 1024)"));
    // Defined is a machine after its disks: those of one that never was have nothing in them yet.
    let begun = HostSeen { domains: Vec::new(), ..seen };
    assert_eq!(about(&judged(&plan, Some(&mark), &begun)), ["disk"]);
}

#[test]
fn a_cluster_of_that_name_in_another_state_directory_is_named_with_it() {
    let (host, plan, theirs) = (FakeHost::new(), sample(1, 0), mark(1, "/home/ann/clusters/ktcw"));
    host.ensure_network(&plan.network, &theirs).expect("made");
    host.ensure_pools(&plan.storage, &theirs).expect("made");
    host.ensure_domain(&plan.nodes[0].domain, &plan.storage, &plan.nodes[0].name, &theirs).expect("made");
    let seen = host.observe().expect("observed");
    let judged = |mark: Option<&Mark>| judge(&plan, &facts(&host, 8192), &seen, mark, 0, PLENTY);
    // A new one has no mark yet; one that was made a second time has another.
    for mark in [None, Some(mark(2, "/home/bob/clusters/ktcw"))] {
        let refusals = judged(mark.as_ref());
        assert_eq!(about(&refusals), ["name"; 3]);
        for (refusal, what) in refusals.iter().zip(["machine ktcw-controller-0", "network ktcw-ktcw", "pool ktcw-ktcw"]) {
            assert!(refusal.message.starts_with(what) && refusal.message.contains("/home/ann/clusters/ktcw"), "{refusal}");
            assert!(refusal.hint.contains("--state-dir") && refusal.hint.contains("-c ktcw-2"), "{refusal}");
        }
    }
    assert_eq!(judged(Some(&mark(1, "/moved"))), [], "a directory that was moved is still the owner");
}

#[test]
fn what_a_stranger_has_under_our_names_or_ids_is_refused_and_said_to_stay() {
    let (host, plan) = (FakeHost::new(), sample(1, 0));
    host.add_foreign_domain("ktcw-controller-0", Uuid::from_u128(99));
    host.add_foreign_domain("renamed", plan.nodes[0].uuid);
    host.add_foreign_domain("ktcw-controller-9", Uuid::from_u128(98));
    host.add_foreign_network("ktcw-ktcw", Uuid::from_u128(97), "10.9.9.0/24".parse().expect("net"));
    host.add_foreign_pool("ktcw-ktcw", Uuid::from_u128(96));
    host.add_foreign_pool("ktcw.images", Uuid::from_u128(95));
    let refusals = judge(&plan, &facts(&host, 8192), &host.observe().expect("observed"), None, 0, PLENTY);
    let firsts: Vec<&str> = refusals.iter().map(|refusal| refusal.message.split(" exists").next().expect("words")).collect();
    assert_eq!(
        firsts,
        ["machine ktcw-controller-0", "machine renamed", "network ktcw-ktcw", "pool ktcw-ktcw", "pool ktcw.images"]
    );
    assert!(refusals.iter().all(|refusal| refusal.hint.contains("will not be touched")), "{refusals:?}");
}

#[test]
fn a_range_that_another_network_uses_is_refused_by_its_name() {
    let (host, plan) = (FakeHost::new(), sample(1, 0));
    host.add_foreign_network("beside", Uuid::from_u128(1), "192.168.78.0/24".parse().expect("net"));
    host.add_foreign_network("around", Uuid::from_u128(2), "192.168.64.0/18".parse().expect("net"));
    host.add_foreign_network("within", Uuid::from_u128(3), "192.168.77.128/25".parse().expect("net"));
    let refusals = judge(&plan, &facts(&host, 8192), &host.observe().expect("observed"), None, 0, PLENTY);
    let said: Vec<&str> = refusals.iter().map(|refusal| refusal.message.as_str()).collect();
    let expected = ["around", "within"].map(|name| format!("192.168.77.0/24 is used by libvirt network {name}"));
    assert_eq!(said, expected);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let (host, plan) = (FakeHost::new(), sample(7, 50));
    host.add_foreign_domain("ktcw-worker-49", Uuid::from_u128(99));
    host.add_foreign_network("around", Uuid::from_u128(2), "192.168.64.0/18".parse().expect("net"));
    let refusals = judge(&plan, &facts(&host, 1), &host.observe().expect("observed"), None, 700, Some(1));
    assert_eq!(about(&refusals), ["memory", "disk", "name", "subnet"]);
}

#[test]
fn emulation_is_refused_where_qemu_cannot_be_trusted_with_it_and_kvm_is_not() {
    let said = || Some("QEMU 7.2.0 emulates x86 wrongly".to_owned());
    let refusal = judge_accel(&Accel::Tcg, said()).expect("refused");
    assert!(refusal.message.contains("7.2.0") && refusal.hint.contains("8.2"), "{refusal}");
    assert_eq!(judge_accel(&samples::kvm(), said()), None);
    assert_eq!(judge_accel(&Accel::Tcg, None), None);
}
