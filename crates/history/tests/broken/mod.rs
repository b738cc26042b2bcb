//! Ways to break a good history. Each changes one thing, as a fault of the server would, and says which property then does not hold.

use std::collections::BTreeMap;

use history::record::{
    Answer, Begin, Body, Bound, Bulk, Call, Create, Digest, Entry, Export, Grant, Level, Line, Logged, Name, Op,
    Outcome, Position, Progress, Refusal, Rejection, Right, Schedule, Stands, State, Step, Task, Token, View, Work,
};

/// What is broken, the property that does not hold then, and how. False: the history has no place for it.
pub(crate) type Way = (&'static str, &'static str, fn(&mut Vec<Line>) -> bool);

/// No client of a good history.
const STRANGER: u32 = 9_999;

pub(crate) const WAYS: &[Way] = &[
    ("a created task is in no export", "S1", |lines| {
        let mut lost = None;
        exports(lines, |export| {
            let task = *lost.get_or_insert(export.tasks[0].task);
            export.tasks.retain(|view| view.task != task);
        });
        true
    }),
    ("an acknowledged creation is not in the log", "I1", |lines| {
        let number = answered(lines).find(|op| is_plain_creation(op)).map(|op| op.number);
        bodies(lines, |_, body| body.operations.retain(|logged| Some(logged.number) != number));
        number.is_some()
    }),
    ("what a creation was acknowledged with was replaced by another leader's entry", "I1", |lines| {
        change(lines, is_plain_creation, |at, _| at.term += 1)
    }),
    ("a read of a task that is there finds nothing", "S1", |lines| {
        change(lines, |op| matches!(read(op), Some(Answer::Found(_))), |_, answer| *answer = Answer::Missing)
    }),
    ("a read finds a task that nobody created", "S2", |lines| {
        change(
            lines,
            |op| matches!(read(op), Some(Answer::Found(_))),
            |_, answer| {
                let Answer::Found(view) = answer else { return };
                view.payload = Digest(77);
            },
        )
    }),
    ("the log has an operation that nobody asked for", "S2", |lines| {
        let call = answered(lines).find(|op| is_plain_creation(op)).map(|op| op.call.clone());
        let Some(call) = call else { return false };
        let mut first = None;
        bodies(lines, |key, body| {
            if *first.get_or_insert(key) == key {
                body.operations.push(Logged { number: 99_999_999, part: 0, call: call.clone() });
            }
        });
        true
    }),
    ("the log has another payload than was sent", "S2", |lines| {
        let number = answered(lines).find(|op| is_plain_creation(op)).map(|op| op.number);
        bodies(lines, |_, body| {
            for logged in body.operations.iter_mut().filter(|logged| Some(logged.number) == number) {
                if let Call::Create(create) = &mut logged.call {
                    create.payload = Digest(5);
                }
            }
        });
        number.is_some()
    }),
    ("a node holds a task that nothing explains", "S2", |lines| {
        exports(lines, |export| {
            let mut view = export.tasks[0].clone();
            view.task.key = u64::MAX >> 2;
            export.tasks.push(view);
        });
        true
    }),
    ("two results of one task are accepted", "S3", |lines| {
        let ended = completed(lines);
        change(
            lines,
            |op| {
                is_rejected(op)
                    && ends(op).is_some_and(|(task, by)| matches!(by, Right::Token(_)) && ended.contains(&(task, by)))
            },
            |_, answer| *answer = Answer::Finished { attempt: 1 },
        )
    }),
    ("another result is kept than the one accepted", "S3", |lines| {
        export_task(lines, |view| view.state == State::Completed, |view| view.result = Some(Digest(1)))
    }),
    ("a completion is accepted while another worker holds the task", "S4", |lines| {
        change(
            lines,
            |op| ends(op).is_some() && is(op, &Answer::Rejected(Rejection::LeaseLost { held: true })),
            |_, answer| *answer = Answer::Finished { attempt: 1 },
        )
    }),
    ("a lease is extended by a forged token", "S4", |lines| {
        change(
            lines,
            |op| {
                matches!(&op.call, Call::Extend { lease, .. } if lease.by == Right::Forged)
                    && is(op, &Answer::Rejected(Rejection::LeaseLost { held: true }))
            },
            |_, answer| *answer = Answer::Extended { remaining: 10, cancel_requested: false },
        )
    }),
    ("one token names two grants", "S4", |lines| {
        let mut suffixes = answered(lines).filter_map(|op| Some(grants(op)?.first()?.token.suffix));
        let Some(suffix) = suffixes.next() else { return false };
        drop(suffixes);
        change(
            lines,
            |op| grants(op).is_some_and(|grants| grants.first().is_some_and(|first| first.token.suffix != suffix)),
            |_, answer| with_grants(answer, |grants| grants[0].token.suffix = suffix),
        )
    }),
    ("a task is granted before its lease can be over", "S5", |lines| {
        let expired = Digest::of(b"LEASE_EXPIRED");
        let Some((place, task)) = find_grant(lines, |grant| grant.task.error == expired && grant.task.attempts == 2)
        else {
            return false;
        };
        // Of the first grant, whose lease ran out.
        let before = answered(lines)
            .filter(|op| grants(op).is_some_and(|grants| grants.iter().any(|grant| grant.task.task == task)))
            .map(|op| op.t1.unwrap_or_default())
            .next();
        move_to(lines, place, before.unwrap_or_default() + 1);
        true
    }),
    ("a delayed task is granted before its time", "S11", |lines| {
        let delayed: BTreeMap<Task, u64> = answered(lines)
            .filter_map(|op| match (&op.call, answer(op)) {
                (Call::Create(Create { schedule: Schedule::After(10..), .. }), Some(Answer::Created { task, .. })) => {
                    Some((*task, op.t1?))
                }
                _ => None,
            })
            .collect();
        let first = |grant: &Grant| grant.token.attempt == 1 && delayed.contains_key(&grant.task.task);
        let Some((place, task)) = find_grant(lines, first) else { return false };
        move_to(lines, place, delayed[&task] + 1);
        true
    }),
    ("two careful workers work on one task", "S6", |lines| {
        let Some(Line::Work(work)) = lines.iter().find(|line| matches!(line, Line::Work(_))).cloned() else {
            return false;
        };
        let token = Token { attempt: work.token.attempt + 1, ..work.token };
        lines.push(Line::Work(Work { token, worker: Name(9), ..work }));
        true
    }),
    ("a repeated creation makes a second task", "S7", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Replayed(_))),
            |_, answer| {
                if let Answer::Replayed(first) = answer {
                    *answer = Answer::Created { task: Task { key: first.key + 1, ..*first }, max_attempts: 3 };
                }
            },
        )
    }),
    ("a repeated creation is answered with another task", "S7", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Replayed(_))),
            |_, answer| {
                if let Answer::Replayed(first) = answer {
                    first.key += 1;
                }
            },
        )
    }),
    ("a key is still bound after its window", "S7", |lines| {
        exports(lines, |export| {
            let View { tenant, command, task, .. } = export.tasks[0];
            export.keys.push(Bound { tenant, command, key: Name(1_000), task });
        });
        true
    }),
    ("an operation takes effect twice", "S8", |lines| {
        let Some((number, call)) =
            answered(lines).find(|op| is_plain_creation(op)).map(|op| (op.number, op.call.clone()))
        else {
            return false;
        };
        let mut later = None;
        bodies(lines, |key, body| {
            if key.1 > 60 && *later.get_or_insert(key) == key {
                body.operations.push(Logged { number, part: 0, call: call.clone() });
            }
        });
        later.is_some()
    }),
    ("a claim that waits is granted something before the entry that its client hears of", "S8", |lines| {
        let granted = |op: &&Op| grants(op).is_some_and(|grants| !grants.is_empty());
        let claims: Vec<Call> = answered(lines).filter(granted).map(|op| op.call.clone()).collect();
        // One that is the first of its entry: then there was work for it at the end of the entry before.
        let (mut before, mut found) = (None, None);
        bodies(lines, |key, body| {
            let first = body.operations.first().filter(|logged| claims.contains(&logged.call));
            if let (None, Some(before), Some(first)) = (&found, before, first) {
                found = Some((before, first.clone()));
            }
            before = Some(key);
        });
        let Some((entry, claim)) = found else { return false };
        bodies(lines, |key, body| {
            if key == entry {
                body.operations.push(claim.clone());
            }
        });
        true
    }),
    ("a nack or release with a closed token takes effect again", "S8", |lines| {
        let mut closed = Vec::new();
        let mut found = None;
        for (place, op) in ops(lines) {
            let (Call::Nack { lease, .. } | Call::Release { lease }) = &op.call else { continue };
            match (lease.by, answer(op)) {
                (Right::Token(token), Some(Answer::Retried { .. } | Answer::Released)) => closed.push(token),
                (Right::Token(token), Some(Answer::Rejected(Rejection::LeaseLost { held: false })))
                    if closed.contains(&token) =>
                {
                    found = Some(place);
                }
                _ => {}
            }
        }
        found.is_some_and(|place| answer_with(lines, place, Answer::Retried { delay: 3, attempts: 1 }))
    }),
    ("an attempt is counted twice", "S9", |lines| {
        change(
            lines,
            |op| grants(op).is_some_and(|grants| !grants.is_empty()),
            |_, answer| {
                with_grants(answer, |grants| {
                    grants[0].task.attempts += 1;
                    grants[0].token.attempt += 1;
                })
            },
        )
    }),
    ("an expired lease gives its attempt back", "S9", |lines| {
        let expired = Digest::of(b"LEASE_EXPIRED");
        let Some((place, task)) = find_grant(lines, |grant| grant.task.error == expired) else { return false };
        if let Line::Op(op) = &mut lines[place]
            && let Outcome::Answered { answer: Answer::Claimed(grants), .. } = &mut op.outcome
        {
            let grant = grants.iter_mut().find(|grant| grant.task.task == task).expect("it was found");
            grant.task.attempts -= 1;
            grant.token.attempt -= 1;
        }
        true
    }),
    ("the last attempt fails, and the task lives on", "S10", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Deadlettered { .. })),
            |_, answer| *answer = Answer::Retried { delay: 5, attempts: 3 },
        )
    }),
    ("a task is dead-lettered with attempts left", "S10", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Retried { .. })),
            |_, answer| *answer = Answer::Deadlettered { attempts: 1 },
        )
    }),
    ("a dead task is not among the dead", "S10", |lines| {
        export_task(lines, |view| view.state == State::Dead, |view| view.state = State::Failed)
    }),
    ("two tasks are granted in the wrong order", "S12", |lines| {
        change(
            lines,
            |op| grants(op).is_some_and(|grants| grants.len() > 1),
            |_, answer| with_grants(answer, |grants| grants.swap(0, 1)),
        )
    }),
    ("a task loses its priority", "S12", |lines| {
        change(
            lines,
            |op| grants(op).is_some_and(|grants| grants.iter().any(|grant| grant.task.priority == 8)),
            |_, answer| {
                with_grants(answer, |grants| {
                    grants
                        .iter_mut()
                        .filter(|grant| grant.task.priority == 8)
                        .for_each(|grant| grant.task.priority = 0);
                })
            },
        )
    }),
    ("a paused queue is claimed from", "S12", |lines| {
        // The pause comes too late for whoever claimed meanwhile: it stands in the log, and nobody minds it.
        let paused = |op: &Op| match (&op.call, answer(op), &op.outcome) {
            (Call::Pause { tenant, command, .. }, Some(Answer::Done), Outcome::Answered { at, .. }) => {
                Some((*tenant, *command, *at))
            }
            _ => None,
        };
        let pauses: Vec<_> = answered(lines).filter_map(paused).collect();
        let mut found = None;
        for (tenant, command, at) in pauses {
            let in_queue = |grant: &&Grant| (grant.task.tenant, grant.task.command) == (tenant, command);
            let next = answered(lines).filter_map(|op| match &op.outcome {
                Outcome::Answered { at: other, .. } if other.shard == at.shard && other.index < at.index => {
                    let grant = grants(op)?.iter().find(in_queue)?;
                    Some((other.index, grant.task.task))
                }
                _ => None,
            });
            found = next.max().map(|(index, task)| (at, index, task)).or(found);
        }
        let Some((at, index, _)) = found else { return false };
        let mut pause = None;
        bodies(lines, |key, body| {
            if key == (at.shard, at.index) {
                let place = body.operations.iter().position(|logged| matches!(logged.call, Call::Pause { .. }));
                pause = place.map(|place| body.operations.remove(place));
            }
        });
        let Some(pause) = pause else { return false };
        let number = pause.number;
        bodies(lines, |key, body| {
            if key == (at.shard, index) {
                body.operations.insert(0, pause.clone());
            }
        });
        let term = term_at(lines, at.shard, index);
        for line in lines.iter_mut() {
            if let Line::Op(op) = line
                && op.number == number
                && let Outcome::Answered { at, .. } = &mut op.outcome
            {
                (at.index, at.term) = (index, term);
            }
        }
        true
    }),
    ("a queue is shown as paused after its time", "I6", |lines| {
        exports(lines, |export| export.queues[0].pause = Some(Digest(1)));
        true
    }),
    ("a held task is edited", "S4", |lines| {
        let views: BTreeMap<Task, View> =
            answered(lines).filter_map(grants).flatten().map(|grant| (grant.task.task, grant.task.clone())).collect();
        let found = ops(lines).find_map(|(place, op)| match &op.call {
            Call::Edit(edit) if is(op, &Answer::Rejected(Rejection::IsLeased)) => {
                Some((place, views.get(&edit.task)?.clone()))
            }
            _ => None,
        });
        found.is_some_and(|(place, view)| answer_with(lines, place, Answer::Edited(Box::new(view))))
    }),
    ("an edited task keeps its payload", "S2", |lines| {
        change(
            lines,
            |op| {
                matches!(&op.call, Call::Edit(edit) if edit.payload.is_some())
                    && matches!(answer(op), Some(Answer::Edited(_)))
            },
            |_, answer| {
                if let Answer::Edited(view) = answer {
                    view.payload = Digest(9);
                }
            },
        )
    }),
    ("a dead task keeps its payload", "S2", |lines| {
        change(
            lines,
            |op| matches!(&op.call, Call::Amend(_)) && matches!(answer(op), Some(Answer::Edited(_))),
            |_, answer| {
                if let Answer::Edited(view) = answer {
                    view.payload = Digest(9);
                }
            },
        )
    }),
    ("an edited task keeps its priority", "S12", |lines| {
        change(
            lines,
            |op| {
                matches!(&op.call, Call::Edit(edit) if edit.priority.is_some())
                    && matches!(answer(op), Some(Answer::Edited(_)))
            },
            |_, answer| {
                if let Answer::Edited(view) = answer {
                    view.priority ^= 1;
                }
            },
        )
    }),
    ("a task comes back with another payload than was asked for", "S2", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Redriven(_))),
            |_, answer| {
                if let Answer::Redriven(view) = answer {
                    view.payload = Digest(9);
                }
            },
        )
    }),
    ("an operation on many tasks deals with one of them twice", "S8", |lines| {
        change_step(lines, |step| !step.items.is_empty(), |step| step.items.push(step.items[0].clone()))
    }),
    ("an operation on many tasks deals with one that it does not mean", "S2", |lines| {
        change_step(
            lines,
            |step| matches!(step.items[..], [Call::Delete(_), ..]),
            |step| {
                if let Call::Delete(delete) = &mut step.items[0] {
                    delete.task.key += 3;
                }
            },
        )
    }),
    ("an operation on many tasks does something else than it is for", "S2", |lines| {
        change_step(
            lines,
            |step| matches!(step.items[..], [Call::Cancel { .. }, ..]),
            |step| {
                if let Call::Cancel { force, .. } = &mut step.items[0] {
                    *force = !*force;
                }
            },
        )
    }),
    ("an operation on many tasks ends and has missed one", "S13", |lines| {
        change_step(lines, |step| step.last && step.items.len() > 1, |step| step.items.clear())
    }),
    ("an operation on many tasks counts one that does not fit", "I6", |lines| {
        change_step(lines, |step| step.last && step.counted > 0, |step| step.counted += 1_000)
    }),
    ("an operation on many tasks shows other numbers than it has come to", "I6", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Operations(all)) if all.iter().any(|progress| progress.changed > 0)),
            |_, answer| {
                if let Answer::Operations(all) = answer {
                    all.iter_mut().for_each(|progress| progress.changed *= 2);
                }
            },
        )
    }),
    ("a node has forgotten an operation on many tasks", "I6", |lines| {
        exports(lines, |export| drop(export.operations.pop()));
        true
    }),
    ("an operation on many tasks never ends", "L4", |lines| {
        // All is well but for one that begins at the very end.
        let tenant = Name(77);
        let begin = Begin {
            tenant,
            operation: 7,
            does: Bulk::PurgeDead,
            commands: Vec::new(),
            states: vec![State::Dead],
            attempts: None,
            priority: None,
            dry_run: false,
            all: true,
        };
        let progress = Progress {
            tenant,
            operation: 7,
            stands: Stands::Running,
            steps: 0,
            processed: 0,
            changed: 0,
            skipped: 0,
            expected: Some(0),
            samples: Vec::new(),
        };
        let logs = lines.iter().filter_map(|line| match line {
            Line::Log(entry) if entry.shard == 0 => Some(&**entry),
            _ => None,
        });
        let by_index: BTreeMap<u64, &Entry> = logs.map(|entry| (entry.index, entry)).collect();
        let last = by_index.values().next_back().map(|entry| (entry.index, entry.term));
        let clocks = by_index.values().rev().find_map(|entry| entry.body.clone());
        let (Some((index, term)), Some(clocks)) = (last, clocks) else { return false };
        let at = Position { shard: 0, term, index: index + 1 };
        let logged = Logged { number: 99_999_996, part: 0, call: Call::Begin(Box::new(begin.clone())) };
        let body = Body { proposed_in: at.term, operations: vec![logged], ..clocks };
        let entry = Entry { node: 1, shard: 0, index: at.index, term: at.term, digest: Digest(4), body: Some(body) };
        lines.push(Line::Log(Box::new(entry)));
        exports(lines, |export| {
            if export.at.shard == 0 {
                export.at = at;
                export.operations.push(progress.clone());
            }
        });
        let end = answered(lines).filter_map(|op| op.t1).max().unwrap_or_default();
        lines.push(Line::Op(Box::new(Op {
            number: 99_999_996,
            part: 0,
            client: STRANGER,
            session: 0,
            node: 1,
            t0: end + 1,
            t1: Some(end + 2),
            call: Call::Begin(Box::new(begin)),
            outcome: Outcome::Answered { at, answer: Answer::Done },
        })));
        true
    }),
    ("a claim finds nothing while there is something", "S13", |lines| {
        change(
            lines,
            |op| grants(op).is_some_and(|grants| grants.len() == 1),
            |_, answer| *answer = Answer::Claimed(Box::default()),
        )
    }),
    ("a read shows an older state", "S14", |lines| {
        change(
            lines,
            |op| matches!(read(op), Some(Answer::Found(view)) if view.state == State::Leased),
            |_, answer| {
                let Answer::Found(view) = answer else { return };
                view.state = State::Ready;
            },
        )
    }),
    ("a linearizable read is answered from before what was acknowledged", "S14", |lines| {
        // A task that had long ended looks the same from there.
        let old = |op: &Op| match (&op.call, &op.outcome) {
            (Call::Read { level: Level::Linearizable, .. }, Outcome::Answered { at, answer: Answer::Found(view) }) => {
                view.ended_at.is_some_and(|ended| ended + 40 < at.index).then_some(*at)
            }
            _ => None,
        };
        let Some((place, at)) = ops(lines).find_map(|(place, op)| Some((place, old(op)?))) else { return false };
        let index = at.index - 20;
        let term = term_at(lines, at.shard, index);
        if let Line::Op(op) = &mut lines[place]
            && let Outcome::Answered { at, .. } = &mut op.outcome
        {
            op.client = STRANGER;
            *at = Position { index, term, ..*at };
        }
        true
    }),
    ("a read is answered from before the entry that it asked for", "S15", |lines| {
        let found = ops(lines).find(|(_, op)| matches!(op.call, Call::Read { level: Level::AtLeast(_), .. }));
        let Some((place, _)) = found.filter(|(_, op)| read(op).is_some()) else { return false };
        if let Line::Op(op) = &mut lines[place]
            && let Call::Read { level, .. } = &mut op.call
        {
            *level = Level::AtLeast(u64::MAX);
        }
        true
    }),
    ("a session goes back", "S15", |lines| {
        let late = |op: &Op| {
            matches!(&op.outcome, Outcome::Answered { at, .. } if at.index > 100)
                && matches!(op.call, Call::Read { level: Level::Linearizable, .. })
        };
        let mut last = BTreeMap::new();
        let mut found = None;
        for (place, op) in ops(lines) {
            if let Outcome::Answered { at, .. } = op.outcome {
                let before = last.insert((op.client, op.session, at.shard), at.index);
                if late(op) && before.is_some_and(|before| before > 90) {
                    found = Some(place);
                }
            }
        }
        let Some(place) = found else { return false };
        let term = |shard| term_at(lines, shard, 50);
        let terms = [term(0), term(1)];
        if let Line::Op(op) = &mut lines[place]
            && let Outcome::Answered { at, .. } = &mut op.outcome
        {
            (at.index, at.term) = (50, terms[usize::from(at.shard)]);
        }
        true
    }),
    ("an answer names another position", "S16", |lines| {
        let indexes: Vec<(u16, u64, u32)> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Log(entry) if entry.body.is_some() => Some((entry.shard, entry.index, entry.term)),
                _ => None,
            })
            .collect();
        let next = |at: Position| indexes.contains(&(at.shard, at.index + 1, at.term));
        change(
            lines,
            |op| is_plain_creation(op) && matches!(op.outcome, Outcome::Answered { at, .. } if next(at)),
            |at, _| at.index += 1,
        )
    }),
    ("a lease is extended by another length", "S16", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Extended { .. })),
            |_, answer| {
                if let Answer::Extended { remaining, .. } = answer {
                    *remaining += 1;
                }
            },
        )
    }),
    ("a task has another id than its place in the log", "S16", |lines| {
        change(lines, is_plain_creation, |_, answer| {
            if let Answer::Created { task, .. } = answer {
                task.key += 500;
            }
        })
    }),
    ("an operation stands before one that was answered before it began", "S16", |lines| {
        let Some((place, at)) = ops(lines).find_map(|(place, op)| match op.outcome {
            Outcome::Answered { at, .. } if is_plain_creation(op) => Some((place, at)),
            _ => None,
        }) else {
            return false;
        };
        let later = answered(lines).find(|op| {
            matches!(op.outcome, Outcome::Answered { at: other, .. } if other.shard == at.shard && other.index > at.index + 5)
                && is_plain_creation(op)
        });
        let Some(after) = later.and_then(|op| op.t1) else { return false };
        move_to(lines, place, after + 1);
        true
    }),
    ("what was refused for certain happens", "S17", |lines| {
        let found = ops(lines).find(|(_, op)| is_plain_creation(op)).map(|(place, _)| place);
        let Some(Line::Op(op)) = found.map(|place| &mut lines[place]) else { return false };
        op.outcome = Outcome::Refused(Refusal::Overloaded);
        true
    }),
    ("a claim that was refused for certain is granted tasks", "S17", |lines| {
        let granted = |(_, op): &(usize, &Op)| grants(op).is_some_and(|grants| !grants.is_empty());
        let found = ops(lines).find(granted).map(|(place, _)| place);
        let Some(Line::Op(op)) = found.map(|place| &mut lines[place]) else { return false };
        op.outcome = Outcome::Refused(Refusal::Overloaded);
        let (number, part, call) = (op.number, op.part, op.call.clone());
        bodies(lines, |_, body| {
            for logged in body.operations.iter_mut().filter(|logged| logged.call == call) {
                (logged.number, logged.part) = (number, part);
            }
        });
        true
    }),
    ("a tenant reads another one's task", "S18", |lines| {
        let owners: BTreeMap<Task, View> =
            answered(lines).filter_map(grants).flatten().map(|grant| (grant.task.task, grant.task.clone())).collect();
        let found = ops(lines).find_map(|(place, op)| match (&op.call, answer(op)) {
            (Call::Read { task, tenant, .. }, Some(Answer::Missing)) => {
                let view = owners.get(task).filter(|view| view.tenant != *tenant)?;
                Some((place, view.clone()))
            }
            _ => None,
        });
        found.is_some_and(|(place, view)| answer_with(lines, place, Answer::Found(Box::new(view))))
    }),
    ("a tenant cancels another one's task", "S18", |lines| {
        let found = ops(lines).find_map(|(place, op)| match (&op.call, answer(op)) {
            (Call::Cancel { task, tenant, .. }, Some(Answer::Rejected(_))) => {
                let foreign = answered(lines).filter_map(grants).flatten();
                let mut foreign = foreign.filter(|grant| grant.task.task == *task && grant.task.tenant != *tenant);
                foreign.next().map(|_| place)
            }
            _ => None,
        });
        found.is_some_and(|place| answer_with(lines, place, Answer::Cancelled))
    }),
    ("a task that has ended is cancelled", "S20", |lines| {
        change(
            lines,
            |op| matches!(op.call, Call::Cancel { .. }) && matches!(answer(op), Some(Answer::Cancelled)),
            |_, answer| *answer = Answer::Rejected(Rejection::NotLive),
        )
    }),
    ("a holder is not told that it should stop", "S20", |lines| {
        change(
            lines,
            |op| matches!(answer(op), Some(Answer::Extended { .. })),
            |_, answer| {
                if let Answer::Extended { cancel_requested, .. } = answer {
                    *cancel_requested = !*cancel_requested;
                }
            },
        )
    }),
    ("two nodes applied different entries", "R4", |lines| {
        let entry = lines.iter_mut().find_map(|line| match line {
            Line::Held(held) if held.node == 2 && held.index == 30 => Some(held),
            _ => None,
        });
        entry.map(|held| held.digest.0 ^= 1).is_some()
    }),
    ("a counter has drifted", "I6", |lines| {
        exports(lines, |export| export.queues[0].totals.completed += 1);
        true
    }),
    ("an operation is never answered after the heal", "L2", |lines| {
        let end = lines.iter().filter_map(|line| if let Line::Op(op) = line { op.t1 } else { None }).max();
        let Some(Line::Op(op)) =
            lines.iter().find(|line| matches!(line, Line::Op(op) if is_plain_creation(op))).cloned()
        else {
            return false;
        };
        lines.push(Line::Op(Box::new(Op {
            number: 99_999_998,
            client: STRANGER,
            t0: end.unwrap_or_default(),
            t1: None,
            outcome: Outcome::Silent,
            ..*op
        })));
        true
    }),
    ("a task is never worked on", "L4", |lines| {
        // All is well but for one creation at the very end.
        let Some(op) = answered(lines).find(|op| is_plain_creation(op)).cloned() else { return false };
        let (Call::Create(create), Some(Answer::Created { max_attempts, .. })) = (&op.call, answer(&op)) else {
            return false;
        };
        let last = answered(lines).filter_map(|op| op.t1).max().unwrap_or_default();
        let Outcome::Answered { at, .. } = op.outcome else { return false };
        let mut logs: Vec<Entry> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Log(entry) if entry.shard == at.shard => Some((**entry).clone()),
                _ => None,
            })
            .collect();
        logs.sort_by_key(|entry| (entry.index, entry.body.is_some()));
        let clocks = logs.iter().rev().find_map(|entry| entry.body.clone()).expect("there are operations");
        let (index, term) = logs.last().map(|entry| (entry.index + 1, entry.term)).expect("there are entries");
        let task = Task { shard: at.shard, key: index * 65_536 };
        let view = View {
            task,
            tenant: create.tenant,
            command: create.command,
            payload: create.payload,
            priority: create.priority,
            state: State::Ready,
            worker: None,
            attempts: 0,
            max_attempts: *max_attempts,
            error: Digest::EMPTY,
            ended_at: None,
            result: None,
            webhook: create.webhook,
            key: None,
            cancel_requested: false,
        };
        exports(lines, |export| {
            if export.at.shard == at.shard {
                export.at = Position { term, index, ..at };
                export.tasks.push(view.clone());
                let queue = export.queues.iter_mut();
                let queue = queue.filter(|queue| (queue.tenant, queue.command) == (create.tenant, create.command));
                queue.for_each(|queue| {
                    queue.totals.created += 1;
                    queue.ready[usize::from(create.priority)] += 1;
                });
            }
        });
        let logged = Logged { number: 99_999_997, part: 0, call: op.call.clone() };
        let body = Body { proposed_in: term, operations: vec![logged], ..clocks };
        let entry = Entry { node: 1, shard: at.shard, index, term, digest: Digest(3), body: Some(body) };
        lines.push(Line::Log(Box::new(entry)));
        let answer = Answer::Created { task, max_attempts: *max_attempts };
        let outcome = Outcome::Answered { at: Position { term, index, ..at }, answer };
        let (t0, t1) = (last + 1, Some(last + 2));
        lines.push(Line::Op(Box::new(Op { number: 99_999_997, client: STRANGER, t0, t1, outcome, ..op })));
        true
    }),
];

