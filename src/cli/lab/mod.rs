//! `ktcw-vm lab`: list, start, check, hint, reset, status, solution.
//! What changes the cluster is in `start` and `reset`; here is what only looks and tells.
//! Phases, points and words are `lab`'s: here they become text and exit codes.

mod reset;
mod start;

use super::args::{Format, Global, LabArgs, LabList, LabSolution, LabWhat};
use super::error::CliError;
use super::opened::whole_moment;
use super::session::{self, Session};
use super::{exit, render, status, tools};
use crate::event::Verdict;
use crate::lab::catalogue::{self, Lab};
use crate::lab::words::Scene;
use crate::lab::work::Stage;
use crate::lab::{Book, Open, Phase, Refused, Score};
use crate::near::meant;
use crate::snapshot::Name;
use crate::store::{ClusterDir, Lock};
use jiff::Timestamp;
use serde_json::json;
use std::path::Path;

pub async fn run(global: &Global, args: &LabArgs) -> Result<u8, CliError> {
    let labs = args.labs.as_deref();
    match &args.what {
        LabWhat::List(args) => list(global, args, labs),
        LabWhat::Start(args) => start::start(global, &begun_or_found(global, labs, &args.name)?).await,
        LabWhat::Check => check(global).await,
        LabWhat::Hint => hint(global),
        LabWhat::Reset(args) => reset::reset(global, args).await,
        LabWhat::Status => show(global),
        LabWhat::Solution(args) => solution(global, args, labs),
    }
}

fn all(labs: Option<&Path>) -> Result<Vec<Lab>, CliError> {
    catalogue::labs(labs).map_err(|error| CliError::usage(error.to_string()).hint("ktcw-vm lab list --schema"))
}

/// The lab of that name, or an error that lists those there are.
fn found(labs: Option<&Path>, name: &str) -> Result<Lab, CliError> {
    let all = all(labs)?;
    let known: Vec<&str> = all.iter().map(|lab| lab.name.as_str()).collect();
    all.iter().find(|lab| lab.name == name).cloned().ok_or_else(|| {
        let meant = meant(name, known.iter().copied());
        CliError::usage(format!("there is no lab {name:?}; there are {}{meant}", known.join(", "))).hint("ktcw-vm lab list")
    })
}

/// The lab of that name, or the one whose start was cut off: the book has all of it, wherever its file is.
fn begun_or_found(global: &Global, labs: Option<&Path>, name: &str) -> Result<Lab, CliError> {
    found(labs, name).or_else(|error| {
        let (parent, cluster) = (session::parent(global)?, session::cluster_name(global)?);
        if !ClusterDir::exists(&parent, &cluster) {
            return Err(error);
        }
        let open = book(&ClusterDir::open(&parent, &cluster)?)?.open;
        open.map(|open| open.lab).filter(|lab| lab.name == name).ok_or(error)
    })
}

/// What is written down about labs.
pub(super) fn book(dir: &ClusterDir) -> Result<Book, CliError> {
    Ok(dir.load_labs()?.unwrap_or_default())
}

fn refused(dir: &ClusterDir) -> impl Fn(Refused) -> CliError {
    let cluster = dir.name().to_string();
    move |refused| {
        let code = if refused == Refused::None { exit::USAGE } else { exit::FAILED };
        let hint = refused.hint(&cluster);
        CliError::new(code, refused.to_string()).hint(hint)
    }
}

/// Refuses while a lab is open, for verbs that would break more, mend it by themselves or take away what it goes back to.
pub(super) fn none_open(dir: &ClusterDir) -> Result<(), CliError> {
    match book(dir)?.in_the_way() {
        None => Ok(()),
        Some(why) => Err(refused(dir)(why).left("everything as it was")),
    }
}

/// The same for verbs that add or remove nodes: the lab's snapshot is of those there are.
pub(super) fn none_open_of_these_nodes(dir: &ClusterDir) -> Result<(), CliError> {
    none_open(dir).map_err(|error| match book(dir).map(|book| book.in_the_way()) {
        // Its end is on its way: nothing is left to choose.
        Ok(Some(Refused::Closing(_))) => error,
        _ => error.hint(format!(
            "ktcw-vm lab reset -c {0} takes the cluster back; ktcw-vm lab reset --keep -c {0} closes the lab and leaves it as it is: \
             with other nodes there is no way back to where the lab began",
            dir.name()
        )),
    })
}

