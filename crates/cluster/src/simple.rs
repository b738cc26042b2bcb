//! State machines whose whole state is small: a checkpoint is one row, written anew whenever something was applied.
//!
//! Whoever has more than a few megabytes implements [`StateMachine`] itself, whose checkpoints hold only what has changed, and which can
//! also wait, expire and observe.
//!
//! ```
//! use cluster::codec::Malformed;
//! use cluster::{Data, EntryInfo, Freshness, Node, ShardId, Simple, SimpleMachine, UnknownOperation};
//!
//! /// A counter that is raised by one byte at most.
//! #[derive(Default)]
//! struct Counter(u64);
//!
//! impl SimpleMachine for Counter {
//!     type Query = ();
//!     type Answer = u64;
//!
//!     fn apply(&mut self, operation: &[u8], _entry: &EntryInfo) -> Result<Vec<u8>, UnknownOperation> {
//!         let [step] = operation else { return Err(UnknownOperation) };
//!         self.0 += u64::from(*step);
//!         Ok(self.0.to_le_bytes().into())
//!     }
//!
//!     fn query(&self, (): &()) -> u64 {
//!         self.0
//!     }
//!
//!     fn snapshot(&self) -> Vec<u8> {
//!         self.0.to_le_bytes().into()
//!     }
//!
//!     fn restore(snapshot: &[u8]) -> Result<Counter, Malformed> {
//!         snapshot.try_into().map(|bytes| Counter(u64::from_le_bytes(bytes))).map_err(|_| Malformed)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let node = Node::<Simple<Counter>>::builder(Data::Memory).name("a").start()?;
//! node.handle().ready().await;
//! let (_, answered) = node.handle().propose(ShardId(0), &[3]).await?;
//! assert_eq!(answered, 3u64.to_le_bytes());
//! let (position, count) = node.handle().read(ShardId(0), (), Freshness::Linearizable).await?;
//! assert_eq!(count, 3);
//! println!("3 as of {position}");
//! node.shut_down().await?;
//! # Ok(())
//! # })
//! # }
//! ```

use base::codec::Malformed;
use base::machine::{Effects, EntryInfo, ShardInfo, StateMachine, UnknownOperation, WaitKey};
use base::rows::{Changes, Column, RowSource, Schema, Table, TableId, Unreadable};
use base::{Index, LeaseTime, ScheduleTime, Stamps, Term};

/// A deterministic state machine that fits into one row.
///
/// Every replica applies the same operations in the same order and must become the same: no clock, no randomness, no disk, no iteration
/// in random order; time and randomness come with the entry. A panic stops the node. What it keeps is for it to limit.
pub trait SimpleMachine: Default + Send + 'static {
    /// A question that changes nothing.
    type Query: Clone + Send;
    /// What a question is answered with.
    type Answer: Send;

    /// Applies an operation and answers whoever proposed it. `entry`: where in the log it stands, its leader's clocks, which never go
    /// back, and 16 random bytes, the same for all operations of the entry.
    ///
    /// # Errors
    /// The operation is of a kind that this build does not know. The node stops, because it cannot agree with the others: operations that
    /// are merely refused are answered.
    fn apply(&mut self, operation: &[u8], entry: &EntryInfo) -> Result<Vec<u8>, UnknownOperation>;

    /// Answers a question from the present state.
    fn query(&self, query: &Self::Query) -> Self::Answer;

    /// The whole state. Called before each checkpoint, on the thread that applies: it should take milliseconds.
    fn snapshot(&self) -> Vec<u8>;

    /// The state that [`SimpleMachine::snapshot`] wrote, in this build or an earlier one.
    ///
    /// # Errors
    /// The bytes are something else; the node does not start.
    fn restore(snapshot: &[u8]) -> Result<Self, Malformed>;
}

/// Makes a [`StateMachine`] of a [`SimpleMachine`].
pub struct Simple<M> {
    machine: M,
    /// The entry begun last.
    entry: EntryInfo,
    /// Something has begun since the save before.
    changed: bool,
    /// What is to be saved.
    frozen: Option<(Vec<u8>, Stamps)>,
}

const STATE: TableId = 0;

const TABLES: &[Table] = &[Table {
    name: "state",
    sliced: false,
    columns: &[
        Column { name: "snapshot", kind: "BLOB" },
        Column { name: "lease_clock", kind: "INTEGER" },
        Column { name: "schedule_clock", kind: "INTEGER" },
    ],
    indexes: &[],
}];

impl<M: SimpleMachine> StateMachine for Simple<M> {
    type Outcome = Vec<u8>;
    type Query = M::Query;
    type Answer = M::Answer;
    type Signal = ();

    fn schema() -> Schema {
        Schema { tables: TABLES, views: &[] }
    }

    fn restore(_info: ShardInfo, rows: &mut dyn RowSource) -> Result<Simple<M>, Unreadable> {
        let entry = EntryInfo { term: Term(0), index: Index(0), stamps: Stamps::default(), seed: [0; 16] };
        let mut simple = Simple { machine: M::default(), entry, changed: false, frozen: None };
        rows.for_each(STATE, &mut |_, _, row| {
            let mut row = row.reader();
            simple.machine = M::restore(row.maybe_bytes()?.ok_or(Malformed)?)?;
            simple.entry.stamps = Stamps { lease: LeaseTime(row.number()?), schedule: ScheduleTime(row.number()?) };
            Ok(())
        })?;
        Ok(simple)
    }

    fn stamps(&self) -> Stamps {
        self.entry.stamps
    }

