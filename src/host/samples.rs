//! Plans for tests of this module: one controller of cluster `lab`, its network and storage.

use super::Mark;
use super::xml::Layout;
use crate::plan::{Accel, DiskKind, DiskPlan, DomainPlan, NetworkPlan, StoragePlan, identity};
use crate::spec::{ClusterName, NodeName};
use uuid::Uuid;

pub fn mark_in(state_dir: &str) -> Mark {
    Mark { cluster: ClusterName::parse("lab").expect("name"), instance: Uuid::from_u128(7), state_dir: state_dir.to_owned() }
}

pub fn layout() -> Layout {
    Layout {
        pool_dir: "/pools/lab.7".into(),
        image_dir: "/pools/images".into(),
        firmware: Some("/usr/share/qemu/qboot.rom".into()),
        direct_io: true,
    }
}

pub fn storage() -> StoragePlan {
    StoragePlan {
        pool: "ktcw-lab".into(),
        pool_uuid: Uuid::from_u128(1),
        image_pool: "ktcw.images".into(),
        image_pool_uuid: identity::shared_uuid("images"),
        base_volume: "base-0123.qcow2".into(),
        kernel_volume: "kernel-4567".into(),
        initrd_volume: Some("initrd-89ab".into()),
    }
}

pub fn controller(accel: Accel) -> DomainPlan {
    let cluster = ClusterName::parse("lab").expect("name");
    let node = NodeName::controller(0);
    let disk = |target: &str, volume: &str, kind| DiskPlan { target: target.into(), volume: volume.into(), kind };
    DomainPlan {
        name: "lab-controller-0".into(),
        uuid: identity::uuid(&cluster, "controller-0"),
        memory_mib: 1536,
        cpus: 2,
        accel,
        cmdline: "root=/dev/vda rw console=ttyS0 quiet".into(),
        disks: vec![
            disk("vda", "controller-0-root.qcow2", DiskKind::Root { size_gib: 10 }),
            disk("vdb", "controller-0-seed.iso", DiskKind::Seed),
            disk("vdc", "controller-0-etcd.qcow2", DiskKind::Etcd { size_gib: 2 }),
        ],
        mac: identity::mac(&cluster, &node),
        network: "ktcw-lab".into(),
    }
}

pub fn network(isolated: bool) -> NetworkPlan {
    NetworkPlan {
        name: "ktcw-lab".into(),
        uuid: Uuid::from_u128(3),
        bridge: "kt0123456789".into(),
        subnet: "192.168.77.0/24".parse().expect("net"),
        gateway: "192.168.77.1".parse().expect("ip"),
        vip: "192.168.77.10".parse().expect("ip"),
        isolated,
        namespace: false,
        pod_cidr: "10.244.0.0/16".parse().expect("net"),
        service_cidr: "10.32.0.0/16".parse().expect("net"),
        kubernetes_service: "10.32.0.1".parse().expect("ip"),
        dns_service: "10.32.0.10".parse().expect("ip"),
    }
}
