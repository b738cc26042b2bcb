//! Scenarios: a cluster, exact events and what must have come of them, as text. Clients work all the time, the invariants are looked at
//! after every step, and at the end everything is healed, drained and judged, as in any run.
//!
//! ```text
//! set nodes=3 lease_ms=500       options, before everything else; no fault happens unless the script says so
//! run 5s                         time passes
//! name a leader                  `a` is the node that leads group 0 now
//! kill leader                    the process dies;    lose all any: without power, and any part of what was not synced survives
//! start down                     whoever does not run starts
//! die follower in install        dies in the middle of its next write, rows, commit, install or spare
//! pause a 3s                     it does nothing for so long;    suspend a 3s: its monotonic clock stands still as well
//! cut leader 2s                  nobody hears it, and it hears nobody;    mute: nobody hears it;    deaf: it hears nobody
//! jump all 3600s                 wall clocks jump;    -3600s: back
//! transfer                       each group is handed to another voter
//! join n4 · remove follower · wipe follower · full leader · room · flip follower · save
//! idle · busy                    clients pause, and go on
//! repeat 10 … end                the lines between
//! expect reached K02             at the end this has happened;    expect stopped a;    expect log 65536: bytes of entries at most
//! ```
//!
//! A node is `leader`, `follower` (the first that runs and does not lead), `n1` and so on, or a name; `all` and `down` are several. Where
//! a leader is named, time passes until there is one.

use std::collections::{BTreeMap, BTreeSet};

use base::ShardId;
use replica::leadership::RECORDS;

use crate::disk::Survival;
use crate::faults::Fault;
use crate::options::Options;
use crate::process::{Control, State, StorageStep};
use crate::run;
use crate::world::{Event, World};

/// A scenario that runs.
struct Script<'a> {
    world: World,
    names: BTreeMap<&'a str, usize>,
    /// What is to be reached by the end.
    awaited: BTreeSet<&'a str>,
}

/// Nobody waits longer for a leader, µs.
const LEADERLESS_MAX: u64 = 20_000_000;

/// Plays a scenario to its end.
///
/// # Errors
/// It cannot be read, a property is violated, or something that it expects has not come.
pub fn play(text: &str) -> Result<(), String> {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().split_whitespace().collect())
        .filter(|words: &Vec<&str>| !words.is_empty())
        .collect();
    let sets = lines.iter().take_while(|words| words[0] == "set").count();
    let mut options = Options::calm();
    lines[..sets].iter().flat_map(|words| &words[1..]).try_for_each(|set| options.set(set))?;
    let mut world = World::new(1, options);
    run::found(&mut world);
    world.start_clients();
    world.plan_housekeeping();
    let mut script = Script { world, names: BTreeMap::new(), awaited: BTreeSet::new() };
    script.play(&lines[sets..])?;
    let Script { mut world, awaited, .. } = script;
    run::settle(&mut world);
    let report = if world.violation.is_none() { world.judge("this scenario".into()) } else { None };
    match &world.violation {
        None => match awaited.into_iter().find(|mark| world.reached.get(mark).is_none_or(|count| *count == 0)) {
            None => Ok(()),
            Some(mark) => Err(format!("{mark} was not reached, but {:?}", world.reached)),
        },
        Some(violation) => Err(format!(
            "{} at {:.6} s: {}\n{}",
            violation.id,
            violation.at as f64 / 1e6,
            violation.what,
            report.unwrap_or_default()
        )),
    }
}