/// Whether a snapshot is the one that the open lab goes back to.
pub(super) fn needs(dir: &ClusterDir, snapshot: &Name) -> Result<bool, CliError> {
    Ok(book(dir)?.goes_back_to(snapshot.as_str()))
}

/// Closes the open lab, if one is, of a cluster that is left with nothing it could go back to or be solved in.
pub(super) fn close_with_its_cluster(dir: &ClusterDir, lock: &Lock) -> Result<(), CliError> {
    let mut book = book(dir)?;
    if book.open.is_some() {
        book.close(Timestamp::now());
        dir.save_labs(lock, &book)?;
    }
    Ok(())
}

/// The snapshot that a lab goes back to.
fn snapshot_of(lab: &Lab) -> Result<Name, CliError> {
    Name::parse(&lab.snapshot()).map_err(CliError::failed)
}

fn list(global: &Global, args: &LabList, labs: Option<&Path>) -> Result<u8, CliError> {
    if args.schema {
        render::print_line(&serde_json::to_string_pretty(&catalogue::schema()).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    let labs = all(labs)?;
    // Without a cluster there is still something to choose from.
    let (parent, name) = (session::parent(global)?, session::cluster_name(global)?);
    let dir = ClusterDir::exists(&parent, &name).then(|| ClusterDir::open(&parent, &name)).transpose()?;
    let (book, spec) = match &dir {
        Some(dir) => (book(dir)?, Some((usize::from(dir.spec().etcd), usize::from(dir.spec().workers)))),
        None => (Book::default(), None),
    };
    if global.format == Format::Json {
        let rows = labs.iter().map(|lab| {
            json!({
                "name": lab.name, "title": lab.title, "level": lab.level, "minutes": lab.minutes, "needs": lab.needs,
                "lacking": spec.and_then(|(members, workers)| lab.needs.lacking(members, workers)), "done": book.done.get(&lab.name),
                "open": book.open.as_ref().is_some_and(|open| open.lab.name == lab.name),
            })
        });
        let rows: Vec<_> = rows.collect();
        render::print_line(&serde_json::to_string_pretty(&rows).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    let mut table = status::table(["lab", "what", "level", "min", "members", "workers", ""]);
    for lab in &labs {
        let lacking = spec.and_then(|(members, workers)| lab.needs.lacking(members, workers));
        let note = match (&book.open, book.done.get(&lab.name), lacking) {
            (Some(open), _, _) if open.lab.name == lab.name => "open".to_owned(),
            (_, Some(done), _) if done.solved => format!("solved {}", with_hints(done.hints)),
            (_, Some(done), _) => format!("{} of {} points", done.best, done.of),
            (_, _, Some(_)) => "not on this cluster".to_owned(),
            _ => String::new(),
        };
        let numbers = [lab.minutes.to_string(), lab.needs.members.to_string(), lab.needs.workers.to_string()];
        let [minutes, members, workers] = numbers;
        table.add_row([lab.name.clone(), lab.title.clone(), lab.level.to_string(), minutes, members, workers, note]);
    }
    render::print_line(&table.to_string());
    Ok(exit::OK)
}

/// Scripts of the open lab, on its machines.
fn stage<'a>(
    global: &Global,
    session: &'a Session,
    open: &'a Open,
    guest: &'a dyn crate::guest::Guest,
) -> Result<Stage<'a>, CliError> {
    let scene = Scene { plan: &session.plan, hit: &open.hit };
    Ok(Stage { scene, guest, tools: tools::environment(global, session)?, clock: Timestamp::now })
}

async fn check(global: &Global) -> Result<u8, CliError> {
    let (session, lock) = Session::open(global)?.lock("lab check", |session| {
        book(&session.dir)?.running().map_err(refused(&session.dir))?;
        whole_moment(session)
    })?;
    let mut book = book(&session.dir)?;
    let guests = session.guests()?;
    let open = book.running().map_err(refused(&session.dir))?.clone();
    let outcomes = stage(global, &session, &open, &*guests)?.look(&open.lab).await;
    let score = crate::lab::grade::score(&open.lab, outcomes);
    let now = book.running_mut().map_err(refused(&session.dir))?;
    now.looked(&score, Timestamp::now());
    let now = now.clone();
    session.dir.save_labs(&lock, &book)?;
    match global.format {
        Format::Json => {
            let value = json!({ "cluster": session.plan.cluster, "lab": now.lab.name, "score": score, "best": now.best, "looks": now.looks, "hints": now.hints });
            render::print_line(&value.to_string());
        }
        Format::Text => render::print(&scored(&session, &now, &score)),
    }
    Ok(if score.done { exit::OK } else { exit::CHECK_FAILED })
}

fn scored(session: &Session, open: &Open, score: &Score) -> String {
    let cluster = &session.plan.cluster;
    let mut table = status::table(["points", "check", "where", "seen"]);
    for check in &score.checks {
        for (i, outcome) in check.outcomes.iter().enumerate() {
            let node = outcome.node.as_ref().map_or_else(|| "here".to_owned(), ToString::to_string);
            let first = i == 0;
            let points = if first { format!("{} of {}", check.got, check.of) } else { String::new() };
            let what = if first { check.what.clone() } else { String::new() };
            let verdict = match outcome.verdict {
                Verdict::Pass => "",
                Verdict::Fail => "fail: ",
                Verdict::Unknown => "not known: ",
            };
            table.add_row([points, what, node, format!("{verdict}{}", outcome.evidence)]);
        }
        if check.outcomes.is_empty() {
            table.add_row([
                format!("0 of {}", check.of),
                check.what.clone(),
                "nowhere".to_owned(),
                "there is no such machine".to_owned(),
            ]);
        }
    }
    let mut text = format!("{table}\nlab {}: {} of {} points", open.lab.name, score.got, score.of);
    if score.done {
        let hints = with_hints(open.hints);
        text.push_str(&format!(", solved {hints}\n\n  ktcw-vm lab solution -c {cluster}   how it could be done\n  "));
        text.push_str(&format!("ktcw-vm lab reset -c {cluster}      back to where it began\n"));
    } else {
        text.push_str(&format!("\n\n  ktcw-vm lab hint -c {cluster}\n"));
    }
    text
}

/// `without a hint`, `with one hint`, `with 2 hints`
fn with_hints(hints: usize) -> String {
    match hints {
        0 => "without a hint".to_owned(),
        1 => "with one hint".to_owned(),
        n => format!("with {n} hints"),
    }
}

fn hint(global: &Global) -> Result<u8, CliError> {
    let open = |session: &Session| book(&session.dir)?.running().map(drop).map_err(refused(&session.dir));
    let (session, lock) = Session::open(global)?.lock("lab hint", open)?;
    let mut book = book(&session.dir)?;
    let open = book.running_mut().map_err(refused(&session.dir))?;
    let (of, cluster, hit) = (open.lab.hints.len(), &session.plan.cluster, open.hit.clone());
    let scene = Scene { plan: &session.plan, hit: &hit };
    let next = open.next_hint().map(|(number, hint)| (number, scene.said(hint)));
    let Some((number, text)) = next else {
        let last = format!(
            "all {of} hints were shown; ktcw-vm lab status -c {cluster} has them, ktcw-vm lab solution -c {cluster} the rest"
        );
        match global.format {
            Format::Json => render::print_line(&json!({ "hint": null, "of": of }).to_string()),
            Format::Text => render::print_line(&last),
        }
        return Ok(exit::OK);
    };
    // Shown is what is remembered as shown, not the other way round.
    session.dir.save_labs(&lock, &book)?;
    match global.format {
        Format::Json => render::print_line(&json!({ "hint": text, "number": number, "of": of }).to_string()),
        Format::Text => render::print_line(&format!("hint {number} of {of}: {text}")),
    }
    Ok(exit::OK)
}

fn show(global: &Global) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let book = book(&session.dir)?;
    let Some(open) = &book.open else {
        match global.format {
            Format::Json => render::print_line(&json!({ "open": null, "done": book.done }).to_string()),
            Format::Text => render::print_line(&format!(
                "no lab is open; {} solved so far. ktcw-vm lab list -c {}",
                book.done.values().filter(|done| done.solved).count(),
                session.plan.cluster
            )),
        }
        return Ok(exit::OK);
    };
    if global.format == Format::Json {
        let of: u32 = open.lab.checks.iter().map(|check| u32::from(check.points)).sum();
        let value = json!({
            "open": { "lab": open.lab.name, "phase": open.phase, "begun": open.begun, "hints": open.hints, "looks": open.looks, "best": open.best, "of": of, "solved": open.solved },
            "done": book.done,
        });
        render::print_line(&value.to_string());
        return Ok(exit::OK);
    }
    render::print(&told(&session, open));
    Ok(exit::OK)
}

/// The story, how far it has come, and what to type next.
fn told(session: &Session, open: &Open) -> String {
    let (cluster, lab) = (&session.plan.cluster, &open.lab);
    let scene = Scene { plan: &session.plan, hit: &open.hit };
    let mut text =
        format!("lab {}: {} ({}, about {} min)\n\n{}\n", lab.name, lab.title, lab.level, lab.minutes, wrapped(&lab.story));
    for (i, hint) in lab.hints.iter().take(open.hints).enumerate() {
        text.push_str(&format!("\nhint {}: {}\n", i + 1, scene.said(hint)));
    }
    let of: u32 = lab.checks.iter().map(|check| u32::from(check.points)).sum();
    let far = match open.phase {
        Phase::Saving | Phase::Breaking => {
            format!("its start was cut off: ktcw-vm lab start {} -c {cluster} begins again", lab.name)
        }
        Phase::Rewinding | Phase::Closing => format!("its reset was cut off: ktcw-vm lab reset -c {cluster} finishes it"),
        Phase::Open if open.solved.is_some() => "solved".to_owned(),
        Phase::Open if open.looks == 0 => "not looked at yet".to_owned(),
        Phase::Open => format!("{} of {of} points at best", open.best),
    };
    text.push_str(&format!("\n{far}\n\n"));
    for (verb, what) in next_verbs(open.phase) {
        text.push_str(&format!("  ktcw-vm lab {verb} -c {cluster}   {what}\n"));
    }
    text
}

/// What can be typed in a phase.
fn next_verbs(phase: Phase) -> &'static [(&'static str, &'static str)] {
    const ALL: [(&str, &str); 3] =
        [("check", "points for what is done"), ("hint", "the next hint"), ("reset", "back to where it began")];
    // What was cut off is refused but by what finishes it.
    if phase == Phase::Open { &ALL } else { &ALL[2..] }
}

fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let room = lines.last().is_some_and(|line| line.len() + word.len() < 98);
        match lines.last_mut() {
            Some(line) if room && !line.is_empty() => line.push_str(&format!(" {word}")),
            Some(line) if line.is_empty() => line.push_str(word),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

fn solution(global: &Global, args: &LabSolution, labs: Option<&Path>) -> Result<u8, CliError> {
    let session = Session::open(global)?;
    let book = book(&session.dir)?;
    let (lab, hit) = match (&args.name, &book.open) {
        (Some(name), Some(open)) if open.lab.name == *name => (open.lab.clone(), open.hit.clone()),
        (Some(name), _) => (found(labs, name)?, vec![]),
        (None, Some(open)) => (open.lab.clone(), open.hit.clone()),
        (None, None) => return Err(refused(&session.dir)(Refused::None)),
    };
    let scene = Scene { plan: &session.plan, hit: &hit };
    if args.commands {
        let commands: Vec<String> = lab.solution.iter().flat_map(|step| scene.commands(step)).collect();
        render::print(&format!("{}\n", commands.join("\n")));
        return Ok(exit::OK);
    }
    // Who is hit is known only once it has begun: before that the rule stands there once.
    let commands = |step: &catalogue::Solved| match scene.commands(step) {
        none if none.is_empty() && !step.run.is_empty() => step.run.iter().map(|line| scene.said(line)).collect(),
        some => some.iter().map(|line| scene.said(line)).collect::<Vec<String>>(),
    };
    if global.format == Format::Json {
        let steps: Vec<_> = lab.solution.iter().map(|step| json!({ "why": step.why, "run": commands(step) })).collect();
        render::print_line(&json!({ "lab": lab.name, "solution": steps }).to_string());
        return Ok(exit::OK);
    }
    let mut text = format!("lab {}: {}\n", lab.name, lab.title);
    for step in &lab.solution {
        text.push_str(&format!("\n{}\n\n", wrapped(&step.why)));
        commands(step).iter().for_each(|command| text.push_str(&format!("  $ {command}\n")));
    }
    render::print(&text);
    Ok(exit::OK)
}
