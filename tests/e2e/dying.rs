//! A run of the program that is killed at a step that it says, and whatever a fault might have left afterwards.
//! Drills, crashes and timers use it; it looks at guests, at libvirt and at the cluster's directory itself.
//! It knows nothing of which fault leaves what.

use crate::rig::{Rig, virsh};
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

pub const CONTROLLERS: [&str; 3] = ["controller-0", "controller-1", "controller-2"];
/// What the program says of its steps begins with it.
const MARK: &str = "· ";
/// A guest's clock may be so far from the host's, in seconds, one of which is the question's way.
const CLOCK_S: i64 = 3;

/// A line for everything that a fault may have left on a node. Units that are on their way to run are none.
const LEFT: &str = r#"
nft list tables | grep ktcw_drill && echo 'packet rules'
tc qdisc show dev eth0 | grep netem
systemctl list-units --all --no-legend --plain 'ktcw-drill*'
find /run/ktcw-drill /run/containers/systemd -type f 2>/dev/null
ls /var/lib/etcd/ktcw-drill.db /var/lib/etcd/.ktcw-drill 2>/dev/null
for unit in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet; do
  systemctl cat "$unit.service" >/dev/null 2>&1 || continue
  state=$(systemctl show -P ActiveState "$unit.service")
  case $state in active | activating | reloading) ;; *) echo "$unit is $state" ;; esac
  find "/sys/fs/cgroup/system.slice/$unit.service" -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do
    grep -q '^State:.T' "/proc/$pid/status" 2>/dev/null && echo "$unit has process $pid stopped"
  done
done
if [ "$(systemctl show -P ActiveState systemd-timesyncd.service)" = inactive ] &&
  [ "$(systemctl show -P ActiveEnterTimestampMonotonic systemd-timesyncd.service)" != 0 ]; then
  echo 'a stopped time daemon'
fi
if mountpoint -q /var/lib/etcd; then
  timeout 3 touch /var/lib/etcd/.ktcw-look </dev/null && rm -f /var/lib/etcd/.ktcw-look || echo 'a frozen disk'
fi
true
"#;

/// A run that has got to a step.
pub struct Dying(Child);

impl Dying {
    /// Starts a drill and waits until it says the step for the so many-th time.
    pub fn at(rig: &Rig, name: &str, step: &str, nth: usize) -> Dying {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"))
            .args(["drill", "run", name, "-c", rig.cluster])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut said: Lines<BufReader<ChildStderr>> = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut all = Vec::new();
        let mut times = 0;
        while let Some(Ok(line)) = said.next() {
            times += usize::from(line.split_once(MARK).is_some_and(|(_, told)| told.contains(step)));
            if times == nth {
                // What it says from now on has a reader, or it would end of that.
                std::thread::spawn(move || said.for_each(drop));
                return Dying(child);
            }
            all.push(line);
        }
        let code = child.wait().expect("it ends").code();
        panic!("{name} never said {step:?} {nth} times and ended with {code:?}:\n{}", all.join("\n"));
    }

    /// Starts `drill heal`, which says nothing of its steps.
    pub fn healing(rig: &Rig) -> Dying {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ktcw-vm"));
        command.args(["drill", "heal", "-c", rig.cluster]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Dying(command.spawn().expect("the program starts"))
    }

    pub fn end(&mut self, signal: &str) -> Option<i32> {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.0.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        self.0.wait().expect("it ends").code()
    }

    pub fn kill_after(mut self, delay: Duration) {
        std::thread::sleep(delay);
        // One that was quicker has ended, and cannot be told.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is left on nodes, in libvirt, in etcd, in the API and beside the reports, a line each: of a cluster that has been healed, nothing.
pub fn residue(rig: &Rig) -> Vec<String> {
    let mut left = Vec::new();
    let nodes: Vec<String> = rig.plan()["nodes"].as_array().expect("nodes").iter().map(name).collect();
    for node in &nodes {
        left.extend(on(rig, node).into_iter().map(|line| format!("{node}: {line}")));
    }
    for line in virsh(&["list", "--all"]).exits(0).out.lines().filter(|line| line.contains(&format!(" {}-", rig.cluster))) {
        if !line.trim_end().ends_with("running") {
            left.push(format!("libvirt: {}", line.trim()));
        }
    }
    let keys = rig.run(&["etcdctl", "get", "/ktcw/", "--prefix", "--keys-only"]).exits(0).out;
    let ours = keys.split_whitespace().filter(|key| !key.starts_with("/ktcw/verify/"));
    left.extend(ours.map(|key| format!("a key: {key}")));
    let maps = rig.run(&["kubectl", "get", "configmaps", "-n", "default", "-o", "name"]).exits(0).out;
    left.extend(maps.lines().filter(|map| map.contains("ktcw-drill-probe")).map(|map| format!("what a probe wrote: {map}")));
    for entry in std::fs::read_dir(rig.dir()).expect("the cluster's directory").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snapshot.") {
            left.push(format!("a copy of the store: {name}"));
        }
    }
    left
}

fn name(node: &serde_json::Value) -> String {
    node["name"].as_str().expect("a name").to_owned()
}

/// What is left on one node.
pub fn on(rig: &Rig, node: &str) -> Vec<String> {
    let told = rig.on(node, &format!("{LEFT}echo \"now $(date +%s)\""));
    let here = jiff::Timestamp::now().as_second();
    let (clock, left): (Vec<&str>, Vec<&str>) = told.lines().partition(|line| line.starts_with("now "));
    let there: i64 = clock.first().and_then(|line| line["now ".len()..].parse().ok()).expect("a clock");
    let off = (there - here).abs() > CLOCK_S;
    left.into_iter().map(str::to_owned).chain(off.then(|| format!("a clock that is {} s off", there - here))).collect()
}
