//! A decision for unit tests.

use hush_core::{Decision, DecisionReason, UnloadTerms};

use crate::observe::test_model::observed_model;

/// An unload of the model on the server `a/w`, because it is idle, by the policy `a/p`.
pub fn unload_decision(model: &str) -> Decision {
    let model = observed_model("a/w", model);
    Decision::unload(&model, DecisionReason::IdleTimeout, "a/p".to_owned(), UnloadTerms::default())
}
