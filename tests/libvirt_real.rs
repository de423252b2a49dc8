//! The libvirt host and the acceleration probe against a real daemon, with a real guest: a libvirtd of its own
//! (`setup/libvirt-private.sh`) in a namespace of its own, so the machine's libvirt is not touched.
//!
//! Needs root, libvirtd, QEMU and qemu-img, and says so loudly where they are missing. Run with
//! `cargo test --test libvirt_real -- --ignored`; the guest is the kernel of `KTCW_TEST_KERNEL` under KVM when it boots
//! there, else that of `KTCW_TEST_KERNEL_TCG` under TCG.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test fails where it finds a fault, and shows its figures")]
#![expect(clippy::disallowed_methods, reason = "it waits in its own thread")]

#[path = "fixtures/host_plan.rs"]
mod host_plan;

use host_plan::{network, storage};
use ktcw_vm::accel::{self, Verdict};
use ktcw_vm::host::libvirt::LibvirtHost;
use ktcw_vm::host::{Console, DomainState, Done, Host, HostError, Mark, VolumeFormat};
use ktcw_vm::plan::{Accel, DiskKind, DiskPlan, DomainPlan, identity};
use ktcw_vm::spec::{ClusterName, NodeName};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// A first program that says `guest-up` and from then on repeats what it is told.
///
/// `write(1, text, 9); for (;;) if ((n = read(0, sp, 64)) > 0) write(1, sp, n);`
const GUEST: &[u8] = &[
    0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, // mov eax, 1; mov edi, 1
    0x48, 0x8d, 0x35, 0x30, 0, 0, 0, // lea rsi, [rip + text]
    0xba, 9, 0, 0, 0, 0x0f, 0x05, // mov edx, 9; syscall
    0x48, 0x83, 0xec, 0x40, // sub rsp, 64
    0x31, 0xc0, 0x31, 0xff, 0x48, 0x89, 0xe6, // again: xor eax, eax; xor edi, edi; mov rsi, rsp
    0xba, 0x40, 0, 0, 0, 0x0f, 0x05, // mov edx, 64; syscall
    0x85, 0xc0, 0x7e, 0xee, // test eax, eax; jle again
    0x89, 0xc2, 0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, // mov edx, eax; mov eax, 1; mov edi, 1
    0x48, 0x89, 0xe6, 0x0f, 0x05, 0xeb, 0xdb, // mov rsi, rsp; syscall; jmp again
    b'g', b'u', b'e', b's', b't', b'-', b'u', b'p', b'\n',
];

/// What the image is uploaded as.
const VOLUMES: [&str; 3] = ["base.qcow2", "kernel", "initrd"];

