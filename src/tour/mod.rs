//! The guide through a running cluster, as data: steps that explain, the command of each, and what to look at.
//! `cli tour` shows and runs them; the list is `steps.toml`.
//! Pure: it runs nothing, and the names of a cluster are told.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Chapter: `etcd`, `the API`, …
    pub part: String,
    pub title: String,
    pub say: String,
    /// A line for bash, with words in braces for what is this cluster's.
    pub run: String,
    /// What to look at in what it printed.
    pub look: String,
    /// What it prints when the cluster is as it should be.
    pub shows: String,
    #[serde(default)]
    pub needs: Needs,
    /// It is ended after so many seconds.
    #[serde(default = "minute")]
    pub seconds: u16,
}

fn minute() -> u16 {
    60
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Needs {
    pub members: u8,
    pub workers: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    step: Vec<Step>,
}

/// Where somebody is: the number of the next step, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub next: u16,
}

/// All steps, in their order.
pub fn steps() -> Result<Vec<Step>, String> {
    toml::from_str::<File>(include_str!("steps.toml")).map(|file| file.step).map_err(|error| error.to_string())
}

impl Step {
    /// What a cluster lacks for it; `None`: nothing.
    pub fn lacking(&self, members: usize, workers: usize) -> Option<String> {
        let short = |what: &str, needs: u8, has: usize| {
            (has < usize::from(needs)).then(|| format!("it needs {needs} {what}{}", if needs == 1 { "" } else { "s" }))
        };
        short("etcd member", self.needs.members, members).or_else(|| short("worker", self.needs.workers, workers))
    }

    /// Its command with the words of a cluster.
    pub fn command(&self, words: &BTreeMap<&str, String>) -> String {
        words.iter().fold(self.run.trim_end().to_owned(), |line, (word, value)| line.replace(&format!("{{{word}}}"), value))
    }
}

/// The step to begin with, counted from 1: the one asked for, else where the last visit ended, else the first.
/// `Err`: what is wrong with what was asked for. `Ok(None)`: the tour is over.
pub fn begin(asked: Option<u16>, place: Option<Place>, steps: u16) -> Result<Option<u16>, String> {
    match (asked, place) {
        (Some(asked), _) if (1..=steps).contains(&asked) => Ok(Some(asked)),
        (Some(asked), _) => Err(format!("--step: {asked}; accepted: 1 to {steps}")),
        (None, Some(place)) if place.next > steps => Ok(None),
        (None, Some(place)) => Ok(Some(place.next.max(1))),
        (None, None) => Ok(Some(1)),
    }
}

/// What is kept of having come to a step: nothing of a tour that waits for nobody, as it is not where somebody is.
pub fn kept(next: u16, alone: bool) -> Option<Place> {
    (!alone).then_some(Place { next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> BTreeMap<&'static str, String> {
        WORDS.iter().map(|word| (*word, format!("/{word}"))).collect()
    }

    /// Those that `cli tour` knows.
    const WORDS: [&str; 7] = ["ca", "cert", "key", "vip", "member", "worker", "members_ip"];

    #[test]
    fn every_step_is_whole_and_its_command_is_shell() {
        let steps = steps().expect("parses");
        assert!(steps.len() >= 14, "{}", steps.len());
        for step in &steps {
            for text in [&step.part, &step.title, &step.say, &step.run, &step.look, &step.shows] {
                assert!(!text.trim().is_empty(), "{}", step.title);
            }
            assert!((1..=120).contains(&step.seconds), "{}", step.title);
            let line = step.command(&words());
            for word in WORDS {
                assert!(!line.contains(&format!("{{{word}}}")), "{line}");
            }
            let parsed = std::process::Command::new("bash").args(["-n", "-c", &line]).output().expect("bash");
            assert!(parsed.status.success(), "{line}");
        }
        let parts: Vec<&str> = steps.iter().map(|step| step.part.as_str()).collect();
        for part in ["etcd", "the API", "the components", "a write", "an election"] {
            assert!(parts.contains(&part), "{part} is missing");
        }
    }

    /// Each column that one is told to look at is one that the command asks for.
    #[test]
    fn what_is_to_be_looked_at_in_the_leases_is_shown() {
        let step = steps().expect("parses").into_iter().find(|step| step.run.contains("get lease")).expect("the leases");
        for (column, field) in [("HOLDER", ".spec.holderIdentity"), ("RENEWED", ".spec.renewTime")] {
            assert!(step.look.contains(column) && step.run.contains(&format!("{column}:{field}")), "{column}");
        }
    }

    #[test]
    fn it_goes_on_where_it_was_left() {
        let at = |next| Some(Place { next });
        assert_eq!(begin(None, None, 14), Ok(Some(1)));
        assert_eq!(begin(None, at(5), 14), Ok(Some(5)));
        assert_eq!(begin(None, at(0), 14), Ok(Some(1)));
        assert_eq!(begin(None, at(15), 14), Ok(None));
        assert_eq!(begin(Some(3), at(15), 14), Ok(Some(3)));
        assert_eq!((kept(5, false), kept(15, true)), (at(5), None));
        assert_eq!(begin(Some(15), None, 14), Err("--step: 15; accepted: 1 to 14".to_owned()));
    }

    #[test]
    fn what_a_cluster_lacks_is_said() {
        let step = steps().expect("parses").into_iter().find(|step| step.needs.members == 3).expect("the election");
        assert_eq!(step.lacking(1, 0).as_deref(), Some("it needs 3 etcd members"));
        assert_eq!(step.lacking(3, 0), None);
    }
}
