//! The command line as clap types: verbs, flags, help texts. Below it a file for each kind of verb.
//! `mod.rs` dispatches on `Verb`; each verb has a file of its own there.
//! Nothing is decided here but what is optional.

mod cluster;
mod practice;
mod tools;
mod values;

pub use cluster::*;
pub use practice::*;
pub use tools::*;

use crate::spec::NodeName;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Kubernetes the container way, on real machines.
///
/// Raises a highly available cluster out of libvirt VMs, verifies it from inside every node, and keeps it for days.
///
/// Exit codes: 0 ok · 1 failed · 2 usage · 3 a check or drill failed · 4 drill invalid · 69 host not able · 75 cluster busy · 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "ktcw-vm", version, max_term_width = 110, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Cluster name [default: ktcw]
    #[arg(long, short, global = true, env = "KTCW_CLUSTER", hide_env_values = true)]
    pub cluster: Option<String>,
    /// libvirt to use, as in `virsh -c` [default: qemu:///system]
    #[arg(long, global = true, env = "KTCW_CONNECT", hide_env_values = true, value_name = "URI")]
    pub connect: Option<String>,
    /// What is printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Say more (-v: libvirt and SSH details, -vv: everything)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Answer questions with yes
    #[arg(long, short, global = true)]
    pub yes: bool,
    /// Where clusters are kept [default: $XDG_STATE_HOME/ktcw-vm]
    #[arg(long, global = true, env = "KTCW_STATE_DIR", hide_env_values = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

impl Cli {
    /// Whether a program reads what is printed.
    pub fn json(&self) -> bool {
        let own = match &self.verb {
            Verb::Status(output) | Verb::List(output) => output.output,
            Verb::Snapshot(SnapshotArgs { what: SnapshotWhat::List(output) }) => output.output,
            _ => None,
        };
        own.unwrap_or(self.global.format) == Format::Json
    }
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Raise the cluster, or bring it to what is asked; ends with verify
    Up(Up),
    /// Show everything `up` would make, touching nothing
    Plan(PlanArgs),
    /// Check the cluster from inside every node
    Verify,
    /// Remove the cluster: machines, disks, network, keys
    Down(Down),
    /// Switch the machines off in order: workers, control plane, then all etcd members together
    Stop(Stop),
    /// Switch the machines on together, bring everything back, verify
    Start(Start),
    /// Freeze all machines in one moment
    Pause(Pause),
    /// Let paused machines go on, with their clocks set
    Resume(Resume),
    /// Add nodes to the cluster, or take one away: machines, keys, and what others know of it
    Node(NodeArgs),
    /// The whole cluster in one moment, memory and disks: save, list, restore, delete
    Snapshot(SnapshotArgs),
    /// Nodes, roles, etcd leader and term, units, lease holders
    Status(Output),
    /// A live view of the whole cluster: machines, etcd, API servers, who holds what, what happened (q quits)
    Top(Top),
    /// All clusters kept here
    List(Output),
    /// A shell on a node, or one command
    Ssh(Ssh),
    /// The journal of a node or a component, merged by time
    Logs(Logs),
    /// The serial console of a node
    Console {
        #[arg(value_parser = NodeName::parse)]
        node: NodeName,
    },
    /// kubectl with the cluster's credentials
    #[command(disable_help_flag = true)]
    Kubectl(Passed),
    /// etcdctl with the cluster's endpoints and certificates
    #[command(disable_help_flag = true)]
    Etcdctl(Passed),
    /// Print the kubeconfig, or merge it into yours
    Kubeconfig(Kubeconfig),
    /// Certificates: list with expiry and names, check them on the nodes, or renew them
    Certs(Certs),
    /// Serve the API at a local address (127.0.0.1:6443)
    Proxy(Proxy),
    /// Break it on purpose, prove it, measure it, judge it
    Drill(DrillArgs),
    /// A guide through the running cluster: each step is explained, run on Enter, and looked at (--yes: without waiting)
    Tour(Tour),
    /// Something is broken, and you mend it: labs with hints, checks and a way back
    Lab(LabArgs),
    /// Guest images: build, list, prune
    Image(ImageArgs),
    /// What this host lacks, and what to install
    Doctor(DoctorArgs),
    /// What others need to help: everything about a cluster in one file, without its secrets
    Support(SupportArgs),
    /// Shell completions
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Commands of the README's blocks: up to a pipe, a redirection, a comment or whatever else is the shell's.
    fn commands(readme: &str) -> Vec<Vec<String>> {
        let fenced = readme.split("```").skip(1).step_by(2);
        let mut all = Vec::new();
        for line in fenced.flat_map(str::lines) {
            let line = line.split("  #").next().unwrap_or_default();
            for part in line.split("&&").flat_map(|part| part.split(['|', '&', '>', ')'])) {
                let Some((before, rest)) = part.split_once("ktcw-vm ") else { continue };
                if !before.trim().trim_start_matches('$').trim().is_empty() && !before.ends_with("$(") {
                    continue;
                }
                // Every second piece was quoted.
                let pieces = rest.split('"').enumerate();
                let words = pieces.flat_map(|(at, piece)| match at % 2 {
                    0 => piece.split_whitespace().map(str::to_owned).collect(),
                    _ => vec![piece.to_owned()],
                });
                all.push(std::iter::once("ktcw-vm".to_owned()).chain(words).collect());
            }
        }
        all
    }

    #[test]
    fn every_command_of_the_readme_is_one() {
        let all = commands(include_str!("../../README.md"));
        assert!(all.len() > 50, "{}", all.len());
        for words in all {
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{words:?}: {error}");
            }
        }
    }

    #[test]
    fn who_reads_is_known_by_either_flag() {
        for (words, json) in [
            (&["ktcw-vm", "up"][..], false),
            (&["ktcw-vm", "up", "--format", "json"], true),
            (&["ktcw-vm", "status", "-o", "json"], true),
            (&["ktcw-vm", "--format", "json", "list", "-o", "text"], false),
            (&["ktcw-vm", "snapshot", "list", "-ojson"], true),
        ] {
            assert_eq!(Cli::try_parse_from(words).expect("good words").json(), json, "{words:?}");
        }
    }
}
