//! What lies on the lab's nodes and who is a member of its etcd: files written and owed to, `etcdctl` answered.
//! The lab asks it for every command that has to do with either.
//! It refuses what etcd refuses, and takes note of units that run with files as they were.

use super::{Lab, Machine, Member};
use crate::apply::roll;
use crate::guest::Cmd;
use crate::guest::fake::Reply;
use crate::plan::{NodePlan, Plan};
use crate::spec::NodeName;
use sha2::{Digest as _, Sha256};

/// Came to an etcd that was there.
pub(super) fn joined(plan: &Plan, name: &NodeName) -> bool {
    plan.spec.lineage.joined.contains(name) || plan.spec.lineage.joining.as_ref() == Some(name)
}

/// A member's id as etcdctl takes it.
fn id(name: &NodeName) -> u64 {
    0xffff_0000_0000_0001 + u64::from(name.index())
}

impl Lab {
    pub(super) fn written_by_cloud_init(&self, node: &NodePlan) {
        let keyring = self.keyring.lock().expect("free").clone();
        self.machine(&node.name, |machine| {
            if let (true, Some(keyring)) = (machine.files.is_empty(), keyring) {
                machine.files = roll::digests(node, &keyring);
            }
        });
    }

    pub(super) fn put(&self, name: &NodeName, cmd: &Cmd) -> Reply {
        let path = cmd.line.split("-- \"$t\" ").nth(1).and_then(|rest| rest.split("; then").next()).expect("a path").to_owned();
        let content = cmd.stdin.clone().unwrap_or_default();
        let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let told = self.change(format!("put {name} {path}"), |inside| {
            let machine = inside.machines.get_mut(name).expect("a node");
            let effect = roll::effect(&path).map(str::to_owned);
            if machine.files.insert(path, sum.clone()).as_ref() != Some(&sum) {
                let unit = |effect: &String| effect.split_once(' ').is_some_and(|(_, unit)| machine.units.contains(unit));
                machine.behind.extend(effect.filter(unit));
            }
        });
        if told { Reply::ok("") } else { Reply::lost(name, cmd) }
    }

    pub(super) fn files(&self, name: &NodeName) -> Reply {
        let machine = self.machine(name, |machine| machine.clone());
        let mut text: String = machine.owed.iter().map(|owed| format!("owed {owed}\n")).collect();
        text.extend(machine.files.iter().map(|(path, sum)| format!("{sum}  {path}\n")));
        text.push_str("end\n");
        Reply::ok(text)
    }

    /// What is owed is noted, or paid.
    pub(super) fn roll(&self, node: &NodePlan, cmd: &Cmd, script: &str) -> Reply {
        let name = &node.name;
        let quoted = |script: &str| script.split('\'').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        if script.contains("sort -u") {
            let owed: Vec<String> = quoted(script).into_iter().filter(|text| text.ends_with(".service")).collect();
            assert!(!owed.is_empty(), "{script}");
            let told =
                self.change(format!("owed {name}"), |inside| inside.machines.get_mut(name).expect("a node").owed.extend(owed));
            return if told { Reply::ok("") } else { Reply::lost(name, cmd) };
        }
        let verbs: Vec<(&str, &str)> =
            script.lines().filter_map(|line| line.strip_prefix("systemctl ")?.split_once(' ')).collect();
        if verbs.iter().any(|(verb, unit)| *verb == "restart" && *unit == "kube-apiserver.service") && !self.quorum() {
            return Reply::exit(1, "", "etcd has no leader");
        }
        let told = self.change(format!("roll {name}"), |inside| {
            let machine = inside.machines.get_mut(name).expect("a node");
            for (verb, unit) in verbs {
                match verb {
                    "stop" => machine.units.remove(unit),
                    _ => machine.units.insert(unit.to_owned()),
                };
                machine.behind.remove(&format!("{verb} {unit}"));
                if verb == "start" {
                    // It was stopped before, and begins with what is there.
                    machine.behind.remove(&format!("reload {unit}"));
                }
            }
            if script.contains("rm -f /etc/ktcw/owed") {
                machine.owed.clear();
            }
        });
        if told { Reply::ok("") } else { Reply::lost(name, cmd) }
    }

