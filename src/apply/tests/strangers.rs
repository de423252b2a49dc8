//! Other people's machines, networks, pools and volumes, in every likeness to ours: the same name, the same UUID, both, our
//! prefix. Whatever is asked of the host, and whatever `up` and `down` do, they are as they were; and preflight refuses with
//! the way out where they are in the way.

use super::lab::{Lab, sample};
use super::{Runs, block_on};
use crate::apply::remove;
use crate::host::{Host, HostError, HostSeen, Mark};
use crate::plan::{IMAGE_POOL, Plan};
use crate::preflight;
use proptest::prelude::*;
use std::sync::Arc;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Domain,
    Network,
    Pool,
    Images,
    Volume,
}

/// In what it is like ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Name,
    Uuid,
    Both,
    Prefix,
}

const KINDS: [Kind; 5] = [Kind::Domain, Kind::Network, Kind::Pool, Kind::Images, Kind::Volume];
const LIKENESSES: [Likeness; 4] = [Likeness::Name, Likeness::Uuid, Likeness::Both, Likeness::Prefix];

/// Puts it there. `false`: there is no such thing (a pool of our images' name and UUID is our images').
fn add(lab: &Lab, kind: Kind, likeness: Likeness) -> bool {
    let plan = &lab.plan;
    let (name, uuid) = match kind {
        Kind::Domain => (plan.nodes[0].domain.name.clone(), plan.nodes[0].domain.uuid),
        Kind::Network => (plan.network.name.clone(), plan.network.uuid),
        Kind::Pool => (plan.storage.pool.clone(), plan.storage.pool_uuid),
        Kind::Images => (IMAGE_POOL.to_owned(), plan.storage.image_pool_uuid),
        Kind::Volume => (String::new(), Uuid::nil()),
    };
    let other = Uuid::from_u128(0xbad + likeness as u128);
    let (name, uuid) = match likeness {
        Likeness::Name => (name, other),
        Likeness::Uuid => ("theirs".to_owned(), uuid),
        Likeness::Both => (name, uuid),
        Likeness::Prefix => (format!("{name}-2"), other),
    };
    match kind {
        Kind::Domain => lab.host.add_foreign_domain(&name, uuid),
        Kind::Network => lab.host.add_foreign_network(&name, uuid, "10.9.8.0/24".parse().expect("net")),
        Kind::Pool => lab.host.add_foreign_pool(&name, uuid),
        Kind::Images if likeness == Likeness::Both => return false,
        Kind::Images => {
            lab.host.add_foreign_pool(&name, uuid);
            lab.host.add_foreign_volume(&name, "holiday.qcow2");
        }
        Kind::Volume => lab.host.add_foreign_volume(IMAGE_POOL, "holiday.qcow2"),
    }
    true
}

/// All that carries no mark, and in the images' pool what is no image.
fn strangers(lab: &Lab) -> HostSeen {
    let mut seen = lab.host.observe().expect("observed");
    seen.domains.retain(|domain| domain.mark.is_none());
    seen.networks.retain(|network| network.mark.is_none());
    seen.pools.retain(|pool| pool.mark.is_none());
    for pool in &mut seen.pools {
        let ours = pool.name == IMAGE_POOL && pool.uuid == lab.plan.storage.image_pool_uuid;
        pool.volumes.retain(|volume| !ours || volume.name.starts_with("holiday"));
    }
    // The images' pool itself is ours to make and to remove, as long as nobody has laid anything into it.
    let images = (IMAGE_POOL, lab.plan.storage.image_pool_uuid);
    seen.pools.retain(|pool| (pool.name.as_str(), pool.uuid) != images || !pool.volumes.is_empty());
    seen
}

fn in_the_way(lab: &Lab) -> Vec<preflight::Refusal> {
    let (seen, facts) = (lab.host.observe().expect("observed"), lab.host.facts().expect("facts"));
    let judged = preflight::judge(&lab.plan, &facts, &seen, None, 0, None);
    judged.into_iter().filter(|refusal| refusal.about == "name").collect()
}

/// Every changing call there is, for things of our names and UUIDs, by one who has made nothing.
fn every_call(host: &dyn Host, plan: &Plan, mark: &Mark) -> Vec<(&'static str, Result<crate::host::Done, HostError>)> {
    let (node, storage) = (&plan.nodes[0], &plan.storage);
    vec![
        ("remove_domain", host.remove_domain(&node.domain.name, node.domain.uuid, mark)),
        ("ensure_domain", host.ensure_domain(&node.domain, storage, &node.name, mark)),
        ("ensure_running", host.ensure_running(&node.domain, mark)),
        ("suspend", host.suspend(&node.domain, mark)),
        ("resume", host.resume(&node.domain, mark)),
        ("shutdown", host.shutdown(&node.domain, mark)),
        ("power_off", host.power_off(&node.domain, mark)),
        ("remove_network", host.remove_network(&plan.network.name, mark)),
        ("ensure_blank", host.ensure_blank(storage, "holiday.qcow2", 1 << 20, mark)),
        ("ensure_content", host.ensure_content(storage, "holiday.qcow2", b"x", mark)),
        ("remove_volume", host.remove_volume(storage, "holiday.qcow2", mark)),
        ("remove_pool", host.remove_pool(&storage.pool, mark)),
        ("remove_empty_image_pool", host.remove_empty_image_pool(storage)),
    ]
}

