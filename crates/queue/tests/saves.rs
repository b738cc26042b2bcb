//! A save goes on in turns of bounded size, and ends, however much has changed.

mod support;

use base::Millis;
use base::machine::StateMachine;
use base::rows::Changes;
use queue::idempotency::scope_digest;
use queue::op::{Claim, ClaimOrder, Create, Credential, IdempotencyKey, LeaseRef, Redrive, Schedule};
use queue::outcome::{Outcome, State};
use queue::policy::Retention;
use queue::{Op, Policy, Query, QueueMachine, checkpoint};
use support::{INFO, Shard};

/// Rows per turn.
const ROWS: usize = 64;

fn create(command: &str) -> Op<'_> {
    Op::Create(Create {
        tenant: "acme",
        command,
        priority: 0,
        payload: b"1",
        schedule: Schedule::Now,
        webhook: "",
        max_attempts: None,
        key: None,
    })
}

/// Claims a task and completes it.
fn work(shard: &mut Shard) {
    let claim = Claim { tenant: "acme", worker: "w", commands: vec![], order: ClaimOrder::Fair, count: 1, lease: None };
    let Outcome::Claimed(grants) = shard.apply(&Op::Claim(claim)) else { panic!("a claim is answered") };
    let credential = Credential::Token(grants[0].token);
    let lease = LeaseRef { tenant: "acme", task: grants[0].task.id.key, credential };
    shard.apply(&Op::Complete { lease, result: b"{}", error: "" });
}

/// Saves the present state in turns, while `meanwhile` applies more; each turn's rows are written by themselves. Returns the rows of each.
fn save(shard: &mut Shard, mut meanwhile: impl FnMut(&mut Shard)) -> Vec<usize> {
    shard.machine.freeze();
    let mut turns = Vec::new();
    loop {
        assert!(turns.len() < 1_000, "the save ends");
        let mut changes = Changes::default();
        let done = shard.machine.collect(ROWS, &mut changes);
        turns.push(changes.len());
        shard.store.apply(&changes).expect("stored rows exist");
        if done {
            drop(shard.machine.saved());
            return turns;
        }
        meanwhile(shard);
    }
}

/// How many tasks are live, and how many have completed, in a state restored from the checkpoint.
fn restored(shard: &Shard) -> (usize, usize) {
    let mut store = shard.store.clone();
    QueueMachine::restore(INFO, &mut store).expect("the checkpoint reads back");
    (store.count(checkpoint::LIVE), store.count(checkpoint::COMPLETED))
}

/// More live tasks have changed than fit into a turn, and more change while they are saved.
#[test]
fn many_live_tasks_are_saved_over_many_turns() {
    let mut shard = Shard::new(0);
    (0..1_000).for_each(|_| drop(shard.apply(&create("mail"))));
    let turns = save(&mut shard, |_| ());
    assert!(turns.iter().all(|rows| *rows <= ROWS + 8), "{turns:?}");
    assert_eq!(restored(&shard), (1_000, 0));
    (0..100).for_each(|_| work(&mut shard));
    (0..200).for_each(|_| drop(shard.apply(&create("mail"))));
    save(&mut shard, |shard| (0..10).for_each(|_| work(shard)));
    assert_eq!(restored(&shard), (1_100, 100), "the state at the freeze, whatever came later");
    save(&mut shard, |_| ());
    let (live, completed) = restored(&shard);
    assert_eq!(live + completed, 1_200);
    assert!(completed > 100, "work went on");
}

/// The totals of each queue, and how many tasks it has granted by turn, as a restored state shows them.
fn totals(machine: &QueueMachine) -> Vec<String> {
    let of = |number: u64| {
        let query = Query::Queue { tenant: "acme".into(), command: format!("q{number}").into() };
        format!("{:?}", machine.query(&query).0)
    };
    (0..QUEUES).map(of).collect()
}

const QUEUES: u64 = 300;

