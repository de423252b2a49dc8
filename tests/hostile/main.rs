//! Broken and hostile text at every door: the parsers of `targets`, fed with real samples cut off at every byte, with bits turned
//! over, spliced and repeated, and with plain garbage. The same functions are what `make fuzz` runs.
//!
//! `KTCW_CORPUS=write cargo test --test hostile the_corpus` writes the samples into `fuzz/corpus`.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails where it finds a fault")]

mod targets;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[path = "../fixtures/sample_plan.rs"]
mod samples;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// The samples of a parser, as they lie in its corpus.
fn kept(target: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(corpus(target)).unwrap_or_else(|error| panic!("{target} has no corpus: {error}"));
    let all = entries.map(|entry| entry.expect("an entry").path());
    all.map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), std::fs::read(&path).expect("read")))
        .collect()
}

/// One way to break a text.
fn broken(whole: &[u8], how: u8, at: usize, other: usize, byte: u8) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let (at, other) = (at % (whole.len() + 1), other % (whole.len() + 1));
    let (from, to) = (at.min(other), at.max(other));
    match how % 7 {
        0 => bytes.truncate(at),
        1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
        2 if at < bytes.len() => bytes[at] = byte,
        3 => bytes.insert(at, byte),
        4 => drop(bytes.drain(from..to)),
        5 => {
            let twice = whole[from..to].to_vec();
            bytes.splice(at..at, twice);
        }
        _ => {
            let long = vec![byte; 1 + other];
            bytes.splice(at..at, long);
        }
    }
    bytes
}

/// Says what was fed when it was too much for a parser.
struct OnPanic(String);

#[expect(clippy::print_stdout, reason = "a test shows what it found")]
impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.0);
        }
    }
}

