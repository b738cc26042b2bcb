//! What can stand between a client and a server: a connection that breaks after the server has done what it was asked to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

/// Hands on what comes, and keeps back as many answers as it is told to: then the connection ends instead.
pub(crate) struct Between {
    pub(crate) url: String,
    cuts: Arc<AtomicUsize>,
}

impl Between {
    pub(crate) async fn start(server: &str) -> Between {
        let server: SocketAddr = server.strip_prefix("http://").expect("a URL").parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let cuts = Arc::new(AtomicUsize::new(0));
        let told = cuts.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.expect("the server listens");
                tokio::spawn(hand_on(client, server, told.clone()));
            }
        });
        Between { url, cuts }
    }

    /// Keeps back the next answers.
    pub(crate) fn cut(&self, answers: usize) {
        self.cuts.store(answers, Ordering::SeqCst);
    }

    /// How many answers are still to be kept back.
    pub(crate) fn left(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

async fn hand_on(client: TcpStream, server: TcpStream, cuts: Arc<AtomicUsize>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async { copy(&mut from_client, &mut to_server).await };
    let back = async {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
            let is_cut = cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            if is_cut || to_client.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = there => {}
        () = back => {}
    }
}
