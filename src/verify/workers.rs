//! Judges the workers: each is Ready and has its witness pod; pods reach each other, the Service and its name; logs and exec work.
//! `verify` calls `judge`; `observe` takes from here which pods to ask and for what.
//! Without workers in the plan there are no checks at all.

use super::curl;
use super::observe::{Answer, Observed, PodSeen};
use super::report::{Check, Finding, Group, list};
use super::sections::Sections;
use super::{hint, script};
use crate::plan::{NodePlan, Plan};
use crate::said::one_line;
use crate::spec::NodeName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

#[derive(Deserialize)]
struct Items<T> {
    items: Vec<T>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Node {
    metadata: Metadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    conditions: Vec<Condition>,
    addresses: Vec<Address>,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<Ipv4Addr>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    restart_count: u32,
    state: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Service {
    spec: ServiceSpec,
}

#[derive(Deserialize)]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Ipv4Addr,
}

/// A witness pod that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    pub name: String,
    pub ip: Ipv4Addr,
}

/// Whom to ask, and what they are to reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// By worker.
    pub pods: BTreeMap<NodeName, Witness>,
    pub service: Option<Ipv4Addr>,
}

impl Targets {
    /// What the pod on `worker` asks: (name, URL).
    pub fn urls_for(&self, worker: &NodeName) -> Vec<(String, String)> {
        let others = self.pods.iter().filter(|(other, _)| *other != worker);
        let mut all: Vec<_> = others.map(|(other, pod)| (other.to_string(), format!("http://{}:8080/", pod.ip))).collect();
        if let Some(ip) = self.service {
            all.push(("service".to_owned(), format!("http://{ip}/")));
        }
        all.push(("name".to_owned(), format!("http://{}/", script::WITNESS_NAME)));
        all
    }
}

/// The frames of an API answer carry the run's token; here it is only asked whether the lists are whole.
pub(super) fn usable(answer: &Answer) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.ok("api").is_ok())
}

fn from_api<T: DeserializeOwned>(answer: &Sections, name: &str, token: &str) -> Result<T, String> {
    let replies = curl::replies(&answer.get("api")?.body, token);
    serde_json::from_str(curl::body(&replies, name)?).map_err(|error| format!("{name} cannot be read: {error}"))
}

/// The first good answer in the order of control planes, or the first reason why there is none.
fn first<T: DeserializeOwned>(plan: &Plan, seen: &Observed, name: &str) -> Result<(NodeName, T), String> {
    let mut reason = None;
    for node in plan.control_planes() {
        let answer = seen.nodes.get(&node.name).and_then(|seen| seen.api.as_ref());
        let answer = answer.ok_or_else(|| "it was not asked".to_owned()).and_then(|answer| answer.as_ref().map_err(Clone::clone));
        match answer.and_then(|answer| from_api(answer, name, &seen.token)) {
            Ok(value) => return Ok((node.name.clone(), value)),
            Err(why) => {
                reason.get_or_insert(format!("{}: {why}", node.name));
            }
        }
    }
    Err(reason.unwrap_or_else(|| "no control plane was asked".to_owned()))
}

/// Pods to ask and the Service's address, from the first usable answer. `None`: nothing to ask, or nobody to ask through.
pub(super) fn targets(plan: &Plan, api: &BTreeMap<NodeName, Answer>, token: &str) -> Option<Targets> {
    plan.workers().next()?;
    plan.control_planes().find_map(|node| {
        let answer = api.get(&node.name)?.as_ref().ok()?;
        let pods: Items<Pod> = from_api(answer, "pods", token).ok()?;
        let service: Option<Service> = from_api(answer, "service", token).ok();
        let on = |worker: &NodePlan| {
            let pod = witness_on(&pods.items, &worker.name).filter(|pod| running(pod))?;
            Some((worker.name.clone(), Witness { name: pod.metadata.name.clone(), ip: pod.status.pod_ip? }))
        };
        let pods: BTreeMap<_, _> = plan.workers().filter_map(on).collect();
        Some(Targets { pods, service: service.map(|service| service.spec.cluster_ip) })
    })
}

