//! Who sends a request, and what that one may do. The core is handed a tenant; nothing below this knows a token.

mod open;
mod principal;
mod provider;
mod roles;
mod static_tokens;
mod throttle;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use api::{Code, Problem};
use data_encoding::BASE64;
use sha2::{Digest, Sha256};

pub use open::OpenMode;
pub(crate) use principal::is_tenant;
pub use principal::{EventTypes, Principal};
pub(crate) use provider::tokens_of;
pub use roles::{ClusterRole, RoleTokens};
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
    /// Tokens that have a role in the cluster, as they were read last.
    pub roles: Option<Arc<RwLock<RoleTokens>>>,
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
    /// Any valid token with the right to look at all of the cluster.
    Viewer,
    /// Any valid token with the right to introduce nodes to each other.
    Join,
    /// Any valid token with the right to act on the cluster.
    Operator,
    /// Any valid token with every right on the cluster.
    ClusterAdmin,
    /// Any valid token, also one that reads metrics only.
    Metrics,
}

/// Decides who sends a request.
#[derive(Debug)]
pub struct Authenticator {
    settings: AuthSettings,
    /// Everybody, in open mode.
    anybody: Arc<Principal>,
    /// Whoever may use the data directory.
    owner: Arc<Principal>,
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
        let owner = Arc::new(Principal::with_role("the local socket", ClusterRole::Admin));
        Authenticator { settings, anybody: Arc::new(Principal::anybody()), owner, throttle: Throttle::default() }
    }

    /// Whether nobody needs a token.
    pub fn is_open(&self) -> bool {
        self.settings.open.is_some()
    }

    /// Refuses what only a page of another site would send to an open server, or with a password that the browser knows.
    ///
    /// # Errors
    /// What to answer.
    pub fn check_origin(
        &self,
        host: Option<&str>,
        origin: Option<&str>,
        changes: bool,
        authorization: Option<&[u8]>,
    ) -> Result<(), Box<Problem>> {
        match &self.settings.open {
            Some(open) => open.check(host, origin, changes),
            None if changes && is_ambient(authorization) && !open::is_own_site(host, origin) => {
                let detail = "with a password this server takes changes from its own pages only";
                Err(Box::new(Problem::new(Code::OriginNotAllowed, detail)))
            }
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
        let token = &*token_of(authorization)?;
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

    /// Whoever asks by the socket in the data directory without a token: an administrator of the cluster, and of no tenant.
    ///
    /// # Errors
    /// What is asked for is a tenant's, so that it takes a token.
    pub fn owner(&self, access: Access) -> Result<Arc<Principal>, Box<Problem>> {
        match access {
            _ if self.is_open() => Ok(self.anybody.clone()),
            Access::Producer | Access::Worker(_) | Access::Admin => Err(missing_token()),
            Access::Open
            | Access::Any
            | Access::Viewer
            | Access::Join
            | Access::Operator
            | Access::ClusterAdmin
            | Access::Metrics => Ok(self.owner.clone()),
        }
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
            Access::Viewer => self.with_role(token, "viewer, operator or admin", ClusterRole::looks),
            Access::Join => {
                let may = |role: ClusterRole| role.operates() || role == ClusterRole::Join;
                self.with_role(token, "join, operator or admin", may)
            }
            Access::Operator => self.with_role(token, "operator or admin", ClusterRole::operates),
            Access::ClusterAdmin => self.with_role(token, "admin", |role| role == ClusterRole::Admin),
            Access::Metrics => self.anybody_known(token),
            Access::Any => {
                let principal = self.anybody_known(token)?;
                match principal.cluster_role {
                    Some(role @ (ClusterRole::Metrics | ClusterRole::Join)) if principal.tenant.is_empty() => {
                        let detail = format!("a token with the role {} does nothing else", role.name());
                        Err(Box::new(Problem::new(Code::OperatorRequired, detail)))
                    }
                    _ => Ok(principal),
                }
            }
        }
    }

    /// Whoever has a valid token of any kind.
    fn anybody_known(&self, token: &str) -> Result<Arc<Principal>, Box<Problem>> {
        if let Some(principal) = self.role_of(token) {
            return Ok(principal);
        }
        match (&self.settings.worker, &self.settings.producer) {
            (Some(workers), _) if workers.find(token).is_ok_and(|found| !found.event_types.is_empty()) => {
                workers.find(token).map_err(problem_of)
            }
            (_, Some(producers)) => producers.find(token).map_err(problem_of),
            _ => Err(problem_of(Refusal::Unknown)),
        }
    }

    /// Whoever the file of tokens knows this one of.
    fn role_of(&self, token: &str) -> Option<Arc<Principal>> {
        let roles = self.settings.roles.as_ref()?;
        let digest = Sha256::digest(token.as_bytes()).into();
        roles.read().expect("nothing panics while it holds this lock").find(&digest)
    }

    fn with_role(
        &self,
        token: &str,
        needed: &str,
        may: impl FnOnce(ClusterRole) -> bool,
    ) -> Result<Arc<Principal>, Box<Problem>> {
        let principal = self.anybody_known(token)?;
        if principal.cluster_role.is_some_and(may) {
            return Ok(principal);
        }
        let detail = format!("this route needs a token with the role {needed} in the cluster");
        Err(Box::new(Problem::new(Code::OperatorRequired, detail)))
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

const SEND_TOKEN: &str = "send the header Authorization: Bearer <token>";

fn missing_token() -> Box<Problem> {
    Box::new(Problem::new(Code::MissingCredentials, SEND_TOKEN).error("missing Authorization header"))
}

/// The token of an `Authorization` header: of `Bearer`, or the password of `Basic`, whoever the user is.
fn token_of(authorization: Option<&[u8]>) -> Result<Cow<'_, str>, Box<Problem>> {
    let malformed =
        || Box::new(Problem::new(Code::InvalidCredentials, SEND_TOKEN).error("invalid Authorization format"));
    let value = authorization.ok_or_else(missing_token)?;
    let value = std::str::from_utf8(value).map_err(|_| malformed())?.trim();
    if value.is_empty() {
        return Err(missing_token());
    }
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(token.trim().into())
        }
        Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => {
            let pair = BASE64.decode(pair.trim().as_bytes()).ok().and_then(|pair| String::from_utf8(pair).ok());
            let password = pair.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
            password.filter(|token| !token.is_empty()).map(|token| token.to_owned().into()).ok_or_else(malformed)
        }
        _ => Err(malformed()),
    }
}

/// Whether a browser sends this by itself, so that pages of other sites could make it send it.
pub(crate) fn is_ambient(authorization: Option<&[u8]>) -> bool {
    authorization.is_some_and(|value| value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic ")))
}
