use super::*;
use crate::plan::{Accel, Content, Plan, Usage, samples};
use crate::spec::NodeName;
use crate::store::crash;
use jiff::SignedDuration;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

fn now() -> Timestamp {
    // The real time, so that `openssl verify` agrees.
    Timestamp::now()
}
fn dir() -> tempfile::TempDir {
    let private = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir().expect("a directory")
}
fn planned(etcd: u64, workers: u64) -> Plan {
    samples::plan("ktcw", etcd, workers, Accel::Tcg)
}
fn ensure(dir: &Path, plan: &Plan) -> Result<(Keyring, Ensured), PkiError> {
    Keyring::ensure(dir, &plan.certs, &plan.kubeconfigs, now(), Lifetimes::default())
}
/// Every file with its bytes and its modification time.
fn files_in(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(files_in(&path));
        } else {
            let seen = fs::metadata(&path).expect("there");
            found.insert(path.clone(), (fs::read(&path).expect("read"), seen.mtime_nsec()));
        }
    }
    found
}
fn key_id(id: &str) -> PkiItem {
    PkiItem::Key { id: id.to_owned() }
}

#[test]
fn everything_a_plan_asks_for_is_made_valid_and_private() {
    let dir = dir();
    let plan = planned(3, 2);
    let (keyring, done) = ensure(dir.path(), &plan).expect("made");
    // Key and certificate of three authorities and of every leaf; service account, encryption, the host's kubeconfig.
    assert_eq!((done.made.len(), done.kept), (2 * (3 + plan.certs.len()) + 3, 0));
    assert_eq!(keyring.check(&plan.certs, now()), []);
    for file in plan.nodes.iter().flat_map(|node| &node.files) {
        if let Content::Pki { item } = &file.content {
            let secret = keyring.item(item).unwrap_or_else(|| panic!("{item} for {}", file.path));
            assert!(!secret.is_empty());
            assert!(!item.is_secret() || file.mode & 0o077 == 0, "{} is {:o}", file.path, file.mode);
        }
    }
    for (path, (bytes, _)) in files_in(dir.path()) {
        let secret = String::from_utf8(bytes).expect("text");
        let secret = secret.contains("PRIVATE KEY") || secret.contains("client-key-data") || secret.contains("secretbox");
        let mode = fs::metadata(&path).expect("there").mode() & 0o777;
        assert_eq!(mode, if secret { 0o600 } else { 0o644 }, "{}", path.display());
        assert_eq!(
            secret,
            !path.to_string_lossy().ends_with(".pem") || path.to_string_lossy().ends_with("-key.pem"),
            "{}",
            path.display()
        );
    }
    let serials: std::collections::BTreeSet<_> = keyring.list(&plan.certs, now()).into_iter().map(|row| row.serial).collect();
    assert_eq!(serials.len(), 3 + plan.certs.len(), "every serial is its own");
    let printed = format!("{keyring:?}");
    assert!(!printed.contains("BEGIN"), "a keyring prints no key");
}

#[test]
fn the_second_time_changes_nothing_and_a_new_worker_only_adds() {
    let dir = dir();
    let plan = planned(1, 1);
    let (first, made) = ensure(dir.path(), &plan).expect("made");
    let before = files_in(dir.path());
    let (second, done) = ensure(dir.path(), &plan).expect("kept");
    assert_eq!((done.made, done.kept), (Vec::new(), made.made.len()));
    assert_eq!(files_in(dir.path()), before, "byte for byte, and not even written");
    assert_eq!(first.items, second.items);
    assert_eq!(Keyring::load(dir.path(), &plan.certs, &plan.kubeconfigs).expect("loaded").items, second.items);

    let more = planned(1, 2);
    let (_, done) = ensure(dir.path(), &more).expect("added");
    assert!(!done.made.is_empty() && done.made.iter().all(|what| what.ends_with("@worker-1")), "{:?}", done.made);
    let after = files_in(dir.path());
    assert!(before.iter().all(|(path, content)| after.get(path) == Some(content)), "what was there is as it was");
    ensure(dir.path(), &plan).expect("a removed worker's files are no obstacle");
}

