//! The probes as text: bash scripts that ask a node everything at once and print one section per question.
//! `observe` sends them on standard input; judges read the sections by the names given here.
//! They start few processes, because a guest of one CPU pays 5–10 ms for each (ten times that when emulated), and judge nothing.

use super::curl::{self, Order, Patience, Request, Tls};
use crate::guest::quote;
use crate::plan::{Ca, Content, ELECTIONS, FilePlan, NodePlan, PkiItem, Plan};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Where the witness pods run, and the Service in front of them.
pub const NAMESPACE: &str = "ktcw-system";
pub const WITNESS: &str = "witness";
/// The witness Service's name, as a pod resolves it.
pub const WITNESS_NAME: &str = "witness.ktcw-system.svc.cluster.local";
/// Keeps a node's clock; no unit of the plan, and asked for with them.
pub const TIME_DAEMON: &str = "systemd-timesyncd.service";
/// systemd properties asked of every unit.
const UNIT_PROPERTIES: &str = "Id,LoadState,Type,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestampMonotonic";

/// How long each part of a probe may take; all fit into the plan's probe deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// The whole script.
    pub script: Duration,
    pub curl: Patience,
    /// One question to systemd.
    pub systemctl_s: u32,
    /// One `kubectl exec`.
    pub exec_s: u32,
    /// One `wget` in a pod.
    pub wget_s: u32,
}

impl Deadlines {
    pub fn of(plan: &Plan) -> Self {
        let all = plan.timers.probe_deadline_s.max(15);
        Self {
            script: Duration::from_secs(u64::from(all)),
            curl: Patience { connect_s: all / 15, answer_s: all / 6 },
            systemctl_s: all / 6,
            exec_s: all / 3,
            wget_s: all / 10,
        }
    }
}

/// What was asked, as a shell function that frames each answer. Everything is parsed before anything runs, so a cut
/// connection runs nothing by halves, and no command can read the script from standard input.
fn framed(title: &str, token: &str, body: &str) -> String {
    format!(
        "# ktcw-vm verify: {title}\n\
         export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         shopt -s nullglob\n\
         s() {{\n  local name=$1 exit; shift\n  printf '@@{token} begin %s\\n' \"$name\"\n  \"$@\" 2>&1; exit=$?\n  \
         printf '\\n@@{token} end %s %d\\n' \"$name\" \"$exit\"\n}}\n\
         main() {{\n{body}printf '@@{token} done\\n'\n}}\n\
         main </dev/null\n"
    )
}

/// Everything a node can be asked about itself and about what it reaches.
pub fn probe(plan: &Plan, node: &NodePlan, token: &str) -> String {
    let deadlines = Deadlines::of(plan);
    // What waits for the network runs beside the rest, each through a pipe of its own.
    let mut beside = Vec::new();
    if let Some(ca) = ca_file(node, Ca::Kubernetes) {
        let tls = Tls { ca: ca.to_owned(), client: None };
        beside.push(("matrix", curl::command(&readyz(plan), &tls, deadlines.curl, Order::Parallel, token)));
    }
    if let Some(tls) = etcd_tls(plan, node) {
        let ask = |requests: &[Request], order| curl::command(requests, &tls, deadlines.curl, order, token);
        beside.push(("etcd", ask(&etcd_facts(node.ip), Order::UntilSilence)));
        beside.push(("etcd-write", ask(&etcd_write(node, token), Order::All)));
    }
    let mut body = String::new();
    for (i, (name, command)) in beside.iter().enumerate() {
        let _ = writeln!(body, "exec {}< <(s {name} {command})", i + 3);
    }
    let timeout = deadlines.systemctl_s;
    let units = words(&node.units);
    let files = words(node.files.iter().map(|file| &file.path));
    let certs = words(public_files(node));
    let _ = write!(
        body,
        "s state grep -H '' /proc/uptime /proc/sys/kernel/hostname /run/cloud-init/result.json\n\
         s system timeout {timeout} systemctl show --property=SystemState\n\
         s failed timeout {timeout} systemctl list-units --failed --plain --no-legend --no-pager\n\
         s units timeout {timeout} systemctl show --property={UNIT_PROPERTIES} {units} {TIME_DAEMON}\n\
         s files stat -c '%f %u %g %s %n' -- {files} /etc/etcd/pki/*-key.pem /etc/kubernetes/pki/*-key.pem /etc/kubernetes/*.kubeconfig\n\
         s addresses ip -4 -o addr show\n\
         s certs grep -H '' {certs}\n"
    );
    let kubeconfigs = words(kubeconfig_files(node));
    if !kubeconfigs.is_empty() {
        let _ =
            writeln!(body, "s kubeconfigs grep -HE '^ *(client-certificate-data|certificate-authority-data): ' {kubeconfigs}");
    }
    if !beside.is_empty() {
        let _ = writeln!(body, "cat {}", words((0..beside.len()).map(|i| format!("/dev/fd/{}", i + 3))));
    }
    framed(&format!("probe of {}", node.name), token, &body)
}

