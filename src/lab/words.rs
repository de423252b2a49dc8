//! A lab's words in a particular cluster: which machines a rule means, what scripts are told, and commands with real names.
//! `work` frames scripts with it, `cli lab` shows hints and solutions through it.
//! Pure.

use super::catalogue::{On, Solved};
use crate::guest::quote;
use crate::plan::{NodePlan, Plan};
use crate::spec::NodeName;
use jiff::Timestamp;

/// A cluster, and who in it is hit.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub plan: &'a Plan,
    pub hit: &'a [NodeName],
}

impl<'a> Scene<'a> {
    /// The machines that a rule means, in the plan's order; `Here` means none.
    pub fn machines(&self, on: On) -> Vec<&'a NodePlan> {
        let hit = |node: &&NodePlan| self.hit.contains(&node.name);
        match on {
            On::Here => vec![],
            On::Hit => self.plan.nodes.iter().filter(hit).collect(),
            On::First => self.plan.nodes.iter().filter(hit).take(1).collect(),
            On::Others => self.plan.controllers().filter(|node| !hit(node)).collect(),
            On::Members => self.plan.controllers().collect(),
            On::ControlPlanes => self.plan.control_planes().collect(),
            On::Workers => self.plan.workers().collect(),
        }
    }

    /// A script as it is sent to bash: what it is told, then the whole of it before any of it runs, so that a cut connection
    /// runs nothing by halves and no command reads the script from standard input. `now`: this computer's time.
    pub fn script(&self, node: Option<&NodePlan>, now: Timestamp, body: &str) -> String {
        format!("{}main() {{\nset -eu -o pipefail\n{}\n}}\nmain </dev/null\n", self.told(node, now), body.trim_end())
    }

    /// The variables that every script has.
    pub fn told(&self, node: Option<&NodePlan>, now: Timestamp) -> String {
        let name = |node: &NodePlan| node.name.to_string();
        let ip = |node: &NodePlan| node.ip.to_string();
        let mut variables = vec![
            ("LC_ALL", "C".to_owned()),
            ("CLUSTER", self.plan.cluster.to_string()),
            ("NODE", node.map(name).unwrap_or_default()),
            ("IP", node.map(ip).unwrap_or_default()),
            ("VIP", self.plan.network.vip.to_string()),
            ("API_SERVICE", self.plan.network.kubernetes_service.to_string()),
            ("NOW", now.as_second().to_string()),
        ];
        for (stem, stem_ip, on) in [
            ("HIT", "HIT_IP", On::Hit),
            ("OTHERS", "OTHERS_IP", On::Others),
            ("MEMBERS", "MEMBERS_IP", On::Members),
            ("CONTROL_PLANES", "CONTROL_PLANES_IP", On::ControlPlanes),
            ("WORKERS", "WORKERS_IP", On::Workers),
        ] {
            let nodes = self.machines(on);
            variables.push((stem, nodes.iter().map(|node| name(node)).collect::<Vec<_>>().join(" ")));
            variables.push((stem_ip, nodes.iter().map(|node| ip(node)).collect::<Vec<_>>().join(" ")));
        }
        variables.iter().map(|(name, value)| format!("export {name}={}\n", quote(value))).collect()
    }

    /// Words in braces replaced by this cluster's; without anybody hit by the rule's own word.
    pub fn said(&self, text: &str) -> String {
        let mut text = self.command(text, None);
        for (word, ip) in [("hit", "hit_ip"), ("first", "first_ip"), ("other", "other_ip"), ("node", "ip")] {
            text = text.replace(&format!("{{{word}}}"), &format!("<{word}>"));
            text = text.replace(&format!("{{{ip}}}"), &format!("<address of {word}>"));
        }
        text
    }

    /// The commands of a step, each for every machine that it is for.
    pub fn commands(&self, step: &Solved) -> Vec<String> {
        let all = |node: Option<&NodePlan>| step.run.iter().map(move |line| self.command(line, node)).collect::<Vec<_>>();
        match step.each {
            None => all(None),
            Some(on) => self.machines(on).into_iter().flat_map(|node| all(Some(node))).collect(),
        }
    }

    fn command(&self, line: &str, node: Option<&NodePlan>) -> String {
        let members: Vec<String> =
            self.plan.controllers().map(|node| format!("{}=https://{}:2380", node.name, node.ip)).collect();
        let mut text = line
            .replace("{cluster}", self.plan.cluster.as_str())
            .replace("{vip}", &self.plan.network.vip.to_string())
            .replace("{initial_cluster}", &members.join(","));
        let first = |on| self.machines(on).into_iter().next();
        for (word, node) in [("node", node), ("hit", first(On::Hit)), ("first", first(On::First)), ("other", first(On::Others))] {
            let Some(node) = node else { continue };
            let ip = if word == "node" { "{ip}".to_owned() } else { format!("{{{word}_ip}}") };
            text = text.replace(&format!("{{{word}}}"), node.name.to_string().as_str()).replace(&ip, &node.ip.to_string());
        }
        match self.plan.cluster.as_str() {
            "ktcw" => text,
            other => text.replace("ktcw-vm ", &format!("ktcw-vm -c {other} ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::catalogue::labs;
    use crate::plan::{Accel, samples};

    fn step(run: &str, each: Option<On>) -> Solved {
        Solved { why: "why".to_owned(), run: vec![run.to_owned()], each }
    }

    #[test]
    fn rules_mean_machines() {
        let plan = samples::plan("ktcw", 3, 1, Accel::Tcg);
        let hit = [NodeName::controller(2), NodeName::controller(1)];
        let scene = Scene { plan: &plan, hit: &hit };
        let names = |on| scene.machines(on).iter().map(|node| node.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(On::Hit), ["controller-1", "controller-2"]);
        assert_eq!(names(On::First), ["controller-1"]);
        assert_eq!(names(On::Others), ["controller-0"]);
        assert_eq!(names(On::Members), ["controller-0", "controller-1", "controller-2"]);
        assert_eq!(names(On::Workers), ["worker-0"]);
        assert!(names(On::Here).is_empty());
    }

    #[test]
    fn commands_have_this_clusters_names_and_its_flag() {
        let plan = samples::plan("ktcw", 3, 0, Accel::Tcg);
        let hit = [NodeName::controller(1)];
        let scene = Scene { plan: &plan, hit: &hit };
        let one = scene.commands(&step("ktcw-vm ssh {hit} -- \"ping {other_ip}; awk '{ print $1 }' {node}\"", None));
        let other = plan.node(&NodeName::controller(0)).expect("there").ip;
        assert_eq!(one, [format!("ktcw-vm ssh controller-1 -- \"ping {other}; awk '{{ print $1 }}' {{node}}\"")]);
        let all = scene.commands(&step("ktcw-vm ssh {node} -- echo {ip}", Some(On::Members)));
        assert_eq!(all.len(), 3);
        assert!(all[2].contains("controller-2 -- echo 192."), "{all:?}");
        let mut plan = plan.clone();
        plan.cluster = crate::spec::ClusterName::parse("lab").expect("a name");
        let scene = Scene { plan: &plan, hit: &hit };
        assert_eq!(scene.commands(&step("ktcw-vm verify", None)), ["ktcw-vm -c lab verify"]);
        assert_eq!(Scene { plan: &plan, hit: &[] }.said("{hit} at {hit_ip} of {cluster}"), "<hit> at <address of hit> of lab");
    }

    /// A controller that was removed is in no solution: whoever is first now is.
    #[test]
    fn the_backup_is_fetched_from_whoever_has_it() {
        let plan = samples::plan("ktcw", 3, 0, Accel::Tcg);
        let hit = [NodeName::controller(1), NodeName::controller(2)];
        let scene = Scene { plan: &plan, hit: &hit };
        let labs = labs(None).expect("built in");
        let lab = labs.iter().find(|lab| lab.name == "restore-from-backup").expect("there");
        let first = scene.commands(&lab.solution[0]);
        assert!(first[0].contains("ktcw-vm ssh controller-1 -- cat /root/etcd-backup.db"), "{first:?}");
        assert!(lab.hints.iter().all(|hint| !scene.said(hint).contains("controller-0")), "{:?}", lab.hints);
    }

    /// The frame is shell, whatever is in it; and a script that was cut off runs nothing.
    #[test]
    fn scripts_are_framed() {
        let plan = samples::plan("ktcw", 1, 0, Accel::Tcg);
        let scene = Scene { plan: &plan, hit: &[NodeName::controller(0)] };
        let script = scene.script(plan.node(&NodeName::controller(0)), Timestamp::UNIX_EPOCH, "echo \"$NODE $HIT $NOW\"; cat");
        let run = |text: &str| std::process::Command::new("bash").args(["-c", text]).output().expect("bash");
        assert_eq!(String::from_utf8_lossy(&run(&script).stdout), "controller-0 controller-0 0\n");
        let cut = script.split_once("cat").expect("cat").0;
        assert!(run(cut).stdout.is_empty());
    }

    /// No command of any solution is left with a word that nothing replaces.
    #[test]
    fn every_solution_is_worded_in_full() {
        let plan = samples::plan("ktcw", 3, 1, Accel::Tcg);
        for lab in labs(None).expect("built in") {
            let hit = match lab.hit {
                crate::drill::catalogue::Target::Worker => vec![NodeName::worker(0)],
                _ => vec![NodeName::controller(1)],
            };
            let scene = Scene { plan: &plan, hit: &hit };
            for command in lab.solution.iter().flat_map(|step| scene.commands(step)) {
                for word in
                    ["hit", "hit_ip", "first", "first_ip", "other", "other_ip", "node", "ip", "vip", "cluster", "initial_cluster"]
                {
                    assert!(!command.contains(&format!("{{{word}}}")), "{}: {command}", lab.name);
                }
                let shell = std::process::Command::new("bash").args(["-n", "-c", &command]).output().expect("bash");
                assert!(shell.status.success(), "{}: {command}", lab.name);
            }
        }
    }
}