/// What makes a history no history, or too little of one.
pub(crate) const FAULTS: &[(&str, fn(&mut Vec<Line>))] = &[
    ("an entry that no node has", |lines| {
        lines.retain(|line| match line {
            Line::Log(entry) => (entry.shard, entry.index) != (0, 40),
            Line::Held(held) => (held.shard, held.index) != (0, 40),
            _ => true,
        });
    }),
    ("an entry that no node shows", |lines| {
        lines.retain(|line| !matches!(line, Line::Log(entry) if (entry.shard, entry.index) == (1, 40)));
    }),
    ("a shard that nobody exports", |lines| {
        lines.retain(|line| !matches!(line, Line::Export(export) if export.at.shard == 1));
    }),
    ("no line about the run", |lines| lines.retain(|line| !matches!(line, Line::Run(_)))),
    ("too few operations", |lines| {
        lines.iter_mut().for_each(|line| {
            if let Line::Run(run) = line {
                run.operations_min = 1_000_000;
            }
        });
    }),
    ("two operations with one number", |lines| {
        let first = lines.iter().find(|line| matches!(line, Line::Op(_))).cloned();
        lines.extend(first);
    }),
    ("a client with two operations open", |lines| {
        let end = answered(lines).filter(|op| op.client == 3).filter_map(|op| op.t1).max();
        let first = lines.iter_mut().find_map(|line| match line {
            Line::Op(op) if op.client == 3 => Some(op),
            _ => None,
        });
        first.expect("it has asked for something").t1 = end;
    }),
];

