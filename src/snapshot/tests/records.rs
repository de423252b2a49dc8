//! What is judged of a record alone: its file, its name among others, whether the cluster still fits it, what it costs, and
//! whether etcd's members are those that it saw.

use super::*;
use crate::event::Verdict;
use crate::snapshot::compare::compare;
use crate::spec::NodeName;
use crate::verify::MemberSeen;

#[test]
fn records_are_private_and_say_their_format() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new();
    lab.save("one", None).expect("saved");
    let path = lab.dir.path().join("snapshots/one.json");
    assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
    let text = std::fs::read_to_string(&path).expect("text");
    assert!(text.contains("\"format\": 1") && text.contains("\"qemu_version\": \"10.0.2\""), "{text}");
    // As by a newer program, whose own sum, if it keeps one, this one cannot know.
    let body = text.split_once(",\n  \"sum\": \"").map_or_else(|| text.clone(), |(body, _)| format!("{body}\n}}\n"));
    std::fs::write(&path, body.replace("\"format\": 1", "\"format\": 2")).expect("written");
    let listed = lab.dir.load_snapshots::<Record>().expect("listed");
    let error = listed[0].1.as_ref().expect_err("newer").to_string();
    assert!(error.contains("newer version"), "{error}");
}

#[test]
fn names_fit_files_and_unknown_ones_are_answered_with_the_known() {
    for good in ["a", "before-upgrade", "v1.36_2", "0"] {
        assert_eq!(name(good).to_string(), good);
    }
    for bad in ["", ".hidden", "-x", "A", "a/b", "a b", "ü", &"a".repeat(41), "a\n"] {
        let said = Name::parse(bad).expect_err(bad);
        assert!(said.contains("accepted"), "{said}");
    }
    let whole = |text: &str| Record { state: State::Whole, ..record(text, None) };
    let records = [whole("one"), record("half", None), whole("two")];
    assert_eq!(chosen(&records, &name("two")).expect("known").name, name("two"));
    assert_eq!(chosen(&records, &name("half")).expect_err("a half is none"), "there is no snapshot half; there are one, two");
    let slip = chosen(&[whole("golden"), whole("one")], &name("goldn")).expect_err("mistyped");
    assert_eq!(slip, "there is no snapshot goldn; there are golden, one; did you mean golden?");
    assert!(chosen(&[], &name("x")).expect_err("none").contains("none at all"));
}

#[test]
fn the_golden_one_is_among_the_costs_where_nobody_keeps_it_anew() {
    let whole = |text: &str| Record { state: State::Whole, ..record(text, None) };
    let (golden, both) = ([whole("golden")], [whole("golden"), whole("one"), record("half", None)]);
    assert_eq!(stop_fitting(&golden, Some("golden")), None);
    assert!(stop_fitting(&golden, None).expect("a cost").ends_with("there are now: golden"));
    assert!(stop_fitting(&both, Some("golden")).expect("a cost").starts_with("1 snapshot stops fitting"));
    assert!(stop_fitting(&both, None).expect("a cost").ends_with("there are now: golden, one"));
}

#[test]
fn a_tree_shows_children_after_parents_and_orphans_at_the_root() {
    let aged = |text: &str, parent: Option<&str>, second: i64| Record { taken: at(second), ..record(text, parent) };
    let records = [
        aged("late", Some("root"), 9),
        aged("early", Some("root"), 3),
        aged("leaf", Some("early"), 5),
        aged("orphan", Some("gone"), 1),
        aged("root", None, 0),
    ];
    let shown: Vec<(usize, String)> = tree(&records).iter().map(|(depth, record)| (*depth, record.name.to_string())).collect();
    let expected = [(0, "root"), (1, "early"), (2, "leaf"), (1, "late"), (0, "orphan")];
    assert_eq!(shown, expected.map(|(depth, name)| (depth, name.to_owned())));
}

