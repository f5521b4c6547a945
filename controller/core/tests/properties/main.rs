//! What must hold in every world: properties of one step, of many steps, and of the merge of policies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod merge;
mod one_step;
mod over_time;
mod residency;
mod rule_explanation;
mod schedules;
mod support;
