//! Leaders that are killed, held up and asked to hand over, with one group and with four: whether all nodes tell the same of it, in an order
//! in which no effect stands before its cause; what a record says of the outage beside what a client has seen; and whether two nodes ever
//! say at one time that they lead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::faults::cluster::{Cluster, NAMES, wait_until};
use crate::faults::figures::Figures;
use crate::faults::samples::Samples;
use crate::faults::{Run, calm};

/// What a record may say of an outage that clients have seen otherwise, beyond what they could not see: their last answers may have been
/// late, or lost with the leader, when the machine let somebody wait just then.
const OUTAGE_MARGIN: Duration = Duration::from_millis(50);

/// Every so many rounds the leader is held up instead of killed, and every so many it is asked to hand over.
const PAUSE_EVERY: u32 = 5;
const HAND_OVER_EVERY: u32 = 7;

/// All records and timelines stay comparable with so many groups.
const MANY_GROUPS: u32 = 4;

/// What has gone wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Pause,
    HandOver,
}

/// An election, by its group and term.
type Key = (u64, u64);

/// With one group, then with four. Returns how long timelines of the first took to be complete.
pub(super) fn elections(run: &Run) -> Result<Vec<Duration>> {
    let complete = one(run, 1, run.rounds(2, 100))?;
    one(run, MANY_GROUPS, run.rounds(1, 100))?;
    Ok(complete.into_all())
}

fn one(run: &Run, groups: u32, rounds: u32) -> Result<Figures> {
    // One after the other in one folder of logs: a scenario has one.
    let mut cluster = Cluster::new(run.codeq(), "elections", false)?.with_defaults();
    for (flag, value) in [("--log-format", "json"), ("--raft-log-level", "debug")] {
        cluster.option(flag, value);
    }
    cluster.option("--shards", &groups.to_string());
    cluster.start_all()?;
    let samples = Samples::default();
    let addrs = cluster.addrs();
    let mut figures = [(); 3].map(|()| Figures::default());
    samples.during(&addrs, || {
        (1..=rounds).try_for_each(|round| fail_over(run, &mut cluster, &samples, groups, round, &mut figures))
    })?;
    let (asked, yes) = samples.judge()?;
    println!(
        "{groups} groups: leader-check was asked {asked} times, {yes} times the answer was 200, never by two nodes at a time"
    );
    cluster.wait_until_whole()?;
    let lines = judge_story(&cluster, groups)?;
    let [outages, differences, complete] = figures;
    println!("{groups} groups: fault until the next leader takes writes, as its clients have seen it: {outages}");
    if groups == 1 {
        println!("{groups} groups: between the outage in the record and that of the clients: {differences}");
    }
    println!("{groups} groups: election won until its timeline is complete on every node that runs: {complete}");
    println!("{groups} groups: lines at info of one election, all nodes together: {lines}");
    Ok(complete)
}

