//! `codeq config`: settings, without a server.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use server::config::{Reading, Refused, show};

use crate::flags::SettingFlags;
use crate::output;

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints what holds for every setting.
    #[command(after_help = "Example:\n  codeq config show --origin --config codeq.yaml")]
    Show(ShowArgs),
    /// Checks settings as a start does. Exit status 2 if they are refused.
    #[command(after_help = "Example:\n  codeq config check --config codeq.yaml")]
    Check(SettingFlags),
    /// Prints a configuration file with every setting explained.
    #[command(after_help = "Example:\n  codeq config template > codeq.yaml")]
    Template,
}

#[derive(Args)]
pub(crate) struct ShowArgs {
    /// Prints also where each value came from, and its scope.
    #[arg(long)]
    origin: bool,
    #[command(flatten)]
    flags: SettingFlags,
}

pub(crate) fn run(command: ConfigCommand) -> ExitCode {
    match command {
        ConfigCommand::Template => {
            output::data(&show::template());
            ExitCode::SUCCESS
        }
        ConfigCommand::Show(ShowArgs { origin, flags }) => {
            let reading = flags.with_environment().read();
            output::data(&show::table(&reading.values, origin));
            judge(&reading)
        }
        ConfigCommand::Check(flags) => {
            let verdict = judge(&flags.with_environment().read());
            if verdict == ExitCode::SUCCESS {
                output::data("the settings are fine");
            }
            verdict
        }
    }
}

fn judge(reading: &Reading) -> ExitCode {
    match reading.configuration() {
        Ok(configuration) => {
            for notice in configuration.notices {
                output::note(&format!("{}: {}", if notice.is_warning { "warning" } else { "note" }, notice.text));
            }
            ExitCode::SUCCESS
        }
        Err(refused) => refuse(&refused),
    }
}

/// Says what is wrong with settings.
pub(crate) fn refuse(refused: &Refused) -> ExitCode {
    for problem in &refused.0 {
        output::note(&format!("error: {problem}"));
    }
    output::note("the settings are refused; nothing was opened or changed");
    ExitCode::from(2)
}
