//! What a person is told of a violation: its id, what was seen, the operations around it, the life of the task.

use std::fmt;

use crate::History;
use crate::history::decode;
use crate::judge::Finding;
use crate::model::Model;
use crate::record::{Call, Line, Task};

/// Something that must not be, and what is needed to understand it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The property that does not hold, as docs/internals/history.md lists them.
    pub id: &'static str,
    /// What was seen.
    pub what: String,
    /// Operations that show it and those around them, at most [`RECORDS_MAX`], as lines of the history in order of time.
    pub records: Vec<String>,
    /// The task.
    pub task: Option<Task>,
    /// Its life in the log up to there.
    pub timeline: Vec<String>,
    /// Faults and notes up to there.
    pub events: Vec<String>,
    /// The command that repeats the run.
    pub reproduce: String,
}

/// Operations shown around a violation.
pub const RECORDS_MAX: usize = 30;
/// Entries of a task's life that are shown, the last ones.
const TIMELINE_MAX: usize = 40;
/// Faults and notes shown, the last ones before its end.
const EVENTS_MAX: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} is violated: {}", self.id, self.what)?;
        let part = |f: &mut fmt::Formatter<'_>, title: &str, lines: &[String]| {
            if lines.is_empty() {
                return Ok(());
            }
            writeln!(f, "\n{title}")?;
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
        };
        part(f, "operations around it:", &self.records)?;
        part(f, "the life of the task:", &self.timeline)?;
        part(f, "what was done before:", &self.events)?;
        writeln!(f, "\nrepeat it: {}", self.reproduce)
    }
}

pub(crate) fn report(history: &History, finding: &Finding) -> Report {
    let rows = around(history, finding);
    let to = rows.last().map_or(0, |row| history.rows[*row].t0);
    let mut events: Vec<_> = history.events.iter().map(|(_, event)| event).filter(|event| event.t <= to).collect();
    events.sort_by_key(|event| event.t);
    let shown = events.len().saturating_sub(EVENTS_MAX);
    Report {
        id: finding.id,
        what: finding.what.clone(),
        records: rows.iter().map(|row| line(history, *row)).collect(),
        task: finding.task,
        timeline: finding.task.map(|task| timeline(history, task, finding.at)).unwrap_or_default(),
        events: events[shown..].iter().map(|event| format!("{} µs: {}", event.t, event.what)).collect(),
        reproduce: history.run().map(|run| run.reproduce.clone()).unwrap_or_default(),
    }
}

fn line(history: &History, row: usize) -> String {
    serde_json::to_string(&Line::Op(Box::new(history.op(&history.rows[row])))).expect("records are JSON")
}

/// The operations that show it, those on its task, and then those nearest in time, in order of time.
fn around(history: &History, finding: &Finding) -> Vec<usize> {
    let rows = &history.rows;
    let centre = match (finding.rows.last(), finding.at) {
        (Some(row), _) => rows[*row].t0,
        // An export: the operations at the end of its log.
        (None, Some((shard, index))) => {
            let before = rows.iter().filter(|row| row.shard == shard && row.index > 0 && row.index <= index);
            before.map(|row| row.t0).max().unwrap_or_default()
        }
        (None, None) => 0,
    };
    let on_task = |row: &usize| finding.task.is_some_and(|task| task_of(&history.call(&rows[*row])) == Some(task));
    let mut chosen = finding.rows.clone();
    let mut of_task: Vec<usize> = (0..rows.len()).filter(on_task).collect();
    of_task.sort_by_key(|row| rows[*row].t0.abs_diff(centre));
    chosen.extend(of_task.into_iter().take(RECORDS_MAX / 2));
    let mut nearest: Vec<usize> = (0..rows.len()).collect();
    let wanted = RECORDS_MAX.min(rows.len());
    if wanted > 0 {
        nearest.select_nth_unstable_by_key(wanted - 1, |row| rows[*row].t0.abs_diff(centre));
    }
    nearest.truncate(wanted);
    nearest.sort_by_key(|row| rows[*row].t0.abs_diff(centre));
    for row in nearest {
        if chosen.len() < RECORDS_MAX && !chosen.contains(&row) {
            chosen.push(row);
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    chosen.sort_by_key(|row| rows[*row].t0);
    chosen
}

/// The task that an operation names.
fn task_of(call: &Call) -> Option<Task> {
    match call {
        Call::Extend { lease, .. }
        | Call::Release { lease }
        | Call::Nack { lease, .. }
        | Call::Complete { lease, .. }
        | Call::Fail { lease, .. } => Some(lease.task),
        Call::Cancel { task, .. } | Call::Read { task, .. } => Some(*task),
        Call::Redrive(redrive) => Some(redrive.task),
        Call::Edit(edit) => Some(edit.task),
        Call::Amend(amend) => Some(amend.task),
        Call::Create(_)
        | Call::Claim(_)
        | Call::Configure(_)
        | Call::Stats { .. }
        | Call::Pause { .. }
        | Call::Resume { .. }
        | Call::Begin(_)
        | Call::Turn { .. }
        | Call::Step(_)
        | Call::Operations { .. } => None,
        Call::Delete(delete) => Some(delete.task),
    }
}

/// How the model sees a task's life, entry by entry, up to the violation.
fn timeline(history: &History, task: Task, at: Option<(u16, u64)>) -> Vec<String> {
    let (Some(run), Some(log)) = (history.run(), history.logs.get(&task.shard)) else { return Vec::new() };
    let end = at.filter(|(shard, _)| *shard == task.shard).map_or(u64::MAX, |(_, index)| index);
    let mut model = Model::new(task.shard, run);
    let mut lines = Vec::new();
    let mut before = None;
    for (index, entry) in log.entries.range(..=end) {
        let Some(body) = entry.body() else { continue };
        model.begin(*index, body.lease, body.schedule);
        let mut note = |model: &Model, why: &str| {
            let now = model.view(task);
            if now != before {
                let shown = now.as_ref().map_or("gone".into(), |view| {
                    let (state, attempts, most) = (view.state, view.attempts, view.max_attempts);
                    let held = view.worker.map(|worker| format!(" by {}", history.text(worker))).unwrap_or_default();
                    let stop = if view.cancel_requested { ", asked to stop" } else { "" };
                    format!("{state:?}{held}, attempts {attempts} of {most}{stop}")
                });
                let (lease, schedule) = model.clocks();
                lines.push(format!(
                    "{}:{index} lease clock {lease}, schedule clock {schedule}: {shown} ({why})",
                    task.shard
                ));
                before = now;
            }
        };
        note(&model, "due");
        for logged in history.logged(&body) {
            let call: Call = decode(logged.call);
            model.apply(&call);
            note(&model, &format!("{call:?}"));
        }
    }
    lines.drain(..lines.len().saturating_sub(TIMELINE_MAX));
    lines
}
