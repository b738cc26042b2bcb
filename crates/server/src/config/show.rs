//! Settings for people: what holds and why, and the table as a file to fill in.

use std::fmt::Write;

use crate::config::codeq;
use crate::config::kinds::Kind;
use crate::config::table::{Default, FLAG_ALIASES, SECTIONS, Setting, settings};
use crate::config::values::Values;

/// Every setting with its value; with `origin` also where that came from, and its scope.
pub fn table(values: &Values, origin: bool) -> String {
    let name_width = settings().map(|setting| setting.name.len()).max().unwrap_or_default();
    let shown: Vec<(&Setting, String)> = settings().map(|setting| (setting, values.shown(setting.name))).collect();
    let width = shown.iter().map(|(_, value)| value.chars().count()).max().unwrap_or_default();
    let mut out = String::new();
    for (setting, value) in shown {
        let line = if origin {
            let from = values.get(setting.name).origin.to_string();
            format!("{:name_width$}  {value:width$}  {:7}  {from}", setting.name, setting.scope.name())
        } else {
            format!("{:name_width$}  {value}", setting.name)
        };
        writeln!(out, "{}", line.trim_end()).expect("a string takes all");
    }
    out.pop();
    out
}

/// A YAML file that has every setting in a comment: its meaning, what is allowed, its default.
pub fn template() -> String {
    let mut out = String::from(
        "# codeq's settings with their defaults. Take away the # in front of a setting to change it, and start the server with\n\
         #   codeq serve --config codeq.yaml\n\
         # A flag and a variable of the environment count more than this file. ${NAME} is replaced by that variable.\n",
    );
    for section in SECTIONS {
        writeln!(out, "\n# --- {} ---", section.title).expect("a string takes all");
        for setting in section.settings.iter().filter(|setting| setting.name != "config") {
            writeln!(out, "\n# {}", explain(setting)).expect("a string takes all");
            if let Default::Computed(how) = setting.default {
                writeln!(out, "# Default: {how}.").expect("a string takes all");
            }
            let value = match setting.default {
                Default::Is(text) if matches!(setting.kind, Kind::Addr) => format!(" \"{text}\""),
                Default::Is(text) => format!(" {text}"),
                Default::Absent | Default::Computed(_) => String::new(),
            };
            writeln!(out, "#{}:{value}", setting.name).expect("a string takes all");
        }
    }
    out.pop();
    out
}

/// A setting in a few sentences: meaning, what is allowed, its other names.
pub fn explain(setting: &Setting) -> String {
    let mut text = format!("{}. {}.", capital(setting.meaning), capital(&setting.kind.allowed()));
    match setting.file_variable() {
        Some(variable) => write!(text, " Environment: {} or, for a file with it, {variable}.", setting.variable()),
        None => write!(text, " Environment: {}.", setting.variable()),
    }
    .expect("a string takes all");
    let codeq = codeq::names_of(setting.name);
    if !codeq.is_empty() {
        write!(text, " codeQ: {}.", codeq.join(", ")).expect("a string takes all");
    }
    let aliases = FLAG_ALIASES.iter().filter(|(_, name)| *name == setting.name);
    let foreign = aliases.map(|(alias, _)| format!("--{alias}"));
    let foreign: Vec<String> = foreign.chain(codeq::foreign_names_of(setting.name).map(str::to_owned)).collect();
    if !foreign.is_empty() {
        write!(text, " Other programs: {}.", foreign.join(", ")).expect("a string takes all");
    }
    text
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// The table as a page of the documentation, in Markdown.
pub fn reference() -> String {
    let mut out = String::from(
        "# Settings\n\n\
         A setting comes from its flag, else from its variable of the environment, else from the file named by `--config` (under\n\
         its name, as `http.addr: \":8080\"` or nested), else it has its default. `codeq config show --origin` prints what holds and\n\
         why, `codeq config template` writes a file with all of them, `codeq config check` reads everything and starts nothing.\n\n\
         *Scope*: `node` acts in one process and changes with a restart; `cluster` is written to the log by the leader, and all\n\
         replicas apply the same value; `fixed` is written down when a data directory is made and cannot change afterwards.\n",
    );
    for section in SECTIONS {
        let rows = section.settings.iter().map(|setting| {
            let default = match setting.default {
                Default::Is(text) => format!("`{text}`"),
                Default::Absent => "none".into(),
                Default::Computed(how) => how.into(),
            };
            let cells = [
                format!("`{}`", setting.name),
                capital(setting.meaning),
                setting.kind.allowed(),
                default,
                setting.scope.name().into(),
                names(setting),
            ];
            format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
        });
        let head = "| setting | meaning | allowed | default | scope | flag, variable, other names |\n|---|---|---|---|---|---|\n";
        write!(out, "\n## {}\n\n{head}{}", section.title, rows.collect::<String>()).expect("a string takes all");
    }
    out
}

/// Every name of a setting but its own.
fn names(setting: &Setting) -> String {
    let aliases = FLAG_ALIASES.iter().filter(|(_, name)| *name == setting.name);
    let own = [format!("--{}", setting.flag()), setting.variable()].into_iter().chain(setting.file_variable());
    let others = codeq::names_of(setting.name).into_iter().chain(codeq::foreign_names_of(setting.name));
    let all = own.chain(aliases.map(|(alias, _)| format!("--{alias}"))).chain(others.map(str::to_owned));
    all.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
