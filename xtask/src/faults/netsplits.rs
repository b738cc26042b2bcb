//! Connections between nodes are cut, slowed down and ended, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base::rng::SplitMix;
use serde_json::json;

use crate::faults::cluster::{Cluster, NAMES, NODES, wait_until};
use crate::faults::figures::{Figures, Watch};
use crate::faults::links::{Links, Way};
use crate::faults::{Run, calm};
use crate::load::Shared;

/// How long a node is isolated: long enough for connections to be given up, and for several elections.
const ISOLATED: Duration = Duration::from_millis(3_500);

/// How long other faults last, in a short run and in a long one.
const CUT: [Duration; 2] = [Duration::from_millis(800), Duration::from_secs(3)];

/// Added to every way.
const DELAY: Duration = Duration::from_millis(20);

/// Between two ends of connections.
const ENDS_EVERY: Duration = Duration::from_millis(150);

/// Cuts in turn what can be cut.
pub(super) fn links(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "links", true)?;
    let mut rng = run.rng();
    let (steps, outages) = run.under_load(&mut cluster, |cluster, shared| {
        let [mut steps, mut outages] = [(); 2].map(|()| Figures::default());
        for round in 1..=run.rounds(1, 10) {
            calm(&mut rng);
            let (step, outage) = isolated_leader(cluster, shared)?;
            println!(
                "round {round}: leader isolated, stepped down after {} ms, first write elsewhere after {} ms",
                step.as_millis(),
                outage.as_millis()
            );
            steps.add(step);
            outages.add(outage);
            for (way, lasts) in [(Way::Held, ISOLATED), (Way::Closed, ISOLATED / 2)] {
                isolated_follower(cluster, way, lasts)?;
                println!("round {round}: follower isolated ({way:?}), back in the same term");
            }
            let cut = CUT[usize::from(!run.quick)];
            one_way(cluster, shared, cut, round)?;
            all_ways(cluster, shared, cut, &mut rng, round)?;
        }
        Ok((steps, outages))
    })?;
    println!("isolation of the leader until it has stepped down: {steps}");
    println!("isolation of the leader until the first acknowledged write elsewhere: {outages}");
    Ok(())
}

fn links_of(cluster: &Cluster) -> Result<&Links> {
    cluster.links.as_ref().context("the nodes have proxies between them")
}

/// An isolated leader steps down and says so; the others go on.
fn isolated_leader(cluster: &Cluster, shared: &Shared) -> Result<(Duration, Duration)> {
    cluster.wait_until_whole()?;
    let leader = cluster.leader()?;
    let mut watch = Watch::begin(shared);
    let isolated = Instant::now();
    links_of(cluster)?.set_around(leader, Way::Held);
    wait_until("an isolated leader that has stepped down", || {
        Ok(cluster.view(leader).is_some_and(|view| view.role != "leader"))
    })?;
    let step = isolated.elapsed();
    let answer =
        cluster.post(leader, "/v1/codeq/tasks", &json!({ "command": "load-0", "payload": { "number": 0 } }))?;
    let body = answer.json()?;
    let says = body["code"].as_str().unwrap_or_default();
    ensure!(
        answer.status == 503 && body["definite"] == true && matches!(says, "no_leader" | "isolated"),
        "{} is isolated and answered a creation with {answer}",
        NAMES[leader]
    );
    let ready = cluster.get(leader, "/readyz")?;
    ensure!(ready.status == 503, "{} is isolated and ready: {ready}", NAMES[leader]);
    // Its own load has gone elsewhere by now; only the others can acknowledge anything.
    let outage = watch.first_after(isolated)?;
    std::thread::sleep(ISOLATED.saturating_sub(isolated.elapsed()));
    let others = Cluster::others(leader);
    let next = cluster.leader_of(&others)?;
    let term = cluster.view(next).context("the leader answers")?.term;
    links_of(cluster)?.set_all(Way::Open);
    cluster.wait_until_whole()?;
    stays(cluster, next, term, "an isolated leader came back")?;
    Ok((step, outage))
}

