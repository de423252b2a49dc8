//! What the host settles before a plan can be made: the image, the kernel, how guests run, a free network.
//! `up` and `plan` call it; an existing cluster keeps what was recorded with its plan.
//! All effects here are reads, but for the image build and the KVM probe that `up` asks for.

use super::error::CliError;
use crate::accel;
use crate::event::{Event, Events, Stage};
use crate::host::libvirt::LibvirtHost;
use crate::host::{HostFacts, HostSeen, choose_subnet, host_routes};
use crate::image::{self, Image};
use crate::plan::{Accel, CpuModel, ImageRef, KernelRef, Plan, Resolved, Versions};
use crate::spec::{AccelChoice, ClusterSpec};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files behind a plan's image volumes, on this computer.
#[derive(Debug, Clone)]
pub struct Files {
    pub base: PathBuf,
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
}

/// The image of this program's sources: found, or built with progress as events.
pub fn ensure_image(events: &Events) -> Result<Image, CliError> {
    let cache = image::cache_dir();
    if let Some(image) = image::find(&cache)? {
        return Ok(image);
    }
    let mut told = |event: image::ImageEvent| {
        let status = super::image::line(&event);
        events.send(Event::StepStatus { stage: Stage::Image, step: "image".to_owned(), node: None, status });
    };
    Ok(image::build(&image::BuildOptions::new(cache), &mut told)?)
}

/// Image and kernel as the plan names them.
pub fn image_ref(image: &Image) -> Result<ImageRef, CliError> {
    Ok(ImageRef {
        key: image.key.clone(),
        disk_sha256: image.disk_sha256.clone(),
        kernel_sha256: file_digest(&image.kernel)?,
        initrd_sha256: file_digest(&image.initrd)?,
        versions: Versions {
            kubernetes: image.versions.kubernetes.clone(),
            etcd: image.versions.etcd.clone(),
            containerd: image.versions.containerd.clone(),
            coredns: image.versions.coredns.clone(),
            pause: image.versions.pause.clone(),
            debian: image.versions.debian.clone(),
        },
    })
}

