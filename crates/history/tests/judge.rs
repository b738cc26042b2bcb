//! The judge judged: good histories are green, and the same with one thing wrong are red, for the right reason.

mod broken;
mod good;

use history::record::Line;
use history::{History, RECORDS_MAX, Verdict, judge};

fn lines(seed: u64, operations: u64) -> Vec<Line> {
    let mut lines = Vec::new();
    good::good(seed, operations, &mut |line| lines.push(line));
    lines
}

fn judged(lines: &[Line]) -> Verdict {
    let mut history = History::default();
    lines.iter().for_each(|line| history.push(line.clone()));
    judge(&history)
}

/// Goal: what the rules allow is never called a violation. Method: histories of many seeds, each with everything that can go wrong.
#[test]
fn good_histories_are_green() {
    for seed in 0..20 {
        match judged(&lines(seed, 1_500)) {
            Verdict::Green(summary) => {
                let seen = [summary.answered, summary.happened, summary.vanished, summary.logged, summary.entries];
                assert!(seen.iter().all(|count| *count > 5), "seed {seed} shows too little: {summary:?}");
            }
            Verdict::Red(report) => panic!("seed {seed}: {report}"),
            Verdict::Inconclusive(why) => panic!("seed {seed}: {why}"),
        }
    }
}

/// Goal: each thing that a server could get wrong is found, and called by its name. Method: one history, broken in one way after the other.
#[test]
fn broken_histories_are_red() {
    let whole = lines(18, 3_500);
    let mut wrong = Vec::new();
    for (what, id, breaks) in broken::WAYS {
        let mut lines = whole.clone();
        if !breaks(&mut lines) {
            wrong.push(format!("the history has no place for this: {what}"));
            continue;
        }
        match judged(&lines) {
            Verdict::Red(report) if report.id != *id => {
                wrong.push(format!("{what}: {} instead of {id}: {}", report.id, report.what));
            }
            Verdict::Red(report) => {
                let shown = report.records.len();
                assert!((1..=RECORDS_MAX).contains(&shown), "{what}: {shown} operations are too many to read, or none");
            }
            Verdict::Green(_) => wrong.push(format!("{what}: nobody notices")),
            Verdict::Inconclusive(why) => wrong.push(format!("{what}: inconclusive: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Goal: nobody mistakes a history that shows nothing for one that shows that all is well.
#[test]
fn what_is_no_history_is_not_judged() {
    let whole = lines(1, 1_500);
    for (what, breaks) in broken::FAULTS {
        let mut lines = whole.clone();
        breaks(&mut lines);
        assert!(matches!(judged(&lines), Verdict::Inconclusive(_)), "{what}");
    }
}

/// Goal: a history says the same after it was a file.
#[test]
fn a_history_reads_back() {
    let mut history = History::default();
    lines(2, 1_500).into_iter().for_each(|line| history.push(line));
    let mut file = Vec::new();
    history.write(&mut file).expect("memory takes everything");
    let again = History::read(&file[..]).expect("it was just written");
    assert!(history.lines().eq(again.lines()));
    let (Verdict::Green(before), Verdict::Green(after)) = (judge(&history), judge(&again)) else {
        panic!("a good history is green");
    };
    assert_eq!(before, after);
}