/// New idempotency keys and changed queues take as many turns as they need, and the checkpoint has their state at the freeze although they
/// change meanwhile.
#[test]
fn many_keys_and_queues_are_saved_over_many_turns() {
    let mut shard = Shard::new(0);
    let keyed = |shard: &mut Shard, number: u64| {
        let (command, text) = (format!("q{}", number % QUEUES), format!("k{number}"));
        let key = IdempotencyKey { text: &text, scope: scope_digest("acme", &command, &text), body: [1; 16] };
        let Op::Create(create) = create(&command) else { panic!("it is a creation") };
        shard.apply(&Op::Create(Create { key: Some(key), ..create }))
    };
    for number in 0..1_000 {
        assert!(matches!(keyed(&mut shard, number), Outcome::Created(_)));
    }
    (0..500).for_each(|_| work(&mut shard));
    let before = totals(&shard.machine);
    let mut next = 1_000;
    let turns = save(&mut shard, |shard| {
        work(shard);
        keyed(shard, next);
        next += 1;
    });
    // What is about to change is listed besides.
    assert!(turns.iter().all(|rows| *rows <= ROWS + 32), "{turns:?}");
    let mut store = shard.store.clone();
    let mut copy = QueueMachine::restore(INFO, &mut store).expect("the checkpoint reads back");
    assert_eq!(totals(&copy), before);
    // A key that was saved is known again, and one that came later is not.
    std::mem::swap(&mut shard.machine, &mut copy);
    assert!(matches!(keyed(&mut shard, 999), Outcome::Replayed(_)));
    assert!(matches!(keyed(&mut shard, 1_000), Outcome::Created(_)));
}

/// Goal: a task that came back from among the dead and ended again is gone when that end's retention is over, although a checkpoint still
/// shows its first end: one that is being saved, or one that was.
#[test]
fn an_end_that_was_taken_back_is_not_shown_again() {
    for saved in [false, true] {
        let mut shard = Shard::new(0);
        let kept = Millis(1_000);
        let retention = Retention { completed: kept, failed: kept, dead: Millis(1_000_000) };
        shard.apply(&Op::Configure(Policy { retention, max_attempts: 1, ..shard.policy() }));
        let Outcome::Created(created) = shard.apply(&create("mail")) else { panic!("it is created") };
        let id = created.id;
        let claim =
            Claim { tenant: "acme", worker: "w", commands: vec![], order: ClaimOrder::Fair, count: 1, lease: None };
        let Outcome::Claimed(grants) = shard.apply(&Op::Claim(claim)) else { panic!("a claim is answered") };
        let lease = LeaseRef { tenant: "acme", task: id.key, credential: Credential::Token(grants[0].token) };
        shard.apply(&Op::Nack { lease, delay: None, reason: "" });
        let dead = shard.task(id).expect("it is kept");
        assert_eq!(dead.state, State::Dead);
        let come_and_go = |shard: &mut Shard| {
            let record = shard.record(dead.clone());
            let redriven = shard.apply(&Op::Redrive(Redrive {
                tenant: "acme",
                task: id.key,
                ended_at: dead.ended_at.expect("it has ended"),
                record: &record,
                keep_attempts: false,
                delay: Millis(0),
                priority: None,
            }));
            assert!(matches!(redriven, Outcome::Redriven(_)), "{redriven:?}");
            shard.apply(&Op::Cancel { tenant: "acme", task: id.key, reason: "", force: false });
            assert_eq!(shard.task(id).map(|task| task.state), Some(State::Cancelled));
            shard.advance(Millis(3_000));
            shard.tick();
            assert_eq!(shard.task(id), None, "it is gone");
        };
        shard.machine.freeze();
        let mut changes = Changes::default();
        if !saved {
            come_and_go(&mut shard);
        }
        while !shard.machine.collect(ROWS, &mut changes) {}
        shard.store.apply(&changes).expect("stored rows exist");
        drop(shard.machine.saved());
        if saved {
            come_and_go(&mut shard);
        }
        assert_eq!(shard.task(id), None, "nor does the checkpoint show it");
        save(&mut shard, |_| ());
        assert_eq!(shard.task(id), None, "nor the next one");
    }
}
