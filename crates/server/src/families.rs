//! What `/metrics` shows: every family of series, with its type, its labels and its meaning. `metrics` fills them in; nothing that is not
//! here is shown.

/// Series of one name.
#[derive(Debug)]
pub struct Family {
    /// Its name; that of a counter ends with `_total`.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What tells its series apart; a bucket of a histogram has `le` besides.
    pub labels: &'static [&'static str],
    /// What it measures.
    pub help: &'static str,
}

/// Types of Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises; 0 at the start of the process.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Counts by upper bound, and their sum.
    Histogram,
    /// A count and a sum.
    Summary,
}

impl Kind {
    /// Its name in the text format.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        }
    }
}

/// One family of the table below.
macro_rules! families {
    ($($family:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(crate) static $family: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// Every family, in the order of the page.
        pub static FAMILIES: &[&Family] = &[$(&$family),*];
    };
}

families! {
    CREATED Counter "codeq_task_created_total" ["command"] "New tasks, without replays.";
    CLAIMED Counter "codeq_task_claimed_total" ["command"] "Deliveries.";
    EXPIRED Counter "codeq_lease_expired_total" ["command"] "Leases that ran out.";
    COMPLETED Counter "codeq_task_completed_total" ["command", "status"] "Tasks that ended, by whatever path.";
    LATENCY Histogram "codeq_task_processing_latency_seconds" ["command", "status"] "From creation to end.";
    QUEUE_DEPTH Gauge "codeq_queue_depth" ["command", "queue"] "Tasks in each queue, all tenants added.";
    DLQ_DEPTH Gauge "codeq_dlq_depth" ["command"] "Dead letters that retention still keeps.";
    OPERATIONS Counter "codeq_operations_total" [] "Operations that the log's shards have taken.";
    ENTRIES Counter "codeq_log_entries_total" [] "Entries written to the log.";
    SYNCS Counter "codeq_log_syncs_total" [] "Syncs of the log.";
    WRITTEN Counter "codeq_log_written_bytes_total" [] "Bytes written to the log.";
    REFUSED Counter "codeq_requests_refused_total" [] "Requests refused because a queue was full.";
    TURNS Counter "codeq_loop_turns_total" [] "Turns of the loop.";
    INBOX_DEPTH Gauge "codeq_inbox_depth" [] "Requests in front of the loop.";
    WAITERS Gauge "codeq_waiters" [] "Requests that wait for a task or a result.";
    EVENT_STREAMS Gauge "codeq_event_streams" [] "Streams of what happens to tasks.";
    STORAGE Gauge "codeq_storage_bytes" ["kind"] "Bytes on disk.";
    CHECKPOINT Summary "codeq_checkpoint_seconds" [] "Time spent writing checkpoints.";
    COMMIT Histogram "codeq_raft_commit_seconds" [] "From the proposal of an entry here until it is committed.";
    APPLY Histogram "codeq_raft_apply_seconds" [] "Turns of the loop that applied entries.";
    SYNC Histogram "codeq_wal_sync_seconds" [] "Writes of the log with their syncs.";
    BATCH Histogram "codeq_wal_batch_operations" [] "Operations of each entry proposed here.";
    TERM Gauge "codeq_raft_term" ["group"] "The term of each group.";
    COMMIT_INDEX Gauge "codeq_raft_commit_index" ["group"] "The last entry known to be committed.";
    APPLIED_INDEX Gauge "codeq_raft_applied_index" ["group"] "The last entry applied.";
    CHECKPOINT_INDEX Gauge "codeq_raft_checkpoint_index" ["group"] "The last entry that the checkpoint holds.";
    IS_LEADER Gauge "codeq_raft_is_leader" ["group"] "1 where this node leads and takes writes.";
    SKIPPED Gauge "codeq_raft_skipped_entries" ["group"] "Entries of a leader that had been deposed; never more than 0.";
    HAS_LEADER Gauge "codeq_raft_has_leader" ["group"] "1 where a leader is known.";
    ROLE Gauge "codeq_raft_role" ["group", "role"] "1 for the part that this node plays in each group.";
    LAST_CONTACT Gauge "codeq_raft_last_contact_seconds" ["group"]
        "Since the leader was heard of, or a quorum by the leader; absent while that is unknown.";
    QUORUM_REACHABLE Gauge "codeq_raft_quorum_reachable" [] "1 where a majority is there.";
    FAILURE_TOLERANCE Gauge "codeq_raft_failure_tolerance" [] "Voters that may fail now, and a majority remains.";
    MEMBER_HEALTHY Gauge "codeq_member_healthy" ["member"]
        "1 where a member is there and lacks little, as far as this node knows.";
    PEER_UP Gauge "codeq_raft_peer_up" ["peer"] "1 where there is a connection to a member.";
    PEER_RTT Gauge "codeq_raft_peer_rtt_seconds" ["peer"] "Round trip of the last sign of life.";
    PEER_LAG Gauge "codeq_raft_peer_lag" ["peer", "group"] "Entries that a member lacks, of groups that this node leads.";
    ELECTIONS Counter "codeq_raft_elections_total" ["cause", "result"]
        "Elections that this node has stood for in a new term, of all groups.";
    OUTAGE Histogram "codeq_raft_outage_seconds" []
        "From the last contact with a leader until this node, the next one, took writes.";
    LEADER_CHANGES Counter "codeq_raft_leader_changes_total" [] "Leaders elected since the start, of all groups.";
    EVENTS_LOST Counter "codeq_events_lost_total" [] "Events that their file did not take in time.";
    BUILD_INFO Gauge "codeq_build_info" ["version"] "The build that runs.";
    ALARMS Gauge "codeq_alarms" ["kind"] "Members that have raised an alarm, as far as this node knows.";
    BACKUP_AGE Gauge "codeq_backup_age_seconds" []
        "Since everything was saved last in this node's directory of backups; absent without such a directory.";
    CERTIFICATE_LEFT Gauge "codeq_certificate_left_seconds" ["port"]
        "Until the certificate that this node shows at this port ends; less than 0: it has ended. Absent without one.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Goal: names are unique and keep the format's rules: ours begin alike, a counter says that it is a total, a time says its unit.
    #[test]
    fn names_keep_the_rules_of_the_format() {
        let names: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for Family { name, kind, labels, help } in FAMILIES {
            assert!(name.starts_with("codeq_") && help.ends_with('.'), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(!labels.contains(&"le"), "{name}: buckets have it by themselves");
        }
    }
}
