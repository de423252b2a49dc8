//! What others say (nodes, servers, logs), made fit to be shown on a terminal and kept in a record.
//! Whoever takes a guest's or a server's words into a message, an event or a file passes them through here.
//! It knows nothing of who said it and decides nothing by it: whoever looks for a word in an answer looks in the answer itself.

/// What came from a node goes on one line, without control characters, and not without end: of a long one both ends are
/// kept, because causes come last.
pub fn one_line(text: &str) -> String {
    const HEAD: usize = 140;
    const TAIL: usize = 180;
    let clean = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean: Vec<char> = clean.chars().filter(|c| !c.is_control()).collect();
    if clean.len() <= HEAD + TAIL {
        return clean.into_iter().collect();
    }
    clean[..HEAD].iter().chain(&[' ', '…', ' ']).chain(&clean[clean.len() - TAIL..]).collect()
}

/// Most bytes of what went wrong that are told and kept: a page of it, whatever a node has made of its error.
const PAGE: usize = 2 << 10;

/// An error's words with the lines they have, but no other control character, and of more than a page both ends.
pub fn bounded(text: &str) -> String {
    const GAP: &str = "\n…\n";
    let clean: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    if clean.len() <= PAGE {
        return clean;
    }
    let half = (PAGE - GAP.len()) / 2;
    let (head, tail) = (clean.floor_char_boundary(half), clean.ceil_char_boundary(clean.len() - half));
    [&clean[..head], GAP, &clean[tail..]].concat()
}

/// A line of a log, whole, with a sign in the place of each control character but tabs: a terminal should not obey it.
pub fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_cannot_break_a_line_or_a_terminal() {
        assert_eq!(one_line("a\r\n\tb \u{1b}[31mc"), "a b [31mc");
        let long = one_line(&format!("begin {} connection refused", "x".repeat(5000)));
        assert!(long.starts_with("begin x") && long.ends_with("x connection refused") && long.chars().count() < 330, "{long}");
        assert_eq!(one_line(&"\u{1b}".repeat(4 << 20)), "");
        assert_eq!(visible("ready\u{1b}[31m\tnow\u{9b}1m"), "ready\u{fffd}[31m\tnow\u{fffd}1m");
    }

    #[test]
    fn an_error_keeps_its_lines_and_both_ends_of_a_long_one() {
        assert_eq!(bounded("one\n\u{1b}[2Jtwo\r\n"), "one\n[2Jtwo\n");
        // Characters of one, two and three bytes: wherever the cuts fall, none is cut in half.
        for filler in ["x", "ä", "…", "\u{1b}"] {
            let text = bounded(&format!("begin {}y refused", filler.repeat(4 << 20)));
            assert!(text.len() <= PAGE && text.starts_with("begin ") && text.ends_with("y refused"), "{text}");
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
    }
}
