//! Every lab is whole, every script is shell, and what is wrong with a file is said all at once.

use super::super::words::Scene;
use super::*;
use crate::plan::{Accel, samples};
use crate::spec::NodeName;
use std::io::Write as _;
use std::process::{Command, Stdio};

fn built_in() -> Vec<Lab> {
    labs(None).expect("the built-in labs are whole")
}

#[test]
fn all_labs_of_the_directory_are_built_in_and_promised_ones_are_there() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("labs");
    let mut files: Vec<String> = std::fs::read_dir(directory)
        .expect("labs/")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let mut known: Vec<String> = BUILT_IN.iter().map(|(file, _)| (*file).to_owned()).collect();
    known.sort();
    assert_eq!(files, known);
    for (lab, (file, _)) in built_in().iter().zip(BUILT_IN) {
        assert_eq!(format!("{}.toml", lab.name), file);
        assert!(lab.hints.len() >= 3, "{}: hints lead there step by step", lab.name);
        assert!(lab.solution.len() >= 2, "{}: the solution begins with looking", lab.name);
        assert!(lab.checks.len() >= 3, "{}: there is credit for a part", lab.name);
    }
}

#[test]
fn every_lab_satisfies_the_schema() {
    let schema = schema().to_value();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for (file, text) in BUILT_IN {
        let value: serde_json::Value = serde_json::to_value(toml::from_str::<toml::Value>(text).expect("TOML")).expect("JSON");
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{file}");
    }
    let mut broken = serde_json::to_value(&built_in()[0]).expect("JSON");
    broken["level"] = "guru".into();
    assert!(!validator.is_valid(&broken));
}

