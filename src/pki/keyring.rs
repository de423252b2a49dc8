//! The `pki/` directory of a cluster: made from the plan where it is missing, never written over, handed out by name.
//! `up` calls `ensure`, every other verb `load`; `apply` takes what a node's files need through `item`.
//! It keeps no authority's key in memory beyond the moment it signs, and knows nothing of nodes or SSH.

use super::check::{self, Finding, Problem, Row};
use super::kubeconfig::{self, Credentials, KubeconfigError, Names};
use super::make::{self, Authority, KeyCert, Lifetimes};
use super::tree::{self, Tree};
use super::{PkiError, Wrong};
use crate::plan::{Ca, CertPlan, KubeconfigPlan, PkiItem};
use crate::secret::Secret;
use crate::store::files::{self, PUBLIC, SECRET, if_there};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `ensure` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ensured {
    /// In the words of `PkiItem`'s `Display`, with the authorities' keys.
    pub made: Vec<String>,
    pub kept: usize,
}

/// The keys and certificates of a cluster as loaded.
#[derive(Debug, Clone)]
pub struct Keyring {
    dir: PathBuf,
    items: BTreeMap<PkiItem, Secret>,
}

/// Where things lie in the directory.
struct Paths<'a>(&'a Path);

impl Paths<'_> {
    fn ca_cert(&self, ca: Ca) -> PathBuf {
        self.0.join("ca").join(format!("{ca}.pem"))
    }
    fn ca_key(&self, ca: Ca) -> PathBuf {
        self.0.join("ca").join(format!("{ca}-key.pem"))
    }
    fn cert(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.pem"))
    }
    fn key(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}-key.pem"))
    }
    fn kubeconfig(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.kubeconfig"))
    }
    fn service_account(&self) -> PathBuf {
        self.0.join("service-account-key.pem")
    }
    fn encryption(&self) -> PathBuf {
        self.0.join("encryption-config.yaml")
    }
}

impl Keyring {
    /// Where an authority's certificate is kept below `dir`, whether or not the rest of the keys can be read.
    pub fn ca_cert(dir: &Path, ca: Ca) -> PathBuf {
        Paths(dir).ca_cert(ca)
    }

    /// Makes what is missing of the plan in `dir` and loads the rest. What is there is judged first: when anything does not
    /// match its plan nothing is made or changed, and all that is wrong is in the error.
    /// Of every pair the key is written before the certificate, so a cut-off run is completed by the next.
    pub fn ensure(
        dir: &Path,
        certs: &[CertPlan],
        kubeconfigs: &[KubeconfigPlan],
        now: Timestamp,
        lifetimes: Lifetimes,
    ) -> Result<(Keyring, Ensured), PkiError> {
        for id in certs.iter().map(|cert| &cert.id).chain(kubeconfigs.iter().map(|kubeconfig| &kubeconfig.id)) {
            check_id(id)?;
        }
        files::ensure_dir(dir)?;
        files::ensure_dir(&dir.join("ca"))?;
        let mut keyring = Keyring::load(dir, certs, kubeconfigs)?;
        keyring.refuse_lost(certs)?;
        let wrong = keyring.judged(certs, now)?;
        if !wrong.is_empty() {
            return Err(PkiError::Mismatch(wrong));
        }
        let mut done = Ensured::default();
        for ca in Ca::ALL {
            keyring.ensure_ca(ca, now, lifetimes.ca, &mut done)?;
        }
        for ca in Ca::ALL {
            let plans: Vec<_> = certs.iter().filter(|cert| cert.ca == ca).collect();
            keyring.ensure_leaves(ca, &plans, now, lifetimes.leaf, &mut done)?;
        }
        keyring.ensure_others(&mut done)?;
        keyring.render_kubeconfigs(kubeconfigs)?;
        for plan in kubeconfigs.iter().filter(|plan| plan.node.is_none()) {
            keyring.ensure_host_kubeconfig(plan, &mut done)?;
        }
        Ok((keyring, done))
    }

