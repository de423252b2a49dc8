//! Whole clusters of fake machines: in which order they go off, what is said of each, what wakes up.

use super::power::{Power, Whole};
use super::*;
use crate::guest::fake::{FakeGuests, Reply};
use crate::host::fake::{FakeHost, Strike};
use crate::host::{DomainState, Host, Mark};
use crate::plan::{Plan, samples};
use crate::spec::NodeName;
use crate::store::journal::{self, Journal};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

struct Lab {
    host: Arc<FakeHost>,
    machines: Machines,
    dir: tempfile::TempDir,
}

fn sample(etcd: u64, workers: u64) -> Arc<Plan> {
    Arc::new(samples::plan("lab", etcd, workers, samples::kvm()))
}

/// All machines defined and running.
fn lab(etcd: u64, workers: u64) -> Lab {
    let (plan, host) = (sample(etcd, workers), Arc::new(FakeHost::new()));
    let mark = Mark { cluster: plan.cluster.clone(), instance: Uuid::from_u128(7), state_dir: "/state/lab".into() };
    host.ensure_pools(&plan.storage, &mark).expect("pools");
    for node in &plan.nodes {
        host.ensure_domain(&node.domain, &plan.storage, &node.name, &mark).expect("defined");
        host.set_state(&node.domain.name, DomainState::Running).expect("running");
    }
    let machines = Machines { plan, host: host.clone(), mark };
    Lab { host, machines, dir: tempfile::tempdir().expect("dir") }
}

