//! The figures of the main job, all from one run on one machine: `up` against bare QEMU booting the same five disks, the
//! program's own cost, `plan`, `verify`, and what the machines take of the host's memory after ten minutes.
//! The JSON is kept in `target/bench`; a target that is missed fails the benchmark after everything was measured.

use crate::rig::{Remove, Rig, artefacts, command, eventually, step, suite_is, virsh};
use serde_json::{Value, json};
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `up` and its floor, measured alternately this often.
const ROUNDS: usize = 3;
/// What `up` may take before it is given up; the target is a twentieth.
const PATIENCE: Duration = Duration::from_secs(1200);
const SIZE: [&str; 4] = ["--etcd", "3", "--workers", "2"];

#[test]
fn figures_of_the_main_job() {
    let rig = Rig::native("bench");
    let _guard = Remove(&rig);
    // The program alone, before there are machines that take their share of the processors.
    let plan: Vec<f64> = (0..9).map(|_| big_plan_ms()).collect();
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let up = measured_up(&rig, PATIENCE);
        let floor = floor(&rig, round);
        let ratio = up.ssh_s / floor;
        step(&format!(
            "round {round}: up {:.1} s (Ready {:.1} s); SSH on all after {:.1} s, by bare QEMU {floor:.1} s: {ratio:.2}",
            up.whole_s, up.ready_s, up.ssh_s
        ));
        rounds.push(json!({
            "up_s": up.whole_s, "ready_s": up.ready_s, "machines_until_ssh_s": up.ssh_s, "floor_s": floor, "ratio": ratio,
            "cpu_share_of_wall": up.cpu_s / up.whole_s, "peak_rss_mb": up.peak_mb, "timings": up.timings, "stages": up.stages,
        }));
        rig.run(&["down", "--yes"]).exits(0);
    }
    let up = measured_up(&rig, PATIENCE);
    let began = Instant::now();
    step("the machines' memory after ten minutes, then what is asked of a settled cluster …");
    // A figure at a time, not a wait for a condition.
    std::thread::sleep(Duration::from_secs(600).saturating_sub(began.elapsed()));
    let resident = resident_gib();
    let verify: Vec<f64> = (0..5).map(|_| rig.run(&["verify"]).exits(0).took.as_secs_f64()).collect();

    let back = back_from_memory(&rig);
    let of = |key: &str| median(&rounds.iter().filter_map(|round| round[key].as_f64()).collect::<Vec<_>>());
    let figures = [
        ("machines until SSH / bare QEMU", of("ratio"), 1.15, ""),
        ("3 + 2 Ready", of("ready_s"), 60.0, " s"),
        ("own CPU time of wall time", of("cpu_share_of_wall") * 100.0, 3.0, " %"),
        ("own peak resident", of("peak_rss_mb"), 100.0, " MB"),
        ("plan of 7 + 50 nodes", median(&plan), 50.0, " ms"),
        ("verify of a healthy 3 + 2", median(&verify), 3.0, " s"),
        ("five machines resident after ten minutes", resident, 5.0, " GiB"),
        ("up from the golden snapshot / cold up", back / of("up_s"), 0.2, ""),
    ];
    rig.run(&["down", "--yes"]).exits(0);
    let measured = json!({
        "rounds": rounds, "last_up_s": up.whole_s, "verify_s": verify, "plan_ms": plan, "resident_gib": resident,
        "golden_up_s": back,
    });
    judged("main-job", measured, &figures);
}

/// Seconds that `up` takes after `down --keep-golden`, verify and all.
pub fn back_from_memory(rig: &Rig) -> f64 {
    rig.run(&["snapshot", "save", "golden"]).exits(0);
    rig.run(&["down", "--yes", "--keep-golden"]).exits(0);
    let up = rig.up_with_golden(&SIZE).exits(0).says("back from its golden snapshot");
    up.took.as_secs_f64()
}

