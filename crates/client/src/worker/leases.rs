//! Keeps the leases of all tasks in hand: each is extended after a third of its length, and again and again until that succeeds.
//!
//! A lease is taken for lost when the server says so, or when it could not be extended by nine tenths of its length: a program that cannot
//! reach anybody must not believe that it is alone with its task. The length counts from the receipt of the claim's answer, and from the
//! sending of the last extension that was granted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Code;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use crate::error::Error;
use crate::routes::Extended;
use crate::task::Task;
use crate::worker::Crew;
use crate::worker::job::Stop;

/// Extensions under way at one time.
const CALLS_MAX: usize = 16;
/// How often leases are looked at, within a third of their length.
const LOOKS: u32 = 4;
/// Least and longest time between two looks.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// The leases in hand.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    leases: BTreeMap<u64, Lease>,
}

#[derive(Clone, Debug)]
struct Lease {
    task: String,
    token: String,
    length: Duration,
    since: Instant,
    /// An extension is under way.
    is_asking: bool,
    stop: watch::Sender<Option<Stop>>,
}

impl Leases {
    /// Keeps this task's lease from now on.
    pub(super) fn hold(&self, task: &Task, received: Instant, stop: watch::Sender<Option<Stop>>) -> u64 {
        let lease = Lease {
            task: task.id.clone(),
            token: task.lease_token.clone(),
            length: Duration::from_millis(task.lease_ms),
            since: received,
            is_asking: false,
            stop,
        };
        let mut held = self.held();
        held.next += 1;
        let key = held.next;
        held.leases.insert(key, lease);
        key
    }

    /// The task is not in hand any more.
    pub(super) fn forget(&self, key: u64) {
        self.held().leases.remove(&key);
    }

    pub(super) fn count(&self) -> usize {
        self.held().leases.len()
    }

    /// Those that are to be extended now; those that have run out are told.
    fn due(&self, now: Instant) -> Vec<(u64, Lease)> {
        let mut due = Vec::new();
        for (key, lease) in &mut self.held().leases {
            let age = now.saturating_duration_since(lease.since);
            if age >= lease.length.mul_f64(0.9) {
                lose(lease, "it could not be extended in time");
            } else if age >= lease.length / 3 && !lease.is_asking && due.len() < CALLS_MAX {
                lease.is_asking = true;
                due.push((*key, lease.clone()));
            }
        }
        due
    }

    fn answered(&self, key: u64, sent: Instant, answer: Result<Extended, Error>) {
        let mut held = self.held();
        // It may have been told meanwhile.
        let Some(lease) = held.leases.get_mut(&key) else { return };
        lease.is_asking = false;
        match answer {
            Ok(Extended { lease_ms, cancel_requested }) => {
                lease.since = sent;
                lease.length = Duration::from_millis(lease_ms);
                if cancel_requested {
                    lease.stop.send_if_modified(|stop| stop.is_none() && stop.replace(Stop::Cancelled).is_none());
                }
            }
            Err(error) if is_lost(&error) => lose(lease, &error.to_string()),
            // The next look asks again, until it is too late.
            Err(_) => {}
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("nothing panics while it holds this lock")
    }
}

/// Tells a handler that its lease is gone, once.
fn lose(lease: &Lease, why: &str) {
    let is_news = lease.stop.send_if_modified(|stop| {
        let is_news = *stop != Some(Stop::LeaseLost);
        *stop = Some(Stop::LeaseLost);
        is_news
    });
    if is_news {
        warn!(name: "worker.lease_lost", task = %lease.task, why, "a lease is lost");
    }
}

fn is_lost(error: &Error) -> bool {
    [Code::LeaseLost, Code::NotInProgress, Code::NotOwner, Code::TaskNotFound].iter().any(|code| error.is(*code))
}

/// Extends leases for as long as the worker runs.
pub(super) async fn keep(crew: Arc<Crew>) {
    let mut looks = interval((crew.lease / (3 * LOOKS)).clamp(LOOK.0, LOOK.1));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            Some(_) = calls.join_next() => continue,
        }
        if calls.len() >= CALLS_MAX {
            continue;
        }
        for (key, lease) in crew.leases.due(Instant::now()) {
            let crew = crew.clone();
            calls.spawn(async move {
                let (sent, patience) = (Instant::now(), lease.length / 6);
                let asked = crew.client.extend_within(&lease.task, &lease.token, Some(crew.lease), patience);
                crew.leases.answered(key, sent, asked.await);
            });
        }
    }
}
