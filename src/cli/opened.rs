//! A cluster opened to be changed as a whole: under its lock, with the libvirt it lives in and its machines.
//! `stop`, `pause`, `resume` and `snapshot` begin with it, and with what stands in their way.
//! It changes nothing but the lock.

use super::args::Global;
use super::error::CliError;
use super::session::{self, Session};
use super::{exit, fork, golden, lab, signals};
use crate::host::DomainState;
use crate::host::libvirt::LibvirtHost;
use crate::inject;
use crate::lab::Book;
use crate::life::power::{Power, Whole};
use crate::life::{LifeError, Machines};
use crate::snapshot::{self, OpenRestore};
use crate::spec::NodeName;
use crate::store::journal::{History, Journal};
use crate::store::{ClusterDir, Lock};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

/// Becomes true at Ctrl-C. As long as it is held, the first Ctrl-C only says so: machines that are suspended together must
/// not be left so.
pub type Stop = watch::Receiver<bool>;

pub struct Opened {
    pub session: Session,
    pub lock: Lock,
    pub host: Arc<LibvirtHost>,
    pub machines: Machines,
    pub stop: Stop,
}

impl Opened {
    /// `verb` is what the user typed, for who finds the cluster busy. What `wrong` says of names is said before libvirt is asked, and
    /// before the lock is waited for; under it `wrong` is asked again.
    pub fn new(global: &Global, verb: &str, wrong: impl FnMut(&Session) -> Result<(), CliError>) -> Result<Opened, CliError> {
        let (session, lock) = Session::open(global)?.lock(verb, wrong)?;
        let host = session::connect_to(global, &session.dir)?;
        let machines = Machines { plan: session.plan.clone(), host: host.clone(), mark: session.mark() };
        Ok(Opened { session, lock, host, machines, stop: signals::interrupted() })
    }

    /// The journal of this run, and what it said before.
    pub fn journal(&self, verb: &str) -> Result<(Journal, History), CliError> {
        Ok(self.session.dir.journal(&self.lock, crate::store::draw_id(), verb)?)
    }

    /// Refuses while a drill's fault is in force: what is kept or frozen now would hold the fault.
    pub fn without_fault(&self) -> Result<(), CliError> {
        no_open_fault(&self.session.dir.history()?, self.session.plan.cluster.as_str())
    }

    /// Refuses unless the machines are as `wanted`, naming those that are not and what to type.
    pub fn all(&self, power: &Power, wanted: &Whole) -> Result<(), CliError> {
        all_are(power, wanted, self.session.plan.cluster.as_str())
    }
}

/// Refuses unless all machines are as `wanted`, saying how they are and what to type.
pub fn all_are(power: &Power, wanted: &Whole, cluster: &str) -> Result<(), CliError> {
    let whole = power.whole();
    if whole == *wanted {
        return Ok(());
    }
    let said = CliError::failed(format!("the machines of cluster {cluster} are {whole}, and all have to be {wanted}"));
    Err(match whole.way_back() {
        Some(verb) => said.hint(format!("ktcw-vm {verb} -c {cluster}")),
        None => said,
    })
}

/// Refuses a cluster whose machines are all paused or all off; single ones may be what a drill has left.
pub fn none_at_rest(power: &Power, cluster: &str) -> Result<(), CliError> {
    match power.whole() {
        Whole::Paused | Whole::Off => {
            all_are(power, &Whole::Running, cluster).map_err(|error| error.left("everything as it was"))
        }
        Whole::Running | Whole::Absent | Whole::Mixed(_) => Ok(()),
    }
}

/// Refuses while machines stand still that a verb has put to rest, each on its own: `resting`, as the journal has them.
pub fn none_put_to_rest(power: &Power, resting: &BTreeSet<NodeName>, cluster: &str) -> Result<(), CliError> {
    let still: Vec<_> = power.not_running().filter(|(node, _)| resting.contains(node)).collect();
    if still.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = still.iter().map(|(node, word)| format!("{node} ({word})")).collect();
    let asleep = still.iter().all(|(node, _)| power.get(node) == Some(DomainState::Paused));
    let verb = if asleep { "resume" } else { "start" };
    let said = format!("machines of cluster {cluster} are at rest by stop or pause, which is no fault: {}", told.join(", "));
    Err(CliError::failed(said).left("everything as it was").hint(format!("ktcw-vm {verb} -c {cluster}")))
}

/// No fault of a drill is in force, as far as the journal says.
pub fn no_open_fault(history: &History, cluster: &str) -> Result<(), CliError> {
    match inject::log::open(history).map_err(CliError::failed)?.first() {
        None => Ok(()),
        Some(fault) => Err(CliError::failed(format!("the fault of drill {} (run {}) is still in force", fault.drill, fault.run))
            .hint(format!("ktcw-vm drill heal -c {cluster}"))),
    }
}

/// For verbs with `--node`: the node is one of the cluster's, or the error lists those.
pub fn known(session: &Session, node: Option<&NodeName>) -> Result<(), CliError> {
    node.map_or(Ok(()), |node| session.node(node).map(|_| ()))
}

/// Refuses while a restore is half-done, as machines of different moments must not run together, and while only a golden snapshot
/// is left of the cluster.
pub fn whole_moment(session: &Session) -> Result<(), CliError> {
    let (history, cluster) = (session.dir.history()?, session.plan.cluster.as_str());
    // A restore from the golden snapshot that was cut off is finished by `up`.
    golden::refuse_down(&history, cluster)?;
    no_open_restore_of(&session.dir, &history)
}

