//! `codeq token`: join tokens, with which nodes become members.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use client::{AnyRequest, Repeat};
use serde::Deserialize;

use crate::endpoint::{EndpointArgs, refused, unanswered};
use crate::members::{columns, understood};
use crate::operate::{ACTION_MAX, Done, act, post};
use crate::output;

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a join token, and prints the command that a newcomer is started with. Its secret is shown this once.
    #[command(after_help = "Example:\n  codeq token create --once --ttl 30m")]
    Create {
        /// How long it holds, at most 30 days; without it, an hour.
        #[arg(long, value_name = "DURATION", value_parser = crate::flags::duration)]
        ttl: Option<Duration>,
        /// It admits one node only.
        #[arg(long)]
        once: bool,
        /// It admits nodes that do not vote, until they are promoted.
        #[arg(long)]
        replica: bool,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// Prints the join tokens, without their secrets.
    List {
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// A join token admits nobody any more.
    #[command(after_help = "Example:\n  codeq token revoke 00000000000000a1")]
    Revoke {
        /// What names it.
        id: String,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
}

/// A token that was made.
#[derive(Deserialize)]
struct Created {
    #[serde(flatten)]
    token: Token,
    command: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    id: String,
    expires_in_ms: u64,
    once: bool,
    replica: bool,
    uses: u64,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<Token>,
}

pub(crate) fn run(command: &TokenCommand) -> ExitCode {
    match command {
        TokenCommand::Create { ttl, once, replica, endpoint } => {
            let ttl = ttl.map(|ttl| ttl.as_millis() as u64);
            let body = serde_json::json!({ "ttlMs": ttl, "once": once, "replica": replica });
            let said = |Created { token, command }: &Created| format!("{}\n{command}", sentence(token));
            act(endpoint, post("/cluster/tokens", &body), ACTION_MAX, said)
        }
        TokenCommand::List { endpoint } => list(endpoint),
        TokenCommand::Revoke { id, endpoint } => {
            let path = format!("/cluster/tokens/{id}");
            let said = |_: &Done| format!("{id} admits nobody any more");
            act(endpoint, AnyRequest::delete(&path, Repeat::IfDefinite), ACTION_MAX, said)
        }
    }
}

fn sentence(token: &Token) -> String {
    let whom = match (token.once, token.replica) {
        (true, false) => "one node",
        (true, true) => "one replica",
        (false, false) => "any number of nodes",
        (false, true) => "any number of replicas",
    };
    format!("token {} admits {whom} for {} s", token.id, token.expires_in_ms / 1_000)
}

fn list(endpoint: &EndpointArgs) -> ExitCode {
    let answer = match endpoint.ask("/cluster/tokens", None) {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    };
    let Some(Tokens { tokens }) = understood(&answer) else { return ExitCode::FAILURE };
    let mut rows = vec![["Id", "Expires", "Admits", "Type", "Uses"].map(str::to_owned).to_vec()];
    rows.extend(tokens.iter().map(row));
    output::data(&columns(&rows).join("\n"));
    ExitCode::SUCCESS
}

fn row(token: &Token) -> Vec<String> {
    let expires = match token.expires_in_ms {
        0 => "expired".into(),
        left => format!("{}s", left.div_ceil(1_000)),
    };
    let admits = match (token.once, token.uses) {
        (true, 0) => "one",
        (true, _) => "nobody",
        (false, _) => "many",
    };
    let kind = if token.replica { "replica" } else { "voter" };
    vec![token.id.clone(), expires, admits.into(), kind.into(), token.uses.to_string()]
}
