//! What clients send. A field's name is its JSON key in camelCase; what is required and in which range is said where the route is served.

use serde_json::value::RawValue;

use crate::json::{Int, Seconds, Text};
use crate::json_object;

json_object! {
    /// A new task.
    pub struct CreateBody<'a> {
        /// Name of the queue.
        command: Text<'a> = "command",
        /// Any JSON value but null.
        payload: &'a RawValue = "payload",
        /// RFC 3339; wins over `delay`.
        run_at: Text<'a> = "runAt",
        /// How long until it becomes ready.
        delay: Seconds = "delaySeconds",
        /// URL to be told of the end.
        webhook: Text<'a> = "webhook",
        /// Makes a repeat answer with the first task.
        idempotency_key: Text<'a> = "idempotencyKey",
        /// 0 to 9.
        priority: Int = "priority",
        /// Deliveries.
        max_attempts: Int = "maxAttempts",
    }
}

json_object! {
    /// Several new tasks.
    pub struct CreateBatchBody<'a> {
        /// The tasks.
        tasks: Vec<CreateBody<'a>> = "tasks",
    }
}

json_object! {
    /// A claim of one task or several.
    pub struct ClaimBody<'a> {
        /// Names of queues; absent or empty: all that the token allows.
        commands: Vec<Text<'a>> = "commands",
        /// Length of the lease.
        lease: Seconds = "leaseSeconds",
        /// How long to wait for a task.
        wait: Seconds = "waitSeconds",
        /// `request` or `priority`.
        order: Text<'a> = "order",
        /// How many tasks; of a batch only.
        count: Int = "count",
    }
}

json_object! {
    /// An extension of a lease.
    pub struct HeartbeatBody<'a> {
        /// New length from now on.
        extend: Seconds = "extendSeconds",
        /// The grant's token.
        lease_token: Text<'a> = "leaseToken",
    }
}

json_object! {
    /// A task given back unharmed.
    pub struct ReleaseBody<'a> {
        /// The grant's token.
        lease_token: Text<'a> = "leaseToken",
    }
}

json_object! {
    /// A failed attempt.
    pub struct NackBody<'a> {
        /// Delay until the next attempt; absent or negative: the policy's.
        delay: Seconds = "delaySeconds",
        /// Why.
        reason: Text<'a> = "reason",
        /// The grant's token.
        lease_token: Text<'a> = "leaseToken",
    }
}

json_object! {
    /// The end of a task.
    pub struct ResultBody<'a> {
        /// The task; in a batch only.
        task_id: Text<'a> = "taskId",
        /// `COMPLETED` or `FAILED`.
        status: Text<'a> = "status",
        /// An object.
        result: &'a RawValue = "result",
        /// Required with `FAILED`.
        error: Text<'a> = "error",
        /// The grant's token.
        lease_token: Text<'a> = "leaseToken",
        /// With `FAILED`: not the end, but a failed attempt.
        retryable: bool = "retryable",
        /// With `retryable`: as in a nack.
        delay: Seconds = "delaySeconds",
    }
}

json_object! {
    /// The ends of several tasks.
    pub struct ResultBatchBody<'a> {
        /// The results.
        results: Vec<ResultBody<'a>> = "results",
    }
}

json_object! {
    /// The cancellation of a task.
    pub struct CancelBody<'a> {
        /// Why.
        reason: Text<'a> = "reason",
        /// End it even if a worker holds it.
        force: bool = "force",
        ..unknown
    }
}

json_object! {
    /// The return of an ended task.
    pub struct RedriveBody<'a> {
        /// `reset` or `keep`.
        attempts: Text<'a> = "attempts",
        /// How long until it becomes ready.
        delay: Seconds = "delaySeconds",
        /// Another priority.
        priority: Int = "priority",
        /// Another payload.
        payload: &'a RawValue = "payload",
        ..unknown
    }
}

json_object! {
    /// Extensions of several leases.
    pub struct HeartbeatBatchBody<'a> {
        /// They.
        heartbeats: Vec<HeartbeatItem<'a>> = "heartbeats",
        ..unknown
    }
}

json_object! {
    /// One of them.
    pub struct HeartbeatItem<'a> {
        /// The task.
        task_id: Text<'a> = "taskId",
        /// New length from now on.
        extend: Seconds = "extendSeconds",
        /// The grant's token.
        lease_token: Text<'a> = "leaseToken",
        ..unknown
    }
}

json_object! {
    /// Changes of a task that waits.
    pub struct EditBody<'a> {
        /// 0 to 9.
        priority: Int = "priority",
        /// RFC 3339; wins over `delay`.
        run_at: Text<'a> = "runAt",
        /// How long until it becomes ready.
        delay: Seconds = "delaySeconds",
        /// Any JSON value but null.
        payload: &'a RawValue = "payload",
        /// Deliveries.
        max_attempts: Int = "maxAttempts",
        /// URL to be told of the end.
        webhook: Text<'a> = "webhook",
        ..unknown
    }
}

json_object! {
    /// Nothing is asked for beyond the path.
    pub struct NoBody<'a> {
        ..unknown
    }
}

json_object! {
    /// A pause of a queue.
    pub struct PauseBody<'a> {
        /// Why.
        reason: Text<'a> = "reason",
        /// For how long; absent: until it is resumed.
        duration: Seconds = "durationSeconds",
        ..unknown
    }
}
