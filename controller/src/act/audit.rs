//! The audit log: one line of JSON for each command that has ended and each pause, and the same as log messages.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use hush_contract::admin::ProcessOutcome;
use hush_core::{Decision, PolicyKey};
use jiff::Timestamp;
use serde::Serialize;

use super::command::CommandResult;
use crate::amount::gib;
use crate::control_loop::{ClaimedName, PauseChange};
use crate::metrics::ControllerMetrics;

/// A decision and how its command ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandRecord {
    /// The time of the end.
    pub time: Timestamp,
    pub decided_at: Timestamp,
    #[serde(flatten)]
    pub decision: Decision,
    #[serde(flatten)]
    pub outcome: CommandResult,
    /// Seconds from the decision to the end.
    pub seconds: f64,
}

/// A policy that was paused or resumed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PauseRecord {
    time: Timestamp,
    policy: String,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed_by: Option<ClaimedName>,
    /// The change as a text for users.
    note: String,
}

/// Writes records to the audit file and to the log.
#[derive(Clone)]
pub struct Audit {
    /// `None`: records go to the log only.
    path: Option<PathBuf>,
    metrics: Arc<ControllerMetrics>,
}

impl Audit {
    pub fn new(path: Option<PathBuf>, metrics: Arc<ControllerMetrics>) -> Self {
        Self { path, metrics }
    }

    /// Writes the record. The file is opened for each line: it may be rotated at any time, and there are few lines.
    pub fn write(&self, record: &CommandRecord) {
        log_command(record);
        self.append(record);
    }

    pub fn write_pause(&self, now: Timestamp, policy: &PolicyKey, change: &PauseChange) {
        let (action, until, claimed_by) = match change {
            PauseChange::Paused(paused) => ("Pause", paused.until, paused.claimed_by.clone()),
            PauseChange::Resumed(claimed_by) => ("Resume", None, claimed_by.clone()),
            PauseChange::Expired => ("Resume", None, None),
        };
        let note = change.to_string();
        tracing::info!(%policy, "{note}");

        self.append(&PauseRecord { time: now, policy: policy.to_string(), action, until, claimed_by, note });
    }

    fn append(&self, record: &impl Serialize) {
        let Some(path) = &self.path else { return };

        let written = serde_json::to_vec(record).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            // A single write, so that two controllers never mix their lines.
            OpenOptions::new().create(true).append(true).open(path)?.write_all(&line)
        });

        if let Err(error) = written {
            self.metrics.audit_failures_total.inc();
            tracing::error!(path = %path.display(), "the audit log cannot be written: {error}");
        }
    }
}

fn log_command(record: &CommandRecord) {
    let Decision { server, model, action, reason, policy, .. } = &record.decision;
    let seconds = format!("{:.3}", record.seconds);

    match &record.outcome {
        CommandResult::Unloaded { reclaimed_bytes, residual_bytes, process } => {
            let came_back = reclaimed_bytes.map_or_else(|| "not measured".to_owned(), gib);
            let residual = residual_bytes.filter(|bytes| *bytes > 0).map(gib);
            let process = process.map(ProcessOutcome::as_str);
            tracing::info!(%server, model, %reason, policy, came_back, residual, process, seconds, "unloaded");
        }
        CommandResult::Loading => tracing::info!(%server, model, %reason, policy, seconds, "loading"),
        CommandResult::Refused { code, message } => {
            tracing::info!(%server, model, %reason, policy, code, "the server refused to {action}: {message}");
        }
        CommandResult::Withheld { message } => {
            tracing::debug!(%server, model, %reason, policy, "{action} is not sent: {message}");
        }
        CommandResult::Failed { code, message } => {
            tracing::warn!(%server, model, %reason, policy, code, "{action} failed: {message}");
        }
    }
}
