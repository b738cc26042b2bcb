//! What the server has acknowledged, and whether it still knows.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anyhow::{Context, Result};

use crate::bench::connection::{As, Target};

/// What was acknowledged. Ids are kept as numbers: a run may make millions.
#[derive(Default)]
pub(super) struct Ledger {
    created: BTreeSet<u128>,
    /// How often each task's completion was acknowledged.
    completed: BTreeMap<u128, u32>,
    /// Creations without an answer: they may have happened.
    pub(super) maybe_created: u64,
}

/// What the check has found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    /// Tasks whose creation was acknowledged.
    pub(crate) acknowledged: u64,
    /// Of those, tasks that the server does not know.
    pub(crate) missing: u64,
    /// Tasks whose completion was acknowledged more than once.
    pub(crate) completed_twice: u64,
    /// Tasks completed by us that the server shows otherwise.
    pub(crate) not_completed: u64,
    /// One of the above, for a look into it.
    pub(crate) example: Option<String>,
}

impl Ledger {
    pub(super) fn created(&mut self, id: &str) {
        self.created.extend(number(id));
    }

    pub(super) fn completed(&mut self, id: &str) {
        if let Some(id) = number(id) {
            *self.completed.entry(id).or_default() += 1;
        }
    }

    pub(super) fn merge(&mut self, mut other: Ledger) {
        self.created.append(&mut other.created);
        for (id, count) in other.completed {
            *self.completed.entry(id).or_default() += count;
        }
        self.maybe_created += other.maybe_created;
    }
}

/// Completed tasks that are read back; all others that were created are.
const COMPLETED_READ_BACK: usize = 20_000;
/// Connections used for reading back.
const CONNECTIONS: usize = 16;

/// Reads back what was acknowledged.
pub(super) async fn verify(target: &Target, ledger: &mut Ledger) -> Result<Verdict> {
    let verdict = Rc::new(RefCell::new(Verdict { acknowledged: ledger.created.len() as u64, ..Verdict::default() }));
    let twice: Vec<u128> = ledger.completed.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
    verdict.borrow_mut().completed_twice = twice.len() as u64;
    verdict.borrow_mut().example = twice.first().map(|id| text(*id));
    // What we have not completed must be there; of what we have, an even sample.
    let mut wanted: Vec<(u128, bool)> =
        ledger.created.iter().filter(|id| !ledger.completed.contains_key(id)).map(|id| (*id, false)).collect();
    let step = (ledger.completed.len() / COMPLETED_READ_BACK).max(1);
    wanted.extend(ledger.completed.keys().step_by(step).map(|id| (*id, true)));
    let wanted = Rc::new(RefCell::new(wanted));
    let readers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (target, wanted, verdict) = (target.clone(), wanted.clone(), verdict.clone());
            tokio::task::spawn_local(async move { read_back(&target, &wanted, &verdict).await })
        })
        .collect();
    for reader in readers {
        reader.await.expect("a reader panicked")?;
    }
    Ok(Rc::into_inner(verdict).expect("every reader has ended").into_inner())
}

async fn read_back(target: &Target, wanted: &RefCell<Vec<(u128, bool)>>, verdict: &RefCell<Verdict>) -> Result<()> {
    let mut connection = target.connect().await?;
    loop {
        let Some((id, completed)) = wanted.borrow_mut().pop() else { return Ok(()) };
        let id = text(id);
        let answer = connection.get(As::Producer, &format!("/v1/codeq/tasks/{id}")).await?.expect(&[200, 404])?;
        let mut verdict = verdict.borrow_mut();
        if answer.status == 404 {
            verdict.missing += 1;
            verdict.example.get_or_insert(id);
        } else if completed && answer.text("status").context("a task has a status")? != "COMPLETED" {
            verdict.not_completed += 1;
            verdict.example.get_or_insert(id);
        }
    }
}

/// An id as the number that its digits spell.
fn number(id: &str) -> Option<u128> {
    u128::from_str_radix(&id.replace('-', ""), 16).ok()
}

fn text(id: u128) -> String {
    let digits = format!("{id:032x}");
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}
