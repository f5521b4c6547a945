//! Conditions: what holds, why, and since when. Messages hold no figure that changes all the time.

use std::collections::{BTreeMap, BTreeSet};

use hush_core::{GpuId, GpuPlan, GpuReason, Model, Pressure};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::selecting::selecting;
use super::{FailingServer, Scene, Subject};
use crate::run::Paused;

/// Names in a list; of the others their number is said.
const NAMED: usize = 3;
/// What the API server takes.
const MESSAGE_MAX_CHARS: usize = 1024;

pub const READY: &str = "Ready";
pub const PRESSURE: &str = "Pressure";
pub const CONFLICTED: &str = "Conflicted";
/// Reasons of [`READY`].
pub const INVALID: &str = "Invalid";
pub const PAUSED: &str = "Paused";
/// A reason of [`READY`] and of `Selecting`.
pub(super) const NOTHING_SELECTED: &str = "NothingSelected";

/// Still without generation and date.
pub fn all(scene: &Scene<'_>, subject: &Subject<'_>, selected: &[&Model]) -> Vec<Condition> {
    vec![
        ready(scene, subject, selected),
        selecting(scene, subject, selected),
        pressure(scene, subject, selected),
        conflicted(scene, subject),
    ]
}

/// A condition keeps its date until its status flips; a condition that says the same as before is the same.
pub fn date(now: Timestamp, generation: i64, before: &[Condition], conditions: &mut [Condition]) {
    for condition in conditions {
        let last = before.iter().find(|last| last.type_ == condition.type_ && last.status == condition.status);
        condition.observed_generation = Some(generation);
        condition.last_transition_time = last.map_or_else(|| Time(now), |last| last.last_transition_time.clone());
        if condition.message.chars().count() > MESSAGE_MAX_CHARS {
            condition.message = condition.message.chars().take(MESSAGE_MAX_CHARS - 1).chain(['…']).collect();
        }
    }
}

pub(super) fn condition(kind: &str, status: &str, reason: &str, message: impl Into<String>) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

fn ready(scene: &Scene<'_>, subject: &Subject<'_>, selected: &[&Model]) -> Condition {
    let paused = scene.paused.get(subject.name);
    let policy = match subject.policy {
        Ok(policy) => policy,
        Err(wrong) => return condition(READY, "False", INVALID, invalid(wrong, paused, subject)),
    };
    // What it says in its spec is not in force.
    if let Some(paused) = paused {
        return condition(READY, "False", PAUSED, format!("{paused}; {}", dry_run(scene, subject)));
    }
    if policy.dry_run {
        return condition(READY, "True", "DryRun", dry_run(scene, subject));
    }
    let failing = super::failing(scene, subject);
    if selected.is_empty() && !failing.is_empty() {
        let message = format!("nothing is known of the servers that it selects: {}", reasons(&failing));
        return condition(READY, "Unknown", "ServersNotObserved", message);
    }
    if selected.is_empty() {
        return condition(READY, "True", NOTHING_SELECTED, "no model of a server that answers is selected");
    }
    let stale = |model: &&&Model| model.sample_age > scene.world.stale_after;
    let silent = selected.iter().filter(stale).map(|model| model.key.server.as_str());
    let silent: BTreeSet<&str> = silent.chain(failing.iter().map(|of| of.server.as_str())).collect();
    let why = if failing.is_empty() { String::new() } else { format!(" ({})", reasons(&failing)) };
    if selected.iter().all(|model| stale(&model)) {
        let message = format!("no fresh figures of {}: nothing is done{why}", some(silent));
        return condition(READY, "Unknown", "MetricsStale", message);
    }
    if silent.is_empty() {
        condition(READY, "True", "InForce", "in force")
    } else {
        let message = format!("in force, but there are no fresh figures of {}{why}", some(silent));
        condition(READY, "True", "InForce", message)
    }
}

