//! Operations on many tasks, carried out: whoever leads a shard looks for the next tasks of each operation in its checkpoint, and proposes
//! the next step. Everything that must not be lost stands in the state machine, so a new leader goes on where the last one was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Code, Problem};
use base::{Millis, Position, ShardId};
use cluster::{Freshness, Handle, Readers, Stage, Time};
use queue::listing::{Place, Reached};
use queue::op::Op;
use queue::operations::{Operation, OperationId, OperationKind, OperationState};
use queue::outcome::{Outcome as Applied, State};
use queue::steps::{Ahead, Page, Plan};
use queue::{Answer as Told, Query, QueueMachine, codec};
use serde_json::{Map, Value};
use tokio::sync::{Notify, oneshot};

use crate::auth::EventTypes;
use crate::http::call::Outcome;
use crate::http::error::invalid_body;
use crate::http::filter::read_filter;

/// Tasks per second, if nothing is said.
const RATE_DEFAULT: u64 = 100;

/// Bytes of a request: it is kept with the operation.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// How often it is looked whether there is something to do: another node may have taken the request.
const LOOK: Duration = Duration::from_millis(500);

/// After a step that failed.
const AGAIN: Duration = Duration::from_millis(200);

/// How long is waited at a time until what was applied when the operation began is shown.
const SHOW_MAX: Millis = Millis(2_000);

/// What is asked for, understood.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) plan: Plan,
    /// Nothing but queues is asked for.
    pub(crate) takes_all: bool,
}

/// What requests may ask for at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Tasks per second.
    pub(crate) rate_max: u64,
    /// How far a task may be put off.
    pub(crate) delay_max: Millis,
}

/// What was accepted is carried out, whatever this node's own bounds are.
const ACCEPTED: Bounds = Bounds { rate_max: u64::MAX, delay_max: Millis(u64::MAX) };

impl Request {
    /// Reads a request for an operation of this kind; `command`: the queue that its path names.
    ///
    /// # Errors
    /// It cannot be carried out as it is.
    pub(crate) fn read(
        kind: OperationKind,
        tenant: &Arc<str>,
        command: Option<&str>,
        request: &[u8],
        bounds: &Bounds,
    ) -> Outcome<Request> {
        use OperationKind::{Cancel, DeadPurge, DeadRedrive, QueuePurge};
        if request.len() > REQUEST_BYTES_MAX {
            return Err(invalid_body(format!("a request for an operation has at most {REQUEST_BYTES_MAX} bytes")));
        }
        let blank = request.iter().all(u8::is_ascii_whitespace);
        let body: Option<Map<String, Value>> = if blank {
            None
        } else {
            let parsed = serde_json::from_slice(request);
            parsed.map_err(|error| invalid_body(format!("the body is not what this route takes: {error}")))?
        };
        let body = body.unwrap_or_default();
        let own: &[&str] = match kind {
            DeadRedrive => &["attempts", "priority", "delaySeconds"],
            DeadPurge => &["confirm"],
            QueuePurge => &["confirm", "states"],
            Cancel => &["reason", "force"],
        };
        let known = |name: &str| own.contains(&name) || matches!(name, "filter" | "ratePerSecond" | "dryRun");
        if let Some(name) = body.keys().find(|name| !known(name)) {
            let name: String = name.chars().take(100).collect();
            return Err(bad(&name, "this route knows no such field"));
        }
        let fields = Fields(&body);
        let dry_run = fields.flag("dryRun")?;
        let rate = fields.number("ratePerSecond", 1..=bounds.rate_max)?;
        let keep_attempts = match fields.text("attempts")? {
            None | Some("" | "reset") => false,
            Some("keep") => true,
            Some(_) => return Err(bad("attempts", "attempts is reset or keep")),
        };
        let delay = match fields.0.get("delaySeconds") {
            None | Some(Value::Null) => 0,
            Some(seconds) => {
                let ms = seconds.as_f64().map(|seconds| seconds * 1000.0);
                let ms = ms.filter(|ms| (0.0..=bounds.delay_max.0 as f64).contains(ms));
                let problem = || Problem::new(Code::InvalidDelay, "delaySeconds is 0 to queue.maxDelay");
                ms.ok_or_else(|| Box::new(problem().field("delaySeconds")))? as u64
            }
        };
        let mut states: BTreeSet<State> = match kind {
            DeadRedrive | DeadPurge => [State::Dead].into(),
            QueuePurge => [State::Ready, State::Delayed].into(),
            Cancel => [State::Ready, State::Delayed, State::Leased].into(),
        };
        if let Some(asked) = fields.0.get("states") {
            let names: Option<Vec<State>> = asked.as_array().and_then(|names| {
                names
                    .iter()
                    .map(|name| State::from_name(name.as_str()?).filter(|state| states.contains(state)))
                    .collect()
            });
            let asked = names.filter(|names| !names.is_empty());
            let asked = asked.ok_or_else(|| bad("states", "states is a list of READY, DELAYED or both"))?;
            states = asked.into_iter().collect();
        }
        let pairs = fields.filter()?;
        let by_state = pairs.iter().find(|(name, _)| matches!(name.as_str(), "state" | "status"));
        if let (Some((name, _)), true) = (by_state, kind != Cancel) {
            let detail = "the route says which states are meant";
            return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field(name.clone())));
        }
        if kind == Cancel && pairs.is_empty() {
            let detail = "filter needs at least one condition; name the queue, or ids";
            return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("filter")));
        }
        if command.is_some() && pairs.iter().any(|(name, _)| name == "command") {
            let detail = "the path names the queue";
            return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("command")));
        }
        let takes_all = pairs.iter().all(|(name, _)| name == "command") && (kind != QueuePurge || states.len() == 2);
        let named = command.map(|command| ("command".to_owned(), command.to_owned()));
        let all = pairs.into_iter().chain(named).map(|(name, value)| (name.into(), value.into()));
        let mut filter = read_filter(all, tenant, &EventTypes::Any, |_, _| Ok(false))?;
        filter.states.retain(|state| states.contains(state));
        let confirmed = fields.text("confirm")?;
        let word = match kind {
            QueuePurge => command,
            DeadPurge => Some("purge"),
            _ => None,
        };
        if let Some(word) = word.filter(|word| !dry_run && confirmed != Some(*word)) {
            let detail = format!("to delete tasks for good, confirm must be {word:?}");
            return Err(Box::new(Problem::new(Code::ConfirmationRequired, detail).field("confirm")));
        }
        let plan = Plan {
            kind,
            filter,
            keep_attempts,
            priority: fields.number("priority", 0..=9)?.map(|priority| priority as u8),
            delay: Millis(delay),
            reason: fields.text("reason")?.unwrap_or_default().to_owned(),
            force: fields.flag("force")?,
            rate: rate.unwrap_or(RATE_DEFAULT.min(bounds.rate_max)),
            dry_run,
        };
        Ok(Request { plan, takes_all })
    }
}

