//! The page that started codeQ, step by step: create at any node, read at all three, claim at a second, complete at a third, stop the leader,
//! go on, start it again; and what its readers try next.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::http::{Answer, Client};
use crate::walk::nodes::{Driver, NAMES, Nodes, Process, STOP_MAX, allowed, eventually, free_ports, send_as, slower};
use crate::walk::page::Page;
use crate::walk::{
    READY_MAX, Row, STATUS, Skip, Skipped, TASKS, bad_config, expect, has, list, number, text, walk_rows,
};

/// Nodes with everything that has happened to them.
struct Story {
    nodes: Nodes,
    /// How often a create and its reads are repeated.
    repeats: usize,
    /// The task of the page.
    task: String,
    /// The node that was stopped while it led.
    stopped: usize,
    /// Who leads since then, and in which term.
    successor: (usize, u64),
    /// Claims that wait while leaders go.
    waiting: Vec<Waiting>,
    /// What they were told.
    told: Vec<String>,
}

struct Waiting {
    place: usize,
    answer: JoinHandle<Result<Answer>>,
}

/// Walks through the page.
///
/// # Errors
/// A row does not show what it must.
pub(crate) fn walk(codeq: &Path, long: bool, driver: Driver) -> Result<Skipped> {
    let mut story = Story {
        nodes: Nodes::of(Page::Raft, driver, codeq, "walk-cq")?,
        repeats: if long { 1000 } else { 200 },
        task: String::new(),
        stopped: 0,
        successor: (0, 0),
        waiting: Vec::new(),
        told: Vec::new(),
    };
    walk_rows("codeQ's compose page", ROWS, &mut story)
}

const ROWS: &[Row<Story>] = &[
    Row { number: "CQ1", command: "docker compose up -d", run: up },
    Row { number: "CQ2", command: "docker compose logs", run: logs },
    Row { number: "CQ3", command: "docker compose up -d --wait", run: up_and_wait },
    Row { number: "CQ4", command: "curl :8080/v1/codeq/raft/status", run: status },
    Row {
        number: "CQ5",
        command: "for P in 8080 8081 8082; curl :$P/v1/codeq/raft/status | jq .leaderID",
        run: leader_ids,
    },
    Row { number: "CQ6", command: "the same without a token, as a producer, as a worker", run: tokens },
    Row { number: "CQ7", command: "curl -X POST :8081/v1/codeq/tasks, without -L", run: create },
    Row {
        number: "CQ8",
        command: "curl :808{0,1,2}/v1/codeq/tasks/$TASK_ID | jq .status, again and again",
        run: read_everywhere,
    },
    Row { number: "CQ9", command: "curl -X POST :8082/v1/codeq/tasks/claim", run: claim },
    Row { number: "CQ10", command: "curl -X POST :8080/v1/codeq/tasks/$TASK_ID/result", run: complete },
    Row { number: "CQ11", command: "docker compose stop $LEADER", run: stop_leader },
    Row { number: "CQ12", command: "curl :8081/v1/codeq/raft/status | jq .leaderID", run: successor },
    Row { number: "CQ13", command: "create at 8081, claim at 8082, result at 8081", run: go_on },
    Row { number: "CQ14", command: "docker compose start $LEADER", run: start_again },
    Row {
        number: "CQ15",
        command: "100 tasks, 20 of them claimed, 20 delayed; docker compose kill $LEADER; drain",
        run: kill_leader,
    },
    Row {
        number: "CQ16",
        command: "claim at one node, kill the leader, result to the third, twice",
        run: result_to_the_third,
    },
    Row { number: "CQ17", command: "claims that waited meanwhile", run: waiting_claims },
    Row { number: "CQ21", command: "numShards 2 on data of 1", run: other_shards },
    Row { number: "CQ23", command: "restart node-a; stop all, start node-b and node-c", run: restart_with_flag },
    Row { number: "CQ26", command: "every other route at a follower and at the leader", run: routes_at_a_follower },
    Row { number: "CQ27", command: "docker compose down; up -d", run: down_and_up },
    Row { number: "CQ30", command: "syncs of 100 writes; then fsyncOnCommit: false", run: durability },
    Row { number: "CQ28", command: "docker volume rm of node-c; up -d", run: one_volume_gone },
    Row { number: "CQ29", command: "docker volume rm of node-a and node-b; up -d", run: two_volumes_gone },
    Row { number: "CQ22", command: "RAFT_BOOTSTRAP=true on two, on three, on none", run: bootstrappers },
    Row { number: "CQ34", command: "docker compose down --volumes; up -d", run: down_with_volumes },
    Row {
        number: "CQ24",
        command: "curl -w '%{http_code} %{redirect_url}' -X POST ':8081/v1/codeq/tasks?redirect=true'",
        run: redirect,
    },
    Row {
        number: "CQ32",
        command: "RAFT_HEARTBEAT_MS=200 RAFT_ELECTION_MS=200 RAFT_LEADER_LEASE_MS=100; kill the leader",
        run: fast_timers,
    },
    Row { number: "CQ20", command: "numShards 4, fresh volumes", run: four_shards },
    Row {
        number: "CQ25",
        command: "CODEQ_FOLLOWER_WRITES=redirect; curl -L --location-trusted, every mutating route",
        run: redirects,
    },
    Row { number: "CQ18", command: "CODEQ_IMAGE=codeq:dev docker compose up -d", run: other_image },
    Row {
        number: "CQ18",
        command: "docker compose --profile monitoring up -d",
        run: |_| Err(Skip("its images are pulled from a registry").into()),
    },
    Row {
        number: "CQ19",
        command: "codeQ's own compose file, unedited",
        run: |_| Err(Skip("the file is codeQ's, and not in this repository; raft-cluster has its variables").into()),
    },
    Row {
        number: "CQ33",
        command: "gRPC streams of a worker and a producer through CQ15",
        run: |_| Err(Skip("there is no gRPC yet").into()),
    },
    Row { number: "CQ31", command: "settings that are refused, and RAFT_MUX_ENABLED=false", run: refused_settings },
];

