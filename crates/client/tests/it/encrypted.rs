//! Servers that speak HTTPS: who is trusted, and who is not.

use std::net::SocketAddr;
use std::time::Duration;

use client::{Client, ClientTls, Error, NewTask};
use testserver::TestServer;
use tls::{Authority, ServerTls, Usage, Validity};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

const VALID: Validity = Validity { from: -1, to: 1 };

/// Takes encrypted connections and hands on what comes.
async fn encrypted(server: &str, tls: ServerTls) -> SocketAddr {
    let server: SocketAddr = server.strip_prefix("http://").expect("a URL").parse().expect("an address");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let tls = std::sync::Arc::new(tls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.expect("the server listens");
                // Whoever does not trust it goes away.
                if let Ok(mut client) = tls.accept(stream).await {
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    addr
}

/// A call goes through where the authority vouches for the server's name, and is never sent where it does not.
#[tokio::test]
async fn only_servers_that_are_vouched_for_are_spoken_to() {
    let server = TestServer::start().await;
    let (ours, strangers) = (Authority::new("ours", VALID).unwrap(), Authority::new("strangers", VALID).unwrap());
    let issued = ours.issue(&["127.0.0.1"], Usage::Server, VALID).unwrap();
    let tls = ServerTls::new(issued.certificate.as_bytes(), issued.key.as_bytes(), None).unwrap();
    let addr = encrypted(&server.url(), tls).await;
    let client = |url: String, trusted: &Authority| {
        let tls = ClientTls::new(trusted.own().certificate.as_bytes(), None).unwrap();
        Client::builder([url]).tls(tls).patience(Duration::ZERO).build().unwrap()
    };
    let task = || NewTask::new("mail", &1).unwrap();
    client(format!("https://{addr}"), &ours).create(task()).await.unwrap();
    for refused in [
        client(format!("https://{addr}"), &strangers),
        // The certificate has the address, not the name.
        client(format!("https://localhost:{}", addr.port()), &ours),
    ] {
        let error = refused.create(task()).await.expect_err("nobody vouches for it");
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }
    assert_eq!(server.client().queue("mail").await.unwrap().ready, 1);
    server.stop().await;
}
