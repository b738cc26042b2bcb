//! What one client saw, and what careful workers did: positions do not fall within a session, no token names two grants, and nobody works
//! on a task while somebody else does.

use std::collections::BTreeMap;

use base::map::IdMap;

use crate::History;
use crate::history::{Came, Kind, Row};
use crate::judge::{Finding, Stop};
use crate::record::{Answer, Call, Level, Outcome};

pub(crate) fn check(history: &History) -> Result<(), Stop> {
    positions(history)?;
    tokens(history)?;
    work(history)?;
    Ok(())
}

fn positions(history: &History) -> Result<(), Finding> {
    let mut order: Vec<u32> = (0..history.rows.len() as u32).collect();
    let row = |place: u32| &history.rows[place as usize];
    order.retain(|place| row(*place).came == Came::Answered && row(*place).kind != Kind::Stale);
    order.sort_unstable_by_key(|place| (row(*place).client, row(*place).session, row(*place).t0));
    // By shard, the latest position that the session has seen, and where; parts of one operation may overlap.
    let mut seen: BTreeMap<u16, (u64, u32)> = BTreeMap::new();
    let mut session = None;
    let mut parts: Vec<u32> = Vec::new();
    for place in order {
        let Row { number, shard, index, kind, .. } = *row(place);
        let this = (row(place).client, row(place).session);
        if session != Some(this) {
            session = Some(this);
            seen.clear();
            parts.clear();
        }
        if parts.last().is_some_and(|last| row(*last).number != number) {
            for part in parts.drain(..) {
                let Row { shard, index, .. } = *row(part);
                let latest = seen.entry(shard).or_insert((index, part));
                *latest = (*latest).max((index, part));
            }
        }
        parts.push(place);
        if kind == Kind::AtLeast
            && let Call::Read { level: Level::AtLeast(asked), .. }
            | Call::Stats { level: Level::AtLeast(asked), .. }
            | Call::Operations { level: Level::AtLeast(asked), .. } = history.call(row(place))
            && index < asked
        {
            let what = format!("{number} asked for {shard}:{asked} at least, and was answered from {index}");
            return Err(Finding::new("S15", what).by(place as usize));
        }
        if matches!(kind, Kind::AtLeast | Kind::Linearizable)
            && let Some((latest, before)) = seen.get(&shard).filter(|(latest, _)| index < *latest)
        {
            let what =
                format!("{number} was answered from {shard}:{index}, after {} from {latest}", row(*before).number);
            return Err(Finding::new("S15", what).by(*before as usize).by(place as usize));
        }
    }
    Ok(())
}

fn tokens(history: &History) -> Result<(), Finding> {
    let mut known: IdMap<u32> = IdMap::default();
    for (place, row) in history.rows.iter().enumerate() {
        if row.kind != Kind::Claim || row.came != Came::Answered {
            continue;
        }
        let Outcome::Answered { answer: Answer::Claimed(grants), .. } = history.outcome(row) else { continue };
        for grant in &grants {
            if let Some(before) = known.insert(grant.token.suffix, place as u32) {
                let what = format!("one token was handed out twice: {:?}", grant.token);
                return Err(Finding::new("S4", what).by(before as usize).by(place).of(grant.task.task));
            }
        }
    }
    Ok(())
}

fn work(history: &History) -> Result<(), Finding> {
    let mut work = history.work.clone();
    work.sort_unstable_by_key(|work| (work.task, work.from));
    for pair in work.windows(2) {
        let (one, other) = (&pair[0], &pair[1]);
        if one.task == other.task && one.token != other.token && other.from < one.to {
            let (first, second) = (history.text(one.worker), history.text(other.worker));
            let what = format!("{first} was at work until {} µs, {second} began at {} µs", one.to, other.from);
            return Err(Finding::new("S6", what).of(one.task));
        }
    }
    Ok(())
}
