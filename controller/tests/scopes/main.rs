//! Controllers for the cluster, for a node and for one server: the same world gives the same plan in each, and several
//! narrow ones with nobody above them do together what one wide one does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod card;
mod recorded;
mod slow;
mod together;
