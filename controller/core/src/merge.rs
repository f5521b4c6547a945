//! Several policies on one model: the strictest value of each field wins.
//!
//! The merge is commutative, associative and idempotent. Each value remembers the policy it came from, the first by name
//! among equals, so that a decision can name the policy that caused it.
//!
//! A cluster policy is the operator's floor. Of the fields that protect a model, or give it the memory of others
//! (`minResident`, `minLoaded`, `priority`), it takes part with the default where it writes none. So its value, written
//! or default, bounds what the policies of a namespace ask for.

use std::time::Duration;

use jiff::Timestamp;

use crate::policy::{Asks, Policy, Residency};

pub const DEFAULT_RESIDENCY: Residency = Residency::Idle;
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
pub const DEFAULT_MIN_RESIDENT: Duration = Duration::ZERO;
pub const DEFAULT_GRACE_PERIOD: Duration = Duration::from_secs(60);
pub const DEFAULT_TRANSITION_PERIOD: Duration = Duration::from_secs(300);
pub const DEFAULT_PRIORITY: i32 = 0;
pub const DEFAULT_MIN_LOADED: u32 = 0;
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
pub const DEFAULT_HOLD_AFTER_EVICTION: Duration = Duration::from_secs(120);

/// A value and the place of its policy in the sorted list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pick<T> {
    pub value: T,
    pub policy: usize,
}

/// What several policies ask for together, amounts in bytes on one card, the mode as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub residency: Option<Pick<Residency>>,
    /// The first policy whose open window asks for exactly this residency.
    pub window: Option<usize>,
    pub idle_timeout: Option<Pick<Duration>>,
    pub min_resident: Option<Pick<Duration>>,
    pub hard_below: Option<Pick<u64>>,
    pub soft_below: Option<Pick<u64>>,
    pub grace_period: Option<Pick<Duration>>,
    pub min_reclaim: Option<Pick<u64>>,
    pub transition_period: Option<Pick<Duration>>,
    pub priority: Option<Pick<i32>>,
    pub min_loaded: Option<Pick<u32>>,
    pub drain_timeout: Option<Pick<Duration>>,
    pub hold_after_eviction: Option<Pick<Duration>>,
}

fn least<T: Ord + Copy>(a: Option<Pick<T>>, b: Option<Pick<T>>) -> Option<Pick<T>> {
    [a, b].into_iter().flatten().min()
}

fn greatest<T: Ord + Copy>(a: Option<Pick<T>>, b: Option<Pick<T>>) -> Option<Pick<T>> {
    [a, b].into_iter().flatten().reduce(|a, b| match a.value.cmp(&b.value) {
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Equal => a.min(b),
    })
}

impl Merged {
    /// What one policy takes part with: what it asks for, and the defaults by which a cluster policy bounds others.
    pub fn of_policy(at: usize, policy: &Policy, mode: Option<(Residency, bool)>, total_bytes: Option<u64>) -> Self {
        let mut merged = Self::of(at, &policy.asks, mode, total_bytes);
        if policy.is_cluster() {
            merged.min_resident.get_or_insert(Pick { value: DEFAULT_MIN_RESIDENT, policy: at });
            merged.min_loaded.get_or_insert(Pick { value: DEFAULT_MIN_LOADED, policy: at });
            merged.priority.get_or_insert(Pick { value: DEFAULT_PRIORITY, policy: at });
        }
        merged
    }

