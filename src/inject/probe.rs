//! Looking at machines: whether a claim holds, and whatever faults have left, told by one script a node.
//! `prove` and `leftovers` call it; it sees what is, not what was done.
//! A machine that is booting is waited for: what it will start by itself is no leftover.

use super::{Machines, shell};
use crate::drill::act::{Act, CLOCK_CLAIM_S, Claim};
use crate::drill::catalogue::Process;
use crate::drill::injector::{Leftover, Proof};
use crate::drill::packets::{TABLE, dropped};
use crate::guest::Cmd;
use crate::guest::clock::{self, ClockSeen};
use crate::host::DomainState;
use crate::plan::NodePlan;
use crate::said::one_line;
use crate::spec::{NodeName, Role};
use crate::wait::{self, Seen};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A clock this far off is a leftover; a machine that boots takes whole seconds from its hardware clock, `verify` allows one.
pub(super) const CLOCK_OFF_S: f64 = 0.75;

/// Of a machine that answers nobody the state is looked at again at its first silence, and after so many more: libvirt has other
/// things to do than to be asked twice a second.
const SILENCES: u32 = 6;

/// Processes that drills end, where they run.
fn processes(node: &NodePlan) -> Vec<Process> {
    match node.role {
        Role::Worker => vec![Process::Kubelet],
        Role::Controller if node.control_plane => {
            vec![Process::Etcd, Process::KubeApiserver, Process::KubeControllerManager, Process::KubeScheduler]
        }
        Role::Controller => vec![Process::Etcd],
    }
}

/// Everything that a fault may have left in a guest, a line each: `word value…`.
fn script(node: &NodePlan) -> String {
    let mut text = format!("{}{}", shell::PROCESSES, shell::FROZEN);
    for process in processes(node) {
        text.push_str(&format!(
            "echo \"unit {process} $(systemctl show -P ActiveState {process}.service) \
             $(systemctl show -P Job {process}.service) -\"\n\
             echo \"states {process} $(processes {process} | cut -d' ' -f2 | tr -d '\\n')\"\n"
        ));
    }
    text.push_str(&format!(
        "if nft list table {TABLE} >/dev/null 2>&1; then echo rules; fi\n\
         if tc qdisc show dev eth0 root | grep -q netem; then echo netem; fi\n\
         if frozen; then echo frozen; fi\n\
         if [ -e {place} ]; then if {joining}; then echo joining; else echo quota; fi; fi\n\
         if [ -e /etc/etcd/pki/server.pem ]; then echo \"cert $(sha256sum </etc/etcd/pki/server.pem)\"; fi\n\
         if [ -e {skew} ]; then echo skew; elif {time_stopped}; then echo timeless; fi\n\
         echo end\n",
        place = shell::OVERRIDE,
        joining = shell::JOINING,
        skew = shell::SKEW,
        time_stopped = shell::TIME_STOPPED,
    ));
    text
}

/// What one node's answer comes down to. `Err`: it is not a whole answer.
fn read(node: &NodeName, text: &str, cert: Option<&str>) -> Result<Vec<Leftover>, String> {
    let mut all = Vec::new();
    let mut push = |what: String, undo| all.push(Leftover { node: node.clone(), what, undo });
    let process = |word: &str| -> Option<Process> { serde_json::from_value(word.into()).ok() };
    let mut whole = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            // A unit with a job is on its way.
            ["unit", name, "inactive" | "failed", "-" | "0"] | ["unit", name, "inactive" | "failed", "0", "-"] => {
                let Some(process) = process(name) else { continue };
                push(format!("a stopped {name}"), Act::Start { node: node.clone(), process });
            }
            ["states", name, states] if states.contains('T') => {
                let Some(process) = process(name) else { continue };
                push(format!("a paused {name}"), Act::Continue { node: node.clone(), process });
            }
            ["rules"] => push("packet rules".to_owned(), Act::Uncut { node: node.clone() }),
            ["netem"] => push("a delay of packets".to_owned(), Act::Unslow { node: node.clone() }),
            ["frozen"] => push("a frozen disk".to_owned(), Act::UnstallDisk { node: node.clone() }),
            ["quota"] => push("a small quota".to_owned(), Act::Quota { node: node.clone(), mib: None }),
            ["joining"] => {
                push("a joiner's definition of etcd".to_owned(), Act::Start { node: node.clone(), process: Process::Etcd });
            }
            ["cert", sum, ..] if cert.is_some_and(|cert| cert != *sum) => {
                push("another etcd certificate than its own".to_owned(), Act::RenewCert { node: node.clone() });
            }
            ["skew"] => push("a clock that was moved".to_owned(), Act::SetClock { node: node.clone() }),
            ["timeless"] => push("a stopped time daemon".to_owned(), Act::SetClock { node: node.clone() }),
            ["end"] => whole = true,
            _ => (),
        }
    }
    if whole {
        Ok(all)
    } else {
        Err(format!("{node}: the answer was cut off after {:?}", one_line(text.lines().last().unwrap_or_default())))
    }
}

