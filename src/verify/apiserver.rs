//! Judges the API's reachability: every node against every API server and the virtual address, and who holds that address.
//! `verify` calls `judge`. A server that says it is not ready, or answers nobody, is that server's failure; one that answers
//! some is theirs who get no answer: each cause makes one line fail. It knows nothing of what the API contains.

use super::curl::{self, Reply};
use super::observe::Observed;
use super::report::{Check, Finding, Group, list};
use super::{hint, script};
use crate::plan::{Ca, NodePlan, Plan};
use crate::spec::NodeName;
use std::collections::BTreeMap;
use std::fmt;

/// One row of the matrix: what a node got from each target.
type Row = Result<BTreeMap<String, Reply>, String>;

pub fn judge(plan: &Plan, seen: &Observed) -> Vec<Check> {
    // Only who has the CA can verify TLS; the plan says who that is.
    let probers = plan.nodes.iter().filter(|node| script::ca_file(node, Ca::Kubernetes).is_some());
    let rows: Vec<(&NodePlan, Row)> = probers
        .map(|node| {
            let section = seen.probe(&node.name).and_then(|probe| probe.get("matrix"));
            let row = section
                .map(|section| curl::replies(&section.body, &seen.token))
                .and_then(|row| if row.is_empty() { Err("curl said nothing".to_owned()) } else { Ok(row) });
            (node, row)
        })
        .collect();
    let mut checks = Vec::new();
    let mut up = Vec::new();
    for node in plan.control_planes() {
        let name = node.name.to_string();
        let finding = target(&name, &rows).hint(hint(plan, &format!("logs {name} kube-apiserver")));
        if answered(&name, &rows) {
            up.push(name);
        }
        checks.push(finding.file(Group::Apiserver, "apiserver.ready", Some(&node.name)));
    }
    let finding = target(script::VIP, &rows).hint(hint(plan, "logs keepalived"));
    if answered(script::VIP, &rows) {
        up.push(script::VIP.to_owned());
    }
    checks.push(finding.file(Group::Apiserver, "apiserver.vip", None));
    for (node, row) in &rows {
        checks.push(reach(plan, node, row, &up).file(Group::Apiserver, "apiserver.reach", Some(&node.name)));
    }
    checks.push(holder(plan, seen).file(Group::Apiserver, "vip.holder", None));
    checks
}

/// What a node got from a target.
enum Cell {
    Ready {
        seconds: f64,
    },
    /// An answer over verified TLS that is not 200: the server's own word.
    NotReady(String),
    /// No answer: the way there, or the server, is at fault.
    Silent(String),
    /// It was not found out.
    Unknown(String),
}

fn cell(row: &Row, target: &str) -> Cell {
    let reply = match row {
        Err(why) => return Cell::Unknown(why.clone()),
        Ok(row) => match row.get(target) {
            None => return Cell::Unknown("curl said nothing".to_owned()),
            Some(reply) => reply,
        },
    };
    match (reply.exit, reply.ok()) {
        (_, Ok(_)) => Cell::Ready { seconds: reply.seconds },
        (0, Err(why)) => Cell::NotReady(why),
        (_, Err(why)) => Cell::Silent(why),
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Ready { seconds } => write!(f, "ready in {:.0} ms", seconds * 1000.0),
            Cell::NotReady(why) => write!(f, "not ready: {why}"),
            Cell::Silent(why) | Cell::Unknown(why) => f.write_str(why),
        }
    }
}

fn answered(target: &str, rows: &[(&NodePlan, Row)]) -> bool {
    rows.iter().any(|(_, row)| matches!(cell(row, target), Cell::Ready { .. } | Cell::NotReady(_)))
}

fn shown(target: &str) -> String {
    if target == script::VIP { "the virtual address".to_owned() } else { target.to_owned() }
}

/// One column: ready, says everyone who gets an answer. Who gets none where others do is judged in its own row.
fn target(target: &str, rows: &[(&NodePlan, Row)]) -> Finding {
    let mut good = 0;
    let mut not_ready = Vec::new();
    let mut silent = Vec::new();
    let mut facts = Vec::new();
    for (node, row) in rows {
        let cell = cell(row, target);
        facts.push(format!("from {}: {cell}", node.name));
        match cell {
            Cell::Ready { .. } => good += 1,
            Cell::NotReady(why) => not_ready.push((&node.name, why)),
            Cell::Silent(why) => silent.push((&node.name, why)),
            Cell::Unknown(_) => {}
        }
    }
    let names = |bad: &[(&NodeName, String)]| list(bad.iter().map(|(name, _)| name));
    match (good, not_ready.as_slice(), silent.as_slice()) {
        (0, [], []) => Finding::unknown(format!("no node could be asked about {}", shown(target))),
        (0, [], [(name, why), ..]) => {
            // Its own node knows best why.
            let (name, why) =
                silent.iter().find(|(name, _)| name.to_string() == target).map_or((*name, why), |(name, why)| (*name, why));
            Finding::fail(format!("answers none of {} nodes; {name}: {why}", silent.len()))
        }
        (_, [(name, why), ..], _) => Finding::fail(format!(
            "says to {} of {} nodes that it is not ready; to {name}: {why}",
            not_ready.len(),
            not_ready.len() + good
        )),
        (good, [], []) => Finding::pass(format!("ready, TLS verified, from all {good} nodes that answered")),
        (good, [], silent) => Finding::pass(format!("ready from {good} nodes; no answer to {}", names(silent))),
    }
    .seen(facts)
}

