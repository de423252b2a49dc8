//! What an image is made from: the sources under `images/`, embedded in the
//! program, and the keys derived from them. `build` asks it for the key of every
//! stage before it does anything, `cache` for the key of the image that belongs to
//! this program. It knows nothing of files, processes or the machine it runs on.

use crate::digest::hex;
use sha2::{Digest, Sha256};

use super::{Suite, Versions};

/// Raised when the way stages are built changes without any source changing.
const PIPELINE: &str = "1";

/// Where container images of ours live: no registry, only a name.
pub const IMAGE_PREFIX: &str = "localhost/ktcw";

/// The version of our own pause image; the others carry their program's version.
pub const PAUSE_VERSION: &str = "1.0";

/// Virtual size of a node's root disk, bytes. Sparse: it costs what is written.
pub const DISK_SIZE: u64 = crate::spec::BASE_DISK_GIB << 30;

/// One embedded source file: its path below `images/`, and its text.
#[derive(Clone, Copy)]
pub struct Source {
    pub path: &'static str,
    pub text: &'static str,
}

macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        &[$(Source {
            path: $path,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/images/", $path)),
        }),*]
    };
}

/// Every file below `images/` that goes into an image. A test compares this list
/// with the directory.
pub const SOURCES: &[Source] = sources![
    "base/container-packages",
    "base/debian.sh",
    "base/disk.sh",
    "base/initramfs.sh",
    "base/overlay/etc/cloud/cloud.cfg",
    "base/overlay/etc/cloud/cloud.cfg.d/90_ktcw.cfg",
    "base/overlay/etc/cloud/ds-identify.cfg",
    "base/overlay/etc/containerd/config.toml",
    "base/overlay/etc/containers/containers.conf",
    "base/overlay/etc/containers/registries.conf",
    "base/overlay/etc/containers/storage.conf",
    "base/overlay/etc/default/locale",
    "base/overlay/etc/fstab",
    "base/overlay/etc/hosts",
    "base/overlay/etc/motd",
    "base/overlay/etc/ssh/sshd_config.d/ktcw.conf",
    "base/overlay/etc/sysctl.d/60-ktcw.conf",
    "base/overlay/etc/systemd/journald.conf.d/ktcw.conf",
    "base/overlay/etc/systemd/logind.conf.d/ktcw.conf",
    "base/overlay/etc/systemd/system.conf.d/ktcw.conf",
    "base/overlay/etc/systemd/system/cloud-config.service.d/ktcw.conf",
    "base/overlay/etc/systemd/system/cloud-final.service.d/ktcw.conf",
    "base/overlay/etc/systemd/system/cloud-init-local.service.d/ktcw.conf",
    "base/overlay/etc/systemd/system/cloud-init-main.service.d/ktcw.conf",
    "base/overlay/etc/systemd/system/cloud-init-network.service.d/ktcw.conf",
    "base/overlay/etc/systemd/system/containerd.service",
    "base/overlay/etc/systemd/system/serial-getty@.service.d/ktcw.conf",
    "base/overlay/etc/systemd/system/ssh.service.d/ktcw.conf",
    "base/overlay/etc/systemd/system/systemd-udev-trigger.service.d/ktcw.conf",
    "base/overlay/usr/lib/ktcw/cloud-init/jsonschema.py",
    "base/overlay/usr/lib/ktcw/cloud-init/requests/__init__.py",
    "base/overlay/usr/lib/ktcw/cloud-init/requests/exceptions.py",
    "base/packages",
    "base/units",
    "coredns/go.mod",
    "coredns/go.sum",
    "coredns/main.go",
    "etcd/go.mod",
    "etcd/go.sum",
    "etcd/main.go",
    "hyperkube/go.mod",
    "hyperkube/go.sum",
    "hyperkube/main.go",
    "pause/go.mod",
    "pause/main.go",
    "runtime/go.mod",
    "runtime/go.sum",
];

/// A Go module below `images/` and how it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoModule {
    pub name: &'static str,
    pub targets: Vec<Target>,
    /// `-X` assignments: the version each program shall report.
    pub variables: Vec<String>,
}

/// One program of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub package: &'static str,
    pub binary: &'static str,
    /// Build tags, comma separated.
    pub tags: &'static str,
}

