//! Rules about the names that code uses. Clippy's `disallowed_*` lists cover single items in the core; these cover whole modules and whole crates.

use crate::repository::Repository;
use crate::tidy::rust::Name;
use crate::tidy::{Rule, Violation};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "pure-core",
        instead: "take the time, the random number or the bytes as an argument; the shell (cluster, server) has clocks, disks and sockets",
        check: |repository| check(repository, &PURE_CORE),
    },
    Rule {
        name: "files-in-storage",
        instead: "give storage a function for it: only there are files opened, synced and named in errors",
        check: |repository| check(repository, &FILES_IN_STORAGE),
    },
    Rule {
        name: "no-log-in-queue",
        instead: "the state machine is handed stamps, an operation and its position, nothing of the log they came from",
        check: |repository| check(repository, &NO_LOG_IN_QUEUE),
    },
    Rule {
        name: "http-in-cluster",
        instead: "move it to crates/cluster/src/http/: the rest of cluster speaks no HTTP and no JSON",
        check: |repository| check(repository, &HTTP_IN_CLUSTER),
    },
    Rule {
        name: "codec-has-no-protobuf",
        instead: "encode and decode with crates/consensus/src/codec.rs: the protobuf parser below raft has RUSTSEC-2024-0437 and must never \
                  see bytes from outside",
        check: |repository| check(repository, &CODEC_HAS_NO_PROTOBUF),
    },
    Rule {
        name: "no-lease-reads",
        instead: "use ReadOnlyOption::Safe: a read that trusts a clock is wrong when the clock is",
        check: |repository| check(repository, &NO_LEASE_READS),
    },
    Rule {
        name: "no-ignored-tests",
        instead: "assert today's behaviour and say why it is wrong, or delete the test",
        check: |repository| check(repository, &NO_IGNORED_TESTS),
    },
    Rule {
        name: "no-sleeps-in-tests",
        instead: "wait for the event: a channel, an answer, a line of output. If time itself is tested, pause the runtime's clock, or add the \
                  file to the exceptions with the reason",
        check: |repository| check(repository, &NO_SLEEPS_IN_TESTS),
    },
    Rule {
        name: "no-stubs",
        instead: "leave out what is not there yet; nothing calls it",
        check: |repository| check(repository, &NO_STUBS),
    },
    Rule {
        name: "one-program",
        instead: "use assert! and settings: what is tested is what is shipped, so nothing depends on debug_assertions",
        check: |repository| check(repository, &ONE_PROGRAM),
    },
];

/// Names that do not belong somewhere.
struct Ban {
    names: &'static [&'static str],
    within: fn(&str) -> bool,
    /// Whether it concerns code that is shipped, tests, or both.
    code: Code,
    /// Beginnings of paths where it is right, each with the reason.
    except: &'static [(&'static str, &'static str)],
}

#[derive(PartialEq, Eq)]
enum Code {
    Shipped,
    Tests,
    All,
}

const PURE_CORE: Ban = Ban {
    names: &[
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "std::process",
        "std::os",
        "Instant",
        "SystemTime",
        "tokio",
        "getrandom",
        "thread_rng",
        "ThreadRng",
        "OsRng",
        "RandomState",
        "std::collections::HashMap",
        "std::collections::HashSet",
        "std::collections::hash_map",
        "std::collections::hash_set",
    ],
    within: |path| {
        ["base", "queue", "consensus", "replica"].iter().any(|core| path.starts_with(&format!("crates/{core}/src/")))
    },
    code: Code::Shipped,
    except: &[],
};

const FILES_IN_STORAGE: Ban = Ban {
    names: &["std::fs", "tokio::fs", "std::os::unix::fs"],
    within: |path| path.starts_with("crates/") && !path.starts_with("crates/storage/"),
    code: Code::Shipped,
    except: &[
        ("crates/server/src/config/", "settings and tokens may stand in files, which are read once at start"),
        ("crates/server/src/reload.rs", "certificates and tokens are read from files, and again when they change"),
        ("crates/cli/src/endpoint.rs", "the same holds for the token of a command"),
        ("crates/cli/src/tls_init.rs", "certificates and keys are made for other machines, not for this one's data"),
        ("crates/cli/src/dev/", "who starts several nodes keeps beside their directories where they reach each other"),
    ],
};

