//! The judge of certificates: text and plan in, findings out.
//! `keyring` asks before anything is made, `certs check` and `verify` ask about what is there, also about text read from a node.
//! It is pure: the clock's reading is an argument, and it neither reads files nor makes anything.

use crate::plan::{Ca, CertPlan, Usage};
use crate::spec::NodeName;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// A certificate that ends within this many days is a warning.
pub const SOON_DAYS: i64 = 30;

/// Something about one certificate that is not as planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Id of the `CertPlan`, or the authority's name.
    pub cert: String,
    #[serde(flatten)]
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cert, self.problem)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Problem {
    #[error("not there")]
    Missing,
    #[error("not a certificate: {reason}")]
    Unreadable { reason: String },
    #[error("not signed by {ca}: {reason}")]
    Chain { ca: Ca, reason: String },
    #[error("made out to {seen}, planned is {planned}")]
    Subject { planned: String, seen: String },
    #[error("its names are not as planned:{}{}", listed(" missing", .missing), listed(" unplanned", .unplanned))]
    Names { missing: Vec<String>, unplanned: Vec<String> },
    #[error("good for {seen}, planned is {planned}")]
    Usages { planned: String, seen: String },
    #[error("it may act as an authority")]
    Authority,
    #[error("it may not act as an authority")]
    NotAuthority,
    #[error("its key may not sign, which every TLS handshake needs")]
    KeyUsage,
    #[error("its key is not ECDSA P-256")]
    KeyType,
    #[error("it is not of the private key beside it")]
    KeyMismatch,
    #[error("not valid before {from}")]
    NotYetValid { from: Timestamp },
    #[error("expired at {at}")]
    Expired { at: Timestamp },
    /// A warning: `is_warning`.
    #[error("expires at {at}, in {days_left} days")]
    ExpiresSoon { at: Timestamp, days_left: i64 },
}

impl Problem {
    /// It works today.
    pub fn is_warning(&self) -> bool {
        matches!(self, Problem::ExpiresSoon { .. })
    }
}

fn listed(label: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{label} {}", names.join(", ")) }
}

/// One line of `certs list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    pub id: String,
    /// Who signed it; an authority signed itself.
    pub ca: Ca,
    pub node: Option<NodeName>,
    /// `O=system:nodes, CN=system:node:worker-0`
    pub subject: String,
    pub sans: Vec<String>,
    pub usages: Vec<Usage>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// Whole days; negative when it has expired.
    pub days_left: i64,
    /// Hex, lower case.
    pub serial: String,
}

/// All that is wrong with a leaf certificate, measured against its plan and its authority's certificate. Empty: nothing.
pub fn judge(pem: &str, ca_pem: &str, plan: &CertPlan, now: Timestamp) -> Vec<Finding> {
    problems(pem, ca_pem, plan, now).into_iter().map(|problem| Finding { cert: plan.id.clone(), problem }).collect()
}

/// The same for an authority.
pub fn judge_ca(pem: &str, ca: Ca, now: Timestamp) -> Vec<Finding> {
    ca_problems(pem, ca, now).into_iter().map(|problem| Finding { cert: ca.common_name().to_owned(), problem }).collect()
}

/// Whether the certificate carries this public key (SubjectPublicKeyInfo, DER). An unreadable one does not.
pub fn carries_key(pem: &str, public_key: &[u8]) -> bool {
    with_certificate(pem, |cert| cert.public_key().raw == public_key).unwrap_or(false)
}

/// Reads a certificate for listing.
pub fn row(id: &str, ca: Ca, node: Option<NodeName>, pem: &str, now: Timestamp) -> Result<Row, Finding> {
    let seen = see(pem).map_err(|reason| Finding { cert: id.to_owned(), problem: Problem::Unreadable { reason } })?;
    Ok(Row {
        id: id.to_owned(),
        ca,
        node,
        subject: seen.subject.join(", "),
        sans: seen.names.into_iter().collect(),
        usages: seen.usages.iter().filter_map(|usage| usage_named(usage)).collect(),
        not_before: seen.not_before,
        not_after: seen.not_after,
        days_left: days(now, seen.not_after),
        serial: seen.serial,
    })
}

/// The end of its validity; `None` when it cannot be read.
pub(super) fn not_after(pem: &str) -> Option<Timestamp> {
    see(pem).ok().map(|seen| seen.not_after)
}

