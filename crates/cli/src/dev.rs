//! `codeq dev`: a server to try things out with, and three lines to begin.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use server::config::Inputs;

use crate::config::refuse;
use crate::{output, serve};

#[derive(Args)]
pub(crate) struct DevArgs {
    /// Where to listen, on this machine; port 0 is a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http_addr: String,
    /// Directory for everything it keeps.
    #[arg(long, value_name = "PATH", default_value = "./codeq-dev")]
    data_dir: String,
    /// How much is logged.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log_level: String,
}

/// Runs it.
pub(crate) fn dev(args: &DevArgs) -> ExitCode {
    let flags = [
        ("http-addr", &args.http_addr),
        ("data-dir", &args.data_dir),
        ("log-level", &args.log_level),
        ("log-format", &"text".into()),
    ];
    let flags = flags.map(|(flag, value)| (flag.to_owned(), value.clone())).into();
    match (Inputs { flags, environment: Vec::new() }).read().configuration() {
        Ok(configuration) => serve::run(&configuration, |server| output::data(&banner(server.addr(), &args.data_dir))),
        Err(refused) => refuse(&refused),
    }
}

/// What to read first. The lines are for one shell: the second one remembers the task's id for the third.
fn banner(addr: SocketAddr, data_dir: &str) -> String {
    let tasks = format!("http://{addr}/v1/codeq/tasks");
    format!(
        r#"codeq {version} for development: http://{addr}, for this machine only, no token needed; tasks are kept in {data_dir}

Create a task, claim it as a worker, and complete it, in another terminal:

  curl -sw '\n' {tasks} -d '{{"command":"greet","payload":{{"name":"Ada"}}}}'
  id=$(curl -s {tasks}/claim -d '{{"commands":["greet"]}}' | cut -d'"' -f4); echo "claimed $id"
  curl -sw '\n' {tasks}/$id/result -d '{{"status":"COMPLETED","result":{{"greeting":"Hello, Ada!"}}}}'

Ctrl-C stops the server."#,
        version = env!("CARGO_PKG_VERSION"),
    )
}
