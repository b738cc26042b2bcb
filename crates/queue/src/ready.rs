//! Ready tasks in claim order: per queue ten first-in-first-out lists, one for each priority, linked through the tasks themselves, so
//! that entering, leaving and cancelling cost the same whatever the backlog. Per tenant, the queues with ready tasks take turns.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::Arc;

use base::ScheduleTime;
use siphasher::sip::SipHasher24;

use base::machine::{Effects, WaitKey};

use crate::checkpoint::Mark;
use crate::due::Delayed;
use crate::lease::Holders;
use crate::machine::QueueMachine;
use crate::op::{Claim, ClaimOrder};
use crate::outcome::{Depth, Totals};
use crate::pause::Pause;
use crate::slab::Slot;
use crate::task::Stage;

/// Priorities of a task: 0 to 9.
pub const PRIORITIES: usize = 10;

/// Queues of one shard: a queue stays known once it has had a task. More are refused.
pub const QUEUES_MAX: usize = 1_000_000;

/// One queue: (tenant, command).
pub(crate) struct Queue {
    pub(crate) tenant: Arc<str>,
    pub(crate) command: Arc<str>,
    /// Index in `QueueMachine::tenants`.
    pub(crate) owner: u32,
    pub(crate) lists: [List; PRIORITIES],
    pub(crate) delayed: Delayed,
    pub(crate) holders: Holders,
    pub(crate) dead: u64,
    pub(crate) totals: Totals,
    /// Nothing is claimed from it.
    pub(crate) pause: Option<Box<Pause>>,
    /// When something in it changed last.
    pub(crate) updated_at: ScheduleTime,
    /// Whether it has changed since it was saved.
    pub(crate) mark: Mark,
    /// What claims of this queue, and claims of any queue of the tenant, wait for.
    wait_keys: [WaitKey; 2],
}

/// Ready tasks of one queue and priority, oldest place first.
#[derive(Clone, Copy)]
pub(crate) struct List {
    head: Slot,
    tail: Slot,
    pub(crate) length: u32,
    /// The round of turns in which this list is served next.
    pub(crate) round: u64,
}

impl List {
    /// The task that is claimed first.
    pub(crate) fn first(&self) -> Option<Slot> {
        (self.length > 0).then_some(self.head)
    }
}

/// A tenant's queues.
#[derive(Default)]
pub(crate) struct Tenant {
    pub(crate) queues: BTreeMap<Arc<str>, u32>,
    pub(crate) turns: [Turns; PRIORITIES],
    /// Whether its turns have changed since they were saved.
    pub(crate) mark: Mark,
    /// Ready tasks in all of them that are not paused.
    pub(crate) ready: usize,
}

/// Who can serve the claims that wait for a key.
#[derive(Clone, Copy)]
pub(crate) enum Supplier {
    Queue(u32),
    Tenant(u32),
}

/// The queues of a tenant with ready tasks of one priority.
#[derive(Default)]
pub(crate) struct Turns {
    /// (round, place of the head, queue): the first is served next.
    waiting: BTreeSet<(u64, u64, u32)>,
    /// The round served last.
    pub(crate) round: u64,
}

impl Queue {
    pub(crate) fn new(tenant: Arc<str>, command: Arc<str>, owner: u32) -> Queue {
        let wait_keys = [work_in(&tenant, &command), work_of(&tenant)];
        Queue {
            tenant,
            command,
            owner,
            lists: [List { head: Slot::NONE, tail: Slot::NONE, length: 0, round: 0 }; PRIORITIES],
            delayed: Delayed::default(),
            holders: Holders::default(),
            dead: 0,
            totals: Totals::default(),
            pause: None,
            updated_at: ScheduleTime(0),
            mark: Mark::Clean,
            wait_keys,
        }
    }

    pub(crate) fn depth(&self) -> Depth {
        Depth {
            ready: self.lists.map(|list| u64::from(list.length)),
            delayed: self.delayed.len(),
            leased: self.holders.leases,
            dead: self.dead,
        }
    }

    /// Ready tasks of all priorities.
    pub(crate) fn ready(&self) -> usize {
        self.lists.iter().map(|list| list.length as usize).sum()
    }

    /// The highest priority that a claim finds.
    fn top_priority(&self) -> Option<usize> {
        if self.pause.is_some() {
            return None;
        }
        (0..PRIORITIES).rev().find(|priority| self.lists[*priority].length > 0)
    }
}

/// The key that claims of this queue wait for.
pub(crate) fn work_in(tenant: &str, command: &str) -> WaitKey {
    hash(&[tenant, "/", command])
}

