//! A policy as the core uses it: parsed and checked, with amounts not yet in bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy_fields::PolicySpec;
use crate::selector::{Glob, Selector};
use crate::world::{Labels, ObservedModel, ServerName};

/// `namespace/name`, or `/name` for a cluster policy. Cluster policies are ordered first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyKey {
    pub namespace: Option<String>,
    pub name: String,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => write!(f, "/{}", self.name),
        }
    }
}

/// One policy: which models it selects, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPolicy {
    /// A policy without a namespace is a cluster policy.
    pub name: PolicyKey,
    pub selector: Selector,
    /// For cluster policies only; `None`: every namespace.
    pub namespace_selector: Option<Selector>,
    /// Empty: every model.
    pub models: Vec<Glob>,
    /// The effect of the policy is computed and shown, and never carried out.
    pub dry_run: bool,
    pub asks: PolicySpec,
}

impl ModelPolicy {
    /// A policy of the operator of the cluster, which bounds what the policies of a namespace may ask for.
    pub const fn is_cluster(&self) -> bool {
        self.name.namespace.is_none()
    }

    pub fn selects(&self, model: &ObservedModel, namespace_labels: &Labels) -> bool {
        let selects_name = || self.models.is_empty() || self.models.iter().any(|glob| glob.matches(&model.key.model));
        self.selects_server(&model.key.server, &model.labels, namespace_labels) && selects_name()
    }

    /// Whether the policy selects a server, whatever its models are called.
    pub fn selects_server(&self, server: &ServerName, labels: &Labels, namespace_labels: &Labels) -> bool {
        let selects_namespace = match &self.name.namespace {
            Some(own) => own == server.namespace(),
            None => self.namespace_selector.as_ref().is_none_or(|selector| selector.matches(namespace_labels)),
        };
        selects_namespace && self.selector.matches(labels)
    }
}
