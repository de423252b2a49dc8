//! The fake keeps libvirt's rules: what is foreign stays untouched, order matters, twice is once, failures strike where told.

use super::*;
use crate::host::samples::{controller, mark_in, network, storage};
use crate::host::{Host, HostSeen, VolumeFormat};
use crate::plan::Accel;
use std::path::Path;

const IMAGE: &str = "Cargo.toml";

/// All that `up` does for one machine, in order.
fn bring_up(host: &FakeHost) -> Result<(), HostError> {
    let (mark, storage, domain, network) = (mark_in("/s"), storage(), controller(Accel::Tcg), network(false));
    host.ensure_network(&network, &mark)?;
    host.ensure_pools(&storage, &mark)?;
    let volumes = [&storage.base_volume, &storage.kernel_volume].into_iter().chain(&storage.initrd_volume);
    for volume in volumes {
        host.ensure_image_volume(&storage, volume, VolumeFormat::Qcow2, Path::new(IMAGE), &mut |_, _| ())?;
    }
    host.ensure_overlay(&storage, "controller-0-root.qcow2", &storage.base_volume, 10 << 30, &mark)?;
    host.ensure_content(&storage, "controller-0-seed.iso", b"seed", &mark)?;
    host.ensure_blank(&storage, "controller-0-etcd.qcow2", 2 << 30, &mark)?;
    host.ensure_domain(&domain, &storage, &NodeName::controller(0), &mark)?;
    host.ensure_running(&domain, &mark)?;
    Ok(())
}

/// All that `down` does.
fn take_down(host: &FakeHost) -> Result<(), HostError> {
    let mark = mark_in("/s");
    let seen = host.observe()?;
    for domain in seen.domains.iter().filter(|domain| domain.mark.as_ref() == Some(&mark)) {
        host.remove_domain(&domain.name, domain.uuid, &mark)?;
    }
    for network in seen.networks.iter().filter(|network| network.mark.as_ref() == Some(&mark)) {
        host.remove_network(&network.name, &mark)?;
    }
    for pool in seen.pools.iter().filter(|pool| pool.mark.as_ref() == Some(&mark)) {
        host.remove_pool(&pool.name, &mark)?;
    }
    Ok(())
}

fn left(seen: &HostSeen) -> usize {
    seen.domains.len() + seen.networks.len() + seen.pools.iter().filter(|pool| pool.name != storage().image_pool).count()
}

#[test]
fn twice_is_once_and_down_leaves_only_the_shared_images() {
    let host = FakeHost::new();
    bring_up(&host).expect("up");
    let first = host.observe().expect("observe");
    let (mark, domain) = (mark_in("/elsewhere"), controller(Accel::Tcg));
    assert_eq!(
        host.ensure_running(&domain, &mark).expect("running"),
        Done::Unchanged,
        "a moved state directory is still the owner"
    );
    bring_up(&host).expect("again");
    assert_eq!(host.observe().expect("observe"), first);
    assert_eq!(host.content(&storage().pool, "controller-0-seed.iso"), Some(b"seed".to_vec()));
    assert_eq!(host.resident_bytes(&domain).expect("resident"), RESIDENT_BYTES);
    take_down(&host).expect("down");
    take_down(&host).expect("down twice");
    assert_eq!(left(&host.observe().expect("observe")), 0);
}

#[test]
fn a_failure_at_any_call_is_survived_by_down_and_by_another_up() {
    let count = {
        let host = FakeHost::new();
        bring_up(&host).expect("up");
        host.calls().len()
    };
    assert!(count >= 10, "{count}");
    for strike in [Strike::Before, Strike::After] {
        for k in 1..=count {
            let host = FakeHost::new();
            host.fail_at(k, strike);
            let error = bring_up(&host).expect_err("told to fail");
            assert!(error.to_string().contains(&format!("call {k}")), "{error}");
            bring_up(&host).expect("resumes");
            let again = FakeHost::new();
            again.fail_at(k, strike);
            bring_up(&again).expect_err("told to fail");
            take_down(&again).expect("cleans");
            assert_eq!(left(&again.observe().expect("observe")), 0, "{strike:?} {k}");
        }
    }
}

