//! Which units a node runs, and the timers that fit how it runs.
//! `plan` records them, `apply` starts them stage by stage, `verify` asks for them.
//! It decides by role and acceleration alone.

use super::{Accel, Timers};
use crate::spec::Role;

/// Components of which one instance at a time works: the names of their leases, in `kube-system`.
pub const ELECTIONS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// The node in a lease holder's identity: `controller-0_2f…` is controller-0's.
pub fn lease_holder(identity: &str) -> &str {
    identity.split('_').next().unwrap_or_default()
}

/// Units of a node in the order they are started.
pub fn of_role(role: Role, control_plane: bool) -> Vec<String> {
    let names: &[&str] = match (role, control_plane) {
        (Role::Controller, true) => &[
            "etcd.service",
            "kube-apiserver.service",
            "kube-controller-manager.service",
            "kube-scheduler.service",
            "keepalived.service",
        ],
        (Role::Controller, false) => &["etcd.service"],
        (Role::Worker, _) => &["containerd.service", "ktcw-pod-egress.service", "kubelet.service", "kube-proxy.service"],
    };
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Native guests keep etcd's and Kubernetes' defaults; emulated ones are 10–15 times slower and get timers to match.
pub fn timers(accel: &Accel) -> Timers {
    match accel {
        Accel::Kvm { .. } => Timers {
            etcd_heartbeat_ms: 100,
            etcd_election_ms: 1000,
            lease_duration_s: 15,
            renew_deadline_s: 10,
            retry_period_s: 2,
            etcd_check_s: 2,
            vip_interval_s: 1,
            vip_check_s: 2,
            vip_timeout_s: 8,
            boot_deadline_s: 300,
            etcd_deadline_s: 240,
            apiserver_deadline_s: 300,
            node_ready_deadline_s: 300,
            probe_deadline_s: 30,
            staged: false,
        },
        Accel::Tcg => Timers {
            etcd_heartbeat_ms: 500,
            etcd_election_ms: 5000,
            lease_duration_s: 60,
            renew_deadline_s: 45,
            retry_period_s: 10,
            etcd_check_s: 20,
            vip_interval_s: 5,
            vip_check_s: 15,
            vip_timeout_s: 30,
            boot_deadline_s: 900,
            etcd_deadline_s: 600,
            apiserver_deadline_s: 900,
            node_ready_deadline_s: 900,
            probe_deadline_s: 180,
            staged: true,
        },
    }
}
