//! Builds an image: the Go modules, two Debians, four container images, one disk, in
//! that order, each kept under its own key so that a change rebuilds only what
//! depends on it. `ktcw-vm image build` and `up` call it. What a stage is made of is
//! decided in `inputs`; how a directory becomes whole at once, in `cache`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::cache::{self, Cache};
use super::command::{Namespaces, Tool};
use super::container::{self, Entry, Recipe};
use super::inputs::{DISK_SIZE, GoModule, Inputs, Keys};
use super::preflight::{keyring, preflight};
use super::{BuildOptions, ContainerImage, FileRecord, Image, ImageError, ImageEvent, Store, Versions, mirror, toolchain};

/// Room a build needs beside what Go's own cache takes, MiB.
const ROOM_MIB: u64 = 6 * 1024;

/// The components hyperkube is, in the order `ls` shows them.
const COMPONENTS: [&str; 6] = ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"];

/// What busybox is called in the pause image: smoke pods serve, fetch and look up names.
const APPLETS: [&str; 16] = [
    "cat", "echo", "env", "hostname", "httpd", "id", "ip", "ls", "mkdir", "nc", "nslookup", "ping", "sh", "sleep", "true", "wget",
];

/// Builds the image of the sources embedded in this program; at once when it is there.
///
/// # Errors
/// Before anything is made: what is missing on this machine, all of it. Later: the
/// step that failed, with its log and last lines. What was finished stays in the cache.
pub fn build(opts: &BuildOptions, on: &mut dyn FnMut(ImageEvent)) -> Result<Image, ImageError> {
    // What is wrong in the question is said also when there is nothing to do.
    opts.mirror.as_deref().map_or(Ok(()), mirror::check)?;
    if !opts.force
        && let Some(image) = present(opts)?
    {
        on(ImageEvent::Present { key: image.key.clone() });
        return Ok(image);
    }
    preflight(opts.mirror.as_deref())?;
    let go = toolchain::version().map_err(|said| ImageError::Tool {
        step: "preflight".into(),
        command: "go env GOVERSION".into(),
        how: said,
        log: opts.cache.join("logs"),
        last: vec![],
    })?;
    let mirror = mirror::find(opts.mirror.as_deref())?;
    let cache = Cache::open(&opts.cache, on)?;
    // Another build may have finished while we waited for its lock.
    if !opts.force
        && let Some(image) = present(opts)?
    {
        on(ImageEvent::Present { key: image.key.clone() });
        return Ok(image);
    }
    room(&opts.cache)?;

    let inputs = Inputs::embedded(go, opts.suite);
    let keys = inputs.keys();
    let names = step_names(&inputs);
    let started = Instant::now();
    on(ImageEvent::Plan { key: keys.image.clone(), steps: names.clone() });
    let mut run = Run { cache: &cache, inputs: &inputs, keys: &keys, names, next: 0, force: opts.force, mirror, on };
    let stages = run.stages()?;
    let dir = run.image(&stages)?;
    let image = cache::load(&dir)?.ok_or_else(|| ImageError::Damaged {
        key: keys.image.clone(),
        dir: dir.clone(),
        what: "it is gone".into(),
    })?;
    on(ImageEvent::Built { key: image.key.clone(), bytes: image.size_bytes, elapsed: started.elapsed() });
    Ok(image)
}

/// The image that this build would make. Without Go nothing can be made, so what another Go made of the same sources will do.
fn present(opts: &BuildOptions) -> Result<Option<Image>, ImageError> {
    match toolchain::version() {
        Err(_) if opts.suite == super::Suite::default() => cache::find(&opts.cache),
        go => {
            let keys = Inputs::embedded(go.unwrap_or_default(), opts.suite).keys();
            cache::load(&opts.cache.join("images").join(keys.image))
        }
    }
}

