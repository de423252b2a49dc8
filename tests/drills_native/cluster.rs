//! Real etcd processes, each in a network namespace of its own, joined by a bridge in another.
//! The suite makes one per test and tears it down whatever happens; another process may attach to it, be killed, and lose nothing.
//! It knows nothing of drills: what is so is asked of the kernel and of files, never remembered.

use crate::process::{self, Process};
use ktcw_vm::drill::bound::Timing;
use ktcw_vm::drill::etcd::{Endpoint, Site};
use ktcw_vm::drill::injector::Environment;
use ktcw_vm::spec::NodeName;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Namespaces of this suite begin with it, then the process id.
const MARK: &str = "kd";
/// Directories of this suite, likewise.
const PLACE: &str = "ktcw-drill-";
/// Tells a process to attach to a cluster: its name, its members' number and its directory.
const ATTACH: &str = "KTCW_NATIVE_CLUSTER";

pub struct Cluster {
    name: String,
    pub hub: String,
    dir: PathBuf,
    tools: PathBuf,
    /// Whoever made it takes it away.
    owned: bool,
    pub members: Vec<Member>,
}

pub struct Member {
    pub node: NodeName,
    pub namespace: String,
    pub address: Ipv4Addr,
    /// Where to look first; held while a process is started, so that there is one at most.
    seen: Mutex<Option<Process>>,
}

/// Runs a tool that must succeed.
pub fn must(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A directory in which etcd's one binary has its three names.
fn tools() -> PathBuf {
    assert!(nix::unistd::geteuid().is_root(), "this suite makes network namespaces: run it as root");
    let given = std::env::var_os("KTCW_ETCD_BIN_DIR").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("ktcw-vm/stages"));
    let staged = || {
        let entries = fs::read_dir(cache.as_ref()?).ok()?;
        let newest =
            entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("etcd-") && e.path().join("etcd").exists());
        newest.max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok()).map(|e| e.path())
    };
    given
        .or_else(staged)
        .unwrap_or_else(|| panic!("no etcd binary: run `ktcw-vm image build`, or name its directory in KTCW_ETCD_BIN_DIR"))
}

/// Memory, where there is some: killed processes lose no page cache, so a disk would add nothing but noise.
fn parent() -> PathBuf {
    if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() }
}