const NO_LOG_IN_QUEUE: Ban = Ban {
    names: &["base::log", "crate::log", "consensus", "storage", "replica"],
    within: |path| path.starts_with("crates/queue/"),
    code: Code::All,
    except: &[],
};

const HTTP_IN_CLUSTER: Ban = Ban {
    names: &["serde_json", "serde", "hyper", "hyper_util", "axum", "tonic"],
    within: |path| {
        path.starts_with("crates/cluster/src/")
            && !path.starts_with("crates/cluster/src/http/")
            && path != "crates/cluster/src/http.rs"
    },
    code: Code::Shipped,
    except: &[],
};

const CODEC_HAS_NO_PROTOBUF: Ban = Ban {
    names: &[
        "protobuf",
        "raft_proto",
        "parse_from_bytes",
        "parse_from_carllerche_bytes",
        "parse_from_reader",
        "parse_from",
        "merge_from",
        "merge_from_bytes",
        "merge_from_carllerche_bytes",
        "parse_length_delimited_from",
        "parse_length_delimited_from_bytes",
        "parse_length_delimited_from_reader",
        "CodedInputStream",
    ],
    within: |path| {
        ["consensus", "storage", "replica", "cluster"].iter().any(|below| path.starts_with(&format!("crates/{below}/")))
    },
    code: Code::All,
    except: &[],
};

const NO_LEASE_READS: Ban = Ban { names: &["LeaseBased"], within: |_| true, code: Code::All, except: &[] };

const NO_IGNORED_TESTS: Ban = Ban { names: &["#ignore"], within: |_| true, code: Code::All, except: &[] };

const NO_SLEEPS_IN_TESTS: Ban = Ban {
    names: &["thread::sleep", "thread::park_timeout", "time::sleep", "time::sleep_until"],
    within: |_| true,
    code: Code::Tests,
    except: &[
        (
            "crates/server/tests/it/bad_input.rs",
            "a client that sends a byte now and then is the subject: its pace is the input",
        ),
        ("crates/cli/tests/it/process.rs", "what another process has come to shows only when it is asked again"),
    ],
};

const NO_STUBS: Ban = Ban { names: &["todo!", "unimplemented!"], within: |_| true, code: Code::All, except: &[] };

const ONE_PROGRAM: Ban = Ban {
    names: &["debug_assert!", "debug_assert_eq!", "debug_assert_ne!", "debug_assertions"],
    within: |_| true,
    code: Code::All,
    except: &[],
};