/// The fields of a certificate, read by another parser than the one that wrote them, and verified as clients verify.
#[test]
fn certificates_say_what_the_plan_says() {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let dir = dir();
    let plan = planned(1, 1);
    let at = now();
    let (keyring, _) = ensure(dir.path(), &plan).expect("made");
    for cert in &plan.certs {
        let pem = keyring.identity(&cert.id).expect("made").cert;
        let block = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM").1;
        let (_, parsed) = X509Certificate::from_der(&block.contents).expect("DER");
        let seconds = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
        assert_eq!(seconds, 365 * 86400 + 600, "{}", cert.id);
        assert!((parsed.validity().not_before.timestamp() - (at.as_second() - 600)).abs() < 60);
        assert_eq!(parsed.issuer().to_string(), format!("CN={}", cert.ca));
        assert_eq!(parsed.subject().iter_common_name().next().expect("a CN").as_str().expect("text"), cert.common_name);
        let constraints = parsed.basic_constraints().expect("readable").expect("there");
        assert!(!constraints.value.ca && constraints.critical);
        let usage = parsed.key_usage().expect("readable").expect("there");
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        let extended = parsed.extended_key_usage().expect("readable").expect("there").value;
        assert_eq!(extended.server_auth, cert.usages.contains(&Usage::Server));
        assert_eq!(extended.client_auth, cert.usages.contains(&Usage::Client));
        let names = parsed.subject_alternative_name().expect("readable").map_or(0, |san| san.value.general_names.len());
        assert_eq!(names, cert.dns_names.len() + cert.ips.len(), "{}", cert.id);
        let authority = parsed.iter_extensions().any(|extension| {
            matches!(extension.parsed_extension(), x509_parser::prelude::ParsedExtension::AuthorityKeyIdentifier(id) if id.key_identifier.is_some())
        });
        assert!(authority, "{} names the key that signed it", cert.id);
        assert!(parsed.raw_serial().len() == 16 && parsed.raw_serial()[0] & 0x80 == 0);
    }
}

/// A second opinion. Machines without openssl have one check less; the ones above do not depend on it.
#[test]
fn openssl_verifies_each_for_its_purposes_and_no_other() {
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI needs openssl");
        eprintln!("not run: there is no openssl");
        return;
    }
    let dir = dir();
    let plan = planned(1, 1);
    let (keyring, _) = ensure(dir.path(), &plan).expect("made");
    let openssl = |args: &[&str]| Command::new("openssl").args(args).output().expect("it ran").status.success();
    let path = |item| keyring.path(&item).expect("a file").display().to_string();
    for cert in &plan.certs {
        let (ca, leaf) = (path(PkiItem::CaCert { ca: cert.ca }), path(PkiItem::Cert { id: cert.id.clone() }));
        for (purpose, usage) in [("sslserver", Usage::Server), ("sslclient", Usage::Client)] {
            let verified = openssl(&["verify", "-x509_strict", "-CAfile", &ca, "-purpose", purpose, &leaf]);
            assert_eq!(verified, cert.usages.contains(&usage), "{} as {purpose}", cert.id);
        }
        let wrong = Ca::ALL.into_iter().find(|ca| *ca != cert.ca).expect("another");
        assert!(
            !openssl(&["verify", "-CAfile", &path(PkiItem::CaCert { ca: wrong }), &leaf]),
            "{} by another authority",
            cert.id
        );
        assert!(openssl(&["pkey", "-check", "-noout", "-in", &path(key_id(&cert.id))]), "{}", cert.id);
    }
}

