//! What in the log is whose operation? Every acknowledged operation stands in the log at its position; an operation of unknown outcome has
//! happened if the log has it; what was refused before the log is not in it; and what is in it, somebody has asked for.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::History;
use crate::history::{Came, Kind, LoggedBytes, Row, decode, encode};
use crate::judge::{Finding, Stop, Summary};
use crate::record::{Amend, Answer, Call, Outcome, Redrive};

/// Whose operations the log holds.
#[derive(Default)]
pub(crate) struct Places {
    /// By shard, for each operation of its log that counts, in order: the row of whoever asked for it.
    pub(crate) asked: BTreeMap<u16, Vec<u32>>,
    /// For each row: the log holds it.
    pub(crate) in_log: Vec<bool>,
    pub(crate) summary: Summary,
}

/// In place of a row: the server itself asked.
pub(crate) const NOBODY: u32 = u32::MAX;

/// Operations that have no position: what may turn up anywhere in the log, or must not.
struct Unplaced<'a> {
    by_number: BTreeMap<(u64, u16), u32>,
    /// Of unknown outcome, the oldest first. Which of equal ones an operation of the log is cannot be known. The first one that is free is
    /// taken, and so began before it was committed, which is all that anybody builds on.
    by_call: BTreeMap<&'a [u8], Vec<u32>>,
    /// Answered claims, sorted.
    claims: Vec<((u64, u16), u32)>,
    /// The same by what they ask for, sorted.
    equal_claims: Vec<(&'a [u8], u32)>,
}

pub(crate) fn check(history: &History) -> Result<Places, Stop> {
    let mut places = Places { in_log: vec![false; history.rows.len()], ..Places::default() };
    let unplaced = unplaced(history);
    let mut placed: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    for (place, row) in history.rows.iter().enumerate() {
        if row.came == Came::Answered {
            placed.entry(row.shard).or_default().push(place as u32);
        }
    }
    for (shard, log) in &history.logs {
        if let Some((index, what)) = &log.conflict {
            return Err(Finding::new("R4", what.clone()).at(*shard, *index).into());
        }
        let mut placed = placed.remove(shard).unwrap_or_default();
        placed.sort_unstable_by_key(|place| {
            let row = &history.rows[*place as usize];
            (row.index, row.number, row.part)
        });
        let asked = shard_log(history, *shard, &placed, &unplaced, &mut places)?;
        places.asked.insert(*shard, asked);
    }
    if let Some((shard, rows)) = placed.into_iter().next() {
        let what = format!("operations were answered by shard {shard}, of which there is no log");
        return Err(Finding::new("I1", what).by(rows[0] as usize).into());
    }
    for (place, row) in history.rows.iter().enumerate() {
        if matches!(row.came, Came::Unknown | Came::Silent) && matches!(row.kind, Kind::Write | Kind::Claim) {
            *(if places.in_log[place] { &mut places.summary.happened } else { &mut places.summary.vanished }) += 1;
        }
    }
    Ok(places)
}

fn unplaced(history: &History) -> Unplaced<'_> {
    let mut unplaced =
        Unplaced { by_number: BTreeMap::new(), by_call: BTreeMap::new(), claims: Vec::new(), equal_claims: Vec::new() };
    let mut unknown = Vec::new();
    for (place, row) in history.rows.iter().enumerate() {
        if row.came == Came::Answered && row.kind == Kind::Claim {
            unplaced.claims.push(((row.number, row.part), place as u32));
            unplaced.equal_claims.push((history.call_bytes(row), place as u32));
        }
        if row.came != Came::Answered && matches!(row.kind, Kind::Write | Kind::Claim) {
            unplaced.by_number.insert((row.number, row.part), place as u32);
            if row.came != Came::Refused {
                unknown.push((row.t0, place as u32));
            }
        }
    }
    unplaced.claims.sort_unstable();
    unplaced.equal_claims.sort_unstable();
    unknown.sort_unstable();
    for (_, place) in unknown {
        let call = history.call_bytes(&history.rows[place as usize]);
        unplaced.by_call.entry(call).or_default().push(place);
    }
    unplaced
}

