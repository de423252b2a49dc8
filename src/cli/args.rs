//! The command line as clap types: verbs, flags, help texts.
//! `mod.rs` dispatches on `Verb`; each verb has a file of its own.
//! Nothing is decided here but what is optional.

use crate::snapshot::Name;
use crate::spec::{AccelChoice, ClusterName, NodeName, RawSpec};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

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

#[derive(Debug, Clone, Args)]
pub struct Up {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
    /// Keep no golden snapshot: `down --keep-golden` will have nothing to keep
    #[arg(long)]
    pub no_golden: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Down {
    /// Keep the golden snapshot that `up` took: the next `up` of the same cluster is a restore. What was written since is given up
    #[arg(long)]
    pub keep_golden: bool,
}

#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Print one file of one node: controller-0:/etc/containers/systemd/etcd.container
    #[arg(long, value_name = "NODE:PATH")]
    pub show: Option<String>,
    /// Print the JSON schema of the config file
    #[arg(long)]
    pub config_schema: bool,
}

/// What a cluster is to be. A config file says the same with the same words.
#[derive(Debug, Clone, Default, Args)]
pub struct SpecArgs {
    /// A file with these settings (TOML; flags win)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// etcd members, each a controller machine: 1, 3, 5 or 7 [default: 3]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub etcd: Option<u64>,
    /// How many of them run the control plane [default: all]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub control_planes: Option<u64>,
    /// Worker machines, 0 to 50 [default: 2]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub workers: Option<u64>,
    /// Machine network, a /24 [default: a free one]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<String>,
    /// No way out of the network, not even NAT
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub isolated: Option<bool>,
    /// Pod addresses, a /16 [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// Service addresses [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// Memory of a controller [default: 1280]
    #[arg(long, value_name = "MIB", value_parser = number, allow_negative_numbers = true)]
    pub controller_mem: Option<u64>,
    /// Memory of a worker [default: 1024]
    #[arg(long, value_name = "MIB", value_parser = number, allow_negative_numbers = true)]
    pub worker_mem: Option<u64>,
    /// Virtual CPUs of each machine [default: 1]
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    pub cpus: Option<u64>,
    /// Size of the etcd disk [default: 2]
    #[arg(long, value_name = "GIB", value_parser = number, allow_negative_numbers = true)]
    pub etcd_disk: Option<u64>,
    /// Size of the root disk [default: 10]
    #[arg(long, value_name = "GIB", value_parser = number, allow_negative_numbers = true)]
    pub root_disk: Option<u64>,
    /// auto: KVM if a guest has been seen to boot under it [default: auto]
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot this kernel instead of the image's (ELF vmlinux or bzImage)
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk for --kernel [default: none]
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub kernel_args: Option<String>,
}

/// What a flag wants a number for is judged later, with all other flags.
fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "accepted: a whole number, as in 3".to_owned())
}