#[test]
fn what_does_not_match_is_named_and_nothing_is_touched() {
    let dir = dir();
    let plan = planned(1, 1);
    let (keyring, _) = ensure(dir.path(), &plan).expect("made");
    let path = |id: &str| keyring.path(&PkiItem::Cert { id: id.to_owned() }).expect("a file");
    // A cluster whose addresses changed: server certificates no longer fit, all of them are named at once.
    let mut moved = planned(1, 1);
    for cert in &mut moved.certs {
        cert.ips.iter_mut().filter(|ip| **ip != Ipv4Addr::LOCALHOST).for_each(|ip| *ip = Ipv4Addr::new(10, 1, 2, 3));
    }
    fs::remove_file(path("kube-proxy@worker-0")).expect("removed");
    let before = files_in(dir.path());
    let error = ensure(dir.path(), &moved).expect_err("does not match");
    let PkiError::Mismatch(wrong) = &error else { panic!("{error}") };
    let names: Vec<_> = wrong.iter().map(|wrong| wrong.finding.cert.as_str()).collect();
    assert_eq!(
        names,
        ["etcd-server@controller-0", "etcd-peer@controller-0", "kube-apiserver@controller-0", "kubelet-server@worker-0"]
    );
    let said = error.to_string();
    assert!(said.contains(&path("etcd-peer@controller-0").display().to_string()) && said.contains("missing 10.1.2.3"), "{said}");
    assert_eq!(files_in(dir.path()), before, "and the missing one was not made either");
    assert!(error.hint().expect("a hint").contains("move"));

    // Certificates swapped between two files.
    ensure(dir.path(), &plan).expect("completed");
    let (a, b) = (path("etcd-client@controller-0"), path("etcd-server@controller-0"));
    let (text_a, text_b) = (fs::read(&a).expect("read"), fs::read(&b).expect("read"));
    files::write_atomic(&a, &text_b, PUBLIC).expect("written");
    let PkiError::Mismatch(wrong) = ensure(dir.path(), &plan).expect_err("swapped") else { panic!() };
    assert!(wrong.iter().all(|wrong| wrong.path == a) && wrong.iter().any(|wrong| wrong.finding.problem == Problem::KeyMismatch));
    files::write_atomic(&a, &text_a, PUBLIC).expect("written");

    // Another cluster's authority in the place of ours.
    let other = self::dir();
    ensure(other.path(), &plan).expect("made");
    for file in ["ca/etcd-ca.pem", "ca/etcd-ca-key.pem"] {
        fs::copy(other.path().join(file), dir.path().join(file)).expect("copied");
    }
    let PkiError::Mismatch(wrong) = ensure(dir.path(), &plan).expect_err("another authority") else { panic!() };
    let of_etcd = plan.certs.iter().filter(|cert| cert.ca == Ca::Etcd).count();
    assert!(
        wrong.len() == of_etcd && wrong.iter().all(|wrong| matches!(wrong.finding.problem, Problem::Chain { ca: Ca::Etcd, .. }))
    );
}

#[test]
fn expired_is_an_error_nearly_expired_is_not() {
    let dir = dir();
    let plan = planned(1, 0);
    ensure(dir.path(), &plan).expect("made");
    let at = |days: i64| now().checked_add(SignedDuration::from_hours(24 * days)).expect("a time");
    let again = |at| Keyring::ensure(dir.path(), &plan.certs, &plan.kubeconfigs, at, Lifetimes::default());
    assert_eq!(again(at(360)).expect("a warning only").1.made, [""; 0]);
    let error = again(at(366)).expect_err("expired");
    assert!(error.to_string().contains("expired at"), "{error}");
    assert!(again(at(-1)).expect_err("clock set back").to_string().contains("not valid before"));
}

