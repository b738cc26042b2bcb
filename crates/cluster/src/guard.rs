//! Whether a change would leave every group able to decide. Pure: who votes, who is alive and what is to change go in; numbers come out.

use std::fmt;

use base::ShardId;

/// What is to become of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It votes no more.
    Unvote(u64),
    /// It votes on and is not there for a while.
    Stop(u64),
    /// It votes from then on.
    Vote(u64),
    /// One takes another one's vote, and is there then.
    Succeed {
        /// Whose vote it is.
        of: u64,
        /// Who takes it.
        by: u64,
    },
}

/// How a group would stand after a change; of several groups, the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The group.
    pub group: u16,
    /// Members whose votes count then.
    pub voters: usize,
    /// How many of them were heard of lately.
    pub alive: usize,
    /// How many must be there to decide anything; 1 if there are no voters.
    pub needed: usize,
}

impl Numbers {
    /// Whether the group could decide.
    pub fn decides(&self) -> bool {
        self.alive >= self.needed
    }

    /// How many more may fail then.
    pub fn tolerance(&self) -> usize {
        self.alive.saturating_sub(self.needed)
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Numbers { group, voters, alive, needed } = self;
        match (voters, self.decides()) {
            (0, _) => write!(f, "group {group} would have no voter left"),
            (_, true) => {
                let tolerance = self.tolerance();
                write!(f, "{alive} of {voters} voters would be there, {needed} are needed: {tolerance} more may fail")
            }
            (_, false) => write!(
                f,
                "group {group}: {alive} of {voters} voters would be there, and {needed} are needed: nothing could be decided"
            ),
        }
    }
}

/// How the worst of these groups would stand after the step. `groups`: each with its voters; there is at least one.
pub(crate) fn after(groups: &[(ShardId, Vec<u64>)], step: Step, is_alive: impl Fn(u64) -> bool) -> Numbers {
    let numbers = |(group, voters): &(ShardId, Vec<u64>)| {
        let stays = |id: &&u64| match step {
            Step::Unvote(gone) | Step::Succeed { of: gone, .. } => gone != **id,
            Step::Stop(_) | Step::Vote(_) => true,
        };
        let alive = |id: &&u64| match step {
            Step::Stop(away) if away == **id => false,
            Step::Succeed { by, .. } if by == **id => true,
            _ => is_alive(**id),
        };
        let comes = match &step {
            Step::Vote(id) | Step::Succeed { by: id, .. } if !voters.contains(id) => Some(id),
            _ => None,
        };
        let voters: Vec<&u64> = voters.iter().filter(stays).chain(comes).collect();
        let there = voters.iter().filter(|id| alive(id)).count();
        Numbers { group: group.0, voters: voters.len(), alive: there, needed: voters.len() / 2 + 1 }
    };
    let margin = |numbers: &Numbers| numbers.alive as i64 - numbers.needed as i64;
    groups.iter().map(numbers).min_by_key(margin).expect("a node has a group")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(voters: &[u64], alive: &[u64], step: Step, expected: (usize, usize, usize)) {
        let numbers = after(&[(ShardId(0), voters.to_vec())], step, |id| alive.contains(&id));
        assert_eq!((numbers.voters, numbers.alive, numbers.needed), expected, "{voters:?} {alive:?} {step:?}");
    }

    /// Who goes takes a vote along, and who is down counts as a voter and not as alive.
    #[test]
    fn a_loss_is_counted_in_voters_and_in_who_is_there() {
        check(&[1, 2, 3], &[1, 2, 3], Step::Unvote(3), (2, 2, 2));
        check(&[1, 2, 3], &[1, 2], Step::Unvote(3), (2, 2, 2));
        check(&[1, 2, 3], &[1, 2], Step::Succeed { of: 3, by: 4 }, (3, 3, 2));
        check(&[1, 2, 3], &[1], Step::Succeed { of: 1, by: 4 }, (3, 1, 2));
        check(&[1, 2, 3], &[1, 2], Step::Unvote(2), (2, 1, 2));
        check(&[1, 2], &[1, 2], Step::Unvote(2), (1, 1, 1));
        check(&[1, 2], &[1], Step::Unvote(1), (1, 0, 1));
        check(&[1], &[1], Step::Unvote(1), (0, 0, 1));
        check(&[1, 2, 3, 4, 5], &[1, 2, 3], Step::Unvote(4), (4, 3, 3));
        check(&[1, 2, 3], &[1, 2, 3], Step::Unvote(9), (3, 3, 2));
        check(&[1, 2, 3], &[1, 2, 3], Step::Stop(3), (3, 2, 2));
        check(&[1], &[1], Step::Vote(2), (2, 1, 2));
        check(&[1], &[1, 2], Step::Vote(2), (2, 2, 2));
        check(&[1, 2], &[1, 2], Step::Vote(2), (2, 2, 2));
        check(&[1, 2, 3], &[1, 2], Step::Stop(2), (3, 1, 2));
        check(&[1, 2, 3], &[1, 2], Step::Stop(3), (3, 2, 2));
    }

    /// A cluster is as well as its worst group, and says so in words with the numbers.
    #[test]
    fn the_worst_group_counts() {
        let groups = [(ShardId(0), vec![1, 2, 3, 4, 5]), (ShardId(1), vec![1, 3])];
        let numbers = after(&groups, Step::Unvote(3), |id| id != 1);
        assert_eq!(numbers, Numbers { group: 1, voters: 1, alive: 0, needed: 1 });
        assert!(!numbers.decides());
        assert_eq!(
            numbers.to_string(),
            "group 1: 0 of 1 voters would be there, and 1 are needed: nothing could be decided"
        );
        let fine = after(&groups[..1], Step::Unvote(2), |_| true);
        assert_eq!(fine.to_string(), "4 of 4 voters would be there, 3 are needed: 1 more may fail");
        let last = after(&[(ShardId(0), vec![1])], Step::Unvote(1), |_| true);
        assert_eq!(last.to_string(), "group 0 would have no voter left");
    }
}