/// What is left of a machine in that state; `None`: it runs.
fn standing_still(node: &NodeName, state: DomainState) -> Option<Leftover> {
    let (what, undo) = match state {
        DomainState::Running => return None,
        DomainState::Paused => ("a suspended machine", Act::Resume { node: node.clone() }),
        // No drill's doing, and resumed in vain as long as there is no room.
        DomainState::PausedIoError => {
            ("a machine paused by a disk that the host could not write", Act::Resume { node: node.clone() })
        }
        _ => ("a machine without power", Act::PowerOn { node: node.clone() }),
    };
    Some(Leftover { node: node.clone(), what: what.to_owned(), undo })
}

/// What is wrong with a clock that was read so. One that came up with whole seconds is right once it was seen to be: what a long way
/// there and back hides now, the look after the heal would find. It is set once, and then held to what all others are.
fn strange_clock(seen: ClockSeen, booted: bool) -> Option<String> {
    let ClockSeen { ahead_s, uncertain_s } = seen;
    let off = |limit: f64| ahead_s.abs() - uncertain_s > limit;
    if off(if booted { clock::RIGHT_S } else { CLOCK_OFF_S }) {
        return Some(format!("a clock that is {ahead_s:+.1} s off"));
    }
    let right = ahead_s.abs() <= clock::RIGHT_S && uncertain_s < clock::SHORT_TRIP_S;
    (booted && !right).then(|| "a clock that nobody has set since the machine was switched on".to_owned())
}

impl Machines {
    /// Machines first: nothing can be asked of one that is off.
    pub(super) async fn all_leftovers(&self) -> Result<Vec<Leftover>, String> {
        let states = self.states().await?;
        let mut all = Vec::new();
        let mut asked = Vec::new();
        for node in &self.plan.nodes {
            let name = &node.name;
            let state = states.get(name).ok_or_else(|| format!("{name} has no machine any more"))?;
            match standing_still(name, *state) {
                None => asked.push(node),
                Some(left) => all.push(left),
            }
        }
        for answer in join_all(asked.into_iter().map(|node| self.leftovers_of(node))).await {
            all.extend(answer?);
        }
        Ok(all)
    }

