//! `ktcw-vm drill list`: every drill with its story, whom it hits, for how long, and what is expected.
//! It needs no cluster: bounds are shown as the formulas they are.
//! The keys it shows are those that `--gate` takes.

use super::choose::drills;
use crate::cli::args::{DrillList, Format, Global};
use crate::cli::error::CliError;
use crate::cli::{exit, render};
use crate::drill::catalogue::{Drill, schema};
use serde_json::Value;

/// What bounds are made of.
const UNITS: &str = "election, heartbeat, lease, retry, vip, grace and boot are the cluster's own timers; latency is what 99 % of writes take\n\
                     before the fault, a tenth of an election at most";

pub fn list(global: &Global, args: &DrillList) -> Result<u8, CliError> {
    if args.schema {
        render::print_line(&serde_json::to_string_pretty(&schema()).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    let drills = drills(args.drill.as_deref().unwrap_or("all"))?;
    match global.format {
        Format::Json => render::print_line(&serde_json::to_string_pretty(&drills).map_err(CliError::failed)?),
        Format::Text => {
            let texts: Vec<String> = drills.iter().map(text).collect();
            render::print(&format!("{}\n{UNITS}\n", texts.join("\n")));
        }
    }
    Ok(exit::OK)
}

fn text(drill: &Drill) -> String {
    let id = if drill.id.is_empty() { String::new() } else { format!(" ({})", drill.id) };
    let story: Vec<&str> = drill.story.split_whitespace().collect();
    let needs = [(drill.min_members, "member"), (drill.min_control_planes, "control plane"), (drill.min_workers, "worker")];
    // One member and one control plane are there always, and a worker is not.
    let needs = needs.iter().filter(|(count, what)| *count > u8::from(*what != "worker"));
    let needs: Vec<String> = needs.map(|(n, what)| format!("{n} {what}{}", if *n == 1 { "" } else { "s" })).collect();
    let needs = if needs.is_empty() { String::new() } else { format!("; needs {}", needs.join(" and ")) };
    let mut out = format!("{}{id}: {}\n", drill.name, drill.title);
    for line in wrapped(&story, 110) {
        out.push_str(&format!("    {line}\n"));
    }
    out.push_str(&format!("    hits      {}, for {}{needs}\n", word(&drill.target), drill.hold));
    out.push_str(&format!("    expects   {}\n", expectation(drill).join(" · ")));
    out
}

fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// What is gated, as `key value`; the invariants hold for every drill and are not listed.
fn expectation(drill: &Drill) -> Vec<String> {
    let expect = serde_json::to_value(&drill.expect).unwrap_or_default();
    let shown = |(key, value): (&String, &Value)| match value {
        Value::Null => None,
        Value::Array(all) if all.is_empty() => None,
        Value::Array(all) => {
            let all: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
            Some(format!("{key} {}", all.join(if key == "not_ready" { " … " } else { ", " })))
        }
        Value::String(text) if text.starts_with(|c: char| c.is_ascii_digit()) => Some(format!("{key} ≤ {text}")),
        Value::String(text) => Some(format!("{key} {text}")),
        other => Some(format!("{key} ≤ {other}")),
    };
    expect.as_object().into_iter().flatten().filter_map(shown).collect()
}

fn wrapped(words: &[&str], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push((*word).to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drill_is_explained_with_its_expectation() {
        for drill in drills("all").expect("the catalogue") {
            let text = text(&drill);
            assert!(text.lines().all(|line| line.chars().count() <= 400), "{text}");
            assert!(!expectation(&drill).is_empty(), "{} expects nothing", drill.name);
            assert!(text.contains(&format!("for {}", drill.hold)), "{text}");
        }
        let kill = text(&drills("leader-kill").expect("there")[0]);
        assert!(kill.contains("; needs 3 members\n"), "{kill}");
        let one = |name: &str| text(&drills(name).expect("there")[0]);
        assert!(one("kubelet-stop").contains("; needs 1 worker\n") && !one("blackout").contains("needs"));
        assert!(one("control-plane-power-off").contains("; needs 3 members and 2 control planes\n"));
        assert!(kill.contains("write_gap ≤ 3 election + 10 latency") && kill.contains("leader changes"), "{kill}");
    }
}
