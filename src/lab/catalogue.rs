//! Labs as data: what is broken and on whom, what is checked and for how many points, hints in order, a solution in commands.
//! `lab list` and `lab start` read the built-in files of `labs/`; a user's file has the same form and the same schema.
//! It decides nothing about a particular cluster: who is hit is drawn later, by the rule that the file names.

use crate::drill::bound::Bound;
use crate::drill::catalogue::{Drill, Expect, Fault, Keys, Load, Target, worded};
use crate::drill::refusal::problems as drill_problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// One lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "ktcw-vm lab file")]
pub struct Lab {
    /// What it is called on the command line: up to 30 lower-case letters, digits and '-'.
    pub name: String,
    pub title: String,
    /// What the person who solves it is told: what is seen, not what was done.
    pub story: String,
    pub level: Level,
    /// How long it takes somebody who does it for the first time, 1 to 240.
    pub minutes: u16,
    #[serde(default)]
    pub needs: Needs,
    /// Who is hit, drawn from what is seen when it starts.
    pub hit: Target,
    /// Shown one by one, each saying more than the one before.
    pub hints: Vec<String>,
    /// What is broken, in this order. A lab that was cut off begins again from its snapshot.
    #[serde(rename = "fault")]
    pub faults: Vec<Step>,
    #[serde(rename = "check")]
    pub checks: Vec<Check>,
    #[serde(rename = "solution")]
    pub solution: Vec<Solved>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Beginner,
    Intermediate,
    Expert,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Beginner => "beginner",
            Level::Intermediate => "intermediate",
            Level::Expert => "expert",
        })
    }
}

impl Lab {
    /// Name of the snapshot that it goes back to: at most 34 characters of those that a snapshot's may have.
    pub fn snapshot(&self) -> String {
        format!("lab-{}", self.name)
    }

    /// Journal step of its faults.
    pub fn step(&self) -> String {
        format!("lab {}", self.name)
    }
}

/// The smallest cluster that it makes sense on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Needs {
    /// etcd members, 1 to 7.
    pub members: u8,
    pub workers: u8,
}

impl Default for Needs {
    fn default() -> Needs {
        Needs { members: 1, workers: 0 }
    }
}

impl Needs {
    /// What a cluster lacks, in words; `None`: nothing.
    pub fn lacking(&self, members: usize, workers: usize) -> Option<String> {
        let short = |what: &str, needs: u8, has: usize| {
            (has < usize::from(needs))
                .then(|| format!("{needs} {what}{}, the cluster has {has}", if needs == 1 { "" } else { "s" }))
        };
        short("etcd member", self.members, members).or_else(|| short("worker", self.workers, workers))
    }
}

/// Where a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum On {
    /// On this computer, with the cluster's `kubectl` and `etcdctl` at hand.
    #[default]
    Here,
    /// On every machine that is hit.
    Hit,
    /// On the first of them.
    First,
    /// On the controllers that are not hit.
    Others,
    /// On every etcd member.
    Members,
    ControlPlanes,
    Workers,
}

/// One thing that is broken: a script, a fault of a drill, or a certificate that has run out. One of the three.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it does, for who reads the file.
    pub does: String,
    #[serde(default)]
    pub on: On,
    /// A script for bash. It may run twice, and ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// What a drill does to who is hit, as in `drill list --schema`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Fault>,
    /// A row of the cluster's certificates (`apiserver-etcd-client`): on who is hit it ran out yesterday.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire: Option<String>,
    /// The script is ended after so many seconds, 1 to 300.
    #[serde(default = "minute")]
    pub seconds: u16,
}

/// One thing that is looked at. It changes nothing, may be asked at any time, and passes when its script exits 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What holds when it passes.
    pub what: String,
    /// 1 to 100. Where it is asked on several machines, each of them gives its part.
    pub points: u16,
    #[serde(default)]
    pub on: On,
    pub run: String,
    /// What the script must print besides, without white space at either end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prints: Option<String>,
    /// It holds before anything is done, or may, and has to hold in the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
    /// It is ended after so many seconds, 1 to 300.
    #[serde(default = "half_minute")]
    pub seconds: u16,
}

/// One step of the solution: why, and what to type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Solved {
    pub why: String,
    /// Commands for a shell, with words in braces for names of this cluster (`{hit}`, `{hit_ip}`, `{first}`, `{node}` …).
    #[serde(default)]
    pub run: Vec<String>,
    /// Once for each of these machines, which are then `{node}` and `{ip}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<On>,
}

