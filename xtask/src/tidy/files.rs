//! Rules about files: how they begin, what they are called, how large they are.

use std::collections::BTreeSet;

use crate::repository::Repository;
use crate::tidy::{Rule, Violation};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "file-heads",
        instead: "begin the file with `//!`: what it is for, what it promises, what it leaves to others",
        check: file_heads,
    },
    Rule {
        name: "module-names",
        instead: "name the module after what it knows; what is truly general goes to base under its own name",
        check: module_names,
    },
    Rule {
        name: "file-size",
        instead: "generate it when it is needed, or keep it outside the repository; git never forgets a large file",
        check: file_size,
    },
    Rule {
        name: "no-shell-scripts",
        instead: "make it a chore of xtask; only .ci/run is a script, so that CI can start on a bare machine",
        check: no_shell_scripts,
    },
    Rule {
        name: "lints",
        instead: "add `[lints] workspace = true` to the crate's Cargo.toml, and `unsafe_code = \"forbid\"` to the workspace's lints",
        check: lints,
    },
    Rule {
        name: "shared-bans",
        instead: "repeat the entry: a crate's clippy.toml replaces that of the workspace, it does not add to it",
        check: shared_bans,
    },
    Rule {
        name: "no-planted-bugs",
        instead: "let only `cargo xtask planted` make such a build, and only crates/base/src/planted.rs look whether it is one",
        check: no_planted_bugs,
    },
    Rule {
        name: "own-paths",
        instead: "say it without the folder of some machine; the repository is read everywhere",
        check: own_paths,
    },
];

/// Bytes of the largest file that git may hold.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Names that say nothing.
const EMPTY_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "stuff", "shared"];

/// Crates whose clippy.toml keeps clock, disk and socket away.
const CORE: &[&str] = &["base", "queue", "consensus", "replica"];

fn file_heads(repository: &Repository) -> Vec<Violation> {
    let without = repository.texts(".rs").filter(|(_, text)| !text.starts_with("//! "));
    without.map(|(path, _)| Violation::new(path, "does not begin with //!")).collect()
}

fn module_names(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, source) in repository.sources() {
        let parts = path.split('/').map(|part| part.strip_suffix(".rs").unwrap_or(part));
        if let Some(name) = parts.clone().find(|part| EMPTY_NAMES.contains(part)) {
            violations.push(Violation::new(path, format!("is called {name}")));
        }
        for pair in source.names.windows(2) {
            let [word, name] = pair else { continue };
            if word.parts == ["mod"] && EMPTY_NAMES.contains(&name.parts[0].as_str()) {
                violations.push(Violation::in_line(path, name.line, format!("has a module {}", name.parts[0])));
            }
        }
    }
    violations
}

fn file_size(repository: &Repository) -> Vec<Violation> {
    let large = repository.files.iter().filter(|(_, file)| file.bytes > FILE_BYTES_MAX);
    large
        .map(|(path, file)| Violation::new(path, format!("has {} bytes, more than {FILE_BYTES_MAX}", file.bytes)))
        .collect()
}

fn no_shell_scripts(repository: &Repository) -> Vec<Violation> {
    let is_script = |path: &str, text: &str| {
        let head = text.lines().next().unwrap_or_default();
        path.ends_with(".sh") || path.ends_with(".bash") || (head.starts_with("#!") && !head.starts_with("#!["))
    };
    let scripts = repository.texts("").filter(|(path, text)| *path != ".ci/run" && is_script(path, text));
    scripts.map(|(path, _)| Violation::new(path, "is a shell script")).collect()
}

/// Where builds with bugs on purpose are made, allowed for and looked for.
const PLANTED: &[&str] = &["Cargo.toml", "crates/base/src/planted.rs", "xtask/src/sim.rs", "xtask/src/tidy/files.rs"];

