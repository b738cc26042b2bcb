//! `/metrics` reads back as Prometheus reads it, and counts what has happened.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use server::families::FAMILIES;

use crate::client::text;
use crate::server::{Running, settings};

/// Samples by name and labels, of a text that keeps the rules of the format: each family is announced once with help and type, its samples
/// follow it, none comes twice, and every value is a number.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut family = ("", "");
    let mut lines = text.lines().peekable();
    assert!(text.ends_with('\n'), "the last line is complete");
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, explained) = help.split_once(' ').expect("a name and its help");
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")).expect("a type follows the help");
            let (typed, kind) = kind.split_once(' ').expect("a name and its type");
            assert!(!explained.is_empty() && typed == name, "{line}");
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{kind}");
            assert!(families.insert(name), "{name} is announced once");
            family = (name, kind);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("a sample: {line}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("labels end")),
            None => (series, ""),
        };
        let part = name.strip_prefix(family.0).unwrap_or_else(|| panic!("{name} is not of the family {}", family.0));
        let parts: &[&str] = match family.1 {
            "histogram" => &["_bucket", "_sum", "_count"],
            "summary" => &["", "_sum", "_count"],
            _ => &[""],
        };
        assert!(parts.contains(&part), "{line}");
        assert_eq!(family.1 == "counter", name.ends_with("_total"), "{line}");
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (key, value) = label.split_once('=').expect("a label has a value");
            assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).expect("a quoted value");
            assert!(!value.contains(['"', '\\', '\n']), "{line}");
        }
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("a number: {line}"));
        assert!(value >= 0.0, "{line}");
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes once");
    }
    samples
}

