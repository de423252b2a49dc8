//! `ktcw-vm drill run`: one drill, some repetitions or the whole catalogue, each saved and shown.
//! Reads aloud: drills → cluster and lock → heal what is open → run → judge → report → exit code.
//! It decides only what to say, and the order: a failed drill does not end the others, a cluster that is not well does.

use super::bench::{Bench, explain};
use super::choose::{adjusted, drills};
use crate::cli::args::{DrillRun, Format, Global};
use crate::cli::error::CliError;
use crate::cli::session::{self, Session};
use crate::cli::{exit, render, signals};
use crate::drill::catalogue::Drill;
use crate::drill::clock::human;
use crate::drill::judge::{Judgement, Result as Came};
use crate::drill::report::{Report, Series, text};
use crate::drill::run::{self, Options, RunError};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// One run that came to a verdict, or the reason why it cannot be run on this cluster.
enum Ran {
    Judged { drill: String, run: String, judgement: Box<Judgement>, path: PathBuf },
    NotHere { drill: String, why: String },
}

pub async fn run(global: &Global, args: &DrillRun) -> Result<u8, CliError> {
    let chosen: Result<Vec<Drill>, CliError> =
        drills(&args.drill)?.into_iter().map(|drill| adjusted(drill, &args.gates, args.target.as_deref())).collect();
    let chosen = chosen?;
    let session = Session::open(global)?;
    let lock = session.dir.lock(&format!("drill run {}", args.drill))?;
    let host = session::connect_to(global, &session.dir)?;
    let bench = Bench::new(session, &lock, host, "drill run")?;
    bench.heal_what_is_open().await?;

    let cancel = CancellationToken::new();
    let (mut interrupted, token) = (signals::interrupted(), cancel.clone());
    tokio::spawn(async move {
        if interrupted.wait_for(|yes| *yes).await.is_ok() {
            token.cancel();
        }
        // Whoever drops the receiver gives Ctrl-C back its old meaning: the process's end.
        std::future::pending::<()>().await;
    });

    let alone = chosen.len() == 1 && args.repeat == 1;
    let mut seed = args.seed.unwrap_or_else(|| Timestamp::now().as_millisecond().unsigned_abs() % 1_000_000);
    let mut all = Vec::new();
    for drill in &chosen {
        for _ in 0..args.repeat {
            if !all.is_empty() {
                tokio::select! {
                    settled = bench.settle() => settled?,
                    () = cancel.cancelled() => return Err(CliError::new(exit::INTERRUPTED, "interrupted between two drills")),
                }
            }
            let ran = match once(&bench, drill, seed, &cancel).await {
                Err(RunError::NoTarget(why)) if chosen.len() > 1 => {
                    Ran::NotHere { drill: drill.name.clone(), why: why.to_string() }
                }
                Err(error) => return Err(explain(&bench.plan, error)),
                Ok(report) => judged(global, args, &bench, report, alone)?,
            };
            seed = seed.wrapping_add(1);
            let not_here = matches!(ran, Ran::NotHere { .. });
            all.push(ran);
            if not_here {
                break;
            }
        }
    }
    if !alone {
        summary(global, &chosen, &all)?;
    }
    let results = || {
        all.iter().filter_map(|ran| match ran {
            Ran::Judged { judgement, .. } => Some(judgement.result),
            Ran::NotHere { .. } => None,
        })
    };
    Ok(code(results()))
}

/// A failure weighs most: it is about the cluster. An invalid run says nothing about it.
fn code(mut results: impl Iterator<Item = Came> + Clone) -> u8 {
    if results.clone().any(|result| result == Came::Fail) {
        exit::CHECK_FAILED
    } else if results.any(|result| result == Came::Invalid) {
        exit::INVALID
    } else {
        exit::OK
    }
}

async fn once(bench: &Bench, drill: &Drill, seed: u64, cancel: &CancellationToken) -> Result<Report, RunError> {
    let started = Timestamp::now();
    let options = Options {
        run: format!("{}-{}", drill.name, started.strftime("%Y%m%d-%H%M%S")),
        seed,
        started,
        directory: bench.dir.path().to_owned(),
        cancel: cancel.clone(),
        kube: Some(bench.kube.clone()),
        progress: Arc::new(|text| render::status(&format!("  · {text}"))),
    };
    let record = run::run(drill, &bench.site, &bench.machines, &bench.log, &options).await;
    if drill.load.api
        && let Err(why) = bench.kube.forget().await
    {
        render::status(&format!("  the ConfigMap default/ktcw-drill-probe was left behind: {why}"));
    }
    Ok(Report::new(record?))
}

