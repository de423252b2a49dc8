use super::*;
use crate::plan::{Accel, plan, samples};
use crate::secret::Secret;
use crate::spec::{RawSpec, validate};
use crate::store::crash;
use crate::store::passing::CREATION_LIMIT;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

fn spec(name: &str) -> ClusterSpec {
    validate(&RawSpec { cluster: Some(name.to_owned()), ..RawSpec::default() }).expect("valid")
}
fn name(name: &str) -> ClusterName {
    ClusterName::parse(name).expect("valid")
}
fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}
/// A new one that nobody has the lock of.
fn made(parent: &Path, spec: &ClusterSpec) -> ClusterDir {
    ClusterDir::create(parent, spec, "up", now()).expect("created").0
}
fn parent() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}
fn some_plan(spec: &ClusterSpec) -> Plan {
    plan(spec, &samples::resolved(Accel::Tcg))
}
/// Everything below, with its bytes, but for the lock's own text.
fn tree(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(tree(&path));
        } else {
            // The word in a lock is its holder's, and goes with it.
            let text = if path.ends_with("lock") { Vec::new() } else { fs::read(&path).expect("read") };
            found.push((path, text));
        }
    }
    found.sort();
    found
}

#[test]
fn created_opened_listed_changed_and_removed() {
    let parent = parent();
    let state = parent.path().join("state");
    assert!(list(&state).expect("none yet").is_empty());
    assert!(matches!(ClusterDir::open(&state, &name("ktcw")), Err(StoreError::NoCluster { .. })));
    let mut dir = made(&state, &spec("ktcw"));
    assert_eq!(ClusterDir::open(&state, &name("ktcw")).expect("opened"), dir);
    assert!(matches!(ClusterDir::create(&state, &spec("ktcw"), "up", now()), Err(StoreError::Exists { .. })));
    made(&state, &spec("another"));
    let names: Vec<_> = list(&state).expect("listed").into_iter().map(|l| (l.name.to_string(), l.opened.is_ok())).collect();
    assert_eq!(names, [("another".to_owned(), true), ("ktcw".to_owned(), true)]);

    let lock = dir.lock("ktcw-vm up").expect("free");
    assert_eq!(dir.load_plan().expect("none"), None);
    let plan = some_plan(dir.spec());
    dir.save_plan(&lock, &plan).expect("saved");
    assert_eq!(dir.load_plan().expect("there"), Some(plan));
    let five = ClusterSpec { workers: 5, ..spec("ktcw") };
    dir.save_spec(&lock, &five).expect("saved");
    assert_eq!(ClusterDir::open(&state, &name("ktcw")).expect("opened").spec().workers, 5);
    assert!(dir.save_spec(&lock, &spec("another")).is_err(), "the name stays");
    let report = dir.save_report("drill-1.html", b"<p>").expect("saved");
    assert_eq!(fs::read(report).expect("read"), b"<p>");
    for bad in ["../x", "a/b", "", ".hidden"] {
        assert!(dir.save_report(bad, b"").is_err(), "{bad}");
    }
    for (path, _) in tree(&state) {
        let mode = fs::metadata(&path).expect("there").mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
    dir.remove(lock).expect("removed");
    let left: Vec<_> = fs::read_dir(&state).expect("listed").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left, ["another"]);
}

#[test]
fn the_lock_of_another_cluster_opens_nothing() {
    let parent = parent();
    let a = made(parent.path(), &spec("a"));
    let b = made(parent.path(), &spec("b"));
    let lock = a.lock("up").expect("free");
    assert!(b.save_plan(&lock, &some_plan(b.spec())).is_err());
    assert!(b.journal(&lock, Uuid::nil(), "up").is_err());
    let before = tree(parent.path());
    assert!(b.remove(lock).is_err());
    assert_eq!(tree(parent.path()), before);
    drop(a);
}

#[test]
fn a_cluster_removed_and_made_again_is_another_one() {
    let parent = parent();
    let old = made(parent.path(), &spec("ktcw"));
    let stale = old.clone();
    let lock = old.lock("down").expect("free");
    old.remove(lock).expect("removed");
    assert!(matches!(stale.lock("up"), Err(StoreError::Vanished { .. })));
    let new = made(parent.path(), &spec("ktcw"));
    assert_ne!(new.instance(), stale.instance());
    assert!(matches!(stale.lock("up"), Err(StoreError::Vanished { .. })));
    assert!(new.lock("up").is_ok());
}

