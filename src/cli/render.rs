//! The only place that prints: standard output for results, standard error for what happens meanwhile.
//! Every verb calls it; a closed pipe is not an error.
//! It also asks yes-or-no questions, of a terminal only.

use super::error::CliError;
use crate::apply::Timing;
use crate::event::Stage;
use std::io::{IsTerminal, Write};

pub fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

pub fn print_line(text: &str) {
    print(&format!("{text}\n"));
}

pub fn status(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

pub fn error(error: &CliError) {
    let _ = writeln!(anstream::stderr().lock(), "{}", error.text());
}

/// An error and its causes in one line, none said twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

/// Asks on the terminal. Without one the answer must have been given with --yes.
pub fn confirm(question: &str) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage(format!("{question} (standard input is not a terminal)")).hint("--yes answers yes"));
    }
    let _ = write!(anstream::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(CliError::failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Where the time of an `up` went: a line a stage, the steps that took longest below it.
pub fn timings(timings: &[Timing]) -> String {
    let mut text = String::from("\n  began    took  stage / node / step\n");
    for stage in Stage::ALL {
        let mut own: Vec<&Timing> = timings.iter().filter(|timing| timing.stage == stage).collect();
        let (Some(first), Some(end)) = (own.iter().map(|t| t.began).min(), own.iter().map(|t| t.began + t.took).max()) else {
            continue;
        };
        own.sort_by_key(|timing| timing.began);
        text.push_str(&format!("{:>6.1}s {:>6.1}s  {stage}\n", first.as_secs_f64(), (end - first).as_secs_f64()));
        for timing in own {
            text.push_str(&format!(
                "{:>6.1}s {:>6.1}s    {}\n",
                timing.began.as_secs_f64(),
                timing.took.as_secs_f64(),
                timing.step
            ));
        }
    }
    text
}
