//! Stand-ins for what a node lives on, which lose, tear and damage things on purpose and repeat it for the same seed.

pub mod disk;
