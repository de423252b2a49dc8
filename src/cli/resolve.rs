//! What the host settles before a plan can be made: the image, the kernel, how guests run, a free network.
//! `up` and `plan` call it; an existing cluster keeps what was recorded with its plan.
//! All effects here are reads, but for the image build and the KVM probe that `up` asks for.

use super::error::CliError;
use super::render;
use crate::accel::{self, Verdict};
use crate::digest;
use crate::event::{Event, Events, Stage};
use crate::given;
use crate::host::{HostFacts, HostSeen, NetworkSeen, SubnetError, choose_subnet, host_routes};
use crate::image::{self, Image, ImageError};
use crate::plan::{Accel, CpuModel, ImageRef, KernelRef, Plan, Resolved, StoragePlan, Versions};
use crate::preflight::{Refusal, judge_accel};
use crate::spec::{AccelChoice, ClusterSpec};
use ipnet::Ipv4Net;
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

/// The image that an existing cluster was made with. `None`: it is not on this computer, and libvirt has all of it that is needed.
pub fn kept_image(old: &Plan, seen: &HostSeen, events: &Events) -> Result<Option<Image>, CliError> {
    let (cache, key) = (image::cache_dir(), &old.resolved.image.key);
    let kept = image::find_key(&cache, key);
    if let Ok(Some(image)) = kept {
        return Ok(Some(image));
    }
    if uploaded(&old.storage, seen) {
        return Ok(None);
    }
    // One that is broken matters only where it is needed.
    kept?;
    let image = ensure_image(events)?;
    if image.key == *key {
        return Ok(Some(image));
    }
    let (was, is) = (image::short(key), image::short(&image.key));
    Err(CliError::host(format!("cluster {} was made with image {was}, which is gone; this program makes {is}", old.cluster))
        .hint(format!("ktcw-vm down -c {0}, then ktcw-vm up -c {0}", old.cluster)))
}

/// Whether libvirt has all that machines are made from. A pool that a reboot left inactive shows nothing, and is taken to have it: who
/// makes it active looks again, and says what is lost.
fn uploaded(storage: &StoragePlan, seen: &HostSeen) -> bool {
    let (name, uuid) = (&storage.image_pool, storage.image_pool_uuid);
    if seen.pools.iter().any(|pool| pool.name == *name && pool.uuid == uuid && !pool.active) {
        return true;
    }
    let needed = [Some(&storage.base_volume), Some(&storage.kernel_volume), storage.initrd_volume.as_ref()];
    needed.into_iter().flatten().all(|volume| has(seen, storage, volume))
}

fn has(seen: &HostSeen, storage: &StoragePlan, volume: &str) -> bool {
    let pool = seen.pools.iter().find(|pool| pool.name == storage.image_pool);
    pool.is_some_and(|pool| pool.volumes.iter().any(|one| one.name == volume))
}

/// What is wrong with the image that was found for a new cluster. One whose disk is about to be uploaded is read whole where somebody
/// has written into it, which takes a second or two; the upload itself compares what it sends.
pub fn damaged(found: &Result<Option<Image>, ImageError>, storage: &StoragePlan, seen: &HostSeen) -> Option<Refusal> {
    let refusal = |error: &ImageError| Refusal {
        about: "image",
        message: render::chain(error),
        hint: error.hint().unwrap_or_else(|| "ktcw-vm image list shows what there is".to_owned()),
    };
    match found {
        Err(error) => Some(refusal(error)),
        Ok(Some(image)) if !has(seen, storage, &storage.base_volume) && image::written_since(image) => {
            image::verify_image(image).err().as_ref().map(refusal)
        }
        Ok(_) => None,
    }
}

