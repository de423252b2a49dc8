//! The libvirt host against libvirt's own test driver (`test:///default`): in this process, without daemon or root.
//! Everything we define is validated by libvirt's schema, ownership is respected, and twice is once. What the driver
//! cannot do (streams, running machines) is in `libvirt_real.rs`.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]
#![expect(clippy::disallowed_methods, reason = "it waits in its own thread")]

#[path = "fixtures/host_plan.rs"]
mod host_plan;

use host_plan::{network, storage};
use ktcw_vm::host::fake::FakeHost;
use ktcw_vm::host::libvirt::LibvirtHost;
use ktcw_vm::host::{DomainState, Done, Host, HostError, Mark, VolumeFormat};
use ktcw_vm::plan::{Accel, CpuModel, DiskKind, DiskPlan, DomainPlan, NetworkPlan, StoragePlan, identity};
use ktcw_vm::spec::{ClusterName, NodeName};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use uuid::Uuid;
use virt::connect::Connect;
use virt::storage_vol::StorageVol;

/// As `up` calls what it uploads: by digest.
const VOLUMES: [&str; 3] = ["base-0123456789abcdef.qcow2", "kernel-0123456789abcdef", "initrd-0123456789abcdef"];

/// The driver has one state for the whole process, so each test has a cluster of its own name.
struct Lab {
    mark: Mark,
    node: NodeName,
    network: NetworkPlan,
    storage: StoragePlan,
    domain: DomainPlan,
}

fn lab(name: &str, accel: Accel) -> Lab {
    let cluster = ClusterName::parse(name).expect("name");
    let node = NodeName::controller(0);
    let disk = |target: &str, kind: DiskKind, volume: &str| DiskPlan { target: target.into(), volume: volume.into(), kind };
    let third = identity::uuid(&cluster, "subnet").as_bytes()[0];
    Lab {
        mark: Mark {
            cluster: cluster.clone(),
            instance: identity::uuid(&cluster, "instance"),
            state_dir: format!("/state/{name}"),
        },
        network: network(&cluster, [10, 77, third]),
        storage: storage(&cluster, VOLUMES),
        domain: DomainPlan {
            name: format!("{name}-controller-0"),
            uuid: identity::uuid(&cluster, "controller-0"),
            memory_mib: 1024,
            cpus: 1,
            accel,
            cmdline: "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet".into(),
            disks: vec![
                disk("vda", DiskKind::Root { size_gib: 10 }, "controller-0-root.qcow2"),
                disk("vdb", DiskKind::Seed, "controller-0-seed.iso"),
                disk("vdc", DiskKind::Etcd { size_gib: 2 }, "controller-0-etcd.qcow2"),
            ],
            mac: identity::mac(&cluster, &node),
            network: format!("ktcw-{name}"),
        },
        node,
    }
}

fn test_host() -> LibvirtHost {
    LibvirtHost::connect(Some("test:///default"))
        .expect("libvirt's test driver")
        .with_pool_root(Some(PathBuf::from("/pools/ktcw")))
}

/// libvirt itself, beside our back. The driver's state lives as long as a connection is open.
fn libvirt() -> Connect {
    Connect::open(Some("test:///default")).expect("libvirt's test driver")
}