fn up(story: &mut Story) -> Result<String> {
    story.nodes.up()?;
    for place in 0..NAMES.len() {
        eventually(Duration::from_secs(5), || {
            let answer = story.nodes.get(place, "/healthz")?;
            ensure!(answer.status == 200 && answer.body == b"ok", "{answer}");
            Ok(())
        })?;
    }
    let data = match story.nodes.project() {
        None => "each with a folder for its data".into(),
        Some(project) => {
            let volumes = project.volumes()?;
            ensure!(volumes.len() == 2 * NAMES.len(), "{volumes:?}");
            format!("{} volumes", volumes.len())
        }
    };
    Ok(format!("{} run, {data}", NAMES.join(", ")))
}

/// Log lines of an election come within this after the third node is up.
const ELECTED_MAX: Duration = Duration::from_secs(1);

/// In containers: a name is known only when its container runs, and a look-up that failed is repeated a little later.
const ELECTED_IN_CONTAINERS_MAX: Duration = Duration::from_secs(2);

fn logs(story: &mut Story) -> Result<String> {
    let begun = Instant::now();
    let longest = match story.nodes.driver() {
        Driver::Process => ELECTED_MAX,
        Driver::Docker => ELECTED_IN_CONTAINERS_MAX,
    };
    let left = || longest.saturating_sub(begun.elapsed() / slower());
    story.nodes.logged(0, "elected leader node-a", left())?;
    story.nodes.logged(1, "received append entries", left())?;
    story.nodes.logged(2, "received append entries", left())?;
    Ok(format!("elected and followed after {} ms", begun.elapsed().as_millis()))
}

fn up_and_wait(story: &mut Story) -> Result<String> {
    let took = story.nodes.up_and_wait(READY_MAX)?;
    story.nodes.ready(&[0, 1, 2], Duration::ZERO)?;
    Ok(format!("three ready after {} ms more", took.as_millis()))
}

fn status(story: &mut Story) -> Result<String> {
    let status = story.nodes.page(0, STATUS)?;
    has(&status, &["enabled", "leaderID", "numGroups", "peers", "groups", "clusterId", "term", "quorum"])?;
    ensure!(status["enabled"] == true && status["leaderID"] == "node-a" && status["numGroups"] == 1, "{status}");
    let peers = list(&status["peers"])?;
    for (place, peer) in peers.iter().enumerate() {
        has(peer, &["id", "bindAddr", "httpAddr", "publicUrl", "voter", "healthy", "isLeader"])?;
        ensure!(peer["id"] == NAMES[place] && peer["publicUrl"] == story.nodes.public_url(place), "{peer}");
        ensure!(peer["httpAddr"] == format!("localhost:{}", story.nodes.http(place).port()), "{peer}");
        ensure!(peer["bindAddr"] == story.nodes.peer(place), "{peer}");
        ensure!(peer["voter"] == true && peer["healthy"] == true && peer["isLeader"] == (place == 0), "{peer}");
    }
    let groups = list(&status["groups"])?;
    ensure!(peers.len() == 3 && groups.len() == 1, "{status}");
    let fields =
        ["shardIdx", "isLeader", "selfId", "selfAddr", "leaderId", "leaderAddr", "leaderHTTPAddr", "hasLeader"];
    has(&groups[0], &fields)?;
    has(&groups[0], &["term", "commitIndex", "appliedIndex", "lag"])?;
    ensure!(groups[0]["leaderHTTPAddr"] == story.nodes.public_url(0), "{}", groups[0]);
    Ok("leaderID node-a, three peers, one group, every field".into())
}

fn leader_ids(story: &mut Story) -> Result<String> {
    let ids = all(|place| Ok(story.nodes.page(place, STATUS)?["leaderID"].clone()))?;
    ensure!(ids.iter().all(|id| *id == "node-a"), "{ids:?}");
    Ok(ids.iter().map(Value::to_string).collect::<Vec<_>>().join(" "))
}

/// The tokens of the page are good for both sides, so a node of its own has others.
fn tokens(story: &mut Story) -> Result<String> {
    let page = Nodes::new(story.nodes.codeq(), "walk-tokens")?;
    let mut variables = page.variables(0).clone();
    variables.retain(|name, _| !name.starts_with("RAFT_"));
    let port = free_ports(1)?[0];
    let config =
        |token: &str| json!({ "token": token, "eventTypes": ["*"], "raw": {"tenantId": "dev-tenant"} }).to_string();
    variables.insert("PORT".into(), port.to_string());
    variables.insert("CODEQ_STORAGE".into(), "memory".into());
    variables.remove("PERSISTENCE_PROVIDER");
    variables.remove("PERSISTENCE_CONFIG");
    variables.insert("PRODUCER_AUTH_CONFIG".into(), config("a-token-of-producers"));
    variables.insert("WORKER_AUTH_CONFIG".into(), config("a-token-of-workers"));
    let _server = Process::start(story.nodes.codeq(), &["serve"], &variables)?;
    let addr = ([127, 0, 0, 1], port).into();
    let ask = |token| send_as(addr, token, "GET", STATUS, "");
    let producer = eventually(READY_MAX, || ask(Some("a-token-of-producers")))?;
    let statuses = [ask(None)?.status, producer.status, ask(Some("a-token-of-workers"))?.status];
    ensure!(statuses == [401, 200, 200], "{statuses:?}");
    Ok("401, 200, 200".into())
}

