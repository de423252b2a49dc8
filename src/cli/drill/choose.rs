//! Which drills a command line means: by name, number, file or all, with other gates or targets where it says so.
//! `drill run` and `drill list` call it before a cluster is looked at.
//! It refuses with what would be accepted.

use crate::cli::error::CliError;
use crate::drill::catalogue::{CatalogueError, Drill, Target, built_in, find};
use crate::drill::refusal::problems;
use serde_json::Value;

impl From<CatalogueError> for CliError {
    fn from(error: CatalogueError) -> CliError {
        let hint = match &error {
            CatalogueError::Unknown { .. } => "ktcw-vm drill list",
            _ => "ktcw-vm drill list --schema; an example: ktcw-vm drill list leader-kill --format json",
        };
        CliError::usage(error.to_string()).hint(hint)
    }
}

pub fn drills(name: &str) -> Result<Vec<Drill>, CliError> {
    if name == "all" { Ok(built_in()?) } else { Ok(vec![find(name)?]) }
}

/// The drill with `key=value` gates and another target rule.
pub fn adjusted(mut drill: Drill, gates: &[String], target: Option<&str>) -> Result<Drill, CliError> {
    for gate in gates {
        gated(&mut drill, gate)?;
    }
    if let Some(rule) = target {
        drill.target = serde_json::from_value::<Target>(rule.into())
            .map_err(|error| CliError::usage(format!("--target: {error}")).hint(format!("ktcw-vm drill list {}", drill.name)))?;
    }
    let wrong = problems(&drill);
    if wrong.is_empty() {
        return Ok(drill);
    }
    let given = gates.iter().map(|gate| format!("--gate {gate}")).chain(target.map(|rule| format!("--target {rule}")));
    let given: Vec<String> = given.collect();
    Err(CliError::usage(format!("{} with {}: {}", drill.name, given.join(" "), wrong.join("; ")))
        .hint(format!("ktcw-vm drill list {}", drill.name)))
}

/// The same for several: a gate is for those that have it, and somebody must.
pub fn each_adjusted(drills: Vec<Drill>, gates: &[String], target: Option<&str>) -> Result<Vec<Drill>, CliError> {
    let [_, _, ..] = drills.as_slice() else {
        return drills.into_iter().map(|drill| adjusted(drill, gates, target)).collect();
    };
    for gate in gates {
        if !drills.iter().any(|drill| has(drill, gate)) {
            return Err(CliError::usage(format!("--gate {gate}: no drill has such a gate")).hint("ktcw-vm drill list"));
        }
    }
    let own = |drill: Drill| {
        let gates: Vec<String> = gates.iter().filter(|gate| has(&drill, gate)).cloned().collect();
        adjusted(drill, &gates, target)
    };
    drills.into_iter().map(own).collect()
}

fn has(drill: &Drill, gate: &str) -> bool {
    let key = key_of(gate.split_once('=').map_or(gate, |(key, _)| key));
    serde_json::to_value(&drill.expect).is_ok_and(|expect| expect.get(&key).is_some_and(|value| !value.is_null()))
}

/// Reports call a gate by the id of its check.
fn key_of(word: &str) -> String {
    match word.trim().replace('-', "_") {
        key if key == "membership" => "full_membership".to_owned(),
        key => key,
    }
}

fn gated(drill: &mut Drill, gate: &str) -> Result<(), CliError> {
    let wrong = |why: String| CliError::usage(format!("--gate {gate}: {why}")).hint(format!("ktcw-vm drill list {}", drill.name));
    let (key, text) = gate.split_once('=').ok_or_else(|| wrong("accepted: KEY=VALUE".to_owned()))?;
    let mut expect = serde_json::to_value(&drill.expect).map_err(CliError::failed)?;
    let keys = expect.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let key = key_of(key);
    let Some(place) = expect.get_mut(&key) else {
        return Err(wrong(format!("no such gate; there are {}", keys.join(", "))));
    };
    let text = text.trim().trim_matches('"');
    if key == "no_acks" && text == "none" {
        return Err(wrong("a promise of etcd is no gate to be taken away; accepted: anywhere, targets".to_owned()));
    }
    *place = value(&key, text);
    drill.expect = serde_json::from_value(expect).map_err(|error| wrong(told(&key, error.to_string())))?;
    Ok(())
}

