//! Nodes of this crate on loopback, with real threads, sockets and files.

mod alone;
mod buffered;
mod operate;
mod register;
mod restoring;
mod story;
mod three_nodes;

/// What the nodes log, where the test's output goes.
fn log() {
    // Another test has done it already.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
}
