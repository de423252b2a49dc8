//! Every word of a command line that cannot be taken, said at once: clap stops at the first.
//! `main` calls it where clap has refused a value; the good words of a cluster are then judged by `spec`, with the same message.
//! It knows no flag by name but those of `Global`: what a value may be is asked of the parser that each flag has.

use super::args::{Cli, Global, SpecArgs};
use super::error::CliError;
use crate::spec::ClusterName;
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Parser};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

/// The verbs that are told what a cluster is to be.
const OF_A_CLUSTER: [&str; 3] = ["up", "plan", "doctor"];

/// Why the words were refused, all of them together. `None`: it is not about values, and clap has said all there is to say.
pub fn refused(
    words: &[OsString],
    first: &clap::Error,
    validate: impl Fn(&Global, &SpecArgs) -> Vec<String>,
) -> Option<CliError> {
    if !matches!(first.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let mut strict = Cli::command();
    strict.build();
    let matches = lenient(Cli::command()).try_get_matches_from(words).ok()?;
    let mut verb = Vec::new();
    let (mut problems, mut good, mut seen) = (Vec::new(), vec![OsString::from("ktcw-vm")], BTreeSet::new());
    let rest = Rest::command();
    let mut level = Some((&strict, &matches));
    while let Some((command, matches)) = level {
        let below = matches.subcommand().and_then(|(name, below)| Some((name, command.find_subcommand(name)?, below)));
        for arg in command.get_arguments() {
            // A global flag is on every level, with the value it was given anywhere.
            let inner = arg.is_global_set() && below.is_some();
            if inner || !seen.insert(arg.get_id().to_string()) {
                continue;
            }
            for value in given(matches, arg) {
                match judge(arg, value) {
                    Some(problem) => problems.push(problem),
                    None if rest.get_arguments().any(|known| known.get_id() == arg.get_id()) => good.extend(again(arg, value)),
                    None => {}
                }
            }
        }
        level = below.map(|(name, command, below)| {
            verb.push(name.to_owned());
            (command, below)
        });
    }
    if problems.is_empty() {
        return None;
    }
    let of_a_cluster = verb.first().is_some_and(|verb| OF_A_CLUSTER.contains(&verb.as_str()));
    if of_a_cluster && let Ok(rest) = Rest::try_parse_from(good) {
        problems.extend(validate(&rest.global, &rest.spec));
    } else if let Some(Err(said)) = matches.get_one::<OsString>("cluster").map(|name| ClusterName::parse(&name.to_string_lossy()))
    {
        problems.push(format!("--cluster: {said}"));
    }
    Some(CliError::usage(problems.join("\n       ")).hint(format!("ktcw-vm {} --help; nothing was made", verb.join(" "))))
}

/// What is left of the words for a cluster when the bad ones are taken away.
#[derive(Parser)]
struct Rest {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    spec: SpecArgs,
}

/// The same command with every value taken as it is.
fn lenient(command: Command) -> Command {
    let any = |arg: Arg| if takes_a_value(&arg) { arg.value_parser(ValueParser::os_string()) } else { arg };
    command.mut_args(any).mut_subcommands(lenient)
}

fn takes_a_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// The values of the flag that somebody gave, here or in the environment.
fn given<'a>(matches: &'a ArgMatches, arg: &Arg) -> Vec<&'a OsStr> {
    let id = arg.get_id().as_str();
    let own = takes_a_value(arg)
        && matches!(matches.try_contains_id(id), Ok(true))
        && matches.value_source(id) != Some(ValueSource::DefaultValue);
    if !own {
        return Vec::new();
    }
    matches.try_get_raw(id).ok().flatten().into_iter().flatten().collect()
}

/// The flag with this value once more, in one word.
fn again(arg: &Arg, value: &OsStr) -> Option<OsString> {
    let mut word = OsString::from(format!("--{}=", arg.get_long()?));
    word.push(value);
    Some(word)
}

