//! For how much a controller acts. All scopes observe what shares their GPUs and compute the same plan; each carries out
//! its own part of it, and the narrower one waits while a wider one leads.

use hush_core::{Decision, ServerName};

use crate::act::Gate;
use crate::lease::{Claim, Leader, LeaseName};

/// The leases of all controllers of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseNames {
    /// Of the controller for the whole cluster: the same one for every installation, so that of two one acts.
    pub cluster: LeaseName,
    /// Where the leases of the controllers for a node are. Their names have the node's name in them, which no role can
    /// list beforehand, so that they are not among those of Kubernetes itself.
    pub nodes_namespace: String,
}

impl LeaseNames {
    fn of_node(&self, node: &str) -> LeaseName {
        LeaseName { namespace: self.nodes_namespace.clone(), name: format!("{}-{node}", self.cluster.name) }
    }
}

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
    pub fn lease(&self, leases: &LeaseNames) -> Option<LeaseName> {
        match self {
            Self::Cluster => Some(leases.cluster.clone()),
            Self::Node { node } => Some(leases.of_node(node)),
            Self::Pod { .. } => None,
        }
    }

    /// The leases of those who are asked first, the widest first.
    pub fn wider(&self, leases: &LeaseNames) -> Vec<LeaseName> {
        match self {
            Self::Cluster => Vec::new(),
            Self::Node { .. } => vec![leases.cluster.clone()],
            Self::Pod { node, .. } => vec![leases.cluster.clone(), leases.of_node(node)],
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
        if let Some(reason) = self.superfluous() {
            return Err(reason);
        }
        Err(match self.claim.holder() {
            Some(holder) => format!("another controller leads: {holder}"),
            None => "nobody leads yet".to_owned(),
        })
    }

    /// Why every controller of this installation is one too many: another installation acts for the same scope.
    pub fn superfluous(&self) -> Option<String> {
        let other = self.claim.other_installation()?;
        let whole = match &self.scope {
            Scope::Cluster => "this cluster",
            Scope::Node { .. } | Scope::Pod { .. } => "this node",
        };
        Some(format!(
            "the controllers of the installation `{other}` act for {whole}, so this installation acts on nothing and \
             writes no status; uninstall one of the two, or set `controller.scope` to `none` in one of them"
        ))
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
