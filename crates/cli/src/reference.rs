//! The page of `docs/reference/` about the command line, made of what clap knows. The test is red when the page and the commands differ;
//! `cargo xtask reference` writes it anew.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::{Arg, Command, CommandFactory};

use crate::{Cli, endpoint};

#[test]
fn the_page_of_commands_is_what_clap_knows() {
    let mut whole = Cli::command();
    whole.build();
    let mut page = String::from(
        "# Commands\n\n\
         `codeq help COMMAND` prints the same, `codeq man --out DIR` writes it as manual pages. Exit status 0: done; 2: the command line\n\
         cannot be used; others stand with their commands, and in [the guide](../guides/cli.md).\n\n\
         ## Which server\n\n\
         Commands that ask a server take these flags, which may also stand before the command.\n\n",
    );
    let asks = whole.get_subcommands().find(|command| command.get_name() == "status").expect("it asks a server");
    table(asks.get_arguments().filter(|arg| is_about_servers(arg)), &mut page);
    let commands = whole.get_subcommands().filter(|command| command.get_name() != "help");
    commands.for_each(|command| describe(command, &mut page));
    let mut mint = goldenfile::Mint::new("../../docs/reference");
    let mut file = mint.new_goldenfile("cli.md").expect("the folder is there");
    file.write_all(page.as_bytes()).expect("a page can be written");
}

/// A command, and those below it.
fn describe(command: &Command, page: &mut String) {
    if command.is_hide_set() {
        return;
    }
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let about = sentence(about);
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let depth = name.split(' ').count();
    writeln!(page, "\n{} {name}\n\n{about}\n\n```text\n{usage}\n```", "#".repeat(depth.min(4)))
        .expect("a string takes all");
    let shown = |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let is_setting = |arg: &Arg| name == "codeq serve" && arg.get_long() != Some("config");
    let own: Vec<&Arg> =
        command.get_arguments().filter(shown).filter(|arg| !is_about_servers(arg) && !is_setting(arg)).collect();
    if !own.is_empty() {
        page.push('\n');
        table(own.into_iter(), page);
    }
    if name == "codeq serve" {
        page.push_str("\nEvery [setting](settings.md) is a flag as well.\n");
    }
    if command.get_arguments().any(is_about_servers) {
        page.push_str("\nAsks a [server](#which-server).\n");
    }
    if let Some(more) = command.get_after_long_help().or(command.get_after_help()) {
        writeln!(page, "\n```text\n{more}\n```").expect("a string takes all");
    }
    let below = command.get_subcommands().filter(|below| below.get_name() != "help");
    below.for_each(|below| describe(below, page));
}

/// Clap takes the last full stop away.
fn sentence(text: String) -> String {
    if text.is_empty() || text.ends_with('.') { text } else { text + "." }
}

/// It says which server to ask, and how.
fn is_about_servers(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| endpoint::FLAGS.contains(&format!("--{long}").as_str()))
}

fn table<'a>(args: impl Iterator<Item = &'a Arg>, page: &mut String) {
    page.push_str("| argument | what it says |\n|---|---|\n");
    for arg in args {
        let value = || {
            let names = arg.get_value_names().unwrap_or_default().iter().map(|name| format!("<{name}>"));
            names.collect::<Vec<_>>().join(" ")
        };
        let takes = arg.get_action().takes_values();
        let mut names: Vec<String> = arg.get_short().map(|short| format!("-{short}")).into_iter().collect();
        names.extend(arg.get_long().map(|long| format!("--{long}")));
        let mut shown = names.join(", ");
        if takes {
            shown = format!("{shown} {}", value()).trim().into();
        }
        let mut says = sentence(arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default());
        let words: Vec<String> =
            arg.get_possible_values().iter().map(|word| format!("`{}`", word.get_name())).collect();
        if takes && !words.is_empty() {
            write!(says, " One of {}.", words.join(", ")).expect("a string takes all");
        }
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|word| format!("`{}`", word.display())).collect();
        if takes && !defaults.is_empty() {
            write!(says, " Left out: {}.", defaults.join(", ")).expect("a string takes all");
        }
        if let Some(variable) = arg.get_env() {
            write!(says, " Variable: `{}`.", variable.display()).expect("a string takes all");
        }
        let says = says.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        writeln!(page, "| `{shown}` | {says} |").expect("a string takes all");
    }
}
