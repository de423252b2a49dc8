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

/// Seven controllers and fifty workers, the largest there is.
fn largest() -> State {
    let mut all = state();
    all.nodes = (0..7).map(node).collect();
    all.nodes.extend((0..50).map(|i| Node { name: format!("worker-{i}"), ..worker() }));
    all
}

/// Nodes in the table, from the top.
fn listed(text: &str) -> Vec<&str> {
    let is_node = |word: &&str| {
        let parts = word.split_once('-');
        parts.is_some_and(|(role, index)| ["controller", "worker"].contains(&role) && index.parse::<u8>().is_ok())
    };
    text.lines().filter_map(|line| line.split(' ').next()).filter(is_node).collect()
}

#[test]
fn what_does_not_fit_is_counted() {
    let text = shown(&largest(), 80, 24);
    let names = listed(&text);
    assert_eq!((names.len(), names[0], names[15]), (16, "controller-0", "worker-8"), "{text}");
    assert!(text.contains("\n… and 41 more, all well\n"), "{text}");
    assert!(text.contains("API's address: controller-0"), "what stands below the table is not pushed out: {text}");
    assert!(!shown(&largest(), 80, 100).contains("more"), "all of it fits");
}

#[test]
fn who_is_not_well_is_never_left_out_for_who_is() {
    let mut broken = largest();
    broken.nodes[40].ready = Heard::Said(false);
    broken.nodes[50].machine = "paused".to_owned();
    broken.nodes[50].stands_still();
    broken.nodes[6].api = Heard::Silent;
    broken.nodes[56].units = Heard::Unasked;
    let text = shown(&broken, 80, 24);
    assert_eq!(listed(&text)[..5], ["controller-6", "worker-33", "worker-43", "worker-49", "controller-0"], "{text}");
    assert!(text.contains("… and 41 more, all well"), "{text}");
    for node in &mut broken.nodes[20..] {
        node.ready = Heard::Said(false);
    }
    let text = shown(&broken, 80, 24);
    assert!(text.contains("… and 41 more, 22 of them not well"), "{text}");
    for node in &mut broken.nodes {
        node.stands_still();
        node.machine.clear();
    }
    let text = shown(&broken, 80, 24);
    assert!(text.contains("… and 41 more, 41 of them not known"), "nothing was asked yet: {text}");
}

#[test]
fn one_picture_for_a_file_has_every_node() {
    let mut all = largest();
    all.nodes[56].ready = Heard::Said(false);
    all.open = vec!["drill leader-kill".to_owned()];
    let text = plain(&frame(&all, 80, height_of_all(&all)));
    let names = listed(&text);
    assert_eq!((names.len(), names[56]), (57, "worker-49"), "in their own order: {text}");
    assert!(text.contains("in force: drill leader-kill") && !text.contains("more"), "{text}");
}

/// A node, what happens to it, and how it stands then.
type Case<'a> = (&'a Node, fn(&mut Node), Standing);

#[test]
fn a_node_is_well_when_all_that_was_asked_of_it_is() {
    let well = [node(0), worker()];
    assert!(well.iter().all(|node| node.standing() == Standing::Well));
    let [controller, worker] = well;
    let of = |node: &Node, change: fn(&mut Node)| {
        let mut changed = node.clone();
        change(&mut changed);
        changed.standing()
    };
    let alarmed: fn(&mut Node) = |node| {
        if let Heard::Said(etcd) = &mut node.etcd {
            etcd.errors = vec!["alarm:NOSPACE".to_owned()];
        }
    };
    let cases: [Case<'_>; 10] = [
        (&controller, alarmed, Standing::Unwell),
        (&controller, |node| node.etcd = Heard::Silent, Standing::Unwell),
        (&controller, |node| node.etcd = Heard::Unasked, Standing::Unknown),
        (&controller, |node| node.api = Heard::Said(Err("etcd failed".to_owned())), Standing::Unwell),
        (&controller, |node| node.machine = "?".to_owned(), Standing::Unknown),
        (&controller, |node| node.machine = "off".to_owned(), Standing::Unwell),
        (&worker, |node| node.units = Heard::Silent, Standing::Unwell),
        (&worker, |node| node.ready = Heard::Said(false), Standing::Unwell),
        // The API is silent, and not the node: another row says so.
        (&worker, |node| node.ready = Heard::Silent, Standing::Unknown),
        (&worker, |node| node.ready = Heard::Unasked, Standing::Unknown),
    ];
    for (node, change, expected) in cases {
        assert_eq!(of(node, change), expected, "{}", node.name);
    }
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
