//! Writes container images as archives that podman and containerd both load: the
//! same files give the same bytes, and so the same image id on every machine.
//! `build` calls it between compiling and making the disk. It runs nothing and knows
//! nothing of where the files come from.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{ContainerImage, ImageError, Store};
use crate::digest::hex;

/// One thing in a layer of ours.
pub enum Entry {
    Directory {
        path: &'static str,
        mode: u32,
    },
    /// A file of this machine.
    File {
        path: &'static str,
        mode: u32,
        from: PathBuf,
    },
    /// A file with these bytes.
    Text {
        path: &'static str,
        text: &'static str,
    },
    Link {
        path: String,
        to: &'static str,
    },
}

/// A container image to be.
pub struct Recipe {
    pub name: String,
    pub store: Store,
    /// A file system to start from: an uncompressed tar.
    pub base: Option<PathBuf>,
    pub entries: Vec<Entry>,
    pub entrypoint: Vec<&'static str>,
    pub command: Vec<&'static str>,
}

/// Writes the archive and says what is in it.
///
/// # Errors
/// [`ImageError::Io`] naming the file that could not be read or written.
pub fn write(recipe: &Recipe, archive: &Path) -> Result<ContainerImage, ImageError> {
    let failed = || ImageError::io("writing", archive);
    let layer = archive.with_extension("layer");
    layer_of(recipe, &layer)?;
    let layers: Vec<&Path> = recipe.base.as_deref().into_iter().chain([layer.as_path()]).collect();

    let mut to = Builder::new(io::BufWriter::new(File::create(archive).map_err(failed())?));
    let mut digests = Vec::new();
    let mut names = Vec::new();
    let mut bytes = 0;
    for layer in layers {
        let digest = sha256(layer)?;
        let mut file = File::open(layer).map_err(ImageError::io("reading", layer))?;
        let size = file.metadata().map_err(ImageError::io("reading", layer))?.len();
        let name = format!("{digest}.tar");
        append(&mut to, &name, 0o644, size, &mut file).map_err(failed())?;
        bytes += size;
        names.push(name);
        digests.push(format!("sha256:{digest}"));
    }
    fs::remove_file(&layer).map_err(ImageError::io("removing", &layer))?;

    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": recipe.entrypoint,
            "Cmd": recipe.command,
        },
        "rootfs": { "type": "layers", "diff_ids": digests },
        "history": digests.iter().map(|_| json!({ "created": "1970-01-01T00:00:00Z" })).collect::<Vec<_>>(),
    })
    .to_string();
    let id = hex(&Sha256::digest(config.as_bytes()));
    let manifest = json!([{ "Config": format!("{id}.json"), "RepoTags": [recipe.name], "Layers": names }]).to_string();
    for (name, text) in [(format!("{id}.json"), config), ("manifest.json".to_owned(), manifest)] {
        append(&mut to, &name, 0o644, text.len() as u64, &mut text.as_bytes()).map_err(failed())?;
    }
    to.into_inner().and_then(|mut writer| writer.flush()).map_err(failed())?;
    Ok(ContainerImage { name: recipe.name.clone(), id: format!("sha256:{id}"), bytes, store: recipe.store })
}

/// Writes the recipe's own entries as a layer.
fn layer_of(recipe: &Recipe, layer: &Path) -> Result<(), ImageError> {
    let failed = || ImageError::io("writing", layer);
    let mut to = Builder::new(io::BufWriter::new(File::create(layer).map_err(failed())?));
    for entry in &recipe.entries {
        match entry {
            Entry::Directory { path, mode } => {
                special(&mut to, &format!("{path}/"), *mode, EntryType::Directory, None).map_err(failed())?;
            }
            Entry::File { path, mode, from } => {
                let mut file = File::open(from).map_err(ImageError::io("reading", from))?;
                let size = file.metadata().map_err(ImageError::io("reading", from))?.len();
                append(&mut to, path, *mode, size, &mut file).map_err(failed())?;
            }
            Entry::Text { path, text } => {
                append(&mut to, path, 0o644, text.len() as u64, &mut text.as_bytes()).map_err(failed())?;
            }
            Entry::Link { path, to: target } => {
                special(&mut to, path, 0o777, EntryType::Symlink, Some(target)).map_err(failed())?;
            }
        }
    }
    to.into_inner().and_then(|mut writer| writer.flush()).map_err(failed())
}

