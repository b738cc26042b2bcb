//! Who says that it leads, and which writes are acknowledged: looked at all the time, by threads of their own, while something goes wrong.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::faults::cluster::{NAMES, NODES};
use crate::http::Client;

/// How often each node is asked whether it leads.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// An answer that took longer may have been given at any moment since it was asked for, before a pause perhaps: it says nothing.
const ANSWER_MAX: Duration = Duration::from_millis(100);

/// Between two writes of one client. All of them together write five times as often.
const WRITE_EVERY: Duration = Duration::from_millis(10);

/// How often it is looked how late this machine wakes who sleeps.
const BEAT: Duration = Duration::from_millis(2);

/// So long before an outage, and about its two ends, it is looked how much the machine let everybody wait.
const NEAR: Duration = Duration::from_millis(200);

/// A node has said that it leads, at some moment between these.
#[derive(Clone, Copy, Debug)]
struct Yes {
    node: usize,
    sent: Instant,
    received: Instant,
}

/// What was seen.
#[derive(Default)]
pub(super) struct Samples {
    stopped: AtomicBool,
    yes: Mutex<Vec<Yes>>,
    /// Nodes asked, and answers that came in time.
    asked: Mutex<u64>,
    acknowledged: Mutex<Vec<Instant>>,
    /// When somebody was woken, and how late.
    woken: Mutex<Vec<(Instant, Duration)>>,
}

/// A time in which nothing was acknowledged, as clients have seen it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outage {
    pub(super) lasted: Duration,
    /// How long clients may not have seen what nodes knew: the longest time between two acknowledged writes just before, when nothing was
    /// wrong yet, or by which somebody was woken late about one of its ends. On a machine that has nothing else to do, that is the time
    /// between two writes.
    pub(super) unseen: Duration,
}

