//! What the server has acknowledged, and what must follow from it. No I/O: the ledger is filled by the load and by the reading back, and judged.

use std::collections::{BTreeMap, BTreeSet};

use base::rng::SplitMix;
use serde_json::{Value, json};

/// A task's id, as the number that its digits spell.
pub(crate) type Id = u128;

/// Our own number of a task. Its queue and its content follow from it, so both can be checked by whoever reads them.
pub(crate) type Number = u64;

/// What was answered, and what may have happened.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Acknowledged creations. A repeat with the same key is one more.
    pub(crate) created: Vec<(Number, Id)>,
    /// Creations without an answer, and without a key to ask again with.
    pub(crate) maybe_created: BTreeSet<Number>,
    /// Every grant of every answer to a claim.
    pub(crate) grants: Vec<Grant>,
    /// Acknowledged results: the attempts that were told that theirs counted.
    pub(crate) completed: BTreeMap<Id, Vec<u32>>,
    /// Results without an answer, or with one that leaves open whether the first try had counted.
    pub(crate) maybe_completed: BTreeMap<Id, Vec<u32>>,
    /// Answers that no server may give.
    pub(crate) wrong: Vec<String>,
    /// What the server said to be refused without effect.
    pub(crate) refused: u64,
    /// Requests that got no answer.
    pub(crate) unanswered: u64,
}

/// One claim of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grant {
    pub(crate) id: Id,
    pub(crate) attempt: u32,
    pub(crate) number: Number,
}

/// A finished task, as the server shows it.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) command: String,
    pub(crate) payload: Value,
    pub(crate) status: String,
    pub(crate) result: Value,
}

/// Complaints of one kind that are shown.
const SHOWN_MAX: usize = 5;

impl Ledger {
    pub(super) fn merge(&mut self, other: Ledger) {
        self.created.extend(other.created);
        self.maybe_created.extend(other.maybe_created);
        self.grants.extend(other.grants);
        for (mine, its) in [(&mut self.completed, other.completed), (&mut self.maybe_completed, other.maybe_completed)]
        {
            for (id, attempts) in its {
                mine.entry(id).or_default().extend(attempts);
            }
        }
        self.wrong.extend(other.wrong);
        self.refused += other.refused;
        self.unanswered += other.unanswered;
    }

    /// What there was, in a few lines.
    pub(crate) fn summary(&self) -> String {
        let (created, grants, completed) = (self.created.len(), self.grants.len(), self.completed.len());
        let tasks = self.tasks();
        let open = tasks.keys().filter(|id| !self.completed.contains_key(id)).count();
        format!(
            "{} operations acknowledged ({created} creations, {grants} grants, {completed} results)\n\
             {} requests without an answer, {} refused without effect; {} creations stayed unknown, {} of them had happened\n\
             {} tasks in all; the completion of {open} was not acknowledged, that of the others was",
            created + grants + completed,
            self.unanswered,
            self.refused,
            self.maybe_created.len(),
            self.turned_out_created(),
            tasks.len(),
        )
    }

    /// Every task that is known to exist, with our number of it.
    pub(super) fn tasks(&self) -> BTreeMap<Id, Number> {
        let granted = self.grants.iter().map(|grant| (grant.id, grant.number));
        self.created.iter().map(|(number, id)| (*id, *number)).chain(granted).collect()
    }

    /// Creations without an answer that did happen: somebody was given the task.
    fn turned_out_created(&self) -> usize {
        let granted: BTreeSet<Number> = self.grants.iter().map(|grant| grant.number).collect();
        self.maybe_created.intersection(&granted).count()
    }