fn order(number: &str) -> Value {
    json!({"command": "PROCESS_ORDER", "payload": {"orderId": number}, "priority": 5})
}

fn create(story: &mut Story) -> Result<String> {
    let answer = story.nodes.post(1, TASKS, &order("42"))?;
    let task = expect(&answer, 202)?;
    story.task = text(&task["id"])?;
    let by = answer.header("codeq-served-by");
    ensure!(by == Some("node-a"), "served by {by:?}, and node-a leads");
    Ok(format!("202, id {}, served by node-a", story.task))
}

fn read_everywhere(story: &mut Story) -> Result<String> {
    let statuses = all(|place| shown(&story.nodes, place, &story.task))?;
    ensure!(statuses == ["PENDING"; 3], "{statuses:?}");
    let mut clients = all(|place| Ok(Client::connect(story.nodes.http(place))?))?;
    let token = [("Authorization", "Bearer dev-token")];
    let body = json!({"command": "COUNTED", "payload": 1}).to_string();
    for round in 0..story.repeats {
        let created = expect(&clients[1].send_with("POST", TASKS, &token, &body)?, 202)?;
        let path = format!("{TASKS}/{}", text(&created["id"])?);
        for (place, client) in clients.iter_mut().enumerate() {
            let read = expect(&client.send_with("GET", &path, &token, "")?, 200)
                .with_context(|| format!("round {round}, at {}", NAMES[place]))?;
            ensure!(read["status"] == "PENDING", "{read}");
        }
    }
    Ok(format!("\"PENDING\" three times; {} more tasks, none missing at any node", story.repeats))
}

fn claim(story: &mut Story) -> Result<String> {
    let body = json!({"commands": ["PROCESS_ORDER"], "leaseSeconds": 60, "waitSeconds": 5});
    let task = expect(&story.nodes.post(2, &format!("{TASKS}/claim"), &body)?, 200)?;
    ensure!(task["id"] == story.task && task["status"] == "IN_PROGRESS" && task["attempts"] == 1, "{task}");
    text(&task["leaseToken"])?;
    Ok("that task, IN_PROGRESS, attempt 1, with a lease token".into())
}

fn complete(story: &mut Story) -> Result<String> {
    let body = json!({"status": "COMPLETED", "result": {"ok": true}});
    expect(&story.nodes.post(0, &format!("{TASKS}/{}/result", story.task), &body)?, 200)?;
    let statuses = all(|place| shown(&story.nodes, place, &story.task))?;
    ensure!(statuses == ["COMPLETED"; 3], "{statuses:?}");
    Ok("200; \"COMPLETED\" three times".into())
}

/// Claims that wait at each node while a leader goes.
const WAITING_EACH: usize = 2;

/// Lets claims wait at every node for what is not there.
fn let_wait(story: &mut Story, command: &str) -> Result<()> {
    let body = json!({"commands": [command], "waitSeconds": 20, "leaseSeconds": 60}).to_string();
    for place in story.nodes.running() {
        let addr = story.nodes.http(place);
        for _ in 0..WAITING_EACH {
            let body = body.clone();
            let answer =
                std::thread::spawn(move || send_as(addr, Some("dev-token"), "POST", &format!("{TASKS}/claim"), &body));
            story.waiting.push(Waiting { place, answer });
        }
        eventually(Duration::from_secs(2), || {
            let waiting = metric(&story.nodes, place, "codeq_waiters")?;
            ensure!(waiting >= WAITING_EACH as f64, "{waiting} wait at {}", NAMES[place]);
            Ok(())
        })?;
    }
    Ok(())
}

/// Gives those who wait something to do, and hears what they are told. Whoever waited at a node that was killed hears nothing.
fn hear(story: &mut Story, command: &str, creator: usize, killed: Option<usize>) -> Result<()> {
    for _ in 0..story.waiting.len() {
        let task = json!({"command": command, "payload": 1});
        expect(&story.nodes.post(creator, TASKS, &task)?, 202)?;
    }
    for Waiting { place, answer } in story.waiting.drain(..) {
        let answer = answer.join().map_err(|_| anyhow!("a client has panicked"))?;
        match answer {
            Err(_) if killed == Some(place) => {}
            Err(failure) => return Err(failure.context(format!("a claim at {}", NAMES[place]))),
            Ok(answer) if answer.status == 200 => story.told.push("a task".into()),
            Ok(answer) if answer.status == 503 => {
                let code = text(&answer.json()?["code"])?;
                ensure!(answer.header("retry-after").is_some(), "{answer}");
                story.told.push(format!("503 {code}"));
            }
            Ok(answer) => bail!("a claim at {} was told {answer}", NAMES[place]),
        }
    }
    Ok(())
}

fn stop_leader(story: &mut Story) -> Result<String> {
    let_wait(story, "WAITED-STOP")?;
    story.stopped = story.nodes.leader(1)?;
    let took = story.nodes.stop(story.stopped)?;
    Ok(format!("{} ends with 0 after {} ms", NAMES[story.stopped], took.as_millis()))
}

fn successor(story: &mut Story) -> Result<String> {
    let survivors = story.nodes.running();
    let leader = eventually(Duration::from_secs(1), || {
        let leaders = survivors.iter().map(|place| story.nodes.leader(*place)).collect::<Result<Vec<_>>>()?;
        ensure!(leaders[0] == leaders[1] && leaders[0] != story.stopped, "{leaders:?}");
        Ok(leaders[0])
    })?;
    Ok(format!("\"{}\" at both survivors within 1 s", NAMES[leader]))
}

