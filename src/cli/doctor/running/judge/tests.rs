//! A healthy cluster passes, and each ailment is named alone, with the command that helps.

use super::super::read;
use super::*;
use crate::host::VolumeSeen;
use crate::host::{HostFacts, PoolSeen};
use crate::lab::{Book, Open, Phase};
use crate::pki::check::Row;
use crate::plan::samples;
use crate::spec::Role;
use crate::store::journal::{self, History, Journal};

fn sample() -> Plan {
    samples::plan("ktcw", 1, 1, samples::kvm())
}

fn row(id: &str, days_left: i64) -> Row {
    Row {
        id: id.to_owned(),
        ca: crate::plan::Ca::Etcd,
        node: None,
        subject: String::new(),
        usages: Vec::new(),
        sans: Vec::new(),
        not_before: jiff::Timestamp::UNIX_EPOCH,
        not_after: jiff::Timestamp::UNIX_EPOCH,
        days_left,
        serial: String::new(),
    }
}

fn healthy(plan: &Plan) -> Facts {
    let node = |role: Role| NodeFacts {
        silent: None,
        clock: Some((0.02, 0.01)),
        disks: vec![("/".to_owned(), 10 << 30, 1 << 30)],
        etcd: (role == Role::Controller).then_some(Ok((4 << 20, String::new()))),
        others: Some(BTreeSet::new()),
    };
    Facts {
        nodes: plan.nodes.iter().map(|one| (one.name.clone(), node(one.role))).collect(),
        certs: vec![row("a", 300), row("b", 200)],
        history: History::default(),
        labs: Book::default(),
        host: HostFacts {
            uri: String::new(),
            libvirt_version: String::new(),
            qemu_version: String::new(),
            emulator: String::new(),
            kvm_listed: true,
            memory_mib: 16000,
            free_memory_mib: 8000,
            cpus: 2,
        },
        free_disk_mib: Some(50_000),
        pool: None,
        snapshots: Vec::new(),
    }
}

#[test]
fn what_members_bear_is_said_as_a_number_of_failures() {
    let said = |members| tolerated(members);
    assert_eq!(said(1), "1 etcd member tolerates no failure");
    assert_eq!(said(3), "3 etcd members tolerate 1 failure");
    assert_eq!(said(4), "4 etcd members tolerate 1 failure");
    assert_eq!(said(5), "5 etcd members tolerate 2 failures");
}

fn bad(plan: &Plan, facts: &Facts) -> Vec<(&'static str, State3)> {
    let lines = judge(plan, facts).expect("judged");
    assert!(lines.iter().all(|line| (line.state == State3::Pass) == line.next.is_none()), "{lines:?}");
    lines.into_iter().filter(|line| line.state != State3::Pass).map(|line| (line.what, line.state)).collect()
}