fn fail_over(
    run: &Run,
    cluster: &mut Cluster,
    samples: &Samples,
    groups: u32,
    round: u32,
    figures: &mut [Figures; 3],
) -> Result<()> {
    cluster.wait_until_whole()?;
    let leader = cluster.leader()?;
    let calm_since = Instant::now();
    let mut rng = base::rng::SplitMix::new(run.seed ^ u64::from(round));
    calm(&mut rng);
    samples.judge_calm(leader, calm_since, Instant::now())?;
    let term = cluster.view(leader).context("the leader answers")?.term;
    let fault = match round {
        round if round % PAUSE_EVERY == 0 => Fault::Pause,
        round if round % HAND_OVER_EVERY == 0 => Fault::HandOver,
        _ => Fault::Kill,
    };
    let others = Cluster::others(leader);
    let begun = Instant::now();
    match fault {
        Fault::Kill => cluster.kill(leader)?,
        Fault::Pause => cluster.pause(leader)?,
        Fault::HandOver => {
            let answer = cluster.post(others[0], "/cluster/leader/transfer", &json!({ "to": NAMES[others[0]] }))?;
            ensure!(answer.status == 200, "a hand-over was answered with {answer}");
        }
    }
    let next = cluster.leader_of(&others)?;
    let asked: Vec<usize> = if fault == Fault::HandOver { vec![0, 1, 2] } else { others.to_vec() };
    let gone: Vec<&str> = if fault == Fault::HandOver { vec![] } else { vec![NAMES[leader]] };
    let record = complete(cluster, &asked, &gone, term, fault)?;
    let since_won = milliseconds_since(&record["wonAt"])?;
    figures[2].add(since_won);
    let seen = samples.outage(begun, Instant::now());
    // Who has sent something to a leader that is held up waits for it.
    if fault != Fault::Pause {
        figures[0].add(seen.lasted);
    }
    // With several groups a client sees the outage of whichever its queue is in.
    if groups == 1 && fault == Fault::Kill {
        let told =
            Duration::from_millis(record["outageMs"].as_u64().with_context(|| format!("no outage in {record}"))?);
        let (difference, margin) = (told.abs_diff(seen.lasted), OUTAGE_MARGIN + seen.unseen);
        ensure!(difference <= margin, "clients have seen an outage of {seen:?}, more than {margin:?} from {record}");
        ensure!(record["basis"] == "traffic", "clients write all the time, but {record}");
        figures[1].add(difference);
    }
    println!(
        "round {round}: {} {fault:?}, {} leads, outage {} ms, the timeline is complete {} ms after the election",
        NAMES[leader],
        NAMES[next],
        seen.lasted.as_millis(),
        since_won.as_millis()
    );
    match fault {
        Fault::Kill => cluster.spawn(leader)?,
        Fault::Pause => cluster.resume(leader)?,
        Fault::HandOver => {}
    }
    cluster.wait_until_ready(leader)
}

/// Waits until all these nodes tell the whole story of the election of group 0 behind a term. Returns its record.
fn complete(cluster: &Cluster, asked: &[usize], gone: &[&str], term: u64, fault: Fault) -> Result<Value> {
    let mut record = Value::Null;
    wait_until("a timeline that is complete on every node", || {
        let told: Vec<Option<Value>> = asked
            .iter()
            .map(|place| last_of(cluster, *place, asked, gone, term).filter(|record| is_known(record, fault)))
            .collect();
        let Some(Some(first)) = told.first() else { return Ok(false) };
        record = first.clone();
        Ok(told.iter().all(|one| one.as_ref() == Some(first)))
    })?;
    Ok(record)
}

/// The record of the last election as a node tells it, if its timeline has everything.
fn last_of(cluster: &Cluster, place: usize, asked: &[usize], gone: &[&str], term: u64) -> Option<Value> {
    let body = cluster.get(place, "/cluster/timeline?last=1&group=0").ok()?.json().ok()?;
    let told = &body["elections"][0];
    let record = &told["election"];
    let missing: Vec<&str> = body["missing"].as_array()?.iter().filter_map(Value::as_str).collect();
    let is_new = record["term"].as_u64()? > term && record["readyMs"].is_u64() && missing == gone;
    let winner = record["leader"].as_str()?;
    let events = told["events"].as_array()?;
    let has = |node: &str, name: &str| events.iter().any(|event| event["node"] == node && event["event"] == name);
    let tells = |place: &usize| match NAMES[*place] {
        node if node == winner => has(node, "raft.election.won") && has(node, "raft.leader.ready"),
        node => has(node, "raft.leader.elected") && has(node, "raft.append.first"),
    };
    (is_new && asked.iter().all(tells)).then(|| record.clone())
}

/// With writes going on, the outage is that of the writes, which the record has a moment later. While a leader is held up, so are those who
/// have sent it something.
fn is_known(record: &Value, fault: Fault) -> bool {
    fault == Fault::Pause || record["basis"] == "traffic"
}

/// How long ago a moment was that a node has told, by the clock that all of them share.
fn milliseconds_since(moment: &Value) -> Result<Duration> {
    let text = moment.as_str().with_context(|| format!("{moment} is no moment"))?;
    let number = |from: usize, to: usize| text.get(from..to).and_then(|digits| digits.parse::<u64>().ok());
    let of_day = || Some(((number(11, 13)? * 60 + number(14, 16)?) * 60 + number(17, 19)?) * 1_000 + number(20, 23)?);
    let then = of_day().with_context(|| format!("{text} is no moment"))?;
    let day = 86_400_000;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis() as u64 % day;
    Ok(Duration::from_millis((now + day - then) % day))
}

