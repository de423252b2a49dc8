use super::*;
use crate::pki::make::{self, Authority, Lifetimes};
use crate::secret::Secret;
use jiff::SignedDuration;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::net::Ipv4Addr;
use std::sync::LazyLock;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}
fn later(days: i64) -> Timestamp {
    now().checked_add(SignedDuration::from_hours(24 * days)).expect("a time")
}
fn plan() -> CertPlan {
    CertPlan {
        id: "etcd-server@controller-0".to_owned(),
        ca: Ca::Etcd,
        common_name: "controller-0".to_owned(),
        organizations: vec!["system:nodes".to_owned()],
        usages: vec![Usage::Server, Usage::Client],
        dns_names: vec!["controller-0".to_owned(), "localhost".to_owned()],
        ips: vec![Ipv4Addr::new(192, 168, 77, 11), Ipv4Addr::LOCALHOST],
        node: Some(NodeName::controller(0)),
        at: None,
    }
}

struct Made {
    key: Secret,
    cert: String,
}

fn authority(ca: Ca, at: Timestamp) -> Made {
    let key = make::key().expect("a key");
    let cert = Authority::certificate(ca, &key, at, Lifetimes::default().ca).expect("a certificate");
    Made { key, cert }
}
static ETCD: LazyLock<Made> = LazyLock::new(|| authority(Ca::Etcd, now()));

fn sign(by: &Made, plan: &CertPlan, lifetime: Duration) -> String {
    let authority = Authority::load(plan.ca, &by.cert, &by.key, not_after(&by.cert).expect("readable")).expect("loads");
    authority.sign(plan, &make::key().expect("a key"), now(), lifetime).expect("signed")
}
fn problems_of(pem: &str, at: Timestamp) -> Vec<Problem> {
    judge(pem, &ETCD.cert, &plan(), at).into_iter().map(|finding| finding.problem).collect()
}

/// A certificate of the etcd authority's key, from parameters no plan would give.
fn odd(change: impl FnOnce(&mut CertificateParams)) -> String {
    odd_with(&KeyPair::generate().expect("a key"), change)
}
fn odd_with(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
    let time = |at: Timestamp| time::OffsetDateTime::from_unix_timestamp(at.as_second()).expect("a time");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "controller-0");
    (params.not_before, params.not_after) = (time(now()), time(later(365)));
    for name in plan().dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.try_into().expect("ASCII")));
    }
    params.subject_alt_names.extend(plan().ips.iter().map(|ip| SanType::IpAddress((*ip).into())));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let ca_key = KeyPair::from_pem(ETCD.key.expose()).expect("ours");
    let issuer = Issuer::from_ca_cert_pem(&ETCD.cert, ca_key).expect("ours");
    params.signed_by(key, &issuer).expect("signed").pem()
}

#[test]
fn what_is_made_from_a_plan_has_no_finding() {
    assert_eq!(judge(&sign(&ETCD, &plan(), 365 * DAY), &ETCD.cert, &plan(), now()), []);
    assert_eq!(judge_ca(&ETCD.cert, Ca::Etcd, now()), []);
    assert_eq!(problems_of(&odd(|_| ()), now()), [], "the odd one is odd only by what a test changes");
    for usages in [vec![Usage::Client], vec![Usage::Server]] {
        let plan = CertPlan { usages, dns_names: Vec::new(), ips: Vec::new(), organizations: Vec::new(), ..plan() };
        assert_eq!(judge(&sign(&ETCD, &plan, DAY * 90), &ETCD.cert, &plan, now()), []);
    }
}

/// Every field of the plan, changed in turn, is found, and nothing else is said.
#[test]
fn each_deviation_from_the_plan_is_the_finding_of_its_own_kind() {
    let text = |text: &str| text.to_owned();
    let subject = |seen: &str| Problem::Subject { planned: text("CN=controller-0, O=system:nodes"), seen: text(seen) };
    let names = |missing: &[&str], unplanned: &[&str]| Problem::Names {
        missing: missing.iter().map(|name| text(name)).collect(),
        unplanned: unplanned.iter().map(|name| text(name)).collect(),
    };
    let usages = |seen: &str| Problem::Usages { planned: text("client and server"), seen: text(seen) };
    let address = |last| Ipv4Addr::new(192, 168, 77, last);
    for (made, expected) in [
        (CertPlan { common_name: text("controller-1"), ..plan() }, subject("O=system:nodes, CN=controller-1")),
        (CertPlan { organizations: vec![text("system:masters")], ..plan() }, subject("O=system:masters, CN=controller-0")),
        (CertPlan { organizations: Vec::new(), ..plan() }, subject("CN=controller-0")),
        (CertPlan { dns_names: vec![text("localhost")], ..plan() }, names(&["controller-0"], &[])),
        (CertPlan { ips: vec![Ipv4Addr::LOCALHOST, address(12)], ..plan() }, names(&["192.168.77.11"], &["192.168.77.12"])),
        (CertPlan { ips: [plan().ips, vec![address(10)]].concat(), ..plan() }, names(&[], &["192.168.77.10"])),
        (CertPlan { usages: vec![Usage::Server], ..plan() }, usages("server")),
        (CertPlan { usages: vec![Usage::Client], ..plan() }, usages("client")),
        (CertPlan { usages: Vec::new(), ..plan() }, usages("no usage")),
    ] {
        assert_eq!(problems_of(&sign(&ETCD, &made, 365 * DAY), now()), [expected]);
    }
    let two = CertPlan { common_name: text("x"), usages: vec![Usage::Client], ..plan() };
    assert_eq!(problems_of(&sign(&ETCD, &two, 365 * DAY), now()).len(), 2, "all problems at once");
}

