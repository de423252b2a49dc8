//! What libvirt's XML says: marks out of metadata, names, paths, sizes.
//! Called with the text libvirt returned; a text that is not what it should be is an error that says so.
//! It reads the few elements we need and ignores all others, whatever libvirt's version adds.

use super::NAMESPACE;
use crate::host::Mark;
use crate::spec::{ClusterName, NodeName};
use ipnet::Ipv4Net;
use roxmltree::{Document, Node};
use std::net::Ipv4Addr;
use uuid::Uuid;

/// A domain's identity and what our metadata says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainXml {
    pub name: String,
    pub uuid: Uuid,
    pub mark: Option<Mark>,
    pub node: Option<NodeName>,
    /// Digest of the XML it was defined from.
    pub digest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkXml {
    pub name: String,
    pub uuid: Uuid,
    pub bridge: Option<String>,
    pub subnets: Vec<Ipv4Net>,
    pub mark: Option<Mark>,
    pub digest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolXml {
    pub name: String,
    pub uuid: Uuid,
    /// Directory of its volumes; pools of other kinds may have none.
    pub path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeXml {
    pub name: String,
    pub path: Option<String>,
    /// Bytes as the guest sees it.
    pub capacity: u64,
    /// Bytes of the file on the host.
    pub physical: Option<u64>,
    pub format: Option<String>,
    /// Path of its backing file.
    pub backing: Option<String>,
}

/// The emulator of a domain-capabilities document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulatorXml {
    pub path: String,
    /// `kvm` or `qemu`.
    pub domain_type: String,
}

pub fn domain(xml: &str) -> Result<DomainXml, String> {
    let document = parse(xml, "domain")?;
    let root = document.root_element();
    let ours = our_element(root);
    Ok(DomainXml {
        name: required(root, "name")?,
        uuid: uuid_of(root)?,
        mark: ours.and_then(mark_of),
        node: ours.and_then(|element| element.attribute("node")).and_then(|name| NodeName::parse(name).ok()),
        digest: ours.and_then(|element| element.attribute("plan")).map(str::to_owned),
    })
}

pub fn network(xml: &str) -> Result<NetworkXml, String> {
    let document = parse(xml, "network")?;
    let root = document.root_element();
    let ours = our_element(root);
    Ok(NetworkXml {
        name: required(root, "name")?,
        uuid: uuid_of(root)?,
        bridge: child(root, "bridge").and_then(|bridge| bridge.attribute("name")).map(str::to_owned),
        subnets: root
            .children()
            .filter(|node| node.has_tag_name("ip") || node.has_tag_name("route"))
            .filter_map(subnet_of)
            .collect(),
        mark: ours.and_then(mark_of),
        digest: ours.and_then(|element| element.attribute("plan")).map(str::to_owned),
    })
}

pub fn pool(xml: &str) -> Result<PoolXml, String> {
    let document = parse(xml, "pool")?;
    let root = document.root_element();
    Ok(PoolXml {
        name: required(root, "name")?,
        uuid: uuid_of(root)?,
        path: child(root, "target").and_then(|target| text(target, "path")),
    })
}

pub fn volume(xml: &str) -> Result<VolumeXml, String> {
    let document = parse(xml, "volume")?;
    let root = document.root_element();
    let target = child(root, "target");
    let bytes = |name: &str| text(root, name).and_then(|number| number.parse().ok());
    Ok(VolumeXml {
        name: required(root, "name")?,
        path: target.and_then(|target| text(target, "path")),
        capacity: bytes("capacity").ok_or("volume has no capacity")?,
        physical: bytes("physical"),
        format: target.and_then(|target| child(target, "format")).and_then(|format| format.attribute("type")).map(str::to_owned),
        backing: child(root, "backingStore").and_then(|backing| text(backing, "path")),
    })
}

/// Of `virConnectGetDomainCapabilities`.
pub fn emulator(xml: &str) -> Result<EmulatorXml, String> {
    let document = parse(xml, "domainCapabilities")?;
    let root = document.root_element();
    Ok(EmulatorXml { path: required(root, "path")?, domain_type: required(root, "domain")? })
}

/// Of `virConnectGetCapabilities`: KVM is listed for x86_64 guests.
pub fn kvm_listed(xml: &str) -> Result<bool, String> {
    let document = parse(xml, "capabilities")?;
    Ok(document
        .root_element()
        .descendants()
        .filter(|node| node.has_tag_name("arch") && node.attribute("name") == Some("x86_64"))
        .flat_map(|arch| arch.children())
        .any(|node| node.has_tag_name("domain") && node.attribute("type") == Some("kvm")))
}

fn parse<'a>(xml: &'a str, root: &str) -> Result<Document<'a>, String> {
    let document = Document::parse(xml).map_err(|error| format!("not XML: {error}"))?;
    if document.root_element().has_tag_name(root) {
        Ok(document)
    } else {
        Err(format!("<{}> where <{root}> was expected", document.root_element().tag_name().name()))
    }
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name).and_then(|child| child.text()).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn required(node: Node<'_, '_>, name: &str) -> Result<String, String> {
    text(node, name).ok_or_else(|| format!("<{}> has no <{name}>", node.tag_name().name()))
}

fn uuid_of(node: Node<'_, '_>) -> Result<Uuid, String> {
    let text = required(node, "uuid")?;
    Uuid::parse_str(&text).map_err(|error| format!("uuid {text:?}: {error}"))
}

fn our_element<'a, 'i>(root: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    child(root, "metadata")?.children().find(|node| node.has_tag_name((NAMESPACE, "cluster")))
}

/// A mark that does not parse is none of ours: nothing is touched on its strength.
fn mark_of(element: Node<'_, '_>) -> Option<Mark> {
    Some(Mark {
        cluster: ClusterName::parse(element.attribute("name")?).ok()?,
        instance: Uuid::parse_str(element.attribute("instance")?).ok()?,
        state_dir: decode_attribute(element.attribute("state-dir")?),
    })
}

/// An address with a prefix or a netmask. IPv6 and others are left out.
fn subnet_of(element: Node<'_, '_>) -> Option<Ipv4Net> {
    let address: Ipv4Addr = element.attribute("address")?.parse().ok()?;
    let net = match (element.attribute("prefix"), element.attribute("netmask")) {
        (Some(prefix), _) => Ipv4Net::new(address, prefix.parse().ok()?).ok()?,
        (None, Some(mask)) => Ipv4Net::with_netmask(address, mask.parse().ok()?).ok()?,
        // libvirt's own rule when neither is given.
        (None, None) => Ipv4Net::new(address, classful_prefix(address)).ok()?,
    };
    Some(net.trunc())
}

fn classful_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

/// Undoes `encode_attribute`. What is not `%XX` stands for itself.
fn decode_attribute(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok()).and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
