//! Where each value that governs a model comes from: what every policy that selects it asks for, and what holds.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::merge::{
    DEFAULT_DRAIN_TIMEOUT, DEFAULT_GRACE_PERIOD, DEFAULT_HOLD_AFTER_EVICTION, DEFAULT_IDLE_TIMEOUT,
    DEFAULT_MIN_RESIDENT, DEFAULT_PRIORITY, DEFAULT_RESIDENCY, DEFAULT_TRANSITION_PERIOD, Merged, Pick, mode_at,
};
use crate::policy::{Policy, Residency};
use crate::world::{Labels, Model, World};

/// Every policy that selects a model, and field by field who wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// By name.
    pub policies: Vec<Matching>,
    /// Empty when every policy that selects it is in dry run, or none does.
    pub terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Matching {
    pub policy: String,
    /// It takes no part in what holds.
    pub dry_run: bool,
    /// One of its windows is open and sets its residency.
    pub window_open: bool,
    /// Of the policy by itself: budgets are not merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
}

/// One field of the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Term {
    /// As it is written in the spec.
    pub field: &'static str,
    /// What holds.
    pub value: Setting,
    /// Whose value it is; `None`: nobody asks, and the default holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The policy is the operator's and does not write the field: its default bounds what other policies ask for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub by_default: bool,
    /// What the other policies ask for, those of dry runs too, by name.
    pub others: Vec<Asked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asked {
    pub value: Setting,
    pub policy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Setting {
    Mode(Residency),
    Milliseconds(u64),
    Bytes(u64),
    Number(i64),
}

struct Field {
    name: &'static str,
    of: fn(&Merged) -> Option<Pick<Setting>>,
    /// `None`: without a policy that asks it does not exist.
    default: Option<Setting>,
}

fn span(span: Duration) -> Setting {
    Setting::Milliseconds(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

fn pick<T>(pick: Option<Pick<T>>, value: impl FnOnce(T) -> Setting) -> Option<Pick<Setting>> {
    pick.map(|pick| Pick { value: value(pick.value), policy: pick.policy })
}

/// In the order of the spec. The idle timeout has a default only with the residency that needs one.
fn fields(idle: bool) -> [Field; 12] {
    let field = |name, of, default| Field { name, of, default };
    [
        field("residency.mode", |m| pick(m.residency, Setting::Mode), Some(Setting::Mode(DEFAULT_RESIDENCY))),
        field("residency.idleTimeout", |m| pick(m.idle_timeout, span), idle.then(|| span(DEFAULT_IDLE_TIMEOUT))),
        field("residency.minResident", |m| pick(m.min_resident, span), Some(span(DEFAULT_MIN_RESIDENT))),
        field("pressure.hard.availableBelow", |m| pick(m.hard_below, Setting::Bytes), None),
        field("pressure.soft.availableBelow", |m| pick(m.soft_below, Setting::Bytes), None),
        field("pressure.soft.gracePeriod", |m| pick(m.grace_period, span), Some(span(DEFAULT_GRACE_PERIOD))),
        field("pressure.minReclaim", |m| pick(m.min_reclaim, Setting::Bytes), Some(Setting::Bytes(0))),
        field("pressure.transitionPeriod", |m| pick(m.transition_period, span), Some(span(DEFAULT_TRANSITION_PERIOD))),
        field("priority", |m| pick(m.priority, number), Some(number(DEFAULT_PRIORITY))),
        field("minLoaded", |m| pick(m.min_loaded, number), Some(number(0))),
        field("drainTimeout", |m| pick(m.drain_timeout, span), Some(span(DEFAULT_DRAIN_TIMEOUT))),
        field("holdAfterEviction", |m| pick(m.hold_after_eviction, span), Some(span(DEFAULT_HOLD_AFTER_EVICTION))),
    ]
}

fn number(number: impl Into<i64>) -> Setting {
    Setting::Number(number.into())
}

/// `model` is one of `world`.
pub fn account(now: Timestamp, world: &World, policies: &[Policy], model: &Model) -> Account {
    let nothing = Labels::new();
    let labels = world.namespaces.get(model.key.server.namespace()).unwrap_or(&nothing);
    let total = model.gpu.as_ref().and_then(|gpu| world.gpus.iter().find(|other| other.uuid == *gpu));
    let total = total.map(|gpu| gpu.total_bytes);
    let mut matching: Vec<&Policy> = policies.iter().filter(|policy| policy.selects(model, labels)).collect();
    matching.sort_by(|a, b| a.name.cmp(&b.name));
    let modes: Vec<_> = matching.iter().map(|policy| mode_at(policy, now)).collect();
    let asks: Vec<Merged> =
        matching.iter().enumerate().map(|(p, policy)| Merged::of(p, &policy.asks, modes[p], total)).collect();
    let name = |policy: usize| matching[policy].name.to_string();
    let merged = (0..matching.len()).filter(|&policy| !matching[policy].dry_run);
    let takes_part = |policy: usize| Merged::of_policy(policy, matching[policy], modes[policy], total);
    let merged = merged.map(takes_part).reduce(|a, b| a.merge(&b));
    let terms = merged.map(|merged| {
        let idle = merged.residency.map_or(DEFAULT_RESIDENCY, |residency| residency.value) == Residency::Idle;
        let term = |Field { name: field, of, default }: Field| {
            let winner = of(&merged);
            let others = asks.iter().filter_map(of).filter(|asked| winner.is_none_or(|w| w.policy != asked.policy));
            let others = others.map(|asked| Asked { value: asked.value, policy: name(asked.policy) }).collect();
            let value = winner.map(|winner| winner.value).or(default)?;
            let by_default = winner.is_some_and(|winner| of(&asks[winner.policy]).is_none());
            Some(Term { field, value, policy: winner.map(|winner| name(winner.policy)), by_default, others })
        };
        fields(idle).into_iter().filter_map(term).collect()
    });
    let policies = matching.iter().zip(&modes).map(|(policy, mode)| Matching {
        policy: policy.name.to_string(),
        dry_run: policy.dry_run,
        window_open: mode.is_some_and(|(_, window)| window),
        budget_bytes: policy.asks.budget.and_then(|budget| budget.bytes(total)),
    });
    Account { policies: policies.collect(), terms: terms.unwrap_or_default() }
}
