//! `lab start`: a snapshot, then the faults, each written down before it happens.
//! A start that was cut off is begun again: from the save where nothing was broken yet, else from the snapshot.
//! It refuses what would hide another fault, one lab at a time and none beside a drill's; and before anything stands still.

use super::{book, refused, snapshot_of, told};
use crate::cli::args::{Format, Global, SnapshotSave};
use crate::cli::drill::bench::Bench;
use crate::cli::error::CliError;
use crate::cli::opened::{Opened, or_interrupted, whole_moment};
use crate::cli::session::Session;
use crate::cli::{render, snapshot, tools};
use crate::drill::admin;
use crate::drill::catalogue::Fault;
use crate::drill::etcd::{statuses, views};
use crate::drill::kube::Kube as _;
use crate::drill::refusal::bearable;
use crate::drill::script::script;
use crate::drill::target::{ClusterView, NoTarget, choose};
use crate::guest::{Guest, put};
use crate::host::DomainState;
use crate::lab::catalogue::{Lab, Step, as_drill};
use crate::lab::words::Scene;
use crate::lab::work::{Said, Stage};
use crate::lab::{Again, Book, On, Open, Phase, grade};
use crate::life;
use crate::life::power::Whole;
use crate::pki::kubeconfig::{self, Credentials};
use crate::plan::{Ca, CertPlan};
use crate::snapshot::{self as snapshots, Record, State, open_restore};
use crate::spec::NodeName;
use jiff::Timestamp;
use serde_json::json;
use std::time::Duration;

pub async fn start(global: &Global, lab: &Lab) -> Result<u8, crate::cli::error::CliError> {
    let name = &lab.name;
    let snapshot = snapshot_of(lab)?;
    let fits = |session: &Session| {
        // Killed on the way back to its own snapshot it goes back once more, as below; any other restore is in the way.
        let own = open_restore(&session.dir.history()?).is_some_and(|open| open.snapshot == snapshot.as_str());
        if !(own && matches!(book(&session.dir)?.may_start(name), Ok(Again::Breaking))) {
            whole_moment(session)?;
        }
        let plan = &session.plan;
        match lab.needs.lacking(plan.controllers().count(), plan.workers().count()) {
            Some(lacking) => {
                Err(CliError::usage(format!("lab {name} needs {lacking}")).hint(format!("ktcw-vm lab list -c {}", plan.cluster)))
            }
            None => book(&session.dir)?.may_start(name).map(|_| ()).map_err(refused(&session.dir)),
        }
    };
    let opened = Opened::new(global, &format!("lab start {name}"), fits)?;
    opened.without_fault()?;
    let dir = &opened.session.dir;
    let cluster = dir.name().clone();
    let mut book: Book = book(dir)?;
    let again = book.may_start(name).map_err(refused(dir))?;
    if again == Again::Fresh && dir.load_snapshots::<Record>()?.iter().any(|(known, _)| known == snapshot.as_str()) {
        return Err(CliError::usage(format!("there is a snapshot {snapshot} already, and it is of no open lab"))
            .hint(format!("ktcw-vm snapshot delete {snapshot} -c {cluster}")));
    }
    let hint = || format!("ktcw-vm lab reset -c {cluster} takes it back; ktcw-vm lab start {name} -c {cluster} begins again");
    let whole = match again {
        Again::Fresh => false,
        Again::Saving => woken(&opened, lab).await?,
        Again::Breaking => {
            render::status("its start was cut off; back to the snapshot first");
            let record = snapshot::may_restore(&opened, &snapshot).await?;
            let restored = snapshot::go_back(&opened, record, true).await.map_err(|error| error.hint(hint()))?;
            render::status(&restored.line(&opened.session.plan));
            true
        }
    };
    if !whole {
        match saved(global, &opened, &mut book, lab).await {
            Ok(saved) => render::status(&saved.line(&opened.session.plan)),
            Err(error) => {
                // Nothing is broken and there is no snapshot: there is no lab either. Machines that were left paused are said by the error.
                if book.open.take().is_some() {
                    dir.save_labs(&opened.lock, &book)?;
                }
                return Err(error);
            }
        }
    }
    let broken = or_interrupted(&opened.stop, "a lab that is being begun", break_it(global, &opened, &mut book)).await;
    let phase = book.open.as_ref().map_or(Phase::Saving, |open| open.phase);
    let left = || left_in(phase, lab);
    broken.map_err(|error| error.left(left()).hint(hint()))?.map_err(|error| match error.left {
        None => error.left(left()).hint(hint()),
        Some(_) => error,
    })?;
    let open = book.running().map_err(refused(dir))?;
    match global.format {
        Format::Json => {
            let value = json!({ "cluster": cluster, "lab": name, "story": lab.story, "snapshot": snapshot, "seed": open.seed });
            render::print_line(&value.to_string());
        }
        Format::Text => render::print(&format!("\n{}", told(&opened.session, open))),
    }
    Ok(crate::cli::exit::OK)
}