/// Image and kernel as the plan names them, by the digests of the build: what is uploaded is compared with them.
pub fn image_ref(image: &Image) -> Result<ImageRef, CliError> {
    let recorded = |name: &str| {
        let record = image.files.get(name).map(|record| record.sha256.clone());
        record.ok_or_else(|| CliError::failed(format!("the image's record lacks {name}")).hint("ktcw-vm image build --force"))
    };
    Ok(ImageRef {
        key: image.key.clone(),
        disk_sha256: image.disk_sha256.clone(),
        kernel_sha256: recorded("vmlinuz")?,
        initrd_sha256: recorded("initrd.img")?,
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

/// The user's kernel, with digests.
pub fn kernel_ref(spec: &ClusterSpec) -> Result<Option<KernelRef>, CliError> {
    let Some(kernel) = &spec.kernel else { return Ok(None) };
    let initrd_sha256 = kernel.initrd.as_deref().map(file_digest).transpose()?;
    Ok(Some(KernelRef { sha256: file_digest(&kernel.path)?, initrd_sha256, args: kernel.args.clone() }))
}

/// What is wrong with the files that `--kernel` and `--initrd` name, by their first bytes; all of it.
pub fn kernel_problems(kernel: Option<&Path>, initrd: Option<&Path>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut read = |flag: &str, path: &Path| {
        let mut head = Vec::new();
        let read = given::open(path).and_then(|file| file.take(0x206).read_to_end(&mut head));
        if let Err(error) = &read {
            problems.push(format!("--{flag}: {}: {error}; accepted: a readable file", path.display()));
        }
        read.is_ok().then_some(head)
    };
    let head = kernel.and_then(|path| Some((path, read("kernel", path)?)));
    if let Some(path) = initrd {
        read("initrd", path);
    }
    if let Some((path, head)) = head
        && !is_vmlinux(&head)
        && !is_bzimage(&head)
    {
        let said = "is neither an x86-64 vmlinux (ELF) nor a bzImage (is it still compressed?)";
        problems.push(format!("--kernel: {} {said}; accepted: either of them", path.display()));
    }
    problems
}

/// A kernel that was named again must be the one that the cluster's machines boot.
pub fn same_kernel(old: &Plan, spec: &ClusterSpec) -> Result<(), CliError> {
    let (Some(was), Some(kernel)) = (&old.resolved.kernel, &spec.kernel) else { return Ok(()) };
    let changed = |flag: &str, path: &Path| {
        let said = format!("--{flag}: {} is not the file that cluster {} was made with any more", path.display(), old.cluster);
        CliError::usage(format!("{said}; accepted: that file, or none")).hint(format!("ktcw-vm down -c {} first", old.cluster))
    };
    if file_digest(&kernel.path)? != was.sha256 {
        return Err(changed("kernel", &kernel.path));
    }
    match (&kernel.initrd, &was.initrd_sha256) {
        (Some(initrd), Some(digest)) if file_digest(initrd)? != *digest => Err(changed("initrd", initrd)),
        _ => Ok(()),
    }
}

/// ELF, 64 bits, little-endian, ET_EXEC, EM_X86_64: what the linker makes of a kernel, and of hardly any program today (elf(5)).
fn is_vmlinux(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF\x02\x01") && head.get(16..20) == Some(&[2, 0, 62, 0])
}

/// "HdrS" at 0x202: the Linux/x86 boot protocol.
fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(b"HdrS")
}

/// Where the files behind the image volumes are. Without an image nothing is uploaded, so nothing is looked for.
pub fn files(spec: &ClusterSpec, image: Option<&Image>) -> Files {
    let Some(image) = image else {
        return Files { base: PathBuf::new(), kernel: PathBuf::new(), initrd: None };
    };
    match &spec.kernel {
        Some(kernel) => Files { base: image.disk.clone(), kernel: kernel.path.clone(), initrd: kernel.initrd.clone() },
        None => Files { base: image.disk.clone(), kernel: image.kernel.clone(), initrd: Some(image.initrd.clone()) },
    }
}

/// What the cluster's machines boot, as the probe is to boot it.
fn boot<'a>(spec: &'a ClusterSpec, files: &'a Files) -> accel::Boot<'a> {
    let args = spec.kernel.as_ref().and_then(|kernel| kernel.args.as_deref()).unwrap_or_default();
    accel::Boot { kernel: &files.kernel, initrd: files.initrd.as_deref(), args }
}

/// KVM as proved by a boot, or TCG where QEMU can be trusted with it.
pub fn accel(spec: &ClusterSpec, facts: &HostFacts, files: &Files, events: &Events) -> Result<Accel, CliError> {
    let accel = match spec.accel {
        AccelChoice::Tcg => Accel::Tcg,
        choice => {
            let verdict = proof(spec, facts, files, events)?;
            if let Some(text) = said_of(choice, &verdict) {
                events.send(Event::Note { text });
            }
            follow(choice, &verdict, facts.kvm_listed)
                .map_err(|refusal| CliError::host(format!("--accel kvm: {}", refusal.message)).hint(refusal.hint))?
        }
    };
    if let Err(refusal) = accel::judge_qemu(&facts.qemu_version, &accel) {
        return Err(CliError::host(refusal)
            .hint("install QEMU 8.2 or later (Debian 12: from bookworm-backports), or use a host with KVM"));
    }
    Ok(accel)
}

/// What a boot of the cluster's kernel shows of KVM, or one has shown before.
pub fn proof(spec: &ClusterSpec, facts: &HostFacts, files: &Files, events: &Events) -> Result<Verdict, CliError> {
    let status = |text: &str| {
        let (step, status) = ("kvm".to_owned(), text.to_owned());
        events.send(Event::StepStatus { stage: Stage::Preflight, step, node: None, status });
    };
    Ok(accel::probe(facts, &boot(spec, files), &image::cache_dir(), &status)?)
}

/// How a cluster runs that is asked to run like that, after what is known of KVM. `listed`: libvirt lists KVM.
pub fn follow(choice: AccelChoice, verdict: &Verdict, listed: bool) -> Result<Accel, Refusal> {
    match (choice, verdict) {
        (AccelChoice::Tcg, _) => Ok(Accel::Tcg),
        (_, Verdict::Boots(cpu)) => Ok(Accel::Kvm { cpu: *cpu }),
        (AccelChoice::Kvm, Verdict::Not(why)) => Err(Refusal {
            about: "kvm",
            message: format!("no guest has been seen to boot under KVM here: {why}"),
            hint: format!("--accel tcg (slow), or {}", toward_kvm(verdict, listed)),
        }),
        (AccelChoice::Kvm, Verdict::Unproved(_) | Verdict::Forbidden(_)) => Ok(Accel::Kvm { cpu: CpuModel::HostPassthrough }),
        (AccelChoice::Auto, _) => Ok(Accel::Tcg),
    }
}

/// What would let guests run under KVM where they do not.
pub fn toward_kvm(verdict: &Verdict, listed: bool) -> &'static str {
    match verdict {
        Verdict::Forbidden(_) => "`sudo usermod -aG kvm $USER` and log in again",
        Verdict::Unproved(_) => "run ktcw-vm on that computer",
        Verdict::Not(_) if !listed => "enable virtualization in the firmware",
        Verdict::Not(_) | Verdict::Boots(_) => "another --kernel",
    }
}

/// What the user should hear of a verdict that is followed; nothing where it is what was asked for.
fn said_of(choice: AccelChoice, verdict: &Verdict) -> Option<String> {
    let slow = "guests run under TCG (emulation, 10-15 times slower)";
    match (choice, verdict) {
        (AccelChoice::Tcg, _) | (_, Verdict::Boots(_)) | (AccelChoice::Kvm, Verdict::Not(_)) => None,
        (AccelChoice::Kvm, Verdict::Unproved(why) | Verdict::Forbidden(why)) => Some(format!("KVM is taken on your word: {why}")),
        (AccelChoice::Auto, Verdict::Forbidden(why)) => {
            let way_out = toward_kvm(verdict, true);
            Some(format!("{slow}: {why}: {way_out}; what is made until then stays under TCG"))
        }
        (AccelChoice::Auto, Verdict::Not(why) | Verdict::Unproved(why)) => Some(format!("{slow}: {why}")),
    }
}

/// The wanted machine network, or a free one: beside this computer's routes, libvirt's networks and the spec's own ranges.
fn subnet(spec: &ClusterSpec, networks: &[NetworkSeen]) -> Result<Ipv4Net, SubnetError> {
    choose_subnet(spec.network.subnet, &host_routes(), networks, &spec.name, &reserved(spec))
}

/// As much as is known of a new cluster before there is an image, for `preflight` to judge: its network and how it is to run.
/// What stands against these two is a refusal among the others.
/// An `image` that is there already is the one it will be made of, and its volume may be in the pool.
pub fn draft(spec: &ClusterSpec, facts: &HostFacts, seen: &HostSeen, image: Option<&Image>) -> (Resolved, Vec<Refusal>) {
    let chosen = subnet(spec, &seen.networks);
    let mut refusals = Vec::new();
    let kvm = Accel::Kvm { cpu: CpuModel::HostPassthrough };
    let accel = match (spec.accel, accel::known(facts)) {
        (AccelChoice::Tcg, _) => Accel::Tcg,
        // A boot will show, once there is a kernel.
        (_, None) => kvm,
        (choice, Some(verdict)) => follow(choice, &verdict, facts.kvm_listed).unwrap_or_else(|refusal| {
            refusals.push(refusal);
            kvm
        }),
    };
    refusals.extend(judge_accel(&accel, accel::judge_qemu(&facts.qemu_version, &accel).err().map(|refusal| refusal.to_string())));
    let subnet = chosen.unwrap_or_else(|error| {
        let hint = "another --subnet, or none to have a free one chosen".to_owned();
        refusals.push(Refusal { about: "subnet", message: error.to_string(), hint });
        // Nobody's (kept for documentation): what is wrong with the wanted one has been said.
        Ipv4Net::new_assert(std::net::Ipv4Addr::new(192, 0, 2, 0), 24)
    });
    let image = image.and_then(|image| image_ref(image).ok()).unwrap_or_else(unknown_image);
    (Resolved { subnet, accel, image, kernel: None, fork_of: None }, refusals)
}

/// About what an image takes in the pool, for a host where none is built yet.
const USUAL_IMAGE_MIB: u64 = 1200;

/// What the base volume will take where it is not in the pool yet: as much as the image that is there, or as one usually does.
pub fn base_mib(image: Option<&Image>) -> u64 {
    image.map_or(USUAL_IMAGE_MIB, |image| image.size_bytes >> 20)
}

/// Everything for a new cluster.
pub fn fresh(
    spec: &ClusterSpec,
    facts: &HostFacts,
    seen: &HostSeen,
    image: &Image,
    events: &Events,
) -> Result<Resolved, CliError> {
    let kernel = kernel_ref(spec)?;
    let files = files(spec, Some(image));
    let subnet = subnet(spec, &seen.networks).map_err(CliError::host)?;
    let accel = accel(spec, facts, &files, events)?;
    Ok(Resolved { subnet, accel, image: image_ref(image)?, kernel, fork_of: None })
}

/// For `plan` on a host where nothing is settled: the same, guessed where only `up` can know, with notes that say so.
pub fn guessed(spec: &ClusterSpec, host: Option<(&HostFacts, &HostSeen)>) -> Result<(Resolved, Vec<String>), CliError> {
    let mut notes = Vec::new();
    let found = image::find(&image::cache_dir())?;
    let image = match &found {
        Some(image) => image_ref(image)?,
        None => {
            notes.push("the image is not built yet: its digests are not known (ktcw-vm image build)".to_owned());
            unknown_image()
        }
    };
    let networks = host.map(|(_, seen)| seen.networks.as_slice()).unwrap_or_default();
    let subnet = subnet(spec, networks).map_err(CliError::host)?;
    if host.is_none() {
        let unknown = match spec.network.subnet {
            Some(wanted) => format!("whether {wanted} is free is not known"),
            None => "the subnet may be another one".to_owned(),
        };
        notes.push(format!("libvirt was not asked: {unknown}"));
    }
    let accel = match (spec.accel, host, &found) {
        (AccelChoice::Tcg, _, _) => Accel::Tcg,
        (_, Some((facts, _)), Some(image)) => {
            let files = files(spec, Some(image));
            match accel::cached(facts, &boot(spec, &files), &image::cache_dir()) {
                Some(Verdict::Boots(cpu)) => Accel::Kvm { cpu },
                Some(Verdict::Not(_)) if spec.accel == AccelChoice::Auto => Accel::Tcg,
                _ => unproved(&mut notes),
            }
        }
        _ => unproved(&mut notes),
    };
    Ok((Resolved { subnet, accel, image, kernel: kernel_ref(spec)?, fork_of: None }, notes))
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

/// An image that is not built yet: pinned versions, no digests.
fn unknown_image() -> ImageRef {
    let unknown = || "0".repeat(64);
    ImageRef {
        key: unknown(),
        disk_sha256: unknown(),
        kernel_sha256: unknown(),
        initrd_sha256: unknown(),
        versions: planned_versions(),
    }
}

fn planned_versions() -> Versions {
    let pinned = image::Inputs::embedded("", image::Suite::default()).versions();
    Versions {
        kubernetes: pinned.kubernetes,
        etcd: pinned.etcd,
        containerd: pinned.containerd,
        coredns: pinned.coredns,
        pause: pinned.pause,
        // The point release is known when the image is built.
        debian: image::Suite::default().name().to_owned(),
    }
}

/// sha256 of a file, hex.
pub fn file_digest(path: &Path) -> Result<String, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", path.display()));
    given::open(path).and_then(digest::of).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::host::fake::FakeHost;
    use crate::spec::{RawSpec, validate};

    fn spec(raw: RawSpec) -> ClusterSpec {
        validate(&raw).expect("valid")
    }

    #[test]
    fn a_kernel_is_known_by_its_first_bytes_and_all_files_are_judged_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut image = vec![0u8; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let elf = |kind, machine| [&b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"[..], &[kind, 0, machine, 0]].concat();
        let (vmlinux, program, arm) = (elf(2, 62), elf(3, 62), elf(2, 183));
        let files = [("vmlinux", &vmlinux[..]), ("program", &program), ("arm", &arm), ("bzImage", &image)];
        for (name, bytes) in files.into_iter().chain([("vmlinux.zst", &b"\x28\xb5\x2f\xfd"[..]), ("empty", b"")]) {
            std::fs::write(dir.path().join(name), bytes).expect("written");
        }
        let judged = |kernel: &str, initrd: Option<&str>| {
            let path = |name: &str| dir.path().join(name);
            kernel_problems(Some(&path(kernel)), initrd.map(path).as_deref())
        };
        for kernel in ["vmlinux", "bzImage"] {
            assert!(judged(kernel, None).is_empty() && judged(kernel, Some("empty")).is_empty(), "{kernel}");
        }
        for kernel in ["vmlinux.zst", "program", "arm", "empty", "."] {
            let problems = judged(kernel, None);
            assert!(matches!(problems.as_slice(), [one] if one.contains("accepted")), "{kernel}: {problems:?}");
        }
        let both = judged("nowhere", Some("nowhere-either"));
        assert!(both.len() == 2 && both[0].starts_with("--kernel: ") && both[1].starts_with("--initrd: "), "{both:?}");
    }

    #[test]
    fn what_stands_against_a_new_cluster_is_known_without_an_image() {
        let host = FakeHost::new();
        host.add_foreign_network("around", uuid::Uuid::from_u128(2), "192.168.192.0/18".parse().expect("net"));
        let (seen, mut facts) = (host.observe().expect("observed"), host.facts().expect("facts"));
        let wanted = |accel| spec(RawSpec { subnet: Some("192.168.237.0/24".into()), accel: Some(accel), ..RawSpec::default() });
        facts.qemu_version = "7.2.0".to_owned();
        let about = |accel| draft(&wanted(accel), &facts, &seen, None).1.iter().map(|refusal| refusal.about).collect::<Vec<_>>();
        assert_eq!(about(AccelChoice::Tcg), ["qemu", "subnet"]);
        assert_eq!(about(AccelChoice::Auto), ["subnet"], "whether KVM is there is not known yet");
        let (_, refusals) = draft(&wanted(AccelChoice::Kvm), &facts, &seen, None);
        assert!(refusals[0].message.contains("192.168.237.0/24") && refusals[0].message.contains("around"), "{refusals:?}");
    }

    /// Guests that will be emulated are judged as such: their QEMU, and the memory that it takes for what it translates.
    #[test]
    fn kvm_that_libvirt_does_not_list_is_known_to_be_missing_without_an_image() {
        let host = FakeHost::new();
        let (seen, facts) = (host.observe().expect("observed"), host.facts().expect("facts"));
        let facts = HostFacts { kvm_listed: false, qemu_version: "7.2.0".to_owned(), ..facts };
        let wanted = |accel| spec(RawSpec { subnet: Some("192.168.237.0/24".into()), accel: Some(accel), ..RawSpec::default() });
        let drafted = |accel, facts: &HostFacts| {
            let (resolved, refusals) = draft(&wanted(accel), facts, &seen, None);
            (resolved.accel, refusals.iter().map(|refusal| refusal.about).collect::<Vec<_>>())
        };
        assert_eq!(drafted(AccelChoice::Auto, &facts), (Accel::Tcg, vec!["qemu"]));
        let newer = HostFacts { qemu_version: "10.0.2".to_owned(), ..facts.clone() };
        assert_eq!(drafted(AccelChoice::Auto, &newer), (Accel::Tcg, vec![]));
        assert_eq!(drafted(AccelChoice::Kvm, &facts).1, ["kvm"]);
        let (_, refusals) = draft(&wanted(AccelChoice::Kvm), &newer, &seen, None);
        let text = refusals[0].to_string();
        assert!(text.contains("lists no KVM") && text.contains("--accel tcg") && text.contains("firmware"), "{text}");
    }

    /// Nobody waits for an image, or is told that it is gone, because the host was rebooted.
    #[test]
    fn an_image_in_a_pool_that_is_inactive_is_not_taken_for_lost() {
        let host = FakeHost::new();
        let (facts, seen) = (host.facts().expect("facts"), host.observe().expect("observed"));
        let spec = spec(RawSpec { subnet: Some("192.168.237.0/24".into()), ..RawSpec::default() });
        let storage = crate::plan::plan(&spec, &draft(&spec, &facts, &seen, None).0).storage;
        let uploaded = || uploaded(&storage, &host.observe().expect("observed"));
        assert!(!uploaded(), "there is no pool");
        let mark = crate::host::Mark { cluster: spec.name.clone(), instance: uuid::Uuid::from_u128(1), state_dir: "/x".into() };
        host.ensure_pools(&storage, &mark).expect("made");
        assert!(!uploaded(), "it is empty, for everybody to see");
        host.reboot();
        assert!(uploaded());
    }

    #[test]
    fn what_keeps_guests_from_kvm_is_said_with_its_own_way_out() {
        let forbidden = Verdict::Forbidden("this user may not open /dev/kvm; join the group kvm".to_owned());
        assert_eq!(follow(AccelChoice::Auto, &forbidden, true), Ok(Accel::Tcg));
        let note = said_of(AccelChoice::Auto, &forbidden).expect("a note");
        for words in ["10-15 times slower", "may not open /dev/kvm", "usermod -aG kvm", "stays under TCG"] {
            assert!(note.contains(words), "{words}: {note}");
        }
        let trusted = Accel::Kvm { cpu: CpuModel::HostPassthrough };
        assert_eq!(follow(AccelChoice::Kvm, &forbidden, true), Ok(trusted));
        assert!(said_of(AccelChoice::Kvm, &forbidden).is_some_and(|note| note.contains("on your word")));
        let boots = Verdict::Boots(CpuModel::Nehalem);
        assert_eq!(follow(AccelChoice::Auto, &boots, true), Ok(Accel::Kvm { cpu: CpuModel::Nehalem }));
        assert_eq!(said_of(AccelChoice::Auto, &boots), None);
        // What does not boot under a KVM that is there is not the firmware's fault.
        let hangs = Verdict::Not("not booted after 45 s".to_owned());
        let refusal = follow(AccelChoice::Kvm, &hangs, true).expect_err("asked for");
        assert!(refusal.hint.contains("another --kernel") && !refusal.hint.contains("firmware"), "{refusal}");
    }
}
