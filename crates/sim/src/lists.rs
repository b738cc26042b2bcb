//! Lists of tasks at a node's edge: readers of its checkpoints are shown what is applied, and a page is read beside the loop.
//!
//! A page is noted as one read for each task on it, at the position of the checkpoint that it was read from.

use std::collections::BTreeMap;
use std::rc::Rc;

use base::{Position, ShardId};
use history::record::Level;
use queue::Query;
use queue::listing::{Listing, Place, Reached, Search, Unlisted};
use replica::{Event as ReplicaEvent, Freshness, Unavailable};

use crate::edge::{Asked, Told};
use crate::process::{Caller, Control};
use crate::world::{Event, World};

/// How long a list waits for the newest state to be shown, if an older one will do, µs.
const SHOW_MAX: u64 = 5_000;

/// A page that a client asks for.
#[derive(Clone, Debug)]
pub struct List {
    /// What is listed.
    pub search: Search,
    /// Where the page begins.
    pub places: BTreeMap<ShardId, Place>,
    /// How fresh it must be.
    pub freshness: Freshness,
}

impl List {
    /// How fresh it must be, as the judge says it.
    pub(crate) fn level(&self) -> Level {
        match self.freshness {
            Freshness::STALE => Level::Stale,
            Freshness::AtLeast { index, .. } => Level::AtLeast(index.0),
            Freshness::Linearizable => Level::Linearizable,
        }
    }
}

impl World {
    /// A node is asked for a page.
    pub(crate) fn hand_list(&mut self, n: usize, number: u64, list: &List) -> Result<(), Unavailable> {
        if list.freshness == Freshness::STALE {
            self.show(n, number);
            let epoch = self.nodes[n].epoch;
            self.after(SHOW_MAX, Event::Look(n, epoch, number));
            return Ok(());
        }
        let (shard, gone) = (self.requests[&number].shard, self.requests[&number].gone.clone());
        let inbox = self.options.inbox as usize;
        let process = self.nodes[n].process_mut().expect("it runs");
        let queue = process.requests.get_mut(&shard).expect("every shard has a queue");
        if queue.len() >= inbox {
            return Err(Unavailable::Overloaded);
        }
        // What is applied when that is answered is then shown.
        let (freshness, client) = (list.freshness, Caller::Here(number, gone));
        queue.push_back(ReplicaEvent::Ask { shard, query: Query::Policy, freshness, wait: None, client });
        self.wake(n);
        Ok(())
    }

    /// Readers of a node's checkpoints are to be shown what is applied, for this request.
    pub(crate) fn show(&mut self, n: usize, number: u64) {
        let process = self.nodes[n].process_mut().expect("it runs");
        process.controls.push_back(Control::Show(number));
        self.wake(n);
    }

    /// Reads pages for those who have been waiting for what they are shown now.
    pub(crate) fn look_where_shown(&mut self, n: usize) {
        let Some(process) = self.nodes[n].process_mut() else { return };
        let shown = std::mem::take(&mut *process.shown.lock().expect("nothing panics while it holds this lock"));
        for number in shown {
            self.look(n, number);
        }
    }

    /// The wait for the newest state is over.
    pub(crate) fn on_look(&mut self, n: usize, epoch: u32, number: u64) {
        if self.nodes[n].epoch == epoch && !self.is_paused(n, || Event::Look(n, epoch, number)) {
            self.look(n, number);
        }
    }

    /// Reads a page, unless its client has it or has gone.
    fn look(&mut self, n: usize, number: u64) {
        let Some(request) = self.requests.get(&number).filter(|request| request.is_open()) else {
            return self.on_shown(n, number);
        };
        let (Asked::List(list), shard) = (&request.asked, request.shard) else { return };
        let mut listing = Listing::new(list.search.clone(), list.places.clone());
        let process = self.nodes[n].process_mut().expect("it has shown something");
        let reader = process.readers.get_mut(&shard).expect("every shard has a reader");
        let meta = reader.begin().expect("a checkpoint in memory can be read");
        let reached = listing.read(vec![(shard, &mut **reader)], &|| true);
        reader.end().expect("a checkpoint in memory can be read");
        let reached = match reached {
            Ok(reached) => reached,
            Err(Unlisted::Rows(error)) => return self.violate("S2", format!("a list of shard {shard}: {error}")),
            Err(Unlisted::Damaged { table, key, .. }) => {
                return self.violate("S2", format!("a list of shard {shard}: row {key} of table {table} is damaged"));
            }
        };
        let meta = meta.unwrap_or_default();
        let position = Position { shard, term: meta.term, index: meta.index };
        let next = (reached != Reached::End).then_some(listing.places);
        let found = listing.found.into_iter().map(Rc::new).collect();
        self.reach("listed");
        self.conclude(number, Told::Page { position, found, next });
    }
}
