//! Looking through rows of a checkpoint file, in the order of an index or of their keys.

use std::ops::ControlFlow;

use base::rows::{Look, Row, RowWriter, Scan, TableId, Value, Wanted};
use rusqlite::Statement;

use crate::StorageError;
use crate::checkpoint::sqlite::{SqliteReader, error, index_name, name, put_value, read_row};

impl Look for SqliteReader {
    type Error = StorageError;

    fn slices(&mut self, table: TableId) -> Result<Vec<u32>, StorageError> {
        if !self.schema.tables[usize::from(table)].sliced {
            return Ok(vec![0]);
        }
        Ok(self.slices.get(&table).cloned().unwrap_or_default())
    }

    fn row(&mut self, table: TableId, slice: u32, key: i64) -> Result<Option<Vec<u8>>, StorageError> {
        read_row(&self.connection, &self.path, &self.schema, table, slice, key)
    }

    fn groups(
        &mut self,
        table: TableId,
        slice: u32,
        index: usize,
        beginning: Row<'_>,
        max: usize,
    ) -> Result<Option<Vec<Vec<u8>>>, StorageError> {
        let failed = error(&self.path, "read");
        let definition = &self.schema.tables[usize::from(table)];
        let index = &definition.indexes[index];
        let table_name = name(&self.schema, table, slice);
        let fixed = values(beginning).len();
        let columns = index.group.join(", ");
        let by = index_name(&table_name, index);
        // The first group with so many values of a given one and, if it is to be another one, a later value behind them. Each is one step
        // down the index: for all values at once, `(a, b) > (?, ?)`, SQLite would begin with that group and pass over all of it.
        let statement = |same: usize, later: bool| {
            let equal = index.group[..same].iter().map(|column| format!("{column} = ?"));
            let above = later.then(|| format!("{} > ?", index.group[same]));
            let conditions: Vec<String> = equal.chain(above).collect();
            let conditions = if conditions.is_empty() { "1".into() } else { conditions.join(" AND ") };
            format!("SELECT {columns} FROM {table_name} INDEXED BY {by} WHERE {conditions} ORDER BY {columns} LIMIT 1")
        };
        let first = statement(fixed, false);
        let next: Vec<String> = (fixed..index.group.len()).rev().map(|same| statement(same, true)).collect();
        let find = |sql: &str, given: &[Value<'_>]| {
            let mut statement = self.connection.prepare_cached(sql).map_err(&failed)?;
            bind_from(&mut statement, 1, given).map_err(&failed)?;
            let mut rows = statement.raw_query();
            let Some(row) = rows.next().map_err(&failed)? else { return Ok(None) };
            let mut group = Vec::new();
            let mut writer = RowWriter::new(&mut group);
            (0..index.group.len()).try_for_each(|place| put_value(row, place, &mut writer)).map_err(&failed)?;
            Ok(Some(group))
        };
        let mut groups: Vec<Vec<u8>> = Vec::new();
        let mut found = find(&first, &values(beginning))?;
        while let Some(group) = found {
            if groups.len() == max {
                return Ok(None);
            }
            let last = values(Row(&group));
            found = None;
            for (place, sql) in next.iter().enumerate() {
                found = find(sql, &last[..last.len() - place])?;
                if found.is_some() {
                    break;
                }
            }
            groups.push(group);
        }
        Ok(Some(groups))
    }

    fn scan(
        &mut self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(i64, i64, Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let failed = error(&self.path, "read");
        let definition = &self.schema.tables[usize::from(scan.table)];
        let table_name = name(&self.schema, scan.table, scan.slice);
        let index = scan.index.map(|(index, _)| &definition.indexes[index]);
        let order = index.and_then(|index| index.order);
        let wanted = scan.wanted.iter().map(|wanted| match *wanted {
            Wanted::Value(place) => format!(", {}", definition.columns[place].name),
            Wanted::Bytes(place) => format!(", octet_length({})", definition.columns[place].name),
        });
        let by = index.map(|index| format!(" INDEXED BY {}", index_name(&table_name, index))).unwrap_or_default();
        let mut conditions: Vec<String> = Vec::new();
        if let Some(index) = index {
            conditions.extend(index.group.iter().map(|column| format!("{column} = ?")));
            conditions.extend(index.present.map(|column| format!("{column} IS NOT NULL")));
        }
        let (than, direction) = if scan.descending { ("<", "DESC") } else { (">", "ASC") };
        if scan.after.is_some() {
            conditions.push(match order {
                Some(order) => format!("({order}, key) {than} (?, ?)"),
                None => format!("key {than} ?"),
            });
        }
        let conditions = if conditions.is_empty() { "1".into() } else { conditions.join(" AND ") };
        let sql = format!(
            "SELECT key, {}{} FROM {table_name}{by} WHERE {conditions} ORDER BY {}key {direction}",
            order.unwrap_or("0"),
            wanted.collect::<String>(),
            order.map(|order| format!("{order} {direction}, ")).unwrap_or_default(),
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(&failed)?;
        let mut place = 1;
        if let Some((_, group)) = scan.index {
            place = bind_from(&mut statement, place, &values(group)).map_err(&failed)?;
        }
        if let Some((after, key)) = scan.after {
            let both = [after, key];
            for number in if order.is_some() { &both[..] } else { &both[1..] } {
                statement.raw_bind_parameter(place, number).map_err(&failed)?;
                place += 1;
            }
        }
        let mut rows = statement.raw_query();
        let mut bytes = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            let (key, order) = (row.get(0).map_err(&failed)?, row.get(1).map_err(&failed)?);
            bytes.clear();
            let mut writer = RowWriter::new(&mut bytes);
            (2..scan.wanted.len() + 2).try_for_each(|place| put_value(row, place, &mut writer)).map_err(&failed)?;
            if visit(order, key, Row(&bytes)).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn values(row: Row<'_>) -> Vec<Value<'_>> {
    let mut reader = row.reader();
    let mut values = Vec::new();
    while !reader.is_empty() {
        values.push(reader.value().expect("rows are written by RowWriter"));
    }
    values
}

/// Binds values from this place on; returns the place behind them.
fn bind_from(statement: &mut Statement<'_>, mut place: usize, values: &[Value<'_>]) -> rusqlite::Result<usize> {
    for value in values {
        match *value {
            Value::Int(number) => statement.raw_bind_parameter(place, number)?,
            Value::Text(text) => statement.raw_bind_parameter(place, text)?,
            Value::Blob(blob) => statement.raw_bind_parameter(place, blob)?,
            Value::Null | Value::Stored(_) => panic!("no group has such a value"),
        }
        place += 1;
    }
    Ok(place)
}