/// The snapshot, once it is known that there is somebody to hit and that the cluster bears it; the lab is open from then on.
async fn saved(global: &Global, opened: &Opened, book: &mut Book, lab: &Lab) -> Result<snapshot::Saved, CliError> {
    const LEFT: &str = "everything as it was";
    let now = Timestamp::now();
    let seed = book.open.as_ref().map_or(now.as_millisecond().unsigned_abs() % 1_000_000, |open| open.seed);
    opened.all(&opened.machines.power().await?, &Whole::Running).map_err(|error| error.left(LEFT))?;
    let foreseen = async {
        let bench = bench(global, opened).await?;
        drawn(&bench, lab, seed).await.map(drop)
    };
    or_interrupted(&opened.stop, LEFT, foreseen).await?.map_err(|error| error.left(LEFT))?;
    if book.open.is_none() {
        let lab = lab.clone();
        let (begun, phase, hit) = (now, Phase::Saving, vec![]);
        book.open = Some(Open { lab, phase, seed, hit, begun, hints: 0, looks: 0, best: 0, solved: None });
        opened.session.dir.save_labs(&opened.lock, book)?;
    }
    let note = Some(format!("before lab {}", lab.name));
    let args = SnapshotSave { name: snapshot_of(lab)?, note, force: false, etcd_only: false };
    snapshot::save_opened(opened, &args).await
}

/// What a start that did not come to its end has left.
fn left_in(phase: Phase, lab: &Lab) -> String {
    match phase {
        Phase::Saving => {
            format!("a cluster in which nothing is broken; snapshot {} and lab {}, which is open", lab.snapshot(), lab.name)
        }
        _ => format!("a cluster that is partly broken; snapshot {} has it whole", lab.snapshot()),
    }
}

/// After a save that was cut off: lets paused machines go on with their clocks set, and says whether the snapshot is whole.
pub async fn woken(opened: &Opened, lab: &Lab) -> Result<bool, CliError> {
    let (journal, history) = opened.journal("lab")?;
    let late = !life::late(&history).is_empty();
    let power = opened.machines.power().await?;
    let asleep = |state| matches!(state, Some(DomainState::Paused | DomainState::PausedIoError));
    let sleeping: Vec<_> = opened.machines.nodes(None).into_iter().filter(|node| asleep(power.get(&node.name))).collect();
    if !sleeping.is_empty() || late {
        render::status("a save was cut off; letting the machines go on");
        journal.begin(life::CLOCKS, None)?;
        let (woken, _) = opened.machines.resume(sleeping).await?;
        let names = life::to_be_set(late, &woken, &opened.machines.power().await?);
        let guests = opened.session.guests()?;
        let clocks = life::repair(&opened.session.plan, &*guests, Timestamp::now, &names).await;
        if clocks.iter().all(|(_, shift)| shift.is_ok()) {
            journal.done(life::CLOCKS, None)?;
            life::in_time(&journal, &history)?;
        }
    }
    snapshots::tidy(&snapshot::desk(opened, &journal)).await?;
    whole(opened, lab)
}

/// Whether the lab's snapshot is there to go back to.
pub fn whole(opened: &Opened, lab: &Lab) -> Result<bool, CliError> {
    let name = snapshot_of(lab)?;
    let records = opened.session.dir.load_snapshots::<Record>()?;
    Ok(records
        .iter()
        .any(|(known, record)| known == name.as_str() && record.as_ref().is_ok_and(|record| record.state == State::Whole)))
}

/// The cluster, made ready to be looked at and broken, once it is well. Nothing is written down by it yet.
async fn bench(global: &Global, opened: &Opened) -> Result<Bench, CliError> {
    let bench = Bench::new(Session::open(global)?, &opened.lock, opened.host.clone(), "lab start")?;
    render::status("awaiting a cluster that is well");
    bench.settle().await?;
    Ok(bench)
}

