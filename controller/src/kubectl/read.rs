//! The controller's answers as far as they are shown. Words stay text and what is missing is nothing, so that a plugin
//! understands controllers that are older or newer.

use std::ops::Deref;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::words::clock;

/// What is understood of an object, and the whole of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Item<T> {
    is: T,
    pub whole: Value,
}

impl<T> Deref for Item<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.is
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Value::deserialize(deserializer)?;
        let is = T::deserialize(&whole).map_err(serde::de::Error::custom)?;
        Ok(Self { is, whole })
    }
}

impl<T> Serialize for Item<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.whole.serialize(serializer)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub at: Timestamp,
    #[serde(default)]
    pub version: String,
    pub acting: bool,
    #[serde(default)]
    pub actions: bool,
    pub gpus: Vec<Item<Gpu>>,
    pub servers: Vec<Item<Server>>,
    pub models: Vec<Item<Model>>,
    #[serde(default)]
    pub decisions: Vec<Item<Decision>>,
    #[serde(default)]
    pub policies: Vec<Item<Policy>>,
    #[serde(default)]
    pub problems: Vec<String>,
    #[serde(default)]
    pub records: Vec<Item<Record>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    pub uuid: String,
    #[serde(default)]
    pub node: String,
    pub total_bytes: u64,
    pub ours_bytes: u64,
    pub others_bytes: u64,
    pub free_bytes: u64,
    pub fresh: bool,
    pub pressure: String,
    pub reason: Option<String>,
    pub target_bytes: Option<u64>,
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
}

impl Gpu {
    /// For people.
    pub fn pressure_and_reason(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} ({reason})", self.pressure),
            None => self.pressure.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Threshold {
    pub level: String,
    pub below_bytes: u64,
    pub policy: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    pub server: String,
    #[serde(default)]
    pub node: String,
    pub state: String,
    pub failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    pub server: String,
    pub model: String,
    pub gpu: Option<String>,
    pub state: String,
    pub generation: u64,
    #[serde(default)]
    pub inflight: u64,
    #[serde(default)]
    pub queued: u64,
    pub vram_bytes: u64,
    pub need_bytes: Option<u64>,
    pub demand_bytes: Option<u64>,
    pub idle_since: Option<Timestamp>,
    pub held_until: Option<Timestamp>,
    pub loaded_since: Option<Timestamp>,
    pub leaves_at: Option<Timestamp>,
    pub fresh: bool,
    pub rules: Option<Rules>,
    pub idle_timeout_ms: Option<Chosen<u64>>,
    #[serde(default)]
    pub why: Vec<Why>,
}

impl Model {
    pub fn is_ready(&self) -> bool {
        self.state == "Ready"
    }

    /// What it holds; 0 when it is not loaded, also where a controller of an older version tells what it needs.
    pub fn held_bytes(&self) -> u64 {
        let is_loaded = !matches!(self.state.as_str(), "Unloaded" | "Failed" | "WaitingForMemory");
        if is_loaded { self.vram_bytes } else { 0 }
    }

    /// What the next load is expected to take, where that is known and the model is not loaded.
    pub fn needed_bytes(&self) -> Option<u64> {
        self.need_bytes.or((self.held_bytes() == 0).then_some(self.vram_bytes)).filter(|bytes| *bytes > 0)
    }

    pub fn requests(&self) -> u64 {
        self.inflight.saturating_add(self.queued)
    }

    /// For people.
    pub fn name(&self) -> String {
        format!("{} {}", self.server, self.model)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rules {
    pub policies: Vec<String>,
    pub residency: Chosen<String>,
    pub window: Option<String>,
    #[serde(default)]
    pub min_resident_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Chosen<T> {
    pub value: T,
    pub policy: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Why {
    pub reason: String,
    #[serde(default)]
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
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
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub name: String,
    #[serde(default)]
    pub dry_run: bool,
    pub paused: Option<Paused>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Paused {
    pub until: Option<Timestamp>,
    pub claimed_by: Option<String>,
}

impl Paused {
    /// For people.
    pub fn words(&self) -> String {
        let until = match self.until {
            Some(until) => format!("until {}", clock(until)),
            None => "until it is resumed".to_owned(),
        };
        let by = self.claimed_by.as_ref().map(|name| format!(", asked for by {name} as the request says"));
        format!("paused {until}{}", by.unwrap_or_default())
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
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
    pub message: Option<String>,
}

/// Answer to `GET /api/v1/explain`.
#[derive(Clone, Debug, Deserialize)]
pub struct Explained {
    pub at: Timestamp,
    pub server: Server,
    pub gpus: Vec<Gpu>,
    pub models: Vec<Accounted>,
    #[serde(default)]
    pub decisions: Vec<Decision>,
    #[serde(default)]
    pub records: Vec<Record>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Accounted {
    pub model: Model,
    pub account: Account,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    pub policies: Vec<Matching>,
    pub terms: Vec<Term>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Matching {
    pub policy: String,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub window_open: bool,
    pub budget_bytes: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Term {
    pub field: String,
    pub value: Value,
    pub policy: Option<String>,
    /// The policy does not write the field: its default holds.
    #[serde(default)]
    pub by_default: bool,
    #[serde(default)]
    pub others: Vec<Asked>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Asked {
    pub value: Value,
    pub policy: String,
}

/// Answer to `POST /api/v1/plan`.
#[derive(Clone, Debug, Deserialize)]
pub struct WhatIf {
    pub policies: Vec<Item<Edited>>,
    pub decisions: Vec<Item<Decision>>,
    pub gpus: Vec<Item<Gpu>>,
    pub models: Vec<Item<Model>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Edited {
    pub name: String,
    pub is: String,
    pub models: usize,
}
