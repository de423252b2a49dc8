//! The frame around a probe's output: `@@<token> begin <name>` … `@@<token> end <name> <exit status>`.
//! `observe` parses every answer with it; the token is new for each run, so that no file on a node can imitate a frame.
//! It knows nothing of what is inside a section, only whether the section is whole.

use crate::said::one_line;
use std::collections::BTreeMap;

/// More than this in one section is a flood: the section is not used.
pub const MOST_BYTES: usize = 1 << 20;

/// One command's output and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub body: String,
    pub exit: u32,
}

/// Sections by name. A section that is cut off, doubled or flooded is here as the reason why it is of no use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sections {
    found: BTreeMap<String, Result<Section, String>>,
    /// Why sections that are not here may be missing.
    tail: String,
}

impl Sections {
    /// Reads what came back. `cut`: more came than was kept.
    pub fn parse(output: &[u8], token: &str, cut: bool) -> Self {
        let text = String::from_utf8_lossy(output);
        let mark = format!("@@{token} ");
        let mut all = Self { found: BTreeMap::new(), tail: String::new() };
        let mut open: Option<(String, String)> = None;
        let mut last = None;
        let mut done = false;
        for line in text.split_inclusive('\n') {
            // A frame counts only as a whole line: what is cut off in the middle of one ends nothing.
            let frame = line.strip_suffix('\n').and_then(|line| line.strip_prefix(&mark));
            match (frame.map(|frame| frame.split(' ').collect::<Vec<_>>()).as_deref(), &mut open) {
                (Some(["begin", name]), _) => {
                    if let Some((name, _)) = open.take() {
                        all.put(name, Err("it has no end".to_owned()));
                    }
                    open = Some(((*name).to_owned(), String::new()));
                }
                (Some(["end", name, exit]), Some((opened, body))) if opened == name => {
                    let section = match exit.parse() {
                        _ if body.len() > MOST_BYTES => Err(format!("it is longer than {} KiB", MOST_BYTES >> 10)),
                        Ok(exit) => Ok(Section { body: body.strip_suffix('\n').unwrap_or(body).to_owned(), exit }),
                        Err(_) => Err(format!("its exit status is {exit:?}")),
                    };
                    last = Some((*name).to_owned());
                    all.put((*name).to_owned(), section);
                    open = None;
                }
                (Some(["done"]), None) => done = true,
                (Some(_), _) => {}
                (None, Some((_, body))) if body.len() <= MOST_BYTES => body.push_str(line),
                (None, _) => {}
            }
        }
        if let Some((name, _)) = open {
            all.put(name, Err("the answer stops in the middle of it".to_owned()));
        }
        all.tail = match (done, cut, last) {
            (true, ..) => "the probe did not send it".to_owned(),
            (_, true, _) => "the answer was longer than is kept".to_owned(),
            (_, _, Some(last)) => format!("the answer stops after {last}"),
            (_, _, None) if text.trim().is_empty() => "the answer is empty".to_owned(),
            (_, _, None) => "the answer is not a probe's".to_owned(),
        };
        all
    }

    fn put(&mut self, name: String, section: Result<Section, String>) {
        let twice = self.found.contains_key(&name);
        self.found.insert(name, if twice { Err("it came twice".to_owned()) } else { section });
    }

    /// A whole section, or why there is none.
    pub fn get(&self, name: &str) -> Result<&Section, String> {
        match self.found.get(name) {
            Some(Ok(section)) => Ok(section),
            Some(Err(why)) => Err(format!("no answer to {name}: {why}")),
            None => Err(format!("no answer to {name}: {}", self.tail)),
        }
    }

    /// The body of a section whose command ended with 0; anything else is no answer.
    pub fn ok(&self, name: &str) -> Result<&str, String> {
        let section = self.get(name)?;
        if section.exit == 0 {
            return Ok(&section.body);
        }
        let said = one_line(&section.body);
        Err(format!("{name} ended with {}{}{said}", section.exit, if said.is_empty() { "" } else { ": " }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "@@t begin a\none\ntwo\n\n@@t end a 0\n@@t begin b\n\n@@t end b 3\n@@t done\n";

    fn parse(text: &str) -> Sections {
        Sections::parse(text.as_bytes(), "t", false)
    }

    #[test]
    fn whole_sections_come_back_as_they_were_printed() {
        let all = parse(WHOLE);
        assert_eq!(all.get("a"), Ok(&Section { body: "one\ntwo\n".to_owned(), exit: 0 }));
        assert_eq!(all.get("b"), Ok(&Section { body: String::new(), exit: 3 }));
        assert_eq!(all.ok("b"), Err("b ended with 3".to_owned()));
        assert_eq!(all.get("c"), Err("no answer to c: the probe did not send it".to_owned()));
    }

    #[test]
    fn every_truncation_loses_sections_and_never_changes_one() {
        let whole = parse(WHOLE);
        for end in 0..WHOLE.len() {
            let cut = parse(&WHOLE[..end]);
            for name in ["a", "b"] {
                if let Ok(section) = cut.get(name) {
                    assert_eq!(Ok(section), whole.get(name), "cut at {end}");
                }
            }
            assert!(end > WHOLE.find("end b").expect("there") || cut.get("b").is_err(), "cut at {end}");
        }
    }

    #[test]
    fn garbage_is_no_answer() {
        for (text, why) in [
            ("", "the answer is empty"),
            ("bash: line 1: fork: Cannot allocate memory\n", "the answer is not a probe's"),
            ("@@other begin a\nx\n@@other end a 0\n", "the answer is not a probe's"),
            ("@@t begin a\nx\n@@t end a zero\n", "its exit status is \"zero\""),
            ("@@t begin a\nx\n@@t end b 0\n", "the answer stops in the middle of it"),
            ("@@t begin a\nx\n@@t begin b\n\n@@t end b 0\n", "it has no end"),
            ("@@t begin a\n\n@@t end a 0\n@@t begin a\n\n@@t end a 0\n", "it came twice"),
            ("@@t end a 0\n", "the answer is not a probe's"),
        ] {
            assert_eq!(parse(text).get("a"), Err(format!("no answer to a: {why}")), "{text:?}");
        }
    }

    #[test]
    fn a_flood_costs_its_own_section_only() {
        let flood = "x\n".repeat(MOST_BYTES);
        let all = parse(&format!("@@t begin flood\n{flood}\n@@t end flood 0\n{WHOLE}"));
        assert_eq!(all.get("flood"), Err("no answer to flood: it is longer than 1024 KiB".to_owned()));
        assert!(all.get("a").is_ok() && all.get("b").is_ok());
        let cut = Sections::parse(b"@@t begin a\nxx", "t", true);
        assert!(cut.get("a").is_err());
        assert_eq!(cut.get("b"), Err("no answer to b: the answer was longer than is kept".to_owned()));
    }

    #[test]
    fn bytes_that_are_not_text_do_not_matter() {
        let all = Sections::parse(b"\xff\xfe\x00@@t begin a\n@@t begin a\n\xff\n@@t end a 0\n", "t", false);
        assert_eq!(all.get("a").map(|s| s.body.as_str()), Ok("\u{fffd}"));
    }
}
