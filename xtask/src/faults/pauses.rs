//! Nodes are held up: the operating system goes on for them, they do not.
//!
//! A leader that was held up for longer than an election wakes up in the belief that it leads. What was sent to it meanwhile is the first
//! thing it sees, before any message of the new leader: that is the moment at which it could grant, expire and answer what is not so any more.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::faults::cluster::{Cluster, NAMES};
use crate::faults::figures::{Figures, Watch};
use crate::faults::{Run, calm};
use crate::http::{Answer, Client};

/// Seconds of the leases that the leader knows of when it is held up.
const LEASE_SECONDS: u64 = 3;

/// Seconds of leases that outlast the scenario.
const LONG_SECONDS: u64 = 120;

/// How long a leader is held up under load: longer than elections and than the leases of the load.
const LEADER_PAUSE: Duration = Duration::from_secs(4);

/// How long followers are held up.
const FOLLOWER_PAUSE: Duration = Duration::from_secs(2);

/// The same question is asked this often: each comes at another moment of the awakening.
const ASKED: usize = 8;

/// Holds up the leader, a follower, and both followers.
pub(super) fn pause(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "pause", false)?;
    let mut rng = run.rng();
    cluster.start_all()?;
    for round in 1..=run.rounds(1, 10) {
        let refused = awaken(&mut cluster)?;
        println!(
            "round {round}: the leader woke up; of {} requests {refused} were refused, none was answered with what is over",
            ASKED * 5
        );
    }
    let (leaders, one, both) = run.under_load(&mut cluster, |cluster, shared| {
        let [mut leaders, mut one, mut both] = [(); 3].map(|()| Figures::default());
        for round in 1..=run.rounds(1, 10) {
            cluster.wait_until_whole()?;
            calm(&mut rng);
            let leader = cluster.leader()?;
            let mut watch = Watch::begin(shared);
            let paused = Instant::now();
            cluster.pause(leader)?;
            let outage = watch.first_after(paused)?;
            std::thread::sleep(LEADER_PAUSE.saturating_sub(paused.elapsed()));
            cluster.resume(leader)?;
            cluster.wait_until_whole()?;
            leaders.add(outage);

            let leader = cluster.leader()?;
            let [first, second] = Cluster::others(leader);
            let term = cluster.view(leader).context("the leader answers")?.term;
            let paused = Instant::now();
            cluster.pause(first)?;
            std::thread::sleep(FOLLOWER_PAUSE);
            let gap = watch.longest_gap(paused, Instant::now());
            one.add(gap);
            cluster.resume(first)?;
            cluster.wait_until_whole()?;
            let after = cluster.view(leader).context("the leader answers")?;
            ensure!(
                after.ready && after.term == term,
                "{} led in term {term} when {} was held up; now it is {after:?}",
                NAMES[leader],
                NAMES[first]
            );

            cluster.pause(first)?;
            cluster.pause(second)?;
            std::thread::sleep(FOLLOWER_PAUSE);
            let resumed = Instant::now();
            cluster.resume(first)?;
            cluster.resume(second)?;
            let back = watch.first_after(resumed)?;
            both.add(back);
            println!(
                "round {round}: leader held up, first write after {} ms; one follower, longest gap {} ms; both, first write {} ms after they went on",
                outage.as_millis(),
                gap.as_millis(),
                back.as_millis()
            );
        }
        Ok((leaders, one, both))
    })?;
    println!("SIGSTOP of the leader until the first acknowledged write: {leaders}");
    println!("longest gap between acknowledged writes, SIGSTOP of a follower: {one}");
    println!("SIGCONT of both followers until the first acknowledged write: {both}");
    Ok(())
}

/// A grant, as a claim tells it.
struct Held {
    id: String,
    token: String,
}

