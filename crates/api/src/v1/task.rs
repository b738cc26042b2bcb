//! What clients are shown of a task.

use crate::json::Writer;

/// Where a task is, in codeQ's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// `PENDING`, `IN_PROGRESS`, `COMPLETED`, `FAILED`.
    pub status: &'static str,
    /// `PENDING_LIST`, `DELAYED_ZSET`, `INPROG_SET`, `DLQ_SET`, `NONE`.
    pub location: &'static str,
    /// The finer state: `READY`, `DELAYED`, `LEASED`, `COMPLETED`, `FAILED`, `DEAD`, `CANCELLED`.
    pub state: &'static str,
}

/// A task. Times are milliseconds since the Unix epoch. Fields are written in the order of the contract; empty ones are left out.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Its id.
    pub id: &'a str,
    /// Name of the queue.
    pub command: &'a str,
    /// JSON as sent; absent in lists.
    pub payload: Option<&'a [u8]>,
    /// 0 to 9.
    pub priority: u8,
    /// URL to be told of the end.
    pub webhook: &'a str,
    /// Where it is.
    pub location: Location,
    /// Who holds it.
    pub worker: Option<&'a str>,
    /// Estimated end of the lease.
    pub lease_until: Option<u64>,
    /// Deliveries so far.
    pub attempts: u32,
    /// Deliveries it may have.
    pub max_attempts: u32,
    /// Why it ended.
    pub error: &'a str,
    /// A worker has given a result.
    pub has_result: bool,
    /// Owner of the queue.
    pub tenant: &'a str,
    /// Creation.
    pub created_at: u64,
    /// Last change of state.
    pub updated_at: u64,
    /// When it becomes ready.
    pub run_at: Option<u64>,
    /// Why its last attempt failed, while it is live.
    pub last_error: &'a str,
    /// End.
    pub finished_at: Option<u64>,
    /// Only in the answer to a claim.
    pub lease: Option<Lease<'a>>,
    /// The producer's key.
    pub idempotency_key: &'a str,
    /// How long its payload is, in lists that leave it out.
    pub payload_bytes: Option<u64>,
    /// Its holder is asked to stop.
    pub cancel_requested: bool,
    /// JSON of its result, in lists that include it.
    pub result: Option<&'a [u8]>,
}

/// What the answer to a claim adds.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    /// The right to act on the lease; opaque.
    pub token: &'a str,
    /// Length of the lease in milliseconds.
    pub ms: u64,
}

impl Task<'_> {
    /// Appends it as JSON.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut object = Writer::object(out);
        object.plain("id", self.id);
        object.text("command", self.command);
        if let Some(payload) = self.payload {
            object.raw("payload", payload);
        }
        maybe_number(&mut object, "priority", u64::from(self.priority));
        maybe_text(&mut object, "webhook", self.webhook);
        object.text("status", self.location.status);
        object.text("lastKnownLocation", self.location.location);
        if let Some(worker) = self.worker {
            object.text("workerId", worker);
        }
        maybe_time(&mut object, "leaseUntil", self.lease_until);
        maybe_number(&mut object, "attempts", u64::from(self.attempts));
        object.number("maxAttempts", u64::from(self.max_attempts));
        maybe_text(&mut object, "error", self.error);
        if self.has_result {
            object.text("resultKey", "codeq:results");
        }
        object.text("tenantId", self.tenant);
        object.time("createdAt", self.created_at);
        object.time("updatedAt", self.updated_at);
        object.text("state", self.location.state);
        maybe_time(&mut object, "runAt", self.run_at);
        maybe_text(&mut object, "lastError", self.last_error);
        maybe_time(&mut object, "finishedAt", self.finished_at);
        if let Some(lease) = &self.lease {
            object.text("leaseToken", lease.token);
            object.number("leaseMs", lease.ms);
        }
        maybe_text(&mut object, "idempotencyKey", self.idempotency_key);
        if let Some(bytes) = self.payload_bytes {
            object.number("payloadBytes", bytes);
        }
        if self.cancel_requested {
            object.flag("cancelRequested", true);
        }
        if let Some(result) = self.result {
            object.raw("result", result);
        }
        object.end();
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug)]
pub struct ResultRecord<'a> {
    /// The task.
    pub task_id: &'a str,
    /// `COMPLETED` or `FAILED`.
    pub status: &'static str,
    /// JSON as sent.
    pub result: Option<&'a [u8]>,
    /// Why it failed, or a remark.
    pub error: &'a str,
    /// When, in milliseconds since the Unix epoch.
    pub completed_at: u64,
    /// The delivery that ended it; 0: none did.
    pub attempt: u32,
}

impl ResultRecord<'_> {
    /// Appends it as JSON.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut object = Writer::object(out);
        object.plain("taskId", self.task_id);
        object.text("status", self.status);
        if let Some(result) = self.result {
            object.raw("result", result);
        }
        maybe_text(&mut object, "error", self.error);
        object.time("completedAt", self.completed_at);
        maybe_number(&mut object, "attempt", u64::from(self.attempt));
        object.end();
    }
}

fn maybe_text(object: &mut Writer<'_>, name: &str, text: &str) {
    if !text.is_empty() {
        object.text(name, text);
    }
}

fn maybe_number(object: &mut Writer<'_>, name: &str, number: u64) {
    if number != 0 {
        object.number(name, number);
    }
}

fn maybe_time(object: &mut Writer<'_>, name: &str, time: Option<u64>) {
    if let Some(time) = time {
        object.time(name, time);
    }
}