/// A cpio archive with that program as `/init`, in an ELF of one segment.
fn initrd() -> Vec<u8> {
    let load: u64 = 0x40_0000;
    let size = 120 + GUEST.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    [load + 120, 64, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
    [0, load, load, size, size, 0x1000].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend(GUEST);
    let mut out = Vec::new();
    for (name, mode, data) in [("init", 0o100_755, &elf[..]), ("TRAILER!!!", 0, &[])] {
        out.extend(b"070701");
        [0, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0]
            .iter()
            .for_each(|n| out.extend(format!("{n:08x}").bytes()));
        out.extend(name.bytes().chain([0]));
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// The private libvirt; stopped and removed when the test ends, also when it fails.
struct Private {
    dir: tempfile::TempDir,
    namespace: String,
}

impl Private {
    fn start() -> Private {
        let dir = tempfile::Builder::new().prefix("ktcw-real-").tempdir().expect("dir");
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let private = Private { dir, namespace: format!("ktcw-real-{}-{number}", std::process::id()) };
        private.run("start");
        private
    }
    fn state(&self) -> PathBuf {
        self.dir.path().join("libvirt")
    }
    fn run(&self, verb: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/libvirt-private.sh");
        let status = Command::new(script).arg(&self.namespace).arg(self.state()).arg(verb).status().expect("bash");
        assert!(status.success(), "libvirt-private.sh {verb}: {status} (this test needs root, libvirtd and QEMU)");
    }
    fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.state().join("run/libvirt-sock").display())
    }
    fn in_namespace(&self, command: &[&str]) -> String {
        let output = Command::new("ip").args(["netns", "exec", &self.namespace]).args(command).output().expect("ip");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
    /// Ends libvirtd the hard way and starts another one; guests go on.
    fn restart_daemon(&self) {
        let pid = std::fs::read_to_string(self.state().join("pids/libvirtd.pid")).expect("pid");
        let status = Command::new("kill").args(["-9", pid.trim()]).status().expect("kill");
        assert!(status.success());
        self.run("start");
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.run("stop");
    }
}

/// The kernel to boot and how, as the probe finds it.
fn kernel(private: &Private, host: &LibvirtHost) -> (PathBuf, Accel) {
    let facts = host.facts().expect("facts");
    let named = std::env::var_os("KTCW_TEST_KERNEL").map(PathBuf::from);
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/kernel/vmlinux.zst");
    if let Some(packed) = named.or_else(|| shared.exists().then_some(shared)) {
        let kernel = private.dir.path().join("vmlinux");
        if packed.extension().is_some_and(|ending| ending == "zst") {
            let status = Command::new("zstd").args(["-qdf"]).arg(&packed).arg("-o").arg(&kernel).status().expect("zstd");
            assert!(status.success());
        } else {
            std::fs::copy(&packed, &kernel).expect("copy");
        }
        let start = Instant::now();
        let boot = accel::Boot { kernel: &kernel, initrd: None, args: "" };
        let verdict = accel::probe(&facts, &boot, private.dir.path(), &|text| println!("probe: {text}")).expect("probe");
        println!("probe: {verdict:?} after {:.1} s", start.elapsed().as_secs_f32());
        if let Verdict::Boots(cpu) = verdict {
            assert_eq!(accel::cached(&facts, &boot, private.dir.path()), Some(Verdict::Boots(cpu)));
            return (kernel, Accel::Kvm { cpu });
        }
    }
    accel::judge_qemu(&facts.qemu_version, &Accel::Tcg).expect("a QEMU that emulates well");
    let stock =
        std::env::var_os("KTCW_TEST_KERNEL_TCG").expect("no kernel boots under KVM: KTCW_TEST_KERNEL_TCG names one for TCG");
    (PathBuf::from(stock), Accel::Tcg)
}

fn until(what: &str, deadline: Duration, condition: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "not {what} after {} s", deadline.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
    start.elapsed()
}

fn read_until(console: &Arc<dyn Console>, text: &'static str, times: usize) -> String {
    let reader = console.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut seen = String::new();
        let mut buffer = [0; 256];
        while seen.matches(text).count() < times {
            match reader.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(got) => seen.push_str(&String::from_utf8_lossy(&buffer[..got])),
            }
        }
        let _ = sender.send(seen);
    });
    receiver.recv_timeout(Duration::from_secs(30)).expect("the console ends or answers")
}

fn mark(cluster: &ClusterName) -> Mark {
    Mark { cluster: cluster.clone(), instance: identity::uuid(cluster, "drawn"), state_dir: format!("/state/{cluster}") }
}

