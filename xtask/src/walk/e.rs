//! What must hold for the whole cluster, end to end: each row names what shows it, and all of that must pass.
//!
//! A row is shown by fault runs, by tests of crates, by seeds of the simulator, by a story of its own over processes, or by several of them.
//! What several rows rest on is run once. Counts are small, and with `--long` those that the row is about; either are printed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::faults::{self, Scenario, Size};
use crate::repository::{cargo, root};
use crate::sim;
use crate::walk::nodes::allowed;
use crate::walk::{Skip, Skipped, e_failover, e_probes, e_rest, e_start};

/// A row, and what shows it.
struct Shown {
    number: &'static str,
    scenario: &'static str,
    by: &'static [Evidence],
}

/// Something that shows a row.
enum Evidence {
    /// Rounds of a fault run: few, and as many as the row is about.
    Fault(Scenario, u32, u32),
    /// The same, and what its figures must keep to.
    Measured(Scenario, u32, u32, &'static [Bound]),
    /// Tests of a package, by their exact names.
    Tests(&'static str, &'static [&'static str]),
    /// Seeds of the simulator with these classes of faults and no others, and options: few seeds, and many.
    Seeds(&'static str, &'static [&'static str], u32, u32),
    /// A story over processes.
    Story(fn(&Stage) -> Result<String>),
    /// Nothing does, and why.
    Nothing(&'static str),
}

use Evidence::{Fault, Measured, Nothing, Seeds, Story, Tests};

/// So many of a hundred rounds, or more, take no longer.
struct Bound {
    percent: usize,
    longest: Duration,
}

const fn bound(percent: usize, milliseconds: u64) -> Bound {
    Bound { percent, longest: Duration::from_millis(milliseconds) }
}

const ROWS: &[Shown] = &[
    Shown { number: "E1", scenario: "cold starts, random order and delays", by: &[Story(e_start::cold_starts)] },
    Shown {
        number: "E2",
        scenario: "leader under load: SIGKILL, SIGTERM, SIGSTOP, cut off, disk full",
        by: &[
            Measured(Scenario::KillLeader, 5, 100, &[bound(50, 1_000), bound(99, 2_000)]),
            Measured(Scenario::StopLeader, 3, 50, &[bound(50, 200)]),
            Fault(Scenario::Pause, 1, 10),
            Fault(Scenario::Links, 1, 10),
            Fault(Scenario::DiskFull, 1, 1),
            Seeds("crashes,pauses,netsplits,no-space", &[], 8, 1_000),
        ],
    },
    Shown {
        number: "E3",
        scenario: "failovers, leader-check of all every 10 ms",
        by: &[Fault(Scenario::Elections, 3, 100)],
    },
    Shown {
        number: "E4",
        scenario: "leader partitioned, clients on both sides",
        by: &[Fault(Scenario::Links, 1, 10), Seeds("netsplits", &[], 8, 1_000)],
    },
    Shown {
        number: "E5",
        scenario: "follower isolated, returns",
        by: &[Fault(Scenario::Links, 1, 10), Seeds("netsplits", &["netsplit_length_ms=600000"], 2, 20)],
    },
    Shown {
        number: "E6",
        scenario: "frozen leader wakes after a successor, expiries due",
        by: &[Fault(Scenario::Pause, 1, 10), Seeds("pauses", &[], 8, 1_000)],
    },
    Shown {
        number: "E7",
        scenario: "failovers within leases, wall clocks that jump",
        by: &[
            Fault(Scenario::TakeOver, 1, 10),
            Seeds("transfers,crashes,clocks", &["lease_ms=6000", "transfer_ms=2000", "wall_jumps=20"], 8, 1_000),
        ],
    },
    Shown {
        number: "E8",
        scenario: "all nodes down: leases keep what is left, schedules catch up",
        by: &[Story(e_rest::all_down), Tests("server", &["restart::what_was_running_goes_on"])],
    },
    Shown { number: "E9", scenario: "kill -9 at any point of forming", by: &[Story(e_start::killed_while_forming)] },
    Shown {
        number: "E10",
        scenario: "forwarding: every mutating route at every node, during failovers",
        by: &[Story(e_failover::forwarding)],
    },
    Shown {
        number: "E11",
        scenario: "linearizable reads at every node during failovers; chains of minPosition",
        by: &[Story(e_failover::own_writes), Seeds("crashes,transfers,latency", &["readers=3"], 8, 1_000)],
    },
    Shown {
        number: "E12",
        scenario: "torn log tail; bit flips in log and checkpoint",
        by: &[
            Tests("cli", &["serve::damaged_data_is_named"]),
            Tests(
                "server",
                &[
                    "damage::a_damaged_row_of_an_ended_task_stops_the_server",
                    "damage::an_impossible_row_of_an_ended_task_stops_the_server",
                ],
            ),
            Seeds("bit-flips,crashes,power", &[], 8, 1_000),
        ],
    },
    Shown {
        number: "E13",
        scenario: "power loss of all three under load",
        by: &[Seeds("power", &["nodes=3", "power_losses=3"], 8, 1_000)],
    },
    Shown {
        number: "E14",
        scenario: "probes: joining, no leader, frozen disk, replay, draining",
        by: &[
            Story(e_probes::joining),
            Story(e_probes::no_leader),
            Story(e_probes::frozen_disk),
            Tests(
                "server",
                &[
                    "status::a_starting_server_says_so",
                    "stopping::a_stop_loses_nothing",
                    "http2::a_stop_ends_waiting_requests",
                ],
            ),
        ],
    },
    Shown { number: "E15", scenario: "one node wiped under load, in turn", by: &[Fault(Scenario::Wipe, 3, 10)] },
    Shown {
        number: "E16",
        scenario: "newcomer with a wrong address; killed while it catches up",
        by: &[Story(e_rest::newcomer)],
    },
    Shown {
        number: "E17",
        scenario: "members changed at random, with kills",
        by: &[Fault(Scenario::Members, 6, 100), Seeds("members,crashes", &[], 8, 1_000)],
    },
    Shown {
        number: "E18",
        scenario: "changes with a voter down; a member that was removed while it was away",
        by: &[
            Tests("cli", &["operate::what_would_cost_the_majority_is_refused"]),
            Tests(
                "cluster",
                &[
                    "operate::a_majority_is_not_removed",
                    "operate::a_vote_is_taken_and_given_back_under_load",
                    "operate::three_become_one_under_load",
                ],
            ),
        ],
    },
    Shown {
        number: "E19",
        scenario: "growth 1, 3, 1 under load",
        by: &[
            Tests("cli", &["operate::one_becomes_three_and_one_again_under_load"]),
            Tests("cluster", &["three_nodes::one_node_grows_to_three"]),
        ],
    },
    Shown {
        number: "E20",
        scenario: "transfers under load; step-down with hold; slow disk on the leader",
        by: &[Measured(Scenario::Transfers, 20, 1_000, &[bound(99, 300)]), Seeds("slow-disk,transfers", &[], 8, 1_000)],
    },
    Shown {
        number: "E21",
        scenario: "large snapshot to a follower while serving; killed in the middle",
        by: &[Fault(Scenario::Snapshot, 1, 3), Story(e_rest::large_snapshot)],
    },
    Shown {
        number: "E22",
        scenario: "save, verify, restore offline and online; damaged file; crash in a restore",
        by: &[
            Tests(
                "cli",
                &[
                    "backup::a_backup_is_saved_and_restored",
                    "backup::a_backup_is_restored_into_a_running_cluster",
                    "backup::a_damaged_backup_is_refused_by_the_name_of_its_part",
                    "backup::a_crash_during_a_restore_leaves_the_old_or_the_new",
                ],
            ),
            Seeds("crashes", &["restores=1"], 4, 500),
        ],
    },
    Shown {
        number: "E23",
        scenario: "log stories, one and four groups, parsed",
        by: &[
            Fault(Scenario::Elections, 3, 100),
            Tests("cluster", &["story::every_election_is_told_in_order_and_recorded_once"]),
        ],
    },
    Shown {
        number: "E24",
        scenario: "roles and routes at leader and follower, during failovers",
        by: &[Story(e_failover::roles), Tests("cli", &["roles::each_role_opens_the_same_at_every_node"])],
    },
    Shown {
        number: "E25",
        scenario: "four groups: a node killed; one group handed over",
        by: &[Story(e_failover::four_groups), Tests("cluster", &["operate::every_group_follows"])],
    },
    Shown { number: "E26", scenario: "idle", by: &[Story(e_rest::idle)] },
    Shown {
        number: "E27",
        scenario: "compose files up and down; scratch image without a network",
        by: &[Nothing("containers: `cargo xtask walk all --driver docker` and `cargo xtask image` are this row")],
    },
    Shown {
        number: "E28",
        scenario: "timelines and records after failovers against logs; one node dead",
        by: &[
            Fault(Scenario::Elections, 3, 100),
            Tests(
                "cluster",
                &["story::every_node_tells_the_same_timeline", "story::hand_overs_and_majorities_are_told"],
            ),
        ],
    },
    Shown {
        number: "E29",
        scenario: "two disks of three lost; two survivors recovered by mistake",
        by: &[Tests(
            "cli",
            &[
                "backup::the_last_of_three_nodes_is_recovered",
                "backup::two_that_were_recovered_by_mistake_refuse_each_other",
            ],
        )],
    },
    Shown {
        number: "E30",
        scenario: "rolling restart; check quorum with one node down",
        by: &[Fault(Scenario::Rolling, 1, 20), Story(e_probes::check_quorum)],
    },
    Shown {
        number: "E30",
        scenario: "downgrade before the level rises, too old a joiner",
        by: &[Nothing("there is one build and no feature level to rise")],
    },
    Shown {
        number: "E31",
        scenario: "space-low on one, on all, freed",
        by: &[Tests(
            "cli",
            &["alarms::a_full_disk_of_one_stops_new_tasks_everywhere", "alarms::who_has_hardly_any_room_leads_nothing"],
        )],
    },
    Shown {
        number: "E31",
        scenario: "divergence planted",
        by: &[Nothing("nodes do not compare their states while they run; the simulator does, by its invariant I5")],
    },
    Shown {
        number: "E32",
        scenario: "peer TLS, join tokens, a flood at the peer port",
        by: &[
            Tests(
                "cluster",
                &[
                    "peer_tls::who_has_no_certificate_of_its_own_is_refused_on_both_sides",
                    "peer_tls::a_clients_certificate_opens_nothing_at_the_port_for_peers",
                    "peer_tls::certificates_are_replaced_without_losing_a_connection",
                    "peer_tls::a_flood_of_strangers_is_bounded_and_disturbs_nobody",
                    "tokens::join_token_matrix",
                ],
            ),
            Tests("cli", &["tokens::the_printed_command_joins_a_node_and_a_dead_token_does_not"]),
        ],
    },
];

/// The rows that are shown by stories: what shows the others, every change runs anyway.
pub(super) const WITH_STORIES: [&str; 12] =
    ["E1", "E8", "E9", "E10", "E11", "E14", "E16", "E21", "E24", "E25", "E26", "E30"];

/// What stories need to know.
pub(super) struct Stage {
    pub(super) codeq: PathBuf,
    pub(super) long: bool,
}

impl Stage {
    /// A count that is small, or the one that the row is about.
    pub(super) fn count(&self, small: u32, full: u32) -> u32 {
        if self.long { full } else { small }
    }
}

/// Walks the rows with these numbers; all, if there are none.
///
/// # Errors
/// A row is not shown, or there is none of a number.
pub(super) fn walk(codeq: &Path, long: bool, only: &[String]) -> Result<Skipped> {
    let unknown = only.iter().find(|number| ROWS.iter().all(|row| row.number != **number));
    ensure!(unknown.is_none(), "there is no row {}", unknown.map_or("", String::as_str));
    println!("the whole cluster, end to end");
    let stage = Stage { codeq: codeq.to_owned(), long };
    let mut seen = BTreeMap::new();
    let mut skipped = 0;
    for row in ROWS.iter().filter(|row| only.is_empty() || only.iter().any(|number| number == row.number)) {
        let begun = Instant::now();
        let shown: Result<Vec<String>> = row.by.iter().map(|evidence| show(&stage, evidence, &mut seen)).collect();
        let (number, scenario, took) = (row.number, row.scenario, begun.elapsed().as_secs_f64());
        println!("{number:<5} {took:6.2} s  {scenario}");
        match shown {
            Ok(lines) => lines.iter().for_each(|line| println!("               {line}")),
            Err(failure) if failure.is::<Skip>() => {
                skipped += 1;
                println!("               SKIP {failure}");
            }
            Err(failure) => {
                println!("               FAILED");
                return Err(failure).context(number);
            }
        }
    }
    Ok(skipped)
}

/// What has been run, by its command, with what was seen.
type Seen = BTreeMap<String, (String, Vec<Duration>)>;

/// Runs what shows a row. Returns the command for it, and what was seen.
fn show(stage: &Stage, evidence: &Evidence, seen: &mut Seen) -> Result<String> {
    match evidence {
        Fault(scenario, small, full) => fault(stage, *scenario, stage.count(*small, *full), seen).map(|(said, _)| said),
        Measured(scenario, small, full, bounds) => {
            let (said, figures) = fault(stage, *scenario, stage.count(*small, *full), seen)?;
            Ok(format!("{said}: {}", keeps_to(figures, bounds)?))
        }
        Tests(package, names) => tests(package, names),
        Seeds(focus, sets, small, full) => {
            let seeds = stage.count(*small, *full);
            let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
            let command = format!("cargo xtask sim --seed 1000 --seeds {seeds} --focus {focus} {}", sets.join(" "));
            if !seen.contains_key(&command) {
                sim::focused(focus, seeds, &sets)?;
                seen.insert(command.clone(), (String::new(), Vec::new()));
            }
            Ok(format!("{}: green", command.trim()))
        }
        Story(story) => story(stage),
        Nothing(why) => Err(Skip(why).into()),
    }
}

fn fault(stage: &Stage, scenario: Scenario, rounds: u32, seen: &mut Seen) -> Result<(String, Vec<Duration>)> {
    let quick = if stage.long { "" } else { " --quick" };
    let command = format!("cargo xtask faults --only {} --rounds {rounds} --seed 1{quick}", scenario.name());
    if let Some((said, figures)) = seen.get(&command) {
        return Ok((format!("{said}, above"), figures.clone()));
    }
    let size = if stage.long { Size::Full } else { Size::Small };
    let figures = faults::measure(&stage.codeq, scenario, rounds, size)?;
    let said = format!("{command}: holds");
    seen.insert(command, (said.clone(), figures.clone()));
    Ok((said, figures))
}

/// Looks whether figures keep to their bounds, and shows those.
fn keeps_to(mut figures: Vec<Duration>, bounds: &[Bound]) -> Result<String> {
    ensure!(!figures.is_empty(), "there are no figures");
    figures.sort_unstable();
    let shown = bounds.iter().map(|Bound { percent, longest }| {
        let rank = (figures.len() * percent).div_ceil(100).max(1);
        let took = figures[rank - 1];
        let all: Vec<u128> = figures.iter().map(Duration::as_millis).collect();
        ensure!(took <= allowed(*longest), "{percent} of 100 take {took:?}, and may take {longest:?}: {all:?} ms");
        Ok(format!("{percent} of 100 within {} ms (bar {})", took.as_millis(), longest.as_millis()))
    });
    let shown: Vec<String> = shown.collect::<Result<_>>()?;
    let slowest = figures.last().map_or(0, Duration::as_millis);
    Ok(format!("{}, slowest {slowest} ms of {}", shown.join(", "), figures.len()))
}

/// Runs tests of a package's program of tests by their exact names, all of which must be there and pass.
fn tests(package: &str, names: &[&str]) -> Result<String> {
    let mut command = Command::new(cargo());
    command.args(["test", "--locked", "--package", package, "--test", "it", "--", "--exact"]);
    command.args(names).current_dir(root()).stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let passed: BTreeSet<&str> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... ok")))
        .collect();
    let missing = names.iter().find(|name| !passed.contains(**name));
    ensure!(output.status.success() && missing.is_none(), "{missing:?} has not passed:\n{printed}");
    Ok(format!("cargo test -p {package} --test it -- --exact {}: passed", names.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a bound counts rounds from the nearest rank on, so that one slow round of a few is not let through, and nothing measured is no proof.
    #[test]
    fn bounds_are_of_the_nearest_rank() {
        let figures = |all: &[u64]| all.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        let keeps = |all: &[u64], percent| keeps_to(figures(all), &[bound(percent, 10)]).is_ok();
        assert!(keeps(&[10, 30, 5], 50));
        assert!(!keeps(&[10, 30, 5], 99));
        assert!(!keeps(&[11, 30, 5], 50));
        assert!(!keeps(&[], 50));
    }

    /// Goal: what every change runs has all stories.
    #[test]
    fn every_story_is_known_as_one() {
        let has_story = |row: &&Shown| row.by.iter().any(|evidence| matches!(evidence, Story(_)));
        let numbers: Vec<&str> = ROWS.iter().filter(has_story).map(|row| row.number).collect();
        assert_eq!(numbers, WITH_STORIES);
    }

    /// Goal: every row from E1 to E32 is there, with something that shows it or a reason why nothing does.
    #[test]
    fn no_row_is_left_out() {
        let numbers: BTreeSet<&str> = ROWS.iter().map(|row| row.number).collect();
        let wanted: Vec<String> = (1..=32).map(|number| format!("E{number}")).collect();
        assert!(wanted.iter().all(|number| numbers.contains(number.as_str())));
        assert!(ROWS.iter().all(|row| !row.by.is_empty()));
    }
}
