//! The judge judged: good histories are green, and the same with one thing wrong are red, for the right reason.

mod good;

use history::record::Line;
use history::{History, Verdict, judge};

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
    for seed in 0..40 {
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
