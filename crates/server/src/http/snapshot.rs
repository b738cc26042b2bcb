//! Backups and checkpoints over HTTP.

use std::collections::BTreeMap;
use std::io::Read;

use api::json::Writer;
use api::{Code, Problem};
use base::{Index, ShardId};
use bytes::Bytes;
use cluster::Freshness;
use cluster::backup::NoBackup;
use queue::Query;
use tokio::sync::mpsc::channel;

use crate::http::answer::Answer;
use crate::http::body::Pieces;
use crate::http::call::{Call, Outcome};
use crate::http::edge::Edge;
use crate::http::error::unavailable;

/// Bytes read at once, and pieces that wait for the client.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_MAX: usize = 4;

impl Edge {
    /// A backup of all groups, each at an index that was committed when it was asked for; with `?local`, of what this node has.
    pub(crate) async fn save(&self, call: &Call) -> Outcome<Answer> {
        self.check_running()?;
        let local = call.query("local").is_some_and(|value| value != "false");
        if !local {
            self.confirm().await?;
        }
        let mut backup = self.node.backup(local).await.map_err(no_backup)?;
        let left = backup.left();
        let name = format!("codeq-{}-{}.tar", backup.manifest.node, backup.manifest.created_at_ms);
        let (sender, pieces) = channel(PIECES_MAX);
        tokio::task::spawn_blocking(move || {
            loop {
                let mut buffer = vec![0; PIECE_BYTES];
                let piece = match backup.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => {
                        buffer.truncate(length);
                        Ok(Bytes::from(buffer))
                    }
                    Err(error) => {
                        tracing::error!(event = "backup.failed", %error, "a backup cannot be read while it is sent");
                        Err(error)
                    }
                };
                let failed = piece.is_err();
                // The client may have gone.
                if sender.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Answer::file(&name, Pieces { left: Some(left), pieces, held: None }))
    }

    /// Lets every member write a checkpoint of every group, with all that was acknowledged when this was asked for.
    pub(crate) async fn trigger(&self) -> Outcome<Answer> {
        self.check_running()?;
        let first = self.confirm().await?;
        let members = self.node.checkpoint_all(&first).await.map_err(no_backup)?;
        Ok(Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.flag("ok", members.iter().all(|(_, saved)| saved.is_some()));
            body.value("members", |out| {
                let mut list = Writer::array(out);
                for (name, saved) in &members {
                    list.element(|out| write_member(name, saved.as_ref(), out));
                }
                list.end();
            });
            body.end();
        }))
    }

    /// Catches up with all that is acknowledged; answers which index of each group that is.
    async fn confirm(&self) -> Outcome<BTreeMap<ShardId, Index>> {
        let mut confirmed = BTreeMap::new();
        for shard in (0..self.node.identity().shards).map(ShardId) {
            let asked = self.node.ask(shard, Query::Policy, Freshness::Linearizable, None, Some(self.lane));
            let (position, _) = asked.await.map_err(unavailable)?;
            confirmed.insert(shard, position.index);
        }
        Ok(confirmed)
    }
}

fn write_member(name: &str, saved: Option<&BTreeMap<ShardId, Index>>, out: &mut Vec<u8>) {
    let mut member = Writer::object(out);
    member.text("name", name);
    match saved {
        None => member.text("error", "it cannot be reached, or has not caught up in time"),
        Some(saved) => member.value("groups", |out| {
            let mut groups = Writer::array(out);
            for (shard, index) in saved {
                groups.element(|out| {
                    let mut group = Writer::object(out);
                    group.number("group", u64::from(shard.0));
                    group.number("appliedIndex", index.0);
                    group.end();
                });
            }
            groups.end();
        }),
    }
    member.end();
}

fn no_backup(why: NoBackup) -> Box<Problem> {
    Box::new(match why {
        NoBackup::NotRunning => Problem::new(Code::NotReady, "the server is starting or stopping").retry_after(1000),
        NoBackup::InMemory => {
            Problem::new(Code::NothingStored, "this node keeps its data in memory (storage.provider)")
        }
        NoBackup::Busy => Problem::new(Code::Overloaded, "another backup is being made here").retry_after(1000),
        NoBackup::Failed(error) => Problem::new(Code::Internal, format!("the backup cannot be made: {error}")),
    })
}
