//! A fault and its targets turned into a script: what to do before, to break, to undo, and what must be seen for the run to count.
//! `run` carries it out through an injector; the journal keeps it, so that another process can finish the undoing.
//! It is pure: the same fault, targets and members give the same script.

use super::act::{Act, Claim, Direction, Rule};
use super::bound::Timing;
use super::catalogue::{Fault, Ports, Process, Shape};
use crate::spec::{NodeName, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// The whole of a drill's effects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Script {
    /// Before the baseline: makes the cluster one on which the fault can happen.
    pub prepare: Vec<Act>,
    pub inject: Vec<Act>,
    /// Must hold once injected, and still before the heal.
    pub claims: Vec<Claim>,
    /// Undoes the fault, from wherever it was left.
    pub heal: Vec<Act>,
    /// After the checks: undoes `prepare`.
    pub tidy: Vec<Act>,
}

impl Script {
    /// Machines that any of its acts touches, be it to heal.
    pub fn touches(&self) -> BTreeSet<NodeName> {
        let acts = self.prepare.iter().chain(&self.inject).chain(&self.heal).chain(&self.tidy);
        acts.flat_map(Act::nodes).cloned().collect()
    }

    /// How long the injection may take.
    pub fn allowance(&self, timing: &Timing) -> Duration {
        self.inject.iter().map(|act| act.allowance(timing)).sum()
    }

    /// Whether a part of the undoing is beyond what timers in the guests can do.
    pub fn needs_the_host(&self) -> bool {
        self.heal.iter().chain(&self.tidy).any(Act::needs_the_host)
    }
}

