//! Drills as data: what breaks, who is hit, under which load, for how long, and what is expected.
//! `drill list` and `drill run` read the built-in entries of `catalogue.toml`; a user's file has the same form and the same schema.
//! It decides nothing about a particular cluster: targets are chosen later, bounds are formulas.

use super::bound::Bound;
use super::refusal::{DELAY_MOST_MS, INTERVAL_LEAST_MS, INTERVAL_MOST_MS, LOSS_MOST, NAME_MOST, ROOM_MOST_MIB, problems};
use crate::near::meant;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// One drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// What it is called on the command line: lower-case words joined by '-', up to 63 characters.
    #[schemars(length(min = 1, max = NAME_MOST), regex(pattern = "^[a-z0-9-]+$"))]
    pub name: String,
    /// Number in the catalogue (`D01`), empty for users' own.
    #[serde(default)]
    pub id: String,
    pub title: String,
    /// What happens and what to learn from it.
    pub story: String,
    pub fault: Fault,
    pub target: Target,
    #[serde(default)]
    pub load: Load,
    /// How long the fault stays, once it is proven: half a second at least where members show it by their silence, or by an alarm.
    pub hold: Bound,
    #[serde(default)]
    pub expect: Expect,
    /// Fewest etcd members with which it makes sense.
    #[serde(default = "one")]
    pub min_members: u8,
    /// Fewest controllers with an API server: with one alone nobody takes over.
    #[serde(default)]
    pub min_control_planes: u8,
    #[serde(default)]
    pub min_workers: u8,
}

fn one() -> u8 {
    1
}

// Kinds without options have braces all the same: of one without them serde takes whatever else a file says, and passes over it.
/// What is done to the targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// The process dies and stays away until the heal.
    Kill { process: Process },
    /// The process is asked to end, and stays away until the heal.
    Stop { process: Process },
    /// SIGSTOP, then SIGCONT: connections stay open, nobody answers.
    Pause { process: Process },
    /// The hypervisor suspends the machine: its clock stops too.
    Freeze {},
    /// The plug is pulled; the heal powers on again.
    PowerOff {},
    /// Asks the leader to hand over to a follower.
    MoveLeader {},
    /// Each target in turn is stopped, started and awaited.
    RollingRestart {},
    /// The leader of the moment is killed and brought back, again and again.
    Flap { times: u8 },
    /// Packets are dropped.
    Cut {
        shape: Shape,
        #[serde(default)]
        ports: Ports,
    },
    /// Packets leave late or not at all: by up to 5 s, and half of them, for what proves and heals it comes by the same link.
    Slow {
        #[schemars(range(max = DELAY_MOST_MS))]
        delay_ms: u32,
        #[serde(default)]
        jitter_ms: u32,
        #[serde(default)]
        #[schemars(range(max = LOSS_MOST))]
        loss_percent: u8,
    },
    /// Writes to etcd's disk never return.
    StallDisk {},
    /// The store is filled to a quota set for the drill: so much above what it holds, up to 256 MiB, or less where the members'
    /// disks bear less.
    FillQuota {
        #[schemars(range(min = 1, max = ROOM_MOST_MIB))]
        room_mib: u32,
    },
    /// A member's machine is lost for good: it is removed, wiped, and joins again as a learner.
    ReplaceMember {},
    /// All data is lost; the cluster is restored from a snapshot taken just before. It wants `load.keys = "append"`.
    Restore {},
    /// The clock of the target jumps.
    SkewClock { seconds: i32 },
    /// The etcd server certificate of the target is replaced by one that runs out.
    ExpireCert { seconds: u32 },
}

impl Fault {
    /// The same on a store that holds so many bytes: a quota counts from there.
    pub fn on_a_store_of(&self, bytes: i64) -> Fault {
        match self {
            Fault::FillQuota { room_mib } => {
                let held = bytes.max(0).unsigned_abs().div_ceil(1 << 20);
                Fault::FillQuota { room_mib: room_mib.saturating_add(u32::try_from(held).unwrap_or(u32::MAX)) }
            }
            other => other.clone(),
        }
    }

    /// The process that is hit, where a single one is.
    pub fn process(&self) -> Option<Process> {
        match self {
            Fault::Kill { process } | Fault::Stop { process } | Fault::Pause { process } => Some(*process),
            _ => None,
        }
    }