/// What every host must do, the real one and the fake: observe, ensure twice, refuse what is foreign, remove twice.
fn contract(host: &dyn Host, name: &str) {
    let lab = lab(name, Accel::Tcg);
    let (mark, storage, network, domain) = (&lab.mark, &lab.storage, &lab.network, &lab.domain);
    let early = host.ensure_domain(domain, storage, &lab.node, mark).expect_err("no pool yet");
    assert!(matches!(early, HostError::Missing { kind: "storage pool", .. }), "{early}");

    assert_eq!(host.ensure_network(network, mark).expect("network"), Done::Changed);
    assert_eq!(host.ensure_network(network, mark).expect("network"), Done::Unchanged);
    assert_eq!(host.ensure_pools(storage, mark).expect("pools"), Done::Changed);
    assert_eq!(host.ensure_pools(storage, mark).expect("pools"), Done::Unchanged);
    assert_eq!(host.ensure_blank(storage, "controller-0-etcd.qcow2", 2 << 30, mark).expect("blank"), Done::Changed);
    assert_eq!(host.ensure_blank(storage, "controller-0-etcd.qcow2", 2 << 30, mark).expect("blank"), Done::Unchanged);
    let error = host.ensure_blank(storage, "controller-0-etcd.qcow2", 3 << 30, mark).expect_err("another size");
    assert!(matches!(error, HostError::Differs { .. }), "{error}");
    let error = host.ensure_overlay(storage, "controller-0-root.qcow2", "no-such-base", 2 << 30, mark).expect_err("no base");
    assert!(matches!(error, HostError::Missing { kind: "volume", .. }), "{error}");
    assert_eq!(host.ensure_domain(domain, storage, &lab.node, mark).expect("domain"), Done::Changed);
    assert_eq!(host.ensure_domain(domain, storage, &lab.node, mark).expect("domain"), Done::Unchanged);
    let bigger = DomainPlan { memory_mib: 2048, ..domain.clone() };
    assert_eq!(host.ensure_domain(&bigger, storage, &lab.node, mark).expect("domain"), Done::Changed);

    let seen = host.observe().expect("observe");
    let found = seen.domains.iter().find(|found| found.name == domain.name).expect("listed");
    assert_eq!(
        (found.uuid, found.state, found.mark.as_ref(), found.node.as_ref()),
        (domain.uuid, DomainState::ShutOff, Some(mark), Some(&lab.node))
    );
    let found = seen.networks.iter().find(|found| found.name == network.name).expect("listed");
    assert_eq!((found.uuid, found.active, found.mark.as_ref()), (network.uuid, true, Some(mark)));
    assert_eq!((found.bridge.as_deref(), &found.subnets[..]), (Some(network.bridge.as_str()), &[network.subnet][..]));
    let found = seen.pools.iter().find(|found| found.name == storage.pool).expect("listed");
    assert!(found.active && found.available.is_some() && found.mark.as_ref().is_some_and(|found| found.owns(mark)), "{found:?}");
    assert!(
        found.volumes.iter().any(|volume| volume.name == "controller-0-etcd.qcow2" && volume.capacity == 2 << 30),
        "{found:?}"
    );
    assert_eq!(host.resident_bytes(domain).expect("off"), 0);

    // The same cluster name from another state directory: everything is seen, nothing is touched.
    let stranger = Mark { instance: Uuid::from_u128(99), state_dir: "/elsewhere".into(), ..mark.clone() };
    let refusals = [
        ("ensure_network", host.ensure_network(network, &stranger)),
        ("remove_network", host.remove_network(&network.name, &stranger)),
        ("ensure_pools", host.ensure_pools(storage, &stranger)),
        ("remove_pool", host.remove_pool(&storage.pool, &stranger)),
        ("ensure_blank", host.ensure_blank(storage, "x", 1 << 20, &stranger)),
        ("ensure_content", host.ensure_content(storage, "x", b"x", &stranger)),
        ("remove_volume", host.remove_volume(storage, "controller-0-etcd.qcow2", &stranger)),
        ("ensure_domain", host.ensure_domain(domain, storage, &lab.node, &stranger)),
        ("ensure_running", host.ensure_running(domain, &stranger)),
        ("power_off", host.power_off(domain, &stranger)),
        ("shutdown", host.shutdown(domain, &stranger)),
        ("suspend", host.suspend(domain, &stranger)),
        ("resume", host.resume(domain, &stranger)),
        ("ensure_snapshot", host.ensure_snapshot(domain, "one", &stranger)),
        ("revert", host.revert(domain, "one", &stranger)),
        ("remove_snapshot", host.remove_snapshot(domain, "one", &stranger)),
        ("remove_domain", host.remove_domain(&domain.name, domain.uuid, &stranger)),
    ];
    for (call, refusal) in refusals {
        let error = refusal.expect_err(call);
        assert!(matches!(error, HostError::NotOurs { .. }), "{call}: {error}");
    }
    let after = host.observe().expect("observe");
    assert_eq!(
        after.domains.iter().find(|found| found.name == domain.name),
        seen.domains.iter().find(|found| found.name == domain.name)
    );

    assert_eq!(host.remove_volume(storage, "controller-0-etcd.qcow2", mark).expect("volume"), Done::Changed);
    assert_eq!(host.remove_volume(storage, "controller-0-etcd.qcow2", mark).expect("volume"), Done::Unchanged);
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.remove_domain(&domain.name, domain.uuid, mark).expect("domain"), expected);
        assert_eq!(host.remove_network(&network.name, mark).expect("network"), expected);
        assert_eq!(host.remove_pool(&storage.pool, mark).expect("pool"), expected);
    }
    let seen = host.observe().expect("observe");
    assert!(!seen.domains.iter().any(|left| left.name == domain.name));
    assert!(!seen.networks.iter().any(|left| left.name == network.name));
    assert!(!seen.pools.iter().any(|left| left.name == storage.pool));
    let gone = host.power_off(domain, mark).expect_err("gone");
    assert!(matches!(gone, HostError::Missing { kind: "domain", .. }), "{gone}");
}

