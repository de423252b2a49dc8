//! Acts in words of a guest's shell: what breaks, what undoes it, and the timers that undo it when nobody else does.
//! `Machines` sends the text as scripts on standard input; every one may run twice.
//! It is pure: names and numbers in, text out.

use crate::drill::act::Act;
use crate::drill::catalogue::Process;
use crate::drill::packets::TABLE;
use crate::guest::quote;
use crate::spec::NodeName;
use std::fmt::Write as _;
use std::time::Duration;

/// What drills keep on a node, gone with its next boot.
pub const PLACE: &str = "/run/ktcw-drill";
/// etcd's directory; frozen as a whole.
pub const DISK: &str = "/var/lib/etcd";
/// The member's data. Without it, etcd would make a new and empty store.
pub const DATA: &str = "/var/lib/etcd/data";
/// quadlet prefers a definition here, and it does not outlive a boot.
pub const OVERRIDE: &str = "/run/containers/systemd/etcd.container";
const DEFINITION: &str = "/etc/containers/systemd/etcd.container";
/// Whether the override is there to let a member join, and not for its quota. One that joined when the cluster grew has the
/// word in its own definition.
pub const JOINING: &str = "grep -qs -e --initial-cluster-state=existing /run/containers/systemd/etcd.container && \
     { ! grep -qs -e --initial-cluster-state=existing /etc/containers/systemd/etcd.container || \
     [ \"$(cat /run/containers/systemd/etcd.container)\" = \"$(cat /etc/containers/systemd/etcd.container)\" ]; }";
/// Where the server's certificate is kept while a short-lived one is in its place.
pub const KEPT_CERT: &str = "/run/ktcw-drill/pki";
/// Puts a skewed clock back to where it was before the first skew, however often it was moved since.
pub const SKEW: &str = "/run/ktcw-drill/skew";
/// Whether the time daemon ran since boot and was stopped: one that never ran on this image is nobody's doing.
pub const TIME_STOPPED: &str = "[ \"$(systemctl show -P ActiveState systemd-timesyncd.service)\" = inactive ] && \
     [ \"$(systemctl show -P ActiveEnterTimestampMonotonic systemd-timesyncd.service)\" != 0 ]";

/// Processes of a unit, without the supervisor that podman puts beside them, as `pid state`.
pub const PROCESSES: &str = r#"processes() {
  find "/sys/fs/cgroup/system.slice/$1.service" -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do
    sed -nE 's/^([0-9]+) \((.*)\) (.) .*/\1 \3 \2/p' "/proc/$pid/stat" 2>/dev/null
  done | grep -vE ' (conmon|catatonit|crun|podman)$' || true
}
"#;

/// Whether writes to etcd's disk return. Touching a file takes no disk, only leave to write: what waits is a freeze.
/// The one that waits ends with the thaw.
pub const FROZEN: &str = r#"frozen() {
  mountpoint -q /var/lib/etcd || return 1
  touch /var/lib/etcd/.ktcw-drill </dev/null >/dev/null 2>&1 &
  local toucher=$!
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
    if ! kill -0 "$toucher" 2>/dev/null; then rm -f /var/lib/etcd/.ktcw-drill; return 1; fi
    sleep 0.1
  done
}
"#;

pub fn down(process: Process, graceful: bool) -> String {
    // The stop after the kill keeps systemd, which would restart it in a second, from doing so.
    let kill = if graceful { String::new() } else { format!("systemctl kill --signal=KILL {process}.service || true\n") };
    format!("{kill}systemctl stop {process}.service\n")
}

pub fn pause(process: Process) -> String {
    format!("systemctl kill --signal=STOP {process}.service\n")
}

pub fn resume(process: Process) -> String {
    format!("systemctl kill --signal=CONT {process}.service\n")
}

/// Starts a unit and does not wait: etcd says that it is ready when it has found a quorum, which may take the next start.
/// A member without data is not started as itself: it would take part in making a new, empty cluster.
pub fn start(process: Process) -> String {
    let unit =
        format!("systemctl reset-failed {process}.service 2>/dev/null || true\nsystemctl start --no-block {process}.service\n");
    if process != Process::Etcd {
        return unit;
    }
    format!(
        "if ! mountpoint -q {DISK}; then systemctl start var-lib-etcd.mount; fi\n\
         if [ ! -e {DATA}/member ]; then echo 'etcd has no data here, and would start as a new, empty member' >&2; exit 1; fi\n\
         if {JOINING}; then rm -f {OVERRIDE}; systemctl daemon-reload; fi\n{unit}"
    )
}

