//! The only place that prints: standard output for results, standard error for what happens meanwhile.
//! Every verb calls it; a closed pipe is not an error.
//! It also asks yes-or-no questions, of a terminal only.

use super::error::CliError;
use std::io::{IsTerminal, Write};

pub fn print(text: &str) {
    let _ = printed(text);
}

/// For what goes on for ever: whether anybody still reads it.
pub fn printed(text: &str) -> bool {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
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
