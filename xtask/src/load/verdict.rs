//! What becomes of the tasks of the load: working off what is left, and reading back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::http::Client;
use crate::load::ledger::{Id, Ledger, Shown, text};

/// How long working off what is left may take: leases of dead workers, retries, and work.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(180);

/// Threads that read back.
const READERS: usize = 8;

/// Reads back what the ledger knows of, tells what there was, and compares.
///
/// # Errors
/// Something acknowledged is missing, or was done twice; or a server does not answer.
pub(crate) fn judge(ledger: &Ledger, servers: &[SocketAddr], commands: u64) -> Result<()> {
    let ids: Vec<Id> = ledger.tasks().into_keys().collect();
    let shown = read_back(servers, &ids)?;
    println!("{}", ledger.summary());
    let mut found = ledger.contradictions();
    found.extend(ledger.contradictions_with(&shown, commands));
    for line in &found {
        println!("VIOLATION {line}");
    }
    ensure!(found.is_empty(), "{} kinds of violation", found.len());
    println!("nothing acknowledged is missing, nothing was done twice");
    Ok(())
}

/// Waits until no queue has a task that is not ended.
pub(crate) fn wait_until_drained(addr: SocketAddr, commands: u64) -> Result<()> {
    let begun = Instant::now();
    let mut client = Client::connect(addr)?;
    let mut left = Vec::new();
    while begun.elapsed() < DRAIN_TIMEOUT {
        left.clear();
        for command in 0..commands {
            let stats = client.get(&format!("/v1/codeq/admin/queues/load-{command}"))?;
            ensure!(stats.status == 200, "the statistics of a queue were answered with {stats}");
            let stats = stats.json()?;
            ensure!(stats["dlq"] == 0, "tasks that were never given up are dead letters: {stats}");
            let count = |name: &str| stats[name].as_u64().with_context(|| format!("{stats} has no {name}"));
            if count("ready")? + count("delayed")? + count("inProgress")? > 0 {
                left.push(stats.to_string());
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("tasks are left after {DRAIN_TIMEOUT:?} without a kill: {}", left.join(", "))
}

/// What the servers show of these tasks; nothing of those that they do not know. Each task is read at one of them.
fn read_back(servers: &[SocketAddr], ids: &[Id]) -> Result<BTreeMap<Id, Option<Shown>>> {
    let part = ids.len().div_ceil(READERS).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = ids
            .chunks(part)
            .zip(servers.iter().cycle())
            .map(|(ids, addr)| scope.spawn(move || read_some(*addr, ids)))
            .collect();
        let mut shown = BTreeMap::new();
        for reader in readers {
            shown.extend(reader.join().map_err(|_| anyhow!("a reader panicked"))??);
        }
        Ok(shown)
    })
}

fn read_some(addr: SocketAddr, ids: &[Id]) -> Result<Vec<(Id, Option<Shown>)>> {
    let mut client = Client::connect(addr)?;
    let mut all = Vec::with_capacity(ids.len());
    for id in ids {
        let mut answer = client.get(&format!("/v1/codeq/tasks/{}/result", text(*id)))?;
        if answer.status == 404 {
            // There is no result, or no task: the task itself tells.
            answer = client.get(&format!("/v1/codeq/tasks/{}", text(*id)))?;
        }
        let shown = match answer.status {
            404 => None,
            200 => {
                let body = answer.json()?;
                let task = if body["task"].is_object() { &body["task"] } else { &body };
                let string = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
                Some(Shown {
                    command: string("command"),
                    payload: task["payload"].clone(),
                    status: string("status"),
                    result: body["result"]["result"].clone(),
                })
            }
            _ => bail!("reading {} was answered with {answer}", text(*id)),
        };
        all.push((*id, shown));
    }
    Ok(all)
}
