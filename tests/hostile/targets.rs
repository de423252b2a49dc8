//! Every parser of text that this program did not write a moment ago, each as a function over any bytes: no panic, and what is
//! accepted means something. `tests/hostile` feeds them broken samples, `fuzz/` feeds them whatever libFuzzer finds.
//! It knows no sample and keeps no state.

use super::samples;
use ktcw_vm::event::Verdict;
use ktcw_vm::guest::ssh::{SshGuests, Target};
use ktcw_vm::guest::{clock, keys};
use ktcw_vm::host::{Mark, xml};
use ktcw_vm::pki::{check, kubeconfig};
use ktcw_vm::plan::{Accel, Ca, Plan, plan, user_data};
use ktcw_vm::secret::Secret;
use ktcw_vm::spec::{ClusterName, NodeName, RawSpec, parse_config, validate};
use ktcw_vm::store::journal;
use ktcw_vm::verify::certs::Trust;
use ktcw_vm::verify::observe::{Link, NodeSeen};
use ktcw_vm::verify::sections::Sections;
use ktcw_vm::verify::{Observed, judge};
use std::collections::BTreeMap;
use std::sync::LazyLock;

pub type Parser = fn(&[u8]);

/// Name, as its corpus is called, and what takes the bytes.
pub const ALL: &[(&str, Parser)] = &[
    ("config", config),
    ("journal", journal),
    ("drill", drill),
    ("lab", lab),
    ("spec", spec),
    ("plan", kept_plan),
    ("snapshot", snapshot),
    ("book", book),
    ("report", report),
    ("libvirt_xml", libvirt_xml),
    ("kubeconfig", kubeconfig),
    ("certificate", certificate),
    ("probe", probe),
    ("clock", clock),
    ("names", names),
    ("ssh_key", ssh_key),
];

fn small() -> &'static Plan {
    static PLAN: LazyLock<Plan> = LazyLock::new(|| samples::plan("ktcw", 1, 1, Accel::Tcg));
    &PLAN
}

/// `cluster.toml`: an error names a line that is there; what passes is planned, and goes into XML and YAML unharmed.
fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (raw, errors) = parse_config(&text);
    for error in &errors {
        assert!(error.line <= text.matches('\n').count() + 1 && !error.message.is_empty(), "{error}");
    }
    if !errors.is_empty() {
        return;
    }
    let Ok(spec) = validate(&raw) else { return };
    assert_eq!(validate(&RawSpec::from(&spec)).as_ref(), Ok(&spec), "a spec in words is the same spec");
    // Big ones take long and go the same way.
    if spec.etcd > 1 || spec.workers > 1 {
        return;
    }
    let plan = plan(&spec, &samples::resolved(Accel::Tcg));
    let mark = Mark { cluster: spec.name.clone(), instance: uuid::Uuid::nil(), state_dir: text.chars().take(200).collect() };
    let layout = xml::Layout { pool_dir: "/pool".into(), image_dir: "/images".into(), direct_io: true, firmware: None };
    for node in &plan.nodes {
        let xml_text = xml::domain_xml(&node.domain, &plan.storage, &layout, &node.name, &mark).expect("renders");
        let back = xml::domain(&xml_text).expect("reads its own");
        assert_eq!((back.name, back.uuid), (node.domain.name.clone(), node.domain.uuid));
        assert_eq!(back.node.as_ref(), Some(&node.name));
        user_data::preview(node, &plan.network, &plan.pod_routes()).expect("YAML");
    }
}

/// `journal.jsonl`, as it is, and with the lines that carry a seal sealed anew: else nothing broken would come past it.
fn journal(bytes: &[u8]) {
    const SEAL: &[u8] = b",\"sum\":\"";
    let again = |line: &[u8]| match line.windows(SEAL.len()).position(|window| window == SEAL) {
        Some(at) => journal::sealed(&[&line[..at], b"}"].concat()),
        None => line.to_vec(),
    };
    let sealed: Vec<u8> = bytes.split_inclusive(|byte| *byte == b'\n').flat_map(again).collect();
    journal_as_it_is(bytes);
    journal_as_it_is(&sealed);
}

