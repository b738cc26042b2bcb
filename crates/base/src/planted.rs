//! Bugs on purpose, for the simulator to find: its power is measured by them. They exist only in a build with `--cfg planted`; in every other
//! one [`is`] is the constant `false`, and what hangs on it is not compiled. `cargo xtask planted` makes such a build; nothing that is
//! shipped does, which `cargo xtask tidy` checks.
//!
//! docs/internals/simulation.md lists them by number.

#[cfg(planted)]
mod switch {
    use std::cell::Cell;

    thread_local! {
        static BUG: Cell<u64> = const { Cell::new(0) };
        static DRAWN: Cell<u64> = const { Cell::new(0) };
    }

    /// Lets the code that this thread runs have a bug; 0: none.
    pub fn plant(bug: u64) {
        BUG.set(bug);
    }

    /// A number on which no two replicas agree.
    pub fn unsteady() -> u64 {
        DRAWN.set(DRAWN.get() + 1);
        crate::rng::mix(DRAWN.get())
    }

    /// Whether the code has this bug.
    pub fn is(bug: u64) -> bool {
        BUG.get() == bug
    }
}

#[cfg(not(planted))]
mod switch {
    /// No build but one for it has bugs on purpose.
    pub fn plant(_bug: u64) {}

    /// Zero.
    pub const fn unsteady() -> u64 {
        0
    }

    /// False.
    #[inline(always)]
    pub const fn is(_bug: u64) -> bool {
        false
    }
}

pub use switch::{is, plant, unsteady};