#[test]
fn what_was_lost_is_not_quietly_made_anew() {
    let plan = planned(1, 0);
    for (lost, needed_by) in [
        (vec!["ca/etcd-ca-key.pem"], "ca/etcd-ca.pem"),
        (vec!["ca/etcd-ca.pem", "ca/etcd-ca-key.pem"], "etcd-server@controller-0.pem"),
        (vec!["admin-key.pem"], "admin.pem"),
    ] {
        let dir = dir();
        ensure(dir.path(), &plan).expect("made");
        lost.iter().for_each(|file| fs::remove_file(dir.path().join(file)).expect("removed"));
        let before = files_in(dir.path());
        let error = ensure(dir.path(), &plan).expect_err("lost");
        assert!(matches!(&error, PkiError::Lost { needed_by: by, .. } if *by == dir.path().join(needed_by)), "{error}");
        assert!(error.hint().is_some());
        assert_eq!(files_in(dir.path()), before);
    }
    // An authority's certificate alone can be made again for its key: what it signed stays valid.
    let dir = dir();
    ensure(dir.path(), &plan).expect("made");
    fs::remove_file(dir.path().join("ca/etcd-ca.pem")).expect("removed");
    assert_eq!(ensure(dir.path(), &plan).expect("made").1.made, ["etcd-ca certificate"]);
    assert_eq!(ensure(dir.path(), &plan).expect("all of it valid").1.made, [""; 0]);
}

#[test]
fn damaged_and_loose_files_are_named() {
    let plan = planned(1, 0);
    for (file, content, says) in [
        ("admin-key.pem", "garbage", "it is not of the private key beside it"),
        ("admin.pem", "garbage", "not a certificate"),
        ("service-account-key.pem", "garbage", "not a PKCS#8 PEM"),
        ("encryption-config.yaml", "kind: EncryptionConfiguration\n", "no secretbox key"),
        ("encryption-config.yaml", "a: [", "not YAML"),
        ("ca/front-proxy-ca-key.pem", "garbage", "it is not of the private key beside it"),
        ("admin.kubeconfig", "- a list", "top level is not a map"),
    ] {
        let dir = dir();
        ensure(dir.path(), &plan).expect("made");
        files::write_atomic(&dir.path().join(file), content.as_bytes(), SECRET).expect("written");
        let error = ensure(dir.path(), &plan).expect_err(file).to_string();
        assert!(
            error.contains(says) && error.contains(file.trim_end_matches(".pem").trim_end_matches("-key")),
            "{file}: {error}"
        );
        assert!(!error.contains("garbage"), "a secret's file is never quoted");
    }
    let dir = dir();
    ensure(dir.path(), &plan).expect("made");
    for (file, bits) in
        [("admin-key.pem", 0o640), ("ca/etcd-ca-key.pem", 0o604), ("encryption-config.yaml", 0o644), ("admin.pem", 0o666)]
    {
        let path = dir.path().join(file);
        let good = fs::metadata(&path).expect("there").mode();
        fs::set_permissions(&path, fs::Permissions::from_mode(bits)).expect("chmod");
        let hint = ensure(dir.path(), &plan).expect_err(file).hint().expect("a hint");
        assert!(hint.contains("chmod") && hint.contains(file), "{hint}");
        fs::set_permissions(&path, fs::Permissions::from_mode(good)).expect("chmod");
    }
}

#[test]
fn plans_that_cannot_be_made_are_refused_before_anything_is() {
    let good = planned(1, 0);
    for (change, says) in [
        ((|cert| cert.id = "../escape".to_owned()) as fn(&mut CertPlan), "an id is"),
        (|cert| cert.id = "admin-key".to_owned(), "file of that name"),
        (|cert| cert.id = "service-account".to_owned(), "file of that name"),
    ] {
        let dir = dir();
        let mut certs = good.certs.clone();
        change(&mut certs[0]);
        let error = Keyring::ensure(dir.path(), &certs, &[], now(), Lifetimes::default()).expect_err(says);
        assert!(matches!(&error, PkiError::Plan { .. }) && error.to_string().contains(says), "{error}");
        assert!(files_in(dir.path()).is_empty());
    }
    let dir = dir();
    let mut certs = good.certs.clone();
    certs[0].organizations = vec!["a".to_owned(), "b".to_owned()];
    assert!(matches!(Keyring::ensure(dir.path(), &certs, &[], now(), Lifetimes::default()), Err(PkiError::Plan { .. })));
}