impl Lab {
    /// Nodes that obey `systemctl poweroff`, but those of `deaf`, which do not answer at all.
    fn guests(&self, deaf: Vec<NodeName>) -> (FakeGuests, Arc<Mutex<Vec<String>>>) {
        let (host, plan, heard) = (self.host.clone(), self.machines.plan.clone(), Arc::new(Mutex::new(Vec::new())));
        let said = heard.clone();
        let guests = FakeGuests::new().with("", move |name, cmd| {
            if deaf.contains(name) {
                return Reply::unreachable(name);
            }
            said.lock()
                .expect("free")
                .push(format!("{name}: {}", cmd.line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")));
            if cmd.line == "systemctl poweroff" {
                let domain = &plan.node(name).expect("a node").domain.name;
                host.set_state(domain, DomainState::ShutOff).expect("there");
                return Reply::lost(name, cmd);
            }
            Reply::ok("")
        });
        (guests, heard)
    }

    async fn stop(&self, guests: &FakeGuests, only: Option<&NodeName>) -> Result<Vec<Stopped>, LifeError> {
        let (journal, history) =
            Journal::open(&self.dir.path().join("journal.jsonl"), Uuid::from_u128(1), "stop").expect("opens");
        stop(&self.machines, guests, (&journal, &history), only, &|_| ()).await
    }

    fn whole(&self) -> Whole {
        Power::of(&self.machines.plan, &self.host.observe().expect("observed")).whole()
    }

    fn pending(&self) -> usize {
        journal::read(&self.dir.path().join("journal.jsonl")).expect("reads").pending().len()
    }
}

#[test]
fn workers_go_first_and_members_go_together() {
    let names = |names: &[NodeName]| names.to_vec();
    let controllers = [0, 1, 2].map(NodeName::controller);
    let workers = [0, 1].map(NodeName::worker);
    let all = waves(&sample(3, 2), None);
    assert_eq!(all, [Wave::PowerOff(names(&workers)), Wave::StopUnits(names(&controllers)), Wave::PowerOff(names(&controllers))]);
    assert_eq!(waves(&sample(1, 0), None).len(), 2, "no wave for workers that are not there");
    assert_eq!(waves(&sample(3, 2), Some(&controllers[1])), [Wave::PowerOff(names(&controllers[1..2]))]);
}

#[test]
fn a_quorum_is_given_up_only_by_those_who_have_none_or_stop_the_last() {
    let plan = sample(3, 1);
    let running = |names: &'static [u8]| move |node: &NodeName| names.iter().any(|i| *node == NodeName::controller(*i));
    assert_eq!(quorum_left(&plan, running(&[0, 1, 2]), &NodeName::controller(0)), Ok(()));
    assert_eq!(quorum_left(&plan, running(&[0, 1]), &NodeName::controller(0)), Err((1, 2)));
    assert_eq!(quorum_left(&plan, running(&[0]), &NodeName::controller(0)), Ok(()));
    assert_eq!(quorum_left(&plan, running(&[0, 1]), &NodeName::controller(2)), Ok(()), "it is off already");
    assert_eq!(quorum_left(&plan, running(&[0, 1, 2]), &NodeName::worker(0)), Ok(()));
    assert_eq!(quorum_left(&sample(1, 0), running(&[0]), &NodeName::controller(0)), Ok(()), "its only member");
}

#[tokio::test(start_paused = true)]
async fn all_end_cleanly_in_order_and_twice_is_once() {
    let lab = lab(3, 2);
    let (guests, heard) = lab.guests(Vec::new());
    let stopped = lab.stop(&guests, None).await.expect("stopped");
    assert!(stopped.len() == 5 && stopped.iter().all(|one| one.how == How::Clean), "{stopped:?}");
    let heard = heard.lock().expect("free").clone();
    let at = |part: &str| heard.iter().position(|line| line.contains(part)).expect(part);
    assert!(at("worker-1: systemctl poweroff") < at("controller-0: systemctl stop"), "{heard:?}");
    assert!(at("controller-2: systemctl stop") < at("controller-0: systemctl poweroff"), "{heard:?}");
    assert_eq!((lab.whole(), lab.pending()), (Whole::Off, 0));
    let again = lab.stop(&guests, None).await.expect("stopped");
    assert!(again.iter().all(|one| one.how == How::WasOff), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_has_its_button_pressed_and_who_does_not_obey_loses_power() {
    let lab = lab(3, 0);
    let deaf = NodeName::controller(1);
    let (guests, _) = lab.guests(vec![deaf.clone()]);
    let stopped = lab.stop(&guests, None).await.expect("stopped");
    let how = |node: &NodeName| stopped.iter().find(|one| one.node == *node).map(|one| (one.how, one.why.is_some()));
    assert_eq!(how(&deaf), Some((How::Acpi, true)));
    assert_eq!(how(&NodeName::controller(0)), Some((How::Clean, false)));

    let lab = self::lab(1, 0);
    // It says yes and stays.
    let guests = FakeGuests::new().on("", "");
    let stopped = lab.stop(&guests, None).await.expect("stopped");
    assert!(stopped[0].how == How::PowerCut && stopped[0].why.as_ref().is_some_and(|why| why.contains("running")), "{stopped:?}");
    assert_eq!((lab.whole(), lab.pending()), (Whole::Off, 0));
}

/// Why a node did not go by itself is kept and shown: it is the node's own word.
#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_and_shouts_is_told_in_a_line() {
    let lab = lab(1, 0);
    let flood = format!("\u{1b}[2Jno\n{}", "x".repeat(1 << 20));
    let stopped = lab.stop(&FakeGuests::new().on("", Reply::exit(1, "", flood)), None).await.expect("stopped");
    let why = stopped[0].why.as_ref().expect("it was not clean");
    assert!(why.starts_with("systemctl poweroff: [2Jno xx") && why.len() < 400, "{} bytes", why.len());
}

#[tokio::test(start_paused = true)]
async fn a_paused_machine_is_let_go_on_to_hear_that_it_is_to_stop() {
    let lab = lab(3, 0);
    lab.machines.suspend(lab.machines.nodes(None)).await.expect("suspended");
    assert_eq!(lab.whole(), Whole::Paused);
    let (guests, _) = lab.guests(Vec::new());
    let stopped = lab.stop(&guests, None).await.expect("stopped");
    assert!(stopped.iter().all(|one| one.how == How::Clean), "{stopped:?}");
}

/// libvirt fails anywhere: the error names the machine, and a second stop ends with all off and nothing open.
#[tokio::test(start_paused = true)]
async fn a_stop_that_fails_anywhere_is_finished_by_the_next() {
    for strike in [Strike::Before, Strike::After] {
        for k in 1..=2 {
            let lab = lab(3, 0);
            let (guests, _) = lab.guests(vec![NodeName::controller(0), NodeName::controller(2)]);
            lab.host.fail_at(k, strike);
            let error = lab.stop(&guests, None).await.expect_err("told to fail");
            assert!(error.to_string().contains("lab-controller-"), "{error}");
            lab.stop(&guests, None).await.expect("stopped");
            assert_eq!((lab.whole(), lab.pending()), (Whole::Off, 0), "{strike:?} {k}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_are_frozen_and_woken_together_and_those_that_are_off_stay_off() {
    let lab = lab(3, 1);
    lab.host.set_state("lab-worker-0", DomainState::ShutOff).expect("there");
    lab.machines.suspend(lab.machines.nodes(None)).await.expect_err("one is off");
    let asleep = Power::of(&lab.machines.plan, &lab.host.observe().expect("observed"));
    assert_eq!(asleep.whole(), Whole::Mixed("3 paused, 1 off".into()));
    assert_eq!(asleep.not_running().count(), 4);
    let controllers: Vec<_> = lab.machines.plan.controllers().cloned().collect();
    let (woken, _) = lab.machines.resume(controllers.clone()).await.expect("resumed");
    assert_eq!(woken, [0, 1, 2].map(NodeName::controller));
    assert_eq!(lab.machines.resume(controllers).await.expect("resumed").0, [], "they run already");
    assert!(lab.whole().to_string().contains("1 off"), "{}", lab.whole());
}

#[tokio::test(start_paused = true)]
async fn clocks_are_moved_by_what_they_are_off_and_a_silent_node_is_named() {
    let plan = sample(3, 0);
    let now: fn() -> jiff::Timestamp = || jiff::Timestamp::from_second(1_795_000_000).expect("a time");
    let behind = Arc::new(Mutex::new(60.0_f64));
    let (dated, moved) = (behind.clone(), behind.clone());
    let late = NodeName::controller(0);
    let guests = FakeGuests::new()
        .on_node(&NodeName::controller(2), "", Reply::unreachable(&NodeName::controller(2)))
        .on_node(&NodeName::controller(1), crate::guest::clock::DATE, "1795000000.000000000\n")
        .with(crate::guest::clock::DATE, move |_, _| {
            let at = 1_795_000_000.0 - *dated.lock().expect("free");
            Reply::ok(format!("{}.000000000\n", at as i64))
        })
        .with("python3", move |_, cmd| {
            let by: f64 =
                cmd.line.rsplit("+ (").next().and_then(|t| t.split(')').next()).and_then(|t| t.parse().ok()).expect("a shift");
            *moved.lock().expect("free") -= by;
            Reply::ok("")
        });
    let names: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    let shifts = repair(&plan, &guests, now, &names).await;
    assert_eq!(shifts[0].1, Ok(Shift { node: late, by_ms: 60_000, left_ms: 0 }));
    assert_eq!(shifts[1].1, Ok(Shift { node: NodeName::controller(1), by_ms: 0, left_ms: 0 }));
    assert!(shifts[2].1.as_ref().is_err_and(|why| why.contains("controller-2")), "{shifts:?}");
    assert_eq!(guests.forgotten().len(), 3, "what was connected before is dead");
}

/// Killed at any place between the suspend and the setting of clocks, it is in the journal until somebody has set them.
#[test]
fn a_run_cut_off_before_the_clocks_were_set_leaves_word_of_it() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("journal.jsonl");
    let one = NodeName::controller(1);
    let (journal, history) = Journal::open(&path, Uuid::from_u128(1), "resume").expect("opens");
    assert_eq!(late(&history), []);
    journal.begin(RESUME, Some(&one)).expect("written");
    journal.begin(WAKE, None).expect("written");
    journal.failed(WAKE, None, "one of three would not").expect("written");
    journal.begin("stop controller-0", None).expect("written");
    let history = journal::read(&path).expect("reads");
    assert_eq!(late(&history), [(RESUME.to_owned(), Some(one.clone())), (WAKE.to_owned(), None)]);
    in_time(&journal, &history).expect("written");
    assert_eq!(late(&journal::read(&path).expect("reads")), []);

    let states = [(0, DomainState::Running), (1, DomainState::Running), (2, DomainState::ShutOff)];
    let power = Power(states.map(|(i, state)| (NodeName::controller(i), Some(state))).to_vec());
    assert_eq!(to_be_set(false, std::slice::from_ref(&one), &power), std::slice::from_ref(&one));
    assert_eq!(to_be_set(true, &[], &power), [NodeName::controller(0), one], "who was woken before runs, and is late");
}
