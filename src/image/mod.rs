//! The guest image: what every node starts from, built here from pinned sources
//! and kept under the digest of its inputs. `ktcw-vm image …` and the image stage of
//! `up` call it. It knows nothing of clusters, nodes or libvirt, and prints nothing:
//! progress goes to the caller as [`ImageEvent`]s.
//!
//! ```text
//! images/ ─► inputs (keys, pure) ─► build (stages) ─► cache (directories, whole or absent)
//!                                     └─ container (tars)   └─ command (tools, log)
//! ```

mod build;
mod cache;
mod command;
mod container;
mod inputs;
mod mirror;
mod preflight;
mod toolchain;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::distro::Family;
use serde::{Deserialize, Serialize};

pub use build::build;
pub use cache::{CachedImage, Pruned, cache_dir, find, find_key, list, prune, verify_image, written_since};
pub use command::installed;
pub use inputs::{ImageNames, Inputs};
pub use preflight::{MissingTool, preflight};

/// A finished image: files that exist, and what is known of them. Stored beside
/// them as `image.json`, with paths relative to that directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// SHA-256 of everything the image is made from, in hex: its name.
    pub key: String,
    /// The same without the Go version; see [`find`].
    pub sources_key: String,
    pub dir: PathBuf,
    /// The root disk, qcow2, without a backing file.
    pub disk: PathBuf,
    pub disk_sha256: String,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Programs that run on this machine as well: hyperkube and its names (kubectl …),
    /// etcd, etcdctl, etcdutl, containerd, ctr, coredns.
    pub bin: PathBuf,
    /// What a guest sees as its disk, bytes.
    pub virtual_size: u64,
    /// What all files of the image take, bytes.
    pub size_bytes: u64,
    pub versions: Versions,
    pub containers: Vec<ContainerImage>,
    /// Size and SHA-256 of each file, by path relative to `dir`.
    pub files: BTreeMap<String, FileRecord>,
    pub built_at: jiff::Timestamp,
}

/// What [`verify_image`] compares a file with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub bytes: u64,
    pub sha256: String,
}

/// What is inside, by the name users know it by. Go programs carry a leading `v`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub kubernetes: String,
    pub etcd: String,
    pub containerd: String,
    pub coredns: String,
    pub pause: String,
    /// The toolchain that built the above.
    pub go: String,
    /// Version of Debian's base-files: the point release.
    pub debian: String,
    /// Kernel release, as `uname -r` says in the guest.
    pub kernel: String,
    /// Every Debian package of the guest and the version that was resolved.
    pub packages: BTreeMap<String, String>,
}

/// A container image in a guest's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerImage {
    /// Full name with tag: `localhost/ktcw/hyperkube:v1.36.3`.
    pub name: String,
    /// The image's id: digest of its configuration, `sha256:…`.
    pub id: String,
    /// Size of its layers, bytes, uncompressed.
    pub bytes: u64,
    pub store: Store,
}

/// Which of the guest's two stores holds a container image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// root's podman: control plane, kubelet and kube-proxy.
    Podman,
    /// containerd's namespace `k8s.io`: pods.
    Containerd,
}

/// The Debian a guest is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Debian 13.
    #[default]
    Trixie,
    /// Debian 14, for whoever wants to see what comes.
    Forky,
}

impl Suite {
    /// The suite's name in an archive.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        }
    }
}

/// What [`build`] may be told.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    pub cache: PathBuf,
    /// A Debian archive, `http://…/debian`. Default: the one this machine's apt uses.
    pub mirror: Option<String>,
    pub suite: Suite,
    /// Build again what is already there.
    pub force: bool,
}

impl BuildOptions {
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self { cache: cache.into(), mirror: None, suite: Suite::default(), force: false }
    }
}

/// What happens while an image is built, for whoever shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ImageEvent {
    /// The image is there already; nothing will be done.
    Present { key: String },
    /// Another build is running in this cache; waiting for it to end.
    Waiting { cache: PathBuf },
    /// These steps follow, in this order.
    Plan { key: String, steps: Vec<String> },
    /// A step begins; `index` counts from 0.
    Started { index: usize, step: String },
    /// What the step is doing now.
    Detail { step: String, line: String },
    /// A step has ended well. `cached`: it had been done before.
    Finished {
        step: String,
        cached: bool,
        bytes: u64,
        #[serde(serialize_with = "seconds")]
        elapsed: Duration,
    },
    /// The image is complete; `bytes` is the size of all its files.
    Built {
        key: String,
        bytes: u64,
        #[serde(serialize_with = "seconds")]
        elapsed: Duration,
    },
}

