//! After the heal: members that follow one leader again, a write through each of them, Kubernetes as it was.
//! `run` calls `settle`, whatever came before; a cluster that does not come back ends no run, for that is what it has shown.
//! It changes nothing but the record, and judges nothing: each wait has its deadline and says what it saw last.

use super::super::admin::{await_healthy, patience};
use super::super::catalogue::PodFate;
use super::super::clock::{At, pass};
use super::super::kube::PodSeen;
use super::Phases;
use crate::wait::{self, Seen};
use std::time::Duration;

/// How long the load runs on after the cluster has settled.
const AFTERWARDS: Duration = Duration::from_millis(1200);
/// Nodes and pods of Kubernetes have at least so long to be back after the heal: a kubelet tells of itself every ten seconds.
const KUBE_PATIENCE: Duration = Duration::from_secs(90);

impl Phases<'_> {
    /// Waits for the members to come together, and lets the load run on for a moment.
    pub(super) async fn settle(&mut self, brief: bool) {
        let deadline = if brief { self.site.ask_timeout() * 2 } else { patience(&self.site) };
        match await_healthy(&self.site, deadline).await {
            Ok(()) if self.record.marks.healed != At::ZERO => {
                if let Err(why) = self.await_writes(deadline).await {
                    self.say(&why);
                }
                self.record.marks.settled = self.clock.now();
                self.say("settled");
                if !brief && let Some(back) = self.await_kube(deadline.max(KUBE_PATIENCE)).await {
                    if let Err(why) = &back {
                        self.say(why);
                    }
                    self.record.kube_back = Some(back);
                }
                if !brief {
                    pass(AFTERWARDS.max(self.record.baseline.interval * 12)).await;
                }
            }
            Ok(()) => (),
            // No reason to cut the run short: that the cluster does not come back is what it has shown.
            Err(why) => self.say(&why),
        }
        self.record.marks.end = self.clock.now();
    }

    /// Waits for a write through every member: one may follow the leader and still have its own connections to others held up
    /// by TCP, which doubles its patience while packets are lost.
    async fn await_writes(&self, deadline: Duration) -> Result<(), String> {
        let Some(running) = &self.running else { return Ok(()) };
        let (recorder, heal) = (&running.load.recorder, self.record.marks.heal);
        let probe = || async {
            let silent: Vec<String> = recorder
                .silent(heal, self.site.members.len())
                .into_iter()
                .map(|member| self.record.member_name(member))
                .collect();
            if silent.is_empty() { Seen::Ready(()) } else { Seen::NotYet(format!("none by {}", silent.join(", "))) }
        };
        let ended = wait::until("a write through every member", deadline, Duration::from_millis(50), |_| (), probe).await;
        ended.map_err(|error| error.to_string())
    }

    /// Waits, where the drill's load asks the API, until it answers by every door, its nodes are Ready, and pods that are to be
    /// started again have been: a run that ended before would have seen too little to tell. `None`: nobody asks it.
    async fn await_kube(&self, deadline: Duration) -> Option<Result<(), String>> {
        let probing = self.running.as_ref().and_then(|running| running.kube.as_ref()).filter(|_| self.record.drill.load.api);
        let (Some(load), Some(kube)) = (probing, &self.options.kube) else { return None };
        let heal = self.record.marks.heal;
        let hit: Vec<String> = self.record.chosen.nodes.iter().map(|node| node.to_string()).collect();
        let dead: Vec<_> = match self.record.drill.expect.pods {
            Some(PodFate::Restart) => load.pods_before().into_iter().filter(|pod| hit.contains(&pod.node)).collect(),
            _ => vec![],
        };
        let probe = || async {
            let silent: Vec<String> = load.silent(heal).iter().map(|door| door.to_string()).collect();
            if !silent.is_empty() {
                return Seen::NotYet(format!("no answer by {}", silent.join(", ")));
            }
            match kube.view().await {
                Ok(view) if view.unready.is_empty() => (),
                Ok(view) => return Seen::NotYet(view.unready.join("; ")),
                Err(error) => return Seen::NotYet(error),
            }
            let now = if dead.is_empty() { vec![] } else { kube.pods().await.unwrap_or_default() };
            let again = |pod: &&PodSeen| now.iter().any(|n| n.uid == pod.uid && n.restarts > pod.restarts);
            match dead.iter().find(|pod| !again(pod)) {
                None => Seen::Ready(()),
                Some(pod) => Seen::NotYet(format!("{} has not been started again", pod.name)),
            }
        };
        let ended = wait::until("Kubernetes as it was", deadline, Duration::from_millis(500), |_| (), probe).await;
        Some(ended.map_err(|error| error.to_string()))
    }
}
