//! For how much a controller acts. All scopes observe what shares their GPUs and compute the same plan; each carries out
//! its own part of it, and the narrower one waits while a wider one leads.

use hush_core::{Decision, ServerName};

use crate::act::Gate;
use crate::lease::{Claim, Leader};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every server of the cluster.
    Cluster,
    /// The servers on one node.
    Node { node: String },
    /// One server, beside which this runs.
    Pod { node: String, server: ServerName },
}

impl Scope {
    /// Where the GPUs are that it looks at; `None`: everywhere.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Cluster => None,
            Self::Node { node } | Self::Pod { node, .. } => Some(node),
        }
    }

    /// The only server that it acts on.
    pub const fn own_server(&self) -> Option<&ServerName> {
        match self {
            Self::Pod { server, .. } => Some(server),
            Self::Cluster | Self::Node { .. } => None,
        }
    }

    /// Of those that it looks at.
    pub fn acts_on(&self, server: &ServerName) -> bool {
        self.own_server().is_none_or(|own| own == server)
    }

    /// The lease that such a controller stands for, if it is one of several.
    pub fn lease(&self, cluster: &str) -> Option<String> {
        match self {
            Self::Cluster => Some(cluster.to_owned()),
            Self::Node { node } => Some(format!("{cluster}-{node}")),
            Self::Pod { .. } => None,
        }
    }

    /// The leases of those who are asked first, the widest first.
    pub fn wider(&self, cluster: &str) -> Vec<String> {
        let node = |node: &String| format!("{cluster}-{node}");
        match self {
            Self::Cluster => Vec::new(),
            Self::Node { .. } => vec![cluster.to_owned()],
            Self::Pod { node: own, .. } => vec![cluster.to_owned(), node(own)],
        }
    }
}

/// Asked before each command.
pub struct ScopeGate {
    pub scope: Scope,
    /// Among controllers of the same scope.
    pub claim: Claim,
    pub wider: Vec<Leader>,
}

impl ScopeGate {
    /// `Err`: who acts instead.
    pub fn open(&self) -> Result<(), String> {
        if let Some(leader) = self.wider.iter().find_map(Leader::name) {
            return Err(format!("a controller for more leads: {leader}"));
        }
        if self.claim.is_current() {
            return Ok(());
        }
        Err(match self.claim.holder() {
            Some(holder) => format!("another controller leads: {holder}"),
            None => "nobody leads yet".to_owned(),
        })
    }
}

impl Gate for ScopeGate {
    fn check(&self, server: &ServerName) -> Result<(), String> {
        if !self.scope.acts_on(server) {
            return Err(format!("{server} has a controller of its own"));
        }
        self.open()
    }

    /// While somebody leads for more, it is that one's.
    fn is_for_another(&self, decision: &Decision) -> bool {
        !self.scope.acts_on(&decision.server) && self.open().is_ok()
    }
}
