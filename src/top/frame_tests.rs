//! Pictures of clusters that are well, broken, and larger than the screen.

use super::super::state::{Etcd, changes};
use super::*;
use jiff::Timestamp;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::collections::{BTreeMap, VecDeque};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_571_940 + second).expect("a time")
}

fn node(index: usize) -> Node {
    let units = ["etcd", "kube-apiserver", "kube-scheduler"].map(|unit| (unit.to_owned(), "active".to_owned()));
    let (leads, index_of) = (index == 1, 1234 - u64::try_from(index).expect("small"));
    Node {
        name: format!("controller-{index}"),
        member: true,
        control_plane: true,
        machine: "running".to_owned(),
        units: Heard::Said(units.into_iter().collect()),
        holds_vip: index == 0,
        etcd: Heard::Said(Etcd {
            leads,
            learner: false,
            follows: true,
            term: 7,
            index: index_of,
            db_bytes: 5 << 20,
            errors: vec![],
        }),
        api: Heard::Said(Ok(12)),
        ready: Heard::Unasked,
    }
}

fn worker() -> Node {
    let units = BTreeMap::from([("kubelet".to_owned(), "active".to_owned())]);
    let (units, ready, api) = (Heard::Said(units), Heard::Said(true), Heard::Unasked);
    Node {
        name: "worker-0".to_owned(),
        member: false,
        control_plane: false,
        units,
        ready,
        api,
        etcd: Heard::Unasked,
        holds_vip: false,
        ..node(9)
    }
}

fn state() -> State {
    let holder = |holder: &str| Some(holder.to_owned());
    State {
        cluster: "ktcw".to_owned(),
        vip: "192.168.77.10".to_owned(),
        at: at(0),
        nodes: vec![node(0), node(1), node(2), worker()],
        leases: BTreeMap::from([
            ("kube-controller-manager".to_owned(), holder("controller-2")),
            ("kube-scheduler".to_owned(), holder("controller-1")),
        ]),
        open: vec![],
        events: VecDeque::new(),
    }
}

/// As a terminal of that size would show it.
fn shown(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|shown| super::super::screen::paint(state, shown)).expect("drawn");
    plain(terminal.backend().buffer())
}

#[test]
fn a_cluster_that_is_well_fits_a_small_terminal() {
    insta::assert_snapshot!("well", shown(&state(), 80, 24));
}

#[test]
fn what_is_broken_is_said_where_it_is() {
    let mut broken = state();
    broken.nodes[0].machine = "paused".to_owned();
    broken.nodes[0].stands_still();
    broken.nodes[1].etcd = Heard::Silent;
    broken.nodes[1].api = Heard::Silent;
    broken.nodes[1].units = Heard::Silent;
    if let Heard::Said(units) = &mut broken.nodes[2].units {
        units.insert("kube-scheduler".to_owned(), "failed".to_owned());
    }
    broken.nodes[2].api = Heard::Said(Err("etcd failed".to_owned()));
    broken.nodes[3].ready = Heard::Said(false);
    broken.leases.insert("kube-scheduler".to_owned(), None);
    broken.open = vec!["drill leader-kill".to_owned()];
    broken.at = at(60);
    insta::assert_snapshot!("broken", shown(&broken.after(&state()), 80, 24));
}

/// Whatever the size, nothing panics and what fits is shown.
#[test]
fn every_size_is_painted() {
    let mut many = state();
    many.nodes = (0..60).map(|i| Node { name: format!("worker-{i}"), ..worker() }).collect();
    many.events = (0..200).map(|i| (at(i), format!("event {i}"))).collect();
    for (width, height) in [(1, 1), (10, 3), (80, 24), (40, 100), (200, 60)] {
        let text = shown(&many, width, height);
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
        assert!(text.lines().count() <= usize::from(height).max(1), "{text}");
    }
    assert!(shown(&many, 80, 100).contains("event 199"));
}

#[test]
fn changes_are_told_once_and_only_when_both_sides_are_known() {
    let before = state();
    assert_eq!(changes(&before, &before), Vec::<String>::new());
    let mut now = before.clone();
    for (i, node) in now.nodes.iter_mut().take(3).enumerate() {
        if let Heard::Said(etcd) = &mut node.etcd {
            etcd.leads = i == 2;
            etcd.term = 8;
        }
        node.holds_vip = i == 1;
    }
    if let Heard::Said(etcd) = &mut now.nodes[0].etcd {
        etcd.errors = vec!["alarm:NOSPACE".to_owned()];
    }
    assert_eq!(
        changes(&before, &now),
        [
            "etcd: controller-2 leads in term 8, before it controller-1",
            "controller-0: etcd: alarm:NOSPACE",
            "the API's address is on controller-1, before on controller-0"
        ]
    );
    // The first picture of all is no change.
    let mut unknown = before.clone();
    unknown.nodes.iter_mut().for_each(|node| {
        node.machine.clear();
        node.stands_still();
    });
    unknown.leases.clear();
    assert_eq!(changes(&unknown, &before), Vec::<String>::new());
    let silent = |mut state: State| {
        state.nodes[1].etcd = Heard::Silent;
        state
    };
    assert_eq!(
        changes(&before, &silent(before.clone())),
        ["etcd: nobody leads (controller-1 did)", "controller-1: etcd is silent"]
    );
    assert_eq!(
        changes(&silent(before.clone()), &before),
        ["etcd: controller-1 leads in term 7", "controller-1: etcd answers again"]
    );
}

#[test]
fn old_events_go() {
    let mut last = state();
    for i in 0..300 {
        let mut next = State { at: at(i), ..last.clone() };
        next.nodes[0].machine = if i % 2 == 0 { "paused" } else { "running" }.to_owned();
        last = next.after(&last);
    }
    assert_eq!(last.events.len(), 100);
}