#[test]
fn libvirt_keeps_the_contract() {
    contract(&test_host(), "contract");
}

#[test]
fn the_fake_keeps_the_same_contract() {
    contract(&FakeHost::new(), "contract");
}

#[test]
fn every_kind_of_machine_and_network_passes_libvirts_schema() {
    let host = test_host();
    let accels = [
        Accel::Tcg,
        Accel::Kvm { cpu: CpuModel::HostPassthrough },
        Accel::Kvm { cpu: CpuModel::HostPassthroughNoArchCapabilities },
        Accel::Kvm { cpu: CpuModel::Nehalem },
    ];
    for (i, accel) in accels.into_iter().enumerate() {
        let mut lab = lab(&format!("kinds-{i}"), accel.clone());
        lab.network.isolated = i % 2 == 1;
        if i == 2 {
            lab.storage.initrd_volume = None;
            lab.domain.disks.truncate(2);
        }
        // Text that any user may type reaches the XML: a directory, kernel arguments.
        lab.mark.state_dir = "/home/o'hara & sons/\"lab\" <1>/%41".into();
        lab.domain.cmdline.push_str(" dyndbg=\"file drivers/* +p\" a<b>&c'd");
        host.ensure_pools(&lab.storage, &lab.mark).expect("pools");
        assert_eq!(host.ensure_network(&lab.network, &lab.mark).expect("network"), Done::Changed);
        let done = host.ensure_domain(&lab.domain, &lab.storage, &lab.node, &lab.mark);
        assert_eq!(done.unwrap_or_else(|error| panic!("{accel:?}: {error}")), Done::Changed);
        let seen = host.observe().expect("observe");
        let found = seen.domains.iter().find(|domain| domain.name == lab.domain.name).expect("defined");
        assert_eq!(found.mark.as_ref(), Some(&lab.mark));
        host.remove_domain(&lab.domain.name, lab.domain.uuid, &lab.mark).expect("removed");
        host.remove_network(&lab.network.name, &lab.mark).expect("removed");
        host.remove_pool(&lab.storage.pool, &lab.mark).expect("removed");
    }
}