/// The key that claims of any queue of a tenant wait for. No command name is empty, so no queue has this key.
pub(crate) fn work_of(tenant: &str) -> WaitKey {
    hash(&[tenant, "/"])
}

/// Names are chosen by clients, so the hash is one in which nobody can look for a name with a given hash.
pub(crate) fn hash(parts: &[&str]) -> WaitKey {
    let mut hasher = SipHasher24::new();
    parts.iter().for_each(|part| hasher.write(part.as_bytes()));
    WaitKey(hasher.finish())
}

impl QueueMachine {
    /// Links a task at the tail of its queue and priority. `place` is later than that of every ready task.
    pub(crate) fn push_ready(&mut self, slot: Slot, place: u64) {
        let task = self.tasks.get(slot);
        let (queue, priority) = (task.queue, usize::from(task.priority));
        let tail = self.queues[queue as usize].lists[priority].tail;
        self.tasks.get_mut(slot).stage = Stage::Ready { place, before: tail, after: Slot::NONE };
        let entry = &mut self.queues[queue as usize];
        self.tenants[entry.owner as usize].ready += usize::from(entry.pause.is_none());
        let list = &mut entry.lists[priority];
        list.tail = slot;
        list.length += 1;
        if tail == Slot::NONE {
            list.head = slot;
            if !self.is_paused(queue) {
                self.take_turn(queue, priority);
            }
        } else {
            match &mut self.tasks.get_mut(tail).stage {
                Stage::Ready { after, .. } => *after = slot,
                _ => panic!("a ready list links ready tasks"),
            }
        }
    }

    /// Unlinks a ready task, wherever in its list it stands.
    pub(crate) fn unlink_ready(&mut self, slot: Slot) {
        let task = self.tasks.get(slot);
        let (queue, priority) = (task.queue, usize::from(task.priority));
        let Stage::Ready { before, after, .. } = task.stage else { panic!("only a ready task is in a ready list") };
        let has_turn = before == Slot::NONE && !self.is_paused(queue);
        if has_turn {
            self.give_up_turn(queue, priority);
        }
        for (neighbour, is_before) in [(before, true), (after, false)] {
            if neighbour == Slot::NONE {
                let list = &mut self.queues[queue as usize].lists[priority];
                *(if is_before { &mut list.head } else { &mut list.tail }) = if is_before { after } else { before };
            } else {
                match &mut self.tasks.get_mut(neighbour).stage {
                    Stage::Ready { after: link, .. } if is_before => *link = after,
                    Stage::Ready { before: link, .. } => *link = before,
                    _ => panic!("a ready list links ready tasks"),
                }
            }
        }
        let entry = &mut self.queues[queue as usize];
        self.tenants[entry.owner as usize].ready -= usize::from(entry.pause.is_none());
        let list = &mut entry.lists[priority];
        list.length -= 1;
        if has_turn && list.length > 0 {
            self.take_turn(queue, priority);
        }
    }

    /// Lets a list that is about to get its first task join the round being served.
    pub(crate) fn join_round(&mut self, queue: u32, priority: usize) {
        let entry = &mut self.queues[queue as usize];
        let served = self.tenants[entry.owner as usize].turns[priority].round;
        let list = &mut entry.lists[priority];
        if list.length == 0 {
            list.round = list.round.max(served);
        }
    }

    /// Enters a list with a head among the turns of its tenant.
    pub(crate) fn take_turn(&mut self, queue: u32, priority: usize) {
        let place = self.head_place(queue, priority);
        let entry = &mut self.queues[queue as usize];
        let turns = &mut self.tenants[entry.owner as usize].turns[priority];
        turns.waiting.insert((entry.lists[priority].round, place, queue));
    }

    pub(crate) fn give_up_turn(&mut self, queue: u32, priority: usize) {
        let place = self.head_place(queue, priority);
        let entry = &self.queues[queue as usize];
        let known = self.tenants[entry.owner as usize].turns[priority].waiting.remove(&(
            entry.lists[priority].round,
            place,
            queue,
        ));
        assert!(known, "a list with a head has its turn");
    }

    fn head_place(&self, queue: u32, priority: usize) -> u64 {
        match self.tasks.get(self.queues[queue as usize].lists[priority].head).stage {
            Stage::Ready { place, .. } => place,
            _ => panic!("the head of a ready list is ready"),
        }
    }

    /// The queue, if it is known.
    pub(crate) fn queue_id(&self, tenant: &str, command: &str) -> Option<u32> {
        let owner = self.tenant_ids.get(tenant)?;
        self.tenants[*owner as usize].queues.get(command).copied()
    }

