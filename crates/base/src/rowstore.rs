//! The rows of a checkpoint in memory: for a server that keeps nothing on disk, for the simulator, and for tests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;

use crate::codec::{Malformed, Reader, Write};
use crate::rows::{
    Change, Changes, Look, Row, RowSource, RowWriter, Scan, Schema, Table, TableId, Unreadable, Value, Wanted,
};

/// Rows by table, slice and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowStore(BTreeMap<(TableId, u32, i64), Vec<u8>>);

impl RowStore {
    /// Makes all changes, in order.
    ///
    /// # Errors
    /// A row refers to a stored one that does not exist; the changes before it have been made.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), Unreadable> {
        for change in changes.iter() {
            match change {
                Change::Put { table, slice, key, row } => {
                    let row = self.resolve(key, row)?;
                    self.0.insert((table, slice, key), row);
                }
                Change::Delete { table, slice, key } => {
                    self.0.remove(&(table, slice, key));
                }
                Change::DropSlice { table, slice } => {
                    let of_slice = (table, slice, i64::MIN)..=(table, slice, i64::MAX);
                    let keys: Vec<_> = self.0.range(of_slice).map(|(place, _)| *place).collect();
                    keys.iter().for_each(|place| drop(self.0.remove(place)));
                }
            }
        }
        Ok(())
    }

    /// One row of a table, and its slice; the newest slice that has the key, if several do.
    pub fn find(&self, table: TableId, key: i64) -> Option<(u32, Row<'_>)> {
        let mut before = (table, u32::MAX, i64::MAX);
        // One step per slice, from the newest to the oldest.
        while let Some(((_, slice, _), _)) = self.0.range((table, 0, i64::MIN)..=before).next_back() {
            if let Some(row) = self.0.get(&(table, *slice, key)) {
                return Some((*slice, Row(row)));
            }
            before = (table, slice.checked_sub(1)?, i64::MAX);
        }
        None
    }

    /// How many rows a table has, all slices together.
    pub fn count(&self, table: TableId) -> usize {
        self.0.range((table, 0, i64::MIN)..=(table, u32::MAX, i64::MAX)).count()
    }

    /// Appends all rows to `bytes`.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        for ((table, slice, key), row) in &self.0 {
            bytes.put_u8(*table);
            bytes.put_u32(*slice);
            bytes.put_u64(*key as u64);
            bytes.put_bytes(row);
        }
    }

    /// Reads what [`RowStore::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<RowStore, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut rows = BTreeMap::new();
        while !reader.is_empty() {
            let place = (reader.u8()?, reader.u32()?, reader.u64()? as i64);
            rows.insert(place, reader.bytes()?.to_vec());
        }
        Ok(RowStore(rows))
    }

    fn resolve(&self, key: i64, row: Row<'_>) -> Result<Vec<u8>, Unreadable> {
        let missing = |table| Unreadable(format!("table {table} has no row {key} that another row refers to"));
        let mut resolved = Vec::with_capacity(row.0.len());
        let mut reader = row.reader();
        while !reader.is_empty() {
            let mut value = reader.value().expect("rows are written by RowWriter");
            if let Value::Stored(table) = value {
                let (_, stored) = self.find(table, key).ok_or_else(|| missing(table))?;
                value = stored.reader().value().map_err(|Malformed| missing(table))?;
            }
            RowWriter::new(&mut resolved).value(value);
        }
        Ok(resolved)
    }
}

impl RowSource for RowStore {
    fn for_each(
        &mut self,
        table: TableId,
        visit: &mut dyn FnMut(u32, i64, Row<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Unreadable> {
        for ((_, slice, key), row) in self.0.range((table, 0, i64::MIN)..=(table, u32::MAX, i64::MAX)) {
            let refused =
                |Malformed| Unreadable(format!("row {key} of table {table}, slice {slice} does not read back"));
            visit(*slice, *key, Row(row)).map_err(refused)?;
        }
        Ok(())
    }
}

/// A look at rows in memory, which do not change meanwhile. There is nothing but their keys to find them by.
#[derive(Clone, Copy, Debug)]
pub struct StoreLook<'a> {
    /// The rows.
    pub store: &'a RowStore,
    /// Their tables.
    pub schema: Schema,
}

impl StoreLook<'_> {
    fn table(&self, table: TableId) -> &'static Table {
        &self.schema.tables[usize::from(table)]
    }

    /// Order and wanted values of a row, if it is one of the scan.
    fn select(&self, scan: &Scan<'_>, row: &[u8], out: &mut Vec<u8>) -> Option<i64> {
        let table = self.table(scan.table);
        let mut values = Vec::with_capacity(table.columns.len());
        let mut reader = Row(row).reader();
        while !reader.is_empty() {
            values.push(reader.value().expect("rows are written by RowWriter"));
        }
        let mut order = 0;
        if let Some((index, group)) = scan.index {
            let index = &table.indexes[index];
            let mut expected = group.reader();
            let same = |name: &&str| values[table.column(name)] == expected.value().expect("as long as the group");
            let is_there = |name: &str| values[table.column(name)] != Value::Null;
            if !index.group.iter().all(same) || !index.present.is_none_or(is_there) {
                return None;
            }
            if let Some(Value::Int(number)) = index.order.map(|name| values[table.column(name)]) {
                order = number;
            }
        }
        out.clear();
        let mut writer = RowWriter::new(out);
        for wanted in scan.wanted {
            match *wanted {
                Wanted::Value(place) => writer.value(values[place]),
                Wanted::Bytes(place) => writer.maybe_number(match values[place] {
                    Value::Text(text) => Some(text.len() as u64),
                    Value::Blob(blob) => Some(blob.len() as u64),
                    _ => None,
                }),
            }
        }
        Some(order)
    }
}

