//! Before a drill changes anything: what earlier faults have left, whether the cluster is well, who is hit, whether disks bear it.
//! `run` calls `look`, and may give it up at any moment: nothing here changes anything, so there is nothing to undo.
//! Every refusal says what was seen; who can be hit and what a cluster must be like is judged in `target` and `etcd`.

use super::admin::list_alarms;
use super::catalogue::Drill;
use super::etcd::{Site, disunity, statuses, views};
use super::injector::Injector;
use super::kube::{Kube, KubeView};
use super::refusal::bearable;
use super::run::{Options, RunError, SNAPSHOT};
use super::script::{Script, script};
use super::target::{Chosen, ClusterView, choose, unfit};
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
    let snapshot = options.directory.join(SNAPSHOT).display().to_string();
    let script =
        script(&drill.fault.on_a_store_of(view.held()), &chosen.nodes, &site.nodes(), &site.environment.timing, &snapshot);
    injector.begin().await?;
    Ok(Before { view, chosen, script })
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
    use super::super::kube::{Door, KubeSample, PodSeen};
    use super::*;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    /// An emulated API server: well, and as slow to say so.
    struct Slow(Duration);

    impl Kube for Slow {
        fn view(&self) -> BoxFuture<'_, Result<KubeView, String>> {
            tokio::time::sleep(self.0).map(|()| Ok(KubeView::default())).boxed()
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
        let slow = Slow(Duration::from_secs(15));
        let patience = |election_ms| Duration::from_millis(election_ms) * FITNESS_ELECTIONS;
        let error = fit(&slow, patience(1000)).await.expect_err("15 s of a native one");
        assert!(error.contains("not every server and node of Kubernetes ready after 10 s"), "{error}");
        fit(&slow, patience(5000)).await.expect("15 s of an emulated one");
    }
}
