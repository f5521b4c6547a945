//! The conditions of a policy. Their messages contain no figure that changes all the time.

use std::collections::{BTreeMap, BTreeSet};

use hush_core::{GpuId, GpuPlan, GpuReason, ObservedModel, PolicyUnload, PressureLevel};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::selecting::selecting;
use super::{FailingServer, StatusContext, StatusSubject};
use crate::control_loop::PausedPolicy;
use crate::observe::{AppProblemKind, ServerAppProblem};

/// The number of names in a list; of the remaining ones only the count is shown.
const NAMES_MAX: usize = 3;
/// The longest message that the API server accepts.
const MESSAGE_MAX_CHARS: usize = 1024;

pub const READY: &str = "Ready";
pub const PRESSURE: &str = "Pressure";
pub const CONFLICTED: &str = "Conflicted";
/// A reason of [`READY`].
pub const INVALID: &str = "Invalid";
/// A reason of [`READY`].
pub const PAUSED: &str = "Paused";
/// A reason of [`READY`] and of `Selecting`.
pub(super) const NOTHING_SELECTED: &str = "NothingSelected";

/// All conditions, without generation and transition time: see [`set_transition_times`].
pub fn all(context: &StatusContext<'_>, subject: &StatusSubject<'_>, selected: &[&ObservedModel]) -> Vec<Condition> {
    vec![
        ready(context, subject, selected),
        selecting(context, subject, selected),
        pressure(context, subject, selected),
        conflicted(context, subject),
    ]
}

