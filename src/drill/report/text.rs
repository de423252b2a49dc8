//! The report as text: verdict, the five figures beside what was expected, a timeline of one line, what failed.
//! `cli` prints it; colours are its business.
//! It is pure and knows no terminal but a width.

use super::Report;
use crate::drill::clock::{At, human};
use crate::drill::history::Outcome;
use crate::drill::invariants::Check;
use crate::drill::judge::Result;
use crate::drill::kube::Door;
use crate::event::Verdict;
use std::fmt::Write as _;
use std::time::Duration;

/// The whole report. `all`: every check, not only those that did not pass.
pub fn text(report: &Report, all: bool) -> String {
    let (record, judgement) = (&report.record, &report.judgement);
    let mut out = String::new();
    let targets: Vec<String> = record.chosen.nodes.iter().map(|node| node.to_string()).collect();
    let id = if record.drill.id.is_empty() { String::new() } else { format!(" ({})", record.drill.id) };
    let environment = &record.environment;
    let timing = &environment.timing;
    let baseline = &record.baseline;
    let _ = writeln!(out, "{}{id}: {}", record.drill.name, record.drill.title);
    let _ = writeln!(out, "  target    {} ({}) · seed {}", targets.join(", "), record.chosen.why, record.seed);
    let _ = writeln!(
        out,
        "  cluster   {} · etcd {} · {} · election {} · host load {:.1} on {} CPUs",
        environment.cluster,
        judgement.etcd_version,
        environment.acceleration,
        human(timing.election()),
        environment.host_load,
        environment.host_cpus
    );
    let _ = writeln!(
        out,
        "  baseline  {} of {} writes acknowledged, median {}, 99 % within {}, one every {} a writer\n",
        baseline.acked,
        baseline.writes,
        human(baseline.p50),
        human(baseline.p99),
        human(baseline.interval)
    );
    let _ = writeln!(out, "  {}", verdict(judgement.result));
    for reason in &judgement.reasons {
        let _ = writeln!(out, "    {reason}");
    }
    let _ = writeln!(out, "\n  {:26} {:>12}  expected", "", "measured");
    for (name, measured, expected) in five(report) {
        let _ = writeln!(out, "  {name:26} {measured:>12}  {expected}");
    }
    if let Some(latency) = latency(report) {
        let _ = writeln!(out, "  {:26} {:>12}  latency is {latency}", "", "");
    }
    for line in api_table(report) {
        let _ = writeln!(out, "  {line}");
    }
    let _ = writeln!(out, "\n  {}\n", timeline(report, 72));
    let shown = |check: &&Check| all || (check.verdict != Verdict::Pass);
    for check in judgement.checks.iter().filter(shown) {
        let waived = if check.waived { " (not counted: this drill breaks it by its nature)" } else { "" };
        let _ = writeln!(out, "  {:7} {:13} {}: {}{waived}", check.verdict, check.id, check.title, check.seen);
    }
    let passed = judgement.checks.iter().filter(|check| check.verdict == Verdict::Pass).count();
    let _ = writeln!(out, "  {passed} of {} checks passed", judgement.checks.len());
    out
}

pub fn verdict(result: Result) -> &'static str {
    match result {
        Result::Pass => "PASS",
        Result::Fail => "FAIL",
        Result::Invalid => "INVALID: the run proves nothing",
    }
}