fn bad(name: &str, detail: &str) -> Box<Problem> {
    Box::new(Problem::new(Code::InvalidField, detail).field(name))
}

/// The fields of a request.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn given(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn flag(&self, name: &str) -> Outcome<bool> {
        let given = self.given(name).map(|value| value.as_bool().ok_or_else(|| bad(name, "this is true or false")));
        Ok(given.transpose()?.unwrap_or(false))
    }

    fn text(&self, name: &str) -> Outcome<Option<&'a str>> {
        self.given(name).map(|value| value.as_str().ok_or_else(|| bad(name, "this is text"))).transpose()
    }

    fn number(&self, name: &str, range: std::ops::RangeInclusive<u64>) -> Outcome<Option<u64>> {
        let right = format!("{name} is a number from {} to {}", range.start(), range.end());
        let read =
            |value: &Value| value.as_u64().filter(|number| range.contains(number)).ok_or_else(|| bad(name, &right));
        self.given(name).map(read).transpose()
    }

    /// The conditions of `filter`, in the form of parameters; a list is a repeated parameter.
    fn filter(&self) -> Outcome<Vec<(String, String)>> {
        let Some(filter) = self.given("filter") else { return Ok(Vec::new()) };
        let filter = filter.as_object().ok_or_else(|| bad("filter", "filter is an object"))?;
        let text = |name: &str, value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => {
                let name: String = name.chars().take(80).collect();
                let detail = "a condition is text, a number, or a list of them";
                Err(Box::new(Problem::new(Code::InvalidFilter, detail).field(name)))
            }
        };
        let mut pairs = Vec::new();
        for (name, value) in filter {
            match value {
                Value::Array(values) => {
                    for value in values {
                        pairs.push((name.clone(), text(name, value)?));
                    }
                }
                Value::Null => {}
                value => pairs.push((name.clone(), text(name, value)?)),
            }
        }
        Ok(pairs)
    }
}

/// The queue that the path of a request has named.
pub(crate) fn command_of(operation: &Operation) -> Option<&str> {
    (operation.kind == OperationKind::QueuePurge)
        .then(|| operation.commands.first().map(|command| &**command))
        .flatten()
}

/// The thread that carries operations out. It ends when this is dropped.
pub(crate) struct Bulk {
    _stop: oneshot::Sender<()>,
}

