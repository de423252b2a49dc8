//! Nodes that come and go: each verb killed before and after every journal record, file and effect, over a lab that outlives it.
//! Then `up` ends with a whole cluster of the old size or the new one, and the same verb again with the new one; of a node
//! that is gone nothing is left, neither machine nor disk, key or certificate.

use super::killed::{Computer, planned};
use crate::apply;
use crate::spec::{ClusterSpec, NodeName, Role};
use crate::store::crash::{each, place, told};
use crate::store::journal::History;

pub const VERBS: [&str; 5] = ["add worker", "remove worker", "add member", "remove member", "renew"];

/// What `ktcw-vm node add --role …` asks for: who was on the way is one of them.
fn one_more(role: Role, kept: &ClusterSpec, history: &History) -> ClusterSpec {
    let there = kept.nodes_of(role);
    if apply::announced(history).iter().any(|node| there.contains(node)) {
        return kept.clone();
    }
    kept.with_one_more(role).expect("room")
}

/// What `ktcw-vm node remove NODE` asks for.
fn without(node: &NodeName, kept: &ClusterSpec) -> ClusterSpec {
    if kept.lineage.leaving.as_ref().is_some_and(|leaving| leaving.node == *node) || !kept.nodes_of(node.role()).contains(node) {
        return kept.clone();
    }
    kept.settled().without(node, false).expect("it can go")
}

/// The verb, as the program carries it out.
pub fn go(computer: &Computer, verb: &str) {
    let walked = match verb {
        "add worker" => computer.walk("node", |kept, history| one_more(Role::Worker, kept, history)),
        "remove worker" => computer.walk("node", |kept, _| without(&NodeName::worker(0), kept)),
        "add member" => computer.walk("node", |kept, history| one_more(Role::Controller, kept, history)),
        "remove member" => computer.walk("node", |kept, _| without(&NodeName::controller(1), kept)),
        "renew" => computer.renew(),
        other => panic!("no verb {other}"),
    };
    walked.unwrap_or_else(|error| panic!("{verb}: {error}"));
}

/// Names below `pki` and `ssh`, and what libvirt has of the cluster, that speak of a node.
fn traces(computer: &Computer, node: &NodeName) -> Vec<String> {
    let name = node.to_string();
    let mut found = Vec::new();
    for dir in ["pki", "ssh"] {
        let entries = std::fs::read_dir(computer.dir().path().join(dir)).expect("a directory");
        found.extend(entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()));
    }
    let seen = computer.lab().host_seen();
    found.extend(seen.domains.into_iter().map(|domain| domain.name));
    found.extend(seen.pools.into_iter().flat_map(|pool| pool.volumes).map(|volume| volume.name));
    found.retain(|text| text.contains(&name) && !text.starts_with("other"));
    found
}

/// A cluster of the sample's size, made by an undisturbed `up`.
fn whole(at: &std::path::Path) -> Computer {
    let computer = Computer::fresh(at);
    computer.comes_up("undisturbed");
    computer
}

fn size(computer: &Computer) -> (u8, u8) {
    let dir = computer.dir();
    let spec = dir.spec();
    assert!(!spec.lineage.in_motion(), "nobody is on the way");
    let plan = dir.load_plan().expect("readable").expect("a plan");
    assert_eq!(&plan.spec, spec, "the plan is of the specification");
    (spec.etcd, spec.workers)
}

#[test]
fn a_worker_that_comes_is_there_whole_or_not_at_all_wherever_its_coming_was_cut_off() {
    let place = place();
    let before = Computer::fresh(&place.path().join("fresh")).lab().host_seen();
    let old = whole(&place.path().join("whole"));
    let points = old.copied(&place.path().join("counted")).points("add worker");
    assert!(points.len() > 60, "{}", points.len());
    each(&points, |point, at| {
        let about = format!("add killed at {point}");
        let cut = old.copied(&at.join("cut"));
        assert!(cut.killed("add worker", point), "{about}");
        let again = cut.copied(&at.join("again"));
        // Killed after its last word it was done, and again is one more.
        let done = cut.dir().spec().workers == 2 && apply::announced(&cut.dir().history().expect("readable")).is_empty();
        go(&again, "add worker");
        assert_eq!(size(&again), (1, if done { 3 } else { 2 }), "{about}, and again");
        again.comes_up(&format!("{about}, again, up"));
        cut.comes_up(&format!("{about}, up"));
        let (_, workers) = size(&cut);
        assert!(workers == 1 && traces(&cut, &NodeName::worker(1)).is_empty() || workers == 2, "{about}: {workers}");
        cut.goes_down(&before, &format!("{about}, up, down"));
    });
    println!("{}", told("node add", &points));
}

#[test]
fn a_worker_that_goes_is_gone_whole_wherever_its_going_was_cut_off() {
    let place = place();
    let before = Computer::fresh(&place.path().join("fresh")).lab().host_seen();
    let old = whole(&place.path().join("whole"));
    go(&old, "add worker");
    assert_eq!(size(&old), (1, 2));
    let points = old.copied(&place.path().join("counted")).points("remove worker");
    assert!(points.len() > 40, "{}", points.len());
    let gone = NodeName::worker(0);
    each(&points, |point, at| {
        let about = format!("remove killed at {point}");
        let cut = old.copied(&at.join("cut"));
        assert!(cut.killed("remove worker", point), "{about}");
        let again = cut.copied(&at.join("again"));
        go(&again, "remove worker");
        for (computer, about) in [(&again, format!("{about}, again")), (&cut, format!("{about}, up"))] {
            computer.comes_up(&about);
            let nodes = computer.dir().spec().nodes_of(Role::Worker);
            match nodes.as_slice() {
                [only] if *only == NodeName::worker(1) => {
                    assert_eq!(traces(computer, &gone), Vec::<String>::new(), "{about}");
                    assert!(!computer.lab().registered().contains_key(&gone), "{about}");
                }
                // Killed before anything was written down, it has not begun.
                [_, _] => assert!(about.ends_with("up"), "{about}"),
                other => panic!("{about}: {other:?}"),
            }
            assert_eq!(size(computer).0, 1, "{about}");
        }
        cut.goes_down(&before, &format!("{about}, up, down"));
    });
    println!("{}", told("node remove", &points));
    // One that comes after it takes its slot and is another machine.
    go(&old, "remove worker");
    go(&old, "add worker");
    assert_eq!((size(&old), old.dir().spec().lineage.is_empty()), ((1, 2), true));
    assert_eq!(planned().cluster, *old.dir().name());
}