/// The embedded sources and what the machine adds to them. Everything a key
/// depends on is in here.
#[derive(Clone)]
pub struct Inputs {
    pub sources: Vec<Source>,
    /// `go env GOVERSION`; empty when this machine has no Go.
    pub go_version: String,
    pub suite: Suite,
}

/// The keys of all stages; each is the SHA-256 of that stage's inputs, in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// In the order of [`Inputs::go_modules`].
    pub modules: Vec<(&'static str, String)>,
    pub container_os: String,
    pub guest_os: String,
    /// The finished image, which depends on all of the above.
    pub image: String,
    /// The image but for the Go version: finds an image on a machine without Go.
    pub sources: String,
}

impl Inputs {
    /// The inputs embedded in this program.
    pub fn embedded(go_version: impl Into<String>, suite: Suite) -> Self {
        Self { sources: SOURCES.to_vec(), go_version: go_version.into(), suite }
    }

    /// The text of one source file, empty when there is none of that name.
    pub fn text(&self, path: &str) -> &'static str {
        self.sources.iter().find(|source| source.path == path).map_or("", |source| source.text)
    }

    /// The files below one directory of `images/`.
    pub fn below(&self, directory: &str) -> Vec<Source> {
        let inside = |source: &&Source| source.path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
        self.sources.iter().filter(inside).copied().collect()
    }

    /// The five Go modules, the slowest first.
    pub fn go_modules(&self) -> Vec<GoModule> {
        let kubernetes = self.version_of("hyperkube", "k8s.io/kubernetes");
        let mut parts = kubernetes.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let containerd = self.version_of("runtime", "github.com/containerd/containerd/v2");
        vec![
            GoModule {
                name: "hyperkube",
                targets: vec![program("hyperkube")],
                variables: vec![
                    format!("k8s.io/component-base/version.gitVersion={kubernetes}"),
                    format!("k8s.io/component-base/version.gitMajor={major}"),
                    format!("k8s.io/component-base/version.gitMinor={minor}"),
                    "k8s.io/component-base/version.gitTreeState=clean".into(),
                    format!("k8s.io/client-go/pkg/version.gitVersion={kubernetes}"),
                ],
            },
            GoModule { name: "coredns", targets: vec![program("coredns")], variables: vec![] },
            GoModule {
                name: "runtime",
                targets: ["containerd", "ctr", "containerd-shim-runc-v2"].map(runtime).into(),
                variables: vec![format!("github.com/containerd/containerd/v2/version.Version={containerd}")],
            },
            GoModule { name: "etcd", targets: vec![program("etcd")], variables: vec![] },
            GoModule { name: "pause", targets: vec![program("pause")], variables: vec![format!("main.version={PAUSE_VERSION}")] },
        ]
    }

    /// The versions named by the sources; what Debian resolves is filled in later.
    pub fn versions(&self) -> Versions {
        Versions {
            kubernetes: self.version_of("hyperkube", "k8s.io/kubernetes"),
            etcd: self.version_of("etcd", "go.etcd.io/etcd/server/v3"),
            containerd: self.version_of("runtime", "github.com/containerd/containerd/v2"),
            coredns: self.version_of("coredns", "github.com/coredns/coredns"),
            pause: PAUSE_VERSION.to_owned(),
            go: self.go_version.clone(),
            debian: String::new(),
            kernel: String::new(),
            packages: Default::default(),
        }
    }

    /// The full names of the container images, as units and manifests write them.
    pub fn image_names(&self) -> ImageNames {
        let versions = self.versions();
        ImageNames {
            hyperkube: format!("{IMAGE_PREFIX}/hyperkube:{}", versions.kubernetes),
            etcd: format!("{IMAGE_PREFIX}/etcd:{}", versions.etcd),
            pause: format!("{IMAGE_PREFIX}/pause:{}", versions.pause),
            coredns: format!("{IMAGE_PREFIX}/coredns:{}", versions.coredns),
        }
    }

    /// The keys of every stage.
    pub fn keys(&self) -> Keys {
        let modules: Vec<_> =
            self.go_modules().into_iter().map(|module| (module.name, self.module_key(&module, &self.go_version))).collect();
        let container_os = self.debian_key("container", "base/container-packages");
        let guest_os = self.debian_key("guest", "base/packages");
        let finished = |modules: Vec<String>| {
            let mut hash = Hash::new("image");
            hash.field("disk size", &DISK_SIZE.to_string());
            hash.field("container os", &container_os);
            hash.field("guest os", &guest_os);
            for key in &modules {
                hash.field("module", key);
            }
            for source in self.below("base") {
                hash.field(source.path, source.text);
            }
            hash.finish()
        };
        let image = finished(modules.iter().map(|(_, key)| key.clone()).collect());
        let sources = finished(self.go_modules().iter().map(|module| self.module_key(module, "")).collect());
        Keys { modules, container_os, guest_os, image, sources }
    }

    fn module_key(&self, module: &GoModule, go_version: &str) -> String {
        let mut hash = Hash::new("go module");
        hash.field("go", go_version);
        for target in &module.targets {
            hash.field(target.binary, target.package);
            hash.field("tags", target.tags);
        }
        for variable in &module.variables {
            hash.field("variable", variable);
        }
        for source in self.below(module.name) {
            hash.field(source.path, source.text);
        }
        hash.finish()
    }

    fn debian_key(&self, purpose: &str, packages: &str) -> String {
        let mut hash = Hash::new("debian");
        hash.field("purpose", purpose);
        hash.field("suite", self.suite.name());
        hash.field("packages", &package_list(self.text(packages)).join(" "));
        hash.field("debian.sh", self.text("base/debian.sh"));
        hash.field("initramfs.sh", self.text("base/initramfs.sh"));
        hash.finish()
    }

    fn version_of(&self, directory: &str, module: &str) -> String {
        module_version(self.text(&format!("{directory}/go.mod")), module).unwrap_or("unknown").to_owned()
    }
}