#[test]
fn a_foreign_domain_of_our_name_is_refused_and_stays_as_it_was() {
    let (host, conn) = (test_host(), libvirt());
    let lab = lab("foreign-name", Accel::Tcg);
    host.ensure_pools(&lab.storage, &lab.mark).expect("pools");
    let theirs = format!(
        "<domain type='test'><name>{}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>",
        lab.domain.name
    );
    let domain = conn.define_domain_xml(&theirs).expect("defined");
    let before = domain.xml_desc(0).expect("xml");
    for refusal in [
        host.ensure_domain(&lab.domain, &lab.storage, &lab.node, &lab.mark),
        host.ensure_running(&lab.domain, &lab.mark),
        host.remove_domain(&lab.domain.name, lab.domain.uuid, &lab.mark),
        host.remove_domain(&lab.domain.name, domain.uuid().expect("uuid"), &lab.mark),
    ] {
        let error = refusal.expect_err("foreign");
        assert!(matches!(&error, HostError::NotOurs { whose, .. } if whose.contains("no ktcw-vm mark")), "{error}");
    }
    assert_eq!(domain.xml_desc(0).expect("still there"), before);
    domain.undefine().expect("undefined");
}

#[test]
fn a_foreign_domain_of_our_uuid_is_refused_and_stays_as_it_was() {
    let (host, conn) = (test_host(), libvirt());
    let lab = lab("foreign-uuid", Accel::Tcg);
    host.ensure_pools(&lab.storage, &lab.mark).expect("pools");
    let theirs = format!(
        "<domain type='test'><name>somebody-elses</name><uuid>{}</uuid><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>",
        lab.domain.uuid
    );
    let domain = conn.define_domain_xml(&theirs).expect("defined");
    let before = domain.xml_desc(0).expect("xml");
    let error = host.ensure_domain(&lab.domain, &lab.storage, &lab.node, &lab.mark).expect_err("foreign");
    assert!(matches!(&error, HostError::NotOurs { name, .. } if name == "somebody-elses"), "{error}");
    assert_eq!(host.remove_domain(&lab.domain.name, lab.domain.uuid, &lab.mark).expect("nothing of ours"), Done::Unchanged);
    assert_eq!(domain.xml_desc(0).expect("still there"), before);
    domain.undefine().expect("undefined");
}

#[test]
fn foreign_networks_and_pools_are_refused_and_stay_as_they_were() {
    let (host, conn) = (test_host(), libvirt());
    let lab = lab("foreign-net", Accel::Tcg);
    let network = conn
        .define_network_xml(&format!(
            "<network><name>{}</name><bridge name='virbr77'/><ip address='10.99.0.1' prefix='24'/></network>",
            lab.network.name
        ))
        .expect("defined");
    let pool_xml = format!("<pool type='dir'><name>{}</name><target><path>/theirs</path></target></pool>", lab.storage.pool);
    let pool = conn.define_storage_pool_xml(&pool_xml, 0).expect("defined");
    let before = (network.xml_desc(0).expect("xml"), pool.xml_desc(0).expect("xml"));
    for refusal in [
        host.ensure_network(&lab.network, &lab.mark),
        host.remove_network(&lab.network.name, &lab.mark),
        host.ensure_pools(&lab.storage, &lab.mark),
        host.remove_pool(&lab.storage.pool, &lab.mark),
        host.ensure_blank(&lab.storage, "x", 1 << 20, &lab.mark),
    ] {
        let error = refusal.expect_err("foreign");
        assert!(matches!(error, HostError::NotOurs { .. }), "{error}");
    }
    assert_eq!((network.xml_desc(0).expect("xml"), pool.xml_desc(0).expect("xml")), before);
    assert!(!network.is_active().expect("state") && !pool.is_active().expect("state"));
    network.undefine().expect("undefined");
    pool.undefine().expect("undefined");
}

