//! Runs the program as a user would and looks at the host beside it.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The machines of `ha3`.
pub const NODES: [&str; 5] = ["controller-0", "controller-1", "controller-2", "worker-0", "worker-1"];

/// One cluster's name and the flags every `up` of it gets.
pub struct Rig {
    pub cluster: &'static str,
    accel: Vec<String>,
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub took: Duration,
    what: String,
}

impl Ran {
    /// The run must have ended with `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{} took {:?}\nstdout:\n{}\nstderr:\n{}", self.what, self.took, self.out, self.err);
        self
    }
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{}: {error}\n{}", self.what, self.out))
    }
    #[track_caller]
    pub fn says(self, part: &str) -> Ran {
        let all = format!("{}\n{}", self.out, self.err);
        assert!(all.contains(part), "{}: {part:?} is not in\n{all}", self.what);
        self
    }
}

/// What `setup/e2e.sh` found out: `kvm`, `kvm-test-kernel` or `tcg`.
pub fn mode() -> String {
    std::env::var("KTCW_E2E_MODE").expect("started by setup/e2e.sh")
}

/// Whether it runs this suite: `e2e`, `full`, `bench` …
pub fn suite_is(name: &str) -> bool {
    std::env::var("KTCW_E2E").is_ok_and(|suite| suite == name)
}

/// Where reports of a run go that are worth keeping.
pub fn artefacts() -> PathBuf {
    PathBuf::from(std::env::var_os("KTCW_E2E_ARTEFACTS").expect("started by setup/e2e.sh"))
}

/// Keeps a table or a report beyond this run and the next, in `target/bench`.
pub fn keep(name: &str, text: &str) {
    let kept = artefacts().parent().expect("the target directory").join("bench");
    std::fs::create_dir_all(&kept).expect("a directory");
    std::fs::write(kept.join(name), text).expect("kept");
}

/// Whether machines have a fraction of native speed here: emulated, or under a KVM whose traps are dear, as on a host that is a
/// virtual machine itself. Told by what `up` took against what it takes where they run natively. Then `make e2e` leaves to
/// `make e2e-full` what would not end in time, and says so; `make e2e-full` leaves nothing out.
pub fn slow(up: &Ran, natively: Duration) -> bool {
    let slow = mode() == "tcg" || (!suite_is("full") && up.took > natively * 3 / 2);
    if slow {
        step(&format!("machines are slow here: up took {:.0} s, natively about {}", up.took.as_secs_f64(), natively.as_secs()));
    }
    slow
}

impl Rig {
    /// A cluster that runs as well as this machine can.
    pub fn native(cluster: &'static str) -> Rig {
        let accel = match mode().as_str() {
            "kvm" => vec!["--accel".into(), "kvm".into()],
            "kvm-test-kernel" => {
                let kernel = std::env::var("KTCW_E2E_KERNEL").expect("the unpacked test kernel");
                // Under the software KVM that this kernel is for, each timer interrupt costs a fifth of a millisecond: a tick
                // of 4 ms gathers them, and a controller at rest takes half as much of a core.
                let args = "nokaslr dummy.numdummies=0 highres=off";
                vec!["--accel".into(), "kvm".into(), "--kernel".into(), kernel, "--kernel-args".into(), args.into()]
            }
            _ => vec!["--accel".into(), "tcg".into()],
        };
        Rig { cluster, accel }
    }

    pub fn emulated(cluster: &'static str) -> Rig {
        Rig { cluster, accel: vec!["--accel".into(), "tcg".into()] }
    }

    /// `ktcw-vm <words> -c <cluster>`, without a terminal.
    pub fn run(&self, words: &[&str]) -> Ran {
        let (verb, rest) = words.split_first().expect("a verb");
        let mut all = vec![*verb, "-c", self.cluster];
        all.extend(rest);
        program(&all)
    }

    pub fn accel(&self) -> &[String] {
        &self.accel
    }

    /// `up` without a golden snapshot: what is not about it need not wait for it.
    pub fn up(&self, flags: &[&str]) -> Ran {
        self.up_with_golden(&[&["--no-golden"], flags].concat())
    }

    pub fn up_with_golden(&self, flags: &[&str]) -> Ran {
        let mut words = vec!["up"];
        words.extend(flags);
        words.extend(self.accel.iter().map(String::as_str));
        self.run(&words)
    }

    /// Starts a verb and kills it with no word of warning when a line on standard error says `moment`.
    #[track_caller]
    pub fn killed_at(&self, words: &[&str], moment: &str) {
        let (verb, rest) = words.split_first().expect("a verb");
        let mut child = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
            .args([verb, "-c", self.cluster])
            .args(rest)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let seen = lines.any(|line| line.expect("text").contains(moment));
        child.kill().expect("kill it");
        child.wait().expect("it ends");
        assert!(seen, "{verb} has never said {moment:?}");
    }

