//! Is it a history? Whatever is wrong here is the recorder's fault, or the run was too short to show anything.

use crate::History;
use crate::history::Came;
use crate::judge::Stop;
use crate::record::Run;

pub(crate) fn check(history: &History) -> Result<&Run, Stop> {
    let run = history.run().ok_or_else(|| Stop::Inconclusive("no line says what the run was".into()))?;
    let fault = |what: String| Err(Stop::Inconclusive(what));
    let answered = history.rows.iter().filter(|row| row.came == Came::Answered).count();
    if answered < run.operations_min as usize {
        return fault(format!("{answered} operations were answered, fewer than {}", run.operations_min));
    }
    let mut exported = vec![false; usize::from(run.shards)];
    for export in history.exports() {
        match exported.get_mut(usize::from(export.at.shard)) {
            Some(seen) => *seen = true,
            None => return fault(format!("node {} exports shard {}, of {}", export.node, export.at.shard, run.shards)),
        }
    }
    if let Some(shard) = exported.iter().position(|seen| !seen) {
        return fault(format!("nobody exports shard {shard}"));
    }
    let mut order: Vec<u32> = (0..history.rows.len() as u32).collect();
    let row = |place: u32| &history.rows[place as usize];
    order.sort_unstable_by_key(|place| (row(*place).number, row(*place).part));
    for pair in order.windows(2) {
        let (one, other) = (row(pair[0]), row(pair[1]));
        if one.number == other.number && (one.part == other.part || one.client != other.client) {
            return fault(format!("two operations have number {}, part {}", other.number, other.part));
        }
    }
    if order.first().is_some_and(|first| row(*first).number == 0) {
        return fault("an operation has no number".into());
    }
    if let Some(row) = history.rows.iter().find(|row| row.t1 < row.t0) {
        return fault(format!("operation {} ended before it began", row.number));
    }
    if let Some(row) = history.rows.iter().find(|row| row.came == Came::Answered && row.t1 == u64::MAX) {
        return fault(format!("operation {} was answered, but never", row.number));
    }
    order.sort_unstable_by_key(|place| (row(*place).client, row(*place).t0));
    // Until when the client's operations so far were open, and the last one's number.
    let mut open = (0, 0, 0);
    for place in order {
        let row = row(place);
        let (client, until, number) = open;
        let same = client == row.client;
        if same && number != row.number && row.t0 < until {
            return fault(format!("client {client} began operation {} while {number} was open", row.number));
        }
        open = (row.client, if same { until.max(row.t1) } else { row.t1 }, row.number);
    }
    Ok(run)
}
