//! Forks: what differs from the first cluster and what does not, and the making of one killed at any place.

use super::*;
use crate::plan::{Accel, samples};
use crate::store::crash::{self, copy, each, place, told};
use std::ffi::OsStr;
use std::path::PathBuf;

fn lab() -> Plan {
    samples::plan("lab", 1, 1, Accel::Tcg)
}

#[test]
fn inside_its_machines_nothing_differs_and_outside_everything_does() {
    let lab = lab();
    let fork = forked(&lab, &ClusterName::parse("lab2").expect("a name"));
    for (was, is) in lab.nodes.iter().zip(&fork.nodes) {
        assert_eq!((&was.files, &was.units, was.ip, &was.mac), (&is.files, &is.units, is.ip, &is.mac));
        assert!(was.uuid != is.uuid && was.domain.name != is.domain.name && was.domain.network != is.domain.network);
    }
    assert_eq!((&lab.certs, &lab.kubeconfigs, &lab.addons), (&fork.certs, &fork.kubeconfigs, &fork.addons));
    assert!(fork.network.namespace && !lab.network.namespace);
    assert!(lab.network.bridge != fork.network.bridge && lab.storage.pool != fork.storage.pool);
    assert_eq!(lab.storage.base_volume, fork.storage.base_volume);
    // A fork of the fork still knows itself by the first one's name, and `up` of a fork plans the same again.
    let third = forked(&fork, &ClusterName::parse("lab3").expect("a name"));
    assert_eq!(third.resolved.fork_of, fork.resolved.fork_of);
    assert_eq!(plan(&fork.spec, &fork.resolved), fork);
}

/// What the two clusters take together is asked before anything is made of the second.
#[test]
fn a_fork_without_memory_or_room_for_it_is_refused() {
    use crate::host::PoolSeen;
    let old = lab();
    let fork = forked(&old, &second());
    let memory: u64 =
        fork.nodes.iter().map(|node| u64::from(node.domain.memory_mib) + preflight::overhead_mib(&node.domain.accel)).sum();
    let volume = crate::host::VolumeSeen { name: "v".into(), capacity: 20 << 30, allocation: 3 << 30, path: String::new() };
    let judged = |memory_mib: u64, room_mib: u64| {
        let facts = HostFacts {
            uri: String::new(),
            libvirt_version: String::new(),
            qemu_version: String::new(),
            emulator: String::new(),
            kvm_listed: false,
            memory_mib: 64_000,
            free_memory_mib: memory_mib,
            cpus: 2,
        };
        let pool = PoolSeen {
            name: old.storage.pool.clone(),
            uuid: old.storage.pool_uuid,
            active: true,
            volumes: vec![volume.clone()],
            available: Some(room_mib << 20),
            mark: None,
        };
        let seen = HostSeen { pools: vec![pool], ..HostSeen::default() };
        room(&fork, &old, &facts, &seen, None).map_err(|error| error.text())
    };
    assert_eq!(judged(memory, 3072 + 512), Ok(()));
    let said = judged(memory - 1, 3072 + 512).expect_err("no memory");
    assert!(
        said.contains(&format!("memory: 2 machines to start need {memory} MiB")) && said.contains("nothing was made"),
        "{said}"
    );
    let said = judged(memory, 3072 + 511).expect_err("no room");
    assert!(said.contains("the fork's disks may take 3584 MiB, where pools are made 3583 MiB are free"), "{said}");
    assert!(said.contains("left behind: nothing"), "{said}");
}

/// A computer with cluster `lab` on it, as a directory.
struct Computer(PathBuf);

const CHILD: &str = "cli::fork::tests::child_forks";

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// Not a name that anybody's fork has: `down` also removes the namespace that would be its.
fn second() -> ClusterName {
    ClusterName::parse("fork-of-a-test").expect("a name")
}

/// Every file below it, and what is in it; the lock says only who came by.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in crash::entries(&dir) {
            match path.is_dir() {
                true => todo.push(path),
                false if path.ends_with("lock") => {}
                false => all.push((path.clone(), std::fs::read(&path).expect("read"))),
            }
        }
    }
    all.sort();
    all
}

impl Computer {
    /// Its disks lie in libvirt; whether its machines run is nothing to a fork.
    fn new(at: &Path) -> Computer {
        std::fs::create_dir_all(at).expect("a directory");
        let computer = Computer(at.to_owned());
        let (plan, host) = (lab(), computer.host());
        let dir = crate::cli::kept::kept(&computer.clusters(), &plan);
        let (mark, storage) = (session::mark(&dir), &plan.storage);
        host.ensure_network(&plan.network, &mark).expect("made");
        host.ensure_pools(storage, &mark).expect("made");
        let file = Path::new("Cargo.toml");
        let format = crate::host::VolumeFormat::Raw;
        host.ensure_image_volume(storage, &storage.base_volume, format, file, &mut |_, _| ()).expect("made");
        for node in &plan.nodes {
            for disk in &node.domain.disks {
                let made = match disk.kind {
                    DiskKind::Seed => host.ensure_content(storage, &disk.volume, b"seed", &mark),
                    DiskKind::Root { .. } => host.ensure_overlay(storage, &disk.volume, &storage.base_volume, 10 << 30, &mark),
                    DiskKind::Etcd { .. } => host.ensure_blank(storage, &disk.volume, 4 << 30, &mark),
                };
                made.expect("made");
            }
            host.ensure_domain(&node.domain, storage, &node.name, &mark).expect("made");
        }
        computer
    }