/// Sets the generation and the transition time of each condition, and limits its message. A condition keeps its transition
/// time until its status changes.
pub fn set_transition_times(now: Timestamp, generation: i64, before: &[Condition], conditions: &mut [Condition]) {
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

fn ready(context: &StatusContext<'_>, subject: &StatusSubject<'_>, selected: &[&ObservedModel]) -> Condition {
    let paused = context.paused.get(subject.name);
    let policy = match subject.policy {
        Ok(policy) => policy,
        Err(problem) => return condition(READY, "False", INVALID, invalid_message(problem, paused, subject)),
    };

    // `False`: what the spec says is not in force.
    if let Some(paused) = paused {
        return condition(READY, "False", PAUSED, format!("{paused}; {}", dry_run_message(context, subject)));
    }
    if policy.dry_run {
        return condition(READY, "True", "DryRun", dry_run_message(context, subject));
    }

    let failing = super::selected_failing(context, subject);
    if selected.is_empty() && !failing.is_empty() {
        let message = format!("nothing is known of the servers that it selects: {}", failures(&failing));
        return condition(READY, "Unknown", "ServersNotObserved", message);
    }
    if selected.is_empty() {
        return condition(READY, "True", NOTHING_SELECTED, "no model of a server that answers is selected");
    }
    in_force(context, subject, selected, &failing)
}

/// The condition of a policy that is in force and selects models.
fn in_force(
    context: &StatusContext<'_>,
    subject: &StatusSubject<'_>,
    selected: &[&ObservedModel],
    failing: &[&FailingServer<'_>],
) -> Condition {
    let is_stale = |model: &&&ObservedModel| model.sample_age > context.world.stale_after;
    let stale = selected.iter().filter(is_stale).map(|model| model.key.server.as_str());
    let silent: BTreeSet<&str> = stale.chain(failing.iter().map(|failing| failing.server.as_str())).collect();
    let failure_note = if failing.is_empty() { String::new() } else { format!(" ({})", failures(failing)) };

    if selected.iter().all(|model| is_stale(&model)) {
        let message = format!("no fresh figures of {}: nothing is done{failure_note}", first_names(silent));
        return condition(READY, "Unknown", "MetricsStale", message);
    }
    let ungoverned = ungoverned_apps(context, selected);
    if silent.is_empty() && !ungoverned.is_empty() {
        let message = format!("in force, but not every app can be governed: {}", first_names(ungoverned));
        return condition(READY, "True", "AppsNotGoverned", message);
    }
    let kept = kept_processes(context, subject, selected);
    if silent.is_empty() && !kept.is_empty() {
        let message = format!("in force, but an unload cannot end every process: {}", first_names(kept));
        return condition(READY, "True", "ProcessUnloadUnavailable", message);
    }
    if silent.is_empty() {
        return condition(READY, "True", "InForce", "in force");
    }
    let message = format!("in force, but there are no fresh figures of {}{failure_note}", first_names(silent));
    condition(READY, "True", "InForce", message)
}

/// The problems of the apps of the selected models.
fn ungoverned_apps(context: &StatusContext<'_>, selected: &[&ObservedModel]) -> BTreeSet<String> {
    app_problems(context, selected, |kind| kind != AppProblemKind::ProcessStays)
}

/// The apps of the selected models whose process this policy asks to end, and no unload can.
fn kept_processes(
    context: &StatusContext<'_>,
    subject: &StatusSubject<'_>,
    selected: &[&ObservedModel],
) -> BTreeSet<String> {
    let asked = subject.enforced.and_then(|enforced| enforced.policy.asks.unload);
    if asked != Some(PolicyUnload::Process) {
        return BTreeSet::new();
    }

    app_problems(context, selected, |kind| kind == AppProblemKind::ProcessStays)
}

fn app_problems(
    context: &StatusContext<'_>,
    selected: &[&ObservedModel],
    is_meant: impl Fn(AppProblemKind) -> bool,
) -> BTreeSet<String> {
    let is_selected = |problem: &&ServerAppProblem| selected.iter().any(|model| model.key.server == problem.server);
    let problems = context.app_problems.iter().filter(is_selected).filter(|problem| is_meant(problem.problem.kind));

    problems.map(ToString::to_string).collect()
}

/// The first few servers and why they cannot be observed.
fn failures(failing: &[&FailingServer<'_>]) -> String {
    first_names(failing.iter().map(|failing| format!("{}: {}", failing.server, failing.failure)).collect())
}

/// What is in force comes first, because the problem may be long.
fn invalid_message(problem: &str, paused: Option<&PausedPolicy>, subject: &StatusSubject<'_>) -> String {
    match (subject.enforced, paused) {
        (Some(enforced), None) => {
            format!("generation {} stays in force; this one is not valid: {problem}", enforced.generation)
        }
        (Some(enforced), Some(paused)) => {
            format!("generation {} is {paused}; this one is not valid: {problem}", enforced.generation)
        }
        (None, _) => format!("nothing is in force, no generation was valid so far: {problem}"),
    }
}

/// What a policy in dry run would do now.
fn dry_run_message(context: &StatusContext<'_>, subject: &StatusSubject<'_>) -> String {
    let name = subject.name.to_string();
    let decisions = context.plan.decisions.iter().filter(|decision| decision.dry_run && decision.policy == name);
    let would_do: BTreeSet<String> =
        decisions.map(|d| format!("{} {} {} ({})", d.action, d.server, d.model, d.reason)).collect();

    if would_do.is_empty() {
        "changes nothing, and would change nothing now".to_owned()
    } else {
        format!("changes nothing; would now: {}", first_names(would_do))
    }
}

fn pressure(context: &StatusContext<'_>, subject: &StatusSubject<'_>, selected: &[&ObservedModel]) -> Condition {
    if subject.enforced.is_none() {
        return condition(PRESSURE, "Unknown", INVALID, "the policy is not valid");
    }

    let gpus: BTreeSet<&GpuId> = selected.iter().filter_map(|model| model.sample.gpu.as_ref()).collect();
    let plans: Vec<&GpuPlan> = context.plan.gpus.iter().filter(|plan| gpus.contains(&plan.uuid)).collect();
    let gpus_with = |test: fn(&GpuPlan) -> bool| -> BTreeSet<String> {
        plans.iter().filter(|plan| test(plan)).map(|plan| format!("{} on {}", plan.uuid, plan.node)).collect()
    };

    let foreign = gpus_with(|plan| plan.reason == Some(GpuReason::ForeignPressure));
    let hard = gpus_with(|plan| plan.pressure == PressureLevel::Hard);
    let soft = gpus_with(|plan| plan.pressure == PressureLevel::Soft);
    let disputed = gpus_with(|plan| plan.reason == Some(GpuReason::ReportsDisagree));
    let unknown = gpus_with(|plan| plan.pressure == PressureLevel::Unknown);

    let (status, reason, message) = if !foreign.is_empty() {
        let gpus = first_names(foreign);
        let message =
            format!("all models that are governed together are not enough for {gpus}: others hold the memory");
        ("True", "ForeignPressure", message)
    } else if !hard.is_empty() {
        ("True", "HardPressure", format!("memory is very short on {}", first_names(hard)))
    } else if !soft.is_empty() {
        ("True", "SoftPressure", format!("memory is short on {}", first_names(soft)))
    } else if !disputed.is_empty() {
        let gpus = first_names(disputed);
        let message = format!("the servers of {gpus} do not agree on its memory: nothing is decided by it");
        ("Unknown", "ReportsDisagree", message)
    } else if !unknown.is_empty() {
        ("Unknown", "MetricsStale", format!("no fresh figures of {}", first_names(unknown)))
    } else {
        ("False", "NoPressure", "no card of the selected models is short of memory".to_owned())
    };
    condition(PRESSURE, status, reason, message)
}

fn conflicted(context: &StatusContext<'_>, subject: &StatusSubject<'_>) -> Condition {
    let mut fields_by_policy: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for conflict in context.conflicts.iter().filter(|conflict| conflict.policy == *subject.name) {
        fields_by_policy.entry(conflict.stricter.to_string()).or_default().insert(conflict.field);
    }
    if fields_by_policy.is_empty() {
        return condition(CONFLICTED, "False", "NoConflict", "no other policy is stricter");
    }

    let line = |(policy, fields): (String, BTreeSet<&str>)| {
        let fields: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
        format!("{} of `{policy}`", fields.join(", "))
    };
    let lines: Vec<String> = fields_by_policy.into_iter().map(line).collect();
    let message = format!("for some models a stricter value holds: {}", lines.join("; "));
    condition(CONFLICTED, "True", "StricterPolicy", message)
}

/// The first few names, and how many more there are.
pub(super) fn first_names<T: AsRef<str>>(names: BTreeSet<T>) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(NAMES_MAX);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
