//! What happens, as values: stages, steps, waits, verdicts, leftovers.
//! `apply`, `verify` and drills send them; progress bars, JSON lines, the journal and reports read the same stream.
//! It knows no renderer and no clock: `progress` stamps what it writes.

use crate::spec::NodeName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The stages of `up`, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Preflight,
    Image,
    Keys,
    Network,
    Machines,
    Etcd,
    ControlPlane,
    Workers,
    Verify,
    Golden,
}

impl Stage {
    pub const ALL: [Stage; 10] = [
        Stage::Preflight,
        Stage::Image,
        Stage::Keys,
        Stage::Network,
        Stage::Machines,
        Stage::Etcd,
        Stage::ControlPlane,
        Stage::Workers,
        Stage::Verify,
        Stage::Golden,
    ];
    pub fn title(self) -> &'static str {
        match self {
            Stage::Preflight => "preflight",
            Stage::Image => "image",
            Stage::Keys => "keys and certificates",
            Stage::Network => "network and volumes",
            Stage::Machines => "machines",
            Stage::Etcd => "etcd",
            Stage::ControlPlane => "control plane",
            Stage::Workers => "workers",
            Stage::Verify => "verify",
            Stage::Golden => "golden snapshot",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// One thing that happened. `node` is `None` for what concerns the whole cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    StageStarted {
        stage: Stage,
    },
    StageFinished {
        stage: Stage,
        elapsed: Duration,
        changed: bool,
    },
    StepStarted {
        stage: Stage,
        step: String,
        node: Option<NodeName>,
        what: String,
    },
    /// What a wait saw last.
    StepStatus {
        stage: Stage,
        step: String,
        node: Option<NodeName>,
        status: String,
    },
    StepFinished {
        stage: Stage,
        step: String,
        node: Option<NodeName>,
        elapsed: Duration,
        changed: bool,
    },
    StepFailed {
        stage: Stage,
        step: String,
        node: Option<NodeName>,
        elapsed: Duration,
        error: String,
    },
    /// A verify check came out.
    Checked {
        check: String,
        node: Option<NodeName>,
        verdict: Verdict,
        evidence: String,
    },
    Note {
        text: String,
    },
}

/// Outcome of a check. A missing answer is `Unknown`, never `Pass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Unknown => "unknown",
        })
    }
}

/// Where events go. Cheap to clone; a closed receiver is not an error.
#[derive(Clone)]
pub struct Events(tokio::sync::mpsc::UnboundedSender<Event>);

impl Events {
    pub fn channel() -> (Events, tokio::sync::mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        (Events(sender), receiver)
    }
    /// For callers that want none.
    pub fn nowhere() -> Events {
        Events::channel().0
    }
    pub fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }
}
