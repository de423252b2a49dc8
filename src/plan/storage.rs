//! Where a cluster's disks, and the images that all clusters share, lie in libvirt: pools, volumes, and what each is called.
//! `plan` decides them here; `host` and `down` tell by these names what is ours.
//! It knows names and digests, and nothing of what is in a volume or of how large it is.

use super::{Resolved, identity};
use crate::spec::{ClusterSpec, NodeName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Every cluster's own pool is called this and its name.
pub const POOL_PREFIX: &str = "ktcw-";

/// Pool of the images that all clusters of a libvirt share. No cluster can be called so: names have no dot.
pub const IMAGE_POOL: &str = "ktcw.images";

/// Whether a volume of the image pool can be one that `storage` names. Whatever else lies there was put there by somebody.
pub fn is_image(volume: &str) -> bool {
    let stem = volume.strip_suffix(".qcow2").unwrap_or(volume);
    stem.split_once('-').is_some_and(|(kind, digest)| {
        let hex = digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex && ["base", "kernel", "initrd"].contains(&kind)
    })
}

/// Whether a volume of a cluster's own pool can be a disk of one of its nodes. Whatever else lies there is not of the plan's making.
pub fn is_disk(volume: &str) -> bool {
    let node = ["-root.qcow2", "-etcd.qcow2", "-seed.iso"].iter().find_map(|end| volume.strip_suffix(end));
    node.is_some_and(|node| NodeName::parse(node).is_ok())
}

/// libvirt pools. Base images and kernels are shared by clusters, named by content digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoragePlan {
    /// Pool of this cluster's volumes: `ktcw-<cluster>`.
    pub pool: String,
    pub pool_uuid: Uuid,
    /// Pool shared by all clusters: `ktcw.images` (a cluster cannot be called that).
    pub image_pool: String,
    pub image_pool_uuid: Uuid,
    /// Volumes of the image pool.
    pub base_volume: String,
    pub kernel_volume: String,
    pub initrd_volume: Option<String>,
}

impl StoragePlan {
    /// The part that all clusters share, for when the last of them goes: it names no volume and no cluster's own pool.
    pub fn shared() -> StoragePlan {
        StoragePlan {
            pool: String::new(),
            pool_uuid: Uuid::nil(),
            image_pool: IMAGE_POOL.to_owned(),
            image_pool_uuid: identity::shared_uuid("images"),
            base_volume: String::new(),
            kernel_volume: String::new(),
            initrd_volume: None,
        }
    }
}

/// The pools and volumes of a cluster.
pub(super) fn of_cluster(spec: &ClusterSpec, resolved: &Resolved) -> StoragePlan {
    let image = &resolved.image;
    let short = |digest: &str| digest.chars().take(16).collect::<String>();
    let (kernel, initrd) = match &resolved.kernel {
        Some(kernel) => (&kernel.sha256, kernel.initrd_sha256.as_ref()),
        None => (&image.kernel_sha256, Some(&image.initrd_sha256)),
    };
    StoragePlan {
        pool: format!("{POOL_PREFIX}{}", spec.name),
        pool_uuid: identity::uuid(&spec.name, "pool"),
        base_volume: format!("base-{}.qcow2", short(&image.disk_sha256)),
        kernel_volume: format!("kernel-{}", short(kernel)),
        initrd_volume: initrd.map(|digest| format!("initrd-{}", short(digest))),
        ..StoragePlan::shared()
    }
}
