//! What comes out: every decision, and for every other model why not.

use serde::{Serialize, Serializer};

use crate::explain::{ModelPlan, RuleSet};
use crate::world::{GpuId, ModelKey, ServerName};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// To be carried out in this order, except those marked `dry_run`.
    pub decisions: Vec<Decision>,
    pub skips: Vec<Skip>,
    pub gpus: Vec<GpuPlan>,
    /// Each different set of rules once; without those of dry runs.
    pub rules: Vec<RuleSet>,
    /// Every model, by name.
    pub models: Vec<ModelPlan>,
}

/// One command, with the condition under which it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    pub server: ServerName,
    pub model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuId>,
    pub action: Action,
    pub reason: Reason,
    /// The policy whose value decided; empty when a person did.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// The server refuses unless the model has been idle for so long; 0: unless it is not busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_idle_seconds: Option<u64>,
    /// How long work in flight may go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u64>,
    /// How long the model stays away afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<u64>,
    /// What the model holds, or needs.
    pub vram_bytes: u64,
    pub dry_run: bool,
}

impl Decision {
    pub fn key(&self) -> ModelKey {
        ModelKey { server: self.server.clone(), model: self.model.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Skip {
    pub server: ServerName,
    pub model: String,
    pub reason: SkipReason,
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuPlan {
    pub uuid: GpuId,
    pub node: String,
    pub pressure: Pressure,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<GpuReason>,
    /// Bytes, as sampled.
    pub available: u64,
    /// Bytes that the level which acts wants available; the greatest of all models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// Where pressure begins, each different one once.
    pub thresholds: Vec<Threshold>,
}

/// Below so much available memory models leave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Threshold {
    /// `Soft` or `Hard`.
    pub level: Pressure,
    pub below_bytes: u64,
    /// Once begun, so much is made available.
    pub target_bytes: u64,
    /// The first by name that sets it.
    pub policy: String,
}

macro_rules! words {
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

words! {
    Action {
        Unload,
        Load,
    }
}

words! {
    Reason {
        OverBudget,
        IdleTimeout,
        OnDemand,
        HardPressure,
        SoftPressure,
        MakeRoom,
        WarmWindow,
        /// Adaptive residency expects a request.
        PreWarm,
        /// A person; no rule gives it.
        Manual,
    }
}

words! {
    SkipReason {
        /// No policy selects it.
        NotGoverned,
        /// The sample that a decision would rest on is too old.
        MetricsStale,
        /// The servers of its GPU do not agree on its memory.
        ReportsDisagree,
        /// Loading, leaving, failed, or under a command that has not ended.
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
        /// The target is reached without it.
        NotNeeded,
        ForeignPressure,
        /// A waiting model: memory is there, or is on its way.
        RoomComing,
        CannotMakeRoom,
        NoRoom,
        /// A dry-run policy would keep it.
        DryRun,
    }
}

words! {
    Pressure {
        None,
        Soft,
        Hard,
        Unknown,
    }
}

words! {
    GpuReason {
        MetricsStale,
        /// Its servers do not agree on its memory.
        ReportsDisagree,
        /// All that we govern together is not enough.
        ForeignPressure,
        AwaitingFreshSample,
        GracePeriod,
        Reclaiming,
        /// The target is met; the pressure is left when the transition period has passed.
        TransitionPeriod,
    }
}