    /// Loads what is there of the plan; what is missing is missing from `item` and a finding of `check`.
    pub fn load(dir: &Path, certs: &[CertPlan], kubeconfigs: &[KubeconfigPlan]) -> Result<Keyring, PkiError> {
        files::check_dir(dir)?;
        let paths = Paths(dir);
        let mut keyring = Keyring { dir: dir.to_owned(), items: BTreeMap::new() };
        for ca in Ca::ALL {
            keyring.keep(PkiItem::CaCert { ca }, if_there(files::read_text(&paths.ca_cert(ca)))?.map(Secret::from));
        }
        for CertPlan { id, .. } in certs {
            check_id(id)?;
            keyring.keep(PkiItem::Cert { id: id.clone() }, if_there(files::read_text(&paths.cert(id)))?.map(Secret::from));
            keyring.keep(PkiItem::Key { id: id.clone() }, if_there(files::read_secret(&paths.key(id)))?);
        }
        if let Some(key) = if_there(files::read_secret(&paths.service_account()))? {
            let public = make::public_key(&key).map_err(|what| PkiError::Unusable { path: paths.service_account(), what })?;
            keyring.keep(PkiItem::ServiceAccountPublicKey, Some(Secret::from(public)));
            keyring.keep(PkiItem::ServiceAccountKey, Some(key));
        }
        if let Some(config) = if_there(files::read_secret(&paths.encryption()))? {
            check_encryption(config.expose()).map_err(|what| PkiError::Unusable { path: paths.encryption(), what })?;
            keyring.keep(PkiItem::EncryptionConfig, Some(config));
        }
        keyring.render_kubeconfigs(kubeconfigs)?;
        Ok(keyring)
    }

    /// PEM or YAML text of one thing. `None`: it was not planned or not made.
    pub fn item(&self, item: &PkiItem) -> Option<&Secret> {
        self.items.get(item)
    }

    pub fn ca_pem(&self, ca: Ca) -> Option<&str> {
        self.item(&PkiItem::CaCert { ca }).map(Secret::expose)
    }

    /// Certificate and key of a `CertPlan`, by its id: what a TLS client of this computer presents.
    pub fn identity(&self, id: &str) -> Option<KeyCert> {
        let cert = self.item(&PkiItem::Cert { id: id.to_owned() })?.expose().to_owned();
        Some(KeyCert { cert, key: self.item(&PkiItem::Key { id: id.to_owned() })?.clone() })
    }

    /// File of a certificate or key on this computer, for programs that want a path (`curl --cacert`, `etcdctl --key`).
    /// `None` for what is kept in memory only.
    pub fn path(&self, item: &PkiItem) -> Option<PathBuf> {
        let paths = Paths(&self.dir);
        match item {
            PkiItem::CaCert { ca } => Some(paths.ca_cert(*ca)),
            PkiItem::Cert { id } => Some(paths.cert(id)),
            PkiItem::Key { id } => Some(paths.key(id)),
            PkiItem::Kubeconfig { id } => Some(paths.kubeconfig(id)).filter(|path| path.exists()),
            PkiItem::ServiceAccountKey => Some(paths.service_account()),
            PkiItem::EncryptionConfig => Some(paths.encryption()),
            PkiItem::ServiceAccountPublicKey => None,
        }
    }

    /// All that is wrong with what is on this computer, warnings included.
    pub fn check(&self, certs: &[CertPlan], now: Timestamp) -> Vec<Finding> {
        let missing = |cert: &str| Finding { cert: cert.to_owned(), problem: Problem::Missing };
        let mut findings = Vec::new();
        for ca in Ca::ALL {
            match self.ca_pem(ca) {
                Some(pem) => findings.extend(check::judge_ca(pem, ca, now)),
                None => findings.push(missing(ca.common_name())),
            }
        }
        for plan in certs {
            match self.item(&PkiItem::Cert { id: plan.id.clone() }) {
                Some(pem) => findings.extend(self.judge(plan, pem.expose(), now)),
                None => findings.push(missing(&plan.id)),
            }
            if self.item(&PkiItem::Key { id: plan.id.clone() }).is_none() {
                findings.push(missing(&format!("private key {}", plan.id)));
            }
        }
        findings
    }

    /// Judges a certificate that was read elsewhere, such as from its node, against its plan and our authority.
    pub fn judge(&self, plan: &CertPlan, pem: &str, now: Timestamp) -> Vec<Finding> {
        let mut findings = check::judge(pem, self.ca_pem(plan.ca).unwrap_or_default(), plan, now);
        if let Some(key) = self.item(&PkiItem::Key { id: plan.id.clone() }) {
            let carries = make::public_key_der(key).is_ok_and(|public| check::carries_key(pem, &public));
            if !carries {
                findings.push(Finding { cert: plan.id.clone(), problem: Problem::KeyMismatch });
            }
        }
        findings
    }

    /// A row for each certificate that is there and can be read; the others are findings of `check`.
    pub fn list(&self, certs: &[CertPlan], now: Timestamp) -> Vec<Row> {
        let authorities = Ca::ALL.into_iter().filter_map(|ca| check::row(ca.common_name(), ca, None, self.ca_pem(ca)?, now).ok());
        let leaves = certs.iter().filter_map(|plan| {
            let pem = self.item(&PkiItem::Cert { id: plan.id.clone() })?;
            check::row(&plan.id, plan.ca, plan.node.clone(), pem.expose(), now).ok()
        });
        authorities.chain(leaves).collect()
    }

