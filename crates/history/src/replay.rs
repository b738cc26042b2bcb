//! What must have been answered: the reference model goes through each shard's log, and every answer, every read and every export is
//! compared with it at its position.
//!
//! On the way the test clock is looked at as well: a grant that follows an expired lease or a delay must not have reached its client
//! before that can be over. Commits lie after the invocation and before the answer, so this needs no clock of the server.

use std::collections::{BTreeMap, BTreeSet};

use base::map::IdMap;

use crate::History;
use crate::blame;
use crate::history::{Came, Kind, Row, StoredBody, decode};
use crate::judge::{Finding, Stop};
use crate::model::Model;
use crate::place::{NOBODY, Places};
use crate::reached::Reached;
use crate::record::{Answer, Call, Export, Grant, Outcome, Run, Schedule, Task};

/// Stops at the first answer that the model would not have given; else says which rare things were reached.
pub(crate) fn check(history: &History, run: &Run, places: &Places) -> Result<BTreeMap<&'static str, usize>, Stop> {
    let mut reached = BTreeMap::new();
    let mut exports: BTreeMap<u16, Vec<(Vec<u16>, Export)>> = BTreeMap::new();
    for (nodes, export) in history.distinct_exports() {
        exports.entry(export.at.shard).or_default().push((nodes, export));
    }
    for shard in 0..run.shards {
        let exports = exports.remove(&shard).unwrap_or_default();
        let nothing = Vec::new();
        let asked = places.asked.get(&shard).unwrap_or(&nothing);
        let mut replay = Replay {
            history,
            shard,
            model: Model::new(shard, run),
            drift_ppm: u64::from(run.drift_ppm),
            real: IdMap::default(),
            granted: BTreeSet::new(),
            reached: Reached::default(),
        };
        replay.run(asked, places, exports)?;
        replay.reached.marks.into_iter().for_each(|(mark, count)| *reached.entry(mark).or_default() += count);
    }
    Ok(reached)
}

struct Replay<'a> {
    history: &'a History,
    shard: u16,
    model: Model,
    drift_ppm: u64,
    /// What is known of live tasks on the test clock, by key.
    real: IdMap<Real>,
    /// Claims of unknown outcome that were granted something.
    granted: BTreeSet<u32>,
    reached: Reached,
}

/// Moments on the test clock, µs.
#[derive(Clone, Copy, Default)]
struct Real {
    /// The present lease lasts at least until then.
    lease: u64,
    /// A lease ran out: nobody else can have got the task before.
    expired: u64,
    /// A delay lasts at least until then.
    delayed: u64,
    /// The operation from which the lease or the delay counts.
    since: u32,
    /// The grant that was closed last, by an operation.
    closed: Option<(u32, u64)>,
}

