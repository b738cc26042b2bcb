//! A page of a list of tasks, read from checkpoints.
//!
//! The rows of each table stand in several orders. A page is the merge of as many *sources* as it takes: the rows of one group of an index,
//! or all rows of a table, each from where the page before has ended. Every source yields its rows by rising *rank*, so a task that exists
//! all the time, and whose rank does not change, is on exactly one page, whatever happens to the others; a task that changes its table
//! keeps its rank. Rows that no index can tell from those asked for are read and passed over, as far as the time goes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use base::codec::{Malformed, Reader, Write};
use base::rows::{Look, Row, RowWriter, Scan, TableId, Value, Wanted};
use base::{Incarnation, LeaseTime, ScheduleTime, ShardId, Stamps};

use crate::checkpoint::{COMPLETED, DEAD, EPOCHS, FAILED, LIVE, PAYLOADS, SHARD, SLICES, TABLES};
use crate::id::{TaskId, TaskKey};
use crate::outcome::{State, TaskView};
use crate::payload::Payload;
use crate::record;
use crate::search::{Filter, Seen, wanted};

/// The order of a list; tasks that do not differ in it are ordered by shard and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By creation.
    Created {
        /// The newest first.
        descending: bool,
    },
    /// By their end.
    Finished {
        /// The latest first.
        descending: bool,
    },
    /// As they will be claimed: of one queue, and either of its ready tasks or of its delayed ones.
    Queue,
}

/// What a list is asked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// Which tasks.
    pub filter: Filter,
    /// In which order.
    pub order: Order,
    /// So many at most.
    pub limit: usize,
    /// Whether their payloads are wanted.
    pub with_payload: bool,
    /// Whether their results are wanted.
    pub with_result: bool,
}

/// Where a list goes on in a shard: behind this order and key, as they rise along the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What the list is ordered by.
    pub order: i64,
    /// The task's key.
    pub key: i64,
}

/// Places in the lists of shards, as bytes.
pub fn encode_places(places: &BTreeMap<ShardId, Place>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (shard, place) in places {
        bytes.put_varint(u64::from(shard.0));
        bytes.put_signed(place.order);
        bytes.put_signed(place.key);
    }
    bytes
}

/// The same places again.
///
/// # Errors
/// [`encode_places`] has not made these bytes.
pub fn decode_places(bytes: &[u8]) -> Result<BTreeMap<ShardId, Place>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut places = BTreeMap::new();
    while !reader.is_empty() {
        let shard = ShardId(reader.narrow()?);
        places.insert(shard, Place { order: reader.signed()?, key: reader.signed()? });
    }
    Ok(places)
}

/// Payloads and results of a page, in bytes, at most; a task that is larger alone makes a page.
const INCLUDED_BYTES_MAX: usize = 4 << 20;

/// Groups of an index that a list merges for one table; if there are more, it looks through all rows.
const GROUPS_MAX: usize = 64;

/// Rows that a source reads at a time: at first, and at most.
const CHUNK_MIN: usize = 16;
const CHUNK_MAX: usize = 4_096;

/// Chunks that are read to find out whether a full page is the last one.
const LAST_CHUNKS_MAX: usize = 8;

/// Why a page could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlisted<E> {
    /// The rows cannot be read.
    Rows(E),
    /// A row that the state machine cannot have written.
    Damaged {
        /// Its shard.
        shard: ShardId,
        /// Its table.
        table: TableId,
        /// Its key.
        key: i64,
    },
}

impl<E> From<E> for Unlisted<E> {
    fn from(error: E) -> Unlisted<E> {
        Unlisted::Rows(error)
    }
}

/// How far a list has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// There is nothing more.
    End,
    /// The page is full.
    Full,
    /// The time is over.
    OutOfTime,
}

/// A list on its way.
#[derive(Clone, Debug)]
pub struct Listing {
    search: Search,
    /// Where it goes on in each shard; a shard that is missing begins.
    pub places: BTreeMap<ShardId, Place>,
    /// What it has found, in order.
    pub found: Vec<TaskView>,
    included_bytes: usize,
}

