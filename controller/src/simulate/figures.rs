//! What a policy costs on a trace.

use std::time::Duration;

use serde_json::{Value, json};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimulationFigures {
    pub requests: u64,
    /// Requests that found no model and waited for a load.
    pub cold_starts: u64,
    pub waited: Duration,
    /// Bytes times milliseconds.
    pub held: u128,
    pub idle_unloads: u64,
    /// For pressure, budget or room.
    pub evictions: u64,
    pub warm_loads: u64,
}

impl SimulationFigures {
    /// GiB times hours, in hundredths.
    fn gib_hours_hundredths(&self) -> u128 {
        self.held * 100 / (1 << 30) / 3_600_000
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

    pub fn table(rows: &[(String, Self)]) -> String {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(6);
        let mut text = format!(
            "{:<width$}  {:>8}  {:>11}  {:>9}  {:>10}  {:>12}  {:>9}  {:>10}\n",
            "policy", "requests", "cold starts", "waited s", "GiB hours", "idle unloads", "evictions", "warm loads"
        );
        for (name, f) in rows {
            text += &format!(
                "{name:<width$}  {:>8}  {:>11}  {:>9.1}  {:>10}  {:>12}  {:>9}  {:>10}\n",
                f.requests,
                f.cold_starts,
                f.waited.as_secs_f64(),
                f.gib_hours(),
                f.idle_unloads,
                f.evictions,
                f.warm_loads
            );
        }
        text
    }
}