fn seconds<S: serde::Serializer>(elapsed: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((elapsed.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// Why there is no image. [`ImageError::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{} needed to build the image {}: {}",
        if missing.len() == 1 { "a tool" } else { "tools" },
        if missing.len() == 1 { "is missing" } else { "are missing" },
        missing.iter().map(|tool| tool.to_string()).collect::<Vec<_>>().join(", "))]
    MissingTools { missing: Vec<MissingTool>, family: Family },

    #[error("this machine does not let {} make the namespaces the image is built in: {said}",
        if *root { "root" } else { "an ordinary user" })]
    Namespaces {
        root: bool,
        said: String,
        /// What has root build it for this user.
        by_sudo: String,
    },

    #[error("no Debian archive found among this machine's apt sources")]
    NoMirror,

    #[error("{name:?} is not an address of a Debian archive: expected http://… or https://…")]
    BadMirror { name: String },

    #[error("no room for the image in {path}: {free} MiB free, {needed} MiB needed", path = path.display())]
    NoRoom { path: PathBuf, free: u64, needed: u64 },

    #[error("{step}: `{command}` {how}, log in {log}{}", tail(last), log = log.display())]
    Tool { step: String, command: String, how: String, log: PathBuf, last: Vec<String> },

    #[error("image {key} in {dir} is damaged: {what}", key = short(key), dir = dir.display())]
    Damaged { key: String, dir: PathBuf, what: String },

    #[error("{doing} {path}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },

    #[error("another build has held the image cache {path} for {minutes} minutes", path = path.display())]
    Busy { path: PathBuf, minutes: u64 },
}

impl ImageError {
    /// The next thing to type or to do, when there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::MissingTools { missing, family } => Some(preflight::install_hint(missing, *family)),
            Self::Namespaces { root: true, .. } => {
                Some("run it where root may mount (not in an unprivileged container)".to_owned())
            }
            Self::Namespaces { root: false, by_sudo, .. } => Some(format!(
                "`make images` has root build it, by sudo, and gives it to you; without make, and it stays root's: {by_sudo}; or \
                 allow user namespaces: /etc/subuid and /etc/subgid need a line `USER:100000:65536`, and `sysctl \
                 kernel.unprivileged_userns_clone=1` (Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)"
            )),
            Self::NoMirror | Self::BadMirror { .. } => Some(
                "name one: ktcw-vm image build --mirror http://ARCHIVE/debian (make up MIRROR=http://ARCHIVE/debian)".to_owned(),
            ),
            Self::NoRoom { .. } => Some("free some, `ktcw-vm image prune`, or set KTCW_CACHE_DIR to a larger disk".to_owned()),
            Self::Damaged { .. } => Some("build it again: ktcw-vm image build --force".to_owned()),
            Self::Busy { .. } => Some("wait for it to end, or see which process holds the file `lock` in there".to_owned()),
            Self::Tool { last, .. } if last.iter().any(|line| unreachable(line)) => Some(
                "what is fetched cannot be reached: go asks `go env GOPROXY`, Debian's packages come from --mirror; what was \
                 finished is kept, and `ktcw-vm image build` goes on from there"
                    .to_owned(),
            ),
            Self::Tool { .. } | Self::Io { .. } => None,
        }
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// Whether a tool says in this line that it got no answer: Go's words, then apt's.
fn unreachable(line: &str) -> bool {
    const WORDS: [&str; 9] = [
        "dial tcp",
        "no such host",
        "TLS handshake timeout",
        "i/o timeout",
        "Could not connect to",
        "Could not resolve",
        "Unable to connect to",
        "Connection failed",
        "Temporary failure resolving",
    ];
    WORDS.iter().any(|word| line.contains(word))
}

/// The first twelve digits of a key: enough to tell images apart by eye.
pub fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}

fn tail(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
