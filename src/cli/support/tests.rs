//! A real state directory with real keys, a host and nodes that say every one of them aloud in every encoding, and a bundle in
//! which none is left.

use super::*;
use crate::guest::fake::FakeGuests;
use crate::host::fake::FakeHost;
use crate::plan::{Accel, samples};
use crate::secret::Secret;
use crate::secret::shapes::{cores, shapes};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use std::io::Read as _;

fn kept(parent: &Path) -> (ClusterDir, Plan) {
    let plan = samples::plan("ktcw", 1, 1, Accel::Tcg);
    let dir = crate::cli::kept::kept(parent, &plan);
    let lock = dir.lock("up").expect("free");
    let (journal, _) = dir.journal(&lock, uuid::Uuid::nil(), "up").expect("opened");
    journal.begin("define controller-0", None).expect("written");
    (dir, plan)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Everything a careless program might log of a secret.
fn said_aloud(secrets: &[Secret]) -> String {
    let mut text = String::new();
    for secret in secrets {
        let secret = secret.expose();
        let body: String = secret.lines().filter(|line| !line.contains("-----")).collect();
        let _ = writeln!(text, "plain {secret}\nbody {body}\njson {}", serde_json::json!({ "data": secret }));
        let _ = writeln!(text, "whole {}\nin a text {}", STANDARD.encode(secret), STANDARD.encode(format!("a: {secret}")));
        for line in secret.lines() {
            let _ = writeln!(text, "Nov 24 22:00:00 controller-0 etcd[1]: {line}");
        }
        if let Ok(der) = STANDARD.decode(&body) {
            let hex: String = der.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(text, "hex {hex}\nHEX {}\nurl {}", hex.to_uppercase(), URL_SAFE_NO_PAD.encode(&der));
            let _ = writeln!(text, "raw {}", String::from_utf8_lossy(&der));
        }
    }
    text
}

fn unpacked(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let mut files = BTreeMap::new();
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        assert_eq!(entry.header().mode().expect("a mode"), 0o600);
        let path = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("whole");
        files.insert(path, content);
    }
    files
}

#[tokio::test]
async fn no_secret_of_the_directory_is_in_a_bundle_in_any_encoding() {
    let parent = tempfile::tempdir().expect("a directory");
    let (dir, plan) = kept(parent.path());
    let secrets = ClusterDir::secrets_in(dir.path()).expect("read");
    assert!(secrets.len() > 20, "{}", secrets.len());
    // A mode that was changed by mistake makes no key a public one, and no certificate is a secret.
    for (sub, mode) in [("pki", 0o644), ("pki", 0o600), ("ssh", 0o644)] {
        for path in std::fs::read_dir(dir.path().join(sub)).expect("listed").map(|entry| entry.expect("an entry").path()) {
            if path.is_file() {
                std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("changed");
            }
        }
        assert_eq!(ClusterDir::secrets_in(dir.path()).expect("read"), secrets, "{sub} {mode:o}");
    }
    assert!(!secrets.iter().any(|secret| secret.expose().starts_with("-----BEGIN CERTIFICATE-----")));
    let aloud = said_aloud(&secrets);
    dir.save_report("drill-1.json", aloud.as_bytes()).expect("saved");
    let (mark, host) = (session::mark(&dir), Arc::new(FakeHost::new()));
    host.ensure_pools(&plan.storage, &mark).expect("made");
    let node = &plan.nodes[0];
    host.ensure_domain(&node.domain, &plan.storage, &node.name, &mark).expect("made");
    let guests = FakeGuests::new().on("journalctl", aloud.as_str());

    let mut entries = of_directory(dir.path());
    entries.extend(of_host(&plan, &mark, Ok(host)).await);
    entries.extend(of_nodes(&plan, &guests).await);
    entries.insert("versions.txt".to_owned(), versions());
    let raw: Vec<u8> = entries.values().flat_map(|text| text.bytes()).collect();
    let packed = pack("b", &entries, &Redactor::new(&secrets), jiff::Timestamp::now()).expect("packed");
    let files = unpacked(&packed);
    for expected in [
        "b/cluster/cluster.json",
        "b/cluster/plan.json",
        "b/cluster/journal.jsonl",
        "b/reports/drill-1.json",
        "b/left-out.txt",
        "b/versions.txt",
        "b/libvirt/facts.txt",
        "b/libvirt/ours.txt",
        "b/libvirt/domain-ktcw-controller-0.xml",
        "b/libvirt/console-controller-0.txt",
        "b/nodes/worker-0.txt",
    ] {
        assert!(files.contains_key(expected), "{expected} of {:?}", files.keys());
    }
    let all: Vec<u8> = files.into_values().flatten().collect();
    let (mut looked, mut would) = (0, 0);
    for secret in &secrets {
        let cores = cores(secret);
        assert!(!cores.is_empty(), "what is secret about it: {} bytes", secret.len());
        for shape in cores.iter().flat_map(|core| shapes(core)) {
            looked += 1;
            would += usize::from(contains(&raw, &shape));
            assert!(!contains(&all, &shape), "in the bundle: {}", String::from_utf8_lossy(&shape));
        }
    }
    println!(
        "{} secrets in {looked} shapes: {would} were said aloud, none is in the bundle of {} bytes",
        secrets.len(),
        all.len()
    );
    assert!(would > 3 * secrets.len(), "{would}: the test says them aloud");
    // What helps is still there.
    let text = String::from_utf8_lossy(&all).into_owned();
    for word in ["define controller-0", "192.168.77.0/24", "etcd[1]: <redacted>", "fake:///system", plan.nodes[0].mac.as_str()] {
        assert!(text.contains(word), "{word}");
    }
}

