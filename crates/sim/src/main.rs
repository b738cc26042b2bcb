//! Runs seeds and says what came of them; `cargo xtask sim` is the way to it. docs/internals/simulation.md tells how to read the output.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sim::options::Options;
use sim::run::{Outcome, finish, run};
use sim::shrink::shrink;

/// Simulated clusters, one for each seed.
#[derive(Parser)]
#[command(name = "sim")]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds; with `--seed` and without this: one.
    #[arg(long)]
    seeds: Option<u64>,
    /// Go on for so long, however many seeds that are.
    #[arg(long)]
    minutes: Option<f64>,
    /// Set an option: `name=number`.
    #[arg(long = "set")]
    sets: Vec<String>,
    /// Run each seed twice, in orders of their own, and compare.
    #[arg(long)]
    twice: bool,
    /// Print only a digest for each seed, for whoever compares processes.
    #[arg(long)]
    digests: bool,
    /// Make the first seed that fails as small as it stays failing.
    #[arg(long)]
    shrink: bool,
    /// Tell what happens.
    #[arg(long)]
    trace: bool,
    /// Run what once failed.
    #[arg(long)]
    regress: bool,
    /// Do not have the history judged.
    #[arg(long)]
    unjudged: bool,
    /// Do not stop at the first seed that fails.
    #[arg(long)]
    go_on: bool,
    /// Something that runs must reach and these did not is as bad as a red seed.
    #[arg(long)]
    covered: bool,
    /// These classes of faults, by commas, and no others; `none` for no fault at all. A name that is none is answered with all names.
    #[arg(long, value_delimiter = ',')]
    focus: Vec<String>,
    /// Print the history of a seed that is not red before it is judged, as lines for `cargo xtask judge`.
    #[arg(long)]
    history: bool,
    /// Plant a bug, by its number; only in a build for that.
    #[arg(long, default_value_t = 0)]
    plant: u64,
    /// Threads; 0: one for each processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// A run makes and forgets many small things.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn say(text: &str) {
    // Whoever has read enough closes the pipe.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What all seeds have come to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    time: u64,
    node_time: u64,
    spent: Duration,
    finished: u64,
    faults: BTreeMap<&'static str, u64>,
    reached: BTreeMap<&'static str, u64>,
    failed: BTreeMap<u64, String>,
    /// Simulated time, time of a processor and operations answered, of seeds with three founders.
    three: (u64, Duration, u64),
    /// The seed that took longest.
    slowest: (Duration, u64),
}

/// What runs must have reached for them to show anything; docs/internals/simulation.md says what each is.
const MARKS: &[&str] = &[
    "K01",
    "K02",
    "K03",
    "K04",
    "K05",
    "K06-write",
    "K06-rows",
    "K06-commit",
    "K06-install",
    "K06-spare",
    "K07-expiry",
    "K07-nack",
    "K08",
    "K09-transfer",
    "K09-behind",
    "K10",
    "K11",
    "K12",
    "K13",
    "K14",
    "K15",
    "K16-happened",
    "K16-not",
    "K17",
    "K19",
    "K20",
    "K21",
    "K22",
    "K23-moved",
    "K23-held",
    "K23-dead",
    "K23-changed",
    "K24",
    "K25-redrive",
    "K25-purge-dead",
    "K25-purge",
    "K25-cancel",
    "K26-leader",
    "K26-resumed",
    "K26-skipped",
    "K26-again",
    "beats",
    "checkpoint",
    "installed",
    "torn-tail",
    "refused-damage",
    "admitted",
    "replayed",
    "redriven",
];

/// A seed that takes longer hangs, unless the machine had no time for it.
const SEED_MAX: Duration = Duration::from_secs(60);

/// The time for which this thread has had a processor.
fn busy() -> Duration {
    spent(rustix::time::ClockId::ThreadCPUTime)
}

