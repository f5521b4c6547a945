//! What becomes of a model, in a sentence.

use jiff::Timestamp;

use super::read::{Decision, Model};
use super::words::{between, clock, span};
use crate::amount::gib;

/// `at`: when the figures were right.
pub fn fate(model: &Model, decision: Option<&Decision>, at: Timestamp) -> String {
    if !model.fresh {
        return "the figures are too old to act on: nothing is done with it".to_owned();
    }
    if let Some(decision) = decision {
        let by = if decision.policy.is_empty() { String::new() } else { format!(", by {}", decision.policy) };
        let what = decision.action.to_lowercase();
        return if decision.dry_run {
            format!("would be told to {what} now ({}{by}), but only a dry run says so", decision.reason)
        } else {
            format!("is told to {what} now ({}{by})", decision.reason)
        };
    }
    match model.state.as_str() {
        "Ready" => ready(model, at),
        "Unloaded" => match held(model, at) {
            Some(held) => format!("is not loaded and {held}: no request loads it before"),
            None => "is not loaded; the next request loads it".to_owned(),
        },
        "WaitingForMemory" => match (held(model, at), model.demand_bytes.filter(|bytes| *bytes > 0)) {
            (Some(held), _) => format!("is asked for and {held}: its requests wait"),
            (None, Some(bytes)) => format!("waits for {} of memory", gib(bytes)),
            (None, None) => "waits for memory".to_owned(),
        },
        "Loading" => "is being loaded".to_owned(),
        "Draining" | "Unloading" => "is leaving".to_owned(),
        "Failed" => "could not be loaded; its server tries again and tells why in its log".to_owned(),
        state => format!("is {state}"),
    }
}

/// With the end of the hold, if there is one.
fn held(model: &Model, at: Timestamp) -> Option<String> {
    let until = model.held_until.filter(|until| *until > at)?;
    Some(format!("is held for {} more, until {}", between(at, until), clock(until)))
}

fn ready(model: &Model, at: Timestamp) -> String {
    if model.requests() > 0 {
        return format!(
            "is busy ({} in flight, {} queued); idleness counts from the end",
            model.inflight, model.queued
        );
    }
    let Some(rules) = &model.rules else {
        return "leaves when its server's own settings say so: no policy selects it".to_owned();
    };
    let residency = &rules.residency;
    let window = rules.window.as_ref().map(|policy| format!(", while a window of {policy} is open"));
    let window = window.unwrap_or_default();
    match (&model.idle_timeout_ms, model.leaves_at) {
        (Some(timeout), Some(leaves)) => {
            let when = if leaves <= at { "now".to_owned() } else { format!("in {}", between(at, leaves)) };
            let young = model.idle_since.zip(model.loaded_since).is_some_and(|(idle, loaded)| {
                let after = |since: Timestamp, ms: u64| since.as_millisecond().saturating_add_unsigned(ms);
                after(loaded, rules.min_resident_ms) > after(idle, timeout.value)
            });
            let floor =
                if young { format!(", and `minResident` of {}", span(rules.min_resident_ms)) } else { String::new() };
            format!(
                "unloads {when} if nobody asks for it: an idle timeout of {} by {}{floor}{window}",
                span(timeout.value),
                timeout.policy
            )
        }
        _ => format!(
            "stays: residency is {} by {}{window}; only pressure on the GPU makes it leave",
            residency.value, residency.policy
        ),
    }
}

/// The same for a column: when it unloads; of a model that is held how much longer.
pub fn leaves(model: &Model, decision: Option<&Decision>, at: Timestamp) -> String {
    match decision {
        Some(decision) if !decision.dry_run => return format!("{} now", decision.action.to_lowercase()),
        Some(_) => return "dry run".to_owned(),
        None => {}
    }
    if let Some(until) = model.held_until.filter(|until| !model.is_ready() && *until > at) {
        return format!("held {}", between(at, until));
    }
    match (model.is_ready(), model.requests(), model.leaves_at) {
        (true, 0, Some(leaves)) if leaves <= at => "now".to_owned(),
        (true, 0, Some(leaves)) => between(at, leaves),
        (true, 0, None) if model.rules.is_some() => "stays".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const AT: &str = "2026-01-01T00:10:00Z";

    fn told(more: Value, decision: Option<Value>) -> (String, String) {
        let mut model = json!({
            "server": "m/w", "model": "base", "gpu": "GPU-a", "state": "Ready", "generation": 1, "vramBytes": 3,
            "fresh": true, "idleSince": "2026-01-01T00:08:00Z", "loadedSince": "2026-01-01T00:00:00Z",
            "leavesAt": "2026-01-01T00:13:00Z", "idleTimeoutMs": {"value": 300_000, "policy": "m/idle"},
            "rules": {"policies": ["m/idle"], "residency": {"value": "Idle", "policy": "m/idle"}, "minResidentMs": 60_000},
        });
        for (key, value) in more.as_object().unwrap() {
            model[key] = value.clone();
        }
        let model: Model = serde_json::from_value(model).unwrap();
        let decision: Option<Decision> = decision.map(|decision| serde_json::from_value(decision).unwrap());
        let at = AT.parse().unwrap();
        (fate(&model, decision.as_ref(), at), leaves(&model, decision.as_ref(), at))
    }

    #[test]
    fn what_becomes_of_it() {
        let unload =
            json!({"server": "m/w", "model": "base", "action": "Unload", "reason": "HardPressure", "policy": "/floor"});
        let resident =
            json!({"policies": ["m/a"], "residency": {"value": "Resident", "policy": "m/a"}, "window": "m/a"});
        let long =
            json!({"policies": ["m/a"], "residency": {"value": "Idle", "policy": "m/a"}, "minResidentMs": 900_000});
        for (more, decision, fate, leaves) in [
            (json!({}), None, "unloads in 3m if nobody asks for it: an idle timeout of 5m by m/idle", "3m"),
            (json!({"leavesAt": AT}), None, "unloads now if nobody", "now"),
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
            let said = told(more.clone(), decision);
            assert!(said.0.contains(fate), "{more}: {said:?}");
            assert_eq!(said.1, leaves, "{more}");
        }
        let mut dry = unload;
        dry["dryRun"] = json!(true);
        let (fate, leaves) = told(json!({}), Some(dry));
        assert!(fate.contains("only a dry run says so") && leaves == "dry run", "{fate}");
    }
}
