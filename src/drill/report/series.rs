//! Several runs of one drill: how a figure is spread.
//! `drill run --repeat` and the benchmark of leader-kill show it.
//! It is arithmetic on judgements.

use crate::drill::clock::human;
use crate::drill::judge::{Figures, Judgement, Result};
use crate::drill::windows::percentile;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Says which form the value has; it changes when readers would misunderstand.
pub const SERIES_FORM: &str = "ktcw-vm/drill-series/1";

/// Several runs, of one drill or of many: what `drill run all` and `--repeat` print as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Runs {
    pub form: String,
    pub runs: Vec<Ran>,
    pub series: Vec<Series>,
    /// Why there are fewer runs than were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// One run that came to a verdict, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Ran {
    Judged {
        drill: String,
        run: String,
        /// What the targets were drawn with: given again, it draws the same.
        seed: u64,
        result: Result,
        reasons: Vec<String>,
        figures: Box<Figures>,
        /// Path of the whole report; nothing: it could not be saved.
        report: Option<String>,
    },
    NotHere {
        drill: String,
        /// What the cluster lacks for it.
        not_here: String,
    },
}

/// How a length is spread over runs, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    pub runs: usize,
    pub min_us: u64,
    pub median_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(mut values: Vec<Duration>) -> Option<Spread> {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let (min, max) = (*values.iter().min()?, *values.iter().max()?);
        Some(Spread {
            runs: values.len(),
            min_us: us(min),
            median_us: us(percentile(&mut values, 50.0)),
            p90_us: us(percentile(&mut values, 90.0)),
            p99_us: us(percentile(&mut values, 99.0)),
            max_us: us(max),
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |us| human(Duration::from_micros(us));
        write!(
            f,
            "min {}, median {}, 90 % within {}, 99 % within {}, max {}",
            of(self.min_us),
            of(self.median_us),
            of(self.p90_us),
            of(self.p99_us),
            of(self.max_us)
        )
    }
}

/// All runs of one drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Series {
    pub drill: String,
    pub passed: usize,
    pub failed: usize,
    pub invalid: usize,
    pub write_gap: Option<Spread>,
    pub new_leader: Option<Spread>,
    pub full_membership: Option<Spread>,
}

impl Series {
    /// Figures of invalid runs are left out: they measured something else.
    pub fn of(drill: &str, judgements: &[Judgement]) -> Series {
        let brief: Vec<(Result, &Figures)> = judgements.iter().map(|judgement| (judgement.result, &judgement.figures)).collect();
        Series::of_figures(drill, &brief)
    }

    /// The same from what is kept of each run.
    pub fn of_figures(drill: &str, runs: &[(Result, &Figures)]) -> Series {
        let count = |wanted| runs.iter().filter(|(result, _)| *result == wanted).count();
        let valid = || runs.iter().filter(|(result, _)| *result != Result::Invalid).map(|(_, figures)| *figures);
        let us = |us: Option<u64>| us.map(Duration::from_micros);
        Series {
            drill: drill.to_owned(),
            passed: count(Result::Pass),
            failed: count(Result::Fail),
            invalid: count(Result::Invalid),
            write_gap: Spread::of(valid().map(|figures| figures.longest_write_gap.length()).collect()),
            new_leader: Spread::of(valid().filter_map(|figures| us(figures.time_to_new_leader_us)).collect()),
            full_membership: Spread::of(valid().filter_map(|figures| us(figures.time_to_full_membership_us)).collect()),
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} passed, {} failed, {} invalid", self.drill, self.passed, self.failed, self.invalid)?;
        let rows = [
            ("longest write gap", self.write_gap),
            ("time to new leader", self.new_leader),
            ("time to full membership", self.full_membership),
        ];
        for (name, spread) in rows {
            if let Some(spread) = spread {
                writeln!(f, "  {name:24} {spread}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(of: impl IntoIterator<Item = u64>) -> Option<Spread> {
        Spread::of(of.into_iter().map(Duration::from_millis).collect())
    }

    /// A percentile is a value that was seen: the first that so many of a hundred do not exceed.
    #[test]
    fn a_spread_is_made_of_values_that_were_seen() {
        let ms = |ms: u64| ms * 1000;
        let known = |runs, [min, median, p90, p99, max]: [u64; 5]| {
            Some(Spread { runs, min_us: ms(min), median_us: ms(median), p90_us: ms(p90), p99_us: ms(p99), max_us: ms(max) })
        };
        // In no order.
        assert_eq!(spread((1..=100).map(|n| n * 37 % 101)), known(100, [1, 50, 90, 99, 100]));
        assert_eq!(spread((1..=200).rev()), known(200, [1, 100, 180, 198, 200]));
        assert_eq!(spread([900, 1200, 1000, 8000, 1100, 1300, 950, 1050, 1150, 1250]), known(10, [900, 1100, 1300, 8000, 8000]));
        assert_eq!(spread([1800, 1200]), known(2, [1200, 1200, 1800, 1800, 1800]));
        assert_eq!(spread([1200]), known(1, [1200; 5]));
        assert_eq!(spread([]), None);
    }

    #[test]
    fn a_spread_is_told_from_its_least_to_its_most() {
        let told = spread([1200, 1800, 40]).expect("three values").to_string();
        assert_eq!(told, "min 40 ms, median 1.20 s, 90 % within 1.80 s, 99 % within 1.80 s, max 1.80 s");
    }
}
