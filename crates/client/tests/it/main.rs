//! The client against a real server inside the test, and against what can stand between the two.

mod between;
mod calls;
mod encrypted;
mod worker;
