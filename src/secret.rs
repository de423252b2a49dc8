//! Text that must not be seen: keys, kubeconfigs, anything that carries one.
//! `pki` makes it, `store` writes it 0600, `apply` hands it to user-data; all others pass it on unopened.
//! It deliberately has no `Display` of its content, no `Serialize` and no comparison but with itself.

#[cfg(test)]
pub(crate) mod shapes;

use std::fmt;

/// A secret text. `Debug` and `Display` print `<redacted>`; the content is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }
    /// The content. Say it only where it is written to its reader.
    pub fn expose(&self) -> &str {
        &self.0
    }
    /// Length of the content in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // `black_box` keeps the compiler from dropping a write to memory that is about to be freed.
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        bytes.fill(0);
        std::hint::black_box(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_shows_nothing_of_the_content() {
        let secret = Secret::new("hunter2");
        let printed = format!("{secret} {secret:?} {:?} {secret:>12}", Some(&secret));
        assert!(!printed.contains("hunter"), "{printed}");
        assert!(printed.contains("<redacted>"));
        assert_eq!((secret.expose(), secret.len()), ("hunter2", 7));
    }
}
