//! Answers that change nothing.

use std::sync::Arc;

use base::machine::WaitKey;

use crate::id::TaskId;
use crate::machine::QueueMachine;
use crate::op::{Credential, LeaseRef};
use crate::outcome::{Answer, Depth, OwnedCredential, Query, QueueStats, Totals};
use crate::ready::Queue;
use crate::retention::Recent;
use crate::slab::Slot;
use crate::task::end_of;

impl QueueMachine {
    pub(crate) fn answer(&self, query: &Query) -> (Answer, Option<WaitKey>) {
        match query {
            Query::Task { tenant, id, until_ended } => {
                if let Some(slot) = self.find(tenant, *id) {
                    let wait = until_ended.then(|| end_of(id.key.0));
                    return (Answer::Task(Arc::new(self.view(self.tasks.get(slot)))), wait);
                }
                let recent = self.recent(tenant, *id);
                (recent.map_or_else(|| Answer::NotLive { dropped: self.outdated_slices(id.key.0) }, Answer::Task), None)
            }
            Query::Lease { tenant, id, credential } => {
                let credential = match credential {
                    OwnedCredential::Token(token) => Credential::Token(*token),
                    OwnedCredential::Worker(worker) => Credential::Worker(worker),
                    OwnedCredential::Unknown => Credential::Unknown,
                };
                let lease = LeaseRef { tenant, task: id.key, credential };
                (Answer::Lease(self.held(&lease).map(|_| ())), None)
            }
            Query::Queue { tenant, command } => {
                let known = self.queue_id(tenant, command).map(|queue| stats(&self.queues[queue as usize]));
                let unknown = || QueueStats {
                    tenant: tenant.clone(),
                    command: command.clone(),
                    depth: Depth::default(),
                    totals: Totals::default(),
                };
                (Answer::Queue(known.unwrap_or_else(unknown)), None)
            }
            Query::Queues => (Answer::Queues(self.queues.iter().map(stats).collect()), None),
            Query::Policy => (Answer::Policy(self.policy), None),
        }
    }

    fn find(&self, tenant: &str, id: TaskId) -> Option<Slot> {
        self.live(tenant, id.key).filter(|_| self.id(id.key.0) == id)
    }

    /// An ended task that the checkpoint may not hold yet.
    fn recent(&self, tenant: &str, id: TaskId) -> Option<Arc<crate::outcome::TaskView>> {
        let key = id.key.0;
        // It may have come back since the save began, and ended again, and be gone by now.
        let in_time = |recent: &&Recent| {
            let returned = self.saves.outdated.get(&key) == Some(&recent.slice);
            !returned && !self.saves.dropped.contains(&(recent.table, recent.slice))
        };
        let recent = self.ended.recent.get(&key).or_else(|| self.ended.saving.get(&key).filter(in_time))?;
        (*recent.view.tenant == *tenant && recent.view.id == id).then(|| recent.view.clone())
    }
}

fn stats(queue: &Queue) -> QueueStats {
    QueueStats {
        tenant: queue.tenant.clone(),
        command: queue.command.clone(),
        depth: queue.depth(),
        totals: queue.totals,
    }
}
