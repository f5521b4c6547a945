//! What becomes of a model, as a sentence and as a cell of a table.

use jiff::Timestamp;

use super::format::{duration, duration_between, timestamp};
use super::response::DecisionView;
use crate::amount::gib;
use crate::web::view::{ModelStateView, RuleSetView};

/// The rest of a sentence that begins with the model; `at` is the time of the figures.
pub fn outlook(model: &ModelStateView, decision: Option<&DecisionView>, at: Timestamp) -> String {
    if !model.fresh {
        return "the figures are too old to act on: nothing is done with it".to_owned();
    }
    if let Some(decision) = decision {
        return decision_outlook(decision);
    }

    match model.state.as_str() {
        "Ready" => ready_outlook(model, at),
        "Unloaded" => match hold(model, at) {
            Some(hold) => format!("is not loaded and {hold}: no request loads it before"),
            None => "is not loaded; the next request loads it".to_owned(),
        },
        "WaitingForMemory" => match (hold(model, at), model.demand_bytes.filter(|bytes| *bytes > 0)) {
            (Some(hold), _) => format!("is asked for and {hold}: its requests wait"),
            (None, Some(bytes)) => format!("waits for {} of memory", gib(bytes)),
            (None, None) => "waits for memory".to_owned(),
        },
        "Loading" => "is being loaded".to_owned(),
        "Draining" | "Unloading" => "is leaving".to_owned(),
        "Failed" => "could not be loaded; its server tries again, and its log contains the cause".to_owned(),
        state => format!("is {state}"),
    }
}

fn decision_outlook(decision: &DecisionView) -> String {
    let by = if decision.policy.is_empty() { String::new() } else { format!(", by {}", decision.policy) };
    let action = decision.action.to_lowercase();

    if decision.dry_run {
        format!("would be told to {action} now ({}{by}), but this is a dry run", decision.reason)
    } else {
        format!("is told to {action} now ({}{by})", decision.reason)
    }
}

/// Says how long the model is held; `None`: no hold is in force.
fn hold(model: &ModelStateView, at: Timestamp) -> Option<String> {
    let until = model.held_until?.0;
    (until > at).then(|| format!("is held for {} more, until {}", duration_between(at, until), timestamp(until)))
}

fn ready_outlook(model: &ModelStateView, at: Timestamp) -> String {
    if model.requests() > 0 {
        return format!(
            "is busy ({} in flight, {} queued); idleness counts from the end",
            model.inflight, model.queued
        );
    }
    let Some(rules) = &model.rules else {
        return "leaves when its server's own settings say so: no policy selects it".to_owned();
    };

    let window = rules.window.as_ref().map(|policy| format!(", while a window of {policy} is open"));
    let window = window.unwrap_or_default();
    match (&model.idle_timeout_ms, model.leaves_at) {
        (Some(timeout), Some(leaves_at)) => {
            let leaves_at = leaves_at.0;
            let when =
                if leaves_at <= at { "now".to_owned() } else { format!("in {}", duration_between(at, leaves_at)) };
            let min_resident = if outlasts_idle_timeout(model, rules, timeout.value) {
                format!(", and `minResident` of {}", duration(rules.min_resident_ms))
            } else {
                String::new()
            };

            format!(
                "unloads {when} unless a request comes: an idle timeout of {} by {}{min_resident}{window}",
                duration(timeout.value),
                timeout.policy
            )
        }
        _ => format!(
            "stays: residency is {} by {}{window}; only pressure on the GPU makes it leave",
            rules.residency.value, rules.residency.policy
        ),
    }
}

/// Whether `minResident` keeps the model for longer than its idle timeout does.
fn outlasts_idle_timeout(model: &ModelStateView, rules: &RuleSetView, idle_timeout_ms: u64) -> bool {
    let after = |since: Timestamp, ms: u64| since.as_millisecond().saturating_add_unsigned(ms);

    model
        .idle_since
        .zip(model.loaded_since)
        .is_some_and(|(idle, loaded)| after(loaded.0, rules.min_resident_ms) > after(idle.0, idle_timeout_ms))
}

