//! Rows of a checkpoint, as values: a state machine says which rows changed, and the storage crate writes them.
//!
//! A row has a 64-bit key that is unique in its table, and a list of values in the order of the table's columns. A *sliced* table is a
//! family of equal tables, told apart by a slice number, that can be dropped one by one: deleting a slice costs nothing per row.

use std::ops::ControlFlow;

use crate::codec::{Malformed, Reader, Write};

/// Which table of the schema: its place in [`Schema::tables`].
pub type TableId = u8;

/// A column's name and its SQL type.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name as an operator sees it.
    pub name: &'static str,
    /// `INTEGER`, `TEXT` or `BLOB`: what an operator may expect there.
    pub kind: &'static str,
}

/// One table, or one family of slices.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Name as an operator sees it; a slice's number is appended to it.
    pub name: &'static str,
    /// The columns after the key.
    pub columns: &'static [Column],
    /// Whether this is a family of slices.
    pub sliced: bool,
    /// Orders in which its rows can be looked through, besides that of their keys. Each costs time whenever a row is written.
    pub indexes: &'static [Index],
}

/// An order in which the rows of a table can be looked through.
#[derive(Clone, Copy, Debug)]
pub struct Index {
    /// Its name, unique in the table.
    pub name: &'static str,
    /// Rows that are equal in these columns stand together, in the order of their keys. Null is in none of them.
    pub group: &'static [&'static str],
    /// A column that comes before the key within a group. It has a number in every row of the index.
    pub order: Option<&'static str>,
    /// Only rows in which this column is not null are in the index; nothing: all.
    pub present: Option<&'static str>,
}

impl Table {
    /// The place of a column.
    ///
    /// # Panics
    /// There is no such column.
    pub fn column(&self, name: &str) -> usize {
        self.columns.iter().position(|column| column.name == name).expect("the table has that column")
    }

    /// The place of an index.
    ///
    /// # Panics
    /// There is no such index.
    pub fn index(&self, name: &str) -> usize {
        self.indexes.iter().position(|index| index.name == name).expect("the table has that index")
    }
}

/// A query that an operator finds under a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The view's name.
    pub name: &'static str,
    /// The tables it reads, all slices included.
    pub over: &'static [TableId],
    /// An SQL select in which `{table}` stands for the table. The view is the union of it over all tables of `over`.
    pub select: &'static str,
}

/// Everything a state machine keeps in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// The tables; their place here is their [`TableId`].
    pub tables: &'static [Table],
    /// Views for operators.
    pub views: &'static [View],
}

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Nothing.
    Null,
    /// A 64-bit number.
    Int(i64),
    /// Text.
    Text(&'a str),
    /// Bytes.
    Blob(&'a [u8]),
    /// The first value of the row with the same key in this table, as the checkpoint holds it before this change.
    Stored(TableId),
}

const NULL: u8 = 0;
const INT: u8 = 1;
const TEXT: u8 = 2;
const BLOB: u8 = 3;
const STORED: u8 = 4;

/// Collects the values of one row.
pub struct RowWriter<'a>(&'a mut Vec<u8>);

impl<'a> RowWriter<'a> {
    /// Appends the row to `bytes`.
    pub fn new(bytes: &'a mut Vec<u8>) -> RowWriter<'a> {
        RowWriter(bytes)
    }

    /// Appends one value.
    pub fn value(&mut self, value: Value<'_>) {
        match value {
            Value::Null => self.0.put_u8(NULL),
            Value::Int(number) => {
                self.0.put_u8(INT);
                self.0.put_signed(number);
            }
            Value::Text(text) => {
                self.0.put_u8(TEXT);
                self.0.put_bytes(text.as_bytes());
            }
            Value::Blob(blob) => {
                self.0.put_u8(BLOB);
                self.0.put_bytes(blob);
            }
            Value::Stored(table) => {
                self.0.put_u8(STORED);
                self.0.put_u8(table);
            }
        }
    }

    /// Appends an unsigned number; SQLite keeps it as the signed number of the same bits.
    pub fn number(&mut self, number: u64) {
        self.value(Value::Int(number as i64));
    }

    /// Appends a number, or null.
    pub fn maybe_number(&mut self, number: Option<u64>) {
        self.value(number.map_or(Value::Null, |number| Value::Int(number as i64)));
    }

    /// Appends text.
    pub fn text(&mut self, text: &str) {
        self.value(Value::Text(text));
    }

    /// Appends text, or null if it is empty.
    pub fn maybe_text(&mut self, text: &str) {
        self.value(if text.is_empty() { Value::Null } else { Value::Text(text) });
    }

    /// Appends bytes, or null if there are none.
    pub fn maybe_blob(&mut self, bytes: &[u8]) {
        self.value(if bytes.is_empty() { Value::Null } else { Value::Blob(bytes) });
    }

    /// Appends bytes: as text if they are UTF-8, so that people can read them, else as a blob.
    pub fn readable(&mut self, bytes: &[u8]) {
        self.value(std::str::from_utf8(bytes).map_or(Value::Blob(bytes), Value::Text));
    }
}

/// One encoded row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a>(pub &'a [u8]);

impl<'a> Row<'a> {
    /// Reads the values from the first to the last.
    pub fn reader(&self) -> RowReader<'a> {
        RowReader(Reader::new(self.0))
    }
}