/// Keeps the JSON and says what was met; in `make bench`, which is about the figures, fails when something was not.
pub fn judged(name: &str, mut report: Value, figures: &[(&str, f64, f64, &str)]) {
    let rows = figures
        .iter()
        .map(|(what, value, target, unit)| json!({"what": what, "value": value, "target": target, "unit": unit.trim()}));
    report["figures"] = rows.collect();
    report["mode"] = crate::rig::mode().into();
    let kept = artefacts().parent().expect("the target directory").join("bench");
    std::fs::create_dir_all(&kept).expect("a directory");
    let file = kept.join(format!("{name}-{}.json", std::process::id()));
    std::fs::write(&file, serde_json::to_string_pretty(&report).expect("JSON")).expect("kept");
    step(&format!("kept in {}", file.display()));
    let mut missed = Vec::new();
    for (what, value, target, unit) in figures {
        let word = if value <= target { "met" } else { "MISSED" };
        step(&format!("{what:<44} {value:>8.2}{unit:<4}  target {target}{unit}: {word}"));
        if value > target {
            missed.push(what);
        }
    }
    assert!(missed.is_empty() || !suite_is("bench"), "targets missed: {missed:?}");
}

pub struct Up {
    pub whole_s: f64,
    /// Until both workers are Ready and DNS answers.
    pub ready_s: f64,
    /// From the first machine's start until SSH answers on the last.
    ssh_s: f64,
    cpu_s: f64,
    peak_mb: f64,
    pub timings: Value,
    pub stages: Value,
}

/// `up --format json --timings`, with the program's own CPU time and memory as the kernel counts them.
pub fn measured_up(rig: &Rig, patience: Duration) -> Up {
    let mut words = ["up", "-c", rig.cluster, "--format", "json", "--timings", "--no-golden"].map(str::to_owned).to_vec();
    words.extend(SIZE.iter().map(|&word| word.to_owned()));
    words.extend(rig.accel().iter().cloned());
    let out = tempfile::NamedTempFile::new().expect("a file");
    let begin = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
        .args(&words)
        .stdin(Stdio::null())
        .stdout(out.reopen().expect("the file"))
        .spawn()
        .expect("the program starts");
    let (mut cpu_s, mut peak_mb) = (0.0, 0.0);
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        (cpu_s, peak_mb) = usage(child.id()).unwrap_or((cpu_s, peak_mb));
        assert!(begin.elapsed() < patience, "up has not ended after {} s", patience.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    };
    let whole_s = begin.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(out.path()).expect("its output");
    assert!(status.success(), "up ended with {status}:\n{text}");
    let summary: Value = serde_json::from_str(text.lines().last().expect("a summary")).expect("JSON");
    let timings = summary["timings"].clone();
    let rows = timings.as_array().expect("timings");
    let named = |verb: &str| -> Vec<(f64, f64)> {
        let of = rows.iter().filter(|row| row["step"].as_str().is_some_and(|step| step.starts_with(verb)));
        of.map(|row| (seconds(&row["began"]), seconds(&row["began"]) + seconds(&row["took"]))).collect()
    };
    let started = named("start ").iter().map(|row| row.0).fold(f64::INFINITY, f64::min);
    let answered = named("ssh ").iter().map(|row| row.1).fold(0.0, f64::max);
    let ready_s = rows.iter().map(|row| seconds(&row["began"]) + seconds(&row["took"])).fold(0.0, f64::max);
    assert!(named("ssh ").len() == 5 && answered > started, "{timings}");
    let stages = summary["stages"].clone();
    Up { whole_s, ready_s, ssh_s: answered - started, cpu_s, peak_mb, timings, stages }
}

/// A duration as `--timings` has it.
pub fn seconds(value: &Value) -> f64 {
    value["secs"].as_f64().expect("secs") + value["nanos"].as_f64().expect("nanos") / 1e9
}

/// CPU seconds and peak resident megabytes of a process; `None` when it has ended.
fn usage(pid: u32) -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit_once(") ")?.1;
    let ticks: f64 = after.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse::<f64>().ok()?;
    // USER_HZ is 100 on every Linux that runs this.
    Some((ticks / 100.0, peak / 1000.0))
}