fn go_on(story: &mut Story) -> Result<String> {
    let created = expect(&story.nodes.post(1, TASKS, &order("43"))?, 202)?;
    let body = json!({"commands": ["PROCESS_ORDER"], "leaseSeconds": 60, "waitSeconds": 5});
    let claimed = expect(&story.nodes.post(2, &format!("{TASKS}/claim"), &body)?, 200)?;
    ensure!(claimed["id"] == created["id"], "{claimed}");
    finish(&story.nodes, 1, &claimed)?;
    hear(story, "WAITED-STOP", 1, None)?;
    let leader = story.nodes.leader(1)?;
    story.successor = (leader, number(&story.nodes.page(1, STATUS)?["term"])?);
    Ok("202 with an id, handed out, completed".into())
}

fn start_again(story: &mut Story) -> Result<String> {
    let begun = Instant::now();
    story.nodes.start(story.stopped)?;
    let (leader, term) = story.successor;
    let name = NAMES[story.stopped];
    eventually(Duration::from_secs(5), || {
        let nodes = story.nodes.page(leader, "/cluster/nodes")?;
        let back = list(&nodes["nodes"])?.iter().find(|node| node["name"] == name).context("it is gone")?;
        ensure!(back["status"] == "follower" && back["lag"] == 0, "{back}");
        ensure!(list(&nodes["nodes"])?.iter().all(|node| node["healthy"] == true), "{nodes}");
        ensure!(nodes["leader"] == NAMES[leader] && nodes["term"] == term, "the leader has changed: {nodes}");
        story.nodes.ready(&[story.stopped], Duration::ZERO)
    })?;
    Ok(format!(
        "follower without lag after {} ms; {} still leads in term {term}",
        begun.elapsed().as_millis(),
        NAMES[leader]
    ))
}

/// How long delayed tasks are delayed, in milliseconds.
const DELAY_MS: u64 = 3_000;

/// From a leader's death to the first write.
const OUTAGE_MAX: Duration = Duration::from_secs(2);

fn kill_leader(story: &mut Story) -> Result<String> {
    let_wait(story, "WAITED-KILL")?;
    let leader = story.nodes.leader(1)?;
    let mut ids = BTreeSet::new();
    let mut create = |story: &Story, count: usize, more: Value| -> Result<Vec<String>> {
        let mut task = json!({"command": "DRAINED", "payload": 1});
        task.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
        let body = json!({ "tasks": vec![task; count] });
        let made = expect(&story.nodes.post((leader + 1) % 3, &format!("{TASKS}/batch"), &body)?, 200)?;
        let made: Vec<_> =
            list(&made["results"])?.iter().map(|item| text(&item["task"]["id"])).collect::<Result<_>>()?;
        ids.extend(made.iter().cloned());
        Ok(made)
    };
    create(story, 20, json!({}))?;
    let body = json!({"commands": ["DRAINED"], "leaseSeconds": 60, "count": 10});
    let mut held = Vec::new();
    for place in [0, 1] {
        let granted = expect(&story.nodes.post(place, &format!("{TASKS}/claim/batch"), &body)?, 200)?;
        held.extend(list(&granted["tasks"])?.to_vec());
    }
    create(story, 60, json!({}))?;
    let delayed: BTreeSet<String> =
        create(story, 20, json!({ "delaySeconds": DELAY_MS / 1000 }))?.into_iter().collect();
    let due = SystemTime::now() + Duration::from_millis(DELAY_MS);
    ensure!(held.len() == 20 && ids.len() == 100, "{} held, {} made", held.len(), ids.len());

    let killed = Instant::now();
    story.nodes.kill(leader)?;
    let survivors = story.nodes.running();
    eventually(OUTAGE_MAX, || expect(&story.nodes.post(survivors[0], TASKS, &order("44"))?, 202))?;
    let outage = killed.elapsed();
    ensure!(outage <= allowed(OUTAGE_MAX), "the first write after {outage:?}");
    hear(story, "WAITED-KILL", survivors[1], Some(leader))?;
    for task in &held {
        finish(&story.nodes, survivors[1], task)?;
    }
    let mut done: Vec<String> = held.iter().map(|task| text(&task["id"])).collect::<Result<_>>()?;
    let body = json!({"commands": ["DRAINED"], "leaseSeconds": 60, "count": 10, "waitSeconds": 4});
    while done.len() < ids.len() {
        let place = survivors[done.len() / 10 % 2];
        let granted = story.nodes.post(place, &format!("{TASKS}/claim/batch"), &body)?;
        ensure!(granted.status == 200, "{} are done, and then: {granted}", done.len());
        for task in list(&granted.json()?["tasks"])? {
            let id = text(&task["id"])?;
            // The clocks of client and server are one; what is rounded is.
            let early = delayed.contains(&id) && SystemTime::now() + Duration::from_millis(50) < due;
            ensure!(!early, "{id} was handed out before its time");
            ensure!(task["attempts"] == 1, "{task}");
            finish(&story.nodes, survivors[0], task)?;
            done.push(id);
        }
    }
    let distinct: BTreeSet<String> = done.iter().cloned().collect();
    ensure!(distinct == ids && done.len() == ids.len(), "{} grants of {} tasks", done.len(), distinct.len());
    story.nodes.start(leader)?;
    story.nodes.ready(&[leader], READY_MAX)?;
    for id in &ids {
        ensure!(shown(&story.nodes, leader, id)? == "COMPLETED", "{id} at {}", NAMES[leader]);
    }
    Ok(format!("writes again after {} ms; 100 completed once each, 20 leases kept, 20 delays kept", outage.as_millis()))
}

