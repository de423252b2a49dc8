//! Events made visible: bars on a terminal, plain lines elsewhere, one JSON object a line for programs.
//! `cli` gives it the receiving end of the event channel; it is the only user of `indicatif`.
//! It decides nothing, and reads no clock but to show how long a thing has taken.

use crate::event::{Event, Stage, Verdict};
use crate::spec::NodeName;
use crate::timings::Timings;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

/// How events are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One line a node, alive: what it is doing now and for how long.
    Bars,
    Lines,
    Json,
    /// Nothing (tests, verbs whose result is the output).
    Quiet,
}

impl Mode {
    /// JSON when asked for, bars when standard error is a terminal, else lines.
    pub fn choose(json: bool) -> Mode {
        if json {
            Mode::Json
        } else if std::io::stderr().is_terminal() && std::env::var_os("NO_PROGRESS").is_none() {
            Mode::Bars
        } else {
            Mode::Lines
        }
    }
}

/// Shows events until the channel closes; then says how long each of them took.
pub fn show(mode: Mode, mut events: UnboundedReceiver<Event>) -> JoinHandle<Timings> {
    tokio::spawn(async move {
        let begin = Instant::now();
        let mut timings = Timings::default();
        let mut bars = (mode == Mode::Bars).then(Bars::new);
        while let Some(event) = events.recv().await {
            timings.take(&event, begin.elapsed());
            match (mode, &mut bars) {
                (Mode::Json, _) => write_line(&mut std::io::stdout(), &json(&event, begin.elapsed())),
                (Mode::Bars, Some(bars)) => bars.take(&event),
                (Mode::Lines, _) => {
                    if let Some(line) = line(&event) {
                        write_line(&mut std::io::stderr(), &format!("{:>7.1}s  {line}", begin.elapsed().as_secs_f64()));
                    }
                }
                _ => {}
            }
        }
        if let Some(bars) = bars {
            bars.finish();
        }
        timings
    })
}

/// A closed pipe ends the showing, not the work.
fn write_line(to: &mut dyn Write, text: &str) {
    let _ = writeln!(to, "{text}");
    let _ = to.flush();
}

/// `{"at_ms": …, "event": …, …}`
fn json(event: &Event, at: Duration) -> String {
    let mut value = serde_json::to_value(event).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        for field in ["elapsed"] {
            if let Some(elapsed) = object.remove(field) {
                let seconds = elapsed.get("secs").and_then(serde_json::Value::as_u64).unwrap_or(0);
                let nanos = elapsed.get("nanos").and_then(serde_json::Value::as_u64).unwrap_or(0);
                object.insert(format!("{field}_ms"), (seconds * 1000 + nanos / 1_000_000).into());
            }
        }
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        object.insert("at_ms".to_owned(), at.into());
    }
    value.to_string()
}

/// The line for a log: beginnings of stages, ends of steps that changed something, failures.
fn line(event: &Event) -> Option<String> {
    let whole = |node: &Option<NodeName>| node.as_ref().map_or_else(|| "cluster".to_owned(), NodeName::to_string);
    Some(match event {
        Event::StageStarted { stage } => format!("── {stage}"),
        Event::StageFinished { stage, elapsed, changed } => {
            let changed = if *changed { "" } else { ", nothing changed" };
            format!("── {stage}: {:.1} s{changed}", elapsed.as_secs_f64())
        }
        Event::StepStarted { .. } => return None,
        Event::StepStatus { node, status, .. } => format!("{:<14} … {status}", whole(node)),
        Event::StepFinished { node, step, elapsed, changed: true, .. } => {
            format!("{:<14} ✓ {step} ({:.1} s)", whole(node), elapsed.as_secs_f64())
        }
        Event::StepFinished { .. } => return None,
        Event::StepFailed { node, step, error, .. } => format!("{:<14} ✗ {step}: {error}", whole(node)),
        Event::Checked { check, node, verdict, evidence } if *verdict != Verdict::Pass => {
            format!("{:<14} {verdict} {check}: {evidence}", whole(node))
        }
        Event::Checked { .. } => return None,
        Event::Note { text } => text.clone(),
    })
}

/// One bar for the cluster, one a node, made when first heard of.
struct Bars {
    all: MultiProgress,
    bars: BTreeMap<Option<NodeName>, (ProgressBar, Vec<String>)>,
    stages: BTreeSet<Stage>,
}

impl Bars {
    fn new() -> Bars {
        Bars { all: MultiProgress::new(), bars: BTreeMap::new(), stages: BTreeSet::new() }
    }

    /// Bars stay in the order of their nodes, the cluster's own first.
    fn bar(&mut self, node: &Option<NodeName>) -> &mut (ProgressBar, Vec<String>) {
        if !self.bars.contains_key(node) {
            let index = self.bars.range(..node.clone()).count();
            let bar = self.all.insert(index, ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("{spinner:.cyan} {prefix:<14} {elapsed:>5} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(node.as_ref().map_or_else(|| "cluster".to_owned(), NodeName::to_string));
            bar.enable_steady_tick(Duration::from_millis(120));
            self.bars.insert(node.clone(), (bar, Vec::new()));
        }
        self.bars.entry(node.clone()).or_insert_with(|| (ProgressBar::hidden(), Vec::new()))
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::StageStarted { stage } => {
                self.stages.insert(*stage);
            }
            Event::StageFinished { stage, elapsed, .. } => {
                self.stages.remove(stage);
                let _ = self.all.println(format!("  {:<22} {:>6.1} s", stage.title(), elapsed.as_secs_f64()));
            }
            Event::StepStarted { node, what, step, .. } => {
                let (bar, doing) = self.bar(node);
                doing.push(step.clone());
                bar.reset_elapsed();
                bar.set_message(what.clone());
            }
            Event::StepStatus { node, status, step, .. } => {
                self.bar(node).0.set_message(format!("{step}: {status}"));
            }
            Event::StepFinished { node, step, .. } => {
                let (bar, doing) = self.bar(node);
                doing.retain(|other| other != step);
                bar.set_message(doing.last().cloned().unwrap_or_else(|| format!("{step} ✓")));
            }
            Event::StepFailed { node, step, error, .. } => {
                let text = format!("✗ {step}: {error}");
                self.bar(node).0.set_message(text.clone());
                let _ = self.all.println(text);
            }
            Event::Checked { .. } => {
                if let Some(text) = line(event) {
                    let _ = self.all.println(text);
                }
            }
            Event::Note { text } => {
                let _ = self.all.println(text);
            }
        }
    }

    fn finish(self) {
        for (bar, _) in self.bars.values() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_has_its_time_and_milliseconds() {
        let event = Event::StageFinished { stage: Stage::Etcd, elapsed: Duration::from_millis(1234), changed: true };
        let value: serde_json::Value = serde_json::from_str(&json(&event, Duration::from_secs(2))).expect("JSON");
        assert_eq!(value["event"], "stage-finished");
        assert_eq!((&value["elapsed_ms"], &value["at_ms"]), (&1234.into(), &2000.into()));
    }

    #[test]
    fn plain_lines_name_the_node_and_hide_what_did_not_change() {
        let finished = |changed| Event::StepFinished {
            stage: Stage::Etcd,
            step: "etcd controller-0".into(),
            node: Some(NodeName::controller(0)),
            elapsed: Duration::from_secs(1),
            changed,
        };
        assert!(line(&finished(true)).is_some_and(|l| l.starts_with("controller-0")));
        assert_eq!(line(&finished(false)), None);
    }
}
