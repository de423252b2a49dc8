//! `ktcw-vm doctor`: what this host lacks, and what to install; nothing is changed.
//! Every answer has its way out; exit code 69 when something is missing that `up` needs.
//! Package names are Debian's; for other systems the tool's own name says what to look for.

mod running;

use super::args::{Format, Global, SpecArgs};
use super::error::CliError;
use super::{exit, render, resolve, session, spec_of};
use crate::accel;
use crate::event::Events;
use crate::host::libvirt::LibvirtHost;
use crate::host::{Host, HostFacts};
use crate::image;
use crate::plan::{Accel, CpuModel, plan};
use crate::preflight;
use crate::snapshot::{self, Record, State};
use crate::spec::{AccelChoice, ClusterName, ClusterSpec};
use crate::store::ClusterDir;
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// Missing, but there is a way without it.
    optional: bool,
    said: String,
    /// The next thing to do, when it is not ok.
    way_out: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, said: impl Into<String>) -> Finding {
        Finding { what, ok: true, optional: false, said: said.into(), way_out: None }
    }
    fn missing(what: &'static str, said: impl Into<String>, way_out: impl Into<String>) -> Finding {
        Finding { what, ok: false, optional: false, said: said.into(), way_out: Some(way_out.into()) }
    }
    fn note(what: &'static str, said: impl Into<String>, way_out: impl Into<String>) -> Finding {
        Finding { optional: true, ..Finding::missing(what, said, way_out) }
    }
}

/// What the cluster itself will need soon.
pub async fn running(global: &Global) -> Result<u8, CliError> {
    running::run(global).await
}

/// What `up` with the same flags would need. Where there is an image, its kernel (or `--kernel`) is booted to see whether KVM works.
pub fn run(global: &Global, args: &SpecArgs) -> Result<u8, CliError> {
    let spec = spec_of(global, args)?;
    let found = image::find(&image::cache_dir());
    let there = found.as_ref().ok().and_then(Option::as_ref);
    let mut findings = Vec::new();
    match session::connect(global) {
        Ok(host) => findings.extend(libvirt(global, &spec, &host, there)?),
        Err(error) => {
            let way_out = "Debian: apt install libvirt-daemon-system qemu-system-x86 qemu-utils; then: systemctl start libvirtd";
            findings.push(Finding::missing("libvirt", error.message, way_out));
        }
    }
    if let Some((said, way_out)) = cut_off(global, &spec.name)? {
        findings.push(Finding::note("snapshots", said, way_out));
    }
    findings.push(match &found {
        Err(error) => Finding::missing("image", error.to_string(), error.hint().unwrap_or_default()),
        Ok(Some(image)) => Finding::ok("image", format!("{}, {} MiB", image::short(&image.key), image.size_bytes >> 20)),
        Ok(None) => match image::preflight(None) {
            Ok(()) => Finding::ok("image", "not built yet; everything to build it is there"),
            Err(error) => Finding::missing("image", format!("not built yet; {error}"), error.hint().unwrap_or_default()),
        },
    });
    let lacking = findings.iter().any(|finding| !finding.ok && !finding.optional);
    if global.format == Format::Json {
        render::print_line(&serde_json::to_string_pretty(&findings).map_err(CliError::failed)?);
    } else {
        for finding in &findings {
            let sign = match (finding.ok, finding.optional) {
                (true, _) => "ok     ",
                (false, true) => "note   ",
                (false, false) => "missing",
            };
            render::print_line(&format!("{sign}  {:<10} {}", finding.what, finding.said));
            if let Some(way_out) = &finding.way_out {
                render::print_line(&format!("         {:<10} → {way_out}", ""));
            }
        }
    }
    Ok(if lacking { exit::HOST } else { exit::OK })
}

/// What libvirt's host has, asked with the eyes of `up`'s own preflight.
fn libvirt(
    global: &Global,
    spec: &ClusterSpec,
    host: &LibvirtHost,
    image: Option<&image::Image>,
) -> Result<Vec<Finding>, CliError> {
    let mut findings = Vec::new();
    let facts = match host.facts() {
        Ok(facts) => facts,
        Err(error) => {
            let way_out = "Debian: apt install qemu-system-x86 qemu-utils; then: systemctl restart libvirtd";
            return Ok(vec![Finding::missing("qemu", error.to_string(), way_out)]);
        }
    };
    findings.push(Finding::ok("libvirt", format!("{} at {}", facts.libvirt_version, facts.uri)));
    findings.push(Finding::ok("qemu", format!("{} ({})", facts.qemu_version, facts.emulator)));
    if host.is_local() {
        findings.extend(programs());
    }
    let accel = accel(spec, &facts, image, &mut findings);
    let seen = match host.observe() {
        Ok(seen) => seen,
        Err(error) => {
            findings.push(Finding::missing("libvirt", error.to_string(), "virsh list --all, net-list, pool-list say more"));
            return Ok(findings);
        }
    };
    let parent = session::parent(global)?;
    let mark = match ClusterDir::exists(&parent, &spec.name) {
        true => Some(session::mark(&ClusterDir::open(&parent, &spec.name)?)),
        false => None,
    };
    let (mut resolved, mut refusals) = resolve::draft(spec, &facts, &seen);
    // What emulation needs has been said.
    refusals.retain(|refusal| refusal.about != "qemu");
    resolved.accel = accel;
    let plan = plan(spec, &resolved);
    let base_mib = image.map_or(0, |image| image.size_bytes >> 20);
    refusals.extend(preflight::judge(&plan, &facts, &seen, mark.as_ref(), base_mib, host.free_disk_mib()));
    if !refusals.iter().any(|refusal| refusal.about == "memory") {
        let machines = format!("{} + {} machines", spec.etcd, spec.workers);
        findings.push(Finding::ok(
            "memory",
            format!("{} MiB free of {}: enough for {machines}", facts.free_memory_mib, facts.memory_mib),
        ));
    }
    if !refusals.iter().any(|refusal| refusal.about == "disk")
        && let Some(free) = host.free_disk_mib()
    {
        findings.push(Finding::ok("disk", format!("{free} MiB free where the disks go")));
    }
    findings.extend(refusals.into_iter().map(|refusal| Finding::missing(refusal.about, refusal.message, refusal.hint)));
    Ok(findings)
}

