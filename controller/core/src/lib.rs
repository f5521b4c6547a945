//! The decisions of the controller as a pure function: [`step`] takes what it remembers of earlier steps, the time, the
//! observed world and the policies, and gives a [`Plan`]. It has no clock, no network and no cluster; it computes with
//! integers only, and every order is total, so that the same input gives the same plan on every machine and in every
//! scope.
//!
//! ```text
//! policies --select, merge--> rules of each model --+
//! world ------------------------------------------- +--> per GPU: budget, idle, pressure, room, warm windows --> plan
//! memory: pressure timers, commands under way ------+
//! ```
//! `rules` has one file per rule; `docs/policies.md` has them in words.
//!
//! # Layers
//! A module uses modules of the layers above its own, and no others. A test compares this list with the sources.
//!
//! ```text
//! values:   amount duration_text residency time
//! observed: world
//! inputs:   selector warm_window
//! fields:   policy_fields
//! policies: policy
//! outputs:  plan
//! merge:    merge
//! state:    adaptive command_log pressure_timers
//! memory:   memory model_table rule_explanation
//! models:   budget_ledger conflict min_loaded rank
//! gpu:      gpu_context
//! context:  step_context
//! rules:    rules
//! explain:  explain
//! evaluate: evaluate
//! compare:  dry_run namespaces
//! step:     step
//! ```

pub mod adaptive;
mod amount;
mod budget_ledger;
mod command_log;
mod conflict;
mod dry_run;
mod duration_text;
mod evaluate;
mod explain;
mod gpu_context;
#[cfg(test)]
mod layers;
mod memory;
mod merge;
mod min_loaded;
mod model_table;
mod namespaces;
mod plan;
mod policy;
mod policy_fields;
mod pressure_timers;
mod rank;
mod residency;
mod rule_explanation;
mod rules;
mod selector;
mod step;
mod step_context;
mod time;
mod warm_window;
mod world;

pub use amount::MemoryAmount;
pub use command_log::CommandOutcome;
pub use conflict::{PolicyConflict, conflicts};
pub use duration_text::format_duration;
pub use memory::StepMemory;
pub use merge::{ResidencyNow, residency_at};
pub use plan::{
    Action, Decision, DecisionReason, GpuPlan, GpuReason, ModelPlan, Plan, PressureLevel, PressureThreshold, RuleSet,
    Skip, SkipReason, SourcedValue, UnloadTerms,
};
pub use policy::{ModelPolicy, PolicyKey};
pub use policy_fields::{
    FieldValue, MergedSpec, ModelRules, POLICY_FIELDS, PickedValue, PolicyField, PolicySpec, WrittenKind, WrittenValue,
};
pub use pressure_timers::PressureMemory;
pub use residency::{PolicyResidency, PolicyUnload, ProcessEnding};
pub use rule_explanation::{FieldExplanation, MatchingPolicy, RequestedValue, RuleExplanation, explain_rules};
pub use selector::{Glob, Selector, SelectorExpression, SelectorOperator};
pub use step::step;
pub use time::{elapsed, sampled_at};
pub use warm_window::{WarmWindow, WarmWindowError};
pub use world::{
    ArrivalHistogram, GpuId, Labels, ModelKey, ModelSample, ObservedGpu, ObservedModel, ResidencyState, ServerName,
    World,
};