fn ops(lines: &[Line]) -> impl Iterator<Item = (usize, &Op)> {
    lines.iter().enumerate().filter_map(|(place, line)| match line {
        Line::Op(op) => Some((place, &**op)),
        _ => None,
    })
}

fn answered(lines: &[Line]) -> impl Iterator<Item = &Op> {
    ops(lines).map(|(_, op)| op).filter(|op| answer(op).is_some())
}

fn answer(op: &Op) -> Option<&Answer> {
    match &op.outcome {
        Outcome::Answered { answer, .. } => Some(answer),
        _ => None,
    }
}

fn is(op: &Op, expected: &Answer) -> bool {
    answer(op) == Some(expected)
}

fn is_rejected(op: &Op) -> bool {
    matches!(answer(op), Some(Answer::Rejected(_)))
}

fn grants(op: &Op) -> Option<&[Grant]> {
    match answer(op) {
        Some(Answer::Claimed(grants)) => Some(grants),
        _ => None,
    }
}

fn with_grants(answer: &mut Answer, change: impl FnOnce(&mut [Grant])) {
    if let Answer::Claimed(grants) = answer {
        change(grants);
    }
}

/// A read's answer.
fn read(op: &Op) -> Option<&Answer> {
    matches!(op.call, Call::Read { .. }).then(|| answer(op)).flatten()
}

