//! Rules about documents: what they name exists, and where they point there is something.

use std::collections::BTreeSet;
use std::ops::Range;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::documents::DOCUMENTS;
use crate::repository::Repository;
use crate::tidy::{Rule, Violation};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "named-paths",
        instead: "name a path that exists; if the thing is gone, so is the sentence",
        check: named_paths,
    },
    Rule { name: "links", instead: "link to a file, or to a heading, that exists", check: links },
    Rule {
        name: "code-map",
        instead: "correct the row of the code map in ARCHITECTURE.md: the crates of ours that the crate is built with, or `nothing`",
        check: code_map,
    },
    Rule {
        name: "test-command",
        instead: "let README.md and .ci/run say the same `cargo test …` line: what a newcomer types is what CI runs",
        check: test_command,
    },
    Rule {
        name: "shell-lines",
        instead: "add the document to DOCUMENTS in xtask/src/documents/mod.rs, or give it a test in crates/cli/tests/it/documents.rs",
        check: shell_lines,
    },
];

/// What runs the documents that `cargo xtask documents` does not.
const SESSIONS: &str = "crates/cli/tests/it/documents.rs";

/// What a document says that a program can check.
#[derive(Default)]
struct Document {
    /// Code spans, with their lines.
    spans: Vec<(usize, String)>,
    /// Targets of links and images, with their lines.
    links: Vec<(usize, String)>,
    /// Its headings, as a link names them.
    anchors: BTreeSet<String>,
}

impl Document {
    fn read(text: &str) -> Document {
        let mut document = Document::default();
        let mut heading: Option<String> = None;
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
            let line = line_of(text, &range);
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap_or_default());
                    // The second heading of a name gets a number.
                    let twice = (1..).map(|number| format!("{anchor}-{number}"));
                    let free =
                        std::iter::once(anchor.clone()).chain(twice).find(|name| !document.anchors.contains(name));
                    document.anchors.extend(free);
                }
                Event::Code(code) => {
                    heading.iter_mut().for_each(|heading| heading.push_str(&code));
                    document.spans.push((line, code.into_string()));
                }
                Event::Text(words) => heading.iter_mut().for_each(|heading| heading.push_str(&words)),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push((line, dest_url.into_string()));
                }
                _ => {}
            }
        }
        document
    }
}

fn line_of(text: &str, range: &Range<usize>) -> usize {
    text[..range.start].matches('\n').count() + 1
}

/// How a heading is named in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
    kept.flat_map(char::to_lowercase).map(|character| if character == ' ' { '-' } else { character }).collect()
}

fn named_paths(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in repository.texts(".md") {
        for (line, span) in Document::read(text).spans {
            if names_a_missing_path(repository, path, &span) {
                violations.push(Violation::in_line(path, line, format!("names {span}, which does not exist")));
            }
        }
    }
    // Comments of the code name documents. The tests of these rules plant some that do not exist.
    for (path, text) in repository.texts(".rs").filter(|(path, _)| !path.starts_with("xtask/src/tidy/")) {
        for (number, line) in text.lines().enumerate() {
            let Some((_, comment)) = line.split_once("//") else { continue };
            let words = comment.split(|character: char| !(character.is_alphanumeric() || "/._-".contains(character)));
            for word in words.map(|word| word.trim_end_matches('.')) {
                if word.starts_with("docs/") && !repository.has(word) {
                    violations.push(Violation::in_line(
                        path,
                        number + 1,
                        format!("names {word}, which does not exist"),
                    ));
                }
            }
        }
    }
    violations
}

/// Whether a code span looks like a path of this repository and is none.
fn names_a_missing_path(repository: &Repository, document: &str, span: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    if span.is_empty() || !span.chars().all(plain) || span.starts_with('/') {
        return false;
    }
    let span = span.strip_prefix("./").unwrap_or(span);
    let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
    let beside = format!("{folder}/{span}");
    let exists = |path: &str| repository.has(path);
    let Some((first, rest)) = span.split_once('/') else {
        // A bare name: of our sources and documents some file must have it.
        let ours = [".rs", ".md"].iter().any(|ending| span.ends_with(ending) && span.len() > ending.len());
        let named_so = |path: &String| path.rsplit('/').next() == Some(span);
        return ours && !repository.files.keys().any(named_so);
    };
    // Relative to the root, to the document, or to a crate: `queue/src/lease.rs`, `testdata/lease`.
    let crates = crates(repository);
    let in_a_crate = crates.contains(first) && rest.starts_with("src");
    let of_some_crate = matches!(first, "testdata" | "src" | "benches" | "tests");
    if !(in_a_crate || of_some_crate || is_top_level(repository, first)) {
        return false;
    }
    !(exists(span)
        || exists(&beside)
        || (in_a_crate && exists(&format!("crates/{span}")))
        || (of_some_crate && crates.iter().any(|name| exists(&format!("crates/{name}/{span}")))))
}

