//! Rules about crates: which way the arrows point, and what must not be reached.

use std::collections::BTreeSet;

use crate::repository::{Package, Packages, Repository};
use crate::tidy::{Rule, Violation};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "arrows",
        instead: "move the code to the crate that may see both sides, or put a trait into base; a new arrow needs its reason in \
                  ARCHITECTURE.md first, then a row in ARROWS (xtask/src/tidy/crates.rs)",
        check: arrows,
    },
    Rule {
        name: "absences",
        instead: "keep it in a crate outside the core, and hand the core a value: bytes, a stamp, an event",
        check: absences,
    },
    Rule {
        name: "homes",
        instead: "use it through the crate that is its home, or add the crate to HOMES (xtask/src/tidy/crates.rs) with the reason",
        check: homes,
    },
    Rule {
        name: "features",
        instead: "make it a setting: one program is built, tested and shipped. An optional dependency is a feature too",
        check: features,
    },
    Rule {
        name: "descriptions",
        instead: "add `description = \"…\"` to its Cargo.toml: what the crate is, in a line",
        check: descriptions,
    },
];

/// What a crate of ours may see of ours.
struct Arrows {
    from: &'static str,
    to: &'static [&'static str],
    /// Beyond that, its tests and benches.
    tests: &'static [&'static str],
}

/// Every crate of the workspace. All may see `base`, but for those that say otherwise.
const ARROWS: &[Arrows] = &[
    Arrows { from: "base", to: &[], tests: &[] },
    // Its tests compare it with the reference model.
    Arrows { from: "queue", to: &["base"], tests: &[] },
    Arrows { from: "consensus", to: &["base"], tests: &[] },
    // Its tests run on the simulated disk.
    Arrows { from: "storage", to: &["base"], tests: &["sim"] },
    // Judges what the rest has done, so it shares no code with it.
    Arrows { from: "history", to: &["base"], tests: &[] },
    // Certificates and encrypted streams: nothing of ours in it.
    Arrows { from: "tls", to: &[], tests: &[] },
    // Runs any state machine: the trait is base's.
    Arrows { from: "replica", to: &["base", "consensus", "storage"], tests: &["sim"] },
    Arrows { from: "cluster", to: &["base", "consensus", "storage", "replica", "tls"], tests: &["sim", "history"] },
    Arrows { from: "api", to: &["base"], tests: &[] },
    // Its tests look into data directories as an operator does.
    Arrows {
        from: "server",
        to: &["base", "api", "queue", "cluster", "tls"],
        tests: &["client", "history", "storage"],
    },
    // Its tests and examples run against a real server.
    Arrows { from: "client", to: &["base", "api", "tls"], tests: &["testserver"] },
    // For users' tests: the server they talk to, and the client they do it with.
    Arrows { from: "testserver", to: &["base", "client", "server"], tests: &[] },
    Arrows { from: "cli", to: &["base", "api", "server", "client", "tls"], tests: &[] },
    Arrows { from: "sim", to: &["base", "consensus", "storage", "replica", "queue", "history"], tests: &[] },
    // What a stranger's application may see: the crate `cluster`, whole, and nothing beside it.
    Arrows { from: "hello-cluster", to: &["cluster"], tests: &[] },
    // What a program that uses codeq may see: the SDK, and a server for its tests.
    Arrows { from: "checksum_tree", to: &["client"], tests: &["testserver"] },
    Arrows { from: "render_service", to: &["client"], tests: &["testserver"] },
    // A tool: it looks at the crates from outside. Seeds come from base, and histories are judged.
    Arrows { from: "xtask", to: &["base", "history"], tests: &[] },
];

/// What a crate must not reach, by whatever path. Tests are free.
struct Absence {
    from: &'static [&'static str],
    never: &'static [&'static str],
    because: &'static str,
}

