//! Answers that change nothing.

use std::ops::Bound;
use std::sync::Arc;

use base::machine::WaitKey;
use base::{Index, ScheduleTime};

use crate::id::TaskId;
use crate::machine::QueueMachine;
use crate::op::{Credential, LeaseRef};
use crate::operations::OperationState;
use crate::outcome::{Answer, Depth, OwnedCredential, Query, QueueStats, QueuesOf, TaskView, Totals};
use crate::ready::Queue;
use crate::retention::Recent;
use crate::slab::Slot;
use crate::task::change_of;

/// Queues that one question looks at.
const QUEUES_LOOKED_MAX: usize = 2_000;

impl QueueMachine {
    pub(crate) fn answer(&self, query: &Query) -> (Answer, Option<WaitKey>) {
        match query {
            Query::Task { tenant, id, until_ended } => {
                if let Some(slot) = self.find(tenant, *id) {
                    let wait = until_ended.then(|| change_of(id.key.0));
                    return (Answer::Task(Arc::new(self.view(self.tasks.get(slot)))), wait);
                }
                let recent = self.recent(tenant, *id);
                (recent.map_or_else(|| Answer::NotLive { dropped: self.outdated_slices(id.key.0) }, Answer::Task), None)
            }
            Query::TaskAfter { tenant, id, index } => {
                let (answer, _) = self.answer(&Query::Task { tenant: tenant.clone(), id: *id, until_ended: false });
                let waits = self.find(tenant, *id).is_some() && !self.changes.has_changed(id.key.0, *index);
                (answer, waits.then(|| change_of(id.key.0)))
            }
            Query::History { tenant, id, after } => {
                let Some(slot) = self.find(tenant, *id) else {
                    return self.answer(&Query::Task { tenant: tenant.clone(), id: *id, until_ended: false });
                };
                let task = self.tasks.get(slot);
                let history = task.extras.as_ref().map_or(Vec::new(), |extras| extras.history.bytes().to_vec());
                let waits = after.is_some_and(|after| !self.changes.has_changed(id.key.0, after));
                let view = TaskView { history, ..self.view(task) };
                (Answer::Task(Arc::new(view)), waits.then(|| change_of(id.key.0)))
            }
            Query::Terms => {
                let applied = Some(self.entry.index).filter(|index| *index > Index(0));
                (Answer::Terms { terms: self.terms.clone(), applied }, None)
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
                let known = self.queue_id(tenant, command).map(|queue| self.stats(&self.queues[queue as usize]));
                let unknown = || QueueStats {
                    tenant: tenant.clone(),
                    command: command.clone(),
                    depth: Depth::default(),
                    totals: Totals::default(),
                    oldest_ready: None,
                    next_due: None,
                    consumers: 0,
                    pause: None,
                    updated_at: ScheduleTime(0),
                };
                (Answer::Queue(known.unwrap_or_else(unknown)), None)
            }
            Query::Queues => (Answer::Queues(self.queues.iter().map(|queue| self.stats(queue)).collect()), None),
            Query::QueuesOf(of) => (self.page(of), None),
            Query::Operations { tenant, running } => {
                let of = self.operations.of(tenant.as_deref());
                let asked = of.filter(|operation| !running || operation.state == OperationState::Running);
                (Answer::Operations(asked.cloned().collect()), None)
            }
            Query::Policy => (Answer::Policy(self.policy), None),
        }
    }

    fn find(&self, tenant: &str, id: TaskId) -> Option<Slot> {
        self.live(tenant, id.key).filter(|_| self.id(id.key.0) == id)
    }

    /// An ended task that the checkpoint may not hold yet.
    fn recent(&self, tenant: &str, id: TaskId) -> Option<Arc<TaskView>> {
        let key = id.key.0;
        // It may have come back since the save began, and ended again, and be gone by now.
        let in_time = |recent: &&Recent| {
            let returned = self.saves.outdated.get(&key) == Some(&recent.slice);
            !returned && !self.saves.dropped.contains(&(recent.table, recent.slice))
        };
        let recent = self.ended.recent.get(&key).or_else(|| self.ended.saving.get(&key).filter(in_time))?;
        (*recent.view.tenant == *tenant && recent.view.id == id).then(|| recent.view.clone())
    }

    fn page(&self, of: &QueuesOf) -> Answer {
        let mut queues = Vec::new();
        let owner = self.tenant_ids.get(&of.tenant).map(|owner| &self.tenants[*owner as usize]);
        let first = match &of.after {
            Some(after) if **after >= *of.prefix => Bound::Excluded(&**after),
            _ => Bound::Included(&*of.prefix),
        };
        let all = owner.into_iter().flat_map(|owner| owner.queues.range::<str, _>((first, Bound::Unbounded)));
        let mut looked = 0;
        for (command, queue) in all.take_while(|(command, _)| command.starts_with(&*of.prefix)) {
            let queue = &self.queues[*queue as usize];
            let depth = queue.depth();
            let is_empty = depth.ready_total() + depth.delayed + depth.leased + depth.dead == 0;
            let is_asked = of.commands.as_ref().is_none_or(|commands| commands.contains(command));
            let is_in_question = of.paused.is_none_or(|paused| paused == queue.pause.is_some());
            if is_asked && is_in_question && !(of.non_empty && is_empty) {
                queues.push(self.stats(queue));
            }
            looked += 1;
            // One more than a page, so that it is known whether there is another one.
            if queues.len() > of.limit || looked == QUEUES_LOOKED_MAX {
                return Answer::QueuePage { queues, looked_to: Some(command.clone()) };
            }
        }
        Answer::QueuePage { queues, looked_to: None }
    }

    fn stats(&self, queue: &Queue) -> QueueStats {
        let heads = queue.lists.iter().filter_map(|list| list.first());
        QueueStats {
            tenant: queue.tenant.clone(),
            command: queue.command.clone(),
            depth: queue.depth(),
            totals: queue.totals,
            // A ready task does not change, and the head of a list became ready before the others.
            oldest_ready: heads.map(|head| self.tasks.get(head).updated_at).min(),
            next_due: queue.delayed.next(self.clocks),
            consumers: queue.holders.workers(),
            pause: queue.pause.as_ref().map(|pause| pause.view.clone()),
            updated_at: queue.updated_at,
        }
    }
}
