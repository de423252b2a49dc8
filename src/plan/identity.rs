//! Identity derived from names: the same cluster and node give the same UUID and MAC, today and next year.
//! `plan` is the only caller; deriving makes re-defining a domain idempotent and plans byte-stable.
//! It draws nothing at random and asks nobody.

use crate::spec::{ClusterName, NodeName, Role};
use uuid::Uuid;

/// Root of all our UUIDs (itself derived, so that it is not a magic number).
fn namespace() -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, b"https://ktcw-vm.invalid/")
}

/// UUID of a thing of a cluster: `kind` is `network`, `pool` or a node's name.
pub fn uuid(cluster: &ClusterName, thing: &str) -> Uuid {
    Uuid::new_v5(&namespace(), format!("{cluster}/{thing}").as_bytes())
}

/// UUID of a thing shared by all clusters.
pub fn shared_uuid(thing: &str) -> Uuid {
    Uuid::new_v5(&namespace(), format!("/{thing}").as_bytes())
}

/// MAC address under QEMU's `52:54:00`: two bytes from the cluster, the last one the node's own slot,
/// so MACs of one cluster never collide.
pub fn mac(cluster: &ClusterName, node: &NodeName) -> String {
    let slot = match node.role() {
        Role::Controller => node.index(),
        Role::Worker => 100 + node.index(),
    };
    let [a, b, ..] = *uuid(cluster, "mac").as_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{slot:02x}")
}

/// Name of a cluster's network, and of the namespace by which a fork's is reached.
pub fn network(cluster: &ClusterName) -> String {
    format!("ktcw-{cluster}")
}

/// Linux bridge name: `kt` and ten hex digits, within IFNAMSIZ.
pub fn bridge(cluster: &ClusterName) -> String {
    format!("kt{}", &uuid(cluster, "bridge").simple().to_string()[..10])
}
