//! `GET /dlq/groups`: what tasks died of, the most frequent first.

use api::json::Writer;
use api::{Code, Problem};
use queue::groups::Grouping;
use queue::listing::Reached;
use queue::outcome::State;

use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::edge::Edge;
use crate::http::filter::read_filter;
use crate::http::lists::{is_reading, read_limit};
use crate::http::tasks::str_of;

/// Groups of an answer: if nothing is said, and at most.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 200;

impl Edge {
    pub(crate) async fn dead_groups(&self, call: &Call) -> Outcome<Answer> {
        let mut limit = LIMIT_DEFAULT;
        let parameters = call.parameters().filter(|(name, _)| !is_reading(name));
        let mut filter =
            read_filter(parameters, &call.principal.tenant, &call.principal.event_types, |name, value| match name {
                "limit" => {
                    limit = read_limit(value)?.min(LIMIT_MAX);
                    Ok(true)
                }
                _ => Ok(false),
            })?;
        if call.parameters().any(|(name, _)| matches!(&*name, "state" | "status")) {
            let detail = "dead letters have one state; leave state and status out";
            return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("state")));
        }
        filter.states.retain(|state| *state == State::Dead);
        let shards = self.shards_with(&filter);
        let mut grouping = Grouping::new(filter);
        let looked = self.look_at(call, shards, move |looks, time| {
            let reached = grouping.read(looks, &|| time.is_left())?;
            if reached == Reached::OutOfTime && !time.is_last() {
                return Ok(None);
            }
            let (groups, is_partial) = grouping.most_frequent(limit);
            Ok(Some((groups, is_partial || reached == Reached::OutOfTime)))
        });
        let ((groups, is_partial), positions, age) = looked.await?;
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("groups", |out| {
                let mut list = Writer::array(out);
                for (fingerprint, group) in &groups {
                    list.element(|out| {
                        let mut item = Writer::object(out);
                        item.plain("fingerprint", &format!("{fingerprint:016x}"));
                        item.text("command", &group.command);
                        item.text("error", &group.error);
                        item.number("count", group.count);
                        item.time("firstAt", group.first_at.0);
                        item.time("lastAt", group.last_at.0);
                        item.value("sampleIds", |out| {
                            let mut ids = Writer::array(out);
                            for id in &group.samples {
                                ids.element(|out| api::json::write_text(str_of(&id.text()), out));
                            }
                            ids.end();
                        });
                        item.end();
                    });
                }
                list.end();
            });
            if is_partial {
                body.flag("partial", true);
            }
            body.end();
        });
        Ok(answer.at_all(positions).age(age))
    }
}
