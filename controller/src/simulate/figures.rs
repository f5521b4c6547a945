//! What a policy costs on a trace.

use std::time::Duration;

use serde_json::{Value, json};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimulationFigures {
    pub requests: u64,
    /// Requests that had to wait for a load.
    pub cold_starts: u64,
    /// How long requests waited, all together.
    pub waited: Duration,
    /// Memory held, in bytes times milliseconds.
    pub held_byte_ms: u128,
    pub idle_unloads: u64,
    /// Unloads because of pressure or a budget, or to make room.
    pub evictions: u64,
    pub warm_loads: u64,
}

impl SimulationFigures {
    /// Memory held, in hundredths of GiB times hours.
    fn gib_hours_hundredths(&self) -> u128 {
        self.held_byte_ms * 100 / (1 << 30) / 3_600_000
    }

    fn gib_hours(&self) -> String {
        let hundredths = self.gib_hours_hundredths();
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    }

    pub fn to_json(&self, policy: &str) -> Value {
        json!({
            "policy": policy,
            "requests": self.requests,
            "coldStarts": self.cold_starts,
            "waitedSeconds": self.waited.as_secs_f64(),
            "vramGibHours": self.gib_hours_hundredths() as f64 / 100.0,
            "idleUnloads": self.idle_unloads,
            "evictions": self.evictions,
            "warmLoads": self.warm_loads,
        })
    }

    /// A table with a row for each policy.
    pub fn table(rows: &[(String, Self)]) -> String {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(6);
        let mut text = format!(
            "{:<width$}  {:>8}  {:>11}  {:>9}  {:>10}  {:>12}  {:>9}  {:>10}\n",
            "policy", "requests", "cold starts", "waited s", "GiB hours", "idle unloads", "evictions", "warm loads"
        );

        for (name, figures) in rows {
            text += &format!(
                "{name:<width$}  {:>8}  {:>11}  {:>9.1}  {:>10}  {:>12}  {:>9}  {:>10}\n",
                figures.requests,
                figures.cold_starts,
                figures.waited.as_secs_f64(),
                figures.gib_hours(),
                figures.idle_unloads,
                figures.evictions,
                figures.warm_loads
            );
        }
        text
    }
}
