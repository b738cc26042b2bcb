//! Cancelling: a waiting task ends at once; the holder of a leased one is asked to stop, or loses it by force.

use std::sync::Arc;

use base::machine::Effects;

use crate::history::Happening;
use crate::id::TaskKey;
use crate::machine::QueueMachine;
use crate::outcome::{Outcome, Rejection, State};
use crate::slab::Slot;
use crate::task::{Ending, Note, Stage};

impl QueueMachine {
    pub(crate) fn cancel(
        &mut self,
        tenant: &str,
        task: TaskKey,
        reason: &str,
        force: bool,
        effects: &mut Effects<Self>,
    ) -> Result<Outcome, Rejection> {
        let slot = self.live(tenant, task).ok_or(Rejection::NotLive)?;
        let leased = matches!(self.tasks.get(slot).stage, Stage::Leased(_));
        if leased && !force {
            if !self.tasks.get(slot).cancel_requested {
                self.change(slot);
                let reason: Arc<str> = self.cut(reason).into();
                let task = self.tasks.get_mut(slot);
                task.cancel_requested = true;
                let attempt = task.attempts;
                task.extras.get_or_insert_default().cancel_reason = reason.clone();
                let state = Some(State::Leased);
                let note = Note { from: state, to: state, attempt, reason: &reason, ..Note::default() };
                self.note(slot, Happening::CancelRequested, &note);
            }
            return Ok(Outcome::CancelRequested(Box::new(self.view(self.tasks.get(slot)))));
        }
        let view = self.finish(slot, &Ending::Cancelled { reason }, effects);
        Ok(Outcome::Cancelled(Box::new(view.as_ref().clone())))
    }

    /// Why the holder of this task was asked to stop.
    pub(crate) fn cancel_reason(&self, slot: Slot) -> Arc<str> {
        self.tasks.get(slot).extras.as_ref().map(|extras| extras.cancel_reason.clone()).unwrap_or_default()
    }
}
