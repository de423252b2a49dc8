//! `ktcw-vm logs NODE|COMPONENT`: journals of one node, of one component on all its nodes, or of one on one node, merged by time.
//! Each node's `journalctl -o json` is read over SSH; with `-f` lines are merged as they come (`merge`), with the clocks the nodes have.
//! It keeps no more than a small window of lines.

mod merge;

use super::args::{Format, Global, Logs};
use super::error::CliError;
use super::session::Session;
use super::{exit, render, signals};
use crate::guest::ssh::SshGuests;
use crate::guest::{Cmd, Exit, Guest, quote};
use crate::near::meant;
use crate::plan::{NodePlan, Plan};
use crate::said::{one_line, visible};
use crate::spec::NodeName;
use futures::future::join_all;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// One journal entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// Microseconds since the epoch, by the node's clock.
    at: u64,
    node: NodeName,
    unit: String,
    text: String,
}

impl Line {
    /// What it takes of our memory.
    fn bytes(&self) -> usize {
        size_of::<Line>() + self.unit.len() + self.text.len()
    }
}

/// In what `journalctl -o json` prints, all numbers are strings, and MESSAGE is an array of bytes when it is not text.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    at: String,
    #[serde(rename = "_SYSTEMD_UNIT", default)]
    unit: String,
    #[serde(rename = "SYSLOG_IDENTIFIER", default)]
    identifier: String,
    #[serde(rename = "MESSAGE", default)]
    message: serde_json::Value,
}

pub async fn run(global: &Global, args: &Logs) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let (nodes, unit) = choose(&session.plan, &args.what, args.other.as_deref())?;
    let guests = session.guests()?;
    let line = command(unit.as_deref(), args);
    let format = global.format;
    if args.follow { follow(&guests, &nodes, &line, format).await } else { once(&*guests, &nodes, &line, format).await }
}

/// Which nodes and which unit one or two words mean: a node, a component wherever it runs, or both, in either order.
fn choose(plan: &Plan, what: &str, other: Option<&str>) -> Result<(Vec<NodeName>, Option<String>), CliError> {
    let runs = |node: &NodePlan, unit: &str| node.units.iter().any(|u| u == unit);
    let (what, component) = match other {
        Some(other) if NodeName::parse(what).is_err() && NodeName::parse(other).is_ok() => (other, Some(what)),
        other => (what, other),
    };
    if let Ok(name) = NodeName::parse(what) {
        let node = plan.node(&name).ok_or_else(|| CliError::usage(format!("no node {name}; accepted: {}", words(plan))))?;
        let unit = component.map(unit);
        if let Some(unit) = &unit
            && !runs(node, unit)
        {
            return Err(CliError::usage(format!("{name} does not run {unit}; it runs {}", node.units.join(", "))));
        }
        return Ok((vec![name], unit));
    }
    let unit = unit(what);
    let nodes: Vec<NodeName> = plan.nodes.iter().filter(|node| runs(node, &unit)).map(|node| node.name.clone()).collect();
    if nodes.is_empty() {
        return Err(unknown(plan, what));
    }
    match component {
        None => Ok((nodes, Some(unit))),
        Some(word) if plan.nodes.iter().any(|node| runs(node, &self::unit(word))) => {
            Err(CliError::usage(format!("{what} and {word} are both components; accepted: one of them, or one and a node")))
        }
        Some(word) => Err(unknown(plan, word)),
    }
}

fn unit(name: &str) -> String {
    format!("{}.service", name.trim_end_matches(".service"))
}

fn unknown(plan: &Plan, word: &str) -> CliError {
    let all = words(plan);
    let meant = meant(word, all.split(", "));
    CliError::usage(format!("nothing here is called {word}; accepted: {all}{meant}"))
}

fn words(plan: &Plan) -> String {
    let mut units: Vec<&str> = plan.nodes.iter().flat_map(|n| &n.units).map(|u| u.trim_end_matches(".service")).collect();
    units.sort_unstable();
    units.dedup();
    let nodes: Vec<String> = plan.nodes.iter().map(|node| node.name.to_string()).collect();
    format!("{}, {}", nodes.join(", "), units.join(", "))
}

fn command(unit: Option<&str>, args: &Logs) -> String {
    let mut line = format!(
        "journalctl --no-pager --quiet -o json --output-fields=MESSAGE,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER -n {}",
        args.lines
    );
    if let Some(unit) = unit {
        line.push_str(&format!(" -u {}", quote(unit)));
    }
    if let Some(since) = &args.since {
        line.push_str(&format!(" --since {}", quote(since)));
    }
    if args.follow {
        line.push_str(" -f");
    }
    line
}

async fn once(guests: &dyn Guest, nodes: &[NodeName], line: &str, format: Format) -> Result<u8, CliError> {
    let asked = nodes.iter().map(|node| async move {
        let output = guests.run(node, Cmd { limit: 64 << 20, ..Cmd::new(line, Duration::from_secs(120)) }).await;
        (node.clone(), output)
    });
    let mut lines = Vec::new();
    let mut code = exit::OK;
    for (node, output) in join_all(asked).await {
        match output {
            Ok(output) => {
                if !output.ok() {
                    render::status(&failed(&node, output.exit, &one_line(&output.stderr_text())));
                    code = exit::FAILED;
                }
                lines.extend(output.stdout_text().lines().filter_map(|text| parse(&node, text)));
            }
            Err(error) => {
                render::status(&error.to_string());
                code = exit::FAILED;
            }
        }
    }
    lines.sort_by(|a, b| (a.at, &a.node).cmp(&(b.at, &b.node)));
    for line in &lines {
        render::print_line(&show(line, format));
    }
    Ok(code)
}

