//! The proxy between raw clients and raw apps, both with bad manners.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod adversarial;
mod answers;
mod app;
mod app_metrics;
mod bodies;
mod client;
mod fixture;
mod hostile;
mod lists;
mod sockets;
mod stalled_clients;
mod tls;
mod visits;
mod waiting;