/// No restore and no fork is half-done, as far as a journal that is open already says.
pub fn no_open_restore_of(dir: &ClusterDir, history: &History) -> Result<(), CliError> {
    // A book that cannot be read is in nobody's way while there is nothing to finish.
    let book = match snapshot::open_restore(history) {
        Some(_) => lab::book(dir)?,
        None => Book::default(),
    };
    none_half_done(history, &book, dir.name().as_str())
}

/// The same where no lab can be meant.
pub fn no_open_restore(history: &History, cluster: &str) -> Result<(), CliError> {
    none_half_done(history, &Book::default(), cluster)
}

fn none_half_done(history: &History, book: &Book, cluster: &str) -> Result<(), CliError> {
    fork::refuse_cut_off(history, cluster)?;
    match snapshot::open_restore(history) {
        None => Ok(()),
        Some(open) => Err(CliError::failed(&open)
            .left("everything as it was")
            .hint(format!("{} finishes it", finishing(&open, book, cluster)))),
    }
}

/// What finishes a restore that was cut off. On the way back to where the open lab began no verb is let through but the lab's own.
pub fn finishing(open: &OpenRestore, book: &Book, cluster: &str) -> String {
    match !open.etcd_only && book.goes_back_to(&open.snapshot) {
        true => format!("ktcw-vm lab reset -c {cluster}"),
        false => format!("ktcw-vm snapshot restore {} -c {cluster}", open.snapshot),
    }
}

/// Ends work that only waits when Ctrl-C comes; what it has done so far stays done.
pub async fn or_interrupted<T>(stop: &Stop, left: &str, work: impl Future<Output = T>) -> Result<T, CliError> {
    let mut stop = stop.clone();
    tokio::select! {
        done = work => Ok(done),
        _ = stop.wait_for(|stop| *stop) => Err(CliError::new(exit::INTERRUPTED, "interrupted").left(left)),
    }
}

impl From<LifeError> for CliError {
    fn from(error: LifeError) -> Self {
        match error {
            LifeError::Host(error) => error.into(),
            LifeError::Journal(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::DomainState::{Paused, Running, ShutOff};

    #[test]
    fn a_restore_is_finished_by_a_verb_that_is_not_refused() {
        let lab = crate::lab::catalogue::labs(None).expect("built in").swap_remove(0);
        let (phase, begun, own) = (crate::lab::Phase::Rewinding, jiff::Timestamp::UNIX_EPOCH, lab.snapshot());
        let open = crate::lab::Open { lab, phase, seed: 1, hit: vec![], begun, hints: 0, looks: 0, best: 0, solved: None };
        let book = Book { open: Some(open), ..Book::default() };
        let said = |snapshot: &str, etcd_only, book: &Book| {
            finishing(&OpenRestore { snapshot: snapshot.to_owned(), etcd_only }, book, "lab")
        };
        assert_eq!(said(&own, false, &book), "ktcw-vm lab reset -c lab");
        assert_eq!(said("one", false, &book), "ktcw-vm snapshot restore one -c lab");
        assert_eq!(said("store", true, &book), "ktcw-vm snapshot restore store -c lab");
        assert_eq!(said(&own, false, &Book::default()), format!("ktcw-vm snapshot restore {own} -c lab"));
    }

    #[test]
    fn a_cluster_that_is_paused_is_let_go_on_and_not_healed() {
        let judged = |states: &[DomainState]| {
            let power = states.iter().zip(0..).map(|(state, i)| (NodeName::controller(i), Some(*state))).collect();
            none_at_rest(&Power(power), "lab").map_err(|error| error.text())
        };
        let said = |how, verb| {
            Err(format!(
                "error: the machines of cluster lab are {how}, and all have to be running\nleft behind: everything as it was\n\
                 hint: ktcw-vm {verb} -c lab"
            ))
        };
        assert_eq!(judged(&[Paused, Paused, Paused]), said("paused", "resume"));
        assert_eq!(judged(&[ShutOff, ShutOff]), said("off", "start"));
        // What a drill may have done is for `drill heal`.
        assert_eq!(judged(&[Paused, Running]), Ok(()));
        assert_eq!(judged(&[Running, Running]), Ok(()));
    }

    /// One that was stopped by name is not to be booted by a heal; one that stands still for another reason is for it.
    #[test]
    fn a_machine_that_was_put_to_rest_is_not_taken_for_a_fault() {
        let judged = |states: &[DomainState]| {
            let power = states.iter().zip(0..).map(|(state, i)| (NodeName::controller(i), Some(*state))).collect();
            let resting = [0, 1].map(NodeName::controller).into();
            none_put_to_rest(&Power(power), &resting, "lab").map_err(|error| error.text())
        };
        let said = |who, verb| {
            Err(format!(
                "error: machines of cluster lab are at rest by stop or pause, which is no fault: {who}\n\
                 left behind: everything as it was\nhint: ktcw-vm {verb} -c lab"
            ))
        };
        assert_eq!(judged(&[Paused, Running, Running]), said("controller-0 (paused)", "resume"));
        assert_eq!(judged(&[Paused, ShutOff, Running]), said("controller-0 (paused), controller-1 (off)", "start"));
        assert_eq!(judged(&[Running, Running, ShutOff]), Ok(()));
        assert_eq!(judged(&[Running, Running, Running]), Ok(()));
    }
}
