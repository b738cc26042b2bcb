//! What a backup says of itself, and what a bundle does, as JSON.

use serde::{Deserialize, Serialize};

/// Version of the manifest.
pub(crate) const FORMAT: u32 = 1;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this description: 1.
    pub format: u32,
    /// The program that made it.
    pub build: String,
    /// The cluster: 32 hexadecimal digits.
    pub cluster_id: String,
    /// The number inside its task ids: 16 hexadecimal digits.
    pub cluster_incarnation: String,
    /// The node that made it.
    pub node: String,
    /// It is what that node had, without asking anybody whether others had more.
    pub local: bool,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// Its groups, by number.
    pub groups: Vec<SavedGroup>,
}

/// A group in a backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedGroup {
    /// Its number.
    pub group: u16,
    /// The term of the last entry in it.
    pub term: u64,
    /// The index of that entry.
    pub index: u64,
    /// The part of the file that holds it.
    pub file: String,
    /// Size of that part in bytes.
    pub bytes: u64,
    /// SHA-256 of it, 64 hexadecimal digits.
    pub sha256: String,
    /// How much of what it holds; at most 2000 lines.
    pub counts: Vec<serde_json::Map<String, serde_json::Value>>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest is made of text, numbers and lists")
    }

    pub(crate) fn decode(text: &[u8]) -> Result<Manifest, String> {
        serde_json::from_slice(text).map_err(|why| why.to_string())
    }
}

/// A part of a backup that was compared with its checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Its name.
    pub part: String,
    /// Its size in bytes, as far as it is there.
    pub bytes: u64,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// What a bundle says of itself.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AboutBundle {
    /// The program that made it.
    pub(crate) build: &'static str,
    /// The node that made it.
    pub(crate) node: String,
    pub(crate) cluster_id: Option<String>,
    /// In milliseconds since the Unix epoch.
    pub(crate) created_at_ms: u64,
    /// Nodes that have answered, and nodes that have not.
    pub(crate) nodes: Vec<String>,
    pub(crate) missing: Vec<String>,
    /// Parts that are not whole.
    pub(crate) cut: Vec<String>,
}

impl AboutBundle {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it is made of text, numbers and lists")
    }
}