    async fn leftovers_of(&self, node: &NodePlan) -> Result<Vec<Leftover>, String> {
        let boot = Duration::from_secs(u64::from(self.plan.timers.boot_deadline_s));
        let sum = self.server_cert_sum(&node.name);
        let silences = AtomicU32::new(0);
        let ask = || async {
            // A short deadline: a connection from before a boot is silent, and a new one must be tried.
            match self.guest.run(&node.name, Cmd::script(script(node), self.deadline() / 2)).await {
                // One that ended early, as on a machine that is going down, says nothing of what is left.
                Ok(output) => match read(&node.name, &output.stdout_text(), sum.as_deref()) {
                    Ok(all) => Seen::Ready(Ok(all)),
                    Err(cut) => Seen::NotYet(format!("{cut} ({:?}) {}", output.exit, one_line(&output.stderr_text()))),
                },
                Err(error) => {
                    self.guest.forget(&node.name).await;
                    // It may have been on its way down when states were looked at.
                    let due = silences.fetch_add(1, Ordering::Relaxed).is_multiple_of(SILENCES);
                    let left = if due { self.still(&node.name).await } else { None };
                    left.map_or_else(|| Seen::NotYet(error.to_string()), |left| Seen::Ready(Err(left)))
                }
            }
        };
        let asked = wait::until(format!("an answer of {}", node.name), boot, Duration::from_millis(500), |_| (), ask).await;
        let mut all = match asked.map_err(|error| error.to_string())? {
            Ok(all) => all,
            Err(left) => return Ok(vec![left]),
        };
        let seen = self.clock_of(&node.name).await?;
        let undo = Act::SetClock { node: node.name.clone() };
        let booted = self.switched_on().contains(&node.name);
        if !all.iter().any(|left| left.undo == undo)
            && let Some(what) = strange_clock(seen, booted)
        {
            all.push(Leftover { node: node.name.clone(), what, undo });
        }
        Ok(all)
    }

    /// What is left of a machine that does not run any more; `None`: it does, or nobody can tell.
    async fn still(&self, node: &NodeName) -> Option<Leftover> {
        standing_still(node, *self.states().await.ok()?.get(node)?)
    }

    pub(super) async fn look(&self, claim: &Claim) -> Result<Proof, String> {
        let text = async |node: &NodeName, script: String| {
            let output = self.guest.run(node, Cmd::script(script, self.deadline())).await.map_err(|error| error.to_string())?;
            Ok::<String, String>(output.stdout_text())
        };
        Ok(match claim {
            Claim::Down { node, process } | Claim::Running { node, process } => {
                let seen =
                    text(node, format!("{}systemctl show -P ActiveState {process}\nprocesses {process}\n", shell::PROCESSES))
                        .await?;
                let (unit, running) = seen.split_once('\n').unwrap_or((&seen, ""));
                let count = running.lines().count();
                let held = match claim {
                    Claim::Running { .. } => unit == "active" && count > 0,
                    _ => ["inactive", "failed"].contains(&unit) && count == 0,
                };
                Proof { held, evidence: format!("unit {unit}, {count} processes") }
            }
            Claim::Paused { node, process } => {
                let seen = text(node, format!("{}processes {process}\n", shell::PROCESSES)).await?;
                let states: Vec<&str> = seen.lines().filter_map(|line| line.split(' ').nth(1)).collect();
                Proof {
                    held: !states.is_empty() && states.iter().all(|state| *state == "T"),
                    evidence: told(&seen, "no process"),
                }
            }
            Claim::Dropping { node } => {
                let packets = dropped(&text(node, format!("nft list table {TABLE} 2>/dev/null\n")).await?);
                Proof { held: packets > 0, evidence: format!("{packets} packets dropped") }
            }
            Claim::Slowed { node, delay_ms, jitter_ms, loss_percent } => {
                let seen = text(node, "tc -s qdisc show dev eth0 root\n".to_owned()).await?;
                let held = slowed(&seen, *delay_ms, *jitter_ms, *loss_percent);
                Proof { held, evidence: told(&seen, "no queue discipline") }
            }
            Claim::DiskStalled { node } => {
                let seen = text(node, format!("{}if frozen; then echo frozen; fi\n", shell::FROZEN)).await?;
                let held = seen.trim() == "frozen";
                Proof {
                    held,
                    evidence: if held { "a write waits for more than a second" } else { "a write returned" }.to_owned(),
                }
            }
            Claim::Suspended { node } => self.state(node, DomainState::Paused).await?,
            Claim::PoweredOff { node } => self.state(node, DomainState::ShutOff).await?,
            Claim::ClockOff { node, seconds } => {
                let seen = self.clock_of(node).await?;
                let off = (seen.ahead_s - f64::from(*seconds)).abs();
                let within = f64::from(CLOCK_CLAIM_S);
                Proof {
                    // An answer that was long under way tells too little to prove anything.
                    held: off < within + seen.uncertain_s && seen.uncertain_s < within,
                    evidence: format!("{:+.2} s against this computer, ± {:.2} s", seen.ahead_s, seen.uncertain_s),
                }
            }
            Claim::CertExpired { node } => {
                let (plan, stem) = self.server_cert(node)?;
                let pem = text(node, format!("cat {stem}.pem\n")).await?;
                let findings = self.keyring.judge(plan, &pem, (self.clock)());
                let expired =
                    findings.iter().find(|finding| matches!(finding.problem, crate::pki::check::Problem::Expired { .. }));
                Proof { held: expired.is_some(), evidence: expired.map_or("it is valid".to_owned(), ToString::to_string) }
            }
            Claim::Wiped { node } => {
                let seen = text(node, format!("if [ -e {} ]; then echo data; else echo none; fi\n", shell::DATA)).await?;
                Proof { held: seen.trim() == "none", evidence: format!("{}: {}", shell::DATA, seen.trim()) }
            }
            other => return Err(format!("{other}: that is seen from outside")),
        })
    }

