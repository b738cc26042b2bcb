//! Gathers what flags, variables and the file say.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use crate::config::codeq::{self, Used};
use crate::config::file::{self, Data, Node};
use crate::config::table::{Setting, by_flag, setting, settings};
use crate::config::values::{Given, Origin, Values};
use crate::config::{Notice, Refused};

/// Variables that are not the server's, though they look like it: those of the command line's other parts, and of codeQ's tools.
const OTHERS: [&str; 15] = [
    "CODEQ_TOKEN",
    "CODEQ_CA",
    "CODEQ_CERT",
    "CODEQ_KEY",
    "CODEQ_BENCH_URL",
    "CODEQ_ENDPOINTS",
    "CODEQ_BASE_URL",
    "CODEQ_IAM_BASE_URL",
    "CODEQ_IAM_API_KEY",
    "CODEQ_PRODUCER_TOKEN",
    "CODEQ_WORKER_TOKEN",
    "CODEQ_ADMIN",
    "CODEQ_PROFILE",
    "CODEQ_CONFIG_DIR",
    "CODEQ_IMAGE",
];

/// Everything that can say something about settings.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Flags without their dashes, with their values.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: Vec<(String, OsString)>,
}

/// What the sources say.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What holds. A setting whose value was refused has its default.
    pub values: Values,
    pub(crate) notices: Vec<Notice>,
    pub(crate) problems: Vec<String>,
}

#[derive(Default)]
struct Gathered {
    given: BTreeMap<&'static str, Vec<Given>>,
    broken: Vec<&'static str>,
    codeq: Vec<Used>,
    notices: Vec<Notice>,
    problems: Vec<String>,
}

impl Inputs {
    /// Reads all sources.
    pub fn read(&self) -> Reading {
        let mut gathered = Gathered::default();
        self.read_flags(&mut gathered);
        self.read_environment(&mut gathered);
        if let Some(path) = gathered.config_path() {
            self.read_file(Path::new(&path), &mut gathered);
        }
        gathered.translate();
        let Gathered { given, broken, notices, mut problems, .. } = gathered;
        let values = Values::choose(given, &broken, &mut problems);
        Reading { values, notices, problems }
    }

    /// A variable that is set to something.
    fn variable(&self, name: &str) -> Option<String> {
        let (_, value) = self.environment.iter().find(|(known, _)| known == name)?;
        value.to_str().map(str::to_owned).filter(|value| !value.is_empty())
    }

    fn read_flags(&self, gathered: &mut Gathered) {
        for (flag, text) in &self.flags {
            let setting = by_flag(flag).expect("flags are made from the table");
            let origin = Origin::Flag(flag.clone());
            if setting.kind.is_secret() {
                gathered.offer_file(setting, text, origin);
            } else {
                gathered.offer(setting, text, origin, false);
            }
        }
    }

    fn read_environment(&self, gathered: &mut Gathered) {
        for setting in settings() {
            let name = setting.variable();
            if let Some(text) = self.variable(&name) {
                gathered.offer(setting, &text, Origin::Environment(name), false);
            }
            if let Some(name) = setting.file_variable()
                && let Some(path) = self.variable(&name)
            {
                gathered.offer_file(setting, &path, Origin::Environment(name));
            }
        }
        for name in codeq::NAMES {
            if let Some(text) = self.variable(name.variable) {
                let origin = if name.is_codeq() {
                    Origin::Codeq(name.variable)
                } else {
                    Origin::Environment(name.variable.into())
                };
                gathered.codeq.push(Used { name, shown: name.variable.into(), text, origin });
            }
        }
        let is_ours = |name: &str| {
            OTHERS.contains(&name)
                || codeq::NAMES.iter().any(|known| known.variable == name)
                || settings()
                    .any(|setting| setting.variable() == name || setting.file_variable().as_deref() == Some(name))
        };
        let mut unknown = Vec::new();
        for (name, value) in &self.environment {
            if name.starts_with("CODEQ_") && !value.is_empty() {
                if !is_ours(name) {
                    unknown.push(name.as_str());
                } else if value.to_str().is_none() {
                    gathered.problems.push(format!("the variable {name} is not UTF-8"));
                }
            }
        }
        unknown.sort_unstable();
        let told: Vec<String> = unknown
            .into_iter()
            .map(|name| {
                let rest = name.trim_start_matches("CODEQ_");
                let known = settings().map(|setting| setting.variable().trim_start_matches("CODEQ_").to_owned());
                nearest(rest, known).map_or_else(|| name.into(), |known| format!("{name} (is CODEQ_{known} meant?)"))
            })
            .collect();
        if !told.is_empty() {
            let text = format!("no setting reads these variables: {}", told.join(", "));
            gathered.notices.push(Notice::warning(text));
        }
    }

    fn read_file(&self, path: &Path, gathered: &mut Gathered) {
        let root = match file::read(path) {
            Ok(root) => root,
            Err(problem) => return gathered.problems.push(problem),
        };
        let mut walk = Walk { inputs: self, file: path.display().to_string().into(), holds_secret: false, gathered };
        match &root.data {
            Data::Null => {}
            Data::Map(pairs) => walk.keys("", pairs),
            _ => walk.gathered.problems.push(format!("{}: settings are keys with values", path.display())),
        }
        if walk.holds_secret {
            gathered.notices.extend(read_by_others(path));
        }
    }
}

