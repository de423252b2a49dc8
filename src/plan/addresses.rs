//! The address plan of a cluster: one /24, every slot fixed by role and index.
//! `plan` builds it; certificates, network-config and routes all read it.
//! Adding a node takes a slot that was always its own, so no other node changes.

use crate::spec::{MAX_WORKERS, NetworkSpec, NodeName, Role};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// `.1` gateway · `.10` VIP · `.11…17` controllers · `.101…150` workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPlan {
    subnet: Ipv4Net,
    pod_cidr: Ipv4Net,
    service_cidr: Ipv4Net,
}

impl AddressPlan {
    pub fn new(subnet: Ipv4Net, spec: &NetworkSpec) -> Self {
        Self { subnet, pod_cidr: spec.pod_cidr, service_cidr: spec.service_cidr }
    }
    fn host(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.subnet.network().octets();
        Ipv4Addr::new(a, b, c, last)
    }
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }
    pub fn gateway(&self) -> Ipv4Addr {
        self.host(1)
    }
    pub fn vip(&self) -> Ipv4Addr {
        self.host(10)
    }
    pub fn node(&self, node: &NodeName) -> Ipv4Addr {
        match node.role() {
            Role::Controller => self.host(11 + node.index()),
            Role::Worker => self.host(101 + node.index()),
        }
    }
    /// `10.244.<101+i>.0/24` for worker *i*: the third number is the last one of its own address.
    pub fn pods(&self, worker: u8) -> Ipv4Net {
        let [a, b, ..] = self.pod_cidr.network().octets();
        Ipv4Net::new_assert(Ipv4Addr::new(a, b, 101 + worker, 0), 24)
    }
    /// Every worker slot's pod network and its next hop, whether the worker exists or not:
    /// routes are the same on every node and adding a worker changes none of them.
    pub fn pod_routes(&self) -> Vec<(Ipv4Net, Ipv4Addr)> {
        (0..MAX_WORKERS).map(|i| (self.pods(i), self.node(&NodeName::worker(i)))).collect()
    }
    /// The first address of the service range, as the API server takes it.
    pub fn kubernetes_service(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 1)
    }
    pub fn dns_service(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 10)
    }
}