#[test]
#[ignore = "needs root, libvirtd, QEMU and a kernel; part of `make e2e`"]
fn a_machine_from_nothing_to_nothing_on_a_real_libvirt() {
    let private = Private::start();
    let pools = private.dir.path().join("pools");
    let host = LibvirtHost::connect(Some(&private.uri())).expect("connect").with_pool_root(Some(pools.clone()));
    let host = host.with_abandoned_after(Duration::from_secs(3));
    let facts = host.facts().expect("facts");
    println!("{facts:?}");
    assert!(facts.emulator.contains("qemu-system-x86_64") && host.is_local(), "{facts:?}");
    let (kernel, accel) = kernel(&private, &host);

    let cluster = ClusterName::parse("real").expect("name");
    let node = NodeName::controller(0);
    let mark = mark(&cluster);
    let network = network(&cluster, [192, 168, 77]);
    let storage = storage(&cluster, VOLUMES);
    let disk = |target: &str, kind: DiskKind, volume: &str| DiskPlan { target: target.into(), volume: volume.into(), kind };
    let domain = DomainPlan {
        name: "real-controller-0".into(),
        uuid: identity::uuid(&cluster, "controller-0"),
        memory_mib: 512,
        cpus: 1,
        accel,
        cmdline: "console=ttyS0 quiet".into(),
        disks: vec![
            disk("vda", DiskKind::Root { size_gib: 20 }, "controller-0-root.qcow2"),
            disk("vdb", DiskKind::Seed, "controller-0-seed.iso"),
            disk("vdc", DiskKind::Etcd { size_gib: 1 }, "controller-0-etcd.qcow2"),
        ],
        mac: identity::mac(&cluster, &node),
        network: network.name.clone(),
    };

    // Network: the bridge has its address, inside the namespace and nowhere else.
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.ensure_network(&network, &mark).expect("network"), expected);
    }
    assert!(private.in_namespace(&["ip", "-o", "addr", "show", &network.bridge]).contains("192.168.77.1/24"));
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.ensure_pools(&storage, &mark).expect("pools"), expected);
    }
    let own_dir = pools.join(format!("real.{}", mark.instance));
    let written: Mark = serde_json::from_slice(&std::fs::read(own_dir.join("ktcw-mark.json")).expect("mark")).expect("json");
    assert_eq!(written, mark);

    // Images: two at once upload it once; a torso is made whole; what is whole is left alone.
    let base = base_image(&private);
    let upload = |name: &str, format, file: &Path| {
        let mut heard = (0, 0);
        let start = Instant::now();
        let done = host.ensure_image_volume(&storage, name, format, file, &mut |done, all| heard = (done, all)).expect("upload");
        (done, heard, start.elapsed())
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| upload(&storage.base_volume, VolumeFormat::Qcow2, &base).0);
        (upload(&storage.base_volume, VolumeFormat::Qcow2, &base).0, other.join().expect("thread"))
    });
    assert!(one != two, "one uploads, the other finds it there: {one:?} {two:?}");
    let volume = pools.join("images").join(&storage.base_volume);
    std::fs::remove_file(pools.join("images/base.qcow2.complete")).expect("the mark of a finished upload");
    std::fs::File::options().write(true).open(&volume).and_then(|file| file.set_len(1000)).expect("a torso");
    let (done, heard, took) = upload(&storage.base_volume, VolumeFormat::Qcow2, &base);
    let length = std::fs::metadata(&base).expect("base").len();
    assert_eq!((done, heard), (Done::Changed, (length, length)));
    println!("upload of {} MiB: {:.1} s (3 s of it to see that nobody else is at it)", length >> 20, took.as_secs_f32());
    assert!(std::fs::read(&volume).expect("volume") == std::fs::read(&base).expect("base"), "byte for byte");
    assert_eq!(upload(&storage.base_volume, VolumeFormat::Qcow2, &base).0, Done::Unchanged);
    let broken = private.dir.path().join("broken");
    std::fs::write(&broken, vec![7; 4096]).expect("write");
    let error =
        host.ensure_image_volume(&storage, "broken.qcow2", VolumeFormat::Qcow2, &broken, &mut |_, _| ()).expect_err("no qcow2");
    assert!(error.to_string().contains("not a qcow2"), "{error}");
    assert!(!pools.join("images/broken.qcow2").exists(), "what was refused is not left on the disk");

    // A file that becomes shorter on its way leaves nothing where nobody would see it.
    let cut = private.dir.path().join("cut");
    std::fs::write(&cut, vec![7; 8 << 20]).expect("write");
    let mut shorten = |done: u64, _: u64| {
        if done == 0 {
            std::fs::File::options().write(true).open(&cut).and_then(|file| file.set_len(4096)).expect("cut");
        }
    };
    let error = host.ensure_image_volume(&storage, "cut", VolumeFormat::Raw, &cut, &mut shorten).expect_err("too short");
    assert!(error.to_string().contains("shorter"), "{error}");
    assert!(!pools.join("images/cut").exists());

    // Somebody took the upload for abandoned and began another of that name: it is neither marked as whole nor taken away.
    let (taken, marked) = (pools.join("images/taken"), pools.join("images/taken.complete"));
    let mut take_over = |done: u64, all: u64| {
        if done == all {
            std::fs::remove_file(&taken).expect("deleted under the upload");
            std::fs::File::create(&taken).and_then(|file| file.set_len(all)).expect("begun anew");
        }
    };
    let error = host.ensure_image_volume(&storage, "taken", VolumeFormat::Raw, &base, &mut take_over).expect_err("not ours");
    assert!(error.to_string().contains("another upload took over"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("again")), "{error}");
    assert!(taken.exists() && !marked.exists());
    assert_eq!(upload("taken", VolumeFormat::Raw, &base).0, Done::Changed);
    assert!(marked.exists());
    assert_eq!(host.remove_image_volume(&storage, "taken").expect("image"), Done::Changed);
    upload(&storage.kernel_volume, VolumeFormat::Raw, &kernel);
    let archive = private.dir.path().join("initrd");
    std::fs::write(&archive, initrd()).expect("write");
    upload("initrd", VolumeFormat::Raw, &archive);

    // Disks and content; a seed that a crash left half-written is made anew.
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(
            host.ensure_overlay(&storage, "controller-0-root.qcow2", "base.qcow2", 20 << 30, &mark).expect("overlay"),
            expected
        );
        assert_eq!(host.ensure_blank(&storage, "controller-0-etcd.qcow2", 1 << 30, &mark).expect("blank"), expected);
        assert_eq!(host.ensure_content(&storage, "controller-0-seed.iso", &vec![1; 300_000], &mark).expect("seed"), expected);
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(own_dir.join("controller-0-seed.iso")).expect("seed").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600, "the seed carries keys");
    std::fs::write(own_dir.join("controller-0-seed.iso"), vec![0; 300_000]).expect("write");
    assert_eq!(host.ensure_content(&storage, "controller-0-seed.iso", &vec![1; 300_000], &mark).expect("seed"), Done::Changed);
    assert!(std::fs::read(own_dir.join("controller-0-seed.iso")).expect("seed") == vec![1; 300_000]);

    // All nodes' disks at once, as `up` makes them: nobody gets in another's way.
    let start = Instant::now();
    let errors: Vec<HostError> = std::thread::scope(|scope| {
        let (host, storage, mark) = (&host, &storage, &mark);
        let node = |i: u8| {
            host.ensure_overlay(storage, &format!("worker-{i}-root.qcow2"), "base.qcow2", 20 << 30, mark)?;
            host.ensure_content(storage, &format!("worker-{i}-seed.iso"), &vec![i; 400_000], mark)?;
            host.ensure_blank(storage, &format!("worker-{i}-etcd.qcow2"), 2 << 30, mark)?;
            host.observe()?;
            host.remove_volume(storage, &format!("worker-{i}-root.qcow2"), mark)
        };
        let all: Vec<_> = (0..12).map(|i| scope.spawn(move || node(i))).collect();
        all.into_iter().filter_map(|thread| thread.join().expect("thread").err()).collect()
    });
    assert!(errors.is_empty(), "{errors:?}");
    println!("disks of 12 nodes at once: {:.2} s", start.elapsed().as_secs_f32());
    for i in 0..12 {
        assert!(std::fs::read(own_dir.join(format!("worker-{i}-seed.iso"))).expect("seed") == vec![i; 400_000], "node {i}");
    }

    // The machine.
    assert_eq!(host.console_tail(&storage, &domain, 10).expect("never ran"), "");
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.ensure_domain(&domain, &storage, &node, &mark).expect("define"), expected);
    }
    let start = Instant::now();
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.ensure_running(&domain, &mark).expect("start"), expected);
    }
    println!("start call: {:.2} s", start.elapsed().as_secs_f32());
    let tail = || host.console_tail(&storage, &domain, 50).expect("console");
    let up = until("up", Duration::from_secs(120), || tail().contains("guest-up"));
    println!("guest-up after {:.1} s; {} MiB resident", up.as_secs_f32(), host.resident_bytes(&domain).expect("resident") >> 20);
    assert!(host.resident_bytes(&domain).expect("resident") > 20 << 20);
    assert_eq!(host.ensure_domain(&domain, &storage, &node, &mark).expect("define"), Done::Unchanged, "while it runs");

    let console = host.open_console(&domain, &mark).expect("console");
    assert!(host.open_console(&domain, &mark).is_err(), "a second reader would steal half of it");
    console.write(b"hello there\r").expect("typed");
    let seen = read_until(&console, "hello there", 2);
    assert!(seen.matches("hello there").count() >= 2, "the terminal's echo and the guest's: {seen:?}");
    let waiting = console.clone();
    let reader = std::thread::spawn(move || waiting.read(&mut [0; 16]));
    std::thread::sleep(Duration::from_millis(200));
    console.close();
    until("ended", Duration::from_secs(10), || reader.is_finished());
    assert!(tail().contains("hello there"), "the log has it too");

    let state =
        || host.observe().expect("observe").domains.into_iter().find(|found| found.name == domain.name).map(|found| found.state);
    assert_eq!(host.suspend(&domain, &mark).expect("suspend"), Done::Changed);
    assert_eq!(state(), Some(DomainState::Paused));
    assert_eq!(host.resume(&domain, &mark).expect("resume"), Done::Changed);

    // libvirtd is killed and comes back: the same host goes on, and so does the machine.
    private.restart_daemon();
    assert_eq!(state(), Some(DomainState::Running));
    assert_eq!(host.ensure_pools(&storage, &mark).expect("pools"), Done::Unchanged);
    assert_eq!(host.ensure_network(&network, &mark).expect("network"), Done::Unchanged);

    // Another state directory's cluster of this name.
    let stranger = Mark { instance: identity::uuid(&cluster, "another"), state_dir: "/elsewhere".into(), ..mark.clone() };
    let error = host.remove_pool(&storage.pool, &stranger).expect_err("not theirs");
    assert!(matches!(&error, HostError::NotOurs { .. }), "{error}");
    let seen = host.observe().expect("observe");
    let pool = seen.pools.iter().find(|pool| pool.name == storage.pool).expect("pool");
    assert_eq!(pool.mark.as_ref(), Some(&mark), "with the state directory, for messages");

    assert_eq!(host.power_off(&domain, &mark).expect("off"), Done::Changed);
    assert_eq!((state(), host.resident_bytes(&domain).expect("resident")), (Some(DomainState::ShutOff), 0));
    assert_eq!(host.ensure_running(&domain, &mark).expect("on again"), Done::Changed);
    until("up again", Duration::from_secs(120), || tail().matches("guest-up").count() == 2);

    // What somebody has put among the disks stays, and the pool with it.
    std::fs::write(own_dir.join("holiday.qcow2"), "theirs").expect("written");
    assert_eq!(host.remove_domain(&domain.name, domain.uuid, &mark).expect("domain"), Done::Changed);
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.remove_pool(&storage.pool, &mark).expect("kept"), expected);
    }
    assert_eq!(std::fs::read_to_string(own_dir.join("holiday.qcow2")).expect("kept"), "theirs");
    std::fs::remove_file(own_dir.join("holiday.qcow2")).expect("taken away");
    assert_eq!(host.ensure_pools(&storage, &mark).expect("there"), Done::Unchanged);

    // Nothing is left but the shared images.
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.remove_domain(&domain.name, domain.uuid, &mark).expect("domain"), Done::Unchanged);
        assert_eq!(host.remove_network(&network.name, &mark).expect("network"), expected);
        assert_eq!(host.remove_pool(&storage.pool, &mark).expect("pool"), expected);
    }
    let seen = host.observe().expect("observe");
    assert!(seen.domains.is_empty() && seen.networks.is_empty() && seen.pools.len() == 1, "{seen:?}");
    assert!(!own_dir.exists() && pools.join("images").exists());
    assert!(!private.in_namespace(&["ip", "-o", "link"]).contains(&network.bridge));
    assert_eq!(host.remove_empty_image_pool(&storage).expect("in use"), Done::Unchanged);
    for image in ["base.qcow2", "kernel", "initrd"] {
        assert_eq!(host.remove_image_volume(&storage, image).expect("image"), Done::Changed);
        assert_eq!(host.remove_image_volume(&storage, image).expect("image"), Done::Unchanged);
    }
    for expected in [Done::Changed, Done::Unchanged] {
        assert_eq!(host.remove_empty_image_pool(&storage).expect("empty"), expected);
    }
    assert!(host.observe().expect("observe").pools.is_empty() && !pools.join("images").exists());
}