/// Takes the values of a row one after the other.
#[derive(Clone, Copy, Debug)]
pub struct RowReader<'a>(Reader<'a>);

impl<'a> RowReader<'a> {
    /// Whether all values have been taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next value.
    pub fn value(&mut self) -> Result<Value<'a>, Malformed> {
        Ok(match self.0.u8()? {
            NULL => Value::Null,
            INT => Value::Int(self.0.signed()?),
            TEXT => Value::Text(self.0.text()?),
            BLOB => Value::Blob(self.0.bytes()?),
            STORED => Value::Stored(self.0.u8()?),
            _ => return Err(Malformed),
        })
    }

    /// A number.
    pub fn number(&mut self) -> Result<u64, Malformed> {
        self.maybe_number()?.ok_or(Malformed)
    }

    /// A number that must fit the narrower type `T`.
    pub fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.number()?).map_err(|_| Malformed)
    }

    /// A number, or null.
    pub fn maybe_number(&mut self) -> Result<Option<u64>, Malformed> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Int(number) => Ok(Some(number as u64)),
            _ => Err(Malformed),
        }
    }

    /// Text; null reads as the empty text.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        match self.value()? {
            Value::Null => Ok(""),
            Value::Text(text) => Ok(text),
            _ => Err(Malformed),
        }
    }

    /// Bytes, or null; text is taken as its bytes.
    pub fn maybe_bytes(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text.as_bytes())),
            Value::Blob(blob) => Ok(Some(blob)),
            _ => Err(Malformed),
        }
    }

    /// A digest or seed of exactly `N` bytes, or null.
    pub fn maybe_array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Malformed> {
        self.maybe_bytes()?.map(|bytes| bytes.try_into().map_err(|_| Malformed)).transpose()
    }
}

/// One change of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change<'a> {
    /// Inserts or replaces a row.
    Put {
        /// The table.
        table: TableId,
        /// The slice; 0 in a table that is not sliced. A slice that does not exist is made.
        slice: u32,
        /// The row's key.
        key: i64,
        /// Its values.
        row: Row<'a>,
    },
    /// Deletes a row; one that does not exist is ignored.
    Delete {
        /// The table.
        table: TableId,
        /// The slice; 0 in a table that is not sliced.
        slice: u32,
        /// The row's key.
        key: i64,
    },
    /// Deletes a slice with all its rows; one that does not exist is ignored.
    DropSlice {
        /// The sliced table.
        table: TableId,
        /// The slice.
        slice: u32,
    },
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DROP_SLICE: u8 = 3;

/// A list of changes in one buffer, in the order in which they are to be made.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    bytes: Vec<u8>,
    count: usize,
    row: Vec<u8>,
}

impl Changes {
    /// How many changes are listed.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Memory the list takes, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Lists the insertion or replacement of a row whose values `write` appends.
    pub fn put(&mut self, table: TableId, slice: u32, key: i64, write: impl FnOnce(&mut RowWriter<'_>)) {
        self.begin(PUT, table, slice);
        self.bytes.put_u64(key as u64);
        self.row.clear();
        write(&mut RowWriter(&mut self.row));
        self.bytes.put_bytes(&self.row);
    }

    /// Lists a deletion.
    pub fn delete(&mut self, table: TableId, slice: u32, key: i64) {
        self.begin(DELETE, table, slice);
        self.bytes.put_u64(key as u64);
    }

    /// Lists the end of a slice.
    pub fn drop_slice(&mut self, table: TableId, slice: u32) {
        self.begin(DROP_SLICE, table, slice);
    }

    /// Lists the changes of `later` after those of this list. If this list is empty, that costs nothing.
    pub fn append(&mut self, later: Changes) {
        if self.is_empty() {
            *self = later;
        } else {
            self.count += later.count;
            self.bytes.extend_from_slice(&later.bytes);
        }
    }

    fn begin(&mut self, kind: u8, table: TableId, slice: u32) {
        self.count += 1;
        self.bytes.put_u8(kind);
        self.bytes.put_u8(table);
        self.bytes.put_u32(slice);
    }

    /// The changes in order.
    pub fn iter(&self) -> impl Iterator<Item = Change<'_>> {
        let mut reader = Reader::new(&self.bytes);
        (0..self.count).map(move |_| read_change(&mut reader).expect("the list was written by this type"))
    }
}

