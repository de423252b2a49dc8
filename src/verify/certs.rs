//! Judges the certificates on the nodes: each planned one is there and good, and every node trusts the same authorities.
//! `verify` calls `judge` with the public files that the probes read; what "good" means is the caller's judge, which knows PKI and date.
//! It finds certificates by the plan, in files and inside kubeconfigs, and never sees a key.

use super::machines::by_path;
use super::observe::Observed;
use super::report::{Check, Finding, Group, list};
use super::{hint, script};
use crate::plan::{Ca, CertPlan, Content, NodePlan, PkiItem, Plan};
use crate::said::one_line;
use std::collections::BTreeMap;

/// Something about a certificate that is not as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    /// It works today: shown as evidence, and no failure.
    pub warning: bool,
}

/// What this computer knows of certificates: the cluster's keys are here, and so is the date.
#[derive(Clone, Copy)]
pub struct Trust<'a> {
    /// Problems of a certificate as found (PEM) under the CA certificate the same node trusts (PEM); none when it is good.
    pub judge: &'a (dyn Fn(&CertPlan, &str, &str) -> Vec<Problem> + Send + Sync),
    /// A CA's own certificate (PEM), as it is kept here.
    pub ca: &'a (dyn Fn(Ca) -> Option<String> + Send + Sync),
}

/// The public files of one node, by path.
struct Found<'a> {
    files: BTreeMap<&'a str, String>,
    /// Certificate data of kubeconfigs, base64, by path: the client's and its CA's.
    kubeconfigs: BTreeMap<&'a str, String>,
}

pub fn judge(plan: &Plan, seen: &Observed, trust: Trust<'_>) -> Vec<Check> {
    let found: Vec<(&NodePlan, Result<Found, String>)> = plan.nodes.iter().map(|node| (node, read(plan, node, seen))).collect();
    let mut checks = Vec::new();
    for (node, found) in &found {
        let finding = match found {
            Ok(found) => of_node(plan, node, found, trust),
            Err(why) => Finding::unknown(why.clone()),
        };
        let look = hint(plan, "certs check");
        checks.push(finding.hint(look).file(Group::Certificates, "certs.node", Some(&node.name)));
    }
    checks.push(authorities(&found, trust).hint(hint(plan, "certs check")).file(Group::Certificates, "certs.ca", None));
    checks
}

fn read<'a>(plan: &Plan, node: &NodePlan, seen: &'a Observed) -> Result<Found<'a>, String> {
    let probe = seen.probe(&node.name)?;
    let files = by_path(&probe.get("certs")?.body);
    let has = plan.kubeconfigs.iter().any(|kubeconfig| kubeconfig.node.as_ref() == Some(&node.name) && kubeconfig.at.is_some());
    let kubeconfigs = if has { by_path(&probe.get("kubeconfigs")?.body) } else { BTreeMap::new() };
    if files.is_empty() {
        return Err("no certificate file was read".to_owned());
    }
    Ok(Found { files, kubeconfigs })
}

/// `key: <base64>` of a kubeconfig's lines, decoded.
fn embedded(lines: &str, key: &str) -> Result<String, String> {
    use base64::Engine as _;
    let value =
        lines.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':')).ok_or_else(|| format!("no {key}"))?;
    let value = value.trim().trim_matches(['"', '\'']);
    let bytes = base64::engine::general_purpose::STANDARD.decode(value).map_err(|error| format!("{key}: {error}"))?;
    String::from_utf8(bytes).map_err(|_| format!("{key} is not text"))
}

