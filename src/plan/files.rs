//! The files of every node: container definitions, configurations and where each key goes.
//! `plan` calls `of_node`; the templates are the readable files in `cloud-init/`, filled here and nowhere else.
//! It sees names, addresses and timers; secrets appear only by name.

use super::{AddressPlan, Ca, CertPlan, Content, FilePlan, KubeconfigPlan, PkiItem, Timers, Versions};
use crate::spec::{ClusterSpec, MachineSpec, NodeName, Role};
use askama::Template;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// What all nodes' files are made from.
pub(super) struct Facts<'a> {
    pub spec: &'a ClusterSpec,
    pub addresses: &'a AddressPlan,
    pub timers: &'a Timers,
    pub versions: &'a Versions,
    pub certs: &'a [CertPlan],
    pub kubeconfigs: &'a [KubeconfigPlan],
}

#[derive(Template)]
#[template(path = "etcd.container", escape = "none")]
struct Etcd<'a> {
    name: &'a NodeName,
    ip: Ipv4Addr,
    cluster: &'a str,
    initial_cluster: String,
    state: &'a str,
    quota_bytes: u64,
    timers: &'a Timers,
    versions: &'a Versions,
}

#[derive(Template)]
#[template(path = "kube-apiserver.container", escape = "none")]
struct Apiserver<'a> {
    ip: Ipv4Addr,
    etcd_servers: String,
    service_cidr: Ipv4Net,
    timers: &'a Timers,
    versions: &'a Versions,
}

#[derive(Template)]
#[template(path = "kube-controller-manager.container", escape = "none")]
struct ControllerManager<'a> {
    pod_cidr: Ipv4Net,
    service_cidr: Ipv4Net,
    timers: &'a Timers,
    versions: &'a Versions,
}

#[derive(Template)]
#[template(path = "kube-scheduler.container", escape = "none")]
struct Scheduler<'a> {
    timers: &'a Timers,
    versions: &'a Versions,
}

#[derive(Template)]
#[template(path = "keepalived.conf", escape = "none")]
struct Keepalived<'a> {
    name: &'a NodeName,
    ip: Ipv4Addr,
    vip: Ipv4Addr,
    peers: Vec<Ipv4Addr>,
    timers: &'a Timers,
}

#[derive(Template)]
#[template(path = "check-apiserver.sh", escape = "none")]
struct CheckApiserver<'a> {
    timers: &'a Timers,
}

#[derive(Template)]
#[template(path = "kubelet.container", escape = "none")]
struct Kubelet<'a> {
    name: &'a NodeName,
    ip: Ipv4Addr,
    versions: &'a Versions,
}

#[derive(Template)]
#[template(path = "kubelet.yaml", escape = "none")]
struct KubeletConfig {
    dns_service: Ipv4Addr,
}

#[derive(Template)]
#[template(path = "kube-proxy.container", escape = "none")]
struct KubeProxy<'a> {
    name: &'a NodeName,
    versions: &'a Versions,
}

#[derive(Template)]
#[template(path = "kube-proxy.yaml", escape = "none")]
struct KubeProxyConfig {
    pod_cidr: Ipv4Net,
}

#[derive(Template)]
#[template(path = "cni-bridge.conflist", escape = "none")]
struct CniBridge {
    pod_subnet: Ipv4Net,
}

#[derive(Template)]
#[template(path = "pod-egress.nft", escape = "none")]
struct PodEgress {
    pod_cidr: Ipv4Net,
}

#[derive(Template)]
#[template(path = "environment", escape = "none")]
struct Environment {
    endpoints: String,
    control_plane: bool,
}

#[derive(Template)]
#[template(path = "hosts", escape = "none")]
struct Hosts<'a> {
    name: &'a NodeName,
    ip: Ipv4Addr,
    vip: Ipv4Addr,
    controllers: Vec<(Ipv4Addr, NodeName)>,
}

#[derive(Template)]
#[template(path = "addons/coredns.yaml", escape = "none")]
struct CoreDns<'a> {
    dns_service: Ipv4Addr,
    versions: &'a Versions,
}

#[derive(Template)]
#[template(path = "addons/witness.yaml", escape = "none")]
struct Witness<'a> {
    versions: &'a Versions,
}