/// What libvirt on this computer starts for networks, and the processor that the guests are made for.
fn programs() -> Vec<Finding> {
    let mut findings = Vec::new();
    if !image::installed("dnsmasq") {
        findings.push(Finding::missing("dnsmasq", "libvirt's networks need it", "Debian: apt install dnsmasq-base"));
    }
    if !image::installed("iptables") && !image::installed("nft") {
        findings.push(Finding::missing("iptables", "libvirt's networks need it (or nft)", "Debian: apt install iptables"));
    }
    if std::env::consts::ARCH != "x86_64" {
        let said = format!("this computer is {}, guests are x86_64", std::env::consts::ARCH);
        findings.push(Finding::missing("processor", said, "an x86_64 host: --connect qemu+ssh://…"));
    }
    findings
}

/// How guests would run: shown by a boot where that can be, refused where `up` would refuse.
fn accel(spec: &ClusterSpec, facts: &HostFacts, image: Option<&image::Image>, findings: &mut Vec<Finding>) -> Accel {
    let kvm = Accel::Kvm { cpu: CpuModel::HostPassthrough };
    match (spec.accel, image) {
        (AccelChoice::Auto | AccelChoice::Kvm, Some(image)) => {
            let files = resolve::files(spec, Some(image));
            match resolve::accel(spec, facts, &files, &Events::nowhere()) {
                Ok(Accel::Tcg) => {
                    let way_out = "enable virtualization in the firmware; until then guests run under TCG, 10-15 times slower";
                    findings.push(Finding::note("kvm", "no guest was seen to boot under it", way_out));
                    Accel::Tcg
                }
                Ok(accel) => {
                    findings.push(Finding::ok("kvm", format!("a guest was seen to boot: {accel:?}")));
                    accel
                }
                Err(error) => {
                    findings.push(Finding::missing("kvm", error.message, error.hint.unwrap_or_default()));
                    kvm
                }
            }
        }
        (AccelChoice::Tcg, _) => {
            if let Err(refusal) = accel::judge_qemu(&facts.qemu_version, &Accel::Tcg) {
                findings.push(Finding::missing("qemu", refusal.to_string(), NEWER_QEMU));
            }
            Accel::Tcg
        }
        (choice, None) => {
            let said = if facts.kvm_listed { "listed by libvirt" } else { "not listed by libvirt" };
            let unproved = format!("{said}; not shown to work: without an image there is no guest to boot");
            findings.push(Finding {
                optional: facts.kvm_listed || choice == AccelChoice::Auto,
                ..Finding::missing("kvm", unproved, "ktcw-vm image build, then ktcw-vm doctor again")
            });
            if let Err(refusal) = accel::judge_qemu(&facts.qemu_version, &Accel::Tcg) {
                // Needed only where KVM turns out not to work.
                let needed = !facts.kvm_listed;
                findings.push(Finding { optional: !needed, ..Finding::missing("emulation", refusal.to_string(), NEWER_QEMU) });
            }
            kvm
        }
    }
}

const NEWER_QEMU: &str = "QEMU 8.2 or later; on Debian 12: apt install -t bookworm-backports qemu-system-x86 qemu-utils";

/// What a crash left of a save, a removal or a restore of this cluster, and what finishes it.
fn cut_off(global: &Global, name: &ClusterName) -> Result<Option<(String, String)>, CliError> {
    let parent = session::parent(global)?;
    if !ClusterDir::exists(&parent, name) {
        return Ok(None);
    }
    let dir = ClusterDir::open(&parent, name)?;
    if let Some(snapshot) = snapshot::open_restore(&dir.history()?) {
        let said = format!("the restore of snapshot {snapshot} was cut off: machines may be of different moments");
        return Ok(Some((said, format!("ktcw-vm snapshot restore {snapshot} -c {name}"))));
    }
    let records = dir.load_snapshots::<Record>()?.into_iter().filter_map(|(_, record)| record.ok());
    let halves: Vec<String> =
        records.filter(|record| record.state != State::Whole).map(|record| record.name.to_string()).collect();
    Ok((!halves.is_empty()).then(|| {
        let said = format!("never finished, and taking room: {}", halves.join(", "));
        (said, format!("ktcw-vm up -c {name} removes them, and so does the next snapshot save or delete"))
    }))
}
