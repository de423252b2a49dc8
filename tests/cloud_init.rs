//! The seeds of real plans, read as a guest reads them: with PyYAML, against cloud-init's own schemas. Needs a python3 with
//! yaml (Debian: python3-yaml). Without it the tests that need it say so and pass, except under CI.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may fail loudly, and says what it leaves out"
)]

use base64::Engine as _;
use flate2::read::GzDecoder;
use jsonschema::Validator;
use ktcw_vm::plan::user_data::{Seed, SeedError, SshKeys, preview, seed};
use ktcw_vm::plan::{Accel, AddressPlan, Content, CpuModel, FilePlan, NodePlan, PkiItem, Plan};
use ktcw_vm::secret::Secret;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

#[path = "fixtures/sample_plan.rs"]
mod samples;

const USER_DATA: &str = include_str!("fixtures/schemas/schema-cloud-config-v1.json");
const NETWORK_CONFIG: &str = include_str!("fixtures/schemas/schema-network-config-v2.json");

fn sample(etcd: u64, workers: u64) -> Plan {
    samples::plan("ktcw", etcd, workers, Accel::Kvm { cpu: CpuModel::HostPassthrough })
}

fn ssh() -> SshKeys {
    SshKeys {
        authorized: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIClient ktcw".to_owned(),
        host_private: Secret::new(
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5v\nsecret+host/key==\n-----END OPENSSH PRIVATE KEY-----\n",
        ),
        host_public: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHost controller-0".to_owned(),
    }
}

fn pem(item: &PkiItem) -> String {
    format!("-----BEGIN {item}-----\n{}\n-----END-----\n", "c2VjcmV0\n".repeat(40))
}

fn seed_of(plan: &Plan, node: &NodePlan) -> Seed {
    let routes = AddressPlan::new(plan.resolved.subnet, &plan.spec.network).pod_routes();
    seed(node, &plan.network, &routes, &|item| Some(pem(item).into()), &ssh()).expect("made")
}

/// `None` where there is no PyYAML and nobody insists.
fn python() -> Option<&'static str> {
    static FOUND: LazyLock<Option<&str>> = LazyLock::new(|| {
        let able = |python: &&str| {
            Command::new(python).args(["-c", "import yaml"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        ["/usr/bin/python3", "python3"].into_iter().find(able)
    });
    if FOUND.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI needs PyYAML (package python3-yaml)");
        eprintln!("not run: there is no python3 with yaml (package python3-yaml)");
    }
    *FOUND
}

/// As the guest's loader reads them.
fn loaded(python: &str, documents: &[&str]) -> Vec<Value> {
    let script = "import json, sys, yaml; json.dump([yaml.safe_load(d) for d in json.load(sys.stdin)], sys.stdout)";
    let mut child =
        Command::new(python).args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python runs");
    let input = serde_json::to_vec(documents).expect("json");
    child.stdin.take().expect("stdin").write_all(&input).expect("written");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "PyYAML refuses one of {documents:#?}");
    serde_json::from_slice(&output.stdout).expect("json")
}

fn schema(text: &str) -> Validator {
    jsonschema::validator_for(&serde_json::from_str(text).expect("json")).expect("a schema")
}

