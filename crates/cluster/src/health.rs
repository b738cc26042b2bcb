//! Reports of health: every member tells every other one how it is, at an interval and whenever a connection begins, over the connection that
//! carries the log as well. So every node can show all of them, whoever leads. Nothing of it enters the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use base::{Incarnation, Index, Millis, Mono, ScheduleTime, Term};
use replica::{Member, Now};
use tokio::time::interval;

use crate::alarms::AlarmKind;
use crate::events::lasting::{Lasting, Said};
use crate::events::{Draft, Level};
use crate::http::view::BUILD;
use crate::node::Common;
use crate::peer::Shared;
use crate::peer::wire::PROTOCOL;

/// Directories and groups in one report; more make it no report.
const LIST_MAX: u64 = 1_024;

/// Reports are late after so many intervals without one.
const LATE: u64 = 2;

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The program it runs.
    pub build: String,
    /// The version of the peer protocol that it speaks.
    pub protocol: u16,
    /// Since it started.
    pub uptime: Millis,
    /// What its data is kept in.
    pub kind: String,
    /// Where.
    pub paths: Vec<String>,
    /// Bytes of its log on disk.
    pub log_bytes: u64,
    /// Of group 0.
    pub term: Term,
    /// What it has applied, by group.
    pub applied: Vec<Index>,
    /// The label of its data centre.
    pub zone: String,
    /// Its wall clock when it said so: milliseconds since 1970.
    pub wall: ScheduleTime,
    /// Room on its disk, in bytes; 0: it keeps nothing there, or has not looked yet.
    pub free_bytes: u64,
    /// Its alarms: what it says of each, and how long ago it was raised.
    pub alarms: Vec<(AlarmKind, String, Millis)>,
    /// Members that say of themselves something else than is recorded: whoever cannot reach them tries it where they say.
    pub moved: Vec<Member>,
}

impl Report {
    /// How this node is.
    fn of<S: StateMachine>(common: &Common<S>, zone: &str, now: Now, moved: Vec<Member>) -> Report {
        let status = common.status.borrow();
        Report {
            build: BUILD.into(),
            protocol: PROTOCOL,
            uptime: now.mono - Mono(0),
            kind: common.kind.clone(),
            paths: common.paths.clone(),
            log_bytes: common.counters.log_size.load(Ordering::Relaxed),
            term: status.shards.first().map_or(Term(0), |shard| shard.consensus.term),
            applied: status.shards.iter().map(|shard| shard.applied).collect(),
            zone: zone.into(),
            wall: now.wall,
            free_bytes: common.space.lock().expect("nothing panics while it holds this lock").free,
            alarms: common.alarms.all(now.mono),
            moved,
        }
    }

    pub(crate) fn lacks_room(&self) -> bool {
        self.alarms.iter().any(|(kind, ..)| *kind == AlarmKind::SpaceLow)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_bytes(self.build.as_bytes());
        bytes.put_u16(self.protocol);
        bytes.put_varint(self.uptime.0);
        bytes.put_bytes(self.kind.as_bytes());
        bytes.put_varint(self.paths.len() as u64);
        self.paths.iter().for_each(|path| bytes.put_bytes(path.as_bytes()));
        bytes.put_varint(self.log_bytes);
        bytes.put_varint(self.term.0);
        bytes.put_varint(self.applied.len() as u64);
        self.applied.iter().for_each(|index| bytes.put_varint(index.0));
        bytes.put_bytes(self.zone.as_bytes());
        bytes.put_varint(self.wall.0);
        bytes.put_varint(self.free_bytes);
        bytes.put_varint(self.alarms.len() as u64);
        for (kind, text, since) in &self.alarms {
            bytes.put_u8(*kind as u8);
            bytes.put_bytes(text.as_bytes());
            bytes.put_varint(since.0);
        }
        bytes.put_varint(self.moved.len() as u64);
        self.moved.iter().for_each(|member| member.put(&mut bytes));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Report, Malformed> {
        let mut reader = Reader::new(bytes);
        let (build, protocol, uptime) = (reader.text()?.to_owned(), reader.u16()?, Millis(reader.varint()?));
        let kind = reader.text()?.to_owned();
        let paths = (0..count(&mut reader)?).map(|_| reader.text().map(str::to_owned)).collect::<Result<_, _>>()?;
        let (log_bytes, term) = (reader.varint()?, Term(reader.varint()?));
        let applied = (0..count(&mut reader)?).map(|_| reader.varint().map(Index)).collect::<Result<_, _>>()?;
        let zone = reader.text()?.to_owned();
        let (wall, free_bytes) = (ScheduleTime(reader.varint()?), reader.varint()?);
        let mut alarms = Vec::new();
        for _ in 0..count(&mut reader)? {
            let (kind, text, since) = (reader.u8()?, reader.text()?.to_owned(), Millis(reader.varint()?));
            // Another build may know more.
            alarms.extend(AlarmKind::of_number(kind).map(|kind| (kind, text, since)));
        }
        let moved = (0..count(&mut reader)?).map(|_| Member::read(&mut reader)).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Report {
            build,
            protocol,
            uptime,
            kind,
            paths,
            log_bytes,
            term,
            applied,
            zone,
            free_bytes,
            wall,
            alarms,
            moved,
        })
    }
}

