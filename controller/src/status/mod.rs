//! What a policy's owner is told, computed from what the last step saw. Pure: time is an argument, nothing is written.

mod actions;
mod conditions;
mod selecting;

pub use conditions::{INVALID, PAUSED, READY};

use std::collections::{BTreeMap, BTreeSet};

use hush_core::{Conflict, Labels, Model, Plan, Policy, PolicyName, ServerName, State, World};
use hush_crds::PolicyStatus;
use jiff::Timestamp;

use crate::act::Record;
use crate::cluster::Enforced;
use crate::observe::Targets;
use crate::run::Paused;

/// What all policies are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub world: &'a World,
    pub plan: &'a Plan,
    /// Commands that have ended, oldest first.
    pub records: &'a [Record],
    pub conflicts: &'a BTreeSet<Conflict>,
    /// Servers, whether they answer or not.
    pub targets: &'a Targets,
    /// Servers that could not be observed several times in a row.
    pub failing: &'a [FailingServer<'a>],
    pub paused: &'a BTreeMap<PolicyName, Paused>,
}

/// A server that cannot be observed.
#[derive(Clone, Copy, Debug)]
pub struct FailingServer<'a> {
    pub server: &'a ServerName,
    pub labels: &'a Labels,
    pub failure: &'a str,
}

/// One policy as it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub name: &'a PolicyName,
    pub generation: i64,
    /// `Err`: what is wrong with it.
    pub policy: Result<&'a Policy, &'a str>,
    /// What holds; another generation than this one where the policy is not valid.
    pub enforced: Option<&'a Enforced>,
    pub before: &'a PolicyStatus,
}

/// What the status should be. It equals `before` when nothing but time has passed.
pub fn status(now: Timestamp, scene: &Scene<'_>, subject: &Subject<'_>) -> PolicyStatus {
    let selected = selected(scene, subject);
    let loaded = selected.iter().filter(|model| matches!(model.state, State::Ready | State::Draining)).count();
    let mut conditions = conditions::all(scene, subject, &selected);
    let before = subject.before.conditions.as_deref().unwrap_or_default();
    conditions::date(now, subject.generation, before, &mut conditions);
    PolicyStatus {
        observed_generation: Some(subject.generation),
        enforced_generation: subject
            .enforced
            .map(|enforced| enforced.generation)
            .or(subject.before.enforced_generation),
        enforced_spec: subject.enforced.map(|enforced| enforced.spec.clone()).or(subject.before.enforced_spec.clone()),
        conditions: Some(conditions),
        matched: Some(count(selected.len())),
        loaded: Some(count(loaded)),
        last_actions: actions::newest(scene.records, subject.name, subject.before.last_actions.as_deref()),
    }
}

fn selected<'a>(scene: &Scene<'a>, subject: &Subject<'_>) -> Vec<&'a Model> {
    let Some(Enforced { policy, .. }) = subject.enforced else { return Vec::new() };
    let nothing = Labels::new();
    let selects = |model: &&Model| {
        let labels = scene.world.namespaces.get(model.key.server.namespace()).unwrap_or(&nothing);
        policy.selects(model, labels)
    };
    scene.world.models.iter().filter(selects).collect()
}

/// Of the servers that cannot be observed those that the policy selects.
fn failing<'a>(scene: &Scene<'a>, subject: &Subject<'_>) -> Vec<&'a FailingServer<'a>> {
    let Some(Enforced { policy, .. }) = subject.enforced else { return Vec::new() };
    let nothing = Labels::new();
    let selects = |failing: &&FailingServer<'_>| {
        let labels = scene.world.namespaces.get(failing.server.namespace()).unwrap_or(&nothing);
        policy.selects_server(failing.server, failing.labels, labels)
    };
    scene.failing.iter().filter(selects).collect()
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
