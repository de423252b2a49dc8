//! What must never be green: a fault that was not injected, one that did not last, and a store that lies.
//! Flawed injectors and lying stores are drilled as honest ones are.
//! It knows the verdict that each must have, and the reason that must be given.

use crate::cluster::Cluster;
use crate::forgetful::{Forgetful, Lapse};
use crate::idle::{Flaw, Flawed};
use crate::injector::Native;
use crate::passes::{DATA, NETWORKS, PROCESSES};
use crate::runs::{drill, drilled};
use ktcw_vm::drill::admin::await_healthy;
use ktcw_vm::drill::judge::{Judgement, Result as Came};
use std::sync::Arc;
use std::time::Duration;

/// Drills each on a cluster of its own making, and wants all invalid for want of proof.
fn all_invalid(flaw: Flaw, names: &[&str]) {
    let cluster = Arc::new(Cluster::start(3));
    let site = cluster.site();
    cluster.block_on(async {
        for name in names {
            let flawed = Flawed::new(Native::new(cluster.clone()), flaw);
            let (_, judgement) = drilled(&drill(name), &site, &flawed, &cluster).await;
            assert_eq!(judgement.result, Came::Invalid, "{flaw:?} {name}: {:?}", judgement.reasons);
            assert!(judgement.reasons.iter().any(|reason| reason.starts_with("V1")), "{flaw:?} {name}: {:?}", judgement.reasons);
        }
    });
}

/// Of every drill that passes here, and of the one that takes too long to: the act that is left out may be a signal, packet
/// rules, files, or a word to etcd.
#[test]
fn a_process_fault_that_is_left_out_is_invalid() {
    all_invalid(Flaw::LeavesOut, &PROCESSES);
}

#[test]
fn a_cut_that_is_left_out_is_invalid() {
    all_invalid(Flaw::LeavesOut, &NETWORKS);
}

#[test]
fn a_loss_or_a_restart_that_is_left_out_is_invalid() {
    all_invalid(Flaw::LeavesOut, &DATA);
    all_invalid(Flaw::LeavesOut, &["leader-flap"]);
}

/// The injector swears that the fault is there: members that go on answering say that it is not.
#[test]
fn a_fault_that_is_sworn_and_not_injected_is_invalid() {
    all_invalid(Flaw::Lies, &["leader-kill", "leader-stop", "leader-pause", "follower-kill", "quorum-loss", "rolling-restart"]);
}

/// It was there once, and not until the heal: what was measured is something else.
#[test]
fn a_fault_that_does_not_last_is_invalid() {
    all_invalid(Flaw::DoesNotLast, &["leader-kill", "leader-pause", "isolate-leader", "bridge"]);
}

/// Drills a cluster that is seen through lying proxies.
fn lying(lapse: Lapse, names: &[&str], wanted: impl Fn(&str, &Judgement) + Sync) {
    let cluster = Arc::new(Cluster::start(3));
    cluster.block_on(async {
        let mut site = cluster.site();
        await_healthy(&site, Duration::from_secs(30)).await.expect("healthy");
        let store = Forgetful::new(lapse);
        for (endpoint, member) in site.members.iter_mut().zip(&cluster.members) {
            let proxy = store.serve((member.address, 2379).into()).await;
            endpoint.client_url = format!("http://{proxy}");
        }
        for name in names {
            let native = Native::new(cluster.clone());
            let (_, judgement) = drilled(&drill(name), &site, &native, &cluster).await;
            assert_eq!(judgement.result, Came::Fail, "{name}: {:?}", judgement.reasons);
            wanted(name, &judgement);
        }
    });
}

/// The reason must say so.
#[test]
fn a_store_that_drops_acknowledged_writes_fails() {
    let drills = ["follower-kill", "leader-kill", "isolate-leader", "quorum-loss"];
    lying(Lapse::Drops { every: 40 }, &drills, |name, judgement| {
        assert!(judgement.figures.lost_acknowledged_writes.is_some_and(|lost| lost > 0), "{name}");
        let named = judgement.reasons.iter().any(|reason| reason.starts_with("I1") && reason.contains("is gone"));
        assert!(named, "{name}: {:?}", judgement.reasons);
    });
}

/// A single write among hundreds is enough, though it was before the fault.
#[test]
fn a_store_that_drops_a_single_write_fails() {
    lying(Lapse::DropsOne { nth: 60 }, &["isolate-follower"], |name, judgement| {
        assert_eq!(judgement.figures.lost_acknowledged_writes, Some(1), "{name}");
    });
}

#[test]
fn a_store_that_answers_from_the_past_fails() {
    lying(Lapse::Stale { every: 30 }, &["follower-kill", "leader-kill"], |name, judgement| {
        assert!(judgement.reasons.iter().any(|reason| reason.starts_with("I3") || reason.starts_with("I4")), "{name}");
        assert_eq!(judgement.figures.lost_acknowledged_writes, Some(0), "{name}: nothing was dropped");
    });
}