/// Puts a changed copy of etcd's definition where quadlet looks first.
fn overridden(change: &str) -> String {
    format!(
        "mkdir -p /run/containers/systemd\nsed -E {} {DEFINITION} >{OVERRIDE}.new\nmv {OVERRIDE}.new {OVERRIDE}\n\
         systemctl daemon-reload\n",
        quote(change)
    )
}

pub fn start_joining() -> String {
    let existing = overridden("s/--initial-cluster-state=new/--initial-cluster-state=existing/");
    format!("{existing}systemctl reset-failed etcd.service 2>/dev/null || true\nsystemctl start --no-block etcd.service\n")
}

pub fn quota(mib: Option<u32>) -> String {
    let definition = match mib {
        Some(mib) => overridden(&format!("s/--quota-backend-bytes=[0-9]+/--quota-backend-bytes={}/", u64::from(mib) << 20)),
        None => format!("[ -e {OVERRIDE} ] || exit 0\nrm -f {OVERRIDE}\nsystemctl daemon-reload\n"),
    };
    format!("{definition}systemctl stop etcd.service\nsystemctl start --no-block etcd.service\n")
}

/// The container in which a snapshot is restored on a node.
pub const RESTORER: &str = "ktcw-drill-restore";

/// From here to the end of the script nobody else restores a snapshot on this node: one that has lost its caller is ended first,
/// for what it puts down afterwards would pass for data of this restore. The lock is on the directory itself, so that no file is
/// left; what is started meanwhile must not inherit it. Who waits for it may lose his caller as well, and must not act late.
pub fn alone_with_data() -> String {
    format!(
        "podman rm --force --ignore --time 0 {RESTORER} >&2\nexec 9<{DISK}\n\
         if ! flock --timeout 20 9; then echo 'another restore is still at work on {DISK}' >&2; exit 1; fi\n"
    )
}

pub fn wipe() -> String {
    format!("if systemctl is-active --quiet etcd.service; then echo 'etcd is running' >&2; exit 1; fi\nrm -rf {DATA}\n")
}

/// Bytes that a store may take on etcd's disk once its own data is gone, as `room N`. Files come and go under a member that runs: of
/// those that have gone nothing is counted.
pub fn room() -> String {
    format!(
        "set -eo pipefail\nmountpoint -q {DISK}\nfree=$(df --block-size=1 --output=avail {DISK} | tail -n 1)\n\
         own=$(du --summarize --block-size=1 {DATA} 2>/dev/null | cut -f 1) || true\necho \"room $((free + ${{own:-0}}))\"\n"
    )
}

/// `-f -` with the ruleset, which replaces the table.
pub fn cut(ruleset: &str) -> String {
    format!("nft -f - <<'RULES'\n{ruleset}RULES\n")
}

pub fn uncut() -> String {
    cut(&format!("table {TABLE}\ndelete table {TABLE}\n"))
}

pub fn slow(delay_ms: u32, jitter_ms: u32, loss_percent: u8) -> String {
    // The queue must hold what is under way: 1000 packets, netem's own limit, are few for seconds of delay.
    format!("tc qdisc replace dev eth0 root netem limit 20000 delay {delay_ms}ms {jitter_ms}ms loss {loss_percent}%\n")
}

pub fn unslow() -> String {
    "if tc qdisc show dev eth0 root | grep -q netem; then tc qdisc del dev eth0 root; fi\n".to_owned()
}

pub fn stall_disk() -> String {
    format!("{FROZEN}if ! frozen; then fsfreeze --freeze {DISK}; fi\n")
}

/// A file system that is not frozen refuses to be thawed: what counts is that writes return afterwards.
pub fn unstall_disk() -> String {
    format!("{FROZEN}fsfreeze --unfreeze {DISK} 2>/dev/null || true\nif frozen; then echo 'writes still wait' >&2; exit 1; fi\n")
}

