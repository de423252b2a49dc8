//! A report as text to read or JSON to parse; both are returned, nothing is printed.
//! `cli` calls it, with colour when its output is a terminal.
//! It reads nothing but the report, so that a saved one shows as it did when it was made.

use super::report::{Check, Report};
use crate::event::Verdict;
use crate::spec::NodeName;
use anstyle::{AnsiColor, Style};
use std::borrow::Cow;
use std::fmt::Write as _;

/// How much to show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Show {
    /// Every check on a line of its own, with its evidence.
    pub all: bool,
    /// With terminal colours.
    pub colour: bool,
}

/// The report as JSON, one object, indented, ending with a newline.
pub fn json(report: &Report) -> String {
    // A report holds text, numbers and enums only: there is nothing in it that JSON refuses.
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}

/// The table for a terminal, coloured: whoever prints it drops the colours where they are not wanted.
pub fn table(report: &Report) -> String {
    text(report, Show { all: false, colour: true })
}

/// A table by group. Nodes on which the same check passed share a line; whatever did not pass has its own, with evidence and hint; so has
/// a pass with a hint, which is one to look at.
pub fn text(report: &Report, show: Show) -> String {
    let rows = rows(&report.checks, show);
    let id = rows.iter().map(|row| row.id.chars().count()).max().unwrap_or(0);
    let who = rows.iter().map(|row| row.who.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    let mut group = None;
    for row in &rows {
        if group != Some(row.first.group) {
            group = Some(row.first.group);
            let _ = writeln!(out, "{}{}{}", bold(show), row.first.group, reset(show));
        }
        let verdict = row.first.verdict;
        let line = format!("{:id$}  {:who$}  {}", row.id, row.who, row.summary);
        let _ = writeln!(out, "  {}{verdict:7}{}  {}", paint(verdict, show), reset(show), line.trim_end());
        if verdict != Verdict::Pass || show.all {
            for line in row.first.evidence.lines() {
                let _ = writeln!(out, "             {line}");
            }
        }
        if let Some(hint) = &row.first.hint {
            let _ = writeln!(out, "             hint: {hint}");
        }
    }
    let verdict = report.verdict();
    let counts = [Verdict::Fail, Verdict::Unknown, Verdict::Pass].map(|verdict| (report.count(verdict), verdict));
    let counts: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, verdict)| format!("{n} {verdict}")).collect();
    let _ = writeln!(
        out,
        "{}{verdict}{}: {} in {:.1} s",
        paint(verdict, show),
        reset(show),
        if counts.is_empty() { "no checks".to_owned() } else { counts.join(", ") },
        report.elapsed.as_secs_f64()
    );
    out
}

struct Row<'a> {
    first: &'a Check,
    id: Cow<'a, str>,
    who: String,
    summary: Cow<'a, str>,
}

/// From this many on, checks of one node that are unknown for the same reason share a line.
const SAME_REASON: usize = 3;

/// Checks in the order of groups; within one, by id in the order in which ids first appear.
fn rows(checks: &[Check], show: Show) -> Vec<Row<'_>> {
    let mut ids: Vec<(super::Group, &str)> = Vec::new();
    for check in checks {
        if !ids.contains(&(check.group, check.id.as_str())) {
            ids.push((check.group, &check.id));
        }
    }
    ids.sort_by_key(|(group, _)| *group);
    let mut rows = Vec::new();
    let mut told: Vec<(&NodeName, &str)> = Vec::new();
    for (group, id) in ids {
        let same: Vec<&Check> = checks.iter().filter(|check| check.group == group && check.id == id).collect();
        let (passed, rest): (Vec<&Check>, Vec<&Check>) =
            same.into_iter().partition(|check| check.verdict == Verdict::Pass && check.hint.is_none() && !show.all);
        match passed.as_slice() {
            [] => {}
            [first, ..] if passed.iter().all(|check| check.summary == first.summary) => {
                rows.push(row(&passed, id, &first.summary))
            }
            // The summaries differ in figures: one of them, and whose it is.
            [first, ..] => {
                let whose = first.node.as_ref().map_or_else(|| "cluster".to_owned(), NodeName::to_string);
                rows.push(row(&passed, id, format!("{whose}: {}; …", first.summary)));
            }
        }
        for check in rest {
            let (1.., Some(node)) = (if show.all { 0 } else { same_reason(checks, check) }, &check.node) else {
                rows.push(row(&[check], id, &check.summary));
                continue;
            };
            let reason = (node, check.summary.as_str());
            if !told.contains(&reason) {
                told.push(reason);
                rows.push(row(&[check], format!("{} checks", same_reason(checks, check)), &check.summary));
            }
        }
    }
    rows
}

fn row<'a>(checks: &[&'a Check], id: impl Into<Cow<'a, str>>, summary: impl Into<Cow<'a, str>>) -> Row<'a> {
    Row { first: checks[0], id: id.into(), who: who(checks), summary: summary.into() }
}

/// How many checks of the same node are unknown for the same reason; 0 when they are too few to be drawn together.
fn same_reason(checks: &[Check], one: &Check) -> usize {
    let same = |check: &&Check| check.verdict == Verdict::Unknown && check.node == one.node && check.summary == one.summary;
    let count = if one.verdict == Verdict::Unknown && one.node.is_some() { checks.iter().filter(same).count() } else { 0 };
    if count < SAME_REASON { 0 } else { count }
}

/// `controller-0…2, worker-0`: runs of neighbours are drawn together.
fn who(checks: &[&Check]) -> String {
    let nodes: Vec<&NodeName> = checks.iter().filter_map(|check| check.node.as_ref()).collect();
    let mut runs: Vec<(NodeName, u8)> = Vec::new();
    for node in nodes {
        match runs.last_mut() {
            Some((first, last)) if first.role() == node.role() && last.checked_add(1) == Some(node.index()) => {
                *last = node.index()
            }
            _ => runs.push((node.clone(), node.index())),
        }
    }
    let shown =
        runs.iter().map(|(first, last)| if first.index() == *last { first.to_string() } else { format!("{first}…{last}") });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { "cluster".to_owned() } else { shown.join(", ") }
}

fn style(verdict: Verdict) -> Style {
    let colour = match verdict {
        Verdict::Pass => AnsiColor::Green,
        Verdict::Fail => AnsiColor::Red,
        Verdict::Unknown => AnsiColor::Yellow,
    };
    Style::new().fg_color(Some(colour.into()))
}

fn paint(verdict: Verdict, show: Show) -> String {
    if show.colour { style(verdict).render().to_string() } else { String::new() }
}

fn bold(show: Show) -> String {
    if show.colour { Style::new().bold().render().to_string() } else { String::new() }
}

fn reset(show: Show) -> &'static str {
    if show.colour { "\u{1b}[0m" } else { "" }
}
