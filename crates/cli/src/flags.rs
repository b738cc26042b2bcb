//! The flags of settings, made from the table of settings. What they say is judged there, with what other sources say.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use server::config::Inputs;
use server::config::kinds::Kind;
use server::config::show::explain;
use server::config::table::{Default, FLAG_ALIASES, SECTIONS, Setting, setting, settings};

/// Flags of settings as they were given.
#[derive(Clone, Debug)]
pub(crate) struct SettingFlags(Vec<(String, String)>);

impl SettingFlags {
    /// These flags together with the environment of this process.
    pub(crate) fn with_environment(self) -> Inputs {
        let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Inputs { flags: self.0, environment: named.collect() }
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<SettingFlags, clap::Error> {
        let own = settings().map(|setting| (setting.name, setting.flag()));
        let aliases = FLAG_ALIASES.iter().map(|(alias, _)| (*alias, (*alias).to_owned()));
        let given = |(id, flag): (&str, String)| Some((flag, matches.get_one::<String>(id)?.clone()));
        Ok(SettingFlags(own.chain(aliases).filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = SettingFlags::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for SettingFlags {
    fn augment_args(mut command: Command) -> Command {
        for section in SECTIONS {
            for setting in section.settings {
                command = command.arg(flag(setting).help_heading(section.title));
            }
        }
        for (alias, name) in FLAG_ALIASES {
            let meant = setting(name).expect("aliases lead to settings");
            command = command.arg(flag(meant).id(*alias).long(*alias).hide(true));
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        SettingFlags::augment_args(command)
    }
}

fn flag(setting: &'static Setting) -> Arg {
    let default = match setting.default {
        Default::Is(text) => format!(" [default: {text}]"),
        Default::Computed(how) => format!(" [default: {how}]"),
        Default::Absent => String::new(),
    };
    let placeholder = if setting.kind.is_secret() { "FILE" } else { setting.kind.placeholder() };
    let meaning =
        if setting.kind.is_secret() { format!("file with {}", setting.meaning) } else { setting.meaning.into() };
    let arg = Arg::new(setting.name)
        .long(setting.flag())
        .value_name(placeholder)
        .action(ArgAction::Set)
        .allow_hyphen_values(true)
        .help(format!("{meaning}{default}"))
        .long_help(format!("{}{default}", explain(setting)));
    // Alone, it says yes.
    if matches!(setting.kind, Kind::Bool) {
        arg.num_args(0..=1).allow_hyphen_values(false).default_missing_value("true")
    } else {
        arg
    }
}

/// A length of time, as settings have it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let length = server::config::kinds::duration(text);
    length.map(base::Millis::to_std).ok_or_else(|| "a duration is a number with a unit: 500ms, 10s, 5m".into())
}
