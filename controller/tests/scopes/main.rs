//! Controllers for the cluster, for a node and for one server: the same world gives the same plan in each, and several
//! controllers of a narrow scope, without one of a wider scope, do together what one of the wide scope does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod recorded;
mod shared_gpu;
mod slow;
mod together;
