//! `ktcw-vm drill run`: one drill, some repetitions or the whole catalogue, each saved and shown.
//! Reads aloud: drills → cluster and lock → heal what is open → run → judge → report → exit code.
//! It decides only what to say, and the order: a failed drill does not end the others, a cluster that is not well does.

use super::bench::{Bench, explain};
use super::choose::{drills, each_adjusted};
use super::watch::Watched;
use crate::cli::args::{DrillRun, Format, Global};
use crate::cli::error::CliError;
use crate::cli::session::{self, Session};
use crate::cli::{exit, lab, render, signals};
use crate::drill::catalogue::Drill;
use crate::drill::clock::human;
use crate::drill::judge::Result as Came;
use crate::drill::report::{Fitted, LONGEST, Ran, Report, Runs, SERIES_FORM, Series, fitted, hint, text};
use crate::drill::run::{self, Options, RunError};
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

pub async fn run(global: &Global, args: &DrillRun) -> Result<u8, CliError> {
    let chosen = each_adjusted(drills(&args.drill)?, &args.gates, args.target.as_deref())?;
    // Two who break things would be taken for each other, and what heals a drill would solve the lab.
    let no_lab = |session: &Session| lab::none_open(&session.dir);
    let (session, lock) = Session::open(global)?.lock(&format!("drill run {}", args.drill), no_lab)?;
    let host = session::connect_to(global, &session.dir)?;
    let bench = Bench::new(session, &lock, host, "drill run")?;
    bench.heal_what_is_open().await?;
    bench.not_at_rest().await?;

    let cancel = CancellationToken::new();
    let (mut interrupted, token) = (signals::interrupted(), cancel.clone());
    tokio::spawn(async move {
        if interrupted.wait_for(|yes| *yes).await.is_ok() {
            token.cancel();
        }
        // Whoever drops the receiver gives Ctrl-C back its old meaning: the process's end.
        std::future::pending::<()>().await;
    });

    let mut all = Vec::new();
    let ended = every(global, args, &bench, &chosen, &cancel, &mut all).await;
    // Whatever ended the series, what was measured until then is told.
    if !alone(args, &chosen) && !all.is_empty() {
        summary(global, &chosen, &all, ended.as_ref().err())?;
    }
    ended?;
    Ok(code(&all))
}

fn alone(args: &DrillRun, chosen: &[Drill]) -> bool {
    chosen.len() == 1 && args.repeat == 1
}

/// All runs in their order; the error says why there are fewer.
async fn every(
    global: &Global,
    args: &DrillRun,
    bench: &Bench,
    chosen: &[Drill],
    cancel: &CancellationToken,
    all: &mut Vec<Ran>,
) -> Result<(), CliError> {
    let mut seed = args.seed.unwrap_or_else(|| Timestamp::now().as_millisecond().unsigned_abs() % 1_000_000);
    for drill in chosen {
        for _ in 0..args.repeat {
            if !all.is_empty() {
                tokio::select! {
                    settled = bench.settle() => settled?,
                    () = cancel.cancelled() => return Err(CliError::new(exit::INTERRUPTED, "interrupted between two drills")),
                }
            }
            let ended = once(global, bench, drill, seed, cancel).await;
            bench.forget_snapshot_unless_needed()?;
            seed = seed.wrapping_add(1);
            match ended {
                Ok(report) => all.push(judged(global, args, bench, report, alone(args, chosen))?),
                Err(RunError::NoTarget(why)) if chosen.len() > 1 => {
                    all.push(Ran::NotHere { drill: drill.name.clone(), not_here: why.to_string() });
                    break;
                }
                Err(RunError::NotHealed { why, record }) => {
                    if let Some(record) = record {
                        all.push(judged(global, args, bench, Report::new(*record), alone(args, chosen))?);
                    }
                    return Err(explain(&bench.plan, RunError::NotHealed { why, record: None }));
                }
                Err(error) => return Err(explain(&bench.plan, error)),
            }
        }
    }
    Ok(())
}

/// A failure weighs most: it is about the cluster. An invalid run says nothing about it, and neither do drills that could not be
/// run at all.
fn code(all: &[Ran]) -> u8 {
    let results = || {
        all.iter().filter_map(|ran| match ran {
            Ran::Judged { result, .. } => Some(*result),
            Ran::NotHere { .. } => None,
        })
    };
    if results().any(|result| result == Came::Fail) {
        exit::CHECK_FAILED
    } else if results().any(|result| result == Came::Invalid) || results().next().is_none() {
        exit::INVALID
    } else {
        exit::OK
    }
}

async fn once(global: &Global, bench: &Bench, drill: &Drill, seed: u64, cancel: &CancellationToken) -> Result<Report, RunError> {
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
    let log = Watched { log: &bench.log, dir: &bench.dir, connect: global.connect.as_deref(), child: Mutex::default() };
    let ended = run::run(drill, &bench.site_now(), &bench.machines, &log, &options).await;
    // What is still in force, or is still in the journal, is left to the watch: it hears nothing, and heals when we are gone.
    if over(&ended) {
        log.dismiss();
    }
    Ok(Report::new(ended?))
}

/// Whether a run has left nothing to be healed.
fn over<T>(ended: &Result<T, RunError>) -> bool {
    !matches!(ended, Err(RunError::NotHealed { .. } | RunError::Log(_)))
}

