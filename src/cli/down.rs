//! `ktcw-vm down`: removes the cluster, whole or half-made, and only what carries its mark.
//! Machines, network and disks first, then the context in the user's kubeconfig, the directory with its keys last: after a crash in the
//! middle, `down` again.
//! Twice is once.

use super::args::{Down, Format, Global};
use super::error::CliError;
use super::opened::Opened;
use super::{etcd_only, exit, fork, golden, render, session, tools};
use crate::apply;
use crate::host::{Host, Mark, blocking};
use crate::pki::{Keyring, kubeconfig};
use crate::plan::Ca;
use crate::snapshot;
use crate::spec::ClusterName;
use crate::store::journal::Journal;
use crate::store::{ClusterDir, Lock, StoreError, shared};
use std::path::Path;
use std::sync::Arc;

pub async fn run(global: &Global, args: &Down) -> Result<u8, CliError> {
    if args.keep_golden {
        return keep_golden(global).await;
    }
    let name = session::cluster_name(global)?;
    let parent = session::parent(global)?;
    // A removal that was cut off may still hold keys.
    crate::store::finish_removals(&parent)?;
    if !ClusterDir::exists(&parent, &name) {
        return orphans(global, &name, &parent).await;
    }
    let (dir, lock) = ClusterDir::open_locked(&parent, &name, "down")?;
    if !global.yes
        && !render::confirm(&format!("remove cluster {name} with all its machines, disks{} and keys?", etcd_only::among(&dir)))?
    {
        return Err(CliError::failed("not removed").hint(format!("ktcw-vm down -c {name} --yes")));
    }
    let host = session::connect_to(global, &dir)?;
    let removed = remove(dir, lock, host, tools::users_kubeconfig().ok().as_deref(), render::status).await?;
    said(global, &name, &removed);
    Ok(exit::OK)
}

/// What `kubeconfig --merge` has put into the user's own file: known by the CA, which goes with the directory.
struct Context<'a> {
    path: &'a Path,
    name: ClusterName,
    ca: String,
}

impl Context<'_> {
    /// `None`: there is no such file, or no CA that anything in it could be of.
    fn of<'a>(kubeconfig: Option<&'a Path>, dir: &ClusterDir) -> Option<Context<'a>> {
        let ca = std::fs::read_to_string(Keyring::ca_cert(&dir.pki(), Ca::Kubernetes)).ok()?;
        Some(Context { path: kubeconfig.filter(|path| path.exists())?, name: dir.name().clone(), ca })
    }

    /// Returns whether it was in there. Twice is once.
    fn take_out(&self) -> Result<bool, StoreError> {
        let without = |there: &str| kubeconfig::remove(there, &self.name, &self.ca).map_err(|error| error.to_string());
        shared::edit(self.path, without)
    }

    fn say(&self, out: Result<bool, StoreError>, told: &(impl Fn(&str) + ?Sized)) {
        let (name, path) = (&self.name, self.path.display());
        match out {
            Ok(true) => told(&format!("context ktcw-{name} taken out of {path}")),
            Ok(false) => {}
            Err(error) => told(&format!(
                "context ktcw-{name} may still be in {path}, with its key: {}; kubectl config delete-context ktcw-{name}, and \
                 delete-cluster and delete-user likewise",
                render::chain(&error)
            )),
        }
    }
}

/// All of a cluster, under its lock, and what `kubeconfig` has of it.
pub(crate) async fn remove(
    dir: ClusterDir,
    lock: Lock,
    host: Arc<dyn Host>,
    kubeconfig: Option<&Path>,
    told: impl Fn(&str) + Send + Sync,
) -> Result<apply::Removed, CliError> {
    let name = dir.name().clone();
    let mark = session::mark(&dir);
    // A plan that cannot be read stands in nobody's way here.
    let plan = dir.load_plan().ok().flatten();
    let journal = unless_full(begun(&dir, &lock))?;
    let removed = apply::remove(host, &mark, &told).await.map_err(|error| {
        CliError::from(error).left("what was not removed yet; nothing of others").hint(format!("ktcw-vm down -c {name}"))
    })?;
    fork::remove_namespace(plan.as_ref(), &mark)?;
    if let Some(journal) = journal {
        unless_full(journal.done("remove", None).map_err(StoreError::from))?;
    }
    // Before the directory: with its CA gone no later `down` would know what in there is of this cluster. A file that cannot be
    // changed, which is the user's, keeps nothing from being removed.
    let context = Context::of(kubeconfig, &dir);
    let mut out = context.as_ref().map(Context::take_out);
    dir.remove(lock)?;
    if let (Some(context), Some(Err(error))) = (&context, &out)
        && error.is_full()
    {
        // The directory may be what there was no room beside.
        out = Some(context.take_out());
    }
    if let (Some(context), Some(out)) = (&context, out) {
        context.say(out, &told);
    }
    Ok(removed)
}