/// libvirt replaces what is defined again under the same name and UUID without a word: only the mark stands between. And what only
/// begins like ours, or has our UUID under its own name, is nobody's to touch either, whatever is asked.
#[test]
fn strangers_with_our_name_and_uuid_together_or_our_prefix_stay_as_they_were() {
    let (host, conn) = (std::sync::Arc::new(test_host()), libvirt());
    let lab = lab("twins", Accel::Tcg);
    let domain_xml = |name: &str, uuid: Uuid| {
        format!(
            "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>"
        )
    };
    let network_xml = |name: &str, uuid: Uuid, third: u8| {
        format!(
            "<network><name>{name}</name><uuid>{uuid}</uuid><bridge name='virbr1{third}'/><ip address='10.98.{third}.1' prefix='24'/></network>"
        )
    };
    let pool_xml = |name: &str, uuid: Uuid| {
        format!("<pool type='dir'><name>{name}</name><uuid>{uuid}</uuid><target><path>/theirs/{name}</path></target></pool>")
    };
    let prefix = Uuid::from_u128(0x7717);
    let domains = [(lab.domain.name.clone(), lab.domain.uuid), ("twins-controller-9".to_owned(), prefix)]
        .map(|(name, uuid)| conn.define_domain_xml(&domain_xml(&name, uuid)).expect("defined"));
    let networks = [(lab.network.name.clone(), lab.network.uuid), ("ktcw-twins-2".to_owned(), prefix)];
    let networks: Vec<_> = (0..)
        .zip(networks)
        .map(|(third, (name, uuid))| conn.define_network_xml(&network_xml(&name, uuid, third)).expect("defined"))
        .collect();
    let pools = [(lab.storage.pool.clone(), lab.storage.pool_uuid), ("ktcw-twins-2".to_owned(), prefix)]
        .map(|(name, uuid)| conn.define_storage_pool_xml(&pool_xml(&name, uuid), 0).expect("defined"));
    let all = || {
        let mut texts: Vec<String> = domains.iter().map(|domain| domain.xml_desc(0).expect("still there")).collect();
        texts.extend(networks.iter().map(|network| network.xml_desc(0).expect("still there")));
        texts.extend(pools.iter().map(|pool| pool.xml_desc(0).expect("still there")));
        texts
    };
    let before = all();
    let (storage, domain, mark) = (&lab.storage, &lab.domain, &lab.mark);
    for (call, refusal) in [
        ("ensure_network", host.ensure_network(&lab.network, mark)),
        ("remove_network", host.remove_network(&lab.network.name, mark)),
        ("ensure_pools", host.ensure_pools(storage, mark)),
        ("remove_pool", host.remove_pool(&storage.pool, mark)),
        ("ensure_blank", host.ensure_blank(storage, "x", 1 << 20, mark)),
        ("ensure_content", host.ensure_content(storage, "x", b"x", mark)),
        ("ensure_domain", host.ensure_domain(domain, storage, &lab.node, mark)),
        ("ensure_running", host.ensure_running(domain, mark)),
        ("suspend", host.suspend(domain, mark)),
        ("resume", host.resume(domain, mark)),
        ("shutdown", host.shutdown(domain, mark)),
        ("power_off", host.power_off(domain, mark)),
        ("remove_domain", host.remove_domain(&domain.name, domain.uuid, mark)),
    ] {
        let error = refusal.expect_err(call);
        assert!(matches!(error, HostError::NotOurs { .. }), "{call}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--cluster")), "{call}: {error}");
        assert_eq!(all(), before, "{call}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let removed = runtime.block_on(ktcw_vm::apply::remove(host.clone(), mark, |_| ())).expect("nothing of ours");
    assert!(removed.is_empty(), "{removed:?}");
    assert_eq!(all(), before, "down");
    assert_eq!(host.definitions(mark).expect("read").iter().filter(|(name, _)| !name.contains("images")).count(), 0);
    domains.iter().for_each(|domain| domain.undefine().expect("undefined"));
    networks.iter().for_each(|network| network.undefine().expect("undefined"));
    pools.iter().for_each(|pool| pool.undefine().expect("undefined"));
}

