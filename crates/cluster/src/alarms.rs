//! What an operator should look after: conditions that last, raised by the member that they concern, or by the leader of group 0 where they
//! concern the cluster, and cleared by themselves. Members tell each other their alarms with the reports of health.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::machine::StateMachine;
use base::{Incarnation, Millis, Mono};
use storage::space::{Space, keep, release, space};

use crate::events::{Draft, Events, Level};
use crate::health::{is_late, report};
use crate::http::view::BUILD;
use crate::node::Common;
use crate::peer::admission::RECORDS;

/// A kind of alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum AlarmKind {
    /// A member's disk has little room: nobody should give it more to keep.
    SpaceLow = 1,
    /// It has hardly any: the member leads nothing.
    SpaceCritical = 2,
    /// Its disk takes longer than a second to sync: it leads nothing for a while.
    SlowStorage = 3,
    /// Its wall clock and the leader's differ.
    ClockSkew = 4,
    /// The leader has made no backup for two intervals.
    BackupOld = 5,
    /// The members run different programs.
    VersionMix = 6,
    /// A member has been catching up for long.
    LearnerStuck = 7,
    /// A certificate of the member ends soon.
    CertExpiry = 8,
}

impl AlarmKind {
    /// Every kind.
    pub const ALL: [AlarmKind; 8] = [
        AlarmKind::SpaceLow,
        AlarmKind::SpaceCritical,
        AlarmKind::SlowStorage,
        AlarmKind::ClockSkew,
        AlarmKind::BackupOld,
        AlarmKind::VersionMix,
        AlarmKind::LearnerStuck,
        AlarmKind::CertExpiry,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            AlarmKind::SpaceLow => "space-low",
            AlarmKind::SpaceCritical => "space-critical",
            AlarmKind::SlowStorage => "slow-storage",
            AlarmKind::ClockSkew => "clock-skew",
            AlarmKind::BackupOld => "backup-old",
            AlarmKind::VersionMix => "version-mix",
            AlarmKind::LearnerStuck => "learner-stuck",
            AlarmKind::CertExpiry => "cert-expiry",
        }
    }

    pub(crate) fn of_number(number: u8) -> Option<AlarmKind> {
        AlarmKind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// How much room a disk must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So much of it, in percent.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
}

impl Room {
    fn of(self, total: u64) -> u64 {
        match self {
            Room::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
            Room::Bytes(bytes) => bytes,
        }
    }
}

/// An alarm that is raised clears when there is so much more room, in percent of the disk: it does not come and go.
const CLEARED_ABOVE: Room = Room::Percent(2);

/// Kept on the disk, and given up when there is hardly any room: claims, results and deletions write as well.
const RESERVE_BYTES_MAX: u64 = 64 << 20;

/// No more than one of so many parts of the disk is kept.
const RESERVE_PART: u64 = 100;

/// How often everything is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Wall clocks that differ by more are an alarm.
const SKEW_MAX: Millis = Millis(1_000);

/// A learner that has not caught up by then is an alarm.
const LEARNING_MAX: Millis = Millis(300_000);

/// Whether there is too little room, where there was or was not a moment ago.
fn lacks(space: Space, room: Room, lacked: bool) -> bool {
    let more = if lacked { CLEARED_ABOVE.of(space.total) } else { 0 };
    let wanted = room.of(space.total);
    wanted > 0 && space.free < wanted.saturating_add(more)
}

struct Raised {
    text: String,
    since: Mono,
}

/// The alarms of this node.
#[derive(Default)]
pub(crate) struct Alarms {
    raised: Mutex<BTreeMap<AlarmKind, Raised>>,
}

impl Alarms {
    /// Raises an alarm, with what there is to say, or clears it.
    pub(crate) fn set(&self, kind: AlarmKind, text: Option<String>, now: Mono, events: &Events) {
        let mut raised = self.raised.lock().expect("nothing panics while it holds this lock");
        let draft = match (text, raised.get_mut(&kind)) {
            (None, None) => return,
            (Some(text), Some(raised)) => {
                raised.text = text;
                return;
            }
            (Some(text), None) => {
                raised.insert(kind, Raised { text: text.clone(), since: now });
                Draft::new(Level::Warn, "alarm.raised", format!("alarm {}: {text}", kind.name()))
            }
            (None, Some(_)) => {
                raised.remove(&kind);
                Draft::new(Level::Info, "alarm.cleared", format!("alarm {} is over", kind.name()))
            }
        };
        drop(raised);
        events.tell(draft.with("kind", kind.name()));
    }

