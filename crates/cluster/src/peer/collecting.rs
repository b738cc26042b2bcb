//! Asking other nodes what has happened there. Whoever does not answer in time is left out, and named.

use std::time::Duration;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use bytes::Bytes;
use replica::Member;
use tokio::time::timeout;

use crate::events::cursor::Cursor;
use crate::events::{Event, Events, codec};
use crate::peer::requests::What;
use crate::peer::{Link, Shared};

/// How long others may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Bytes of events in one answer: the first ones, so that whoever wants more asks for what follows.
const BYTES_MAX: usize = 8 << 20;

/// The answer to whoever wants to know what happened later than a reading of the hybrid logical clock (8 bytes): events.
pub(crate) fn tell(body: &Bytes, events: &Events) -> Result<Vec<u8>, Malformed> {
    let after = Reader::new(body).u64()?;
    let mut answer = Vec::new();
    for event in events.later(after) {
        let mut bytes = Vec::new();
        codec::encode(&event, &mut bytes);
        if answer.len() + bytes.len() > BYTES_MAX {
            break;
        }
        answer.put_bytes(&bytes);
    }
    Ok(answer)
}

fn read(body: &Bytes) -> Result<Vec<Event>, Malformed> {
    let mut reader = Reader::new(body);
    let mut events = Vec::new();
    while !reader.is_empty() {
        events.push(codec::decode(reader.bytes()?)?);
    }
    Ok(events)
}

/// The answer of every other member, or nothing where it was not heard of lately or does not answer in time.
pub(crate) async fn ask_all<S: StateMachine>(
    shared: &Shared<S>,
    what: What,
    longest: Duration,
    body: impl Fn(&Member) -> Vec<u8>,
) -> Vec<(Member, Option<Bytes>)> {
    let members = shared.members();
    let now = shared.clock.now().mono;
    let others = members.iter().filter(|member| member.id != shared.common.me);
    let asked = others.map(|member| {
        let link = shared.links.get(member.id);
        let is_there = |link: &Link<S>| link.contact(now).heard.is_some_and(|heard| heard <= shared.common.contact_max);
        let answer = link.filter(|link| is_there(link)).and_then(|link| link.request(what, body(member)));
        let member = member.clone();
        async move {
            let answer = match answer {
                Some(answer) => timeout(longest, answer).await.ok().and_then(Result::ok),
                None => None,
            };
            (member, answer)
        }
    });
    join_all(asked.collect()).await
}

/// What the other members have to tell behind a cursor, and the names of those who do not answer.
pub(crate) async fn collect<S: StateMachine>(shared: &Shared<S>, cursor: &Cursor) -> (Vec<Event>, Vec<String>) {
    let body = |member: &Member| cursor.of(member.id).to_le_bytes().to_vec();
    let (mut events, mut missing) = (Vec::new(), Vec::new());
    for (member, answer) in ask_all(shared, What::Tell, ANSWER_MAX, body).await {
        match answer.and_then(|answer| read(&answer).ok()) {
            Some(told) => events.extend(told),
            None => missing.push(member.name),
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