/// Clusters come and go while others are looked at: what vanishes under an observation is left out, and fails nobody's `up`.
#[test]
fn looking_while_others_make_and_remove_their_clusters_never_fails() {
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        let makers: Vec<_> = ["comes-a", "comes-b"]
            .map(|name| {
                scope.spawn(move || {
                    let (host, lab) = (test_host(), lab(name, Accel::Tcg));
                    let mut turns = 0;
                    while begin.elapsed() < std::time::Duration::from_secs(3) {
                        host.ensure_network(&lab.network, &lab.mark).expect("network");
                        host.ensure_pools(&lab.storage, &lab.mark).expect("pools");
                        host.ensure_blank(&lab.storage, "x", 1 << 20, &lab.mark).expect("blank");
                        host.ensure_domain(&lab.domain, &lab.storage, &lab.node, &lab.mark).expect("domain");
                        host.remove_domain(&lab.domain.name, lab.domain.uuid, &lab.mark).expect("removed");
                        host.remove_network(&lab.network.name, &lab.mark).expect("removed");
                        host.remove_pool(&lab.storage.pool, &lab.mark).expect("removed");
                        turns += 1;
                    }
                    turns
                })
            })
            .into_iter()
            .collect();
        let host = test_host();
        let mut looks = 0;
        while makers.iter().any(|maker| !maker.is_finished()) {
            host.observe().expect("observed");
            looks += 1;
        }
        let turns: Vec<i32> = makers.into_iter().map(|maker| maker.join().expect("no panic")).collect();
        println!("{looks} looks at {turns:?} comings and goings");
    });
}

#[test]
fn a_machine_runs_pauses_stops_and_goes_with_its_snapshots() {
    let (host, conn) = (test_host(), libvirt());
    let lab = lab("states", Accel::Tcg);
    let (domain, mark) = (&lab.domain, &lab.mark);
    host.ensure_network(&lab.network, mark).expect("network");
    host.ensure_pools(&lab.storage, mark).expect("pools");
    host.ensure_domain(domain, &lab.storage, &lab.node, mark).expect("domain");
    let state =
        || host.observe().expect("observe").domains.into_iter().find(|found| found.name == domain.name).map(|found| found.state);
    for (expected, call) in [(Done::Changed, "first"), (Done::Unchanged, "second")] {
        assert_eq!(host.ensure_running(domain, mark).expect(call), expected);
    }
    assert_eq!(host.suspend(domain, mark).expect("suspend"), Done::Changed);
    assert_eq!((host.suspend(domain, mark).expect("again"), state()), (Done::Unchanged, Some(DomainState::Paused)));
    assert_eq!(host.ensure_running(domain, mark).expect("goes on"), Done::Changed);
    assert_eq!((host.resume(domain, mark).expect("runs"), state()), (Done::Unchanged, Some(DomainState::Running)));
    assert_eq!(host.power_off(domain, mark).expect("off"), Done::Changed);
    assert_eq!((host.power_off(domain, mark).expect("again"), state()), (Done::Unchanged, Some(DomainState::ShutOff)));
    assert_eq!(host.shutdown(domain, mark).expect("off already"), Done::Unchanged);

    // libvirt refuses to undefine a domain with snapshots or a saved state, unless told to drop them.
    host.ensure_running(domain, mark).expect("on");
    let theirs = conn.lookup_domain_by_name(&domain.name).expect("there");
    theirs.create_snapshot_xml("<domainsnapshot><name>before</name></domainsnapshot>", 0).expect("snapshot");
    theirs.managed_save(0).expect("saved");
    assert!(theirs.undefine().is_err(), "the premise of this test");
    assert_eq!(host.remove_domain(&domain.name, domain.uuid, mark).expect("removed"), Done::Changed);
    assert_eq!(state(), None);
}