#[test]
fn certificates_no_plan_would_make_are_found_too() {
    let usages = |seen: &str| Problem::Usages { planned: "client and server".to_owned(), seen: seen.to_owned() };
    let more = |usage: ExtendedKeyUsagePurpose| odd(|params| params.extended_key_usages.push(usage));
    assert_eq!(problems_of(&more(ExtendedKeyUsagePurpose::CodeSigning), now()), [usages("client and server and something else")]);
    assert_eq!(problems_of(&more(ExtendedKeyUsagePurpose::Any), now()), [usages("anything and client and server")]);
    assert_eq!(problems_of(&odd(|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]), now()), [Problem::KeyUsage]);
    let authority = problems_of(&odd(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), now());
    assert!(authority.contains(&Problem::Authority), "{authority:?}");
    let signer = problems_of(&odd(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)), now());
    assert_eq!(signer, [Problem::Authority]);
    let mail = odd(|params| params.subject_alt_names.push(SanType::Rfc822Name("a@b.c".try_into().expect("ASCII"))));
    assert!(
        matches!(&problems_of(&mail, now())[..], [Problem::Names { missing, unplanned }] if missing.is_empty() && unplanned.len() == 1)
    );
    let country = odd(|params| params.distinguished_name.push(DnType::CountryName, "XX"));
    assert!(matches!(&problems_of(&country, now())[..], [Problem::Subject { .. }]));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    assert_eq!(problems_of(&odd_with(&p384, |_| ()), now()), [Problem::KeyType]);
}

#[test]
fn another_authority_of_the_same_name_and_a_changed_byte_break_the_chain() {
    let other = authority(Ca::Etcd, now());
    let foreign = sign(&other, &plan(), 365 * DAY);
    assert!(matches!(&problems_of(&foreign, now())[..], [Problem::Chain { ca: Ca::Etcd, .. }]));
    // The chain is asked for also when no planned usage is there.
    let useless = sign(&other, &CertPlan { usages: Vec::new(), ..plan() }, 365 * DAY);
    assert!(matches!(&problems_of(&useless, now())[..], [Problem::Chain { .. }, Problem::Usages { .. }]));

    let good = sign(&ETCD, &plan(), 365 * DAY);
    let (_, block) = x509_parser::pem::parse_x509_pem(good.as_bytes()).expect("PEM");
    let mut der = block.contents.clone();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert!(matches!(&problems_of(&pem_of(&der), now())[..], [Problem::Chain { .. }]), "its signature");

    let garbled = judge(&good, "no certificate", &plan(), now());
    assert!(
        matches!(&garbled[..], [Finding { problem: Problem::Chain { reason, .. }, .. }] if reason.contains("cannot be read"))
    );
    let expired = judge(&good, &ETCD.cert, &plan(), later(3651));
    assert!(matches!(
        &expired[..],
        [Finding { problem: Problem::Chain { .. }, .. }, Finding { problem: Problem::Expired { .. }, .. }]
    ));
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine;
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64::engine::general_purpose::STANDARD.encode(der))
}

#[test]
fn dates_are_judged_at_their_edges() {
    let good = sign(&ETCD, &plan(), 365 * DAY);
    let at = |days, seconds| later(days).checked_add(SignedDuration::from_secs(seconds)).expect("a time");
    let from = now().checked_sub(SignedDuration::from_mins(10)).expect("a time");
    let end = later(365);
    assert_eq!(problems_of(&good, from), [], "back-dated by ten minutes");
    assert_eq!(
        problems_of(&good, at(0, -601)),
        [Problem::Chain { ca: Ca::Etcd, reason: authority_dates() }, Problem::NotYetValid { from }]
    );
    assert_eq!(problems_of(&good, at(365 - SOON_DAYS, 0)), []);
    assert_eq!(problems_of(&good, at(365 - SOON_DAYS, 1)), [Problem::ExpiresSoon { at: end, days_left: SOON_DAYS - 1 }]);
    assert_eq!(problems_of(&good, end), [Problem::ExpiresSoon { at: end, days_left: 0 }]);
    assert_eq!(problems_of(&good, at(365, 1)), [Problem::Expired { at: end }]);
    assert!(Problem::ExpiresSoon { at: end, days_left: 0 }.is_warning() && !Problem::Expired { at: end }.is_warning());
    // An expired certificate of the wrong authority is both.
    let foreign = sign(&authority(Ca::Etcd, now()), &plan(), DAY);
    assert!(matches!(&problems_of(&foreign, later(2))[..], [Problem::Chain { .. }, Problem::Expired { .. }]));
    // Three minutes, for a drill.
    let short = sign(&ETCD, &plan(), Duration::from_secs(180));
    assert_eq!(problems_of(&short, at(0, 179)), [Problem::ExpiresSoon { at: at(0, 180), days_left: 0 }]);
    assert_eq!(problems_of(&short, at(0, 181)), [Problem::Expired { at: at(0, 180) }]);
}

