//! Ownership, decided in one place: may this cluster change that thing?
//! Every `Host` asks `guard` before any change; the fake and libvirt give the same answer in the same words.
//! It knows marks and names, not how a mark is stored.

use super::{HostError, Mark};
use crate::plan::is_disk;
use crate::spec::NodeName;

/// Holds the whole mark as JSON, for messages and for people who look into a pool's directory.
pub const MARK_VOLUME: &str = "ktcw-mark.json";

impl Mark {
    /// Same cluster, drawn the same time. The state directory may have moved since: it is there for messages only.
    pub fn owns(&self, other: &Mark) -> bool {
        self.cluster == other.cluster && self.instance == other.instance
    }
}

/// Whether a volume in the pool of the mark's cluster can be one that was made for it: the mark itself, a node's disk, one that was
/// being copied, a console's log and those that virtlogd has put aside. Anything else was put there by somebody.
pub fn is_ours(volume: &str, mark: &Mark) -> bool {
    let being_copied = || volume.strip_prefix('.').and_then(|rest| rest.strip_suffix(".part"));
    let console = || {
        let (domain, aside) = volume.split_once(".console.log")?;
        let node = domain.strip_prefix(mark.cluster.as_str())?.strip_prefix('-')?;
        let number = aside.strip_prefix('.').is_some_and(|number| number.parse::<u8>().is_ok());
        Some(NodeName::parse(node).is_ok() && (aside.is_empty() || number))
    };
    volume == MARK_VOLUME || is_disk(volume) || being_copied().is_some_and(is_disk) || console().unwrap_or(false)
}

/// Whose a thing is, for people.
pub fn whose(mark: Option<&Mark>) -> String {
    match mark {
        None => "it carries no ktcw-vm mark".to_owned(),
        Some(mark) if mark.state_dir.is_empty() => format!("it belongs to another cluster named {}", mark.cluster),
        Some(mark) => format!("it belongs to cluster {} of state directory {}", mark.cluster, mark.state_dir),
    }
}

/// `Ok` when the thing carries our mark. A thing that is not there has no owner: do not ask about it.
pub fn guard(kind: &'static str, name: &str, found: Option<&Mark>, ours: &Mark) -> Result<(), HostError> {
    match found {
        Some(mark) if ours.owns(mark) => Ok(()),
        other => Err(HostError::NotOurs { kind, name: name.to_owned(), whose: whose(other) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ClusterName;
    use uuid::Uuid;

    fn mark(cluster: &str, instance: u128, state_dir: &str) -> Mark {
        Mark {
            cluster: ClusterName::parse(cluster).expect("name"),
            instance: Uuid::from_u128(instance),
            state_dir: state_dir.to_owned(),
        }
    }

    #[test]
    fn a_volume_is_known_by_its_name_as_one_of_ours_or_is_somebody_elses() {
        let ours = mark("lab", 1, "/home/a/lab");
        let console = crate::host::xml::console_volume("lab-worker-12");
        for name in [
            MARK_VOLUME,
            "controller-0-root.qcow2",
            "worker-12-seed.iso",
            "controller-2-etcd.qcow2",
            ".controller-0-root.qcow2.part",
            &console,
            &format!("{console}.0"),
        ] {
            assert!(is_ours(name, &ours), "{name}");
        }
        for name in [
            "holiday.qcow2",
            "root.qcow2",
            "my-controller-0-root.qcow2",
            "controller-0-root.qcow2.bak",
            "controller-00-root.qcow2",
            "holiday.part",
            ".holiday.qcow2.part",
            "lab-2-worker-12.console.log",
            "lab-worker-12.console.log.txt",
            "lost+found",
        ] {
            assert!(!is_ours(name, &ours), "{name}");
        }
    }

    #[test]
    fn only_the_same_instance_of_the_same_cluster_may_change_a_thing() {
        let ours = mark("lab", 1, "/home/a/lab");
        assert!(guard("domain", "lab-worker-0", Some(&mark("lab", 1, "/moved")), &ours).is_ok());
        for (found, words) in [
            (None, "no ktcw-vm mark"),
            (Some(mark("lab", 2, "/home/b/lab")), "/home/b/lab"),
            (Some(mark("other", 1, "/home/a/other")), "cluster other"),
            (Some(mark("lab", 2, "")), "another cluster named lab"),
        ] {
            let error = guard("domain", "lab-worker-0", found.as_ref(), &ours).expect_err("foreign");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
