//! What is said of a failed way, with a host that has something to add.

use super::*;
use crate::guest::fake::{FakeGuests, Reply};
use crate::host::Mark;
use crate::host::fake::FakeHost;
use crate::plan::{Accel, samples};
use crate::secret::Secret;
use std::collections::BTreeMap;

fn sample() -> Arc<Plan> {
    Arc::new(samples::plan("lab", 1, 1, Accel::Tcg))
}

/// All machines defined and running.
fn host(plan: &Plan) -> (Arc<FakeHost>, Mark) {
    let host = Arc::new(FakeHost::new());
    let mark = Mark { cluster: plan.cluster.clone(), instance: uuid::Uuid::from_u128(7), state_dir: "/state/lab".to_owned() };
    host.ensure_pools(&plan.storage, &mark).expect("pools");
    for node in &plan.nodes {
        host.ensure_domain(&node.domain, &plan.storage, &node.name, &mark).expect("defined");
        host.set_state(&node.domain.name, DomainState::Running).expect("running");
    }
    (host, mark)
}

/// The pool runs full while SSH of a controller is awaited: QEMU pauses the machine, and all that `up` hears is silence.
#[tokio::test(start_paused = true)]
async fn a_machine_paused_by_a_full_disk_is_named_before_the_step_that_waited_for_it() {
    let place = tempfile::tempdir().expect("a directory");
    let plan = sample();
    let (host, mark) = host(&plan);
    let name = NodeName::controller(0);
    let (paused, domain) = (host.clone(), plan.node(&name).expect("planned").domain.name.clone());
    let guests = FakeGuests::new().with("true", move |node, _| {
        paused.set_state(&domain, DomainState::PausedIoError).expect("there");
        Reply::unreachable(node)
    });
    let now = jiff::Timestamp::from_second(1_795_000_000).expect("a time");
    let made = Keyring::ensure(&place.path().join("pki"), &plan.certs, &plan.kubeconfigs, now, Lifetimes::default());
    let keyring = made.expect("keys").0;
    let client = SshKey { private: Secret::new("none"), public: "none".to_owned() };
    let world = Arc::new(World {
        host: host.clone(),
        guest: Arc::new(guests),
        api: Arc::new(session::api(&keyring).expect("a client")),
        keyring,
        ssh: SshKeys { client, hosts: BTreeMap::new() },
        mark,
        clock: jiff::Timestamp::now,
        base: "base".into(),
        kernel: "kernel".into(),
        initrd: None,
    });
    let awaited = apply::Step {
        id: format!("ssh {name}"),
        stage: Stage::Machines,
        node: Some(name.clone()),
        action: apply::Action::AwaitSsh,
        after: Vec::new(),
    };
    let journal = Journal::open(&place.path().join("journal.jsonl"), crate::store::draw_id(), "up").expect("opened").0;
    let (events, _receiver) = Events::channel();
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let ran = apply::run(plan.clone(), vec![awaited], world, Arc::new(Mutex::new(journal)), events, stopped).await;
    let said = explain_seen(&plan, host.clone(), ran.expect_err("nobody answers")).await;
    let first = format!("{name}: the machine is paused: the host could not write to its disk (no space left?)\nssh {name}: ");
    assert!(said.message.starts_with(&first), "{}", said.text());
    let hint = said.hint.expect("what to do");
    assert!(hint.starts_with("free space where the pool lies (df -h), then: ktcw-vm -c lab up; "), "{hint}");
    assert!(hint.contains("ktcw-vm down -c lab"), "{hint}");
}

/// A host that has nothing to add, or is not there any more, takes nothing away.
#[tokio::test(start_paused = true)]
async fn where_all_machines_run_or_nobody_can_say_the_step_speaks_for_itself() {
    let plan = sample();
    let (host, _) = host(&plan);
    let failed = || {
        let error = crate::host::HostError::Missing { kind: "volume", name: "base".to_owned() }.into();
        ApplyError::Failed { failures: vec![apply::Failure { step: "disks".to_owned(), node: None, error }], done: 1, left: 2 }
    };
    let alone = explain(&plan, failed()).text();
    assert_eq!(explain_seen(&plan, host.clone(), failed()).await.text(), alone);
    host.set_state(&plan.nodes[0].domain.name, DomainState::PausedIoError).expect("paused");
    assert!(explain_seen(&plan, host.clone(), failed()).await.text().contains("df -h"));
    host.set_unreachable(true);
    assert_eq!(explain_seen(&plan, host, failed()).await.text(), alone);
}

/// `verify`, where no machine runs at all, says it as well: a machine that is let go on without room is paused again.
#[test]
fn verify_asks_for_room_before_a_machine_paused_by_a_full_disk_is_started() {
    let plan = sample();
    let (host, _) = host(&plan);
    let states = [DomainState::PausedIoError, DomainState::ShutOff];
    for (node, state) in plan.nodes.iter().zip(states) {
        host.set_state(&node.domain.name, state).expect("there");
    }
    let power = crate::life::power::Power::of(&plan, &host.observe().expect("seen"));
    let hints: Vec<_> = super::super::verify::asleep(&power, false, &plan.cluster).into_iter().map(|check| check.hint).collect();
    let back = "ktcw-vm start -c lab";
    assert_eq!(hints, [Some(format!("free space where the pool lies (df -h), then: {back}")), Some(back.to_owned())]);
}
