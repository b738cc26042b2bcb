//! Rows that are tests of a crate: each names the tests that show it, and all of them must pass.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::repository::{cargo, root};
use crate::tidy;

/// A row, and what shows it.
struct Shown {
    number: &'static str,
    check: &'static str,
    tests: &'static [&'static str],
}

/// Where the tests are.
const PACKAGES: [&str; 7] = ["storage", "consensus", "queue", "replica", "cluster", "server", "sim"];

const ROWS: &[Shown] = &[
    Shown {
        number: "CQ40",
        check: "log: bounds, append, read back, what is not there, cut off at both ends",
        tests: &[
            "the_bounds_follow_what_is_appended_and_cut",
            "what_is_not_there_is_told_apart",
            "an_entry_written_again_replaces_what_stood_there_and_behind",
            "segments_covered_by_checkpoints_are_recycled_and_their_old_records_never_read",
            "no_crash_loses_what_was_synced_or_invents_anything",
        ],
    },
    Shown {
        number: "CQ41",
        check: "term and vote: absent, set, overwritten, reopened, after a crash",
        tests: &[
            "what_was_synced_reads_back_with_its_hard_state",
            "hard_states_outlive_the_segments_they_were_written_to",
            "a_restarted_member_goes_on_with_its_term_and_log",
            "no_crash_loses_what_was_synced_or_invents_anything",
        ],
    },
    Shown {
        number: "CQ42",
        check: "checkpoint: round trip, over existing state, of empty state",
        tests: &[
            "a_snapshot_is_installed_as_it_was_taken",
            "a_snapshot_of_nothing_empties",
            "a_new_checkpoint_is_empty_and_a_committed_one_reads_back",
            "a_crash_in_a_commit_leaves_the_old_checkpoint_or_the_new_one",
        ],
    },
    Shown {
        number: "CQ43",
        check: "checkpoint of another kind, version, checksum, cut at every 4 KiB",
        tests: &[
            "what_is_not_what_was_announced_is_refused_and_the_old_checkpoint_stays",
            "a_snapshot_of_another_build_or_kind_is_refused_by_name",
            "a_file_that_is_no_checkpoint_is_damage_and_stays_as_it_is",
            "a_flipped_bit_is_noticed_before_a_wrong_row_is_read",
        ],
    },
    Shown {
        number: "CQ44",
        check: "apply: create, finish, mixed in one entry, empty, undecodable",
        tests: &[
            "the_state_machine_and_the_reference_model_agree",
            "other_bytes_are_no_entry",
            "lifecycle::create",
            "lifecycle::complete",
        ],
    },
    Shown {
        number: "CQ45",
        check: "replicas with one log and other checkpoint moments; restored, and the rest of the log",
        tests: &[
            "leaders_change_and_every_member_applies_the_same",
            "who_was_away_catches_up_by_log_or_by_snapshot",
            "checkpoint::restart_everywhere",
            "checkpoint::born_and_ended_between",
            "who_was_away_too_long_gets_a_snapshot",
        ],
    },
    Shown {
        number: "CQ47",
        check: "a write at a follower without forwarding",
        tests: &["only_the_leader_of_a_term_proposes_in_it"],
    },
    Shown {
        number: "CQ48",
        check: "reopen: state, order and next ids go on",
        tests: &["everything_is_there_after_a_restart"],
    },
];

/// Where the tests of the crate `cluster` for other applications are.
const CRATE_PACKAGES: [&str; 2] = ["cluster", "hello-cluster"];

const CRATE_ROWS: &[Shown] = &[
    Shown {
        number: "RB20",
        check: "three hello-cluster processes: the same routes, the same answers",
        tests: &[
            "three_nodes_agree_and_restart_without_cluster_flags",
            "a_killed_leader_takes_nothing_with_it",
            "another_label_never_enters",
            "a_wiped_node_returns_under_a_new_incarnation",
        ],
    },
    Shown {
        number: "RB21",
        check: "what a node says, without a node: no leader, learner, un-joined, failed, standalone",
        tests: &[
            "members_are_shown_as_this_node_knows_them",
            "a_member_that_reports_no_more_is_not_healthy",
            "a_node_that_is_alone_is_a_whole_cluster",
            "a_node_without_a_cluster_says_what_it_waits_for",
            "readiness_is_asked_for_in_parts",
            "what_does_not_exist_is_told_apart",
        ],
    },
];

/// Runs the checks of codeQ's raft pull request.
///
/// # Errors
/// One of them fails, or is not there.
pub(crate) fn walk() -> Result<()> {
    run("codeQ's raft pull request: tests", &PACKAGES, ROWS)?;
    println!("{:<5}           cargo test --workspace\n               the step `tests` of `cargo xtask ci`", "CQ58");
    Ok(())
}

/// Runs those of the crate `cluster` for other applications, and looks whether its dependencies are what they should be.
///
/// # Errors
/// One of them fails, or is not there.
pub(crate) fn walk_crate() -> Result<()> {
    run("raftbase: tests", &CRATE_PACKAGES, CRATE_ROWS)?;
    tidy::run()
}

fn run(title: &str, packages: &[&str], rows: &[Shown]) -> Result<()> {
    println!("{title}");
    let mut command = Command::new(cargo());
    command.args(["test", "--locked"]).current_dir(root()).stderr(Stdio::inherit());
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    command.arg("--").args(rows.iter().flat_map(|row| row.tests));
    let output = command.output().context("cannot run cargo")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let passed = |name: &str| {
        printed.lines().any(|line| {
            let test = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... ok"));
            test.is_some_and(|test| test == name || test.ends_with(&format!("::{name}")))
        })
    };
    for Shown { number, check, tests } in rows {
        let missing = tests.iter().find(|name| !passed(name));
        ensure!(missing.is_none(), "{number}: {missing:?} has not passed:\n{printed}");
        println!("{number:<5}           {check}\n               {} tests", tests.len());
    }
    ensure!(output.status.success(), "tests fail:\n{printed}");
    Ok(())
}
