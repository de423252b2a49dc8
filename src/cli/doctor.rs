//! `ktcw-vm doctor`: what this host lacks, and what to install; nothing is changed.
//! Every answer has its way out; exit code 69 when something is missing that `up` needs.
//! What a distribution calls its packages `distro` knows; which programs are wanted is said here and by the image's preflight.

mod running;

use super::args::{Format, Global, SpecArgs};
use super::error::CliError;
use super::{exit, render, resolve, session, spec_of};
use crate::accel::{self, Verdict};
use crate::distro::{self, Family, Init};
use crate::event::Events;
use crate::host::libvirt::{LibvirtHost, is_local};
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
    let (spec, _) = spec_of(global, args)?;
    let found = image::find(&image::cache_dir());
    let there = found.as_ref().ok().and_then(Option::as_ref);
    let mut findings = Vec::new();
    let family = distro::here();
    match session::connect(global) {
        Ok(host) => findings.extend(libvirt(global, &spec, &host, there, family)?),
        Err(error) => {
            let way_out = error.hint.unwrap_or_default().replace("; `ktcw-vm doctor` looks closer", "");
            findings.push(Finding::missing("libvirt", error.message, way_out));
            // Nobody answers: perhaps because nothing is installed that could.
            if global.connect.as_deref().is_none_or(is_local) {
                findings.extend(programs(family, distro::init(), image::installed));
                findings.extend(processor());
            }
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
    family: Family,
) -> Result<Vec<Finding>, CliError> {
    let mut findings = Vec::new();
    let facts = match host.facts() {
        Ok(facts) => facts,
        Err(error) => {
            let again = match distro::init() {
                Init::Systemd => "sudo systemctl restart libvirtd",
                Init::Nobody => "end libvirtd and start it again",
            };
            let way_out = format!("{}; then: {again}", family.install(&["qemu-system-x86_64", "qemu-img"]));
            return Ok(vec![Finding::missing("qemu", error.to_string(), way_out)]);
        }
    };
    findings.push(Finding::ok("libvirt", format!("{} at {}", facts.libvirt_version, facts.uri)));
    findings.push(Finding::ok("qemu", format!("{} ({})", facts.qemu_version, facts.emulator)));
    if host.is_local() {
        findings.extend(programs(family, distro::init(), image::installed));
        findings.extend(processor());
    }
    let accel = accel(spec, &facts, image, family, &mut findings);
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
    let (mut resolved, mut refusals) = resolve::draft(spec, &facts, &seen, image);
    // What KVM and emulation need has been said.
    refusals.retain(|refusal| !["kvm", "qemu"].contains(&refusal.about));
    resolved.accel = accel;
    let plan = plan(spec, &resolved);
    let base_mib = resolve::base_mib(image);
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
    if let Some(said) = preflight::golden(&plan, &seen, mark.as_ref(), base_mib, host.free_disk_mib()) {
        findings.push(Finding::note("golden", said, "free disk space, or up --no-golden"));
    }
    findings.extend(refusals.into_iter().map(|refusal| Finding::missing(refusal.about, refusal.message, refusal.hint)));
    Ok(findings)
}

/// Programs of this computer that machines and their networks need: what we call it, where it may be, what for.
const PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("libvirtd", &["libvirtd", "virtqemud"], "keeps the machines"),
    ("qemu-system-x86_64", &["qemu-system-x86_64", "/usr/libexec/qemu-kvm"], "runs the machines"),
    ("qemu-img", &["qemu-img"], "makes disks"),
    ("dnsmasq", &["dnsmasq"], "libvirt's networks need it"),
    ("iptables", &["iptables", "nft"], "libvirt's networks need it, or nft"),
    ("ip", &["ip"], "libvirt's networks need it"),
];

/// All that are missing, and one line that installs them.
fn programs(family: Family, init: Init, installed: impl Fn(&str) -> bool) -> Option<Finding> {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(_, any, _)| !any.iter().any(|name| installed(name))).collect();
    if missing.is_empty() {
        return None;
    }
    let said: Vec<String> = missing.iter().map(|(name, _, why)| format!("{name} ({why})")).collect();
    let names: Vec<&str> = missing.iter().map(|(name, ..)| *name).collect();
    let mut way_out = family.install(&names);
    if names.contains(&"libvirtd") {
        way_out.push_str(match init {
            Init::Systemd => "; then: sudo systemctl enable --now libvirtd",
            Init::Nobody => "; then: make setup",
        });
    }
    Some(Finding::missing("programs", said.join(", "), way_out))
}

