//! The compose files that no other table begins with: each comes up healthy, serves, and goes down.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::compose::Project;
use crate::walk::nodes::{Driver, eventually, send_as};
use crate::walk::{READY_MAX, Row, Skip, Skipped, TASKS, expect, list, walk_rows};

/// Walks through them.
///
/// # Errors
/// One of them does not do what it is for.
pub(crate) fn walk(driver: Driver) -> Result<Skipped> {
    walk_rows("compose files", ROWS, &mut Story { driver })
}

struct Story {
    driver: Driver,
}

const ROWS: &[Row<Story>] = &[
    Row { number: "CF1", command: "single: docker compose up -d --wait", run: single },
    Row { number: "CF2", command: "expect: docker compose up -d --wait", run: expected },
    Row { number: "CF3", command: "grow: docker compose up -d --wait; the same with --profile more", run: grow },
];

fn project(story: &Story, folder: &str, services: &[&'static str]) -> Result<Project> {
    if story.driver == Driver::Process {
        return Err(Skip("it needs containers").into());
    }
    Project::new(folder, services, &format!("codeq-walk-{folder}"))
}

/// Waits until a node that listens there serves, and has so many members that vote.
fn serves(port: u16, voters: usize) -> Result<()> {
    let addr = ([127, 0, 0, 1], port).into();
    let task = json!({ "command": "FILES", "payload": 1 }).to_string();
    eventually(READY_MAX, || {
        expect(&send_as(addr, None, "POST", TASKS, &task)?, 202)?;
        let nodes = expect(&send_as(addr, None, "GET", "/cluster/nodes", "")?, 200)?;
        let voting = list(&nodes["nodes"])?.iter().filter(|node| node["voter"] == true).count();
        ensure!(voting == voters, "{nodes}");
        Ok(())
    })
}

fn single(story: &mut Story) -> Result<String> {
    let project = project(story, "single", &["codeq"])?;
    let took = up(&project, &["codeq"])?;
    serves(8080, 1)?;
    project.stop(&["codeq"])?;
    Ok(format!("healthy after {} ms, takes tasks, stops with 0", took.as_millis()))
}

fn expected(story: &mut Story) -> Result<String> {
    let services = ["node-a", "node-b", "node-c"];
    let project = project(story, "expect", &services)?;
    let took = up(&project, &services)?;
    [8280, 8281, 8282].into_iter().try_for_each(|port| serves(port, 3))?;
    project.stop(&services)?;
    Ok(format!("three healthy after {} ms, three voters, stop with 0", took.as_millis()))
}

fn grow(story: &mut Story) -> Result<String> {
    let project = project(story, "grow", &["node-a", "node-b", "node-c"])?;
    up(&project, &["node-a"])?;
    serves(8380, 1)?;
    let took = up(&project, &["node-b", "node-c"])?;
    [8380, 8381, 8382].into_iter().try_for_each(|port| serves(port, 3))?;
    // All of them, and nobody has lost the majority before it was asked to stop.
    project.stop(&["node-a", "node-b", "node-c"])?;
    Ok(format!("one voter, and three {} ms after two more were started", took.as_millis()))
}

fn up(project: &Project, services: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    project.up_and_wait(services)?;
    Ok(begun.elapsed())
}
