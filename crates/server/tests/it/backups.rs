//! Backups that a server makes by itself: what happens when one cannot be made, and when there is nothing new to save.

use std::path::Path;
use std::time::Duration;

use base::Millis;
use serde_json::json;
use server::BackupSettings;
use server::settings::Settings;

use crate::server::{Running, settings_in};

/// Waits for something that another thread does.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited)
        .await
        .unwrap_or_else(|_| panic!("it never came to this: {what}"));
}

fn listed(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Goal: what fails is told by an alarm and tried again until it succeeds, and then the alarm is over. What has not changed is not saved
/// again, and counts as saved; what has is. Method: a directory that is not there at first, an interval of 1.5 s, and the age that the
/// metrics tell.
#[tokio::test]
async fn a_backup_is_tried_again_and_skipped_while_nothing_changes() {
    let folder = tempfile::tempdir().expect("a directory");
    let directory = folder.path().join("backups");
    let backup = BackupSettings { directory: Some(directory.clone()), interval: Millis(1_500), keep: 10 };
    let server = Running::start(Settings { backup, ..settings_in(&folder.path().join("data")) }).await;
    let client = server.client();
    client.create(json!({"command": "mail", "payload": 1})).await;
    let alarms = async || client.get("/cluster/alarms").await.text().contains("backup-old");
    until("the alarm is raised", async || alarms().await).await;
    std::fs::create_dir(&directory).expect("it can be made");
    until("a backup is there", async || listed(&directory) == 1).await;
    until("the alarm is over", async || !alarms().await).await;
    // Its age begins anew though there is no other file: it was looked whether there is something to save.
    let age = async || client.metric("codeq_backup_age_seconds").await;
    for _ in 0..2 {
        let before = age().await;
        until("nothing was to be saved", async || age().await < before).await;
    }
    assert_eq!(listed(&directory), 1, "nothing has changed");
    client.create(json!({"command": "mail", "payload": 2})).await;
    until("another backup is there", async || listed(&directory) == 2).await;
    server.stop().await;
}
