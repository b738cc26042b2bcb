//! Tokens that stand in the configuration.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::auth::Refusal;
use crate::auth::principal::{Claims, Principal};

/// The tokens of one provider.
#[derive(Clone, Debug, Default)]
pub struct StaticTokens(Vec<StaticToken>);

/// One token, by its digest: the token itself is not kept.
#[derive(Clone)]
pub struct StaticToken {
    digest: [u8; 32],
    principal: Result<Arc<Principal>, Refusal>,
    as_worker: Option<Arc<Principal>>,
    weakness: Option<&'static str>,
}

impl std::fmt::Debug for StaticToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StaticToken").field("principal", &self.principal).finish_non_exhaustive()
    }
}

/// A `static` provider's configuration.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    token: Option<String>,
    #[serde(default)]
    subject: String,
    /// Shown in an audit trail.
    #[serde(default, rename = "email")]
    _email: String,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    event_types: Vec<String>,
    #[serde(default)]
    raw: serde_json::Map<String, serde_json::Value>,
}

/// Shorter tokens, in bytes, are warned of.
const SHORT: usize = 16;

/// Tokens that stand in examples, codeQ's and others'.
const WELL_KNOWN: [&str; 9] = [
    "dev-token",
    "test-token",
    "producer-token",
    "worker-token",
    "token",
    "secret",
    "changeme",
    "change-me",
    "password",
];

/// The claims that may name a tenant.
const TENANT_CLAIMS: [&str; 5] = ["tid", "tenantId", "tenant_id", "organizationId", "organization_id"];

impl StaticTokens {
    /// Reads the configuration of a `static` provider: JSON, an object or the token as a string.
    ///
    /// # Errors
    /// What is wrong with it, in codeQ's words.
    pub fn from_config(json: &str, default_tenant: Option<&str>) -> Result<StaticTokens, String> {
        if json.trim().is_empty() {
            return Err("static auth: missing config".into());
        }
        let value: serde_json::Value =
            serde_json::from_str(json).map_err(|error| format!("static auth: invalid config: {error}"))?;
        let config = match value {
            serde_json::Value::Null => return Err("static auth: missing config".into()),
            serde_json::Value::String(token) => Config {
                token: Some(token),
                subject: String::new(),
                _email: String::new(),
                scopes: Vec::new(),
                event_types: Vec::new(),
                raw: serde_json::Map::new(),
            },
            // The reason itself may repeat a value, and all of this is a secret.
            _ => serde_json::from_str(json).map_err(|error| {
                let place = format!("line {} column {}", error.line(), error.column());
                format!("static auth: invalid config: a member is of the wrong type, at {place}")
            })?,
        };
        let token = config.token.as_deref().unwrap_or("").trim();
        if token.is_empty() {
            return Err("static auth: token is required".into());
        }
        let subject = if config.subject.trim().is_empty() { "static".into() } else { config.subject.clone() };
        let claim = |name: &str| config.raw.get(name).map(|value| value.as_str().unwrap_or_default().to_owned());
        let claims = Claims {
            subject,
            scopes: config.scopes.clone(),
            event_types: config.event_types.clone(),
            role: claim("role"),
            cluster_role: claim("clusterRole"),
            tenants: TENANT_CLAIMS.iter().filter_map(|name| claim(name)).collect(),
        };
        Ok(StaticTokens(vec![StaticToken::new(token, &claims, default_tenant)]))
    }

    /// The tokens of several providers, asked in this order.
    pub(crate) fn joined(providers: impl IntoIterator<Item = StaticTokens>) -> StaticTokens {
        StaticTokens(providers.into_iter().flat_map(|provider| provider.0).collect())
    }

    /// What is weak about its tokens.
    pub(crate) fn weaknesses(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter_map(|token| token.weakness)
    }

    /// Whoever this token belongs to. All tokens are compared, each in constant time, so that an unknown token takes as long as a known one.
    pub(crate) fn find(&self, token: &str) -> Result<Arc<Principal>, Refusal> {
        self.matching(token).ok_or(Refusal::Unknown)?.principal.clone()
    }

    /// The same with a worker's rights on all queues.
    pub(crate) fn find_as_worker(&self, token: &str) -> Option<Arc<Principal>> {
        self.matching(token)?.as_worker.clone()
    }

    fn matching(&self, token: &str) -> Option<&StaticToken> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for known in &self.0 {
            if bool::from(known.digest.ct_eq(&digest)) {
                found = found.or(Some(known));
            }
        }
        found
    }

    /// The tenants its tokens belong to.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|token| token.principal.as_ref().ok()).map(|principal| &*principal.tenant)
    }
}

impl StaticToken {
    fn new(token: &str, claims: &Claims, default_tenant: Option<&str>) -> StaticToken {
        let principal = Principal::from_claims(claims, default_tenant).map(Arc::new);
        let as_worker = principal.as_ref().ok().map(|principal| Arc::new(principal.with_worker_rights()));
        let weakness = if WELL_KNOWN.contains(&token.to_ascii_lowercase().as_str()) {
            Some("stands in public examples")
        } else {
            (token.len() < SHORT).then_some("has fewer than 16 bytes")
        };
        StaticToken { digest: Sha256::digest(token.as_bytes()).into(), principal, as_worker, weakness }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::principal::EventTypes;

    #[test]
    fn codeq_configurations_are_understood() {
        let json = r#"{"token": " dev-token ", "subject": "worker", "eventTypes": ["*"], "scopes": ["codeq:claim"],
                       "raw": {"role": "ADMIN", "tenantId": "dev-tenant"}}"#;
        let tokens = StaticTokens::from_config(json, None).expect("it is a configuration");
        let principal = tokens.find("dev-token").expect("the token is known");
        assert_eq!((&*principal.tenant, &*principal.subject), ("dev-tenant", "worker"));
        assert!(principal.is_admin && principal.has_scope("codeq:claim") && !principal.has_scope("codeq:result"));
        assert_eq!(principal.event_types, EventTypes::Any);
        assert_eq!(tokens.find("dev-token2"), Err(Refusal::Unknown));
        assert_eq!(tokens.find(""), Err(Refusal::Unknown));

        let short = StaticTokens::from_config(r#""dev-token""#, None).expect("a string is the token");
        let principal = short.find("dev-token").expect("the token is known");
        assert_eq!((&*principal.tenant, &*principal.subject), ("static", "static"));
    }

    #[test]
    fn codeq_texts_say_what_is_wrong() {
        let refusal = |json: &str| StaticTokens::from_config(json, None).map(|_| ()).expect_err("it is refused");
        assert_eq!(refusal(""), "static auth: missing config");
        assert_eq!(refusal("null"), "static auth: missing config");
        assert_eq!(refusal("{}"), "static auth: token is required");
        assert_eq!(refusal(r#"{"token": "  "}"#), "static auth: token is required");
        assert!(refusal("{").starts_with("static auth: invalid config: "));
        let wrong = "static auth: invalid config: a member is of the wrong type, at line 1 column 19";
        assert_eq!(refusal(r#"{"token": 987654321}"#), wrong, "the reason repeats no value");
    }

    #[test]
    fn the_token_is_in_no_debug_output() {
        let tokens = StaticTokens::from_config(r#""a-secret-token""#, None).expect("it is a configuration");
        assert!(!format!("{tokens:?}").contains("secret"));
    }
}