fn read_change<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, Malformed> {
    let kind = reader.u8()?;
    let table = reader.u8()?;
    let slice = reader.u32()?;
    Ok(match kind {
        PUT => Change::Put { table, slice, key: reader.u64()? as i64, row: Row(reader.bytes()?) },
        DELETE => Change::Delete { table, slice, key: reader.u64()? as i64 },
        DROP_SLICE => Change::DropSlice { table, slice },
        _ => return Err(Malformed),
    })
}

/// Where a state machine is restored from.
pub trait RowSource {
    /// Calls `visit` with (slice, key, row) for every row of the table, in ascending order of key within a slice.
    ///
    /// Stops at the first error: a row that cannot be read, or one that `visit` refuses, is damage.
    fn for_each(
        &mut self,
        table: TableId,
        visit: &mut dyn FnMut(u32, i64, Row<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Unreadable>;
}

/// A look at the rows of a checkpoint: everything that is read through it is of one moment.
pub trait Look {
    /// Why a row cannot be read.
    type Error;

    /// The slices of a table, ascending; of a table that is not sliced: 0.
    fn slices(&mut self, table: TableId) -> Result<Vec<u32>, Self::Error>;

    /// One row, whole.
    fn row(&mut self, table: TableId, slice: u32, key: i64) -> Result<Option<Vec<u8>>, Self::Error>;

    /// The groups of an index that begin with the values of `beginning`, each as a row, in any order. Nothing: there are more than `max`,
    /// or to find them would cost as much as to look through all rows.
    fn groups(
        &mut self,
        table: TableId,
        slice: u32,
        index: usize,
        beginning: Row<'_>,
        max: usize,
    ) -> Result<Option<Vec<Vec<u8>>>, Self::Error>;

    /// Calls `visit` with order, key and the wanted values of each row of `scan`, until it has enough. The order is 0 where the scan has none.
    /// Values are read as they stand: only [`Look::row`] compares a row with its checksum.
    fn scan(
        &mut self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(i64, i64, Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), Self::Error>;
}

/// Rows of one table or slice in one order.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// The table.
    pub table: TableId,
    /// The slice; 0 in a table that is not sliced.
    pub slice: u32,
    /// The place of the index that orders them, and the values of all columns of its group. Nothing: all rows, by key.
    pub index: Option<(usize, Row<'a>)>,
    /// Begin behind this order and key; in an index without an order, and without one, the first number is ignored.
    pub after: Option<(i64, i64)>,
    /// From the last to the first.
    pub descending: bool,
    /// The values to read.
    pub wanted: &'a [Wanted],
}

/// A value to read of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The column of that place.
    Value(usize),
    /// How many bytes it has.
    Bytes(usize),
}

/// The checkpoint is damaged; the text says where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_back_in_order() {
        let mut changes = Changes::default();
        changes.put(2, 7, -5, |row| {
            row.number(u64::MAX);
            row.maybe_text("");
            row.readable(b"\xff\x00");
            row.readable(b"text");
            row.value(Value::Stored(3));
        });
        changes.delete(1, 0, 9);
        changes.drop_slice(2, 7);
        let all: Vec<_> = changes.iter().collect();
        assert_eq!(all.len(), 3);
        let Change::Put { table: 2, slice: 7, key: -5, row } = all[0] else { panic!("{:?}", all[0]) };
        let mut values = row.reader();
        assert_eq!(values.number(), Ok(u64::MAX));
        assert_eq!(values.text(), Ok(""));
        assert_eq!(values.maybe_bytes(), Ok(Some(&b"\xff\x00"[..])));
        assert_eq!(values.text(), Ok("text"));
        assert_eq!(values.value(), Ok(Value::Stored(3)));
        assert!(values.is_empty());
        assert_eq!(all[1], Change::Delete { table: 1, slice: 0, key: 9 });
        assert_eq!(all[2], Change::DropSlice { table: 2, slice: 7 });
    }
}
