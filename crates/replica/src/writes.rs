//! In which order a hard state and entries that came with it are written.

use base::log::{Entry, HardState};
use base::{Index, ShardId};
use consensus::codec::MEMBERS;

use crate::event::Write;

/// What to write, so that whatever of it survives a torn write can be gone on from. The commit index grows with the entries:
///
/// - It counts none that stand behind it: a log that ends before it would look as if it had lost something.
/// - It counts all that are known to be committed before an entry that changes the members, and the last of all is the whole of it. A node
///   goes by the members of what it knows to be committed. Before a leader proposes a second change it has applied the first, so whoever has
///   the second in its log must know as much; otherwise it could be elected, and commit, by voters of long ago.
pub(crate) fn in_order(shard: ShardId, state: Option<HardState>, entries: Vec<Entry>) -> Vec<Write> {
    let mut writes = Vec::with_capacity(entries.len() + 2);
    let mut said = None;
    let mut say = |commit: Option<Index>, writes: &mut Vec<Write>| {
        let Some(state) = state else { return };
        let commit = commit.map_or(state.commit, |before| state.commit.min(before));
        if said.is_none_or(|known| known < commit) {
            said = Some(commit);
            writes.push(Write::HardState(shard, HardState { commit, ..state }));
        }
    };
    for (place, entry) in entries.into_iter().enumerate() {
        if place == 0 || entry.data.first() == Some(&MEMBERS) {
            say(Some(Index(entry.index.0 - 1)), &mut writes);
        }
        writes.push(Write::Entry(shard, entry));
    }
    say(None, &mut writes);
    writes
}

#[cfg(test)]
mod tests {
    use base::Term;

    use super::*;

    fn entry(index: u64, kind: u8) -> Entry {
        Entry { index: Index(index), term: Term(2), data: vec![kind].into() }
    }

    /// What is written, as `commit n` and `entry n`.
    fn written(commit: u64, entries: Vec<Entry>) -> Vec<String> {
        let state = HardState { term: Term(2), vote: 1, commit: Index(commit) };
        let writes = in_order(ShardId(0), Some(state), entries).into_iter().map(|write| match write {
            Write::Entry(_, entry) => format!("entry {}", entry.index),
            Write::HardState(_, HardState { commit, .. }) => format!("commit {commit}"),
            Write::Restart(..) => "restart".into(),
        });
        writes.collect()
    }

    #[test]
    fn no_commit_index_counts_entries_behind_it() {
        assert_eq!(written(4, vec![]), ["commit 4"]);
        assert_eq!(written(4, vec![entry(5, 1), entry(6, 1)]), ["commit 4", "entry 5", "entry 6"]);
        assert_eq!(written(6, vec![entry(5, 1), entry(6, 1)]), ["commit 4", "entry 5", "entry 6", "commit 6"]);
    }

    #[test]
    fn a_change_of_the_members_stands_behind_what_is_committed_before_it() {
        let entries = vec![entry(5, MEMBERS), entry(6, 1), entry(7, MEMBERS), entry(8, 1)];
        let expected = ["commit 4", "entry 5", "entry 6", "commit 6", "entry 7", "entry 8", "commit 7"];
        assert_eq!(written(7, entries.clone()), expected);
        assert_eq!(written(5, entries)[3..], ["commit 5", "entry 7", "entry 8"]);
    }

    #[test]
    fn entries_alone_say_nothing_of_commits() {
        let writes = in_order(ShardId(0), None, vec![entry(5, MEMBERS)]);
        assert!(matches!(writes[..], [Write::Entry(..)]));
    }
}
