//! One call, whatever happens to it on the way.

use std::time::Duration;

use bytes::Bytes;
use client::{AnyRequest, Claim, Client, Code, Error, NewTask, Outcome, Repeat, Settled, State};
use http_body_util::Full;
use testserver::TestServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use crate::between::Between;

fn done() -> Outcome {
    Outcome::completed(&serde_json::json!({"n": 1})).expect("it is JSON")
}

/// A task through its life, by calls.
#[tokio::test]
async fn a_task_goes_through_its_life() {
    let server = TestServer::start().await;
    let client = server.client();
    let created = client.create(NewTask::new("mail", &[1]).unwrap().priority(3)).await.unwrap();
    assert!(!created.is_replayed);
    assert_eq!((created.task.state, created.task.priority), (State::Ready, 3));
    let id = created.task.id;
    assert!(client.finished(&id, Duration::ZERO).await.unwrap().is_none());

    let [task] = client.claim(&Claim::of(["mail"])).await.unwrap().try_into().expect("there is one");
    assert_eq!((&task.id, task.state, task.attempts), (&id, State::Leased, 1));
    let extended = client.extend(&id, &task.lease_token, Some(Duration::from_secs(60))).await.unwrap();
    assert!(extended.lease_ms >= 60_000, "{extended:?}");
    let retry = Outcome::Retry { error: "later".into(), delay: Some(Duration::ZERO) };
    assert_eq!(client.finish(&id, &task.lease_token, retry).await.unwrap(), Settled::Requeued);

    let [task] = client.claim(&Claim::of(["mail"])).await.unwrap().try_into().expect("it is there again");
    assert_eq!((task.attempts, &*task.last_error), (2, "later"));
    assert_eq!(client.release(&id, &task.lease_token).await.unwrap(), Settled::Requeued);
    let [task] = client.claim(&Claim::of(["mail"])).await.unwrap().try_into().expect("it is there again");
    assert_eq!(task.attempts, 2, "what was given back does not count");
    assert_eq!(client.finish(&id, &task.lease_token, done()).await.unwrap(), Settled::Ended);

    let finished = client.finished(&id, Duration::from_secs(10)).await.unwrap().expect("it has ended");
    assert!(finished.result.is_completed());
    assert_eq!(finished.result.result::<serde_json::Value>().unwrap(), serde_json::json!({"n": 1}));
    let late = client.finish(&id, &task.lease_token, done()).await.expect_err("it has ended");
    assert!(late.is(Code::LeaseLost) && late.is_definite(), "{late}");
    let counts = client.queue("mail").await.unwrap();
    assert_eq!((counts.ready, counts.in_progress), (0, 0));
    server.stop().await;
}

/// What is not there, and what is refused, is told by its code.
#[tokio::test]
async fn refusals_have_their_codes() {
    let server = TestServer::start().await;
    let client = server.client();
    assert!(client.task("0198c4a2-0000-7000-8000-000000000000").await.unwrap().is_none());
    let unknown = client.finished("no/such id", Duration::ZERO).await.expect_err("there is none");
    assert!(unknown.is(Code::TaskNotFound), "{unknown}");
    let bad = client.create(NewTask::new("no such name", &1).unwrap()).await.expect_err("it has blanks");
    assert!(bad.is(Code::InvalidCommand) && bad.is_definite(), "{bad}");
    let key = |payload| NewTask::new("mail", &payload).unwrap().idempotency_key("k");
    let first = client.create(key(1)).await.unwrap();
    let again = client.create(key(1)).await.unwrap();
    assert_eq!((again.task.id, again.is_replayed), (first.task.id.clone(), true));
    let other = client.create(key(2)).await.expect_err("the body differs");
    assert!(other.is(Code::IdempotencyConflict), "{other}");
    assert_eq!(other.problem().unwrap().task_id.as_ref(), Some(&first.task.id));
    let cancelled = client.cancel(&first.task.id, "not needed", false).await.unwrap();
    assert_eq!((cancelled.state, &*cancelled.error), (State::Cancelled, "not needed"));
    assert_eq!(client.redrive(&first.task.id).await.unwrap().state, State::Ready);
    server.stop().await;
}

