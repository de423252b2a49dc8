//! What can go wrong at the host edge, in words that name the thing and say what to do next.
//! Every `Host` returns `HostError`; `cli` prints it with its hint.
//! It knows libvirt only by the text of its messages, so that the fake fails in the same words.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("libvirt at {uri} cannot be reached: {reason}")]
    Unreachable { uri: String, reason: String },
    /// Something of that name is there and does not carry our mark.
    #[error("{kind} {name} exists and is not of this cluster ({whose})")]
    NotOurs { kind: &'static str, name: String, whose: String },
    #[error("{kind} {name} is not there")]
    Missing { kind: &'static str, name: String },
    /// It is ours, holds data, and is not what the plan says; making it anew would lose the data.
    #[error("{kind} {name} is there but differs from the plan: {what}")]
    Differs { kind: &'static str, name: String, what: String },
    #[error("libvirt could not {action} {kind} {name}: {reason}")]
    Libvirt { action: &'static str, kind: &'static str, name: String, reason: String },
    /// A file is not what its digest says; nothing of it was kept.
    #[error("{path} is damaged: its content is not that of {volume}")]
    Damaged { path: String, volume: String },
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    /// An upload failed for `why`, and what it had written by then could not be deleted.
    #[error("{why}; what was uploaded so far is left in pool {pool} as volume {volume}: {stuck}")]
    Torso { why: Box<HostError>, pool: String, volume: String, stuck: String },
}

impl HostError {
    /// The next thing to try, when there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            HostError::Unreachable { uri, reason } => Some(unreachable_hint(uri, reason)),
            HostError::NotOurs { kind, name, .. } => Some(format!(
                "choose another cluster name with --cluster, or remove that {kind} yourself (virsh knows it as {name})"
            )),
            HostError::Differs { .. } => {
                Some("give the old value again, or run `down` first: that deletes the cluster's disks".to_owned())
            }
            HostError::Libvirt { reason, .. } => libvirt_hint(reason).map(str::to_owned),
            HostError::Damaged { .. } => {
                Some("ktcw-vm image build --force, or the right file for --kernel and --initrd".to_owned())
            }
            HostError::Torso { why, pool, volume, .. } => {
                let delete = format!("virsh vol-delete --pool {pool} {volume} frees its space");
                Some(why.hint().map_or_else(|| delete.clone(), |hint| format!("{hint}; {delete}")))
            }
            HostError::Missing { .. } | HostError::File { .. } => None,
        }
    }
}

/// What a failed connection most likely means.
fn unreachable_hint(uri: &str, reason: &str) -> String {
    let says = |words: &str| reason.to_lowercase().contains(words);
    if says("no such file") {
        "is libvirt installed and its daemon running? `systemctl start libvirtd` (or virtqemud.socket); `ktcw-vm doctor` looks closer".to_owned()
    } else if says("permission denied") || says("authentication") || says("polkit") {
        "this user may not use it: `sudo usermod -aG libvirt $USER` and log in again, or run as root".to_owned()
    } else if says("has not answered") {
        "something takes connections there and does not greet: is the daemon stuck? `systemctl restart libvirtd`".to_owned()
    } else if says("under way") {
        "the daemon greets, and does not do what it is asked: `systemctl restart libvirtd` (or virtqemud), machines run on"
            .to_owned()
    } else if says("connection refused") {
        "a socket is there but no daemon behind it: `systemctl restart libvirtd`".to_owned()
    } else if says("no connection driver") || says("unsupported uri") || says("unable to parse") || says("missing scheme") {
        format!("{uri} is not a URI that libvirt knows; examples: qemu:///system, qemu+ssh://user@host/system")
    } else {
        format!("try `virsh -c {uri} version`")
    }
}

/// Why an upload that went through is not taken for whole.
pub(super) const TAKEN_OVER: &str = "another upload took over";

/// What a refusal of libvirt's most likely means.
fn libvirt_hint(reason: &str) -> Option<&'static str> {
    let says = |words: &str| reason.contains(words);
    if says("/dev/kvm") || says("KVM kernel module") || says("does not support virt type 'kvm'") {
        Some("KVM is not usable by libvirt here; `--accel tcg` runs without it, ten times slower")
    } else if says("O_DIRECT") {
        Some("the pool's file system has no direct I/O; put the pool elsewhere with KTCW_POOL_DIR")
    } else if says("Cannot allocate memory") || says("cannot set up guest memory") {
        Some("the host is out of memory: smaller machines (--controller-mem, --worker-mem) or fewer of them")
    } else if says(TAKEN_OVER) {
        Some("run the same command again: it waits for that upload")
    } else if says("No space left") {
        Some("the file system of the storage pool is full; `ktcw-vm image prune` frees unused images")
    } else if says("cannot access storage file") && says("Permission denied") {
        Some("QEMU's user cannot enter the pool's directory: every directory above it needs o+x, or set KTCW_POOL_DIR")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_not_reaching_libvirt_has_its_own_way_out() {
        let hint =
            |reason: &str| HostError::Unreachable { uri: "qemu:///system".into(), reason: reason.into() }.hint().expect("a hint");
        let missing = hint("Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory");
        let denied = hint("Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied");
        let dead = hint("Failed to connect socket to '/var/run/libvirt/libvirt-sock': Connection refused");
        let wrong = hint("no connection driver available for foo:///bar");
        assert!(missing.contains("systemctl start"), "{missing}");
        assert!(denied.contains("usermod -aG libvirt"), "{denied}");
        assert!(dead.contains("restart"), "{dead}");
        assert!(wrong.contains("qemu:///system"), "{wrong}");
    }

    #[test]
    fn messages_name_the_thing_and_whose_it_is() {
        let error =
            HostError::NotOurs { kind: "domain", name: "lab-controller-0".into(), whose: "it carries no ktcw-vm mark".into() };
        assert_eq!(error.to_string(), "domain lab-controller-0 exists and is not of this cluster (it carries no ktcw-vm mark)");
        assert!(error.hint().is_some_and(|hint| hint.contains("--cluster")));
    }

    #[test]
    fn an_upload_says_what_it_has_left_behind_and_how_that_goes() {
        let why =
            |reason: &str| HostError::Libvirt { action: "upload", kind: "volume", name: "base".into(), reason: reason.into() };
        let full = Box::new(why("No space left on device"));
        let error = HostError::Torso { why: full, pool: "ktcw.images".into(), volume: "base".into(), stuck: "in use".into() };
        let said = error.to_string();
        assert!(said.contains("No space left") && said.contains("left in pool ktcw.images as volume base: in use"), "{said}");
        let hint = error.hint().expect("two things to do");
        assert!(
            hint.contains("image prune") && hint.ends_with("virsh vol-delete --pool ktcw.images base frees its space"),
            "{hint}"
        );
        assert!(why(TAKEN_OVER).hint().is_some_and(|hint| hint.contains("again")));
    }
}