impl Cluster {
    /// Makes namespaces and starts `count` members; returns before they have elected.
    pub fn start(count: u8) -> Cluster {
        sweep();
        let source = tools();
        let name = format!("{MARK}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = parent().join(format!("{PLACE}{name}"));
        fs::create_dir(&dir).expect("a directory");
        let tools = dir.join("bin");
        fs::create_dir(&tools).expect("bin");
        for tool in ["etcd", "etcdctl", "etcdutl"] {
            let named = source.join(tool);
            let binary = if named.exists() { named } else { source.join("etcd") };
            std::os::unix::fs::symlink(binary, tools.join(tool)).expect("link");
        }
        let cluster = Cluster::of(name, dir, count, true);
        let hub = &cluster.hub;
        must("ip", &["netns", "add", hub]);
        must("ip", &["-n", hub, "link", "set", "lo", "up"]);
        must("ip", &["-n", hub, "link", "add", "br0", "type", "bridge"]);
        must("ip", &["-n", hub, "addr", "add", "10.77.0.1/24", "dev", "br0"]);
        must("ip", &["-n", hub, "link", "set", "br0", "up"]);
        for (i, Member { namespace, address, .. }) in cluster.members.iter().enumerate() {
            let port = format!("v{i}");
            must("ip", &["netns", "add", namespace]);
            must("ip", &["-n", namespace, "link", "set", "lo", "up"]);
            must("ip", &["-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", namespace]);
            must("ip", &["-n", hub, "link", "set", &port, "master", "br0", "up"]);
            must("ip", &["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
            must("ip", &["-n", namespace, "link", "set", "eth0", "up"]);
        }
        for i in 0..usize::from(count) {
            cluster.spawn(i);
        }
        cluster
    }

    fn of(name: String, dir: PathBuf, count: u8, owned: bool) -> Cluster {
        let member = |i| Member {
            node: NodeName::controller(i),
            namespace: format!("{name}-{i}"),
            address: Ipv4Addr::new(10, 77, 0, 10 + i),
            seen: Mutex::default(),
        };
        Cluster {
            hub: format!("{name}-hub"),
            tools: dir.join("bin"),
            members: (0..count).map(member).collect(),
            name,
            dir,
            owned,
        }
    }

    /// The cluster of another process, which told us by the environment; its end is not ours to make.
    pub fn attached() -> Cluster {
        let told = std::env::var(ATTACH).expect("started by another process of this suite");
        let mut parts = told.splitn(3, ' ');
        let mut part = || parts.next().expect("name, count and directory").to_owned();
        let (name, count, dir) = (part(), part().parse().expect("a count"), part().into());
        Cluster::of(name, dir, count, false)
    }

    /// What makes another process attach to this one.
    pub fn invitation(&self) -> (&'static str, String) {
        (ATTACH, format!("{} {} {}", self.name, self.members.len(), self.dir.display()))
    }

    pub fn index(&self, node: &NodeName) -> usize {
        self.members.iter().position(|member| member.node == *node).unwrap_or_else(|| panic!("{node} is not here"))
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub fn data(&self, i: usize) -> PathBuf {
        self.path(&format!("data-{i}"))
    }

    pub fn log(&self, i: usize) -> PathBuf {
        self.path(&format!("log-{i}"))
    }

    pub fn tool(&self, tool: &str) -> PathBuf {
        self.tools.join(tool)
    }

    pub fn initial_cluster(&self) -> String {
        let of = |member: &Member| format!("{}=http://{}:2380", member.node, member.address);
        self.members.iter().map(of).collect::<Vec<_>>().join(",")
    }

    /// The quota that a member is to be started with instead of its own, kept where every process finds it.
    fn quota_file(&self, i: usize) -> PathBuf {
        self.path(&format!("quota-{i}"))
    }

    pub fn quota(&self, i: usize) -> Option<u32> {
        fs::read_to_string(self.quota_file(i)).ok().and_then(|text| text.parse().ok())
    }

    pub fn set_quota(&self, i: usize, mib: Option<u32>) -> std::io::Result<()> {
        match mib {
            Some(mib) => fs::write(self.quota_file(i), mib.to_string()),
            None => match fs::remove_file(self.quota_file(i)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Starts a member unless it runs.
    pub fn spawn(&self, i: usize) {
        self.spawn_as(i, "new");
    }

    /// `state` is what etcd is told of the cluster: `new`, or `existing` for a joiner.
    pub fn spawn_as(&self, i: usize, state: &str) {
        let member = &self.members[i];
        // As systemd does: what is being stopped is stopped first.
        if self.stopping(i) {
            let _ = self.end(i, Signal::SIGTERM);
        }
        let mut seen = member.seen.lock().expect("seen");
        if process::refreshed(&mut seen, &self.sign(i)).is_some() {
            return;
        }
        let ip = member.address;
        let log = File::options().create(true).append(true).open(self.log(i)).expect("log");
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &member.namespace])
            .arg(self.tool("etcd"))
            .args([
                format!("--name={}", member.node),
                self.sign(i),
                format!("--listen-client-urls=http://{ip}:2379"),
                format!("--advertise-client-urls=http://{ip}:2379"),
                format!("--listen-peer-urls=http://{ip}:2380"),
                format!("--initial-advertise-peer-urls=http://{ip}:2380"),
                format!("--initial-cluster={}", self.initial_cluster()),
                format!("--initial-cluster-state={state}"),
                format!("--initial-cluster-token={}", self.name),
                "--snapshot-count=10000".to_owned(),
                "--log-level=info".to_owned(),
            ])
            .args(self.quota(i).map(|mib| format!("--quota-backend-bytes={}", u64::from(mib) << 20)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        // `ip netns exec` becomes etcd, so the child's process id is etcd's.
        *seen = Process::of(command.spawn().expect("ip netns exec etcd").id());
    }

    /// The argument by which a member's process is known, whoever started it.
    fn sign(&self, i: usize) -> String {
        format!("--data-dir={}", self.data(i).display())
    }

    /// The member's process, if it has one that runs or stands still.
    pub fn process(&self, i: usize) -> Option<Process> {
        process::refreshed(&mut self.members[i].seen.lock().expect("seen"), &self.sign(i))
    }

    /// All of them: there is to be one.
    pub fn processes(&self, i: usize) -> Vec<Process> {
        process::with_argument(&self.sign(i))
    }

    pub fn signal(&self, i: usize, signal: Signal) {
        if let Some(process) = self.process(i) {
            let _ = kill(process.pid, signal);
        }
    }

    /// Who is being stopped, kept where every process finds it: whoever began may be gone before it has ended.
    fn stopping_file(&self, i: usize) -> PathBuf {
        self.path(&format!("stopping-{i}"))
    }

    /// Whether the member's process runs and has been told to end.
    pub fn stopping(&self, i: usize) -> bool {
        let told = fs::read_to_string(self.stopping_file(i)).ok();
        self.process(i).is_some_and(|process| told.is_some_and(|told| told == process.who()))
    }

    /// Signals a member and waits until it has gone.
    pub fn end(&self, i: usize, signal: Signal) -> Result<(), String> {
        if let Some(process) = self.process(i) {
            fs::write(self.stopping_file(i), process.who()).map_err(|error| error.to_string())?;
        }
        self.signal(i, signal);
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.process(i).is_some() {
            if Instant::now() > deadline {
                return Err("it did not end within 30 s".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A shell asleep until its time, that needs nothing of this process: `line` is what it does then.
    pub fn dead_man(&self, after: Duration, line: &str) -> std::io::Result<()> {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sh");
        command.args(["-c", &format!("sleep {}; {line}", after.as_secs_f64()), &self.dead_mans_sign()]);
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(|_| ())
    }

    fn dead_mans_sign(&self) -> String {
        format!("{}-dead-man", self.name)
    }

    /// Shells that still wait for their time.
    pub fn dead_men(&self) -> Vec<Process> {
        process::with_argument(&self.dead_mans_sign())
    }

    pub fn end_dead_men(&self) {
        for sleeper in self.dead_men() {
            // With the `sleep` that it waits for.
            let _ = kill(Pid::from_raw(-sleeper.pid.as_raw()), Signal::SIGKILL);
        }
    }

    /// What a failed test is understood from.
    fn keep_logs(&self) {
        let kept = crate::runs::kept().join(format!("failed-{}", self.name));
        let _ = fs::create_dir_all(&kept);
        for i in 0..self.members.len() {
            let _ = fs::copy(self.log(i), kept.join(format!("log-{i}")));
        }
        eprintln!("logs of the members: {}", kept.display());
    }

    /// The cluster as drills see it, by its members' own addresses.
    pub fn site(&self) -> Site {
        let endpoint = |member: &Member| Endpoint {
            node: member.node.clone(),
            client_url: format!("http://{}:2379", member.address),
            peer_url: format!("http://{}:2380", member.address),
        };
        Site {
            members: self.members.iter().map(endpoint).collect(),
            tls: None,
            // etcd's own default.
            quota_mib: 2048,
            environment: Environment {
                cluster: self.name.clone(),
                acceleration: "processes".to_owned(),
                kubernetes: String::new(),
                timing: Timing { boot_ms: 30_000, ..Timing::native() },
                host_load: load(),
                host_cpus: std::thread::available_parallelism().map_or(0, |n| n.get()),
            },
        }
    }

    /// Runs a future with all its threads in the hub's namespace, where the members can be reached.
    pub fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        let hub = File::open(format!("/run/netns/{}", self.hub)).expect("the hub");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&hub, CloneFlags::CLONE_NEWNET).expect("setns");
                let hub = hub.try_clone().expect("the hub");
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .on_thread_start(move || setns(&hub, CloneFlags::CLONE_NEWNET).expect("setns"))
                    .build()
                    .expect("a runtime")
                    .block_on(future)
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|one| one.parse().ok()).unwrap_or(0.0)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if std::thread::panicking() {
            self.keep_logs();
        }
        self.end_dead_men();
        for i in 0..self.members.len() {
            let _ = self.end(i, Signal::SIGKILL);
        }
        remove(&self.name);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Ends what still runs in the namespaces of a name, and removes them.
fn remove(name: &str) {
    for namespace in
        namespaces().iter().filter(|namespace| namespace.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')))
    {
        let pids = Command::new("ip").args(["netns", "pids", namespace]).output().expect("ip");
        for pid in String::from_utf8_lossy(&pids.stdout).lines().filter_map(|pid| pid.trim().parse().ok()) {
            // Our own threads visit the hub; they are not to die for it.
            if pid != std::process::id() as i32 {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
    }
}

fn namespaces() -> Vec<String> {
    let list = Command::new("ip").args(["netns", "list"]).output().expect("ip");
    String::from_utf8_lossy(&list.stdout).lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Removes what a suite that was killed has left: marked with the id of a process that is no more.
fn sweep() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    /// `kd123-4-hub` → `kd123`, if 123 is nobody.
    fn of_the_dead(name: &str) -> Option<String> {
        let pid = name.strip_prefix(MARK)?.split('-').next()?;
        let number = !pid.is_empty() && pid.chars().all(|c| c.is_ascii_digit());
        (number && !Path::new("/proc").join(pid).exists()).then(|| format!("{MARK}{pid}"))
    }
    ONCE.call_once(|| {
        namespaces().iter().filter_map(|namespace| of_the_dead(namespace)).for_each(|name| remove(&name));
        for entry in fs::read_dir(parent()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_prefix(PLACE).and_then(of_the_dead).is_some() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    });
}