    async fn state(&self, node: &NodeName, wanted: DomainState) -> Result<Proof, String> {
        let states: BTreeMap<NodeName, DomainState> = self.states().await?;
        let state = states.get(node);
        let evidence = state.map_or("no machine".to_owned(), |state| format!("libvirt says {state:?}"));
        Ok(Proof { held: state == Some(&wanted), evidence })
    }
}

/// Whether a listing of `tc -s` shows so much delay, jitter and loss, and packets that went through them.
fn slowed(listing: &str, delay_ms: u32, jitter_ms: u32, loss_percent: u8) -> bool {
    let words: Vec<&str> = listing.split_whitespace().collect();
    let nth_after = |word: &str, n: usize| words.iter().position(|w| *w == word).and_then(|at| words.get(at + n)).copied();
    let after = |word: &str| nth_after(word, 1);
    let ms = |text: &str| -> Option<f64> {
        let split = text.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = text.split_at(split);
        let number: f64 = number.parse().ok()?;
        match unit {
            "us" => Some(number / 1e3),
            "ms" => Some(number),
            "s" => Some(number * 1e3),
            _ => None,
        }
    };
    let delay = after("delay").and_then(ms).unwrap_or(0.0);
    // `delay 200ms  20ms`: the jitter has no word of its own, and what stands there without one is another option.
    let jitter = nth_after("delay", 2).and_then(ms).unwrap_or(0.0);
    let loss = after("loss").and_then(|text| text.trim_end_matches('%').parse::<f64>().ok()).unwrap_or(0.0);
    // `Sent 1200 bytes 12 pkt`
    let sent =
        words.iter().position(|w| *w == "pkt").and_then(|at| words.get(at.checked_sub(1)?)).and_then(|n| n.parse::<u64>().ok());
    let near = |seen: f64, wanted: f64| (seen - wanted).abs() <= wanted * 0.01 + 0.01;
    words.contains(&"netem")
        && near(delay, f64::from(delay_ms))
        && near(jitter, f64::from(jitter_ms))
        && near(loss, f64::from(loss_percent))
        && sent.is_some_and(|n| n > 0)
}

