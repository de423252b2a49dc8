//! The cache's promises, with files of a few bytes instead of images: whole or
//! absent, whatever was interrupted; damage is found; pruning keeps what is in use.

use std::collections::BTreeMap;

use super::*;
use crate::image::Versions;

fn open(root: &Path) -> Cache {
    Cache::open(root, &mut |_| {}).unwrap()
}

/// An image directory as `build` leaves it.
fn store_image(cache: &Cache, key: &str, content: &str) -> PathBuf {
    let make = |fresh: &Path| {
        fs::write(fresh.join("base.qcow2"), content).unwrap();
        let files = records(fresh)?;
        let image = Image {
            key: key.into(),
            sources_key: format!("sources of {key}"),
            dir: PathBuf::new(),
            disk: "base.qcow2".into(),
            disk_sha256: files["base.qcow2"].sha256.clone(),
            kernel: "vmlinuz".into(),
            initrd: "initrd.img".into(),
            bin: "bin".into(),
            virtual_size: 1,
            size_bytes: content.len() as u64,
            versions: Versions::default(),
            containers: vec![],
            files,
            built_at: jiff::Timestamp::UNIX_EPOCH,
        };
        fs::write(fresh.join("image.json"), serde_json::to_string(&image).unwrap()).unwrap();
        Ok(())
    };
    cache.make(&cache.image_dir(key), make).unwrap()
}

fn failure() -> ImageError {
    ImageError::NoMirror
}

#[test]
fn the_cache_is_where_the_environment_says() {
    let with = |set: &[(&str, &str)]| {
        let set: BTreeMap<_, _> = set.iter().copied().collect();
        cache_dir_from(|name| set.get(name).map(PathBuf::from))
    };
    assert_eq!(with(&[("KTCW_CACHE_DIR", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Path::new("/a"));
    assert_eq!(with(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Path::new("/b/ktcw-vm"));
    assert_eq!(with(&[("HOME", "/c")]), Path::new("/c/.cache/ktcw-vm"));
    assert!(with(&[]).ends_with("ktcw-vm-cache"));
}

#[test]
fn a_stage_is_made_once_and_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    assert_eq!(cache.stage("etcd", "k1"), None);
    let made = cache
        .make_stage("etcd", "k1", |fresh| {
            fs::write(fresh.join("etcd"), "binary").unwrap();
            Ok(())
        })
        .unwrap();
    assert_eq!(cache.stage("etcd", "k1"), Some(made));
    assert_eq!(cache.stage("etcd", "k2"), None, "another key is another stage");
}

#[test]
fn a_failed_step_leaves_no_stage() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let made = cache.make_stage("etcd", "k1", |fresh| {
        fs::write(fresh.join("etcd"), "half").unwrap();
        Err(failure())
    });
    assert!(made.is_err());
    assert_eq!(cache.stage("etcd", "k1"), None);
    assert!(!cache.stage_dir("etcd", "k1").exists());
}

#[test]
fn what_an_interrupted_build_left_is_swept_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    // As after kill -9: a half made stage, work files, a directory being removed.
    for left in ["tmp/etcd-k1/etcd", "tmp/image.work/base.raw", "tmp/k0.gone/base.qcow2"] {
        let path = directory.path().join(left);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    let cache = open(directory.path());
    assert_eq!(directories(&directory.path().join("tmp")).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(cache.stage("etcd", "k1"), None);
    assert!(list(directory.path()).unwrap().is_empty());
}

#[test]
fn a_stage_that_lost_bytes_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let write = |fresh: &Path| {
        fs::write(fresh.join("rootfs.tar"), "0123456789").unwrap();
        Ok(())
    };
    let made = cache.make_stage("guest-os", "k1", write).unwrap();
    fs::write(made.join("rootfs.tar"), "01234").unwrap();
    assert_eq!(cache.stage("guest-os", "k1"), None);
    let again = cache.make_stage("guest-os", "k1", write).unwrap();
    assert_eq!(fs::read_to_string(again.join("rootfs.tar")).unwrap(), "0123456789");
    fs::remove_file(again.join("rootfs.tar")).unwrap();
    assert_eq!(cache.stage("guest-os", "k1"), None);
}

#[test]
fn making_again_replaces_the_whole_directory() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    store_image(&cache, "k1", "old");
    fs::write(cache.image_dir("k1").join("stray"), "").unwrap();
    let dir = store_image(&cache, "k1", "new");
    assert_eq!(fs::read_to_string(dir.join("base.qcow2")).unwrap(), "new");
    assert!(!dir.join("stray").exists());
    assert_eq!(directories(&directory.path().join("tmp")).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_failed_rebuild_keeps_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let dir = store_image(&cache, "k1", "old");
    assert!(cache.make(&dir, |_| Err(failure())).is_err());
    assert_eq!(load(&dir).unwrap().unwrap().key, "k1");
}

#[test]
fn a_stored_image_loads_with_whole_paths() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let dir = store_image(&cache, "k1", "disk");
    let image = load(&dir).unwrap().unwrap();
    assert_eq!(image.dir, dir);
    assert_eq!(image.disk, dir.join("base.qcow2"));
    assert_eq!(image.bin, dir.join("bin"));
    verify_image(&image).unwrap();
    assert!(!written_since(&image), "nobody has touched it");
    let later = std::time::SystemTime::now() + Duration::from_secs(1);
    File::options().append(true).open(&image.disk).unwrap().set_modified(later).unwrap();
    assert!(written_since(&image));
    assert!(load(&cache.image_dir("k2")).unwrap().is_none());
}

#[test]
fn damage_is_found_and_says_the_way_out() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm, &str); 5] = [
        ("truncated", |dir| fs::write(dir.join("base.qcow2"), "di").unwrap(), "2 bytes, not 4"),
        ("gone", |dir| fs::remove_file(dir.join("base.qcow2")).unwrap(), "base.qcow2"),
        ("no description", |dir| fs::remove_file(dir.join("image.json")).unwrap(), "image.json"),
        ("half a description", |dir| fs::write(dir.join("image.json"), "{\"key\":").unwrap(), "image.json"),
        ("altered", |dir| fs::write(dir.join("base.qcow2"), "dusk").unwrap(), "base.qcow2 has digest"),
    ];
    for (name, harm, expected) in harms {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        let dir = store_image(&cache, "k1", "disk");
        harm(&dir);
        let error = load(&dir).and_then(|image| verify_image(&image.unwrap())).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(error.hint().unwrap(), "build it again: ktcw-vm image build --force", "{name}");
        assert!(list(directory.path()).unwrap()[0].key == "k1", "{name}: still listed");
    }
}