#[test]
fn another_image_kernel_qemu_or_plan_is_named() {
    let facts = FakeHost::new().facts().expect("facts");
    let then = Fits::of(&sample(1), &facts);
    assert_eq!(then.differs(&then.clone()), Vec::<String>::new());
    let mut newer = facts.clone();
    newer.qemu_version = "11.0.0".into();
    assert_eq!(then.differs(&Fits::of(&sample(1), &newer)), ["QEMU was 10.0.2, now it is 11.0.0"]);
    let plan = then.differs(&Fits::of(&sample(2), &facts));
    assert_eq!(plan, ["worker-1 has come since"]);
    assert_eq!(Fits::of(&sample(2), &facts).differs(&then), ["worker-1 is not in the cluster any more"]);
    // A record of before nodes were written down.
    let text = serde_json::to_string(&then).expect("prints");
    let mut old: serde_json::Value = serde_json::from_str(&text).expect("reads");
    old.as_object_mut().expect("an object").remove("nodes");
    let old: Fits = serde_json::from_value(old).expect("still read");
    assert_eq!(old.differs(&then), Vec::<String>::new());
    let plan = old.differs(&Fits::of(&sample(2), &facts));
    assert!(plan.len() == 1 && plan[0].starts_with("the plan is another: a node was added, removed"), "{plan:?}");
    let image = Fits { image_key: "f".repeat(64), kernel_sha256: "e".repeat(64), ..then.clone() };
    assert_eq!(then.differs(&image).len(), 2);
}

#[test]
fn room_is_counted_in_memory_that_was_touched() {
    let plan = sample(1);
    let lab = Lab::new();
    let mut seen = lab.host.observe().expect("observed");
    let resident: BTreeMap<NodeName, u64> = plan.nodes.iter().map(|node| (node.name.clone(), 400 << 20)).collect();
    let mut free = |mib: u64| {
        seen.pools.iter_mut().for_each(|pool| pool.available = Some(mib << 20));
        room(&plan, &seen, &resident)
    };
    // 2 × 400 touched, 2 × 192 to be written anew, 512 in reserve.
    assert_eq!(free(1696), Ok(()));
    let said = free(1695).expect_err("one MiB short");
    assert!(said.contains("1696 MiB") && said.contains("1695 MiB free"), "{said}");
    let untold = room(&plan, &seen, &BTreeMap::new()).expect_err("all of the memory counts");
    assert!(untold.contains(&format!("memory {}", plan.nodes.iter().map(|n| n.domain.memory_mib).sum::<u32>())), "{untold}");
}

#[test]
fn members_are_the_same_only_with_the_same_id_content_and_no_step_back() {
    let then = MemberSeen { id: "a1".into(), leader: "a1".into(), term: 3, revision: 50, hashed: 50, hash: 7, compacted: 10 };
    let node = NodeName::controller(0);
    let judged = |now: Result<MemberSeen, String>| {
        let all = compare(&BTreeMap::from([(node.clone(), then.clone())]), &BTreeMap::from([(node.clone(), now)]));
        (all[0].verdict, all[0].said.clone())
    };
    assert_eq!(judged(Ok(then.clone())).0, Verdict::Pass);
    let later = MemberSeen { term: 5, leader: "b2".into(), revision: 60, ..then.clone() };
    let (verdict, said) = judged(Ok(later));
    assert!(verdict == Verdict::Pass && said.contains("2 elections since") && said.contains("another leader"), "{said}");
    let compacted = judged(Ok(MemberSeen { compacted: 40, hash: 8, ..then.clone() }));
    assert!(compacted.0 == Verdict::Pass && compacted.1.contains("not comparable"), "{}", compacted.1);
    for (wrong, word) in [
        (MemberSeen { id: "c3".into(), ..then.clone() }, "id was a1"),
        (MemberSeen { term: 2, ..then.clone() }, "term was 3"),
        (MemberSeen { revision: 49, ..then.clone() }, "revision was 50"),
        (MemberSeen { hash: 8, ..then.clone() }, "hash at revision 50"),
    ] {
        let (verdict, said) = judged(Ok(wrong));
        assert!(verdict == Verdict::Fail && said.contains(word), "{said}");
    }
    assert_eq!(judged(Err("no SSH".into())).0, Verdict::Unknown);
    assert_eq!(compare(&BTreeMap::from([(node.clone(), then.clone())]), &BTreeMap::new())[0].verdict, Verdict::Unknown);
}
