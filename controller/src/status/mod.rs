//! Computes the status of a policy from what the last step saw. Pure: time is an argument, and nothing is written.

mod actions;
mod conditions;
mod selecting;

pub use conditions::{INVALID, PAUSED, READY};

use std::collections::{BTreeMap, BTreeSet};

use hush_core::{Labels, ModelPolicy, ObservedModel, Plan, PolicyConflict, PolicyKey, ServerName, World};
use hush_crds::PolicyStatus;
use jiff::Timestamp;

use crate::act::CommandRecord;
use crate::cluster::EnforcedPolicy;
use crate::control_loop::PausedPolicy;
use crate::observe::{ServerAppProblem, Targets};

/// The input that is the same for all policies.
#[derive(Clone, Copy, Debug)]
pub struct StatusContext<'a> {
    pub world: &'a World,
    pub plan: &'a Plan,
    /// Commands that have ended, oldest first.
    pub records: &'a [CommandRecord],
    pub conflicts: &'a BTreeSet<PolicyConflict>,
    /// All servers, whether they answer or not.
    pub targets: &'a Targets,
    /// Servers that could not be observed several times in a row.
    pub failing: &'a [FailingServer<'a>],
    /// Problems of the apps that sidecars govern.
    pub app_problems: &'a [ServerAppProblem],
    pub paused: &'a BTreeMap<PolicyKey, PausedPolicy>,
}

/// A server that cannot be observed.
#[derive(Clone, Copy, Debug)]
pub struct FailingServer<'a> {
    pub server: &'a ServerName,
    pub labels: &'a Labels,
    pub failure: &'a str,
}

/// The policy whose status is computed.
#[derive(Clone, Copy, Debug)]
pub struct StatusSubject<'a> {
    pub name: &'a PolicyKey,
    pub generation: i64,
    /// `Err`: what is wrong with it.
    pub policy: Result<&'a ModelPolicy, &'a str>,
    /// The generation that is enforced. Where the policy is not valid, it is an earlier one.
    pub enforced: Option<&'a EnforcedPolicy>,
    pub before: &'a PolicyStatus,
}

/// The status that the policy should have. It equals `before` when nothing but time has passed.
pub fn status(now: Timestamp, context: &StatusContext<'_>, subject: &StatusSubject<'_>) -> PolicyStatus {
    let selected = selected_models(context, subject);
    let loaded = selected.iter().filter(|model| model.sample.state.is_loaded()).count();

    let mut conditions = conditions::all(context, subject, &selected);
    let conditions_before = subject.before.conditions.as_deref().unwrap_or_default();
    conditions::set_transition_times(now, subject.generation, conditions_before, &mut conditions);

    let enforced_generation = subject.enforced.map(|enforced| enforced.generation);
    let enforced_spec = subject.enforced.map(|enforced| enforced.spec.clone());
    PolicyStatus {
        observed_generation: Some(subject.generation),
        enforced_generation: enforced_generation.or(subject.before.enforced_generation),
        enforced_spec: enforced_spec.or(subject.before.enforced_spec.clone()),
        conditions: Some(conditions),
        matched: Some(saturating_i32(selected.len())),
        loaded: Some(saturating_i32(loaded)),
        last_actions: actions::newest(context.records, subject.name, subject.before.last_actions.as_deref()),
    }
}

fn selected_models<'a>(context: &StatusContext<'a>, subject: &StatusSubject<'_>) -> Vec<&'a ObservedModel> {
    let Some(EnforcedPolicy { policy, .. }) = subject.enforced else { return Vec::new() };

    let no_labels = Labels::new();
    let is_selected = |model: &&ObservedModel| {
        let labels = context.world.namespaces.get(model.key.server.namespace()).unwrap_or(&no_labels);
        policy.selects(model, labels)
    };
    context.world.models.iter().filter(is_selected).collect()
}

/// The servers that cannot be observed and that the policy selects.
fn selected_failing<'a>(context: &StatusContext<'a>, subject: &StatusSubject<'_>) -> Vec<&'a FailingServer<'a>> {
    let Some(EnforcedPolicy { policy, .. }) = subject.enforced else { return Vec::new() };

    let no_labels = Labels::new();
    let is_selected = |failing: &&FailingServer<'_>| {
        let labels = context.world.namespaces.get(failing.server.namespace()).unwrap_or(&no_labels);
        policy.selects_server(failing.server, failing.labels, labels)
    };
    context.failing.iter().filter(is_selected).collect()
}

fn saturating_i32(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