/// One shard: `placed` are the operations answered from it, by index, number and part.
fn shard_log(
    history: &History,
    shard: u16,
    placed: &[u32],
    unplaced: &Unplaced<'_>,
    places: &mut Places,
) -> Result<Vec<u32>, Stop> {
    let log = &history.logs[&shard];
    let row = |place: u32| &history.rows[place as usize];
    let (mut asked, mut next, mut expected) = (Vec::new(), 0, None);
    let mut taken: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    // The moment by which an entry with answers, or one behind it, had been answered from: nothing that began later is in it.
    let mut answered_by: Vec<u64> = placed.iter().map(|place| row(*place).t1).collect();
    for place in (1..answered_by.len()).rev() {
        answered_by[place - 1] = answered_by[place - 1].min(answered_by[place]);
    }
    for (index, entry) in &log.entries {
        if *index != expected.unwrap_or(*index.min(&2)) {
            let missing = expected.unwrap_or(1);
            return Err(Stop::Inconclusive(format!("no node has entry {shard}:{missing}")));
        }
        expected = Some(index + 1);
        if entry.unseen {
            return Err(Stop::Inconclusive(format!("no node shows what entry {shard}:{index} says")));
        }
        let from = next;
        while next < placed.len() && row(placed[next]).index <= *index {
            next += 1;
        }
        let here = &placed[from..next];
        for place in here {
            // What was answered before the first entry has no term to agree with.
            if row(*place).index == *index && row(*place).term != entry.term {
                return Err(term_differs(row(*place), *place, entry.term).at(shard, *index).into());
            }
        }
        let Some(body) = entry.body() else { continue };
        places.summary.entries += 1;
        let mut by_call: Vec<(&[u8], u32)> =
            here.iter().map(|place| (history.call_bytes(row(*place)), *place)).collect();
        by_call.sort_unstable();
        for logged in history.logged(&body) {
            places.summary.logged += 1;
            let call = as_asked(&logged);
            let call = call.as_ref();
            let found = if logged.number == 0 {
                let first = by_call.partition_point(|(known, _)| *known < call);
                let equal = by_call[first..].iter().take_while(|(known, _)| *known == call);
                let mut free = equal.map(|(_, place)| *place).filter(|place| !places.in_log[*place as usize]);
                free.next().or_else(|| {
                    let equal = unplaced.by_call.get(call)?;
                    let taken = taken.entry(call.to_vec()).or_default();
                    let had_begun = |place: &u32| answered_by.get(from).is_none_or(|by| row(*place).t0 <= *by);
                    let first = equal.get(*taken).copied().filter(had_begun)?;
                    *taken += 1;
                    Some(first)
                })
            } else {
                let name = (logged.number, logged.part);
                let known = here.binary_search_by_key(&name, |place| (row(*place).number, row(*place).part));
                known.ok().map(|known| here[known]).or_else(|| unplaced.by_number.get(&name).copied())
            };
            let place = match found {
                Some(place) => place,
                None if logged.number == 0 && is_the_servers(logged.call) => NOBODY,
                None if is_in_vain(&logged, call, unplaced, &places.in_log) => NOBODY,
                None => return Err(asked_by_nobody(history, &logged, shard, *index).into()),
            };
            if place != NOBODY {
                check_asker(history, place, &logged, places).map_err(|finding| finding.at(shard, *index))?;
                places.in_log[place as usize] = true;
            }
            asked.push(place);
        }
        if let Some(place) =
            here.iter().find(|place| must_be_in_log(history, row(**place), places.in_log[**place as usize]))
        {
            let what = format!("{} was acknowledged at {shard}:{index}, and is not in that entry", row(*place).number);
            return Err(Finding::new("I1", what).by(*place as usize).at(shard, *index).into());
        }
    }
    // What was answered from an entry that says nothing about tasks must have needed none; from none at all, nothing may be.
    let last = log.entries.keys().next_back().copied().unwrap_or_default();
    for place in placed {
        let row = row(*place);
        if row.index > last || must_be_in_log(history, row, places.in_log[*place as usize]) {
            let what = format!("{} was answered at {shard}:{}, and the log has no such entry", row.number, row.index);
            return Err(Finding::new("I1", what).by(*place as usize).at(shard, last).into());
        }
    }
    Ok(asked)
}

/// Whether a row must have been found in its entry by now, and was not. A claim that found nothing may have been answered without the log.
fn must_be_in_log(history: &History, row: &Row, found: bool) -> bool {
    let empty = |outcome: Outcome| matches!(outcome, Outcome::Answered { answer: Answer::Claimed(grants), .. } if grants.is_empty());
    match row.kind {
        _ if found => false,
        Kind::Write => true,
        Kind::Claim => !empty(history.outcome(row)),
        Kind::Linearizable | Kind::AtLeast | Kind::Stale => false,
    }
}