/// More tasks than one call takes, each with an outcome of its own, in order.
#[tokio::test]
async fn many_tasks_are_created_in_the_order_given() {
    let server = TestServer::start().await;
    let client = server.client();
    let tasks = (0..250).map(|number| NewTask::new(if number == 120 { "?" } else { "mail" }, &number).unwrap());
    let results = client.create_all(tasks).await;
    assert_eq!(results.len(), 250);
    for (number, result) in results.iter().enumerate() {
        match result {
            Ok(created) => assert_eq!(created.task.payload::<usize>().unwrap(), number),
            Err(error) => assert!(number == 120 && error.is(Code::InvalidCommand), "{number}: {error}"),
        }
    }
    assert_eq!(client.queue("mail").await.unwrap().ready, 249);
    server.stop().await;
}

/// The answer to a creation is lost, alone and in a batch: it is made again, and there is one task.
#[tokio::test]
async fn a_lost_answer_makes_no_second_task() {
    let server = TestServer::start().await;
    let between = Between::start(&server.url()).await;
    let client = Client::new(&between.url).unwrap();
    between.cut(2);
    let created = client.create(NewTask::new("one", &1).unwrap()).await.unwrap();
    assert_eq!(between.left(), 0);
    assert!(!created.is_replayed, "this call has created it");
    between.cut(1);
    let results = client.create_all((0..10).map(|number| NewTask::new("many", &number).unwrap())).await;
    assert!(results.iter().all(Result::is_ok));
    between.cut(1);
    let producer = client.producer();
    let mut tickets = Vec::new();
    for number in 0..300 {
        tickets.push(producer.send(NewTask::new("stream", &number).unwrap()).await);
    }
    producer.flush().await;
    for ticket in tickets {
        ticket.await.unwrap();
    }
    let direct = server.client();
    for (queue, ready) in [("one", 1), ("many", 10), ("stream", 300)] {
        assert_eq!(direct.queue(queue).await.unwrap().ready, ready, "{queue}");
    }
    server.stop().await;
}

/// The answer to a claim is lost: whether something was claimed is not known, and it is not claimed once more.
#[tokio::test]
async fn a_claim_is_not_made_again_after_a_lost_answer() {
    let server = TestServer::start().await;
    let between = Between::start(&server.url()).await;
    let client = Client::new(&between.url).unwrap();
    client.create(NewTask::new("mail", &1).unwrap()).await.unwrap();
    client.create(NewTask::new("mail", &2).unwrap()).await.unwrap();
    between.cut(1);
    let error = client.claim(&Claim::of(["mail"])).await.expect_err("its answer is lost");
    assert!(matches!(error, Error::Unknown(_)) && !error.is_definite(), "{error}");
    // The server takes back what it could not deliver, or the lease ends; the other task was never touched.
    assert!(server.client().queue("mail").await.unwrap().ready >= 1);
    server.stop().await;
}

/// The answer to a result is lost: the second try is refused, because the first one counted, and the task shows that.
#[tokio::test]
async fn a_result_that_counted_is_known_again() {
    let server = TestServer::start().await;
    let between = Between::start(&server.url()).await;
    let client = Client::new(&between.url).unwrap();
    client.create(NewTask::new("mail", &1).unwrap()).await.unwrap();
    let [task] = client.claim(&Claim::of(["mail"])).await.unwrap().try_into().expect("there is one");
    between.cut(1);
    assert_eq!(client.finish(&task.id, &task.lease_token, done()).await.unwrap(), Settled::Ended);
    assert_eq!(between.left(), 0);
    assert!(client.finished(&task.id, Duration::ZERO).await.unwrap().is_some());
    server.stop().await;
}

/// A server that is not there costs one try; all calls from then on go to the other one.
#[tokio::test]
async fn another_server_is_asked_where_one_is_not_there() {
    let server = TestServer::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    let client = Client::builder([nobody.clone(), server.url()]).patience(Duration::ZERO).build().unwrap();
    assert_eq!(client.endpoint(), nobody);
    client.create(NewTask::new("mail", &1).unwrap()).await.unwrap();
    assert_eq!(client.endpoint(), server.url());
    server.stop().await;

    let error = client.create(NewTask::new("mail", &1).unwrap()).await.expect_err("nobody is there");
    assert!(matches!(error, Error::Unavailable(_)) && error.is_definite(), "{error}");
}