/// A module's own main.
fn program(binary: &'static str) -> Target {
    Target { package: ".", binary, tags: "" }
}

/// One of containerd's programs, without the snapshotters that need devices no
/// guest has. The shim, of which there is one a pod, speaks ttrpc only.
fn runtime(binary: &'static str) -> Target {
    let (package, tags) = match binary {
        "containerd-shim-runc-v2" => {
            ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "urfave_cli_no_docs,no_grpc")
        }
        "ctr" => ("github.com/containerd/containerd/v2/cmd/ctr", "urfave_cli_no_docs"),
        _ => ("github.com/containerd/containerd/v2/cmd/containerd", "no_btrfs,no_devmapper,no_zfs,no_tracing,urfave_cli_no_docs"),
    };
    Target { package, binary, tags }
}

/// The names under which the container images are loaded into a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNames {
    pub hyperkube: String,
    pub etcd: String,
    pub pause: String,
    pub coredns: String,
}

/// The packages named by a list: one a line, `#` starts a comment.
pub fn package_list(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.split('#').next().unwrap_or("").trim()).filter(|name| !name.is_empty()).collect()
}

/// The version a `go.mod` requires of a module, as written there (`v1.36.3`).
pub fn module_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    })
}

/// A digest over named fields, each with its length, so that no two different
/// lists of fields look the same.
struct Hash(Sha256);

impl Hash {
    fn new(kind: &str) -> Self {
        let mut hash = Self(Sha256::new());
        hash.field("pipeline", PIPELINE);
        hash.field("kind", kind);
        hash
    }

    fn field(&mut self, name: &str, value: &str) {
        for part in [name, value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part.as_bytes());
        }
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn inputs() -> Inputs {
        Inputs::embedded("go1.26.8", Suite::Trixie)
    }

    /// The same inputs with one source file's text replaced.
    fn with(path: &str, text: &'static str) -> Inputs {
        let mut changed = inputs();
        let source = changed.sources.iter_mut().find(|source| source.path == path);
        source.unwrap_or_else(|| panic!("no source {path}")).text = text;
        changed
    }

