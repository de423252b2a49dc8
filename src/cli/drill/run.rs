//! `ktcw-vm drill run`: one drill, some repetitions or the whole catalogue, each saved and shown.
//! Reads aloud: drills → cluster and lock → heal what is open → run → judge → report → exit code.
//! It decides only what to say, and the order: a failed drill does not end the others, a cluster that is not well does.

use super::bench::{Bench, explain, may_be_drilled};
use super::choose::{drills, each_adjusted};
use super::watch::Watched;
use crate::cli::args::{DrillRun, Format, Global};
use crate::cli::error::CliError;
use crate::cli::session::{self, Session};
use crate::cli::{exit, render, signals};
use crate::drill::catalogue::Drill;
use crate::drill::clock::human;
use crate::drill::judge::Result as Came;
use crate::drill::report::{Fitted, LONGEST, Ran, Report, Runs, SERIES_FORM, Series, fitted, hint, text};
use crate::drill::run::{self, Options, RunError};
use crate::store::ClusterDir;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

pub async fn run(global: &Global, args: &DrillRun) -> Result<u8, CliError> {
    let chosen = each_adjusted(drills(&args.drill)?, &args.gates, args.target.as_deref())?;
    // Two who break things would be taken for each other, and what heals a drill would solve the lab.
    let (session, lock) = Session::open(global)?.lock(&format!("drill run {}", args.drill), may_be_drilled)?;
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
            // What a run has shown is told before anything that fails after it.
            let forgotten = bench.forget_snapshot_unless_needed();
            seed = seed.wrapping_add(1);
            let judged = |report| judged(global, args, &bench.dir, report, alone(args, chosen));
            match ended {
                Ok(report) => all.push(judged(report)),
                Err(RunError::NoTarget(why)) if chosen.len() > 1 => {
                    all.push(Ran::NotHere { drill: drill.name.clone(), not_here: why.to_string() });
                    forgotten?;
                    break;
                }
                Err(RunError::NotHealed { why, record }) => {
                    all.extend(record.map(|record| judged(Report::new(*record))));
                    return Err(explain(&bench.plan, RunError::NotHealed { why, record: None }));
                }
                Err(error) => {
                    forgotten?;
                    return Err(explain(&bench.plan, error));
                }
            }
            forgotten?;
        }
    }
    Ok(())
}

