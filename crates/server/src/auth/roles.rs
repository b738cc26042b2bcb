//! Roles in the cluster, and the file of tokens that have them.
//!
//! A line of the file is a role, a name, and the SHA-256 of a token as 64 hex digits; `#` begins a comment. The file holds no secret. A name
//! may stand on several lines: while one token takes the place of another, both hold.
//!
//! ```text
//! # role    name     printf %s "$TOKEN" | sha256sum
//! operator  alice    5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use data_encoding::HEXLOWER_PERMISSIVE;
use subtle::ConstantTimeEq;

use crate::auth::principal::Principal;

/// What a token may do to the cluster. A tenant's administrator has none by being one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterRole {
    /// Reads metrics.
    Metrics,
    /// Introduces nodes to each other.
    Join,
    /// Looks at everything of the cluster.
    Viewer,
    /// Also changes members and leaders, and saves.
    Operator,
    /// Also restores, and makes join tokens.
    Admin,
}

impl ClusterRole {
    /// All of them with their names.
    pub const NAMES: [(ClusterRole, &'static str); 5] = [
        (ClusterRole::Metrics, "metrics"),
        (ClusterRole::Join, "join"),
        (ClusterRole::Viewer, "viewer"),
        (ClusterRole::Operator, "operator"),
        (ClusterRole::Admin, "admin"),
    ];

    /// The role of this name.
    pub fn named(name: &str) -> Option<ClusterRole> {
        ClusterRole::NAMES.into_iter().find(|(_, known)| *known == name).map(|(role, _)| role)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        ClusterRole::NAMES.into_iter().find(|(role, _)| *role == self).expect("all are listed").1
    }

    /// Whether it may look at the cluster.
    pub fn looks(self) -> bool {
        matches!(self, ClusterRole::Viewer | ClusterRole::Operator | ClusterRole::Admin)
    }

    /// Whether it may change members and leaders.
    pub fn operates(self) -> bool {
        matches!(self, ClusterRole::Operator | ClusterRole::Admin)
    }
}

/// Tokens in the file; more are refused.
const TOKENS_MAX: usize = 1_000;

/// Tokens that have a role, by their digests.
#[derive(Clone, Debug, Default)]
pub struct RoleTokens(Vec<([u8; 32], Arc<Principal>)>);

impl RoleTokens {
    /// Reads the lines of a file.
    ///
    /// # Errors
    /// What is wrong with which line; no digest is repeated.
    pub fn read(text: &str) -> Result<RoleTokens, String> {
        let (mut tokens, mut seen) = (Vec::new(), BTreeSet::new());
        for (number, line) in text.lines().enumerate().map(|(place, line)| (place + 1, line)) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = |what: &str| format!("line {number}: {what}");
            let parts: Vec<&str> = line.split_whitespace().collect();
            let [role, name, digest] = parts[..] else {
                return Err(wrong("a line is a role, a name, and the SHA-256 of a token"));
            };
            let names = ClusterRole::NAMES.map(|(_, name)| name).join(", ");
            let role = ClusterRole::named(role).ok_or_else(|| wrong(&format!("a role is one of {names}")))?;
            let digest = HEXLOWER_PERMISSIVE.decode(digest.as_bytes()).ok().and_then(|digest| digest.try_into().ok());
            let digest = digest.ok_or_else(|| wrong("the SHA-256 of a token is 64 hex digits"))?;
            if !seen.insert(digest) {
                return Err(wrong("this token stands there twice"));
            }
            if tokens.len() == TOKENS_MAX {
                return Err(wrong(&format!("there are more than {TOKENS_MAX} tokens")));
            }
            tokens.push((digest, Arc::new(Principal::with_role(name, role))));
        }
        Ok(RoleTokens(tokens))
    }

    /// Whose token has this digest. All are compared, each in constant time.
    pub(crate) fn find(&self, digest: &[u8; 32]) -> Option<Arc<Principal>> {
        let mut found = None;
        for (known, principal) in &self.0 {
            if bool::from(known.ct_eq(digest)) {
                found = Some(principal.clone());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn line(role: &str, name: &str, token: &str) -> String {
        format!("{role} {name} {}\n", HEXLOWER_PERMISSIVE.encode(&Sha256::digest(token.as_bytes())))
    }

    /// Goal: each token has its role and name, several tokens one name, and comments nothing.
    #[test]
    fn tokens_have_their_roles() {
        let text = format!(
            "# who\n\n{}{}{}",
            line("viewer", "eve", "one"),
            line("admin", "ann", "two"),
            line("admin", "ann", "three")
        );
        let tokens = RoleTokens::read(&text).expect("it is a file of tokens");
        let role = |token: &str| {
            let found = tokens.find(&Sha256::digest(token.as_bytes()).into())?;
            Some((found.subject.to_string(), found.cluster_role?))
        };
        assert_eq!(role("one"), Some(("eve".into(), ClusterRole::Viewer)));
        assert_eq!(
            (role("two"), role("three")),
            (Some(("ann".into(), ClusterRole::Admin)), Some(("ann".into(), ClusterRole::Admin)))
        );
        assert_eq!(role("four"), None);
    }

    /// Goal: what is wrong is told by line, without the digest.
    #[test]
    fn what_is_wrong_is_told_by_line() {
        let refusal = |text: &str| RoleTokens::read(text).expect_err("it is refused");
        assert_eq!(refusal("\nviewer eve"), "line 2: a line is a role, a name, and the SHA-256 of a token");
        assert!(refusal(&line("king", "eve", "one")).starts_with("line 1: a role is one of metrics, join, viewer"));
        assert_eq!(refusal("viewer eve abc"), "line 1: the SHA-256 of a token is 64 hex digits");
        assert_eq!(refusal(&line("viewer", "eve", "one").repeat(2)), "line 2: this token stands there twice");
    }
}
