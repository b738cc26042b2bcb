//! Did it come back? After the last fault every operation gets an answer, those on many tasks end, and honest workers finish every task. What needs a look into the
//! cluster while it runs (who leads, how long an expired lease survives) is for whoever runs it.

use crate::History;
use crate::history::Came;
use crate::judge::{Finding, Stop};
use crate::record::{Run, Stands, State};

pub(crate) fn check(history: &History, run: &Run) -> Result<(), Stop> {
    let Some(healed) = run.healed else { return Ok(()) };
    if let Some(place) = history.rows.iter().position(|row| row.came == Came::Silent && row.t0 >= healed) {
        let row = &history.rows[place];
        let what =
            format!("{} began at {} µs, after the heal at {healed} µs, and nobody ever answered", row.number, row.t0);
        return Err(Finding::new("L2", what).by(place).into());
    }
    for export in history.exports() {
        if let Some(under_way) = export.operations.iter().find(|progress| progress.stands == Stands::Running) {
            let what = format!("after the drain node {} still has an operation under way: {under_way:?}", export.node);
            return Err(Finding::new("L4", what).at(export.at.shard, export.at.index).into());
        }
        let live = |state: State| matches!(state, State::Delayed | State::Ready | State::Leased);
        if let Some(view) = export.tasks.iter().find(|view| live(view.state)) {
            let what = format!("after the drain node {} still holds a task that is {:?}", export.node, view.state);
            return Err(Finding::new("L4", what).of(view.task).at(export.at.shard, export.at.index).into());
        }
    }
    Ok(())
}
