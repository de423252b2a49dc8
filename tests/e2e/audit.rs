//! Where the secrets of a real cluster are, and where they are not: keys, kubeconfigs' keys, the key of Secrets at rest, tokens; in
//! files, process arguments, definitions, consoles, logs and reports, here and on the nodes.
//! A search that finds nothing proves nothing by itself: each is given something to find first.

use crate::rig::{NODES, Rig, artefacts, command, step};
use ktcw_vm::guest::quote;
use ktcw_vm::secret::Secret;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[path = "../../src/secret/shapes.rs"]
mod shapes;

/// What no text may say besides: whatever frames a key, a signed token.
const SHAPED: &str = "PRIVATE KEY-----|client-key-data: [A-Za-z0-9+/]{24}|eyJ[A-Za-z0-9_-]{16,}\\.eyJ[A-Za-z0-9_-]{16,}\\.";

/// A word that nothing else says.
fn planted() -> String {
    format!("ktcw-audit-{}", uuid::Uuid::new_v4().simple())
}

pub fn secrets_are_where_they_belong(rig: &Rig) {
    step("no CA key on any node, every key 0600, none in plan, journal or process arguments");
    let (authorities, others) = (words(&rig.dir().join("pki/ca")), words(&rig.dir()));
    assert!(authorities.len() > 100 && others.len() > authorities.len(), "{} and {}", authorities.len(), others.len());
    for node in NODES {
        // Keys as PEM, inside kubeconfigs, and the key of Secrets at rest.
        let secret = "grep -rlsE 'PRIVATE KEY|client-key-data|aescbc|secretbox|aesgcm' /etc/etcd /etc/kubernetes /etc/ssh";
        let modes = rig.on(node, &format!("{secret} | xargs -r stat -c '%a %U %n'"));
        assert!(modes.lines().count() >= 2, "{node} has keys: {modes}");
        let loose: Vec<&str> = modes.lines().filter(|line| !line.starts_with("600 root ")).collect();
        assert!(loose.is_empty(), "{node}: {loose:?}");
        let kept = rig.on(node, "cat /etc/etcd/pki/* /etc/kubernetes/pki/* /etc/kubernetes/*.kubeconfig /var/lib/cloud/instance/user-data.txt /run/cloud-init/*.json 2>/dev/null; true");
        assert!(others.iter().any(|word| kept.contains(word)), "{node} has keys of its own, and they are found");
        assert!(!authorities.iter().any(|word| kept.contains(word)), "{node} has a CA's key");
        let theirs = words_of_others(&rig.dir(), node);
        assert!(theirs.len() > 100, "{node}: {} words", theirs.len());
        assert!(!theirs.iter().any(|word| kept.contains(word)), "{node} has another node's key");
        no_key_in_arguments(node, &rig.on(node, ARGUMENTS), "/usr/lib/systemd/systemd", &others);
    }
    no_key_in_arguments("this computer", &command("bash", &["-c", ARGUMENTS]).exits(0).out, "qemu-system", &others);
    for name in ["plan.json", "journal.jsonl", "cluster.json"] {
        let text = std::fs::read_to_string(rig.dir().join(name)).expect(name);
        assert!(!text.contains("PRIVATE KEY"), "{name}");
        assert!(!others.iter().any(|word| text.contains(word)), "{name} holds a key");
    }
}

/// Does it, and returns besides the arguments of every process that was met on this computer meanwhile, five times a second.
pub fn arguments_while<T>(work: impl FnOnce() -> T) -> (T, BTreeSet<String>) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut met = BTreeSet::new();
            while !over.load(Ordering::SeqCst) {
                met.extend(arguments_now());
                std::thread::sleep(Duration::from_millis(200));
            }
            met
        });
        let done = work();
        over.store(true, Ordering::SeqCst);
        (done, watching.join().expect("watched"))
    })
}

fn arguments_now() -> Vec<String> {
    let files = entries(Path::new("/proc")).into_iter().map(|of| of.join("cmdline"));
    let read = files.filter_map(|file| std::fs::read(file).ok()).filter(|bytes| !bytes.is_empty());
    read.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " ")).collect()
}