/// `KTCW_TEST_BASE`, or a qcow2 of 64 MiB that no compression helps.
fn base_image(private: &Private) -> PathBuf {
    if let Some(base) = std::env::var_os("KTCW_TEST_BASE") {
        return PathBuf::from(base);
    }
    let raw = private.dir.path().join("base.raw");
    let base = private.dir.path().join("base.qcow2");
    let mut noise = vec![0; 64 << 20];
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for chunk in noise.chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    std::fs::write(&raw, noise).expect("write");
    let status = Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&base).status().expect("qemu-img");
    assert!(status.success());
    base
}

/// A daemon that is there and says nothing: a call that is under way ends, a new one is refused, and when it goes on so do we.
#[test]
#[ignore = "needs root and libvirtd; run with `cargo test --test libvirt_real -- --ignored`"]
fn a_daemon_that_falls_silent_is_given_up_and_found_again() {
    let private = Private::start();
    let host = LibvirtHost::connect(Some(&private.uri())).expect("connected");
    host.observe().expect("observed");
    let pid = std::fs::read_to_string(private.state().join("pids/libvirtd.pid")).expect("pid");
    let send = |signal: &str| assert!(Command::new("kill").args([signal, pid.trim()]).status().expect("kill").success());
    send("-STOP");
    let begin = Instant::now();
    let error = host.observe().expect_err("nobody answers");
    let gave_up = begin.elapsed();
    send("-CONT");
    println!("given up after {:.0} s: {error}", gave_up.as_secs_f64());
    assert!(gave_up < Duration::from_secs(90), "{gave_up:?}");
    assert!(error.hint().is_some(), "{error}");
    host.observe().expect("found again");
}

