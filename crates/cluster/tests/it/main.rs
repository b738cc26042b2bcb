//! Nodes of this crate on loopback, with real threads, sockets and files.

mod alone;
mod away;
mod buffered;
mod operate;
mod peer_tls;
mod register;
mod restoring;
mod story;
mod three_nodes;
mod tokens;

/// What the nodes log, where the test's output goes, and where [`logged`] finds it.
fn log() {
    // Another test has done it already.
    let _ = tracing_subscriber::fmt().with_ansi(false).with_writer(Log::default).try_init();
}

/// The lines that all nodes of this process have logged so far.
fn logged() -> Vec<String> {
    String::from_utf8_lossy(&LOG.lock().expect("nothing panics while it holds this lock"))
        .lines()
        .map(Into::into)
        .collect()
}

static LOG: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());

/// Told whenever something was logged.
static LOGGED: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// Keeps what is logged, and hands it on.
#[derive(Default)]
struct Log(tracing_subscriber::fmt::TestWriter);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().expect("nothing panics while it holds this lock").extend_from_slice(bytes);
        LOGGED.notify_waiters();
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
