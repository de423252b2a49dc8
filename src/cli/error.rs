//! What a failed verb says: the chain of causes once, what was left behind, the next command to type.
//! Every verb returns it; `main` prints it and exits with its code.
//! It holds text only.

use super::{exit, render};

#[derive(Debug)]
pub struct CliError {
    pub code: u8,
    pub message: String,
    /// What is there now that was not before, in words; empty: nothing.
    pub left: Option<String>,
    /// The next thing to type.
    pub hint: Option<String>,
}

impl CliError {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), left: None, hint: None }
    }
    pub fn failed(message: impl ToString) -> Self {
        Self::new(exit::FAILED, message.to_string())
    }
    /// The same of an error with its causes: that a file could not be written is half of it.
    pub fn because(error: &dyn std::error::Error) -> Self {
        Self::failed(render::chain(error))
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(exit::BUSY, message)
    }
    pub fn host(message: impl ToString) -> Self {
        Self::new(exit::HOST, message.to_string())
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    pub fn left(mut self, left: impl Into<String>) -> Self {
        self.left = Some(left.into());
        self
    }
    /// The last line of `--format json`: an event like those before it.
    pub fn json(&self) -> String {
        let Self { code, message, left, hint } = self;
        serde_json::json!({ "event": "error", "message": message, "left": left, "hint": hint, "exit": code }).to_string()
    }
    /// As it is printed, without colour.
    pub fn text(&self) -> String {
        let mut text = format!("error: {}", self.message);
        if let Some(left) = &self.left {
            text.push_str(&format!("\nleft behind: {left}"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\nhint: {hint}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_reads_the_same_as_a_person() {
        let error = CliError::host("no room").left("nothing").hint("free some");
        assert_eq!(error.text(), "error: no room\nleft behind: nothing\nhint: free some");
        let value: serde_json::Value = serde_json::from_str(&error.json()).expect("one line of JSON");
        let expected = serde_json::json!({
            "event": "error", "message": "no room", "left": "nothing", "hint": "free some", "exit": 69,
        });
        assert_eq!(value, expected);
        let plain: serde_json::Value = serde_json::from_str(&CliError::failed("two\nlines").json()).expect("JSON");
        assert_eq!((&plain["left"], &plain["hint"], &plain["exit"]), (&().into(), &().into(), &1.into()));
        assert!(!CliError::failed("two\nlines").json().contains('\n'));
    }
}
