//! Keys and certificates out of plans: ECDSA P-256, every field explicit, PEM as text.
//! `keyring` calls it with the clock's reading; nothing here touches a file.
//! It is the only file, tests apart, that names `rcgen`.

use super::PkiError;
use crate::plan::{Ca, CertPlan, Usage};
use crate::secret::Secret;
use jiff::{SignedDuration, Timestamp};
use rand::TryRngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use std::net::IpAddr;
use std::time::Duration;
use time::OffsetDateTime;

/// How long certificates live, from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    pub ca: Duration,
    /// Never longer than what is left of the authority's.
    pub leaf: Duration,
}

impl Default for Lifetimes {
    /// Ten years and one.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { ca: DAY * 3650, leaf: DAY * 365 }
    }
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCert {
    pub cert: String,
    pub key: Secret,
}

/// Guests' clocks may be behind this computer's by this much.
const BACK_DATED: SignedDuration = SignedDuration::from_mins(10);

/// A new private key, PKCS#8 PEM.
pub(super) fn key() -> Result<Secret, PkiError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed("a key", &error))?;
    Ok(Secret::new(pair.serialize_pem()))
}

/// Random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|error| failed("random bytes", &error))?;
    Ok(bytes)
}

/// `BEGIN PUBLIC KEY`. The API server's `--service-account-key-file` takes this one: of private EC keys it reads SEC1 only,
/// and ours are PKCS#8.
pub(super) fn public_key(key: &Secret) -> Result<String, String> {
    Ok(load_key(key)?.public_key_pem())
}

/// SubjectPublicKeyInfo, DER: what a certificate must carry to be of this key.
pub(super) fn public_key_der(key: &Secret) -> Result<Vec<u8>, String> {
    Ok(load_key(key)?.subject_public_key_info())
}

fn load_key(key: &Secret) -> Result<KeyPair, String> {
    KeyPair::from_pkcs8_pem_and_sign_algo(key.expose(), &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| "not a PKCS#8 PEM of an ECDSA P-256 key".to_owned())
}

/// An authority that can sign: its certificate and key, loaded. Lives as short as it can.
pub(super) struct Authority {
    ca: Ca,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The self-signed certificate of `ca` for an existing key.
    pub fn certificate(ca: Ca, key: &Secret, now: Timestamp, lifetime: Duration) -> Result<String, PkiError> {
        let pair = load_key(key).map_err(|reason| PkiError::Make { what: format!("{ca}'s certificate"), reason })?;
        let mut params = params(ca.common_name(), &[], now, end(ca.common_name(), now, lifetime)?)?;
        // Nothing but leaves below it.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params.self_signed(&pair).map_err(|error| failed(ca.common_name(), &error))?.pem())
    }

    /// From its PEM texts. The caller has seen that they belong together; `not_after` is the certificate's.
    pub fn load(ca: Ca, cert: &str, key: &Secret, not_after: Timestamp) -> Result<Authority, String> {
        let issuer = Issuer::from_ca_cert_pem(cert, load_key(key)?).map_err(|error| error.to_string())?;
        Ok(Authority { ca, not_after, issuer })
    }

    /// The planned certificate for an existing key, signed.
    pub fn sign(&self, plan: &CertPlan, key: &Secret, now: Timestamp, lifetime: Duration) -> Result<String, PkiError> {
        let wrong = |why: &str| PkiError::Plan { id: plan.id.clone(), why: why.to_owned() };
        if plan.ca != self.ca {
            return Err(wrong("another authority was given for it"));
        }
        let pair = load_key(key).map_err(|reason| PkiError::Make { what: format!("certificate {}", plan.id), reason })?;
        let end = end(&plan.id, now, lifetime)?.min(self.not_after);
        let mut params = params(&plan.common_name, &plan.organizations, now, end)?;
        for name in &plan.dns_names {
            let name = name.as_str().try_into().map_err(|_| wrong("a DNS name is not ASCII"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(plan.ips.iter().map(|ip| SanType::IpAddress(IpAddr::V4(*ip))));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = plan.usages.iter().copied().map(extended).collect();
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&pair, &self.issuer).map_err(|error| failed(&plan.id, &error))?.pem())
    }
}

fn extended(usage: Usage) -> ExtendedKeyUsagePurpose {
    match usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }
}

/// Everything that `rcgen` would default to something odd (valid 1975–4096, a name of its own) is set here.
fn params(common_name: &str, organizations: &[String], now: Timestamp, end: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    match organizations {
        [] => {}
        [one] => params.distinguished_name.push(DnType::OrganizationName, one.as_str()),
        _ => {
            let why = "more than one organization in a subject is not supported".to_owned();
            return Err(PkiError::Plan { id: common_name.to_owned(), why });
        }
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date(common_name, now.checked_sub(BACK_DATED).map_err(|error| failed(common_name, &error))?)?;
    params.not_after = date(common_name, end)?;
    // 127 bits, positive, and of one length in every listing.
    let mut serial = random::<16>()?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn end(what: &str, now: Timestamp, lifetime: Duration) -> Result<Timestamp, PkiError> {
    now.checked_add(lifetime).map_err(|error| failed(what, &error))
}

fn date(what: &str, at: Timestamp) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|error| failed(what, &error))
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> PkiError {
    PkiError::Make { what: what.to_owned(), reason: error.to_string() }
}