fn spent(clock: rustix::time::ClockId) -> Duration {
    let spent = rustix::time::clock_gettime(clock);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

/// What time it is, and for how long all threads together have had a processor.
fn times() -> (Instant, Duration) {
    (Instant::now(), spent(rustix::time::ClockId::ProcessCPUTime))
}

/// Seeds that run, with the times at which they began.
type Running = Mutex<BTreeMap<u64, (Instant, Duration)>>;

/// Ends the whole program once a seed takes too long: it cannot be ended alone.
fn watch(running: &Running, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_secs(1));
        let (now, spent) = times();
        let is_late = |(began, before): &(Instant, Duration)| now - *began > SEED_MAX && spent - *before > SEED_MAX;
        let running = running.lock().expect("no thread panics");
        let late = running.iter().find(|(_, begun)| is_late(begun)).map(|(seed, _)| *seed);
        drop(running);
        if let Some(seed) = late {
            say(&format!("seed {seed}: hang: not done after {} s", SEED_MAX.as_secs()));
            #[expect(clippy::disallowed_methods, reason = "a thread that hangs cannot be ended alone")]
            std::process::exit(1);
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    sim::plant(arguments.plant);
    if arguments.regress {
        return regress(&arguments);
    }
    let seeds = arguments.seeds.unwrap_or(if arguments.minutes.is_some() { u64::MAX / 2 } else { 1 });
    let until = arguments.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let threads = match arguments.threads {
        0 => std::thread::available_parallelism().map_or(1, |count| count.get()),
        count => count,
    };
    std::panic::set_hook(Box::new(|_| ()));
    let (next, stop, sum) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Sum::default()));
    let (running, ended) = (Running::default(), AtomicBool::new(false));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(|| watch(&running, &ended));
        let run = || {
            sim::plant(arguments.plant);
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let late = until.is_some_and(|until| Instant::now() >= until);
                if place >= seeds || late || stop.load(Ordering::Relaxed) {
                    return;
                }
                let seed = arguments.seed + place;
                running.lock().expect("no thread panics").insert(seed, times());
                one(seed, &arguments, &sum, &stop);
                running.lock().expect("no thread panics").remove(&seed);
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().for_each(|worker| worker.join().expect("no thread panics"));
        ended.store(true, Ordering::Relaxed);
        watchdog.thread().unpark();
    });
    let sum = sum.into_inner().expect("no thread panics");
    if arguments.digests {
        return ExitCode::SUCCESS;
    }
    let covered = report(&sum, begun.elapsed(), &arguments);
    if arguments.shrink
        && let Some(seed) = sum.failed.keys().next()
    {
        let Ok(options) = options(*seed, &arguments) else { return ExitCode::FAILURE };
        let small = shrink(*seed, &options, Duration::from_secs(600), &mut |text| say(text));
        say(&format!("smallest: {}", command(*seed, &small)));
    }
    if sum.failed.is_empty() && sum.seeds > 0 && (covered || !arguments.covered) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn options(seed: u64, arguments: &Arguments) -> Result<Options, String> {
    let mut options = match &arguments.focus[..] {
        [] => Options::draw(seed),
        classes => Options::focused(seed, classes)?,
    };
    arguments.sets.iter().try_for_each(|set| options.set(set))?;
    Ok(options)
}

fn command(seed: u64, options: &Options) -> String {
    let sets: Vec<String> = options.overrides(seed).iter().map(|set| format!(" --set {set}")).collect();
    format!("cargo xtask sim --seed {seed}{}", sets.concat())
}

fn one(seed: u64, arguments: &Arguments, sum: &Mutex<Sum>, stop: &AtomicBool) {
    let options = match options(seed, arguments) {
        Ok(options) => options,
        Err(why) => {
            say(&why);
            return stop.store(true, Ordering::Relaxed);
        }
    };
    let trace = || -> Option<Box<dyn FnMut(&str)>> {
        arguments.trace.then(|| Box::new(|text: &str| say(text)) as Box<dyn FnMut(&str)>)
    };
    if arguments.trace {
        say(&format!("seed {seed}: {options}"));
    }
    let begun = busy();
    let (mut outcome, mut world) = run(seed, &options, trace());
    let mut report = None;
    if arguments.history && outcome.violation.is_none() {
        // Whoever has read enough closes the pipe.
        let _ = world.history(command(seed, &options)).write(std::io::stdout().lock());
    } else if outcome.violation.is_none() && !arguments.unjudged {
        report = finish(&mut outcome, &mut world, command(seed, &options));
    }
    let took = busy() - begun;
    if arguments.digests {
        say(&format!("{seed} {:016x}", outcome.digest));
    }
    if arguments.twice {
        let (again, _) = run(seed, &options, trace());
        if again.digest != outcome.digest {
            let mut sum = sum.lock().expect("no thread panics");
            sum.failed.insert(seed, format!("two runs differ: {:016x} and {:016x}", outcome.digest, again.digest));
        }
    }
    add(seed, &options, &outcome, report, took, arguments, sum, stop);
}