/// Two who have opened it at the same time: what the second was about to do, it was about to do with what the first one found.
#[test]
fn what_was_read_before_another_one_changed_it_gets_no_lock() {
    let parent = parent();
    made(parent.path(), &spec("ktcw"));
    let open = || ClusterDir::open(parent.path(), &name("ktcw")).expect("opened");
    let (mut first, second) = (open(), open());
    let lock = first.lock("node add").expect("free");
    assert!(matches!(second.lock("up"), Err(StoreError::Busy { .. })));
    assert!(matches!(ClusterDir::open_locked(parent.path(), &name("ktcw"), "up"), Err(StoreError::Busy { .. })));
    first.save_spec(&lock, &ClusterSpec { workers: 5, ..spec("ktcw") }).expect("saved");
    drop(lock);
    let error = second.lock("up").expect_err("five workers by now");
    assert!(matches!(error, StoreError::Changed { .. }) && error.hint().expect("a hint").contains("again"), "{error}");
    drop(first.lock("up").expect("what it wrote itself is what is there, and a refusal holds nothing"));

    let second = open();
    let lock = first.lock("up").expect("free");
    first.save_libvirt(&lock, "qemu:///system").expect("saved");
    drop(lock);
    assert!(matches!(second.lock("up"), Err(StoreError::Changed { .. })), "its machines are known by now");
    let (third, lock) = ClusterDir::open_locked(parent.path(), &name("ktcw"), "down").expect("nothing was decided");
    assert_eq!((third.spec().workers, third.libvirt(), lock.dir()), (5, Some("qemu:///system"), third.path()));
    assert!(matches!(ClusterDir::open_locked(parent.path(), &name("none"), "down"), Err(StoreError::NoCluster { .. })));
}

#[test]
fn loose_linked_foreign_and_newer_are_refused_each_by_its_name() {
    let parent = parent();
    let dir = made(parent.path(), &spec("ktcw"));
    let about = dir.path().join(ABOUT);
    // As a person would edit it.
    let text = fs::read_to_string(&about).expect("read").split(",\n  \"sum\"").next().expect("text").to_owned() + "\n}\n";
    let open = || ClusterDir::open(parent.path(), &name("ktcw"));
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");

    chmod(dir.path(), 0o750);
    assert!(open().expect_err("loose").hint().expect("hint").contains("chmod 0700"));
    chmod(dir.path(), 0o700);
    chmod(&about, 0o644);
    assert!(open().expect_err("loose").hint().expect("hint").contains("chmod 0600"));
    chmod(&about, 0o600);

    for (content, says) in [
        (text.replacen("\"format\": 1", "\"format\": 9", 1), "newer version of this program (format 9"),
        (text.replace("\"ktcw\"", "\"other\""), "describes cluster other"),
        (text.replace("\"ktcw\"", "\"../x\""), "damaged"),
        (text.replace("\"etcd\": 3", "\"etcd\": 8"), "spec: etcd: 8 members"),
        (text.replace("\"etcd\": 3", "\"etcd\": 0"), "spec: etcd: 0 members"),
        (text.replace("\"workers\": 2", "\"workers\": 255"), "spec: workers: 255"),
        (text[..text.len() / 2].to_owned(), "damaged"),
        (String::new(), "damaged"),
        ("[]".to_owned(), "damaged"),
    ] {
        files::write_atomic(&about, content.as_bytes(), SECRET).expect("written");
        let error = open().expect_err(says);
        assert!(error.to_string().contains(says) && error.hint().is_some(), "{error}");
        let listed = list(parent.path()).expect("listing goes on");
        assert!(listed.len() == 1 && listed[0].opened.is_err());
    }
    fs::remove_file(&about).expect("removed");
    assert!(matches!(open(), Err(StoreError::NotOurs { .. })));
    assert!(
        matches!(ClusterDir::create(parent.path(), &spec("ktcw"), "up", now()), Err(StoreError::NotOurs { .. })),
        "not ours to fill"
    );
    assert!(fs::read_dir(parent.path()).expect("listed").count() == 1, "and nothing is left of the attempt");

    symlink(dir.path(), parent.path().join("linked")).expect("link");
    assert!(ClusterDir::open(parent.path(), &name("linked")).expect_err("a link").to_string().contains("symbolic link"));
    assert!(matches!(ClusterDir::create(parent.path(), &spec("linked"), "up", now()), Err(StoreError::NotOurs { .. })));

    chmod(parent.path(), 0o777);
    assert!(ClusterDir::create(parent.path(), &spec("new"), "up", now()).is_err(), "others could swap the directory");
    chmod(parent.path(), 0o1777);
    assert!(ClusterDir::create(parent.path(), &spec("new"), "up", now()).is_ok(), "sticky, like /tmp");
}