/// What the API knows, asked of a control plane's own API server. `None` where there is none.
pub fn api(plan: &Plan, node: &NodePlan, token: &str) -> Option<String> {
    let base = "https://127.0.0.1:6443";
    let leases = ELECTIONS.map(|name| {
        Request::get(format!("lease/{name}"), format!("{base}/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}"))
    });
    let mut requests = leases.to_vec();
    if plan.workers().next().is_some() {
        let pods = format!("{base}/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3D{WITNESS}");
        let service = format!("{base}/api/v1/namespaces/{NAMESPACE}/services/{WITNESS}");
        requests.push(Request::get("pods", pods));
        requests.push(Request::get("service", service));
        requests.push(Request::get("nodes", format!("{base}/api/v1/nodes")));
    }
    let ask = curl::command(&requests, &api_tls(plan, node)?, Deadlines::of(plan).curl, Order::UntilSilence, token);
    // The time is taken before the question: a lease then looks younger than it is by no more than the question took.
    let body = format!("s time printf '%s' \"$EPOCHREALTIME\"\ns api {ask}\n");
    Some(framed(&format!("the API as {} sees it", node.name), token, &body))
}

/// A second question to an etcd member: the hash of everything at one revision that all members have.
pub fn hash(plan: &Plan, node: &NodePlan, revision: i64, token: &str) -> Option<String> {
    let base = format!("https://{}:2379/v3/maintenance", node.ip);
    let requests = [
        Request::post("hashkv", format!("{base}/hashkv"), format!("{{\"revision\": {revision}}}")),
        Request::post("status", format!("{base}/status"), "{}"),
    ];
    let ask = curl::command(&requests, &etcd_tls(plan, node)?, Deadlines::of(plan).curl, Order::UntilSilence, token);
    Some(framed(&format!("etcd's hash on {}", node.name), token, &format!("s hash {ask}\n")))
}

/// Into a witness pod and back: the first lines of its log, and a `kubectl exec` that asks every target (name, URL) at once
/// and prints `@ <name> <exit status> <answer>` for each.
pub fn pod(plan: &Plan, via: &NodePlan, pod: &str, targets: &[(String, String)], token: &str) -> Option<String> {
    let kubeconfig = via.files.iter().find_map(|file| match &file.content {
        Content::Pki { item: PkiItem::Kubeconfig { id } } if id.starts_with("node-admin@") => Some(&file.path),
        _ => None,
    })?;
    let deadlines = Deadlines::of(plan);
    let log = Request::get(
        "log",
        format!("https://127.0.0.1:6443/api/v1/namespaces/{NAMESPACE}/pods/{pod}/log?container={WITNESS}&limitBytes=4096"),
    );
    let log = curl::command(&[log], &api_tls(plan, via)?, deadlines.curl, Order::All, token);
    let mut inner = format!(
        "echo @ self 0 $NODE_NAME; g() {{ a=$(wget -q -T {} -O - \"$2\" 2>&1); c=$?; echo @ $1 $c $a; }}; ",
        deadlines.wget_s
    );
    for (name, url) in targets {
        let _ = write!(inner, "g {} {} & ", quote(name), quote(url));
    }
    inner.push_str("wait");
    let body = format!(
        "exec 3< <(s log {log})\n\
         s exec timeout -k 1 {} /usr/local/bin/kubectl --kubeconfig={} -n {NAMESPACE} exec {} -c {WITNESS} -- sh -c {}\n\
         cat /dev/fd/3\n",
        deadlines.exec_s,
        quote(kubeconfig),
        quote(pod),
        quote(&inner)
    );
    Some(framed(&format!("pod {pod} through {}", via.name), token, &body))
}