    /// Signs the planned certificate for a new key without keeping either: what a drill puts on a node for three minutes.
    pub fn issue(&self, plan: &CertPlan, now: Timestamp, lifetime: Duration) -> Result<KeyCert, PkiError> {
        let key = make::key()?;
        let cert = self.authority(plan.ca)?.sign(plan, &key, now, lifetime)?;
        Ok(KeyCert { cert, key })
    }

    /// Makes new certificates for the existing keys of these plans, judges all of them, and only then replaces those on the
    /// disk, one after the other: keys stay, so any mixture of old and new is good. The caller holds the cluster's lock and takes them to the nodes; host kubeconfigs are refreshed by the next `ensure`.
    pub fn renew(&mut self, certs: &[CertPlan], now: Timestamp, lifetime: Duration) -> Result<(), PkiError> {
        let mut made = Vec::new();
        for ca in Ca::ALL {
            let plans: Vec<_> = certs.iter().filter(|plan| plan.ca == ca).collect();
            if plans.is_empty() {
                continue;
            }
            let authority = self.authority(ca)?;
            for plan in plans {
                let gone = || PkiError::Unusable { path: Paths(&self.dir).key(&plan.id), what: "it is not there".to_owned() };
                let key = self.item(&PkiItem::Key { id: plan.id.clone() }).ok_or_else(gone)?;
                let cert = authority.sign(plan, key, now, lifetime)?;
                let path = Paths(&self.dir).cert(&plan.id);
                let wrong = self.judge(plan, &cert, now).into_iter().filter(|finding| !finding.problem.is_warning());
                let wrong: Vec<Wrong> = wrong.map(|finding| Wrong { path: path.clone(), finding }).collect();
                if !wrong.is_empty() {
                    return Err(PkiError::Mismatch(wrong));
                }
                made.push((plan.id.clone(), path, cert));
            }
        }
        for (id, path, cert) in made {
            files::write_atomic(&path, cert.as_bytes(), PUBLIC)?;
            self.keep(PkiItem::Cert { id }, Some(cert.into()));
        }
        Ok(())
    }

    fn keep(&mut self, item: PkiItem, content: Option<Secret>) {
        if let Some(content) = content {
            self.items.insert(item, content);
        }
    }

    /// A certificate without its key, or leaves without their authority, cannot come from a run cut off: something was lost.
    fn refuse_lost(&self, certs: &[CertPlan]) -> Result<(), PkiError> {
        let paths = Paths(&self.dir);
        let there = |path: &Path| path.symlink_metadata().is_ok();
        for ca in Ca::ALL {
            let signed = certs.iter().filter(|plan| plan.ca == ca).map(|plan| paths.cert(&plan.id)).find(|path| there(path));
            let needed_by = if self.ca_pem(ca).is_some() { Some(paths.ca_cert(ca)) } else { signed };
            if let Some(needed_by) = needed_by.filter(|_| !there(&paths.ca_key(ca))) {
                return Err(PkiError::Lost { path: paths.ca_key(ca), needed_by });
            }
        }
        for plan in certs {
            let cert = self.item(&PkiItem::Cert { id: plan.id.clone() });
            if cert.is_some() && self.item(&PkiItem::Key { id: plan.id.clone() }).is_none() {
                return Err(PkiError::Lost { path: paths.key(&plan.id), needed_by: paths.cert(&plan.id) });
            }
        }
        Ok(())
    }

    /// Everything that is there and does not match, with its file. An authority whose certificate is still to be made
    /// for its key cannot be asked yet; its leaves are judged at the next run.
    fn judged(&self, certs: &[CertPlan], now: Timestamp) -> Result<Vec<Wrong>, PkiError> {
        let paths = Paths(&self.dir);
        let mut wrong = Vec::new();
        for ca in Ca::ALL {
            let Some(pem) = self.ca_pem(ca) else { continue };
            let mut findings = check::judge_ca(pem, ca, now);
            let key = make::public_key_der(&files::read_secret(&paths.ca_key(ca))?);
            if !key.is_ok_and(|key| check::carries_key(pem, &key)) {
                findings.push(Finding { cert: ca.common_name().to_owned(), problem: Problem::KeyMismatch });
            }
            wrong.extend(findings.into_iter().map(|finding| Wrong { path: paths.ca_cert(ca), finding }));
            for plan in certs.iter().filter(|plan| plan.ca == ca) {
                let Some(pem) = self.item(&PkiItem::Cert { id: plan.id.clone() }) else { continue };
                let findings = self.judge(plan, pem.expose(), now);
                wrong.extend(findings.into_iter().map(|finding| Wrong { path: paths.cert(&plan.id), finding }));
            }
        }
        wrong.retain(|wrong| !wrong.finding.problem.is_warning());
        Ok(wrong)
    }