/// The outlook as a cell: the time until the model unloads or, when it is held, until the hold ends.
pub fn outlook_cell(model: &ModelStateView, decision: Option<&DecisionView>, at: Timestamp) -> String {
    match decision {
        Some(decision) if !decision.dry_run => return format!("{} now", decision.action.to_lowercase()),
        Some(_) => return "dry run".to_owned(),
        None => {}
    }

    if let Some(until) = model.held_until.filter(|until| !model.is_ready() && until.0 > at) {
        return format!("held {}", duration_between(at, until.0));
    }
    match (model.is_ready(), model.requests(), model.leaves_at) {
        (true, 0, Some(leaves_at)) if leaves_at.0 <= at => "now".to_owned(),
        (true, 0, Some(leaves_at)) => duration_between(at, leaves_at.0),
        (true, 0, None) if model.rules.is_some() => "stays".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const AT: &str = "2026-01-01T00:10:00Z";

    /// The sentence and the cell of a ready model that differs in these fields.
    fn outlook_of(fields: Value, decision: Option<Value>) -> (String, String) {
        let mut model = json!({
            "server": "m/w", "model": "base", "gpu": "GPU-a", "state": "Ready", "generation": 1, "vramBytes": 3,
            "fresh": true, "idleSince": "2026-01-01T00:08:00Z", "loadedSince": "2026-01-01T00:00:00Z",
            "leavesAt": "2026-01-01T00:13:00Z", "idleTimeoutMs": {"value": 300_000, "policy": "m/idle"},
            "rules": {"policies": ["m/idle"], "residency": {"value": "Idle", "policy": "m/idle"}, "minResidentMs": 60_000},
        });
        for (key, value) in fields.as_object().unwrap() {
            model[key] = value.clone();
        }

        let model: ModelStateView = serde_json::from_value(model).unwrap();
        let decision: Option<DecisionView> = decision.map(|decision| serde_json::from_value(decision).unwrap());
        let at = AT.parse().unwrap();
        (outlook(&model, decision.as_ref(), at), outlook_cell(&model, decision.as_ref(), at))
    }

    #[test]
    fn what_becomes_of_a_model() {
        let unload =
            json!({"server": "m/w", "model": "base", "action": "Unload", "reason": "HardPressure", "policy": "/floor"});
        let resident =
            json!({"policies": ["m/a"], "residency": {"value": "Resident", "policy": "m/a"}, "window": "m/a"});
        let long =
            json!({"policies": ["m/a"], "residency": {"value": "Idle", "policy": "m/a"}, "minResidentMs": 900_000});

        for (fields, decision, sentence, cell) in [
            (json!({}), None, "unloads in 3m unless a request comes: an idle timeout of 5m by m/idle", "3m"),
            (json!({"leavesAt": AT}), None, "unloads now unless a request", "now"),
            (
                json!({"leavesAt": "2026-01-01T00:15:00Z", "rules": long}),
                None,
                "by m/idle, and `minResident` of 15m",
                "5m",
            ),
            (json!({"inflight": 2, "queued": 1, "leavesAt": null}), None, "is busy (2 in flight, 1 queued)", ""),
            (
                json!({"rules": resident, "leavesAt": null}),
                None,
                "Resident by m/a, while a window of m/a is open",
                "stays",
            ),
            (
                json!({"rules": null, "leavesAt": null}),
                None,
                "leaves when its server's own settings say so: no policy selects it",
                "",
            ),
            (
                json!({"state": "Unloaded", "leavesAt": null, "heldUntil": "2026-01-01T00:12:10Z"}),
                None,
                "is not loaded and is held for 2m10s more, until 2026-01-01T00:12:10Z: no request loads it before",
                "held 2m10s",
            ),
            (json!({"state": "Unloaded", "leavesAt": null, "heldUntil": AT}), None, "the next request loads it", ""),
            (
                json!({"state": "WaitingForMemory", "leavesAt": null, "heldUntil": "2026-01-01T00:20:00Z"}),
                None,
                "is asked for and is held for 10m more, until 2026-01-01T00:20:00Z: its requests wait",
                "held 10m",
            ),
            (json!({"state": "WaitingForMemory"}), None, "waits for memory", ""),
            (json!({"fresh": false}), Some(unload.clone()), "too old", "unload now"),
            (json!({}), Some(unload.clone()), "is told to unload now (HardPressure, by /floor)", "unload now"),
            (json!({"state": "Unloaded", "leavesAt": null}), None, "the next request loads it", ""),
            (json!({"state": "WaitingForMemory", "demandBytes": 1 << 30}), None, "waits for 1.00Gi", ""),
            (json!({"state": "Hibernating"}), None, "is Hibernating", ""),
        ] {
            let found = outlook_of(fields.clone(), decision);
            assert!(found.0.contains(sentence), "{fields}: {found:?}");
            assert_eq!(found.1, cell, "{fields}");
        }

        let mut dry_run = unload;
        dry_run["dryRun"] = json!(true);
        let (sentence, cell) = outlook_of(json!({}), Some(dry_run));
        assert!(sentence.contains("but this is a dry run") && cell == "dry run", "{sentence}");
    }
}