/// A link inside is removed as a link; what it points to stays. Another owner's file stops the removal before it begins.
#[test]
fn removal_stays_inside_and_stops_at_what_is_not_ours() {
    let parent = parent();
    let outside = parent.path().join("outside");
    fs::create_dir(&outside).expect("dir");
    fs::write(outside.join("precious"), "x").expect("written");
    let dir = made(parent.path(), &spec("ktcw"));
    symlink(&outside, dir.reports().join("link")).expect("link");
    if nix::unistd::geteuid().is_root() {
        let foreign = dir.reports().join("foreign");
        fs::write(&foreign, "x").expect("written");
        std::os::unix::fs::chown(&foreign, Some(12345), None).expect("chown");
        let lock = dir.lock("down").expect("free");
        let before = tree(parent.path());
        let error = dir.clone().remove(lock).expect_err("somebody else's");
        assert!(error.to_string().contains("12345"), "{error}");
        assert_eq!(tree(parent.path()), before, "nothing was removed");
        fs::remove_file(&foreign).expect("removed");
    }
    let lock = dir.lock("down").expect("free");
    dir.remove(lock).expect("removed");
    assert!(outside.join("precious").exists() && !parent.path().join("ktcw").exists());
}

#[test]
fn two_creators_at_once_make_one_cluster() {
    for _ in 0..20 {
        let parent = parent();
        let made: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| match ClusterDir::create(parent.path(), &spec("ktcw"), "up", now()) {
                        Ok(_) => 1,
                        Err(StoreError::Exists { .. }) => 0,
                        Err(other) => panic!("{other}"),
                    })
                })
                .collect();
            tries.into_iter().map(|t| t.join().expect("no panic")).sum()
        });
        assert_eq!(made, 1);
        assert_eq!(fs::read_dir(parent.path()).expect("listed").count(), 1);
    }
}

/// Somebody tries its lock again and again: from nobody there to somebody has it, with nothing in between.
#[test]
fn a_new_cluster_is_locked_from_the_first_moment_that_it_can_be_seen() {
    let parent = parent();
    for round in 0..300 {
        let spec = spec(&format!("c{round}"));
        let path = parent.path().join(spec.name.as_str());
        let begin = std::time::Instant::now();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                loop {
                    match lock::take(&path, "another", now()) {
                        Err(StoreError::Vanished { .. }) if begin.elapsed().as_secs() < 60 => {}
                        other => return other.map(drop),
                    }
                }
            });
            let _held = ClusterDir::create(parent.path(), &spec, "ktcw-vm up", now()).expect("created");
            let refused = other.join().expect("no panic").expect_err("it has the lock of a cluster that is being made");
            let named = |holder: &lock::Holder| holder.command == "ktcw-vm up";
            assert!(matches!(&refused, StoreError::Busy { holder: Some(holder), .. } if named(holder)), "{refused}");
        });
    }
}