    fn ensure_ca(&mut self, ca: Ca, now: Timestamp, lifetime: Duration, done: &mut Ensured) -> Result<(), PkiError> {
        let paths = Paths(&self.dir);
        let item = PkiItem::CaCert { ca };
        let key = ensure_key(&paths.ca_key(ca), &format!("private key {ca}"), done)?;
        if self.items.contains_key(&item) {
            done.kept += 1;
            return Ok(());
        }
        let cert = Authority::certificate(ca, &key, now, lifetime)?;
        files::write_atomic(&paths.ca_cert(ca), cert.as_bytes(), PUBLIC)?;
        done.made.push(item.to_string());
        self.keep(item, Some(cert.into()));
        Ok(())
    }

    fn ensure_leaves(
        &mut self,
        ca: Ca,
        plans: &[&CertPlan],
        now: Timestamp,
        lifetime: Duration,
        done: &mut Ensured,
    ) -> Result<(), PkiError> {
        let mut authority = None;
        for plan in plans {
            let id = || plan.id.clone();
            let key = ensure_key(&Paths(&self.dir).key(&plan.id), &PkiItem::Key { id: id() }.to_string(), done)?;
            self.keep(PkiItem::Key { id: id() }, Some(key.clone()));
            let item = PkiItem::Cert { id: id() };
            if self.items.contains_key(&item) {
                done.kept += 1;
                continue;
            }
            if authority.is_none() {
                authority = Some(self.authority(ca)?);
            }
            let Some(authority) = &authority else { continue };
            let cert = authority.sign(plan, &key, now, lifetime)?;
            files::write_atomic(&Paths(&self.dir).cert(&plan.id), cert.as_bytes(), PUBLIC)?;
            done.made.push(item.to_string());
            self.keep(item, Some(cert.into()));
        }
        Ok(())
    }

    fn ensure_others(&mut self, done: &mut Ensured) -> Result<(), PkiError> {
        let path = Paths(&self.dir).service_account();
        let key = ensure_key(&path, &PkiItem::ServiceAccountKey.to_string(), done)?;
        let public = make::public_key(&key).map_err(|what| PkiError::Unusable { path, what })?;
        self.keep(PkiItem::ServiceAccountPublicKey, Some(public.into()));
        self.keep(PkiItem::ServiceAccountKey, Some(key));
        if self.items.contains_key(&PkiItem::EncryptionConfig) {
            done.kept += 1;
            return Ok(());
        }
        let config = encryption(&make::random()?)?;
        files::write_atomic(&Paths(&self.dir).encryption(), config.expose().as_bytes(), SECRET)?;
        done.made.push(PkiItem::EncryptionConfig.to_string());
        self.keep(PkiItem::EncryptionConfig, Some(config));
        Ok(())
    }

    /// The authority with its key, read from the disk for this use only.
    fn authority(&self, ca: Ca) -> Result<Authority, PkiError> {
        let paths = Paths(&self.dir);
        let unusable = |path: PathBuf, what: String| PkiError::Unusable { path, what };
        let cert = self.ca_pem(ca).ok_or_else(|| unusable(paths.ca_cert(ca), "it is not there".to_owned()))?;
        let not_after =
            check::not_after(cert).ok_or_else(|| unusable(paths.ca_cert(ca), "it is not a certificate".to_owned()))?;
        let key = files::read_secret(&paths.ca_key(ca))?;
        Authority::load(ca, cert, &key, not_after).map_err(|what| unusable(paths.ca_key(ca), what))
    }

    /// Kubeconfigs follow from certificates and plan; those of nodes are never files on this computer.
    fn render_kubeconfigs(&mut self, plans: &[KubeconfigPlan]) -> Result<(), PkiError> {
        for plan in plans {
            check_id(&plan.id)?;
            let (Some(ca), Some(identity)) = (self.ca_pem(Ca::Kubernetes), self.identity(&plan.cert)) else { continue };
            let credentials = Credentials { ca, cert: &identity.cert, key: &identity.key };
            let text = kubeconfig::render(plan, credentials)
                .map_err(|error| PkiError::Make { what: format!("kubeconfig {}", plan.id), reason: error.to_string() })?;
            self.keep(PkiItem::Kubeconfig { id: plan.id.clone() }, Some(text));
        }
        Ok(())
    }

