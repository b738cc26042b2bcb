//! The configuration file: YAML, TOML or JSON, read into one tree in which everything knows its line.
//!
//! A value stays the text that stands there, since what it means is up to the setting it is given to.

use std::io::Read;
use std::path::Path;

use saphyr::{MarkedYaml, ScalarStyle, YamlData, YamlLoader};
use saphyr_parser::{BufferedInput, Parser};
use toml::de::{DeTable, DeValue};

/// Longest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Something in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Where it begins, from 1.
    pub(crate) line: usize,
    pub(crate) data: Data,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Nothing, or `null`.
    Null,
    /// A text that JSON would put in quotes.
    Text(String),
    /// A number or a boolean, as it is written.
    Bare(String),
    List(Vec<Node>),
    /// Keys with their lines, in the file's order.
    Map(Vec<(String, usize, Node)>),
}

/// Reads a file, whose extension says what is in it.
///
/// # Errors
/// What is wrong, with the line where there is one.
pub(crate) fn read(path: &Path) -> Result<Node, String> {
    let shown = path.display();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let parse = match extension {
        "yaml" | "yml" => parse_yaml,
        "toml" => parse_toml,
        "json" => parse_json,
        _ => return Err(format!("{shown}: a configuration file ends in .yaml, .yml, .toml or .json")),
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|cause| format!("cannot read the configuration file {shown}: {cause}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{shown} is longer than {FILE_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        format!("{shown}:{line}: this is not UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    parse(text).map_err(|(line, what)| format!("{shown}:{line}: {what}"))
}

/// What is wrong, and in which line.
type Wrong = (usize, String);

fn parse_yaml(text: &str) -> Result<Node, Wrong> {
    let mut loader = YamlLoader::<MarkedYaml<'_>>::default();
    // What is not parsed stays as it is written.
    loader.early_parse(false);
    let wrong = |error: &saphyr::ScanError| (error.marker().line(), format!("not YAML: {}", error.info()));
    Parser::new(BufferedInput::new(text.chars())).load(&mut loader, true).map_err(|error| wrong(&error))?;
    if let Some(error) = loader.error() {
        return Err(wrong(error));
    }
    let mut documents = loader.into_documents();
    match documents.len() {
        0 => Ok(Node { line: 1, data: Data::Null }),
        1 => from_yaml(documents.remove(0)),
        _ => Err((documents[1].span.start.line(), "only one document is read".into())),
    }
}

fn from_yaml(yaml: MarkedYaml<'_>) -> Result<Node, Wrong> {
    let line = yaml.span.start.line();
    let data = match yaml.data {
        YamlData::Representation(text, ScalarStyle::Plain, _) => plain(&text),
        YamlData::Representation(text, ..) => Data::Text(text.into_owned()),
        YamlData::Sequence(items) => Data::List(items.into_iter().map(from_yaml).collect::<Result<_, _>>()?),
        YamlData::Mapping(pairs) => {
            let mut map = Vec::new();
            for (key, value) in pairs {
                let line = key.span.start.line();
                let YamlData::Representation(key, ..) = key.data else {
                    return Err((line, "a key must be a text".into()));
                };
                map.push((key.into_owned(), line, from_yaml(value)?));
            }
            Data::Map(map)
        }
        YamlData::Tagged(_, inner) => return from_yaml(*inner),
        YamlData::Value(_) | YamlData::Alias(_) | YamlData::BadValue => {
            return Err((line, "this value is not understood".into()));
        }
    };
    Ok(Node { line, data })
}

/// A scalar without quotes, by YAML's core schema.
fn plain(text: &str) -> Data {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Data::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Data::Bare(text.to_ascii_lowercase()),
        _ if serde_json::from_str::<serde_json::Number>(text).is_ok() => Data::Bare(text.into()),
        _ => Data::Text(text.into()),
    }
}

/// JSON is YAML, which knows its lines; but not all YAML is JSON.
fn parse_json(text: &str) -> Result<Node, Wrong> {
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map_err(|error| (error.line(), format!("not JSON: {error}")))?;
    parse_yaml(text)
}

fn parse_toml(text: &str) -> Result<Node, Wrong> {
    let line_at = |offset: usize| 1 + text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(span.start));
        (line, format!("not TOML: {}", error.message()))
    })?;
    Ok(Node { line: 1, data: from_table(table.get_ref(), &line_at) })
}

fn from_table(table: &DeTable<'_>, line_at: &dyn Fn(usize) -> usize) -> Data {
    let pair = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let line = line_at(key.span().start);
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        (key.to_string(), line, Node { line, data: from_toml(value.get_ref(), line_at) })
    };
    let mut pairs: Vec<_> = table.iter().map(pair).collect();
    pairs.sort_by_key(|(_, line, _)| *line);
    Data::Map(pairs)
}

fn from_toml(value: &DeValue<'_>, line_at: &dyn Fn(usize) -> usize) -> Data {
    match value {
        DeValue::String(text) => Data::Text(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Data::Bare(number.as_str().into()),
        DeValue::Integer(number) => {
            let prefix = if number.radix() == 16 {
                "0x"
            } else if number.radix() == 8 {
                "0o"
            } else {
                "0b"
            };
            Data::Text(format!("{prefix}{}", number.as_str()))
        }
        DeValue::Float(number) => Data::Bare(number.as_str().into()),
        DeValue::Boolean(flag) => Data::Bare(flag.to_string()),
        DeValue::Datetime(time) => Data::Text(time.to_string()),
        DeValue::Array(items) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| Node {
                line: line_at(item.span().start),
                data: from_toml(item.get_ref(), line_at),
            };
            Data::List(items.iter().map(item).collect())
        }
        DeValue::Table(table) => from_table(table, line_at),
    }
}

