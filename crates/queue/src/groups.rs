//! Tasks that have died, grouped by what they died of: equal errors of a queue, but for numbers, ids and quoted names.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::rows::Look;
use base::{ScheduleTime, ShardId};

use crate::id::TaskId;
use crate::listing::{Listing, Order, Reached, Search, Unlisted};
use crate::outcome::TaskView;
use crate::search::{Filter, fingerprint};

/// Groups that are told apart; tasks of further ones are left out, and then the answer is partial.
const GROUPS_MAX: usize = 10_000;

/// Ids that a group has as samples.
pub const SAMPLES: usize = 5;

/// Tasks that are read at a time.
const PAGE: usize = 2_000;

/// Tasks with the same fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Their queue.
    pub command: Arc<str>,
    /// The error of the one that died last.
    pub error: Arc<str>,
    /// How many there are.
    pub count: u64,
    /// When the first of them died.
    pub first_at: ScheduleTime,
    /// When the last one did.
    pub last_at: ScheduleTime,
    /// Some of them: those that died last.
    pub samples: Vec<TaskId>,
}

/// Groups on their way.
#[derive(Clone, Debug)]
pub struct Grouping {
    listing: Listing,
    groups: BTreeMap<u64, Group>,
    is_partial: bool,
}

impl Grouping {
    /// Groups of the tasks that fit.
    pub fn new(filter: Filter) -> Grouping {
        let order = Order::Finished { descending: true };
        let search = Search { filter, order, limit: PAGE, with_payload: false, with_result: false };
        Grouping { listing: Listing::new(search, BTreeMap::new()), groups: BTreeMap::new(), is_partial: false }
    }

    /// Reads on until there is nothing more, or `has_time` says no.
    ///
    /// # Errors
    /// The rows cannot be read, or one of them is damaged.
    pub fn read<L: Look + ?Sized>(
        &mut self,
        mut looks: Vec<(ShardId, &mut L)>,
        has_time: &dyn Fn() -> bool,
    ) -> Result<Reached, Unlisted<L::Error>> {
        loop {
            let again = looks.iter_mut().map(|(shard, look)| (*shard, &mut **look)).collect();
            let reached = self.listing.read(again, has_time)?;
            for task in std::mem::take(&mut self.listing.found) {
                self.add(&task);
            }
            if reached != Reached::Full {
                return Ok(reached);
            }
            if !has_time() {
                return Ok(Reached::OutOfTime);
            }
        }
    }

    fn add(&mut self, task: &TaskView) {
        let at = task.finished_at.unwrap_or_default();
        let key = fingerprint(&task.command, &task.error);
        if self.groups.len() == GROUPS_MAX && !self.groups.contains_key(&key) {
            self.is_partial = true;
            return;
        }
        let group = self.groups.entry(key).or_insert_with(|| Group {
            command: task.command.clone(),
            error: task.error.clone(),
            count: 0,
            first_at: at,
            last_at: at,
            samples: Vec::new(),
        });
        group.count += 1;
        group.first_at = group.first_at.min(at);
        if group.samples.len() < SAMPLES {
            group.samples.push(task.id);
        }
    }

    /// The most frequent groups, with their fingerprints, and whether tasks were left out.
    pub fn most_frequent(&mut self, limit: usize) -> (Vec<(u64, Group)>, bool) {
        let mut groups: Vec<(u64, Group)> = std::mem::take(&mut self.groups).into_iter().collect();
        groups.sort_by_key(|(fingerprint, group)| (std::cmp::Reverse(group.count), *fingerprint));
        groups.truncate(limit);
        (groups, self.is_partial)
    }
}
