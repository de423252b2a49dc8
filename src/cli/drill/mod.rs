//! `ktcw-vm drill`: list, run, heal, report, and the watch that `run` sets over itself.
//! A file a word; what they share, a cluster made ready to be drilled, is `bench`.
//! Verdicts are the judge's: here they become exit codes and text.

pub mod bench;
mod choose;
mod list;
mod report;
mod run;
mod watch;

use super::args::{DrillWhat, Format, Global};
use super::error::CliError;
use super::session::Session;
use super::{exit, render, session};
use bench::Bench;

pub async fn run(global: &Global, what: &DrillWhat) -> Result<u8, CliError> {
    match what {
        DrillWhat::List(args) => list::list(global, args),
        DrillWhat::Run(args) => run::run(global, args).await,
        DrillWhat::Heal => heal(global).await,
        DrillWhat::Report(args) => report::report(global, args),
        DrillWhat::Watch(args) => watch::watch(global, args).await,
    }
}

async fn heal(global: &Global) -> Result<u8, CliError> {
    // It heals what it sees, and would see what is to be solved.
    let (session, lock) = Session::open(global)?.lock("drill heal", bench::may_be_drilled)?;
    let host = session::connect_to(global, &session.dir)?;
    let bench = Bench::new(session, &lock, host, "drill heal")?;
    bench.not_at_rest().await?;
    let done = bench.heal().await?;
    if global.format == Format::Json {
        render::print_line(&serde_json::json!({ "healed": done }).to_string());
        return Ok(exit::OK);
    }
    for what in &done {
        render::print_line(&format!("healed: {what}"));
    }
    if done.is_empty() {
        render::print_line("nothing to heal: the journal has no open fault, and none was seen");
    }
    Ok(exit::OK)
}
