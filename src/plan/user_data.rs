//! What each node is told by cloud-init's NoCloud source: meta-data, user-data and network-config, as typed documents.
//! `apply` asks for a node's seed and `seed` puts it on a disk; `cli plan` shows the preview, which needs no key.
//! It knows the modules we use and no others, and secrets only as something the caller looks up by name.

use super::{Content, DiskKind, DiskPlan, FilePlan, NetworkPlan, NodePlan, PkiItem};
use crate::secret::Secret;
use crate::spec::{BASE_DISK_GIB, NodeName};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::{Compression, GzBuilder};
use ipnet::Ipv4Net;
use serde::{Serialize, Serializer};
use serde_saphyr::LitString;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;

/// The SSH keys of one node: who may log in, and what it identifies itself with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKeys {
    /// One line of OpenSSH public key text.
    pub authorized: String,
    /// OpenSSH private key text.
    pub host_private: Secret,
    /// One line of OpenSSH public key text.
    pub host_public: String,
}

/// The three documents of a NoCloud disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// Digest of the other two, hex: cloud-init runs again when it sees another one, and only then.
    pub instance_id: String,
    pub meta_data: String,
    /// Carries the node's private keys.
    pub user_data: Secret,
    pub network_config: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SeedError {
    #[error("{node}: {path} wants the {item}, which the key store does not have")]
    Missing { node: NodeName, path: String, item: PkiItem },
    #[error("{node}: {document} cannot be written as YAML: {reason}")]
    Yaml { node: NodeName, document: &'static str, reason: String },
}

/// The seed of a node. `routes` are pod networks and their next hops; the node's own is left out. `secrets` gives the text
/// of an item of the key store, secret or not.
pub fn seed(
    node: &NodePlan,
    network: &NetworkPlan,
    routes: &[(Ipv4Net, Ipv4Addr)],
    secrets: &dyn Fn(&PkiItem) -> Option<Secret>,
    ssh: &SshKeys,
) -> Result<Seed, SeedError> {
    let file = |plan: &FilePlan| match &plan.content {
        Content::Text { text } => Ok(WriteFile::text(plan, text)),
        Content::Pki { item } => match secrets(item) {
            Some(text) => Ok(WriteFile::packed(plan, &text)),
            None => Err(SeedError::Missing { node: node.name.clone(), path: plan.path.clone(), item: item.clone() }),
        },
    };
    let files = node.files.iter().map(file).collect::<Result<_, _>>()?;
    written(node, network, routes, files, ssh)
}

/// The same documents for people to read: `<private key …>` where a key would be, and every file as text.
pub fn preview(node: &NodePlan, network: &NetworkPlan, routes: &[(Ipv4Net, Ipv4Addr)]) -> Result<Seed, SeedError> {
    let file = |plan: &FilePlan| match &plan.content {
        Content::Text { text } => WriteFile::text(plan, text),
        Content::Pki { item } => WriteFile::text(plan, &format!("<{item}>\n")),
    };
    let ssh = SshKeys {
        authorized: "<public key of the client>".to_owned(),
        host_private: Secret::new("<private host key>"),
        host_public: "<public host key>".to_owned(),
    };
    written(node, network, routes, node.files.iter().map(file).collect(), &ssh)
}

fn written(
    node: &NodePlan,
    network: &NetworkPlan,
    routes: &[(Ipv4Net, Ipv4Addr)],
    files: Vec<WriteFile>,
    ssh: &SshKeys,
) -> Result<Seed, SeedError> {
    let user_data = yaml(node, "user-data", &UserData::new(node, files, ssh))?;
    let user_data = Secret::new(format!("#cloud-config\n{user_data}"));
    let network_config = yaml(node, "network-config", &NetworkConfig::new(node, network, routes))?;
    let digest = Sha256::new().chain_update(user_data.expose()).chain_update([0]).chain_update(&network_config).finalize();
    let instance_id: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let meta = MetaData { instance_id: &instance_id, local_hostname: node.name.to_string() };
    let meta_data = yaml(node, "meta-data", &meta)?;
    Ok(Seed { meta_data, user_data, network_config, instance_id })
}

/// One document. Long lines stay lines: nobody should have to put a public key together again.
fn yaml(node: &NodePlan, document: &'static str, value: &impl Serialize) -> Result<String, SeedError> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: 1 << 20 };
    serde_saphyr::to_string_with_options(value, options).map_err(|error| SeedError::Yaml {
        node: node.name.clone(),
        document,
        reason: error.to_string(),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData<'a> {
    instance_id: &'a str,
    local_hostname: String,
}

#[derive(Serialize)]
struct UserData<'a> {
    hostname: String,
    fqdn: String,
    preserve_hostname: bool,
    /// `/etc/hosts` is one of our files.
    manage_etc_hosts: bool,
    disable_root: bool,
    users: [User<'a>; 1],
    ssh_deletekeys: bool,
    ssh_keys: HostKeys<'a>,
    /// The root file system has no partition to grow; where the disk is larger than the image's, `bootcmd` grows it.
    growpart: Growpart,
    resize_rootfs: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bootcmd: Vec<[&'static str; 2]>,
    write_files: Vec<WriteFile>,
}

#[derive(Serialize)]
struct User<'a> {
    name: &'static str,
    ssh_authorized_keys: [&'a str; 1],
}

/// With keys given, cloud-init generates none.
#[derive(Serialize)]
struct HostKeys<'a> {
    #[serde(serialize_with = "exposed")]
    ed25519_private: &'a Secret,
    ed25519_public: &'a str,
}

#[derive(Serialize)]
struct Growpart {
    mode: &'static str,
}

impl<'a> UserData<'a> {
    fn new(node: &NodePlan, write_files: Vec<WriteFile>, ssh: &'a SshKeys) -> Self {
        Self {
            hostname: node.name.to_string(),
            fqdn: node.name.to_string(),
            preserve_hostname: false,
            manage_etc_hosts: false,
            disable_root: false,
            users: [User { name: "root", ssh_authorized_keys: [&ssh.authorized] }],
            ssh_deletekeys: true,
            ssh_keys: HostKeys { ed25519_private: &ssh.host_private, ed25519_public: &ssh.host_public },
            growpart: Growpart { mode: "off" },
            resize_rootfs: false,
            bootcmd: if grows(node) { vec![["resize2fs", "/dev/vda"]] } else { vec![] },
            write_files,
        }
    }
}

/// Whether the root disk is larger than the image's own.
fn grows(node: &NodePlan) -> bool {
    let larger = |disk: &DiskPlan| matches!(disk.kind, DiskKind::Root { size_gib } if u64::from(size_gib) > BASE_DISK_GIB);
    node.domain.disks.iter().any(larger)
}

fn exposed<S: Serializer>(secret: &&Secret, serializer: S) -> Result<S::Ok, S::Error> {
    LitString(secret.expose().to_owned()).serialize(serializer)
}

/// One entry of `write_files`. Owner and mode are always said: cloud-init's default mode is 0644.
#[derive(Serialize)]
struct WriteFile {
    path: String,
    owner: &'static str,
    /// Octal digits as text: a YAML number would be read as octal or decimal, depending on the reader.
    permissions: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    content: LitString,
}

impl WriteFile {
    fn new(plan: &FilePlan, encoding: Option<&'static str>, content: String) -> Self {
        let permissions = format!("{:04o}", plan.mode);
        Self { path: plan.path.clone(), owner: "root:root", permissions, encoding, content: LitString(content) }
    }

    /// Readable where YAML carries it as it is, base64 where it would not (control characters, other alphabets).
    fn text(plan: &FilePlan, text: &str) -> Self {
        if text.bytes().all(|byte| matches!(byte, b'\n' | b'\t' | b' '..=b'~')) {
            Self::new(plan, None, text.to_owned())
        } else {
            Self::new(plan, Some("b64"), BASE64.encode(text))
        }
    }

    /// Compressed and out of sight: nobody reads PEM, and whoever looks over a shoulder need not see a key.
    fn packed(plan: &FilePlan, text: &Secret) -> Self {
        // No name, no time, no host in the header: the same text gives the same bytes.
        let mut gz = GzBuilder::new().write(Vec::new(), Compression::best());
        match gz.write_all(text.expose().as_bytes()).and_then(|()| gz.finish()) {
            Ok(packed) => Self::new(plan, Some("gz+b64"), BASE64.encode(packed)),
            // Writing to memory does not fail; if it ever does, plain base64 says the same.
            Err(_) => Self::new(plan, Some("b64"), BASE64.encode(text.expose())),
        }
    }
}

/// Version 2, as netplan writes it.
#[derive(Serialize)]
struct NetworkConfig {
    version: u8,
    ethernets: BTreeMap<&'static str, Ethernet>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Ethernet {
    #[serde(rename = "match")]
    matched: Match,
    set_name: &'static str,
    dhcp4: bool,
    dhcp6: bool,
    addresses: [String; 1],
    routes: Vec<Route>,
    nameservers: Nameservers,
}

#[derive(Serialize)]
struct Match {
    /// Text of colons and digits: YAML 1.1 readers take an unquoted one for a number in base 60.
    macaddress: String,
}

#[derive(Serialize)]
struct Route {
    to: Ipv4Net,
    via: Ipv4Addr,
}

#[derive(Serialize)]
struct Nameservers {
    addresses: [Ipv4Addr; 1],
}

impl NetworkConfig {
    fn new(node: &NodePlan, network: &NetworkPlan, pods: &[(Ipv4Net, Ipv4Addr)]) -> Self {
        // netplan's word for it is `default`, which cloud-init's own renderers do not know.
        let default = Route { to: Ipv4Net::default(), via: network.gateway };
        let others = pods.iter().filter(|(_, via)| *via != node.ip).map(|&(to, via)| Route { to, via });
        let ethernet = Ethernet {
            matched: Match { macaddress: node.mac.clone() },
            set_name: "eth0",
            dhcp4: false,
            dhcp6: false,
            addresses: [format!("{}/{}", node.ip, network.subnet.prefix_len())],
            routes: std::iter::once(default).chain(others).collect(),
            nameservers: Nameservers { addresses: [network.gateway] },
        };
        Self { version: 2, ethernets: BTreeMap::from([("eth0", ethernet)]) }
    }
}
