//! A cluster made ready to be drilled: its machines, its members, its API and the log of faults, under the cluster's lock.
//! `drill run`, `drill heal` and `up` make one; all healing goes through it.
//! It decides nothing: it connects what `inject` and `drill` have.

use crate::cli::error::CliError;
use crate::cli::opened::{no_open_restore_of, none_at_rest, none_put_to_rest};
use crate::cli::session::{self, Session};
use crate::cli::{exit, golden, lab, render};
use crate::drill::admin::{await_healthy, partial};
use crate::drill::etcd::Site;
use crate::drill::heal::heal;
use crate::drill::injector::FaultLog as _;
use crate::drill::kube::Kube as _;
use crate::drill::run::{RunError, SNAPSHOT};
use crate::guest::Guest;
use crate::host::{Host, blocking};
use crate::inject::kube::ApiProbes;
use crate::inject::log::JournalLog;
use crate::inject::site::site;
use crate::inject::{self, Machines};
use crate::life::power::Power;
use crate::life::put_to_rest;
use crate::plan::Plan;
use crate::store::{ClusterDir, Lock};
use crate::wait::{self, Seen};
use jiff::Timestamp;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub struct Bench {
    pub dir: ClusterDir,
    pub plan: Arc<Plan>,
    pub machines: Machines,
    pub site: Site,
    pub log: JournalLog,
    pub kube: Arc<ApiProbes>,
}

impl Bench {
    pub fn new(session: Session, lock: &Lock, host: Arc<dyn Host>, verb: &str) -> Result<Bench, CliError> {
        // Machines of two moments must not be let run, be it to heal them.
        no_open_restore_of(&session.dir, &session.dir.history()?)?;
        Bench::with(session, lock, host, verb)
    }

    /// For a restore of etcd's data, which may be what finishes one that was cut off.
    pub fn for_restore(session: Session, lock: &Lock, host: Arc<dyn Host>) -> Result<Bench, CliError> {
        Bench::with(session, lock, host, "snapshot")
    }

    fn with(session: Session, lock: &Lock, host: Arc<dyn Host>, verb: &str) -> Result<Bench, CliError> {
        let guest: Arc<dyn Guest> = session.guests()?;
        let (plan, mark) = (session.plan.clone(), session.mark());
        let (kept, fresh) = (session.api()?, session::unpooled_api(&session.keyring)?);
        let (load, cpus) = host_now();
        let site = site(&plan, &session.keyring, load, cpus).ok_or_else(|| {
            CliError::failed("etcd's CA or the host's client certificate is not in the key store")
                .hint(format!("ktcw-vm up -c {} makes what is missing", plan.cluster))
        })?;
        let (journal, _) = session.dir.journal(lock, crate::store::draw_id(), verb)?;
        let log = JournalLog { journal: Arc::new(journal), path: session.dir.journal_path() };
        let clock = Timestamp::now;
        let machines = Machines {
            plan: plan.clone(),
            host,
            guest: guest.clone(),
            mark,
            keyring: Arc::new(session.keyring),
            clock,
            logs_from: std::sync::Mutex::default(),
            switched_on: std::sync::Mutex::default(),
            turns: std::sync::Mutex::default(),
        };
        let kube = Arc::new(ApiProbes { plan: plan.clone(), kept, fresh, guest, clock });
        Ok(Bench { dir: session.dir, plan, machines, site, log, kube })
    }

    /// For verbs that do not drill: heals when a drill of this cluster ended without healing, and else looks no further
    /// than into the journal.
    pub async fn heal_after_a_crash(
        parent: &Path,
        dir: &ClusterDir,
        lock: &Lock,
        host: Arc<dyn Host>,
        verb: &str,
    ) -> Result<(), CliError> {
        let open = inject::log::open(&dir.history()?).map_err(CliError::failed)?;
        if open.is_empty() {
            return Ok(());
        }
        Bench::new(Session::at(parent, dir.name())?, lock, host, verb)?.heal_what_is_open().await
    }

    /// Undoes what drills have left, and removes what they have written. Returns what was undone.
    pub async fn heal(&self) -> Result<Vec<String>, CliError> {
        let open = !self.log.pending().map_err(CliError::failed)?.is_empty();
        let done = heal(&self.site, &self.machines, &self.log).await.map_err(|error| explain(&self.plan, error))?;
        self.forget_snapshot()?;
        self.forget_probes(open).await;
        Ok(done)
    }

    /// Removes the ConfigMaps of write probes where the API answers. After a fault it may only just be coming back, and is waited
    /// for; an API that stays away keeps nothing from being healed.
    async fn forget_probes(&self, after_a_fault: bool) {
        let mut gone = self.kube.forget().await;
        if gone.is_err() && after_a_fault {
            let again = || async {
                match self.kube.forget().await {
                    Ok(()) => Seen::Ready(()),
                    Err(why) => Seen::NotYet(why),
                }
            };
            let patience = Duration::from_secs(u64::from(self.plan.timers.apiserver_deadline_s) / 3);
            let waited = wait::until("the API", patience, Duration::from_secs(1), |_| (), again).await;
            gone = waited.map_err(|error| error.to_string());
        }
        if let Err(why) = gone {
            render::status(&format!("ConfigMaps default/ktcw-drill-probe… may be left: {why}"));
        }
    }