impl Bulk {
    /// Starts it. `wake`: somebody has begun an operation.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start(node: Handle<QueueMachine>, wake: Arc<Notify>) -> std::io::Result<Bulk> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new().name("codeq-bulk".into()).spawn(move || {
            let mut run = Run { node, going: HashMap::new() };
            runtime.block_on(async {
                tokio::select! {
                    () = run.run(&wake) => {}
                    // The sender is dropped, which is all that is asked for.
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Bulk { _stop: stop })
    }
}

/// What this node knows of an operation that it carries out.
struct Going {
    due: Instant,
    ahead: Ahead,
    /// Readers must see everything up to here: what was there when it began.
    needs: Position,
}

struct Run {
    node: Handle<QueueMachine>,
    going: HashMap<(ShardId, OperationId), Going>,
}

impl Run {
    async fn run(&mut self, wake: &Notify) {
        loop {
            let wait = self.turn().await.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = wake.notified() => {}
            }
        }
    }

    /// Takes every step that is due. Says when the next one is.
    async fn turn(&mut self) -> Option<Instant> {
        let mut running = Vec::new();
        for shard in (0..self.node.identity().shards).map(ShardId) {
            if self.node.stage() != Stage::Running || self.node.leader(shard) != self.node.id() {
                continue;
            }
            let query = Query::Operations { tenant: None, running: true };
            if let Ok((applied, Told::Operations(found))) = self.node.read(shard, query, Freshness::STALE).await {
                running.extend(found.into_iter().map(|operation| (applied, operation)));
            }
        }
        let known: BTreeSet<(ShardId, OperationId)> =
            running.iter().map(|(applied, operation)| (applied.shard, operation.id)).collect();
        self.going.retain(|key, _| known.contains(key));
        for (applied, operation) in &running {
            let key = (applied.shard, operation.id);
            let begin = |due| Going { due, ahead: Ahead::default(), needs: *applied };
            let going = self.going.entry(key).or_insert_with(|| begin(Instant::now()));
            if going.due > Instant::now() {
                continue;
            }
            if !self.node.has_shown(going.needs) {
                self.node.show(SHOW_MAX).await;
            }
            if !self.node.has_shown(going.needs) {
                going.due = Instant::now() + AGAIN;
            } else if !self.advance(applied.shard, operation).await
                && let Some(going) = self.going.get_mut(&key)
            {
                *going = begin(Instant::now() + AGAIN);
            }
        }
        self.going.values().map(|going| going.due).min()
    }

    /// Takes the next step of an operation. False: it did not work out, and is tried again.
    async fn advance(&mut self, shard: ShardId, operation: &Operation) -> bool {
        let key = (shard, operation.id);
        let tenant = &operation.tenant;
        let request = Request::read(operation.kind, tenant, command_of(operation), &operation.request, &ACCEPTED);
        let plan = match request {
            Ok(request) => request.plan,
            Err(problem) => {
                // It was accepted by another build.
                let turn = Op::Turn { tenant, id: operation.id, to: OperationState::Failed, error: &problem.detail };
                let mut bytes = Vec::new();
                codec::encode(&turn, &mut bytes);
                return self.propose(shard, &bytes).await;
            }
        };
        let Some(going) = self.going.get_mut(&key) else { return false };
        let (limit, pace) = plan.pace(plan.shards(self.node.identity().shards).len());
        let places = going.ahead.places(operation.steps, &operation.cursor);
        let Some(page) = self.find(shard, operation, &plan, limit, places).await else { return false };
        let Some(going) = self.going.get_mut(&key) else { return false };
        if page.tasks.is_empty() && !page.is_last {
            going.ahead.found_nothing(operation.steps, page.places);
            return true;
        }
        going.due = Instant::now() + pace;
        self.propose(shard, &plan.step(operation, &page)).await
    }

    async fn propose(&self, shard: ShardId, operation: &[u8]) -> bool {
        matches!(self.node.propose(shard, operation).await, Ok((_, Applied::Done)))
    }

    /// The next tasks of an operation. Nothing: the checkpoint cannot be read just now.
    async fn find(
        &self,
        shard: ShardId,
        operation: &Operation,
        plan: &Plan,
        limit: usize,
        places: BTreeMap<ShardId, Place>,
    ) -> Option<Page> {
        let mut listing = plan.listing(limit, places);
        let look = move |readers: &mut Readers, time: &Time| {
            let Some(reader) = readers.get_mut(&shard) else { return Ok(Some(None)) };
            match listing.read(vec![(shard, &mut *reader.rows)], &|| time.is_left()) {
                Ok(Reached::OutOfTime) if !time.is_last() => Ok(None),
                Ok(reached) => {
                    let found = std::mem::take(&mut listing.found);
                    Ok(Some(Some((found, listing.places.clone(), reached))))
                }
                Err(queue::listing::Unlisted::Rows(error)) => Err(error),
                Err(queue::listing::Unlisted::Damaged { .. }) => Ok(Some(None)),
            }
        };
        let (found, places, reached) = self.node.look(look).await.ok().flatten()?;
        Some(Page::of(operation, found, places, &reached))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: OperationKind, command: Option<&str>, request: &str) -> Result<Request, (Code, String)> {
        let bounds = Bounds { rate_max: 500, delay_max: Millis(1_000_000) };
        Request::read(kind, &"acme".into(), command, request.as_bytes(), &bounds)
            .map_err(|problem| (problem.code, problem.field.unwrap_or_default()))
    }

