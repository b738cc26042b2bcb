//! `codeq dev`: one server or a whole cluster on this machine to try things out with, and three lines to begin.
//!
//! Each node has a directory of its own below the data directory, so that one node can become three and keeps what it has. Several nodes are
//! processes of this same program, so that one of them can really be killed.

mod cluster;
mod peers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use server::config::Inputs;

use crate::config::refuse;
use crate::{output, serve};

#[derive(Args)]
pub(crate) struct DevArgs {
    /// How many nodes; three survive the loss of one.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Where to listen, on this machine; further nodes take the next ports. Port 0 is a free one for each.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http_addr: String,
    /// Directory for everything it keeps, with one for each node in it.
    #[arg(long, value_name = "PATH", default_value = "./codeq-dev")]
    data_dir: PathBuf,
    /// How much is logged.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log_level: String,
}

/// When tasks are refused for want of room: later than at a server, for the disk of a machine that people work at is often full.
const ROOM: [(&str, &str); 2] = [("disk-low", "256MiB"), ("disk-critical", "64MiB")];

/// The name of a node, which is also that of its directory. They are counted from 1.
fn name(number: u16) -> String {
    format!("node-{number}")
}

/// Runs it.
pub(crate) fn dev(args: &DevArgs) -> ExitCode {
    let further = args.data_dir.join(name(args.nodes + 1));
    if further.exists() {
        let present = (1..).take_while(|number| args.data_dir.join(name(*number)).exists()).count();
        output::note(&format!(
            "error: {} holds a cluster of {present} nodes, which fewer cannot replace: codeq dev --nodes {present}, or choose another \
             directory with --data-dir",
            args.data_dir.display()
        ));
        return ExitCode::FAILURE;
    }
    if args.nodes == 1 { one(args) } else { cluster::run(args) }
}

fn one(args: &DevArgs) -> ExitCode {
    let directory = args.data_dir.join(name(1));
    let flags = [
        ("node-id", name(1)),
        ("http-addr", args.http_addr.clone()),
        ("data-dir", directory.display().to_string()),
        ("log-level", args.log_level.clone()),
        ("log-format", "text".into()),
    ];
    let room = ROOM.map(|(flag, value)| (flag, value.to_owned()));
    let flags = flags.into_iter().chain(room).map(|(flag, value)| (flag.to_owned(), value)).collect();
    match (Inputs { flags, environment: Vec::new() }).read().configuration() {
        Ok(configuration) => {
            serve::run(&configuration, None, |server| output::data(&banner(server.addr(), &directory)))
        }
        Err(refused) => refuse(&refused),
    }
}

/// What to read first.
fn banner(addr: SocketAddr, directory: &Path) -> String {
    format!(
        "codeq {} for development: http://{addr}, for this machine only, no token needed; tasks are kept in {}\n\n{}\n\nCtrl-C stops \
         the server.",
        env!("CARGO_PKG_VERSION"),
        directory.display(),
        begin([addr; 3])
    )
}

/// A task's life in three lines, each at a node of its own. They are for one shell: the second one remembers the task's id for the third.
fn begin([create, claim, complete]: [SocketAddr; 3]) -> String {
    let tasks = |addr: SocketAddr| format!("http://{addr}/v1/codeq/tasks");
    format!(
        r#"Create a task, claim it as a worker, and complete it, in another terminal:

  curl -sw '\n' {} -d '{{"command":"greet","payload":{{"name":"Ada"}}}}'
  id=$(curl -s {}/claim -d '{{"commands":["greet"]}}' | cut -d'"' -f4); echo "claimed $id"
  curl -sw '\n' {}/$id/result -d '{{"status":"COMPLETED","result":{{"greeting":"Hello, Ada!"}}}}'"#,
        tasks(create),
        tasks(claim),
        tasks(complete)
    )
}