fn crates(repository: &Repository) -> BTreeSet<&str> {
    repository.files.keys().filter_map(|path| path.strip_prefix("crates/")?.split('/').next()).collect()
}

/// A folder at the root, as it is or as it was planned.
fn is_top_level(repository: &Repository, name: &str) -> bool {
    const PLANNED: &[&str] =
        &["crates", "xtask", "docs", "deploy", "examples", "sdks", "dashboard", ".ci", ".cargo", ".github"];
    PLANNED.contains(&name) || repository.has(&format!("{name}/"))
}

fn links(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in repository.texts(".md") {
        let document = Document::read(text);
        for (line, target) in &document.links {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { Some(path.to_owned()) } else { resolve(path, file) };
            let missing = format!("links to {target}, which does not exist");
            let Some(file) = file.filter(|file| repository.has(file)) else {
                violations.push(Violation::in_line(path, *line, missing));
                continue;
            };
            let has_anchor =
                || repository.text(&file).is_some_and(|text| Document::read(text).anchors.contains(fragment));
            if !fragment.is_empty() && !has_anchor() {
                violations.push(Violation::in_line(path, *line, missing));
            }
        }
    }
    violations
}

/// The file that a relative link leads to. Nothing: it leads out of the repository.
fn resolve(document: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        parts.clear();
    }
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    Some(parts.join("/"))
}

/// The rows `| \`crates/x\` | … | base, y |` of ARCHITECTURE.md against what cargo says.
fn code_map(repository: &Repository) -> Vec<Violation> {
    let packages = &repository.packages;
    let text = repository.text("ARCHITECTURE.md").unwrap_or_default();
    let rows: Vec<(&str, BTreeSet<&str>)> = text.lines().filter_map(map_row).collect();
    let mut violations = Vec::new();
    for package in packages.ours() {
        let needs = package.needs.iter().filter(|id| packages.is_ours(id)).map(|id| packages.name(id));
        let needs: BTreeSet<&str> = needs.collect();
        let listed = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
        match rows.iter().find(|(name, _)| *name == package.name) {
            None => violations.push(Violation::new("ARCHITECTURE.md", format!("has no row for {}", package.name))),
            Some((_, said)) if *said != needs => {
                let what = format!(
                    "says that {} knows [{}], which is built with [{}]",
                    package.name,
                    listed(said),
                    listed(&needs)
                );
                violations.push(Violation::new("ARCHITECTURE.md", what));
            }
            Some(_) => {}
        }
    }
    violations
}

/// The crate of a row of the code map, and what the row says that it knows.
fn map_row(line: &str) -> Option<(&str, BTreeSet<&str>)> {
    let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
    let [path, _, knows] = cells.as_slice() else { return None };
    let path = path.strip_prefix('`')?.strip_suffix('`')?;
    let name = path.rsplit('/').next()?;
    Some((name, knows.split(", ").filter(|name| *name != "nothing").collect()))
}

fn test_command(repository: &Repository) -> Vec<Violation> {
    let Some(script) = repository.text(".ci/run") else {
        return vec![Violation::new(".ci/run", "does not exist")];
    };
    let Some(command) = script.lines().find(|line| line.starts_with("cargo test")) else {
        return vec![Violation::new(".ci/run", "has no line that begins with cargo test")];
    };
    let Some(readme) = repository.text("README.md") else {
        return vec![Violation::new("README.md", "does not exist")];
    };
    let said = readme.lines().any(|line| line.trim() == command) || readme.contains(&format!("`{command}`"));
    if said { Vec::new() } else { vec![Violation::new("README.md", format!("does not say `{command}`"))] }
}

