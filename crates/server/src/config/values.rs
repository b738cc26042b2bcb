//! The values of all settings, and where each came from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base::Millis;

use crate::config::kinds::{Address, Value};
use crate::config::table::{Default, Setting, setting, settings};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The table.
    Default,
    /// A line of the configuration file.
    File(Arc<str>, usize),
    /// A variable of the environment.
    Environment(String),
    /// A variable that codeQ has.
    Codeq(&'static str),
    /// A flag, without its dashes.
    Flag(String),
}

impl Origin {
    /// The higher one wins.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::File(..) => 1,
            Origin::Environment(_) | Origin::Codeq(_) => 2,
            Origin::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(file, line) => write!(f, "file {file}:{line}"),
            Origin::Environment(name) => write!(f, "env {name}"),
            Origin::Codeq(name) => write!(f, "env {name} (codeQ)"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// What a source says about a setting.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
    /// Under a name of codeQ's.
    pub(crate) as_codeq: bool,
    /// By the name of a file that holds the value.
    pub(crate) by_file: bool,
}

/// What holds for a setting.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its value, if there is one.
    pub value: Option<Value>,
    /// Where that came from.
    pub origin: Origin,
    /// It was given under a name of codeQ's.
    pub(crate) as_codeq: bool,
    /// What was given for it was refused, so the default stands in.
    pub(crate) is_broken: bool,
}