fn step_names(inputs: &Inputs) -> Vec<String> {
    let versions = inputs.versions();
    let version = |module: &str| match module {
        "hyperkube" => versions.kubernetes.clone(),
        "coredns" => versions.coredns.clone(),
        "etcd" => versions.etcd.clone(),
        "pause" => versions.pause.clone(),
        _ => versions.containerd.clone(),
    };
    let title = |module: &'static str| if module == "runtime" { "containerd" } else { module };
    let suite = inputs.suite.name();
    let mut names: Vec<_> =
        inputs.go_modules().iter().map(|module| format!("{} {}", title(module.name), version(module.name))).collect();
    names.push(format!("container base (Debian {suite})"));
    names.push(format!("guest OS (Debian {suite})"));
    names.push("container images".to_owned());
    names.push("disk".to_owned());
    names
}

/// The finished stages.
struct Stages {
    modules: BTreeMap<&'static str, PathBuf>,
    container_os: PathBuf,
    guest_os: PathBuf,
}

/// One build under way.
struct Run<'a> {
    cache: &'a Cache,
    inputs: &'a Inputs,
    keys: &'a Keys,
    names: Vec<String>,
    next: usize,
    force: bool,
    mirror: String,
    on: &'a mut dyn FnMut(ImageEvent),
}