/// What is read was sealed; a damaged line has a number.
fn journal_as_it_is(bytes: &[u8]) {
    if let Ok((history, damage)) = journal::parse(bytes) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        assert!(history.records.len() + damage.len() >= lines.min(1) && history.records.len() <= lines);
        assert!(damage.iter().all(|one| one.line >= 1 && one.line <= lines));
        let _ = (history.pending(), history.failed(), history.undos());
    }
}

/// `cluster.json`: an error names the file, and what passes is a specification of that cluster that could have been asked for.
fn spec(bytes: &[u8]) {
    let name = ClusterName::parse("ktcw").expect("a name");
    match ktcw_vm::store::parse_spec(&String::from_utf8_lossy(bytes), &name) {
        Err(error) => assert!(error.to_string().starts_with("cluster.json "), "{error}"),
        Ok(spec) => {
            assert_eq!(spec.name, name);
            // Big ones take long and go the same way.
            if spec.etcd <= 1 && spec.workers <= 1 {
                plan(&spec, &samples::resolved(Accel::Tcg));
            }
        }
    }
}

/// `plan.json`: whatever it says goes into XML and YAML unharmed, or is refused with a reason.
fn kept_plan(bytes: &[u8]) {
    let kept = match ktcw_vm::store::parse_plan(&String::from_utf8_lossy(bytes)) {
        Err(error) => return assert!(error.to_string().starts_with("plan.json "), "{error}"),
        Ok(kept) => kept,
    };
    let mark = Mark { cluster: kept.cluster.clone(), instance: uuid::Uuid::nil(), state_dir: "/state".into() };
    let layout = xml::Layout { pool_dir: "/pool".into(), image_dir: "/images".into(), direct_io: true, firmware: None };
    for node in &kept.nodes {
        if let Ok(text) = xml::domain_xml(&node.domain, &kept.storage, &layout, &node.name, &mark)
            && let Ok(back) = xml::domain(&text)
        {
            assert_eq!((&back.name, back.uuid), (&node.domain.name, node.domain.uuid), "{text}");
        }
        let _ = user_data::preview(node, &kept.network, &kept.pod_routes());
    }
}

/// A snapshot's record: its name is one that a file may have.
fn snapshot(bytes: &[u8]) {
    use ktcw_vm::snapshot::{Name, Record};
    match ktcw_vm::store::parse_snapshot::<Record>(&String::from_utf8_lossy(bytes)) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(record) => {
            assert_eq!(Name::parse(record.name.as_str()).as_ref(), Ok(&record.name));
            let all = [record.clone(), record];
            assert_eq!(ktcw_vm::snapshot::tree(&all).len(), 2, "each is shown once");
        }
    }
}

/// `labs.json`: whatever is open can be asked about, hinted at and closed.
fn book(bytes: &[u8]) {
    let Ok(mut book) = ktcw_vm::store::parse_kept::<ktcw_vm::lab::Book>(&String::from_utf8_lossy(bytes)) else { return };
    let _ = (book.may_start("nospace"), book.may_reset(true, false, false), book.may_reset(false, true, true));
    if let Ok(open) = book.running_mut() {
        let _ = open.next_hint();
    }
    book.close(jiff::Timestamp::UNIX_EPOCH);
    assert!(book.open.is_none());
}

fn drill(bytes: &[u8]) {
    if let Err(said) = ktcw_vm::drill::catalogue::parse(&String::from_utf8_lossy(bytes)) {
        assert!(!said.is_empty());
    }
}

/// What passes can be worded for a cluster, whatever its words are.
fn lab(bytes: &[u8]) {
    match ktcw_vm::lab::catalogue::parse(&String::from_utf8_lossy(bytes)) {
        Err(said) => assert!(!said.is_empty()),
        Ok(lab) => {
            let hit = [NodeName::controller(0)];
            let scene = ktcw_vm::lab::words::Scene { plan: small(), hit: &hit };
            assert!(lab.solution.iter().any(|step| !step.run.is_empty()) && !lab.hints.is_empty());
            lab.solution.iter().for_each(|step| drop(scene.commands(step)));
        }
    }
}

fn report(bytes: &[u8]) {
    if let Err(error) = ktcw_vm::drill::report::Report::from_json("a-run", &String::from_utf8_lossy(bytes)) {
        assert!(error.to_string().contains("a-run"));
    }
}