/// The pod on a node; one that is being deleted only when there is no other.
fn witness_on<'a>(pods: &'a [Pod], worker: &NodeName) -> Option<&'a Pod> {
    let name = worker.to_string();
    let here = || pods.iter().filter(|pod| pod.spec.node_name.as_ref() == Some(&name));
    here().find(|pod| pod.metadata.deletion_timestamp.is_none()).or_else(|| here().next())
}

fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

fn running(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.phase == "Running"
        && condition(&pod.status.conditions, "Ready").is_some_and(|ready| ready.status == "True")
}

pub fn judge(plan: &Plan, seen: &Observed) -> Vec<Check> {
    let mut checks = Vec::new();
    let workers: Vec<&NodePlan> = plan.workers().collect();
    if workers.is_empty() {
        return checks;
    }
    let nodes = first::<Items<Node>>(plan, seen, "nodes");
    let pods = first::<Items<Pod>>(plan, seen, "pods");
    for worker in &workers {
        let name = Some(&worker.name);
        let finding = match &nodes {
            Ok((via, nodes)) => ready(worker, &nodes.items).seen([format!("as the API server of {via} says")]),
            Err(why) => Finding::unknown(format!("no API server listed the nodes; {why}")),
        };
        let look = hint(plan, &format!("logs {} kubelet", worker.name));
        checks.push(finding.hint(look).file(Group::Workers, "workers.ready", name));
        let finding = match &pods {
            Ok((via, pods)) => witness(worker, &pods.items).seen([format!("as the API server of {via} says")]),
            Err(why) => Finding::unknown(format!("no API server listed the pods; {why}")),
        };
        let look = hint(plan, &format!("kubectl -n {} describe pods -l app={}", script::NAMESPACE, script::WITNESS));
        checks.push(finding.hint(look).file(Group::Workers, "pods.witness", name));
        checks.extend(from_inside(plan, worker, &workers, seen));
    }
    let finding = match &nodes {
        Ok((_, nodes)) => strangers(&workers, &nodes.items),
        Err(why) => Finding::unknown(format!("no API server listed the nodes; {why}")),
    };
    checks.push(finding.hint(hint(plan, "kubectl get nodes -o wide")).file(Group::Workers, "workers.expected", None));
    checks
}

fn ready(worker: &NodePlan, nodes: &[Node]) -> Finding {
    let name = worker.name.to_string();
    let Some(node) = nodes.iter().find(|node| node.metadata.name == name) else {
        return Finding::fail(format!("the API knows no node {name}"));
    };
    let facts = node.status.conditions.iter().map(|c| format!("{}={} {}: {}", c.kind, c.status, c.reason, one_line(&c.message)));
    let internal =
        node.status.addresses.iter().find(|address| address.kind == "InternalIP").map(|address| address.address.as_str());
    let finding = match condition(&node.status.conditions, "Ready") {
        None => Finding::unknown("the API does not say whether it is Ready"),
        Some(ready) if ready.status != "True" => {
            Finding::fail(format!("not Ready ({}): {} {}", ready.status, ready.reason, ready.message))
        }
        Some(_) if internal != Some(worker.ip.to_string().as_str()) => {
            Finding::fail(format!("Ready, but known at {}, planned is {}", internal.unwrap_or("no address"), worker.ip))
        }
        Some(_) => Finding::pass(format!("Ready at {}", worker.ip)),
    };
    finding.seen(facts)
}

