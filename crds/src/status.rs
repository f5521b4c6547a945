//! The status that the controller writes to a policy. Numbers that change all the time are metrics, not status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the controller makes of the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// The generation of the spec that is in force. It is older than the observed one after an edit that is not valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub enforced_generation: Option<i64>,
    /// The spec that is in force, as JSON. A controller reads it again where the spec is not valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub enforced_spec: Option<String>,
    /// `Ready`: the policy is valid and in force. `Selecting`: it selects a model of a
    /// server that answers.
    /// `Pressure`: a card of its models is short of memory.
    /// `Conflicted`: another policy is stricter in some field; the message says which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Option<Vec<Condition>>,
    /// Models that the policy selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub matched: Option<i32>,
    /// Those of them that are loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub loaded: Option<i32>,
    /// The last actions that this policy caused, newest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub last_actions: Option<Vec<LastAction>>,
}

/// One action and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastAction {
    /// When it ended.
    pub time: Time,
    /// The server, `namespace/pod`.
    #[schemars(length(max = 320))]
    pub server: String,
    /// The model.
    #[schemars(length(max = 128))]
    pub model: String,
    /// `Load` or `Unload`.
    #[schemars(length(max = 16))]
    pub action: String,
    /// Why.
    #[schemars(length(max = 32))]
    pub reason: String,
    /// What came of it, in a few words.
    #[schemars(length(max = 256))]
    pub outcome: String,
}