impl Run<'_> {
    fn stages(&mut self) -> Result<Stages, ImageError> {
        let mut modules = BTreeMap::new();
        for (module, (_, key)) in self.inputs.go_modules().into_iter().zip(&self.keys.modules) {
            let dir = self.stage(module.name, key, |run, step, fresh| run.compile(&module, step, fresh))?;
            modules.insert(module.name, dir);
        }
        let container_os = self.stage("container-os", &self.keys.container_os, |run, step, fresh| {
            run.debian("essential", "base/container-packages", step, fresh)
        })?;
        let guest_os =
            self.stage("guest-os", &self.keys.guest_os, |run, step, fresh| run.debian("minbase", "base/packages", step, fresh))?;
        Ok(Stages { modules, container_os, guest_os })
    }

    /// One stage: taken from the cache, or made by `work` in a fresh directory.
    fn stage(
        &mut self,
        name: &str,
        key: &str,
        work: impl FnOnce(&mut Self, &str, &Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let cache = self.cache;
        let existing = if self.force { None } else { cache.stage(name, key) };
        self.step(|run, step| match existing {
            Some(dir) => Ok((dir, true)),
            None => Ok((cache.make_stage(name, key, |fresh| work(run, step, fresh))?, false)),
        })
    }

    /// Announces the next step, does it, and says how it went.
    fn step(&mut self, work: impl FnOnce(&mut Self, &str) -> Result<(PathBuf, bool), ImageError>) -> Result<PathBuf, ImageError> {
        let index = self.next;
        self.next += 1;
        let step = self.names.get(index).cloned().unwrap_or_default();
        (self.on)(ImageEvent::Started { index, step: step.clone() });
        let started = Instant::now();
        let (dir, cached) = work(self, &step)?;
        let elapsed = if cached { Duration::ZERO } else { started.elapsed() };
        (self.on)(ImageEvent::Finished { step, cached, bytes: cache::disk_bytes(&dir), elapsed });
        Ok(dir)
    }

    fn run(&mut self, tool: Tool, step: &str, log: &str) -> Result<(), ImageError> {
        let on = &mut *self.on;
        tool.run(step, &self.cache.log(log), &mut |line| {
            on(ImageEvent::Detail { step: step.to_owned(), line: line.to_owned() });
        })
    }

    /// Writes the embedded files of one directory of `images/` below `to`.
    fn write_sources(&self, directory: &str, to: &Path) -> Result<(), ImageError> {
        for source in self.inputs.below(directory) {
            let path = to.join(source.path);
            write(&path, source.text)?;
        }
        Ok(())
    }

    fn compile(&mut self, module: &GoModule, step: &str, fresh: &Path) -> Result<(), ImageError> {
        let work = self.cache.scratch(module.name)?;
        self.write_sources(module.name, &work)?;
        let _ = fs::remove_file(self.cache.log(module.name));
        for target in &module.targets {
            let variables: String = module.variables.iter().map(|variable| format!(" -X {variable}")).collect();
            let tool = Tool::new("go")
                .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-tags", target.tags, "-ldflags"])
                .arg(format!("-s -w -buildid={variables}"))
                .arg("-o")
                .arg(fresh.join(target.binary))
                .arg(target.package)
                .directory(work.join(module.name))
                .env("CGO_ENABLED", "0")
                .env("GOOS", "linux")
                .env("GOARCH", "amd64")
                .env("GOAMD64", "v1")
                .env("GOWORK", "off")
                .env("GOTOOLCHAIN", toolchain::variable(&self.inputs.go_version))
                .env("GOFLAGS", "");
            self.run(tool, step, module.name)?;
        }
        cache::remove(&work)
    }

    fn debian(&mut self, variant: &str, packages: &str, step: &str, fresh: &Path) -> Result<(), ImageError> {
        let keyring = keyring().ok_or(ImageError::NoMirror)?;
        let log = packages.rsplit('/').next().unwrap_or("packages");
        let _ = fs::remove_file(self.cache.log(log));
        let work = self.cache.scratch(log)?;
        self.write_sources("base", &work)?;
        let tool = Tool::new("sh")
            .arg(work.join("base/debian.sh"))
            .arg(variant)
            .arg(work.join(packages))
            .args([self.mirror.as_str(), self.inputs.suite.name()])
            .arg(keyring)
            .arg(fresh)
            // Unpacked here, so that an interrupted build leaves nothing elsewhere.
            .env("TMPDIR", &work)
            .env("LC_ALL", "C.UTF-8")
            .inside(Namespaces::of_this_user());
        self.run(tool, step, log)?;
        cache::remove(&work)
    }

    /// The last two steps: container images, then the disk, in one directory that
    /// becomes the image.
    fn image(&mut self, stages: &Stages) -> Result<PathBuf, ImageError> {
        let cache = self.cache;
        let work = cache.scratch("image")?;
        let mut containers = Vec::new();
        self.step(|run, _| {
            let archives = work.join("archives");
            fs::create_dir_all(&archives).map_err(ImageError::io("creating", &archives))?;
            containers = run.containers(stages, &work, &archives)?;
            Ok((archives, false))
        })?;
        let dir = cache.image_dir(&self.keys.image);
        self.step(|run, step| {
            let dir = cache.make(&dir, |fresh| run.disk(stages, &containers, step, &work, fresh))?;
            cache::remove(&work)?;
            Ok((dir, false))
        })
    }

    fn containers(&mut self, stages: &Stages, work: &Path, archives: &Path) -> Result<Vec<ContainerImage>, ImageError> {
        let busybox = work.join("busybox");
        container::extract(&stages.guest_os.join("rootfs.tar"), "usr/bin/busybox", &busybox)?;
        let binary = |module: &str, name: &str| stages.modules[module].join(name);
        let names = self.inputs.image_names();
        let link = |directory: &str, name: &str, to| Entry::Link { path: format!("{directory}/{name}"), to };

        let mut hyperkube = vec![Entry::File { path: "hyperkube", mode: 0o755, from: binary("hyperkube", "hyperkube") }];
        hyperkube.extend(COMPONENTS.map(|component| link("usr/local/bin", component, "/hyperkube")));

        let passwd = || Entry::Text { path: "etc/passwd", text: "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n" };
        let group = || Entry::Text { path: "etc/group", text: "root:x:0:\nnogroup:x:65534:\n" };

        let mut pause = vec![
            Entry::File { path: "pause", mode: 0o755, from: binary("pause", "pause") },
            Entry::Directory { path: "bin", mode: 0o755 },
            Entry::File { path: "bin/busybox", mode: 0o755, from: busybox },
            Entry::Directory { path: "tmp", mode: 0o1777 },
            Entry::Directory { path: "www", mode: 0o755 },
            passwd(),
            group(),
        ];
        pause.extend(APPLETS.map(|applet| link("bin", applet, "busybox")));

        let recipes = [
            (
                "hyperkube",
                Recipe {
                    name: names.hyperkube,
                    store: Store::Podman,
                    base: Some(stages.container_os.join("rootfs.tar")),
                    entries: hyperkube,
                    entrypoint: vec![],
                    command: vec!["/hyperkube"],
                },
            ),
            (
                "etcd",
                Recipe {
                    name: names.etcd,
                    store: Store::Podman,
                    base: None,
                    entries: vec![
                        Entry::File { path: "usr/local/bin/etcd", mode: 0o755, from: binary("etcd", "etcd") },
                        link("usr/local/bin", "etcdctl", "etcd"),
                        link("usr/local/bin", "etcdutl", "etcd"),
                        Entry::Directory { path: "tmp", mode: 0o1777 },
                        passwd(),
                        group(),
                    ],
                    entrypoint: vec![],
                    command: vec!["/usr/local/bin/etcd"],
                },
            ),
            (
                "pause",
                Recipe {
                    name: names.pause,
                    store: Store::Containerd,
                    base: None,
                    entries: pause,
                    entrypoint: vec!["/pause"],
                    command: vec![],
                },
            ),
            (
                "coredns",
                Recipe {
                    name: names.coredns,
                    store: Store::Containerd,
                    base: None,
                    entries: vec![
                        Entry::File { path: "coredns", mode: 0o755, from: binary("coredns", "coredns") },
                        passwd(),
                        group(),
                    ],
                    entrypoint: vec!["/coredns"],
                    command: vec![],
                },
            ),
        ];
        recipes.iter().map(|(name, recipe)| container::write(recipe, &archives.join(format!("{name}.tar")))).collect()
    }

    fn disk(
        &mut self,
        stages: &Stages,
        containers: &[ContainerImage],
        step: &str,
        work: &Path,
        fresh: &Path,
    ) -> Result<(), ImageError> {
        let packages = stages.guest_os.join("packages.txt");
        let packages = fs::read_to_string(&packages).map_err(ImageError::io("reading", &packages))?;
        let versions = with_packages(self.inputs.versions(), &packages);

        self.write_sources("base", work)?;
        let told = json!({ "key": self.keys.image, "versions": versions, "containers": containers });
        let told = serde_json::to_string_pretty(&told).unwrap_or_default();
        write(&work.join("base/overlay/etc/ktcw/image.json"), &told)?;
        let names = self.inputs.image_names();
        write(&work.join("env"), &format!("PAUSE_IMAGE={}\nDISK_SIZE={DISK_SIZE}\n", names.pause))?;
        host_programs(stages, &fresh.join("bin"))?;
        let tarball = stages.guest_os.join("rootfs.tar");
        let _ = fs::remove_file(self.cache.log("disk"));
        let tool = Tool::new("sh")
            .arg(work.join("base/disk.sh"))
            .args([work, fresh, &tarball])
            .env("LC_ALL", "C.UTF-8")
            .inside(Namespaces::of_this_user());
        self.run(tool, step, "disk")?;

        (self.on)(ImageEvent::Detail { step: step.to_owned(), line: "computing digests".to_owned() });
        self.describe(stages, &versions, &packages, fresh)?;
        let files = cache::records(fresh)?;
        let record = |name: &str| files.get(name).cloned().unwrap_or(FileRecord { bytes: 0, sha256: String::new() });
        let image = Image {
            key: self.keys.image.clone(),
            sources_key: self.keys.sources.clone(),
            dir: PathBuf::new(),
            disk: "base.qcow2".into(),
            disk_sha256: record("base.qcow2").sha256,
            kernel: "vmlinuz".into(),
            initrd: "initrd.img".into(),
            bin: "bin".into(),
            virtual_size: DISK_SIZE,
            size_bytes: cache::disk_bytes(fresh),
            versions,
            containers: containers.to_vec(),
            files,
            built_at: jiff::Timestamp::now(),
        };
        write(&fresh.join("image.json"), &serde_json::to_string_pretty(&image).unwrap_or_default())
    }

    /// The bill of materials: every Debian package and Go module that is in there.
    fn describe(&self, stages: &Stages, versions: &Versions, guest: &str, fresh: &Path) -> Result<(), ImageError> {
        let path = stages.container_os.join("packages.txt");
        let container = fs::read_to_string(&path).map_err(ImageError::io("reading", &path))?;
        let mut modules = BTreeMap::new();
        for module in self.inputs.go_modules() {
            for target in &module.targets {
                let path = stages.modules[module.name].join(target.binary);
                // What the linker recorded, not what go.mod allows.
                let said = Tool::new("go").args(["version", "-m"]).arg(&path).answer();
                let linked = said.map(|said| linked_modules(&said)).and_then(|linked| match linked.is_empty() {
                    true => Err("it names no module".to_owned()),
                    false => Ok(linked),
                });
                // A bill without its lines would pass for one of a program that is made of nothing.
                let linked = linked.map_err(|how| ImageError::Tool {
                    step: "bill of materials".to_owned(),
                    command: format!("go version -m {}", path.display()),
                    how,
                    log: self.cache.log(module.name),
                    last: vec![],
                })?;
                modules.insert(target.binary, linked);
            }
        }
        let bill = json!({
            "suite": self.inputs.suite,
            "go": versions.go,
            "guest_packages": package_versions(guest),
            "container_packages": package_versions(&container),
            "go_modules": modules,
        });
        write(&fresh.join("sbom.json"), &serde_json::to_string_pretty(&bill).unwrap_or_default())
    }
}

