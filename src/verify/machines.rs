//! Judges the machines: reached with the pinned key, booted to the end, units running and staying so, clock right, keys private.
//! `verify` calls `judge` with each node's probe; nothing here concerns more than one node at a time.
//! It knows units and files by the plan alone, and etcd or Kubernetes not at all.

use super::hint;
use super::observe::{Link, NodeSeen, Observed};
use super::report::{Check, Finding, Group, Report, list};
use super::script::TIME_DAEMON;
use super::sections::Sections;
use crate::event::Verdict;
use crate::guest::clock::ClockSeen;
use crate::host::DomainState;
use crate::plan::{NodePlan, Plan};
use crate::said::one_line;
use crate::spec::NodeName;
use std::collections::BTreeMap;

/// A guest's clock may be off by this much, in seconds.
const CLOCK_LIMIT_S: f64 = 1.0;

pub fn judge(plan: &Plan, seen: &Observed) -> Vec<Check> {
    let mut checks = Vec::new();
    for node in &plan.nodes {
        let name = Some(&node.name);
        let Some(said) = seen.nodes.get(&node.name) else { continue };
        let (id, finding) = link(plan, node, said);
        checks.push(finding.file(Group::Machines, id, name));
        let probe = seen.probe(&node.name);
        let ssh = hint(plan, &format!("ssh {}", node.name));
        let unknown = |why: String| Finding::unknown(why).hint(ssh.clone());
        let boot = probe.clone().and_then(|probe| boot(plan, node, probe));
        checks.push(boot.unwrap_or_else(unknown).file(Group::Machines, "boot.finished", name));
        let failed = probe.clone().and_then(|probe| failed_units(plan, node, probe));
        checks.push(failed.unwrap_or_else(unknown).file(Group::Machines, "units.failed", name));
        let stopped = probe.clone().is_ok_and(|probe| probe.ok("units").is_ok_and(time_stopped));
        checks.push(clock(plan, node, &said.clock, stopped).file(Group::Machines, "clock.offset", name));
        let (present, private) = match probe.clone().and_then(|probe| parse_files(&probe.get("files")?.body)) {
            Ok(files) => (seed_files(plan, node, &files), secret_files(plan, node, &files)),
            Err(why) => (unknown(why.clone()), unknown(why)),
        };
        checks.push(present.file(Group::Machines, "files.seed", name));
        checks.push(private.file(Group::Machines, "files.secret", name));
        let units = probe.and_then(|probe| Ok((parse_units(probe.ok("units")?), uptime(probe)?)));
        for wanted in &node.units {
            let logs = hint(plan, &format!("logs {} {}", node.name, bare(wanted)));
            let finding = match &units {
                Err(why) => Finding::unknown(why.clone()),
                Ok((units, uptime)) => match units.get(wanted.as_str()) {
                    None => Finding::unknown("systemd did not say"),
                    Some(unit) => judge_unit(unit, *uptime, Steady::of(plan)),
                },
            };
            checks.push(finding.hint(logs).file(Group::Machines, format!("unit.{}", bare(wanted)), name));
        }
    }
    checks
}

/// A machine that is let go on without it is paused again.
pub const MAKE_ROOM: &str = "free space where the pool lies (df -h)";

/// What libvirt's word means for a machine that says nothing, and what to do next. `None`: it runs.
pub fn silent(plan: &Plan, state: DomainState) -> Option<(&'static str, String)> {
    let again = hint(plan, "up");
    Some(match state {
        DomainState::Running => return None,
        DomainState::PausedIoError => (
            "the machine is paused: the host could not write to its disk (no space left?)",
            format!("{MAKE_ROOM}, then: {again}"),
        ),
        DomainState::Paused => ("the machine is paused", again),
        DomainState::ShuttingDown => ("the machine is shutting down", again),
        DomainState::ShutOff => ("the machine is off", again),
        DomainState::Crashed => ("the machine has crashed", again),
    })
}

/// Puts libvirt's word beside the silence of machines that could not be reached: one that is paused because the host could not
/// write, or is off, is that and not a network or an etcd that is down.
pub fn explain(report: &mut Report, plan: &Plan, states: &BTreeMap<NodeName, DomainState>) {
    for check in report.checks.iter_mut().filter(|check| check.id == "ssh.reachable" && check.verdict == Verdict::Fail) {
        let state = check.node.as_ref().and_then(|node| states.get(node));
        let Some((why, next)) = state.and_then(|state| silent(plan, *state)) else { continue };
        let silence = std::mem::replace(&mut check.summary, why.to_owned());
        check.evidence = if check.evidence.is_empty() { silence } else { format!("{silence}\n{}", check.evidence) };
        check.hint = Some(next);
    }
}

