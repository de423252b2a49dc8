//! What the facts of a running cluster come to: a line each, pass, warn or fail, and the next command to type.
//! `running` prints them.
//! Pure: thresholds are here, and nothing is asked.

use super::{Facts, Line, NodeFacts, State3};
use crate::cli::error::CliError;
use crate::cli::{fork, opened};
use crate::inject;
use crate::lab::Refused;
use crate::life;
use crate::plan::{Content, Plan};
use crate::snapshot::{self, State};
use crate::spec::NodeName;
use crate::store::journal::Entry;
use std::collections::BTreeSet;

/// The flag's value in etcd's planned definition.
fn quota_bytes(plan: &Plan) -> Option<u64> {
    let files = plan.controllers().flat_map(|node| &node.files);
    let texts = files.filter_map(|file| match &file.content {
        Content::Text { text } if file.path.ends_with("/etcd.container") => Some(text),
        _ => None,
    });
    let flag = |text: &String| {
        let rest = text.split("--quota-backend-bytes=").nth(1)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    texts.into_iter().find_map(flag)
}

/// Percent of a whole, rounded down; of nothing everything is used.
fn percent(used: u64, all: u64) -> u64 {
    used.saturating_mul(100).checked_div(all).unwrap_or(100)
}

const SOON_DAYS: i64 = 30;
/// Where a controller has its disk for etcd.
const ETCD_DISK: &str = "/var/lib/etcd";

pub(super) fn judge(plan: &Plan, facts: &Facts) -> Result<Vec<Line>, CliError> {
    let typed = |rest: &str| format!("ktcw-vm {rest} -c {}", plan.cluster);
    // What comes after these verbs is handed on, also a flag of ours.
    let inside = |rest: &str| format!("ktcw-vm -c {} {rest}", plan.cluster);
    let line = |what, node: Option<&NodeName>, state, said: String, next: String| Line {
        what,
        node: node.cloned(),
        state,
        said,
        next: (state != State3::Pass).then_some(next),
    };
    let grade = |warn: bool, fail: bool| match (warn, fail) {
        (_, true) => State3::Fail,
        (true, _) => State3::Warn,
        _ => State3::Pass,
    };
    let mut lines = Vec::new();
    for node in &plan.nodes {
        let silent = NodeFacts { silent: Some("it was not asked".to_owned()), ..NodeFacts::default() };
        let seen = facts.nodes.get(&node.name).unwrap_or(&silent);
        let name = Some(&node.name);
        if let Some(why) = &seen.silent {
            lines.push(line("answer", name, State3::Fail, why.clone(), typed("start")));
            continue;
        }
        match seen.clock {
            None => lines.push(line(
                "clock",
                name,
                State3::Fail,
                "it gave no time".to_owned(),
                inside(&format!("ssh {} -- date", node.name)),
            )),
            Some((ahead, uncertain)) => {
                let off = (ahead.abs() - uncertain).max(0.0);
                let said = format!("{:.2} s {} this computer's", ahead.abs(), if ahead < 0.0 { "behind" } else { "ahead of" });
                lines.push(line("clock", name, grade(off > 0.5, off > 1.0), said, typed("up")));
            }
        }
        if seen.disks.is_empty() {
            lines.push(line(
                "disk",
                name,
                State3::Fail,
                "df said nothing".to_owned(),
                inside(&format!("ssh {} -- df", node.name)),
            ));
        }
        for (at, all, used) in &seen.disks {
            let full = percent(*used, *all);
            let said = format!("{at}: {full} % of {} MiB used", all >> 20);
            let store = seen.etcd.as_ref().and_then(|etcd| etcd.as_ref().ok()).map_or(0, |(size, _)| *size);
            let next = match at.as_str() {
                ETCD_DISK => {
                    let look = inside(&format!("ssh {} -- du -ah {ETCD_DISK}", node.name));
                    // Old revisions go by themselves; their room in the file does not.
                    let defrag = format!("{look}; {}", inside("etcdctl defrag --cluster"));
                    if store > used / 2 { defrag } else { look }
                }
                _ => inside(&format!("ssh {} -- journalctl --vacuum-size=100M", node.name)),
            };
            lines.push(line("disk", name, grade(full >= 80, full >= 95), said, next));
        }
        match (&seen.etcd, quota_bytes(plan)) {
            (None, _) => {}
            (Some(Err(why)), _) => {
                lines.push(line(
                    "etcd",
                    name,
                    State3::Fail,
                    format!("no status: {why}"),
                    typed(&format!("logs {} etcd", node.name)),
                ));
            }
            (Some(Ok((size, _))), quota) => {
                let quota = quota.unwrap_or(2 << 30);
                let full = percent(*size, quota);
                let said = format!("{} MiB of a quota of {}: {full} %", size >> 20, quota >> 20);
                lines.push(line("etcd quota", name, grade(full >= 70, full >= 95), said, inside("etcdctl defrag --cluster")));
            }
        }
        match &seen.others {
            None => lines.push(line(
                "certificates",
                name,
                State3::Fail,
                "its files could not be compared".to_owned(),
                typed("certs check"),
            )),
            Some(others) if others.is_empty() => {}
            Some(others) => {
                let said = format!("{} are not those kept here", others.iter().cloned().collect::<Vec<_>>().join(", "));
                lines.push(line("certificates", name, State3::Warn, said, typed("certs renew")));
            }
        }
    }
    let alarms: BTreeSet<&str> = facts
        .nodes
        .values()
        .filter_map(|node| node.etcd.as_ref()?.as_ref().ok())
        .map(|(_, alarms)| alarms.as_str())
        .filter(|alarms| !alarms.is_empty())
        .collect();
    let raised: Vec<&str> = alarms.into_iter().collect();
    let said = if raised.is_empty() { "none raised".to_owned() } else { raised.join(" ") };
    let next = inside("etcdctl alarm list");
    lines.push(line("alarms", None, grade(false, !raised.is_empty()), said, next));
    lines.push(match facts.certs.iter().min_by_key(|row| row.days_left) {
        None => line("certificates", None, State3::Fail, "none can be read here".to_owned(), typed("certs list")),
        Some(first) => {
            let said = format!("{} is the first to end, in {} days", first.id, first.days_left);
            let next = typed(&format!("certs renew --within {SOON_DAYS}"));
            line("certificates", None, grade(first.days_left < SOON_DAYS, first.days_left < 1), said, next)
        }
    });
    let members = plan.controllers().count();
    let moving = plan.spec.lineage.in_motion();
    let said = match (moving, members % 2) {
        (true, _) => "a node is on its way in or out".to_owned(),
        (_, 0) => format!("{}, no more than {} would", tolerated(members), counted(members - 1, "member")),
        _ => tolerated(members),
    };
    let next = if moving { typed("up") } else { typed("node add --role etcd") };
    lines.push(line("members", None, grade(moving || members.is_multiple_of(2), false), said, next));
    let faults = inject::log::open(&facts.history).map_err(CliError::failed)?;
    let said = match faults.first() {
        None => "no drill has left one".to_owned(),
        Some(fault) => format!("that of drill {} (run {}) is in force", fault.drill, fault.run),
    };
    lines.push(line("faults", None, grade(false, !faults.is_empty()), said, typed("drill heal")));
    lines.push(match facts.labs.in_the_way() {
        None => line("lab", None, State3::Pass, "none is open".to_owned(), String::new()),
        Some(why) => {
            let held = if matches!(why, Refused::Open(_)) { ": its faults are in force until they are mended" } else { "" };
            line("lab", None, State3::Warn, format!("{why}{held}"), why.hint(plan.cluster.as_str()))
        }
    });
    lines.push(cut_off(facts, plan.cluster.as_str(), &line));
    let bytes: u64 = facts.snapshots.iter().map(|record| record.bytes).sum();
    let free = facts.pool.as_ref().and_then(|pool| pool.available).map(|bytes| bytes >> 20).or(facts.free_disk_mib);
    let halves = facts.snapshots.iter().any(|record| record.state != State::Whole);
    let said = format!("{} take {} MiB{}", facts.snapshots.len(), bytes >> 20, if halves { ", some never finished" } else { "" });
    let large = free.is_some_and(|free| bytes >> 20 > free);
    lines.push(line("snapshots", None, grade(halves || large, false), said, typed("snapshot list")));
    let (free_memory, memory) = (facts.host.free_memory_mib, facts.host.memory_mib);
    let said = format!("{free_memory} MiB free of {memory}");
    let left = percent(free_memory, memory);
    lines.push(line(
        "host memory",
        None,
        grade(left < 10, left < 3),
        said,
        "end what is not needed, or fewer machines".to_owned(),
    ));
    // Disks grow up to their size: what they may still take is not free.
    let growth: u64 =
        facts.pool.iter().flat_map(|pool| &pool.volumes).map(|v| v.capacity.saturating_sub(v.allocation) >> 20).sum();
    lines.push(match free {
        None => line(
            "host disk",
            None,
            State3::Warn,
            "how much is free is not known".to_owned(),
            "df on the host of the machines".to_owned(),
        ),
        Some(free) => {
            let said = format!("{free} MiB free; the machines' disks may grow by {growth}");
            line(
                "host disk",
                None,
                grade(free < 4096, free < 1024),
                said,
                "ktcw-vm image prune; ktcw-vm snapshot delete".to_owned(),
            )
        }
    });
    Ok(lines)
}

/// Makes a line of what was looked at, the node, the state, what is said, and what to type.
type Liner = dyn Fn(&'static str, Option<&NodeName>, State3, String, String) -> Line;

/// `3 etcd members tolerate 1 failure`
fn tolerated(members: usize) -> String {
    let verb = if members == 1 { "tolerates" } else { "tolerate" };
    let failures = match members - (members / 2 + 1) {
        0 => "no failure".to_owned(),
        some => counted(some, "failure"),
    };
    format!("{} {verb} {failures}", counted(members, "etcd member"))
}

/// `1 failure`, `2 failures`
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Work that a crash has left open.
fn cut_off(facts: &Facts, cluster: &str, line: &Liner) -> Line {
    if let Some(open) = snapshot::open_restore(&facts.history) {
        let next = opened::finishing(&open, &facts.labs, cluster);
        return line("cut off", None, State3::Fail, open.to_string(), next);
    }
    if let Err(refused) = fork::refuse_cut_off(&facts.history, cluster) {
        return line("cut off", None, State3::Fail, refused.message, refused.hint.unwrap_or_default());
    }
    let of_lab = facts.labs.open.as_ref().map(|open| open.lab.step());
    let open: Vec<&str> = facts
        .history
        .pending()
        .into_iter()
        .filter_map(|record| match &record.entry {
            // What is left of the faults of a lab that is over, an older version did not close.
            Entry::Step { step, .. } if step.starts_with("lab ") && of_lab.as_ref() != Some(step) => None,
            Entry::Step { step, .. } => Some(step.as_str()),
            _ => None,
        })
        .collect();
    match open.as_slice() {
        [] => line("cut off", None, State3::Pass, "nothing was".to_owned(), String::new()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            line("cut off", None, State3::Warn, format!("{first}{more}"), format!("ktcw-vm {} -c {cluster}", finished_by(first)))
        }
    }
}

/// The verb that ends a step which a run has left open.
fn finished_by(step: &str) -> &'static str {
    match step {
        life::PAUSE | life::RESUME | life::WAKE | life::CLOCKS => "resume",
        "remove" => "down",
        _ if step.starts_with("lab ") => "lab reset",
        _ => "up",
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use crate::host::VolumeSeen;
    use crate::host::{HostFacts, PoolSeen};
    use crate::lab::{Book, Open, Phase};
    use crate::pki::check::Row;
    use crate::plan::{Accel, CpuModel, Resolved, plan, samples};
    use crate::spec::Role;
    use crate::spec::{RawSpec, validate};
    use crate::store::journal::{self, History, Journal};

    fn sample() -> Plan {
        let spec = validate(&RawSpec { etcd: Some(1), workers: Some(1), ..RawSpec::default() }).expect("valid");
        let accel = Accel::Kvm { cpu: CpuModel::HostPassthrough };
        let subnet = "192.168.77.0/24".parse().expect("net");
        plan(&spec, &Resolved { subnet, accel, image: samples::image(), kernel: None, fork_of: None })
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
}