    /// The host's own kubeconfig is a file that `kubectl config` may have changed: our entries are put right in it and the
    /// rest, such as a chosen namespace, stays.
    fn ensure_host_kubeconfig(&mut self, plan: &KubeconfigPlan, done: &mut Ensured) -> Result<(), PkiError> {
        let path = Paths(&self.dir).kubeconfig(&plan.id);
        let item = PkiItem::Kubeconfig { id: plan.id.clone() };
        let (Some(ca), Some(identity)) = (self.ca_pem(Ca::Kubernetes), self.identity(&plan.cert)) else {
            return Err(PkiError::Plan { id: plan.id.clone(), why: format!("its certificate {} is not planned", plan.cert) });
        };
        let credentials = Credentials { ca, cert: &identity.cert, key: &identity.key };
        let existing = if_there(files::read_secret(&path))?;
        let old = existing.as_ref().map_or("", Secret::expose);
        let wrong = |error: KubeconfigError| PkiError::Unusable { path: path.clone(), what: error.to_string() };
        let new = kubeconfig::put(old, &Names::planned(plan), &plan.server, credentials, existing.is_none()).map_err(wrong)?;
        // Compared as trees: another order or quoting of the same is not a reason to write.
        if existing.is_some() && tree::read(old) == tree::read(new.expose()) {
            done.kept += 1;
        } else {
            files::write_atomic(&path, new.expose().as_bytes(), SECRET)?;
            done.made.push(item.to_string());
        }
        Ok(())
    }
}

/// Loads the key or makes it; it is on the disk when this returns.
fn ensure_key(path: &Path, what: &str, done: &mut Ensured) -> Result<Secret, PkiError> {
    if let Some(key) = if_there(files::read_secret(path))? {
        make::public_key_der(&key).map_err(|what| PkiError::Unusable { path: path.to_owned(), what })?;
        done.kept += 1;
        return Ok(key);
    }
    let key = make::key()?;
    files::write_atomic(path, key.expose().as_bytes(), SECRET)?;
    done.made.push(what.to_owned());
    Ok(key)
}

/// Ids become file names, and the directory has names of its own.
fn check_id(id: &str) -> Result<(), PkiError> {
    let wrong = |why: &str| Err(PkiError::Plan { id: id.chars().take(80).collect(), why: why.to_owned() });
    let plain = id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '@');
    if !plain {
        return wrong("an id is a-z, 0-9, '-' and '@'");
    }
    if id == "service-account" || id == "ca" || id.ends_with("-key") || id == "encryption-config" {
        return wrong("the key store has a file of that name");
    }
    Ok(())
}

/// Secrets are written with `secretbox`; what was written before there was a key is still read through `identity`.
fn encryption(key: &[u8; 32]) -> Result<Secret, PkiError> {
    let key = Tree::map([("name", Tree::text("key1")), ("secret", Tree::text(STANDARD.encode(key)))]);
    let secretbox = Tree::map([("secretbox", Tree::map([("keys", Tree::List(vec![key]))]))]);
    let identity = Tree::map([("identity", Tree::Map(Vec::new()))]);
    let resource =
        Tree::map([("resources", Tree::List(vec![Tree::text("secrets")])), ("providers", Tree::List(vec![secretbox, identity]))]);
    let config = Tree::map([
        ("apiVersion", Tree::text("apiserver.config.k8s.io/v1")),
        ("kind", Tree::text("EncryptionConfiguration")),
        ("resources", Tree::List(vec![resource])),
    ]);
    let made = |reason| PkiError::Make { what: PkiItem::EncryptionConfig.to_string(), reason };
    tree::write(&config).map(Secret::from).map_err(made)
}

/// Ours as we wrote it, with a key of 32 bytes: an API server given another would not read its own Secrets.
fn check_encryption(text: &str) -> Result<(), String> {
    let config = tree::read(text)?;
    let first = |tree: &Tree| match tree {
        Tree::List(items) => items.first().cloned(),
        _ => None,
    };
    let secret = config
        .get("resources")
        .and_then(first)
        .and_then(|resource| resource.get("providers").and_then(first))
        .and_then(|provider| provider.get("secretbox")?.get("keys").and_then(first))
        .and_then(|key| STANDARD.decode(key.get("secret")?.as_text()?).ok());
    match secret {
        Some(secret) if secret.len() == 32 => Ok(()),
        _ => Err("it has no secretbox key of 32 bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests;