/// What is wrong with a value, in the words of the flag's own parser.
fn judge(arg: &Arg, value: &OsStr) -> Option<String> {
    let alone = Arg::new("value").long("value").require_equals(true).allow_hyphen_values(true);
    let alone = Command::new("alone").no_binary_name(true).arg(alone.value_parser(arg.get_value_parser().clone()));
    let mut word = OsString::from("--value=");
    word.push(value);
    let error = alone.try_get_matches_from([word]).err()?;
    let name = match arg.get_long() {
        Some(long) => format!("--{long}"),
        None => {
            arg.get_value_names().and_then(|names| names.first()).map_or_else(|| arg.get_id().to_string(), ToString::to_string)
        }
    };
    let shown: String = value.to_string_lossy().chars().take(40).collect();
    let said = match (error.get(ContextKind::ValidValue), std::error::Error::source(&error)) {
        (Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
            format!("{shown:?} is none of the values there are; accepted: {}", valid.join(", "))
        }
        (_, Some(cause)) => cause.to_string(),
        _ => format!("{shown:?} cannot be taken; accepted: some text"),
    };
    Some(format!("{name}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> (Vec<OsString>, clap::Error) {
        let words: Vec<OsString> = [&["ktcw-vm"], words].concat().into_iter().map(OsString::from).collect();
        let error = Cli::try_parse_from(&words).expect_err("refused by clap");
        (words, error)
    }

    fn said(bad: &[&str]) -> Vec<String> {
        let (words, first) = words(bad);
        let validate = |global: &Global, spec: &SpecArgs| {
            let problems = crate::spec::validate(&spec.raw(global.cluster.clone())).err().unwrap_or_default();
            problems.iter().map(ToString::to_string).collect()
        };
        let error = refused(&words, &first, validate).expect("values");
        assert_eq!(error.code, super::super::exit::USAGE);
        assert!(error.message.lines().all(|line| line.contains("accepted")), "{}", error.message);
        error.message.lines().filter_map(|line| Some(line.trim().split_once(": ")?.0.to_owned())).collect()
    }

    #[test]
    fn every_bad_word_of_a_cluster_is_said_whoever_finds_it() {
        let bad = [
            "up",
            "--etcd",
            "three",
            "--workers=99",
            "--cpus",
            "-1",
            "--accel",
            "fast",
            "--isolated=maybe",
            "--subnet",
            "8.8.8.0/24",
            "--format",
            "yaml",
            "-c",
            "Lab/1",
        ];
        let mut flags = said(&bad);
        flags.sort();
        let expected = ["--accel", "--cluster", "--cpus", "--etcd", "--format", "--isolated", "--subnet", "--workers"];
        assert_eq!(flags, expected);
        assert_eq!(said(&["--format", "yaml", "plan", "--etcd", "4"]), ["--format", "--etcd"]);
    }

    #[test]
    fn other_verbs_too() {
        assert_eq!(said(&["node", "add", "--count", "99", "--role", "boss", "-c", "a/b"]), ["--count", "--role", "--cluster"]);
        assert_eq!(said(&["ssh", "node-1", "--format", "yaml"]), ["NODE", "--format"]);
        assert_eq!(said(&["snapshot", "fork", "../one", "--as", "Two"]), ["NAME", "--as"]);
        assert_eq!(said(&["drill", "run", "x", "--repeat", "0", "--seed", "luck"]), ["--repeat", "--seed"]);
    }

    #[test]
    fn what_is_not_about_values_is_left_to_clap() {
        for bad in [&["up", "--nonsense"][..], &["nonsense"], &["ssh"], &["--help"], &["up", "--etcd", "three", "--nonsense"]] {
            let (words, first) = words(bad);
            assert!(refused(&words, &first, |_, _| Vec::new()).is_none(), "{bad:?}");
        }
    }

    /// Whatever flag comes: its parser says what would be accepted, and repeats no more than a beginning of what was given.
    #[test]
    fn every_flag_that_can_refuse_a_value_says_what_it_accepts() {
        fn walk(command: &Command, long: &str, found: &mut usize) {
            for arg in command.get_arguments().filter(|arg| takes_a_value(arg)) {
                for bad in [long, "?", ""] {
                    if let Some(problem) = judge(arg, OsStr::new(bad)) {
                        assert!(problem.contains("accepted: ") && problem.len() < 400, "{}: {problem}", command.get_name());
                        *found += 1;
                    }
                }
            }
            command.get_subcommands().for_each(|below| walk(below, long, found));
        }
        let (mut command, mut found) = (Cli::command(), 0);
        command.build();
        walk(&command, &"?".repeat(300), &mut found);
        assert!(found > 60, "{found}");
    }
}
