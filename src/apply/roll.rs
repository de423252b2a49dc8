//! Files of running nodes that are not as planned any more, taken to them and made to count, one node after the other.
//! Steps ask what is stale and what has to be restarted for it; `perform` writes the files and restarts, and can be cut off anywhere.
//! What is owed to changed files is noted on the node before they change, so that no crash forgets a restart.

use super::inventory::{Inventory, NodeObserved};
use crate::guest::{Cmd, Guest, quote};
use crate::pki::Keyring;
use crate::plan::{Content, FilePlan, NodePlan, Plan, QUADLETS};
use crate::secret::Secret;
use crate::spec::NodeName;
use futures::future::join_all;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// On a node: units that have to be restarted or reloaded before its files count, one `verb unit` a line.
pub(super) const OWED: &str = "/etc/ktcw/owed";

/// `restart kubelet.service`, `reload keepalived.service`.
pub(super) type Owed = BTreeSet<String>;

/// Files that are compared. The resolver's is the system's own as soon as it runs.
fn compared(node: &NodePlan) -> impl Iterator<Item = &FilePlan> {
    node.files.iter().filter(|file| file.path != "/etc/resolv.conf")
}

/// A file's text, from the plan or the key store.
pub(super) fn text(file: &FilePlan, keyring: &Keyring) -> Option<Secret> {
    match &file.content {
        Content::Text { text } => Some(Secret::new(text.clone())),
        Content::Pki { item } => keyring.item(item).cloned(),
    }
}

