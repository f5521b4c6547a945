//! The controller's responses, as far as the plugin shows them.
//!
//! Objects that the page's API defines are read with its own types ([`crate::web::view`]). Those that it writes with the
//! types of `hush_core` have a type for reading here, in which reasons and actions are text and most fields have a
//! default, so that the plugin understands controllers that are older or newer.

use std::ops::Deref;

use hush_contract::WHISPER;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::format::timestamp;
use crate::web::view::{EditedView, GpuView, ModelStateView, PausedView, PolicyView, ServerView};

/// An object with the fields that the plugin knows, and all of its fields as they came, which is what `-o json` prints.
#[derive(Clone, Debug, PartialEq)]
pub struct RawItem<T> {
    known: T,
    pub raw: Value,
}

impl<T> Deref for RawItem<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.known
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for RawItem<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        let known = T::deserialize(&raw).map_err(serde::de::Error::custom)?;
        Ok(Self { known, raw })
    }
}

impl<T> Serialize for RawItem<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(serializer)
    }
}

/// Response to `GET /api/v1/state`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateResponse {
    pub at: Timestamp,
    #[serde(default)]
    pub version: String,
    pub acting: bool,
    #[serde(default)]
    pub actions: bool,
    pub gpus: Vec<RawItem<GpuView>>,
    pub servers: Vec<RawItem<ServerView>>,
    pub models: Vec<RawItem<ModelStateView>>,
    #[serde(default)]
    pub decisions: Vec<RawItem<DecisionView>>,
    #[serde(default)]
    pub policies: Vec<RawItem<PolicyView>>,
    #[serde(default)]
    pub problems: Vec<String>,
    #[serde(default)]
    pub records: Vec<RawItem<RecordView>>,
}

impl GpuView {
    pub fn pressure_and_reason(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} ({reason})", self.pressure),
            None => self.pressure.clone(),
        }
    }
}

impl ModelStateView {
    pub fn is_ready(&self) -> bool {
        self.state == "Ready"
    }

    /// Bytes that the model holds; 0 when it is not loaded, also where a controller of an older version writes the bytes
    /// that it needs into the same field.
    pub fn held_bytes(&self) -> u64 {
        let is_loaded = !matches!(self.state.as_str(), "Unloaded" | "Failed" | "WaitingForMemory");
        if is_loaded { self.vram_bytes } else { 0 }
    }

    /// Bytes that the next load is expected to take, where that is known and the model is not loaded.
    pub fn needed_bytes(&self) -> Option<u64> {
        self.need_bytes.or((self.held_bytes() == 0).then_some(self.vram_bytes)).filter(|bytes| *bytes > 0)
    }

    pub fn requests(&self) -> u64 {
        self.inflight.saturating_add(self.queued)
    }

    /// Such as `tiny (ollama)`; the app of `hush-server` is not named.
    pub fn model_and_app(&self) -> String {
        if self.app.is_empty() || self.app == WHISPER {
            self.model.clone()
        } else {
            format!("{} ({})", self.model, self.app)
        }
    }

    /// `NAMESPACE/POD MODEL`.
    pub fn name(&self) -> String {
        format!("{} {}", self.server, self.model)
    }
}

impl PausedView {
    /// Such as `paused until 2026-01-01T01:00:00Z, asked for by anna as the request says`.
    pub fn summary(&self) -> String {
        let until = match self.until {
            Some(until) => format!("until {}", timestamp(until)),
            None => "until it is resumed".to_owned(),
        };
        let by = self.claimed_by.as_ref().map(|name| format!(", asked for by {name} as the request says"));

        format!("paused {until}{}", by.unwrap_or_default())
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionView {
    pub server: String,
    pub model: String,
    pub action: String,
    pub reason: String,
    #[serde(default)]
    pub policy: String,
    #[serde(default)]
    pub vram_bytes: u64,
    #[serde(default)]
    pub dry_run: bool,
    pub if_generation: Option<u64>,
    pub if_idle_seconds: Option<u64>,
    pub drain_seconds: Option<u64>,
    pub hold_seconds: Option<u64>,
    /// What ends beside the model; absent: nothing.
    pub unload: Option<String>,
}

/// A command that has ended, and its outcome.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordView {
    pub time: Timestamp,
    pub server: String,
    pub model: String,
    pub action: String,
    pub reason: String,
    #[serde(default)]
    pub policy: String,
    pub outcome: String,
    pub reclaimed_bytes: Option<u64>,
    pub residual_bytes: Option<u64>,
    /// What the command was to end beside the model.
    pub unload: Option<String>,
    /// What became of the process.
    pub process: Option<String>,
    pub message: Option<String>,
}

/// Response to `GET /api/v1/explain`.
#[derive(Clone, Debug, Deserialize)]
pub struct ExplainResponse {
    pub at: Timestamp,
    pub server: ServerView,
    pub gpus: Vec<GpuView>,
    pub models: Vec<ModelExplanation>,
    #[serde(default)]
    pub decisions: Vec<DecisionView>,
    #[serde(default)]
    pub records: Vec<RecordView>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ModelExplanation {
    pub model: ModelStateView,
    pub account: AccountView,
}

/// The policies that select a model, and field by field whose value applies.
#[derive(Clone, Debug, Deserialize)]
pub struct AccountView {
    pub policies: Vec<MatchingPolicyView>,
    pub terms: Vec<TermView>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatchingPolicyView {
    pub policy: String,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub window_open: bool,
    pub budget_bytes: Option<u64>,
}

/// A field of the rules, and the value that applies.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TermView {
    pub field: String,
    pub value: Value,
    /// Whose value it is; `None`: no policy asks for one, and the default applies.
    pub policy: Option<String>,
    /// The policy does not write the field, and the field's default applies.
    #[serde(default)]
    pub by_default: bool,
    #[serde(default)]
    pub others: Vec<AskedValueView>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AskedValueView {
    pub value: Value,
    pub policy: String,
}

/// Response to `POST /api/v1/plan`.
#[derive(Clone, Debug, Deserialize)]
pub struct WhatIfResponse {
    pub policies: Vec<RawItem<EditedView>>,
    pub decisions: Vec<RawItem<DecisionView>>,
    pub gpus: Vec<RawItem<GpuView>>,
    pub models: Vec<RawItem<ModelStateView>>,
}
