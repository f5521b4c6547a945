//! Process mode with real processes: apps that start, hang, crash, ignore signals and hide their children.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod fixture;

mod end;
mod ended;
mod first_process;
mod load;
mod loss;
mod restarts;
mod sidecar_killed;
mod start;