    /// Standard output of a command on a node that must succeed.
    #[track_caller]
    pub fn on(&self, node: &str, line: &str) -> String {
        self.run(&["ssh", node, "--", line]).exits(0).out.trim().to_owned()
    }

    /// The check lines of a verify that are not passes, as `id node verdict`.
    #[track_caller]
    pub fn not_passing(&self) -> (i32, Vec<String>) {
        let ran = self.run(&["verify", "--format", "json"]);
        let report = ran.json();
        let text = |check: &Value, key: &str| check[key].as_str().unwrap_or("-").to_owned();
        let checks = report["checks"].as_array().expect("checks");
        assert!(checks.len() > 10, "a verify of a cluster has many checks: {}", ran.out);
        let bad = checks.iter().filter(|check| check["verdict"] != "pass");
        (ran.code, bad.map(|c| format!("{} {} {}", text(c, "id"), text(c, "node"), text(c, "verdict"))).collect())
    }

    #[track_caller]
    pub fn verifies(&self) {
        let (code, bad) = self.not_passing();
        assert_eq!((code, bad), (0, Vec::<String>::new()));
    }

    /// Directory of the cluster.
    pub fn dir(&self) -> PathBuf {
        let state = std::env::var_os("XDG_STATE_HOME").expect("set by setup/e2e.sh");
        PathBuf::from(state).join("ktcw-vm").join(self.cluster)
    }

    pub fn plan(&self) -> Value {
        let text = std::fs::read_to_string(self.dir().join("plan.json")).expect("plan.json");
        let value: Value = serde_json::from_str(&text).expect("plan.json is JSON");
        value["plan"].clone()
    }

    pub fn vip(&self) -> String {
        self.plan()["network"]["vip"].as_str().expect("vip").to_owned()
    }
}

/// Removes the cluster when a test ends early; a test that passed has removed it itself.
pub struct Remove<'a>(pub &'a Rig);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ran = self.0.run(&["verify"]);
            step(&format!("at the end of the failed test:\n{}{}", ran.out, ran.err));
            let bundle = artefacts().join(format!("{}.tar.gz", self.0.cluster));
            let ran = self.0.run(&["support", "bundle", &bundle.to_string_lossy()]);
            step(&format!("{}{}", ran.out, ran.err));
        }
        self.0.run(&["down", "--yes"]);
    }
}

pub fn program(words: &[&str]) -> Ran {
    command(env!("CARGO_BIN_EXE_ktcw-vm"), words)
}

pub fn command(program: &str, words: &[&str]) -> Ran {
    command_with(program, words, &[])
}

/// With these variables besides; `ktcw-vm` is the one that was built.
pub fn command_with(program: &str, words: &[&str], environment: &[(&str, String)]) -> Ran {
    let begin = Instant::now();
    let path = if program == "ktcw-vm" { env!("CARGO_BIN_EXE_ktcw-vm") } else { program };
    let mut command = Command::new(path);
    command.args(words).envs(environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    let output = command.output().expect("the program starts");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: begin.elapsed(),
        what: format!("{} {}", program.rsplit('/').next().unwrap_or(program), words.join(" ")),
    }
}

pub fn virsh(words: &[&str]) -> Ran {
    let mut all = vec!["-q", "-c", "qemu:///system"];
    all.extend(words);
    command("virsh", &all)
}

/// All domains, networks and pools that libvirt knows, their disks, what is connected for them, and network namespaces, one a line.
pub fn libvirt_names() -> Vec<String> {
    let mut names = Vec::new();
    let files = "find /var/lib/libvirt/images /var/lib/libvirt/dnsmasq -mindepth 1; ip -br link | cut -d' ' -f1; ip netns list | sed 's/ .*//; s/^/namespace /'; true";
    names.extend(command("bash", &["-c", files]).exits(0).out.lines().map(str::to_owned));
    for (kind, words) in [
        ("domain", ["list", "--all", "--name"]),
        ("network", ["net-list", "--all", "--name"]),
        ("pool", ["pool-list", "--all", "--name"]),
    ] {
        names.extend(virsh(&words).exits(0).out.split_whitespace().map(|name| format!("{kind} {name}")));
    }
    names
}

/// Says what is being done; `--nocapture` shows it as it happens.
pub fn step(text: &str) {
    eprintln!("   {text}");
}

/// Tries until it holds or the time is over.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    loop {
        if holds() {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
