//! What the text of a setting may be: each type with its range, read from text and written back.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use base::Millis;
use cluster::forming::FOUNDERS_MAX;
use hyper::Uri;

use base::is_node_name;

use crate::config::table::NODE_ID;

/// One second, in milliseconds.
pub(crate) const SECOND: u64 = 1000;
/// One minute, in milliseconds.
pub(crate) const MINUTE: u64 = 60 * SECOND;
/// One hour, in milliseconds.
pub(crate) const HOUR: u64 = 60 * MINUTE;
/// One day, in milliseconds.
pub(crate) const DAY: u64 = 24 * HOUR;

/// 1,024 bytes.
pub(crate) const KIB: u64 = 1 << 10;
/// 1,024 KiB.
pub(crate) const MIB: u64 = 1 << 20;
/// 1,024 MiB.
pub(crate) const GIB: u64 = 1 << 30;
/// 1,024 GiB.
pub(crate) const TIB: u64 = 1 << 40;

/// The type of a setting, with what it allows. Ranges include both ends.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true`, `false`, `1`, `0`, `yes`, `no`, `on`, `off`, in any letter case.
    Bool,
    /// A whole number in this range.
    Int(u64, u64),
    /// A length of time in this range, in milliseconds.
    Duration(u64, u64),
    /// An amount of bytes in this range.
    Size(u64, u64),
    /// Where to listen.
    Addr,
    /// Where others reach what listens: never an address that means all interfaces.
    Reach,
    /// `http://` or `https://` with a host.
    Url,
    /// Nodes by name, each with the address of its peer port.
    Nodes,
    /// URLs of nodes by name.
    Urls,
    /// Addresses of peer ports.
    Hosts,
    /// A file or directory.
    Path,
    /// A text with a rule of its own.
    Text(&'static Rule),
    /// One of some words.
    Choice(&'static Words),
    /// A log level, and after commas further ones for single targets.
    Levels,
    /// A JSON value or, in a file, a mapping. It is a secret: nobody is shown it.
    SecretJson,
    /// A text of at least so many bytes that nobody is shown.
    Secret(usize),
}

/// What a text must be.
#[derive(Debug)]
pub struct Rule {
    /// In words.
    pub allowed: &'static str,
    /// As code.
    pub fits: fn(&str) -> bool,
}

/// The words of a choice.
#[derive(Debug)]
pub struct Words {
    /// A word, and what it means where it is a synonym.
    pub known: &'static [(&'static str, &'static str)],
    /// A word that is refused for a reason of its own.
    pub refused: &'static [(&'static str, &'static str)],
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Int`].
    Int(u64),
    /// Of [`Kind::Duration`].
    Duration(Millis),
    /// Of [`Kind::Size`], in bytes.
    Size(u64),
    /// Of [`Kind::Addr`], and of [`Kind::Reach`] unless it is `auto`.
    Addr(Address),
    /// Of all that are text; a synonym stands as the word it means.
    Text(String),
    /// Of [`Kind::Nodes`].
    Nodes(BTreeMap<String, Address>),
    /// Of [`Kind::Urls`].
    Urls(BTreeMap<String, String>),
    /// Of [`Kind::Hosts`].
    Hosts(Vec<Address>),
    /// Of both that are secrets; JSON stands as text.
    Secret(String),
}

/// `host:port`; an empty host is left to whoever listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name, an IPv4 address, an IPv6 address without brackets, or nothing.
    pub host: String,
    /// 0 is any free port.
    pub port: u16,
}

/// The port for peers where nobody says another one.
pub(crate) const PEER_PORT: u16 = 7000;

/// Log levels, the quietest first.
pub const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", SECOND), ("m", MINUTE), ("h", HOUR), ("d", DAY)];

const SIZE_UNITS: [(&str, u64); 7] =
    [("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("TiB", TIB), ("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];

impl Kind {
    /// The value that a text stands for; white space around it does not count.
    ///
    /// # Errors
    /// Why not, as the end of a sentence. The text itself is not repeated.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let value = match self {
            Kind::Bool => boolean(text).map(Value::Bool),
            Kind::Int(min, max) => number(text).filter(|number| (min..=max).contains(&number)).map(Value::Int),
            Kind::Duration(min, max) => {
                duration(text).filter(|length| (*min..=*max).contains(&length.0)).map(Value::Duration)
            }
            Kind::Size(min, max) => size(text).filter(|bytes| (min..=max).contains(&bytes)).map(Value::Size),
            Kind::Addr => address(without_scheme(text)).map(Value::Addr),
            Kind::Reach if text == "auto" => Some(Value::Text(text.into())),
            Kind::Reach => {
                let address = address(without_scheme(text)).filter(|address| !address.host.is_empty());
                if let Some(nowhere) = address.as_ref().filter(|address| address.is_unspecified()) {
                    return Err(format!("others cannot dial {nowhere}; allowed is {}", self.allowed()));
                }
                address.map(Value::Addr)
            }
            Kind::Url => url(text).map(Value::Text),
            Kind::Nodes => return nodes(text).map(Value::Nodes),
            Kind::Urls => return urls(text).map(Value::Urls),
            Kind::Hosts => return hosts(text).map(Value::Hosts),
            Kind::Path => (!text.is_empty()).then(|| Value::Text(text.into())),
            Kind::Text(rule) => (rule.fits)(text).then(|| Value::Text(text.into())),
            Kind::Choice(words) => {
                let find = |of: &[(&str, &'static str)]| {
                    of.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, meaning)| *meaning)
                };
                if let Some(why) = find(words.refused) {
                    return Err(why.into());
                }
                find(words.known).map(|meaning| Value::Text(meaning.into()))
            }
            Kind::Levels => levels(text).map(Value::Text),
            Kind::SecretJson => Some(Value::Secret(text.into())),
            Kind::Secret(min) => (text.len() >= *min).then(|| Value::Secret(text.into())),
        };
        value.ok_or_else(|| format!("allowed is {}", self.allowed()))
    }

    /// What is allowed, in words.
    pub fn allowed(&self) -> String {
        match self {
            Kind::Bool => "true or false".into(),
            Kind::Int(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Duration(min, max) => {
                let (min, max) = (show_duration(Millis(*min)), show_duration(Millis(*max)));
                format!("a number with a unit, as in 250ms, 5s, 1h30m or 7d, from {min} to {max}")
            }
            Kind::Size(min, max) => {
                format!(
                    "bytes, or a number with a unit, as in 64KiB or 1MiB, from {} to {}",
                    show_size(*min),
                    show_size(*max)
                )
            }
            Kind::Addr => "host:port, [v6]:port or :port".into(),
            Kind::Reach => "host:port as others dial it, or auto for the host name".into(),
            Kind::Url => "http:// or https:// with a host".into(),
            Kind::Nodes => format!(
                "name=host:port, or host[:port] for a node that is called as its host; separated by commas, 1 to {FOUNDERS_MAX}; the port is {PEER_PORT} if none is given"
            ),
            Kind::Urls => "name=http://host:port, separated by commas".into(),
            Kind::Hosts => format!("host:port or host, separated by commas; the port is {PEER_PORT} if none is given"),
            Kind::Path => "a path".into(),
            Kind::Text(rule) => rule.allowed.into(),
            Kind::Choice(words) => {
                let of = |(word, meaning): &(&str, &str)| {
                    if word == meaning { (*word).to_owned() } else { format!("{word} (= {meaning})") }
                };
                format!("one of {}", words.known.iter().map(of).collect::<Vec<_>>().join(", "))
            }
            Kind::Levels => format!("one of {}, then target=level pairs after commas", LEVELS.join(", ")),
            Kind::SecretJson => "JSON, or a mapping in the file".into(),
            Kind::Secret(min) => format!("a text of {min} bytes or more"),
        }
    }

    /// What stands for a value in the help of a flag.
    pub fn placeholder(&self) -> &'static str {
        match self {
            Kind::Bool => "BOOL",
            Kind::Int(..) => "NUMBER",
            Kind::Duration(..) => "DURATION",
            Kind::Size(..) => "SIZE",
            Kind::Addr | Kind::Reach => "ADDR",
            Kind::Url => "URL",
            Kind::Nodes => "NAME=ADDR,…",
            Kind::Urls => "NAME=URL,…",
            Kind::Hosts => "ADDR,…",
            Kind::Path => "PATH",
            Kind::Text(_) => "TEXT",
            Kind::Choice(_) => "WORD",
            Kind::Levels => "LEVEL",
            Kind::SecretJson => "JSON",
            Kind::Secret(_) => "TEXT",
        }
    }

    /// Whether its values are never shown.
    pub fn is_secret(&self) -> bool {
        matches!(self, Kind::SecretJson | Kind::Secret(_))
    }

    /// Whether a list or a mapping may stand for its value in a file.
    pub(crate) fn has_parts(&self) -> bool {
        matches!(self, Kind::SecretJson | Kind::Nodes | Kind::Urls | Kind::Hosts)
    }
}

/// As it could be given; a secret as `set`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(flag) => flag.fmt(f),
            Value::Int(number) => number.fmt(f),
            Value::Duration(length) => f.write_str(&show_duration(*length)),
            Value::Size(bytes) => f.write_str(&show_size(*bytes)),
            Value::Addr(address) => address.fmt(f),
            Value::Text(text) => f.write_str(text),
            Value::Nodes(nodes) => {
                f.write_str(&joined(nodes.iter().map(|(name, address)| format!("{name}={address}"))))
            }
            Value::Urls(urls) => f.write_str(&joined(urls.iter().map(|(name, url)| format!("{name}={url}")))),
            Value::Hosts(hosts) => f.write_str(&joined(hosts.iter().map(Address::to_string))),
            Value::Secret(_) => f.write_str("set"),
        }
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

impl Address {
    /// Whether it means all interfaces, so that nobody can dial it.
    pub fn is_unspecified(&self) -> bool {
        self.host.is_empty() || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// Whether only this machine can dial it.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Decimal digits; no sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// `250ms`, `1h30m`, and `0`. The unit may not be left out, since nobody could guess it.
pub fn duration(text: &str) -> Option<Millis> {
    if text == "0" {
        return Some(Millis(0));
    }
    let (mut rest, mut sum) = (text, 0u64);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let (count, unit) = (number_of(&rest[..digits])?, &rest[digits..digits + letters]);
        let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(count.checked_mul(*factor)?)?;
        rest = &rest[digits + letters..];
    }
    (!text.is_empty()).then_some(Millis(sum))
}

pub(crate) fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = (number_of(&text[..digits])?, &text[digits..]);
    match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => count.checked_mul(*factor),
        None => unit.is_empty().then_some(count),
    }
}

fn number_of(digits: &str) -> Option<u64> {
    if digits.is_empty() { None } else { number(digits) }
}

fn address(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let port = if port.len() <= 5 && !port.is_empty() { u16::try_from(number(port)?).ok()? } else { return None };
    let host = match host.strip_prefix('[') {
        Some(v6) => {
            let v6 = v6.strip_suffix(']')?;
            v6.parse::<std::net::Ipv6Addr>().ok()?;
            v6
        }
        None => host,
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    let fits = host.bytes().all(allowed) && (!host.contains(':') || text.starts_with('['));
    fits.then(|| Address { host: host.into(), port })
}

/// Peers are given as URLs by some.
fn without_scheme(text: &str) -> &str {
    let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    rest.map_or(text, |rest| rest.strip_suffix('/').unwrap_or(rest))
}

/// Without the slash at its end.
fn url(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let authority =
        uri.authority().filter(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))?;
    let fits = matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none();
    fits.then(|| format!("{}://{authority}{}", uri.scheme_str().unwrap_or_default(), uri.path().trim_end_matches('/')))
}

/// The address of a peer port: `host:port` or `host`.
fn peer_address(text: &str) -> Result<Address, String> {
    let text = without_scheme(text);
    let found = address(text).or_else(|| address(&format!("{text}:{PEER_PORT}")));
    match found.filter(|address| !address.host.is_empty()) {
        Some(nowhere) if nowhere.is_unspecified() => Err(format!("nobody can dial {nowhere}")),
        Some(address) => Ok(address),
        None => Err(format!("{text:?} is not host:port or host")),
    }
}

/// The parts of a list or a mapping: JSON if it begins so, as a file's are, else separated by commas. Quotes are left over from shells.
fn parts(text: &str) -> Result<Vec<(Option<String>, String)>, String> {
    let wrong = |_| "it is neither a list nor a mapping of texts".to_owned();
    if text.starts_with('{') {
        let map: BTreeMap<String, String> = serde_json::from_str(text).map_err(wrong)?;
        return Ok(map.into_iter().map(|(name, value)| (Some(name), value)).collect());
    }
    // An IPv6 address begins like a list.
    let list: Vec<String> = serde_json::from_str(text)
        .unwrap_or_else(|_| text.replace(['"', '\''], "").split(',').map(str::to_owned).collect());
    let parts = list.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    Ok(parts
        .map(|part| match part.split_once('=') {
            Some((name, value)) => (Some(name.trim().into()), value.trim().into()),
            None => (None, part.into()),
        })
        .collect())
}

fn nodes(text: &str) -> Result<BTreeMap<String, Address>, String> {
    let mut nodes: BTreeMap<String, Address> = BTreeMap::new();
    for (name, value) in parts(text)? {
        let address = peer_address(&value)?;
        let name = name.unwrap_or_else(|| address.host.clone());
        if !is_node_name(&name) {
            return Err(format!("{name:?} is not a node's name: allowed is {}", NODE_ID.allowed));
        }
        if let Some((other, _)) = nodes.iter().find(|(_, known)| **known == address) {
            return Err(format!("{other} and {name} have the same address, {address}"));
        }
        if nodes.contains_key(&name) {
            return Err(format!("it names {name} twice; nodes of one host need names: name=host:port"));
        }
        nodes.insert(name, address);
    }
    if (1..=FOUNDERS_MAX).contains(&nodes.len()) {
        Ok(nodes)
    } else {
        Err(format!("allowed is {}", Kind::Nodes.allowed()))
    }
}

fn urls(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut urls = BTreeMap::new();
    for (name, value) in parts(text)? {
        let name = name.ok_or_else(|| format!("{value:?} has no name; allowed is {}", Kind::Urls.allowed()))?;
        let found =
            url(&value).ok_or_else(|| format!("{value:?} is not a URL; allowed is {}", Kind::Urls.allowed()))?;
        if urls.insert(name.clone(), found).is_some() {
            return Err(format!("it names {name} twice"));
        }
    }
    if urls.is_empty() { Err(format!("allowed is {}", Kind::Urls.allowed())) } else { Ok(urls) }
}

fn hosts(text: &str) -> Result<Vec<Address>, String> {
    let parts = parts(text)?;
    if parts.is_empty() || parts.iter().any(|(name, _)| name.is_some()) {
        return Err(format!("allowed is {}", Kind::Hosts.allowed()));
    }
    parts.iter().map(|(_, value)| peer_address(value)).collect()
}

fn levels(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let is_level = |level: &str| LEVELS.contains(&level);
    let mut parts = text.split(',').map(str::trim);
    let first = parts.next().filter(|level| is_level(level))?;
    let mut shown = first.to_owned();
    for part in parts {
        let (target, level) = part.split_once('=')?;
        if target.is_empty() || target.contains(char::is_whitespace) || !is_level(level) {
            return None;
        }
        shown.push_str(&format!(",{target}={level}"));
    }
    Some(shown)
}

/// As few units as say it exactly: `1h30m`, `3650d`, `0`.
pub fn show_duration(length: Millis) -> String {
    if length.0 == 0 {
        return "0".into();
    }
    let (mut rest, mut shown) = (length.0, String::new());
    for (unit, factor) in DURATION_UNITS.iter().rev() {
        let count = rest / factor;
        if count > 0 {
            shown.push_str(&format!("{count}{unit}"));
        }
        rest %= factor;
    }
    shown
}

fn show_size(bytes: u64) -> String {
    let unit = SIZE_UNITS[..4].iter().rev().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every type accepts what its row says, shows it so that it reads back, and refuses the rest.
    fn check(kind: Kind, accepted: &[(&str, &str)], refused: &[&str]) {
        for (text, shown) in accepted {
            let value = kind.parse(text).unwrap_or_else(|why| panic!("{text:?}: {why}"));
            assert_eq!(value.to_string(), *shown, "{text:?}");
            if !kind.is_secret() {
                assert_eq!(kind.parse(shown), Ok(value), "{text:?} does not read back");
            }
        }
        for text in refused {
            assert!(kind.parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn bools() {
        let accepted =
            [("true", "true"), ("1", "true"), ("YES", "true"), ("On", "true"), (" off ", "false"), ("no", "false")];
        check(Kind::Bool, &accepted, &["", "2", "y", "truth", "enabled"]);
    }

    #[test]
    fn ints() {
        let refused = ["", "0", "65", "-1", "+1", "1.0", "1_0", "0x1", "1e1", "99999999999999999999"];
        check(Kind::Int(1, 64), &[("1", "1"), ("64", "64"), ("007", "7")], &refused);
    }

    #[test]
    fn durations() {
        let accepted = [
            ("0", "0"),
            ("0s", "0"),
            ("250ms", "250ms"),
            ("5s", "5s"),
            ("90s", "1m30s"),
            ("1h30m", "1h30m"),
            ("7d", "7d"),
            ("1500ms", "1s500ms"),
            ("168h", "7d"),
        ];
        let refused = [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "5S",
            "1.5s",
            "5s5",
            "5sec",
            "1w",
            "8d",
            "99999999999999999999s",
            "9999999999999999999d",
        ];
        check(Kind::Duration(0, 7 * DAY), &accepted, &refused);
        check(Kind::Duration(SECOND, MINUTE), &[("1s", "1s"), ("60s", "1m")], &["0", "999ms", "60001ms"]);
    }

    #[test]
    fn sizes() {
        let accepted = [
            ("65536", "64KiB"),
            ("64KiB", "64KiB"),
            ("1MiB", "1MiB"),
            ("1000", "1000"),
            ("2KB", "2000"),
            ("1GB", "1000000000"),
        ];
        let refused =
            ["", "KiB", "1 MiB", "1mib", "1K", "1.5MiB", "-1", "0", "2TiB", "99999999999999999999", "99999999999TiB"];
        check(Kind::Size(1, GIB), &accepted, &refused);
    }

    #[test]
    fn addresses() {
        let accepted = [
            (":8080", ":8080"),
            ("localhost:0", "localhost:0"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
            ("[::1]:80", "[::1]:80"),
            ("queue-a.example.com:7000", "queue-a.example.com:7000"),
        ];
        let refused = [
            "",
            "8080",
            ":",
            "host:",
            ":65536",
            ":-1",
            ":+1",
            "::1:80",
            "[::1]",
            "[::1:80",
            "[localhost]:80",
            "a b:1",
            "ftp://x:1",
        ];
        check(Kind::Addr, &accepted, &refused);
        check(Kind::Addr, &[("http://node-a:7000/", "node-a:7000")], &["http://"]);
        let accepted = [("auto", "auto"), ("node-a:7000", "node-a:7000"), ("127.0.0.1:0", "127.0.0.1:0")];
        check(Kind::Reach, &accepted, &["", ":7000", "0.0.0.0:7000", "[::]:7000", "node-a"]);
    }

    #[test]
    fn urls_have_a_scheme_and_a_host() {
        let accepted = [
            ("http://node-a:8080", "http://node-a:8080"),
            ("https://queue.example.com/", "https://queue.example.com"),
            ("https://example.com/queue/", "https://example.com/queue"),
            ("http://[::1]:80", "http://[::1]:80"),
        ];
        check(Kind::Url, &accepted, &["", "node-a:8080", "/x", "ftp://x", "http://", "http://u:p@x", "http://x?y"]);
        let accepted = [
            ("b=http://b:1,a=https://a/", "a=https://a,b=http://b:1"),
            (r#"{"a": "http://a:8080"}"#, "a=http://a:8080"),
        ];
        check(Kind::Urls, &accepted, &["", "http://a:8080", "a=a:8080", "a=http://a,a=http://b", "[]"]);
    }

    #[test]
    fn nodes_have_names_and_addresses() {
        let accepted = [
            ("node-b=10.0.0.2:7001, node-a=node-a:7000", "node-a=node-a:7000,node-b=10.0.0.2:7001"),
            ("node-a,node-b:7001", "node-a=node-a:7000,node-b=node-b:7001"),
            ("'a=http://a:7000/','b=b',", "a=a:7000,b=b:7000"),
            ("a=[::1]:7000", "a=[::1]:7000"),
            (r#"{"a": "a:7000", "b": "b"}"#, "a=a:7000,b=b:7000"),
            (r#"["a:7000", "b=c:1"]"#, "a=a:7000,b=c:1"),
        ];
        let refused = [
            "",
            ",",
            "a=",
            "=a:1",
            "a=b=c:1",
            "a=a:x",
            "a=:7000",
            "a=0.0.0.0:7000",
            "[::1]:7000",
            "a=a:1,a=b:1",
            "a=h:1,b=h:1",
            "127.0.0.1:1,127.0.0.1:2",
            "a b=h:1",
            r#"{"a": 1}"#,
            "a,b,c,d,e,f,g,h,i,j",
        ];
        check(Kind::Nodes, &accepted, &refused);
        let accepted = [("a,b:7001", "a:7000,b:7001"), (r#"["a"]"#, "a:7000"), ("[::1]:7000,b", "[::1]:7000,b:7000")];
        check(Kind::Hosts, &accepted, &["", "a=b:1", "a:x"]);
    }

    #[test]
    fn choices() {
        static WORDS: Words =
            Words { known: &[("sqlite", "sqlite"), ("pebble", "sqlite")], refused: &[("redis", "no Redis")] };
        check(Kind::Choice(&WORDS), &[("sqlite", "sqlite"), ("Pebble", "sqlite")], &["", "sql", "redis"]);
        assert_eq!(Kind::Choice(&WORDS).parse("REDIS"), Err("no Redis".into()));
        assert_eq!(Kind::Choice(&WORDS).parse("x"), Err("allowed is one of sqlite, pebble (= sqlite)".into()));
    }

    #[test]
    fn log_levels() {
        let accepted = [
            ("info", "info"),
            ("WARN", "warn"),
            ("off", "off"),
            ("info, raft=debug,x::y=trace", "info,raft=debug,x::y=trace"),
        ];
        check(
            Kind::Levels,
            &accepted,
            &["", "loud", "raft=info", "info,", "info,raft", "info,=debug", "info,raft=loud"],
        );
    }

    #[test]
    fn paths_texts_and_secrets() {
        check(Kind::Path, &[("./data", "./data"), ("/a b/c", "/a b/c")], &["", "  "]);
        static RULE: Rule = Rule { allowed: "one letter", fits: |text| text.len() == 1 };
        check(Kind::Text(&RULE), &[("a", "a")], &["", "ab"]);
        check(Kind::SecretJson, &[("{\"token\":\"x\"}", "set")], &[]);
        check(Kind::Secret(4), &[("abcd", "set")], &["abc", ""]);
    }
}
