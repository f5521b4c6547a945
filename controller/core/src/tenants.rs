//! The policies of one namespace take nothing from the models of another.
//!
//! The merge bounds what a namespace may ask for its own models; this bounds what follows for the models of others. Which
//! models together free enough memory depends on their sizes and on their order, and a namespace decides the order of its
//! own. So a model that a cluster policy selects, and that would stay with the operator's policies and those of its own
//! namespace alone, is taken last: it leaves only where all others that may leave are not enough.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::plan::{Action, Decision, Plan, Reason};
use crate::policy::Policy;
use crate::signal::Timers;
use crate::step::{Situation, evaluate};
use crate::world::{Labels, Model, ModelKey};

/// The plan of these policies, in which a model that stays without those of other namespaces is taken last.
pub fn evaluate_apart(situation: Situation<'_>, policies: &[&Policy], timers: &mut Timers) -> Plan {
    let mut kept = HashSet::new();
    let Some(comparison) = Comparison::new(situation, policies) else {
        return evaluate(situation, policies, timers, &kept);
    };
    let timers_before = timers.clone();
    let mut compared: BTreeSet<String> = BTreeSet::new();

    loop {
        let plan = evaluate(situation, policies, timers, &kept);
        let questionable = plan.decisions.iter().filter(|decision| comparison.is_questionable(decision));
        let namespaces: BTreeSet<String> = questionable.map(|d| d.server.namespace().to_owned()).collect();
        let new: Vec<String> = namespaces.difference(&compared).cloned().collect();
        let kept_before = kept.len();
        for namespace in &new {
            kept.extend(comparison.kept(namespace, timers_before.clone()));
        }
        compared.extend(new);
        if kept.len() == kept_before {
            return plan;
        }

        // Another model may be named instead: its namespace is compared in turn.
        timers.clone_from(&timers_before);
    }
}

/// What would be done with the operator's policies and those of one namespace alone.
struct Comparison<'a> {
    situation: Situation<'a>,
    policies: &'a [&'a Policy],
    /// Of the policies that are not the operator's.
    namespaces: BTreeSet<&'a str>,
    models: HashMap<&'a ModelKey, &'a Model>,
}

impl<'a> Comparison<'a> {
    /// `None`: there is nothing to compare.
    fn new(situation: Situation<'a>, policies: &'a [&'a Policy]) -> Option<Self> {
        let namespaces: BTreeSet<&str> =
            policies.iter().filter_map(|policy| policy.name.namespace.as_deref()).collect();
        if namespaces.is_empty() || !policies.iter().any(|policy| policy.is_cluster()) {
            return None;
        }
        let models = situation.world.models.iter().map(|model| (&model.key, model)).collect();
        Some(Self { situation, policies, namespaces, models })
    }

    /// Whether policies of other namespaces could have led to it.
    fn is_questionable(&self, decision: &Decision) -> bool {
        let rests_on_others = !matches!(decision.reason, Reason::IdleTimeout | Reason::OnDemand);
        let own = decision.server.namespace();
        decision.action == Action::Unload
            && rests_on_others
            && self.namespaces.iter().any(|namespace| *namespace != own)
            && self.models.get(&decision.key()).is_some_and(|model| self.operator_selects(model))
    }

    fn operator_selects(&self, model: &Model) -> bool {
        let nothing = Labels::new();
        let labels = self.situation.world.namespaces.get(model.key.server.namespace()).unwrap_or(&nothing);
        self.policies.iter().any(|policy| policy.is_cluster() && policy.selects(model, labels))
    }

    /// The models of the namespace that stay with the operator's policies and its own alone.
    fn kept(&self, namespace: &str, mut timers: Timers) -> Vec<ModelKey> {
        let own = |policy: &&&Policy| policy.name.namespace.as_deref().is_none_or(|other| other == namespace);
        let policies: Vec<&Policy> = self.policies.iter().filter(own).copied().collect();
        let situation = Situation { explained: false, ..self.situation };
        let plan = evaluate(situation, &policies, &mut timers, &HashSet::new());
        let leaving: HashSet<ModelKey> =
            plan.decisions.iter().filter(|d| d.action == Action::Unload).map(Decision::key).collect();
        let models = self.models.values().filter(|model| model.key.server.namespace() == namespace);
        let models = models.filter(|model| !leaving.contains(&model.key) && self.operator_selects(model));
        models.map(|model| model.key.clone()).collect()
    }
}
