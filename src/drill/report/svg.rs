//! The timeline and the latency plot, drawn as SVG text.
//! `html` puts them into the page; colours are classes of the page's style sheet.
//! It draws what the judge computed and decides nothing but places.

use super::Report;
use crate::drill::clock::{At, human};
use crate::drill::history::Outcome;
use crate::drill::record::Record;
use crate::drill::windows::Condition;
use std::fmt::Write as _;
use std::time::Duration;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 15.0;
const LANE: f64 = 26.0;
const TOP: f64 = 34.0;
/// Pixels of one bar of writes.
const BAR: f64 = 4.0;

/// Text as it may stand in a page.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

struct Scale {
    start: At,
    length: f64,
}

impl Scale {
    fn of(record: &Record) -> Scale {
        let (start, end) = (record.marks.baseline, record.marks.end);
        Scale { start, length: end.since(start).as_secs_f64().max(0.001) }
    }
    fn x(&self, at: At) -> f64 {
        let share = at.since(self.start).as_secs_f64() / self.length;
        LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
    }
    fn seconds(&self, at: At) -> f64 {
        at.since(self.start).as_secs_f64()
    }
}

fn class(condition: Condition) -> (&'static str, &'static str) {
    match condition {
        Condition::Leader => ("leader", "leads"),
        Condition::Follower => ("follower", "follows"),
        Condition::Learner => ("learner", "learns"),
        Condition::Leaderless => ("leaderless", "knows no leader"),
        Condition::Away => ("away", "does not answer"),
    }
}

/// Members as lanes, writes as bars, fault and heal as marks.
pub fn timeline(report: &Report) -> String {
    let record = &report.record;
    let scale = Scale::of(record);
    let lanes = report.judgement.lanes.len() as f64;
    let writes = TOP + lanes * LANE + 12.0;
    let bottom = writes + 60.0;
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"timeline of the run\" id=\"timeline\">\n",
        bottom + 30.0
    );
    for (i, lanes) in report.judgement.lanes.iter().enumerate() {
        let y = TOP + i as f64 * LANE;
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" class=\"name\">{}</text>",
            LEFT - 8.0,
            y + 15.0,
            escape(&record.member_name(i))
        );
        for lane in lanes {
            let (x, width) = (scale.x(lane.from), scale.x(lane.to) - scale.x(lane.from));
            let (class, does) = class(lane.condition);
            let term = if lane.condition == Condition::Away { String::new() } else { format!(" in term {}", lane.term) };
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\" class=\"{class}\"><title>{} {does}{term}, {:.2}–{:.2} s</title></rect>",
                LANE - 5.0,
                escape(&record.member_name(i)),
                scale.seconds(lane.from),
                scale.seconds(lane.to)
            );
            if lane.condition == Condition::Leader && width > 46.0 {
                let _ =
                    writeln!(out, "<text x=\"{:.1}\" y=\"{:.0}\" class=\"term\">term {}</text>", x + 5.0, y + 15.0, lane.term);
            }
        }
    }
    out.push_str(&bars(record, &scale, writes));
    out.push_str(&axis(&scale, bottom));
    out.push_str(&marks(report, &scale, bottom));
    out.push_str("</svg>");
    out
}

/// Writes by the moment they were begun: acknowledged above, others below.
fn bars(record: &Record, scale: &Scale, y: f64) -> String {
    let count = ((WIDTH - LEFT - RIGHT) / BAR).ceil() as usize;
    let mut bins = vec![(0u32, 0u32); count];
    for op in record.ops.iter().filter(|op| op.is_write() && op.inv >= scale.start) {
        let bin = ((scale.x(op.inv) - LEFT) / BAR) as usize;
        if let Some(bin) = bins.get_mut(bin.min(count - 1)) {
            if op.outcome == Outcome::Ok { bin.0 += 1 } else { bin.1 += 1 }
        }
    }
    let most = bins.iter().map(|(acked, other)| acked + other).max().unwrap_or(1).max(1);
    let mut out = format!("<text x=\"{:.0}\" y=\"{:.0}\" class=\"name\">writes</text>\n", LEFT - 8.0, y + 32.0);
    for (i, (acked, other)) in bins.iter().enumerate() {
        let x = LEFT + i as f64 * BAR;
        let (up, down) = (f64::from(*acked) / f64::from(most) * 48.0, f64::from(*other) / f64::from(most) * 48.0);
        if *acked > 0 {
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{up:.1}\" class=\"acked\"><title>{acked} acknowledged</title></rect>",
                y + 48.0 - up,
                BAR - 1.0
            );
        }
        if *other > 0 {
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{down:.1}\" class=\"failed\"><title>{other} failed or unknown</title></rect>",
                y + 48.0 - up - down,
                BAR - 1.0
            );
        }
    }
    out
}