/// Of all that was started on this computer while the cluster was made.
pub fn no_key_was_an_argument(rig: &Rig, arguments: &BTreeSet<String>) {
    let all = arguments.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    for seen in [format!("up -c {}", rig.cluster), "qemu-system".to_owned()] {
        no_key_in_arguments("this computer during up", &all, &seen, &words(&rig.dir()));
    }
    assert!(!all.contains("PRIVATE KEY"), "a key is among the arguments of a process");
}

const ARGUMENTS: &str = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '";

fn no_key_in_arguments(whose: &str, arguments: &str, seen: &str, words: &BTreeSet<String>) {
    assert!(arguments.contains(seen), "{whose}: the processes are seen");
    assert!(!words.iter().any(|word| arguments.contains(word)), "{whose}: a key is among the arguments of a process");
}

/// After all that was done to the cluster: what was written of it here and on its nodes, by us, libvirt, QEMU and the guests.
pub fn nothing_that_was_written_tells_a_secret(rig: &Rig) {
    step(
        "no key or token in journal, reports, consoles, definitions and logs, here or on a node; every file here is the owner's alone",
    );
    let (words, planted) = (words(&rig.dir()), planted());
    step(&format!("{} words of {} secrets are looked for", words.len(), secrets(&rig.dir()).len()));
    let wanted = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(wanted.path(), words.iter().chain([&planted]).map(|word| format!("{word}\n")).collect::<String>())
        .expect("written");
    in_the_state_directory(rig, wanted.path());
    in_logs_here(wanted.path(), &planted);
    in_a_support_bundle(rig, wanted.path());
    for node in NODES {
        in_logs_of(rig, node, &words, &planted);
    }
}

/// Every file that holds a secret is found, it is where secrets belong, and nobody else may read it.
fn in_the_state_directory(rig: &Rig, wanted: &Path) {
    let dir = rig.dir();
    let holding = |how: &str| -> BTreeSet<PathBuf> {
        command("bash", &["-c", &format!("LC_ALL=C grep -rla {how} {}", dir.display())]).out.lines().map(PathBuf::from).collect()
    };
    let found: BTreeSet<PathBuf> =
        &holding(&format!("-F -f {}", wanted.display())) | &holding(&format!("-E -e {}", quote(SHAPED)));
    let kept: BTreeSet<PathBuf> = secrets(&dir).into_iter().map(|(path, _)| path).collect();
    assert!(kept.len() > 23 && kept.is_subset(&found), "not found: {:?}", kept.difference(&found));
    let elsewhere: Vec<&PathBuf> = found.difference(&kept).collect();
    assert!(elsewhere.is_empty(), "secrets are in {elsewhere:?}");
    let (mut todo, mut read) = (vec![dir], 0);
    while let Some(dir) = todo.pop() {
        assert_eq!(mode(&dir), 0o700, "{}", dir.display());
        for path in entries(&dir) {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let mode = mode(&path);
            assert!(mode == 0o600 || (mode == 0o644 && !found.contains(&path)), "{}: mode {mode:o}", path.display());
            read += 1;
        }
    }
    assert!(read > 60, "{read} files");
}

/// What a user would hand to a stranger.
fn in_a_support_bundle(rig: &Rig, wanted: &Path) {
    let place = tempfile::tempdir().expect("a directory");
    let (packed, open) = (place.path().join("bundle.tar.gz"), place.path().join("open"));
    // As a drill that was killed leaves it: all that the cluster keeps, and its pages are no text.
    let left = rig.dir().join("snapshot.db.partial");
    std::fs::write(&left, b"ktcw-audit-\x00left by a drill").expect("written");
    rig.run(&["support", "bundle", &packed.to_string_lossy()]).exits(0);
    std::fs::remove_file(left).expect("removed");
    std::fs::create_dir(&open).expect("a directory");
    command("tar", &["-xzf", &packed.to_string_lossy(), "-C", &open.to_string_lossy()]).exits(0);
    let grep = |how: &str| command("bash", &["-c", &format!("LC_ALL=C grep -rla {how} {}", open.display())]);
    assert!(grep("-e ha3").exits(0).out.lines().count() > 3, "plan, journal and definitions are in it");
    for how in [format!("-F -f {}", wanted.display()), format!("-E -e {}", quote(SHAPED)), "-e ktcw-audit-".to_owned()] {
        let found = grep(&how);
        assert_eq!((found.code, found.out.as_str()), (1, ""), "{how}: a secret is in the bundle");
    }
}

