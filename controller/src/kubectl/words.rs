//! Spans, settings and conditions for people.

use std::time::Duration;

use hush_log::printable;
use jiff::Timestamp;
use serde_json::Value;

use super::read::{Decision, Record};
use crate::amount::gib;

/// Also one that names every policy of a model.
pub const LINE_MAX_CHARS: usize = 2000;

/// As `2m10s`.
pub fn span(milliseconds: u64) -> String {
    hush_core::span(Duration::from_millis(milliseconds))
}

/// A point in time, to the second.
pub fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Nothing when `later` is not later.
pub fn between(earlier: Timestamp, later: Timestamp) -> String {
    span(u64::try_from(later.duration_since(earlier).as_millis()).unwrap_or(0) / 1000 * 1000)
}

/// A value of a policy's field, as `hush_core::Setting` is written.
pub fn setting(value: &Value) -> String {
    let Some((kind, value)) = value.as_object().and_then(|object| object.iter().next()) else {
        return value.to_string();
    };
    match (kind.as_str(), value.as_u64(), value.as_str()) {
        ("milliseconds", Some(milliseconds), _) => span(milliseconds),
        ("bytes", Some(bytes), _) => gib(bytes),
        (_, _, Some(text)) => text.to_owned(),
        _ => value.to_string(),
    }
}

/// Under what condition a command holds, and what comes with it.
pub fn condition(decision: &Decision) -> String {
    let generation = decision.if_generation.map(|generation| format!("generation {generation}"));
    let idle = decision.if_idle_seconds.map(|idle| match idle {
        0 => "not busy".to_owned(),
        idle => format!("idle for {}", span(idle * 1000)),
    });
    let condition: Vec<_> = [generation, idle].into_iter().flatten().collect();
    let mut parts: Vec<_> =
        (!condition.is_empty()).then(|| format!("if {}", condition.join(" and "))).into_iter().collect();
    parts.extend(decision.drain_seconds.map(|drain| format!("drain {}", span(drain * 1000))));
    parts.extend(decision.hold_seconds.filter(|hold| *hold > 0).map(|hold| format!("hold {}", span(hold * 1000))));
    parts.join(", ")
}

/// What an unload gave back; `None`: nothing was unloaded, or nobody measured it.
pub fn came_back(record: &Record) -> Option<String> {
    let bytes = record.reclaimed_bytes.filter(|_| record.outcome == "Unloaded")?;
    let residual = record.residual_bytes.filter(|bytes| *bytes > 0);
    let residual = residual.map(|bytes| format!(", {} did not", gib(bytes))).unwrap_or_default();
    Some(format!("{} came back{residual}", gib(bytes)))
}

/// So much of a card's name as tells it from others; `kubectl hush top -o json` has all of it.
pub fn card(uuid: &str) -> String {
    uuid.chars().take(12).collect()
}

/// With a plural.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A line of a terminal, whatever names and messages are in it.
pub fn plain(text: &str) -> String {
    printable(text, LINE_MAX_CHARS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spans() {
        assert_eq!(span(273_600_000), "3d04h");
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(between(at(10), at(75)), "1m05s");
        assert_eq!(between(at(75), at(10)), "0s");
    }

    #[test]
    fn settings() {
        for (value, text) in [
            (json!({"milliseconds": 300_000}), "5m"),
            (json!({"bytes": 1 << 30}), "1.00Gi"),
            (json!({"mode": "OnDemand"}), "OnDemand"),
            (json!({"number": -2}), "-2"),
            // Of a controller that is newer.
            (json!({"ratio": 0.5}), "0.5"),
            (json!("as it is"), "\"as it is\""),
        ] {
            assert_eq!(setting(&value), text);
        }
    }

    #[test]
    fn nobody_writes_to_a_terminal_through_a_name() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{202e}"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
    }
}