/// A line of a log that is an event.
struct Line {
    node: String,
    event: String,
    group: Option<u64>,
    term: u64,
    seq: u64,
    fields: Value,
}

/// The events in the logs of all nodes, by node in the order in which they were told.
fn parsed(scenario: &str) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for name in NAMES {
        let text = fs::read_to_string(Cluster::logs(scenario).join(name).with_extension("log"))?;
        for line in text.lines().filter(|line| line.contains("\"target\":\"raft\"")) {
            let fields: Value = serde_json::from_str(line).with_context(|| format!("{name} has logged {line}"))?;
            let Some(seq) = fields["seq"].as_u64() else { continue };
            lines.push(Line {
                node: fields["node"].as_str().with_context(|| format!("no node in {line}"))?.into(),
                event: fields["event"].as_str().with_context(|| format!("no event in {line}"))?.into(),
                group: fields["group"].as_u64(),
                term: fields["term"].as_u64().unwrap_or_default(),
                seq,
                fields,
            });
        }
    }
    Ok(lines)
}

/// Compares what the logs have with what the nodes tell. Returns how many lines at info an election takes.
fn judge_story(cluster: &Cluster, groups: u32) -> Result<Counts> {
    let lines = parsed("elections")?;
    let won: BTreeMap<Key, &Line> = lines
        .iter()
        .filter(|line| line.event == "raft.election.won")
        .map(|line| ((line.group.unwrap_or_default(), line.term), line))
        .collect();
    ensure!(!won.is_empty(), "the logs have no election");
    won.iter().try_for_each(|(key, line)| judge_winner(&lines, *key, line))?;
    let pages =
        (0..NAMES.len()).map(|place| cluster.get(place, "/cluster/elections")?.json()).collect::<Result<Vec<_>>>()?;
    ensure!(pages.iter().all(|page| *page == pages[0]), "the nodes do not remember the same elections");
    let records = pages[0]["elections"].as_array().context("a list of elections")?;
    let keys: Vec<Key> = records.iter().map(|record| (number(&record["group"]), number(&record["term"]))).collect();
    let distinct: BTreeSet<Key> = keys.iter().copied().collect();
    ensure!(distinct.len() == keys.len(), "an election has two records");
    // Who is killed as soon as it has won has nobody who remembers that.
    let elected: BTreeSet<Key> = lines
        .iter()
        .filter(|line| line.event == "raft.leader.ready")
        .map(|line| (line.group.unwrap_or_default(), line.term))
        .collect();
    ensure!(
        elected.is_subset(&distinct),
        "elections without a record: {:?}",
        elected.difference(&distinct).collect::<Vec<_>>()
    );
    for record in records {
        let key = (number(&record["group"]), number(&record["term"]));
        let line = won.get(&key).with_context(|| format!("no log tells of the election of {key:?}"))?;
        ensure!(record["leader"] == line.node.as_str(), "{record}, but {} has won", line.node);
        let votes = record["votes"].as_array().into_iter().flatten();
        let mut granted: Vec<&Value> = votes.filter(|vote| vote["granted"] == true).map(|vote| &vote["node"]).collect();
        granted.sort_by_key(|name| name.to_string());
        ensure!(json!(granted) == line.fields["votesFrom"], "{record}, but the log has {}", line.fields);
    }
    judge_timelines(cluster, groups)
}