#[test]
fn a_healthy_cluster_passes_and_each_ailment_is_named_alone() {
    let plan = sample();
    assert_eq!(bad(&plan, &healthy(&plan)), []);
    let controller = NodeName::controller(0);
    type Harm = Box<dyn Fn(&mut Facts)>;
    let of = |harm: fn(&mut NodeFacts)| -> Harm {
        let node = controller.clone();
        Box::new(move |facts| harm(facts.nodes.get_mut(&node).expect("there")))
    };
    let cases: Vec<(Harm, &str, State3)> = vec![
        (of(|node| node.clock = Some((0.7, 0.0))), "clock", State3::Warn),
        (of(|node| node.clock = Some((-7.0, 0.1))), "clock", State3::Fail),
        (of(|node| node.clock = None), "clock", State3::Fail),
        (of(|node| node.disks[0].2 = 9 << 30), "disk", State3::Warn),
        (of(|node| node.disks[0].2 = 10 << 30), "disk", State3::Fail),
        (of(|node| node.disks.clear()), "disk", State3::Fail),
        (of(|node| node.etcd = Some(Ok((1600 << 20, String::new())))), "etcd quota", State3::Fail),
        (of(|node| node.etcd = Some(Err("refused".into()))), "etcd", State3::Fail),
        (of(|node| node.etcd = Some(Ok((1, "memberID:1 alarm:NOSPACE".into())))), "alarms", State3::Fail),
        (of(|node| node.others = None), "certificates", State3::Fail),
        (of(|node| node.others = Some(BTreeSet::from(["/etc/etcd/pki/peer.pem".into()]))), "certificates", State3::Warn),
        (of(|node| node.silent = Some("no SSH".into())), "answer", State3::Fail),
        (Box::new(|facts| facts.certs[0].days_left = 20), "certificates", State3::Warn),
        (Box::new(|facts| facts.certs[0].days_left = -1), "certificates", State3::Fail),
        (Box::new(|facts| facts.certs.clear()), "certificates", State3::Fail),
        (Box::new(|facts| facts.host.free_memory_mib = 1000), "host memory", State3::Warn),
        (Box::new(|facts| facts.free_disk_mib = Some(500)), "host disk", State3::Fail),
        (Box::new(|facts| facts.free_disk_mib = None), "host disk", State3::Warn),
    ];
    for (i, (harm, what, state)) in cases.into_iter().enumerate() {
        let mut facts = healthy(&plan);
        harm(&mut facts);
        assert_eq!(bad(&plan, &facts), [(what, state)], "case {i}");
    }
    let mut facts = healthy(&plan);
    let volume = VolumeSeen { name: "v".into(), capacity: 20 << 30, allocation: 1 << 30, path: String::new() };
    facts.pool = Some(PoolSeen {
        name: plan.storage.pool.clone(),
        uuid: plan.storage.pool_uuid,
        active: true,
        volumes: vec![volume],
        available: Some(2 << 30),
        mark: None,
    });
    assert_eq!(bad(&plan, &facts), [("host disk", State3::Warn)]);
}

/// What a run leaves that has begun these steps, and ended none.
fn begun(steps: &[&str]) -> History {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("journal.jsonl");
    let (journal, _) = Journal::open(&path, crate::store::draw_id(), "test").expect("opens");
    for step in steps {
        journal.begin_with(step, None, serde_json::json!({ "snapshot": "lab-lost-quorum" })).expect("written");
    }
    journal::read(&path).expect("reads")
}

fn of_lab(phase: Phase) -> Book {
    let lab = crate::lab::catalogue::labs(None).expect("built in").swap_remove(0);
    let begun = jiff::Timestamp::UNIX_EPOCH;
    let open = Open { lab, phase, seed: 1, hit: vec![], begun, hints: 0, looks: 0, best: 0, solved: None };
    Book { open: Some(open), ..Book::default() }
}

#[test]
fn what_was_cut_off_is_sent_to_the_verb_that_ends_it() {
    let plan = sample();
    let told = |steps: &[&str], labs: Book| {
        let facts = Facts { history: begun(steps), labs, ..healthy(&plan) };
        let lines = judge(&plan, &facts).expect("judged");
        let line = lines.into_iter().find(|line| line.what == "cut off").expect("there");
        (line.state, line.next.unwrap_or_default())
    };
    let none = Book::default;
    let cases: [(&[&str], &str); 6] = [
        (&["start worker-0"], "up"),
        (&["save one", "snapshot suspend"], "up"),
        (&["resume"], "resume"),
        (&["snapshot wake"], "resume"),
        (&["clocks"], "resume"),
        (&["remove"], "down"),
    ];
    for (steps, next) in cases {
        assert_eq!(told(steps, none()), (State3::Warn, format!("ktcw-vm {next} -c ktcw")), "{steps:?}");
    }
    let (state, next) = told(&["fork"], none());
    assert_eq!((state, next.starts_with("ktcw-vm down -c ktcw, then fork again")), (State3::Fail, true), "{next}");
    let faults = ["lab lost-quorum"];
    assert_eq!(told(&faults, of_lab(Phase::Breaking)), (State3::Warn, "ktcw-vm lab reset -c ktcw".to_owned()));
    assert_eq!(told(&faults, none()), (State3::Pass, String::new()), "that lab is over");
    let back = ["restore", "snapshot revert"];
    assert_eq!(told(&back, of_lab(Phase::Rewinding)), (State3::Fail, "ktcw-vm lab reset -c ktcw".to_owned()));
    assert_eq!(told(&back, none()), (State3::Fail, "ktcw-vm snapshot restore lab-lost-quorum -c ktcw".to_owned()));
}