/// What a result is about.
fn ends(op: &Op) -> Option<(Task, Right)> {
    match &op.call {
        Call::Complete { lease, .. } | Call::Fail { lease, .. } => Some((lease.task, lease.by)),
        _ => None,
    }
}

/// Accepted results.
fn completed(lines: &[Line]) -> Vec<(Task, Right)> {
    let accepted = answered(lines).filter(|op| matches!(answer(op), Some(Answer::Finished { .. })));
    accepted.filter_map(ends).collect()
}

/// A creation at once, without a key, that made a task: nothing waits for it, and the log keeps its number.
fn is_plain_creation(op: &Op) -> bool {
    matches!(&op.call, Call::Create(Create { schedule: Schedule::Now, key: None, .. }))
        && matches!(answer(op), Some(Answer::Created { .. }))
}

/// Changes the first such step that stands some way into a log.
fn change_step(lines: &mut [Line], fits: impl Fn(&Step) -> bool, change: impl Fn(&mut Step)) -> bool {
    let mut found = false;
    bodies(lines, |key, body| {
        let steps = body.operations.iter_mut().filter_map(|logged| match &mut logged.call {
            Call::Step(step) => Some(step),
            _ => None,
        });
        for step in steps {
            if !found && key.1 > 60 && fits(step) {
                found = true;
                change(step);
            }
        }
    });
    found
}

