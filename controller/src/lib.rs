//! The controller's shell around `hush-core`: reads policies and worlds, shows plans.

pub mod cli;
pub mod lease;
pub mod policies;
pub mod simulate;
pub mod world;
