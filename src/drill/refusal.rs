//! What a drill may not ask for: combinations that serde takes and that make no sense, or would be green for want of a look.
//! `catalogue` calls it for files, the command line after `--gate` and `--target`, labs for their faults; all problems at once. What
//! only the cluster's own size can tell is asked before the start, by `before` and `lab start`.
//! It is pure, and says of each problem what would be accepted.

use super::act::{CLOCK_CLAIM_S, Claim};
use super::bound::Timing;
use super::catalogue::{Drill, Fault, Keys, Process, Shape, Target};
use super::script::script;
use super::target::NoTarget;
use crate::spec::NodeName;
use std::time::Duration;

/// Longest name: it becomes a part of file names and of keys.
pub const NAME_MOST: usize = 63;
/// The shortest pace that measures more than itself, and the longest that leaves a baseline of seconds, not of minutes.
pub const INTERVAL_LEAST_MS: u32 = 5;
pub const INTERVAL_MOST_MS: u32 = 1000;
/// Most that a machine's packets are delayed by, and most of a hundred that are lost. Its answers to whoever proves and heals the fault
/// leave by the same link: several a question, each as late, and each lost again with every attempt.
pub const DELAY_MOST_MS: u32 = 5000;
pub const LOSS_MOST: u8 = 50;
/// Least that a fault is held which members show by what they answer, or by their silence: they are asked ten times a second, and
/// for 200 ms an answer may still be one from before.
const HOLD_LEAST: Duration = Duration::from_millis(500);
/// Most that a store is filled by, whatever its disk: enough to see the alarm, and soon done.
pub const ROOM_MOST_MIB: u32 = 256;
/// What etcd's log may hold of the time before: it keeps five files of 64 MiB.
const OLD_LOG_MIB: u32 = 320;

/// What serde cannot say: combinations that make no sense.
pub fn problems(drill: &Drill) -> Vec<String> {
    let mut problems = Vec::new();
    let named = !drill.name.is_empty() && drill.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if drill.name.len() > NAME_MOST {
        problems.push(format!("name: {} characters are too many; accepted: up to {NAME_MOST}", drill.name.chars().count()));
    } else if !named {
        problems.push(format!("name: {:?} is not accepted; a drill's name is made of a-z, 0-9 and '-'", drill.name));
    }
    problems.extend(load_problems(drill));
    for waived in &drill.expect.waive {
        if !WAIVABLE.contains(&waived.as_str()) {
            problems.push(format!("expect.waive: {waived:?} cannot be waived; accepted: {}", WAIVABLE.join(", ")));
        }
    }
    problems.extend(fault_problems(&drill.fault));
    problems.extend(hold_problems(drill));
    problems.extend(target_problems(drill));
    problems.extend(gate_problems(drill));
    problems
}

/// Loads that measure nothing, or not what the drill is about.
fn load_problems(drill: &Drill) -> Vec<String> {
    let mut problems = Vec::new();
    let interval = drill.load.interval_ms;
    let accepted = format!("accepted: {INTERVAL_LEAST_MS} to {INTERVAL_MOST_MS}");
    if interval < INTERVAL_LEAST_MS {
        problems.push(format!(
            "load.interval_ms: {interval} is below {INTERVAL_LEAST_MS} ms, the shortest that measures more than itself; {accepted}"
        ));
    }
    if interval > INTERVAL_MOST_MS {
        problems.push(format!("load.interval_ms: {interval} is too long, the baseline alone takes twenty of them; {accepted}"));
    }
    if matches!(drill.fault, Fault::Restore {}) && drill.load.keys != Keys::Append {
        problems.push(
            "load.keys: a restore forgets history, after which only keys of one write each can be counted; accepted with this fault: append"
                .to_owned(),
        );
    }
    problems
}