#[test]
fn service_account_and_encryption_are_what_the_api_server_reads() {
    let dir = dir();
    let (keyring, _) = ensure(dir.path(), &planned(1, 0)).expect("made");
    let text = |item| keyring.item(&item).expect("made").expose().to_owned();
    let (private, public) = (text(PkiItem::ServiceAccountKey), text(PkiItem::ServiceAccountPublicKey));
    assert!(private.starts_with("-----BEGIN PRIVATE KEY-----") && public.starts_with("-----BEGIN PUBLIC KEY-----"), "{public}");
    assert_eq!(make::public_key(&Secret::new(private)).expect("a key"), public);
    let config = text(PkiItem::EncryptionConfig);
    let secret =
        config.lines().find_map(|line| line.trim().strip_prefix("secret: ")).expect("a secret").trim_matches(['"', '\'']);
    assert_eq!(STANDARD.decode(secret).expect("base64").len(), 32);
    let expected = "\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources:
  - secrets
  providers:
  - secretbox:
      keys:
      - name: key1
        secret: (random)
  - identity: {}
";
    let shown = config.lines().map(|line| if line.contains("secret: ") { "        secret: (random)" } else { line });
    assert_eq!(shown.collect::<Vec<_>>().join("\n") + "\n", expected);
    let other = self::dir();
    assert_ne!(
        ensure(other.path(), &planned(1, 0)).expect("made").0.item(&PkiItem::EncryptionConfig),
        keyring.item(&PkiItem::EncryptionConfig)
    );
}

#[test]
fn the_hosts_kubeconfig_keeps_what_its_user_chose_and_follows_the_certificate() {
    let dir = dir();
    let plan = planned(1, 0);
    let (mut keyring, _) = ensure(dir.path(), &plan).expect("made");
    let path = keyring.path(&PkiItem::Kubeconfig { id: "admin".to_owned() }).expect("a file");
    assert_eq!(
        keyring.path(&PkiItem::Kubeconfig { id: "node-admin@controller-0".to_owned() }),
        None,
        "nodes' are never files here"
    );
    let text = fs::read_to_string(&path).expect("read");
    assert!(text.contains("server: https://192.168.77.10:6443") && text.contains("current-context: ktcw"));
    assert_eq!(text, keyring.item(&PkiItem::Kubeconfig { id: "admin".to_owned() }).expect("made").expose());
    let chosen = text.replace("    cluster: ktcw\n", "    cluster: ktcw\n    namespace: web\n");
    files::write_atomic(&path, chosen.as_bytes(), SECRET).expect("written");
    assert_eq!(ensure(dir.path(), &plan).expect("kept").1.made, [""; 0]);
    assert_eq!(fs::read_to_string(&path).expect("read"), chosen);

    let admin: Vec<_> = plan.certs.iter().filter(|cert| cert.id == "admin").cloned().collect();
    let (old, key) = (keyring.identity("admin").expect("made").cert, keyring.identity("admin").expect("made").key);
    keyring.renew(&admin, now(), Duration::from_secs(86400 * 40)).expect("renewed");
    let renewed = keyring.identity("admin").expect("made");
    assert!(renewed.cert != old && renewed.key == key, "a new certificate for the same key");
    let (again, done) = ensure(dir.path(), &plan).expect("fine");
    assert_eq!(done.made, ["kubeconfig admin"]);
    let text = fs::read_to_string(&path).expect("read");
    assert!(text.contains("namespace: web") && text.contains(&STANDARD.encode(&renewed.cert)));
    assert_eq!(again.identity("admin"), Some(renewed));
}