fn libvirt_xml(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(domain) = xml::domain(&text) {
        assert!(!domain.name.is_empty());
    }
    let _ = (xml::network(&text), xml::pool(&text), xml::volume(&text), xml::emulator(&text), xml::kvm_listed(&text));
}

/// A kubeconfig of the user's: what is taken is given back; an error never says what is in it.
fn kubeconfig(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let plan = &small().kubeconfigs[0];
    let key = Secret::new("KEY");
    let credentials = kubeconfig::Credentials { ca: "CA", cert: "CERT", key: &key };
    let name = ClusterName::parse(&plan.cluster).expect("a name");
    if let Ok(merged) = kubeconfig::merge(&text, plan, credentials, true) {
        let without = kubeconfig::remove(merged.expose(), &name, "CA").expect("reads its own").expect("ours is in it");
        assert_eq!(kubeconfig::remove(without.expose(), &name, "CA"), Ok(None), "once is enough");
    }
}

fn certificate(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (one, other) = text.split_once("\n%\n").unwrap_or((&text, &text));
    // Nothing was valid in 1938.
    let now = jiff::Timestamp::from_second(-1_000_000_000).expect("a time");
    assert!(!check::judge(one, other, &small().certs[0], now).is_empty());
    assert!(!check::judge_ca(one, Ca::Kubernetes, now).is_empty());
    let _ = (check::carries_key(one, b"key"), check::row("id", Ca::Etcd, None, one, now));
}

/// What a node answers to `verify`: whatever it says, it does not pass for another's answers too.
fn probe(bytes: &[u8]) {
    let token = "t";
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut answer = || Sections::parse(parts.next().unwrap_or_default(), token, false);
    let plan = small();
    let seen = |answer: &mut dyn FnMut() -> Sections| NodeSeen {
        link: Link::Up,
        clock: Err("none".to_owned()),
        probe: Ok(answer()),
        api: Some(Ok(answer())),
    };
    let nodes: BTreeMap<NodeName, NodeSeen> = plan.nodes.iter().map(|node| (node.name.clone(), seen(&mut answer))).collect();
    let hashes = plan.controllers().map(|node| (node.name.clone(), Ok(answer()))).collect();
    let observed = Observed { token: token.to_owned(), nodes, rounds: vec![(1, hashes)], pods: BTreeMap::new() };
    let checks = judge(plan, &observed, Trust { judge: &|_, _, _| Vec::new(), ca: &|_| None });
    assert!(checks.iter().any(|check| check.verdict != Verdict::Pass), "without a clock nothing is all right");
    for check in &checks {
        assert!(!check.summary.is_empty() && !check.summary.chars().any(char::is_control), "{check:?}");
        assert!(check.verdict == Verdict::Pass || check.hint.is_some(), "{check:?}");
    }
    ktcw_vm::verify::machines::parse_units(&String::from_utf8_lossy(bytes));
}

/// What a node's `date` prints: a number that can be shown and moved by, or no time.
fn clock(bytes: &[u8]) {
    let (now, text) = (jiff::Timestamp::UNIX_EPOCH, String::from_utf8_lossy(bytes));
    match clock::compare(now, &text, now) {
        Ok(seen) => {
            assert!(seen.ahead_s.is_finite() && seen.uncertain_s == 0.0, "{seen:?}");
            assert!(clock::shift_line(-seen.ahead_s).is_ascii());
        }
        Err(said) => assert!(said.starts_with("date said "), "{said}"),
    }
}

fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match ClusterName::parse(&text) {
        Ok(name) => {
            assert!(name.as_str() == text && text.len() <= 31 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        }
        Err(said) => assert!(said.contains("accepted") && said.len() < 500, "{said}"),
    }
    if let Ok(node) = NodeName::parse(&text) {
        assert_eq!(node.to_string(), text);
    }
}

fn ssh_key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = keys::fingerprint(&text);
    let target = |host_key: String| Target { node: NodeName::controller(0), addr: ([127, 0, 0, 1], 1).into(), host_key };
    let error = SshGuests::new(vec![target(text.to_string())], "root", &Secret::new(text.to_string())).err();
    assert!(error.is_none_or(|error| !error.to_string().is_empty()));
}