/// What holds for all settings. The names asked for must be in the table, with the type asked for.
#[derive(Clone, Debug)]
pub struct Values(BTreeMap<&'static str, Held>);

impl Values {
    /// Picks what holds among everything given, and adds what contradicts itself to `problems`.
    pub(crate) fn choose(
        mut given: BTreeMap<&'static str, Vec<Given>>,
        broken: &[&'static str],
        problems: &mut Vec<String>,
    ) -> Values {
        let choose = |setting: &'static Setting| {
            let mut candidates = given.remove(setting.name).unwrap_or_default();
            let contradicts = contradictions(setting, &candidates, problems);
            // The last of the highest rank; among equals our own name, which may say more.
            candidates.sort_by_key(|given| (given.origin.rank(), !given.as_codeq));
            let is_broken = contradicts || broken.contains(&setting.name);
            let held = match candidates.pop() {
                Some(Given { value, origin, as_codeq, .. }) => Held { value: Some(value), origin, as_codeq, is_broken },
                None => Held { value: default_of(setting), origin: Origin::Default, as_codeq: false, is_broken },
            };
            (setting.name, held)
        };
        Values(settings().map(choose).collect())
    }

    /// What holds for a setting.
    pub fn get(&self, name: &str) -> &Held {
        self.0.get(name).unwrap_or_else(|| panic!("{name} is not in the table of settings"))
    }

    /// Whether somebody has said something about a setting.
    pub fn is_given(&self, name: &str) -> bool {
        self.get(name).origin != Origin::Default
    }

    /// A setting as messages tell it: name, value and origin.
    pub(crate) fn told(&self, name: &str) -> String {
        let held = self.get(name);
        format!("{name} = {} ({})", self.shown(name), held.origin)
    }

    /// A value as it may be shown.
    pub fn shown(&self, name: &str) -> String {
        let row = setting(name).expect("what holds is in the table");
        match (&self.get(name).value, row.default) {
            (Some(value), _) => value.to_string(),
            (None, Default::Computed(how)) => format!("({how})"),
            (None, _) => "unset".into(),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        match self.get(name).value {
            Some(Value::Bool(flag)) => flag,
            _ => panic!("{name} is not a bool with a default"),
        }
    }

    /// A number; of a size its bytes.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.maybe_number(name).unwrap_or_else(|| panic!("{name} is not a number with a default"))
    }

    pub(crate) fn maybe_number(&self, name: &str) -> Option<u64> {
        match self.get(name).value {
            Some(Value::Int(number) | Value::Size(number)) => Some(number),
            None => None,
            _ => panic!("{name} is not a number"),
        }
    }

    /// A number that counts things in memory.
    pub(crate) fn count(&self, name: &str) -> usize {
        usize::try_from(self.number(name)).expect("what is counted in memory fits a machine's word")
    }

    pub(crate) fn duration(&self, name: &str) -> Millis {
        self.maybe_duration(name).unwrap_or_else(|| panic!("{name} is not a duration with a default"))
    }

    pub(crate) fn maybe_duration(&self, name: &str) -> Option<Millis> {
        match self.get(name).value {
            Some(Value::Duration(length)) => Some(length),
            None => None,
            _ => panic!("{name} is not a duration"),
        }
    }

    pub(crate) fn addr(&self, name: &str) -> &Address {
        match &self.get(name).value {
            Some(Value::Addr(address)) => address,
            _ => panic!("{name} is not an address with a default"),
        }
    }

    /// Whether `auto` was given instead of an address.
    pub(crate) fn is_auto(&self, name: &str) -> bool {
        matches!(&self.get(name).value, Some(Value::Text(text)) if text == "auto")
    }

    /// An address that was given.
    pub(crate) fn maybe_addr(&self, name: &str) -> Option<&Address> {
        match &self.get(name).value {
            Some(Value::Addr(address)) => Some(address),
            _ => None,
        }
    }

    /// Nodes that were given.
    pub(crate) fn nodes(&self, name: &str) -> Option<&BTreeMap<String, Address>> {
        match &self.get(name).value {
            Some(Value::Nodes(nodes)) => Some(nodes),
            None => None,
            _ => panic!("{name} is not nodes"),
        }
    }

    /// URLs by name; none if none were given.
    pub(crate) fn urls(&self, name: &str) -> BTreeMap<String, String> {
        match &self.get(name).value {
            Some(Value::Urls(urls)) => urls.clone(),
            None => BTreeMap::new(),
            _ => panic!("{name} is not URLs"),
        }
    }

    /// Addresses; none if none were given.
    pub(crate) fn hosts(&self, name: &str) -> &[Address] {
        match &self.get(name).value {
            Some(Value::Hosts(hosts)) => hosts,
            None => &[],
            _ => panic!("{name} is not addresses"),
        }
    }

    pub(crate) fn maybe_text(&self, name: &str) -> Option<&str> {
        match &self.get(name).value {
            Some(Value::Text(text) | Value::Secret(text)) => Some(text),
            None => None,
            _ => panic!("{name} is not text"),
        }
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.maybe_text(name).unwrap_or_else(|| panic!("{name} is not text with a default"))
    }

    /// Adds a problem, unless one of the settings it is about has one already.
    pub(crate) fn refuse_if(
        &self,
        wrong: bool,
        about: &[&str],
        problems: &mut Vec<String>,
        text: impl FnOnce() -> String,
    ) {
        if wrong && !about.iter().any(|name| self.get(name).is_broken) {
            problems.push(text());
        }
    }
}

fn default_of(setting: &Setting) -> Option<Value> {
    match setting.default {
        Default::Is(text) => Some(setting.kind.parse(text).expect("a test has read every default")),
        Default::Absent | Default::Computed(_) => None,
    }
}

/// Two sources of one rank must agree.
fn contradictions(setting: &Setting, candidates: &[Given], problems: &mut Vec<String>) -> bool {
    let mut found = false;
    for (place, later) in candidates.iter().enumerate() {
        for earlier in candidates[..place].iter().filter(|earlier| earlier.origin.rank() == later.origin.rank()) {
            let (one, two) = (&earlier.origin, &later.origin);
            let is_file = matches!(two, Origin::File(..));
            let problem = if earlier.by_file != later.by_file {
                format!("{} is given directly ({one}) and by a file ({two}); remove one", setting.name)
            } else if is_file && earlier.as_codeq == later.as_codeq {
                format!("{} is given twice ({one} and {two}); remove one", setting.name)
            } else if agree(earlier, later) {
                continue;
            } else if setting.kind.is_secret() {
                format!("{} has two values, by {one} and {two}; remove one", setting.name)
            } else {
                format!("{} is {} by {one} and {} by {two}; remove one", setting.name, earlier.value, later.value)
            };
            problems.push(problem);
            found = true;
        }
    }
    found
}

/// codeQ names only the port of an address.
fn agree(one: &Given, two: &Given) -> bool {
    match (&one.value, &two.value) {
        (Value::Addr(a), Value::Addr(b)) if one.as_codeq != two.as_codeq => a.port == b.port,
        (a, b) => a == b,
    }
}
