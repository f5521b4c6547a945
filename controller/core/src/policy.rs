//! A policy as the core sees it: parsed, checked, amounts not yet in bytes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::schedule::Window;
use crate::select::{Glob, Selector};
use crate::world::{Labels, Model, ServerName};

/// `namespace/name`, or `/name` for the cluster kind. Cluster policies come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyName {
    pub namespace: Option<String>,
    pub name: String,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => write!(f, "/{}", self.name),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Without a namespace it is the cluster kind.
    pub name: PolicyName,
    pub selector: Selector,
    /// Cluster kind only; `None`: every namespace.
    pub namespace_selector: Option<Selector>,
    /// Empty: every model.
    pub models: Vec<Glob>,
    /// Its effect is computed and shown, never carried out.
    pub dry_run: bool,
    pub asks: Asks,
}

/// What a policy asks for. What it leaves out takes part in no merge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    pub residency: Option<Residency>,
    pub idle_timeout: Option<Duration>,
    pub min_resident: Option<Duration>,
    pub schedule: Vec<Window>,
    pub hard_below: Option<Amount>,
    pub soft_below: Option<Amount>,
    pub grace_period: Option<Duration>,
    pub min_reclaim: Option<Amount>,
    pub transition_period: Option<Duration>,
    pub priority: Option<i32>,
    pub budget: Option<Amount>,
    pub min_loaded: Option<u32>,
    pub drain_timeout: Option<Duration>,
    pub hold_after_eviction: Option<Duration>,
}

/// From the most lenient to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Residency {
    Resident,
    Idle,
    Adaptive,
    OnDemand,
}

impl Policy {
    /// An operator's policy, which bounds what the policies of a namespace may ask for.
    pub const fn is_cluster(&self) -> bool {
        self.name.namespace.is_none()
    }

    pub fn selects(&self, model: &Model, namespace_labels: &Labels) -> bool {
        let named = || self.models.is_empty() || self.models.iter().any(|glob| glob.matches(&model.key.model));
        self.selects_server(&model.key.server, &model.labels, namespace_labels) && named()
    }

    /// Whether a server is selected, whatever its models are called.
    pub fn selects_server(&self, server: &ServerName, labels: &Labels, namespace_labels: &Labels) -> bool {
        let namespace = match &self.name.namespace {
            Some(own) => own == server.namespace(),
            None => self.namespace_selector.as_ref().is_none_or(|selector| selector.matches(namespace_labels)),
        };
        namespace && self.selector.matches(labels)
    }
}