/// Who is hit, by what is seen now.
async fn drawn(bench: &Bench, lab: &Lab, seed: u64) -> Result<(Vec<NodeName>, ClusterView), CliError> {
    let view = view(bench).await?;
    Ok((draw(lab, &view, seed, bench.site.quota_mib)?, view))
}

/// The rules of who may be hit are those of drills; a suspended machine is a fault for everybody.
fn draw(lab: &Lab, view: &ClusterView, seed: u64, quota_mib: u32) -> Result<Vec<NodeName>, CliError> {
    let refused = |error: NoTarget| CliError::usage(format!("lab {error}"));
    let drawn = choose(&as_drill(lab, Fault::Freeze {}), view, seed).map_err(refused)?;
    let faults = lab.faults.iter().filter_map(|step| step.drill.as_ref());
    faults.into_iter().try_for_each(|fault| bearable(&lab.name, fault, view.held(), quota_mib)).map_err(refused)?;
    Ok(drawn.nodes)
}

/// Draws who is hit, writes it down, makes every fault.
async fn break_it(global: &Global, opened: &Opened, book: &mut Book) -> Result<(), CliError> {
    let dir = &opened.session.dir;
    let Some(open) = book.open.clone() else { return Err(CliError::failed("no lab is being begun")) };
    // Machines that stood still while they were saved have to find each other again, and may have found another leader.
    let bench = bench(global, opened).await?;
    let (hit, view) = drawn(&bench, &open.lab, open.seed).await?;
    let lab = open.lab.clone();
    let breaking = Book { open: Some(Open { hit: hit.clone(), phase: Phase::Breaking, ..open }), ..book.clone() };
    dir.save_labs(&opened.lock, &breaking)?;
    // Not before it is on the disk: what is left is told by it.
    *book = breaking;
    let guest: &dyn Guest = &*bench.machines.guest;
    let journal = &bench.log.journal;
    let step = lab.step();
    journal.begin_with(&step, None, json!({ "hit": hit }))?;
    let stage = Stage {
        scene: Scene { plan: &opened.session.plan, hit: &hit },
        guest,
        tools: tools::environment(global, &opened.session)?,
        clock: Timestamp::now,
    };
    for (i, fault) in lab.faults.iter().enumerate() {
        render::status(&format!("  · setting up, {} of {}", i + 1, lab.faults.len()));
        let failed = |why: String| CliError::failed(format!("lab {}: fault {} ({}): {why}", lab.name, i + 1, fault.does));
        if let Err(why) = make(&bench, &stage, fault, &view).await {
            journal.failed(&step, None, &why)?;
            return Err(failed(why));
        }
    }
    journal.done(&step, None)?;
    if let Some(open) = &mut book.open {
        open.phase = Phase::Open;
    }
    Ok(dir.save_labs(&opened.lock, book)?)
}

async fn view(bench: &Bench) -> Result<ClusterView, CliError> {
    let members = views(&bench.site, &statuses(&bench.site).await);
    let seen = bench.kube.view().await.map_err(|why| {
        CliError::failed(format!("the API does not say who holds what: {why}"))
            .hint(format!("ktcw-vm verify -c {}", bench.plan.cluster))
    })?;
    Ok(ClusterView {
        members,
        control_planes: seen.control_planes,
        workers: seen.workers,
        lease_holders: seen.lease_holders,
        vip_holder: seen.vip_holder,
    })
}

async fn make(bench: &Bench, stage: &Stage<'_>, fault: &Step, view: &ClusterView) -> Result<(), String> {
    if let Some(run) = &fault.run {
        return all_well(stage.run(fault.on, run, fault.seconds).await);
    }
    if let Some(drill) = &fault.drill {
        let (fault, members) = (drill.on_a_store_of(view.held()), bench.site.nodes());
        let kept = bench.dir.path().join(crate::drill::run::SNAPSHOT).display().to_string();
        let script = script(&fault, stage.scene.hit, &members, &bench.site.environment.timing, &kept);
        for act in script.prepare.iter().chain(&script.inject) {
            admin::perform(&bench.site, &bench.machines, act).await.map_err(|error| error.to_string())?;
        }
        return Ok(());
    }
    let row = fault.expire.as_deref().unwrap_or_default();
    for node in stage.scene.machines(On::Hit) {
        let id = format!("{row}@{}", node.name);
        let plan = bench.plan.certs.iter().find(|cert| cert.id == id).ok_or_else(|| format!("there is no certificate {id}"))?;
        expire(bench, &node.name, plan).await?;
    }
    Ok(())
}