fn minute() -> u16 {
    60
}

fn half_minute() -> u16 {
    30
}

/// Of every lab, in the order in which they are listed.
const BUILT_IN: [(&str, &str); 12] = [
    ("lost-quorum.toml", include_str!("../../labs/lost-quorum.toml")),
    ("scheduler-kubeconfig.toml", include_str!("../../labs/scheduler-kubeconfig.toml")),
    ("kube-proxy-rules.toml", include_str!("../../labs/kube-proxy-rules.toml")),
    ("clock-skew.toml", include_str!("../../labs/clock-skew.toml")),
    ("full-disk.toml", include_str!("../../labs/full-disk.toml")),
    ("nospace.toml", include_str!("../../labs/nospace.toml")),
    ("partitioned-leader.toml", include_str!("../../labs/partitioned-leader.toml")),
    ("expired-certificate.toml", include_str!("../../labs/expired-certificate.toml")),
    ("kubelet-certificate.toml", include_str!("../../labs/kubelet-certificate.toml")),
    ("wrong-peer-url.toml", include_str!("../../labs/wrong-peer-url.toml")),
    ("corrupt-member.toml", include_str!("../../labs/corrupt-member.toml")),
    ("restore-from-backup.toml", include_str!("../../labs/restore-from-backup.toml")),
];

/// No lab is longer: what goes on is no such file.
const FILE_LIMIT: u64 = 256 << 10;

/// All that is wrong with lab files, each line with its file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n       "))]
pub struct BadLabs(pub Vec<String>);

/// The built-in labs and those of a directory (each `*.toml` in it), or everything that is wrong with them.
pub fn labs(directory: Option<&Path>) -> Result<Vec<Lab>, BadLabs> {
    let (mut labs, mut wrong) = (Vec::new(), Vec::new());
    let mut take = |file: &str, text: Result<String, String>| match text.and_then(|text| parse(&text)) {
        Ok(lab) => labs.push((file.to_owned(), lab)),
        Err(problems) => wrong.extend(problems.lines().map(|line| format!("{file}: {line}"))),
    };
    BUILT_IN.iter().for_each(|(file, text)| take(file, Ok((*text).to_owned())));
    if let Some(directory) = directory {
        let shown = directory.display();
        match files(directory) {
            Ok(files) if files.is_empty() => wrong.push(format!("--labs: {shown} has no file that ends in .toml")),
            Ok(files) => files.iter().for_each(|path| take(&path.display().to_string(), read(path))),
            Err(error) => wrong.push(format!("--labs: {shown}: {error}")),
        }
    }
    let mut names = BTreeSet::new();
    for (file, lab) in &labs {
        if !names.insert(&lab.name) {
            wrong.push(format!("{file}: name: there is another lab {}", lab.name));
        }
    }
    if wrong.is_empty() { Ok(labs.into_iter().map(|(_, lab)| lab).collect()) } else { Err(BadLabs(wrong)) }
}

fn files(directory: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    crate::given::text(path, FILE_LIMIT).map_err(|error| error.to_string())
}

/// A lab as a file has it, or all that is wrong with it, a line each.
pub fn parse(text: &str) -> Result<Lab, String> {
    let lab: Lab = toml::from_str(text).map_err(|error| worded(&error))?;
    let problems = problems(&lab);
    if problems.is_empty() { Ok(lab) } else { Err(problems.join("\n")) }
}

