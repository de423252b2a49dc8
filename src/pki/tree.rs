//! A YAML document as a tree that keeps the order of keys and the text of strings.
//! `kubeconfig` changes other people's files with it; `keyring` reads back its own.
//! It refuses what it could not write back unchanged in meaning, and never quotes the text in an error: it holds keys.

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Null,
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Tree {
    pub fn text(text: impl Into<String>) -> Tree {
        Tree::Text(text.into())
    }
    pub fn map<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
        Tree::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The value of a key, when this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Tree> {
        match self {
            Tree::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Tree::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Reads one document as kubectl would: `yes` without quotes is true (YAML 1.1). Numbers that the two versions of YAML
/// read differently, such as `0123` and `1_000`, are refused.
pub(super) fn read(text: &str) -> Result<Tree, String> {
    let old = parse(text, serde_saphyr::options! { with_snippet: false })?;
    let new = parse(
        text,
        serde_saphyr::options! {
            strict_booleans: true,
            leading_zero_numbers_as_strings: true,
            underscored_numbers_as_strings: true,
            with_snippet: false,
        },
    )?;
    if same_but_for_booleans(&old, &new) { Ok(old) } else { Err(format!("{REFUSED} (a number that needs quotes)")) }
}

const REFUSED: &str = "not YAML that can be written back as it was";

fn parse(text: &str, options: serde_saphyr::Options) -> Result<Tree, String> {
    serde_saphyr::from_str_with_options(text, options).map_err(|error| match error.location() {
        Some(at) => format!("{REFUSED} (line {}, column {})", at.line(), at.column()),
        None => REFUSED.to_owned(),
    })
}

fn same_but_for_booleans(old: &Tree, new: &Tree) -> bool {
    match (old, new) {
        (Tree::List(old), Tree::List(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(a, b)| same_but_for_booleans(a, b))
        }
        (Tree::Map(old), Tree::Map(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|((k, a), (l, b))| k == l && same_but_for_booleans(a, b))
        }
        (Tree::Bool(_), Tree::Text(_)) => true,
        (old, new) => old == new,
    }
}

/// Block style, strings quoted where a YAML 1.1 reader would take them for something else, one line per scalar.
pub(super) fn write(tree: &Tree) -> Result<String, String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(tree, options).map_err(|error| error.to_string())
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tree::Null => serializer.serialize_unit(),
            Tree::Bool(value) => serializer.serialize_bool(*value),
            Tree::Int(value) => serializer.serialize_i64(*value),
            Tree::Text(text) => serializer.serialize_str(text),
            Tree::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Tree::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a whole number, true or false, a list or a map")
    }
    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }
    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Int(value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Tree, E> {
        i64::try_from(value).map(Tree::Int).map_err(|_| E::custom("a number too large to keep"))
    }
    /// `1.10` would be written back as `1.1`: better refused than changed.
    fn visit_f64<E: Error>(self, _: f64) -> Result<Tree, E> {
        Err(E::custom("a fraction, whose digits would not be kept"))
    }
    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::text(text))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_that_look_like_something_else_survive_in_order() {
        let tricky = [
            "yes",
            "no",
            "on",
            "null",
            "~",
            "0123",
            "1_000",
            "12:30:45",
            "2026-11-22",
            "1e3",
            "1.10",
            "0x1f",
            "",
            " x ",
            "a: b",
            "#c",
            "é\u{85}",
        ];
        let tree = Tree::Map(tricky.iter().rev().map(|text| ((*text).to_owned(), Tree::text(*text))).collect());
        let text = write(&tree).expect("written");
        assert_eq!(read(&text).expect("read"), tree, "{text}");
    }

    #[test]
    fn plain_scalars_mean_what_kubectl_takes_them_for() {
        let tree = read("a: yes\nb: '0123'\nc: true\nd: 7\ne:\nf: [x, {g: \"on\", h: off}]\ni: 0x1f\nj: 12:30\n").expect("read");
        let expected = Tree::map([
            ("a", Tree::Bool(true)),
            ("b", Tree::text("0123")),
            ("c", Tree::Bool(true)),
            ("d", Tree::Int(7)),
            ("e", Tree::Null),
            ("f", Tree::List(vec![Tree::text("x"), Tree::map([("g", Tree::text("on")), ("h", Tree::Bool(false))])])),
            ("i", Tree::Int(31)),
            ("j", Tree::text("12:30")),
        ]);
        assert_eq!(tree, expected);
        for plain in
            ["y", "Y", "n", "N", "yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF", "True", "FALSE"]
        {
            let read = |text: &str| read(text).expect("read");
            assert!(matches!(read(&format!("a: {plain}\n")).get("a"), Some(Tree::Bool(_))), "{plain}");
            assert_eq!(read(&format!("a: '{plain}'\n")).get("a"), Some(&Tree::text(plain)));
        }
    }

    #[test]
    fn what_could_not_be_written_back_is_refused_with_its_line_and_without_its_content() {
        for (text, line) in [
            ("a: hunter2\nb: 1.10\n", 2),
            ("a: hunter2\nb: [\n", 2),
            ("a: hunter2\na: x\n", 2),
            ("a: hunter2\nb: 0123\n", 2),
            ("a: hunter2\nb: [1_000]\n", 0),
            ("a: hunter2\n---\nb: x\n", 3),
            ("a: 99999999999999999999999\nb: hunter2", 1),
            ("\thunter2: [", 1),
        ] {
            let error = read(text).expect_err(text);
            assert!(
                error.contains(&format!("line {line}")) || line == 0 && error.ends_with("(a number that needs quotes)"),
                "{text:?}: {error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
