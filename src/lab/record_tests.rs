//! Every phase meets every verb.

use super::super::catalogue::labs;
use super::*;

fn at() -> Timestamp {
    Timestamp::from_second(1_795_000_000).expect("a time")
}

fn book(phase: Phase) -> Book {
    let lab = labs(None).expect("built in").swap_remove(0);
    let open =
        Open { lab, phase, seed: 1, hit: vec![NodeName::controller(1)], begun: at(), hints: 0, looks: 0, best: 0, solved: None };
    Book { open: Some(open), done: BTreeMap::new() }
}

fn name() -> String {
    book(Phase::Open).open.expect("open").lab.name
}

#[test]
fn one_lab_at_a_time_and_a_start_that_was_cut_off_is_begun_again() {
    assert_eq!(Book::default().may_start("nospace"), Ok(Again::Fresh));
    assert_eq!(book(Phase::Saving).may_start(&name()), Ok(Again::Saving));
    assert_eq!(book(Phase::Breaking).may_start(&name()), Ok(Again::Breaking));
    assert_eq!(book(Phase::Open).may_start(&name()), Err(Refused::Open(name())));
    for phase in [Phase::Saving, Phase::Breaking, Phase::Open] {
        assert_eq!(book(phase).may_start("another"), Err(Refused::Open(name())), "{phase:?}");
    }
    for phase in [Phase::Rewinding, Phase::Closing] {
        assert_eq!(book(phase).may_start(&name()), Err(Refused::Closing(name())), "{phase:?}");
        assert_eq!(book(phase).may_start("another"), Err(Refused::Closing(name())), "{phase:?}");
    }
}

#[test]
fn a_reset_does_what_the_phase_wants_and_never_goes_back_to_what_is_not_there() {
    let nothing = |may_be_paused| Ok(Rewind::Nothing { may_be_paused });
    for (phase, whole, keep, wanted) in [
        (Phase::Saving, false, false, nothing(true)),
        (Phase::Saving, true, false, nothing(true)),
        (Phase::Saving, true, true, nothing(true)),
        (Phase::Breaking, true, false, Ok(Rewind::Restore)),
        (Phase::Breaking, false, false, Err(Refused::Gone(name()))),
        (Phase::Breaking, true, true, Ok(Rewind::Keep)),
        (Phase::Open, true, false, Ok(Rewind::Restore)),
        (Phase::Open, false, false, Err(Refused::Gone(name()))),
        (Phase::Open, false, true, Ok(Rewind::Keep)),
        (Phase::Rewinding, true, true, Ok(Rewind::Keep)),
        (Phase::Rewinding, false, true, Ok(Rewind::Keep)),
        (Phase::Rewinding, true, false, Ok(Rewind::Restore)),
        (Phase::Rewinding, false, false, Err(Refused::Gone(name()))),
        (Phase::Closing, false, false, nothing(false)),
        (Phase::Closing, true, true, nothing(false)),
    ] {
        assert_eq!(book(phase).may_reset(whole, keep, false), wanted, "{phase:?} {whole} {keep}");
    }
    assert_eq!(Book::default().may_reset(true, false, false), Err(Refused::None));
    // Machines of two moments are never kept so, unless there is nothing left that they could go back to.
    for phase in [Phase::Breaking, Phase::Open, Phase::Rewinding] {
        for keep in [false, true] {
            assert_eq!(book(phase).may_reset(true, keep, true), Ok(Rewind::Restore), "{phase:?} {keep}");
        }
        assert_eq!(book(phase).may_reset(false, true, true), Ok(Rewind::Keep), "{phase:?}");
    }
}

/// After a rewind with which not all is well the snapshot is there, and so is each way out.
#[test]
fn a_rewind_after_which_not_all_is_well_is_done_again_or_given_up() {
    for (well, next) in [(true, Ok(Rewind::Nothing { may_be_paused: false })), (false, Ok(Rewind::Restore))] {
        let mut book = book(Phase::Rewinding);
        book.open.as_mut().expect("open").rewound(well);
        assert_eq!(book.may_reset(true, false, false), next, "{well}");
    }
    assert_eq!(book(Phase::Rewinding).may_reset(true, true, false), Ok(Rewind::Keep));
}

#[test]
fn only_what_is_open_is_checked_and_hinted_at() {
    assert!(book(Phase::Open).running().is_ok());
    assert_eq!(book(Phase::Breaking).running(), Err(Refused::NotBegun(name())));
    assert_eq!(book(Phase::Closing).running(), Err(Refused::Closing(name())));
    assert_eq!(Book::default().running(), Err(Refused::None));
}

/// What other verbs are told is what leads out, and only the open lab's snapshot is the way back.
#[test]
fn what_is_in_the_way_is_named_by_its_phase() {
    assert_eq!(Book::default().in_the_way(), None);
    assert_eq!(book(Phase::Open).in_the_way(), Some(Refused::Open(name())));
    for phase in [Phase::Saving, Phase::Breaking] {
        assert_eq!(book(phase).in_the_way(), Some(Refused::NotBegun(name())));
    }
    for phase in [Phase::Rewinding, Phase::Closing] {
        assert_eq!(book(phase).in_the_way(), Some(Refused::Closing(name())));
        assert!(book(phase).goes_back_to(&format!("lab-{}", name())) && !book(phase).goes_back_to("one"));
    }
    assert!(!Book::default().goes_back_to(&format!("lab-{}", name())));
}

#[test]
fn hints_come_in_order_and_are_remembered() {
    let mut book = book(Phase::Open);
    let hints = book.open.as_ref().expect("open").lab.hints.clone();
    for (i, wanted) in hints.iter().enumerate() {
        let shown = book.running_mut().expect("open").next_hint().map(|(n, hint)| (n, hint.to_owned()));
        assert_eq!(shown, Some((i + 1, wanted.clone())));
        // As the next process finds it.
        book = serde_json::from_str(&serde_json::to_string(&book).expect("prints")).expect("reads");
    }
    assert_eq!(book.running_mut().expect("open").next_hint(), None);
    assert_eq!(book.open.expect("open").hints, hints.len());
}

#[test]
fn what_came_of_it_is_kept_when_it_closes() {
    let score = |got, done| Score { got, of: 12, done, checks: vec![] };
    let mut book = book(Phase::Open);
    let open = book.running_mut().expect("open");
    open.looked(&score(3, false), at());
    open.looked(&score(12, true), at());
    open.looked(&score(5, false), at());
    book.close(at());
    assert_eq!(book.open, None);
    let done = &book.done[&name()];
    assert_eq!((done.best, done.looks, done.solved), (12, 3, true));
    book.close(at());
    assert_eq!(book.done.len(), 1);
}

/// Who begins and rewinds at once has done nothing worth telling.
#[test]
fn a_lab_that_nobody_looked_at_leaves_no_trace() {
    let mut book = book(Phase::Saving);
    book.close(at());
    assert_eq!(book, Book::default());
}
