//! All machines of a cluster at once: suspended, resumed, observed, each call in a thread of its own so that none waits for another.
//! `stop` and `snapshot` work through it, and `cli` for `pause` and `resume`.
//! It knows libvirt by the `Host` trait and nothing of what runs inside.

use super::LifeError;
use super::power::Power;
use crate::host::{Done, Host, HostError, Mark, blocking};
use crate::plan::{DomainPlan, NodePlan, Plan};
use crate::spec::NodeName;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The machines of one cluster behind one libvirt.
#[derive(Clone)]
pub struct Machines {
    pub plan: Arc<Plan>,
    pub host: Arc<dyn Host>,
    pub mark: Mark,
}

/// When a call began and when it had come back: what it did happened in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub began: Instant,
    pub ended: Instant,
}

/// From the first beginning to the last end: no two of the effects lie further apart.
pub fn window<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Duration {
    let spans: Vec<&Span> = spans.into_iter().collect();
    match (spans.iter().map(|span| span.began).min(), spans.iter().map(|span| span.ended).max()) {
        (Some(first), Some(last)) => last.saturating_duration_since(first),
        _ => Duration::ZERO,
    }
}

impl Machines {
    pub async fn power(&self) -> Result<Power, HostError> {
        let host = self.host.clone();
        let seen = blocking(move || host.observe()).await?;
        Ok(Power::of(&self.plan, &seen))
    }

    /// The nodes of these names; all when none are named.
    pub fn nodes(&self, only: Option<&NodeName>) -> Vec<NodePlan> {
        self.plan.nodes.iter().filter(|node| only.is_none_or(|only| node.name == *only)).cloned().collect()
    }

    /// The same call on each machine, all at the same time. All are waited for, also when one fails.
    pub async fn each<T, F>(&self, nodes: Vec<NodePlan>, call: F) -> Result<BTreeMap<NodeName, (T, Span)>, LifeError>
    where
        T: Send + 'static,
        F: Fn(&dyn Host, &DomainPlan, &Mark) -> Result<T, HostError> + Clone + Send + 'static,
    {
        let calls = nodes.into_iter().map(|node| {
            let (host, mark, call) = (self.host.clone(), self.mark.clone(), call.clone());
            async move {
                let made = blocking(move || {
                    let began = Instant::now();
                    let done = call(&*host, &node.domain, &mark)?;
                    Ok((node.name, done, Span { began, ended: Instant::now() }))
                });
                made.await
            }
        });
        let mut all = BTreeMap::new();
        let mut failed = None;
        for made in join_all(calls).await {
            match made {
                Ok((node, done, span)) => drop(all.insert(node, (done, span))),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            // libvirt's errors name the domain, and so the node.
            Some(error) => Err(LifeError::Host(error)),
            None => Ok(all),
        }
    }

    /// Suspends them together. The time within which all of it happened bounds the skew between any two.
    pub async fn suspend(&self, nodes: Vec<NodePlan>) -> Result<Duration, LifeError> {
        let done = self.each(nodes, |host, domain, mark| host.suspend(domain, mark)).await?;
        Ok(window(done.values().map(|(_, span)| span)))
    }

    /// All machines running, on a network and pools that are active: who is off is switched on, who is paused goes on. Returns who
    /// did not run.
    pub async fn ensure_running(&self) -> Result<Vec<NodeName>, LifeError> {
        let (host, mark, plan) = (self.host.clone(), self.mark.clone(), self.plan.clone());
        blocking(move || {
            host.ensure_pools(&plan.storage, &mark)?;
            host.ensure_network(&plan.network, &mark)
        })
        .await?;
        let done = self.each(self.nodes(None), |host, domain, mark| host.ensure_running(domain, mark)).await?;
        Ok(done.into_iter().filter(|(_, (done, _))| *done == Done::Changed).map(|(node, _)| node).collect())
    }

    /// Lets paused machines go on, together; those that are off stay off. Returns the nodes that were woken.
    pub async fn resume(&self, nodes: Vec<NodePlan>) -> Result<(Vec<NodeName>, Duration), LifeError> {
        let done = self.each(nodes, |host, domain, mark| host.resume(domain, mark)).await?;
        let window = window(done.values().map(|(_, span)| span));
        Ok((done.into_iter().filter(|(_, (done, _))| *done == Done::Changed).map(|(node, _)| node).collect(), window))
    }
}
