//! `ktcw-vm drill report`: a run again as text, JSON or a page, and two beside each other.
//! Reports lie in the cluster's directory under `reports/`; a path to a file works as well, also when the cluster is gone.
//! It reads and shows; it judges nothing anew.

use crate::cli::args::{DrillReport, Format, Global};
use crate::cli::error::CliError;
use crate::cli::session::{cluster_name, parent};
use crate::cli::{exit, render};
use crate::drill::report::{LONGEST, Report, compare, html, schema, series_schema, text};
use crate::store::{ClusterDir, files};
use std::path::{Path, PathBuf};

pub fn report(global: &Global, args: &DrillReport) -> Result<u8, CliError> {
    if args.schema {
        let schema = if args.series { series_schema() } else { schema() };
        render::print_line(&serde_json::to_string_pretty(&schema).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    let dir = || -> Result<ClusterDir, CliError> { Ok(ClusterDir::open(&parent(global)?, &cluster_name(global)?)?) };
    let is_file = |run: &str| Path::new(run).is_file();
    let load = |run: &str| -> Result<Report, CliError> {
        let path = if is_file(run) { PathBuf::from(run) } else { saved(&dir()?.reports(), run)? };
        let what = path.display().to_string();
        let text = crate::given::text(&path, LONGEST).map_err(|error| CliError::failed(format!("{what}: {error}")))?;
        Report::from_json(&what, &text).map_err(CliError::failed)
    };
    match (args.compare, args.runs.as_slice()) {
        (true, _) if global.format == Format::Json => {
            let message = "a comparison is text; --format json shows one run";
            return Err(CliError::usage(message).hint("ktcw-vm drill report RUN --format json, for each"));
        }
        (true, [a, b]) => render::print(&compare(&load(a)?, &load(b)?)),
        (true, _) => return Err(CliError::usage("--compare takes two runs").hint(listed(&dir()?.reports()))),
        (false, []) => show(global, args, &load("last")?, &dir)?,
        (false, [run]) if args.html && is_file(run) => {
            let page = html(&load(run)?).map_err(CliError::failed)?;
            let file = std::fs::canonicalize(run).map_err(|error| CliError::failed(format!("{run}: {error}")))?;
            let path = file.with_extension("html");
            files::write_atomic(&path, page.as_bytes(), files::SECRET).map_err(CliError::failed)?;
            render::print_line(&path.display().to_string());
        }
        (false, [run]) => show(global, args, &load(run)?, &dir)?,
        (false, _) => return Err(CliError::usage("one run is shown; two are compared").hint("--compare A B")),
    }
    Ok(exit::OK)
}

fn show(
    global: &Global,
    args: &DrillReport,
    report: &Report,
    dir: &dyn Fn() -> Result<ClusterDir, CliError>,
) -> Result<(), CliError> {
    if args.html {
        let page = html(report).map_err(CliError::failed)?;
        let path = dir()?.save_report(&format!("{}.html", report.record.run), page.as_bytes())?;
        render::print_line(&path.display().to_string());
    } else if global.format == Format::Json {
        render::print_line(&report.to_json().map_err(CliError::failed)?);
    } else {
        render::print(&text(report, true));
    }
    Ok(())
}

/// Names of saved runs, oldest first.
fn runs(reports: &Path) -> Vec<String> {
    let mut all: Vec<(std::time::SystemTime, String)> = std::fs::read_dir(reports)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?.strip_suffix(".json")?.to_owned();
            Some((entry.metadata().ok()?.modified().ok()?, name))
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, name)| name).collect()
}

/// `last`, a run's name, a drill's, whose last run is meant, or the beginning of a name.
fn saved(reports: &Path, run: &str) -> Result<PathBuf, CliError> {
    let all = runs(reports);
    let found = match run {
        "last" => all.last(),
        _ => {
            let newest = |fits: &dyn Fn(&str) -> bool| all.iter().rev().find(|name| fits(name));
            // `bridge-followers-…` and `bridge-2-…` begin with `bridge` as well, and are other drills'.
            let of_drill = |name: &str| name.strip_prefix(run).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_moment);
            newest(&|name| name == run).or_else(|| newest(&of_drill)).or_else(|| newest(&|name| name.starts_with(run)))
        }
    };
    let found = found.ok_or_else(|| {
        let message = if run == "last" { "no drill has been run here".to_owned() } else { format!("there is no run {run}") };
        CliError::usage(message).hint(listed(reports))
    })?;
    Ok(reports.join(format!("{found}.json")))
}

/// Whether it is what `drill run` puts behind a drill's name: `20260102-030405`.
fn is_moment(text: &str) -> bool {
    let digits = |part: &str, count| part.len() == count && part.chars().all(|c| c.is_ascii_digit());
    text.split_once('-').is_some_and(|(day, time)| digits(day, 8) && digits(time, 6))
}

fn listed(reports: &Path) -> String {
    let mut all = runs(reports);
    let from = all.len().saturating_sub(8);
    let last = all.split_off(from);
    if last.is_empty() { "ktcw-vm drill run leader-kill".to_owned() } else { format!("runs here: {}", last.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_by_name_beginning_and_as_the_last() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(saved(dir.path(), "last").expect_err("none").message.contains("no drill has been run"));
        for (age, name) in [
            (40, "bridge-20260101-000000"),
            (30, "bridge-20260102-000000"),
            (20, "bridge-followers-20260103-000000"),
            // A drill of one's own.
            (15, "bridge-2-20260104-000000"),
            (10, "leader-kill-20260101-000000"),
        ] {
            let file = std::fs::File::create(dir.path().join(format!("{name}.json"))).expect("file");
            let then = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            file.set_modified(then).expect("time");
        }
        std::fs::write(dir.path().join("zzz.html"), "").expect("file");
        let name =
            |run: &str| saved(dir.path(), run).map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned());
        assert_eq!(name("last").expect("one"), "leader-kill-20260101-000000");
        assert_eq!(name("bridge").expect("one"), "bridge-20260102-000000");
        assert_eq!(name("bridge-2").expect("one"), "bridge-2-20260104-000000");
        assert_eq!(name("bridge-f").expect("one"), "bridge-followers-20260103-000000");
        assert_eq!(name("bridge-2026").expect("one"), "bridge-20260102-000000");
        assert_eq!(name("bridge-20260101-000000").expect("one"), "bridge-20260101-000000");
        let error = name("nothing").expect_err("none");
        assert!(error.hint.expect("a hint").contains("leader-kill-20260101-000000"));
    }
}