/// Why a journal could not be read, in one line; `said`: what journalctl said on its standard error.
fn failed(node: &NodeName, exit: Exit, said: &str) -> String {
    if said.is_empty() { format!("{node}: journalctl failed ({exit:?})") } else { format!("{node}: journalctl: {said}") }
}

/// Prints as lines come, and says why a node's do not come any more.
async fn follow(guests: &Arc<SshGuests>, nodes: &[NodeName], line: &str, format: Format) -> Result<u8, CliError> {
    let (sender, heard) = tokio::sync::mpsc::channel(256);
    let mut readers = tokio::task::JoinSet::new();
    for node in nodes {
        let (guests, name, line) = (guests.clone(), node.clone(), line.to_owned());
        readers.spawn(merge::reader(
            node.clone(),
            move |out, err| async move { guests.exec_stream(&name, &line, tokio::io::empty(), out, err).await },
            sender.clone(),
        ));
    }
    drop(sender);
    let mut interrupted = signals::interrupted();
    let stop = async {
        let _ = interrupted.changed().await;
    };
    let print = |line: &Line| render::printed(&format!("{}\n", show(line, format)));
    Ok(merge::merge(nodes, heard, stop, print, render::status).await.code())
}

fn parse(node: &NodeName, text: &str) -> Option<Line> {
    let entry: Entry = serde_json::from_str(text).ok()?;
    let unit = if entry.unit.is_empty() { entry.identifier.as_str() } else { entry.unit.trim_end_matches(".service") };
    let text = match entry.message {
        serde_json::Value::String(text) => text,
        serde_json::Value::Array(bytes) => {
            let bytes: Vec<u8> =
                bytes.iter().filter_map(serde_json::Value::as_u64).filter_map(|b| u8::try_from(b).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    };
    // A log may hold anything, also in the name that a program there has given itself.
    Some(Line { at: entry.at.parse().ok()?, node: node.clone(), unit: one_line(unit), text: visible(&text) })
}

/// As a line of words, or of JSON with the whole date.
fn show(line: &Line, format: Format) -> String {
    let at = i64::try_from(line.at).ok().and_then(|at| jiff::Timestamp::from_microsecond(at).ok());
    if format == Format::Json {
        return serde_json::json!({ "at": at, "node": line.node, "unit": line.unit, "message": line.text }).to_string();
    }
    let at = at.map_or_else(|| "-".to_owned(), |at| at.strftime("%H:%M:%S%.3f").to_string());
    format!("{at} {:<13} {:<24} {}", line.node.to_string(), line.unit, line.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_and_a_component_are_taken_in_either_order() {
        use crate::plan::{Accel, samples};
        let plan = samples::plan("ktcw", 3, 1, Accel::Tcg);
        let chosen = |what, other| choose(&plan, what, other).map_err(|error| error.message);
        let one = Ok((vec![NodeName::controller(1)], Some("etcd.service".to_owned())));
        assert_eq!(chosen("controller-1", Some("etcd")), one);
        assert_eq!(chosen("etcd", Some("controller-1")), one);
        assert_eq!(chosen("etcd", None).expect("runs").0.len(), 3);
        assert_eq!(chosen("worker-0", None), Ok((vec![NodeName::worker(0)], None)));
        for (node, component) in [("controller-9", "etcd"), ("worker-0", "etcd"), ("controller-0", "etdc")] {
            let said = chosen(node, Some(component)).expect_err(component);
            assert_eq!(chosen(component, Some(node)).expect_err(component), said);
        }
        assert!(chosen("etcd", Some("controller-9")).expect_err("no such").starts_with("no node controller-9; accepted: "));
        let slip = chosen("etcd", Some("controler-1")).expect_err("mistyped");
        assert!(slip.starts_with("nothing here is called controler-1; ") && slip.contains("did you mean controller-"), "{slip}");
        let both = "kubelet and etcd are both components; accepted: one of them, or one and a node";
        assert_eq!(chosen("kubelet", Some("etcd")).expect_err("two components"), both);
    }

    #[test]
    fn entries_are_read_with_text_and_with_bytes_and_never_control_the_terminal() {
        let node = NodeName::controller(1);
        let text = r#"{"__REALTIME_TIMESTAMP":"1700000000123456","_SYSTEMD_UNIT":"etcd.service","MESSAGE":"ready\u001b[31m"}"#;
        let line = parse(&node, text).expect("an entry");
        assert_eq!((line.at, line.unit.as_str(), line.text.as_str()), (1_700_000_000_123_456, "etcd", "ready\u{fffd}[31m"));
        assert_eq!(show(&line, Format::Text), "22:13:20.123 controller-1  etcd                     ready\u{fffd}[31m");
        assert_eq!(
            show(&line, Format::Json),
            r#"{"at":"2023-11-14T22:13:20.123456Z","message":"ready�[31m","node":"controller-1","unit":"etcd"}"#
        );
        let bytes = r#"{"__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"kernel","MESSAGE":[104,105]}"#;
        assert_eq!(parse(&node, bytes).map(|l| (l.unit, l.text)), Some(("kernel".into(), "hi".into())));
        let named = r#"{"__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"\u001b]0;mine\u0007sh","MESSAGE":"hi"}"#;
        assert_eq!(parse(&node, named).map(|line| line.unit).as_deref(), Some("]0;minesh"));
        assert_eq!(parse(&node, "garbage"), None);
    }
}