    /// What contradicts itself in the answers alone.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut found = Complaints::default();
        self.wrong.iter().for_each(|wrong| found.add("answers that must not be", wrong.clone()));
        let mut id_of: BTreeMap<Number, Id> = BTreeMap::new();
        let mut number_of: BTreeMap<Id, Number> = BTreeMap::new();
        let granted = self.grants.iter().map(|grant| (grant.number, grant.id));
        for (number, id) in self.created.iter().copied().chain(granted) {
            if *id_of.entry(number).or_insert(id) != id {
                found.add(
                    "tasks stored twice",
                    format!("creation {number} made {} and {}", text(id_of[&number]), text(id)),
                );
            }
            if *number_of.entry(id).or_insert(number) != number {
                found.add("ids given twice", format!("{} is creation {} and {number}", text(id), number_of[&id]));
            }
        }
        let acknowledged: BTreeSet<Number> = self.created.iter().map(|(number, _)| *number).collect();
        for grant in &self.grants {
            if !acknowledged.contains(&grant.number) && !self.maybe_created.contains(&grant.number) {
                found.add("tasks that nobody created", text(grant.id));
            }
        }
        let mut grants = self.grants.clone();
        grants.sort_unstable();
        for pair in grants.windows(2) {
            if pair[0].id == pair[1].id && pair[0].attempt == pair[1].attempt {
                found.add("attempts handed out twice", format!("attempt {} of {}", pair[0].attempt, text(pair[0].id)));
            }
        }
        for (id, attempts) in self.completed.iter().filter(|(_, attempts)| attempts.len() > 1) {
            found.add("tasks completed twice", format!("{} by attempts {attempts:?}", text(*id)));
        }
        for grant in &self.grants {
            let completed = self.completed.get(&grant.id).and_then(|attempts| attempts.first());
            if completed.is_some_and(|completed| grant.attempt > *completed) {
                found.add("tasks handed out after they were completed", text(grant.id));
            }
        }
        found.into_lines()
    }

    /// What contradicts the answers in what the server shows at the end, when no task waits any more.
    pub(super) fn contradictions_with(&self, shown: &BTreeMap<Id, Option<Shown>>, commands: u64) -> Vec<String> {
        let mut found = Complaints::default();
        for (id, number) in self.tasks() {
            let Some(Some(shown)) = shown.get(&id) else {
                found.add("acknowledged tasks that are missing", text(id));
                continue;
            };
            if shown.command != command_of(number, commands) || shown.payload != payload_of(number) {
                found.add("tasks with another content", format!("{} is {shown:?}", text(id)));
            }
            if shown.status != "COMPLETED" {
                found.add("tasks that are not completed", format!("{} is {}", text(id), shown.status));
                continue;
            }
            let acknowledged = self.completed.get(&id);
            let possible = acknowledged.or_else(|| self.maybe_completed.get(&id)).cloned().unwrap_or_default();
            if !possible.iter().any(|attempt| shown.result == result_of(number, *attempt)) {
                let what =
                    if acknowledged.is_some() { "acknowledged results that are lost" } else { "results of nobody" };
                found.add(what, format!("{} has {}, not that of attempts {possible:?}", text(id), shown.result));
            }
        }
        found.into_lines()
    }
}

/// Complaints by kind, a few of each.
#[derive(Default)]
struct Complaints(BTreeMap<&'static str, (usize, Vec<String>)>);

impl Complaints {
    fn add(&mut self, kind: &'static str, what: String) {
        let (count, shown) = self.0.entry(kind).or_default();
        *count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(what);
        }
    }

    fn into_lines(self) -> Vec<String> {
        self.0.into_iter().map(|(kind, (count, shown))| format!("{count} {kind}: {}", shown.join("; "))).collect()
    }
}

/// The queue of a task.
pub(crate) fn command_of(number: Number, commands: u64) -> String {
    format!("load-{}", number % commands)
}

/// What a task carries: 20 to 800 bytes that follow from its number.
pub(crate) fn payload_of(number: Number) -> Value {
    json!({ "number": number, "fill": fill(number, 800) })
}

/// What the worker of an attempt sends.
pub(crate) fn result_of(number: Number, attempt: u32) -> Value {
    json!({ "number": number, "attempt": attempt, "fill": fill(number ^ u64::from(attempt), 100) })
}

fn fill(seed: u64, bytes_max: u64) -> String {
    let mut rng = SplitMix::new(seed);
    let bytes = rng.below(bytes_max);
    (0..bytes / 16).map(|_| format!("{:016x}", rng.next_u64())).collect()
}