    #[test]
    fn requests_are_understood() {
        let Request { plan, takes_all } = read(OperationKind::DeadRedrive, None, "").expect("everything is asked for");
        assert!(takes_all && plan.commands().is_empty() && plan.shards(4).len() == 4);
        assert_eq!(plan.rate, 100);
        let request = r#"{"filter": {"command": ["a", "b"], "attempts": 3, "errorContains": "No"}, "attempts": "keep",
            "priority": 9, "delaySeconds": 1.5, "ratePerSecond": 500, "dryRun": true}"#;
        let Request { plan, takes_all } = read(OperationKind::DeadRedrive, None, request).expect("it is one");
        assert_eq!(plan.commands(), ["a", "b"]);
        assert_eq!((plan.keep_attempts, plan.priority, plan.delay), (true, Some(9), Millis(1_500)));
        assert_eq!((plan.filter.attempts.clone(), plan.filter.error_part.as_deref()), (Some(3..=3), Some("no")));
        assert_eq!(plan.filter.states, [State::Dead].into());
        assert!(plan.dry_run && !takes_all);
        let request = r#"{"confirm": "a", "states": ["READY"]}"#;
        let Request { plan, takes_all } = read(OperationKind::QueuePurge, Some("a"), request).expect("it is one");
        assert_eq!((plan.commands(), plan.filter.states.clone()), (vec!["a"], [State::Ready].into()));
        assert!(!takes_all);
        let request = r#"{"filter": {"command": "a", "state": "LEASED"}}"#;
        let Request { plan, .. } = read(OperationKind::Cancel, None, request).expect("it is one");
        assert_eq!(plan.filter.states, [State::Leased].into());
    }

    #[test]
    fn what_cannot_be_carried_out_is_named() {
        use OperationKind::{Cancel, DeadPurge, DeadRedrive, QueuePurge};
        for (kind, command, request, code, field) in [
            (DeadRedrive, None, "[1]", Code::InvalidBody, ""),
            (DeadRedrive, None, r#"{"colour": 1}"#, Code::InvalidField, "colour"),
            (DeadRedrive, None, r#"{"filter": 7}"#, Code::InvalidField, "filter"),
            (DeadRedrive, None, r#"{"filter": {"colour": "red"}}"#, Code::InvalidFilter, "colour"),
            (DeadRedrive, None, r#"{"filter": {"command": {}}}"#, Code::InvalidFilter, "command"),
            (DeadRedrive, None, r#"{"filter": {"state": "DEAD"}}"#, Code::InvalidFilter, "state"),
            (DeadRedrive, None, r#"{"ratePerSecond": 501}"#, Code::InvalidField, "ratePerSecond"),
            (DeadRedrive, None, r#"{"ratePerSecond": 0}"#, Code::InvalidField, "ratePerSecond"),
            (DeadRedrive, None, r#"{"priority": 10}"#, Code::InvalidField, "priority"),
            (DeadRedrive, None, r#"{"delaySeconds": -1}"#, Code::InvalidDelay, "delaySeconds"),
            (DeadRedrive, None, r#"{"attempts": "some"}"#, Code::InvalidField, "attempts"),
            (DeadRedrive, None, r#"{"dryRun": "yes"}"#, Code::InvalidField, "dryRun"),
            (DeadPurge, None, "{}", Code::ConfirmationRequired, "confirm"),
            (DeadPurge, None, r#"{"confirm": "yes"}"#, Code::ConfirmationRequired, "confirm"),
            (QueuePurge, Some("a"), r#"{"confirm": "b"}"#, Code::ConfirmationRequired, "confirm"),
            (QueuePurge, Some("a"), r#"{"confirm": "a", "states": ["LEASED"]}"#, Code::InvalidField, "states"),
            (QueuePurge, Some("a"), r#"{"confirm": "a", "states": []}"#, Code::InvalidField, "states"),
            (QueuePurge, Some("a"), r#"{"confirm": "a", "filter": {"command": "b"}}"#, Code::InvalidFilter, "command"),
            (Cancel, None, "{}", Code::InvalidFilter, "filter"),
        ] {
            let found = read(kind, command, request).map(|_| ());
            assert_eq!(found, Err((code, field.into())), "{} {request}", kind.name());
        }
        let long = format!(r#"{{"filter": {{"ids": "{}"}}}}"#, "x".repeat(REQUEST_BYTES_MAX));
        assert_eq!(read(Cancel, None, &long).map(|_| ()), Err((Code::InvalidBody, String::new())));
    }
}