/// The rows of one group of an index, or of a whole table or slice.
struct Source {
    /// Its shard, by place.
    shard: usize,
    table: TableId,
    slice: u32,
    index: Option<(usize, Vec<u8>)>,
    /// What is added to the index's order so that all sources of the list have one.
    offset: i64,
    /// Where to go on reading.
    after: Option<Place>,
    /// Everything up to here was read; nothing: nothing was.
    read_to: Option<Place>,
    /// Rows that were found and not taken.
    found: VecDeque<(Place, TaskView)>,
    is_at_end: bool,
    chunk: usize,
}

/// What is known of a shard while a page is read.
struct Shard<'a, L: ?Sized> {
    id: ShardId,
    look: &'a mut L,
    clocks: Stamps,
    epochs: Vec<(u64, u64)>,
    /// Keys of tasks that were created within the time asked for: from the first on, and before the second.
    keys: (i64, i64),
}

/// The table in which tasks of this state stand.
pub(crate) fn table_with(state: State) -> TableId {
    match state {
        State::Delayed | State::Ready | State::Leased => LIVE,
        State::Completed => COMPLETED,
        State::Failed | State::Cancelled => FAILED,
        State::Dead => DEAD,
    }
}

impl Listing {
    /// A list that goes on from these places.
    pub fn new(mut search: Search, places: BTreeMap<ShardId, Place>) -> Listing {
        search.filter.narrow();
        if let Order::Finished { .. } = search.order {
            search.filter.states.retain(|state| table_with(*state) != LIVE);
        }
        Listing { search, places, found: Vec::new(), included_bytes: 0 }
    }

    /// Reads on, until the page is full or there is nothing more or `has_time` says no. Then `places` is where the next page begins.
    ///
    /// # Errors
    /// The rows cannot be read, or one of them is damaged.
    pub fn read<L: Look + ?Sized>(
        &mut self,
        looks: Vec<(ShardId, &mut L)>,
        has_time: &dyn Fn() -> bool,
    ) -> Result<Reached, Unlisted<L::Error>> {
        let mut shards = Vec::new();
        let mut sources = Vec::new();
        for (place, (id, look)) in looks.into_iter().enumerate() {
            let mut shard = Shard { id, look, clocks: Stamps::default(), epochs: Vec::new(), keys: (0, KEY_END) };
            shard.read_state()?;
            shard.find_keys(&self.search)?;
            self.add_sources(place, &mut shard, &mut sources)?;
            shards.push(shard);
        }
        let reached = self.merge(&mut shards, &mut sources, has_time)?;
        for (place, shard) in shards.iter().enumerate() {
            let of_shard = || sources.iter().filter(|source| source.shard == place);
            // A source of which nothing was read leaves the shard where it was.
            let furthest = || of_shard().filter_map(|source| source.read_to).max();
            let next = of_shard().filter_map(Source::frontier).min().unwrap_or_else(furthest);
            if let Some(next) = next {
                self.places.insert(shard.id, next);
            }
        }
        Ok(reached)
    }