/// Why servers cannot be observed, of the first few.
fn reasons(failing: &[&FailingServer<'_>]) -> String {
    some(failing.iter().map(|of| format!("{}: {}", of.server, of.failure)).collect())
}

/// What holds comes first: what is wrong may be long.
fn invalid(wrong: &str, paused: Option<&Paused>, subject: &Subject<'_>) -> String {
    match (subject.enforced, paused) {
        (Some(enforced), None) => {
            format!("generation {} stays in force; this one is not valid: {wrong}", enforced.generation)
        }
        (Some(enforced), Some(paused)) => {
            format!("generation {} is {paused}; this one is not valid: {wrong}", enforced.generation)
        }
        (None, _) => format!("nothing is in force, no generation was valid so far: {wrong}"),
    }
}

fn dry_run(scene: &Scene<'_>, subject: &Subject<'_>) -> String {
    let name = subject.name.to_string();
    let ours = scene.plan.decisions.iter().filter(|decision| decision.dry_run && decision.policy == name);
    let would: BTreeSet<String> =
        ours.map(|d| format!("{} {} {} ({})", d.action, d.server, d.model, d.reason)).collect();
    if would.is_empty() {
        "changes nothing, and would change nothing now".to_owned()
    } else {
        format!("changes nothing; would now: {}", some(would))
    }
}

fn pressure(scene: &Scene<'_>, subject: &Subject<'_>, selected: &[&Model]) -> Condition {
    if subject.enforced.is_none() {
        return condition(PRESSURE, "Unknown", INVALID, "the policy is not valid");
    }
    let cards: BTreeSet<&GpuId> = selected.iter().filter_map(|model| model.gpu.as_ref()).collect();
    let plans: Vec<&GpuPlan> = scene.plan.gpus.iter().filter(|plan| cards.contains(&plan.uuid)).collect();
    let with = |test: fn(&GpuPlan) -> bool| -> BTreeSet<String> {
        plans.iter().filter(|plan| test(plan)).map(|plan| format!("{} on {}", plan.uuid, plan.node)).collect()
    };
    let foreign = with(|plan| plan.reason == Some(GpuReason::ForeignPressure));
    let hard = with(|plan| plan.pressure == Pressure::Hard);
    let soft = with(|plan| plan.pressure == Pressure::Soft);
    let disputed = with(|plan| plan.reason == Some(GpuReason::ReportsDisagree));
    let unknown = with(|plan| plan.pressure == Pressure::Unknown);
    if !foreign.is_empty() {
        let message = format!(
            "all models that are governed together are not enough for {}: others hold the memory",
            some(foreign)
        );
        condition(PRESSURE, "True", "ForeignPressure", message)
    } else if !hard.is_empty() {
        condition(PRESSURE, "True", "HardPressure", format!("memory is very short on {}", some(hard)))
    } else if !soft.is_empty() {
        condition(PRESSURE, "True", "SoftPressure", format!("memory is short on {}", some(soft)))
    } else if !disputed.is_empty() {
        let message = format!("the servers of {} do not agree on its memory: nothing is decided by it", some(disputed));
        condition(PRESSURE, "Unknown", "ReportsDisagree", message)
    } else if !unknown.is_empty() {
        condition(PRESSURE, "Unknown", "MetricsStale", format!("no fresh figures of {}", some(unknown)))
    } else {
        condition(PRESSURE, "False", "NoPressure", "no card of the selected models is short of memory")
    }
}

fn conflicted(scene: &Scene<'_>, subject: &Subject<'_>) -> Condition {
    let mut fields: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for conflict in scene.conflicts.iter().filter(|conflict| conflict.policy == *subject.name) {
        fields.entry(conflict.stricter.to_string()).or_default().insert(conflict.field);
    }
    if fields.is_empty() {
        return condition(CONFLICTED, "False", "NoConflict", "no other policy is stricter");
    }
    let line = |(by, fields): (String, BTreeSet<&str>)| {
        let fields: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
        format!("{} of `{by}`", fields.join(", "))
    };
    let lines: Vec<String> = fields.into_iter().map(line).collect();
    let message = format!("for some models a stricter value holds: {}", lines.join("; "));
    condition(CONFLICTED, "True", "StricterPolicy", message)
}

/// The first few, and how many more there are.
pub(super) fn some<T: AsRef<str>>(names: BTreeSet<T>) -> String {
    let shown: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(NAMED);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