/// Faults that change nothing: what is looked at would be as told without them, and the drill green for nothing. And those that
/// break more than can be healed, or that nobody could look at.
fn fault_problems(fault: &Fault) -> Vec<String> {
    let mut problems = Vec::new();
    match *fault {
        Fault::Flap { times: 0 } => problems.push("fault.times: 0 kills nobody; accepted: 1 to 255".to_owned()),
        Fault::FillQuota { room_mib: 0 } => {
            problems.push(format!("fault.room_mib: 0 leaves nothing to fill; accepted: 1 to {ROOM_MOST_MIB}"));
        }
        Fault::FillQuota { room_mib } if room_mib > ROOM_MOST_MIB => problems.push(format!(
            "fault.room_mib: {room_mib} may be more than a member's disk holds, and etcd does not come back from a full one; accepted: 1 to {ROOM_MOST_MIB}"
        )),
        Fault::Slow { delay_ms, jitter_ms, loss_percent } => {
            if delay_ms == 0 && loss_percent == 0 {
                problems.push("fault: no delay_ms and no loss_percent slows nothing; accepted: one of them above 0".to_owned());
            }
            if jitter_ms > delay_ms {
                let why = "packets cannot leave before they are there";
                problems.push(format!("fault.jitter_ms: {jitter_ms} is above delay_ms: {why}; accepted: 0 to {delay_ms}"));
            }
            let answers = "what proves and heals it comes by the same link";
            if delay_ms > DELAY_MOST_MS {
                problems.push(format!("fault.delay_ms: {delay_ms} is too late: {answers}; accepted: up to {DELAY_MOST_MS}"));
            }
            if loss_percent > LOSS_MOST {
                let much = if loss_percent > 100 { "more than all" } else { "too much" };
                problems.push(format!("fault.loss_percent: {loss_percent} is {much}: {answers}; accepted: up to {LOSS_MOST}"));
            }
        }
        Fault::SkewClock { seconds } if seconds.unsigned_abs() <= CLOCK_CLAIM_S * 2 => {
            let least = CLOCK_CLAIM_S * 2 + 1;
            problems.push(format!(
                "fault.seconds: a clock {seconds:+} s off cannot be told from one that was left alone; accepted: {least} and more, -{least} and less"
            ));
        }
        _ => (),
    }
    problems
}

/// Faults that are over before a member was asked: of no answer to no question nothing can be told.
fn hold_problems(drill: &Drill) -> Option<String> {
    let on_worker = matches!(drill.target, Target::Worker | Target::BusiestWorker);
    let timing = Timing::native();
    let hit = [if on_worker { NodeName::worker(0) } else { NodeName::controller(0) }];
    let claims = script(&drill.fault, &hit, &hit, &timing, "").claims;
    let asked = claims.iter().any(|claim| matches!(claim, Claim::Silent { .. } | Claim::Alarm { .. }));
    (asked && drill.hold.of(&timing) < HOLD_LEAST).then(|| {
        let least = HOLD_LEAST.as_secs_f64();
        format!(
            "hold: {} is over before a member was asked how it is; accepted: {least} s and more, as in 1 election",
            drill.hold
        )
    })
}

/// Whether the members' disks bear the fault on a store of so many bytes, where the quota of their own is `quota_mib`. A quota
/// comes before a full disk only on the disk that it was made for: on a full one etcd ends, and no heal brings it back.
pub fn bearable(name: &str, fault: &Fault, bytes: i64, quota_mib: u32) -> Result<(), NoTarget> {
    let Fault::FillQuota { room_mib: room } = *fault else { return Ok(()) };
    let Fault::FillQuota { room_mib: raised } = fault.on_a_store_of(bytes) else { return Ok(()) };
    // All that is written lies in the log as well: too few writes for etcd to take a snapshot and give its files free. Also what
    // is free inside the store is filled, so all of it counts.
    let bears = quota_mib.saturating_sub(OLD_LOG_MIB) / 2;
    if raised <= bears {
        return Ok(());
    }
    let held = raised.saturating_sub(room);
    Err(NoTarget::NoRoom { drill: name.to_owned(), room, held, most: bears.saturating_sub(held) })
}