/// Saved while paused, gone back to from running, paused and off, removed in any order; strangers' snapshots are not ours.
#[test]
fn a_machine_goes_back_to_a_snapshot_and_stays_paused() {
    for (host, real) in [(&test_host() as &dyn Host, true), (&FakeHost::new(), false)] {
        let conn = libvirt();
        let lab = lab(if real { "snapped" } else { "snapped-fake" }, Accel::Tcg);
        let (domain, mark) = (&lab.domain, &lab.mark);
        host.ensure_network(&lab.network, mark).expect("network");
        host.ensure_pools(&lab.storage, mark).expect("pools");
        host.ensure_domain(domain, &lab.storage, &lab.node, mark).expect("domain");
        let state = || {
            host.observe().expect("observe").domains.into_iter().find(|found| found.name == domain.name).map(|found| found.state)
        };
        let error = host.ensure_snapshot(domain, "early", mark).expect_err("it is off");
        assert!(error.to_string().contains("not paused"), "{error}");
        if real {
            host.ensure_running(domain, mark).expect("running");
            let theirs = conn.lookup_domain_by_name(&domain.name).expect("there");
            theirs.create_snapshot_xml("<domainsnapshot><name>theirs</name></domainsnapshot>", 0).expect("snapshot");
            host.suspend(domain, mark).expect("paused");
            assert_eq!(host.snapshots(domain, mark).expect("listed"), Vec::<String>::new());
            for name in ["one", "two"] {
                assert_eq!(host.ensure_snapshot(domain, name, mark).expect(name), Done::Changed);
                assert_eq!(host.ensure_snapshot(domain, name, mark).expect(name), Done::Unchanged);
            }
            assert_eq!(
                (host.snapshots(domain, mark).expect("listed"), state()),
                (vec!["one".into(), "two".into()], Some(DomainState::Paused))
            );
            host.resume(domain, mark).expect("running");
            host.revert(domain, "one", mark).expect("from running");
            assert_eq!(state(), Some(DomainState::Paused));
            host.power_off(domain, mark).expect("off");
            host.revert(domain, "two", mark).expect("from off");
            if real {
                // The host was suspended in between, as libvirt-guests does it.
                host.resume(domain, mark).expect("goes on");
                let theirs = conn.lookup_domain_by_name(&domain.name).expect("there");
                theirs.managed_save(0).expect("saved");
                host.revert(domain, "two", mark).expect("from saved");
                assert!(!theirs.has_managed_save(0).expect("asked"), "memory of another moment waits for the next start");
            }
            assert_eq!(state(), Some(DomainState::Paused));
            for expected in [Done::Changed, Done::Unchanged] {
                assert_eq!(host.remove_snapshot(domain, "one", mark).expect("removed"), expected);
            }
            assert_eq!(host.snapshots(domain, mark).expect("listed"), ["two"]);
            host.resume(domain, mark).expect("running");
        }
        let error = host.revert(domain, "nowhere", mark).expect_err("unknown");
        assert!(matches!(&error, HostError::Missing { name, .. } if name.contains("nowhere")), "{error}");
        assert_eq!(host.remove_domain(&domain.name, domain.uuid, mark).expect("removed"), Done::Changed);
        assert_eq!(host.remove_snapshot(domain, "two", mark).expect("gone with it"), Done::Unchanged);
    }
}