fn problems(pem: &str, ca_pem: &str, plan: &CertPlan, now: Timestamp) -> Vec<Problem> {
    let seen = match see(pem) {
        Ok(seen) => seen,
        Err(reason) => return vec![Problem::Unreadable { reason }],
    };
    let mut problems = Vec::new();
    if let Err(reason) = chain(&seen, ca_pem, plan, now) {
        problems.push(Problem::Chain { ca: plan.ca, reason });
    }
    let mut planned: Vec<String> = plan.organizations.iter().map(|o| format!("O={o}")).collect();
    planned.push(format!("CN={}", plan.common_name));
    problems.extend(subject(&seen, planned));
    let names = |dns: &[String], ips: &[std::net::Ipv4Addr]| -> BTreeSet<String> {
        dns.iter().cloned().chain(ips.iter().map(ToString::to_string)).collect()
    };
    let planned = names(&plan.dns_names, &plan.ips);
    if planned != seen.names {
        problems.push(Problem::Names {
            missing: planned.difference(&seen.names).cloned().collect(),
            unplanned: seen.names.difference(&planned).cloned().collect(),
        });
    }
    let usages: BTreeSet<String> = plan.usages.iter().map(|usage| usage_name(*usage).to_owned()).collect();
    if usages != seen.usages {
        problems.push(Problem::Usages { planned: joined(&usages), seen: joined(&seen.usages) });
    }
    if seen.authority || seen.signs_certificates {
        problems.push(Problem::Authority);
    }
    if !seen.signs {
        problems.push(Problem::KeyUsage);
    }
    problems.extend(of_key_and_time(&seen, now));
    problems
}

fn ca_problems(pem: &str, ca: Ca, now: Timestamp) -> Vec<Problem> {
    let seen = match see(pem) {
        Ok(seen) => seen,
        Err(reason) => return vec![Problem::Unreadable { reason }],
    };
    let mut problems = Vec::new();
    problems.extend(subject(&seen, vec![format!("CN={ca}")]));
    if !seen.authority || !seen.signs_certificates {
        problems.push(Problem::NotAuthority);
    }
    problems.extend(of_key_and_time(&seen, now));
    problems
}

fn subject(seen: &Seen, mut planned: Vec<String>) -> Option<Problem> {
    let mut found = seen.subject.clone();
    found.sort();
    planned.sort();
    (found != planned).then(|| Problem::Subject { planned: planned.join(", "), seen: seen.subject.join(", ") })
}

fn of_key_and_time(seen: &Seen, now: Timestamp) -> impl Iterator<Item = Problem> {
    let days_left = days(now, seen.not_after);
    let time = if now < seen.not_before {
        Some(Problem::NotYetValid { from: seen.not_before })
    } else if now > seen.not_after {
        Some(Problem::Expired { at: seen.not_after })
    } else {
        (days_left < SOON_DAYS).then_some(Problem::ExpiresSoon { at: seen.not_after, days_left })
    };
    (!seen.p256).then_some(Problem::KeyType).into_iter().chain(time)
}

/// Verified as a TLS peer would, for each planned usage. The leaf's own dates are judged elsewhere, so the question is
/// asked at a moment within them: an expired certificate of the wrong authority has two findings and not one.
fn chain(seen: &Seen, ca_pem: &str, plan: &CertPlan, now: Timestamp) -> Result<(), String> {
    let authority = see(ca_pem).map_err(|reason| format!("the authority's certificate cannot be read: {reason}"))?;
    // A trust anchor carries no dates for webpki; Go's verifier looks at them all the same.
    if now < authority.not_before || now > authority.not_after {
        return Err(format!("the authority is valid from {} to {}", authority.not_before, authority.not_after));
    }
    let anchor_der = CertificateDer::from(authority.der);
    let anchor = webpki::anchor_from_trusted_cert(&anchor_der).map_err(|error| format!("the authority: {error}"))?;
    let leaf_der = CertificateDer::from(seen.der.clone());
    let leaf = EndEntityCert::try_from(&leaf_der).map_err(|error| error.to_string())?;
    let at = now.min(seen.not_after).max(seen.not_before).as_second();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at).unwrap_or_default()));
    let algorithms = [webpki::ring::ECDSA_P256_SHA256];
    let anchors = [anchor];
    let said = |error: webpki::Error| error.to_string();
    leaf.verify_for_usage(&algorithms, &anchors, &[], at, AnyUsage, None, None).map_err(said)?;
    // A planned usage that its extension does not name is a finding of its own and not a broken chain.
    for usage in plan.usages.iter().filter(|usage| seen.usages.contains(usage_name(**usage))) {
        let usage = match usage {
            Usage::Server => KeyUsage::server_auth(),
            Usage::Client => KeyUsage::client_auth(),
        };
        leaf.verify_for_usage(&algorithms, &anchors, &[], at, usage, None, None).map_err(said)?;
    }
    Ok(())
}