/// The processor that the guests are made for.
fn processor() -> Option<Finding> {
    let said = format!("this computer is {}, guests are x86_64", std::env::consts::ARCH);
    let way_out = "an x86_64 computer, and ktcw-vm on it";
    (std::env::consts::ARCH != "x86_64").then(|| Finding::missing("processor", said, way_out))
}

/// How guests would run: shown by a boot where that can be, refused where `up` would refuse.
fn accel(
    spec: &ClusterSpec,
    facts: &HostFacts,
    image: Option<&image::Image>,
    family: Family,
    findings: &mut Vec<Finding>,
) -> Accel {
    let kvm = Accel::Kvm { cpu: CpuModel::HostPassthrough };
    let verdict = match (spec.accel, image) {
        (AccelChoice::Tcg, _) => None,
        (_, Some(image)) => match resolve::proof(spec, facts, &resolve::files(spec, Some(image)), &Events::nowhere()) {
            Ok(verdict) => Some(verdict),
            Err(error) => {
                findings.push(Finding::missing("kvm", error.message, error.hint.unwrap_or_default()));
                return kvm;
            }
        },
        (_, None) => accel::known(facts),
    };
    let accel = match (spec.accel, verdict) {
        (AccelChoice::Tcg, _) => Accel::Tcg,
        (choice, Some(verdict)) => {
            let (accel, finding) = proved(choice, &verdict, facts.kvm_listed);
            findings.push(finding);
            accel
        }
        (_, None) => {
            let unproved = "listed by libvirt; not shown to work: without an image there is no guest to boot";
            findings.push(Finding::note("kvm", unproved, "ktcw-vm image build, then ktcw-vm doctor again"));
            if let Err(refusal) = accel::judge_qemu(&facts.qemu_version, &Accel::Tcg) {
                // Needed only where KVM turns out not to work.
                findings.push(Finding::note("emulation", refusal.to_string(), newer_qemu(family)));
            }
            kvm
        }
    };
    if let Err(refusal) = accel::judge_qemu(&facts.qemu_version, &accel) {
        findings.push(Finding::missing("qemu", refusal.to_string(), newer_qemu(family)));
    }
    accel
}

/// What is known of KVM, in words, and how guests would run that were asked to run like that.
fn proved(choice: AccelChoice, verdict: &Verdict, listed: bool) -> (Accel, Finding) {
    let toward_kvm = resolve::toward_kvm(verdict, listed);
    match (resolve::follow(choice, verdict, listed), verdict) {
        (Err(refusal), _) => {
            let finding = Finding::missing(refusal.about, refusal.message, refusal.hint);
            (Accel::Kvm { cpu: CpuModel::HostPassthrough }, finding)
        }
        (Ok(accel), Verdict::Boots(cpu)) => (accel, booted(*cpu)),
        (Ok(Accel::Tcg), Verdict::Not(why) | Verdict::Unproved(why) | Verdict::Forbidden(why)) => {
            let way_out = format!("{toward_kvm}; until then guests run under TCG, 10-15 times slower");
            (Accel::Tcg, Finding::note("kvm", format!("no guest was seen to boot under it: {why}"), way_out))
        }
        (Ok(accel), Verdict::Not(why) | Verdict::Unproved(why) | Verdict::Forbidden(why)) => {
            (accel, Finding::note("kvm", format!("taken on your word: {why}"), toward_kvm))
        }
    }
}

fn booted(cpu: CpuModel) -> Finding {
    Finding::ok("kvm", format!("a guest was seen to boot, with CPU {}", cpu.as_str()))
}

fn newer_qemu(family: Family) -> String {
    let newer = "QEMU 8.2 or later";
    match family {
        Family::Debian => format!("{newer}; on Debian 12: sudo apt-get install -t bookworm-backports qemu-system-x86 qemu-utils"),
        Family::Other => newer.to_owned(),
        _ => {
            format!("{newer}, from a newer release of this distribution: {}", family.install(&["qemu-system-x86_64", "qemu-img"]))
        }
    }
}

