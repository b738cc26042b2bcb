//! Who sends a request.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::auth::{ClusterRole, Refusal, scope};

/// Who sends a request, and what that one may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whose queues it sees.
    pub tenant: Arc<str>,
    /// Who it is; a worker's identity.
    pub subject: Arc<str>,
    /// Queues it may work on.
    pub event_types: EventTypes,
    /// May administer its tenant.
    pub is_admin: bool,
    /// What it may do to the cluster: a right of its own, which no tenant's administrator has by being one.
    pub cluster_role: Option<ClusterRole>,
    scopes: BTreeSet<String>,
}

/// Queues that a worker may work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventTypes {
    /// All.
    Any,
    /// These.
    Listed(BTreeSet<String>),
}

impl EventTypes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        matches!(self, EventTypes::Listed(listed) if listed.is_empty())
    }

    /// Whether this one is among them.
    pub fn allow(&self, command: &str) -> bool {
        match self {
            EventTypes::Any => true,
            EventTypes::Listed(listed) => listed.contains(command),
        }
    }
}

/// What a token says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) subject: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) event_types: Vec<String>,
    pub(crate) role: Option<String>,
    pub(crate) cluster_role: Option<String>,
    /// The values of all tenant claims that are present.
    pub(crate) tenants: Vec<String>,
}

impl Principal {
    /// Everybody, where nobody needs a token.
    pub(crate) fn anybody() -> Principal {
        Principal {
            tenant: "default".into(),
            subject: "default".into(),
            event_types: EventTypes::Any,
            is_admin: true,
            cluster_role: Some(ClusterRole::Admin),
            scopes: scope::OF_WORKERS.iter().map(|scope| (*scope).to_owned()).collect(),
        }
    }

    /// Somebody with a role in the cluster and no tenant: no tenant has that name.
    pub(crate) fn with_role(name: &str, role: ClusterRole) -> Principal {
        Principal {
            tenant: "".into(),
            subject: name.into(),
            event_types: EventTypes::Listed(BTreeSet::new()),
            is_admin: false,
            cluster_role: Some(role),
            scopes: BTreeSet::new(),
        }
    }

    /// Whoever makes these claims.
    pub(crate) fn from_claims(claims: &Claims, default_tenant: Option<&str>) -> Result<Principal, Refusal> {
        let subject = claims.subject.trim();
        let tenant = match claims.tenants.split_first() {
            Some((first, rest)) if rest.iter().all(|other| other.trim() == first.trim()) => first.trim(),
            Some(_) => return Err(Refusal::Tenant),
            None => default_tenant.unwrap_or(subject),
        };
        if !is_tenant(tenant) {
            return Err(Refusal::Tenant);
        }
        let listed: BTreeSet<String> = claims.event_types.iter().map(|name| name.trim().to_owned()).collect();
        let is_admin = claims.role.as_ref().is_some_and(|role| role.eq_ignore_ascii_case("admin"));
        let scopes: BTreeSet<String> = claims.scopes.iter().cloned().collect();
        Ok(Principal {
            tenant: tenant.into(),
            subject: subject.into(),
            event_types: if listed.contains("*") { EventTypes::Any } else { EventTypes::Listed(listed) },
            cluster_role: claims.cluster_role.as_deref().and_then(ClusterRole::named),
            is_admin: is_admin || scopes.contains(scope::ADMIN),
            scopes,
        })
    }

    /// The same as a worker, if the token is one of a worker.
    pub(crate) fn as_worker(self: Arc<Principal>) -> Result<Arc<Principal>, Refusal> {
        if self.subject.is_empty() {
            Err(Refusal::NoSubject)
        } else if self.event_types.is_empty() {
            Err(Refusal::WorkerClaims("missing eventTypes"))
        } else if self.scopes.is_empty() {
            Err(Refusal::WorkerClaims("missing scope"))
        } else {
            Ok(self)
        }
    }

    /// A producer with a worker's rights on all queues.
    pub(crate) fn with_worker_rights(&self) -> Principal {
        let worker = scope::OF_WORKERS.iter().map(|scope| (*scope).to_owned());
        Principal { event_types: EventTypes::Any, scopes: worker.collect(), ..self.clone() }
    }

    /// Whether its token has this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.contains(scope)
    }
}

/// `^[a-z][a-z0-9-]{1,62}$`
pub(crate) fn is_tenant(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (2..=63).contains(&name.len()) && name.as_bytes()[0].is_ascii_lowercase() && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(subject: &str, tenants: &[&str]) -> Claims {
        Claims {
            subject: subject.into(),
            tenants: tenants.iter().map(|tenant| (*tenant).into()).collect(),
            ..Claims::default()
        }
    }

    fn tenant(claims: &Claims, default: Option<&str>) -> Result<String, Refusal> {
        Principal::from_claims(claims, default).map(|principal| principal.tenant.to_string())
    }

    #[test]
    fn the_tenant_is_the_one_all_claims_name_else_the_default_else_the_subject() {
        assert_eq!(tenant(&claims("worker-1", &["acme", " acme "]), None), Ok("acme".into()));
        assert_eq!(tenant(&claims("worker-1", &[]), None), Ok("worker-1".into()));
        assert_eq!(tenant(&claims("worker-1", &[]), Some("acme")), Ok("acme".into()));
        assert_eq!(tenant(&claims("worker-1", &["acme", "other"]), None), Err(Refusal::Tenant));
        for bad in ["", "a", "Acme", "1acme", "ac me", "acme/x", &"a".repeat(64)] {
            assert_eq!(tenant(&claims("worker-1", &[bad]), None), Err(Refusal::Tenant), "{bad:?}");
        }
        assert_eq!(tenant(&claims("Worker 1", &[]), None), Err(Refusal::Tenant));
    }
}
