//! A whole cluster in one thread, from one seed: real queue, consensus, replica and log over a simulated disk, network and clock.
//!
//! Reading order: [`options`] says what a seed draws, [`world`] lets things happen, [`process`] is one node and [`edge`] with [`lists`] its
//! face to [`clients`], and carries out operations on many tasks;  [`network`], [`disk`], [`checkpoint`] and [`clock`] stand in for what is outside; [`faults`] does harm; [`invariants`] looks
//! after every step, [`record`] writes down what clients saw, [`run`] puts a run together and [`export`] has it judged; [`restores`] comes
//! behind that; [`script`] plays scenarios; [`shrink`] makes a
//! failing run smaller, and [`regressions`] keeps those that found something.

mod bulk;
pub mod checkpoint;
pub mod clients;
pub mod clock;
pub mod disk;
pub mod edge;
pub mod export;
pub mod faults;
pub mod invariants;
pub mod lists;
pub mod network;
pub mod options;
pub mod process;
pub mod record;
pub mod regressions;
pub mod restores;
pub mod run;
pub mod script;
pub mod shrink;
pub mod world;

/// Lets this thread's clusters have a bug on purpose; 0: none. Without effect in a build that is not for that.
pub fn plant(bug: u64) {
    base::planted::plant(bug);
}