fn authority_dates() -> String {
    let from = now().checked_sub(SignedDuration::from_mins(10)).expect("a time");
    format!("the authority is valid from {from} to {}", later(3650))
}

#[test]
fn a_leaf_never_outlives_its_authority() {
    let key = make::key().expect("a key");
    let cert = Authority::certificate(Ca::Etcd, &key, now(), 10 * DAY).expect("a certificate");
    let leaf = sign(&Made { key, cert: cert.clone() }, &plan(), 365 * DAY);
    assert_eq!(not_after(&leaf), not_after(&cert));
    assert_eq!(not_after(&leaf), Some(later(10)));
}

#[test]
fn authorities_are_judged_as_authorities() {
    let ca = |pem: &str, of, at| judge_ca(pem, of, at).into_iter().map(|finding| finding.problem).collect::<Vec<_>>();
    assert!(matches!(&ca(&ETCD.cert, Ca::Kubernetes, now())[..], [Problem::Subject { .. }]));
    assert_eq!(ca(&ETCD.cert, Ca::Etcd, later(3651)), [Problem::Expired { at: later(3650) }]);
    let leaf = odd(|params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "etcd-ca");
    });
    assert_eq!(ca(&leaf, Ca::Etcd, now()), [Problem::NotAuthority]);
    let powerless = odd(|params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "etcd-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    assert_eq!(ca(&powerless, Ca::Etcd, now()), [Problem::NotAuthority], "without keyCertSign");
}

#[test]
fn text_that_is_not_one_certificate_is_unreadable_with_a_reason() {
    let good = sign(&ETCD, &plan(), DAY);
    for (text, says) in [
        (String::new(), "no PEM block"),
        ("cat: /etc/etcd/pki/server.pem: No such file or directory".to_owned(), "no PEM block"),
        (good[..good.len() / 2].to_owned(), "no PEM block"),
        (format!("{good}{good}"), "more than one"),
        (ETCD.key.expose().to_owned(), "is a PRIVATE KEY"),
        (pem_of(b"not DER"), "cannot be parsed"),
    ] {
        match &judge(&text, &ETCD.cert, &plan(), now())[..] {
            [Finding { problem: Problem::Unreadable { reason }, cert }] => {
                assert!(reason.contains(says) && *cert == plan().id, "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert!(row("x", Ca::Etcd, None, &text, now()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// No byte of a certificate can change without a finding, and nothing panics on the way.
    #[test]
    fn a_changed_byte_is_always_found(at in 0usize..1 << 16, to in 1u8..) {
        static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let pem = sign(&ETCD, &plan(), 365 * DAY);
            x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM").1.contents
        });
        let mut der = GOOD.clone();
        let at = at % der.len();
        der[at] ^= to;
        prop_assert!(!problems_of(&pem_of(&der), now()).is_empty(), "byte {at}");
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
        let _ = judge(&pem_of(&bytes), &pem_of(&bytes), &plan(), now());
        let _ = judge(&text, &text, &plan(), now());
    }
}

/// The judge agrees with the library that clients use: names in the certificate verify, others do not.
#[test]
fn names_verify_as_a_client_would_verify_them() {
    use rustls::pki_types::ServerName;
    let pem = sign(&ETCD, &plan(), DAY);
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
    let der = CertificateDer::from(block.contents);
    let leaf = EndEntityCert::try_from(&der).expect("a certificate");
    let verifies =
        |name: &str| leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name.to_owned()).expect("a name")).is_ok();
    for name in plan().dns_names.into_iter().chain(plan().ips.iter().map(ToString::to_string)) {
        assert!(verifies(&name), "{name}");
    }
    for name in ["controller-1", "192.168.77.12", "example.com", "::1"] {
        assert!(!verifies(name), "{name}");
    }
}

#[test]
fn a_row_says_what_is_in_the_certificate() {
    let row = row("x", Ca::Etcd, Some(NodeName::controller(0)), &sign(&ETCD, &plan(), 365 * DAY), now()).expect("readable");
    assert_eq!(row.subject, "O=system:nodes, CN=controller-0");
    assert_eq!(row.sans, ["127.0.0.1", "192.168.77.11", "controller-0", "localhost"]);
    assert_eq!(row.usages.len(), 2);
    assert_eq!((row.not_after, row.days_left), (later(365), 365));
    assert!(row.serial.len() == 32 && row.serial.chars().all(|c| c.is_ascii_hexdigit()), "{}", row.serial);
}