#[test]
fn overlays_need_a_finished_base_and_keep_it() {
    let (host, conn) = (test_host(), libvirt());
    let lab = lab("overlays", Accel::Tcg);
    host.ensure_pools(&lab.storage, &lab.mark).expect("pools");
    let images = conn.lookup_storage_pool_by_name(&lab.storage.image_pool).expect("image pool");
    let make = |name: &str, capacity: u64| {
        let xml =
            format!("<volume><name>{name}</name><capacity>{capacity}</capacity><target><format type='qcow2'/></target></volume>");
        StorageVol::create_xml(&images, &xml, 0).expect("made");
    };
    let (base, root) = ("base-of-overlays.qcow2", "controller-0-root.qcow2");
    let ensure = |base: &str, size: u64| host.ensure_overlay(&lab.storage, root, base, size, &lab.mark);
    make(base, 3 << 30);
    let error = ensure(base, 10 << 30).expect_err("an upload that was not finished is no base");
    assert!(matches!(error, HostError::Missing { kind: "volume", .. }), "{error}");
    make(&format!("{base}.complete"), 0);
    let error = ensure(base, 1 << 30).expect_err("smaller than its base");
    assert!(error.to_string().contains("less than its base"), "{error}");
    assert_eq!(ensure(base, 10 << 30).expect("made"), Done::Changed);
    assert_eq!(ensure(base, 10 << 30).expect("there"), Done::Unchanged);
    make("another-base.qcow2", 3 << 30);
    make("another-base.qcow2.complete", 0);
    let error = ensure("another-base.qcow2", 10 << 30).expect_err("another base");
    assert!(matches!(&error, HostError::Differs { what, .. } if what.contains(base)), "{error}");
    host.remove_pool(&lab.storage.pool, &lab.mark).expect("removed");
}

/// The driver takes no bytes, as a pool takes none that is full. What was made for them is gone again, also after another program's
/// unfinished upload, which is given up once it has stood still for long enough.
#[test]
fn an_upload_that_fails_leaves_nothing_on_the_disk() {
    let (host, conn) = (test_host().with_abandoned_after(Duration::from_millis(300)), libvirt());
    let lab = lab("uploads", Accel::Tcg);
    host.ensure_pools(&lab.storage, &lab.mark).expect("pools");
    let images = conn.lookup_storage_pool_by_name(&lab.storage.image_pool).expect("image pool");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&[7; 4096]).expect("written");
    let image = "kernel-of-uploads";
    let fails = || {
        let begin = Instant::now();
        let done = host.ensure_image_volume(&lab.storage, image, VolumeFormat::Raw, file.path(), &mut |_, _| ());
        let error = done.expect_err("there are no streams").to_string();
        assert!(error.contains(&format!("could not upload volume {image}")), "{error}");
        let left = images.lookup_storage_vol_by_name(image).and_then(|volume| volume.path());
        assert!(left.is_err(), "{left:?} is left");
        begin.elapsed()
    };
    fails();
    let torso = format!("<volume><name>{image}</name><capacity>4096</capacity></volume>");
    StorageVol::create_xml(&images, &torso, 0).expect("somebody's");
    let took = fails();
    assert!(took > Duration::from_millis(300) && took < Duration::from_secs(30), "{took:?}");
    // Finished while it was waited for: it is not made anew, for machines may stand on it.
    StorageVol::create_xml(&images, &torso, 0).expect("somebody's");
    let host = test_host();
    let done = std::thread::scope(|scope| {
        let file = file.path();
        let waits = scope.spawn(|| host.ensure_image_volume(&lab.storage, image, VolumeFormat::Raw, file, &mut |_, _| ()));
        let mark = format!("<volume><name>{image}.complete</name><capacity>0</capacity></volume>");
        while !waits.is_finished() {
            // Before it waits it takes away a mark that is there: the first one may come too early.
            std::thread::sleep(Duration::from_millis(500));
            let _ = StorageVol::create_xml(&images, &mark, 0);
        }
        waits.join().expect("no panic")
    });
    assert_eq!(done.expect("it is there"), Done::Unchanged);
    assert_eq!(host.remove_image_volume(&lab.storage, image).expect("removed"), Done::Changed);
    host.remove_pool(&lab.storage.pool, &lab.mark).expect("removed");
}

#[test]
fn facts_are_read_even_where_the_driver_knows_little() {
    let host = test_host();
    let facts = host.facts().expect("facts");
    assert!(facts.uri.starts_with("test:"), "{facts:?}");
    assert!(facts.memory_mib > 0 && facts.cpus > 0 && facts.emulator.is_empty() && !facts.kvm_listed, "{facts:?}");
    assert!(host.is_local() && host.free_disk_mib().is_some_and(|mib| mib > 0));
}
