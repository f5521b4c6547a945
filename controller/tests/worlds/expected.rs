//! The rules of a model, worked out a second time and in another way than the core does it: one field after the other,
//! straight from the table of `docs/policies.md`.

use std::time::Duration;

use hush_core::{Labels, MemoryAmount, ModelPolicy, ObservedModel, PolicyResidency, PolicySpec};
use jiff::Timestamp;

use crate::scenario::Scenario;

#[derive(Clone, Debug)]
pub struct Expected {
    /// The enforced policies that select the model.
    pub policies: Vec<usize>,
    pub mode: PolicyResidency,
    /// An open window makes it resident.
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
    /// What the operator's policies alone keep loaded, and which those are; `None`: no cluster policy selects the model.
    pub operator: Option<OperatorMinLoaded>,
    pub drain: Duration,
    pub hold: Duration,
}

#[derive(Clone, Debug)]
pub struct OperatorMinLoaded {
    pub policies: Vec<usize>,
    pub min_loaded: u32,
}

pub fn expected(scenario: &Scenario, model: &ObservedModel, total: Option<u64>, wall: Timestamp) -> Option<Expected> {
    let nothing = Labels::new();
    let labels = scenario.namespaces.get(model.key.server.namespace()).unwrap_or(&nothing);
    let enforced = |policy: &ModelPolicy| !policy.dry_run && policy.selects(model, labels);
    let policies: Vec<usize> = (0..scenario.policies.len()).filter(|&at| enforced(&scenario.policies[at])).collect();
    let asks: Vec<&PolicySpec> = policies.iter().map(|&at| &scenario.policies[at].asks).collect();
    if asks.is_empty() {
        return None;
    }
    fn all<'a, T: 'a>(asks: &[&'a PolicySpec], field: impl Fn(&'a PolicySpec) -> Option<T>) -> Vec<T> {
        asks.iter().filter_map(|asks| field(asks)).collect()
    }
    let seconds = |field: fn(&PolicySpec) -> Option<Duration>| all(&asks, field);
    let bytes = |field: fn(&PolicySpec) -> Option<MemoryAmount>| -> Vec<u64> {
        all(&asks, field).into_iter().filter_map(|amount| amount.bytes(total)).collect()
    };
    let cluster: Vec<usize> =
        policies.iter().copied().filter(|&at| scenario.policies[at].name.namespace.is_none()).collect();
    // A cluster policy that leaves one of these out bounds the others by the default, which is 0 for all of them.
    let silent = |written: fn(&PolicySpec) -> bool| cluster.iter().any(|&at| !written(&scenario.policies[at].asks));
    let window = |asks: &PolicySpec| asks.schedule.iter().filter(|w| w.is_open(wall)).map(|w| w.mode).max();
    let modes = policies.iter().filter_map(|&at| {
        let asks = &scenario.policies[at].asks;
        let timeout_alone = cluster.contains(&at) && asks.idle_timeout.is_some();
        window(asks).or(asks.residency).or(timeout_alone.then_some(PolicyResidency::Idle))
    });
    let mode = modes.max().unwrap_or(PolicyResidency::Idle);
    let timeouts = seconds(|asks| asks.idle_timeout);
    Some(Expected {
        mode,
        warm: mode == PolicyResidency::Resident
            && asks.iter().any(|asks| window(asks) == Some(PolicyResidency::Resident)),
        idle_timeout: match mode {
            PolicyResidency::Idle => Some(timeouts.into_iter().min().unwrap_or(Duration::from_secs(300))),
            PolicyResidency::OnDemand => Some(Duration::ZERO),
            PolicyResidency::Resident | PolicyResidency::Adaptive => None,
        },
        min_resident: if silent(|asks| asks.min_resident.is_some()) {
            Duration::ZERO
        } else {
            seconds(|asks| asks.min_resident).into_iter().min().unwrap_or(Duration::ZERO)
        },
        hard_below: bytes(|asks| asks.hard_below).into_iter().max(),
        soft_below: bytes(|asks| asks.soft_below).into_iter().max(),
        grace: seconds(|asks| asks.grace_period).into_iter().min().unwrap_or(Duration::from_secs(60)),
        min_reclaim: bytes(|asks| asks.min_reclaim).into_iter().max().unwrap_or(0),
        transition: seconds(|asks| asks.transition_period).into_iter().max().unwrap_or(Duration::from_secs(300)),
        priority: {
            let asked = all(&asks, |asks| asks.priority).into_iter();
            asked.chain(silent(|asks| asks.priority.is_some()).then_some(0)).min().unwrap_or(0)
        },
        min_loaded: if silent(|asks| asks.min_loaded.is_some()) {
            0
        } else {
            all(&asks, |asks| asks.min_loaded).into_iter().min().unwrap_or(0)
        },
        operator: (!cluster.is_empty()).then(|| OperatorMinLoaded {
            min_loaded: cluster.iter().map(|&at| scenario.policies[at].asks.min_loaded.unwrap_or(0)).min().unwrap_or(0),
            policies: cluster.clone(),
        }),
        drain: seconds(|asks| asks.drain_timeout).into_iter().min().unwrap_or(Duration::from_secs(30)),
        hold: seconds(|asks| asks.hold_after_eviction).into_iter().max().unwrap_or(Duration::from_secs(120)),
        policies,
    })
}

impl Expected {
    pub fn hard_target(&self) -> Option<u64> {
        self.hard_below.map(|below| below + self.min_reclaim)
    }

    pub fn soft_target(&self) -> Option<u64> {
        self.soft_below.map(|below| below + self.min_reclaim)
    }
}