/// A failure weighs most: it is about the cluster. An invalid run says nothing about it, and neither do drills that could not be
/// run at all. That a report was not saved weighs least: what it would have said was told.
fn code(all: &[Ran]) -> u8 {
    let results = || {
        all.iter().filter_map(|ran| match ran {
            Ran::Judged { result, .. } => Some(*result),
            Ran::NotHere { .. } => None,
        })
    };
    let unsaved = |ran: &Ran| matches!(ran, Ran::Judged { report: None, .. });
    if results().any(|result| result == Came::Fail) {
        exit::CHECK_FAILED
    } else if results().any(|result| result == Came::Invalid) || results().next().is_none() {
        exit::INVALID
    } else if all.iter().any(unsaved) {
        exit::FAILED
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

/// Tells what a run has shown, then keeps its report: a full disk takes the file, and not the verdict.
fn judged(global: &Global, args: &DrillRun, dir: &ClusterDir, report: Report, alone: bool) -> Ran {
    if global.format == Format::Text {
        render::print(&format!("\n{}", text(&report, args.checks)));
    }
    let Report { judgement, record, .. } = &report;
    let (drill, run, seed) = (record.drill.name.clone(), record.run.clone(), record.seed);
    let (result, reasons, figures) = (judgement.result, judgement.reasons.clone(), Box::new(judgement.figures.clone()));
    let aloud = |json: &str| {
        if alone && global.format == Format::Json {
            render::print_line(json);
        }
    };
    let report = match kept(dir, report, aloud) {
        Ok((path, hint)) => {
            if global.format == Format::Text {
                render::print_line(&format!("  report    ktcw-vm drill report {run} -c {}", dir.name()));
                render::print_line(&hint.map_or_else(String::new, |hint| format!("hint: {hint}\n")));
            }
            Some(path)
        }
        Err(why) => {
            render::error(&why);
            None
        }
    };
    Ran::Judged { drill, run, seed, result, reasons, figures, report }
}

/// Saves a report; `aloud` hears what will be in the file before it is written. Returns its path, and what to type next.
///
/// # Errors
/// There is no such file now; the message names the run.
fn kept(dir: &ClusterDir, report: Report, aloud: impl FnOnce(&str)) -> Result<(String, Option<String>), CliError> {
    let run = report.record.run.clone();
    let unsaved = |error: CliError| CliError { message: format!("the report of {run} is not saved: {}", error.message), ..error };
    let Fitted { report, json, left_out } = fitted(report, LONGEST).map_err(|error| unsaved(CliError::failed(error)))?;
    if let Some(left_out) = left_out {
        render::status(&left_out);
    }
    aloud(&json);
    let path = dir.save_report(&format!("{run}.json"), json.as_bytes()).map_err(|error| unsaved(error.into()))?;
    let path = path.display().to_string();
    let hint = hint(&report, &path);
    Ok((path, hint))
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
    use crate::spec::{RawSpec, validate};

    fn ran(result: Came) -> Ran {
        let judgement = judge(&leader_kill());
        Ran::Judged {
            drill: "leader-kill".to_owned(),
            run: "leader-kill-1".to_owned(),
            seed: 7,
            result,
            reasons: vec![],
            figures: Box::new(judgement.figures),
            report: Some("/reports/leader-kill-1.json".to_owned()),
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

    /// A full disk, or what lies where reports should: the verdict is told and counts all the same, and that it is not kept is said.
    #[test]
    fn a_verdict_outlives_a_report_that_cannot_be_saved() {
        let parent = tempfile::tempdir().expect("a directory");
        let spec = validate(&RawSpec::default()).expect("valid");
        let (dir, _lock) = ClusterDir::create(parent.path(), &spec, "up", Timestamp::UNIX_EPOCH).expect("made");
        let global = Global { cluster: None, connect: None, format: Format::Json, verbose: 0, yes: false, state_dir: None };
        let drill = "leader-kill".to_owned();
        let args = DrillRun { drill, repeat: 2, seed: None, gates: vec![], target: None, checks: false };
        let judged = |record| judged(&global, &args, &dir, Report::new(record), false);
        let failed = || {
            let mut record = leader_kill();
            record.drill.expect.full_membership = "100ms".parse().ok();
            record
        };
        let said = |ran: &Ran| match ran {
            Ran::Judged { result, report, .. } => (*result, report.is_some()),
            Ran::NotHere { .. } => panic!("it was run"),
        };

        std::fs::remove_dir(dir.reports()).expect("empty");
        std::fs::write(dir.reports(), "").expect("in the way");
        let mut aloud = String::new();
        let why = kept(&dir, Report::new(failed()), |json| aloud.push_str(json)).expect_err("no room").message;
        assert!(why.starts_with("the report of sample is not saved: ") && why.contains("reports"), "{why}");
        assert_eq!(Report::from_json("aloud", &aloud).expect("whole"), Report::new(failed()));
        let (pass, fail) = (judged(leader_kill()), judged(failed()));
        assert_eq!((said(&pass), said(&fail)), ((Came::Pass, false), (Came::Fail, false)));
        assert_eq!(code(&[pass.clone(), fail]), exit::CHECK_FAILED);
        assert_eq!(code(&[pass]), exit::FAILED, "it passed, and that is not kept");

        std::fs::remove_file(dir.reports()).expect("out of the way");
        let fail = judged(failed());
        assert_eq!(said(&fail), (Came::Fail, true));
        assert_eq!(code(&[judged(leader_kill())]), exit::OK);
        assert!(dir.reports().join("sample.json").is_file());
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
