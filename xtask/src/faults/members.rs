//! Members come and go while there is load: disks that are lost one after the other, changes at random with kills in between, and leadership
//! that is handed over again and again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base::rng::SplitMix;
use serde_json::{Value, json};

use crate::faults::cluster::{Cluster, NAMES, NODES, wait_until};
use crate::faults::figures::{Figures, Watch};
use crate::faults::{Run, calm};
use crate::http::Client;

/// Exit status of a node that is no member any more.
const RETIRED: i32 = 7;

/// What a transfer under load should take at most.
const TRANSFER_AIM: Duration = Duration::from_millis(300);

/// Each node in turn loses its disk and comes back under its name.
pub(super) fn wipe(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "wipe", false)?;
    let mut rng = run.rng();
    let took = run.under_load(&mut cluster, |cluster, _| {
        let (mut took, mut ids) = (Figures::default(), BTreeSet::new());
        for round in 0..run.rounds(2, 10) {
            let place = round as usize % NODES;
            let [witness, _] = Cluster::others(place);
            cluster.wait_until_whole()?;
            calm(&mut rng);
            ids.extend(members(cluster, witness)?.into_iter().map(|(_, id, _)| id));
            cluster.kill(place)?;
            cluster.wipe(place)?;
            let begun = Instant::now();
            cluster.spawn(place)?;
            wait_until("a node that votes again", || {
                // Nothing is known of voters while there is no leader.
                let now = members(cluster, witness).unwrap_or_default();
                let voters = now.iter().filter(|(_, _, votes)| *votes).count();
                ensure!(now.is_empty() || voters == NODES, "{voters} voters: {now:?}");
                Ok(cluster.view(place).is_some_and(|view| view.voter))
            })?;
            let after = begun.elapsed();
            cluster.wait_until_whole()?;
            let now = members(cluster, witness)?;
            ensure!(now.len() == NODES, "{now:?}");
            let own = now.iter().find(|(name, _, _)| name == NAMES[place]).context("it is a member")?;
            ensure!(ids.insert(own.1.clone()), "{} has an id that was there before", NAMES[place]);
            println!("round {}: {} wiped, votes again after {} ms", round + 1, NAMES[place], after.as_millis());
            took.add(after);
        }
        Ok(took)
    })?;
    println!("start of an empty node until it votes: {took}");
    Ok(())
}

/// Name, id and vote of each member, as a node sees them.
fn members(cluster: &Cluster, place: usize) -> Result<Vec<(String, String, bool)>> {
    let nodes = cluster.get(place, "/cluster/nodes")?.json()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = nodes["nodes"].as_array().context("it lists the members")?;
    Ok(nodes.iter().map(|node| (text(&node["name"]), text(&node["id"]), node["voter"] == true)).collect())
}

/// What is done to members, at random.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Removed; it comes back with an empty directory.
    Remove,
    /// Its vote is taken and given back.
    Demote,
    /// It leads.
    Transfer,
    /// The leader gives every group away.
    StepDown,
    /// Removed while it is down. It hears of that when it starts, and comes back with an empty directory.
    RemoveDead,
    /// Another one is down: what would cost the majority is refused.
    Risk,
}

const CHANGES: [Change; 6] =
    [Change::Remove, Change::Demote, Change::Transfer, Change::StepDown, Change::RemoveDead, Change::Risk];

/// Changes of members at random, with kills.
pub(super) fn members_at_random(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "members", false)?;
    let mut rng = run.rng();
    let outages = run.under_load(&mut cluster, |cluster, shared| {
        let (mut outages, mut gone) = (Figures::default(), BTreeSet::new());
        // Each once, and then at random.
        let rounds = run.rounds(CHANGES.len() as u32, 100) as usize;
        for round in 0..rounds {
            cluster.wait_until_whole()?;
            calm(&mut rng);
            let change =
                CHANGES.get(round).copied().unwrap_or_else(|| CHANGES[rng.below(CHANGES.len() as u64) as usize]);
            let place = rng.below(NODES as u64) as usize;
            let mut watch = Watch::begin(shared);
            let begun = Instant::now();
            make(cluster, change, place, &mut gone).with_context(|| format!("{change:?} of {}", NAMES[place]))?;
            cluster.wait_until_whole()?;
            watch.first_after(Instant::now())?;
            let gap = watch.longest_gap(begun, Instant::now());
            let back: Vec<String> = members(cluster, 0)?.into_iter().map(|(_, id, _)| id).collect();
            ensure!(back.iter().all(|id| !gone.contains(id)), "one that was removed is back: {back:?}");
            println!("round {}: {change:?} of {}, longest gap {} ms", round + 1, NAMES[place], gap.as_millis());
            outages.add(gap);
        }
        Ok(outages)
    })?;
    println!("longest gap between acknowledged writes, while members change: {outages}");
    Ok(())
}