fn no_planted_bugs(repository: &Repository) -> Vec<Violation> {
    let names = |text: &str| {
        let plain: String = text.chars().filter(|c| !matches!(c, ' ' | '"' | '\'' | ',' | '=' | '(' | '[')).collect();
        plain.contains("cfgplanted")
    };
    let shipped = repository.texts("").filter(|(path, _)| !path.ends_with(".md") && !PLANTED.contains(path));
    let wrong = shipped.filter(|(_, text)| names(text));
    wrong.map(|(path, _)| Violation::new(path, "is built with planted bugs, or asks whether it is")).collect()
}

fn lints(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in repository.texts("Cargo.toml") {
        let Ok(manifest) = text.parse::<toml::Table>() else {
            violations.push(Violation::new(path, "is not TOML"));
            continue;
        };
        let at = |keys: &[&str]| {
            let (first, rest) = keys.split_first()?;
            rest.iter().try_fold(manifest.get(*first)?, |value, key| value.get(*key))
        };
        if manifest.contains_key("package") && at(&["lints", "workspace"]).and_then(toml::Value::as_bool) != Some(true)
        {
            violations.push(Violation::new(path, "does not take the workspace's lints"));
        }
        if manifest.contains_key("workspace")
            && at(&["workspace", "lints", "rust", "unsafe_code"]).and_then(toml::Value::as_str) != Some("forbid")
        {
            violations.push(Violation::new(path, "does not forbid unsafe code"));
        }
    }
    violations
}

fn shared_bans(repository: &Repository) -> Vec<Violation> {
    let shared = repository.text("clippy.toml").map(banned).unwrap_or_default();
    let mut violations = Vec::new();
    for (path, text) in repository.texts("/clippy.toml") {
        let repeated = banned(text);
        for missing in shared.difference(&repeated) {
            violations.push(Violation::new(path, format!("does not repeat the shared ban of {missing}")));
        }
    }
    // The core's lists are one list, and every crate of the core has it.
    let lists = CORE.iter().filter(|core| repository.has(&format!("crates/{core}"))).map(|core| {
        let path = format!("crates/{core}/clippy.toml");
        let bans = repository.text(&path).map(banned).unwrap_or_default();
        (path, bans)
    });
    let lists: Vec<_> = lists.collect();
    let all: BTreeSet<&String> = lists.iter().flat_map(|(_, bans)| bans).collect();
    for (path, bans) in &lists {
        for missing in all.iter().filter(|ban| !bans.contains(**ban)) {
            violations.push(Violation::new(path, format!("does not ban {missing}, as another crate of the core does")));
        }
    }
    violations
}

/// The paths that a clippy.toml disallows.
fn banned(text: &str) -> BTreeSet<String> {
    let table = text.parse::<toml::Table>().unwrap_or_default();
    let lists = ["disallowed-methods", "disallowed-types"].iter().filter_map(|key| table.get(*key)?.as_array());
    lists.flatten().filter_map(|entry| Some(entry.get("path")?.as_str()?.to_owned())).collect()
}

