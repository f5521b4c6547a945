//! Durations, policy values and conditions as text.

use std::time::Duration;

use hush_log::printable;
use jiff::Timestamp;
use serde_json::Value;

use super::response::{DecisionView, RecordView};
use crate::amount::gib;

/// Long enough for a line that names every policy of a model.
pub const LINE_MAX_CHARS: usize = 2000;

/// Such as `2m10s`.
pub fn duration(milliseconds: u64) -> String {
    hush_core::format_duration(Duration::from_millis(milliseconds))
}

/// A duration rounded up to whole seconds.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// RFC 3339 in UTC, to the second.
pub fn timestamp(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The time from one point to another in whole seconds; `0s` when `later` is not later.
pub fn duration_between(earlier: Timestamp, later: Timestamp) -> String {
    let milliseconds = u64::try_from(later.duration_since(earlier).as_millis()).unwrap_or(0);
    duration(milliseconds / 1000 * 1000)
}

/// The value of a policy's field, from the JSON of `hush_core::Setting`.
pub fn setting(value: &Value) -> String {
    let Some((kind, value)) = value.as_object().and_then(|object| object.iter().next()) else {
        return value.to_string();
    };

    match (kind.as_str(), value.as_u64(), value.as_str()) {
        ("milliseconds", Some(milliseconds), _) => duration(milliseconds),
        ("bytes", Some(bytes), _) => gib(bytes),
        (_, _, Some(text)) => text.to_owned(),
        _ => value.to_string(),
    }
}

/// The conditions of a command, its drain and its hold.
pub fn condition(decision: &DecisionView) -> String {
    let generation = decision.if_generation.map(|generation| format!("generation {generation}"));
    let idle = decision.if_idle_seconds.map(|idle| match idle {
        0 => "not busy".to_owned(),
        idle => format!("idle for {}", duration(idle * 1000)),
    });
    let conditions: Vec<_> = [generation, idle].into_iter().flatten().collect();
    let conditions = (!conditions.is_empty()).then(|| format!("if {}", conditions.join(" and ")));

    let drain = decision.drain_seconds.map(|drain| format!("drain {}", duration(drain * 1000)));
    let hold = decision.hold_seconds.filter(|hold| *hold > 0).map(|hold| format!("hold {}", duration(hold * 1000)));

    let process =
        decision.unload.as_deref().filter(|unload| *unload == "Process").map(|_| "ends its process".to_owned());

    [conditions, drain, hold, process].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The memory that an unload gave back; `None`: nothing was unloaded, or the memory was not measured.
pub fn reclaimed_memory(record: &RecordView) -> Option<String> {
    let bytes = record.reclaimed_bytes.filter(|_| record.outcome == "Unloaded")?;
    let residual = record.residual_bytes.filter(|bytes| *bytes > 0);
    let residual = residual.map(|bytes| format!(", {} did not", gib(bytes))).unwrap_or_default();

    Some(format!("{} came back{residual}{}", gib(bytes), process_note(record)))
}

/// What became of the process that the command was to end.
fn process_note(record: &RecordView) -> &'static str {
    match (record.unload.as_deref(), record.process.as_deref()) {
        (Some("Process"), Some("ended")) => ", its process has ended",
        (Some("Process"), Some("kept_for_others")) => ", its process stays for its other models",
        (Some("Process"), Some(_)) => ", its process could not be ended",
        _ => "",
    }
}

/// The beginning of a GPU's UUID, which tells it from others; `kubectl hush top -o json` has all of it.
pub fn short_uuid(uuid: &str) -> String {
    uuid.chars().take(12).collect()
}

/// Such as `1 model` or `2 models`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Text with names and messages of other programs, made safe for one line of a terminal.
pub fn terminal_line(text: &str) -> String {
    printable(text, LINE_MAX_CHARS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration(273_600_000), "3d04h");

        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(duration_between(at(10), at(75)), "1m05s");
        assert_eq!(duration_between(at(75), at(10)), "0s");
    }

    #[test]
    fn settings() {
        for (value, text) in [
            (json!({"milliseconds": 300_000}), "5m"),
            (json!({"bytes": 1 << 30}), "1.00Gi"),
            (json!({"mode": "OnDemand"}), "OnDemand"),
            (json!({"number": -2}), "-2"),
            // A newer controller may write kinds that the plugin does not know.
            (json!({"ratio": 0.5}), "0.5"),
            (json!("as it is"), "\"as it is\""),
        ] {
            assert_eq!(setting(&value), text);
        }
    }

    #[test]
    fn an_unload_says_what_became_of_the_process_that_it_was_to_end() {
        let said = |more: serde_json::Value| {
            let mut record = json!({"time": "2026-01-01T00:00:00Z", "server": "m/w", "model": "a", "action": "Unload",
                "reason": "IdleTimeout", "outcome": "Unloaded", "reclaimedBytes": 1 << 30});
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            reclaimed_memory(&serde_json::from_value(record).unwrap()).unwrap()
        };

        assert_eq!(said(json!({"process": "ended"})), "1.00Gi came back", "hush-server always ends it");
        assert_eq!(said(json!({"unload": "Process", "process": "ended"})), "1.00Gi came back, its process has ended");
        let kept = said(json!({"unload": "Process", "process": "cannot_end"}));
        assert_eq!(kept, "1.00Gi came back, its process could not be ended");
    }

    #[test]
    fn a_name_cannot_control_the_terminal() {
        assert_eq!(terminal_line("a\u{1b}[2Jb\nc\u{202e}"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
    }
}