/// What a crash left of a save, a removal or a restore of this cluster, and what finishes it.
fn cut_off(global: &Global, name: &ClusterName) -> Result<Option<(String, String)>, CliError> {
    let parent = session::parent(global)?;
    if !ClusterDir::exists(&parent, name) {
        return Ok(None);
    }
    let dir = ClusterDir::open(&parent, name)?;
    if let Some(open) = snapshot::open_restore(&dir.history()?) {
        return Ok(Some((open.to_string(), super::opened::finishing(&open, &super::lab::book(&dir)?, name.as_str()))));
    }
    let records = dir.load_snapshots::<Record>()?.into_iter().filter_map(|(_, record)| record.ok());
    let halves: Vec<String> =
        records.filter(|record| record.state != State::Whole).map(|record| record.name.to_string()).collect();
    Ok((!halves.is_empty()).then(|| {
        let said = format!("never finished, and taking room: {}", halves.join(", "));
        (said, format!("ktcw-vm up -c {name} removes them, and so does the next snapshot save or delete"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_programs_that_are_missing_come_in_one_finding_with_one_line_to_type() {
        let finding = programs(Family::Debian, Init::Systemd, |_| false).expect("everything is missing");
        for (name, ..) in PROGRAMS {
            assert!(finding.said.contains(name), "{name}: {}", finding.said);
        }
        let said =
            |family, there: &[&str]| programs(family, Init::Systemd, |name| there.contains(&name)).map(|finding| finding.way_out);
        let some = ["virtqemud", "/usr/libexec/qemu-kvm", "qemu-img", "nft", "ip"];
        assert_eq!(said(Family::Suse, &some), Some(Some("sudo zypper install dnsmasq".to_owned())));
        let most = ["qemu-system-x86_64", "qemu-img", "dnsmasq", "iptables", "ip"];
        let expected = "sudo dnf install libvirt-daemon-kvm; then: sudo systemctl enable --now libvirtd";
        assert_eq!(said(Family::Fedora, &most), Some(Some(expected.to_owned())));
        let own = programs(Family::Fedora, Init::Nobody, |name| most.contains(&name)).and_then(|finding| finding.way_out);
        assert_eq!(own.as_deref(), Some("sudo dnf install libvirt-daemon-kvm; then: make setup"));
        assert_eq!(programs(Family::Other, Init::Nobody, |_| true).map(|finding| finding.said), None);
    }

    #[test]
    fn what_was_proved_is_said_in_words() {
        let said = booted(CpuModel::HostPassthroughNoArchCapabilities).said;
        assert_eq!(said, "a guest was seen to boot, with CPU host-passthrough without arch-capabilities");
    }

    /// A user outside the group was sent to the firmware.
    #[test]
    fn what_keeps_guests_from_kvm_is_said_with_what_to_do_about_it() {
        let why = "this user may not open /dev/kvm (Permission denied); join the group kvm";
        let forbidden = Verdict::Forbidden(why.to_owned());
        let (accel, finding) = proved(AccelChoice::Auto, &forbidden, true);
        assert_eq!((accel, finding.ok, finding.optional), (Accel::Tcg, false, true));
        assert!(finding.said.contains(why), "{finding:?}");
        let way_out = finding.way_out.expect("a way out");
        assert!(way_out.contains("usermod -aG kvm") && way_out.contains("log in again"), "{way_out}");
        assert!(way_out.contains("10-15 times slower") && !way_out.contains("firmware"), "{way_out}");
        let (_, finding) = proved(AccelChoice::Kvm, &forbidden, true);
        assert!(!finding.ok && finding.said.starts_with("taken on your word"), "nothing was seen to boot: {finding:?}");
        let unlisted = Verdict::Not("libvirt lists no KVM for x86_64".to_owned());
        let (_, finding) = proved(AccelChoice::Auto, &unlisted, false);
        assert!(finding.optional && finding.way_out.is_some_and(|way_out| way_out.contains("firmware")));
        let (_, finding) = proved(AccelChoice::Kvm, &unlisted, false);
        assert!(!finding.ok && !finding.optional && finding.said.contains("lists no KVM"), "{finding:?}");
    }

    #[test]
    fn a_newer_qemu_is_asked_for_in_the_words_of_the_distribution() {
        assert!(newer_qemu(Family::Debian).contains("bookworm-backports"));
        assert!(newer_qemu(Family::Arch).contains("pacman -S"));
        for family in [Family::Debian, Family::Fedora, Family::Rhel, Family::Arch, Family::Suse, Family::Other] {
            assert!(newer_qemu(family).starts_with("QEMU 8.2 or later"));
        }
    }
}
