//! Acts that are asked of etcd itself, and those made of several: hand over, remove, rejoin, fill, free, snapshot, flap, await.
//! `run` and `heal` call `perform` for every act of a script; what concerns a machine or process is passed to the injector.
//! It makes no choice: each act says what is wanted, and is done when it is so.

use super::act::Act;
use super::catalogue::Process;
use super::clock::pass;
use super::etcd::{EtcdError, Link, Listed, Site, disunity, member_list, status, statuses};
use super::injector::{InjectError, Injector};
use super::target::Id;
use crate::spec::NodeName;
use crate::wait::{self, Seen};
use etcd_client::{AlarmAction, AlarmType, DeleteOptions, MemberAddOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Prefix of the keys that fill the store.
pub const FILL: &str = "/ktcw/fill/";
/// Bytes of one filling value; etcd refuses requests above 1.5 MiB.
const FILL_BYTES: usize = 1 << 20;
/// No quota in use is larger than this many fills (8 GiB).
const FILL_MOST: usize = 8192;

/// Carries out one act.
pub async fn perform(site: &Site, injector: &dyn Injector, act: &Act) -> Result<(), InjectError> {
    let failed = |reason: String| InjectError::Act { act: act.to_string(), reason };
    match act {
        Act::MoveLeader { from, to } => move_leader(site, from, to).await.map_err(failed),
        Act::RemoveMember { node } => remove_member(site, node).await.map_err(failed),
        Act::Rejoin { node } => rejoin(site, injector, node).await.map_err(failed),
        Act::Fill => fill(site).await.map_err(failed),
        Act::FreeSpace => free_space(site).await.map_err(failed),
        Act::SaveSnapshot { snapshot } => save_snapshot(site, snapshot).await.map_err(failed),
        Act::Flap { times } => flap(site, injector, *times).await.map_err(failed),
        Act::AwaitHealthy => await_healthy(site, patience(site)).await.map_err(failed),
        Act::Rest { ms } => {
            pass(Duration::from_millis(u64::from(*ms))).await;
            Ok(())
        }
        _ => injector.perform(act).await,
    }
}

/// How long a member may take to be back: a boot, or a few elections, whichever is longer.
pub fn patience(site: &Site) -> Duration {
    let timing = &site.environment.timing;
    Duration::from_millis(timing.boot_ms).max(timing.election() * 20)
}

/// Waits until every member follows one leader.
pub async fn await_healthy(site: &Site, deadline: Duration) -> Result<(), String> {
    let probe = || async {
        match disunity(site, &statuses(site).await) {
            None => Seen::Ready(()),
            Some(why) => Seen::NotYet(why),
        }
    };
    wait::until("one leader followed by all members", deadline, Duration::from_millis(100), |_| (), probe)
        .await
        .map_err(|error| error.to_string())
}

fn index(site: &Site, node: &NodeName) -> Result<usize, String> {
    site.members.iter().position(|member| member.node == *node).ok_or_else(|| format!("{node} is not an etcd member"))
}

fn link(site: &Site, member: usize) -> Result<Arc<Link>, String> {
    site.link(member).ok_or_else(|| format!("there is no member {member}"))
}

async fn move_leader(site: &Site, from: &NodeName, to: &NodeName) -> Result<(), String> {
    let (from, to) = (link(site, index(site, from)?)?, link(site, index(site, to)?)?);
    let to = status(&to, site.ask_timeout()).await.map_err(|error| error.to_string())?.id;
    let asked = from.ask(site.ask_timeout(), |mut client| async move { client.move_leader(to.0).await }).await;
    asked.map(|_| ()).map_err(|error| error.to_string())
}

/// A member other than `node` that answers.
async fn other(site: &Site, node: &NodeName) -> Result<Arc<Link>, String> {
    let mut last = "there is no other member".to_owned();
    for (i, member) in site.members.iter().enumerate().filter(|(_, member)| member.node != *node) {
        let link = link(site, i)?;
        match status(&link, site.ask_timeout()).await {
            Ok(status) if status.leader != Id(0) => return Ok(link),
            Ok(_) => last = format!("{} knows no leader", member.node),
            Err(error) => last = format!("{}: {error}", member.node),
        }
    }
    Err(last)
}

/// The row of a node in the list of members, by its peer URL: the name is empty before its first start.
async fn listed(site: &Site, link: &Link, node: &NodeName) -> Result<Option<Listed>, String> {
    let url = &site.members.get(index(site, node)?).ok_or("no such member")?.peer_url;
    let list = member_list(link, site.ask_timeout()).await.map_err(|error| error.to_string())?;
    Ok(list.into_iter().find(|member| member.peer_urls.contains(url)))
}

async fn remove_member(site: &Site, node: &NodeName) -> Result<(), String> {
    // A dead member among three leaves no slack: etcd refuses until the others have been connected for 5 s.
    let probe = || async {
        let removed = async {
            let other = other(site, node).await?;
            let Some(member) = listed(site, &other, node).await? else { return Ok(()) };
            let asked = other.ask(site.ask_timeout(), |mut client| async move { client.member_remove(member.id.0).await }).await;
            asked.map(|_| ()).map_err(|error| error.to_string())
        };
        match removed.await {
            Ok(()) => Seen::Ready(()),
            Err::<(), String>(why) => Seen::NotYet(why),
        }
    };
    until("the member removed", patience(site), probe).await
}

async fn until<F, Fut>(what: &str, deadline: Duration, probe: F) -> Result<(), String>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Seen<()>>,
{
    wait::until(what, deadline, Duration::from_millis(200), |_| (), probe).await.map_err(|error| error.to_string())
}

/// From wherever it is: absent, added, started, a learner or a member.
async fn rejoin(site: &Site, injector: &dyn Injector, node: &NodeName) -> Result<(), String> {
    let url = site.members.get(index(site, node)?).ok_or("no such member")?.peer_url.clone();
    let probe = || async {
        match rejoin_once(site, injector, node, &url).await {
            Ok(None) => Seen::Ready(()),
            Ok(Some(now)) | Err(now) => Seen::NotYet(now),
        }
    };
    until("the member back", patience(site), probe).await
}

/// One step further; `None` when there is nothing left to do.
async fn rejoin_once(site: &Site, injector: &dyn Injector, node: &NodeName, url: &str) -> Result<Option<String>, String> {
    let inject = |error: InjectError| error.to_string();
    let ask = |error: EtcdError| error.to_string();
    let other = other(site, node).await?;
    match listed(site, &other, node).await? {
        None => {
            let options = MemberAddOptions::new().with_is_learner();
            let deadline = site.ask_timeout();
            other.ask(deadline, |mut client| async move { client.member_add([url], Some(options)).await }).await.map_err(ask)?;
            Ok(Some("added".to_owned()))
        }
        Some(member) if member.name.is_empty() => {
            // It has never started, so what lies on its disk belongs to the member it was before.
            injector.perform(&Act::Down { node: node.clone(), process: Process::Etcd, graceful: false }).await.map_err(inject)?;
            injector.perform(&Act::Wipe { node: node.clone() }).await.map_err(inject)?;
            injector.perform(&Act::StartJoining { node: node.clone() }).await.map_err(inject)?;
            let own = link(site, index(site, node)?)?;
            let started = until("the joiner's answer", patience(site) / 2, || async {
                match status(&own, site.ask_timeout()).await {
                    Ok(_) => Seen::Ready(()),
                    Err(error) => Seen::NotYet(error.to_string()),
                }
            });
            started.await?;
            Ok(Some("started".to_owned()))
        }
        Some(member) if member.learner => {
            let deadline = site.ask_timeout();
            other.ask(deadline, |mut client| async move { client.member_promote(member.id.0).await }).await.map_err(ask)?;
            Ok(Some("promoted".to_owned()))
        }
        Some(_) => {
            injector.perform(&Act::Start { node: node.clone(), process: Process::Etcd }).await.map_err(inject)?;
            Ok(None)
        }
    }
}

/// Writes until etcd refuses, and waits until all members have the alarm.
async fn fill(site: &Site) -> Result<(), String> {
    let link = link(site, 0)?;
    let value = vec![b'x'; FILL_BYTES];
    let mut refused = None;
    for i in 0..FILL_MOST {
        let (key, value) = (format!("{FILL}{i}"), value.clone());
        match link.ask(site.ask_timeout() * 5, |mut client| async move { client.put(key, value, None).await }).await {
            Ok(_) => (),
            Err(error) if error.to_string().contains("database space exceeded") => {
                refused = Some(i);
                break;
            }
            Err(error) => return Err(format!("after {i} MiB: {error}")),
        }
    }
    if refused.is_none() {
        return Err(format!("the store took {FILL_MOST} MiB and did not refuse"));
    }
    let probe = || async {
        let alarmed = statuses(site).await.iter().filter(|s| s.as_ref().is_ok_and(|s| has_alarm(&s.errors, "NOSPACE"))).count();
        if alarmed == site.members.len() { Seen::Ready(()) } else { Seen::NotYet(format!("{alarmed} members have it")) }
    };
    until("the alarm on all members", patience(site), probe).await
}

/// Whether a member's own complaints name an alarm.
pub fn has_alarm(errors: &[String], alarm: &str) -> bool {
    errors.iter().any(|error| error.contains(alarm))
}

async fn free_space(site: &Site) -> Result<(), String> {
    let ask = |error: EtcdError| error.to_string();
    // After a run that died a member may only just be coming back.
    await_healthy(site, patience(site)).await?;
    let first = link(site, 0)?;
    let deadline = site.ask_timeout() * 5;
    let deleted = first
        .ask(deadline, |mut client| async move { client.delete(FILL, Some(DeleteOptions::new().with_prefix())).await })
        .await
        .map_err(ask)?;
    let revision = deleted.header().map_or(0, |header| header.revision());
    let compacted = first.ask(deadline, |mut client| async move { client.compact(revision, None).await }).await;
    match compacted {
        Ok(_) => (),
        // A second heal finds the work done.
        Err(error) if error.to_string().contains("has been compacted") => (),
        Err(error) => return Err(error.to_string()),
    }
    for i in 0..site.members.len() {
        let link = link(site, i)?;
        link.ask(deadline * 2, |mut client| async move { client.defragment().await }).await.map_err(ask)?;
    }
    for alarm in list_alarms(site).await? {
        first
            .ask(deadline, |mut client| async move {
                let mut options = etcd_client::AlarmOptions::new();
                options.with_member(alarm.0.0);
                client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await
            })
            .await
            .map_err(ask)?;
    }
    Ok(())
}

/// Alarms as any member lists them: member and kind.
pub async fn list_alarms(site: &Site) -> Result<Vec<(Id, String)>, String> {
    let mut last = "no member".to_owned();
    for i in 0..site.members.len() {
        let link = link(site, i)?;
        let asked = link
            .ask(site.ask_timeout(), |mut client| async move { client.alarm(AlarmAction::Get, AlarmType::None, None).await })
            .await;
        match asked {
            Ok(answer) => {
                let name = |alarm: AlarmType| match alarm {
                    AlarmType::None => "NONE",
                    AlarmType::Nospace => "NOSPACE",
                    AlarmType::Corrupt => "CORRUPT",
                };
                return Ok(answer.alarms().iter().map(|a| (Id(a.member_id()), name(a.alarm()).to_owned())).collect());
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// What a file is called until it is whole.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Saves the leader's store to a file that is whole or absent.
pub async fn save_snapshot(site: &Site, path: &str) -> Result<(), String> {
    let views = super::etcd::views(site, &statuses(site).await);
    let leader = views.iter().position(|view| view.leader).ok_or("no member leads")?;
    let link = link(site, leader)?;
    whole_or_absent(Path::new(path), patience(site), |mut out| async move {
        let mut client = link.client().await.map_err(|error| error.to_string())?;
        let mut stream = client.snapshot().await.map_err(|error| error.to_string())?;
        while let Some(part) = stream.message().await.map_err(|error| error.to_string())? {
            out.write_all(part.blob()).await.map_err(|error| format!("{path}: {error}"))?;
        }
        Ok(out)
    })
    .await
}

/// Makes a file of what `fill` writes, readable by its owner alone. Where that fails or takes longer than `deadline` nothing is left:
/// a part of a store may hold every secret of the cluster.
async fn whole_or_absent<Filled>(path: &Path, deadline: Duration, fill: impl FnOnce(File) -> Filled) -> Result<(), String>
where
    Filled: Future<Output = Result<File, String>>,
{
    let partial = partial(path);
    let said = |error: std::io::Error| format!("{}: {error}", partial.display());
    let mut options = tokio::fs::OpenOptions::new();
    // Not within the deadline: an open that is given up may still make the file.
    let out = options.create(true).write(true).truncate(true).mode(0o600).open(&partial).await.map_err(said)?;
    let work = async {
        let mut out = fill(out).await?;
        // A failure of the last write is told by the flush and by nothing after it.
        out.flush().await.map_err(said)?;
        out.sync_all().await.map_err(said)
    };
    let filled = tokio::time::timeout(deadline, work).await;
    let filled = filled.unwrap_or_else(|_| Err(format!("not done within {} s", deadline.as_secs())));
    let made = match filled {
        Ok(()) => tokio::fs::rename(&partial, path).await.map_err(said),
        Err(why) => Err(why),
    };
    let Err(why) = made else { return Ok(()) };
    match tokio::fs::remove_file(&partial).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{why}; a part of the store, with secrets in it, is left: {}", said(error)))
        }
        _ => Err(why),
    }
}

async fn flap(site: &Site, injector: &dyn Injector, times: u8) -> Result<(), String> {
    let inject = |error: InjectError| error.to_string();
    for i in 0..times {
        let views = super::etcd::views(site, &statuses(site).await);
        let leader = views.iter().position(|view| view.leader).ok_or_else(|| format!("no member leads before kill {}", i + 1))?;
        let node = site.members.get(leader).ok_or("no such member")?.node.clone();
        injector.perform(&Act::Down { node: node.clone(), process: Process::Etcd, graceful: false }).await.map_err(inject)?;
        let probe = || async {
            let views = super::etcd::views(site, &statuses(site).await);
            match views.iter().position(|view| view.leader) {
                Some(next) if next != leader => Seen::Ready(()),
                _ => Seen::NotYet("nobody leads".to_owned()),
            }
        };
        until("another leader", patience(site), probe).await?;
        injector.perform(&Act::Start { node, process: Process::Etcd }).await.map_err(inject)?;
        await_healthy(site, patience(site)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// What of a store is in a directory after `fill` had so many milliseconds to save it, and what was said.
    async fn saved<Filled>(ms: u64, fill: impl FnOnce(File) -> Filled) -> (Vec<String>, Result<(), String>)
    where
        Filled: Future<Output = Result<File, String>>,
    {
        let place = tempfile::tempdir().expect("a directory");
        let made = whole_or_absent(&place.path().join("store.db"), Duration::from_millis(ms), fill).await;
        let entries = std::fs::read_dir(place.path()).expect("listed").map(|entry| entry.expect("an entry"));
        let told = |entry: std::fs::DirEntry| {
            let (name, seen) = (entry.file_name(), entry.metadata().expect("there"));
            format!("{} {:o} {}", name.to_string_lossy(), seen.mode() & 0o777, seen.len())
        };
        (entries.map(told).collect(), made)
    }

    #[tokio::test]
    async fn a_store_is_saved_whole_and_private() {
        let (there, made) = saved(60_000, |mut out| async move {
            out.write_all(b"store").await.expect("written");
            Ok(out)
        })
        .await;
        assert_eq!((there, made), (vec!["store.db 600 5".to_owned()], Ok(())));
    }

    /// Every secret of the cluster may be in what has come so far.
    #[tokio::test]
    async fn of_a_store_that_could_not_be_saved_nothing_is_left() {
        let (there, made) = saved(60_000, |mut out| async move {
            out.write_all(b"sto").await.expect("written");
            Err("no space left on device".to_owned())
        })
        .await;
        assert_eq!((there, made), (vec![], Err("no space left on device".to_owned())));
        let (there, made) = saved(50, |mut out| async move {
            out.write_all(b"sto").await.expect("written");
            std::future::pending().await
        })
        .await;
        assert_eq!((there, made), (vec![], Err("not done within 0 s".to_owned())));
    }
}