/// Steps of an axis, at most.
const STEPS: f64 = 12.0;

fn axis(scale: &Scale, y: f64) -> String {
    // Of a run that is longer than any, as a damaged report may have it, in as many steps of whole ten minutes.
    let step = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0]
        .into_iter()
        .find(|step| scale.length / step <= STEPS)
        .unwrap_or_else(|| (scale.length / STEPS / 600.0).ceil() * 600.0);
    let mut out = format!("<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{y:.0}\" y2=\"{y:.0}\" class=\"axis\"/>\n", WIDTH - RIGHT);
    let mut second = 0.0;
    while second <= scale.length {
        let x = scale.x(scale.start.plus(Duration::from_secs_f64(second)));
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{:.0}\" class=\"tick\">{second} s</text>", y + 16.0);
        second += step;
    }
    out
}

fn marks(report: &Report, scale: &Scale, bottom: f64) -> String {
    let marks = report.record.marks;
    let leader = report.judgement.figures.new_leader.unwrap_or_default();
    let mut out = String::new();
    let all = [
        (marks.inject, "fault", 12.0),
        (leader, "new leader", 26.0),
        (marks.heal, "heal", 12.0),
        (marks.settled, "settled", 26.0),
    ];
    for (at, name, y) in all.into_iter().filter(|(at, ..)| *at != At::ZERO) {
        let x = scale.x(at);
        let class = name.replace(' ', "-");
        let _ = writeln!(out, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.0}\" y2=\"{bottom:.0}\" class=\"mark {class}\"/>");
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{y:.0}\" class=\"mark {class}\">{name} {:.2} s</text>",
            x + 4.0,
            scale.seconds(at)
        );
    }
    out
}

/// Latency of every write by the moment it was begun, on a logarithmic scale.
pub fn latency(report: &Report) -> String {
    let record = &report.record;
    let scale = Scale::of(record);
    let height = 220.0;
    // From a tenth of a millisecond to a minute.
    let y = |latency: Duration| {
        let decades = (latency.as_secs_f64().max(1e-4).log10() + 4.0) / (60f64.log10() + 4.0);
        height - decades.min(1.0) * (height - 20.0)
    };
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"latency of writes\" id=\"latency\">\n",
        height + 30.0
    );
    for latency in [1u64, 10, 100, 1000, 10_000].map(Duration::from_millis) {
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{:.1}\" y2=\"{:.1}\" class=\"grid\"/>",
            WIDTH - RIGHT,
            y(latency),
            y(latency)
        );
        let _ =
            writeln!(out, "<text x=\"{:.0}\" y=\"{:.1}\" class=\"name\">{}</text>", LEFT - 8.0, y(latency) + 4.0, human(latency));
    }
    for (class, wanted) in [("acked", true), ("failed", false)] {
        let mut path = String::new();
        for op in record.ops.iter().filter(|op| op.is_write() && op.inv >= scale.start && op.acked() == wanted) {
            let _ = write!(path, "M{:.1} {:.1}h2", scale.x(op.inv), y(op.latency()));
        }
        if !path.is_empty() {
            let _ = writeln!(out, "<path d=\"{path}\" class=\"dots {class}\"/>");
        }
    }
    out.push_str(&axis(&scale, height));
    out.push_str(&marks(report, &scale, height));
    out.push_str("</svg>");
    out
}
