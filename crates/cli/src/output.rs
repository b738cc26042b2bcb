//! What the command line prints: data to standard output, everything else to standard error.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the one place that prints")]

/// What was asked for.
pub(crate) fn data(text: &str) {
    println!("{text}");
}

/// What happens meanwhile.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}