/// Compiles. `members` are all etcd members, `timing` gives waits their length, `snapshot` is where one would be kept.
pub fn script(fault: &Fault, targets: &[NodeName], members: &[NodeName], timing: &Timing, snapshot: &str) -> Script {
    let each = |act: &dyn Fn(NodeName) -> Act| targets.iter().cloned().map(act).collect::<Vec<Act>>();
    let claim = |claim: &dyn Fn(NodeName) -> Claim| targets.iter().cloned().map(claim).collect::<Vec<Claim>>();
    let is_member = |node: &NodeName| node.role() == Role::Controller;
    // Only etcd members are asked for their status, so only they can be seen to be silent.
    let silent = || targets.iter().filter(|n| is_member(n)).map(|n| Claim::Silent { node: n.clone() }).collect::<Vec<Claim>>();
    match fault {
        Fault::Kill { process } | Fault::Stop { process } => {
            let (process, graceful) = (*process, matches!(fault, Fault::Stop { .. }));
            let mut claims = claim(&|node| Claim::Down { node, process });
            if process == Process::Etcd {
                claims.extend(silent());
            }
            Script {
                inject: each(&|node| Act::Down { node, process, graceful }),
                claims,
                heal: each(&|node| Act::Start { node, process }),
                ..Script::default()
            }
        }
        Fault::Pause { process } => {
            let process = *process;
            let mut claims = claim(&|node| Claim::Paused { node, process });
            if process == Process::Etcd {
                claims.extend(silent());
            }
            Script {
                inject: each(&|node| Act::Pause { node, process }),
                claims,
                heal: each(&|node| Act::Continue { node, process }),
                ..Script::default()
            }
        }
        Fault::Freeze {} => Script {
            inject: each(&|node| Act::Suspend { node }),
            claims: [claim(&|node| Claim::Suspended { node }), silent()].concat(),
            heal: [each(&|node| Act::Resume { node }), each(&|node| Act::SetClock { node })].concat(),
            ..Script::default()
        },
        Fault::PowerOff {} => Script {
            inject: each(&|node| Act::PowerOff { node }),
            claims: [claim(&|node| Claim::PoweredOff { node }), silent(), claim(&|node| Claim::Booted { node })].concat(),
            heal: each(&|node| Act::PowerOn { node }),
            ..Script::default()
        },
        Fault::MoveLeader {} => {
            let from = targets.first().cloned().unwrap_or(NodeName::controller(0));
            let to = members.iter().find(|m| **m != from).cloned().unwrap_or(from.clone());
            Script {
                inject: vec![Act::MoveLeader { from: from.clone(), to }],
                claims: vec![Claim::LeaderMoved { from }],
                ..Script::default()
            }
        }
        Fault::RollingRestart {} => Script {
            inject: targets.iter().flat_map(|node| restart(node, timing)).collect(),
            claims: vec![Claim::Restarted { nodes: targets.to_vec() }],
            heal: each(&|node| Act::Start { node, process: Process::Etcd }),
            ..Script::default()
        },
        Fault::Flap { times } => Script {
            inject: vec![Act::Flap { times: *times }],
            claims: vec![Claim::Elections { times: *times }],
            heal: members.iter().cloned().map(|node| Act::Start { node, process: Process::Etcd }).collect(),
            ..Script::default()
        },
        Fault::Cut { shape, ports } => cut(*shape, *ports, targets, members),
        Fault::Slow { delay_ms, jitter_ms, loss_percent } => {
            let (delay_ms, jitter_ms, loss_percent) = (*delay_ms, *jitter_ms, *loss_percent);
            Script {
                inject: each(&|node| Act::Slow { node, delay_ms, jitter_ms, loss_percent }),
                claims: claim(&|node| Claim::Slowed { node, delay_ms, jitter_ms, loss_percent }),
                heal: each(&|node| Act::Unslow { node }),
                ..Script::default()
            }
        }
        Fault::StallDisk {} => Script {
            inject: each(&|node| Act::StallDisk { node }),
            claims: claim(&|node| Claim::DiskStalled { node }),
            heal: each(&|node| Act::UnstallDisk { node }),
            ..Script::default()
        },
        Fault::FillQuota { room_mib } => {
            let quota = |mib| move |node: NodeName| vec![Act::Quota { node, mib }, Act::AwaitHealthy];
            Script {
                prepare: targets.iter().cloned().flat_map(quota(Some(*room_mib))).collect(),
                inject: vec![Act::Fill],
                claims: vec![Claim::Alarm { name: "NOSPACE".to_owned() }],
                heal: vec![Act::FreeSpace],
                tidy: targets.iter().cloned().flat_map(quota(None)).collect(),
            }
        }
        Fault::ReplaceMember {} => Script {
            inject: targets
                .iter()
                .flat_map(|node| {
                    let node = node.clone();
                    let process = Process::Etcd;
                    let down = Act::Down { node: node.clone(), process, graceful: false };
                    [down, Act::RemoveMember { node: node.clone() }, Act::Wipe { node }]
                })
                .collect(),
            claims: [
                claim(&|node| Claim::Down { node, process: Process::Etcd }),
                claim(&|node| Claim::Wiped { node }),
                claim(&|node| Claim::NewIdentity { node }),
            ]
            .concat(),
            heal: each(&|node| Act::Rejoin { node }),
            ..Script::default()
        },
        Fault::Restore {} => Script {
            inject: [
                vec![Act::SaveSnapshot { snapshot: snapshot.to_owned() }, Act::Rest { ms: 500 }],
                each(&|node| Act::Down { node, process: Process::Etcd, graceful: false }),
                each(&|node| Act::Wipe { node }),
            ]
            .concat(),
            claims: [claim(&|node| Claim::Down { node, process: Process::Etcd }), claim(&|node| Claim::Wiped { node })].concat(),
            heal: [
                vec![Act::RestoreData { nodes: targets.to_vec(), snapshot: snapshot.to_owned() }],
                each(&|node| Act::Start { node, process: Process::Etcd }),
            ]
            .concat(),
            ..Script::default()
        },
        Fault::SkewClock { seconds } => {
            let seconds = *seconds;
            Script {
                inject: each(&|node| Act::SkewClock { node, seconds }),
                claims: claim(&|node| Claim::ClockOff { node, seconds }),
                heal: each(&|node| Act::SetClock { node }),
                ..Script::default()
            }
        }
        Fault::ExpireCert { seconds } => {
            let seconds = *seconds;
            Script {
                inject: each(&|node| Act::ExpireCert { node, seconds }),
                claims: [
                    claim(&|node| Claim::CertExpired { node }),
                    claim(&|node| Claim::Running { node, process: Process::Etcd }),
                    claim(&|node| Claim::Silent { node }),
                ]
                .concat(),
                heal: each(&|node| Act::RenewCert { node }),
                ..Script::default()
            }
        }
    }
}