/// Whom a fault can hit. What only the whole cluster can lose must not be done to a part of it: one member restored from a
/// snapshot would live beside the old cluster under another id.
fn target_problems(drill: &Drill) -> Vec<String> {
    use Target::*;
    let mut problems = Vec::new();
    let on_worker = matches!(drill.target, Worker | BusiestWorker);
    let mut only = |fault: &str, accepted: &[Target]| {
        if !accepted.contains(&drill.target) {
            let accepted: Vec<&str> = accepted.iter().map(|target| target.as_str()).collect();
            problems.push(format!("target: {fault}; accepted: {}", accepted.join(", ")));
        }
    };
    const MEMBERS: [Target; 10] = [
        Leader,
        Follower,
        LeaderAndFollower,
        TwoFollowers,
        Minority,
        Majority,
        AllMembers,
        ControllerManagerHolder,
        SchedulerHolder,
        VipHolder,
    ];
    match &drill.fault {
        Fault::Kill { process: Process::Kubelet }
        | Fault::Stop { process: Process::Kubelet }
        | Fault::Pause { process: Process::Kubelet } => {
            if !on_worker {
                only(
                    "kubelet does not run there; kubelet runs on workers, everything else on controllers",
                    &[Worker, BusiestWorker],
                );
            }
        }
        Fault::Kill { process } | Fault::Stop { process } | Fault::Pause { process } => {
            if on_worker {
                let why = format!("{process} does not run there; kubelet runs on workers, everything else on controllers");
                only(&why, &MEMBERS);
            } else {
                only("this fault hits etcd members", &MEMBERS);
            }
        }
        Fault::Freeze {} | Fault::PowerOff {} | Fault::SkewClock { .. } | Fault::Slow { .. } => (),
        Fault::Cut { shape: Shape::Bridge, .. } => {
            only("a bridge is cut between two members", &[LeaderAndFollower, TwoFollowers])
        }
        Fault::Cut { shape: Shape::SplitAll, .. } => only("all members are cut off from each other", &[AllMembers]),
        Fault::Cut { .. } | Fault::RollingRestart {} | Fault::StallDisk {} | Fault::ExpireCert { .. } => {
            only("this fault hits etcd members", &MEMBERS);
        }
        Fault::MoveLeader {} => only("leadership is the leader's to hand over", &[Leader]),
        Fault::Flap { .. } => only("the leader of the moment is killed", &[Leader]),
        Fault::FillQuota { .. } => only("a quota is the whole cluster's", &[AllMembers]),
        Fault::ReplaceMember {} => {
            only("one member is replaced at a time", &[Leader, Follower, ControllerManagerHolder, SchedulerHolder, VipHolder]);
        }
        Fault::Restore {} => only("a snapshot makes a new cluster of all members, or two clusters", &[AllMembers]),
    }
    problems
}

/// Gates on what is not looked at would be green for want of a look.
fn gate_problems(drill: &Drill) -> Vec<String> {
    let expect = &drill.expect;
    let mut problems = Vec::new();
    let of_api = [
        ("api_gap", expect.api_gap.is_some()),
        ("takeover", expect.takeover.is_some()),
        ("not_ready", expect.not_ready.is_some()),
        ("pods", expect.pods.is_some()),
    ];
    for (gate, _) in of_api.iter().filter(|(_, there)| *there && !drill.load.api) {
        problems.push(format!("expect.{gate}: without load.api = true nobody asks the API, and nothing is seen"));
    }
    if expect.takeover.is_some() && drill.target.lease().is_none() {
        problems.push(
            "expect.takeover: the target holds no lease by rule; accepted with target controller-manager-holder, scheduler-holder"
                .to_owned(),
        );
    }
    if expect.not_ready.is_some() && !matches!(drill.target, Target::Worker | Target::BusiestWorker) {
        problems.push("expect.not_ready: only workers are nodes; accepted with target worker, busiest-worker".to_owned());
    }
    problems
}

/// Lost writes, two leaders in a term and broken order are never acceptable.
const WAIVABLE: [&str; 6] = ["I3", "I5", "I6", "I7", "I10", "I11"];

#[cfg(test)]
mod tests {
    use super::super::catalogue::find;
    use super::*;

    fn changed(name: &str, change: impl FnOnce(&mut Drill)) -> String {
        let mut drill = find(name).expect("there");
        change(&mut drill);
        problems(&drill).join("; ")
    }

