//! The catalogue makes sense as it is, and how drills are found in it and beside it.

use super::*;
use std::collections::BTreeSet;

#[test]
fn the_catalogue_parses_and_makes_sense() {
    let all = built_in().expect("parses");
    for drill in &all {
        assert_eq!(problems(drill), Vec::<String>::new(), "{}", drill.name);
        assert!(!drill.story.is_empty() && !drill.title.is_empty(), "{}", drill.name);
    }
    let names: BTreeSet<&str> = all.iter().map(|d| d.name.as_str()).collect();
    let ids: BTreeSet<&str> = all.iter().map(|d| d.id.as_str()).collect();
    assert_eq!((names.len(), ids.len()), (all.len(), all.len()), "names and numbers are unique");
    let promised = "leader-kill leader-stop move-leader leader-pause leader-freeze leader-power-off follower-kill rolling-restart quorum-loss \
                    blackout leader-flap isolate-leader isolate-follower split-all deaf-leader mute-leader bridge slow-link stalled-disk \
                    full-quota replace-member disaster-restore clock-skew apiserver-kill lease-holder-kill kubelet-stop worker-power-off \
                    control-plane-power-off cert-expiry";
    for name in promised.split_whitespace() {
        assert!(names.contains(name), "{name} is missing");
    }
}

/// A gap that ends when the fault is taken away is as long as the fault was, and would pass whatever the cluster does.
#[test]
fn who_takes_the_api_away_keeps_it_away_for_longer_than_it_may_be_missing() {
    use super::super::bound::Timing;
    let emulated = Timing { vip_ms: 5000, election_ms: 5000, latency_ms: 500, ..Timing::native() };
    let mut seen = 0;
    for drill in built_in().expect("parses") {
        // Where every machine is off the API comes back with the heal alone, and is measured from there on.
        let Some(gap) = drill.expect.api_gap.as_ref().filter(|_| drill.target != Target::Everything) else { continue };
        seen += 1;
        for timing in [Timing { latency_ms: 100, ..Timing::native() }, emulated.clone()] {
            assert!(drill.hold.of(&timing) >= gap.of(&timing), "{}: held for less than {gap}", drill.name);
        }
    }
    assert!(seen >= 3, "{seen}");
}

#[test]
fn drills_are_found_by_name_and_number_and_near_misses_are_named() {
    assert_eq!(find("leader-kill").expect("there").id, "D01");
    assert_eq!(find("d01").expect("there").name, "leader-kill");
    for other in ["slow-disk", "D40"] {
        assert_eq!(find(other).expect("there").name, "stalled-disk");
    }
    let error = find("kill-leader-now").expect_err("not there").to_string();
    assert!(error.contains("leader-kill"), "{error}");
    for (slip, drill) in [("leaderkill", "leader-kill"), ("quorumloss", "quorum-loss"), ("blackuot", "blackout")] {
        let error = find(slip).expect_err("not there").to_string();
        assert_eq!(error, format!("there is no drill {slip:?}; did you mean {drill}?"));
    }
    assert_eq!(find("xyzzy").expect_err("not there").to_string(), "there is no drill \"xyzzy\"");
    assert!(matches!(find("./nowhere.toml"), Err(CatalogueError::Unreadable { .. })));
}

#[test]
fn a_users_file_has_the_same_form_and_is_told_what_is_wrong() {
    let text = toml::to_string(&find("bridge").expect("there")).expect("prints");
    assert_eq!(parse(&text).expect("reads its own print"), find("bridge").expect("there"));
    let wrong = text.replace("leader-and-follower", "leader").replace("\"bridge\"\nid", "\"My Bridge\"\nid");
    let error = parse(&wrong).expect_err("two problems");
    assert!(error.contains("a bridge is cut between two") && error.contains("My Bridge"), "{error}");
    assert!(error.contains("leader-and-follower, two-followers"), "{error}");
    let typo = parse(&text.replace("hold", "hodl")).expect_err("unknown field");
    assert!(typo.contains("hodl"), "{typo}");
    let waived = parse(&text.replace("waive = []", "waive = [\"I1\"]")).expect_err("not waivable");
    assert!(waived.contains("cannot be waived"), "{waived}");
}

#[test]
fn target_words_are_those_of_the_files() {
    for drill in built_in().expect("parses") {
        assert_eq!(serde_json::to_value(drill.target).expect("a word"), drill.target.as_str());
    }
    // No built-in drill hits it.
    assert_eq!(serde_json::to_value(Target::Minority).expect("a word"), Target::Minority.as_str());
}

#[test]
fn every_built_in_drill_satisfies_the_schema() {
    let schema = schema().to_value();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for drill in built_in().expect("parses") {
        let value = serde_json::to_value(&drill).expect("prints");
        let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{}", drill.name);
    }
}