#[test]
fn an_image_under_another_key_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let dir = store_image(&cache, "k1", "disk");
    fs::rename(&dir, cache.image_dir("k2")).unwrap();
    assert!(matches!(load(&cache.image_dir("k2")), Err(ImageError::Damaged { .. })));
}

#[test]
fn pruning_keeps_the_current_image_and_its_stages() {
    let directory = tempfile::tempdir().unwrap();
    let keys = Inputs::embedded(toolchain::version().unwrap_or_default(), Suite::default()).keys();
    let cache = open(directory.path());
    store_image(&cache, &keys.image, "mine");
    store_image(&cache, "old", "old");
    let write = |fresh: &Path| {
        fs::write(fresh.join("file"), "content").unwrap();
        Ok(())
    };
    cache.make_stage("guest-os", &keys.guest_os, write).unwrap();
    cache.make_stage("guest-os", "old", write).unwrap();
    drop(cache);

    let pruned = prune(directory.path(), true, &[]).unwrap();
    let names: Vec<_> = pruned.directories.iter().map(|dir| dir.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["old", "guest-os-old"]);
    assert!(pruned.bytes > 0);
    let left = list(directory.path()).unwrap();
    assert_eq!(left.len(), 1);
    assert!(left[0].current);
    assert_eq!(prune(directory.path(), true, &[]).unwrap(), Pruned::default());

    prune(directory.path(), false, &[]).unwrap();
    assert!(list(directory.path()).unwrap().is_empty());
    assert_eq!(directories(&directory.path().join("stages")).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_cache_that_is_not_there_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    assert!(list(&absent).unwrap().is_empty());
    assert_eq!(prune(&absent, false, &[]).unwrap(), Pruned::default());
    assert!(find(&absent).unwrap().is_none());
    assert!(!absent.exists(), "reading creates nothing");
}

#[test]
fn an_image_of_the_same_sources_is_found_whichever_go_built_it() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let keys = Inputs::embedded("", Suite::default()).keys();
    let of_other_sources = store_image(&cache, "other", "disk");
    assert!(find(directory.path()).unwrap().is_none());
    let dir = store_image(&cache, "mine", "disk");
    let text = fs::read_to_string(dir.join("image.json")).unwrap();
    fs::write(dir.join("image.json"), text.replace("sources of mine", &keys.sources)).unwrap();
    assert_eq!(find(directory.path()).unwrap().unwrap().key, "mine");
    fs::remove_file(of_other_sources.join("base.qcow2")).unwrap();
    assert_eq!(find(directory.path()).unwrap().unwrap().key, "mine", "damage of another one is not ours");
}

#[test]
fn the_damage_of_the_image_that_is_wanted_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let keys = Inputs::embedded(toolchain::version().unwrap_or_default(), Suite::default()).keys();
    let dir = store_image(&cache, &keys.image, "disk");
    fs::write(dir.join("image.json"), "{").unwrap();
    assert!(matches!(find(directory.path()), Err(ImageError::Damaged { .. })));
}

