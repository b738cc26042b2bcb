//! Profiles: which servers commands ask, and with which token, where neither a flag nor a variable says so.
//!
//! A file `profiles.toml` in the folder `codeq` of the user's configuration (`$XDG_CONFIG_HOME`, else `~/.config`), or in the folder that the
//! variable CODEQ_CONFIG_DIR names, has a table for each:
//!
//! ```toml
//! [default]
//! endpoints = ["http://node-a:8080", "http://node-b:8080"]
//! token-file = "/etc/codeq/token"
//! ```
//!
//! `--profile NAME` or the variable CODEQ_PROFILE chooses one; else it is `default`, if there is one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Profile {
    /// URLs of the nodes of one cluster.
    #[serde(default)]
    pub(crate) endpoints: Vec<String>,
    /// File with a token.
    pub(crate) token_file: Option<PathBuf>,
}

/// The profile of that name; without a name the default one, which may be absent.
///
/// # Errors
/// The file cannot be read, or has no such profile.
pub(crate) fn read(name: Option<&str>) -> Result<Profile> {
    let file = file();
    let text = match file.as_ref().map(std::fs::read_to_string) {
        Some(Ok(text)) => text,
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot read {}", shown(file.as_ref())));
        }
        _ if name.is_none() => return Ok(Profile::default()),
        _ => bail!("there is no profile {:?}: {} does not exist", name.unwrap_or_default(), shown(file.as_ref())),
    };
    choose(&text, name).with_context(|| shown(file.as_ref()))
}

fn choose(text: &str, name: Option<&str>) -> Result<Profile> {
    let mut profiles: BTreeMap<String, Profile> = toml::from_str(text)?;
    match (profiles.remove(name.unwrap_or("default")), name) {
        (Some(profile), _) => Ok(profile),
        (None, None) => Ok(Profile::default()),
        (None, Some(name)) => {
            let known: Vec<String> = profiles.into_keys().collect();
            bail!("there is no profile {name:?}; there are: {}", known.join(", "))
        }
    }
}

fn file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = || variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let own = variable("CODEQ_CONFIG_DIR").or_else(|| Some(folder()?.join("codeq")))?;
    Some(own.join("profiles.toml"))
}

fn shown(file: Option<&PathBuf>) -> String {
    file.map_or("a file of profiles".into(), |file| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that is given must be there; the default need not; a word that means nothing is an error and not ignored.
    #[test]
    fn a_profile_is_chosen_by_its_name() {
        let text = "[default]\nendpoints = [\"http://a\"]\n[far]\nendpoints = [\"http://b\"]\ntoken-file = \"t\"\n";
        assert_eq!(choose(text, None).unwrap().endpoints, ["http://a"]);
        assert_eq!(choose(text, Some("far")).unwrap().token_file, Some("t".into()));
        assert_eq!(choose("", None).unwrap(), Profile::default());
        let error = choose(text, Some("near")).unwrap_err().to_string();
        assert_eq!(error, "there is no profile \"near\"; there are: default, far");
        assert!(choose("[default]\ntoken = \"secret\"\n", None).is_err());
    }
}