/// Documents with lines for a shell that nothing runs.
fn shell_lines(repository: &Repository) -> Vec<Violation> {
    let sessions = repository.text(SESSIONS).unwrap_or_default();
    let mut violations = Vec::new();
    for (path, text) in repository.texts(".md") {
        let is_run = DOCUMENTS.contains(&path) || sessions.contains(&format!("\"{path}\""));
        let shell = ["```sh", "```bash", "```shell", "```console"];
        let line = text.lines().position(|line| shell.contains(&line.trim()));
        if let Some(line) = line.filter(|_| !is_run) {
            violations.push(Violation::in_line(path, line + 1, "has lines for a shell that nothing runs"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Packages;
    use crate::tidy::planted::{check, repository};

    fn planted(files: &[(&str, &str)]) -> Repository {
        repository(files, Packages::default())
    }

    #[test]
    fn a_path_that_does_not_exist_is_found() {
        let readme = "See `crates/queue/src/lease.rs`, `queue/src/lease.rs`, `lease.rs`, `docs/` and `testdata/lease/late`.\n\
                      Gone: `crates/queue/src/gone.rs`, `queue/src/gone.rs`, `gone.rs`, `docs/gone.md`, `testdata/gone`.\n\
                      No paths: `GET /v1/codeq/tasks`, `/v1/codeq`, `application/json`, `codeq/dev`, `a.b`, `target/release/codeq`.\n\n\
                      ```\ncrates/not/checked.rs\n```\n";
        let files = planted(&[
            ("README.md", readme),
            ("docs/a.md", "`b.md`"),
            ("crates/queue/src/lease.rs", "//! Source: docs/a.md.\n//! Source: docs/b.md; more."),
            ("crates/queue/testdata/lease/late", ""),
        ]);
        let expected = [
            "README.md:2: names crates/queue/src/gone.rs, which does not exist",
            "README.md:2: names docs/gone.md, which does not exist",
            "README.md:2: names gone.rs, which does not exist",
            "README.md:2: names queue/src/gone.rs, which does not exist",
            "README.md:2: names testdata/gone, which does not exist",
            "crates/queue/src/lease.rs:2: names docs/b.md, which does not exist",
            "docs/a.md:1: names b.md, which does not exist",
        ];
        check("named-paths", &files, &expected);
    }

    #[test]
    fn a_link_into_nothing_is_found() {
        let files = planted(&[
            (
                "README.md",
                "# Run `it`, twice\n[a](docs/a.md) [b](docs/a.md#what-it-is) [c](#run-it-twice) [d](https://x.example)\n\
                           [e](docs/e.md) [f](docs/a.md#gone) [g](../out.md) [h](#gone)",
            ),
            ("docs/a.md", "## What it is\n[up](../README.md) ![picture](p.png)"),
        ]);
        let expected = [
            "README.md:3: links to #gone, which does not exist",
            "README.md:3: links to ../out.md, which does not exist",
            "README.md:3: links to docs/a.md#gone, which does not exist",
            "README.md:3: links to docs/e.md, which does not exist",
            "docs/a.md:2: links to p.png, which does not exist",
        ];
        check("links", &files, &expected);
    }

    #[test]
    fn a_map_that_differs_from_the_crates_is_found() {
        let map = "| crate | is | knows of ours |\n|---|---|---|\n\
                   | `crates/base` | ids | nothing |\n| `crates/queue` | rules | base, storage |\n| `xtask` | chores | base |\n";
        let rows: &[(&str, &[&str], &[&str])] = &[
            ("base", &["bytes"], &[]),
            ("queue", &["base"], &[]),
            ("xtask", &["base"], &[]),
            ("sim", &[], &[]),
            ("bytes", &[], &[]),
        ];
        let ours = ["base", "queue", "xtask", "sim"];
        let planted = repository(&[("ARCHITECTURE.md", map)], crate::tidy::planted::packages(&ours, rows));
        let expected = [
            "ARCHITECTURE.md: has no row for sim",
            "ARCHITECTURE.md: says that queue knows [base, storage], which is built with [base]",
        ];
        check("code-map", &planted, &expected);
    }

    #[test]
    fn a_readme_with_another_test_command_is_found() {
        let script = "#!/usr/bin/env bash\ncargo test --workspace\n";
        let said = planted(&[(".ci/run", script), ("README.md", "```sh\ncargo test --workspace\n```")]);
        check("test-command", &said, &[]);
        let other = planted(&[(".ci/run", script), ("README.md", "`cargo test --all`")]);
        check("test-command", &other, &["README.md: does not say `cargo test --workspace`"]);
        check("test-command", &planted(&[]), &[".ci/run: does not exist"]);
    }

    #[test]
    fn a_document_that_nothing_runs_is_found() {
        let shell = "# A\n\n```sh\nls\n```\n";
        let files = planted(&[
            ("README.md", shell),
            ("docs/session.md", shell),
            ("docs/forgotten.md", shell),
            ("docs/words.md", "```text\nls\n```\n"),
            (SESSIONS, "//! check(\"docs/session.md\");"),
        ]);
        check("shell-lines", &files, &["docs/forgotten.md:3: has lines for a shell that nothing runs"]);
    }
}
