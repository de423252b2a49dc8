//! The judge on a cluster with Kubernetes: pods and processes that should have stood by, and what the API has to keep.

use super::catalogue::{PodFate, Target};
use super::clock::At;
use super::judge::Result;
use super::judge_tests::{comes_out, judged, odd};
use super::kube::{ApiProbe, Door, KubeRecord, KubeSample, Lease, PodSeen};
use super::record::Record;
use super::target::WorkerView;
use crate::event::Verdict;
use crate::spec::NodeName;
use std::time::Duration;

fn pod(name: &str, node: &str, restarts: u64) -> PodSeen {
    PodSeen { uid: format!("uid-{name}"), name: format!("default/{name}"), node: node.to_owned(), restarts }
}

/// The sample on a cluster with Kubernetes: two workers, a pod each, and one that waits for a place.
fn with_pods(r: &mut Record) -> &mut KubeRecord {
    let worker = |i, pods| WorkerView { node: NodeName::worker(i), ready: true, pods };
    r.before.workers = vec![worker(0, 1), worker(1, 1)];
    let pods = vec![pod("a", "worker-0", 0), pod("b", "worker-1", 3), pod("waits", "", 0)];
    r.kube.insert(KubeRecord { pods_before: Some(Ok(pods.clone())), pods_after: Some(Ok(pods)), ..KubeRecord::default() })
}

fn after(kube: &mut KubeRecord) -> &mut Vec<PodSeen> {
    kube.pods_after.as_mut().expect("listed").as_mut().expect("a list")
}

#[test]
fn bystanders_that_did_not_stand_by_are_found() {
    use Result::{Fail, Invalid};
    let fine = judged(|r| {
        with_pods(r);
    });
    assert_eq!((odd(&fine), fine.result), (vec![], Result::Pass), "{:?}", fine.reasons);
    let seen = fine.checks.iter().find(|check| check.id == "I11").map(|check| check.seen.clone());
    assert_eq!(seen.as_deref(), Some("2 members, 2 other processes, 3 pods"));

    comes_out(Fail, "I11", Verdict::Fail, |r| after(with_pods(r))[1].restarts = 4);
    comes_out(Fail, "I11", Verdict::Fail, |r| {
        after(with_pods(r)).remove(0);
    });
    comes_out(Fail, "I11", Verdict::Fail, |r| after(with_pods(r)).push(pod("new", "worker-0", 0)));
    // The same name, made anew.
    comes_out(Fail, "I11", Verdict::Fail, |r| after(with_pods(r))[2].uid = "another".to_owned());
    comes_out(Fail, "I11", Verdict::Fail, |r| r.after.incarnations[2] = Some("restarted".to_owned()));
    comes_out(Fail, "I11", Verdict::Fail, |r| r.after.processes.as_mut().expect("seen")[1].incarnation = "another".to_owned());
    comes_out(Fail, "I11", Verdict::Fail, |r| {
        r.after.processes.as_mut().expect("seen").remove(2);
    });
    comes_out(Invalid, "I11", Verdict::Unknown, |r| with_pods(r).pods_before = Some(Err("timed out".to_owned())));
    comes_out(Invalid, "I11", Verdict::Unknown, |r| with_pods(r).pods_after = Some(Err("timed out".to_owned())));
    comes_out(Invalid, "I11", Verdict::Unknown, |r| with_pods(r).pods_after = None);
    comes_out(Invalid, "I11", Verdict::Unknown, |r| {
        let kube = with_pods(r);
        (kube.pods_before, kube.pods_after) = (Some(Ok(vec![])), Some(Ok(vec![])));
    });
    comes_out(Invalid, "I11", Verdict::Unknown, |r| r.after.incarnations[1] = None);
    comes_out(Invalid, "I11", Verdict::Unknown, |r| r.processes = Err("no SSH".to_owned()));
    // What is hit may restart: the leader's own server, and pods of a node that the fault is done to.
    let hit = judged(|r| r.after.processes.as_mut().expect("seen")[0].incarnation = "another".to_owned());
    assert_eq!(hit.result, Result::Pass, "{:?}", hit.reasons);
    let waived = judged(|r| {
        after(with_pods(r)).clear();
        r.drill.expect.waive = vec!["I11".to_owned()];
    });
    assert_eq!(waived.result, Result::Pass, "{:?}", waived.reasons);
}

pub(super) fn expect_all_of_the_api(r: &mut Record) {
    r.drill.target = Target::SchedulerHolder;
    r.before.lease_holders = [("kube-scheduler".to_owned(), r.chosen.nodes[0].clone())].into();
    let bound = |text: &str| text.parse().ok();
    r.drill.expect.api_gap = bound("3 s");
    r.drill.expect.takeover = bound("2 s");
    r.drill.expect.not_ready = Some(("1 s".parse().expect("a bound"), "2 s".parse().expect("a bound")));
    r.drill.expect.pods = Some(PodFate::Stay);
}

