//! The pages of `docs/reference/` that describe the server, made of the tables that it works by: routes, settings, error codes, metrics. The
//! tests here are red when a page and its table differ; `cargo xtask reference` writes the pages anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;

use api::Code;
use serde_json::Value;

use crate::config::show;
use crate::families::FAMILIES;
use crate::http::openapi;

/// The page is what the code says.
fn check(page: &str, text: &str) {
    let mut mint = goldenfile::Mint::new("../../docs/reference");
    let mut file = mint.new_goldenfile(page).expect("the folder is there");
    file.write_all(text.as_bytes()).expect("a page can be written");
}

#[test]
fn the_page_of_settings_is_what_the_table_says() {
    check("settings.md", &show::reference());
}

#[test]
fn the_page_of_errors_is_what_the_codes_say() {
    let mut page = String::from(
        "# Error codes\n\n\
         An error is a problem of RFC 9457 (`application/problem+json`). Programs read `code`, people read `detail`; texts may change,\n\
         codes are never renamed or reused. `definite` says whether it is certain that the request has had no effect: it is true\n\
         for every code but `outcome_unknown`, and for an error after an effect that was had, which says so. What `retryAfterMs`\n\
         accompanies may be tried again after that time.\n\n\
         | code | status | title | when it comes |\n|---|---|---|---|\n",
    );
    for code in Code::ALL {
        writeln!(page, "| `{}` | {} | {} | {} |", code.name(), code.status(), code.title(), code.meaning())
            .expect("a string takes all");
    }
    check("errors.md", &page);
}

#[test]
fn the_page_of_metrics_is_what_the_families_say() {
    let mut page = String::from(
        "# Metrics\n\n\
         `GET /metrics` shows them in Prometheus' text format, each node its own. Counters and histograms begin anew with the\n\
         process. Names of queues beyond `metrics.maxCommands` are counted as `other`. Alert rules and a board that read them are\n\
         in `deploy/monitoring/`.\n\n\
         | name | type | labels | what it measures |\n|---|---|---|---|\n",
    );
    for family in FAMILIES {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (family.name, family.kind.name());
        writeln!(page, "| `{name}` | {kind} | {} | {} |", labels.join(", "), family.help).expect("a string takes all");
    }
    check("metrics.md", &page);
}

/// Headings of the page of routes, each with the tags of the document that stand there.
const CHAPTERS: &[(&str, &[&str])] = &[
    ("Create and work", &["tasks"]),
    ("Follow what happens", &["events"]),
    ("Queues", &["queues", "admin"]),
    ("Dead letters", &["dlq"]),
    ("Background operations", &["operations"]),
    ("Who am I, and what is there", &["whoami", "openapi.json"]),
    ("Health and metrics", &["healthz", "livez", "readyz", "metrics"]),
    ("The cluster", &["cluster", "raft"]),
    ("Pages, and what other programs ask", &["page", "web", "api"]),
];

#[test]
fn the_page_of_routes_is_what_the_document_says() {
    let document = openapi::document();
    let mut page = String::from(
        "# Routes\n\n\
         The same as OpenAPI 3.1 stands at `/openapi.json` of every server. Bodies are JSON. What goes wrong is a problem with a\n\
         [code](errors.md). `HEAD` goes where `GET` does.\n",
    );
    let (mut parameters, mut tags) = (BTreeSet::new(), BTreeSet::new());
    for (title, of) in CHAPTERS {
        write!(
            page,
            "\n## {title}\n\n| call | does | for whom | parameters | body | answers |\n|---|---|---|---|---|---|\n"
        )
        .expect("a string takes all");
        for (path, method, operation) in operations(&document) {
            let tag = operation["tags"][0].as_str().expect("every route has a tag");
            tags.insert(tag);
            if !of.contains(&tag) {
                continue;
            }
            let named = list(&operation["parameters"]).filter(|parameter| parameter["in"] == "query");
            let mut names = Vec::new();
            for parameter in named {
                let name = parameter["name"].as_str().expect("a parameter has a name");
                names.push(format!("`{name}`"));
                parameters.insert((name, cell(&shape(&parameter["schema"]))));
            }
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            let body = if body.is_null() { String::new() } else { shape(body) };
            let whom = operation["description"].as_str().unwrap_or_default().trim_end_matches('.');
            let summary = operation["summary"].as_str().unwrap_or_default();
            let call = format!("`{} {path}`", method.to_ascii_uppercase());
            let cells = [call, summary.into(), whom.into(), names.join(" "), body, answers(&operation["responses"])];
            writeln!(page, "| {} |", cells.map(|text| cell(&text)).join(" | ")).expect("a string takes all");
        }
    }
    let known: BTreeSet<&str> = CHAPTERS.iter().flat_map(|(_, tags)| tags.iter().copied()).collect();
    assert_eq!(known, tags, "every tag has its chapter");
    page.push_str("\n## Parameters\n\n| name | value |\n|---|---|\n");
    for (name, value) in &parameters {
        writeln!(page, "| `{name}` | {value} |").expect("a string takes all");
    }
    page.push_str("\n## Bodies\n\nMembers in bold are always there.\n");
    for (name, schema) in document["components"]["schemas"].as_object().expect("there are schemas") {
        write!(page, "\n### {name}\n\n").expect("a string takes all");
        let Some(members) = schema["properties"].as_object().filter(|members| !members.is_empty()) else {
            writeln!(page, "{}", capital(&shape(schema))).expect("a string takes all");
            continue;
        };
        page.push_str("| member | value |\n|---|---|\n");
        for (member, schema_of) in members {
            let is_required = list(&schema["required"]).any(|name| name == member);
            let bold = if is_required { "**" } else { "" };
            writeln!(page, "| {bold}`{member}`{bold} | {} |", cell(&shape(schema_of))).expect("a string takes all");
        }
    }
    check("routes.md", &page);
}