/// `etcd` for `etcd.service`: what people type.
fn bare(unit: &str) -> &str {
    unit.strip_suffix(".service").unwrap_or(unit)
}

fn link(plan: &Plan, node: &NodePlan, seen: &NodeSeen) -> (&'static str, Finding) {
    match &seen.link {
        Link::Up => {
            let finding = Finding::pass(format!("answers at {} with the pinned host key", node.ip));
            ("ssh.reachable", finding)
        }
        Link::HostKey { addr, seen, pinned } => {
            let finding = Finding::fail(format!("the machine at {addr} shows host key {seen}, pinned is {pinned}"))
                .seen([format!("seen   {seen}"), format!("pinned {pinned}"), "nothing more was asked of this machine".to_owned()])
                .hint(hint(plan, &format!("console {}", node.name)));
            ("ssh.host-key", finding)
        }
        Link::Down(why) => {
            let finding = Finding::fail(one_line(why)).hint(hint(plan, &format!("console {}", node.name)));
            ("ssh.reachable", finding)
        }
    }
}

/// `path:line` as `grep -H ''` prints it, gathered by path.
pub(super) fn by_path(body: &str) -> BTreeMap<&str, String> {
    let mut all: BTreeMap<&str, String> = BTreeMap::new();
    for line in body.lines() {
        if let Some((path, text)) = line.split_once(':')
            && path.starts_with('/')
        {
            let file = all.entry(path).or_default();
            file.push_str(text);
            file.push('\n');
        }
    }
    all
}

/// Seconds since the node booted.
fn uptime(probe: &Sections) -> Result<f64, String> {
    let files = by_path(&probe.get("state")?.body);
    let text = files.get("/proc/uptime").ok_or("no uptime")?;
    text.split_whitespace().next().and_then(|first| first.parse().ok()).ok_or_else(|| format!("uptime is {:?}", one_line(text)))
}

/// cloud-init ended without errors, systemd is through with the boot, and the node is who it should be.
fn boot(plan: &Plan, node: &NodePlan, probe: &Sections) -> Result<Finding, String> {
    let files = by_path(&probe.get("state")?.body);
    let up = uptime(probe)?;
    let state = probe.ok("system")?.trim().strip_prefix("SystemState=").ok_or("systemd did not say its state")?;
    let logs = hint(plan, &format!("ssh {} -- cloud-init status --long", node.name));
    let fail = |what: String| Ok(Finding::fail(what).hint(logs.clone()));
    let hostname = files.get("/proc/sys/kernel/hostname").ok_or("no hostname")?.trim();
    if hostname != node.name.to_string() {
        return fail(format!("the machine calls itself {:?}", one_line(hostname)));
    }
    let Some(result) = files.get("/run/cloud-init/result.json") else {
        return fail(format!("cloud-init has not finished, {up:.0} s after boot"));
    };
    let result: serde_json::Value =
        serde_json::from_str(result).map_err(|error| format!("cloud-init's result.json cannot be read: {error}"))?;
    let v1 = result.get("v1").ok_or("cloud-init's result.json has no v1")?;
    let errors = v1.get("errors").and_then(|errors| errors.as_array()).ok_or("cloud-init's result.json has no errors field")?;
    if !errors.is_empty() {
        let errors: Vec<String> =
            errors.iter().map(|error| one_line(&error.as_str().map_or_else(|| error.to_string(), str::to_owned))).collect();
        return Ok(Finding::fail(format!("cloud-init ended with errors: {}", list(&errors))).seen(errors).hint(logs));
    }
    match state {
        // A failed unit makes the system degraded; that has a line of its own.
        "running" | "degraded" => {}
        other => return fail(format!("systemd is {other:?}, {up:.0} s after boot")),
    }
    let source = v1.get("datasource").and_then(|source| source.as_str()).unwrap_or("a source it does not name");
    Ok(Finding::pass(format!("up {up:.0} s, cloud-init done without errors"))
        .seen([format!("systemd {state}; cloud-init from {}", one_line(source))]))
}

fn failed_units(plan: &Plan, node: &NodePlan, probe: &Sections) -> Result<Finding, String> {
    let lines: Vec<&str> = probe.ok("failed")?.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return Ok(Finding::pass("no unit failed"));
    }
    let names: Vec<&str> = lines.iter().filter_map(|line| line.trim_start_matches('●').split_whitespace().next()).collect();
    let look = hint(plan, &format!("ssh {} -- systemctl status {}", node.name, names.first().copied().unwrap_or_default()));
    Ok(Finding::fail(format!("failed: {}", list(&names))).seen(lines.iter().map(|line| one_line(line))).hint(look))
}

