//! What was answered before something else was asked: an operation stands in the log behind all that was answered before it began, and a
//! linearizable answer reflects it.

use std::collections::BTreeMap;

use crate::History;
use crate::history::{Came, Kind};
use crate::judge::{Finding, Stop};
use crate::place::Places;

pub(crate) fn check(history: &History, places: &Places) -> Result<(), Stop> {
    let mut by_shard: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    for (place, row) in history.rows.iter().enumerate() {
        if row.came == Came::Answered && row.kind != Kind::Stale {
            by_shard.entry(row.shard).or_default().push(place as u32);
        }
    }
    let row = |place: u32| &history.rows[place as usize];
    for by_end in by_shard.values_mut() {
        let mut by_start = by_end.clone();
        by_end.sort_unstable_by_key(|place| row(*place).t1);
        by_start.sort_unstable_by_key(|place| row(*place).t0);
        let mut ended = by_end.iter().peekable();
        let mut latest: Option<u32> = None;
        for place in by_start {
            while let Some(end) = ended.next_if(|end| row(**end).t1 < row(place).t0) {
                if latest.is_none_or(|latest| row(*end).index > row(latest).index) {
                    latest = Some(*end);
                }
            }
            let Some(before) = latest else { continue };
            let (this, seen) = (row(place), row(before).index);
            let in_log = places.in_log[place as usize];
            let id = match this.kind {
                _ if in_log => (this.index <= seen).then_some("S16"),
                Kind::AtLeast | Kind::Stale => None,
                Kind::Linearizable | Kind::Claim | Kind::Write => (this.index < seen).then_some("S14"),
            };
            if let Some(id) = id {
                let what = format!(
                    "{} began after {} was answered at {}:{seen}, and was answered at {}",
                    this.number,
                    row(before).number,
                    this.shard,
                    this.index
                );
                return Err(Finding::new(id, what).by(before as usize).by(place as usize).into());
            }
        }
    }
    Ok(())
}