/// The five figures: name, measured, expected.
pub fn five(report: &Report) -> [(&'static str, String, String); 5] {
    let figures = &report.judgement.figures;
    let gate = |id: &str| {
        let check = report.judgement.checks.iter().find(|check| check.id == id);
        check.and_then(|check| check.expected.clone()).unwrap_or_else(|| "–".to_owned())
    };
    let us = |us: Option<u64>| us.map_or_else(|| "–".to_owned(), |us| human(Duration::from_micros(us)));
    let lost = figures.lost_acknowledged_writes.map_or_else(|| "unknown".to_owned(), |lost| lost.to_string());
    // A store that is restored is as old as its snapshot: nobody promised more, and nobody should overlook it.
    let lost = match figures.lost_after_snapshot {
        0 => lost,
        since => format!("{lost} (+{since} since the snapshot)"),
    };
    [
        ("longest write gap", human(figures.longest_write_gap.length()), gate("write-gap")),
        ("time to new leader", us(figures.time_to_new_leader_us), gate("new-leader")),
        ("time to full membership", us(figures.time_to_full_membership_us), gate("membership")),
        ("lost acknowledged writes", lost, "0".to_owned()),
        ("order of reads and writes", figures.checker.to_string(), "pass".to_owned()),
    ]
}

/// What "latency" stands for where a bound has it; `None`: no bound of this run does.
pub fn latency(report: &Report) -> Option<String> {
    let told = |expected: &String| expected.split_whitespace().any(|word| word.trim_end_matches(')') == "latency");
    let bound = report.judgement.checks.iter().filter_map(|check| check.expected.as_ref()).any(told);
    let ms = report.record.environment.timing.latency_ms;
    bound.then(|| format!("{ms} ms: 99 % of the baseline's writes took no longer; a tenth of an election at most"))
}

/// Longest times without an answer of the API, a row a door: on new connections, on a kept one, and of writes.
pub fn api_rows(report: &Report) -> Vec<(String, [String; 3])> {
    let windows = &report.judgement.figures.api;
    let doors: std::collections::BTreeSet<_> = windows.iter().map(|window| window.door.clone()).collect();
    let cell = |door: &Door, fresh: bool, write: bool| {
        let window = windows.iter().find(|w| w.door == *door && w.fresh == fresh && w.write == write);
        match window {
            None => "–".to_owned(),
            Some(window) if !window.back => format!("> {}", human(window.gap.length())),
            Some(window) => human(window.gap.length()),
        }
    };
    let row = |door: Door| {
        let cells = [cell(&door, true, false), cell(&door, false, false), cell(&door, false, true)];
        (door.to_string(), cells)
    };
    doors.into_iter().map(row).collect()
}

fn api_table(report: &Report) -> Vec<String> {
    let rows = api_rows(report);
    if rows.is_empty() {
        return vec![];
    }
    let head = format!("\n  {:26} {:>12} {:>12} {:>12}", "API without an answer for", "new conn.", "kept conn.", "writes");
    let line = |(door, [fresh, kept, write]): (String, [String; 3])| format!("{door:26} {fresh:>12} {kept:>12} {write:>12}");
    std::iter::once(head).chain(rows.into_iter().map(line)).collect()
}

/// The run in one line: how full of acknowledged writes each moment was, and the marks.
pub fn timeline(report: &Report, width: usize) -> String {
    let record = &report.record;
    let (start, end) = (record.marks.baseline, record.marks.end);
    let length = end.since(start).as_secs_f64();
    if length <= 0.0 || width == 0 {
        return "no timeline: the run ended before its load".to_owned();
    }
    let column = |at: At| ((at.since(start).as_secs_f64() / length * width as f64) as usize).min(width - 1);
    let (mut acked, mut tried) = (vec![0u32; width], vec![0u32; width]);
    for op in record.ops.iter().filter(|op| op.is_write() && op.inv >= start && op.inv <= end) {
        // By their start: an answer that came late does not make its moment a good one.
        let quick = op.latency() < Duration::from_millis(200).max(record.baseline.p99 * 5);
        if let Some(tried) = tried.get_mut(column(op.inv)) {
            *tried += 1;
        }
        if let Some(acked) = acked.get_mut(column(op.inv))
            && op.outcome == Outcome::Ok
            && quick
        {
            *acked += 1;
        }
    }
    let mut line: Vec<char> = acked
        .iter()
        .zip(&tried)
        .map(|(acked, tried)| match (acked, tried) {
            (_, 0) => ' ',
            (0, _) => '█',
            (acked, tried) if acked * 10 >= tried * 9 => '·',
            _ => '▒',
        })
        .collect();
    let marks = [(record.marks.settled, 'S'), (record.marks.heal, 'H'), (record.marks.inject, 'F')];
    let leader = report.judgement.figures.new_leader.map(|at| (at, 'L'));
    for (at, mark) in leader.into_iter().chain(marks).filter(|(at, _)| *at != At::ZERO) {
        if let Some(place) = line.get_mut(column(at)) {
            *place = mark;
        }
    }
    let line: String = line.into_iter().collect();
    format!("[{line}] {length:.1} s   F fault, L new leader, H heal, S settled; █ nothing acknowledged, ▒ some")
}
