//! The words of a script: acts that change something, rules for packets, and claims that must be seen.
//! Scripts are made of them, injectors and `admin` carry them out, the journal keeps them.
//! They are names only: nothing here does or decides anything.

use super::bound::Timing;
use super::catalogue::{Ports, Process};
use crate::spec::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// One effect. All are idempotent: what is already so stays so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "act", rename_all = "kebab-case")]
pub enum Act {
    /// Ends a process, at once or in order, and keeps its supervisor from bringing it back.
    Down {
        #[schemars(with = "String")]
        node: NodeName,
        process: Process,
        graceful: bool,
    },
    Start {
        #[schemars(with = "String")]
        node: NodeName,
        process: Process,
    },
    Pause {
        #[schemars(with = "String")]
        node: NodeName,
        process: Process,
    },
    Continue {
        #[schemars(with = "String")]
        node: NodeName,
        process: Process,
    },
    /// Drops packets on `node`, in its own kernel.
    Cut {
        #[schemars(with = "String")]
        node: NodeName,
        rules: Vec<Rule>,
    },
    Uncut {
        #[schemars(with = "String")]
        node: NodeName,
    },
    Slow {
        #[schemars(with = "String")]
        node: NodeName,
        delay_ms: u32,
        jitter_ms: u32,
        loss_percent: u8,
    },
    Unslow {
        #[schemars(with = "String")]
        node: NodeName,
    },
    StallDisk {
        #[schemars(with = "String")]
        node: NodeName,
    },
    UnstallDisk {
        #[schemars(with = "String")]
        node: NodeName,
    },
    Suspend {
        #[schemars(with = "String")]
        node: NodeName,
    },
    Resume {
        #[schemars(with = "String")]
        node: NodeName,
    },
    PowerOff {
        #[schemars(with = "String")]
        node: NodeName,
    },
    PowerOn {
        #[schemars(with = "String")]
        node: NodeName,
    },
    SkewClock {
        #[schemars(with = "String")]
        node: NodeName,
        seconds: i32,
    },
    /// Sets the clock to the host's.
    SetClock {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Restarts etcd with another quota; `None`: its own again.
    Quota {
        #[schemars(with = "String")]
        node: NodeName,
        mib: Option<u32>,
    },
    ExpireCert {
        #[schemars(with = "String")]
        node: NodeName,
        seconds: u32,
    },
    RenewCert {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Removes the data of a member that is down.
    Wipe {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Starts a wiped member as a joiner of the existing cluster.
    StartJoining {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Restores the snapshot on members that are down and have no data; nothing is done when all have theirs.
    RestoreData {
        #[schemars(with = "Vec<String>")]
        nodes: Vec<NodeName>,
        /// File on the host.
        snapshot: String,
    },
    // The rest is asked of etcd itself.
    MoveLeader {
        #[schemars(with = "String")]
        from: NodeName,
        #[schemars(with = "String")]
        to: NodeName,
    },
    RemoveMember {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Adds a removed member as a learner, lets it join and promotes it when it has caught up.
    Rejoin {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Writes until etcd refuses for want of space.
    Fill,
    /// Compacts, defragments every member and disarms the alarm.
    FreeSpace,
    SaveSnapshot {
        /// File on the host.
        snapshot: String,
    },
    /// Kills the leader of the moment, awaits the next, brings it back: so many times.
    Flap { times: u8 },
    /// Waits until every member follows one leader.
    AwaitHealthy,
    /// Waits a while: etcd refuses changes of membership on a cluster that has not been healthy for 5 s.
    Rest { ms: u32 },
}

impl Act {
    /// Machines that it touches; none for what is asked of etcd itself.
    pub fn nodes(&self) -> Vec<&NodeName> {
        match self {
            Act::Down { node, .. }
            | Act::Start { node, .. }
            | Act::Pause { node, .. }
            | Act::Continue { node, .. }
            | Act::Cut { node, .. }
            | Act::Uncut { node }
            | Act::Slow { node, .. }
            | Act::Unslow { node }
            | Act::StallDisk { node }
            | Act::UnstallDisk { node }
            | Act::Suspend { node }
            | Act::Resume { node }
            | Act::PowerOff { node }
            | Act::PowerOn { node }
            | Act::SkewClock { node, .. }
            | Act::SetClock { node }
            | Act::Quota { node, .. }
            | Act::ExpireCert { node, .. }
            | Act::RenewCert { node }
            | Act::Wipe { node }
            | Act::StartJoining { node }
            | Act::RemoveMember { node }
            | Act::Rejoin { node } => vec![node],
            Act::RestoreData { nodes, .. } => nodes.iter().collect(),
            Act::MoveLeader { from, to } => vec![from, to],
            Act::Fill | Act::FreeSpace | Act::SaveSnapshot { .. } | Act::Flap { .. } | Act::AwaitHealthy | Act::Rest { .. } => {
                vec![]
            }
        }
    }

    /// How long it may take on a cluster that is not broken otherwise: what a timer that heals must allow for.
    pub fn allowance(&self, timing: &Timing) -> Duration {
        let (election, boot) = (timing.election(), Duration::from_millis(timing.boot_ms));
        let question = election.max(Duration::from_secs(1)) * 2;
        match self {
            // A kill, an election, a start, and the member back: seconds each, and more where elections are slow.
            Act::Flap { times } => (election * 5 + Duration::from_secs(10)) * u32::from(*times),
            Act::AwaitHealthy => (election * 20).max(boot),
            Act::Rest { ms } => Duration::from_millis(u64::from(*ms)),
            Act::ExpireCert { seconds, .. } => Duration::from_secs(u64::from(*seconds)) + question * 5,
            // A leader with watches open waits for them before it goes.
            Act::Down { graceful: true, .. } => question + Duration::from_secs(10),
            Act::Fill | Act::FreeSpace | Act::SaveSnapshot { .. } | Act::RestoreData { .. } | Act::Rejoin { .. } => {
                Duration::from_secs(30) + election * 20
            }
            _ => question,
        }
    }

    /// Whether undoing by it takes more than the node has that it is about: libvirt, other members, or a file of this computer.
    /// No timer in a guest can do it.
    pub fn needs_the_host(&self) -> bool {
        matches!(
            self,
            Act::Resume { .. }
                | Act::PowerOn { .. }
                | Act::Quota { .. }
                | Act::RestoreData { .. }
                | Act::MoveLeader { .. }
                | Act::RemoveMember { .. }
                | Act::Rejoin { .. }
                | Act::FreeSpace
        )
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Down { node, process, graceful: true } => write!(f, "stop {process} on {node}"),
            Act::Down { node, process, graceful: false } => write!(f, "kill {process} on {node}"),
            Act::Start { node, process } => write!(f, "start {process} on {node}"),
            Act::Pause { node, process } => write!(f, "pause {process} on {node}"),
            Act::Continue { node, process } => write!(f, "continue {process} on {node}"),
            Act::Cut { node, rules } => write!(f, "drop packets on {node} ({} rules)", rules.len()),
            Act::Uncut { node } => write!(f, "remove packet rules on {node}"),
            Act::Slow { node, delay_ms, loss_percent, .. } => {
                write!(f, "delay packets of {node} by {delay_ms} ms, lose {loss_percent} %")
            }
            Act::Unslow { node } => write!(f, "remove the delay on {node}"),
            Act::StallDisk { node } => write!(f, "freeze etcd's disk on {node}"),
            Act::UnstallDisk { node } => write!(f, "thaw etcd's disk on {node}"),
            Act::Suspend { node } => write!(f, "suspend {node}"),
            Act::Resume { node } => write!(f, "resume {node}"),
            Act::PowerOff { node } => write!(f, "power off {node}"),
            Act::PowerOn { node } => write!(f, "power on {node}"),
            Act::SkewClock { node, seconds } => write!(f, "set the clock of {node} {seconds:+} s off"),
            Act::SetClock { node } => write!(f, "set the clock of {node} right"),
            Act::Quota { node, mib: Some(mib) } => write!(f, "restart etcd on {node} with a quota of {mib} MiB"),
            Act::Quota { node, mib: None } => write!(f, "restart etcd on {node} with its own quota"),
            Act::ExpireCert { node, seconds } => write!(f, "give {node} an etcd certificate of {seconds} s"),
            Act::RenewCert { node } => write!(f, "give {node} its etcd certificate back"),
            Act::Wipe { node } => write!(f, "remove etcd's data on {node}"),
            Act::StartJoining { node } => write!(f, "start etcd on {node} as a joiner"),
            Act::RestoreData { nodes, .. } => write!(f, "restore the snapshot on {} members", nodes.len()),
            Act::MoveLeader { from, to } => write!(f, "move leadership from {from} to {to}"),
            Act::RemoveMember { node } => write!(f, "remove member {node}"),
            Act::Rejoin { node } => write!(f, "let {node} join again"),
            Act::Fill => f.write_str("fill the store"),
            Act::FreeSpace => f.write_str("compact, defragment and disarm"),
            Act::SaveSnapshot { .. } => f.write_str("save a snapshot"),
            Act::Flap { times } => write!(f, "kill the leader {times} times"),
            Act::AwaitHealthy => f.write_str("await one leader followed by all"),
            Act::Rest { ms } => write!(f, "rest {ms} ms"),
        }
    }
}

/// Packets to drop on a node: of one peer or of everyone, in one direction, of one kind of port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    #[schemars(with = "Option<String>")]
    pub peer: Option<NodeName>,
    pub direction: Direction,
    pub ports: Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    In,
    Out,
}

/// A claim about a clock holds within so many seconds; the shortest jump that counts is more than twice as long, so that no look
/// takes an untouched clock for a moved one.
pub const CLOCK_CLAIM_S: u32 = 3;

/// Something that must be seen for the fault to count as having happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "claim", rename_all = "kebab-case")]
pub enum Claim {
    // Asked of the injector, which looks at reality, not at what it did.
    Down {
        #[schemars(with = "String")]
        node: NodeName,
        process: Process,
    },
    Paused {
        #[schemars(with = "String")]
        node: NodeName,
        process: Process,
    },
    /// The rules are there and have dropped packets.
    Dropping {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Its packets leave as late and as unevenly as they were told to, or are lost as often.
    Slowed {
        #[schemars(with = "String")]
        node: NodeName,
        delay_ms: u32,
        // Reports of before it was looked at have none.
        #[serde(default)]
        jitter_ms: u32,
        loss_percent: u8,
    },
    DiskStalled {
        #[schemars(with = "String")]
        node: NodeName,
    },
    Suspended {
        #[schemars(with = "String")]
        node: NodeName,
    },
    PoweredOff {
        #[schemars(with = "String")]
        node: NodeName,
    },
    ClockOff {
        #[schemars(with = "String")]
        node: NodeName,
        seconds: i32,
    },
    CertExpired {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// The process is up: what is seen of the fault is not that it ended.
    Running {
        #[schemars(with = "String")]
        node: NodeName,
        process: Process,
    },
    Wiped {
        #[schemars(with = "String")]
        node: NodeName,
    },
    // Seen from outside, in telemetry and load, while the fault was in force.
    /// The member answers nothing.
    Silent {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Another member leads.
    LeaderMoved {
        #[schemars(with = "String")]
        from: NodeName,
    },
    /// The alarm was raised.
    Alarm { name: String },
    /// The member has another id than before.
    NewIdentity {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// The machine has booted since: it was off, and no longer the one that it was.
    Booted {
        #[schemars(with = "String")]
        node: NodeName,
    },
    /// Every target's process was a new one at the end.
    Restarted {
        #[schemars(with = "Vec<String>")]
        nodes: Vec<NodeName>,
    },
    /// The leader changed at least so many times.
    Elections { times: u8 },
}

impl Claim {
    /// Whether it is judged from telemetry after the run, rather than asked of the injector during it.
    pub fn observed(&self) -> bool {
        matches!(
            self,
            Claim::Silent { .. }
                | Claim::LeaderMoved { .. }
                | Claim::Alarm { .. }
                | Claim::NewIdentity { .. }
                | Claim::Booted { .. }
                | Claim::Restarted { .. }
                | Claim::Elections { .. }
        )
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Down { node, process } => write!(f, "{process} on {node} is down"),
            Claim::Paused { node, process } => write!(f, "{process} on {node} stands still"),
            Claim::Dropping { node } => write!(f, "{node} drops packets"),
            Claim::Slowed { node, delay_ms, jitter_ms, loss_percent } => {
                write!(f, "{node} delays packets by {delay_ms} ± {jitter_ms} ms and loses {loss_percent} %")
            }
            Claim::DiskStalled { node } => write!(f, "writes to etcd's disk on {node} do not return"),
            Claim::Suspended { node } => write!(f, "{node} is suspended"),
            Claim::PoweredOff { node } => write!(f, "{node} is off"),
            Claim::ClockOff { node, seconds } => write!(f, "the clock of {node} is {seconds:+} s off"),
            Claim::CertExpired { node } => write!(f, "the etcd certificate of {node} has run out"),
            Claim::Running { node, process } => write!(f, "{process} on {node} runs"),
            Claim::Wiped { node } => write!(f, "{node} has no etcd data"),
            Claim::Silent { node } => write!(f, "{node} answers nothing"),
            Claim::LeaderMoved { from } => write!(f, "{from} is no longer the leader"),
            Claim::Alarm { name } => write!(f, "the alarm {name} was raised"),
            Claim::NewIdentity { node } => write!(f, "{node} has a new member id"),
            Claim::Booted { node } => write!(f, "{node} has booted anew"),
            Claim::Restarted { nodes } => write!(f, "{} members were restarted", nodes.len()),
            Claim::Elections { times } => write!(f, "leadership changed {times} times or more"),
        }
    }
}