fn strangers(workers: &[&NodePlan], nodes: &[Node]) -> Finding {
    let known = |name: &str| workers.iter().any(|worker| worker.name.to_string() == name);
    let strangers: Vec<_> = nodes.iter().map(|node| &node.metadata.name).filter(|name| !known(name)).collect();
    let facts = nodes.iter().map(|node| node.metadata.name.clone());
    if strangers.is_empty() {
        Finding::pass("the API knows no node that is not in the plan").seen(facts)
    } else {
        Finding::fail(format!("{} in the API and not in the plan", list(&strangers))).seen(facts)
    }
}

fn witness(worker: &NodePlan, pods: &[Pod]) -> Finding {
    let Some(pod) = witness_on(pods, &worker.name) else {
        return Finding::fail(format!("no witness pod on {}", worker.name));
    };
    let name = &pod.metadata.name;
    let waiting = pod.status.container_statuses.iter().find_map(|status| {
        let reason = status.state.get("waiting").or_else(|| status.state.get("terminated"))?.get("reason")?.as_str()?;
        Some(format!(" ({reason}, {} restarts)", status.restart_count))
    });
    if !running(pod) {
        let phase = if pod.metadata.deletion_timestamp.is_some() { "being deleted" } else { &pod.status.phase };
        return Finding::fail(format!("{name} is {phase} and not ready{}", waiting.unwrap_or_default()));
    }
    match (pod.status.pod_ip, worker.pod_subnet) {
        (None, _) => Finding::fail(format!("{name} is Running without an address")),
        (Some(ip), Some(subnet)) if !subnet.contains(&ip) => Finding::fail(format!("{name} has {ip}, not of {subnet}")),
        (Some(ip), _) => Finding::pass(format!("{name} is Running at {ip}")),
    }
}

/// What a pod said from inside, by target: wget's exit status and what it got.
type Said = BTreeMap<String, (u32, String)>;

/// The exit status of `kubectl exec`, and the pod's lines.
fn lines(answer: &Sections) -> Result<(u32, Said), String> {
    let section = answer.get("exec")?;
    let line = |line: &str| {
        let mut words = line.strip_prefix("@ ")?.splitn(3, ' ');
        let (name, exit) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some((name, (exit, one_line(words.next().unwrap_or_default()))))
    };
    Ok((section.exit, section.body.lines().filter_map(line).collect()))
}

/// The five lines about what can be seen from a worker's pod.
fn from_inside(plan: &Plan, worker: &NodePlan, workers: &[&NodePlan], seen: &Observed) -> Vec<Check> {
    let name = Some(&worker.name);
    let pod = seen.pods.get(&worker.name);
    let answer = match pod {
        Some(PodSeen { answer: Ok(answer), .. }) => Ok(answer),
        Some(PodSeen { answer: Err(why), .. }) => Err(why.clone()),
        None => Err("its pod was not asked: see pods.witness".to_owned()),
    };
    let pod_name = pod.map_or(script::WITNESS, |pod| &pod.pod);
    let via = pod.map_or_else(String::new, |pod| format!("through {}", pod.via));
    let look = |verb: &str| hint(plan, &format!("kubectl -n {} {verb}", script::NAMESPACE));
    let log = answer.clone().and_then(|answer| log(worker, answer, &seen.token)).unwrap_or_else(Finding::unknown);
    let said = answer.and_then(lines);
    let exec = match &said {
        Ok((exit, lines)) => exec(worker, *exit, lines, pod),
        Err(why) => Finding::unknown(why.clone()),
    };
    // A pod that is not the one we meant, or an exec that never got in, says nothing about the network.
    let inside = match said {
        Ok((exit, lines)) if lines.get("self").is_some_and(|(_, node)| *node == worker.name.to_string()) => Ok((exit, lines)),
        Ok(_) => Err("exec did not work: see pods.exec".to_owned()),
        Err(why) => Err(why),
    };
    let asked = |wanted: Vec<(String, Option<String>)>| match &inside {
        Ok((exit, lines)) => reached(*exit, lines, wanted),
        Err(why) => Finding::unknown(why.clone()),
    };
    let mut checks = Vec::new();
    let mut file = |finding: Finding, look: String, id: &str| {
        let via = Some(via.clone()).filter(|via| !via.is_empty());
        checks.push(finding.seen(via).hint(look).file(Group::Workers, id, name));
    };
    file(log, look(&format!("logs {pod_name}")), "pods.logs");
    file(exec, look(&format!("exec {pod_name} -- hostname")), "pods.exec");
    let others: Vec<_> = workers.iter().filter(|other| other.name != worker.name).map(|other| other.name.to_string()).collect();
    if !others.is_empty() {
        let wanted = others.into_iter().map(|other| (other.clone(), Some(other))).collect();
        file(asked(wanted), look("get pods -o wide"), "pods.network");
    }
    file(asked(vec![("service".to_owned(), None)]), look("get service,endpointslices"), "pods.service");
    let look = hint(plan, "kubectl -n kube-system get pods -l k8s-app=kube-dns -o wide");
    file(asked(vec![("name".to_owned(), None)]), look, "pods.dns");
    checks
}