/// Where podman quadlet looks for container definitions.
pub const QUADLETS: &str = "/etc/containers/systemd";

/// All files of one node, in the order cloud-init writes them.
pub(super) fn of_node(facts: &Facts, node: &NodeName, control_plane: bool) -> Vec<FilePlan> {
    let ip = facts.addresses.node(node);
    let controllers = || facts.spec.controllers().into_iter();
    let mut files = vec![
        text(
            "/etc/hosts",
            0o644,
            Hosts {
                name: node,
                ip,
                vip: facts.addresses.vip(),
                controllers: controllers().map(|name| (facts.addresses.node(&name), name)).collect(),
            },
        ),
        plain("/etc/resolv.conf", format!("nameserver {}\n", facts.addresses.gateway())),
    ];
    match node.role() {
        Role::Controller => controller(facts, node, ip, control_plane, &mut files),
        Role::Worker => worker(facts, node, ip, &mut files),
    }
    keys(facts, node, control_plane, &mut files);
    files
}

/// Manifests for the API, in the order they are applied.
pub(super) fn addons(facts: &Facts) -> Vec<(String, String)> {
    let dns = CoreDns { dns_service: facts.addresses.dns_service(), versions: facts.versions };
    let witness = Witness { versions: facts.versions };
    vec![("coredns.yaml".to_owned(), filled(dns)), ("witness.yaml".to_owned(), filled(witness))]
}

/// etcd's own default of 2 GiB, or 80 % of a smaller disk: NOSPACE must come before a full disk.
pub(super) fn etcd_quota_bytes(machines: &MachineSpec) -> u64 {
    (u64::from(machines.etcd_disk_gib) << 30).min((5 << 30) / 2) / 5 * 4
}

fn controller(facts: &Facts, node: &NodeName, ip: Ipv4Addr, control_plane: bool, files: &mut Vec<FilePlan>) {
    let spec = facts.spec;
    let members = || spec.controllers().into_iter().map(|name| (facts.addresses.node(&name), name));
    let etcd = Etcd {
        name: node,
        ip,
        cluster: spec.name.as_str(),
        // A founder's word; whoever came later found a cluster that was there. Once it has data neither is read again.
        state: if joins(spec, node) { "existing" } else { "new" },
        initial_cluster: join(members().map(|(ip, name)| format!("{name}=https://{ip}:2380"))),
        quota_bytes: etcd_quota_bytes(&spec.machines),
        timers: facts.timers,
        versions: facts.versions,
    };
    let endpoints = join(members().map(|(ip, _)| format!("https://{ip}:2379")));
    files.extend([
        text("/etc/environment", 0o644, Environment { endpoints: endpoints.clone(), control_plane }),
        plain("/etc/systemd/system/ktcw-etcd-disk.service", include_str!("../../cloud-init/etcd-disk.service")),
        plain("/etc/systemd/system/var-lib-etcd.mount", include_str!("../../cloud-init/var-lib-etcd.mount")),
        text(&format!("{QUADLETS}/etcd.container"), 0o644, etcd),
    ]);
    if !control_plane {
        return;
    }
    let others = spec.control_plane_nodes().into_iter().filter(|other| other != node);
    let network = &spec.network;
    files.extend([
        text(
            &format!("{QUADLETS}/kube-apiserver.container"),
            0o644,
            Apiserver {
                ip,
                etcd_servers: endpoints,
                service_cidr: network.service_cidr,
                timers: facts.timers,
                versions: facts.versions,
            },
        ),
        text(
            &format!("{QUADLETS}/kube-controller-manager.container"),
            0o644,
            ControllerManager {
                pod_cidr: network.pod_cidr,
                service_cidr: network.service_cidr,
                timers: facts.timers,
                versions: facts.versions,
            },
        ),
        text(
            &format!("{QUADLETS}/kube-scheduler.container"),
            0o644,
            Scheduler { timers: facts.timers, versions: facts.versions },
        ),
        text(
            "/etc/keepalived/keepalived.conf",
            0o644,
            Keepalived {
                name: node,
                ip,
                vip: facts.addresses.vip(),
                peers: others.map(|other| facts.addresses.node(&other)).collect(),
                timers: facts.timers,
            },
        ),
        text("/etc/keepalived/check-apiserver.sh", 0o755, CheckApiserver { timers: facts.timers }),
    ]);
}

