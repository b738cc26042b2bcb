//! What one member asks of another one beside clients' operations. A request has a number and one answer, or none: whoever asks decides how
//! long it waits.
//!
//! ```text
//! request   number (varint), what (1), body
//! response  number (varint), body
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::bundle;
use crate::operate::{self, Actor, Right, encode_outcome, perform};
use crate::peer::{Link, Shared, collecting, saves, stages};

/// Requests to one member that wait for their answers, and requests of one member that are answered at a time; more are refused.
pub(crate) const REQUESTS_MAX: usize = 64;

/// What is asked for. The bodies of those that only some may ask for begin with who asks ([`Actor`]), whose right is looked at here as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum What {
    /// To do what an operator wants, see [`operate::Action`].
    Act = 1,
    /// To tell what has happened, see [`collecting`].
    Tell = 2,
    /// To write checkpoints, see [`saves`].
    Save = 3,
    /// To stage a part of a backup, see [`stages`].
    Stage = 4,
    /// To say how it is, see [`bundle`].
    Describe = 5,
    /// To say its page `/cluster/status`, see [`crate::http::status_of_all`].
    Status = 6,
}

/// A request that goes out.
pub(crate) struct Request {
    number: u64,
    what: What,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_varint(self.number);
        bytes.put_u8(self.what as u8);
        bytes.extend_from_slice(&self.body);
    }
}

/// A request that has come: its number, what it asks for, and its body.
pub(crate) fn read(bytes: &Bytes) -> Result<(u64, What, Bytes), Malformed> {
    let mut reader = Reader::new(bytes);
    let number = reader.varint()?;
    let what = reader.u8()?;
    let what = [What::Act, What::Tell, What::Save, What::Stage, What::Describe, What::Status]
        .into_iter()
        .find(|known| *known as u8 == what)
        .ok_or(Malformed)?;
    Ok((number, what, bytes.slice_ref(reader.rest())))
}

/// Requests that wait for their answers.
#[derive(Default)]
pub(crate) struct Waiting {
    last: u64,
    answers: BTreeMap<u64, oneshot::Sender<Bytes>>,
}

impl Waiting {
    /// The connection has ended: no answer comes any more.
    pub(crate) fn clear(&mut self) {
        self.answers.clear();
    }
}

impl<S: StateMachine> Link<S> {
    /// Asks the member for something. Nothing: it cannot be reached, or is asked for much already. The answer does not come if the
    /// connection ends.
    pub(crate) fn request(&self, what: What, body: Vec<u8>) -> Option<oneshot::Receiver<Bytes>> {
        let mut waiting = self.waiting();
        // Who has given up does not count.
        waiting.answers.retain(|_, waits| !waits.is_closed());
        if !self.is_up() || waiting.answers.len() >= REQUESTS_MAX {
            return None;
        }
        waiting.last += 1;
        let (number, (sender, answer)) = (waiting.last, oneshot::channel());
        waiting.answers.insert(number, sender);
        // Both under one lock: what is forgotten when the connection ends must not be sent on the next one.
        self.put_request(Request { number, what, body });
        Some(answer)
    }

    /// An answer has come.
    pub(crate) fn on_response(&self, bytes: &Bytes) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes);
        let number = reader.varint()?;
        if let Some(waits) = self.waiting().answers.remove(&number) {
            // Whoever asked may have given up.
            let _ = waits.send(bytes.slice_ref(reader.rest()));
        }
        Ok(())
    }
}

/// Does what a member asks for, and answers. Nothing: it did not come to that, or makes no sense.
pub(crate) async fn answer<S: StateMachine>(shared: &Arc<Shared<S>>, what: What, body: &Bytes) -> Option<Vec<u8>> {
    match what {
        What::Act => {
            let (actor, action) = operate::read(body).ok()?;
            Some(encode_outcome(&perform(shared, &actor, &action).await))
        }
        What::Stage => stages::take(shared, body).await,
        What::Describe => {
            Actor::decode(&mut Reader::new(body)).ok()?.check(Right::Administer).ok()?;
            Some(bundle::describe(&shared.common).await)
        }
        What::Status => shared.common.status_page.get().map(|page| page()).filter(|page| !page.is_empty()),
        What::Tell => collecting::tell(body, &shared.common.events).ok(),
        What::Save => {
            let mut reader = Reader::new(body);
            Actor::decode(&mut reader).ok()?.check(Right::Operate).ok()?;
            let indexes = saves::save(&shared.common, &saves::read(reader.rest()).ok()?).await?;
            let mut answer = Vec::new();
            saves::put(&indexes, &mut answer);
            Some(answer)
        }
    }
}
