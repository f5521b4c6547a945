//! What the controller has observed: GPUs, models and the age of each sample.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::residency::ProcessEnding;

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

macro_rules! text_type {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

text_type! {
    /// The UUID of a GPU or of a MIG instance.
    GpuId
}

text_type! {
    /// The name of a server, `namespace/pod`. Ordered by the bytes of the whole text.
    ServerName
}

impl ServerName {
    /// The part before the slash; empty for a name without a slash.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }
}

/// One model of one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelKey {
    pub server: ServerName,
    pub model: String,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.server, self.model)
    }
}

/// Everything that one step decides from, beside the policies and the memory of earlier steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// A sample older than this causes no action.
    pub stale_after: Duration,
    pub gpus: Vec<ObservedGpu>,
    pub models: Vec<ObservedModel>,
    /// Labels by namespace, for the namespace selectors of cluster policies.
    pub namespaces: BTreeMap<String, Labels>,
}

/// One GPU as its servers reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedGpu {
    pub uuid: GpuId,
    pub node: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub sample_age: Duration,
    /// The servers of this GPU report different figures: no decision rests on its memory.
    pub disputed: bool,
}

impl ObservedGpu {
    /// Whether a decision may rest on the sample.
    pub fn is_trusted(&self, stale_after: Duration) -> bool {
        self.sample_age <= stale_after && !self.disputed
    }

    pub const fn available_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes)
    }
}

/// One model, with what its server reported of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedModel {
    pub key: ModelKey,
    /// The kind of the program that serves the model, such as `whisper` or `ollama`: for users alone, no decision rests on
    /// it.
    pub app: String,
    /// What an unload can do about the process of that program.
    pub process_ending: ProcessEnding,
    pub labels: Labels,
    pub sample: ModelSample,
    pub sample_age: Duration,
    /// Commands to its server failed lately: for a while no decision names the model.
    pub back_off: bool,
}

/// One model as its server reports it in a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSample {
    /// `None`: the model is not on a GPU, or its memory was not measured, and only the rules about idleness apply to it.
    pub gpu: Option<GpuId>,
    pub state: ResidencyState,
    /// The time since the last request (or the load) ended.
    pub idle: Duration,
    /// Since when the model is idle, in Unix time by the clock of its node; `None`: it is busy, or its server does not
    /// report it. It orders the models of one GPU, where a difference of milliseconds counts: `idle` also contains the
    /// time that the answer of the server took.
    pub idle_since: Option<Duration>,
    pub inflight: u64,
    pub queued: u64,
    /// What the model holds while it is loaded; otherwise what its next load needs, 0 when that is unknown.
    pub vram_bytes: u64,
    pub generation: u64,
    pub loaded_for: Duration,
    /// How long the last load took.
    pub reload: Duration,
    /// The memory that the model waits for, in the state `WaitingForMemory`.
    pub demand_bytes: u64,
    /// The time for which the model must not be loaded; zero: there is no hold, or its server does not report it.
    pub hold: Duration,
    /// The gaps between requests, from which adaptive residency learns.
    pub arrivals: Option<ArrivalHistogram>,
}

impl ObservedModel {
    pub const fn is_ready(&self) -> bool {
        matches!(self.sample.state, ResidencyState::Ready)
    }

    /// Whether the model is ready and has requests in flight or queued.
    pub const fn is_busy(&self) -> bool {
        self.is_ready() && self.sample.inflight.saturating_add(self.sample.queued) > 0
    }
}

/// The times between the arrivals of requests, as a cumulative histogram since the server started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalHistogram {
    /// Upper bound of each bucket and the number of gaps that were at most that long, ascending.
    pub buckets: Vec<(Duration, u64)>,
    /// The number of all gaps, also of those longer than the last bound.
    pub count: u64,
}

/// The state of a model, as its server reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ResidencyState {
    Unloaded,
    Loading,
    Ready,
    Draining,
    Unloading,
    WaitingForMemory,
    Failed,
}

/// The same questions as of the contract's `ModelState`, with the same answers, which a test of the controller compares.
impl ResidencyState {
    /// Whether the model is in memory and can work on requests.
    pub const fn is_loaded(self) -> bool {
        matches!(self, Self::Ready | Self::Draining)
    }

    /// Whether the model may hold device memory: from the start of its runner until its memory is seen to be back.
    pub const fn holds_memory(self) -> bool {
        matches!(self, Self::Loading | Self::Ready | Self::Draining | Self::Unloading)
    }

    /// Whether what the model holds has been measured. While it loads, only what it needs is known.
    pub const fn has_measured_memory(self) -> bool {
        self.holds_memory() && !matches!(self, Self::Loading)
    }

    /// Whether the model is on its way out of memory.
    pub const fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Unloading)
    }
}