/// Changes the first answer that `fits`, some way into the history.
fn change(lines: &mut [Line], fits: impl Fn(&Op) -> bool, change: impl FnOnce(&mut Position, &mut Answer)) -> bool {
    let found = ops(lines).filter(|(place, op)| *place > 500 && fits(op)).map(|(place, _)| place).next();
    let Some(Line::Op(op)) = found.map(|place| &mut lines[place]) else { return false };
    if let Outcome::Answered { at, answer } = &mut op.outcome {
        change(at, answer);
    }
    true
}

fn answer_with(lines: &mut [Line], place: usize, with: Answer) -> bool {
    if let Line::Op(op) = &mut lines[place]
        && let Outcome::Answered { answer, .. } = &mut op.outcome
    {
        *answer = with;
    }
    true
}

fn find_grant(lines: &[Line], fits: impl Fn(&Grant) -> bool) -> Option<(usize, Task)> {
    ops(lines).find_map(|(place, op)| {
        let grant = grants(op)?.iter().find(|grant| fits(grant))?;
        Some((place, grant.task.task))
    })
}

/// The term of an entry.
fn term_at(lines: &[Line], shard: u16, index: u64) -> u32 {
    let term = |line: &Line| match line {
        Line::Log(entry) if (entry.shard, entry.index) == (shard, index) => Some(entry.term),
        _ => None,
    };
    lines.iter().find_map(term).expect("the log has no gaps")
}