#[test]
fn every_parser_takes_whole_cut_and_broken_samples_without_a_panic() {
    for (name, parser) in targets::ALL {
        let samples = kept(name);
        assert!(!samples.is_empty(), "{name}");
        let mut fed = 0;
        for (file, whole) in &samples {
            let stride = whole.len() / 300 + 1;
            for length in (0..=whole.len()).filter(|at| at % stride == 0 || *at == whole.len()) {
                let _told = OnPanic(format!("{name} {file} cut at {length}"));
                parser(&whole[..length]);
                fed += 1;
            }
        }
        let all: Vec<Vec<u8>> = samples.into_values().collect();
        let breaks = (proptest::sample::select(all), any::<u8>(), any::<usize>(), any::<usize>(), any::<u8>());
        let mut runner = TestRunner::new(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() });
        let run = runner.run(&breaks, |(whole, how, at, other, byte)| {
            parser(&broken(&whole, how, at, other, byte));
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{name}: {error}"));
        let run = runner.run(&proptest::collection::vec(any::<u8>(), 0..600), |bytes| {
            parser(&bytes);
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("{name}: {fed} cuts, 600 broken");
    }
}

/// Every parser has a fuzz target of its name and the other way round, and a corpus that stays small.
#[test]
fn the_corpus_and_the_fuzz_targets_are_those_of_the_parsers() {
    if std::env::var_os("KTCW_CORPUS").is_some_and(|value| value == "write") {
        write_corpus();
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).expect("read");
    let named: Vec<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
    for name in &named {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml lacks {name}");
        let text = std::fs::read_to_string(dir.join(format!("fuzz_targets/{name}.rs"))).expect("a target");
        assert!(text.contains(&format!("\"{name}\"")), "fuzz_targets/{name}.rs");
        let bytes: usize = kept(name).values().map(Vec::len).sum();
        assert!(bytes > 0 && bytes < 300 << 10, "{name}: {bytes} bytes");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), named.len());
}

/// `make fuzz` builds with --locked: what the program depends on is in the targets' lock file too, in the same versions.
#[test]
fn the_lock_file_of_the_fuzz_targets_is_that_of_the_program() {
    let packages = |path: &str| -> BTreeMap<String, Vec<(String, toml::Value)>> {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("read");
        let lock: toml::Table = toml::from_str(&text).expect("TOML");
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for package in lock["package"].as_array().expect("packages") {
            let word = |key: &str| package[key].as_str().expect("text").to_owned();
            all.entry(word("name")).or_default().push((word("version"), package.clone()));
        }
        all
    };
    let (program, fuzz) = (packages("Cargo.lock"), packages("fuzz/Cargo.lock"));
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("read");
    let manifest: toml::Table = toml::from_str(&manifest).expect("TOML");
    let (_, own) = &fuzz["ktcw-vm"][0];
    let locked = own["dependencies"].as_array().expect("dependencies");
    for name in manifest["dependencies"].as_table().expect("dependencies").keys() {
        let known = locked.iter().filter_map(|entry| entry.as_str()).any(|entry| entry.split(' ').next() == Some(name));
        assert!(known, "{name} is not in fuzz/Cargo.lock: (cp Cargo.lock fuzz/ && cd fuzz && cargo metadata >/dev/null)");
        let versions = |of: &BTreeMap<String, Vec<(String, toml::Value)>>| -> Vec<String> {
            of[name].iter().map(|(version, _)| version.clone()).collect()
        };
        // Versions that only the program's tests want are in its own lock file alone.
        assert!(versions(&fuzz).iter().all(|version| versions(&program).contains(version)), "{name}: another version is fuzzed");
    }
}

/// What a cluster's directory keeps as JSON, without the sums: behind those nothing broken would be read.
fn put_state(put: &dyn Fn(&str, &str, &[u8]), spec: &ktcw_vm::spec::ClusterSpec, plan: &ktcw_vm::plan::Plan) {
    use ktcw_vm::host::{Host, fake::FakeHost};
    use ktcw_vm::lab::{Book, Open, Phase, catalogue};
    use ktcw_vm::snapshot::{Fits, Name, Record};
    use ktcw_vm::spec::NodeName;
    use ktcw_vm::verify::MemberSeen;
    let now = jiff::Timestamp::UNIX_EPOCH;
    let place = tempfile::tempdir().expect("a directory");
    let (dir, lock) = ktcw_vm::store::ClusterDir::create(&place.path().join("clusters"), spec, "corpus", now).expect("made");
    dir.save_plan(&lock, plan).expect("saved");
    let member = MemberSeen { id: "a1".into(), leader: "a1".into(), term: 3, revision: 50, hashed: 50, hash: 7, compacted: 10 };
    let fits = Fits::of(plan, &FakeHost::new().facts().expect("facts"));
    let members = BTreeMap::from([(NodeName::controller(0), member)]);
    let begun = Record::begun(Name::parse("one").expect("a name"), fits, members, now);
    let record = Record { parent: Some(Name::parse("root").expect("a name")), note: Some("before".into()), ..begun };
    dir.save_snapshot(&lock, "one", &record).expect("saved");
    let lab = catalogue::labs(None).expect("built in").into_iter().next().expect("one");
    let hit = vec![NodeName::controller(0)];
    let open = Open { lab, phase: Phase::Open, seed: 7, hit, begun: now, hints: 1, looks: 2, best: 3, solved: None };
    dir.save_labs(&lock, &Book { open: Some(open), done: BTreeMap::new() }).expect("saved");
    for (target, name, file) in [
        ("spec", "small", "cluster.json"),
        ("plan", "small", "plan.json"),
        ("snapshot", "one", "snapshots/one.json"),
        ("book", "open", "labs.json"),
    ] {
        let text = std::fs::read_to_string(dir.path().join(file)).expect(file);
        let (body, _) = text.split_once(",\n  \"sum\": \"").expect("sealed");
        put(target, name, format!("{body}\n}}\n").as_bytes());
    }
}

fn write_corpus() {
    use ktcw_vm::pki::{Keyring, Lifetimes};
    use ktcw_vm::plan::Accel;
    use ktcw_vm::spec::NodeName;
    use ktcw_vm::store::journal::Journal;
    let put = |target: &str, name: &str, text: &[u8]| {
        std::fs::create_dir_all(corpus(target)).expect("a directory");
        std::fs::write(corpus(target).join(name), text).expect("written");
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    put("config", "all", CONFIG.as_bytes());
    put("config", "small", b"etcd = 1\nworkers = 1\nkernel = \"/k\"\nkernel-args = \"a=\\\"<b>&'c\\\"\"\n");
    let plan = samples::plan("ktcw", 1, 1, Accel::Tcg);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("journal.jsonl");
    let (journal, _) = Journal::open(&path, uuid::Uuid::nil(), "up").expect("opened");
    journal.begin("define controller-0", Some(&NodeName::controller(0))).expect("written");
    journal.done("define controller-0", Some(&NodeName::controller(0))).expect("written");
    journal.failed("network", None, "libvirt said \"no\"\n").expect("written");
    journal.undo("pause", None, serde_json::json!({"resume": "controller-0"})).expect("written");
    let eventful = std::fs::read_to_string(&path).expect("read");
    put("journal", "eventful", eventful.as_bytes());
    let last = eventful.lines().next().expect("a line").replace("\"seq\":1,", &format!("\"seq\":{},", u64::MAX));
    put("journal", "last-number", format!("{last}\nno record\n").as_bytes());
    let drills = String::from_utf8(read("src/drill/catalogue.toml")).expect("text");
    for (i, drill) in drills.split("[[drill]]").skip(1).take(6).enumerate() {
        put("drill", &format!("drill-{i}"), drill.replace("[drill.", "[").as_bytes());
    }
    for name in ["nospace", "wrong-peer-url"] {
        put("lab", name, &read(&format!("labs/{name}.toml")));
    }
    put_state(&put, &plan.spec, &plan);
    put("report", "empty", br#"{"form":"x","judgement":{},"record":{}}"#);
    let certs = Keyring::ensure(
        &dir.path().join("pki"),
        &plan.certs,
        &plan.kubeconfigs,
        jiff::Timestamp::UNIX_EPOCH,
        Lifetimes::default(),
    );
    let keyring = certs.expect("keys").0;
    let ca = keyring.ca_pem(ktcw_vm::plan::Ca::Kubernetes).expect("there");
    put("certificate", "ca", ca.as_bytes());
    let leaf = keyring.identity(&plan.certs[0].id).expect("there");
    put("certificate", "leaf-and-ca", format!("{}\n%\n{ca}", leaf.cert).as_bytes());
    for name in ["domain_kvm", "network_nat", "pool", "volume_overlay"] {
        let snapshot =
            String::from_utf8(read(&format!("src/host/xml/snapshots/ktcw_vm__host__xml__tests__{name}.snap"))).expect("text");
        put("libvirt_xml", name, snapshot.splitn(3, "---\n").nth(2).expect("a snapshot").as_bytes());
    }
    put("kubeconfig", "two", KUBECONFIG.as_bytes());
    let framed = |dir: &str| -> Vec<u8> {
        let mut text = Vec::new();
        for entry in std::fs::read_dir(root.join(dir)).expect("fixtures").map(|entry| entry.expect("an entry")) {
            let name = entry.file_name().to_string_lossy().into_owned();
            text.extend(format!("@@t begin {name}\n").bytes());
            text.extend(std::fs::read(entry.path()).expect("read"));
            text.extend(format!("\n@@t end {name} 0\n").bytes());
        }
        text.extend(b"@@t done\n");
        text
    };
    put("probe", "controller", &framed("tests/fixtures/verify/ha3/controller-0"));
    put("probe", "worker", &framed("tests/fixtures/verify/ha3/worker-0"));
    for (i, said) in
        ["1795386804.700000000\n", "-9223372036854775808.000000001", "170141183460469231731687303715884105727.000000000"]
            .iter()
            .enumerate()
    {
        put("clock", &i.to_string(), said.as_bytes());
    }
    for (i, name) in ["lab-2", "controller-0", "worker-49", "../x", "$(x)"].iter().enumerate() {
        put("names", &i.to_string(), name.as_bytes());
    }
    // A key of nobody's, as ssh-keygen writes one; the private half is the fuzzer's to invent.
    put("ssh_key", "public", b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4p7kJm1l0v2Q4yH3d8bqQm1oTn8o8y3eT6bGm2p1aa nobody\n");
    put("ssh_key", "private", b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZWQy\n-----END OPENSSH PRIVATE KEY-----\n");
}

const CONFIG: &str = r#"# All there is
cluster = "lab-2"
etcd = 5
control-planes = 3
workers = 4
subnet = "192.168.9.0/24"
isolated = true
pod-cidr = "10.240.0.0/16"
service-cidr = "10.97.0.0/16"
controller-mem = 2048
worker-mem = 1024
cpus = 2
etcd-disk = 4
root-disk = 20
accel = "tcg"
kernel = "/boot/vmlinux"
initrd = "/boot/initrd"
kernel-args = "nokaslr dyndbg=\"file drivers/* +p\""
"#;

const KUBECONFIG: &str = "apiVersion: v1
kind: Config
current-context: prod
clusters:
- name: prod
  cluster: {server: https://192.0.2.1:6443, certificate-authority-data: QUJD}
- name: ktcw-ktcw
  cluster:
    server: https://192.0.2.2:6443
users:
- name: prod
  user: {token: c2VjcmV0}
contexts:
- name: prod
  context: {cluster: prod, user: prod}
preferences: {colors: yes}
";