/// Folders of a developer's machine. In documents temporary folders too: a reader's may be elsewhere.
fn own_paths(repository: &Repository) -> Vec<Violation> {
    let folders = ["home", "root", "Users", "work"].map(|folder| format!("/{folder}/"));
    let mut violations = Vec::new();
    for (path, text) in repository.texts("") {
        // The lock file and golden files are written by programs.
        if path == "Cargo.lock" || path.contains("/testdata/") {
            continue;
        }
        let is_document = path.ends_with(".md");
        for (number, line) in text.lines().enumerate() {
            let words = line.split(|character: char| !(character.is_alphanumeric() || "/._-~".contains(character)));
            for word in words {
                let own = folders.iter().any(|folder| word.starts_with(folder))
                    || (is_document && (word == "/tmp" || word.starts_with("/tmp/") || word == "/work"));
                if own {
                    violations.push(Violation::in_line(path, number + 1, format!("names {word}")));
                }
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use crate::repository::Packages;
    use crate::tidy::planted::{check, repository};

    fn planted(files: &[(&str, &str)]) -> crate::repository::Repository {
        repository(files, Packages::default())
    }

    #[test]
    fn a_file_without_head_is_found() {
        let files = planted(&[("crates/a/src/a.rs", "use b;"), ("crates/a/src/lib.rs", "//! What it is.\n")]);
        check("file-heads", &files, &["crates/a/src/a.rs: does not begin with //!"]);
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        let files = planted(&[
            ("crates/a/src/util.rs", ""),
            ("crates/a/src/helpers/b.rs", ""),
            ("crates/a/src/c.rs", "fn f(common: u8) {}\nmod common { }"),
        ]);
        let expected = [
            "crates/a/src/c.rs:2: has a module common",
            "crates/a/src/helpers/b.rs: is called helpers",
            "crates/a/src/util.rs: is called util",
        ];
        check("module-names", &files, &expected);
    }

    #[test]
    fn a_large_file_is_found() {
        let text = "x".repeat((1 << 20) + 1);
        check(
            "file-size",
            &planted(&[("a.bin", &text), ("b.bin", "")]),
            &["a.bin: has 1048577 bytes, more than 1048576"],
        );
    }

    #[test]
    fn a_script_is_found() {
        let script = "#!/usr/bin/env bash\ntrue";
        let files = planted(&[("scripts/go", script), (".ci/run", script), ("a.rs", "#![expect(a)]"), ("b.sh", "")]);
        check("no-shell-scripts", &files, &["b.sh: is a shell script", "scripts/go: is a shell script"]);
    }

    #[test]
    fn planted_bugs_elsewhere_are_found() {
        let files = planted(&[
            (".cargo/config.toml", "rustflags = [\"--cfg\", \"planted\"]"),
            ("Makefile", "RUSTFLAGS='--cfg=planted' cargo build"),
            ("crates/a/src/a.rs", "//! A.\n#[cfg(planted)]\nfn f() {}"),
            ("crates/base/src/planted.rs", "//! B.\n#[cfg(planted)]\nfn f() {}"),
            ("docs/a.md", "`--cfg planted`"),
        ]);
        let expected = [".cargo/config.toml", "Makefile", "crates/a/src/a.rs"];
        let expected = expected.map(|path| format!("{path}: is built with planted bugs, or asks whether it is"));
        check("no-planted-bugs", &files, &expected.each_ref().map(String::as_str));
    }

    #[test]
    fn a_crate_without_lints_is_found() {
        let files = planted(&[
            ("Cargo.toml", "[workspace]\n[workspace.lints.rust]\nunsafe_code = \"deny\""),
            ("crates/a/Cargo.toml", "[package]\nname = \"a\""),
            ("crates/b/Cargo.toml", "[package]\nname = \"b\"\n[lints]\nworkspace = true"),
        ]);
        let expected =
            ["Cargo.toml: does not forbid unsafe code", "crates/a/Cargo.toml: does not take the workspace's lints"];
        check("lints", &files, &expected);
    }

    #[test]
    fn a_ban_that_is_not_repeated_is_found() {
        let files = planted(&[
            ("clippy.toml", "disallowed-methods = [{ path = \"std::process::exit\" }]"),
            (
                "crates/queue/clippy.toml",
                "disallowed-methods = [{ path = \"std::process::exit\" }, { path = \"a::b\" }]",
            ),
            ("crates/base/clippy.toml", "disallowed-types = []"),
        ]);
        let expected = [
            "crates/base/clippy.toml: does not ban a::b, as another crate of the core does",
            "crates/base/clippy.toml: does not ban std::process::exit, as another crate of the core does",
            "crates/base/clippy.toml: does not repeat the shared ban of std::process::exit",
        ];
        check("shared-bans", &files, &expected);
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        let home = format!("/{}/me/x", "home");
        let files = planted(&[
            ("README.md", "Write to `/tmp/data`.\nA route is `/v1/work/x`, a folder `/var/lib/codeq`."),
            ("crates/a/src/a.rs", &format!("const A: &str = \"{home}\";\nconst B: &str = \"/tmp/x\";")),
        ]);
        check("own-paths", &files, &["README.md:1: names /tmp/data", &format!("crates/a/src/a.rs:1: names {home}")]);
    }
}
