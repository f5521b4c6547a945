//! The policies of one namespace take nothing from the models of another.
//!
//! The merge bounds what a namespace may ask for its own models; this module bounds what follows for the models of other
//! namespaces. Which models together free enough memory depends on their sizes and on their order, and a namespace decides
//! the order of its own models. So a model leaves last if a cluster policy selects it and it would stay with the cluster
//! policies and those of its own namespace alone: it leaves only where all other models that may leave are not enough.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::evaluate::{EvaluationInput, evaluate};
use crate::plan::{Action, Decision, DecisionReason, Plan};
use crate::policy::ModelPolicy;
use crate::pressure_timers::PressureTimers;
use crate::world::{Labels, ModelKey, ObservedModel};

/// The plan of these policies, in which a model that stays without those of other namespaces leaves last.
pub fn evaluate_apart(input: EvaluationInput<'_>, policies: &[&ModelPolicy], timers: &mut PressureTimers) -> Plan {
    let mut leaving_last = HashSet::new();
    let Some(comparison) = NamespaceComparison::new(input, policies) else {
        return evaluate(input, policies, timers, &leaving_last);
    };
    let timers_before = timers.clone();
    let mut compared: BTreeSet<String> = BTreeSet::new();

    loop {
        let plan = evaluate(input, policies, timers, &leaving_last);
        let questionable = plan.decisions.iter().filter(|decision| comparison.is_questionable(decision));
        let namespaces: BTreeSet<String> = questionable.map(|d| d.server.namespace().to_owned()).collect();
        let new: Vec<String> = namespaces.difference(&compared).cloned().collect();

        let count_before = leaving_last.len();
        for namespace in &new {
            leaving_last.extend(comparison.staying_alone(namespace, timers_before.clone()));
        }

        compared.extend(new);
        if leaving_last.len() == count_before {
            return plan;
        }

        // The next plan may name other models instead: their namespaces are compared in turn.
        timers.clone_from(&timers_before);
    }
}

/// What would be decided with the cluster policies and those of one namespace alone.
struct NamespaceComparison<'a> {
    input: EvaluationInput<'a>,
    policies: &'a [&'a ModelPolicy],
    /// The namespaces that have policies.
    namespaces: BTreeSet<&'a str>,
    models: HashMap<&'a ModelKey, &'a ObservedModel>,
}

impl<'a> NamespaceComparison<'a> {
    /// `None`: there is nothing to compare.
    fn new(input: EvaluationInput<'a>, policies: &'a [&'a ModelPolicy]) -> Option<Self> {
        let namespaces: BTreeSet<&str> =
            policies.iter().filter_map(|policy| policy.name.namespace.as_deref()).collect();
        if namespaces.is_empty() || !policies.iter().any(|policy| policy.is_cluster()) {
            return None;
        }

        let models = input.world.models.iter().map(|model| (&model.key, model)).collect();
        Some(Self { input, policies, namespaces, models })
    }

    /// Whether policies of other namespaces could have led to the decision.
    fn is_questionable(&self, decision: &Decision) -> bool {
        let rests_on_others = !matches!(decision.reason, DecisionReason::IdleTimeout | DecisionReason::OnDemand);
        let own = decision.server.namespace();
        decision.action == Action::Unload
            && rests_on_others
            && self.namespaces.iter().any(|namespace| *namespace != own)
            && self.models.get(&decision.key()).is_some_and(|model| self.has_cluster_policy(model))
    }

    fn has_cluster_policy(&self, model: &ObservedModel) -> bool {
        let no_labels = Labels::new();
        let labels = self.input.world.namespaces.get(model.key.server.namespace()).unwrap_or(&no_labels);
        self.policies.iter().any(|policy| policy.is_cluster() && policy.selects(model, labels))
    }

    /// The models of the namespace that stay with the cluster policies and its own policies alone.
    fn staying_alone(&self, namespace: &str, mut timers: PressureTimers) -> Vec<ModelKey> {
        let is_own = |policy: &&&ModelPolicy| policy.name.namespace.as_deref().is_none_or(|other| other == namespace);
        let policies: Vec<&ModelPolicy> = self.policies.iter().filter(is_own).copied().collect();
        let input = EvaluationInput { explained: false, ..self.input };
        let plan = evaluate(input, &policies, &mut timers, &HashSet::new());

        let unloads = plan.decisions.iter().filter(|decision| decision.action == Action::Unload);
        let leaving: HashSet<ModelKey> = unloads.map(Decision::key).collect();
        let models = self.models.values().filter(|model| model.key.server.namespace() == namespace);
        let staying = models.filter(|model| !leaving.contains(&model.key) && self.has_cluster_policy(model));
        staying.map(|model| model.key.clone()).collect()
    }
}