    fn clusters(&self) -> PathBuf {
        self.0.join("clusters")
    }

    fn host(&self) -> crate::host::fake::FakeHost {
        crash::kept_host(&self.0.join("host.json"))
    }

    fn copied(&self, to: &Path) -> Computer {
        copy(&self.0, to);
        Computer(to.to_owned())
    }

    fn dir(&self, name: &ClusterName) -> ClusterDir {
        ClusterDir::open(&self.clusters(), name).expect("there")
    }

    /// What `snapshot fork one --as lab2` does once nothing stands in its way, but for the start.
    fn fork(&self) -> Result<(), CliError> {
        let (first, plan) = (lab(), forked(&lab(), &second()));
        let host = Arc::new(self.host());
        let fits = Fits::of(&first, &host.facts().expect("facts"));
        let record = Record::begun(Name::parse("one").expect("a name"), fits, Default::default(), Timestamp::now());
        let origin = Origin { host, uri: "fake:///system", dir: &self.dir(&first.cluster), plan: &first };
        block_on(make(&origin, &record, &plan, &self.clusters(), &|_| ()))
    }

    /// All disks with data are there, and the keys are the first cluster's.
    fn is_whole(&self, about: &str) {
        let (plan, dir) = (forked(&lab(), &second()), self.dir(&second()));
        refuse_cut_off(&dir.history().expect("readable"), "lab2").unwrap_or_else(|error| panic!("{about}: {}", error.text()));
        assert_eq!(dir.load_plan().expect("readable").as_ref(), Some(&plan), "{about}");
        let seen = self.host().observe().expect("observed");
        let pool = seen.pools.iter().find(|pool| pool.name == plan.storage.pool).expect("its pool");
        let disks = plan.nodes.iter().flat_map(|node| &node.domain.disks).filter(|disk| disk.kind != DiskKind::Seed);
        for disk in disks {
            assert!(pool.volumes.iter().any(|volume| volume.name == disk.volume), "{about}: {}", disk.volume);
        }
        let keys = |name: &ClusterName| {
            let dir = self.dir(name);
            let all = ["pki", "ssh"].map(|part| content(&dir.path().join(part)));
            let inside = |path: &Path| path.strip_prefix(dir.path()).expect("inside").to_owned();
            all.concat().into_iter().map(|(path, bytes)| (inside(&path), bytes)).collect::<Vec<_>>()
        };
        assert_eq!(keys(&second()), keys(&lab().cluster), "{about}");
    }

    fn down(&self, name: &ClusterName) -> Result<(), CliError> {
        crate::store::finish_removals(&self.clusters())?;
        if !ClusterDir::exists(&self.clusters(), name) {
            return Ok(());
        }
        let dir = self.dir(name);
        let lock = dir.lock("down")?;
        block_on(crate::cli::down::remove(dir, lock, Arc::new(self.host()), None, |_| ())).map(drop)
    }
}

/// Whatever is there of it says that it is no cluster yet, `down` takes it away, and the first cluster never notices.
#[test]
fn a_fork_killed_anywhere_is_whole_or_known_to_be_none_and_the_first_cluster_is_as_it_was() {
    let place = place();
    let computer = Computer::new(&place.path().join("computer"));
    let before = computer.host().observe().expect("observed");
    let counted = computer.copied(&place.path().join("counted"));
    let points = crash::points(CHILD, &[("KTCW_TEST_DIR", &counted.0)], &place.path().join("count"));
    assert!(points.len() > 60, "{}", points.len());
    counted.is_whole("undisturbed");
    each(&points, |point, at| {
        let about = format!("fork killed at {point}");
        let cut = computer.copied(&at.join("cut"));
        let first = content(cut.dir(&lab().cluster).path());
        let env: [(&str, &dyn AsRef<OsStr>); 2] = [("KTCW_TEST_DIR", &cut.0), ("KTCW_FAIL_AT", &point)];
        assert!(crash::aborts(CHILD, &env), "{point} is on its way");
        let seen = cut.host().observe().expect("observed");
        let begun = ClusterDir::exists(&cut.clusters(), &second()).then(|| cut.dir(&second()).history().expect("readable"));
        match begun {
            // Not announced: nothing is there that anybody could take for it.
            None => assert_eq!(seen, before, "{about}"),
            Some(history) if history.records.is_empty() => {
                assert_eq!(seen, before, "{about}");
                assert_eq!(cut.dir(&second()).load_plan().expect("readable"), None, "{about}");
            }
            Some(history) if is_cut_off(&history) => {
                let error = refuse_cut_off(&history, "lab2").expect_err(&about);
                assert!(error.hint.is_some_and(|hint| hint.contains("ktcw-vm down -c lab2")), "{about}");
            }
            Some(_) => cut.is_whole(&about),
        }
        cut.down(&second()).unwrap_or_else(|error| panic!("{about}, down: {}", error.text()));
        assert_eq!(cut.host().observe().expect("observed"), before, "{about}, down");
        assert_eq!(content(cut.dir(&lab().cluster).path()), first, "{about}: the first cluster's directory");
        cut.fork().unwrap_or_else(|error| panic!("{about}, down, again: {}", error.text()));
        cut.is_whole(&format!("{about}, down, again"));
    });
    println!("{}", told("snapshot fork", &points));
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_forks() {
    let computer = Computer(PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent")));
    computer.fork().unwrap_or_else(|error| panic!("{}", error.text()));
}
