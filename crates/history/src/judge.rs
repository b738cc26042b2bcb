//! What a history shows: nothing wrong, something wrong, or too little.
//!
//! The passes, each in a file of its own, in this order: `form` (is it a history?), `place` (what in the log is whose operation?),
//! `session` (what one client saw), `replay` (the reference model says what must have been answered), `order` (what was answered before
//! something else was asked), `heal` (did it come back?). The first violation of the first pass that finds one ends it: what comes after a
//! violation follows from it as likely as not. The ids are those of docs/internals/history.md.

use std::collections::BTreeMap;

use crate::History;
use crate::record::Task;
use crate::report::Report;
use crate::{form, heal, order, place, replay, report, session};

/// What a history shows.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing wrong.
    Green(Summary),
    /// Something that must not be.
    Red(Box<Report>),
    /// Too little, or it is no history. Nobody may take this for green.
    Inconclusive(String),
}

/// What was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Operations.
    pub operations: usize,
    /// Operations answered.
    pub answered: usize,
    /// Operations of unknown outcome that had happened.
    pub happened: usize,
    /// Operations of unknown outcome that had not.
    pub vanished: usize,
    /// Operations in the logs.
    pub logged: usize,
    /// Entries.
    pub entries: usize,
    /// Rare things, by their names in docs/internals/simulation.md, and how often the logs show them.
    pub reached: BTreeMap<&'static str, usize>,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// The property.
    pub(crate) id: &'static str,
    pub(crate) what: String,
    /// Operations that show it: indexes of rows.
    pub(crate) rows: Vec<usize>,
    pub(crate) task: Option<Task>,
    /// Shard and index of the entry after which it shows.
    pub(crate) at: Option<(u16, u64)>,
}

impl Finding {
    pub(crate) fn new(id: &'static str, what: impl Into<String>) -> Finding {
        Finding { id, what: what.into(), rows: Vec::new(), task: None, at: None }
    }

    /// Shown by this operation.
    pub(crate) fn by(mut self, row: usize) -> Finding {
        self.rows.push(row);
        self
    }

    pub(crate) fn of(mut self, task: Task) -> Finding {
        self.task = Some(task);
        self
    }

    pub(crate) fn at(mut self, shard: u16, index: u64) -> Finding {
        self.at = Some((shard, index));
        self
    }
}

/// Why a pass ends the judgement.
#[derive(Debug)]
pub(crate) enum Stop {
    Found(Finding),
    Inconclusive(String),
}

impl From<Finding> for Stop {
    fn from(finding: Finding) -> Stop {
        Stop::Found(finding)
    }
}

/// Says what a history shows.
pub fn judge(history: &History) -> Verdict {
    match passes(history) {
        Ok(summary) => Verdict::Green(summary),
        Err(Stop::Found(finding)) => Verdict::Red(Box::new(report::report(history, &finding))),
        Err(Stop::Inconclusive(why)) => Verdict::Inconclusive(why),
    }
}

fn passes(history: &History) -> Result<Summary, Stop> {
    let run = form::check(history)?;
    let places = place::check(history)?;
    session::check(history)?;
    let reached = replay::check(history, run, &places)?;
    order::check(history, &places)?;
    heal::check(history, run)?;
    let answered = history.rows.iter().filter(|row| row.came == crate::history::Came::Answered).count();
    Ok(Summary { operations: history.rows.len(), answered, reached, ..places.summary })
}
