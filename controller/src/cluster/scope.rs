//! The scope of a controller: the servers on which it acts. Controllers of all scopes observe what shares their GPUs and
//! compute the same plan. Each carries out its own part of the plan, and waits while a controller of a wider scope leads.

use hush_core::{Decision, ServerName};

use crate::act::{ActionRefusal, Gate};
use crate::lease::{Claim, LeaderWatcher, LeaseName};

/// The leases of all controllers of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseNames {
    /// The lease of the controller for the whole cluster. It is the same for every installation, so that only one of two
    /// installations acts.
    pub cluster: LeaseName,
    /// The namespace of the leases of node controllers. Their names contain the names of the nodes, which no role can list
    /// in advance, so they are kept apart from the leases of Kubernetes itself.
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
    /// One server, in the pod of this controller.
    Pod { node: String, server: ServerName },
}

impl Scope {
    /// The node whose servers are observed; `None`: all nodes.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Cluster => None,
            Self::Node { node } | Self::Pod { node, .. } => Some(node),
        }
    }

    /// The only server on which the controller acts.
    pub const fn own_server(&self) -> Option<&ServerName> {
        match self {
            Self::Pod { server, .. } => Some(server),
            Self::Cluster | Self::Node { .. } => None,
        }
    }

    /// Whether the controller acts on one of the servers that it observes.
    pub fn acts_on(&self, server: &ServerName) -> bool {
        self.own_server().is_none_or(|own| own == server)
    }

    /// The lease that the controller stands for, where several controllers may have the same scope.
    pub fn lease(&self, leases: &LeaseNames) -> Option<LeaseName> {
        match self {
            Self::Cluster => Some(leases.cluster.clone()),
            Self::Node { node } => Some(leases.of_node(node)),
            Self::Pod { .. } => None,
        }
    }

    /// The leases of the controllers with a wider scope, the widest first.
    pub fn wider(&self, leases: &LeaseNames) -> Vec<LeaseName> {
        match self {
            Self::Cluster => Vec::new(),
            Self::Node { .. } => vec![leases.cluster.clone()],
            Self::Pod { node, .. } => vec![leases.cluster.clone(), leases.of_node(node)],
        }
    }
}

/// The gate of a controller in a cluster.
pub struct ScopeGate {
    pub scope: Scope,
    /// The claim among controllers of the same scope.
    pub claim: Claim,
    pub wider: Vec<LeaderWatcher>,
}

impl ScopeGate {
    /// Whether this controller leads in its scope, and no controller of a wider scope leads.
    pub fn check_leadership(&self) -> Result<(), ActionRefusal> {
        if let Some(leader) = self.wider.iter().find_map(LeaderWatcher::name) {
            return Err(ActionRefusal::WiderLeader(leader));
        }
        if self.claim.is_current() {
            return Ok(());
        }
        if let Some(refusal) = self.other_installation() {
            return Err(refusal);
        }
        Err(self.claim.holder().map_or(ActionRefusal::NoLeader, ActionRefusal::OtherLeader))
    }

    /// Why every controller of this installation is superfluous: another installation acts for the same scope.
    pub fn conflicting_installation(&self) -> Option<String> {
        self.other_installation().map(|refusal| refusal.to_string())
    }

    fn other_installation(&self) -> Option<ActionRefusal> {
        let installation = self.claim.other_installation()?;
        let scope = match &self.scope {
            Scope::Cluster => "this cluster",
            Scope::Node { .. } | Scope::Pod { .. } => "this node",
        };
        Some(ActionRefusal::OtherInstallation { installation, scope })
    }
}

impl Gate for ScopeGate {
    fn check(&self, server: &ServerName) -> Result<(), ActionRefusal> {
        if !self.scope.acts_on(server) {
            return Err(ActionRefusal::OtherServer(server.clone()));
        }
        self.check_leadership()
    }

    fn may_report(&self) -> bool {
        self.check_leadership().is_ok()
    }

    /// False while a controller of a wider scope leads: that controller then carries out the decision.
    fn is_for_another(&self, decision: &Decision) -> bool {
        !self.scope.acts_on(&decision.server) && self.check_leadership().is_ok()
    }
}
