//! Real etcd processes, each in a network namespace of its own, joined by a bridge in another.
//! The suite makes one per test and tears it down whatever happens; nothing of it is in the host's own namespace.
//! It knows nothing of drills.

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
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Namespaces of this suite begin with it, then the process id.
const MARK: &str = "kd";

pub struct Cluster {
    name: String,
    pub hub: String,
    dir: tempfile::TempDir,
    tools: PathBuf,
    pub members: Vec<Member>,
}

pub struct Member {
    pub node: NodeName,
    pub namespace: String,
    pub address: Ipv4Addr,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    pub child: Option<Child>,
    pub quota_mib: Option<u32>,
    pub joining: bool,
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

impl Cluster {
    /// Makes namespaces and starts `count` members; returns before they have elected.
    pub fn start(count: u8) -> Cluster {
        sweep();
        let source = tools();
        let name = format!("{MARK}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Memory, where there is some: killed processes lose no page cache, so a disk would add nothing but noise.
        let parent = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("ktcw-drill-").tempdir_in(parent).expect("a directory");
        let tools = dir.path().join("bin");
        fs::create_dir(&tools).expect("bin");
        for tool in ["etcd", "etcdctl", "etcdutl"] {
            let named = source.join(tool);
            let binary = if named.exists() { named } else { source.join("etcd") };
            std::os::unix::fs::symlink(binary, tools.join(tool)).expect("link");
        }
        let hub = format!("{name}-hub");
        must("ip", &["netns", "add", &hub]);
        must("ip", &["-n", &hub, "link", "set", "lo", "up"]);
        must("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        must("ip", &["-n", &hub, "addr", "add", "10.77.0.1/24", "dev", "br0"]);
        must("ip", &["-n", &hub, "link", "set", "br0", "up"]);
        let mut members = Vec::new();
        for i in 0..count {
            let namespace = format!("{name}-{i}");
            let port = format!("v{i}");
            let address = Ipv4Addr::new(10, 77, 0, 10 + i);
            must("ip", &["netns", "add", &namespace]);
            must("ip", &["-n", &namespace, "link", "set", "lo", "up"]);
            must("ip", &["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            must("ip", &["-n", &hub, "link", "set", &port, "master", "br0", "up"]);
            must("ip", &["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
            must("ip", &["-n", &namespace, "link", "set", "eth0", "up"]);
            members.push(Member { node: NodeName::controller(i), namespace, address, state: Mutex::default() });
        }
        let cluster = Cluster { name, hub, dir, tools, members };
        for i in 0..usize::from(count) {
            cluster.spawn(i);
        }
        cluster
    }

    pub fn index(&self, node: &NodeName) -> usize {
        self.members.iter().position(|member| member.node == *node).unwrap_or_else(|| panic!("{node} is not here"))
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
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

    /// Starts a member unless it runs.
    pub fn spawn(&self, i: usize) {
        let member = &self.members[i];
        let mut state = member.state.lock().expect("state");
        if state.child.is_some() {
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
                format!("--data-dir={}", self.data(i).display()),
                format!("--listen-client-urls=http://{ip}:2379"),
                format!("--advertise-client-urls=http://{ip}:2379"),
                format!("--listen-peer-urls=http://{ip}:2380"),
                format!("--initial-advertise-peer-urls=http://{ip}:2380"),
                format!("--initial-cluster={}", self.initial_cluster()),
                format!("--initial-cluster-state={}", if state.joining { "existing" } else { "new" }),
                format!("--initial-cluster-token={}", self.name),
                "--snapshot-count=10000".to_owned(),
                "--log-level=info".to_owned(),
            ])
            .args(state.quota_mib.map(|mib| format!("--quota-backend-bytes={}", u64::from(mib) << 20)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        // `ip netns exec` becomes etcd, so the child's process id is etcd's.
        state.child = Some(command.spawn().expect("ip netns exec etcd"));
        state.joining = false;
    }

    pub fn pid(&self, i: usize) -> Option<Pid> {
        let state = self.members[i].state.lock().expect("state");
        state.child.as_ref().map(|child| Pid::from_raw(child.id() as i32))
    }

    pub fn signal(&self, i: usize, signal: Signal) {
        if let Some(pid) = self.pid(i) {
            let _ = kill(pid, signal);
        }
    }

    /// Signals a member and waits until it has gone.
    pub fn end(&self, i: usize, signal: Signal) -> Result<(), String> {
        self.signal(i, signal);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut state = self.members[i].state.lock().expect("state");
            match state.child.as_mut().map(|child| child.try_wait()) {
                None => return Ok(()),
                Some(Ok(Some(_))) => {
                    state.child = None;
                    return Ok(());
                }
                Some(Ok(None)) if Instant::now() > deadline => return Err("it did not end within 30 s".to_owned()),
                Some(Ok(None)) => (),
                Some(Err(error)) => return Err(error.to_string()),
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process's state as the kernel tells it: `S`, `R`, `T` (stopped) …, and its start time. `None`: there is none.
    pub fn process(&self, i: usize) -> Option<(char, String)> {
        let mut state = self.members[i].state.lock().expect("state");
        if let Some(child) = &mut state.child
            && matches!(child.try_wait(), Ok(Some(_)))
        {
            state.child = None;
        }
        let pid = state.child.as_ref()?.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some((fields.first()?.chars().next()?, format!("{pid}@{}", fields.get(19)?)))
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
        for i in 0..self.members.len() {
            self.signal(i, Signal::SIGKILL);
            let _ = self.end(i, Signal::SIGKILL);
        }
        remove(&self.name);
    }
}

/// Ends what still runs in the namespaces of a name, and removes them.
fn remove(name: &str) {
    let list = Command::new("ip").args(["netns", "list"]).output().expect("ip");
    for namespace in String::from_utf8_lossy(&list.stdout).lines().filter_map(|line| line.split(' ').next()) {
        if namespace.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')) {
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
}

/// Removes what a suite that was killed has left: namespaces marked with the id of a process that is no more.
fn sweep() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let list = Command::new("ip").args(["netns", "list"]).output().expect("ip");
        for namespace in String::from_utf8_lossy(&list.stdout).lines().filter_map(|line| line.split(' ').next()) {
            let Some(pid) = namespace.strip_prefix(MARK).and_then(|rest| rest.split('-').next()) else { continue };
            if !pid.is_empty() && pid.chars().all(|c| c.is_ascii_digit()) && !Path::new(&format!("/proc/{pid}")).exists() {
                remove(&format!("{MARK}{pid}"));
            }
        }
    });
}
