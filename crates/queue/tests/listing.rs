//! Lists against a naive one, over random tasks in every state, in every order, by random conditions, in pages of random sizes.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

use base::rows::{Look, Row, Scan, TableId, Wanted};
use base::rowstore::StoreLook;
use base::{Millis, ShardId};
use proptest::prelude::*;
use queue::listing::{Listing, Order, Place, Reached, Search, Unlisted};
use queue::op::{Claim, ClaimOrder, Create, Credential, IdempotencyKey, LeaseRef, Schedule};
use queue::outcome::{Outcome, State, TaskView};
use queue::search::{Filter, fingerprint};
use queue::{Op, Payload, TaskId};
use support::Shard;

const START: u64 = 1_700_000_000_000;
const COMMANDS: [&str; 3] = ["a", "b", "c"];

/// A step in the life of the shard. Numbers name things modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Create { tenant: u8, command: u8, priority: u8, delay: u16, key: Option<u8> },
    Claim { command: u8 },
    End { task: u16, how: u8 },
    Redrive { task: u16 },
    Advance { ms: u16 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4u8, 0..3u8, 0..4u8, prop_oneof![Just(0), 0..5_000u16], proptest::option::weighted(0.2, 0..4u8))
            .prop_map(|(tenant, command, priority, delay, key)| Step::Create { tenant, command, priority, delay, key }),
        4 => (0..3u8).prop_map(|command| Step::Claim { command }),
        4 => (any::<u16>(), 0..6u8).prop_map(|(task, how)| Step::End { task, how }),
        1 => any::<u16>().prop_map(|task| Step::Redrive { task }),
        4 => (0..4_000u16).prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::Restart),
    ]
}

/// A shard and everything that was ever created in it.
struct World {
    shard: Shard,
    ids: Vec<TaskId>,
    held: Vec<(TaskId, queue::LeaseToken)>,
    /// Whether the groups of indexes can be listed, as a file's can.
    has_groups: bool,
}

/// A look at rows in memory that can also list the groups of an index.
struct Grouped<'a> {
    store: StoreLook<'a>,
    has_groups: bool,
}