    /// What would make two clusters of one, or none, is refused before anything is looked at.
    #[test]
    fn a_fault_of_the_whole_is_not_done_to_a_part() {
        use Target::*;
        for (name, target) in [
            ("disaster-restore", Leader),
            ("disaster-restore", Majority),
            ("full-quota", Follower),
            ("replace-member", Majority),
            ("replace-member", AllMembers),
            ("move-leader", Follower),
            ("leader-flap", AllMembers),
            ("split-all", Leader),
            ("isolate-leader", Worker),
            ("leader-kill", Everything),
            ("leader-kill", Worker),
            ("apiserver-kill", Worker),
            ("kubelet-stop", Leader),
        ] {
            let told = changed(name, |drill| {
                drill.target = target;
                drill.expect.takeover = None;
                drill.expect.not_ready = None;
            });
            assert!(told.contains("target: ") && told.contains("accepted: "), "{name} on {}: {told:?}", target.as_str());
        }
        assert_eq!(changed("replace-member", |drill| drill.target = Leader), "");
        assert_eq!(changed("leader-kill", |drill| drill.target = VipHolder), "");
        assert_eq!(changed("leader-kill", |drill| drill.target = Minority), "");
    }

    /// Each would be proven by a look at a cluster that nobody touched.
    #[test]
    fn a_fault_that_changes_nothing_is_refused() {
        let slow = |delay_ms, jitter_ms, loss_percent| Fault::Slow { delay_ms, jitter_ms, loss_percent };
        let skew = |seconds| Fault::SkewClock { seconds };
        let fill = |room_mib| Fault::FillQuota { room_mib };
        for (name, fault, told) in [
            ("leader-flap", Fault::Flap { times: 0 }, "fault.times: 0 kills nobody; accepted: 1 to 255"),
            ("slow-link", slow(0, 0, 0), "slows nothing; accepted: one of them above 0"),
            ("slow-link", slow(0, 20, 5), "fault.jitter_ms: 20 is above delay_ms"),
            ("slow-link", slow(10, 0, 101), "fault.loss_percent: 101 is more than all"),
            (
                "slow-link",
                slow(0, 0, 100),
                "fault.loss_percent: 100 is too much: what proves and heals it comes by the same link",
            ),
            ("slow-link", slow(0, 0, 51), "; accepted: up to 50"),
            ("slow-link", slow(5001, 0, 0), "fault.delay_ms: 5001 is too late"),
            ("slow-link", slow(u32::MAX, 0, 0), "; accepted: up to 5000"),
            ("clock-skew", skew(0), "fault.seconds: a clock +0 s off"),
            ("clock-skew", skew(6), "accepted: 7 and more, -7 and less"),
            ("clock-skew", skew(-6), "fault.seconds: a clock -6 s off"),
            ("full-quota", fill(0), "fault.room_mib: 0 leaves nothing to fill; accepted: 1 to 256"),
        ] {
            let said = changed(name, |drill| drill.fault = fault.clone());
            assert!(said.contains(told), "{fault:?}: {said:?}");
        }
        let fine = [
            ("leader-flap", Fault::Flap { times: 1 }),
            ("slow-link", slow(20, 20, 0)),
            ("slow-link", slow(0, 0, 50)),
            ("slow-link", slow(5000, 5000, 50)),
            ("clock-skew", skew(7)),
            ("clock-skew", skew(i32::MIN)),
            ("full-quota", fill(1)),
            ("full-quota", fill(256)),
        ];
        for (name, fault) in fine {
            assert_eq!(changed(name, |drill| drill.fault = fault.clone()), "", "{fault:?}");
        }
    }

    /// The disk of a member is 2 GiB where nobody says otherwise, and etcd's own quota 1638 MiB.
    #[test]
    fn a_store_is_not_filled_beyond_its_disk() {
        for room_mib in [257, 4096, u32::MAX] {
            let told = changed("full-quota", |drill| drill.fault = Fault::FillQuota { room_mib });
            assert!(told.contains(&format!("fault.room_mib: {room_mib} ")) && told.contains("accepted: 1 to 256"), "{told:?}");
        }
        let judged = |room_mib, held_mib: i64, quota_mib| {
            let fault = Fault::FillQuota { room_mib };
            bearable("full-quota", &fault, held_mib << 20, quota_mib).map_err(|error| error.to_string())
        };
        // Of 1638 MiB the store and the log of the fill may have 659 each.
        for (room, held, quota) in [(16, 20, 1638), (256, 403, 1638), (16, 643, 1638), (16, 20, 819), (229, 20, 819)] {
            assert_eq!(judged(room, held, quota), Ok(()), "{room} MiB on {held} of {quota}");
        }
        for (room, held, quota) in
            [(256, 404, 1638), (16, 644, 1638), (230, 20, 819), (1, 0, 0), (256, i64::from(u32::MAX), 1638)]
        {
            let told = judged(room, held, quota).expect_err("too much");
            assert!(told.contains(&format!("full-quota fills {room} MiB")), "{told}");
        }
        assert!(judged(256, 404, 1638).expect_err("too much").ends_with("accepted: 1 to 255"));
        assert!(judged(16, 700, 1638).expect_err("too much").ends_with("there is no room for any"));
        assert_eq!(bearable("leader-freeze", &Fault::Freeze {}, i64::MAX, 0), Ok(()), "other faults write nothing that counts");
    }

