//! libvirt's XML: what we define, rendered from the templates in `templates/`, and what libvirt returns, parsed.
//! `libvirt` and golden tests call it; every function is pure and every value is escaped.
//! It knows no connection: paths of the host come in a `Layout`, found out by the caller.

mod parse;

pub use parse::{DomainXml, EmulatorXml, NetworkXml, PoolXml, VolumeXml, domain, emulator, kvm_listed, network, pool, volume};

use super::{HostError, Mark, VolumeFormat};
use crate::plan::{Accel, CpuModel, DiskKind, DomainPlan, NetworkPlan, StoragePlan};
use crate::spec::NodeName;
use askama::Template;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use uuid::Uuid;

/// Namespace of our element in libvirt's `<metadata>`.
pub const NAMESPACE: &str = "https://ktcw-vm.invalid/ns/1";

/// CPU model under TCG, without AVX: against `max`, guests boot as fast, and SFTP was 1.7 times as fast (measured once).
const TCG_CPU: &str = "Nehalem";

/// Where things are on the host behind the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Directory of the cluster's pool.
    pub pool_dir: String,
    /// Directory of the image pool.
    pub image_dir: String,
    /// A firmware that does nothing but start the kernel (qboot), when the host has one; else QEMU's default, SeaBIOS.
    pub firmware: Option<String>,
    /// The pool's file system takes direct I/O.
    pub direct_io: bool,
}

impl Layout {
    /// Where virtlogd keeps a machine's serial console: in the pool, so that it can be read over any connection and
    /// goes with the pool.
    pub fn console_log(&self, domain: &str) -> String {
        format!("{}/{}", self.pool_dir, console_volume(domain))
    }
}

/// Name of the console's log as a volume of the cluster's pool.
pub fn console_volume(domain: &str) -> String {
    format!("{domain}.console.log")
}

enum Cpu {
    Host,
    HostWithout(&'static str),
    Named(&'static str),
}

struct Disk<'a> {
    target: &'a str,
    path: String,
    format: &'static str,
    serial: &'static str,
    readonly: bool,
    /// `None` leaves QEMU's default, write-back with flushes honoured.
    cache: Option<&'static str>,
    io: Option<&'static str>,
    slot: String,
}

/// Everything on bus 0, without root ports: nothing is hot-plugged here, ports cost boot time, and qboot sets up bus 0 alone.
const FIRST_DISK_SLOT: usize = 8;

/// What an emulated machine may keep of translated code, MiB: QEMU would take up to a gigabyte, more than the guest itself.
pub fn translations_mib(accel: &Accel) -> Option<u32> {
    (*accel == Accel::Tcg).then_some(320)
}

#[derive(Template)]
#[template(path = "domain.xml")]
struct DomainTemplate<'a> {
    namespace: &'static str,
    domain_type: &'static str,
    plan: &'a DomainPlan,
    mark: &'a Mark,
    node: &'a NodeName,
    state_dir: String,
    digest: &'a str,
    layout: &'a Layout,
    kernel: String,
    initrd: Option<String>,
    cmdline: String,
    cpu: Cpu,
    /// TCG: room for translated code.
    translations_mib: Option<u32>,
    disks: Vec<Disk<'a>>,
    console_log: String,
}

#[derive(Template)]
#[template(path = "network.xml")]
struct NetworkTemplate<'a> {
    namespace: &'static str,
    plan: &'a NetworkPlan,
    mark: &'a Mark,
    state_dir: String,
    digest: &'a str,
}

#[derive(Template)]
#[template(path = "pool.xml")]
struct PoolTemplate<'a> {
    name: &'a str,
    uuid: Uuid,
    path: &'a str,
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume<'a> {
    pub name: &'a str,
    /// Bytes.
    pub capacity: u64,
    pub format: VolumeFormat,
    /// Path of a qcow2 it is an overlay of.
    pub backing: Option<&'a str>,
    /// Readable by all (images) or by its owner alone (disks and seeds, which carry keys).
    pub public: bool,
}

#[derive(Template)]
#[template(path = "volume.xml")]
struct VolumeTemplate<'a> {
    volume: &'a NewVolume<'a>,
    format: &'static str,
    mode: &'static str,
}

struct SnapshotDisk<'a> {
    target: &'a str,
    how: &'static str,
}

#[derive(Template)]
#[template(path = "snapshot.xml")]
struct SnapshotTemplate<'a> {
    name: &'a str,
    description: String,
    disks: Vec<SnapshotDisk<'a>>,
}