/// `systemctl show` of several units: blocks of `Key=value` with blank lines between, by `Id`.
pub fn parse_units(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let block = |block: &str| -> BTreeMap<String, String> {
        let pairs = block.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    let blocks = text.split("\n\n").map(block);
    blocks.filter_map(|block| Some((block.get("Id")?.clone(), block))).collect()
}

/// How long a unit has to stay up before it counts as running, in seconds: after a restart or two, and after many.
#[derive(Clone, Copy)]
struct Steady {
    after_one: f64,
    after_many: f64,
}

impl Steady {
    fn of(plan: &Plan) -> Self {
        let timers = &plan.timers;
        Self { after_one: timers.lease_duration_s.into(), after_many: timers.probe_deadline_s.into() }
    }
}

/// Fewer restarts than this are no loop.
const OFTEN: u32 = 3;
/// A unit that has been up for so long is not remarked on, whatever it did before, in seconds.
const FORGOTTEN_S: f64 = 600.0;

/// Whether a unit that runs may do so between two crashes: it was restarted often, and is not up for twice as long as it was between
/// its restarts until now. After a drill has killed it a few times a healthy one looks the same.
pub(super) fn may_fall_again(restarts: u32, up_s: f64, uptime_s: f64) -> bool {
    let before_s = (uptime_s - up_s).max(0.0) / f64::from(restarts.max(1));
    restarts >= OFTEN && up_s < (2.0 * before_s).min(FORGOTTEN_S)
}

fn judge_unit(unit: &BTreeMap<String, String>, uptime_s: f64, steady: Steady) -> Finding {
    let get = |key: &str| unit.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let facts = unit.iter().map(|(key, value)| format!("{key}={}", one_line(value)));
    let (Some(active), Some(sub)) = (get("ActiveState"), get("SubState")) else {
        return Finding::unknown("systemd gave no state").seen(facts);
    };
    if get("LoadState").is_some_and(|load| load != "loaded") {
        return Finding::fail(format!("the unit is {}", get("LoadState").unwrap_or_default())).seen(facts);
    }
    let restarts: Option<u32> = get("NRestarts").and_then(|text| text.parse().ok());
    let since: Option<f64> = get("ActiveEnterTimestampMonotonic").and_then(|text| text.parse().ok());
    let result =
        get("Result").filter(|result| *result != "success").map(|result| format!(", result {result}")).unwrap_or_default();
    let after = restarts.filter(|n| *n > 0).map(|n| format!(", {n} restarts")).unwrap_or_default();
    let once = get("Type") == Some("oneshot");
    if active != "active" || !(sub == "running" || once && sub == "exited") {
        return Finding::fail(format!("{active} ({sub}){result}{after}")).seen(facts);
    }
    let (Some(restarts), Some(since)) = (restarts, since) else {
        return Finding::unknown(format!("{active} ({sub}), for how long is not known")).seen(facts);
    };
    let up_s = (uptime_s - since / 1e6).max(0.0);
    let finding = match restarts {
        OFTEN.. if up_s < steady.after_many => {
            Finding::fail(format!("keeps restarting: {restarts} times, the last {up_s:.0} s ago"))
        }
        1.. if up_s < steady.after_one => {
            Finding::unknown(format!("restarted {up_s:.0} s ago: too soon to say that it stays up"))
        }
        _ => Finding::pass(format!("{active} ({sub}) for {up_s:.0} s{after}")),
    };
    let finding = match may_fall_again(restarts, up_s, uptime_s) {
        true => finding.remark("by drills, or in a slow crash loop"),
        false => finding,
    };
    finding.seen(facts)
}

/// Whether the time daemon ran since boot and does not any more. One that has never run is not this cluster's to judge.
fn time_stopped(units: &str) -> bool {
    let units = parse_units(units);
    let get = |key: &str| units.get(TIME_DAEMON).and_then(|unit| unit.get(key)).map(String::as_str);
    get("ActiveState") == Some("inactive") && get("ActiveEnterTimestampMonotonic").is_some_and(|since| since != "0")
}

/// A clock that is right and that nothing keeps so will not stay right.
pub(super) fn clock(plan: &Plan, node: &NodePlan, seen: &Result<ClockSeen, String>, stopped: bool) -> Finding {
    let look = hint(plan, &format!("ssh {} -- timedatectl", node.name));
    if stopped {
        let offset = seen.as_ref().map_or_else(Clone::clone, |seen| format!("{:+.3} s against this computer", seen.ahead_s));
        return Finding::fail(format!("{TIME_DAEMON} was stopped")).seen([offset]).hint(hint(plan, "drill heal"));
    }
    let finding = match seen {
        Err(why) => Finding::unknown(why.clone()),
        Ok(ClockSeen { ahead_s, uncertain_s }) => {
            let side = if *ahead_s < 0.0 { "behind" } else { "ahead of" };
            let off = ahead_s.abs();
            let what = format!("{off:.3} s {side} this computer, ± {uncertain_s:.3} s");
            if off + uncertain_s <= CLOCK_LIMIT_S {
                Finding::pass(what)
            } else if off - uncertain_s > CLOCK_LIMIT_S {
                Finding::fail(format!("{what}; accepted is {CLOCK_LIMIT_S} s"))
            } else {
                Finding::unknown(format!("{what}: too uncertain to tell from {CLOCK_LIMIT_S} s"))
            }
        }
    };
    finding.hint(look)
}

/// One line of `stat -c '%f %u %g %s %n'`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileSeen {
    /// Type and permissions, as `st_mode`.
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
}