#[expect(clippy::too_many_arguments, reason = "they are what a seed has come to")]
fn add(
    seed: u64,
    options: &Options,
    outcome: &Outcome,
    report: Option<String>,
    took: Duration,
    arguments: &Arguments,
    sum: &Mutex<Sum>,
    stop: &AtomicBool,
) {
    let mut sum = sum.lock().expect("no thread panics");
    sum.seeds += 1;
    sum.time += outcome.time;
    sum.node_time += outcome.time * outcome.nodes;
    sum.spent += took;
    if options.nodes == 3 {
        sum.three.0 += outcome.time;
        sum.three.1 += took;
        sum.three.2 += outcome.finished;
    }
    sum.slowest = sum.slowest.max((took, seed));
    sum.finished += outcome.finished;
    outcome.faults.iter().for_each(|(class, count)| *sum.faults.entry(class).or_default() += count);
    outcome.reached.iter().for_each(|(mark, count)| *sum.reached.entry(mark).or_default() += count);
    if let Some(violation) = &outcome.violation {
        sum.failed.insert(seed, violation.id.clone());
        say(&format!("seed {seed}: {} at {:.6} s: {}", violation.id, violation.at as f64 / 1e6, violation.what));
        if let Some(report) = report.filter(|_| !arguments.go_on) {
            say(&report);
        }
        say(&format!("  {}", command(seed, options)));
        if !arguments.go_on {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Says what all seeds have come to. False: something that they must reach was not.
fn report(sum: &Sum, took: Duration, arguments: &Arguments) -> bool {
    let seconds = took.as_secs_f64();
    let simulated = sum.time as f64 / 1e6;
    let table = |counts: &BTreeMap<&'static str, u64>| {
        let all: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        all.join(", ")
    };
    say(&format!(
        "{} seeds in {seconds:.1} s: {:.2} seeds/s; {:.2} cluster-hours, {:.0} x real time per core; {} operations answered",
        sum.seeds,
        sum.seeds as f64 / seconds,
        simulated / 3_600.0,
        simulated / sum.spent.as_secs_f64(),
        sum.finished,
    ));
    if sum.three.0 > 0 {
        let (time, spent) = (sum.three.0 as f64 / 1e6, sum.three.1.as_secs_f64());
        say(&format!(
            "three nodes: {:.2} cluster-hours, {:.0} x real time per core at {:.0} operations answered per simulated second",
            time / 3_600.0,
            time / spent,
            sum.three.2 as f64 / time,
        ));
    }
    say(&format!("slowest: seed {}, {:.1} s", sum.slowest.1, sum.slowest.0.as_secs_f64()));
    say(&format!("faults: {}", table(&sum.faults)));
    say(&format!("reached: {}", table(&sum.reached)));
    let reached = |mark: &&str| sum.reached.get(mark).is_some_and(|count| *count > 0);
    let missing: BTreeSet<&str> = MARKS.iter().filter(|mark| !reached(mark)).copied().collect();
    let covered = missing.is_empty();
    if !covered && arguments.seeds.unwrap_or(0) + arguments.minutes.unwrap_or(0.0) as u64 > 1 {
        say(&format!("never reached: {}", missing.into_iter().collect::<Vec<_>>().join(", ")));
    }
    let mut by_id: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    sum.failed.iter().for_each(|(seed, id)| by_id.entry(id).or_default().push(*seed));
    for (id, seeds) in by_id {
        say(&format!("RED {id}: seeds {seeds:?}"));
    }
    covered
}

/// Runs the seeds that once found something.
fn regress(arguments: &Arguments) -> ExitCode {
    let mut failed = false;
    for (name, text) in sim::regressions::ALL {
        let Some((seed, options)) = sim::regressions::read(text) else {
            say(&format!("{name}: cannot be read"));
            failed = true;
            continue;
        };
        let (mut outcome, mut world) = run(seed, &options, None);
        if outcome.violation.is_none() && !arguments.unjudged {
            finish(&mut outcome, &mut world, command(seed, &options));
        }
        match &world.violation {
            None => say(&format!("{name}: green")),
            Some(violation) => {
                failed = true;
                say(&format!("{name}: RED {}: {}", violation.id, violation.what));
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