/// Lines on one, or what it means that there are none.
fn told(text: &str, none: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { none.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftovers(text: &str) -> Vec<String> {
        let all = read(&NodeName::controller(1), &format!("{text}\nend\n"), Some("abc")).expect("whole");
        all.iter().map(|left| format!("{} → {}", left.what, left.undo)).collect()
    }

    /// On a busy host an answer takes so long that a clock with whole seconds may pass for right, and be found out after the heal.
    #[test]
    fn a_clock_with_whole_seconds_is_set_unless_it_was_seen_to_be_right() {
        let strange = |ahead_s, uncertain_s, booted| strange_clock(ClockSeen { ahead_s, uncertain_s }, booted);
        assert_eq!(strange(0.04, 0.01, true), None);
        assert_eq!(strange(-0.2, 0.01, true).as_deref(), Some("a clock that is -0.2 s off"));
        for (ahead_s, uncertain_s) in [(-0.2, 0.3), (0.02, 0.3), (0.06, 0.02)] {
            let unset = Some("a clock that nobody has set since the machine was switched on");
            assert_eq!(strange(ahead_s, uncertain_s, true).as_deref(), unset, "{ahead_s} {uncertain_s}");
            assert_eq!(strange(ahead_s, uncertain_s, false), None, "{ahead_s} {uncertain_s}");
        }
        assert_eq!((strange(-0.7, 0.0, false), strange(-1.5, 1.0, false)), (None, None));
        assert_eq!(strange(-0.9, 0.1, false).as_deref(), Some("a clock that is -0.9 s off"));
    }

    #[test]
    fn each_thing_left_is_told_with_what_undoes_it() {
        let quiet = "unit etcd active 0 -\nstates etcd S\nunit kube-apiserver activating 0 -\nstates kube-apiserver \ncert abc -";
        assert_eq!(leftovers(quiet), Vec::<String>::new());
        for (line, expected) in [
            ("unit etcd inactive 0 -", "a stopped etcd → start etcd on controller-1"),
            ("unit kube-scheduler failed -", "a stopped kube-scheduler → start kube-scheduler on controller-1"),
            ("states etcd T", "a paused etcd → continue etcd on controller-1"),
            ("rules", "packet rules → remove packet rules on controller-1"),
            ("netem", "a delay of packets → remove the delay on controller-1"),
            ("frozen", "a frozen disk → thaw etcd's disk on controller-1"),
            ("quota", "a small quota → restart etcd on controller-1 with its own quota"),
            ("joining", "a joiner's definition of etcd → start etcd on controller-1"),
            ("cert def -", "another etcd certificate than its own → give controller-1 its etcd certificate back"),
            ("skew", "a clock that was moved → set the clock of controller-1 right"),
            ("timeless", "a stopped time daemon → set the clock of controller-1 right"),
        ] {
            assert_eq!(leftovers(line), [expected], "{line}");
        }
    }

    #[test]
    fn a_delay_is_proven_by_its_length_and_by_packets() {
        let listing = |rest: &str, packets: u32| {
            format!(
                "qdisc netem 8001: root refcnt 2 limit 20000 {rest}\n Sent 1234 bytes {packets} pkt (dropped 0, overlimits 0 requeues 0)\n"
            )
        };
        assert!(slowed(&listing("delay 200ms  20ms", 12), 200, 20, 0));
        assert!(slowed(&listing("delay 1.5s loss 5%", 12), 1500, 0, 5));
        assert!(slowed(&listing("loss 30%", 12), 0, 0, 30));
        for (listing, why) in [
            (listing("delay 20ms  20ms", 12), "another delay"),
            (listing("delay 200ms", 12), "no jitter"),
            (listing("delay 200ms  2ms", 12), "another jitter"),
            (listing("delay 200ms  20ms loss 5%", 12), "a loss that was not asked for"),
            (listing("delay 200ms  20ms", 0), "no packet went through"),
            (listing("limit 1000", 12), "no delay"),
            ("qdisc fq_codel 0: root refcnt 2 delay 200ms\n Sent 1 bytes 1 pkt\n".to_owned(), "another discipline"),
            (String::new(), "nothing"),
        ] {
            assert!(!slowed(&listing, 200, 20, 0), "{why}");
        }
    }

    #[test]
    fn a_unit_that_boot_will_start_is_no_leftover_and_half_an_answer_is_none() {
        assert_eq!(leftovers("unit etcd inactive 57 -"), Vec::<String>::new());
        let error = read(&NodeName::controller(1), "unit etcd active 0 -\n", None).expect_err("cut off");
        assert!(error.contains("controller-1"), "{error}");
    }
}