/// Everything that the form alone does not refuse.
pub fn problems(lab: &Lab) -> Vec<String> {
    let mut problems = Vec::new();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = lab.name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || lab.name.len() > 30 || !lab.name.chars().all(fits) {
        problems.push(format!("name: {:?}; accepted: up to 30 of a-z, 0-9 and '-', beginning with a letter", lab.name));
    }
    let mut within = |field: String, value: u16, range: std::ops::RangeInclusive<u16>| {
        if !range.contains(&value) {
            problems.push(format!("{field}: {value}; accepted: {} to {}", range.start(), range.end()));
        }
    };
    within("minutes".to_owned(), lab.minutes, 1..=240);
    within("needs.members".to_owned(), lab.needs.members.into(), 1..=7);
    within("needs.workers".to_owned(), lab.needs.workers.into(), 0..=50);
    for (i, step) in lab.faults.iter().enumerate() {
        within(format!("fault {}: seconds", i + 1), step.seconds, 1..=300);
    }
    for (i, check) in lab.checks.iter().enumerate() {
        within(format!("check {}: points", i + 1), check.points, 1..=100);
        within(format!("check {}: seconds", i + 1), check.seconds, 1..=300);
    }
    let texts = [("title", &lab.title), ("story", &lab.story)].map(|(field, text)| (field.to_owned(), text));
    let hints = lab.hints.iter().enumerate().map(|(i, hint)| (format!("hint {}", i + 1), hint));
    let whys = lab.solution.iter().enumerate().map(|(i, step)| (format!("solution {}: why", i + 1), &step.why));
    let runs = lab.checks.iter().enumerate().map(|(i, check)| (format!("check {}: run", i + 1), &check.run));
    let whats = lab.checks.iter().enumerate().map(|(i, check)| (format!("check {}: what", i + 1), &check.what));
    for (field, text) in texts.into_iter().chain(hints).chain(whys).chain(runs).chain(whats) {
        if text.trim().is_empty() {
            problems.push(format!("{field}: it is empty"));
        }
    }
    let lists = [("hints", lab.hints.len()), ("fault", lab.faults.len()), ("check", lab.checks.len())];
    for (list, _) in lists.into_iter().filter(|(_, length)| *length == 0) {
        problems.push(format!("{list}: there is none; accepted: one or more"));
    }
    if lab.solution.iter().all(|step| step.run.iter().all(|line| line.trim().is_empty())) {
        problems.push("solution: there is no command in it".to_owned());
    }
    problems.extend(hit_problems(lab));
    for (i, step) in lab.faults.iter().enumerate() {
        problems.extend(step_problems(lab, step).into_iter().map(|problem| format!("fault {}: {problem}", i + 1)));
    }
    problems
}

/// Who is to be hit has to be there on the smallest cluster that the lab takes: at its start that would be known too late.
fn hit_problems(lab: &Lab) -> Vec<String> {
    let (members, workers) = least(lab.hit);
    let needs = [("members", lab.needs.members, members, 7), ("workers", lab.needs.workers, workers, 50)];
    let short = needs.into_iter().filter(|(_, has, least, _)| has < least);
    let whom = lab.hit.as_str();
    short.map(|(of, has, least, most)| format!("needs.{of}: {has}; accepted with hit = \"{whom}\": {least} to {most}")).collect()
}

/// Members and workers that there have to be for somebody to be hit.
fn least(hit: Target) -> (u8, u8) {
    match hit {
        Target::Follower | Target::LeaderAndFollower => (2, 0),
        Target::TwoFollowers | Target::Minority => (3, 0),
        Target::Worker | Target::BusiestWorker => (1, 1),
        Target::Leader
        | Target::Majority
        | Target::AllMembers
        | Target::ControllerManagerHolder
        | Target::SchedulerHolder
        | Target::VipHolder
        | Target::Everything => (1, 0),
    }
}

fn step_problems(lab: &Lab, step: &Step) -> Vec<String> {
    let kinds = [step.run.is_some(), step.drill.is_some(), step.expire.is_some()];
    if kinds.iter().filter(|there| **there).count() != 1 {
        return vec!["accepted: one of run, drill and expire".to_owned()];
    }
    if step.run.is_none() && step.on != On::Here {
        return vec!["on: drill and expire happen to who is hit; accepted: leave it out".to_owned()];
    }
    match &step.drill {
        // The name is judged as a lab's.
        Some(fault) => drill_problems(&Drill { name: "lab".to_owned(), ..as_drill(lab, fault.clone()) }),
        None => vec![],
    }
}

/// The drill that a fault would be one of: its rules about who may be hit are the lab's, and so is the draw.
pub fn as_drill(lab: &Lab, fault: Fault) -> Drill {
    Drill {
        name: lab.name.clone(),
        id: String::new(),
        title: lab.title.clone(),
        story: lab.story.clone(),
        fault,
        target: lab.hit,
        // A lab has no load of its own; this one goes with every fault.
        load: Load { keys: Keys::Append, ..Load::default() },
        hold: Bound::seconds(1.0),
        expect: Expect::default(),
        min_members: lab.needs.members,
        min_control_planes: 0,
        min_workers: lab.needs.workers,
    }
}

/// JSON schema of a user's lab file.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Lab)
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