const ABSENCES: &[Absence] = &[
    Absence {
        from: &["base", "queue", "consensus", "replica"],
        never: &["tokio", "mio", "async-std", "smol", "futures-executor", "hyper", "axum", "tonic"],
        because: "the core runs without runtime and socket",
    },
    Absence {
        from: &["base", "queue", "api"],
        never: &["raft", "rusqlite", "libsqlite3-sys"],
        because: "it knows neither log nor disk",
    },
    Absence {
        from: &["consensus", "replica", "cluster", "storage"],
        never: &["queue", "api", "server"],
        because: "it runs any state machine and knows no task",
    },
    Absence {
        from: &["history"],
        never: &["queue", "consensus", "storage", "replica", "cluster", "server"],
        because: "who judges shares no code with whom it judges",
    },
];

/// Where alone a crate of somebody else may be named. Tests are free.
struct Home {
    of: &'static [&'static str],
    homes: &'static [&'static str],
    because: &'static str,
}

const HOMES: &[Home] = &[
    Home { of: &["raft", "slog"], homes: &["consensus"], because: "consensus is behind our own types" },
    Home {
        of: &["protobuf", "raft-proto"],
        homes: &[],
        because: "messages and entries travel in our own encoding; that parser has RUSTSEC-2024-0437",
    },
    Home {
        of: &["rustls", "tokio-rustls", "rustls-pki-types", "rustls-pemfile", "rcgen", "x509-parser"],
        homes: &["tls"],
        because: "TLS is behind our own types: who is trusted is decided in one place",
    },
    Home { of: &["rusqlite", "libsqlite3-sys"], homes: &["storage"], because: "only storage opens files" },
    Home {
        of: &["serde_json"],
        homes: &["api", "server", "client", "cli", "cluster", "history", "hello-cluster", "xtask"],
        because: "JSON is for the faces, and for histories",
    },
    Home {
        of: &["http", "http-body", "http-body-util", "hyper", "hyper-util", "axum", "tonic", "h2"],
        homes: &["server", "client", "cli", "cluster", "hello-cluster", "render_service"],
        because: "HTTP is for the faces",
    },
    Home {
        of: &["anyhow", "eyre", "color-eyre"],
        homes: &["cli", "xtask"],
        because: "an error that a caller must act on is an enum of its crate",
    },
    Home {
        of: &["rand", "fastrand", "oorandom"],
        homes: &[],
        because: "seeded numbers come from base::rng, secrets from getrandom",
    },
    Home {
        of: &["getrandom"],
        homes: &["cluster", "server", "client"],
        because: "the core draws no random number that was not handed to it",
    },
];

fn arrows(repository: &Repository) -> Vec<Violation> {
    let packages = &repository.packages;
    let mut violations = Vec::new();
    for package in packages.ours() {
        let Some(arrows) = ARROWS.iter().find(|arrows| arrows.from == package.name) else {
            violations.push(Violation::new(&package.name, "has no row in the table of arrows"));
            continue;
        };
        for name in names_of_ours(packages, &package.needs) {
            if !arrows.to.contains(&name) {
                violations.push(Violation::new(&package.name, format!("depends on {name}")));
            }
        }
        for name in names_of_ours(packages, &package.tests_need) {
            // A library's tests may name the library again, to give it other features.
            let allowed = arrows.to.contains(&name) || arrows.tests.contains(&name);
            if !allowed {
                violations.push(Violation::new(&package.name, format!("its tests depend on {name}")));
            }
        }
    }
    violations
}

fn names_of_ours<'a>(packages: &'a Packages, ids: &'a [String]) -> impl Iterator<Item = &'a str> {
    ids.iter().filter(|id| packages.is_ours(id)).map(|id| packages.name(id))
}

fn absences(repository: &Repository) -> Vec<Violation> {
    let packages = &repository.packages;
    let mut violations = Vec::new();
    for package in packages.ours() {
        let reached = reached_from(packages, package);
        for absence in ABSENCES.iter().filter(|absence| absence.from.contains(&package.name.as_str())) {
            for name in reached.iter().filter(|name| absence.never.contains(name)) {
                violations.push(Violation::new(&package.name, format!("reaches {name}: {}", absence.because)));
            }
        }
    }
    violations
}