/// Seconds that bare QEMU takes to boot fresh copies of the same five disks until SSH answers on all.
fn floor(rig: &Rig, round: usize) -> f64 {
    let plan = rig.plan();
    let nodes = plan["nodes"].as_array().expect("nodes");
    let place = tempfile::tempdir_in(artefacts().parent().expect("the target directory")).expect("a directory");
    let mut machines = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let domain = node["domain"]["name"].as_str().expect("a name");
        let xml = virsh(&["dumpxml", domain]).exits(0).out;
        let named = |key: &str| node[key].as_str().expect("there").to_owned();
        machines.push(Bare::of(&xml, &named("name"), &named("ip"), place.path(), &format!("kb{round}{at}")));
    }
    for node in nodes {
        virsh(&["destroy", node["domain"]["name"].as_str().expect("a name")]).exits(0);
    }
    let begin = Instant::now();
    // Each is watched by a thread of its own, so that none waits for its turn to be seen.
    std::thread::scope(|scope| {
        let watch = |machine| {
            let mut running = Running::of(machine, rig);
            scope.spawn(move || {
                let what = "SSH answers on a bare machine";
                eventually(what, Duration::from_secs(600), || running.answers());
                (begin.elapsed().as_secs_f64(), running)
            })
        };
        let watched: Vec<_> = machines.iter().map(watch).collect();
        let done: Vec<_> = watched.into_iter().map(|thread| thread.join().expect("it was seen")).collect();
        done.iter().map(|(seconds, _)| *seconds).fold(0.0, f64::max)
    })
}

/// One machine as libvirt defined it, on disks of its own.
struct Bare {
    args: Vec<String>,
    node: String,
    tap: String,
    address: SocketAddr,
}

impl Bare {
    fn of(xml: &str, node: &str, ip: &str, place: &Path, tap: &str) -> Bare {
        let document = roxmltree::Document::parse(xml).expect("XML");
        let find = |tag: &str| document.descendants().find(|node| node.has_tag_name(tag));
        let text = |tag: &str| find(tag).and_then(|node| node.text()).map(str::to_owned);
        let kvm = document.root_element().attribute("type") == Some("kvm");
        let mut args: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none", "-machine"].map(str::to_owned).into();
        args.push(if kvm { "q35,usb=off,hpet=off,accel=kvm".into() } else { "q35,usb=off,hpet=off,accel=tcg".into() });
        if kvm {
            let off = find("cpu").into_iter().flat_map(|cpu| cpu.children().filter(|c| c.attribute("policy") == Some("disable")));
            let off: String = off.filter_map(|feature| feature.attribute("name")).map(|name| format!(",-{name}")).collect();
            args.extend(["-cpu".into(), format!("host{off}")]);
        }
        let kib: u64 = text("memory").expect("memory").parse().expect("KiB");
        args.extend(["-m".into(), format!("{}M", kib / 1024), "-smp".into(), text("vcpu").expect("vcpu")]);
        args.extend(["-kernel".into(), text("kernel").expect("kernel"), "-append".into(), text("cmdline").expect("cmdline")]);
        for (flag, tag) in [("-initrd", "initrd"), ("-bios", "loader")] {
            args.extend(text(tag).into_iter().flat_map(|path| [flag.to_owned(), path]));
        }
        for disk in document.descendants().filter(|node| node.has_tag_name("disk")) {
            let child = |tag: &str| disk.children().find(|node| node.has_tag_name(tag)).expect("a disk's part");
            let file = child("source").attribute("file").expect("a file");
            let (target, format) =
                (child("target").attribute("dev").expect("dev"), child("driver").attribute("type").expect("type"));
            let serial = child("serial").text().expect("a serial");
            let (file, readonly) = fresh(file, format, place);
            let readonly = if readonly { ",readonly=on" } else { "" };
            args.extend(["-drive".into(), format!("if=none,id={target},format={format},file={}{readonly}", file.display())]);
            args.extend(["-device".into(), format!("virtio-blk-pci,disable-legacy=on,drive={target},serial={serial}")]);
        }
        let interface = find("interface").expect("an interface");
        let of = |tag: &str, key: &str| {
            interface.children().find(|n| n.has_tag_name(tag)).and_then(|n| n.attribute(key)).expect("there")
        };
        let (mac, bridge) = (of("mac", "address"), of("source", "bridge"));
        command("ip", &["tuntap", "add", "dev", tap, "mode", "tap"]).exits(0);
        command("ip", &["link", "set", tap, "master", bridge, "up"]).exits(0);
        args.extend(["-netdev".into(), format!("tap,id=net,ifname={tap},script=no,downscript=no")]);
        args.extend(["-device".into(), format!("virtio-net-pci,disable-legacy=on,netdev=net,mac={mac},romfile=")]);
        args.extend(["-device", "virtio-rng-pci", "-device", "virtio-balloon-pci,free-page-reporting=on"].map(str::to_owned));
        args.extend(["-serial".into(), format!("file:{}", place.join(format!("{tap}.log")).display())]);
        Bare { args, node: node.to_owned(), tap: tap.to_owned(), address: format!("{ip}:22").parse().expect("an address") }
    }
}

