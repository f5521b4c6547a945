//! The decisions of the controller as a pure function: [`step`] takes what is remembered, the time, what was seen and
//! the policies, and gives a [`Plan`]. No clock, no network, no cluster; integers only, and a total order everywhere, so
//! that the same input gives the same plan on every machine and in every scope.
//!
//! ```text
//! policies --select, merge--> rules of each model --+
//! world ------------------------------------------- +--> per GPU: budget, idle, pressure, room, warm windows --> plan
//! memory: pressure timers, unloads under way -------+
//! ```
//! One file per rule; `docs/policies.md` has them in words.

mod account;
pub mod adaptive;
mod amount;
mod budget;
mod card;
mod conflict;
mod explain;
mod fleet;
mod floor;
mod idle;
mod memory;
mod merge;
mod plan;
mod policy;
mod pressure;
mod rank;
mod room;
mod schedule;
mod select;
mod signal;
mod span;
mod step;
mod tenants;
mod warm;
mod world;

pub use account::{Account, Asked, Matching, Setting, Term, account};
pub use amount::Amount;
pub use conflict::{Conflict, conflicts};
pub use explain::{Chosen, ModelPlan, RuleSet};
pub use memory::{Memory, PressureMemory, Settled};
pub use merge::{Merged, Pick, Rules};
pub use plan::{Action, Decision, GpuPlan, GpuReason, Plan, Pressure, Reason, Skip, SkipReason, Threshold};
pub use policy::{Asks, Policy, PolicyName, Residency};
pub use schedule::{Window, WindowError};
pub use select::{Expression, Glob, Operator, Selector};
pub use span::span;
pub use step::step;
pub use world::{Arrivals, Gpu, GpuId, Labels, Model, ModelKey, ServerName, State, World};
