//! The life of a model: the rules of the machine one by one, random histories, and a runner that a program plugs in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod actions;
mod effects;
mod histories;
mod plugged_in;
mod process_unloads;
mod rules;
mod visits;
mod world;
