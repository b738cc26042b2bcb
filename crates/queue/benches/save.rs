//! How long a save keeps the loop from its other work: the longest of the turns in which a checkpoint is frozen and collected.
//!
//! `cargo bench -p queue --bench save -- 200000` prints it for so many creations with idempotency keys between two checkpoints, in one queue
//! and in as many queues.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a program of its own, which measures")]

use std::time::{Duration, Instant};

use base::machine::{Effects, EntryInfo, ShardInfo, StateMachine};
use base::rows::Changes;
use base::rowstore::RowStore;
use base::{Incarnation, Index, LeaseTime, ScheduleTime, ShardId, Stamps, Term};
use queue::idempotency::{body_digest, scope_digest};
use queue::op::{Create, IdempotencyKey, Schedule};
use queue::{Op, QueueMachine, codec};

/// Rows collected in one turn, as the loop does it.
const ROWS_PER_TURN: usize = 512;

fn main() {
    let tasks = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(200_000);
    for queues in [1, tasks] {
        let mut machine = filled(tasks, queues);
        let mut turns = Vec::new();
        let begun = Instant::now();
        machine.freeze();
        let freeze = begun.elapsed();
        loop {
            let begun = Instant::now();
            let mut changes = Changes::default();
            let done = machine.collect(ROWS_PER_TURN, &mut changes);
            turns.push(begun.elapsed());
            if done {
                break;
            }
        }
        let begun = Instant::now();
        let garbage = machine.saved();
        let end = begun.elapsed();
        drop(garbage);
        turns.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let at = |share: usize| ms(turns[(turns.len() - 1) * share / 1_000]);
        println!(
            "{tasks} tasks in {queues} queues: freeze {:.2} ms, {} turns, half of them up to {:.2} ms, 99 % up to {:.2} ms, the longest \
             {:.2} ms, end {:.2} ms",
            ms(freeze),
            turns.len(),
            at(500),
            at(990),
            at(1_000),
            ms(end)
        );
    }
}

fn filled(tasks: u64, queues: u64) -> QueueMachine {
    let info = ShardInfo { shard: ShardId(0), incarnation: Incarnation(1) };
    let mut machine = QueueMachine::restore(info, &mut RowStore::default()).expect("no rows are the initial state");
    let mut effects = Effects::default();
    let mut bytes = Vec::new();
    for number in 0..tasks {
        if number % 500 == 0 {
            let stamps = Stamps { lease: LeaseTime(number), schedule: ScheduleTime(number) };
            let entry = EntryInfo { term: Term(1), index: Index(2 + number / 500), stamps, seed: [0; 16] };
            machine.begin_entry(&entry, &mut effects);
        }
        effects.signals.clear();
        effects.woken.clear();
        let (command, key) = (format!("queue-{}", number % queues), format!("key-{number}"));
        let payload = br#"{"to":"somebody@example.com","subject":"hello"}"#;
        let schedule = Schedule::Now;
        let body = body_digest(payload, 0, "", None, &schedule);
        let scope = scope_digest("acme", &command, &key);
        let create = Op::Create(Create {
            tenant: "acme",
            command: &command,
            priority: 0,
            payload,
            schedule,
            webhook: "",
            max_attempts: None,
            key: Some(IdempotencyKey { text: &key, scope, body }),
        });
        bytes.clear();
        codec::encode(&create, &mut bytes);
        machine.apply(&bytes, &mut effects).expect("it is known");
    }
    machine
}