impl Reading {
    /// What is wrong so far, before it is known how the values go together.
    pub fn problems(&self) -> Refused {
        Refused(self.problems.clone())
    }

    /// What an operator should know.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }
}

impl Gathered {
    fn offer(&mut self, setting: &'static Setting, text: &str, origin: Origin, as_codeq: bool) {
        match setting.kind.parse(text) {
            Ok(value) => {
                let given = Given { value, origin, as_codeq, by_file: false };
                self.given.entry(setting.name).or_default().push(given);
            }
            Err(why) => {
                let shown = if setting.kind.is_secret() { String::new() } else { format!(" is {text:?}") };
                self.refuse(setting, format!("{}{shown} ({origin}): {why}", setting.name));
            }
        }
    }

    /// A secret that stands in a file.
    fn offer_file(&mut self, setting: &'static Setting, path: &str, origin: Origin) {
        match std::fs::read_to_string(path.trim()) {
            Ok(text) => {
                self.offer(setting, &text, origin, false);
                if let Some(given) = self.given.get_mut(setting.name).and_then(|given| given.last_mut()) {
                    given.by_file = true;
                }
                self.notices.extend(read_by_others(Path::new(path.trim())));
            }
            Err(cause) => self.refuse(setting, format!("{} ({origin}): cannot read {path}: {cause}", setting.name)),
        }
    }

    fn refuse(&mut self, setting: &'static Setting, problem: String) {
        self.problems.push(problem);
        self.broken.push(setting.name);
    }

    /// Turns codeQ's names into settings.
    fn translate(&mut self) {
        let translated = codeq::translate(&self.codeq);
        for (name, text, origin) in translated.given {
            let setting = setting(name).expect("codeQ's names lead to settings");
            self.offer(setting, &text, origin, true);
        }
        self.notices.extend(translated.notices);
        self.problems.extend(translated.problems);
    }

    /// Which file to read.
    fn config_path(&self) -> Option<String> {
        let ours = self.given.get("config").into_iter().flatten();
        let path = ours.max_by_key(|given| given.origin.rank()).map(|given| given.value.to_string());
        path.or_else(|| codeq::config_path(&self.codeq))
    }
}

/// A walk through the keys of a file.
struct Walk<'a> {
    inputs: &'a Inputs,
    file: Arc<str>,
    holds_secret: bool,
    gathered: &'a mut Gathered,
}

impl Walk<'_> {
    fn keys(&mut self, above: &str, pairs: &[(String, usize, Node)]) {
        for (key, line, value) in pairs {
            let name = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
            self.key(&name, *line, value);
        }
    }

    fn key(&mut self, name: &str, line: usize, value: &Node) {
        let origin = Origin::File(self.file.clone(), line);
        // A file does not name itself.
        let known = setting(name).filter(|setting| setting.name != "config");
        let by_file = settings().find(|setting| setting.file_key().as_deref() == Some(name));
        let of_codeq = codeq::by_key(name);
        if known.is_none() && by_file.is_none() && of_codeq.is_none() {
            return self.no_setting(name, line, value);
        }
        let text = match value.text(&|name| self.inputs.variable(name)) {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(why) => return self.gathered.problems.push(format!("{name} ({origin}): {why}")),
        };
        let is_one = !matches!(value.data, Data::List(_) | Data::Map(_));
        if let Some(setting) = known {
            self.holds_secret |= setting.kind.is_secret();
            if is_one || setting.kind.has_parts() {
                self.gathered.offer(setting, &text, origin, false);
            } else {
                self.gathered.refuse(setting, format!("{name} ({origin}): allowed is {}", setting.kind.allowed()));
            }
        } else if let Some(setting) = by_file {
            self.gathered.offer_file(setting, &text, origin);
        } else if let Some(codeq) = of_codeq {
            self.holds_secret |= codeq.is_secret();
            self.gathered.codeq.push(Used { name: codeq, shown: name.to_owned(), text, origin });
        }
    }

    /// A key above others, or one nobody knows.
    fn no_setting(&mut self, name: &str, line: usize, value: &Node) {
        let prefix = format!("{name}.");
        let keys = || settings().map(|setting| setting.name.to_owned()).chain(codeq::keys().map(str::to_owned));
        let is_above = keys().any(|key| key.starts_with(&prefix));
        match &value.data {
            Data::Map(pairs) if is_above => self.keys(name, pairs),
            Data::Null if is_above => {}
            _ => {
                let hint = match codeq::hint(name) {
                    Some(hint) => format!("; {hint}"),
                    None if name == "config" => "; a file does not name another one".into(),
                    None => nearest(name, keys()).map(|known| format!("; is {known} meant?")).unwrap_or_default(),
                };
                self.gathered.problems.push(format!("{}:{line}: no setting is called {name}{hint}", self.file));
            }
        }
    }
}

/// The known name that is most like this one, if one is like it at all.
fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let likeness = |known: &str| strsim::jaro(&known.to_ascii_lowercase(), &name);
    let (likeness, nearest) = known.map(|known| (likeness(&known), known)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness > 0.8).then_some(nearest)
}

/// A warning, if everybody on this machine may read a file that holds a secret. A group may: services and containers are often given one.
pub(crate) fn read_by_others(path: &Path) -> Option<Notice> {
    use std::os::unix::fs::PermissionsExt;
    let may = std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0);
    let shown = path.display();
    may.then(|| Notice::warning(format!("{shown} holds a secret and everybody here may read it; chmod o-r {shown}")))
}
