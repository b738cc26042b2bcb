//! Lists while a server works: how long a page takes with many waiting tasks, and what lists cost claims.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::Bench;
use super::fill::Fill;
use super::load::{Load, median};
use super::sections::{CYCLES, note};
use crate::http::Client;

/// Cycles per second while pages are timed; each has three requests.
const CYCLES_PER_SECOND: u64 = 10_000;

/// Between two pages.
const EVERY: Duration = Duration::from_millis(50);

/// Tasks of every page but the last.
const LIMIT: usize = 50;

/// The lists that are asked for in turn. `rare` is a queue with few tasks beside the one with all the others.
const LISTS: &[&str] = &[
    "/tasks?",
    "/tasks?order=created",
    "/tasks?state=READY",
    "/tasks?state=LEASED",
    "/tasks?state=DELAYED",
    "/tasks?state=COMPLETED",
    "/tasks?command=rare",
    "/tasks?priority=9",
    "/tasks?createdBefore=2000-01-01T00:00:00Z",
    "/tasks?command=rare&idempotencyKey=k7",
    "/tasks?order=-finished",
    "/tasks?order=queue&command=bench-0&state=READY",
    "/dlq?",
    "/queues?",
];

/// Lists beside the load: latencies of each, and what they cost the load.
pub(super) fn lists(bench: &Bench) -> Result<String> {
    let server = bench.start("lists", &[])?;
    let addr = server.addr();
    note(&format!("lists: {} tasks", bench.many()));
    Fill { tasks: bench.many(), payload_bytes: 100 }.create(addr)?;
    few(addr)?;
    let load = Load { duration: bench.duration(CYCLES.duration * 2), ..CYCLES };
    let steady = Load { rate: Some(3 * CYCLES_PER_SECOND), duration: load.duration * 4, ..CYCLES };
    note("lists: pages beside a steady load");
    let pages = beside(addr, || steady.run(&bench.codeq, &server.url()).map(drop))?.1;
    let mut rows = String::new();
    for (place, list) in LISTS.iter().enumerate() {
        let times = sorted(pages.iter().filter(|page| page.list == place).map(|page| page.took).collect());
        let tasks = pages.iter().filter(|page| page.list == place).map(|page| page.tasks).max().unwrap_or_default();
        let at = |part: f64| times.get(((times.len() as f64 * part) as usize).min(times.len() - 1)).copied();
        let ms = |time: Option<Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        ensure!(!times.is_empty(), "{list} was never asked for");
        writeln!(
            rows,
            "| `{}` | {} | {tasks} | {:.1} / {:.1} / {:.1} |",
            list.trim_end_matches('?'),
            times.len(),
            ms(at(0.5)),
            ms(at(0.99)),
            ms(times.last().copied()),
        )?;
    }
    let (mut ratios, mut rounds) = (Vec::new(), String::new());
    for number in 1..=if bench.quick { 1 } else { 5 } {
        note(&format!("lists: round {number}"));
        let alone = load.run(&bench.codeq, &server.url())?.cycles_per_second()?;
        let (listed, pages) = beside(addr, || load.run(&bench.codeq, &server.url())?.cycles_per_second())?;
        ratios.push(listed / alone);
        let per_second = pages.len() as f64 / load.duration.as_secs_f64();
        writeln!(
            rounds,
            "| {number} | {alone:.0} | {listed:.0} | {per_second:.0} | {:.0} % |",
            100.0 * listed / alone
        )?;
    }
    drop(server);
    bench.forget("lists");
    Ok(format!(
        "### Lists beside the work\n\n\
         Pages of {LIMIT} while {} tasks wait and {CYCLES_PER_SECOND} cycles per second run for {:?}; one page every {EVERY:?}, the lists in \
         turn. Milliseconds at p50 / p99 / at most (bar: p99 at most 20).\n\n\
         | list | pages | tasks on it | ms |\n|---|---|---|---|\n{rows}\n\
         The same pages beside as many cycles as the server does, in turns of {:?} with and without them. Median of the ratios: **{:.0} %** \
         (bar: at least 95 %).\n\n\
         | round | without, cycles/s | with, cycles/s | pages/s | ratio |\n|---|---|---|---|---|\n{rounds}",
        bench.many(),
        steady.duration,
        load.duration,
        100.0 * median(ratios),
    ))
}

/// A page that was read.
struct Page {
    list: usize,
    took: Duration,
    tasks: usize,
}

/// Reads pages for as long as `work` takes.
fn beside<T: Send>(addr: SocketAddr, work: impl FnOnce() -> Result<T> + Send) -> Result<(T, Vec<Page>)> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_pages(addr, &is_over));
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let pages = reader.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok((done?, pages))
    })
}

fn read_pages(addr: SocketAddr, is_over: &AtomicBool) -> Result<Vec<Page>> {
    let mut client = Client::connect(addr)?;
    let mut pages = Vec::new();
    let mut due = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        let list = pages.len() % LISTS.len();
        let begun = Instant::now();
        let answer = client.get(&format!("/v1/codeq{}&limit={LIMIT}", LISTS[list]))?;
        let took = begun.elapsed();
        ensure!(answer.status == 200, "{} was answered with {answer}", LISTS[list]);
        let body = answer.json()?;
        ensure!(body["partial"].is_null(), "{} took longer than a page may", LISTS[list]);
        let things = body["tasks"].as_array().or(body["queues"].as_array());
        pages.push(Page { list, took, tasks: things.context("a list has tasks or queues")?.len() });
        due += EVERY;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(pages)
}

/// A few tasks that lists look for among many others: in a queue of their own, urgent, delayed, with keys.
fn few(addr: SocketAddr) -> Result<()> {
    let mut client = Client::connect(addr)?;
    for number in 0..20 {
        let more = if number % 2 == 0 { ",\"delaySeconds\":3600" } else { ",\"priority\":9" };
        let task = format!("{{\"command\":\"rare\",\"payload\":{number},\"idempotencyKey\":\"k{number}\"{more}}}");
        let answer = client.post("/v1/codeq/tasks", &task)?;
        ensure!(answer.status == 202, "a creation was answered with {answer}");
    }
    Ok(())
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    times
}