fn log(worker: &NodePlan, answer: &Sections, token: &str) -> Result<Finding, String> {
    let replies = curl::replies(&answer.get("log")?.body, token);
    let reply = replies.get("log").ok_or("no reply about the log")?;
    let wanted = format!("witness on {} ready", worker.name);
    Ok(match reply.ok() {
        Err(why) => Finding::fail(format!("the log cannot be read: {why}")),
        Ok(body) if body.lines().any(|line| line == wanted) => Finding::pass(format!("the log says {wanted:?}")),
        Ok(body) => Finding::fail(format!("the log does not say {wanted:?}")).seen([format!("it begins {:?}", one_line(body))]),
    })
}

fn exec(worker: &NodePlan, exit: u32, lines: &Said, pod: Option<&PodSeen>) -> Finding {
    let raw = || {
        let body = pod.and_then(|pod| pod.answer.as_ref().ok()?.get("exec").ok()).map(|section| one_line(&section.body));
        body.into_iter().map(|body| format!("it said {body:?}"))
    };
    match lines.get("self") {
        Some((_, node)) if *node == worker.name.to_string() => Finding::pass(format!("a command ran in the pod on {node}")),
        Some((_, node)) => Finding::fail(format!("the command ran in a pod on {node:?}")).seen(raw()),
        None if exit == 124 => Finding::fail("kubectl exec did not end in time").seen(raw()),
        None if exit == 0 => Finding::unknown("kubectl exec ended well and said nothing").seen(raw()),
        None => Finding::fail(format!("kubectl exec ended with {exit}")).seen(raw()),
    }
}

/// Whether each target answered: with the given name, or with any (a Service chooses).
fn reached(exit: u32, lines: &Said, wanted: Vec<(String, Option<String>)>) -> Finding {
    let mut wrong = Vec::new();
    let mut absent = Vec::new();
    let mut facts = Vec::new();
    for (target, expected) in &wanted {
        match lines.get(target) {
            None if exit == 124 => wrong.push(format!("{target} did not answer in time")),
            None => absent.push(format!("{target} was not asked")),
            Some((0, said)) if expected.as_ref().map_or(NodeName::parse(said).is_ok(), |expected| expected == said) => {
                facts.push(format!("{target}: answered {said}"));
            }
            Some((0, said)) => wrong.push(format!("{target} answered {said:?}")),
            Some((exit, said)) => wrong.push(format!("{target}: wget ended with {exit}: {said}")),
        }
    }
    match (wrong.as_slice(), absent.as_slice()) {
        ([], []) => Finding::pass(list(&facts)),
        ([], [first, ..]) => Finding::unknown(first.clone()),
        ([only], _) => Finding::fail(only.clone()),
        ([first, rest @ ..], _) => Finding::fail(format!("{first} (and {} more)", rest.len())),
    }
    .seen(facts)
    .seen(wrong)
    .seen(absent)
}
