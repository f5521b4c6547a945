//! Against a real API server: what only it knows. One control plane for all tests, except for those that do harm to it.

mod definitions;
mod governs;
mod harness;
mod lease;
mod policies;
mod review;