fn problems(validator: &Validator, document: &Value) -> Vec<String> {
    validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn content(file: &Value) -> String {
    let written = file["content"].as_str().expect("text");
    let raw = || base64::engine::general_purpose::STANDARD.decode(written).expect("base64");
    let bytes = match file["encoding"].as_str() {
        None => return written.to_owned(),
        Some("b64") => raw(),
        Some("gz+b64") => {
            let mut bytes = Vec::new();
            GzDecoder::new(&raw()[..]).read_to_end(&mut bytes).expect("gzip");
            bytes
        }
        Some(other) => panic!("{other}"),
    };
    String::from_utf8(bytes).expect("utf-8")
}

#[test]
fn every_node_of_every_sample_is_valid_and_says_what_the_plan_says() {
    let Some(python) = python() else { return };
    let (user, network) = (schema(USER_DATA), schema(NETWORK_CONFIG));
    for plan in [sample(1, 0), sample(3, 2), sample(5, 3)] {
        for node in &plan.nodes {
            let seed = seed_of(&plan, node);
            assert!(seed.user_data.expose().starts_with("#cloud-config\n"));
            let read = loaded(python, &[seed.user_data.expose(), &seed.network_config, &seed.meta_data]);
            assert_eq!(problems(&user, &read[0]), [""; 0], "{}", node.name);
            assert_eq!(problems(&network, &read[1]), [""; 0], "{}", node.name);

            let files = read[0]["write_files"].as_array().expect("files");
            assert_eq!(files.len(), node.files.len());
            for (file, planned) in files.iter().zip(&node.files) {
                assert_eq!(file["path"], planned.path.as_str());
                assert_eq!(file["permissions"], format!("{:04o}", planned.mode));
                assert_eq!(file["owner"], "root:root");
                match &planned.content {
                    Content::Text { text } => assert_eq!(&content(file), text, "{}", planned.path),
                    Content::Pki { item } => {
                        assert_eq!((content(file), &file["encoding"]), (pem(item), &json!("gz+b64")));
                        assert!(!item.is_secret() || planned.mode == 0o600, "{}", planned.path);
                    }
                }
            }
            let keys = ssh();
            assert_eq!(read[0]["ssh_keys"]["ed25519_private"], keys.host_private.expose());
            assert_eq!(read[0]["ssh_keys"]["ed25519_public"], keys.host_public.as_str());
            assert_eq!(read[0]["users"], json!([{ "name": "root", "ssh_authorized_keys": [keys.authorized] }]));
            assert_eq!(read[0]["hostname"], node.name.to_string());
            let eth0 = &read[1]["ethernets"]["eth0"];
            assert_eq!(eth0["match"]["macaddress"], node.mac.as_str());
            assert_eq!(eth0["addresses"], json!([format!("{}/24", node.ip)]));
            let routes = eth0["routes"].as_array().expect("routes");
            assert_eq!(routes[0], json!({ "to": "0.0.0.0/0", "via": plan.network.gateway }));
            // A next hop that is the node itself is refused by the kernel.
            assert!(routes.iter().all(|route| route["via"] != node.ip.to_string()));
            assert_eq!(read[2], json!({ "instance-id": seed.instance_id, "local-hostname": node.name.to_string() }));
        }
    }
}

#[test]
fn mistakes_in_a_document_do_not_pass_the_schema() {
    let Some(python) = python() else { return };
    let plan = sample(3, 2);
    let seed = seed_of(&plan, &plan.nodes[0]);
    let read = loaded(python, &[seed.user_data.expose(), &seed.network_config]);
    let (user, network) = (schema(USER_DATA), schema(NETWORK_CONFIG));
    type Change = fn(&mut Value);
    let wrong: [(&str, Change); 9] = [
        ("unknown module", |v| v["write_filez"] = json!([])),
        ("runcmds", |v| v["runcmds"] = json!(["true"])),
        ("permission", |v| v["write_files"][0]["permission"] = json!("0644")),
        ("mode as a number", |v| v["write_files"][0]["permissions"] = json!(420)),
        ("no path", |v| v["write_files"][0] = json!({ "content": "x" })),
        ("no such encoding", |v| v["write_files"][0]["encoding"] = json!("gzip64")),
        ("no such key type", |v| v["ssh_keys"] = json!({ "ed25518_private": "x" })),
        ("disable_root as text", |v| v["disable_root"] = json!("no")),
        ("users with a typo", |v| v["users"][0]["ssh_authorised_keys"] = json!(["x"])),
    ];
    for (what, change) in wrong {
        let mut document = read[0].clone();
        change(&mut document);
        assert_ne!(problems(&user, &document), [""; 0], "{what}");
    }
    let wrong: [(&str, Change); 3] = [
        ("a MAC read as base 60", |v| v["ethernets"]["eth0"]["match"]["macaddress"] = json!(41_135_085_296_u64)),
        ("dhcp4 as text", |v| v["ethernets"]["eth0"]["dhcp4"] = json!("maybe")),
        ("addresses as text", |v| v["ethernets"]["eth0"]["addresses"] = json!("192.168.77.11/24")),
    ];
    for (what, change) in wrong {
        let mut document = read[1].clone();
        change(&mut document);
        assert_ne!(problems(&network, &document), [""; 0], "{what}");
    }
}

#[test]
fn the_same_plan_gives_the_same_seed_and_any_change_another_instance() {
    let plan = sample(3, 2);
    let node = &plan.nodes[0];
    let first = seed_of(&plan, node);
    assert_eq!(first, seed_of(&plan, node));
    assert_eq!(first.instance_id.len(), 32);
    assert_eq!(seed_of(&sample(3, 3), node), first, "another worker changes no other node");
    let mut ids = vec![first.instance_id];
    let mut changed = node.clone();
    changed.files[0].mode = 0o600;
    ids.push(seed_of(&plan, &changed).instance_id);
    changed = node.clone();
    changed.mac = "52:54:00:12:34:57".to_owned();
    ids.push(seed_of(&plan, &changed).instance_id);
    let other = seed(node, &plan.network, &[], &|item| Some((pem(item) + "renewed").into()), &ssh()).expect("made");
    ids.push(other.instance_id);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

#[test]
fn a_key_that_is_not_there_is_named_and_no_key_is_printed() {
    let plan = sample(1, 0);
    let node = &plan.nodes[0];
    let none = seed(node, &plan.network, &[], &|item| (!item.is_secret()).then(|| pem(item).into()), &ssh());
    let Err(SeedError::Missing { path, .. }) = &none else { panic!("{none:?}") };
    let missing = node.files.iter().find(|file| matches!(&file.content, Content::Pki { item } if item.is_secret()));
    assert_eq!(Some(path), missing.map(|file| &file.path));
    let printed = format!("{:?} {:?}", seed_of(&plan, node), ssh());
    assert!(printed.contains("<redacted>") && !printed.contains("host/key") && !printed.contains("write_files"), "{printed}");
}

#[test]
fn the_preview_needs_no_key_and_every_file_can_be_read_in_it() {
    let Some(python) = python() else { return };
    let (plan, user) = (sample(3, 1), schema(USER_DATA));
    for node in &plan.nodes {
        let shown = preview(node, &plan.network, &[]).expect("made");
        let read = loaded(python, &[shown.user_data.expose()]);
        assert_eq!(problems(&user, &read[0]), [""; 0]);
        assert!(shown.user_data.expose().contains("    <private key "), "{}", shown.user_data.expose());
        for (file, planned) in read[0]["write_files"].as_array().expect("files").iter().zip(&node.files) {
            if let Content::Text { text } = &planned.content {
                let readable = text.bytes().all(|byte| byte == b'\n' || byte == b'\t' || (b' '..=b'~').contains(&byte));
                assert!(!readable || file["encoding"].is_null(), "{}", planned.path);
                assert_eq!(&content(file), text);
            }
        }
    }
}

/// Words that YAML 1.1 and 1.2 read differently, and blocks that are hard to write.
fn tricky() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "~",
        "null",
        "NULL",
        "1_000",
        "0o7",
        "0644",
        "1e3",
        ".inf",
        "12:30:45",
        "190:20:30",
        "1:2",
        "2026-11-22",
        "2026-11-22T01:02:03Z",
        "=",
        "<<",
        "-",
        "?",
        ":",
        "- a",
        "a: b",
        "#c",
        "a #c",
        "|",
        ">",
        "&a",
        "*a",
        "!t",
        "%d",
        "@",
        "`",
        "{}",
        "[]",
        "\"",
        "'",
        "---",
        "...",
        "\n",
        "\n\n",
        " \n",
        "\n ",
        "  a\nb",
        "\ta\nb",
        "a\n\n",
        "a\n \n",
        "a ",
        " a",
        "a\r\nb",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\u{0}",
        "ä",
        "日本",
        "🦀",
        "-----BEGIN X-----\nYQ==\n-----END X-----\n",
    ]);
    prop_oneof![
        words.prop_map(str::to_owned),
        "[ -~\n]{0,60}",
        "[ \t\n#:|>-]{0,12}",
        any::<String>(),
        "([ -~]{0,100}\n){0,6}",
        Just("long ".repeat(40)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the text: what was planned is what the guest's YAML reader gives to cloud-init.
    #[test]
    fn any_text_arrives_as_it_was(texts in prop::collection::vec((tricky(), tricky()), 1..40), mac in "52:54:00(:[0-5][0-9]){3}", key in tricky()) {
        let Some(python) = python() else { return Ok(()) };
        let plan = sample(1, 0);
        let mut node = plan.nodes[0].clone();
        node.mac = mac;
        node.files = texts
            .into_iter()
            .map(|(path, text)| FilePlan { path, mode: 0o600, content: Content::Text { text } })
            .collect();
        let keys = SshKeys { authorized: key.clone(), host_private: Secret::new(key.clone()), host_public: key.clone() };
        let seed = seed(&node, &plan.network, &[], &|_| None, &keys).expect("made");
        let read = loaded(python, &[seed.user_data.expose(), &seed.network_config]);
        prop_assert_eq!(&read[1]["ethernets"]["eth0"]["match"]["macaddress"], &json!(node.mac));
        prop_assert_eq!(&read[0]["users"][0]["ssh_authorized_keys"][0], &json!(key));
        prop_assert_eq!(&read[0]["ssh_keys"], &json!({ "ed25519_private": key, "ed25519_public": key }));
        for (file, planned) in read[0]["write_files"].as_array().expect("files").iter().zip(&node.files) {
            let Content::Text { text } = &planned.content else { continue };
            prop_assert_eq!(&file["path"], &json!(planned.path));
            prop_assert_eq!(&content(file), text);
        }
    }
}