#[test]
fn an_issued_certificate_is_valid_for_its_minutes_and_kept_nowhere() {
    let dir = dir();
    let plan = planned(1, 0);
    let (keyring, _) = ensure(dir.path(), &plan).expect("made");
    let before = files_in(dir.path());
    let server = plan.certs.iter().find(|cert| cert.id == "kube-apiserver@controller-0").expect("planned");
    let issued = keyring.issue(server, now(), Duration::from_secs(180)).expect("issued");
    let findings = check::judge(&issued.cert, keyring.ca_pem(Ca::Kubernetes).expect("made"), server, now());
    assert!(matches!(&findings[..], [Finding { problem: Problem::ExpiresSoon { days_left: 0, .. }, .. }]), "{findings:?}");
    assert!(
        keyring.judge(server, &issued.cert, now()).iter().any(|finding| finding.problem == Problem::KeyMismatch),
        "it has a key of its own"
    );
    let later = now().checked_add(SignedDuration::from_secs(200)).expect("a time");
    assert!(keyring.judge(server, &issued.cert, later).iter().any(|finding| matches!(finding.problem, Problem::Expired { .. })));
    assert_eq!(files_in(dir.path()), before);
}

#[test]
fn loading_before_anything_is_made_finds_everything_missing() {
    let dir = dir();
    let plan = planned(1, 0);
    let keyring = Keyring::load(dir.path(), &plan.certs, &plan.kubeconfigs).expect("an empty one");
    let findings = keyring.check(&plan.certs, now());
    assert_eq!(findings.len(), 3 + 2 * plan.certs.len());
    assert!(findings.iter().all(|finding| finding.problem == Problem::Missing));
    assert!(keyring.list(&plan.certs, now()).is_empty() && keyring.identity("admin").is_none());
    assert_eq!(findings[0].to_string(), "etcd-ca: not there");
    let node = plan.certs.iter().find(|cert| cert.node == Some(NodeName::controller(0))).expect("planned");
    assert!(matches!(&keyring.judge(node, "", now())[..], [Finding { problem: Problem::Unreadable { .. }, .. }]));
}

/// Killed before and after every file, also between a key and its certificate: the next run completes what is there,
/// keeps every key and certificate that was whole, and all of it is valid.
#[test]
fn killed_at_every_point_the_next_run_completes() {
    let child = "pki::keyring::tests::child_ensures";
    let (calm, count) = (dir(), dir());
    let counted = count.path().join("count");
    assert!(!crash::aborts(child, &[("KTCW_TEST_DIR", &calm.path()), ("KTCW_FAIL_COUNT", &counted)]));
    let names = fs::read_to_string(&counted).expect("counted");
    let names: Vec<_> = names.lines().collect();
    let at = |name: &str| names.iter().position(|found| *found == format!("file:{name}")).unwrap_or_else(|| panic!("{name}"));
    assert!(at("admin-key.pem/renamed") < at("admin.pem/written"), "the key first");
    let plan = small();
    // Before and after each of: three authorities' and two leaves' keys and certificates, and the three others.
    assert_eq!(names.len(), 2 * (2 * 5 + 3), "{names:?}");
    for number in 1..=names.len() {
        let dir = dir();
        let point = format!("file:{number}");
        assert!(crash::aborts(child, &[("KTCW_TEST_DIR", &dir.path()), ("KTCW_FAIL_AT", &point)]), "{point}");
        files::sweep(dir.path()).and_then(|_| files::sweep(&dir.path().join("ca"))).expect("swept");
        let before = files_in(dir.path());
        let (keyring, _) = ensure(dir.path(), &plan).unwrap_or_else(|error| panic!("{point}: {error}"));
        let after = files_in(dir.path());
        assert!(before.iter().all(|(path, content)| after.get(path) == Some(content)), "{point}: something whole was replaced");
        assert_eq!(keyring.check(&plan.certs, now()), [], "{point}");
        assert_eq!(after.len(), names.len() / 2, "{point}: nothing half-written is left");
    }
}

#[test]
#[ignore = "only as a child of the test above"]
fn child_ensures() {
    let dir = PathBuf::from(std::env::var_os("KTCW_TEST_DIR").expect("set by the parent"));
    ensure(&dir, &small()).expect("made");
}

/// One leaf of a node and one of the host: every kind of file, few of each.
fn small() -> Plan {
    let mut plan = planned(1, 0);
    plan.certs.retain(|cert| cert.id == "admin" || cert.id == "etcd-server@controller-0");
    plan.kubeconfigs.retain(|kubeconfig| kubeconfig.cert == "admin");
    plan
}