/// A drill keeps etcd's store beside the plan, whole or on its way: every Secret of the cluster, and none that the redactor knows.
#[test]
fn a_copy_of_etcds_store_is_never_in_a_bundle() {
    const MARKER: &str = "a-secret-of-somebodys-pod";
    let parent = tempfile::tempdir().expect("a directory");
    let (dir, _) = kept(parent.path());
    dir.save_tour(&1).expect("saved");
    let store = crate::drill::run::SNAPSHOT;
    let names = [store.to_owned(), format!("{store}.partial"), "etcd.bak".to_owned(), format!("reports/{store}")];
    for name in &names {
        std::fs::write(dir.path().join(name), MARKER).expect("written");
    }
    std::os::unix::fs::symlink(dir.path().join(store), dir.path().join("labs.json")).expect("linked");
    let entries = of_directory(dir.path());
    let secrets = ClusterDir::secrets_in(dir.path()).expect("read");
    let packed = pack("b", &entries, &Redactor::new(&secrets), jiff::Timestamp::now()).expect("packed");
    let files = unpacked(&packed);
    assert!(files.contains_key("b/cluster/tour.json") && files.contains_key("b/cluster/lock"), "{:?}", files.keys());
    for (path, content) in &files {
        assert!(!contains(content, MARKER.as_bytes()) && !path.contains("snapshot"), "{path}");
    }
    let left_out = String::from_utf8_lossy(&files["b/left-out.txt"]).into_owned();
    for name in [store, "etcd.bak"] {
        assert!(left_out.contains(&format!("cluster/{name}: {} bytes\n", MARKER.len())), "{left_out}");
    }
}

/// What the VM suite looks for with `grep`: it finds every secret where it is kept, line by line, and nothing that is public.
#[test]
fn the_words_of_a_secret_are_in_its_file_and_in_no_public_half() {
    let parent = tempfile::tempdir().expect("a directory");
    let (dir, _) = kept(parent.path());
    let secrets = ClusterDir::secrets_in(dir.path()).expect("read");
    let words: Vec<Vec<String>> = secrets.iter().map(crate::secret::shapes::words).collect();
    let all: Vec<&String> = words.iter().flatten().collect();
    let in_a_line = |secret: &Secret| secret.expose().lines().any(|line| all.iter().any(|word| line.contains(word.as_str())));
    for (secret, words) in secrets.iter().zip(&words) {
        assert!(words.len() > 8, "{}", words.len());
        assert!(in_a_line(secret), "a secret of {} bytes", secret.len());
    }
    let mut public = 0;
    for sub in ["pki", "pki/ca", "ssh"] {
        for path in std::fs::read_dir(dir.path().join(sub)).expect("listed").map(|entry| entry.expect("an entry").path()) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            if secrets.iter().all(|secret| secret.expose() != text) {
                let body: String = text.lines().collect();
                assert!(
                    !all.iter().any(|word| text.contains(word.as_str()) || body.contains(word.as_str())),
                    "{}",
                    path.display()
                );
                public += 1;
            }
        }
    }
    assert!(public > 10, "{public} certificates and public keys");
}

#[tokio::test]
async fn what_does_not_answer_is_written_down() {
    let parent = tempfile::tempdir().expect("a directory");
    let (dir, plan) = kept(parent.path());
    let mark = session::mark(&dir);
    let host = Arc::new(FakeHost::new());
    host.set_unreachable(true);
    let entries = of_host(&plan, &mark, Ok(host)).await;
    assert!(entries["libvirt/facts.txt"].contains("cannot be reached"), "{entries:?}");
    assert!(of_host(&plan, &mark, Err("no libvirt".to_owned())).await["libvirt/not-reached.txt"].contains("no libvirt"));
    let guests = plan.nodes.iter().fold(FakeGuests::new(), |guests, node| {
        guests.on_node(&node.name, "", crate::guest::fake::Reply::unreachable(&node.name))
    });
    assert!(of_nodes(&plan, &guests).await["nodes/worker-0.txt"].contains("not had: worker-0: no SSH connection"));
    // A directory that cannot be opened is taken as it is.
    std::fs::write(dir.path().join("plan.json"), "{ damaged").expect("written");
    assert_eq!(of_directory(dir.path())["cluster/plan.json"], "{ damaged");
}

#[test]
fn a_bundle_is_the_users_alone_and_writes_over_nothing() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("b.tar.gz");
    let room = room_for(&path).expect("made");
    assert_eq!(room.as_file().metadata().expect("there").mode() & 0o777, 0o600);
    assert!(!path.exists(), "nothing of that name before all of it is written");
    room.persist_noclobber(&path).expect("kept");
    let error = room_for(&path).expect_err("there already");
    assert!(error.code == exit::USAGE && error.hint.is_some_and(|hint| hint.contains("another file")));
}