/// Logs of libvirt and QEMU, consoles, definitions, what systemd and this suite have kept; no disks: keys are on those.
fn in_logs_here(wanted: &Path, planted: &str) {
    let places = format!(
        "/var/log/libvirt /etc/libvirt /run/libvirt /var/lib/libvirt/qemu /var/lib/libvirt/images {}",
        artefacts().display()
    );
    let looked = format!(
        "find {places} -type f \\( -size -64M -name '*.log' -o -name '*.xml' -o -name '*.status' -o -name '*.txt' -o -name '*.json' \\) 2>/dev/null"
    );
    let files = command("bash", &["-c", &looked]).out;
    assert!(
        files.lines().filter(|file| file.contains("ha3-controller-0")).count() >= 2,
        "console and definition are among\n{files}"
    );
    // What the search must find, in a text with another secret's shape.
    let control = artefacts().join("audit-control.txt");
    std::fs::write(&control, format!("x {planted} y\nclient-key-data: {}\n", "QUJD".repeat(6))).expect("written");
    for how in [format!("-F -f {}", wanted.display()), format!("-E -e {}", quote(SHAPED))] {
        let found = command("bash", &["-c", &format!("export LC_ALL=C; {looked} | xargs -r grep -sla {how}")]);
        // 123: a group of files had none; nothing else went wrong.
        assert!(found.code == 0 || found.code == 123, "{}: {}", found.code, found.err);
        assert_eq!(found.out.trim(), control.display().to_string(), "a key or a token is in");
    }
    std::fs::remove_file(control).expect("removed");
}

/// The journal and the logs of a node. The words go there in command lines that nobody keeps, as many at a time as one may hold.
fn in_logs_of(rig: &Rig, node: &str, words: &BTreeSet<String>, planted: &str) {
    let logs = "{ journalctl -b -o cat; cat /var/log/*.log /run/cloud-init/*.log; } 2>/dev/null";
    rig.on(node, &format!("logger -t ktcw-audit {planted}; journalctl --sync"));
    // Whole lines of keys and their encodings; the longest shapes hold those of the others.
    let short: Vec<&str> = words.iter().map(String::as_str).filter(|word| word.len() <= 44).collect();
    assert!(short.len() > 200, "{}", short.len());
    for some in short.chunks(1000) {
        let pattern = quote(&some.join("\n"));
        let told = rig.on(
            node,
            &format!("echo $({logs} | wc -l) $({logs} | grep -acF -e {planted}) $({logs} | grep -acF -e {pattern}) $({logs} | grep -acE -e {})", quote(SHAPED)),
        );
        let numbers: Vec<u64> = told.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        let [lines, control, keys, shaped] = numbers.as_slice() else { panic!("{node}: {told}") };
        assert!(*lines > 300 && *control >= 1, "{node}: {told}: the search finds what was put there");
        assert_eq!((keys, shaped), (&0, &0), "{node}: {told}: lines, control, lines with a key, lines shaped like one");
    }
}

/// All that the secrets below a directory may be met as.
fn words(dir: &Path) -> BTreeSet<String> {
    secrets(dir).iter().flat_map(|(_, secret)| shapes::words(secret)).collect()
}

/// The same of what is another node's by its file's name.
fn words_of_others(dir: &Path, node: &str) -> BTreeSet<String> {
    let others = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        NODES.iter().any(|other| *other != node && name.contains(other))
    };
    secrets(dir).iter().filter(|(path, _)| others(path)).flat_map(|(_, secret)| shapes::words(secret)).collect()
}

/// Keys, kubeconfigs and the configuration with the key of Secrets at rest.
fn secrets(dir: &Path) -> Vec<(PathBuf, Secret)> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for path in entries(&dir) {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let in_its_place = path.components().any(|part| ["pki", "ssh"].iter().any(|place| part.as_os_str() == *place));
            let text = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).expect("read");
            if in_its_place && ["PRIVATE KEY", "client-key-data", "secretbox"].iter().any(|word| text.contains(word)) {
                found.push((path, Secret::new(text)));
            }
        }
    }
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}