impl Look for StoreLook<'_> {
    type Error = Infallible;

    fn slices(&mut self, table: TableId) -> Result<Vec<u32>, Infallible> {
        if !self.table(table).sliced {
            return Ok(vec![0]);
        }
        let mut slices = Vec::new();
        let mut next = (table, 0, i64::MIN);
        while let Some(((_, slice, _), _)) = self.store.0.range(next..=(table, u32::MAX, i64::MAX)).next() {
            slices.push(*slice);
            let Some(following) = slice.checked_add(1) else { break };
            next = (table, following, i64::MIN);
        }
        Ok(slices)
    }

    fn row(&mut self, table: TableId, slice: u32, key: i64) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.store.0.get(&(table, slice, key)).cloned())
    }

    fn groups(
        &mut self,
        _table: TableId,
        _slice: u32,
        _index: usize,
        _beginning: Row<'_>,
        _max: usize,
    ) -> Result<Option<Vec<Vec<u8>>>, Infallible> {
        Ok(None)
    }

    fn scan(
        &mut self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(i64, i64, Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), Infallible> {
        let Scan { table, slice, after, descending, .. } = *scan;
        let is_ordered = scan.index.is_some_and(|(index, _)| self.table(table).indexes[index].order.is_some());
        let (mut first, mut last) = (i64::MIN, i64::MAX);
        if let (Some((_, key)), false) = (after, is_ordered) {
            match descending {
                true => last = key.saturating_sub(1),
                false => first = key.saturating_add(1),
            }
        }
        if first > last {
            return Ok(());
        }
        let rows = self.store.0.range((table, slice, first)..=(table, slice, last));
        let mut out = Vec::new();
        if !is_ordered {
            let rows: &mut dyn Iterator<Item = _> = if descending { &mut rows.rev() } else { &mut { rows } };
            for ((_, _, key), row) in rows {
                if self.select(scan, row, &mut out).is_some() && visit(0, *key, Row(&out)).is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let mut selected: Vec<(i64, i64)> =
            rows.filter_map(|((_, _, key), row)| Some((self.select(scan, row, &mut out)?, *key))).collect();
        selected.sort_unstable();
        if descending {
            selected.reverse();
        }
        let behind =
            |place: &(i64, i64)| after.is_none_or(|after| if descending { *place < after } else { *place > after });
        for (order, key) in selected.into_iter().filter(behind) {
            self.select(scan, &self.store.0[&(table, slice, key)], &mut out);
            if visit(order, key, Row(&out)).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_made_in_order_and_stored_values_are_copied() {
        let mut store = RowStore::default();
        let mut changes = Changes::default();
        changes.put(0, 0, 1, |row| row.text("payload"));
        changes.put(1, 3, 1, |row| {
            row.number(7);
            row.value(Value::Stored(0));
        });
        changes.delete(0, 0, 1);
        changes.put(1, 4, 2, |row| row.number(8));
        changes.drop_slice(1, 4);
        store.apply(&changes).expect("every stored row exists");
        assert_eq!(store.count(0), 0);
        let (slice, row) = store.find(1, 1).expect("it was put");
        let mut row = row.reader();
        assert_eq!((slice, row.number(), row.text()), (3, Ok(7), Ok("payload")));
        assert_eq!(store.find(1, 2), None);
        let mut bytes = Vec::new();
        store.encode(&mut bytes);
        assert_eq!(RowStore::decode(&bytes), Ok(store.clone()));
        assert_eq!(RowStore::decode(&bytes[..bytes.len() - 1]), Err(Malformed));

        let mut dangling = Changes::default();
        dangling.put(1, 3, 9, |row| row.value(Value::Stored(0)));
        assert!(store.apply(&dangling).is_err());
    }
}