/// A path as it is from anywhere: it is recorded with the cluster.
fn from_here(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl SpecArgs {
    pub fn raw(&self, cluster: Option<String>) -> RawSpec {
        RawSpec {
            cluster,
            etcd: self.etcd,
            control_planes: self.control_planes,
            workers: self.workers,
            subnet: self.subnet.clone(),
            isolated: self.isolated,
            pod_cidr: self.pod_cidr.clone(),
            service_cidr: self.service_cidr.clone(),
            controller_mem: self.controller_mem,
            worker_mem: self.worker_mem,
            cpus: self.cpus,
            etcd_disk: self.etcd_disk,
            root_disk: self.root_disk,
            accel: self.accel,
            kernel: self.kernel.as_deref().map(from_here),
            initrd: self.initrd.as_deref().map(from_here),
            kernel_args: self.kernel_args.clone(),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Not this host, but the cluster that is kept on it: what it will need soon
    #[arg(long)]
    pub running: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Stop {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
    /// Also where --node takes the quorum away
    #[arg(long, requires = "node")]
    pub force: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Start {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Pause {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
}

#[derive(Debug, Clone, Args)]
pub struct Resume {
    /// Only this machine
    #[arg(long, value_name = "NODE", value_parser = NodeName::parse)]
    pub node: Option<NodeName>,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

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
        #[arg(value_parser = Name::parse)]
        name: Name,
    },
}

#[derive(Debug, Clone, Args)]
pub struct SnapshotFork {
    #[arg(value_parser = Name::parse)]
    pub name: Name,
    /// What the new cluster is called
    #[arg(long = "as", value_name = "CLUSTER", value_parser = ClusterName::parse)]
    pub new: ClusterName,
}

#[derive(Debug, Clone, Args)]
pub struct SnapshotSave {
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
pub struct NodeArgs {
    #[command(subcommand)]
    pub what: NodeWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum NodeWhat {
    /// One more, or several; those that are there keep names and addresses. Etcd members join one after the other, as learners first
    Add(NodeAdd),
    /// Take one away: its pods moved, or its member removed, then its machine, disks and keys
    Remove(NodeRemove),
}

#[derive(Debug, Clone, Args)]
pub struct NodeAdd {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub count: u8,
    /// What they are for; an etcd member is a controller
    #[arg(long, value_enum, default_value_t = NodeRole::Worker)]
    pub role: NodeRole,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeRole {
    Worker,
    Etcd,
}

#[derive(Debug, Clone, Args)]
pub struct NodeRemove {
    #[arg(value_parser = NodeName::parse)]
    pub node: NodeName,
    /// Also where its pods cannot be moved in time, or nobody would make them anew
    #[arg(long)]
    pub force: bool,
    /// Show where the time went, by stage and node
    #[arg(long)]
    pub timings: bool,
    /// Leave out the final verify
    #[arg(long)]
    pub no_verify: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Output {
    /// Same as --format
    #[arg(short, value_enum)]
    pub output: Option<Format>,
}

#[derive(Debug, Clone, Args)]
pub struct Ssh {
    #[arg(value_parser = NodeName::parse)]
    pub node: NodeName,
    /// The command; quoted as given, run by the node's shell
    #[arg(last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Logs {
    /// A node (worker-0) or a component on all nodes (etcd, kube-apiserver, kubelet, …)
    pub what: String,
    /// Only this component, when WHAT is a node
    pub component: Option<String>,
    /// Go on as new lines come
    #[arg(long, short)]
    pub follow: bool,
    /// Last lines of each node
    #[arg(long, short = 'n', default_value_t = 200)]
    pub lines: u32,
    /// Since when, as journalctl takes it ("5 min ago")
    #[arg(long)]
    pub since: Option<String>,
}

/// Arguments for another program.
#[derive(Debug, Clone, Args)]
pub struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Kubeconfig {
    /// Merge it into $KUBECONFIG or ~/.kube/config and make it current
    #[arg(long)]
    pub merge: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Certs {
    #[command(subcommand)]
    pub what: Option<CertsWhat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum CertsWhat {
    /// All certificates, with names and days left
    List,
    /// Compare what is on the nodes with the plan, the CAs and the clock
    Check,
    /// New certificates for the keys there are, taken to the nodes one after the other and put into use
    Renew {
        /// Only those that end within so many days [default: all]
        #[arg(long, value_name = "DAYS")]
        within: Option<u16>,
        /// Show where the time went, by stage and node
        #[arg(long)]
        timings: bool,
        /// Leave out the final verify
        #[arg(long)]
        no_verify: bool,
    },
    /// Print a CA certificate as PEM: `ktcw-vm certs ca > ca.pem`
    Ca {
        #[arg(value_enum, default_value = "kubernetes")]
        which: CaName,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CaName {
    Kubernetes,
    Etcd,
    FrontProxy,
}

#[derive(Debug, Clone, Args)]
pub struct Proxy {
    /// Local address
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR:PORT")]
    pub listen: std::net::SocketAddr,
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
    #[arg(long, value_name = "SECONDS")]
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
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// What draws among equal targets [default: the clock; each report says it]
    #[arg(long)]
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
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
    /// Close the lab and leave the cluster as it is
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

#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub what: ImageWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ImageWhat {
    /// Build the guest image (does nothing when it is there)
    Build {
        /// Build again
        #[arg(long)]
        force: bool,
        /// Debian mirror [default: the one this machine uses]
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
    },
    /// Images here, with sizes and versions
    List {
        /// Every package and module in the guest image
        #[arg(long)]
        sbom: bool,
    },
    /// Remove images that neither this version nor a cluster kept here uses
    Prune,
}

#[derive(Debug, Clone, Args)]
pub struct SupportArgs {
    #[command(subcommand)]
    pub what: SupportWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum SupportWhat {
    /// Versions, plan, journal, reports, libvirt's definitions, consoles and the nodes' logs as a .tar.gz; keys and tokens are taken out
    Bundle {
        /// Where to write it [default: ./ktcw-support-<cluster>.tar.gz]
        file: Option<PathBuf>,
    },
}