    #[test]
    fn the_table_names_every_file_of_the_directory() {
        fn walk(root: &Path, at: &Path, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(root, &path, found);
                } else {
                    found.insert(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let mut on_disk = BTreeSet::new();
        walk(&root, &root, &mut on_disk);
        on_disk.retain(|path| !path.ends_with(".md"));
        let in_table: BTreeSet<_> = SOURCES.iter().map(|source| source.path.to_owned()).collect();
        assert_eq!(on_disk, in_table);
    }

    #[test]
    fn every_source_changes_the_image_and_only_the_stages_it_belongs_to() {
        let before = inputs().keys();
        for source in SOURCES {
            let after = with(source.path, "something else entirely").keys();
            assert_ne!(before.image, after.image, "{} is in no key", source.path);
            let directory = source.path.split('/').next().unwrap();
            for ((name, old), (_, new)) in before.modules.iter().zip(&after.modules) {
                assert_eq!(old != new, *name == directory, "{} and module {name}", source.path);
            }
            let debian = ["base/debian.sh", "base/initramfs.sh"].contains(&source.path);
            assert_eq!(
                before.guest_os != after.guest_os,
                debian || source.path == "base/packages",
                "{} and the guest",
                source.path
            );
            assert_eq!(
                before.container_os != after.container_os,
                debian || source.path == "base/container-packages",
                "{} and the container's base",
                source.path
            );
        }
    }

    #[test]
    fn the_go_version_is_in_the_image_but_not_in_the_sources_key() {
        let before = inputs().keys();
        let after = Inputs::embedded("go1.27.0", Suite::Trixie).keys();
        assert_ne!(before.image, after.image);
        assert_eq!(before.sources, after.sources);
        assert_eq!(before.guest_os, after.guest_os, "Debian does not depend on Go");
        for ((_, old), (_, new)) in before.modules.iter().zip(&after.modules) {
            assert_ne!(old, new);
        }
    }

    #[test]
    fn the_suite_changes_both_debians() {
        let before = inputs().keys();
        let after = Inputs::embedded("go1.26.8", Suite::Forky).keys();
        assert_ne!(before.guest_os, after.guest_os);
        assert_ne!(before.container_os, after.container_os);
        assert_ne!(before.image, after.image);
    }

    #[test]
    fn a_comment_in_a_package_list_rebuilds_no_debian() {
        let commented: &'static str = Box::leak(format!("# why\n{}", inputs().text("base/packages")).into_boxed_str());
        assert_eq!(inputs().keys().guest_os, with("base/packages", commented).keys().guest_os);
    }

    #[test]
    fn keys_are_stable_and_distinct() {
        let keys = inputs().keys();
        assert_eq!(keys, inputs().keys());
        let mut all: Vec<_> = keys.modules.into_iter().map(|(_, key)| key).collect();
        all.extend([keys.container_os, keys.guest_os, keys.image, keys.sources]);
        assert!(all.iter().all(|key| key.len() == 64));
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        let of = |fields: &[(&str, &str)]| {
            let mut hash = Hash::new("test");
            fields.iter().for_each(|(name, value)| hash.field(name, value));
            hash.finish()
        };
        assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
        assert_ne!(of(&[("a", ""), ("b", "")]), of(&[("a", "b")]));
    }

    #[test]
    fn versions_come_from_the_pinned_modules() {
        let versions = inputs().versions();
        assert!(versions.kubernetes.starts_with("v1.36."), "{}", versions.kubernetes);
        assert!(versions.etcd.starts_with("v3.6."), "{}", versions.etcd);
        assert!(versions.containerd.starts_with("v2."), "{}", versions.containerd);
        assert!(versions.coredns.starts_with("v1."), "{}", versions.coredns);
        let hyperkube = &inputs().go_modules()[0];
        assert!(hyperkube.variables.contains(&format!("k8s.io/component-base/version.gitVersion={}", versions.kubernetes)));
        assert!(hyperkube.variables.contains(&"k8s.io/component-base/version.gitMinor=36".to_owned()));
        assert_eq!(inputs().image_names().hyperkube, format!("localhost/ktcw/hyperkube:{}", versions.kubernetes));
    }

    #[test]
    fn go_mod_is_read_in_both_its_forms() {
        let block = "module x\n\nrequire (\n\ta.b/c v1.2.3\n\td.e/f v0.1.0 // indirect\n)\n";
        assert_eq!(module_version(block, "a.b/c"), Some("v1.2.3"));
        assert_eq!(module_version(block, "d.e/f"), Some("v0.1.0"));
        assert_eq!(module_version("require a.b/c v2.0.0\n", "a.b/c"), Some("v2.0.0"));
        assert_eq!(module_version(block, "a.b"), None);
    }
}