/// `none` takes a gate away, a list is what JSON says it is, and so is a count. Everything else is a word or a bound, also where it
/// looks like a number: what a bound lacks then is its unit, and it is the one to say so.
fn value(key: &str, text: &str) -> Value {
    let of_list = |item: Value| match item {
        Value::Number(number) => Value::from(number.to_string()),
        other => other,
    };
    match serde_json::from_str::<Value>(text) {
        _ if text == "none" && key != "waive" => Value::Null,
        Ok(Value::Array(all)) => Value::Array(all.into_iter().map(of_list).collect()),
        // No alarm is called by a number.
        Ok(number @ Value::Number(_)) if ["failed_writes", "alarm"].contains(&key) => number,
        _ => Value::from(text),
    }
}

/// What is accepted where a value has not even its gate's form, of which serde says no more than what it is called in Rust.
fn told(key: &str, said: String) -> String {
    let accepted = match key {
        _ if !said.starts_with("invalid ") => return said,
        "failed_writes" => "a whole number, as in 3, or none",
        "not_ready" => r#"the earliest and the latest moment, two lengths of time, as in ["10 s", "1 grace + 10 s"], or none"#,
        "waive" => r#"a list, as in ["I11"]"#,
        "alarm" => "an alarm's name, as in NOSPACE, or none",
        "leader" | "no_acks" | "serial_reads" | "pods" => "a single word",
        _ => "a length of time, as in 3 election + 200 ms, or none",
    };
    format!("accepted: {accepted}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::catalogue::{LeaderFate, NoAcks};

    fn gated_kill(gate: &str) -> Result<Drill, String> {
        adjusted(find("leader-kill").expect("there"), &[gate.to_owned()], None).map_err(|error| error.message)
    }

    #[test]
    fn gates_are_replaced_added_and_taken_away() {
        assert_eq!(gated_kill("write_gap=2 s").expect("fits").expect.write_gap.expect("there").to_string(), "2 s");
        assert_eq!(gated_kill("write_gap=\"200ms\"").expect("fits").expect.write_gap.expect("there").to_string(), "200 ms");
        assert_eq!(gated_kill("write_gap=none").expect("fits").expect.write_gap, None);
        assert_eq!(gated_kill("write-gap=none").expect("as reports call it").expect.write_gap, None);
        assert_eq!(gated_kill("membership=none").expect("as reports call it").expect.full_membership, None);
        assert_eq!(gated_kill("leader=stays").expect("fits").expect.leader, Some(LeaderFate::Stays));
        assert_eq!(gated_kill("no_acks=targets").expect("fits").expect.no_acks, Some(NoAcks::Targets));
        assert_eq!(gated_kill("failed_writes=7").expect("fits").expect.failed_writes, Some(7));
        let kubelet = |gate: &str| adjusted(find("kubelet-stop").expect("there"), &[gate.to_owned()], None).expect("fits");
        let not_ready = kubelet("not_ready=[\"10 s\", \"1 grace\"]").expect.not_ready;
        assert_eq!(not_ready.map(|(from, _)| from.to_string()).as_deref(), Some("10 s"));
    }

    #[test]
    fn what_is_not_accepted_is_told_with_what_is() {
        assert!(gated_kill("write_gap").expect_err("no value").contains("KEY=VALUE"));
        assert!(gated_kill("writegap=2 s").expect_err("no key").contains("there are"));
        assert!(gated_kill("write_gap=2 fortnights").expect_err("no unit").contains("accepted:"));
        assert!(gated_kill("leader=dies").expect_err("no fate").contains("changes"));
        // A bound without its unit is told so by the bound, wherever it stands.
        for gate in ["write_gap=2", "write_gap=\"2\"", "not_ready=[2, 50]", "not_ready=[\"1 s\", 2]"] {
            let error = gated_kill(gate).expect_err(gate);
            assert!(error.contains("\"2\" is not a length of time; accepted: a number and a unit"), "{error}");
        }
        for (gate, accepted) in [
            ("not_ready=3", "the earliest and the latest moment"),
            ("not_ready=[\"10 s\"]", "the earliest and the latest moment"),
            ("failed_writes=-1", "a whole number"),
            ("failed_writes=1.5", "a whole number"),
            ("failed_writes=few", "a whole number"),
            ("write_gap=[\"2 s\"]", "a length of time"),
            ("waive=I11", "a list"),
            ("waive=none", "a list"),
            ("alarm=3", "an alarm's name"),
            ("leader=[\"stays\"]", "a single word"),
        ] {
            let error = gated_kill(gate).expect_err(gate);
            assert!(error.starts_with(&format!("--gate {gate}: accepted: {accepted}")), "{error}");
        }
        assert!(gated_kill("leader=3").expect_err("no fate").contains("unknown variant `3`, expected one of `changes`"));
        // What is never acceptable cannot be waved through, and a gate that nobody looks at is not green.
        let waived = gated_kill(r#"waive=["I1","I2","I4","I9"]"#).expect_err("not waivable");
        assert!(["I1", "I2", "I4", "I9"].iter().all(|id| waived.contains(&format!("{id:?} cannot be waived"))), "{waived}");
        assert!(gated_kill("waive=[\"I11\"]").is_ok());
        for drill in ["quorum-loss", "leader-pause", "leader-kill"] {
            let error = adjusted(find(drill).expect("there"), &["no_acks=none".to_owned()], None).expect_err(drill).message;
            assert!(error.starts_with("--gate no_acks=none: ") && error.ends_with("accepted: anywhere, targets"), "{error}");
        }
        assert!(gated_kill("api_gap=1 ms").expect_err("not probed").contains("without load.api"));
        let error = adjusted(find("kubelet-stop").expect("there"), &[], Some("leader")).expect_err("not there");
        assert!(error.message.contains("kubelet runs on workers"), "{}", error.message);
        assert!(
            adjusted(find("leader-kill").expect("there"), &[], Some("someone"))
                .expect_err("no rule")
                .message
                .contains("follower")
        );
        assert_eq!(adjusted(find("leader-kill").expect("there"), &[], Some("follower")).expect("fits").target, Target::Follower);
    }

    /// One gate for the whole catalogue: an API that nobody asks, or writes that are not expected, get none of it.
    #[test]
    fn a_gate_for_all_is_for_those_that_have_it() {
        let all = || drills("all").expect("the catalogue");
        let before = all();
        let after = each_adjusted(all(), &["api_gap=10 s".to_owned()], None).expect("fits");
        for (drill, was) in after.iter().zip(&before) {
            let gap = drill.expect.api_gap.as_ref().map(ToString::to_string);
            assert_eq!(gap.as_deref(), was.expect.api_gap.as_ref().map(|_| "10 s"), "{}", drill.name);
        }
        let error = each_adjusted(all(), &["no-acks=none".to_owned()], None).expect_err("a promise");
        assert!(error.message.ends_with("accepted: anywhere, targets"), "{}", error.message);
        let error = each_adjusted(all(), &["gap=10 s".to_owned()], None).expect_err("nobody has it");
        assert!(error.message.contains("no drill has such a gate"), "{}", error.message);
        let one = each_adjusted(vec![find("leader-kill").expect("there")], &["first_write=1 s".to_owned()], None).expect("added");
        assert!(one[0].expect.first_write.is_some(), "to a drill by name a gate is added");
    }

    #[test]
    fn all_is_all_and_a_near_miss_is_named() {
        assert!(drills("all").expect("the catalogue").len() >= 29);
        let error = drills("kill-leader").expect_err("no such");
        assert!(error.message.contains("leader-kill") && error.code == crate::cli::exit::USAGE, "{}", error.message);
    }
}
