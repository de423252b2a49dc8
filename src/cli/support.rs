//! `ktcw-vm support bundle`: everything that helps others to help, in one file, without the cluster's secrets.
//! It asks whatever still answers (the directory, libvirt, the nodes), each with a deadline, and writes down what did not.
//! It changes nothing but the file it makes; what of the directory goes into it is `directory`'s business, what is taken out, and how,
//! `redact`'s.

mod directory;
mod redact;

use super::args::{Global, SupportWhat};
use super::error::CliError;
use super::session::{self, Session};
use super::{exit, render};
use crate::guest::{Cmd, Guest};
use crate::host::{Host, HostError, Mark, blocking};
use crate::image;
use crate::plan::{NodePlan, Plan};
use crate::store::ClusterDir;
use directory::of_directory;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::future::join_all;
use redact::Redactor;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Lines kept of a console, and of each unit's journal.
const CONSOLE_LINES: usize = 500;
const LOG_LINES: u32 = 500;

/// What goes into the bundle, by path in it, as it was read: `pack` takes the secrets out.
type Entries = BTreeMap<String, String>;

pub async fn run(global: &Global, what: &SupportWhat) -> Result<u8, CliError> {
    let SupportWhat::Bundle { file } = what;
    let name = session::cluster_name(global)?;
    let dir = session::parent(global)?.join(name.as_str());
    if !dir.is_dir() {
        return Err(CliError::usage(format!("there is no cluster {name} in {}", session::parent(global)?.display()))
            .hint("ktcw-vm list shows those there are; ktcw-vm doctor looks at this computer"));
    }
    let target = file.clone().unwrap_or_else(|| PathBuf::from(format!("ktcw-support-{name}.tar.gz")));
    // Before minutes are spent on asking.
    let mut out = room_for(&target)?;
    let mut entries = of_directory(&dir);
    entries.insert("versions.txt".to_owned(), versions());
    match Session::open(global) {
        Ok(session) => {
            let host = session::connect_to(global, &session.dir).map(|host| host as Arc<dyn Host>);
            let host = host.map_err(|error| error.message);
            entries.extend(of_host(&session.plan, &session.mark(), host).await);
            match session.guests() {
                Ok(guests) => entries.extend(of_nodes(&session.plan, &*guests).await),
                Err(error) => drop(entries.insert("nodes/not-asked.txt".to_owned(), error.message)),
            }
        }
        Err(error) => drop(entries.insert("not-opened.txt".to_owned(), error.text())),
    }
    let secrets = ClusterDir::secrets_in(&dir)?;
    let packed = pack(&format!("ktcw-support-{name}"), &entries, &Redactor::new(&secrets), jiff::Timestamp::now())
        .and_then(|packed| out.write_all(&packed).and_then(|()| out.as_file().sync_all()).map(|()| packed.len()));
    let failed = |error: &dyn std::fmt::Display| CliError::failed(format!("{}: {error}", target.display()));
    let size = packed.map_err(|error| failed(&error))?;
    out.persist_noclobber(&target).map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => taken(&target),
        _ => failed(&error),
    })?;
    render::print_line(&format!(
        "{}: {} files, {} KiB; keys and tokens were taken out",
        target.display(),
        entries.len(),
        size >> 10
    ));
    render::status("look through it before you hand it on: names, addresses and logs are in it");
    Ok(exit::OK)
}

/// Room for a file that is not there yet, the user's alone, under a name of its own until all of it is written.
fn room_for(target: &Path) -> Result<tempfile::NamedTempFile, CliError> {
    if target.symlink_metadata().is_ok() {
        return Err(taken(target));
    }
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(".ktcw-support-").permissions(Permissions::from_mode(0o600)).tempfile_in(dir);
    made.map_err(|error| CliError::usage(format!("{}: {error}", target.display())))
}

fn taken(target: &Path) -> CliError {
    CliError::usage(format!("{}: there is such a file", target.display())).hint("name another file: ktcw-vm support bundle FILE")
}

fn versions() -> String {
    let mut text = format!("ktcw-vm {}\n", env!("CARGO_PKG_VERSION"));
    for file in ["/proc/version", "/etc/os-release", "/proc/meminfo"] {
        let said = std::fs::read_to_string(file).unwrap_or_else(|error| format!("{error}\n"));
        let _ = write!(text, "\n{file}\n{}", said.lines().take(12).fold(String::new(), |all, line| all + line + "\n"));
    }
    let _ = match image::find(&image::cache_dir()) {
        Ok(Some(image)) => writeln!(text, "\nimage {}\n{:#?}", image.key, image.versions),
        Ok(None) => writeln!(text, "\nno image is built"),
        Err(error) => writeln!(text, "\nimage: {error}"),
    };
    text
}

