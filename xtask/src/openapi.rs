//! `cargo xtask openapi`: whether a running server does what its description of itself says.
//!
//! Schemathesis (from PyPI, in an environment of its own) reads `/openapi.json` and sends requests made from it: what a schema allows, and
//! what it does not. No answer may be a fault of the server, or one that the document does not describe.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::process::{Folder, Server, build_codeq};

#[derive(Args)]
pub(crate) struct OpenApiArgs {
    /// Requests for each route at most, of each kind.
    #[arg(long, default_value_t = EXAMPLES)]
    examples: u32,
    /// What the requests are drawn from; the same number gives the same requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Requests for each route, as CI makes them: it takes less than a minute.
const EXAMPLES: u32 = 25;

/// The version whose findings are known.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// Routes that would stop the server, change who leads it, or never end.
const EXCLUDED: &str = "^/cluster/(monitor|snapshot|leave|join|members|leader/)|^/v1/codeq/(tasks/.*/)?events$";

/// What is checked of every answer. What a server refuses is not: unknown members are ignored where codeQ ignores them.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

/// Nobody waits for work or for an end.
const HOOKS: &str = "import schemathesis


@schemathesis.hook
def before_call(context, case, **kwargs):
    for part in (case.query, case.body):
        if isinstance(part, dict):
            part.pop(\"waitSeconds\", None)
            part.pop(\"wait\", None)
";

impl OpenApiArgs {
    /// What CI runs.
    pub(crate) fn few() -> OpenApiArgs {
        OpenApiArgs { examples: EXAMPLES, seed: 1 }
    }
}

/// Compares a server with its description; says so and does nothing where Schemathesis cannot be had.
///
/// # Errors
/// An answer is not as described.
pub(crate) fn run(args: &OpenApiArgs) -> Result<()> {
    let codeq = build_codeq()?;
    let folder = Folder::new("openapi")?;
    let Some(schemathesis) = install(&folder.within("python"))? else {
        println!("skipped: {SCHEMATHESIS} cannot be installed here (python3 -m venv, pip)");
        return Ok(());
    };
    std::fs::write(folder.within("hooks.py"), HOOKS).context("cannot write the hooks")?;
    let server = Server::start(&codeq, &folder.within("data"), &[])?;
    let ran = Command::new(schemathesis)
        .args(["run", &format!("{}/openapi.json", server.url()), "--exclude-path-regex", EXCLUDED])
        .args(["--checks", CHECKS, "--seed", &args.seed.to_string(), "--max-examples", &args.examples.to_string()])
        .args(["--phases", "fuzzing", "--request-timeout", "20", "--no-color"])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .current_dir(folder.within("."))
        .stdin(Stdio::null())
        .status()
        .context("cannot run schemathesis")?;
    ensure!(ran.success(), "the server and its description differ");
    server.kill()
}

/// The program, in a new environment; nothing: it cannot be had.
fn install(environment: &Path) -> Result<Option<PathBuf>> {
    let succeeds = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !succeeds(Command::new("python3").args(["-m", "venv"]).arg(environment)) {
        return Ok(None);
    }
    let pip = environment.join("bin/pip");
    if !succeeds(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS])) {
        return Ok(None);
    }
    let program = environment.join("bin/schemathesis");
    if !program.exists() {
        bail!("{SCHEMATHESIS} has brought no program {}", program.display());
    }
    Ok(Some(program))
}
