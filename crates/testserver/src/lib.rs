//! A whole codeq server inside a test: the real one, in memory, on a free port, whose time can be moved on.
//!
//! ```
//! use std::time::Duration;
//!
//! use client::{Claim, NewTask};
//! use testserver::TestServer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), client::Error> {
//! let server = TestServer::start().await;
//! let client = server.client();
//! client.create(NewTask::new("mail", "hello")?.delay(Duration::from_secs(3600))).await?;
//! assert!(client.claim(&Claim::of(["mail"])).await?.is_empty());
//!
//! server.advance(Duration::from_secs(3600)).await;
//! assert_eq!(client.claim(&Claim::of(["mail"])).await?.len(), 1);
//! server.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Time goes on by itself as well, as the machine's does. Programs under test have clocks of their own: a worker's leases, for one, are
//! kept by the time of the test's runtime. Nothing stays of a server that has gone.

use std::time::Duration;

use base::Millis;
use client::Client;
use server::config::Inputs;
use server::config::table::setting;
use server::{Clock, Server};

/// A server that runs inside this process, for this test alone. Whoever asks it needs no token.
pub struct TestServer {
    server: Server,
    clock: Clock,
}

impl TestServer {
    /// Starts one and waits until it takes tasks. Needs a runtime of tokio.
    ///
    /// # Panics
    /// This machine gives no port or thread.
    pub async fn start() -> TestServer {
        TestServer::with(&[]).await
    }

    /// Starts one with these settings, by their names: `("queue.lease.default", "5s")`. What is not named is as a server has it, but for the
    /// data, which is in memory.
    ///
    /// # Panics
    /// A setting is not known or refused, or this machine gives no port or thread.
    pub async fn with(settings: &[(&str, &str)]) -> TestServer {
        let own = [("storage.provider", "memory"), ("http.addr", "127.0.0.1:0"), ("http.threads", "1")];
        let is_given = |name: &str| settings.iter().any(|(given, _)| *given == name);
        let own = own.into_iter().filter(|(name, _)| !is_given(name));
        let flags = own.chain(settings.iter().copied()).map(|(name, value)| {
            let setting = setting(name).unwrap_or_else(|| panic!("no setting is called {name}"));
            (setting.flag(), value.to_owned())
        });
        let inputs = Inputs { flags: flags.collect(), environment: Vec::new() };
        let configuration = inputs.read().configuration();
        let settings = configuration.unwrap_or_else(|refused| panic!("the settings are refused: {refused}")).settings;
        let clock = settings.node.clock.clone();
        let server = Server::start(settings).unwrap_or_else(|exit| panic!("the server does not start: {exit}"));
        server.node().ready().await;
        TestServer { server, clock }
    }

    /// Where it listens: `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr())
    }

    /// Somebody to ask it.
    pub fn client(&self) -> Client {
        Client::new(&self.url()).expect("its own URL can be used")
    }

    /// Moves time on. What that makes due has happened when this returns: delays and leases have ended.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn advance(&self, by: Duration) {
        self.clock.advance(Millis(by.as_millis() as u64));
        let client = self.client();
        // The first answer is of a turn of the server's loop that began with the new time, or of the one before; by the end of a later turn
        // what is due is in the log, and by the end of the next one it is applied.
        for _ in 0..4 {
            client.queue("none").await.expect("the server answers");
        }
    }

    /// Stops it. Without this its threads go on until the process ends.
    ///
    /// # Panics
    /// It has failed.
    pub async fn stop(self) {
        self.server.stop().await.unwrap_or_else(|exit| panic!("the server failed: {exit}"));
    }
}
