//! From what checks said to points: each machine that passes gives its part, and what could not be asked gives none.
//! `lab check` prints what comes out; the lab is done when every check has passed everywhere.
//! Pure.

use super::catalogue::{Check, Lab};
use crate::event::Verdict;
use crate::spec::NodeName;
use serde::Serialize;

/// One answer to one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// `None`: this computer.
    pub node: Option<NodeName>,
    pub verdict: Verdict,
    /// The end of what it said, on one line.
    pub evidence: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Graded {
    pub what: String,
    pub got: u16,
    pub of: u16,
    /// It may hold before anything is done.
    pub stays: bool,
    pub outcomes: Vec<Outcome>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Score {
    pub got: u32,
    pub of: u32,
    pub done: bool,
    pub checks: Vec<Graded>,
}

/// What a script's end means: it must exit 0 and, where the check says so, print what is expected.
pub fn judge(check: &Check, exit_ok: bool, stdout: &str, stderr: &str) -> (Verdict, String) {
    let said = stdout.trim();
    let wanted = check.prints.as_deref().map(str::trim);
    match (exit_ok, wanted) {
        (true, None) => (Verdict::Pass, one_line(said)),
        (true, Some(wanted)) if wanted == said => (Verdict::Pass, one_line(said)),
        (true, Some(wanted)) => (Verdict::Fail, one_line(&format!("it says {said:?} and not {wanted:?}"))),
        (false, _) => {
            let said = [said, stderr.trim()].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n");
            (Verdict::Fail, if said.is_empty() { "it says nothing".to_owned() } else { one_line(&said) })
        }
    }
}

/// The last three lines, on one, at most 160 characters of it.
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" / ");
    let clean: String = joined.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= 160 { clean } else { clean.chars().take(159).chain(['…']).collect() }
}

/// `outcomes`: of each check in its order. A check that was asked nowhere has not passed.
pub fn score(lab: &Lab, outcomes: Vec<Vec<Outcome>>) -> Score {
    let mut outcomes = outcomes.into_iter();
    let checks: Vec<Graded> = lab
        .checks
        .iter()
        .map(|check| {
            let outcomes = outcomes.next().unwrap_or_default();
            let passed = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Pass).count();
            let got = (usize::from(check.points) * passed).checked_div(outcomes.len()).unwrap_or(0);
            let got = u16::try_from(got).unwrap_or(check.points);
            Graded { what: check.what.clone(), got, of: check.points, stays: check.stays, outcomes }
        })
        .collect();
    let passed = |graded: &Graded| !graded.outcomes.is_empty() && graded.outcomes.iter().all(|one| one.verdict == Verdict::Pass);
    Score {
        got: checks.iter().map(|graded| u32::from(graded.got)).sum(),
        of: checks.iter().map(|graded| u32::from(graded.of)).sum(),
        done: !checks.is_empty() && checks.iter().all(passed),
        checks,
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::labs;
    use super::*;

    fn lab() -> Lab {
        let mut lab = labs(None).expect("built in").swap_remove(0);
        let check = |points| Check {
            what: "x".to_owned(),
            points,
            on: super::super::On::Hit,
            run: "true".to_owned(),
            prints: None,
            stays: false,
            seconds: 5,
        };
        lab.checks = vec![check(4), check(3)];
        lab
    }

    fn outcomes(verdicts: &[Verdict]) -> Vec<Outcome> {
        let one = |verdict: &Verdict| Outcome { node: None, verdict: *verdict, evidence: String::new() };
        verdicts.iter().map(one).collect()
    }

    #[test]
    fn each_machine_gives_its_part_and_all_must_pass() {
        use Verdict::{Fail, Pass, Unknown};
        let of = |first: &[Verdict], second: &[Verdict]| {
            let score = score(&lab(), vec![outcomes(first), outcomes(second)]);
            (score.got, score.of, score.done)
        };
        assert_eq!(of(&[Pass, Pass], &[Pass]), (7, 7, true));
        assert_eq!(of(&[Pass, Fail], &[Pass]), (5, 7, false));
        assert_eq!(of(&[Pass, Unknown, Fail], &[Fail]), (1, 7, false));
        assert_eq!(of(&[Pass, Pass], &[Unknown]), (4, 7, false));
        // Asked of nobody is not passed by everybody.
        assert_eq!(of(&[Pass, Pass], &[]), (4, 7, false));
        assert!(!score(&lab(), vec![]).done);
    }

    #[test]
    fn a_script_must_end_well_and_say_what_is_wanted() {
        let mut check = lab().checks.swap_remove(0);
        assert_eq!(judge(&check, true, " fine\n", ""), (Verdict::Pass, "fine".to_owned()));
        assert_eq!(judge(&check, false, "a\nb\nc\nd\n", "no"), (Verdict::Fail, "c / d / no".to_owned()));
        assert_eq!(judge(&check, false, "", ""), (Verdict::Fail, "it says nothing".to_owned()));
        check.prints = Some("kept".to_owned());
        assert_eq!(judge(&check, true, "kept\n", "").0, Verdict::Pass);
        assert_eq!(judge(&check, true, "", ""), (Verdict::Fail, "it says \"\" and not \"kept\"".to_owned()));
        assert_eq!(judge(&check, false, "kept", "").0, Verdict::Fail);
        check.prints = Some(String::new());
        assert_eq!(judge(&check, true, "\n", "").0, Verdict::Pass);
        assert_eq!(judge(&check, true, "memberID:1 alarm:NOSPACE", "").0, Verdict::Fail);
    }

    #[test]
    fn evidence_is_one_line_that_fits_and_moves_no_cursor() {
        assert_eq!(one_line("\u{1b}[2Ja\n\n b "), " [2Ja / b");
        assert_eq!(one_line(&"x".repeat(500)).chars().count(), 160);
    }
}
