//! Asking other nodes what has happened there. Whoever does not answer in time is left out, and named.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::events::{Event, Events, codec};
use crate::peer::{Link, Shared};

/// How long others may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Events in one answer, and their bytes.
const EVENTS_MAX: usize = crate::events::EVENTS_MAX;
const BYTES_MAX: usize = 8 << 20;

/// Questions to one member that have not been answered.
#[derive(Default)]
pub(crate) struct Questions {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Vec<Event>>>,
}

impl Questions {
    fn add(&mut self, asked: oneshot::Sender<Vec<Event>>) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, asked);
        self.next
    }
}

/// What a node is asked: everything later than this reading of the hybrid logical clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) number: u64,
    pub(crate) after: u64,
}

impl Question {
    pub(crate) fn encode(self, body: &mut Vec<u8>) {
        body.put_u64(self.number);
        body.put_u64(self.after);
    }

    /// The answer to a question that has come, as a body.
    pub(crate) fn answer(body: &Bytes, events: &Events) -> Result<Vec<u8>, Malformed> {
        let mut reader = Reader::new(body);
        let (number, after) = (reader.u64()?, reader.u64()?);
        let mut answer = Vec::new();
        answer.put_u64(number);
        for event in events.after(0, EVENTS_MAX, |event| event.hlc > after) {
            let mut bytes = Vec::new();
            codec::encode(&event, &mut bytes);
            if answer.len() + bytes.len() > BYTES_MAX {
                break;
            }
            answer.put_bytes(&bytes);
        }
        Ok(answer)
    }
}

impl<S: StateMachine> Link<S> {
    /// An answer has come.
    pub(crate) fn on_collected(&self, body: &Bytes) -> Result<(), Malformed> {
        let mut reader = Reader::new(body);
        let number = reader.u64()?;
        let mut events = Vec::new();
        while !reader.is_empty() {
            events.push(codec::decode(reader.bytes()?)?);
        }
        let asked = self.questions().waiting.remove(&number);
        if let Some(asked) = asked {
            // Whoever asked may have given up.
            let _ = asked.send(events);
        }
        Ok(())
    }

    /// Asks for everything later than `after`; nothing: the member does not answer in time.
    async fn collect(&self, after: u64) -> Option<Vec<Event>> {
        if !self.is_up() {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        let number = self.questions().add(sender);
        self.ask(Question { number, after });
        let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
        self.questions().waiting.remove(&number);
        answer.ok()?.ok()
    }
}

/// What the other members have to tell of what is later than `after`, and the names of those who do not answer.
pub(crate) async fn collect<S: StateMachine>(shared: &Shared<S>, after: u64) -> (Vec<Event>, Vec<String>) {
    let members = shared.members();
    let others: Vec<_> = members.iter().filter(|member| member.id != shared.common.me).collect();
    let asked: Vec<_> = others
        .iter()
        .map(|member| {
            let link = shared.links.get(member.id);
            async move { link?.collect(after).await }
        })
        .collect();
    let (mut events, mut missing) = (Vec::new(), Vec::new());
    for (member, answer) in others.iter().zip(join_all(asked).await) {
        match answer {
            Some(told) => events.extend(told),
            None => missing.push(member.name.clone()),
        }
    }
    missing.sort_unstable();
    (events, missing)
}

/// All of them at one time.
async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, done) in running.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        if running.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    running.into_iter().filter_map(|(_, done)| done).collect()
}

/// Questions under way, to be kept in a link.
pub(crate) type Waiting = Mutex<Questions>;
