//! Backups and checkpoints over HTTP.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use api::json::Writer;
use api::{Code, Problem};
use base::{Index, ShardId};
use bytes::Bytes;
use cluster::backup::NoBackup;
use cluster::{Freshness, NotRestored, StorageError};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use queue::Query;
use tokio::sync::mpsc::channel;

use crate::http::answer::Answer;
use crate::http::body::Pieces;
use crate::http::call::{Call, Outcome};
use crate::http::edge::Edge;
use crate::http::error::{invalid_body, unavailable};

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
        let backup = self.node.backup(local).await.map_err(no_backup)?;
        let left = backup.left();
        let name = format!("codeq-{}-{}.tar", backup.manifest.node, backup.manifest.created_at_ms);
        Ok(Answer::file(&name, sent(backup, left)))
    }

    /// Lets the backup in the body take the place of all data, if the query confirms which cluster's.
    pub(crate) async fn restore(&self, call: &Call, mut body: Incoming) -> Outcome<Answer> {
        self.check_running()?;
        let cluster = self.node.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default();
        if call.query("confirm").as_deref() != Some(cluster.as_str()) {
            let detail = format!("all data of this cluster would be replaced: confirm that with ?confirm={cluster}");
            return Err(Box::new(Problem::new(Code::WrongCluster, detail).field("confirm")));
        }
        let node = self.acting(call);
        let mut upload = node.upload().map_err(not_restored)?;
        let longest = self.shared.settings.http.body_timeout.to_std();
        loop {
            let late = |_| Box::new(Problem::new(Code::RequestTimeout, "the body did not arrive in time"));
            let Some(frame) = tokio::time::timeout(longest, body.frame()).await.map_err(late)? else { break };
            let frame = frame.map_err(|_| invalid_body("the body ended early"))?;
            if let Some(bytes) = frame.data_ref() {
                // Into memory of the system mostly: nothing is synced before all of it is there.
                upload.write_all(bytes).map_err(|cause| not_written(&cause))?;
            }
        }
        let manifest = node.restore(upload).await.map_err(not_restored)?;
        let incarnation = self.node.cluster().map(|cluster| cluster.incarnation.to_string()).unwrap_or_default();
        Ok(Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.flag("ok", true);
            body.text("clusterIncarnation", &incarnation);
            body.number("createdAtMs", manifest.created_at_ms);
            body.number("groups", manifest.groups.len() as u64);
            body.end();
        }))
    }

    /// Lets every member write a checkpoint of every group, with all that was acknowledged when this was asked for.
    pub(crate) async fn trigger(&self, call: &Call) -> Outcome<Answer> {
        self.check_running()?;
        let first = self.confirm().await?;
        let members = self.acting(call).checkpoint_all(&first).await.map_err(no_backup)?;
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

/// The bytes of a file, read as fast as the client takes them. `left`: how many there are.
pub(crate) fn sent(mut file: impl Read + Send + 'static, left: u64) -> Pieces {
    let (sender, pieces) = channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut buffer = vec![0; PIECE_BYTES];
            let piece = match file.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    buffer.truncate(length);
                    Ok(Bytes::from(buffer))
                }
                Err(error) => {
                    tracing::error!(event = "backup.failed", %error, "a file cannot be read while it is sent");
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
    Pieces { left: Some(left), pieces, held: None }
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

fn not_written(cause: &std::io::Error) -> Box<Problem> {
    let detail = format!("the backup cannot be written here: {cause}");
    let is_full = matches!(cause.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    Box::new(Problem::new(if is_full { Code::NoSpace } else { Code::Internal }, detail))
}

fn not_restored(why: NotRestored) -> Box<Problem> {
    Box::new(match why {
        NotRestored::NotRunning => Problem::new(Code::NotReady, "the server is starting or stopping").retry_after(1000),
        NotRestored::InMemory => {
            Problem::new(Code::NothingStored, "this node keeps its data in memory (storage.provider)")
        }
        NotRestored::Busy => Problem::new(Code::Overloaded, "another restore is under way").retry_after(1000),
        NotRestored::BadBackup(what) => Problem::new(Code::RestoreRefused, what),
        NotRestored::Refused(why) => Problem::new(Code::RestoreRefused, format!("nothing has changed: {why}")),
        NotRestored::NoLeader => return unavailable(cluster::Unavailable::NoLeader),
        NotRestored::Unknown => Problem::new(
            Code::OutcomeUnknown,
            "whether it was restored is not known: clusterIncarnation of /cluster/status has changed if it was",
        ),
        NotRestored::Failed(StorageError::Failed { cause, .. }) => return not_written(&cause),
        NotRestored::Failed(error) => Problem::new(Code::Internal, format!("nothing has changed: {error}")),
    })
}

pub(crate) fn no_backup(why: NoBackup) -> Box<Problem> {
    Box::new(match why {
        NoBackup::NotRunning => Problem::new(Code::NotReady, "the server is starting or stopping").retry_after(1000),
        NoBackup::InMemory => {
            Problem::new(Code::NothingStored, "this node keeps its data in memory (storage.provider)")
        }
        NoBackup::Busy => Problem::new(Code::Overloaded, "another backup is being made here").retry_after(1000),
        NoBackup::NotAllowed(why) => Problem::new(Code::OperatorRequired, why),
        NoBackup::Failed(error) => Problem::new(Code::Internal, format!("the file cannot be made: {error}")),
    })
}
