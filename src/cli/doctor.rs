//! `ktcw-vm doctor`: what this host lacks, and what to install; nothing is changed.
//! Every answer has its way out; exit code 69 when something is missing that `up` needs.
//! Package names are Debian's; for other systems the tool's own name says what to look for.

use super::args::{Format, Global, SpecArgs};
use super::error::CliError;
use super::{exit, render, resolve, session, spec_of};
use crate::accel;
use crate::event::Events;
use crate::host::Host;
use crate::image;
use crate::plan::Accel;
use crate::snapshot::{self, Record, State};
use crate::spec::{AccelChoice, ClusterName};
use crate::store::ClusterDir;
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// Missing, but there is a way without it.
    optional: bool,
    said: String,
    way_out: Option<String>,
}

/// With `--accel kvm` (and `--kernel …`) a guest is booted to see whether it can be had.
pub fn run(global: &Global, args: &SpecArgs) -> Result<u8, CliError> {
    let spec = spec_of(global, args)?;
    let found = image::find(&image::cache_dir());
    let there = found.as_ref().ok().and_then(Option::as_ref);
    let mut findings = Vec::new();
    let mut add = |what, ok, optional, said: String, way_out: Option<String>| {
        findings.push(Finding { what, ok, optional, said, way_out: if ok { None } else { way_out } });
    };
    match session::connect(global) {
        Ok(host) => {
            let facts = host.facts()?;
            add("libvirt", true, false, format!("{} at {}", facts.libvirt_version, facts.uri), None);
            let tcg = accel::judge_qemu(&facts.qemu_version, &Accel::Tcg);
            add("qemu", true, false, format!("{} ({})", facts.qemu_version, facts.emulator), None);
            if let Err(refusal) = tcg {
                let way_out = "QEMU 8.2 or later; on Debian 12: apt install -t bookworm-backports qemu-system-x86 qemu-utils";
                add("emulation", false, facts.kvm_listed, refusal.to_string(), Some(way_out.to_owned()));
            }
            let way_out = "enable virtualization in the firmware; guests run under TCG without".to_owned();
            match (spec.accel, there) {
                (AccelChoice::Kvm, Some(image)) => {
                    let files = resolve::files(&spec, image);
                    resolve::kernel_ref(&spec)?;
                    match resolve::accel(&spec, &facts, &files, &Events::nowhere()) {
                        Ok(accel) => add("kvm", true, false, format!("a guest was seen to boot: {accel:?}"), None),
                        Err(error) => add("kvm", false, false, error.message, Some(way_out)),
                    }
                }
                _ => {
                    let said =
                        if facts.kvm_listed { "listed by libvirt; `up` boots a guest to see" } else { "not listed by libvirt" };
                    add("kvm", facts.kvm_listed, true, said.to_owned(), Some(way_out));
                }
            }
            let need = 3 * 1280 + 2 * 1024 + 5 * 96;
            add(
                "memory",
                facts.free_memory_mib >= need,
                true,
                format!("{} MiB free of {}; 3+2 takes up to {need}", facts.free_memory_mib, facts.memory_mib),
                Some("--etcd 1 --workers 1, or smaller machines".to_owned()),
            );
        }
        Err(error) => {
            let way_out = "Debian: apt install libvirt-daemon-system qemu-system-x86 qemu-utils; then: systemctl start libvirtd";
            add("libvirt", false, false, error.message, Some(way_out.to_owned()));
        }
    }
    if let Some((said, way_out)) = cut_off(global, &spec.name)? {
        add("snapshots", false, true, said, Some(way_out));
    }
    match &found {
        Err(error) => add("image", false, false, error.to_string(), error.hint()),
        Ok(Some(image)) => {
            add("image", true, false, format!("{}, {} MiB", image::short(&image.key), image.size_bytes >> 20), None)
        }
        Ok(None) => {
            let said = |text: &str| format!("not built yet; {text}");
            match image::preflight() {
                Ok(()) => add("image", true, false, said("everything to build it is there"), None),
                Err(error) => add("image", false, false, said(&error.to_string()), error.hint()),
            }
        }
    }
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
