//! A record of a leader-kill that went well, made by hand: what tests of judges and reports start from.

use super::act::Claim;
use super::bound::Timing;
use super::catalogue::{Process, find};
use super::clock::At;
use super::etcd::{Endpoint, Listed, Status};
use super::history::{Answer, Change, Kind, Member, Op, Outcome, Session};
use super::injector::{Environment, ProcessSeen, Proof};
use super::record::{After, Baseline, Hashed, LogSource, Looked, Marks, Note, Record, Sample, WatchLog};
use super::script::script;
use super::target::{Chosen, ClusterView, Id, MemberView};
use crate::spec::NodeName;
use std::time::Duration;

fn ms(n: u64) -> At {
    At(n * 1000)
}

/// Member 0 leads in term 2 and is killed at 2.0 s; member 1 leads in term 3 from 3.2 s on; the heal is at 5.0 s, member 0
/// follows from 5.3 s on; the run ends at 7 s.
pub fn leader_kill() -> Record {
    let drill = find("leader-kill").expect("in the catalogue");
    let members: Vec<Endpoint> = (0..3).map(endpoint).collect();
    let nodes: Vec<NodeName> = members.iter().map(|m| m.node.clone()).collect();
    let timing = Timing::native();
    let script = script(&drill.fault, &nodes[..1], &nodes, &timing, "");
    let (ops, log) = load();
    let log_revision = log.last().map_or(0, |change| change.revision);
    let claim = Claim::Down { node: nodes[0].clone(), process: Process::Etcd };
    let look = |at, still| Looked {
        at: ms(at),
        claim: claim.clone(),
        still,
        proof: Proof { held: true, evidence: "no process".to_owned() },
    };
    let list: Vec<Listed> = members
        .iter()
        .enumerate()
        .map(|(i, m)| Listed {
            id: Id(i as u64 + 1),
            name: m.node.to_string(),
            peer_urls: vec![m.peer_url.clone()],
            client_urls: vec![m.client_url.clone()],
            learner: false,
        })
        .collect();
    let view = |i: usize| MemberView {
        node: nodes[i].clone(),
        id: Id(i as u64 + 1),
        leader: i == 0,
        term: 2,
        reachable: true,
        db_bytes: 4096,
    };
    Record {
        run: "sample".to_owned(),
        started: "2026-01-02T03:04:05Z".to_owned(),
        seed: 7,
        chosen: Chosen { nodes: nodes[..1].to_vec(), why: "leads".to_owned() },
        script,
        environment: Environment {
            cluster: "lab".to_owned(),
            acceleration: "kvm".to_owned(),
            kubernetes: "v1.36.3".to_owned(),
            timing,
            host_load: 0.5,
            host_cpus: 2,
        },
        before: ClusterView { members: (0..3).map(view).collect(), ..ClusterView::default() },
        incarnations: vec![Some("a".to_owned()), Some("b".to_owned()), Some("c".to_owned())],
        processes: Ok(servers()),
        baseline: Baseline {
            writes: 60,
            acked: 60,
            p50: Duration::from_millis(5),
            p99: Duration::from_millis(10),
            interval: Duration::from_millis(50),
            sampling: Duration::from_millis(100),
        },
        marks: Marks {
            baseline: ms(100),
            inject: ms(2000),
            injected: ms(2010),
            proven: ms(2020),
            heal: ms(5000),
            healed: ms(5010),
            settled: ms(5400),
            end: ms(7000),
        },
        notes: vec![Note { at: ms(2000), text: "kill etcd on controller-0".to_owned() }],
        looked: vec![look(2015, false), look(4990, true)],
        samples: samples(),
        watches: (0..3).map(|member| WatchLog { member, from: 11, changes: log.clone(), connections: 1, broken: None }).collect(),
        stalls: vec![],
        restored: None,
        kube: None,
        kube_back: None,
        after: After {
            hash_revision: 99,
            hashes: (0..3).map(|member| Hashed { member, hash: Ok((0xfeed, 1)) }).collect(),
            lists: vec![Ok(list.clone()), Ok(list.clone()), Ok(list)],
            alarms: Ok(vec![]),
            alarming_logs: Ok(vec![]),
            leftovers: Ok(vec![]),
            log,
            log_source: LogSource::Replay,
            log_revision,
            ids: vec![Some(Id(1)), Some(Id(2)), Some(Id(3))],
            incarnations: vec![Some("d".to_owned()), Some("b".to_owned()), Some("c".to_owned())],
            processes: Ok(servers()),
        },
        aborted: None,
        ops,
        members,
        drill,
    }
}

fn servers() -> Vec<ProcessSeen> {
    let server = |i| ProcessSeen {
        node: NodeName::controller(i),
        name: "kube-apiserver".to_owned(),
        incarnation: format!("boot start-{i}"),
    };
    (0..3).map(server).collect()
}

fn endpoint(i: u8) -> Endpoint {
    let url = |port| format!("https://10.0.0.1{i}:{port}");
    Endpoint { node: NodeName::controller(i), client_url: url(2379), peer_url: url(2380) }
}

/// One write a session and 50 ms. Between 2.0 and 3.2 s nobody is answered; member 0 not before 5.3 s.
fn load() -> (Vec<Op>, Vec<Change>) {
    let (mut ops, mut log, mut revision) = (Vec::new(), Vec::new(), 10);
    for beat in 0..138u64 {
        let inv = 100 + beat * 50;
        for (n, session) in
            [Session::Failover, Session::Pinned(0), Session::Pinned(1), Session::Pinned(2)].into_iter().enumerate()
        {
            let member: Member = match session {
                Session::Pinned(member) => member,
                _ => usize::from(inv >= 2000),
            };
            let away = (2000..3200).contains(&inv) || (member == 0 && (2000..5300).contains(&inv));
            let value = beat * 4 + n as u64 + 1;
            let key = if session == Session::Failover { "failover" } else { "shared" };
            let answer = (!away).then(|| {
                revision += 1;
                log.push(Change { revision, key: key.to_owned(), value });
                Answer { revision, mod_revision: revision, term: if inv < 2000 { 2 } else { 3 } }
            });
            ops.push(Op {
                session,
                kind: Kind::Write,
                key: key.to_owned(),
                value: Some(value),
                member,
                inv: At(inv * 1000 + n as u64 * 10),
                ret: At((inv + if away { 900 } else { 5 }) * 1000 + n as u64 * 10),
                outcome: if away { Outcome::Unknown } else { Outcome::Ok },
                answer,
                error: away.then(|| "etcdserver: request timed out".to_owned()),
            });
        }
    }
    (ops, log)
}

fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for at in (100..7000).step_by(100) {
        for member in 0..3 {
            let away = member == 0 && (2000..5300).contains(&at);
            let (leader, term) = match at {
                0..2000 => (1, 2),
                2000..3200 => (0, 2),
                _ => (2, 3),
            };
            let status = Status {
                id: Id(member as u64 + 1),
                cluster: Id(9),
                leader: Id(leader),
                term,
                index: at,
                revision: at as i64,
                learner: false,
                db_bytes: 4096,
                version: "3.6.16".to_owned(),
                errors: vec![],
            };
            samples.push(Sample {
                member,
                sent: ms(at),
                at: At(at * 1000 + 500),
                status: (!away).then_some(status),
                error: away.then(|| "tcp connect error".to_owned()),
            });
        }
    }
    samples
}