impl<'a> Script<'a> {
    fn play(&mut self, lines: &[Vec<&'a str>]) -> Result<(), String> {
        let mut place = 0;
        while place < lines.len() && self.world.violation.is_none() {
            let words = &lines[place];
            place += 1;
            if words[0] == "repeat" {
                let length = lines[place..].iter().position(|words| words[0] == "end").ok_or("repeat has no end")?;
                let times: u64 = words.get(1).and_then(|times| times.parse().ok()).ok_or("repeat how often?")?;
                for _ in 0..times {
                    self.play(&lines[place..place + length])?;
                }
                place += length + 1;
            } else {
                self.line(words).map_err(|why| format!("{}: {why}", words.join(" ")))?;
            }
        }
        Ok(())
    }

    fn line(&mut self, words: &[&'a str]) -> Result<(), String> {
        let word = |place: usize| words.get(place).copied().ok_or_else(|| "something is missing".to_owned());
        if words[0] == "transfer" || words[1..].iter().any(|word| matches!(*word, "leader" | "follower")) {
            let until = self.world.time + LEADERLESS_MAX;
            while self.world.leader(RECORDS).is_none() && self.world.time < until && self.world.violation.is_none() {
                self.world.run_until(self.world.time + 10_000);
            }
            if self.world.violation.is_some() {
                return Ok(());
            }
        }
        match words[0] {
            "run" => {
                let until = self.world.time + time(word(1)?)?;
                self.world.run_until(until);
            }
            "name" => {
                let node = self.node(word(2)?)?;
                self.names.insert(word(1)?, node);
            }
            "idle" => self.world.clients.idle = true,
            "busy" => self.world.clients.idle = false,
            "transfer" => {
                for shard in (0..self.world.options.shards as u16).map(ShardId) {
                    self.world.transfer(shard);
                }
            }
            "room" => {
                let full: Vec<usize> = (0..self.world.nodes.len()).collect();
                full.into_iter().for_each(|n| self.world.on_fault(Fault::Space(n)));
            }
            "jump" => {
                let ms = match word(2)?.strip_prefix('-') {
                    Some(back) => -(time(back)? as i64 / 1_000),
                    None => time(word(2)?)? as i64 / 1_000,
                };
                self.nodes(word(1)?)?.into_iter().for_each(|n| self.world.nodes[n].clock.jump(ms));
            }
            "save" => {
                for n in self.world.running() {
                    self.world.nodes[n].process_mut().expect("it runs").controls.push_back(Control::Save);
                    self.world.wake(n);
                }
            }
            "expect" => self.expect(word(1)?, word(2)?)?,
            _ => {
                for n in self.nodes(word(1)?)? {
                    self.do_to(n, words)?;
                }
            }
        }
        Ok(())
    }

    /// Does something to one node.
    fn do_to(&mut self, n: usize, words: &[&str]) -> Result<(), String> {
        let word = |place: usize| words.get(place).copied().ok_or_else(|| "something is missing".to_owned());
        let world = &mut self.world;
        match words[0] {
            "kill" => world.crash(n, Survival::Everything),
            "lose" => world.crash(
                n,
                match word(2)? {
                    "nothing" => Survival::Nothing,
                    "prefix" => Survival::Prefix,
                    "suffix" => Survival::Suffix,
                    "any" => Survival::Any,
                    other => return Err(format!("what is {other}?")),
                },
            ),
            "start" | "join" => world.on_fault(Fault::Restart(n)),
            "die" => {
                let step =
                    StorageStep::ALL.into_iter().find(|step| step.mark().strip_prefix("K06-") == words.get(3).copied());
                world.nodes[n].dies_at = Some(step.ok_or("in which step?")?);
            }
            "pause" | "suspend" => {
                let length = time(word(2)?)?;
                world.nodes[n].paused_until = world.time + length;
                if words[0] == "suspend" {
                    let now = world.time;
                    world.nodes[n].clock.suspend(now, now + length);
                }
            }
            "cut" | "mute" | "deaf" => {
                let length = time(word(2)?)?;
                for other in (0..world.nodes.len()).filter(|other| *other != n) {
                    if words[0] != "deaf" {
                        world.block(n, other, length);
                    }
                    if words[0] != "mute" {
                        world.block(other, n, length);
                    }
                }
            }
            "remove" => {
                let id = world.nodes[n].directory.id;
                world.take_vote(id);
            }
            "wipe" => world.wipe(n, "wipe"),
            "full" => world.nodes[n].directory.disk.fill(true),
            "flip" => world.flip(n),
            other => return Err(format!("what is {other}?")),
        }
        Ok(())
    }

    fn expect(&mut self, what: &str, of: &'a str) -> Result<(), String> {
        let is = match what {
            "reached" => {
                self.awaited.insert(of);
                true
            }
            "stopped" => matches!(self.world.nodes[self.node(of)?].state, State::Stopped(_)),
            "log" => {
                let most: usize = of.parse().map_err(|_| "how many bytes?")?;
                let entries = self.world.watch.committed.iter().flatten();
                entries.map(|entry| entry.data.len()).sum::<usize>() <= most
            }
            other => return Err(format!("what is {other}?")),
        };
        if is {
            Ok(())
        } else {
            Err(format!("that is not so at {:.3} s: {:?}", self.world.time as f64 / 1e6, self.world.reached))
        }
    }

    fn nodes(&self, name: &str) -> Result<Vec<usize>, String> {
        let all = 0..self.world.nodes.len();
        let belongs =
            |n: &usize| *n < self.world.options.nodes as usize || self.world.nodes[*n].directory.cluster.is_some();
        match name {
            "all" => Ok(all.filter(belongs).collect()),
            "down" => Ok(all.filter(belongs).filter(|n| self.world.nodes[*n].process().is_none()).collect()),
            name => Ok(vec![self.node(name)?]),
        }
    }

    fn node(&self, name: &str) -> Result<usize, String> {
        let leader = || self.world.leader(RECORDS).ok_or_else(|| "nobody leads".to_owned());
        match name {
            "leader" => leader(),
            "follower" => {
                let leader = leader()?;
                self.world.running().into_iter().find(|n| *n != leader).ok_or_else(|| "nobody follows".into())
            }
            name => {
                let given = name.strip_prefix('n').and_then(|number| number.parse::<usize>().ok());
                let known = given.map(|number| number - 1).or_else(|| self.names.get(name).copied());
                known.filter(|n| *n < self.world.nodes.len()).ok_or_else(|| format!("who is {name}?"))
            }
        }
    }
}

/// A time like `300ms` or `5s`, in µs.
fn time(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1_000),
        None => (text.strip_suffix('s').ok_or_else(|| format!("{text} is no time"))?, 1_000_000),
    };
    number.parse::<u64>().map(|number| number * unit).map_err(|_| format!("{text} is no time"))
}

impl World {
    /// Snapshots that nobody answers to are given up, as in every run.
    fn plan_housekeeping(&mut self) {
        self.plan(self.time + 5_000_000, Event::Fault(Fault::Housekeeping));
    }
}