    /// The queue, made known if it is not. Nothing: there are too many.
    pub(crate) fn open_queue(&mut self, tenant: &str, command: &str) -> Option<u32> {
        if let Some(queue) = self.queue_id(tenant, command) {
            return Some(queue);
        }
        if self.queues.len() >= QUEUES_MAX {
            return None;
        }
        let tenant: Arc<str> = match self.tenant_ids.get_key_value(tenant) {
            Some((known, _)) => known.clone(),
            None => tenant.into(),
        };
        let owner = *self.tenant_ids.entry(tenant.clone()).or_insert_with(|| {
            self.tenants.push(Tenant::default());
            (self.tenants.len() - 1) as u32
        });
        let queue = self.queues.len() as u32;
        let command: Arc<str> = command.into();
        self.tenants[owner as usize].queues.insert(command.clone(), queue);
        let entry = Queue::new(tenant, command, owner);
        self.suppliers.insert(entry.wait_keys[0].0, Supplier::Queue(queue));
        self.suppliers.insert(entry.wait_keys[1].0, Supplier::Tenant(owner));
        self.queues.push(entry);
        self.change_queue(queue);
        self.change_tenant(owner);
        Some(queue)
    }

    /// The ready task that this claim gets now. Reports which queue's turn it was, if turns decided.
    pub(crate) fn next_for(&self, claim: &Claim<'_>) -> Option<Choice> {
        if claim.commands.is_empty() {
            let owner = *self.tenant_ids.get(claim.tenant)?;
            let turns = &self.tenants[owner as usize].turns;
            let priority = (0..PRIORITIES).rev().find(|priority| !turns[*priority].waiting.is_empty())?;
            let (_, _, queue) = turns[priority].waiting.first().expect("it is not empty");
            return Some(Choice { queue: *queue, priority, by_turn: true });
        }
        let tops = claim.commands.iter().filter_map(|command| {
            let queue = self.queue_id(claim.tenant, command)?;
            let priority = self.queues[queue as usize].top_priority()?;
            Some((queue, priority))
        });
        let best = |by_turn: bool| {
            let round = |queue: u32, priority: usize| {
                if by_turn { self.queues[queue as usize].lists[priority].round } else { 0 }
            };
            tops.clone()
                .min_by_key(|(queue, priority)| {
                    (PRIORITIES - priority, round(*queue, *priority), self.head_place(*queue, *priority))
                })
                .map(|(queue, priority)| Choice { queue, priority, by_turn })
        };
        match claim.order {
            ClaimOrder::Request => {
                tops.clone().next().map(|(queue, priority)| Choice { queue, priority, by_turn: false })
            }
            ClaimOrder::Priority => best(false),
            ClaimOrder::Fair => best(true),
        }
    }

    /// Takes the chosen task out of its list.
    pub(crate) fn pop_ready(&mut self, choice: &Choice) -> Slot {
        let queue = &self.queues[choice.queue as usize];
        let list = queue.lists[choice.priority];
        if choice.by_turn {
            // Whoever was served waits for the next round. The turn is given up and taken again with the new round.
            let owner = queue.owner as usize;
            self.change_queue(choice.queue);
            self.change_tenant(owner as u32);
            self.give_up_turn(choice.queue, choice.priority);
            let turns = &mut self.tenants[owner].turns[choice.priority];
            turns.round = turns.round.max(list.round);
            self.queues[choice.queue as usize].lists[choice.priority].round = list.round + 1;
            self.take_turn(choice.queue, choice.priority);
        }
        self.leave_stage(list.head);
        list.head
    }

    /// How many ready tasks claims that wait for `key` could get. A key that no queue has is not one of claims.
    pub(crate) fn supply(&self, key: WaitKey) -> usize {
        match self.suppliers.get(&key.0) {
            Some(Supplier::Queue(queue)) => {
                let queue = &self.queues[*queue as usize];
                if queue.pause.is_some() { 0 } else { queue.ready() }
            }
            Some(Supplier::Tenant(owner)) => self.tenants[*owner as usize].ready,
            None => usize::MAX,
        }
    }

    /// Lets claims that wait for this queue look again.
    pub(crate) fn wake_claims(&mut self, queue: u32, effects: &mut Effects<Self>) {
        for key in self.queues[queue as usize].wait_keys {
            if !effects.woken.contains(&key) {
                effects.woken.push(key);
            }
        }
    }
}

/// Which list a claim takes from.
pub(crate) struct Choice {
    pub(crate) queue: u32,
    pub(crate) priority: usize,
    by_turn: bool,
}
