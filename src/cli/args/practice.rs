//! Snapshots, drills, labs, the tour and the live view: what one does with a cluster that runs.
//! Their catalogues say which drills and labs there are, not these types.
//! Nothing is decided here but what is optional.

use super::Output;
use super::values::{number, within};
use crate::snapshot::Name;
use crate::spec::ClusterName;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub what: SnapshotWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotWhat {
    /// Suspend all machines, save memory and disks of each, let all go on
    Save(SnapshotSave),
    /// Snapshots as a tree, with age, size and which of them the cluster goes on from
    List(Output),
    /// Take all machines back to that moment, set their clocks, verify
    Restore {
        /// A name of `snapshot list`
        #[arg(value_parser = Name::parse)]
        name: Name,
        /// Leave out the final verify
        #[arg(long)]
        no_verify: bool,
    },
    /// A second cluster from its disks, beside the first and apart from it
    Fork(SnapshotFork),
    /// Remove one; those made after it stay
    Delete {
        /// A name of `snapshot list`
        #[arg(value_parser = Name::parse)]
        name: Name,
    },
}

#[derive(Debug, Clone, Args)]
pub struct SnapshotFork {
    /// A name of `snapshot list`
    #[arg(value_parser = Name::parse)]
    pub name: Name,
    /// What the new cluster is called
    #[arg(long = "as", value_name = "CLUSTER", value_parser = ClusterName::parse)]
    pub new: ClusterName,
}

#[derive(Debug, Clone, Args)]
pub struct SnapshotSave {
    /// What it is called: up to 40 of a-z, 0-9, '.', '_' and '-'
    #[arg(value_parser = Name::parse)]
    pub name: Name,
    /// What to remember about it
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub note: Option<String>,
    /// Save it although not every check passes
    #[arg(long, conflicts_with = "etcd_only")]
    pub force: bool,
    /// Only what etcd stores, as `etcdctl snapshot save` does: it outlives the machines
    #[arg(long)]
    pub etcd_only: bool,
}

#[derive(Debug, Clone, Args)]
pub struct DrillArgs {
    #[command(subcommand)]
    pub what: DrillWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum DrillWhat {
    /// The drills there are: what happens, whom it hits, what is expected
    List(DrillList),
    /// Run one, or all
    Run(DrillRun),
    /// Undo whatever drills have left, from the journal and from what is seen
    Heal,
    /// Show a run again, as text, JSON or a page; or two beside each other
    Report(DrillReport),
    /// Started by `run` beside itself: heals when that process has died
    #[command(hide = true)]
    Watch(DrillWatch),
}

#[derive(Debug, Clone, Args)]
pub struct DrillWatch {
    /// The run that is watched
    pub run: String,
    /// How long after its death
    #[arg(long, value_name = "SECONDS", value_parser = number)]
    pub after: u64,
}

#[derive(Debug, Clone, Args)]
pub struct DrillList {
    /// Only this one
    pub drill: Option<String>,
    /// Print the JSON schema of a drill file
    #[arg(long, conflicts_with = "drill")]
    pub schema: bool,
}

#[derive(Debug, Clone, Args)]
pub struct DrillRun {
    /// A name or number of `drill list`, `all`, or a file (./my-drill.toml)
    pub drill: String,
    /// Run it so many times and show how the figures spread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = |text: &str| within::<u32>(text, 1..=1000))]
    pub repeat: u32,
    /// What draws among equal targets [default: the clock; each report says it]
    #[arg(long, value_parser = number)]
    pub seed: Option<u64>,
    /// Expect something else: write_gap="2 s", leader=changes (keys as in `drill list`)
    #[arg(long = "gate", value_name = "KEY=VALUE")]
    pub gates: Vec<String>,
    /// Hit others: leader, follower, minority, majority, all-members, vip-holder, worker, …
    #[arg(long, value_name = "RULE")]
    pub target: Option<String>,
    /// Show every check, not only those that did not pass
    #[arg(long)]
    pub checks: bool,
}

#[derive(Debug, Clone, Args)]
pub struct DrillReport {
    /// Runs, as `drill run` named them, or report files [default: the last run]
    #[arg(value_name = "RUN")]
    pub runs: Vec<String>,
    /// Write one self-contained page beside the report
    #[arg(long)]
    pub html: bool,
    /// Two runs beside each other
    #[arg(long, conflicts_with = "html")]
    pub compare: bool,
    /// Print the JSON schema of a report
    #[arg(long, conflicts_with_all = ["runs", "html", "compare"])]
    pub schema: bool,
    /// With --schema: of what `drill run all` and --repeat print as JSON
    #[arg(long, requires = "schema")]
    pub series: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Top {
    /// Print one picture as plain text
    #[arg(long)]
    pub once: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Tour {
    /// The steps there are
    #[arg(long, conflicts_with = "step")]
    pub list: bool,
    /// Begin with this one [default: where you left off]
    #[arg(long, value_name = "N", value_parser = |text: &str| within::<u16>(text, 1..=9999))]
    pub step: Option<u16>,
}

#[derive(Debug, Clone, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    pub what: LabWhat,
    /// Your own labs besides the built-in ones: every *.toml in it (`lab list --schema` says what is in one)
    #[arg(long, global = true, value_name = "DIR")]
    pub labs: Option<PathBuf>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum LabWhat {
    /// The labs there are, what they need, and what you have done of them
    List(LabList),
    /// Save the cluster as snapshot lab-NAME, break it, tell the story
    Start(LabName),
    /// Look at what is asked for: points for each part, exit code 3 until all is done
    Check,
    /// The next hint
    Hint,
    /// Take the cluster back to where the lab began, and close the lab
    Reset(LabReset),
    /// The lab that is open: its story, the hints so far, the best score
    Status,
    /// How it is solved: each step with its reason and what to type
    Solution(LabSolution),
}

#[derive(Debug, Clone, Args)]
pub struct LabList {
    /// Print the JSON schema of a lab file
    #[arg(long)]
    pub schema: bool,
}

#[derive(Debug, Clone, Args)]
pub struct LabName {
    /// A name of `lab list`
    pub name: String,
}

#[derive(Debug, Clone, Args)]
pub struct LabReset {
    /// Close the lab and leave the cluster as it is, faults and all
    #[arg(long)]
    pub keep: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Clone, Args)]
pub struct LabSolution {
    /// A name of `lab list` [default: the lab that is open]
    pub name: Option<String>,
    /// Only the commands, for a shell; of the lab that is open
    #[arg(long, conflicts_with = "name")]
    pub commands: bool,
}