    #[test]
    fn a_load_that_would_take_minutes_or_count_nothing_is_refused() {
        for interval_ms in [0, 4, 1001, u32::MAX] {
            let told = changed("leader-kill", |drill| drill.load.interval_ms = interval_ms);
            assert!(
                told.contains(&format!("load.interval_ms: {interval_ms} ")) && told.contains("accepted: 5 to 1000"),
                "{told:?}"
            );
        }
        for interval_ms in [5, 1000] {
            assert_eq!(changed("leader-kill", |drill| drill.load.interval_ms = interval_ms), "");
        }
        let told = changed("disaster-restore", |drill| drill.load.keys = Keys::Registers);
        assert!(told.starts_with("load.keys: a restore forgets history") && told.ends_with("append"), "{told:?}");
        assert_eq!(changed("leader-kill", |drill| drill.load.keys = Keys::Append), "");
    }

    /// "0 of 0 questions answered" proves nothing, on whatever cluster.
    #[test]
    fn a_fault_that_is_over_before_a_member_was_asked_is_refused() {
        let held = |name: &str, hold: &str| changed(name, |drill| drill.hold = hold.parse().expect("a bound"));
        for name in ["leader-kill", "leader-pause", "leader-freeze", "blackout", "quorum-loss", "cert-expiry", "full-quota"] {
            for hold in ["0 s", "499 ms", "1 latency", "0 grace"] {
                let hold: super::super::bound::Bound = hold.parse().expect("a bound");
                let told = held(name, &hold.to_string());
                assert!(
                    told.starts_with(&format!("hold: {hold} is over")) && told.contains("accepted: 0.5 s and more"),
                    "{told:?}"
                );
            }
            for hold in ["500 ms", "0.5 election", "5 heartbeat"] {
                assert_eq!(held(name, hold), "", "{name} for {hold}");
            }
        }
        // They are looked at from inside, or are over by their nature.
        for name in
            ["move-leader", "rolling-restart", "leader-flap", "clock-skew", "stalled-disk", "worker-power-off", "kubelet-stop"]
        {
            assert_eq!(held(name, "0 s"), "", "{name}");
        }
        assert_eq!(changed("apiserver-kill", |drill| drill.hold = super::super::bound::Bound::seconds(0.0)), "");
    }

    /// A run's file carries the drill's name and the time.
    #[test]
    fn a_name_fits_into_a_files_name() {
        assert_eq!(changed("leader-kill", |drill| drill.name = "a".repeat(63)), "");
        let told = changed("leader-kill", |drill| drill.name = "a".repeat(64));
        assert_eq!(told, "name: 64 characters are too many; accepted: up to 63");
        assert!(changed("leader-kill", |drill| drill.name = String::new()).contains("made of a-z"));
    }

    #[test]
    fn gates_on_what_nobody_looks_at_are_refused() {
        assert!(
            changed("leader-kill", |drill| drill.expect.api_gap = "1 ms".parse().ok())
                .contains("expect.api_gap: without load.api")
        );
        assert!(changed("lease-holder-kill", |drill| drill.load.api = false).contains("expect.takeover: without load.api"));
        assert!(changed("kubelet-stop", |drill| drill.load.api = false).contains("expect.not_ready: without load.api"));
        assert!(changed("kubelet-stop", |drill| drill.load.api = false).contains("expect.pods: without load.api"));
        assert!(changed("lease-holder-kill", |drill| drill.target = Target::VipHolder).contains("holds no lease by rule"));
        let not_ready = Some(("1 s".parse().expect("a bound"), "2 s".parse().expect("a bound")));
        assert!(changed("apiserver-kill", |drill| drill.expect.not_ready = not_ready).contains("only workers are nodes"));
    }
}