/// The names of all that is built for a package, however far away.
fn reached_from<'a>(packages: &'a Packages, package: &'a Package) -> BTreeSet<&'a str> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&String> = package.needs.iter().collect();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            open.extend(packages.all.get(id).into_iter().flat_map(|package| &package.needs));
        }
    }
    seen.into_iter().map(|id| packages.name(id)).collect()
}

fn homes(repository: &Repository) -> Vec<Violation> {
    let packages = &repository.packages;
    let mut violations = Vec::new();
    for package in packages.ours() {
        for name in package.needs.iter().map(|id| packages.name(id)) {
            for home in HOMES.iter().filter(|home| home.of.contains(&name)) {
                if !home.homes.contains(&package.name.as_str()) {
                    violations.push(Violation::new(&package.name, format!("names {name}: {}", home.because)));
                }
            }
        }
    }
    violations
}

fn features(repository: &Repository) -> Vec<Violation> {
    let ours = repository.packages.ours();
    ours.flat_map(|package| {
        package.features.iter().map(|feature| Violation::new(&package.name, format!("has a feature `{feature}`")))
    })
    .collect()
}

fn descriptions(repository: &Repository) -> Vec<Violation> {
    let without = |package: &&Package| package.description.as_ref().is_none_or(|text| text.trim().is_empty());
    let ours = repository.packages.ours();
    ours.filter(without).map(|package| Violation::new(&package.name, "has no description")).collect()
}

#[cfg(test)]
mod tests {
    use crate::tidy::planted::{check, packages, repository};

    #[test]
    fn an_arrow_that_points_the_wrong_way_is_found() {
        let ours = ["base", "queue", "storage", "sim", "stray"];
        let rows: &[(&str, &[&str], &[&str])] = &[
            ("base", &[], &["queue"]),
            ("queue", &["base", "storage"], &[]),
            ("storage", &["base"], &["sim"]),
            ("sim", &["storage"], &[]),
            ("stray", &[], &[]),
        ];
        let planted = repository(&[], packages(&ours, rows));
        let expected = [
            "base: its tests depend on queue",
            "queue: depends on storage",
            "stray: has no row in the table of arrows",
        ];
        check("arrows", &planted, &expected);
    }

    #[test]
    fn what_must_be_absent_is_found_however_far_away() {
        let rows: &[(&str, &[&str], &[&str])] = &[
            ("replica", &["helpful"], &[]),
            ("queue", &[], &["tokio"]),
            ("helpful", &["deep"], &[]),
            ("deep", &["tokio"], &[]),
            ("tokio", &[], &[]),
        ];
        let planted = repository(&[], packages(&["replica", "queue"], rows));
        check("absences", &planted, &["replica: reaches tokio: the core runs without runtime and socket"]);
    }

    #[test]
    fn a_crate_named_away_from_its_home_is_found() {
        let rows: &[(&str, &[&str], &[&str])] = &[
            ("consensus", &["raft"], &["serde_json"]),
            ("cluster", &["raft"], &[]),
            ("raft", &["rand"], &[]),
            ("rand", &[], &[]),
            ("serde_json", &[], &[]),
        ];
        let planted = repository(&[], packages(&["consensus", "cluster"], rows));
        check("homes", &planted, &["cluster: names raft: consensus is behind our own types"]);
    }

    #[test]
    fn a_feature_is_found() {
        let mut packages = packages(&["queue"], &[("queue", &[], &[])]);
        packages.all.get_mut("queue").expect("it is there").features.push("fast".into());
        check("features", &repository(&[], packages), &["queue: has a feature `fast`"]);
    }

    #[test]
    fn a_crate_without_description_is_found() {
        let mut packages = packages(&["queue"], &[("queue", &[], &[])]);
        packages.all.get_mut("queue").expect("it is there").description = None;
        check("descriptions", &repository(&[], packages), &["queue: has no description"]);
    }
}