fn judged(global: &Global, args: &DrillRun, bench: &Bench, report: Report, alone: bool) -> Result<Ran, CliError> {
    let Fitted { report, json, left_out } = fitted(report, LONGEST).map_err(CliError::failed)?;
    if let Some(left_out) = left_out {
        render::status(&left_out);
    }
    let path = bench.dir.save_report(&format!("{}.json", report.record.run), json.as_bytes())?;
    match (global.format, alone) {
        (Format::Json, true) => render::print_line(&json),
        (Format::Json, false) => (),
        (Format::Text, _) => {
            render::print(&format!("\n{}", text(&report, args.checks)));
            render::print_line(&format!("  report    ktcw-vm drill report {} -c {}", report.record.run, bench.plan.cluster));
            let hint = hint(&report, &path.display().to_string()).map_or_else(String::new, |hint| format!("hint: {hint}\n"));
            render::print_line(&hint);
        }
    }
    let Report { judgement, record, .. } = report;
    Ok(Ran::Judged {
        drill: record.drill.name,
        run: record.run,
        seed: record.seed,
        result: judgement.result,
        reasons: judgement.reasons,
        figures: Box::new(judgement.figures),
        report: path.display().to_string(),
    })
}

fn summary(global: &Global, chosen: &[Drill], all: &[Ran], ended: Option<&CliError>) -> Result<(), CliError> {
    let series = |name: &str| {
        let own = all.iter().filter_map(|ran| match ran {
            Ran::Judged { drill, result, figures, .. } if drill == name => Some((*result, &**figures)),
            _ => None,
        });
        Series::of_figures(name, &own.collect::<Vec<_>>())
    };
    let series: Vec<Series> = chosen.iter().map(|drill| series(&drill.name)).collect();
    if global.format == Format::Json {
        let ended = ended.map(|error| error.message.clone());
        let runs = Runs { form: SERIES_FORM.to_owned(), runs: all.to_vec(), series, ended };
        render::print_line(&serde_json::to_string_pretty(&runs).map_err(CliError::failed)?);
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
            Ran::Judged { drill, result, reasons, figures, .. } => {
                out.push_str(&format!(
                    "  {drill:24} {:9} {:>10} {:>11} {:>11} {:>5}\n",
                    word(*result),
                    human(figures.longest_write_gap.length()),
                    us(figures.time_to_new_leader_us),
                    us(figures.time_to_full_membership_us),
                    figures.lost_acknowledged_writes.map_or_else(|| "?".to_owned(), |lost| lost.to_string()),
                ));
                reasons.iter().for_each(|reason| out.push_str(&format!("      {reason}\n")));
            }
            Ran::NotHere { drill, not_here } => out.push_str(&format!("  {drill:24} not here: {not_here}\n")),
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
    use crate::drill::injector::FaultLogError;
    use crate::drill::judge::judge;
    use crate::drill::report::series_schema;
    use crate::drill::sample::leader_kill;

    fn ran(result: Came) -> Ran {
        let judgement = judge(&leader_kill());
        Ran::Judged {
            drill: "leader-kill".to_owned(),
            run: "leader-kill-1".to_owned(),
            seed: 7,
            result,
            reasons: vec![],
            figures: Box::new(judgement.figures),
            report: "/reports/leader-kill-1.json".to_owned(),
        }
    }

    fn not_here() -> Ran {
        Ran::NotHere { drill: "kubelet-stop".to_owned(), not_here: "it needs 1 workers".to_owned() }
    }

    #[test]
    fn a_failure_weighs_more_than_an_invalid_run_and_nothing_at_all_is_no_success() {
        let of = |results: &[Came]| code(&results.iter().copied().map(ran).collect::<Vec<_>>());
        assert_eq!(of(&[Came::Pass, Came::Pass]), exit::OK);
        assert_eq!(of(&[Came::Pass, Came::Invalid]), exit::INVALID);
        assert_eq!(of(&[Came::Invalid, Came::Fail, Came::Pass]), exit::CHECK_FAILED);
        assert_eq!(of(&[]), exit::INVALID);
        assert_eq!(code(&[not_here()]), exit::INVALID);
        assert_eq!(code(&[not_here(), ran(Came::Pass)]), exit::OK);
    }

    /// The watch is sent away when nothing is left to do, and else sees the run's end.
    #[test]
    fn a_fault_that_was_not_healed_is_not_over() {
        let not_healed = RunError::NotHealed { why: "controller-0 does not answer".to_owned(), record: None };
        let unwritten = FaultLogError { path: "journal.jsonl".to_owned(), reason: "no space left".to_owned() };
        assert!(!over::<()>(&Err(not_healed)));
        assert!(!over::<()>(&Err(RunError::Log(unwritten))));
        assert!(over::<()>(&Err(RunError::Interrupted)));
        assert!(over(&Ok(())));
    }

    #[test]
    fn a_series_is_what_its_schema_says_and_reads_back() {
        let figures = judge(&leader_kill()).figures;
        let runs = Runs {
            form: SERIES_FORM.to_owned(),
            runs: vec![ran(Came::Pass), not_here()],
            series: vec![Series::of_figures("leader-kill", &[(Came::Pass, &figures)])],
            ended: Some("interrupted between two drills".to_owned()),
        };
        let value = serde_json::to_value(&runs).expect("prints");
        let schema = series_schema().to_value();
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(serde_json::from_value::<Runs>(value.clone()).expect("reads"), runs);
        // What is needed to run one of them again as it was.
        assert_eq!(value["runs"][0]["seed"], 7);
        let mut broken = value;
        broken["runs"][0]["result"] = "green".into();
        assert!(!validator.is_valid(&broken));
    }
}