/// Pods that may not go hold the node; nothing of it is taken away before they are gone, and `force` does not wait for ever.
#[test]
fn pods_that_may_not_go_hold_their_node() {
    let place = place();
    let computer = whole(&place.path().join("held"));
    computer.lab().set_pods(&NodeName::worker(0), 3);
    let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| go(&computer, "remove worker")));
    assert!(held.is_err());
    assert!(traces(&computer, &NodeName::worker(0)).len() > 5);
    let leaving = computer.dir().spec().lineage.leaving.clone().expect("it is still on its way");
    let force = |kept: &ClusterSpec, _: &History| {
        let mut again = kept.clone();
        again.lineage.leaving = Some(crate::spec::Leaving { force: true, ..leaving });
        again
    };
    let went = computer.walk("node", force).expect("went");
    assert!(went >= 3, "{went}");
    assert_eq!((size(&computer), traces(&computer, &NodeName::worker(0))), ((1, 0), Vec::new()));
}

/// One member becomes two: the learner has no vote until it has everything, and who was cut off in between is brought in.
#[test]
fn a_member_that_comes_is_a_whole_one_wherever_its_coming_was_cut_off() {
    let place = place();
    let before = Computer::fresh(&place.path().join("fresh")).lab().host_seen();
    let old = whole(&place.path().join("whole"));
    let points = old.copied(&place.path().join("counted")).points("add member");
    assert!(points.len() > 60, "{}", points.len());
    each(&points, |point, at| {
        let about = format!("add member killed at {point}");
        let cut = old.copied(&at.join("cut"));
        assert!(cut.killed("add member", point), "{about}");
        cut.comes_up(&format!("{about}, up"));
        let (members, _) = size(&cut);
        let newcomer = NodeName::controller(1);
        assert!(members == 1 && traces(&cut, &newcomer).is_empty() || members == 2, "{about}: {members}");
        cut.goes_down(&before, &format!("{about}, up, down"));
    });
    println!("{}", told("node add --role etcd", &points));
}

/// Two members become one, the one that goes being the leader.
#[test]
fn a_member_that_goes_is_gone_whole_wherever_its_going_was_cut_off() {
    let place = place();
    let before = Computer::fresh(&place.path().join("fresh")).lab().host_seen();
    let old = whole(&place.path().join("whole"));
    go(&old, "add member");
    old.lab().lead(&NodeName::controller(1));
    let points = old.copied(&place.path().join("counted")).points("remove member");
    assert!(points.len() > 60, "{}", points.len());
    let gone = NodeName::controller(1);
    each(&points, |point, at| {
        let about = format!("remove member killed at {point}");
        let cut = old.copied(&at.join("cut"));
        assert!(cut.killed("remove member", point), "{about}");
        cut.comes_up(&format!("{about}, up"));
        let (members, _) = size(&cut);
        assert!(members == 2 || members == 1 && traces(&cut, &gone).is_empty(), "{about}: {members}");
        cut.goes_down(&before, &format!("{about}, up, down"));
    });
    println!("{}", told("node remove controller-1", &points));
}

/// All disks of an etcd that somebody joined are gone: it is founded again, by all, and nobody waits to be let in.
#[test]
fn an_etcd_of_which_nothing_is_left_is_founded_again() {
    let place = place();
    let computer = whole(&place.path().join("whole"));
    go(&computer, "add member");
    assert!(computer.killed("down", "journal:done remove"), "its directory is what is left");
    computer.comes_up("all removed, then up");
    assert_eq!((size(&computer).0, computer.dir().spec().lineage.is_empty()), (2, true));
}

/// Certificates: whatever was cut off, every node ends with what is kept here and runs with it.
#[test]
fn certificates_renewed_are_in_use_everywhere_wherever_that_was_cut_off() {
    let place = place();
    let old = whole(&place.path().join("whole"));
    let serials = |computer: &Computer| -> Vec<Vec<u8>> {
        let dir = computer.dir();
        let certs = dir.load_plan().expect("readable").expect("a plan").certs;
        certs.iter().map(|cert| std::fs::read(dir.pki().join(format!("{}.pem", cert.id))).expect("a certificate")).collect()
    };
    let first = serials(&old);
    let points = old.copied(&place.path().join("counted")).points("renew");
    assert!(points.len() > 60, "{}", points.len());
    each(&points, |point, at| {
        let about = format!("renew killed at {point}");
        let cut = old.copied(&at.join("cut"));
        assert!(cut.killed("renew", point), "{about}");
        cut.comes_up(&format!("{about}, up"));
        go(&cut, "renew");
        cut.comes_up(&format!("{about}, up, renew"));
        assert!(serials(&cut).iter().all(|now| !first.contains(now)), "{about}: all are new");
    });
    println!("{}", told("certs renew", &points));
}