/// A certificate and the CA certificate beside it, wherever the plan says they are. `None`: not on a node at all.
fn locate(plan: &Plan, node: &NodePlan, cert: &CertPlan, found: &Found) -> Option<Result<(String, String), String>> {
    if let Some(at) = &cert.at {
        let path = format!("{at}.pem");
        let pem = found.files.get(path.as_str()).cloned().ok_or_else(|| format!("{path} could not be read"));
        let ca = script::ca_file(node, cert.ca).ok_or_else(|| format!("the plan gives {} no {}", node.name, cert.ca));
        let ca = ca.and_then(|path| found.files.get(path).cloned().ok_or_else(|| format!("{path} could not be read")));
        return Some(pem.and_then(|pem| Ok((pem, ca?))));
    }
    let kubeconfig = plan.kubeconfigs.iter().find(|kubeconfig| kubeconfig.cert == cert.id && kubeconfig.at.is_some())?;
    let path = kubeconfig.at.as_ref()?;
    let lines = found.kubeconfigs.get(path.as_str()).ok_or_else(|| format!("{path} could not be read"));
    Some(lines.and_then(|lines| {
        let both = (embedded(lines, "client-certificate-data"), embedded(lines, "certificate-authority-data"));
        match both {
            (Ok(pem), Ok(ca)) => Ok((pem, ca)),
            (Err(why), _) | (_, Err(why)) => Err(format!("{path}: {why}")),
        }
    }))
}

fn of_node(plan: &Plan, node: &NodePlan, found: &Found, trust: Trust<'_>) -> Finding {
    let mut wrong = Vec::new();
    let mut soon = Vec::new();
    let mut facts = Vec::new();
    for cert in plan.certs.iter().filter(|cert| cert.node.as_ref() == Some(&node.name)) {
        let said = |what: &str| format!("{}: {}", cert.id, one_line(what));
        match locate(plan, node, cert, found) {
            None => {}
            Some(Err(why)) => wrong.push(said(&why)),
            Some(Ok((pem, ca))) => {
                let (warnings, mut problems): (Vec<_>, Vec<_>) =
                    (trust.judge)(cert, &pem, &ca).into_iter().partition(|problem| problem.warning);
                let trusted = script::ca_file(node, cert.ca).and_then(|path| found.files.get(path));
                if trusted.is_some_and(|trusted| certificate(trusted) != certificate(&ca)) {
                    let what = format!("it comes with another {} than the node has", cert.ca);
                    problems.push(Problem { what, warning: false });
                }
                if problems.is_empty() {
                    facts.push(said("good"));
                }
                wrong.extend(problems.iter().map(|problem| said(&problem.what)));
                soon.extend(warnings.iter().map(|problem| said(&problem.what)));
            }
        }
    }
    match (wrong.as_slice(), soon.as_slice()) {
        ([], []) => Finding::pass(format!("{} certificates are there and good", facts.len())),
        ([], [first, ..]) => Finding::pass(format!("{} certificates are there and good; {first}", facts.len())),
        ([only], _) => Finding::fail(only.clone()),
        ([first, rest @ ..], _) => Finding::fail(format!("{first} (and {} more)", rest.len())),
    }
    .seen(wrong)
    .seen(soon)
    .seen(facts)
}

/// The base64 of a PEM, without what may differ between two prints of the same.
fn certificate(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).flat_map(str::split_whitespace).collect()
}

/// Every copy of a CA certificate on every node is the one kept here.
fn authorities(found: &[(&NodePlan, Result<Found, String>)], trust: Trust<'_>) -> Finding {
    let mut same: BTreeMap<Ca, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut absent = Vec::new();
    for (node, found) in found {
        let files = match found {
            Ok(found) => &found.files,
            Err(why) => {
                absent.push(format!("{}: {why}", node.name));
                continue;
            }
        };
        for file in &node.files {
            let Content::Pki { item: PkiItem::CaCert { ca } } = &file.content else { continue };
            match (files.get(file.path.as_str()), (trust.ca)(*ca)) {
                (None, _) => absent.push(format!("{}: {} could not be read", node.name, file.path)),
                (_, None) => absent.push(format!("{ca} is not among the keys of this computer")),
                (Some(there), Some(here)) if certificate(there) == certificate(&here) => *same.entry(*ca).or_default() += 1,
                _ => wrong.push(format!("{}: {} is another {ca} than the one kept here", node.name, file.path)),
            }
        }
    }
    match (wrong.as_slice(), absent.as_slice()) {
        ([], []) if same.is_empty() => Finding::unknown("no copy of any was looked at"),
        ([], []) => Finding::pass(format!("every node trusts the {} kept here", list(same.keys()))),
        ([first, ..], _) => Finding::fail(first.clone()),
        ([], [first, ..]) => Finding::unknown(format!("not all copies could be compared; {first}")),
    }
    .seen(wrong)
    .seen(absent)
}