/// Lets every extended key usage pass: signature, issuer and constraints alone are asked for.
struct AnyUsage;

impl webpki::ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// What the judge looks at, taken out of a parsed certificate.
struct Seen {
    der: Vec<u8>,
    /// `O=…`, `CN=…`, in the certificate's order; other attributes by their object identifier.
    subject: Vec<String>,
    /// DNS names and addresses as text; other kinds as a description, so that they are unplanned.
    names: BTreeSet<String>,
    /// `server`, `client`, or what else its extended key usage says.
    usages: BTreeSet<String>,
    authority: bool,
    signs_certificates: bool,
    signs: bool,
    p256: bool,
    not_before: Timestamp,
    not_after: Timestamp,
    serial: String,
}

fn see(pem: &str) -> Result<Seen, String> {
    with_certificate(pem, see_certificate)?
}

/// Exactly one PEM block, exactly one certificate in it.
fn with_certificate<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, String> {
    if pem.matches("-----BEGIN ").count() > 1 {
        return Err("more than one PEM block".to_owned());
    }
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| "no PEM block".to_owned())?;
    if block.label != "CERTIFICATE" {
        return Err(format!("the PEM block is a {}", block.label));
    }
    let (rest, cert) = X509Certificate::from_der(&block.contents).map_err(|_| "its DER cannot be parsed".to_owned())?;
    if !rest.is_empty() {
        return Err("bytes follow the certificate".to_owned());
    }
    Ok(look(&cert))
}

fn see_certificate(cert: &X509Certificate<'_>) -> Result<Seen, String> {
    const CURVE_P256: &str = "1.2.840.10045.3.1.7";
    let mut seen = Seen {
        der: cert.as_raw().to_vec(),
        subject: Vec::new(),
        names: BTreeSet::new(),
        usages: BTreeSet::new(),
        authority: false,
        signs_certificates: false,
        signs: false,
        p256: cert
            .public_key()
            .algorithm
            .parameters
            .as_ref()
            .and_then(|p| p.as_oid().ok())
            .is_some_and(|o| o.to_id_string() == CURVE_P256),
        not_before: moment(cert.validity().not_before.timestamp())?,
        not_after: moment(cert.validity().not_after.timestamp())?,
        serial: cert.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    for attribute in cert.subject().iter_attributes() {
        let oid = attribute.attr_type().to_id_string();
        let name = match oid.as_str() {
            "2.5.4.3" => "CN",
            "2.5.4.10" => "O",
            other => other,
        };
        seen.subject.push(format!("{name}={}", attribute.as_str().unwrap_or("(not text)")));
    }
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => seen.names.extend(san.general_names.iter().map(name)),
            ParsedExtension::BasicConstraints(constraints) => seen.authority = constraints.ca,
            ParsedExtension::KeyUsage(usage) => {
                seen.signs_certificates = usage.key_cert_sign();
                seen.signs = usage.digital_signature();
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let known = [(usage.server_auth, "server"), (usage.client_auth, "client"), (usage.any, "anything")];
                seen.usages.extend(known.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned()));
                let others = [usage.code_signing, usage.email_protection, usage.time_stamping, usage.ocsp_signing];
                if others.contains(&true) || !usage.other.is_empty() {
                    seen.usages.insert("something else".to_owned());
                }
            }
            ParsedExtension::ParseError { .. } => return Err("an extension cannot be parsed".to_owned()),
            _ => {}
        }
    }
    Ok(seen)
}

fn name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from));
            address.map_or_else(|_| "(an address of odd length)".to_owned(), |address| address.to_string())
        }
        other => format!("({other:?})"),
    }
}

fn moment(seconds: i64) -> Result<Timestamp, String> {
    Timestamp::from_second(seconds).map_err(|_| "a date is out of range".to_owned())
}

/// Whole days from `now`, rounded down, so that 0 is "today" and -1 "less than a day ago".
fn days(now: Timestamp, until: Timestamp) -> i64 {
    (until.as_second() - now.as_second()).div_euclid(24 * 60 * 60)
}

fn usage_name(usage: Usage) -> &'static str {
    match usage {
        Usage::Server => "server",
        Usage::Client => "client",
    }
}

fn usage_named(name: &str) -> Option<Usage> {
    [Usage::Server, Usage::Client].into_iter().find(|usage| usage_name(*usage) == name)
}

fn joined(usages: &BTreeSet<String>) -> String {
    if usages.is_empty() { "no usage".to_owned() } else { usages.iter().map(String::as_str).collect::<Vec<_>>().join(" and ") }
}

#[cfg(test)]
mod tests;