/// What answers is no server of ours: nothing is concluded from its words, and a claim is not made again.
#[tokio::test]
async fn a_stranger_in_between_is_not_believed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stranger = tokio::spawn(async move {
        let mut asked = 0;
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            asked += 1;
            let mut bytes = [0; 4096];
            let _ = stream.read(&mut bytes).await.unwrap();
            let answer = "HTTP/1.1 409 Conflict\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>";
            stream.write_all(answer.as_bytes()).await.unwrap();
            if asked == 2 {
                return;
            }
        }
    });
    let client = Client::builder([url]).patience(Duration::from_millis(500)).build().unwrap();
    let error = client.claim(&Claim::of(["mail"])).await.expect_err("nobody of ours answers");
    assert!(!error.is_definite() && error.to_string().contains("409"), "{error}");
    // A creation is made again, and its end is as unknown.
    let error = client.create(NewTask::new("mail", &1).unwrap()).await.expect_err("nobody of ours answers");
    assert!(!error.is_definite(), "{error}");
    stranger.await.unwrap();
}

/// Goal: whatever the first server that can be reached says is an answer, a refusal too; a socket is a server like another one; nobody else is
/// asked after a request that may have been done.
#[tokio::test]
async fn the_first_answer_counts_whatever_it_says() {
    let server = TestServer::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let client = Client::builder([gone.clone(), server.url()]).build().unwrap();
    let refused = client.first_answer(AnyRequest::get("/v1/codeq/tasks/none")).await.unwrap();
    assert_eq!((refused.status, client.endpoint()), (404, server.url().as_str()));
    let nowhere = Client::builder([gone.clone(), "unix:/there/is/none".into()]).build().unwrap();
    let failed = nowhere.first_answer(AnyRequest::get("/readyz")).await.expect_err("nobody is there");
    let said = failed.to_string();
    assert!(
        matches!(failed, Error::Unavailable(_)) && said.contains(&gone) && said.contains("unix:/there/is/none"),
        "{said}"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let socket = UnixListener::bind(&path).unwrap();
    let seen = tokio::spawn(async move {
        let mut seen = Vec::new();
        for answer in [Some("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno"), None] {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut head = [0; 1024];
            let length = stream.read(&mut head).await.unwrap();
            seen.push(String::from_utf8_lossy(&head[..length]).into_owned());
            stream.write_all(answer.unwrap_or_default().as_bytes()).await.unwrap();
        }
        seen
    });
    let both = Client::builder([format!("unix:{}", path.display()), server.url()]).token("secret").build().unwrap();
    let said = both.first_answer(AnyRequest::get("/readyz").header("x-of", "mine")).await.unwrap();
    assert_eq!((said.status, &*said.body), (503, b"no".as_slice()));
    // The connection is closed when this one has come, without an answer.
    let act = AnyRequest::post("/cluster/leave", "{}", Repeat::IfDefinite).header("connection", "close");
    let lost = both.first_answer(act).await.expect_err("it is closed");
    assert!(matches!(lost, Error::Unknown(_)), "{lost}");
    let seen = seen.await.unwrap();
    assert!(seen[0].contains("authorization: Bearer secret") && seen[0].contains("x-of: mine"), "{}", seen[0]);
    assert!(seen[1].starts_with("POST /cluster/leave HTTP/1.1"), "{}", seen[1]);
    server.stop().await;
}

/// Goal: a body is read piece by piece, and one is sent that is made while it goes.
#[tokio::test]
async fn bodies_come_and_go_in_pieces() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut pieces = client.stream(AnyRequest::get("/openapi.json")).await.unwrap();
    let mut body = Vec::new();
    while let Some(piece) = pieces.next(Duration::from_secs(10)).await.unwrap() {
        body.extend_from_slice(&piece);
    }
    assert_eq!(
        (pieces.status, body),
        (200, client.send(AnyRequest::get("/openapi.json")).await.unwrap().body.to_vec())
    );
    let refused = client.stream(AnyRequest::get("/nowhere")).await.unwrap();
    assert_eq!(refused.status, 404);
    let refused = refused.whole().await.unwrap().json::<serde_json::Value>().unwrap();
    assert_eq!(refused["code"], "route_not_found");
    let sent = Full::new(Bytes::from_static(b"no backup"));
    let refused = client.upload(AnyRequest::put("/cluster/snapshot?confirm=none"), sent).await.unwrap();
    assert!((400..500).contains(&refused.status), "{}", refused.status);
    server.stop().await;
}
