//! A save goes on in turns of bounded size, and ends, however much has changed.

mod support;

use base::machine::StateMachine;
use base::rows::Changes;
use queue::op::{Claim, ClaimOrder, Create, Credential, LeaseRef, Schedule};
use queue::outcome::Outcome;
use queue::{Op, QueueMachine, checkpoint};
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
