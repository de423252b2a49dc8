//! Faults that need more than the node has: a certificate of the cluster's CA that runs out, and data out of a snapshot.
//! `Machines::perform` calls it.
//! Keys and snapshots travel on standard input and are private on the node from their first byte.

use super::{Machines, shell};
use crate::drill::catalogue::Process;
use crate::drill::clock::pass;
use crate::drill::restorable::patience;
use crate::guest::{put, quote};
use crate::pki::KeyCert;
use crate::plan::{CertPlan, PkiItem};
use crate::said::one_line;
use crate::spec::NodeName;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Where the snapshot lies on a node while it is restored: on etcd's own disk, which has room for it.
const SNAPSHOT: &str = "/var/lib/etcd/ktcw-drill.db";

impl Machines {
    /// The server certificate of a member, as planned.
    pub(super) fn server_cert(&self, node: &NodeName) -> Result<(&CertPlan, &str), String> {
        let at = "/etc/etcd/pki/server";
        let found = self.plan.certs.iter().find(|cert| cert.node.as_ref() == Some(node) && cert.at.as_deref() == Some(at));
        found.map(|cert| (cert, at)).ok_or_else(|| format!("{node} has no etcd server certificate"))
    }

    /// SHA-256 of the certificate that belongs on the node.
    pub(super) fn server_cert_sum(&self, node: &NodeName) -> Option<String> {
        let (plan, _) = self.server_cert(node).ok()?;
        let pem = self.keyring.item(&PkiItem::Cert { id: plan.id.clone() })?;
        Some(Sha256::digest(pem.expose()).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    async fn put_cert(&self, node: &NodeName, stem: &str, pair: &KeyCert) -> Result<(), String> {
        let deadline = self.deadline();
        let text = |error: crate::guest::GuestError| error.to_string();
        put(&*self.guest, node, &format!("{stem}-key.pem"), pair.key.expose().as_bytes(), 0o600, deadline).await.map_err(text)?;
        put(&*self.guest, node, &format!("{stem}.pem"), pair.cert.as_bytes(), 0o644, deadline).await.map_err(text)
    }

    /// Puts a certificate of a few seconds in the place of the server's, lets it run out, and restarts the member, so that
    /// nobody keeps a connection from before.
    pub(super) async fn expire_cert(&self, node: &NodeName, seconds: u32) -> Result<(), String> {
        let (plan, stem) = self.server_cert(node)?;
        let (kept, quoted) = (shell::KEPT_CERT, quote(stem));
        let keep = format!(
            "set -e\numask 077\nif [ ! -e {kept}/cert.pem ]; then mkdir -p {kept}; cp {quoted}-key.pem {kept}/key.pem; \
             cp {quoted}.pem {kept}/cert.pem; fi\n"
        );
        self.on(node, keep).await?;
        let life = Duration::from_secs(u64::from(seconds));
        let pair = self.keyring.issue(plan, (self.clock)(), life).map_err(|error| error.to_string())?;
        self.put_cert(node, stem, &pair).await?;
        pass(life + Duration::from_secs(1)).await;
        self.on(node, "systemctl stop etcd.service; systemctl start --no-block etcd.service\n".to_owned()).await.map(|_| ())
    }

    /// etcd reads its certificate anew for every connection: no restart is needed.
    pub(super) async fn renew_cert(&self, node: &NodeName) -> Result<(), String> {
        let (plan, stem) = self.server_cert(node)?;
        let pair = self.keyring.identity(&plan.id).ok_or_else(|| format!("{} is not in the key store", plan.id))?;
        self.put_cert(node, stem, &pair).await?;
        self.on(node, format!("rm -rf {}\n", shell::KEPT_CERT)).await.map(|_| ())
    }

    /// What `store_room` is of one node.
    pub(super) async fn room_on(&self, node: &NodeName) -> Result<u64, String> {
        let text = self.on(node, shell::room()).await?.stdout_text();
        let bytes = text.trim().strip_prefix("room ").and_then(|bytes| bytes.parse().ok());
        bytes.ok_or_else(|| format!("{node}: {:?} is no number of bytes", one_line(&text)))
    }

    /// All members anew from one snapshot, or none: as long as one has no data, none of them is running from it. Members have their
    /// ids from the token, so each call draws its own: nobody of an earlier restore, be it of this very snapshot or cut off
    /// half-way, is taken for a member of this one.
    pub(super) async fn restore(&self, nodes: &[NodeName], snapshot: &str) -> Result<(), String> {
        let mut missing = false;
        for node in nodes {
            let answer = self.on(node, format!("if [ -e {}/member ]; then echo there; fi\n", shell::DATA)).await?;
            missing |= answer.stdout_text().trim() != "there";
        }
        if !missing {
            return Ok(());
        }
        let bytes = tokio::fs::read(snapshot).await.map_err(|error| format!("{snapshot}: {error}"))?;
        let initial: Vec<String> =
            self.plan.controllers().map(|node| format!("{}=https://{}:2380", node.name, node.ip)).collect();
        let initial = initial.join(",");
        let token = format!("{}-restored-{}", self.plan.cluster, crate::store::draw_id());
        let image = format!("localhost/ktcw/etcd:{}", self.plan.resolved.image.versions.etcd);
        // All are empty before one is restored: killed in between, the next heal must not take old data for restored.
        for node in nodes {
            let down = format!("{}{}{}", shell::down(Process::Etcd, false), shell::alone_with_data(), shell::wipe());
            self.on(node, format!("set -e\n{down}")).await?;
        }
        let patience = |least| patience(least, bytes.len() as u64);
        for node in nodes {
            let uploaded = put(&*self.guest, node, SNAPSHOT, &bytes, 0o600, patience(self.deadline() * 4));
            uploaded.await.map_err(|error| error.to_string())?;
            // Whole or absent: data that is half restored has another name.
            let restore = format!(
                "set -e\ntrap 'rm -f {SNAPSHOT}' EXIT\n{alone}rm -rf {data}.new\n\
                 podman run --rm --name {restorer} --pull=never --network=none --volume {disk}:{disk} {image} \
                 etcdutl snapshot restore {SNAPSHOT} --bump-revision=1000000000 --mark-compacted --data-dir={data}.new \
                 --name={node} --initial-cluster={initial} --initial-cluster-token={token} \
                 --initial-advertise-peer-urls=https://{ip}:2380 >&2 9>&-\n\
                 mv -T {data}.new {data}\n",
                alone = shell::alone_with_data(),
                restorer = shell::RESTORER,
                disk = shell::DISK,
                data = shell::DATA,
                ip = self.node(node)?.ip,
            );
            self.within(patience(self.deadline()), node, restore).await?;
        }
        Ok(())
    }
}