/// An isolated follower does not rise in term, and causes no election when it comes back.
fn isolated_follower(cluster: &Cluster, way: Way, lasts: Duration) -> Result<()> {
    let leader = cluster.leader()?;
    let term = cluster.view(leader).context("the leader answers")?.term;
    let follower = Cluster::others(leader)[0];
    links_of(cluster)?.set_around(follower, way);
    std::thread::sleep(lasts);
    let alone = cluster.view(follower).context("an isolated node answers")?;
    ensure!(alone.term == term, "{} is isolated and has gone from term {term} to {}", NAMES[follower], alone.term);
    links_of(cluster)?.set_all(Way::Open);
    cluster.wait_until_whole()?;
    stays(cluster, leader, term, "an isolated follower came back")
}

fn stays(cluster: &Cluster, leader: usize, term: u64, when: &str) -> Result<()> {
    let after = cluster.view(leader).context("the leader answers")?;
    ensure!(after.ready && after.term == term, "{} led in term {term} when {when}; now it is {after:?}", NAMES[leader]);
    Ok(())
}

/// Each way between leader and followers by itself: somebody goes on acknowledging.
fn one_way(cluster: &Cluster, shared: &Shared, lasts: Duration, round: u32) -> Result<()> {
    type Cut = (&'static str, fn([usize; NODES]) -> Vec<(usize, usize)>);
    let cuts: [Cut; 4] = [
        ("a follower does not hear the leader", |[leader, first, _]| vec![(leader, first)]),
        ("the leader does not hear a follower", |[leader, first, _]| vec![(first, leader)]),
        ("nobody hears the leader", |[leader, first, second]| vec![(leader, first), (leader, second)]),
        ("the leader hears nobody", |[leader, first, second]| vec![(first, leader), (second, leader)]),
    ];
    for (what, ways) in cuts {
        let leader = cluster.leader()?;
        let term = cluster.view(leader).context("the leader answers")?.term;
        let [first, second] = Cluster::others(leader);
        let cut = Instant::now();
        for (from, to) in ways([leader, first, second]) {
            links_of(cluster)?.set(from, to, Way::Held);
        }
        let mut watch = Watch::begin(shared);
        let write = watch.first_after(cut)?;
        std::thread::sleep(lasts.saturating_sub(cut.elapsed()));
        let gap = watch.longest_gap(cut, Instant::now());
        links_of(cluster)?.set_all(Way::Open);
        cluster.wait_until_whole()?;
        let next = cluster.leader()?;
        let after = cluster.view(next).context("the leader answers")?.term;
        println!(
            "round {round}: {what}: first write after {} ms, longest gap {} ms, term {term} to {after}",
            write.as_millis(),
            gap.as_millis()
        );
    }
    Ok(())
}

/// Slow ways, and ways that break again and again.
fn all_ways(cluster: &Cluster, shared: &Shared, lasts: Duration, rng: &mut SplitMix, round: u32) -> Result<()> {
    let links = links_of(cluster)?;
    let leader = cluster.leader()?;
    let term = cluster.view(leader).context("the leader answers")?.term;
    let mut watch = Watch::begin(shared);
    let begun = Instant::now();
    links.set_all(Way::Delayed(DELAY));
    std::thread::sleep(lasts);
    let slow = watch.rate(begun, Instant::now());
    links.set_all(Way::Open);
    cluster.wait_until_whole()?;
    stays(cluster, leader, term, "every way was slow")?;

    let begun = Instant::now();
    while begun.elapsed() < lasts {
        let from = rng.below(NODES as u64) as usize;
        let to = (from + 1) % NODES;
        links.set(from, to, Way::Closed);
        std::thread::sleep(ENDS_EVERY / 3);
        links.set(from, to, Way::Open);
        std::thread::sleep(ENDS_EVERY * 2 / 3);
    }
    let breaking = watch.rate(begun, Instant::now());
    cluster.wait_until_whole()?;
    println!(
        "round {round}: {} ms more on every way, {slow:.0} writes/s; connections ended every {} ms, {breaking:.0} writes/s",
        DELAY.as_millis(),
        ENDS_EVERY.as_millis()
    );
    Ok(())
}