/// libvirt's facts, what it shows of ours, its definitions of ours, and the ends of the consoles.
async fn of_host(plan: &Plan, mark: &Mark, host: Result<Arc<dyn Host>, String>) -> Entries {
    let mut entries = Entries::new();
    let host = match host {
        Ok(host) => host,
        Err(why) => return Entries::from([("libvirt/not-reached.txt".to_owned(), why)]),
    };
    let mut put = |name: String, said: Result<String, HostError>| {
        entries.insert(format!("libvirt/{name}"), said.unwrap_or_else(|error| format!("not had: {error}\n")));
    };
    let asked = host.clone();
    put("facts.txt".to_owned(), blocking(move || asked.facts()).await.map(|facts| format!("{facts:#?}\n")));
    let (asked, ours) = (host.clone(), mark.clone());
    let seen = blocking(move || asked.observe()).await.map(|mut seen| {
        let of_ours = |found: &Option<Mark>| found.as_ref().is_some_and(|found| ours.owns(found));
        seen.domains.retain(|domain| of_ours(&domain.mark));
        seen.networks.retain(|network| of_ours(&network.mark));
        seen.pools.retain(|pool| of_ours(&pool.mark) || pool.name == crate::plan::IMAGE_POOL);
        format!("{seen:#?}\n")
    });
    put("ours.txt".to_owned(), seen);
    let (asked, ours) = (host.clone(), mark.clone());
    match blocking(move || asked.definitions(&ours)).await {
        Ok(all) => all.into_iter().for_each(|(name, xml)| put(format!("{}.xml", name.replace([' ', '/'], "-")), Ok(xml))),
        Err(error) => put("definitions.txt".to_owned(), Err(error)),
    }
    for node in &plan.nodes {
        let (asked, storage, domain) = (host.clone(), plan.storage.clone(), node.domain.clone());
        let tail = blocking(move || asked.console_tail(&storage, &domain, CONSOLE_LINES)).await;
        put(format!("console-{}.txt", node.name), tail);
    }
    entries
}

/// Each node's own word: units, logs, addresses, disks. All at once; one that hangs costs its deadline.
async fn of_nodes(plan: &Plan, guests: &dyn Guest) -> Entries {
    let deadline = Duration::from_secs(u64::from(plan.timers.probe_deadline_s)) * 2;
    let asked = plan.nodes.iter().map(|node| async move {
        let cmd = Cmd { limit: 16 << 20, ..Cmd::script(script(node), deadline) };
        let said = match guests.run(&node.name, cmd).await {
            Ok(output) => format!("{}{}", output.stdout_text(), output.stderr_text()),
            Err(error) => format!("not had: {error}\n"),
        };
        (format!("nodes/{}.txt", node.name), said)
    });
    join_all(asked).await.into_iter().collect()
}

fn script(node: &NodePlan) -> String {
    let units = node.units.join(" ");
    let mut text = String::from("export LC_ALL=C SYSTEMD_PAGER=\ns() { echo; echo \"== $*\"; timeout 20 \"$@\" 2>&1; }\n");
    for command in [
        "date --iso-8601=ns",
        "uptime",
        "systemctl --no-pager --failed",
        "cat /run/cloud-init/result.json",
        "free -m",
        "df -h",
        "ip -br address",
        "ip route",
        "nft list ruleset",
    ] {
        let _ = writeln!(text, "s {command}");
    }
    let _ = writeln!(text, "s systemctl --no-pager --full status {units}");
    for unit in &node.units {
        let _ = writeln!(text, "s journalctl --no-pager -b -o short-precise -n {LOG_LINES} -u {unit}");
    }
    let _ = writeln!(text, "s journalctl --no-pager -b -o short-precise -p warning -n {LOG_LINES}");
    text
}

/// The archive: every text redacted, every file readable by its owner alone.
fn pack(root: &str, entries: &Entries, redactor: &Redactor, now: jiff::Timestamp) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (path, text) in entries {
        let text = redactor.text(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or_default());
        archive.append_data(&mut header, format!("{root}/{path}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests;