/// Whoever has a daemon check XML first makes libxml2 fill its tables, and who comes meanwhile is told that libvirt's own schema
/// is broken: `up` makes network and pools at once, so it would meet that on every machine that has just booted.
#[test]
#[ignore = "needs root and libvirtd; run with `cargo test --test libvirt_real -- --ignored`"]
fn clusters_are_begun_side_by_side_on_a_daemon_that_has_just_begun() {
    const AT_ONCE: u8 = 6;
    let private = Private::start();
    let pools = private.dir.path().join("pools");
    for round in 0..10 {
        private.restart_daemon();
        let together = Barrier::new(usize::from(AT_ONCE));
        std::thread::scope(|scope| {
            for number in 0..AT_ONCE {
                let (together, uri, pools) = (&together, private.uri(), pools.clone());
                scope.spawn(move || {
                    let cluster = ClusterName::parse(&format!("at-once-{number}")).expect("name");
                    let host = LibvirtHost::connect(Some(&uri)).expect("connected").with_pool_root(Some(pools));
                    let (network, storage, mark) =
                        (network(&cluster, [192, 168, 100 + number]), storage(&cluster, VOLUMES), mark(&cluster));
                    together.wait();
                    if number % 2 == 0 {
                        host.ensure_network(&network, &mark).unwrap_or_else(|error| panic!("round {round}: {error}"));
                        host.remove_network(&network.name, &mark).expect("removed");
                    } else {
                        host.ensure_pools(&storage, &mark).unwrap_or_else(|error| panic!("round {round}: {error}"));
                        host.remove_pool(&storage.pool, &mark).expect("removed");
                    }
                });
            }
        });
    }
}
