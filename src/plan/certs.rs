//! The PKI as planned values: which certificates and kubeconfigs exist, for whom, valid for what, delivered where.
//! `plan` expands the table in `certs/pki.toml`; `pki` makes what is listed, `verify` and `certs` compare with it.
//! It holds no key and no date.

use super::AddressPlan;
use crate::spec::{ClusterSpec, NodeName, Role};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

const TABLE: &str = include_str!("../../certs/pki.toml");

/// A certificate authority of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ca {
    Etcd,
    Kubernetes,
    FrontProxy,
}

impl Ca {
    pub const ALL: [Ca; 3] = [Ca::Etcd, Ca::Kubernetes, Ca::FrontProxy];
    /// File stem in the key store and common name, as in the table.
    pub fn common_name(self) -> &'static str {
        match self {
            Ca::Etcd => "etcd-ca",
            Ca::Kubernetes => "kubernetes-ca",
            Ca::FrontProxy => "front-proxy-ca",
        }
    }
}

impl fmt::Display for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.common_name())
    }
}

/// Extended key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Usage {
    Server,
    Client,
}

/// One leaf certificate to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertPlan {
    /// `<row>` for the host's own, `<row>@<node>` else. Unique; also the file stem in the key store.
    pub id: String,
    pub ca: Ca,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub usages: Vec<Usage>,
    pub dns_names: Vec<String>,
    pub ips: Vec<Ipv4Addr>,
    /// The node that receives it; `None`: it stays on the host.
    pub node: Option<NodeName>,
    /// Path stem on the node; `None`: only inside a kubeconfig.
    pub at: Option<String>,
}