/// One row: this node gets an answer from everything that answers anyone.
fn reach(plan: &Plan, node: &NodePlan, row: &Row, up: &[String]) -> Finding {
    let look = hint(plan, &format!("ssh {} -- ip route", node.name));
    let cells: Vec<(&String, Cell)> = up.iter().map(|target| (target, cell(row, target))).collect();
    let silent: Vec<_> = cells.iter().filter(|(_, cell)| matches!(cell, Cell::Silent(_))).collect();
    let unknown = cells.iter().find_map(|(_, cell)| if let Cell::Unknown(why) = cell { Some(why) } else { None });
    let facts = cells.iter().map(|(target, cell)| format!("{}: {cell}", shown(target)));
    match (silent.as_slice(), unknown, row) {
        ([], _, Err(why)) | ([], Some(why), _) => Finding::unknown(why.clone()),
        ([], None, _) if up.is_empty() => Finding::unknown("no API server answers anyone"),
        ([], None, _) => Finding::pass(format!("gets an answer from all {} that are up", up.len())),
        ([(target, why)], ..) => Finding::fail(format!("cannot reach {}, which others reach: {why}", shown(target))),
        (silent, ..) => Finding::fail(format!("cannot reach {} of {} that others reach", silent.len(), up.len())),
    }
    .seen(facts)
    .hint(look)
}

/// Addresses of `ip -4 -o addr show`: the word after `inet`, without its prefix length.
fn addresses(body: &str) -> impl Iterator<Item = &str> {
    body.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "inet").skip(1);
        words.next()?.split('/').next()
    })
}

/// Exactly one control plane has the virtual address.
fn holder(plan: &Plan, seen: &Observed) -> Finding {
    let vip = plan.network.vip.to_string();
    let mut holders: Vec<&NodeName> = Vec::new();
    let mut strangers = Vec::new();
    let mut missing = Vec::new();
    let mut facts = Vec::new();
    for node in &plan.nodes {
        let own = node.ip.to_string();
        let body = seen.probe(&node.name).and_then(|probe| probe.ok("addresses"));
        // A list without the node's own address is no list of its addresses.
        match body.map(|body| addresses(body).collect::<Vec<_>>()) {
            Ok(all) if all.contains(&own.as_str()) => {
                facts.push(format!("{}: {}", node.name, all.join(" ")));
                if all.contains(&vip.as_str()) {
                    if node.control_plane { holders.push(&node.name) } else { strangers.push(&node.name) }
                }
            }
            Ok(_) if node.control_plane => missing.push(format!("{}: its own address {own} is not in the answer", node.name)),
            Err(why) if node.control_plane => missing.push(format!("{}: {why}", node.name)),
            Ok(_) | Err(_) => {}
        }
    }
    let silent = missing.len();
    let control_planes = plan.control_planes().count();
    let finding = match (holders.as_slice(), strangers.as_slice()) {
        (_, [_, ..]) => Finding::fail(format!("{vip} is on {}, which is no control plane", list(&strangers))),
        ([_, _, ..], _) => Finding::fail(format!("{vip} is on {} at once", list(&holders))),
        ([one], _) if silent == 0 => Finding::pass(format!("{vip} is on {one} alone")),
        ([one], _) => Finding::unknown(format!("{vip} is on {one}; {silent} of {control_planes} control planes gave no answer")),
        ([], _) if silent == 0 => Finding::fail(format!("no control plane holds {vip}")),
        ([], _) => Finding::unknown(format!(
            "{vip} is on none that answered; {silent} of {control_planes} control planes gave no answer"
        )),
    };
    finding.seen(facts).seen(missing).hint(hint(plan, "logs keepalived"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_words_after_inet() {
        let text = "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever\n\
                    2: eth0    inet 192.168.77.11/24 brd 192.168.77.255 scope global eth0\\ x\n\
                    2: eth0    inet 192.168.77.10/32 scope global eth0\\ y\nnonsense\n";
        assert_eq!(addresses(text).collect::<Vec<_>>(), ["127.0.0.1", "192.168.77.11", "192.168.77.10"]);
    }
}