    fn begin_entry(&mut self, entry: &EntryInfo, _effects: &mut Effects<Self>) {
        let before = self.entry.stamps;
        self.entry = *entry;
        self.entry.stamps.lease = before.lease.max(entry.stamps.lease);
        self.entry.stamps.schedule = before.schedule.max(entry.stamps.schedule);
        self.changed = true;
    }

    fn apply(&mut self, operation: &[u8], _effects: &mut Effects<Self>) -> Result<Vec<u8>, UnknownOperation> {
        self.machine.apply(operation, &self.entry)
    }

    fn encode_outcome(outcome: &Vec<u8>, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(outcome);
    }

    fn decode_outcome(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        Ok(bytes.to_vec())
    }

    fn query(&self, query: &M::Query) -> (M::Answer, Option<WaitKey>) {
        (self.machine.query(query), None)
    }

    fn freeze(&mut self) {
        self.frozen = self.changed.then(|| (self.machine.snapshot(), self.entry.stamps));
        self.changed = false;
    }

    fn collect(&mut self, _rows_max: usize, changes: &mut Changes) -> bool {
        if let Some((snapshot, stamps)) = self.frozen.take() {
            changes.put(STATE, 0, 0, |row| {
                // Text stays readable for an operator.
                row.readable(&snapshot);
                row.number(stamps.lease.0);
                row.number(stamps.schedule.0);
            });
        }
        true
    }

    fn saved(&mut self) -> Box<dyn Send> {
        Box::new(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::rowstore::RowStore;
    use base::{Incarnation, ShardId};

    /// Remembers what it was told, and when.
    #[derive(Default)]
    struct Told(Vec<u8>);

    impl SimpleMachine for Told {
        type Query = ();
        type Answer = Vec<u8>;

        fn apply(&mut self, operation: &[u8], entry: &EntryInfo) -> Result<Vec<u8>, UnknownOperation> {
            self.0.extend_from_slice(operation);
            Ok(vec![entry.stamps.lease.0 as u8])
        }

        fn query(&self, (): &()) -> Vec<u8> {
            self.0.clone()
        }

        fn snapshot(&self) -> Vec<u8> {
            self.0.clone()
        }

        fn restore(snapshot: &[u8]) -> Result<Told, Malformed> {
            if snapshot == b"damaged" { Err(Malformed) } else { Ok(Told(snapshot.to_vec())) }
        }
    }

    const INFO: ShardInfo = ShardInfo { shard: ShardId(0), incarnation: Incarnation(1) };

    fn entry(index: u64, lease: u64) -> EntryInfo {
        let stamps = Stamps { lease: LeaseTime(lease), schedule: ScheduleTime(0) };
        EntryInfo { term: Term(1), index: Index(index), stamps, seed: [0; 16] }
    }

    fn tell(machine: &mut Simple<Told>, at: EntryInfo, text: &[u8]) -> Vec<u8> {
        let mut effects = Effects::default();
        machine.begin_entry(&at, &mut effects);
        machine.apply(text, &mut effects).expect("it is known")
    }

    fn save(machine: &mut Simple<Told>, rows: &mut RowStore, meanwhile: impl FnOnce(&mut Simple<Told>)) -> usize {
        machine.freeze();
        meanwhile(machine);
        let mut changes = Changes::default();
        assert!(machine.collect(512, &mut changes));
        drop(machine.saved());
        rows.apply(&changes).expect("the rows can be written");
        changes.len()
    }

    /// A checkpoint holds the state as it was frozen, also the empty one, with its clocks; and nothing is written when nothing was applied.
    #[test]
    fn what_is_saved_is_restored() {
        let mut rows = RowStore::default();
        let mut machine = Simple::<Told>::restore(INFO, &mut rows).expect("there are no rows");
        assert_eq!(save(&mut machine, &mut rows, |_| {}), 0);
        tell(&mut machine, entry(1, 7), b"");
        assert_eq!(save(&mut machine, &mut rows, |_| {}), 1);
        tell(&mut machine, entry(2, 9), b"one");
        assert_eq!(save(&mut machine, &mut rows, |machine| drop(tell(machine, entry(3, 11), b"\xff"))), 1);
        let restored = Simple::<Told>::restore(INFO, &mut rows).expect("the rows read back");
        assert_eq!((restored.query(&()).0, restored.stamps().lease), (b"one".to_vec(), LeaseTime(9)));
        assert_eq!(save(&mut machine, &mut rows, |_| {}), 1);
        assert_eq!(save(&mut machine, &mut rows, |_| {}), 0);
        let restored = Simple::<Told>::restore(INFO, &mut rows).expect("the rows read back");
        assert_eq!((restored.query(&()).0, restored.stamps().lease), (b"one\xff".to_vec(), LeaseTime(11)));
        tell(&mut machine, entry(4, 12), b"");
        machine.machine.0 = b"damaged".to_vec();
        save(&mut machine, &mut rows, |_| {});
        assert!(Simple::<Told>::restore(INFO, &mut rows).is_err());
    }

    /// A leader whose clock is behind does not turn time back.
    #[test]
    fn the_clocks_never_go_back() {
        let mut machine = Simple::<Told>::restore(INFO, &mut RowStore::default()).expect("there are no rows");
        let told: Vec<u8> = [5, 3, 6].iter().flat_map(|lease| tell(&mut machine, entry(1, *lease), b"")).collect();
        assert_eq!(told, [5, 5, 6]);
    }
}