/// Each way a task can go is counted under its queue's name, durations in buckets, and the log's syncs besides.
#[tokio::test]
async fn everything_is_counted_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = settings();
    settings.node.data = cluster::Data::Directory(directory.path().join("data"));
    settings.node.shards = 2;
    let server = Running::start(settings).await;
    let client = server.client();
    let claim = async || client.post("/tasks/claim", json!({"commands": ["mail"]})).await.expect(200);
    for attempts in [5, 5, 1, 5] {
        client.create(json!({"command": "mail", "payload": 1, "maxAttempts": attempts})).await;
    }
    for _ in 0..2 {
        client.create(json!({"command": "keyed", "payload": 1, "idempotencyKey": "k"})).await;
    }
    client.create(json!({"command": "keyed", "payload": 1, "delaySeconds": 60})).await;
    let id = text(&claim().await, "id").to_owned();
    client.post(&format!("/tasks/{id}/result"), json!({"status": "COMPLETED", "result": {}})).await.expect(200);
    let id = text(&claim().await, "id").to_owned();
    let failed = json!({"results": [{"taskId": id, "status": "FAILED", "error": "no"}]});
    client.post("/tasks/batch/results", failed).await.expect(200);
    let id = text(&claim().await, "id").to_owned();
    client.post(&format!("/tasks/{id}/nack"), json!({})).await.expect(200);
    let id = text(&claim().await, "id").to_owned();
    client.post(&format!("/tasks/{id}/abandon"), json!({})).await.expect(200);
    let short = json!({"commands": ["mail"], "leaseSeconds": 0.05});
    let expired = client.post("/tasks/claim", short).await.expect(200);
    // Waits for the expiry, and for the delay behind it.
    let again = client.post("/tasks/claim", json!({"commands": ["mail"], "waitSeconds": 30})).await.expect(200);
    assert_eq!(again["id"], expired["id"]);

    let answered = client.get("/metrics").await;
    assert_eq!(answered.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = parse(&answered.text());
    for (series, value) in [
        (r#"codeq_task_created_total{command="mail"}"#, 4),
        (r#"codeq_task_created_total{command="keyed"}"#, 2),
        (r#"codeq_task_claimed_total{command="mail"}"#, 6),
        (r#"codeq_lease_expired_total{command="mail"}"#, 1),
        (r#"codeq_task_completed_total{command="mail",status="COMPLETED"}"#, 1),
        (r#"codeq_task_completed_total{command="mail",status="FAILED"}"#, 2),
        (r#"codeq_task_processing_latency_seconds_count{command="mail",status="FAILED"}"#, 2),
        (r#"codeq_task_processing_latency_seconds_bucket{command="mail",status="FAILED",le="+Inf"}"#, 2),
        (r#"codeq_queue_depth{command="mail",queue="ready"}"#, 0),
        (r#"codeq_queue_depth{command="mail",queue="in_progress"}"#, 1),
        (r#"codeq_queue_depth{command="mail",queue="dlq"}"#, 1),
        (r#"codeq_queue_depth{command="keyed",queue="ready"}"#, 1),
        (r#"codeq_queue_depth{command="keyed",queue="delayed"}"#, 1),
        (r#"codeq_dlq_depth{command="mail"}"#, 1),
        ("codeq_waiters", 0),
        (r#"codeq_raft_skipped_entries{group="0"}"#, 0),
        (r#"codeq_raft_is_leader{group="1"}"#, 1),
        (r#"codeq_raft_has_leader{group="0"}"#, 1),
        (r#"codeq_raft_role{group="0",role="leader"}"#, 1),
        (r#"codeq_raft_role{group="0",role="follower"}"#, 0),
        (r#"codeq_raft_last_contact_seconds{group="1"}"#, 0),
        ("codeq_raft_quorum_reachable", 1),
        ("codeq_raft_failure_tolerance", 0),
        ("codeq_raft_leader_changes_total", 2),
        (r#"codeq_raft_elections_total{cause="bootstrap",result="won"}"#, 2),
        (r#"codeq_raft_elections_total{cause="timeout",result="lost"}"#, 0),
        ("codeq_events_lost_total", 0),
    ] {
        assert_eq!(samples.get(series), Some(&f64::from(value)), "{series}");
    }
    // What has been answered is committed, in entries that were synced; a creation, a claim and what ends it are operations of their own.
    let sample = |series: &str| samples[series];
    let (entries, operations) = (sample("codeq_raft_commit_seconds_count"), sample("codeq_wal_batch_operations_sum"));
    assert!(entries >= 1.0 && entries <= sample("codeq_log_entries_total"), "{entries} entries");
    assert!(operations >= 16.0, "{operations} operations in {entries} entries");
    assert_eq!(sample("codeq_wal_batch_operations_count"), entries);
    assert!(sample("codeq_wal_sync_seconds_count") >= 1.0 && sample("codeq_wal_sync_seconds_sum") > 0.0);
    assert!(sample("codeq_raft_apply_seconds_count") >= 1.0);
    let buckets: Vec<f64> =
        ["0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "300", "600", "1800", "3600"]
            .iter()
            .map(|le| {
                let labels = format!(r#"command="mail",status="COMPLETED",le="{le}""#);
                samples[&format!("codeq_task_processing_latency_seconds_bucket{{{labels}}}")]
            })
            .collect();
    assert!(buckets.is_sorted() && buckets[13] == 1.0, "{buckets:?}");
    // Every family is there, but for those of a directory of backups and of certificates, which this server has not.
    let page = answered.text();
    let absent = FAMILIES.iter().filter(|family| !page.contains(&format!("# TYPE {} ", family.name)));
    let absent: Vec<&str> = absent.map(|family| family.name).collect();
    assert_eq!(absent, ["codeq_backup_age_seconds", "codeq_certificate_left_seconds"]);
    let (syncs, entries) = (samples["codeq_log_syncs_total"], samples["codeq_log_entries_total"]);
    assert!(syncs >= 10.0 && entries >= 10.0, "each acknowledged change was synced: {syncs}, {entries}");
    assert!(samples[r#"codeq_storage_bytes{kind="log"}"#] > 0.0);
    assert!(samples.keys().any(|series| series.starts_with("codeq_build_info{version=")));

    // Reading counts nothing, and claims that find nothing write nothing.
    assert_eq!(client.post("/tasks/claim", json!({"commands": ["mail"]})).await.status, 204);
    let after = parse(&client.get("/metrics").await.text());
    for series in ["codeq_log_entries_total", r#"codeq_task_claimed_total{command="mail"}"#] {
        assert_eq!(after[series], samples[series], "{series}");
    }
    server.stop().await;
}

/// Names beyond the limit are counted together, and without the setting there is no such page.
#[tokio::test]
async fn names_are_limited_and_the_page_can_be_closed() {
    let mut few = settings();
    few.metrics_commands_max = 2;
    let server = Running::start(few).await;
    let client = server.client();
    for command in ["a", "b", "c", "d"] {
        client.create(json!({"command": command, "payload": 1})).await;
    }
    let samples = parse(&client.get("/metrics").await.text());
    for (command, count) in [("a", Some(1.0)), ("b", Some(1.0)), ("other", Some(2.0)), ("c", None)] {
        let series = format!(r#"codeq_task_created_total{{command="{command}"}}"#);
        assert_eq!(samples.get(&series).copied(), count, "{command}");
        let series = format!(r#"codeq_queue_depth{{command="{command}",queue="ready"}}"#);
        assert_eq!(samples.get(&series).copied(), count, "{command}");
    }
    server.stop().await;
    let mut closed = settings();
    closed.metrics_enabled = false;
    let server = Running::start(closed).await;
    server.client().get("/metrics").await.problem(404, "route_not_found");
    server.stop().await;
}

/// Goal: whatever the alert rules and the board ask for, the page has.
#[tokio::test]
async fn alerts_and_the_board_ask_for_what_there_is() {
    let server = Running::start(settings()).await;
    let client = server.client();
    client.create(json!({"command": "mail", "payload": 1, "maxAttempts": 1})).await;
    client.post("/tasks/claim", json!({"commands": ["mail"]})).await.expect(200);
    let page = client.get("/metrics").await.text();
    let samples = parse(&page);
    // A single node has no samples of peers.
    let declared = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let names = samples.keys().map(|series| series.split('{').next().unwrap_or(series));
    let names: BTreeSet<&str> = names.chain(declared).collect();
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
    for file in ["alerts.yaml", "grafana-board.json"] {
        let text = std::fs::read_to_string(deploy.join(file)).expect("the file is there");
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("codeq_")).collect();
        assert!(asked.len() >= 5, "{file} asks for {asked:?}");
        let missing: Vec<_> = asked.difference(&names).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}, of which the page has nothing");
    }
    server.stop().await;
}