fn judged(global: &Global, args: &DrillRun, bench: &Bench, report: Report, alone: bool) -> Result<Ran, CliError> {
    let json = report.to_json().map_err(CliError::failed)?;
    let path = bench.dir.save_report(&format!("{}.json", report.record.run), json.as_bytes())?;
    match (global.format, alone) {
        (Format::Json, true) => render::print_line(&json),
        (Format::Json, false) => (),
        (Format::Text, _) => {
            render::print(&format!("\n{}", text(&report, args.checks)));
            render::print_line(&format!("  report    ktcw-vm drill report {} -c {}\n", report.record.run, bench.plan.cluster));
        }
    }
    bench.forget_snapshot()?;
    let Report { judgement, record, .. } = report;
    Ok(Ran::Judged { drill: record.drill.name, run: record.run, judgement: Box::new(judgement), path })
}

fn summary(global: &Global, chosen: &[Drill], all: &[Ran]) -> Result<(), CliError> {
    let of = |name: &str| -> Vec<Judgement> {
        let own = all.iter().filter_map(|ran| match ran {
            Ran::Judged { drill, judgement, .. } if drill == name => Some((**judgement).clone()),
            _ => None,
        });
        own.collect()
    };
    let series: Vec<Series> = chosen.iter().map(|drill| Series::of(&drill.name, &of(&drill.name))).collect();
    if global.format == Format::Json {
        let runs = all.iter().map(|ran| match ran {
            Ran::Judged { drill, run, judgement, path } => serde_json::json!({
                "drill": drill, "run": run, "result": judgement.result, "reasons": judgement.reasons,
                "figures": judgement.figures, "report": path,
            }),
            Ran::NotHere { drill, why } => serde_json::json!({ "drill": drill, "not_here": why }),
        });
        let value = serde_json::json!({ "form": "ktcw-vm/drill-series/1", "runs": runs.collect::<Vec<_>>(), "series": series });
        render::print_line(&serde_json::to_string_pretty(&value).map_err(CliError::failed)?);
        return Ok(());
    }
    if chosen.len() > 1 {
        render::print(&table(all));
    } else {
        series.iter().for_each(|series| render::print(&series.to_string()));
    }
    Ok(())
}

/// A line a run: verdict and figures, or why there is none.
fn table(all: &[Ran]) -> String {
    let mut out =
        format!("  {:24} {:9} {:>10} {:>11} {:>11} {:>5}\n", "", "verdict", "write gap", "new leader", "all back", "lost");
    let us = |us: Option<u64>| us.map_or_else(|| "–".to_owned(), |us| human(std::time::Duration::from_micros(us)));
    for ran in all {
        match ran {
            Ran::Judged { drill, judgement, .. } => {
                let figures = &judgement.figures;
                out.push_str(&format!(
                    "  {drill:24} {:9} {:>10} {:>11} {:>11} {:>5}\n",
                    word(judgement.result),
                    human(figures.longest_write_gap.length()),
                    us(figures.time_to_new_leader_us),
                    us(figures.time_to_full_membership_us),
                    figures.lost_acknowledged_writes.map_or_else(|| "?".to_owned(), |lost| lost.to_string()),
                ));
                judgement.reasons.iter().for_each(|reason| out.push_str(&format!("      {reason}\n")));
            }
            Ran::NotHere { drill, why } => out.push_str(&format!("  {drill:24} not here: {why}\n")),
        }
    }
    out
}

fn word(result: Came) -> &'static str {
    match result {
        Came::Pass => "pass",
        Came::Fail => "FAIL",
        Came::Invalid => "invalid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_weighs_more_than_an_invalid_run() {
        let of = |results: &[Came]| code(results.iter().copied());
        assert_eq!(of(&[Came::Pass, Came::Pass]), exit::OK);
        assert_eq!(of(&[Came::Pass, Came::Invalid]), exit::INVALID);
        assert_eq!(of(&[Came::Invalid, Came::Fail, Came::Pass]), exit::CHECK_FAILED);
        assert_eq!(of(&[]), exit::OK);
    }
}