/// The programs that run on the host as well, under the names they answer to.
fn host_programs(stages: &Stages, bin: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(bin).map_err(ImageError::io("creating", bin))?;
    for dir in stages.modules.values() {
        for entry in fs::read_dir(dir).map_err(ImageError::io("reading", dir))? {
            let from = entry.map_err(ImageError::io("reading", dir))?.path();
            let name = from.file_name().unwrap_or_default();
            if name == "stage.json" {
                continue;
            }
            let to = bin.join(name);
            // One file with two names where the file system can, else a copy.
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).map_err(ImageError::io("copying", &from))?;
            }
        }
    }
    let links = COMPONENTS.map(|component| (component, "hyperkube"));
    for (name, to) in links.into_iter().chain([("etcdctl", "etcd"), ("etcdutl", "etcd")]) {
        let path = bin.join(name);
        symlink(to, &path).map_err(ImageError::io("linking", &path))?;
    }
    Ok(())
}

/// Package and version, from `dpkg-query`'s two columns.
fn package_versions(listed: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| line.split_once(' ').map(|(name, version)| (name.to_owned(), version.to_owned()));
    listed.lines().filter_map(pair).collect()
}

/// Completes the versions with what Debian resolved.
fn with_packages(mut versions: Versions, listed: &str) -> Versions {
    versions.packages = package_versions(listed);
    versions.debian = versions.packages.get("base-files").cloned().unwrap_or_default();
    // linux-image-6.12.1-cloud-amd64 is the kernel; linux-image-cloud-amd64 only names it.
    let mut kernels = versions.packages.keys().filter_map(|name| name.strip_prefix("linux-image-"));
    versions.kernel = kernels.find(|name| name.starts_with(|c: char| c.is_ascii_digit())).unwrap_or("").to_owned();
    versions
}

/// The modules in `go version -m`: path to version, replacements as what they became.
fn linked_modules(said: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in said.lines() {
        let mut words = line.split_whitespace();
        if let (Some("dep" | "=>"), Some(module), Some(version)) = (words.next(), words.next(), words.next()) {
            found.insert(module.to_owned(), version.to_owned());
        }
    }
    found
}

fn room(cache: &Path) -> Result<(), ImageError> {
    let stat =
        nix::sys::statvfs::statvfs(cache).map_err(|error| ImageError::io("reading the free space of", cache)(error.into()))?;
    let free = (stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64) / (1024 * 1024);
    if free < ROOM_MIB {
        return Err(ImageError::NoRoom { path: cache.to_owned(), free, needed: ROOM_MIB });
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), ImageError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(ImageError::io("creating", parent))?;
    }
    fs::write(path, text).map_err(ImageError::io("writing", path))
}