/// The user's kernel, with digests; a missing or unreadable file is the flag's error.
pub fn kernel_ref(spec: &ClusterSpec) -> Result<Option<KernelRef>, CliError> {
    let Some(kernel) = &spec.kernel else { return Ok(None) };
    let of = |flag: &str, path: &Path| {
        file_digest(path).map_err(|error| CliError::usage(format!("--{flag}: {}; accepted: a readable file", error.message)))
    };
    let sha256 = of("kernel", &kernel.path)?;
    let mut magic = [0u8; 4];
    let is_elf = std::fs::File::open(&kernel.path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF";
    if !is_elf && !is_bzimage(&kernel.path) {
        let message = format!("--kernel: {} is neither an ELF vmlinux nor a bzImage (is it still compressed?)", kernel.path.display());
        return Err(CliError::usage(message));
    }
    let initrd_sha256 = kernel.initrd.as_deref().map(|path| of("initrd", path)).transpose()?;
    Ok(Some(KernelRef { sha256, initrd_sha256, args: kernel.args.clone() }))
}

/// "HdrS" at 0x202: the Linux/x86 boot protocol.
fn is_bzimage(path: &Path) -> bool {
    let mut head = [0u8; 0x206];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head[0x202..0x206] == *b"HdrS"
}

/// Where the files behind the image volumes are.
pub fn files(spec: &ClusterSpec, image: &Image) -> Files {
    match &spec.kernel {
        Some(kernel) => Files { base: image.disk.clone(), kernel: kernel.path.clone(), initrd: kernel.initrd.clone() },
        None => Files { base: image.disk.clone(), kernel: image.kernel.clone(), initrd: Some(image.initrd.clone()) },
    }
}

/// KVM as proved by a boot, or TCG where QEMU can be trusted with it.
pub fn accel(spec: &ClusterSpec, facts: &HostFacts, files: &Files, events: &Events) -> Result<Accel, CliError> {
    let verdict = match spec.accel {
        AccelChoice::Tcg => Accel::Tcg,
        choice => {
            let status = |text: &str| {
                events.send(Event::StepStatus {
                    stage: Stage::Preflight,
                    step: "kvm".to_owned(),
                    node: None,
                    status: text.to_owned(),
                });
            };
            let probe = accel::probe(facts, &files.kernel, files.initrd.as_deref(), &image::cache_dir(), &status)?;
            match (probe, choice) {
                (accel::Verdict::Boots(cpu), _) => Accel::Kvm { cpu },
                (accel::Verdict::Not(why), AccelChoice::Kvm) => {
                    let message = format!("--accel kvm: no guest has been seen to boot under KVM here: {why}");
                    return Err(CliError::host(message).hint("--accel tcg (slow), or another --kernel"));
                }
                (accel::Verdict::Unproved(why), AccelChoice::Kvm) => {
                    events.send(Event::Note { text: format!("KVM is taken on your word: {why}") });
                    Accel::Kvm { cpu: CpuModel::HostPassthrough }
                }
                (accel::Verdict::Not(why) | accel::Verdict::Unproved(why), _) => {
                    events.send(Event::Note { text: format!("guests run under TCG (emulation, 10-15 times slower): {why}") });
                    Accel::Tcg
                }
            }
        }
    };
    if let Err(refusal) = accel::judge_qemu(&facts.qemu_version, &verdict) {
        return Err(CliError::host(refusal).hint("install QEMU 8.2 or later (Debian 12: from bookworm-backports), or use a host with KVM"));
    }
    Ok(verdict)
}

/// Everything for a new cluster.
pub fn fresh(
    spec: &ClusterSpec,
    host: &LibvirtHost,
    facts: &HostFacts,
    seen: &HostSeen,
    image: &Image,
    events: &Events,
) -> Result<Resolved, CliError> {
    let _ = host;
    let kernel = kernel_ref(spec)?;
    let files = files(spec, image);
    let subnet = choose_subnet(spec.network.subnet, &host_routes(), &seen.networks, &spec.name, &reserved(spec)).map_err(CliError::host)?;
    let accel = accel(spec, facts, &files, events)?;
    Ok(Resolved { subnet, accel, image: image_ref(image)?, kernel })
}

/// For `plan` on a host where nothing is settled: the same, guessed where only `up` can know, with notes that say so.
pub fn guessed(spec: &ClusterSpec, host: Option<(&HostFacts, &HostSeen)>) -> Result<(Resolved, Vec<String>), CliError> {
    let mut notes = Vec::new();
    let found = image::find(&image::cache_dir())?;
    let image = match &found {
        Some(image) => image_ref(image)?,
        None => {
            notes.push("the image is not built yet: its digests are not known (ktcw-vm image build)".to_owned());
            let unknown = || "0".repeat(64);
            ImageRef {
                key: unknown(),
                disk_sha256: unknown(),
                kernel_sha256: unknown(),
                initrd_sha256: unknown(),
                versions: planned_versions(),
            }
        }
    };
    let networks = host.map(|(_, seen)| seen.networks.as_slice()).unwrap_or_default();
    let subnet = choose_subnet(spec.network.subnet, &host_routes(), networks, &spec.name, &reserved(spec)).map_err(CliError::host)?;
    if host.is_none() {
        notes.push("libvirt was not asked: the subnet may be another one".to_owned());
    }
    let accel = match (spec.accel, host, &found) {
        (AccelChoice::Tcg, _, _) => Accel::Tcg,
        (_, Some((facts, _)), Some(image)) => {
            let files = files(spec, image);
            match accel::cached(facts, &files.kernel, files.initrd.as_deref(), &image::cache_dir()) {
                Some(accel::Verdict::Boots(cpu)) => Accel::Kvm { cpu },
                Some(accel::Verdict::Not(_)) if spec.accel == AccelChoice::Auto => Accel::Tcg,
                _ => unproved(&mut notes),
            }
        }
        _ => unproved(&mut notes),
    };
    Ok((Resolved { subnet, accel, image, kernel: kernel_ref(spec)? }, notes))
}

/// Ranges of the cluster's own that its machines must not use.
fn reserved(spec: &ClusterSpec) -> [ipnet::Ipv4Net; 2] {
    [spec.network.pod_cidr, spec.network.service_cidr]
}

fn unproved(notes: &mut Vec<String>) -> Accel {
    notes.push("KVM has not been tried here yet: `up` boots a guest to see, and falls back to TCG".to_owned());
    Accel::Kvm { cpu: CpuModel::HostPassthrough }
}

/// An existing cluster keeps its network, acceleration and image; what was asked now must agree with them.
pub fn kept(old: &Plan) -> Resolved {
    old.resolved.clone()
}

fn planned_versions() -> Versions {
    let pinned = image::Inputs::embedded("", image::Suite::default()).versions();
    Versions {
        kubernetes: pinned.kubernetes,
        etcd: pinned.etcd,
        containerd: pinned.containerd,
        coredns: pinned.coredns,
        pause: pinned.pause,
        debian: pinned.debian,
    }
}

/// sha256 of a file, hex.
pub fn file_digest(path: &Path) -> Result<String, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", path.display()));
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(failed)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