/// As they are sent, with what they are told in front. shellcheck where it is, bash in any case.
#[test]
fn every_script_is_shell() {
    let plan = samples::plan("ktcw", 3, 1, Accel::Tcg);
    let scene = Scene { plan: &plan, hit: &[NodeName::controller(1)] };
    let node = plan.node(&NodeName::controller(1));
    let checker = Command::new("shellcheck").arg("--version").output().is_ok();
    for lab in built_in() {
        let faults = lab.faults.iter().filter_map(|step| step.run.as_ref());
        for body in faults.chain(lab.checks.iter().map(|check| &check.run)) {
            let script = scene.script(node, jiff::Timestamp::UNIX_EPOCH, body);
            let parsed = Command::new("bash").args(["-n", "-c", &script]).output().expect("bash");
            assert!(parsed.status.success(), "{}: {body}", lab.name);
            if !checker {
                continue;
            }
            // Nobody follows where words lead: names of machines are words by design.
            let mut check = Command::new("shellcheck")
                .args(["--shell=bash", "--severity=warning", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("shellcheck");
            check.stdin.take().expect("piped").write_all(script.as_bytes()).expect("written");
            let said = check.wait_with_output().expect("ended");
            assert!(said.status.success(), "{}: {body}\n{}", lab.name, String::from_utf8_lossy(&said.stdout));
        }
    }
}

/// Scripts run here, with a file where the machine has its own: what only looks mended is not.
fn passes(lab: &str, what: &str, change: impl Fn(&str) -> String) -> bool {
    let plan = samples::plan("ktcw", 3, 1, Accel::Tcg);
    let lab = built_in().into_iter().find(|known| known.name == lab).expect("built in");
    let check = lab.checks.iter().find(|check| check.what.contains(what)).expect("a check");
    let scene = Scene { plan: &plan, hit: &[NodeName::worker(0)] };
    let script = scene.script(plan.node(&NodeName::worker(0)), jiff::Timestamp::now(), &change(&check.run));
    Command::new("bash").args(["-c", &script]).output().expect("bash").status.success()
}

#[test]
fn settings_that_are_gone_with_the_next_boot_do_not_count() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("kube-proxy.yaml");
    let judged = |mode: &str| {
        std::fs::write(&file, format!("mode: {mode}\n")).expect("written");
        passes("kube-proxy-rules", "next boot", |run| run.replace("/etc/kubernetes/kube-proxy.yaml", &file.display().to_string()))
    };
    assert!(judged("nftables") && judged("iptables") && !judged("userspace"));
}

#[test]
fn a_lease_counts_that_is_renewed_while_one_looks() {
    let kubectl = |text: &str| format!("n=0\nkubectl() {{ {text}; }}\nsleep() {{ n=$((n + 1)); }}\n");
    let judged = |text: &str| passes("scheduler-kubeconfig", "lease", |run| format!("{}{run}", kubectl(text)));
    assert!(!judged("date -u +%Y-%m-%dT00:00:00Z"), "renewed a moment ago, and never again");
    assert!(judged("echo \"$RANDOM$RANDOM\""));
}

fn wrong(change: impl FnOnce(&mut Lab)) -> String {
    let mut lab = built_in().swap_remove(0);
    change(&mut lab);
    problems(&lab).join("\n")
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let said = wrong(|lab| {
        lab.name = "My Lab".to_owned();
        lab.minutes = 0;
        lab.hints.clear();
        lab.checks[0].points = 0;
        lab.checks[1].seconds = 999;
        lab.solution.iter_mut().for_each(|step| step.run.clear());
        lab.faults[0].run = None;
        lab.story = " ".to_owned();
    });
    for part in [
        "name: \"My Lab\"",
        "minutes: 0",
        "hints: there is none",
        "check 1: points",
        "check 2: seconds: 999; accepted: 1 to 300",
        "no command",
        "fault 1: accepted: one of run, drill and expire",
        "story: it is empty",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert_eq!(wrong(|_| ()), "");
}

#[test]
fn a_drills_fault_hits_whom_a_drill_may_hit() {
    let partition = built_in().into_iter().find(|lab| lab.name == "partitioned-leader").expect("there");
    let said = problems(&Lab { hit: Target::Worker, ..partition }).join("\n");
    assert!(said.contains("fault 1: target: "), "{said}");
    let said = wrong(|lab| lab.faults[1].drill = Some(Fault::Freeze {}));
    assert!(said.contains("fault 2: accepted: one of"), "{said}");
}

/// On the smallest cluster that a lab takes its start finds somebody to hit, and on a smaller one it would not.
#[test]
fn what_a_lab_needs_is_enough_for_whom_it_hits() {
    use crate::drill::target::{ClusterView, Id, MemberView, WorkerView, choose};
    let view = |members: u8, workers: u8| ClusterView {
        members: (0..members)
            .map(|i| {
                let (node, id) = (NodeName::controller(i), Id(u64::from(i) + 1));
                MemberView { node, id, leader: i == 0, term: 1, reachable: true, db_bytes: 0 }
            })
            .collect(),
        workers: (0..workers).map(|i| WorkerView { node: NodeName::worker(i), ready: true, pods: 0 }).collect(),
        lease_holders: ["kube-controller-manager", "kube-scheduler"]
            .map(|lease| (lease.to_owned(), NodeName::controller(0)))
            .into(),
        vip_holder: Some(NodeName::controller(0)),
        ..ClusterView::default()
    };
    use Target::*;
    let of_members = [Leader, Follower, LeaderAndFollower, TwoFollowers, Minority, Majority, AllMembers];
    let of_others = [ControllerManagerHolder, SchedulerHolder, VipHolder, Worker, BusiestWorker, Everything];
    for hit in of_members.into_iter().chain(of_others) {
        let (members, workers) = least(hit);
        let of = |members, workers| Lab { hit, needs: Needs { members, workers }, ..built_in().swap_remove(7) };
        let draws = |lab: &Lab| choose(&as_drill(lab, Fault::Freeze {}), &view(lab.needs.members, lab.needs.workers), 1).is_ok();
        let enough = of(members, workers);
        assert!(problems(&enough).is_empty() && draws(&enough), "{}: {:?}", hit.as_str(), problems(&enough));
        let smaller = [(members > 1).then(|| of(members - 1, workers)), (workers > 0).then(|| of(members, workers - 1))];
        for short in smaller.into_iter().flatten() {
            let said = problems(&short).join("\n");
            assert!(!draws(&short) && said.contains(&format!("accepted with hit = \"{}\"", hit.as_str())), "{said}");
        }
    }
    let said = wrong(|lab| (lab.hit, lab.needs) = (Target::Follower, Needs::default()));
    assert_eq!(said, "needs.members: 1; accepted with hit = \"follower\": 2 to 7");
}

/// A lab's file says as little in vain as a drill's.
#[test]
fn a_drills_fault_has_its_own_options_and_no_others() {
    let (_, text) = BUILT_IN.iter().find(|(file, _)| *file == "partitioned-leader.toml").expect("there");
    let cut = "drill = { type = \"cut\", shape = \"isolate\" }";
    assert!(text.contains(cut) && parse(text).is_ok());
    let told = |fault: &str| parse(&text.replace(cut, &format!("drill = {fault}"))).expect_err(fault);
    assert!(told("{ type = \"cut\", shape = \"isolate\", seconds = 3 }").contains("unknown field `seconds`, expected "));
    assert!(told("{ type = \"freeze\", seconds = 3 }").contains("unknown field `seconds`; accepted: its type alone"));
    assert!(told("{ type = \"fill-quota\", room_mib = 4096 }").contains("fault.room_mib: 4096"));
    // A lab has no load: what a restore asks of one is no matter of it.
    let restore = text.replace(cut, "drill = { type = \"restore\" }").replace("hit = \"leader\"", "hit = \"all-members\"");
    assert!(!parse(&restore).err().unwrap_or_default().contains("load.keys"));
}

#[test]
fn a_directory_of_ones_own_is_read_beside_the_built_in_labs() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).expect("written");
    assert!(labs(Some(dir.path())).expect_err("empty").to_string().contains("no file that ends in .toml"));
    let own = BUILT_IN[0].1.replace("name = \"lost-quorum\"", "name = \"own\"");
    write("own.toml", &own);
    write("notes.txt", "no lab");
    let all = labs(Some(dir.path())).expect("fine");
    assert_eq!((all.len(), all.last().map(|lab| lab.name.as_str())), (BUILT_IN.len() + 1, Some("own")));
    write("twice.toml", BUILT_IN[0].1);
    write("typo.toml", &own.replace("points", "pionts"));
    write("bad.toml", "=");
    let said = labs(Some(dir.path())).expect_err("three problems").to_string();
    for part in ["there is another lab lost-quorum", "pionts", "bad.toml: "] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(labs(Some(Path::new("/nonexistent"))).expect_err("no directory").to_string().contains("--labs: /nonexistent: "));
}

#[test]
fn needs_are_said_in_words() {
    let needs = Needs { members: 3, workers: 1 };
    assert_eq!(needs.lacking(1, 1).as_deref(), Some("3 etcd members, the cluster has 1"));
    assert_eq!(needs.lacking(3, 0).as_deref(), Some("1 worker, the cluster has 0"));
    assert_eq!(needs.lacking(5, 2), None);
}
