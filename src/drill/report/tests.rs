//! What reports show, and that what they show is safe to open.

use super::*;
use crate::drill::judge::Result as Came;
use crate::drill::sample::leader_kill;

fn sample() -> Report {
    Report::new(leader_kill())
}

#[test]
fn a_report_survives_its_file_and_satisfies_its_schema() {
    let report = sample();
    let json = report.to_json().expect("prints");
    assert_eq!(Report::from_json("file", &json).expect("reads"), report);
    let validator = jsonschema::validator_for(&schema().to_value()).expect("a schema");
    let value: serde_json::Value = serde_json::from_str(&json).expect("json");
    let errors: Vec<String> = validator.iter_errors(&value).map(|e| format!("{} at {}", e, e.instance_path())).collect();
    assert_eq!(errors, Vec::<String>::new());
    // Judging the saved record again gives what was saved.
    assert_eq!(Report::new(Report::from_json("file", &json).expect("reads").record), report);
    let other = json.replace(FORM, "ktcw-vm/drill/0");
    assert!(Report::from_json("old.json", &other).expect_err("another form").to_string().contains("old.json"));
}

#[test]
fn the_text_has_the_verdict_the_five_figures_and_a_line_of_time() {
    let text = text(&sample(), false);
    for part in [
        "leader-kill (D01)",
        "controller-0 (leads) · seed 7",
        "PASS",
        "1.25 s",
        "≤ 3.10 s",
        "latency is 10 ms: 99 % of the baseline's writes took no longer",
        "lost acknowledged writes",
        "17 of 17 checks",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(html(&sample()).expect("renders").contains("<dt>latency</dt>"));
    let mut plain = leader_kill();
    (plain.drill.expect.write_gap, plain.drill.expect.new_leader) = (Some("3 s".parse().expect("a bound")), None);
    plain.drill.expect.full_membership = None;
    assert!(!super::text(&Report::new(plain), false).contains("latency is"), "no bound has it");
    let line = timeline(&sample(), 70);
    // Baseline, fault, nothing acknowledged, a new leader, heal, settled: in this order.
    let places: Vec<usize> = "F█LHS".chars().filter_map(|mark| line.find(mark)).collect();
    assert!(places.is_sorted() && places.len() == 5, "{line}");
}

#[test]
fn a_failure_is_told_with_its_reason() {
    let mut record = leader_kill();
    record.after.log.remove(20);
    let report = Report::new(record);
    let text = text(&report, false);
    assert_eq!(report.judgement.result, Came::Fail);
    assert!(
        text.contains("FAIL") && text.contains("is gone") && text.contains("lost acknowledged writes              1"),
        "{text}"
    );
}

#[test]
fn the_page_is_whole_closed_and_free_of_the_network() {
    let page = html(&sample()).expect("renders");
    assert!(page.contains("id=\"timeline\"") && page.contains("id=\"latency\"") && page.contains(">PASS<"));
    assert_eq!(page.matches("class=\"leader\"").count(), 2, "two leaderships are drawn");
    for outside in ["http://", "https://", "src=", "@import", "<script"] {
        assert!(!page.contains(outside), "{outside} is in the page");
    }
    for tag in ["svg", "table", "tbody", "title", "rect", "ul", "dl"] {
        let opened = page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf"), "a place could not be computed");
}

#[test]
fn the_api_is_shown_by_door_and_connection_where_it_was_asked() {
    use crate::drill::clock::At;
    use crate::drill::kube::{ApiProbe, Door, KubeRecord};
    assert!(!text(&sample(), false).contains("API without an answer"));
    assert!(!html(&sample()).expect("renders").contains("id=\"api\""));
    let mut record = leader_kill();
    let direct = Door::Direct(crate::spec::NodeName::controller(1));
    let mut kube = KubeRecord::default();
    for (door, fresh, away) in [(Door::Vip, true, 2000..3500u64), (Door::Vip, false, 2000..4000), (direct, true, 2000..7000)] {
        for at in (0..7000u64).step_by(50) {
            let error = away.contains(&at).then(|| "refused".to_owned());
            kube.probes.push(ApiProbe { door: door.clone(), fresh, write: false, sent: At(at * 1000), at: At(at * 1000), error });
        }
    }
    record.kube = Some(kube);
    let report = Report::new(record);
    assert_eq!(report.judgement.figures.api.len(), 3);
    let text = text(&report, false);
    let row = |door: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(door)).unwrap_or_default();
        line.replace(door, "").split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("virtual address"), ["1.55 s", "2.05 s", "–"], "{text}");
    // It has not come back: what is shown is the least that it can be.
    assert_eq!(row("controller-1"), ["> 5.05 s", "–", "–"], "{text}");
    assert!(html(&report).expect("renders").contains("<td>virtual address</td><td class=\"number\">1.55 s</td>"));
}

