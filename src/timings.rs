//! Where the time of a verb went: from the stream of events to rows by stage, step and node.
//! `progress` hands it every event with the time since the verb began; `cli` prints the rows or puts them into its summary.
//! Pure: it has no clock and asks nobody, and what was not measured is not in it.

use crate::event::{Event, Stage};
use crate::spec::NodeName;
use std::time::Duration;

/// One step, on the clock of the verb that it was part of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Timing {
    pub stage: Stage,
    pub node: Option<NodeName>,
    pub step: String,
    pub began: Duration,
    pub took: Duration,
}

/// A stage from its first beginning to its last end: also one that is no list of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Span {
    pub stage: Stage,
    pub began: Duration,
    pub took: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timings {
    steps: Vec<Timing>,
    spans: Vec<Span>,
}

impl Timings {
    /// Ends are what counts: they say how long the thing took, and so when it began.
    pub fn take(&mut self, event: &Event, at: Duration) {
        match event {
            Event::StepFinished { stage, step, node, elapsed, .. } | Event::StepFailed { stage, step, node, elapsed, .. } => {
                let began = at.saturating_sub(*elapsed);
                self.steps.push(Timing { stage: *stage, node: node.clone(), step: step.clone(), began, took: *elapsed });
            }
            Event::StageFinished { stage, elapsed, .. } => {
                self.spans.push(Span { stage: *stage, began: at.saturating_sub(*elapsed), took: *elapsed });
            }
            _ => {}
        }
    }

    /// All steps, in the order of their beginnings.
    pub fn steps(&self) -> Vec<&Timing> {
        let mut steps: Vec<&Timing> = self.steps.iter().collect();
        steps.sort_by_key(|timing| timing.began);
        steps
    }

    /// One for each stage that something is known of, in the order of their beginnings. A stage may have been gone through more
    /// than once, and one that failed has steps and no end.
    pub fn stages(&self) -> Vec<Span> {
        let steps = self.steps.iter().map(|timing| Span { stage: timing.stage, began: timing.began, took: timing.took });
        let all: Vec<Span> = self.spans.iter().copied().chain(steps).collect();
        let mut stages: Vec<Span> = Stage::ALL
            .iter()
            .filter_map(|stage| {
                let own = || all.iter().filter(|span| span.stage == *stage);
                let began = own().map(|span| span.began).min()?;
                let end = own().map(|span| span.began + span.took).max()?;
                Some(Span { stage: *stage, began, took: end - began })
            })
            .collect();
        stages.sort_by_key(|span| span.began);
        stages
    }

    /// A line a stage, and below it a line for each step, with the node it was on.
    pub fn text(&self) -> String {
        let steps = self.steps();
        let mut text = format!("\n{:>8} {:>8}  stage\n{:>8} {:>8}    {:<14} step\n", "began", "took", "", "", "node");
        for span in self.stages() {
            text.push_str(&format!("{} {}  {}\n", seconds(span.began), seconds(span.took), span.stage));
            for timing in steps.iter().filter(|timing| timing.stage == span.stage) {
                let node = timing.node.as_ref().map_or_else(|| "cluster".to_owned(), NodeName::to_string);
                // Most steps of a node carry its name at their end.
                let step = timing.step.strip_suffix(&node).map_or(timing.step.as_str(), str::trim_end);
                text.push_str(&format!("{} {}    {node:<14} {step}\n", seconds(timing.began), seconds(timing.took)));
            }
        }
        text
    }
}

fn seconds(time: Duration) -> String {
    format!("{:>7.1}s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn stage(stage: Stage, elapsed: u64) -> Event {
        Event::StageFinished { stage, elapsed: ms(elapsed), changed: true }
    }

    fn step(stage: Stage, step: &str, node: Option<NodeName>, elapsed: u64) -> Event {
        Event::StepFinished { stage, step: step.to_owned(), node, elapsed: ms(elapsed), changed: true }
    }

    fn sample() -> Timings {
        let zero = NodeName::controller(0);
        let mut timings = Timings::default();
        for (at, event) in [
            (250, stage(Stage::Preflight, 240)),
            (260, Event::StageStarted { stage: Stage::Network }),
            (700, step(Stage::Network, "pools", None, 400)),
            (700, stage(Stage::Network, 400)),
            (2600, step(Stage::Machines, "start controller-0", Some(zero.clone()), 300)),
            (2650, step(Stage::Network, "base volume", None, 1900)),
            (2650, stage(Stage::Network, 1900)),
            (17_640, step(Stage::Machines, "ssh controller-0", Some(zero.clone()), 15_000)),
            (17_640, stage(Stage::Machines, 15_340)),
            (17_650, Event::Note { text: "keeping a golden snapshot".to_owned() }),
            (21_500, stage(Stage::Golden, 3_800)),
        ] {
            timings.take(&event, ms(at));
        }
        timings
    }

    #[test]
    fn a_stage_lasts_from_its_first_beginning_to_its_last_end() {
        let spans: Vec<(Stage, u64, u64)> =
            sample().stages().iter().map(|s| (s.stage, s.began.as_millis() as u64, s.took.as_millis() as u64)).collect();
        let expected = [
            (Stage::Preflight, 10, 240),
            (Stage::Network, 300, 2350),
            (Stage::Machines, 2300, 15_340),
            (Stage::Golden, 17_700, 3_800),
        ];
        assert_eq!(spans, expected);
    }

    #[test]
    fn the_table_names_stages_then_nodes_and_steps_in_the_order_of_their_beginnings() {
        let expected = "
   began     took  stage
                     node           step
    0.0s     0.2s  preflight
    0.3s     2.4s  network and volumes
    0.3s     0.4s    cluster        pools
    0.8s     1.9s    cluster        base volume
    2.3s    15.3s  machines
    2.3s     0.3s    controller-0   start
    2.6s    15.0s    controller-0   ssh
   17.7s     3.8s  golden snapshot
";
        assert_eq!(sample().text(), expected);
    }

    #[test]
    fn what_failed_counts_too_and_nothing_at_all_is_an_empty_table() {
        let mut timings = Timings::default();
        assert_eq!((timings.stages(), timings.steps().len()), (vec![], 0));
        let node = Some(NodeName::worker(1));
        let (stage, step, error) = (Stage::Workers, "ready worker-1".to_owned(), "not ready".to_owned());
        timings.take(&Event::StepFailed { stage, step, node, elapsed: ms(900), error }, ms(1000));
        assert_eq!(timings.stages(), [Span { stage, began: ms(100), took: ms(900) }]);
        assert!(timings.text().contains("    0.1s     0.9s    worker-1       ready\n"), "{}", timings.text());
    }

    /// What programs read: each row with these keys, durations as seconds and nanoseconds.
    #[test]
    fn a_row_keeps_its_shape_for_programs() {
        let timings = sample();
        let rows = serde_json::to_value(timings.steps()).expect("JSON");
        let began = serde_json::json!({ "secs": 2, "nanos": 640_000_000 });
        let took = serde_json::json!({ "secs": 15, "nanos": 0 });
        let row = serde_json::json!({
            "stage": "machines", "node": "controller-0", "step": "ssh controller-0", "began": began, "took": took,
        });
        assert_eq!(rows[3], row);
        let spans = serde_json::to_value(timings.stages()).expect("JSON");
        assert_eq!(spans[3]["stage"], "golden");
    }
}
