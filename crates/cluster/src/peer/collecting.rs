//! Asking other nodes what has happened there. Whoever does not answer in time is left out, and named.

use std::time::Duration;

use base::Millis;
use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use bytes::Bytes;
use replica::Member;
use tokio::time::{Instant, timeout_at};

use crate::events::cursor::Cursor;
use crate::events::{Event, Events, codec};
use crate::peer::Shared;
use crate::peer::requests::What;

/// How long others may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A member that lives is heard of twice a second. One that is silent for longer hangs or is cut off, and is not waited for.
const SILENCE_MAX: Duration = Duration::from_millis(700);

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

/// The answer of every other member, or nothing where it does not answer in time, or is not heard of.
pub(crate) async fn ask_all<S: StateMachine>(
    shared: &Shared<S>,
    what: What,
    longest: Duration,
    body: impl Fn(&Member) -> Vec<u8>,
) -> Vec<(Member, Option<Bytes>)> {
    let members = shared.members();
    let others = members.iter().filter(|member| member.id != shared.common.me);
    let asked = others.map(|member| {
        let link = shared.links.get(member.id);
        let silent_for = {
            let link = link.clone();
            move || link.as_ref()?.contact(shared.clock.now().mono).heard.map(|Millis(ms)| Duration::from_millis(ms))
        };
        let answer = link.filter(|_| is_there(silent_for())).and_then(|link| link.request(what, body(member)));
        let member = member.clone();
        async move {
            let answer = match answer {
                Some(answer) => wait(answer, longest, silent_for).await.and_then(Result::ok),
                None => None,
            };
            (member, answer)
        }
    });
    join_all(asked.collect()).await
}

fn is_there(silent_for: Option<Duration>) -> bool {
    silent_for.is_some_and(|silent_for| silent_for < SILENCE_MAX)
}

/// Waits for an answer, until it has taken too long or its member is silent.
async fn wait<T>(
    answer: impl Future<Output = T>,
    longest: Duration,
    silent_for: impl Fn() -> Option<Duration>,
) -> Option<T> {
    let deadline = Instant::now() + longest;
    let mut answer = std::pin::pin!(answer);
    loop {
        let silent_for = silent_for().filter(|_| Instant::now() < deadline);
        let left = SILENCE_MAX.checked_sub(silent_for?).filter(|left| *left > Duration::ZERO)?;
        // Later than that it may have been heard of meanwhile.
        if let Ok(answer) = timeout_at(deadline.min(Instant::now() + left), &mut answer).await {
            return Some(answer);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: who is silent is not waited for however long an answer may take, and who is heard of is, until that time is over.
    #[test]
    fn who_hangs_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("it needs nothing");
        let check = |longest_ms: u64, silent_for_ms: Option<u64>, at_most_ms: u64| {
            let never = std::future::pending::<()>();
            let waited = wait(never, Duration::from_millis(longest_ms), || silent_for_ms.map(Duration::from_millis));
            let limit = Instant::now() + Duration::from_millis(at_most_ms);
            runtime.block_on(async { assert_eq!(timeout_at(limit, waited).await, Ok(None)) });
        };
        let (hour, minute) = (3_600_000, 60_000);
        check(hour, None, minute);
        check(hour, Some(700), minute);
        check(hour, Some(5_000), minute);
        check(20, Some(0), minute);
        let answered = wait(std::future::ready(7), Duration::from_millis(hour), || Some(Duration::from_millis(699)));
        assert_eq!(runtime.block_on(answered), Some(7));
    }
}