/// Before a clock is moved: the way back is on the node first, then the daemon that would undo the move is stopped. A way back
/// that is there already is the right one: it leads to where the clock was before anybody moved it.
pub fn before_skew() -> String {
    // Boot time is moved by nobody, so that undoing twice, or undoing a move that never came, does no harm.
    let offset = "import time as t; print(\"%.6f\" % (t.clock_gettime(t.CLOCK_REALTIME) - t.clock_gettime(t.CLOCK_BOOTTIME)))";
    let set = "import time as t; t.clock_settime(t.CLOCK_REALTIME, t.clock_gettime(t.CLOCK_BOOTTIME) + ($offset))";
    format!(
        "mkdir -p -m 0700 {PLACE}\nif [ ! -e {SKEW} ]; then\noffset=$(python3 -S -c '{offset}')\n\
         echo \"python3 -S -c '{set}'\" >{SKEW}.new\nmv {SKEW}.new {SKEW}\nfi\n\
         systemctl stop systemd-timesyncd.service\n"
    )
}

/// After a clock was set by this computer, which knows better than the way back: all that is left to do is to start the daemon.
pub fn after_skew() -> String {
    format!("rm -f {SKEW} {SKEW}.new\nif {TIME_STOPPED}; then systemctl start --no-block systemd-timesyncd.service; fi\n")
}

/// Puts the clock back to where it was, for the timer: it cannot ask this computer.
fn unskew() -> String {
    format!("if [ -e {SKEW} ]; then . {SKEW}; fi\n{}", after_skew())
}

/// Puts the kept certificate back.
fn restore_cert(stem: &str) -> String {
    let stem = quote(stem);
    format!(
        "if [ -e {KEPT_CERT}/cert.pem ]; then cp {KEPT_CERT}/key.pem {stem}-key.pem; cp {KEPT_CERT}/cert.pem {stem}.pem; \
         rm -rf {KEPT_CERT}; fi\n"
    )
}

/// What a timer in the guest can do about an act of the heal by itself, if it is this node's.
pub fn alone(act: &Act, node: &NodeName) -> Option<String> {
    match act {
        Act::Start { node: of, process } if of == node => Some(start(*process)),
        Act::Continue { node: of, process } if of == node => Some(resume(*process)),
        Act::Uncut { node: of } if of == node => Some(uncut()),
        Act::Unslow { node: of } if of == node => Some(unslow()),
        Act::UnstallDisk { node: of } if of == node => Some(unstall_disk()),
        Act::SetClock { node: of } if of == node => Some(unskew()),
        Act::RenewCert { node: of } if of == node => Some(restore_cert("/etc/etcd/pki/server")),
        _ => None,
    }
}

/// Sets a timer for each act that this guest can do alone; `None`: there is none. Timers of earlier runs go first.
pub fn arm(undo: &[Act], node: &NodeName, after: Duration) -> Option<String> {
    let alone: Vec<String> = undo.iter().filter_map(|act| alone(act, node)).collect();
    if alone.is_empty() {
        return None;
    }
    let mut script = format!("set -e\n{}mkdir -p -m 0700 {PLACE}\n", disarm());
    for (i, undo) in alone.iter().enumerate() {
        // The timer counts by the monotonic clock: a drill that moves the other one does not move it.
        let _ = writeln!(
            script,
            "systemd-run --quiet --collect --unit=ktcw-drill-heal-{i} --on-active={}ms --timer-property=AccuracySec=100ms \
             /bin/bash -c {}",
            after.as_millis(),
            quote(undo)
        );
    }
    Some(script)
}

pub fn disarm() -> String {
    "systemctl stop 'ktcw-drill-heal-*.timer'\n".to_owned()
}

/// The end of etcd's journal, as a cursor: clocks may move, and a cursor does not. Fails where there is no line at all, for then
/// nothing would be read later on either.
pub fn log_cursor() -> String {
    "journalctl --quiet --no-pager --output=cat --unit=etcd.service --lines=1 --show-cursor | sed -n 's/^-- cursor: //p' | grep .\n"
        .to_owned()
}

/// Lines of etcd's journal after a cursor that no healthy member writes, at most twenty, and at last how many were read. Fails
/// when the journal cannot be read.
pub fn alarming_logs(cursor: &str) -> String {
    // One line in, one look: a journal that ends in the middle is not taken for a quiet one.
    let sift = r#"/"level":"(panic|fatal)"|^panic: |^fatal error: / { if (n++ < 20) print substr($0, 1, 400) } END { print "read " NR }"#;
    format!(
        "set -o pipefail\njournalctl --quiet --no-pager --output=cat --unit=etcd.service --after-cursor={} | awk {}\n",
        quote(cursor),
        quote(sift)
    )
}