    /// What one policy asks for. `mode` is its mode now and whether a window set it.
    pub fn of(policy: usize, asks: &Asks, mode: Option<(Residency, bool)>, total_bytes: Option<u64>) -> Self {
        fn pick<T>(policy: usize, value: Option<T>) -> Option<Pick<T>> {
            value.map(|value| Pick { value, policy })
        }
        let bytes = |amount: Option<crate::Amount>| pick(policy, amount.and_then(|amount| amount.bytes(total_bytes)));
        Self {
            residency: pick(policy, mode.map(|(mode, _)| mode)),
            window: mode.is_some_and(|(_, window)| window).then_some(policy),
            idle_timeout: pick(policy, asks.idle_timeout),
            min_resident: pick(policy, asks.min_resident),
            hard_below: bytes(asks.hard_below),
            soft_below: bytes(asks.soft_below),
            grace_period: pick(policy, asks.grace_period),
            min_reclaim: bytes(asks.min_reclaim),
            transition_period: pick(policy, asks.transition_period),
            priority: pick(policy, asks.priority),
            min_loaded: pick(policy, asks.min_loaded),
            drain_timeout: pick(policy, asks.drain_timeout),
            hold_after_eviction: pick(policy, asks.hold_after_eviction),
        }
    }

    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        let residency = greatest(self.residency, other.residency);
        // A window of a more lenient mode than the strictest counts for nothing.
        let decides = |merged: &&Self| merged.residency.map(|r| r.value) == residency.map(|r| r.value);
        Self {
            residency,
            window: [self, other].into_iter().filter(decides).filter_map(|merged| merged.window).min(),
            idle_timeout: least(self.idle_timeout, other.idle_timeout),
            min_resident: least(self.min_resident, other.min_resident),
            hard_below: greatest(self.hard_below, other.hard_below),
            soft_below: greatest(self.soft_below, other.soft_below),
            grace_period: least(self.grace_period, other.grace_period),
            min_reclaim: greatest(self.min_reclaim, other.min_reclaim),
            transition_period: greatest(self.transition_period, other.transition_period),
            priority: least(self.priority, other.priority),
            min_loaded: least(self.min_loaded, other.min_loaded),
            drain_timeout: least(self.drain_timeout, other.drain_timeout),
            hold_after_eviction: greatest(self.hold_after_eviction, other.hold_after_eviction),
        }
    }
}

/// A policy's mode at `now`, and whether a window set it: that of its strictest open window, else its own. A cluster
/// policy that gives an idle timeout alone means the mode to which timeouts belong: no policy of a namespace that asks for
/// `Resident` makes it void.
pub fn mode_at(policy: &Policy, now: Timestamp) -> Option<(Residency, bool)> {
    let asks = &policy.asks;
    let window = asks.schedule.iter().filter(|window| window.open(now)).map(|window| window.mode).max();
    let implied = (policy.is_cluster() && asks.idle_timeout.is_some()).then_some(DEFAULT_RESIDENCY);
    window.map(|mode| (mode, true)).or_else(|| asks.residency.or(implied).map(|mode| (mode, false)))
}

/// The rules of a model: the merge with every gap filled. Policies are places in the sorted list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub residency: Pick<Residency>,
    /// The policy whose open window set the residency.
    pub window: Option<usize>,
    /// Filled for `Idle`; for `Adaptive` a cap when somebody asked for one.
    pub idle_timeout: Option<Pick<Duration>>,
    pub min_resident: Duration,
    pub hard_below: Option<Pick<u64>>,
    pub soft_below: Option<Pick<u64>>,
    pub grace_period: Duration,
    pub min_reclaim_bytes: u64,
    pub transition_period: Duration,
    pub priority: Pick<i32>,
    pub min_loaded: u32,
    pub drain_timeout: Duration,
    pub hold_after_eviction: Duration,
}

impl Rules {
    /// `first` stands for the policy wherever a default decides.
    pub fn fill(merged: &Merged, first: usize) -> Self {
        fn or<T>(pick: &Option<Pick<T>>, default: T) -> T
        where
            T: Copy,
        {
            pick.as_ref().map_or(default, |pick| pick.value)
        }
        let residency = merged.residency.unwrap_or(Pick { value: DEFAULT_RESIDENCY, policy: first });
        let idle_timeout = match residency.value {
            Residency::Idle => {
                merged.idle_timeout.or(Some(Pick { value: DEFAULT_IDLE_TIMEOUT, policy: residency.policy }))
            }
            _ => merged.idle_timeout,
        };
        Self {
            residency,
            window: merged.window,
            idle_timeout,
            min_resident: or(&merged.min_resident, DEFAULT_MIN_RESIDENT),
            hard_below: merged.hard_below,
            soft_below: merged.soft_below,
            grace_period: or(&merged.grace_period, DEFAULT_GRACE_PERIOD),
            min_reclaim_bytes: or(&merged.min_reclaim, 0),
            transition_period: or(&merged.transition_period, DEFAULT_TRANSITION_PERIOD),
            priority: merged.priority.unwrap_or(Pick { value: DEFAULT_PRIORITY, policy: first }),
            min_loaded: or(&merged.min_loaded, DEFAULT_MIN_LOADED),
            drain_timeout: or(&merged.drain_timeout, DEFAULT_DRAIN_TIMEOUT),
            hold_after_eviction: or(&merged.hold_after_eviction, DEFAULT_HOLD_AFTER_EVICTION),
        }
    }
}
