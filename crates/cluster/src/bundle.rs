//! What all nodes say of themselves in one file, for whoever looks for a fault.
//!
//! The file is an uncompressed tar with a folder for each node that answers. What stands in the folders is for the server in front of the nodes
//! to say ([`Handle::describe_with`]); it must not be a secret. `bundle.json` says who made the file and who did not answer.
//!
//! ```text
//! request           who asks
//! answer of a node  for each part its name (length, UTF-8) and its content (length, bytes)
//! ```

use std::io::{self, Read};
use std::pin::Pin;
use std::time::Duration;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use storage::backup::{Backup, Content};

use crate::backup::NoBackup;
use crate::http::manifest::AboutBundle;
use crate::node::{Common, Handle};
use crate::operate::Right;
use crate::peer::collecting::ask_all;
use crate::peer::requests::What;

/// Bytes that one node says of itself; what is beyond is cut off, and `bundle.json` names it.
pub const NODE_BYTES_MAX: usize = 8 << 20;

/// Parts that one node says of itself; more are left out.
const PARTS_MAX: usize = 32;

/// How long others may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Names of files and what they hold.
pub type Parts = Vec<(String, Vec<u8>)>;

/// What says how a node is.
pub(crate) type Describe = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Parts> + Send>> + Send + Sync>;

/// What is made of all of that: it reads as the bytes of the file.
pub struct Bundle(Backup);

impl Bundle {
    /// Bytes that are still to be read.
    pub fn left(&self) -> u64 {
        self.0.left()
    }
}

impl Read for Bundle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<S: StateMachine> Handle<S> {
    /// Lets this node say so much of itself when it or another one is asked for a bundle. The first call counts.
    pub fn describe_with(
        &self,
        describe: impl Fn() -> Pin<Box<dyn Future<Output = Parts> + Send>> + Send + Sync + 'static,
    ) {
        // Whoever came first goes on.
        let _ = self.common().describing.set(Box::new(describe));
    }

    /// Lets this node say its page `/cluster/status` when another one is asked for all; empty: it says nothing. The first call counts.
    pub fn show_status_with(&self, page: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
        // Whoever came first goes on.
        let _ = self.common().status_page.set(Box::new(page));
    }

    /// Asks all nodes how they are, for 5 s at most, and puts that into one file together with `more`, which is of the whole cluster.
    ///
    /// # Errors
    /// Whoever asks may not, or a part has a name that is too long.
    pub async fn bundle(&self, more: Parts) -> Result<Bundle, NoBackup> {
        self.actor().check(Right::Administer).map_err(|refused| NoBackup::NotAllowed(refused.to_string()))?;
        let mut who = Vec::new();
        self.actor().encode(&mut who);
        let own = read(&describe(self.common()).await).expect("it was written just now");
        let mut nodes = vec![(self.identity().node.clone(), own)];
        let mut missing = Vec::new();
        let others = match self.common().peers.get() {
            Some(peers) => ask_all(peers, What::Describe, ANSWER_MAX, |_| who.clone()).await,
            None => Vec::new(),
        };
        for (member, answer) in others {
            match answer.and_then(|answer| read(&answer).ok()) {
                Some(parts) => nodes.push((member.name, parts)),
                None => missing.push(member.name),
            }
        }
        let made_at = self.common().clock.now().wall;
        let mut cut: Vec<String> = Vec::new();
        for (node, parts) in &mut nodes {
            cut.extend(limit(parts).into_iter().map(|name| format!("{node}/{name}")));
        }
        let about = AboutBundle {
            build: env!("CARGO_PKG_VERSION"),
            node: self.identity().node.clone(),
            cluster_id: self.cluster().map(|cluster| cluster.id.to_string()),
            created_at_ms: made_at.0,
            nodes: nodes.iter().map(|(node, _)| node.clone()).collect(),
            missing,
            cut,
        };
        let mut all = vec![("bundle.json".to_owned(), Content::Text(about.encode()))];
        all.extend(more.into_iter().map(|(name, bytes)| (name, Content::Text(bytes))));
        for (node, parts) in nodes {
            all.extend(parts.into_iter().map(|(name, bytes)| (format!("{node}/{name}"), Content::Text(bytes))));
        }
        Backup::new(all, made_at.0 / 1000).map(Bundle).map_err(NoBackup::Failed)
    }
}

/// What this node says of itself, for whoever asks.
pub(crate) async fn describe<S: StateMachine>(common: &Common<S>) -> Vec<u8> {
    let mut parts = match common.describing.get() {
        Some(describe) => describe().await,
        None => Parts::new(),
    };
    // One byte more than the limit tells whoever asked that something is cut off.
    parts.truncate(PARTS_MAX);
    let mut left = NODE_BYTES_MAX + 1;
    let mut answer = Vec::new();
    for (name, bytes) in parts {
        let length = bytes.len().min(left);
        left -= length;
        answer.put_bytes(name.as_bytes());
        answer.put_bytes(&bytes[..length]);
    }
    answer
}

fn read(answer: &[u8]) -> Result<Parts, Malformed> {
    let mut reader = Reader::new(answer);
    let mut parts = Parts::new();
    while !reader.is_empty() && parts.len() < PARTS_MAX {
        let name = std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed)?;
        // It becomes a file on somebody's disk.
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            return Err(Malformed);
        }
        parts.push((name.into(), reader.bytes()?.to_vec()));
    }
    Ok(parts)
}

/// Cuts off what is beyond [`NODE_BYTES_MAX`]; answers the names of what is not whole.
fn limit(parts: &mut Parts) -> Vec<String> {
    let mut left = NODE_BYTES_MAX;
    let mut cut = Vec::new();
    for (name, bytes) in parts {
        if bytes.len() > left || left == 0 {
            cut.push(name.clone());
        }
        bytes.truncate(left);
        left -= bytes.len();
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a node cannot say more than it may, what is cut off is named, and a part's name cannot lead out of its folder.
    #[test]
    fn what_a_node_says_is_bounded() {
        let part = |name: &str, length: usize| (name.to_owned(), vec![b'x'; length]);
        let mut parts = vec![part("a.json", 5), part("b.txt", NODE_BYTES_MAX), part("c.txt", 1)];
        assert_eq!(limit(&mut parts), ["b.txt", "c.txt"]);
        assert_eq!(parts.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), NODE_BYTES_MAX);
        let mut whole = vec![part("a.json", NODE_BYTES_MAX)];
        assert_eq!(limit(&mut whole), [""; 0]);
        for name in ["../a", "/a", "", ".", "a/b", "ä"] {
            let mut answer = Vec::new();
            answer.put_bytes(name.as_bytes());
            answer.put_bytes(b"x");
            assert_eq!(read(&answer), Err(Malformed), "{name}");
        }
        let mut answer = Vec::new();
        answer.put_bytes(b"a.json");
        answer.put_bytes(b"x");
        assert_eq!(read(&answer), Ok(vec![part("a.json", 1)]));
        assert!((1..answer.len()).all(|length| read(&answer[..length]).is_err()), "a part of an answer is none");
    }
}
