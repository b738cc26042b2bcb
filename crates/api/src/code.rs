//! The stable error codes. Codes are never renamed or reused; clients read them, people read the texts.

/// One code of the table below.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident $code:literal $status:literal $title:literal;)*) => {
        /// What went wrong, for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// Its name on the wire.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$variant => $code,)*
                }
            }

            /// The HTTP status it comes with.
            pub const fn status(self) -> u16 {
                match self {
                    $(Code::$variant => $status,)*
                }
            }

            /// A fixed English phrase.
            pub const fn title(self) -> &'static str {
                match self {
                    $(Code::$variant => $title,)*
                }
            }

            /// When it comes: a sentence or two.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Code::$variant => concat!($($doc),+).trim_ascii(),)*
                }
            }
        }
    };
}

codes! {
    /// Another node leads, and the client is to go there.
    NotLeader "not_leader" 307 "not leader";
    /// Not JSON, a wrong type, or a required field is missing.
    InvalidBody "invalid_body" 400 "the body cannot be used";
    /// One field is out of range or unknown.
    InvalidField "invalid_field" 400 "a field is out of range";
    /// The name of a queue breaks the rule for names.
    InvalidCommand "invalid_command" 400 "the command name is not allowed";
    /// Not a time, or too far ahead.
    InvalidRunAt "invalid_run_at" 400 "the time cannot be used";
    /// Negative, or too far ahead.
    InvalidDelay "invalid_delay" 400 "the delay cannot be used";
    /// Not http(s) with a host, or too long.
    InvalidWebhookUrl "invalid_webhook_url" 400 "the webhook URL cannot be used";
    /// The fields of a result contradict its status.
    InvalidResult "invalid_result" 400 "the result cannot be used";
    /// More items than a batch may have.
    BatchTooLarge "batch_too_large" 400 "the batch is too large";
    /// Too long, or header and body differ.
    InvalidIdempotencyKey "invalid_idempotency_key" 400 "the idempotency key cannot be used";
    /// Malformed, or of a shard that does not exist.
    InvalidPosition "invalid_position" 400 "the position cannot be used";
    /// Not a kind of consistency, or one that does not fit the other parameters.
    InvalidConsistency "invalid_consistency" 400 "the consistency cannot be used";
    /// Of another list, malformed, or not the form of this version.
    InvalidCursor "invalid_cursor" 400 "the cursor cannot be used";
    /// An unknown parameter, one that cannot be used, or one that contradicts another.
    InvalidFilter "invalid_filter" 400 "the filter cannot be used";
    /// What cannot be undone is asked for without the word that confirms it.
    ConfirmationRequired "confirmation_required" 400 "this must be confirmed";
    /// No token was sent.
    MissingCredentials "missing_credentials" 401 "credentials are missing";
    /// The token was refused.
    InvalidCredentials "invalid_credentials" 401 "credentials were refused";
    /// This side has no provider that could accept a token.
    AuthNotConfigured "auth_not_configured" 401 "no credentials are configured for this route";
    /// The route is for operators of the cluster.
    OperatorRequired "operator_required" 403 "operators of the cluster only";
    /// The node was told to take no actions on the cluster.
    ReadOnlyNode "read_only_node" 403 "this node takes no actions on the cluster";
    /// A file that was to be read again is not as it should be; the server goes on with what it had.
    InvalidFile "invalid_file" 422 "a file cannot be used";
    /// The token's claims name no tenant, or several.
    TenantInvalid "tenant_invalid" 403 "the token names no usable tenant";
    /// A valid token without what a worker needs.
    WorkerClaimsMissing "worker_claims_missing" 403 "the token is not one of a worker";
    /// The route's scope is not among the token's.
    MissingScope "missing_scope" 403 "the token lacks a scope";
    /// The queue is not among those the token may work on.
    EventTypeNotAllowed "event_type_not_allowed" 403 "the token may not work on this queue";
    /// The token is not an administrator's.
    AdminRequired "admin_required" 403 "administrators only";
    /// In open mode, only programs and pages of this machine may call.
    OriginNotAllowed "origin_not_allowed" 403 "the request comes from another site";
    /// Another worker holds the task.
    NotOwner "not_owner" 403 "another worker holds the task";
    /// No route has this path.
    RouteNotFound "route_not_found" 404 "there is no such path";
    /// No task of this tenant has this id.
    TaskNotFound "task_not_found" 404 "there is no such task";
    /// No operation of this tenant has this id.
    OperationNotFound "operation_not_found" 404 "there is no such operation";
    /// The task has not ended.
    ResultNotFound "result_not_found" 404 "the task has no result yet";
    /// The path exists, with other methods.
    MethodNotAllowed "method_not_allowed" 405 "the method is not allowed here";
    /// The body did not arrive in time.
    RequestTimeout "request_timeout" 408 "the body took too long";
    /// Nobody holds the task.
    NotInProgress "not_in_progress" 409 "nobody holds the task";
    /// The lease token is not the current one.
    LeaseLost "lease_lost" 409 "the lease is lost";
    /// The same key came with another body.
    IdempotencyConflict "idempotency_conflict" 409 "the idempotency key is bound to another body";
    /// The task has ended, so it cannot be cancelled.
    AlreadyFinished "already_finished" 409 "the task has ended";
    /// A worker holds the task, so it cannot be edited.
    AlreadyLeased "already_leased" 409 "a worker holds the task";
    /// An operation of the same kind works on the same queues.
    OperationConflict "operation_conflict" 409 "another operation works on the same tasks";
    /// The operation has ended, or was stopped.
    OperationState "operation_state" 409 "the operation is not in this state";
    /// The task is live, so it cannot be redriven.
    NotFinished "not_finished" 409 "the task has not ended";
    /// The body is larger than allowed.
    BodyTooLarge "body_too_large" 413 "the body is too large";
    /// The payload is larger than allowed.
    PayloadTooLarge "payload_too_large" 413 "the payload is too large";
    /// The result is larger than allowed.
    ResultTooLarge "result_too_large" 413 "the result is too large";
    /// The request line is longer than allowed.
    UriTooLong "uri_too_long" 414 "the request line is too long";
    /// The body is compressed.
    UnsupportedEncoding "unsupported_encoding" 415 "compressed bodies are not accepted";
    /// No member has this name or id.
    UnknownMember "unknown_member" 404 "there is no such member";
    /// No join token has this id.
    UnknownToken "unknown_token" 404 "there is no such join token";
    /// There are as many join tokens as there may be.
    TooManyTokens "too_many_tokens" 409 "there are too many join tokens";
    /// There is no such shard.
    UnknownGroup "unknown_group" 404 "there is no such group";
    /// The change would leave a group without a majority.
    QuorumGuard "quorum_guard" 409 "the cluster would lose its majority";
    /// The member does not vote, so it cannot lead.
    NotVoter "not_voter" 409 "the member does not vote";
    /// A member of that name is there and votes already.
    NameInUse "name_in_use" 409 "the member is there already";
    /// The group is led as before.
    TransferFailed "transfer_failed" 409 "leadership was not handed over";
    /// The node has no address for peers.
    SingleMode "single_mode" 409 "the node is alone";
    /// The node keeps its data in memory.
    NothingStored "nothing_stored" 409 "the node keeps nothing on disk";
    /// A member could not take its part of the backup, or the backup does not fit the cluster. Nothing has changed.
    RestoreRefused "restore_refused" 409 "the backup was not restored";
    /// The cluster is another one than was named.
    WrongCluster "wrong_cluster" 409 "this is another cluster";
    /// Too many requests of this tenant wait.
    TooManyWaiters "too_many_waiters" 429 "too many requests wait";
    /// Too many refused credentials came from this address.
    AuthThrottled "auth_throttled" 429 "too many refused credentials";
    /// The headers are larger than allowed.
    HeadersTooLarge "headers_too_large" 431 "the headers are too large";
    /// A fault of ours.
    Internal "internal" 500 "the server has met a fault of its own";
    /// A backup takes the place of all data just now.
    RestoreInProgress "restore_in_progress" 503 "a backup is being restored";
    /// No node leads the shard.
    NoLeader "no_leader" 503 "no leader";
    /// This node has no contact with a majority.
    Isolated "isolated" 503 "the node is isolated";
    /// Queues or memory are full.
    Overloaded "overloaded" 503 "the server is overloaded";
    /// The server is starting.
    NotReady "not_ready" 503 "the server is starting";
    /// The node waits for others to found a cluster with, or to be admitted to one.
    NotJoined "not_joined" 503 "the node belongs to no cluster yet";
    /// The server is stopping.
    Draining "draining" 503 "the server is stopping";
    /// The wanted position or freshness was not reached in time.
    TooStale "too_stale" 503 "the state is not recent enough";
    /// The operation may have happened.
    OutcomeUnknown "outcome_unknown" 504 "it is not known whether the request had an effect";
    /// The memory guard is reached.
    NoSpace "no_space" 507 "there is no room for more tasks";
}

impl Code {
    /// Whether it is certain that the request had no effect.
    pub const fn is_definite(self) -> bool {
        !matches!(self, Code::OutcomeUnknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_statuses_are_errors() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!((400..600).contains(&code.status()) || *code == Code::NotLeader, "{code:?}");
            assert!(code.name().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{code:?}");
            assert!(!code.title().ends_with('.'), "{code:?}");
        }
    }

    #[test]
    fn a_503_is_definite_and_a_504_is_not() {
        for code in Code::ALL {
            assert_eq!(code.is_definite(), code.status() != 504, "{code:?}");
        }
    }
}
