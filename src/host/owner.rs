//! Ownership, decided in one place: may this cluster change that thing?
//! Every `Host` asks `guard` before any change; the fake and libvirt give the same answer in the same words.
//! It knows marks and names, not how a mark is stored.

use super::{HostError, Mark};

impl Mark {
    /// Same cluster, drawn the same time. The state directory may have moved since: it is there for messages only.
    pub fn owns(&self, other: &Mark) -> bool {
        self.cluster == other.cluster && self.instance == other.instance
    }
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