/// The sample as a drill of a node whose scheduler leads: probes answered but for 2.0–4.0 s, the lease taken at 3.5 s, the node
/// not Ready at 3.5 s.
fn with_api(r: &mut Record) -> &mut KubeRecord {
    with_pods(r);
    r.chosen.nodes = vec![NodeName::worker(0)];
    expect_all_of_the_api(r);
    r.script = super::script::Script::default();
    r.script.claims = vec![super::act::Claim::LeaderMoved { from: NodeName::controller(0) }];
    // The member that the sample kills is a bystander now.
    r.after.incarnations = r.incarnations.clone();
    r.drill.load.api = true;
    r.kube_back = Some(Ok(()));
    let kube = r.kube.as_mut().expect("just made");
    for at in (0..7000u64).step_by(50) {
        for (fresh, write) in [(true, false), (false, false), (false, true)] {
            let away = (2000..4000).contains(&at);
            kube.probes.push(ApiProbe {
                door: Door::Vip,
                fresh,
                write,
                sent: At(at * 1000),
                at: At(at * 1000 + 4000),
                error: away.then(|| "refused".to_owned()),
            });
        }
    }
    for at in (0..7000u64).step_by(500) {
        let holder = if at < 3500 { "worker-0_x" } else { "controller-1_y" };
        let lease = |holder: &str| Lease { holder: holder.to_owned(), ..Lease::default() };
        // The controller-manager's lease changes hands much earlier: it is not the one that is asked about.
        let other = if at < 2500 { "controller-0_x" } else { "controller-2_z" };
        kube.samples.push(KubeSample {
            at: At(at * 1000),
            leases: [("kube-scheduler".to_owned(), lease(holder)), ("kube-controller-manager".to_owned(), lease(other))].into(),
            nodes: [("worker-0".to_owned(), if at < 3500 { "True" } else { "Unknown" }.to_owned())].into(),
            error: None,
        });
    }
    r.kube.as_mut().expect("just made")
}

#[test]
fn gates_of_the_api_are_judged_by_what_was_seen() {
    use Result::Fail;
    // That units run is not that nodes are Ready and servers answer.
    comes_out(Fail, "kubernetes", Verdict::Fail, |r| {
        with_api(r);
        r.kube_back = Some(Err("worker-0 is not Ready".to_owned()));
    });
    comes_out(Result::Invalid, "kubernetes", Verdict::Unknown, |r| {
        with_api(r);
        r.kube_back = None;
    });
    let fine = judged(|r| {
        with_api(r);
    });
    assert_eq!((odd(&fine), fine.result), (vec![], Result::Pass), "{:?}", fine.reasons);
    let seen = |id: &str| fine.checks.iter().find(|check| check.id == id).map(|check| check.seen.clone()).unwrap_or_default();
    assert_eq!([seen("api-gap"), seen("takeover"), seen("not-ready")], ["2.05 s", "1.50 s", "1.50 s"]);
    let [kept_or_not, ..] = &fine.figures.api[..] else { panic!("windows: {:?}", fine.figures.api) };
    assert_eq!((kept_or_not.gap.length(), kept_or_not.median_us), (Duration::from_millis(2050), 4000));
    assert_eq!(fine.figures.api.len(), 3);

    comes_out(Fail, "api-gap", Verdict::Fail, |r| {
        with_api(r);
        r.drill.expect.api_gap = "2 s".parse().ok();
    });
    // Answers on kept connections do not make up for it, and neither does a run that ended too soon to tell.
    comes_out(Fail, "api-gap", Verdict::Fail, |r| {
        for probe in with_api(r).probes.iter_mut().filter(|probe| probe.fresh && probe.sent > At(4_800_000)) {
            probe.error = Some("refused".to_owned());
        }
        r.drill.expect.api_gap = "60 s".parse().ok();
    });
    comes_out(Fail, "takeover", Verdict::Fail, |r| {
        with_api(r);
        r.drill.expect.takeover = "1.2 s".parse().ok();
    });
    comes_out(Fail, "takeover", Verdict::Fail, |r| with_api(r).samples.retain(|sample| sample.at < At(3_500_000)));
    // The one that was killed comes back on its own node, under another identity: that is nobody else.
    let restarts = |r: &mut Record| {
        for sample in with_api(r).samples.iter_mut().filter(|sample| (At(2_500_000)..At(3_500_000)).contains(&sample.at)) {
            sample.leases.entry("kube-scheduler".to_owned()).or_default().holder = "worker-0_again".to_owned();
        }
    };
    let again = judged(restarts);
    let taken = again.checks.iter().find(|check| check.id == "takeover").map(|check| check.seen.as_str());
    assert_eq!((again.result, taken), (Result::Pass, Some("1.50 s")), "{:?}", again.reasons);
    comes_out(Fail, "takeover", Verdict::Fail, |r| {
        restarts(r);
        r.kube.iter_mut().for_each(|kube| kube.samples.retain(|sample| sample.at < At(3_500_000)));
    });
    comes_out(Result::Invalid, "takeover", Verdict::Unknown, |r| with_api(r).samples.retain(|s| s.at > At(2_000_000)));
    // Another held it when the fault came, and the first look said otherwise.
    comes_out(Result::Invalid, "V1", Verdict::Unknown, |r| {
        for sample in with_api(r).samples.iter_mut().filter(|sample| sample.at > At(1_400_000) && sample.at <= At(2_000_000)) {
            sample.leases.entry("kube-scheduler".to_owned()).or_default().holder = "controller-2_z".to_owned();
        }
    });
    comes_out(Fail, "not-ready", Verdict::Fail, |r| {
        with_api(r);
        r.drill.expect.not_ready = Some(("1.6 s".parse().expect("a bound"), "2 s".parse().expect("a bound")));
    });
    comes_out(Fail, "not-ready", Verdict::Fail, |r| {
        for sample in &mut with_api(r).samples {
            sample.nodes.insert("worker-0".to_owned(), "True".to_owned());
        }
    });
    comes_out(Fail, "pods", Verdict::Fail, |r| after(with_api(r))[0].restarts = 1);
    comes_out(Fail, "pods", Verdict::Fail, |r| {
        after(with_api(r)).remove(0);
    });
    comes_out(Fail, "pods", Verdict::Fail, |r| {
        with_api(r);
        r.drill.expect.pods = Some(PodFate::Restart);
    });
    let restarted = judged(|r| {
        after(with_api(r))[0].restarts = 1;
        r.drill.expect.pods = Some(PodFate::Restart);
    });
    assert_eq!(restarted.result, Result::Pass, "{:?}", restarted.reasons);
}