impl Replay<'_> {
    fn run(&mut self, asked: &[u32], places: &Places, mut exports: Vec<(Vec<u16>, Export)>) -> Result<(), Stop> {
        let history = self.history;
        let reads = self.reads(places);
        let (mut reads, mut asked) = (reads.iter().copied().peekable(), asked.iter().copied());
        exports.sort_by_key(|(_, export)| export.at.index);
        let mut exports = exports.into_iter().peekable();
        let entries = history.logs.get(&self.shard).map(|log| &log.entries);
        let mut last = 0;
        for (index, entry) in entries.into_iter().flatten() {
            // Whatever reflects less than this entry is looked at before it.
            while let Some(read) = reads.next_if(|read| history.rows[*read as usize].index < *index) {
                self.read(read)?;
            }
            while let Some((nodes, export)) = exports.next_if(|(_, export)| export.at.index < *index) {
                self.export(&nodes, &export)?;
            }
            last = *index;
            if let Some(body) = entry.body() {
                let count = history.logged(&body).count();
                let asked: Vec<u32> = asked.by_ref().take(count).collect();
                self.entry(*index, &body, asked)?;
            }
        }
        for read in reads {
            self.read(read)?;
        }
        for (nodes, export) in exports {
            if export.at.index > last {
                let what =
                    format!("node {} has applied {}:{}, which no log has", nodes[0], self.shard, export.at.index);
                return Err(Stop::Inconclusive(what));
            }
            self.export(&nodes, &export)?;
        }
        Ok(())
    }

    /// What was answered from the state at a position, without an operation in the log.
    fn reads(&self, places: &Places) -> Vec<u32> {
        let rows = &self.history.rows;
        let is_read = |place: &usize| {
            let row = &rows[*place];
            row.came == Came::Answered && row.shard == self.shard && row.kind != Kind::Write && !places.in_log[*place]
        };
        let mut reads: Vec<u32> = (0..rows.len()).filter(is_read).map(|place| place as u32).collect();
        reads.sort_by_key(|place| rows[*place as usize].index);
        reads
    }

    fn read(&mut self, place: u32) -> Result<(), Finding> {
        let history = self.history;
        let row = &history.rows[place as usize];
        let call = history.call(row);
        let Outcome::Answered { answer, .. } = history.outcome(row) else { panic!("it was answered") };
        let expected = match &call {
            Call::Claim(claim) if self.model.has_work(claim) => self.model.clone().apply(&call),
            Call::Claim(claim) => {
                self.reached.nothing(claim, &self.model);
                Answer::Claimed(Box::default())
            }
            _ => self.model.apply(&call),
        };
        if answer == expected {
            return Ok(());
        }
        Err(self.blamed(place, &call, &answer, &expected, row.index))
    }

    fn blamed(&self, place: u32, call: &Call, answer: &Answer, expected: &Answer, index: u64) -> Finding {
        let number = self.history.rows[place as usize].number;
        let closed = |task: Task| self.real.get(&task.key).and_then(|real| real.closed);
        let (id, what, task) = blame::answer(&self.model, call, answer, expected, closed);
        let finding = Finding::new(id, format!("{number}: {what}")).by(place as usize).at(self.shard, index);
        match task {
            Some(task) => finding.of(task),
            None => finding,
        }
    }

    fn export(&mut self, nodes: &[u16], export: &Export) -> Result<(), Finding> {
        blame::export(&self.model, export).map_err(|(id, what, task)| {
            let lost = if id == "S1" {
                task.map(|task| self.lost_creates(task, export)).unwrap_or_default()
            } else {
                String::new()
            };
            let what = format!("nodes {nodes:?} at {}:{}: {what}{lost}", self.shard, export.at.index);
            let finding = Finding::new(id, what).at(self.shard, export.at.index);
            match task {
                Some(task) => finding.of(task),
                None => finding,
            }
        })
    }

    /// Which part of a client's creations is missing: that of a lost tail looks different from that of a lost task.
    fn lost_creates(&self, task: Task, export: &Export) -> String {
        let created = |row: &Row| match self.history.outcome(row) {
            Outcome::Answered { answer: Answer::Created { task, .. }, .. } if task.shard == self.shard => Some(task),
            _ => None,
        };
        let rows = self.history.rows.iter().filter(|row| row.kind == Kind::Write && row.came == Came::Answered);
        let all: Vec<(u32, Task)> = rows.filter_map(|row| Some((row.client, created(row)?))).collect();
        let Some((client, _)) = all.iter().find(|(_, known)| *known == task) else { return String::new() };
        let of_client: Vec<Task> = all.iter().filter(|known| known.0 == *client).map(|known| known.1).collect();
        let here = |task: &Task| export.tasks.iter().any(|view| view.task == *task);
        let missing: Vec<usize> = (0..of_client.len()).filter(|place| !here(&of_client[*place])).collect();
        let (first, last) = (missing[0] + 1, missing[missing.len() - 1] + 1);
        let (missing, all) = (missing.len(), of_client.len());
        format!(
            "; of the {all} tasks that client {client} created here, {missing} are not shown, between its {first}th and its {last}th"
        )
    }

    fn entry(&mut self, index: u64, body: &StoredBody, mut asked: Vec<u32>) -> Result<(), Finding> {
        let history = self.history;
        let expired = self.model.begin(index, body.lease, body.schedule);
        self.reached.entry(body.proposed_in, &self.model, &expired);
        for expired in expired {
            let real = self.real.entry(expired.task.key).or_default();
            real.expired = real.lease;
            real.delayed = real.lease;
            if let Some(delay) = expired.delay {
                real.delayed = later(real.lease, delay, self.drift_ppm);
            }
        }
        let calls: Vec<_> = history.logged(body).map(|logged| logged.call).collect();
        for here in 0..calls.len() {
            let call: Call = decode(calls[here]);
            self.reached.asked(&call, &self.model);
            let expected = self.model.apply(&call);
            self.reached.answered(&call, &expected);
            self.reached.stepped(&call, &expected, &self.model);
            let answer_of = |place: u32| {
                let row = history.rows.get(place as usize).filter(|row| row.came == Came::Answered)?;
                match history.outcome(row) {
                    Outcome::Answered { answer, .. } => Some(answer),
                    _ => None,
                }
            };
            let mut answer = answer_of(asked[here]);
            if answer.as_ref().is_some_and(|answer| !same(answer, &expected)) {
                // Which of equal operations of one entry came first, only their answers tell.
                let equal = (here + 1..calls.len()).filter(|other| calls[*other] == calls[here]);
                let fits = |other: &usize| answer_of(asked[*other]).is_none_or(|answer| same(&answer, &expected));
                if let Some(other) = equal.into_iter().find(fits) {
                    asked.swap(here, other);
                    answer = answer_of(asked[here]);
                }
            }
            let place = asked[here];
            if let Some(answer) = &answer {
                if !same(answer, &expected) {
                    return Err(self.blamed(place, &call, answer, &expected, index));
                }
                if let Answer::Claimed(grants) = answer {
                    grants.iter().for_each(|grant| self.model.learn(grant.task.task, &grant.token));
                }
            }
            if let Some((id, what, task)) = self.model.wrong() {
                let finding = Finding::new(id, what.clone()).at(self.shard, index);
                return Err(task.map_or(finding.clone(), |task| finding.of(task)));
            }
            for (item, answer) in self.model.items().to_vec() {
                self.look_at_the_clock(NOBODY, &item, &answer, index)?;
            }
            self.claimed_once(place, &expected, index)?;
            self.look_at_the_clock(place, &call, &expected, index)?;
        }
        Ok(())
    }

    /// A claim that waits may stand in the log several times, and only the last time, which is what its client hears of, may it be granted
    /// something.
    fn claimed_once(&mut self, place: u32, answer: &Answer, index: u64) -> Result<(), Finding> {
        let Answer::Claimed(grants) = answer else { return Ok(()) };
        let Some(grant) = grants.first() else { return Ok(()) };
        let found = |id, what: &str| Finding::new(id, what).of(grant.task.task).at(self.shard, index);
        if place == NOBODY {
            return Err(found("S8", "a claim was granted tasks by an entry that its client never heard of"));
        }
        let row = &self.history.rows[place as usize];
        match row.came {
            Came::Answered => Ok(()),
            Came::Refused => {
                let what = format!("{} was refused for certain, and was granted tasks", row.number);
                Err(found("S17", &what).by(place as usize))
            }
            Came::Unknown | Came::Silent if self.granted.insert(place) => Ok(()),
            Came::Unknown | Came::Silent => {
                Err(found("S8", &format!("{} was granted tasks twice", row.number)).by(place as usize))
            }
        }
    }

    /// What an operation means on the test clock, and whether a grant came too early by it.
    fn look_at_the_clock(&mut self, place: u32, call: &Call, answer: &Answer, index: u64) -> Result<(), Finding> {
        let row = (place != NOBODY).then(|| &self.history.rows[place as usize]);
        let t0 = row.map_or(0, |row| row.t0);
        let drift = self.drift_ppm;
        let after = |delay| later(t0, delay, drift);
        match (call, answer) {
            (Call::Claim(_), Answer::Claimed(grants)) => {
                for grant in grants {
                    if let Some(row) = row.filter(|row| row.came == Came::Answered) {
                        self.granted_in_time(place, row.t1, grant, index)?;
                    }
                    let real = self.real.entry(grant.task.task.key).or_default();
                    let lease = after(grant.length);
                    *real = Real { lease, since: place, closed: real.closed, ..Real::default() };
                }
            }
            (Call::Create(create), Answer::Created { task, .. }) => {
                if let Schedule::After(delay) = create.schedule {
                    self.real.insert(task.key, Real { delayed: after(delay), since: place, ..Real::default() });
                }
            }
            (Call::Extend { lease, length }, Answer::Extended { .. }) => {
                let until = after(self.model.length(*length));
                let real = self.real.entry(lease.task.key).or_default();
                if real.lease < until {
                    (real.lease, real.since) = (until, place);
                }
            }
            (Call::Redrive(redrive), Answer::Redriven(_)) => {
                let real = self.real.entry(redrive.task.key).or_default();
                *real = Real { delayed: after(redrive.delay), since: place, closed: real.closed, ..Real::default() };
            }
            (Call::Edit(edit), Answer::Edited(_)) => {
                if let Some(schedule) = edit.schedule {
                    let real = self.real.entry(edit.task.key).or_default();
                    let delayed = if let Schedule::After(delay) = schedule { after(delay) } else { 0 };
                    (real.delayed, real.since) = (delayed, place);
                }
            }
            (Call::Nack { lease, .. } | Call::Release { lease }, Answer::Retried { .. } | Answer::Released) => {
                let delay = if let Answer::Retried { delay, .. } = answer { *delay } else { 0 };
                let closed = match lease.by {
                    crate::record::Right::Token(token) => Some((token.attempt, token.index)),
                    _ => None,
                };
                let real = Real { delayed: after(delay), since: place, closed, ..Real::default() };
                self.real.insert(lease.task.key, real);
            }
            (_, Answer::Rejected(_)) => {}
            (Call::Complete { lease, .. } | Call::Fail { lease, .. } | Call::Nack { lease, .. }, _) => {
                self.real.remove(&lease.task.key);
            }
            (Call::Cancel { task, .. }, Answer::Cancelled) => drop(self.real.remove(&task.key)),
            _ => {}
        }
        Ok(())
    }

    fn granted_in_time(&self, place: u32, t1: u64, grant: &Grant, index: u64) -> Result<(), Finding> {
        let Some(real) = self.real.get(&grant.task.task.key) else { return Ok(()) };
        let (id, until, what) = if t1 < real.expired {
            ("S5", real.expired, "the lease before it")
        } else if t1 < real.delayed {
            ("S11", real.delayed, "the delay before it")
        } else {
            return Ok(());
        };
        let number = self.history.rows[place as usize].number;
        let what = format!("{number} was granted a task at {t1} µs; {what} lasts until {until} µs at least");
        let finding = Finding::new(id, what).of(grant.task.task).at(self.shard, index);
        let finding = if real.since == NOBODY { finding } else { finding.by(real.since as usize) };
        Err(finding.by(place as usize))
    }
}

/// Clocks are read in whole milliseconds, once when a delay begins and once when it ends, and again when the leader changes.
const READING_MS: u64 = 2;

/// The moment after `from` µs when `delay` ms are over at the earliest, by a clock that runs fast by so many millionths.
fn later(from: u64, delay: u64, drift_ppm: u64) -> u64 {
    let micros =
        u128::from(delay.saturating_sub(READING_MS)) * u128::from(1_000_000 - drift_ppm.min(1_000_000)) / 1_000;
    from.saturating_add(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// Whether an answer is the expected one. The model does not know the secret part of tokens.
fn same(answer: &Answer, expected: &Answer) -> bool {
    match (answer, expected) {
        (Answer::Claimed(answer), Answer::Claimed(expected)) => {
            let same = |(one, other): (&Grant, &Grant)| {
                let token = |grant: &Grant| (grant.token.attempt, grant.token.index);
                (&one.task, one.length, token(one)) == (&other.task, other.length, token(other))
            };
            answer.len() == expected.len() && answer.iter().zip(expected).all(same)
        }
        _ => answer == expected,
    }
}
