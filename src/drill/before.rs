//! Before a drill changes anything: what earlier faults have left, whether the cluster is well, who is hit, whether disks bear it.
//! `run` calls `look`, and `again` when the load has run for a while; it may give either up at any moment: nothing here changes
//! anything, so there is nothing to undo.
//! Every refusal says what was seen; who can be hit and what a cluster must be like is judged in `target` and `etcd`.

use super::admin::list_alarms;
use super::aim::{About, about};
use super::catalogue::{Drill, Fault};
use super::etcd::{Site, disunity, statuses, views};
use super::injector::Injector;
use super::kube::{Kube, KubeView};
use super::refusal::bearable;
use super::restorable::may_be_taken;
use super::run::{Options, RunError, SNAPSHOT};
use super::script::{Script, script};
use super::target::{Chosen, ClusterView, MemberView, choose, unfit};
use crate::wait::{self, Seen};
use std::time::Duration;

/// A cluster that came up a moment ago has so many elections to become one that can be drilled: 10 s natively. An emulated API
/// server takes as long for the few answers that say so.
const FITNESS_ELECTIONS: u32 = 10;

/// The cluster as it was found, and what is to be done to it.
pub struct Before {
    pub view: ClusterView,
    pub chosen: Chosen,
    pub script: Script,
}

/// Looks at everything, or refuses.
pub async fn look(drill: &Drill, site: &Site, injector: &dyn Injector, options: &Options) -> Result<Before, RunError> {
    // A machine that does not answer is waited for as long as one may take to boot.
    (options.progress)("looking for what earlier drills have left");
    if let Some(left) = injector.leftovers().await?.first() {
        return Err(RunError::Leftovers(left.to_string()));
    }
    let view = view(site, options).await?;
    let chosen = choose(drill, &view, options.seed)?;
    bearable(&drill.name, &drill.fault, view.held(), site.quota_mib)?;
    if matches!(drill.fault, Fault::Restore {}) {
        may_be_taken(&drill.name, view.held(), injector.store_room(&chosen.nodes).await?)?;
    }
    let script = compiled(drill, &view, &chosen, site, options);
    injector.begin().await?;
    Ok(Before { view, chosen, script })
}

/// What is to be done to those who were chosen, in a cluster as it was seen.
pub fn compiled(drill: &Drill, view: &ClusterView, chosen: &Chosen, site: &Site, options: &Options) -> Script {
    let snapshot = options.directory.join(SNAPSHOT).display().to_string();
    script(&drill.fault.on_a_store_of(view.held()), &chosen.nodes, &site.nodes(), &site.environment.timing, &snapshot)
}

/// The cluster once more, as far as the drill's rule is about it, all else as it was seen: etcd's members by `members`, Kubernetes
/// by asking it. What is not settled, an election for one, is waited for; the error says what it was.
pub async fn again(
    drill: &Drill,
    site: &Site,
    kube: Option<&dyn Kube>,
    view: &ClusterView,
    members: impl Fn() -> Vec<MemberView>,
) -> Result<ClusterView, String> {
    let patience = site.environment.timing.election() * FITNESS_ELECTIONS;
    let mut now = view.clone();
    let holders = |seen: &KubeView| match about(drill.target) {
        About::Lease(lease) if !seen.lease_holders.contains_key(lease) => Some(format!("nobody holds the lease {lease}")),
        About::VirtualAddress if seen.vip_holder.is_none() => Some("nobody carries the virtual address".to_owned()),
        _ => None,
    };
    match (about(drill.target), kube) {
        (About::Leadership, _) => {
            let look = || {
                let seen = ClusterView { members: members(), ..ClusterView::default() };
                async move { unfit(&seen).map_or_else(|| Seen::Ready(seen.members), Seen::NotYet) }
            };
            let waited = wait::until("one etcd leader", patience, Duration::from_millis(50), |_| (), look);
            now.members = waited.await.map_err(|error| error.to_string())?;
        }
        (About::Lease(_) | About::VirtualAddress, Some(kube)) => {
            let look = || async {
                match kube.view().await {
                    Ok(seen) => holders(&seen).map_or_else(|| Seen::Ready(seen), Seen::NotYet),
                    Err(error) => Seen::NotYet(error),
                }
            };
            let waited = wait::until("all holders known", patience, Duration::from_secs(1), |_| (), look);
            let seen = waited.await.map_err(|error| error.to_string())?;
            (now.lease_holders, now.vip_holder) = (seen.lease_holders, seen.vip_holder);
        }
        _ => (),
    }
    Ok(now)
}

