//! The name that somebody meant who mistyped one: of those there are, the one that is most alike.
//! `spec`, `drill`, `snapshot` and `cli` ask it where they refuse a name.
//! Nothing is taken for what was meant: a suggestion is said, and the name is refused all the same.

/// Alike enough to be said. Clap draws its line at 0.7, where "leader-crash" would be "leader-pause".
const ALIKE: f64 = 0.88;

/// The known name that is most like `word`; `None`: no one is near it.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = known.into_iter().map(|name| (strsim::jaro(word, name), name)).filter(|(alike, _)| *alike >= ALIKE);
    alike.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
}

/// The same as the end of a sentence; empty where no one is near.
pub fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_seen_and_another_word_is_not_taken_for_one() {
        let known = ["leader-kill", "leader-pause", "leader-stop", "nospace", "corrupt-member"];
        for (word, name) in [
            ("leaderkill", Some("leader-kill")),
            ("lader-kill", Some("leader-kill")),
            ("nospce", Some("nospace")),
            ("corrupt-membr", Some("corrupt-member")),
            ("leader-crash", None),
            ("leader", None),
            ("nothing", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), name, "{word}");
        }
        assert_eq!(meant("nospce", known), "; did you mean nospace?");
        assert_eq!(meant("nothing", known) + &meant("nospce", []), "");
    }
}
