//! How long it takes to judge a history, and how much memory.
//!
//! `cargo bench -p history --bench judge -- 1000000` makes one of so many operations, as the tests do, writes it to a file, and lets a
//! process of its own read and judge that.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program of its own, which measures"
)]

#[path = "../tests/good/mod.rs"]
mod good;

use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use history::{History, Verdict, judge};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let what = arguments.next().unwrap_or_else(|| "1000000".into());
    match what.parse() {
        Ok(operations) => make(operations),
        Err(_) => measure(Path::new(&what)),
    }
}

fn make(operations: u64) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("history.jsonl");
    let mut file = BufWriter::new(std::fs::File::create(&path).expect("the folder is there"));
    let mut lines = 0;
    good::good(1, operations, &mut |line| {
        serde_json::to_writer(&mut file, &line).expect("the disk has room");
        file.write_all(b"\n").expect("the disk has room");
        lines += 1;
    });
    file.flush().expect("the disk has room");
    let bytes = std::fs::metadata(&path).expect("it was just written").len();
    println!("{lines} lines, {} MB", bytes >> 20);
    let this = std::env::current_exe().expect("this program has a file");
    let ended = Command::new(this).arg(&path).status().expect("it can be run");
    std::fs::remove_file(&path).expect("nobody else removes it");
    assert!(ended.success(), "the other process could not judge");
}

fn measure(path: &Path) {
    let begun = Instant::now();
    let file = std::fs::File::open(path).expect("the file is there");
    let history = History::read(BufReader::new(file)).expect("it is a history");
    let read = begun.elapsed();
    println!("{} operations read in {:.2} s, {}", history.operations(), read.as_secs_f64(), memory());
    let begun = Instant::now();
    let verdict = judge(&history);
    println!("judged in {:.2} s, {}", begun.elapsed().as_secs_f64(), memory());
    match verdict {
        Verdict::Green(summary) => println!("{summary:?}"),
        Verdict::Red(report) => panic!("the history is good, but: {report}"),
        Verdict::Inconclusive(why) => panic!("the history is good, but: {why}"),
    }
}

/// The most memory that this process has had, as Linux says it.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::trim);
    peak.map_or_else(|| "peak memory unknown".into(), |peak| format!("peak memory {peak}"))
}