fn restart(node: &NodeName, timing: &Timing) -> [Act; 4] {
    let (node, process) = (node.clone(), Process::Etcd);
    let rest = u32::try_from(timing.election_ms).unwrap_or(u32::MAX);
    [
        Act::Down { node: node.clone(), process, graceful: true },
        Act::Start { node, process },
        Act::AwaitHealthy,
        Act::Rest { ms: rest },
    ]
}

fn cut(shape: Shape, ports: Ports, targets: &[NodeName], members: &[NodeName]) -> Script {
    let rules = |node: &NodeName, directions: &[Direction]| -> Vec<Rule> {
        // Clients are not members, and may be anywhere.
        let peers: Vec<Option<NodeName>> = match (shape, ports) {
            (Shape::Bridge, _) => targets.iter().filter(|t| *t != node).cloned().map(Some).collect(),
            (_, Ports::Client) => vec![None],
            (_, Ports::Peer) => members.iter().filter(|m| *m != node).cloned().map(Some).collect(),
        };
        peers.iter().flat_map(|peer| directions.iter().map(|&direction| Rule { peer: peer.clone(), direction, ports })).collect()
    };
    let both = [Direction::In, Direction::Out];
    let at: Vec<(NodeName, Vec<Rule>)> = match shape {
        Shape::Isolate => targets.iter().map(|t| (t.clone(), rules(t, &both))).collect(),
        Shape::Deaf => targets.iter().map(|t| (t.clone(), rules(t, &[Direction::In]))).collect(),
        Shape::Mute => targets.iter().map(|t| (t.clone(), rules(t, &[Direction::Out]))).collect(),
        // One end is enough: it drops both what it would send and what it gets.
        Shape::Bridge => targets.first().map(|t| (t.clone(), rules(t, &both))).into_iter().collect(),
        Shape::SplitAll => members.iter().map(|m| (m.clone(), rules(m, &both))).collect(),
    };
    Script {
        inject: at.iter().map(|(node, rules)| Act::Cut { node: node.clone(), rules: rules.clone() }).collect(),
        claims: at.iter().map(|(node, _)| Claim::Dropping { node: node.clone() }).collect(),
        heal: at.iter().map(|(node, _)| Act::Uncut { node: node.clone() }).collect(),
        ..Script::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::built_in;
    use super::*;

    fn three() -> Vec<NodeName> {
        (0..3).map(NodeName::controller).collect()
    }

    #[test]
    fn every_drill_has_something_to_do_to_prove_and_to_undo() {
        for drill in built_in().expect("parses") {
            let script = script(&drill.fault, &three()[..2], &three(), &Timing::native(), "/snapshot");
            assert!(!script.inject.is_empty(), "{}", drill.name);
            assert!(!script.claims.is_empty(), "{} can never be shown to have happened", drill.name);
            assert!(!script.heal.is_empty() || drill.fault == Fault::MoveLeader {}, "{}", drill.name);
            let text = serde_json::to_string(&script).expect("prints");
            assert_eq!(serde_json::from_str::<Script>(&text).expect("reads"), script, "{}", drill.name);
        }
    }

    /// A timer that goes off while leaders are still being killed would start one that is meant to be down.
    #[test]
    fn timers_allow_for_as_long_as_the_fault_takes_to_inject() {
        let timing = Timing::native();
        let takes = |fault: &Fault| script(fault, &three()[..1], &three(), &timing, "").allowance(&timing);
        assert!(takes(&Fault::Flap { times: 20 }) >= Duration::from_secs(200));
        assert!(takes(&Fault::Flap { times: 40 }) >= takes(&Fault::Flap { times: 20 }) * 2);
        assert!(takes(&Fault::ExpireCert { seconds: 60 }) > Duration::from_secs(60));
        let restart = script(&Fault::RollingRestart {}, &three(), &three(), &timing, "");
        assert!(restart.allowance(&timing) >= Duration::from_millis(timing.boot_ms) * 3);
        assert!(takes(&Fault::Kill { process: Process::Etcd }) < Duration::from_secs(10));
    }

    /// A look at libvirt says that a machine is off; that its memory went with the power is shown by the boot after it.
    #[test]
    fn whoever_loses_power_must_have_booted_anew() {
        let hit = [NodeName::controller(0), NodeName::worker(1)];
        let off = script(&Fault::PowerOff {}, &hit, &three(), &Timing::native(), "");
        let booted: Vec<&Claim> = off.claims.iter().filter(|claim| matches!(claim, Claim::Booted { .. })).collect();
        assert_eq!(booted, [&Claim::Booted { node: hit[0].clone() }, &Claim::Booted { node: hit[1].clone() }]);
        // One that is suspended goes on where it was.
        let frozen = script(&Fault::Freeze {}, &hit[..1], &three(), &Timing::native(), "");
        assert!(!frozen.claims.iter().any(|claim| matches!(claim, Claim::Booted { .. })));
    }

    #[test]
    fn what_only_the_host_can_undo_is_known() {
        let needs = |name: &str| {
            let drill = super::super::catalogue::find(name).expect("there");
            script(&drill.fault, &three()[..1], &three(), &Timing::native(), "").needs_the_host()
        };
        for name in ["leader-freeze", "leader-power-off", "blackout", "full-quota", "replace-member", "disaster-restore"] {
            assert!(needs(name), "{name}");
        }
        for name in ["leader-kill", "isolate-leader", "stalled-disk", "clock-skew", "cert-expiry", "slow-link", "move-leader"] {
            assert!(!needs(name), "{name}");
        }
    }

    #[test]
    fn a_quota_counts_from_what_the_store_holds() {
        let fault = Fault::FillQuota { room_mib: 16 };
        let prepared = |fault: &Fault| script(fault, &three()[..1], &three(), &Timing::native(), "").prepare[0].clone();
        let node = NodeName::controller(0);
        assert_eq!(prepared(&fault), Act::Quota { node: node.clone(), mib: Some(16) });
        assert_eq!(prepared(&fault.on_a_store_of(30 << 20)), Act::Quota { node: node.clone(), mib: Some(46) });
        assert_eq!(prepared(&fault.on_a_store_of((30 << 20) + 1)), Act::Quota { node, mib: Some(47) });
        assert_eq!(Fault::Freeze {}.on_a_store_of(1 << 30), Fault::Freeze {});
    }

    #[test]
    fn cuts_have_the_shapes_they_are_named_after() {
        let all = three();
        let rules = |shape, targets: &[NodeName]| -> Vec<String> {
            let script = cut(shape, Ports::Peer, targets, &all);
            let shown = |act: &Act| match act {
                Act::Cut { node, rules } => rules
                    .iter()
                    .map(|r| {
                        format!(
                            "{}{}{}",
                            node.index(),
                            if r.direction == Direction::In { "<" } else { ">" },
                            r.peer.as_ref().map_or(9, |p| p.index())
                        )
                    })
                    .collect::<Vec<_>>(),
                other => vec![other.to_string()],
            };
            script.inject.iter().flat_map(shown).collect()
        };
        assert_eq!(rules(Shape::Isolate, &all[..1]), ["0<1", "0>1", "0<2", "0>2"]);
        assert_eq!(rules(Shape::Deaf, &all[..1]), ["0<1", "0<2"]);
        assert_eq!(rules(Shape::Mute, &all[..1]), ["0>1", "0>2"]);
        assert_eq!(rules(Shape::Bridge, &all[..2]), ["0<1", "0>1"]);
        assert_eq!(rules(Shape::SplitAll, &all).len(), 12);
    }

    #[test]
    fn a_member_is_removed_before_it_is_wiped_and_wiped_before_it_is_added() {
        let script = script(&Fault::ReplaceMember {}, &three()[1..2], &three(), &Timing::native(), "/snapshot");
        let order: Vec<String> = script.inject.iter().chain(&script.heal).map(|act| act.to_string()).collect();
        let expected = [
            "kill etcd on controller-1",
            "remove member controller-1",
            "remove etcd's data on controller-1",
            "let controller-1 join again",
        ];
        assert_eq!(order, expected);
    }
}