    pub(crate) fn is_raised(&self, kind: AlarmKind) -> bool {
        self.raised.lock().expect("nothing panics while it holds this lock").contains_key(&kind)
    }

    /// The alarms, each with its text and how long ago it was raised.
    pub(crate) fn all(&self, now: Mono) -> Vec<(AlarmKind, String, Millis)> {
        let raised = self.raised.lock().expect("nothing panics while it holds this lock");
        raised.iter().map(|(kind, raised)| (*kind, raised.text.clone(), now - raised.since)).collect()
    }
}

/// The thread that looks. It ends when this is dropped.
pub(crate) struct Watch {
    _stop: Sender<()>,
}

/// When there is too little room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floors {
    pub(crate) low: Room,
    pub(crate) critical: Room,
}

impl Watch {
    /// Starts it.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start<S: StateMachine>(
        common: Arc<Common<S>>,
        directory: Option<&Path>,
        floors: Floors,
    ) -> std::io::Result<Watch> {
        let (stop, stopped) = channel();
        let directory = directory.map(Path::to_owned);
        std::thread::Builder::new().name("codeq-alarms".into()).spawn(move || {
            let (mut learners, mut told) = (BTreeMap::new(), Vec::new());
            loop {
                if let Some(directory) = &directory {
                    look_at_disk(&common, directory, floors);
                }
                look_at_cluster(&common, &mut learners);
                common.lacks_room.store(who_lacks_room(&common).is_some(), Ordering::Relaxed);
                let raised: Vec<AlarmKind> = common.alarms.all(Mono(0)).into_iter().map(|(kind, ..)| kind).collect();
                // Others hear of a change at once.
                if let Some(peers) = common.peers.get().filter(|_| raised != told) {
                    let report = report(peers);
                    peers.links.all().iter().for_each(|link| link.put_report(report.clone()));
                    told = raised;
                }
                if stopped.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Watch { _stop: stop })
    }
}

fn look_at_disk<S: StateMachine>(common: &Common<S>, directory: &Path, floors: Floors) {
    let now = common.clock.now().mono;
    // What does not answer now is asked again.
    let Ok(found) = space(directory) else { return };
    *common.space.lock().expect("nothing panics while it holds this lock") = found;
    let text = |room: Room| {
        let (free, wanted) = (found.free >> 20, room.of(found.total) >> 20);
        format!("{free} MiB are free in {}, fewer than {wanted}", directory.display())
    };
    let alarm = |kind: AlarmKind, room: Room| {
        let lacks = lacks(found, room, common.alarms.is_raised(kind));
        common.alarms.set(kind, lacks.then(|| text(room)), now, &common.events);
        lacks
    };
    let is_low = alarm(AlarmKind::SpaceLow, floors.low);
    let is_critical = alarm(AlarmKind::SpaceCritical, floors.critical);
    let kept = if is_critical {
        release(directory)
    } else if !is_low {
        keep(directory, RESERVE_BYTES_MAX.min(found.total / RESERVE_PART))
    } else {
        Ok(())
    };
    if let Err(error) = kept {
        tracing::warn!(event = "storage.reserve", %error, "the reserve cannot be kept or given up");
    }
}

/// The member whose disk has little room, if there is one.
pub(crate) fn who_lacks_room<S: StateMachine>(common: &Common<S>) -> Option<u64> {
    if common.alarms.is_raised(AlarmKind::SpaceLow) {
        return Some(common.me);
    }
    let peers = common.peers.get()?;
    let mut reports = peers.reports().into_iter();
    let lacks = reports.find(|(_, (age, report))| !is_late(*age, peers.config.health_interval) && report.lacks_room());
    lacks.map(|(id, _)| id)
}

/// What concerns the cluster: the leader of group 0 says it, and nobody else.
fn look_at_cluster<S: StateMachine>(common: &Common<S>, learners: &mut BTreeMap<u64, Mono>) {
    let now = common.clock.now().mono;
    let Some(peers) = common.peers.get().filter(|_| common.routes.leader(RECORDS) == common.me) else {
        learners.clear();
        for kind in [AlarmKind::ClockSkew, AlarmKind::VersionMix, AlarmKind::LearnerStuck] {
            common.alarms.set(kind, None, now, &common.events);
        }
        return;
    };
    let members = peers.members();
    let name = |id: u64| members.get(id).map_or_else(|| Incarnation(id).to_string(), |member| member.name.clone());
    let mut reports = peers.reports();
    reports.retain(|_, (age, _)| !is_late(*age, peers.config.health_interval));
    let other = reports.iter().find(|(_, (_, report))| report.build != BUILD);
    let mixed = other.map(|(id, (_, report))| format!("{} runs {}, and the leader {BUILD}", name(*id), report.build));
    common.alarms.set(AlarmKind::VersionMix, mixed, now, &common.events);
    let skewed =
        peers.skews().into_iter().find(|(id, ahead)| reports.contains_key(id) && ahead.unsigned_abs() > SKEW_MAX.0);
    let skewed = skewed.map(|(id, ahead)| format!("the clock of {} is {ahead} ms ahead of the leader's", name(id)));
    common.alarms.set(AlarmKind::ClockSkew, skewed, now, &common.events);
    let learning = |id: &u64| members.configuration.learners.contains(id) && !members.is_demoted(*id);
    learners.retain(|id, _| learning(id));
    for id in members.configuration.learners.iter().filter(|id| learning(id)) {
        learners.entry(*id).or_insert(now);
    }
    let stuck = learners.iter().find(|(_, since)| now - **since >= LEARNING_MAX);
    let stuck =
        stuck.map(|(id, since)| format!("{} has been catching up for {} s", name(*id), (now - *since).0 / 1_000));
    common.alarms.set(AlarmKind::LearnerStuck, stuck, now, &common.events);
}

/// A sync that takes longer is slow.
pub(crate) const SYNC_MAX: Millis = Millis(1_000);

/// A disk that has been slow for so long is an alarm.
const SLOW_MAX: Millis = Millis(5_000);

/// Whether the disk is slow, as its syncs tell.
#[derive(Debug, Default)]
pub(crate) struct Slowness {
    /// Since when every sync was slow.
    since: Option<Mono>,
}

impl Slowness {
    /// A sync that began then took so long. Answers whether the disk has become slow, or fast again.
    pub(crate) fn on_sync(&mut self, begun: Mono, took: Millis) -> bool {
        if took <= SYNC_MAX {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(begun);
        begun + took - since >= SLOW_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an alarm is raised below the floor, and cleared only when there is 2 % more; 0 never raises any.
    #[test]
    fn an_alarm_does_not_come_and_go() {
        let space = |free: u64| Space { free, total: 1_000 };
        let floor = Room::Percent(10);
        assert_eq!([100, 99].map(|free| lacks(space(free), floor, false)), [false, true]);
        assert_eq!([119, 120].map(|free| lacks(space(free), floor, true)), [true, false]);
        assert_eq!([50, 49].map(|free| lacks(space(free), Room::Bytes(50), false)), [false, true]);
        assert!(!lacks(space(0), Room::Percent(0), true));
    }

    /// Goal: five seconds of slow syncs are an alarm, a fast one in between is none.
    #[test]
    fn a_disk_is_slow_when_all_syncs_are() {
        let mut slowness = Slowness::default();
        let mut at = |begun: u64, took: u64| slowness.on_sync(Mono(begun), Millis(took));
        assert_eq!([at(0, 1_500), at(1_500, 10), at(2_000, 2_000), at(4_000, 2_900)], [false; 4]);
        assert!(at(6_900, 1_100) && !at(9_000, 3));
    }

    #[test]
    fn kinds_are_known_by_number() {
        assert!(AlarmKind::ALL.iter().all(|kind| AlarmKind::of_number(*kind as u8) == Some(*kind)));
        assert_eq!(AlarmKind::of_number(0), None);
    }
}
