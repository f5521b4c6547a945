//! The machine of one model, as a whole: its rules one by one, and random histories.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod actions;
mod effects;
mod histories;
mod rules;
mod world;
