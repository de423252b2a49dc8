//! `ktcw-vm image build|list|prune`: the guest images kept on this computer.
//! Progress goes to standard error, results to standard output.
//! What an image is made of is `image`'s business.

use super::args::{Format, Global, ImageWhat};
use super::error::CliError;
use super::{exit, render};
use crate::image::{self, BuildOptions, ImageError, ImageEvent};

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
            let in_use = in_use(global)?;
            let pruned = image::prune(&cache, true, &in_use)?;
            render::print_line(&format!("{} directories removed, {} MiB freed", pruned.directories.len(), pruned.bytes >> 20));
        }
    }
    Ok(exit::OK)
}

/// Keys of the images that the clusters kept here were made with: their kubectl and etcdctl are in there.
fn in_use(global: &Global) -> Result<Vec<String>, CliError> {
    let found = crate::store::list(&super::session::parent(global)?)?;
    let plans = found.into_iter().filter_map(|listed| listed.opened.ok()?.load_plan().ok().flatten());
    Ok(plans.map(|plan| plan.resolved.image.key).collect())
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

fn list(global: &Global, cache: &std::path::Path, sbom: bool) -> Result<(), CliError> {
    let images = image::list(cache)?;
    if sbom {
        return bill_of_materials(images);
    }
    if global.format == Format::Json {
        let rows: Vec<_> = images
            .iter()
            .map(|cached| {
                serde_json::json!({
                    "key": cached.key, "current": cached.current, "bytes": cached.disk_bytes, "dir": cached.dir,
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
        let current = if cached.current { "current" } else { "old    " };
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
