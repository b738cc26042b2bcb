//! Many waiting tasks in one queue, and the look for them afterwards.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::http::Client;

/// Waiting tasks to make, all in the queue `bench-0`, which is also the load generator's.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    pub(super) tasks: u64,
    /// Bytes of each payload, at least 40.
    pub(super) payload_bytes: usize,
}

/// Tasks in one request: as many as the server takes.
const BATCH: u64 = 100;

/// Connections at one time.
const CONNECTIONS: u64 = 8;

/// Tasks that are read back, evenly spread over all.
const READ_BACK: usize = 20_000;

impl Fill {
    /// Bytes of all payloads.
    pub(super) fn payload_bytes(self) -> u64 {
        self.tasks * self.payload_bytes as u64
    }

    /// The payload of a task: it names its number, so that it can be known again.
    fn payload(self, number: u64) -> String {
        let head = format!("{{\"number\":\"{number:020}\",\"n\":\"");
        let fill = self.payload_bytes.saturating_sub(head.len() + 2);
        format!("{head}{}\"}}", "x".repeat(fill))
    }

    /// Creates them; returns number and id of each acknowledged one, which is every one.
    ///
    /// # Errors
    /// A creation is not acknowledged.
    pub(super) fn create(self, addr: SocketAddr) -> Result<Vec<(u64, String)>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CONNECTIONS)
                .map(|first| {
                    scope.spawn(move || {
                        let mut client = Client::connect(addr)?;
                        let mut created = Vec::new();
                        for start in (first * BATCH..self.tasks).step_by((CONNECTIONS * BATCH) as usize) {
                            self.create_batch(&mut client, start, &mut created)?;
                        }
                        anyhow::Ok(created)
                    })
                })
                .collect();
            let mut all = Vec::new();
            for thread in threads {
                all.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
            }
            ensure!(all.len() as u64 == self.tasks, "{} of {} tasks were acknowledged", all.len(), self.tasks);
            Ok(all)
        })
    }

    fn create_batch(self, client: &mut Client, start: u64, created: &mut Vec<(u64, String)>) -> Result<()> {
        let numbers = start..(start + BATCH).min(self.tasks);
        let task = |number: u64| format!("{{\"command\":\"bench-0\",\"payload\":{}}}", self.payload(number));
        let tasks: Vec<String> = numbers.clone().map(task).collect();
        let answer = client.post("/v1/codeq/tasks/batch", &format!("{{\"tasks\":[{}]}}", tasks.join(",")))?;
        ensure!(answer.status == 200, "a batch was answered with {answer}");
        let body = answer.json()?;
        for (place, number) in numbers.enumerate() {
            let id = body["results"][place]["task"]["id"].as_str();
            let id = id.with_context(|| format!("a creation was answered with {}", body["results"][place]))?;
            created.push((number, id.to_owned()));
        }
        Ok(())
    }

    /// Looks for all of them by count, and for some by their content.
    ///
    /// # Errors
    /// One is missing, or is another one.
    pub(super) fn look_for(self, addr: SocketAddr, created: &[(u64, String)]) -> Result<()> {
        let mut client = Client::connect(addr)?;
        let stats = client.get("/v1/codeq/admin/queues/bench-0")?.json()?;
        ensure!(stats["ready"] == json!(self.tasks), "{} tasks were acknowledged, the queue has {stats}", self.tasks);
        for (number, id) in created.iter().step_by(created.len().div_ceil(READ_BACK).max(1)) {
            let answer = client.get(&format!("/v1/codeq/tasks/{id}"))?;
            ensure!(answer.status == 200, "{id} was acknowledged, and is answered with {answer}");
            let payload: serde_json::Value = serde_json::from_str(&self.payload(*number))?;
            ensure!(answer.json()?["payload"] == payload, "{id} was created with {payload}, and is {answer}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_json_of_its_length() {
        for (number, payload_bytes) in [(0, 40), (999_999, 100), (u64::MAX, 1024)] {
            let payload = Fill { tasks: 1, payload_bytes }.payload(number);
            assert_eq!(payload.len(), payload_bytes, "{payload}");
            let read: serde_json::Value = serde_json::from_str(&payload).expect("it is JSON");
            assert_eq!(read["number"], format!("{number:020}"));
        }
    }
}
