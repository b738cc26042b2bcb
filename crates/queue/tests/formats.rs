//! The bytes that the state machine leaves behind in logs and checkpoints, and those that nodes of different builds exchange, compared with
//! a file of them. What was written once must stay readable, so a difference here is a new version of a format, never a new golden file.
//! Views are excepted: whoever opens a checkpoint makes them anew.
//! `UPDATE_GOLDENFILES=1` writes the files.

mod support;

use std::fmt::Write;

use base::codec::Malformed;
use base::machine::StateMachine;
use base::rows::RowSource;
use base::{Index, Millis, ScheduleTime, ShardId};
use queue::op::{
    Amend, Begin, Claim, ClaimOrder, Create, Credential, Delete, Edit, IdempotencyKey, LeaseRef, Redrive, Schedule,
    Step,
};
use queue::operations::{OperationKind, OperationState};
use queue::outcome::{Created, Grant};
use queue::{
    Backoff, BackoffPolicy, LeaseToken, Op, Outcome, Payload, Policy, QueueMachine, Rejection, State, TaskId, TaskKey,
    TaskView, codec,
};
use support::Shard;

fn compare(golden: &str, found: &str) {
    let path = format!("testdata/golden/{golden}");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::create_dir_all("testdata/golden").expect("it can be made");
        std::fs::write(&path, found).expect("it can be written");
    }
    assert_eq!(found, std::fs::read_to_string(&path).expect("the file exists"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mail() -> Create<'static> {
    Create {
        tenant: "acme",
        command: "mail",
        priority: 5,
        payload: br#"{"to":"you"}"#,
        schedule: Schedule::Now,
        webhook: "",
        max_attempts: None,
        key: None,
    }
}

/// Every kind of operation, and every optional field once with and once without a value: their bytes, line by line.
#[test]
fn operations() {
    let token = LeaseToken { attempt: 3, index: Index(77), suffix: [3; 16] };
    let lease = |credential| LeaseRef { tenant: "acme", task: TaskKey(300), credential };
    let record = b"record";
    let policy = Policy {
        backoff: Backoff { policy: BackoffPolicy::Linear, base: Millis(250), max: Millis(60_000) },
        ..Policy::default()
    };
    let key = IdempotencyKey { text: "once", scope: [1; 16], body: [2; 16] };
    let claim = Claim {
        tenant: "acme",
        worker: "w1",
        commands: vec!["mail", "print"],
        order: ClaimOrder::Request,
        count: 10,
        lease: Some(Millis(30_000)),
    };
    let redrive = Redrive {
        tenant: "acme",
        task: TaskKey(300),
        ended_at: Index(99),
        record,
        keep_attempts: true,
        delay: Millis(5),
        priority: Some(9),
    };
    let operations = [
        Op::Create(mail()),
        Op::Create(Create {
            schedule: Schedule::After(Millis(1_500)),
            webhook: "https://example.org/done",
            max_attempts: Some(7),
            key: Some(key),
            ..mail()
        }),
        Op::Create(Create { schedule: Schedule::At(ScheduleTime(1_767_225_600_000)), ..mail() }),
        Op::Claim(claim.clone()),
        Op::Claim(Claim { commands: vec![], order: ClaimOrder::Fair, count: 1, lease: None, ..claim.clone() }),
        Op::Claim(Claim { order: ClaimOrder::Priority, ..claim }),
        Op::Extend { lease: lease(Credential::Token(token)), length: Some(Millis(60_000)) },
        Op::Extend { lease: lease(Credential::Worker("w1")), length: None },
        Op::Release { lease: lease(Credential::Unknown) },
        Op::Nack { lease: lease(Credential::Token(token)), delay: Some(Millis(0)), reason: "busy" },
        Op::Nack { lease: lease(Credential::Token(token)), delay: None, reason: "" },
        Op::Complete { lease: lease(Credential::Token(token)), result: b"{}", error: "" },
        Op::Fail { lease: lease(Credential::Token(token)), result: Some(b"[1]"), error: "no" },
        Op::Fail { lease: lease(Credential::Token(token)), result: None, error: "no" },
        Op::Cancel { tenant: "acme", task: TaskKey(300), reason: "typo", force: true },
        Op::Redrive(redrive.clone()),
        Op::Redrive(Redrive { keep_attempts: false, priority: None, ..redrive }),
        Op::Configure(policy),
        Op::Pause { tenant: "acme", command: "mail", length: Some(Millis(60_000)), reason: "relay down", by: "ann" },
        Op::Pause { tenant: "acme", command: "mail", length: None, reason: "", by: "" },
        Op::Resume { tenant: "acme", command: "mail" },
        Op::Edit(Edit {
            tenant: "acme",
            task: TaskKey(300),
            priority: Some(9),
            schedule: Some(Schedule::After(Millis(5))),
            payload: Some(b"[1]"),
            max_attempts: Some(7),
            webhook: Some(""),
        }),
        Op::Edit(Edit {
            tenant: "acme",
            task: TaskKey(300),
            priority: None,
            schedule: None,
            payload: None,
            max_attempts: None,
            webhook: None,
        }),
        Op::Delete(Delete { tenant: "acme", task: TaskKey(300), ended_at: Some(Index(99)), key: Some([1; 16]) }),
        Op::Delete(Delete { tenant: "acme", task: TaskKey(300), ended_at: None, key: None }),
        Op::Begin(Begin {
            tenant: "acme",
            id: [7; 16],
            kind: OperationKind::QueuePurge,
            commands: vec!["mail", "print"],
            request: b"{}",
            dry_run: true,
            takes_all: true,
            by: "ann",
        }),
        Op::Step(Step {
            tenant: "acme",
            id: [7; 16],
            after: 3,
            cursor: b"there",
            is_last: true,
            items: vec![b"one", b"two"],
            counted: 2,
            samples: vec![TaskId { incarnation: 1, shard: ShardId(2), key: TaskKey(300) }],
        }),
        Op::Turn { tenant: "acme", id: [7; 16], to: OperationState::Failed, error: "no" },
        Op::Amend(Amend { tenant: "acme", task: TaskKey(300), ended_at: Index(99), record: &[1, 0, 2] }),
    ];
    let mut found = String::new();
    for operation in &operations {
        let mut bytes = Vec::new();
        codec::encode(operation, &mut bytes);
        assert_eq!(codec::decode(&bytes).as_ref(), Ok(operation), "it reads back");
        writeln!(found, "{}", hex(&bytes)).expect("a string takes all");
    }
    compare("operations.hex", &found);
}

/// Every kind of outcome and of rejection, and tasks with all of their optional fields and with none.
fn outcomes() -> Vec<Outcome> {
    let id = TaskId { incarnation: 0xba98_7654_3210, shard: ShardId(5), key: TaskKey::new(Index(77), 2) };
    let at = |offset: u64| ScheduleTime(1_767_225_600_000 + offset);
    let bare = TaskView {
        id,
        tenant: "acme".into(),
        command: "mail".into(),
        payload: Payload::Resident(br#"{"to":"you"}"#.as_slice().into()),
        priority: 5,
        state: State::Ready,
        worker: None,
        lease_until: None,
        attempts: 0,
        max_attempts: 5,
        error: "".into(),
        run_at: None,
        created_at: at(0),
        updated_at: at(1),
        finished_at: None,
        ended_at: None,
        result: None,
        webhook: "".into(),
        idempotency_key: "".into(),
        cancel_requested: false,
        history: Vec::new(),
    };
    let full = TaskView {
        payload: Payload::Stored(70_000),
        priority: 9,
        state: State::Cancelled,
        worker: Some("w1".into()),
        lease_until: Some(at(30_000)),
        attempts: 300,
        max_attempts: u32::MAX,
        error: "typo".into(),
        run_at: Some(at(5)),
        finished_at: Some(at(9)),
        ended_at: Some(Index(99)),
        result: Some(b"\xff".as_slice().into()),
        webhook: "https://example.org/done".into(),
        idempotency_key: "once".into(),
        cancel_requested: true,
        ..bare.clone()
    };
    let token = LeaseToken { attempt: 3, index: Index(77), suffix: [3; 16] };
    let grant = |view: &TaskView| Grant { task: view.clone(), token, length: Millis(30_000) };
    let states = State::NAMES.map(|(state, _)| Outcome::Redriven(Box::new(TaskView { state, ..bare.clone() })));
    let rejections = [
        Rejection::NotLive,
        Rejection::NotLeased,
        Rejection::NotOwner,
        Rejection::LeaseLost { held: false },
        Rejection::LeaseLost { held: true },
        Rejection::KeyConflict { first: id },
        Rejection::NotEnded,
        Rejection::RecordChanged,
        Rejection::TooManyTasks,
        Rejection::TooManyQueues,
    ];
    let others = [
        Outcome::Created(Created { id, at: at(0), run_at: None, max_attempts: 5 }),
        Outcome::Created(Created { id, at: at(0), run_at: Some(at(1)), max_attempts: 5 }),
        Outcome::Replayed(id),
        Outcome::Claimed(vec![]),
        Outcome::Claimed(vec![
            grant(&TaskView { worker: Some("w1".into()), ..bare.clone() }),
            grant(&full),
            grant(&TaskView { tenant: "other".into(), command: "print".into(), ..full.clone() }),
        ]),
        Outcome::Extended { remaining: Millis(60_000), until: at(60_000), cancel_requested: true },
        Outcome::Released,
        Outcome::Retried { delay: Millis(1_500), attempts: 2 },
        Outcome::DeadLettered { attempts: 5 },
        Outcome::Finished { at: at(7), attempt: 1 },
        Outcome::Cancelled(Box::new(full.clone())),
        Outcome::CancelRequested(Box::new(full)),
        Outcome::Redriven(Box::new(bare)),
        Outcome::Configured,
        Outcome::Done,
    ];
    others.into_iter().chain(states).chain(rejections.map(Outcome::Rejected)).collect()
}

fn encoded(outcome: &Outcome) -> Vec<u8> {
    let mut bytes = Vec::new();
    QueueMachine::encode_outcome(outcome, &mut bytes);
    bytes
}

#[test]
fn outcomes_between_nodes() {
    let mut found = String::new();
    for outcome in outcomes() {
        let bytes = encoded(&outcome);
        assert_eq!(QueueMachine::decode_outcome(&bytes).as_ref(), Ok(&outcome), "it reads back");
        writeln!(found, "{}", hex(&bytes)).expect("a string takes all");
    }
    compare("outcomes.hex", &found);
}

/// Bytes of a peer are not to be trusted: every beginning of an outcome is malformed, so is anything after it, and with any one bit changed
/// it is malformed or another outcome that reads back.
#[test]
fn outcomes_that_are_none_are_noticed() {
    for outcome in outcomes() {
        let bytes = encoded(&outcome);
        for length in 0..bytes.len() {
            assert_eq!(QueueMachine::decode_outcome(&bytes[..length]), Err(Malformed), "{length} bytes of {outcome:?}");
        }
        assert_eq!(QueueMachine::decode_outcome(&[&bytes[..], &[0]].concat()), Err(Malformed));
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[place] ^= 1 << bit;
                if let Ok(other) = QueueMachine::decode_outcome(&changed) {
                    assert_eq!(QueueMachine::decode_outcome(&encoded(&other)), Ok(other));
                }
            }
        }
    }
}