    fn merge<L: Look + ?Sized>(
        &mut self,
        shards: &mut [Shard<'_, L>],
        sources: &mut [Source],
        has_time: &dyn Fn() -> bool,
    ) -> Result<Reached, Unlisted<L::Error>> {
        let mut last_chunks = 0;
        loop {
            // Whoever is behind goes on: what it has found is next, or it has to look further.
            let behind = sources.iter_mut().filter_map(|source| {
                let frontier = source.frontier()?;
                Some((frontier.map(|at| (at.order, source.shard, at.key)), source))
            });
            let Some((_, source)) = behind.min_by_key(|(frontier, _)| *frontier) else { return Ok(Reached::End) };
            let is_full = self.found.len() >= self.search.limit || self.included_bytes >= INCLUDED_BYTES_MAX;
            let shard = &mut shards[source.shard];
            match source.found.pop_front() {
                Some(next) if is_full => {
                    source.found.push_front(next);
                    return Ok(Reached::Full);
                }
                Some((place, mut view)) => {
                    self.include(shard, source, &mut view)?;
                    // Whoever finds rows one by one has read nothing else.
                    source.read_to = source.read_to.max(Some(place));
                    self.found.push(view);
                }
                None => {
                    last_chunks += usize::from(is_full);
                    if last_chunks > LAST_CHUNKS_MAX {
                        return Ok(Reached::Full);
                    }
                    // Every source is read once, so that each page gets on.
                    if source.read_to.is_some() && !has_time() {
                        return Ok(if is_full { Reached::Full } else { Reached::OutOfTime });
                    }
                    self.read_chunk(shard, source)?;
                }
            }
        }
    }

    /// Reads payload and result of a task, where they are wanted.
    fn include<L: Look + ?Sized>(
        &mut self,
        shard: &mut Shard<'_, L>,
        source: &Source,
        view: &mut TaskView,
    ) -> Result<(), Unlisted<L::Error>> {
        let Search { with_payload, with_result, .. } = self.search;
        let is_live = source.table == LIVE;
        if !with_payload && (!with_result || is_live) {
            return Ok(());
        }
        let key = view.id.key.0 as i64;
        let table = if is_live { PAYLOADS } else { source.table };
        let damaged = || Unlisted::Damaged { shard: shard.id, table, key };
        let row = shard.look.row(table, source.slice, key)?.ok_or_else(damaged)?;
        if is_live {
            let payload = Row(&row).reader().maybe_bytes().ok().flatten().ok_or_else(damaged)?;
            view.payload = Payload::Resident(payload.into());
        } else {
            let whole = record::decode(&row, view.id).map_err(|Malformed| damaged())?;
            if with_payload {
                view.payload = whole.payload;
            }
            view.result = whole.result.filter(|_| with_result);
        }
        self.included_bytes += row.len();
        Ok(())
    }

    fn read_chunk<L: Look + ?Sized>(
        &self,
        shard: &mut Shard<'_, L>,
        source: &mut Source,
    ) -> Result<(), Unlisted<L::Error>> {
        let Search { filter, order, .. } = &self.search;
        let (table, clocks, id) = (source.table, shard.clocks, shard.id);
        let (epochs, keys, offset) = (&shard.epochs, shard.keys, source.offset);
        let descending = order.is_descending();
        let raw = |place: Place| {
            let place = if descending { place.negated() } else { place };
            (place.order - offset, place.key)
        };
        let columns = wanted(table);
        let scan = Scan {
            table,
            slice: source.slice,
            index: source.index.as_ref().map(|(index, group)| (*index, Row(group))),
            after: source.after.map(raw),
            descending,
            wanted: &columns,
        };
        let mut left = source.chunk;
        let (mut found, mut reached, mut damaged) = (VecDeque::new(), None, None);
        shard.look.scan(&scan, &mut |by, key, row| {
            let Ok(seen) = Seen::read(table, row, clocks) else {
                damaged = Some(key);
                return ControlFlow::Break(());
            };
            let by = match order {
                Order::Created { .. } => seen.created_at as i64,
                Order::Finished { .. } => seen.finished_at.unwrap_or_default() as i64,
                Order::Queue => by + offset,
            };
            if order.is_over(filter, by, key, keys) {
                return ControlFlow::Break(());
            }
            let place = Place { order: by, key };
            let place = if descending { place.negated() } else { place };
            reached = Some(place);
            let task = id_of(epochs, id, key as u64);
            if filter.matches(&seen) && filter.ids.as_ref().is_none_or(|ids| ids.contains(&task)) {
                found.push_back((place, seen.view(task)));
            }
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(key) = damaged {
            return Err(Unlisted::Damaged { shard: id, table, key });
        }
        source.is_at_end = left > 0;
        source.after = reached.or(source.after);
        source.read_to = source.read_to.max(reached);
        if found.len() < source.chunk / 2 {
            source.chunk = (source.chunk * 2).min(CHUNK_MAX);
        }
        source.found.extend(found);
        Ok(())
    }

    fn add_sources<L: Look + ?Sized>(
        &self,
        place: usize,
        shard: &mut Shard<'_, L>,
        sources: &mut Vec<Source>,
    ) -> Result<(), Unlisted<L::Error>> {
        let Search { filter, order, .. } = &self.search;
        let first = sources.len();
        let source = |table: TableId, slice, index: Option<(&str, Vec<u8>)>, offset| Source {
            shard: place,
            table,
            slice,
            index: index.map(|(name, group)| (TABLES[usize::from(table)].index(name), group)),
            offset,
            after: None,
            read_to: None,
            found: VecDeque::new(),
            is_at_end: false,
            chunk: CHUNK_MIN,
        };
        if let Order::Queue = order {
            let command = filter.commands.iter().flatten().next().map_or("", |command| command);
            let queue = [Value::Text(&filter.tenant), Value::Text(command)];
            if filter.states.contains(&State::Ready) {
                for priority in 0..crate::ready::PRIORITIES as i64 {
                    let group = row(&[queue[0], queue[1], Value::Int(priority)]);
                    let offset = (crate::ready::PRIORITIES as i64 - 1 - priority) << PLACE_BITS;
                    sources.push(source(LIVE, 0, Some(("ready", group)), offset));
                }
            } else if filter.states.contains(&State::Delayed) {
                let group = row(&[queue[0], queue[1], Value::Text(State::Delayed.name())]);
                let offset = shard.clocks.schedule.0 as i64 - shard.clocks.lease.0 as i64;
                sources.push(source(LIVE, 0, Some(("due_lease", group.clone())), offset));
                sources.push(source(LIVE, 0, Some(("due_schedule", group)), 0));
            }
        } else {
            for table in [LIVE, COMPLETED, FAILED, DEAD] {
                if !filter.states.iter().any(|state| table_with(*state) == table) {
                    continue;
                }
                let mut groups_help = true;
                for slice in shard.slices(table, filter)? {
                    if let Some(ids) = &filter.ids {
                        for id in ids {
                            let mut one = source(table, slice, None, 0);
                            shard.read_one(self, &mut one, *id)?;
                            sources.extend((!one.found.is_empty()).then_some(one));
                        }
                    } else if let Order::Finished { .. } = order {
                        sources.push(source(table, slice, Some(("finished", Vec::new())), 0));
                    } else if let Some(groups) = shard.groups(filter, table, slice, &mut groups_help)? {
                        let name = if filter.idempotency_key.is_some() { "key" } else { "queue" };
                        sources.extend(groups.into_iter().map(|group| source(table, slice, Some((name, group)), 0)));
                    } else {
                        sources.push(source(table, slice, None, 0));
                    }
                }
            }
        }
        let begun = self.places.get(&shard.id).copied();
        for source in &mut sources[first..] {
            if filter.ids.is_some() && order != &Order::Queue {
                source.found.retain(|(place, _)| begun.is_none_or(|begun| *place > begun));
                continue;
            }
            source.after = order.beginning(filter, shard.keys).max(begun);
        }
        Ok(())
    }
}

/// Keys are below.
const KEY_END: i64 = 1 << 62;

/// Every order is behind.
const BEGINNING: i64 = -(1 << 62);

/// Bits that a ready task's place takes in the order of a queue; above stands its priority.
const PLACE_BITS: u32 = 58;

impl Place {
    /// The place in the opposite direction.
    fn negated(self) -> Place {
        Place { order: -self.order, key: -self.key }
    }
}

impl Order {
    fn is_descending(self) -> bool {
        matches!(self, Order::Created { descending: true } | Order::Finished { descending: true })
    }

    /// The place behind which a list begins.
    fn beginning(self, filter: &Filter, keys: (i64, i64)) -> Option<Place> {
        let finished = filter.finished.as_ref().map(|range| (*range.start(), *range.end()));
        let time = |ms: u64| i64::try_from(ms).unwrap_or(-BEGINNING);
        match self {
            Order::Created { descending: true } => Some(Place { order: BEGINNING, key: -keys.1 }),
            Order::Created { descending: false } => Some(Place { order: BEGINNING, key: keys.0 - 1 }),
            Order::Finished { descending: true } => finished.map(|(_, end)| Place { order: -time(end), key: -KEY_END }),
            Order::Finished { descending: false } => finished.map(|(start, _)| Place { order: time(start), key: -1 }),
            Order::Queue => None,
        }
    }

    /// Whether no row from this one on can be asked for.
    fn is_over(self, filter: &Filter, by: i64, key: i64, keys: (i64, i64)) -> bool {
        match (self, &filter.finished) {
            (Order::Created { descending: true }, _) => key < keys.0,
            (Order::Created { descending: false }, _) => key >= keys.1,
            (Order::Finished { descending: true }, Some(range)) => (by as u64) < *range.start(),
            (Order::Finished { descending: false }, Some(range)) => by as u64 > *range.end(),
            _ => false,
        }
    }
}

impl Source {
    /// Nothing: it has nothing more. Else everything before that place is read and taken; if nothing is known of it yet, no place.
    fn frontier(&self) -> Option<Option<Place>> {
        match self.found.front() {
            // The row itself is still to come.
            Some((place, _)) => Some(Some(Place { key: place.key - 1, ..*place })),
            None if self.is_at_end => None,
            None => Some(self.read_to),
        }
    }
}

impl<L: Look + ?Sized> Shard<'_, L> {
    fn read_state(&mut self) -> Result<(), Unlisted<L::Error>> {
        let id = self.id;
        let damaged = |table, key| Unlisted::Damaged { shard: id, table, key };
        // Before the first save there is none.
        if let Some(shard) = self.look.row(SHARD, 0, 0)? {
            let mut row = Row(&shard).reader();
            let mut clocks = || -> Result<Stamps, Malformed> {
                row.number()?;
                Ok(Stamps { lease: LeaseTime(row.number()?), schedule: ScheduleTime(row.number()?) })
            };
            self.clocks = clocks().map_err(|Malformed| damaged(SHARD, 0))?;
        }
        let (mut epochs, mut bad) = (Vec::new(), None);
        self.look.scan(&all_of(EPOCHS, &[Wanted::Value(0)]), &mut |_, key, row| {
            match row.reader().number() {
                Ok(incarnation) => epochs.push((key as u64, incarnation)),
                Err(Malformed) => bad = Some(key),
            }
            ControlFlow::Continue(())
        })?;
        self.epochs = epochs;
        bad.map_or(Ok(()), |key| Err(damaged(EPOCHS, key)))
    }

    /// Creation times rise with keys, so a time becomes a key by halving.
    fn find_keys(&mut self, search: &Search) -> Result<(), Unlisted<L::Error>> {
        if let (Order::Created { .. }, Some(range)) = (search.order, search.filter.created.clone()) {
            let first = self.first_key_at(*range.start())?;
            let end = match range.end().checked_add(1) {
                Some(end) => self.first_key_at(end)?,
                None => KEY_END,
            };
            self.keys = (first, end);
        }
        Ok(())
    }

    /// A key such that tasks were created at `time` or later exactly if theirs is not smaller.
    fn first_key_at(&mut self, time: u64) -> Result<i64, Unlisted<L::Error>> {
        // What is known of all tables: before `low` they are earlier, from `high` on they are not.
        let (mut low, mut high) = (0, KEY_END);
        for table in [LIVE, COMPLETED, FAILED, DEAD] {
            for slice in self.look.slices(table)? {
                // The table has no row from here to `high`.
                let mut none_from = high;
                let mut probe = low;
                while low < none_from {
                    match self.first_row(table, slice, probe)?.filter(|(key, _)| *key < none_from) {
                        Some((key, created_at)) if created_at < time => low = key + 1,
                        Some((key, _)) => {
                            high = key;
                            none_from = probe;
                        }
                        None => none_from = probe,
                    }
                    probe = low + (none_from - low) / 2;
                }
            }
        }
        Ok(low)
    }

    /// Key and creation of the first row that does not come before this key.
    fn first_row(&mut self, table: TableId, slice: u32, key: i64) -> Result<Option<(i64, u64)>, Unlisted<L::Error>> {
        let wanted = [Wanted::Value(TABLES[usize::from(table)].column("created_at"))];
        let scan = Scan { slice, after: Some((0, key - 1)), ..all_of(table, &wanted) };
        let mut first = None;
        self.look.scan(&scan, &mut |_, key, row| {
            first = row.reader().number().ok().map(|created_at| (key, created_at));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// The slices of a table that can hold what is asked for.
    fn slices(&mut self, table: TableId, filter: &Filter) -> Result<Vec<u32>, Unlisted<L::Error>> {
        let mut slices = self.look.slices(table)?;
        let Some(range) = filter.finished.as_ref().filter(|_| table != LIVE) else { return Ok(slices) };
        let mut closes: BTreeMap<u32, u64> = BTreeMap::new();
        self.look.scan(&all_of(SLICES, &[Wanted::Value(0), Wanted::Value(1)]), &mut |_, key, row| {
            let mut row = row.reader();
            if let (Ok(of), Ok(time), Ok(slice)) = (row.number(), row.number(), u32::try_from(key))
                && of == u64::from(table)
            {
                closes.insert(slice, time);
            }
            ControlFlow::Continue(())
        })?;
        // A slice begins when the one before it closes, or later.
        slices.retain(|slice| {
            let begins = closes.range(..slice).next_back().map_or(0, |(_, closes)| *closes);
            let ends = closes.get(slice).copied().unwrap_or(u64::MAX);
            begins <= *range.end() && *range.start() < ends
        });
        Ok(slices)
    }

    /// The groups of an index that hold all that is asked for of a table. Nothing: there are too many, and then `groups_help` becomes false.
    fn groups(
        &mut self,
        filter: &Filter,
        table: TableId,
        slice: u32,
        groups_help: &mut bool,
    ) -> Result<Option<Vec<Vec<u8>>>, Unlisted<L::Error>> {
        let tenant = Value::Text(&filter.tenant);
        let commands: Vec<&str> = filter.commands.iter().flatten().map(|command| &**command).collect();
        if let Some(key) = &filter.idempotency_key {
            let group = |command: &&str| row(&[tenant, Value::Text(command), Value::Text(key)]);
            return Ok(Some(commands.iter().map(group).collect()));
        }
        if !*groups_help {
            return Ok(None);
        }
        let mut groups = Vec::new();
        let index = TABLES[usize::from(table)].index("queue");
        let beginnings: Vec<Vec<u8>> = match filter.commands {
            Some(_) if commands.len() <= GROUPS_MAX => {
                commands.iter().map(|command| row(&[tenant, Value::Text(command)])).collect()
            }
            _ => vec![row(&[tenant])],
        };
        for beginning in beginnings {
            match self.look.groups(table, slice, index, Row(&beginning), GROUPS_MAX)? {
                Some(more) => groups.extend(more),
                None => groups.resize(GROUPS_MAX + 1, Vec::new()),
            }
            if groups.len() > GROUPS_MAX {
                *groups_help = false;
                return Ok(None);
            }
        }
        groups.retain(|group| {
            let mut values = Row(group).reader();
            let (_, command, state, priority) = (values.text(), values.text(), values.text(), values.number());
            command.is_ok_and(|command| filter.has_command(command))
                && state.is_ok_and(|state| State::from_name(state).is_none_or(|state| filter.states.contains(&state)))
                && priority.is_ok_and(|priority| filter.priority.as_ref().is_none_or(|range| range.contains(&priority)))
        });
        Ok(Some(groups))
    }

    /// Lets a source find this task and nothing else.
    fn read_one(&mut self, listing: &Listing, source: &mut Source, id: TaskId) -> Result<(), Unlisted<L::Error>> {
        let key = id.key.0 as i64;
        let after = if listing.search.order.is_descending() { -key - 1 } else { key - 1 };
        source.after = Some(Place { order: 0, key: after });
        source.chunk = 1;
        listing.read_chunk(self, source)?;
        source.found.retain(|(_, view)| view.id == id);
        source.is_at_end = true;
        source.read_to = None;
        Ok(())
    }
}

fn all_of<'a>(table: TableId, wanted: &'a [Wanted]) -> Scan<'a> {
    Scan { table, slice: 0, index: None, after: None, descending: false, wanted }
}

fn id_of(epochs: &[(u64, u64)], shard: ShardId, key: u64) -> TaskId {
    let incarnation = epochs.iter().rev().find(|(first, _)| *first <= key).map_or(0, |(_, incarnation)| *incarnation);
    TaskId::new(Incarnation(incarnation), shard, TaskKey(key))
}

fn row(values: &[Value<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = RowWriter::new(&mut bytes);
    values.iter().for_each(|value| writer.value(*value));
    bytes
}