    /// Why etcd does not begin there.
    pub(super) fn no_member(&self, name: &NodeName) -> Option<&'static str> {
        let inside = self.lock();
        match inside.members.get(name) {
            Some(_) => None,
            None if inside.members.is_empty() && !joined(&self.plan, name) => None,
            None => Some("the member is not in the cluster"),
        }
    }

    /// The others send it no word, so it takes the address as well.
    pub(super) fn two_would_hold_the_address(&self, node: &NodePlan) -> bool {
        const CONF: &str = "/etc/keepalived/keepalived.conf";
        let Some(keyring) = self.keyring.lock().expect("free").clone() else { return false };
        let others =
            self.plan.control_planes().filter(|other| other.name != node.name && self.active(other, "keepalived.service"));
        // Looking whether one is active takes the lock as well.
        let others: Vec<&NodePlan> = others.collect();
        let inside = self.lock();
        others.into_iter().any(|other| {
            let machine = &inside.machines[&other.name];
            machine.files.get(CONF) != roll::digests(other, &keyring).get(CONF)
                || machine.behind.contains("reload keepalived.service")
        })
    }

    pub(super) fn etcdctl(&self, node: &NodePlan, cmd: &Cmd, script: &str) -> Reply {
        let words: Vec<&str> = script.split("exec etcdctl ").nth(1).unwrap_or_default().split_whitespace().collect();
        let failed = |why: &str| Reply::exit(1, "", format!("Error: {why}"));
        let endpoint = script.split("ENDPOINTS=https://").nth(1).and_then(|rest| rest.split(':').next()).expect("an endpoint");
        let all = || self.plan.nodes.iter().chain(&self.plan.leaving);
        let asked = all().find(|node| node.ip.to_string() == endpoint).expect("a node of ours").name.clone();
        if !self.serving(&asked) || !self.lock().members.contains_key(&asked) {
            return failed("context deadline exceeded");
        }
        if !self.quorum() {
            return failed("etcdserver: no leader");
        }
        let (members, leader) = {
            let inside = self.lock();
            (inside.members.clone(), inside.leader.clone())
        };
        let named = |text: &str| {
            let wanted = u64::from_str_radix(text, 16).expect("an id");
            members.keys().find(|name| id(name) == wanted).cloned()
        };
        let ip = |name: &NodeName| all().find(|node| node.name == *name).map(|node| node.ip).expect("a node of ours");
        let told = match words.as_slice() {
            ["member", "list", ..] => {
                let rows = members.iter().map(|(name, member)| {
                    serde_json::json!({
                        "ID": id(name), "name": if member.started { name.to_string() } else { String::new() },
                        "peerURLs": [format!("https://{}:2380", ip(name))], "isLearner": member.learner,
                    })
                });
                let list = serde_json::json!({ "header": {}, "members": rows.collect::<Vec<_>>() });
                return Reply::ok(list.to_string());
            }
            ["endpoint", "status", ..] => {
                let leader = leader.as_ref().map_or(0, id);
                let status = serde_json::json!([{ "Status": { "header": { "member_id": id(&asked) }, "leader": leader } }]);
                return Reply::ok(status.to_string());
            }
            ["member", "add", name, "--learner", _] => {
                if members.values().any(|member| member.learner) {
                    return failed("etcdserver: too many learner members in cluster");
                }
                let name = NodeName::parse(name).expect("a name");
                self.change(format!("add {name}"), |inside| {
                    inside.members.insert(name.clone(), Member { learner: true, started: false });
                })
            }
            ["member", "promote", member] => {
                let Some(name) = named(member) else { return failed("etcdserver: member not found") };
                if !self.serving(&name) {
                    return failed("etcdserver: can only promote a learner member which is in sync with leader");
                }
                self.change(format!("promote {name}"), |inside| {
                    inside.members.get_mut(&name).expect("listed").learner = false;
                })
            }
            ["move-leader", to] => {
                assert_eq!(Some(&asked), leader.as_ref(), "only the leader takes it");
                let to = named(to).expect("a member");
                self.change(format!("move-leader to {to}"), |inside| inside.leader = Some(to))
            }
            ["member", "remove", member] => {
                let Some(name) = named(member) else { return failed("etcdserver: member not found") };
                assert_ne!(Some(&name), leader.as_ref(), "it has handed over");
                let stay: Vec<&NodeName> = members.iter().filter(|(n, m)| **n != name && !m.learner).map(|(n, _)| n).collect();
                if stay.iter().filter(|name| self.serving(name)).count() <= stay.len() / 2 {
                    return failed("etcdserver: re-configuration failed due to not enough started members");
                }
                self.change(format!("remove {name}"), |inside| {
                    inside.members.remove(&name);
                })
            }
            other => panic!("{}: etcdctl {other:?}", node.name),
        };
        if told { Reply::ok("") } else { Reply::lost(&node.name, cmd) }
    }

    /// From now on this one leads.
    pub fn lead(&self, name: &NodeName) {
        let mut inside = self.lock();
        inside.leader = Some(name.clone());
        self.keep(&inside);
    }

    /// Voting members, and whoever is a learner.
    pub fn members(&self) -> (Vec<NodeName>, Vec<NodeName>) {
        let inside = self.lock();
        let (learners, voters): (Vec<_>, Vec<_>) = inside.members.iter().partition(|(_, member)| member.learner);
        let names = |rows: Vec<(&NodeName, &Member)>| rows.into_iter().map(|(name, _)| name.clone()).collect();
        (names(voters), names(learners))
    }

    /// Units that run with other files than those on their node, by node.
    pub fn behind(&self) -> Vec<String> {
        let inside = self.lock();
        let of = |(name, machine): (&NodeName, &Machine)| {
            machine.behind.iter().chain(&machine.owed).map(|what| format!("{name}: {what}")).collect::<Vec<_>>()
        };
        inside.machines.iter().flat_map(of).collect()
    }
}
