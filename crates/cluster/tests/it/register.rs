//! The smallest state machine that shows what replication promises: a list of lines, in the order in which they were written.

use base::codec::Malformed;
use base::machine::{Effects, EntryInfo, ShardInfo, StateMachine, UnknownOperation, WaitKey};
use base::rows::{Changes, Column, RowSource, Schema, Table, Unreadable};
use base::{LeaseTime, ScheduleTime, Stamps};

#[derive(Clone, Debug, Default)]
pub(crate) struct Register {
    lines: Vec<String>,
    stamps: Stamps,
    saved: usize,
    frozen: Option<(usize, usize)>,
}

const LINES: u8 = 0;
const CLOCKS: u8 = 1;

const TABLES: &[Table] = &[
    Table { name: "lines", sliced: false, columns: &[Column { name: "line", kind: "TEXT" }], indexes: &[] },
    Table {
        name: "clocks",
        sliced: false,
        columns: &[Column { name: "lease", kind: "INTEGER" }, Column { name: "schedule", kind: "INTEGER" }],
        indexes: &[],
    },
];

impl StateMachine for Register {
    /// How many lines there are then.
    type Outcome = u64;
    type Query = ();
    type Answer = Vec<String>;
    type Signal = ();

    fn schema() -> Schema {
        Schema { tables: TABLES, views: &[] }
    }

    fn restore(_info: ShardInfo, rows: &mut dyn RowSource) -> Result<Register, Unreadable> {
        let mut register = Register::default();
        rows.for_each(LINES, &mut |_, _, row| {
            register.lines.push(row.reader().text()?.into());
            Ok(())
        })?;
        rows.for_each(CLOCKS, &mut |_, _, row| {
            let mut row = row.reader();
            register.stamps = Stamps { lease: LeaseTime(row.number()?), schedule: ScheduleTime(row.number()?) };
            Ok(())
        })?;
        register.saved = register.lines.len();
        Ok(register)
    }

    fn stamps(&self) -> Stamps {
        self.stamps
    }

    fn begin_entry(&mut self, entry: &EntryInfo, _effects: &mut Effects<Self>) {
        self.stamps = Stamps {
            lease: self.stamps.lease.max(entry.stamps.lease),
            schedule: self.stamps.schedule.max(entry.stamps.schedule),
        };
    }

    fn apply(&mut self, operation: &[u8], _effects: &mut Effects<Self>) -> Result<u64, UnknownOperation> {
        self.lines.push(String::from_utf8_lossy(operation).into_owned());
        Ok(self.lines.len() as u64)
    }

    fn query(&self, (): &()) -> (Vec<String>, Option<WaitKey>) {
        (self.lines.clone(), None)
    }

    fn freeze(&mut self) {
        self.frozen = Some((self.saved, self.lines.len()));
    }

    fn collect(&mut self, rows_max: usize, changes: &mut Changes) -> bool {
        let (next, end) = self.frozen.as_mut().expect("a save is in progress");
        for place in *next..(*next + rows_max).min(*end) {
            changes.put(LINES, 0, place as i64, |row| row.text(&self.lines[place]));
            *next += 1;
        }
        changes.put(CLOCKS, 0, 0, |row| {
            row.number(self.stamps.lease.0);
            row.number(self.stamps.schedule.0);
        });
        next == end
    }

    fn saved(&mut self) -> Box<dyn Send> {
        let (_, end) = self.frozen.take().expect("a save is in progress");
        self.saved = end;
        Box::new(())
    }

    fn encode_outcome(outcome: &u64, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&outcome.to_le_bytes());
    }

    fn decode_outcome(bytes: &[u8]) -> Result<u64, Malformed> {
        bytes.try_into().map(u64::from_le_bytes).map_err(|_| Malformed)
    }
}
