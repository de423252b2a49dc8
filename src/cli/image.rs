//! `ktcw-vm image build|list|prune`: the guest images kept on this computer.
//! Progress goes to standard error, results to standard output.
//! What an image is made of is `image`'s business.

use super::args::{Format, Global, ImageWhat};
use super::error::CliError;
use super::{exit, render, session};
use crate::host::{Host, HostSeen};
use crate::image::{self, BuildOptions, ImageError, ImageEvent};
use crate::spec::ClusterName;
use crate::store::{self, ClusterDir};
use std::path::Path;

pub fn run(global: &Global, what: &ImageWhat) -> Result<u8, CliError> {
    let cache = image::cache_dir();
    match what {
        ImageWhat::Build { force, mirror } => {
            let options = BuildOptions { force: *force, mirror: mirror.clone(), ..BuildOptions::new(cache) };
            let json = global.format == Format::Json;
            let built = image::build(&options, &mut |event| match json {
                true => render::print_line(&serde_json::to_string(&event).unwrap_or_default()),
                false => render::status(&line(&event)),
            })?;
            if !json {
                let (key, dir) = (image::short(&built.key), built.dir.display());
                render::print_line(&format!("image {key}: {} MiB in {dir}", built.size_bytes >> 20));
            }
        }
        ImageWhat::List { sbom } => list(global, &cache, *sbom)?,
        ImageWhat::Prune => {
            let parent = session::parent(global)?;
            let mut used = users(&parent)?;
            // Other state directories are known by the marks of their machines only.
            if let Some(seen) = session::connect(global).ok().and_then(|host| host.observe().ok()) {
                used.extend(elsewhere(&parent, &seen)?);
            }
            let in_use: Vec<String> = used.into_iter().map(|user| user.key).collect();
            let pruned = image::prune(&cache, true, &in_use)?;
            render::print_line(&match global.format {
                Format::Json => serde_json::to_string(&pruned).unwrap_or_default(),
                Format::Text => format!("{} directories removed, {} MiB freed", pruned.directories.len(), pruned.bytes >> 20),
            });
        }
    }
    Ok(exit::OK)
}

/// A cluster, and the key of the image it was made with: its kubectl and etcdctl are in there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    cluster: ClusterName,
    key: String,
}

/// The clusters of a state directory. One that cannot be read may use any image: then nothing may be pruned.
fn users(parent: &Path) -> Result<Vec<User>, CliError> {
    let mut users = Vec::new();
    for listed in store::list(parent)? {
        users.extend(user(listed.name, listed.opened)?);
    }
    Ok(users)
}

/// Those of other state directories that have something in this libvirt. What is gone, or somebody else's to read, is left out:
/// who may not read our directory has a cache of their own.
fn elsewhere(parent: &Path, seen: &HostSeen) -> Result<Vec<User>, CliError> {
    let marks = (seen.domains.iter().map(|domain| &domain.mark)).chain(seen.pools.iter().map(|pool| &pool.mark));
    let mut others: Vec<(&str, &ClusterName)> =
        marks.flatten().map(|mark| (mark.state_dir.as_str(), &mark.cluster)).filter(|(dir, _)| Path::new(dir).is_dir()).collect();
    others.sort();
    others.dedup();
    let mut users = Vec::new();
    for (dir, name) in others {
        let Some(above) = Path::new(dir).parent().filter(|above| *above != parent) else { continue };
        if ClusterDir::exists(above, name) && std::fs::read_dir(dir).is_ok() {
            users.extend(user(name.clone(), ClusterDir::open(above, name))?);
        }
    }
    Ok(users)
}

fn user(cluster: ClusterName, opened: Result<ClusterDir, store::StoreError>) -> Result<Option<User>, CliError> {
    match opened.and_then(|dir| dir.load_plan()) {
        Ok(plan) => Ok(plan.map(|plan| User { cluster, key: plan.resolved.image.key })),
        Err(error) => {
            let error = CliError::from(error);
            let said = format!("which image cluster {cluster} uses is not known: {}", error.message);
            let hint = format!("make it readable again, or remove the cluster: ktcw-vm down -c {cluster}");
            Err(CliError { message: said, left: Some("every image as it was".to_owned()), hint: Some(hint), ..error })
        }
    }
}

/// An event of a build as a line.
pub fn line(event: &ImageEvent) -> String {
    match event {
        ImageEvent::Present { key } => format!("image {} is there", image::short(key)),
        ImageEvent::Waiting { cache } => format!("another build is running in {}; waiting for it", cache.display()),
        ImageEvent::Plan { key, steps } => {
            format!("building image {} in {} steps: {}", image::short(key), steps.len(), steps.join(", "))
        }
        ImageEvent::Started { step, .. } => format!("{step} …"),
        ImageEvent::Detail { step, line } => format!("{step}: {line}"),
        ImageEvent::Finished { step, cached: true, bytes, .. } => format!("{step}: there already ({} MiB)", bytes >> 20),
        ImageEvent::Finished { step, bytes, elapsed, .. } => {
            format!("{step}: {} MiB in {:.1} s", bytes >> 20, elapsed.as_secs_f64())
        }
        ImageEvent::Built { key, bytes, elapsed } => {
            format!("image {} complete: {} MiB in {:.0} s", image::short(key), bytes >> 20, elapsed.as_secs_f64())
        }
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::BadMirror { .. } => exit::USAGE,
            ImageError::Busy { .. } => exit::BUSY,
            ImageError::Tool { .. } | ImageError::Io { .. } => exit::FAILED,
            // Tools, namespaces, an archive, room, a whole image: what this host lacks.
            _ => exit::HOST,
        };
        let said = CliError::new(code, render::chain(&error));
        match error.hint() {
            Some(hint) => said.hint(hint),
            None => said,
        }
    }
}