/// An id from its digits.
pub(crate) fn id(text: &str) -> Option<Id> {
    Id::from_str_radix(&text.replace('-', ""), 16).ok()
}

/// An id as it is written.
pub(crate) fn text(id: Id) -> String {
    let digits = format!("{id:032x}");
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: u64 = 4;

    /// A history without fault: task 7 is number 1, given out twice and completed by attempt 2; task 8 is number 2, whose creation was not
    /// answered, completed without an answer.
    fn sound() -> (Ledger, BTreeMap<Id, Option<Shown>>) {
        let ledger = Ledger {
            created: vec![(1, 7), (1, 7)],
            maybe_created: [2, 3].into(),
            grants: vec![grant(7, 1, 1), grant(7, 2, 1), grant(8, 1, 2)],
            completed: [(7, vec![2])].into(),
            maybe_completed: [(8, vec![1])].into(),
            ..Ledger::default()
        };
        (ledger, [(7, Some(shown(1, 2))), (8, Some(shown(2, 1)))].into())
    }

    fn grant(id: Id, attempt: u32, number: Number) -> Grant {
        Grant { id, attempt, number }
    }

    fn shown(number: Number, attempt: u32) -> Shown {
        Shown {
            command: command_of(number, COMMANDS),
            payload: payload_of(number),
            status: "COMPLETED".into(),
            result: result_of(number, attempt),
        }
    }

    /// Plants a fault and asserts what is said of it.
    fn check(plant: impl FnOnce(&mut Ledger, &mut BTreeMap<Id, Option<Shown>>), expected: &[&str]) {
        let (mut ledger, mut shown) = sound();
        plant(&mut ledger, &mut shown);
        let mut found = ledger.contradictions();
        found.extend(ledger.contradictions_with(&shown, COMMANDS));
        let kinds: Vec<&str> = found.iter().filter_map(|line| line.split(": ").next()).collect();
        assert_eq!(kinds, expected, "{found:?}");
    }

    #[test]
    fn a_history_without_fault_is_accepted() {
        check(|_, _| {}, &[]);
        assert_eq!(sound().0.turned_out_created(), 1);
    }

    #[test]
    fn every_planted_fault_is_found() {
        check(|ledger, _| ledger.wrong.push("400".into()), &["1 answers that must not be"]);
        check(|ledger, _| ledger.grants.push(grant(7, 1, 1)), &["1 attempts handed out twice"]);
        check(|ledger, _| ledger.grants.push(grant(7, 3, 1)), &["1 tasks handed out after they were completed"]);
        check(|ledger, _| ledger.completed.entry(7).or_default().push(3), &["1 tasks completed twice"]);
        check(
            |ledger, shown| {
                ledger.created.push((1, 9));
                shown.insert(9, shown[&7].clone());
            },
            &["1 tasks stored twice", "1 results of nobody"],
        );
        check(|ledger, _| ledger.created.push((3, 7)), &["1 ids given twice"]);
        check(|ledger, _| ledger.maybe_created.clear(), &["1 tasks that nobody created"]);
        check(|_, shown| drop(shown.insert(7, None)), &["1 acknowledged tasks that are missing"]);
        check(|_, shown| drop(shown.remove(&8)), &["1 acknowledged tasks that are missing"]);
    }

    #[test]
    fn every_change_of_what_is_shown_is_found() {
        let change = |plant: fn(&mut Shown), expected: &[&str]| {
            check(|_, shown| plant(shown.get_mut(&7).and_then(Option::as_mut).expect("it is shown")), expected);
        };
        change(|shown| shown.command.push('x'), &["1 tasks with another content"]);
        change(|shown| shown.payload = payload_of(2), &["1 tasks with another content"]);
        change(|shown| shown.status = "PENDING".into(), &["1 tasks that are not completed"]);
        change(|shown| shown.result = result_of(1, 1), &["1 acknowledged results that are lost"]);
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let written = "7b06e441-4628-8000-8000-000000030000";
        assert_eq!(id(written).map(text).as_deref(), Some(written));
        assert_eq!(id("no id"), None);
    }
}