impl Node {
    /// The text that a setting reads, and nothing where there is `null`. Lists and mappings become JSON.
    ///
    /// # Errors
    /// A reference to a variable that is not set.
    pub(crate) fn text(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
        Ok(match &self.data {
            Data::Null => None,
            Data::Text(text) => Some(fill_in(text, variable)?),
            Data::Bare(text) => Some(text.clone()),
            Data::List(_) | Data::Map(_) => Some(self.json(variable)?.to_string()),
        })
    }

    /// The same as JSON, where a text is a JSON string.
    ///
    /// # Errors
    /// As for `text`.
    pub(crate) fn json(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<serde_json::Value, String> {
        use serde_json::Value;
        Ok(match &self.data {
            Data::Null => Value::Null,
            Data::Text(text) => Value::String(fill_in(text, variable)?),
            Data::Bare(text) => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone())),
            Data::List(items) => Value::Array(items.iter().map(|item| item.json(variable)).collect::<Result<_, _>>()?),
            Data::Map(pairs) => {
                let pairs = pairs.iter().map(|(key, _, value)| Ok((key.clone(), value.json(variable)?)));
                Value::Object(pairs.collect::<Result<_, String>>()?)
            }
        })
    }
}

/// Replaces `${NAME}` by that variable, and `$$` by a dollar sign.
fn fill_in(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            filled.push('$');
            after
        } else if let Some((name, after)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            filled.push_str(&variable(name).ok_or(format!("the variable {name} is not set"))?);
            after
        } else {
            filled.push('$');
            after
        };
    }
    Ok(filled + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree, a line per leaf: line number, path, value.
    fn leaves(node: &Node) -> String {
        fn walk(node: &Node, path: &str, out: &mut String) {
            match &node.data {
                Data::Map(pairs) => {
                    for (key, line, value) in pairs {
                        match &value.data {
                            Data::Map(_) => walk(value, &format!("{path}{key}/"), out),
                            data => out.push_str(&format!("{line} {path}{key} {data:?}\n")),
                        }
                    }
                }
                data => out.push_str(&format!("{path} {data:?}\n")),
            }
        }
        let mut out = String::new();
        walk(node, "", &mut out);
        out
    }

    const EXPECTED: &str = "1 shards Bare(\"4\")\n2 env Text(\"dev\")\n3 http/addr Text(\":8080\")\n4 http.threads Bare(\"2\")\n5 insecure Bare(\"true\")\n";

    #[test]
    fn the_three_formats_say_the_same() {
        let yaml = "shards: 4\nenv: dev\nhttp: {addr: ':8080'}\nhttp.threads: 2\ninsecure: true\n";
        assert_eq!(leaves(&parse_yaml(yaml).expect("it is YAML")), EXPECTED);
        let json = "{\"shards\": 4,\n\"env\": \"dev\",\n\t\"http\": {\"addr\": \":8080\"},\n\t\"http.threads\": 2,\n\"insecure\": true}";
        assert_eq!(leaves(&parse_json(json).expect("it is JSON")), EXPECTED);
        let toml = "shards = 4\nenv = 'dev'\nhttp = {addr = ':8080'}\n'http.threads' = 2\ninsecure = true\n";
        assert_eq!(leaves(&parse_toml(toml).expect("it is TOML")), EXPECTED);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let line = |wrong: Result<Node, Wrong>| wrong.expect_err("it is refused");
        assert_eq!(line(parse_yaml("a: 1\nb: 2\na: 3\n")), (3, "not YAML: duplicated key in mapping".into()));
        assert_eq!(line(parse_yaml("a: 1\n---\nb: 2\n")).1, "only one document is read");
        assert_eq!(line(parse_yaml("a: 1\nb: [\n")).0, 3);
        assert_eq!(line(parse_yaml("a: 1\n? [x]\n: 2\n")), (2, "a key must be a text".into()));
        assert_eq!(line(parse_json("{\n\"a\": 1,\n}")).0, 3);
        assert_eq!(line(parse_json("a: 1")).0, 1);
        assert_eq!(line(parse_toml("a = 1\na = 2\n")).0, 2);
        assert_eq!(line(parse_toml("a = 1\nb = \n")).0, 2);
    }

    #[test]
    fn aliases_cannot_grow_without_bound() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let items = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert!(parse_yaml(&bomb).is_err());
    }

    #[test]
    fn references_are_filled_in() {
        let variable = |name: &str| (name == "NAME").then(|| "value".to_owned());
        let fill = |text: &str| fill_in(text, &variable);
        assert_eq!(fill("a ${NAME} b ${NAME}"), Ok("a value b value".into()));
        assert_eq!(fill("$${NAME} 5$ $x $"), Ok("${NAME} 5$ $x $".into()));
        assert_eq!(fill("${OTHER}"), Err("the variable OTHER is not set".into()));
        assert_eq!(fill("${NAME"), Ok("${NAME".into()));
    }

    #[test]
    fn mappings_become_json() {
        let node = parse_yaml("token: \"12\"\nscopes: [a, \"b\"]\nlist: ~\nraw: {n: 1, yes: true, t: \"${T}\"}\n")
            .expect("it is YAML");
        let variable = |_: &str| Some("x\"y".to_owned());
        let text = node.text(&variable).expect("the variable is set").expect("it is something");
        assert_eq!(text, r#"{"list":null,"raw":{"n":1,"t":"x\"y","yes":true},"scopes":["a","b"],"token":"12"}"#);
    }
}
