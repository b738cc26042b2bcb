//! `codeq completion` and `codeq man`: what a shell and `man` know of these commands, made from the same table as the help.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

#[derive(Args)]
pub(crate) struct CompletionArgs {
    /// For which shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args)]
pub(crate) struct ManArgs {
    /// The folder that gets a page for each command.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Prints what the shell is to run.
pub(crate) fn completion(args: &CompletionArgs, mut whole: Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut whole, "codeq", &mut script);
    output::data(String::from_utf8_lossy(&script).trim_end());
    ExitCode::SUCCESS
}

/// Writes the pages.
pub(crate) fn man(args: &ManArgs, mut whole: Command) -> ExitCode {
    whole.build();
    match write(&args.out, &whole, "codeq") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: the pages cannot be written to {}: {error}", args.out.display()));
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, command: &Command, name: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let page = clap_mangen::Man::new(command.clone().name(name.to_owned()));
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(folder.join(format!("{name}.1")), text)?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        write(folder, below, &format!("{name}-{}", below.get_name()))?;
    }
    Ok(())
}