fn all_well(answers: Vec<(Option<NodeName>, Result<Said, String>)>) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (node, answer) in answers {
        let node = node.map_or_else(|| "here".to_owned(), |node| node.to_string());
        match answer {
            Ok(said) if said.ok => {}
            Ok(said) => wrong.push(format!("{node}: {}", grade::one_line(&format!("{}\n{}", said.stdout, said.stderr)))),
            Err(why) => wrong.push(format!("{node}: {why}")),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate of the cluster's CA that ran out yesterday, with a key of its own, where the node has the good one.
async fn expire(bench: &Bench, node: &NodeName, cert: &CertPlan) -> Result<(), String> {
    let keyring = &bench.machines.keyring;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let then = Timestamp::now() - 2 * DAY;
    let pair = keyring.issue(cert, then, DAY).map_err(|error| text(&error))?;
    let mut files = Vec::new();
    if let Some(at) = &cert.at {
        files.push((format!("{at}-key.pem"), pair.key.expose().to_owned(), 0o600));
        files.push((format!("{at}.pem"), pair.cert.clone(), 0o644));
    }
    let ca = keyring.ca_pem(Ca::Kubernetes).ok_or("the CA is not in the key store")?;
    for plan in bench.plan.kubeconfigs.iter().filter(|plan| plan.cert == cert.id) {
        let Some(at) = &plan.at else { continue };
        let credentials = Credentials { ca, cert: &pair.cert, key: &pair.key };
        let written = kubeconfig::render(plan, credentials).map_err(|error| text(&error))?;
        files.push((at.clone(), written.expose().to_owned(), 0o600));
    }
    if files.is_empty() {
        return Err(format!("{} is on no node", cert.id));
    }
    let deadline = Duration::from_secs(u64::from(bench.plan.timers.probe_deadline_s));
    for (path, content, mode) in files {
        put(&*bench.machines.guest, node, &path, content.as_bytes(), mode, deadline).await.map_err(|error| text(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::catalogue::Target;
    use crate::drill::target::{Id, MemberView};
    use crate::lab::catalogue::labs;

    fn of(name: &str) -> Lab {
        labs(None).expect("built in").into_iter().find(|lab| lab.name == name).expect("there")
    }

    /// One member whose store holds so much, and no virtual address that could be found out.
    fn alone(held_mib: i64) -> ClusterView {
        let (node, db_bytes) = (NodeName::controller(0), held_mib << 20);
        let member = MemberView { node, id: Id(1), leader: true, term: 1, reachable: true, db_bytes };
        ClusterView { members: vec![member], ..ClusterView::default() }
    }

    /// All of it is asked before the book is opened; a file of before may need less than whom it hits.
    #[test]
    fn what_cannot_be_hit_or_borne_is_known_from_the_view_alone() {
        let said = |lab: &Lab, view: &ClusterView| draw(lab, view, 1, 1638).map_err(|error| error.message);
        assert_eq!(said(&of("full-disk"), &alone(20)), Ok(vec![NodeName::controller(0)]));
        let own = Lab { name: "mine".to_owned(), hit: Target::Follower, ..of("full-disk") };
        assert_eq!(said(&own, &alone(20)), Err("lab mine hits a follower, and there is none".to_owned()));
        let refused = said(&of("nospace"), &alone(700)).expect_err("no room");
        assert!(refused.starts_with("lab nospace fills 16 MiB into a store of"), "{refused}");
        let refused = said(&of("expired-certificate"), &alone(20)).expect_err("no holder");
        assert!(refused.contains("the virtual address"), "{refused}");
    }

    #[test]
    fn nothing_is_called_broken_before_it_is() {
        let lab = of("nospace");
        assert!(left_in(Phase::Saving, &lab).starts_with("a cluster in which nothing is broken; snapshot lab-nospace"));
        for phase in [Phase::Breaking, Phase::Open] {
            assert!(left_in(phase, &lab).starts_with("a cluster that is partly broken; snapshot lab-nospace has it whole"));
        }
    }
}