#[test]
fn what_comes_from_outside_is_escaped() {
    let mut record = leader_kill();
    record.drill.title = "<script>alert(1)</script>".to_owned();
    record.after.alarming_logs = Ok(vec!["panic: <img src=x onerror=alert(1)>".to_owned()]);
    let page = html(&Report::new(record)).expect("renders");
    assert!(!page.contains("<script>") && !page.contains("<img"), "unescaped");
}

#[test]
fn a_run_cut_short_can_still_be_shown() {
    let mut record = leader_kill();
    record.ops.clear();
    record.samples.clear();
    record.watches.clear();
    record.after = crate::drill::record::After::default();
    record.marks = crate::drill::record::Marks::default();
    record.aborted = Some("no member answered".to_owned());
    let report = Report::new(record);
    assert_eq!(report.judgement.result, Came::Invalid);
    assert!(text(&report, true).contains("INVALID"));
    assert!(!html(&report).expect("renders").contains("NaN"));
}

/// A damaged report may end at the last moment there is: its axis has as many ticks as any.
#[test]
fn an_axis_without_end_has_a_few_ticks() {
    for end in [7_000_000, 3_600_000_000, 86_400_000_000, u64::MAX] {
        let mut record = leader_kill();
        record.marks.end = crate::drill::clock::At(end);
        let judgement = sample().judgement;
        let page = html(&Report { form: FORM.to_owned(), judgement, record }).expect("renders");
        let ticks = page.matches("class=\"tick\"").count();
        assert!((4..=26).contains(&ticks), "{ticks} on two axes of {end} µs");
    }
}

#[test]
fn a_report_that_is_too_long_is_thinned_and_says_so() {
    let whole = sample();
    let length = whole.to_json().expect("prints").len() as u64;
    let same = fitted(whole.clone(), length).expect("fits");
    assert_eq!((same.report, same.left_out), (whole.clone(), None));

    let without_watches = fitted(whole.clone(), length - 1).expect("fits");
    assert!(u64::try_from(without_watches.json.len()).is_ok_and(|saved| saved < length));
    assert!(without_watches.report.record.watches.iter().all(|watch| watch.changes.is_empty()));
    assert_eq!(without_watches.report.record.ops, whole.record.ops);

    let thin = fitted(whole.clone(), length / 4).expect("fits");
    let said = thin.left_out.expect("something is left out");
    assert!(said.contains("one in "), "{said}");
    assert!(thin.json.len() as u64 <= length / 4);
    let again = Report::from_json("file", &thin.json).expect("reads");
    assert_eq!((&again, &again.judgement), (&thin.report, &whole.judgement));
    assert!(again.record.notes.iter().any(|note| note.text == said));
    let (few, all) = (again.record.ops.len(), whole.record.ops.len());
    assert!(few > 0 && few <= all / 2, "{few} of {all}");
    html(&again).expect("renders");

    assert!(fitted(whole, 100).is_err_and(|error| error.to_string().contains("longer than 0 MiB")));
}

#[test]
fn two_reports_side_by_side_warn_when_they_are_not_of_a_kind() {
    let a = sample();
    let mut other = leader_kill();
    other.environment.acceleration = "tcg".to_owned();
    other.after.log.remove(20);
    let shown = compare(&a, &Report::new(other));
    assert!(shown.contains("not of a kind: acceleration: kvm and tcg"), "{shown}");
    assert!(shown.contains("A pass") && shown.contains("B fail"), "{shown}");
}

#[test]
fn a_series_leaves_invalid_runs_out_of_its_figures() {
    let good = sample().judgement;
    let mut invalid = good.clone();
    invalid.result = Came::Invalid;
    let series = Series::of("leader-kill", &[good.clone(), invalid, good]);
    assert_eq!((series.passed, series.invalid, series.write_gap.map(|spread| spread.runs)), (2, 1, Some(2)));
}
