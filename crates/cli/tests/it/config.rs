//! Settings as the command line shows and refuses them. What they come to is tested in the crate `server`.

use crate::process::{End, run};

/// What is printed without a start is what a start goes by.
#[test]
fn settings_can_be_seen_and_checked_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("codeq.yaml").display().to_string();
    let template = run(&["config", "template"], &[]);
    assert_eq!(template.status, Some(0));
    std::fs::write(&file, template.output.replace("#shards: 1", "shards: 2")).unwrap();

    let environment = [("CODEQ_HTTP_THREADS", "3"), ("PORT", "9090")];
    let shown = run(&["config", "show", "--origin", "--config", &file, "--drain-timeout=7s"], &environment);
    assert_eq!(shown.status, Some(0), "{shown:?}");
    let line = |name: &str| {
        let line = shown.output.lines().find(|line| line.starts_with(&format!("{name} "))).expect("it has a line");
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(line("shards").starts_with(&format!("shards 2 fixed file {file}:")), "{}", line("shards"));
    assert_eq!(line("http.threads"), "http.threads 3 node env CODEQ_HTTP_THREADS");
    assert_eq!(line("http.addr"), "http.addr :9090 node env PORT (codeQ)");
    assert_eq!(line("drainTimeout"), "drainTimeout 7s node flag --drain-timeout");
    assert_eq!(line("limits.waiters"), "limits.waiters 10000 node default");

    let checked = run(&["config", "check", "--config", &file], &environment);
    assert_eq!((checked.status, checked.output.contains("the settings are fine")), (Some(0), true), "{checked:?}");
    let refused = run(&["config", "check", "--shards", "65"], &environment);
    assert_eq!(refused.status, Some(2), "{refused:?}");
}

fn refused(args: &[&str], environment: &[(&str, &str)]) -> End {
    let end = run(args, environment);
    assert_eq!(end.status, Some(2), "{end:?}");
    end
}

/// Each source of a bad value, with status 2 and its name; nothing is made on the disk.
#[test]
fn what_is_refused_is_named_and_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("data").display().to_string();
    let file = folder.path().join("bad.yaml").display().to_string();
    std::fs::write(&file, "shards: 1\nhttp:\n  adress: ':8080'\n").unwrap();
    let serve = ["serve", "--data-dir", &directory];

    let end = refused(&[&serve[..], &["--http-adr", ":8080"]].concat(), &[]);
    assert!(end.output.contains("unexpected argument '--http-adr'") && end.output.contains("--http-addr"), "{end:?}");

    let end = refused(
        &[&serve[..], &["--shards", "many", "--storage-durability=never"]].concat(),
        &[("CODEQ_DRAIN_TIMEOUT", "5")],
    );
    for text in [
        "error: shards is \"many\" (flag --shards): allowed is a whole number from 1 to 64\n",
        "error: storage.durability is \"never\" (flag --storage-durability): allowed is one of fsync, buffered\n",
        "error: drainTimeout is \"5\" (env CODEQ_DRAIN_TIMEOUT): allowed is a number with a unit",
        "the settings are refused; nothing was opened or changed\n",
    ] {
        assert!(end.output.contains(text), "{text}: {end:?}");
    }

    let end = refused(&[&serve[..], &["--config", &file]].concat(), &[]);
    let text = format!("error: {file}:3: no setting is called http.adress; is http.addr meant?\n");
    assert!(end.output.contains(&text), "{end:?}");
    assert!(!std::path::Path::new(&directory).exists());
}

#[test]
fn the_version_is_told() {
    let end = run(&["version"], &[]);
    assert_eq!((end.status, end.output.trim()), (Some(0), concat!("codeq ", env!("CARGO_PKG_VERSION"))));
}