/// The tables of a shard and a row of each: a task in every stage and with every ending, an idempotency key, counters.
#[test]
fn checkpoint() {
    let mut shard = Shard::new(1_767_225_600_000);
    let key = IdempotencyKey { text: "once", scope: [1; 16], body: [2; 16] };
    for create in [
        Create { priority: 9, ..mail() },
        Create { priority: 8, ..mail() },
        Create { priority: 7, max_attempts: Some(1), ..mail() },
        Create { priority: 6, ..mail() },
        Create { key: Some(key), webhook: "https://example.org/done", ..mail() },
        Create { schedule: Schedule::After(Millis(60_000)), ..mail() },
        Create { schedule: Schedule::At(ScheduleTime(1_767_230_000_000)), ..mail() },
    ] {
        shard.apply(&Op::Create(create));
    }
    let claim = Claim {
        tenant: "acme",
        worker: "w1",
        commands: vec!["mail"],
        order: ClaimOrder::Request,
        count: 4,
        lease: None,
    };
    let Outcome::Claimed(grants) = shard.apply(&Op::Claim(claim)) else { panic!("four tasks are ready") };
    let lease = |nth: usize| LeaseRef {
        tenant: "acme",
        task: grants[nth].task.id.key,
        credential: Credential::Token(grants[nth].token),
    };
    shard.apply(&Op::Complete { lease: lease(0), result: b"{\"sent\":true}", error: "" });
    shard.apply(&Op::Fail { lease: lease(1), result: None, error: "no such address" });
    shard.apply(&Op::Nack { lease: lease(2), delay: None, reason: "busy" });
    shard.save(usize::MAX, |_| ());

    let schema = QueueMachine::schema();
    let mut found = String::new();
    for (number, table) in schema.tables.iter().enumerate() {
        let columns: Vec<String> =
            table.columns.iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
        writeln!(found, "{number} {} ({})", table.name, columns.join(", ")).expect("a string takes all");
        let mut rows = shard.store.clone();
        let mut print = |slice: u32, key: i64, row: base::rows::Row<'_>| {
            let mut reader = row.reader();
            write!(found, "  {slice} {key}:")?;
            while !reader.is_empty() {
                write!(found, " {:?}", reader.value()?)?;
            }
            found.push('\n');
            Ok(())
        };
        rows.for_each(number as u8, &mut |slice, key, row| {
            print(slice, key, row).map_err(|_: Box<dyn std::error::Error>| base::codec::Malformed)
        })
        .expect("the rows read back");
    }
    for view in schema.views {
        writeln!(found, "{}: {}", view.name, view.select).expect("a string takes all");
    }
    compare("checkpoint.txt", &found);
}
