//! Streams of a server's events, followed through failures: whoever breaks off is asked again, or another one, for what comes behind the
//! last event that was seen.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use client::AnyRequest;

use crate::endpoint::{Answer, EndpointArgs, on_a_runtime, refused, unanswered};

/// A stream that says nothing for longer is dead: it says at least that it lives.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(500);

/// Bytes of an event that has not come whole.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// How one connection ended.
enum Ended {
    /// It never began: the server has answered something else.
    Refused(Answer),
    /// It broke off, or the server stops.
    Over,
}

/// An event as it came.
pub(crate) struct Event<'a> {
    pub(crate) id: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) data: &'a str,
}

/// Events that have come in pieces.
#[derive(Default)]
struct Events {
    pending: Vec<u8>,
    last_id: String,
}

impl Events {
    /// Takes a piece. What has become whole is handed over.
    fn take(&mut self, piece: &[u8], on_event: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        self.pending.extend_from_slice(piece);
        while let Some(end) = self.pending.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = self.pending.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            if let Some(id) = field("id: ") {
                self.last_id = id.into();
            }
            if let Some(data) = field("data: ") {
                on_event(Event { id: &self.last_id, kind: field("event: ").unwrap_or_default(), data });
            }
        }
        if self.pending.len() > EVENT_BYTES_MAX {
            bail!("the server sends an event of more than {EVENT_BYTES_MAX} bytes");
        }
        Ok(())
    }
}

impl EndpointArgs {
    /// Hands over each event of a page as it comes, until the process ends. Returns only if the first server that answers
    /// refuses, or none answers at first.
    pub(crate) fn follow(&self, page: &str, mut on_event: impl FnMut(Event<'_>)) -> ExitCode {
        let mut events = Events::default();
        let mut is_first = true;
        loop {
            match self.follow_once(page, &mut events, &mut on_event) {
                Ok(Ended::Refused(answer)) if is_first => return refused(&answer),
                Err(error) if is_first => return unanswered(&error),
                // Whoever follows sees a cluster through its failures.
                Ok(_) | Err(_) => is_first = false,
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn follow_once(&self, page: &str, events: &mut Events, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Ended> {
        let client = self.operator()?;
        let mut request = AnyRequest::get(page).header("accept", "text/event-stream");
        if !events.last_id.is_empty() {
            request = request.header("last-event-id", &events.last_id);
        }
        events.pending.clear();
        on_a_runtime(async {
            let mut pieces = client.stream(request).await?;
            if pieces.status != 200 {
                return Ok(Ended::Refused(pieces.whole().await?.into()));
            }
            while let Ok(Some(piece)) = pieces.next(SILENCE_MAX).await {
                events.take(&piece, on_event)?;
            }
            Ok(Ended::Over)
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: events are read whole, however they are cut, and the last id is remembered; what only says that the stream lives is nothing.
    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = ":\n\nid: 7,b:9\nevent: raft.role\ndata: {\"a\":\"→\"}\n\nid: 8\nevent: x\ndata: {}\n\n";
        for size in 1..text.len() {
            let (mut events, mut data) = (Events::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                events.take(piece, &mut |event| data.push(event.data.to_owned())).unwrap();
            }
            assert_eq!((data, events.last_id.as_str()), (vec!["{\"a\":\"→\"}".to_owned(), "{}".to_owned()], "8"));
        }
    }
}
