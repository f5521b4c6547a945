//! What holds for each model, whether anything is to be done or not: for people who ask why.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde::Serialize;

use crate::card::Turn;
use crate::idle;
use crate::merge::{Pick, Rules};
use crate::policy::Residency;
use crate::world::ServerName;

/// A value and the policy it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chosen<T> {
    pub value: T,
    pub policy: String,
}

/// The merged rules of some policies on one kind of card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSet {
    /// All that select the model, by name.
    pub policies: Vec<String>,
    pub residency: Chosen<Residency>,
    /// The policy whose open window set the residency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    pub priority: Chosen<i32>,
    pub min_resident_ms: u64,
    pub min_loaded: u32,
}

/// A model and what governs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelPlan {
    pub server: ServerName,
    pub model: String,
    /// A place in [`crate::Plan::rules`]; `None`: no policy selects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<usize>,
    /// After so long without a request it leaves; with adaptive residency as of now. `None`: idleness is no reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<Chosen<u64>>,
}

/// Every model in the order of its name, and each different set of rules once.
pub fn explain(turn: &Turn<'_>) -> (Vec<RuleSet>, Vec<ModelPlan>) {
    let members = &turn.fleet.members;
    let mut places: Vec<usize> = (0..members.len()).collect();
    places.sort_by_key(|&place| &members[place].model.key);
    let mut known: BTreeMap<*const Rules, usize> = BTreeMap::new();
    let mut sets = Vec::new();
    let mut models = Vec::with_capacity(places.len());
    for place in places {
        let member = turn.member(place);
        let rules = member.rules.as_ref().map(|rules| {
            *known.entry(Rc::as_ptr(rules)).or_insert_with(|| {
                sets.push(set(turn, place, rules));
                sets.len() - 1
            })
        });
        let timeout = member.rules.as_ref().and_then(|rules| idle::timeout(turn, place, rules));
        let idle_timeout_ms = timeout.map(|idle::Timeout { after: timeout, .. }| Chosen {
            value: u64::try_from(timeout.value.as_millis()).unwrap_or(u64::MAX),
            policy: turn.fleet.policy_name(timeout.policy),
        });
        let key = &member.model.key;
        models.push(ModelPlan { server: key.server.clone(), model: key.model.clone(), rules, idle_timeout_ms });
    }
    (sets, models)
}

fn set(turn: &Turn<'_>, place: usize, rules: &Rules) -> RuleSet {
    let name = |policy: usize| turn.fleet.policy_name(policy);
    RuleSet {
        policies: turn.fleet.set(turn.member(place)).iter().map(|&policy| name(policy)).collect(),
        residency: chosen(turn, rules.residency),
        window: rules.window.map(name),
        priority: chosen(turn, rules.priority),
        min_resident_ms: u64::try_from(rules.min_resident.as_millis()).unwrap_or(u64::MAX),
        min_loaded: rules.min_loaded,
    }
}

fn chosen<T>(turn: &Turn<'_>, pick: Pick<T>) -> Chosen<T> {
    Chosen { value: pick.value, policy: turn.fleet.policy_name(pick.policy) }
}
