//! Every private key of a cluster that was brought up, looked for in every encoding in all that is written, printed and handed on:
//! nowhere but in its own file and in the seed of the node it is for.

use super::killed::{Computer, EVENTS, mark};
use crate::drill::etcd::Tls;
use crate::host::xml;
use crate::pki::Keyring;
use crate::plan::{DiskKind, Plan};
use crate::secret::Secret;
use crate::secret::shapes::{cores, shapes};
use crate::spec::{NodeName, Role};
use crate::store::crash::{entries, place};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// As text, and once more without the white space that formats put into a long line, be it written as `\n`.
struct Said(String, String);

impl Said {
    fn new(bytes: &[u8]) -> Said {
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        // Secret files of a seed are packed: `gz+b64` is what cloud-init calls it.
        let packed: Vec<Vec<u8>> = text.lines().filter_map(|line| STANDARD.decode(line.trim()).ok()).collect();
        for packed in packed {
            let mut inner = String::new();
            if flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut inner).is_ok() {
                text.push_str(&inner);
            }
        }
        // And a kubeconfig has PEM within.
        let within: Vec<String> = text
            .split_whitespace()
            .filter(|word| word.len() > 200)
            .filter_map(|word| String::from_utf8(STANDARD.decode(word).ok()?).ok())
            .filter(|inner| inner.contains("-----BEGIN "))
            .collect();
        text.extend(within);
        let dense = text.replace("\\n", "").chars().filter(|c| !c.is_whitespace() && *c != '\\').collect();
        Said(text, dense)
    }

    fn tells(&self, secret: &Secret) -> bool {
        let all = cores(secret).into_iter().flat_map(|core| shapes(&core)).filter_map(|shape| String::from_utf8(shape).ok());
        all.into_iter().any(|shape| self.0.contains(&shape) || self.1.contains(&shape))
    }
}

fn below(dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

/// Whose a private key is, by the name of its file: nobody's but this computer's, one node's, or every controller's.
fn nodes_of(file: &str, plan: &Plan) -> BTreeSet<NodeName> {
    let node = |text: &str| plan.nodes.iter().map(|node| &node.name).find(|name| name.to_string() == text).cloned();
    let stem = file.rsplit('/').next().expect("a name");
    let stem = stem.trim_end_matches("-key.pem").trim_end_matches(".kubeconfig");
    if file.contains("/ca/") || ["admin", "etcd-admin", "id_ed25519"].contains(&stem) {
        return BTreeSet::new();
    }
    if let Some(own) = stem.split_once('@').map_or_else(|| stem.strip_prefix("host-"), |(_, name)| Some(name)).and_then(node) {
        return BTreeSet::from([own]);
    }
    plan.nodes.iter().filter(|node| node.role == Role::Controller).map(|node| node.name.clone()).collect()
}

#[test]
fn a_key_is_in_its_file_and_in_the_seed_of_its_node_and_nowhere_else() {
    let place = place();
    let computer = Computer::fresh(&place.path().join("computer"));
    std::fs::write(computer.0.join(EVENTS), "").expect("made");
    computer.comes_up("undisturbed");
    let dir = computer.dir();
    let plan = dir.load_plan().expect("readable").expect("a plan");
    let names: Vec<NodeName> = plan.nodes.iter().map(|node| node.name.clone()).collect();

    // Whatever only its owner may read below pki and ssh is a secret, and there is nothing looser with a key in it.
    let mut secrets = BTreeMap::new();
    for path in below(dir.path()) {
        let (mode, bytes) = (path.metadata().expect("there").permissions().mode() & 0o777, std::fs::read(&path).expect("read"));
        let of_keys = ["pki", "ssh"].iter().any(|part| path.starts_with(dir.path().join(part)));
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(mode == 0o600 || (of_keys && mode == 0o644 && !text.contains("PRIVATE")), "{}: {mode:o}", path.display());
        if of_keys && mode == 0o600 {
            secrets.insert(path.display().to_string(), Secret::from(text));
        }
    }
    assert!(secrets.len() > 20, "{:?}", secrets.keys());

    // What is written and printed.
    let keyring = Keyring::load(&dir.pki(), &plan.certs, &plan.kubeconfigs).expect("keys");
    let ssh = dir.ssh(&names).expect("keys");
    let admin = keyring.identity("etcd-admin").expect("there");
    let tls = Tls { ca: "ca".to_owned(), cert: admin.cert.clone(), key: admin.key.clone() };
    let layout = xml::Layout { pool_dir: "/pool".into(), image_dir: "/images".into(), direct_io: true, firmware: None };
    let mut said: BTreeMap<String, Said> = BTreeMap::new();
    for path in below(dir.path()).into_iter().filter(|path| !secrets.contains_key(&path.display().to_string())) {
        said.insert(path.display().to_string(), Said::new(&std::fs::read(&path).expect("read")));
    }
    for (what, text) in [
        ("events", std::fs::read_to_string(computer.0.join(EVENTS)).expect("read")),
        ("the plan, printed", format!("{plan:?}\n{plan:#?}\n{}", serde_json::to_string(&plan).expect("JSON"))),
        ("the key store, printed", format!("{keyring:?} {keyring:#?} {:?}", keyring.identity("admin"))),
        ("SSH keys, printed", format!("{ssh:?} {ssh:#?}")),
        ("a drill's identity, printed", format!("{tls:?}")),
        ("history", format!("{:?}", dir.history().expect("readable"))),
    ] {
        assert!(text.len() > 40, "{what}: {text}");
        said.insert(what.to_owned(), Said::new(text.as_bytes()));
    }
    for node in &plan.nodes {
        let text = xml::domain_xml(&node.domain, &plan.storage, &layout, &node.name, &mark(&dir)).expect("renders");
        said.insert(format!("definition of {}", node.name), Said::new(text.as_bytes()));
    }
    assert!(said.len() > 15 && said.keys().any(|file| file.ends_with("journal.jsonl")), "{:?}", said.keys());
    for (what, text) in &said {
        let told: Vec<&String> = secrets.iter().filter(|(_, secret)| text.tells(secret)).map(|(file, _)| file).collect();
        assert!(told.is_empty(), "{what} tells {told:?}");
    }

    // What is handed on: each key to its nodes and to no other.
    let lab = computer.lab();
    let mut handed = 0;
    for node in &plan.nodes {
        let seed = node.domain.disks.iter().find(|disk| disk.kind == DiskKind::Seed).expect("a seed");
        let seed = Said::new(&lab.host.content(&plan.storage.pool, &seed.volume).expect("made"));
        for (file, secret) in &secrets {
            let (there, wanted) = (seed.tells(secret), nodes_of(file, &plan).contains(&node.name));
            // A kubeconfig for this computer holds a key that is looked for under its own name.
            if file.ends_with(".kubeconfig") {
                assert!(wanted || !there, "{file} is in the seed of {}", node.name);
                continue;
            }
            assert_eq!(there, wanted, "{file} in the seed of {}", node.name);
            handed += usize::from(there);
        }
    }
    println!("{} secrets, looked for in {} texts; {handed} handed on in {} seeds", secrets.len(), said.len(), plan.nodes.len());
}