/// Path, method and description of each route, by path.
fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = document["paths"].as_object().expect("there are paths");
    paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("a path has methods");
        methods.iter().map(move |(method, operation)| (path, method, operation))
    })
}

fn answers(responses: &Value) -> String {
    let known = responses.as_object().expect("a route has answers").iter().filter(|(status, _)| *status != "default");
    let shown =
        known.map(|(status, answer)| match answer["content"].as_object().and_then(|kinds| kinds.iter().next()) {
            None => status.clone(),
            Some((kind, content)) if kind.starts_with("application/json") => {
                format!("{status} {}", shape(&content["schema"]))
            }
            Some((kind, _)) => format!("{status} `{kind}`"),
        });
    shown.collect::<Vec<_>>().join(", ")
}

/// What a schema allows, in words.
fn shape(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_ascii_lowercase());
    }
    if !schema["enum"].is_null() {
        return list(&schema["enum"])
            .map(|value| format!("`{}`", value.as_str().unwrap_or("null")))
            .collect::<Vec<_>>()
            .join(" ");
    }
    if !schema["anyOf"].is_null() {
        return list(&schema["anyOf"]).map(shape).collect::<Vec<_>>().join(" or ");
    }
    if !schema["not"].is_null() {
        return format!("anything but {}", shape(&schema["not"]));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        kinds => list(kinds).filter_map(Value::as_str).collect(),
    };
    if kinds.is_empty() {
        return "anything".into();
    }
    kinds.iter().map(|kind| of_kind(kind, schema)).collect::<Vec<_>>().join(" or ")
}

fn of_kind(kind: &str, schema: &Value) -> String {
    let bound = |least: &str, most: &str| match (&schema[least], &schema[most]) {
        (Value::Null, Value::Null) => String::new(),
        (least, Value::Null) => format!(", {least} or more"),
        (Value::Null, most) => format!(", at most {most}"),
        (least, most) => format!(", {least} to {most}"),
    };
    match kind {
        "array" => format!("list of {}{}", shape(&schema["items"]), bound("minItems", "maxItems")),
        "string" if schema["format"] == "date-time" => "time, RFC 3339".into(),
        "string" if !schema["pattern"].is_null() => format!("`{}`", schema["pattern"].as_str().unwrap_or_default()),
        "string" => format!("string{}", bound("minLength", "maxLength")),
        "object" => match schema["properties"].as_object() {
            Some(members) if !members.is_empty() => {
                let members = members.iter().map(|(name, schema)| format!("`{name}`: {}", shape(schema)));
                format!("object of {}", members.collect::<Vec<_>>().join("; "))
            }
            Some(_) => "object without members".into(),
            None => "object".into(),
        },
        "integer" | "number" => {
            let above = &schema["exclusiveMinimum"];
            let above = if above.is_null() { String::new() } else { format!(", more than {above}") };
            format!("{kind}{above}{}", bound("minimum", "maximum"))
        }
        other => other.into(),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A text within a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect::<String>() + ".").unwrap_or_default()
}