/// The name of the virtual address among the targets of the matrix.
pub const VIP: &str = "vip";

fn readyz(plan: &Plan) -> Vec<Request> {
    let ask = |name: String, ip: Ipv4Addr| Request::get(name, format!("https://{ip}:6443/readyz"));
    let mut all: Vec<_> = plan.control_planes().map(|node| ask(node.name.to_string(), node.ip)).collect();
    all.push(ask(VIP.to_owned(), plan.network.vip));
    all
}

/// What a member answers from its own memory, quorum or not. Its own port, by its own address.
fn etcd_facts(ip: Ipv4Addr) -> [Request; 2] {
    [
        Request::post("status", format!("https://{ip}:2379/v3/maintenance/status"), "{}"),
        Request::post("members", format!("https://{ip}:2379/v3/cluster/member/list"), "{\"linearizable\": false}"),
    ]
}

/// What needs a quorum: a put, a linearizable read of the same key, and the list of alarms.
fn etcd_write(node: &NodePlan, token: &str) -> [Request; 3] {
    let base = format!("https://{}:2379/v3", node.ip);
    let key = base64(&format!("/ktcw/verify/{}", node.name));
    [
        Request::post("put", format!("{base}/kv/put"), format!("{{\"key\": \"{key}\", \"value\": \"{}\"}}", base64(token))),
        Request::post("range", format!("{base}/kv/range"), format!("{{\"key\": \"{key}\"}}")),
        Request::post("alarms", format!("{base}/maintenance/alarm"), "{\"action\": \"GET\"}"),
    ]
}

pub(super) fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Where a node keeps a CA's certificate, if it has it.
pub fn ca_file(node: &NodePlan, wanted: Ca) -> Option<&str> {
    node.files.iter().find_map(|file| match &file.content {
        Content::Pki { item: PkiItem::CaCert { ca } } if *ca == wanted => Some(file.path.as_str()),
        _ => None,
    })
}

/// Certificate and key of a row of the PKI table on this node.
fn pair(plan: &Plan, node: &NodePlan, row: &str) -> Option<(String, String)> {
    let id = format!("{row}@{}", node.name);
    let at = plan.certs.iter().find(|cert| cert.id == id)?.at.as_ref()?;
    Some((format!("{at}.pem"), format!("{at}-key.pem")))
}

fn etcd_tls(plan: &Plan, node: &NodePlan) -> Option<Tls> {
    let client = pair(plan, node, "etcd-client")?;
    Some(Tls { ca: ca_file(node, Ca::Etcd)?.to_owned(), client: Some(client) })
}

/// The API server's own client certificate speaks for `system:masters` and lies in a file, where the admin's is inside
/// a kubeconfig: no key needs to be copied for `curl` to use it.
fn api_tls(plan: &Plan, node: &NodePlan) -> Option<Tls> {
    let client = pair(plan, node, "apiserver-kubelet-client")?;
    Some(Tls { ca: ca_file(node, Ca::Kubernetes)?.to_owned(), client: Some(client) })
}

/// Files that hold certificates and no secret.
fn public_files(node: &NodePlan) -> Vec<&str> {
    let public = |file: &&FilePlan| matches!(file.content, Content::Pki { item: PkiItem::CaCert { .. } | PkiItem::Cert { .. } });
    node.files.iter().filter(public).map(|file| file.path.as_str()).collect()
}

fn kubeconfig_files(node: &NodePlan) -> Vec<&str> {
    let has = |file: &&FilePlan| matches!(file.content, Content::Pki { item: PkiItem::Kubeconfig { .. } });
    node.files.iter().filter(has).map(|file| file.path.as_str()).collect()
}

fn words<T: AsRef<str>>(words: impl IntoIterator<Item = T>) -> String {
    words.into_iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}