/// A domain. The digest of all it says is in its metadata, so that a later `up` can tell whether anything changed
/// without knowing how libvirt fills in defaults.
pub fn domain_xml(
    plan: &DomainPlan,
    storage: &StoragePlan,
    layout: &Layout,
    node: &NodeName,
    mark: &Mark,
) -> Result<String, HostError> {
    with_digest(&plan.name, |digest| {
        let (domain_type, cpu) = match &plan.accel {
            Accel::Tcg => ("qemu", Cpu::Named(TCG_CPU)),
            Accel::Kvm { cpu: CpuModel::HostPassthrough } => ("kvm", Cpu::Host),
            Accel::Kvm { cpu: CpuModel::HostPassthroughNoArchCapabilities } => ("kvm", Cpu::HostWithout("arch-capabilities")),
            Accel::Kvm { cpu: CpuModel::Nehalem } => ("kvm", Cpu::Named("Nehalem")),
        };
        DomainTemplate {
            namespace: NAMESPACE,
            domain_type,
            plan,
            mark,
            node,
            state_dir: encode_attribute(&mark.state_dir),
            digest,
            layout,
            kernel: format!("{}/{}", layout.image_dir, storage.kernel_volume),
            initrd: storage.initrd_volume.as_ref().map(|volume| format!("{}/{volume}", layout.image_dir)),
            cmdline: one_line(&plan.cmdline),
            cpu,
            translations_mib: translations_mib(&plan.accel),
            disks: plan.disks.iter().enumerate().map(|(i, disk)| Disk::new(i, disk, layout)).collect(),
            console_log: layout.console_log(&plan.name),
        }
        .render()
    })
}

impl<'a> Disk<'a> {
    fn new(index: usize, plan: &'a crate::plan::DiskPlan, layout: &Layout) -> Disk<'a> {
        // The root is cached by the host, so that all machines read the shared base once. etcd's disk is not: its flushes
        // should reach the host's disk by the shortest way. Neither is ever `unsafe`.
        let (format, serial, readonly, cache, io) = match plan.kind {
            DiskKind::Root { .. } => ("qcow2", "root", false, None, None),
            DiskKind::Seed => ("raw", "seed", true, None, None),
            DiskKind::Etcd { .. } if layout.direct_io => ("qcow2", "etcd", false, Some("none"), Some("native")),
            DiskKind::Etcd { .. } => ("qcow2", "etcd", false, None, None),
        };
        Disk {
            target: &plan.target,
            path: format!("{}/{}", layout.pool_dir, plan.volume),
            format,
            serial,
            readonly,
            cache,
            io,
            slot: format!("{:#04x}", FIRST_DISK_SLOT + index),
        }
    }
}

/// A network: NAT by default, or without a way out. Addresses are static, so it serves none; behind NAT its dnsmasq
/// answers names for the guests.
pub fn network_xml(plan: &NetworkPlan, mark: &Mark) -> Result<String, HostError> {
    with_digest(&plan.name, |digest| {
        NetworkTemplate { namespace: NAMESPACE, plan, mark, state_dir: encode_attribute(&mark.state_dir), digest }.render()
    })
}

/// A directory pool. Pools have no metadata: whose it is stands in its path, see `libvirt::storage`.
pub fn pool_xml(name: &str, uuid: Uuid, path: &str) -> Result<String, HostError> {
    PoolTemplate { name, uuid, path }.render().map_err(|error| unrendered(name, &error))
}

/// A snapshot of memory and disks, kept inside the disks. The seed is raw and read-only: nothing of it changes.
pub fn snapshot_xml(plan: &DomainPlan, name: &str, mark: &Mark) -> Result<String, HostError> {
    let disks = plan.disks.iter().map(|disk| SnapshotDisk {
        target: &disk.target,
        how: if matches!(disk.kind, DiskKind::Seed) { "no" } else { "internal" },
    });
    let description = format!("of cluster {}, all machines in one moment, by ktcw-vm", mark.cluster);
    SnapshotTemplate { name, description, disks: disks.collect() }.render().map_err(|error| unrendered(name, &error))
}

pub fn volume_xml(volume: &NewVolume<'_>) -> Result<String, HostError> {
    let format = match volume.format {
        VolumeFormat::Qcow2 => "qcow2",
        VolumeFormat::Raw => "raw",
    };
    let mode = if volume.public { "0644" } else { "0600" };
    VolumeTemplate { volume, format, mode }.render().map_err(|error| unrendered(volume.name, &error))
}

/// Renders twice: once to take the digest, once with it.
fn with_digest(name: &str, render: impl Fn(&str) -> askama::Result<String>) -> Result<String, HostError> {
    let bare = render("").map_err(|error| unrendered(name, &error))?;
    let digest = Sha256::digest(bare.as_bytes()).iter().take(8).fold(String::new(), |mut hex, byte| {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    render(&digest).map_err(|error| unrendered(name, &error))
}

fn unrendered(name: &str, error: &askama::Error) -> HostError {
    HostError::Libvirt { action: "render", kind: "XML of", name: name.to_owned(), reason: error.to_string() }
}

/// A path may hold characters that XML cannot carry, or that parsers fold into spaces: those, and `%`, as `%XX` of UTF-8.
fn encode_attribute(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c == '%' || c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(out, "%{byte:02X}");
            }
        } else {
            out.push(c);
        }
        out
    })
}

/// A kernel command line is one line; control characters become spaces.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
