//! What a failed verb says: the chain of causes once, what was left behind, the next command to type.
//! Every verb returns it; `main` prints it and exits with its code.
//! It holds text only.

use super::exit;

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