fn begun(dir: &ClusterDir, lock: &Lock) -> Result<Journal, StoreError> {
    dir.set_journal_aside(lock)?;
    let (journal, _) = dir.journal(lock, crate::store::draw_id(), "down")?;
    journal.begin("remove", None)?;
    Ok(journal)
}

/// What goes is known from libvirt, so a disk on which nothing can be written down does not hold up whoever is about to free it.
fn unless_full<T>(written: Result<T, StoreError>) -> Result<Option<T>, CliError> {
    match written {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_full() => {
            render::status(&format!("{}; going on without", render::chain(&error)));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// `down --keep-golden`: nothing runs, and the disks keep one snapshot for the next `up`.
async fn keep_golden(global: &Global) -> Result<u8, CliError> {
    let name = session::cluster_name(global)?;
    let opened = Opened::new(global, "down --keep-golden", |_| Ok(()))?;
    opened.without_fault()?;
    let Some(record) = golden::record(&opened.session.dir)? else {
        return Err(CliError::failed(format!("cluster {name} has no golden snapshot to keep"))
            .left("everything as it was")
            .hint(format!("ktcw-vm down -c {name} removes the cluster; an up without --no-golden keeps a golden snapshot")));
    };
    golden::will_come_back(&opened.machines, &opened.host, &record).await?;
    let taken = golden::taken(&record);
    let given_up = golden::GivenUp::of(&opened.session.dir)?;
    if global.yes {
        render::status(&format!("switching cluster {name} off and giving up what it wrote since {taken}{given_up}"));
    } else if !render::confirm(&format!("switch cluster {name} off and give up what it wrote since {taken}{given_up}?"))? {
        return Err(CliError::failed("not switched off").hint(format!("ktcw-vm down -c {name} --keep-golden --yes")));
    }
    let (journal, _) = opened.journal("down")?;
    let told: &(dyn Fn(&str) + Sync) = &|text| render::status(text);
    let (machines, dir, lock) = (&opened.machines, &opened.session.dir, &opened.lock);
    let desk = snapshot::Desk { machines, dir, lock, journal: &journal, told };
    let bytes = golden::leave(&desk).await.map_err(|error| {
        let again = format!("ktcw-vm down -c {name} --keep-golden again; ktcw-vm up -c {name} brings it back");
        error.left("machines that may still run").hint(again)
    })?;
    if global.format == Format::Json {
        let line = serde_json::json!({ "event": "down", "cluster": name, "golden_bytes": bytes });
        render::print_line(&line.to_string());
        return Ok(exit::OK);
    }
    render::print_line(&format!(
        "cluster {name} is down; its golden snapshot is kept ({} MiB): ktcw-vm up -c {name} brings it back",
        bytes >> 20
    ));
    Ok(exit::OK)
}

/// Says what went: a line of JSON, or of words and what stays.
pub(super) fn said(global: &Global, name: &ClusterName, removed: &apply::Removed) {
    if global.format == Format::Json {
        let mut line = serde_json::json!({ "event": "removed", "cluster": name });
        if let (Some(line), Ok(serde_json::Value::Object(what))) = (line.as_object_mut(), serde_json::to_value(removed)) {
            line.extend(what);
        }
        render::print_line(&line.to_string());
        return;
    }
    render::print_line(&format!(
        "cluster {name} removed: {} machines, {} volumes, {} network",
        removed.domains.len(),
        removed.volumes,
        removed.networks.len()
    ));
    for kept in &removed.kept {
        render::print_line(&format!(
            "pool {} stays, with what somebody has put into it: {}
to remove it, move that away, then: ktcw-vm down -c {name}",
            kept.pool,
            kept.paths.join(", ")
        ));
    }
}

/// Without a directory: what libvirt still has of a cluster of this name whose directory was the one that is gone.
async fn orphans(global: &Global, name: &ClusterName, parent: &Path) -> Result<u8, CliError> {
    let nothing = || match global.format {
        Format::Json => said(global, name, &apply::Removed::default()),
        Format::Text => render::print_line(&format!("there is no cluster {name} in {}; nothing to do", parent.display())),
    };
    let host: Arc<dyn Host> = match session::connect(global) {
        Ok(host) => host,
        Err(error) => {
            nothing();
            render::status(&format!("libvirt was not asked for machines without a directory: {}", error.message));
            return Ok(exit::OK);
        }
    };
    let observer = host.clone();
    let seen = blocking(move || observer.observe()).await?;
    let directory = parent.join(name.as_str()).display().to_string();
    let marks = (seen.domains.iter().map(|d| &d.mark))
        .chain(seen.networks.iter().map(|n| &n.mark))
        .chain(seen.pools.iter().map(|p| &p.mark));
    let mut orphans: Vec<&Mark> = marks.flatten().filter(|mark| mark.cluster == *name && mark.state_dir == directory).collect();
    orphans.sort_by_key(|mark| mark.instance);
    orphans.dedup();
    if orphans.is_empty() {
        nothing();
        return Ok(exit::OK);
    }
    let question = format!("{directory} is gone, with its keys; remove what libvirt still has of cluster {name}?");
    if !global.yes && !render::confirm(&question)? {
        return Err(CliError::failed("not removed").hint(format!("ktcw-vm down -c {name} --yes")));
    }
    for mark in orphans {
        let removed = apply::remove(host.clone(), mark, render::status).await?;
        fork::remove_namespace(None, mark)?;
        said(global, name, &removed);
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Accel, samples};
    use crate::secret::Secret;

    #[test]
    fn the_users_kubeconfig_loses_what_was_merged_into_it_and_nothing_of_a_namesake() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("config");
        let plan = samples::plan("ktcw", 3, 2, Accel::Tcg);
        let admin = plan.kubeconfigs.iter().find(|one| one.id == "admin").expect("planned");
        let (name, key) = (&plan.cluster, Secret::new("KEY"));
        let take_out = |ca: &str| Context { path: &path, name: name.clone(), ca: ca.to_owned() }.take_out();
        let credentials = kubeconfig::Credentials { ca: "CA", cert: "CERT", key: &key };
        let merged = kubeconfig::merge("", admin, credentials, true).expect("merged");
        std::fs::write(&path, merged.expose()).expect("written");
        assert!(!take_out("another CA").expect("read"), "a namesake's");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), merged.expose());
        assert!(take_out("CA").expect("written"));
        let left = std::fs::read_to_string(&path).expect("there");
        assert!(!left.contains(&format!("ktcw-{name}")), "{left}");
        assert!(!take_out("CA").expect("read"), "twice is once");
    }

    #[test]
    fn there_is_no_context_where_there_is_no_file_or_no_ca() {
        let place = tempfile::tempdir().expect("a directory");
        let spec = crate::spec::validate(&crate::spec::RawSpec::default()).expect("valid");
        let (dir, _lock) = ClusterDir::create(place.path(), &spec, "up", jiff::Timestamp::now()).expect("made");
        let path = place.path().join("config");
        std::fs::write(&path, "").expect("written");
        assert!(Context::of(Some(&path), &dir).is_none(), "cut off before it had a CA");
        let ca = Keyring::ca_cert(&dir.pki(), Ca::Kubernetes);
        std::fs::create_dir_all(ca.parent().expect("a directory")).expect("made");
        std::fs::write(&ca, "CA").expect("written");
        assert!(Context::of(Some(&path), &dir).is_some());
        assert!(Context::of(Some(&place.path().join("none")), &dir).is_none() && Context::of(None, &dir).is_none());
    }

    /// A file that cannot be changed is named, with what to type.
    #[test]
    fn what_may_still_be_in_the_users_kubeconfig_is_said() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("config");
        std::fs::write(&path, "not a kubeconfig").expect("written");
        let context = Context { path: &path, name: ClusterName::parse("lab").expect("a name"), ca: "CA".to_owned() };
        let said = std::cell::RefCell::new(Vec::new());
        context.say(context.take_out(), &|text: &str| said.borrow_mut().push(text.to_owned()));
        let said = said.into_inner().join("\n");
        assert!(said.contains("ktcw-lab may still be in") && said.contains("kubectl config delete-context ktcw-lab"), "{said}");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "not a kubeconfig");
    }

    /// What goes is known from libvirt: a journal that has grown beyond reading holds nobody up.
    #[tokio::test]
    async fn a_journal_too_long_to_be_read_does_not_hold_up_a_removal() {
        let place = tempfile::tempdir().expect("a directory");
        let raw = crate::spec::RawSpec { cluster: Some("too-long".into()), ..crate::spec::RawSpec::default() };
        let spec = crate::spec::validate(&raw).expect("valid");
        let now = jiff::Timestamp::from_second(1_795_000_000).expect("a time");
        let (dir, lock) = ClusterDir::create(place.path(), &spec, "up", now).expect("made");
        dir.journal(&lock, crate::store::draw_id(), "up").expect("opened");
        let journal = std::fs::OpenOptions::new().write(true).open(dir.path().join("journal.jsonl")).expect("there");
        journal.set_len(300 << 20).expect("all of it a hole");
        let error = CliError::from(dir.history().expect_err("too long"));
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("ktcw-vm down")), "{}", error.text());
        let path = dir.path().to_owned();
        remove(dir, lock, Arc::new(crate::host::fake::FakeHost::new()), None, |_| ()).await.expect("removed");
        assert!(!path.exists(), "with its keys");
    }
}
