//! Who sends a request, and what that one may do. The core is handed a tenant; nothing below this knows a token.

mod open;
mod principal;
mod provider;
mod static_tokens;
mod throttle;

use std::net::IpAddr;
use std::sync::Arc;

use api::{Code, Problem};

pub use open::OpenMode;
pub(crate) use principal::is_tenant;
pub use principal::{EventTypes, Principal};
pub(crate) use provider::tokens_of;
pub use static_tokens::{StaticToken, StaticTokens};
use throttle::Throttle;

/// The scope that a worker's route asks for.
pub mod scope {
    /// Claims.
    pub const CLAIM: &str = "codeq:claim";
    /// Extensions.
    pub const HEARTBEAT: &str = "codeq:heartbeat";
    /// Releases.
    pub const ABANDON: &str = "codeq:abandon";
    /// Failed attempts.
    pub const NACK: &str = "codeq:nack";
    /// Results.
    pub const RESULT: &str = "codeq:result";
    /// Administration of a tenant.
    pub const ADMIN: &str = "codeq:admin";
    /// What a worker may do when its token is a producer's.
    pub const OF_WORKERS: [&str; 6] = [CLAIM, HEARTBEAT, ABANDON, NACK, RESULT, "codeq:subscribe"];
}

/// Who may do what.
#[derive(Clone, Debug, Default)]
pub struct AuthSettings {
    /// Accepts producers' tokens.
    pub producer: Option<StaticTokens>,
    /// Accepts workers' tokens.
    pub worker: Option<StaticTokens>,
    /// Nobody needs a token: for development.
    pub open: Option<OpenMode>,
    /// A producer's token may also work.
    pub allow_producer_as_worker: bool,
    /// Tenant of tokens without a tenant claim; otherwise their subject is it.
    pub default_tenant: Option<String>,
}

/// What a route asks of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Open,
    /// A producer's token.
    Producer,
    /// A worker's token with this scope.
    Worker(&'static str),
    /// Any valid token.
    Any,
    /// A producer's token with the right to administer its tenant.
    Admin,
    /// Any valid token with the right to act on the cluster.
    Operator,
}

/// Decides who sends a request.
#[derive(Debug)]
pub struct Authenticator {
    settings: AuthSettings,
    /// Everybody, in open mode.
    anybody: Arc<Principal>,
    throttle: Throttle,
}

/// Why a token was refused. The caller learns which code; the reason goes to the log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No provider knows it.
    Unknown,
    /// It has no subject.
    NoSubject,
    /// Its claims name no usable tenant.
    Tenant,
    /// It lacks what a worker needs.
    WorkerClaims(&'static str),
}

impl Authenticator {
    /// An authenticator that follows these settings.
    pub fn new(settings: AuthSettings) -> Authenticator {
        Authenticator { settings, anybody: Arc::new(Principal::anybody()), throttle: Throttle::default() }
    }

    /// Whether nobody needs a token.
    pub fn is_open(&self) -> bool {
        self.settings.open.is_some()
    }

    /// Refuses what only a page of another site would send to an open server.
    ///
    /// # Errors
    /// What to answer.
    pub fn check_origin(&self, host: Option<&str>, origin: Option<&str>, changes: bool) -> Result<(), Box<Problem>> {
        match &self.settings.open {
            Some(open) => open.check(host, origin, changes),
            None => Ok(()),
        }
    }

    /// Who sends a request with this `Authorization` header from this address.
    ///
    /// # Errors
    /// What to answer instead of serving it.
    pub fn authenticate(
        &self,
        access: Access,
        authorization: Option<&[u8]>,
        from: IpAddr,
    ) -> Result<Arc<Principal>, Box<Problem>> {
        if self.is_open() || access == Access::Open {
            return Ok(self.anybody.clone());
        }
        let token = bearer(authorization)?;
        if self.throttle.is_blocked(from, token) {
            let problem = Problem::new(Code::AuthThrottled, "wait a minute, and check the token");
            return Err(Box::new(problem.retry_after(60_000)));
        }
        let checked = self.check(access, token);
        match &checked {
            Err(problem) if problem.code == Code::InvalidCredentials => self.throttle.on_refused(from),
            Ok(_) => self.throttle.on_accepted(token),
            Err(_) => {}
        }
        checked
    }