impl Look for Grouped<'_> {
    type Error = Infallible;

    fn slices(&mut self, table: TableId) -> Result<Vec<u32>, Infallible> {
        self.store.slices(table)
    }

    fn row(&mut self, table: TableId, slice: u32, key: i64) -> Result<Option<Vec<u8>>, Infallible> {
        self.store.row(table, slice, key)
    }

    fn groups(
        &mut self,
        table: TableId,
        slice: u32,
        index: usize,
        beginning: Row<'_>,
        max: usize,
    ) -> Result<Option<Vec<Vec<u8>>>, Infallible> {
        let definition = &self.store.schema.tables[usize::from(table)];
        let names = definition.indexes[index].group;
        let wanted: Vec<Wanted> = names.iter().map(|name| Wanted::Value(definition.column(name))).collect();
        let all = Scan { table, slice, index: None, after: None, descending: false, wanted: &wanted };
        let mut groups = BTreeSet::new();
        self.store.scan(&all, &mut |_, _, row| {
            groups.extend(row.0.starts_with(beginning.0).then(|| row.0.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok((self.has_groups && groups.len() <= max).then(|| groups.into_iter().collect()))
    }

    fn scan(
        &mut self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(i64, i64, Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), Infallible> {
        self.store.scan(scan, visit)
    }
}

impl World {
    fn new(has_groups: bool) -> World {
        World { shard: Shard::new(START), ids: Vec::new(), held: Vec::new(), has_groups }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Create { tenant, command, priority, delay, key } => {
                let (tenant, command) = (if tenant == 0 { "other" } else { "acme" }, COMMANDS[usize::from(command)]);
                let text = key.map(|key| format!("k{key}"));
                let key = text.as_deref().map(|text| IdempotencyKey {
                    text,
                    scope: queue::idempotency::scope_digest(tenant, command, text),
                    body: [0; 16],
                });
                let schedule = if delay == 0 { Schedule::Now } else { Schedule::After(Millis(u64::from(delay))) };
                let payload = format!("{}", self.ids.len());
                let create = Create {
                    tenant,
                    command,
                    payload: payload.as_bytes(),
                    priority,
                    schedule,
                    max_attempts: Some(2),
                    webhook: "",
                    key,
                };
                if let Outcome::Created(created) = self.shard.apply(&Op::Create(create)) {
                    self.ids.push(created.id);
                }
            }
            Step::Claim { command } => {
                let claim = Claim {
                    tenant: "acme",
                    worker: if command == 0 { "w1" } else { "w2" },
                    commands: vec![COMMANDS[usize::from(command)]],
                    order: ClaimOrder::Request,
                    count: 2,
                    lease: Some(Millis(3_000)),
                };
                if let Outcome::Claimed(grants) = self.shard.apply(&Op::Claim(claim)) {
                    self.held.extend(grants.into_iter().map(|grant| (grant.task.id, grant.token)));
                }
            }
            Step::End { task, how } => {
                if self.held.is_empty() {
                    return;
                }
                let place = usize::from(task) % self.held.len();
                let (id, token) = self.held.swap_remove(place);
                let lease = LeaseRef { tenant: "acme", task: id.key, credential: Credential::Token(token) };
                let reason = format!("Error {task} of 'x{task}'");
                let op = match how {
                    0 | 1 => Op::Complete { lease, result: b"{}", error: "" },
                    2 => Op::Fail { lease, result: None, error: &reason },
                    3 => Op::Release { lease },
                    4 => Op::Nack { lease, delay: Some(Millis(0)), reason: &reason },
                    _ => Op::Cancel { tenant: "acme", task: id.key, reason: "", force: true },
                };
                self.shard.apply(&op);
            }
            Step::Redrive { task } => {
                let ended: Vec<TaskView> = self.tasks().into_iter().filter(|task| task.finished_at.is_some()).collect();
                if ended.is_empty() {
                    return;
                }
                let task = &ended[usize::from(task) % ended.len()];
                let record = self.shard.record(task.clone());
                self.shard.apply(&Op::Redrive(queue::op::Redrive {
                    tenant: &task.tenant,
                    task: task.id.key,
                    ended_at: task.ended_at.expect("it has ended"),
                    record: &record,
                    keep_attempts: false,
                    delay: Millis(0),
                    priority: None,
                }));
            }
            Step::Advance { ms } => self.shard.advance(Millis(u64::from(ms))),
            Step::Restart => self.shard.restart(),
        }
    }

    /// Every task there is, looked for one by one.
    fn tasks(&self) -> Vec<TaskView> {
        self.ids.iter().filter_map(|id| self.shard.task(*id)).collect()
    }

    fn page(
        &mut self,
        search: &Search,
        places: BTreeMap<ShardId, Place>,
        time: usize,
    ) -> (Vec<TaskView>, Option<BTreeMap<ShardId, Place>>) {
        self.shard.save(usize::MAX, |_| ());
        let store = StoreLook { store: &self.shard.store, schema: queue::schema() };
        let mut look = Grouped { store, has_groups: self.has_groups };
        let mut listing = Listing::new(search.clone(), places);
        let left = std::cell::Cell::new(time);
        let has_time = || left.replace(left.get().saturating_sub(1)) > 0;
        let read: Result<Reached, Unlisted<Infallible>> = listing.read(vec![(ShardId(0), &mut look)], &has_time);
        let reached = read.expect("every row reads back");
        (listing.found, (reached != Reached::End).then_some(listing.places))
    }
}

/// The conditions a list may have, by number.
fn filter(kind: u8, argument: u16, now: u64, ids: &[TaskId]) -> Filter {
    let acme: Arc<str> = "acme".into();
    let mut filter = Filter::of(&acme);
    let n = u64::from(argument);
    let some = |texts: &[&str]| Some(texts.iter().map(|text| Arc::from(*text)).collect::<BTreeSet<Arc<str>>>());
    let span = START + n % 3_000..=START + n % 3_000 + n % 20_000;
    match kind {
        0 => {}
        1 => filter.commands = some(&[COMMANDS[usize::from(argument % 3)]]),
        2 => filter.commands = some(&["a", "c", "unknown"]),
        3 => filter.states = BTreeSet::from([State::NAMES[usize::from(argument % 7)].0]),
        4 => filter.states = BTreeSet::from([State::Ready, State::Dead, State::Completed]),
        5 => filter.priority = Some(n % 4..=3),
        6 => filter.attempts = Some(1..=n % 3),
        7 => filter.created = Some(span),
        8 => filter.finished = Some(span),
        9 => filter.run_at = Some(now..=now + n),
        10 => filter.workers = some(&["w1"]),
        11 => {
            filter.commands = some(&["b"]);
            filter.idempotency_key = Some(format!("k{}", argument % 4).into());
        }
        12 => filter.error_part = Some("ror 1".into()),
        13 => filter.fingerprint = Some(fingerprint("a", "error 77 of 'y'")),
        _ => {
            filter.ids = Some(ids.iter().skip(usize::from(argument % 5)).step_by(3).copied().collect());
        }
    }
    filter
}

/// The same conditions on what can be shown of a task, written down once more.
fn fits(filter: &Filter, task: &TaskView) -> bool {
    let within = |range: &Option<std::ops::RangeInclusive<u64>>, value: Option<u64>| match range {
        Some(range) => value.is_some_and(|value| *range.start() <= value && value <= *range.end()),
        None => true,
    };
    let among =
        |names: &Option<BTreeSet<Arc<str>>>, name: &str| names.as_ref().is_none_or(|names| names.contains(name));
    task.tenant == filter.tenant
        && among(&filter.commands, &task.command)
        && filter.states.contains(&task.state)
        && filter.ids.as_ref().is_none_or(|ids| ids.contains(&task.id))
        && among(&filter.workers, task.worker.as_deref().unwrap_or("nobody"))
        && within(&filter.priority, Some(u64::from(task.priority)))
        && within(&filter.attempts, Some(u64::from(task.attempts)))
        && within(&filter.created, Some(task.created_at.0))
        && within(&filter.finished, task.finished_at.map(|time| time.0))
        && within(&filter.run_at, task.run_at.map(|time| time.0))
        && filter.idempotency_key.as_ref().is_none_or(|key| *key == task.idempotency_key)
        && filter.error_part.as_ref().is_none_or(|part| task.error.to_lowercase().contains(&**part))
        && filter.fingerprint.is_none_or(|wanted| fingerprint(&task.command, &task.error) == wanted)
}

/// What a list shows of a task: all but its history and the payload, of which it has the length.
fn shown(task: &TaskView) -> TaskView {
    TaskView { payload: Payload::Stored(task.payload.len() as u32), result: None, history: Vec::new(), ..task.clone() }
}

fn orders() -> [Order; 4] {
    let both = [true, false];
    let created = both.map(|descending| Order::Created { descending });
    let finished = both.map(|descending| Order::Finished { descending });
    [created[0], created[1], finished[0], finished[1]]
}

fn rank(order: Order, task: &TaskView) -> (i64, i64) {
    let key = task.id.key.0 as i64;
    let finished = task.finished_at.unwrap_or_default().0 as i64;
    match order {
        Order::Created { descending: true } => (-(task.created_at.0 as i64), -key),
        Order::Created { descending: false } => (task.created_at.0 as i64, key),
        Order::Finished { descending: true } => (-finished, -key),
        Order::Finished { descending: false } => (finished, key),
        Order::Queue => panic!("the rank in a queue is not to be seen"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// While nothing changes, the pages of a list are the naive list, cut into pieces, also when the time is over again and again.
    #[test]
    fn pages_are_the_naive_list(
        steps in proptest::collection::vec(step(), 1..120),
        (kind, argument, order) in (0..15u8, any::<u16>(), 0..4usize),
        (limit, time, has_groups) in (1..9usize, 1..5usize, any::<bool>()),
    ) {
        let mut world = World::new(has_groups);
        steps.iter().for_each(|step| world.step(step));
        world.shard.tick();
        let order = orders()[order];
        let filter = filter(kind, argument, world.shard.stamps().schedule.0, &world.ids);
        let mut expected: Vec<TaskView> = world.tasks().iter().filter(|task| fits(&filter, task)).map(shown).collect();
        if let Order::Finished { .. } = order {
            expected.retain(|task| task.finished_at.is_some());
        }
        expected.sort_by_key(|task| rank(order, task));
        let search = Search { filter, order, limit, with_payload: false, with_result: false };
        let (mut found, mut places) = (Vec::new(), BTreeMap::new());
        for page in 0.. {
            prop_assert!(page < 2_000, "a list ends");
            let (more, next) = world.page(&search, places, time);
            prop_assert!(more.len() <= limit);
            found.extend(more);
            let Some(next) = next else { break };
            places = next;
        }
        prop_assert_eq!(found, expected);
    }

    /// While tasks are created, change and go, whatever fits all the time is on exactly one page, and nothing is on two.
    #[test]
    fn what_exists_all_the_time_is_shown_exactly_once(
        before in proptest::collection::vec(step(), 30..120),
        during in proptest::collection::vec(step(), 1..120),
        (kind, argument, order, limit, has_groups) in (0..7u8, any::<u16>(), 0..4usize, 1..9usize, any::<bool>()),
    ) {
        let mut world = World::new(has_groups);
        before.iter().for_each(|step| world.step(step));
        let order = orders()[order];
        let filter = filter(kind, argument, 0, &world.ids);
        let fitting = |world: &World| -> BTreeMap<TaskId, Option<u64>> {
            let tasks = world.tasks();
            let tasks = tasks.iter().filter(|task| fits(&filter, task));
            let ordered = matches!(order, Order::Finished { .. });
            let tasks = tasks.filter(|task| !ordered || task.finished_at.is_some());
            tasks.map(|task| (task.id, task.finished_at.filter(|_| ordered).map(|time| time.0))).collect()
        };
        let search = Search { filter: filter.clone(), order, limit, with_payload: true, with_result: true };
        let (mut found, mut places) = (Vec::new(), BTreeMap::new());
        let mut constant = fitting(&world);
        let mut steps = during.iter();
        loop {
            let (more, next) = world.page(&search, places, usize::MAX);
            found.extend(more);
            let Some(next) = next else { break };
            places = next;
            for step in steps.by_ref().take(2) {
                world.step(step);
                let now = fitting(&world);
                constant.retain(|id, finished| now.get(id) == Some(finished));
            }
        }
        let ids: Vec<TaskId> = found.iter().map(|task| task.id).collect();
        let once: BTreeSet<TaskId> = ids.iter().copied().collect();
        if !matches!(order, Order::Finished { .. }) {
            prop_assert_eq!(once.len(), ids.len(), "a task is on two pages");
        }
        for id in constant.keys() {
            prop_assert_eq!(ids.iter().filter(|found| *found == id).count(), 1, "{:?}", id);
        }
        for task in &found {
            prop_assert!(matches!(task.payload, Payload::Resident(_)), "payloads were asked for");
        }
    }
}

/// The list of a queue is the order in which its tasks are claimed, and that of its delayed tasks the one in which they become ready.
#[test]
fn a_queue_is_listed_as_it_will_be_claimed() {
    let mut world = World::new(true);
    for (priority, delay) in [(0, 0), (3, 0), (1, 0), (3, 0), (0, 2_000), (0, 1_000), (2, 0), (0, 0), (1, 3_000)] {
        world.step(&Step::Create { tenant: 1, command: 0, priority, delay, key: None });
    }
    // What comes back goes to the tail of its priority.
    world.step(&Step::Claim { command: 0 });
    world.step(&Step::End { task: 0, how: 3 });
    world.step(&Step::End { task: 0, how: 3 });
    let acme: Arc<str> = "acme".into();
    let mut list = |state: State| {
        let mut filter = Filter::of(&acme);
        filter.commands = Some(BTreeSet::from(["a".into()]));
        filter.states = BTreeSet::from([state]);
        let search = Search { filter, order: Order::Queue, limit: 2, with_payload: false, with_result: false };
        let (mut ids, mut places) = (Vec::new(), BTreeMap::new());
        loop {
            let (found, next) = world.page(&search, places, usize::MAX);
            ids.extend(found.iter().map(|task| task.id));
            let Some(next) = next else { return ids };
            places = next;
        }
    };
    let (ready, delayed) = (list(State::Ready), list(State::Delayed));
    assert_eq!(delayed, [world.ids[5], world.ids[4], world.ids[8]]);
    let mut claimed = Vec::new();
    while claimed.len() < ready.len() {
        world.step(&Step::Claim { command: 0 });
        claimed = world.held.iter().map(|(id, _)| *id).collect();
    }
    assert_eq!(ready, claimed);
}