/// Whatever is there of strangers: nothing that we do changes it.
fn stay(things: &[(Kind, Likeness)], plan: &Arc<Plan>) {
    let runs = Runs::new(plan);
    let there = things.iter().filter(|(kind, likeness)| add(&runs.lab, *kind, *likeness)).count();
    let before = strangers(&runs.lab);
    for (call, outcome) in every_call(&*runs.lab.host, plan, &runs.lab.mark) {
        assert_eq!(strangers(&runs.lab), before, "{things:?}: {call}: {outcome:?}");
        if let Err(error @ HostError::NotOurs { .. }) = outcome {
            assert!(error.hint().is_some_and(|hint| hint.contains("--cluster")), "{error}");
        }
    }
    // Also when they come between preflight and the steps.
    let went = runs.up().result.map_err(|error| error.to_string());
    assert_eq!(strangers(&runs.lab), before, "{things:?}: up: {went:?}");
    block_on(remove(runs.lab.host.clone(), &runs.lab.mark, |_| ()))
        .unwrap_or_else(|error| panic!("{things:?}: down must not be stopped by them: {error}"));
    assert_eq!(strangers(&runs.lab), before, "{things:?}: down");
    let ours = runs.lab.host.observe().expect("observed");
    assert!(!ours.domains.iter().any(|domain| domain.mark.as_ref() == Some(&runs.lab.mark)), "{things:?}: {there}");
}

#[test]
fn each_likeness_alone_is_refused_where_it_is_in_the_way_and_never_touched() {
    let plan = sample("lab", 1, 0);
    for kind in KINDS {
        for likeness in LIKENESSES {
            stay(&[(kind, likeness)], &plan);
            let lab = Lab::new(&plan);
            if !add(&lab, kind, likeness) {
                continue;
            }
            let refused = in_the_way(&lab);
            // A name that only begins like ours is nobody's business, and a file beside our images is in nobody's way.
            let expected = usize::from(likeness != Likeness::Prefix && kind != Kind::Volume);
            assert_eq!(refused.len(), expected, "{kind:?} {likeness:?}: {refused:?}");
            assert!(refused.iter().all(|refusal| refusal.hint.contains("will not be touched")), "{refused:?}");
        }
    }
}

/// Without another cluster on the host the images go with the last one; what somebody laid beside them stays, with its pool.
#[test]
fn the_last_down_takes_the_images_and_leaves_what_lies_beside_them() {
    let plan = sample("lab", 1, 0);
    let runs = Runs::new(&plan);
    let other = runs.lab.host.observe().expect("observed");
    let theirs = other.domains.iter().find_map(|domain| domain.mark.clone()).expect("the other cluster");
    block_on(remove(runs.lab.host.clone(), &theirs, |_| ())).expect("removed");
    runs.up().result.expect("up");
    runs.lab.host.add_foreign_volume(IMAGE_POOL, "holiday.qcow2");
    block_on(remove(runs.lab.host.clone(), &runs.lab.mark, |_| ())).expect("removed");
    let seen = runs.lab.host.observe().expect("observed");
    let left = seen.pools.iter().find(|pool| pool.name == IMAGE_POOL).expect("not removed with a stranger's file in it");
    assert_eq!(left.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["holiday.qcow2"]);
}

/// What somebody put among a cluster's own disks stays, with the pool that it is in; `down` says so, and takes the pool when it is gone.
#[test]
fn what_lies_among_the_clusters_own_disks_stays_and_is_told() {
    let plan = sample("lab", 1, 0);
    let runs = Runs::new(&plan);
    runs.up().result.expect("up");
    let (host, pool) = (&runs.lab.host, &plan.storage.pool);
    let theirs = ["controller-0-root.qcow2.bak", "holiday.qcow2"];
    theirs.iter().for_each(|name| host.add_foreign_volume(pool, name));
    for again in [false, true] {
        let removed = block_on(remove(host.clone(), &runs.lab.mark, |_| ())).expect("removed");
        assert_eq!((removed.domains.is_empty(), removed.volumes == 0), (again, again), "{removed:?}");
        let [kept] = removed.kept.as_slice() else { panic!("{removed:?}") };
        assert_eq!((&kept.pool, kept.paths.len(), removed.pools.len()), (pool, 2, 0), "{kept:?}");
        let seen = host.observe().expect("observed");
        let left = seen.pools.iter().find(|found| found.name == *pool).expect("it stays");
        assert_eq!(left.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), theirs);
    }
    for name in theirs {
        host.remove_volume(&plan.storage, name, &runs.lab.mark).expect("taken away");
    }
    let removed = block_on(remove(host.clone(), &runs.lab.mark, |_| ())).expect("removed");
    assert!(removed.kept.is_empty() && removed.pools == [pool.clone()], "{removed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_crowd_of_strangers_stays_as_it_was(
        crowd in proptest::collection::vec((proptest::sample::select(&KINDS[..]), proptest::sample::select(&LIKENESSES[..])), 1..8)
    ) {
        stay(&crowd, &sample("lab", 1, 0));
    }
}