#[test]
fn what_is_foreign_is_refused_and_stays_as_it_was() {
    let (mark, storage, domain, network) = (mark_in("/s"), storage(), controller(Accel::Tcg), network(false));
    let host = FakeHost::new();
    host.add_foreign_domain(&domain.name, Uuid::from_u128(99));
    host.add_foreign_network(&network.name, Uuid::from_u128(98), network.subnet);
    host.add_foreign_pool(&storage.pool, Uuid::from_u128(97));
    let before = host.observe().expect("observe");
    let node = NodeName::controller(0);
    let refusals = [
        host.ensure_network(&network, &mark),
        host.remove_network(&network.name, &mark),
        host.ensure_pools(&storage, &mark),
        host.remove_pool(&storage.pool, &mark),
        host.ensure_blank(&storage, "x", 1, &mark),
        host.ensure_domain(&domain, &storage, &node, &mark),
        host.ensure_running(&domain, &mark),
        host.power_off(&domain, &mark),
        host.remove_domain(&domain.name, Uuid::from_u128(99), &mark),
    ];
    for refusal in refusals {
        let error = refusal.expect_err("foreign");
        assert!(matches!(error, HostError::NotOurs { .. }), "{error}");
    }
    let after = host.observe().expect("observe");
    assert_eq!((after.domains, after.networks), (before.domains, before.networks));
    assert_eq!(after.pools.iter().find(|pool| pool.name == storage.pool), before.pools.first());
}

#[test]
fn a_uuid_held_by_another_name_is_refused() {
    let (mark, domain) = (mark_in("/s"), controller(Accel::Tcg));
    let host = FakeHost::new();
    host.add_foreign_domain("somebody-elses", domain.uuid);
    host.ensure_pools(&storage(), &mark).expect("pools");
    let error = host.ensure_domain(&domain, &storage(), &NodeName::controller(0), &mark).expect_err("taken");
    assert!(matches!(&error, HostError::NotOurs { name, .. } if name == "somebody-elses"), "{error}");
}

#[test]
fn order_matters_as_it_does_with_libvirt() {
    let (mark, storage, domain) = (mark_in("/s"), storage(), controller(Accel::Tcg));
    let host = FakeHost::new();
    let early = host.ensure_blank(&storage, "x", 1, &mark).expect_err("no pool yet");
    assert!(matches!(early, HostError::Missing { kind: "storage pool", .. }), "{early}");
    host.ensure_pools(&storage, &mark).expect("pools");
    let error = host.ensure_overlay(&storage, "x", &storage.base_volume, 1, &mark).expect_err("no base yet");
    assert!(matches!(error, HostError::Missing { kind: "volume", .. }), "{error}");
    host.ensure_domain(&domain, &storage, &NodeName::controller(0), &mark).expect("defined");
    let error = host.ensure_running(&domain, &mark).expect_err("no network");
    assert!(error.to_string().contains("network"), "{error}");
    host.ensure_network(&network(false), &mark).expect("network");
    let error = host.ensure_running(&domain, &mark).expect_err("no kernel");
    assert!(error.to_string().contains(&storage.kernel_volume), "{error}");
    bring_up(&host).expect("all there now");
}

#[test]
fn states_follow_what_is_done_and_what_happens() {
    let (mark, domain) = (mark_in("/s"), controller(Accel::Tcg));
    let host = FakeHost::new();
    bring_up(&host).expect("up");
    let state = |host: &FakeHost| host.observe().expect("observe").domains[0].state;
    assert_eq!(host.suspend(&domain, &mark).expect("suspend"), Done::Changed);
    assert_eq!((state(&host), host.suspend(&domain, &mark).expect("again")), (DomainState::Paused, Done::Unchanged));
    assert_eq!(host.resume(&domain, &mark).expect("resume"), Done::Changed);
    assert_eq!(host.power_off(&domain, &mark).expect("off"), Done::Changed);
    assert_eq!(host.power_off(&domain, &mark).expect("off"), Done::Unchanged);
    assert!(host.suspend(&domain, &mark).is_err());
    assert_eq!(host.ensure_running(&domain, &mark).expect("on"), Done::Changed);
    host.set_state(&domain.name, DomainState::PausedIoError).expect("state");
    assert_eq!(host.ensure_running(&domain, &mark).expect("goes on"), Done::Changed);
    host.reboot();
    assert_eq!(state(&host), DomainState::ShutOff);
    assert!(host.ensure_running(&domain, &mark).is_err(), "the network is not started by itself");
    bring_up(&host).expect("after a reboot");
    host.set_unreachable(true);
    assert!(matches!(host.observe(), Err(HostError::Unreachable { .. })));
}

#[test]
fn disks_with_data_are_never_made_anew() {
    let (mark, storage) = (mark_in("/s"), storage());
    let host = FakeHost::new();
    bring_up(&host).expect("up");
    let error = host.ensure_blank(&storage, "controller-0-etcd.qcow2", 4 << 30, &mark).expect_err("another size");
    assert!(matches!(error, HostError::Differs { .. }), "{error}");
    assert_eq!(host.ensure_content(&storage, "controller-0-seed.iso", b"new seed", &mark).expect("re-made"), Done::Changed);
}