fn count(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    reader.varint().and_then(|count| if count <= LIST_MAX { Ok(count) } else { Err(Malformed) })
}

/// Whether a report of this age is too old.
pub(crate) fn is_late(age: Millis, interval: Millis) -> bool {
    age.0 > interval.0 * LATE
}

/// This node's report, for the connection that begins or the interval that ends.
pub(crate) fn report<S: StateMachine>(shared: &Shared<S>) -> Vec<u8> {
    Report::of(&shared.common, &shared.config.zone, shared.clock.now(), shared.moved()).encode()
}

/// Reports for ever, and says of each member that its reports have stopped, and that they are back.
pub(crate) async fn report_for_ever<S: StateMachine>(shared: Arc<Shared<S>>) {
    let every = shared.config.health_interval;
    let mut due = interval(every.to_std());
    let mut silent: BTreeMap<u64, Lasting> = BTreeMap::new();
    loop {
        due.tick().await;
        let report = report(&shared);
        shared.links.all().iter().for_each(|link| link.put_report(report.clone()));
        let (now, reports) = (shared.clock.now().mono, shared.reports());
        silent.retain(|id, _| reports.contains_key(id));
        for (id, (age, _)) in reports {
            let Some(said) = silent.entry(id).or_default().look(now, is_late(age, every)) else { continue };
            let member = shared.member(id).map_or_else(|| Incarnation(id).to_string(), |member| member.name);
            let draft = match said {
                Said::Began | Said::Lasts(_) => {
                    let text = format!("{member} has not said how it is for {} ms", age.0);
                    Draft::new(Level::Warn, "cluster.node.unhealthy", text).with("why", "its reports have stopped")
                }
                Said::Ended(_) => {
                    let text = format!("{member} says again how it is");
                    Draft::new(Level::Info, "cluster.node.healthy", text).with("why", "its reports are back")
                }
            };
            shared.common.events.tell(draft.with("member", member).with("lastReportMs", age.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_back_and_are_late_after_two_intervals() {
        let report = Report {
            build: "1.2.3".into(),
            protocol: 1,
            uptime: Millis(5_000),
            kind: "sqlite".into(),
            paths: vec!["/data".into()],
            log_bytes: 1 << 20,
            term: Term(7),
            applied: vec![Index(9), Index(0)],
            zone: "dc2".into(),
            wall: ScheduleTime(1_700_000_000_000),
            free_bytes: 1 << 30,
            alarms: vec![(AlarmKind::SpaceLow, "little".into(), Millis(3))],
            moved: vec![Member { id: 7, name: "b".into(), peer: "elsewhere:7000".into(), url: String::new() }],
        };
        let bytes = report.encode();
        assert_eq!(Report::decode(&bytes), Ok(report));
        assert!((0..bytes.len()).all(|length| Report::decode(&bytes[..length]).is_err()));
        assert!(!is_late(Millis(10), Millis(5)) && is_late(Millis(11), Millis(5)));
    }
}
