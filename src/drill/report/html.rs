//! The report as one page that needs no network: style, drawings and tables in a single file.
//! `drill report --html` writes it.
//! The template is `templates/drill.html`; everything in it that comes from outside is escaped.

use super::text::{api_rows, five, latency, verdict};
use super::{Report, ReportError, svg};
use crate::drill::clock::human;
use crate::drill::judge::Result as Came;
use askama::Template;

#[derive(Template)]
#[template(path = "drill.html")]
struct Page<'a> {
    title: String,
    story: &'a str,
    verdict: &'static str,
    class: &'static str,
    reasons: &'a [String],
    facts: Vec<(&'static str, String)>,
    figures: Vec<Row>,
    /// A row a door: longest time without an answer on new connections, on a kept one, and of writes.
    api: Vec<(String, [String; 3])>,
    timeline: String,
    latency: String,
    checks: Vec<CheckRow>,
    notes: Vec<(String, String)>,
}

struct Row {
    name: &'static str,
    measured: String,
    expected: String,
}

struct CheckRow {
    verdict: String,
    id: String,
    title: String,
    seen: String,
    expected: String,
}

/// Makes the page.
pub fn html(report: &Report) -> Result<String, ReportError> {
    let (record, judgement) = (&report.record, &report.judgement);
    let targets: Vec<String> = record.chosen.nodes.iter().map(|node| node.to_string()).collect();
    let environment = &record.environment;
    let mut facts = vec![
        ("run", format!("{} · {}", record.run, record.started)),
        ("cluster", format!("{} · {} etcd members", environment.cluster, record.members.len())),
        ("target", format!("{} ({})", targets.join(", "), record.chosen.why)),
        ("seed", record.seed.to_string()),
        ("versions", format!("etcd {} · Kubernetes {}", judgement.etcd_version, or_none(&environment.kubernetes))),
        ("acceleration", environment.acceleration.clone()),
        (
            "timers",
            format!(
                "heartbeat {} ms, election {} ms, lease {} ms",
                environment.timing.heartbeat_ms, environment.timing.election_ms, environment.timing.lease_ms
            ),
        ),
        (
            "baseline",
            format!(
                "{} of {} writes acknowledged, median {}, 99 % within {}, one every {} a writer",
                record.baseline.acked,
                record.baseline.writes,
                human(record.baseline.p50),
                human(record.baseline.p99),
                human(record.baseline.interval)
            ),
        ),
        ("host", format!("load {:.1} on {} CPUs", environment.host_load, environment.host_cpus)),
    ];
    facts.extend(latency(report).map(|what| ("latency", format!("in what is expected: {what}"))));
    let check = |check: &crate::drill::invariants::Check| CheckRow {
        verdict: if check.waived { "waived".to_owned() } else { check.verdict.to_string() },
        id: check.id.clone(),
        title: check.title.clone(),
        seen: check.seen.clone(),
        expected: check.expected.clone().unwrap_or_default(),
    };
    let page = Page {
        title: format!("{}: {}", record.drill.name, record.drill.title),
        story: &record.drill.story,
        verdict: verdict(judgement.result),
        class: match judgement.result {
            Came::Pass => "pass",
            Came::Fail => "fail",
            Came::Invalid => "unknown",
        },
        reasons: &judgement.reasons,
        facts,
        figures: five(report).into_iter().map(|(name, measured, expected)| Row { name, measured, expected }).collect(),
        api: api_rows(report),
        timeline: svg::timeline(report),
        latency: svg::latency(report),
        checks: judgement.checks.iter().map(check).collect(),
        notes: record.notes.iter().map(|note| (format!("{:.3} s", note.at.seconds()), note.text.clone())).collect(),
    };
    page.render().map_err(|error| ReportError::Page(error.to_string()))
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