    fn check(&self, access: Access, token: &str) -> Result<Arc<Principal>, Box<Problem>> {
        match access {
            Access::Open => Ok(self.anybody.clone()),
            Access::Producer => self.producer(token),
            Access::Admin => {
                let principal = self.producer(token)?;
                if principal.is_admin {
                    return Ok(principal);
                }
                let problem = Problem::new(Code::AdminRequired, "this route needs scope codeq:admin or role admin");
                Err(Box::new(problem.error("unauthorized. Admin only")))
            }
            Access::Worker(scope) => self.worker(token, scope),
            Access::Operator => {
                let principal = self.check(Access::Any, token)?;
                if principal.is_operator {
                    return Ok(principal);
                }
                let detail = "this route needs a token with the claim clusterRole: operator or admin";
                Err(Box::new(Problem::new(Code::OperatorRequired, detail)))
            }
            Access::Any => match (&self.settings.worker, &self.settings.producer) {
                (Some(workers), _) if workers.find(token).is_ok_and(|found| !found.event_types.is_empty()) => {
                    workers.find(token).map_err(problem_of)
                }
                (_, Some(producers)) => producers.find(token).map_err(problem_of),
                _ => Err(problem_of(Refusal::Unknown)),
            },
        }
    }

    fn producer(&self, token: &str) -> Result<Arc<Principal>, Box<Problem>> {
        match &self.settings.producer {
            Some(producers) => producers.find(token).map_err(problem_of),
            None => Err(not_configured("producer validator not configured")),
        }
    }

    /// A worker's token, or with the setting a producer's.
    fn worker(&self, token: &str, scope: &'static str) -> Result<Arc<Principal>, Box<Problem>> {
        let first = match &self.settings.worker {
            Some(workers) => workers.find(token).and_then(Principal::as_worker).map_err(problem_of),
            None => Err(not_configured("worker validator not configured")),
        };
        let principal = match (first, &self.settings.producer) {
            (Err(refused), Some(producers)) if self.settings.allow_producer_as_worker => {
                producers.find_as_worker(token).ok_or(refused)?
            }
            (first, _) => first?,
        };
        if principal.has_scope(scope) {
            return Ok(principal);
        }
        let problem = Problem::new(Code::MissingScope, format!("this route needs scope {scope}"));
        Err(Box::new(problem.error("missing scope")))
    }
}

fn not_configured(error: &'static str) -> Box<Problem> {
    let detail = "the server has no provider that could accept a token for this route";
    Box::new(Problem::new(Code::AuthNotConfigured, detail).error(error))
}

fn problem_of(refusal: Refusal) -> Box<Problem> {
    let refused = |error| {
        Problem::new(Code::InvalidCredentials, "the token was refused; the server's log has the reason").error(error)
    };
    Box::new(match refusal {
        Refusal::Unknown => refused("invalid token"),
        Refusal::NoSubject => refused("workerId is required"),
        Refusal::Tenant => {
            let detail =
                "the token's tenant claims, or its subject, must be one name of [a-z][a-z0-9-], 2 to 63 characters";
            Problem::new(Code::TenantInvalid, detail).error("invalid tenant claims")
        }
        Refusal::WorkerClaims(error) => {
            Problem::new(Code::WorkerClaimsMissing, "a worker's token needs event types and scopes").error(error)
        }
    })
}

/// The token of an `Authorization: Bearer` header.
fn bearer(authorization: Option<&[u8]>) -> Result<&str, Box<Problem>> {
    let detail = "send the header Authorization: Bearer <token>";
    let missing = || Box::new(Problem::new(Code::MissingCredentials, detail).error("missing Authorization header"));
    let malformed = || Box::new(Problem::new(Code::InvalidCredentials, detail).error("invalid Authorization format"));
    let value = authorization.ok_or_else(missing)?;
    let value = std::str::from_utf8(value).map_err(|_| malformed())?.trim();
    if value.is_empty() {
        return Err(missing());
    }
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => Ok(token.trim()),
        _ => Err(malformed()),
    }
}
