//! SHA-256 of every file below a folder, by as many workers as one likes.
//!
//! Three parts that know each other only through the queue: `enqueue` makes a task of each file and prints its id and path, `work` computes,
//! and `collect` reads what `enqueue` printed, waits for the results and prints them as the program `sha256sum` does.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use client::{Client, Failure, Job, NewTask, Stop};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

/// The queue.
const QUEUE: &str = "checksum";
/// How long `collect` waits for one file.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Parser)]
#[command(about = "SHA-256 of every file below a folder, by workers")]
struct Arguments {
    /// The servers, with commas between them.
    #[arg(long, env = "CODEQ_ENDPOINTS", default_value = "http://127.0.0.1:8080", value_delimiter = ',')]
    endpoints: Vec<String>,
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Makes a task of each file below a folder; prints a line for each: its id and its path.
    Enqueue {
        folder: PathBuf,
        /// Files at most.
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        most: usize,
    },
    /// Computes, until it is asked to stop.
    Work {
        /// Files at one time.
        #[arg(long, default_value_t = 4)]
        slots: usize,
        /// How long a file stays with this worker if it dies.
        #[arg(long, default_value_t = 10)]
        lease_seconds: u64,
    },
    /// Waits for the files of the lines on standard input, and prints their sums.
    Collect,
}

/// What a task says.
#[derive(Serialize, Deserialize)]
struct Wanted {
    path: PathBuf,
}

/// What its result says.
#[derive(Serialize, Deserialize)]
struct Sum {
    sha256: String,
    bytes: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { endpoints, part } = Arguments::parse();
    let client = Client::builder(endpoints).build()?;
    match part {
        Part::Enqueue { folder, most } => enqueue(&client, &folder, most).await,
        Part::Work { slots, lease_seconds } => work(&client, slots, Duration::from_secs(lease_seconds)).await,
        Part::Collect => collect(&client).await,
    }
}

/// Sends what it finds while it goes on looking.
async fn enqueue(client: &Client, folder: &Path, most: usize) -> Result<(), Box<dyn Error>> {
    let producer = client.producer();
    let mut open = vec![folder.canonicalize()?];
    let mut sent = Vec::new();
    while let Some(folder) = open.pop() {
        // What cannot be read is somebody else's.
        let Ok(entries) = folder.read_dir() else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let Ok(about) = path.symlink_metadata() else { continue };
            if about.is_dir() {
                open.push(path);
            } else if about.is_file() && is_plain(&path) && sent.len() < most {
                // The key makes a second run of this program, over the same folder on the same day, find the same tasks.
                let key = HEXLOWER.encode(&Sha256::digest(path.display().to_string()));
                let task = NewTask::new(QUEUE, &Wanted { path: path.clone() })?.idempotency_key(&key);
                sent.push((path, producer.send(task).await));
            }
        }
    }
    let mut out = stdout().lock();
    for (path, ticket) in sent {
        writeln!(out, "{} {}", ticket.await?.task.id, path.display())?;
    }
    Ok(())
}

/// JSON has no other paths than text, and a line has no line break in it.
fn is_plain(path: &Path) -> bool {
    path.to_str().is_some_and(|text| !text.contains(['\n', '\\']))
}

async fn work(client: &Client, slots: usize, lease: Duration) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let asked_to_stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = ctrl_c() => {}
        }
    };
    let worker = client.worker().slots(slots).lease(lease).handle(QUEUE, |wanted: Wanted, job: Job| async move {
        // Reading blocks: it is done beside the runtime's threads, and looks now and then whether it is still wanted.
        tokio::task::spawn_blocking(move || sum(&wanted.path, &job)).await?
    });
    let summary = worker.run(asked_to_stop).await?;
    writeln!(stdout(), "{} files", summary.completed)?;
    Ok(())
}

fn sum(path: &Path, job: &Job) -> Result<Sum, Failure> {
    let mut file = File::open(path).map_err(|why| Failure::permanent(format!("{}: {why}", path.display())))?;
    let (mut hasher, mut piece, mut bytes) = (Sha256::new(), vec![0; 256 << 10], 0);
    loop {
        match job.should_stop() {
            Some(Stop::WorkerEnds) => return Err(Failure::release()),
            Some(why) => return Err(Failure::retry(format!("stopped: {why:?}"))),
            None => {}
        }
        match file.read(&mut piece)? {
            0 => return Ok(Sum { sha256: HEXLOWER.encode(&hasher.finalize()), bytes }),
            length => {
                hasher.update(&piece[..length]);
                bytes += length as u64;
            }
        }
    }
}

async fn collect(client: &Client) -> Result<(), Box<dyn Error>> {
    let mut out = stdout().lock();
    let mut failed = 0;
    for line in stdin().lock().lines() {
        let line = line?;
        let (id, path) = line.split_once(' ').ok_or_else(|| format!("this is no line of enqueue: {line}"))?;
        let ended = client.finished(id, PATIENCE).await?;
        let record = ended.ok_or_else(|| format!("{path} is not done within {PATIENCE:?}; is there a worker?"))?.result;
        if record.is_completed() {
            writeln!(out, "{}  {path}", record.result::<Sum>()?.sha256)?;
        } else {
            failed += 1;
            writeln!(std::io::stderr(), "{path}: {}", record.error)?;
        }
    }
    if failed > 0 { Err(format!("{failed} files have no sum").into()) } else { Ok(()) }
}