/// One kubeconfig to be made, with its client certificate embedded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeconfigPlan {
    /// `<row>` or `<row>@<node>`.
    pub id: String,
    /// `https://<address>:6443`
    pub server: String,
    /// Cluster and context name written into it.
    pub cluster: String,
    pub user: String,
    /// Id of the `CertPlan` it embeds.
    pub cert: String,
    pub node: Option<NodeName>,
    /// Path on the node.
    pub at: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    ca: Vec<CaRow>,
    cert: Vec<CertRow>,
    kubeconfig: Vec<KubeconfigRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaRow {
    id: Ca,
    cn: String,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Per {
    Etcd,
    ControlPlane,
    Worker,
    Host,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum San {
    Node,
    Apiserver,
    None,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertRow {
    id: String,
    ca: Ca,
    per: Per,
    cn: String,
    #[serde(default)]
    o: Vec<String>,
    usage: Vec<Usage>,
    san: San,
    at: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Server {
    Local,
    Vip,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KubeconfigRow {
    id: String,
    cert: String,
    server: Server,
    at: Option<String>,
}

/// Expands the table for a cluster. The table is compiled in and checked by a test.
pub(super) fn expand(spec: &ClusterSpec, addresses: &AddressPlan) -> (Vec<CertPlan>, Vec<KubeconfigPlan>) {
    let table = table();
    let mut certs = Vec::new();
    for row in &table.cert {
        for node in receivers(row.per, spec) {
            certs.push(cert(row, node, addresses));
        }
    }
    let mut kubeconfigs = Vec::new();
    for row in &table.kubeconfig {
        let Some(of) = table.cert.iter().find(|cert| cert.id == row.cert) else { continue };
        for node in receivers(of.per, spec) {
            let server = match row.server {
                Server::Local => Ipv4Addr::LOCALHOST,
                Server::Vip => addresses.vip(),
            };
            kubeconfigs.push(KubeconfigPlan {
                id: at_node(&row.id, node.as_ref()),
                server: format!("https://{server}:6443"),
                cluster: spec.name.to_string(),
                user: named(&of.cn, node.as_ref()),
                cert: at_node(&row.cert, node.as_ref()),
                node,
                at: row.at.clone(),
            });
        }
    }
    (certs, kubeconfigs)
}

#[expect(clippy::expect_used, reason = "the table is compiled in; a test parses it")]
fn table() -> Table {
    let table: Table = toml::from_str(TABLE).expect("certs/pki.toml is checked by a test");
    debug_assert!(table.ca.iter().all(|row| row.cn == row.id.common_name()));
    table
}

fn receivers(per: Per, spec: &ClusterSpec) -> Vec<Option<NodeName>> {
    let some = |nodes: Vec<NodeName>| nodes.into_iter().map(Some).collect();
    match per {
        Per::Etcd => some(spec.controllers()),
        Per::ControlPlane => some(spec.control_plane_nodes()),
        Per::Worker => some(spec.nodes_of(Role::Worker)),
        Per::Host => vec![None],
    }
}

fn cert(row: &CertRow, node: Option<NodeName>, addresses: &AddressPlan) -> CertPlan {
    let mut dns_names = Vec::new();
    let mut ips = Vec::new();
    if let (San::Node | San::Apiserver, Some(node)) = (&row.san, &node) {
        dns_names.extend([node.to_string(), "localhost".to_owned()]);
        ips.extend([addresses.node(node), Ipv4Addr::LOCALHOST]);
    }
    if matches!(row.san, San::Apiserver) {
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
        dns_names.extend(names.map(str::to_owned));
        ips.extend([addresses.vip(), addresses.kubernetes_service()]);
    }
    CertPlan {
        id: at_node(&row.id, node.as_ref()),
        ca: row.ca,
        common_name: named(&row.cn, node.as_ref()),
        organizations: row.o.clone(),
        usages: row.usage.clone(),
        dns_names,
        ips,
        node,
        at: row.at.clone(),
    }
}

fn at_node(id: &str, node: Option<&NodeName>) -> String {
    node.map_or_else(|| id.to_owned(), |node| format!("{id}@{node}"))
}

fn named(cn: &str, node: Option<&NodeName>) -> String {
    node.map_or_else(|| cn.to_owned(), |node| cn.replace("{node}", &node.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{RawSpec, validate};

    fn ha3() -> (ClusterSpec, AddressPlan) {
        let spec = validate(&RawSpec::default()).expect("valid");
        let addresses = AddressPlan::new(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 77, 0), 24), &spec.network);
        (spec, addresses)
    }

    #[test]
    fn the_table_parses_and_names_every_ca_and_every_certificate_it_refers_to() {
        let table = table();
        assert!(Ca::ALL.iter().all(|ca| table.ca.iter().any(|row| row.id == *ca && row.cn == ca.common_name())));
        for row in &table.kubeconfig {
            assert!(table.cert.iter().any(|cert| cert.id == row.cert), "{}", row.id);
        }
    }

    #[test]
    fn ids_are_unique_and_sans_cover_every_address_an_endpoint_is_reached_at() {
        let (spec, addresses) = ha3();
        let (certs, kubeconfigs) = expand(&spec, &addresses);
        let mut ids: Vec<_> = certs.iter().map(|c| &c.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), certs.len());
        for cert in certs.iter().filter(|c| c.usages.contains(&Usage::Server)) {
            let node = cert.node.as_ref().expect("servers run on nodes");
            assert!(cert.ips.contains(&addresses.node(node)) && cert.ips.contains(&Ipv4Addr::LOCALHOST), "{}", cert.id);
        }
        for cert in certs.iter().filter(|c| c.id.starts_with("kube-apiserver@")) {
            assert!(cert.ips.contains(&addresses.vip()) && cert.ips.contains(&addresses.kubernetes_service()));
        }
        for kubeconfig in &kubeconfigs {
            let cert = certs.iter().find(|c| c.id == kubeconfig.cert).expect("its certificate is planned");
            assert_eq!((&cert.node, cert.ca, cert.usages.as_slice()), (&kubeconfig.node, Ca::Kubernetes, &[Usage::Client][..]));
        }
    }

    #[test]
    fn both_usages_on_what_etcd_dials_itself_with() {
        let (spec, addresses) = ha3();
        for cert in expand(&spec, &addresses).0 {
            if cert.id.starts_with("etcd-server@") || cert.id.starts_with("etcd-peer@") {
                assert_eq!(cert.usages, [Usage::Server, Usage::Client], "{}", cert.id);
            }
        }
    }
}