/// What the client asked for: it does not know which entry ended the task that it wants back or changed.
fn as_asked<'a>(logged: &LoggedBytes<'a>) -> Cow<'a, [u8]> {
    match decode(logged.call) {
        Call::Redrive(redrive) => Cow::Owned(encode(&Call::Redrive(Redrive { ended_at: 0, ..redrive }))),
        Call::Amend(amend) => Cow::Owned(encode(&Call::Amend(Amend { ended_at: 0, ..amend }))),
        _ => Cow::Borrowed(logged.call),
    }
}

/// What the server proposes by itself: settings, steps of operations on many tasks, and the return of a grant that could not be delivered.
fn is_the_servers(call: &[u8]) -> bool {
    matches!(decode(call), Call::Configure(_) | Call::Step(_) | Call::Release { .. })
}

/// A claim that found nothing and waited on: it stands in the log again when something has come up, and is answered from there. That it was
/// granted nothing here, the replay sees.
fn is_in_vain(logged: &LoggedBytes<'_>, call: &[u8], unplaced: &Unplaced<'_>, in_log: &[bool]) -> bool {
    let waits = |place: u32| !in_log[place as usize];
    if logged.number == 0 {
        let first = unplaced.equal_claims.partition_point(|(known, _)| *known < call);
        return unplaced.equal_claims[first..]
            .iter()
            .take_while(|(known, _)| *known == call)
            .any(|(_, place)| waits(*place));
    }
    let name = (logged.number, logged.part);
    unplaced.claims.binary_search_by_key(&name, |(known, _)| *known).is_ok_and(|found| waits(unplaced.claims[found].1))
}

fn term_differs(row: &Row, place: u32, term: u32) -> Finding {
    let Row { number, shard, index, .. } = *row;
    let what = format!("{number} was answered at {shard}:{}:{index}, and the entry there is of term {term}", row.term);
    let id = if matches!(row.kind, Kind::Write | Kind::Claim) { "I1" } else { "S16" };
    Finding::new(id, what).by(place as usize)
}

/// The operation that was found to have asked for this may have done so.
fn check_asker(history: &History, place: u32, logged: &LoggedBytes<'_>, places: &Places) -> Result<(), Finding> {
    let row = &history.rows[place as usize];
    let number = row.number;
    // A claim that found nothing may have stood in the log and waited on before it was refused.
    if row.came == Came::Refused && row.kind != Kind::Claim {
        return Err(
            Finding::new("S17", format!("{number} was refused for certain, and the log has it")).by(place as usize)
        );
    }
    if logged.number != 0 && places.in_log[place as usize] && row.kind != Kind::Claim {
        return Err(Finding::new("S8", format!("the log has {number} twice")).by(place as usize));
    }
    if history.call_bytes(row) != as_asked(logged).as_ref() {
        let logged: Call = decode(logged.call);
        let what = format!("{number} asked for {:?}, and the log has {logged:?}", history.call(row));
        return Err(Finding::new("S2", what).by(place as usize));
    }
    Ok(())
}

/// No operation that may stand here has asked for this: somebody else's, or nobody's.
fn asked_by_nobody(history: &History, logged: &LoggedBytes<'_>, shard: u16, index: u64) -> Finding {
    let is_it = |row: &&Row| match logged.number {
        0 => history.call_bytes(row) == as_asked(logged).as_ref(),
        number => (row.number, row.part) == (number, logged.part),
    };
    let call: Call = decode(logged.call);
    let found = history.rows.iter().position(|row| row.came == Came::Answered && is_it(&row));
    let Some(place) = found else {
        return Finding::new("S2", format!("nobody asked for {call:?}")).at(shard, index);
    };
    let row = &history.rows[place];
    // It may also stand where its answer says.
    let entry = history.logs.get(&row.shard).and_then(|log| log.entries.get(&row.index)?.body());
    let also = entry.is_some_and(|body| {
        history
            .logged(&body)
            .any(|other| (other.number, other.part, other.call) == (logged.number, logged.part, logged.call))
    });
    let (id, what) = if also {
        ("S8", format!("the log has {} twice: at {} and at {index}", row.number, row.index))
    } else {
        ("S16", format!("{} stands at {shard}:{index}, and was answered with {}:{}", row.number, row.shard, row.index))
    };
    Finding::new(id, what).by(place).at(shard, index)
}