/// Lets an operation begin and end at another time, by a client of its own.
fn move_to(lines: &mut [Line], place: usize, time: u64) {
    if let Line::Op(op) = &mut lines[place] {
        (op.client, op.t0, op.t1) = (STRANGER, time, Some(time + 1));
    }
}

fn exports(lines: &mut [Line], mut change: impl FnMut(&mut Export)) {
    for line in lines {
        if let Line::Export(export) = line {
            change(export);
        }
    }
}

/// Changes the first such task in every export that shows it.
fn export_task(lines: &mut [Line], fits: impl Fn(&View) -> bool, change: impl Fn(&mut View)) -> bool {
    let mut found = false;
    exports(lines, |export| {
        if let Some(view) = export.tasks.iter_mut().find(|view| fits(view)) {
            found = true;
            change(view);
        }
    });
    found
}

/// Looks at every entry of operations; equal entries of several nodes get the same change.
fn bodies(lines: &mut [Line], mut change: impl FnMut((u16, u64), &mut Body)) {
    for line in lines {
        if let Line::Log(entry) = line {
            let key = (entry.shard, entry.index);
            if entry.term == entry.body.as_ref().map_or(0, |body| body.proposed_in)
                && let Some(body) = &mut entry.body
            {
                change(key, body);
            }
        }
    }
}
