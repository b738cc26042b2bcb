//! Join tokens over HTTP: an administrator makes one, hands it to a newcomer, looks at those there are, and revokes them.

use api::json::Writer;
use api::{Code, Problem};
use base::Millis;
use cluster::{Grant, JoinSecret, JoinToken, Meeting, TOKEN_TTL, TOKEN_TTL_MAX};
use serde::Deserialize;

use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::edge::Edge;
use crate::http::operate::{body, bounded, problem, told};

/// The body of `POST /cluster/tokens`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Create {
    ttl_ms: Option<u64>,
    once: bool,
    replica: bool,
}

impl Edge {
    /// Makes a join token. Its secret is in this answer and nowhere else.
    pub(crate) async fn create_token(&self, call: &Call) -> Outcome<Answer> {
        let Create { ttl_ms, once, replica } = body(call)?;
        let ttl = Millis(ttl_ms.unwrap_or(TOKEN_TTL.0));
        if !(1..=TOKEN_TTL_MAX.0).contains(&ttl.0) {
            let detail = format!("ttlMs is 1 to {} (30 days)", TOKEN_TTL_MAX.0);
            return Err(Box::new(Problem::new(Code::InvalidField, detail).field("ttlMs")));
        }
        self.check_running()?;
        let meeting = self.node.meeting().map_err(|refused| problem(&refused))?;
        let (node, grant) = (self.acting(call), Grant { ttl, once, replica });
        let made = bounded(call, async move { node.create_token(grant).await }).await?;
        let (secret, token, done) = made.map_err(|refused| problem(&refused))?;
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.flag("ok", true);
            write_token(&mut body, &token, ttl);
            body.text("token", &secret.reveal());
            body.text("command", &command(&meeting, &secret, replica));
            body.end();
        });
        Ok(match done.position {
            Some(position) => answer.at(position),
            None => answer,
        })
    }

    /// The join tokens, without their secrets.
    pub(crate) fn list_tokens(&self) -> Outcome<Answer> {
        self.check_running()?;
        let (tokens, now) = self.node.tokens();
        Ok(Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("tokens", |out| {
                let mut list = Writer::array(out);
                for token in &tokens {
                    list.element(|out| {
                        let mut one = Writer::object(out);
                        write_token(&mut one, token, Millis(token.expires.0.saturating_sub(now.0)));
                        one.end();
                    });
                }
                list.end();
            });
            body.end();
        }))
    }

    /// A join token admits nobody any more.
    pub(crate) async fn revoke_token(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let unknown = || Box::new(Problem::new(Code::UnknownToken, format!("there is no join token {id}")));
        let id = u64::from_str_radix(id, 16).map_err(|_| unknown())?;
        self.check_running()?;
        let node = self.acting(call);
        told(bounded(call, async move { node.revoke_token(id).await }).await?)
    }
}

fn write_token(body: &mut Writer<'_>, token: &JoinToken, left: Millis) {
    body.text("id", &format!("{:016x}", token.id));
    body.number("expiresInMs", left.0);
    body.flag("once", token.once);
    body.flag("replica", token.replica);
    body.number("uses", token.uses);
}

/// How the newcomer is started. What only its operator knows stands in capitals.
fn command(meeting: &Meeting, secret: &JoinSecret, replica: bool) -> String {
    let mut words = vec![
        format!("CODEQ_JOIN_TOKEN={}", secret.reveal()),
        "codeq serve --data-dir DIRECTORY --node-id NAME --raft-addr :7000 --raft-advertise HOST:7000".into(),
        format!("--join {}", meeting.addresses.join(",")),
        format!("--cluster-token {} --shards {}", meeting.label, meeting.shards),
    ];
    if replica {
        words.push("--replica".into());
    }
    if meeting.encrypted {
        words.push("--peer-cert NAME.crt --peer-key NAME.key --peer-ca ca.crt".into());
    }
    if meeting.has_secret {
        words.push("--cluster-secret-file FILE".into());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the command is whole: a token goes by the environment, and what the cluster asks for besides is in it.
    #[test]
    fn the_command_says_all_that_a_newcomer_needs() {
        let secret = JoinSecret::read(&format!("codeq_join_{:016x}_{}", 5, "7".repeat(64))).expect("it is a token");
        let meeting = Meeting {
            addresses: vec!["a:7000".into(), "b:7000".into()],
            label: "blue".into(),
            shards: 4,
            encrypted: false,
            has_secret: false,
        };
        let plain = command(&meeting, &secret, false);
        let expected = "codeq serve --data-dir DIRECTORY --node-id NAME --raft-addr :7000 --raft-advertise HOST:7000 \
                        --join a:7000,b:7000 --cluster-token blue --shards 4";
        assert_eq!(plain, format!("CODEQ_JOIN_TOKEN={} {expected}", secret.reveal()));
        let all = command(&Meeting { encrypted: true, has_secret: true, ..meeting }, &secret, true);
        let rest = "--replica --peer-cert NAME.crt --peer-key NAME.key --peer-ca ca.crt --cluster-secret-file FILE";
        assert_eq!(all, format!("{plain} {rest}"));
    }
}
