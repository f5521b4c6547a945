//! The double of the CUDA runtime itself, and real processes on it. Without it (`make cuda-double`) the tests say that they
//! are skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod api;
mod copies;
mod devices;
mod faults;
mod graphs;
mod memory;
mod speech;