/// Holds up the leader without load, lets the others go on, and asks it about all that has changed before it can know. Returns how many of
/// the requests were refused.
fn awaken(cluster: &mut Cluster) -> Result<usize> {
    cluster.wait_until_whole()?;
    let leader = cluster.leader()?;
    let witness = Cluster::others(leader)[0];
    let ended = create(cluster, leader, "ended")?;
    create(cluster, leader, "waiting")?;
    create(cluster, leader, "lapsed")?;
    create(cluster, leader, "extended")?;
    let extended = claim(cluster, leader, "extended", LEASE_SECONDS, 1)?;
    let lapsed = claim(cluster, leader, "lapsed", LEASE_SECONDS, 1)?;
    cluster.pause(leader)?;

    cluster.leader_of(&Cluster::others(leader))?;
    let heartbeat = json!({ "leaseToken": extended.token, "extendSeconds": LONG_SECONDS });
    done(&cluster.post(witness, &format!("/v1/codeq/tasks/{}/heartbeat", extended.id), &heartbeat)?)?;
    let held = claim(cluster, witness, "ended", LONG_SECONDS, 1)?;
    complete(cluster, witness, &held)?;
    let waiting = claim(cluster, witness, "waiting", LONG_SECONDS, 1)?;
    // The new leader waits for the lease to end, and for the backoff behind it.
    let again = claim(cluster, witness, "lapsed", LONG_SECONDS, 2)?;

    let addr = cluster.addr(leader);
    let claims = |command: &str| json!({ "commands": [command], "leaseSeconds": LONG_SECONDS }).to_string();
    let late = json!({ "status": "COMPLETED", "result": {}, "leaseToken": lapsed.token }).to_string();
    let questions = [
        ("GET", format!("/v1/codeq/tasks/{ended}"), String::new()),
        ("GET", format!("/v1/codeq/tasks/{ended}/result"), String::new()),
        ("POST", "/v1/codeq/tasks/claim".to_owned(), claims("waiting")),
        ("POST", "/v1/codeq/tasks/claim".to_owned(), claims("lapsed")),
        ("POST", format!("/v1/codeq/tasks/{}/result", lapsed.id), late),
    ];
    let answers = ask_and(addr, &questions, || cluster.resume(leader))?;
    let mut refused = 0;
    for (place, answer) in answers {
        let (method, path, _) = &questions[place];
        let body = if answer.body.is_empty() { Value::Null } else { answer.json()? };
        let new = match place {
            0 => body["status"] == "COMPLETED",
            1 => body["task"]["status"] == "COMPLETED",
            2 | 3 => answer.status == 204,
            _ => answer.status == 409,
        };
        let is_refusal = matches!(answer.status, 503 | 504);
        refused += usize::from(is_refusal);
        ensure!(new || is_refusal, "{} woke up and answered {method} {path} with {answer}", NAMES[leader]);
    }

    cluster.wait_until_whole()?;
    // Neither has it ended leases, nor given anything out: every grant of the others is the present one.
    for held in [&extended, &waiting, &again] {
        complete(cluster, leader, held)?;
    }
    Ok(refused)
}

/// Sends each request several times on connections of their own, does something, and takes the answers, each with the place of its request.
fn ask_and(
    addr: SocketAddr,
    questions: &[(&'static str, String, String)],
    then: impl FnOnce() -> Result<()>,
) -> Result<Vec<(usize, Answer)>> {
    std::thread::scope(|scope| {
        let mut asking = Vec::new();
        for (place, (method, path, body)) in questions.iter().enumerate() {
            for _ in 0..ASKED {
                let mut client = Client::connect(addr)?;
                asking.push(scope.spawn(move || anyhow::Ok((place, client.send(method, path, body)?))));
            }
        }
        // As good as sent: nobody takes them from the operating system yet.
        std::thread::sleep(Duration::from_millis(100));
        then()?;
        asking.into_iter().map(|asked| asked.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
    })
}

fn create(cluster: &Cluster, place: usize, command: &str) -> Result<String> {
    let answer = cluster.post(place, "/v1/codeq/tasks", &json!({ "command": command, "payload": {} }))?;
    let body = done(&answer)?;
    Ok(body["id"].as_str().with_context(|| format!("{answer} has no id"))?.to_owned())
}

/// Waits until there is a task to claim; it must be its attempt of that number.
fn claim(cluster: &Cluster, place: usize, command: &str, lease_seconds: u64, attempt: u64) -> Result<Held> {
    let body = json!({ "commands": [command], "leaseSeconds": lease_seconds, "waitSeconds": 20 });
    let answer = cluster.post(place, "/v1/codeq/tasks/claim", &body)?;
    let task = done(&answer)?;
    ensure!(task["attempts"] == attempt, "attempt {attempt} of {command} is {answer}");
    let text = |name: &str| Some(task[name].as_str()?.to_owned());
    let held = || Some(Held { id: text("id")?, token: text("leaseToken")? });
    held().with_context(|| format!("a claim was answered with {answer}"))
}

fn complete(cluster: &Cluster, place: usize, held: &Held) -> Result<()> {
    let body = json!({ "status": "COMPLETED", "result": {}, "leaseToken": held.token });
    done(&cluster.post(place, &format!("/v1/codeq/tasks/{}/result", held.id), &body)?)?;
    Ok(())
}

fn done(answer: &Answer) -> Result<Value> {
    ensure!((200..300).contains(&answer.status) && !answer.body.is_empty(), "answered with {answer}");
    answer.json()
}
