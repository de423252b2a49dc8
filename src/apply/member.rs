//! etcd's membership, changed one member at a time: a learner added, promoted once it has everything, a member removed.
//! `perform` calls it for a controller on its way in or out; it asks members that stay, with `etcdctl` on their own nodes.
//! Each act looks first and is done when it is so; who may go is decided before it comes here.

use super::perform::{StepError, World};
use crate::guest::{Cmd, run_ok};
use crate::plan::{NodePlan, Plan};
use crate::spec::NodeName;
use serde::Deserialize;
use std::net::Ipv4Addr;
use std::time::Duration;

/// One row of `etcdctl member list -w json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Row {
    #[serde(rename = "ID")]
    pub id: u64,
    /// Empty until it has started once.
    #[serde(default)]
    pub name: String,
    #[serde(default, rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    #[serde(default, rename = "isLearner")]
    pub learner: bool,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    members: Vec<Row>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(rename = "Status")]
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    header: Header,
    #[serde(default)]
    leader: u64,
}

#[derive(Deserialize)]
struct Header {
    member_id: u64,
}

fn peer_url(node: &NodePlan) -> String {
    format!("https://{}:2380", node.ip)
}

/// `etcdctl` refuses a flag that the environment sets as well, so all of it is said there.
fn etcdctl(endpoint: Ipv4Addr, words: &str) -> String {
    format!(
        "export ETCDCTL_ENDPOINTS=https://{endpoint}:2379 ETCDCTL_CACERT=/etc/etcd/pki/ca.pem \
         ETCDCTL_CERT=/etc/etcd/pki/client.pem ETCDCTL_KEY=/etc/etcd/pki/client-key.pem\nexec etcdctl {words}\n"
    )
}

/// Those who are members before and after: whom to ask.
fn settled(plan: &Plan) -> impl Iterator<Item = &NodePlan> {
    plan.controllers().filter(|node| plan.spec.lineage.joining.as_ref() != Some(&node.name))
}

fn patience(plan: &Plan) -> Duration {
    Duration::from_secs(u64::from(plan.timers.probe_deadline_s))
}

/// Runs `etcdctl` on `via` against `endpoint`.
async fn ask(plan: &Plan, world: &World, via: &NodePlan, endpoint: Ipv4Addr, words: &str) -> Result<String, StepError> {
    let cmd = Cmd::script(etcdctl(endpoint, words), patience(plan));
    Ok(run_ok(&*world.guest, &via.name, cmd).await?.stdout_text())
}

/// The first member that stays and answers, with the list as all agree to it.
async fn list<'a>(plan: &'a Plan, world: &World) -> Result<(&'a NodePlan, Vec<Row>), StepError> {
    let mut last = None;
    for via in settled(plan) {
        match ask(plan, world, via, via.ip, "member list -w json").await {
            Ok(text) => return Ok((via, read(&via.name, &text)?)),
            Err(error) => last = Some(error),
        }
    }
    let nobody = || StepError::Members { said: "there is no member to ask".to_owned() };
    Err(last.unwrap_or_else(nobody))
}

fn read(node: &NodeName, text: &str) -> Result<Vec<Row>, StepError> {
    let wrong =
        |error: serde_json::Error| StepError::Unreadable { node: node.clone(), what: "list of members", said: error.to_string() };
    let list: List = serde_json::from_str(text.trim()).map_err(wrong)?;
    if list.members.is_empty() {
        return Err(StepError::Members { said: format!("{node} lists no members") });
    }
    Ok(list.members)
}

fn row<'a>(rows: &'a [Row], node: &NodePlan) -> Option<&'a Row> {
    let url = peer_url(node);
    rows.iter().find(|row| row.peer_urls.contains(&url))
}

/// On a node that has just booted for the first time units are not known yet, and its disk is not mounted.
const EMPTY: &str = "set -e\nsystemctl daemon-reload\nsystemctl stop etcd.service\nsystemctl start var-lib-etcd.mount\n\
                     rm -rf /var/lib/etcd/data\n";

/// Adds the node as a learner, which has no vote. What lies on its disk and is of no member is not begun from.
pub(super) async fn add(plan: &Plan, node: &NodePlan, world: &World) -> Result<bool, StepError> {
    let (via, rows) = list(plan, world).await?;
    if row(&rows, node).is_some() {
        return Ok(false);
    }
    run_ok(&*world.guest, &node.name, Cmd::script(EMPTY, patience(plan))).await?;
    let words = format!("member add {} --learner --peer-urls={}", node.name, peer_url(node));
    ask(plan, world, via, via.ip, &words).await?;
    Ok(true)
}

/// Gives it its vote, which etcd refuses until it has everything. `Err` with why not yet.
pub(super) async fn promote(plan: &Plan, node: &NodePlan, world: &World) -> Result<(), String> {
    let said = |error: StepError| error.to_string();
    let (via, rows) = list(plan, world).await.map_err(said)?;
    match row(&rows, node) {
        None => Err(format!("{} is not in the list of members", node.name)),
        Some(row) if !row.learner => Ok(()),
        Some(row) => ask(plan, world, via, via.ip, &format!("member promote {:x}", row.id)).await.map(|_| ()).map_err(said),
    }
}

/// Takes its membership, handing its leadership over before. `Err` with why not yet.
pub(super) async fn remove(plan: &Plan, node: &NodePlan, world: &World) -> Result<(), String> {
    let said = |error: StepError| error.to_string();
    let (via, rows) = list(plan, world).await.map_err(said)?;
    let Some(row) = row(&rows, node) else { return Ok(()) };
    let text = ask(plan, world, via, via.ip, "endpoint status -w json").await.map_err(said)?;
    let all: Vec<Endpoint> = serde_json::from_str(text.trim()).map_err(|error| format!("{}: its status: {error}", via.name))?;
    let status = &all.first().ok_or_else(|| format!("{}: no status", via.name))?.status;
    if status.leader == 0 {
        return Err("nobody leads".to_owned());
    }
    if status.leader == row.id {
        // Only the leader takes that order. One that does not answer is not waited for: the others elect.
        ask(plan, world, via, node.ip, &format!("move-leader {:x}", status.header.member_id)).await.map_err(said)?;
    }
    ask(plan, world, via, via.ip, &format!("member remove {:x}", row.id)).await.map(|_| ()).map_err(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_with_ids_of_64_bits_and_none_is_no_list() {
        let text = r#"{"header":{"cluster_id":14841639068965178418,"member_id":1,"raft_term":2},"members":[
            {"ID":10501334649042878790,"name":"controller-0","peerURLs":["https://192.168.77.11:2380"],"clientURLs":["x"]},
            {"ID":1,"peerURLs":["https://192.168.77.14:2380"],"isLearner":true}]}"#;
        let rows = read(&NodeName::controller(0), text).expect("a list");
        assert_eq!((rows[0].id, rows[0].learner, rows[1].learner), (10_501_334_649_042_878_790, false, true));
        assert!(rows[1].name.is_empty());
        assert!(read(&NodeName::controller(0), "{}").is_err() && read(&NodeName::controller(0), "Error: x").is_err());
    }

    #[test]
    fn the_environment_says_whom_to_ask() {
        let text = etcdctl(Ipv4Addr::new(10, 0, 0, 1), "member list -w json");
        assert!(text.contains("ETCDCTL_ENDPOINTS=https://10.0.0.1:2379 ") && !text.contains("--endpoints"), "{text}");
    }
}