    /// Removes the store's copy that a drill kept, whole or cut off: with no fault open nobody needs it, and it holds all of the
    /// cluster's secrets.
    pub fn forget_snapshot(&self) -> Result<(), CliError> {
        let path = self.dir.path().join(SNAPSHOT);
        for path in [partial(&path), path] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CliError::failed(format!("{}: {error}", path.display())).left("a copy of etcd's store"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A run that ended without healing is healed now; with nothing open in the journal nothing is touched.
    pub async fn heal_what_is_open(&self) -> Result<(), CliError> {
        let open = self.log.pending().map_err(CliError::failed)?;
        for fault in &open {
            render::status(&format!("{} (run {}) was not healed; healing it first", fault.drill, fault.run));
        }
        if !open.is_empty() {
            self.heal().await?.iter().for_each(|what| render::status(&format!("healed: {what}")));
        }
        Ok(())
    }

    /// Refuses a cluster that was paused or switched off, as a whole or in part: that is no fault to be healed, and has a way back of
    /// its own. While a fault is open all of it may be the fault's, as every drill is in the journal before it breaks anything.
    pub async fn not_at_rest(&self) -> Result<(), CliError> {
        if !self.log.pending().map_err(CliError::failed)?.is_empty() {
            return Ok(());
        }
        let host = self.machines.host.clone();
        let seen = blocking(move || host.observe()).await?;
        let (power, cluster) = (Power::of(&self.plan, &seen), self.plan.cluster.as_str());
        none_at_rest(&power, cluster)?;
        none_put_to_rest(&power, &put_to_rest(&self.dir.history()?, &self.plan), cluster)
    }

    /// Waits until members, API servers and nodes are as a drill wants to find them.
    pub async fn settle(&self) -> Result<(), CliError> {
        let patience = Duration::from_secs(u64::from(self.plan.timers.node_ready_deadline_s));
        await_healthy(&self.site, patience).await.map_err(CliError::failed)?;
        let ask = || async {
            let deadline = Duration::from_secs(u64::from(self.plan.timers.probe_deadline_s));
            for node in self.plan.control_planes() {
                if let Err(error) = self.kube.fresh.ready(node.ip, deadline).await {
                    return Seen::NotYet(format!("{}: {error}", node.name));
                }
            }
            for node in self.plan.workers() {
                if let Err(error) = self.kube.fresh.node_ready(self.plan.network.vip, &node.name, deadline).await {
                    return Seen::NotYet(format!("{}: {error}", node.name));
                }
            }
            match self.kube.fresh.leaders_elected(self.plan.network.vip, deadline).await {
                Ok(()) => Seen::Ready(()),
                Err(error) => Seen::NotYet(error.to_string()),
            }
        };
        let waited = wait::until("every API server ready and every node Ready", patience, Duration::from_secs(1), |_| (), ask);
        waited.await.map_err(|error| CliError::failed(error).hint(format!("ktcw-vm verify -c {}", self.plan.cluster)))
    }
}

impl Bench {
    /// The cluster as the next run finds it: with the load that this computer has now.
    pub fn site_now(&self) -> Site {
        let mut site = self.site.clone();
        (site.environment.host_load, site.environment.host_cpus) = host_now();
        site
    }

    /// `forget_snapshot`, unless a fault is open that needs it.
    pub fn forget_snapshot_unless_needed(&self) -> Result<(), CliError> {
        if self.log.pending().map_err(CliError::failed)?.is_empty() { self.forget_snapshot() } else { Ok(()) }
    }
}

/// What neither a drill nor a heal goes past: an open lab, whose faults are to be found, and a cluster of which only the golden
/// snapshot is left.
pub fn may_be_drilled(session: &Session) -> Result<(), CliError> {
    lab::none_open(&session.dir)?;
    golden::refuse_down(&session.dir.history()?, session.plan.cluster.as_str())
}

/// The host's load over the last minute and its number of processors; 0 where it does not say.
fn host_now() -> (f64, usize) {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    (load, std::thread::available_parallelism().map_or(0, |n| n.get()))
}

/// Ctrl-C is Ctrl-C, whether it came before the fault or under it.
fn code(error: &RunError) -> u8 {
    match error {
        RunError::NoTarget(_) => exit::USAGE,
        RunError::NotBegun | RunError::Interrupted => exit::INTERRUPTED,
        _ => exit::FAILED,
    }
}

/// Why there is no report, as the command line says it.
pub fn explain(plan: &Plan, error: RunError) -> CliError {
    let said = error.to_string();
    // The hint of the library knows no cluster's name.
    let message = said.split("\nhint: ").next().unwrap_or(&said).to_owned();
    let told = CliError::new(code(&error), message);
    let name = &plan.cluster;
    match &error {
        RunError::NoTarget(_) => told.hint(format!("ktcw-vm drill list; ktcw-vm status -c {name}")),
        RunError::NotBegun | RunError::Interrupted => told,
        RunError::Unfit(_) | RunError::Blind(_) => told.hint(format!("ktcw-vm verify -c {name}; ktcw-vm up -c {name}")),
        RunError::NotHealed { .. } => told.left("a fault, or a part of it").hint(format!("ktcw-vm drill heal -c {name}")),
        RunError::Active { .. } | RunError::Leftovers(_) | RunError::Log(_) => told.hint(format!("ktcw-vm drill heal -c {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_ends_a_run_with_one_code_whenever_it_comes() {
        assert_eq!([RunError::NotBegun, RunError::Interrupted].map(|error| code(&error)), [exit::INTERRUPTED; 2]);
        assert_eq!(code(&RunError::Unfit("no member leads".to_owned())), exit::FAILED);
        assert!(RunError::NotBegun.to_string().contains("nothing was injected"));
    }
}
