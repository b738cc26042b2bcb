//! A web service that has its work done by workers, and waits for them: Markdown in, HTML out.
//!
//! `POST /documents` makes a task of the body and waits for its result for a while: mostly that is the page, 200. If it takes longer, the caller
//! gets 202 and the place where the page will be, `GET /documents/{id}`, and asks there. The service keeps nothing: it may be killed, or run
//! many times, and whoever made a request twice, with the same header `Idempotency-Key`, gets the same page.

use std::convert::Infallible;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use client::{Client, Failure, Job, NewTask, ResultRecord};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// The queue.
const QUEUE: &str = "render";
/// Longest document in bytes: as JSON it still is a payload that a server takes.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;

#[derive(Parser)]
#[command(about = "Markdown in, HTML out")]
struct Arguments {
    /// The servers, with commas between them.
    #[arg(long, env = "CODEQ_ENDPOINTS", default_value = "http://127.0.0.1:8080", value_delimiter = ',')]
    endpoints: Vec<String>,
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Takes documents over HTTP.
    Serve {
        #[arg(long, default_value = "127.0.0.1:8000")]
        listen: SocketAddr,
        /// How long a caller waits for the page, in milliseconds.
        #[arg(long, default_value_t = 5000)]
        wait_ms: u64,
    },
    /// Renders them, until it is asked to stop.
    Work {
        /// Documents at one time.
        #[arg(long, default_value_t = 4)]
        slots: usize,
    },
}

/// What a task says.
#[derive(Serialize, Deserialize)]
struct Document {
    markdown: String,
}

/// What its result says.
#[derive(Serialize, Deserialize)]
struct Page {
    html: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { endpoints, part } = Arguments::parse();
    let client = Client::builder(endpoints).build()?;
    match part {
        Part::Serve { listen, wait_ms } => serve(client, listen, Duration::from_millis(wait_ms)).await,
        Part::Work { slots } => {
            let worker = client.worker().slots(slots).handle(QUEUE, |document: Document, _: Job| async move {
                let mut html = String::new();
                pulldown_cmark::html::push_html(&mut html, pulldown_cmark::Parser::new(&document.markdown));
                Ok::<_, Failure>(Page { html })
            });
            // Without signals it works for ever.
            worker.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
            Ok(())
        }
    }
}

async fn serve(client: Client, listen: SocketAddr, wait: Duration) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(listen).await?;
    writeln!(std::io::stdout(), "listening on http://{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let client = client.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let client = client.clone();
                async move { Ok::<_, Infallible>(answer(&client, request, wait).await) }
            });
            // A caller that goes away ends its connection; there is nobody to tell.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(client: &Client, request: Request<Incoming>, wait: Duration) -> Answer {
    let path = request.uri().path().to_owned();
    let done = match (request.method(), path.strip_prefix("/documents/")) {
        (&Method::POST, None) if path == "/documents" => submit(client, request, wait).await,
        (&Method::GET, Some(id)) => look(client, id, Duration::ZERO).await,
        _ => Ok(text(404, "there is POST /documents, and GET /documents/{id}")),
    };
    done.unwrap_or_else(|error| refused(&error))
}

async fn submit(client: &Client, request: Request<Incoming>, wait: Duration) -> Result<Answer, client::Error> {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let body = match Limited::new(request.into_body(), DOCUMENT_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(why) if why.is::<LengthLimitError>() => return Ok(text(413, "the document is too long")),
        Err(_) => return Ok(text(400, "the document breaks off")),
    };
    let Ok(markdown) = String::from_utf8(body.to_vec()) else { return Ok(text(400, "the document is not text")) };
    let mut task = NewTask::new(QUEUE, &Document { markdown })?;
    if let Some(key) = key {
        task = task.idempotency_key(&key);
    }
    let id = client.create(task).await?.task.id;
    look(client, &id, wait).await
}

/// The page, if it is there in time; else where it will be.
async fn look(client: &Client, id: &str, wait: Duration) -> Result<Answer, client::Error> {
    Ok(match client.finished(id, wait).await? {
        None => {
            let mut later = text(202, "not rendered yet");
            let place = format!("/documents/{id}").parse().expect("ids are plain text");
            later.headers_mut().insert(LOCATION, place);
            later
        }
        Some(ended) => page(&ended.result),
    })
}

fn page(record: &ResultRecord) -> Answer {
    match record.result::<Page>() {
        Ok(Page { html }) if record.is_completed() => {
            let mut page = Response::new(html.into());
            page.headers_mut().insert(CONTENT_TYPE, "text/html; charset=utf-8".parse().expect("it is plain text"));
            page
        }
        _ => text(500, &format!("it could not be rendered: {}", record.error)),
    }
}

/// What the queue could not do, as a caller sees it: whether it may be tried again is what matters.
fn refused(error: &client::Error) -> Answer {
    match error {
        client::Error::Refused(problem) if matches!(problem.status, 404 | 409 | 413) => {
            text(problem.status, &problem.detail)
        }
        client::Error::Refused(_) | client::Error::Unusable(_) => text(500, &error.to_string()),
        client::Error::Unavailable(_) => text(503, "try again"),
        client::Error::Unknown(_) => text(504, "it may have been taken: try again with the same Idempotency-Key"),
    }
}

fn text(status: u16, text: &str) -> Answer {
    let answer = Response::builder().status(status).header(CONTENT_TYPE, "text/plain; charset=utf-8");
    answer.body(format!("{text}\n").into()).expect("it is put together here")
}
