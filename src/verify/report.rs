//! What `verify` found, as plain data: one `Check` per question, each with its verdict, evidence and a command to type next.
//! The judges make it; `render`, `up`, drills and lab graders read it.
//! It knows no node, no clock and no terminal.

use crate::event::Verdict;
use crate::said::one_line;
use crate::spec::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What a check is about; the order is the one they are shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    Machines,
    Etcd,
    Apiserver,
    LeaderElection,
    Workers,
    Certificates,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Group::Machines => "machines",
            Group::Etcd => "etcd",
            Group::Apiserver => "apiserver",
            Group::LeaderElection => "leader election",
            Group::Workers => "workers",
            Group::Certificates => "certificates",
        })
    }
}

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Stable name of the question, such as `etcd.members`; the same on every node it is asked of.
    pub id: String,
    pub group: Group,
    /// The node it is about; `None`: the whole cluster.
    #[schemars(with = "Option<String>")]
    pub node: Option<NodeName>,
    pub verdict: Verdict,
    /// One line.
    pub summary: String,
    /// What was read, one fact a line; names the node it was read on.
    pub evidence: String,
    /// A command to type next, when the verdict is not `pass`, or the summary of one says what to look at.
    pub hint: Option<String>,
}

/// All checks of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    pub cluster: String,
    pub checks: Vec<Check>,
    /// How long the run took, in milliseconds.
    #[serde(rename = "elapsed_ms", with = "millis")]
    #[schemars(with = "u64")]
    pub elapsed: Duration,
}

impl Report {
    /// `Fail` when anything failed, `Pass` only when there are checks and all passed.
    pub fn verdict(&self) -> Verdict {
        verdict_of(self.checks.iter().map(|check| check.verdict))
    }
    /// How many checks came out as `verdict`.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }
    /// Checks that did not pass, in the order they are shown.
    pub fn problems(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.verdict != Verdict::Pass)
    }
}

/// The worst of several verdicts; of none at all it is `Unknown`, because nothing was seen.
pub(super) fn verdict_of(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    let mut all = Verdict::Unknown;
    for (i, verdict) in verdicts.into_iter().enumerate() {
        all = match (i, all, verdict) {
            (0, _, first) => first,
            (_, Verdict::Fail, _) | (_, _, Verdict::Fail) => Verdict::Fail,
            (_, Verdict::Unknown, _) | (_, _, Verdict::Unknown) => Verdict::Unknown,
            _ => Verdict::Pass,
        };
    }
    all
}

mod millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// A finding of a judge before it is filed under an id: verdict, one line, facts, what to type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub verdict: Verdict,
    pub summary: String,
    pub evidence: Vec<String>,
    pub hint: Option<String>,
    /// A pass that is to be looked at all the same.
    remark: bool,
}

impl Finding {
    pub fn new(verdict: Verdict, summary: impl Into<String>) -> Self {
        Self { verdict, summary: one_line(&summary.into()), evidence: Vec::new(), hint: None, remark: false }
    }
    pub fn pass(summary: impl Into<String>) -> Self {
        Self::new(Verdict::Pass, summary)
    }
    pub fn fail(summary: impl Into<String>) -> Self {
        Self::new(Verdict::Fail, summary)
    }
    pub fn unknown(summary: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, summary)
    }
    pub fn seen(mut self, facts: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(facts);
        self
    }
    /// What may be wrong with a pass, and cannot be told from what is right. It stays a pass, and is shown by itself with its hint.
    pub fn remark(mut self, what: &str) -> Self {
        if self.verdict == Verdict::Pass {
            self.summary = one_line(&format!("{}: {what}", self.summary));
            self.remark = true;
        }
        self
    }
    /// Kept only when the verdict is not `pass`, or there is a remark.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if self.verdict != Verdict::Pass || self.remark {
            self.hint = Some(hint.into());
        }
        self
    }
    pub fn file(self, group: Group, id: impl Into<String>, node: Option<&NodeName>) -> Check {
        Check {
            id: id.into(),
            group,
            node: node.cloned(),
            verdict: self.verdict,
            summary: self.summary,
            evidence: self.evidence.join("\n"),
            hint: self.hint,
        }
    }
}

/// `a, b and c`.
pub(super) fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.pop() {
        None => "none".to_owned(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Fail, Pass, Unknown};

    #[test]
    fn nothing_seen_is_unknown_and_one_failure_outweighs_everything() {
        for (verdicts, all) in [
            (&[][..], Unknown),
            (&[Pass], Pass),
            (&[Pass, Unknown, Pass], Unknown),
            (&[Unknown, Fail, Pass], Fail),
            (&[Fail, Unknown], Fail),
            (&[Unknown], Unknown),
        ] {
            assert_eq!(verdict_of(verdicts.iter().copied()), all, "{verdicts:?}");
        }
    }

    #[test]
    fn a_list_is_read_aloud() {
        assert_eq!(list(["a", "b", "c"]), "a, b and c");
        assert_eq!((list(["a"]), list(Vec::<&str>::new())), ("a".to_owned(), "none".to_owned()));
    }

    #[test]
    fn a_report_survives_json() {
        let check = Finding::fail("gone").seen(["a".to_owned(), "b".to_owned()]).hint("look").file(
            Group::Etcd,
            "etcd.members",
            Some(&NodeName::controller(1)),
        );
        let report = Report { cluster: "ktcw".to_owned(), checks: vec![check], elapsed: Duration::from_millis(1234) };
        let text = serde_json::to_string(&report).expect("serialises");
        assert!(text.contains(r#""elapsed_ms":1234"#) && text.contains(r#""verdict":"fail""#), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("parses back"), report);
    }
}
