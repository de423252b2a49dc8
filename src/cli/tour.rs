//! `ktcw-vm tour`: the guide, alive. A step is explained, its command is shown, run on your cluster on Enter, and then you are told what to look at.
//! Where you are is kept in the cluster's directory; with --yes nobody is waited for, no place is kept, and a step that does not show what it should ends it.
//! The steps are `tour`'s.

use super::args::{Format, Global, Tour};
use super::error::CliError;
use super::session::Session;
use super::{exit, render, status, tools};
use crate::plan::{Ca, PkiItem};
use crate::tour::{Place, Step, begin, kept, steps};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

/// What is kept of a step's output to look for what it should show.
const MOST_BYTES: usize = 4 << 20;

pub async fn run(global: &Global, args: &Tour) -> Result<u8, CliError> {
    let steps = steps().map_err(CliError::failed)?;
    if args.list {
        return list(global, &steps);
    }
    let count = u16::try_from(steps.len()).unwrap_or(u16::MAX);
    // What is wrong with the number is said without a cluster.
    begin(args.step, None, count).map_err(|said| CliError::usage(said).hint("ktcw-vm tour --list"))?;
    if !global.yes && !std::io::stdin().is_terminal() {
        return Err(CliError::usage("standard input is not a terminal, so nobody can press Enter")
            .hint("ktcw-vm tour --yes runs all steps"));
    }
    let session = Session::open(global)?;
    let cluster = &session.plan.cluster;
    // Without anybody to go on with, a tour is all of it.
    let place: Option<Place> = if global.yes { None } else { session.dir.load_tour()? };
    let Some(first) = begin(args.step, place, count).map_err(CliError::usage)? else {
        render::print_line(&format!("the tour is over; ktcw-vm tour --step 1 -c {cluster} begins again"));
        return Ok(exit::OK);
    };
    let came_to = |next| kept(next, global.yes).map_or(Ok(()), |place| session.dir.save_tour(&place));
    // What is typed is `ktcw-vm`, which has its own: etcdctl refuses a flag and its variable together.
    let mut environment = tools::environment(global, &session)?;
    environment.retain(|(name, _)| name == "PATH" || name.to_string_lossy().starts_with("KTCW_"));
    let words = words(&session)?;
    let (members, workers) = (session.plan.controllers().count(), session.plan.workers().count());
    for (number, step) in (1_u16..).zip(&steps).filter(|(number, _)| *number >= first) {
        render::print_line(&format!("\n[{number}/{count}] {}: {}\n\n{}\n", step.part, step.title, step.say.trim()));
        if let Some(lacking) = step.lacking(members, workers) {
            render::print_line(&format!("not on this cluster: {lacking}"));
            came_to(number + 1)?;
            continue;
        }
        let command = step.command(&words);
        command.trim().lines().for_each(|line| render::print_line(&format!("  $ {line}")));
        match if global.yes { Answer::Run } else { ask()? } {
            Answer::Run => {}
            Answer::Skip => {
                came_to(number + 1)?;
                continue;
            }
            Answer::Quit => {
                came_to(number)?;
                render::print_line(&format!("ktcw-vm tour -c {cluster} goes on from here"));
                return Ok(exit::OK);
            }
        }
        render::print_line("");
        let wrong = typed(&command, step, &environment).await?;
        match wrong {
            None => render::print_line(&format!("\nlook: {}", step.look.trim())),
            Some(wrong) if global.yes => {
                came_to(number)?;
                return Err(CliError::failed(format!("step {number} ({}): {wrong}", step.title))
                    .hint(format!("ktcw-vm verify -c {cluster}")));
            }
            Some(wrong) => {
                render::print_line(&format!("\nthat was not as it should be: {wrong}; ktcw-vm verify -c {cluster} says more"))
            }
        }
        came_to(number + 1)?;
    }
    render::print_line("\nthat was the tour");
    Ok(exit::OK)
}

fn list(global: &Global, steps: &[Step]) -> Result<u8, CliError> {
    if global.format == Format::Json {
        render::print_line(&serde_json::to_string_pretty(steps).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    let mut table = status::table(["step", "about", "what"]);
    for (number, step) in (1..).zip(steps) {
        table.add_row([number.to_string(), step.part.clone(), step.title.clone()]);
    }
    render::print_line(&table.to_string());
    Ok(exit::OK)
}

/// What stands for the words in braces here.
fn words(session: &Session) -> Result<BTreeMap<&'static str, String>, CliError> {
    let file = |item: PkiItem| {
        let missing = || CliError::failed(format!("{item} is not in the key store")).hint("ktcw-vm up makes what is missing");
        session.keyring.path(&item).map(|path| crate::guest::quote(&path.display().to_string())).ok_or_else(missing)
    };
    let admin = || "admin".to_owned();
    let (plan, name) =
        (&session.plan, |node: Option<&crate::plan::NodePlan>| node.map(|node| node.name.to_string()).unwrap_or_default());
    Ok(BTreeMap::from([
        ("ca", file(PkiItem::CaCert { ca: Ca::Kubernetes })?),
        ("cert", file(PkiItem::Cert { id: admin() })?),
        ("key", file(PkiItem::Key { id: admin() })?),
        ("vip", plan.network.vip.to_string()),
        ("member", name(plan.controllers().next())),
        ("worker", name(plan.workers().next())),
        ("members_ip", plan.controllers().map(|node| node.ip.to_string()).collect::<Vec<_>>().join(" ")),
    ]))
}

enum Answer {
    Run,
    Skip,
    Quit,
}

/// Waits for Enter. The end of the input is a farewell.
fn ask() -> Result<Answer, CliError> {
    render::status("\nEnter runs it, s goes on without, q leaves");
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer).map_err(CliError::failed)?;
    Ok(match answer.trim() {
        _ if read == 0 => Answer::Quit,
        "q" => Answer::Quit,
        "s" => Answer::Skip,
        _ => Answer::Run,
    })
}

/// Runs a command as if it was typed, shown as it comes; returns what was wrong with it.
async fn typed(command: &str, step: &Step, environment: &[(OsString, OsString)]) -> Result<Option<String>, CliError> {
    let mut child = tokio::process::Command::new("timeout")
        .args(["-k", "2", &step.seconds.to_string(), "bash", "-c", command])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| CliError::failed(format!("bash: {error}")))?;
    let mut seen = Vec::new();
    let reading = async {
        let Some(stdout) = child.stdout.take() else { return };
        let mut lines = BufReader::new(stdout.take(MOST_BYTES as u64));
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
            render::print(&String::from_utf8_lossy(&line));
            seen.append(&mut line);
        }
    };
    let within = Duration::from_secs(u64::from(step.seconds) + 10);
    let late = tokio::time::timeout(within, reading).await.is_err();
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    let code = ended.ok().and_then(Result::ok).and_then(|status| status.code());
    let shown = String::from_utf8_lossy(&seen);
    if !shown.is_empty() && !shown.ends_with('\n') {
        render::print_line("");
    }
    Ok(match code {
        _ if late => Some(format!("it did not end within {} s", step.seconds)),
        Some(124) => Some(format!("it did not end within {} s", step.seconds)),
        Some(0) if shown.contains(&step.shows) => None,
        Some(0) => Some(format!("{:?} is not in what it printed", step.shows)),
        Some(code) => Some(format!("it exited {code}")),
        None => Some("it was ended".to_owned()),
    })
}