impl Samples {
    /// Looks at these nodes while something goes on. Returns what that has brought.
    ///
    /// # Errors
    /// Those of `meanwhile`.
    pub(super) fn during<T>(&self, addrs: &[SocketAddr], meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            for (node, addr) in addrs.iter().enumerate() {
                scope.spawn(move || self.ask(node, *addr));
            }
            scope.spawn(|| self.beat());
            for writer in 0..5 {
                scope.spawn(move || self.write(writer, addrs));
            }
            let result = meanwhile();
            self.stopped.store(true, Ordering::Relaxed);
            result
        })
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Asks a node again and again whether it leads.
    fn ask(&self, node: usize, addr: SocketAddr) {
        let mut client: Option<Client> = None;
        while !self.is_stopped() {
            let sent = Instant::now();
            if client.is_none() {
                client = Client::connect(addr).ok();
            }
            let answer = client.as_mut().map(|client| client.get("/cluster/leader-check"));
            let received = Instant::now();
            match answer {
                Some(Ok(answer)) => {
                    *self.asked.lock().expect("nothing panics while it holds this lock") += 1;
                    if answer.status == 200 && received - sent <= ANSWER_MAX {
                        let yes = Yes { node, sent, received };
                        self.yes.lock().expect("nothing panics while it holds this lock").push(yes);
                    }
                }
                Some(Err(_)) | None => client = None,
            }
            std::thread::sleep(SAMPLE_EVERY.saturating_sub(sent.elapsed()));
        }
    }

    /// Sleeps and wakes, again and again.
    fn beat(&self) {
        while !self.is_stopped() {
            let begun = Instant::now();
            std::thread::sleep(BEAT);
            let now = Instant::now();
            let woken = (now, (now - begun).saturating_sub(BEAT));
            self.woken.lock().expect("nothing panics while it holds this lock").push(woken);
        }
    }

    /// Writes again and again, at whichever node takes it.
    fn write(&self, writer: usize, addrs: &[SocketAddr]) {
        let (mut client, mut place): (Option<Client>, usize) = (None, writer % addrs.len());
        let task = json!({ "command": format!("samples-{writer}"), "payload": 1 }).to_string();
        while !self.is_stopped() {
            if client.is_none() {
                place = (place + 1) % addrs.len();
                client = Client::connect(addrs[place]).ok();
            }
            match client.as_mut().map(|client| client.post("/v1/codeq/tasks", &task)) {
                Some(Ok(answer)) if answer.status == 202 => {
                    self.acknowledged.lock().expect("nothing panics while it holds this lock").push(Instant::now());
                    std::thread::sleep(WRITE_EVERY);
                }
                // Somebody else may know better.
                Some(_) | None => {
                    client = None;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// The longest time without an acknowledged write that ends in this span.
    pub(super) fn outage(&self, from: Instant, to: Instant) -> Outage {
        let acknowledged = self.acknowledged.lock().expect("nothing panics while it holds this lock");
        let mut moments: Vec<Instant> = acknowledged.iter().copied().filter(|at| *at <= to).collect();
        moments.sort_unstable();
        let gaps: Vec<(Instant, Instant)> = moments.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let ends = gaps.iter().filter(|(_, end)| *end >= from);
        let Some((begun, ended)) = ends.max_by_key(|(begun, end)| *end - *begun).copied() else {
            return Outage::default();
        };
        let before =
            gaps.iter().filter(|(_, end)| *end <= begun && begun - *end <= NEAR).map(|(last, end)| *end - *last);
        let near = |at: Instant| [begun, ended].iter().any(|end| at.max(*end) - at.min(*end) <= NEAR);
        let woken = self.woken.lock().expect("nothing panics while it holds this lock");
        let late = woken.iter().filter(|(at, _)| near(*at)).map(|(_, late)| *late);
        // Killed in the middle of such a time, a leader has committed what nobody has heard of.
        let until_then = from.saturating_duration_since(begun);
        Outage { lasted: ended - begun, unseen: before.chain(late).chain([until_then]).max().unwrap_or_default() }
    }

    /// Sees to it that no two nodes have said at one time that they lead, and says how often they were asked.
    ///
    /// # Errors
    /// Two have.
    pub(super) fn judge(&self) -> Result<(u64, usize)> {
        let mut yes = self.yes.lock().expect("nothing panics while it holds this lock").clone();
        yes.sort_by_key(|yes| yes.sent);
        // The last word of each node so far: only that one can overlap with the next.
        let mut last: [Option<Yes>; NODES] = [None; NODES];
        for one in &yes {
            let other = last.iter().flatten().find(|other| other.node != one.node && other.received >= one.sent);
            if let Some(other) = other {
                let (a, b) = (NAMES[other.node], NAMES[one.node]);
                ensure!(false, "{a} and {b} have both said at one time that they lead: {other:?}, {one:?}");
            }
            last[one.node] = Some(*one);
        }
        Ok((*self.asked.lock().expect("nothing panics while it holds this lock"), yes.len()))
    }

    /// Whether a node has said in this span again and again that it leads, and no other one.
    ///
    /// # Errors
    /// It has not, or another one has.
    pub(super) fn judge_calm(&self, leader: usize, from: Instant, to: Instant) -> Result<()> {
        let yes = self.yes.lock().expect("nothing panics while it holds this lock");
        let within: Vec<&Yes> = yes.iter().filter(|yes| yes.sent >= from && yes.received <= to).collect();
        let others: Vec<&&Yes> = within.iter().filter(|yes| yes.node != leader).collect();
        ensure!(others.is_empty(), "{} leads, but {others:?}", NAMES[leader]);
        ensure!(!within.is_empty(), "{} leads, but has not said so for {:?}", NAMES[leader], to - from);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: two nodes that say at one time that they lead are found, also where other answers lie between; one after the other may.
    #[test]
    fn two_leaders_at_one_time_are_found() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let judged = |all: &[(usize, u64, u64)]| {
            let yes =
                all.iter().map(|(node, sent, received)| Yes { node: *node, sent: at(*sent), received: at(*received) });
            Samples { yes: Mutex::new(yes.collect()), ..Samples::default() }.judge().is_ok()
        };
        assert!(judged(&[(0, 0, 1), (0, 10, 11), (1, 12, 13), (1, 20, 21)]));
        assert!(!judged(&[(0, 0, 1), (0, 10, 15), (1, 12, 13)]));
        assert!(!judged(&[(0, 10, 15), (1, 2, 30), (1, 40, 41)]));
    }

    /// Goal: an outage is told with what its clients could not see: a time without an answer before it, or until the fault, or a late waking.
    #[test]
    fn an_outage_has_what_was_not_seen() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let check = |acknowledged: &[u64], woken: &[(u64, u64)], fault: u64, expected: (u64, u64)| {
            let woken = woken.iter().map(|(ms, late)| (at(*ms), Duration::from_millis(*late)));
            let samples = Samples {
                acknowledged: Mutex::new(acknowledged.iter().map(|ms| at(*ms)).collect()),
                woken: Mutex::new(woken.collect()),
                ..Samples::default()
            };
            let Outage { lasted, unseen } = samples.outage(at(fault), at(1_800));
            assert_eq!((lasted.as_millis(), unseen.as_millis()), (expected.0.into(), expected.1.into()));
        };
        check(&[990, 1_000, 1_700, 1_710], &[], 1_005, (700, 10));
        check(&[940, 1_000, 1_700, 1_710], &[], 1_005, (700, 60));
        check(&[990, 1_000, 1_700, 1_710], &[], 1_080, (700, 80));
        check(&[990, 1_000, 1_700, 1_710], &[(1_702, 40)], 1_005, (700, 40));
        check(&[500, 600, 990, 1_000, 1_700], &[(1_300, 500)], 1_005, (700, 390));
    }
}