fn result_to_the_third(story: &mut Story) -> Result<String> {
    expect(&story.nodes.post(0, TASKS, &json!({"command": "HANDED", "payload": 1}))?, 202)?;
    let leader = story.nodes.leader(1)?;
    let (claimer, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let body = json!({"commands": ["HANDED"], "leaseSeconds": 60});
    let task = expect(&story.nodes.post(claimer, &format!("{TASKS}/claim"), &body)?, 200)?;
    story.nodes.kill(leader)?;
    finish(&story.nodes, third, &task)?;
    let path = format!("{TASKS}/{}/result", text(&task["id"])?);
    let again = story.nodes.post(third, &path, &result_of(&task))?;
    ensure!(again.status == 409, "the second time: {again}");
    story.nodes.start(leader)?;
    story.nodes.ready(&[leader], READY_MAX)?;
    Ok(format!("200; 409 {}", text(&again.json()?["code"])?))
}

fn waiting_claims(story: &mut Story) -> Result<String> {
    let mut counts = std::collections::BTreeMap::new();
    for told in story.told.drain(..) {
        *counts.entry(told).or_insert(0) += 1;
    }
    ensure!(!counts.is_empty(), "nobody has waited");
    Ok(counts.iter().map(|(told, count)| format!("{count} × {told}")).collect::<Vec<_>>().join(", "))
}

fn other_shards(story: &mut Story) -> Result<String> {
    let place = 2;
    let before = story.nodes.variables(place)["PERSISTENCE_CONFIG"].clone();
    story.nodes.stop(place)?;
    let after = before.replace("\"numShards\":1", "\"numShards\":2");
    ensure!(after != before, "{before}");
    let line = story.nodes.refused(place, "PERSISTENCE_CONFIG", &after, &["shards = 2", "has 1"])?;
    story.nodes.start(place)?;
    story.nodes.ready(&[place], READY_MAX)?;
    Ok(line)
}

fn restart_with_flag(story: &mut Story) -> Result<String> {
    story.nodes.stop(0)?;
    // The page's level is warn, which leaves out what settings do.
    story.nodes.set(0, "LOG_LEVEL", "info");
    story.nodes.start(0)?;
    story.nodes.ready(&[0], READY_MAX)?;
    let said: Vec<String> =
        story.nodes.log(0)?.into_iter().filter(|line| line.contains("belongs to a cluster already")).collect();
    ensure!(said.len() == 1 && said[0].contains("cluster.bootstrap"), "{said:?}");
    story.nodes.down()?;
    story.nodes.start(1)?;
    story.nodes.start(2)?;
    let took = story.nodes.ready(&[1, 2], READY_MAX)?;
    let leader = story.nodes.leader(1)?;
    story.nodes.start(0)?;
    story.nodes.ready(&[0], READY_MAX)?;
    Ok(format!("the flag is ignored, said once; {} elected by two after {} ms", NAMES[leader], took.as_millis()))
}

/// Runs every other route at a node, each answer as its status and the names of its members.
fn other_routes(nodes: &Nodes, place: usize) -> Result<Vec<String>> {
    let mut shapes = Vec::new();
    let mut post = |path: String, body: Value| -> Result<Value> {
        let answer = nodes.post(place, &path, &body)?;
        let body = answer.json()?;
        let names: Vec<&str> = body.as_object().context("an object")?.keys().map(String::as_str).collect();
        let route = path.split('/').filter(|part| part.len() < 30).collect::<Vec<_>>().join("/");
        shapes.push(format!("{route}: {} {}", answer.status, names.join(",")));
        ensure!(answer.status == 200, "{path} at {}: {answer}", NAMES[place]);
        Ok(body)
    };
    let task = json!({"command": "ROUTES", "payload": 1});
    post(format!("{TASKS}/batch"), json!({ "tasks": vec![task; 5] }))?;
    let claim = json!({"commands": ["ROUTES"], "leaseSeconds": 60, "count": 5});
    let granted = post(format!("{TASKS}/claim/batch"), claim)?;
    let granted = list(&granted["tasks"])?;
    ensure!(granted.len() == 5, "{} were granted", granted.len());
    let lease = |task: &Value| json!({ "leaseToken": task["leaseToken"] });
    let path = |task: &Value, verb: &str| Ok::<_, anyhow::Error>(format!("{TASKS}/{}/{verb}", text(&task["id"])?));
    post(path(&granted[0], "heartbeat")?, lease(&granted[0]))?;
    post(path(&granted[1], "nack")?, lease(&granted[1]))?;
    post(path(&granted[2], "abandon")?, lease(&granted[2]))?;
    let results: Vec<Value> = [&granted[0], &granted[3], &granted[4]]
        .iter()
        .map(|task| {
            let mut result = result_of(task);
            result["taskId"] = task["id"].clone();
            result
        })
        .collect();
    let answered = post(format!("{TASKS}/batch/results"), json!({ "results": results }))?;
    ensure!(list(&answered["results"])?.iter().all(|item| item.get("error").is_none()), "{answered}");
    let head = nodes.send(place, "HEAD", &path(&granted[0], "result")?, "")?;
    ensure!(head.status == 200 && head.body.is_empty(), "HEAD: {head}");
    // What is left must not be found by the next one: the abandoned task now, the other one by its id.
    for task in [&granted[2], &granted[1]] {
        post(path(task, "cancel")?, json!({}))?;
    }
    Ok(shapes)
}

fn routes_at_a_follower(story: &mut Story) -> Result<String> {
    let leader = story.nodes.leader(0)?;
    let at_leader = other_routes(&story.nodes, leader)?;
    let at_follower = other_routes(&story.nodes, (leader + 1) % 3)?;
    ensure!(at_leader == at_follower, "{at_leader:#?} and {at_follower:#?}");
    Ok("batch, claim/batch, heartbeat, nack, abandon, batch/results, cancel: the same answers".into())
}

fn down_and_up(story: &mut Story) -> Result<String> {
    let before = story.nodes.page(0, STATUS)?["clusterId"].clone();
    story.nodes.down()?;
    story.nodes.up()?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    for (place, name) in NAMES.iter().enumerate() {
        ensure!(story.nodes.page(place, STATUS)?["clusterId"] == before, "another cluster at {name}");
        check_counted(story, place)?;
    }
    Ok(format!("all there at each node, cluster {} as before", text(&before)?))
}

/// Nothing is missing of what was created again and again.
fn check_counted(story: &Story, place: usize) -> Result<()> {
    let queue = story.nodes.page(place, "/v1/codeq/admin/queues/COUNTED")?;
    ensure!(queue["ready"] == story.repeats, "at {} there are {queue}", NAMES[place]);
    Ok(())
}

fn durability(story: &mut Story) -> Result<String> {
    const WRITES: usize = 100;
    let syncs = |story: &Story| all(|place| metric(&story.nodes, place, "codeq_log_syncs_total"));
    let before = syncs(story)?;
    let mut client = Client::connect(story.nodes.http(0))?;
    let body = json!({"command": "SYNCED", "payload": 1}).to_string();
    for _ in 0..WRITES {
        expect(&client.send_with("POST", TASKS, &[("Authorization", "Bearer dev-token")], &body)?, 202)?;
    }
    let synced: Vec<f64> = syncs(story)?.iter().zip(&before).map(|(after, before)| after - before).collect();
    // The next write begins when this one is on two disks. Whichever these are: no sync of theirs is for both writes.
    ensure!(synced.iter().sum::<f64>() >= 2.0 * WRITES as f64, "{WRITES} writes were synced {synced:?} times");
    story.nodes.down()?;
    let mut configs = Vec::new();
    for place in 0..NAMES.len() {
        let config = story.nodes.variables(place)["PERSISTENCE_CONFIG"].clone();
        let mut buffered: Value = serde_json::from_str(&config)?;
        buffered["fsyncOnCommit"] = json!(false);
        story.nodes.set(place, "PERSISTENCE_CONFIG", &buffered.to_string());
        configs.push(config);
    }
    story.nodes.up()?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    let warned = story.nodes.logged(0, "buffered", Duration::ZERO)?;
    ensure!(warned.contains("WARN"), "{warned}");
    let status = story.nodes.page(0, "/cluster/status")?;
    ensure!(status["durability"] == "buffered", "{status}");
    story.nodes.down()?;
    for (place, config) in configs.iter().enumerate() {
        story.nodes.set(place, "PERSISTENCE_CONFIG", config);
    }
    story.nodes.up()?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(format!("{WRITES} writes: {synced:?} syncs by node; buffered is warned of in log and status"))
}

/// A node without its volume is a new member: how long it may take until it is one, with the pause in which its name may still be in use.
const ADMITTED_MAX: Duration = Duration::from_secs(20);

fn one_volume_gone(story: &mut Story) -> Result<String> {
    let id = |story: &Story| node_id(&story.nodes, 0, "node-c");
    let before = id(story)?;
    story.nodes.stop(2)?;
    story.nodes.remove_volume(2)?;
    let begun = Instant::now();
    story.nodes.start(2)?;
    let after = eventually(ADMITTED_MAX, || {
        let nodes = story.nodes.page(0, "/cluster/nodes")?;
        let members = list(&nodes["nodes"])?;
        ensure!(members.len() == 3 && members.iter().all(|node| node["voter"] == true), "{nodes}");
        let after = id(story)?;
        ensure!(after != before && nodes["quorum"]["voters"] == 3, "{nodes}");
        story.nodes.ready(&[2], Duration::ZERO)?;
        Ok(after)
    })
    .with_context(|| {
        let log = |place| story.nodes.log(place).unwrap_or_default().join("\n");
        format!("log of node-c:\n{}\nlog of node-a:\n{}", log(2), log(0))
    })?;
    let took = begun.elapsed();
    check_counted(story, 2)?;
    Ok(format!("{before} is {after} now, three voters after {:.1} s, nothing lost", took.as_secs_f64()))
}

/// How long two nodes without data are given to found a cluster that must not be.
const NO_CLUSTER: Duration = Duration::from_secs(3);

fn two_volumes_gone(story: &mut Story) -> Result<String> {
    story.nodes.down()?;
    story.nodes.remove_volume(0)?;
    story.nodes.remove_volume(1)?;
    story.nodes.up()?;
    let begun = Instant::now();
    let mut told = Vec::new();
    for (place, name) in NAMES.iter().enumerate() {
        // Also a node that has only just started says it.
        told.push(eventually(Duration::from_secs(5), || {
            let answer = story.nodes.post(place, TASKS, &order("45"))?;
            ensure!(answer.status == 503, "{name} answers {answer}");
            let code = text(&answer.json()?["code"])?;
            ensure!(code != "not_ready", "{answer}");
            Ok(code)
        })?);
    }
    while begun.elapsed() < NO_CLUSTER {
        for place in [0, 1] {
            let nodes = story.nodes.page(place, "/cluster/nodes")?;
            ensure!(nodes["clusterId"].is_null(), "{} belongs to a cluster: {nodes}", NAMES[place]);
            let ready = story.nodes.get(place, "/readyz")?;
            ensure!(ready.status == 503, "{ready}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let why = String::from_utf8(story.nodes.get(0, "/readyz/joined")?.body)?;
    story.nodes.down()?;
    Ok(format!("no cluster; 503 {}; node-a: {}", told.join(", "), why.trim()))
}

fn bootstrappers(story: &mut Story) -> Result<String> {
    let mut seen = Vec::new();
    for flagged in [vec![0, 1], vec![0, 1, 2], vec![]] {
        let mut nodes = story.nodes.others("walk-bootstrap")?;
        for place in 0..NAMES.len() {
            nodes.set(place, "RAFT_BOOTSTRAP", if flagged.contains(&place) { "true" } else { "false" });
        }
        let begun = Instant::now();
        nodes.up()?;
        nodes.ready(&[0, 1, 2], READY_MAX)?;
        let took = begun.elapsed();
        let ids = all(|place| text(&nodes.page(place, STATUS)?["clusterId"]))?;
        ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let mut warnings = Vec::new();
        for place in nodes.running() {
            warnings.extend(nodes.log(place)?.into_iter().filter(|line| line.contains("raft.bootstrap.several")));
        }
        let named = |line: &String| flagged.iter().all(|place| line.contains(NAMES[*place])) && line.contains("WARN");
        match flagged.len() {
            0 => ensure!(warnings.is_empty(), "{warnings:?}"),
            _ => ensure!(!warnings.is_empty() && warnings.iter().all(named), "{warnings:?}"),
        }
        seen.push(format!("{} flagged: one cluster after {} ms", flagged.len(), took.as_millis()));
    }
    Ok(seen.join("; "))
}

fn down_with_volumes(story: &mut Story) -> Result<String> {
    story.nodes.forget()?;
    let begin = |story: &mut Story| -> Result<String> {
        story.nodes.up()?;
        story.nodes.ready(&[0, 1, 2], READY_MAX)?;
        text(&story.nodes.page(0, STATUS)?["clusterId"])
    };
    let before = begin(story)?;
    let created = expect(&story.nodes.post(0, TASKS, &order("46"))?, 202)?;
    story.nodes.forget()?;
    let after = begin(story)?;
    ensure!(before != after, "the same cluster, {before}");
    let path = format!("{TASKS}/{}", text(&created["id"])?);
    for (place, name) in NAMES.iter().enumerate() {
        ensure!(story.nodes.get(place, &path)?.status == 404, "{name} has a task of another cluster");
    }
    Ok(format!("cluster {before} is {after} now, and empty"))
}

fn redirect(story: &mut Story) -> Result<String> {
    let leader = story.nodes.leader(0)?;
    let path = format!("{TASKS}?redirect=true");
    let answer = story.nodes.post((leader + 1) % 3, &path, &order("47"))?;
    let problem = expect(&answer, 307)?;
    let url = story.nodes.public_url(leader);
    ensure!(answer.header("location") == Some(&format!("{url}{path}")), "{:?}", answer.header("location"));
    ensure!(problem["error"] == "not leader" && text(&problem["leader"])?.starts_with(&url), "{problem}");
    Ok(format!("307 {url}{path}"))
}

/// From a death to a write, with an election timeout of 200 ms.
const FAST_OUTAGE_MAX: Duration = Duration::from_secs(1);

fn fast_timers(story: &mut Story) -> Result<String> {
    story.nodes.forget()?;
    for place in 0..NAMES.len() {
        for (name, value) in [("HEARTBEAT", "200"), ("ELECTION", "200"), ("LEADER_LEASE", "100")] {
            story.nodes.set(place, &format!("RAFT_{name}_MS"), value);
        }
    }
    story.nodes.up()?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    let leader = story.nodes.leader(0)?;
    story.nodes.kill(leader)?;
    // The program that kills a container goes on for a while after it is dead.
    let killed = Instant::now();
    let survivors = story.nodes.running();
    eventually(FAST_OUTAGE_MAX, || expect(&story.nodes.post(survivors[0], TASKS, &order("48"))?, 202))?;
    let outage = killed.elapsed();
    for place in 0..NAMES.len() {
        ["HEARTBEAT", "ELECTION", "LEADER_LEASE"]
            .iter()
            .for_each(|name| story.nodes.unset(place, &format!("RAFT_{name}_MS")));
    }
    Ok(format!("writes again after {} ms", outage.as_millis()))
}

fn four_shards(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    nodes.forget()?;
    let before: Vec<String> = all(|place| Ok(nodes.variables(place)["PERSISTENCE_CONFIG"].clone()))?;
    for (place, config) in before.iter().enumerate() {
        nodes.set(place, "PERSISTENCE_CONFIG", &config.replace("\"numShards\":1", "\"numShards\":4"));
    }
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    for place in 0..NAMES.len() {
        let status = nodes.page(place, STATUS)?;
        let groups = list(&status["groups"])?;
        ensure!(status["numGroups"] == 4 && groups.len() == 4, "{status}");
        ensure!(groups.iter().all(|group| group["hasLeader"] == true), "{status}");
    }
    let mut ids = Vec::new();
    for number in 0..20 {
        let task = json!({ "command": format!("SHARDED-{number}"), "payload": 1 });
        ids.push(text(&expect(&nodes.post(number % 3, TASKS, &task)?, 202)?["id"])?);
    }
    let leader = nodes.leader(0)?;
    nodes.stop(leader)?;
    let survivors = nodes.running();
    nodes.ready(&survivors, READY_MAX)?;
    for (number, id) in ids.iter().enumerate() {
        let body = json!({ "commands": [format!("SHARDED-{number}")], "leaseSeconds": 60 });
        let claimed = expect(&nodes.post(survivors[number % 2], &format!("{TASKS}/claim"), &body)?, 200)?;
        ensure!(claimed["id"] == *id, "{claimed}");
        finish(nodes, survivors[(number + 1) % 2], &claimed)?;
    }
    nodes.forget()?;
    for (place, config) in before.iter().enumerate() {
        nodes.set(place, "PERSISTENCE_CONFIG", config);
    }
    Ok("four groups, each led; 20 tasks over them are claimed and completed after the leader's stop".into())
}

/// Follows a redirect as `curl -L --location-trusted` does: the same request, with the token.
fn follow(nodes: &Nodes, place: usize, path: &str, body: &Value) -> Result<(u16, Value)> {
    let told = nodes.post(place, path, body)?;
    ensure!(told.status == 307, "{path} at {}: {told}", NAMES[place]);
    let to = told.header("location").context("it says where")?.to_owned();
    let leader = (0..NAMES.len()).find(|place| to.starts_with(&nodes.public_url(*place)));
    let leader = leader.with_context(|| format!("{to} is at none of the nodes"))?;
    let rest = &to[nodes.public_url(leader).len()..];
    let answer = nodes.post(leader, rest, body)?;
    Ok((answer.status, answer.json()?))
}

fn redirects(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    nodes.forget()?;
    (0..NAMES.len()).for_each(|place| nodes.set(place, "CODEQ_FOLLOWER_WRITES", "redirect"));
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let place = (nodes.leader(0)? + 1) % 3;
    let mut routes = 0;
    let mut post = |path: &str, body: Value, expected: u16| -> Result<Value> {
        let (status, answer) = follow(nodes, place, path, &body)?;
        ensure!(status == expected, "{path}: {status} {answer}");
        routes += 1;
        Ok(answer)
    };
    let task = json!({ "command": "REDIRECTED", "payload": 1 });
    post(TASKS, task.clone(), 202)?;
    post(&format!("{TASKS}/batch"), json!({ "tasks": vec![task; 5] }), 200)?;
    let claim = json!({ "commands": ["REDIRECTED"], "leaseSeconds": 60, "count": 5 });
    let one = post(&format!("{TASKS}/claim"), json!({ "commands": ["REDIRECTED"], "leaseSeconds": 60 }), 200)?;
    let granted = post(&format!("{TASKS}/claim/batch"), claim, 200)?;
    let granted = list(&granted["tasks"])?;
    let path = |task: &Value, verb: &str| Ok::<_, anyhow::Error>(format!("{TASKS}/{}/{verb}", text(&task["id"])?));
    let lease = |task: &Value| json!({ "leaseToken": task["leaseToken"] });
    post(&path(&one, "heartbeat")?, lease(&one), 200)?;
    post(&path(&one, "result")?, result_of(&one), 200)?;
    post(&path(&granted[0], "nack")?, lease(&granted[0]), 200)?;
    post(&path(&granted[1], "abandon")?, lease(&granted[1]), 200)?;
    post(&path(&granted[0], "cancel")?, json!({}), 200)?;
    let mut result = result_of(&granted[2]);
    result["taskId"] = granted[2]["id"].clone();
    post(&format!("{TASKS}/batch/results"), json!({ "results": [result] }), 200)?;
    nodes.forget()?;
    (0..NAMES.len()).for_each(|place| nodes.unset(place, "CODEQ_FOLLOWER_WRITES"));
    Ok(format!("{routes} requests at a follower: 307 to the leader's public URL, and done there"))
}

fn other_image(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    if nodes.driver() == Driver::Process {
        return Err(Skip("it needs containers").into());
    }
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let project = nodes.project().context("they are containers")?;
    let image = project.look(NAMES[0], "{{.Config.Image}}")?;
    ensure!(image == "codeq:dev", "{image}");
    nodes.forget()?;
    Ok("codeq:dev runs, where the file says codeq:latest".into())
}

fn refused_settings(story: &mut Story) -> Result<String> {
    let page = Nodes::new(story.nodes.codeq(), "walk-page")?;
    bad_config::refused_by_the_page(story.nodes.codeq(), page.variables(1))?;
    let mut nodes = Nodes::new(story.nodes.codeq(), "walk-mux")?;
    (0..NAMES.len()).for_each(|place| nodes.set(place, "RAFT_MUX_ENABLED", "false"));
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let warnings: Vec<String> = nodes.log(0)?.into_iter().filter(|line| line.contains("RAFT_MUX_ENABLED")).collect();
    ensure!(warnings.len() == 1 && warnings[0].contains("WARN"), "{warnings:?}");
    Ok("four refused with 2, both settings named; RAFT_MUX_ENABLED=false: one warning, one port".into())
}

/// What each node shows.
fn all<T>(look: impl Fn(usize) -> Result<T>) -> Result<Vec<T>> {
    (0..NAMES.len()).map(look).collect()
}

/// The status of a task as a node shows it.
fn shown(nodes: &Nodes, place: usize, task: &str) -> Result<String> {
    text(&nodes.page(place, &format!("{TASKS}/{task}"))?["status"])
}

fn result_of(task: &Value) -> Value {
    json!({"status": "COMPLETED", "result": {"ok": true}, "leaseToken": task["leaseToken"]})
}

/// Completes a claimed task at a node, trying again where it says that nothing has happened.
fn finish(nodes: &Nodes, place: usize, task: &Value) -> Result<()> {
    let path = format!("{TASKS}/{}/result", text(&task["id"])?);
    eventually(STOP_MAX, || {
        let answer = nodes.post(place, &path, &result_of(task))?;
        match answer.status {
            200 => Ok(Ok(())),
            503 => bail!("{answer}"),
            _ => Ok(Err(anyhow!("{path} at {}: {answer}", NAMES[place]))),
        }
    })?
}

fn node_id(nodes: &Nodes, place: usize, name: &str) -> Result<String> {
    text(&nodes.page(place, &format!("/cluster/nodes/{name}"))?["id"])
}

/// The value of a metric without labels.
fn metric(nodes: &Nodes, place: usize, name: &str) -> Result<f64> {
    let text = String::from_utf8(nodes.get(place, "/metrics")?.body)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("there is no {name}"))?.parse()?)
}
