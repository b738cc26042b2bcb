//! Runs seeds: `sim --seeds N`. `cargo xtask sim` is the usual way to it.

use std::io::Write;

use sim::options::Options;

fn main() {
    let seed: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    let traced = std::env::var("TRACE").is_ok();
    for seed in seed..seed + count {
        let mut options = Options::draw(seed);
        for set in std::env::args().skip(3) {
            options.set(&set).expect("it is an option");
        }
        let begun = std::time::Instant::now();
        let trace: Option<Box<dyn FnMut(&str)>> =
            if traced { Some(Box::new(|text| drop(writeln!(std::io::stderr(), "{text}")))) } else { None };
        let (outcome, _) = sim::run::run(seed, &options, trace);
        let took = begun.elapsed().as_secs_f64();
        let speed = outcome.time as f64 / 1e6 / took;
        let _ = writeln!(
            std::io::stdout(),
            "{seed} {:016x} {:.1}s x{speed:.0} events {} finished {} {:?} {:?} {:?}",
            outcome.digest,
            outcome.time as f64 / 1e6,
            outcome.events,
            outcome.finished,
            outcome.faults,
            outcome.reached,
            outcome.violation
        );
    }
}