fn append(to: &mut Builder<impl Write>, path: &str, mode: u32, size: u64, from: &mut dyn Read) -> io::Result<()> {
    let mut header = header(mode, EntryType::Regular);
    header.set_size(size);
    to.append_data(&mut header, path, from)
}

fn special(to: &mut Builder<impl Write>, path: &str, mode: u32, kind: EntryType, target: Option<&str>) -> io::Result<()> {
    let mut header = header(mode, kind);
    header.set_size(0);
    match target {
        Some(target) => to.append_link(&mut header, path, target),
        None => to.append_data(&mut header, path, io::empty()),
    }
}

/// Owned by root, from the beginning of time: nothing of the machine it is made on.
fn header(mode: u32, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Copies one file out of a tar.
///
/// # Errors
/// [`ImageError::Io`] when it cannot be read or does not hold that file.
pub fn extract(archive: &Path, path: &str, to: &Path) -> Result<(), ImageError> {
    let failed = || ImageError::io("unpacking", archive);
    let mut tar = tar::Archive::new(io::BufReader::new(File::open(archive).map_err(failed())?));
    for entry in tar.entries().map_err(failed())? {
        let mut entry = entry.map_err(failed())?;
        let found = entry.path().map_err(failed())?;
        if found.strip_prefix("./").unwrap_or(&found) == Path::new(path) {
            let mut file = File::create(to).map_err(ImageError::io("writing", to))?;
            io::copy(&mut entry, &mut file).map_err(ImageError::io("writing", to))?;
            return Ok(());
        }
    }
    Err(failed()(io::Error::new(io::ErrorKind::NotFound, format!("no {path} in it"))))
}

fn sha256(path: &Path) -> Result<String, ImageError> {
    super::cache::digest(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(directory: &Path, content: &str) -> Recipe {
        let from = directory.join("program");
        fs::write(&from, content).unwrap();
        Recipe {
            name: "localhost/ktcw/test:v1".into(),
            store: Store::Podman,
            base: None,
            entries: vec![
                Entry::Directory { path: "tmp", mode: 0o1777 },
                Entry::File { path: "usr/local/bin/program", mode: 0o755, from },
                Entry::Link { path: "usr/local/bin/other".into(), to: "program" },
                Entry::Text { path: "etc/passwd", text: "root:x:0:0::/:/bin/sh\n" },
            ],
            entrypoint: vec!["/usr/local/bin/program"],
            command: vec![],
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two, other) = (directory.path().join("1.tar"), directory.path().join("2.tar"), directory.path().join("3.tar"));
        let first = write(&recipe(directory.path(), "content"), &one).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let second = write(&recipe(directory.path(), "content"), &two).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        let third = write(&recipe(directory.path(), "other"), &other).unwrap();
        assert_ne!(first.id, third.id);
    }

    #[test]
    fn the_archive_describes_itself() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("a.tar");
        let image = write(&recipe(directory.path(), "content"), &archive).unwrap();
        let unpacked = directory.path().join("out");
        extract(&archive, "manifest.json", &unpacked).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(&unpacked).unwrap()).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "localhost/ktcw/test:v1");
        let config = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(format!("sha256:{}", config.trim_end_matches(".json")), image.id);

        extract(&archive, config, &unpacked).unwrap();
        let text = fs::read_to_string(&unpacked).unwrap();
        assert_eq!(format!("sha256:{}", hex(&Sha256::digest(text.as_bytes()))), image.id);
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let layer = manifest[0]["Layers"][0].as_str().unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", layer.trim_end_matches(".tar")));

        extract(&archive, layer, &unpacked).unwrap();
        assert_eq!(format!("{}.tar", sha256(&unpacked).unwrap()), layer);
        let inner = directory.path().join("inner");
        extract(&unpacked, "usr/local/bin/program", &inner).unwrap();
        assert_eq!(fs::read_to_string(&inner).unwrap(), "content");
    }

    #[test]
    fn what_is_not_in_a_tar_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("a.tar");
        write(&recipe(directory.path(), "content"), &archive).unwrap();
        let error = extract(&archive, "usr/bin/busybox", &directory.path().join("x")).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("usr/bin/busybox"), "{source}");
    }
}