fn check(repository: &Repository, ban: &Ban) -> Vec<Violation> {
    let excepted = |path: &str| ban.except.iter().any(|(beginning, _)| path.starts_with(beginning));
    let concerns = |name: &&Name| match ban.code {
        Code::Shipped => !name.in_test,
        Code::Tests => name.in_test,
        Code::All => true,
    };
    let mut violations = Vec::new();
    for (path, source) in repository.sources().filter(|(path, _)| (ban.within)(path) && !excepted(path)) {
        for banned in ban.names {
            for name in source.uses(banned).filter(concerns) {
                violations.push(Violation::in_line(path, name.line, format!("uses {}", name.parts.join("::"))));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use crate::repository::Packages;
    use crate::tidy::planted::{check, repository};

    /// One file with a violation, and files that have the same words where they are right.
    fn planted(files: &[(&str, &str)]) -> crate::repository::Repository {
        repository(files, Packages::default())
    }

    #[test]
    fn clock_disk_and_socket_are_found_in_the_core_but_not_in_its_tests() {
        let files = planted(&[
            (
                "crates/queue/src/a.rs",
                "//! std::fs\nuse std::{fs::File, time::{Duration, Instant}};\n#[cfg(test)] mod tests { use std::fs; }",
            ),
            ("crates/queue/tests/b.rs", "use std::fs;"),
            ("crates/server/src/c.rs", "use std::time::Instant;"),
            ("crates/base/src/d.rs", "fn f() { tokio::spawn(g()) }"),
        ]);
        let expected = [
            "crates/base/src/d.rs:1: uses tokio::spawn",
            "crates/queue/src/a.rs:2: uses std::fs::File",
            "crates/queue/src/a.rs:2: uses std::time::Instant",
        ];
        check("pure-core", &files, &expected);
    }

    #[test]
    fn files_opened_outside_storage_are_found() {
        let files = planted(&[
            ("crates/cluster/src/a.rs", "fn f() { std::fs::create_dir(p) }"),
            ("crates/storage/src/a.rs", "use std::fs::File;"),
        ]);
        check("files-in-storage", &files, &["crates/cluster/src/a.rs:1: uses std::fs::create_dir"]);
    }

    #[test]
    fn the_log_is_found_in_queue() {
        let files = planted(&[("crates/queue/src/a.rs", "use base::{log::Entry, time};")]);
        check("no-log-in-queue", &files, &["crates/queue/src/a.rs:1: uses base::log::Entry"]);
    }

    #[test]
    fn json_is_found_in_cluster_outside_its_http_module() {
        let files = planted(&[
            ("crates/cluster/src/a.rs", "use serde_json::Value;"),
            ("crates/cluster/src/http/a.rs", "use serde_json::Value;"),
        ]);
        check("http-in-cluster", &files, &["crates/cluster/src/a.rs:1: uses serde_json::Value"]);
    }

    #[test]
    fn a_call_of_the_protobuf_parser_is_found() {
        let files = planted(&[
            (
                "crates/consensus/src/a.rs",
                "fn f(m: &mut Message, b: &[u8]) { m.merge_from_bytes(b); Message::parse_from_bytes(b); }",
            ),
            ("crates/cli/src/main.rs", "fn f() { Arguments::parse_from(a) }"),
        ]);
        let expected = [
            "crates/consensus/src/a.rs:1: uses Message::parse_from_bytes",
            "crates/consensus/src/a.rs:1: uses merge_from_bytes",
        ];
        check("codec-has-no-protobuf", &files, &expected);
    }

    #[test]
    fn reads_that_trust_a_clock_are_found() {
        let files = planted(&[("crates/consensus/src/a.rs", "const A: B = ReadOnlyOption::LeaseBased;")]);
        check("no-lease-reads", &files, &["crates/consensus/src/a.rs:1: uses ReadOnlyOption::LeaseBased"]);
    }

    #[test]
    fn ignored_tests_are_found() {
        let files = planted(&[
            ("crates/a/src/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() { let ignore = 1; }"),
            ("crates/b/src/a.rs", "#[cfg_attr(miri, ignore)]\nfn f() {}"),
        ]);
        check("no-ignored-tests", &files, &["crates/a/src/a.rs:2: uses #ignore", "crates/b/src/a.rs:1: uses #ignore"]);
    }

    #[test]
    fn sleeps_are_found_in_tests_only() {
        let files = planted(&[
            ("crates/a/tests/it.rs", "use std::thread;\nfn f() { thread::sleep(d) }"),
            (
                "crates/a/src/a.rs",
                "fn f() { std::thread::sleep(d) }\n#[cfg(test)] mod tests { fn f() { tokio::time::sleep(d).await } }",
            ),
        ]);
        let expected = ["crates/a/src/a.rs:2: uses tokio::time::sleep", "crates/a/tests/it.rs:2: uses thread::sleep"];
        check("no-sleeps-in-tests", &files, &expected);
    }

    #[test]
    fn stubs_are_found() {
        let files = planted(&[("crates/a/src/a.rs", "// todo!()\nfn f() { todo!() }")]);
        check("no-stubs", &files, &["crates/a/src/a.rs:2: uses todo!"]);
    }

    #[test]
    fn code_that_differs_in_debug_builds_is_found() {
        let text = "fn f() { debug_assert!(a); if cfg!(debug_assertions) {} }";
        let expected = ["crates/a/src/a.rs:1: uses debug_assert!", "crates/a/src/a.rs:1: uses debug_assertions"];
        check("one-program", &planted(&[("crates/a/src/a.rs", text)]), &expected);
    }
}
