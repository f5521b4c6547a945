//! What was seen: cards, models and the age of each sample.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

macro_rules! text {
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

text! {
    /// The UUID of a card or of a MIG instance.
    GpuId
}

text! {
    /// `namespace/pod`. Ordered by the bytes of the whole text.
    ServerName
}

impl ServerName {
    /// Empty for a name without a slash.
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// A sample older than this causes no action.
    pub stale_after: Duration,
    pub gpus: Vec<Gpu>,
    pub models: Vec<Model>,
    /// Labels by namespace, for the cluster kind's namespace selector.
    pub namespaces: BTreeMap<String, Labels>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub uuid: GpuId,
    pub node: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    pub sample_age: Duration,
    /// Its servers do not agree on it: no decision rests on its memory.
    pub disputed: bool,
}

impl Gpu {
    pub const fn available_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub key: ModelKey,
    /// `None`: not on a GPU; only the rules of idleness hold.
    pub gpu: Option<GpuId>,
    pub labels: Labels,
    pub state: State,
    /// Since the last request (or the load) ended.
    pub idle: Duration,
    /// Since when, in Unix time by the clock of its node; `None`: it does not tell. For the order among models of a card,
    /// in which a difference of milliseconds counts: `idle` has grown by then by however long its answer took.
    pub idle_since: Option<Duration>,
    pub inflight: u64,
    pub queued: u64,
    /// Now held; of an unloaded model: what it needed last time, 0 when that is unknown.
    pub vram_bytes: u64,
    pub generation: u64,
    pub loaded_for: Duration,
    /// What a load took last time.
    pub reload: Duration,
    /// What it waits for, in the state `WaitingForMemory`.
    pub demand_bytes: u64,
    pub sample_age: Duration,
    /// Commands to its server failed lately: it is named by no decision for a while.
    pub back_off: bool,
    /// What adaptive residency learns from.
    pub arrivals: Option<Arrivals>,
}

impl Model {
    pub const fn ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    pub const fn busy(&self) -> bool {
        self.ready() && self.inflight.saturating_add(self.queued) > 0
    }
}

/// Time between the arrivals of requests, as a cumulative histogram since the server started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrivals {
    /// Upper bound and how many gaps were at most that long, ascending.
    pub buckets: Vec<(Duration, u64)>,
    /// All gaps, also those longer than the last bound.
    pub count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    Unloaded,
    Loading,
    Ready,
    Draining,
    Unloading,
    WaitingForMemory,
    Failed,
}