/// What a disk was before its machine first started: an overlay on the same base, an empty disk, the same seed.
fn fresh(file: &str, format: &str, place: &Path) -> (PathBuf, bool) {
    if format == "raw" {
        return (PathBuf::from(file), true);
    }
    let info = command("qemu-img", &["info", "--force-share", "--output", "json", file]).exits(0).json();
    let copy = place.join(Path::new(file).file_name().expect("a name"));
    let (path, size) = (copy.display().to_string(), info["virtual-size"].to_string());
    let mut words = vec!["create", "-q", "-f", "qcow2"];
    if let Some(base) = info["full-backing-filename"].as_str() {
        words.extend(["-F", "qcow2", "-b", base]);
    }
    words.extend([path.as_str(), size.as_str()]);
    command("qemu-img", &words).exits(0);
    (copy, false)
}

struct Running<'a> {
    bare: &'a Bare,
    rig: &'a Rig,
    child: Child,
}

impl<'a> Running<'a> {
    fn of(bare: &'a Bare, rig: &'a Rig) -> Running<'a> {
        let child = Command::new("qemu-system-x86_64").args(&bare.args).stdin(Stdio::null()).spawn().expect("QEMU starts");
        Running { bare, rig, child }
    }

    /// The same as `up` waits for: the banner, then a command that ran. Their keys are those of the cluster's machines.
    fn answers(&mut self) -> bool {
        assert!(self.child.try_wait().expect("a child").is_none(), "QEMU ended: {:?}", self.bare.args);
        banner(self.bare.address).unwrap_or(false) && self.rig.run(&["ssh", &self.bare.node, "--", "true"]).code == 0
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        command("ip", &["link", "del", &self.bare.tap]);
    }
}

/// sshd has said who it is.
fn banner(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(100))?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut said = [0; 4];
    stream.read_exact(&mut said)?;
    Ok(&said == b"SSH-")
}

fn big_plan_ms() -> f64 {
    let nowhere = std::env::temp_dir().join("ktcw-no-state").display().to_string();
    let words =
        ["plan", "-c", "big", "--state-dir", &nowhere, "--etcd", "7", "--workers", "50", "--accel", "kvm", "--format", "json"];
    crate::rig::program(&words).exits(0).took.as_secs_f64() * 1000.0
}

/// Resident memory of the five QEMU processes.
fn resident_gib() -> f64 {
    let mut kib = 0.0;
    let mut machines = 0;
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let args = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if !name.starts_with("qemu-system") || !args.contains("guest=bench-") {
            continue;
        }
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        kib += rss.unwrap_or(0.0);
        machines += 1;
    }
    assert_eq!(machines, 5, "five machines run");
    kib / f64::from(1 << 20)
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