/// The winner of an election tells its story in order.
fn judge_winner(lines: &[Line], (group, term): Key, won: &Line) -> Result<()> {
    let own: Vec<&Line> = lines.iter().filter(|line| line.node == won.node && line.group == Some(group)).collect();
    let place = |event: &str| {
        let of_term = |line: &&Line| line.event == event && line.term == term;
        own.iter().filter(|line| of_term(line)).map(|line| line.seq).min()
    };
    let names = [
        "raft.candidate",
        "raft.election.won",
        "raft.role",
        "raft.replication.started",
        "raft.leader.elected",
        "raft.leader.ready",
    ];
    // Its role has changed before, too: to that of a candidate.
    let leads = own.iter().find(|line| line.event == "raft.role" && line.term == term && line.fields["to"] == "leader");
    let seqs: Vec<Option<u64>> =
        names.iter().map(|name| if *name == "raft.role" { leads.map(|line| line.seq) } else { place(name) }).collect();
    let told: Vec<u64> = seqs.iter().flatten().copied().collect();
    // One that is killed in between has told a part of it.
    ensure!(told.is_sorted() && seqs[0].is_some(), "{} tells of term {term}: {names:?} at {seqs:?}", won.node);
    if own.iter().any(|line| line.event == "raft.candidate" && line.term == term && line.fields["cause"] == "timeout") {
        let before = |name: &str| {
            own.iter()
                .filter(|line| line.event == name && line.seq < seqs[0].unwrap_or_default())
                .map(|line| line.seq)
                .max()
        };
        let lead = ["raft.heartbeat.timeout", "raft.prevote.started", "raft.prevote.won"].map(before);
        ensure!(
            lead.iter().all(Option::is_some) && lead.is_sorted(),
            "{} stands for term {term} at {lead:?}",
            won.node
        );
    }
    Ok(())
}

/// How many lines elections take.
struct Counts(Vec<usize>);

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [median, most] = [self.0.len() / 2, self.0.len().saturating_sub(1)].map(|place| self.0.get(place).copied());
        write!(
            f,
            "median {}, at most {}, of {} elections",
            median.unwrap_or_default(),
            most.unwrap_or_default(),
            self.0.len()
        )
    }
}

/// All nodes tell the same timeline, in which nothing stands before its cause.
fn judge_timelines(cluster: &Cluster, groups: u32) -> Result<Counts> {
    let mut counts = Vec::new();
    for group in 0..groups {
        let path = format!("/cluster/timeline?group={group}");
        let pages = (0..NAMES.len()).map(|place| cluster.get(place, &path)?.json()).collect::<Result<Vec<_>>>()?;
        ensure!(pages.iter().all(|page| *page == pages[0]), "the nodes do not tell the same timeline of group {group}");
        ensure!(pages[0]["missing"] == json!([]), "{} are missing", pages[0]["missing"]);
        for told in pages[0]["elections"].as_array().into_iter().flatten() {
            let (record, term) = (&told["election"], number(&told["term"]));
            let events: Vec<&Value> = told["events"].as_array().into_iter().flatten().collect();
            let place = |is: &dyn Fn(&Value) -> bool| events.iter().position(|event| is(event));
            let winner = |name: &'static str| {
                move |event: &Value| {
                    event["event"] == name && event["term"] == term && event["node"] == record["leader"]
                }
            };
            let (candidate, won) = (place(&winner("raft.candidate")), place(&winner("raft.election.won")));
            ensure!(candidate < won, "term {term} of group {group} was won before it was stood for");
            for vote in events.iter().filter(|event| event["event"] == "raft.vote.cast" && event["pre"] == false) {
                if vote["granted"] == true && vote["for"] == record["leader"] && vote["inTerm"] == term {
                    let cast = events.iter().position(|event| event == vote);
                    ensure!(candidate < cast, "{} votes in term {term} before it is asked", vote["node"]);
                }
            }
            let first = place(&|event| event["event"] == "raft.append.first" && event["term"] == term);
            ensure!(first.is_none() || won < first, "somebody follows in term {term} before it is won");
            if !record.is_null() {
                // Whoever comes back later tells the end of it once more.
                let started = |node: &Value| {
                    events.iter().any(|event| event["event"] == "raft.started" && event["node"] == *node)
                };
                let shown = |event: &&&Value| event["level"] != "debug" && !started(&event["node"]);
                counts.push(events.iter().filter(shown).count());
            }
        }
    }
    counts.sort_unstable();
    Ok(Counts(counts))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}
