//! The rules of a model, computed a second time in another way than the core does it: one field after the other, directly
//! from the table of `docs/policies.md`.

use std::time::Duration;

use hush_core::{Labels, MemoryAmount, ModelPolicy, ObservedModel, PolicyResidency, PolicySpec, PolicyUnload};
use jiff::Timestamp;

use crate::scenario::Scenario;

/// The rules that must hold for a model.
#[derive(Clone, Debug)]
pub struct ExpectedRules {
    /// Indexes of the enforced policies that select the model.
    pub policies: Vec<usize>,
    pub mode: PolicyResidency,
    /// An open window makes the model resident.
    pub warm: bool,
    pub idle_timeout: Option<Duration>,
    pub min_resident: Duration,
    pub hard_below: Option<u64>,
    pub soft_below: Option<u64>,
    pub grace: Duration,
    pub min_reclaim: u64,
    pub transition: Duration,
    pub priority: i32,
    pub min_loaded: u32,
    /// What the cluster policies alone keep loaded; `None`: no cluster policy selects the model.
    pub cluster: Option<ClusterMinLoaded>,
    pub drain: Duration,
    pub hold: Duration,
    pub unload: PolicyUnload,
}

/// The cluster policies that select a model, by index, and the least of their minima.
#[derive(Clone, Debug)]
pub struct ClusterMinLoaded {
    pub policies: Vec<usize>,
    pub min_loaded: u32,
}

/// The rules of `model` on a GPU of `total` bytes at the time `wall`; `None`: no enforced policy selects the model.
pub fn expected_rules(
    scenario: &Scenario,
    model: &ObservedModel,
    total: Option<u64>,
    wall: Timestamp,
) -> Option<ExpectedRules> {
    let selecting = Selecting::new(scenario, model, total)?;
    let mode = selecting.mode(wall);
    let timeouts = selecting.durations(|asks| asks.idle_timeout);

    Some(ExpectedRules {
        mode,
        warm: mode == PolicyResidency::Resident
            && selecting.specs().any(|asks| open_window(asks, wall) == Some(PolicyResidency::Resident)),
        idle_timeout: match mode {
            PolicyResidency::Idle => Some(timeouts.into_iter().min().unwrap_or(Duration::from_secs(300))),
            PolicyResidency::OnDemand => Some(Duration::ZERO),
            PolicyResidency::Resident | PolicyResidency::Adaptive => None,
        },
        min_resident: if selecting.a_cluster_policy_omits(|asks| asks.min_resident.is_none()) {
            Duration::ZERO
        } else {
            selecting.durations(|asks| asks.min_resident).into_iter().min().unwrap_or(Duration::ZERO)
        },
        hard_below: selecting.bytes(|asks| asks.hard_below).into_iter().max(),
        soft_below: selecting.bytes(|asks| asks.soft_below).into_iter().max(),
        grace: selecting.durations(|asks| asks.grace_period).into_iter().min().unwrap_or(Duration::from_secs(60)),
        min_reclaim: selecting.bytes(|asks| asks.min_reclaim).into_iter().max().unwrap_or(0),
        transition: selecting
            .durations(|asks| asks.transition_period)
            .into_iter()
            .max()
            .unwrap_or(Duration::from_secs(300)),
        priority: selecting.priority(),
        min_loaded: if selecting.a_cluster_policy_omits(|asks| asks.min_loaded.is_none()) {
            0
        } else {
            selecting.specs().filter_map(|asks| asks.min_loaded).min().unwrap_or(0)
        },
        cluster: selecting.cluster_min_loaded(),
        drain: selecting.durations(|asks| asks.drain_timeout).into_iter().min().unwrap_or(Duration::from_secs(30)),
        hold: selecting
            .durations(|asks| asks.hold_after_eviction)
            .into_iter()
            .max()
            .unwrap_or(Duration::from_secs(120)),
        unload: if selecting.specs().any(|asks| asks.unload == Some(PolicyUnload::Process)) {
            PolicyUnload::Process
        } else {
            PolicyUnload::App
        },
        policies: selecting.policies,
    })
}

/// The enforced policies that select one model, by index.
struct Selecting<'a> {
    scenario: &'a Scenario,
    total: Option<u64>,
    policies: Vec<usize>,
    cluster: Vec<usize>,
}

impl<'a> Selecting<'a> {
    /// `None`: there are none.
    fn new(scenario: &'a Scenario, model: &ObservedModel, total: Option<u64>) -> Option<Self> {
        let no_labels = Labels::new();
        let labels = scenario.namespaces.get(model.key.server.namespace()).unwrap_or(&no_labels);
        let is_enforced = |policy: &ModelPolicy| !policy.dry_run && policy.selects(model, labels);
        let indexes = 0..scenario.policies.len();
        let policies: Vec<usize> = indexes.filter(|&index| is_enforced(&scenario.policies[index])).collect();
        if policies.is_empty() {
            return None;
        }

        let is_cluster = |index: &usize| scenario.policies[*index].name.namespace.is_none();
        let cluster = policies.iter().copied().filter(is_cluster).collect();
        Some(Self { scenario, total, policies, cluster })
    }

    fn specs(&self) -> impl Iterator<Item = &'a PolicySpec> {
        let scenario = self.scenario;
        self.policies.iter().map(|&index| &scenario.policies[index].asks).collect::<Vec<_>>().into_iter()
    }

    fn durations(&self, field: fn(&PolicySpec) -> Option<Duration>) -> Vec<Duration> {
        self.specs().filter_map(field).collect()
    }

    fn bytes(&self, field: fn(&PolicySpec) -> Option<MemoryAmount>) -> Vec<u64> {
        self.specs().filter_map(field).filter_map(|amount| amount.bytes(self.total)).collect()
    }

    /// A cluster policy that omits one of these fields bounds the others by the default, which is 0 for all of them.
    fn a_cluster_policy_omits(&self, is_omitted: fn(&PolicySpec) -> bool) -> bool {
        self.cluster.iter().any(|&index| is_omitted(&self.scenario.policies[index].asks))
    }

    fn mode(&self, wall: Timestamp) -> PolicyResidency {
        let modes = self.policies.iter().filter_map(|index| {
            let asks = &self.scenario.policies[*index].asks;
            let has_timeout_alone = self.cluster.contains(index) && asks.idle_timeout.is_some();
            open_window(asks, wall).or(asks.residency).or(has_timeout_alone.then_some(PolicyResidency::Idle))
        });
        modes.max().unwrap_or(PolicyResidency::Idle)
    }

    fn priority(&self) -> i32 {
        let omitted = self.a_cluster_policy_omits(|asks| asks.priority.is_none()).then_some(0);
        self.specs().filter_map(|asks| asks.priority).chain(omitted).min().unwrap_or(0)
    }

    fn cluster_min_loaded(&self) -> Option<ClusterMinLoaded> {
        let minima = self.cluster.iter().map(|&index| self.scenario.policies[index].asks.min_loaded.unwrap_or(0));
        let min_loaded = minima.min()?;
        Some(ClusterMinLoaded { policies: self.cluster.clone(), min_loaded })
    }
}

/// The strictest mode of the windows that are open.
fn open_window(asks: &PolicySpec, wall: Timestamp) -> Option<PolicyResidency> {
    asks.schedule.iter().filter(|window| window.is_open(wall)).map(|window| window.mode).max()
}

impl ExpectedRules {
    pub fn hard_target(&self) -> Option<u64> {
        self.hard_below.map(|below| below + self.min_reclaim)
    }

    pub fn soft_target(&self) -> Option<u64> {
        self.soft_below.map(|below| below + self.min_reclaim)
    }
}
