//! Acts of libvirt on whole machines: suspend and resume, the plug and the switch.
//! `Machines::perform` calls it, and looks at states through it.
//! A machine that was resumed has its clock set at once: it woke in the past.

use super::Machines;
use crate::drill::act::Act;
use crate::host::{CALL, DomainState, Host, HostError, blocking};
use crate::plan::DomainPlan;
use crate::spec::NodeName;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use tokio::sync::OwnedMutexGuard;

impl Machines {
    pub(super) async fn machine(&self, act: &Act) -> Result<(), String> {
        match act {
            Act::Suspend { node } => self.of_host(node, |host, domain, mark| host.suspend(domain, mark)).await,
            Act::Resume { node } => {
                self.of_host(node, |host, domain, mark| host.resume(domain, mark)).await?;
                self.set_clock(&Act::SetClock { node: node.clone() }).await
            }
            Act::PowerOff { node } => {
                self.of_host(node, |host, domain, mark| host.power_off(domain, mark)).await?;
                // Nothing says that the connection is dead but silence.
                self.guest.forget(node).await;
                Ok(())
            }
            Act::PowerOn { node } => {
                self.guest.forget(node).await;
                self.of_host(node, |host, domain, mark| host.ensure_running(domain, mark)).await?;
                self.switched_on().insert(node.clone());
                Ok(())
            }
            other => Err(format!("{other} is not done by the host")),
        }
    }

    async fn of_host<T: Send + 'static>(
        &self,
        node: &NodeName,
        work: impl FnOnce(&dyn Host, &DomainPlan, &crate::host::Mark) -> Result<T, HostError> + Send + 'static,
    ) -> Result<(), String> {
        let (host, domain, mark) = (self.host.clone(), self.node(node)?.domain.clone(), self.mark.clone());
        let turn = self.turn_of(node).await?;
        let done = blocking(move || {
            let done = work(&*host, &domain, &mark);
            // The call has it, and not who waits for the call.
            drop(turn);
            done
        });
        done.await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Waits until libvirt has ended what it was told last of that machine. Who told it may be gone: Ctrl-C ends the wait for an act
    /// and not the act, and the undoing would find a machine that still runs, and leave it to go off.
    async fn turn_of(&self, node: &NodeName) -> Result<OwnedMutexGuard<()>, String> {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default().clone();
        let waited = tokio::time::timeout(CALL, turn.lock_owned()).await;
        waited.map_err(|_| format!("{node}: an earlier call to libvirt has not ended within {} s", CALL.as_secs()))
    }

    /// State of each node's machine; one that is not there is missing.
    pub(super) async fn states(&self) -> Result<BTreeMap<NodeName, DomainState>, String> {
        let host = self.host.clone();
        let seen = blocking(move || host.observe()).await.map_err(|error| error.to_string())?;
        let state = |name: &str| seen.domains.iter().find(|domain| domain.name == name).map(|domain| domain.state);
        Ok(self.plan.nodes.iter().filter_map(|node| Some((node.name.clone(), state(&node.domain.name)?))).collect())
    }
}