#[test]
fn a_lab_is_a_fault_that_somebody_asked_for() {
    let plan = sample();
    for (phase, said) in [
        (Phase::Open, "lab lost-quorum is open: its faults are in force until they are mended"),
        (Phase::Breaking, "the start of lab lost-quorum was cut off"),
        (Phase::Rewinding, "lab lost-quorum was being closed, and that was cut off or did not end well"),
    ] {
        let facts = Facts { labs: of_lab(phase), ..healthy(&plan) };
        assert_eq!(bad(&plan, &facts), [("lab", State3::Warn)]);
        let lines = judge(&plan, &facts).expect("judged");
        let line = lines.iter().find(|line| line.what == "lab").expect("there");
        assert!(
            line.said == said && line.next.as_ref().is_some_and(|next| next.contains("ktcw-vm lab reset -c ktcw")),
            "{line:?}"
        );
    }
}

/// Of etcd's own disk nothing is freed by the journal, which is on the other one; and no flag of ours goes to the node.
#[test]
fn a_full_disk_is_answered_by_what_can_free_it() {
    let plan = sample();
    let next = |at: &str, store: u64| {
        let mut facts = healthy(&plan);
        let node = facts.nodes.get_mut(&NodeName::controller(0)).expect("there");
        (node.disks, node.etcd) = (vec![(at.to_owned(), 2000 << 20, 1990 << 20)], Some(Ok((store, String::new()))));
        let lines = judge(&plan, &facts).expect("judged");
        lines.into_iter().find(|line| line.what == "disk" && line.state == State3::Fail).and_then(|line| line.next)
    };
    let said = |rest: &str| Some(rest.to_owned());
    assert_eq!(next("/", 1), said("ktcw-vm -c ktcw ssh controller-0 -- journalctl --vacuum-size=100M"));
    let look = "ktcw-vm -c ktcw ssh controller-0 -- du -ah /var/lib/etcd";
    assert_eq!(next("/var/lib/etcd", 1), said(look));
    assert_eq!(next("/var/lib/etcd", 1200 << 20), said(&format!("{look}; ktcw-vm -c ktcw etcdctl defrag --cluster")));
}

#[test]
fn a_node_is_read_by_its_words_and_a_cut_answer_is_none() {
    let plan = sample();
    let node = plan.controllers().next().expect("one");
    let text = "df /dev/vda 10464022528 1046402252 9417620276 10% /\ndf /dev/vdc 2080374784 1024 2080373760 1% /var/lib/etcd\n\
                status [{\"Endpoint\":\"x\",\"Status\":{\"header\":{\"member_id\":1},\"dbSize\":20480}}]\nalarms \nend\n";
    let facts = read(text, node);
    assert_eq!((facts.disks.len(), facts.etcd.clone()), (2, Some(Ok((20480, String::new())))));
    assert_eq!(facts.disks[1], ("/var/lib/etcd".to_owned(), 2_080_374_784, 1024));
    assert!(read(&text[..60], node).silent.is_some());
    assert!(matches!(read("status Error: refused\nend\n", node).etcd, Some(Err(_))));
    assert_eq!(quota_bytes(&plan), Some(1_717_986_916));
}
