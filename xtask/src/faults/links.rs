//! Connections between nodes that can be cut: a proxy in front of each node's peer port.
//!
//! Nodes are told the proxies' addresses. Whoever dials introduces itself first, and its own name is the first name that it sends: so a proxy
//! knows whose connection it has, and every way from one node to another can be treated by itself. A connection that A has opened to B carries
//! bytes of the way from A to B, and answers on the way from B to A; the connection that B has opened to A carries both as well.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use anyhow::Result;

use crate::faults::cluster::{NAMES, NODES};

/// What happens to bytes on their way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They pass.
    Open,
    /// They arrive later by this, up to twice this.
    Delayed(Duration),
    /// They wait until the way is another one, as they do when packets are lost.
    Held,
    /// Connections end, and new ones too.
    Closed,
}

/// The proxies.
pub(crate) struct Links(Arc<Ways>);

struct Ways {
    /// By node that sends and node that receives.
    ways: Mutex<[[Way; NODES]; NODES]>,
    changed: Condvar,
}

/// Bytes that are read together.
const PART_BYTES: usize = 64 << 10;

/// A thread that waits for bytes looks this often whether its way is still open.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Bytes within which a name must come.
const INTRODUCTION_BYTES_MAX: usize = 4 << 10;

impl Links {
    /// Starts a proxy for each pair of an address to listen on and one to connect to.
    ///
    /// # Errors
    /// One cannot be listened on.
    pub(crate) fn start(nodes: &[(SocketAddr, SocketAddr)]) -> Result<Links> {
        let ways = Arc::new(Ways { ways: Mutex::new([[Way::Open; NODES]; NODES]), changed: Condvar::new() });
        for (to, (reach, raft)) in nodes.iter().enumerate() {
            let (listener, raft, ways) = (TcpListener::bind(reach)?, *raft, ways.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let ways = ways.clone();
                    // An error ends this connection, which is all that there is to do about it.
                    std::thread::spawn(move || drop(ways.carry(stream, raft, to)));
                }
            });
        }
        Ok(Links(ways))
    }

    /// Sets what happens from one node to another.
    pub(crate) fn set(&self, from: usize, to: usize, way: Way) {
        self.0.ways.lock().expect(FREE)[from][to] = way;
        self.0.changed.notify_all();
    }

    /// Sets what happens between a node and all others, both ways.
    pub(crate) fn set_around(&self, place: usize, way: Way) {
        for other in (0..NODES).filter(|other| *other != place) {
            self.set(place, other, way);
            self.set(other, place, way);
        }
    }

    /// Sets what happens between all nodes.
    pub(crate) fn set_all(&self, way: Way) {
        (0..NODES).for_each(|place| self.set_around(place, way));
    }
}

const FREE: &str = "nothing panics while it holds this lock";

impl Ways {
    /// The way from one node to another, once it is not held.
    fn passable(&self, from: usize, to: usize) -> io::Result<Way> {
        let ways = self.ways.lock().expect(FREE);
        let ways = self.changed.wait_while(ways, |ways| ways[from][to] == Way::Held).expect(FREE);
        match ways[from][to] {
            Way::Closed => Err(io::ErrorKind::ConnectionAborted.into()),
            way => Ok(way),
        }
    }