fn list(global: &Global, cache: &Path, sbom: bool) -> Result<(), CliError> {
    let images = image::list(cache)?;
    if sbom {
        return bill_of_materials(images);
    }
    // To look at images no cluster needs to be whole.
    let used = session::parent(global).and_then(|parent| users(&parent)).unwrap_or_default();
    let used_by =
        |key: &str| -> Vec<&ClusterName> { used.iter().filter(|user| user.key == key).map(|user| &user.cluster).collect() };
    if global.format == Format::Json {
        let rows: Vec<_> = images
            .iter()
            .map(|cached| {
                serde_json::json!({
                    "key": cached.key, "current": cached.current, "used_by": used_by(&cached.key),
                    "bytes": cached.disk_bytes, "dir": cached.dir,
                    "image": cached.image.as_ref().ok(), "problem": cached.image.as_ref().err().map(ToString::to_string),
                })
            })
            .collect();
        render::print_line(&serde_json::to_string_pretty(&rows).map_err(CliError::failed)?);
        return Ok(());
    }
    if images.is_empty() {
        render::print_line("no images here; make one: ktcw-vm image build");
    }
    for cached in &images {
        let current = match (cached.current, used_by(&cached.key).as_slice()) {
            (true, _) => "current",
            (false, []) => "old    ",
            (false, _) => "in use ",
        };
        let said = match &cached.image {
            Ok(image) => {
                let versions = &image.versions;
                let built = image.built_at.strftime("%Y-%m-%d %H:%M");
                format!("Kubernetes {} etcd {} Debian {}, built {built}", versions.kubernetes, versions.etcd, versions.debian)
            }
            Err(error) => format!("{error} ({})", error.hint().unwrap_or_default()),
        };
        render::print_line(&format!("{}  {current}  {:>5} MiB  {said}", image::short(&cached.key), cached.disk_bytes >> 20));
    }
    Ok(())
}

/// Every package and module of the current image, as JSON.
fn bill_of_materials(images: Vec<image::CachedImage>) -> Result<(), CliError> {
    let Some(cached) = images.into_iter().find(|cached| cached.current) else {
        return Err(CliError::failed("the current image has not been built here").hint("ktcw-vm image build"));
    };
    cached.image?;
    let path = cached.dir.join("sbom.json");
    let text = std::fs::read_to_string(&path).map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
    render::print_line(text.trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::host::fake::FakeHost;
    use crate::plan::{Accel, samples};

    fn cluster(parent: &Path, name: &str) -> ClusterDir {
        let plan = samples::plan(name, 3, 2, Accel::Tcg);
        let (dir, lock) = ClusterDir::create(parent, &plan.spec, "up", jiff::Timestamp::UNIX_EPOCH).expect("made");
        dir.save_plan(&lock, &plan).expect("saved");
        dir
    }

    fn names(users: &[User]) -> Vec<&str> {
        assert!(users.iter().all(|user| user.key == samples::image().key));
        users.iter().map(|user| user.cluster.as_str()).collect()
    }

    #[test]
    fn every_cluster_kept_here_uses_its_image_and_one_that_cannot_be_read_stops_everything() {
        let parent = tempfile::tempdir().expect("a directory");
        assert_eq!(users(parent.path()).expect("none"), []);
        cluster(parent.path(), "one");
        let two = cluster(parent.path(), "two");
        assert_eq!(names(&users(parent.path()).expect("read")), ["one", "two"]);
        std::fs::write(two.path().join("plan.json"), "{").expect("written");
        let error = users(parent.path()).expect_err("nobody knows");
        assert!(error.message.contains("cluster two") && error.hint.is_some(), "{error:?}");
        assert_eq!(error.left.as_deref(), Some("every image as it was"));
    }

    #[test]
    fn clusters_of_other_state_directories_are_known_by_their_machines() {
        let (here, there) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let host = FakeHost::new();
        for dir in [cluster(here.path(), "one"), cluster(there.path(), "two"), cluster(there.path(), "gone")] {
            let (plan, mark) = (dir.load_plan().expect("readable").expect("a plan"), session::mark(&dir));
            host.ensure_pools(&plan.storage, &mark).expect("made");
            let node = &plan.nodes[0];
            host.ensure_domain(&node.domain, &plan.storage, &node.name, &mark).expect("made");
        }
        std::fs::remove_dir_all(there.path().join("gone")).expect("removed");
        let seen = host.observe().expect("observed");
        assert_eq!(names(&elsewhere(here.path(), &seen).expect("read")), ["two"]);
    }
}