fn digest(text: &Secret) -> String {
    Sha256::digest(text.expose().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What every compared file has to be, by path.
pub(super) fn digests(node: &NodePlan, keyring: &Keyring) -> BTreeMap<String, String> {
    compared(node).filter_map(|file| Some((file.path.clone(), digest(&text(file, keyring)?)))).collect()
}

fn question(node: &NodePlan) -> String {
    let paths: Vec<String> = compared(node).map(|file| quote(&file.path)).collect();
    format!("sed 's/^/owed /' {OWED} 2>/dev/null || true\nsha256sum -- {} 2>/dev/null || true\necho end\n", paths.join(" "))
}

/// What a node said of its files. An answer without its last line was cut off and says nothing.
/// `false`: nothing.
fn read(answer: &str, node: &NodePlan, keyring: &Keyring, into: &mut NodeObserved) -> bool {
    let lines: Vec<&str> = answer.lines().collect();
    if lines.last() != Some(&"end") {
        return false;
    }
    let mut there: BTreeMap<&str, &str> = BTreeMap::new();
    for line in &lines {
        if let Some(owed) = line.strip_prefix("owed ") {
            into.owed.insert(owed.to_owned());
        } else if let Some((sum, path)) = line.split_once("  ") {
            there.insert(path, sum);
        }
    }
    let wanted = digests(node, keyring);
    into.stale
        .extend(wanted.into_iter().filter(|(path, sum)| there.get(path.as_str()) != Some(&sum.as_str())).map(|(path, _)| path));
    true
}

/// Asks every node that answers which of its files are stale and what is still owed. Returns those that told.
pub async fn observe_files(plan: &Plan, guest: &dyn Guest, keyring: &Keyring, inventory: &mut Inventory) -> BTreeSet<NodeName> {
    let patience = Duration::from_secs(u64::from(plan.timers.probe_deadline_s));
    let up = plan.nodes.iter().filter(|node| inventory.node(&node.name).ssh);
    let asked = up.map(|node| async move {
        let answer = guest.run(&node.name, Cmd::script(question(node), patience)).await;
        (node, answer.ok().map(|output| output.stdout_text()))
    });
    let mut told = BTreeSet::new();
    for (node, answer) in join_all(asked).await {
        let entry = inventory.nodes.entry(node.name.clone()).or_default();
        if answer.is_some_and(|answer| read(&answer, node, keyring, entry)) {
            told.insert(node.name.clone());
        }
    }
    told
}

/// What a changed file needs to count. etcd reads its certificates with every handshake, and the other words of its definition
/// when it is begun without data: neither is a reason to restart a member.
pub(super) fn effect(path: &str) -> Option<&'static str> {
    let component = path.strip_prefix(QUADLETS).and_then(|rest| rest.trim_start_matches('/').strip_suffix(".container"));
    match (component, path) {
        (Some("kube-apiserver"), _) => Some("restart kube-apiserver.service"),
        (Some("kube-controller-manager"), _) | (_, "/etc/kubernetes/controller-manager.kubeconfig") => {
            Some("restart kube-controller-manager.service")
        }
        (Some("kube-scheduler"), _) | (_, "/etc/kubernetes/scheduler.kubeconfig") => Some("restart kube-scheduler.service"),
        (Some("kubelet"), _) | (_, "/etc/kubernetes/kubelet.kubeconfig" | "/etc/kubernetes/kubelet.yaml") => {
            Some("restart kubelet.service")
        }
        (Some("kube-proxy"), _) | (_, "/etc/kubernetes/kube-proxy.kubeconfig" | "/etc/kubernetes/kube-proxy.yaml") => {
            Some("restart kube-proxy.service")
        }
        (_, path) if path.starts_with("/etc/keepalived/") => Some("reload keepalived.service"),
        (_, path) if path.starts_with("/etc/kubernetes/pki/kubelet-server") => Some("restart kubelet.service"),
        (_, path) if path.starts_with("/etc/kubernetes/pki/") || path == "/etc/kubernetes/encryption.yaml" => {
            Some("restart kube-apiserver.service")
        }
        _ => None,
    }
}

/// What is owed to these files, as far as the node has the units.
pub(super) fn owed(node: &NodePlan, stale: &BTreeSet<String>) -> Owed {
    let has = |effect: &&str| effect.split_once(' ').is_some_and(|(_, unit)| node.units.iter().any(|own| own == unit));
    stale.iter().filter_map(|path| effect(path)).filter(has).map(str::to_owned).collect()
}

/// On the node before the first of its files changes: what is owed, beside what was.
pub(super) fn note(owed: &Owed) -> String {
    let lines: Vec<String> = owed.iter().map(|line| quote(line)).collect();
    if lines.is_empty() {
        return "true\n".to_owned();
    }
    format!(
        "set -e\nmkdir -p /etc/ktcw\n{{ cat {OWED} 2>/dev/null || true; printf '%s\\n' {}; }} | sort -u >{OWED}.new\n\
         sync {OWED}.new\nmv {OWED}.new {OWED}\nsync /etc/ktcw\n",
        lines.join(" ")
    )
}

/// The API server first, its address given away before it where another can take it.
pub(super) fn first(owed: &Owed, others: bool) -> Option<String> {
    owed.contains("restart kube-apiserver.service").then(|| {
        let away = if others { "systemctl stop keepalived.service\n" } else { "" };
        format!("set -e\nsystemctl daemon-reload\n{away}systemctl restart kube-apiserver.service\n")
    })
}

/// Then the rest; when all of it runs nothing is owed any more.
pub(super) fn rest(owed: &Owed, control_plane: bool) -> String {
    let mut script = "set -e\nsystemctl daemon-reload\n".to_owned();
    for line in owed.iter().filter(|line| *line != "restart kube-apiserver.service" && !line.starts_with("reload ")) {
        script.push_str(&format!("systemctl {line}\n"));
    }
    if control_plane {
        script.push_str("systemctl start keepalived.service\n");
    }
    if owed.contains("reload keepalived.service") {
        script.push_str("systemctl reload keepalived.service\n");
    }
    script.push_str(&format!("rm -f {OWED}\nsync /etc/ktcw 2>/dev/null || true\n"));
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples;
    use std::process::Command;

    fn stale(paths: &[&str]) -> BTreeSet<String> {
        paths.iter().map(|&path| path.to_owned()).collect()
    }

    #[test]
    fn every_file_of_a_node_is_known_to_need_a_restart_or_none() {
        let plan = samples::plan("ktcw", 3, 1, samples::kvm());
        let needs = |node: &NodePlan, path: &str| owed(node, &stale(&[path])).into_iter().next();
        let controller = plan.controllers().next().expect("one");
        for (path, wanted) in [
            ("/etc/containers/systemd/etcd.container", None),
            ("/etc/etcd/pki/server.pem", None),
            ("/etc/environment", None),
            ("/etc/kubernetes/admin.kubeconfig", None),
            ("/etc/containers/systemd/kube-apiserver.container", Some("restart kube-apiserver.service")),
            ("/etc/kubernetes/pki/apiserver-etcd-client.pem", Some("restart kube-apiserver.service")),
            ("/etc/kubernetes/scheduler.kubeconfig", Some("restart kube-scheduler.service")),
            ("/etc/keepalived/keepalived.conf", Some("reload keepalived.service")),
        ] {
            assert!(controller.files.iter().any(|file| file.path == path), "{path}");
            assert_eq!(needs(controller, path).as_deref(), wanted, "{path}");
        }
        let worker = plan.workers().next().expect("one");
        assert_eq!(needs(worker, "/etc/kubernetes/pki/kubelet-server.pem").as_deref(), Some("restart kubelet.service"));
        assert_eq!(needs(worker, "/etc/kubernetes/kube-proxy.kubeconfig").as_deref(), Some("restart kube-proxy.service"));
        // Workers have the API's CA and no API server.
        assert_eq!(needs(worker, "/etc/kubernetes/pki/ca.pem"), None);
    }

    /// The scripts are shell, and what was noted before is still owed after.
    #[test]
    fn what_is_owed_adds_up_until_it_is_paid() {
        let dir = tempfile::tempdir().expect("dir");
        let run = |script: &str| {
            let place = dir.path().display().to_string();
            let script = script.replace("/etc/ktcw", &place).replace("systemctl ", "echo systemctl ");
            let out = Command::new("bash").args(["-c", &script]).output().expect("bash");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        let both = Owed::from(["restart kube-apiserver.service".to_owned(), "reload keepalived.service".to_owned()]);
        run(&note(&both));
        run(&note(&Owed::from(["restart kube-scheduler.service".to_owned()])));
        run(&note(&Owed::new()));
        let kept = std::fs::read_to_string(dir.path().join("owed")).expect("noted");
        assert_eq!(kept.lines().count(), 3, "{kept}");
        let all: Owed = kept.lines().map(str::to_owned).collect();
        let said = run(&first(&all, true).expect("an API server"));
        assert!(said.find("stop keepalived").expect("away") < said.find("restart kube-apiserver").expect("then"), "{said}");
        assert!(!first(&all, false).expect("one").contains("keepalived"), "alone it keeps the address");
        let said = run(&rest(&all, true));
        assert!(said.contains("restart kube-scheduler") && said.contains("reload keepalived"), "{said}");
        assert!(!dir.path().join("owed").exists());
    }
}
