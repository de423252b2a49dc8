//! A user's drill file against its form: options that a fault does not have, and numbers and names out of all bounds.
//! The schema that is published must say the same as the parser.

use super::catalogue::{Drill, built_in, find, parse, schema};
use super::refusal::problems;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A drill for each kind of fault, by the kind's name.
fn of_each_kind() -> BTreeMap<String, Drill> {
    let kind = |drill: &Drill| serde_json::to_value(&drill.fault).expect("JSON")["type"].as_str().expect("a word").to_owned();
    let all: BTreeMap<String, Drill> = built_in().expect("parses").into_iter().map(|drill| (kind(&drill), drill)).collect();
    assert_eq!(all.len(), 16, "the catalogue has every kind: {:?}", all.keys());
    all
}

/// Whoever writes how long, or from which file, is not to get something else without a word.
#[test]
fn an_option_that_a_fault_does_not_have_is_refused() {
    for (kind, drill) in of_each_kind() {
        let text = toml::to_string(&drill).expect("prints");
        assert_eq!(parse(&text).as_ref(), Ok(&drill), "{kind}");
        let line = format!("type = \"{kind}\"\n");
        assert_eq!(text.matches(&line).count(), 1, "{text}");
        let told = parse(&text.replace(&line, &format!("{line}foreign = 3\n"))).expect_err(&kind);
        assert!(told.contains("unknown field `foreign`"), "{kind}: {told}");
        assert!(told.contains(", expected ") || told.contains("accepted: its type alone"), "{kind}: {told}");
        // As labs and reports read it, too.
        let mut fault = serde_json::to_value(&drill.fault).expect("JSON");
        fault["foreign"] = 3.into();
        assert!(serde_json::from_value::<super::catalogue::Fault>(fault).is_err(), "{kind}");
    }
}

#[test]
fn the_line_with_the_option_is_shown() {
    for (fault, field) in [
        ("{ type = \"stall-disk\", seconds = 3 }", "seconds"),
        ("{ type = \"restore\", snapshot = \"/my.db\" }", "snapshot"),
        ("{ type = \"freeze\", process = \"etcd\" }", "process"),
    ] {
        let text = format!(
            "name = \"mine\"\ntitle = \"mine\"\nstory = \"mine\"\nfault = {fault}\ntarget = \"all-members\"\nhold = \"1 s\"\nload = {{ keys = \"append\" }}\n"
        );
        let told = parse(&text).expect_err(field);
        assert!(told.contains(&format!("fault = {fault}")), "{told}");
        assert!(
            told.ends_with(&format!("unknown field `{field}`; accepted: its type alone, this fault has no options")),
            "{told}"
        );
    }
}

#[test]
fn the_schema_takes_no_foreign_option_either() {
    let validator = jsonschema::validator_for(&schema().to_value()).expect("a schema");
    for (kind, drill) in of_each_kind() {
        let mut value = serde_json::to_value(&drill).expect("JSON");
        assert!(validator.is_valid(&value), "{kind}");
        value["fault"]["foreign"] = 3.into();
        assert!(!validator.is_valid(&value), "{kind}");
    }
}

#[test]
fn the_schema_has_the_parsers_bounds() {
    let validator = jsonschema::validator_for(&schema().to_value()).expect("a schema");
    let rows: Vec<(&str, &str, Value, bool)> = vec![
        ("full-quota", "/fault/room_mib", json!(0), false),
        ("full-quota", "/fault/room_mib", json!(1), true),
        ("full-quota", "/fault/room_mib", json!(256), true),
        ("full-quota", "/fault/room_mib", json!(257), false),
        ("slow-link", "/fault/delay_ms", json!(5000), true),
        ("slow-link", "/fault/delay_ms", json!(5001), false),
        ("slow-link", "/fault/loss_percent", json!(50), true),
        ("slow-link", "/fault/loss_percent", json!(51), false),
        ("leader-kill", "/load/interval_ms", json!(4), false),
        ("leader-kill", "/load/interval_ms", json!(5), true),
        ("leader-kill", "/load/interval_ms", json!(1000), true),
        ("leader-kill", "/load/interval_ms", json!(1001), false),
        ("leader-kill", "/name", json!("a".repeat(63)), true),
        ("leader-kill", "/name", json!("a".repeat(64)), false),
        ("leader-kill", "/name", json!(""), false),
        ("leader-kill", "/name", json!("My Drill"), false),
        ("leader-kill", "/name", json!("../up"), false),
    ];
    for (drill, pointer, given, accepted) in rows {
        let mut value = serde_json::to_value(find(drill).expect("there")).expect("JSON");
        *value.pointer_mut(pointer).expect("a field") = given.clone();
        assert_eq!(validator.is_valid(&value), accepted, "{pointer}: {given} by the schema");
        let read: Drill = serde_json::from_value(value).expect("reads");
        assert_eq!(problems(&read).is_empty(), accepted, "{pointer}: {given} by the parser");
    }
}
