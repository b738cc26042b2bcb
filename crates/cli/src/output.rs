//! What the command line prints: data to standard output, everything else to standard error.

use std::io::Write;

/// What was asked for.
pub(crate) fn data(text: &str) {
    // Whoever has read enough closes the pipe, which is not a fault.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What another program says meanwhile, as it says it.
pub(crate) fn pass(bytes: &[u8]) {
    // There is no better place to complain.
    let _ = std::io::stderr().write_all(bytes);
}

/// How far something is, on one line of a terminal that each call writes anew; an empty text leaves it clean.
pub(crate) fn progress(text: &str) {
    // There is no better place to complain.
    let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
}

/// What happens meanwhile.
pub(crate) fn note(text: &str) {
    // There is no better place to complain.
    let _ = writeln!(std::io::stderr(), "{text}");
}