    /// Fewest etcd members among which it can happen, whatever the drill says.
    pub fn min_members(&self) -> u8 {
        match self {
            Fault::MoveLeader {} | Fault::Cut { ports: Ports::Peer, .. } => 2,
            // With one of two gone there is nobody to elect another, or to take the member back.
            Fault::Flap { .. } | Fault::ReplaceMember {} => 3,
            _ => 1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Process {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
}

impl Process {
    /// Whether it runs on control planes, which not every etcd member has to be.
    pub fn of_control_plane(self) -> bool {
        matches!(self, Process::KubeApiserver | Process::KubeControllerManager | Process::KubeScheduler)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Process::Etcd => "etcd",
            Process::KubeApiserver => "kube-apiserver",
            Process::KubeControllerManager => "kube-controller-manager",
            Process::KubeScheduler => "kube-scheduler",
            Process::Kubelet => "kubelet",
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which links are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Between each target and everyone else, both ways.
    Isolate,
    /// What others send does not arrive at the target.
    Deaf,
    /// What the target sends does not arrive at others.
    Mute,
    /// Between the two targets only: everyone else sees both.
    Bridge,
    /// Between all members.
    SplitAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// etcd members among themselves (2380).
    #[default]
    Peer,
    /// etcd's clients (2379).
    Client,
}

/// Who is hit: chosen from what is observed at the start, never by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Leader,
    /// One follower, drawn by the seed.
    Follower,
    /// The leader and one follower, drawn by the seed.
    LeaderAndFollower,
    TwoFollowers,
    /// As many members as can go without losing quorum, drawn by the seed; the leader may be among them.
    Minority,
    /// As many members as it takes to lose quorum, drawn by the seed.
    Majority,
    AllMembers,
    /// The holder of kube-controller-manager's lease.
    ControllerManagerHolder,
    SchedulerHolder,
    /// The controller that carries the API's virtual address.
    VipHolder,
    /// One worker, drawn by the seed.
    Worker,
    /// The worker with most pods.
    BusiestWorker,
    /// All machines of the cluster.
    Everything,
}

impl Target {
    pub fn as_str(self) -> &'static str {
        match self {
            Target::Leader => "leader",
            Target::Follower => "follower",
            Target::LeaderAndFollower => "leader-and-follower",
            Target::TwoFollowers => "two-followers",
            Target::Minority => "minority",
            Target::Majority => "majority",
            Target::AllMembers => "all-members",
            Target::ControllerManagerHolder => "controller-manager-holder",
            Target::SchedulerHolder => "scheduler-holder",
            Target::VipHolder => "vip-holder",
            Target::Worker => "worker",
            Target::BusiestWorker => "busiest-worker",
            Target::Everything => "everything",
        }
    }

    /// The lease that whoever is hit holds.
    pub fn lease(self) -> Option<&'static str> {
        match self {
            Target::ControllerManagerHolder => Some("kube-controller-manager"),
            Target::SchedulerHolder => Some("kube-scheduler"),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// Milliseconds between the starts of two requests of one writer, 5 to 1000; the measured latency raises it on slow clusters.
    #[schemars(range(min = INTERVAL_LEAST_MS, max = INTERVAL_MOST_MS))]
    pub interval_ms: u32,
    /// Whether writers share a few keys, or each write has its own.
    pub keys: Keys,
    /// How long the load runs before the fault.
    pub baseline: Bound,
    /// Whether the Kubernetes API is probed as well.
    pub api: bool,
}

impl Default for Load {
    fn default() -> Load {
        Load { interval_ms: 25, keys: Keys::Registers, baseline: Bound::seconds(2.0), api: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keys {
    /// One register for the fail-over writer, one shared by all others.
    Registers,
    /// Every write makes a key: all of them can be counted after a restore, which forgets history.
    Append,
}

/// What is expected, as gates. What is not named here is not gated; the invariants hold for every drill.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Longest time without any acknowledged write, by whichever client.
    pub write_gap: Option<Bound>,
    /// Most requests that the fail-over writer may see fail (unknown outcomes count).
    pub failed_writes: Option<u32>,
    /// Longest time from the fault to a new leader.
    pub new_leader: Option<Bound>,
    /// What becomes of the leader while the fault is in force.
    pub leader: Option<LeaderFate>,
    /// Longest time from the heal until every member follows one leader.
    pub full_membership: Option<Bound>,
    /// Longest time from the heal to the first acknowledged write.
    pub first_write: Option<Bound>,
    /// Where no write may be acknowledged while the fault is in force. By members that it leaves without a majority none may, whatever
    /// is said here.
    pub no_acks: Option<NoAcks>,
    /// Alarm that the fault must raise, and the heal must clear.
    pub alarm: Option<String>,
    /// Longest time without an answer of the API, by the virtual address, on new connections.
    pub api_gap: Option<Bound>,
    /// Longest time until another holder renews the lease.
    pub takeover: Option<Bound>,
    /// Earliest and latest moment after the fault at which the target node stops being Ready.
    pub not_ready: Option<(Bound, Bound)>,
    /// Where serializable reads must be answered while the fault is in force, from however far in the past.
    pub serial_reads: Option<Where>,
    /// What becomes of the pods on the targets.
    pub pods: Option<PodFate>,
    /// Invariants that this drill breaks by its nature, by id.
    pub waive: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LeaderFate {
    /// Another member leads before the heal.
    Changes,
    /// The same member leads, at the same term.
    Stays,
    /// Nobody leads before the heal.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NoAcks {
    Anywhere,
    /// By the targets; others may.
    Targets,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Where {
    /// By every member.
    Everywhere,
    /// By the members that are not hit.
    Others,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PodFate {
    /// They run on: the same pods, not restarted.
    Stay,
    /// They die and are started again: the same pods, each restarted.
    Restart,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("there is no drill {name:?}{near}")]
    Unknown { name: String, near: String },
    #[error("cannot read the drill {path}: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("{path} is not a drill: {reason}")]
    Malformed { path: String, reason: String },
}

#[derive(Deserialize)]
struct File {
    drill: Vec<Drill>,
}

/// The built-in drills, in the order of the catalogue.
pub fn built_in() -> Result<Vec<Drill>, CatalogueError> {
    let file: Result<File, _> = toml::from_str(include_str!("catalogue.toml"));
    let malformed =
        |error: toml::de::Error| CatalogueError::Malformed { path: "catalogue.toml".to_owned(), reason: error.to_string() };
    Ok(file.map_err(malformed)?.drill)
}

/// Other names, under which people look for a drill. A hypervisor's throttle delays writes and not flushes, which are what etcd
/// waits for: the slow disk of this catalogue is one that stands still for a while.
const ALSO: [(&str, &str); 2] = [("slow-disk", "stalled-disk"), ("d40", "stalled-disk")];

/// A built-in drill by name, number or other name, or a user's by path (anything with a '/' or ending in `.toml`).
pub fn find(name: &str) -> Result<Drill, CatalogueError> {
    if name.contains('/') || name.ends_with(".toml") {
        return read(Path::new(name));
    }
    let all = built_in()?;
    let name = ALSO.iter().find(|(other, _)| name.eq_ignore_ascii_case(other)).map_or(name, |(_, known)| known);
    if let Some(drill) = all.iter().find(|drill| drill.name == name || drill.id.eq_ignore_ascii_case(name)) {
        return Ok(drill.clone());
    }
    let known = || all.iter().map(|drill| drill.name.as_str());
    let mut near = meant(name, known());
    if near.is_empty() {
        // A word in common may be what was meant.
        let words: Vec<&str> = name.split('-').filter(|word| word.len() > 3).collect();
        let alike: Vec<&str> = known().filter(|known| words.iter().any(|word| known.contains(word))).collect();
        near = if alike.is_empty() { String::new() } else { format!("; there are {}", alike.join(", ")) };
    }
    Err(CatalogueError::Unknown { name: name.to_owned(), near })
}

/// More than anybody writes about one drill.
const FILE_LIMIT: u64 = 256 << 10;

fn read(path: &Path) -> Result<Drill, CatalogueError> {
    let shown = path.display().to_string();
    let text =
        crate::given::text(path, FILE_LIMIT).map_err(|source| CatalogueError::Unreadable { path: shown.clone(), source })?;
    parse(&text).map_err(|reason| CatalogueError::Malformed { path: shown, reason })
}

/// Accepts a drill's text or says every problem that it can tell.
pub fn parse(text: &str) -> Result<Drill, String> {
    let drill: Drill = toml::from_str(text).map_err(|error| worded(&error))?;
    let mut problems = problems(&drill);
    match problems.len() {
        0 => Ok(drill),
        1 => Err(problems.remove(0)),
        _ => Err(format!("\n  - {}", problems.join("\n  - "))),
    }
}

/// What is wrong with a file, with its line. Of a kind of fault without options serde says that there are no fields, and there
/// is one.
pub fn worded(error: &toml::de::Error) -> String {
    let nothing = "; accepted: its type alone, this fault has no options";
    error.to_string().trim_end().replace(", there are no fields", nothing)
}

/// JSON schema of a user's drill file.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Drill)
}

#[cfg(test)]
mod tests;