fn fake_key(comment: &str) -> Result<SshKey, String> {
    let nonce = Uuid::new_v4().simple();
    Ok(SshKey {
        private: Secret::new(format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{nonce}\n-----END OPENSSH PRIVATE KEY-----\n")),
        public: format!("ssh-ed25519 {nonce} {comment}"),
    })
}

#[test]
fn ssh_keys_are_made_once_and_kept_when_nodes_are_added() {
    let parent = parent();
    let dir = made(parent.path(), &spec("ktcw"));
    let lock = dir.lock("up").expect("free");
    let nodes = [NodeName::controller(0), NodeName::worker(0)];
    assert!(dir.ssh(&nodes).is_err(), "none yet");
    let (first, made) = dir.ensure_ssh(&lock, &nodes, fake_key).expect("made");
    assert_eq!(made, 3);
    let more = [NodeName::controller(0), NodeName::worker(0), NodeName::worker(1)];
    let (second, made) = dir.ensure_ssh(&lock, &more, fake_key).expect("made");
    assert_eq!((made, &second.client), (1, &first.client));
    assert!(nodes.iter().all(|node| first.hosts[node] == second.hosts[node]));
    assert_eq!(dir.ssh(&more).expect("loaded"), second);
    assert!(second.hosts[&more[2]].public.ends_with("worker-1\n"));
    assert_eq!(files::read_secret(&dir.ssh_identity()).expect("read"), second.client.private);

    let error = dir.ensure_ssh(&lock, &[NodeName::worker(7)], |_| Err("no entropy".to_owned())).expect_err("passed on");
    assert_eq!(error.to_string(), "failed to make SSH key worker-7: no entropy");
    for (file, content, says) in [
        ("host-worker-0", "garbage", "not an OpenSSH private key"),
        ("host-worker-1.pub", "two\nlines", "not one line"),
        ("host-controller-0.pub", "", "not one line"),
    ] {
        let path = dir.path().join("ssh").join(file);
        let good = fs::read(&path).expect("read");
        files::write_atomic(&path, content.as_bytes(), SECRET).expect("written");
        assert!(dir.ssh(&more).expect_err(file).to_string().contains(says));
        assert!(dir.ensure_ssh(&lock, &more, fake_key).is_err(), "never written over");
        files::write_atomic(&path, &good, SECRET).expect("written");
    }
    fs::remove_file(dir.path().join("ssh/host-worker-1.pub")).expect("removed");
    assert!(dir.ensure_ssh(&lock, &more, fake_key).expect_err("half a pair").to_string().contains("public half"));
}

/// Killed at every file point of making and removing a cluster: what is left is no cluster or a whole one,
/// and doing it again ends well with nothing left over.
#[test]
fn killed_at_every_point_of_creation_and_removal() {
    let child = "store::cluster::tests::child_makes_and_removes";
    let (calm, count) = (parent(), parent());
    let counted = count.path().join("count");
    assert!(!crash::aborts(child, &[("KTCW_TEST_DIR", &calm.path()), ("KTCW_FAIL_COUNT", &counted)]));
    assert_eq!(fs::read_dir(calm.path()).expect("listed").count(), 0);
    let points = fs::read_to_string(&counted).expect("counted").lines().filter(|l| l.starts_with("file:")).count();
    assert!(points >= 12, "{points}");
    for number in 1..=points {
        let parent = parent();
        assert!(
            crash::aborts(child, &[("KTCW_TEST_DIR", &parent.path()), ("KTCW_FAIL_AT", &format!("file:{number}"))]),
            "{number}"
        );
        for listed in list(parent.path()).expect("listed") {
            listed.opened.expect("whole or not there");
        }
        finish_removals(parent.path()).expect("finished");
        let begun = |prefix: &str| names(parent.path()).iter().any(|name| name.starts_with(prefix));
        assert!(!begun(Passing::Removing.prefix()), "point {number}: keys are left");
        // A creation cut off less than ten minutes ago might still be under way elsewhere; it holds no secret.
        let cut_off = begun(Passing::Creating.prefix());
        let dir = match ClusterDir::open(parent.path(), &name("ktcw")) {
            Ok(dir) => dir,
            Err(StoreError::NoCluster { .. }) => made(parent.path(), &spec("ktcw")),
            Err(other) => panic!("point {number}: {other}"),
        };
        let lock = dir.lock("up").expect("free");
        dir.ensure_ssh(&lock, &[NodeName::worker(0)], fake_key).expect("completed");
        assert!(tree(dir.path()).iter().all(|(path, _)| !path.to_string_lossy().contains(".tmp-")), "point {number}");
        dir.remove(lock).expect("removed");
        assert_eq!(names(parent.path()).len(), usize::from(cut_off), "point {number}");
        age(parent.path());
        finish_removals(parent.path()).expect("finished");
        assert_eq!(names(parent.path()), [""; 0], "point {number}");
    }
}

fn names(parent: &Path) -> Vec<String> {
    fs::read_dir(parent).expect("listed").map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

fn age(parent: &Path) {
    let long_ago = std::time::SystemTime::now() - 2 * CREATION_LIMIT;
    for entry in fs::read_dir(parent).expect("listed") {
        fs::File::open(entry.expect("entry").path()).and_then(|dir| dir.set_modified(long_ago)).expect("aged");
    }
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_makes_and_removes() {
    let parent = PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"));
    let dir = made(&parent, &spec("ktcw"));
    let lock = dir.lock("up").expect("free");
    dir.save_plan(&lock, &some_plan(dir.spec())).expect("saved");
    dir.ensure_ssh(&lock, &[NodeName::worker(0)], fake_key).expect("made");
    dir.remove(lock).expect("removed");
}

#[test]
fn the_default_place_follows_the_environment_and_ignores_relative_paths() {
    let os = |text: &str| Some(OsString::from(text));
    assert_eq!(default_parent(os("/x"), os("/home/me")).expect("xdg"), Path::new("/x/ktcw-vm"));
    assert_eq!(default_parent(None, os("/home/me")).expect("home"), Path::new("/home/me/.local/state/ktcw-vm"));
    assert_eq!(default_parent(os("rel"), os("/home/me")).expect("home"), Path::new("/home/me/.local/state/ktcw-vm"));
    assert!(matches!(default_parent(os(""), None), Err(StoreError::NoHome)));
}

/// What is on the disk cut off after every byte, or with any bit turned over: damage that is named, or what was written.
#[test]
fn a_file_cut_off_or_flipped_anywhere_is_called_damaged_or_is_what_was_written() {
    let parent = parent();
    let dir = made(parent.path(), &spec("ktcw"));
    dir.save_plan(&dir.lock("up").expect("free"), &some_plan(dir.spec())).expect("saved");
    let plan = dir.load_plan().expect("whole");
    let (mut judged, mut noticed) = (0, 0);
    for name in [ABOUT, PLAN] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).expect("read");
        // A plan has a hundred thousand bytes: its ends byte by byte, what is between in strides of a prime.
        let ends = |at: &usize| *at < 300 || *at + 300 > whole.len() || at.is_multiple_of(if name == PLAN { 499 } else { 1 });
        let mut judge = |bytes: &[u8], what: String| {
            fs::write(&path, bytes).expect("written");
            let opened = ClusterDir::open(parent.path(), &ClusterName::parse("ktcw").expect("valid"));
            let read = opened.and_then(|opened| Ok((opened.load_plan()?, opened)));
            judged += 1;
            match read {
                Ok((read, opened)) => assert!(read == plan && opened == dir, "{name}: {what}: read as something else"),
                Err(error) => {
                    noticed += 1;
                    assert!(error.to_string().contains(name), "{name}: {what}: {error}");
                    assert!(!matches!(error, StoreError::Newer { .. }), "{name}: {what}: {error}");
                }
            }
        };
        for length in (0..whole.len()).filter(ends) {
            judge(&whole[..length], format!("cut at {length}"));
        }
        for at in (0..whole.len()).filter(ends) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            judge(&bytes, format!("bit {} of byte {at}", at % 8));
        }
        files::write_atomic(&path, &whole, SECRET).expect("restored");
    }
    println!("{judged} damaged files, {noticed} refused by name");
    assert_eq!((dir.load_plan().expect("whole"), noticed * 100 / judged > 95), (plan, true), "{noticed} of {judged}");
}

/// A save that was killed leaves a copy of every secret: whole with no record beside it, or in part.
#[test]
fn files_of_etcd_that_no_record_speaks_of_are_removed_and_all_others_stay() {
    let parent = parent();
    let (dir, lock) = ClusterDir::create(parent.path(), &spec("lab"), "snapshot", now()).expect("made");
    assert_eq!(dir.tidy_etcd_snapshots(&lock).expect("there is none"), Vec::<String>::new());
    let file = |name: &str| dir.etcd_snapshot_file(&lock, name).expect("a path");
    for name in ["whole", "killed", "unreadable"] {
        fs::write(file(name), "store").expect("written");
    }
    dir.save_etcd_snapshot(&lock, "whole", &1).expect("written");
    fs::write(file("unreadable").with_extension("json"), "{").expect("written");
    for name in ["whole", "cut"] {
        fs::write(file(name).with_extension("db.partial"), "sto").expect("written");
    }
    assert_eq!(dir.tidy_etcd_snapshots(&lock).expect("tidied"), ["cut.db.partial", "killed.db", "whole.db.partial"]);
    assert!(file("whole").exists() && file("unreadable").exists());
    assert_eq!(dir.tidy_etcd_snapshots(&lock).expect("tidied"), Vec::<String>::new());
}