fn joins(spec: &ClusterSpec, node: &NodeName) -> bool {
    spec.lineage.joined.contains(node) || spec.lineage.joining.as_ref() == Some(node)
}

fn worker(facts: &Facts, node: &NodeName, ip: Ipv4Addr, files: &mut Vec<FilePlan>) {
    let pod_cidr = facts.spec.network.pod_cidr;
    files.extend([
        text(&format!("{QUADLETS}/kubelet.container"), 0o644, Kubelet { name: node, ip, versions: facts.versions }),
        text("/etc/kubernetes/kubelet.yaml", 0o644, KubeletConfig { dns_service: facts.addresses.dns_service() }),
        text(&format!("{QUADLETS}/kube-proxy.container"), 0o644, KubeProxy { name: node, versions: facts.versions }),
        text("/etc/kubernetes/kube-proxy.yaml", 0o644, KubeProxyConfig { pod_cidr }),
        text("/etc/cni/net.d/10-ktcw.conflist", 0o644, CniBridge { pod_subnet: facts.addresses.pods(node.index()) }),
        text("/etc/ktcw/pod-egress.nft", 0o644, PodEgress { pod_cidr }),
        plain("/etc/systemd/system/ktcw-pod-egress.service", include_str!("../../cloud-init/pod-egress.service")),
    ]);
}

/// Certificates, keys and kubeconfigs, from the table's `at` columns.
fn keys(facts: &Facts, node: &NodeName, control_plane: bool, files: &mut Vec<FilePlan>) {
    let mut put = |path: String, item: PkiItem| {
        let mode = if item.is_secret() { 0o600 } else { 0o644 };
        files.push(FilePlan { path, mode, content: Content::Pki { item } });
    };
    match node.role() {
        Role::Controller => put("/etc/etcd/pki/ca.pem".to_owned(), PkiItem::CaCert { ca: Ca::Etcd }),
        Role::Worker => {}
    }
    // Everyone can verify the API's certificate: `verify` asks every API server from every node.
    put("/etc/kubernetes/pki/ca.pem".to_owned(), PkiItem::CaCert { ca: Ca::Kubernetes });
    if control_plane {
        put("/etc/kubernetes/pki/etcd-ca.pem".to_owned(), PkiItem::CaCert { ca: Ca::Etcd });
        put("/etc/kubernetes/pki/front-proxy-ca.pem".to_owned(), PkiItem::CaCert { ca: Ca::FrontProxy });
        put("/etc/kubernetes/pki/service-account.pub".to_owned(), PkiItem::ServiceAccountPublicKey);
        put("/etc/kubernetes/pki/service-account-key.pem".to_owned(), PkiItem::ServiceAccountKey);
        put("/etc/kubernetes/encryption.yaml".to_owned(), PkiItem::EncryptionConfig);
    }
    for cert in facts.certs.iter().filter(|cert| cert.node.as_ref() == Some(node)) {
        if let Some(at) = &cert.at {
            put(format!("{at}.pem"), PkiItem::Cert { id: cert.id.clone() });
            put(format!("{at}-key.pem"), PkiItem::Key { id: cert.id.clone() });
        }
    }
    for kubeconfig in facts.kubeconfigs.iter().filter(|k| k.node.as_ref() == Some(node)) {
        if let Some(at) = &kubeconfig.at {
            put(at.clone(), PkiItem::Kubeconfig { id: kubeconfig.id.clone() });
        }
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

fn text(path: &str, mode: u32, template: impl Template) -> FilePlan {
    FilePlan { path: path.to_owned(), mode, content: Content::Text { text: filled(template) } }
}

fn plain(path: &str, text: impl Into<String>) -> FilePlan {
    FilePlan { path: path.to_owned(), mode: 0o644, content: Content::Text { text: text.into() } }
}

/// Rendering to a `String` fails only when a value's `Display` does, and ours do not.
#[expect(clippy::expect_used, reason = "writing to a String does not fail")]
fn filled(template: impl Template) -> String {
    let mut text = template.render().expect("templates render to a String");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