fn make(cluster: &mut Cluster, change: Change, place: usize, gone: &mut BTreeSet<String>) -> Result<()> {
    let [other, third] = Cluster::others(place);
    let name = NAMES[place];
    match change {
        Change::Remove => {
            let id = id_of(cluster, other, name)?;
            act(cluster, other, "DELETE", &format!("/cluster/members/{name}"), &Value::Null)?;
            gone.insert(id);
            come_back(cluster, place)
        }
        Change::Demote => {
            act(cluster, other, "POST", &format!("/cluster/members/{name}/demote"), &json!({}))?;
            act(cluster, third, "POST", &format!("/cluster/members/{name}/promote"), &json!({}))
        }
        Change::Transfer => act(cluster, other, "POST", "/cluster/leader/transfer", &json!({ "to": name })),
        Change::StepDown => act(cluster, other, "POST", "/cluster/leader/step-down", &json!({ "holdMs": 500 })),
        Change::RemoveDead => {
            let id = id_of(cluster, other, name)?;
            cluster.kill(place)?;
            cluster.leader_of(&[other, third])?;
            act(cluster, other, "DELETE", &format!("/cluster/members/{name}"), &Value::Null)?;
            gone.insert(id);
            // With the data of a member that is none any more.
            cluster.spawn(place)?;
            come_back(cluster, place)
        }
        Change::Risk => {
            cluster.kill(place)?;
            cluster.leader_of(&[other, third])?;
            wait_until("a refusal with the numbers", || {
                // Until it is taken for dead, two of two would be there.
                let check = cluster.get(other, &format!("/cluster/check/quorum?node={}", NAMES[third]))?;
                Ok(check.status == 409)
            })?;
            let refused = ask(cluster, other, "DELETE", &format!("/cluster/members/{}", NAMES[third]), &Value::Null)?;
            ensure!(refused.0 == 409 && refused.1["code"] == "quorum_guard", "answered with {refused:?}");
            cluster.spawn(place)
        }
    }
}

fn id_of(cluster: &Cluster, place: usize, name: &str) -> Result<String> {
    let members = members(cluster, place)?;
    Ok(members.into_iter().find(|(of, _, _)| of == name).with_context(|| format!("{name} is a member"))?.1)
}

/// A node that was removed ends, never starts again with what it has, and comes back empty.
fn come_back(cluster: &mut Cluster, place: usize) -> Result<()> {
    for _ in 0..2 {
        let (status, printed) = cluster.wait_until_ended(place)?;
        ensure!(status == Some(RETIRED), "{} ended with {status:?}:\n{printed}", NAMES[place]);
        cluster.spawn(place)?;
    }
    let (status, printed) = cluster.wait_until_ended(place)?;
    ensure!(status == Some(RETIRED), "{} ended with {status:?}:\n{printed}", NAMES[place]);
    cluster.wipe(place)?;
    cluster.spawn(place)
}

fn ask(cluster: &Cluster, place: usize, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = Client::connect(cluster.addr(place))?.send(method, path, &body)?;
    Ok((answer.status, answer.json().unwrap_or_default()))
}

/// Has something done; where just then nobody leads, or other changes are under way, it is asked for again.
fn act(cluster: &Cluster, place: usize, method: &str, path: &str, body: &Value) -> Result<()> {
    let mut last = (0, Value::Null);
    let done = wait_until("an action that is done", || {
        last = ask(cluster, place, method, path, body)?;
        // Where the answer got lost, the first try may have done it.
        let is_gone = method == "DELETE" && last.0 == 404;
        ensure!(last.0 == 200 || is_gone || [409, 503, 504].contains(&last.0), "answered with {last:?}");
        Ok(last.0 == 200 || is_gone)
    });
    done.with_context(|| format!("{method} {path} was answered with {last:?}"))
}

/// Leadership is handed over by hand, again and again; then the leader steps down and stays out. Returns how long each
/// transfer took.
pub(super) fn transfers(run: &Run) -> Result<Vec<Duration>> {
    let mut cluster = Cluster::new(run.codeq(), "transfers", false)?;
    let mut rng = run.rng();
    let rounds = run.rounds(20, 1000);
    let (took, gaps) = run.under_load(&mut cluster, |cluster, shared| {
        cluster.wait_until_whole()?;
        let [mut took, mut gaps] = [(); 2].map(|()| Figures::default());
        let mut leader = cluster.leader()?;
        for round in 1..=rounds {
            let to = Cluster::others(leader)[rng.below(2) as usize];
            let asked = rng.below(NODES as u64) as usize;
            let mut watch = Watch::begin(shared);
            let begun = Instant::now();
            let done = ask(cluster, asked, "POST", "/cluster/leader/transfer", &json!({ "to": NAMES[to] }))?;
            let after = begun.elapsed();
            ensure!(done.0 == 200 && done.1["leader"] == NAMES[to], "round {round}: answered with {done:?}");
            watch.first_after(begun)?;
            gaps.add(watch.longest_gap(begun, Instant::now()));
            took.add(after);
            if after > TRANSFER_AIM {
                println!("round {round}: {} to {} took {} ms", NAMES[leader], NAMES[to], after.as_millis());
            }
            leader = to;
            pause(&mut rng);
        }
        stays_out(cluster)?;
        Ok((took, gaps))
    })?;
    println!("{} of {rounds} transfers took more than {} ms", took.longer_than(TRANSFER_AIM), TRANSFER_AIM.as_millis());
    println!("a transfer under load: {took}");
    println!("longest gap between acknowledged writes, a transfer: {gaps}");
    Ok(took.into_all())
}

/// Between two transfers: so short that a leader has hardly begun.
fn pause(rng: &mut SplitMix) {
    std::thread::sleep(Duration::from_millis(rng.below(40)));
}

/// A leader that stepped down is not elected before its time, also when the one that followed is killed.
fn stays_out(cluster: &mut Cluster) -> Result<()> {
    let former = cluster.leader()?;
    act(cluster, former, "POST", "/cluster/leader/step-down", &json!({ "holdMs": 30_000 }))?;
    let next = cluster.leader_of(&Cluster::others(former))?;
    cluster.kill(next)?;
    let places: Vec<usize> = (0..NODES).filter(|place| *place != next).collect();
    let last = cluster.leader_of(&places)?;
    ensure!(last != former, "{} leads, and was to stay out", NAMES[former]);
    println!("{} stepped down, {} was killed, {} leads", NAMES[former], NAMES[next], NAMES[last]);
    cluster.spawn(next)
}
