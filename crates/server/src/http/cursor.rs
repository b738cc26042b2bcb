//! Cursors: where a list goes on, in a form that clients pass on and do not read.
//!
//! A cursor is the hexadecimal text of: a digest (8 bytes), then what it is over. The digest is of the tenant, the route, the parameters that
//! say which things are listed in which order, and the rest of the cursor, so that a cursor is good for the list that it came from. It is no
//! secret: a list shows its tenant's things only, whatever its cursor.

use std::collections::BTreeMap;

use api::{Code, Problem};
use base::ShardId;
use base::codec::Malformed;
use data_encoding::HEXLOWER;
use queue::listing::{Place, decode_places};
use sha2::{Digest, Sha256};

use crate::http::call::Outcome;

/// What a list is, so that a cursor of another one is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListOf {
    parts: Vec<String>,
}

impl ListOf {
    /// A list of this route, of a tenant's things.
    pub(crate) fn new(route: &str, tenant: &str) -> ListOf {
        ListOf { parts: vec![route.into(), tenant.into()] }
    }

    /// One of the parameters that say what is listed; their order does not matter.
    pub(crate) fn parameter(&mut self, name: &str, value: &str) {
        self.parts.push(format!("{name}={value}"));
        self.parts[2..].sort_unstable();
    }

    fn digest(&self, rest: &[u8]) -> [u8; 8] {
        let mut hasher = Sha256::new();
        for part in &self.parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(rest);
        let digest = hasher.finalize();
        digest[..8].try_into().expect("it is longer")
    }

    /// A cursor of this list.
    pub(crate) fn seal(&self, rest: &[u8]) -> String {
        HEXLOWER.encode(&[&self.digest(rest), rest].concat())
    }

    /// What a cursor of this list is over.
    ///
    /// # Errors
    /// It is none of this list.
    pub(crate) fn open(&self, cursor: &str) -> Outcome<Vec<u8>> {
        let bytes = HEXLOWER.decode(cursor.as_bytes()).map_err(|_| invalid_cursor())?;
        let (digest, rest) = bytes.split_at_checked(8).ok_or_else(invalid_cursor)?;
        if digest != self.digest(rest) {
            return Err(invalid_cursor());
        }
        Ok(rest.to_vec())
    }
}

pub(crate) fn invalid_cursor() -> Box<Problem> {
    let detail = "a cursor comes from nextCursor of the same list; begin without one";
    Box::new(Problem::new(Code::InvalidCursor, detail).field("cursor"))
}

/// The places of which a cursor consists.
///
/// # Errors
/// It is not one of places.
pub(crate) fn places_of(bytes: &[u8]) -> Outcome<BTreeMap<ShardId, Place>> {
    decode_places(bytes).map_err(|Malformed| invalid_cursor())
}

#[cfg(test)]
mod tests {
    use queue::listing::encode_places;

    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_list_alone() {
        let list = |tenant: &str, parameters: &[(&str, &str)]| {
            let mut list = ListOf::new("/tasks", tenant);
            parameters.iter().for_each(|(name, value)| list.parameter(name, value));
            list
        };
        let places = BTreeMap::from([
            (ShardId(0), Place { order: -1_700_000_000_000, key: -5 }),
            (ShardId(7), Place { order: 3, key: i64::MAX }),
        ]);
        let here = list("acme", &[("command", "a"), ("state", "READY")]);
        let cursor = here.seal(&encode_places(&places));
        let opened = |list: &ListOf, cursor: &str| {
            list.open(cursor).and_then(|rest| places_of(&rest)).map_err(|problem| problem.code)
        };
        assert_eq!(opened(&here, &cursor), Ok(places.clone()));
        assert_eq!(opened(&list("acme", &[("state", "READY"), ("command", "a")]), &cursor), Ok(places));
        for other in [
            list("other", &[("command", "a"), ("state", "READY")]),
            list("acme", &[("command", "b"), ("state", "READY")]),
            list("acme", &[("command", "a")]),
        ] {
            assert_eq!(opened(&other, &cursor), Err(Code::InvalidCursor));
        }
        let cut = &cursor[..cursor.len() - 2];
        for bad in ["", "x", "00", "0011223344556677", "é", cut, &format!("{cursor}00"), &cursor.replace('0', "1")] {
            assert_eq!(opened(&here, bad), Err(Code::InvalidCursor), "{bad}");
        }
    }
}
