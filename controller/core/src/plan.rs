//! The result of a step: every decision, for every other model the reason why there is none, and what governs each model.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::residency::{PolicyResidency, PolicyUnload};
use crate::time::whole_seconds;
use crate::world::{GpuId, ModelKey, ObservedModel, ServerName};

/// What one step decided, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The caller carries them out in this order, except those marked `dry_run`.
    pub decisions: Vec<Decision>,
    pub skips: Vec<Skip>,
    pub gpus: Vec<GpuPlan>,
    /// Each different set of rules once, without the rules of dry runs.
    pub rules: Vec<RuleSet>,
    /// Every model, ordered by name.
    pub models: Vec<ModelPlan>,
}

/// One command, with the conditions under which the server carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    pub server: ServerName,
    pub model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuId>,
    pub action: Action,
    pub reason: DecisionReason,
    /// The policy whose value decided; empty when a person gave the command.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// The server refuses unless the model has this generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// The server refuses unless the model has been idle for this long; 0: unless it is not busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_idle_seconds: Option<u64>,
    /// How long requests in flight may go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u64>,
    /// How long the model stays unloaded afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<u64>,
    /// What the server is asked to end beside the model; left out where its unloads end the process anyway, or cannot.
    #[serde(skip_serializing_if = "PolicyUnload::is_app")]
    pub unload: PolicyUnload,
    /// The memory that the model holds (unload) or needs (load).
    pub vram_bytes: u64,
    pub dry_run: bool,
}

/// The conditions of an unload, and what the server does afterwards.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnloadTerms {
    /// The server refuses unless the model has been idle for this long.
    pub if_idle: Option<Duration>,
    /// How long requests in flight may go on.
    pub drain: Option<Duration>,
    /// How long the model stays unloaded afterwards.
    pub hold: Option<Duration>,
}

impl Decision {
    /// Unloads the model in the generation that was observed. Times are rounded up to whole seconds.
    pub fn unload(model: &ObservedModel, reason: DecisionReason, policy: String, terms: UnloadTerms) -> Self {
        Self {
            if_generation: Some(model.sample.generation),
            if_idle_seconds: terms.if_idle.map(whole_seconds),
            drain_seconds: terms.drain.map(whole_seconds),
            hold_seconds: terms.hold.map(whole_seconds),
            ..Self::unconditional(model, Action::Unload, reason, policy)
        }
    }

    /// Loads the model, whatever its generation.
    pub fn load(model: &ObservedModel, reason: DecisionReason, policy: String) -> Self {
        Self::unconditional(model, Action::Load, reason, policy)
    }

    /// A command that a person gives: without a policy, and without conditions.
    pub fn manual(model: &ObservedModel, action: Action) -> Self {
        Self::unconditional(model, action, DecisionReason::Manual, String::new())
    }

    fn unconditional(model: &ObservedModel, action: Action, reason: DecisionReason, policy: String) -> Self {
        Self {
            server: model.key.server.clone(),
            model: model.key.model.clone(),
            gpu: model.sample.gpu.clone(),
            action,
            reason,
            policy,
            if_generation: None,
            if_idle_seconds: None,
            drain_seconds: None,
            hold_seconds: None,
            unload: PolicyUnload::App,
            vram_bytes: model.sample.vram_bytes,
            dry_run: false,
        }
    }

    pub fn key(&self) -> ModelKey {
        ModelKey { server: self.server.clone(), model: self.model.clone() }
    }
}

/// Why no decision names a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Skip {
    pub server: ServerName,
    pub model: String,
    pub reason: SkipReason,
    pub detail: String,
}

/// The memory pressure on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuPlan {
    pub uuid: GpuId,
    pub node: String,
    pub pressure: PressureLevel,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<GpuReason>,
    /// Available memory in bytes, as sampled.
    pub available: u64,
    /// The available memory, in bytes, up to which models leave now; the greatest target of all models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// The thresholds at which pressure begins, each different one once.
    pub thresholds: Vec<PressureThreshold>,
}

/// An amount of available memory below which models leave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PressureThreshold {
    /// `Soft` or `Hard`.
    pub level: PressureLevel,
    pub below_bytes: u64,
    /// Once models leave, they leave until this much is available.
    pub target_bytes: u64,
    /// The first policy, by name, that sets the threshold.
    pub policy: String,
}

/// A value and the name of the policy that it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourcedValue<T> {
    pub value: T,
    pub policy: String,
}

/// The merged rules of some policies on GPUs of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSet {
    /// All policies that select the model, ordered by name.
    pub policies: Vec<String>,
    pub residency: SourcedValue<PolicyResidency>,
    /// The policy whose open window set the residency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    pub priority: SourcedValue<i32>,
    pub unload: SourcedValue<PolicyUnload>,
    pub min_resident_ms: u64,
    pub min_loaded: u32,
}

/// A model and what governs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelPlan {
    pub server: ServerName,
    pub model: String,
    /// An index in [`Plan::rules`]; `None`: no policy selects the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<usize>,
    /// After this long without a request the model leaves; with adaptive residency as of now. `None`: the model does not
    /// leave because it is idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<SourcedValue<u64>>,
    /// The rules ask for the end of its app's process at an unload, and the server cannot end it: the unload is that of
    /// the app.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub process_stays: bool,
}

impl Plan {
    /// What an unload of this model ends by the rules in force, as a command asks for it.
    pub fn commanded_unload(&self, model: &ObservedModel) -> PolicyUnload {
        let is_model = |plan: &&ModelPlan| plan.server == model.key.server && plan.model == model.key.model;
        let rules = self.models.iter().find(is_model).and_then(|plan| self.rules.get(plan.rules?));

        rules.map_or(PolicyUnload::App, |rules| rules.unload.value.commanded(model.process_ending))
    }
}

/// An enum that is written as the names of its variants.
macro_rules! named_values {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

named_values! {
    Action {
        Unload,
        Load,
    }
}

named_values! {
    DecisionReason {
        OverBudget,
        IdleTimeout,
        OnDemand,
        HardPressure,
        SoftPressure,
        MakeRoom,
        WarmWindow,
        /// Adaptive residency expects a request.
        PreWarm,
        /// A person gave the command; no rule uses this reason.
        Manual,
    }
}

named_values! {
    SkipReason {
        /// No policy selects the model.
        NotGoverned,
        /// The sample that a decision would rest on is too old.
        MetricsStale,
        /// The servers of its GPU report different figures for its memory.
        ReportsDisagree,
        /// The model is loading, leaving or failed, or a command for it has not ended.
        Transition,
        /// Commands to its server failed lately.
        BackOff,
        NotLoaded,
        Busy,
        NotIdle,
        Resident,
        MinResident,
        MinLoaded,
        GracePeriod,
        AwaitingFreshSample,
        /// The target is reached without this model.
        NotNeeded,
        ForeignPressure,
        /// The model waits for memory that is available or about to be freed.
        RoomComing,
        CannotMakeRoom,
        NoRoom,
        /// A dry-run policy would keep the model.
        DryRun,
    }
}

named_values! {
    PressureLevel {
        None,
        Soft,
        Hard,
        Unknown,
    }
}

named_values! {
    GpuReason {
        MetricsStale,
        /// The servers of the GPU report different figures for its memory.
        ReportsDisagree,
        /// All governed models together do not hold enough to reach the target.
        ForeignPressure,
        AwaitingFreshSample,
        GracePeriod,
        Reclaiming,
        /// The target is met; the pressure ends when the transition period has passed.
        TransitionPeriod,
    }
}