/// `list`, `prune` and `up` speak of the same image: the newest whole one of these sources, whichever Go built it.
#[test]
fn what_up_would_take_is_current_and_never_pruned() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let keys = Inputs::embedded("", Suite::default()).keys();
    let built = |key: &str, at: &str| {
        let dir = store_image(&cache, key, "disk");
        let text = fs::read_to_string(dir.join("image.json")).unwrap();
        let text = text.replace(&format!("sources of {key}"), &keys.sources).replace("1970-01-01T00:00:00Z", at);
        fs::write(dir.join("image.json"), text).unwrap();
        dir
    };
    let older = built("by-an-older-go", "2026-01-01T00:00:00Z");
    let newest = built("by-a-newer-go", "2026-02-01T00:00:00Z");
    let current = || list(directory.path()).unwrap().into_iter().filter(|one| one.current).map(|one| one.key).collect::<Vec<_>>();
    let found = || find(directory.path()).unwrap().unwrap().key;
    assert_eq!((current(), found()), (vec!["by-a-newer-go".to_owned()], "by-a-newer-go".to_owned()));
    // Half of it is gone: the other one is taken, and the damaged one is listed as that.
    fs::remove_file(newest.join("base.qcow2")).unwrap();
    assert_eq!((current(), found()), (vec!["by-an-older-go".to_owned()], "by-an-older-go".to_owned()));
    let listed = list(directory.path()).unwrap();
    let damaged = listed.iter().find(|one| one.key == "by-a-newer-go").unwrap();
    assert!(matches!(damaged.image, Err(ImageError::Damaged { .. })), "{damaged:?}");
    drop(cache);
    assert_eq!(prune(directory.path(), true, &[]).unwrap().directories, [newest]);
    assert_eq!(found(), "by-an-older-go");
    assert!(older.exists());
}

#[test]
fn pruning_keeps_what_clusters_use_also_a_damaged_one() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    for key in ["used", "used-and-damaged", "unused", "half"] {
        store_image(&cache, key, "disk");
    }
    // Its kubectl may be whole all the same.
    fs::write(cache.image_dir("used-and-damaged").join("base.qcow2"), "di").unwrap();
    fs::remove_file(cache.image_dir("half").join("image.json")).unwrap();
    drop(cache);
    let pruned = prune(directory.path(), true, &["used".to_owned(), "used-and-damaged".to_owned()]).unwrap();
    let names: Vec<_> = pruned.directories.iter().map(|dir| dir.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["half", "unused"]);
}

#[test]
fn two_builds_do_not_run_in_one_cache() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    fs::create_dir_all(directory.path().join("tmp/being-made")).unwrap();
    let mut events = Vec::new();
    let second = Cache::open_until(directory.path(), Duration::from_millis(50), &mut |event| events.push(event));
    assert!(matches!(second, Err(ImageError::Busy { .. })));
    assert!(matches!(events[..], [ImageEvent::Waiting { .. }]), "{events:?}");
    assert!(directory.path().join("tmp/being-made").exists(), "the other build's work is left alone");
    drop(first);
    open(directory.path());
}

/// With the image there a build is a look: no tool is started, nothing is locked or written, also on a read-only cache.
#[test]
fn a_second_build_does_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let keys = Inputs::embedded(toolchain::version().unwrap_or_default(), Suite::default()).keys();
    let cache = open(directory.path());
    store_image(&cache, &keys.image, "disk");
    let first = load(&cache.image_dir(&keys.image)).unwrap().unwrap();
    drop(cache);
    for gone in ["lock", "tmp", "stages", "logs"] {
        let path = directory.path().join(gone);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    for _ in 0..2 {
        let mut events = Vec::new();
        let built = crate::image::build(&crate::image::BuildOptions::new(directory.path()), &mut |event| events.push(event));
        assert_eq!(built.unwrap(), first);
        assert_eq!(events, [ImageEvent::Present { key: keys.image.clone() }]);
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["images"], "not even a lock");
    }
}

/// Cut off after any number of stages, the next build makes the rest and none a second time; half of one is never found.
#[test]
fn an_interrupted_build_is_gone_on_with_where_it_stopped() {
    let names = ["hyperkube", "etcd", "guest-os", "container-os"];
    for cut_off in 0..names.len() {
        let directory = tempfile::tempdir().unwrap();
        let mut made: Vec<&str> = Vec::new();
        for attempt in 0..2 {
            let cache = open(directory.path());
            assert_eq!(directories(&directory.path().join("tmp")).unwrap(), Vec::<PathBuf>::new(), "swept");
            for (index, name) in names.into_iter().enumerate() {
                if cache.stage(name, "k1").is_some() {
                    continue;
                }
                let result = cache.make_stage(name, "k1", |fresh| {
                    fs::write(fresh.join("half"), "half").unwrap();
                    if attempt == 0 && index == cut_off {
                        return Err(failure());
                    }
                    fs::write(fresh.join("whole"), "whole").unwrap();
                    made.push(name);
                    Ok(())
                });
                if result.is_err() {
                    break;
                }
            }
            assert_eq!(cache.stage(names[cut_off], "k1").is_some(), attempt == 1, "{cut_off}");
            assert!(list(directory.path()).unwrap().is_empty(), "stages are no image");
        }
        assert_eq!(made, names, "each once");
        for name in names {
            assert!(open(directory.path()).stage_dir(name, "k1").join("whole").exists());
        }
    }
}
