//! Judges leader election: the controller manager and the scheduler have one live holder each, and it is one of ours.
//! `verify` calls `judge` with the leases as each control plane's API server shows them, and `status` can use `leases`.
//! Live means: renewed within the lease's own duration, by the clock of the node that was asked.

use super::curl;
use super::hint;
use super::observe::Observed;
use super::report::{Check, Finding, Group, list};
use crate::plan::{ELECTIONS, Plan, lease_holder};
use crate::said::one_line;
use crate::spec::NodeName;
use jiff::Timestamp;
use serde::Deserialize;

/// A renewal may seem this much younger than now: a slow probe reads its clock that long before the lease, and clocks have a
/// check of their own.
const SKEW_S: f64 = 15.0;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseSpec {
    #[serde(default)]
    pub holder_identity: String,
    pub lease_duration_seconds: u32,
    pub renew_time: Timestamp,
    #[serde(default)]
    pub lease_transitions: u32,
}

#[derive(Deserialize)]
struct Lease {
    spec: LeaseSpec,
}

/// A lease as seen through one control plane.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseSeen {
    pub via: NodeName,
    pub spec: LeaseSpec,
    /// Seconds since it was renewed, by that node's clock.
    pub age_s: f64,
}

/// Every control plane's view of a lease, or why it has none.
pub fn leases<'a>(
    plan: &'a Plan,
    seen: &'a Observed,
    name: &'a str,
) -> impl Iterator<Item = (&'a NodeName, Result<LeaseSeen, String>)> {
    plan.control_planes().map(move |node| (&node.name, lease(seen, &node.name, name)))
}

fn lease(seen: &Observed, via: &NodeName, name: &str) -> Result<LeaseSeen, String> {
    let answer = seen.nodes.get(via).and_then(|node| node.api.as_ref()).ok_or("it was not asked")?;
    let answer = answer.as_ref().map_err(Clone::clone)?;
    let replies = curl::replies(&answer.get("api")?.body, &seen.token);
    let Lease { spec } = serde_json::from_str(curl::body(&replies, &format!("lease/{name}"))?)
        .map_err(|error| format!("the lease cannot be read: {error}"))?;
    let now: f64 = answer.ok("time")?.trim().parse().map_err(|_| "the node did not say its time".to_owned())?;
    #[expect(clippy::cast_precision_loss, reason = "microseconds since 1970 fit into an f64's 53 bits until 2255")]
    let renewed = spec.renew_time.as_microsecond() as f64 / 1e6;
    Ok(LeaseSeen { via: via.clone(), age_s: now - renewed, spec })
}

pub fn judge(plan: &Plan, seen: &Observed) -> Vec<Check> {
    let one = |name: &&'static str| one(plan, seen, name).file(Group::LeaderElection, format!("lease.{name}"), None);
    ELECTIONS.iter().map(one).collect()
}

fn one(plan: &Plan, seen: &Observed, name: &'static str) -> Finding {
    let mut facts = Vec::new();
    let mut newest: Option<LeaseSeen> = None;
    let mut whys = Vec::new();
    for (via, lease) in leases(plan, seen, name) {
        match lease {
            Ok(lease) => {
                let LeaseSpec { holder_identity, lease_transitions, .. } = &lease.spec;
                facts.push(format!(
                    "{via}: held by {:?}, renewed {:.1} s ago, transition {lease_transitions}",
                    one_line(holder_identity),
                    lease.age_s
                ));
                if newest.as_ref().is_none_or(|newest| newest.spec.renew_time < lease.spec.renew_time) {
                    newest = Some(lease);
                }
            }
            Err(why) => {
                facts.push(format!("{via}: {why}"));
                whys.push(why);
            }
        }
    }
    let look = hint(plan, &format!("logs {name}"));
    // All API servers answered and none knows the lease: that is an answer.
    let nobody = || match whys.iter().find(|why| why.starts_with("HTTP 404")) {
        Some(why) if whys.iter().all(|other| other.starts_with("HTTP 404")) => Finding::fail(format!("there is no lease: {why}")),
        _ => {
            Finding::unknown(format!("no API server showed the lease: {}", whys.first().map_or("none was asked", String::as_str)))
        }
    };
    let Some(LeaseSeen { spec, age_s, via }) = newest else { return nobody().seen(facts).hint(look) };
    let duration = spec.lease_duration_seconds;
    // `<hostname>_<uuid>`
    let host = lease_holder(&spec.holder_identity);
    let ours = plan.control_planes().any(|node| node.name.to_string() == host);
    let finding = if spec.holder_identity.is_empty() {
        Finding::fail("nobody holds it")
    } else if age_s > f64::from(duration) {
        Finding::fail(format!("{host} held it and is gone: renewed {age_s:.0} s ago, good for {duration} s"))
    } else if !ours {
        let known = list(plan.control_planes().map(|node| &node.name));
        Finding::fail(format!("held by {host:?}, which is none of {known}"))
    } else if age_s < -SKEW_S {
        Finding::unknown(format!("{host} renewed it {:.0} s in the future of {via}'s clock", -age_s))
    } else {
        Finding::pass(format!("{host} leads, renewed {:.1} s ago, good for {duration} s", age_s.max(0.0)))
    };
    finding.seen(facts).hint(look)
}