/// What is there, by path. Lines that are not of `stat` (its complaints about missing files) are passed over,
/// but an answer without a single file is none.
fn parse_files(body: &str) -> Result<BTreeMap<String, FileSeen>, String> {
    let line = |line: &str| {
        let mut words = line.splitn(5, ' ');
        let mode = u32::from_str_radix(words.next()?, 16).ok()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let (uid, gid, size) = (number()?, number()?, number()?);
        let path = words.next().filter(|path| path.starts_with('/'))?;
        Some((path.to_owned(), FileSeen { mode, uid: u32::try_from(uid).ok()?, gid: u32::try_from(gid).ok()?, size }))
    };
    let all: BTreeMap<_, _> = body.lines().filter_map(line).collect();
    if all.is_empty() { Err(format!("stat showed no file: {}", one_line(body))) } else { Ok(all) }
}

fn seed_files(plan: &Plan, node: &NodePlan, files: &BTreeMap<String, FileSeen>) -> Finding {
    let mut wrong = Vec::new();
    for planned in &node.files {
        match files.get(&planned.path) {
            None => wrong.push(format!("{} is not there", planned.path)),
            Some(file) if file.mode & 0o170_000 != 0o100_000 => wrong.push(format!("{} is not a regular file", planned.path)),
            Some(file) if file.size == 0 => wrong.push(format!("{} is empty", planned.path)),
            Some(_) => {}
        }
    }
    let fix = wrong.first().and_then(|what| what.split(' ').next()).map(|path| format!("plan --show {}:{path}", node.name));
    match wrong.as_slice() {
        [] => Finding::pass(format!("all {} files are there", node.files.len())),
        [only] => Finding::fail(only.clone()),
        more => Finding::fail(format!("{} of {} files are missing or empty: {}", more.len(), node.files.len(), more[0])),
    }
    .seen(wrong)
    .hint(hint(plan, &fix.unwrap_or_default()))
}

/// Keys and kubeconfigs, planned or found beside the planned ones: root's, 0600.
fn secret_files(plan: &Plan, node: &NodePlan, files: &BTreeMap<String, FileSeen>) -> Finding {
    let planned: Vec<&str> = node.files.iter().filter(|file| file.mode == 0o600).map(|file| file.path.as_str()).collect();
    let looks_secret = |path: &str| path.ends_with("-key.pem") || path.ends_with(".kubeconfig");
    let secret: Vec<_> = files.iter().filter(|(path, _)| planned.contains(&path.as_str()) || looks_secret(path)).collect();
    let shown = |(path, file): (&String, &FileSeen)| format!("{:04o} {}:{} {path}", file.mode & 0o7777, file.uid, file.gid);
    let wrong: Vec<_> = secret.iter().filter(|(_, file)| file.mode & 0o7777 != 0o600 || file.uid != 0 || file.gid != 0).collect();
    let absent = planned.iter().filter(|path| !files.contains_key(**path)).count();
    let fix = match wrong.first() {
        Some((path, _)) => hint(plan, &format!("ssh {} -- 'chown root:root {path} && chmod 600 {path}'", node.name)),
        None => hint(plan, &format!("ssh {}", node.name)),
    };
    match wrong.as_slice() {
        [] if absent > 0 => Finding::unknown(format!("{absent} of {} secret files are not there to be looked at", planned.len())),
        [] => Finding::pass(format!("{} secret files are 0600 root", secret.len())),
        [(path, file)] => Finding::fail(format!("{path} is {:04o} {}:{}, not 0600 root", file.mode & 0o7777, file.uid, file.gid)),
        [(path, _), rest @ ..] => Finding::fail(format!("{path} and {} more are not 0600 root", rest.len())),
    }
    .seen(secret.iter().map(|(path, file)| shown((path, file))))
    .hint(fix)
}