/// Which start of a unit it is, of which boot.
pub fn incarnation_of(unit: &str) -> String {
    format!("cat /proc/sys/kernel/random/boot_id\nsystemctl show -P InvocationID {unit}.service\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::bound::Timing;
    use crate::drill::catalogue::built_in;
    use crate::drill::script::script;

    fn checked(script: &str) {
        let output = std::process::Command::new("bash").args(["-n", "-c", script]).output().expect("bash");
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn every_script_is_shell() {
        let texts = [
            down(Process::Etcd, true),
            down(Process::Kubelet, false),
            start(Process::Etcd),
            start_joining(),
            quota(Some(16)),
            quota(None),
            wipe(),
            room(),
            cut("table inet x {\n}\n"),
            uncut(),
            slow(200, 20, 0),
            unslow(),
            stall_disk(),
            unstall_disk(),
            restore_cert("/etc/etcd/pki/server"),
            before_skew(),
            after_skew(),
            unskew(),
            incarnation_of("etcd"),
            log_cursor(),
            alarming_logs("s=abc;i=1'2"),
            PROCESSES.to_owned(),
        ];
        texts.iter().for_each(|text| checked(text));
    }

    /// Whatever a drill does that would outlast a lost connection is undone by a timer in the guest, or is known to need this
    /// computer, which then watches over itself.
    #[test]
    fn every_fault_is_undone_by_a_timer_in_its_guest_or_known_to_need_the_host() {
        let members: Vec<NodeName> = (0..3).map(NodeName::controller).collect();
        for drill in built_in().expect("parses") {
            let hit = &members[..1];
            let script = script(&drill.fault, hit, &members, &Timing::native(), "/snapshot");
            for act in script.heal.iter().chain(&script.tidy) {
                let here = act.nodes().iter().all(|node| alone(act, node).is_some()) && !act.nodes().is_empty();
                let waits = matches!(act, Act::AwaitHealthy);
                assert!(here || waits || act.needs_the_host(), "{}: nothing undoes it but us: {act}", drill.name);
            }
            let Some(armed) = arm(&script.heal, &hit[0], Duration::from_secs(40)) else { continue };
            checked(&armed);
            assert!(armed.contains("--on-active=40000ms"), "{armed}");
            assert!(arm(&script.heal, &NodeName::worker(3), Duration::from_secs(1)).is_none(), "{}", drill.name);
        }
    }

    /// The way back of a clock, on a clock in a file: it is written before the daemon is stopped, a second move keeps it, and to
    /// undo without a move, or twice, leaves the clock as it was.
    #[test]
    fn a_clock_has_its_way_back_before_it_is_moved_and_keeps_it() {
        let dir = tempfile::tempdir().expect("dir");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (clock, daemon, bin) = (path("clock"), path("daemon"), path("bin"));
        // Real Python, for which the two clocks are this file and zero.
        let python = format!(
            "#!/bin/sh\nshift 2\nexec python3 -S -c 'import sys, time as t\nt.clock_gettime = lambda c: float(open(\"{clock}\").read()) \
             if c == t.CLOCK_REALTIME else 100.0\nt.clock_settime = lambda c, to: open(\"{clock}\", \"w\").write(str(to))\n\
             exec(sys.argv[1])' \"$1\"\n"
        );
        let systemctl = format!(
            "#!/bin/sh\ncase $* in\n*ActiveState*) cat {daemon} ;;\n*Monotonic*) echo 7 ;;\n\
             'stop systemd-timesyncd.service') [ -s {skew} ] || exit 9; echo inactive >{daemon} ;;\n\
             'start --no-block systemd-timesyncd.service') echo active >{daemon} ;;\n*) exit 8 ;;\nesac\n",
            skew = path("skew")
        );
        std::fs::create_dir(&bin).expect("bin");
        for (name, text) in [("python3", python.replace("exec python3", "exec /usr/bin/python3")), ("systemctl", systemctl)] {
            let tool = dir.path().join("bin").join(name);
            std::fs::write(&tool, text).expect("written");
            std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
        }
        let run = |script: String| {
            let script = script.replace(PLACE, &dir.path().display().to_string());
            let path = format!("{bin}:{}", std::env::var("PATH").expect("a path"));
            let out = std::process::Command::new("bash").env("PATH", path).args(["-c", &format!("set -e\n{script}")]).output();
            let out = out.expect("bash");
            assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
        };
        let set = |to: f64| std::fs::write(&clock, to.to_string()).expect("set");
        let now = || std::fs::read_to_string(&clock).expect("a clock").parse::<f64>().expect("a number");
        let daemon_is = || std::fs::read_to_string(&daemon).expect("a state").trim().to_owned();

        std::fs::write(&daemon, "active\n").expect("a state");
        set(1_800_000_000.25);
        run(before_skew());
        assert_eq!(daemon_is(), "inactive");
        set(1_800_000_600.25);
        run(before_skew());
        set(1_800_000_900.25);
        for _ in 0..2 {
            run(unskew());
            assert!((now() - 1_800_000_000.25).abs() < 1e-3, "{}", now());
            assert_eq!(daemon_is(), "active");
        }
        run(before_skew());
        run(unskew());
        assert!((now() - 1_800_000_000.25).abs() < 1e-3, "nobody had moved it: {}", now());
        run(before_skew());
        run(after_skew());
        assert_eq!(daemon_is(), "active");
        assert!(!dir.path().join("skew").exists());
    }

    /// The words that sift logs, on logs.
    #[test]
    fn alarming_lines_are_found_counted_and_a_journal_that_cannot_be_read_is_no_quiet_one() {
        let run = |journal: &str| {
            let dir = tempfile::tempdir().expect("dir");
            let tool = dir.path().join("journalctl");
            std::fs::write(&tool, format!("#!/bin/sh\n{journal}\n")).expect("written");
            std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
            let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("a path"));
            let script = format!("set -e\n{}", alarming_logs("s=1;i=2"));
            let out = std::process::Command::new("bash").env("PATH", path).args(["-c", &script]).output().expect("bash");
            (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
        };
        let lines = r#"echo '{"level":"info","msg":"fine"}'; echo '{"level":"fatal","msg":"gone"}'; echo 'panic: tocommit'; echo 'fatal error: concurrent map writes'"#;
        let found = "{\"level\":\"fatal\",\"msg\":\"gone\"}\npanic: tocommit\nfatal error: concurrent map writes\nread 4\n";
        assert_eq!(run(lines), (true, found.to_owned()));
        assert_eq!(run("true"), (true, "read 0\n".to_owned()));
        assert!(!run("exit 1").0, "a journal that cannot be read");
    }

    #[test]
    fn room_is_what_is_free_and_what_the_member_has_now() {
        let run = |df: &str, du: &str| {
            let dir = tempfile::tempdir().expect("dir");
            for (name, text) in [("df", df), ("du", du), ("mountpoint", "true")] {
                let tool = dir.path().join(name);
                std::fs::write(&tool, format!("#!/bin/sh\n{text}\n")).expect("written");
                std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
            }
            let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("a path"));
            let out = std::process::Command::new("bash").env("PATH", path).args(["-c", &room()]).output().expect("bash");
            out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
        };
        let (df, du) = ("printf '     Avail\\n1000000\\n'", "printf '4096\\t/var/lib/etcd/data\\n'");
        assert_eq!(run(df, du).as_deref(), Some("room 1004096\n"));
        // A log file went while it was counted, and there is no data at all.
        assert_eq!(run(df, &format!("{du}; exit 1")).as_deref(), Some("room 1004096\n"));
        assert_eq!(run(df, "exit 1").as_deref(), Some("room 1000000\n"));
        assert_eq!(run("exit 1", du), None, "what cannot be seen is no room");
    }

    #[test]
    fn a_member_without_data_is_never_started_as_itself_not_even_by_its_timer() {
        let node = NodeName::controller(0);
        let timer = alone(&Act::Start { node: node.clone(), process: Process::Etcd }, &node).expect("a timer");
        let (guard, begin) =
            (timer.find("/var/lib/etcd/data/member").expect("guard"), timer.find("systemctl start --no-block").expect("start"));
        assert!(guard < begin && timer[guard..begin].contains("exit 1"), "{timer}");
        assert!(!start(Process::Kubelet).contains("/var/lib/etcd"));
    }

    #[test]
    fn overrides_change_the_one_flag_they_are_about() {
        let definition = include_str!("../../cloud-init/etcd.container");
        for flag in ["--initial-cluster-state=", "--quota-backend-bytes="] {
            assert_eq!(definition.matches(flag).count(), 1, "{flag}");
        }
        assert!(quota(Some(16)).contains("--quota-backend-bytes=16777216"));
        assert!(quota(None).starts_with("[ -e /run/containers/systemd/etcd.container ] || exit 0"));
    }
}