    fn carry(self: Arc<Self>, mut near: TcpStream, raft: SocketAddr, to: usize) -> io::Result<()> {
        let (from, introduction) = introduction(&mut near)?;
        self.passable(from, to)?;
        let mut far = TcpStream::connect(raft)?;
        for stream in [&near, &far] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LOOK_EVERY))?;
            stream.set_write_timeout(Some(LOOK_EVERY))?;
        }
        let (mut back_from, mut back_to) = (far.try_clone()?, near.try_clone()?);
        let ways = self.clone();
        std::thread::spawn(move || ways.pump(&mut back_from, &mut back_to, Vec::new(), [to, from]));
        self.pump(&mut near, &mut far, introduction, [from, to]);
        Ok(())
    }

    /// Carries bytes one way until one side has had enough, and passes that on.
    fn pump(&self, source: &mut TcpStream, sink: &mut TcpStream, first: Vec<u8>, way: [usize; 2]) {
        let how = match self.pump_all(source, sink, first, way) {
            Ok(()) => Shutdown::Write,
            Err(_) => Shutdown::Both,
        };
        // Either side may have gone already.
        let _ = sink.shutdown(how);
        if how == Shutdown::Both {
            let _ = source.shutdown(how);
        }
    }

    fn pump_all(
        &self,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        first: Vec<u8>,
        [from, to]: [usize; 2],
    ) -> io::Result<()> {
        let mut part = first;
        loop {
            let mut rest = part.as_slice();
            while !rest.is_empty() {
                self.passable(from, to)?;
                match sink.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if is_time(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            part.resize(PART_BYTES, 0);
            let read = loop {
                self.passable(from, to)?;
                match source.read(&mut part) {
                    Ok(read) => break read,
                    Err(error) if is_time(&error) => {}
                    Err(error) => return Err(error),
                }
            };
            part.truncate(read);
            // Also the end comes no sooner than bytes would.
            if let Way::Delayed(delay) = self.passable(from, to)? {
                std::thread::sleep(delay);
            }
            if read == 0 {
                return Ok(());
            }
        }
    }
}

/// Reads until the dialler has said its name. Returns which node it is, and what it has said.
fn introduction(stream: &mut TcpStream) -> io::Result<(usize, Vec<u8>)> {
    let mut said = Vec::new();
    let mut part = [0; 512];
    while said.len() < INTRODUCTION_BYTES_MAX {
        let read = stream.read(&mut part)?;
        if read == 0 {
            break;
        }
        said.extend_from_slice(&part[..read]);
        if let Some(from) = first_name(&said) {
            return Ok((from, said));
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The node whose name comes first.
fn first_name(said: &[u8]) -> Option<usize> {
    let places = NAMES.iter().enumerate().filter_map(|(place, name)| {
        let found = said.windows(name.len()).position(|window| window == name.as_bytes())?;
        Some((found, place))
    });
    places.min().map(|(_, place)| place)
}

fn is_time(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: who dials is known by the first name, also if others follow.
    #[test]
    fn the_first_name_is_the_diallers() {
        assert_eq!(first_name(b"codeqpeer..node-two..node-one,node-two,node-three"), Some(1));
        assert_eq!(first_name(b"node-thre"), None);
        assert_eq!(first_name(b""), None);
    }

    /// Goal: bytes pass an open way, wait on a held one, arrive when it is open again, and a closed way ends the connection. The node behind
    /// the proxy is an echo.
    #[test]
    fn bytes_pass_wait_and_end() {
        let echo = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let raft = echo.local_addr().expect("it has an address");
        std::thread::spawn(move || {
            for mut stream in echo.incoming().flatten() {
                let mut back = stream.try_clone().expect("a socket");
                std::thread::spawn(move || io::copy(&mut stream, &mut back));
            }
        });
        // A port that was free a moment ago, on an address that nobody else uses.
        let reach: SocketAddr = {
            let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
            free.local_addr().expect("it has an address")
        };
        let links = Links::start(&[(reach, raft)]).expect("it listens");
        let mut stream = TcpStream::connect(reach).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("it can be set");
        let mut say = |text: &str, count: usize| {
            stream.write_all(text.as_bytes()).expect("it is taken");
            let mut bytes = vec![0; count];
            stream.read_exact(&mut bytes).map(|()| bytes)
        };
        assert_eq!(say("node-two", 8).expect("it passes"), b"node-two");
        links.set(1, 0, Way::Held);
        assert!(is_time(&say("x", 1).expect_err("it waits")));
        links.set(1, 0, Way::Open);
        assert_eq!(say("y", 2).expect("both pass"), b"xy");
        links.set(0, 1, Way::Closed);
        assert!(!is_time(&say("z", 1).expect_err("it ends")));
    }
}