/// Observes the cluster and refuses one that is not fit.
async fn view(site: &Site, options: &Options) -> Result<ClusterView, RunError> {
    let statuses = statuses(site).await;
    let mut view = ClusterView { members: views(site, &statuses), ..ClusterView::default() };
    if let Some(why) = unfit(&view).or_else(|| disunity(site, &statuses)) {
        return Err(RunError::Unfit(why));
    }
    let alarms = list_alarms(site).await.map_err(RunError::Unfit)?;
    if let Some((id, alarm)) = alarms.first() {
        return Err(RunError::Unfit(format!("the alarm {alarm} is on (member {id})")));
    }
    if let Some(kube) = &options.kube {
        let patience = site.environment.timing.election() * FITNESS_ELECTIONS;
        let seen = fit(kube.as_ref(), patience).await.map_err(RunError::Unfit)?;
        view.control_planes = seen.control_planes;
        view.workers = seen.workers;
        view.lease_holders = seen.lease_holders;
        view.vip_holder = seen.vip_holder;
    }
    Ok(view)
}

/// Kubernetes as it is when nothing is amiss in it, or what was amiss to the last.
async fn fit(kube: &dyn Kube, patience: Duration) -> Result<KubeView, String> {
    let look = || async {
        match kube.view().await {
            Ok(view) if view.unready.is_empty() => Seen::Ready(view),
            Ok(view) => Seen::NotYet(view.unready.join("; ")),
            Err(error) => Seen::NotYet(error),
        }
    };
    let waited = wait::until("every server and node of Kubernetes ready", patience, Duration::from_secs(1), |_| (), look);
    waited.await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::find;
    use super::super::fake::site;
    use super::super::kube::{Door, KubeSample, PodSeen};
    use super::*;
    use crate::spec::NodeName;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    /// An emulated API server: as slow to say what it sees.
    struct Slow(Duration, KubeView);

    impl Kube for Slow {
        fn view(&self) -> BoxFuture<'_, Result<KubeView, String>> {
            tokio::time::sleep(self.0).map(|()| Ok(self.1.clone())).boxed()
        }
        fn doors(&self) -> Vec<Door> {
            vec![]
        }
        fn probe<'a>(&'a self, _: &'a Door, _: bool, _: bool) -> BoxFuture<'a, Result<(), String>> {
            async { Ok(()) }.boxed()
        }
        fn sample(&self) -> BoxFuture<'_, Result<KubeSample, String>> {
            async { Err("not asked".to_owned()) }.boxed()
        }
        fn pods(&self) -> BoxFuture<'_, Result<Vec<PodSeen>, String>> {
            async { Ok(vec![]) }.boxed()
        }
        fn forget(&self) -> BoxFuture<'_, Result<(), String>> {
            async { Ok(()) }.boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_has_as_long_to_look_fit_as_its_own_timers_say() {
        let slow = Slow(Duration::from_secs(15), KubeView::default());
        let patience = |election_ms| Duration::from_millis(election_ms) * FITNESS_ELECTIONS;
        let error = fit(&slow, patience(1000)).await.expect_err("15 s of a native one");
        assert!(error.contains("not every server and node of Kubernetes ready after 10 s"), "{error}");
        fit(&slow, patience(5000)).await.expect("15 s of an emulated one");
    }

    #[tokio::test(start_paused = true)]
    async fn who_carries_the_address_is_asked_again_and_nothing_else_of_kubernetes_changes() {
        let found = ClusterView {
            vip_holder: Some(NodeName::controller(0)),
            control_planes: vec![NodeName::controller(0), NodeName::controller(2)],
            ..ClusterView::default()
        };
        let seen = |drill: &str, holder| {
            let (drill, found) = (find(drill).expect("there"), found.clone());
            async move {
                let kube = Slow(Duration::from_secs(1), KubeView { vip_holder: holder, ..KubeView::default() });
                again(&drill, &site(&[]), Some(&kube), &found, Vec::new).await
            }
        };
        let there = Some(NodeName::controller(2));
        let expected = ClusterView { vip_holder: there.clone(), ..found.clone() };
        assert_eq!(seen("apiserver-kill", there.clone()).await, Ok(expected));
        // It is on its way from one to another.
        let error = seen("apiserver-kill", None).await.expect_err("nobody has it");
        assert!(error.contains("nobody carries the virtual address"), "{error}");
        for drill in ["kubelet-stop", "blackout", "quorum-loss"] {
            assert_eq!(seen(drill, there.clone()).await, Ok(found.clone()), "{drill}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_is_waited_for_and_not_for_ever() {
        let (drill, site, found) = (find("leader-kill").expect("there"), site(&[]), super::super::sample::leader_kill().before);
        let mut leaderless = found.members.clone();
        leaderless[0].leader = false;
        let mut elected = leaderless.clone();
        elected[1].leader = true;
        let looks = std::cell::Cell::new(0);
        let members = || {
            looks.set(looks.get() + 1);
            if looks.get() < 20 { leaderless.clone() } else { elected.clone() }
        };
        let seen = again(&drill, &site, None, &found, members).await.expect("one leads in the end");
        assert_eq!(seen.members, elected);
        let error = again(&drill, &site, None, &found, || leaderless.clone()).await.expect_err("nobody leads");
        assert!(error.starts_with("not one etcd leader after ") && error.ends_with(": no etcd member leads"), "{error}");
    }
}
