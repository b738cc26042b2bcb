//! Which tasks have changed lately, for whoever waits until one changes. Not part of the state: a node that has just restored it knows
//! nothing, and says so by taking every task for changed.

use std::collections::VecDeque;

use base::Index;

/// Changes that are remembered: 1 MiB.
const CHANGES_MAX: usize = 65_536;

/// The last changes, in order.
#[derive(Debug, Default)]
pub(crate) struct RecentChanges {
    /// The entry, and the key of a task that it has changed.
    changes: VecDeque<(Index, u64)>,
    /// Everything that entries after this one have changed is remembered; nothing: no entry was applied yet.
    complete_after: Option<Index>,
    /// How many of them are new to those who wait.
    untold: usize,
}

impl RecentChanges {
    /// An entry begins.
    pub(crate) fn begin(&mut self, entry: Index) {
        self.complete_after.get_or_insert(Index(entry.0.saturating_sub(1)));
    }

    /// It changes a task.
    pub(crate) fn note(&mut self, entry: Index, task: u64) {
        if self.changes.len() == CHANGES_MAX
            && let Some((forgotten, _)) = self.changes.pop_front()
        {
            self.complete_after = Some(forgotten);
        }
        self.changes.push_back((entry, task));
        self.untold = (self.untold + 1).min(CHANGES_MAX);
    }

    /// The tasks that have changed since this was asked last.
    pub(crate) fn take_untold(&mut self) -> impl Iterator<Item = u64> {
        let untold = std::mem::take(&mut self.untold);
        self.changes.range(self.changes.len() - untold..).map(|(_, task)| *task)
    }

    /// Whether a task may have changed after this entry.
    pub(crate) fn has_changed(&self, task: u64, after: Index) -> bool {
        let later = self.changes.iter().rev().take_while(|(entry, _)| *entry > after);
        self.complete_after.is_none_or(|complete| after < complete) || later.map(|(_, key)| *key).any(|key| key == task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_counts_as_changed() {
        let mut changes = RecentChanges::default();
        assert!(changes.has_changed(1, Index(0)), "nothing is known yet");
        changes.begin(Index(5));
        changes.note(Index(5), 1);
        changes.begin(Index(6));
        changes.note(Index(6), 2);
        assert_eq!(changes.take_untold().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(changes.take_untold().count(), 0);
        assert!(changes.has_changed(1, Index(3)), "entries before the first one here are unknown");
        assert!(changes.has_changed(1, Index(4)) && !changes.has_changed(1, Index(5)));
        assert!(changes.has_changed(2, Index(5)) && !changes.has_changed(2, Index(6)));
        for index in 0..CHANGES_MAX as u64 {
            changes.note(Index(7 + index), 3);
        }
        assert!(changes.has_changed(2, Index(5)), "it was forgotten");
        assert!(!changes.has_changed(2, Index(6)), "it is known of every later entry that it did not");
    }
}
