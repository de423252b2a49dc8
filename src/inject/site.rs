//! A planned cluster as `drill` wants to see it: where its members answer, with which keys, and what timers are in force.
//! `cli` calls it once per verb.
//! It is pure: the host's load is told, the keys come from the key store.

use crate::drill::bound::Timing;
use crate::drill::etcd::{Endpoint, Site, Tls};
use crate::drill::injector::Environment;
use crate::pki::Keyring;
use crate::plan::{Accel, Ca, Plan};

/// The controller-manager's default, which we leave as it is.
const NODE_MONITOR_GRACE_MS: u64 = 50_000;

/// `None`: the key store lacks etcd's CA or the host's client certificate.
pub fn site(plan: &Plan, keyring: &Keyring, host_load: f64, host_cpus: usize) -> Option<Site> {
    let identity = keyring.identity("etcd-admin")?;
    let tls = Tls { ca: keyring.ca_pem(Ca::Etcd)?.to_owned(), cert: identity.cert, key: identity.key };
    let member = |node: &crate::plan::NodePlan| Endpoint {
        node: node.name.clone(),
        client_url: format!("https://{}:2379", node.ip),
        peer_url: format!("https://{}:2380", node.ip),
    };
    let acceleration = match plan.resolved.accel {
        Accel::Kvm { .. } => "kvm",
        Accel::Tcg => "tcg",
    };
    Some(Site {
        members: plan.controllers().map(member).collect(),
        tls: Some(tls),
        quota_mib: plan.etcd_quota_mib(),
        environment: Environment {
            cluster: plan.cluster.to_string(),
            acceleration: acceleration.to_owned(),
            kubernetes: plan.resolved.image.versions.kubernetes.clone(),
            timing: timing(plan),
            host_load,
            host_cpus,
        },
    })
}

fn timing(plan: &Plan) -> Timing {
    let timers = &plan.timers;
    let ms = |seconds: u32| u64::from(seconds) * 1000;
    Timing {
        heartbeat_ms: u64::from(timers.etcd_heartbeat_ms),
        election_ms: u64::from(timers.etcd_election_ms),
        lease_ms: ms(timers.lease_duration_s),
        retry_ms: ms(timers.retry_period_s),
        vip_ms: ms(timers.vip_interval_s),
        grace_ms: NODE_MONITOR_GRACE_MS,
        // The deadline of `up` covers a first boot, with cloud-init and new file systems; a later one is a third of it.
        boot_ms: ms(timers.boot_deadline_s) / 3,
        latency_ms: 10,
    }
}
